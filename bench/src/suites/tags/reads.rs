//! `read-4-tags-…`: reads of entries with four tags beside reads of entries without any: in memory
//! while other tags are invalidated, a thousand a second and as many as one task can, and on a
//! server.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::runtime::Runtime;
use tokio::task::yield_now;

use super::{ROUND_TRIPS, SUITE, US};
use crate::engines::Tagging;
use crate::engines::tag_sets::TagSets;
use crate::engines::terrace_tags::TerraceTags;
use crate::goal::Goal;
use crate::harness::{Better, Case, Engine, Metric, OURS, Outcome, Pace, compare};
use crate::load::{Random, text_key};
use crate::suites::Request;
use crate::suites::servers::Servers;

pub(super) const IN_MEMORY: &str = "read-4-tags-memory";
pub(super) const IN_A_FLOOD: &str = "read-4-tags-memory-flood";
pub(super) const ON_SERVER: &str = "read-4-tags-redis";

/// Ours as well.
const UNTAGGED: &str = "terrace-untagged";

/// At most 1.3 times as long as without tags.
const GOALS: &[Goal] = &[Goal::Ratio { against: UNTAGGED, at_least: 1.0 / 1.3 }];

/// One for each read, and hardly ever another one of the connection's own.
const GOALS_ON_SERVER: &[Goal] = &[Goal::Value { metric: ROUND_TRIPS.name, at_most: 1.01 }];

const INVALIDATIONS: Metric =
    Metric { name: "invalidations_s", unit: "invalidations/s", better: Better::Higher };

const KEYS: usize = 10_000;

/// How many tags there are on entries, and how many others.
const TAGS: usize = 1_000;
const OTHERS: usize = 10_000;

const TAGS_EACH: usize = 4;

/// Between two invalidations, unless there is none.
const PAUSE: Duration = Duration::from_millis(1);

pub(super) fn run(
    name: &str,
    request: &Request,
    runtime: &Arc<Runtime>,
    pace: Pace,
) -> Result<Outcome> {
    let reads = request.size(400_000, 2_000_000);
    let pause = (name == IN_MEMORY).then_some(PAUSE);
    let caches = runtime.block_on(async {
        let (tagged, untagged) = (TerraceTags::in_memory().await?, TerraceTags::in_memory().await?);
        fill(&tagged, TAGS_EACH).await?;
        fill(&untagged, 0).await?;
        anyhow::Ok([Arc::new(tagged), Arc::new(untagged)])
    })?;
    let engine = |name, cache: &Arc<TerraceTags>| {
        let (cache, runtime) = (Arc::clone(cache), Arc::clone(runtime));
        let mut seed = 0;
        Engine::new(name, TerraceTags::version(), move || {
            seed += 1;
            let others = Others::invalidated(&runtime, &cache, pause);
            let each = runtime.block_on(read(&*cache, reads, seed))?;
            Ok(vec![each, others.stop(&runtime)?])
        })
    };
    let [tagged, untagged] = &caches;
    let engines = vec![engine(OURS, tagged), engine(UNTAGGED, untagged)];
    let case = Case { suite: SUITE, name, metrics: &[US, INVALIDATIONS] };
    let mut outcome = compare(&case, engines, pace);
    outcome.judge(&case, GOALS);
    for cache in &caches {
        runtime.block_on(cache.close());
    }
    Ok(outcome)
}

