//! The hybrid: an order that goes by the rule which does best on what is asked for now.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use super::queues::{Queues, Rule};
use super::{Entries, Order};

/// Queues whose rule may change at any time: it is read whenever an entry comes or has to leave.
///
/// The rule is that of all shards, as [`Rule::code`] gives it; a [`Duel`] finds it. It takes about
/// three bytes per entry, and four more from when a rule is in force that asks the sketch. `remove`
/// and `replace` search the window for entries that are in there.
///
/// [`Duel`]: super::duel::Duel
pub(crate) struct Hybrid {
    queues: Queues,
    rule: Arc<AtomicU8>,
}

impl Hybrid {
    /// For a shard of so many entries.
    pub(crate) fn new(entries: usize, rule: Arc<AtomicU8>) -> Self {
        Self { queues: Queues::new(entries), rule }
    }

    fn rule(&self) -> Rule {
        Rule::of(self.rule.load(Relaxed))
    }
}

impl Order for Hybrid {
    #[inline]
    fn insert(&mut self, entries: &impl Entries, slot: u32) {
        self.queues.insert(entries, slot, self.rule());
    }

    fn replace(&mut self, entries: &impl Entries, old: u32, new: u32) {
        self.queues.replace(entries, old, new);
    }

    fn remove(&mut self, entries: &impl Entries, slot: u32) {
        self.queues.remove(entries, slot);
    }

    #[inline]
    fn evict(&mut self, entries: &impl Entries, limit: u64) -> Option<u32> {
        self.queues.evict(entries, limit, self.rule())
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
    use crate::policy::queues::model::{Step, agree, steps};

    fn compare(expected: usize, steps: Vec<Step>) {
        let rule = Arc::new(AtomicU8::new(0));
        let order = Hybrid::new(expected, Arc::clone(&rule));
        let set_rule = |wanted: Rule| {
            rule.store(wanted.code(), Relaxed);
            wanted
        };
        agree(order, expected, set_rule, steps);
    }

    proptest! {
        #[test]
        fn it_does_as_the_model_does(steps in steps(1)) {
            compare(30, steps);
        }

        #[test]
        fn it_does_as_the_model_does_with_costs(steps in steps(9)) {
            compare(0, steps);
        }
    }
}
