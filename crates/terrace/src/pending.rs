//! The **pending** names: invalidations that the ledger could not take yet.
//!
//! Until they are settled, what they name is neither read from nor written to any
//! tier below memory, and no load that began before them stores anything.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::ledger::{Name, Names};

/// Names that are kept one by one; beyond that, everything is pending.
const MOST_NAMES: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Each with the epoch in which it was added last.
    names: Mutex<BTreeMap<Name, u64>>,
    count: AtomicUsize,
    epoch: AtomicU64,
}

impl Pending {
    /// Adds names; `true` if there were none, so that somebody has to settle them.
    pub(crate) fn add(&self, names: Vec<Name>) -> bool {
        let mut pending = self.names.lock();
        let was_empty = pending.is_empty();
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        pending.extend(names.into_iter().map(|name| (name, epoch)));
        if pending.len() > MOST_NAMES {
            pending.clear();
            pending.insert(Name::Everything, epoch);
        }
        self.count.store(pending.len(), Ordering::SeqCst);
        was_empty
    }

    /// Removes names that were settled as they were in `epoch`; `true` once none is left.
    ///
    /// A name that was added again since is another invalidation.
    pub(crate) fn settled(&self, names: &[Name], epoch: u64) -> bool {
        let mut pending = self.names.lock();
        for name in names {
            if pending.get(name).is_some_and(|added| *added <= epoch) {
                pending.remove(name);
            }
        }
        self.count.store(pending.len(), Ordering::SeqCst);
        pending.is_empty()
    }

    /// The names that wait, and the epoch in which they do.
    pub(crate) fn names(&self) -> (Vec<Name>, u64) {
        let pending = self.names.lock();
        (pending.keys().cloned().collect(), self.epoch())
    }

    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Grows with every addition: a load remembers it from its beginning.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Whether a pending name speaks of an entry.
    pub(crate) fn speaks_of(&self, names: &Names<'_>) -> bool {
        if self.is_empty() {
            return false;
        }
        self.names.lock().keys().any(|name| match name {
            Name::Key(key) | Name::Set(key) => **key == *names.key,
            Name::Prefix(prefix) => names.key.starts_with(&**prefix),
            Name::Tag(tag) => names.tags.contains(tag),
            Name::Space(space) => **space == *names.space,
            Name::Everything => true,
        })
    }
}
