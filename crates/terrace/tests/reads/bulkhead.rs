//! How many loads run at once: a cold cache must not sink its source.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use terrace::clock::Clock as _;
use terrace::runtime::BoxFuture;
use terrace::{LoadError, LoadMany, Memory, Space, Terrace};
use terrace_test::ManualClock;
use terrace_test::sweep::poll_and_drop;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::{Everywhere as _, PausedClock, Refused, ends, eventually, let_others_run, ms};

const SECOND: Duration = Duration::from_secs(1);

/// A source that counts who is at it.
#[derive(Default)]
struct Source {
    running: AtomicUsize,
    most: AtomicUsize,
    begun: AtomicUsize,
}

/// One call at the source, until this is dropped.
struct Running(Arc<Source>);

impl Source {
    fn enter(self: &Arc<Self>) -> Running {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        self.begun.fetch_add(1, Ordering::SeqCst);
        Running(Arc::clone(self))
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn cache(max_loads: usize) -> Terrace {
    let memory = Memory::bytes(16 << 20);
    Terrace::builder().memory(memory).max_loads(max_loads).build().await.unwrap()
}

async fn nothing_is_left(terrace: &Terrace) {
    eventually("no load is left", async || {
        let stats = terrace.stats().await;
        (stats.underway, stats.loads_running, stats.loads_queued) == (0, 0, 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_loads_run_at_once_than_the_cache_and_each_space_allow() {
    let terrace = cache(10).await;
    let of_all = Arc::new(Source::default());
    let mut callers = JoinSet::new();
    let mut sources = Vec::new();
    for (name, most) in [("one", Some(3)), ("two", Some(5)), ("three", None)] {
        let mut space = terrace.space::<u64, u64>(name);
        if let Some(most) = most {
            space = space.max_loads(most);
        }
        let space = space.build().unwrap();
        let source = Arc::new(Source::default());
        sources.push((Arc::clone(&source), most.unwrap_or(10)));
        for caller in 0..400_u64 {
            let (space, source, of_all) = (space.clone(), Arc::clone(&source), Arc::clone(&of_all));
            callers.spawn(async move {
                let running = move || [source.enter(), of_all.enter()];
                // Each hundredth loads many keys at once, under one permit.
                if caller % 100 == 0 {
                    let keys: Vec<u64> = (1_000 + caller..1_050 + caller).collect();
                    let load = |load: LoadMany<u64>| async move {
                        let _running = running();
                        tokio::time::sleep(ms(2)).await;
                        Ok::<_, Refused>(
                            load.keys().iter().map(|key| (*key, 1)).collect::<Vec<_>>(),
                        )
                    };
                    let answers = space.get_many_or_load(&keys, load).await;
                    assert!(answers.iter().all(Result::is_ok));
                    return;
                }
                let load = |_| async move {
                    let _running = running();
                    tokio::time::sleep(ms(caller % 5)).await;
                    match caller % 7 {
                        0 => Err(Refused(caller)),
                        1 => panic!("on purpose"),
                        _ => Ok(caller),
                    }
                };
                if caller % 3 == 0 {
                    // A caller who leaves half-way.
                    let polls = caller as usize % 4;
                    let call = poll_and_drop(polls, space.get_or_load(&caller, load));
                    let _ = tokio::time::timeout(ms(20), call).await;
                } else {
                    let _ = space.get_or_load(&caller, load).await;
                }
            });
        }
    }
    ends("all callers", callers.join_all()).await;
    nothing_is_left(&terrace).await;
    for (source, most) in sources {
        assert_eq!(source.most(), most);
    }
    assert_eq!(of_all.most(), 10);
}

/// Permits that are lost would be missing here in the end.
#[tokio::test(start_paused = true)]
async fn permits_are_back_after_drops_panics_and_timeouts() {
    let terrace = cache(2).await;
    let space: Space<u64, u64> =
        terrace.space("space").load_deadline(SECOND).max_loads(2).build().unwrap();
    for round in 0..100 {
        let mut callers = JoinSet::new();
        for kind in 0..4 {
            let space = space.clone();
            callers.spawn(async move {
                let load = |_| async move {
                    match kind {
                        0 => Err(Refused(0)),
                        1 => panic!("on purpose"),
                        2 => std::future::pending().await,
                        _ => Ok(1),
                    }
                };
                let key = round * 4 + kind;
                if kind == 3 {
                    poll_and_drop(2, space.get_or_load(&key, load)).await;
                } else {
                    assert!(space.get_or_load(&key, load).await.is_err());
                }
            });
        }
        callers.join_all().await;
        nothing_is_left(&terrace).await;
    }
    // Both are there: two loads that wait for each other end.
    let both = Arc::new(tokio::sync::Barrier::new(2));
    let last = [1_000, 1_001].map(|key| {
        let (space, both) = (space.clone(), Arc::clone(&both));
        async move {
            let load = |_| async move {
                both.wait().await;
                Ok::<_, Refused>(1)
            };
            space.get_or_load(&key, load).await.map(|value| *value)
        }
    });
    let [one, two] = last;
    let (one, two) = tokio::join!(one, two);
    assert_eq!((one.unwrap(), two.unwrap()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_for_a_permit_is_told_so() {
    let terrace = cache(1).await;
    let space: Space<u64, u64> = terrace.space("space").load_deadline(5 * SECOND).build().unwrap();
    let slow: Space<u64, u64> = terrace.space("slow").load_deadline(60 * SECOND).build().unwrap();
    let source = Arc::new(Source::default());
    let holder = tokio::spawn({
        let running = source.enter();
        async move {
            let load = |_| async move {
                let _running = running;
                tokio::time::sleep(30 * SECOND).await;
                Ok::<_, Refused>(1)
            };
            slow.get_or_load(&0, load).await.map(|value| *value)
        }
    });
    let_others_run().await;
    let mut callers = JoinSet::new();
    for key in 0..100 {
        let (space, source) = (space.clone(), Arc::clone(&source));
        callers.spawn(async move {
            let load = |_| async move {
                let _running = source.enter();
                Ok::<_, Refused>(1)
            };
            let began = PausedClock::default();
            (space.get_or_load(&key, load).await, began.elapsed())
        });
    }
    let_others_run().await;
    let stats = terrace.stats().await;
    assert_eq!((stats.loads_running, stats.loads_queued), (1, 100));
    for (answer, waited) in callers.join_all().await {
        assert!(matches!(answer, Err(LoadError::Overloaded)), "{answer:?}");
        assert!((5 * SECOND..=5 * SECOND + ms(10)).contains(&waited), "{waited:?}");
    }
    assert_eq!(terrace.stats().await.spaces[1].overloaded, 100);
    // It says nothing about the key: the next caller is not held back.
    let load = |_| async { Ok::<_, Refused>(2) };
    assert_eq!(holder.await.unwrap().unwrap(), 1);
    assert_eq!(*space.get_or_load(&0, load).await.unwrap(), 2);
    nothing_is_left(&terrace).await;
    assert_eq!(source.most(), 1);
}

/// Loads that read on, in a cache that allows a single one.
#[tokio::test(start_paused = true)]
async fn a_load_within_a_load_needs_no_permit() {
    fn nested(space: Space<u64, u64>, depth: u64) -> BoxFuture<'static, Result<u64, String>> {
        Box::pin(async move {
            let inner = space.clone();
            let load = |_| async move {
                if depth == 0 {
                    return Ok::<_, String>(0);
                }
                nested(inner, depth - 1).await.map(|value| value + 1)
            };
            let answer = space.get_or_load(&depth, load).await;
            answer.map(|value| *value).map_err(|error| error.to_string())
        })
    }
    let terrace = cache(1).await;
    let space: Space<u64, u64> = terrace.space("space").max_loads(1).build().unwrap();
    assert_eq!(ends("nested loads", nested(space, 10)).await, Ok(10));
    nothing_is_left(&terrace).await;
}

/// A loader reads what somebody else has begun to load, who waits for the permit that the
/// loader holds.
#[tokio::test(start_paused = true)]
async fn a_load_that_a_running_one_waits_for_needs_no_permit() {
    for many in [false, true] {
        let terrace = cache(1).await;
        let space: Space<u64, u64> = terrace.space("space").max_loads(1).build().unwrap();
        let pass = Arc::new(Semaphore::new(0));
        let outer = tokio::spawn({
            let (space, inner, pass) = (space.clone(), space.clone(), Arc::clone(&pass));
            async move {
                let load = |_| async move {
                    pass.acquire().await.unwrap().forget();
                    let load = |_| async { Ok::<_, Refused>(100) };
                    inner.get_or_load(&1, load).await.map(|value| *value + 1)
                };
                space
                    .get_or_load(&0, load)
                    .await
                    .map(|value| *value)
                    .map_err(|error| error.to_string())
            }
        });
        let_others_run().await;
        let queued = tokio::spawn({
            let space = space.clone();
            async move {
                if many {
                    let load = |load: LoadMany<u64>| async move {
                        Ok::<_, Refused>(
                            load.keys().iter().map(|key| (*key, 5)).collect::<Vec<_>>(),
                        )
                    };
                    let mut answers = space.get_many_or_load(&[2, 1], load).await;
                    answers.remove(1).map(|value| *value)
                } else {
                    let load = |_| async { Ok::<_, Refused>(5) };
                    space.get_or_load(&1, load).await.map(|value| *value)
                }
            }
        });
        eventually("it waits for a permit", async || {
            let stats = terrace.stats().await;
            stats.underway >= 2 && stats.loads_running == 1
        })
        .await;
        let_others_run().await;
        let began = PausedClock::default();
        pass.add_permits(1);
        assert_eq!(ends("the load that holds the permit", outer).await.unwrap(), Ok(6));
        assert_eq!(queued.await.unwrap().unwrap(), 5);
        assert_eq!(began.elapsed(), Duration::ZERO, "many: {many}: nobody waited for a deadline");
        nothing_is_left(&terrace).await;
    }
}

/// What a loader has loaded anew without waiting for it is a load like others.
#[tokio::test]
async fn a_refresh_that_a_load_begins_needs_a_permit() {
    let clock = Arc::new(ManualClock::new());
    let terrace = Terrace::builder()
        .memory(Memory::bytes(1 << 20))
        .clock(Arc::clone(&clock) as _)
        .max_loads(2)
        .build()
        .await
        .unwrap();
    let space: Space<u64, u64> =
        terrace.space("space").ttl(10 * SECOND).jitter(0.0).build().unwrap();
    for key in 1..=20 {
        space.insert(&key, key).await.everywhere();
    }
    clock.advance(9 * SECOND);
    let (source, pass) = (Arc::new(Source::default()), Arc::new(Semaphore::new(0)));
    let inner = (space.clone(), Arc::clone(&source), Arc::clone(&pass));
    let load = |_| async move {
        let (space, source, pass) = inner;
        for key in 1..=20 {
            let (running, pass) = (Arc::clone(&source), Arc::clone(&pass));
            let load = |_| async move {
                let _running = running.enter();
                pass.acquire().await.unwrap().forget();
                Ok::<_, Refused>(0)
            };
            assert_eq!(*space.get_or_load(&key, load).await.unwrap(), key);
        }
        Ok::<_, Refused>(0)
    };
    space.get_or_load(&0, load).await.unwrap();
    eventually("they are begun", async || source.begun() >= 2).await;
    let_others_run().await;
    assert_eq!(source.most(), 2);
    pass.add_permits(20);
    nothing_is_left(&terrace).await;
    assert_eq!((source.begun(), source.most()), (20, 2));
}
