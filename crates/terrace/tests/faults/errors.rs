//! Loads that fail: the error is shared, the key stays usable, and what is stale may
//! answer where its space allows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use terrace::{Cached, Disk, LoadError, Memory, Source, Space, Terrace, Tier};
use terrace_test::{ManualClock, MapStore};
use tokio::sync::{Barrier, Semaphore};
use tokio::task::JoinSet;

use crate::support::{
    Bed, Everywhere as _, Layout, Refused, count, ends, eventually, let_others_run, ms,
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_waiters_share_the_error_of_one_call() {
    for round in 0..count(3, 50) {
        for layout in Layout::ALL {
            let bed = Bed::new(layout).await;
            let space = bed.space::<str, u64>("space").build().unwrap();
            let calls = Arc::new(AtomicU64::new(0));
            let start = Arc::new(Barrier::new(1_000));
            let mut callers = JoinSet::new();
            for _ in 0..1_000 {
                let (space, calls, start) = (space.clone(), Arc::clone(&calls), Arc::clone(&start));
                callers.spawn(async move {
                    start.wait().await;
                    let load = |_| async move {
                        let call = calls.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(ms(100)).await;
                        Err::<u64, _>(Refused(call))
                    };
                    space.get_or_load("key", load).await
                });
            }
            let answers: Vec<Result<Cached<u64>, LoadError<Refused>>> =
                ends("those who wait for a load that fails", callers.join_all()).await;
            let errors: Vec<_> = answers
                .into_iter()
                .map(|answer| match answer {
                    Err(LoadError::Loader(error)) => error,
                    other => panic!("{layout:?} {round}: {other:?}"),
                })
                .collect();
            assert!(errors.iter().all(|error| Arc::ptr_eq(error, &errors[0])), "{layout:?}");
            assert_eq!(*errors[0], Refused(0));
            assert_eq!(calls.load(Ordering::SeqCst), 1, "{layout:?}");

            let stats = bed.stats().await;
            assert_eq!((stats.spaces[1].loads, stats.spaces[1].load_errors), (1, 1), "{layout:?}");
            loads_again(&space).await;
        }
    }
}

/// An error is never a value: once a little time has passed, the key is loaded again.
async fn loads_again(space: &Space<str, u64>) {
    eventually("the key is loaded again", async || {
        let next = space.get_or_load("key", |_| async { Ok::<_, Refused>(5) });
        ends("the next call", next).await.is_ok_and(|value| *value == 5)
    })
    .await;
}

#[tokio::test]
async fn the_error_of_another_call_site_is_shared_with_its_text() {
    let bed = Bed::new(Layout::Memory).await;
    let pass = Arc::new(Semaphore::new(0));
    let first = tokio::spawn({
        let (terrace, pass) = (bed.terrace.clone(), Arc::clone(&pass));
        async move {
            let load = |_| async move {
                pass.acquire().await.unwrap().forget();
                Err::<u64, _>(Refused(3))
            };
            terrace.get_or_load("key", load).await
        }
    });
    let_others_run().await;
    let second = tokio::spawn({
        let terrace = bed.terrace.clone();
        async move { terrace.get_or_load("key", |_| async { Err::<u64, _>("mine".to_owned()) }).await }
    });
    let_others_run().await;
    pass.add_permits(1);
    let first = ends("the first call", first).await.unwrap().unwrap_err();
    assert_eq!(first.loader(), Some(&Refused(3)));
    assert_eq!(first.to_string(), "the loader failed: refused 3");
    match ends("the second call", second).await.unwrap().unwrap_err() {
        LoadError::OtherLoader(error) => assert_eq!(error.to_string(), "refused 3"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_key_that_is_being_loaded_as_another_type_is_an_error_that_says_so() {
    let bed = Bed::new(Layout::Memory).await;
    let pass = Arc::new(Semaphore::new(0));
    let first = tokio::spawn({
        let (terrace, pass) = (bed.terrace.clone(), Arc::clone(&pass));
        async move {
            let load = |_| async move {
                pass.acquire().await.unwrap().forget();
                Ok::<_, Refused>(3_u64)
            };
            terrace.get_or_load("key", load).await.map(|value| *value)
        }
    });
    let_others_run().await;
    let second = tokio::spawn({
        let terrace = bed.terrace.clone();
        async move {
            let load = |_| async { Ok::<_, Refused>("text".to_owned()) };
            terrace.get_or_load("key", load).await.map(|value| value.len())
        }
    });
    let_others_run().await;
    pass.add_permits(1);
    assert_eq!(ends("the first call", first).await.unwrap().unwrap(), 3);
    let second = ends("the second call", second).await.unwrap();
    assert!(matches!(second, Err(LoadError::OtherType)), "{second:?}");
}

#[tokio::test]
async fn a_loader_that_hangs_is_given_up_for_all_who_wait() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let limit = ms(50);
        let space = bed.space::<str, u64>("space").load_deadline(limit).build().unwrap();
        let dropped = Arc::new(AtomicUsize::new(0));
        let mut callers = JoinSet::new();
        for _ in 0..1_000 {
            let (space, dropped) = (space.clone(), Arc::clone(&dropped));
            callers.spawn(async move {
                let load = |_| async move {
                    let _counted = OnDrop(dropped);
                    std::future::pending::<Result<u64, Refused>>().await
                };
                space.get_or_load("key", load).await
            });
        }
        for answer in ends("those who wait for a loader that hangs", callers.join_all()).await {
            match answer {
                Err(LoadError::Deadline(time)) => assert_eq!(time, limit),
                other => panic!("{layout:?}: {other:?}"),
            }
        }
        // All thousand futures are gone: the one that ran, and those that were never needed.
        assert_eq!(dropped.load(Ordering::SeqCst), bed.stats().await.spaces[1].loads as usize);
        assert_eq!(dropped.load(Ordering::SeqCst), 1, "{layout:?}");
        loads_again(&space).await;
        assert!(ends("closing", bed.close()).await, "{layout:?}");
    }
}

/// Counts when it is dropped.
struct OnDrop(Arc<AtomicUsize>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// The limit that holds where nothing is set, on a clock that needs no waiting.
#[tokio::test(start_paused = true)]
async fn a_loader_may_take_thirty_seconds_unless_its_space_says_otherwise() {
    let bed = Bed::new(Layout::Memory).await;
    let space = bed.space::<str, u64>("space").build().unwrap();
    let slow = space.get_or_load("slow", |_| async {
        tokio::time::sleep(29 * SECOND).await;
        Ok::<_, Refused>(1)
    });
    assert_eq!(*slow.await.unwrap(), 1);
    let hung = space.get_or_load("hung", |_| std::future::pending::<Result<u64, Refused>>());
    match hung.await {
        Err(LoadError::Deadline(time)) => assert_eq!(time, 30 * SECOND),
        other => panic!("{other:?}"),
    }
}

/// How a load fails.
#[derive(Clone, Copy, Debug)]
enum Failure {
    Error,
    Panic,
    Hang,
}

impl Failure {
    const ALL: [Self; 3] = [Self::Error, Self::Panic, Self::Hang];

    async fn load(self) -> Result<u64, Refused> {
        match self {
            Self::Error => Err(Refused(0)),
            Self::Panic => panic!("on purpose"),
            Self::Hang => std::future::pending().await,
        }
    }
}

/// Caches on a manual clock, each with a space that serves stale values for a minute
/// after their first ten seconds.
async fn stale_beds(
    directory: &tempfile::TempDir,
    load_deadline: Duration,
) -> Vec<(Terrace, Space<str, u64>, Arc<ManualClock>)> {
    let mut beds = Vec::new();
    for layout in Layout::ALL {
        let clock = Arc::new(ManualClock::new());
        let mut builder = Terrace::builder().clock(Arc::clone(&clock) as _);
        if layout.has_memory() {
            builder = builder.memory(Memory::bytes(1 << 20));
        }
        let path = directory.path().join(format!("{layout:?}"));
        builder = match layout {
            Layout::Memory => builder,
            Layout::MemoryAndDisk | Layout::Disk => builder.tier("disk", Disk::at(path)),
            Layout::MemoryAndMap => builder.tier("map", Tier::of(MapStore::new())),
        };
        let terrace = builder.build().await.unwrap();
        let space = terrace
            .space("space")
            .ttl(10 * SECOND)
            .jitter(0.0)
            .stale_for(60 * SECOND)
            .load_deadline(load_deadline)
            .build()
            .unwrap();
        beds.push((terrace, space, clock));
    }
    beds
}

#[tokio::test]
async fn what_is_stale_answers_when_the_load_fails_and_no_longer_than_allowed() {
    let directory = tempfile::tempdir().unwrap();
    for (terrace, space, clock) in stale_beds(&directory, ms(50)).await {
        let tiers: Vec<_> = terrace.tiers().map(str::to_owned).collect();
        for failure in Failure::ALL {
            let ask = async || ends("a load", space.get_or_load("key", |_| failure.load())).await;
            space.insert("key", 1).await.everywhere();
            clock.advance(9 * SECOND);
            let fresh = ask().await.unwrap();
            assert!(!fresh.is_stale(), "{tiers:?} {failure:?}");

            clock.advance(2 * SECOND);
            assert!(space.get("key").await.unwrap().is_none(), "without a loader: a miss");
            assert_eq!(space.read("key", |value| *value), None);
            assert!(!space.exists("key").await.unwrap());
            let stale = ask().await.unwrap();
            assert_eq!((*stale, stale.is_stale()), (1, true), "{tiers:?} {failure:?}");
            assert_ne!(stale.source(), &Source::Loader);

            // From below as well.
            if tiers.len() == 2 {
                terrace.clear_tier("memory").await.unwrap();
                let stale = ask().await.unwrap();
                assert_eq!((*stale, stale.is_stale()), (1, true), "{tiers:?} {failure:?}");
                assert_eq!(stale.source(), &Source::Tier(tiers[1].as_str().into()));
            }

            clock.advance(58 * SECOND);
            assert!(ask().await.unwrap().is_stale(), "{tiers:?} {failure:?}: the last second");
            clock.advance(2 * SECOND);
            let over = ask().await;
            assert!(over.is_err(), "{tiers:?} {failure:?}: {over:?} after the end");
        }
        // A load that succeeds is never kept waiting by what is stale.
        space.insert("key", 1).await.everywhere();
        clock.advance(11 * SECOND);
        let loaded = space.get_or_load("key", |_| async { Ok::<_, Refused>(2) }).await.unwrap();
        assert_eq!((*loaded, loaded.is_stale()), (2, false), "{tiers:?}");
    }
}

#[tokio::test]
async fn what_was_invalidated_never_answers_however_the_load_fails() {
    let directory = tempfile::tempdir().unwrap();
    for (terrace, space, clock) in stale_beds(&directory, ms(50)).await {
        let tiers: Vec<_> = terrace.tiers().map(str::to_owned).collect();
        for failure in Failure::ALL {
            for kind in 0..4 {
                space.insert("key", 1).tags(["tag"]).await.everywhere();
                clock.advance(11 * SECOND);
                match kind {
                    0 => space.invalidate("key").await.everywhere(),
                    1 => terrace.invalidate_tag("tag").await.everywhere(),
                    2 => space.clear().await.everywhere(),
                    _ => terrace.clear().await.everywhere(),
                }
                let answer = ends("a load", space.get_or_load("key", |_| failure.load())).await;
                assert!(answer.is_err(), "{tiers:?} {failure:?} {kind}: {answer:?}");
            }
        }
    }
}

/// What is stale is in hand when the load begins; what counts is what it is when the load ends.
#[tokio::test]
async fn what_becomes_too_old_or_is_invalidated_during_the_load_does_not_answer() {
    let directory = tempfile::tempdir().unwrap();
    for (terrace, space, clock) in stale_beds(&directory, 20 * SECOND).await {
        let tiers: Vec<_> = terrace.tiers().map(str::to_owned).collect();
        let space = Arc::new(space);
        for event in 0..4 {
            space.insert("key", 1).tags(["tag"]).await.everywhere();
            clock.advance(11 * SECOND);
            let pass = Arc::new(Semaphore::new(0));
            let ask = || {
                let (space, pass) = (Arc::clone(&space), Arc::clone(&pass));
                tokio::spawn(async move {
                    let load = |_| async move {
                        pass.acquire().await.unwrap().forget();
                        Err::<u64, _>(Refused(0))
                    };
                    space.get_or_load("key", load).await
                })
            };
            let before = terrace.stats().await.spaces[1].loads;
            let first = ask();
            eventually("the load begins", async || {
                terrace.stats().await.spaces[1].loads == before + 1
            })
            .await;
            match event {
                0 => clock.advance(60 * SECOND),
                1 => terrace.invalidate_tag("tag").await.everywhere(),
                2 => space.clear().await.everywhere(),
                _ => space.invalidate("key").await.everywhere(),
            }
            // This call begins when the value is dead already.
            let later = ask();
            let_others_run().await;
            pass.add_permits(2);
            let later = ends("a later call", later).await.unwrap();
            assert!(later.is_err(), "{tiers:?} {event}: {later:?}");
            let first = ends("the first call", first).await.unwrap();
            if event == 0 {
                assert!(first.is_err(), "{tiers:?}: {first:?} is past its end");
            }
        }
    }
}
