//! Copies between tiers lengthen no life and change no stamp.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use terrace::clock::{Clock, WallTime};
use terrace::frame::{Header, decode};
use terrace::{Cached, Memory, Source, Space, Terrace, Tier};
use terrace_test::{ChaosStore, ManualClock, MapStore, START, Verb};

use crate::support::{Everywhere as _, count, ends, eventually, ms, random};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn at(seconds: u64) -> WallTime {
    START.saturating_add(Duration::from_secs(seconds))
}

/// Memory over two maps that keep entries for at most 10 s and 60 s.
struct Rig {
    clock: Arc<ManualClock>,
    upper: Arc<MapStore>,
    lower: Arc<MapStore>,
    terrace: Terrace,
}

impl Rig {
    async fn new() -> Self {
        Self::with(Some(10 * SECOND), Some(60 * SECOND)).await
    }

    async fn with(upper_ttl: Option<Duration>, lower_ttl: Option<Duration>) -> Self {
        let clock = Arc::new(ManualClock::new());
        let [upper, lower] = [(); 2].map(|()| Arc::new(MapStore::new()));
        let tier = |store: &Arc<MapStore>, ttl| {
            let tier = Tier::shared(store.clone());
            match ttl {
                Some(ttl) => tier.max_ttl(ttl),
                None => tier,
            }
        };
        let terrace = Terrace::builder()
            .memory(Memory::bytes(64 << 20))
            .tier("upper", tier(&upper, upper_ttl))
            .tier("lower", tier(&lower, lower_ttl))
            .clock(clock.clone())
            .build()
            .await
            .unwrap();
        Self { clock, upper, lower, terrace }
    }

    fn space(&self, ttl: Duration) -> Space<str, u32> {
        self.terrace.space("space").ttl(ttl).jitter(0.0).build().unwrap()
    }

    fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    async fn forget(&self, tier: &str) {
        self.terrace.clear_tier(tier).await.unwrap();
    }
}

/// The only frame in a store: its header, and that the store was told the same.
#[track_caller]
fn frame(store: &MapStore) -> Header {
    let keys = store.keys();
    let [key] = &keys[..] else { panic!("one frame: {keys:?}") };
    let put = store.put_under(key).unwrap();
    let header = decode(&put.frame, 1 << 20).unwrap().header;
    assert_eq!(put.stamp, header.stamp);
    assert_eq!(put.expires, header.stale_until.or(header.expires));
    assert_eq!(put.tags, header.tags);
    header
}

fn tier(name: &str) -> Source {
    Source::Tier(name.into())
}

#[tokio::test]
async fn each_tier_keeps_an_entry_for_its_own_time_at_most() {
    let rig = Rig::new().await;
    for (ttl, upper, lower) in [(300, 10, 60), (60, 10, 60), (30, 10, 30), (10, 10, 10), (3, 3, 3)]
    {
        let space = rig.space(Duration::from_secs(ttl));
        rig.clock.set_wall(START);
        let _ = space.insert("key", 1).await.unwrap();
        assert_eq!(frame(&rig.upper).expires, Some(at(upper)), "ttl {ttl}");
        assert_eq!(frame(&rig.lower).expires, Some(at(lower)), "ttl {ttl}");
        assert_eq!(frame(&rig.upper).created, START);
        let in_memory = space.get("key").await.unwrap().unwrap();
        assert_eq!(in_memory.expires(), Some(at(ttl)));
        assert_eq!(frame(&rig.upper).stamp, in_memory.stamp());
        assert_eq!(frame(&rig.lower).stamp, in_memory.stamp());
    }
    // What never expires does, in tiers that say so.
    let _ =
        rig.terrace.space("space").forever().build().unwrap().insert("key", 1_u32).await.unwrap();
    assert_eq!(frame(&rig.upper).expires, Some(at(10)));
    assert_eq!(frame(&rig.lower).expires, Some(at(60)));
}

