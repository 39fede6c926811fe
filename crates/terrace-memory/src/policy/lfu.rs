//! LFU: the entry that was used least often leaves, and old uses lose their weight.

use super::column::{Column, EMPTY};
use super::heap::{Heap, Item};
use super::{Entries, Order};

/// Least frequently used with dynamic aging: LFU-DA, by Arlitt, Cherkasova, Dilley, Friedrich and
/// Jin, "Evaluating Content Management Techniques for Web Proxy Caches", ACM SIGMETRICS
/// Performance Evaluation Review 27(4), 2000.
///
/// An entry has a priority: how often it was used, and the age of the shard when it was last
/// used. The entry with the least priority leaves, and its priority is the new age. So what was
/// used often and is not any more stays no longer than until the age has caught up, and no count
/// has ever to be halved. Of entries with the same priority, the one whose key came first leaves.
///
/// A hit adds one to a count in the slot; an order with this rule asks for
/// [`Touch::Count`](super::Touch::Count). The order takes the counts over when it chooses: what
/// comes first and was read since is moved to where it belongs, until one comes first that was
/// not. This differs from the paper in one thing: reads are dated when they are taken over and not
/// when they happen. It makes little difference to how many requests are hits, and a better one
/// more often than a worse.
///
/// To store a value is a use. A pinned entry that would have to leave is passed over, and dated
/// anew, but no use is added.
///
/// Costs O(log n) for each store and removal, and for each entry that `evict` finds read or
/// pinned; each hit can cause one such find at most, and one call no more than there are entries.
/// 24 bytes an entry, see [`Heap`].
pub(crate) struct Lfu {
    heap: Heap,
    /// How often the entry in a slot was used, as far as the order knows.
    uses: Column,
    /// The priority of the last victim.
    age: u64,
    /// How many keys came.
    inserted: u32,
    /// The pinned entries that `evict` passes over. Empty between calls.
    pinned: Vec<Item>,
}

/// No entry has more uses. `EMPTY` is more.
const MOST: u32 = EMPTY - 1;

impl Lfu {
    pub(crate) const fn new() -> Self {
        Self { heap: Heap::new(), uses: Column::new(), age: 0, inserted: 0, pinned: Vec::new() }
    }

    /// The item of an entry that was used so often, most recently now.
    fn used(&mut self, entries: &impl Entries, uses: u32, tie: u32, slot: u32) -> Item {
        entries.set_touched(slot, 0);
        self.uses.set(slot, uses);
        Item { key: self.age.saturating_add(u64::from(uses)), tie, slot }
    }

    /// The uses known so far and the reads noted since.
    fn count(&self, slot: u32, reads: u32) -> u32 {
        self.uses.get(slot).saturating_add(reads).min(MOST)
    }
}

impl Order for Lfu {
    fn insert(&mut self, entries: &impl Entries, slot: u32) {
        // Ties that wrap change the order of entries with the same priority for as long as
        // entries from before stay, and the age goes on meanwhile.
        self.inserted = self.inserted.wrapping_add(1);
        let item = self.used(entries, 1, self.inserted, slot);
        self.heap.insert(item);
    }

    fn replace(&mut self, entries: &impl Entries, old: u32, new: u32) {
        let tie = self.heap.get(old).map_or(self.inserted, |item| item.tie);
        let uses = self.count(old, entries.touched(old)).saturating_add(1).min(MOST);
        self.uses.take(old);
        let item = self.used(entries, uses, tie, new);
        self.heap.replace(old, item);
    }

    fn remove(&mut self, _entries: &impl Entries, slot: u32) {
        self.heap.remove(slot);
        self.uses.take(slot);
    }

    fn evict(&mut self, entries: &impl Entries, _limit: u64) -> Option<u32> {
        // Readers go on while this runs; they must not keep it going.
        let mut looks = self.heap.len();
        let victim = loop {
            let Some(first) = self.heap.first() else { break None };
            let reads = entries.touched(first.slot);
            if reads > 0 && looks > 0 {
                looks -= 1;
                let uses = self.count(first.slot, reads);
                let item = self.used(entries, uses, first.tie, first.slot);
                self.heap.replace(first.slot, item);
                continue;
            }
            self.heap.remove(first.slot);
            if !entries.is_pinned(first.slot) {
                self.uses.take(first.slot);
                self.age = first.key;
                break Some(first.slot);
            }
            self.pinned.push(first);
        };
        for item in self.pinned.drain(..) {
            let key = self.age.saturating_add(u64::from(self.uses.get(item.slot)));
            self.heap.insert(Item { key, ..item });
        }
        victim
    }

    fn expect(&mut self, _entries: usize) {}

    fn clear(&mut self) {
        self.heap.clear();
        self.uses.clear();
        self.pinned = Vec::new();
    }

