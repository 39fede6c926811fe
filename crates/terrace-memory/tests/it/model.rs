//! Anything else: random operations, on the cache and on a plain list that does the same.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use terrace_memory::{Attributes, Cause, Insert, Memory, Replace, Tick, View};

use crate::{PLAIN, weighed};

const MAX: u64 = 2_000;
const MAX_VALUE: u64 = 1_000;

/// An operation, at a time that only goes on.
#[derive(Clone, Debug)]
enum Operation {
    Insert { key: u64, weight: u64, attributes: Attributes },
    ReplaceIfNewer { key: u64, weight: u64, attributes: Attributes },
    Get(u64),
    Peek(u64),
    Remove(u64),
    RemoveIfStampIs(u64, u64),
    SetExpires(u64, Tick),
    RemoveSpace(u32),
    RetainLighter(u64),
    Clear,
    Sweep(usize),
    Wait(u64),
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let key = || 0..12_u64;
    let weight = || prop_oneof![8 => 200..500_u64, 2 => 500..=MAX_VALUE, 1 => MAX_VALUE..2 * MAX];
    let entry = || (key(), weight(), attributes());
    prop_oneof![
        12 => entry().prop_map(|(key, weight, attributes)| Insert { key, weight, attributes }),
        8 => entry().prop_map(|(key, weight, attributes)| {
            ReplaceIfNewer { key, weight, attributes }
        }),
        8 => key().prop_map(Get),
        3 => key().prop_map(Peek),
        3 => key().prop_map(Remove),
        2 => (key(), 0..8_u64).prop_map(|(key, stamp)| RemoveIfStampIs(key, stamp)),
        2 => (key(), tick()).prop_map(|(key, expires)| SetExpires(key, expires)),
        1 => (0..3_u32).prop_map(RemoveSpace),
        1 => weight().prop_map(RetainLighter),
        1 => Just(Clear),
        3 => (0..20_usize).prop_map(Sweep),
        3 => (0..10_u64).prop_map(Wait),
    ]
}

fn tick() -> impl Strategy<Value = Tick> {
    prop_oneof![3 => Just(Tick::NEVER), 2 => (0..100_u64).prop_map(Tick)]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let fields = (tick(), 0..8_u64, 0..3_u32);
    fields.prop_map(|(expires, stamp, space)| Attributes { expires, stamp, space, ..PLAIN })
}

/// What has left, and why.
type Left = Vec<(u64, u64, Cause)>;

#[derive(Clone, Copy)]
struct Entry {
    key: u64,
    weight: u64,
    attributes: Attributes,
    /// How many values had been stored when it was used last, and when it was stored.
    used: u64,
    turn: u64,
}

impl Entry {
    fn new(key: u64, weight: u64, attributes: Attributes) -> Self {
        Self { key, weight, attributes, used: 0, turn: 0 }
    }
}

/// The reference: a list of entries. A value is its weight.
#[derive(Default)]
struct Model {
    entries: Vec<Entry>,
    stored: u64,
    left: Left,
    hits: u64,
    misses: u64,
}

