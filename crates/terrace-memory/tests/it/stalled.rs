//! A reader that holds on to a value: what leaves meanwhile cannot be freed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread;

use terrace_memory::{Compute, Insert, Memory, Replace};

use crate::support::{Census, Tracked, count};
use crate::{Counter, Dice, NOW, PLAIN, weighed};

const MAX: u64 = 100_000;
const WEIGHT: u64 = 500;
/// A key that no test stores at while it is held, unless it means to.
const HELD: u64 = 1 << 40;

/// Calls `body` while another thread holds the value at [`HELD`], and returns when it has let go.
fn while_held<R>(cache: &Memory<u64, Tracked>, body: impl FnOnce() -> R) -> R {
    thread::scope(|scope| {
        let (held, is_held) = mpsc::channel();
        let (let_go, may_let_go) = mpsc::channel::<()>();
        scope.spawn(move || {
            let seen = cache.get_with(&HELD, NOW, |value| {
                held.send(()).unwrap();
                // The other end is dropped when the body returns or panics.
                assert!(may_let_go.recv().is_err());
                value.number()
            });
            assert_eq!(seen, Some(HELD));
        });
        is_held.recv().expect("the value to be held is there");
        let result = body();
        drop(let_go);
        result
    })
}

/// A full cache with a value at [`HELD`].
fn full_cache(shards: usize, census: &Census) -> Memory<u64, Tracked> {
    let cache = weighed::<Tracked>(MAX, shards).build();
    for key in 0..2 * MAX / WEIGHT {
        assert_eq!(store(&cache, census, key), Insert::Stored);
    }
    assert_eq!(store(&cache, census, HELD), Insert::Stored);
    cache
}

fn store(cache: &Memory<u64, Tracked>, census: &Census, key: u64) -> Insert {
    cache.insert(key, census.value(key, WEIGHT), PLAIN, NOW)
}

fn keys(cache: &Memory<u64, Tracked>) -> Vec<u64> {
    let mut keys = Vec::new();
    cache.for_each(NOW, |key, _| keys.push(*key));
    keys.sort_unstable();
    keys
}

/// All is freed that has left.
fn recovers(cache: &Memory<u64, Tracked>, census: &Census) {
    for key in 1_000_000..1_001_000 {
        assert_eq!(store(cache, census, key), Insert::Stored);
        assert_eq!(cache.get_with(&key, NOW, Tracked::number), Some(key));
    }
    cache.sweep(NOW, usize::MAX);
    let stats = cache.stats();
    assert_eq!(stats.garbage_bytes, 0);
    assert_eq!(census.bytes(), stats.bytes);
    assert!(stats.bytes > MAX / 4 * 3, "the cache makes use of its room again");
    cache.validate();
}

#[test]
fn memory_stays_within_the_bound_and_stores_are_refused() {
    for shards in [1, 8] {
        let census = Census::default();
        let cache = full_cache(shards, &census);
        let refused = while_held(&cache, || {
            let before = keys(&cache);
            let mut refused = 0;
            for key in 10_000..11_500 {
                let outcome = store(&cache, &census, key);
                assert!(matches!(outcome, Insert::Stored | Insert::NoRoom));
                refused += u64::from(outcome == Insert::NoRoom);
                assert_eq!(cache.contains(&key, NOW), outcome == Insert::Stored);
                let stats = cache.stats();
                assert!(stats.bytes + stats.garbage_bytes <= MAX, "{stats:?}");
                assert_eq!(census.bytes(), stats.bytes + stats.garbage_bytes);
                assert_eq!(stats.no_room, refused);
            }
            assert!(refused > 1_200, "{refused} were refused");
            assert!(cache.stats().garbage_bytes > 0);

            // Who was there has stayed, but for a few that had to leave before it was clear that
            // their room could not be had.
            let left = before.iter().filter(|key| cache.contains(*key, NOW)).count();
            assert!(left * 4 > before.len() * 3, "{left} of {} are left", before.len());
            refused
        });
        assert_eq!(cache.stats().no_room, refused);
        recovers(&cache, &census);
        assert_eq!(cache.stats().no_room, refused);
    }
}

