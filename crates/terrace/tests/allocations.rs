//! The hit path: a fresh value in memory costs no allocation, no waiting, no decoding.
//!
//! A binary of its own, because allocations are counted by the allocator.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on has to say so and stop"
)]

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use allocation_counter::measure;
use serde::{Deserialize, Deserializer, Serialize};
use terrace::{Disk, Memory, Space, Terrace};

const HITS: usize = 1_000;

/// A value that says how often it was decoded or cloned.
#[derive(Debug, Serialize)]
struct Watched {
    number: u64,
    text: String,
}

thread_local! {
    static MADE: Cell<usize> = const { Cell::new(0) };
}

fn watched(number: u64, text: String) -> Watched {
    MADE.with(|made| made.set(made.get() + 1));
    Watched { number, text }
}

impl Clone for Watched {
    fn clone(&self) -> Self {
        watched(self.number, self.text.clone())
    }
}

impl<'de> Deserialize<'de> for Watched {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Plain {
            number: u64,
            text: String,
        }
        let plain = Plain::deserialize(deserializer)?;
        Ok(watched(plain.number, plain.text))
    }
}

/// What `future` brings with its first poll.
fn at_once<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a hit had to wait"),
    }
}

/// Allocates nothing and makes no value, a thousand times over; and does what it does at
/// once.
fn costs_nothing(what: &str, mut hit: impl FnMut() -> bool) {
    // Whatever the thread sets up once is set up.
    for _ in 0..200 {
        assert!(hit(), "{what} is no hit");
    }
    let made = MADE.get();
    let mut hits = 0;
    let allocated = measure(|| hits = (0..HITS).filter(|_| hit()).count());
    assert_eq!(hits, HITS, "{what}");
    assert_eq!(allocated.count_total, 0, "{what}: {allocated:?}");
    assert_eq!(MADE.get(), made, "{what}: the value was decoded or cloned");
}

struct Caches {
    runtime: tokio::runtime::Runtime,
    terraces: Vec<Terrace>,
    _directory: tempfile::TempDir,
}

impl Caches {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let terraces = runtime.block_on(async {
            let memory = || Terrace::builder().memory(Memory::bytes(16 << 20));
            vec![
                memory().build().await.unwrap(),
                memory().tier("disk", Disk::at(directory.path())).build().await.unwrap(),
            ]
        });
        Self { runtime, terraces, _directory: directory }
    }

    fn each(&self, test: impl Fn(&Terrace)) {
        // Calls outside of a runtime, as from any thread: nothing may be needed of it.
        self.terraces.iter().for_each(test);
    }

    fn insert(&self, space: &Space<str, Watched>, key: &str, tags: &[&str]) {
        let value = watched(7, "x".repeat(1_000));
        let insert = async { space.insert(key, value).tags(tags).await.unwrap() };
        assert!(self.runtime.block_on(insert).is_settled());
    }
}

#[test]
fn a_hit_neither_allocates_nor_waits_nor_decodes() {
    let caches = Caches::new();
    caches.each(|terrace| {
        let space = terrace.space::<str, Watched>("space").build().unwrap();
        for tags in [&[][..], &["red", "blue"]] {
            // As long as a key may be without leaving the stack.
            for key in ["k", &"k".repeat(64)] {
                caches.insert(&space, key, tags);
                costs_nothing("get", || {
                    at_once(space.get(key)).unwrap().is_some_and(|value| value.number == 7)
                });
                costs_nothing("get_or_load", || {
                    let load = space
                        .get_or_load(key, |_| async { Err::<Watched, _>("no loader is called") });
                    at_once(load).is_ok_and(|value| value.number == 7)
                });
                costs_nothing("read", || space.read(key, |value| value.text.len()) == Some(1_000));
            }
        }
    });
}

#[test]
fn a_hit_of_a_dynamic_key_neither_allocates_nor_waits_nor_decodes() {
    let caches = Caches::new();
    caches.each(|terrace| {
        let value = watched(7, "text".into());
        let set = async { terrace.set("user:123", &value).await.unwrap() };
        assert!(caches.runtime.block_on(set).is_settled());
        costs_nothing("get", || {
            at_once(terrace.get::<Watched>("user:123")).unwrap().is_some_and(|it| it.number == 7)
        });
        costs_nothing("get_or_load", || {
            let load = terrace
                .get_or_load("user:123", |_| async { Err::<Watched, _>("no loader is called") });
            at_once(load).is_ok_and(|value| value.number == 7)
        });
    });
}

#[test]
fn a_hit_on_numbers_and_pairs_does_not_allocate() {
    let caches = Caches::new();
    caches.each(|terrace| {
        let numbers = terrace.space::<u64, u64>("numbers").build().unwrap();
        let bytes = terrace.space::<[u8], u64>("bytes").build().unwrap();
        let pairs = terrace.space::<(u32, u16), u64>("pairs").build().unwrap();
        caches.runtime.block_on(async {
            assert!(numbers.insert(&u64::MAX, 1).await.unwrap().is_settled());
            assert!(bytes.insert(b"\0\xff", 2).await.unwrap().is_settled());
            assert!(pairs.insert(&(1, 2), 3).await.unwrap().is_settled());
        });
        costs_nothing("an integer", || at_once(numbers.get(&u64::MAX)).unwrap().is_some());
        costs_nothing("bytes", || at_once(bytes.get(b"\0\xff")).unwrap().is_some());
        costs_nothing("a pair", || at_once(pairs.get(&(1, 2))).unwrap().is_some());
    });
}

/// Lines about other things, broad ones too, change nothing about what a hit costs.
#[test]
fn a_hit_after_invalidations_of_other_things_does_not_allocate() {
    let caches = Caches::new();
    caches.each(|terrace| {
        let space = terrace.space::<str, Watched>("space").build().unwrap();
        let other = terrace.space::<str, u64>("other").build().unwrap();
        caches.insert(&space, "key", &["red", "blue"]);
        caches.runtime.block_on(async {
            for at in 0..100 {
                assert!(terrace.invalidate_tag(&format!("tag:{at}")).await.unwrap().is_settled());
                assert!(terrace.invalidate(&format!("key:{at}")).await.unwrap().is_settled());
            }
            assert!(other.clear().await.unwrap().is_settled());
        });
        costs_nothing("get", || at_once(space.get("key")).unwrap().is_some());
        costs_nothing("read", || space.read("key", |_| ()).is_some());
    });
}

/// What is measured can be measured: a copy of a value is seen, and so is a miss.
#[test]
fn the_counting_counts() {
    let caches = Caches::new();
    let terrace = &caches.terraces[0];
    let space = terrace.space::<str, Watched>("space").build().unwrap();
    caches.insert(&space, "key", &[]);
    // The first read of a thread makes it known to the memory tier.
    space.read("key", |_| ());
    let copy = measure(|| drop(space.read("key", |value| value.text.clone())));
    assert_eq!(copy.count_total, 1);
    let _context = caches.runtime.enter();
    let miss = measure(|| {
        let load =
            space.get_or_load("other", |_| std::future::pending::<Result<Watched, String>>());
        let mut load = pin!(load);
        assert!(load.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    });
    assert!(miss.count_total > 0);
}
