//! Entries beyond the bound: their number is limited, alone and together with their bytes.

use std::sync::Barrier;
use std::thread;

use terrace_memory::{Builder, Eviction, Insert, Memory};

use crate::support::count;
use crate::{Dice, EVERY, NOW, PLAIN, weighed};

/// The number of entries that can be found; unlike `len`, it does not know the bound.
fn found(cache: &Memory<u64, u64>) -> u64 {
    let mut found = 0;
    cache.for_each(NOW, |_, _| found += 1);
    assert_eq!(found, cache.stats().entries);
    found
}

fn by_entries(max: u64, shards: usize) -> Builder<u64, u64> {
    Memory::builder().max_entries(max).shards(shards)
}

#[test]
fn there_are_never_more_entries_than_there_may_be() {
    for eviction in EVERY {
        for (shards, max) in [(1, 1), (1, 100), (8, 100), (64, 100), (64, 1_000)] {
            let cache = by_entries(max, shards).eviction(eviction).build();
            for key in 0..4 * max {
                assert_eq!(cache.insert(key, key, PLAIN, NOW), Insert::Stored);
                assert_eq!(cache.get(&key, NOW), Some(key), "the newest is there");
                if key % 16 == 0 {
                    assert!(found(&cache) <= max);
                }
            }
            assert!(found(&cache) <= max);
            assert!(cache.len() as u64 <= max);
            assert_eq!(cache.max_entries(), max);
            cache.validate();
        }
    }
}

#[test]
fn one_shard_holds_as_many_as_there_may_be() {
    for eviction in EVERY {
        let cache = by_entries(100, 1).eviction(eviction).build();
        for key in 0..1_000 {
            cache.insert(key, key, PLAIN, NOW);
            assert_eq!(found(&cache), (key + 1).min(100));
        }
        assert_eq!(cache.stats().evicted, 900);
    }
}

#[test]
fn a_replaced_entry_takes_no_more_room() {
    let cache = by_entries(100, 1).build();
    for round in 0..10 {
        for key in 0..100 {
            cache.insert(key, round, PLAIN, NOW);
        }
    }
    let stats = cache.stats();
    assert_eq!((stats.entries, stats.evicted, stats.replaced), (100, 0, 900));
    cache.validate();
}

#[test]
fn a_cache_for_no_entries_holds_none() {
    for shards in [1, 8] {
        let cache = by_entries(0, shards).build();
        assert_eq!(cache.insert(1, 1, PLAIN, NOW), Insert::NoRoom);
        assert_eq!(cache.stats().no_room, 1);
        assert!(cache.is_empty());
        cache.validate();
    }
}

#[test]
fn values_of_any_weight_are_stored_when_only_entries_are_bounded() {
    let cache = by_entries(10, 4).weigher(|_, value| *value).build();
    for weight in [0, 1 << 10, 1 << 20, (1 << 29) - 1 - Memory::<u64, u64>::OVERHEAD] {
        assert_eq!(cache.insert(weight, weight, PLAIN, NOW), Insert::Stored);
    }
    assert_eq!(cache.insert(7, 1 << 29, PLAIN, NOW), Insert::TooLarge);
    let overheads = 3 * Memory::<u64, u64>::OVERHEAD;
    assert_eq!(cache.bytes(), (1 << 29) - 1 + (1 << 20) + (1 << 10) + overheads);
}

#[test]
fn both_bounds_hold() {
    const MAX: u64 = 50_000;
    for shards in [1, 8] {
        let cache = weighed::<u64>(MAX, shards).max_entries(100).build();
        let mut dice = Dice(3);
        let (mut most_entries, mut most_bytes) = (0, 0);
        for round in 0..4_000 {
            // Now the entries are what there is too much of, now the bytes.
            let weight = if round / 500 % 2 == 0 { 100 } else { 1_000 + dice.roll(1_000) };
            assert_ne!(cache.insert(dice.roll(1_000), weight, PLAIN, NOW), Insert::NoRoom);
            let stats = cache.stats();
            assert!(stats.entries <= 100 && stats.bytes + stats.garbage_bytes <= MAX, "{stats:?}");
            (most_entries, most_bytes) =
                (stats.entries.max(most_entries), stats.bytes.max(most_bytes));
        }
        assert!(most_entries > 90, "{most_entries} entries at most");
        assert!(most_bytes > MAX / 4 * 3, "{most_bytes} bytes at most");
        cache.validate();
    }
}

