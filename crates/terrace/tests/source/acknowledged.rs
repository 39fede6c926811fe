//! What was acknowledged as written behind, after a kill, a power failure, and on a disk that
//! fails.
//!
//! A process of its own writes behind, into a source that is a log: a line for each write, with the
//! key, the version and the id.

mod failing;
mod flipped;
mod killed;
mod power;

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use terrace::{Acknowledge, Change, Journal, Memory, Space, Terrace, WriteBatch, WriteBehind};

use crate::support::{ends, ms};

/// What the writing process is told to do: `first writes tasks longest directory`.
const CHILD: &str = "TERRACE_TEST_BEHIND";

/// A process that runs the test `name` as one that writes.
fn child(program: &mut Command, name: &str, order: &Order) {
    program
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, format!("{order}"))
        .stdout(std::process::Stdio::piped());
}

/// What a process is to write.
struct Order {
    first: u64,
    /// How many versions each task writes.
    writes: u64,
    tasks: u64,
    /// Bytes of the longest values, roughly.
    longest: u64,
    directory: PathBuf,
}

impl std::fmt::Display for Order {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { first, writes, tasks, longest, directory } = self;
        write!(formatter, "{first} {writes} {tasks} {longest} {}", directory.display())
    }
}

impl Order {
    /// What this process was told, if it is one that writes.
    fn given() -> Option<Self> {
        let given = std::env::var(CHILD).ok()?;
        let mut words = given.splitn(5, ' ');
        let mut number = || words.next().unwrap().parse().unwrap();
        let (first, writes, tasks, longest) = (number(), number(), number(), number());
        let directory = words.next().unwrap().into();
        Some(Self { first, writes, tasks, longest, directory })
    }
}

/// The value of a version of a key: its length and all its bytes follow from both.
fn value(key: &str, version: u64, longest: u64) -> String {
    let length = version.wrapping_mul(0x9E37_79B9_7F4A_7C15) % longest.max(1);
    let mut value = format!("{version};{longest};");
    while (value.len() as u64) < length {
        value.push_str(key);
    }
    value
}

fn is_value(key: &str, found: &str) -> Option<u64> {
    let mut parts = found.split(';');
    let (version, longest) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    (found == value(key, version, longest)).then_some(version)
}

async fn start(directory: &Path) -> Result<Terrace, terrace::BuildError> {
    Terrace::builder()
        .memory(Memory::bytes(16 << 20))
        .journal(Journal::at(directory.join("journal")))
        .build()
        .await
}

/// The space over the log in a directory.
fn space(terrace: &Terrace, directory: &Path) -> Space<str, String> {
    let log: Arc<Path> = directory.join("source.log").into();
    terrace
        .space::<str, String>("space")
        .writer(move |batch: WriteBatch<str, String>| {
            let log = Arc::clone(&log);
            async move { append(&log, batch) }
        })
        .write_behind(WriteBehind::default().linger(ms(2)).max_batch(7).retry(ms(1), ms(10)))
        .build()
        .unwrap()
}

fn append(log: &Path, batch: WriteBatch<str, String>) -> std::io::Result<()> {
    let mut lines = String::from("\n");
    for write in batch {
        let Change::Insert(found) = write.change else { continue };
        let version = is_value(&write.key, &found).expect("the value that was written");
        lines += &format!("{} {version} {} .\n", write.key, write.id);
    }
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(log)?;
    file.write_all(lines.as_bytes())?;
    file.sync_data()
}

/// What a source was told: for each key its versions and ids, in order.
type Log = HashMap<String, Vec<(u64, String)>>;

fn read(log: &str) -> Log {
    let mut read = Log::new();
    for line in log.lines() {
        // A line that was cut off has no end.
        if let [key, version, id, "."] = line.split(' ').collect::<Vec<_>>()[..] {
            let version = version.parse().unwrap();
            read.entry(key.into()).or_default().push((version, id.into()));
        }
    }
    read
}

/// Order kept, and an id for each write: the same when it is repeated, and no other's.
#[track_caller]
fn is_in_order(log: &Log, what: &str) {
    let mut ids = HashMap::new();
    for (key, told) in log {
        for pair in told.windows(2) {
            assert!(pair[0].0 <= pair[1].0, "{what}: {key} went back: {pair:?}");
        }
        for (version, id) in told {
            let known = ids.entry(id).or_insert((key, version));
            assert_eq!(*known, (key, version), "{what}: two writes of one id");
        }
        let mut versions = HashMap::new();
        for (version, id) in told {
            let known = versions.entry(version).or_insert(id);
            assert_eq!(*known, id, "{what}: {key} {version} has two ids");
        }
    }
}

/// What was acknowledged last of each key.
type Acknowledged = HashMap<String, u64>;

/// Takes note of `level key version`, if a line says so of one of these levels.
fn note(acknowledged: &mut Acknowledged, line: &str, levels: &[&str]) -> bool {
    // The last line may be cut off: it ends with a dot.
    let [level, key, version, "."] = line.split(' ').collect::<Vec<_>>()[..] else { return false };
    let Ok(version) = version.parse() else { return false };
    if levels.contains(&level) {
        acknowledged.insert(key.into(), version);
    }
    levels.contains(&level)
}

/// Opens the journal as a new process would, and has everything written.
fn recover(directory: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let terrace = start(directory).await.expect("the journal opens");
        let space = space(&terrace, directory);
        ends("a flush", space.flush()).await.unwrap();
        assert!(terrace.close().await);
    });
}

/// Nothing acknowledged is missing in the source.
#[track_caller]
fn has_all(log: &Log, acknowledged: &Acknowledged, what: &str) {
    for (key, version) in acknowledged {
        let last = log.get(key).and_then(|told| told.last()).map(|(version, _)| *version);
        assert!(last >= Some(*version), "{what}: {key} {version} is lost: {last:?}");
    }
}

/// Writes behind as it was told to, and says what was acknowledged.
fn write_behind(order: &Order) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        println!("started");
        let terrace = match start(&order.directory).await {
            Ok(terrace) => terrace,
            Err(error) => return println!("refused: {error}"),
        };
        let space = space(&terrace, &order.directory);
        let (first, last) = (order.first, order.first.saturating_add(order.writes));
        let longest = order.longest;
        let tasks = (0..order.tasks).map(|task| {
            let space = space.clone();
            tokio::spawn(async move {
                for version in first..last {
                    let key = format!("{task}/{}", version % 5);
                    let (level, name) = match version % 3 {
                        0 => (Acknowledge::Synced, "synced"),
                        1 => (Acknowledge::Journal, "journal"),
                        _ => (Acknowledge::Memory, "memory"),
                    };
                    let insert = space.insert_behind(&key, value(&key, version, longest));
                    match insert.acknowledge(level).await {
                        Ok(_) => println!("{name} {key} {version} ."),
                        Err(error) => println!("failed {key} {version} . {error}"),
                    }
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        println!("done");
    });
}
