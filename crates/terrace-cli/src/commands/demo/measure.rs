//! The **measurements**, in their order: the stream cold, again, and after a restart; many callers
//! at once; and then the same queries in each tier, which is what the figures are made of.

use std::collections::HashSet;
use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use terrace::Stats;
use terrace::clock::{Clock as _, SystemClock};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::cached::{CachedSource, OpenCaches, Tier, time_at_source};
use super::place::Place;
use super::progress::Progress;
use super::report::{DemoReport, Kind, Phase, Reads, Stampede, TierReads, percentile};
use super::source::{ROWS, Source};
use super::stream::{Query, Stream};
use crate::args::Demo;

/// Callers that work through the stream side by side.
const CALLERS: usize = 8;

/// Callers at once on one cold key.
const STAMPEDE: usize = 1000;

/// Queries on which the tiers are compared.
const SAMPLE: usize = 1000;

/// How often that is done on disk and in memory, where a single round takes so little that the
/// machine's other work would decide it. The median round counts, whole. The source takes seconds
/// for a round, and has one.
const ROUNDS: usize = 9;

/// Queries at the source between two chances to stop.
const AT_ONCE: usize = 20;

/// Runs the whole demonstration.
pub(crate) async fn demonstrate(
    args: &Demo,
    place: &Place,
    open: &OpenCaches,
    progress: &Progress,
) -> Result<DemoReport> {
    let source = open_source(place, progress).await?;
    let plan = Plan::new(&source, args)?;
    let mut phases = Vec::new();

    let cached = open.open(&place.cache(), &source).await?;
    // What a demonstration before left would make "cold" a lie.
    let _ = cached.terrace.clear().await?;
    let cold = Run { cached: &cached, source: &source, progress };
    phases.push(cold.stream("cold", &plan.queries).await?);
    phases.push(cold.stream("again", &plan.queries).await?);
    // Not a part of the demonstration: the comparison needs all of its queries on disk.
    cold.stream("fill the disk tier", &plan.sample).await?;
    open.close().await;
    let before = cached.terrace.stats().await;

    let cached = open.open(&place.cache(), &source).await?;
    let warm = Run { cached: &cached, source: &source, progress };
    phases.push(warm.stream("after a restart", &plan.queries).await?);
    let after = cached.terrace.stats().await;
    let (stampede, phase) = warm.stampede(&plan.cold_query).await?;
    phases.push(phase);

    let compared = warm.compare(&plan.sample).await?;
    open.close().await;

    let total = |count: fn(&Phase) -> u64| phases.iter().map(count).sum::<u64>();
    let asked = total(|phase| phase.queries);
    let loads = total(|phase| phase.from_source);
    let reads = |tier: &Timed| Reads::measured(&mut tier.nanos.clone(), tier.thousand());
    let source_reads = reads(&compared.source);
    let tier = |tier: &Timed, name: &str| {
        let (hits, asked) = traffic(&[&before, &after], name);
        TierReads::new(reads(tier), hits, asked, &source_reads)
    };
    Ok(DemoReport {
        rows: ROWS,
        queries: asked,
        loads_saved: asked.saturating_sub(loads),
        memory: tier(&compared.memory, "memory"),
        disk: tier(&compared.disk, "disk"),
        source: source_reads,
        kinds: compared.by_kind(&plan.sample),
        stampede,
        phases,
        directory: place.to_keep().map(|path| path.display().to_string()),
    })
}

/// The source's database, made now unless a demonstration before left it.
async fn open_source(place: &Place, progress: &Progress) -> Result<Source> {
    let (path, progress) = (place.source(), progress.clone());
    tokio::task::spawn_blocking(move || {
        if path.exists() {
            return Source::open(&path);
        }
        progress.begin("filling the source database", ROWS);
        Source::create(&path, &mut |done, _| progress.at(done))
    })
    .await?
}

/// Hits and questions of a tier, as the cache itself counted them.
fn traffic(stats: &[&Stats], tier: &str) -> (u64, u64) {
    stats.iter().flat_map(|stats| &stats.tiers).filter(|found| *found.name == *tier).fold(
        (0, 0),
        |(hits, asked), found| {
            let traffic = &found.traffic;
            (hits + traffic.hits, asked + traffic.hits + traffic.misses)
        },
    )
}

/// What is going to be asked.
#[derive(Debug)]
struct Plan {
    /// The stream.
    queries: Arc<[Query]>,
    /// Different queries in the mix of the stream, to compare the tiers on.
    sample: Arc<[Query]>,
    /// A query that is in neither.
    cold_query: Query,
}

impl Plan {
    fn new(source: &Source, args: &Demo) -> Result<Self> {
        let (codes, countries) = (source.codes()?, source.countries()?);
        let stream = Stream::new(codes.clone(), countries, args.seed);
        let queries: Arc<[_]> = stream.clone().take(args.queries as usize).collect();
        let sample: Arc<[_]> = sample(stream, SAMPLE.min(queries.len())).into();
        let asked: HashSet<_> = queries.iter().chain(&*sample).collect();
        let cold_query = codes
            .into_iter()
            .map(Query::Nearest)
            .find(|query| !asked.contains(query))
            .context("the stream asks for everything: ask less with --queries")?;
        Ok(Self { queries, sample, cold_query })
    }
}

