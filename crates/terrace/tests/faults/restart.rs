//! What a new start finds, after an orderly end and after a kill.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use terrace::clock::Clock;
use terrace::{Cached, Disk, Memory, Source, Space, Terrace};
use terrace_test::{ManualClock, START};

use crate::support::{count, eventually, limit, random};

const MINUTE: Duration = Duration::from_secs(60);

/// Memory over a disk, as a process builds it that starts `after` the first one.
async fn start(directory: &Path, after: Duration) -> (Terrace, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new());
    clock.set_wall(START.saturating_add(after));
    let terrace = Terrace::builder()
        .memory(Memory::bytes(64 << 20))
        .tier("disk", Disk::at(directory))
        .clock(clock.clone())
        .build()
        .await
        .expect("it starts");
    (terrace, clock)
}

async fn get(terrace: &Terrace, key: &str) -> Option<Cached<u32>> {
    terrace.get(key).await.expect("a read is no error")
}

fn disk() -> Source {
    Source::Tier("disk".into())
}

#[tokio::test]
async fn values_survive_with_what_is_left_of_their_lives() {
    let directory = tempfile::tempdir().unwrap();
    let (terrace, clock) = start(directory.path(), Duration::ZERO).await;
    let _ = terrace.set("key", &7).ttl(MINUTE).tags(["tag"]).await.unwrap();
    let _ = terrace.set("for ever", &8).forever().await.unwrap();
    clock.advance(Duration::from_secs(20));
    let before = get(&terrace, "key").await.unwrap();
    assert!(terrace.close().await);

    let (terrace, clock) = start(directory.path(), Duration::from_secs(30)).await;
    let after = get(&terrace, "key").await.unwrap();
    assert_eq!((*after, after.source()), (7, &disk()));
    assert_eq!(after.created(), START);
    assert_eq!(after.expires(), Some(START.saturating_add(MINUTE)));
    assert_eq!(after.stamp(), before.stamp());
    assert_eq!(after.tags().collect::<Vec<_>>(), ["tag"]);
    assert_eq!(after.age(clock.wall()), Duration::from_secs(30));
    assert_eq!(get(&terrace, "key").await.unwrap().source(), &Source::Memory);

    clock.advance(Duration::from_millis(29_999));
    assert!(get(&terrace, "key").await.is_some(), "30 s are left of its minute");
    clock.advance(Duration::from_millis(1));
    assert!(get(&terrace, "key").await.is_none(), "and no more");
    assert_eq!(*get(&terrace, "for ever").await.unwrap(), 8);
    assert!(terrace.close().await);

    let (terrace, _) = start(directory.path(), Duration::from_secs(10_000 * 86_400)).await;
    assert_eq!(*get(&terrace, "for ever").await.unwrap(), 8);
}

#[tokio::test]
async fn what_expired_meanwhile_is_a_miss_or_stale() {
    let directory = tempfile::tempdir().unwrap();
    let space = |terrace: &Terrace| -> Space<str, u32> {
        terrace.space("space").ttl(MINUTE).jitter(0.0).stale_for(MINUTE).build().unwrap()
    };
    let (terrace, _) = start(directory.path(), Duration::ZERO).await;
    let _ = space(&terrace).insert("key", 7).await.unwrap();
    assert!(terrace.close().await);

    // Fresh for a minute, of use for another one, and gone.
    for (after, fresh, stale) in
        [(59, true, true), (60, false, true), (119, false, true), (120, false, false)]
    {
        let (terrace, _) = start(directory.path(), Duration::from_secs(after)).await;
        let space = space(&terrace);
        assert_eq!(space.get("key").await.unwrap().is_some(), fresh, "after {after} s");
        assert_eq!(space.exists("key").await.unwrap(), fresh, "after {after} s");
        let fails = |_| async { Err::<u32, _>("the source is down") };
        match space.get_or_load("key", fails).await {
            Ok(answer) => {
                assert!(stale, "after {after} s");
                assert_eq!((*answer, answer.is_stale()), (7, !fresh), "after {after} s");
            }
            Err(error) => assert!(!stale, "after {after} s: {error}"),
        }
        terrace.close().await;
    }
    let (terrace, _) = start(directory.path(), 2 * MINUTE).await;
    let loads = |_| async { Ok::<_, Infallible>(8) };
    let answer = space(&terrace).get_or_load("key", loads).await.unwrap();
    assert_eq!((*answer, answer.source()), (8, &Source::Loader));
}

