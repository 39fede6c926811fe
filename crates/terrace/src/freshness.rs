//! **Freshness**: every rule about time and death, in one pure function.
//!
//! "Why was it stale?" is answered here. Nothing in this file reads a clock.

use std::time::Duration;

use crate::clock::{Tick, WallTime, millis};
use crate::protocol::Standing;

/// What may be done with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Freshness {
    /// Serve it.
    Fresh,
    /// Serve it, and load it anew meanwhile: its end is near.
    Aging,
    /// Look for something fresher; serve it only if nothing is to be had.
    Stale,
    /// As if it were not there: it was invalidated, might have been, or is too old.
    Dead,
}

impl Freshness {
    /// Whether nothing fresher has to be looked for.
    #[must_use]
    pub fn is_fresh(self) -> bool {
        matches!(self, Self::Fresh | Self::Aging)
    }
}

/// Judges an entry at `now`.
///
/// The ledger comes first: what it names is dead however young, and so is what it
/// can no longer vouch for.
#[must_use]
#[inline]
pub fn judge(life: Life, standing: Standing, now: Tick) -> Freshness {
    match standing {
        Standing::Named | Standing::Unknown => Freshness::Dead,
        Standing::Good if now < life.fresh_until => {
            if now < life.aging_from {
                Freshness::Fresh
            } else {
                Freshness::Aging
            }
        }
        Standing::Good | Standing::Outdated if now < life.stale_until => Freshness::Stale,
        Standing::Good | Standing::Outdated => Freshness::Dead,
    }
}

/// How long an entry lives in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Life {
    /// Not worth renewing before this.
    pub aging_from: Tick,
    /// Fresh before this.
    pub fresh_until: Tick,
    /// Of use before this, if the policy allows stale answers. Never before `fresh_until`.
    pub stale_until: Tick,
}

impl Life {
    /// The life of a value that is made now. `ttl` of `None`: for ever.
    #[must_use]
    pub fn begin(now: Tick, ttl: Option<Duration>, stale_for: Duration) -> Self {
        let fresh_until = ttl.map_or(Tick::NEVER, |ttl| now.saturating_add(ttl));
        let stale_until = fresh_until.saturating_add(stale_for);
        Self { aging_from: fresh_until, fresh_until, stale_until }
    }

    /// The same life, worth renewing for so long before its end. What never ends is not.
    #[must_use]
    pub fn aging(self, before: Duration) -> Self {
        if self.fresh_until == Tick::NEVER {
            return self;
        }
        let aging_from = self.fresh_until.as_millis().saturating_sub(millis(before));
        Self { aging_from: Tick::from_millis(aging_from), ..self }
    }

    /// What is left of a life that another process, or an earlier one, wrote down.
    ///
    /// Clocks of day jump: what is left is never more than what the value was given
    /// when it was made.
    #[must_use]
    pub fn remaining(written: &Written, wall: WallTime, now: Tick) -> Self {
        let left = |end: Option<WallTime>| {
            end.map_or(Tick::NEVER, |end| {
                let given = end.saturating_since(written.created);
                now.saturating_add(end.saturating_since(wall).min(given))
            })
        };
        let fresh_until = left(written.expires);
        let stale_until = match written.expires {
            None => Tick::NEVER,
            Some(expires) => left(Some(written.stale_until.unwrap_or(expires).max(expires))),
        };
        Self { aging_from: fresh_until, fresh_until, stale_until }
    }
}

/// The times that a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Written {
    /// When the value was made.
    pub created: WallTime,
    /// When it stops being fresh; `None`: never.
    pub expires: Option<WallTime>,
    /// Until when it may be served stale.
    pub stale_until: Option<WallTime>,
}

impl Written {
    /// The times of a value that is made now, to go with [`Life::begin`].
    #[must_use]
    pub fn begin(wall: WallTime, ttl: Option<Duration>, stale_for: Duration) -> Self {
        let expires = ttl.map(|ttl| wall.saturating_add(ttl));
        let stale_until = expires.map(|expires| expires.saturating_add(stale_for));
        Self { created: wall, expires, stale_until }
    }

