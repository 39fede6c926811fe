//! Bytes beyond the bound: threads store as fast as they can, and others look all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use terrace_memory::{Attributes, Cause, Insert, Memory, Tick};

use crate::support::{alone_with, count};
use crate::{Dice, NOW, PLAIN, Weigh, weighed};

const MAX: u64 = 100_000;
const WRITERS: u64 = 4;
const ROUNDS: u64 = 20_000;

#[test]
fn the_bound_holds_at_every_instant() {
    for shards in [1, 4, 64] {
        let cache = weighed::<u64>(MAX, shards).build();
        hammer(&cache, |cache| assert!(cache.bytes() <= MAX));
        settle(&cache);
    }
}

#[test]
fn the_entries_themselves_stay_within_the_bound() {
    // With one shard, its lock makes the sum of the weights one of a single instant.
    let cache = weighed::<u64>(MAX, 1).build();
    hammer(&cache, |cache| {
        let mut sum = 0;
        cache.for_each(NOW, |_, view| sum += view.weight);
        assert!(sum <= MAX, "{sum} bytes are stored");
    });
    settle(&cache);
}

#[test]
fn values_as_large_as_the_cache_do_not_wait_for_each_other() {
    // Every store needs all bytes, wherever they are: stores that kept a part and waited for the
    // rest would wait forever.
    for shards in [1, 16] {
        let cache = weighed::<u64>(MAX, shards).build();
        thread::scope(|scope| {
            for thread in 0..WRITERS {
                let cache = &cache;
                scope.spawn(move || {
                    for round in 0..5_000 {
                        let weight = if round % 3 == 0 { MAX / 2 + 1 } else { MAX };
                        assert_ne!(
                            cache.insert(thread * 7 + round % 5, weight, PLAIN, NOW),
                            Insert::TooLarge
                        );
                        assert!(cache.bytes() <= MAX);
                    }
                });
            }
        });
        // A store that finds no room because another one has taken all of it is refused.
        assert!(cache.len() <= 1);
        settle(&cache);
    }
}

/// A value that counts the bytes of all of its kind.
struct Counted {
    weight: u64,
    alive: Arc<AtomicU64>,
}

impl Counted {
    fn new(weight: u64, alive: &Arc<AtomicU64>) -> Self {
        alive.fetch_add(weight, Relaxed);
        Self { weight, alive: Arc::clone(alive) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.alive.fetch_sub(self.weight, Relaxed);
    }
}

impl Weigh for Counted {
    fn weight(&self) -> u64 {
        self.weight
    }
}

#[test]
fn what_is_charged_is_what_is_alive() {
    let alive = Arc::new(AtomicU64::new(0));
    let cache = weighed::<Counted>(MAX, 8).build();
    thread::scope(|scope| {
        for thread in 1..=WRITERS {
            let (cache, alive) = (&cache, &alive);
            scope.spawn(move || {
                let mut dice = Dice(thread);
                for _ in 0..ROUNDS {
                    let key = dice.roll(200);
                    let value = Counted::new(200 + dice.roll(2_000), alive);
                    match dice.roll(10) {
                        0 => {
                            cache.remove_if(&key, |_| true);
                        }
                        1 => {
                            let _ = cache.replace_if(key, value, PLAIN, NOW, |view| view.is_none());
                        }
                        _ => {
                            cache.insert(key, value, PLAIN, NOW);
                        }
                    }
                }
            });
        }
    });
    cache.validate();
    assert_eq!(alive.load(Relaxed), cache.bytes() + cache.stats().garbage_bytes);
    assert!(cache.bytes() > MAX / 2, "the cache makes use of its room");
    drop(cache);
    assert_eq!(alive.load(Relaxed), 0);
}

#[test]
fn a_large_value_takes_a_little_of_every_shard() {
    let cache = weighed::<u64>(MAX, 8).build();
    for key in 0..1_000 {
        cache.insert(key, 100, PLAIN, NOW);
    }
    // 1000 entries in 8 shards: about 125 each. A store of a quarter takes its own shard's, and
    // of each other shard about 18, so most of the newest half survive wherever they are.
    cache.insert(10_000, MAX / 4, PLAIN, NOW);
    let survivors = (500..1_000).filter(|key| cache.contains(key, NOW)).count();
    assert!(survivors >= 400, "{survivors} of the newest 500 are left");
    // Shards may keep back a little of what they have borrowed.
    assert!(cache.bytes() > MAX / 8 * 7);
    cache.validate();
}

#[test]
fn counts_agree_after_the_storm() {
    let left = Arc::new(AtomicU64::new(0));
    let cache = weighed::<u64>(MAX, 4)
        .listener({
            let left = Arc::clone(&left);
            move |_, _, _: Cause| {
                left.fetch_add(1, Relaxed);
            }
        })
        .build();
    hammer(&cache, |_| ());
    let stats = cache.stats();
    assert_eq!(stats.inserts - stats.entries, left.load(Relaxed));
    assert_eq!(
        stats.entries,
        stats.inserts - stats.replaced - stats.evicted - stats.expired - stats.removed
    );
}

/// Threads that do everything, and one that looks until they are done.
fn hammer(cache: &Memory<u64, u64>, look: impl Fn(&Memory<u64, u64>) + Sync) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                look(cache);
            }
        });
        let writers: Vec<_> = (1..=WRITERS)
            .map(|seed| {
                scope.spawn(move || (0..ROUNDS).fold(Dice(seed), |dice, _| act(cache, dice)))
            })
            .collect();
        let results: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Relaxed);
        for result in results {
            result.unwrap();
        }
    });
}

