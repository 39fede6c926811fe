//! `memory`: reads and inserts in memory, and how long the slowest of them take.
//!
//! Cases that differ in the number of threads, or in how they read, share their engines and keys:
//! they are measured one after the other in each round. So are the two forms of ours, and what the
//! others measure meanwhile is what both are compared with.
//!
//! Rounds build every engine anew, so that another seed of the hash and another place in memory
//! come with each, and the interval covers them. Only quick runs, which would build for longer than
//! they measure, go on with the same.

mod deed;
mod expiry;
mod keys;
mod pass;

use std::time::Duration;

use anyhow::Result;

use self::deed::Deed;
use self::keys::{Keys, Made};
use self::pass::{Length, Pass};
use super::Request;
use crate::engines::Memory;
use crate::engines::foyer::{FoyerLfu, FoyerLru, FoyerS3Fifo};
use crate::engines::mini_moka::MiniMoka;
use crate::engines::moka::Moka;
use crate::engines::quick_cache::QuickCache;
use crate::engines::rwlock_hashmap::RwLockHashMap;
use crate::engines::terrace::{TerraceFull, TerraceMemory};
use crate::engines::tinyufo::TinyUFO;
use crate::harness::{Better, Case, Engine, Metric, OURS, OURS_IN_FULL, Pace, Rounds, Sample};
use crate::kind::{Integers, Kind, Texts};
use crate::load::Draw;
use crate::report::Report;

pub const SUITE: &str = "memory";

macro_rules! in_three_forms {
    ($($stem:literal,)* ; $($alone:literal,)*) => {
        &[$($stem, concat!($stem, "-string"), concat!($stem, "-full"),)* $($alone,)*]
    };
}

pub const CASES: &[&str] = in_three_forms![
    "hit-1k-zipf-1t", "hit-1k-zipf-2t",
    "hit-100k-zipf-1t", "hit-100k-zipf-2t",
    "hit-1m-uniform-1t", "hit-1m-uniform-2t", "many-1m-uniform-1t",
    "getorinsert-10pct-1t", "getorinsert-10pct-2t",
    "churn-1t", "churn-2t",
    "mix-75-25-1t", "mix-75-25-2t",
    ;
    "tail-eviction", "tail-growth", "tail-expiry",
];

const MOPS: Metric = Metric { name: "mops", unit: "Mops/s", better: Better::Higher };
const P999: Metric = Metric { name: "p999_ns", unit: "ns", better: Better::Lower };
const MAX: Metric = Metric { name: "max_ns", unit: "ns", better: Better::Lower };
const HITS: Metric = Metric { name: "hit_percent", unit: "%", better: Better::Higher };

/// One deed in so many is timed where latency is measured beside throughput.
const SAMPLED: usize = 4;

/// Cases that share their engines and keys.
struct Group {
    /// Stored before anything is measured, or drawn from.
    keys: usize,
    draw: Draw,
    /// The entries that there is room for, where that is less than there will be. If not, all
    /// keys are there and nothing is evicted.
    bound: Option<usize>,
    parts: &'static [Part],
}

/// A case without its form.
struct Part {
    stem: &'static str,
    deed: Deed,
    threads: usize,
    /// What ours is compared with besides the others: what itself did in another part, which has
    /// this place in the group and is called that.
    beside: Option<(usize, &'static str)>,
}

const fn one(stem: &'static str, deed: Deed) -> Part {
    Part { stem, deed, threads: 1, beside: None }
}

/// The same as the first part of the group, on two threads.
const fn two(stem: &'static str, deed: Deed) -> Part {
    Part { stem, deed, threads: 2, beside: Some((0, "terrace-1t")) }
}

const GROUPS: &[Group] = &[
    Group {
        keys: 1_000,
        draw: Draw::ZIPF,
        bound: None,
        parts: &[one("hit-1k-zipf-1t", Deed::Get), two("hit-1k-zipf-2t", Deed::Get)],
    },
    Group {
        keys: 100_000,
        draw: Draw::ZIPF,
        bound: None,
        parts: &[one("hit-100k-zipf-1t", Deed::Get), two("hit-100k-zipf-2t", Deed::Get)],
    },
    Group {
        keys: 1_000_000,
        draw: Draw::Uniform,
        bound: None,
        parts: &[
            one("hit-1m-uniform-1t", Deed::Get),
            two("hit-1m-uniform-2t", Deed::Get),
            Part { beside: Some((0, "terrace-get")), ..one("many-1m-uniform-1t", Deed::GetMany) },
        ],
    },
    Group {
        keys: 1_000_000,
        draw: Draw::Zipf { skew: 0.9 },
        bound: Some(100_000),
        parts: &[
            one("getorinsert-10pct-1t", Deed::GetOrInsert),
            two("getorinsert-10pct-2t", Deed::GetOrInsert),
        ],
    },
    Group {
        keys: 0,
        draw: Draw::Uniform,
        bound: Some(100_000),
        parts: &[one("churn-1t", Deed::Insert), two("churn-2t", Deed::Insert)],
    },
    Group {
        keys: 1_000_000,
        draw: Draw::ZIPF,
        bound: Some(100_000),
        parts: &[one("mix-75-25-1t", Deed::Mix), two("mix-75-25-2t", Deed::Mix)],
    },
    Group {
        keys: 1_000_000,
        draw: Draw::Zipf { skew: 0.9 },
        bound: Some(100_000),
        parts: &[Part { threads: 2, ..one("tail-eviction", Deed::Evict) }],
    },
    Group {
        keys: 0,
        draw: Draw::Uniform,
        bound: None,
        parts: &[Part { threads: 2, ..one("tail-growth", Deed::Grow) }],
    },
];

impl Part {
    fn metrics(&self) -> &'static [Metric] {
        match self.deed {
            Deed::Get | Deed::Insert => &[MOPS, P999],
            Deed::GetMany => &[MOPS],
            Deed::GetOrInsert | Deed::Mix => &[MOPS, P999, HITS],
            Deed::Evict | Deed::Grow => &[P999, MAX],
        }
    }
}

