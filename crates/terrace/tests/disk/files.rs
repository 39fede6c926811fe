//! Large values beside the database: what a key, a link, a crash or somebody else can do to files.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use rusqlite::Connection;
use terrace::clock::WallTime;
use terrace::key::StoredKey;
use terrace::ledger::Stamp;
use terrace::store::{Put, Store, Stored};
use terrace::{Disk, DiskStore, Terrace};

use crate::support::{count, random};

const KIB: usize = 1 << 10;

fn key(name: &[u8]) -> StoredKey {
    StoredKey::new("", "space", 0, name)
}

async fn put(store: &DiskStore, name: &str, frame: Vec<u8>) -> Put {
    let now = store.authority().unwrap().snapshot().await.unwrap();
    Put {
        key: key(name.as_bytes()),
        frame: frame.into(),
        expires: None,
        stamp: Stamp { incarnation: now.incarnation, number: now.last },
        tags: Arc::default(),
    }
}

async fn store_one(store: &DiskStore, name: &str, frame: Vec<u8>) {
    let put = put(store, name, frame).await;
    assert_eq!(store.put(&[put]).await.unwrap(), [Stored::Yes], "{name}");
}

async fn get(store: &DiskStore, name: &str) -> Option<Bytes> {
    store.get(&[key(name.as_bytes())]).await.unwrap().pop().unwrap()
}

/// All files of large values.
fn files(directory: &Path) -> Vec<PathBuf> {
    let inside = |path: PathBuf| fs::read_dir(path).unwrap().map(|file| file.unwrap().path());
    let folders = inside(directory.to_owned()).filter(|path| path.is_dir() && !path.is_symlink());
    folders.flat_map(inside).filter(|path| !path.is_symlink()).flat_map(inside).collect()
}

fn now() -> WallTime {
    WallTime::from_millis(0)
}

/// Looks through all directories for files that belong to nobody.
async fn look_through(store: &DiskStore) {
    for _ in 0..20 {
        store.maintain(now()).await.unwrap();
    }
}

#[tokio::test]
async fn every_size_comes_back_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let store = Disk::at(directory.path()).open().unwrap();
    let edges = [0, 1, 4096, 32 * KIB - 1, 32 * KIB, 32 * KIB + 1, 128 * KIB, 128 * KIB + 1];
    let sizes = edges.into_iter().chain([1 << 20, 5_000_001]);
    let mut random = random("frames");
    let mut puts = Vec::new();
    for size in sizes {
        let mut frame = vec![0; size];
        random.fill(&mut frame);
        puts.push(put(&store, &size.to_string(), frame).await);
    }
    // All at once, one of them twice: the later one counts.
    let mut twice = puts.clone();
    twice.insert(0, Put { frame: Bytes::from(vec![9; 70_000]), ..puts[5].clone() });
    assert!(store.put(&twice).await.unwrap().iter().all(|stored| *stored == Stored::Yes));
    let keys: Vec<_> = puts.iter().map(|put| put.key.clone()).collect();
    let is_right = async |store: &DiskStore| {
        let found = store.get(&keys).await.unwrap();
        for (put, found) in puts.iter().zip(found) {
            assert!(found.as_ref() == Some(&put.frame), "{} bytes", put.frame.len());
        }
    };
    is_right(&store).await;
    assert_eq!(files(directory.path()).len(), 5, "those of more than 32 KiB");
    let usage = store.usage().await.unwrap();
    let bytes: usize = puts.iter().map(|put| put.frame.len() + put.key.as_str().len()).sum();
    assert_eq!((usage.entries, usage.bytes, usage.files), (10, bytes as u64, 5));
    let listed = store.scan(None, 100).await.unwrap();
    assert_eq!(listed.len(), 10);
    for (key, frame) in listed {
        assert!(puts.iter().any(|put| put.key == key && put.frame == frame));
    }
    store.close().await.unwrap();
    let store = Disk::at(directory.path()).open().unwrap();
    is_right(&store).await;
    // Replaced, removed, cleared: their files go.
    store_one(&store, "1048576", vec![1; 10]).await;
    assert_eq!(store.remove(&[key(b"5000001")]).await.unwrap(), [true]);
    assert_eq!(files(directory.path()).len(), 3);
    assert_eq!(store.clear("").await.unwrap(), 9);
    assert!(files(directory.path()).is_empty());
    look_through(&store).await;
    assert_eq!(store.usage().await.unwrap().files, 0);
}

