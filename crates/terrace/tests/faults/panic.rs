//! Panics: of loaders, of values that are dropped, of what encodes and decodes them.

use std::fmt;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use terrace::clock::{Clock as _, SystemClock};
use terrace::{Cached, LoadError, Memory, Space, Terrace};
use terrace_test::ManualClock;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::support::{
    Bed, Everywhere as _, Layout, Refused, count, ends, eventually, limit, ms, twins,
};

/// All who wait when a load panics.
const WAITERS: usize = 1_000;

type Answer<V> = Result<Cached<V>, LoadError<Refused>>;

/// What a thousand callers at once get of one call of `load`. All are answered within the
/// time that is allowed for that, besides what the loads themselves take.
async fn crowd<V, Fut>(
    space: &Space<str, V>,
    key: &str,
    loads: Duration,
    load: impl Fn() -> Fut + Clone + Send + Sync + 'static,
) -> Vec<Answer<V>>
where
    V: Send + Sync + 'static,
    Fut: Future<Output = Result<V, Refused>> + Send + 'static,
{
    // What the first backtrace of a process takes says nothing about caches.
    static FIRST: Once = Once::new();
    FIRST.call_once(|| drop(catch_unwind(|| panic!("on purpose: the first"))));
    let mut callers = JoinSet::new();
    let start = Arc::new(Barrier::new(WAITERS));
    let clock = Arc::new(SystemClock::new());
    for _ in 0..WAITERS {
        let (space, key, load) = (space.clone(), key.to_owned(), load.clone());
        let (start, clock) = (Arc::clone(&start), Arc::clone(&clock));
        callers.spawn(async move {
            start.wait().await;
            let began = clock.elapsed();
            let answer = space.get_or_load(&key, |_| load()).await;
            (answer, clock.elapsed() - began)
        });
    }
    let answers = ends("a crowd of callers", callers.join_all()).await;
    let longest = answers.iter().map(|(_, wait)| *wait).max().unwrap();
    assert!(longest <= loads + limit(ms(100)), "somebody waited for {longest:?}");
    answers.into_iter().map(|(answer, _)| answer).collect()
}

/// The next call loads, at once: no lock, lease or flight of the dead one is left.
async fn is_usable<V>(space: &Space<str, V>, key: &str, value: fn() -> V)
where
    V: Send + Sync + 'static,
{
    let next = tokio::time::timeout(
        ms(2_000),
        space.get_or_load(key, |_| async move { Ok::<_, Refused>(value()) }),
    );
    let next = next.await.expect("the key is usable at once");
    assert!(next.is_ok(), "{:?}", next.err());
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// In the function that makes the future.
    Closure,
    /// In the future, before it waits for anything.
    FirstStep,
    /// In the future, after it waited.
    LaterStep,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_a_loader_panics() {
    for round in 0..count(1, 20) {
        for layout in Layout::ALL {
            for place in [Place::Closure, Place::FirstStep, Place::LaterStep] {
                let bed = Bed::new(layout).await;
                let space = bed.space::<str, u64>("space").build().unwrap();
                let calls = Arc::new(AtomicUsize::new(0));
                let load = {
                    let calls = Arc::clone(&calls);
                    move || {
                        let is_first = calls.fetch_add(1, Ordering::SeqCst) == 0;
                        assert!(!(is_first && matches!(place, Place::Closure)), "on purpose");
                        async move {
                            assert!(!(is_first && matches!(place, Place::FirstStep)), "on purpose");
                            tokio::time::sleep(ms(20)).await;
                            assert!(!(is_first && matches!(place, Place::LaterStep)), "on purpose");
                            Ok(7)
                        }
                    }
                };
                let answers = crowd(&space, "key", ms(20), load).await;
                let panicked =
                    answers.iter().filter(|a| matches!(a, Err(LoadError::Panicked))).count();
                let answered = answers.iter().flatten().filter(|value| ***value == 7).count();
                // Who came after the panic loaded, once.
                assert_eq!(panicked + answered, WAITERS, "{layout:?} {place:?} {round}");
                assert!(panicked >= 1, "{layout:?} {place:?}");
                assert!(calls.load(Ordering::SeqCst) <= 2, "{layout:?} {place:?}");
                is_usable(&space, "key", || 7).await;
                assert!(ends("closing", bed.close()).await, "{layout:?} {place:?}");
            }
        }
    }
}

/// A value whose drop panics as long as it is told to.
#[derive(Serialize, Deserialize)]
struct Bomb {
    number: u64,
    #[serde(skip)]
    armed: Arc<AtomicBool>,
}

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!self.armed.load(Ordering::SeqCst), "on purpose: dropped");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_a_value_panics_when_it_is_dropped() {
    for round in 0..count(1, 20) {
        for layout in [Layout::Memory, Layout::MemoryAndDisk, Layout::MemoryAndMap] {
            let bed = Bed::new(layout).await;
            let space = bed.space::<str, Bomb>("space").stale_for(ms(60_000)).build().unwrap();
            let armed = Arc::new(AtomicBool::new(true));
            let bomb = Bomb { number: 1, armed: Arc::clone(&armed) };
            // It ends at once, but stays where it is as something stale: the load that comes
            // drops it.
            space.insert("key", bomb).ttl(ms(0)).await.everywhere();
            let loads = Arc::new(AtomicUsize::new(0));
            let load = {
                let loads = Arc::clone(&loads);
                move || {
                    let loads = Arc::clone(&loads);
                    async move {
                        loads.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(ms(20)).await;
                        Ok(Bomb { number: 2, armed: Arc::default() })
                    }
                }
            };
            let answers = crowd(&space, "key", ms(20), load).await;
            for answer in &answers {
                let number = answer.as_ref().map(|value| value.number).unwrap();
                assert_eq!(number, 2, "{layout:?}: round {round}");
            }
            armed.store(false, Ordering::SeqCst);
            drop(answers);
            is_usable(&space, "key", || Bomb { number: 3, armed: Arc::default() }).await;
            let loads = loads.load(Ordering::SeqCst);
            assert!(loads <= 2, "{layout:?}: {loads} loads");
            assert!(ends("closing", bed.close()).await, "{layout:?}");
        }
    }
}

