//! A shard: the part of the entries that is under one lock. Readers do not take the lock.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use hashbrown::Equivalent;
use parking_lot::{Mutex, MutexGuard};

use crate::budget::{Amount, Budget};
use crate::entry::View;
use crate::epoch::Epoch;
use crate::index::{Index, IndexReader, Place};
use crate::policy::{AnyOrder, Entries, Order, Touch};
use crate::slot::{Life, Slot};
use crate::slots::{Lists, Slots, SlotsReader};
use crate::spaces::Spaces;
use crate::stats::Counters;
use crate::transfer::Transfer;
use crate::{Attributes, Cause, Tick};

/// What all shards of a cache have in common.
pub(crate) struct Common {
    pub(crate) epoch: Epoch,
    pub(crate) budget: Budget,
    pub(crate) spaces: Spaces,
    /// Whether orders count bytes, or entries.
    pub(crate) by_bytes: bool,
    /// Negative entries may take so much of what a shard may hold.
    pub(crate) negative_percent: u64,
}

impl Common {
    fn cost(&self, weight: u64) -> u64 {
        if self.by_bytes { weight } else { 1 }
    }
}

/// Readers and writers have cache lines of their own; 128 bytes, because processors fetch lines
/// in pairs.
pub(crate) struct Shard<K, V> {
    pub(crate) reader: Padded<Reader<K, V>>,
    writer: Padded<Mutex<Writer<K, V>>>,
    tally: Padded<Tally>,
}

#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

/// What readers need.
pub(crate) struct Reader<K, V> {
    index: IndexReader,
    slots: SlotsReader<K, V>,
    /// Counts the values stored, for orders that go by the time of use.
    clock: AtomicU32,
}

/// What the shard holds, for those who only want to know.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) bytes: AtomicU64,
    pub(crate) garbage: AtomicU64,
    pub(crate) entries: AtomicU64,
}

/// What is under the lock.
struct Writer<K, V> {
    index: Index,
    slots: Slots<K, V>,
    order: AnyOrder,
    /// What the shard has borrowed of the budget: entries and garbage together are never more.
    lease: Amount,
    live: Amount,
    garbage: Amount,
    /// What of `live` is negative.
    negative: u64,
    /// Slots that were taken out since the epoch was last advanced.
    open: Vec<u32>,
    /// Slots that were taken out before this epoch.
    closed: Vec<u32>,
    closed_at: u64,
    /// Lists and tables that readers may still be in, and since when not.
    old: Vec<(u64, Old<K, V>)>,
    /// The last patient wait was in vain.
    is_stalled: bool,
    /// The number of entries that the order was told to expect.
    expected: usize,
    counters: Counters,
}

/// Kept until it can be dropped.
#[expect(dead_code, reason = "kept to be dropped")]
enum Old<K, V> {
    Lists(Lists<K, V>),
    Slots(Slots<K, V>),
    Table(Index),
}

/// An entry takes what its slot takes, and its part in index, policy and unused room.
pub(crate) const fn overhead<K, V>() -> u64 {
    let slot = size_of::<Slot<K, V>>() - size_of::<K>() - size_of::<V>();
    // A group of 64 bytes for 8 to 10 entries, a fingerprint and a sketch of 6.4 bytes, places in
    // a queue, and segments and garbage that are not full.
    slot as u64 + 20
}

/// What came of an attempt to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// There is enough.
    Made,
    /// There is not, and other shards have to make it.
    Elsewhere,
    /// There is not, and cannot be.
    None,
}

impl<K, V> Shard<K, V> {
    /// A shard that is expected to hold so many entries, or 0 if that is not known.
    pub(crate) fn new(order: AnyOrder, entries: usize) -> Self {
        let (index, index_reader) = Index::new();
        let (slots, slots_reader) = Slots::new(order.touch());
        let writer = Writer {
            index,
            slots,
            order,
            lease: Amount::default(),
            live: Amount::default(),
            garbage: Amount::default(),
            negative: 0,
            open: Vec::new(),
            closed: Vec::new(),
            closed_at: 0,
            old: Vec::new(),
            is_stalled: false,
            expected: entries,
            counters: Counters::default(),
        };
        let reader = Reader { index: index_reader, slots: slots_reader, clock: AtomicU32::new(0) };
        Self {
            reader: Padded(reader),
            writer: Padded(Mutex::new(writer)),
            tally: Padded(Tally::default()),
        }
    }