/// Readers of a value that is replaced all the time always find one of the values.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_replaced_is_never_missed() {
    let directory = tempfile::tempdir().unwrap();
    let store = Disk::at(directory.path()).open().unwrap();
    store_one(&store, "key", vec![0; 200 * KIB]).await;
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for round in 0..count(300, 5_000) {
                let size = if round % 3 == 0 { 100 } else { 200 * KIB };
                store_one(&store, "key", vec![round as u8; size]).await;
            }
        })
    };
    let mut reads = 0;
    while !writer.is_finished() {
        let frame = get(&store, "key").await.expect("there is always a value");
        assert!(frame.iter().all(|byte| *byte == frame[0]), "torn");
        reads += 1;
    }
    writer.await.unwrap();
    assert!(reads > 50, "{reads}");
}

/// A frame that the ledger does not permit leaves no file.
#[tokio::test]
async fn what_is_refused_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Disk::at(directory.path()).open().unwrap();
    let late = put(&store, "key", vec![1; 100 * KIB]).await;
    let name = terrace::ledger::Name::Key(late.key.name().to_string().into());
    store.authority().unwrap().append(&[name]).await.unwrap();
    assert_eq!(store.put(&[late]).await.unwrap(), [Stored::Refused]);
    assert!(files(directory.path()).is_empty());
    assert_eq!(store.usage().await.unwrap().files, 0);
}

/// Whoever asks for a value to be stored may leave at any time.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_leaves_no_file_without_an_entry() {
    let directory = tempfile::tempdir().unwrap();
    let store = Disk::at(directory.path()).open().unwrap();
    let mut random = random("callers that leave");
    for round in 0..count(100, 2_000) {
        let put = put(&store, &format!("{}", round % 10), vec![1; 100 * KIB]).await;
        let puts = [put];
        let mut storing = store.put(&puts);
        for _ in 0..random.u8(..3) {
            if crate::support::poll_once(storing.as_mut()).await.is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    // What was begun goes on without them, and is done before the store is closed or never.
    store.close().await.unwrap();
    let store = Disk::at(directory.path()).open().unwrap();
    look_through(&store).await;
    let database = Connection::open(directory.path().join("terrace.db")).unwrap();
    let live: i64 = database
        .query_row("SELECT count(*) FROM file WHERE state = 1", [], |row| row.get(0))
        .unwrap();
    let entries: i64 = database
        .query_row("SELECT count(*) FROM entry WHERE file IS NOT NULL", [], |row| row.get(0))
        .unwrap();
    assert_eq!(live, entries);
    store.maintain(now()).await.unwrap();
    store.maintain(WallTime::from_millis(700_000)).await.unwrap();
    store.maintain(WallTime::from_millis(700_000)).await.unwrap();
    assert_eq!(store.usage().await.unwrap().files, entries.cast_unsigned());
    assert_eq!(files(directory.path()).len() as u64, entries.cast_unsigned());
}

/// A process that is killed while it writes large values: what it leaves is whole or goes.
#[test]
fn d1_killed_while_writing_large_values() {
    const CHILD: &str = "TERRACE_TEST_KILLED_FILES";
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let Some(directory) = std::env::var_os(CHILD) {
        runtime.block_on(async {
            let store = Disk::at(directory).max_bytes(16 << 20).open().unwrap();
            for round in 0_u64.. {
                let frame = vec![round as u8; 40_000 + (round as usize * 7919) % 300_000];
                store_one(&store, &format!("{}", round % 100), frame).await;
                println!("wrote one");
            }
        });
    }
    let directory = tempfile::tempdir().unwrap();
    let mut random = random("moments to kill at");
    for round in 0..count(10, 200) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "files::d1_killed_while_writing_large_values", "--nocapture"])
            .env(CHILD, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap());
        let wrote = std::io::BufRead::lines(lines).map_while(Result::ok);
        let wanted = random.usize(1..80);
        let seen = wrote.filter(|line| line.contains("wrote one")).take(wanted).count();
        assert_eq!(seen, wanted);
        child.kill().unwrap();
        child.wait().unwrap();

        let began = std::time::Instant::now();
        let store = runtime
            .block_on(async { Disk::at(directory.path()).max_bytes(16 << 20).open() })
            .unwrap();
        let took = began.elapsed();
        assert!(took < crate::support::limit(std::time::Duration::from_secs(1)), "{took:?}");
        runtime.block_on(async {
            let mut found = 0;
            for number in 0..100 {
                if let Some(frame) = get(&store, &number.to_string()).await {
                    assert!(frame.iter().all(|byte| *byte == frame[0]), "torn");
                    assert!(frame.len() >= 40_000, "{}", frame.len());
                    found += 1;
                }
            }
            assert!(found > 0, "round {round}");
            store.maintain(now()).await.unwrap();
            store.maintain(WallTime::from_millis(700_000)).await.unwrap();
            store.maintain(WallTime::from_millis(700_000)).await.unwrap();
            let usage = store.usage().await.unwrap();
            assert_eq!(usage.files, files(directory.path()).len() as u64, "round {round}");
            store.close().await.unwrap();
        });
        let database = Connection::open(directory.path().join("terrace.db")).unwrap();
        let verdict: String =
            database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(verdict, "ok", "round {round}");
    }
}

