//! Calls and spaces that are told something else than usual: which tiers, how old, how new, how
//! long, and whether at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use terrace::clock::WallTime;
use terrace::frame::decode;
use terrace::runtime::BoxFuture;
use terrace::store::StoreErrorKind;
use terrace::{
    Breaker, BuildError, Cached, Error, LoadError, Loaded, Memory, Mode, Source, Space,
    SpaceBuilder, Terrace, Tier,
};
use terrace_test::{ChaosStore, Fault, ManualClock, MapStore, START, Verb};
use tokio::sync::Semaphore;

use crate::support::{Bed, Everywhere as _, Layout, Refused, ends, eventually, let_others_run, ms};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

type Numbers = Space<str, u32>;

/// Memory over two maps, on a clock that a test moves.
struct Rig {
    clock: Arc<ManualClock>,
    maps: [Arc<MapStore>; 2],
    upper: Arc<ChaosStore>,
    terrace: Terrace,
}

impl Rig {
    async fn new() -> Self {
        let clock = Arc::new(ManualClock::new());
        let maps = [(); 2].map(|()| Arc::new(MapStore::new()));
        let upper = Arc::new(ChaosStore::over(Arc::clone(&maps[0]) as _));
        let terrace = Terrace::builder()
            .memory(Memory::bytes(1 << 20))
            .tier("upper", Tier::shared(Arc::clone(&upper) as _).breaker(Breaker::off()))
            .tier("lower", Tier::shared(Arc::clone(&maps[1]) as _))
            .clock(clock.clone())
            .build()
            .await
            .unwrap();
        Self { clock, maps, upper, terrace }
    }

    /// A space in which nothing happens by itself.
    fn builder(&self) -> SpaceBuilder<str, u32> {
        let builder = self.terrace.space("space").ttl(60 * SECOND).jitter(0.0).refresh_at(1.0);
        builder.retry(Duration::ZERO, Duration::ZERO)
    }

    fn space(&self) -> Numbers {
        self.builder().stale_for(HOUR).build().unwrap()
    }

    async fn forget(&self, tier: &str) {
        self.terrace.clear_tier(tier).await.unwrap();
    }

    /// In which tiers something is.
    async fn entries(&self) -> [u64; 3] {
        let stats = self.terrace.stats().await;
        assert_eq!(stats.underway, 0);
        std::array::from_fn(|index| stats.tiers[index].entries)
    }
}

fn at(seconds: u64) -> WallTime {
    START.saturating_add(Duration::from_secs(seconds))
}

fn tier(name: &str) -> Source {
    Source::Tier(name.into())
}

fn found(answer: Result<Option<Cached<u32>>, Error>) -> Option<(u32, Source, bool)> {
    answer.unwrap().map(|found| (*found, found.source().clone(), found.is_stale()))
}

type Loading = BoxFuture<'static, Result<Loaded<u32>, Refused>>;

/// A loader that counts.
struct Loads(Arc<AtomicU32>);

impl Loads {
    fn new() -> Self {
        Self(Arc::default())
    }

    /// Brings its own number, from 1.
    fn next<T>(&self) -> impl FnOnce(T) -> Loading + use<T> {
        let loads = Arc::clone(&self.0);
        move |_| {
            Box::pin(async move {
                let number = loads.fetch_add(1, Ordering::SeqCst) + 1;
                Ok(Loaded::value(number).version(number.to_string()))
            })
        }
    }

