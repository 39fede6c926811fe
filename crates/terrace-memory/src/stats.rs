//! Statistics: what a cache has done, and what it holds.

use std::ops::AddAssign;

use crate::Cause;

/// What a cache has done since it was built, and what it holds now.
///
/// With no call under way, `entries` is `inserts` less `replaced`, `evicted`, `expired` and
/// `removed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Stats {
    /// Reads that found a value.
    pub hits: u64,
    /// Reads that found none, or an expired one.
    pub misses: u64,
    /// Values stored, in place of another one or not.
    pub inserts: u64,
    /// Values that gave way to another one at the same key.
    pub replaced: u64,
    /// Values that were not stored because they were too large.
    pub rejected: u64,
    /// Values that were not stored because the closure of `replace_if` said no.
    pub refused: u64,
    /// Entries evicted to make room.
    pub evicted: u64,
    /// Expired entries removed: by a read, a store, an eviction or a sweep that met them.
    pub expired: u64,
    /// Entries removed on request, or because the value that was to replace them was too large.
    pub removed: u64,
    /// Entries held now, expired ones that nothing has met yet among them.
    pub entries: u64,
    /// Bytes charged now; see [`Memory::bytes`](crate::Memory::bytes).
    pub bytes: u64,
    /// The most bytes ever charged at one time.
    pub peak_bytes: u64,
    /// The most bytes that may be charged.
    pub max_bytes: u64,
}

/// The counters of one shard, changed under its lock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) inserts: u64,
    pub(crate) rejected: u64,
    pub(crate) refused: u64,
    replaced: u64,
    evicted: u64,
    expired: u64,
    removed: u64,
}

impl Counters {
    /// Counts entries that left for this cause.
    pub(crate) fn left(&mut self, cause: Cause, entries: u64) {
        let counter = match cause {
            Cause::Replaced => &mut self.replaced,
            Cause::Evicted => &mut self.evicted,
            Cause::Expired => &mut self.expired,
            Cause::Removed => &mut self.removed,
        };
        *counter += entries;
    }
}

impl AddAssign<Counters> for Stats {
    fn add_assign(&mut self, counters: Counters) {
        self.hits += counters.hits;
        self.misses += counters.misses;
        self.inserts += counters.inserts;
        self.rejected += counters.rejected;
        self.refused += counters.refused;
        self.replaced += counters.replaced;
        self.evicted += counters.evicted;
        self.expired += counters.expired;
        self.removed += counters.removed;
    }
}
