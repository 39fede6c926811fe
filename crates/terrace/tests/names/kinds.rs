//! Kinds of data: for how long, in which tiers, and counted together.

use std::sync::Arc;
use std::time::Duration;

use terrace::store::Scope;
use terrace::{BuildError, Kind, KindStats, Memory, Space, Stats, Terrace, Tier};
use terrace_test::{ManualClock, MapStore};

use crate::support::Everywhere;

/// A cache of memory, of a store that a fleet shares, and of one that this machine has for itself.
struct Bed {
    terrace: Terrace,
    fleet: Arc<MapStore>,
    host: Arc<MapStore>,
    clock: Arc<ManualClock>,
}

impl Bed {
    async fn new() -> Self {
        let [fleet, host] =
            [Scope::Fleet, Scope::Host].map(|it| Arc::new(MapStore::with_scope(it)));
        let clock = Arc::new(ManualClock::new());
        let terrace = Terrace::builder()
            .memory(Memory::bytes(1 << 20))
            .tier("fleet", Tier::shared(Arc::clone(&fleet) as _))
            .tier("host", Tier::shared(Arc::clone(&host) as _))
            .clock(Arc::clone(&clock) as _)
            .build()
            .await
            .unwrap();
        Self { terrace, fleet, host, clock }
    }

    fn space(&self, name: &str, kind: Kind) -> Space<str, u64> {
        self.terrace.space(name).kind(kind).jitter(0.0).refresh_at(1.0).build().unwrap()
    }

    /// Whether the stores hold something of a space.
    fn holds(&self, space: &str) -> [bool; 2] {
        [&self.fleet, &self.host].map(|store| store.keys().iter().any(|key| key.space() == space))
    }
}

fn kind<'a>(stats: &'a Stats, name: &str) -> &'a KindStats {
    stats.kinds.iter().find(|kind| &*kind.name == name).unwrap()
}

#[tokio::test]
async fn each_kind_is_kept_where_and_as_long_as_it_says() {
    let bed = Bed::new().await;
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let kinds = [
        (Kind::STATIC, minutes(24 * 60), [true, true]),
        (Kind::DYNAMIC, minutes(60), [true, false]),
        (Kind::COMPUTED, minutes(30), [true, true]),
        (Kind::TEMPORARY, minutes(5), [false, false]),
        (Kind::custom("own").ttl(minutes(7)).tiers(["host", "memory"]), minutes(7), [false, true]),
        (Kind::custom("other"), minutes(5), [true, true]),
    ];
    for (kind, ttl, stores) in kinds {
        let name = kind.name().to_owned();
        let space = bed.space(&name, kind);
        // By a write, and by a load.
        space.insert("w", 1).await.everywhere();
        assert_eq!(bed.holds(&name), stores, "{name}");
        space.clear().await.everywhere();
        let load = |_| async { Ok::<_, std::io::Error>(2) };
        space.get_or_load("l", load).await.unwrap();
        assert_eq!(bed.holds(&name), stores, "{name}");
        bed.clock.advance(ttl - Duration::from_secs(1));
        assert_eq!(space.get("l").await.unwrap().as_deref(), Some(&2), "{name}");
        bed.clock.advance(Duration::from_secs(2));
        assert!(space.get("l").await.unwrap().is_none(), "{name}");
    }
}

/// What another opening of the space has left in a tier that this one does not use is neither found
/// nor left behind.
#[tokio::test]
async fn tiers_that_a_kind_does_not_use_are_not_read() {
    let bed = Bed::new().await;
    let everywhere = bed.terrace.space::<str, u64>("s").forever().build().unwrap();
    everywhere.insert("k", 1).await.everywhere();
    let temporary = bed.space("s", Kind::TEMPORARY);
    let in_memory = temporary.get("k").await.unwrap();
    assert_eq!(in_memory.as_deref(), Some(&1));
    bed.terrace.clear_tier("memory").await.unwrap();
    let reads = bed.fleet.reads();
    assert!(temporary.get("k").await.unwrap().is_none() && !temporary.exists("k").await.unwrap());
    assert_eq!(bed.fleet.reads(), reads);
    temporary.insert("k", 2).await.everywhere();
    bed.terrace.clear_tier("memory").await.unwrap();
    assert!(everywhere.get("k").await.unwrap().is_none(), "the old value is found again");
}

/// Nothing of a kind that is not kept in memory is.
#[tokio::test]
async fn a_kind_need_not_be_kept_in_memory() {
    let bed = Bed::new().await;
    let space = bed.space("s", Kind::custom("below").tiers(["fleet"]));
    space.insert("k", 1).await.everywhere();
    let load = |_| async { Ok::<_, std::io::Error>(2) };
    space.get_or_load("l", load).await.unwrap();
    for (key, value) in [("k", 1), ("l", 2)] {
        assert_eq!(space.get(key).await.unwrap().as_deref(), Some(&value));
        assert_eq!(space.read(key, |value| *value), None);
    }
    assert_eq!(bed.holds("s"), [true, false]);
}

#[tokio::test]
async fn spaces_of_a_kind_are_counted_together() {
    let bed = Bed::new().await;
    let (one, other) = (bed.space("one", Kind::DYNAMIC), bed.space("other", Kind::DYNAMIC));
    let tenant = bed.terrace.tenant("acme").unwrap();
    let of_tenant = tenant.space::<str, u64>("one").kind(Kind::DYNAMIC).build().unwrap();
    let still = bed.space("still", Kind::STATIC);
    for space in [&one, &other, &of_tenant, &still] {
        space.insert("k", 1).await.everywhere();
        assert!(space.get("k").await.unwrap().is_some());
        assert!(space.get("missing").await.unwrap().is_none());
    }
    let fails = one.get_or_load("l", |_| async { Err::<u64, _>(std::io::Error::other("no")) });
    assert!(fails.await.is_err());
    let stats = bed.terrace.stats().await;
    let dynamic = kind(&stats, "dynamic");
    assert_eq!((dynamic.spaces, dynamic.loads, dynamic.load_errors), (3, 1, 1));
    let memory = &dynamic.tiers[0].1;
    assert_eq!((&*dynamic.tiers[0].0, memory.hits, memory.writes), ("memory", 3, 3));
    assert_eq!(memory.misses, 4);
    assert_eq!(kind(&stats, "static").tiers[0].1.hits, 1);
    // What it does not use is not asked.
    assert_eq!(dynamic.tiers[2].1.hits + dynamic.tiers[2].1.misses, 0);
    let of_space = stats.spaces.iter().find(|space| &*space.name == "still").unwrap();
    assert_eq!(&*of_space.kind, "static");
}

#[tokio::test]
async fn a_kind_in_a_tier_that_there_is_not_is_refused() {
    let bed = Bed::new().await;
    let kind = Kind::custom("x").tiers(["nowhere"]);
    let opened = bed.terrace.space::<str, u64>("s").kind(kind).build();
    assert!(matches!(opened, Err(BuildError::BadName { ref name, .. }) if name == "nowhere"));
}
