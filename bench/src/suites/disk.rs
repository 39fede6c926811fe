//! `disk`: reads and writes of the disk tier, with nothing in memory.
//!
//! Values are random bytes, which no compressor makes smaller, and every write brings others:
//! SQLite notices when a row stays as it was. Each engine has a directory of its own for a case,
//! which is read into the operating system's cache before each round.

mod opening;
pub mod processes;
mod reads;
mod side;
mod writes;

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use tokio::runtime::Runtime;

use self::side::{Round, Values, diskcache, engine};
use super::Request;
use crate::engines::Disk as _;
use crate::engines::bare_sqlite::{BareFull, BareIndexed, BareSqlite};
use crate::engines::foyer_hybrid::{FoyerHybrid, NO_WRITES};
use crate::engines::plain_files::PlainFiles;
use crate::engines::terrace_disk::{TerraceDisk, TerraceDiskStore, TerraceJournal};
use crate::goal::Goal;
use crate::harness::{Better, Case, Engine, Metric, Pace, compare};
use crate::report::Report;

pub const SUITE: &str = "disk";

pub const CASES: &[&str] = &[
    "read-100b",
    "read-1k",
    "write-8-tasks",
    "write-8-tasks-synced",
    processes::CASE,
    "read-1mb",
    "write-1mb",
    opening::CASE,
];

const US: Metric = Metric { name: "us", unit: "us", better: Better::Lower };
const OPS: Metric = Metric { name: "ops_s", unit: "ops/s", better: Better::Higher };
/// A thousand reads, one after the other.
const THOUSAND: Metric = Metric { name: "ms_1000", unit: "ms", better: Better::Lower };

/// At most 1.5 times what SQLite takes by itself.
const GOALS_OF_READS: &[Goal] = &[
    Goal::Ratio { against: "bare-sqlite", at_least: 1.0 / 1.5 },
    Goal::Value { metric: US.name, at_most: 10.0 },
    Goal::Value { metric: THOUSAND.name, at_most: 5.0 },
];

const GOALS_OF_WRITES: &[Goal] = &[
    Goal::Ratio { against: "bare-sqlite", at_least: 1.3 },
    Goal::Ratio { against: "bare-sqlite-indexed", at_least: 1.3 },
    Goal::Ratio { against: "bare-sqlite-full", at_least: 10.0 },
];

const GOALS_OF_SYNCED: &[Goal] = &[Goal::Ratio { against: "bare-sqlite-full", at_least: 10.0 }];

const GOALS_OF_LARGE: &[Goal] = &[Goal::Ratio { against: "plain-files", at_least: 0.8 }];

pub fn run(request: &Request, report: &mut Report) -> Result<()> {
    let runtime = Arc::new(Runtime::new().context("no runtime")?);
    for &name in CASES.iter().filter(|case| request.wants(case)) {
        // Longer says no more about a few engines.
        let pace = Pace { most_rounds: 100, ..request.pace(CASES.len()) };
        let outcome = match name {
            processes::CASE => processes::run(request, &runtime, pace)?,
            opening::CASE => opening::run(request, &runtime, pace)?,
            _ => {
                let (metrics, goals) = measured(name);
                let case = Case { suite: SUITE, name, metrics };
                let mut outcome = compare(&case, engines(name, request, &runtime)?, pace);
                outcome.judge(&case, goals);
                outcome
            }
        };
        report.add(name, outcome)?;
    }
    Ok(())
}

fn measured(case: &str) -> (&'static [Metric], &'static [Goal]) {
    match case {
        "read-100b" | "read-1k" => (&[US, THOUSAND], GOALS_OF_READS),
        "write-8-tasks" => (&[US, OPS], GOALS_OF_WRITES),
        "write-8-tasks-synced" => (&[US, OPS], GOALS_OF_SYNCED),
        _ => (&[US], GOALS_OF_LARGE),
    }
}

fn engines(case: &str, request: &Request, runtime: &Arc<Runtime>) -> Result<Vec<Engine<'static>>> {
    // Values, their bytes, and operations of a round.
    let (count, bytes, operations) = match case {
        "read-100b" => (request.size(20_000, 100_000), 100, request.size(10_000, 20_000)),
        "read-1k" => (request.size(20_000, 100_000), 1024, request.size(10_000, 20_000)),
        "write-8-tasks" => (request.size(20_000, 100_000), 1024, request.size(2_000, 8_000)),
        "write-8-tasks-synced" => (20_000, 1024, request.size(400, 2_000)),
        "read-1mb" => (request.size(32, 128), 1 << 20, request.size(64, 256)),
        "write-1mb" => (request.size(32, 128), 1 << 20, request.size(24, 128)),
        _ => bail!("no case {case:?} in {SUITE}"),
    };
    let runtime = Arc::clone(runtime);
    let round = &Round { runtime, values: Values { count, bytes }, operations };
    let no_writes = || Engine::out(FoyerHybrid::NAME, FoyerHybrid::version(), NO_WRITES);
    Ok(match case {
        "read-100b" | "read-1k" => vec![
            engine::<TerraceDisk>(round, reads::of_thousands),
            engine::<TerraceDiskStore>(round, reads::of_thousands),
            engine::<BareSqlite>(round, reads::of_thousands),
            engine::<BareIndexed>(round, reads::of_thousands),
            engine::<FoyerHybrid>(round, reads::of_thousands),
            diskcache(round, side::Deed::Read),
        ],
        "write-8-tasks" => vec![
            engine::<TerraceDisk>(round, writes::by_tasks),
            engine::<BareSqlite>(round, writes::by_tasks),
            engine::<BareIndexed>(round, writes::by_tasks),
            engine::<BareFull>(round, writes::by_tasks),
            no_writes(),
        ],
        "write-8-tasks-synced" => vec![
            engine::<TerraceJournal>(round, writes::by_tasks),
            engine::<BareFull>(round, writes::by_tasks),
        ],
        "read-1mb" => vec![
            engine::<TerraceDisk>(round, reads::one_by_one),
            engine::<TerraceDiskStore>(round, reads::one_by_one),
            engine::<PlainFiles>(round, reads::one_by_one),
            engine::<BareSqlite>(round, reads::one_by_one),
            engine::<FoyerHybrid>(round, reads::one_by_one),
            diskcache(round, side::Deed::Read),
        ],
        _ => vec![
            engine::<TerraceDisk>(round, writes::one_by_one),
            engine::<PlainFiles>(round, writes::one_by_one),
            engine::<BareSqlite>(round, writes::one_by_one),
            no_writes(),
            diskcache(round, side::Deed::Write),
        ],
    })
}
