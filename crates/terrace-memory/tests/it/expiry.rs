//! Expired entries that are read, or that keep their room.

use terrace_memory::{Attributes, Insert, Memory, Replace, Tick};

use crate::{NOW, PLAIN, weighed};

const THEN: Tick = Tick(100);

fn until(expires: Tick) -> Attributes {
    Attributes { expires, ..PLAIN }
}

#[test]
fn no_read_sees_an_expired_entry() {
    let cache = Memory::<u64, u64>::builder().build();
    let fresh = || {
        cache.insert(1, 1, until(THEN), NOW);
    };
    fresh();
    assert_eq!(cache.get(&1, Tick(99)), Some(1));
    assert!(cache.contains(&1, Tick(99)));
    assert!(!cache.contains(&1, THEN));
    assert_eq!(cache.peek_with(&1, THEN, |_| ()), None);
    cache.for_each(THEN, |_, _| panic!("expired"));
    assert_eq!(cache.len(), 1, "looking does not remove");

    assert_eq!(cache.get(&1, THEN), None);
    assert_eq!((cache.len(), cache.bytes()), (0, 0), "a read frees the room");
    fresh();
    assert_eq!(cache.get_with(&1, THEN, |_| ()), None);
    fresh();
    assert_eq!(cache.insert(1, 2, PLAIN, THEN), Insert::Stored);
    fresh();
    let outcome = cache.replace_if(1, 3, PLAIN, THEN, |present| present.is_none());
    assert_eq!(outcome, Replace::Stored);
    cache.validate();
}

#[test]
fn a_refusal_leaves_even_an_expired_entry() {
    let cache = Memory::<u64, u64>::builder().build();
    cache.insert(1, 1, until(THEN), NOW);
    assert_eq!(cache.replace_if(1, 2, PLAIN, THEN, |_| false), Replace::Refused);
    assert_eq!(cache.get(&1, NOW), Some(1));
}

#[test]
fn never_does_not_come() {
    let cache = Memory::<u64, u64>::builder().build();
    cache.insert(1, 1, PLAIN, NOW);
    assert_eq!(cache.get(&1, Tick::NEVER), Some(1));
    assert_eq!(cache.sweep(Tick::NEVER, usize::MAX).removed, 0);
}

#[test]
fn an_entry_may_be_stored_expired() {
    let cache = Memory::<u64, u64>::builder().build();
    cache.insert(1, 1, PLAIN, NOW);
    assert_eq!(cache.insert(1, 2, until(THEN), THEN), Insert::Replaced);
    assert_eq!(cache.get(&1, THEN), None);
}

#[test]
fn expiry_can_be_changed_while_there_is_time() {
    let cache = Memory::<u64, u64>::builder().build();
    cache.insert(1, 1, until(THEN), NOW);
    assert!(cache.set_expires(&1, Tick(200), Tick(99)));
    assert_eq!(cache.get(&1, Tick(199)), Some(1));
    assert!(cache.set_expires(&1, Tick(50), Tick(199)));
    assert!(!cache.contains(&1, Tick(50)));
    assert!(!cache.set_expires(&1, Tick::NEVER, Tick(50)), "it does not come back");
    assert!(!cache.set_expires(&2, Tick::NEVER, NOW));
    assert!(!cache.contains(&1, Tick(50)));
}

#[test]
fn a_sweep_frees_what_has_expired() {
    let cache = Memory::<u64, u64>::builder().shards(4).build();
    for key in 0..1_000 {
        cache.insert(key, key, until(if key % 4 == 0 { THEN } else { Tick::NEVER }), NOW);
    }
    let sweep = cache.sweep(THEN, usize::MAX);
    assert_eq!((sweep.examined, sweep.removed), (1_000, 250));
    assert_eq!((cache.len(), cache.stats().expired), (750, 250));
    cache.validate();
    let sweep = cache.sweep(THEN, usize::MAX);
    assert_eq!((sweep.examined, sweep.removed), (1_000, 0), "it goes around once");
}

#[test]
fn small_sweeps_come_around() {
    for shards in [1, 2, 16] {
        for limit in [1, 7, 255, 256, 257, 999] {
            let cache = Memory::<u64, u64>::builder().shards(shards).build();
            for key in 0..1_000 {
                cache.insert(key, key, until(THEN), NOW);
            }
            let (mut examined, mut removed) = (0, 0);
            while examined < 1_000 {
                let sweep = cache.sweep(THEN, limit);
                assert!(sweep.examined <= limit && sweep.examined > 0);
                assert!(sweep.removed <= sweep.examined);
                examined += sweep.examined;
                removed += sweep.removed;
            }
            assert_eq!((removed, cache.bytes()), (1_000, 0), "{shards} shards, {limit} at a time");
            cache.validate();
        }
    }
}

#[test]
fn a_sweep_of_the_rest_ends_where_it_began() {
    let cache = Memory::<u64, u64>::builder().shards(4).build();
    for key in 0..1_000 {
        cache.insert(key, key, PLAIN, NOW);
    }
    for limit in [1, 100, 249, 600] {
        assert_eq!(cache.sweep(NOW, limit).examined, limit);
        assert_eq!(cache.sweep(NOW, usize::MAX).examined, 1_000);
    }
}

#[test]
fn a_sweep_without_work_does_none() {
    let cache = Memory::<u64, u64>::builder().shards(8).build();
    assert_eq!(cache.sweep(THEN, usize::MAX).examined, 0);
    cache.insert(1, 1, until(THEN), NOW);
    assert_eq!(cache.sweep(THEN, 0).examined, 0);
    assert_eq!(cache.len(), 1);
    cache.clear();
    assert_eq!(cache.sweep(THEN, usize::MAX).examined, 0);
}

#[test]
fn a_sweep_survives_a_clear() {
    let cache = Memory::<u64, u64>::builder().shards(1).build();
    for key in 0..100 {
        cache.insert(key, key, until(THEN), NOW);
    }
    assert_eq!(cache.sweep(NOW, 50).examined, 50);
    cache.clear();
    for key in 0..10 {
        cache.insert(key, key, until(THEN), NOW);
    }
    assert_eq!(cache.sweep(THEN, usize::MAX).removed, 10);
}

#[test]
fn an_eviction_of_an_expired_entry_is_an_expiry() {
    let cache = weighed::<u64>(1_000, 1).build();
    cache.insert(1, 1_000, until(THEN), NOW);
    cache.insert(2, 1_000, PLAIN, THEN);
    let stats = cache.stats();
    assert_eq!((stats.expired, stats.evicted), (1, 0));
}
