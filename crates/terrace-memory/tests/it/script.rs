//! A script: bytes that are read as the settings of a cache and as operations on it.
//!
//! It is played on a cache and noted in a plain list. What is checked is what must hold whatever
//! the policy does: no value but the last one at its key, none that has left, has expired or was
//! removed with its space; bounds; and, as a listener tells what leaves, that nothing else is
//! lost. The fuzzer of `fuzz/` runs the same file.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use terrace_memory::{Attributes, Cause, Compute, Eviction, Insert, Memory, Replace, Tick, View};

/// Plays a script; panics when the cache does what it must not.
pub(crate) fn play(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let mut scene = Scene::new(&mut bytes);
    let mut played = 0_u32;
    while !bytes.0.is_empty() && played < MOST {
        scene.act(&mut bytes);
        played += 1;
        if played.is_multiple_of(8) {
            scene.cache.validate();
        }
    }
    scene.end();
}

const MOST: u32 = 400;
const KEYS: u64 = 24;
const SPACES: u8 = 3;
const POLICIES: [Eviction; 6] = [
    Eviction::Lru,
    Eviction::Lfu,
    Eviction::S3Fifo,
    Eviction::Sieve,
    Eviction::Ttl,
    Eviction::Hybrid,
];

/// Reads zeros when there is nothing left.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn below(&mut self, limit: u8) -> u8 {
        self.byte() % limit
    }

    fn is(&mut self) -> bool {
        self.byte() & 1 == 1
    }
}

struct Value {
    /// Owned, so that a sanitizer sees when it is used too late.
    number: Box<u64>,
    weight: u64,
    alive: Arc<AtomicU64>,
}

impl Drop for Value {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Relaxed);
    }
}

const OVERHEAD: u64 = Memory::<u64, Value>::OVERHEAD;

/// What is known of the value that was stored last at a key.
#[derive(Clone, Copy)]
struct Entry {
    number: u64,
    weight: u64,
    attributes: Attributes,
    /// It may be found before the first, and must not be from the second on.
    ends: (Tick, Tick),
    is_removed: bool,
}

impl Entry {
    /// Whether a read at this time finds it; `None` if that cannot be said.
    fn is_alive(&self, now: Tick) -> Option<bool> {
        match self.ends {
            _ if self.is_removed => Some(false),
            (first, _) if now < first || first == Tick::NEVER => Some(true),
            (_, second) if now >= second && second != Tick::NEVER => Some(false),
            _ => None,
        }
    }

    fn idle(&self) -> Option<u64> {
        self.attributes.idle.map(|idle| (idle.as_millis() as u64).max(1))
    }

    /// It has been read at this time.
    fn is_used(&mut self, now: Tick) {
        let Some(idle) = self.idle() else { return };
        let until = self.attributes.expires;
        // A read is noted if it puts off the end by more than an eighth.
        let first = Tick(now.0 + idle - idle / 8).min(until);
        let second = Tick(now.0 + idle).min(until);
        self.ends = (self.ends.0.max(first), self.ends.1.max(second));
    }

    fn set_expires(&mut self, expires: Tick, now: Tick) {
        self.attributes.expires = expires;
        self.ends = match self.idle() {
            None => (expires, expires),
            Some(idle) => {
                let unused = Tick(now.0 + idle);
                (self.ends.0.min(unused).min(expires), self.ends.1.max(unused).min(expires))
            }
        };
    }
}

struct Scene {
    cache: Arc<Memory<u64, Value>>,
    now: Tick,
    last: u64,
    alive: Arc<AtomicU64>,
    /// What was stored last at each key, unless it is known to have left.
    entries: HashMap<u64, Entry>,
    told: Arc<Mutex<Vec<(u64, u64, Cause)>>>,
    has_listener: bool,
    /// Reads that have not returned. While there are any, what leaves is told of later.
    readers: u32,
    max_value_bytes: u64,
    has_pinned: bool,
}

impl Scene {
    fn new(bytes: &mut Bytes<'_>) -> Self {
        let told = Arc::new(Mutex::new(Vec::new()));
        let has_listener = bytes.below(4) > 0;
        let eviction = POLICIES[usize::from(bytes.below(6))];
        let mut builder = Memory::<u64, Value>::builder()
            .eviction(eviction)
            .shards(1 << bytes.below(4))
            .max_negative(bytes.below(101))
            .weigher(|_, value| value.weight);
        let bounds = 1 + bytes.below(3);
        if bounds & 1 > 0 {
            builder = builder.max_entries(u64::from(bytes.below(40)));
        }
        let mut max_value_bytes = u64::MAX;
        if bounds & 2 > 0 {
            let max = u64::from(bytes.byte()) * 32;
            builder = builder.max_bytes(max);
            max_value_bytes = max.min(u64::from(bytes.byte()) * 16);
            builder = builder.max_value_bytes(max_value_bytes);
        }
        if has_listener {
            let told = Arc::clone(&told);
            builder = builder.listener(move |key, value, cause| {
                told.lock().unwrap().push((*key, *value.number, cause));
            });
        }
        Self {
            cache: Arc::new(builder.build()),
            now: Tick(1_000),
            last: 0,
            alive: Arc::default(),
            entries: HashMap::new(),
            told,
            has_listener,
            readers: 0,
            max_value_bytes,
            has_pinned: false,
        }
    }

