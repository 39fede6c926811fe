//! The disk tier: its settings, its bounds, and what it does with what it finds.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use terrace::clock::WallTime;
use terrace::key::StoredKey;
use terrace::ledger::Stamp;
use terrace::store::{Put, Store, Stored};
use terrace::{BuildError, Disk, DiskStore, Memory, Terrace};

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
                 (SELECT coalesce(sum(length(key) + length(frame)), 0) FROM entry)
                     + (SELECT coalesce(sum(file.bytes), 0) FROM entry JOIN file ON file.id = file)
             FROM usage",
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
            is("query_only", if connection == "reader" { "1" } else { "0" });
            is("wal_autocheckpoint", if connection == "reader" { "1000" } else { "0" });
        }
    }
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
            .args(["--exact", "opening::d10_private_files_in_spite_of_the_umask", "--nocapture"])
            .env(DIRECTORY, parent.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        let complained = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{said}\n{complained}");
        assert!(said.contains("looked at 20 files"), "{said}");
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
        let (mut found, mut large) = (Vec::new(), 0);
        for file in fs::read_dir(&directory).unwrap() {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            if !name.starts_with("files-") {
                found.push(name);
                continue;
            }
            assert_eq!(mode(&file.path()), 0o700, "{name}");
            for shard in fs::read_dir(file.path()).unwrap().map(Result::unwrap) {
                assert_eq!(mode(&shard.path()), 0o700, "{shard:?}");
                for value in fs::read_dir(shard.path()).unwrap().map(Result::unwrap) {
                    assert_eq!(mode(&value.path()), 0o600, "{value:?}");
                    large += 1;
                }
            }
        }
        found.sort();
        assert_eq!(found, names);
        for name in names {
            assert_eq!(mode(&directory.join(name)), 0o600, "{name}");
        }
        assert!(large > 0, "there is a large value");
        files += names.len() + 1;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let use_it = || {
        let terrace = runtime.block_on(cache(&directory));
        // Bytes that nothing packs into fewer.
        let large: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(MIB).collect();
        let _ = runtime.block_on(async { terrace.set("key", &large).await.unwrap() });
        terrace
    };
    let open = ["terrace.db", "terrace.db-shm", "terrace.db-wal", "terrace.lock", "terrace.turn"];
    let terrace = use_it();
    are_private(&open);
    runtime.block_on(terrace.close());
    fs::write(directory.join("terrace.db"), "garbage".repeat(1_000)).unwrap();
    let terrace = use_it();
    let aside = [&open[..3], &["terrace.db.damaged-1"], &open[3..]].concat();
    are_private(&aside);
    runtime.block_on(terrace.close());
    // What was private stays private when it is opened again.
    let terrace = use_it();
    are_private(&aside);
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
                .args(["--exact", "opening::many_may_open_a_new_directory_at_once", "--nocapture"])
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
        .args(["--exact", "opening::a_database_in_use_stays_locked_against_others", "--nocapture"])
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

/// Databases that are not ours to use.
const FOREIGN: [&str; 4] = [
    "CREATE TABLE mine (x); INSERT INTO mine VALUES (7);",
    "PRAGMA application_id = 7; CREATE TABLE mine (x);",
    "PRAGMA application_id = 7; VACUUM;",
    "PRAGMA journal_mode = WAL; CREATE TABLE entry (x)",
];

#[tokio::test]
async fn the_database_of_another_program_is_refused_and_untouched_if_asked_for() {
    for program in FOREIGN {
        let directory = tempfile::tempdir().unwrap();
        database(directory.path()).execute_batch(program).unwrap();
        let before = fs::read(directory.path().join("terrace.db")).unwrap();
        assert!(!before.is_empty());
        let disk = Disk::at(directory.path()).keep_foreign();
        let built = Terrace::builder().tier("disk", disk).build().await;
        match built {
            Err(error @ BuildError::Foreign { .. }) => {
                assert!(error.to_string().contains("terrace.db"), "{error}");
            }
            other => panic!("{program} {other:?}"),
        }
        assert_eq!(fs::read(directory.path().join("terrace.db")).unwrap(), before);
        assert!(!directory.path().join("terrace.db.foreign-1").exists());
    }
}

#[tokio::test]
async fn the_databases_of_other_programs_are_set_aside_and_never_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("terrace.db");
    let aside = |number: u8| directory.path().join(format!("terrace.db.foreign-{number}"));
    let mut written = Vec::new();
    for program in &FOREIGN[..2] {
        database(directory.path()).execute_batch(program).unwrap();
        written.push(fs::read(&path).unwrap());
        let terrace = cache(directory.path()).await;
        let _ = terrace.set("key", &"value".to_owned()).await.unwrap();
        assert_eq!(get(&terrace, "key").await.as_deref(), Some("value"));
        assert!(terrace.close().await);
        fs::remove_file(&path).unwrap();
    }
    assert_eq!([fs::read(aside(2)).unwrap(), fs::read(aside(1)).unwrap()], written[..]);
    // There is no place for a third one, and none of them is thrown away for it.
    database(directory.path()).execute_batch(FOREIGN[0]).unwrap();
    is_refused(directory.path(), "remove them");
    assert_eq!([fs::read(aside(2)).unwrap(), fs::read(aside(1)).unwrap()], written[..]);
}

