//! The n-th operation on the files of a disk tier fails.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rusqlite::Connection;
use terrace::authority::Authority as _;
use terrace::key::StoredKey;
use terrace::ledger::{Name, Stamp};
use terrace::store::{Put, Store, Stored};
use terrace::{Disk, DiskStore};

use crate::support::is_full;

const DIRECTORY: &str = "TERRACE_TEST_NTH";
const TEST: &str = "nth::d6_the_nth_operation_on_a_disk_tier_fails";

/// Keys that are stored anew, and two more: one that is removed, and one that is invalidated.
const STORED: u64 = 6;
const REMOVED: u64 = 6;
const NAMED: u64 = 7;
const KEYS: u64 = 8;

fn key(number: u64) -> StoredKey {
    StoredKey::new("", "space", 0, number.to_string().as_bytes())
}

/// Every other one is a file.
fn value(number: u64, version: u8) -> Vec<u8> {
    vec![version; if number.is_multiple_of(2) { 400 } else { 40_000 }]
}

fn disk(directory: &Path) -> Disk {
    Disk::at(directory).max_bytes(4 << 20)
}

async fn put(store: &DiskStore, number: u64, version: u8) -> bool {
    let Ok(now) = store.snapshot().await else { return false };
    let put = Put {
        key: key(number),
        frame: value(number, version).into(),
        expires: None,
        stamp: Stamp { incarnation: now.incarnation, number: now.last },
        tags: Arc::default(),
    };
    matches!(store.put(&[put]).await.as_deref(), Ok([Stored::Yes]))
}

/// The version under a key, `0` for none; nothing if it cannot be read.
async fn get(store: &DiskStore, number: u64) -> Option<u8> {
    let mut found = store.get(&[key(number)]).await.ok()?;
    let Some(found) = found.pop()? else { return Some(0) };
    // No frame: a cache would take it for unreadable.
    if found.is_empty() {
        return Some(0);
    }
    let version = found[0];
    assert!(found == value(number, version), "{number} is torn");
    Some(version)
}

/// What the process does whose operations fail: it says what was acknowledged.
async fn work(directory: &Path) {
    let store = match disk(directory).open() {
        Ok(store) => store,
        Err(error) => return println!("\nrefused {error}"),
    };
    for number in 0..STORED {
        if put(&store, number, 2).await {
            println!("\nstored {number}");
            let found = get(&store, number).await;
            assert!(matches!(found, None | Some(2)), "{number}: {found:?}");
        }
    }
    if store.remove(&[key(REMOVED)]).await.is_ok() {
        println!("\nremoved {REMOVED}");
    }
    if store.append(&[Name::Key(key(NAMED).name())]).await.is_ok() {
        println!("\nnamed {NAMED}");
        let found = get(&store, NAMED).await;
        assert!(matches!(found, None | Some(0)), "{found:?}");
    }
    let _ = store.close().await;
    println!("\ndone");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// For every n until nothing is left to fail: the process neither panics nor says that something is
/// stored or gone that is not so, and the next one opens what it left.
#[test]
fn d6_the_nth_operation_on_a_disk_tier_fails() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return runtime().block_on(work(Path::new(&directory)));
    }
    let before = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = disk(before.path()).open().unwrap();
        for number in 0..KEYS {
            assert!(put(&store, number, 1).await);
        }
        store.close().await.unwrap();
    });
    let mut kinds = vec![
        ("pwrite64,ftruncate", "EIO"),
        ("fsync,fdatasync", "EIO"),
        ("unlink,unlinkat", "EIO"),
        ("openat", "EMFILE"),
    ];
    if is_full() {
        kinds.extend([("pwrite64,ftruncate", "ENOSPC"), ("fsync,fdatasync", "ENOSPC")]);
        kinds.extend([("pread64", "EIO"), ("openat", "EIO"), ("openat", "EACCES")]);
    }
    for (calls, error) in kinds {
        let mut nth = 1;
        while fails_at(before.path(), calls, error, nth) {
            nth += 1;
        }
        println!("{calls}: {} were made to fail with {error}", nth - 1);
        assert!(nth > 2, "{calls}: nothing was made to fail");
    }
}

