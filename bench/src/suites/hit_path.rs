//! `hit-path`: a read with a loader that finds its value in memory, and one that has to load.

mod miss;

use std::hint::black_box;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::runtime::Runtime;

use super::Request;
use crate::counting;
use crate::engines::Loading;
use crate::engines::amalgam::AmalgamLoading;
use crate::engines::cached::CachedLoading;
use crate::engines::cachet::CachetLoading;
use crate::engines::foyer::FoyerLoading;
use crate::engines::moka::MokaLoading;
use crate::engines::quick_cache::QuickCacheLoading;
use crate::engines::terrace::TerraceLoading;
use crate::goal::Goal;
use crate::harness::{Better, Case, Engine, Metric, Race, check_reads, compare, race};
use crate::load::{Draw, Drawer, Random, Source, id_of, text_key};
use crate::report::{Record, Report};

pub const SUITE: &str = "hit-path";

pub const CASES: &[&str] = &["get-or-load-1t", "get-or-load-2t", miss::ALONE, miss::IN_TASK];

const NS: Metric = Metric { name: "ns", unit: "ns", better: Better::Lower };
const ALLOCS: Metric = Metric { name: "allocs", unit: "allocs", better: Better::Lower };

const RESIDENTS: usize = 100_000;

/// No allocation on a hit, and faster than anybody: half the time of most on one thread.
const GOALS_ALONE: &[Goal] = &[
    Goal::Value { metric: ALLOCS.name, at_most: 0.0 },
    Goal::Ratio { against: "moka-future", at_least: 2.0 },
    Goal::Ratio { against: "foyer", at_least: 2.0 },
    Goal::Ratio { against: "cachet", at_least: 2.0 },
    Goal::Ratio { against: "amalgam-unbounded", at_least: 2.0 },
    Goal::Ratio { against: "amalgam-bounded", at_least: 2.0 },
    Goal::Ratio { against: "cached-macro", at_least: 1.0 },
    Goal::Ratio { against: "quick_cache", at_least: 1.0 },
];

/// A third of it on two.
const GOALS_OF_TWO: &[Goal] = &[
    Goal::Value { metric: ALLOCS.name, at_most: 0.0 },
    Goal::Ratio { against: "moka-future", at_least: 3.0 },
    Goal::Ratio { against: "foyer", at_least: 3.0 },
    Goal::Ratio { against: "cachet", at_least: 3.0 },
    Goal::Ratio { against: "amalgam-unbounded", at_least: 3.0 },
    Goal::Ratio { against: "amalgam-bounded", at_least: 3.0 },
    Goal::Ratio { against: "cached-macro", at_least: 1.0 },
    Goal::Ratio { against: "quick_cache", at_least: 1.0 },
];

static SOURCE: Source = Source::new(Duration::ZERO);

/// All keys of a case, and the order in which each thread asks for them.
struct Work {
    keys: Vec<String>,
    threads: Vec<Vec<u32>>,
    runtime: Runtime,
}

impl Work {
    fn new(case: &str, operations: usize) -> Result<Self> {
        let threads = match case {
            "get-or-load-1t" => 1,
            "get-or-load-2t" => 2,
            _ => bail!("no case {case:?} in {SUITE}"),
        };
        let drawer = Drawer::new(Draw::ZIPF, RESIDENTS);
        let mut random = Random::new(43);
        let mut order = || (0..operations).map(|_| drawer.draw(&mut random) as u32).collect();
        Ok(Self {
            keys: (0..RESIDENTS).map(text_key).collect(),
            threads: (0..threads).map(|_| order()).collect(),
            runtime: Runtime::new().context("no runtime")?,
        })
    }

    fn operations(&self) -> usize {
        self.threads.iter().map(Vec::len).sum()
    }
}

