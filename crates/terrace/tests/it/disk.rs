//! The disk tier: its settings, its bounds, and what it does with what it finds.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use terrace::clock::WallTime;
use terrace::key::StoredKey;
use terrace::ledger::Stamp;
use terrace::store::{Put, Store, Stored};
use terrace::{BuildError, Compression, Disk, DiskStore, Memory, Terrace, Tier};

use crate::support::{count, ms, random};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn database(directory: &Path) -> Connection {
    Connection::open(directory.join("terrace.db")).expect("the database opens")
}

async fn cache(directory: &Path) -> Terrace {
    Terrace::builder().tier("disk", Disk::at(directory)).build().await.expect("the cache builds")
}

async fn get(terrace: &Terrace, key: &str) -> Option<String> {
    terrace.get::<String>(key).await.expect("a read is no error").map(|value| value.to_string())
}

fn key(name: &str) -> StoredKey {
    StoredKey::new("", "space", 0, name.as_bytes())
}

/// Something to put that the ledger permits. A store does not look into frames.
async fn put(store: &DiskStore, name: &str, size: usize, expires: Option<u64>) -> Put {
    let now = store.authority().unwrap().snapshot().await.unwrap();
    Put {
        key: key(name),
        frame: vec![b'f'; size].into(),
        expires: expires.map(WallTime::from_millis),
        stamp: Stamp { incarnation: now.incarnation, number: now.last },
        tags: Arc::default(),
    }
}

/// Entries and bytes: as they are counted, and as they are.
fn measured(database: &Connection) -> [(u64, u64); 2] {
    database
        .query_row(
            "SELECT entries, bytes, (SELECT count(*) FROM entry),
                 (SELECT coalesce(sum(length(key) + length(frame)), 0) FROM entry) FROM usage",
            [],
            |row| {
                let number = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
                Ok([(number(0)?, number(1)?), (number(2)?, number(3)?)])
            },
        )
        .expect("the database answers")
}

