//! A start with what was hot: what is brought into memory, in which order and how fast, and what
//! never is.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use terrace::{BuildError, Builder, Disk, Memory, Space, Terrace, WarmStart};

use crate::support::{Everywhere as _, eventually, ms, random};

/// The key, so that no value can stand under another one, and its version.
type Value = (u64, u64);

fn builder(directory: &Path) -> Builder {
    Terrace::builder()
        .memory(Memory::bytes(16 << 20))
        .tier("disk", Disk::at(directory.join("disk")))
}

fn snapshot(directory: &Path) -> WarmStart {
    WarmStart::at(directory.join("hot"))
}

async fn cache(builder: Builder) -> (Terrace, Space<u64, Value>) {
    let terrace = builder.build().await.expect("a cache");
    let space = terrace.space("space").forever().build().unwrap();
    (terrace, space)
}

/// With a snapshot, as far as it goes.
async fn warmed(directory: &Path) -> (Terrace, Space<u64, Value>) {
    let (terrace, space) = cache(builder(directory).warm_start(snapshot(directory))).await;
    until_warm(&terrace).await;
    (terrace, space)
}

async fn until_warm(terrace: &Terrace) {
    eventually("memory to be warm", async || terrace.stats().await.warming == 0).await;
}

/// What memory has under a key.
fn held(space: &Space<u64, Value>, key: u64) -> Option<u64> {
    space.read(&key, |value| {
        assert_eq!(value.0, key, "a value of another key");
        value.1
    })
}

/// A cache that was used and closed: key 0 was read most, then 1, and so on.
async fn leave(directory: &Path, keys: u64, settings: WarmStart) {
    let (terrace, space) = cache(builder(directory).warm_start(settings)).await;
    for key in 0..keys {
        space.insert(&key, (key, 1)).tags([format!("tag:{}", key % 10)]).await.everywhere();
    }
    for round in 0..keys.min(20) {
        for key in 0..keys.min(20) - round {
            for _ in 0..3 {
                assert_eq!(held(&space, key), Some(1));
            }
        }
    }
    assert!(terrace.close().await);
}

#[tokio::test]
async fn what_was_hot_is_in_memory_before_anybody_asks() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    leave(directory, 1_000, snapshot(directory).max_keys(100)).await;

    let (terrace, space) = cache(builder(directory)).await;
    assert_eq!(terrace.stats().await.warming, 0, "off unless set");
    assert!((0..1_000).all(|key| held(&space, key).is_none()));
    drop((terrace, space));

    let (terrace, space) = warmed(directory).await;
    assert_eq!(terrace.stats().await.warmed, 100);
    let there = (0..1_000).filter(|key| held(&space, *key).is_some()).collect::<BTreeSet<_>>();
    assert_eq!(there.len(), 100);
    assert!((0..5).all(|key| there.contains(&key)), "the hottest are among them: {there:?}");
    let stats = terrace.stats().await;
    assert_eq!(stats.spaces.iter().map(|space| space.loads).sum::<u64>(), 0);

    // Nobody has opened this space yet: what was hot in it is still so at the next start.
    let other = builder(directory).warm_start(snapshot(directory)).build().await.unwrap();
    assert_eq!(other.stats().await.warming, 100);
    drop((terrace, space));
    other.close().await;
    let (terrace, _space) = warmed(directory).await;
    assert_eq!(terrace.stats().await.warmed, 100);
}

#[tokio::test]
async fn the_hottest_come_first_and_no_faster_than_is_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    leave(directory, 200, snapshot(directory)).await;
    let settings = snapshot(directory).keys_per_second(100);
    let began = Instant::now();
    let (terrace, space) = cache(builder(directory).warm_start(settings)).await;
    // Five at a time.
    let mut seen = BTreeSet::new();
    while seen.len() < 20 {
        tokio::time::sleep(ms(1)).await;
        let warmed = terrace.stats().await.warmed;
        seen.extend((0..200).filter(|key| held(&space, *key).is_some()));
        let at_most = began.elapsed().as_millis() as u64 / 10 + 10;
        assert!(warmed <= at_most, "{warmed} after {:?}", began.elapsed());
    }
    // Reads are counted by fours and the like: the very order is the policy's.
    let hot = seen.iter().filter(|key| **key < 20).count();
    assert!(hot >= 15, "{seen:?}");
    // Whoever closes does not wait for the rest, and forgets none of it.
    terrace.close().await;
    let (terrace, _space) = warmed(directory).await;
    assert_eq!(terrace.stats().await.warmed, 200);
}

