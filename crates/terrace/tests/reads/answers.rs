//! Loaders that know more than a value: what they say about it, that it has not changed, that
//! there is none, that it is not to be kept.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use terrace::clock::WallTime;
use terrace::frame::{Header, decode};
use terrace::{
    Cached, Disk, Error, Load, LoadError, Loaded, Memory, Source, Space, SpaceBuilder, Terrace,
    Tier,
};
use terrace_test::{ChaosStore, ManualClock, MapStore, START, Verb};
use tokio::sync::Semaphore;

use crate::support::{
    Bed, Everywhere as _, Layout, Refused, count, ends, eventually, let_others_run, ms,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

type Numbers = Space<str, u32>;

fn at(seconds: u64) -> WallTime {
    START.saturating_add(Duration::from_secs(seconds))
}

/// Memory over a map, on a clock that a test moves.
struct Rig {
    clock: Arc<ManualClock>,
    map: Arc<MapStore>,
    chaos: Arc<ChaosStore>,
    terrace: Terrace,
}

impl Rig {
    async fn new() -> Self {
        let clock = Arc::new(ManualClock::new());
        let map = Arc::new(MapStore::new());
        let chaos = Arc::new(ChaosStore::over(Arc::clone(&map) as _));
        let terrace = Terrace::builder()
            .memory(Memory::bytes(64 << 20))
            .tier("map", Tier::shared(Arc::clone(&chaos) as _))
            .clock(clock.clone())
            .build()
            .await
            .unwrap();
        Self { clock, map, chaos, terrace }
    }

    /// A space in which nothing happens by itself.
    fn builder(&self) -> SpaceBuilder<str, u32> {
        let builder = self.terrace.space("space").ttl(60 * SECOND).jitter(0.0).refresh_at(1.0);
        builder.retry(Duration::ZERO, Duration::ZERO)
    }

    fn space(&self) -> Numbers {
        self.builder().stale_for(HOUR).build().unwrap()
    }

    /// The only frame below memory.
    #[track_caller]
    fn frame(&self) -> Header {
        let keys = self.map.keys();
        let [key] = &keys[..] else { panic!("one frame: {keys:?}") };
        decode(&self.map.raw(key).unwrap(), 1 << 20).unwrap().header
    }

    async fn forget_memory(&self) {
        self.terrace.clear_tier("memory").await.unwrap();
    }
}

fn fails(_: Load<str, u32>) -> impl Future<Output = Result<u32, Refused>> + Send {
    std::future::ready(Err(Refused(1)))
}

async fn load(space: &Numbers, loaded: Loaded<u32>) -> Result<Cached<u32>, LoadError<Infallible>> {
    ends("a load", space.get_or_load("key", |_| async { Ok(loaded) })).await
}

#[tokio::test]
async fn what_a_loader_says_about_a_value_goes_with_it_everywhere() {
    let rig = Rig::new().await;
    let directory = tempfile::tempdir().unwrap();
    let on_disk = async || {
        let disk = Disk::at(directory.path());
        let builder = Terrace::builder().tier("disk", disk).clock(rig.clock.clone());
        builder.memory(Memory::bytes(1 << 20)).build().await.unwrap()
    };
    let disk = on_disk().await;
    let is_right = |found: &Cached<u32>, source: &Source| {
        assert_eq!((**found, found.source()), (7, source));
        assert_eq!(found.version(), Some("v7"));
        assert_eq!(found.last_modified(), Some(at(5)));
        assert_eq!((found.created(), found.expires()), (START, Some(at(33))));
        let mut tags: Vec<_> = found.tags().collect();
        tags.sort();
        assert_eq!(tags, ["both", "call", "loader"]);
        assert!(!found.is_stale());
    };
    for terrace in [&rig.terrace, &disk] {
        let space: Numbers = terrace.space("space").build().unwrap();
        let say = |_| async {
            let loaded = Loaded::value(7).ttl(33 * SECOND).version("v7").last_modified(at(5));
            Ok::<_, Infallible>(loaded.tags(["loader", "both"]))
        };
        let call = space.get_or_load("key", say).ttl(10 * SECOND).tags(["call", "both"]);
        is_right(&call.await.unwrap(), &Source::Loader);
        is_right(&space.get("key").await.unwrap().unwrap(), &Source::Memory);
    }
    let header = rig.frame();
    assert_eq!((header.version.as_deref(), header.last_modified), (Some("v7"), Some(at(5))));
    assert_eq!((header.created, header.expires), (START, Some(at(33))));
    assert_eq!(header.tags.len(), 3);
    rig.forget_memory().await;
    let space: Numbers = rig.terrace.space("space").build().unwrap();
    is_right(&space.get("key").await.unwrap().unwrap(), &Source::Tier("map".into()));

    assert!(disk.close().await);
    let disk = on_disk().await;
    let space: Numbers = disk.space("space").build().unwrap();
    is_right(&space.get("key").await.unwrap().unwrap(), &Source::Tier("disk".into()));
    disk.invalidate_tag("loader").await.everywhere();
    assert!(space.get("key").await.unwrap().is_none(), "a loader's tag is one like any other");

    // For ever is said by the loader, too.
    let forever = load(&rig.space(), Loaded::value(1).forever()).await.unwrap();
    assert_eq!(*forever, 7, "it is still fresh there");
    rig.clock.advance(40 * SECOND);
    let forever = load(&rig.space(), Loaded::value(1).forever()).await.unwrap();
    assert_eq!((*forever, forever.expires()), (1, None));
}

#[tokio::test]
async fn a_value_that_has_not_changed_begins_a_new_life_in_every_tier() {
    for from_below in [false, true] {
        let rig = Rig::new().await;
        let space = rig.space();
        let first = Loaded::value(7).version("v7").last_modified(at(5)).tags(["tag"]);
        let first = load(&space, first).await.unwrap();
        let stamp = first.stamp();
        rig.clock.advance(70 * SECOND);
        if from_below {
            rig.forget_memory().await;
        }
        let source = if from_below { Source::Tier("map".into()) } else { Source::Memory };
        let confirm = |load: Load<str, u32>| {
            assert!(load.stale().is_none(), "nothing is known in a closure around the future");
            async move {
                let stale = load.stale().expect("something stale is at hand");
                assert_eq!((**stale, stale.source(), stale.is_stale()), (7, &source, true));
                assert_eq!((load.version(), load.last_modified()), (Some("v7"), Some(at(5))));
                Ok::<_, Refused>(Loaded::not_modified())
            }
        };
        let again = space.get_or_load("key", confirm).await.unwrap();
        let is_right = |found: &Cached<u32>| {
            assert_eq!((**found, found.is_stale()), (7, false), "below: {from_below}");
            assert_eq!((found.created(), found.expires()), (at(70), Some(at(130))));
            assert_eq!((found.version(), found.last_modified()), (Some("v7"), Some(at(5))));
            assert_eq!(found.tags().collect::<Vec<_>>(), ["tag"]);
            assert_eq!(found.stamp(), stamp, "what was invalidated since is dead");
        };
        is_right(&again);
        let found = space.get("key").await.unwrap().unwrap();
        assert_eq!(found.source(), &Source::Memory);
        is_right(&found);
        let header = rig.frame();
        assert_eq!((header.created, header.expires), (at(70), Some(at(130))));
        assert_eq!(header.version.as_deref(), Some("v7"));
        rig.forget_memory().await;
        is_right(&space.get("key").await.unwrap().unwrap());
        rig.clock.advance(59 * SECOND);
        assert!(space.exists("key").await.unwrap());
        rig.clock.advance(SECOND);
        assert!(!space.exists("key").await.unwrap());

        // What a refresh confirms is fresh until then.
        let loaded = load(&space, Loaded::value(8).version("v8")).await.unwrap();
        assert_eq!(*loaded, 8);
        rig.clock.advance(30 * SECOND);
        let confirm = |load: Load<str, u32>| async move {
            assert_eq!((load.version(), load.stale().unwrap().is_stale()), (Some("v8"), false));
            Ok::<_, Refused>(Loaded::not_modified().ttl(5 * SECOND))
        };
        let renewed = space.get_or_load("key", confirm).refresh().await.unwrap();
        assert_eq!((*renewed, renewed.created()), (8, at(160)));
        assert_eq!(rig.frame().expires, Some(at(165)), "the loader says for how long");
    }
}

/// A line that says so stands, whatever the source confirms: the loader has to bring a value.
#[tokio::test]
async fn what_a_line_says_is_out_of_date_is_not_there_to_be_confirmed() {
    let rig = Rig::new().await;
    let space = rig.space();
    load(&space, Loaded::value(7).version("v7").tags(["tag"])).await.unwrap();
    rig.terrace.mark_stale_tag("tag").await.unwrap();
    let bring = |load: Load<str, u32>| async move {
        Ok::<_, Refused>(match load.stale() {
            Some(_) => Loaded::not_modified(),
            None => Loaded::value(8).version("v7").tags(["tag"]),
        })
    };
    assert_eq!(*space.get_or_load("key", bring).await.unwrap(), 8);
    let again = space.get_or_load("key", fails).await.unwrap();
    assert_eq!((*again, again.is_stale()), (8, false), "it is fresh again");
}

/// An entry keeps the names that it was stored under: one that is confirmed under others would
/// outlive them.
#[tokio::test]
async fn a_value_that_is_confirmed_under_more_names_is_handed_out_and_not_kept() {
    for adds in [true, false] {
        let rig = Rig::new().await;
        let space = rig.space();
        load(&space, Loaded::value(7).tags(["tag"])).await.unwrap();
        rig.clock.advance(70 * SECOND);
        let confirmed = Loaded::not_modified().tags([if adds { "more" } else { "tag" }]);
        assert_eq!(*load(&space, confirmed).await.unwrap(), 7);
        rig.terrace.invalidate_tag("more").await.unwrap();
        let next = *load(&space, Loaded::value(8)).await.unwrap();
        assert_eq!(next, if adds { 8 } else { 7 });
    }
}

#[tokio::test]
async fn nothing_cannot_be_confirmed() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space: Numbers = bed.space("space").build().unwrap();
        let answer = load(&space, Loaded::not_modified()).await;
        assert!(matches!(answer, Err(LoadError::NothingToConfirm)), "{layout:?}: {answer:?}");
        assert!(!space.exists("key").await.unwrap());
        // What was invalidated is nothing, too.
        space.insert("key", 7).await.everywhere();
        space.invalidate("key").await.everywhere();
        let answer = load(&space, Loaded::not_modified()).await;
        assert!(matches!(answer, Err(LoadError::NothingToConfirm)), "{layout:?}: {answer:?}");
        assert_eq!(*load(&space, Loaded::value(1)).await.unwrap(), 1, "{layout:?}");
    }
}

