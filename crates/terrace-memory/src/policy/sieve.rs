//! SIEVE: a hand goes along the queue, and what was not used since it last came by leaves.

use super::column::{Column, EMPTY, reserve};
use super::{Entries, MOST_USES, Order};

/// SIEVE, by Zhang, Yang, Yue, Vigfusson and Rashmi, "SIEVE is Simpler than LRU: an Efficient
/// Turn-Key Eviction Algorithm for Web Caches", NSDI 2024.
///
/// Entries stand in a queue as they came. A hand goes from the oldest to the newest, and then
/// starts again. It forgets the uses of those it passes, and takes the first that has none. Unlike
/// with CLOCK those it spares keep their place, and new ones come in at the far end, not behind
/// the hand: so they are soon looked at, and leave soon if nobody wants them.
///
/// A hit counts in the slot, as for every order; this one asks for
/// [`Touch::Nothing`](super::Touch::Nothing). A new value takes the place of the old one, and that
/// is a use. The hand passes pinned entries and leaves their uses as they are.
///
/// All costs are O(1), amortised: the hand passes each use once, and the gaps that entries leave
/// in the queue are closed when they are more than half as many as the entries. One `evict` goes
/// round at most twice. 10 bytes an entry at most, 8 without gaps, and while it grows up to a
/// quarter more.
pub(crate) struct Sieve {
    /// From the oldest to the newest; `EMPTY` for gaps.
    queue: Vec<u32>,
    /// Where in the queue a slot is.
    places: Column,
    gaps: usize,
    /// The place in the queue that is looked at next. It is 0 or holds an entry: whoever comes
    /// when the hand is through with the newest is not to be looked at before the oldest.
    hand: usize,
}

/// So many gaps are not worth closing.
const FEW: usize = 32;

impl Sieve {
    pub(crate) const fn new() -> Self {
        Self { queue: Vec::new(), places: Column::new(), gaps: 0, hand: 0 }
    }

    /// Finds the one to leave between two places of the queue, and forgets the uses of those
    /// before it. With `any` the first one that is not pinned.
    fn pass(&mut self, entries: &impl Entries, from: usize, to: usize, any: bool) -> Option<u32> {
        let part = self.queue.get(from..to)?;
        part.iter().copied().find(|&slot| {
            if slot == EMPTY || entries.is_pinned(slot) {
                return false;
            }
            if any || entries.uses(slot) == 0 {
                return true;
            }
            entries.set_uses(slot, 0);
            false
        })
    }

    /// Leaves a gap where the slot was. If that is where the hand is, it goes on to the next.
    fn take(&mut self, slot: u32) {
        let place = self.places.take(slot) as usize;
        let Some(gap) = self.queue.get_mut(place) else { return };
        *gap = EMPTY;
        self.gaps += 1;
        if place == self.hand {
            let rest = self.queue.get(place..).unwrap_or_default();
            let next = rest.iter().position(|&slot| slot != EMPTY);
            self.hand = next.map_or(0, |next| place + next);
        }
        if self.gaps > (self.queue.len() - self.gaps) / 2 + FEW {
            self.close_gaps();
        }
    }

    fn close_gaps(&mut self) {
        let (places, hand) = (&mut self.places, self.hand);
        let (mut place, mut kept) = (0, 0);
        self.queue.retain(|&slot| {
            if place == hand {
                self.hand = kept as usize;
            }
            place += 1;
            if slot == EMPTY {
                return false;
            }
            places.set(slot, kept);
            kept += 1;
            true
        });
        self.gaps = 0;
    }
}

impl Order for Sieve {
    fn insert(&mut self, _entries: &impl Entries, slot: u32) {
        // With its gaps, the queue is no longer than 1.5 times the number of slots.
        let place = u32::try_from(self.queue.len()).unwrap_or(EMPTY);
        reserve(&mut self.queue, 1);
        self.queue.push(slot);
        self.places.set(slot, place);
    }

    fn replace(&mut self, entries: &impl Entries, old: u32, new: u32) {
        let place = self.places.take(old);
        if let Some(slot) = self.queue.get_mut(place as usize) {
            *slot = new;
            self.places.set(new, place);
        }
        entries.set_uses(new, entries.uses(old).saturating_add(1).min(MOST_USES));
    }

    fn remove(&mut self, _entries: &impl Entries, slot: u32) {
        self.take(slot);
    }

    fn evict(&mut self, entries: &impl Entries, _limit: u64) -> Option<u32> {
        let (hand, end) = (self.hand, self.queue.len());
        // The second time round nothing that may leave has been used, except for what was read
        // meanwhile. Readers must not keep the hand going.
        let slot = self
            .pass(entries, hand, end, false)
            .or_else(|| self.pass(entries, 0, hand, false))
            .or_else(|| self.pass(entries, hand, end, true))
            .or_else(|| self.pass(entries, 0, hand, true))?;
        self.hand = self.places.get(slot) as usize;
        self.take(slot);
        Some(slot)
    }

    fn expect(&mut self, _entries: usize) {}

    fn clear(&mut self) {
        *self = Self::new();
    }

