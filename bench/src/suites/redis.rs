//! `redis`: reads, writes and invalidations of the Redis tier, with nothing in memory.
//!
//! All engines use one server, which keeps nothing on disk and runs on the same machine, each
//! under keys of its own. Who calls are tasks on the runtime of Tokio.

mod follow;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use terrace::Redis;
use tokio::runtime::Runtime;

use super::Request;
use super::servers::Servers;
use crate::engines::Remote;
use crate::engines::bare_redis::{BareCluster, BareRedis};
use crate::engines::terrace_redis::{TerraceRedis, TerraceStore};
use crate::goal::Goal;
use crate::harness::{Better, Case, Engine, Metric, Pace, compare};
use crate::load::{Random, text_key};
use crate::report::Report;

pub const SUITE: &str = "redis";

pub const CASES: &[&str] = &[
    "get-1000-callers",
    "set-1000-callers",
    "get-many-100",
    "get-sequential",
    "cluster-get",
    follow::CASE,
];

const OPS: Metric = Metric { name: "ops_s", unit: "ops/s", better: Better::Higher };
const US: Metric = Metric { name: "us", unit: "us", better: Better::Lower };
const P99: Metric = Metric { name: "p99_us", unit: "us", better: Better::Lower };
const P999: Metric = Metric { name: "p999_us", unit: "us", better: Better::Lower };
const ADDED: Metric = Metric { name: "added_us", unit: "us", better: Better::Lower };
const WIRE: Metric = Metric { name: "wire_bytes", unit: "bytes", better: Better::Lower };

const BARE: &str = "bare-client";

/// What 1,000 callers are to get of one server: no less than from the client by itself.
const GOALS_OF_GET: &[Goal] = &[
    Goal::Ratio { against: BARE, at_least: 1.0 },
    Goal::Least { metric: OPS.name, at_least: 100_000.0 },
    Goal::Value { metric: P99.name, at_most: 5_000.0 },
];

const GOALS_OF_SET: &[Goal] = &[
    Goal::Ratio { against: BARE, at_least: 1.0 },
    Goal::Least { metric: OPS.name, at_least: 100_000.0 },
];

/// Our time is at most 1.15 times theirs.
const GOALS_OF_MANY: &[Goal] = &[Goal::Ratio { against: BARE, at_least: 1.0 / 1.15 }];

const GOALS_OF_ONE: &[Goal] = &[Goal::Value { metric: ADDED.name, at_most: 15.0 }];

const GOALS_OF_CLUSTER: &[Goal] = &[
    Goal::Least { metric: OPS.name, at_least: 50_000.0 },
    Goal::Value { metric: P99.name, at_most: 20_000.0 },
];

const CALLERS: usize = 1000;

/// Values of one `get_many`.
const AT_ONCE: usize = 100;

const KEYS: usize = 10_000;

const VALUE_BYTES: usize = 100;

type Entries = Arc<Vec<(String, Bytes)>>;

/// What a round needs.
struct Round<'a> {
    runtime: &'a Runtime,
    servers: &'a Servers,
    entries: &'a Entries,
    operations: usize,
}

