//! `hit-path`: a read with a loader that finds its value in memory.

use std::hint::black_box;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::runtime::Runtime;

use super::Request;
use crate::counting;
use crate::engines::Loading;
use crate::engines::foyer::FoyerLoading;
use crate::engines::moka::MokaLoading;
use crate::engines::quick_cache::QuickCacheLoading;
use crate::engines::terrace::TerraceLoading;
use crate::harness::{Better, Case, Engine, Metric, Race, check_reads, compare, race};
use crate::load::{Draw, Drawer, Random, Source, id_of, text_key};
use crate::report::{Record, Report};

pub const SUITE: &str = "hit-path";

pub const CASES: &[&str] = &["get-or-load-1t", "get-or-load-2t"];

const NS: Metric = Metric { name: "ns", unit: "ns", better: Better::Lower };
const ALLOCS: Metric = Metric { name: "allocs", unit: "allocs", better: Better::Lower };

const RESIDENTS: usize = 100_000;

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
        let work = &Work::new(name, request.size(1 << 18, 1 << 20))?;
        let engines = vec![
            engine::<TerraceLoading>(work),
            engine::<MokaLoading>(work),
            engine::<QuickCacheLoading>(work),
            engine::<FoyerLoading>(work),
        ];
        let case = Case { suite: SUITE, name, metrics: &[NS] };
        let mut outcome = compare(&case, engines, request.pace(CASES.len()));
        outcome.records.extend(counting::ask(SUITE, name, request.quick)?);
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
    let work = Work::new(name, 1 << 18)?;
    let case = Case { suite: SUITE, name, metrics: &[ALLOCS] };
    Ok(vec![
        count_of::<TerraceLoading>(&case, &work),
        count_of::<MokaLoading>(&case, &work),
        count_of::<QuickCacheLoading>(&case, &work),
        count_of::<FoyerLoading>(&case, &work),
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
            // The few of the threads themselves do not show.
            let each = race.counts.allocations as f64 / work.operations() as f64;
            let value = (each * 1e4).round() / 1e4;
            Record::value(case, L::NAME, L::version(), ALLOCS, value)
        }
        Err(error) => Record::skipped(case, L::NAME, L::version(), &error),
    }
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