    pub(crate) fn lock<'a>(&'a self, common: &'a Common) -> Locked<'a, K, V> {
        self.locked(common, self.writer.0.lock())
    }

    pub(crate) fn try_lock<'a>(&'a self, common: &'a Common) -> Option<Locked<'a, K, V>> {
        Some(self.locked(common, self.writer.0.try_lock()?))
    }

    fn locked<'a>(
        &'a self,
        common: &'a Common,
        writer: MutexGuard<'a, Writer<K, V>>,
    ) -> Locked<'a, K, V> {
        Locked { common, reader: &self.reader.0, tally: &self.tally.0, writer }
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally.0
    }
}

impl<K, V> Reader<K, V> {
    /// The slot of a key.
    ///
    /// # Safety
    /// The epoch of the cache is pinned, and stays so while what is returned is used.
    #[inline(always)]
    pub(crate) unsafe fn find<Q>(&self, hash: u32, key: &Q) -> Option<(u32, &Slot<K, V>)>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let mut found = None;
        self.index.find(hash, |number| {
            // SAFETY: by the contract; what is in the index is full.
            let slot = unsafe { self.slots.slot(number) };
            // SAFETY: as above.
            let is_it = key.equivalent(unsafe { &slot.entry().0 });
            if is_it {
                found = Some((number, slot));
            }
            is_it
        });
        found
    }

    /// Asks for the line of the index that [`Reader::find`] will read.
    #[inline(always)]
    pub(crate) fn prefetch_index(&self, hash: u32) {
        self.index.prefetch(hash);
    }

    /// Asks for the slot that [`Reader::find`] will probably read.
    ///
    /// # Safety
    /// As for [`Reader::find`].
    #[inline(always)]
    pub(crate) unsafe fn prefetch_slot(&self, hash: u32) {
        if let Some(number) = self.index.find(hash, |_| true) {
            // SAFETY: by the contract.
            crate::prefetch::line(unsafe { self.slots.slot(number) });
        }
    }

    /// Notes that an entry was used, for orders that want to know more than that.
    ///
    /// # Safety
    /// As for [`Reader::find`], which returned the number.
    pub(crate) unsafe fn touch(&self, touch: Touch, number: u32) {
        // SAFETY: by the contract.
        let Some(touched) = (unsafe { self.slots.touched(number) }) else { return };
        let present = touched.load(Relaxed);
        let next = match touch {
            Touch::Nothing => return,
            Touch::Time => self.clock.load(Relaxed),
            Touch::Count => present.saturating_add(1),
        };
        if next != present {
            touched.store(next, Relaxed);
        }
    }

    /// The space of an entry.
    ///
    /// # Safety
    /// As for [`Reader::touch`].
    pub(crate) unsafe fn space(&self, number: u32) -> u32 {
        // SAFETY: by the contract.
        unsafe { self.slots.extra(number) }.map_or(0, |extra| extra.space.load(Relaxed))
    }

    /// Puts off the end of an entry that expires when it is not used.
    ///
    /// # Safety
    /// As for [`Reader::touch`].
    pub(crate) unsafe fn renew(&self, number: u32, slot: &Slot<K, V>, life: Life, now: Tick) {
        // SAFETY: by the contract.
        let Some(extra) = (unsafe { self.slots.extra(number) }) else { return };
        let idle = u64::from(extra.idle_millis());
        let expires = Tick(now.0.saturating_add(idle)).min(extra.until());
        // Not every read is noted, so that a hot entry is not written to all the time.
        if expires.0 > life.expires().0.saturating_add(idle / 8) || expires == extra.until() {
            slot.change_life(life, life.with_expires(expires));
        }
    }
}

/// A shard whose lock is held.
pub(crate) struct Locked<'a, K, V> {
    common: &'a Common,
    reader: &'a Reader<K, V>,
    tally: &'a Tally,
    writer: MutexGuard<'a, Writer<K, V>>,
}