/// A power failure may take the last rows back, and leave their files.
#[tokio::test]
async fn files_that_no_row_knows_are_swept() {
    let directory = tempfile::tempdir().unwrap();
    let store = Disk::at(directory.path()).open().unwrap();
    for number in 0..20 {
        store_one(&store, &number.to_string(), vec![1; 100 * KIB]).await;
    }
    let all: BTreeSet<_> = files(directory.path()).into_iter().collect();
    let mut strangers = Vec::new();
    for (number, file) in all.iter().enumerate() {
        let stranger = file.with_file_name(format!("{number:014x}"));
        fs::write(&stranger, "stranger").unwrap();
        strangers.push(stranger);
        // What is not ours to give a name to stays.
        fs::write(file.with_file_name("README"), "mine").unwrap();
    }
    look_through(&store).await;
    assert!(strangers.iter().all(|stranger| !stranger.exists()));
    assert!(all.iter().all(|file| file.exists() && file.with_file_name("README").exists()));
}

#[tokio::test]
async fn the_files_of_a_database_that_was_set_aside_are_swept() {
    let directory = tempfile::tempdir().unwrap();
    let store = Disk::at(directory.path()).open().unwrap();
    for number in 0..20 {
        store_one(&store, &number.to_string(), vec![1; 100 * KIB]).await;
    }
    store.close().await.unwrap();
    assert_eq!(files(directory.path()).len(), 20);
    fs::write(directory.path().join("terrace.db"), "garbage ".repeat(1_000)).unwrap();
    fs::create_dir(directory.path().join("files-of-mine")).unwrap();
    fs::write(directory.path().join("files-of-mine/one"), "mine").unwrap();
    let store = Disk::at(directory.path()).open().unwrap();
    assert_eq!(get(&store, "1").await, None);
    store.maintain(now()).await.unwrap();
    assert_eq!(fs::read(directory.path().join("files-of-mine/one")).unwrap(), b"mine");
    fs::remove_dir_all(directory.path().join("files-of-mine")).unwrap();
    assert!(files(directory.path()).is_empty());
}

