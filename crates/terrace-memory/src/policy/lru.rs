//! LRU: the entry that was not used for the longest time leaves.

use super::heap::{Heap, Item, low};
use super::{Entries, Order};

/// Exact least recently used, without a list that every hit would have to change.
///
/// A hit notes the time in the slot and nothing else; an order with this rule asks for
/// [`Touch::Time`](super::Touch::Time). The time is the number of values stored in the shard so
/// far. An entry stays in a heap under the last use that the order knows of. Who comes first there
/// and was used since is moved to where it belongs, until one comes first that was not. As the
/// times in the heap are never too late, that one is the least recently used of all.
///
/// Uses between two stores happen at the same time, which is also that of the store after them. Of
/// entries with the same last use, the one whose value was stored first leaves first (by the lower
/// half of the number of the store).
///
/// To store a value is a use. To be pinned is one for as long as it lasts: a pinned entry that
/// would have to leave is passed over, and counts as used at that moment.
///
/// An entry that was used and then, while 2³¹ values were stored, was neither used nor looked at
/// by `evict`, counts as just used, once.
///
/// Costs O(log n) for each store and removal, and for each entry that `evict` finds used or
/// pinned; each hit can cause one such find at most. 20 bytes an entry, see [`Heap`].
pub(crate) struct Lru {
    heap: Heap,
    /// The number of values stored so far. The shard counts the same in 32 bits, which wrap.
    clock: u64,
    /// The pinned entries that `evict` passes over. Empty between calls.
    pinned: Vec<Item>,
}

/// Two times of 32 bits can be told apart when they are no further from each other.
const HORIZON: u32 = u32::MAX / 2;

impl Lru {
    pub(crate) const fn new() -> Self {
        Self { heap: Heap::new(), clock: 0, pinned: Vec::new() }
    }

    /// The item of a value that is stored now.
    fn store(&mut self, entries: &impl Entries, slot: u32) -> Item {
        let now = self.clock;
        self.clock += 1;
        entries.set_touched(slot, low(now));
        Item { key: now, tie: low(now), slot }
    }

    /// When the entry was last used, by what its slot says.
    fn last_use(&self, entries: &impl Entries, item: Item) -> u64 {
        let touched = entries.touched(item.slot);
        if touched == low(item.key) {
            return item.key;
        }
        let age = low(self.clock).wrapping_sub(touched);
        if age <= HORIZON {
            // It may be before what the heap says, and then it is nothing new: somebody read the
            // entry that was in the slot before, and noted it late.
            return self.clock.saturating_sub(u64::from(age));
        }
        // Ahead of the clock by a store that has begun, or out of sight. Left as it is, what is
        // out of sight would look just used until the clock has gone round.
        entries.set_touched(item.slot, low(self.clock));
        self.clock
    }
}

impl Order for Lru {
    fn insert(&mut self, entries: &impl Entries, slot: u32) {
        let item = self.store(entries, slot);
        self.heap.insert(item);
    }

    fn replace(&mut self, entries: &impl Entries, old: u32, new: u32) {
        let item = self.store(entries, new);
        self.heap.replace(old, item);
    }

    fn remove(&mut self, _entries: &impl Entries, slot: u32) {
        self.heap.remove(slot);
    }

    fn evict(&mut self, entries: &impl Entries, _limit: u64) -> Option<u32> {
        let victim = loop {
            let Some(first) = self.heap.first() else { break None };
            let last_use = self.last_use(entries, first);
            if last_use > first.key {
                self.heap.replace(first.slot, Item { key: last_use, ..first });
                continue;
            }
            self.heap.remove(first.slot);
            if !entries.is_pinned(first.slot) {
                break Some(first.slot);
            }
            self.pinned.push(first);
        };
        for item in self.pinned.drain(..) {
            entries.set_touched(item.slot, low(self.clock));
            self.heap.insert(Item { key: self.clock, ..item });
        }
        victim
    }

    fn expect(&mut self, _entries: usize) {}

    fn clear(&mut self) {
        self.heap.clear();
        self.pinned = Vec::new();
    }

