//! `footprint`: bytes and allocations that an entry of two integers costs besides itself.
//!
//! In steady state: a cache that has long been full, and evicts one entry for each that comes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Request;
use crate::counting;
use crate::engines::Memory;
use crate::engines::foyer::{FoyerLfu, FoyerLru, FoyerS3Fifo};
use crate::engines::mini_moka::MiniMoka;
use crate::engines::moka::Moka;
use crate::engines::quick_cache::QuickCache;
use crate::engines::rwlock_hashmap::RwLockHashMap;
use crate::engines::terrace::{TerraceFull, TerraceMemory};
use crate::engines::tinyufo::TinyUFO;
use crate::harness::{Better, Case, Engine, Metric, OURS, OURS_IN_FULL, Outcome, Pace, Rounds};
use crate::kind::{Integers, Kind as _};
use crate::load::{Draw, Drawer, Random};
use crate::report::{Record, Report};

pub const SUITE: &str = "footprint";

pub const CASES: &[&str] = &["10k", "10k-full", "100k", "100k-full", "1m", "1m-full"];

/// The cases without their form, and how many entries there is room for.
const SIZES: &[(&str, usize)] = &[("10k", 10_000), ("100k", 100_000), ("1m", 1_000_000)];

/// The forms of a case: what its name ends with, and what is ours in it.
const FORMS: &[(&str, &str)] = &[("", OURS), ("-full", OURS_IN_FULL)];

const METRICS: &[Metric] = &[
    Metric { name: "overhead_bytes", unit: "B", better: Better::Lower },
    Metric { name: "allocs_per_insert", unit: "allocs", better: Better::Lower },
];

/// What the two integers of an entry take.
const PAYLOAD: f64 = 2.0 * size_of::<u64>() as f64;

/// Keys that are asked for, and look-ups, for each entry that there is room for.
const KEYS: usize = 4;
const LOOKUPS: usize = 6;

const DRAW: Draw = Draw::Zipf { skew: 0.8 };

pub fn run(request: &Request, report: &mut Report) -> Result<()> {
    for (stem, _) in SIZES {
        let forms = FORMS.iter().map(|(suffix, _)| format!("{stem}{suffix}"));
        let wanted: Vec<String> = forms.filter(|name| request.wants(name)).collect();
        if wanted.is_empty() {
            continue;
        }
        let records = counting::ask(SUITE, stem, request.quick)?;
        for name in wanted {
            let records = records.iter().filter(|record| record.case() == name).cloned().collect();
            report.add(&name, Outcome { records, rounds: None })?;
        }
    }
    Ok(())
}

/// What [`run`] asks for, in all forms; in the program that counts.
///
/// # Errors
/// There is no such case.
pub fn count(stem: &str, quick: bool) -> Result<Vec<Record>> {
    let found = SIZES.iter().find(|(name, _)| *name == stem);
    let (_, room) = found.with_context(|| format!("no case {stem:?} in {SUITE}"))?;
    let takes_long = quick && *room == 1_000_000;
    // Half as many are enough to fill it and go on for a while.
    let work = &Work::new(*room, if takes_long { LOOKUPS / 2 } else { LOOKUPS });
    let engines = vec![
        engine::<TerraceMemory<Integers>>(work),
        engine::<TerraceFull>(work),
        engine::<QuickCache<Integers>>(work),
        engine::<Moka<Integers>>(work),
        engine::<MiniMoka<Integers>>(work),
        engine::<FoyerS3Fifo<Integers>>(work),
        engine::<FoyerLfu<Integers>>(work),
        engine::<FoyerLru<Integers>>(work),
        engine::<TinyUFO<Integers>>(work),
        engine::<RwLockHashMap<Integers>>(work),
    ];
    // There is little that could differ between rounds.
    let rounds = if takes_long { Pace::once() } else { Pace::new(Duration::ZERO) };
    let rounds = Rounds::run(engines, rounds);
    let mut records = Vec::new();
    for (suffix, ours) in FORMS {
        let name = format!("{stem}{suffix}");
        let case = Case { suite: SUITE, name: &name, metrics: METRICS };
        records.extend(rounds.outcome(&case, 0, ours).records);
    }
    Ok(records)
}

/// What is asked for, made before anything is counted.
struct Work {
    room: usize,
    keys: usize,
    lookups: Vec<u32>,
}

impl Work {
    fn new(room: usize, each: usize) -> Self {
        let drawer = Drawer::new(DRAW, KEYS * room);
        let mut random = Random::new(42);
        let lookups = (0..each * room).map(|_| drawer.draw(&mut random) as u32).collect();
        Self { room, keys: KEYS * room, lookups }
    }
}

fn engine<M: Memory<Kind = Integers>>(work: &Work) -> Engine<'_> {
    Engine::new(M::NAME, M::version(), move || {
        let empty = counting::counts();
        let engine = M::with_room_for(work.room);
        let (first, second) = work.lookups.split_at(work.lookups.len() / 2);
        get_or_insert(&engine, first)?;
        let half = counting::counts();
        let inserts = get_or_insert(&engine, second)?;
        engine.settle();
        let full = counting::counts();

        let entries = engine.entries().unwrap_or_else(|| readable(&engine, work.keys)) as f64;
        ensure!(entries >= 0.5 * work.room as f64, "only {entries} of {} are there", work.room);
        let live = (full - empty).live_bytes as f64;
        let allocations = (full - half).allocations as f64;
        Ok(vec![live / entries - PAYLOAD, allocations / inserts as f64])
    })
}

/// Looks up all of these, and inserts what is missing. Returns how many those were.
fn get_or_insert<M: Memory<Kind = Integers>>(engine: &M, numbers: &[u32]) -> Result<usize> {
    let mut inserts = 0;
    for number in numbers {
        let key = Integers::key((*number).into());
        if let Some(value) = engine.get(&key) {
            ensure!(Integers::is_right(&key, &value), "a read was wrong");
        } else {
            engine.insert(key, Integers::value(&key));
            inserts += 1;
        }
    }
    Ok(inserts)
}

fn readable<M: Memory<Kind = Integers>>(engine: &M, keys: usize) -> usize {
    (0..keys as u64).filter(|number| engine.get(&Integers::key(*number)).is_some()).count()
}