/// What was done to a file of a large value.
type Damage = fn(&Path);

#[tokio::test]
async fn d4_a_damaged_file_is_a_miss() {
    let damages: [(&str, Damage); 7] = [
        ("cut off", |file| fs::write(file, &fs::read(file).unwrap()[..50_000]).unwrap()),
        ("empty", |file| fs::write(file, "").unwrap()),
        ("longer", |file| fs::write(file, [fs::read(file).unwrap(), vec![0]].concat()).unwrap()),
        ("zeroed", |file| fs::write(file, vec![0; fs::read(file).unwrap().len()]).unwrap()),
        ("a bit", |file| {
            let mut bytes = fs::read(file).unwrap();
            let at = fastrand::usize(..bytes.len());
            bytes[at] ^= 1 << fastrand::u8(..8);
            fs::write(file, bytes).unwrap();
        }),
        ("gone", |file| fs::remove_file(file).unwrap()),
        ("a directory", |file| {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
        }),
    ];
    let directory = tempfile::tempdir().unwrap();
    let terrace =
        Terrace::builder().tier("disk", Disk::at(directory.path())).build().await.unwrap();
    let large: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(300_000).collect();
    for (what, damage) in damages {
        for _ in 0..if what == "a bit" { count(30, 1_000) } else { 1 } {
            let _ = terrace.set("key", &large).await.unwrap();
            assert_eq!(terrace.get::<Vec<u8>>("key").await.unwrap().as_deref(), Some(&large));
            let [file] = &files(directory.path())[..] else { panic!("one file") };
            damage(file);
            assert!(terrace.get::<Vec<u8>>("key").await.unwrap().is_none(), "{what}");
            if file.is_dir() {
                fs::remove_dir(file).unwrap();
            }
        }
    }
    let _ = terrace.set("key", &large).await.unwrap();
    assert_eq!(terrace.get::<Vec<u8>>("key").await.unwrap().as_deref(), Some(&large));
}

/// Keys that are made to climb out of the directory.
fn climbing(random: &mut fastrand::Rng) -> Vec<u8> {
    const PARTS: [&[u8]; 16] = [
        b"..",
        b"/",
        b"\\",
        b"\0",
        b"/etc/passwd",
        b"%2e%2e%2f",
        b"C:",
        b"\\\\host\\share",
        b"~",
        b"file:///",
        b"terrace.db",
        b"\xff\xfe",
        b".",
        b"$(id)",
        b"\n",
        b"..%00/",
    ];
    let mut key = Vec::new();
    for _ in 0..random.usize(1..12) {
        key.extend_from_slice(PARTS[random.usize(..PARTS.len())]);
    }
    key
}

