//! Statistics: what a cache has done, and what it holds.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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
    /// Values that gave way to another one at the same key; also those that did so while room was
    /// made and there was none after all.
    pub replaced: u64,
    /// Values that were not stored because they were too large.
    pub rejected: u64,
    /// Values that were not stored because the closure of `replace_if` said no.
    pub refused: u64,
    /// Values that were not stored because no room could be made: see
    /// [`Insert::NoRoom`](crate::Insert::NoRoom).
    pub no_room: u64,
    /// Entries evicted to make room.
    pub evicted: u64,
    /// Expired entries removed: by a read, a store, an eviction or a sweep that met them.
    pub expired: u64,
    /// Entries removed on request, or because the value that was to replace them was not stored.
    pub removed: u64,
    /// Entries held now, expired ones that nothing has met yet among them.
    pub entries: u64,
    /// Bytes charged now; see [`Memory::bytes`](crate::Memory::bytes).
    pub bytes: u64,
    /// Bytes of entries that have left and that are still kept, because a reader might hold them:
    /// they count in the bound.
    pub garbage_bytes: u64,
    /// The most bytes that were ever set aside for entries.
    pub peak_bytes: u64,
    /// The most bytes that may be charged.
    pub max_bytes: u64,
    /// The most entries there may be.
    pub max_entries: u64,
}

/// The counters of one shard, changed under its lock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) inserts: u64,
    pub(crate) rejected: u64,
    pub(crate) refused: u64,
    pub(crate) no_room: u64,
    /// By the [`Cause::code`] of why.
    left: [u64; 4],
}

impl Counters {
    /// Counts an entry that left for this cause.
    pub(crate) fn left(&mut self, cause: Cause) {
        if let Some(count) = self.left.get_mut(usize::from(cause.code())) {
            *count += 1;
        }
    }

    fn of(&self, cause: Cause) -> u64 {
        self.left.get(usize::from(cause.code())).copied().unwrap_or_default()
    }

    /// Entries evicted to make room.
    pub(crate) fn evicted(&self) -> u64 {
        self.of(Cause::Evicted)
    }
}

impl AddAssign<Counters> for Stats {
    fn add_assign(&mut self, counters: Counters) {
        self.inserts += counters.inserts;
        self.rejected += counters.rejected;
        self.refused += counters.refused;
        self.no_room += counters.no_room;
        self.replaced += counters.of(Cause::Replaced);
        self.evicted += counters.of(Cause::Evicted);
        self.expired += counters.of(Cause::Expired);
        self.removed += counters.of(Cause::Removed);
    }
}

/// Counts hits and misses, each thread on a cache line of its own.
pub(crate) struct Reads {
    lines: Box<[Line; LINES]>,
}

#[derive(Default)]
#[repr(align(128))]
struct Line {
    hits: AtomicU64,
    misses: AtomicU64,
}

/// So many threads have a line of their own; all others share the last one.
const LINES: usize = 16;

impl Reads {
    pub(crate) fn new() -> Self {
        Self { lines: Box::default() }
    }

    /// Counts a read by the thread with this number, which no other living thread has.
    #[inline(always)]
    pub(crate) fn count(&self, thread: usize, is_hit: bool) {
        #[expect(clippy::indexing_slicing, reason = "the number is limited to the lines")]
        let line = &self.lines[thread.min(LINES - 1)];
        let counter = if is_hit { &line.hits } else { &line.misses };
        if thread < LINES - 1 {
            // Nobody else writes here, so nothing is lost; and it costs no locked instruction.
            counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
        } else {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Hits and misses of all threads.
    pub(crate) fn sum(&self) -> (u64, u64) {
        self.lines.iter().fold((0, 0), |(hits, misses), line| {
            (hits + line.hits.load(Relaxed), misses + line.misses.load(Relaxed))
        })
    }
}