#[tokio::test]
async fn d11_the_sqlite_that_runs_is_safe_and_set_up_as_it_must_be() {
    let directory = tempfile::tempdir().unwrap();
    // New, opened again, and by a second one at the same time.
    let first = Disk::at(directory.path()).open().unwrap();
    first.close().await.unwrap();
    let again = Disk::at(directory.path()).open().unwrap();
    let beside = Disk::at(directory.path()).open().unwrap();
    for store in [again, beside] {
        let settings: BTreeMap<_, _> = store.settings().await.unwrap().into_iter().collect();
        let version: Vec<u32> =
            settings["sqlite.version"].split('.').map(|part| part.parse().unwrap()).collect();
        assert!(version >= vec![3, 51, 3], "{version:?}");
        for connection in ["writer", "reader"] {
            let is = |name: &str, expected: &str| {
                let found = settings.get(&format!("{connection}.{name}"));
                assert_eq!(found.map(String::as_str), Some(expected), "{connection}.{name}");
            };
            is("mmap_size", "0");
            is("trusted_schema", "0");
            is("defensive", "1");
            is("journal_mode", "wal");
            is("cell_size_check", "1");
            is("synchronous", "1");
            is("busy_timeout", "5000");
            is("query_only", if connection == "reader" { "1" } else { "0" });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_stays_below_its_bound_at_every_instant() {
    const MOST: usize = MIB;
    let directory = tempfile::tempdir().unwrap();
    let disk = Tier::from(Disk::at(directory.path()).max_bytes(MOST as u64))
        .compression(Compression::off());
    let terrace = Terrace::builder().tier("disk", disk).build().await.unwrap();

    let done = Arc::new(AtomicBool::new(false));
    let watched = (directory.path().to_owned(), Arc::clone(&done));
    let watcher = std::thread::spawn(move || {
        let (directory, done) = watched;
        let (database, mut samples, mut largest) = (database(&directory), 0_u64, 0);
        while !done.load(Ordering::Acquire) {
            let [counted, stored] = measured(&database);
            assert_eq!(counted, stored, "usage and what is there");
            assert!(stored.1 <= MOST as u64, "{} bytes", stored.1);
            (samples, largest) = (samples + 1, largest.max(stored.1));
        }
        (samples, largest)
    });
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
                            let value = "v".repeat(random.usize(..32 * KIB));
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
    done.store(true, Ordering::Release);
    let (samples, largest) = watcher.join().unwrap();
    assert!(samples > 10, "{samples} samples are not enough");
    assert!(largest > MOST as u64 / 2, "it was never near its bound: {largest}");

    let stats = terrace.stats().await.tiers[0].clone();
    let [counted, stored] = measured(&database(directory.path()));
    assert_eq!(counted, stored);
    assert_eq!((stats.entries, stats.bytes), stored);
    assert!(stats.evicted > 0);
    assert_eq!(stats.traffic.errors, 0);
}

#[tokio::test]
async fn eviction_takes_what_expires_soonest_and_no_more_than_it_must() {
    const SIZE: usize = 100 * KIB;
    let directory = tempfile::tempdir().unwrap();
    let store = Disk::at(directory.path()).max_bytes(10 * SIZE as u64).open().unwrap();
    for number in 0..30_u64 {
        // Every third one is to expire before those that are there.
        let expires = if number % 3 == 0 { 1_000 - number } else { 1_000 + number };
        let put = put(&store, &number.to_string(), SIZE, Some(expires)).await;
        assert_eq!(store.put(&[put]).await.unwrap(), [Stored::Yes]);
        let usage = store.usage().await.unwrap();
        assert_eq!(usage.evicted, number + 1 - usage.entries, "after {number}");
        assert!(usage.bytes <= 10 * SIZE as u64);
        assert_eq!(usage.entries, (number + 1).min(9), "as many as fit, keys included");
    }
    let latest: Vec<StoredKey> = (0..30)
        .filter(|number| number % 3 != 0)
        .rev()
        .take(9)
        .map(|n| key(&n.to_string()))
        .collect();
    assert!(store.get(&latest).await.unwrap().iter().all(Option::is_some));

    // What never expires leaves last, and something that fills it all leaves nothing else.
    let for_ever = put(&store, "for ever", 10 * SIZE - 200, None).await;
    assert_eq!(store.put(&[for_ever]).await.unwrap(), [Stored::Yes]);
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.entries, usage.evicted), (1, 30));
    let soon = put(&store, "soon", SIZE, Some(5)).await;
    assert_eq!(store.put(&[soon]).await.unwrap(), [Stored::Yes]);
    let left = store.get(&[key("for ever"), key("soon")]).await.unwrap();
    assert!(left[0].is_some() && left[1].is_none());
}

#[cfg(unix)]
#[test]
fn d10_private_files_in_spite_of_the_umask() {
    use std::os::unix::fs::PermissionsExt as _;
    const DIRECTORY: &str = "TERRACE_TEST_UMASK";

    let Some(parent) = std::env::var_os(DIRECTORY) else {
        // Only a process of its own can have another umask.
        let parent = tempfile::tempdir().unwrap();
        let child = Command::new("sh")
            .args(["-c", "umask 000; exec \"$0\" \"$@\""])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "disk::d10_private_files_in_spite_of_the_umask", "--nocapture"])
            .env(DIRECTORY, parent.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        let complained = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{said}\n{complained}");
        assert!(said.contains("looked at 11 files"), "{said}");
        return;
    };
    let parent = PathBuf::from(parent);
    let probe = parent.join("probe");
    fs::write(&probe, "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&probe), 0o666, "the umask is 000");

    let directory = parent.join("caches/of/shop");
    let mut files = 0;
    let mut are_private = |names: &[&str]| {
        for level in ["caches", "caches/of", "caches/of/shop"] {
            assert_eq!(mode(&parent.join(level)), 0o700, "{level}");
        }
        let mut found: Vec<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, names);
        for name in names {
            assert_eq!(mode(&directory.join(name)), 0o600, "{name}");
            files += 1;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let use_it = || {
        let terrace = runtime.block_on(cache(&directory));
        let _ = runtime.block_on(async { terrace.set("key", &"v".repeat(MIB)).await.unwrap() });
        terrace
    };
    let open = ["terrace.db", "terrace.db-shm", "terrace.db-wal"];
    let terrace = use_it();
    are_private(&open);
    runtime.block_on(terrace.close());
    fs::write(directory.join("terrace.db"), "garbage".repeat(1_000)).unwrap();
    let terrace = use_it();
    are_private(&[&open[..], &["terrace.db.damaged-1"]].concat());
    runtime.block_on(terrace.close());
    // What was private stays private when it is opened again.
    let terrace = use_it();
    are_private(&["terrace.db", "terrace.db-shm", "terrace.db-wal", "terrace.db.damaged-1"]);
    runtime.block_on(terrace.close());
    println!("looked at {files} files");
}

#[tokio::test]
async fn a_value_that_is_too_large_takes_the_older_one_away() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::at(directory.path()).max_value_bytes(64 * KIB);
    let store = disk.open().unwrap();
    for (size, expected) in [(64 * KIB, Stored::Yes), (64 * KIB + 1, Stored::TooLarge)] {
        let put = put(&store, "key", size, None).await;
        assert_eq!(store.put(&[put]).await.unwrap(), [expected]);
        let is_there = store.get(&[key("key")]).await.unwrap()[0].is_some();
        assert_eq!(is_there, expected == Stored::Yes, "{size} bytes");
    }
    assert_eq!(measured(&database(directory.path())), [(0, 0); 2]);
    store.close().await.unwrap();

    // Through a cache: whatever it compresses to, the value's own size counts.
    let build = async || {
        let memory = Memory::bytes(64 << 20);
        Terrace::builder().memory(memory).tier("disk", disk.clone()).build().await.unwrap()
    };
    let terrace = build().await;
    let _ = terrace.set("key", &"small".to_owned()).forever().await.unwrap();
    assert!(terrace.exists("key").await.unwrap());
    let large = "v".repeat(65 * KIB);
    let settled = terrace.set("key", &large).forever().await.unwrap();
    assert!(settled.is_settled());
    assert_eq!(get(&terrace, "key").await.as_ref(), Some(&large), "memory has it");
    assert_eq!(terrace.stats().await.tiers[1].traffic.refused, 1);
    terrace.close().await;
    let terrace = build().await;
    assert_eq!(get(&terrace, "key").await, None);
}

#[tokio::test]
async fn what_has_expired_is_swept_and_its_room_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = Disk::at(directory.path()).open().unwrap();
    let at = |seconds: u64| Some(seconds * 1_000);
    for (name, expires) in [("one", at(1)), ("two", at(2)), ("three", at(3)), ("ever", None)] {
        let put = put(&store, name, MIB, expires).await;
        assert_eq!(store.put(&[put]).await.unwrap(), [Stored::Yes]);
    }
    let number = |name: &str| -> u32 {
        database(directory.path()).pragma_query_value(None, name, |row| row.get(0)).unwrap()
    };
    let before = number("page_count");
    assert!(before > 4 * MIB as u32 / 4096, "{before}");

    let all = ["one", "two", "three", "ever"].map(key);
    let left = async |now: u64| {
        store.maintain(WallTime::from_millis(now)).await.unwrap();
        let [counted, stored] = measured(&database(directory.path()));
        assert_eq!(counted, stored);
        assert_eq!(store.usage().await.unwrap().entries, stored.0);
        store.get(&all).await.unwrap().iter().map(|frame| u8::from(frame.is_some())).sum::<u8>()
    };
    assert_eq!(left(0).await, 4);
    assert_eq!(left(999).await, 4);
    assert_eq!(left(1_000).await, 3);
    assert_eq!(left(2_999).await, 2);
    assert_eq!(left(u64::MAX / 4).await, 1, "what never expires stays");

    // Each sweep gives back a part of what is free.
    for round in 0..10 {
        let put = put(&store, "short", 1, at(1)).await;
        assert_eq!(store.put(&[put]).await.unwrap(), [Stored::Yes]);
        assert_eq!(left(1_000).await, 1, "round {round}");
    }
    assert!(number("freelist_count") < 10, "{} of {before} are free", number("freelist_count"));
    assert!(number("page_count") < before / 3, "{} of {before}", number("page_count"));
    assert_eq!(store.usage().await.unwrap().evicted, 0, "nobody was evicted");
}

