//! Tenants in one process and over a directory: what is one's is not another's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use terrace::{BuildError, Disk, Loaded, Memory, Terrace};
use tokio::sync::Barrier;

use crate::support::{Bed, Everywhere, Layout, Refused, count, ends, eventually, random, twins};
use crate::two_tenants::{NAMES, play, two_names, with_event};

/// Calls of one pair of tenants.
const CALLS_OF_A_PAIR: usize = 2_000;

#[tokio::test]
async fn x16_tenants_do_not_meet_in_memory() {
    let mut random = random("tenants in memory");
    for _ in 0..count(20_000, 1_000_000) / CALLS_OF_A_PAIR {
        let builder = with_event(Terrace::builder()).memory(Memory::bytes(64 << 20));
        let terrace = builder.build().await.unwrap();
        play(&terrace, &mut random, CALLS_OF_A_PAIR).await;
        terrace.close().await;
    }
}

#[tokio::test]
async fn x16_tenants_do_not_meet_on_a_disk() {
    let mut random = random("tenants on a disk");
    for round in 0..count(3, 60) {
        let directory = tempfile::tempdir().unwrap();
        let mut builder = with_event(Terrace::builder()).tier("disk", Disk::at(directory.path()));
        // The disk alone, and as what memory is filled from.
        if round % 2 == 0 {
            builder = builder.memory(Memory::bytes(64 << 20));
        }
        let terrace = builder.build().await.unwrap();
        play(&terrace, &mut random, CALLS_OF_A_PAIR / 2).await;
        assert!(terrace.close().await);
    }
}

/// Whatever the names: one value each, in memory, below it, and after a restart.
#[tokio::test]
async fn x16_the_same_key_of_every_tenant_is_another() {
    let bed = Bed::new(Layout::MemoryAndDisk).await;
    let long = ["x".repeat(256), "\0".repeat(256), format!("{}y", "x".repeat(255))];
    let names = || NAMES.into_iter().chain(long.iter().map(String::as_str));
    for name in names() {
        let tenant = bed.tenant(name).unwrap();
        tenant.set("key", &name.to_owned()).forever().await.everywhere();
    }
    bed.set("key", &String::new()).forever().await.everywhere();
    let check = async |terrace: &Terrace| {
        for name in names() {
            let found = terrace.tenant(name).unwrap().get::<String>("key").await.unwrap();
            assert_eq!(found.as_deref().unwrap(), name);
        }
        assert_eq!(terrace.get::<String>("key").await.unwrap().as_deref().unwrap(), "");
    };
    check(&bed).await;
    bed.clear_tier("memory").await.unwrap();
    check(&bed).await;
    bed.close().await;
    let again = Terrace::builder().tier("disk", Disk::at(bed.directory.path()));
    check(&again.build().await.unwrap()).await;
}

#[tokio::test]
async fn x16_clearing_one_tenant_leaves_the_others_in_every_process() {
    let directory = tempfile::tempdir().unwrap();
    let [here, there] = twins(&directory).await;
    let mut random = random("who is cleared");
    for round in 0..count(5, 100) {
        let [one, other] = two_names(&mut random);
        let [one, other] = [one, other].map(|name| format!("{name}{round}"));
        let Ok(cleared) = here.tenant(&one) else { continue };
        let (left, reader) = (here.tenant(&other).unwrap(), there.tenant(&one).unwrap());
        let long = "k".repeat(500);
        for key in ["k", &long] {
            cleared.set(key, &1).forever().await.everywhere();
            left.set(key, &2).forever().await.everywhere();
            // In the memory of another process, too, and in a space that is not open here.
            assert_eq!(reader.get::<i32>(key).await.unwrap().as_deref(), Some(&1));
        }
        let elsewhere = reader.space::<str, i32>("elsewhere").forever().build().unwrap();
        elsewhere.insert("k", 3).await.everywhere();
        cleared.increment("n", 5).await.unwrap();
        left.increment("n", 7).await.unwrap();

        cleared.clear().await.everywhere();
        for key in ["k", &long] {
            assert!(cleared.get::<i32>(key).await.unwrap().is_none());
            assert_eq!(left.get::<i32>(key).await.unwrap().as_deref(), Some(&2));
        }
        assert_eq!(cleared.counter("n").await.unwrap(), None);
        assert_eq!(left.counter("n").await.unwrap(), Some(7));
        eventually("the other process hears of it", async || {
            let is_gone = elsewhere.get("k").await.unwrap().is_none();
            is_gone && reader.get::<i32>(&long).await.unwrap().is_none()
        })
        .await;
        let other_reader = there.tenant(&other).unwrap();
        assert_eq!(other_reader.get::<i32>("k").await.unwrap().as_deref(), Some(&2));
    }
}

