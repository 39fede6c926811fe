//! Entries that live on after their end was brought forward, or their space removed.
//!
//! These run a whole cache with one shard. Two readers at a time are too many for that.

use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

use loom::sync::Arc;
use loom::thread;

use super::explore;
use crate::{Attributes, Eviction, Memory, Tick};

/// The hash of a number is the number: a random seed would make each execution another one.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type Cache = Memory<u64, u64, BuildHasherDefault<Same>>;

const KEY: u64 = 1;
const VALUE: u64 = 10;
const SPACE: u32 = 1;

fn cache(attributes: Attributes) -> Arc<Cache> {
    let cache = Memory::builder()
        .max_entries(100)
        .shards(1)
        .eviction(Eviction::Lru)
        .hasher(BuildHasherDefault::default())
        .build();
    cache.insert(KEY, VALUE, attributes, Tick(0));
    Arc::new(cache)
}

fn reader(cache: &Arc<Cache>, now: Tick) -> thread::JoinHandle<()> {
    let cache = Arc::clone(cache);
    thread::spawn(move || {
        let found = cache.get_with(&KEY, now, |value| *value);
        assert!(matches!(found, None | Some(VALUE)));
    })
}

const IDLE: Attributes = Attributes {
    expires: Tick::NEVER,
    idle: Some(Duration::from_millis(100)),
    stamp: 0,
    space: SPACE,
    pinned: false,
    negative: false,
};

/// A read puts off the end while another thread brings it forward. Fails when the reader stores the
/// end whatever it is by then, and when the bound is brought forward after the end.
#[test]
fn after_a_read_that_put_off_an_end_brought_forward() {
    put_off(Tick(60));
}

/// The same, when the end stays as it is and only the bound is brought forward: the reader finds the
/// life as it was. Fails when it does not look at the bound again after it has put off the end.
#[test]
fn after_a_read_that_put_off_an_end_that_had_become_the_last() {
    put_off(Tick(100));
}

fn put_off(expires: Tick) {
    explore(move || {
        let cache = cache(IDLE);
        let reader = reader(&cache, Tick(50));
        assert!(cache.set_expires(&KEY, expires, Tick(50)));
        reader.join().unwrap();
        assert!(!cache.contains(&KEY, expires), "the end was put off again");
    });
}

/// A read finds an entry of an earlier generation alive, and puts it into the present one, while
/// its space is removed. Fails when the generation is loaded after the space is judged, and when a
/// generation begins before it is noted what was removed.
#[test]
fn after_a_read_that_has_judged_its_space_before() {
    explore(|| {
        let cache = cache(Attributes { space: SPACE, ..Attributes::default() });
        cache.remove_space(2);
        let reader = reader(&cache, Tick(0));
        cache.remove_space(SPACE);
        assert!(!cache.contains(&KEY, Tick(0)), "a removed space came back");
        reader.join().unwrap();
        assert!(!cache.contains(&KEY, Tick(0)), "a removed space came back");
    });
}

/// A thread that has seen what another stored after the removal does not find what was removed.
/// Fails when number and tag of what is stored are stored without a release.
#[test]
fn for_a_thread_that_has_seen_what_was_stored_after_the_removal() {
    explore(|| {
        let cache = cache(Attributes { space: SPACE, ..Attributes::default() });
        let reader = thread::spawn({
            let cache = Arc::clone(&cache);
            move || {
                if cache.contains(&2, Tick(0)) {
                    assert!(!cache.contains(&KEY, Tick(0)), "a removed space came back");
                }
            }
        });
        cache.remove_space(SPACE);
        cache.insert(2, 20, Attributes::default(), Tick(0));
        reader.join().unwrap();
    });
}

/// An end is changed while a read puts the entry into the present generation, and its space is
/// removed after that. Fails when a read stores the generation whatever the life is by then.
#[test]
fn after_its_end_was_changed_meanwhile() {
    explore(|| {
        let cache = cache(Attributes { space: SPACE, ..Attributes::default() });
        cache.remove_space(2);
        let reader = reader(&cache, Tick(0));
        assert!(cache.set_expires(&KEY, Tick(10), Tick(0)));
        reader.join().unwrap();
        assert!(cache.contains(&KEY, Tick(9)) && !cache.contains(&KEY, Tick(10)));
        cache.remove_space(SPACE);
        assert!(!cache.contains(&KEY, Tick(0)), "a removed space came back");
    });
}

/// What a read does to the life of an entry that is being removed does not bring it back, and
/// the slot is used again. Fails when a retired slot is freed without asking for the epoch.
#[test]
fn after_it_was_removed_while_it_was_read() {
    explore(|| {
        let cache = cache(IDLE);
        let reader = reader(&cache, Tick(50));
        assert_eq!(cache.remove(&KEY), Some(VALUE));
        cache.sweep(Tick(50), 10);
        cache.insert(2, 20, Attributes::default(), Tick(50));
        assert!(!cache.contains(&KEY, Tick(50)));
        reader.join().unwrap();
        assert!(!cache.contains(&KEY, Tick(50)) && cache.contains(&2, Tick(50)));
        cache.validate();
    });
}