pub fn run(request: &Request, report: &mut Report) -> Result<()> {
    let runtime = &Runtime::new().context("no runtime")?;
    let entries = &entries();
    let wanted = CASES.iter().copied().filter(|name| request.wants(name));
    let (on_cluster, on_server): (Vec<&str>, Vec<&str>) =
        wanted.partition(|name| *name == "cluster-get");

    if !on_server.is_empty() {
        let servers = &runtime.block_on(Servers::one())?;
        let url = servers.urls().concat();
        let bare = &runtime.block_on(BareRedis::at(&url))?;
        let ours = &runtime.block_on(TerraceRedis::over(Redis::url(&url)))?;
        let store = &runtime.block_on(async {
            bare.fill(entries).await?;
            ours.fill(entries).await?;
            TerraceStore::beside(&Redis::url(&url)).await
        })?;
        for name in on_server {
            let pace = pace(request);
            if name == follow::CASE {
                report.add(name, follow::run(request, runtime, &url, pace)?)?;
                continue;
            }
            let (metrics, goals, operations): (&[Metric], _, _) = match name {
                "get-1000-callers" => (&[OPS, P99, WIRE], GOALS_OF_GET, (40_000, 200_000)),
                "set-1000-callers" => (&[OPS, P99, WIRE], GOALS_OF_SET, (10_000, 50_000)),
                "get-many-100" => (&[US, P99, OPS, WIRE], GOALS_OF_MANY, (300, 2_000)),
                "get-sequential" => (&[US, P99, ADDED], GOALS_OF_ONE, (1_000, 5_000)),
                _ => bail!("no case {name:?} in {SUITE}"),
            };
            let operations = request.size(operations.0, operations.1);
            let round = &Round { runtime, servers, entries, operations };
            let engines = match name {
                "get-1000-callers" => vec![
                    engine(ours, round, get),
                    engine(store, round, get),
                    engine(bare, round, get),
                ],
                "set-1000-callers" => vec![engine(ours, round, set), engine(bare, round, set)],
                "get-many-100" => vec![
                    engine(ours, round, get_many),
                    engine(store, round, get_many),
                    engine(bare, round, get_many),
                ],
                _ => vec![
                    beside(ours, bare, round),
                    beside(store, bare, round),
                    beside(bare, bare, round),
                ],
            };
            let case = Case { suite: SUITE, name, metrics };
            let mut outcome = compare(&case, engines, pace);
            outcome.judge(&case, goals);
            report.add(name, outcome)?;
        }
        runtime.block_on(ours.close());
    }
    if !on_cluster.is_empty() {
        let servers = &runtime.block_on(Servers::cluster())?;
        let urls = servers.urls();
        let bare = &runtime.block_on(BareCluster::at(&urls))?;
        let ours = &runtime.block_on(TerraceRedis::over(Redis::cluster(urls)))?;
        runtime.block_on(async {
            bare.fill(entries).await?;
            ours.fill(entries).await
        })?;
        let operations = request.size(30_000, 150_000);
        let round = &Round { runtime, servers, entries, operations };
        let case = Case { suite: SUITE, name: "cluster-get", metrics: &[OPS, P99, WIRE] };
        let engines = vec![engine(ours, round, get), engine(bare, round, get)];
        let mut outcome = compare(&case, engines, pace(request));
        outcome.judge(&case, GOALS_OF_CLUSTER);
        report.add(case.name, outcome)?;
        runtime.block_on(ours.close());
    }
    Ok(())
}

/// Longer says no more about two or three engines.
fn pace(request: &Request) -> Pace {
    Pace { most_rounds: 100, ..request.pace(CASES.len()) }
}

/// Random bytes, which no compressor makes smaller, after the key.
fn entries() -> Entries {
    let mut random = Random::new(45);
    let value = |key: &str, random: &mut Random| {
        let mut value = Vec::with_capacity(VALUE_BYTES + 8);
        value.extend(key.as_bytes());
        while value.len() < VALUE_BYTES {
            value.extend(random.number().to_le_bytes());
        }
        value.truncate(VALUE_BYTES);
        value.into()
    };
    let entry = |number| {
        let key = text_key(number);
        let value = value(&key, &mut random);
        (key, value)
    };
    Arc::new((0..KEYS).map(entry).collect())
}

fn engine<'a, R: Remote>(
    remote: &'a R,
    round: &'a Round<'a>,
    measure: fn(&R, &Round<'_>, Random) -> Result<Vec<f64>>,
) -> Engine<'a> {
    let mut seed = 0;
    Engine::new(R::NAME, R::version(), move || {
        // The same keys for all in a round, others in the next.
        seed += 1;
        measure(remote, round, Random::new(seed))
    })
}

fn get<R: Remote>(remote: &R, round: &Round<'_>, random: Random) -> Result<Vec<f64>> {
    round.runtime.block_on(called(remote, round, random, Call::Get))
}

fn set<R: Remote>(remote: &R, round: &Round<'_>, random: Random) -> Result<Vec<f64>> {
    round.runtime.block_on(called(remote, round, random, Call::Set))
}

#[derive(Clone, Copy)]
enum Call {
    Get,
    Set,
}

/// Calls by many tasks, each of which waits for one before the next: how many a second, what 99
/// of 100 took at most, and the bytes that went over the wire for each.
async fn called<R: Remote>(
    remote: &R,
    round: &Round<'_>,
    mut random: Random,
    call: Call,
) -> Result<Vec<f64>> {
    // A part as large for every caller, and a tenth of it to warm up.
    let each = round.operations / CALLERS;
    let mut orders = |each: usize| -> Vec<Vec<usize>> {
        let mut order = || (0..each).map(|_| random.below(round.entries.len())).collect();
        (0..CALLERS).map(|_| order()).collect()
    };
    let (warm_up, timed) = (orders(each.div_ceil(10)), orders(each));
    by_tasks(remote, round.entries, warm_up, call).await?;
    let before = round.servers.bytes().await?;
    let began = Instant::now();
    let mut times = by_tasks(remote, round.entries, timed, call).await?;
    let took = began.elapsed();
    let bytes = round.servers.bytes_since(before).await?;
    let calls = times.len() as f64;
    Ok(vec![calls / took.as_secs_f64(), share(&mut times, 0.99), bytes / calls])
}

