//! The **oracle**: what has to hold of every cache once a test is over, whatever the
//! test was about.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use terrace::{Memory, Terrace};
//! use terrace_test::Oracle;
//!
//! let terrace = Terrace::builder().memory(Memory::bytes(1 << 20)).build().await?;
//! terrace.set("key", &1_u64).await?;
//! terrace.get::<u64>("key").await?;
//! terrace.get::<u64>("another").await?;
//!
//! let stats = Oracle::new().reads(2).bytes("memory", 1 << 20).check(&terrace).await?;
//! assert_eq!(stats.tiers[0].traffic.hits, 1);
//! # Ok(()) }
//! ```

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use terrace::{Stats, Terrace, TierStats};

/// What is expected of a cache at rest, besides what always is.
///
/// Always: nothing is under way; a tier that has entries has bytes, and never had fewer
/// than now; the reads of a tier are those of its spaces; no more failed than was tried.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use terrace::{Memory, Terrace};
/// use terrace_test::Oracle;
///
/// let terrace = Terrace::builder().memory(Memory::default()).build().await?;
/// terrace.get::<u64>("key").await?;
/// assert!(Oracle::new().reads(1).check(&terrace).await.is_ok());
///
/// let broken = Oracle::new().reads(2).check(&terrace).await.unwrap_err();
/// assert_eq!(broken.to_string(), "0 hits and 1 misses in memory are not 2 reads");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "an oracle says nothing until it is asked"]
pub struct Oracle {
    reads: Option<u64>,
    bytes: Vec<(String, u64)>,
    entries: Vec<(String, u64)>,
}

impl Oracle {
    /// One that expects what always holds.
    pub fn new() -> Self {
        Self::default()
    }

    /// Memory was asked for so many keys: each `get`, `get_or_load` and `read` is one,
    /// and each key of a `get_many`.
    pub fn reads(self, reads: u64) -> Self {
        Self { reads: Some(reads), ..self }
    }

    /// This tier never takes more than so many bytes.
    pub fn bytes(mut self, tier: &str, most: u64) -> Self {
        self.bytes.push((tier.to_owned(), most));
        self
    }

    /// This tier has no more than so many entries.
    pub fn entries(mut self, tier: &str, most: u64) -> Self {
        self.entries.push((tier.to_owned(), most));
        self
    }

    /// Waits until nothing is under way in `terrace`, for ten seconds at most, and judges
    /// its statistics, which it returns.
    ///
    /// # Errors
    /// Something is still under way, or does not hold.
    pub async fn check(&self, terrace: &Terrace) -> Result<Stats, Broken> {
        const LOOKS: usize = 1_000;
        let mut stats = terrace.stats().await;
        for _ in 0..LOOKS {
            if under_way(&stats) == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            stats = terrace.stats().await;
        }
        self.judge(&stats).map(|()| stats)
    }

    /// Judges statistics that were taken while the cache was at rest.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use terrace::{Memory, Terrace};
    /// # use terrace_test::Oracle;
    /// let terrace = Terrace::builder().memory(Memory::default()).build().await?;
    /// terrace.set("key", &1_u64).await?;
    /// let stats = terrace.stats().await;
    /// Oracle::new().judge(&stats)?;
    /// assert!(Oracle::new().entries("memory", 0).judge(&stats).is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Something is under way, or does not hold.
    pub fn judge(&self, stats: &Stats) -> Result<(), Broken> {
        let mut broken = Broken::default();
        let under_way = under_way(stats);
        broken.unless(under_way == 0, || format!("{under_way} loads and writes are under way"));
        for (index, tier) in stats.tiers.iter().enumerate() {
            judge_tier(tier, &mut broken);
            let of_spaces = stats.spaces.iter().filter_map(|space| space.tiers.get(index));
            let (hits, misses) = of_spaces
                .fold((0, 0), |(hits, misses), (_, of)| (hits + of.hits, misses + of.misses));
            broken.unless((hits, misses) == (tier.traffic.hits, tier.traffic.misses), || {
                format!("the spaces of {} do not add up to its hits and misses", tier.name)
            });
        }
        for space in &stats.spaces {
            broken.unless(space.load_errors <= space.loads, || {
                format!("{} of {} loads failed", space.load_errors, space.loads)
            });
        }
        self.judge_limits(stats, &mut broken);
        if broken.sentences.is_empty() { Ok(()) } else { Err(broken) }
    }