/// `false` if there was no n-th operation.
fn fails_at(before: &Path, calls: &str, error: &str, nth: usize) -> bool {
    let what = format!("{calls} fails with {error} at {nth}");
    let parent = tempfile::tempdir().unwrap();
    let (trace, directory) = (parent.path().join("trace"), parent.path().join("cache"));
    fs::create_dir(&directory).unwrap();
    copy(before, &directory);
    let mut program = Command::new("strace");
    program.args(["-f", "-qq", "-e", "signal=none", "-o"]).arg(&trace);
    for path in paths(&directory) {
        program.arg("-P").arg(path);
    }
    program.args(["-e", &format!("inject={calls}:error={error}:when={nth}")]);
    program.arg(std::env::current_exe().unwrap()).args(["--exact", TEST, "--nocapture"]);
    let output = program.env(DIRECTORY, &directory).output().expect("strace is installed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{what}: {said}\n{complaint}");
    let was_injected = fs::read_to_string(&trace).unwrap().contains("(INJECTED)");
    let acknowledged = |word: &str| -> BTreeSet<u64> {
        let lines = said.lines().filter_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
        lines.map(|number| number.parse().unwrap()).collect()
    };
    let is_refused = said.lines().any(|line| line.starts_with("refused "));
    let stored = acknowledged("stored");
    let gone: BTreeSet<_> = &acknowledged("removed") | &acknowledged("named");
    assert!(is_refused || said.contains("\ndone"), "{what}: {said}");
    if !was_injected {
        assert_eq!((stored.len(), gone.len()), (STORED as usize, 2), "{what}: {said}");
    }
    runtime().block_on(async {
        let store = disk(&directory).open().unwrap_or_else(|error| panic!("{what}: {error}"));
        for number in 0..KEYS {
            let found = get(&store, number).await;
            let expected: &[u8] = match number {
                _ if is_refused => &[1],
                // A disk without room is given some back, for which anything may leave.
                _ if stored.contains(&number) && error == "ENOSPC" => &[0, 2],
                _ if stored.contains(&number) => &[2],
                _ if gone.contains(&number) => &[0],
                // What was refused may be there or not; what was under it may be gone.
                _ => &[0, 1, 2],
            };
            let is_expected = found.is_some_and(|found| expected.contains(&found));
            assert!(is_expected, "{what}: {found:?} under {number}: {said}");
        }
        // It goes on as if nothing had been.
        assert!(put(&store, 0, 3).await && put(&store, 1, 3).await, "{what}");
        store.close().await.unwrap();
    });
    let database = Connection::open(directory.join("terrace.db")).unwrap();
    let verdict: String =
        database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok", "{what}");
    assert!(!directory.join("terrace.db.damaged-1").exists(), "{what}");
    was_injected
}

/// What operations are made to fail on. What is in files of values is not among it: their names are
/// not known before.
fn paths(directory: &Path) -> Vec<PathBuf> {
    let names =
        ["", "terrace.lock", "terrace.turn", "terrace.db", "terrace.db-wal", "terrace.db-shm"];
    let mut paths: Vec<_> = names.iter().map(|name| directory.join(name)).collect();
    let folders = fs::read_dir(directory).unwrap().map(|found| found.unwrap().path());
    for folder in folders.filter(|path| path.is_dir()) {
        paths.extend(
            (0..=255)
                .map(|shard: u8| folder.join(format!("{shard:02x}")))
                .filter(|shard| shard.exists()),
        );
        paths.push(folder);
    }
    paths
}

fn copy(from: &Path, to: &Path) {
    for found in fs::read_dir(from).unwrap() {
        let found = found.unwrap();
        let copied = to.join(found.file_name());
        if found.path().is_dir() {
            fs::create_dir(&copied).unwrap();
            copy(&found.path(), &copied);
        } else {
            fs::copy(found.path(), copied).unwrap();
        }
    }
}
