//! Names broader than a key: tags, prefixes and spaces, named while what they name is loaded,
//! refreshed, copied and read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use terrace::{Disk, Loaded, Memory, Terrace, Tier};
use terrace_test::MapStore;

use crate::race::{Kind, many_orders_of};
use crate::support::{Bed, Everywhere as _, Layout, Refused, count, ms, twins};

async fn many_orders(kind: Kind) {
    for layout in Layout::ALL {
        many_orders_of(layout, &[kind], count(1_000, 10_000)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c9_a_tag_is_invalidated_during_loads_and_refreshes() {
    many_orders(Kind::Tag).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c9_a_prefix_is_invalidated_during_loads_and_refreshes() {
    many_orders(Kind::Prefix).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c9_a_space_is_cleared_during_loads_and_refreshes() {
    many_orders(Kind::Space).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c9_what_matches_a_pattern_is_removed_during_loads_and_refreshes() {
    many_orders(Kind::Pattern).await;
}

#[tokio::test]
async fn a_prefix_names_the_keys_that_begin_with_it_and_no_others() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let texts = bed.space::<str, u64>("text").build().unwrap();
        let other = bed.space::<str, u64>("text2").build().unwrap();
        let odd = ["user:1", "user:", "user", "use", "user:%1", "%", "*:1", "[u]ser:1", "user;1"];
        for prefix in ["user:", "user", "u", "*", "[", "%", "user:%", "nobody"] {
            for key in odd {
                texts.insert(key, 1).await.everywhere();
                other.insert(key, 1).await.everywhere();
            }
            texts.invalidate_prefix(prefix).await.everywhere();
            for key in odd {
                let found = texts.get(key).await.unwrap().is_some();
                assert_eq!(found, !key.starts_with(prefix), "{prefix:?} and {key:?} in {layout:?}");
                assert!(other.get(key).await.unwrap().is_some(), "another space's {key:?}");
            }
        }
        let pairs = bed.space::<(String, String), u64>("pair").build().unwrap();
        let keys = [("a", "b"), ("a:b", "c"), ("a", ""), ("", "a"), ("ab", "c")]
            .map(|(one, two)| (one.to_owned(), two.to_owned()));
        for key in &keys {
            pairs.insert(key, 1).await.everywhere();
        }
        pairs.invalidate_prefix(&("a".to_owned(),)).await.everywhere();
        for key in &keys {
            let found = pairs.get(key).await.unwrap().is_some();
            assert_eq!(found, key.0 != "a", "{key:?} in {layout:?}");
        }
    }
}

/// The ledger knows a long key by its hash alone.
#[tokio::test]
async fn a_prefix_reaches_keys_that_are_too_long_to_be_names() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, u64>("space").build().unwrap();
        let (long, short) = ("user:".repeat(100), "other");
        space.insert(&long, 1).await.everywhere();
        space.insert(short, 1).await.everywhere();
        space.invalidate_prefix("user:").await.everywhere();
        assert!(space.get(&long).await.unwrap().is_none(), "{layout:?}");
        assert!(space.get(short).await.unwrap().is_some(), "{layout:?}");
        // A prefix that is itself too long.
        space.insert(&long, 1).await.everywhere();
        space.invalidate_prefix(&long[..450]).await.everywhere();
        assert!(space.get(&long).await.unwrap().is_none(), "{layout:?}");
        assert!(space.get(short).await.unwrap().is_some(), "{layout:?}");
        space.insert(&long, 2).await.everywhere();
        let found = space.get(&long).await.unwrap().unwrap();
        assert_eq!((*found, found.tags().count()), (2, 0), "{layout:?}");
    }
}

#[tokio::test]
async fn a_prefix_holds_in_other_processes_and_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let [one, two] = twins(&directory).await;
    let spaces = [&one, &two].map(|terrace| terrace.space::<str, u64>("space").build().unwrap());
    for key in ["a:1", "b:1"] {
        spaces[0].insert(key, 1).await.everywhere();
        crate::support::eventually("the other process has it", async || {
            spaces[1].get(key).await.unwrap().is_some()
        })
        .await;
    }
    spaces[0].invalidate_prefix("a:").await.everywhere();
    crate::support::eventually("the other process hears of it", async || {
        spaces[1].get("a:1").await.unwrap().is_none()
    })
    .await;
    assert!(spaces[1].get("b:1").await.unwrap().is_some());
    one.close().await;
    two.close().await;
    let later = Terrace::builder().tier("disk", Disk::at(directory.path())).build().await.unwrap();
    let space = later.space::<str, u64>("space").build().unwrap();
    assert!(space.get("a:1").await.unwrap().is_none());
    assert!(space.get("b:1").await.unwrap().is_some());
}

/// What a loader answers, and how often it was asked.
struct Rates {
    value: AtomicU64,
    asked: AtomicU64,
}

impl Rates {
    fn new() -> Arc<Self> {
        Arc::new(Self { value: AtomicU64::new(1), asked: AtomicU64::new(0) })
    }

    async fn load(self: Arc<Self>) -> Result<Loaded<u64>, Refused> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match self.value.load(Ordering::SeqCst) {
            0 => Err(Refused(0)),
            value => Ok(Loaded::value(value).tags(["rates"])),
        }
    }
}

