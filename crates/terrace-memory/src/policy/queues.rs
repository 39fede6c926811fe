//! Queues: a window of new entries, the main part, and what is known of keys that are gone.
//!
//! The orders built on this differ in nothing but the [`Rule`] by which an entry that has come to
//! the end of the window stays or leaves.

use std::collections::VecDeque;
use std::mem;

use super::ghost::Ghost;
use super::sketch::Sketch;
use super::{Entries, Look, MOST_USES};

#[cfg(test)]
pub(crate) mod model;

/// A FIFO window and, for entries that have proved themselves, a CLOCK whose hand goes over the
/// slots in the order of their numbers: the main part has no links.
///
/// Inserting, and on average evicting, takes constant time. Removing or replacing an entry that is
/// still in the window searches the window, which is small.
pub(crate) struct Queues {
    window: VecDeque<u32>,
    window_cost: u64,
    main: u32,
    main_cost: u64,
    /// The slot at which the search for the next victim begins.
    hand: u32,
    ghost: Ghost,
    /// Only there once a rule was in force that asks it, and only told of what happens while one
    /// is: whether it was told before makes next to no difference.
    sketch: Option<Sketch>,
    counts: bool,
    /// How many entries the shard is expected to hold.
    expected: usize,
    random: u64,
    /// What the shard could hold when it was full last.
    limit: u64,
    /// Whether an entry was evicted, or should have been, since the last one came.
    is_full: bool,
}

/// Who may pass from the window to the main part when the shard is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Whoever was used while in the window, a tenth of the shard: if it costs more than others,
    /// accordingly more often. Who comes back soon after leaving the window goes to the main part
    /// at once.
    S3Fifo,
    /// Whoever was used more often of late, for what it costs, than the entry that would have to
    /// leave for it.
    TinyLfu {
        /// The size of the window in hundredths of the shard; from 1 to 99.
        window: u8,
    },
}

/// In the window; see [`Entries::region`].
const WINDOW: u8 = 1;
/// In the main part.
const MAIN: u8 = 2;

impl Queues {
    /// For a shard of so many entries.
    pub(crate) fn new(entries: usize) -> Self {
        Self {
            window: VecDeque::new(),
            window_cost: 0,
            main: 0,
            main_cost: 0,
            hand: 0,
            ghost: Ghost::new(entries),
            sketch: None,
            counts: false,
            expected: entries,
            random: 0x9e37_79b9_7f4a_7c15,
            limit: 0,
            is_full: false,
        }
    }

    #[inline]
    pub(crate) fn insert(&mut self, entries: &impl Entries, slot: u32, rule: Rule) {
        let (hash, cost) = (entries.hash(slot), entries.cost(slot));
        self.follow(rule);
        self.count(hash, 1);
        let is_known = rule == Rule::S3Fifo && self.ghost.take(hash);
        if !mem::take(&mut self.is_full) && self.has_room(cost) {
            self.overflow(entries, cost, rule);
        }
        if is_known {
            self.enter_main(entries, slot, cost);
        } else {
            entries.set_region(slot, WINDOW);
            self.window.push_back(slot);
            self.window_cost += cost;
        }
    }

    /// `new` takes the place of `old`. Searches the window if they are in there.
    pub(crate) fn replace(&mut self, entries: &impl Entries, old: u32, new: u32) {
        let region = entries.region(old);
        let (less, more) = (entries.cost(old), entries.cost(new));
        if region == MAIN {
            self.main_cost = self.main_cost - less + more;
        } else if let Some(place) = self.in_window(old).and_then(|at| self.window.get_mut(at)) {
            *place = new;
            self.window_cost = self.window_cost - less + more;
        }
        entries.set_region(new, region);
        entries.set_uses(new, (entries.uses(old) + 1).min(MOST_USES));
    }

    /// Searches the window if the entry is in there.
    pub(crate) fn remove(&mut self, entries: &impl Entries, slot: u32) {
        if entries.region(slot) == MAIN {
            self.leave_main(entries, slot);
        } else if let Some(at) = self.in_window(slot) {
            self.window.remove(at);
            self.window_cost -= entries.cost(slot);
        }
    }

    #[inline]
    pub(crate) fn evict(&mut self, entries: &impl Entries, limit: u64, rule: Rule) -> Option<u32> {
        let chosen = self.choose(entries, limit, rule);
        self.look_ahead(entries);
        chosen
    }

