//! A slab: items in numbered slots, in order of use.

/// Slots in one `Vec`, the taken ones in a doubly linked list from the item used last (front) to
/// the one not used for the longest time (back), the empty ones in a list of their own.
///
/// Links are 32 bits wide: half the size of pointers, and no unsafe code.
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    front: u32,
    back: u32,
    free: u32,
    len: u32,
    limit: u32,
}

/// A place for one item. An empty slot uses `next` for the list of empty slots.
pub(crate) struct Slot<T> {
    prev: u32,
    next: u32,
    item: Option<T>,
}

/// The end of a list. No slot has this number, so looking it up finds nothing.
const NIL: u32 = u32::MAX;

/// The slots are grown by one in this many: what a growing slab has allocated and does not use.
pub(crate) const GROWTH: usize = 4;

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self::with_limit(NIL)
    }

    /// A slab of at most `limit` slots.
    pub(crate) const fn with_limit(limit: u32) -> Self {
        Self { slots: Vec::new(), front: NIL, back: NIL, free: NIL, len: 0, limit }
    }

    /// How many items there are.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// How many slots there are, empty ones too.
    pub(crate) fn slots(&self) -> u32 {
        // Never more than `limit`.
        u32::try_from(self.slots.len()).unwrap_or(NIL)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len == self.limit
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.slot(index)?.item.as_ref()
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slot_mut(index)?.item.as_mut()
    }

    /// The number of the item not used for the longest time.
    pub(crate) fn oldest(&self) -> Option<u32> {
        (self.back != NIL).then_some(self.back)
    }

    /// The number of the item that was used next after this one.
    pub(crate) fn newer(&self, index: u32) -> Option<u32> {
        self.slot(index).map(|slot| slot.prev).filter(|&prev| prev != NIL)
    }

    /// The items with their numbers, in the order of the numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.slots).filter_map(|(index, slot)| Some((index, slot.item.as_ref()?)))
    }

    /// Adds an item as the one used last; gives it back when the slab is full.
    pub(crate) fn insert(&mut self, item: T) -> Result<u32, T> {
        if self.is_full() {
            return Err(item);
        }
        let index = self.place(item);
        self.len += 1;
        self.link_front(index);
        Ok(index)
    }

    /// Takes an item out.
    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let item = self.slot_mut(index)?.item.take()?;
        self.unlink(index);
        self.len -= 1;
        let free = self.free;
        if let Some(slot) = self.slot_mut(index) {
            slot.next = free;
            self.free = index;
        }
        Some(item)
    }

    /// Makes an item the one used last.
    pub(crate) fn touch(&mut self, index: u32) {
        if index != self.front && self.get(index).is_some() {
            self.unlink(index);
            self.link_front(index);
        }
    }

    /// All items, in the order of their numbers.
    pub(crate) fn into_items(self) -> impl Iterator<Item = T> {
        self.slots.into_iter().filter_map(|slot| slot.item)
    }

    /// The bytes that are allocated for slots.
    #[cfg(test)]
    pub(crate) fn allocated(&self) -> usize {
        self.slots.capacity() * size_of::<Slot<T>>()
    }

    /// Panics unless both lists are well formed and every slot is in one of them.
    pub(crate) fn validate(&self) {
        let (mut count, mut prev, mut index) = (0, NIL, self.front);
        while let Some(slot) = self.slot(index) {
            assert!(slot.item.is_some(), "an empty slot is in the list of items");
            assert_eq!(slot.prev, prev, "a link back does not match the link forth");
            assert!(count < self.len, "the list of items is longer than the number of items");
            count += 1;
            (prev, index) = (index, slot.next);
        }
        assert_eq!(index, NIL, "the list of items leads out of the slab");
        assert_eq!(self.back, prev, "the list of items does not end at its back");
        assert_eq!(count, self.len, "an item is not in the list of items");

        let mut index = self.free;
        while let Some(slot) = self.slot(index) {
            assert!(slot.item.is_none(), "a taken slot is in the list of empty slots");
            assert!(count < self.slots(), "the list of empty slots has a loop");
            count += 1;
            index = slot.next;
        }
        assert_eq!(index, NIL, "the list of empty slots leads out of the slab");
        assert_eq!(count, self.slots(), "an empty slot is lost");
    }

    /// Puts an item into an empty slot or a new one, in no list.
    fn place(&mut self, item: T) -> u32 {
        let index = self.free;
        if let Some(slot) = self.slot_mut(index) {
            let free = slot.next;
            slot.item = Some(item);
            self.free = free;
            return index;
        }
        if self.slots.len() == self.slots.capacity() {
            self.slots.reserve_exact((self.slots.len() / GROWTH).max(GROWTH));
        }
        let index = self.slots();
        self.slots.push(Slot { prev: NIL, next: NIL, item: Some(item) });
        index
    }

    fn link_front(&mut self, index: u32) {
        let front = self.front;
        if let Some(slot) = self.slot_mut(index) {
            slot.prev = NIL;
            slot.next = front;
        }
        match self.slot_mut(front) {
            Some(second) => second.prev = index,
            None => self.back = index,
        }
        self.front = index;
    }

    fn unlink(&mut self, index: u32) {
        let Some(slot) = self.slot(index) else { return };
        let (prev, next) = (slot.prev, slot.next);
        match self.slot_mut(prev) {
            Some(slot) => slot.next = next,
            None => self.front = next,
        }
        match self.slot_mut(next) {
            Some(slot) => slot.prev = prev,
            None => self.back = prev,
        }
    }

    fn slot(&self, index: u32) -> Option<&Slot<T>> {
        self.slots.get(index as usize)
    }

    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot<T>> {
        self.slots.get_mut(index as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The items from the oldest to the newest.
    fn by_age(slab: &Slab<char>) -> String {
        slab.validate();
        let mut items = String::new();
        let mut index = slab.oldest();
        while let Some(at) = index {
            items.extend(slab.get(at));
            index = slab.newer(at);
        }
        items
    }

    fn filled(items: &str) -> Slab<char> {
        let mut slab = Slab::new();
        for item in items.chars() {
            slab.insert(item).unwrap();
        }
        slab
    }

    #[test]
    fn items_are_in_order_of_use() {
        let mut slab = filled("abcd");
        assert_eq!(by_age(&slab), "abcd");
        slab.touch(0);
        assert_eq!(by_age(&slab), "bcda");
        slab.touch(2);
        assert_eq!(by_age(&slab), "bdac");
        slab.touch(2);
        assert_eq!(by_age(&slab), "bdac");
    }

    #[test]
    fn removing_closes_the_gap() {
        for (index, left) in [(0, "bcd"), (1, "acd"), (3, "abc")] {
            let mut slab = filled("abcd");
            assert!(slab.remove(index).is_some());
            assert_eq!(by_age(&slab), left);
            assert_eq!(slab.remove(index), None);
            assert_eq!(slab.len(), 3);
        }
    }

    #[test]
    fn empty_slots_are_used_again() {
        let mut slab = filled("abcd");
        slab.remove(1);
        slab.remove(3);
        assert_eq!(slab.insert('e'), Ok(3));
        assert_eq!(slab.insert('f'), Ok(1));
        assert_eq!(slab.slots(), 4);
        assert_eq!(by_age(&slab), "acef");
        assert_eq!(slab.into_items().collect::<String>(), "afce");
    }

    #[test]
    fn the_last_item_leaves_an_empty_list() {
        let mut slab = filled("a");
        assert_eq!(slab.remove(0), Some('a'));
        assert_eq!(slab.oldest(), None);
        slab.touch(0);
        assert_eq!(by_age(&slab), "");
        slab.insert('b').unwrap();
        assert_eq!(by_age(&slab), "b");
    }

    #[test]
    fn a_full_slab_gives_the_item_back() {
        let mut slab = Slab::with_limit(2);
        assert_eq!((slab.insert('a'), slab.insert('b')), (Ok(0), Ok(1)));
        assert_eq!(slab.insert('c'), Err('c'));
        slab.remove(0);
        assert_eq!(slab.insert('c'), Ok(0));
        assert_eq!(by_age(&slab), "bc");
    }

    #[test]
    fn growth_leaves_little_unused() {
        let mut slab = Slab::new();
        for item in 0..10_000_usize {
            slab.insert(item).unwrap();
            let unused = slab.slots.capacity() - slab.slots.len();
            assert!(unused <= (item / GROWTH).max(GROWTH), "{unused} unused of {item}");
        }
    }
}