    fn validate(&self, _entries: &impl Entries, slots: &[u32]) {
        self.heap.validate(slots);
        assert!(self.pinned.is_empty(), "a pinned entry was left out");
        assert_eq!(self.uses.taken(), slots.len(), "a count is left over");
        for &slot in slots {
            assert_ne!(self.uses.get(slot), EMPTY, "an entry has no count");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::Touch;
    use crate::policy::model::{Pair, Table, cases, operations};

    /// LFU-DA by looking at everything.
    #[derive(Default)]
    struct Naive {
        known: Vec<Known>,
        age: u64,
        inserted: u64,
    }

    #[derive(Clone, Copy)]
    struct Known {
        priority: u64,
        inserted: u64,
        slot: u32,
        uses: u64,
    }

    impl Order for Naive {
        fn insert(&mut self, entries: &impl Entries, slot: u32) {
            entries.set_touched(slot, 0);
            self.inserted += 1;
            let (inserted, uses) = (self.inserted, 1);
            self.known.push(Known { priority: self.age + uses, inserted, slot, uses });
        }

        fn replace(&mut self, entries: &impl Entries, old: u32, new: u32) {
            let known = self.known.iter_mut().find(|known| known.slot == old).unwrap();
            known.slot = new;
            known.uses += u64::from(entries.touched(old)) + 1;
            known.priority = self.age + known.uses;
            entries.set_touched(new, 0);
        }

        fn remove(&mut self, _entries: &impl Entries, slot: u32) {
            self.known.retain(|known| known.slot != slot);
        }

        fn evict(&mut self, entries: &impl Entries, _limit: u64) -> Option<u32> {
            let mut pinned = Vec::new();
            let victim = loop {
                self.known.sort_by_key(|known| (known.priority, known.inserted));
                let Some(first) = self.known.first_mut() else { break None };
                let reads = u64::from(entries.touched(first.slot));
                if reads > 0 {
                    first.uses += reads;
                    first.priority = self.age + first.uses;
                    entries.set_touched(first.slot, 0);
                    continue;
                }
                let first = self.known.remove(0);
                if !entries.is_pinned(first.slot) {
                    self.age = first.priority;
                    break Some(first.slot);
                }
                pinned.push(first);
            };
            for known in pinned {
                self.known.push(Known { priority: self.age + known.uses, ..known });
            }
            victim
        }

        fn expect(&mut self, _entries: usize) {}

        fn clear(&mut self) {
            self.known.clear();
        }

        fn validate(&self, _entries: &impl Entries, slots: &[u32]) {
            assert_eq!(self.known.len(), slots.len());
        }
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn the_least_often_used_leaves(operations in operations()) {
            Pair::new(Lfu::new(), Naive::default(), Touch::Count, 0).run(&operations);
        }
    }

    /// An order with entries in the slots below this one.
    fn filled(slots: u32) -> (Table, Lfu) {
        let (table, mut lfu) = (Table::new(Touch::Count, 0), Lfu::new());
        for _ in 0..slots {
            let slot = table.add(1, u64::MAX);
            lfu.insert(&table, slot);
        }
        (table, lfu)
    }

    fn evict_all(table: &Table, lfu: &mut Lfu) -> Vec<u32> {
        std::iter::from_fn(|| lfu.evict(table, 0)).collect()
    }

    #[test]
    fn uses_are_counted_and_ties_go_by_insertion() {
        let (table, mut lfu) = filled(5);
        for slot in [3, 1, 1, 1, 0, 0, 1, 2] {
            table.read(slot);
        }
        assert_eq!(evict_all(&table, &mut lfu), [4, 2, 3, 0, 1]);
    }

    #[test]
    fn a_new_value_keeps_the_uses_and_the_turn_of_the_old_one() {
        let (table, mut lfu) = filled(3);
        table.read(0);
        table.read(1);
        table.read(1);
        let new = table.add(1, u64::MAX);
        lfu.replace(&table, 0, new);
        assert_eq!(evict_all(&table, &mut lfu), [2, new, 1]);
    }

    #[test]
    fn what_was_once_used_often_leaves_in_the_end() {
        let (table, mut lfu) = filled(1);
        for _ in 0..100 {
            table.read(0);
        }
        let mut left = Vec::new();
        for _ in 0..120 {
            let slot = table.add(1, u64::MAX);
            lfu.insert(&table, slot);
            let victim = lfu.evict(&table, 0).unwrap();
            table.free(victim);
            left.push(victim);
        }
        // Each other victim makes the shard older by one.
        assert_eq!(left.iter().position(|&slot| slot == 0), Some(100));
    }

    #[test]
    fn counts_do_not_overflow() {
        let (table, mut lfu) = filled(2);
        for _ in 0..3 {
            table.set_touched(0, u32::MAX);
            table.set_touched(1, 5);
            table.pin(1, true);
            table.pin(0, true);
            assert_eq!(lfu.evict(&table, 0), None);
            lfu.validate(&table, &[0, 1]);
        }
        table.pin(0, false);
        table.pin(1, false);
        assert_eq!(evict_all(&table, &mut lfu), [1, 0]);
    }
}
