//! `footprint`: bytes and allocations that an entry of two integers costs besides itself.

use anyhow::{Result, bail};

use super::{Request, memory};
use crate::counting;
use crate::engines::Memory;
use crate::engines::foyer::{FoyerLru, FoyerS3Fifo};
use crate::engines::mini_moka::MiniMoka;
use crate::engines::moka::Moka;
use crate::engines::quick_cache::QuickCache;
use crate::engines::rwlock_hashmap::RwLockHashMap;
use crate::engines::terrace::TerraceMemory;
use crate::harness::{Better, Case, Engine, Metric, Outcome, check_reads, compare};
use crate::load::{integer_key, integer_value};
use crate::report::{Record, Report};

pub const SUITE: &str = "footprint";

pub const CASES: &[&str] = &["100k"];

const METRICS: &[Metric] = &[
    Metric { name: "overhead_bytes", unit: "B", better: Better::Lower },
    Metric { name: "allocs_per_insert", unit: "allocs", better: Better::Lower },
];

/// What the two integers of an entry take.
const PAYLOAD: f64 = 2.0 * size_of::<u64>() as f64;

pub fn run(request: &Request, report: &mut Report) -> Result<()> {
    for &name in CASES.iter().filter(|case| request.wants(case)) {
        let records = counting::ask(SUITE, name, request.quick)?;
        report.add(name, Outcome { records, rounds: None })?;
    }
    Ok(())
}

/// What [`run`] asks for; in the program that counts.
///
/// # Errors
/// There is no such case.
pub fn count(case: &str, quick: bool) -> Result<Vec<Record>> {
    let Some(&name) = CASES.iter().find(|name| **name == case) else {
        bail!("no case {case:?} in {SUITE}");
    };
    let entries = match name {
        "100k" => 100_000,
        _ => unreachable!("no case of this suite: {name}"),
    };
    let keys: Vec<u64> = (0..entries).map(integer_key).collect();
    let engines = vec![
        engine::<TerraceMemory>(&keys),
        engine::<QuickCache>(&keys),
        engine::<Moka>(&keys),
        engine::<MiniMoka>(&keys),
        engine::<FoyerS3Fifo>(&keys),
        engine::<FoyerLru>(&keys),
        engine::<RwLockHashMap>(&keys),
    ];
    let case = Case { suite: SUITE, name, metrics: METRICS };
    // There is little that could differ between rounds.
    let request = Request { quick, only: None };
    Ok(compare(&case, engines, request.pace(5 * CASES.len())).records)
}

fn engine<M: Memory>(keys: &[u64]) -> Engine<'_> {
    Engine::new(M::NAME, M::version(), move || {
        let before = counting::counts();
        let engine: M = memory::filled(keys, 2 * keys.len());
        let counts = counting::counts() - before;
        let (sum, missing) = memory::read(&engine, keys);
        let expected = keys.iter().map(|key| integer_value(*key)).fold(0, u64::wrapping_add);
        check_reads(missing, keys.len(), sum, expected)?;
        let entries = keys.len() as f64;
        Ok(vec![counts.live_bytes as f64 / entries - PAYLOAD, counts.allocations as f64 / entries])
    })
}
