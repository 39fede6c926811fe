//! `hit-ratio`: how many requests of real programs find their entry in caches of some sizes.
//!
//! Every trace is replayed on one thread through every engine: a look-up, and an insert where it
//! finds nothing. Time is not measured, so several engines run at once.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use anyhow::{Result, anyhow, bail};

use super::Request;
use crate::engines::foyer::{FoyerLfu, FoyerLru, FoyerS3Fifo};
use crate::engines::mini_moka::MiniMoka;
use crate::engines::moka::Moka;
use crate::engines::quick_cache::{QuickCache, QuickCacheBytes};
use crate::engines::rwlock_hashmap::RwLockHashMap;
use crate::engines::terrace::TerraceMemory;
use crate::engines::tinyufo::TinyUFO;
use crate::engines::{Memory, Weighed};
use crate::harness::{Better, Case, Measured, Metric, OURS, Outcome, Rounds, Sample};
use crate::kind::{Kind as _, Sizes};
use crate::report::Report;
use crate::statistics::FEWEST_ROUNDS;
use crate::traces::{self, Trace};
use crate::{optimal, simulator, versions};

pub const SUITE: &str = "hit-ratio";

/// There is a case for each trace and size besides.
pub const CASES: &[&str] = &["TRACE@SIZE", "TRACE@SIZE-bytes", MEAN, MEAN_OF_BYTES];

const MEAN: &str = "mean";
const MEAN_OF_BYTES: &str = "mean-bytes";

const METRICS: &[Metric] =
    &[Metric { name: "hit_percent", unit: "%", better: Better::HigherByPoints }];

/// In smaller caches, most depends on how the entries fall into shards.
const FEWEST_ENTRIES: usize = 16;

/// Requests of each trace in quick runs.
const QUICK_REQUESTS: usize = 100_000;

/// How large caches are.
#[derive(Clone, Copy, Debug)]
enum Size {
    Entries(usize),
    /// Of all objects, or of their bytes.
    Percent(usize),
}

impl Size {
    /// Those of a trace, by its name.
    fn of(trace: &str, quick: bool) -> &'static [Self] {
        use Size::{Entries, Percent};
        match (trace, quick) {
            // As they are in the literature.
            ("OLTP", false) => {
                &[Entries(500), Entries(1_000), Entries(2_000), Entries(5_000), Entries(10_000)]
            }
            ("OLTP", true) => &[Entries(1_000), Entries(5_000)],
            (_, false) => &[Percent(1), Percent(5), Percent(10), Percent(20)],
            (_, true) => &[Percent(5), Percent(20)],
        }
    }

    fn named(self) -> String {
        match self {
            Self::Entries(entries) => entries.to_string(),
            Self::Percent(percent) => format!("{percent}pct"),
        }
    }

    fn entries(self, trace: &Trace) -> usize {
        match self {
            Self::Entries(entries) => entries,
            Self::Percent(percent) => trace.unique * percent / 100,
        }
    }

    /// If sizes are known, and it is a share of them.
    fn bytes(self, trace: &Trace) -> Option<u64> {
        let all: u64 = trace.sizes.iter().map(|size| u64::from(*size)).sum();
        match self {
            Self::Percent(percent) if all > 0 => Some(all * percent as u64 / 100),
            _ => None,
        }
    }
}

pub fn run(request: &Request, report: &mut Report) -> Result<()> {
    let Some(folder) = &request.traces else {
        return skip(report, "there is no folder of traces: name one with --traces");
    };
    let mut means = [Mean::new(MEAN), Mean::new(MEAN_OF_BYTES)];
    let files = traces::in_folder(folder)?;
    for file in &files {
        let cells = |suffix| {
            let sizes = Size::of(&file.name, request.quick).iter();
            sizes.map(move |size| (*size, format!("{}@{}{suffix}", file.name, size.named())))
        };
        let is_wanted = |name: &str, mean| request.wants(name) || request.wants(mean);
        if !cells("").any(|(_, name)| is_wanted(&name, MEAN))
            && !cells("-bytes").any(|(_, name)| is_wanted(&name, MEAN_OF_BYTES))
        {
            continue;
        }
        let trace = file.read(request.size(QUICK_REQUESTS, usize::MAX))?;
        for (size, name) in cells("") {
            let entries = size.entries(&trace);
            if is_wanted(&name, MEAN) && (FEWEST_ENTRIES..trace.unique).contains(&entries) {
                means[0].add(replayed(&by_entries(&trace, entries)), &name, request, report)?;
            }
        }
        for (size, name) in cells("-bytes") {
            if let Some(bytes) = size.bytes(&trace)
                && is_wanted(&name, MEAN_OF_BYTES)
            {
                let entries = size.entries(&trace);
                means[1].add(
                    replayed(&by_bytes(&trace, bytes, entries)),
                    &name,
                    request,
                    report,
                )?;
            }
        }
    }
    let cells: usize = means.iter().map(|mean| mean.cells).sum();
    if cells == 0 {
        bail!("{}", nothing_found(request, folder, files.len()));
    }
    for mean in means {
        mean.report(request, report)?;
    }
    Ok(())
}

