//! Every verb of the face, as somebody who has read its documentation expects it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use terrace::frame;
use terrace::{
    BuildError, Codec, Compression, Disk, Error, Eviction, LoadError, Memory, Settled, Source,
    Space, Terrace, Tier,
};
use terrace_test::{Calls, ChaosStore, ManualClock, MapStore, Verb};
use tokio::sync::Semaphore;

use crate::support::{Everywhere as _, Layout, Refused, ends, eventually, let_others_run, ms};

const SECOND: Duration = Duration::from_secs(1);

/// The layouts that a user is most likely to have.
const USUAL: [Layout; 3] = [Layout::Memory, Layout::MemoryAndDisk, Layout::Disk];

/// A cache on a clock that stands still.
struct Bed {
    layout: Layout,
    terrace: Terrace,
    clock: Arc<ManualClock>,
    directory: tempfile::TempDir,
}

impl std::ops::Deref for Bed {
    type Target = Terrace;
    fn deref(&self) -> &Terrace {
        &self.terrace
    }
}

impl Bed {
    async fn new(layout: Layout) -> Self {
        let clock = Arc::new(ManualClock::new());
        let directory = tempfile::tempdir().unwrap();
        let mut builder = Terrace::builder().clock(Arc::clone(&clock) as _);
        if layout.has_memory() {
            builder = builder.memory(Memory::bytes(16 << 20));
        }
        if layout != Layout::Memory {
            builder = builder.tier("disk", Disk::at(directory.path()));
        }
        let terrace = builder.build().await.unwrap();
        Self { layout, terrace, clock, directory }
    }

    /// Where a value comes from that was just written.
    fn nearest(&self) -> Source {
        if self.layout.has_memory() { Source::Memory } else { Source::Tier("disk".into()) }
    }

    async fn number(&self, key: &str) -> Option<u64> {
        self.get::<u64>(key).await.unwrap().map(|value| *value)
    }

    /// Empties memory where there is something else, so that the next read is one from below.
    async fn forget_memory(&self) {
        if self.layout == Layout::MemoryAndDisk {
            self.clear_tier("memory").await.unwrap();
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Airport {
    name: String,
    elevation: i32,
    runways: Vec<(String, u32)>,
}

fn zurich() -> Airport {
    let runways = vec![("16/34".into(), 3700), ("14/32".into(), 3300), ("10/28".into(), 2500)];
    Airport { name: "Zürich".into(), elevation: 1416, runways }
}

#[tokio::test]
async fn what_is_set_is_got() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        assert!(bed.get::<Airport>("LSZH").await.unwrap().is_none(), "{layout:?}");
        bed.set("LSZH", &zurich()).tags(["country:CH", "hub", "hub"]).await.everywhere();
        bed.clock.advance(7 * SECOND);
        let found = bed.get::<Airport>("LSZH").await.unwrap().unwrap();
        assert_eq!(found, zurich());
        assert_eq!(found.source(), &bed.nearest());
        assert!(!found.is_stale());
        assert_eq!(found.tags().collect::<Vec<_>>(), ["country:CH", "hub"]);
        assert_eq!(found.created(), terrace_test::START);
        assert_eq!(found.age(terrace_test::START.saturating_add(7 * SECOND)), 7 * SECOND);
        assert!(found.expires().is_some());

        bed.forget_memory().await;
        let below = bed.get::<Airport>("LSZH").await.unwrap().unwrap();
        assert_eq!(below, zurich());
        assert_eq!(below.stamp(), found.stamp(), "{layout:?}");
        assert_eq!(below.created(), found.created(), "{layout:?}");
        assert_eq!(below.expires(), found.expires(), "{layout:?}");
        if layout == Layout::MemoryAndDisk {
            assert_eq!(below.source(), &Source::Tier("disk".into()));
            let copied = bed.get::<Airport>("LSZH").await.unwrap().unwrap();
            assert_eq!(copied.source(), &Source::Memory, "it was copied up");
        }

        bed.set("LSZH", &Airport { elevation: 0, ..zurich() }).await.everywhere();
        assert_eq!(bed.get::<Airport>("LSZH").await.unwrap().unwrap().elevation, 0);
        bed.forget_memory().await;
        assert_eq!(bed.get::<Airport>("LSZH").await.unwrap().unwrap().elevation, 0);
    }
}

#[tokio::test]
async fn an_entry_lives_as_long_as_it_was_told_to() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, u64>("space").ttl(20 * SECOND).jitter(0.0).build().unwrap();
        let eternal = bed.space::<str, u64>("eternal").forever().build().unwrap();
        bed.set("own", &1_u64).ttl(10 * SECOND).await.everywhere();
        bed.set("default", &1_u64).await.everywhere();
        bed.set("forever", &1_u64).forever().await.everywhere();
        space.insert("key", 1).await.everywhere();
        space.insert("own", 1).ttl(5 * SECOND).await.everywhere();
        eternal.insert("key", 1).await.everywhere();
        let loaded = space.get_or_load("loaded", |_| async { Ok::<_, Refused>(1) });
        loaded.ttl(15 * SECOND).await.unwrap();
        let kept = space.get_or_load("kept", |_| async { Ok::<_, Refused>(1) });
        kept.forever().await.unwrap();
        eventually("what was loaded is stored everywhere", async || {
            bed.stats().await.tiers.iter().all(|tier| tier.entries == 8)
        })
        .await;

        // Each until its last millisecond: at five minutes, a fifth more or less is allowed.
        let ends: [(&str, &str, u64, u64); 5] = [
            ("space", "own", 5_000, 5_000),
            ("", "own", 10_000, 10_000),
            ("space", "loaded", 15_000, 15_000),
            ("space", "key", 20_000, 20_000),
            ("", "default", 240_000, 360_000),
        ];
        let mut now = 0;
        for (name, key, first, last) in ends {
            let there = async |key: &str| match name {
                "" => bed.number(key).await.is_some(),
                _ => space.get(key).await.unwrap().is_some(),
            };
            bed.clock.advance(ms(first - 1 - now));
            now = first - 1;
            assert!(there(key).await, "{layout:?}: {name} {key} at {now} ms");
            bed.forget_memory().await;
            assert!(there(key).await, "{layout:?}: {name} {key} at {now} ms, from below");
            bed.clock.advance(ms(last - now));
            now = last;
            assert!(!there(key).await, "{layout:?}: {name} {key} at {now} ms");
        }
        bed.clock.advance(Duration::from_secs(1_000 * 86_400));
        assert_eq!(bed.number("forever").await, Some(1), "{layout:?}");
        assert!(space.get("kept").await.unwrap().is_some(), "{layout:?}");
        assert!(eternal.get("key").await.unwrap().is_some(), "{layout:?}");
        bed.forget_memory().await;
        assert_eq!(bed.number("forever").await, Some(1), "{layout:?}");
    }
}

