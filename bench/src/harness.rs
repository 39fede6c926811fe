//! Rounds: every engine in each of them, in an order that rotates, compared within the round.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::counting::{self, Counts};
use crate::report::Record;
use crate::statistics::{FEWEST_ROUNDS, estimate, rounded};

/// The engine that the others are compared with.
pub const OURS: &str = "terrace";

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub unit: &'static str,
    pub better: Better,
}

/// Which way a metric is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

/// One comparison.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub suite: &'static str,
    pub name: &'static str,
    /// Ratios are taken of the first; the others are reported beside it.
    pub metrics: &'static [Metric],
}

/// How long a case may go on.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Rounds are added until this much time has passed; [`FEWEST_ROUNDS`] run whatever it is.
    pub time: Duration,
    pub most_rounds: usize,
}

impl Pace {
    #[must_use]
    pub fn new(time: Duration) -> Self {
        Self { time, most_rounds: 200 }
    }
}

/// What takes part.
pub struct Engine<'a> {
    pub name: &'static str,
    pub version: &'static str,
    measure: Box<dyn FnMut() -> Result<Vec<f64>> + 'a>,
}

impl<'a> Engine<'a> {
    /// `measure` runs one round and returns a number for each metric of the case.
    pub fn new(
        name: &'static str,
        version: &'static str,
        measure: impl FnMut() -> Result<Vec<f64>> + 'a,
    ) -> Self {
        Self { name, version, measure: Box::new(measure) }
    }
}

/// What came of a case.
#[derive(Debug, Default)]
pub struct Outcome {
    pub records: Vec<Record>,
    /// How many there were, where that is known.
    pub rounds: Option<usize>,
}

/// Runs `engines` against each other.
///
/// An engine that fails is out from there on, and reported as skipped.
pub fn compare(case: &Case, mut engines: Vec<Engine<'_>>, pace: Pace) -> Outcome {
    let mut samples: Vec<Result<Vec<Vec<f64>>>> = engines.iter().map(|_| Ok(Vec::new())).collect();
    let begun = Instant::now();
    let mut rounds = 0;
    while rounds < FEWEST_ROUNDS || (rounds < pace.most_rounds && begun.elapsed() < pace.time) {
        for index in order(rounds, engines.len()) {
            let Ok(so_far) = &mut samples[index] else { continue };
            match (engines[index].measure)() {
                Ok(sample) => so_far.push(sample),
                Err(error) => samples[index] = Err(error),
            }
        }
        rounds += 1;
        if samples.iter().all(Result::is_err) {
            break;
        }
    }

    let mut records = Vec::new();
    for (engine, samples) in engines.iter().zip(&samples) {
        match samples {
            Ok(samples) => values(case, engine, samples, &mut records),
            Err(error) => {
                records.push(Record::skipped(case, engine.name, engine.version, error));
            }
        }
    }
    let of = |name| engines.iter().position(|engine| engine.name == name);
    if let Some(ours) = of(OURS)
        && let Ok(ours) = &samples[ours]
    {
        for (engine, theirs) in engines.iter().zip(&samples) {
            if engine.name != OURS
                && let Ok(theirs) = theirs
            {
                records.extend(ratio(case, engine.name, ours, theirs));
            }
        }
    }
    Outcome { records, rounds: Some(rounds) }
}

/// Everybody begins a round once before anybody does again; every second time the order is
/// turned around, so that nobody always runs after the same other one.
fn order(round: usize, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.rotate_left(round % count.max(1));
    if (round / count.max(1)) % 2 == 1 {
        order.reverse();
    }
    order
}

fn values(case: &Case, engine: &Engine<'_>, samples: &[Vec<f64>], records: &mut Vec<Record>) {
    for (index, metric) in case.metrics.iter().enumerate() {
        let column = samples.iter().map(|sample| sample[index]).collect();
        if let Some(found) = estimate(column) {
            let value = rounded(found.median);
            records.push(Record::value(case, engine.name, engine.version, *metric, value));
        }
    }
}

