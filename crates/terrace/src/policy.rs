//! The **policy** of a space: times and limits, safe as they are.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Tick;
use crate::options::Tiers;

/// How the entries of a space live. Set on the space's builder.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Policy {
    /// `None`: entries never expire.
    pub(crate) ttl: Option<Duration>,
    /// The share of `ttl` by which it is lengthened or shortened at random, so that
    /// what was stored together does not expire together.
    pub(crate) jitter: f64,
    /// An entry that was not read for so long expires in memory.
    pub(crate) idle: Option<Duration>,
    /// How long after its end an entry may answer when the loader fails or is slow.
    pub(crate) stale_for: Duration,
    /// For how long "there is none" is remembered; `None`: not at all.
    pub(crate) negative_ttl: Option<Duration>,
    /// The share of its life after which a read has an entry loaded anew; `None`: never.
    pub(crate) refresh_at: Option<f64>,
    /// The factor of the probabilistic early refresh, if it is wanted.
    pub(crate) early: Option<f64>,
    /// What a load costs.
    pub(crate) load_cost: f64,
    /// How often a source that has a version probe is asked about an entry that is read.
    pub(crate) check_every: Option<Duration>,
    /// How long a load may take while something stale could answer.
    pub(crate) soft_deadline: Duration,
    /// How long a load may take.
    pub(crate) load_deadline: Duration,
    /// How long all tiers below memory together may take to answer a read.
    pub(crate) tiers_deadline: Duration,
    /// Loads at once in this space; `None`: as many as the cache allows.
    pub(crate) max_loads: Option<usize>,
    /// When a load that failed is tried again.
    pub(crate) retry: Backoff,
    /// Never stale, and no answer that the ledger cannot vouch for.
    pub(crate) is_strict: bool,
    /// What is loaded while entries are read depends on them.
    pub(crate) is_tracked: bool,
    /// The failure of a tier costs a miss, not an error.
    pub(crate) is_graceful: bool,
    /// The name of its kind, if it is of one.
    pub(crate) kind: Option<Arc<str>>,
    /// Tiers that keep nothing of it.
    pub(crate) unused: Tiers,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            ttl: Some(Duration::from_secs(300)),
            jitter: 0.2,
            idle: None,
            stale_for: Duration::ZERO,
            negative_ttl: None,
            refresh_at: Some(0.8),
            early: None,
            load_cost: 0.0,
            check_every: None,
            soft_deadline: Duration::from_secs(1),
            load_deadline: Duration::from_secs(30),
            tiers_deadline: Duration::from_secs(2),
            max_loads: None,
            retry: Backoff::default(),
            is_strict: false,
            is_tracked: false,
            is_graceful: true,
            kind: None,
            unused: Tiers::default(),
        }
    }
}

/// How long one entry lives, where a call says something else than its space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ttl {
    /// The space's, with jitter.
    #[default]
    OfSpace,
    /// Exactly this.
    Exactly(Duration),
    /// Never expires.
    Forever,
}

impl Policy {
    /// The lifetime of an entry made now; `random` decides the jitter.
    pub(crate) fn lifetime(&self, ttl: Ttl, random: u64) -> Option<Duration> {
        match ttl {
            Ttl::Forever => None,
            Ttl::Exactly(ttl) => Some(ttl),
            Ttl::OfSpace => self.ttl.map(|ttl| varied(ttl, self.jitter, random)),
        }
    }

    /// For how long before its end an entry is worth renewing that was `given` so long a life
    /// and took `load_time` to load.
    pub(crate) fn aging(&self, given: Option<Duration>, load_time: Duration) -> Duration {
        let Some(given) = given else { return Duration::ZERO };
        if let Some(factor) = self.early {
            // Beyond twenty times, less than one draw in 10^8 would be in favour.
            return scaled(load_time, 20.0 * factor).min(given);
        }
        self.refresh_at.map_or(Duration::ZERO, |share| scaled(given, 1.0 - share))
    }

    /// Whether an entry that ages is to be loaded anew by this read.
    ///
    /// Probabilistic early expiration as in Vattani, Chierichetti and Lowenstein, "Optimal
    /// Probabilistic Cache Stampede Prevention" (2015): the nearer the end and the longer the
    /// load, the likelier.
    pub(crate) fn wants_refresh(&self, left: Duration, load_time: Duration, random: u64) -> bool {
        let Some(factor) = self.early else { return true };
        let ahead = scaled(load_time, -factor * unit(random).max(f64::MIN_POSITIVE).ln());
        ahead >= left
    }

