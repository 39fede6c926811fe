//! The **statistics**: what happened, by tier and by space.
//!
//! Counting a hit costs one add on a line of the thread's own; times are measured
//! on every operation below memory and on one of 64 in memory.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use histogram::{AtomicHistogram, Config, Histogram};

use crate::clock::nanos;
use crate::guard::BreakerState;
use crate::savings::Costs;
use crate::store::{Health, StoreError};

/// What happened in a cache since it was built.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Each tier, memory first.
    pub tiers: Vec<TierStats>,
    /// Each space that was opened, in that order.
    pub spaces: Vec<SpaceStats>,
    /// Each kind of data that a space is of, by name.
    pub kinds: Vec<KindStats>,
    /// Loads and writes that are under way now.
    pub underway: u64,
    /// Loaders that run now, each under a permit.
    pub loads_running: u64,
    /// Loads that wait for a permit now.
    pub loads_queued: u64,
    /// Names of what was invalidated that some tier has not taken yet.
    pub pending: u64,
    /// How long ago the ledger was heard of last. More than a second or two: it is out of reach, and
    /// what other processes invalidate is not heard of.
    pub silent_for: Duration,
    /// Keys that a [warm start](crate::WarmStart) is still to look for. Those of a space that is not
    /// open wait until it is.
    pub warming: u64,
    /// Entries that a warm start has brought into memory.
    pub warmed: u64,
    /// What is written behind; nothing if the cache has no journal.
    pub journal: Option<JournalStats>,
}

/// What is in the journal, and what this process did with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct JournalStats {
    /// Writes that are not in the source yet.
    pub depth: u64,
    /// Writes that failed too often, and wait for somebody to decide.
    pub dead_letters: u64,
    /// Bytes of the keys and values of both.
    pub bytes: u64,
    /// How long ago the oldest write was called for that is not in the source yet.
    pub lag: Duration,
    /// The longest that a write took from its call to the source, as far as this process wrote it.
    pub largest_lag: Duration,
    /// Writes that this process has written to the source.
    pub written: u64,
    /// Writes that a newer one of their key has taken the place of, as far as this process knows.
    pub superseded: u64,
    /// Calls of the writer that failed.
    pub failures: u64,
    /// Writes that became dead letters here.
    pub died: u64,
    /// How often a caller looked for room in vain.
    pub waited: u64,
}

/// What happened in one tier.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TierStats {
    /// The tier's name; `memory` for memory.
    pub name: Arc<str>,
    /// What was asked and answered.
    pub traffic: Traffic,
    /// Entries that are stored now.
    pub entries: u64,
    /// Bytes that they take now.
    pub bytes: u64,
    /// The most that they ever took, as far as it was looked at.
    pub largest_bytes: u64,
    /// Entries that had to leave to make room.
    pub evicted: u64,
    /// Files that hold large values; only of a disk.
    pub files: u64,
    /// Bytes that all of it takes on the disk; only of a disk.
    pub disk_bytes: u64,
    /// Bytes among them that hold nothing and are used next: what is fragmented.
    pub free_bytes: u64,
    /// What its guard did; nothing, for memory.
    pub guard: GuardStats,
}

/// What the guard before a tier's store did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuardStats {
    /// What its breaker lets through now.
    pub breaker: BreakerState,
    /// How often the breaker opened. A probe that failed does not count again.
    pub opened: u64,
    /// Exchanges that failed at once because the breaker was open. They are not among the
    /// [`errors`](Traffic::errors) of the tier; reads among them are misses of it.
    pub refused: u64,
    /// Exchanges that got no place among those under way. Not among the errors either.
    pub crowded: u64,
    /// Exchanges that were answered late, or that nobody waited for after they were late.
    pub slow: u64,
    /// Exchanges that are under way now.
    pub underway: u64,
}

/// How one tier below memory is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TierHealth {
    /// The tier's name.
    pub tier: Arc<str>,
    /// How its servers are; none for a tier that has none, such as a disk.
    pub health: Health,
    /// Why the tier as a whole did not answer.
    pub error: Option<StoreError>,
}

