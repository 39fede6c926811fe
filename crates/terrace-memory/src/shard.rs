//! A shard: the part of the entries that is under one lock.

use std::mem;
use std::ops::Range;

use hashbrown::{Equivalent, HashTable};

use crate::entry::{Node, View};
use crate::slab::{self, Slab, Slot};
use crate::stats::Counters;
use crate::transfer::Transfer;
use crate::{Cause, Tick};

/// A table from hashes to slot numbers, and the slots.
///
/// Of the caller's code only the equality of keys runs in here, and before anything is changed.
pub(crate) struct Shard<K, V> {
    table: HashTable<u32>,
    slab: Slab<Node<K, V>>,
    bytes: u64,
    pub(crate) counters: Counters,
}

/// What an entry takes besides its key and its value, at the worst fill of table and slab.
pub(crate) const fn overhead<K, V>() -> u64 {
    let slot = size_of::<Slot<Node<K, V>>>();
    let unused = slot.div_ceil(slab::GROWTH);
    // A bucket is a slot number and a control byte. A table may be filled to 7/8, and doubles
    // when it is full to half of that with live entries, the rest being traces of removed ones.
    let table = ((size_of::<u32>() + 1) * 32).div_ceil(7);
    (slot - size_of::<K>() - size_of::<V>() + unused + table) as u64
}

impl<K, V> Shard<K, V> {
    pub(crate) fn new() -> Self {
        Self::with_slab(Slab::new())
    }

    fn with_slab(slab: Slab<Node<K, V>>) -> Self {
        Self { table: HashTable::new(), slab, bytes: 0, counters: Counters::default() }
    }

    pub(crate) fn len(&self) -> u32 {
        self.slab.len()
    }

    /// How many slots there are, empty ones too.
    pub(crate) fn slots(&self) -> u32 {
        self.slab.slots()
    }

    /// The slot of a key, expired or not.
    pub(crate) fn find<Q>(&self, hash: u64, key: &Q) -> Option<u32>
    where
        Q: Equivalent<K> + ?Sized,
    {
        // The hashes are compared as well, so that no disagreement between a caller's `Hash` and
        // `Eq` can put an entry under a hash that is not its own.
        let is_key = |&index: &u32| {
            self.slab.get(index).is_some_and(|node| node.hash == hash && key.equivalent(&node.key))
        };
        self.table.find(hash, is_key).copied()
    }

    /// The entry in a slot, unless it has expired.
    pub(crate) fn live(&self, index: u32, now: Tick) -> Option<&Node<K, V>> {
        self.slab.get(index).filter(|node| !node.attributes.is_expired(now))
    }

    pub(crate) fn get(&self, index: u32) -> Option<&Node<K, V>> {
        self.slab.get(index)
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut Node<K, V>> {
        self.slab.get_mut(index)
    }

    /// All entries, expired ones too.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Node<K, V>> {
        self.slab.iter().map(|(_, node)| node)
    }

    /// Counts as a use of the entry.
    pub(crate) fn touch(&mut self, index: u32) {
        self.slab.touch(index);
    }

    /// The bytes of all entries but this one: what evicting them would free.
    pub(crate) fn bytes_except(&self, index: Option<u32>) -> u64 {
        self.bytes - self.weight(index)
    }

    /// The bytes of the entry in this slot.
    pub(crate) fn weight(&self, index: Option<u32>) -> u64 {
        index.and_then(|index| self.slab.get(index)).map_or(0, |node| node.weight)
    }

    /// Evicts the least recently used entries, but not the one in the slot `except`, until the
    /// transfer holds `enough` bytes.
    pub(crate) fn evict(
        &mut self,
        enough: u64,
        except: Option<u32>,
        now: Tick,
        transfer: &mut Transfer<'_, K, V>,
    ) {
        while transfer.hold.bytes() < enough {
            let Some(victim) = self.oldest(except) else { return };
            self.evict_one(victim, now, transfer);
        }
    }

    /// Stores an entry whose key is not in the shard. The transfer must hold its bytes.
    pub(crate) fn add(&mut self, node: Node<K, V>, now: Tick, transfer: &mut Transfer<'_, K, V>) {
        if self.slab.is_full()
            && let Some(victim) = self.slab.oldest()
        {
            self.evict_one(victim, now, transfer);
        }
        self.take_weight(node.weight, transfer);
        let hash = node.hash;
        match self.slab.insert(node) {
            Ok(index) => {
                let slab = &self.slab;
                let rehash = |&index: &u32| slab.get(index).map_or(0, |node| node.hash);
                self.table.insert_unique(hash, index, rehash);
            }
            Err(node) => self.part_with(node, Cause::Evicted, transfer),
        }
    }

