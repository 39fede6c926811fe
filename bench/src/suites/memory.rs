//! `memory`: reads and inserts in memory, integers under integers.
//!
//! Rounds build every engine anew, so that another seed of the hash and another place in memory
//! come with each, and the interval covers them. Only the quick run of a million entries, which
//! take longer to store than to read, builds them for every third round.

use std::hint::black_box;

use anyhow::Result;

use super::Request;
use crate::engines::Memory;
use crate::engines::foyer::{FoyerLru, FoyerS3Fifo};
use crate::engines::mini_moka::MiniMoka;
use crate::engines::moka::Moka;
use crate::engines::quick_cache::QuickCache;
use crate::engines::rwlock_hashmap::RwLockHashMap;
use crate::engines::terrace::TerraceMemory;
use crate::harness::{Better, Case, Engine, Metric, check_reads, compare, race};
use crate::load::{Draw, Drawer, Random, integer_key, integer_value};
use crate::report::Report;

pub const SUITE: &str = "memory";

pub const CASES: &[&str] = &[
    "hit-1k-zipf-1t",
    "hit-1k-zipf-2t",
    "hit-100k-zipf-1t",
    "hit-100k-zipf-2t",
    "hit-1m-uniform-1t",
    "getorinsert-10pct-1t",
];

const METRICS: &[Metric] = &[Metric { name: "mops", unit: "Mops/s", better: Better::Higher }];

/// A sequence of keys is at most so long, and gone through as often as it takes.
const LONGEST: usize = 1 << 20;

/// What a case does.
struct Shape {
    residents: usize,
    draw: Draw,
    threads: usize,
    /// One in so many look-ups is for a key that was never there, and then inserted; 0: none.
    new_key_every: usize,
    /// Look-ups of each thread in a round.
    operations: usize,
    /// Rounds after which engines are built anew.
    rounds_of_build: usize,
}

fn shape(case: &str, request: &Request) -> Shape {
    let reads = |residents, draw, threads, quick: usize| Shape {
        residents,
        draw,
        threads,
        new_key_every: 0,
        operations: request.size(quick, 8 * quick),
        rounds_of_build: 1,
    };
    match case {
        "hit-1k-zipf-1t" => reads(1_000, Draw::Zipf, 1, 1 << 19),
        "hit-1k-zipf-2t" => reads(1_000, Draw::Zipf, 2, 1 << 19),
        "hit-100k-zipf-1t" => reads(100_000, Draw::Zipf, 1, 1 << 17),
        "hit-100k-zipf-2t" => reads(100_000, Draw::Zipf, 2, 1 << 17),
        "hit-1m-uniform-1t" => Shape {
            rounds_of_build: request.size(3, 1),
            ..reads(1_000_000, Draw::Uniform, 1, 1 << 17)
        },
        "getorinsert-10pct-1t" => {
            Shape { new_key_every: 10, ..reads(100_000, Draw::Zipf, 1, 1 << 17) }
        }
        _ => unreachable!("no case of this suite: {case}"),
    }
}

/// All keys of a case, made before anything is timed.
struct Work {
    residents: Vec<u64>,
    threads: Vec<Keys>,
    /// Entries that are there at the end, and as many again.
    room: usize,
    inserts: bool,
    rounds_of_build: usize,
}

struct Keys {
    warm_up: Vec<u64>,
    timed: Vec<u64>,
    passes: usize,
    /// The sum of the values that the timed look-ups come to.
    sum: u64,
}