impl<K, V> Drop for Locked<'_, K, V> {
    fn drop(&mut self) {
        let writer = &*self.writer;
        self.tally.bytes.store(writer.live.bytes, Relaxed);
        self.tally.garbage.store(writer.garbage.bytes, Relaxed);
        self.tally.entries.store(writer.live.entries, Relaxed);
    }
}

/// Looking.
impl<K, V> Locked<'_, K, V> {
    /// The slot of a key and its place in the index; expired or not.
    pub(crate) fn find<Q>(&self, hash: u32, key: &Q) -> Option<(u32, Place)>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let slots = &self.writer.slots;
        // The hashes are compared as well, so that no disagreement between a caller's `Hash` and
        // `Eq` can put an entry under a hash that is not its own.
        self.writer.index.find(hash, |number| {
            let slot = slots.get(number);
            // SAFETY: what is in the index is full, and the lock is held.
            slot.hash() == hash && key.equivalent(unsafe { &slot.entry().0 })
        })
    }

    pub(crate) fn counters(&mut self) -> &mut Counters {
        &mut self.writer.counters
    }

    pub(crate) fn slot(&self, number: u32) -> &Slot<K, V> {
        self.writer.slots.get(number)
    }

    /// The entry in a slot that is in the index.
    pub(crate) fn key(&self, number: u32) -> &K {
        // SAFETY: what is in the index is full, and the lock is held.
        unsafe { &self.slot(number).entry().0 }
    }

    /// The entry in a slot that is in the index, as the caller's closures see it.
    pub(crate) fn view(&self, number: u32) -> View<'_, V> {
        let slot = self.slot(number);
        // SAFETY: what is in the index is full, and the lock is held.
        let (_, value) = unsafe { slot.entry() };
        let extra = self.writer.slots.extra(number);
        view(value, slot, extra)
    }

    /// Whether an entry has neither expired nor was removed with its space.
    pub(crate) fn is_alive(&self, number: u32, now: Tick) -> bool {
        self.end_of(number, now).is_none()
    }

    /// Why an entry is dead that is still here; `None` if it is not.
    pub(crate) fn end_of(&self, number: u32, now: Tick) -> Option<Cause> {
        let life = self.slot(number).life();
        if life.is_expired(now) {
            return Some(Cause::Expired);
        }
        let space = || self.writer.slots.extra(number).map_or(0, |extra| extra.space.load(Relaxed));
        let spaces = &self.common.spaces;
        let is_old = life.generation() != spaces.generation();
        (is_old && spaces.is_removed(space(), life.generation())).then_some(Cause::Removed)
    }

    /// All slots have numbers below this one.
    pub(crate) fn end(&self) -> u32 {
        self.writer.slots.end()
    }

    /// Those of these slots that are in the index.
    pub(crate) fn live_in(&self, numbers: Range<u32>) -> impl Iterator<Item = u32> {
        let end = numbers.end.min(self.end());
        (numbers.start..end).filter(|&number| self.slot(number).is_live())
    }
}