/// What happened in one space.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SpaceStats {
    /// Whose it is; empty for the tenant without a name.
    pub tenant: Arc<str>,
    /// The space's name; empty for dynamic keys.
    pub name: Arc<str>,
    /// The name of its [kind](crate::Kind); empty if it is of none.
    pub kind: Arc<str>,
    /// What happened in each tier, memory first.
    pub tiers: Vec<(Arc<str>, Traffic)>,
    /// Loads that began.
    pub loads: u64,
    /// Loads that failed.
    pub load_errors: u64,
    /// Callers who waited for somebody else's load instead of loading.
    pub loads_shared: u64,
    /// Loads whose value was not stored because something was invalidated meanwhile.
    pub superseded: u64,
    /// Loads that renewed an entry before its end, while it was served.
    pub refreshes: u64,
    /// Answers that were past their end, because the load failed, was slow, or had to wait.
    pub stale: u64,
    /// Calls that got the last error again, or something stale, because the next load of
    /// their key has to wait.
    pub held_back: u64,
    /// Loads that found that the source has no value.
    pub absent: u64,
    /// Loads whose value was not stored because it was built from too much to be found by all of it.
    pub untraced: u64,
    /// Loads that were given up because too many ran or waited.
    pub overloaded: u64,
    /// How long loads took.
    pub load_time: Times,
    /// Values that loads have brought, also that there is none: several, for a load of many keys.
    pub loaded: u64,
    /// What loads have cost: [`SpaceBuilder::load_cost`](crate::SpaceBuilder::load_cost) each, and what
    /// their loaders [said](crate::Loaded::cost).
    pub load_cost: f64,
}

/// What happened in all spaces of one [kind](crate::Kind).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct KindStats {
    /// Its name.
    pub name: Arc<str>,
    /// Spaces of this kind.
    pub spaces: u64,
    /// What was asked of each tier, memory first.
    pub tiers: Vec<(Arc<str>, Traffic)>,
    /// Loads that began.
    pub loads: u64,
    /// Loads that failed.
    pub load_errors: u64,
}

/// What happened in the spaces of one [tenant](crate::Tenant), and in no others.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TenantStats {
    /// Its name.
    pub name: Arc<str>,
    /// What it asked of each tier, memory first.
    pub tiers: Vec<(Arc<str>, Traffic)>,
    /// Each of its spaces that is known.
    pub spaces: Vec<SpaceStats>,
}

/// What was asked of a tier, and what it answered.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Traffic {
    /// Fresh answers.
    pub hits: u64,
    /// Keys that were asked for and not there, or not fit to serve.
    pub misses: u64,
    /// Entries written.
    pub writes: u64,
    /// Entries removed.
    pub removed: u64,
    /// Exchanges that failed or took too long; a read among them counts as a miss too.
    pub errors: u64,
    /// Frames that could not be read; each counts as a miss too.
    pub unreadable: u64,
    /// Writes that were refused: too large, or superseded.
    pub refused: u64,
    /// Bytes of values before they were compressed, of those that were written.
    pub raw_bytes: u64,
    /// Bytes of them after.
    pub packed_bytes: u64,
    /// How long reads took.
    pub read_time: Times,
}

impl Traffic {
    /// Hits as a share of reads, 0 to 1; 0 if nothing was read.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate is no more precise than this")]
    pub fn hit_rate(&self) -> f64 {
        let reads = self.hits + self.misses;
        if reads == 0 { 0.0 } else { self.hits as f64 / reads as f64 }
    }
}

/// A distribution of times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Times {
    /// How many were measured.
    pub count: u64,
    /// Their mean.
    pub mean: Duration,
    /// Half were no longer than this.
    pub p50: Duration,
    /// 95 of 100 were no longer than this.
    pub p95: Duration,
    /// 99 of 100 were no longer than this.
    pub p99: Duration,
}

/// The counters behind [`Traffic`].
#[derive(Debug, Default)]
pub(crate) struct TrafficCounters {
    pub(crate) hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) writes: AtomicU64,
    pub(crate) removed: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) unreadable: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) raw_bytes: AtomicU64,
    pub(crate) packed_bytes: AtomicU64,
    pub(crate) read_time: TimeCounters,
}

