//! The **clock**: the only place in Terrace that reads the time.
//!
//! Two kinds of time are kept apart. *Elapsed* time never goes back and decides
//! how long an entry lives in this process. *Wall* time is written into frames,
//! because another process or the next start of this one has to read it; it is
//! never used to decide which of two things happened first (the ledger does).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use terrace_memory::Tick;

/// A source of time that a test can take into its own hands.
///
/// The default is [`SystemClock`]; `terrace-test` has a manual one.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Time since an arbitrary origin. Never goes back.
    fn elapsed(&self) -> Duration;

    /// Time of day. May jump in either direction.
    fn wall(&self) -> WallTime;

    /// [`Clock::elapsed`] in the milliseconds in which entries live. Every read of memory asks for
    /// it: it should be quick, and may lag behind by some milliseconds.
    fn tick(&self) -> Tick {
        Tick::from_millis(millis(self.elapsed()))
    }
}

/// Milliseconds since the Unix epoch: what frames carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(u64);

impl WallTime {
    /// A time of day from its milliseconds since the Unix epoch.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// This time and `after` later; stops at the end of time instead of overflowing.
    #[must_use]
    pub fn saturating_add(self, after: Duration) -> Self {
        Self(self.0.saturating_add(millis(after)))
    }

    /// The same moment on a clock that is so many milliseconds ahead.
    #[must_use]
    pub fn shifted(self, ahead: i64) -> Self {
        Self(self.0.saturating_add_signed(ahead))
    }

    /// How long `earlier` is ago; zero if it is not.
    #[must_use]
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// The operating system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    origin: Instant,
    /// The time of the last tick of the kernel, every 1 to 10 ms, in fewer instructions than the
    /// exact time.
    #[cfg(target_os = "linux")]
    coarse_origin: coarsetime::Instant,
}

impl SystemClock {
    /// A clock whose elapsed time starts now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the clock that everything else asks")]
    pub fn new() -> Self {
        Self {
            #[cfg(target_os = "linux")]
            coarse_origin: coarsetime::Instant::now_without_cache_update(),
            origin: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn elapsed(&self) -> Duration {
        self.origin.elapsed()
    }

    #[cfg(target_os = "linux")]
    #[inline]
    fn tick(&self) -> Tick {
        let now = coarsetime::Instant::now_without_cache_update();
        Tick::from_millis(now.duration_since(self.coarse_origin).as_millis())
    }

    #[expect(clippy::disallowed_methods, reason = "this is the clock that everything else asks")]
    fn wall(&self) -> WallTime {
        WallTime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis))
    }
}

/// One moment by both clocks, for what has to be judged by both.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) wall: WallTime,
    pub(crate) tick: Tick,
}

/// The clock of a cache. The usual one is asked without a virtual call.
#[derive(Debug)]
pub(crate) enum AnyClock {
    System(SystemClock),
    Other(Arc<dyn Clock>),
}

impl AnyClock {
    /// See [`Clock::tick`].
    #[inline]
    pub(crate) fn tick(&self) -> Tick {
        match self {
            Self::System(clock) => clock.tick(),
            Self::Other(clock) => clock.tick(),
        }
    }

    /// See [`Clock::elapsed`].
    pub(crate) fn elapsed(&self) -> Duration {
        match self {
            Self::System(clock) => clock.elapsed(),
            Self::Other(clock) => clock.elapsed(),
        }
    }

    /// See [`Clock::wall`].
    pub(crate) fn wall(&self) -> WallTime {
        match self {
            Self::System(clock) => clock.wall(),
            Self::Other(clock) => clock.wall(),
        }
    }
}

/// The time of day as a cache goes by it: never behind what it was and the time that has
/// passed since, so that a clock that is set back gives no entry a longer life.
#[derive(Debug, Default)]
pub(crate) struct SteadyWall {
    /// Milliseconds by which the time of day was ahead of elapsed time, at most.
    ahead: AtomicU64,
}

impl SteadyWall {
    pub(crate) fn now(&self, clock: &AnyClock) -> WallTime {
        // The time of day first: what passes between the two must not add up.
        let wall = clock.wall().as_millis();
        let elapsed = millis(clock.elapsed());
        let ahead = wall.saturating_sub(elapsed);
        let ahead = self.ahead.fetch_max(ahead, Ordering::Relaxed).max(ahead);
        WallTime(elapsed.saturating_add(ahead))
    }
}

/// Whole milliseconds of `duration`, as many as fit.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Whole nanoseconds of `duration`, as many as fit.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
