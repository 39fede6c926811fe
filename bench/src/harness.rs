//! Rounds: every engine in each of them, in an order that rotates, compared within the round.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::counting::{self, Counts};
use crate::goal::Goal;
use crate::report::Record;
use crate::statistics::{FEWEST_ROUNDS, estimate, rounded};

/// The engine that the others are compared with.
pub const OURS: &str = "terrace";

/// The same with everything on; it is [`OURS`] in cases of its own.
pub const OURS_IN_FULL: &str = "terrace-full";

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
    /// Higher, and what counts is by how many points.
    HigherByPoints,
}

/// One comparison.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    pub suite: &'static str,
    pub name: &'a str,
    /// Ratios are taken of the first; the others are reported beside it.
    pub metrics: &'static [Metric],
}

impl Case<'_> {
    /// Whether what counts is a difference, and not a ratio.
    #[must_use]
    pub fn by_points(&self) -> bool {
        self.metrics.first().is_some_and(|metric| metric.better == Better::HigherByPoints)
    }
}

/// How long cases may go on.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Rounds are added until this much time has passed.
    pub time: Duration,
    /// So many run whatever it is.
    pub fewest_rounds: usize,
    pub most_rounds: usize,
}

impl Pace {
    #[must_use]
    pub fn new(time: Duration) -> Self {
        Self { time, fewest_rounds: FEWEST_ROUNDS, most_rounds: 200 }
    }

    /// One round: for what does not differ between them, or takes too long.
    #[must_use]
    pub fn once() -> Self {
        Self { time: Duration::ZERO, fewest_rounds: 1, most_rounds: 1 }
    }
}

/// What an engine measured in a round: for each case, a number for each metric.
pub type Sample = Vec<Vec<f64>>;

/// What takes part.
pub struct Engine<'a> {
    pub name: &'static str,
    pub version: &'static str,
    measure: Box<dyn FnMut() -> Result<Sample> + 'a>,
}

impl<'a> Engine<'a> {
    /// `measure` runs one round of one case and returns a number for each of its metrics.
    pub fn new(
        name: &'static str,
        version: &'static str,
        mut measure: impl FnMut() -> Result<Vec<f64>> + 'a,
    ) -> Self {
        Self::of_cases(name, version, move || Ok(vec![measure()?]))
    }

    /// `measure` runs one round of all cases.
    pub fn of_cases(
        name: &'static str,
        version: &'static str,
        measure: impl FnMut() -> Result<Sample> + 'a,
    ) -> Self {
        Self { name, version, measure: Box::new(measure) }
    }

    /// Takes no part, for a reason.
    pub fn out(name: &'static str, version: &'static str, reason: &'static str) -> Self {
        Self::of_cases(name, version, move || bail!(reason))
    }
}

/// What came of a case.
#[derive(Debug, Default)]
pub struct Outcome {
    pub records: Vec<Record>,
    /// How many there were, where that is known.
    pub rounds: Option<usize>,
}

impl Outcome {
    /// Adds what the records say about goals of the case.
    pub fn judge(&mut self, case: &Case<'_>, goals: &[Goal]) {
        let judged: Vec<_> =
            goals.iter().filter_map(|goal| goal.judged(case, &self.records)).collect();
        self.records.extend(judged);
    }
}

/// Runs `engines` against each other in one case.
pub fn compare(case: &Case<'_>, engines: Vec<Engine<'_>>, pace: Pace) -> Outcome {
    Rounds::run(engines, pace).outcome(case, 0, OURS)
}

/// What engines measured, all of them in each of the rounds.
#[derive(Debug)]
pub struct Rounds {
    pub count: usize,
    pub engines: Vec<Measured>,
}

/// What one engine measured.
#[derive(Debug)]
pub struct Measured {
    pub name: &'static str,
    pub version: &'static str,
    /// Of each round; or why there is nothing.
    pub samples: Result<Vec<Sample>>,
}

impl Rounds {
    /// Runs `engines` in turns. One that fails is out from there on.
    pub fn run(mut engines: Vec<Engine<'_>>, pace: Pace) -> Self {
        let mut samples: Vec<Result<Vec<Sample>>> =
            engines.iter().map(|_| Ok(Vec::new())).collect();
        let begun = Instant::now();
        let mut count = 0;
        while count < pace.fewest_rounds
            || (count < pace.most_rounds && begun.elapsed() < pace.time)
        {
            for index in order(count, engines.len()) {
                let Ok(so_far) = &mut samples[index] else { continue };
                match (engines[index].measure)() {
                    Ok(sample) => so_far.push(sample),
                    Err(error) => samples[index] = Err(error),
                }
            }
            count += 1;
            if samples.iter().all(Result::is_err) {
                break;
            }
        }
        let measured = |(engine, samples): (Engine<'_>, _)| Measured {
            name: engine.name,
            version: engine.version,
            samples,
        };
        Self { count, engines: engines.into_iter().zip(samples).map(measured).collect() }
    }