#[test]
fn a_newer_format_is_set_aside_or_refused_and_untouched() {
    let directory = tempfile::tempdir().unwrap();
    let newer = || {
        drop(Disk::at(directory.path()).open().unwrap());
        database(directory.path()).pragma_update(None, "user_version", 99).unwrap();
    };
    newer();
    match Disk::at(directory.path()).keep_foreign().open() {
        Err(error @ BuildError::Newer { found: 99, .. }) => {
            assert!(error.to_string().contains("upgrade"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let version = |name: &str| -> i32 {
        let database = Connection::open(directory.path().join(name)).unwrap();
        database.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    };
    assert_eq!(version("terrace.db"), 99);
    drop(Disk::at(directory.path()).open().unwrap());
    assert_eq!(version("terrace.db.newer-1"), 99);
    assert!(version("terrace.db") < 99);
}

/// Whoever has a database open goes on with it when it is renamed, and removes the journal of the
/// new one at the end.
#[test]
fn a_database_that_others_use_is_not_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let user = Disk::at(directory.path()).open().unwrap();
    database(directory.path()).pragma_update(None, "user_version", 99).unwrap();
    match Disk::at(directory.path()).open() {
        Err(BuildError::Newer { found: 99, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(!directory.path().join("terrace.db.newer-1").exists());
    drop(user);
    Disk::at(directory.path()).open().unwrap();
    assert!(directory.path().join("terrace.db.newer-1").exists());
}

/// Another process may have opened it just as well: whoever opens it first pays for all.
#[test]
fn opening_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let user = Disk::at(directory.path()).open().unwrap();
    let log = || fs::metadata(directory.path().join("terrace.db-wal")).unwrap().len();
    let before = log();
    for _ in 0..3 {
        drop(Disk::at(directory.path()).open().unwrap());
        // Whoever closes the database may make the log shorter.
        assert!(log() <= before);
    }
    drop(user);
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
        let row = "INSERT INTO entry VALUES (?1, ?2, 0, 0, NULL, 'text')";
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

/// What can be done to the files of a closed cache.
type Harm = fn(&Path);

fn harm(directory: &Path, what: impl FnOnce(&mut Vec<u8>)) {
    let path = directory.join("terrace.db");
    let mut file = fs::read(&path).unwrap();
    what(&mut file);
    fs::write(path, file).unwrap();
}

fn run(directory: &Path, sql: &str) {
    database(directory).execute_batch(sql).unwrap();
}

/// Whatever the files are: a cache starts in time, tells nothing wrong, and starts again.
#[tokio::test]
async fn d7_damaged_files_are_set_aside_in_time() {
    let harms: [(&str, bool, Harm); 16] = [
        ("garbage", true, |at| harm(at, |file| *file = b"no database. ".repeat(1_000))),
        ("zeroed header", true, |at| harm(at, |file| file[..100].fill(0))),
        ("zeros", true, |at| harm(at, |file| file.fill(0))),
        ("cut off", true, |at| harm(at, |file| file.truncate(file.len() / 2))),
        ("half a page", true, |at| harm(at, |file| file.truncate(1_000))),
        ("empty", false, |at| harm(at, Vec::clear)),
        ("another program's", true, |at| {
            harm(at, Vec::clear);
            run(at, "CREATE TABLE mine (x); INSERT INTO mine VALUES (7);");
        }),
        ("a newer format", true, |at| run(at, "PRAGMA user_version = 99;")),
        ("an older format", true, |at| run(at, "PRAGMA user_version = 1;")),
        ("a hostile trigger", true, |at| {
            run(at, "CREATE TRIGGER t AFTER INSERT ON entry BEGIN DELETE FROM ledger; END;");
        }),
        ("a hostile view", true, |at| {
            run(
                at,
                "DROP TABLE lease; CREATE VIEW lease AS SELECT 1 AS name, 2 AS token, 3 AS until;",
            );
        }),
        ("a table less", true, |at| run(at, "DROP TABLE mark;")),
        ("a ledger without an origin", true, |at| run(at, "DELETE FROM origin;")),
        ("garbage in place of the journal", false, |at| {
            fs::write(at.join("terrace.db-wal"), b"no journal. ".repeat(10_000)).unwrap();
        }),
        ("the journal of another database", false, |at| {
            let other = tempfile::tempdir().unwrap();
            let database = database(other.path());
            let sql =
                "PRAGMA journal_mode = WAL; CREATE TABLE mine (x); INSERT INTO mine VALUES (7);";
            database.execute_batch(sql).unwrap();
            fs::copy(other.path().join("terrace.db-wal"), at.join("terrace.db-wal")).unwrap();
        }),
        ("garbage in place of the index", false, |at| {
            fs::write(at.join("terrace.db-shm"), vec![0xff; 32_768]).unwrap();
        }),
    ];
    let original = tempfile::tempdir().unwrap();
    filled(original.path()).await;
    for _ in 0..count(1, 20) {
        for (what, is_set_aside, harm) in harms {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("terrace.db");
            fs::copy(original.path().join("terrace.db"), path).unwrap();
            harm(directory.path());
            let began = std::time::Instant::now();
            drop(
                Disk::at(directory.path()).open().unwrap_or_else(|error| panic!("{what}: {error}")),
            );
            let took = began.elapsed();
            assert!(took < crate::support::limit(Duration::from_secs(2)), "{what}: {took:?}");
            let aside = fs::read_dir(directory.path()).unwrap().any(|file| {
                let name = file.unwrap().file_name().into_string().unwrap();
                name.starts_with("terrace.db.") && name.ends_with("-1")
            });
            assert!(aside || !is_set_aside, "{what}: it was set aside");
            survives(directory.path(), what).await.close().await;
        }
    }
}