#[tokio::test]
async fn a_clock_that_was_set_back_gives_no_more_than_the_original_life() {
    let directory = tempfile::tempdir().unwrap();
    let (terrace, _) = start(directory.path(), 2 * Duration::from_secs(3600)).await;
    let _ = terrace.set("key", &7).ttl(MINUTE).await.unwrap();
    assert!(terrace.close().await);
    let (terrace, clock) = start(directory.path(), Duration::ZERO).await;
    let _ = get(&terrace, "key").await;
    clock.advance(MINUTE);
    let in_memory = get(&terrace, "key").await.is_some_and(|hit| *hit.source() == Source::Memory);
    assert!(!in_memory, "a copy never lives longer than the entry was meant to");
}

#[tokio::test]
async fn a_cache_that_is_dropped_without_a_word_can_be_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let (terrace, _) = start(directory.path(), Duration::ZERO).await;
        if let Some(before) = 19_u32.checked_sub(20 - round) {
            let found = get(&terrace, &format!("key {before}")).await.expect("it was acknowledged");
            assert_eq!((*found, found.source()), (before, &disk()));
        }
        let _ = terrace.set(&format!("key {round}"), &round).forever().await.unwrap();
    }
    let database = rusqlite::Connection::open(directory.path().join("terrace.db")).unwrap();
    eventually("the last one lets go of its journal", async || {
        !directory.path().join("terrace.db-wal").metadata().is_ok_and(|journal| journal.len() > 0)
    })
    .await;
    is_sound(&database);
}

#[tokio::test]
async fn what_was_invalidated_stays_dead() {
    let long = "k".repeat(1_000);
    let directory = tempfile::tempdir().unwrap();
    let open = |terrace: &Terrace| -> [Space<str, u32>; 2] {
        ["one", "two"].map(|name| terrace.space(name).forever().build().unwrap())
    };
    let (terrace, _) = start(directory.path(), Duration::ZERO).await;
    let [one, two] = open(&terrace);
    for (space, base) in [(&one, 0), (&two, 10)] {
        for (key, number) in [("by key", 1), (long.as_str(), 2), ("stays", 3), ("by removal", 4)] {
            let load = |_| async move { Ok::<_, Infallible>(base + number) };
            let _ = space.get_or_load(key, load).await.unwrap();
        }
        let load = |_| async move { Ok::<_, Infallible>(base + 5) };
        let _ = space.get_or_load("by tag", load).tags(["tag", "another"]).await.unwrap();
        let load = |_| async move { Ok::<_, Infallible>(base + 6) };
        let _ = space.get_or_load("other tag", load).tags(["spared"]).await.unwrap();
    }
    let keys = ["by key", long.as_str(), "stays", "by removal", "by tag", "other tag"];
    let found = async |terrace: &Terrace| {
        let mut found = Vec::new();
        for space in open(terrace) {
            for answer in space.get_many(keys).await.unwrap() {
                found.push(answer.map_or(0, |answer| *answer));
            }
        }
        found
    };
    assert_eq!(found(&terrace).await, [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16]);
    assert!(one.invalidate("by key").await.unwrap().is_settled());
    assert!(one.invalidate(&long).await.unwrap().is_settled());
    assert!(one.remove("by removal").await.unwrap());
    assert!(terrace.invalidate_tag("tag").await.unwrap().is_settled());
    let expected = [0, 0, 3, 0, 0, 6, 11, 12, 13, 14, 0, 16];
    assert_eq!(found(&terrace).await, expected);
    assert!(terrace.close().await);

    let (terrace, _) = start(directory.path(), MINUTE).await;
    assert_eq!(found(&terrace).await, expected);
    // What is loaded anew may carry the tag: it is younger than the line.
    let [one, two] = open(&terrace);
    let load = |_| async { Ok::<_, Infallible>(25) };
    let _ = one.get_or_load("by tag", load).tags(["tag"]).await.unwrap();
    assert!(terrace.close().await);

    let (terrace, _) = start(directory.path(), MINUTE).await;
    assert_eq!(found(&terrace).await, [0, 0, 3, 0, 25, 6, 11, 12, 13, 14, 0, 16]);
    assert!(open(&terrace)[1].clear().await.unwrap().is_settled());
    drop((one, two));
    assert!(terrace.close().await);

    let (terrace, _) = start(directory.path(), MINUTE).await;
    assert_eq!(found(&terrace).await, [0, 0, 3, 0, 25, 6, 0, 0, 0, 0, 0, 0]);
    assert!(terrace.clear().await.unwrap().is_settled());
    assert!(terrace.close().await);
    let (terrace, _) = start(directory.path(), MINUTE).await;
    assert_eq!(found(&terrace).await, [0; 12]);
}

