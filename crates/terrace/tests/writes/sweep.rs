//! Sweeps: what matches a pattern goes from every tier, is counted, and nothing else does.

use std::sync::Arc;

use terrace::{Error, Memory, Space, Terrace, Tier};
use terrace_test::MapStore;
use tokio::sync::Semaphore;

use crate::support::{
    Bed, Everywhere as _, Layout, Refused, count, ends, eventually, let_others_run, once_polled,
    random, twins,
};

const KEYS: [&str; 9] =
    ["user:1:cart", "user:2:cart", "user:2:name", "user:*:cart", "a", "b", "[ab]", "", "Ünïcode"];

/// Patterns, and those of the keys that match.
const PATTERNS: [(&str, &[&str]); 7] = [
    ("user:*:cart", &["user:1:cart", "user:2:cart", "user:*:cart"]),
    ("user:\\*:cart", &["user:*:cart"]),
    ("user:?:name", &["user:2:name"]),
    ("[ab]", &["a", "b"]),
    ("\\[ab\\]", &["[ab]"]),
    ("?n*e", &["Ünïcode"]),
    ("nobody?", &[]),
];

async fn fill(space: &Space<str, u64>) {
    for key in KEYS {
        space.insert(key, 1).await.everywhere();
    }
}

async fn left(space: &Space<str, u64>) -> Vec<&'static str> {
    let mut left = Vec::new();
    for key in KEYS {
        left.extend(space.get(key).await.unwrap().map(|_| key));
    }
    left
}

#[tokio::test]
async fn what_matches_goes_from_every_tier_and_is_counted() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, u64>("space").build().unwrap();
        let other = bed.space::<str, u64>("space2").build().unwrap();
        fill(&other).await;
        for (pattern, matching) in PATTERNS {
            fill(&space).await;
            let would = space.remove_pattern(pattern).dry_run().await.unwrap();
            assert_eq!(left(&space).await, KEYS, "a dry run of {pattern}");
            let removed = space.remove_pattern(pattern).await.unwrap();
            assert_eq!(would, removed, "{pattern} in {layout:?}");
            assert_eq!(removed.entries.len(), bed.tiers().count());
            for (tier, entries) in &removed.entries {
                assert_eq!(*entries, matching.len() as u64, "{pattern} in {tier} of {layout:?}");
            }
            let others: Vec<_> = KEYS.into_iter().filter(|key| !matching.contains(key)).collect();
            assert_eq!(left(&space).await, others, "{pattern} in {layout:?}");
            if matches!(layout, Layout::MemoryAndDisk | Layout::MemoryAndMap) {
                bed.clear_tier("memory").await.unwrap();
                assert_eq!(left(&space).await, others, "{pattern} below memory in {layout:?}");
            }
        }
        assert_eq!(left(&other).await, KEYS);
    }
}

#[tokio::test]
async fn a_plain_prefix_is_one_line() {
    let bed = Bed::new(Layout::MemoryAndMap).await;
    let space = bed.space::<str, u64>("space").build().unwrap();
    fill(&space).await;
    let would = space.remove_pattern("user:*").dry_run().await.unwrap();
    assert_eq!(would.entries, [("memory".into(), 4), ("map".into(), 4)]);
    let removed = space.remove_pattern("user:*").await.unwrap();
    assert!(removed.entries.is_empty() && removed.settled.is_settled());
    assert_eq!(left(&space).await, ["a", "b", "[ab]", "", "Ünïcode"]);
    space.remove_pattern("*").await.unwrap();
    assert!(left(&space).await.is_empty());
}

/// Below memory only the hash of a long key is its name.
#[tokio::test]
async fn long_keys_are_matched_as_they_are() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let (one, two) = ("long ".repeat(100), "gone ".repeat(100));
        bed.set(&one, &1).await.everywhere();
        bed.set(&two, &2).await.everywhere();
        let removed = bed.remove_pattern("g*n? ").await.unwrap();
        assert!(removed.entries.iter().all(|(_, entries)| *entries == 1), "{removed:?} {layout:?}");
        assert!(bed.exists(&one).await.unwrap() && !bed.exists(&two).await.unwrap());
    }
}

#[tokio::test]
async fn the_parts_of_a_tuple_are_matched_with_colons_between_them() {
    let bed = Bed::new(Layout::MemoryAndDisk).await;
    let space = bed.space::<(String, u16), u64>("space").build().unwrap();
    let keys = [("TSLA", 2022), ("TSLA", 2023), ("AAPL", 2023)].map(|(a, b)| (a.to_owned(), b));
    for key in &keys {
        space.insert(key, 1).await.everywhere();
    }
    space.remove_pattern("*:2023").await.unwrap();
    assert_eq!(space.exists_many(&keys).await.unwrap(), 1);
    assert!(space.exists(&keys[0]).await.unwrap());
}