    /// Stores an entry over the one with the same key in this slot. The transfer must hold the
    /// bytes by which it is larger.
    pub(crate) fn replace(
        &mut self,
        index: u32,
        node: Node<K, V>,
        now: Tick,
        transfer: &mut Transfer<'_, K, V>,
    ) {
        let weight = node.weight;
        let Some(place) = self.slab.get_mut(index) else { return };
        let old = mem::replace(place, node);
        self.slab.touch(index);
        let cause = cause_of(&old, now, Cause::Replaced);
        self.part_with(old, cause, transfer);
        self.take_weight(weight, transfer);
    }

    /// Moves the entry in this slot out of the shard.
    pub(crate) fn take(&mut self, index: u32, cause: Cause, transfer: &mut Transfer<'_, K, V>) {
        if let Some(node) = self.detach(index) {
            self.part_with(node, cause, transfer);
        }
    }

    /// Moves the entry in this slot out of the shard, for the caller to have. Its bytes go to
    /// the transfer.
    pub(crate) fn take_out(
        &mut self,
        index: u32,
        transfer: &mut Transfer<'_, K, V>,
    ) -> Option<Node<K, V>> {
        let node = self.detach(index)?;
        self.bytes -= node.weight;
        self.counters.left(Cause::Removed, 1);
        transfer.hold.take_over(node.weight);
        Some(node)
    }

    /// Moves every entry out for which `keep` says no.
    pub(crate) fn retain(
        &mut self,
        mut keep: impl FnMut(&K, View<'_, V>) -> bool,
        transfer: &mut Transfer<'_, K, V>,
    ) {
        for index in 0..self.slots() {
            if self.slab.get(index).is_some_and(|node| !keep(&node.key, node.view())) {
                self.take(index, Cause::Removed, transfer);
            }
        }
    }

    /// Leaves the shard empty; its counters stay. Returns what it held as it was, for the caller
    /// to take apart without the lock.
    pub(crate) fn take_all(&mut self, transfer: &mut Transfer<'_, K, V>) -> Slab<Node<K, V>> {
        self.counters.left(Cause::Removed, u64::from(self.len()));
        transfer.hold.take_over(mem::take(&mut self.bytes));
        self.table = HashTable::new();
        mem::replace(&mut self.slab, Slab::new())
    }

    /// Moves the expired entries in these slots out.
    pub(crate) fn sweep(
        &mut self,
        slots: Range<u32>,
        now: Tick,
        transfer: &mut Transfer<'_, K, V>,
    ) {
        for index in slots {
            if self.slab.get(index).is_some_and(|node| node.attributes.is_expired(now)) {
                self.take(index, Cause::Expired, transfer);
            }
        }
    }

    /// Panics unless table, slots and sums agree. Says how many bytes the entries are charged.
    pub(crate) fn validate(&self, is_home: impl Fn(u64) -> bool) -> u64 {
        self.slab.validate();
        assert_eq!(self.table.len(), self.len() as usize, "table and slots differ in number");
        let mut bytes = 0;
        for (index, node) in self.slab.iter() {
            assert!(is_home(node.hash), "an entry is in the shard of another");
            let found = self.table.find(node.hash, |&found| found == index);
            assert!(found.is_some(), "an entry is not in the table");
            bytes += node.weight;
        }
        assert_eq!(bytes, self.bytes, "the weights do not add up");
        bytes
    }

    fn oldest(&self, except: Option<u32>) -> Option<u32> {
        let oldest = self.slab.oldest()?;
        if except == Some(oldest) { self.slab.newer(oldest) } else { Some(oldest) }
    }

    fn evict_one(&mut self, index: u32, now: Tick, transfer: &mut Transfer<'_, K, V>) {
        if let Some(node) = self.detach(index) {
            let cause = cause_of(&node, now, Cause::Evicted);
            self.part_with(node, cause, transfer);
        }
    }

    /// Takes the entry out of slots and table, and leaves the sums to the caller.
    fn detach(&mut self, index: u32) -> Option<Node<K, V>> {
        let node = self.slab.remove(index)?;
        if let Ok(entry) = self.table.find_entry(node.hash, |&found| found == index) {
            entry.remove();
        }
        Some(node)
    }

    fn part_with(&mut self, node: Node<K, V>, cause: Cause, transfer: &mut Transfer<'_, K, V>) {
        self.bytes -= node.weight;
        self.counters.left(cause, 1);
        transfer.receive(node, cause);
    }

    fn take_weight(&mut self, weight: u64, transfer: &mut Transfer<'_, K, V>) {
        transfer.hold.hand_over(weight);
        self.bytes += weight;
        self.counters.inserts += 1;
    }
}

/// Why an entry leaves: what has expired has expired, whatever else would have removed it.
fn cause_of<K, V>(node: &Node<K, V>, now: Tick, otherwise: Cause) -> Cause {
    if node.attributes.is_expired(now) { Cause::Expired } else { otherwise }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Attributes;
    use crate::budget::Budget;

    const NOW: Tick = Tick(0);

    fn node(key: u64, weight: u64) -> Node<u64, &'static str> {
        Node { key, value: "value", attributes: Attributes::default(), weight, hash: key }
    }