pub fn run(request: &Request, report: &mut Report) -> Result<()> {
    for &name in CASES.iter().filter(|case| request.wants(case)) {
        let pace = request.pace(CASES.len());
        let (case, mut outcome, goals) = if miss::CASES.contains(&name) {
            let case = Case { suite: SUITE, name, metrics: miss::METRICS };
            let misses = request.size(miss::FEW, miss::MANY);
            (case, compare(&case, miss::engines(name, misses)?, pace), miss::GOALS)
        } else {
            let case = Case { suite: SUITE, name, metrics: &[NS] };
            let work = &Work::new(name, request.size(1 << 17, 1 << 20))?;
            let engines = vec![
                engine::<TerraceLoading>(work),
                engine::<MokaLoading>(work),
                engine::<QuickCacheLoading>(work),
                engine::<FoyerLoading>(work),
                engine::<CachetLoading<false>>(work),
                engine::<AmalgamLoading<false>>(work),
                engine::<AmalgamLoading<true>>(work),
                engine::<CachedLoading<false>>(work),
            ];
            let goals = if work.threads.len() == 1 { GOALS_ALONE } else { GOALS_OF_TWO };
            (case, compare(&case, engines, pace), goals)
        };
        outcome.records.extend(counting::ask(SUITE, name, request.quick)?);
        outcome.judge(&case, goals);
        report.add(name, outcome)?;
    }
    Ok(())
}

/// What [`run`] asks for; in the program that counts.
///
/// # Errors
/// There is no such case.
pub fn count(case: &str) -> Result<Vec<Record>> {
    let Some(&name) = CASES.iter().find(|name| **name == case) else {
        bail!("no case {case:?} in {SUITE}");
    };
    let case = Case { suite: SUITE, name, metrics: &[ALLOCS] };
    if miss::CASES.contains(&name) {
        return miss::count(&case);
    }
    let work = Work::new(name, 1 << 17)?;
    Ok(vec![
        count_of::<TerraceLoading>(&case, &work),
        count_of::<MokaLoading>(&case, &work),
        count_of::<QuickCacheLoading>(&case, &work),
        count_of::<FoyerLoading>(&case, &work),
        count_of::<CachetLoading<false>>(&case, &work),
        count_of::<AmalgamLoading<false>>(&case, &work),
        count_of::<AmalgamLoading<true>>(&case, &work),
        count_of::<CachedLoading<false>>(&case, &work),
    ])
}

fn engine<L: Loading>(work: &Work) -> Engine<'_> {
    // Time as each thread sees it: two threads that do not disturb each other take as long as one.
    Engine::new(L::NAME, L::version(), || {
        let each = work.operations() as f64 / work.threads.len() as f64;
        Ok(vec![measure::<L>(work)?.time.as_nanos() as f64 / each])
    })
}

fn count_of<L: Loading>(case: &Case<'_>, work: &Work) -> Record {
    match measure::<L>(work) {
        Ok(race) => {
            let each = per_read(race.counts.allocations, work.operations());
            Record::value(case, L::NAME, L::version(), ALLOCS, each)
        }
        Err(error) => Record::skipped(case, L::NAME, L::version(), &error),
    }
}

/// The few allocations of the threads and tasks themselves do not show.
fn per_read(allocations: i64, reads: usize) -> f64 {
    (allocations as f64 / reads as f64 * 1e3).round() / 1e3
}

/// Fills a cache, goes through all reads once to warm up and a second time to measure.
fn measure<L: Loading>(work: &Work) -> Result<Race<Result<()>>> {
    let runtime = work.runtime.handle();
    let cache = runtime.block_on(async {
        let cache = L::with_room_for(2 * RESIDENTS).await?;
        cache.fill(&work.keys).await?;
        anyhow::Ok(cache)
    })?;
    let loads = SOURCE.loads();
    let go = || {
        race(work.threads.len(), |thread| {
            let order = &work.threads[thread];
            let sum = runtime.block_on(read(&cache, &work.keys, order))?;
            let ids = order.iter().map(|number| id_of(&work.keys[*number as usize]));
            check_reads(0, order.len(), sum, ids.fold(0, u64::wrapping_add))
        })
    };
    go();
    let mut race = go();
    for result in race.results.drain(..) {
        result?;
    }
    let loads = SOURCE.loads() - loads;
    ensure!(loads == 0, "{loads} of the reads were no hits");
    runtime.block_on(cache.close());
    Ok(race)
}

/// The sum of the identities of the users in this order.
async fn read<L: Loading>(cache: &L, keys: &[String], order: &[u32]) -> Result<u64> {
    let mut sum = 0_u64;
    for number in order {
        let key = black_box(keys[*number as usize].as_str());
        sum = sum.wrapping_add(cache.get_or_load(key, &SOURCE).await?);
    }
    Ok(sum)
}