#[tokio::test]
async fn an_absence_is_remembered_for_as_long_as_the_space_says() {
    let rig = Rig::new().await;
    let space = rig.builder().negative_ttl(10 * SECOND).build().unwrap();
    let absent = async || {
        let answer = load(&space, Loaded::absent()).await;
        assert!(matches!(answer, Err(LoadError::Absent)), "{answer:?}");
    };
    let remembers =
        async || matches!(space.get_or_load("key", fails).await, Err(LoadError::Absent));
    absent().await;
    assert!(remembers().await);
    assert!(space.get("key").await.unwrap().is_none());
    assert!(!space.exists("key").await.unwrap());
    assert!(space.read("key", |_| ()).is_none());
    assert!(space.get_many(["key"]).await.unwrap()[0].is_none());
    rig.clock.advance(10 * SECOND - ms(1));
    assert!(remembers().await);
    rig.clock.advance(ms(1));
    assert!(!remembers().await);

    // Whatever names the key ends it at once.
    for event in 0..8 {
        let says_none = |_| async { Ok::<_, Infallible>(Loaded::<u32>::absent().tags(["own"])) };
        let answer = space.get_or_load("key", says_none).tags(["tag"]).await;
        assert!(matches!(answer, Err(LoadError::Absent)), "{answer:?}");
        assert!(remembers().await, "event {event}");
        match event {
            0 => space.insert("key", 5).await.everywhere(),
            1 => space.invalidate("key").await.everywhere(),
            2 => space.clear().await.everywhere(),
            3 => rig.terrace.clear().await.everywhere(),
            4 => rig.terrace.invalidate_tag("tag").await.everywhere(),
            5 => rig.terrace.invalidate_tag("own").await.everywhere(),
            6 => assert!(space.fill("key", space.ticket(), 5).await.unwrap()),
            _ => assert!(space.insert_if_absent("key", 5).await.unwrap()),
        }
        let found = space.get_or_load("key", |_| async { Ok::<_, Refused>(6) }).await;
        let expected = if matches!(event, 0 | 6 | 7) { 5 } else { 6 };
        assert_eq!(*found.unwrap(), expected, "event {event}");
        space.invalidate("key").await.everywhere();
    }

    // Where nothing is said, nothing is remembered.
    let space = rig.builder().build().unwrap();
    let answer = load(&space, Loaded::absent()).await;
    assert!(matches!(answer, Err(LoadError::Absent)));
    assert_eq!(*load(&space, Loaded::value(1)).await.unwrap(), 1);
    assert_eq!(rig.terrace.stats().await.spaces[1].absent, 10);
}