pub fn run(request: &Request, report: &mut Report) -> Result<()> {
    for group in GROUPS {
        let integers = [("", OURS), ("-full", OURS_IN_FULL)];
        run_form::<Integers>(group, request, report, &integers, |work| {
            let mut engines = everybody(work);
            engines.insert(1, engine::<TerraceFull>(work));
            engines
        })?;
        run_form::<Texts>(group, request, report, &[("-string", OURS)], everybody)?;
    }
    run_expiry(request, report)
}

/// Runs a group with one kind of entries. `forms` are the suffixes of the cases that come of it,
/// each with the name of the engine that is ours in it.
fn run_form<K: Kind>(
    group: &'static Group,
    request: &Request,
    report: &mut Report,
    forms: &[(&str, &str)],
    engines: impl FnOnce(&Work<K>) -> Vec<Engine<'_>>,
) -> Result<()> {
    let case = |part: &Part, suffix| {
        let name = CASES.iter().find(|name| name.strip_prefix(part.stem) == Some(suffix))?;
        request.wants(name).then_some(Case { suite: SUITE, name, metrics: part.metrics() })
    };
    let wanted: Vec<(usize, Case, &str)> = group
        .parts
        .iter()
        .enumerate()
        .flat_map(|(at, part)| {
            forms.iter().filter_map(move |(suffix, ours)| Some((at, case(part, suffix)?, *ours)))
        })
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let work = Work::<K>::new(group, request, wanted.iter().map(|(at, ..)| *at));
    let rounds = Rounds::run(engines(&work), pace(request));
    for (at, case, ours) in wanted {
        let mut outcome = rounds.outcome(&case, at, ours);
        if let Some((other, against)) = group.parts[at].beside {
            let beside = rounds.beside_ourselves(&case, at, other, ours, against);
            outcome.records.extend(beside);
        }
        report.add(case.name, outcome)?;
    }
    Ok(())
}

fn run_expiry(request: &Request, report: &mut Report) -> Result<()> {
    let case = Case { suite: SUITE, name: "tail-expiry", metrics: &[P999, MAX] };
    if !request.wants(case.name) {
        return Ok(());
    }
    let order = expiry::order();
    let mut engines = expiry::engines(&order);
    engines.extend([
        timeless::<QuickCache<Integers>>(),
        timeless::<FoyerS3Fifo<Integers>>(),
        timeless::<FoyerLfu<Integers>>(),
        timeless::<FoyerLru<Integers>>(),
        timeless::<TinyUFO<Integers>>(),
        timeless::<RwLockHashMap<Integers>>(),
    ]);
    let outcome = Rounds::run(engines, pace(request)).outcome(&case, 0, OURS);
    report.add(case.name, outcome)
}

fn timeless<M: Memory>() -> Engine<'static> {
    Engine::out(M::NAME, M::version(), "its entries do not expire")
}

/// Quick runs have as few rounds as there may be.
fn pace(request: &Request) -> Pace {
    Pace::new(Duration::from_secs(if request.quick { 0 } else { 30 }))
}

fn everybody<K: Kind>(work: &Work<K>) -> Vec<Engine<'_>> {
    vec![
        engine::<TerraceMemory<K>>(work),
        engine::<QuickCache<K>>(work),
        engine::<Moka<K>>(work),
        engine::<MiniMoka<K>>(work),
        engine::<FoyerS3Fifo<K>>(work),
        engine::<FoyerLfu<K>>(work),
        engine::<FoyerLru<K>>(work),
        engine::<TinyUFO<K>>(work),
        if work.group.bound.is_none() {
            engine::<RwLockHashMap<K>>(work)
        } else {
            let version = RwLockHashMap::<K>::version();
            Engine::out(RwLockHashMap::<K>::NAME, version, "it has no bound, and evicts nothing")
        },
    ]
}

