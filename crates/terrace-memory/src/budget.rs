//! The budget: how many bytes the cache may use, and how many are spoken for.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One budget for all shards.
///
/// Every byte in `used` belongs to exactly one owner: the entry that is stored, or the [`Hold`]
/// of an operation under way. Only `Hold::reserve` adds to `used`, and only what fits, so `used`
/// is never above `max`. `Relaxed` is enough: all changes are to one atomic, which has one order
/// of changes, and nothing else is read on the strength of it.
pub(crate) struct Budget {
    max: u64,
    used: AtomicU64,
    peak: AtomicU64,
}

impl Budget {
    pub(crate) fn new(max: u64) -> Self {
        Self { max, used: AtomicU64::new(0), peak: AtomicU64::new(0) }
    }

    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    pub(crate) fn peak(&self) -> u64 {
        self.peak.load(Relaxed)
    }

    /// Takes as many of the bytes as are free, and says how many that were.
    fn take_up_to(&self, bytes: u64) -> u64 {
        let mut used = self.used();
        loop {
            let taken = bytes.min(self.max.saturating_sub(used));
            if taken == 0 {
                return 0;
            }
            match self.used.compare_exchange_weak(used, used + taken, Relaxed, Relaxed) {
                Ok(_) => {
                    self.note_peak(used + taken);
                    return taken;
                }
                Err(changed) => used = changed,
            }
        }
    }

    fn note_peak(&self, used: u64) {
        // A full cache is at its peak most of the time: the load spares it the write.
        if used > self.peak() {
            self.peak.fetch_max(used, Relaxed);
        }
    }
}

/// Bytes of the budget that belong to an operation under way; given back when it is dropped,
/// also by a panic.
pub(crate) struct Hold<'a> {
    budget: &'a Budget,
    bytes: u64,
}

impl<'a> Hold<'a> {
    pub(crate) fn new(budget: &'a Budget) -> Self {
        Self { budget, bytes: 0 }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes free bytes from the budget until the hold has `enough`, or none are free.
    pub(crate) fn reserve(&mut self, enough: u64) {
        self.bytes += self.budget.take_up_to(enough.saturating_sub(self.bytes));
    }

    /// Takes over the bytes of an entry that leaves its shard.
    pub(crate) fn take_over(&mut self, weight: u64) {
        self.bytes += weight;
    }

    /// Hands bytes to an entry that is stored. The hold must have them.
    pub(crate) fn hand_over(&mut self, weight: u64) {
        debug_assert!(weight <= self.bytes, "an entry is stored without room reserved for it");
        self.bytes -= weight;
    }

    /// Gives back all bytes.
    pub(crate) fn give_back(&mut self) {
        if self.bytes > 0 {
            self.budget.used.fetch_sub(self.bytes, Relaxed);
            self.bytes = 0;
        }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_hold_takes_what_is_free_and_gives_it_back() {
        let budget = Budget::new(10);
        let mut first = Hold::new(&budget);
        let mut second = Hold::new(&budget);
        first.reserve(7);
        second.reserve(7);
        assert_eq!((first.bytes(), second.bytes(), budget.used()), (7, 3, 10));

        drop(first);
        assert_eq!(budget.used(), 3);
        second.reserve(7);
        assert_eq!((second.bytes(), budget.used()), (7, 7));
        second.reserve(5);
        assert_eq!(second.bytes(), 7);
        drop(second);
        assert_eq!((budget.used(), budget.peak()), (0, 10));
    }

    #[test]
    fn threads_cannot_take_the_same_bytes() {
        let budget = Budget::new(10);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for bytes in 0..100_000 {
                        let mut hold = Hold::new(&budget);
                        hold.reserve(3 + bytes % 5);
                        assert!(budget.used() <= 10);
                    }
                });
            }
        });
        assert_eq!(budget.used(), 0);
        assert!(budget.peak() <= 10);
    }

    #[test]
    fn bytes_pass_between_a_hold_and_an_entry_without_the_budget() {
        let budget = Budget::new(10);
        let mut hold = Hold::new(&budget);
        hold.reserve(10);
        hold.hand_over(4);
        drop(hold);
        assert_eq!(budget.used(), 4);

        let mut hold = Hold::new(&budget);
        hold.take_over(4);
        assert_eq!(budget.used(), 4);
        drop(hold);
        assert_eq!(budget.used(), 0);
    }
}
