//! `invalidate-{1k,100k,1m}-{memory,disk,redis}`: a tag that so many entries carry is invalidated.
//!
//! Ours leaves the entries where they are, dead; so before the first round all of them are stored,
//! and before each later one some of them anew. Where entries are taken away, all are stored each
//! time. Before each invalidation a sample is there, and after it none of it is.

use std::cell::Cell;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::runtime::Runtime;

use super::{ROUND_TRIPS, SUITE, US};
use crate::engines::Tagging;
use crate::engines::tag_sets::TagSets;
use crate::engines::terrace_tags::TerraceTags;
use crate::goal::Goal;
use crate::harness::{Better, Case, Engine, Metric, OURS, Outcome, Pace, compare};
use crate::load::text_key;
use crate::report::Record;
use crate::statistics::rounded;
use crate::suites::servers::Servers;

/// The first of all, when every entry is alive.
const FIRST: Metric = Metric { name: "first_us", unit: "us", better: Better::Lower };

const GOALS_IN_MEMORY: &[Goal] = &[Goal::Value { metric: US.name, at_most: 50.0 }];

const GOALS_ON_DISK: &[Goal] = &[Goal::Value { metric: US.name, at_most: 500.0 }];

const GOALS_ON_SERVER: &[Goal] = &[Goal::Value { metric: ROUND_TRIPS.name, at_most: 1.0 }];

const TAG: &str = "country:CH";

/// How many entries are looked at, and stored anew.
const SAMPLE: usize = 100;

struct Work<'a> {
    runtime: &'a Runtime,
    keys: Vec<String>,
    /// Every so manieth is one of the sample.
    step: usize,
    servers: Option<&'a Servers>,
}

impl Work<'_> {
    fn sample(&self) -> Vec<&str> {
        self.keys.iter().step_by(self.step).take(SAMPLE).map(String::as_str).collect()
    }
}

pub(super) fn run(
    name: &str,
    runtime: &Runtime,
    servers: Option<&Servers>,
    pace: Pace,
) -> Result<Outcome> {
    let (entries, tier) = name
        .strip_prefix("invalidate-")
        .and_then(|rest| rest.split_once('-'))
        .with_context(|| format!("no case {name:?} in {SUITE}"))?;
    let count = match entries {
        "1k" => 1_000,
        "100k" => 100_000,
        _ => 1_000_000,
    };
    let keys = (0..count).map(text_key).collect();
    let work = &Work { runtime, keys, step: count / SAMPLE, servers };
    let directory = tempfile::tempdir()?;
    match tier {
        "memory" => {
            let ours = runtime.block_on(TerraceTags::in_memory())?;
            alone(name, &ours, work, GOALS_IN_MEMORY, pace)
        }
        "disk" => on_disk(name, directory.path(), work, pace),
        "redis" => on_server(name, work, pace),
        _ => bail!("no case {name:?} in {SUITE}"),
    }
}

fn alone(
    name: &str,
    ours: &TerraceTags,
    work: &Work<'_>,
    goals: &[Goal],
    pace: Pace,
) -> Result<Outcome> {
    let first = Cell::new(None);
    let case = Case { suite: SUITE, name, metrics: &[US] };
    let work = &Work { servers: None, keys: work.keys.clone(), ..*work };
    let mut outcome = compare(&case, vec![engine(ours, work, &first)], pace);
    add_first(&mut outcome, &case, &first);
    outcome.judge(&case, goals);
    work.runtime.block_on(ours.close());
    Ok(outcome)
}

fn on_disk(name: &str, directory: &Path, work: &Work<'_>, pace: Pace) -> Result<Outcome> {
    let ours = work.runtime.block_on(TerraceTags::on_disk(directory))?;
    alone(name, &ours, work, GOALS_ON_DISK, pace)
}

fn on_server(name: &str, work: &Work<'_>, pace: Pace) -> Result<Outcome> {
    let servers = work.servers.context("no server")?;
    let url = servers.urls().concat();
    let (ours, theirs) = work.runtime.block_on(async {
        servers.empty().await?;
        anyhow::Ok((TerraceTags::on_server(&url).await?, TagSets::at(&url).await?))
    })?;
    let (first, of_theirs) = (Cell::new(None), Cell::new(None));
    let case = Case { suite: SUITE, name, metrics: &[US, ROUND_TRIPS] };
    let engines = vec![engine(&ours, work, &first), engine(&theirs, work, &of_theirs)];
    let mut outcome = compare(&case, engines, pace);
    add_first(&mut outcome, &case, &first);
    outcome.judge(&case, GOALS_ON_SERVER);
    work.runtime.block_on(ours.close());
    Ok(outcome)
}

fn add_first(outcome: &mut Outcome, case: &Case<'_>, first: &Cell<Option<f64>>) {
    if let Some(first) = first.get() {
        let value = Record::value(case, OURS, TerraceTags::version(), FIRST, rounded(first));
        outcome.records.push(value);
    }
}

fn engine<'a, T: Tagging>(
    tagging: &'a T,
    work: &'a Work<'a>,
    first: &'a Cell<Option<f64>>,
) -> Engine<'a> {
    Engine::new(T::NAME, T::version(), move || {
        work.runtime.block_on(async {
            let sample = work.sample();
            if T::TAKES_AWAY || first.get().is_none() {
                tagging.fill(&work.keys, TAG).await?;
            } else {
                let some: Vec<_> = sample.iter().map(|key| (*key).to_owned()).collect();
                tagging.fill(&some, TAG).await?;
            }
            ensure!(tagging.count(&sample).await? == sample.len(), "an entry is not there");
            let before = match work.servers {
                Some(servers) => Some((servers, servers.exchanges().await?)),
                None => None,
            };
            let began = Instant::now();
            tagging.invalidate(TAG).await?;
            let took = began.elapsed().as_nanos() as f64 / 1e3;
            let mut measured = vec![took];
            if let Some((servers, before)) = before {
                measured.push(servers.exchanges_since(before).await?);
            }
            ensure!(tagging.count(&sample).await? == 0, "an entry outlives its tag");
            if first.get().is_none() {
                first.set(Some(took));
            }
            Ok(measured)
        })
    })
}