    /// Asks for the memory that the next evictions will need: to wait for it takes longer than all
    /// else about them.
    #[inline]
    fn look_ahead(&self, entries: &impl Entries) {
        let Some(&next) = self.window.front() else { return };
        // Its slot was asked for when the last entry left.
        let hash = entries.hash(next);
        entries.prefetch_leaving(hash);
        self.ghost.prefetch(hash);
        if self.counts
            && let Some(sketch) = &self.sketch
        {
            sketch.prefetch(hash);
        }
        if let Some(&later) = self.window.get(1) {
            entries.prefetch(later);
        }
    }

    #[inline]
    fn choose(&mut self, entries: &impl Entries, limit: u64, rule: Rule) -> Option<u32> {
        self.limit = limit;
        self.is_full = true;
        self.follow(rule);
        let (target, mean) = (rule.window(limit), self.mean_cost());
        let mut is_shrunk = false;
        let mut has_victims = self.main > 0;
        loop {
            if self.window_cost < target && has_victims {
                match self.victim(entries, mean) {
                    Some(victim) => return Some(self.evict_main(entries, victim)),
                    // All pinned.
                    None => has_victims = false,
                }
                continue;
            }
            let (candidate, look) = self.pop_window(entries)?;
            let Look { hash, cost, uses, is_pinned } = look;
            if is_pinned {
                self.enter_main(entries, candidate, cost);
                continue;
            }
            self.count(hash, uses);
            if !has_victims {
                return Some(self.evict_candidate(candidate, hash));
            }
            match rule {
                Rule::S3Fifo if is_worth(uses, cost, mean) => {
                    self.promote(entries, candidate, cost);
                }
                Rule::S3Fifo => return Some(self.evict_candidate(candidate, hash)),
                // After a change of the rule, the window shrinks to its size by one entry per call.
                Rule::TinyLfu { .. }
                    if self.window_cost / 2 >= target && !mem::replace(&mut is_shrunk, true) =>
                {
                    self.promote(entries, candidate, cost);
                }
                Rule::TinyLfu { .. } => {
                    let victim = self.victim(entries, mean);
                    if let Some(victim) = victim
                        && self.is_preferred(
                            (hash, cost),
                            (entries.hash(victim), entries.cost(victim)),
                        )
                    {
                        self.promote(entries, candidate, cost);
                        return Some(self.evict_main(entries, victim));
                    }
                    return Some(self.evict_candidate(candidate, hash));
                }
            }
        }
    }

    /// Adapts the memory of keys that are gone to a shard of so many entries; a little of what
    /// was learned may be lost.
    pub(crate) fn expect(&mut self, entries: usize) {
        self.expected = entries;
        self.ghost.resize(entries);
        if let Some(sketch) = &mut self.sketch {
            sketch.resize(entries);
        }
    }

    /// Forgets the entries, but not what is known of their keys.
    pub(crate) fn clear(&mut self) {
        self.window = VecDeque::new();
        (self.window_cost, self.main, self.main_cost, self.hand) = (0, 0, 0, 0);
        self.is_full = false;
    }

    pub(crate) fn validate(&self, entries: &impl Entries, slots: &[u32]) {
        let of = |region| slots.iter().filter(move |&&slot| entries.region(slot) == region);
        let cost = |region| of(region).map(|&slot| entries.cost(slot)).sum::<u64>();
        let (mut held, mut noted) =
            (self.window.clone(), of(WINDOW).copied().collect::<VecDeque<u32>>());
        held.make_contiguous().sort_unstable();
        noted.make_contiguous().sort_unstable();
        assert_eq!(held, noted, "the window is not what the entries say");
        assert_eq!(self.main as usize, of(MAIN).count(), "the main part is miscounted");
        assert_eq!(slots.len(), held.len() + self.main as usize, "an entry is in no queue");
        assert_eq!(self.window_cost, cost(WINDOW), "the costs of the window do not add up");
        assert_eq!(self.main_cost, cost(MAIN), "the costs of the main part do not add up");
    }

    #[inline]
    fn follow(&mut self, rule: Rule) {
        self.counts = rule != Rule::S3Fifo;
        if self.counts && self.sketch.is_none() {
            self.begin_to_count();
        }
    }

    #[cold]
    #[inline(never)]
    fn begin_to_count(&mut self) {
        self.sketch = Some(Sketch::new(self.expected));
    }

