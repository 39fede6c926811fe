//! The budget: how much the cache may hold, and who has borrowed it.

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// An amount of what is bounded: bytes, and entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

impl Amount {
    pub(crate) fn entry(bytes: u64) -> Self {
        Self { bytes, entries: 1 }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.entries += other.entries;
    }

    pub(crate) fn subtract(&mut self, other: Self) {
        self.bytes -= other.bytes;
        self.entries -= other.entries;
    }

    pub(crate) fn min(self, other: Self) -> Self {
        let (bytes, entries) = (self.bytes.min(other.bytes), self.entries.min(other.entries));
        Self { bytes, entries }
    }

    pub(crate) fn max(self, other: Self) -> Self {
        let (bytes, entries) = (self.bytes.max(other.bytes), self.entries.max(other.entries));
        Self { bytes, entries }
    }

    /// Rounded up. `parts` is not 0.
    pub(crate) fn divided_by(self, parts: u64) -> Self {
        Self { bytes: self.bytes.div_ceil(parts), entries: self.entries.div_ceil(parts) }
    }
}

/// One budget for all shards. Each borrows some of it at a time, so that they seldom meet here,
/// and returns what it has left over. All that is borrowed and all that is free is always the
/// whole: what the shards hold is never more.
pub(crate) struct Budget {
    max: Amount,
    /// What a shard borrows at a time.
    portion: Amount,
    bytes: AtomicU64,
    entries: AtomicU64,
    /// The most bytes that were ever borrowed.
    peak: AtomicU64,
}

/// A shard borrows its fair share in so many portions.
const PORTIONS: u64 = 16;

impl Budget {
    pub(crate) fn new(max: Amount, shards: u64) -> Self {
        let portion = |whole: u64| (whole / (shards * PORTIONS)).max(1);
        Self {
            max,
            portion: Amount { bytes: portion(max.bytes), entries: portion(max.entries) },
            bytes: AtomicU64::new(max.bytes),
            entries: AtomicU64::new(max.entries),
            peak: AtomicU64::new(0),
        }
    }

    pub(crate) fn max(&self) -> Amount {
        self.max
    }

    pub(crate) fn portion(&self) -> Amount {
        self.portion
    }

    /// What nobody has borrowed.
    pub(crate) fn free(&self) -> Amount {
        Amount { bytes: self.bytes.load(Relaxed), entries: self.entries.load(Relaxed) }
    }

    /// Borrows what is lacking, and what is missing to a whole portion, or as much as there is.
    #[inline]
    pub(crate) fn borrow(&self, lacking: Amount) -> Amount {
        let free = self.free();
        let has_none =
            (lacking.bytes == 0 || free.bytes == 0) && (lacking.entries == 0 || free.entries == 0);
        if has_none { Amount::default() } else { self.borrow_some(lacking) }
    }

    fn borrow_some(&self, lacking: Amount) -> Amount {
        let wanted =
            |lacking: u64, portion: u64| if lacking == 0 { 0 } else { lacking.max(portion) };
        let borrowed = Amount {
            bytes: take(&self.bytes, wanted(lacking.bytes, self.portion.bytes)),
            entries: take(&self.entries, wanted(lacking.entries, self.portion.entries)),
        };
        if borrowed.bytes > 0 {
            self.peak.fetch_max(self.max.bytes - self.bytes.load(Relaxed), Relaxed);
        }
        borrowed
    }

    /// The most bytes that were ever borrowed.
    pub(crate) fn peak_bytes(&self) -> u64 {
        self.peak.load(Relaxed)
    }

    pub(crate) fn give_back(&self, amount: Amount) {
        self.bytes.fetch_add(amount.bytes, Relaxed);
        self.entries.fetch_add(amount.entries, Relaxed);
    }
}

/// Takes as much as there is. `Relaxed` is enough: each counter has one order of changes, and
/// nothing else is read on the strength of it.
fn take(free: &AtomicU64, wanted: u64) -> u64 {
    let mut present = free.load(Relaxed);
    loop {
        let taken = wanted.min(present);
        if taken == 0 {
            return 0;
        }
        match free.compare_exchange_weak(present, present - taken, Relaxed, Relaxed) {
            Ok(_) => return taken,
            Err(changed) => present = changed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_portion_is_borrowed_or_what_is_lacking_or_what_is_left() {
        let budget = Budget::new(Amount { bytes: 3_200, entries: 32 }, 2);
        let lacking = |bytes, entries| budget.borrow(Amount { bytes, entries });
        assert_eq!(lacking(1, 1), Amount { bytes: 100, entries: 1 });
        assert_eq!(lacking(150, 0), Amount { bytes: 150, entries: 0 });
        assert_eq!(lacking(9_999, 99), Amount { bytes: 2_950, entries: 31 });
        assert_eq!(lacking(1, 1), Amount::default());
        budget.give_back(Amount { bytes: 7, entries: 2 });
        assert_eq!(budget.free(), Amount { bytes: 7, entries: 2 });
    }

    #[test]
    fn threads_cannot_borrow_the_same() {
        let max = Amount { bytes: 10, entries: 4 };
        let budget = Budget::new(max, 1);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for bytes in 0..100_000 {
                        let borrowed = budget.borrow(Amount::entry(3 + bytes % 5));
                        assert!(borrowed.bytes <= 10 && borrowed.entries <= 4);
                        budget.give_back(borrowed);
                    }
                });
            }
        });
        assert_eq!(budget.free(), max);
    }
}