/// A load stores what it brings, and what it throws out of memory for that panics.
#[tokio::test]
async fn s6_a_value_panics_when_it_is_evicted() {
    let terrace = Terrace::builder().memory(Memory::bytes(64 << 10)).build().await.unwrap();
    let space = terrace.space::<u64, Bomb>("space").build().unwrap();
    for round in 0..count(3, 50) as u64 {
        let armed = Arc::new(AtomicBool::new(false));
        let first = round * 10_000;
        let bomb = Bomb { number: first, armed: Arc::clone(&armed) };
        space.insert(&first, bomb).await.everywhere();
        armed.store(true, Ordering::SeqCst);
        for number in first + 1..first + 2_000 {
            let load = space.get_or_load(&number, |_| async move {
                Ok::<_, Refused>(Bomb { number, armed: Arc::default() })
            });
            let loaded = ends("a load that evicts", load).await;
            assert_eq!(loaded.map(|bomb| bomb.number).unwrap(), number);
        }
        assert!(space.get(&first).await.unwrap().is_none(), "it was evicted");
    }
    assert!(terrace.stats().await.tiers[0].evicted > 0);
    assert!(ends("closing", terrace.close()).await);
}

/// What was invalidated together with such a value is gone like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_panics_when_it_is_dropped_keeps_no_other_from_being_invalidated() {
    for layout in [Layout::Memory, Layout::MemoryAndDisk, Layout::MemoryAndMap] {
        for kind in 0..6 {
            let bed = Bed::new(layout).await;
            let space = bed.space::<u64, Bomb>("space").build().unwrap();
            let armed = Arc::new(AtomicBool::new(false));
            for key in 0..100 {
                // Two of them at once would be the end of the process.
                let armed = if key == 50 { Arc::clone(&armed) } else { Arc::default() };
                space.insert(&key, Bomb { number: key, armed }).tags(["tag"]).await.everywhere();
            }
            armed.store(true, Ordering::SeqCst);
            let call = tokio::spawn({
                let (terrace, space) = (bed.terrace.clone(), space.clone());
                async move {
                    let keys: Vec<u64> = (0..100).collect();
                    match kind {
                        0 => drop(space.remove_many(&keys).await.unwrap()),
                        1 => space.clear().await.everywhere(),
                        2 => terrace.clear().await.everywhere(),
                        3 => drop(terrace.clear_tier("memory").await.unwrap()),
                        4 => terrace.invalidate_tag("tag").await.everywhere(),
                        _ => {
                            let new = || Bomb { number: 1_000, armed: Arc::default() };
                            let new = keys.iter().map(|key| (key, new()));
                            space.insert_many(new).await.everywhere();
                        }
                    }
                }
            });
            ends("a call that drops", call).await.unwrap();
            armed.store(false, Ordering::SeqCst);
            for key in 0..100 {
                let in_memory = space.read(&key, |bomb| bomb.number);
                assert!(in_memory.is_none_or(|number| number == 1_000), "{layout:?} {in_memory:?}");
                let found = ends("a read", space.get(&key)).await.unwrap();
                let found = found.map(|bomb| bomb.number);
                // One tier that is cleared says nothing about the others.
                let stays = kind == 3 && found == Some(key);
                assert!(
                    stays || found.is_none_or(|number| number == 1_000),
                    "{layout:?} {found:?}"
                );
            }
            for key in 0..100 {
                let new = Bomb { number: 2_000, armed: Arc::default() };
                ends("an insert", async { space.insert(&key, new).await }).await.everywhere();
                assert_eq!(space.get(&key).await.unwrap().unwrap().number, 2_000, "{layout:?}");
            }
            assert!(ends("closing", bed.close()).await, "{layout:?}");
        }
    }
}