    /// Whether the shard is far from full. That nothing had to leave for an entry does not mean
    /// that: a larger one may have left for the one before.
    fn has_room(&self, cost: u64) -> bool {
        let total = self.window_cost + self.main_cost + cost;
        // More than the limit: that is an old one.
        total <= self.limit - self.limit / 16 || total > self.limit
    }

    /// While there is room, what exceeds the window passes to the main part without contest. Two
    /// at most, so that no call has to move a whole window after a change of the rule.
    #[inline(never)]
    fn overflow(&mut self, entries: &impl Entries, cost: u64, rule: Rule) {
        let total = self.window_cost + self.main_cost + cost;
        let target = rule.window(total.max(self.limit));
        for _ in 0..2 {
            if self.window_cost + cost <= target {
                return;
            }
            let Some((oldest, look)) = self.pop_window(entries) else { return };
            self.promote(entries, oldest, look.cost);
        }
    }

    /// The next unpinned entry of the main part that was not used since the hand passed it, or not
    /// often enough for what it costs. The hand stays there.
    ///
    /// Every step lowers a count, so that after a few rounds one is found even if all are used.
    #[inline]
    fn victim(&mut self, entries: &impl Entries, mean: u64) -> Option<u32> {
        let slots = entries.slots();
        let mut used = None;
        for _ in 0..=MOST_USES {
            for _ in 0..slots {
                if self.hand >= slots {
                    self.hand = 0;
                }
                let slot = self.hand;
                if entries.region(slot) == MAIN && !entries.is_pinned(slot) {
                    let uses = entries.uses(slot);
                    if uses == 0 || !is_worth(uses, entries.cost(slot), mean) {
                        return Some(slot);
                    }
                    entries.set_uses(slot, uses - 1);
                    self.count(entries.hash(slot), 1);
                    used = Some(slot);
                }
                self.hand += 1;
            }
            used?;
        }
        // Readers were faster than the hand.
        used
    }

    /// Whether the candidate was used more often than the victim for what it costs; of both the
    /// hash and the cost. Now and then a candidate that was used often enough wins anyhow, so that
    /// nobody can make a victim win forever by keys that share its counters.
    fn is_preferred(&mut self, candidate: (u32, u64), victim: (u32, u64)) -> bool {
        let Some(sketch) = &self.sketch else { return false };
        let (uses, of_victim) = (sketch.estimate(candidate.0), sketch.estimate(victim.0));
        uses.saturating_mul(victim.1) > of_victim.saturating_mul(candidate.1)
            || uses > 5 && self.random() & 127 == 0
    }

    /// What an entry costs on average.
    fn mean_cost(&self) -> u64 {
        let entries = self.window.len() as u64 + u64::from(self.main);
        let cost = self.window_cost + self.main_cost;
        // Where entries are counted there is nothing to divide.
        if cost == entries { 1 } else { cost / entries.max(1) }
    }

    /// A step of xorshift.
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    #[inline]
    fn count(&mut self, hash: u32, uses: u8) {
        if self.counts
            && let Some(sketch) = &mut self.sketch
        {
            for _ in 0..uses {
                sketch.add(hash);
            }
        }
    }

    /// Where a slot is in the window.
    fn in_window(&self, slot: u32) -> Option<usize> {
        let (first, second) = self.window.as_slices();
        position(first, slot).or_else(|| position(second, slot).map(|at| first.len() + at))
    }

    #[inline]
    fn pop_window(&mut self, entries: &impl Entries) -> Option<(u32, Look)> {
        let slot = self.window.pop_front()?;
        let look = entries.look(slot);
        self.window_cost -= look.cost;
        Some((slot, look))
    }

    /// Passes an entry from the window to the main part, where it has to be used anew.
    fn promote(&mut self, entries: &impl Entries, slot: u32, cost: u64) {
        entries.set_uses(slot, 0);
        self.enter_main(entries, slot, cost);
    }

    #[inline]
    fn enter_main(&mut self, entries: &impl Entries, slot: u32, cost: u64) {
        entries.set_region(slot, MAIN);
        self.main += 1;
        self.main_cost += cost;
    }

    fn leave_main(&mut self, entries: &impl Entries, slot: u32) {
        self.main -= 1;
        self.main_cost -= entries.cost(slot);
    }

    #[inline]
    fn evict_candidate(&mut self, slot: u32, hash: u32) -> u32 {
        self.ghost.push(hash);
        slot
    }

