//! `tags`: invalidations of a tag, and what tags cost reads and memory.
//!
//! Each cache has one tier. What is on a server is compared with tags as others keep them: a set
//! of keys for each, on the same server.

mod invalidate;
mod memory;
mod reads;

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use tokio::runtime::Runtime;

use super::servers::Servers;
use super::{Request, TAKES_LONG};
use crate::counting;
use crate::engines::Tagging as _;
use crate::engines::terrace_tags::TerraceTags;
use crate::harness::{Better, Case, Engine, Metric, Outcome, Pace, compare};
use crate::report::{Record, Report};

pub const SUITE: &str = "tags";

pub const CASES: &[&str] = &[
    "invalidate-1k-memory",
    "invalidate-100k-memory",
    "invalidate-1m-memory",
    "invalidate-1k-disk",
    "invalidate-100k-disk",
    "invalidate-1m-disk",
    "invalidate-1k-redis",
    "invalidate-100k-redis",
    "invalidate-1m-redis",
    reads::IN_MEMORY,
    reads::IN_A_FLOOD,
    reads::ON_SERVER,
    memory::CASE,
];

const US: Metric = Metric { name: "us", unit: "us", better: Better::Lower };
const ROUND_TRIPS: Metric =
    Metric { name: "round_trips", unit: "round trips", better: Better::Lower };

pub fn run(request: &Request, report: &mut Report) -> Result<()> {
    let runtime = &Arc::new(Runtime::new().context("no runtime")?);
    let mut servers = None;
    for &name in CASES.iter().filter(|case| request.wants(case)) {
        let pace = Pace { most_rounds: 100, ..request.pace(CASES.len()) };
        if name.ends_with("-redis") && servers.is_none() {
            servers = Some(runtime.block_on(Servers::one())?);
        }
        let outcome = match (name, &servers) {
            (memory::CASE, _) => {
                let mut outcome =
                    Outcome { records: counting::ask(SUITE, name, request.quick)?, rounds: None };
                memory::judge(&mut outcome);
                outcome
            }
            (reads::IN_MEMORY | reads::IN_A_FLOOD, _) => reads::run(name, request, runtime, pace)?,
            (reads::ON_SERVER, Some(servers)) => {
                reads::run_on_server(request, runtime, servers, pace)?
            }
            ("invalidate-1m-disk" | "invalidate-1m-redis", _) if request.leaves_out_long() => {
                let case = Case { suite: SUITE, name, metrics: &[US] };
                let version = TerraceTags::version();
                compare(&case, vec![Engine::out(TerraceTags::NAME, version, TAKES_LONG)], pace)
            }
            (_, servers) => invalidate::run(name, runtime, servers.as_ref(), pace)?,
        };
        report.add(name, outcome)?;
    }
    Ok(())
}

/// What [`run`] asks for; in the program that counts.
///
/// # Errors
/// There is no such case.
pub fn count(case: &str, quick: bool) -> Result<Vec<Record>> {
    if case != memory::CASE {
        bail!("nothing is counted in the case {case:?} of {SUITE}");
    }
    memory::count(quick)
}
