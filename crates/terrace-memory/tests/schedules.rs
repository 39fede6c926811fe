//! Schedules: what two or three threads do to a small cache, in a random order of every step that
//! one could see of another.
//!
//! Each operation is noted in a ledger when it begins and when it has returned. From that it is
//! known of each value from when on no read may find it. Runs only in builds with `--cfg shuttle`,
//! where locks and atomics are those of `shuttle`: each of their operations is a point where
//! another thread may go on. They are all sequentially consistent; the order of memory is the
//! matter of the models in `src/models`.
//!
//! It was made to fail by freeing without asking whether the epoch is settled, by a read within a
//! read that ends both pins, by a generation that begins before it is noted what was removed, by
//! reads that give an entry a generation too late or whatever its life is by then, by a budget that
//! two can borrow, by a value that is not stored and leaves an older one, and by a lease that is
//! returned before the garbage it pays for is freed.

#![cfg(shuttle)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::collections::HashMap;
use std::env;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Mutex;
use std::time::Duration;

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::Arc;
use shuttle::{Config, Runner, thread};
use terrace_memory::{Attributes, Compute, Eviction, Memory, Tick, View};

const KEYS: u64 = 6;
const SPACES: u32 = 3;
const OPERATIONS: usize = 12;
const NOW: Tick = Tick(1_000);
const POLICIES: [Eviction; 6] = [
    Eviction::Lru,
    Eviction::Lfu,
    Eviction::S3Fifo,
    Eviction::Sieve,
    Eviction::Ttl,
    Eviction::Hybrid,
];

#[test]
fn at_random() {
    run(|count| RandomScheduler::new(count));
}

/// Threads that run on as long as they can, but for a few points: rare orders come up sooner.
#[test]
fn with_few_preemptions() {
    run(|count| PctScheduler::new(3, count));
}

fn run<S: Scheduler + 'static>(scheduler: impl Fn(usize) -> S) {
    let count = if env::var_os("TERRACE_FULL").is_some() { 200_000 } else { 2_000 };
    for (at, eviction) in POLICIES.into_iter().enumerate() {
        let mut config = Config::new();
        config.silence_warnings = true;
        config.stack_size = 1 << 18;
        Runner::new(scheduler(count), config).run(move || play(eviction, 1 + at % 2));
    }
}