/// What names the key or a tag of the call while the source says that there is none.
#[tokio::test]
async fn an_absence_that_is_out_of_date_is_not_remembered() {
    for layout in [Layout::Memory, Layout::MemoryAndDisk] {
        for event in 0..5 {
            let bed = Bed::new(layout).await;
            let space: Numbers = bed.space("space").negative_ttl(HOUR).build().unwrap();
            let pass = Arc::new(Semaphore::new(0));
            let call = tokio::spawn({
                let (space, pass) = (space.clone(), Arc::clone(&pass));
                async move {
                    let says_none = |_| async move {
                        pass.acquire().await.unwrap().forget();
                        Ok::<_, Infallible>(Loaded::absent().tags(["own"]))
                    };
                    space.get_or_load("key", says_none).tags(["tag"]).await
                }
            });
            eventually("the load", async || bed.stats().await.loads_running == 1).await;
            match event {
                0 => space.insert("key", 5).await.everywhere(),
                1 => space.invalidate("key").await.everywhere(),
                2 => space.clear().await.everywhere(),
                3 => bed.invalidate_tag("tag").await.everywhere(),
                _ => bed.invalidate_tag("own").await.everywhere(),
            }
            pass.add_permits(1);
            let answer = ends("the call", call).await.unwrap();
            assert!(matches!(answer, Err(LoadError::Absent)), "{layout:?}, {event}: {answer:?}");
            let found = space.get_or_load("key", |_| async { Ok::<_, Refused>(6) }).await;
            let expected = if event == 0 { 5 } else { 6 };
            assert_eq!(*found.unwrap(), expected, "{layout:?}, {event}");
        }
    }
}