#[tokio::test]
async fn lifetimes_vary_by_the_jitter_and_no_more() {
    let clock = Arc::new(ManualClock::new());
    let terrace = Terrace::builder()
        .memory(Memory::bytes(1 << 20))
        .ttl(100 * SECOND)
        .clock(Arc::clone(&clock) as _)
        .build()
        .await
        .unwrap();
    let space = terrace.space::<u64, u64>("space").jitter(0.5).build().unwrap();
    let keys: Vec<u64> = (0..200).collect();
    space.insert_many(keys.iter().map(|key| (key, 0))).await.everywhere();
    clock.advance(49 * SECOND);
    let left = async || space.exists_many(&keys).await.unwrap();
    assert_eq!(left().await, 200);
    clock.advance(51 * SECOND);
    let half = left().await;
    assert!((60..140).contains(&half), "{half} of 200 after the mean");
    clock.advance(51 * SECOND);
    assert_eq!(left().await, 0);
}

#[tokio::test]
async fn expire_gives_another_lifetime() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        assert!(!bed.expire("nothing", SECOND).await.unwrap(), "{layout:?}");
        bed.set("longer", &1_u64).ttl(10 * SECOND).await.everywhere();
        bed.set("shorter", &1_u64).ttl(10 * SECOND).await.everywhere();
        bed.set("mortal", &1_u64).forever().await.everywhere();
        assert!(bed.expire("longer", 100 * SECOND).await.unwrap(), "{layout:?}");
        assert!(bed.expire("shorter", 2 * SECOND).await.unwrap(), "{layout:?}");
        assert!(bed.expire("mortal", 50 * SECOND).await.unwrap(), "{layout:?}");
        bed.clock.advance(3 * SECOND);
        assert_eq!(bed.number("shorter").await, None, "{layout:?}");
        assert!(!bed.expire("shorter", 100 * SECOND).await.unwrap(), "too late: {layout:?}");
        bed.clock.advance(40 * SECOND);
        for key in ["longer", "mortal"] {
            assert_eq!(bed.number(key).await, Some(1), "{layout:?}: {key}");
        }
        bed.forget_memory().await;
        for key in ["longer", "mortal"] {
            assert_eq!(bed.number(key).await, Some(1), "{layout:?}: {key} from below");
        }
        bed.clock.advance(8 * SECOND);
        assert_eq!(bed.number("mortal").await, None, "{layout:?}");
        bed.clock.advance(50 * SECOND);
        assert_eq!(bed.number("longer").await, None, "{layout:?}");
        bed.forget_memory().await;
        assert_eq!(bed.number("longer").await, None, "{layout:?}: from below");
    }
}

#[tokio::test]
async fn remove_says_what_was_there() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        assert!(!bed.remove("key").await.unwrap(), "{layout:?}");
        bed.set("key", &1_u64).await.everywhere();
        assert!(bed.remove("key").await.unwrap(), "{layout:?}");
        assert_eq!(bed.number("key").await, None, "{layout:?}");
        assert!(!bed.remove("key").await.unwrap(), "{layout:?}");
        bed.forget_memory().await;
        assert_eq!(bed.number("key").await, None, "{layout:?}");

        bed.set("key", &1_u64).await.everywhere();
        bed.forget_memory().await;
        assert!(bed.remove("key").await.unwrap(), "{layout:?}: below memory alone");

        for key in ["a", "b", "c"] {
            bed.set(key, &1_u64).await.everywhere();
        }
        assert_eq!(bed.remove_many(&["a", "x", "c", "y"]).await.unwrap(), 2, "{layout:?}");
        assert_eq!(bed.remove_many(&[]).await.unwrap(), 0, "{layout:?}");
        assert_eq!(bed.exists_many(&["a", "b", "c"]).await.unwrap(), 1, "{layout:?}");

        let space = bed.space::<str, u64>("space").build().unwrap();
        space.insert("b", 1).await.everywhere();
        assert_eq!(space.remove_many(["b", "c"]).await.unwrap(), 1, "{layout:?}");
        assert_eq!(bed.number("b").await, Some(1), "{layout:?}: another space");
        assert_eq!(bed.invalidate("b").await.unwrap(), Settled::Settled);
        assert_eq!(bed.number("b").await, None, "{layout:?}");
    }
}

#[tokio::test]
async fn exists_sees_what_get_would_find() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        bed.set("value", &1_u64).ttl(10 * SECOND).tags(["tag"]).await.everywhere();
        bed.set("short", &1_u64).ttl(SECOND).await.everywhere();
        bed.increment("counter", 1).await.unwrap();
        let all = ["value", "short", "counter", "nothing"];
        assert_eq!(bed.exists_many(&all).await.unwrap(), 3, "{layout:?}");
        bed.forget_memory().await;
        let before = bed.stats().await.tiers[0].entries;
        assert_eq!(bed.exists_many(&all).await.unwrap(), 3, "{layout:?}");
        assert_eq!(bed.stats().await.tiers[0].entries, before, "{layout:?}: nothing is copied");
        bed.clock.advance(2 * SECOND);
        assert!(!bed.exists("short").await.unwrap(), "{layout:?}");
        assert!(bed.exists("value").await.unwrap(), "{layout:?}");
        bed.invalidate_tag("tag").await.everywhere();
        assert!(!bed.exists("value").await.unwrap(), "{layout:?}");
        assert!(bed.exists("counter").await.unwrap(), "{layout:?}");
        assert_eq!(bed.exists_many(&[]).await.unwrap(), 0, "{layout:?}");
    }
}

