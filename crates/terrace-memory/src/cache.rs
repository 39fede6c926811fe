//! The cache: the shards, the budget they share, and all that can be asked of them.

use std::fmt;
use std::hash::{BuildHasher, Hash};

use hashbrown::Equivalent;

use crate::budget::{Amount, Budget};
use crate::builder::{DefaultHasher, MAX_SHARD_BITS, Weigher};
use crate::epoch::{Epoch, Pin};
use crate::index::{HASH_BITS, Place};
use crate::listener::Listener;
use crate::policy::{AnyOrder, Touch};
use crate::sampling::Sampling;
use crate::shard::{self, Common, Locked, Room, Shard};
use crate::slot::{MAX_WEIGHT, Slot};
use crate::spaces::Spaces;
use crate::stats::Reads;
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};
use crate::sync::{Mutex, global};
use crate::transfer::Transfer;
use crate::{
    Attributes, Builder, Cause, Compute, Eviction, Insert, Replace, Stats, Sweep, Tick, View,
};

/// A cache in memory, bounded in bytes or entries or both, for any number of threads.
///
/// It is shared by reference or in an [`Arc`](std::sync::Arc). See the [crate] for what it
/// guarantees, what an entry costs, and which of your code runs under a lock. A key is looked up
/// by anything that hashes like it and is [`Equivalent`] to it, for example a `String` by a `str`.
///
/// Reads take no lock and write to nothing that other threads read; all other calls lock one shard
/// at a time. Unless it says otherwise, a call takes a short time that does not depend on the
/// number of entries; and unless it says otherwise it cannot fail.
pub struct Memory<K, V, S = DefaultHasher> {
    shards: Box<[Shard<K, V>]>,
    shard_mask: usize,
    hasher: S,
    touch: Touch,
    sampling: Sampling,
    common: Common,
    reads: Reads,
    /// Where the next sweep begins.
    cursor: Mutex<Cursor>,
    max_value_bytes: u64,
    weigher: Option<Box<Weigher<K, V>>>,
    listener: Option<Box<Listener<K, V>>>,
}

// SAFETY: threads that share a cache read the same keys and values at the same time (`Sync`), and
// any of them may drop what another one has stored (`Send`). The weigher and the listener are
// both; everything else inside is atomic or under a lock.
unsafe impl<K: Send + Sync, V: Send + Sync, S: Sync> Sync for Memory<K, V, S> {}
// SAFETY: as above; a cache that is sent may leave threads behind that still read from it only if
// it was shared.
unsafe impl<K: Send + Sync, V: Send + Sync, S: Send> Send for Memory<K, V, S> {}

/// A slot of a shard.
#[derive(Clone, Copy)]
struct Cursor {
    shard: usize,
    slot: u32,
}

/// A hash, and what it decides.
#[derive(Clone, Copy)]
struct Hashed {
    whole: u64,
    shard: usize,
    /// The part of the hash that the index of the shard goes by.
    local: u32,
}

/// A sweep gives other threads a chance at the lock after this many slots.
const SWEEP_BATCH: u32 = 256;

/// Spreads a hash over its high bits, which is where shards and indexes look: 2^64 divided by the
/// golden ratio.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Below the bits that decide the shard are those that the index of the shard goes by.
const SHIFT: u32 = u64::BITS - MAX_SHARD_BITS - HASH_BITS;

/// How often a store asks the other shards for room.
const ROUNDS: usize = 64;

/// So many keys of [`Memory::get_many`] are looked up at a time.
const MANY: usize = 16;

impl<K, V> Memory<K, V> {
    /// The settings of a cache, to be changed and built.
    pub fn builder() -> Builder<K, V> {
        Builder::new()
    }
}

impl<K, V, S> Memory<K, V, S> {
    /// What an entry is charged besides the bytes of its key and its value: the rest of its slot,
    /// and its part in index and policy.
    pub const OVERHEAD: u64 = shard::overhead::<K, V>();