#[tokio::test]
async fn a_sweep_of_very_many_is_done_in_pieces() {
    let directory = tempfile::tempdir().unwrap();
    let store = Disk::at(directory.path()).open().unwrap();
    let one = put(&store, "one", 10, Some(1)).await;
    let puts: Vec<_> =
        (0..10_000).map(|number| Put { key: key(&number.to_string()), ..one.clone() }).collect();
    assert!(store.put(&puts).await.unwrap().iter().all(|stored| *stored == Stored::Yes));
    let mut left = vec![store.usage().await.unwrap().entries];
    while left.last() != Some(&0) {
        store.maintain(WallTime::from_millis(1)).await.unwrap();
        left.push(store.usage().await.unwrap().entries);
        assert!(left.len() < 10, "{left:?}");
    }
    assert!(left.len() > 3, "a bounded piece at a time: {left:?}");
}

/// Opens one new directory after another in five processes of two threads each.
#[test]
fn many_may_open_a_new_directory_at_once() {
    const CHILD: &str = "TERRACE_TEST_OPEN";
    if std::env::var_os(CHILD).is_some() {
        // For each line with a directory, a line with what became of it.
        for directory in std::io::stdin().lines().map_while(Result::ok) {
            let open = || match Disk::at(&directory).open() {
                Ok(_) => "opened".to_owned(),
                Err(error) => error.to_string(),
            };
            let (one, other) = std::thread::scope(|scope| {
                let other = scope.spawn(open);
                (open(), other.join().unwrap())
            });
            println!("{one} and {other}");
        }
        return;
    }
    let mut children: Vec<_> = (0..5)
        .map(|_| {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "disk::many_may_open_a_new_directory_at_once", "--nocapture"])
                .env(CHILD, "1")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let answers = BufReader::new(child.stdout.take().unwrap()).lines();
            (child, answers)
        })
        .collect();
    for round in 0..count(30, 1_000) {
        let directory = tempfile::tempdir().unwrap();
        for (child, _) in &mut children {
            writeln!(child.stdin.as_mut().unwrap(), "{}", directory.path().display()).unwrap();
        }
        for (_, answers) in &mut children {
            let answer = answers.map_while(Result::ok).find(|line| line.contains(" and "));
            assert_eq!(answer.as_deref(), Some("opened and opened"), "round {round}");
        }
        let tables = "SELECT (SELECT count(*) FROM usage), (SELECT count(*) FROM origin)";
        let rows: (i64, i64) = database(directory.path())
            .query_row(tables, [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        assert_eq!(rows, (1, 1), "round {round}");
    }
    for (mut child, _) in children {
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
}

/// SQLite does not wait for others when it switches to write-ahead mode.
#[test]
fn a_new_database_that_somebody_looks_at_is_waited_for() {
    // A file of no bytes, and one that another process has just begun.
    for begun in ["", "CREATE TABLE none (x); DROP TABLE none;"] {
        let directory = tempfile::tempdir().unwrap();
        let other = database(directory.path());
        other.execute_batch(begun).unwrap();
        other.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema;").unwrap();
        std::thread::scope(|scope| {
            let opening = scope.spawn(|| Disk::at(directory.path()).open());
            // Opened too early it would fail now, and wait for nobody.
            std::thread::sleep(ms(100));
            other.execute_batch("COMMIT").unwrap();
            opening.join().unwrap().unwrap();
        });
    }
}

/// A process that closes a file loses all locks that it has on it: opening a database
/// a second time must not do that to the first.
#[test]
fn a_database_in_use_stays_locked_against_others() {
    const CHILD: &str = "TERRACE_TEST_LOCKED";
    if let Some(directory) = std::env::var_os(CHILD) {
        let other = database(Path::new(&directory));
        other.busy_timeout(Duration::ZERO).unwrap();
        let mode = other
            .pragma_update_and_check(None, "journal_mode", "DELETE", |row| row.get::<_, String>(0));
        println!("journal mode {mode:?}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::at(directory.path());
    let first = disk.open().unwrap();
    drop(disk.open().unwrap());
    let second = disk.open().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "disk::a_database_in_use_stays_locked_against_others", "--nocapture"])
        .env(CHILD, directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(said.contains("DatabaseBusy"), "write-ahead mode was left while in use: {said}");
    drop((first, second));
}

#[cfg(unix)]
#[tokio::test]
async fn a_directory_behind_a_link_works() {
    let parent = tempfile::tempdir().unwrap();
    fs::create_dir(parent.path().join("there")).unwrap();
    std::os::unix::fs::symlink("there", parent.path().join("here")).unwrap();
    let directory = parent.path().join("here/cache");
    let terrace = cache(&directory).await;
    let _ = terrace.set("key", &"value".to_owned()).await.unwrap();
    assert!(parent.path().join("there/cache/terrace.db").is_file());
    assert_eq!(get(&terrace, "key").await.as_deref(), Some("value"));
}

/// What cannot be used is refused, and the error says where, why and what to do.
#[track_caller]
fn is_refused(directory: &Path, why: &str) {
    match Disk::at(directory).open() {
        Err(error @ BuildError::Directory { .. }) => {
            let text = error.to_string();
            let BuildError::Directory { path, remedy, .. } = error else { unreachable!() };
            assert!(path.starts_with(directory), "{text}");
            assert!(!remedy.is_empty() && text.contains(remedy), "{text}");
            assert!(text.contains(why), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

#[cfg(target_os = "linux")]
#[test]
fn places_that_cannot_be_used_are_refused() {
    is_refused(Path::new("/proc/nowhere"), "choose another directory");
    is_refused(Path::new("/sys/kernel"), "choose another directory");
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "mine").unwrap();
    is_refused(&file, "a file is in the way");
    is_refused(&file.join("below"), "a file is in the way");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    // A directory where the database should be.
    let directory = parent.path().join("cache");
    fs::create_dir_all(directory.join("terrace.db")).unwrap();
    is_refused(&directory, "in the way");
}

#[cfg(unix)]
#[test]
fn a_link_in_place_of_the_database_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let (directory, outside) = (parent.path().join("cache"), parent.path().join("outside"));
    let link = directory.join("terrace.db");
    fs::create_dir(&directory).unwrap();
    // To nothing, to a file, and to another database of ours.
    std::os::unix::fs::symlink(&outside, &link).unwrap();
    is_refused(&directory, "in the way");
    assert!(!outside.exists(), "nothing was created where the link leads");

    fs::write(&outside, "mine").unwrap();
    is_refused(&directory, "in the way");
    assert_eq!(fs::read(&outside).unwrap(), b"mine");

    let other = parent.path().join("other");
    drop(Disk::at(&other).open().unwrap());
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(other.join("terrace.db"), &link).unwrap();
    is_refused(&directory, "in the way");
    assert!(link.is_symlink(), "it was not set aside either");
}

#[tokio::test]
async fn the_database_of_another_program_is_refused_and_untouched() {
    let programs = [
        "CREATE TABLE mine (x); INSERT INTO mine VALUES (7);",
        "PRAGMA application_id = 7; CREATE TABLE mine (x);",
        "PRAGMA application_id = 7; VACUUM;",
        "PRAGMA journal_mode = WAL; CREATE TABLE entry (x);",
    ];
    for program in programs {
        let directory = tempfile::tempdir().unwrap();
        database(directory.path()).execute_batch(program).unwrap();
        let before = fs::read(directory.path().join("terrace.db")).unwrap();
        assert!(!before.is_empty());
        let built = Terrace::builder().tier("disk", Disk::at(directory.path())).build().await;
        match built {
            Err(error @ BuildError::Foreign { .. }) => {
                assert!(error.to_string().contains("terrace.db"), "{error}");
            }
            other => panic!("{program} {other:?}"),
        }
        assert_eq!(fs::read(directory.path().join("terrace.db")).unwrap(), before);
        assert!(!directory.path().join("terrace.db.damaged-1").exists());
    }
}

#[test]
fn a_newer_format_is_refused_and_untouched() {
    let directory = tempfile::tempdir().unwrap();
    drop(Disk::at(directory.path()).open().unwrap());
    database(directory.path()).pragma_update(None, "user_version", 2).unwrap();
    match Disk::at(directory.path()).open() {
        Err(error @ BuildError::Newer { found: 2, .. }) => {
            assert!(error.to_string().contains("upgrade"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let database = database(directory.path());
    let version: i32 = database.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, 2);
}

#[test]
fn a_database_that_somebody_holds_is_an_error_that_says_so() {
    let directory = tempfile::tempdir().unwrap();
    drop(Disk::at(directory.path()).open().unwrap());
    let holder = database(directory.path());
    holder.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE;").unwrap();
    is_refused(directory.path(), "another process holds it");
    drop(holder);
    Disk::at(directory.path()).open().unwrap();
}

/// Fills a cache's directory with some of everything and closes it.
async fn filled(directory: &Path) {
    let terrace = cache(directory).await;
    for number in 0..50 {
        let key = format!("key {number}");
        let value = right_value(number);
        let _ = terrace.set(&key, &value).forever().tags([format!("tag {number}")]).await.unwrap();
        terrace.increment(&format!("counter {number}"), 1).await.unwrap();
        let _ = terrace.invalidate_tag(&format!("no tag {number}")).await.unwrap();
    }
    assert!(terrace.close().await);
}

fn right_value(number: usize) -> String {
    format!("value {number} ").repeat(1 + number * 20)
}

/// Whatever was done to a directory's files: a cache starts, tells nothing wrong,
/// loads what it has not, and starts again.
async fn survives(directory: &Path, what: &str) -> Terrace {
    for start in ["first", "second"] {
        let terrace = match Terrace::builder().tier("disk", Disk::at(directory)).build().await {
            Ok(terrace) => terrace,
            Err(error) => panic!("{what}, {start} start: {error}"),
        };
        for number in 0..50 {
            let found = get(&terrace, &format!("key {number}")).await;
            assert!(found.is_none_or(|found| found == right_value(number)), "{what}: {number}");
        }
        let load = |_| async { Ok::<_, Infallible>("loaded".to_owned()) };
        let answer = terrace.get_or_load("new", load).await.unwrap();
        assert_eq!(answer.as_str(), "loaded", "{what}");
        if start == "second" {
            return terrace;
        }
        terrace.close().await;
    }
    unreachable!()
}

#[tokio::test]
async fn a_database_that_is_none_is_set_aside() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 6] = [
        ("garbage", |file| *file = b"this is no database. ".repeat(1_000)),
        ("a zeroed header", |file| file[..100].fill(0)),
        ("a zeroed first page", |file| file[..4096].fill(0)),
        ("zeros", |file| file.fill(0)),
        ("cut off in the middle", |file| file.truncate(file.len() / 2)),
        ("cut off in the first page", |file| file.truncate(1_000)),
    ];
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path()).await;
    let path = directory.path().join("terrace.db");
    let whole = fs::read(&path).unwrap();
    let mut last: Option<Vec<u8>> = None;
    for (what, damage) in damages {
        let mut damaged = whole.clone();
        damage(&mut damaged);
        fs::write(&path, &damaged).unwrap();
        let terrace = survives(directory.path(), what).await;
        assert_eq!(get(&terrace, "key 1").await, None, "{what}: it starts empty");
        let _ = terrace.set("key", &"value".to_owned()).await.unwrap();
        assert_eq!(get(&terrace, "key").await.as_deref(), Some("value"), "{what}: it works");
        let aside = |number: u8| {
            fs::read(directory.path().join(format!("terrace.db.damaged-{number}"))).ok()
        };
        assert!(aside(1).as_ref() == Some(&damaged), "{what}: it was set aside as it was");
        if let Some(last) = last.replace(damaged) {
            assert!(aside(2) == Some(last), "{what}: the one before is kept too");
        }
        assert!(aside(3).is_none(), "{what}: and no more");
        assert!(terrace.close().await);
    }
}

#[tokio::test]
async fn every_page_may_be_overwritten() {
    let original = tempfile::tempdir().unwrap();
    filled(original.path()).await;
    let whole = fs::read(original.path().join("terrace.db")).unwrap();
    let mut random = random("garbage in a page");
    let pages = whole.len() / 4096;
    assert!(pages > 20, "{pages}");
    for page in 0..pages {
        let directory = tempfile::tempdir().unwrap();
        let mut damaged = whole.clone();
        random.fill(&mut damaged[page * 4096..(page + 1) * 4096]);
        fs::write(directory.path().join("terrace.db"), damaged).unwrap();
        let terrace = survives(directory.path(), &format!("page {page} of {pages}")).await;
        terrace.close().await;
    }
}

#[tokio::test]
async fn rows_that_nobody_could_have_written_hide_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::at(directory.path());
    let store = disk.open().unwrap();
    let mut names = Vec::new();
    for number in 0..20 {
        names.push(key(&number.to_string()));
        let put = put(&store, &number.to_string(), 10, None).await;
        assert_eq!(store.put(&[put]).await.unwrap(), [Stored::Yes]);
    }
    names.sort();
    let database = database(directory.path());
    for part in -50..50_i64 {
        let (id, text) = (part * (i64::MAX / 50), "\u{1b}[2J a key");
        let row = "INSERT INTO entry VALUES (?1, ?2, 0, 0, 'text')";
        database.execute(row, rusqlite::params![id, text]).unwrap();
    }
    for limit in [1, 3, 1_000] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let some = store.scan(after.as_ref(), limit).await.unwrap();
            let Some((last, _)) = some.last() else { break };
            after = Some(last.clone());
            found.extend(some.into_iter().map(|(key, _)| key));
        }
        found.sort();
        assert_eq!(found, names, "{limit} at a time");
    }
    // Values of other types than ours, in rows of ours, are misses.
    database.execute("UPDATE entry SET frame = 'text' WHERE key LIKE '1:%'", []).unwrap();
    store.close().await.unwrap();
    let terrace = Terrace::builder().tier("disk", disk).build().await.unwrap();
    let space = terrace.space::<str, String>("space").build().unwrap();
    assert!(space.get("1").await.unwrap().is_none());
}

#[tokio::test]
async fn a_count_that_is_wrong_comes_right() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::at(directory.path()).max_bytes(MIB as u64);
    let terrace = Terrace::builder().tier("disk", disk).build().await.unwrap();
    let wrong = "UPDATE usage SET bytes = 1 << 40, entries = -7";
    database(directory.path()).execute(wrong, []).unwrap();
    let _ = terrace.set("first", &"value".to_owned()).await.unwrap();
    let _ = terrace.set("second", &"value".to_owned()).await.unwrap();
    assert_eq!(get(&terrace, "second").await.as_deref(), Some("value"));
    let [counted, stored] = measured(&database(directory.path()));
    assert_eq!(counted, stored);
}