/// The task that follows the ledger drops values too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_panics_when_it_is_dropped_does_not_stop_the_following_of_the_ledger() {
    let directory = tempfile::tempdir().unwrap();
    let [here, there] = twins(&directory).await;
    let bombs = here.space::<str, Bomb>("bombs").build().unwrap();
    let armed = Arc::new(AtomicBool::new(false));
    let bomb = Bomb { number: 1, armed: Arc::clone(&armed) };
    bombs.insert("bomb", bomb).await.everywhere();
    bombs.insert("last", Bomb { number: 2, armed: Arc::default() }).await.everywhere();
    here.set("key", &1_u64).await.everywhere();
    armed.store(true, Ordering::SeqCst);
    let bombs_there = there.space::<str, Bomb>("bombs").build().unwrap();
    // Lines that are heard of together.
    bombs_there.remove_many(["bomb", "last"]).await.unwrap();
    eventually("the bomb is dropped", async || bombs.read("bomb", |_| ()).is_none()).await;
    eventually("and what is named after it", async || bombs.read("last", |_| ()).is_none()).await;
    for value in 2..5_u64 {
        assert_eq!(
            here.get("key").await.unwrap().map(|found: Cached<u64>| *found),
            Some(value - 1)
        );
        there.set("key", &value).await.everywhere();
        eventually("the other's write is heard of", async || {
            here.get("key").await.unwrap().map(|found: Cached<u64>| *found) == Some(value)
        })
        .await;
    }
    armed.store(false, Ordering::SeqCst);
    for terrace in [here, there] {
        assert!(ends("closing", terrace.close()).await);
    }
}

/// The task that frees what has expired drops values too.
#[tokio::test]
async fn a_value_that_panics_when_it_is_dropped_does_not_stop_the_sweeping() {
    let clock = Arc::new(ManualClock::new());
    let terrace = Terrace::builder()
        .memory(Memory::bytes(1 << 20))
        .clock(Arc::clone(&clock) as _)
        .build()
        .await
        .unwrap();
    let bombs = terrace.space::<u64, Bomb>("bombs").ttl(ms(1_000)).jitter(0.0).build().unwrap();
    let armed = Arc::new(AtomicBool::new(false));
    let entries = async || terrace.stats().await.tiers[0].entries;
    bombs.insert(&1, Bomb { number: 1, armed: Arc::clone(&armed) }).await.everywhere();
    armed.store(true, Ordering::SeqCst);
    clock.advance(ms(2_000));
    eventually("a sweep meets the bomb", async || entries().await == 0).await;
    bombs.insert(&2, Bomb { number: 2, armed: Arc::default() }).await.everywhere();
    clock.advance(ms(2_000));
    eventually("the next sweep", async || entries().await == 0).await;
    armed.store(false, Ordering::SeqCst);
}

/// A value that does what it is told when it is encoded or decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moody {
    Fine(u64),
    EncodeFails,
    EncodePanics,
    DecodeFails,
    DecodePanics,
}

impl Serialize for Moody {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Fine(number) => serializer.serialize_u64(number + 2),
            Self::EncodeFails => Err(serde::ser::Error::custom("on purpose")),
            Self::EncodePanics => panic!("on purpose: encoding"),
            Self::DecodeFails => serializer.serialize_u64(0),
            Self::DecodePanics => serializer.serialize_u64(1),
        }
    }
}

