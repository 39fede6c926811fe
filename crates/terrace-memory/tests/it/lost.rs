//! Entries that are lost though nothing asked for it.

use std::sync::Barrier;
use std::thread;

use terrace_memory::{Attributes, Memory};

use crate::{NOW, PLAIN};

/// More than there are generations.
const WRAP: u64 = 70_000;

fn of(space: u32) -> Attributes {
    Attributes { space, ..PLAIN }
}

#[test]
fn a_reader_that_holds_on_while_generations_run_out_costs_no_other_space_its_entries() {
    let cache = Memory::<u64, u64>::builder().shards(2).build();
    for key in 0..10 {
        cache.insert(key, key, of(3), NOW);
    }
    let meet = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            cache.get_with(&1, NOW, |value| {
                meet.wait();
                meet.wait();
                assert_eq!(*value, 1);
            });
        });
        meet.wait();
        let mut found = 0;
        for round in 0..WRAP {
            cache.insert(100, round, of(2), NOW);
            cache.remove_space(2);
            found += u64::from(cache.contains(&100, NOW));
        }
        let left = (0..10).filter(|key| cache.contains(key, NOW)).count();
        // Nothing is asserted before: the reader would wait forever.
        meet.wait();
        assert_eq!((found, left), (0, 10), "of the removed space, and of the other");
    });
    // Now generations begin anew.
    cache.insert(100, 1, of(2), NOW);
    cache.remove_space(2);
    assert_eq!(cache.get(&100, NOW), None);
    cache.insert(100, 2, of(2), NOW);
    assert_eq!(cache.get(&100, NOW), Some(2));
    assert!((0..10).all(|key| cache.contains(&key, NOW)));
    cache.remove_space(3);
    assert!(!(0..10).any(|key| cache.contains(&key, NOW)));
    cache.validate();
}