#[tokio::test(flavor = "multi_thread")]
async fn x3_keys_cannot_leave_the_directory() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("cache");
    let store = Disk::at(&directory).max_bytes(32 << 20).open().unwrap();
    let mut random = random("keys that climb");
    let one = put(&store, "one", vec![7; 33 * KIB]).await;
    let all = count(2_000, 100_000);
    for _ in 0..all / 20 {
        let named = |_| Put { key: key(&climbing(&mut random)), ..one.clone() };
        let puts: Vec<_> = (0..20).map(named).collect();
        assert!(store.put(&puts).await.unwrap().iter().all(|stored| *stored == Stored::Yes));
        let keys: Vec<_> = puts[10..].iter().map(|put| put.key.clone()).collect();
        let found = store.get(&keys).await.unwrap();
        assert!(found.iter().all(|frame| frame.as_ref() == Some(&one.frame)));
        store.remove(&keys[..5]).await.unwrap();
    }
    // Beside the directory there is nothing, and within it only what has names of ours.
    let inside = |path: &Path| -> Vec<String> {
        let names = fs::read_dir(path).unwrap();
        names.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(inside(parent.path()), ["cache"]);
    let is_hex = |name: &str, digits| {
        name.len() == digits && name.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    for name in inside(&directory) {
        let folder = name.strip_prefix("files-");
        let known =
            ["terrace.db", "terrace.db-wal", "terrace.db-shm", "terrace.lock", "terrace.turn"];
        assert!(folder.is_some_and(|hex| is_hex(hex, 16)) || known.contains(&&*name), "{name}");
        for shard in folder.map(|_| inside(&directory.join(&name))).unwrap_or_default() {
            assert!(is_hex(&shard, 2), "{shard}");
            for file in inside(&directory.join(&name).join(&shard)) {
                assert!(is_hex(&file, 14), "{file}");
            }
        }
    }
}

/// Links and directories that are put in the way of files, before they are written, read or
/// removed: nothing outside is read, written or removed.
#[tokio::test(flavor = "multi_thread")]
async fn x4_links_in_the_way_of_files_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let (directory, outside) = (parent.path().join("cache"), parent.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    let secret = vec![b's'; 100 * KIB];
    fs::write(outside.join("secret"), &secret).unwrap();
    let mut random = random("links in the way");
    for round in 0..count(200, 20_000) {
        let store = Disk::at(&directory).max_bytes(4 << 20).open().unwrap();
        store_one(&store, "key", vec![b'k'; 100 * KIB]).await;
        let [file] = &files(&directory)[..] else { panic!("one file") };
        let shard = file.parent().unwrap();
        let (kind, before) = (random.u8(..5), fs::read(file).unwrap());
        match kind {
            // A link, or another name, in place of the file.
            0 => {
                fs::remove_file(file).unwrap();
                symlink(outside.join("secret"), file).unwrap();
            }
            1 => {
                fs::remove_file(file).unwrap();
                fs::hard_link(outside.join("secret"), file).unwrap();
            }
            // A link in place of a directory, with a file of the same name and size behind it.
            2 | 3 => {
                let place = if kind == 2 { shard } else { shard.parent().unwrap() };
                let aside = parent.path().join("aside");
                fs::rename(place, &aside).unwrap();
                let there = if kind == 2 { outside.clone() } else { outside.join("ab") };
                fs::create_dir_all(&there).unwrap();
                fs::write(there.join(file.file_name().unwrap()), &secret).unwrap();
                symlink(&outside, place).unwrap();
            }
            _ => {
                fs::remove_file(file).unwrap();
                fs::create_dir(file).unwrap();
            }
        }
        // The folder stays open, so that another one in its place is not even looked at.
        match get(&store, "key").await {
            Some(found) => assert!(
                found.is_empty() || kind == 3 && found == before,
                "round {round}: {kind}: {} bytes",
                found.len()
            ),
            None => assert_eq!(kind, 3, "round {round}"),
        }
        for name in ["key", "other"] {
            let puts = [put(&store, name, vec![b'n'; 100 * KIB]).await];
            if let Ok(stored) = store.put(&puts).await {
                assert_eq!(stored, [Stored::Yes]);
            }
        }
        store.remove(&[key(b"key"), key(b"other")]).await.unwrap();
        let _ = store.maintain(now()).await;
        store.close().await.unwrap();
        // Nothing outside was touched, and nothing was added there.
        assert_eq!(fs::read(outside.join("secret")).unwrap(), secret, "round {round}: {kind}");
        let strangers: Vec<_> =
            walk(&outside).into_iter().filter(|path| fs::read(path).unwrap() != secret).collect();
        assert!(strangers.is_empty(), "round {round}: {kind}: {strangers:?}");
        assert!(walk(&outside).len() <= 2, "round {round}: {kind}");
        fs::remove_dir_all(&directory).unwrap();
        fs::remove_dir_all(&outside).unwrap();
        let _ = fs::remove_dir_all(parent.path().join("aside"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), &secret).unwrap();
    }
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for file in fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}