/// What is read for the fingerprint of the type is all zeros, and that must not panic.
impl<'de> Deserialize<'de> for Moody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            0 => Err(serde::de::Error::custom("on purpose")),
            1 => panic!("on purpose: decoding"),
            number => Ok(Self::Fine(number - 2)),
        }
    }
}

impl fmt::Display for Moody {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_a_value_that_cannot_be_encoded_is_answered_and_stays_in_memory() {
    for round in 0..count(1, 20) {
        for value in [Moody::EncodeFails, Moody::EncodePanics] {
            for layout in Layout::ALL {
                let bed = Bed::new(layout).await;
                let space = bed.space::<str, Moody>("space").build().unwrap();
                let loads = Arc::new(AtomicUsize::new(0));
                let load = {
                    let loads = Arc::clone(&loads);
                    move || {
                        let loads = Arc::clone(&loads);
                        async move {
                            loads.fetch_add(1, Ordering::SeqCst);
                            tokio::time::sleep(ms(100)).await;
                            Ok(value)
                        }
                    }
                };
                let answers = crowd(&space, "key", ms(100), load).await;
                for answer in answers {
                    let answer = answer.unwrap_or_else(|error| {
                        panic!("{layout:?} {value}: {error:?} instead of what the loader brought")
                    });
                    assert_eq!(*answer, value);
                }
                assert_eq!(loads.load(Ordering::SeqCst), 1, "{layout:?} {value} {round}");
                let found = space.get("key").await.unwrap().map(|found| *found);
                assert_eq!(found, layout.has_memory().then_some(value), "{layout:?}");
                space.remove("key").await.unwrap();
                is_usable(&space, "key", || Moody::Fine(1)).await;
                assert_eq!(
                    space.get("key").await.unwrap().map(|found| *found),
                    Some(Moody::Fine(1))
                );
                assert!(ends("closing", bed.close()).await, "{layout:?} {value}");
            }
        }
    }
}

#[tokio::test]
async fn an_insert_that_cannot_be_encoded_costs_nobody_the_value_before_it() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, Moody>("space").build().unwrap();
        space.insert("key", Moody::Fine(1)).await.everywhere();
        for value in [Moody::EncodeFails, Moody::EncodePanics] {
            let inserted = ends("an insert", async { space.insert("key", value).await }).await;
            assert!(matches!(inserted, Err(terrace::Error::Encode(_))), "{layout:?} {value}");
            let inserted = ends("an insert", space.insert_if_absent("key:2", value)).await;
            assert!(matches!(inserted, Err(terrace::Error::Encode(_))), "{layout:?} {value}");
        }
        assert_eq!(space.get("key").await.unwrap().map(|found| *found), Some(Moody::Fine(1)));
        assert!(ends("closing", bed.close()).await, "{layout:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_a_value_that_cannot_be_decoded_is_a_miss() {
    for round in 0..count(1, 20) {
        for value in [Moody::DecodeFails, Moody::DecodePanics] {
            for layout in [Layout::MemoryAndDisk, Layout::Disk, Layout::MemoryAndMap] {
                let bed = Bed::new(layout).await;
                let space = bed.space::<str, Moody>("space").build().unwrap();
                space.insert("key", value).await.everywhere();
                if layout.has_memory() {
                    bed.clear_tier("memory").await.unwrap();
                }
                let found = ends("a read", space.get("key")).await.unwrap();
                assert!(found.is_none(), "{layout:?} {value}");
                let found = ends("a read", space.get_many(["key"])).await.unwrap();
                assert!(found[0].is_none(), "{layout:?} {value}");
                let loads = Arc::new(AtomicUsize::new(0));
                let load = {
                    let loads = Arc::clone(&loads);
                    move || {
                        let loads = Arc::clone(&loads);
                        async move {
                            loads.fetch_add(1, Ordering::SeqCst);
                            tokio::time::sleep(ms(20)).await;
                            Ok(Moody::Fine(2))
                        }
                    }
                };
                let answers = crowd(&space, "key", ms(20), load).await;
                for answer in answers {
                    assert_eq!(*answer.unwrap(), Moody::Fine(2), "{layout:?} {value} {round}");
                }
                let loads = loads.load(Ordering::SeqCst);
                assert_eq!(loads, 1, "{layout:?} {value}");
                let stats = bed.stats().await;
                assert!(stats.tiers.last().unwrap().traffic.unreadable >= 2, "{layout:?} {value}");
                is_usable(&space, "key", || Moody::Fine(3)).await;
                assert!(ends("closing", bed.close()).await, "{layout:?} {value}");
            }
        }
    }
}
