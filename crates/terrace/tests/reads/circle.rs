//! Circles: loads that wait for each other, within a task and between tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use terrace::clock::{Clock, SystemClock};
use terrace::runtime::BoxFuture;
use terrace::{Disk, LoadError, LoadMany, Memory, Space, Terrace};
use terrace_test::ManualClock;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::support::{Everywhere as _, Layout, PausedClock, count, ends, eventually, limit, ms};

/// Keys whose loaders read each other: each one the next, the last one the first.
struct Ring {
    space: Space<str, u64>,
    keys: Vec<String>,
    /// Where the loaders that begin a circle between tasks meet before they read on.
    meeting: Option<Barrier>,
    /// Reads by `get_many_or_load`.
    reads_many: bool,
    /// Calls that were refused.
    refused: AtomicUsize,
}

/// What a loader fails with whose own read failed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stuck {
    Circle,
    Other(String),
}

impl std::fmt::Display for Stuck {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{self:?}")
    }
}

impl Ring {
    /// Reads the key at `at`, by a loader that reads the next one.
    fn read(self: Arc<Self>, at: usize) -> BoxFuture<'static, Result<u64, Stuck>> {
        Box::pin(async move {
            let next = (at + 1) % self.keys.len();
            let ring = Arc::clone(&self);
            let load = async move {
                if let Some(meeting) = &ring.meeting {
                    meeting.wait().await;
                }
                ring.read(next).await
            };
            let key = self.keys[at].as_str();
            let answer = if self.reads_many {
                let load = |asked: LoadMany<String>| async move {
                    let value = load.await?;
                    Ok::<_, Stuck>(asked.keys().iter().map(|key| (key.clone(), value)).collect())
                };
                let load = |asked| -> BoxFuture<'static, Result<Vec<(String, u64)>, Stuck>> {
                    Box::pin(load(asked))
                };
                self.space.get_many_or_load([key], load).await.remove(0)
            } else {
                self.space.get_or_load(key, |_| load).await
            };
            match answer {
                Ok(value) => Ok(*value),
                Err(LoadError::Circle) => {
                    self.refused.fetch_add(1, Ordering::SeqCst);
                    Err(Stuck::Circle)
                }
                Err(LoadError::Loader(stuck)) => Err(Stuck::clone(&stuck)),
                Err(other) => Err(Stuck::Other(format!("{other:?}"))),
            }
        })
    }
}

/// Who begins the reads of a circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begins {
    /// One task reads the first key.
    One,
    /// A task for each key, and no loader reads on before all of them run.
    EachAtOnce,
    /// A task for each key, in no order.
    Each,
}

/// A cache whose back-off is over whenever a test says so.
async fn bed(layout: Layout, directory: &tempfile::TempDir) -> (Terrace, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new());
    let mut builder =
        Terrace::builder().clock(Arc::clone(&clock) as _).memory(Memory::bytes(1 << 20));
    if layout == Layout::MemoryAndDisk {
        builder = builder.tier("disk", Disk::at(directory.path()));
    }
    (builder.build().await.unwrap(), clock)
}

/// One circle of `length` keys; returns how long it took until all were answered.
async fn circle(
    terrace: &Terrace,
    (clock, watch): (&ManualClock, &dyn Clock),
    (length, begins, reads_many): (usize, Begins, bool),
) -> Duration {
    let what = format!("{length} keys, {begins:?}, many: {reads_many}");
    let space = terrace.space::<str, u64>("space").build().unwrap();
    let ring = Arc::new(Ring {
        space: space.clone(),
        keys: (0..length).map(|number| format!("key {number}")).collect(),
        meeting: (begins == Begins::EachAtOnce).then(|| Barrier::new(length)),
        reads_many,
        refused: AtomicUsize::new(0),
    });
    let began = watch.elapsed();
    let mut callers = JoinSet::new();
    for at in 0..if begins == Begins::One { 1 } else { length } {
        callers.spawn(Arc::clone(&ring).read(at));
    }
    for answer in ends(&what, callers.join_all()).await {
        assert_eq!(answer, Err(Stuck::Circle), "{what}");
    }
    let took = watch.elapsed() - began;
    assert!(ring.refused.load(Ordering::SeqCst) >= 1, "{what}");
    nothing_is_left(terrace, &what).await;

    // The keys are as good as new once their failure is over.
    clock.advance(Duration::from_secs(60));
    for key in &ring.keys {
        let load = space.get_or_load(key, |_| async { Ok::<_, Stuck>(5) });
        assert_eq!(*ends(&what, load).await.unwrap(), 5, "{what}");
    }
    space.clear().await.everywhere();
    took
}