/// Storing.
impl<K, V> Locked<'_, K, V> {
    /// Makes room for an entry of this weight, which replaces the one in `present` if there is
    /// one. That may have to go as well: then it is `None` afterwards.
    pub(crate) fn make_room(
        &mut self,
        weight: u64,
        present: &mut Option<(u32, Place)>,
        now: Tick,
        transfer: &mut Transfer<'_, K, V>,
    ) -> Room {
        // Evicting what is to be replaced anyhow would make no room.
        let spared = present.map(|(number, _)| (number, self.slot(number).pin()));
        let room = self.make_room_beside(weight, present, now, transfer);
        if let Some((number, was_pinned)) = spared
            && present.is_some()
        {
            self.slot(number).set_pinned(was_pinned);
        }
        room
    }

    fn make_room_beside(
        &mut self,
        weight: u64,
        present: &mut Option<(u32, Place)>,
        now: Tick,
        transfer: &mut Transfer<'_, K, V>,
    ) -> Room {
        loop {
            let writer = &*self.writer;
            let replaced = present.map_or(0, |(number, _)| u64::from(self.slot(number).weight()));
            let entries = writer.live.entries + u64::from(present.is_none());
            let bytes = writer.live.bytes - replaced + weight + self.reserve(weight);
            let used = writer.live.bytes + writer.garbage.bytes;
            let is_full = bytes > writer.lease.bytes || entries > writer.lease.entries;
            let lacks = (used + weight).saturating_sub(writer.lease.bytes);
            if !is_full && lacks == 0 && !self.has_too_much_garbage() {
                return Room::Made;
            }

            let lacking = Amount {
                bytes: bytes.saturating_sub(writer.lease.bytes).max(lacks),
                entries: entries.saturating_sub(writer.lease.entries),
            };
            if self.borrow(lacking) {
                continue;
            }
            if is_full {
                if weight > self.writer.lease.bytes {
                    return Room::Elsewhere;
                }
                match self.evict(now) {
                    true => continue,
                    false if self.writer.live.entries == 0 => return Room::Elsewhere,
                    false => return Room::None,
                }
            }
            if lacks > 0 && self.writer.garbage.entries == 0 {
                // What is to be replaced is in the way of what replaces it.
                match present.take() {
                    Some((number, place)) => {
                        let cause = self.end_of(number, now).unwrap_or(Cause::Replaced);
                        self.remove(number, place, cause);
                    }
                    None => return Room::Elsewhere,
                }
            }
            if !self.collect_now(transfer) && (lacks > 0 || self.has_too_much_garbage()) {
                return Room::None;
            }
            if lacks == 0 {
                return Room::Made;
            }
        }
    }

    /// Bytes that are kept free of entries so that garbage has a place: one part in 32, where
    /// that is room for some entries.
    fn reserve(&self, weight: u64) -> u64 {
        let writer = &*self.writer;
        let part = writer.lease.bytes / 32;
        let average = writer.live.bytes / writer.live.entries.max(1);
        if self.common.by_bytes && part >= 4 * average.max(weight) { part } else { 0 }
    }

    /// Borrows from the budget; `false` when there was nothing.
    fn borrow(&mut self, lacking: Amount) -> bool {
        let borrowed = self.common.budget.borrow(lacking);
        self.writer.lease.add(borrowed);
        borrowed != Amount::default()
    }

    /// Gives back what has been borrowed and is not used, but for a portion.
    fn return_lease(&mut self) {
        let (writer, portion) = (&mut *self.writer, self.common.budget.portion());
        let used = writer.live.bytes + writer.garbage.bytes;
        let spare = |lease: u64, used: u64, portion: u64| {
            let spare = lease - used;
            if spare > 2 * portion { spare - portion } else { 0 }
        };
        let spare = Amount {
            bytes: spare(writer.lease.bytes, used, portion.bytes),
            entries: spare(writer.lease.entries, writer.live.entries, portion.entries),
        };
        writer.lease.subtract(spare);
        self.common.budget.give_back(spare);
    }

    /// Evicts, and gives to the budget what that sets free, to `wanted` if possible.
    pub(crate) fn give_up(&mut self, wanted: Amount, now: Tick, transfer: &mut Transfer<'_, K, V>) {
        loop {
            let writer = &*self.writer;
            let used = writer.live.bytes + writer.garbage.bytes;
            let free = Amount {
                bytes: writer.lease.bytes - used,
                entries: writer.lease.entries - writer.live.entries,
            };
            let is_enough =
                free.entries >= wanted.entries && free.bytes + writer.garbage.bytes >= wanted.bytes;
            if !is_enough && self.evict(now) {
                continue;
            }
            if free.bytes < wanted.bytes
                && self.writer.garbage.entries > 0
                && self.collect_now(transfer)
            {
                continue;
            }
            let given = Amount {
                bytes: free.bytes.min(wanted.bytes),
                entries: free.entries.min(wanted.entries),
            };
            self.writer.lease.subtract(given);
            self.common.budget.give_back(given);
            return;
        }
    }

    /// Evicts one entry. `false` when there is none that may go.
    fn evict(&mut self, now: Tick) -> bool {
        let common = self.common;
        let Writer { order, slots, lease, .. } = &mut *self.writer;
        let limit = if common.by_bytes { lease.bytes } else { lease.entries };
        let Some(number) = order.evict(&InSlots { slots, common }, limit) else { return false };
        let hash = self.slot(number).hash();
        let Some((_, place)) = self.writer.index.find(hash, |found| found == number) else {
            debug_assert!(false, "an entry is in the order and not in the index");
            return false;
        };
        let cause = self.end_of(number, now).unwrap_or(Cause::Evicted);
        self.writer.index.remove(hash, place);
        self.retire(number, cause);
        true
    }

    /// Whether a negative entry of this weight would be one too many.
    pub(crate) fn is_over_quota(&self, weight: u64) -> bool {
        let writer = &*self.writer;
        let (lease, free) = (writer.lease, self.common.budget.free());
        let whole = if self.common.by_bytes {
            lease.bytes.saturating_add(free.bytes)
        } else {
            lease.entries.saturating_add(free.entries)
        };
        let quota = u128::from(whole) * u128::from(self.common.negative_percent) / 100;
        u128::from(writer.negative + self.common.cost(weight)) > quota
    }

    /// Stores an entry, in place of the one in `present`. Room has been made.
    #[expect(clippy::too_many_arguments, reason = "what an entry is made of")]
    pub(crate) fn store(
        &mut self,
        key: K,
        value: V,
        hash: u32,
        weight: u32,
        attributes: &Attributes,
        present: Option<(u32, Place)>,
        now: Tick,
        transfer: &mut Transfer<'_, K, V>,
    ) -> Result<(), (K, V)> {
        let (common, reader) = (self.common, self.reader);
        let writer = &mut *self.writer;
        let (epoch, old) = (&common.epoch, &mut writer.old);
        let claimed = writer
            .slots
            .claim(&reader.slots, |lists| old.push((epoch.advance(), Old::Lists(lists))));
        let Some(number) = claimed.filter(|_| writer.index.len() < Index::max_len()) else {
            return Err((key, value));
        };

        let slot = writer.slots.get(number);
        // SAFETY: the slot was claimed, so it is empty and in no index.
        unsafe { slot.fill(key, value, hash, weight, attributes.pinned) };
        writer.slots.set_extra(number, attributes);
        slot.set_life(Life::new(attributes, now, common.spaces.generation()));
        if writer.order.touch() == Touch::Time {
            let clock = reader.clock.load(Relaxed).wrapping_add(1);
            reader.clock.store(clock, Relaxed);
        }
        writer.live.add(Amount::entry(weight.into()));
        if attributes.negative {
            writer.negative += common.cost(weight.into());
        }
        writer.counters.inserts += 1;

        match present {
            Some((replaced, place)) => {
                writer.index.replace(place, number);
                let entries = InSlots { slots: &writer.slots, common };
                writer.order.replace(&entries, replaced, number);
                let cause = self.end_of(replaced, now).unwrap_or(Cause::Replaced);
                self.retire(replaced, cause);
            }
            None => {
                let slots = &writer.slots;
                let expected = u32::try_from(writer.expected).unwrap_or(u32::MAX);
                let hash_of = |number| slots.get(number).hash();
                if let Some(table) = writer.index.grow(&reader.index, expected, hash_of) {
                    writer.old.push((epoch.advance(), Old::Table(table)));
                }
                writer.index.insert(hash, number);
                if writer.index.len() as usize > writer.expected {
                    writer.expected = (writer.expected + writer.expected / 2).max(64);
                    writer.order.expect(writer.expected);
                }
                writer.order.insert(&InSlots { slots: &writer.slots, common }, number);
            }
        }
        self.tidy(transfer);
        Ok(())
    }
}