#[tokio::test]
async fn absences_do_not_push_out_what_is_there() {
    let terrace = Terrace::builder().memory(Memory::bytes(1 << 20)).build().await.unwrap();
    let space: Space<str, String> = terrace.space("space").negative_ttl(HOUR).build().unwrap();
    let value = "v".repeat(1_000);
    for number in 0..500 {
        let _ = space.insert(&format!("hot {number}"), value.clone()).await.unwrap();
    }
    assert_eq!(terrace.stats().await.tiers[0].evicted, 0);
    for number in 0..20_000 {
        let key = format!("none {number}");
        let answer =
            space.get_or_load(&key, |_| async { Ok::<_, Infallible>(Loaded::absent()) }).await;
        assert!(matches!(answer, Err(LoadError::Absent)));
    }
    let memory = &terrace.stats().await.tiers[0];
    assert_eq!(memory.evicted, 0, "they take their share and no more");
    assert!(memory.entries > 600, "{} entries: some are remembered", memory.entries);
    for number in 0..500 {
        assert!(space.read(&format!("hot {number}"), |_| ()).is_some(), "{number}");
    }
}

#[tokio::test]
async fn what_the_source_no_longer_has_never_stands_in_for_a_failure() {
    for negative in [None, Some(SECOND)] {
        for from_below in [false, true] {
            let rig = Rig::new().await;
            let mut builder = rig.builder().stale_for(HOUR);
            if let Some(ttl) = negative {
                builder = builder.negative_ttl(ttl);
            }
            let space = builder.build().unwrap();
            load(&space, Loaded::value(7)).await.unwrap();
            rig.clock.advance(70 * SECOND);
            let stands_in = space.get_or_load("key", fails).await.unwrap();
            assert!(stands_in.is_stale(), "while the source has it");
            if from_below {
                rig.forget_memory().await;
            }
            let answer = load(&space, Loaded::absent()).await;
            assert!(matches!(answer, Err(LoadError::Absent)), "{answer:?}");
            assert_eq!(rig.map.keys(), [], "{negative:?}, below: {from_below}");
            rig.clock.advance(2 * SECOND);
            let answer = space.get_or_load("key", fails).await.unwrap_err();
            assert_eq!(answer.loader(), Some(&Refused(1)), "{negative:?}, below: {from_below}");
            assert!(space.get("key").max_stale(HOUR).await.unwrap().is_none());
        }
    }
}