#[tokio::test]
async fn a_copy_gets_what_is_left_and_the_stamp_that_it_has() {
    let rig = Rig::new().await;
    let space = rig.space(300 * SECOND);
    let loaded =
        space.get_or_load("key", |_| async { Ok::<_, Infallible>(7) }).tags(["tag"]).await.unwrap();
    // Lines of others that do not concern it: a new stamp would be a higher one.
    for _ in 0..5 {
        let _ = rig.terrace.invalidate("other").await.unwrap();
    }
    let original = frame(&rig.lower);
    assert_eq!((original.created, original.expires), (START, Some(at(60))));
    assert_eq!(original.stamp, loaded.stamp());

    rig.pass(20);
    rig.forget("memory").await;
    rig.forget("upper").await;
    let found = space.get("key").await.unwrap().unwrap();
    let is_the_same = |found: &Cached<u32>, source: &Source, expires: u64| {
        assert_eq!((**found, found.source()), (7, source));
        assert_eq!(found.created(), START);
        assert_eq!(found.expires(), Some(at(expires)));
        assert_eq!(found.stamp(), original.stamp);
        assert_eq!(found.tags().collect::<Vec<_>>(), ["tag"]);
        assert!(!found.is_stale());
    };
    is_the_same(&found, &tier("lower"), 60);
    let copy = frame(&rig.upper);
    assert_eq!(
        copy,
        Header { expires: Some(at(30)), stale_until: Some(at(30)), ..original.clone() }
    );
    assert_eq!(frame(&rig.lower), original, "what was read from is as it was");
    is_the_same(&space.get("key").await.unwrap().unwrap(), &Source::Memory, 60);

    // From the tier in between it is its shorter life that memory gets.
    rig.forget("memory").await;
    is_the_same(&space.get("key").await.unwrap().unwrap(), &tier("upper"), 30);
    rig.pass(9);
    is_the_same(&space.get("key").await.unwrap().unwrap(), &Source::Memory, 30);
    rig.pass(1);
    is_the_same(&space.get("key").await.unwrap().unwrap(), &tier("lower"), 60);
    assert_eq!(
        frame(&rig.upper),
        Header { expires: Some(at(40)), stale_until: Some(at(40)), ..original.clone() }
    );

    // Near its end there is less left than the upper tier would give.
    rig.pass(25);
    rig.forget("memory").await;
    is_the_same(&space.get("key").await.unwrap().unwrap(), &tier("lower"), 60);
    assert_eq!(frame(&rig.upper), original);
    rig.pass(4);
    is_the_same(&space.get("key").await.unwrap().unwrap(), &Source::Memory, 60);
    rig.pass(1);
    assert!(space.get("key").await.unwrap().is_none());
    assert!(!space.exists("key").await.unwrap());
}

#[tokio::test]
async fn copies_of_many_keys_keep_each_their_own() {
    let rig = Rig::new().await;
    let space = rig.space(300 * SECOND);
    let keys = ["a", "b", "c"];
    let mut stamps = Vec::new();
    for (key, number) in keys.iter().zip(0..) {
        let _ = space.insert(key, number).await.unwrap();
        stamps.push(space.get(key).await.unwrap().unwrap().stamp());
        rig.pass(5);
    }
    rig.forget("memory").await;
    rig.forget("upper").await;
    let found = space.get_many(keys).await.unwrap();
    for (index, found) in found.into_iter().enumerate() {
        let (found, created) = (found.unwrap(), 5 * index as u64);
        assert_eq!(found.stamp(), stamps[index]);
        assert_eq!((found.created(), found.expires()), (at(created), Some(at(created + 60))));
    }
    for key in rig.upper.keys() {
        let header = decode(&rig.upper.raw(&key).unwrap(), 1 << 20).unwrap().header;
        let index = keys.iter().position(|key| key.as_bytes() == &*header.key).unwrap();
        assert_eq!(header.stamp, stamps[index]);
        assert_eq!((header.created, header.expires), (at(5 * index as u64), Some(at(25))));
    }
    assert_eq!(rig.upper.keys().len(), 3);
}