#[tokio::test]
async fn set_if_absent_sets_what_is_absent() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        assert!(bed.set_if_absent("key", &1_u64).await.unwrap(), "{layout:?}");
        assert!(!bed.set_if_absent("key", &2_u64).await.unwrap(), "{layout:?}");
        assert_eq!(bed.number("key").await, Some(1), "{layout:?}");
        bed.forget_memory().await;
        assert!(!bed.set_if_absent("key", &2_u64).await.unwrap(), "{layout:?}");
        bed.remove("key").await.unwrap();
        assert!(bed.set_if_absent("key", &3_u64).await.unwrap(), "{layout:?}");
        bed.expire("key", SECOND).await.unwrap();
        bed.clock.advance(2 * SECOND);
        assert!(bed.set_if_absent("key", &4_u64).await.unwrap(), "{layout:?}");
        assert_eq!(bed.number("key").await, Some(4), "{layout:?}");
        bed.forget_memory().await;
        assert_eq!(bed.number("key").await, Some(4), "{layout:?}");
        bed.clear().await.everywhere();
        assert!(bed.set_if_absent("key", &5_u64).await.unwrap(), "{layout:?}");
    }
}

#[tokio::test]
async fn counters_count() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        assert_eq!(bed.counter("n").await.unwrap(), None, "{layout:?}");
        assert_eq!(bed.increment("n", 5).await.unwrap(), 5, "{layout:?}");
        assert_eq!(bed.increment("n", -7).await.unwrap(), -2, "{layout:?}");
        assert_eq!(bed.increment("n", 0).await.unwrap(), -2, "{layout:?}");
        assert_eq!(bed.counter("n").await.unwrap(), Some(-2), "{layout:?}");
        assert_eq!(bed.number("n").await, None, "a counter is not a value");
        bed.clock.advance(Duration::from_secs(1_000 * 86_400));
        assert_eq!(bed.counter("n").await.unwrap(), Some(-2), "{layout:?}: it lives on");

        assert_eq!(bed.increment("most", i64::MAX).await.unwrap(), i64::MAX);
        assert_eq!(bed.increment("most", 1).await.unwrap(), i64::MAX, "{layout:?}");
        assert_eq!(bed.increment("least", i64::MIN).await.unwrap(), i64::MIN);
        assert_eq!(bed.increment("least", -1).await.unwrap(), i64::MIN, "{layout:?}");

        // It lapses a minute after it was begun, however often it is counted.
        assert_eq!(bed.increment_for("window", 1, 60 * SECOND).await.unwrap(), 1);
        bed.clock.advance(59 * SECOND);
        assert_eq!(bed.increment_for("window", 1, 60 * SECOND).await.unwrap(), 2);
        bed.clock.advance(SECOND);
        assert_eq!(bed.counter("window").await.unwrap(), None, "{layout:?}");
        assert_eq!(bed.increment_for("window", 1, 60 * SECOND).await.unwrap(), 1, "{layout:?}");

        assert!(bed.remove("n").await.unwrap(), "{layout:?}");
        assert_eq!(bed.counter("n").await.unwrap(), None, "{layout:?}");
        bed.clear_tier(bed.tiers().last().unwrap()).await.unwrap();
        assert_eq!(bed.counter("window").await.unwrap(), Some(1), "no entry of a tier");
        bed.clear().await.everywhere();
        assert_eq!(bed.counter("window").await.unwrap(), None, "{layout:?}");
        assert_eq!(bed.increment("n", 1).await.unwrap(), 1, "{layout:?}");
    }
}

#[tokio::test]
async fn many_come_in_the_order_of_their_keys() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        let entries: Vec<_> = (0..50).map(|number| (format!("key:{number}"), number)).collect();
        let entries: Vec<_> = entries.iter().map(|(key, number)| (&**key, *number)).collect();
        bed.set_many::<u64>(&entries).await.everywhere();
        bed.set_many::<u64>(&[]).await.everywhere();
        // Some are only below, some are only in memory's way: the order is that of the keys.
        bed.forget_memory().await;
        for key in ["key:3", "key:40"] {
            bed.number(key).await;
        }
        let asked = ["key:7", "nothing", "key:3", "key:40", "key:7", "key:0"];
        let found = bed.get_many::<u64>(&asked).await.unwrap();
        let found: Vec<_> = found.into_iter().map(|value| value.map(|value| *value)).collect();
        assert_eq!(found, [Some(7), None, Some(3), Some(40), Some(7), Some(0)], "{layout:?}");
        assert!(bed.get_many::<u64>(&[]).await.unwrap().is_empty());

        let space = bed.space::<u64, String>("space").build().unwrap();
        let names = [(&1, "one".to_owned()), (&2, "two".to_owned()), (&1, "uno".to_owned())];
        space.insert_many(names).await.everywhere();
        for _ in 0..2 {
            let found = space.get_many([&2, &3, &1]).await.unwrap();
            let found: Vec<_> = found.iter().map(|value| value.as_deref().map(|s| &**s)).collect();
            assert_eq!(found, [Some("two"), None, Some("uno")], "{layout:?}: the last one counts");
            bed.forget_memory().await;
        }
    }
}

#[tokio::test]
async fn many_keys_cost_one_exchange() {
    let map = Arc::new(MapStore::new());
    let terrace =
        Terrace::builder().tier("map", Tier::shared(Arc::clone(&map) as _)).build().await.unwrap();
    let keys: Vec<String> = (0..100).map(|key| key.to_string()).collect();
    let entries: Vec<_> = keys.iter().map(|key| (&**key, 0_u64)).collect();
    let keys: Vec<_> = keys.iter().map(|key| &**key).collect();
    terrace.set_many(&entries).await.everywhere();
    assert_eq!(map.writes(), 1);
    assert_eq!(terrace.get_many::<u64>(&keys).await.unwrap().into_iter().flatten().count(), 100);
    assert_eq!(map.reads(), 1);
    assert_eq!(terrace.exists_many(&keys).await.unwrap(), 100);
    assert_eq!(map.reads(), 2);
    assert_eq!(terrace.remove_many(&keys).await.unwrap(), 100);
    assert_eq!(map.removes(), 1);
    assert!(map.keys().is_empty());
}