    fn act(&mut self, bytes: &mut Bytes<'_>) {
        let key = u64::from(bytes.byte()) % KEYS;
        match bytes.below(32) {
            0..7 => self.insert(key, bytes),
            7 | 8 => self.replace_if_newer(key, bytes),
            9 | 10 => self.compute(key, bytes),
            11..16 => self.get(key, bytes),
            16 => self.get_many(bytes),
            17 => self.peek(key),
            18 => self.remove(key, bytes),
            19 => self.set_expires(key, bytes),
            20 => {
                let space = u32::from(bytes.below(SPACES));
                self.cache.remove_space(space);
                for entry in self.entries.values_mut() {
                    entry.is_removed |= entry.attributes.space == space;
                }
            }
            21 => {
                let stamp = u64::from(bytes.below(4));
                self.cache.retain(|_, view| view.attributes.stamp != stamp);
                self.expect_gone(|entry| entry.attributes.stamp == stamp);
            }
            22 => {
                self.cache.clear();
                self.expect_gone(|_| true);
            }
            23..26 => self.sweep(usize::from(bytes.byte())),
            26 => self.see_all(),
            27..29 => self.now.0 += u64::from(bytes.below(20)),
            _ => self.get(key, bytes),
        }
        self.listen();
        assert!(self.cache.len() as u64 <= self.cache.max_entries());
        assert!(self.cache.bytes() <= self.cache.max_bytes());
    }

    fn attributes(&self, bytes: &mut Bytes<'_>) -> Attributes {
        let marks = bytes.byte();
        let mut attributes = Attributes::default();
        if marks & 1 > 0 {
            attributes.expires = Tick(self.now.0 + u64::from(bytes.below(50)));
        }
        if marks & 2 > 0 {
            attributes.idle = Some(Duration::from_millis(u64::from(bytes.below(60))));
        }
        if marks & 4 > 0 {
            attributes.stamp = u64::from(bytes.below(4));
        }
        if marks & 8 > 0 {
            attributes.space = u32::from(bytes.below(SPACES));
        }
        attributes.pinned = marks & 0x70 == 0x70;
        attributes.negative = marks & 0x90 == 0x90;
        attributes
    }

    fn value(&mut self, bytes: &mut Bytes<'_>) -> (Value, Entry) {
        let attributes = self.attributes(bytes);
        let weight = u64::from(bytes.byte()) * 2;
        self.last += 1;
        self.alive.fetch_add(1, Relaxed);
        let end = match attributes.idle {
            Some(idle) => {
                let idle = (idle.as_millis() as u64).max(1);
                Tick(self.now.0 + idle).min(attributes.expires)
            }
            None => attributes.expires,
        };
        let weighed = weight + OVERHEAD;
        let entry = Entry {
            number: self.last,
            weight: weighed,
            attributes,
            ends: (end, end),
            is_removed: false,
        };
        let alive = Arc::clone(&self.alive);
        (Value { number: Box::new(self.last), weight, alive }, entry)
    }

    fn insert(&mut self, key: u64, bytes: &mut Bytes<'_>) {
        let (value, entry) = self.value(bytes);
        let before = self.is_there(key);
        let outcome = self.cache.insert(key, value, entry.attributes, self.now);
        let outcome = match outcome {
            Insert::Stored => Replace::Stored,
            Insert::Replaced => Replace::Replaced,
            Insert::TooLarge => Replace::TooLarge,
            Insert::NoRoom => Replace::NoRoom,
        };
        self.stored(key, entry, before, outcome);
    }

    fn stored(&mut self, key: u64, entry: Entry, before: Option<bool>, outcome: Replace) {
        let is_too_large = entry.weight > self.max_value_bytes;
        assert_eq!(outcome == Replace::TooLarge, is_too_large);
        match outcome {
            Replace::Stored | Replace::Replaced => {
                if let Some(before) = before {
                    assert_eq!(outcome == Replace::Replaced, before, "key {key}");
                }
                self.leave(key);
                self.has_pinned |= entry.attributes.pinned;
                self.entries.insert(key, entry);
            }
            Replace::TooLarge => self.leave(key),
            Replace::NoRoom => {
                let may_be = self.has_pinned
                    || self.readers > 0
                    || entry.attributes.negative
                    || self.cache.max_entries() == 0;
                assert!(may_be, "there is no room for {}", entry.weight);
                self.leave(key);
            }
            Replace::Refused => panic!("nobody refused"),
        }
        self.listen();
        // What was stored is there, however full the cache is.
        if matches!(outcome, Replace::Stored | Replace::Replaced) {
            let found = self.cache.contains(&key, self.now);
            assert_eq!(Some(found), entry.is_alive(self.now), "what was stored is not there");
        }
    }