#[tokio::test]
async fn what_is_being_loaded_is_held_back() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, u64>("space").build().unwrap();
        let gate = Arc::new(Semaphore::new(0));
        let before = tokio::spawn({
            let (space, gate) = (space.clone(), Arc::clone(&gate));
            async move {
                let load = space.get_or_load("user:1:cart", |_| async move {
                    let _ = gate.acquire().await;
                    Ok::<u64, Refused>(1)
                });
                *once_polled(load, || {}).await.unwrap()
            }
        });
        eventually("a load is under way", async || bed.stats().await.loads_running == 1).await;
        space.remove_pattern("u*:cart").await.unwrap();
        let later = tokio::spawn({
            let space = space.clone();
            async move {
                let load = space.get_or_load("user:1:cart", |_| async { Ok::<u64, Refused>(2) });
                *load.await.unwrap()
            }
        });
        let_others_run().await;
        gate.close();
        assert_eq!(ends("the load from before", before).await.unwrap(), 1, "{layout:?}");
        assert_eq!(ends("a later load", later).await.unwrap(), 2, "{layout:?}");
        assert_eq!(*space.get("user:1:cart").await.unwrap().unwrap(), 2, "{layout:?}");
    }
}

#[tokio::test]
async fn other_processes_forget_what_only_they_have() {
    let directory = tempfile::tempdir().unwrap();
    let [one, two] = twins(&directory).await;
    // Values that never leave memory: no other process can see them.
    let there = two.space::<str, u64>("space").build_in_memory().unwrap();
    fill(&there).await;
    let here = one.space::<str, u64>("space").build_in_memory().unwrap();
    fill(&here).await;
    eventually("lines are heard", async || left(&there).await.is_empty()).await;
    fill(&there).await;
    let removed = here.remove_pattern("user:?:cart").await.unwrap();
    assert!(removed.settled.is_settled());
    eventually("the sweep is heard", async || there.read("user:1:cart", |_| ()).is_none()).await;
    assert_eq!(left(&there).await.len(), KEYS.len() - 3);
}

#[tokio::test]
async fn what_is_no_pattern_is_an_error_and_removes_nothing() {
    let bed = Bed::new(Layout::MemoryAndDisk).await;
    let space = bed.space::<str, u64>("space").build().unwrap();
    fill(&space).await;
    for pattern in ["[", "a\\", "[z-a]*"] {
        let failed = space.remove_pattern(pattern).await;
        assert!(matches!(failed, Err(Error::Pattern(_))), "{pattern}: {failed:?}");
    }
    assert_eq!(left(&space).await, KEYS);
    bed.close().await;
    assert!(matches!(space.remove_pattern("a?").await, Err(Error::Closed)));
}

/// Names made of what means something to stores, patterns and the ledger.
fn odd_name(random: &mut fastrand::Rng) -> String {
    let letters: Vec<char> = "ab*?[]^-\\:%#!~{}\"' \r\n\0é".chars().collect();
    (0..random.usize(1..6)).map(|_| letters[random.usize(0..letters.len())]).collect()
}

#[tokio::test]
async fn x2_clearing_a_space_of_an_odd_name_clears_no_other() {
    let mut random = random("names of spaces");
    let mut names: Vec<String> = ["a*", "[ab]", "\\", "a", "b", "ab", "*", "?", "a:b", "", "%"]
        .into_iter()
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    while names.len() < 10 + count(20, 1_000) {
        let name = odd_name(&mut random);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for layout in [Layout::MemoryAndDisk, Layout::MemoryAndMap] {
        let bed = Bed::new(layout).await;
        let spaces: Vec<Space<str, u64>> =
            names.iter().map(|name| bed.space(name).build().unwrap()).collect();
        for space in &spaces {
            space.insert("key", 1).await.everywhere();
            space.insert("*", 1).await.everywhere();
        }
        for (at, space) in spaces.iter().enumerate() {
            match at % 3 {
                0 => space.clear().await.everywhere(),
                1 => space.invalidate_prefix("").await.everywhere(),
                _ => drop(space.remove_pattern("?*").await.unwrap()),
            }
            assert_eq!(space.exists_many(["key", "*"]).await.unwrap(), 0, "{:?}", names[at]);
            // Those around it, and one far away.
            for other in [at + 1, at + 2, random.usize(0..spaces.len())] {
                if other > at && other < spaces.len() {
                    let there = spaces[other].exists_many(["key", "*"]).await.unwrap();
                    assert_eq!(there, 2, "{:?} after {:?}", names[other], names[at]);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_store_that_fails_on_the_way_is_an_error() {
    let store = Arc::new(terrace_test::ChaosStore::over(Arc::new(MapStore::new())));
    let terrace = Terrace::builder()
        .memory(Memory::bytes(1 << 20))
        .tier("map", Tier::shared(Arc::clone(&store) as _))
        .build()
        .await
        .unwrap();
    terrace.set("a:1", &1).await.everywhere();
    store.fail();
    let failed = terrace.remove_pattern("a?1").await;
    store.heal();
    assert!(matches!(failed, Err(Error::Tier { .. })), "{failed:?}");
    // Nobody is told that it is gone, and here it is.
    assert!(terrace.get::<i32>("a:1").await.unwrap().is_some());
}