async fn nothing_is_left(terrace: &Terrace, what: &str) {
    eventually(&format!("nothing is under way after {what}"), async || {
        terrace.stats().await.underway == 0
    })
    .await;
}

fn shapes() -> impl Iterator<Item = (usize, Begins, bool)> {
    let begins = [Begins::One, Begins::EachAtOnce, Begins::Each];
    (1..=3).flat_map(move |length| {
        begins.into_iter().flat_map(move |begins| [(length, begins, false), (length, begins, true)])
    })
}

/// On a clock that only moves when everybody waits for it: nobody does.
#[tokio::test(start_paused = true)]
async fn s7_a_circle_ends_without_waiting_for_any_timer() {
    let directory = tempfile::tempdir().unwrap();
    let (terrace, clock) = bed(Layout::Memory, &directory).await;
    let watch = PausedClock::default();
    for _ in 0..count(10, 1_000) {
        for shape in shapes() {
            let took = circle(&terrace, (&clock, &watch), shape).await;
            assert!(took <= ms(10), "{shape:?}: {took:?}");
        }
    }
}

/// On several threads and in real time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_circles_between_tasks_end_in_ten_milliseconds() {
    let directory = tempfile::tempdir().unwrap();
    let watch = SystemClock::new();
    for layout in [Layout::Memory, Layout::MemoryAndDisk] {
        let (terrace, clock) = bed(layout, &directory).await;
        for shape in shapes() {
            let mut times = Vec::new();
            for _ in 0..count(10, 1_000) {
                times.push(circle(&terrace, (&clock, &watch), shape).await);
            }
            times.sort_unstable();
            // What else runs on the machine may hold up some of them.
            let median = times[times.len() / 2];
            assert!(median <= limit(ms(10)), "{layout:?} {shape:?}: {median:?}");
        }
    }
}

/// Each loader reads the next key, and the last one reads nothing.
fn chain(space: Space<str, u64>, at: u64, length: u64) -> BoxFuture<'static, Result<u64, String>> {
    Box::pin(async move {
        let key = format!("link {at}");
        let next = space.clone();
        let load = |_| async move {
            if at + 1 == length {
                return Ok::<_, String>(1);
            }
            chain(next, at + 1, length).await.map(|value| value + 1)
        };
        space.get_or_load(&key, load).await.map(|value| *value).map_err(|error| error.to_string())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_a_chain_of_a_hundred_keys_loads() {
    let directory = tempfile::tempdir().unwrap();
    for layout in [Layout::Memory, Layout::MemoryAndDisk] {
        let (terrace, _) = bed(layout, &directory).await;
        let space = terrace.space::<str, u64>("space").build().unwrap();
        for _ in 0..count(10, 1_000) {
            // Many begin it, at every one of its links.
            let mut callers = JoinSet::new();
            for at in (0..100).rev() {
                let space = space.clone();
                callers.spawn(async move { (at, chain(space, at, 100).await) });
            }
            for (at, answer) in ends("a chain", callers.join_all()).await {
                assert_eq!(answer, Ok(100 - at), "{layout:?}");
            }
            nothing_is_left(&terrace, "a chain").await;
            space.clear().await.everywhere();
        }
        let alone = ends("a chain", chain(space.clone(), 0, 100)).await;
        assert_eq!(alone, Ok(100), "{layout:?}");
    }
}

/// A loader of many keys reads some of them, and some others.
#[tokio::test]
async fn s7_a_load_of_many_that_reads_its_own_keys_gets_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let (terrace, _) = bed(Layout::Memory, &directory).await;
    let space = terrace.space::<str, u64>("space").build().unwrap();
    for round in 0..count(10, 1_000) {
        let inner = space.clone();
        let load = |asked: LoadMany<String>| async move {
            let load = |asked: LoadMany<String>| async move {
                assert_eq!(asked.keys(), ["c"]);
                Ok::<_, Stuck>([("c".to_owned(), 3)])
            };
            let answers = inner.get_many_or_load(["b", "c"], load).await;
            assert!(matches!(answers[0], Err(LoadError::Circle)), "{:?}", answers[0]);
            let c = **answers[1].as_ref().unwrap();
            Ok::<_, Stuck>(asked.keys().iter().map(|key| (key.clone(), c)).collect::<Vec<_>>())
        };
        let answers = ends("a load of many", space.get_many_or_load(["a", "b"], load)).await;
        let answers: Vec<u64> = answers.into_iter().map(|answer| *answer.unwrap()).collect();
        assert_eq!(answers, [3, 3], "round {round}");
        nothing_is_left(&terrace, "a load of many").await;
        space.clear().await.everywhere();
    }
}

/// Two loads of many keys of which each reads a key of the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_loads_of_many_that_wait_for_each_other_end() {
    let directory = tempfile::tempdir().unwrap();
    let (terrace, clock) = bed(Layout::Memory, &directory).await;
    let space = terrace.space::<str, u64>("space").build().unwrap();
    for round in 0..count(10, 1_000) {
        let meeting = Arc::new(Barrier::new(2));
        let mut callers = JoinSet::new();
        for (own, other) in [(["a", "b"], "d"), (["c", "d"], "a")] {
            let (space, meeting) = (space.clone(), Arc::clone(&meeting));
            callers.spawn(async move {
                let inner = space.clone();
                let load = |asked: LoadMany<String>| async move {
                    meeting.wait().await;
                    let load = |_| async { Ok::<_, Stuck>(0) };
                    match inner.get_or_load(other, load).await {
                        Ok(_) => Ok(vec![]),
                        Err(LoadError::Circle) => {
                            Ok(asked.keys().iter().map(|key| (key.clone(), 7)).collect())
                        }
                        Err(other) => Err(Stuck::Other(format!("{other:?}"))),
                    }
                };
                let answers = space.get_many_or_load(own, load).await;
                answers
                    .into_iter()
                    .filter(|answer| matches!(answer, Ok(value) if **value == 7))
                    .count()
            });
        }
        // One was refused and answered by itself; the other one had a value to read by then.
        let loaded: usize = ends("loads of many", callers.join_all()).await.into_iter().sum();
        assert_eq!(loaded, 2, "round {round}");
        nothing_is_left(&terrace, "loads of many").await;
        clock.advance(Duration::from_secs(60));
        space.clear().await.everywhere();
    }
}

