//! The cache: the shards, the budget they share, and all that can be asked of them.

use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::marker::PhantomData;
use std::sync::Arc;
use std::thread;

use hashbrown::Equivalent;
use parking_lot::{Mutex, MutexGuard};

use crate::budget::Budget;
use crate::builder::Weigher;
use crate::entry::Node;
use crate::listener::Listener;
use crate::shard::{self, Shard};
use crate::transfer::{self, Transfer};
use crate::{Attributes, Builder, Cause, Insert, Replace, Stats, Sweep, Tick, View};

/// A cache in memory, bounded in bytes, for any number of threads.
///
/// It is shared by reference or in an [`Arc`]. See the [crate] for what it guarantees, what an
/// entry costs, and which of your code runs under a lock. A key is looked up by anything
/// that hashes like it and is [`Equivalent`] to it, for example a `String` by a `str`.
///
/// A call locks one shard at a time. Unless it says otherwise, it takes a short time that does
/// not depend on the number of entries; and unless it says otherwise it cannot fail.
pub struct Memory<K, V, S = RandomState> {
    shards: Box<[Guarded<K, V>]>,
    budget: Budget,
    /// Held while a store makes room in shards other than its own.
    room: Mutex<()>,
    /// Where the next sweep begins.
    cursor: Mutex<Cursor>,
    max_value_bytes: u64,
    weigher: Box<Weigher<K, V>>,
    listener: Option<Box<Listener<K, V>>>,
    hasher: S,
    /// Locks would let this be shared between threads when keys and values cannot be. That is
    /// not promised: one day, threads may read the same value at the same time.
    marker: PhantomData<Arc<(K, V)>>,
}

/// A slot of a shard.
#[derive(Clone, Copy)]
struct Cursor {
    shard: usize,
    slot: u32,
}

/// A shard on cache lines of its own, so that threads in neighbouring shards do not slow each
/// other down. 128 bytes, because processors fetch lines in pairs.
#[repr(align(128))]
struct Padded<T>(T);

type Guarded<K, V> = Padded<Mutex<Shard<K, V>>>;

/// A sweep gives other threads a chance at the lock after this many slots.
const SWEEP_BATCH: u32 = 256;

/// Spreads a hash over its high bits, where [`Memory::home`] looks: 2^64 divided by the golden
/// ratio.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

impl<K, V> Memory<K, V> {
    /// The settings of a cache, to be changed and built.
    pub fn builder() -> Builder<K, V> {
        Builder::new()
    }
}

impl<K, V, S> Memory<K, V, S> {
    /// What an entry is charged besides the bytes of its key and its value: the rest of its slot,
    /// and its part in what slots and table have allocated, at their worst fill.
    pub const OVERHEAD: u64 = shard::overhead::<K, V>();

    pub(crate) fn new(settings: Settings<K, V, S>) -> Self {
        let shards = (0..settings.shards).map(|_| Padded(Mutex::new(Shard::new())));
        Self {
            shards: shards.collect(),
            budget: Budget::new(settings.max_bytes),
            room: Mutex::new(()),
            cursor: Mutex::new(Cursor { shard: 0, slot: 0 }),
            max_value_bytes: settings.max_value_bytes,
            weigher: settings.weigher,
            listener: settings.listener,
            hasher: settings.hasher,
            marker: PhantomData,
        }
    }
}

/// Reading.
impl<K, V, S: BuildHasher> Memory<K, V, S> {
    /// A clone of the value at a key. Counts as a use of the entry.
    ///
    /// The clone is made under the lock of the shard: let `V` be cheap to clone, like an [`Arc`],
    /// or use [`Memory::get_with`].
    pub fn get<Q>(&self, key: &Q, now: Tick) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        V: Clone,
    {
        self.get_with(key, now, |view| view.value.clone())
    }

    /// What `read` makes of the entry at a key. Counts as a use of the entry. `read` is not
    /// called when there is none.
    pub fn get_with<Q, R>(
        &self,
        key: &Q,
        now: Tick,
        read: impl FnOnce(View<'_, V>) -> R,
    ) -> Option<R>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let mut transfer = self.transfer();
        let mut shard = self.lock(self.home(hash));
        let found = shard.find(hash, key);
        if let Some(index) = found
            && shard.live(index, now).is_some()
        {
            shard.counters.hits += 1;
            shard.touch(index);
            return shard.get(index).map(|node| read(node.view()));
        }
        shard.counters.misses += 1;
        if let Some(index) = found {
            shard.take(index, Cause::Expired, &mut transfer);
        }
        drop(shard);
        self.finish(transfer);
        None
    }