/// Removing.
impl<K, V> Locked<'_, K, V> {
    /// Takes an entry out of the index and the order.
    pub(crate) fn remove(&mut self, number: u32, place: Place, cause: Cause) {
        let common = self.common;
        let Writer { index, order, slots, .. } = &mut *self.writer;
        index.remove(slots.get(number).hash(), place);
        order.remove(&InSlots { slots, common }, number);
        self.retire(number, cause);
    }

    /// The same for an entry whose place is not known.
    pub(crate) fn remove_slot(&mut self, number: u32, cause: Cause) {
        let hash = self.slot(number).hash();
        let found = self.writer.index.find(hash, |found| found == number);
        if let Some((_, place)) = found {
            self.remove(number, place, cause);
        }
    }

    /// Removes those of these slots that are dead, and says how many.
    pub(crate) fn sweep(&mut self, numbers: Range<u32>, now: Tick) -> usize {
        let mut removed = 0;
        for number in numbers.start..numbers.end.min(self.end()) {
            if self.slot(number).is_live()
                && let Some(cause) = self.end_of(number, now)
            {
                self.remove_slot(number, cause);
                removed += 1;
            }
        }
        removed
    }

    /// Changes when an entry expires.
    pub(crate) fn set_expires(&mut self, number: u32, expires: Tick, now: Tick) {
        let life = self.slot(number).life();
        let mut next = expires;
        if life.is_idle()
            && let Some(extra) = self.writer.slots.extra(number)
        {
            extra.set_until(expires);
            next = Tick(now.0.saturating_add(extra.idle_millis().into())).min(expires);
        }
        self.slot(number).set_life(life.with_expires(next));
        let common = self.common;
        let Writer { order, slots, .. } = &mut *self.writer;
        order.expires_changed(&InSlots { slots, common }, number);
    }

    /// Puts an entry into the present generation.
    pub(crate) fn refresh(&self, number: u32) {
        let slot = self.slot(number);
        slot.set_life(slot.life().with_generation(self.common.spaces.generation()));
    }

    /// An entry has been taken out of the index and the order: its slot waits until no reader can
    /// hold it.
    fn retire(&mut self, number: u32, cause: Cause) {
        let common = self.common;
        let writer = &mut *self.writer;
        let slot = writer.slots.get(number);
        slot.retire();
        let amount = Amount::entry(slot.weight().into());
        writer.live.subtract(amount);
        writer.garbage.add(amount);
        if slot.life().is_negative() {
            writer.negative -= common.cost(amount.bytes);
        }
        writer.counters.left(cause);
        // The order has no use for the region any more.
        slot.set_region(cause.code());
        writer.open.push(number);
    }
}

