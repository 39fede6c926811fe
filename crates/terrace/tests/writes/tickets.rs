//! Loads that callers run themselves: what they fill in is stored in every tier, unless
//! something has made it out of date since they took their ticket.

use std::sync::Arc;
use std::time::Duration;

use terrace::frame::decode;
use terrace::{Error, Loaded, Memory, Source, Space, Terrace, Tier};
use terrace_test::{ManualClock, MapStore, START};

use crate::support::{Bed, Everywhere as _, Layout, eventually, twins};

const SECOND: Duration = Duration::from_secs(1);

type Numbers = Space<str, u32>;

#[tokio::test]
async fn what_was_invalidated_since_the_ticket_is_not_filled_in() {
    for layout in Layout::ALL {
        for event in 0..9 {
            let what = format!("{layout:?}, event {event}");
            let bed = Bed::new(layout).await;
            let space: Numbers = bed.space("space").build().unwrap();
            let other: Numbers = bed.space("other").build().unwrap();
            // What came before the ticket is of no account.
            space.invalidate("key").await.everywhere();
            bed.invalidate_tag("tag").await.everywhere();
            let ticket = space.ticket();
            match event {
                0 => space.invalidate("key").await.everywhere(),
                1 => bed.invalidate_tag("tag").await.everywhere(),
                2 => space.clear().await.everywhere(),
                3 => bed.clear().await.everywhere(),
                4 => space.insert("key", 9).await.everywhere(),
                5 => assert!(space.insert_if_absent("key", 9).await.unwrap()),
                6 => {}
                7 => space.invalidate("another key").await.everywhere(),
                _ => {
                    bed.invalidate_tag("another tag").await.everywhere();
                    other.clear().await.everywhere();
                    other.insert("key", 3).await.everywhere();
                }
            }
            let value = Loaded::value(7).tags(["tag"]);
            let is_filled = space.fill("key", ticket, value).await.unwrap();
            assert_eq!(is_filled, event > 5, "{what}");
            let expected = match event {
                0..=3 => None,
                4 | 5 => Some(9),
                _ => Some(7),
            };
            assert_eq!(space.get("key").await.unwrap().as_deref().copied(), expected, "{what}");
            if layout == Layout::MemoryAndDisk || layout == Layout::MemoryAndMap {
                bed.clear_tier("memory").await.unwrap();
                let found = space.get("key").await.unwrap();
                assert_eq!(found.as_deref().copied(), expected, "{what}: below memory");
            }
            // A ticket that was taken since will do.
            assert!(space.fill("key", space.ticket(), 8).await.unwrap(), "{what}");
            assert_eq!(space.get("key").await.unwrap().as_deref(), Some(&8), "{what}");
            assert_eq!(bed.stats().await.underway, 0, "{what}");
        }
    }
}

