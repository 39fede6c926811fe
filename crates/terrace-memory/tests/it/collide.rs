//! Keys that were made to collide, and hashers that are no good.

use std::cell::Cell;
use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use terrace_memory::{Eviction, Insert, Memory};
use xxhash_rust::xxh64::xxh64;

use crate::support::count;
use crate::{EVERY, NOW, PLAIN};

thread_local! {
    /// Comparisons of keys by this thread.
    static COMPARISONS: Cell<u64> = const { Cell::new(0) };
    /// No more of them may there be.
    static MOST: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// A key that counts what it is compared with.
#[derive(Clone, Copy, Debug)]
struct Key(u64);

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        COMPARISONS.set(COMPARISONS.get() + 1);
        assert!(COMPARISONS.get() <= MOST.get(), "too many comparisons: a search does not end");
        self.0 == other.0
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

/// How many keys were compared with another one meanwhile.
fn comparisons<R>(body: impl FnOnce() -> R) -> (R, u64) {
    let before = COMPARISONS.get();
    let result = body();
    (result, COMPARISONS.get() - before)
}

/// Calls `body`, which may compare so many keys. One that would never end is ended.
fn within<R>(most: u64, body: impl FnOnce() -> R) -> R {
    MOST.set(COMPARISONS.get() + most);
    let result = body();
    MOST.set(u64::MAX);
    result
}

/// The comparisons that it takes to store so many keys and to read each.
fn work(cache: &Memory<Key, u64>, keys: &[Key]) -> u64 {
    let ((), work) = comparisons(|| {
        for key in keys {
            assert_eq!(cache.insert(*key, key.0, PLAIN, NOW), Insert::Stored);
        }
        for key in keys {
            assert_eq!(cache.get(key, NOW), Some(key.0));
        }
    });
    assert_eq!(cache.clear(), keys.len() as u64);
    work
}

#[test]
fn x10_keys_that_collide_in_one_cache_do_not_in_another() {
    let keys = count(20_000, 1_000_000) as usize;
    let room = 1 << 40;
    let build = || Memory::<Key, u64>::builder().max_bytes(room).shards(1).build();
    // Nobody outside knows the seed; but who sees what a key is compared with learns which keys
    // come to the same place, and finds as many of them as he likes.
    let cache = build();
    cache.insert(Key(0), 0, PLAIN, NOW);
    let collides = |key: &Key| comparisons(|| cache.contains(key, NOW)).1 > 0;
    let colliding: Vec<Key> = (1..).map(Key).filter(collides).take(keys).collect();
    cache.clear();

    let few = &colliding[..1_000];
    let (here, elsewhere) = (work(&cache, few), work(&build(), few));
    assert!(here > 20 * elsewhere, "they do collide where they were made to: {here}");

    let random: Vec<Key> = (1 << 40..).map(Key).take(keys).collect();
    let (made, random) = (work(&build(), &colliding), work(&build(), &random));
    // Each is compared with itself once, when it is read.
    assert!(made < 2 * random, "{made} comparisons, and {random} with other keys");
    assert!(random < 2 * keys as u64, "{random} comparisons");
}

/// The same hash for so many numbers in a row.
#[derive(Clone, Copy)]
struct Coarse {
    alike: u64,
    hash: u64,
}

impl Coarse {
    fn new(alike: u64) -> Self {
        Self { alike, hash: 0 }
    }
}

impl Hasher for Coarse {
    fn finish(&self) -> u64 {
        self.hash
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are numbers");
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (number / self.alike + 1).wrapping_mul(0xff51_afd7_ed55_8ccd);
        self.hash = mixed ^ mixed >> 33;
    }
}

impl BuildHasher for Coarse {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

const CONSTANT: u64 = u64::MAX;

#[test]
fn a_cache_with_a_constant_hash_is_correct() {
    let keys = count(2_000, 20_000);
    let cache = Memory::<Key, u64>::builder().shards(4).hasher(Coarse::new(CONSTANT)).build();
    for key in 0..keys {
        within(key, || {
            assert_eq!(cache.insert(Key(key), key, PLAIN, NOW), Insert::Stored);
        });
    }
    for key in 0..keys {
        within(keys, || assert_eq!(cache.get(&Key(key), NOW), Some(key)));
        within(keys, || assert_eq!(cache.get(&Key(keys + key), NOW), None));
    }
    // A sweep and a look at all need not compare any.
    within(0, || {
        cache.sweep(NOW, usize::MAX);
        cache.for_each(NOW, |_, _| ());
    });
    for key in (0..keys).step_by(2) {
        within(keys, || assert_eq!(cache.remove(&Key(key)), Some(key)));
    }
    for key in 0..keys {
        assert_eq!(cache.contains(&Key(key), NOW), key % 2 == 1);
    }
    for key in (1..keys).step_by(2) {
        within(keys, || {
            assert_eq!(cache.insert(Key(key), key + 1, PLAIN, NOW), Insert::Replaced);
            assert_eq!(cache.stats().entries, keys / 2);
        });
        assert_eq!(cache.get(&Key(key), NOW), Some(key + 1));
    }
    cache.validate();
    within(0, || assert_eq!(cache.clear(), keys / 2));
}

#[test]
fn a_cache_with_a_constant_hash_is_bounded() {
    const ROOM: u64 = 200;
    for eviction in EVERY {
        for shards in [1, 4] {
            let cache = Memory::<Key, u64>::builder()
                .max_entries(ROOM)
                .shards(shards)
                .eviction(eviction)
                .hasher(Coarse::new(CONSTANT))
                .build();
            for key in 0..2_000 {
                let (outcome, work) = comparisons(|| cache.insert(Key(key), key, PLAIN, NOW));
                assert_eq!(outcome, Insert::Stored);
                // Whoever leaves is found by the number of its slot.
                assert!(work <= ROOM, "{work} comparisons");
                assert_eq!(cache.get(&Key(key), NOW), Some(key));
                assert!(cache.stats().entries <= ROOM);
            }
            assert_eq!(cache.len() as u64, ROOM);
            cache.validate();
        }
    }
}

#[test]
fn threads_share_a_cache_with_a_constant_hash() {
    let cache = Memory::<Key, u64>::builder()
        .max_entries(100)
        .shards(4)
        .hasher(Coarse::new(CONSTANT))
        .build();
    thread::scope(|scope| {
        for thread in 0..4_u64 {
            let cache = &cache;
            scope.spawn(move || {
                for round in 0..2_000 {
                    let key = (thread * 7 + round) % 300;
                    assert!(cache.get(&Key(key), NOW).is_none_or(|value| value == key));
                    cache.insert(Key(key), key, PLAIN, NOW);
                }
            });
        }
    });
    assert!(cache.len() <= 100);
    cache.validate();
}

#[test]
fn a_search_ends_whatever_was_there_before() {
    // Keys that are alike come and go in waves. Each wave leaves traces where it went past, until
    // there is no place without one.
    for (room, alike) in [(40, 13), (40, 40), (100, 30), (600, 600)] {
        for eviction in [Eviction::Hybrid, Eviction::Lru] {
            let cache = Memory::<Key, u64>::builder()
                .max_entries(room)
                .shards(1)
                .eviction(eviction)
                .hasher(Coarse::new(alike))
                .build();
            for key in 0..10 * room.max(alike) {
                let outcome = within(room, || cache.insert(Key(key), key, PLAIN, NOW));
                assert_eq!(outcome, Insert::Stored);
                // The last of its wave, which has not come yet.
                let last = key - key % alike + alike - 1;
                let is_there = within(room, || cache.contains(&Key(last), NOW));
                assert_eq!(is_there, last == key);
                assert!(!within(room, || cache.remove_if(&Key(last + 1), |_| true)));
            }
            cache.validate();
        }
    }
}

/// What the second half of a key has to be so that `xxh64` with seed 0 ends up in the same state,
/// whatever the first half is.
fn colliding(first: u64) -> [u64; 8] {
    const P1: u64 = 0x9E37_79B1_85EB_CA87;
    const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
    // The inverse of P2 modulo 2^64, by Newton's method: each step doubles the bits that are right.
    let inverse = (0..6).fold(P2, |x, _| x.wrapping_mul(2_u64.wrapping_sub(P2.wrapping_mul(x))));
    let mut key = [0; 8];
    for (lane, start) in
        [P1.wrapping_add(P2), P2, 0, 0_u64.wrapping_sub(P1)].into_iter().enumerate()
    {
        let word = first.wrapping_mul(lane as u64 + 1);
        let state = start.wrapping_add(word.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1);
        key[lane] = word;
        key[lane + 4] = 7_u64.wrapping_sub(state).wrapping_mul(inverse);
    }
    key
}

/// A key that counts how often it is compared.
#[derive(Clone)]
struct Counted([u64; 8], Arc<AtomicU64>);

impl Hash for Counted {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl PartialEq for Counted {
    fn eq(&self, other: &Self) -> bool {
        self.1.fetch_add(1, Relaxed);
        self.0 == other.0
    }
}

impl Eq for Counted {}

#[test]
fn x10_keys_made_to_collide_in_a_known_hash_are_as_good_as_others() {
    let keys = count(20_000, 1_000_000);
    let bytes = |key: [u64; 8]| key.map(u64::to_le_bytes).concat();
    let hashes: HashSet<u64> =
        (0..1_000).map(|first| xxh64(&bytes(colliding(first * 77 + 1)), 0)).collect();
    assert_eq!(hashes.len(), 1, "these keys do not collide");

    // Half the throughput would be twice the work, and comparing is the work that collisions make.
    let comparisons = |key: fn(u64) -> [u64; 8]| {
        let compared = Arc::new(AtomicU64::new(0));
        let cache = Memory::builder().max_entries(2 * keys).build();
        for number in 0..keys {
            cache.insert(Counted(key(number), Arc::clone(&compared)), number, PLAIN, NOW);
        }
        for number in 0..keys {
            let found = cache.get(&Counted(key(number), Arc::clone(&compared)), NOW);
            assert_eq!(found, Some(number));
        }
        compared.load(Relaxed)
    };
    let made = comparisons(|number| colliding(number * 77 + 1));
    let random = comparisons(|number| colliding(number * 77 + 1).map(|word| word ^ (number << 7)));
    assert!(made <= random + random / 2, "{made} comparisons, {random} with other keys");
    assert!(made <= 2 * keys, "{made} comparisons for {keys} keys");
}
