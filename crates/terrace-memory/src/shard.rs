//! A shard: the part of the entries that is under one lock. Readers do not take the lock.

use std::ops::Range;

use hashbrown::Equivalent;

use crate::budget::{Amount, Budget};
use crate::entry::View;
use crate::epoch::Epoch;
use crate::index::{Index, IndexReader, Place};
use crate::policy::{AnyOrder, Entries, Look, Order, Touch};
use crate::prefetch;
use crate::slot::{Life, Slot};
use crate::slots::{Lists, Slots, SlotsReader};
use crate::spaces::Spaces;
use crate::stats::Counters;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use crate::sync::{Mutex, MutexGuard};
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
    /// What they take.
    pub(crate) negative: AtomicU64,
}

impl Common {
    #[inline]
    fn cost(&self, weight: u64) -> u64 {
        if self.by_bytes { weight } else { 1 }
    }
}

/// Readers and writers have cache lines of their own; 128 bytes, because processors fetch lines
/// in pairs.
pub(crate) struct Shard<K, V> {
    pub(crate) reader: Padded<Reader<K, V>>,
    guarded: Padded<Guarded<K, V>>,
}

/// What those change who have the lock, and the lock.
#[repr(C)]
struct Guarded<K, V> {
    tally: Tally,
    writer: Mutex<Writer<K, V>>,
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

/// What is under the lock. What every store needs comes first: the fewer cache lines, the less
/// there is to be brought from the processor that had the lock before.
#[repr(C)]
struct Writer<K, V> {
    /// What the shard has borrowed of the budget: entries and garbage together are never more.
    lease: Amount,
    accounts: Accounts,
    /// So many slots are freed at a time.
    batch: u64,
    index: Index,
    slots: Slots<K, V>,
    /// The number of entries that the order was told to expect.
    expected: usize,
    order: AnyOrder,
    /// Slots that were taken out before this epoch.
    closed: Vec<u32>,
    closed_at: u64,
    /// Lists and tables that readers may still be in, and since when not.
    old: Vec<(u64, Old<K, V>)>,
    /// Where to look next for dead entries that may not be evicted.
    next_dead: u32,
    /// The last patient wait was in vain.
    is_stalled: bool,
    /// Evictions since it was last compared with the entries there are.
    evictions: u64,
    /// The most entries there were at one of them.
    most: u64,
}

/// What is here, and what has left.
#[derive(Default)]
#[repr(C)]
struct Accounts {
    live: Amount,
    garbage: Amount,
    /// Slots that were taken out since the epoch was last advanced.
    open: Vec<u32>,
    counters: Counters,
}

impl Accounts {
    /// An entry has been taken out of the index and the order: its slot waits until no reader can
    /// hold it.
    #[inline]
    fn retire<K, V>(&mut self, common: &Common, slot: &Slot<K, V>, number: u32, cause: Cause) {
        let (life, weight) = slot.retire(cause.code());
        let amount = Amount::entry(weight.into());
        self.live.subtract(amount);
        self.garbage.add(amount);
        if life.is_negative() {
            common.negative.fetch_sub(common.cost(amount.bytes), Relaxed);
        }
        self.counters.left(cause);
        self.open.push(number);
    }
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
    // A group of 64 bytes for 8 or 9 entries, a fingerprint and a sketch of 6.4 bytes, places in
    // a queue, and segments and garbage that are not full.
    slot as u64 + 20
}

impl<K, V> Writer<K, V> {
    /// Tells the order if there are far fewer entries than it expects, in a shard that is full. An
    /// order that remembers more than it should takes whatever comes back for something new.
    fn expect_no_more(&mut self) {
        self.evictions += 1;
        self.most = self.most.max(self.accounts.live.entries);
        if self.evictions >= 2 * self.most.max(32) {
            let most = usize::try_from(self.most).unwrap_or(usize::MAX);
            if most < self.expected / 2 {
                self.expected = most;
                self.order.expect(most);
            }
            (self.evictions, self.most) = (0, 0);
        }
    }
}

/// What is missing for an entry.
struct Lack {
    /// What the entries would exceed the lease by, if there were no garbage.
    of_lease: Amount,
    /// The bytes by which entries and garbage would exceed it.
    of_space: u64,
}

/// So many slots at a time are looked at for dead entries that may not be evicted.
const DEAD_BATCH: u32 = 1024;

/// What came of an attempt to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// There is enough.
    Made,
    /// There is not, and other shards have to give so much.
    Elsewhere(Amount),
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
            accounts: Accounts::default(),
            closed: Vec::new(),
            closed_at: 0,
            old: Vec::new(),
            batch: 4,
            next_dead: 0,
            is_stalled: false,
            expected: entries,
            evictions: 0,
            most: 0,
        };
        let reader = Reader { index: index_reader, slots: slots_reader, clock: AtomicU32::new(0) };
        Self {
            reader: Padded(reader),
            guarded: Padded(Guarded { tally: Tally::default(), writer: Mutex::new(writer) }),
        }
    }

    pub(crate) fn lock<'a>(&'a self, common: &'a Common) -> Locked<'a, K, V> {
        self.locked(common, self.guarded.0.writer.lock())
    }

    pub(crate) fn try_lock<'a>(&'a self, common: &'a Common) -> Option<Locked<'a, K, V>> {
        Some(self.locked(common, self.guarded.0.writer.try_lock()?))
    }

    fn locked<'a>(
        &'a self,
        common: &'a Common,
        writer: MutexGuard<'a, Writer<K, V>>,
    ) -> Locked<'a, K, V> {
        Locked { common, reader: &self.reader.0, tally: self.tally(), writer }
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.guarded.0.tally
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
            prefetch::line(unsafe { self.slots.slot(number) });
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
        let is_much = expires.0 > life.expires().0.saturating_add(idle / 8);
        let is_last = expires == extra.until() && expires != life.expires();
        if (is_much || is_last) && slot.change_life(life, life.with_expires(expires)) {
            // If the end was brought forward meanwhile, whoever did so has either seen this change,
            // and undone it, or is seen here.
            slot.update_life(|life| life.with_expires(life.expires().min(extra.until())));
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
        self.tally.bytes.store(writer.accounts.live.bytes, Relaxed);
        self.tally.garbage.store(writer.accounts.garbage.bytes, Relaxed);
        self.tally.entries.store(writer.accounts.live.entries, Relaxed);
    }
}