/// Different queries as the stream asks them, the most popular of each kind among them, in the
/// stream's own mix: 40 % airports, 40 % nearest, 20 % reports.
fn sample(stream: Stream, size: usize) -> Vec<Query> {
    /// There are not that many countries for ever: a stream that brings nothing new has to end.
    const LONGEST: usize = 1_000_000;
    let mut room = [size * 2 / 5, size * 2 / 5, size - 2 * (size * 2 / 5)];
    let mut seen = HashSet::new();
    let mut chosen = Vec::with_capacity(size);
    for query in stream.take(LONGEST) {
        let Some(room) = room.get_mut(kind(&query)).filter(|room| **room > 0) else { continue };
        if seen.insert(query.clone()) {
            *room -= 1;
            chosen.push(query);
            if chosen.len() == size {
                break;
            }
        }
    }
    chosen
}

/// Names of the kinds of queries.
const KINDS: [&str; 3] = ["airport", "nearest", "report"];

/// The number of a query's kind.
fn kind(query: &Query) -> usize {
    match query {
        Query::Airport(_) => 0,
        Query::Nearest(_) => 1,
        Query::Report(_) => 2,
    }
}

/// A cache that is being measured.
struct Run<'a> {
    cached: &'a CachedSource,
    source: &'a Source,
    progress: &'a Progress,
}

impl Run<'_> {
    /// Asks all queries, a few callers side by side.
    async fn stream(&self, name: &'static str, queries: &Arc<[Query]>) -> Result<Phase> {
        self.progress.begin(name, queries.len() as u64);
        let next = Arc::new(AtomicUsize::new(0));
        let mut callers = JoinSet::new();
        let loads = self.source.queries();
        let clock = SystemClock::new();
        for _ in 0..CALLERS {
            let (cached, queries) = (self.cached.clone(), Arc::clone(queries));
            let (next, progress) = (Arc::clone(&next), self.progress.clone());
            callers.spawn(async move {
                let mut tally = Tally::default();
                while let Some(query) = queries.get(next.fetch_add(1, Ordering::Relaxed)) {
                    tally.count(cached.ask(query).await?);
                    progress.done(1);
                }
                anyhow::Ok(tally)
            });
        }
        let mut tally = Tally::default();
        while let Some(caller) = callers.join_next().await {
            tally += caller??;
        }
        Ok(tally.phase(name, clock.elapsed(), self.source.queries() - loads))
    }

    /// Many callers, all of whom are there before the first one asks.
    async fn stampede(&self, query: &Query) -> Result<(Stampede, Phase)> {
        const NAME: &str = "1,000 callers at once";
        self.progress.begin(NAME, STAMPEDE as u64);
        let (clock, start) = (Arc::new(SystemClock::new()), Arc::new(Barrier::new(STAMPEDE)));
        let loads = self.source.queries();
        let mut callers = JoinSet::new();
        for _ in 0..STAMPEDE {
            let (cached, query) = (self.cached.clone(), query.clone());
            let (clock, start) = (Arc::clone(&clock), Arc::clone(&start));
            callers.spawn(async move {
                start.wait().await;
                let begin = clock.elapsed();
                let tier = cached.ask(&query).await?;
                anyhow::Ok((tier, begin, clock.elapsed()))
            });
        }
        let mut tally = Tally::default();
        let (mut first, mut last) = (Duration::MAX, Duration::ZERO);
        while let Some(caller) = callers.join_next().await {
            let (tier, begin, end) = caller??;
            tally.count(tier);
            (first, last) = (first.min(begin), last.max(end));
            self.progress.done(1);
        }
        let (time, loads) = (last.saturating_sub(first), self.source.queries() - loads);
        let stampede = Stampede { callers: STAMPEDE as u64, loads, ms: time.as_secs_f64() * 1e3 };
        Ok((stampede, tally.phase(NAME, time, loads)))
    }

    /// The same queries at the source, on disk and in memory, one after the other.
    async fn compare(&self, sample: &Arc<[Query]>) -> Result<Comparison> {
        self.progress.begin("comparing the tiers", sample.len() as u64);
        let source = time_source(self.source, sample, self.progress).await?;
        let (mut disk, mut memory) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            // Each query is then read from disk once: reading it leaves a copy in memory.
            self.cached.terrace.clear_tier("memory").await?;
            disk.push(time_tier(self.cached, sample, Tier::Disk).await?);
            memory.push(time_tier(self.cached, sample, Tier::Memory).await?);
        }
        let (disk, memory) = (median(disk), median(memory));
        Ok(Comparison {
            source,
            disk: disk.unwrap_or_default(),
            memory: memory.unwrap_or_default(),
        })
    }
}

