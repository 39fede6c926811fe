//! The suites.

pub mod disk;
pub mod footprint;
pub mod hit_path;
pub mod hit_ratio;
pub mod memory;
pub mod redis;
mod servers;
pub mod stampede;
pub mod tags;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::harness::Pace;
use crate::report::Report;

/// What a run is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// A minute for the suite at most, instead of about five.
    pub quick: bool,
    /// This case and no other.
    pub only: Option<String>,
    /// Where traces are.
    pub traces: Option<PathBuf>,
}

impl Request {
    #[must_use]
    pub fn wants(&self, case: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == case)
    }

    /// Whether what a million entries have to be stored for is left out.
    #[must_use]
    pub fn leaves_out_long(&self) -> bool {
        self.quick && self.only.is_none()
    }

    /// The time for one of so many cases. Rounds that have begun are finished, and engines are
    /// built outside of it, which is why it is less than what a suite may take.
    #[must_use]
    pub fn pace(&self, cases: usize) -> Pace {
        let suite = Duration::from_secs(if self.quick { 24 } else { 270 });
        Pace::new(suite / u32::try_from(cases).unwrap_or(u32::MAX).max(1))
    }

    /// `quick` or `full`, as this run is.
    #[must_use]
    pub fn size(&self, quick: usize, full: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

/// Why nobody takes part in a case of a quick run.
pub(crate) const TAKES_LONG: &str =
    "not in a quick run unless it is asked for with --only: storing a million entries takes longer";

/// Cases that belong together.
pub struct Suite {
    pub name: &'static str,
    pub about: &'static str,
    /// Names in capitals stand for many, which only a run can tell.
    pub cases: &'static [&'static str],
    pub run: fn(&Request, &mut Report) -> Result<()>,
}

impl Suite {
    /// Whether a run may have a case of this name.
    #[must_use]
    pub fn may_have(&self, case: &str) -> bool {
        let is_pattern = |name: &&str| name.starts_with(|first: char| first.is_ascii_uppercase());
        self.cases.contains(&case) || self.cases.iter().any(is_pattern)
    }
}

/// The suites that are here.
pub const SUITES: &[Suite] = &[
    Suite {
        name: memory::SUITE,
        about: "reads and inserts in memory: how many a second, and the slowest",
        cases: memory::CASES,
        run: memory::run,
    },
    Suite {
        name: hit_ratio::SUITE,
        about: "requests of real programs that find their entry, in points",
        cases: hit_ratio::CASES,
        run: hit_ratio::run,
    },
    Suite {
        name: footprint::SUITE,
        about: "bytes and allocations that an entry costs besides itself",
        cases: footprint::CASES,
        run: footprint::run,
    },
    Suite {
        name: hit_path::SUITE,
        about: "a read with a loader that finds its value in memory, and one that has to load",
        cases: hit_path::CASES,
        run: hit_path::run,
    },
    Suite {
        name: stampede::SUITE,
        about: "many callers at once for one missing value",
        cases: stampede::CASES,
        run: stampede::run,
    },
    Suite {
        name: disk::SUITE,
        about: "reads and writes of the disk tier",
        cases: disk::CASES,
        run: disk::run,
    },
    Suite {
        name: redis::SUITE,
        about: "reads, writes and invalidations of the Redis tier",
        cases: redis::CASES,
        run: redis::run,
    },
    Suite {
        name: tags::SUITE,
        about: "invalidations of a tag, and what tags cost reads and memory",
        cases: tags::CASES,
        run: tags::run,
    },
];

/// The suites that come with the parts that they measure.
pub const LATER: &[&str] = &["sql", "http"];