fn play(eviction: Eviction, shards: usize) {
    let scene = Arc::new(Scene::new(eviction, shards));
    let threads: Vec<_> = (0..thread_rng().gen_range(2..=3))
        .map(|_| {
            let scene = Arc::clone(&scene);
            thread::spawn(move || {
                for _ in 0..OPERATIONS {
                    scene.act();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    scene.end();
}

/// The hash of a number is the number, so that a schedule can be run again.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A value with a number of its own, which is gone when it is dropped.
struct Value {
    key: u64,
    number: u64,
    weight: u64,
    ledger: Arc<Ledger>,
}

impl Drop for Value {
    fn drop(&mut self) {
        let mut book = self.ledger.0.lock().unwrap();
        let alive = book.alive.remove(&self.number);
        assert!(alive.is_some() || std::thread::panicking(), "a value is dropped twice");
    }
}

/// What has been done. Its lock is never held at a point where another thread may go on.
#[derive(Default)]
struct Ledger(Mutex<Book>);

#[derive(Default)]
struct Book {
    clock: u64,
    entries: Vec<Entry>,
    /// What has not been dropped, with its weight.
    alive: HashMap<u64, u64>,
}

/// What is known of a value.
struct Entry {
    key: u64,
    space: u32,
    /// When the call that stored it returned.
    stored: Option<u64>,
    /// From when on no read that begins may find it.
    ended: Option<u64>,
}

impl Book {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

impl Ledger {
    fn tick(&self) -> u64 {
        self.0.lock().unwrap().tick()
    }

    /// A call that began then has returned: what `is_meant` and was there before has ended.
    fn end(&self, began: u64, is_meant: impl Fn(&Entry) -> bool) {
        let mut book = self.0.lock().unwrap();
        let now = book.tick();
        for entry in &mut book.entries {
            if entry.stored.is_some_and(|stored| stored < began) && is_meant(entry) {
                entry.ended.get_or_insert(now);
            }
        }
    }
}

struct Scene {
    cache: Memory<u64, Value, BuildHasherDefault<Same>>,
    ledger: Arc<Ledger>,
}

impl Scene {
    fn new(eviction: Eviction, shards: usize) -> Self {
        let builder = Memory::builder()
            .shards(shards)
            .eviction(eviction)
            .max_negative(50)
            .weigher(|_, value: &Value| value.weight);
        let overhead = Memory::<u64, Value>::OVERHEAD;
        let builder = if thread_rng().gen_bool(0.5) {
            builder.max_entries(4)
        } else {
            builder.max_bytes(4 * (overhead + 100)).max_value_bytes(3 * (overhead + 100))
        };
        let builder = builder.hasher(BuildHasherDefault::default());
        Self { cache: builder.build(), ledger: Arc::default() }
    }

    fn act(&self) {
        let mut dice = thread_rng();
        let key = dice.gen_range(0..KEYS);
        let began = self.ledger.tick();
        let of_key = |entry: &Entry| entry.key == key;
        match dice.gen_range(0..20) {
            0..5 => {
                let (value, attributes) = self.value(key);
                let number = value.number;
                self.cache.insert(key, value, attributes, NOW);
                self.stored(began, key, number);
            }
            5 => {
                let (value, attributes) = self.value(key);
                let number = value.number;
                let _ = self.cache.compute(key, NOW, |_| Compute::Store(value, attributes));
                self.stored(began, key, number);
            }
            6..13 => self.read(began, key, dice.gen_range(0..KEYS)),
            13 => {
                self.cache.peek_with(&key, NOW, |view: View<'_, Value>| {
                    self.check(began, key, view.value);
                });
            }
            14 => {
                self.cache.remove_if(&key, |view| {
                    self.look(key, view.value);
                    true
                });
                self.ledger.end(began, of_key);
            }
            15 => {
                // At an end that is not later than now.
                self.cache.set_expires(&key, Tick(NOW.0 - dice.gen_range(0..2)), NOW);
                self.ledger.end(began, of_key);
            }
            16 => {
                let space = dice.gen_range(0..SPACES);
                self.cache.remove_space(space);
                self.ledger.end(began, |entry| entry.space == space);
            }
            17 => drop(self.cache.sweep(NOW, dice.gen_range(0..20))),
            18 => {
                let keys: Vec<u64> = (0..KEYS).collect();
                self.cache.get_many(&keys, NOW, |key, value| {
                    value.inspect(|value| self.check(began, key as u64, value));
                });
            }
            _ => match dice.gen_range(0..3) {
                0 => {
                    self.cache.clear();
                    self.ledger.end(began, |_| true);
                }
                1 => {
                    self.cache.retain(|_, view| view.attributes.space != 1);
                    self.ledger.end(began, |entry| entry.space == 1);
                }
                _ => self.cache.for_each(NOW, |key, view| self.look(*key, view.value)),
            },
        }
        assert!(self.cache.len() as u64 <= self.cache.max_entries());
        assert!(self.cache.bytes() <= self.cache.max_bytes());
    }

    fn value(&self, key: u64) -> (Value, Attributes) {
        let mut dice = thread_rng();
        let attributes = Attributes {
            expires: if dice.gen_bool(0.3) { Tick(NOW.0 + 5) } else { Tick::NEVER },
            idle: dice.gen_bool(0.3).then(|| Duration::from_millis(dice.gen_range(1..20))),
            stamp: dice.gen_range(0..2),
            space: dice.gen_range(0..SPACES),
            pinned: dice.gen_bool(0.1),
            negative: dice.gen_bool(0.1),
        };
        let weight = dice.gen_range(20..200);
        let mut book = self.ledger.0.lock().unwrap();
        let number = book.entries.len() as u64;
        book.entries.push(Entry { key, space: attributes.space, stored: None, ended: None });
        book.alive.insert(number, weight);
        (Value { key, number, weight, ledger: Arc::clone(&self.ledger) }, attributes)
    }

    /// A value has been stored, or not; what was at its key is gone anyway.
    fn stored(&self, began: u64, key: u64, number: u64) {
        self.ledger.end(began, |entry| entry.key == key);
        let mut book = self.ledger.0.lock().unwrap();
        let now = book.tick();
        book.entries[number as usize].stored = Some(now);
    }

    /// Reads a value, within another read.
    fn read(&self, began: u64, key: u64, other: u64) {
        self.cache.get_with(&key, NOW, |value| {
            self.check(began, key, value);
            thread::yield_now();
            let within = self.ledger.tick();
            self.cache.get_with(&other, NOW, |value| self.check(within, other, value));
            self.look(key, value);
        });
    }

    /// A read that began then has found a value.
    fn check(&self, began: u64, key: u64, value: &Value) {
        self.look(key, value);
        let book = self.ledger.0.lock().unwrap();
        let ended = book.entries[value.number as usize].ended;
        assert!(ended.is_none_or(|ended| ended > began), "a value is found that had ended");
    }

    fn look(&self, key: u64, value: &Value) {
        assert_eq!(value.key, key, "the value of another key is found");
        let book = self.ledger.0.lock().unwrap();
        assert!(book.alive.contains_key(&value.number), "a value is read that was dropped");
    }

    /// All threads are gone.
    fn end(&self) {
        self.cache.validate();
        let began = self.ledger.tick();
        for key in 0..KEYS {
            self.cache.get_with(&key, NOW, |value| self.check(began, key, value));
        }
        self.cache.sweep(NOW, usize::MAX);
        self.cache.validate();
        assert_eq!(self.cache.stats().garbage_bytes, 0, "what nobody holds is kept");
        let overhead = Memory::<u64, Value>::OVERHEAD;
        let alive: u64 = {
            let book = self.ledger.0.lock().unwrap();
            book.alive.values().map(|weight| weight + overhead).sum()
        };
        assert_eq!(alive, self.cache.bytes(), "a value is lost, or kept");
        self.cache.clear();
        assert!(self.ledger.0.lock().unwrap().alive.is_empty(), "a value is lost");
    }
}
