//! Pinned entries that are evicted all the same, or that stay when they should go.

use std::thread;

use terrace_memory::{Attributes, Compute, Eviction, Insert, Memory, Replace, Tick};

use crate::{Dice, EVERY, NOW, PLAIN, weighed};

const PINNED: Attributes = Attributes { pinned: true, ..PLAIN };

#[test]
fn what_is_pinned_is_never_evicted() {
    for eviction in EVERY {
        for shards in [1, 4] {
            let cache = weighed::<u64>(20_000, shards).eviction(eviction).build();
            for key in 0..20 {
                assert_eq!(cache.insert(key, 200, PINNED, NOW), Insert::Stored);
            }
            let mut dice = Dice(5);
            for _ in 0..5_000 {
                let key = 100 + dice.roll(1_000);
                cache.get(&key, NOW);
                cache.insert(key, 100 + dice.roll(1_000), PLAIN, NOW);
                assert!(cache.bytes() <= 20_000);
            }
            for key in 0..20 {
                assert!(cache.contains(&key, NOW), "{eviction:?} has evicted a pinned entry");
            }
            cache.validate();
        }
    }
}

#[test]
fn where_all_is_pinned_nothing_more_is_stored() {
    for eviction in EVERY {
        let cache = weighed::<u64>(2_000, 1).eviction(eviction).build();
        for key in 0..10 {
            assert_eq!(cache.insert(key, 200, PINNED, NOW), Insert::Stored);
        }
        for attributes in [PLAIN, PINNED] {
            assert_eq!(cache.insert(100, 200, attributes, NOW), Insert::NoRoom);
            let outcome = cache.replace_if(100, 200, attributes, NOW, |_| true);
            assert_eq!(outcome, Replace::NoRoom);
            let outcome = cache.compute(100, NOW, |_| Compute::Store(200, attributes));
            assert_eq!(outcome, Replace::NoRoom);
        }
        let stats = cache.stats();
        assert_eq!((stats.no_room, stats.evicted, stats.entries), (6, 0, 10));

        // One in place of another needs no room, and one less makes room for one more.
        assert_eq!(cache.insert(3, 200, PINNED, NOW), Insert::Replaced);
        assert!(cache.remove_if(&4, |_| true));
        assert_eq!(cache.insert(100, 200, PLAIN, NOW), Insert::Stored);
        assert_eq!(cache.insert(101, 200, PLAIN, NOW), Insert::Stored);
        assert!(!cache.contains(&100, NOW) && cache.contains(&101, NOW));
        cache.validate();
    }
}

#[test]
fn a_value_that_finds_no_room_takes_the_old_one_with_it() {
    let cache = weighed::<u64>(2_000, 1).build();
    for key in 0..10 {
        cache.insert(key, 200, PINNED, NOW);
    }
    assert_eq!(cache.insert(3, 201, PINNED, NOW), Insert::NoRoom);
    assert!(!cache.contains(&3, NOW));
    assert_eq!((cache.len(), cache.bytes()), (9, 1_800));
    cache.validate();
}

#[test]
fn what_replaces_a_pinned_entry_need_not_be_pinned() {
    let cache = weighed::<u64>(1_000, 1).build();
    let is_pinned = |key| cache.peek_with(&key, NOW, |view| view.attributes.pinned);
    cache.insert(1, 200, PINNED, NOW);
    assert_eq!(is_pinned(1), Some(true));
    cache.insert(1, 200, PLAIN, NOW);
    assert_eq!(is_pinned(1), Some(false));
    for key in 2..10 {
        assert_eq!(cache.insert(key, 200, PLAIN, NOW), Insert::Stored);
    }
    assert!(!cache.contains(&1, NOW));

    // An entry that is spared while room is made for what replaces it is pinned no longer.
    assert_eq!(cache.insert(9, 600, PLAIN, NOW), Insert::Replaced);
    assert_eq!(is_pinned(9), Some(false));
    assert_eq!(cache.insert(10, 1_000, PLAIN, NOW), Insert::Stored);
    assert_eq!(cache.len(), 1);
    cache.validate();
}

#[test]
fn the_entry_that_was_spared_is_not_left_pinned_when_it_stays() {
    // The closure says no after all other things have been tried: nothing is changed.
    let cache = weighed::<u64>(1_000, 1).build();
    for key in 0..5 {
        cache.insert(key, 200, PLAIN, NOW);
    }
    assert_eq!(cache.replace_if(0, 900, PLAIN, NOW, |_| false), Replace::Refused);
    for key in 5..10 {
        assert_eq!(cache.insert(key, 200, PLAIN, NOW), Insert::Stored);
    }
    assert!(!cache.contains(&0, NOW));
}

