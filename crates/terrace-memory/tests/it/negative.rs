//! Entries that say that there is no value, and take the room of those that have one.

use terrace_memory::{Attributes, Builder, Eviction, Insert, Memory, Replace, Tick};

use crate::support::count;
use crate::{Dice, NOW, PLAIN, weighed};

const NEGATIVE: Attributes = Attributes { negative: true, ..PLAIN };
const MAX: u64 = 100_000;
const WEIGHT: u64 = 100;

/// The bytes of negative entries.
fn negative_bytes(cache: &Memory<u64, u64>) -> u64 {
    let mut bytes = 0;
    cache.for_each(NOW, |_, view| bytes += if view.attributes.negative { view.weight } else { 0 });
    bytes
}

#[test]
fn negative_entries_take_no_more_than_their_share() {
    for (percent, share) in [(0, 0), (1, 1), (10, 10), (50, 50), (100, 100), (255, 100)] {
        let cache = weighed::<u64>(MAX, 1).max_negative(percent).build();
        let quota = MAX / 100 * share;
        for key in 0..2 * MAX / WEIGHT {
            let is_within = (key + 1) * WEIGHT <= quota;
            let outcome = cache.insert(key, WEIGHT, NEGATIVE, NOW);
            if share < 100 {
                assert_eq!(outcome == Insert::Stored, is_within, "entry {key} with {percent} %");
                assert_eq!(outcome == Insert::NoRoom, !is_within);
            }
            assert!(negative_bytes(&cache) <= quota);
        }
        // A little is kept free of all entries, for what has left.
        assert!(negative_bytes(&cache) >= quota / 32 * 30);
        if share < 100 {
            assert_eq!(cache.stats().no_room, (2 * MAX - quota) / WEIGHT);
        }
        cache.validate();
    }
}

#[test]
fn the_share_is_ten_percent_unless_it_is_set() {
    let cache = weighed::<u64>(MAX, 1).build();
    for key in 0..1_000 {
        cache.insert(key, WEIGHT, NEGATIVE, NOW);
    }
    assert_eq!(negative_bytes(&cache), MAX / 10);
}

#[test]
fn where_entries_are_bounded_the_share_is_one_of_entries() {
    let cache = Memory::<u64, u64>::builder()
        .max_entries(1_000)
        .max_negative(20)
        .shards(1)
        .weigher(|_, value| *value)
        .build();
    for key in 0..1_000 {
        let outcome = cache.insert(key, key * 1_000, NEGATIVE, NOW);
        assert_eq!(outcome, if key < 200 { Insert::Stored } else { Insert::NoRoom });
    }
    assert_eq!(cache.len(), 200);
    cache.validate();
}

#[test]
fn a_flood_of_negative_entries_pushes_out_no_more_than_its_share() {
    for eviction in [Eviction::Hybrid, Eviction::S3Fifo, Eviction::Lru, Eviction::Lfu] {
        for shards in [1, 4] {
            let cache = weighed::<u64>(MAX, shards).eviction(eviction).build();
            for key in 0..2 * MAX / WEIGHT {
                cache.insert(key, WEIGHT, PLAIN, NOW);
            }
            let before = cache.stats().entries;
            let mut dice = Dice(11);
            let mut refused = 0;
            for _ in 0..20_000 {
                let key = (1 << 32) + dice.roll(1 << 32);
                refused += u64::from(cache.insert(key, WEIGHT, NEGATIVE, NOW) == Insert::NoRoom);
            }
            let mut others = 0;
            cache.for_each(NOW, |_, view| others += u64::from(!view.attributes.negative));
            assert!(others >= before - before / 8, "{others} of {before} are left: {eviction:?}");
            assert!(refused > 15_000, "{refused} were refused");
            assert!(negative_bytes(&cache) <= MAX / 10);
            cache.validate();
        }
    }
}

#[test]
fn the_share_is_free_again_when_negative_entries_leave() {
    let soon = Attributes { expires: Tick(10), space: 3, ..NEGATIVE };
    let actions: [fn(&Memory<u64, u64>); 7] = [
        |cache| assert_eq!(cache.clear(), 100),
        |cache| assert_eq!(cache.retain(|_, view| !view.attributes.negative), 100),
        |cache| assert_eq!(cache.sweep(Tick(10), usize::MAX).removed, 100),
        |cache| (0..100).for_each(|key| assert_eq!(cache.get(&key, Tick(10)), None)),
        |cache| (0..100).for_each(|key| assert!(cache.remove(&key).is_some())),
        |cache| {
            cache.remove_space(3);
            cache.sweep(NOW, usize::MAX);
        },
        |cache| {
            for key in 0..100 {
                assert_eq!(cache.insert(key, WEIGHT, PLAIN, NOW), Insert::Replaced);
            }
        },
    ];
    for action in actions {
        let cache = weighed::<u64>(MAX, 1).build();
        for key in 0..100 {
            assert_eq!(cache.insert(key, WEIGHT, soon, NOW), Insert::Stored);
        }
        assert_eq!(cache.insert(100, WEIGHT, soon, NOW), Insert::NoRoom);
        action(&cache);
        for key in 1_000..1_100 {
            assert_eq!(cache.insert(key, WEIGHT, soon, NOW), Insert::Stored);
        }
        assert_eq!(cache.insert(100, WEIGHT, soon, NOW), Insert::NoRoom);
        cache.validate();
    }
}

