//! A computation that is not one step, or does what it was not told to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use terrace_memory::{Attributes, Compute, Insert, Memory, Replace, Tick};

use crate::support::{Census, Tracked, count};
use crate::{NOW, PLAIN, weighed};

#[test]
fn it_stores_keeps_and_removes() {
    let cache = Memory::<u64, u64>::builder().build();
    let see = |expected: Option<u64>, then: Compute<u64>| {
        cache.compute(1, NOW, |present| {
            assert_eq!(present.map(|view| *view.value), expected);
            then
        })
    };
    assert_eq!(see(None, Compute::Keep), Replace::Refused);
    assert_eq!(see(None, Compute::Remove), Replace::Refused);
    assert_eq!(cache.len(), 0);
    assert_eq!(see(None, Compute::Store(1, PLAIN)), Replace::Stored);
    assert_eq!(see(Some(1), Compute::Keep), Replace::Refused);
    assert_eq!(cache.get(&1, NOW), Some(1));
    assert_eq!(see(Some(1), Compute::Store(2, PLAIN)), Replace::Replaced);
    assert_eq!(see(Some(2), Compute::Remove), Replace::Replaced);
    assert_eq!(cache.get(&1, NOW), None);
    let stats = cache.stats();
    assert_eq!((stats.inserts, stats.replaced, stats.removed, stats.entries), (2, 1, 1, 0));
    cache.validate();
}

#[test]
fn the_attributes_are_those_of_the_answer() {
    let cache = Memory::<u64, u64>::builder().build();
    let attributes = Attributes { expires: Tick(10), stamp: 3, space: 5, pinned: true, ..PLAIN };
    assert_eq!(cache.compute(1, NOW, |_| Compute::Store(1, attributes)), Replace::Stored);
    assert_eq!(cache.peek_with(&1, NOW, |view| view.attributes), Some(attributes));
    let outcome = cache.compute(1, NOW, |present| {
        let present = present.unwrap();
        let next = Attributes { stamp: present.attributes.stamp + 1, ..PLAIN };
        Compute::Store(present.value + 1, next)
    });
    assert_eq!(outcome, Replace::Replaced);
    assert_eq!(cache.peek_with(&1, NOW, |view| view.attributes.stamp), Some(4));
    assert_eq!(cache.get(&1, Tick(10)), Some(2), "it does not expire any more");
}

#[test]
fn what_is_dead_is_not_shown() {
    let cache = Memory::<u64, u64>::builder().build();
    cache.insert(1, 1, Attributes { expires: Tick(10), ..PLAIN }, NOW);
    let next = |present: Option<terrace_memory::View<'_, u64>>| {
        assert!(present.is_none());
        Compute::Store(2, PLAIN)
    };
    assert_eq!(cache.compute(1, Tick(10), next), Replace::Stored);
    assert_eq!(cache.stats().expired, 1);
    cache.insert(1, 1, Attributes { space: 3, ..PLAIN }, NOW);
    cache.remove_space(3);
    assert_eq!(cache.compute(1, NOW, next), Replace::Stored);
    assert_eq!(cache.get(&1, NOW), Some(2));

    // Nothing was there to be removed; all the same it takes no room any more.
    cache.insert(1, 1, Attributes { expires: Tick(10), ..PLAIN }, NOW);
    assert_eq!(cache.compute(1, Tick(10), |_| Compute::Remove), Replace::Refused);
    assert_eq!(cache.len(), 0);
    cache.validate();
}

#[test]
fn too_large_a_value_takes_the_old_one_with_it() {
    let cache = weighed::<u64>(10_000, 1).max_value_bytes(1_000).build();
    assert_eq!(cache.compute(1, NOW, |_| Compute::Store(1_000, PLAIN)), Replace::Stored);
    assert_eq!(cache.compute(1, NOW, |_| Compute::Store(1_001, PLAIN)), Replace::TooLarge);
    assert_eq!((cache.len(), cache.stats().rejected), (0, 1));
}

#[test]
fn computations_make_room_and_stay_within_it() {
    for shards in [1, 8] {
        let cache = weighed::<u64>(10_000, shards).build();
        for key in 0..1_000 {
            let outcome = cache.compute(key % 300, NOW, |present| {
                Compute::Store(present.map_or(100, |view| *view.value + 50), PLAIN)
            });
            assert!(matches!(outcome, Replace::Stored | Replace::Replaced));
            let stats = cache.stats();
            assert!(stats.bytes + stats.garbage_bytes <= 10_000);
        }
        cache.validate();
    }
}

#[test]
fn the_computation_is_one_step() {
    const THREADS: u64 = 4;
    const KEYS: u64 = 7;
    let rounds = count(20_000, 2_000_000);
    let cache = Memory::<u64, u64>::builder().shards(4).build();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let cache = &cache;
            scope.spawn(move || {
                for round in 0..rounds {
                    let outcome = cache.compute((thread + round) % KEYS, NOW, |present| {
                        Compute::Store(present.map_or(1, |view| *view.value + 1), PLAIN)
                    });
                    assert!(matches!(outcome, Replace::Stored | Replace::Replaced));
                }
            });
        }
    });
    let sum: u64 = (0..KEYS).map(|key| cache.get(&key, NOW).unwrap()).sum();
    assert_eq!(sum, THREADS * rounds, "an addition was lost");
    let stats = cache.stats();
    assert_eq!((stats.inserts, stats.replaced), (sum, sum - KEYS));
    cache.validate();
}

#[test]
fn a_token_is_taken_once() {
    // Threads remove what one has stored: each token goes to one of them.
    let tokens = count(5_000, 500_000);
    let cache = Memory::<u64, u64>::builder().shards(2).build();
    for token in 0..tokens {
        cache.insert(token, token, PLAIN, NOW);
    }
    let taken: u64 = thread::scope(|scope| {
        let takers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    (0..tokens)
                        .filter(|token| {
                            let outcome = cache.compute(*token, NOW, |_| Compute::Remove);
                            outcome == Replace::Replaced
                        })
                        .count() as u64
                })
            })
            .collect();
        takers.into_iter().map(|taker| taker.join().unwrap()).sum()
    });
    assert_eq!((taken, cache.len()), (tokens, 0));
}

#[test]
fn values_that_are_not_stored_are_dropped() {
    let census = Census::default();
    let cache = weighed::<Tracked>(10_000, 1).max_value_bytes(1_000).build();
    let compute =
        |weight| cache.compute(1, NOW, |_| Compute::Store(census.value(1, weight), PLAIN));
    assert_eq!(compute(1_000), Replace::Stored);
    assert_eq!(compute(900), Replace::Replaced);
    assert_eq!(compute(1_001), Replace::TooLarge);
    cache.sweep(NOW, 10);
    assert_eq!(census.values(), 0);
}

#[test]
fn a_computation_that_panics_changes_nothing() {
    let cache = weighed::<u64>(1_000, 1).build();
    for key in 0..5 {
        assert_eq!(cache.insert(key, 200, PLAIN, NOW), Insert::Stored);
    }
    for key in [0, 9] {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            cache.compute(key, NOW, |_| -> Compute<u64> { panic!("on purpose") })
        }));
        assert!(outcome.is_err());
        assert_eq!((cache.len(), cache.bytes()), (5, 1_000));
        assert_eq!(cache.get(&0, NOW), Some(200));
    }
    cache.validate();
}