/// The median of the ratios of the rounds, which is not the ratio of the medians: what slows
/// the machine for a while slows a round as a whole.
fn ratio(
    case: &Case,
    against: &'static str,
    ours: &[Vec<f64>],
    theirs: &[Vec<f64>],
) -> Option<Record> {
    let better = case.metrics.first()?.better;
    let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| match better {
        Better::Higher => ours[0] / theirs[0],
        Better::Lower => theirs[0] / ours[0],
    });
    let found = estimate(ratios.collect())?;
    Some(Record::ratio(case, against, found))
}

/// What a race of threads came to.
#[derive(Debug)]
pub struct Race<T> {
    /// From the first start to the last end.
    pub time: Duration,
    /// What was allocated meanwhile, where allocations are counted.
    pub counts: Counts,
    /// What each thread returned.
    pub results: Vec<T>,
}

/// Runs `work` on so many threads, which start together and are pinned to nothing. It is told
/// the thread's number.
pub fn race<T: Send>(threads: usize, work: impl Fn(usize) -> T + Sync) -> Race<T> {
    let gate = Barrier::new(threads + 1);
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let (gate, work) = (&gate, &work);
                scope.spawn(move || {
                    gate.wait();
                    let begun = Instant::now();
                    let result = work(thread);
                    let ended = Instant::now();
                    gate.wait();
                    (begun, ended, result)
                })
            })
            .collect();
        gate.wait();
        let before = counting::counts();
        gate.wait();
        let counts = counting::counts() - before;

        let mut results = Vec::with_capacity(threads);
        let (mut first, mut last) = (None::<Instant>, None::<Instant>);
        for thread in running {
            match thread.join() {
                Ok((begun, ended, result)) => {
                    first = Some(first.map_or(begun, |first| first.min(begun)));
                    last = Some(last.map_or(ended, |last| last.max(ended)));
                    results.push(result);
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        let time = first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first);
        Race { time, counts, results }
    })
}

/// Fails unless everything that was read was there, and was right.
///
/// # Errors
/// It was not.
pub fn check_reads(missing: usize, of: usize, sum: u64, expected: u64) -> Result<()> {
    ensure!(missing == 0, "{missing} of {of} reads found nothing");
    ensure!(sum == expected, "a read returned another value than was stored");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASE: Case = Case {
        suite: "suite",
        name: "case",
        metrics: &[Metric { name: "ns", unit: "ns", better: Better::Lower }],
    };

    fn fixed(name: &'static str, value: f64) -> Engine<'static> {
        Engine::new(name, "1", move || Ok(vec![value]))
    }

    #[test]
    fn a_ratio_above_one_means_that_we_are_better() {
        let engines = vec![fixed(OURS, 10.0), fixed("other", 15.0)];
        let outcome = compare(&CASE, engines, Pace::new(Duration::ZERO));
        assert_eq!(outcome.rounds, Some(FEWEST_ROUNDS));
        let Some(Record::Ratio { value, low, high, against, .. }) = outcome.records.last() else {
            panic!("no ratio: {:?}", outcome.records);
        };
        assert_eq!((*value, *low, *high, against.as_str()), (1.5, 1.5, 1.5, "other"));
    }

    #[test]
    fn who_fails_is_skipped_and_does_not_disturb() {
        let broken = Engine::new("broken", "1", || anyhow::bail!("out of order"));
        let outcome = compare(&CASE, vec![fixed(OURS, 1.0), broken], Pace::new(Duration::ZERO));
        let [Record::Value { .. }, Record::Skipped { reason, .. }] = outcome.records.as_slice()
        else {
            panic!("{:?}", outcome.records);
        };
        assert_eq!(reason, "out of order");
    }

    #[test]
    fn everybody_is_first_and_last_as_often() {
        let rounds: Vec<_> = (0..6).map(|round| order(round, 3)).collect();
        for engine in 0..3 {
            let at = |place: usize| rounds.iter().filter(|order| order[place] == engine).count();
            assert_eq!((at(0), at(1), at(2)), (2, 2, 2));
        }
    }

    #[test]
    fn a_race_returns_what_every_thread_returned() {
        let mut results = race(3, |thread| thread * 2).results;
        results.sort_unstable();
        assert_eq!(results, [0, 2, 4]);
    }
}
