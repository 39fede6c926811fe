//! Loads and stores that are slow: who waits, for how long, and what they get instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use terrace::clock::Clock as _;
use terrace::{Cached, Disk, LoadError, LoadMany, Memory, Source, Space, Terrace, Tier};
use terrace_test::{Calls, ChaosStore, Fault, ManualClock, MapStore, Verb};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinHandle, JoinSet};

use crate::support::{
    Everywhere as _, Layout, PausedClock, Refused, ends, eventually, let_others_run, ms, poll_once,
};

const SECOND: Duration = Duration::from_secs(1);

type Answer = Result<Cached<u64>, LoadError<Refused>>;

/// A cache with a key that is stale, and a source that answers when it is told to.
///
/// Lives are on a manual clock, waits on that of the runtime, which tests pause.
struct Bed {
    terrace: Terrace,
    space: Space<str, u64>,
    clock: Arc<ManualClock>,
    begun: Arc<AtomicUsize>,
    pass: Arc<Semaphore>,
    _directory: tempfile::TempDir,
}

impl Bed {
    async fn new(layout: Layout) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new());
        let mut builder = Terrace::builder().clock(Arc::clone(&clock) as _);
        if layout.has_memory() {
            builder = builder.memory(Memory::bytes(1 << 20));
        }
        builder = match layout {
            Layout::Memory => builder,
            Layout::MemoryAndMap => builder.tier("map", Tier::of(MapStore::new())),
            _ => builder.tier("disk", Disk::at(directory.path())),
        };
        let terrace = builder.build().await.unwrap();
        let space = terrace
            .space("space")
            .ttl(10 * SECOND)
            .jitter(0.0)
            .stale_for(60 * SECOND)
            .soft_deadline(SECOND)
            .load_deadline(20 * SECOND)
            .build()
            .unwrap();
        let (begun, pass) = (Arc::default(), Arc::new(Semaphore::new(0)));
        let bed = Self { terrace, space, clock, begun, pass, _directory: directory };
        bed.make_stale().await;
        bed
    }

    async fn make_stale(&self) {
        self.space.insert("key", 1).tags(["tag"]).await.everywhere();
        self.clock.advance(11 * SECOND);
    }

    fn load(&self) -> impl Future<Output = Result<u64, Refused>> + Send + use<> {
        let (begun, pass) = (Arc::clone(&self.begun), Arc::clone(&self.pass));
        async move {
            begun.fetch_add(1, Ordering::SeqCst);
            pass.acquire().await.unwrap().forget();
            Ok(2)
        }
    }

    /// A caller in a task of its own, who also says how long it waited.
    fn ask(&self) -> JoinHandle<(Answer, Duration)> {
        let (space, load) = (self.space.clone(), self.load());
        tokio::spawn(async move {
            let began = PausedClock::default();
            let answer = space.get_or_load("key", |_| load).await;
            (answer, began.elapsed())
        })
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    async fn none_underway(&self) {
        eventually("no load is under way", async || self.terrace.stats().await.underway == 0).await;
    }
}

#[track_caller]
fn is_stale(answer: &Answer) {
    assert!(matches!(answer, Ok(value) if **value == 1 && value.is_stale()), "{answer:?}");
}