    fn count(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

fn fails<T>(_: T) -> std::future::Ready<Result<u32, Refused>> {
    std::future::ready(Err(Refused(1)))
}

#[tokio::test]
async fn a_read_may_take_what_is_past_its_end() {
    let rig = Rig::new().await;
    let space = rig.space();
    space.insert("key", 7).await.everywhere();
    rig.clock.advance(70 * SECOND);
    for from_below in [false, true] {
        if from_below {
            rig.forget("memory").await;
        }
        assert!(space.get("key").await.unwrap().is_none());
        let just_not = space.get("key").max_stale(10 * SECOND - ms(1)).await;
        assert_eq!(found(just_not), None, "below: {from_below}");
        let source = if from_below { tier("upper") } else { Source::Memory };
        let just = space.get("key").max_stale(10 * SECOND).await;
        assert_eq!(found(just), Some((7, source.clone(), true)));

        let just_not = space.get_or_load("key", fails).max_stale(10 * SECOND - ms(1)).await;
        assert_eq!(just_not.unwrap_err().loader(), Some(&Refused(1)), "below: {from_below}");
        let just = space.get_or_load("key", fails).max_stale(10 * SECOND).await.unwrap();
        assert_eq!((*just, just.is_stale()), (7, true));
    }
    rig.clock.advance(HOUR);
    assert_eq!(found(space.get("key").max_stale(24 * HOUR).await), None, "not kept for so long");
    // Where nothing is kept past its end, there is nothing to take.
    let space = rig.builder().build().unwrap();
    space.insert("key", 7).await.everywhere();
    rig.clock.advance(60 * SECOND);
    assert_eq!(found(space.get("key").max_stale(HOUR).await), None);
}

#[tokio::test]
async fn a_call_may_want_a_version_that_it_knows_of() {
    let rig = Rig::new().await;
    let space = rig.builder().negative_ttl(HOUR).build().unwrap();
    space.insert("key", 7).version("7").await.everywhere();
    space.insert("tagged", 8).version("abc").await.everywhere();
    let loads = Loads::new();
    for from_below in [false, true] {
        for (key, version, is_there) in
            [("key", "6", true), ("key", "7", true), ("key", "8", false), ("key", "x", false)]
                .into_iter()
                .chain([("tagged", "abc", true), ("tagged", "abd", false), ("tagged", "1", false)])
        {
            if from_below {
                rig.forget("memory").await;
            }
            let answer = space.get(key).at_least(version).await.unwrap();
            assert_eq!(answer.is_some(), is_there, "{key}, {version}, below: {from_below}");
        }
    }
    assert_eq!(*space.get_or_load("key", loads.next()).at_least("7").await.unwrap(), 7);
    assert_eq!(loads.count(), 0);
    let newer = |_| async { Ok::<_, Refused>(Loaded::value(9).version("9")) };
    assert_eq!(*space.get_or_load("key", newer).at_least("9").await.unwrap(), 9);
    let found = space.get("key").await.unwrap().unwrap();
    assert_eq!((*found, found.version()), (9, Some("9")), "it is stored");
    // What is too old does not stand in either.
    let answer = space.get_or_load("key", fails).at_least("10").await;
    assert_eq!(answer.unwrap_err().loader(), Some(&Refused(1)));
    // Whoever has written a version knows better than what was remembered before.
    let none = |_| async { Ok::<_, Refused>(Loaded::absent()) };
    assert!(matches!(space.get_or_load("none", none).await, Err(LoadError::Absent)));
    assert!(matches!(space.get_or_load("none", newer).await, Err(LoadError::Absent)));
    assert_eq!(*space.get_or_load("none", newer).at_least("9").await.unwrap(), 9);
}

#[tokio::test]
async fn a_read_may_leave_tiers_out_and_leave_what_it_finds_where_it_is() {
    let rig = Rig::new().await;
    let space = rig.space();
    space.insert("key", 7).await.everywhere();
    let hit = |source| Some((7, source, false));
    assert_eq!(found(space.get("key").await), hit(Source::Memory));
    assert_eq!(found(space.get("key").skip("memory").await), hit(tier("upper")));
    assert_eq!(found(space.get("key").skip("memory").skip("upper").await), hit(tier("lower")));
    let nowhere = space.get("key").skip("memory").skip("upper").skip("lower");
    assert_eq!(found(nowhere.await), None);

    rig.forget("memory").await;
    rig.forget("upper").await;
    for _ in 0..2 {
        let stays = space.get("key").without_promotion().await;
        assert_eq!(found(stays), hit(tier("lower")));
        assert_eq!(rig.entries().await, [0, 0, 1]);
        let stays = space.get_or_load("key", fails).without_promotion().await;
        assert_eq!(stays.unwrap().source(), &tier("lower"));
        assert_eq!(rig.entries().await, [0, 0, 1]);
        let stays = space.get_or_load("key", fails).read_only().await;
        assert_eq!(stays.unwrap().source(), &tier("lower"));
        assert_eq!(rig.entries().await, [0, 0, 1]);
    }
    let answer = space.get_or_load("key", fails).skip_write("upper").await;
    assert_eq!(answer.unwrap().source(), &tier("lower"));
    assert_eq!(rig.entries().await, [1, 0, 1]);

    let loads = Loads::new();
    let call = space.get_or_load("key", loads.next()).skip_read("memory").skip_read("lower");
    assert_eq!(*call.await.unwrap(), 1, "the one tier that is read has nothing");
    assert_eq!(rig.entries().await, [1, 1, 1]);
}

#[tokio::test]
async fn a_read_may_have_little_patience() {
    let rig = Rig::new().await;
    let space = rig.space();
    space.insert("key", 7).await.everywhere();
    rig.forget("memory").await;
    let gate = rig.upper.hold(Verb::Get);
    let read = ends("an impatient read", space.get("key").patience(ms(10)));
    assert_eq!(found(read.await), None);
    assert_eq!(gate.arrivals(), 1);
    gate.open();
    rig.upper.heal();
    let read = ends("a patient read", space.get("key").patience(HOUR));
    assert_eq!(found(read.await), Some((7, tier("upper"), false)));
    // What is in memory needs none.
    let _gate = rig.upper.hold(Verb::Get);
    let read = space.get("key").patience(Duration::ZERO).await;
    assert_eq!(found(read), Some((7, Source::Memory, false)));
}

#[tokio::test]
async fn a_refresh_loads_whatever_is_there() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let builder = bed.space("space").retry(Duration::ZERO, Duration::ZERO);
        let space: Numbers = builder.stale_for(HOUR).build().unwrap();
        let loads = Loads::new();
        for number in 1..=3 {
            let new = space.get_or_load("key", loads.next()).refresh().await.unwrap();
            assert_eq!((*new, new.source()), (number, &Source::Loader), "{layout:?}");
            eventually("it is stored", async || bed.stats().await.underway == 0).await;
            let answer = space.get("key").await.unwrap();
            assert_eq!(answer.as_deref(), Some(&number), "{layout:?}");
        }
        // If it fails, so does the call; what was there is as it was.
        let failure = space.get_or_load("key", fails).refresh().await.unwrap_err();
        assert_eq!(failure.loader(), Some(&Refused(1)), "{layout:?}");
        assert_eq!(*space.get_or_load("key", loads.next()).await.unwrap(), 3, "{layout:?}");
        assert_eq!(loads.count(), 3, "{layout:?}");
        let stands_in = space.get_or_load("key", fails).refresh().or_default(100).await;
        assert_eq!(*stands_in.unwrap(), 100, "{layout:?}");
    }
}