impl TrafficCounters {
    pub(crate) fn snapshot(&self) -> Traffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            hits: self.hits.sum(),
            misses: self.misses.sum(),
            writes: read(&self.writes),
            removed: read(&self.removed),
            errors: read(&self.errors),
            unreadable: read(&self.unreadable),
            refused: read(&self.refused),
            raw_bytes: read(&self.raw_bytes),
            packed_bytes: read(&self.packed_bytes),
            read_time: self.read_time.snapshot(),
        }
    }

    /// Adds what `other` counted: a tier is the sum of its spaces.
    pub(crate) fn add_to(&self, sum: &mut TrafficSum) {
        let mine = self.snapshot();
        let total = &mut sum.traffic;
        total.hits += mine.hits;
        total.misses += mine.misses;
        total.writes += mine.writes;
        total.removed += mine.removed;
        total.errors += mine.errors;
        total.unreadable += mine.unreadable;
        total.refused += mine.refused;
        total.raw_bytes += mine.raw_bytes;
        total.packed_bytes += mine.packed_bytes;
        self.read_time.add_to(&mut sum.times);
        total.read_time = sum.times.summary();
    }
}

/// The traffic of several spaces in one tier.
#[derive(Debug, Default)]
pub(crate) struct TrafficSum {
    pub(crate) traffic: Traffic,
    times: TimeSum,
}

/// The counters of one space.
#[derive(Debug)]
pub(crate) struct SpaceCounters {
    /// Memory first, then the tiers below it.
    pub(crate) tiers: Box<[TrafficCounters]>,
    pub(crate) loads: AtomicU64,
    pub(crate) load_errors: AtomicU64,
    pub(crate) loads_shared: AtomicU64,
    pub(crate) superseded: AtomicU64,
    pub(crate) refreshes: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) held_back: AtomicU64,
    pub(crate) absent: AtomicU64,
    pub(crate) untraced: AtomicU64,
    pub(crate) overloaded: AtomicU64,
    pub(crate) load_time: TimeCounters,
    pub(crate) loaded: AtomicU64,
    pub(crate) load_cost: Costs,
}

impl SpaceCounters {
    pub(crate) fn new(tiers: usize) -> Self {
        Self {
            tiers: (0..tiers).map(|_| TrafficCounters::default()).collect(),
            loads: AtomicU64::new(0),
            load_errors: AtomicU64::new(0),
            loads_shared: AtomicU64::new(0),
            superseded: AtomicU64::new(0),
            refreshes: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
            absent: AtomicU64::new(0),
            untraced: AtomicU64::new(0),
            overloaded: AtomicU64::new(0),
            load_time: TimeCounters::default(),
            loaded: AtomicU64::new(0),
            load_cost: Costs::default(),
        }
    }

    /// The counters of the tiers below memory.
    pub(crate) fn below_memory(&self) -> &[TrafficCounters] {
        self.tiers.get(1..).unwrap_or_default()
    }
}

pub(crate) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// So many threads have a stripe of each counter to themselves; all others share one.
const STRIPES: usize = 7;

/// A counter that threads on a hit do not fight for.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    stripes: [Stripe; STRIPES],
    shared: Stripe,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Stripe(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn bump(&self) {
        match THREAD.try_with(Cell::get).ok().and_then(|thread| self.stripes.get(thread)) {
            // Nobody else writes here: no need to keep the line while it is counted up.
            Some(Stripe(own)) => own.store(own.load(Ordering::Relaxed) + 1, Ordering::Relaxed),
            None => self.bump_shared(),
        }
    }

    /// For threads without a stripe of their own, and the first time on those that get one.
    #[inline(never)]
    fn bump_shared(&self) {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        let _ = THREAD.try_with(|thread| {
            if thread.get() == UNNUMBERED {
                thread.set(THREADS.fetch_add(1, Ordering::Relaxed).min(STRIPES));
            }
        });
        bump(&self.shared.0);
    }

    fn sum(&self) -> u64 {
        let stripes = self.stripes.iter().chain([&self.shared]);
        stripes.map(|stripe| stripe.0.load(Ordering::Relaxed)).sum()
    }
}