    pub(crate) fn new(settings: Settings<K, V, S>) -> Self {
        let shards = 1_usize << settings.shard_bits;
        let in_all = usize::try_from(settings.expected).unwrap_or(usize::MAX);
        let in_shard = in_all / shards;
        let sampling = Sampling::new(in_all.max(1), settings.eviction == Eviction::Hybrid);
        let order = || AnyOrder::new(settings.eviction, in_shard, sampling.rule());
        global! { static CACHES: AtomicU64 = AtomicU64::new(0); }
        let max = Amount { bytes: settings.max_bytes, entries: settings.max_entries };
        Self {
            touch: order().touch(),
            shards: (0..shards).map(|_| Shard::new(order(), in_shard)).collect(),
            shard_mask: shards - 1,
            hasher: settings.hasher,
            common: Common {
                epoch: Epoch::new(CACHES.fetch_add(1, Relaxed)),
                budget: Budget::new(max, shards as u64),
                spaces: Spaces::new(),
                by_bytes: settings.by_bytes,
                negative_percent: settings.negative_percent.into(),
                negative: AtomicU64::new(0),
            },
            sampling,
            reads: Reads::new(),
            cursor: Mutex::new(Cursor { shard: 0, slot: 0 }),
            max_value_bytes: settings.max_value_bytes.min(MAX_WEIGHT),
            weigher: settings.weigher,
            listener: settings.listener,
        }
    }
}

/// Reading.
impl<K, V, S: BuildHasher> Memory<K, V, S> {
    /// A clone of the value at a key. Counts as a use of the entry.
    ///
    /// Let `V` be cheap to clone, or use [`Memory::get_with`]: an [`Arc`](std::sync::Arc) has a
    /// count that all threads write to, which alone takes longer than all the rest of a hit as
    /// soon as two threads read the same value.
    #[inline]
    pub fn get<Q>(&self, key: &Q, now: Tick) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        V: Clone,
    {
        self.get_with(key, now, V::clone)
    }