impl Work {
    fn new(shape: &Shape) -> Self {
        let drawer = Drawer::new(shape.draw, shape.residents);
        let mut random = Random::new(42);
        let mut next_new = shape.residents;
        let length = shape.operations.min(LONGEST);
        let mut threads = Vec::new();
        for _ in 0..shape.threads {
            let mut old = || integer_key(drawer.draw(&mut random));
            let warm_up = (0..length / 4).map(|_| old()).collect();
            let passes = shape.operations / length;
            let timed: Vec<u64> = (1..=length)
                .map(|number| {
                    if shape.new_key_every == 0 || number % shape.new_key_every != 0 {
                        return old();
                    }
                    next_new += 1;
                    integer_key(next_new - 1)
                })
                .collect();
            let sum = timed.iter().map(|key| integer_value(*key)).fold(0, u64::wrapping_add);
            let sum = sum.wrapping_mul(passes as u64);
            threads.push(Keys { warm_up, timed, passes, sum });
        }
        let residents = (0..shape.residents).map(integer_key).collect();
        Self {
            residents,
            threads,
            room: 2 * next_new,
            inserts: shape.new_key_every > 0,
            rounds_of_build: shape.rounds_of_build,
        }
    }

    fn operations(&self) -> usize {
        self.threads.iter().map(|keys| keys.timed.len() * keys.passes).sum()
    }
}

pub fn run(request: &Request, report: &mut Report) -> Result<()> {
    for &name in CASES.iter().filter(|case| request.wants(case)) {
        let work = &Work::new(&shape(name, request));
        let engines = vec![
            engine::<TerraceMemory>(work),
            engine::<QuickCache>(work),
            engine::<Moka>(work),
            engine::<MiniMoka>(work),
            engine::<FoyerS3Fifo>(work),
            engine::<FoyerLru>(work),
            engine::<RwLockHashMap>(work),
        ];
        let case = Case { suite: SUITE, name, metrics: METRICS };
        report.add(name, compare(&case, engines, request.pace(CASES.len())))?;
    }
    Ok(())
}

fn engine<'a, M: Memory + 'a>(work: &'a Work) -> Engine<'a> {
    let measure = if work.inserts { measure::<M, true> } else { measure::<M, false> };
    let mut built = None;
    let mut rounds = 0;
    Engine::new(M::NAME, M::version(), move || {
        let engine = built.take().unwrap_or_else(|| filled::<M>(&work.residents, work.room));
        let mops = measure(&engine, work)?;
        rounds += 1;
        if rounds % work.rounds_of_build != 0 {
            built = Some(engine);
        }
        Ok(vec![mops])
    })
}

fn measure<M: Memory, const INSERTS: bool>(engine: &M, work: &Work) -> Result<f64> {
    race(work.threads.len(), |thread| read(engine, &work.threads[thread].warm_up));
    let race = race(work.threads.len(), |thread| {
        let keys = &work.threads[thread];
        let (mut sum, mut missing) = (0_u64, 0);
        for _ in 0..keys.passes {
            let found = if INSERTS {
                (read_or_insert(engine, &keys.timed), 0)
            } else {
                read(engine, &keys.timed)
            };
            sum = sum.wrapping_add(found.0);
            missing += found.1;
        }
        check_reads(missing, keys.timed.len() * keys.passes, sum, keys.sum)
    });
    race.results.into_iter().collect::<Result<()>>()?;
    Ok(work.operations() as f64 / race.time.as_secs_f64() / 1e6)
}

/// An engine with these keys in it, and nothing put off.
pub fn filled<M: Memory>(keys: &[u64], room: usize) -> M {
    let engine = M::with_room_for(room);
    for key in keys {
        engine.insert(*key, integer_value(*key));
    }
    engine.settle();
    engine
}

/// The sum of the values under `keys`, and how many there were none under.
#[inline(never)]
pub fn read<M: Memory>(engine: &M, keys: &[u64]) -> (u64, usize) {
    let (mut sum, mut missing) = (0_u64, 0);
    for key in keys {
        match engine.get(black_box(*key)) {
            Some(value) => sum = sum.wrapping_add(black_box(value)),
            None => missing += 1,
        }
    }
    (sum, missing)
}

/// The sum of the values under `keys`, those that were missing being inserted.
#[inline(never)]
fn read_or_insert<M: Memory>(engine: &M, keys: &[u64]) -> u64 {
    let mut sum = 0_u64;
    for key in keys {
        let key = black_box(*key);
        let value = engine.get(key).unwrap_or_else(|| {
            let value = integer_value(key);
            engine.insert(key, value);
            value
        });
        sum = sum.wrapping_add(black_box(value));
    }
    sum
}