fn skip(report: &mut Report, reason: &'static str) -> Result<()> {
    eprintln!("note: {reason}");
    let rounds = Rounds { count: 0, engines: vec![out::<TerraceMemory<Sizes>>(reason)] };
    report.add(MEAN, outcome(MEAN, &rounds))
}

fn nothing_found(request: &Request, folder: &Path, files: usize) -> String {
    match &request.only {
        Some(only) if files > 0 => format!("no trace and size make the case {only:?}"),
        _ => format!("there are no traces in {}", folder.display()),
    }
}

/// What takes part in a cell.
struct Policy<'a> {
    name: &'static str,
    version: &'static str,
    /// Whether it does the same every time.
    is_exact: bool,
    hits: Box<dyn Fn() -> Result<usize> + Sync + 'a>,
    requests: usize,
}

fn by_entries(trace: &Trace, entries: usize) -> Vec<Policy<'_>> {
    fn engine<'a, M: Memory<Kind = Sizes> + 'a>(trace: &'a Trace, entries: usize) -> Policy<'a> {
        policy::<M>(trace, move || M::with_room_for(entries))
    }
    let exact = |name, hits: fn(&[u32], usize, usize) -> usize| Policy {
        name,
        version: versions::of("terrace-bench"),
        is_exact: true,
        hits: Box::new(move || Ok(hits(&trace.requests, trace.unique, entries))),
        requests: trace.requests.len(),
    };
    vec![
        engine::<TerraceMemory<Sizes>>(trace, entries),
        engine::<QuickCache<Sizes>>(trace, entries),
        engine::<Moka<Sizes>>(trace, entries),
        engine::<MiniMoka<Sizes>>(trace, entries),
        engine::<FoyerS3Fifo<Sizes>>(trace, entries),
        engine::<FoyerLfu<Sizes>>(trace, entries),
        engine::<FoyerLru<Sizes>>(trace, entries),
        engine::<TinyUFO<Sizes>>(trace, entries),
        exact("simulator", simulator::hits),
        exact("optimal", optimal::hits),
    ]
}

fn by_bytes(trace: &Trace, bytes: u64, entries: usize) -> Vec<Policy<'_>> {
    fn engine<'a, M: Weighed + 'a>(trace: &'a Trace, bytes: u64, entries: usize) -> Policy<'a> {
        policy::<M>(trace, move || M::with_bytes(bytes, entries))
    }
    vec![
        engine::<TerraceMemory<Sizes>>(trace, bytes, entries),
        engine::<QuickCacheBytes>(trace, bytes, entries),
        engine::<Moka<Sizes>>(trace, bytes, entries),
        engine::<MiniMoka<Sizes>>(trace, bytes, entries),
        engine::<FoyerS3Fifo<Sizes>>(trace, bytes, entries),
        engine::<FoyerLfu<Sizes>>(trace, bytes, entries),
        engine::<FoyerLru<Sizes>>(trace, bytes, entries),
    ]
}

fn policy<'a, M: Memory<Kind = Sizes> + 'a>(
    trace: &'a Trace,
    build: impl Fn() -> M + Sync + 'a,
) -> Policy<'a> {
    let replay = move || {
        let engine = build();
        let mut hits = 0;
        for id in &trace.requests {
            let key = Sizes::key((*id).into());
            if engine.get(&key).is_some() {
                hits += 1;
            } else {
                engine.insert(key, trace.sizes.get(*id as usize).copied().unwrap_or(1));
            }
        }
        Ok(hits)
    };
    Policy {
        name: M::NAME,
        version: M::version(),
        is_exact: false,
        hits: Box::new(replay),
        requests: trace.requests.len(),
    }
}

