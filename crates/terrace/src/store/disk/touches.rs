//! The **touches**: which entries were read, kept in memory until somebody writes anyway.
//!
//! A read writes nothing. What was read when goes into the database together with what next makes
//! room there, or with the housekeeping, many at once.

use std::sync::atomic::{AtomicI64, Ordering};

use foldhash::HashMap;
use parking_lot::Mutex;

/// Entries that are remembered at most. Of what is read beyond that, until the next time that they
/// are written down, nobody keeps account.
const MOST: usize = 8192;

/// Which entries a disk tier evicts when it is full.
///
/// Processes that share a directory should use the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DiskEviction {
    /// What was not used for the longest time leaves.
    #[default]
    Lru,
    /// What was used least often leaves; old uses weigh less and less. For popularity that does
    /// not change much.
    Lfu,
    /// What expires soonest leaves, and what never expires leaves last. Reads leave no trace at
    /// all then.
    Ttl,
}

#[derive(Debug)]
pub(super) struct Touches {
    pub(super) eviction: DiskEviction,
    counts: Mutex<HashMap<i64, i64>>,
    /// Entries of this rank and above are so new that another use changes nothing.
    new_from: AtomicI64,
}

impl Touches {
    pub(super) fn new(eviction: DiskEviction) -> Self {
        Self { eviction, counts: Mutex::default(), new_from: AtomicI64::new(i64::MAX) }
    }

    /// Notes that an entry was read.
    pub(super) fn note(&self, id: i64, rank: i64) {
        match self.eviction {
            DiskEviction::Ttl => return,
            DiskEviction::Lru if rank >= self.new_from.load(Ordering::Relaxed) => return,
            _ => {}
        }
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&id) {
            *count += 1;
        } else if counts.len() < MOST {
            counts.insert(id, 1);
        }
    }

    /// Whether so many wait that they are worth a transaction of their own.
    pub(super) fn are_many(&self) -> bool {
        self.counts.lock().len() >= MOST / 2
    }

    pub(super) fn is_empty(&self) -> bool {
        self.counts.lock().is_empty()
    }

    /// Takes up to `most` of them, to write them down.
    pub(super) fn take(&self, most: usize) -> Vec<(i64, i64)> {
        let mut counts = self.counts.lock();
        let ids: Vec<i64> = counts.keys().copied().take(most).collect();
        ids.into_iter().filter_map(|id| counts.remove_entry(&id)).collect()
    }

    /// Says which ranks there are, from the oldest to the newest.
    pub(super) fn ranks_are(&self, oldest: i64, newest: i64) {
        let quarter = newest.saturating_sub(oldest) / 4;
        self.new_from.store(newest.saturating_sub(quarter).max(1), Ordering::Relaxed);
    }
}