    /// What `read` makes of the entry at a key. Does not count as a use, nor in the statistics.
    pub fn peek_with<Q, R>(
        &self,
        key: &Q,
        now: Tick,
        read: impl FnOnce(View<'_, V>) -> R,
    ) -> Option<R>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let shard = self.lock(self.home(hash));
        let index = shard.find(hash, key)?;
        shard.live(index, now).map(|node| read(node.view()))
    }

    /// Whether there is a value at a key. Does not count as a use, nor in the statistics.
    pub fn contains<Q>(&self, key: &Q, now: Tick) -> bool
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.peek_with(key, now, |_| ()).is_some()
    }
}

/// Storing.
impl<K: Hash + Eq, V, S: BuildHasher> Memory<K, V, S> {
    /// Stores a value, in place of the one at its key if there is one. Counts as a use.
    ///
    /// A value that is charged more than [`Builder::max_value_bytes`] is not stored, and what was
    /// at its key is removed: it is older than the value that was to replace it.
    ///
    /// To make room, entries are evicted, no more than needed: the least recently used of the
    /// key's shard first, and when there are no more, those of all other shards alike.
    pub fn insert(&self, key: K, value: V, attributes: Attributes, now: Tick) -> Insert {
        let node = self.node(key, value, attributes);
        match self.store(node, now, |_| true) {
            Replace::Stored => Insert::Stored,
            Replace::Replaced => Insert::Replaced,
            // Never refused: the closure above agrees to everything.
            Replace::TooLarge | Replace::Refused => Insert::TooLarge,
        }
    }