/// Runs all policies for all rounds, as many at once as the machine has threads.
fn replayed(policies: &[Policy<'_>]) -> Rounds {
    let jobs: Vec<usize> = policies
        .iter()
        .enumerate()
        .flat_map(|(index, policy)| {
            std::iter::repeat_n(index, if policy.is_exact { 1 } else { FEWEST_ROUNDS })
        })
        .collect();
    let done = Mutex::new(policies.iter().map(|_| Ok(Vec::new())).collect::<Vec<Result<_>>>());
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(index) = jobs.get(next.fetch_add(1, Relaxed)) {
                    let policy = &policies[*index];
                    let hits = (policy.hits)();
                    let mut done = done.lock().unwrap_or_else(|broken| broken.into_inner());
                    match (&mut done[*index], hits) {
                        (Ok(so_far), Ok(hits)) => {
                            let percent = 100.0 * hits as f64 / policy.requests as f64;
                            so_far.push(vec![vec![percent]]);
                        }
                        (so_far, Err(error)) => *so_far = Err(error),
                        (Err(_), _) => {}
                    }
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(|broken| broken.into_inner());
    let engines = policies.iter().zip(done).map(|(policy, samples)| Measured {
        name: policy.name,
        version: policy.version,
        samples: samples.map(|mut samples| {
            if policy.is_exact {
                samples.resize(FEWEST_ROUNDS, samples[0].clone());
            }
            samples
        }),
    });
    Rounds { count: FEWEST_ROUNDS, engines: engines.collect() }
}

/// The mean of all cells of a kind, in each round.
struct Mean {
    name: &'static str,
    cells: usize,
    sums: Option<Rounds>,
}

impl Mean {
    fn new(name: &'static str) -> Self {
        Self { name, cells: 0, sums: None }
    }

    /// Reports a cell if it is wanted, and remembers it.
    fn add(
        &mut self,
        rounds: Rounds,
        name: &str,
        request: &Request,
        report: &mut Report,
    ) -> Result<()> {
        if request.wants(name) {
            report.add(name, outcome(name, &rounds))?;
        }
        self.cells += 1;
        match &mut self.sums {
            None => self.sums = Some(rounds),
            Some(sums) => {
                for (sum, cell) in sums.engines.iter_mut().zip(rounds.engines) {
                    add(&mut sum.samples, cell.samples);
                }
            }
        }
        Ok(())
    }

    fn report(self, request: &Request, report: &mut Report) -> Result<()> {
        let Some(mut mean) = self.sums.filter(|_| request.wants(self.name)) else {
            return Ok(());
        };
        for engine in &mut mean.engines {
            let values = engine.samples.iter_mut().flatten().flatten().flatten();
            values.for_each(|value| *value /= self.cells as f64);
        }
        if self.name == MEAN_OF_BYTES {
            mean.engines.push(out::<TinyUFO<Sizes>>("its weights have 16 bits"));
        }
        mean.engines.push(out::<RwLockHashMap<Sizes>>("it has no bound, and evicts nothing"));
        report.add(self.name, outcome(self.name, &mean))
    }
}

/// `sum` becomes the sum of both, or the reason why there is none.
fn add(sum: &mut Result<Vec<Sample>>, cell: Result<Vec<Sample>>) {
    match (&mut *sum, cell) {
        (Ok(sums), Ok(cells)) => {
            let sums = sums.iter_mut().flatten().flatten();
            sums.zip(cells.iter().flatten().flatten()).for_each(|(sum, value)| *sum += value);
        }
        (_, Err(error)) => *sum = Err(error),
        (Err(_), _) => {}
    }
}

fn outcome(name: &str, rounds: &Rounds) -> Outcome {
    rounds.outcome(&Case { suite: SUITE, name, metrics: METRICS }, 0, OURS)
}

fn out<M: Memory>(reason: &'static str) -> Measured {
    Measured { name: M::NAME, version: M::version(), samples: Err(anyhow!(reason)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_of_the_trace() {
        let trace = Trace { requests: vec![0; 9], unique: 300, sizes: vec![2; 300] };
        assert_eq!(Size::Percent(5).entries(&trace), 15);
        assert_eq!(Size::Percent(5).bytes(&trace), Some(30));
        assert_eq!(Size::Entries(100).bytes(&trace), None);
        assert_eq!(Size::Percent(5).named(), "5pct");
        assert_eq!(Size::of("OLTP", false)[0].named(), "500");
    }

    #[test]
    fn a_mean_is_of_what_all_cells_have() {
        let sample = |value: f64| vec![vec![vec![value]]];
        let mut sum = Ok(sample(1.0));
        add(&mut sum, Ok(sample(2.0)));
        assert_eq!(sum.as_ref().unwrap(), &sample(3.0));
        add(&mut sum, Err(anyhow!("out of order")));
        add(&mut sum, Ok(sample(2.0)));
        assert!(sum.is_err());
    }
}
