//! The disk tier stays within its bound: all of the directory, at every instant, whoever writes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use terrace::clock::WallTime;
use terrace::key::StoredKey;
use terrace::ledger::Stamp;
use terrace::store::{Put, Store, Stored};
use terrace::{BuildError, Compression, Disk, DiskEviction, DiskStore, Terrace, Tier};

use crate::support::{count, eventually, random};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn key(name: &str) -> StoredKey {
    StoredKey::new("", "space", 0, name.as_bytes())
}

async fn put(store: &DiskStore, name: &str, frame: Vec<u8>, expires: Option<u64>) -> Put {
    let now = store.authority().unwrap().snapshot().await.unwrap();
    Put {
        key: key(name),
        frame: frame.into(),
        expires: expires.map(WallTime::from_millis),
        stamp: Stamp { incarnation: now.incarnation, number: now.last },
        tags: Arc::default(),
    }
}

async fn store_one(store: &DiskStore, name: &str, frame: Vec<u8>, expires: Option<u64>) {
    let put = put(store, name, frame, expires).await;
    assert_eq!(store.put(&[put]).await.unwrap(), [Stored::Yes], "{name}");
}

async fn has(store: &DiskStore, name: &str) -> bool {
    store.get(&[key(name)]).await.unwrap()[0].is_some()
}

/// What `du` says: bytes of blocks, of directories too.
#[cfg(unix)]
fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    // What is removed meanwhile takes nothing.
    let Ok(found) = fs::symlink_metadata(path) else { return 0 };
    let inside = fs::read_dir(path).into_iter().flatten().flatten();
    found.blocks() * 512 + inside.map(|file| disk_bytes(&file.path())).sum::<u64>()
}

/// Watches how large a directory is while `work` runs: how often it was looked at, and the most.
fn watched<T>(directory: &Path, work: impl FnOnce() -> T) -> (T, u64, u64) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let (mut looks, mut most) = (0, 0);
            while !done.load(Ordering::Acquire) {
                (looks, most) = (looks + 1, most.max(disk_bytes(directory)));
            }
            (looks, most)
        });
        let output = work();
        done.store(true, Ordering::Release);
        let (looks, most) = watcher.join().unwrap();
        (output, looks, most)
    })
}

/// Writes values of all sizes until so many bytes are written.
async fn write_much(store: &DiskStore, task: usize, bytes: usize, largest: usize) {
    let mut random = random("values that fill a disk");
    let mut written = 0;
    while written < bytes {
        // Many small ones, and a few that take files.
        let most = if random.u8(..8) == 0 { largest } else { largest.min(2 * KIB) };
        let size = random.usize(1..=most);
        let name = format!("{task}: {}", random.u32(..1_000_000));
        let put = put(store, &name, vec![random.u8(..); size], None).await;
        match store.put(std::slice::from_ref(&put)).await.unwrap()[..] {
            [Stored::Yes] => {}
            ref other => panic!("{other:?}"),
        }
        written += size;
    }
}