/// Whoever was told that there is none does not find it a moment later.
#[tokio::test]
async fn what_the_source_no_longer_has_is_gone_before_anybody_is_told() {
    for is_remembered in [false, true] {
        let rig = Rig::new().await;
        let mut builder = rig.builder();
        if is_remembered {
            builder = builder.negative_ttl(SECOND);
        }
        let space = builder.build().unwrap();
        load(&space, Loaded::value(7)).await.unwrap();
        let gate = rig.chaos.hold(Verb::Remove);
        let call = tokio::spawn({
            let space = space.clone();
            async move {
                let none = |_| async { Ok::<_, Infallible>(Loaded::absent()) };
                space.get_or_load("key", none).refresh().await
            }
        });
        ends("the removal begins", gate.arrived()).await;
        let_others_run().await;
        assert!(!call.is_finished(), "remembered: {is_remembered}");
        gate.open();
        let answer = ends("the call", call).await.unwrap();
        assert!(matches!(answer, Err(LoadError::Absent)), "{answer:?}");
        assert!(space.get("key").await.unwrap().is_none(), "remembered: {is_remembered}");
        rig.clock.advance(2 * SECOND);
        assert!(space.get("key").await.unwrap().is_none(), "remembered: {is_remembered}");
    }
}

#[tokio::test]
async fn what_is_not_to_be_cached_is_stored_nowhere() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space: Numbers = bed.space("space").build().unwrap();
        let pass = Arc::new(Semaphore::new(0));
        let calls = Arc::new(AtomicU32::new(0));
        let ask = || {
            let (space, pass, calls) = (space.clone(), Arc::clone(&pass), Arc::clone(&calls));
            tokio::spawn(async move {
                let once = |_| async move {
                    pass.acquire().await.unwrap().forget();
                    let call = calls.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, Refused>(Loaded::do_not_cache(call))
                };
                let answer = space.get_or_load("key", once).await.unwrap();
                assert_eq!(answer.source(), &Source::Loader);
                *answer
            })
        };
        let callers: Vec<_> = (0..10).map(|_| ask()).collect();
        let_others_run().await;
        pass.add_permits(1);
        for caller in callers {
            assert_eq!(ends("a caller", caller).await.unwrap(), 0, "{layout:?}: all share it");
        }
        assert!(space.get("key").await.unwrap().is_none(), "{layout:?}");
        pass.add_permits(1);
        assert_eq!(ends("the next one", ask()).await.unwrap(), 1, "{layout:?}");
        for tier in bed.stats().await.tiers {
            assert_eq!((tier.entries, tier.traffic.writes), (0, 0), "{layout:?}: {}", tier.name);
        }
    }
}

