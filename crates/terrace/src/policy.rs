//! The **policy** of a space: times and limits, safe as they are.

use std::time::Duration;

/// How the entries of a space live. Set on the space's builder.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Policy {
    /// `None`: entries never expire.
    pub(crate) ttl: Option<Duration>,
    /// The share of `ttl` by which it is lengthened or shortened at random, so that
    /// what was stored together does not expire together.
    pub(crate) jitter: f64,
    /// How long after its end an entry may answer when the loader fails.
    pub(crate) stale_for: Duration,
    /// How long a load may take.
    pub(crate) load_deadline: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            ttl: Some(Duration::from_secs(300)),
            jitter: 0.1,
            stale_for: Duration::ZERO,
            load_deadline: Duration::from_secs(30),
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
            Ttl::OfSpace => self.ttl.map(|ttl| jittered(ttl, self.jitter, random)),
        }
    }
}

/// `ttl` lengthened or shortened by up to the share `jitter` of itself.
fn jittered(ttl: Duration, jitter: f64, random: u64) -> Duration {
    // Sixteen bits are as fine as anybody can tell; they convert without loss.
    let unit = f64::from(u16::try_from(random & 0xffff).unwrap_or(0)) / 65_535.0;
    Duration::try_from_secs_f64(ttl.as_secs_f64() * (1.0 + jitter * (2.0 * unit - 1.0)))
        .unwrap_or(ttl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_its_share_and_spreads() {
        let policy = Policy { ttl: Some(Duration::from_secs(100)), ..Policy::default() };
        let lives: Vec<_> = (0..=u16::MAX)
            .step_by(257)
            .filter_map(|random| policy.lifetime(Ttl::OfSpace, random.into()))
            .collect();
        assert!(lives.iter().all(|life| (90.0..=110.0).contains(&life.as_secs_f64())));
        assert!(lives.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(policy.lifetime(Ttl::Exactly(Duration::MAX), 7), Some(Duration::MAX));
        assert_eq!(policy.lifetime(Ttl::Forever, 7), None);
    }
}