    /// What `read` makes of the value at a key. Counts as a use of the entry. `read` is not
    /// called when there is none.
    ///
    /// No lock is held while `read` runs, and it may call the cache. Let it be short all the same:
    /// what leaves the cache meanwhile is kept until it returns, and when too much is kept, values
    /// are not stored any more ([`Insert::NoRoom`]).
    #[inline]
    pub fn get_with<Q, R>(&self, key: &Q, now: Tick, read: impl FnOnce(&V) -> R) -> Option<R>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let hash = self.hash(key);
        if self.sampling.wants(hash.whole) {
            self.sample(hash);
        }
        let pin = self.common.epoch.pin();
        let found = self.find(&pin, hash, key);
        if let Some((number, slot)) = found {
            let judged = self.judge(&pin, hash, number, slot, now);
            if judged != Judged::Dead {
                self.note_use(&pin, hash, number, slot, judged, now);
                // SAFETY: the slot was found after the epoch was pinned, which it still is.
                return Some(read(unsafe { &slot.entry().1 }));
            }
            drop(pin);
            self.bury(hash, key, now);
            return None;
        }
        self.reads.count(pin.thread(), false);
        None
    }

    /// Calls `read` for each of these keys, in order, with its index and the value at it, if there
    /// is one. Counts as a use of each entry.
    ///
    /// The memory for several keys is asked for at a time: in a cache that is larger than the
    /// processor's, this is more than twice as fast as one call for each.
    pub fn get_many<Q>(&self, keys: &[Q], now: Tick, mut read: impl FnMut(usize, Option<&V>))
    where
        Q: Hash + Equivalent<K>,
    {
        let pin = self.common.epoch.pin();
        for (chunk, keys) in keys.chunks(MANY).enumerate() {
            let mut hashes = [Hashed { whole: 0, shard: 0, local: 0 }; MANY];
            for (hash, key) in hashes.iter_mut().zip(keys) {
                *hash = self.hash(key);
                self.shard(*hash).reader.0.prefetch_index(hash.local);
            }
            for (hash, _) in hashes.iter().zip(keys) {
                // SAFETY: the epoch is pinned.
                unsafe { self.shard(*hash).reader.0.prefetch_slot(hash.local) };
            }
            for (at, (hash, key)) in hashes.into_iter().zip(keys).enumerate() {
                if self.sampling.wants(hash.whole) {
                    self.sample(hash);
                }
                let found = self.find(&pin, hash, key).and_then(|(number, slot)| {
                    let judged = self.judge(&pin, hash, number, slot, now);
                    (judged != Judged::Dead).then_some((number, slot, judged))
                });
                if let Some((number, slot, judged)) = found {
                    self.note_use(&pin, hash, number, slot, judged, now);
                } else {
                    self.reads.count(pin.thread(), false);
                }
                // SAFETY: the slot was found after the epoch was pinned, which it still is.
                let value = found.map(|(_, slot, _)| unsafe { &slot.entry().1 });
                read(chunk * MANY + at, value);
            }
        }
    }

    /// What `read` makes of the entry at a key. Does not count as a use, nor in the statistics.
    ///
    /// As with [`Memory::get_with`], no lock is held while `read` runs.
    pub fn peek_with<Q, R>(
        &self,
        key: &Q,
        now: Tick,
        read: impl FnOnce(View<'_, V>) -> R,
    ) -> Option<R>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let hash = self.hash(key);
        let pin = self.common.epoch.pin();
        let (number, slot) = self.find(&pin, hash, key)?;
        if self.judge(&pin, hash, number, slot, now) == Judged::Dead {
            return None;
        }
        // SAFETY: the slot was found after the epoch was pinned, which it still is.
        Some(read(unsafe { self.shard(hash).reader.0.view(number, slot) }))
    }

    /// Whether there is a value at a key. Does not count as a use, nor in the statistics.
    pub fn contains<Q>(&self, key: &Q, now: Tick) -> bool
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.peek_with(key, now, |_| ()).is_some()
    }

    #[inline(always)]
    fn find<'a, Q>(&'a self, _pin: &'a Pin, hash: Hashed, key: &Q) -> Option<(u32, &'a Slot<K, V>)>
    where
        Q: Equivalent<K> + ?Sized,
    {
        // SAFETY: the epoch is pinned for as long as what is returned lives.
        unsafe { self.shard(hash).reader.0.find(hash.local, key) }
    }

    #[inline(always)]
    fn judge(&self, pin: &Pin, hash: Hashed, number: u32, slot: &Slot<K, V>, now: Tick) -> Judged {
        // Before the life: an entry of this generation was not removed with its space before now.
        let plain = self.common.spaces.plain();
        let life = slot.life();
        if life.is_expired(now) {
            Judged::Dead
        } else if life.odd_bits() == plain {
            Judged::Alive
        } else if self.is_odd_alive(pin, hash, number, slot) {
            Judged::OddAlive
        } else {
            Judged::Dead
        }
    }

    /// The same for an entry that has not expired and was stored before a space was removed, or
    /// expires when it is not used.
    #[cold]
    fn is_odd_alive(&self, _pin: &Pin, hash: Hashed, number: u32, slot: &Slot<K, V>) -> bool {
        let spaces = &self.common.spaces;
        // SAFETY: the slot was found while the epoch was pinned, as it is.
        let space = unsafe { self.shard(hash).reader.0.space(number) };
        loop {
            let generation = spaces.generation();
            let life = slot.life();
            if life.generation() == generation {
                return true;
            }
            let is_removed = spaces.is_removed(space, life.generation());
            if spaces.generation() < generation {
                // Generations began anew meanwhile.
                continue;
            }
            if !is_removed {
                // It need not be looked up again until the next space is removed.
                slot.change_life(life, life.with_generation(generation));
            }
            return !is_removed;
        }
    }

    #[inline(always)]
    fn note_use(
        &self,
        pin: &Pin,
        hash: Hashed,
        number: u32,
        slot: &Slot<K, V>,
        judged: Judged,
        now: Tick,
    ) {
        self.reads.count(pin.thread(), true);
        slot.count_use();
        if self.touch != Touch::Nothing || judged != Judged::Alive {
            self.note_more(pin, hash, number, slot, now);
        }
    }

    #[inline(never)]
    fn note_more(&self, _pin: &Pin, hash: Hashed, number: u32, slot: &Slot<K, V>, now: Tick) {
        let reader = &self.shard(hash).reader.0;
        let life = slot.life();
        // SAFETY: the slot was found while the epoch was pinned, as it is.
        unsafe {
            reader.touch(self.touch, number);
            if life.is_idle() {
                reader.renew(number, slot, life, now);
            }
        }
    }

    /// Removes an entry that a read has found dead, if it still is, and if that needs no waiting: a
    /// read may be called under the lock of the shard.
    #[cold]
    fn bury<Q>(&self, hash: Hashed, key: &Q, now: Tick)
    where
        Q: Equivalent<K> + ?Sized,
    {
        self.reads.count(self.common.epoch.pin().thread(), false);
        let mut transfer = self.transfer();
        let Some(mut locked) = self.shard(hash).try_lock(&self.common) else { return };
        if let Some((number, place)) = locked.find(hash.local, key)
            && let Some(cause) = locked.end_of(number, now)
        {
            locked.remove(number, place, cause);
            locked.tidy(&mut transfer);
        }
        drop(locked);
        transfer.finish();
    }

    #[cold]
    fn sample(&self, hash: Hashed) {
        self.sampling.sample(hash.whole, || self.len());
    }
}