/// What a group is made of, before anything is timed.
struct Work<K: Kind> {
    group: &'static Group,
    /// Of each thread.
    keys: Vec<Keys<K>>,
    /// Whether each of the parts is measured.
    is_measured: Vec<bool>,
    /// How long throughput is measured.
    time: Duration,
    /// After how many deeds latency is known; of those that are about it alone, in a thread.
    deeds: usize,
    tail_deeds: usize,
    /// Whether engines serve for all rounds.
    is_kept: bool,
}

impl<K: Kind> Work<K> {
    fn new(group: &'static Group, request: &Request, wanted: impl Iterator<Item = usize>) -> Self {
        let mut is_measured = vec![false; group.parts.len()];
        for at in wanted {
            is_measured[at] = true;
            if let Some((other, _)) = group.parts[at].beside {
                is_measured[other] = true;
            }
        }
        let (made, draws) = match group.parts[0].deed {
            Deed::Insert | Deed::Grow => (Made::Numbers, 0),
            Deed::Evict => (Made::Numbers, 1 << 19),
            _ if group.bound.is_some() => (Made::Numbers, request.size(1 << 21, 1 << 22)),
            // Enough to come to all of them.
            _ => (Made::Keys, group.keys.next_power_of_two().max(request.size(1 << 18, 1 << 20))),
        };
        let grows = group.parts[0].deed == Deed::Grow;
        Self {
            group,
            keys: Keys::new(2, made, draws, group.draw, group.keys),
            is_measured,
            time: Duration::from_millis(if request.quick { 4 } else { 40 }),
            deeds: request.size(1 << 13, 1 << 16),
            // What grows is to come to a million, half of it by each thread.
            tail_deeds: if grows {
                request.size(50_000, 1_000_000)
            } else {
                request.size(1 << 14, 1 << 18)
            },
            is_kept: request.quick && !grows,
        }
    }
}

fn engine<'a, M: Memory + 'a>(work: &'a Work<M::Kind>) -> Engine<'a> {
    let mut kept = None;
    Engine::of_cases(M::NAME, M::version(), move || {
        let mut built = match kept.take() {
            Some(built) => built,
            None => Built::<M>::new(work)?,
        };
        let sample = built.measure(work)?;
        if work.is_kept {
            kept = Some(built);
        }
        Ok(sample)
    })
}

/// An engine, and how far each thread is.
struct Built<M> {
    engine: M,
    at: [usize; 2],
}

impl<M: Memory> Built<M> {
    /// With all keys in it; or if it evicts, as it is after it has done so for a while.
    fn new(work: &Work<M::Kind>) -> Result<Self> {
        let Group { keys, bound, parts, .. } = work.group;
        let Some(bound) = *bound else {
            let growth = if *keys == 0 { work.tail_deeds } else { 0 };
            let engine = M::with_room_for(2 * (keys + growth));
            for number in 0..*keys as u64 {
                let key = M::Kind::key(number);
                let value = M::Kind::value(&key);
                engine.insert(key, value);
            }
            engine.settle();
            return Ok(Self { engine, at: [0; 2] });
        };
        let mut built = Self { engine: M::with_room_for(bound), at: [0; 2] };
        let deed = match parts[0].deed {
            Deed::Insert => Deed::Insert,
            _ => Deed::GetOrInsert,
        };
        built.pass(work, deed, 2, Length::Deeds(3 * bound / 2, usize::MAX))?;
        built.engine.settle();
        Ok(built)
    }

    fn measure(&mut self, work: &Work<M::Kind>) -> Result<Sample> {
        let mut sample = Sample::new();
        for (part, is_measured) in work.group.parts.iter().zip(&work.is_measured) {
            sample.push(if *is_measured { self.measure_part(work, part)? } else { Vec::new() });
        }
        Ok(sample)
    }

    fn measure_part(&mut self, work: &Work<M::Kind>, part: &Part) -> Result<Vec<f64>> {
        let &Part { deed, threads, .. } = part;
        if part.metrics()[0].name == P999.name {
            let tail = Length::Deeds(work.tail_deeds, 1);
            return Ok(self.pass(work, deed, threads, tail)?.slowest().to_vec());
        }
        self.pass(work, deed, threads, Length::Time(work.time / 4))?;
        let throughput = self.pass(work, deed, threads, Length::Time(work.time))?;
        let mut values = vec![throughput.mops];
        if part.metrics().len() > 1 {
            let mut latency = self.pass(work, deed, threads, Length::Deeds(work.deeds, SAMPLED))?;
            values.push(latency.slowest()[0]);
        }
        if part.metrics().len() > 2 {
            values.push(throughput.hit_percent());
        }
        Ok(values)
    }

    fn pass(
        &mut self,
        work: &Work<M::Kind>,
        deed: Deed,
        threads: usize,
        length: Length,
    ) -> Result<Pass> {
        Pass::run(&self.engine, deed, &work.keys[..threads], &mut self.at[..threads], length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_comes_from_a_group() {
        for case in CASES {
            let stem = case.trim_end_matches("-string").trim_end_matches("-full");
            let parts = GROUPS.iter().flat_map(|group| group.parts);
            let found = parts.filter(|part| part.stem == stem).count();
            assert!(found == 1 || stem == "tail-expiry", "{case}");
        }
    }
}