/// Freeing.
impl<K, V> Locked<'_, K, V> {
    /// How many slots are freed at a time: often enough that little waits, seldom enough that
    /// finding out about readers costs each entry little.
    fn batch(&self) -> u64 {
        let live = self.writer.live.entries;
        if self.common.by_bytes { (live / 128).clamp(4, 1024) } else { (live / 16).clamp(16, 1024) }
    }

    fn has_much_garbage(&self) -> bool {
        self.writer.open.len() as u64 >= self.batch()
    }

    /// Where bytes are not bounded, garbage has to be.
    fn has_too_much_garbage(&self) -> bool {
        self.writer.garbage.entries >= 8 * self.batch()
    }

    /// Frees what waits, if it is much, or if somebody wants to be told of it soon; and gives back
    /// what is left over.
    pub(crate) fn tidy(&mut self, transfer: &mut Transfer<'_, K, V>) {
        self.return_lease();
        if transfer.has_listener() {
            self.collect_all(transfer);
        } else if self.has_much_garbage() {
            self.collect(transfer);
        }
    }

    /// Frees all that no reader holds at this moment.
    pub(crate) fn collect_all(&mut self, transfer: &mut Transfer<'_, K, V>) {
        for _ in 0..2 {
            self.collect(transfer);
        }
    }

    /// Frees what is known to be free, and closes what waits, to be freed next time. Only if that
    /// has not worked out does it look for readers, and for all shards.
    fn collect(&mut self, transfer: &mut Transfer<'_, K, V>) {
        let epoch = &self.common.epoch;
        if !self.writer.closed.is_empty() && !epoch.is_settled(self.writer.closed_at) {
            epoch.settle();
            if !epoch.is_settled(self.writer.closed_at) {
                return;
            }
        }
        self.free_closed(transfer);
        self.close();
    }

    /// Frees all that waits, if readers let go of it within a short time; says whether they did.
    fn collect_now(&mut self, transfer: &mut Transfer<'_, K, V>) -> bool {
        // Twice, because some may be closed already and some not.
        for _ in 0..2 {
            if self.writer.closed.is_empty() {
                self.close();
            }
            if !self.wait() {
                return false;
            }
            self.free_closed(transfer);
        }
        true
    }

    fn wait(&mut self) -> bool {
        let (epoch, closed_at) = (&self.common.epoch, self.writer.closed_at);
        if self.writer.closed.is_empty() || epoch.is_settled(closed_at) {
            return true;
        }
        let is_settled = if self.writer.is_stalled {
            epoch.settle();
            epoch.is_settled(closed_at)
        } else {
            epoch.settle_patiently(closed_at)
        };
        self.writer.is_stalled = !is_settled;
        is_settled
    }

    fn close(&mut self) {
        let writer = &mut *self.writer;
        debug_assert!(writer.closed.is_empty(), "slots would be freed too early");
        if !writer.open.is_empty() {
            std::mem::swap(&mut writer.open, &mut writer.closed);
            writer.closed_at = self.common.epoch.advance();
        }
    }

    fn free_closed(&mut self, transfer: &mut Transfer<'_, K, V>) {
        let epoch = &self.common.epoch;
        let writer = &mut *self.writer;
        for number in writer.closed.drain(..) {
            let slot = writer.slots.get(number);
            writer.garbage.subtract(Amount::entry(slot.weight().into()));
            let cause = Cause::from_code(slot.region());
            // SAFETY: it was taken out of the index before the epoch that is settled now.
            transfer.receive(unsafe { slot.take() }, cause);
            writer.slots.release(number);
        }
        writer.old.retain(|(since, _)| !epoch.is_settled(*since));
    }
}

