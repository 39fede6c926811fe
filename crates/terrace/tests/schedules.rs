//! Schedules: what a few tasks do to one small cache, in a random order of every step that one
//! could see of another.
//!
//! Runs only in builds with `--cfg shuttle`. A task may be overtaken wherever it waits, and wherever
//! the engine in memory uses a lock or an atomic. Time stands still: no deadline passes. Every call
//! is recorded, and the history of a run is judged when all has come to rest.
//!
//! It was made to fail by storing in memory what a line has named since the load began.

#![cfg(shuttle)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shuttle::future::{block_on, spawn, yield_now};
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};
use terrace::runtime::{BoxFuture, Runtime};
use terrace::{LoadError, Memory, Space, Terrace, Tier};
use terrace_test::history::Seen;
use terrace_test::sweep::poll_and_drop;
use terrace_test::{History, ManualClock, MapStore, Oracle};

const KEYS: u64 = 2;
const TASKS: u64 = 3;
const CALLS: usize = 6;

#[test]
fn of_memory_at_random() {
    run(|count| RandomScheduler::new(count), false);
}

#[test]
fn of_memory_and_a_store_at_random() {
    run(|count| RandomScheduler::new(count), true);
}

/// Tasks that run on as long as they can, but for a few points: rare orders come up sooner.
#[test]
fn of_memory_with_few_preemptions() {
    run(|count| PctScheduler::new(3, count), false);
}

#[test]
fn of_memory_and_a_store_with_few_preemptions() {
    run(|count| PctScheduler::new(3, count), true);
}

fn run<S: Scheduler + 'static>(scheduler: impl Fn(usize) -> S, has_store: bool) {
    let count = if std::env::var_os("TERRACE_FULL").is_some() { 100_000 } else { 1_000 };
    let mut config = Config::new();
    config.silence_warnings = true;
    config.stack_size = 1 << 20;
    Runner::new(scheduler(count), config).run(move || block_on(play(has_store)));
}

async fn play(has_store: bool) {
    let stage = Arc::new(Stage::new(has_store).await);
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let stage = Arc::clone(&stage);
            spawn(async move {
                for _ in 0..CALLS {
                    stage.call(task).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    stage.terrace.close().await;
    stage.history.check().unwrap();
    Oracle::new().check(&stage.terrace).await.unwrap();
}

/// Tasks of the cache are tasks of the scheduler.
#[derive(Debug)]
struct Scheduled;

impl Runtime for Scheduled {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(spawn(task));
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }

    fn random(&self) -> u64 {
        thread_rng().r#gen()
    }
}

/// The source has nothing under a key.
#[derive(Debug)]
struct Nothing;

impl fmt::Display for Nothing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("nothing")
    }
}

impl std::error::Error for Nothing {}

/// A cache, the source that it stands for, and the history of both.
struct Stage {
    terrace: Terrace,
    space: Space<u64, u64>,
    /// The version of each key, 0 for none.
    source: [AtomicU64; KEYS as usize],
    history: History<u64>,
    next: AtomicU64,
}

impl Stage {
    async fn new(has_store: bool) -> Self {
        let mut builder = Terrace::builder()
            .memory(Memory::bytes(64 << 10))
            .clock(Arc::new(ManualClock::new()))
            .runtime(Arc::new(Scheduled));
        if has_store {
            builder = builder.tier("map", Tier::of(MapStore::new()));
        }
        let terrace = builder.build().await.unwrap();
        Self {
            space: terrace.space("space").forever().build().unwrap(),
            terrace,
            source: [0, 0].map(AtomicU64::new),
            history: History::new(),
            next: AtomicU64::new(1),
        }
    }

    /// Makes a call, or begins one and drops it. Each key is changed by one task alone.
    async fn call(self: &Arc<Self>, task: u64) {
        let key = thread_rng().gen_range(0..KEYS);
        let is_own = task == key;
        match thread_rng().gen_range(0..10) {
            0 => self.get(key).await,
            1 | 2 if is_own => self.write_and_invalidate(key).await,
            3 | 4 if is_own => self.write_and_insert(key).await,
            5 => {
                let change = self.history.invalidates(key);
                self.space.remove(&key).await.unwrap();
                change.ended();
            }
            6 => {
                let polls = thread_rng().gen_range(1..4);
                poll_and_drop(polls, self.get_or_load(key)).await;
            }
            7 => {
                // Whether it takes effect, and when, is open: the history knows that it never ended.
                let polls = thread_rng().gen_range(1..4);
                let change = self.history.invalidates(key);
                let done = poll_and_drop(polls, async { self.space.invalidate(&key).await }).await;
                if let Some(done) = done {
                    done.unwrap();
                    change.ended();
                }
            }
            _ => self.get_or_load(key).await,
        }
    }

    async fn get(&self, key: u64) {
        let look = self.history.reads(key);
        let found = self.space.get(&key).await.unwrap();
        look.saw(found.map_or(Seen::Miss, |version| Seen::Version(*version)));
    }

    async fn get_or_load(self: &Arc<Self>, key: u64) {
        let look = self.history.reads(key);
        let stage = Arc::clone(self);
        let load = |_| async move {
            wander().await;
            let version = stage.source[key as usize].load(Ordering::SeqCst);
            wander().await;
            if version == 0 { Err(Nothing) } else { Ok(version) }
        };
        match self.space.get_or_load(&key, load).await {
            Ok(version) => look.saw(Seen::Version(*version)),
            Err(LoadError::Loader(_)) => look.saw(Seen::NotFound),
            Err(error) => panic!("{key}: {error}"),
        }
    }

    async fn write(&self, key: u64) -> u64 {
        let version = self.next.fetch_add(1, Ordering::Relaxed);
        let write = self.history.writes(key, Some(version));
        wander().await;
        self.source[key as usize].store(version, Ordering::SeqCst);
        wander().await;
        write.ended();
        version
    }

    async fn write_and_invalidate(&self, key: u64) {
        self.write(key).await;
        let change = self.history.invalidates(key);
        assert!(self.space.invalidate(&key).await.unwrap().is_settled());
        change.ended();
    }

    async fn write_and_insert(&self, key: u64) {
        let version = self.write(key).await;
        let change = self.history.inserts(key, version);
        assert!(self.space.insert(&key, version).await.unwrap().is_settled());
        change.ended();
    }
}

/// Gives way some times.
async fn wander() {
    for _ in 0..thread_rng().gen_range(0..3) {
        yield_now().await;
    }
}
