//! Evictions that break the bound, or that throw out what is worth most.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use terrace_memory::{Attributes, Eviction, Insert, Memory, Tick};

use crate::{Dice, EVERY, NOW, PLAIN};

const ROOM: u64 = 1_000;

type Cache = Memory<u64, u64, FixedState>;

/// A cache whose hashes are the same in each run.
fn cache(eviction: Eviction, entries: u64, shards: usize) -> Cache {
    Memory::builder()
        .max_entries(entries)
        .shards(shards)
        .eviction(eviction)
        .hasher(FixedState::with_seed(7))
        .build()
}

/// Reads a key, and stores it when it is missing. Says whether it was there.
fn request(cache: &Cache, key: u64, attributes: Attributes) -> bool {
    let is_hit = cache.get(&key, NOW).is_some();
    if !is_hit {
        assert_eq!(cache.insert(key, key, attributes, NOW), Insert::Stored);
    }
    is_hit
}

/// Some keys are asked for often and most seldom: key `n` about as often as one in `n`.
fn skewed(seed: u64, requests: usize) -> impl Iterator<Item = u64> {
    let mut dice = Dice(seed);
    (0..requests).map(move |_| {
        let magnitude = 1 << dice.roll(15);
        magnitude + dice.roll(magnitude)
    })
}

/// What a cache that evicts at random would have had, with the same requests.
fn random_hits(requests: impl Iterator<Item = u64>) -> u64 {
    let (mut dice, mut hits) = (Dice(99), 0);
    let mut places = HashMap::new();
    let mut keys: Vec<u64> = Vec::new();
    for key in requests {
        if places.contains_key(&key) {
            hits += 1;
        } else if (keys.len() as u64) < ROOM {
            places.insert(key, keys.len());
            keys.push(key);
        } else {
            let place = dice.roll(ROOM) as usize;
            places.remove(&keys[place]);
            places.insert(key, place);
            keys[place] = key;
        }
    }
    hits
}

#[test]
fn the_bound_holds_whichever_entry_leaves() {
    for eviction in EVERY {
        for shards in [1, 4] {
            let cache = cache(eviction, ROOM, shards);
            let mut dice = Dice(17);
            for (index, key) in skewed(1, 10_000).enumerate() {
                match dice.roll(20) {
                    0 => drop(cache.remove(&key)),
                    1 => drop(cache.insert(key, 0, PLAIN, NOW)),
                    2 => drop(cache.set_expires(&key, Tick(1 + dice.roll(50)), NOW)),
                    _ => drop(request(&cache, key, PLAIN)),
                }
                assert!(cache.stats().entries <= ROOM);
                if index % 1_000 == 0 {
                    cache.validate();
                }
            }
            let full = cache.stats().entries;
            assert!(full > ROOM / 10 * 9, "{eviction:?} makes use of its room: {full}");
            cache.validate();
        }
    }
}

#[test]
fn each_policy_is_better_than_chance() {
    let random = random_hits(skewed(1, 60_000));
    for eviction in EVERY {
        for shards in [1, 4] {
            let cache = cache(eviction, ROOM, shards);
            let mut hits = 0;
            for key in skewed(1, 60_000) {
                // What is asked for often is what lasts long.
                let expires = Tick(1_000_000 - key);
                let attributes =
                    if eviction == Eviction::Ttl { Attributes { expires, ..PLAIN } } else { PLAIN };
                hits += u64::from(request(&cache, key, attributes));
            }
            assert!(hits * 100 > random * 102, "{eviction:?}: {hits}, by chance {random}");
            assert_eq!(cache.stats().hits, hits);
        }
    }
}

/// How many of the hot keys survive that as many others are read once as fit ten times.
fn survivors(eviction: Eviction, shards: usize) -> u64 {
    const HOT: u64 = ROOM / 2;
    let cache = cache(eviction, ROOM, shards);
    // Among keys that are not hot, so that there is something to choose from.
    let mut dice = Dice(5);
    for round in 0..20 {
        for key in 0..HOT {
            request(&cache, key, PLAIN);
            if round < 19 && key % 4 == 0 {
                request(&cache, 1_000_000 + dice.roll(100_000), PLAIN);
            }
        }
    }
    for key in 0..10 * ROOM {
        request(&cache, 10_000 + key, PLAIN);
    }
    (0..HOT).filter(|key| cache.contains(key, NOW)).count() as u64
}

#[test]
fn what_is_hot_survives_a_scan() {
    for eviction in [Eviction::Hybrid, Eviction::S3Fifo] {
        for shards in [1, 4] {
            let left = survivors(eviction, shards);
            assert!(left >= 450, "{left} of 500 are left: {eviction:?}, {shards} shards");
        }
    }
    assert_eq!(survivors(Eviction::Lru, 1), 0, "the scan is long enough to be one");
}

/// The hits among so many rounds of a loop that is half as long again as there is room.
fn loop_hits(eviction: Eviction, shards: usize, rounds: u64) -> u64 {
    let cache = cache(eviction, ROOM, shards);
    let mut hits = 0;
    for _ in 0..rounds {
        for key in 0..ROOM / 2 * 3 {
            hits += u64::from(request(&cache, key, PLAIN));
        }
    }
    hits
}

