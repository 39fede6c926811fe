//! How many instructions the engine in memory takes, 1,000 operations to a case.
//!
//! Hashes, keys and shards are fixed, so every run counts the same. `./scripts/instructions` runs
//! this under valgrind and compares what it counts with `../../instructions.txt`. Filling the cache
//! is not counted, nor is dropping it: it is leaked.

use std::hash::Hash;
use std::hint::black_box;

use foldhash::fast::FixedState;
use gungraun::Callgrind;
use gungraun::prelude::*;
use terrace_memory::{Attributes, Memory, Tick};

type Engine<K> = Memory<K, u64, FixedState>;

const NOW: Tick = Tick::from_millis(1);

const RESIDENT: u64 = 10_000;

/// Counted per case.
const OPERATIONS: u64 = 1_000;

/// Keys of one call of `get_many`.
const MANY: usize = 32;

/// Above all keys that are stored before counting begins.
const NEW: u64 = 1 << 32;

/// The default depends on how many threads the machine has.
const SHARDS: usize = 4;

/// A cache, and the keys to use with it.
struct Case<K: 'static> {
    cache: Engine<K>,
    keys: Vec<K>,
}

fn engine<K>(room: u64) -> Engine<K> {
    Memory::builder().max_entries(room).shards(SHARDS).hasher(FixedState::with_seed(42)).build()
}

fn insert<K: Hash + Eq>(cache: &Engine<K>, key: K, value: u64) {
    black_box(cache.insert(key, value, Attributes::default(), NOW));
}

/// Every key is read once, so that nothing is done for the first time when it is counted.
fn filled<K: Hash + Eq>(room: u64, name: impl Fn(u64) -> K) -> Engine<K> {
    let cache = engine(room);
    for number in 0..RESIDENT {
        insert(&cache, name(number), number);
    }
    for number in 0..RESIDENT {
        black_box(cache.get(&name(number), NOW));
    }
    cache
}

fn leaked<K>(cache: Engine<K>, keys: Vec<K>) -> &'static Case<K> {
    Box::leak(Box::new(Case { cache, keys }))
}

/// Keys that are there, none of them twice, and not in the order in which they were stored.
fn present() -> impl Iterator<Item = u64> {
    (0..OPERATIONS).map(|number| number * 7_919 % RESIDENT)
}

fn resident() -> &'static Case<u64> {
    let cache = filled(2 * RESIDENT, |number| number);
    assert!(present().all(|key| cache.get(&key, NOW) == Some(key)));
    leaked(cache, present().collect())
}

fn resident_by_name() -> &'static Case<String> {
    let name = |number| format!("user:{number:012}");
    leaked(filled(2 * RESIDENT, name), present().map(name).collect())
}

fn absent() -> &'static Case<u64> {
    leaked(filled(2 * RESIDENT, |number| number), (NEW..NEW + OPERATIONS).collect())
}

/// With room for more in its indexes too: none of them grows while inserts are counted.
fn roomy() -> &'static Case<u64> {
    let cache = filled(2 * RESIDENT, |number| number);
    for key in RESIDENT..RESIDENT + 4 * OPERATIONS {
        insert(&cache, key, key);
    }
    leaked(cache, (NEW..NEW + OPERATIONS).collect())
}

/// Everything grows, several times.
fn empty() -> &'static Case<u64> {
    leaked(engine(2 * RESIDENT), (0..RESIDENT).collect())
}

/// Full for so long that everything that leaves makes room for something that comes.
fn full() -> &'static Case<u64> {
    let cache = filled(RESIDENT, |number| number);
    for key in RESIDENT..3 * RESIDENT {
        insert(&cache, key, key);
    }
    assert!(cache.stats().evicted > RESIDENT, "the cache is not full");
    leaked(cache, (NEW..NEW + OPERATIONS).collect())
}

#[library_benchmark]
#[bench::u64(resident())]
fn get_hit(case: &'static Case<u64>) {
    for key in &case.keys {
        black_box(case.cache.get(black_box(key), NOW));
    }
}

#[library_benchmark]
#[bench::string(resident_by_name())]
fn get_hit_by_str(case: &'static Case<String>) {
    for key in &case.keys {
        black_box(case.cache.get(black_box(key.as_str()), NOW));
    }
}

#[library_benchmark]
#[bench::u64(absent())]
fn get_miss(case: &'static Case<u64>) {
    for key in &case.keys {
        black_box(case.cache.get(black_box(key), NOW));
    }
}

#[library_benchmark]
#[bench::u64(resident())]
fn get_many_32(case: &'static Case<u64>) {
    for keys in case.keys.chunks(MANY) {
        case.cache.get_many(black_box(keys), NOW, |at, value| {
            black_box((at, value.copied()));
        });
    }
}

#[library_benchmark]
#[bench::u64(roomy())]
fn insert_new(case: &'static Case<u64>) {
    for key in &case.keys {
        insert(&case.cache, *black_box(key), 1);
    }
}

// The only case of 10,000 operations.
#[library_benchmark]
#[bench::u64(empty())]
fn insert_growing(case: &'static Case<u64>) {
    for key in &case.keys {
        insert(&case.cache, *black_box(key), 1);
    }
}

#[library_benchmark]
#[bench::u64(full())]
fn insert_evicting(case: &'static Case<u64>) {
    for key in &case.keys {
        insert(&case.cache, *black_box(key), 1);
    }
}

#[library_benchmark]
#[bench::u64(resident())]
fn replace(case: &'static Case<u64>) {
    for key in &case.keys {
        insert(&case.cache, *black_box(key), 1);
    }
}

#[library_benchmark]
#[bench::u64(resident())]
fn remove(case: &'static Case<u64>) {
    for key in &case.keys {
        black_box(case.cache.remove(black_box(key)));
    }
}

library_benchmark_group!(
    name = memory,
    benchmarks = [
        get_hit,
        get_hit_by_str,
        get_miss,
        get_many_32,
        insert_new,
        insert_growing,
        insert_evicting,
        replace,
        remove,
    ]
);

main!(
    // Caches of the processor are not simulated: instructions alone are compared.
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = memory
);