fn fill_and_watch(most: usize, tasks: usize, bytes: usize, largest: usize, eviction: DiskEviction) {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::at(directory.path()).max_bytes(most as u64).eviction(eviction);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let store = runtime.block_on(async { disk.open() }).unwrap();
    let ((), looks, peak) = watched(directory.path(), || {
        runtime.block_on(async {
            let tasks: Vec<_> = (0..tasks)
                .map(|task| {
                    let store = store.clone();
                    tokio::spawn(
                        async move { write_much(&store, task, bytes / tasks, largest).await },
                    )
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
        });
    });
    let after = disk_bytes(directory.path());
    let usage = runtime.block_on(store.usage()).unwrap();
    println!("{eviction:?}: peak {peak}, after {after} of {most}, {looks} looks, {usage:?}");
    assert!(looks > 10, "{looks}");
    assert!(peak <= most as u64, "{peak} bytes are more than {most}");
    assert!(after <= most as u64 && after * 10 >= most as u64 * 9, "{after} of {most}");
    assert!(usage.evicted > 0 && usage.files > 0, "{usage:?}");
    // A checkpoint may be made between the two.
    assert!(usage.disk_bytes.abs_diff(after) < most as u64 / 16, "{after} and {usage:?}");
    runtime.block_on(store.close()).unwrap();
    let after = disk_bytes(directory.path());
    assert!(after * 10 >= most as u64 * 9, "{after} of {most} when it is closed");
}

/// After ten times its bound was written, it takes 90 to 100 % of it, and never took more.
#[cfg(unix)]
#[test]
fn ten_times_the_bound_fills_nine_tenths_of_it() {
    let most = count(32, 256) * MIB;
    let times = [(DiskEviction::Lru, 10), (DiskEviction::Lfu, 3), (DiskEviction::Ttl, 3)];
    for (eviction, times) in times {
        fill_and_watch(most, 4, times * most, 300 * KIB, eviction);
    }
}

#[cfg(unix)]
#[test]
fn small_entries_alone_stay_within_the_bound() {
    let most = count(8, 64) * MIB;
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::at(directory.path()).max_bytes(most as u64);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let store = runtime.block_on(async { disk.open() }).unwrap();
    let ((), looks, peak) = watched(directory.path(), || {
        runtime.block_on(async {
            let one = put(&store, "one", vec![b'f'; 200], None).await;
            for round in 0..most / 200 / 1000 {
                let named = |number| Put { key: key(&format!("{round} {number}")), ..one.clone() };
                let puts: Vec<_> = (0..1000).map(named).collect();
                store.put(&puts).await.unwrap();
            }
        });
    });
    let usage = runtime.block_on(store.usage()).unwrap();
    println!("peak {peak} of {most}, {looks} looks, {usage:?}");
    assert!(peak <= most as u64, "{peak} bytes are more than {most}");
    assert!(usage.evicted > 0);
    // What b-trees leave unused is the price: but most of it is entries.
    assert!(usage.bytes * 4 > most as u64, "{usage:?}");
    runtime.block_on(store.close()).unwrap();
}

/// Four processes write into one directory.
#[cfg(unix)]
#[test]
fn processes_together_stay_within_the_bound() {
    const CHILD: &str = "TERRACE_TEST_BOUND";
    let most = 16 * MIB;
    if let Some(directory) = std::env::var_os(CHILD) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let disk = Disk::at(directory).max_bytes(most as u64);
        let store = runtime.block_on(async { disk.open() }).unwrap();
        let task = std::process::id() as usize;
        runtime.block_on(write_much(&store, task, count(16, 160) * MIB, 200 * KIB));
        println!("wrote it all");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (said, looks, peak) = watched(directory.path(), || {
        let children: Vec<_> = (0..4)
            .map(|_| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "bound::processes_together_stay_within_the_bound"])
                    .arg("--nocapture")
                    .env(CHILD, directory.path())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        children.into_iter().map(|child| child.wait_with_output().unwrap()).collect::<Vec<_>>()
    });
    for child in said {
        let text = String::from_utf8_lossy(&child.stdout);
        let complained = String::from_utf8_lossy(&child.stderr);
        assert!(text.contains("wrote it all"), "{text}\n{complained}");
    }
    assert!(looks > 10, "{looks}");
    assert!(peak <= most as u64, "{peak} bytes are more than {most}");
    assert!(peak * 10 >= most as u64 * 9, "it was never full: {peak}");
    whole(directory.path());
}

/// The database is without damage, and what it counts is what there is.
fn whole(directory: &Path) {
    let database = Connection::open(directory.join("terrace.db")).unwrap();
    let verdict: String =
        database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    let numbers = |sql: &str| -> (i64, i64, i64) {
        database.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap()
    };
    let counted = numbers("SELECT entries, files, file_bytes FROM usage");
    let there = numbers(
        "SELECT (SELECT count(*) FROM entry), (SELECT count(*) FROM file),
             (SELECT coalesce(sum((bytes + 4095) / 4096 * 4096), 0) FROM file)",
    );
    assert_eq!(counted, there);
    let files = files_in(directory);
    let mut statement = database.prepare("SELECT id FROM file").unwrap();
    let known: BTreeSet<String> = statement
        .query_map([], |row| row.get::<_, i64>(0))
        .unwrap()
        .map(|id| format!("{:016x}", id.unwrap().cast_unsigned()))
        .collect();
    let strangers: Vec<_> = files.difference(&known).collect();
    assert!(strangers.is_empty(), "files that no row knows: {strangers:?}");
}

/// The numbers of all files of large values.
fn files_in(directory: &Path) -> BTreeSet<String> {
    let inside = |path: &Path| fs::read_dir(path).unwrap().map(|file| file.unwrap());
    let name = |file: &fs::DirEntry| file.file_name().into_string().unwrap();
    let folders = inside(directory).filter(|file| name(file).starts_with("files-"));
    let shards = folders.flat_map(|folder| inside(&folder.path()));
    shards
        .flat_map(|shard| inside(&shard.path()).map(move |file| name(&shard) + &name(&file)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_full_counts_right() {
    let directory = tempfile::tempdir().unwrap();
    let disk =
        Tier::from(Disk::at(directory.path()).max_bytes(8 << 20)).compression(Compression::off());
    let terrace = Terrace::builder().tier("disk", disk).build().await.unwrap();
    let mut random = random("values of eight tasks");
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let (terrace, mut random) = (terrace.clone(), random.fork());
            tokio::spawn(async move {
                for _ in 0..count(150, 3_000) {
                    let key = format!("task {}: {}", (task + random.usize(..2)) % 8, random.u8(..));
                    match random.u8(..10) {
                        0 => drop(terrace.invalidate(&key).await.unwrap()),
                        1 => drop(terrace.get::<String>(&key).await.unwrap()),
                        _ => {
                            let value = "v".repeat(random.usize(..64 * KIB));
                            let ttl = Duration::from_secs(random.u64(60..600));
                            let _ = terrace.set(&key, &value).ttl(ttl).await.unwrap();
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let stats = terrace.stats().await.tiers[0].clone();
    assert!(stats.evicted > 0 && stats.files > 0 && stats.disk_bytes > 4 << 20, "{stats:?}");
    assert_eq!(stats.traffic.errors, 0);
    assert!(terrace.close().await);
    whole(directory.path());
}

/// Fills a store of 8 MiB with values of 512 KiB, until some had to leave: who is there now, in the
/// order in which they came.
async fn filled(directory: &Path, eviction: DiskEviction) -> (DiskStore, Vec<String>) {
    let store = Disk::at(directory).max_bytes(8 << 20).eviction(eviction).open().unwrap();
    let mut names = Vec::new();
    while store.usage().await.unwrap().evicted == 0 {
        let name = names.len().to_string();
        // The later they came, the sooner they expire.
        store_one(&store, &name, vec![1; 512 * KIB], Some(1_000_000 - names.len() as u64)).await;
        names.push(name);
    }
    // Listing them is no use of them.
    let there = store.scan(None, 1_000).await.unwrap();
    names.retain(|name| there.iter().any(|(found, _)| *found == key(name)));
    assert!(names.len() > 5, "{names:?}");
    (store, names)
}

/// Whether it is there; to look is no use of it.
async fn is_listed(store: &DiskStore, name: &str) -> bool {
    store.scan(None, 1_000).await.unwrap().iter().any(|(found, _)| *found == key(name))
}

/// Stores more until `name` had to leave.
async fn push_out(store: &DiskStore, name: &str) {
    for more in 0..30 {
        if !is_listed(store, name).await {
            return;
        }
        store_more(store, &format!("to push out {name} {more}"), 1).await;
    }
    panic!("{name} stays for ever");
}

/// Stores more, each as large as those that are there.
async fn store_more(store: &DiskStore, what: &str, count: usize) {
    for more in 0..count {
        store_one(store, &format!("{what} {more}"), vec![2; 512 * KIB], None).await;
    }
}

#[tokio::test]
async fn what_was_not_used_for_the_longest_time_leaves_first() {
    let directory = tempfile::tempdir().unwrap();
    let (store, names) = filled(directory.path(), DiskEviction::Lru).await;
    assert_ne!(names[0], "0", "the oldest one left");
    assert!(has(&store, &names[0]).await, "and the next is used again");
    push_out(&store, &names[1]).await;
    assert!(is_listed(&store, &names[0]).await, "what was used stays");
}

#[tokio::test]
async fn what_was_used_least_often_leaves_first() {
    let directory = tempfile::tempdir().unwrap();
    let (store, names) = filled(directory.path(), DiskEviction::Lfu).await;
    let popular = &names[..3];
    for _ in 0..5 {
        for name in popular {
            assert!(has(&store, name).await);
        }
    }
    store_more(&store, "more", names.len()).await;
    for name in popular {
        assert!(is_listed(&store, name).await, "{name} is popular");
    }
    // What was popular once does not stay for ever.
    store_more(&store, "even more", 20 * names.len()).await;
    for name in popular {
        assert!(!has(&store, name).await, "{name} was popular long ago");
    }
}

#[tokio::test]
async fn what_expires_soonest_leaves_first() {
    let directory = tempfile::tempdir().unwrap();
    let (store, names) = filled(directory.path(), DiskEviction::Ttl).await;
    assert!(has(&store, "0").await, "it expires last");
    // What never expires leaves after all others.
    store_more(&store, "for ever", 1).await;
    push_out(&store, names.last().unwrap()).await;
    assert!(is_listed(&store, "0").await && is_listed(&store, "for ever 0").await);
}

#[tokio::test]
async fn a_read_writes_nothing_and_is_remembered_when_it_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::at(directory.path()).max_bytes(8 << 20);
    let (store, names) = filled(directory.path(), DiskEviction::Lru).await;
    store.close().await.unwrap();
    let store = disk.open().unwrap();
    let log = directory.path().join("terrace.db-wal");
    let log = || fs::metadata(&log).map_or(0, |found| found.len());
    let before = log();
    for name in &names[..2] {
        assert!(has(&store, name).await);
    }
    assert_eq!(log(), before);
    store.close().await.unwrap();
    let store = disk.open().unwrap();
    push_out(&store, &names[2]).await;
    assert!(is_listed(&store, &names[0]).await && is_listed(&store, &names[1]).await);
}

#[tokio::test]
async fn what_has_expired_is_swept_and_its_room_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = Disk::at(directory.path()).max_bytes(64 << 20).open().unwrap();
    let names = ["one", "two", "three", "ever"];
    for (name, expires) in names.into_iter().zip([Some(1_000), Some(2_000), Some(3_000), None]) {
        for number in 0..100 {
            // In the database, and beside it.
            let frame = vec![b'f'; if number % 10 == 0 { 100 * KIB } else { 20 * KIB }];
            store_one(&store, &format!("{name} {number}"), frame, expires).await;
        }
    }
    let full = disk_bytes(directory.path());
    assert!(full > 10 * MIB as u64, "{full}");
    let left = async |now: u64| {
        store.maintain(WallTime::from_millis(now)).await.unwrap();
        let mut left = 0;
        for name in names {
            left += u8::from(has(&store, &format!("{name} 0")).await);
        }
        left
    };
    assert_eq!(left(0).await, 4);
    assert_eq!(left(999).await, 4);
    assert_eq!(left(1_000).await, 3);
    assert_eq!(left(2_999).await, 2);
    assert_eq!(left(u64::MAX / 4).await, 1, "what never expires stays");
    eventually("the room is given back", async || {
        store.maintain(WallTime::from_millis(5_000)).await.unwrap();
        disk_bytes(directory.path()) < full / 2
    })
    .await;
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.entries, usage.files, usage.evicted), (100, 10, 0));
    store.close().await.unwrap();
    whole(directory.path());
}

#[tokio::test]
async fn a_count_that_is_wrong_comes_right() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::at(directory.path()).max_bytes(8 << 20);
    let store = disk.open().unwrap();
    let database = Connection::open(directory.path().join("terrace.db")).unwrap();
    let wrong = "UPDATE usage SET bytes = 1 << 40, entries = -7, file_bytes = 1 << 40";
    database.execute(wrong, []).unwrap();
    store_one(&store, "first", vec![1; 100], None).await;
    store_one(&store, "second", vec![1; 100 * KIB], None).await;
    assert!(has(&store, "second").await);
    store.close().await.unwrap();
    whole(directory.path());
}

/// A bound that is lowered holds from the next start on.
#[cfg(unix)]
#[tokio::test]
async fn a_lower_bound_is_reached_soon() {
    let directory = tempfile::tempdir().unwrap();
    let store = Disk::at(directory.path()).max_bytes(32 << 20).open().unwrap();
    for number in 0..600 {
        store_one(&store, &number.to_string(), vec![1; 30 * KIB], None).await;
    }
    store.close().await.unwrap();
    assert!(disk_bytes(directory.path()) > 16 << 20);
    let store = Disk::at(directory.path()).max_bytes(8 << 20).open().unwrap();
    // The share of the log has to be free as well before the bound holds for whoever writes.
    eventually("it shrinks", async || {
        store.maintain(WallTime::from_millis(0)).await.unwrap();
        disk_bytes(directory.path()) <= 7 << 20
    })
    .await;
    store_one(&store, "new", vec![1; 30 * KIB], None).await;
    assert!(has(&store, "new").await);
    assert!(disk_bytes(directory.path()) <= 8 << 20);
}

/// Somebody who reads for a long time keeps the write-ahead log from being cut off.
#[cfg(unix)]
#[tokio::test]
async fn a_long_reader_does_not_make_it_grow() {
    let directory = tempfile::tempdir().unwrap();
    let store = Disk::at(directory.path()).max_bytes(8 << 20).open().unwrap();
    store_one(&store, "first", vec![1; 100], None).await;
    let reader = Connection::open(directory.path().join("terrace.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM entry;").unwrap();
    let mut refused = 0;
    for number in 0..200 {
        let put = put(&store, &number.to_string(), vec![1; 30 * KIB], None).await;
        refused += u8::from(store.put(&[put]).await.is_err());
        assert!(disk_bytes(directory.path()) <= 8 << 20);
        if refused > 2 {
            break;
        }
    }
    assert!(refused > 0, "there was no room in the log");
    reader.execute_batch("COMMIT").unwrap();
    store_one(&store, "after", vec![1; 30 * KIB], None).await;
    assert!(has(&store, "after").await);
}

#[test]
fn too_small_a_bound_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    match Disk::at(directory.path()).max_bytes((4 << 20) - 1).open() {
        Err(error @ BuildError::Setting(_)) => assert!(error.to_string().contains("4 MiB")),
        other => panic!("{other:?}"),
    }
}