pub(super) fn run_on_server(
    request: &Request,
    runtime: &Runtime,
    servers: &Servers,
    pace: Pace,
) -> Result<Outcome> {
    let reads = request.size(2_000, 10_000);
    let url = servers.urls().concat();
    let (ours, sets) = runtime.block_on(async {
        servers.empty().await?;
        let (ours, sets) = (TerraceTags::on_server(&url).await?, TagSets::at(&url).await?);
        fill(&ours, TAGS_EACH).await?;
        for number in 0..KEYS {
            ours.store(&untagged(number), &[]).await?;
        }
        sets.fill(&(0..KEYS).map(text_key).collect::<Vec<_>>(), &tag(0)).await?;
        anyhow::Ok((ours, sets))
    })?;
    let seed = Cell::new(0);
    let case = Case { suite: SUITE, name: ON_SERVER, metrics: &[US, ROUND_TRIPS] };
    let engines = vec![
        on_server(OURS, &ours, text_key, reads, runtime, servers, &seed),
        on_server(UNTAGGED, &ours, untagged, reads, runtime, servers, &seed),
        on_server(TagSets::NAME, &sets, text_key, reads, runtime, servers, &seed),
    ];
    let mut outcome = compare(&case, engines, pace);
    outcome.judge(&case, GOALS_ON_SERVER);
    runtime.block_on(ours.close());
    Ok(outcome)
}

fn on_server<'a, T: Tagging>(
    name: &'static str,
    tagging: &'a T,
    key: fn(usize) -> String,
    reads: usize,
    runtime: &'a Runtime,
    servers: &'a Servers,
    seed: &'a Cell<u64>,
) -> Engine<'a> {
    Engine::new(name, T::version(), move || {
        seed.set(seed.get() + 1);
        runtime.block_on(async {
            let before = servers.exchanges().await?;
            let each = read_under(tagging, key, reads, seed.get()).await?;
            let exchanges = servers.exchanges_since(before).await?;
            Ok(vec![each, exchanges / reads as f64])
        })
    })
}

fn tag(number: usize) -> String {
    format!("country:{number:04}")
}

fn untagged(number: usize) -> String {
    format!("plain:{number:08}")
}

async fn fill(cache: &TerraceTags, tags: usize) -> Result<()> {
    let mut random = Random::new(47);
    for number in 0..KEYS {
        let tags: Vec<_> = (0..tags).map(|_| tag(random.below(TAGS))).collect();
        cache.store(&text_key(number), &tags).await?;
    }
    Ok(())
}

async fn read<T: Tagging>(tagging: &T, reads: usize, seed: u64) -> Result<f64> {
    read_under(tagging, text_key, reads, seed).await
}

/// Microseconds a read, one after the other.
async fn read_under<T: Tagging>(
    tagging: &T,
    key: fn(usize) -> String,
    reads: usize,
    seed: u64,
) -> Result<f64> {
    let keys: Vec<String> = (0..KEYS).map(key).collect();
    let mut random = Random::new(seed);
    let order: Vec<usize> = (0..reads).map(|_| random.below(KEYS)).collect();
    let mut found = 0;
    let began = Instant::now();
    for number in &order {
        found += usize::from(tagging.has(&keys[*number]).await?);
    }
    let took = began.elapsed();
    ensure!(found == reads, "{} reads found nothing", reads - found);
    Ok(took.as_nanos() as f64 / 1e3 / reads as f64)
}

/// A task that invalidates tags which no entry carries.
struct Others {
    is_over: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    began: Instant,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Others {
    fn invalidated(runtime: &Runtime, cache: &Arc<TerraceTags>, pause: Option<Duration>) -> Self {
        let (is_over, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let task = {
            let (is_over, count) = (Arc::clone(&is_over), Arc::clone(&count));
            let cache = Arc::clone(cache);
            runtime.spawn(async move {
                let mut ticks = pause.map(tokio::time::interval);
                while !is_over.load(Relaxed) {
                    match &mut ticks {
                        Some(ticks) => drop(ticks.tick().await),
                        None => yield_now().await,
                    }
                    let number = count.fetch_add(1, Relaxed) as usize;
                    cache.invalidate(&format!("other:{:05}", number % OTHERS)).await?;
                }
                anyhow::Ok(())
            })
        };
        Self { is_over, count, began: Instant::now(), task }
    }

    /// How many it were a second.
    fn stop(self, runtime: &Runtime) -> Result<f64> {
        let rate = self.count.load(Relaxed) as f64 / self.began.elapsed().as_secs_f64();
        self.is_over.store(true, Relaxed);
        runtime.block_on(self.task)??;
        Ok(rate)
    }
}