#[tokio::test]
async fn clearing_takes_what_it_says_and_no_more() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        let one = bed.space::<str, u64>("one").build().unwrap();
        let two = bed.space::<str, u64>("two").build().unwrap();
        let fill = async || {
            bed.set("key", &0_u64).await.everywhere();
            one.insert("key", 1).await.everywhere();
            one.insert("other", 1).await.everywhere();
            two.insert("key", 2).await.everywhere();
        };
        let there = async || {
            let found = [
                bed.number("key").await,
                one.get("key").await.unwrap().map(|value| *value),
                two.get("key").await.unwrap().map(|value| *value),
            ];
            found.map(|value| value.is_some())
        };
        fill().await;
        one.clear().await.everywhere();
        assert_eq!(there().await, [true, false, true], "{layout:?}: a space");
        bed.forget_memory().await;
        assert_eq!(there().await, [true, false, true], "{layout:?}: a space, below");
        fill().await;
        assert_eq!(there().await, [true; 3], "{layout:?}: what came after is there");

        bed.clear().await.everywhere();
        assert_eq!(there().await, [false; 3], "{layout:?}: everything");
        bed.forget_memory().await;
        assert_eq!(there().await, [false; 3], "{layout:?}: everything, below");
        let stats = bed.stats().await;
        assert!(stats.tiers.iter().all(|tier| tier.entries == 0), "{layout:?}: {stats:?}");
        fill().await;
        assert_eq!(there().await, [true; 3], "{layout:?}");

        let tiers: Vec<_> = bed.tiers().map(str::to_owned).collect();
        for tier in &tiers {
            assert_eq!(bed.clear_tier(tier).await.unwrap(), 4, "{layout:?}: {tier}");
            assert_eq!(bed.clear_tier(tier).await.unwrap(), 0, "{layout:?}: {tier}");
            assert_eq!(there().await, [tiers.len() == 2; 3], "{layout:?}: without {tier}");
            fill().await;
        }
        let missing = if layout.has_memory() { "redis" } else { "memory" };
        let error = bed.clear_tier(missing).await.unwrap_err();
        assert!(matches!(error, Error::NoSuchTier(name) if name == missing), "{layout:?}");
    }
}

#[tokio::test]
async fn a_tag_reaches_every_space() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        let one = bed.space::<str, u64>("one").build().unwrap();
        let two = bed.space::<u64, String>("two").build().unwrap();
        one.insert("tagged", 1).tags(["red", "blue"]).await.everywhere();
        one.insert("plain", 1).await.everywhere();
        two.insert(&7, "tagged".into()).tags(["red"]).await.everywhere();
        bed.set("tagged", &1_u64).tags(["blue"]).await.everywhere();
        let load = one.get_or_load("loaded", |_| async { Ok::<_, Refused>(1) }).tags(["red"]);
        load.await.unwrap();

        bed.invalidate_tag("green").await.everywhere();
        assert!(one.get("tagged").await.unwrap().is_some(), "{layout:?}");
        bed.invalidate_tag("red").await.everywhere();
        for _ in 0..2 {
            assert!(one.get("tagged").await.unwrap().is_none(), "{layout:?}");
            assert!(one.get("loaded").await.unwrap().is_none(), "{layout:?}");
            assert_eq!(one.read("tagged", |_| ()), None, "{layout:?}");
            assert!(two.get(&7).await.unwrap().is_none(), "{layout:?}");
            assert!(one.get("plain").await.unwrap().is_some(), "{layout:?}");
            assert_eq!(bed.number("tagged").await, Some(1), "{layout:?}");
            bed.forget_memory().await;
        }
        one.insert("tagged", 2).tags(["red"]).await.everywhere();
        assert_eq!(one.get("tagged").await.unwrap().map(|value| *value), Some(2), "{layout:?}");
    }
}

#[tokio::test]
async fn tags_have_limits() {
    let bed = Bed::new(Layout::Memory).await;
    let long = "x".repeat(256);
    bed.set("key", &1_u64).tags([&long]).await.everywhere();
    bed.set("key", &1_u64).tags((0..64).map(|tag| tag.to_string())).await.everywhere();
    let too_long = "x".repeat(257);
    let too_many: Vec<_> = (0..65).map(|tag| tag.to_string()).collect();
    for tags in [vec![String::new()], vec![too_long], too_many] {
        let error = bed.set("key", &2_u64).tags(&tags).await;
        assert!(matches!(error, Err(Error::Tags(_))), "{error:?}");
        let load = bed.get_or_load("new", |_| async { Ok::<_, Refused>(2_u64) }).tags(&tags);
        let error = load.await;
        assert!(matches!(error, Err(LoadError::Cache(Error::Tags(_)))), "{error:?}");
    }
    assert_eq!(bed.number("key").await, Some(1));
    // The key of the load that could not begin is free.
    let load = bed.get_or_load("new", |_| async { Ok::<_, Refused>(3_u64) });
    assert_eq!(*ends("a load", load).await.unwrap(), 3);
}

#[tokio::test]
async fn a_loader_runs_on_a_miss_alone() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        let airports = bed.space::<str, Airport>("airport").build().unwrap();
        let loads = AtomicUsize::new(0);
        // The loader may borrow; what it returns may not.
        let load = async || {
            airports
                .get_or_load("LSZH", |load| {
                    loads.fetch_add(1, Ordering::SeqCst);
                    assert_eq!(load.key, "LSZH");
                    async { Ok::<_, Refused>(zurich()) }
                })
                .await
                .unwrap()
        };
        assert_eq!(load().await.source(), &Source::Loader, "{layout:?}");
        assert_eq!(load().await.source(), &bed.nearest(), "{layout:?}");
        if layout.has_memory() {
            assert_eq!(loads.load(Ordering::SeqCst), 1, "{layout:?}");
            assert_eq!(airports.read("LSZH", |found| found.elevation), Some(1416));
        }
        bed.forget_memory().await;
        let found = load().await;
        assert_ne!(found.source(), &Source::Loader, "{layout:?}");
        assert_eq!(found, zurich());
        assert_eq!(bed.stats().await.spaces[1].loads, 1, "{layout:?}: no other future ran");

        let name = bed.get_or_load("name", |load| async move { Ok::<_, Refused>(load.key) });
        assert_eq!(name.await.unwrap(), "name".to_owned());
    }
}

