//! Each method does what it says, one at a time.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use terrace_memory::{Attributes, Cause, Insert, Memory, Replace, Tick};

use crate::{Counter, NOW, PLAIN, weighed};

#[test]
fn keys_are_looked_up_by_what_is_equivalent() {
    let cache = Memory::<String, u32>::builder().build();
    assert_eq!(cache.insert("key".to_owned(), 1, PLAIN, NOW), Insert::Stored);
    assert_eq!(cache.insert("key".to_owned(), 2, PLAIN, NOW), Insert::Replaced);
    assert_eq!(cache.get("key", NOW), Some(2));
    assert_eq!(cache.get(&"key".to_owned(), NOW), Some(2));
    assert_eq!(cache.remove("key"), Some(2));
    assert_eq!(cache.get("key", NOW), None);
    assert_eq!((cache.len(), cache.bytes(), cache.is_empty()), (0, 0, true));
}

#[test]
fn a_view_shows_the_whole_entry() {
    let cache = weighed::<u64>(10_000, 1).build();
    let attributes = Attributes {
        expires: Tick(9),
        idle: Some(Duration::from_millis(5)),
        stamp: 8,
        space: 7,
        pinned: true,
        negative: true,
    };
    cache.insert(1, 500, attributes, NOW);
    let seen = cache.peek_with(&1, NOW, |view| (*view.value, view.attributes, view.weight));
    assert_eq!(seen, Some((500, attributes, 500)));
    assert_eq!(cache.peek_with(&1, NOW, |view| view.attributes.stamp), Some(8));
    assert_eq!(cache.bytes(), 500);
}

#[test]
fn an_entry_is_charged_its_overhead() {
    let cache = Memory::<u64, u64>::builder().build();
    cache.insert(1, 1, PLAIN, NOW);
    assert_eq!(cache.bytes(), 16 + Memory::<u64, u64>::OVERHEAD);
    // A slot has 16 bytes besides the two integers.
    assert!((16..=48).contains(&Memory::<u64, u64>::OVERHEAD));
}

#[test]
fn reads_count_as_use_and_peeks_do_not() {
    let cache = weighed::<u64>(2_000, 1).build();
    for read in [true, false] {
        cache.clear();
        cache.insert(1, 1_000, PLAIN, NOW);
        cache.insert(2, 1_000, PLAIN, NOW);
        if read {
            cache.get(&1, NOW);
        } else {
            cache.peek_with(&1, NOW, |_| ());
            cache.contains(&1, NOW);
            cache.set_expires(&1, Tick::NEVER, NOW);
            cache.for_each(NOW, |_, _| ());
        }
        cache.insert(3, 1_000, PLAIN, NOW);
        assert_eq!(cache.contains(&1, NOW), read);
        assert_eq!(cache.contains(&2, NOW), !read);
    }
}

#[test]
fn too_large_a_value_takes_the_old_one_with_it() {
    let cache = weighed::<u64>(10_000, 4).max_value_bytes(1_000).build();
    assert_eq!(cache.insert(1, 1_000, PLAIN, NOW), Insert::Stored);
    assert_eq!(cache.insert(1, 1_001, PLAIN, NOW), Insert::TooLarge);
    assert!(!cache.contains(&1, NOW));
    assert_eq!(cache.bytes(), 0);

    assert_eq!(cache.insert(1, 1_000, PLAIN, NOW), Insert::Stored);
    assert_eq!(cache.replace_if(1, 1_001, PLAIN, NOW, |_| false), Replace::Refused);
    assert!(cache.contains(&1, NOW));
    assert_eq!(cache.replace_if(1, 1_001, PLAIN, NOW, |_| true), Replace::TooLarge);
    assert!(!cache.contains(&1, NOW));

    let stats = cache.stats();
    assert_eq!((stats.rejected, stats.removed, stats.refused, stats.replaced), (2, 2, 1, 0));
}

#[test]
fn a_value_may_fill_the_whole_cache() {
    // It does not fit beside its predecessor, nor into one part in 64 of the room.
    let cache = weighed::<u64>(10_000, 64).build();
    for _ in 0..3 {
        cache.insert(1, 10_000, PLAIN, NOW);
        assert_eq!((cache.len(), cache.bytes()), (1, 10_000));
    }
    for key in 0..1_000 {
        assert_eq!(cache.insert(key, 200, PLAIN, NOW), Insert::Stored);
        cache.validate();
    }
    assert_eq!(cache.insert(2_000, 10_000, PLAIN, NOW), Insert::Stored);
    assert_eq!((cache.len(), cache.peak_bytes()), (1, 10_000));
    cache.validate();
}