async fn by_tasks<R: Remote>(
    remote: &R,
    entries: &Entries,
    orders: Vec<Vec<usize>>,
    call: Call,
) -> Result<Vec<Duration>> {
    let tasks: Vec<_> = orders
        .into_iter()
        .map(|order| {
            let (remote, entries) = (remote.clone(), Arc::clone(entries));
            tokio::spawn(async move {
                let mut times = Vec::with_capacity(order.len());
                for number in order {
                    let began = Instant::now();
                    let (key, value) = &entries[number];
                    match call {
                        Call::Get => read(&remote, key, value).await?,
                        Call::Set => remote.set(key, value).await?,
                    }
                    times.push(began.elapsed());
                }
                anyhow::Ok(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    Ok(times)
}

async fn read<R: Remote>(remote: &R, key: &str, value: &[u8]) -> Result<()> {
    let is_right = remote.get(key, |found| found == value).await?;
    ensure!(is_right == Some(true), "a read found nothing, or another value");
    Ok(())
}

/// Exchanges of many values by one task: the median time and what 99 of 100 took at most, values
/// a second, and bytes for each value.
fn get_many<R: Remote>(remote: &R, round: &Round<'_>, mut random: Random) -> Result<Vec<f64>> {
    let mut batches = |count: usize| -> Vec<Vec<usize>> {
        let mut batch = || (0..AT_ONCE).map(|_| random.below(round.entries.len())).collect();
        (0..count).map(|_| batch()).collect()
    };
    let (warm_up, timed) = (batches(round.operations / 10), batches(round.operations));
    let values = (timed.len() * AT_ONCE) as f64;
    round.runtime.block_on(async {
        in_batches(remote, round.entries, warm_up).await?;
        let before = round.servers.bytes().await?;
        let mut times = in_batches(remote, round.entries, timed).await?;
        let bytes = round.servers.bytes_since(before).await?;
        let took: Duration = times.iter().sum();
        let (half, most) = (share(&mut times, 0.5), share(&mut times, 0.99));
        Ok(vec![half, most, values / took.as_secs_f64(), bytes / values])
    })
}

async fn in_batches<R: Remote>(
    remote: &R,
    entries: &Entries,
    batches: Vec<Vec<usize>>,
) -> Result<Vec<Duration>> {
    let (remote, entries) = (remote.clone(), Arc::clone(entries));
    let in_task = async move {
        let mut times = Vec::with_capacity(batches.len());
        for batch in batches {
            let batch: Vec<_> = batch.iter().map(|number| &entries[*number]).collect();
            let keys: Vec<_> = batch.iter().map(|(key, _)| key.as_str()).collect();
            let mut right = 0;
            let began = Instant::now();
            remote
                .get_many(&keys, |at, found| right += usize::from(found == &*batch[at].1))
                .await?;
            times.push(began.elapsed());
            ensure!(right == AT_ONCE, "a read found nothing, or another value");
        }
        Ok(times)
    };
    tokio::spawn(in_task).await?
}

/// One task reads one value after the other, by turns from `remote` and from the bare client: the
/// median and what 99 of 100 took at most, and by how much the median is longer than theirs.
fn beside<'a, R: Remote>(remote: &'a R, bare: &'a BareRedis, round: &'a Round<'a>) -> Engine<'a> {
    let mut seed = 0;
    Engine::new(R::NAME, R::version(), move || {
        seed += 1;
        let mut random = Random::new(seed);
        let warm_up = round.operations / 10;
        let all = warm_up + round.operations;
        let order: Vec<_> = (0..all).map(|_| random.below(round.entries.len())).collect();
        let (remote, bare, entries) = (remote.clone(), bare.clone(), Arc::clone(round.entries));
        let in_task = async move {
            let (mut ours, mut theirs) = (Vec::with_capacity(all), Vec::with_capacity(all));
            for number in order {
                let (key, value) = &entries[number];
                let began = Instant::now();
                read(&bare, key, value).await?;
                let between = Instant::now();
                read(&remote, key, value).await?;
                ours.push(between.elapsed());
                theirs.push(between - began);
            }
            let (ours, theirs) = (&mut ours[warm_up..], &mut theirs[warm_up..]);
            let half = share(ours, 0.5);
            Ok(vec![half, share(ours, 0.99), half - share(theirs, 0.5)])
        };
        round.runtime.block_on(async { tokio::spawn(in_task).await? })
    })
}

/// What this share of `times` was at most, in microseconds.
fn share(times: &mut [Duration], share: f64) -> f64 {
    let at = (times.len() as f64 * share) as usize;
    let at = at.min(times.len().saturating_sub(1));
    if times.is_empty() { 0.0 } else { times.select_nth_unstable(at).1.as_nanos() as f64 / 1e3 }
}