/// What the loader reads then is loaded by another flight, which waits for nobody.
#[tokio::test]
async fn s7_a_loader_may_read_its_own_key_once_that_was_invalidated() {
    let directory = tempfile::tempdir().unwrap();
    for layout in [Layout::Memory, Layout::MemoryAndDisk] {
        let (terrace, _) = bed(layout, &directory).await;
        let space = terrace.space::<str, u64>("space").build().unwrap();
        for round in 0..count(10, 1_000) {
            let inner = space.clone();
            let load = |_| async move {
                inner.invalidate("key").await.everywhere();
                let newer = inner.get_or_load("key", |_| async { Ok::<_, Stuck>(2) }).await;
                assert_eq!(*newer.unwrap(), 2);
                Ok::<_, Stuck>(1)
            };
            let answer = ends("a superseded load", space.get_or_load("key", load)).await;
            assert_eq!(*answer.unwrap(), 1, "{layout:?} {round}");
            let stored = space.get("key").await.unwrap().map(|value| *value);
            assert_eq!(stored, Some(2), "{layout:?} {round}: the newer one");
            nothing_is_left(&terrace, "a superseded load").await;
            space.clear().await.everywhere();
        }
    }
}

/// Each loader invalidates its key and reads it again, by a loader that does the same.
#[tokio::test]
async fn s7_a_loader_that_supersedes_itself_for_ever_ends() {
    let directory = tempfile::tempdir().unwrap();
    let (terrace, clock) = bed(Layout::Memory, &directory).await;
    let space = terrace.space::<str, u64>("space").build().unwrap();
    let loads = Arc::new(AtomicUsize::new(0));
    fn read(
        space: Space<str, u64>,
        loads: Arc<AtomicUsize>,
    ) -> BoxFuture<'static, Result<u64, Stuck>> {
        Box::pin(async move {
            let inner = space.clone();
            let load = |_| async move {
                loads.fetch_add(1, Ordering::SeqCst);
                inner.invalidate("key").await.everywhere();
                read(inner, loads).await
            };
            match space.get_or_load("key", load).await {
                Ok(value) => Ok(*value),
                Err(LoadError::Circle) => Err(Stuck::Circle),
                Err(LoadError::Loader(stuck)) => Err(Stuck::clone(&stuck)),
                Err(other) => Err(Stuck::Other(format!("{other:?}"))),
            }
        })
    }
    for round in 0..count(10, 1_000) {
        loads.store(0, Ordering::SeqCst);
        let answer = ends("a load", read(space.clone(), Arc::clone(&loads))).await;
        assert_eq!(answer, Err(Stuck::Circle), "round {round}");
        nothing_is_left(&terrace, "a load that supersedes itself").await;
        assert!(loads.load(Ordering::SeqCst) <= 3, "round {round}");
        clock.advance(Duration::from_secs(60));
    }
    let answer = space.get_or_load("key", |_| async { Ok::<_, Stuck>(5) }).await;
    assert_eq!(*answer.unwrap(), 5);
}