fn act(cache: &Memory<u64, u64>, mut dice: Dice) -> Dice {
    let (key, now) = (dice.roll(500), Tick(dice.roll(100)));
    let weight = if dice.roll(50) == 0 { 500 + dice.roll(MAX) } else { 200 + dice.roll(1_000) };
    let attributes = Attributes { expires: Tick(dice.roll(200)), space: key as u32 % 4, ..PLAIN };
    match dice.roll(1_000) {
        0 => {
            cache.clear();
        }
        1 => {
            cache.remove_space(2);
        }
        2 => {
            cache.retain(|key, _| key % 3 > 0);
        }
        3..20 => {
            cache.sweep(now, 100);
        }
        20..100 => drop(cache.remove(&key)),
        100..300 => drop(cache.get(&key, now)),
        300..500 => {
            let _ = cache.replace_if(key, weight, attributes, now, |view| view.is_none());
        }
        _ => {
            cache.insert(key, weight, attributes, now);
        }
    }
    assert!(cache.bytes() <= MAX);
    dice
}

fn settle(cache: &Memory<u64, u64>) {
    cache.validate();
    assert!(cache.peak_bytes() <= MAX);
    cache.clear();
    assert_eq!(cache.bytes(), 0);
}

#[test]
fn a_small_cache_of_many_shards_is_full_when_much_was_stored() {
    let few = Memory::builder().max_entries(200).shards(64).build();
    for key in 0..20_000_u64 {
        assert_eq!(few.insert(key, key, PLAIN, NOW), Insert::Stored);
        if key >= 1_000 {
            assert!(few.len() >= 195, "{} entries", few.len());
        }
    }
    let bytes = weighed::<u64>(10_000, 64).build();
    for key in 0..20_000 {
        assert_eq!(bytes.insert(key, 100, PLAIN, NOW), Insert::Stored);
        if key >= 1_000 {
            assert!(bytes.len() >= 95, "{} entries", bytes.len());
        }
    }
    bytes.validate();
}

/// Pages of this process that are in memory, in bytes.
#[cfg(target_os = "linux")]
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
#[cfg(target_os = "linux")]
#[expect(clippy::disallowed_methods, reason = "it says for how long it runs")]
fn r9_the_process_stays_within_the_bound_and_a_quarter() {
    // Otherwise glibc keeps ever larger blocks that were freed, up to 32 MiB each, for the next value
    // of that size: what such a process holds says more about it than about the cache.
    let threshold = [("MALLOC_MMAP_THRESHOLD_", "131072")];
    alone_with("bound::r9_the_process_stays_within_the_bound_and_a_quarter", &threshold, || {
        const MIB: u64 = 1 << 20;
        let (budget, time) = (count(64, 256) * MIB, Duration::from_secs(count(15, 600)));
        let cache = Memory::<u64, Vec<u8>>::builder()
            .max_bytes(budget)
            .weigher(|_, value: &Vec<u8>| 32 + value.capacity() as u64)
            .build();
        let start = Instant::now();
        let most = AtomicU64::new(0);
        thread::scope(|scope| {
            for seed in 1..=2 {
                let (cache, most) = (&cache, &most);
                scope.spawn(move || {
                    let mut dice = Dice(seed);
                    while start.elapsed() < time {
                        for _ in 0..64 {
                            // From 1 byte to 1 MiB, small ones as often as large ones.
                            let most = 1 << dice.roll(21);
                            let size = dice.roll(most) + 1;
                            let value = vec![seed as u8; size as usize];
                            cache.insert(dice.roll(20_000), value, PLAIN, NOW);
                            cache.get_with(&dice.roll(20_000), NOW, |value| assert!(value[0] > 0));
                        }
                        most.fetch_max(resident(), Relaxed);
                    }
                });
            }
        });
        let most = most.load(Relaxed);
        assert!(cache.stats().evicted > 1_000, "the bound was not reached");
        assert!(most <= budget / 4 * 5 + 40 * MIB, "{} MiB under {budget}", most / MIB);
    });
}
