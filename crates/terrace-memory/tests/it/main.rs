//! What the cache promises, one file for each way to break it.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod alike;
mod basics;
mod bound;
mod collide;
mod compute;
mod entries;
mod expiry;
mod hottest;
mod idle;
mod lost;
mod many;
mod model;
mod negative;
mod panic;
mod pinned;
mod policies;
mod replace_if;
mod script;
mod scripts;
mod space;
mod stalled;
mod support;
mod threads;
mod untold;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use terrace_memory::{Attributes, Eviction, Memory, Tick};

/// A time at which nothing has expired, unless a test says so.
const NOW: Tick = Tick(0);

/// Every policy.
const EVERY: [Eviction; 6] = [
    Eviction::Hybrid,
    Eviction::S3Fifo,
    Eviction::Sieve,
    Eviction::Lru,
    Eviction::Lfu,
    Eviction::Ttl,
];

/// Neither expiry, nor stamp, nor space.
const PLAIN: Attributes = Attributes {
    expires: Tick::NEVER,
    idle: None,
    stamp: 0,
    space: 0,
    pinned: false,
    negative: false,
};

/// A cache for values that weigh what they say, `OVERHEAD` included, and room for `max` of that.
/// What was used least recently leaves first.
fn weighed<V: Weigh>(max: u64, shards: usize) -> terrace_memory::Builder<u64, V> {
    Memory::<u64, V>::builder()
        .max_bytes(max)
        .max_value_bytes(max)
        .shards(shards)
        .eviction(Eviction::Lru)
        .weigher(|_, value| value.weight() - Memory::<u64, V>::OVERHEAD)
}

/// A value that says what it is charged.
trait Weigh {
    fn weight(&self) -> u64;
}

impl Weigh for u64 {
    fn weight(&self) -> u64 {
        *self
    }
}

/// A small generator of numbers that look random, so that tests repeat.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Counts something from a listener or a weigher.
#[derive(Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
