//! The hottest keys, among them cold ones, or dead ones.

use terrace_memory::{Attributes, Eviction, Memory, Tick};

use crate::{NOW, PLAIN};

fn read(cache: &Memory<u64, u64>, key: u64, times: u64) {
    for _ in 0..times {
        assert!(cache.get(&key, NOW).is_some());
    }
}

#[test]
fn those_that_were_read_most_come_first() {
    for eviction in [Eviction::Hybrid, Eviction::S3Fifo, Eviction::Sieve, Eviction::Lfu] {
        for shards in [1, 8] {
            let cache = Memory::<u64, u64>::builder().shards(shards).eviction(eviction).build();
            for key in 0..400 {
                cache.insert(key, key, PLAIN, NOW);
            }
            // Hundreds are cold, and each of the others was read once to three times.
            for key in 0..30 {
                read(&cache, key, 1 + key / 10);
            }
            let hottest = cache.hottest(30, NOW);
            let times: Vec<u64> = hottest.iter().map(|key| 1 + key / 10).collect();
            let expected: Vec<u64> = [[3; 10], [2; 10], [1; 10]].concat();
            assert_eq!(times, expected, "{eviction:?}, {shards} shards");
            assert_eq!(cache.hottest(10, NOW), hottest[..10]);
        }
    }
}

#[test]
fn those_that_were_read_last_come_first_where_time_is_what_counts() {
    let cache = Memory::<u64, u64>::builder().shards(1).eviction(Eviction::Lru).build();
    for key in 0..100 {
        cache.insert(key, key, PLAIN, NOW);
    }
    for key in [3, 1, 2] {
        read(&cache, key, 1);
        cache.insert(1_000 + key, 0, PLAIN, NOW);
    }
    let hottest = cache.hottest(6, NOW);
    let place = |key| hottest.iter().position(|found| *found == key).unwrap();
    assert!(place(2) < place(1) && place(1) < place(3));
}

#[test]
fn there_are_no_more_than_asked_for_and_no_more_than_there_are() {
    let cache = Memory::<u64, u64>::builder().shards(4).build();
    assert!(cache.hottest(10, NOW).is_empty());
    for key in 0..100 {
        cache.insert(key, key, PLAIN, NOW);
    }
    for limit in [0, 1, 99, 100, 101, usize::MAX] {
        let mut hottest = cache.hottest(limit, NOW);
        assert_eq!(hottest.len(), limit.min(100));
        hottest.sort_unstable();
        hottest.dedup();
        assert_eq!(hottest.len(), limit.min(100), "each key once");
        assert!(hottest.iter().all(|key| *key < 100));
    }
}

#[test]
fn what_is_dead_is_not_hot() {
    let cache = Memory::<u64, u64>::builder().build();
    for key in 0..90 {
        let expires = if key % 3 == 0 { Tick(10) } else { Tick::NEVER };
        cache.insert(key, key, Attributes { expires, space: key as u32 % 3, ..PLAIN }, NOW);
        read(&cache, key, 3);
    }
    assert_eq!(cache.hottest(1_000, NOW).len(), 90);
    assert!(cache.hottest(1_000, Tick(10)).iter().all(|key| key % 3 != 0));
    cache.remove_space(1);
    let mut left = cache.hottest(1_000, Tick(10));
    left.sort_unstable();
    assert!(left.into_iter().eq((0..90).filter(|key| key % 3 == 2)));
}

#[test]
fn looking_for_them_is_no_use_and_no_read() {
    let cache = Memory::<u64, u64>::builder().build();
    for key in 0..20 {
        cache.insert(key, key, PLAIN, NOW);
    }
    read(&cache, 7, 1);
    for _ in 0..10 {
        assert_eq!(cache.hottest(1, NOW), [7]);
    }
    read(&cache, 8, 2);
    assert_eq!(cache.hottest(2, NOW), [8, 7]);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses), (3, 0));
}
