//! A column: one number for every slot of a shard.

/// Numbers by slot, in one `Vec`. A slot that was never set has the number `EMPTY`.
///
/// 4 bytes a slot, and while it grows up to a quarter more.
pub(crate) struct Column {
    numbers: Vec<u32>,
}

/// What a slot holds that nothing was written to.
pub(crate) const EMPTY: u32 = u32::MAX;

/// What grows beside the slots grows by one in this many, and not to the double: the bytes that
/// are allocated and unused count towards no bound.
const GROWTH: usize = 4;

impl Column {
    pub(crate) const fn new() -> Self {
        Self { numbers: Vec::new() }
    }

    pub(crate) fn get(&self, slot: u32) -> u32 {
        self.numbers.get(slot as usize).copied().unwrap_or(EMPTY)
    }

    pub(crate) fn set(&mut self, slot: u32, number: u32) {
        match self.numbers.get_mut(slot as usize) {
            Some(place) => *place = number,
            None => self.append(slot, number),
        }
    }

    /// Sets the slot to `EMPTY`, and says what it held.
    pub(crate) fn take(&mut self, slot: u32) -> u32 {
        self.numbers.get_mut(slot as usize).map_or(EMPTY, |number| std::mem::replace(number, EMPTY))
    }

    /// Forgets all, and gives back the memory.
    pub(crate) fn clear(&mut self) {
        self.numbers = Vec::new();
    }

    /// How many slots are not `EMPTY`. Looks at all of them.
    pub(crate) fn taken(&self) -> usize {
        self.numbers.iter().filter(|&&number| number != EMPTY).count()
    }

    #[cold]
    fn append(&mut self, slot: u32, number: u32) {
        let missing = slot as usize - self.numbers.len();
        reserve(&mut self.numbers, missing + 1);
        self.numbers.resize(slot as usize, EMPTY);
        self.numbers.push(number);
    }
}

/// Makes room for so many more, growing by a quarter if at all.
pub(crate) fn reserve<T>(items: &mut Vec<T>, more: usize) {
    if items.capacity() - items.len() < more {
        items.reserve_exact(more.max(items.len() / GROWTH).max(GROWTH));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_empty_until_it_is_set() {
        let mut column = Column::new();
        assert_eq!((column.get(3), column.take(3)), (EMPTY, EMPTY));
        column.set(3, 7);
        assert_eq!((column.get(2), column.get(3), column.get(4)), (EMPTY, 7, EMPTY));
        assert_eq!(column.taken(), 1);
        assert_eq!((column.take(3), column.get(3)), (7, EMPTY));
        column.set(1, 8);
        assert_eq!((column.get(1), column.taken()), (8, 1));
        column.clear();
        assert_eq!((column.get(1), column.numbers.capacity()), (EMPTY, 0));
    }

    #[test]
    fn growth_leaves_little_unused() {
        let mut column = Column::new();
        for slot in 0..10_000 {
            column.set(slot, slot);
            let unused = column.numbers.capacity() - column.numbers.len();
            assert!(unused <= (slot as usize / GROWTH).max(GROWTH), "{unused} unused of {slot}");
        }
    }
}