#[tokio::test]
async fn what_is_filled_in_is_stored_with_all_that_is_known() {
    let clock = Arc::new(ManualClock::new());
    let maps = [(); 2].map(|()| Arc::new(MapStore::new()));
    let terrace = Terrace::builder()
        .memory(Memory::bytes(1 << 20))
        .tier("upper", Tier::shared(Arc::clone(&maps[0]) as _))
        .tier("lower", Tier::shared(Arc::clone(&maps[1]) as _))
        .clock(clock.clone())
        .build()
        .await
        .unwrap();
    let space: Numbers =
        terrace.space("space").jitter(0.0).negative_ttl(5 * SECOND).build().unwrap();
    let ticket = space.ticket();
    terrace.invalidate("something else").await.everywhere();
    clock.advance(SECOND);
    let value = Loaded::value(7).ttl(9 * SECOND).version("v7").tags(["tag"]).last_modified(START);
    assert!(space.fill("key", ticket, value).await.unwrap());
    let found = space.get("key").await.unwrap().unwrap();
    assert_eq!((*found, found.source()), (7, &Source::Memory));
    assert_eq!((found.version(), found.last_modified()), (Some("v7"), Some(START)));
    assert_eq!(found.tags().collect::<Vec<_>>(), ["tag"]);
    let (created, expires) = (START.saturating_add(SECOND), START.saturating_add(10 * SECOND));
    assert_eq!((found.created(), found.expires()), (created, Some(expires)));
    let mut stamps = Vec::new();
    for map in &maps {
        let keys = map.keys();
        let [key] = &keys[..] else { panic!("one frame: {keys:?}") };
        let header = decode(&map.raw(key).unwrap(), 1 << 20).unwrap().header;
        assert_eq!((header.created, header.expires), (created, Some(expires)));
        assert_eq!((header.version.as_deref(), header.tags.len()), (Some("v7"), 1));
        stamps.push(header.stamp);
    }
    let before = stamps[0];
    assert!(stamps.iter().all(|stamp| *stamp == before && *stamp == found.stamp()));
    assert!(space.fill("later", space.ticket(), 1).await.unwrap());
    let later = space.get("later").await.unwrap().unwrap().stamp();
    assert!(before.number < later.number, "the stamp is the ticket's, not the end's");
    clock.advance(9 * SECOND);
    assert!(space.get("key").await.unwrap().is_none());

    // What is no value is not stored; that there is none is remembered.
    for loaded in [Loaded::do_not_cache(1), Loaded::not_modified(), Loaded::absent()] {
        assert!(!space.fill("none", space.ticket(), loaded).await.unwrap());
        assert!(space.get("none").await.unwrap().is_none());
    }
    let answer = space.get_or_load("none", |_| async { Ok::<_, std::io::Error>(1) }).await;
    assert!(matches!(answer, Err(terrace::LoadError::Absent)), "{answer:?}");
    // Nor is anything left of what was there before.
    space.insert("gone", 1).await.everywhere();
    assert!(!space.fill("gone", space.ticket(), Loaded::absent()).await.unwrap());
    terrace.clear_tier("memory").await.unwrap();
    assert!(space.get("gone").await.unwrap().is_none(), "no tier has it");
    space.invalidate("none").await.everywhere();
    let ticket = space.ticket();
    space.invalidate("none").await.everywhere();
    assert!(!space.fill("none", ticket, Loaded::absent()).await.unwrap());
    let answer = space.get_or_load("none", |_| async { Ok::<_, std::io::Error>(1) }).await;
    assert_eq!(*answer.unwrap(), 1, "an absence may be out of date, too");

    let long = "k".repeat(70_000);
    let refused = space.fill(&long, space.ticket(), 1).await;
    assert!(matches!(refused, Err(Error::KeyTooLong { .. })), "{refused:?}");
    let ticket = space.ticket();
    assert!(terrace.close().await);
    let refused = space.fill("key", ticket, 1).await;
    assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
}

/// A line of another process, which this one may not have heard of when it fills in.
#[tokio::test]
async fn what_another_process_invalidated_since_the_ticket_is_dead() {
    let directory = tempfile::tempdir().unwrap();
    let caches = twins(&directory).await;
    let [here, there]: [Numbers; 2] =
        std::array::from_fn(|index| caches[index].space("space").build().unwrap());
    for round in 0..20 {
        let key = format!("key {round}");
        let ticket = here.ticket();
        match round % 3 {
            0 => there.invalidate(&key).await.everywhere(),
            1 => caches[1].invalidate_tag("tag").await.everywhere(),
            _ => there.clear().await.everywhere(),
        }
        let value = Loaded::value(7).tags(["tag"]);
        here.fill(&key, ticket, value).await.unwrap();
        assert!(there.get(&key).await.unwrap().is_none(), "round {round}: below");
        eventually("the line is heard of", async || here.get(&key).await.unwrap().is_none()).await;
        caches[0].clear_tier("memory").await.unwrap();
        assert!(here.get(&key).await.unwrap().is_none(), "round {round}: below");
    }
}