/// Looking.
impl<K, V> Locked<'_, K, V> {
    /// The slot of a key and its place in the index; expired or not.
    #[inline]
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
        &mut self.writer.accounts.counters
    }

    #[inline]
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
    #[inline]
    pub(crate) fn is_alive(&self, number: u32, now: Tick) -> bool {
        self.end_of(number, now).is_none()
    }

    /// Why an entry is dead that is still here; `None` if it is not.
    #[inline]
    pub(crate) fn end_of(&self, number: u32, now: Tick) -> Option<Cause> {
        let slots = &self.writer.slots;
        end_of(self.common, slots, number, slots.get(number), now)
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
    #[inline]
    pub(crate) fn make_room(
        &mut self,
        weight: u64,
        present: &mut Option<(u32, Place)>,
        now: Tick,
        transfer: &mut Transfer<'_, K, V>,
    ) -> Room {
        // What is needed most often: one entry has to go, and no more.
        if present.is_none() && self.lacks_one_entry(weight) && self.evict(None, now) {
            return Room::Made;
        }
        loop {
            let Lack { of_lease, of_space } = self.lack(weight, *present);
            if of_lease == Amount::default() && of_space == 0 && !self.has_too_much_garbage() {
                return Room::Made;
            }
            let lacking = Amount { bytes: of_lease.bytes.max(of_space), ..of_lease };
            if self.borrow(lacking) {
                continue;
            }
            if of_lease != Amount::default() {
                if weight > self.writer.lease.bytes {
                    return Room::Elsewhere(lacking);
                }
                // Evicting what is to be replaced anyhow would make no room.
                if self.evict(present.map(|(number, _)| number), now) {
                    continue;
                }
                let is_empty = self.writer.accounts.live.entries == 0;
                return if is_empty { Room::Elsewhere(lacking) } else { Room::None };
            }
            if of_space > 0 && self.writer.accounts.garbage.entries == 0 {
                // What is to be replaced is in the way of what replaces it.
                let Some((number, place)) = present.take() else {
                    return Room::Elsewhere(lacking);
                };
                let cause = self.end_of(number, now).unwrap_or(Cause::Replaced);
                self.remove(number, place, cause);
            }
            if !self.collect_now(transfer) && (of_space > 0 || self.has_too_much_garbage()) {
                return Room::None;
            }
            if of_space == 0 {
                return Room::Made;
            }
        }
    }

    /// Whether all that a new entry of this weight lacks is that another one goes.
    #[inline]
    fn lacks_one_entry(&self, weight: u64) -> bool {
        let (writer, common) = (&*self.writer, self.common);
        let held = writer.accounts.live.bytes + writer.accounts.garbage.bytes + weight;
        !common.by_bytes
            && writer.accounts.live.entries == writer.lease.entries
            && held <= writer.lease.bytes
            && !self.has_too_much_garbage()
            && common.budget.free().entries == 0
    }

    /// What is missing for an entry of this weight that replaces the one in `present`.
    #[inline]
    fn lack(&self, weight: u64, present: Option<(u32, Place)>) -> Lack {
        let writer = &*self.writer;
        let replaced = present.map_or(0, |(number, _)| u64::from(self.slot(number).weight()));
        let entries = writer.accounts.live.entries + u64::from(present.is_none());
        let bytes = writer.accounts.live.bytes - replaced + weight;
        let reserve = if self.common.by_bytes { self.reserve(weight) } else { 0 };
        let held = writer.accounts.live.bytes + writer.accounts.garbage.bytes + weight;
        Lack {
            of_lease: Amount {
                bytes: (bytes + reserve).saturating_sub(writer.lease.bytes),
                entries: entries.saturating_sub(writer.lease.entries),
            },
            of_space: held.saturating_sub(writer.lease.bytes),
        }
    }

    /// Bytes that are kept free of entries so that garbage has a place: one part in 32, where
    /// that is room for some entries.
    fn reserve(&self, weight: u64) -> u64 {
        let writer = &*self.writer;
        let part = writer.lease.bytes / 32;
        // Four entries of average weight, or four like the new one.
        let is_enough = part.saturating_mul(writer.accounts.live.entries)
            >= 4 * writer.accounts.live.bytes
            && part / 4 >= weight;
        if is_enough { part } else { 0 }
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
        let used = writer.accounts.live.bytes + writer.accounts.garbage.bytes;
        let spare = |lease: u64, used: u64, portion: u64| {
            let spare = lease - used;
            if spare > 2 * portion { spare - portion } else { 0 }
        };
        let spare = Amount {
            bytes: spare(writer.lease.bytes, used, portion.bytes),
            entries: spare(writer.lease.entries, writer.accounts.live.entries, portion.entries),
        };
        writer.lease.subtract(spare);
        self.common.budget.give_back(spare);
    }

    /// Gives to the budget what the shard does not use, at most `lacking`. Evicts until that is
    /// `wanted`, if possible. Returns what it gave.
    pub(crate) fn give_up(
        &mut self,
        wanted: Amount,
        lacking: Amount,
        now: Tick,
        transfer: &mut Transfer<'_, K, V>,
    ) -> Amount {
        loop {
            let writer = &*self.writer;
            let used = writer.accounts.live.bytes + writer.accounts.garbage.bytes;
            let free = Amount {
                bytes: writer.lease.bytes - used,
                entries: writer.lease.entries - writer.accounts.live.entries,
            };
            let is_enough = free.entries >= wanted.entries
                && free.bytes + writer.accounts.garbage.bytes >= wanted.bytes;
            if !is_enough && self.evict(None, now) {
                continue;
            }
            if free.bytes < wanted.bytes
                && self.writer.accounts.garbage.entries > 0
                && self.collect_now(transfer)
            {
                continue;
            }
            let given = free.min(lacking);
            self.writer.lease.subtract(given);
            self.common.budget.give_back(given);
            self.tidy(transfer);
            return given;
        }
    }

    /// Evicts an entry, or removes dead ones. `false` when there is none that may go. The slot in
    /// `spared` stays as it is.
    #[inline]
    fn evict(&mut self, spared: Option<u32>, now: Tick) -> bool {
        let common = self.common;
        let writer = &mut *self.writer;
        let limit = if !common.by_bytes {
            writer.lease.entries
        } else if writer.accounts.live.entries < writer.lease.entries {
            writer.lease.bytes
        } else {
            // It is the other bound that is reached: these bytes are all that there will be.
            writer.accounts.live.bytes
        };
        if common.by_bytes {
            writer.expect_no_more();
        }
        let index = Some(&writer.index);
        let entries = InSlots { spared, index, ..InSlots::new(&writer.slots, common) };
        let Some(number) = writer.order.evict(&entries, limit) else {
            return self.remove_dead(spared, now);
        };
        let Writer { index, slots, accounts, .. } = writer;
        let slot = slots.get(number);
        let is_found = index.remove_slot(slot.hash(), number);
        debug_assert!(is_found, "an entry is in the order and not in the index");
        let cause = end_of(common, slots, number, slot, now).unwrap_or(Cause::Evicted);
        accounts.retire(common, slot, number, cause);
        true
    }

    /// Looks for dead entries among those that may not be evicted, at a limited number at a time.
    #[cold]
    fn remove_dead(&mut self, spared: Option<u32>, now: Tick) -> bool {
        let end = self.end();
        let first = if self.writer.next_dead < end { self.writer.next_dead } else { 0 };
        self.writer.next_dead = first.saturating_add(DEAD_BATCH).min(end);
        let dead = (first..self.writer.next_dead).filter(|number| Some(*number) != spared);
        self.remove_those(dead, now) > 0
    }

    /// Whether a negative entry of this weight in place of the one in `present` would be one too
    /// many. All shards count together.
    pub(crate) fn is_over_quota(&self, weight: u64, present: Option<(u32, Place)>) -> bool {
        let common = self.common;
        let replaced = present.map_or(0, |(number, _)| self.negative_cost(number));
        let negative = common.negative.load(Relaxed).saturating_sub(replaced);
        let max = common.budget.max();
        let whole = if common.by_bytes { max.bytes } else { max.entries };
        let quota = u128::from(whole) * u128::from(common.negative_percent) / 100;
        u128::from(negative.saturating_add(common.cost(weight))) > quota
    }

    /// What an entry counts in the quota of negative ones.
    fn negative_cost(&self, number: u32) -> u64 {
        let slot = self.slot(number);
        if slot.life().is_negative() { self.common.cost(slot.weight().into()) } else { 0 }
    }

    /// Stores an entry, in place of the one in `present`. Room has been made.
    #[expect(clippy::too_many_arguments, reason = "what an entry is made of")]
    #[inline]
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

        writer.slots.set_extra(number, attributes);
        let slot = writer.slots.get(number);
        // SAFETY: the slot was claimed, so it is empty and in no index.
        unsafe { slot.fill(key, value, hash, weight, attributes.pinned) };
        slot.set_life(Life::new(attributes, now, common.spaces.generation()));
        if writer.order.touch() == Touch::Time {
            let clock = reader.clock.load(Relaxed).wrapping_add(1);
            reader.clock.store(clock, Relaxed);
        }
        writer.accounts.live.add(Amount::entry(weight.into()));
        if attributes.negative {
            common.negative.fetch_add(common.cost(weight.into()), Relaxed);
        }
        writer.accounts.counters.inserts += 1;

        match present {
            Some((replaced, place)) => {
                writer.index.replace(place, number);
                let entries = InSlots::new(&writer.slots, common);
                writer.order.replace(&entries, replaced, number);
                let cause = self.end_of(replaced, now).unwrap_or(Cause::Replaced);
                self.retire(replaced, cause);
            }
            None => {
                if writer.index.is_full() {
                    let slots = &writer.slots;
                    let expected = u32::try_from(writer.expected).unwrap_or(u32::MAX);
                    let hash_of = |number| slots.get(number).hash();
                    let table = writer.index.grow(&reader.index, expected, hash_of);
                    writer.old.push((epoch.advance(), Old::Table(table)));
                }
                writer.index.insert(hash, number);
                if writer.index.len() as usize > writer.expected {
                    // Where entries are counted it is known how many there will be, about.
                    let parts = if common.by_bytes { 2 } else { 8 };
                    writer.expected = (writer.expected + writer.expected / parts).max(64);
                    writer.order.expect(writer.expected);
                }
                writer.order.insert(&InSlots::new(&writer.slots, common), number);
            }
        }
        self.free_some(transfer);
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
        order.remove(&InSlots::new(slots, common), number);
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
        self.remove_those(numbers.start..numbers.end.min(self.end()), now)
    }

    fn remove_those(&mut self, numbers: impl Iterator<Item = u32>, now: Tick) -> usize {
        let mut removed = 0;
        for number in numbers {
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
        let slot = self.slot(number);
        let extra = self.writer.slots.extra(number).filter(|_| slot.life().is_idle());
        if let Some(extra) = extra {
            let idle = now.0.saturating_add(extra.idle_millis().into());
            let until = extra.until();
            extra.set_until(expires);
            slot.update_life(|life| {
                // How long it was not used is not known if it would have expired before that.
                let unused = if life.expires() < until { life.expires() } else { Tick(idle) };
                life.with_expires(unused.min(expires))
            });
        } else {
            slot.set_life(slot.life().with_expires(expires));
        }
        let common = self.common;
        let Writer { order, slots, .. } = &mut *self.writer;
        order.expires_changed(&InSlots::new(slots, common), number);
    }

    /// Puts an entry into the present generation.
    pub(crate) fn refresh(&self, number: u32) {
        let generation = self.common.spaces.generation();
        self.slot(number).update_life(|life| life.with_generation(generation));
    }

    /// See [`Accounts::retire`].
    fn retire(&mut self, number: u32, cause: Cause) {
        let Writer { slots, accounts, .. } = &mut *self.writer;
        accounts.retire(self.common, slots.get(number), number, cause);
    }
}