    fn validate(&self, _entries: &impl Entries, slots: &[u32]) {
        self.heap.validate(slots);
        assert!(self.pinned.is_empty(), "a pinned entry was left out");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::Touch;
    use crate::policy::model::{Pair, Table, cases, operations};

    /// LRU by looking at everything.
    struct Naive {
        /// Slots, with the time at which the value was stored.
        stored: Vec<(u32, u64)>,
        clock: u64,
    }

    impl Naive {
        /// The last use, then the time of the store.
        fn rank(&self, entries: &impl Entries, (slot, stored): (u32, u64)) -> (u64, u32) {
            let age = low(self.clock).wrapping_sub(entries.touched(slot));
            (self.clock - u64::from(age), low(stored))
        }

        fn store(&mut self, entries: &impl Entries, slot: u32) {
            entries.set_touched(slot, low(self.clock));
            self.stored.push((slot, self.clock));
            self.clock += 1;
        }
    }

    impl Order for Naive {
        fn insert(&mut self, entries: &impl Entries, slot: u32) {
            self.store(entries, slot);
        }

        fn replace(&mut self, entries: &impl Entries, old: u32, new: u32) {
            self.remove(entries, old);
            self.store(entries, new);
        }

        fn remove(&mut self, _entries: &impl Entries, slot: u32) {
            self.stored.retain(|entry| entry.0 != slot);
        }

        fn evict(&mut self, entries: &impl Entries, _limit: u64) -> Option<u32> {
            let mut sorted = self.stored.clone();
            sorted.sort_by_key(|&entry| self.rank(entries, entry));
            for (slot, _) in sorted {
                if !entries.is_pinned(slot) {
                    self.remove(entries, slot);
                    return Some(slot);
                }
                entries.set_touched(slot, low(self.clock));
            }
            None
        }

        fn expect(&mut self, _entries: usize) {}

        fn clear(&mut self) {
            self.stored.clear();
        }

        fn validate(&self, _entries: &impl Entries, slots: &[u32]) {
            assert_eq!(self.stored.len(), slots.len());
        }
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn the_least_recently_used_leaves(
            operations in operations(),
            // So that the clock of the shard wraps soon.
            clock in prop_oneof![Just(0), u64::from(u32::MAX) - 50..=u64::from(u32::MAX)]
        ) {
            let naive = Naive { stored: Vec::new(), clock };
            Pair::new(Lru { clock, ..Lru::new() }, naive, Touch::Time, low(clock)).run(&operations);
        }
    }

    /// An order with entries in the slots 0 to 3, stored in this order.
    fn four() -> (Table, Lru) {
        let (table, mut lru) = (Table::new(Touch::Time, 0), Lru::new());
        for _ in 0..4 {
            let slot = table.add(1, u64::MAX);
            lru.insert(&table, slot);
        }
        (table, lru)
    }

    fn evict_all(table: &Table, lru: &mut Lru) -> Vec<u32> {
        std::iter::from_fn(|| lru.evict(table, 0)).collect()
    }

    #[test]
    fn uses_between_two_stores_are_ties_and_go_by_the_store() {
        let (table, mut lru) = four();
        for slot in [2, 0, 1] {
            table.read(slot);
        }
        assert_eq!(evict_all(&table, &mut lru), [3, 0, 1, 2]);
    }

    #[test]
    fn a_use_counts_against_the_next_store() {
        let (table, mut lru) = four();
        table.read(0);
        let slot = table.add(1, u64::MAX);
        lru.insert(&table, slot);
        table.read(2);
        assert_eq!(evict_all(&table, &mut lru), [1, 3, 0, 4, 2]);
    }

    #[test]
    fn a_late_note_about_the_entry_that_was_in_the_slot_before_makes_nothing_older() {
        let (table, mut lru) = four();
        table.set_touched(3, 1);
        assert_eq!(evict_all(&table, &mut lru), [0, 1, 2, 3]);
    }

    #[test]
    fn a_note_ahead_of_the_clock_is_a_use_now() {
        let (table, mut lru) = four();
        table.set_touched(0, 5);
        assert_eq!(evict_all(&table, &mut lru), [1, 2, 3, 0]);
    }

    #[test]
    fn out_of_sight_is_just_used_and_only_once() {
        let (table, mut lru) = four();
        table.read(0);
        lru.clock += 3 << 30;
        let slot = table.add(1, u64::MAX);
        lru.insert(&table, slot);
        // Slot 0 was used and not looked at since. The others were not used.
        assert_eq!(lru.evict(&table, 0), Some(1));
        lru.clock += 1 << 30;
        table.pin(4, true);
        assert_eq!(evict_all(&table, &mut lru), [2, 3, 0]);
    }

    #[test]
    fn everything_pinned_is_nothing_to_evict() {
        let (table, mut lru) = four();
        for slot in 0..4 {
            table.pin(slot, true);
        }
        assert_eq!(lru.evict(&table, 0), None);
        lru.validate(&table, &[0, 1, 2, 3]);
        table.pin(2, false);
        assert_eq!(evict_all(&table, &mut lru), [2]);
        lru.clear();
        lru.validate(&table, &[]);
    }
}
