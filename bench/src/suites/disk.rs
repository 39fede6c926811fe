//! `disk`: reads and writes of the disk tier, with nothing in memory.
//!
//! Values are random bytes, which no compressor makes smaller, and every write brings others:
//! SQLite notices when a row stays as it was. Both sides keep their database for the whole run;
//! it is read into the operating system's cache before each round.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::Request;
use crate::engines::Disk;
use crate::engines::bare_sqlite::BareSqlite;
use crate::engines::terrace::TerraceDisk;
use crate::harness::{Better, Case, Engine, Metric, Pace, compare};
use crate::load::{Random, text_key};
use crate::report::Report;

pub const SUITE: &str = "disk";

pub const CASES: &[&str] = &["read-1k", "write-8-tasks"];

const METRICS: &[Metric] = &[Metric { name: "us", unit: "us", better: Better::Lower }];

const VALUE_BYTES: usize = 1024;

const WRITERS: usize = 8;

type Entries = Arc<Vec<(String, Bytes)>>;

/// One side: a database that is filled.
struct Side<D> {
    disk: Arc<D>,
    directory: TempDir,
}

impl<D: Disk> Side<D> {
    async fn new(entries: &Entries) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let disk = D::open(directory.path()).await?;
        disk.fill(entries).await?;
        Ok(Self { disk: Arc::new(disk), directory })
    }
}

/// What an engine measures in a round, given numbers of its own to draw keys with.
struct Round<'a> {
    runtime: &'a Runtime,
    entries: &'a Entries,
    operations: usize,
}

pub fn run(request: &Request, report: &mut Report) -> Result<()> {
    let runtime = Runtime::new().context("no runtime")?;
    let entries = Arc::new(entries(request.size(20_000, 100_000)));
    let ours = runtime.block_on(Side::<TerraceDisk>::new(&entries));
    let bare = runtime.block_on(Side::<BareSqlite>::new(&entries));

    for &name in CASES.iter().filter(|case| request.wants(case)) {
        let case = Case { suite: SUITE, name, metrics: METRICS };
        let operations = match name {
            "read-1k" => request.size(10_000, 20_000),
            _ => request.size(2_000, 8_000),
        };
        let round = &Round { runtime: &runtime, entries: &entries, operations };
        let engines = match name {
            "read-1k" => vec![engine(&ours, round, read), engine(&bare, round, read)],
            "write-8-tasks" => vec![engine(&ours, round, write), engine(&bare, round, write)],
            _ => unreachable!("no case of this suite: {name}"),
        };
        // Longer says no more about two engines.
        let pace = Pace { most_rounds: 100, ..request.pace(CASES.len()) };
        report.add(name, compare(&case, engines, pace))?;
    }
    if let Ok(Side { disk, .. }) = ours
        && let Some(disk) = Arc::into_inner(disk)
    {
        runtime.block_on(disk.close());
    }
    Ok(())
}

fn entries(count: usize) -> Vec<(String, Bytes)> {
    let mut random = Random::new(44);
    (0..count).map(|number| (text_key(number), value(number, &mut random))).collect()
}

/// A value for the key of this number: it begins with the number.
fn value(number: usize, random: &mut Random) -> Bytes {
    let mut value = Vec::with_capacity(VALUE_BYTES);
    value.extend((number as u64).to_le_bytes());
    while value.len() < VALUE_BYTES {
        value.extend(random.number().to_le_bytes());
    }
    value.into()
}

fn is_value_of(value: &[u8], number: usize) -> bool {
    value.len() == VALUE_BYTES && value.starts_with(&(number as u64).to_le_bytes())
}

fn engine<'a, D: Disk>(
    side: &'a Result<Side<D>>,
    round: &'a Round<'a>,
    measure: fn(&Side<D>, &Round<'_>, Random) -> Result<f64>,
) -> Engine<'a> {
    let mut seed = 0;
    Engine::new(D::NAME, D::version(), move || {
        let side = side.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        // The same keys for both sides in a round, others in the next.
        seed += 1;
        read_in(side.directory.path())?;
        Ok(vec![measure(side, round, Random::new(seed))?])
    })
}

/// Reads one after the other: microseconds a read.
fn read<D: Disk>(side: &Side<D>, round: &Round<'_>, mut random: Random) -> Result<f64> {
    let entries = round.entries;
    let order: Vec<_> = (0..round.operations).map(|_| random.below(entries.len())).collect();
    let (warm_up, timed) = order.split_at(round.operations / 5);
    round.runtime.block_on(async {
        let mut began = Instant::now();
        for (position, number) in warm_up.iter().chain(timed).enumerate() {
            if position == warm_up.len() {
                began = Instant::now();
            }
            let (key, _) = &entries[*number];
            let is_right = side.disk.read(key, |found| is_value_of(found, *number)).await?;
            ensure!(is_right == Some(true), "a read found nothing, or another value");
        }
        Ok(began.elapsed().as_secs_f64() * 1e6 / timed.len() as f64)
    })
}

/// Writes by tasks that each wait for one write before the next: microseconds a value.
fn write<D: Disk>(side: &Side<D>, round: &Round<'_>, mut random: Random) -> Result<f64> {
    let each = round.operations / WRITERS;
    let mut write = || {
        let number = random.below(round.entries.len());
        (number, value(number, &mut random))
    };
    let orders: Vec<Vec<_>> = (0..WRITERS).map(|_| (0..each).map(|_| write()).collect()).collect();
    round.runtime.block_on(async {
        let mut tasks = Vec::new();
        let began = Instant::now();
        for order in orders {
            let (disk, entries) = (Arc::clone(&side.disk), Arc::clone(round.entries));
            tasks.push(tokio::spawn(async move {
                for (number, value) in order {
                    disk.write(&entries[number].0, &value).await?;
                }
                anyhow::Ok(())
            }));
        }
        for task in tasks {
            task.await??;
        }
        Ok(began.elapsed().as_secs_f64() * 1e6 / (each * WRITERS) as f64)
    })
}

/// Has the operating system read all files of a directory, which it may have dropped meanwhile.
fn read_in(directory: &Path) -> Result<()> {
    for file in std::fs::read_dir(directory)? {
        let file = file?;
        if file.file_type()?.is_file() {
            std::io::copy(&mut std::fs::File::open(file.path())?, &mut std::io::sink())?;
        }
    }
    Ok(())
}