/// Freeing.
impl<K, V> Locked<'_, K, V> {
    /// How many slots are freed at a time: often enough that little waits, seldom enough that
    /// finding out about readers costs each entry little.
    fn set_batch(&mut self) {
        let live = self.writer.accounts.live.entries;
        let part = if self.common.by_bytes { live / 128 } else { live / 64 };
        self.writer.batch = part.clamp(if self.common.by_bytes { 4 } else { 16 }, 1024);
    }

    #[inline]
    fn has_much_garbage(&self) -> bool {
        self.writer.accounts.open.len() as u64 >= self.writer.batch
    }

    /// Where bytes are not bounded, garbage has to be.
    #[inline]
    fn has_too_much_garbage(&self) -> bool {
        self.writer.accounts.garbage.entries >= 8 * self.writer.batch
    }

    /// Frees what waits, if it is much, or if somebody wants to be told of it soon; and gives back
    /// what is left over.
    pub(crate) fn tidy(&mut self, transfer: &mut Transfer<'_, K, V>) {
        self.free_some(transfer);
        self.return_lease();
    }

    #[inline]
    fn free_some(&mut self, transfer: &mut Transfer<'_, K, V>) {
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
        if !writer.accounts.open.is_empty() {
            std::mem::swap(&mut writer.accounts.open, &mut writer.closed);
            writer.closed_at = self.common.epoch.advance();
        }
    }

    fn free_closed(&mut self, transfer: &mut Transfer<'_, K, V>) {
        let epoch = &self.common.epoch;
        let writer = &mut *self.writer;
        for &number in &writer.closed {
            let slot = writer.slots.get(number);
            writer.accounts.garbage.subtract(Amount::entry(slot.weight().into()));
            let cause = Cause::from_code(slot.region());
            // SAFETY: it was taken out of the index before the epoch that is settled now.
            transfer.receive(unsafe { slot.take() }, cause);
        }
        writer.slots.release(&writer.closed);
        writer.closed.clear();
        if !writer.old.is_empty() {
            writer.old.retain(|(since, _)| !epoch.is_settled(*since));
            writer.old.shrink_to_fit();
        }
        self.set_batch();
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
        self.writer.accounts.live.entries
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
        if writer.accounts.live.entries > 0
            || writer.accounts.garbage.entries > 0
            || writer.slots.end() == 0
        {
            return;
        }
        writer.order.clear();
        (writer.accounts.open, writer.closed) = (Vec::new(), Vec::new());
        // Readers may still be looking through the empty index, and find nothing.
        let old = [
            Old::Table(writer.index.renew(&reader.index)),
            Old::Slots(writer.slots.renew(&reader.slots)),
        ];
        let since = epoch.advance();
        writer.old.extend(old.map(|old| (since, old)));
    }

    /// Panics unless everything inside agrees. Returns what is borrowed, and what the negative
    /// entries take.
    pub(crate) fn validate(&self) -> (Amount, u64) {
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
            negative += self.negative_cost(number);
        }
        assert!(self.live_in(0..self.end()).eq(numbers.iter().copied()), "an entry is lost");
        assert_eq!(live, writer.accounts.live, "what lives is miscounted");
        let mut garbage = Amount::default();
        for &number in writer.accounts.open.iter().chain(&writer.closed) {
            let slot = self.slot(number);
            assert!(slot.is_full() && !slot.is_live(), "garbage is not garbage");
            garbage.add(Amount::entry(slot.weight().into()));
        }
        assert_eq!(garbage, writer.accounts.garbage, "garbage is miscounted");
        assert!(live.bytes + garbage.bytes <= writer.lease.bytes, "more is held than borrowed");
        assert!(live.entries <= writer.lease.entries, "more is held than borrowed");
        writer.order.validate(&InSlots::new(&writer.slots, self.common), &numbers);
        (writer.lease, negative)
    }
}

