//! `ledger-8-followers`: one cache invalidates, and eight others in this process hear of it.
//!
//! First as fast as it goes: many callers invalidate, and time runs until the last follower has
//! heard of the last key. Then one after the other: the time from the end of each invalidation until
//! each follower has heard of it. One task looks, at one follower after the other and without a
//! pause, which is a part of that time and keeps a thread of the machine busy.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::runtime::Runtime;
use tokio::task::yield_now;

use super::{OPS, P99, P999, SUITE, US, share};
use crate::engines::bare_redis::BareChannel;
use crate::engines::terrace_redis::TerraceFleet;
use crate::engines::{Following, Invalidating};
use crate::goal::Goal;
use crate::harness::{Case, Engine, Metric, Outcome, Pace, compare};
use crate::load::text_key;
use crate::suites::Request;

pub(super) const CASE: &str = "ledger-8-followers";

const METRICS: &[Metric] = &[OPS, US, P99, P999];

const GOALS: &[Goal] = &[];

const FOLLOWERS: usize = 8;

/// Who invalidate at once, while it goes as fast as it can.
const CALLERS: usize = 100;

/// A follower that has not heard after so long is said to be deaf.
const LIMIT: Duration = Duration::from_secs(5);

struct Work<'a> {
    runtime: &'a Runtime,
    keys: Vec<String>,
    /// So many of them are invalidated one after the other.
    one_by_one: usize,
}

pub(super) fn run(request: &Request, runtime: &Runtime, url: &str, pace: Pace) -> Result<Outcome> {
    let keys = (0..request.size(2_000, 10_000)).map(text_key).collect();
    let work = &Work { runtime, keys, one_by_one: request.size(200, 1_000) };
    let mut ours = runtime.block_on(TerraceFleet::at(url, FOLLOWERS))?;
    let mut bare = runtime.block_on(BareChannel::at(url, FOLLOWERS))?;
    let case = Case { suite: SUITE, name: CASE, metrics: METRICS };
    let mut outcome = compare(&case, vec![engine(&mut ours, work), engine(&mut bare, work)], pace);
    outcome.judge(&case, GOALS);
    Ok(outcome)
}

fn engine<'a, F: Following>(fleet: &'a mut F, work: &'a Work<'a>) -> Engine<'a> {
    Engine::new(F::NAME, F::version(), move || {
        work.runtime.block_on(async {
            let rate = at_once(fleet, work).await?;
            let mut times = one_by_one(fleet, work).await?;
            let [half, most, almost_all] = [0.5, 0.99, 0.999].map(|of| share(&mut times, of));
            Ok(vec![rate, half, most, almost_all])
        })
    })
}

/// Invalidations a second, by many callers and until all have heard of all.
async fn at_once<F: Following>(fleet: &mut F, work: &Work<'_>) -> Result<f64> {
    fleet.fill(&work.keys).await?;
    let mut tasks = Vec::new();
    let began = Instant::now();
    for keys in work.keys.chunks(work.keys.len().div_ceil(CALLERS)) {
        let (writer, keys) = (fleet.writer(), keys.to_vec());
        tasks.push(tokio::spawn(async move {
            for key in keys {
                writer.invalidate(&key).await?;
            }
            anyhow::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    let ended = Instant::now();
    for follower in 0..FOLLOWERS {
        for key in &work.keys {
            wait(fleet, follower, key, ended).await?;
        }
    }
    Ok(work.keys.len() as f64 / began.elapsed().as_secs_f64())
}

/// How long each follower took to hear of each.
async fn one_by_one<F: Following>(fleet: &mut F, work: &Work<'_>) -> Result<Vec<Duration>> {
    let keys = work.keys.get(..work.one_by_one).context("too few keys")?;
    fleet.fill(keys).await?;
    let writer = fleet.writer();
    let mut times = Vec::with_capacity(keys.len() * FOLLOWERS);
    for key in keys {
        let knew = (0..FOLLOWERS).all(|follower| !fleet.has_heard(follower, key));
        ensure!(knew, "a follower knows nothing of a key before it is invalidated");
        writer.invalidate(key).await?;
        let ended = Instant::now();
        let mut deaf: Vec<_> = (0..FOLLOWERS).collect();
        while !deaf.is_empty() {
            deaf.retain(|follower| {
                let has_heard = fleet.has_heard(*follower, key);
                times.extend(has_heard.then(|| ended.elapsed()));
                !has_heard
            });
            ensure!(ended.elapsed() < LIMIT, "a follower has not heard within {LIMIT:?}");
            yield_now().await;
        }
    }
    Ok(times)
}

async fn wait<F: Following>(
    fleet: &mut F,
    follower: usize,
    key: &str,
    since: Instant,
) -> Result<()> {
    while !fleet.has_heard(follower, key) {
        ensure!(since.elapsed() < LIMIT, "a follower has not heard within {LIMIT:?}");
        yield_now().await;
    }
    Ok(())
}