#[test]
fn a_value_as_large_as_the_limit_is_stored_alone() {
    const MAX: u64 = 50_000;
    for shards in [1, 64] {
        let cache = weighed::<u64>(MAX, shards).max_entries(100).build();
        for round in 0..20 {
            for key in 0..100 {
                assert_eq!(cache.insert(key, 400, PLAIN, NOW), Insert::Stored, "{shards}");
            }
            assert_eq!(cache.insert(1_000 + round, MAX, PLAIN, NOW), Insert::Stored);
            assert_eq!(cache.insert(1_000 + round, MAX, PLAIN, NOW), Insert::Replaced);
            assert_eq!((found(&cache), cache.bytes()), (1, MAX));
            assert_eq!(cache.insert(1_000 + round, MAX + 1, PLAIN, NOW), Insert::TooLarge);
            assert_eq!((found(&cache), cache.bytes()), (0, 0));
            cache.validate();
        }
    }
}

#[test]
fn shards_lend_each_other_what_they_do_not_need() {
    // What one shard has borrowed and then let go of is for all others.
    for shards in [8, 64] {
        let cache = by_entries(128, shards).build();
        for round in 0..20 {
            for key in 0..128 {
                assert_eq!(cache.insert(round * 128 + key, key, PLAIN, NOW), Insert::Stored);
            }
            assert!(found(&cache) > 1);
            let keep = round * 128 + 127;
            cache.retain(|key, _| *key == keep);
            assert_eq!(cache.get(&keep, NOW), Some(127));
        }
        cache.validate();
        cache.clear();
        cache.validate();
    }
}

#[test]
fn many_threads_stay_within_the_number_of_entries() {
    let rounds = count(20, 2_000);
    for shards in [1, 4, 64] {
        for max_bytes in [u64::MAX, 40_000] {
            let cache = weighed::<u64>(max_bytes, shards).max_entries(200).build();
            let meet = Barrier::new(4);
            thread::scope(|scope| {
                for seed in 1..=4 {
                    let (cache, meet) = (&cache, &meet);
                    scope.spawn(move || {
                        let mut dice = Dice(seed);
                        for _ in 0..rounds {
                            for _ in 0..200 {
                                let key = dice.roll(2_000);
                                cache.insert(key, 100 + dice.roll(400), PLAIN, NOW);
                                cache.get(&dice.roll(2_000), NOW);
                                if dice.roll(20) == 0 {
                                    cache.remove(&dice.roll(2_000));
                                }
                                if shards == 1 {
                                    let mut entries = 0;
                                    cache.for_each(NOW, |_, _| entries += 1);
                                    assert!(entries <= 200, "{entries} entries");
                                }
                            }
                            // Nobody stores while somebody counts.
                            if meet.wait().is_leader() {
                                assert!(found(cache) <= 200);
                            }
                            meet.wait();
                        }
                    });
                }
            });
            assert!(found(&cache) > 20);
            cache.validate();
        }
    }
}

#[test]
fn what_is_read_all_the_time_stays_whichever_bound_is_reached() {
    for (max_bytes, max_entries) in [(1 << 30, 100), (100 * 200, u64::MAX), (100 * 200, 100)] {
        for eviction in [Eviction::Hybrid, Eviction::S3Fifo, Eviction::Sieve, Eviction::Lru] {
            let cache = weighed::<u64>(max_bytes, 1).max_entries(max_entries).eviction(eviction);
            let cache = cache.build();
            for key in 0..2_000 {
                cache.insert(key, 200, PLAIN, NOW);
                assert!(cache.get(&0, NOW).is_some(), "{eviction:?} at {key} within {max_bytes}");
            }
            assert!(cache.len() >= 90, "{} entries", cache.len());
        }
    }
}