/// See [`Locked::end_of`].
#[inline]
fn end_of<K, V>(
    common: &Common,
    slots: &Slots<K, V>,
    number: u32,
    slot: &Slot<K, V>,
    now: Tick,
) -> Option<Cause> {
    let life = slot.life();
    if life.is_expired(now) {
        return Some(Cause::Expired);
    }
    if life.odd_bits() == common.spaces.plain() {
        return None;
    }
    odd_end_of(common, slots, number, life)
}

/// The same for an entry that has not expired and was stored before a space was removed, or expires
/// when it is not used.
#[inline(never)]
fn odd_end_of<K, V>(
    common: &Common,
    slots: &Slots<K, V>,
    number: u32,
    life: Life,
) -> Option<Cause> {
    let space = slots.extra(number).map_or(0, |extra| extra.space.load(Relaxed));
    let is_old = life.generation() != common.spaces.generation();
    (is_old && common.spaces.is_removed(space, life.generation())).then_some(Cause::Removed)
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
    /// A slot that must not be chosen now, as if it were pinned.
    spared: Option<u32>,
    /// Where those who leave are, if any do.
    index: Option<&'a Index>,
}

impl<'a, K, V> InSlots<'a, K, V> {
    #[inline]
    fn new(slots: &'a Slots<K, V>, common: &'a Common) -> Self {
        Self { slots, common, spared: None, index: None }
    }
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
        self.slots.get(slot).is_pinned() || self.spared == Some(slot)
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

    #[inline]
    fn prefetch(&self, slot: u32) {
        prefetch::line(self.slots.get(slot));
    }

    #[inline]
    fn prefetch_leaving(&self, hash: u32) {
        if let Some(index) = self.index {
            index.prefetch(hash);
        }
    }

    #[inline]
    fn look(&self, number: u32) -> Look {
        let slot = self.slots.get(number);
        let cost = self.common.cost(slot.weight().into());
        let is_pinned = slot.is_pinned() || self.spared == Some(number);
        Look { hash: slot.hash(), cost, uses: slot.uses(), is_pinned }
    }
}