/// The whole.
impl<K, V> Locked<'_, K, V> {
    /// How hot an entry is; comparable within a cache.
    pub(crate) fn rank(&self, number: u32) -> (u32, u8, u8) {
        let slot = self.slot(number);
        let touched = self.writer.slots.touched(number).map_or(0, |touched| touched.load(Relaxed));
        (touched, slot.uses(), slot.region())
    }

    /// How many bytes and entries there are.
    pub(crate) fn entries(&self) -> u64 {
        self.writer.live.entries
    }

    /// Removes all entries.
    pub(crate) fn clear(&mut self) {
        let numbers: Vec<u32> = self.live_in(0..self.end()).collect();
        for number in numbers {
            self.remove_slot(number, Cause::Removed);
        }
    }

    /// Gives back the memory of a shard in which nothing is left.
    pub(crate) fn reset(&mut self) {
        let (epoch, reader, writer) = (&self.common.epoch, self.reader, &mut *self.writer);
        if writer.live.entries > 0 || writer.garbage.entries > 0 || writer.slots.end() == 0 {
            return;
        }
        writer.order.clear();
        (writer.open, writer.closed) = (Vec::new(), Vec::new());
        // Readers may still be looking through the empty index, and find nothing.
        let old = [
            Old::Table(writer.index.renew(&reader.index)),
            Old::Slots(writer.slots.renew(&reader.slots)),
        ];
        let since = epoch.advance();
        writer.old.extend(old.map(|old| (since, old)));
    }

    /// Panics unless everything inside agrees, and returns what is borrowed.
    pub(crate) fn validate(&self) -> Amount {
        let writer = &*self.writer;
        let mut live = Amount::default();
        let mut negative = 0;
        let mut numbers: Vec<u32> = writer.index.slots().collect();
        assert_eq!(numbers.len(), writer.index.len() as usize, "the index miscounts");
        numbers.sort_unstable();
        for &number in &numbers {
            let slot = self.slot(number);
            assert!(slot.is_live(), "an entry in the index is not there");
            let found = self.find(slot.hash(), &Same(self.key(number)));
            assert_eq!(found.map(|found| found.0), Some(number), "an entry cannot be found");
            live.add(Amount::entry(slot.weight().into()));
            if slot.life().is_negative() {
                negative += self.common.cost(slot.weight().into());
            }
        }
        assert!(self.live_in(0..self.end()).eq(numbers.iter().copied()), "an entry is lost");
        assert_eq!(live, writer.live, "what lives is miscounted");
        assert_eq!(negative, writer.negative, "what is negative is miscounted");
        let mut garbage = Amount::default();
        for &number in writer.open.iter().chain(&writer.closed) {
            let slot = self.slot(number);
            assert!(slot.is_full() && !slot.is_live(), "garbage is not garbage");
            garbage.add(Amount::entry(slot.weight().into()));
        }
        assert_eq!(garbage, writer.garbage, "garbage is miscounted");
        assert!(live.bytes + garbage.bytes <= writer.lease.bytes, "more is held than borrowed");
        assert!(live.entries <= writer.lease.entries, "more is held than borrowed");
        writer.order.validate(&InSlots { slots: &writer.slots, common: self.common }, &numbers);
        writer.lease
    }
}