/// What departed before the call may have read the source before it.
#[tokio::test]
async fn a_refresh_does_not_join_a_load_that_began_before() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space: Numbers = bed.space("space").build().unwrap();
        let pass = Arc::new(Semaphore::new(0));
        let before = tokio::spawn({
            let (space, pass) = (space.clone(), Arc::clone(&pass));
            async move {
                let held = |_| async move {
                    pass.acquire().await.unwrap().forget();
                    Ok::<_, Refused>(100)
                };
                space.get_or_load("key", held).await
            }
        });
        eventually("the load", async || bed.stats().await.loads_running == 1).await;
        let loads = Loads::new();
        let refresh = tokio::spawn({
            let (space, next) = (space.clone(), loads.next());
            async move { space.get_or_load("key", next).refresh().await }
        });
        // It waits for the end of the other load, and not for its answer.
        let_others_run().await;
        pass.add_permits(1);
        let new = ends("a refresh", refresh).await.unwrap();
        assert_eq!(*new.unwrap(), 1, "{layout:?}");
        assert_eq!(*ends("the load", before).await.unwrap().unwrap(), 100, "{layout:?}");
        assert_eq!(loads.count(), 1, "{layout:?}");
        eventually("all is done", async || bed.stats().await.underway == 0).await;
        assert_eq!(space.get("key").await.unwrap().as_deref(), Some(&1), "{layout:?}");
    }
}

#[tokio::test]
async fn a_load_may_be_kept_out_of_tiers() {
    let rig = Rig::new().await;
    let space = rig.space();
    let loads = Loads::new();
    assert_eq!(*space.get_or_load("key", loads.next()).read_only().await.unwrap(), 1);
    assert_eq!(rig.entries().await, [0, 0, 0]);
    for (skipped, entries) in [("memory", [0, 1, 1]), ("upper", [1, 0, 1]), ("lower", [1, 1, 0])] {
        let call = space.get_or_load("key", loads.next()).skip_write(skipped);
        let _ = call.await.unwrap();
        eventually("it is stored", async || rig.terrace.stats().await.underway == 0).await;
        assert_eq!(rig.entries().await, entries, "all but {skipped}");
        space.invalidate("key").await.everywhere();
        assert_eq!(rig.entries().await, [0, 0, 0]);
    }
    assert_eq!(loads.count(), 4);
}