    fn judge_limits(&self, stats: &Stats, broken: &mut Broken) {
        let find = |name: &str| stats.tiers.iter().find(|tier| &*tier.name == name);
        for (name, most) in &self.bytes {
            let took = find(name).map(|tier| tier.largest_bytes);
            broken.unless(took.is_some_and(|took| took <= *most), || match took {
                Some(took) => format!("{name} took {took} bytes, which is more than {most}"),
                None => format!("there is no tier {name}"),
            });
        }
        for (name, most) in &self.entries {
            let has = find(name).map(|tier| tier.entries);
            broken.unless(has.is_some_and(|has| has <= *most), || match has {
                Some(has) => format!("{name} has {has} entries, which is more than {most}"),
                None => format!("there is no tier {name}"),
            });
        }
        if let Some(reads) = self.reads {
            let asked = find("memory").map(|tier| (tier.traffic.hits, tier.traffic.misses));
            broken.unless(
                asked.is_some_and(|(hits, misses)| hits + misses == reads),
                || match asked {
                    Some((hits, misses)) => {
                        format!("{hits} hits and {misses} misses in memory are not {reads} reads")
                    }
                    None => "reads are counted in memory, and there is none".to_owned(),
                },
            );
        }
    }
}

/// How much a cache has begun and not ended.
fn under_way(stats: &Stats) -> u64 {
    // Each load that ended was timed.
    let loads = stats.spaces.iter().map(|space| space.loads.saturating_sub(space.load_time.count));
    loads.sum::<u64>().max(stats.underway).max(stats.loads_running + stats.loads_queued)
}

fn judge_tier(tier: &TierStats, broken: &mut Broken) {
    let TierStats { name, entries, bytes, largest_bytes, .. } = tier;
    broken.unless(*entries == 0 || *bytes > 0, || {
        format!("{entries} entries of {name} take nothing")
    });
    broken.unless(largest_bytes >= bytes, || {
        format!("{name} takes {bytes} bytes and never took more than {largest_bytes}")
    });
    broken.unless(tier.traffic.unreadable <= tier.traffic.misses, || {
        format!("what {name} could not read are not all misses")
    });
}

/// What does not hold of a cache, in sentences.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use terrace::{Memory, Terrace};
/// # use terrace_test::Oracle;
/// let terrace = Terrace::builder().memory(Memory::default()).build().await?;
/// let broken = Oracle::new().bytes("disk", 0).check(&terrace).await.unwrap_err();
/// assert_eq!(broken.sentences(), ["there is no tier disk"]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Broken {
    sentences: Vec<String>,
}

impl Broken {
    /// One sentence for each thing that does not hold.
    #[must_use]
    pub fn sentences(&self) -> &[String] {
        &self.sentences
    }

    fn unless(&mut self, holds: bool, sentence: impl FnOnce() -> String) {
        if !holds {
            self.sentences.push(sentence());
        }
    }
}

impl Display for Broken {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.sentences.join("\n"))
    }
}

impl std::error::Error for Broken {}

#[cfg(test)]
mod tests {
    use terrace::Memory;

    use super::*;

    async fn used() -> Stats {
        let terrace = Terrace::builder().memory(Memory::default()).build().await.unwrap();
        terrace.get_or_load("key", |_| async { Ok::<_, fmt::Error>(1_u64) }).await.unwrap();
        terrace.get::<u64>("key").await.unwrap();
        Oracle::new().reads(2).entries("memory", 1).check(&terrace).await.unwrap()
    }

    #[tokio::test]
    async fn each_thing_that_does_not_hold_is_told() {
        let whole = used().await;
        type Harm = fn(&mut Stats);
        let harms: [(Harm, &str); 8] = [
            (|stats| stats.spaces[0].loads += 1, "1 loads and writes are under way"),
            (|stats| stats.underway += 1, "1 loads and writes are under way"),
            (|stats| stats.spaces[0].load_errors += 2, "2 of 1 loads failed"),
            (|stats| stats.tiers[0].bytes = 0, "1 entries of memory take nothing"),
            (|stats| stats.tiers[0].largest_bytes = 1, "never took more than 1"),
            (|stats| stats.tiers[0].traffic.unreadable = 9, "could not read are not all misses"),
            (|stats| stats.tiers[0].traffic.hits += 1, "spaces of memory do not add up"),
            (|stats| stats.spaces[0].tiers[0].1.misses -= 1, "spaces of memory do not add up"),
        ];
        for (harm, sentence) in harms {
            let mut stats = whole.clone();
            harm(&mut stats);
            let broken = Oracle::new().judge(&stats).unwrap_err();
            assert!(broken.to_string().contains(sentence), "{broken}");
            assert_eq!(broken.sentences().len(), 1, "{broken}");
        }
    }

    #[tokio::test]
    async fn limits_and_reads_are_those_that_were_told() {
        let stats = used().await;
        let bytes = stats.tiers[0].largest_bytes;
        let told = [
            (Oracle::new().bytes("memory", bytes), true),
            (Oracle::new().bytes("memory", bytes - 1), false),
            (Oracle::new().entries("memory", 1), true),
            (Oracle::new().entries("memory", 0), false),
            (Oracle::new().entries("disk", 1), false),
            (Oracle::new().reads(2), true),
            (Oracle::new().reads(3), false),
        ];
        for (oracle, holds) in told {
            assert_eq!(oracle.judge(&stats).is_ok(), holds, "{oracle:?}");
        }
    }
}