/// A tag and a space are forgotten by nobody because they were cleared long ago.
#[tokio::test]
async fn what_was_invalidated_stays_dead_after_very_many_lines() {
    let directory = tempfile::tempdir().unwrap();
    let (terrace, _) = start(directory.path(), Duration::ZERO).await;
    for key in ["by tag", "stays"] {
        let tags = (key == "by tag").then_some("tag");
        let _ = terrace.set(key, &1).forever().tags(tags).await.unwrap();
    }
    let _ = terrace.invalidate_tag("tag").await.unwrap();
    let others: Vec<String> = (0..70_000).map(|number| format!("other {number}")).collect();
    for others in others.chunks(10_000) {
        let others: Vec<_> = others.iter().map(String::as_str).collect();
        terrace.remove_many(&others).await.unwrap();
    }
    assert!(get(&terrace, "by tag").await.is_none());
    assert!(terrace.close().await);
    let (terrace, _) = start(directory.path(), Duration::ZERO).await;
    assert!(get(&terrace, "by tag").await.is_none());
    assert!(get(&terrace, "stays").await.is_some());
}

#[tokio::test]
async fn what_another_process_invalidated_meanwhile_is_dead() {
    let directory = tempfile::tempdir().unwrap();
    let (here, _) = start(directory.path(), Duration::ZERO).await;
    for key in ["by key", "by tag", "stays"] {
        let tags = (key == "by tag").then_some("tag");
        let _ = here.set(key, &1).forever().tags(tags).await.unwrap();
    }
    assert!(here.close().await);
    let (there, _) = start(directory.path(), Duration::ZERO).await;
    let _ = there.invalidate("by key").await.unwrap();
    let _ = there.invalidate_tag("tag").await.unwrap();
    assert!(there.close().await);
    let (here, _) = start(directory.path(), Duration::ZERO).await;
    assert!(get(&here, "by key").await.is_none());
    assert!(get(&here, "by tag").await.is_none());
    assert!(get(&here, "stays").await.is_some());
}

/// SQLite finds nothing wrong, and what is counted is what is there.
#[track_caller]
fn is_sound(database: &rusqlite::Connection) {
    let check = |query: &str| -> String {
        database.query_row(query, [], |row| row.get(0)).expect("the database answers")
    };
    assert_eq!(check("PRAGMA integrity_check"), "ok");
    let counted = check("SELECT entries || ' ' || bytes FROM usage");
    let sizes = "coalesce(sum(length(key) + length(frame)), 0)";
    let files = "(SELECT coalesce(sum(bytes), 0) FROM file WHERE state = 1)";
    let there = format!("SELECT count(*) || ' ' || ({sizes} + {files}) FROM entry");
    assert_eq!(counted, check(&there));
}

const CHILD: &str = "TERRACE_TEST_WRITER";
const TASKS: u64 = 4;

/// The value of a version of a key: its length and all its bytes follow from both.
fn value(task: u64, slot: u64, version: u64) -> String {
    let length = (task * 7 + slot * 13 + version * 31) % 200;
    format!("{version};") + &format!("{task}/{slot}/{version};").repeat(length as usize)
}