#[tokio::test]
async fn what_is_dead_or_stale_is_not_copied() {
    let rig = Rig::new().await;
    let space: Space<str, u32> =
        rig.terrace.space("space").ttl(60 * SECOND).jitter(0.0).stale_for(HOUR).build().unwrap();
    let load = async |key: &str, tags: &[&str]| {
        let load = |_| async { Ok::<_, Infallible>(1) };
        let _ = space.get_or_load(key, load).tags(tags).await.unwrap();
    };
    load("stale", &[]).await;
    load("dead", &["tag"]).await;
    rig.forget("memory").await;
    rig.forget("upper").await;
    let _ = rig.terrace.invalidate_tag("tag").await.unwrap();
    assert!(space.get("dead").await.unwrap().is_none());
    assert_eq!(rig.upper.keys(), []);
    assert_eq!(rig.lower.keys().len(), 2, "it is still there, and dead");

    rig.pass(60);
    assert!(space.get("stale").await.unwrap().is_none());
    let fails = |_| async { Err::<u32, _>("the source is down") };
    let answer = space.get_or_load("stale", fails).await.unwrap();
    assert!(answer.is_stale());
    assert_eq!(answer.source(), &tier("lower"));
    assert_eq!(rig.upper.keys(), [], "nothing stale is copied");
    let again = space.get_or_load("stale", fails).await.unwrap();
    assert_eq!(again.source(), &tier("lower"), "to memory neither");
    assert!(space.get_or_load("dead", fails).await.is_err(), "what is dead is not stale");
}

/// The time of day is set, back and forth, while entries wander between the tiers:
/// nothing is served longer than it was meant to be.
#[tokio::test]
async fn nothing_outlives_its_ttl_whatever_the_clocks_do() {
    let mut random = random("clocks and copies");
    let (mut found_below, mut dead) = (0, 0);
    for round in 0..count(300, 10_000) {
        let rig = Rig::with(
            random.bool().then(|| Duration::from_secs(random.u64(1..200))),
            random.bool().then(|| Duration::from_secs(random.u64(1..200))),
        )
        .await;
        let ttl = Duration::from_secs(random.u64(1..120));
        let space = rig.space(ttl);
        if random.bool() {
            rig.clock.advance(HOUR * random.u32(1..100));
        }
        let made = rig.clock.elapsed();
        let _ = space.insert("key", 1).await.unwrap();
        let stamp = space.get("key").await.unwrap().unwrap().stamp();
        let mut story = vec![format!("ttl {ttl:?}")];
        for _ in 0..30 {
            match random.u8(..8) {
                0 => rig.clock.jump_wall_back(HOUR),
                1 => rig.clock.jump_wall_forward(DAY),
                2 => rig.clock.jump_wall_back(Duration::from_secs(random.u64(..30))),
                3 => rig.clock.jump_wall_forward(Duration::from_secs(random.u64(..30))),
                4 => rig.forget("memory").await,
                5 => rig.forget("upper").await,
                _ => rig.clock.advance(Duration::from_millis(random.u64(..40_000))),
            }
            let age = rig.clock.elapsed().saturating_sub(made);
            story.push(format!("{age:?} old at {:?}", rig.clock.wall()));
            if let Some(found) = space.get("key").await.unwrap() {
                assert!(age <= ttl + SECOND, "round {round}, from {}: {story:#?}", found.source());
                assert_eq!(found.stamp(), stamp, "round {round}: {story:#?}");
                found_below += u32::from(*found.source() != Source::Memory);
            } else {
                dead += 1;
            }
            for store in [&rig.upper, &rig.lower] {
                for key in store.keys() {
                    let header = decode(&store.raw(&key).unwrap(), 1 << 20).unwrap().header;
                    let given = header.expires.unwrap().saturating_since(header.created);
                    assert!(given <= ttl, "round {round}: {story:#?}");
                    assert_eq!(header.stamp, stamp, "round {round}: {story:#?}");
                }
            }
        }
    }
    assert!(found_below > 100 && dead > 100, "{found_below}, {dead}");
}

