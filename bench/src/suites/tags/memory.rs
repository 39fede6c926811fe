//! `memory-per-tag`: what a process keeps of a tag that was invalidated, and of one that an entry
//! carries, beyond its name; and that tags which were seen once leave nothing behind.
//!
//! What a process keeps that follows a ledger in a directory, and what one keeps whose cache is in
//! memory alone: it keeps the ledger, too, its newest lines among it, and knows every tag twice.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use terrace::{Disk, Memory, Space, Target, Terrace};
use tokio::runtime::Runtime;

use super::SUITE;
use crate::counting;
use crate::goal::Goal;
use crate::harness::{Better, Case, Metric, OURS, Outcome};
use crate::load::text_key;
use crate::report::Record;
use crate::statistics::rounded;
use crate::versions;

pub(super) const CASE: &str = "memory-per-tag";

const NAMED: Metric = Metric { name: "bytes_per_tag", unit: "B", better: Better::Lower };
const NAMED_ALONE: Metric =
    Metric { name: "bytes_per_tag_alone", unit: "B", better: Better::Lower };
const CARRIED: Metric = Metric { name: "carried_bytes_per_tag", unit: "B", better: Better::Lower };
const GROWTH: Metric = Metric { name: "growth_bytes", unit: "B", better: Better::Lower };
const SEEN: Metric = Metric { name: "tags_seen", unit: "tags", better: Better::Higher };

/// Growth of less than a hundredth of a byte for each of ten million is none.
const GOALS: &[Goal] = &[
    Goal::Value { metric: NAMED.name, at_most: 64.0 },
    Goal::Value { metric: NAMED_ALONE.name, at_most: 64.0 },
    Goal::Value { metric: CARRIED.name, at_most: 64.0 },
    Goal::Value { metric: GROWTH.name, at_most: 65_536.0 },
];

/// So many tags are known at once: all that a process remembers.
const TAGS: usize = 65_536;

const ENTRIES: usize = 10_000;

const TAGS_EACH: usize = 4;

const CASE_OF_ALL: Case<'static> = Case { suite: SUITE, name: CASE, metrics: &[] };

pub(super) fn judge(outcome: &mut Outcome) {
    outcome.judge(&CASE_OF_ALL, GOALS);
}

/// In the program that counts.
pub(super) fn count(quick: bool) -> Result<Vec<Record>> {
    let seen = if quick { 1_000_000 } else { 10_000_000 };
    let runtime = Runtime::new().context("no runtime")?;
    let measured = runtime.block_on(async {
        anyhow::Ok([
            (NAMED, named_on_disk().await?),
            (NAMED_ALONE, named(&cache().await?.0).await?),
            (CARRIED, carried().await?),
            (GROWTH, growth(seen).await?),
            (SEEN, seen as f64),
        ])
    })?;
    let version = versions::of("terrace");
    let record =
        |(metric, value)| Record::value(&CASE_OF_ALL, OURS, version, metric, rounded(value));
    Ok(measured.map(record).into())
}

fn tag(number: usize) -> String {
    format!("country:{number:08}")
}

async fn cache() -> Result<(Terrace, Space<str, Bytes>)> {
    let cache = Terrace::builder().memory(Memory::bytes(32 << 20)).build().await?;
    let values = cache.space("value").forever().build_raw()?;
    Ok((cache, values))
}

async fn named_on_disk() -> Result<f64> {
    let directory = tempfile::tempdir()?;
    let builder = Terrace::builder().memory(Memory::bytes(32 << 20));
    named(&builder.tier("disk", Disk::at(directory.path())).build().await?).await
}

/// Bytes of a tag that was invalidated; closes the cache.
async fn named(cache: &Terrace) -> Result<f64> {
    cache.invalidate_tag(&tag(TAGS)).await?;
    let before = counting::counts();
    for from in (0..TAGS - 1).step_by(1000) {
        let numbers = from..(from + 1000).min(TAGS - 1);
        let targets = numbers.map(|number| Target::tag(&tag(number)));
        ensure!(cache.invalidate_all(targets).await?.is_settled(), "not settled");
    }
    let live = (counting::counts() - before).live_bytes as f64;
    cache.close().await;
    Ok(live / (TAGS - 1) as f64 - tag(0).len() as f64)
}

/// Bytes of a tag that an entry carries.
async fn carried() -> Result<f64> {
    let mut live = Vec::new();
    for tags_each in [0, TAGS_EACH] {
        let (cache, values) = cache().await?;
        let before = counting::counts();
        for number in 0..ENTRIES {
            let tags = (0..tags_each).map(|at| tag(number * tags_each + at));
            insert(&values, number, tags.collect()).await?;
        }
        live.push((counting::counts() - before).live_bytes as f64);
        cache.close().await;
    }
    let each = (live[1] - live[0]) / (ENTRIES * TAGS_EACH) as f64;
    Ok(each - tag(0).len() as f64)
}

/// By how many bytes the peak grows from the first fifth of the tags to the last: each is carried
/// by an entry that others push out, and invalidated.
async fn growth(seen: usize) -> Result<f64> {
    const PARTS: usize = 5;
    let (cache, values) = cache().await?;
    let mut peaks = [i64::MIN; PARTS];
    for number in 0..seen {
        insert(&values, number % ENTRIES, vec![tag(number)]).await?;
        cache.invalidate_tag(&tag(number)).await?;
        if number % 100 == 0 {
            let peak = &mut peaks[number * PARTS / seen];
            *peak = (*peak).max(counting::counts().live_bytes);
        }
    }
    cache.close().await;
    Ok((peaks[PARTS - 1] - peaks[0]) as f64)
}

async fn insert(values: &Space<str, Bytes>, number: usize, tags: Vec<String>) -> Result<()> {
    let value = Bytes::from_static(&[7; 100]);
    ensure!(values.insert(&text_key(number), value).tags(tags).await?.is_settled(), "not settled");
    Ok(())
}