/// A key that is equivalent to itself alone.
struct Same<'a, K>(&'a K);

impl<K> Equivalent<K> for Same<'_, K> {
    fn equivalent(&self, key: &K) -> bool {
        std::ptr::eq(self.0, key)
    }
}

pub(crate) fn view<'a, K, V>(
    value: &'a V,
    slot: &Slot<K, V>,
    extra: Option<&crate::slots::Extra>,
) -> View<'a, V> {
    let life = slot.life();
    let mut attributes = Attributes {
        expires: life.expires(),
        pinned: slot.is_pinned(),
        negative: life.is_negative(),
        ..Attributes::default()
    };
    if let Some(extra) = extra {
        attributes.stamp = extra.stamp.load(Relaxed);
        attributes.space = extra.space.load(Relaxed);
        if life.is_idle() {
            attributes.idle = Some(std::time::Duration::from_millis(extra.idle_millis().into()));
            attributes.expires = extra.until();
        }
    }
    View { value, attributes, weight: slot.weight().into() }
}

impl<K, V> Reader<K, V> {
    /// An entry as the caller's closures see it.
    ///
    /// # Safety
    /// As for [`Reader::touch`].
    pub(crate) unsafe fn view<'a>(&'a self, number: u32, slot: &'a Slot<K, V>) -> View<'a, V> {
        // SAFETY: by the contract.
        let (value, extra) = unsafe { (&slot.entry().1, self.slots.extra(number)) };
        view(value, slot, extra)
    }
}

/// The slots of a shard as its order sees them.
struct InSlots<'a, K, V> {
    slots: &'a Slots<K, V>,
    common: &'a Common,
}

impl<K, V> Entries for InSlots<'_, K, V> {
    #[inline]
    fn uses(&self, slot: u32) -> u8 {
        self.slots.get(slot).uses()
    }

    #[inline]
    fn set_uses(&self, slot: u32, uses: u8) {
        self.slots.get(slot).set_uses(uses);
    }

    fn touched(&self, slot: u32) -> u32 {
        self.slots.touched(slot).map_or(0, |touched| touched.load(Relaxed))
    }

    fn set_touched(&self, slot: u32, touched: u32) {
        if let Some(cell) = self.slots.touched(slot) {
            cell.store(touched, Relaxed);
        }
    }

    #[inline]
    fn hash(&self, slot: u32) -> u32 {
        self.slots.get(slot).hash()
    }

    #[inline]
    fn cost(&self, slot: u32) -> u64 {
        self.common.cost(self.slots.get(slot).weight().into())
    }

    fn expires(&self, slot: u32) -> u64 {
        self.slots.get(slot).life().expires().0
    }

    #[inline]
    fn is_pinned(&self, slot: u32) -> bool {
        self.slots.get(slot).is_pinned()
    }

    #[inline]
    fn region(&self, slot: u32) -> u8 {
        let slot = self.slots.get(slot);
        // An empty slot, or one that waits to be freed, is in no region.
        if slot.is_live() { slot.region() } else { 0 }
    }

    #[inline]
    fn set_region(&self, slot: u32, region: u8) {
        self.slots.get(slot).set_region(region);
    }

    fn slots(&self) -> u32 {
        self.slots.end()
    }
}