const UNNUMBERED: usize = usize::MAX;

thread_local! {
    /// The number of this thread, once it has counted something.
    static THREAD: Cell<usize> = const { Cell::new(UNNUMBERED) };
}

thread_local! {
    static OPERATIONS: Cell<u8> = const { Cell::new(0) };
}

/// Whether this operation of the thread is the one of 64 that is timed.
#[inline]
pub(crate) fn is_sampled() -> bool {
    let next = |count: &Cell<u8>| {
        count.set(count.get().wrapping_add(1));
        count.get().is_multiple_of(64)
    };
    OPERATIONS.try_with(next).unwrap_or(false)
}

/// The next operation of the thread is the one that is timed, in place of the present one.
pub(crate) fn sample_next() {
    let _ = OPERATIONS.try_with(|count| count.set(63));
}

/// Times are told apart to an eighth, up to 18 minutes; longer ones count as that.
const PRECISION: u8 = 3;
const LONGEST: u8 = 40;

/// A histogram of times that any thread may add to.
#[derive(Debug)]
pub(crate) struct TimeCounters {
    nanos: AtomicHistogram,
    total_nanos: AtomicU64,
}

impl Default for TimeCounters {
    fn default() -> Self {
        Self { nanos: AtomicHistogram::with_config(&config()), total_nanos: AtomicU64::new(0) }
    }
}

impl TimeCounters {
    pub(crate) fn add(&self, time: Duration) {
        let nanos = nanos(time);
        // It refuses only what is longer than the longest.
        let _ = self.nanos.increment(nanos.min((1 << LONGEST) - 1));
        self.total_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Times {
        let mut sum = TimeSum::default();
        self.add_to(&mut sum);
        sum.summary()
    }

    fn add_to(&self, sum: &mut TimeSum) {
        // Both are of the same configuration, and no count comes near 64 bits.
        let _ = sum.nanos.checked_add_assign(&self.nanos.load());
        sum.total_nanos += self.total_nanos.load(Ordering::Relaxed);
    }
}

/// The times of several counters.
#[derive(Debug)]
struct TimeSum {
    nanos: Histogram,
    total_nanos: u64,
}

impl Default for TimeSum {
    fn default() -> Self {
        Self { nanos: Histogram::with_config(&config()), total_nanos: 0 }
    }
}

impl TimeSum {
    fn summary(&self) -> Times {
        let count: u64 = self.nanos.as_slice().iter().sum();
        if count == 0 {
            return Times::default();
        }
        let quantile = |share| {
            let bucket = self.nanos.quantile_bucket(share).ok().flatten();
            Duration::from_nanos(bucket.map_or(0, |bucket| bucket.end()))
        };
        Times {
            count,
            mean: Duration::from_nanos(self.total_nanos / count),
            p50: quantile(0.5),
            p95: quantile(0.95),
            p99: quantile(0.99),
        }
    }
}

#[expect(clippy::expect_used, reason = "constants, and the tests below use them")]
fn config() -> Config {
    Config::new(PRECISION, LONGEST).expect("a precision below the longest, and both below 64")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_within_an_eighth() {
        let times = TimeCounters::default();
        for micros in 1..=1000 {
            times.add(Duration::from_micros(micros));
        }
        let times = times.snapshot();
        let close = |time: Duration, micros: f64| {
            let ratio = time.as_secs_f64() * 1e6 / micros;
            assert!((1.0..1.13).contains(&ratio), "{time:?} is not about {micros} us");
        };
        assert_eq!(times.count, 1000);
        close(times.p50, 500.0);
        close(times.p95, 950.0);
        close(times.p99, 990.0);
        assert_eq!(times.mean, Duration::from_nanos(500_500));
    }

    #[test]
    fn a_time_beyond_the_longest_counts_as_that() {
        let times = TimeCounters::default();
        times.add(Duration::from_secs(86_400));
        assert_eq!(times.snapshot().count, 1);
        assert!(times.snapshot().p99 > Duration::from_secs(1000));
    }

    #[test]
    fn counters_add_up_over_threads() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..1000).for_each(|_| counter.bump()));
            }
        });
        assert_eq!(counter.sum(), 20_000);
    }
}
