//! A tick: a point in time, as the caller's clock counts it.

use std::time::Duration;

const NANOS_PER_MILLI: u128 = 1_000_000;

/// Milliseconds since an origin that the caller chose, on a clock that never goes back.
///
/// Only ticks of the same clock can be compared. The crate makes none up: every method that needs
/// the time takes it as an argument.
///
/// ```
/// use std::time::Duration;
/// use terrace_memory::Tick;
///
/// let now = Tick::from_millis(500);
/// let later = now.saturating_add(Duration::from_secs(2));
/// assert_eq!(later.as_millis(), 2_500);
/// assert_eq!(later.saturating_since(now), Duration::from_secs(2));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u64);

impl Tick {
    /// Later than any other tick: an entry that expires at `NEVER` does not expire.
    pub const NEVER: Self = Self(u64::MAX);

    /// The tick this many milliseconds after the origin.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// The number of milliseconds since the origin.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The tick that is `duration` later, or [`Tick::NEVER`] when that is out of range.
    ///
    /// A part of a millisecond counts as a whole one, so that a short lifetime is not zero.
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        let millis = duration.as_nanos().div_ceil(NANOS_PER_MILLI);
        Self(self.0.saturating_add(u64::try_from(millis).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to this tick; zero when `earlier` is in fact the later one.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_millisecond_is_a_whole_one() {
        let start = Tick::from_millis(7);
        assert_eq!(start.saturating_add(Duration::ZERO), start);
        assert_eq!(start.saturating_add(Duration::from_nanos(1)).as_millis(), 8);
        assert_eq!(start.saturating_add(Duration::from_millis(1)).as_millis(), 8);
        assert_eq!(start.saturating_add(Duration::from_micros(1_001)).as_millis(), 9);
    }

    #[test]
    fn addition_stops_at_never() {
        assert_eq!(Tick::from_millis(1).saturating_add(Duration::MAX), Tick::NEVER);
        assert_eq!(Tick::NEVER.saturating_add(Duration::from_secs(1)), Tick::NEVER);
    }

    #[test]
    fn time_does_not_run_backwards() {
        let (early, late) = (Tick::from_millis(3), Tick::from_millis(10));
        assert_eq!(late.saturating_since(early), Duration::from_millis(7));
        assert_eq!(early.saturating_since(late), Duration::ZERO);
    }
}
