//! A miss: what it adds to calling the loader, which returns at once, under a new key each time.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::runtime::{Builder, Runtime};

use super::{ALLOCS, per_read};
use crate::counting;
use crate::engines::Sharing;
use crate::engines::amalgam::AmalgamLoading;
use crate::engines::cached::CachedLoading;
use crate::engines::cachet::CachetLoading;
use crate::engines::foyer::FoyerLoading;
use crate::engines::moka::MokaLoading;
use crate::engines::quick_cache::QuickCacheLoading;
use crate::engines::terrace::TerraceLoading;
use crate::goal::Goal;
use crate::harness::{Better, Case, Engine, Metric};
use crate::load::{Source, id_of, text_key};
use crate::report::Record;

/// On a runtime with one thread.
pub(super) const ALONE: &str = "miss";
/// In a task on a runtime with many threads, as in most services.
pub(super) const IN_TASK: &str = "miss-task";

pub(super) const CASES: &[&str] = &[ALONE, IN_TASK];

const ADDED: Metric = Metric { name: "added_us", unit: "us", better: Better::Lower };
const P99: Metric = Metric { name: "p99_us", unit: "us", better: Better::Lower };

/// Of half of all misses, what the loader itself does not explain; what 99 of 100 took at most.
pub(super) const METRICS: &[Metric] = &[ADDED, P99];

pub(super) const GOALS: &[Goal] = &[Goal::Value { metric: ADDED.name, at_most: 5.0 }];

/// So many misses a round.
pub(super) const FEW: usize = 5_000;
pub(super) const MANY: usize = 20_000;

static SOURCE: Source = Source::new(Duration::ZERO);

/// Keys that no cache has, and the runtime on which they are asked for.
struct Work {
    keys: Arc<[String]>,
    runtime: Runtime,
}

impl Work {
    fn new(case: &str, misses: usize) -> Result<Self> {
        let mut builder = match case {
            ALONE => Builder::new_current_thread(),
            IN_TASK => Builder::new_multi_thread(),
            _ => bail!("no case {case:?} about misses"),
        };
        Ok(Self {
            keys: (0..misses).map(text_key).collect(),
            runtime: builder.enable_all().build().context("no runtime")?,
        })
    }
}

/// Those that load once for all who wait, which is a part of what a miss costs.
pub(super) fn engines(case: &str, misses: usize) -> Result<Vec<Engine<'static>>> {
    let work = &Arc::new(Work::new(case, misses)?);
    Ok(vec![
        engine::<TerraceLoading>(work),
        engine::<MokaLoading>(work),
        engine::<QuickCacheLoading>(work),
        engine::<FoyerLoading>(work),
        engine::<CachetLoading<true>>(work),
        engine::<AmalgamLoading<false>>(work),
        engine::<AmalgamLoading<true>>(work),
        engine::<CachedLoading<true>>(work),
    ])
}

pub(super) fn count(case: &Case<'_>) -> Result<Vec<Record>> {
    let work = &Work::new(case.name, MANY)?;
    Ok(vec![
        count_of::<TerraceLoading>(case, work),
        count_of::<MokaLoading>(case, work),
        count_of::<QuickCacheLoading>(case, work),
        count_of::<FoyerLoading>(case, work),
        count_of::<CachetLoading<true>>(case, work),
        count_of::<AmalgamLoading<false>>(case, work),
        count_of::<AmalgamLoading<true>>(case, work),
        count_of::<CachedLoading<true>>(case, work),
    ])
}

fn engine<L: Sharing>(work: &Arc<Work>) -> Engine<'static> {
    let work = Arc::clone(work);
    Engine::new(L::NAME, L::version(), move || {
        let Times { mut direct, mut missing, .. } = measure::<L>(&work)?;
        let added = share(&mut missing, 0.5).saturating_sub(share(&mut direct, 0.5));
        let p99 = share(&mut missing, 0.99);
        Ok([added, p99].map(|time| time.as_nanos() as f64 / 1e3).to_vec())
    })
}

fn count_of<L: Sharing>(case: &Case<'_>, work: &Work) -> Record {
    match measure::<L>(work) {
        Ok(Times { allocations, .. }) => {
            let each = per_read(allocations, work.keys.len());
            Record::value(case, L::NAME, L::version(), ALLOCS, each)
        }
        Err(error) => Record::skipped(case, L::NAME, L::version(), &error),
    }
}

/// What a round of misses took.
#[derive(Default)]
struct Times {
    /// The loader by itself.
    direct: Vec<Duration>,
    missing: Vec<Duration>,
    /// What misses allocated and the loader by itself did not, where allocations are counted.
    allocations: i64,
}

/// Asks an empty cache for each key once, calling the loader by itself before.
fn measure<L: Sharing>(work: &Work) -> Result<Times> {
    let keys = Arc::clone(&work.keys);
    let in_task = async move {
        let cache = L::with_room_for(2 * keys.len()).await?;
        let loads = SOURCE.loads();
        let mut times = Times {
            direct: Vec::with_capacity(keys.len()),
            missing: Vec::with_capacity(keys.len()),
            allocations: 0,
        };
        for key in &*keys {
            let key = black_box(key.as_str());
            let before = (Instant::now(), counting::counts());
            black_box(SOURCE.load(key).await);
            let between = (Instant::now(), counting::counts());
            let id = cache.get_or_load(key, &SOURCE).await?;
            let after = (Instant::now(), counting::counts());
            times.direct.push(between.0 - before.0);
            times.missing.push(after.0 - between.0);
            let (direct, missing) = (between.1 - before.1, after.1 - between.1);
            times.allocations += missing.allocations - direct.allocations;
            ensure!(id == id_of(key), "a load returned another value than the source's");
        }
        let loads = SOURCE.loads() - loads;
        ensure!(loads == 2 * keys.len() as u64, "some of the reads were hits");
        cache.close().await;
        Ok(times)
    };
    work.runtime.block_on(async { tokio::spawn(in_task).await? })
}

/// What this share of `times` was at most.
fn share(times: &mut [Duration], share: f64) -> Duration {
    let at = (times.len() as f64 * share) as usize;
    let at = at.min(times.len().saturating_sub(1));
    if times.is_empty() { Duration::ZERO } else { *times.select_nth_unstable(at).1 }
}