#[test]
fn without_room_nothing_is_stored() {
    let cache = Memory::<u64, u64>::builder().max_bytes(0).build();
    assert_eq!(cache.insert(1, 1, PLAIN, NOW), Insert::TooLarge);
    assert_eq!(cache.replace_if(1, 1, PLAIN, NOW, |_| true), Replace::TooLarge);
    assert!(cache.is_empty());
    cache.validate();
}

#[test]
fn a_weight_beyond_all_numbers_is_too_large() {
    let builders = [
        Memory::<u64, u64>::builder(),
        Memory::<u64, u64>::builder().max_bytes(u64::MAX).max_value_bytes(u64::MAX),
        Memory::<u64, u64>::builder().max_entries(10),
    ];
    for builder in builders {
        let cache = builder.weigher(|_, _| u64::MAX).build();
        assert_eq!(cache.insert(1, 1, PLAIN, NOW), Insert::TooLarge);
        cache.validate();
    }
}

#[test]
fn a_refused_value_evicts_nothing() {
    let cache = weighed::<u64>(2_000, 1).build();
    cache.insert(1, 1_000, PLAIN, NOW);
    cache.insert(2, 1_000, PLAIN, NOW);
    assert_eq!(cache.replace_if(3, 2_000, PLAIN, NOW, |_| false), Replace::Refused);
    assert_eq!(cache.replace_if(1, 2_000, PLAIN, NOW, |_| false), Replace::Refused);
    assert_eq!((cache.len(), cache.bytes()), (2, 2_000));
}

#[test]
fn making_room_spares_the_entry_in_question() {
    // Entry 1 is the oldest; the value that replaces it needs the room of another.
    let cache = weighed::<u64>(2_000, 1).build();
    cache.insert(1, 1_000, Attributes { stamp: 5, ..PLAIN }, NOW);
    cache.insert(2, 1_000, PLAIN, NOW);
    let outcome = cache.replace_if(1, 1_500, PLAIN, NOW, |present| {
        assert_eq!(present.map(|view| view.attributes.stamp), Some(5));
        true
    });
    assert_eq!(outcome, Replace::Replaced);
    assert!(cache.contains(&1, NOW) && !cache.contains(&2, NOW));
    assert_eq!(cache.bytes(), 1_500);
}

#[test]
fn a_smaller_value_needs_no_room() {
    let cache = weighed::<u64>(2_000, 1).build();
    cache.insert(1, 1_000, PLAIN, NOW);
    cache.insert(2, 1_000, PLAIN, NOW);
    cache.insert(1, 600, PLAIN, NOW);
    assert_eq!((cache.len(), cache.bytes()), (2, 1_600));
    cache.validate();
}

#[test]
fn remove_if_asks_first() {
    let cache = weighed::<u64>(2_000, 1).build();
    cache.insert(1, 1_000, PLAIN, NOW);
    assert!(!cache.remove_if(&1, |view| *view.value != 1_000));
    assert!(cache.contains(&1, NOW));
    assert!(cache.remove_if(&1, |view| *view.value == 1_000));
    assert!(!cache.remove_if(&1, |_| panic!("there is nothing to ask about")));
    cache.validate();
}

#[test]
fn a_space_is_removed_as_one() {
    let cache = Memory::<u64, u64>::builder().build();
    for key in 0..300 {
        cache.insert(key, key, Attributes { space: (key % 3) as u32, ..PLAIN }, NOW);
    }
    cache.remove_space(1);
    assert_eq!(cache.get(&1, NOW), None);
    assert_eq!(cache.get(&0, NOW), Some(0));
    assert_eq!((cache.len(), cache.stats().removed), (299, 1), "the others wait");
    assert_eq!(cache.sweep(NOW, usize::MAX).removed, 99);
    cache.remove_space(1);
    assert_eq!(cache.sweep(NOW, usize::MAX).removed, 0);
    cache.for_each(NOW, |key, view| {
        assert_ne!(key % 3, 1);
        assert_eq!(view.attributes.space, (key % 3) as u32);
    });
    cache.validate();
    assert_eq!(cache.retain(|key, _| key % 3 == 0), 100);
    assert_eq!(cache.clear(), 100);
    assert_eq!((cache.len(), cache.bytes(), cache.stats().removed), (0, 0, 300));
    cache.validate();
}