    /// Stores a value if `decide` says yes to what is at its key.
    ///
    /// `decide` is called once, with the entry at the key, or `None` when there is none or it has
    /// expired. It runs under the lock: no other thread sees or changes the key between the
    /// question and the store. When it says no, nothing is changed at the key.
    ///
    /// Room is made as for [`Memory::insert`], after `decide` has said yes; only when the key's
    /// shard cannot make it alone, others may have to make room before the question.
    ///
    /// This is how a value that was under way for some time is stored without overwriting a newer
    /// one. Here the stamp is the generation of the value at its source:
    ///
    /// ```
    /// use terrace_memory::{Attributes, Memory, Replace, Tick};
    ///
    /// let cache = Memory::builder().build();
    /// let fill = |value: &'static str, stamp: u64| {
    ///     let attributes = Attributes { stamp, ..Attributes::default() };
    ///     cache.replace_if("user:7", value, attributes, Tick(0), |present| {
    ///         present.is_none_or(|present| present.attributes.stamp < stamp)
    ///     })
    /// };
    ///
    /// assert_eq!(fill("second", 2), Replace::Stored);
    /// assert_eq!(fill("first, and late", 1), Replace::Refused);
    /// assert_eq!(cache.get("user:7", Tick(0)), Some("second"));
    /// assert_eq!(fill("third", 3), Replace::Replaced);
    /// ```
    ///
    /// An entry that has been evicted or removed fences nothing: the next value at its key is
    /// stored whatever its stamp.
    pub fn replace_if(
        &self,
        key: K,
        value: V,
        attributes: Attributes,
        now: Tick,
        decide: impl FnOnce(Option<View<'_, V>>) -> bool,
    ) -> Replace {
        let node = self.node(key, value, attributes);
        self.store(node, now, decide)
    }

    fn node(&self, key: K, value: V, attributes: Attributes) -> Node<K, V> {
        let weight = (self.weigher)(&key, &value).saturating_add(Self::OVERHEAD);
        let hash = self.hasher.hash_one(&key);
        Node { key, value, attributes, weight, hash }
    }

    // A panic drops the locals from the last to the first: shard and room are unlocked before the
    // transfer and the node drop anything of the caller's.
    fn store(
        &self,
        node: Node<K, V>,
        now: Tick,
        decide: impl FnOnce(Option<View<'_, V>>) -> bool,
    ) -> Replace {
        let mut transfer = self.transfer();
        let mut room = None;
        let (mut shard, present) = self.lock_with_room(&node, now, &mut transfer, &mut room);
        let shown = present.and_then(|index| shard.live(index, now)).map(Node::view);
        let replaces = shown.is_some();

        let outcome = if !decide(shown) {
            shard.counters.refused += 1;
            Replace::Refused
        } else if !self.fits(&node) {
            shard.counters.rejected += 1;
            if let Some(index) = present {
                let cause = if replaces { Cause::Removed } else { Cause::Expired };
                shard.take(index, cause, &mut transfer);
            }
            Replace::TooLarge
        } else {
            let growth = node.weight.saturating_sub(shard.weight(present));
            shard.evict(growth, present, now, &mut transfer);
            match present {
                Some(index) => shard.replace(index, node, now, &mut transfer),
                None => shard.add(node, now, &mut transfer),
            }
            if replaces { Replace::Replaced } else { Replace::Stored }
        };
        drop(shard);
        drop(room);
        self.finish(transfer);
        outcome
    }

    /// Locks the shard of a node, when the bytes the transfer holds and those the shard could
    /// free by evicting are enough for it. Says where the shard has the node's key.
    ///
    /// That much is certain before the caller's closure is asked: it can be asked only once, and
    /// nothing may change in the shard between its answer and the store.
    fn lock_with_room<'a>(
        &'a self,
        node: &Node<K, V>,
        now: Tick,
        transfer: &mut Transfer<'a, K, V>,
        room: &mut Option<MutexGuard<'a, ()>>,
    ) -> (MutexGuard<'a, Shard<K, V>>, Option<u32>) {
        let home = self.home(node.hash);
        loop {
            let shard = self.lock(home);
            let present = shard.find(node.hash, &node.key);
            if !self.fits(node) {
                return (shard, present);
            }
            let growth = node.weight.saturating_sub(shard.weight(present));
            transfer.hold.reserve(growth);
            let enough = growth.saturating_sub(shard.bytes_except(present));
            if transfer.hold.bytes() >= enough {
                return (shard, present);
            }
            drop(shard);
            if room.is_some() {
                self.evict_elsewhere(home, enough, now, transfer);
            } else {
                // Two stores that both keep what they hold and wait for more would wait forever.
                // So only the one that has the `room` lock keeps it, and it needs no other lock
                // than that of a shard, which every other thread gives up without waiting.
                transfer.hold.give_back();
                *room = Some(self.room.lock());
            }
        }
    }

    /// Evicts from all shards but `home`, each its part, for the transfer to hold `enough` bytes.
    /// It may come out short, when other threads hold the bytes at this moment.
    fn evict_elsewhere(
        &self,
        home: usize,
        enough: u64,
        now: Tick,
        transfer: &mut Transfer<'_, K, V>,
    ) {
        let before = transfer.hold.bytes();
        let others = self.shards.len() - 1;
        let part = enough.saturating_sub(before).div_ceil(others.max(1) as u64);
        for index in (0..=others).filter(|&index| index != home) {
            let held = transfer.hold.bytes();
            let goal = enough.min(held.saturating_add(part));
            self.lock(index).evict(goal, None, now, transfer);
        }
        transfer.hold.reserve(enough);
        if transfer.hold.bytes() == before {
            thread::yield_now();
        }
    }

    fn fits(&self, node: &Node<K, V>) -> bool {
        node.weight <= self.max_value_bytes
    }
}

/// Changing and removing.
impl<K, V, S: BuildHasher> Memory<K, V, S> {
    /// Removes the value at a key and returns it.
    ///
    /// There is no time to compare with, so a value that has expired and that nothing has met yet
    /// is returned as well.
    pub fn remove<Q>(&self, key: &Q) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.remove_if(key, |_| true)
    }

