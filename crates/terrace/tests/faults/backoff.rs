//! A source that fails: it is asked once in a while and not once a caller, and what is stale
//! answers meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use terrace::clock::{Clock as _, SystemClock};
use terrace::{Disk, LoadError, Memory, Space, Terrace};
use terrace_test::ManualClock;
use tokio::sync::{Barrier, Semaphore};
use tokio::task::JoinSet;

use crate::support::{Everywhere as _, Layout, Refused, count, ends, is_full, ms, once_polled};

const CALLERS: usize = 10_000;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A cache on a manual clock.
async fn bed(layout: Layout, directory: &tempfile::TempDir) -> (Terrace, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new());
    let mut builder = Terrace::builder().clock(Arc::clone(&clock) as _);
    if layout.has_memory() {
        builder = builder.memory(Memory::bytes(64 << 20));
    }
    if layout != Layout::Memory {
        builder = builder.tier("disk", Disk::at(directory.path().join(format!("{layout:?}"))));
    }
    (builder.build().await.unwrap(), clock)
}

/// A source that fails while it is down, and counts how often it is asked.
#[derive(Default)]
struct Source {
    asked: AtomicUsize,
    is_up: AtomicBool,
}

impl Source {
    async fn load(self: Arc<Self>) -> Result<u64, Refused> {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        if self.is_up.load(Ordering::SeqCst) { Ok(7) } else { Err(Refused(asked as u64)) }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn set_up(&self, is_up: bool) {
        self.is_up.store(is_up, Ordering::SeqCst);
    }
}

async fn ask(space: &Space<str, u64>, source: &Arc<Source>) -> Result<u64, LoadError<Refused>> {
    let source = Arc::clone(source);
    let load = space.get_or_load("key", |_| source.load());
    ends("a call", load).await.map(|value| *value)
}

/// All of them want the key while it is being loaded.
async fn crowd(space: &Space<str, u64>, source: &Arc<Source>) {
    let (boarded, pass) = (Arc::new(Barrier::new(CALLERS + 1)), Arc::new(Semaphore::new(0)));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (space, source) = (space.clone(), Arc::clone(source));
        let (boarded, pass) = (Arc::clone(&boarded), Arc::clone(&pass));
        callers.spawn(async move {
            let load = |_| async move {
                pass.acquire().await.unwrap().forget();
                source.load().await
            };
            let is_polled = Arc::new(Semaphore::new(0));
            let polled = Arc::clone(&is_polled);
            let call = once_polled(space.get_or_load("key", load), move || polled.add_permits(1));
            let tell = async {
                is_polled.acquire().await.unwrap().forget();
                boarded.wait().await;
            };
            tokio::join!(call, tell).0
        });
    }
    ends("callers board", boarded.wait()).await;
    pass.add_permits(CALLERS);
    for answer in ends("callers", callers.join_all()).await {
        match answer {
            Err(LoadError::Loader(error)) => assert_eq!(*error, Refused(0)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(source.asked(), 1, "they share one call");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s8_at_most_twenty_calls_in_a_minute_of_failures() {
    let directory = tempfile::tempdir().unwrap();
    if is_full() {
        let terrace = Terrace::builder().memory(Memory::bytes(1 << 20)).build().await.unwrap();
        let space: Space<str, u64> = terrace.space("space").build().unwrap();
        let source = Arc::new(Source::default());
        crowd(&space, &source).await;
        let clock = Arc::new(SystemClock::new());
        let end = clock.elapsed() + MINUTE;
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let (space, source, clock) = (space.clone(), Arc::clone(&source), Arc::clone(&clock));
            callers.spawn(async move {
                while clock.elapsed() < end {
                    assert!(ask(&space, &source).await.is_err());
                    tokio::time::sleep(ms(fastrand::u64(500..1_500))).await;
                }
            });
        }
        callers.join_all().await;
        assert!((10..=21).contains(&source.asked()), "{} calls", source.asked());
        return;
    }
    for (layout, step) in [(Layout::Memory, 5), (Layout::MemoryAndDisk, 20), (Layout::Disk, 50)] {
        let (terrace, clock) = bed(layout, &directory).await;
        let space: Space<str, u64> = terrace.space("space").build().unwrap();
        let source = Arc::new(Source::default());
        crowd(&space, &source).await;
        for _ in 0..60_000 / step {
            clock.advance(ms(step));
            let answer = ask(&space, &source).await;
            assert!(matches!(answer, Err(LoadError::Loader(_))), "{layout:?}: {answer:?}");
        }
        let later = source.asked() - 1;
        assert!((10..=20).contains(&later), "{layout:?}: {later} calls in a minute");
        let held_back = terrace.stats().await.spaces[1].held_back as usize;
        assert_eq!(held_back, 60_000 / step as usize - later, "{layout:?}");
    }
}

/// How a load of S13 fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Error,
    Panic,
}

/// Calls for `keys` keys from a source that is down, a second after the other; returns the
/// attempts, and whether what is stale answered.
async fn down(
    space: &Space<u64, u64>,
    (clock, failure): (&ManualClock, Failure),
    (calls, keys): (usize, u64),
) -> (usize, usize) {
    let attempts = Arc::new(AtomicUsize::new(0));
    let mut answered = 0;
    let calls: Vec<u64> = (0..keys).cycle().take(calls).collect();
    for wave in calls.chunks(100) {
        clock.advance(ms(20));
        let mut callers = JoinSet::new();
        for &key in wave {
            let (space, attempts) = (space.clone(), Arc::clone(&attempts));
            callers.spawn(async move {
                let load = |_| async move {
                    attempts.fetch_add(1, Ordering::SeqCst);
                    match failure {
                        Failure::Error => Err::<u64, _>(Refused(0)),
                        Failure::Panic => panic!("on purpose"),
                    }
                };
                space.get_or_load(&key, load).await.is_ok_and(|value| *value == key)
            });
        }
        let answers = ends("calls while the source is down", callers.join_all()).await;
        answered += answers.into_iter().filter(|is_ok| *is_ok).count();
    }
    (attempts.load(Ordering::SeqCst), answered)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s13_no_more_attempts_than_calls_and_stale_answers_for_all() {
    let directory = tempfile::tempdir().unwrap();
    let calls = count(2_000, 100_000);
    let most = calls * 11 / 10;
    for layout in [Layout::Memory, Layout::MemoryAndDisk] {
        for failure in [Failure::Error, Failure::Panic] {
            // Every call another key; few keys again and again.
            for keys in [calls as u64, 10] {
                let what = format!("{layout:?} {failure:?}, {keys} keys");
                let (terrace, clock) = bed(layout, &directory).await;
                let space: Space<u64, u64> = terrace.space("cold").build().unwrap();
                let (attempts, answered) = down(&space, (&clock, failure), (calls, keys)).await;
                assert!(attempts <= most, "{what}: {attempts} attempts");
                assert!(attempts > 0, "{what}");
                assert_eq!(answered, 0, "{what}");
                if keys == 10 && failure == Failure::Error {
                    assert!(attempts < calls / 2, "{what}: {attempts} attempts");
                }

                let space: Space<u64, u64> =
                    terrace.space("stale").ttl(10 * SECOND).stale_for(10 * MINUTE).build().unwrap();
                let stored: Vec<u64> = (0..keys).collect();
                for stored in stored.chunks(1_000) {
                    space.insert_many(stored.iter().map(|key| (key, *key))).await.everywhere();
                }
                clock.advance(20 * SECOND);
                let (attempts, answered) = down(&space, (&clock, failure), (calls, keys)).await;
                assert!(attempts <= most, "{what}: {attempts} attempts for what is stale");
                assert_eq!(answered, calls, "{what}: what is stale answers all");
                assert!(terrace.close().await);
                tokio::fs::remove_dir_all(directory.path().join(format!("{layout:?}"))).await.ok();
            }
        }
    }
}

/// When a source that is down is asked, in milliseconds, by callers who ask at every one.
async fn asked_at(
    space: &Space<str, u64>,
    (clock, source): (&ManualClock, &Arc<Source>),
    attempts: usize,
) -> Vec<u64> {
    let mut times = Vec::new();
    let began = clock.elapsed();
    while times.len() < attempts {
        let before = source.asked();
        let _ = ask(space, source).await;
        if source.asked() > before {
            times.push((clock.elapsed() - began).as_millis() as u64);
        }
        clock.advance(ms(1));
        assert!(clock.elapsed() - began < 5 * MINUTE, "asked at {times:?} and not again");
    }
    times
}

#[track_caller]
fn are_about(times: &[u64], waits: &[u64]) {
    let found: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let is_right =
        |(found, wait): (&u64, &u64)| (wait * 9 / 10..=wait * 11 / 10 + 2).contains(found);
    assert!(
        found.len() == waits.len() && found.iter().zip(waits).all(is_right),
        "waits of {found:?} ms, not about {waits:?}"
    );
}

#[tokio::test]
async fn waits_double_until_a_load_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    let (terrace, clock) = bed(Layout::Memory, &directory).await;
    let space: Space<str, u64> = terrace.space("space").ttl(SECOND).jitter(0.0).build().unwrap();
    let source = Arc::new(Source::default());
    let waits = [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000];
    are_about(&asked_at(&space, (&clock, &source), 9).await, &waits);
    source.set_up(true);
    clock.advance(6 * SECOND);
    assert_eq!(ask(&space, &source).await.unwrap(), 7);
    source.set_up(false);
    clock.advance(2 * SECOND);
    are_about(&asked_at(&space, (&clock, &source), 4).await, &waits[..3]);
}

#[tokio::test]
async fn waits_are_longer_while_something_stale_answers() {
    let directory = tempfile::tempdir().unwrap();
    let (terrace, clock) = bed(Layout::Memory, &directory).await;
    let space: Space<str, u64> = terrace
        .space("space")
        .ttl(SECOND)
        .jitter(0.0)
        .stale_for(10 * MINUTE)
        .retry(SECOND, 30 * SECOND)
        .build()
        .unwrap();
    space.insert("key", 5).await.everywhere();
    clock.advance(2 * SECOND);
    let source = Arc::new(Source::default());
    let times = asked_at(&space, (&clock, &source), 7).await;
    are_about(&times, &[1_000, 2_000, 4_000, 8_000, 16_000, 30_000]);
    assert_eq!(ask(&space, &source).await.unwrap(), 5);
}

/// What is stale ends long before the next attempt would be due.
#[tokio::test]
async fn a_long_wait_ends_soon_after_what_is_stale_does() {
    let directory = tempfile::tempdir().unwrap();
    let (terrace, clock) = bed(Layout::Memory, &directory).await;
    let space: Space<str, u64> = terrace
        .space("space")
        .ttl(SECOND)
        .jitter(0.0)
        .stale_for(20 * SECOND)
        .retry(30 * SECOND, 30 * SECOND)
        .build()
        .unwrap();
    space.insert("key", 5).await.everywhere();
    clock.advance(2 * SECOND);
    let source = Arc::new(Source::default());
    assert_eq!(ask(&space, &source).await.unwrap(), 5);
    clock.advance(18 * SECOND);
    assert_eq!(ask(&space, &source).await.unwrap(), 5);
    assert_eq!(source.asked(), 1);
    clock.advance(6 * SECOND);
    assert!(ask(&space, &source).await.is_err(), "nothing stale is left");
    assert_eq!(source.asked(), 2, "the source is asked at least every five seconds or so");
}

/// What frees a key that is held back.
#[derive(Clone, Copy, Debug)]
enum Freed {
    Invalidate,
    Tag,
    Clear,
    ClearAll,
    Insert,
    Fill,
    Remove,
    Refresh,
}

#[tokio::test]
async fn whatever_changes_the_key_makes_it_loadable_at_once() {
    let directory = tempfile::tempdir().unwrap();
    for layout in [Layout::Memory, Layout::MemoryAndDisk, Layout::Disk] {
        let (terrace, clock) = bed(layout, &directory).await;
        let space: Space<str, u64> =
            terrace.space("space").retry(30 * SECOND, 30 * SECOND).build().unwrap();
        let source = Arc::new(Source::default());
        let ask = async || {
            let source = Arc::clone(&source);
            let load = space.get_or_load("key", |_| source.load()).tags(["tag"]);
            ends("a call", load).await.map(|value| *value)
        };
        use Freed::{Clear, ClearAll, Fill, Insert, Invalidate, Refresh, Remove, Tag};
        for freed in [Invalidate, Tag, Clear, ClearAll, Insert, Fill, Remove, Refresh] {
            clock.advance(10 * MINUTE);
            let before = source.asked();
            for _ in 0..5 {
                assert!(ask().await.is_err(), "{layout:?} {freed:?}");
            }
            assert_eq!(source.asked(), before + 1, "{layout:?} {freed:?}: it is held back");
            match freed {
                Invalidate => space.invalidate("key").await.everywhere(),
                Tag => terrace.invalidate_tag("tag").await.everywhere(),
                Clear => space.clear().await.everywhere(),
                ClearAll => terrace.clear().await.everywhere(),
                Remove => drop(space.remove("key").await.unwrap()),
                Refresh => {}
                Insert => space.insert("key", 1).ttl(ms(100)).await.everywhere(),
                Fill => {
                    let value = terrace::Loaded::value(1).ttl(ms(100));
                    assert!(space.fill("key", space.ticket(), value).await.unwrap());
                }
            }
            clock.advance(ms(200));
            if let Refresh = freed {
                let source = Arc::clone(&source);
                let load = space.get_or_load("key", |_| source.load()).refresh();
                assert!(load.await.is_err(), "{layout:?}");
            } else {
                assert!(ask().await.is_err(), "{layout:?} {freed:?}");
            }
            assert_eq!(source.asked(), before + 2, "{layout:?} {freed:?}: asked at once");
        }
    }
}

/// The tag is that of what is stale, and the wait is one of those that last long.
#[tokio::test]
async fn a_tag_frees_a_key_whose_stale_value_carries_it() {
    let directory = tempfile::tempdir().unwrap();
    let (terrace, clock) = bed(Layout::Memory, &directory).await;
    let space: Space<str, u64> = terrace
        .space("space")
        .ttl(SECOND)
        .stale_for(MINUTE)
        .retry(30 * SECOND, 30 * SECOND)
        .build()
        .unwrap();
    space.insert("key", 5).tags(["tag"]).await.everywhere();
    clock.advance(2 * SECOND);
    let source = Arc::new(Source::default());
    assert_eq!(ask(&space, &source).await.unwrap(), 5);
    assert_eq!(ask(&space, &source).await.unwrap(), 5);
    assert_eq!(source.asked(), 1);
    source.set_up(true);
    terrace.invalidate_tag("tag").await.everywhere();
    assert_eq!(ask(&space, &source).await.unwrap(), 7);
}

#[tokio::test]
async fn a_panic_leaves_the_key_usable_at_once() {
    let directory = tempfile::tempdir().unwrap();
    for layout in [Layout::Memory, Layout::MemoryAndDisk, Layout::Disk] {
        let (terrace, _clock) = bed(layout, &directory).await;
        let space: Space<str, u64> = terrace.space("space").build().unwrap();
        let load = |_| async {
            let is_down = true;
            assert!(!is_down, "on purpose");
            Ok::<u64, Refused>(0)
        };
        let panicked = space.get_or_load("key", load).await;
        assert!(matches!(panicked, Err(LoadError::Panicked)), "{panicked:?}");
        let source = Arc::new(Source::default());
        source.set_up(true);
        assert_eq!(ask(&space, &source).await.unwrap(), 7, "{layout:?}");
    }
}

/// A first wait of nothing turns it off.
#[tokio::test]
async fn a_space_may_ask_its_source_every_time() {
    let directory = tempfile::tempdir().unwrap();
    let (terrace, _clock) = bed(Layout::Memory, &directory).await;
    let space: Space<str, u64> =
        terrace.space("space").retry(Duration::ZERO, SECOND).build().unwrap();
    let source = Arc::new(Source::default());
    for asked in 1..=10 {
        assert!(ask(&space, &source).await.is_err());
        assert_eq!(source.asked(), asked);
    }
}

/// Whoever asks for ever new keys of a source that is down fills no memory with them.
#[tokio::test]
async fn failures_are_remembered_for_so_many_keys_only() {
    let directory = tempfile::tempdir().unwrap();
    let (terrace, clock) = bed(Layout::Memory, &directory).await;
    let space: Space<u64, u64> = terrace.space("space").build().unwrap();
    let fail = async |key: u64| {
        let _ = space.get_or_load(&key, |_| async move { Err::<u64, _>(Refused(key)) }).await;
    };
    let loads = async || terrace.stats().await.spaces[1].loads;
    for key in 0..80_000 {
        fail(key).await;
    }
    assert_eq!(loads().await, 80_000);
    for key in 0..80_000 {
        fail(key).await;
    }
    let held_back = terrace.stats().await.spaces[1].held_back;
    assert!(held_back <= 65_536, "{held_back} failures are remembered");
    assert!(held_back > 0, "the latest are remembered");
    drop(clock);
}