/// Storing.
impl<K: Hash + Eq, V, S: BuildHasher> Memory<K, V, S> {
    /// Stores a value, in place of the one at its key if there is one. Counts as a use.
    ///
    /// A value that is charged more than [`Builder::max_value_bytes`], or for which there is no
    /// room ([`Insert::NoRoom`]), is not stored, and what was at its key is removed: it is older
    /// than the value that was to replace it. Where the bound has no room for both, the older one
    /// goes first: who reads between the two finds none.
    ///
    /// To make room, entries are evicted, no more than needed: those of the key's shard first, and
    /// when there are no more, those of all other shards alike.
    #[inline]
    pub fn insert(&self, key: K, value: V, attributes: Attributes, now: Tick) -> Insert {
        let weight = self.weigh(&key, &value);
        let replace = self.change(key, now, |_, _| Change::Store { value, attributes, weight });
        match replace {
            Replace::Replaced => Insert::Replaced,
            Replace::TooLarge => Insert::TooLarge,
            Replace::NoRoom => Insert::NoRoom,
            // Never refused: the closure above agrees to everything.
            Replace::Stored | Replace::Refused => Insert::Stored,
        }
    }

    /// Stores a value if `decide` says yes to what is at its key.
    ///
    /// `decide` is called once, with the entry at the key, or `None` when there is none or it has
    /// expired. It runs under the lock: no other thread changes the key between the question and
    /// the store. When it says no, nothing is changed at the key.
    ///
    /// Room is made as for [`Memory::insert`], after `decide` has said yes.
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
        let weight = self.weigh(&key, &value);
        // The value is not dropped under the lock when it is refused.
        let mut value = Some(value);
        self.change(key, now, |_, present| {
            if decide(present)
                && let Some(value) = value.take()
            {
                Change::Store { value, attributes, weight }
            } else {
                Change::Refuse
            }
        })
    }

    /// Stores, keeps or removes, as `compute` makes of what is at the key.
    ///
    /// `compute` is called once, with the entry at the key, or `None` when there is none or it has
    /// expired. It runs under the lock of the shard, and so does the weigher: let it be short, and
    /// not call the cache. When it panics, nothing is changed.
    ///
    /// ```
    /// use terrace_memory::{Attributes, Compute, Memory, Tick};
    ///
    /// let counts = Memory::builder().build();
    /// for word in ["a", "b", "a"] {
    ///     counts.compute(word, Tick(0), |present| {
    ///         let count = present.map_or(0, |present| *present.value) + 1;
    ///         Compute::Store(count, Attributes::default())
    ///     });
    /// }
    /// assert_eq!(counts.get("a", Tick(0)), Some(2));
    /// ```
    pub fn compute(
        &self,
        key: K,
        now: Tick,
        compute: impl FnOnce(Option<View<'_, V>>) -> Compute<V>,
    ) -> Replace {
        self.change(key, now, |key, present| match compute(present) {
            Compute::Keep => Change::Refuse,
            Compute::Remove => Change::Remove,
            Compute::Store(value, attributes) => {
                let weight = self.weigh(key, &value);
                Change::Store { value, attributes, weight }
            }
        })
    }

    /// Saturates: what weighs more than can be said is too large anyway.
    fn weigh(&self, key: &K, value: &V) -> u64 {
        let own = (size_of::<K>() + size_of::<V>()) as u64;
        let bytes = self.weigher.as_ref().map_or(own, |weigher| weigher(key, value));
        bytes.saturating_add(Self::OVERHEAD)
    }

    // A panic drops the locals from the last to the first: the shard is unlocked before the
    // transfer drops anything of the caller's.
    fn change(
        &self,
        key: K,
        now: Tick,
        decide: impl FnOnce(&K, Option<View<'_, V>>) -> Change<V>,
    ) -> Replace {
        let hash = self.hash(&key);
        let mut transfer = self.transfer();
        let mut unstored = None;
        // Comes while the lock is taken.
        self.shard(hash).reader.0.prefetch_index(hash.local);
        let mut locked = self.shard(hash).lock(&self.common);
        let mut present = locked.find(hash.local, &key);
        let shown = present.filter(|(number, _)| locked.is_alive(*number, now));
        let replaces = shown.is_some();

        let outcome = match decide(&key, shown.map(|(number, _)| locked.view(number))) {
            Change::Refuse => {
                locked.counters().refused += 1;
                unstored = Some((key, None));
                Replace::Refused
            }
            Change::Remove => {
                Self::give_way(&mut locked, present, now);
                locked.tidy(&mut transfer);
                unstored = Some((key, None));
                if replaces { Replace::Replaced } else { Replace::Refused }
            }
            Change::Store { value, weight, .. } if weight > self.max_value_bytes => {
                locked.counters().rejected += 1;
                Self::give_way(&mut locked, present, now);
                locked.tidy(&mut transfer);
                unstored = Some((key, Some(value)));
                Replace::TooLarge
            }
            Change::Store { value, attributes, weight } => {
                let has_room = !(attributes.negative && locked.is_over_quota(weight, present))
                    && self.make_room(&mut locked, hash, weight, &mut present, now, &mut transfer);
                let refused = if has_room {
                    let weight = weight.min(MAX_WEIGHT) as u32;
                    let (attributes, transfer) = (&attributes, &mut transfer);
                    locked
                        .store(key, value, hash.local, weight, attributes, present, now, transfer)
                        .err()
                } else {
                    Some((key, value))
                };
                match refused {
                    None if replaces => Replace::Replaced,
                    None => Replace::Stored,
                    Some((key, value)) => {
                        locked.counters().no_room += 1;
                        Self::give_way(&mut locked, present, now);
                        locked.tidy(&mut transfer);
                        unstored = Some((key, Some(value)));
                        Replace::NoRoom
                    }
                }
            }
        };
        drop(locked);
        transfer.finish();
        drop(unstored);
        outcome
    }

    /// Removes what was to be replaced by a value that is not stored.
    fn give_way(locked: &mut Locked<'_, K, V>, present: Option<(u32, Place)>, now: Tick) {
        if let Some((number, place)) = present {
            let cause = locked.end_of(number, now).unwrap_or(Cause::Removed);
            locked.remove(number, place, cause);
        }
    }

    fn make_room(
        &self,
        locked: &mut Locked<'_, K, V>,
        hash: Hashed,
        weight: u64,
        present: &mut Option<(u32, Place)>,
        now: Tick,
        transfer: &mut Transfer<'_, K, V>,
    ) -> bool {
        let evicted = locked.counters().evicted();
        let mut has_room = false;
        for _ in 0..ROUNDS {
            match locked.make_room(weight, present, now, transfer) {
                Room::Made => has_room = true,
                Room::None => {}
                Room::Elsewhere(lacking) if self.shards.len() > 1 => {
                    self.make_room_elsewhere(hash, lacking, now, transfer);
                    continue;
                }
                Room::Elsewhere(_) => {}
            }
            break;
        }
        if locked.counters().evicted() > evicted {
            self.sampling.evicting();
        }
        has_room
    }

    /// Evicts from the shards but one until what is lacking can be borrowed: from each at least its
    /// part, beginning with another one each time. Locks that others hold are not waited for: they
    /// might wait for ours.
    #[cold]
    fn make_room_elsewhere(
        &self,
        home: Hashed,
        mut lacking: Amount,
        now: Tick,
        transfer: &mut Transfer<'_, K, V>,
    ) {
        let part = lacking.divided_by(self.shards.len() as u64 - 1);
        let part = part.max(self.common.budget.portion());
        let first = home.local as usize;
        let others = (0..self.shards.len()).map(|at| (first + at) & self.shard_mask);
        for index in others.filter(|index| *index != home.shard) {
            if lacking == Amount::default() {
                break;
            }
            if let Some(mut shard) = self.try_lock(index) {
                lacking.subtract(shard.give_up(part.min(lacking), lacking, now, transfer));
            }
        }
    }
}

/// Changing and removing.
impl<K, V, S: BuildHasher> Memory<K, V, S> {
    /// Removes the value at a key and returns a clone of it, because readers may still hold it.
    ///
    /// There is no time to compare with, so a value that has expired and that nothing has met yet
    /// is returned as well.
    pub fn remove<Q>(&self, key: &Q) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        V: Clone,
    {
        let mut removed = None;
        self.remove_if(key, |view| {
            removed = Some(view.value.clone());
            true
        });
        removed
    }

    /// Removes the entry at a key if `decide` says yes to it, and says whether it did. Asking and
    /// removing are one step, under the lock. An expired entry that nothing has met yet is shown
    /// to `decide` as well.
    pub fn remove_if<Q>(&self, key: &Q, decide: impl FnOnce(View<'_, V>) -> bool) -> bool
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let hash = self.hash(key);
        let mut transfer = self.transfer();
        let mut locked = self.lock(hash.shard);
        let Some((number, place)) = locked.find(hash.local, key) else { return false };
        let is_removed = locked.end_of(number, Tick(0)) == Some(Cause::Removed);
        if is_removed || !decide(locked.view(number)) {
            return false;
        }
        locked.remove(number, place, Cause::Removed);
        locked.tidy(&mut transfer);
        drop(locked);
        transfer.finish();
        true
    }

    /// Changes when the entry at a key expires. Does not count as a use. Says whether there was
    /// an entry that had not expired.
    pub fn set_expires<Q>(&self, key: &Q, expires: Tick, now: Tick) -> bool
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let hash = self.hash(key);
        let mut locked = self.lock(hash.shard);
        let found = locked.find(hash.local, key).filter(|(found, _)| locked.is_alive(*found, now));
        if let Some((number, _)) = found {
            locked.set_expires(number, expires, now);
        }
        found.is_some()
    }
}

/// All entries.
impl<K, V, S> Memory<K, V, S> {
    /// Removes all entries, shard by shard. Says how many there were.
    ///
    /// What other threads store meanwhile may stay. The memory is given back, or kept for what is
    /// stored next.
    pub fn clear(&self) -> u64 {
        self.empty(|locked| {
            let count = locked.entries();
            locked.clear();
            count
        })
    }

    /// Removes all entries of a space, in one step and in a time that does not depend on how many
    /// there are.
    ///
    /// No read finds one any more that was stored before. They are counted, and take room, until
    /// something meets them: a read, a store, an eviction or [`Memory::sweep`]. Every 65,535 calls
    /// all entries are looked at, under the locks of their shards; if a read holds on all the time
    /// meanwhile, this is so at each call until it returns.
    pub fn remove_space(&self, space: u32) {
        // Before the removal begins, because a listener may remove spaces too.
        let mut transfer = self.transfer();
        let removal = self.common.spaces.removal();
        if removal.has_run_out() {
            self.renew(&mut transfer);
            if !self.common.epoch.settle_patiently(self.common.epoch.advance()) {
                // A reader that holds on might put an entry into a generation to come: so none
                // begins, and the entries of the space are removed one by one.
                self.remove_each_of(space, &mut transfer);
                drop(removal);
                return transfer.finish();
            }
            removal.begin_anew();
            self.renew(&mut transfer);
            removal.forget();
        }
        removal.finish(space);
        transfer.finish();
    }

    #[cold]
    fn remove_each_of(&self, space: u32, transfer: &mut Transfer<'_, K, V>) {
        self.in_each_shard(transfer, |locked| {
            let is_of = |number: &u32| locked.view(*number).attributes.space == space;
            let numbers: Vec<u32> = locked.live_in(0..locked.end()).filter(is_of).collect();
            for number in numbers {
                locked.remove_slot(number, Cause::Removed);
            }
        });
    }

    /// Removes the entries whose space was removed, and puts all others into the present
    /// generation.
    #[cold]
    fn renew(&self, transfer: &mut Transfer<'_, K, V>) {
        self.in_each_shard(transfer, |locked| {
            let numbers: Vec<u32> = locked.live_in(0..locked.end()).collect();
            for number in numbers {
                match locked.end_of(number, Tick(0)) {
                    Some(cause) => locked.remove_slot(number, cause),
                    None => locked.refresh(number),
                }
            }
        });
    }

    /// Removes all entries for which `keep` says no, shard by shard, each under its lock. Says how
    /// many there were. Expired entries are shown to `keep` as well.
    ///
    /// When `keep` panics, what it was asked about before has been removed or kept as it said.
    pub fn retain(&self, mut keep: impl FnMut(&K, View<'_, V>) -> bool) -> u64 {
        self.empty(|locked| {
            let numbers: Vec<u32> = locked.live_in(0..locked.end()).collect();
            let mut removed = 0;
            for number in numbers {
                if !keep(locked.key(number), locked.view(number)) {
                    locked.remove_slot(number, Cause::Removed);
                    removed += 1;
                }
            }
            removed
        })
    }

    /// Removes something from each shard, frees what readers let go of, and announces it before
    /// it goes on.
    fn empty(&self, mut remove: impl FnMut(&mut Locked<'_, K, V>) -> u64) -> u64 {
        let mut removed = 0;
        for index in 0..self.shards.len() {
            let mut transfer = self.transfer();
            removed += self.empty_shard(index, &mut transfer, &mut remove);
            transfer.finish();
        }
        removed
    }

    /// The same, but nothing is announced yet.
    fn in_each_shard(
        &self,
        transfer: &mut Transfer<'_, K, V>,
        mut remove: impl FnMut(&mut Locked<'_, K, V>),
    ) {
        for index in 0..self.shards.len() {
            self.empty_shard(index, transfer, &mut remove);
        }
    }

    fn empty_shard<R>(
        &self,
        index: usize,
        transfer: &mut Transfer<'_, K, V>,
        mut remove: impl FnMut(&mut Locked<'_, K, V>) -> R,
    ) -> R {
        let mut locked = self.lock(index);
        let removed = remove(&mut locked);
        locked.collect_all(transfer);
        locked.reset();
        locked.tidy(transfer);
        removed
    }

    /// Shows all entries that have not expired, in no order that means anything, some at a time
    /// under the lock of their shard. Does not count as a use.
    pub fn for_each(&self, now: Tick, mut see: impl FnMut(&K, View<'_, V>)) {
        for index in 0..self.shards.len() {
            let mut next = 0;
            loop {
                let locked = self.lock(index);
                if next >= locked.end() {
                    break;
                }
                for number in locked.live_in(next..next.saturating_add(SWEEP_BATCH)) {
                    if locked.is_alive(number, now) {
                        see(locked.key(number), locked.view(number));
                    }
                }
                next = next.saturating_add(SWEEP_BATCH);
            }
        }
    }

    /// The keys of the entries that were read most since the policy last looked, the hottest
    /// first: what to load first into a cache that begins anew. At most `limit`; looks at all
    /// entries.
    #[must_use]
    pub fn hottest(&self, limit: usize, now: Tick) -> Vec<K>
    where
        K: Clone,
    {
        let mut ranked = Vec::new();
        for index in 0..self.shards.len() {
            let locked = self.lock(index);
            for number in locked.live_in(0..locked.end()) {
                if locked.is_alive(number, now) {
                    ranked.push((locked.rank(number), locked.key(number).clone()));
                }
            }
        }
        ranked.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
        ranked.into_iter().take(limit).map(|(_, key)| key).collect()
    }

    /// Frees expired entries in at most `limit` slots, from where the last sweep stopped; it goes
    /// around the whole cache at most once. Also frees what has left the cache and what no reader
    /// holds any more.
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
            let mut locked = self.lock(at.shard);
            let slots = locked.end();
            let stop = stop.min(slots);
            sweep.removed += locked.sweep(at.slot..stop, now);
            locked.collect_all(&mut transfer);
            locked.tidy(&mut transfer);
            drop(locked);
            transfer.finish();
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
    /// How many entries there are, expired ones that nothing has met yet among them. Takes no
    /// lock; while other threads store, it is about right.
    #[must_use]
    pub fn len(&self) -> usize {
        let entries = |shard: &Shard<K, V>| shard.tally().entries.load(Relaxed);
        self.shards.iter().map(entries).sum::<u64>().min(self.max_entries()) as usize
    }

    /// Whether there is no entry; see [`Memory::len`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes that all entries are charged now. Together with what has left and is still kept for
    /// readers ([`Stats::garbage_bytes`]) never more than [`Memory::max_bytes`]. Takes no lock;
    /// while other threads store, it is about right.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let bytes = |shard: &Shard<K, V>| shard.tally().bytes.load(Relaxed);
        self.shards.iter().map(bytes).sum::<u64>().min(self.max_bytes())
    }

    /// What a single entry may weigh at most: a larger one is not stored.
    #[must_use]
    pub fn max_value_bytes(&self) -> u64 {
        self.max_value_bytes
    }

    /// The most bytes that may be charged.
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        self.common.budget.max().bytes
    }

    /// The most entries there may be.
    #[must_use]
    pub fn max_entries(&self) -> u64 {
        self.common.budget.max().entries
    }

    /// The most bytes that were ever set aside for entries: at least the most that
    /// [`Memory::bytes`] has ever been, and at most one part in 16 of the whole more.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.common.budget.peak_bytes()
    }

    /// What the cache has done, and what it holds. Locks every shard once; numbers of different
    /// shards are not of the same instant.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let (hits, misses) = self.reads.sum();
        let mut stats = Stats {
            hits,
            misses,
            bytes: self.bytes(),
            peak_bytes: self.peak_bytes(),
            max_bytes: self.max_bytes(),
            max_entries: self.max_entries(),
            ..Stats::default()
        };
        for shard in &self.shards {
            let mut locked = shard.lock(&self.common);
            stats += *locked.counters();
            stats.entries += locked.entries();
            stats.garbage_bytes += shard.tally().garbage.load(Relaxed);
        }
        stats
    }
}

/// Tests.
impl<K, V, S> Memory<K, V, S> {
    /// Panics unless everything inside agrees. No other thread may use the cache.
    #[doc(hidden)]
    pub fn validate(&self) {
        let mut borrowed = self.common.budget.free();
        let mut negative = 0;
        for index in 0..self.shards.len() {
            let (lease, negative_here) = self.lock(index).validate();
            borrowed.add(lease);
            negative += negative_here;
        }
        assert_eq!(borrowed, self.common.budget.max(), "a part of the budget is lost");
        let counted = self.common.negative.load(Relaxed);
        assert_eq!(negative, counted, "what is negative is miscounted");
        let held = self.bytes() + self.stats().garbage_bytes;
        assert!(held <= self.max_bytes(), "more bytes are held than may be");
    }
}

/// Parts of the above.
impl<K, V, S> Memory<K, V, S> {
    fn transfer(&self) -> Transfer<'_, K, V> {
        Transfer::new(self.listener.as_deref())
    }

    #[inline(always)]
    fn hash<Q: Hash + ?Sized>(&self, key: &Q) -> Hashed
    where
        S: BuildHasher,
    {
        let whole = self.hasher.hash_one(key).wrapping_mul(SPREAD);
        // The highest bits are the best ones: shards take the first, indexes those that follow.
        let shard = (whole >> (u64::BITS - MAX_SHARD_BITS)) as usize & self.shard_mask;
        let local = (whole >> SHIFT) as u32 & ((1 << HASH_BITS) - 1);
        Hashed { whole, shard, local }
    }

    #[inline(always)]
    fn shard(&self, hash: Hashed) -> &Shard<K, V> {
        // SAFETY: the mask is the number of shards less one, and hashes are only made by `hash`.
        unsafe { self.shards.get_unchecked(hash.shard) }
    }

    #[expect(clippy::indexing_slicing, reason = "the index is below the number of shards")]
    fn lock(&self, index: usize) -> Locked<'_, K, V> {
        self.shards[index].lock(&self.common)
    }

    #[expect(clippy::indexing_slicing, reason = "the index is below the number of shards")]
    fn try_lock(&self, index: usize) -> Option<Locked<'_, K, V>> {
        self.shards[index].try_lock(&self.common)
    }
}