    /// Removes the value at a key and returns it, if `decide` says yes to it. Asking and removing
    /// are one step. An expired entry that nothing has met yet is shown to `decide` as well.
    pub fn remove_if<Q>(&self, key: &Q, decide: impl FnOnce(View<'_, V>) -> bool) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let mut transfer = self.transfer();
        let mut shard = self.lock(self.home(hash));
        let index = shard.find(hash, key)?;
        if !shard.get(index).is_some_and(|node| decide(node.view())) {
            return None;
        }
        let node = shard.take_out(index, &mut transfer);
        drop(shard);
        self.finish(transfer);

        let node = node?;
        transfer::announce(self.listener.as_deref(), &node, Cause::Removed);
        let Node { key, value, .. } = node;
        drop(key);
        Some(value)
    }

    /// Changes when the entry at a key expires. Does not count as a use. Says whether there was
    /// an entry that had not expired.
    pub fn set_expires<Q>(&self, key: &Q, expires: Tick, now: Tick) -> bool
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.lock(self.home(hash));
        let node = shard.find(hash, key).and_then(|index| shard.get_mut(index));
        match node.filter(|node| !node.attributes.is_expired(now)) {
            Some(node) => {
                node.attributes.expires = expires;
                true
            }
            None => false,
        }
    }
}

/// All entries.
impl<K, V, S> Memory<K, V, S> {
    /// Removes all entries, shard by shard, and gives back the memory of their slots. Says how
    /// many there were.
    ///
    /// What other threads store meanwhile may stay. Takes time in proportion to the number of
    /// entries, but holds each lock for a short time only.
    pub fn clear(&self) -> u64 {
        let mut removed = 0;
        for index in 0..self.shards.len() {
            let mut transfer = self.transfer();
            let nodes = self.lock(index).take_all(&mut transfer);
            removed += u64::from(nodes.len());
            self.finish(transfer);
            for node in nodes.into_items() {
                transfer::announce(self.listener.as_deref(), &node, Cause::Removed);
            }
        }
        removed
    }

    /// Removes all entries whose [`Attributes::space`] this is. Says how many there were.
    ///
    /// Looks at every entry, shard by shard, each under its lock. What other threads store
    /// meanwhile may stay.
    pub fn remove_space(&self, space: u32) -> u64 {
        self.retain(|_, view| view.attributes.space != space)
    }

    /// Removes all entries to which `keep` says no, expired ones too. Says how many that were.
    ///
    /// Looks at every entry, shard by shard, each under its lock. When `keep` panics, the entries
    /// it has said no to are removed.
    pub fn retain(&self, mut keep: impl FnMut(&K, View<'_, V>) -> bool) -> u64 {
        let mut removed = 0;
        for index in 0..self.shards.len() {
            let mut transfer = self.transfer();
            self.lock(index).retain(&mut keep, &mut transfer);
            removed += self.finish(transfer) as u64;
        }
        removed
    }

    /// Shows all entries that have not expired, in no order that means anything, shard by shard,
    /// each under its lock. Does not count as a use.
    pub fn for_each(&self, now: Tick, mut see: impl FnMut(&K, View<'_, V>)) {
        for index in 0..self.shards.len() {
            let shard = self.lock(index);
            for node in shard.iter().filter(|node| !node.attributes.is_expired(now)) {
                see(&node.key, node.view());
            }
        }
    }

    /// Frees expired entries in at most `limit` slots, from where the last sweep stopped; it goes
    /// around the whole cache at most once.
    ///
    /// Expired entries take room until something meets them. Calling this from time to time frees
    /// it without any traffic, with a bounded amount of work for each call.
    ///
    /// ```
    /// use terrace_memory::{Attributes, Memory, Tick};
    ///
    /// let cache = Memory::builder().build();
    /// let soon = Attributes { expires: Tick(10), ..Attributes::default() };
    /// cache.insert("key", "value", soon, Tick(0));
    ///
    /// assert_eq!(cache.sweep(Tick(9), 1_000).removed, 0);
    /// assert_eq!(cache.sweep(Tick(10), 1_000).removed, 1);
    /// assert_eq!(cache.bytes(), 0);
    /// ```
    pub fn sweep(&self, now: Tick, limit: usize) -> Sweep {
        let start = *self.cursor.lock();
        let mut at = start;
        let mut visits = 0;
        let mut sweep = Sweep::default();
        // The last visit is to the part of the first shard that the first one left out.
        while sweep.examined < limit && visits <= self.shards.len() {
            let end = if visits == self.shards.len() { start.slot } else { u32::MAX };
            let left = u32::try_from(limit - sweep.examined).unwrap_or(u32::MAX);
            let stop = at.slot.saturating_add(left.min(SWEEP_BATCH)).min(end);

            let mut transfer = self.transfer();
            let mut shard = self.lock(at.shard);
            let slots = shard.slots();
            let stop = stop.min(slots);
            shard.sweep(at.slot..stop, now, &mut transfer);
            drop(shard);
            sweep.removed += self.finish(transfer);
            sweep.examined += stop.saturating_sub(at.slot) as usize;
            at.slot = stop;
            if stop == slots.min(end) {
                visits += 1;
                if visits <= self.shards.len() {
                    at = Cursor { shard: (at.shard + 1) % self.shards.len(), slot: 0 };
                }
            }
        }
        *self.cursor.lock() = at;
        sweep
    }
}

/// Numbers.
impl<K, V, S> Memory<K, V, S> {
    /// How many entries there are, expired ones that nothing has met yet among them. Locks every
    /// shard once.
    #[must_use]
    pub fn len(&self) -> usize {
        (0..self.shards.len()).map(|index| self.lock(index).len() as usize).sum()
    }

    /// Whether there is no entry. Locks every shard once, at most.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        (0..self.shards.len()).all(|index| self.lock(index).len() == 0)
    }

    /// The bytes charged now: for all entries, and for what is being stored at this moment. Never
    /// more than [`Memory::max_bytes`].
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.budget.used()
    }