#[tokio::test]
async fn a_clock_that_stands_still_for_a_day_of_sleep_ends_lives() {
    // Asleep, a machine's elapsed time may stand still while the time of day goes on:
    // what memory holds then lives on, what is below does not.
    let rig = Rig::with(None, None).await;
    let space = rig.space(60 * SECOND);
    let _ = space.insert("key", 1).await.unwrap();
    rig.clock.jump_wall_forward(DAY);
    rig.forget("memory").await;
    assert!(space.get("key").await.unwrap().is_none());
    // Awake, what is made from here on has its whole life.
    let _ = space.insert("key", 2).await.unwrap();
    rig.forget("memory").await;
    rig.pass(59);
    assert_eq!(space.get("key").await.unwrap().as_deref(), Some(&2));
    rig.pass(1);
    assert!(space.get("key").await.unwrap().is_none());
}

#[tokio::test]
async fn jitter_varies_lives_by_a_fifth_and_no_more() {
    let rig = Rig::with(None, None).await;
    let space: Space<str, u32> = rig.terrace.space("space").ttl(100 * SECOND).build().unwrap();
    let mut given = Vec::new();
    for number in 0..1_000 {
        let key = number.to_string();
        if number % 2 == 0 {
            let _ = space.insert(&key, number).await.unwrap();
        } else {
            let load = |_| async move { Ok::<_, Infallible>(number) };
            let _ = space.get_or_load(&key, load).await.unwrap();
        }
        let entry = space.get(&key).await.unwrap().unwrap();
        given.push(entry.expires().unwrap().saturating_since(entry.created()).as_secs_f64());
    }
    assert!(given.iter().all(|given| (80.0..=120.0).contains(given)), "{given:?}");
    let few =
        |range: std::ops::Range<f64>| given.iter().filter(|given| range.contains(given)).count();
    for from in [80.0, 90.0, 100.0, 110.0] {
        let share = few(from..from + 10.0);
        assert!((150..350).contains(&share), "{share} of 1,000 from {from} s");
    }
    // Every copy of an entry has the life that was drawn for it once.
    for key in rig.lower.keys() {
        let [upper, lower] = [&rig.upper, &rig.lower]
            .map(|store| decode(&store.raw(&key).unwrap(), 1 << 20).unwrap().header);
        assert_eq!(upper, lower);
    }
    // A lifetime that a call asks for is exact.
    let _ = space.insert("exact", 1).ttl(100 * SECOND).await.unwrap();
    let exact = space.get("exact").await.unwrap().unwrap();
    assert_eq!(exact.expires(), Some(at(100)));
}

/// The tier above may be slower than the one that has the value, and whoever asks may leave.
#[tokio::test]
async fn a_copy_that_takes_long_keeps_nobody_waiting_and_is_made_all_the_same() {
    for leaves in [false, true] {
        let [upper, lower] = [(); 2].map(|()| Arc::new(MapStore::new()));
        let slow = Arc::new(ChaosStore::over(upper.clone()));
        let terrace = Terrace::builder()
            .memory(Memory::bytes(64 << 20))
            .tier("upper", Tier::shared(slow.clone()))
            .tier("lower", Tier::shared(lower.clone()))
            .build()
            .await
            .unwrap();
        let space: Space<str, u32> = terrace.space("space").tiers_deadline(ms(50)).build().unwrap();
        space.insert("key", 7).await.everywhere();
        let [key] = &upper.keys()[..] else { panic!("one frame") };
        upper.remove_raw(key);
        terrace.clear_tier("memory").await.unwrap();
        let gate = slow.hold(Verb::Put);
        let asking = tokio::spawn({
            let space = space.clone();
            async move { space.get("key").await.unwrap().map(|found| *found) }
        });
        ends("the copy", gate.arrived()).await;
        if leaves {
            asking.abort();
            let _ = asking.await;
        } else {
            assert_eq!(ends("the read", asking).await.unwrap(), Some(7), "it has its value");
        }
        assert!(upper.raw(key).is_none());
        gate.open();
        eventually("the copy is there", async || upper.raw(key).is_some()).await;
        assert!(ends("closing", terrace.close()).await);
    }
}