#[tokio::test]
async fn a_value_may_be_stored_in_some_tiers_and_is_gone_from_the_others() {
    let rig = Rig::new().await;
    let space = rig.space();
    let insert = |value| space.insert("key", value);
    for (value, (insert, entries)) in (1..).zip([
        (insert(1).only("memory"), [1, 0, 0]),
        (insert(2).only("upper"), [0, 1, 0]),
        (insert(3).only("lower"), [0, 0, 1]),
        (insert(4).skip("memory"), [0, 1, 1]),
        (insert(5).skip("upper"), [1, 0, 1]),
        (insert(6).skip("memory").skip("upper"), [0, 0, 1]),
        (insert(7), [1, 1, 1]),
    ]) {
        space.insert("key", 100).await.everywhere();
        assert_eq!(rig.entries().await, [1, 1, 1]);
        insert.await.everywhere();
        assert_eq!(rig.entries().await, entries, "value {value}");
        let answer = space.get("key").await.unwrap().unwrap();
        let first = entries.iter().position(|entries| *entries == 1).unwrap();
        let source = [Source::Memory, tier("upper"), tier("lower")][first].clone();
        assert_eq!((*answer, answer.source()), (value, &source));
    }
}

#[tokio::test]
async fn a_tier_that_is_not_there_is_an_error() {
    let rig = Rig::new().await;
    let space = rig.space();
    space.insert("key", 7).await.everywhere();
    let is_right = |error: Option<Error>| {
        assert!(matches!(&error, Some(Error::NoSuchTier(name)) if name == "disk"), "{error:?}");
    };
    is_right(space.get("key").skip("disk").await.err());
    is_right(space.get("none").skip("memory").skip("disk").await.err());
    is_right(space.insert("key", 1).only("disk").await.err());
    is_right(space.insert("key", 1).skip("disk").await.err());
    is_right(space.insert("key", 1).skip("disk").skip("memory").await.err());
    let loads = Loads::new();
    for (key, is_read) in [("key", true), ("none", true), ("key", false), ("none", false)] {
        let call = space.get_or_load(key, loads.next());
        let call = if is_read { call.skip_read("disk") } else { call.skip_write("disk") };
        match call.await {
            Err(LoadError::Cache(error)) => is_right(Some(error)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(loads.count(), 0);
    assert_eq!(space.get("key").await.unwrap().as_deref(), Some(&7), "nothing was harmed");
    let bed = Bed::new(Layout::Disk).await;
    let space: Numbers = bed.space("space").build().unwrap();
    let answer = space.get("key").skip("memory").await;
    assert!(matches!(answer, Err(Error::NoSuchTier(name)) if name == "memory"));
}

#[tokio::test]
async fn a_shadow_stores_and_counts_and_answers_from_the_loader() {
    let rig = Rig::new().await;
    let (space, other) = (rig.space(), rig.space());
    space.insert("key", 100).await.everywhere();
    assert_eq!(other.mode(), Mode::On);
    space.set_mode(Mode::Shadow);
    assert_eq!(other.mode(), Mode::Shadow, "of all handles");
    let loads = Loads::new();
    let hits = async || rig.terrace.stats().await.tiers.iter().map(|tier| tier.traffic.hits).sum();
    for space in [&space, &other] {
        for from_below in [false, true] {
            if from_below {
                rig.forget("memory").await;
            }
            let before: u64 = hits().await;
            assert_eq!(found(space.get("key").await), None);
            assert_eq!(found(space.get("key").max_stale(HOUR).await), None);
            assert!(space.get_many(["key"]).await.unwrap()[0].is_none());
            assert!(space.read("key", |_| ()).is_none());
            assert!(hits().await >= before + 3, "what a cache would have answered");
            if from_below {
                rig.forget("memory").await;
            }
            // Its failures are the loader's, too.
            let failure = space.get_or_load("key", fails).await.unwrap_err();
            assert_eq!(failure.loader(), Some(&Refused(1)), "below: {from_below}");
            let before = loads.count();
            let answer = space.get_or_load("key", loads.next()).await.unwrap();
            assert_eq!((*answer, answer.source()), (before + 1, &Source::Loader));
            eventually("it is stored", async || rig.terrace.stats().await.underway == 0).await;
            let many = |_| std::future::ready(Ok::<_, Refused>([("key".to_owned(), 1_000)]));
            let many = space.get_many_or_load(["key"], many).await.remove(0).unwrap();
            assert_eq!((*many, many.source()), (1_000, &Source::Loader));
            eventually("it is stored", async || rig.terrace.stats().await.underway == 0).await;
        }
    }
    assert_eq!(loads.count(), 4);
    // What it has stored meanwhile is of use once it is a cache.
    other.set_mode(Mode::On);
    assert_eq!(found(space.get("key").await), Some((1_000, Source::Memory, false)));
}

#[tokio::test]
async fn a_space_that_is_off_neither_reads_nor_stores() {
    let rig = Rig::new().await;
    let (space, other) = (rig.space(), rig.space());
    space.insert("key", 100).await.everywhere();
    space.insert("kept", 100).await.everywhere();
    other.set_mode(Mode::Off);
    assert_eq!(space.mode(), Mode::Off);
    let calls = || [Verb::Get, Verb::Put].map(|verb| rig.upper.calls_of(verb));
    let before = calls();
    let loads = Loads::new();
    assert_eq!(found(space.get("key").await), None);
    assert_eq!(found(space.get("key").max_stale(HOUR).await), None);
    assert!(space.get_many(["key"]).await.unwrap()[0].is_none());
    assert!(space.read("key", |_| ()).is_none());
    assert!(!space.exists("key").await.unwrap());
    for number in 1..=3 {
        let answer = space.get_or_load("key", loads.next()).await.unwrap();
        assert_eq!((*answer, answer.source()), (number, &Source::Loader));
    }
    let many = |_| std::future::ready(Ok::<_, Refused>([("key".to_owned(), 1_000)]));
    assert_eq!(*space.get_many_or_load(["key"], many).await.remove(0).unwrap(), 1_000);
    let failure = space.get_or_load("key", fails).await.unwrap_err();
    assert_eq!(failure.loader(), Some(&Refused(1)));
    assert!(!space.fill("key", space.ticket(), 5).await.unwrap());
    assert_eq!(calls(), before, "nobody is asked");
    assert_eq!(rig.entries().await, [2, 2, 2], "what is there stays there");
    // A write is one all the same: what it replaces is gone.
    space.insert("key", 5).await.everywhere();
    assert_eq!(rig.entries().await, [1, 1, 1]);
    space.set_mode(Mode::On);
    assert_eq!(found(space.get("key").await), None);
    assert_eq!(found(space.get("kept").await), Some((100, Source::Memory, false)));
}

#[tokio::test]
async fn a_tier_that_fails_is_a_miss_or_an_error_as_its_space_says() {
    for is_graceful in [true, false] {
        let rig = Rig::new().await;
        let space = rig.builder().graceful(is_graceful).build().unwrap();
        space.insert("key", 7).await.everywhere();
        rig.forget("memory").await;
        rig.forget("lower").await;
        let refused = || Fault::Fail(StoreErrorKind::Unavailable);
        rig.upper.inject(Verb::Get, refused());
        let is_right = |error: Error| match error {
            Error::Tier { tier, source } => {
                assert_eq!((&*tier, source.kind()), ("upper", StoreErrorKind::Unavailable));
                assert!(!is_graceful);
            }
            other => panic!("{other:?}"),
        };
        let of_load = |error: LoadError<Refused>| match error {
            LoadError::Cache(error) => is_right(error),
            other => panic!("{other:?}"),
        };
        match space.get("key").await {
            Ok(answer) => assert!(answer.is_none() && is_graceful),
            Err(error) => is_right(error),
        }
        match space.get_many(["key", "other"]).await {
            Ok(answer) => assert!(answer.iter().all(Option::is_none) && is_graceful),
            Err(error) => is_right(error),
        }
        let loads = Loads::new();
        match space.get_or_load("key", loads.next()).read_only().await {
            Ok(answer) => assert!(*answer == 1 && is_graceful),
            Err(error) => of_load(error),
        }
        let many = |_| std::future::ready(Ok::<_, Refused>([("b".to_owned(), 2)]));
        for answer in space.get_many_or_load(["b", "b"], many).await {
            match answer {
                Ok(answer) => assert!(*answer == 2 && is_graceful),
                Err(error) => of_load(error),
            }
        }
        assert_eq!(loads.count(), u32::from(is_graceful));
        // What memory has needs no tier.
        rig.upper.heal();
        assert_eq!(space.get("key").await.unwrap().as_deref(), Some(&7));
        rig.upper.inject(Verb::Get, refused());
        assert_eq!(space.get("key").await.unwrap().as_deref(), Some(&7));

        rig.upper.heal();
        rig.upper.inject(Verb::Put, refused());
        match space.insert("key", 8).await {
            Ok(settled) => assert!(settled.is_settled() && is_graceful),
            Err(error) => is_right(error),
        }
        rig.upper.heal();
        assert_eq!(space.get("key").await.unwrap().as_deref(), Some(&8), "what is old is gone");
        assert_eq!(rig.maps[0].keys().len(), usize::from(is_graceful), "only the other key");
    }
}

#[tokio::test]
async fn what_is_marked_stale_is_loaded_by_the_next_read() {
    let rig = Rig::new().await;
    let space = rig.space();
    assert!(!space.mark_stale("key").await.unwrap(), "nothing is there");
    for from_below in [false, true] {
        space.insert("key", 7).await.everywhere();
        if from_below {
            rig.forget("memory").await;
        }
        assert!(space.mark_stale("key").await.unwrap());
        if from_below {
            rig.forget("upper").await;
        } else {
            assert!(!space.mark_stale("key").await.unwrap(), "it is stale already");
        }
        assert_eq!(found(space.get("key").await), None, "below: {from_below}");
        assert!(!space.exists("key").await.unwrap());
        let answer = space.get_or_load("key", fails).await.unwrap();
        assert_eq!((*answer, answer.is_stale()), (7, true), "below: {from_below}");
        assert!(space.get("key").max_stale(SECOND).await.unwrap().is_some());
        let loads = Loads::new();
        let answer = space.get_or_load("key", loads.next()).await.unwrap();
        assert_eq!((*answer, answer.is_stale()), (1, false), "below: {from_below}");
        eventually("it is stored", async || rig.terrace.stats().await.underway == 0).await;
        assert_eq!(found(space.get("key").await), Some((1, Source::Memory, false)));
        // It is kept for as long as the space says, and no longer.
        assert!(space.mark_stale("key").await.unwrap());
        rig.clock.advance(HOUR - ms(1));
        assert!(space.get_or_load("key", fails).await.is_ok());
        rig.clock.advance(ms(1));
        assert!(space.get_or_load("key", fails).await.is_err());
    }
}

#[tokio::test]
async fn what_is_not_read_for_long_is_gone() {
    let rig = Rig::new().await;
    let space = rig.builder().idle(10 * SECOND).build().unwrap();
    space.insert("read", 7).await.everywhere();
    space.insert("idle", 8).await.everywhere();
    for map in &rig.maps {
        for key in map.keys() {
            let header = decode(&map.raw(&key).unwrap(), 1 << 20).unwrap().header;
            assert_eq!(header.expires, Some(at(10)), "below nobody knows when it was read");
        }
    }
    for second in [9, 18, 27, 36, 45, 54] {
        rig.clock.advance(9 * SECOND);
        let answer = space.get("read").await;
        assert_eq!(found(answer), Some((7, Source::Memory, false)), "after {second} s");
    }
    assert_eq!(found(space.get("idle").await), None);
    rig.clock.advance(6 * SECOND);
    assert_eq!(found(space.get("read").await), None, "that it is read prolongs no TTL");

    let loads = Loads::new();
    let _ = space.get_or_load("loaded", loads.next()).await.unwrap();
    rig.clock.advance(10 * SECOND - ms(1));
    assert!(space.exists("loaded").await.unwrap());
    rig.clock.advance(ms(1));
    assert!(!space.exists("loaded").await.unwrap());
    assert_eq!(*space.get_or_load("loaded", loads.next()).await.unwrap(), 2);
}

#[tokio::test]
async fn settings_that_cannot_be_meant_are_refused() {
    let bed = Bed::new(Layout::Memory).await;
    let new = || bed.space::<str, u32>("space");
    for (number, builder) in [
        new().strict().stale_for(SECOND),
        new().stale_for(SECOND).strict(),
        new().max_loads(0),
        new().jitter(1.5),
        new().jitter(f64::NAN),
        new().refresh_at(-0.1),
        new().early_refresh(0.0),
        new().early_refresh(f64::NAN),
        new().early_refresh(f64::INFINITY),
    ]
    .into_iter()
    .enumerate()
    {
        let refused = builder.build();
        assert!(matches!(refused, Err(BuildError::Setting(_))), "{number}: {refused:?}");
    }
    for builder in [new().strict(), new().strict().stale_for(Duration::ZERO), new().refresh_at(2.0)]
    {
        assert!(builder.build().is_ok());
    }
}