    /// What a single entry may weigh at most: a larger one is not stored.
    #[must_use]
    pub fn max_value_bytes(&self) -> u64 {
        self.max_value_bytes
    }

    /// The most bytes that may be charged.
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        self.budget.max()
    }

    /// The most that [`Memory::bytes`] has ever been.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.budget.peak()
    }

    /// What the cache has done, and what it holds. Locks every shard once; numbers of different
    /// shards are not of the same instant.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = Stats {
            bytes: self.bytes(),
            peak_bytes: self.peak_bytes(),
            max_bytes: self.max_bytes(),
            ..Stats::default()
        };
        for index in 0..self.shards.len() {
            let shard = self.lock(index);
            stats += shard.counters;
            stats.entries += u64::from(shard.len());
        }
        stats
    }

    /// Panics unless everything inside agrees. For tests; no other thread may use the cache.
    #[doc(hidden)]
    pub fn validate(&self) {
        let mut bytes = 0;
        for index in 0..self.shards.len() {
            bytes += self.lock(index).validate(|hash| self.home(hash) == index);
        }
        assert_eq!(bytes, self.bytes(), "bytes are charged that no entry has");
        assert!(bytes <= self.max_bytes(), "more bytes are charged than may be");
    }
}

/// Parts of the above.
impl<K, V, S> Memory<K, V, S> {
    fn transfer(&self) -> Transfer<'_, K, V> {
        Transfer::new(&self.budget)
    }

    fn finish(&self, transfer: Transfer<'_, K, V>) -> usize {
        transfer.finish(self.listener.as_deref())
    }

    /// The number of the shard for a hash. The table uses the low and the highest bits of the
    /// hash as it is; these are others, so the tables stay evenly filled.
    fn home(&self, hash: u64) -> usize {
        (hash.wrapping_mul(SPREAD) >> 48) as usize & (self.shards.len() - 1)
    }

    #[expect(clippy::indexing_slicing, reason = "the index is below the number of shards")]
    fn lock(&self, index: usize) -> MutexGuard<'_, Shard<K, V>> {
        self.shards[index].0.lock()
    }
}

/// Shows numbers only, and takes no lock.
impl<K, V, S> fmt::Debug for Memory<K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("bytes", &self.bytes())
            .field("max_bytes", &self.max_bytes())
            .field("max_value_bytes", &self.max_value_bytes)
            .field("shards", &self.shards.len())
            .finish_non_exhaustive()
    }
}

/// What a builder has settled.
pub(crate) struct Settings<K, V, S> {
    pub(crate) max_bytes: u64,
    pub(crate) max_value_bytes: u64,
    /// A power of two.
    pub(crate) shards: usize,
    pub(crate) weigher: Box<Weigher<K, V>>,
    pub(crate) listener: Option<Box<Listener<K, V>>>,
    pub(crate) hasher: S,
}
