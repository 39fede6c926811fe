//! **Savings**: the time and the money that hits have spared the source.
//!
//! What a load takes is measured, and what it costs is declared, by its space or its loader. What was
//! spared is an estimate: as if each value that was found had been loaded instead, in the mean time
//! and at the mean cost of a value of its space.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::stats::{SpaceStats, Stats};

/// What hits have spared the source: see [`SpaceStats::savings`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Savings {
    /// Values that were found in a tier, and did not have to be loaded.
    pub values: u64,
    /// How long loaders would have run for them, all together.
    pub time: Duration,
    /// What they would have cost, in the unit in which costs are declared.
    pub cost: f64,
}

/// Costs that add up, counted in millionths.
#[derive(Debug, Default)]
pub(crate) struct Costs(AtomicU64);

impl Costs {
    /// Nothing, if it is no cost at all: negative, or not a number.
    pub(crate) fn add(&self, cost: f64) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "what is too large, too small, or no number ends at a limit"
        )]
        let millionths = (cost * 1e6).round() as u64;
        if millionths > 0 {
            let add = |sum: u64| Some(sum.saturating_add(millionths));
            let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a sum of costs is no more precise than this")]
    pub(crate) fn sum(&self) -> f64 {
        self.0.load(Ordering::Relaxed) as f64 / 1e6
    }
}

impl SpaceStats {
    /// What hits have saved: the loads that did not run.
    ///
    /// An estimate, as if each value that a tier had was loaded instead, in the mean time and at the
    /// mean cost of the values that were loaded. Nothing, as long as nothing was.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use terrace::{Loaded, Memory, Terrace};
    /// let terrace = Terrace::builder().memory(Memory::bytes(1 << 20)).build().await?;
    /// let answers = terrace.space::<str, String>("answer").load_cost(0.01).build()?;
    /// for _ in 0..10 {
    ///     answers
    ///         .get_or_load("what is a cache?", |_| async {
    ///             // This one was longer than most.
    ///             Ok::<_, std::io::Error>(Loaded::value("A place to hide.".to_owned()).cost(0.02))
    ///         })
    ///         .await?;
    /// }
    /// let savings = terrace.stats().await.savings();
    /// assert_eq!(savings.values, 9);
    /// assert!((savings.cost - 9.0 * 0.03).abs() < 1e-6);
    /// # Ok(()) }
    /// ```
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "an estimate is no more precise than this")]
    pub fn savings(&self) -> Savings {
        let values = self.tiers.iter().map(|(_, traffic)| traffic.hits).sum();
        if self.loaded == 0 {
            return Savings { values, ..Savings::default() };
        }
        let loads_for_each = values as f64 / self.loaded as f64;
        let spent = self.load_time.mean.as_secs_f64() * self.load_time.count as f64;
        let time = Duration::try_from_secs_f64(spent * loads_for_each).unwrap_or(Duration::MAX);
        Savings { values, time, cost: self.load_cost * loads_for_each }
    }
}

impl Stats {
    /// What hits of all spaces have saved: see [`SpaceStats::savings`]. The costs of all have to be
    /// declared in one unit.
    #[must_use]
    pub fn savings(&self) -> Savings {
        self.spaces.iter().map(SpaceStats::savings).fold(Savings::default(), |sum, of| Savings {
            values: sum.values + of.values,
            time: sum.time.saturating_add(of.time),
            cost: sum.cost + of.cost,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_that_are_none_add_nothing_and_large_ones_do_not_wrap() {
        let costs = Costs::default();
        for cost in [f64::NAN, -1.0, f64::NEG_INFINITY, 0.0, 1e-9] {
            costs.add(cost);
        }
        assert!(costs.sum().abs() < f64::EPSILON);
        costs.add(0.25);
        costs.add(1.5);
        assert!((costs.sum() - 1.75).abs() < 1e-9);
        costs.add(f64::INFINITY);
        costs.add(1.0);
        assert!((costs.sum() - 1.844_674_407_371e13).abs() < 1.0);
    }
}