#[test]
fn a_cleared_cache_can_be_filled_again() {
    let cache = weighed::<u64>(10_000, 1).build();
    for _ in 0..3 {
        for key in 0..50 {
            cache.insert(key, 200, PLAIN, NOW);
        }
        cache.validate();
        assert_eq!(cache.clear(), cache.stats().inserts.min(50));
        cache.validate();
    }
}

#[test]
fn the_listener_is_told_of_each_entry_and_its_cause() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let cache = weighed::<u64>(2_000, 1)
        .listener({
            let told = Arc::clone(&told);
            move |key, value, cause| told.lock().unwrap().push((*key, *value, cause))
        })
        .build();
    let expect = |expected: &[(u64, u64, Cause)]| {
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()), expected);
    };

    cache.insert(1, 1_000, PLAIN, NOW);
    expect(&[]);
    cache.insert(1, 900, PLAIN, NOW);
    expect(&[(1, 1_000, Cause::Replaced)]);
    cache.insert(2, 2_000, PLAIN, NOW);
    expect(&[(1, 900, Cause::Evicted)]);
    cache.insert(2, 2_001, PLAIN, NOW);
    expect(&[(2, 2_000, Cause::Removed)]);
    cache.insert(3, 1_000, PLAIN, NOW);
    cache.remove(&3);
    expect(&[(3, 1_000, Cause::Removed)]);
    cache.insert(4, 1_000, Attributes { expires: Tick(5), ..PLAIN }, NOW);
    assert_eq!(cache.get(&4, Tick(5)), None);
    expect(&[(4, 1_000, Cause::Expired)]);
    cache.insert(5, 1_000, PLAIN, NOW);
    cache.clear();
    expect(&[(5, 1_000, Cause::Removed)]);
    drop(cache);
    expect(&[]);
}

#[test]
fn a_value_is_weighed_once() {
    let weighed = Arc::new(Counter::default());
    let cache = Memory::<u64, u64>::builder()
        .weigher({
            let weighed = Arc::clone(&weighed);
            move |_, _| {
                weighed.add();
                16
            }
        })
        .build();
    cache.insert(1, 1, PLAIN, NOW);
    cache.insert(1, 1, PLAIN, NOW);
    assert_eq!(cache.replace_if(1, 1, PLAIN, NOW, |_| false), Replace::Refused);
    cache.get(&1, NOW);
    cache.clear();
    assert_eq!(weighed.count(), 3);
}

thread_local! {
    static INNER: Cell<Option<Arc<Memory<u64, Nested>>>> = const { Cell::new(None) };
}

/// A value that uses the cache when it is dropped.
struct Nested;

impl Drop for Nested {
    fn drop(&mut self) {
        if let Some(cache) = INNER.take() {
            cache.clear();
            cache.insert(99, Self, PLAIN, NOW);
        }
    }
}

#[test]
fn a_drop_may_use_the_cache() {
    let cache = Arc::new(Memory::<u64, Nested>::builder().shards(1).build());
    let actions: [fn(&Memory<u64, Nested>); 4] = [
        |cache| {
            cache.remove_if(&1, |_| true);
        },
        |cache| {
            cache.clear();
        },
        |cache| {
            cache.insert(1, Nested, PLAIN, NOW);
        },
        |cache| {
            let _ = cache.replace_if(1, Nested, PLAIN, NOW, |_| false);
        },
    ];
    for action in actions {
        cache.insert(1, Nested, PLAIN, NOW);
        INNER.set(Some(Arc::clone(&cache)));
        action(&cache);
        // At the latest; a value that was refused has been dropped already.
        cache.sweep(NOW, 1);
        assert!(cache.contains(&99, NOW));
        cache.validate();
        cache.clear();
    }
}