#[test]
fn a_loop_larger_than_the_cache_has_hits() {
    const ROUNDS: u64 = 60;
    let requests = ROUNDS * ROOM / 2 * 3;
    for shards in [1, 4] {
        let hits = loop_hits(Eviction::Hybrid, shards, ROUNDS);
        assert!(hits * 4 > requests, "{hits} hits of {requests}, {shards} shards");
    }
    assert_eq!(loop_hits(Eviction::Lru, 1, ROUNDS), 0);
}

#[test]
fn what_expires_soonest_leaves_first() {
    let cache = cache(Eviction::Ttl, 100, 1);
    let mut dice = Dice(31);
    let mut left: Vec<(u64, u64)> = Vec::new();
    for key in 0..2_000 {
        // Each tick once, so that there is one answer.
        let expires = (1 + dice.roll(1_000_000)) * 10_000 + key;
        if left.len() == 100 {
            left.sort_unstable();
            left.remove(0);
        }
        left.push((expires, key));
        cache.insert(key, key, Attributes { expires: Tick(expires), ..PLAIN }, NOW);
        // Being read changes nothing.
        cache.get(&left[0].1, NOW);
        if dice.roll(4) == 0 {
            let at = dice.roll(left.len() as u64) as usize;
            let moved = (1 + dice.roll(1_000_000)) * 10_000 + 5_000 + key;
            assert!(cache.set_expires(&left[at].1, Tick(moved), NOW));
            left[at].0 = moved;
        }
        for (_, key) in &left {
            assert!(cache.contains(key, NOW));
        }
    }
    assert_eq!(cache.len(), 100);
}

#[test]
fn what_never_expires_leaves_last_and_in_the_order_it_came() {
    let cache = cache(Eviction::Ttl, 10, 1);
    for key in 0..5 {
        cache.insert(key, key, PLAIN, NOW);
        cache.insert(100 + key, key, Attributes { expires: Tick(9 - key), ..PLAIN }, NOW);
    }
    for (new, gone) in [104, 103, 102, 101, 100, 0, 1, 2, 3, 4, 1_000].into_iter().enumerate() {
        assert!(cache.contains(&gone, NOW));
        cache.insert(1_000 + new as u64, 0, PLAIN, NOW);
        assert!(!cache.contains(&gone, NOW));
    }
}

/// The least recently used, as the documentation has it: uses between two stores are at one
/// time, that of the second, and of two with the same time the one stored first leaves first.
#[derive(Default)]
struct Recency {
    /// By key: the last use, and the number of the store.
    entries: HashMap<u64, (u64, u64)>,
    stores: u64,
}

impl Recency {
    fn read(&mut self, key: u64) {
        if let Some((last, _)) = self.entries.get_mut(&key) {
            *last = self.stores;
        }
    }

    fn store(&mut self, key: u64, room: usize) {
        if !self.entries.contains_key(&key) && self.entries.len() == room {
            let (&oldest, _) = self.entries.iter().min_by_key(|(_, used)| **used).unwrap();
            self.entries.remove(&oldest);
        }
        self.entries.insert(key, (self.stores, self.stores));
        self.stores += 1;
    }
}

#[test]
fn what_was_used_least_recently_leaves_first() {
    let cache = cache(Eviction::Lru, 50, 1);
    let mut recency = Recency::default();
    let mut dice = Dice(41);
    for _ in 0..20_000 {
        let key = dice.roll(120);
        match dice.roll(5) {
            0 | 1 => {
                assert_eq!(cache.get(&key, NOW).is_some(), recency.entries.contains_key(&key));
                recency.read(key);
            }
            2 if dice.roll(5) == 0 => {
                assert_eq!(cache.remove(&key).is_some(), recency.entries.remove(&key).is_some());
            }
            _ => {
                cache.insert(key, key, PLAIN, NOW);
                recency.store(key, 50);
            }
        }
        assert_eq!(cache.len(), recency.entries.len());
        assert!(recency.entries.keys().all(|key| cache.contains(key, NOW)));
    }
}

#[test]
fn what_was_used_least_often_leaves_first() {
    let cache = cache(Eviction::Lfu, 10, 1);
    for key in 0..10 {
        cache.insert(key, key, PLAIN, NOW);
        for _ in 0..(10 - key) * 20 {
            cache.get(&key, NOW);
        }
    }
    for new in 0..50 {
        cache.insert(100 + new, new, PLAIN, NOW);
    }
    assert!((0..5).all(|key| cache.contains(&key, NOW)), "those used most often have stayed");
}

#[test]
fn what_was_read_since_the_last_visit_stays() {
    let cache = cache(Eviction::Sieve, 10, 1);
    for key in 0..10 {
        cache.insert(key, key, PLAIN, NOW);
    }
    for key in [0, 2, 4] {
        cache.get(&key, NOW);
    }
    for new in 0..7 {
        cache.insert(100 + new, new, PLAIN, NOW);
    }
    assert!([0, 2, 4].iter().all(|key| cache.contains(key, NOW)));
    assert!([1, 3, 5].iter().all(|key| !cache.contains(key, NOW)));
}