#[tokio::test]
async fn a_key_is_not_read_as_another_type() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        bed.set("key", &"text".to_owned()).await.everywhere();
        for _ in 0..2 {
            assert!(bed.get::<u64>("key").await.unwrap().is_none(), "{layout:?}");
            assert!(bed.get::<Airport>("key").await.unwrap().is_none(), "{layout:?}");
            assert!(bed.get_many::<u64>(&["key"]).await.unwrap()[0].is_none(), "{layout:?}");
            let text = bed.get::<String>("key").await.unwrap();
            assert_eq!(text.as_deref().map(|text| &**text), Some("text"), "{layout:?}");
            bed.forget_memory().await;
        }
        bed.set("key", &7_u64).await.everywhere();
        assert!(bed.get::<String>("key").await.unwrap().is_none(), "{layout:?}");
        assert_eq!(bed.number("key").await, Some(7), "{layout:?}");

        // Spaces of one name and two types have different entries, and share what is
        // invalidated.
        let numbers = bed.space::<str, u64>("space").build().unwrap();
        let texts = bed.space::<str, String>("space").build().unwrap();
        numbers.insert("n", 1).await.everywhere();
        texts.insert("t", "one".into()).await.everywhere();
        assert!(texts.get("n").await.unwrap().is_none(), "{layout:?}");
        assert!(numbers.get("t").await.unwrap().is_none(), "{layout:?}");
        texts.invalidate("n").await.everywhere();
        assert!(numbers.get("n").await.unwrap().is_none(), "{layout:?}");
        numbers.clear().await.everywhere();
        assert!(texts.get("t").await.unwrap().is_none(), "{layout:?}");
    }
}

