//! TTL: the entry that expires soonest leaves.

use super::heap::{Heap, Item, low};
use super::{Entries, Order};

/// The entry with the least time to live leaves first, used or not, as with `volatile-ttl` of
/// Redis, but exactly and not among a sample. Entries that never expire leave after all others,
/// and of these the one whose key came first. So do entries that expire at the same tick.
///
/// Hits tell this order nothing: it asks for [`Touch::Nothing`](super::Touch::Nothing).
///
/// Entries stay in a heap under the tick at which they expire. If it moves to a later one, `evict`
/// finds out; if it moves to an earlier one, somebody has to call `expires_changed`.
///
/// Costs O(log n) for each store, removal and change, and in `evict` for each entry whose tick
/// has moved, and for each pinned one that would leave sooner than the victim. 20 bytes an entry,
/// see [`Heap`].
pub(crate) struct Ttl {
    heap: Heap,
    /// How many keys came.
    inserted: u64,
    /// The pinned entries that `evict` passes over. Empty between calls.
    pinned: Vec<Item>,
}

/// The keys from here on are those of entries that never expire. Milliseconds do not get there
/// in 290 million years.
const NEVER: u64 = 1 << 63;

impl Ttl {
    pub(crate) const fn new() -> Self {
        Self { heap: Heap::new(), inserted: 0, pinned: Vec::new() }
    }

    /// The key of an entry that was inserted at this number.
    fn key(&self, entries: &impl Entries, slot: u32, inserted: u64) -> u64 {
        let expires = entries.expires(slot);
        if expires < NEVER { expires } else { NEVER.saturating_add(inserted) }
    }

    /// The key of an item as it is now.
    fn key_now(&self, entries: &impl Entries, item: Item) -> u64 {
        if item.key >= NEVER && entries.expires(item.slot) >= NEVER {
            return item.key;
        }
        let ago = low(self.inserted).wrapping_sub(item.tie);
        self.key(entries, item.slot, self.inserted.saturating_sub(u64::from(ago)))
    }
}

impl Order for Ttl {
    fn insert(&mut self, entries: &impl Entries, slot: u32) {
        self.inserted += 1;
        let key = self.key(entries, slot, self.inserted);
        self.heap.insert(Item { key, tie: low(self.inserted), slot });
    }

    fn replace(&mut self, entries: &impl Entries, old: u32, new: u32) {
        if let Some(item) = self.heap.get(old) {
            let item = Item { slot: new, ..item };
            self.heap.replace(old, Item { key: self.key_now(entries, item), ..item });
        }
    }

    fn remove(&mut self, _entries: &impl Entries, slot: u32) {
        self.heap.remove(slot);
    }

    fn expires_changed(&mut self, entries: &impl Entries, slot: u32) {
        if let Some(item) = self.heap.get(slot) {
            self.heap.replace(slot, Item { key: self.key_now(entries, item), ..item });
        }
    }

    fn evict(&mut self, entries: &impl Entries, _limit: u64) -> Option<u32> {
        let victim = loop {
            let Some(first) = self.heap.first() else { break None };
            let key = self.key_now(entries, first);
            if key > first.key {
                self.heap.replace(first.slot, Item { key, ..first });
                continue;
            }
            self.heap.remove(first.slot);
            if !entries.is_pinned(first.slot) {
                break Some(first.slot);
            }
            self.pinned.push(first);
        };
        for item in self.pinned.drain(..) {
            self.heap.insert(item);
        }
        victim
    }

    fn expect(&mut self, _entries: usize) {}

    fn clear(&mut self) {
        self.heap.clear();
        self.pinned = Vec::new();
    }

    fn validate(&self, entries: &impl Entries, slots: &[u32]) {
        self.heap.validate(slots);
        assert!(self.pinned.is_empty(), "a pinned entry was left out");
        for item in slots.iter().filter_map(|&slot| self.heap.get(slot)) {
            let key = self.key_now(entries, item);
            assert!(item.key <= key, "an entry expires earlier than the order was told");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::Touch;
    use crate::policy::model::{Pair, Table, cases, operations};

    /// The soonest to expire by looking at everything: the slots as their keys came.
    struct Naive(Vec<u32>);

    impl Order for Naive {
        fn insert(&mut self, _entries: &impl Entries, slot: u32) {
            self.0.push(slot);
        }

        fn replace(&mut self, _entries: &impl Entries, old: u32, new: u32) {
            *self.0.iter_mut().find(|slot| **slot == old).unwrap() = new;
        }

        fn remove(&mut self, _entries: &impl Entries, slot: u32) {
            self.0.retain(|&other| other != slot);
        }

        fn evict(&mut self, entries: &impl Entries, _limit: u64) -> Option<u32> {
            let movable = self.0.iter().copied().filter(|&slot| !entries.is_pinned(slot));
            // The first of those that are equal.
            let victim = movable.min_by_key(|&slot| entries.expires(slot))?;
            self.remove(entries, victim);
            Some(victim)
        }

        fn expect(&mut self, _entries: usize) {}

        fn clear(&mut self) {
            self.0.clear();
        }

        fn validate(&self, _entries: &impl Entries, slots: &[u32]) {
            assert_eq!(self.0.len(), slots.len());
        }
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn the_soonest_to_expire_leaves(operations in operations()) {
            Pair::new(Ttl::new(), Naive(Vec::new()), Touch::Nothing, 0).run(&operations);
        }
    }

    fn evict_all(table: &Table, ttl: &mut Ttl) -> Vec<u32> {
        std::iter::from_fn(|| ttl.evict(table, 0)).collect()
    }

    #[test]
    fn those_that_never_expire_leave_last_and_the_oldest_of_them_first() {
        // The low half of the number of insertions wraps meanwhile.
        let (table, mut ttl) = (Table::new(Touch::Nothing, 0), Ttl::new());
        ttl.inserted = u64::from(u32::MAX) - 3;
        for expires in [u64::MAX, 9, u64::MAX, 3, u64::MAX, NEVER - 1, u64::MAX, 3] {
            let slot = table.add(1, expires);
            ttl.insert(&table, slot);
        }
        table.set_expires(1, u64::MAX);
        table.set_expires(4, 1);
        ttl.expires_changed(&table, 4);
        table.set_expires(5, 2);
        ttl.expires_changed(&table, 5);
        table.set_expires(5, NEVER);
        ttl.expires_changed(&table, 5);
        assert_eq!(evict_all(&table, &mut ttl), [4, 3, 7, 0, 1, 2, 5, 6]);
    }

    #[test]
    fn what_never_expires_keeps_its_turn_however_many_come_after_it() {
        let (table, mut ttl) = (Table::new(Touch::Nothing, 0), Ttl::new());
        for before in [9, (1 << 33) + 4, (1 << 33) + 20] {
            ttl.inserted = before;
            let slot = table.add(1, u64::MAX);
            ttl.insert(&table, slot);
        }
        ttl.expires_changed(&table, 0);
        assert_eq!(evict_all(&table, &mut ttl), [0, 1, 2]);
    }
}