#[test]
fn a_listener_and_a_weigher_may_use_the_cache() {
    let itself = Arc::new(Mutex::new(None::<Arc<Memory<u64, u64>>>));
    let within = {
        let itself = Arc::clone(&itself);
        move || itself.lock().unwrap().clone()
    };
    let room = 16 + Memory::<u64, u64>::OVERHEAD;
    let cache = Memory::<u64, u64>::builder()
        .shards(1)
        .max_bytes(room)
        .max_value_bytes(room)
        .weigher({
            let within = within.clone();
            move |_, _| {
                within().inspect(|cache| assert!(cache.get(&7, NOW).is_none()));
                16
            }
        })
        .listener(move |_, value, _| {
            if let Some(cache) = within()
                && *value > 0
            {
                cache.insert(2, *value - 1, PLAIN, NOW);
            }
        })
        .build();
    let cache = Arc::new(cache);
    *itself.lock().unwrap() = Some(Arc::clone(&cache));
    cache.insert(1, 3, PLAIN, NOW);
    // Each entry that leaves puts a smaller one into its place.
    cache.insert(1, 3, PLAIN, NOW);
    assert_eq!(cache.get(&2, NOW), Some(0));
    cache.validate();
    *itself.lock().unwrap() = None;
}

#[test]
fn a_listener_finds_the_room_of_what_has_left() {
    let actions: [fn(&Memory<u64, u64>); 5] = [
        |cache| assert_eq!(cache.retain(|_, _| false), 1),
        |cache| assert_eq!(cache.clear(), 1),
        |cache| assert_eq!(cache.remove(&1), Some(1_000)),
        |cache| assert_eq!(cache.get(&1, Tick(5)), None),
        |cache| assert_eq!(cache.sweep(Tick(5), 1).removed, 1),
    ];
    for action in actions {
        let itself = Arc::new(Mutex::new(None::<Arc<Memory<u64, u64>>>));
        let cache = weighed::<u64>(1_000, 1).listener({
            let itself = Arc::clone(&itself);
            move |_, _, _| {
                let cache = itself.lock().unwrap().take().expect("one entry leaves");
                assert_eq!(cache.bytes(), 0);
                assert_eq!(cache.insert(2, 1_000, PLAIN, NOW), Insert::Stored);
            }
        });
        let cache = Arc::new(cache.build());
        cache.insert(1, 1_000, Attributes { expires: Tick(5), ..PLAIN }, NOW);
        *itself.lock().unwrap() = Some(Arc::clone(&cache));
        action(&cache);
        assert_eq!(cache.get(&2, NOW), Some(1_000));
        cache.validate();
    }
}

/// A hasher that returns the key.
#[derive(Clone, Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are numbers");
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

impl BuildHasher for Identity {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self::default()
    }
}

#[test]
fn any_hasher_will_do() {
    let cache = Memory::<u64, u64>::builder().hasher(Identity::default()).shards(8).build();
    for key in (0..1_000).chain((0..1_000).map(|key| key << 54)) {
        cache.insert(key, key, PLAIN, NOW);
        assert_eq!(cache.get(&key, NOW), Some(key));
    }
    assert_eq!(cache.len(), 1_999);
    cache.validate();
}

#[test]
fn statistics_add_up() {
    let cache = weighed::<u64>(3_000, 1).build();
    for key in 0..5 {
        cache.insert(key, 1_000, PLAIN, NOW);
    }
    cache.insert(4, 1_000, PLAIN, NOW);
    cache.get(&4, NOW);
    cache.get(&0, NOW);
    cache.remove(&4);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses), (1, 1));
    assert_eq!((stats.inserts, stats.replaced, stats.evicted, stats.removed), (6, 1, 2, 1));
    assert_eq!((stats.entries, stats.bytes), (2, 2_000));
    assert!((3_000..=3_000 + 3_000 / 16).contains(&stats.peak_bytes));
    assert_eq!(stats.max_bytes, 3_000);
}

#[test]
fn a_cache_is_shared_between_threads() {
    fn is_shared<T: Send + Sync>(_: &T) {}
    let cache = Memory::<u64, Arc<str>>::builder().build();
    is_shared(&cache);
    thread::scope(|scope| {
        for thread in 0..4 {
            let cache = &cache;
            scope.spawn(move || {
                for key in (0..1_000).map(|n| n * 4 + thread) {
                    cache.insert(key, Arc::from("value"), PLAIN, NOW);
                    assert!(cache.get(&key, NOW).is_some());
                }
            });
        }
    });
    assert_eq!(cache.len(), 4_000);
    cache.validate();
}