    fn add(shard: &mut Shard<u64, &'static str>, budget: &Budget, node: Node<u64, &'static str>) {
        let mut transfer = Transfer::new(budget);
        transfer.hold.reserve(node.weight);
        shard.add(node, NOW, &mut transfer);
        transfer.finish(None);
    }

    #[test]
    fn a_shard_without_a_free_slot_evicts_its_oldest_entry() {
        let budget = Budget::new(100);
        let mut shard = Shard::with_slab(Slab::with_limit(2));
        for key in 0..5 {
            add(&mut shard, &budget, node(key, 10 + key));
            assert_eq!(shard.validate(|_| true), budget.used());
        }
        let mut keys: Vec<u64> = shard.iter().map(|node| node.key).collect();
        keys.sort_unstable();
        assert_eq!((keys, budget.used()), (vec![3, 4], 27));
    }

    #[test]
    fn eviction_spares_the_exception_and_takes_no_more_than_enough() {
        let budget = Budget::new(40);
        let mut shard = Shard::new();
        for key in 0..4 {
            add(&mut shard, &budget, node(key, 10));
        }
        let oldest = shard.find(0, &0_u64);
        assert_eq!(shard.bytes_except(oldest), 30);

        let mut transfer = Transfer::new(&budget);
        shard.evict(11, oldest, NOW, &mut transfer);
        assert_eq!(transfer.hold.bytes(), 20);
        assert_eq!((shard.find(0, &0_u64), shard.find(1, &1_u64)), (oldest, None));
        shard.evict(u64::MAX, oldest, NOW, &mut transfer);
        assert_eq!((transfer.finish(None), shard.len(), budget.used()), (3, 1, 10));
        assert_eq!(shard.validate(|_| true), 10);
    }

    #[test]
    fn the_overhead_covers_what_is_allocated() {
        let budget = Budget::new(u64::MAX);
        let mut shard = Shard::new();
        // Unused slots and the smallest table, which are not charged.
        let fixed = slab::GROWTH * size_of::<Slot<Node<u64, &str>>>() + 128;
        let entry = overhead::<u64, &str>() + size_of::<(u64, &str)>() as u64;
        for key in 0..30_000 {
            add(&mut shard, &budget, node(key, 1));
            // For a time, one entry leaves for each that comes: the table fills with traces.
            if (1_800..20_000).contains(&key)
                && let Some(oldest) = shard.slab.oldest()
            {
                shard.take(oldest, Cause::Removed, &mut Transfer::new(&budget));
            }
            let allocated = shard.slab.allocated() + shard.table.allocation_size();
            let charged = u64::from(shard.len()) * entry;
            assert!(
                allocated as u64 <= charged + fixed as u64,
                "{allocated} of {charged} at {key}"
            );
        }
    }

    #[test]
    fn an_equal_key_with_another_hash_is_another_key() {
        // Only a broken `Hash` does this. An entry under a hash not its own could never be found
        // in the table again, and its slot would be given to another.
        let budget = Budget::new(100);
        let mut shard = Shard::new();
        add(&mut shard, &budget, node(1, 10));
        let same_bucket = 1 | 1 << 40;
        assert_eq!(shard.find(same_bucket, &1_u64), None);
        assert!(shard.find(1, &1_u64).is_some());
    }

    #[test]
    fn keys_with_the_same_hash_are_told_apart() {
        let budget = Budget::new(100);
        let mut shard = Shard::new();
        for key in 0..4 {
            add(&mut shard, &budget, Node { hash: 7, ..node(key, 10) });
        }
        let mut transfer = Transfer::new(&budget);
        for key in [2, 0, 3, 1_u64] {
            let index = shard.find(7, &key).unwrap();
            assert_eq!(shard.take_out(index, &mut transfer).unwrap().key, key);
            assert_eq!(shard.find(7, &key), None);
            shard.validate(|_| true);
        }
    }
}