    #[inline]
    fn evict_main(&mut self, entries: &impl Entries, slot: u32) -> u32 {
        self.leave_main(entries, slot);
        // The slot may be given to a new entry, whose turn is when the hand comes round.
        self.hand = slot + 1;
        slot
    }
}

/// Where a slot is among others. Many are compared at a time, by a few vector instructions.
fn position(slots: &[u32], wanted: u32) -> Option<usize> {
    let (chunks, _) = slots.as_chunks::<32>();
    let equal = |&slot: &u32| if slot == wanted { u32::MAX } else { 0 };
    let has = |chunk: &[u32; 32]| chunk.iter().map(equal).fold(0, |any, equal| any | equal) != 0;
    let from = 32 * chunks.iter().position(has).unwrap_or(chunks.len());
    let rest = slots.get(from..)?;
    rest.iter().position(|&slot| slot == wanted).map(|at| from + at)
}

/// Whether an entry was used often enough for what it costs: once for each time the average.
fn is_worth(uses: u8, cost: u64, mean: u64) -> bool {
    uses > 0 && mean.saturating_mul(uses.into()) >= cost
}

impl Rule {
    /// The rule as one byte, for an atomic; [`Rule::of`] undoes it.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::S3Fifo => 0,
            Self::TinyLfu { window } => window,
        }
    }

    /// The rule that has this code.
    pub(crate) fn of(code: u8) -> Self {
        if code == 0 { Self::S3Fifo } else { Self::TinyLfu { window: code } }
    }

    /// The cost that the window should have in a shard that can hold `limit`.
    fn window(self, limit: u64) -> u64 {
        let hundredths = match self {
            Self::S3Fifo => 10,
            Self::TinyLfu { window } => u64::from(window),
        };
        (limit.saturating_mul(hundredths) / 100).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Table;

    const SMALL: Rule = Rule::TinyLfu { window: 1 };
    const LARGE: Rule = Rule::TinyLfu { window: 20 };

    /// Queues with their entries, each of which costs 1.
    struct Shard {
        queues: Queues,
        table: Table,
        rule: Rule,
    }

    impl Shard {
        fn new(rule: Rule) -> Self {
            Self { queues: Queues::new(100), table: Table::default(), rule }
        }

        fn filled(rule: Rule) -> Self {
            let mut shard = Self::new(rule);
            for key in 0..100 {
                shard.add(key);
            }
            shard
        }

        fn add(&mut self, key: u32) -> u32 {
            let slot = self.table.add(key.wrapping_mul(0x9e37_79b9) >> 8, 1, false);
            self.queues.insert(&self.table, slot, self.rule);
            self.queues.validate(&self.table, &self.table.taken());
            slot
        }

        fn evict(&mut self) -> Option<u32> {
            let victim = self.queues.evict(&self.table, 100, self.rule)?;
            self.table.free(victim);
            self.queues.validate(&self.table, &self.table.taken());
            Some(victim)
        }

        fn pin(&mut self, is_pinned: bool) {
            for slot in &mut self.table.slots {
                slot.is_pinned = is_pinned;
            }
        }

        fn sizes(&self) -> (usize, u32) {
            (self.queues.window.len(), self.queues.main)
        }
    }

    #[test]
    fn a_shard_with_room_fills_both_parts() {
        for (rule, sizes) in [(Rule::S3Fifo, (10, 90)), (SMALL, (1, 99)), (LARGE, (20, 80))] {
            assert_eq!(Shard::filled(rule).sizes(), sizes);
        }
    }

    #[test]
    fn used_entries_outlive_a_scan() {
        for rule in [Rule::S3Fifo, SMALL, LARGE] {
            let mut shard = Shard::filled(rule);
            for slot in 0..40 {
                shard.table.set_uses(slot, 3);
            }
            for key in 1_000..1_300 {
                assert!(shard.evict().is_some_and(|victim| victim >= 40));
                shard.add(key);
            }
        }
    }

    #[test]
    fn who_comes_back_soon_goes_to_the_main_part() {
        let mut shard = Shard::filled(Rule::S3Fifo);
        let oldest = shard.evict().unwrap();
        let slot = shard.add(oldest);
        assert_eq!(shard.table.region(slot), MAIN);
        // But not once more for the same reason.
        shard.queues.remove(&shard.table, slot);
        shard.table.free(slot);
        let slot = shard.add(oldest);
        assert_eq!(shard.table.region(slot), WINDOW);
    }

    #[test]
    fn pinned_entries_stay_whatever_happens() {
        for rule in [Rule::S3Fifo, SMALL, LARGE] {
            let mut shard = Shard::filled(rule);
            shard.pin(true);
            assert_eq!(shard.evict(), None);
            assert_eq!(shard.sizes(), (0, 100));
            let slot = shard.add(100);
            assert_eq!(shard.evict(), Some(slot));
            shard.pin(false);
            assert!(shard.evict().is_some());
        }
    }

    #[test]
    fn the_window_takes_its_size_after_a_change_of_the_rule() {
        let mut shard = Shard::filled(LARGE);
        let mut key = 1_000;
        for (rule, sizes) in [(SMALL, 1..=2), (LARGE, 20..=20), (SMALL, 1..=2)] {
            shard.rule = rule;
            for _ in 0..100 {
                shard.evict();
                shard.add(key);
                key += 1;
            }
            assert!(sizes.contains(&shard.sizes().0), "{:?} after {rule:?}", shard.sizes());
        }
    }

    #[test]
    fn a_call_ends_though_readers_are_faster_than_the_hand() {
        /// Entries that are used again as soon as their uses are lowered.
        struct Busy(Table);

        impl Entries for Busy {
            fn uses(&self, _slot: u32) -> u8 {
                MOST_USES
            }
            fn set_uses(&self, _slot: u32, _uses: u8) {}
            fn touched(&self, _slot: u32) -> u32 {
                0
            }
            fn set_touched(&self, _slot: u32, _touched: u32) {}
            fn hash(&self, slot: u32) -> u32 {
                self.0.hash(slot)
            }
            fn cost(&self, _slot: u32) -> u64 {
                1
            }
            fn expires(&self, _slot: u32) -> u64 {
                u64::MAX
            }
            fn is_pinned(&self, _slot: u32) -> bool {
                false
            }
            fn region(&self, slot: u32) -> u8 {
                self.0.region(slot)
            }
            fn set_region(&self, slot: u32, region: u8) {
                self.0.set_region(slot, region);
            }
            fn slots(&self) -> u32 {
                self.0.slots()
            }
        }

        for rule in [Rule::S3Fifo, SMALL, LARGE] {
            let Shard { mut queues, table, .. } = Shard::filled(rule);
            let mut busy = Busy(table);
            for left in (0..100).rev() {
                let victim = queues.evict(&busy, 100, rule).unwrap();
                busy.0.free(victim);
                assert_eq!(busy.0.taken().len(), left);
            }
            assert_eq!(queues.evict(&busy, 100, rule), None);
        }
    }

    #[test]
    fn a_candidate_that_is_used_less_wins_seldom() {
        let mut queues = Queues::new(100);
        queues.follow(Rule::TinyLfu { window: 1 });
        let (victim, warm, cold) = (0xff_0000, 0x80_0000, 0x10_0000);
        queues.count(victim, 15);
        queues.count(warm, 6);
        queues.count(cold, 5);
        let mut wins =
            |hash| (0..12_800).filter(|_| queues.is_preferred((hash, 1), (victim, 1))).count();
        assert!((50..200).contains(&wins(warm)), "{} wins", wins(warm));
        assert_eq!(wins(cold), 0);
        assert!(queues.is_preferred((victim, 1), (warm, 1)));
        assert!(!queues.is_preferred((victim, 3), (warm, 1)));
        assert!(queues.is_preferred((warm, 1), (victim, 3)));
    }

    #[test]
    fn a_slot_is_found_wherever_it_is() {
        for len in [0, 1, 31, 32, 33, 100] {
            let slots: Vec<u32> = (0..len).collect();
            for slot in 0..=len {
                let expected = (slot < len).then_some(slot as usize);
                assert_eq!(position(&slots, slot), expected);
            }
        }
    }

    #[test]
    fn codes_are_those_of_their_rules() {
        for rule in [Rule::S3Fifo, SMALL, LARGE] {
            assert_eq!(Rule::of(rule.code()), rule);
        }
    }

    #[test]
    fn a_limit_that_is_none_is_no_overflow() {
        assert_eq!(LARGE.window(u64::MAX), u64::MAX / 100);
        assert_eq!((LARGE.window(0), SMALL.window(99), SMALL.window(250)), (1, 1, 2));
    }
}
