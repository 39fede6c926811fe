//! Removed spaces whose entries are found, and others that are lost with them.

use std::sync::atomic::{
    AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;

use terrace_memory::{Attributes, Cause, Insert, Memory, Replace};

use crate::support::count;
use crate::{NOW, PLAIN, weighed};

/// More than there are generations.
const WRAP: u64 = 70_000;

fn of(space: u32) -> Attributes {
    Attributes { space, ..PLAIN }
}

fn cache(shards: usize) -> Memory<u64, u64> {
    Memory::builder().shards(shards).build()
}

#[test]
fn no_way_of_looking_finds_what_was_removed() {
    let cache = cache(4);
    let fill = || {
        for key in 0..100 {
            cache.insert(key, key, of(1 + key as u32 % 2), NOW);
        }
        cache.remove_space(1);
    };
    fill();
    for key in 0..100 {
        let is_there = key % 2 == 1;
        assert_eq!(cache.contains(&key, NOW), is_there);
        assert_eq!(cache.peek_with(&key, NOW, |_| ()).is_some(), is_there);
    }
    cache.for_each(NOW, |key, _| assert_eq!(key % 2, 1));
    assert!(cache.hottest(1_000, NOW).iter().all(|key| key % 2 == 1));
    let keys: Vec<u64> = (0..100).collect();
    cache.get_many(&keys, NOW, |index, value| assert_eq!(value.is_some(), index % 2 == 1));
    for key in 0..100 {
        assert_eq!(cache.set_expires(&key, terrace_memory::Tick::NEVER, NOW), key % 2 == 1);
        assert_eq!(cache.get(&key, NOW), (key % 2 == 1).then_some(key));
    }
    assert_eq!(cache.len(), 50, "reads have freed the others");

    fill();
    for key in (0..100).step_by(2) {
        assert!(!cache.remove_if(&key, |_| panic!("nothing to ask about")));
        assert_eq!(cache.remove(&key), None);
        let outcome = cache.replace_if(key, 1, PLAIN, NOW, |present| present.is_some());
        assert_eq!(outcome, Replace::Refused);
    }
    fill();
    for key in (0..100).step_by(2) {
        assert_eq!(cache.insert(key, 7, of(1), NOW), Insert::Stored, "not in place of anything");
        assert_eq!(cache.get(&key, NOW), Some(7));
    }
    cache.validate();
}

#[test]
fn what_is_stored_after_the_removal_lives() {
    let cache = cache(1);
    for round in 0..300 {
        for key in 0..10 {
            cache.insert(key, round, of(1), NOW);
        }
        for key in 0..10 {
            assert_eq!(cache.get(&key, NOW), Some(round));
        }
        cache.remove_space(1);
        cache.remove_space(2);
        for key in 0..10 {
            assert_eq!(cache.get(&key, NOW), None);
        }
    }
    cache.validate();
}

#[test]
fn other_spaces_are_not_affected() {
    let cache = cache(4);
    for key in 0..1_000 {
        cache.insert(key, key, of(key as u32 % 10), NOW);
    }
    for removed in [3, 0, 7] {
        cache.remove_space(removed);
        // Twice: what is found is noted to be alive.
        for _ in 0..2 {
            for key in (0..1_000).filter(|key| ![3, 0, 7].contains(&(key % 10))) {
                assert_eq!(cache.get(&key, NOW), Some(key));
            }
        }
    }
    cache.remove_space(u32::MAX);
    let removed = (0..1_000).filter(|key| cache.get(key, NOW).is_none()).count();
    assert_eq!(removed, 300);
    cache.validate();
}

#[test]
fn an_entry_may_move_to_another_space() {
    let cache = cache(1);
    cache.insert(1, 1, of(1), NOW);
    cache.insert(1, 2, of(2), NOW);
    cache.remove_space(1);
    assert_eq!(cache.get(&1, NOW), Some(2));
    cache.insert(1, 3, PLAIN, NOW);
    cache.remove_space(2);
    assert_eq!(cache.get(&1, NOW), Some(3));
    cache.remove_space(0);
    assert_eq!(cache.get(&1, NOW), None, "what has no space is in space 0");
}

#[test]
fn what_was_removed_makes_room_and_is_told_of() {
    let told = Arc::new(crate::Counter::default());
    let cache = weighed::<u64>(10_000, 1)
        .listener({
            let told = Arc::clone(&told);
            move |_, _, cause| {
                assert_eq!(cause, Cause::Removed);
                told.add();
            }
        })
        .build();
    for key in 0..45 {
        cache.insert(key, 200, of(1), NOW);
    }
    cache.remove_space(1);
    for key in 100..145 {
        assert_eq!(cache.insert(key, 200, of(2), NOW), Insert::Stored);
    }
    assert!((100..145).all(|key| cache.contains(&key, NOW)), "the old ones went first");
    cache.sweep(NOW, usize::MAX);
    let stats = cache.stats();
    assert_eq!((stats.removed, stats.evicted, told.count()), (45, 0, 45));
}

#[test]
fn generations_may_run_out() {
    for shards in [1, 4] {
        let cache = cache(shards);
        // These are never looked at, and never removed.
        for key in 1_000..1_100 {
            cache.insert(key, key, of(7), NOW);
        }
        cache.remove_space(9);
        for key in 1_100..1_200 {
            cache.insert(key, key, of(9), NOW);
        }
        for round in 0..WRAP {
            cache.insert(1, round, of(1), NOW);
            cache.insert(2, round, of(2), NOW);
            cache.insert(3, round, of(3), NOW);
            cache.remove_space(1 + (round % 2) as u32);
            let (removed, other) = if round % 2 == 0 { (1, 2) } else { (2, 1) };
            assert_eq!(cache.get(&removed, NOW), None, "after {round} removals");
            assert_eq!(cache.get(&other, NOW), Some(round), "after {round} removals");
            assert_eq!(cache.get(&3, NOW), Some(round));
        }
        for key in 1_000..1_200 {
            assert_eq!(cache.get(&key, NOW), Some(key));
        }
        cache.validate();
        cache.remove_space(7);
        cache.remove_space(9);
        for key in 1_000..1_200 {
            assert_eq!(cache.get(&key, NOW), None);
        }
    }
}

#[test]
fn as_many_spaces_as_there_are_generations_may_be_removed() {
    let cache = cache(1);
    for space in 0..WRAP {
        cache.insert(space % 100, space, of(space as u32), NOW);
        cache.remove_space(space as u32);
        assert!(!cache.contains(&(space % 100), NOW));
    }
    for space in 0..WRAP {
        cache.insert(space % 100, space, of(space as u32), NOW);
        assert!(cache.contains(&(space % 100), NOW));
    }
    cache.validate();
}

#[test]
fn no_reader_sees_a_removed_entry_once_the_call_has_returned() {
    let cache = cache(4);
    let keys: Vec<u64> = (0..8).collect();
    for key in &keys {
        cache.insert(100 + key, *key, of(2), NOW);
    }
    // All values up to this one have been removed.
    let removed = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|reader| {
                let (cache, keys, removed, done) = (&cache, &keys, &removed, &done);
                scope.spawn(move || {
                    let mut seen = 0;
                    while !done.load(Relaxed) {
                        for key in keys {
                            let floor = removed.load(Acquire);
                            let value = match reader {
                                0 => cache.get(key, NOW),
                                1 => cache.peek_with(key, NOW, |view| *view.value),
                                _ => {
                                    let mut value = None;
                                    cache.get_many(&[*key], NOW, |_, found| value = found.copied());
                                    value
                                }
                            };
                            if let Some(value) = value {
                                assert!(value > floor, "{value} is found, {floor} is removed");
                                seen += 1;
                            }
                            assert_eq!(cache.get(&(100 + key), NOW), Some(*key), "another space");
                        }
                    }
                    seen
                })
            })
            .collect();
        let writer = scope.spawn(|| {
            for round in 1..=count(WRAP, 50 * WRAP) {
                cache.insert(round % 8, round, of(1), NOW);
                cache.remove_space(1);
                removed.store(round, Release);
            }
        });
        let outcome = writer.join();
        done.store(true, Relaxed);
        outcome.unwrap();
        for reader in readers {
            let _ = reader.join().unwrap();
        }
    });
    cache.validate();
}