#[tokio::test]
async fn what_is_marked_stale_is_loaded_again_and_stands_in_if_that_fails() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, u64>("rate").stale_for(ms(60_000)).retry(ms(0), ms(0));
        let space = space.build().unwrap();
        let rates = Rates::new();
        let ask = async || {
            let found = space.get_or_load("key", |_| Arc::clone(&rates).load()).await.unwrap();
            (*found, found.is_stale())
        };
        assert_eq!(ask().await, (1, false));
        assert_eq!(ask().await, (1, false));
        space.insert("other", 7).tags(["others"]).await.everywhere();

        rates.value.store(0, Ordering::SeqCst);
        bed.mark_stale_tag("rates").await.everywhere();
        assert!(space.get("key").await.unwrap().is_none(), "{layout:?}");
        assert_eq!(ask().await, (1, true), "{layout:?}");
        rates.value.store(2, Ordering::SeqCst);
        assert_eq!(ask().await, (2, false), "{layout:?}");
        assert_eq!(ask().await, (2, false), "{layout:?}");
        assert_eq!(rates.asked.load(Ordering::SeqCst), 3, "{layout:?}");
        assert_eq!(*space.get("other").await.unwrap().unwrap(), 7, "{layout:?}");

        // What is invalidated never stands in.
        bed.mark_stale_tag("rates").await.everywhere();
        bed.invalidate_tag("rates").await.everywhere();
        rates.value.store(0, Ordering::SeqCst);
        let failed = space.get_or_load("key", |_| Arc::clone(&rates).load()).await;
        assert!(failed.is_err(), "{layout:?}");
    }
}

#[tokio::test]
async fn what_is_marked_stale_is_gone_where_nothing_stale_is_allowed() {
    let bed = Bed::new(Layout::MemoryAndMap).await;
    let space = bed.space::<str, u64>("space").build().unwrap();
    space.insert("key", 1).tags(["tag"]).await.everywhere();
    bed.mark_stale_tag("tag").await.everywhere();
    assert!(space.get("key").await.unwrap().is_none());
    let found = space.get_or_load("key", |_| async { Err::<u64, _>(Refused(1)) }).await;
    assert!(found.is_err());
    let late = space.get("key").max_stale(ms(60_000)).await.unwrap();
    assert!(late.is_none());
}

/// A tag's name is remembered for as long as there is room for it; afterwards what is older than
/// it is not trusted, whatever tags it has.
#[tokio::test]
async fn a_tag_that_had_to_be_forgotten_never_makes_an_old_entry_valid() {
    let terrace = Terrace::builder()
        .memory(Memory::bytes(64 << 20))
        .tier("map", Tier::of(MapStore::new()))
        .build()
        .await
        .unwrap();
    let space = terrace.space::<str, u64>("space").build().unwrap();
    space.insert("named", 1).tags(["early"]).await.everywhere();
    space.insert("unnamed", 1).tags(["never"]).await.everywhere();
    terrace.invalidate_tag("early").await.everywhere();
    space.insert("between", 1).tags(["never"]).await.everywhere();
    for tag in 0..80_000 {
        terrace.invalidate_tag(&format!("tag {tag}")).await.everywhere();
    }
    for key in ["named", "unnamed", "between"] {
        assert!(space.get(key).await.unwrap().is_none(), "{key}");
    }
    space.insert("new", 1).tags(["early"]).await.everywhere();
    assert!(space.get("new").await.unwrap().is_some());
}