#[tokio::test]
async fn hits_and_misses_add_up_to_reads() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<u64, u64>("space").build().unwrap();
        let mut random = fastrand::Rng::with_seed(7);
        let (mut in_memory, mut only_memory, mut loads) = (0, 0, 0);
        for _ in 0..2_000 {
            let key = random.u64(0..50);
            match random.u8(0..9) {
                0 | 1 => {
                    in_memory += 1;
                    space.get(&key).await.unwrap();
                }
                2 => {
                    in_memory += 1;
                    let load = space.get_or_load(&key, |_| async move { Ok::<_, Refused>(key) });
                    loads += u64::from(load.await.unwrap().source() == &Source::Loader);
                }
                3 => {
                    let keys = [key, key + 1, key + 2];
                    in_memory += 3;
                    space.get_many(&keys).await.unwrap();
                }
                4 => {
                    in_memory += 1;
                    only_memory += u64::from(space.read(&key, |_| ()).is_none());
                }
                5 => space.insert(&key, key).await.everywhere(),
                6 => drop(space.remove(&key).await.unwrap()),
                7 => drop(space.exists(&key).await.unwrap()),
                _ if key == 0 => bed.forget_memory().await,
                _ => bed.clock.advance(SECOND),
            }
        }
        let stats = bed.stats().await;
        let reads = |at: usize| stats.tiers[at].traffic.hits + stats.tiers[at].traffic.misses;
        let below = match layout {
            Layout::Disk => in_memory - only_memory,
            _ => stats.tiers[0].traffic.misses - only_memory,
        };
        if layout.has_memory() {
            assert_eq!(reads(0), in_memory, "{layout:?}");
        }
        if layout != Layout::Memory {
            let disk = usize::from(layout.has_memory());
            assert_eq!(reads(disk), below, "{layout:?}");
            assert!(stats.tiers[disk].traffic.hits > 0);
            assert!(stats.tiers[disk].traffic.read_time.count > 0);
        }
        let own = &stats.spaces[1];
        assert_eq!((&*own.name, own.loads), ("space", loads), "{layout:?}");
        assert_eq!(own.load_errors, 0, "{layout:?}");
        for (tier, (name, traffic)) in stats.tiers.iter().zip(&own.tiers) {
            assert_eq!(&tier.name, name);
            assert_eq!(tier.traffic.hits, traffic.hits, "{layout:?}: it is the only space");
            assert_eq!(tier.traffic.misses, traffic.misses, "{layout:?}");
            let rate = traffic.hits as f64 / (traffic.hits + traffic.misses) as f64;
            assert!((traffic.hit_rate() - rate).abs() < 1e-9);
            assert!(traffic.writes > 0);
        }
        let names: Vec<_> = stats.tiers.iter().map(|tier| tier.name.to_string()).collect();
        assert_eq!(names, bed.tiers().collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_tier_may_have_a_codec_of_its_own() {
    let (plain, json) = (Arc::new(MapStore::new()), Arc::new(MapStore::new()));
    let terrace = Terrace::builder()
        .tier("plain", Tier::shared(Arc::clone(&plain) as _))
        .tier("json", Tier::shared(Arc::clone(&json) as _).codec(Codec::Json))
        .build()
        .await
        .unwrap();
    let written = |map: &MapStore| {
        let frame = map.raw(&map.keys()[0]).unwrap();
        let frame = frame::decode(&frame, usize::MAX).unwrap();
        (frame.header.codec, frame.value().unwrap())
    };
    terrace.set("LSZH", &zurich()).await.everywhere();
    let (codec, value) = written(&json);
    assert_eq!(codec, Codec::Json);
    assert_eq!(serde_json::from_slice::<Airport>(&value).unwrap(), zurich());
    assert_eq!(written(&plain).0, Codec::MessagePack);
    for (at, tier) in ["plain", "json"].into_iter().enumerate() {
        let found = terrace.get::<Airport>("LSZH").await.unwrap().unwrap();
        assert_eq!((found.source(), &*found), (&Source::Tier(tier.into()), &zurich()));
        assert_eq!(terrace.clear_tier("plain").await.unwrap(), 1);
        if at == 1 {
            terrace.get::<Airport>("LSZH").await.unwrap();
        }
    }
    // What was found in one encoding is copied up in the other's.
    assert_eq!(written(&plain).0, Codec::MessagePack);

    let space = terrace.space::<str, Airport>("space").codec(Codec::Json).build().unwrap();
    terrace.clear().await.everywhere();
    space.insert("LSZH", zurich()).await.everywhere();
    assert_eq!(written(&plain).0, Codec::Json);
    assert_eq!(*space.get("LSZH").await.unwrap().unwrap(), zurich());
    // A load is encoded once more for a tier that prefers another codec.
    terrace.clear().await.everywhere();
    terrace.get_or_load("LSZH", |_| async { Ok::<_, Refused>(zurich()) }).await.unwrap();
    assert_eq!((written(&plain).0, written(&json).0), (Codec::MessagePack, Codec::Json));
}

#[tokio::test]
async fn compression_is_counted() {
    for (compression, packs) in [
        (Compression::default(), true),
        (Compression::default().level(9), true),
        (Compression::off(), false),
        (Compression::default().from_bytes(1 << 20), false),
    ] {
        let terrace = Terrace::builder()
            .memory(Memory::bytes(16 << 20))
            .tier("map", Tier::of(MapStore::new()).compression(compression))
            .build()
            .await
            .unwrap();
        let space = terrace.space::<str, Bytes>("space").build_raw().unwrap();
        let value = Bytes::from("a terrace above a terrace; ".repeat(4_000));
        space.insert("key", value.clone()).await.everywhere();
        terrace.clear_tier("memory").await.unwrap();
        assert_eq!(*space.get("key").await.unwrap().unwrap(), value);
        let traffic = &terrace.stats().await.tiers[1].traffic;
        assert_eq!(traffic.raw_bytes, value.len() as u64);
        let is_packed = traffic.packed_bytes < traffic.raw_bytes / 10;
        assert_eq!(is_packed, packs, "{compression:?}: {traffic:?}");
        assert!(is_packed || traffic.packed_bytes >= traffic.raw_bytes);
    }
}

#[tokio::test]
async fn a_value_is_kept_where_it_fits() {
    let directory = tempfile::tempdir().unwrap();
    let terrace = Terrace::builder()
        .memory(Memory::bytes(1 << 20).max_value_bytes(10_000))
        .tier("disk", Disk::at(directory.path()).max_value_bytes(50_000))
        .tier("map", Tier::of(MapStore::new()).max_value_bytes(5_000))
        .build()
        .await
        .unwrap();
    let space = terrace.space::<str, Bytes>("space").build_raw().unwrap();
    let entries = async || {
        let stats = terrace.stats().await;
        stats.tiers.iter().map(|tier| tier.entries).collect::<Vec<_>>()
    };
    let of = |size| Bytes::from(vec![b'x'; size]);
    for (size, places) in [(1_000, [1, 1, 1]), (8_000, [1, 1, 0]), (40_000, [0, 1, 0])] {
        space.insert("key", of(size)).await.everywhere();
        assert_eq!(entries().await, places, "{size} bytes");
        for _ in 0..2 {
            assert_eq!(space.get("key").await.unwrap().map(|value| value.len()), Some(size));
        }
        // The same for what is loaded.
        space.remove("key").await.unwrap();
        let load = space.get_or_load("key", |_| async move { Ok::<_, Refused>(of(size)) });
        assert_eq!(load.await.unwrap().len(), size);
        ends("the fill", async {
            while entries().await != places {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    let error = space.insert("key", of(60_000)).await.unwrap_err();
    assert!(matches!(error, Error::ValueTooLarge { bytes } if bytes >= 60_000), "{error:?}");
    let found = space.get("key").await.unwrap().unwrap();
    assert_eq!(found.len(), 40_000, "it costs nobody the value before it");
    // What a loader brings is the answer even if nobody can keep it.
    let load = space.get_or_load("huge", |_| async move { Ok::<_, Refused>(of(60_000)) });
    assert_eq!(load.await.unwrap().len(), 60_000);
    assert!(space.get("huge").await.unwrap().is_none());
    let refused: u64 = terrace.stats().await.tiers.iter().map(|tier| tier.traffic.refused).sum();
    assert!(refused > 0);
}

#[tokio::test]
async fn a_value_of_exactly_the_largest_size_is_stored() {
    let directory = tempfile::tempdir().unwrap();
    let terrace = Terrace::builder()
        .tier("disk", Disk::at(directory.path()).max_value_bytes(10_000))
        .build()
        .await
        .unwrap();
    let space = terrace.space::<str, Bytes>("space").build_raw().unwrap();
    for size in [9_000, 9_900, 10_000] {
        // Noise, so that compression does not make room.
        let value: Bytes = std::iter::repeat_with(|| fastrand::u8(..)).take(size).collect();
        space.insert("key", value.clone()).await.everywhere();
        let found = space.get("key").await.unwrap();
        assert!(found.is_some_and(|found| *found == value), "{size} bytes were accepted");
    }
    let value = Bytes::from(vec![0; 10_001]);
    assert!(matches!(space.insert("key", value).await, Err(Error::ValueTooLarge { .. })));
}

#[tokio::test]
async fn what_no_tier_takes_is_an_error() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        let memory = Terrace::builder().memory(Memory::bytes(1 << 20)).build().await.unwrap();
        let large = Bytes::from(vec![0; 1 << 19]);
        let space = memory.space::<str, Bytes>("space").build_raw().unwrap();
        let error = space.insert("key", large.clone()).await.unwrap_err();
        assert!(matches!(error, Error::ValueTooLarge { .. }), "{layout:?}: {error:?}");
        let space = bed.space::<str, Bytes>("space").build_raw().unwrap();
        space.insert("key", large).await.everywhere();
    }
}

#[tokio::test]
async fn raw_spaces_keep_bytes_as_they_are() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, Bytes>("raw").build_raw().unwrap();
        let noise: Bytes = std::iter::repeat_with(|| fastrand::u8(..)).take(1 << 19).collect();
        for value in [Bytes::new(), Bytes::from_static(b"\0\xff\n"), noise] {
            space.insert("key", value.clone()).await.everywhere();
            for _ in 0..2 {
                let found = space.get("key").await.unwrap().unwrap();
                assert_eq!(*found, value, "{layout:?}");
                bed.forget_memory().await;
            }
        }
        // A type of one's own, and another that is read as bytes.
        let vectors = bed.space::<[u8], Blob>("blobs").build_raw().unwrap();
        vectors.insert(b"\0", Blob(vec![1, 2, 3])).await.everywhere();
        bed.forget_memory().await;
        assert_eq!(vectors.get(b"\0").await.unwrap().unwrap().0, [1, 2, 3], "{layout:?}");
    }
}

#[derive(Debug)]
struct Blob(Vec<u8>);

impl AsRef<[u8]> for Blob {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Bytes> for Blob {
    fn from(bytes: Bytes) -> Self {
        Self(bytes.to_vec())
    }
}

#[tokio::test]
async fn any_type_can_be_kept_in_memory() {
    struct Compiled(Box<dyn Fn(u64) -> u64 + Send + Sync>);
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, Compiled>("compiled").build_in_memory().unwrap();
        let inserted = space.insert("double", Compiled(Box::new(|number| 2 * number))).await;
        if !layout.has_memory() {
            assert!(matches!(inserted, Err(Error::ValueTooLarge { .. })), "nowhere to keep it");
            let load = space.get_or_load("double", |_| async {
                Ok::<_, Refused>(Compiled(Box::new(|number| 2 * number)))
            });
            assert_eq!((load.await.unwrap().0)(4), 8);
            continue;
        }
        inserted.everywhere();
        assert_eq!(space.read("double", |compiled| (compiled.0)(4)), Some(8), "{layout:?}");
        assert_eq!((space.get("double").await.unwrap().unwrap().0)(5), 10, "{layout:?}");
        let stats = bed.stats().await;
        assert!(stats.tiers.iter().skip(1).all(|tier| tier.entries == 0), "{layout:?}");
        bed.clear_tier("memory").await.unwrap();
        assert!(space.get("double").await.unwrap().is_none(), "{layout:?}");
        let load = space.get_or_load("triple", |_| async {
            Ok::<_, Refused>(Compiled(Box::new(|number| 3 * number)))
        });
        assert_eq!((load.await.unwrap().0)(4), 12, "{layout:?}");
        assert!(space.exists("triple").await.unwrap(), "{layout:?}");
        space.invalidate("triple").await.everywhere();
        assert!(!space.exists("triple").await.unwrap(), "{layout:?}");
    }
}

#[tokio::test]
async fn a_key_that_is_too_long_is_an_error_everywhere() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        let longest = "k".repeat(64 * 1024);
        bed.set(&longest, &1_u64).await.everywhere();
        assert_eq!(bed.number(&longest).await, Some(1), "{layout:?}");
        let key = "k".repeat(64 * 1024 + 1);
        let is_refused = |error: Error| matches!(error, Error::KeyTooLong { bytes: 65_537 });
        assert!(is_refused(bed.get::<u64>(&key).await.unwrap_err()), "{layout:?}");
        assert!(is_refused(bed.set(&key, &1_u64).await.unwrap_err()), "{layout:?}");
        assert!(is_refused(bed.set_if_absent(&key, &1_u64).await.unwrap_err()), "{layout:?}");
        assert!(is_refused(bed.set_many(&[(&*key, 1_u64)]).await.unwrap_err()), "{layout:?}");
        assert!(is_refused(bed.get_many::<u64>(&["a", &key]).await.unwrap_err()), "{layout:?}");
        assert!(is_refused(bed.remove(&key).await.unwrap_err()), "{layout:?}");
        assert!(is_refused(bed.exists(&key).await.unwrap_err()), "{layout:?}");
        assert!(is_refused(bed.expire(&key, SECOND).await.unwrap_err()), "{layout:?}");
        assert!(is_refused(bed.increment(&key, 1).await.unwrap_err()), "{layout:?}");
        assert!(is_refused(bed.counter(&key).await.unwrap_err()), "{layout:?}");
        assert!(is_refused(bed.invalidate(&key).await.unwrap_err()), "{layout:?}");
        let load = bed.get_or_load(&key, |_| async { Ok::<_, Refused>(1_u64) }).await;
        let is_refused = matches!(load, Err(LoadError::Cache(Error::KeyTooLong { bytes: 65_537 })));
        assert!(is_refused, "{layout:?}");
    }
}