/// A tag that only the loader knows, or only the value that it confirms has.
#[tokio::test]
async fn a_tag_that_only_the_loader_knew_counts_from_the_beginning() {
    for layout in Layout::ALL {
        for is_confirmed in [false, true] {
            let bed = Bed::new(layout).await;
            let space: Numbers =
                bed.space("space").refresh_at(1.0).stale_for(HOUR).build().unwrap();
            load(&space, Loaded::value(7).tags(["own"])).await.unwrap();
            eventually("it is below, too", async || bed.stats().await.underway == 0).await;
            if is_confirmed {
                assert!(space.mark_stale("key").await.unwrap());
            } else {
                space.invalidate("key").await.everywhere();
            }
            let pass = Arc::new(Semaphore::new(0));
            let first = tokio::spawn({
                let (space, pass) = (space.clone(), Arc::clone(&pass));
                async move {
                    let held = |_| async move {
                        pass.acquire().await.unwrap().forget();
                        Ok::<_, Refused>(if is_confirmed {
                            Loaded::not_modified()
                        } else {
                            Loaded::value(7).tags(["own"])
                        })
                    };
                    space.get_or_load("key", held).tags(["call"]).await
                }
            });
            eventually("the load", async || bed.stats().await.loads_running == 1).await;
            bed.invalidate_tag("own").await.everywhere();
            // Nobody can know yet that the load is about this tag: these share it.
            let later: Vec<_> = (0..3)
                .map(|_| {
                    let space = space.clone();
                    tokio::spawn(async move {
                        space.get_or_load("key", |_| async { Ok::<_, Refused>(8) }).await
                    })
                })
                .collect();
            let_others_run().await;
            pass.add_permits(1);
            let first = ends("the first call", first).await.unwrap();
            assert_eq!(*first.unwrap(), 7, "{layout:?}: it came before the line");
            for later in later {
                let later = *ends("a later call", later).await.unwrap().unwrap();
                assert_eq!(later, 8, "{layout:?}, confirmed: {is_confirmed}");
            }
            let found = space.get("key").await.unwrap();
            assert_eq!(found.as_deref(), Some(&8), "{layout:?}, confirmed: {is_confirmed}");
        }
    }
}

#[tokio::test]
async fn what_a_line_about_a_loaders_tag_makes_old_is_not_stored() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space: Numbers = bed.space("space").build().unwrap();
        let terrace = bed.terrace.clone();
        let invalidates = |_| async move {
            terrace.invalidate_tag("own").await.everywhere();
            Ok::<_, Refused>(Loaded::value(7).tags(["own"]))
        };
        let answer = ends("the call", space.get_or_load("key", invalidates)).await;
        assert_eq!(*answer.unwrap(), 7);
        eventually("all is done", async || bed.stats().await.underway == 0).await;
        assert!(space.get("key").await.unwrap().is_none(), "{layout:?}");
        if layout.has_memory() {
            bed.clear_tier("memory").await.unwrap();
            assert!(space.get("key").await.unwrap().is_none(), "{layout:?}");
        }
    }
}

#[tokio::test]
async fn an_older_version_replaces_a_newer_one_nowhere() {
    type Say = fn(Loaded<u32>) -> Loaded<u32>;
    let cases: [(Say, Say, bool); 6] = [
        (|new| new.version("10"), |old| old.version("9"), true),
        (|new| new.last_modified(at(10)), |old| old.last_modified(at(9)), true),
        (
            |new| new.version("\"b\"").last_modified(at(10)),
            |old| old.version("\"c\"").last_modified(at(9)),
            true,
        ),
        // It is newer, whatever the time says.
        (
            |new| new.version("9").last_modified(at(10)),
            |old| old.version("10").last_modified(at(9)),
            false,
        ),
        (|new| new.version("b"), |old| old.version("a"), false),
        (|new| new.version("10"), |old| old, false),
    ];
    for (case, (new, old, is_older)) in cases.into_iter().enumerate() {
        for way in 0..5 {
            let what = format!("case {case}, way {way}");
            let rig = Rig::new().await;
            let space = rig.space();
            load(&space, new(Loaded::value(10)).tags(["tag"])).await.unwrap();
            if way == 1 {
                // Only below.
                rig.forget_memory().await;
            }
            let answer = match way {
                0 | 1 => {
                    let lags = |_| async move { Ok::<_, Refused>(old(Loaded::value(9))) };
                    *space.get_or_load("key", lags).refresh().await.unwrap()
                }
                2 => {
                    let stored = space.fill("key", space.ticket(), old(Loaded::value(9))).await;
                    assert_eq!(stored.unwrap(), !is_older, "{what}");
                    9
                }
                3 => {
                    let lags = |_| async move {
                        Ok::<_, Refused>([("key".into(), old(Loaded::value(9)))])
                    };
                    rig.clock.advance(70 * SECOND);
                    let answers = space.get_many_or_load(["key"], lags).await;
                    **answers[0].as_ref().unwrap()
                }
                _ => {
                    // What was invalidated is not there: the source was set back.
                    rig.terrace.invalidate_tag("tag").await.everywhere();
                    *load(&space, old(Loaded::value(9))).await.unwrap()
                }
            };
            assert_eq!(answer, 9, "{what}: whoever asked gets what the source said");
            eventually("all is done", async || rig.terrace.stats().await.underway == 0).await;
            let expected = if is_older && way != 4 { 10 } else { 9 };
            for forget in [false, true] {
                if forget {
                    rig.forget_memory().await;
                }
                let found = space.get("key").max_stale(HOUR).await.unwrap();
                assert_eq!(found.as_deref(), Some(&expected), "{what}, below: {forget}");
            }
        }
    }
}