#[test]
fn evicted_negative_entries_free_their_share() {
    let cache = weighed::<u64>(MAX, 1).build();
    for round in 0..5 {
        for key in 0..100 {
            let key = round * 10_000 + key;
            assert_eq!(cache.insert(key, WEIGHT, NEGATIVE, NOW), Insert::Stored);
        }
        for key in 0..MAX / WEIGHT {
            cache.insert(round * 10_000 + 1_000 + key, WEIGHT, PLAIN, NOW);
        }
        assert_eq!(negative_bytes(&cache), 0, "they were used least recently");
    }
    cache.validate();
}

#[test]
fn a_negative_entry_that_is_too_many_takes_the_old_value_with_it() {
    // The value is known to be no more.
    let cache = weighed::<u64>(MAX, 1).max_negative(0).build();
    assert_eq!(cache.insert(1, WEIGHT, PLAIN, NOW), Insert::Stored);
    assert_eq!(cache.insert(1, WEIGHT, NEGATIVE, NOW), Insert::NoRoom);
    assert_eq!(cache.get(&1, NOW), None);
    assert_eq!(cache.insert(1, WEIGHT, PLAIN, NOW), Insert::Stored);
    assert_eq!(cache.replace_if(1, WEIGHT, NEGATIVE, NOW, |_| false), Replace::Refused);
    assert_eq!(cache.get(&1, NOW), Some(WEIGHT));
    assert_eq!(cache.replace_if(1, WEIGHT, NEGATIVE, NOW, |_| true), Replace::NoRoom);
    assert_eq!(cache.get(&1, NOW), None);
    assert_eq!((cache.stats().no_room, cache.stats().removed), (2, 2));
    cache.validate();
}

#[test]
fn others_may_take_the_whole_cache() {
    let fill = |builder: Builder<u64, u64>, attributes| {
        let cache = builder.build();
        for key in 0..10 * MAX / WEIGHT {
            cache.insert(key, WEIGHT, attributes, NOW);
        }
        cache.bytes()
    };
    for percent in [0, 10, 100] {
        let bytes = fill(weighed(MAX, 1).max_negative(percent), PLAIN);
        assert!(bytes > MAX / 32 * 30, "{bytes} bytes");
    }
}

#[test]
fn all_shards_have_one_share_together() {
    let cache = weighed::<u64>(MAX, 16).build();
    for key in 0..10_000 {
        cache.insert(key, WEIGHT, NEGATIVE, NOW);
    }
    assert!(negative_bytes(&cache) <= MAX / 10, "{}", negative_bytes(&cache));
    assert!(negative_bytes(&cache) > MAX / 11);
    cache.validate();
}

#[test]
fn where_the_share_is_taken_a_negative_entry_may_replace_another() {
    let cache = weighed::<u64>(MAX, 4).build();
    for key in 0..MAX / 10 / WEIGHT {
        assert_eq!(cache.insert(key, WEIGHT, NEGATIVE, NOW), Insert::Stored);
    }
    assert_eq!(cache.insert(1_000, WEIGHT, NEGATIVE, NOW), Insert::NoRoom);
    assert_eq!(cache.insert(3, WEIGHT, NEGATIVE, NOW), Insert::Replaced);
    assert_eq!(cache.insert(3, WEIGHT + 1, NEGATIVE, NOW), Insert::NoRoom);
    cache.validate();
}

#[test]
fn x18_a_flood_of_ids_that_do_not_exist_leaves_the_hot_set_alone() {
    const HOT: u64 = 10_000;
    let flood = count(100_000, 1_000_000);
    // What share of reads finds its entry, with so many random ids to each of them.
    let hits = |ids_to_a_read: u64| {
        let cache = Memory::<u64, u64>::builder().max_entries(HOT * 11 / 10).build();
        let mut dice = Dice(9);
        let mut read = |count: u64, ids: u64| {
            let mut hits = 0;
            for _ in 0..count {
                // Small numbers are asked for most.
                let key = dice.roll(HOT) * dice.roll(HOT) / HOT;
                if cache.get(&key, NOW).is_some() {
                    hits += 1;
                } else {
                    cache.insert(key, key, PLAIN, NOW);
                }
                for _ in 0..ids {
                    let id = HOT + dice.roll(u64::MAX - HOT);
                    if cache.get(&id, NOW).is_none() {
                        cache.insert(id, 0, NEGATIVE, NOW);
                    }
                }
            }
            hits as f64 / count as f64
        };
        read(10 * HOT, 0);
        let share = read(flood / 4, ids_to_a_read);
        cache.validate();
        share
    };
    let (calm, flooded) = (hits(0), hits(4));
    assert!(calm > 0.95, "{calm}");
    assert!(flooded >= calm - 0.01, "{flooded} with the flood, {calm} without");
}
