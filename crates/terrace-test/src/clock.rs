//! The **manual clock**: time that stands still until a test moves it.

use std::time::Duration;

use parking_lot::Mutex;
use terrace::clock::{Clock, WallTime};

/// Where every manual clock starts: the first of January 2026, midnight in UTC.
pub const START: WallTime = WallTime::from_millis(1_767_225_600_000);

/// A [`Clock`] that moves only when it is told to.
///
/// Give the cache one end of an [`Arc`](std::sync::Arc) and keep the other. It says
/// how old entries are; it wakes no task that sleeps, because timers belong to the
/// [runtime](terrace::runtime).
///
/// ```
/// use std::time::Duration;
/// use terrace::clock::Clock;
/// use terrace_test::ManualClock;
///
/// let clock = ManualClock::new();
/// let before = clock.wall();
/// clock.advance(Duration::from_secs(90));
/// assert_eq!(clock.elapsed(), Duration::from_secs(90));
/// assert_eq!(clock.wall().saturating_since(before), Duration::from_secs(90));
///
/// clock.jump_wall_back(Duration::from_secs(3600));
/// assert!(clock.wall() < before, "somebody set the time of day");
/// assert_eq!(clock.elapsed(), Duration::from_secs(90), "elapsed time never goes back");
/// ```
#[derive(Debug)]
pub struct ManualClock {
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    elapsed: Duration,
    // Since the Unix epoch, finer than milliseconds so that small steps add up.
    wall: Duration,
}

impl ManualClock {
    /// A clock that has just started, at [`START`].
    #[must_use]
    pub fn new() -> Self {
        Self { now: Mutex::new(Now { elapsed: Duration::ZERO, wall: since_epoch(START) }) }
    }

    /// Lets time pass, on both clocks.
    pub fn advance(&self, time: Duration) {
        let mut now = self.now.lock();
        now.elapsed = now.elapsed.saturating_add(time);
        now.wall = now.wall.saturating_add(time);
    }

    /// Sets the time of day alone, as an operator does.
    pub fn set_wall(&self, wall: WallTime) {
        self.now.lock().wall = since_epoch(wall);
    }

    /// Moves the time of day alone forward: somebody set it, or the machine slept, and its
    /// elapsed time stood still.
    pub fn jump_wall_forward(&self, by: Duration) {
        let mut now = self.now.lock();
        now.wall = now.wall.saturating_add(by);
    }

    /// Moves the time of day alone back, at most to the Unix epoch.
    pub fn jump_wall_back(&self, by: Duration) {
        let mut now = self.now.lock();
        now.wall = now.wall.saturating_sub(by);
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn elapsed(&self) -> Duration {
        self.now.lock().elapsed
    }

    fn wall(&self) -> WallTime {
        WallTime::from_millis(0).saturating_add(self.now.lock().wall)
    }
}

fn since_epoch(wall: WallTime) -> Duration {
    Duration::from_millis(wall.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_steps_add_up_on_both_clocks() {
        let clock = ManualClock::new();
        for _ in 0..10 {
            clock.advance(Duration::from_micros(300));
        }
        assert_eq!(clock.elapsed(), Duration::from_millis(3));
        assert_eq!(clock.wall().saturating_since(START), Duration::from_millis(3));
    }

    #[test]
    fn the_time_of_day_moves_alone() {
        let clock = ManualClock::new();
        clock.set_wall(WallTime::from_millis(5));
        clock.jump_wall_back(Duration::from_secs(1));
        assert_eq!(clock.wall(), WallTime::from_millis(0));
        clock.jump_wall_forward(Duration::from_secs(1));
        assert_eq!(clock.wall(), WallTime::from_millis(1000));
        assert_eq!(clock.elapsed(), Duration::ZERO);
    }
}