/// In the paused time of the runtime: waits are exact.
#[tokio::test(start_paused = true)]
async fn after_the_soft_deadline_callers_get_what_is_stale_and_the_load_goes_on() {
    for layout in [Layout::Memory, Layout::MemoryAndMap] {
        let bed = Bed::new(layout).await;
        let callers: Vec<_> = (0..100).map(|_| bed.ask()).collect();
        for caller in callers {
            let (answer, waited) = caller.await.unwrap();
            is_stale(&answer);
            let soft = SECOND..=SECOND + ms(10);
            assert!(soft.contains(&waited), "{layout:?}: {waited:?}");
        }
        assert_eq!(bed.begun(), 1, "{layout:?}");

        // Those who come later need not wait at all.
        for _ in 0..100 {
            let (answer, waited) = bed.ask().await.unwrap();
            is_stale(&answer);
            assert_eq!(waited, Duration::ZERO, "{layout:?}");
        }
        let answers = bed
            .space
            .get_many_or_load(["key"], |_: LoadMany<String>| async {
                Ok::<_, Refused>([("", 9)].map(|(key, value)| (key.to_owned(), value)))
            })
            .await;
        assert!(matches!(&answers[0], Ok(value) if **value == 1 && value.is_stale()));
        assert_eq!(bed.begun(), 1, "{layout:?}: the load goes on");

        bed.pass.add_permits(1);
        bed.none_underway().await;
        let (answer, _) = bed.ask().await.unwrap();
        let answer = answer.unwrap();
        assert_eq!((*answer, answer.is_stale()), (2, false), "{layout:?}: what it brought");
        assert_eq!(bed.begun(), 1, "{layout:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_that_is_not_slow_keeps_its_callers() {
    let bed = Bed::new(Layout::Memory).await;
    let load = |_| async {
        tokio::time::sleep(ms(900)).await;
        Ok::<_, Refused>(2)
    };
    let answer = bed.space.get_or_load("key", load).await.unwrap();
    assert_eq!((*answer, answer.is_stale()), (2, false));
}

#[tokio::test(start_paused = true)]
async fn what_was_invalidated_meanwhile_is_offered_to_nobody() {
    for layout in [Layout::Memory, Layout::MemoryAndMap] {
        for event in 0..4 {
            // Before the soft deadline and after it.
            for is_late in [false, true] {
                let what = format!("{layout:?}, event {event}, late: {is_late}");
                let bed = Bed::new(layout).await;
                let first = bed.ask();
                eventually("the load begins", async || bed.begun() == 1).await;
                if is_late {
                    let (answer, _) = first.await.unwrap();
                    is_stale(&answer);
                }
                match event {
                    0 => bed.space.invalidate("key").await.everywhere(),
                    1 => bed.terrace.invalidate_tag("tag").await.everywhere(),
                    2 => bed.space.clear().await.everywhere(),
                    _ => bed.terrace.clear().await.everywhere(),
                }
                let later = bed.ask();
                // Beyond every soft deadline, and before any hard one.
                tokio::time::sleep(5 * SECOND).await;
                assert!(!later.is_finished(), "{what}: nothing may stand in");
                bed.pass.add_permits(2);
                let (answer, _) = ends(&what, later).await.unwrap();
                assert_eq!(*answer.unwrap(), 2, "{what}");
            }
        }
    }
}

/// A caller who takes nothing that old, and one who wants what is new, wait for the load.
#[tokio::test(start_paused = true)]
async fn callers_who_do_not_take_what_is_stale_wait() {
    let bed = Bed::new(Layout::Memory).await;
    bed.clock.advance(5 * SECOND);
    let (space, load) = (bed.space.clone(), bed.load());
    let picky = tokio::spawn(async move {
        *space.get_or_load("key", |_| load).max_stale(2 * SECOND).await.unwrap()
    });
    let_others_run().await;
    let (answer, _) = bed.ask().await.unwrap();
    is_stale(&answer);
    let (space, load) = (bed.space.clone(), bed.load());
    let new =
        tokio::spawn(async move { *space.get_or_load("key", |_| load).refresh().await.unwrap() });
    tokio::time::sleep(5 * SECOND).await;
    assert!(!picky.is_finished() && !new.is_finished());
    bed.pass.add_permits(2);
    assert_eq!((picky.await.unwrap(), new.await.unwrap()), (2, 2));
}

/// Somebody who wants what is new waits for a load that hangs; the others need not.
#[tokio::test(start_paused = true)]
async fn a_refresh_behind_a_load_that_hangs_takes_what_is_stale_from_nobody() {
    let bed = Bed::new(Layout::Memory).await;
    let (answer, _) = bed.ask().await.unwrap();
    is_stale(&answer);
    let (space, load) = (bed.space.clone(), bed.load());
    let new =
        tokio::spawn(async move { *space.get_or_load("key", |_| load).refresh().await.unwrap() });
    let_others_run().await;
    for _ in 0..3 {
        let (answer, waited) = bed.ask().await.unwrap();
        is_stale(&answer);
        assert!(waited <= ms(10), "{waited:?}: it is at hand");
    }
    assert!(!new.is_finished());
    bed.pass.add_permits(2);
    assert_eq!(ends("the refresh", new).await.unwrap(), 2);
    assert_eq!(bed.begun(), 2);
    bed.none_underway().await;
}

#[tokio::test(start_paused = true)]
async fn after_the_hard_deadline_the_load_is_given_up_and_its_permit_is_back() {
    for with_stale in [false, true] {
        let terrace =
            Terrace::builder().memory(Memory::bytes(1 << 20)).max_loads(1).build().await.unwrap();
        let space: Space<str, u64> = terrace
            .space("space")
            .stale_for(10_000 * SECOND)
            .load_deadline(20 * SECOND)
            .soft_deadline(100 * SECOND)
            .max_loads(1)
            .build()
            .unwrap();
        if with_stale {
            space.insert("key", 1).await.everywhere();
            assert!(space.mark_stale("key").await.unwrap());
        }
        let given_up = Arc::new(Notify::new());
        let mut callers = JoinSet::new();
        for _ in 0..100 {
            let (space, given_up) = (space.clone(), Arc::clone(&given_up));
            callers.spawn(async move {
                let load = |load: terrace::Load<str, u64>| async move {
                    // What the loader has handed to others hears of it.
                    let told = load.given_up();
                    assert!(!load.is_given_up());
                    tokio::spawn(async move {
                        told.await;
                        assert!(load.is_given_up());
                        given_up.notify_one();
                    });
                    std::future::pending::<Result<u64, Refused>>().await
                };
                let began = PausedClock::default();
                (space.get_or_load("key", load).await, began.elapsed())
            });
        }
        for (answer, waited) in callers.join_all().await {
            match answer {
                Ok(_) if with_stale => is_stale(&answer),
                Err(LoadError::Deadline(limit)) if !with_stale => assert_eq!(limit, 20 * SECOND),
                other => panic!("{other:?}"),
            }
            assert!((20 * SECOND..=20 * SECOND + ms(10)).contains(&waited), "{waited:?}");
        }
        ends("what the loader had begun", given_up.notified()).await;
        let stats = terrace.stats().await;
        assert_eq!((stats.loads_running, stats.loads_queued, stats.underway), (0, 0, 0));
        let other = space.get_or_load("other", |_| async { Ok::<_, Refused>(3) });
        assert_eq!(*ends("another load", other).await.unwrap(), 3, "the permit is back");
    }
}

/// A load that ends by itself is not given up, however late its listener asks.
#[tokio::test(start_paused = true)]
async fn a_load_that_ends_by_itself_is_not_given_up() {
    let bed = Bed::new(Layout::Memory).await;
    let told = Arc::new(Semaphore::new(0));
    let tell = Arc::clone(&told);
    let load = |load: terrace::Load<str, u64>| async move {
        let given_up = load.given_up();
        tokio::spawn(async move {
            given_up.await;
            tell.add_permits(1);
        });
        Ok::<_, Refused>(2)
    };
    bed.space.get_or_load("key", load).await.unwrap();
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(told.available_permits(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_caller_without_patience_leaves_and_the_load_goes_on() {
    for layout in [Layout::Memory, Layout::MemoryAndMap] {
        let bed = Bed::new(layout).await;
        let ask = |key: &'static str, default: Option<u64>| {
            let (space, load) = (bed.space.clone(), bed.load());
            async move {
                let began = PausedClock::default();
                let mut call = space.get_or_load(key, |_| load).patience(ms(300));
                if let Some(default) = default {
                    call = call.or_default(default);
                }
                let answer = call.await;
                assert_eq!(began.elapsed(), ms(300));
                answer
            }
        };
        is_stale(&ask("key", None).await);
        is_stale(&ask("key", Some(9)).await);
        match ask("other", None).await {
            Err(LoadError::Waited(time)) => assert_eq!(time, ms(300), "{layout:?}"),
            other => panic!("{layout:?}: {other:?}"),
        }
        let default = ask("other", Some(9)).await.unwrap();
        assert_eq!((*default, default.source()), (9, &Source::Default), "{layout:?}");
        assert_eq!(bed.begun(), 2, "{layout:?}: one load a key, and both go on");
        bed.pass.add_permits(2);
        bed.none_underway().await;
        for key in ["key", "other"] {
            let found = bed.space.get(key).await.unwrap().map(|value| *value);
            assert_eq!(found, Some(2), "{layout:?} {key}: what the load brought");
        }
        // Nothing invalidated stands in, either.
        bed.make_stale().await;
        let (space, load) = (bed.space.clone(), bed.load());
        let mut call = Box::pin(space.get_or_load("key", |_| load).patience(ms(300)));
        assert!(matches!(poll_once(call.as_mut()).await, Poll::Pending));
        bed.space.invalidate("key").await.everywhere();
        let answer = call.await;
        assert!(matches!(answer, Err(LoadError::Waited(_))), "{layout:?}: {answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_default_answers_whatever_goes_wrong_and_is_not_stored() {
    let bed = Bed::new(Layout::MemoryAndMap).await;
    for kind in 0..4 {
        let key = format!("key {kind}");
        let load = |_| async move {
            match kind {
                0 => Err(Refused(0)),
                1 => panic!("on purpose"),
                2 => std::future::pending().await,
                _ => Ok(terrace::Loaded::absent()),
            }
        };
        let answer = bed.space.get_or_load(&key, load).or_default(9).await.unwrap();
        assert_eq!((*answer, answer.source(), answer.is_stale()), (9, &Source::Default, true));
        assert!(bed.space.get(&key).await.unwrap().is_none(), "{kind}");
        // The next one who calls hears of what went wrong.
        let next = bed.space.get_or_load(&key, |_| async { Err::<u64, _>(Refused(1)) }).await;
        assert!(next.is_err(), "{kind}: {next:?}");
    }
    // What is stale is better than that.
    let answer = bed.space.get_or_load("key", |_| async { Err::<u64, _>(Refused(0)) });
    is_stale(&answer.or_default(9).await);
}

/// A store that never answers costs what its space allows, once a read.
#[tokio::test(start_paused = true)]
async fn tiers_that_never_answer_cost_what_the_space_allows() {
    let [upper, lower] = [(); 2].map(|()| Arc::new(ChaosStore::over(Arc::new(MapStore::new()))));
    let terrace = Terrace::builder()
        .memory(Memory::bytes(1 << 20))
        .tier("upper", Tier::shared(Arc::clone(&upper) as _))
        .tier("lower", Tier::shared(Arc::clone(&lower) as _))
        .clock(Arc::new(PausedClock::default()))
        .build()
        .await
        .unwrap();
    let space: Space<str, u64> = terrace.space("space").tiers_deadline(ms(500)).build().unwrap();
    upper.inject(Calls::from(Verb::Get), Fault::Hang);
    lower.inject(Calls::from(Verb::Get), Fault::Hang);
    for round in 0..20 {
        let key = format!("key {round}");
        let began = PausedClock::default();
        let load = space.get_or_load(&key, |_| async { Ok::<_, Refused>(2) });
        assert_eq!(*load.await.unwrap(), 2, "{round}");
        let waited = began.elapsed();
        assert!(waited <= ms(510), "{round}: {waited:?} for both tiers");
        let began = PausedClock::default();
        assert!(space.get("none").await.unwrap().is_none());
        let waited = began.elapsed();
        assert!(waited <= ms(510), "{round}: {waited:?} for both tiers");
    }
    let patient = space.get("none").patience(ms(20));
    let began = PausedClock::default();
    assert!(patient.await.unwrap().is_none());
    assert!(began.elapsed() <= ms(20), "{:?}", began.elapsed());
}

/// What is stale is in memory, and the tier below hangs: the soft deadline is one all the same.
#[tokio::test(start_paused = true)]
async fn a_tier_that_hangs_does_not_put_off_the_soft_deadline() {
    let clock = Arc::new(ManualClock::new());
    let store = Arc::new(ChaosStore::over(Arc::new(MapStore::new())));
    let terrace = Terrace::builder()
        .memory(Memory::bytes(1 << 20))
        .tier("map", Tier::shared(Arc::clone(&store) as _))
        .clock(Arc::clone(&clock) as _)
        .build()
        .await
        .unwrap();
    let space: Space<str, u64> = terrace
        .space("space")
        .ttl(10 * SECOND)
        .jitter(0.0)
        .stale_for(60 * SECOND)
        .soft_deadline(ms(300))
        .tiers_deadline(2 * SECOND)
        .build()
        .unwrap();
    space.insert("key", 1).await.everywhere();
    clock.advance(11 * SECOND);
    store.inject(Calls::from(Verb::Get), Fault::Hang);
    let began = PausedClock::default();
    let answer = space.get_or_load("key", |_| async { Ok::<_, Refused>(2) }).await;
    is_stale(&answer);
    assert!(began.elapsed() <= ms(310), "{:?}", began.elapsed());
}