#[test]
fn what_was_removed_does_not_come_back_when_generations_run_out() {
    let cache = cache(1);
    cache.insert(1, 1, of(1), NOW);
    cache.insert(2, 2, of(3), NOW);
    cache.remove_space(1);
    for _ in 0..WRAP {
        cache.remove_space(2);
        // Nothing has met it in any generation.
    }
    assert_eq!(cache.get(&1, NOW), None);
    assert_eq!(cache.get(&2, NOW), Some(2), "what was not removed is still there");
    cache.validate();
}

#[test]
fn when_generations_run_out_beside_a_reader_nothing_comes_back() {
    let cache = cache(2);
    let removals = WRAP + 10;
    for key in 0..10 {
        cache.insert(key, key, of(1), NOW);
    }
    // The reader holds on to an entry of generation 0 while all generations go by.
    let read = cache.get_with(&7, NOW, |value| {
        cache.remove_space(1);
        for _ in 0..removals {
            cache.remove_space(2);
        }
        *value
    });
    assert_eq!(read, Some(7));
    assert!((0..10).all(|key| cache.get(&key, NOW).is_none()));
    cache.insert(1, 1, of(1), NOW);
    assert_eq!(cache.get(&1, NOW), Some(1));
    cache.remove_space(1);
    assert_eq!(cache.get(&1, NOW), None);
    cache.validate();
}

#[test]
fn a_listener_may_remove_a_space_while_generations_run_out() {
    let inner: Arc<OnceLock<Weak<Memory<u64, u64>>>> = Arc::default();
    let of_listener = Arc::clone(&inner);
    let told = Arc::new(AtomicU64::new(0));
    let cache = Memory::builder().shards(1).listener({
        let told = Arc::clone(&told);
        move |_: &u64, _: &u64, _| {
            told.fetch_add(1, Relaxed);
            if let Some(cache) = of_listener.get().and_then(Weak::upgrade) {
                cache.remove_space(9);
            }
        }
    });
    let cache = Arc::new(cache.build());
    inner.set(Arc::downgrade(&cache)).unwrap();
    for key in 0..10 {
        cache.insert(key, key, of(1), NOW);
    }
    cache.remove_space(1);
    for _ in 0..WRAP {
        cache.remove_space(2);
    }
    assert_eq!(told.load(Relaxed), 10);
    cache.validate();
}
