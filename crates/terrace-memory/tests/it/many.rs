//! Many keys at once, answered otherwise than one at a time.

use terrace_memory::{Attributes, Eviction, Memory, Tick};

use crate::{Dice, NOW, PLAIN};

/// What a read of many keys has found, by index.
fn many(cache: &Memory<u64, u64>, keys: &[u64], now: Tick) -> Vec<Option<u64>> {
    let mut found = Vec::new();
    cache.get_many(keys, now, |index, value| {
        assert_eq!(index, found.len(), "in order");
        found.push(value.copied());
    });
    assert_eq!(found.len(), keys.len(), "each key is answered");
    found
}

#[test]
fn many_are_found_as_one_is() {
    let mut dice = Dice(3);
    for shards in [1, 8] {
        let cache = Memory::<u64, u64>::builder().shards(shards).build();
        for key in 0..500 {
            // Some expire, some are of a space that is removed, some expire when not read.
            let attributes = Attributes {
                expires: if key % 5 == 0 { Tick(100) } else { Tick::NEVER },
                space: key as u32 % 7,
                idle: (key % 11 == 0).then(|| std::time::Duration::from_millis(150)),
                ..PLAIN
            };
            cache.insert(key, key * 3, attributes, NOW);
        }
        cache.remove_space(3);
        for count in (0..40).chain([100, 1_000]) {
            let now = Tick(dice.roll(200));
            let keys: Vec<u64> = (0..count).map(|_| dice.roll(1_000)).collect();
            let one_by_one: Vec<_> =
                keys.iter().map(|key| cache.peek_with(key, now, |view| *view.value)).collect();
            assert_eq!(many(&cache, &keys, now), one_by_one);
            let by_get: Vec<_> = keys.iter().map(|key| cache.get(key, now)).collect();
            assert_eq!(many(&cache, &keys, now), by_get);
        }
        cache.validate();
    }
}

#[test]
fn duplicates_are_answered_each() {
    let cache = Memory::<u64, u64>::builder().build();
    cache.insert(1, 10, PLAIN, NOW);
    assert_eq!(many(&cache, &[1; 50], NOW), [Some(10); 50]);
    assert_eq!(many(&cache, &[2; 50], NOW), [None; 50]);
    assert_eq!(many(&cache, &[2, 1, 2, 1, 1], NOW), [None, Some(10), None, Some(10), Some(10)]);
}

#[test]
fn no_key_is_no_call() {
    let cache = Memory::<u64, u64>::builder().build();
    cache.insert(1, 1, PLAIN, NOW);
    cache.get_many::<u64>(&[], NOW, |_, _| panic!("there is no key"));
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses), (0, 0));
}

#[test]
fn an_empty_cache_and_one_that_was_cleared_have_nothing() {
    let cache = Memory::<u64, u64>::builder().build();
    let keys: Vec<u64> = (0..100).collect();
    assert_eq!(many(&cache, &keys, NOW), vec![None; 100]);
    for key in &keys {
        cache.insert(*key, *key, PLAIN, NOW);
    }
    cache.clear();
    assert_eq!(many(&cache, &keys, NOW), vec![None; 100]);
}

#[test]
fn each_key_is_counted() {
    let cache = Memory::<u64, u64>::builder().build();
    for key in 0..50 {
        cache.insert(key, key, Attributes { expires: Tick(10 + key), ..PLAIN }, NOW);
    }
    let keys: Vec<u64> = (0..100).chain(0..10).collect();
    many(&cache, &keys, NOW);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses), (60, 50));
    // Of the first fifty, those before the twentieth have expired.
    many(&cache, &keys, Tick(29));
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses), (90, 130));
}

#[test]
fn each_is_a_use() {
    let room = 10;
    let cache =
        Memory::<u64, u64>::builder().max_entries(room).shards(1).eviction(Eviction::Lru).build();
    for key in 0..room {
        cache.insert(key, key, PLAIN, NOW);
    }
    many(&cache, &[0, 1, 2], NOW);
    for key in 0..7 {
        cache.insert(100 + key, key, PLAIN, NOW);
    }
    assert!((0..3).all(|key| cache.contains(&key, NOW)));
    assert!((3..10).all(|key| !cache.contains(&key, NOW)));
}

#[test]
fn keys_may_be_borrowed() {
    let cache = Memory::<String, u64>::builder().build();
    cache.insert("a".to_owned(), 1, PLAIN, NOW);
    let mut found = Vec::new();
    cache.get_many(&["a".to_owned(), "b".to_owned()], NOW, |_, value| found.push(value.copied()));
    assert_eq!(found, [Some(1), None]);
}