    fn replace_if_newer(&mut self, key: u64, bytes: &mut Bytes<'_>) {
        let (value, entry) = self.value(bytes);
        let before = self.is_there(key);
        let mut shown = None;
        let outcome = self.cache.replace_if(key, value, entry.attributes, self.now, |present| {
            shown = present.map(|view| (*view.value.number, view.attributes));
            present.is_none_or(|view| view.attributes.stamp <= entry.attributes.stamp)
        });
        self.check_shown(key, before, shown);
        if outcome == Replace::Refused {
            assert!(shown.is_some_and(|(_, shown)| shown.stamp > entry.attributes.stamp));
        } else {
            self.stored(key, entry, before, outcome);
        }
    }

    fn check_shown(&self, key: u64, before: Option<bool>, shown: Option<(u64, Attributes)>) {
        assert!(before.is_none_or(|before| before == shown.is_some()), "key {key}");
        if let Some((number, attributes)) = shown {
            let entry = &self.entries[&key];
            assert_eq!((number, attributes), (entry.number, shown_as(entry)));
            assert_ne!(entry.is_alive(self.now), Some(false), "what has ended is shown");
        }
    }

    fn compute(&mut self, key: u64, bytes: &mut Bytes<'_>) {
        let what = bytes.below(3);
        let (value, entry) = self.value(bytes);
        let before = self.is_there(key);
        let mut shown = None;
        let outcome = self.cache.compute(key, self.now, |present| {
            shown = present.map(|view| (*view.value.number, view.attributes));
            match what {
                0 => Compute::Keep,
                1 => Compute::Remove,
                _ => Compute::Store(value, entry.attributes),
            }
        });
        self.check_shown(key, before, shown);
        match what {
            0 => assert_eq!(outcome, Replace::Refused),
            1 => {
                assert_eq!(outcome == Replace::Replaced, shown.is_some());
                self.leave(key);
            }
            _ => self.stored(key, entry, before, outcome),
        }
    }