impl Model {
    fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.weight).sum()
    }

    fn position(&self, key: u64) -> Option<usize> {
        self.entries.iter().position(|entry| entry.key == key)
    }

    fn live(&self, key: u64, now: Tick) -> Option<Entry> {
        let entry = self.entries[self.position(key)?];
        (!entry.attributes.is_expired(now)).then_some(entry)
    }

    fn leave(&mut self, position: usize, cause: Cause) -> Entry {
        let entry = self.entries.remove(position);
        self.left.push((entry.key, entry.weight, cause));
        entry
    }

    fn leave_at(&mut self, position: usize, now: Tick, cause: Cause) {
        let expired = self.entries[position].attributes.is_expired(now);
        self.leave(position, if expired { Cause::Expired } else { cause });
    }

    fn store(&mut self, new: Entry, now: Tick) -> Insert {
        let replaces = self.live(new.key, now).is_some();
        if new.weight > MAX_VALUE {
            if let Some(position) = self.position(new.key) {
                self.leave_at(position, now, Cause::Removed);
            }
            return Insert::TooLarge;
        }
        let old = self.position(new.key).map_or(0, |position| self.entries[position].weight);
        while self.bytes() - old + new.weight > MAX {
            let others = self.entries.iter().filter(|entry| entry.key != new.key);
            let oldest = others.min_by_key(|entry| (entry.used, entry.turn)).unwrap().key;
            self.leave_at(self.position(oldest).unwrap(), now, Cause::Evicted);
        }
        if let Some(position) = self.position(new.key) {
            self.leave_at(position, now, Cause::Replaced);
        }
        self.entries.push(Entry { used: self.stored, turn: self.stored, ..new });
        self.stored += 1;
        if replaces { Insert::Replaced } else { Insert::Stored }
    }

    fn replace_if_newer(&mut self, new: Entry, now: Tick) -> Replace {
        let present = self.live(new.key, now);
        if present.is_some_and(|present| present.attributes.stamp >= new.attributes.stamp) {
            return Replace::Refused;
        }
        match self.store(new, now) {
            Insert::Stored => Replace::Stored,
            Insert::Replaced => Replace::Replaced,
            Insert::TooLarge => Replace::TooLarge,
            Insert::NoRoom => Replace::NoRoom,
        }
    }

    fn get(&mut self, key: u64, now: Tick) -> Option<u64> {
        let found = self.live(key, now);
        match self.position(key) {
            Some(position) if found.is_some() => self.entries[position].used = self.stored,
            Some(position) => drop(self.leave(position, Cause::Expired)),
            None => {}
        }
        *(if found.is_some() { &mut self.hits } else { &mut self.misses }) += 1;
        found.map(|entry| entry.weight)
    }

    fn remove_if(&mut self, key: u64, decide: impl Fn(Entry) -> bool) -> Option<u64> {
        let position = self.position(key)?;
        decide(self.entries[position]).then(|| self.leave(position, Cause::Removed).weight)
    }

    fn retain(&mut self, keep: impl Fn(Entry) -> bool) -> u64 {
        let before = self.entries.len();
        while let Some(position) = self.entries.iter().position(|&entry| !keep(entry)) {
            self.leave(position, Cause::Removed);
        }
        (before - self.entries.len()) as u64
    }
}

/// The cache and the model, side by side.
struct Pair {
    cache: Memory<u64, u64>,
    left: Arc<Mutex<Left>>,
    model: Model,
    now: Tick,
}

impl Pair {
    fn new() -> Self {
        let left = Arc::new(Mutex::new(Left::new()));
        let note = Arc::clone(&left);
        let cache = weighed::<u64>(MAX, 1)
            .max_value_bytes(MAX_VALUE)
            .listener(move |key, value, cause| note.lock().unwrap().push((*key, *value, cause)))
            .build();
        Self { cache, left, model: Model::default(), now: Tick(0) }
    }

