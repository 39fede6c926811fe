//! A heap: slots by a key, the one with the smallest key first.

use std::cmp::Ordering;

use super::column::{Column, EMPTY, reserve};

/// A heap with four children a parent, in one `Vec`, which knows where in it each slot is. So any
/// slot can leave or get another key, not only the first.
///
/// Every change costs O(log n); half as many levels as with two children, and the children of one
/// parent lie together. 16 bytes an entry and 4 a slot, and while it grows up to a quarter more.
/// Nothing is allocated unless there are more entries or slots than ever before.
pub(crate) struct Heap {
    items: Vec<Item>,
    /// Where in `items` a slot is.
    places: Column,
}

/// A slot in the heap. The order is that of the fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) key: u64,
    /// Decides between equal keys.
    pub(crate) tie: u32,
    pub(crate) slot: u32,
}

impl Item {
    /// The fields as one number, which is compared without a jump.
    fn rank(self) -> u128 {
        u128::from(self.key) << 64 | u128::from(self.tie) << 32 | u128::from(self.slot)
    }
}

impl Ord for Item {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }

    fn lt(&self, other: &Self) -> bool {
        self.rank() < other.rank()
    }
}

/// How many children a parent has.
const ARITY: usize = 4;

impl Heap {
    pub(crate) const fn new() -> Self {
        Self { items: Vec::new(), places: Column::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// The item with the smallest key.
    pub(crate) fn first(&self) -> Option<Item> {
        self.items.first().copied()
    }

    pub(crate) fn get(&self, slot: u32) -> Option<Item> {
        self.items.get(self.places.get(slot) as usize).copied()
    }

    /// Adds a slot that is not in the heap.
    pub(crate) fn insert(&mut self, item: Item) {
        debug_assert_eq!(self.places.get(item.slot), EMPTY, "the slot is in the heap");
        let end = self.items.len();
        reserve(&mut self.items, 1);
        self.items.push(item);
        self.rise(end, item);
    }

    /// Takes a slot out.
    pub(crate) fn remove(&mut self, slot: u32) -> Option<Item> {
        let place = self.places.take(slot) as usize;
        let removed = self.items.get(place).copied()?;
        if let Some(last) = self.items.pop()
            && place < self.items.len()
        {
            self.settle(place, last);
        }
        Some(removed)
    }

    /// Puts an item where the slot `old` was, and moves it to where it belongs. It may be of the
    /// same slot, with another key.
    pub(crate) fn replace(&mut self, old: u32, item: Item) {
        let place = self.places.take(old) as usize;
        debug_assert!(place < self.items.len(), "the slot is not in the heap");
        self.settle(place, item);
    }

    /// Forgets all, and gives back the memory.
    pub(crate) fn clear(&mut self) {
        self.items = Vec::new();
        self.places.clear();
    }

    /// Panics unless the heap is well formed and holds exactly these slots, each once.
    pub(crate) fn validate(&self, slots: &[u32]) {
        for (place, item) in self.items.iter().enumerate() {
            assert_eq!(self.places.get(item.slot) as usize, place, "a slot is not where it should");
            let parent = self.items.get(parent_of(place));
            assert!(place == 0 || parent < Some(item), "a child is before its parent");
        }
        assert_eq!(self.places.taken(), self.items.len(), "a slot is nowhere");
        assert_eq!(slots.len(), self.items.len(), "the heap has too many entries or too few");
        for &slot in slots {
            assert!(self.get(slot).is_some(), "an entry is not in the heap");
        }
    }

    /// Puts an item at a place or, if that is not where it belongs, above or below.
    fn settle(&mut self, place: usize, item: Item) {
        if place > 0 && self.items.get(parent_of(place)).is_some_and(|&parent| item < parent) {
            self.rise(place, item);
        } else {
            self.sink(place, item);
        }
    }

    /// Puts an item at a place or above it.
    fn rise(&mut self, mut place: usize, item: Item) {
        while place > 0
            && let Some(&parent) = self.items.get(parent_of(place))
            && item < parent
        {
            self.put(place, parent);
            place = parent_of(place);
        }
        self.put(place, item);
    }

    /// Puts an item at a place or below it.
    fn sink(&mut self, mut place: usize, item: Item) {
        while let Some(child) = self.least_child(place)
            && let Some(&least) = self.items.get(child)
            && least < item
        {
            self.put(place, least);
            place = child;
        }
        self.put(place, item);
    }

    /// The place of the child with the smallest key.
    fn least_child(&self, parent: usize) -> Option<usize> {
        let start = parent * ARITY + 1;
        let children = self.items.get(start..)?;
        // Which child it is cannot be foreseen: two pairs, chosen from without a jump, take half
        // the time of a loop that jumps.
        if let Some(&[a, b, c, d]) = children.first_chunk::<ARITY>() {
            let (ab, left) = if b < a { (b, 1) } else { (a, 0) };
            let (cd, right) = if d < c { (d, 3) } else { (c, 2) };
            return Some(start + if cd < ab { right } else { left });
        }
        let last = children.iter().enumerate().min_by_key(|&(_, item)| item)?;
        Some(start + last.0)
    }

    fn put(&mut self, place: usize, item: Item) {
        if let Some(to) = self.items.get_mut(place) {
            *to = item;
            // A place is less than the number of slots, which are 32 bits wide.
            self.places.set(item.slot, u32::try_from(place).unwrap_or(EMPTY));
        }
    }
}

/// The root counts as its own parent.
const fn parent_of(place: usize) -> usize {
    place.saturating_sub(1) / ARITY
}

/// The lower half of a number that only ever grows.
#[expect(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
pub(crate) const fn low(number: u64) -> u32 {
    number as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Operation {
        Insert(u32, u64, u32),
        Remove(u32),
        Replace(u32, u32, u64),
        Pop,
        Clear,
    }

    const SLOTS: u32 = 50;

    fn operation() -> impl Strategy<Value = Operation> {
        // Few keys, so that many are equal.
        prop_oneof![
            8 => (0..SLOTS, 0..20_u64, 0..3_u32).prop_map(|(slot, key, tie)| {
                Operation::Insert(slot, key, tie)
            }),
            2 => (0..SLOTS).prop_map(Operation::Remove),
            4 => (0..SLOTS, 0..SLOTS, 0..20_u64).prop_map(|(old, new, key)| {
                Operation::Replace(old, new, key)
            }),
            2 => Just(Operation::Pop),
            1 => prop::bool::weighted(0.1).prop_map(|clear| {
                if clear { Operation::Clear } else { Operation::Pop }
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_heap_does_what_a_sorted_list_does(
            operations in prop::collection::vec(operation(), 1..300)
        ) {
            let mut heap = Heap::new();
            let mut model = BTreeMap::new();
            for operation in operations {
                match operation {
                    Operation::Insert(slot, key, tie) if !model.contains_key(&slot) => {
                        let item = Item { key, tie, slot };
                        heap.insert(item);
                        model.insert(slot, item);
                    }
                    Operation::Replace(old, new, key)
                        if model.contains_key(&old) && (old == new || !model.contains_key(&new)) =>
                    {
                        let tie = model.remove(&old).unwrap().tie;
                        let item = Item { key, tie, slot: new };
                        heap.replace(old, item);
                        model.insert(new, item);
                    }
                    Operation::Insert(..) | Operation::Replace(..) => {}
                    Operation::Remove(slot) => {
                        prop_assert_eq!(heap.remove(slot), model.remove(&slot));
                    }
                    Operation::Pop => {
                        let first = heap.first();
                        prop_assert_eq!(first, model.values().min().copied());
                        if let Some(first) = first {
                            prop_assert_eq!(heap.remove(first.slot), model.remove(&first.slot));
                        }
                    }
                    Operation::Clear => {
                        heap.clear();
                        model.clear();
                    }
                }
                heap.validate(&model.keys().copied().collect::<Vec<_>>());
                prop_assert_eq!(heap.len(), model.len());
                for slot in 0..=SLOTS {
                    prop_assert_eq!(heap.get(slot), model.get(&slot).copied());
                }
            }
        }
    }

    #[test]
    fn clearing_gives_the_memory_back() {
        let mut heap = Heap::new();
        for slot in 0..1_000 {
            heap.insert(Item { key: u64::from(slot ^ 0x155), tie: 0, slot });
        }
        heap.clear();
        assert_eq!(heap.items.capacity(), 0);
        assert_eq!(heap.first(), None);
    }
}