/// Writes and invalidates for ever, in several tasks, and says what was acknowledged:
/// `set` or `gone`, task, slot and version.
fn write_until_killed(directory: &str, first: u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        println!("started");
        let disk = Disk::at(directory);
        let terrace = Terrace::builder().tier("disk", disk).build().await.unwrap();
        let tasks = (0..TASKS).map(|task| {
            let terrace = terrace.clone();
            tokio::spawn(async move {
                for version in first.. {
                    let slot = fastrand::u64(..20);
                    let key = format!("{task}/{slot}");
                    let done = if fastrand::u8(..5) == 0 {
                        assert!(terrace.invalidate(&key).await.unwrap().is_settled());
                        "gone"
                    } else {
                        let value = value(task, slot, version);
                        let set = terrace.set(&key, &value).forever().tags(["tag"]);
                        assert!(set.await.unwrap().is_settled());
                        "set"
                    };
                    println!("{done} {task} {slot} {version}");
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    });
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how long a start takes is a part of the row")]
fn d1_killed_while_writing_to_disk() {
    if let Ok(order) = std::env::var(CHILD) {
        let (first, directory) = order.split_once(' ').unwrap();
        return write_until_killed(directory, first.parse().unwrap());
    }
    let directory = tempfile::tempdir().unwrap();
    let mut random = random("kills");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    // What was acknowledged last of each key: whether it is there, and the version.
    let mut known: HashMap<(u64, u64), (bool, u64)> = HashMap::new();
    let (mut acknowledged, mut found_again) = (0, 0);
    for kill in 0..count(10, 200) as u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "restart::d1_killed_while_writing_to_disk", "--nocapture"])
            .env(CHILD, format!("{} {}", kill * 1_000_000, directory.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut left = random.usize(0..2_000);
        assert!(lines.any(|line| line.unwrap() == "started"), "kill {kill}");
        let mut note = |line: &str| {
            let mut words = line.split(' ');
            let Some(word @ ("set" | "gone")) = words.next() else { return };
            let mut number = || words.next().and_then(|word| word.parse().ok());
            // The last line may be cut off: a version must be a whole one.
            let (Some(task), Some(slot), Some(version)) = (number(), number(), number()) else {
                return;
            };
            known.insert((task, slot), (word == "set", version));
            acknowledged += 1;
        };
        while left > 0 {
            note(&lines.next().expect("the child goes on").unwrap());
            left -= 1;
        }
        child.kill().unwrap();
        // What it said before it died counts.
        let rest: Vec<_> = lines.map_while(Result::ok).collect();
        rest.iter().for_each(|line| note(line));
        assert!(!child.wait().unwrap().success());

        let started = Instant::now();
        let disk = Disk::at(directory.path());
        let terrace = runtime.block_on(Terrace::builder().tier("disk", disk).build()).unwrap();
        assert!(started.elapsed() <= limit(Duration::from_secs(1)), "kill {kill}");
        let mut absent = 0;
        for (&(task, slot), (is_there, version)) in &mut known {
            let what = format!("kill {kill}, {task}/{slot}, {is_there} at {version}");
            let found: Option<Cached<String>> =
                runtime.block_on(terrace.get(&format!("{task}/{slot}"))).unwrap();
            match found {
                None => absent += u64::from(std::mem::take(is_there)),
                Some(found) => {
                    let read: u64 = found.split_once(';').unwrap().0.parse().unwrap();
                    assert!(*found == value(task, slot, read), "{what}: torn");
                    assert!(read >= *version, "{what}: version {read} was replaced");
                    assert!(*is_there || read > *version, "{what}: it was invalidated");
                    found_again += 1;
                }
            }
        }
        // Of each task one write or invalidation may be done and not acknowledged.
        assert!(absent <= TASKS, "kill {kill}: {absent} of {} are gone", known.len());
        assert_eq!(runtime.block_on(terrace.stats()).tiers[0].traffic.unreadable, 0);
        is_sound(&rusqlite::Connection::open(directory.path().join("terrace.db")).unwrap());
        assert!(runtime.block_on(terrace.close()));
    }
    assert!(acknowledged > 1_000 && found_again > 100, "{acknowledged}, {found_again}");
}