    fn apply(&mut self, operation: &Operation) {
        let (cache, model, now) = (&self.cache, &mut self.model, self.now);
        match *operation {
            Operation::Insert { key, weight, attributes } => {
                let expected = model.store(Entry::new(key, weight, attributes), now);
                assert_eq!(cache.insert(key, weight, attributes, now), expected);
            }
            Operation::ReplaceIfNewer { key, weight, attributes } => {
                let expected = model.replace_if_newer(Entry::new(key, weight, attributes), now);
                let newer = |present: Option<View<'_, u64>>| {
                    present.is_none_or(|view| view.attributes.stamp < attributes.stamp)
                };
                assert_eq!(cache.replace_if(key, weight, attributes, now, newer), expected);
            }
            Operation::Get(key) => assert_eq!(cache.get(&key, now), model.get(key, now)),
            Operation::Peek(key) => {
                let seen = cache.peek_with(&key, now, |view| {
                    assert_eq!(*view.value, view.weight);
                    (view.weight, view.attributes)
                });
                let expected = model.live(key, now).map(|entry| (entry.weight, entry.attributes));
                assert_eq!((seen, cache.contains(&key, now)), (expected, expected.is_some()));
            }
            Operation::Remove(key) => {
                assert_eq!(cache.remove(&key), model.remove_if(key, |_| true));
            }
            Operation::RemoveIfStampIs(key, stamp) => {
                let expected = model.remove_if(key, |entry| entry.attributes.stamp == stamp);
                let is_removed = cache.remove_if(&key, |view| view.attributes.stamp == stamp);
                assert_eq!(is_removed, expected.is_some());
            }
            Operation::SetExpires(key, expires) => {
                let live = model.live(key, now).is_some();
                assert_eq!(cache.set_expires(&key, expires, now), live);
                if live {
                    let position = model.position(key).unwrap();
                    model.entries[position].attributes.expires = expires;
                }
            }
            Operation::RemoveSpace(space) => {
                let expected = model.retain(|entry| entry.attributes.space != space);
                let removed = cache.retain(|_, view| view.attributes.space != space);
                assert_eq!(removed, expected);
            }
            Operation::RetainLighter(weight) => {
                let expected = model.retain(|entry| entry.weight < weight);
                assert_eq!(cache.retain(|_, view| view.weight < weight), expected);
            }
            Operation::Clear => assert_eq!(cache.clear(), model.retain(|_| false)),
            Operation::Sweep(limit) => self.sweep(limit),
            Operation::Wait(millis) => self.now = Tick(now.as_millis() + millis),
        }
    }

    /// Which slots a sweep examines is the cache's own affair: the model follows what it did.
    fn sweep(&mut self, limit: usize) {
        let before = self.left.lock().unwrap().len();
        let sweep = self.cache.sweep(self.now, limit);
        assert!(sweep.removed <= sweep.examined && sweep.examined <= limit);

        let swept = self.left.lock().unwrap()[before..].to_vec();
        assert_eq!(swept.len(), sweep.removed);
        for (key, _, cause) in swept {
            assert_eq!((cause, self.model.live(key, self.now).is_none()), (Cause::Expired, true));
            let position = self.model.position(key).unwrap();
            self.model.leave(position, Cause::Expired);
        }
    }

    fn compare(&self) {
        self.cache.validate();
        assert_eq!(self.cache.len(), self.model.entries.len());
        assert_eq!(self.cache.is_empty(), self.model.entries.is_empty());
        assert_eq!(self.cache.bytes(), self.model.bytes());
        assert!(self.cache.bytes() <= self.cache.peak_bytes() && self.cache.peak_bytes() <= MAX);

        // When several leave at once, nothing is promised about the order.
        assert_eq!(sorted(&self.left.lock().unwrap()), sorted(&self.model.left));
        let mut seen = Vec::new();
        self.cache.for_each(self.now, |key, view| seen.push((*key, view.weight)));
        let live = self.model.entries.iter().filter(|e| !e.attributes.is_expired(self.now));
        assert_eq!(sorted(&seen), sorted(&live.map(|e| (e.key, e.weight)).collect::<Vec<_>>()));
        self.compare_stats();
    }

    fn compare_stats(&self) {
        let stats = self.cache.stats();
        let left = |cause| self.model.left.iter().filter(|left| left.2 == cause).count() as u64;
        assert_eq!((stats.hits, stats.misses), (self.model.hits, self.model.misses));
        assert_eq!(stats.replaced, left(Cause::Replaced));
        assert_eq!(stats.evicted, left(Cause::Evicted));
        assert_eq!(stats.expired, left(Cause::Expired));
        assert_eq!(stats.removed, left(Cause::Removed));
        assert_eq!(stats.inserts, stats.entries + self.model.left.len() as u64);
    }
}

fn sorted<T: Copy + std::fmt::Debug>(items: &[T]) -> Vec<String> {
    let mut items: Vec<String> = items.iter().map(|item| format!("{item:?}")).collect();
    items.sort_unstable();
    items
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_cache_does_what_the_model_does(
        operations in prop::collection::vec(operation(), 1..200)
    ) {
        let mut pair = Pair::new();
        for operation in &operations {
            pair.apply(operation);
            pair.compare();
        }
    }

    #[test]
    fn many_shards_keep_what_was_stored_last(
        operations in prop::collection::vec((0..40_u64, 200..=MAX), 1..200)
    ) {
        let cache = weighed::<u64>(MAX, 8).build();
        for (key, weight) in operations {
            cache.insert(key, weight, PLAIN, Tick(0));
            prop_assert_eq!(cache.get(&key, Tick(0)), Some(weight));
            cache.validate();
        }
    }
}