#[test]
fn refused_stores_change_nothing_but_their_own_key() {
    let census = Census::default();
    let cache = full_cache(1, &census);
    while_held(&cache, || {
        let mut new = 10_000..;
        while store(&cache, &census, new.next().unwrap()) != Insert::NoRoom {}
        let before = keys(&cache);
        for _ in 0..1_000 {
            assert_eq!(store(&cache, &census, new.next().unwrap()), Insert::NoRoom);
        }
        assert_eq!(keys(&cache), before);
        for key in &before {
            assert_eq!(cache.get_with(key, NOW, Tracked::number), Some(*key));
        }

        // A value that is refused takes the older one at its key with it, and nothing else.
        let mut refused = 0;
        for (index, key) in before.iter().enumerate().filter(|(_, key)| **key != HELD) {
            let value = census.value(*key, WEIGHT);
            let outcome = cache.replace_if(*key, value, PLAIN, NOW, |present| present.is_some());
            assert_eq!(outcome, Replace::NoRoom);
            assert!(!cache.contains(key, NOW), "an older value survives");
            refused += 1;
            assert_eq!(keys(&cache).len(), before.len() - index - 1);
        }
        assert_eq!(refused, before.len() - 1);
        assert_eq!(keys(&cache), [HELD]);
        let stats = cache.stats();
        assert!(stats.bytes + stats.garbage_bytes <= MAX);
    });
    recovers(&cache, &census);
}

#[test]
fn where_entries_are_bounded_what_waits_is_bounded_as_well() {
    for shards in [1, 8] {
        let census = Census::default();
        let cache = Memory::builder().max_entries(200).shards(shards).build();
        for key in (0..200).chain([HELD]) {
            store(&cache, &census, key);
        }
        while_held(&cache, || {
            let mut refused = 0;
            for key in 10_000..12_000 {
                refused += u64::from(store(&cache, &census, key) == Insert::NoRoom);
                assert!(cache.stats().entries <= 200);
            }
            assert!(refused > 500, "{refused} were refused");
            assert_eq!(cache.stats().no_room, refused);
            assert!(census.values() < 200 + 8 * 200 * shards as u64, "values pile up");
            assert!(cache.len() > 100);
        });
        for key in 0..1_000 {
            assert_ne!(store(&cache, &census, key), Insert::NoRoom);
        }
        cache.sweep(NOW, usize::MAX);
        assert_eq!(census.values(), cache.stats().entries);
        cache.validate();
    }
}

#[test]
fn another_cache_is_not_affected() {
    let (census, elsewhere) = (Census::default(), Census::default());
    let (cache, other) = (full_cache(1, &census), full_cache(4, &elsewhere));
    while_held(&cache, || {
        while store(&cache, &census, Dice(7).roll(1 << 30)) != Insert::NoRoom {
            assert!(cache.remove_if(&Dice(7).roll(1 << 30), |_| true));
        }
        recovers(&other, &elsewhere);
        assert_eq!(other.stats().no_room, 0);
    });
    recovers(&cache, &census);
}

type Action = fn(&Memory<u64, Tracked>, &Census);

#[test]
fn what_is_held_is_dropped_when_it_is_let_go_and_not_before() {
    let actions: [Action; 6] = [
        |cache, _| assert!(cache.remove_if(&HELD, |_| true)),
        |cache, census| {
            let value = census.value(1, WEIGHT);
            assert_eq!(cache.insert(HELD, value, PLAIN, NOW), Insert::Replaced);
        },
        |cache, _| assert_eq!(cache.clear(), 3),
        |cache, _| assert_eq!(cache.retain(|key, _| *key != HELD), 1),
        |cache, census| {
            let too_large = census.value(HELD, MAX + 1);
            assert_eq!(cache.insert(HELD, too_large, PLAIN, NOW), Insert::TooLarge);
        },
        |cache, _| {
            cache.remove_space(0);
            assert!(!cache.contains(&HELD, NOW));
            assert_eq!(cache.sweep(NOW, usize::MAX).removed, 3);
        },
    ];
    for action in actions {
        let census = Census::default();
        let cache = weighed::<Tracked>(MAX, 4).build();
        for key in [1, 2, HELD] {
            assert_eq!(store(&cache, &census, key), Insert::Stored);
        }
        let waiting = while_held(&cache, || {
            action(&cache, &census);
            for _ in 0..100 {
                cache.sweep(NOW, usize::MAX);
            }
            let waiting = census.values() - cache.stats().entries;
            assert!(waiting > 0, "what is held was dropped");
            assert_eq!(cache.stats().garbage_bytes, waiting * WEIGHT);
            waiting
        });
        assert_eq!(census.values(), cache.stats().entries + waiting, "nothing has swept yet");
        cache.sweep(NOW, usize::MAX);
        assert_eq!(census.values(), cache.stats().entries);
        assert_eq!(cache.stats().garbage_bytes, 0);
        cache.validate();
    }
}

#[test]
fn what_began_later_does_not_wait_for_what_ended_earlier() {
    // A reader that begins after an entry has left does not keep it.
    let census = Census::default();
    let cache = weighed::<Tracked>(MAX, 1).build();
    for key in [1, HELD] {
        store(&cache, &census, key);
    }
    cache.remove_if(&1, |_| true);
    // Closes what waits, so that it is known when it left.
    cache.sweep(NOW, 1);
    while_held(&cache, || {
        cache.sweep(NOW, 1);
        assert_eq!(census.values(), 1);
    });
}