#[tokio::test]
async fn a_closed_cache_says_so() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, u64>("space").build().unwrap();
        bed.set("key", &1_u64).await.everywhere();
        assert!(ends("closing", bed.close()).await, "{layout:?}");
        assert!(ends("closing again", bed.close()).await, "{layout:?}");
        let is_closed = |error: Error| matches!(error, Error::Closed);
        assert!(is_closed(bed.get::<u64>("key").await.unwrap_err()), "{layout:?}");
        assert!(is_closed(bed.get_many::<u64>(&["key"]).await.unwrap_err()), "{layout:?}");
        assert!(is_closed(bed.set("key", &1_u64).await.unwrap_err()), "{layout:?}");
        assert!(is_closed(bed.set_many(&[("key", 1_u64)]).await.unwrap_err()), "{layout:?}");
        assert!(is_closed(bed.set_if_absent("key", &1_u64).await.unwrap_err()), "{layout:?}");
        assert!(is_closed(bed.remove("key").await.unwrap_err()), "{layout:?}");
        assert!(is_closed(bed.remove_many(&["key"]).await.unwrap_err()), "{layout:?}");
        assert!(is_closed(bed.exists("key").await.unwrap_err()), "{layout:?}");
        assert!(is_closed(bed.expire("key", SECOND).await.unwrap_err()), "{layout:?}");
        assert!(is_closed(bed.increment("key", 1).await.unwrap_err()), "{layout:?}");
        assert!(is_closed(bed.increment_for("key", 1, SECOND).await.unwrap_err()), "{layout:?}");
        assert!(is_closed(bed.counter("key").await.unwrap_err()), "{layout:?}");
        assert!(is_closed(bed.invalidate("key").await.unwrap_err()), "{layout:?}");
        assert!(is_closed(bed.invalidate_tag("tag").await.unwrap_err()), "{layout:?}");
        assert!(is_closed(bed.clear().await.unwrap_err()), "{layout:?}");
        assert!(is_closed(bed.clear_tier("disk").await.unwrap_err()), "{layout:?}");
        assert!(is_closed(space.clear().await.unwrap_err()), "{layout:?}");
        assert_eq!(space.read("key", |value| *value), None, "{layout:?}");
        let load = bed.get_or_load("key", |_| async { Ok::<_, Refused>(1_u64) }).await;
        assert!(matches!(load, Err(LoadError::Cache(Error::Closed))), "{layout:?}");
        bed.stats().await;
        drop(space);
    }
}