#[tokio::test]
async fn what_was_invalidated_meanwhile_is_not_brought_back() {
    for seed in 0..5 {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let mut random = random(&format!("invalidations of round {seed}"));
        leave(directory, 300, snapshot(directory)).await;
        // Somebody else, who has no snapshot.
        let (terrace, space) = cache(builder(directory)).await;
        let (mut gone, mut newer) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..60 {
            let key = random.u64(..300);
            match random.u8(..10) {
                0 => {
                    terrace.invalidate_tag(&format!("tag:{}", key % 10)).await.everywhere();
                    gone.extend((0..300).filter(|other| other % 10 == key % 10));
                    // What is inserted here anew has no tag.
                    gone.retain(|key| !newer.contains(key));
                }
                1..5 => {
                    space.invalidate(&key).await.everywhere();
                    gone.insert(key);
                    newer.remove(&key);
                }
                _ => {
                    space.insert(&key, (key, 2)).await.everywhere();
                    newer.insert(key);
                    gone.remove(&key);
                }
            }
        }
        drop((terrace, space));
        let (terrace, space) = warmed(directory).await;
        let warm = 300 - gone.len() as u64;
        assert_eq!(terrace.stats().await.warmed, warm);
        for key in 0..300 {
            let expected = (!gone.contains(&key)).then(|| 1 + u64::from(newer.contains(&key)));
            assert_eq!(held(&space, key), expected, "{key}");
        }
        // Everything was, while nobody looked.
        assert!(terrace.close().await);
        let (terrace, space) = cache(builder(directory)).await;
        space.clear().await.everywhere();
        drop((terrace, space));
        let (terrace, space) = warmed(directory).await;
        assert_eq!(terrace.stats().await.warmed, 0);
        assert!((0..300).all(|key| held(&space, key).is_none()));
    }
}

#[tokio::test]
async fn what_the_disk_has_let_go_of_is_put_there_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (terrace, space) = cache(builder(directory).warm_start(snapshot(directory))).await;
    for key in 0..100 {
        space.insert(&key, (key, 1)).await.everywhere();
    }
    terrace.clear_tier("disk").await.unwrap();
    // Another process has heard of it, and so does the disk.
    let (other, theirs) = cache(builder(directory)).await;
    for key in 50..100 {
        theirs.invalidate(&key).await.everywhere();
    }
    other.close().await;
    assert!(terrace.close().await);
    let (terrace, space) = warmed(directory).await;
    assert_eq!(terrace.stats().await.warmed, 50);
    for key in 0..100 {
        assert_eq!(held(&space, key), (key < 50).then_some(1), "{key}");
    }
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_used_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    leave(directory, 50, snapshot(directory)).await;
    let path = directory.join("hot");
    let good = fs::read(&path).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let mut random = random("damage");
    let damaged = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let mut newer = good.clone();
    newer[4] = 2;
    let foreign = b"#!/bin/sh\necho somebody else's\n".to_vec();
    let cases = [
        ("damaged", damaged(random.usize(5..good.len()))),
        ("cut off", good[..random.usize(4..good.len())].to_vec()),
        ("newer", newer),
        ("empty", Vec::new()),
        ("foreign", foreign.clone()),
        ("large", vec![0; 20 << 20]),
    ];
    for (what, bytes) in cases {
        fs::write(&path, &bytes).unwrap();
        let (terrace, space) = warmed(directory).await;
        assert_eq!(terrace.stats().await.warmed, 0, "{what}");
        assert!(held(&space, 1).is_none(), "{what}");
        // It is an ordinary cache.
        assert_eq!(space.get(&1).await.unwrap().as_deref(), Some(&(1, 1)), "{what}");
        assert!(terrace.close().await);
        let now = fs::read(&path).unwrap();
        if matches!(what, "foreign" | "large") {
            assert!(now == bytes, "{what}: nothing of others' is replaced");
        } else {
            assert_ne!(now, bytes, "{what}: what is hot now");
            let (terrace, _space) = warmed(directory).await;
            assert_eq!(terrace.stats().await.warmed, 1);
        }
    }
    // Nothing else is left beside it.
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["disk", "hot"]);
    // A place that is none: the cache works all the same.
    let nowhere = WarmStart::at(directory.join("none").join("hot"));
    let (terrace, _space) = cache(builder(directory).warm_start(nowhere)).await;
    assert!(terrace.close().await);
}

#[tokio::test]
async fn settings_that_cannot_be_meant_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let memory_alone = Terrace::builder().memory(Memory::bytes(1 << 20));
    let disk_alone = Terrace::builder().tier("disk", Disk::at(directory));
    for builder in [
        memory_alone.warm_start(snapshot(directory)),
        disk_alone.warm_start(snapshot(directory)),
        builder(directory).warm_start(snapshot(directory).keys_per_second(0)),
    ] {
        let refused = builder.build().await.unwrap_err();
        assert!(matches!(refused, BuildError::Setting(_)), "{refused}");
    }
}