    /// What came of the case that is the `at`th of each sample, the engine named `ours` being
    /// ours. Other forms of ours are left out.
    #[must_use]
    pub fn outcome(&self, case: &Case<'_>, at: usize, ours: &str) -> Outcome {
        let is_in = |name| name == ours || (name != OURS && name != OURS_IN_FULL);
        let engines: Vec<_> = self.engines.iter().filter(|engine| is_in(engine.name)).collect();
        let mut records = Vec::new();
        for engine in &engines {
            let name = if engine.name == ours { OURS } else { engine.name };
            match &engine.samples {
                Ok(samples) => values(case, name, engine.version, samples, at, &mut records),
                Err(error) => records.push(Record::skipped(case, name, engine.version, error)),
            }
        }
        if let Some(samples) = self.samples_of(ours) {
            for engine in engines {
                if engine.name != ours
                    && let Ok(theirs) = &engine.samples
                {
                    records.extend(ratio(case, engine.name, (samples, at), (theirs, at)));
                }
            }
        }
        Outcome { records, rounds: Some(self.count) }
    }

    /// How ours did in the case that is the `at`th of each sample beside what itself did in
    /// another, which is called `against`.
    #[must_use]
    pub fn beside_ourselves(
        &self,
        case: &Case<'_>,
        at: usize,
        other: usize,
        ours: &str,
        against: &str,
    ) -> Option<Record> {
        let samples = self.samples_of(ours)?;
        ratio(case, against, (samples, at), (samples, other))
    }

    fn samples_of(&self, name: &str) -> Option<&[Sample]> {
        let engine = self.engines.iter().find(|engine| engine.name == name)?;
        engine.samples.as_deref().ok()
    }
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

fn values(
    case: &Case<'_>,
    name: &str,
    version: &str,
    samples: &[Sample],
    at: usize,
    records: &mut Vec<Record>,
) {
    for (index, metric) in case.metrics.iter().enumerate() {
        let column = samples.iter().filter_map(|sample| sample[at].get(index).copied()).collect();
        if let Some(found) = estimate(column) {
            records.push(Record::value(case, name, version, *metric, rounded(found.median)));
        }
    }
}

/// The median of the ratios of the rounds, which is not the ratio of the medians: what slows
/// the machine for a while slows a round as a whole.
fn ratio(
    case: &Case<'_>,
    against: &str,
    (ours, our_case): (&[Sample], usize),
    (theirs, their_case): (&[Sample], usize),
) -> Option<Record> {
    let better = case.metrics.first()?.better;
    let first = |sample: &Sample, case: usize| sample[case].first().copied();
    let ratios = ours.iter().zip(theirs).filter_map(|(ours, theirs)| {
        let (ours, theirs) = (first(ours, our_case)?, first(theirs, their_case)?);
        Some(match better {
            Better::Higher => ours / theirs,
            Better::Lower => theirs / ours,
            Better::HigherByPoints => ours - theirs,
        })
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
        // Before anybody starts: they would not wait for this thread to count.
        let before = counting::counts();
        gate.wait();
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

    const CASE: Case<'_> = Case {
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
    fn points_are_the_difference() {
        const HITS: Metric = Metric { name: "hits", unit: "%", better: Better::HigherByPoints };
        let case = Case { metrics: &[HITS], ..CASE };
        let engines = vec![fixed(OURS, 48.5), fixed("other", 50.0)];
        let outcome = compare(&case, engines, Pace::once());
        let Some(Record::Ratio { metric, value, .. }) = outcome.records.last() else {
            panic!("no points: {:?}", outcome.records);
        };
        assert_eq!((metric.as_str(), *value), ("points", -1.5));
    }

    #[test]
    fn the_full_form_is_ours_in_its_case_and_absent_from_others() {
        let engines = vec![fixed(OURS, 1.0), fixed(OURS_IN_FULL, 2.0), fixed("other", 4.0)];
        let rounds = Rounds::run(engines, Pace::new(Duration::ZERO));
        for (ours, expected) in [(OURS, 4.0), (OURS_IN_FULL, 2.0)] {
            let outcome = rounds.outcome(&CASE, 0, ours);
            let [
                Record::Value { engine, .. },
                Record::Value { .. },
                Record::Ratio { value, engine: of, .. },
            ] = outcome.records.as_slice()
            else {
                panic!("{:?}", outcome.records);
            };
            assert_eq!((engine.as_str(), of.as_str(), *value), (OURS, OURS, expected));
        }
        let itself = rounds.beside_ourselves(&CASE, 0, 0, OURS_IN_FULL, "itself");
        assert!(matches!(itself, Some(Record::Ratio { value: 1.0, .. })));
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