#[test]
fn what_is_pinned_expires_and_can_be_removed() {
    let until = Attributes { expires: Tick(10), space: 7, ..PINNED };
    let fill = || {
        let cache = weighed::<u64>(1_000, 1).build();
        for key in 0..5 {
            cache.insert(key, 200, until, NOW);
        }
        cache
    };
    let actions: [fn(&Memory<u64, u64>); 7] = [
        |cache| assert!((0..5).all(|key| cache.get(&key, Tick(10)).is_none())),
        |cache| assert_eq!(cache.sweep(Tick(10), usize::MAX).removed, 5),
        |cache| assert!((0..5).all(|key| cache.remove(&key).is_some())),
        |cache| assert_eq!(cache.retain(|_, _| false), 5),
        |cache| assert_eq!(cache.clear(), 5),
        |cache| {
            cache.remove_space(7);
            assert_eq!(cache.sweep(NOW, usize::MAX).removed, 5);
        },
        |cache| {
            for key in 0..5 {
                assert_eq!(cache.compute(key, NOW, |_| Compute::<u64>::Remove), Replace::Replaced);
            }
        },
    ];
    for action in actions {
        let cache = fill();
        assert_eq!(cache.insert(100, 1_000, PLAIN, NOW), Insert::NoRoom);
        action(&cache);
        assert_eq!(cache.len(), 0);
        assert_eq!(cache.insert(100, 1_000, PLAIN, NOW), Insert::Stored);
        cache.validate();
    }
}

#[test]
fn other_shards_give_up_nothing_that_is_pinned() {
    let cache = weighed::<u64>(10_000, 16).build();
    for key in 0..45 {
        assert_eq!(cache.insert(key, 200, PINNED, NOW), Insert::Stored);
    }
    for key in 100..2_000 {
        assert_eq!(cache.insert(key, 5_000, PLAIN, NOW), Insert::NoRoom);
        assert_ne!(cache.insert(key, 100, PLAIN, NOW), Insert::TooLarge);
    }
    assert!((0..45).all(|key| cache.contains(&key, NOW)));
    assert_eq!(cache.stats().evicted + cache.stats().entries, cache.stats().inserts);
    cache.validate();
}

#[test]
fn threads_evict_nothing_that_is_pinned() {
    let cache = weighed::<u64>(20_000, 4).eviction(Eviction::Hybrid).build();
    for key in 0..20 {
        cache.insert(key, 200, PINNED, NOW);
    }
    thread::scope(|scope| {
        for seed in 1..=4 {
            let cache = &cache;
            scope.spawn(move || {
                let mut dice = Dice(seed);
                // Each has pinned keys of its own: what it stored there can only be evicted.
                let own = |dice: &mut Dice| 4 * dice.roll(5) + seed - 1;
                for _ in 0..5_000 {
                    if dice.roll(25) == 0 {
                        let key = own(&mut dice);
                        let weight = 150 + dice.roll(100);
                        // A reader that is held up can be in the way: then the key has no value.
                        while cache.insert(key, weight, PINNED, NOW) == Insert::NoRoom {
                            thread::yield_now();
                        }
                    } else {
                        cache.insert(20 + dice.roll(480), 100 + dice.roll(1_000), PLAIN, NOW);
                    }
                    let pinned = own(&mut dice);
                    assert!(cache.get(&pinned, NOW).is_some(), "{pinned} was evicted");
                }
            });
        }
    });
    cache.validate();
}

#[test]
fn what_is_pinned_and_has_expired_makes_room() {
    for shards in [1, 4] {
        for eviction in EVERY {
            let cache = weighed::<u64>(1_000, shards).eviction(eviction).build();
            let attributes = Attributes { expires: Tick(5), ..PINNED };
            assert_eq!(cache.insert(1, 1_000, attributes, NOW), Insert::Stored);
            assert_eq!(cache.insert(2, 1_000, PLAIN, Tick(4)), Insert::NoRoom, "{eviction:?}");
            assert_eq!(cache.insert(2, 1_000, PLAIN, Tick(5)), Insert::Stored, "{eviction:?}");
            cache.validate();
        }
    }
}
