//! S3-FIFO: an order in which most new entries leave early.

use super::queues::{Queues, Rule};
use super::{Entries, Order};

/// "FIFO Queues are All You Need for Cache Eviction" (Yang, Zhang, Qiu, Yue, Rashmi; SOSP '23).
///
/// An entry that nobody used while it was in the window, a tenth of the shard, leaves; its key is
/// remembered, and if it comes back soon it goes to the main part at once. It takes about two and
/// a half bytes per entry. `remove` and `replace` search the window for entries that are in there.
pub(crate) struct S3Fifo {
    queues: Queues,
}

impl S3Fifo {
    /// For a shard of so many entries.
    pub(crate) fn new(entries: usize) -> Self {
        Self { queues: Queues::new(entries) }
    }
}

impl Order for S3Fifo {
    #[inline]
    fn insert(&mut self, entries: &impl Entries, slot: u32) {
        self.queues.insert(entries, slot, Rule::S3Fifo);
    }

    fn replace(&mut self, entries: &impl Entries, old: u32, new: u32) {
        self.queues.replace(entries, old, new);
    }

    fn remove(&mut self, entries: &impl Entries, slot: u32) {
        self.queues.remove(entries, slot);
    }

    #[inline]
    fn evict(&mut self, entries: &impl Entries, limit: u64) -> Option<u32> {
        self.queues.evict(entries, limit, Rule::S3Fifo)
    }

    fn expect(&mut self, entries: usize) {
        self.queues.expect(entries);
    }

    fn clear(&mut self) {
        self.queues.clear();
    }

    fn validate(&self, entries: &impl Entries, slots: &[u32]) {
        self.queues.validate(entries, slots);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::queues::model::{agree, steps};

    proptest! {
        #[test]
        fn it_does_as_the_model_does(steps in steps(1)) {
            agree(S3Fifo::new(30), 30, |_| Rule::S3Fifo, steps);
        }

        #[test]
        fn it_does_as_the_model_does_with_costs(steps in steps(9)) {
            agree(S3Fifo::new(0), 0, |_| Rule::S3Fifo, steps);
        }
    }
}