#[tokio::test]
async fn tags_that_cannot_be_used_are_an_error_and_harm_nothing() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space: Numbers = bed.space("space").build().unwrap();
        let many: Vec<String> = (0..65).map(|number| number.to_string()).collect();
        let bad: [&[String]; 3] = [&["".into()], &["t".repeat(257)], &many];
        for tags in bad {
            let answer = load(&space, Loaded::value(1).tags(tags)).await;
            assert!(matches!(answer, Err(LoadError::Cache(Error::Tags(_)))), "{answer:?}");
            let filled = space.fill("key", space.ticket(), Loaded::value(1).tags(tags)).await;
            assert!(matches!(filled, Err(Error::Tags(_))), "{filled:?}");
        }
        // Each has few enough, both together do not.
        let call = space.get_or_load("key", |_| {
            let own = many[..40].to_vec();
            async move { Ok::<_, Refused>(Loaded::value(1).tags(own)) }
        });
        let answer = call.tags(&many[30..]).await;
        assert!(matches!(answer, Err(LoadError::Cache(Error::Tags(_)))), "{answer:?}");
        assert!(!space.exists("key").await.unwrap(), "{layout:?}");
        let call = space.get_or_load("key", |_| {
            let own = many[..40].to_vec();
            async move { Ok::<_, Refused>(Loaded::value(1).tags(own)) }
        });
        let answer = call.tags(&many[..64]).await.unwrap();
        assert_eq!(answer.tags().count(), 64, "{layout:?}: the same tag counts once");
    }
}

/// Readers that ask all the time for ids that do not exist yet: whoever asks after the line about
/// a new one finds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c13_not_found_then_inserted() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space: Space<u64, u64> = bed.space("space").negative_ttl(HOUR).build().unwrap();
        for id in 0..count(250, 2_500) as u64 {
            let is_there = Arc::new(AtomicBool::new(false));
            let ask = || {
                let (space, is_there) = (space.clone(), Arc::clone(&is_there));
                async move {
                    let source = |_| async move {
                        let found = is_there.load(Ordering::SeqCst);
                        tokio::task::yield_now().await;
                        Ok::<_, Infallible>(if found {
                            Loaded::value(id)
                        } else {
                            Loaded::absent()
                        })
                    };
                    space.get_or_load(&id, source).tags([format!("tag {id}")]).await
                }
            };
            if id % 2 == 0 {
                let answer = ends("the first read", ask()).await;
                assert!(matches!(answer, Err(LoadError::Absent)), "{layout:?}, {id}: {answer:?}");
            }
            let before: Vec<_> = (0..3).map(|_| tokio::spawn(ask())).collect();
            is_there.store(true, Ordering::SeqCst);
            match id % 5 {
                0 => bed.invalidate_tag(&format!("tag {id}")).await.everywhere(),
                1 => space.clear().await.everywhere(),
                2 => space.insert(&id, id).await.everywhere(),
                _ => space.invalidate(&id).await.everywhere(),
            }
            for _ in 0..3 {
                let answer = ends("a later read", ask()).await;
                assert_eq!(*answer.expect("it is there"), id, "{layout:?}");
                let_others_run().await;
            }
            for caller in before {
                // They may have come before it was there.
                let answer = ends("an earlier read", caller).await.unwrap();
                assert!(matches!(answer, Ok(_) | Err(LoadError::Absent)), "{answer:?}");
            }
            let answer = ends("the last read", ask()).await;
            assert_eq!(*answer.expect("it is there"), id, "{layout:?}");
        }
    }
}