    /// The same times, but fresh for `limit` after the making at most.
    #[must_use]
    pub fn capped(self, wall: WallTime, limit: Option<Duration>) -> Self {
        let Some(limit) = limit else { return self };
        let end = wall.saturating_add(limit);
        if self.expires.is_some_and(|expires| expires <= end) {
            return self;
        }
        let stale_for = match (self.expires, self.stale_until) {
            (Some(expires), Some(stale_until)) => stale_until.saturating_since(expires),
            _ => Duration::ZERO,
        };
        Self {
            created: self.created,
            expires: Some(end),
            stale_until: Some(end.saturating_add(stale_for)),
        }
    }

    /// When nobody wants the value any more.
    #[must_use]
    pub fn end(&self) -> Option<WallTime> {
        self.expires.map(|expires| self.stale_until.unwrap_or(expires).max(expires))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn tick(seconds: u64) -> Tick {
        Tick::from_millis(seconds * 1000)
    }

    fn wall(seconds: u64) -> WallTime {
        WallTime::from_millis(seconds * 1000)
    }

    fn life(fresh_until: u64, stale_until: u64) -> Life {
        let (fresh_until, stale_until) = (tick(fresh_until), tick(stale_until));
        Life { aging_from: fresh_until, fresh_until, stale_until }
    }

    #[test]
    fn an_entry_is_fresh_then_stale_then_dead() {
        let life = Life::begin(tick(10), Some(5 * SECOND), 3 * SECOND);
        let at = |seconds| judge(life, Standing::Good, tick(seconds));
        assert_eq!(
            [at(14), at(15), at(17), at(18)],
            [Freshness::Fresh, Freshness::Stale, Freshness::Stale, Freshness::Dead]
        );
    }

    #[test]
    fn what_the_ledger_names_or_forgot_is_dead_however_young() {
        let life = Life::begin(tick(0), None, Duration::ZERO);
        assert_eq!(judge(life, Standing::Named, tick(0)), Freshness::Dead);
        assert_eq!(judge(life, Standing::Unknown, tick(0)), Freshness::Dead);
        assert_eq!(judge(life, Standing::Good, tick(1 << 40)), Freshness::Fresh);
    }

    #[test]
    fn a_clock_that_jumps_back_gives_no_more_than_the_original_life() {
        let written = Written::begin(wall(1000), Some(60 * SECOND), SECOND);
        let jumped = Life::remaining(&written, wall(100), tick(5));
        assert_eq!(jumped, life(65, 66));
        let later = Life::remaining(&written, wall(1030), tick(5));
        assert_eq!(later, life(35, 36));
        let dead = Life::remaining(&written, wall(1 << 40), tick(5));
        assert_eq!(judge(dead, Standing::Good, tick(5)), Freshness::Dead);
    }

    #[test]
    fn an_entry_ages_before_it_is_stale() {
        let life = Life::begin(tick(10), Some(5 * SECOND), SECOND).aging(SECOND);
        let at = |seconds| judge(life, Standing::Good, tick(seconds));
        assert_eq!(
            [at(13), at(14), at(15), at(16)],
            [Freshness::Fresh, Freshness::Aging, Freshness::Stale, Freshness::Dead]
        );
        // Renewing it was put off beyond its end.
        let late = Life { aging_from: tick(100), ..life };
        assert_eq!(judge(late, Standing::Good, tick(14)), Freshness::Fresh);
        assert_eq!(judge(late, Standing::Good, tick(15)), Freshness::Stale);
        let forever = Life::begin(tick(0), None, SECOND).aging(SECOND);
        assert_eq!(judge(forever, Standing::Good, tick(1 << 40)), Freshness::Fresh);
    }

    #[test]
    fn a_cap_shortens_and_never_lengthens() {
        let written = Written::begin(wall(0), Some(60 * SECOND), 10 * SECOND);
        let short = written.capped(wall(0), Some(5 * SECOND));
        assert_eq!((short.expires, short.stale_until), (Some(wall(5)), Some(wall(15))));
        assert_eq!(written.capped(wall(0), Some(100 * SECOND)), written);
        assert_eq!(written.capped(wall(0), None), written);
    }
}