/// Times queries at the source, on one thread, without anything in between.
async fn time_source(source: &Source, sample: &Arc<[Query]>, progress: &Progress) -> Result<Timed> {
    let mut timed = Timed::default();
    for begin in (0..sample.len()).step_by(AT_ONCE) {
        let (source, sample) = (source.clone(), Arc::clone(sample));
        let part = tokio::task::spawn_blocking(move || {
            let clock = SystemClock::new();
            sample
                .iter()
                .skip(begin)
                .take(AT_ONCE)
                .map(|query| time_at_source(&source, query, &clock))
                .collect::<Result<Vec<Duration>>>()
        });
        for time in part.await?? {
            timed.nanos.push(nanos(time));
            timed.total += time;
        }
        progress.at(timed.nanos.len() as u64);
    }
    Ok(timed)
}

/// Times queries that `tier` has to answer, one after the other in one task.
async fn time_tier(cached: &CachedSource, sample: &Arc<[Query]>, tier: Tier) -> Result<Timed> {
    let (cached, sample) = (cached.clone(), Arc::clone(sample));
    let mut task = JoinSet::new();
    task.spawn(async move {
        let clock = SystemClock::new();
        let mut nanos = Vec::with_capacity(sample.len());
        let start = clock.elapsed();
        for query in &*sample {
            let begin = clock.elapsed();
            let answered = cached.get(query).await?;
            nanos.push(self::nanos(clock.elapsed().saturating_sub(begin)));
            ensure!(answered == Some(tier), "{query:?} was answered by {answered:?}, not {tier:?}");
        }
        Ok(Timed { nanos, total: clock.elapsed().saturating_sub(start) })
    });
    task.join_next().await.context("the task is gone")??
}

/// The round that took longer than half of the others.
fn median(mut rounds: Vec<Timed>) -> Option<Timed> {
    rounds.sort_by_key(|round| round.total);
    let middle = rounds.len() / 2;
    rounds.into_iter().nth(middle)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Reads that were timed, in the order of the sample.
#[derive(Debug, Default)]
struct Timed {
    nanos: Vec<u64>,
    total: Duration,
}

impl Timed {
    /// How long 1,000 reads took, if it were 1,000.
    fn thousand(&self) -> Option<Duration> {
        (self.nanos.len() == 1000).then_some(self.total)
    }
}

/// The same queries in each tier.
#[derive(Debug)]
struct Comparison {
    source: Timed,
    disk: Timed,
    memory: Timed,
}

impl Comparison {
    fn by_kind(&self, sample: &[Query]) -> Vec<Kind> {
        let name_and_reads = KINDS.iter().enumerate().map(|(number, name)| {
            let p50 = |timed: &Timed| {
                let mut nanos: Vec<_> = sample
                    .iter()
                    .zip(&timed.nanos)
                    .filter(|(query, _)| kind(query) == number)
                    .map(|(_, nanos)| *nanos)
                    .collect();
                percentile(&mut nanos, 0.50).map(|nanos| nanos as f64 / 1e3)
            };
            let reads = sample.iter().filter(|query| kind(query) == number).count() as u64;
            Kind::new(name, reads, p50(&self.source), p50(&self.disk), p50(&self.memory))
        });
        name_and_reads.filter(|kind| kind.reads > 0).collect()
    }
}

/// Who answered how many queries.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    memory: u64,
    disk: u64,
    source: u64,
}

impl Tally {
    fn count(&mut self, tier: Tier) {
        match tier {
            Tier::Memory => self.memory += 1,
            Tier::Disk => self.disk += 1,
            Tier::Source => self.source += 1,
        }
    }

    /// The phase in which the source itself counted `loads`. Whoever got the source's answer
    /// beyond those had waited for another caller's load.
    fn phase(self, name: &str, time: Duration, loads: u64) -> Phase {
        Phase {
            name: name.to_owned(),
            queries: self.memory + self.disk + self.source,
            seconds: time.as_secs_f64(),
            from_memory: self.memory,
            from_disk: self.disk,
            from_source: loads,
            shared: self.source.saturating_sub(loads),
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.memory += other.memory;
        self.disk += other.disk;
        self.source += other.source;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_different_queries_in_the_mix_of_the_stream() {
        let names = |prefix: &str, count| (0..count).map(|n| format!("{prefix}{n}")).collect();
        let stream = Stream::new(names("A", 28_298), names("C", 234), 1);
        let chosen = sample(stream.clone(), 1000);
        assert_eq!(chosen.iter().collect::<HashSet<_>>().len(), 1000);
        let count = |number| chosen.iter().filter(|query| kind(query) == number).count();
        assert_eq!([count(0), count(1), count(2)], [400, 400, 200]);
        // What is asked most is in it.
        assert!(stream.take(10).all(|query| chosen.contains(&query)));
    }

    #[test]
    fn the_median_round_counts() {
        let rounds =
            [5, 1, 9, 3, 7].map(|n| Timed { nanos: vec![n], total: Duration::from_secs(n) });
        assert_eq!(median(rounds.into()).unwrap().nanos, [5]);
        assert!(median(Vec::new()).is_none());
    }

    #[test]
    fn a_sample_of_too_little_is_what_there_is() {
        let stream = Stream::new(vec!["A".into()], vec!["C".into()], 1);
        assert_eq!(sample(stream, 10).len(), 3);
    }
}