#[test]
fn the_listener_is_told_when_the_reader_lets_go() {
    let told = Arc::new(Counter::default());
    let listener = {
        let told = Arc::clone(&told);
        move |key: &u64, value: &Tracked, _| {
            assert_eq!(*key, value.number());
            told.add();
        }
    };
    let census = Census::default();
    let cache = weighed::<Tracked>(MAX, 4).listener(listener).build();
    for key in [1, HELD] {
        store(&cache, &census, key);
    }
    while_held(&cache, || {
        assert_eq!(cache.clear(), 2);
        assert_eq!(told.count(), 0);
    });
    cache.sweep(NOW, usize::MAX);
    assert_eq!((told.count(), census.values()), (2, 0));
}

#[test]
fn a_reader_may_store_in_the_cache_it_reads_from() {
    for shards in [1, 8] {
        let census = Census::default();
        let cache = full_cache(shards, &census);
        let nested = |value: &Tracked| {
            let mut refused = 0;
            for key in 10_000..12_000 {
                refused += u64::from(store(&cache, &census, key) == Insert::NoRoom);
                assert!(census.bytes() <= MAX + WEIGHT);
            }
            assert!(refused > 1_500, "{refused} were refused");
            // It is replaced, and removed, and stays what it is.
            assert_ne!(store(&cache, &census, HELD), Insert::TooLarge);
            cache.remove_if(&HELD, |_| true);
            let outcome = cache.compute(HELD, NOW, |present| {
                assert!(present.is_none());
                Compute::Keep
            });
            assert_eq!(outcome, Replace::Refused);
            cache.sweep(NOW, usize::MAX);
            value.number()
        };
        assert_eq!(cache.get_with(&HELD, NOW, nested), Some(HELD));
        recovers(&cache, &census);

        store(&cache, &census, HELD);
        assert_eq!(cache.peek_with(&HELD, NOW, |view| nested(view.value)), Some(HELD));
        recovers(&cache, &census);

        store(&cache, &census, HELD);
        let mut seen = Vec::new();
        cache.get_many(&[HELD, HELD], NOW, |index, value| seen.push((index, value.map(nested))));
        assert_eq!(seen, [(0, Some(HELD)), (1, None)]);
        recovers(&cache, &census);

        store(&cache, &census, HELD);
        let within = cache.get_with(&HELD, NOW, |value| {
            assert!(cache.clear() > 0);
            assert_eq!(cache.get_with(&HELD, NOW, |_| ()), None);
            value.number()
        });
        assert_eq!(within, Some(HELD));
        recovers(&cache, &census);
    }
}

#[test]
fn a_reader_may_store_from_within_a_read_within_a_read() {
    let census = Census::default();
    let cache = weighed::<Tracked>(MAX, 1).build();
    let deepest = (0..20_u64).fold(None, |_, depth| Some(nest(&cache, &census, depth)));
    assert_eq!(deepest, Some(HELD + 19));
    recovers(&cache, &census);
}

/// Each level holds a value that the next one replaces.
fn nest(cache: &Memory<u64, Tracked>, census: &Census, depth: u64) -> u64 {
    cache.insert(HELD, census.value(HELD + depth, WEIGHT), PLAIN, NOW);
    let number = cache.get_with(&HELD, NOW, |value| {
        if depth > 0 {
            nest(cache, census, depth - 1);
        }
        cache.sweep(NOW, usize::MAX);
        value.number()
    });
    number.expect("it was just stored")
}

#[test]
fn writers_and_short_readers_go_on_beside_one_that_holds_on() {
    let census = Census::default();
    let cache = full_cache(4, &census);
    let done = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    let rounds = count(1_000, 200_000);
    while_held(&cache, || {
        thread::scope(|scope| {
            let (cache, census, done, reads) = (&cache, &census, &done, &reads);
            for seed in [1, 2] {
                scope.spawn(move || {
                    let mut dice = Dice(seed);
                    while !done.load(Relaxed) || reads.load(Relaxed) == 0 {
                        let key = dice.roll(1_000);
                        if let Some(number) = cache.get_with(&key, NOW, Tracked::number) {
                            assert_eq!(number, key);
                            reads.fetch_add(1, Relaxed);
                        }
                    }
                });
            }
            let writers: Vec<_> = (3..6)
                .map(|seed| {
                    scope.spawn(move || {
                        let mut dice = Dice(seed);
                        for _ in 0..rounds {
                            store(cache, census, dice.roll(1_000));
                            // What each of three is about to store is not in the cache yet.
                            assert!(census.bytes() <= MAX + 3 * WEIGHT);
                        }
                    })
                })
                .collect();
            let results: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
            done.store(true, Relaxed);
            for result in results {
                result.unwrap();
            }
        });
    });
    recovers(&cache, &census);
}