/// Shows numbers only, and takes no lock.
impl<K, V, S> fmt::Debug for Memory<K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("bytes", &self.bytes())
            .field("max_bytes", &self.max_bytes())
            .field("entries", &self.len())
            .field("max_entries", &self.max_entries())
            .field("max_value_bytes", &self.max_value_bytes)
            .field("shards", &self.shards.len())
            .finish_non_exhaustive()
    }
}

/// Whether an entry may be shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Judged {
    Dead,
    Alive,
    /// It expires when it is not used, or was stored before a space was removed.
    OddAlive,
}

/// What is to become of a key.
enum Change<V> {
    Refuse,
    Remove,
    Store { value: V, attributes: Attributes, weight: u64 },
}

/// What a builder has settled.
pub(crate) struct Settings<K, V, S> {
    pub(crate) max_bytes: u64,
    pub(crate) max_entries: u64,
    pub(crate) by_bytes: bool,
    pub(crate) max_value_bytes: u64,
    pub(crate) negative_percent: u8,
    pub(crate) eviction: Eviction,
    pub(crate) shard_bits: u32,
    /// Entries that are expected; 0 if that is not known.
    pub(crate) expected: u64,
    pub(crate) weigher: Option<Box<Weigher<K, V>>>,
    pub(crate) listener: Option<Box<Listener<K, V>>>,
    pub(crate) hasher: S,
}