    fn validate(&self, _entries: &impl Entries, slots: &[u32]) {
        let mut gaps = 0;
        for (place, &slot) in self.queue.iter().enumerate() {
            if slot == EMPTY {
                gaps += 1;
            } else {
                assert_eq!(self.places.get(slot) as usize, place, "a slot is not where it should");
            }
        }
        assert_eq!(gaps, self.gaps, "the gaps are miscounted");
        assert!(gaps <= slots.len() / 2 + FEW, "there are too many gaps");
        assert_eq!(slots.len() + gaps, self.queue.len(), "the queue is too long or too short");
        assert_eq!(self.places.taken(), slots.len(), "a slot is nowhere");
        for &slot in slots {
            assert_ne!(self.places.get(slot), EMPTY, "an entry is not in the queue");
        }
        let at_hand = self.queue.get(self.hand).copied().unwrap_or(EMPTY);
        assert!(self.hand == 0 || at_hand != EMPTY, "the hand points at nothing");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::Touch;
    use crate::policy::model::{Pair, Table, cases, operations};

    /// SIEVE as the paper writes it: a list, and a hand that is one of its entries or nothing.
    #[derive(Default)]
    struct Naive {
        /// From the tail to the head.
        list: Vec<u32>,
        hand: Option<u32>,
    }

    impl Naive {
        fn place(&self, slot: u32) -> usize {
            self.list.iter().position(|&other| other == slot).unwrap()
        }

        fn next(&self, slot: u32) -> Option<u32> {
            self.list.get(self.place(slot) + 1).copied()
        }
    }

    impl Order for Naive {
        fn insert(&mut self, _entries: &impl Entries, slot: u32) {
            self.list.push(slot);
        }

        fn replace(&mut self, entries: &impl Entries, old: u32, new: u32) {
            let place = self.place(old);
            self.list[place] = new;
            if self.hand == Some(old) {
                self.hand = Some(new);
            }
            entries.set_uses(new, 1);
        }

        fn remove(&mut self, _entries: &impl Entries, slot: u32) {
            if self.hand == Some(slot) {
                self.hand = self.next(slot);
            }
            self.list.retain(|&other| other != slot);
        }

        fn evict(&mut self, entries: &impl Entries, _limit: u64) -> Option<u32> {
            if self.list.iter().all(|&slot| entries.is_pinned(slot)) {
                return None;
            }
            let mut at = self.hand.unwrap_or(self.list[0]);
            while entries.is_pinned(at) || entries.uses(at) > 0 {
                if !entries.is_pinned(at) {
                    entries.set_uses(at, 0);
                }
                at = self.next(at).unwrap_or(self.list[0]);
            }
            self.hand = Some(at);
            self.remove(entries, at);
            Some(at)
        }

        fn expect(&mut self, _entries: usize) {}

        fn clear(&mut self) {
            *self = Self::default();
        }

        fn validate(&self, _entries: &impl Entries, slots: &[u32]) {
            assert_eq!(self.list.len(), slots.len());
        }
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn the_hand_takes_whom_the_paper_says(operations in operations()) {
            Pair::new(Sieve::new(), Naive::default(), Touch::Nothing, 0).run(&operations);
        }
    }

    #[test]
    fn those_that_are_spared_keep_their_place() {
        let (table, mut sieve) = (Table::new(Touch::Nothing, 0), Sieve::new());
        let insert = |sieve: &mut Sieve| {
            let slot = table.add(1, u64::MAX);
            sieve.insert(&table, slot);
        };
        for _ in 0..7 {
            insert(&mut sieve);
        }
        for slot in [0, 1, 6] {
            table.read(slot);
        }
        assert_eq!(sieve.evict(&table, 0), Some(2));
        insert(&mut sieve);
        table.read(0);
        table.read(3);
        assert_eq!(sieve.evict(&table, 0), Some(4));
        insert(&mut sieve);
        table.read(1);
        assert_eq!(sieve.evict(&table, 0), Some(5));
        // On over 6, which was used, to 7, 8 and round to the oldest, of which 0 and 1 were used.
        assert_eq!(sieve.evict(&table, 0), Some(7));
        assert_eq!(sieve.evict(&table, 0), Some(8));
        assert_eq!(sieve.evict(&table, 0), Some(3));
    }

    #[test]
    fn who_comes_after_the_hand_was_at_the_end_waits_for_the_oldest() {
        let (table, mut sieve) = (Table::new(Touch::Nothing, 0), Sieve::new());
        for _ in 0..3 {
            let slot = table.add(1, u64::MAX);
            sieve.insert(&table, slot);
        }
        table.read(0);
        table.read(1);
        assert_eq!(sieve.evict(&table, 0), Some(2));
        let slot = table.add(1, u64::MAX);
        sieve.insert(&table, slot);
        assert_eq!(sieve.evict(&table, 0), Some(0));
    }

    #[test]
    fn gaps_are_closed_and_the_hand_stays() {
        let (table, mut sieve) = (Table::new(Touch::Nothing, 0), Sieve::new());
        for slot in 0..1_000 {
            table.add(1, u64::MAX);
            sieve.insert(&table, slot);
        }
        for slot in 0..500 {
            table.read(slot);
        }
        assert_eq!(sieve.evict(&table, 0), Some(500));
        for slot in (0..1_000).filter(|slot| slot % 4 != 3) {
            if slot != 500 {
                sieve.remove(&table, slot);
            }
        }
        let left: Vec<u32> = (0..1_000).filter(|slot| slot % 4 == 3).collect();
        sieve.validate(&table, &left);
        assert!(sieve.queue.len() < 500, "{} places for 250 entries", sieve.queue.len());
        assert_eq!(sieve.evict(&table, 0), Some(503));
    }
}