    /// Whether something stale may stand in for a load that fails or is slow.
    pub(crate) fn allows_stale(&self) -> bool {
        !self.is_strict && !self.stale_for.is_zero()
    }
}

/// Waits between attempts: each twice as long as the one before, within limits, never in step
/// with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), longest: Duration::from_secs(30) }
    }
}

/// The share by which a wait varies at random.
const WAIT_JITTER: f64 = 0.1;

/// While callers get nothing but the error, the source is asked at least so often.
const LONGEST_WITHOUT_ANSWER: Duration = Duration::from_secs(5);

impl Backoff {
    /// When to try again after `failures` failures in a row, the last of them `now`.
    pub(crate) fn next(&self, now: Tick, failures: u32, has_stale: bool, random: u64) -> Tick {
        let longest =
            if has_stale { self.longest } else { self.longest.min(LONGEST_WITHOUT_ANSWER) };
        now.saturating_add(Self { longest, ..*self }.wait(failures, random))
    }

    /// How long to wait after `failures` failures in a row.
    pub(crate) fn wait(&self, failures: u32, random: u64) -> Duration {
        let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let wait = self.first.saturating_mul(doubled).min(self.longest);
        varied(wait, WAIT_JITTER, random)
    }
}

/// `time` lengthened or shortened by up to `share` of itself.
fn varied(time: Duration, share: f64, random: u64) -> Duration {
    scaled(time, 1.0 + share * (2.0 * unit(random) - 1.0))
}

/// A random number as one from 0 to 1.
fn unit(random: u64) -> f64 {
    // Thirty-two bits are as fine as anybody can tell; they convert without loss.
    f64::from(u32::try_from(random & u64::from(u32::MAX)).unwrap_or(0)) / f64::from(u32::MAX)
}

fn scaled(time: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(time.as_secs_f64() * factor).unwrap_or(time)
}

/// What is left until `end`.
pub(crate) fn left(now: Tick, end: Tick) -> Duration {
    Duration::from_millis(end.as_millis().saturating_sub(now.as_millis()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn jitter_stays_within_its_share_and_spreads() {
        let policy = Policy { ttl: Some(100 * SECOND), jitter: 0.1, ..Policy::default() };
        let lives: Vec<_> = (0..=u32::MAX)
            .step_by(1 << 24)
            .filter_map(|random| policy.lifetime(Ttl::OfSpace, random.into()))
            .collect();
        assert!(lives.iter().all(|life| (90.0..=110.0).contains(&life.as_secs_f64())));
        assert!(lives.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(policy.lifetime(Ttl::Exactly(Duration::MAX), 7), Some(Duration::MAX));
        assert_eq!(policy.lifetime(Ttl::Forever, 7), None);
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let backoff = Backoff::default();
        let wait = |failures, has_stale| {
            let next = backoff.next(Tick::from_millis(0), failures, has_stale, u64::MAX / 2);
            // The draw lengthens it by a tenth.
            (next.as_millis() * 10).div_ceil(11)
        };
        assert_eq!([wait(1, true), wait(2, true), wait(3, true)], [100, 200, 400]);
        assert_eq!([wait(9, true), wait(10, true), wait(u32::MAX, true)], [25_600, 30_000, 30_000]);
        assert_eq!([wait(7, false), wait(70, false)], [5_000, 5_000]);
    }

    #[test]
    fn the_nearer_the_end_the_likelier_an_early_refresh() {
        let policy = Policy { early: Some(1.0), ..Policy::default() };
        let share = |left| {
            let draws = (0..=u32::MAX).step_by(1 << 20);
            let wanted =
                draws.clone().filter(|&draw| policy.wants_refresh(left, SECOND, draw.into()));
            wanted.count() as f64 / draws.count() as f64
        };
        // e^-left for a load of one second.
        assert!((share(SECOND) - 0.368).abs() < 0.01, "{}", share(SECOND));
        assert!((share(3 * SECOND) - 0.0498).abs() < 0.01, "{}", share(3 * SECOND));
        assert_eq!(policy.aging(Some(60 * SECOND), SECOND), 20 * SECOND);
        assert_eq!(Policy::default().aging(Some(60 * SECOND), SECOND), 12 * SECOND);
    }
}