    /// Reads, and does something else meanwhile.
    fn get(&mut self, key: u64, bytes: &mut Bytes<'_>) {
        let before = self.is_there(key);
        let depth = if self.readers < 2 { bytes.below(8) } else { 0 };
        let (cache, now) = (Arc::clone(&self.cache), self.now);
        let mut is_found = false;
        cache.get_with(&key, now, |value| {
            is_found = true;
            let number = self.found(key, value);
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.is_used(now);
            }
            if depth >= 6 {
                self.readers += 1;
                for _ in 5..depth {
                    self.act(bytes);
                }
                self.readers -= 1;
                assert_eq!(*value.number, number, "a value changed while it was read");
            }
        });
        assert!(before.is_none_or(|before| before == is_found), "key {key}: {is_found}");
        if depth >= 6 {
            self.flush();
        }
    }

    fn get_many(&mut self, bytes: &mut Bytes<'_>) {
        let count = bytes.below(40);
        let keys: Vec<u64> = (0..count).map(|_| u64::from(bytes.byte()) % KEYS).collect();
        let before: Vec<_> = keys.iter().map(|key| self.is_there(*key)).collect();
        let mut found = vec![None; keys.len()];
        self.cache.get_many(&keys, self.now, |at, value| {
            found[at] = value.map(|value| (*value.number, value.weight));
        });
        for ((key, before), found) in keys.into_iter().zip(before).zip(found) {
            assert!(before.is_none_or(|before| before == found.is_some()));
            if let Some((number, weight)) = found {
                let entry = self.entries.get_mut(&key).expect("a value was never stored");
                assert_eq!((number, weight + OVERHEAD), (entry.number, entry.weight));
                assert_ne!(entry.is_alive(self.now), Some(false), "what has ended is found");
                entry.is_used(self.now);
            }
        }
    }

    fn peek(&mut self, key: u64) {
        let before = self.is_there(key);
        let seen = self.cache.peek_with(&key, self.now, |view| {
            self.found(key, view.value);
            assert_eq!(view.attributes, shown_as(&self.entries[&key]));
            assert_eq!(view.weight, self.entries[&key].weight);
        });
        assert!(before.is_none_or(|before| before == seen.is_some()));
    }

    /// A value has been found; its number.
    fn found(&self, key: u64, value: &Value) -> u64 {
        let entry = self.entries.get(&key).expect("a value is found that has left");
        assert_eq!((*value.number, value.weight + OVERHEAD), (entry.number, entry.weight));
        assert_ne!(entry.is_alive(self.now), Some(false), "what has ended is found");
        *value.number
    }

    fn remove(&mut self, key: u64, bytes: &mut Bytes<'_>) {
        let wants = bytes.is();
        let mut shown = None;
        let is_removed = self.cache.remove_if(&key, |view| {
            shown = Some(*view.value.number);
            wants
        });
        assert_eq!(is_removed, wants && shown.is_some());
        if let Some(number) = shown {
            let entry = &self.entries[&key];
            assert!(entry.number == number && !entry.is_removed);
        }
        if is_removed {
            self.leave(key);
        }
    }

    fn set_expires(&mut self, key: u64, bytes: &mut Bytes<'_>) {
        let before = self.is_there(key);
        let expires = match bytes.below(4) {
            0 => Tick::NEVER,
            _ => Tick(self.now.0 - 5 + u64::from(bytes.below(60))),
        };
        let is_set = self.cache.set_expires(&key, expires, self.now);
        assert!(before.is_none_or(|before| before == is_set));
        if is_set {
            let now = self.now;
            let entry = self.entries.get_mut(&key).expect("what was set has left");
            entry.set_expires(expires, now);
        }
    }

    fn sweep(&mut self, limit: usize) {
        let sweep = self.cache.sweep(self.now, limit);
        assert!(sweep.examined <= limit && sweep.removed <= sweep.examined);
    }

    fn see_all(&mut self) {
        let mut seen = HashMap::new();
        self.cache.for_each(self.now, |key, view: View<'_, Value>| {
            self.found(*key, view.value);
            assert!(seen.insert(*key, ()).is_none(), "a key is seen twice");
        });
        for key in 0..KEYS {
            let is_seen = seen.contains_key(&key);
            assert!(self.is_there(key).is_none_or(|is_there| is_there == is_seen), "key {key}");
        }
        let hottest = self.cache.hottest(8, self.now);
        assert!(hottest.iter().all(|key| seen.contains_key(key)) && hottest.len() <= 8);
    }

    /// Whether a read would find something at a key; `None` if that cannot be said.
    fn is_there(&self, key: u64) -> Option<bool> {
        let Some(entry) = self.entries.get(&key) else { return Some(false) };
        match entry.is_alive(self.now) {
            Some(true) if entry.attributes.pinned => Some(true),
            // Without a listener, or before it has been told, it may have been evicted.
            Some(true) if !self.has_listener || self.readers > 0 => None,
            known => known,
        }
    }

    /// What was at a key is gone.
    fn leave(&mut self, key: u64) {
        self.entries.remove(&key);
    }

    /// What `is_meant` is gone.
    fn expect_gone(&mut self, is_meant: impl Fn(&Entry) -> bool) {
        self.entries.retain(|_, entry| !is_meant(entry));
    }

    /// Follows what the listener was told.
    fn listen(&mut self) {
        for (key, number, cause) in self.told.lock().unwrap().drain(..) {
            let Some(entry) = self.entries.get(&key).filter(|entry| entry.number == number) else {
                continue;
            };
            match cause {
                Cause::Evicted => assert!(!entry.attributes.pinned, "what was pinned is evicted"),
                Cause::Expired => {
                    let (first, _) = entry.ends;
                    let has_ended = first <= self.now && first != Tick::NEVER;
                    assert!(has_ended, "{number} has expired before {first:?}");
                }
                Cause::Removed => assert!(entry.is_removed, "{number} was not removed"),
                _ => panic!("{number} has left: {cause:?}"),
            }
            self.entries.remove(&key);
        }
    }

    /// When no read is left, everything that has left can be told of.
    fn flush(&mut self) {
        if self.readers == 0 {
            self.sweep(usize::MAX);
            self.listen();
        }
    }

    fn end(mut self) {
        self.sweep(usize::MAX);
        self.sweep(usize::MAX);
        self.listen();
        self.cache.validate();
        let stats = self.cache.stats();
        assert_eq!(stats.garbage_bytes, 0, "what nobody holds is kept");
        assert_eq!(stats.entries, self.cache.len() as u64);
        assert_eq!(self.alive.load(Relaxed), stats.entries, "a value is lost, or kept");
        if self.has_listener {
            assert_eq!(self.entries.len() as u64, stats.entries);
        }
        drop(self.cache);
        assert_eq!(self.alive.load(Relaxed), 0, "a value is not dropped");
    }
}

/// The attributes of an entry as a view shows them.
fn shown_as(entry: &Entry) -> Attributes {
    let idle = entry.idle().map(Duration::from_millis);
    Attributes { idle, ..entry.attributes }
}