/// A load of one is none of the other's: neither shared, nor fenced, nor held back.
#[tokio::test]
async fn x16_loads_of_two_tenants_are_two() {
    let bed = Bed::new(Layout::MemoryAndDisk).await;
    let tenants = ["a", "b"].map(|name| bed.tenant(name).unwrap());
    let both = Arc::new(Barrier::new(2));
    let loads = Arc::new(AtomicU64::new(0));
    let load = |index: usize| {
        let space = tenants[index].space::<str, usize>("s").build().unwrap();
        let (both, loads) = (Arc::clone(&both), Arc::clone(&loads));
        async move {
            let load = |_| async move {
                loads.fetch_add(1, Ordering::SeqCst);
                // Each runs while the other does.
                both.wait().await;
                Ok::<_, Refused>(Loaded::value(index).tags(["t"]))
            };
            *space.get_or_load("k", load).await.unwrap()
        }
    };
    let answers = ends("two loads", async { tokio::join!(load(0), load(1)) }).await;
    assert_eq!((answers, loads.load(Ordering::SeqCst)), ((0, 1), 2));
    tenants[0].invalidate_tag("t").await.everywhere();
    let space = |index: usize| tenants[index].space::<str, usize>("s").build().unwrap();
    assert!(space(0).get("k").await.unwrap().is_none());
    let kept = space(1).get("k").await.unwrap().unwrap();
    assert_eq!((*kept, kept.tags().collect::<Vec<_>>()), (1, vec!["t".into()]));

    let (failing, loading) = (space(0), space(1));
    let fails = failing.get_or_load("bad", |_| async { Err::<usize, _>(Refused(1)) });
    assert!(fails.await.is_err());
    let loads = loading.get_or_load("bad", |_| async { Ok::<_, Refused>(7) });
    assert_eq!(*loads.await.unwrap(), 7);
}

/// What is built from another tenant's entries goes when that one is cleared.
#[tokio::test]
async fn what_was_built_from_a_tenant_goes_with_it() {
    let bed = Bed::new(Layout::Memory).await;
    let prices = bed.tenant("shop").unwrap().space::<str, u64>("price").tracked().build().unwrap();
    prices.insert("apple", 2).await.everywhere();
    let totals = bed.space::<str, u64>("total").build().unwrap();
    let total = totals.get_or_load("all", |_| {
        let prices = prices.clone();
        async move { prices.get("apple").await.map(|price| price.map_or(0, |price| *price)) }
    });
    assert_eq!(*total.await.unwrap(), 2);
    bed.tenant("stop").unwrap().clear().await.everywhere();
    assert!(totals.exists("all").await.unwrap());
    bed.tenant("shop").unwrap().clear().await.everywhere();
    assert!(!totals.exists("all").await.unwrap());
}

#[tokio::test]
async fn a_tenant_without_a_proper_name_is_refused() {
    let bed = Bed::new(Layout::Memory).await;
    for name in ["", &"x".repeat(257)] {
        assert!(matches!(bed.tenant(name), Err(BuildError::BadName { .. })));
    }
}

/// However many there were: no more are known than may be, and whose turn is next sees nothing of
/// whoever had its place.
#[tokio::test]
async fn x16_forgotten_tenants_leave_nothing_to_the_next() {
    const MOST: usize = 8;
    let directory = tempfile::tempdir().unwrap();
    let builder = Terrace::builder().memory(Memory::bytes(64 << 20)).max_tenants(MOST);
    let terrace = builder.tier("disk", Disk::at(directory.path())).build().await.unwrap();
    let held = terrace.tenant("held").unwrap();
    held.set("k", &u64::MAX).forever().await.everywhere();
    for number in 0..count(200, 5_000) as u64 {
        let tenant = terrace.tenant(&format!("t{number}")).unwrap();
        assert!(tenant.get::<u64>("k").await.unwrap().is_none());
        let space =
            tenant.space::<str, u64>("s").retry(Duration::from_secs(60), Duration::from_secs(60));
        let space = space.build().unwrap();
        // A key that failed is held back for a minute: for whoever it failed for.
        let odd = number % 2 == 1;
        let load = move |_| async move { if odd { Err(Refused(number)) } else { Ok(number) } };
        let loaded = space.get_or_load("k", load).await;
        assert_eq!(loaded.is_err(), odd, "{number}");
        tenant.set("k", &number).forever().await.everywhere();
        drop((tenant, space));
        let stats = terrace.stats().await;
        assert!(stats.spaces.len() <= 2 * (MOST + 1), "{} spaces", stats.spaces.len());
        assert!(stats.tiers[0].entries <= 2 * (MOST as u64 + 1), "{}", stats.tiers[0].entries);
    }
    // What is below memory is still there, and whoever is held was never forgotten.
    let first = terrace.tenant("t0").unwrap();
    assert_eq!(first.get::<u64>("k").await.unwrap().as_deref(), Some(&0));
    assert_eq!(held.stats().tiers[0].1.writes, 1);
    assert_eq!(held.get::<u64>("k").await.unwrap().as_deref(), Some(&u64::MAX));
}

#[tokio::test]
async fn more_tenants_than_there_may_be_are_refused_while_they_are_held() {
    let builder = Terrace::builder().memory(Memory::bytes(1 << 20)).max_tenants(2);
    let terrace = builder.build().await.unwrap();
    let space = terrace.tenant("a").unwrap().space::<str, u64>("s").build().unwrap();
    let b = terrace.tenant("b").unwrap();
    let refused = terrace.tenant("c");
    assert!(matches!(refused, Err(BuildError::TooManyTenants { most: 2 })), "{refused:?}");
    // A space is a handle, too.
    drop(b);
    terrace.tenant("c").unwrap().set("k", &1).await.everywhere();
    space.insert("k", 2).await.everywhere();
    assert_eq!(space.get("k").await.unwrap().as_deref(), Some(&2));
}