/// What a directory holds after the cache over it was closed.
async fn reopened(directory: &tempfile::TempDir, key: &str) -> Option<u64> {
    let clock = Arc::new(ManualClock::new());
    let disk = Disk::at(directory.path());
    let later = Terrace::builder().tier("disk", disk).clock(clock).build().await.unwrap();
    let found = later.get::<u64>(key).await.unwrap().map(|value| *value);
    assert!(ends("closing", later.close()).await);
    found
}

#[tokio::test]
async fn closing_finishes_the_loads_that_are_under_way() {
    let bed = Bed::new(Layout::MemoryAndDisk).await;
    let pass = Arc::new(Semaphore::new(0));
    let caller = tokio::spawn({
        let (terrace, pass) = (bed.terrace.clone(), Arc::clone(&pass));
        async move {
            let load = |_| async move {
                pass.acquire().await.unwrap().forget();
                Ok::<_, Refused>(7_u64)
            };
            terrace.get_or_load("key", load).await.map(|value| *value)
        }
    });
    let_others_run().await;
    caller.abort();
    let closing = tokio::spawn({
        let terrace = bed.terrace.clone();
        async move { terrace.close().await }
    });
    let_others_run().await;
    assert!(!closing.is_finished(), "a load is under way");
    assert!(matches!(bed.get::<u64>("key").await, Err(Error::Closed)), "but none begins");
    pass.add_permits(1);
    assert!(ends("closing", closing).await.unwrap());
    assert_eq!(reopened(&bed.directory, "key").await, Some(7));
}

#[tokio::test]
async fn closing_finishes_the_writes_that_are_under_way() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Disk::at(directory.path()).open().unwrap());
    let chaos = Arc::new(ChaosStore::over(store));
    let terrace = Terrace::builder()
        .memory(Memory::bytes(1 << 20))
        .tier("disk", Tier::shared(Arc::clone(&chaos) as _))
        .clock(Arc::new(ManualClock::new()))
        .build()
        .await
        .unwrap();
    let gate = chaos.hold(Calls::of([Verb::Write]).first(1));
    let write = tokio::spawn({
        let terrace = terrace.clone();
        async move { terrace.set("key", &7_u64).await }
    });
    ends("the write", gate.arrived()).await;
    let closing = tokio::spawn({
        let terrace = terrace.clone();
        async move { terrace.close().await }
    });
    let_others_run().await;
    assert!(!closing.is_finished(), "a write is under way");
    gate.open();
    assert_eq!(ends("the write", write).await.unwrap().unwrap(), Settled::Settled);
    assert!(ends("closing", closing).await.unwrap());
    assert_eq!(reopened(&directory, "key").await, Some(7));
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_when_it_is_built() {
    let none = Terrace::builder().build().await;
    assert!(matches!(none, Err(BuildError::NoTier)), "{none:?}");
    let map = || Tier::of(MapStore::new());
    let twice = Terrace::builder().tier("map", map()).tier("map", map()).build().await;
    assert!(matches!(twice, Err(BuildError::NameTaken(name)) if name == "map"));
    for name in ["", "memory", "loader"] {
        let bad = Terrace::builder().tier(name, map()).build().await;
        assert!(matches!(bad, Err(BuildError::BadName { .. })), "{name:?}");
    }
    let terrace = Terrace::builder().tier("map", map()).build().await.unwrap();
    assert!(matches!(terrace.space::<str, u64>("").build(), Err(BuildError::BadName { .. })));
    for jitter in [-0.1, 1.1, f64::NAN] {
        let space = terrace.space::<str, u64>("space").jitter(jitter).build();
        assert!(matches!(space, Err(BuildError::Setting(_))), "{jitter}");
    }
    let raw = terrace.space::<str, u64>("space").codec(Codec::Raw).build();
    assert!(matches!(raw, Err(BuildError::Setting(_))));
    assert_eq!(terrace.tiers().collect::<Vec<_>>(), ["map"]);
}

/// Keys of several kinds, each as its own type reads it.
#[tokio::test]
async fn keys_may_be_numbers_and_tuples() {
    for layout in USUAL {
        let bed = Bed::new(layout).await;
        let numbers: Space<i64, String> = bed.space("numbers").build().unwrap();
        let pairs: Space<(String, u16), String> = bed.space("pairs").build().unwrap();
        let mut expected = BTreeMap::new();
        for number in [0, -1, i64::MIN, i64::MAX, 42] {
            numbers.insert(&number, number.to_string()).await.everywhere();
            expected.insert(number, number.to_string());
        }
        let tesla = ("TSLA".to_owned(), 2023);
        pairs.insert(&tesla, "report".into()).await.everywhere();
        for _ in 0..2 {
            for (number, text) in &expected {
                assert_eq!(*numbers.get(number).await.unwrap().unwrap(), *text, "{layout:?}");
            }
            assert_eq!(*pairs.get(&tesla).await.unwrap().unwrap(), "report", "{layout:?}");
            bed.forget_memory().await;
        }
    }
}

#[tokio::test]
async fn memory_may_be_bounded_in_values_and_evict_as_is_wanted() {
    for eviction in [Eviction::Hybrid, Eviction::Lru, Eviction::Lfu, Eviction::Ttl] {
        let memory = Memory::bytes(16 << 20).max_entries(100).eviction(eviction);
        let terrace = Terrace::builder().memory(memory).build().await.unwrap();
        let keys: Vec<String> = (0..1_000).map(|key| key.to_string()).collect();
        for (number, key) in keys.iter().enumerate() {
            terrace.set(key, &number).await.unwrap();
            // Whatever the policy but the one that goes by expiry, who is read all the time stays.
            let first = terrace.get::<usize>("0").await.unwrap();
            assert!(first.is_some() || eviction == Eviction::Ttl, "{eviction:?} at {number}");
        }
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let left = terrace.exists_many(&keys).await.unwrap();
        assert!((90..=100).contains(&left), "{eviction:?} leaves {left}");
    }
}
