//! Loads of many keys at once that overlap: each key is loaded once, and what becomes of one
//! of them is no matter for the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use terrace::store::Store;
use terrace::{
    Cached, Disk, Error, LoadError, LoadMany, Loaded, Memory, Source, Space, Terrace, Tier,
};
use terrace_test::sweep::poll_and_drop;
use terrace_test::{ChaosStore, MapStore, Verb};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

use crate::support::{
    Bed, Everywhere as _, Layout, Refused, count, ends, eventually, let_others_run, once_polled,
    random, twins,
};

type Squares = Space<u64, u64>;
type Answer = Result<Cached<u64>, LoadError<Refused>>;

/// A source of squares that counts how often it is asked for which.
struct Squarer {
    asked: Mutex<HashMap<u64, u64>>,
    calls: AtomicUsize,
    passes: Semaphore,
}

impl Squarer {
    /// One that answers at once.
    fn open() -> Arc<Self> {
        Self::with(Semaphore::MAX_PERMITS)
    }

    /// One that answers when it is told to.
    fn held() -> Arc<Self> {
        Self::with(0)
    }

    fn with(passes: usize) -> Arc<Self> {
        let passes = Semaphore::new(passes);
        Arc::new(Self { asked: Mutex::default(), calls: AtomicUsize::new(0), passes })
    }

    async fn many(self: Arc<Self>, load: LoadMany<u64>) -> Result<Vec<(u64, u64)>, Refused> {
        self.ask(load.keys()).await;
        Ok(load.keys().iter().map(|n| (*n, n * n)).collect())
    }

    async fn one(self: Arc<Self>, key: u64) -> Result<u64, Refused> {
        self.ask(&[key]).await;
        Ok(key * key)
    }

    async fn ask(&self, keys: &[u64]) {
        let mut asked = self.asked.lock().await;
        for key in keys {
            *asked.entry(*key).or_default() += 1;
        }
        drop(asked);
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.passes.acquire().await.expect("never closed").forget();
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn let_all_go(&self) {
        self.passes.add_permits(1_000_000);
    }

    async fn each_once(&self, what: &str) {
        let asked = self.asked.lock().await;
        let twice: Vec<_> = asked.iter().filter(|(_, times)| **times != 1).collect();
        assert!(twice.is_empty(), "{what}: {twice:?}");
    }
}

fn numbers(terrace: &Terrace) -> Squares {
    // An error is tried again at once: these tests are about other things.
    terrace.space("square").retry(Duration::ZERO, Duration::ZERO).build().unwrap()
}

#[track_caller]
fn values(answers: Vec<Answer>) -> Vec<u64> {
    answers.into_iter().map(|answer| *answer.unwrap()).collect()
}

async fn nothing_is_under_way(terrace: &Terrace) {
    eventually("nothing is under way", async || {
        let stats = terrace.stats().await;
        stats.underway == 0 && stats.loads_running == 0 && stats.loads_queued == 0
    })
    .await;
}

#[tokio::test]
async fn answers_come_in_the_order_of_the_keys_and_the_loader_gets_what_is_missing() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space = numbers(&bed);
        space.insert(&3, 9).await.everywhere();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let load = |load: LoadMany<u64>| {
            assert!(load.keys().is_empty(), "nothing is known before the tiers were asked");
            let seen = Arc::clone(&seen);
            async move {
                seen.lock().await.extend(load.keys().to_vec());
                // In another order, and with something that nobody asked for.
                let mut all: Vec<_> = load.keys().iter().map(|n| (*n, n * n)).collect();
                all.push((77, 1));
                all.reverse();
                Ok::<_, Refused>(all)
            }
        };
        let answers = space.get_many_or_load(&[5, 1, 5, 3, 1, 4, 3], load).await;
        let from: Vec<_> = answers
            .iter()
            .map(|answer| *answer.as_ref().unwrap().source() == Source::Loader)
            .collect();
        assert_eq!(from, [true, true, true, false, true, true, false], "{layout:?}");
        assert_eq!(values(answers), [25, 1, 25, 9, 1, 16, 9], "{layout:?}");
        let mut seen = std::mem::take(&mut *seen.lock().await);
        seen.sort_unstable();
        assert_eq!(seen, [1, 4, 5], "{layout:?}");
        assert!(!space.exists(&77).await.unwrap(), "{layout:?}: nobody asked for it");

        // Everything is there: the loader is not called, from memory and from below.
        for _ in 0..2 {
            let never = |_| async { Err::<Vec<(u64, u64)>, _>(Refused(1)) };
            let again = space.get_many_or_load(&[4, 5, 1, 3], never).await;
            assert_eq!(values(again), [16, 25, 1, 9], "{layout:?}");
            if layout == Layout::MemoryAndDisk {
                bed.clear_tier("memory").await.unwrap();
            }
        }
        let none = space.get_many_or_load(&[], |_| async { Err::<Vec<(u64, u64)>, _>(Refused(1)) });
        assert!(none.await.is_empty());
    }
}

#[tokio::test]
async fn what_becomes_of_one_key_is_no_matter_for_the_others() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space =
            bed.space::<str, u64>("length").retry(Duration::ZERO, Duration::ZERO).build().unwrap();
        let long = "k".repeat(70_000);
        let load = |_| async {
            Ok::<_, Refused>([
                ("good".to_owned(), Loaded::value(4)),
                ("failed".to_owned(), Loaded::failed(Refused(6))),
                ("tags".to_owned(), Loaded::value(1).tags([""])),
                ("kept out".to_owned(), Loaded::do_not_cache(8)),
                ("confirmed".to_owned(), Loaded::not_modified()),
                ("said absent".to_owned(), Loaded::absent()),
            ])
        };
        let keys =
            ["left out", "good", &long, "failed", "tags", "kept out", "confirmed", "said absent"];
        let answers = space.get_many_or_load(keys, load).await;
        assert!(matches!(answers[0], Err(LoadError::Absent)), "{layout:?}: {:?}", answers[0]);
        assert_eq!(*answers[1].as_deref().unwrap(), 4, "{layout:?}");
        assert!(
            matches!(answers[2], Err(LoadError::Cache(Error::KeyTooLong { bytes: 70_000 }))),
            "{layout:?}: {:?}",
            answers[2]
        );
        let failed = answers[3].as_ref().unwrap_err();
        assert_eq!(failed.loader(), Some(&Refused(6)), "{layout:?}");
        assert!(matches!(answers[4], Err(LoadError::Cache(Error::Tags(_)))), "{:?}", answers[4]);
        assert_eq!(*answers[5].as_deref().unwrap(), 8, "{layout:?}");
        assert!(matches!(answers[6], Err(LoadError::NothingToConfirm)), "{:?}", answers[6]);
        assert!(matches!(answers[7], Err(LoadError::Absent)), "{layout:?}: {:?}", answers[7]);
        for (key, is_there) in keys.iter().zip([false, true]).chain([(&"kept out", false)]) {
            assert_eq!(space.exists(key).await.unwrap(), is_there, "{layout:?}: {key}");
        }
        // The next load is asked for exactly those that are not there.
        let load = |load: LoadMany<String>| async move {
            Ok::<_, Refused>(load.keys().iter().map(|key| (key.clone(), 9)).collect::<Vec<_>>())
        };
        let again = space.get_many_or_load(["good", "failed", "left out", "tags"], load).await;
        let again: Vec<_> = again.into_iter().map(|answer| *answer.unwrap()).collect();
        assert_eq!(again, [4, 9, 9, 9], "{layout:?}");
        nothing_is_under_way(&bed).await;
    }
}

#[tokio::test]
async fn a_loader_that_fails_or_panics_fails_its_keys_and_no_others() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space = numbers(&bed);
        space.insert(&3, 9).await.everywhere();
        // Somebody else loads 4 meanwhile.
        let other = Squarer::held();
        let four = tokio::spawn({
            let (space, other) = (space.clone(), Arc::clone(&other));
            async move { space.get_or_load(&4, |_| other.one(4)).await }
        });
        eventually("the other load", async || other.calls() == 1).await;
        for way in 0..4 {
            let load = |load: LoadMany<u64>| {
                assert!(way != 0, "on purpose: before there is a future");
                async move {
                    assert!(way != 1, "on purpose: in the future");
                    let keys = load.keys().to_vec();
                    if way == 2 { Err(Refused(2)) } else { Ok(Answers(keys, way)) }
                }
            };
            let batch = space.get_many_or_load(&[1, 2, 3, 4, 1], load);
            let answers = once_polled(batch, || other.let_all_go());
            let answers = ends("a batch whose loader fails", answers).await;
            for index in [0, 1, 4] {
                let error = answers[index].as_ref().unwrap_err();
                let is_right = match error {
                    LoadError::Panicked => way != 2,
                    error => way == 2 && error.loader() == Some(&Refused(2)),
                };
                assert!(is_right, "{layout:?}, way {way}: {error:?}");
            }
            // What panics before there is a future does so before the tiers are asked.
            if way != 0 || layout.has_memory() {
                assert_eq!(**answers[2].as_ref().unwrap(), 9, "{layout:?}, way {way}");
            }
            assert_eq!(**answers[3].as_ref().unwrap(), 16, "{layout:?}, way {way}");
        }
        assert_eq!(*ends("the other load", four).await.unwrap().unwrap(), 16);
        let source = Squarer::open();
        let again = space.get_many_or_load(&[1, 2, 3, 4], |load| Arc::clone(&source).many(load));
        assert_eq!(values(ends("the keys afterwards", again).await), [1, 4, 9, 16]);
        assert_eq!(source.asked.lock().await.len(), 2, "{layout:?}");
        // However many keys they were for, three of them failed; one never began.
        let stats = bed.stats().await.spaces.pop().unwrap();
        assert_eq!((stats.loads, stats.load_errors), (5, 3), "{layout:?}");
        nothing_is_under_way(&bed).await;
    }
}

/// Answers that panic when they are looked at.
struct Answers(Vec<u64>, u8);

impl IntoIterator for Answers {
    type Item = (u64, u64);
    type IntoIter = std::vec::IntoIter<(u64, u64)>;
    fn into_iter(self) -> Self::IntoIter {
        assert!(self.1 != 3, "on purpose: in the answers");
        self.0.into_iter().map(|n| (n, n)).collect::<Vec<_>>().into_iter()
    }
}

/// Batches and single loads that overlap at random, all of them there before the first loader
/// may go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_that_overlap_load_each_key_once() {
    let mut random = random("overlaps");
    for round in 0..count(40, 1_000) {
        let layout = Layout::ALL[round % 4];
        let bed = Bed::new(layout).await;
        overlap(&mut random, &[numbers(&bed)], &format!("round {round}, {layout:?}")).await;
        nothing_is_under_way(&bed).await;
    }
}

/// The same in two caches that share a directory: their batches take the leases of the keys one
/// after the other, and never in a way that each has what the other one waits for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_that_overlap_between_processes_load_each_key_once() {
    let mut random = random("overlaps between processes");
    for round in 0..count(10, 200) {
        let directory = tempfile::tempdir().unwrap();
        let caches = twins(&directory).await;
        let spaces = [numbers(&caches[0]), numbers(&caches[1])];
        overlap(&mut random, &spaces, &format!("round {round}")).await;
        for cache in &caches {
            nothing_is_under_way(cache).await;
            assert!(cache.close().await);
        }
    }
}

async fn overlap(random: &mut fastrand::Rng, spaces: &[Squares], what: &str) {
    let keys = random.u64(2..30);
    let callers = 12;
    let source = Squarer::held();
    let boarded = Arc::new(AtomicUsize::new(0));
    let mut calls = JoinSet::new();
    for caller in 0..callers {
        let space = spaces[caller % spaces.len()].clone();
        let (source, boarded) = (Arc::clone(&source), Arc::clone(&boarded));
        let boards = move || {
            boarded.fetch_add(1, Ordering::SeqCst);
        };
        let mut batch: Vec<u64> = (0..keys).collect();
        random.shuffle(&mut batch);
        batch.truncate(random.usize(1..=batch.len()));
        if random.u8(..4) == 0 {
            let key = batch[0];
            calls.spawn(async move {
                let call = space.get_or_load(&key, |_| source.one(key));
                let answer = once_polled(call, boards).await;
                assert_eq!(*answer.unwrap(), key * key);
            });
        } else {
            calls.spawn(async move {
                let call = space.get_many_or_load(&batch, |load| source.many(load));
                let answers = once_polled(call, boards).await;
                let squares: Vec<_> = batch.iter().map(|n| n * n).collect();
                assert_eq!(values(answers), squares);
            });
        }
    }
    eventually("all are there", async || boarded.load(Ordering::SeqCst) == callers).await;
    source.let_all_go();
    ends(what, async {
        while let Some(call) = calls.join_next().await {
            call.unwrap();
        }
    })
    .await;
    source.each_once(what).await;
}

/// Two batches of the same keys in opposite order, and loaders that take the time that it takes
/// for the others to come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_in_opposite_order_do_not_wait_for_each_other_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let caches = twins(&directory).await;
    let spaces = [numbers(&caches[0]), numbers(&caches[1])];
    for round in 0..count(30, 500) as u64 {
        let keys: Vec<u64> = (0..8).map(|n| round * 8 + n).collect();
        let mut batches = JoinSet::new();
        for batch in 0..4 {
            let (space, mut keys) = (spaces[batch % 2].clone(), keys.clone());
            if batch >= 2 {
                keys.reverse();
            }
            batches.spawn(async move {
                let load = |load: LoadMany<u64>| async move {
                    let_others_run().await;
                    Ok::<_, Refused>(load.keys().iter().map(|n| (*n, n * n)).collect::<Vec<_>>())
                };
                let squares: Vec<_> = keys.iter().map(|n| n * n).collect();
                assert_eq!(values(space.get_many_or_load(&keys, load).await), squares);
            });
        }
        ends("batches in opposite order", batches.join_all()).await;
    }
}

#[tokio::test]
async fn a_loader_of_many_that_waits_for_itself_is_told_so() {
    for layout in [Layout::Memory, Layout::MemoryAndDisk] {
        let bed = Bed::new(layout).await;
        let space = numbers(&bed);
        let load = |load: LoadMany<u64>| {
            let space = space.clone();
            async move {
                let inner = space.get_or_load(&2, |_| async { Ok::<_, Refused>(1) }).await;
                assert!(matches!(inner, Err(LoadError::Circle)), "{inner:?}");
                let keys = [7, 1];
                let inner = space
                    .get_many_or_load(&keys, |load| async move {
                        Ok::<_, Refused>(load.keys().iter().map(|n| (*n, *n)).collect::<Vec<_>>())
                    })
                    .await;
                assert_eq!(**inner[0].as_ref().unwrap(), 7);
                assert!(matches!(inner[1], Err(LoadError::Circle)), "{:?}", inner[1]);
                Ok::<_, Refused>(load.keys().iter().map(|n| (*n, n * n)).collect::<Vec<_>>())
            }
        };
        let answers = ends("a loader that asks itself", space.get_many_or_load(&[1, 2], load));
        assert_eq!(values(answers.await), [1, 4], "{layout:?}");
    }
}

/// A batch that is dropped after any number of polls.
#[tokio::test]
async fn a_batch_may_be_dropped_at_any_of_its_polls() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space = numbers(&bed);
        for polls in 0..=20 {
            let keys: Vec<u64> = (0..5).map(|n| 10 * polls as u64 + n).collect();
            let source = Squarer::held();
            let batch = space.get_many_or_load(&keys, |load| Arc::clone(&source).many(load));
            tokio::select! { biased;
                left = poll_and_drop(polls, batch) => assert!(left.is_none()),
                () = let_others_run() => {}
            }
            let mut followers = JoinSet::new();
            for follower in 0..10 {
                let (space, source, keys) = (space.clone(), Arc::clone(&source), keys.clone());
                followers.spawn(async move {
                    if follower % 2 == 0 {
                        let call = space.get_many_or_load(&keys, |load| source.many(load));
                        assert_eq!(values(call.await).len(), 5);
                    } else {
                        let key = keys[follower / 2];
                        let call = space.get_or_load(&key, |_| source.one(key));
                        assert_eq!(*call.await.unwrap(), key * key);
                    }
                });
            }
            let_others_run().await;
            source.let_all_go();
            ends("followers of a batch that was dropped", followers.join_all()).await;
            source.each_once(&format!("{layout:?}, {polls} polls")).await;
        }
        nothing_is_under_way(&bed).await;
        assert!(ends("closing", bed.close()).await, "{layout:?}");
    }
}

#[tokio::test]
async fn a_batch_costs_one_exchange_with_each_tier() {
    for is_shared in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let inner: Arc<dyn Store> = if is_shared {
            Arc::new(Disk::at(directory.path()).open().unwrap())
        } else {
            Arc::new(MapStore::new())
        };
        let store = Arc::new(ChaosStore::over(inner));
        let terrace = Terrace::builder()
            .memory(Memory::bytes(64 << 20))
            .tier("store", Tier::shared(Arc::clone(&store) as _))
            .build()
            .await
            .unwrap();
        let space = numbers(&terrace);
        let keys: Vec<u64> = (0..100).collect();
        space.insert_many([(&3, 9), (&4, 16)]).await.everywhere();
        terrace.clear_tier("memory").await.unwrap();
        let before = [Verb::Get, Verb::Put].map(|verb| store.calls_of(verb));
        let source = Squarer::open();
        let batch = space.get_many_or_load(&keys, |load| Arc::clone(&source).many(load));
        let squares: Vec<_> = keys.iter().map(|n| n * n).collect();
        assert_eq!(values(batch.await), squares);
        nothing_is_under_way(&terrace).await;
        let after = [Verb::Get, Verb::Put].map(|verb| store.calls_of(verb));
        // Where others load too, a second look once it is clear that none of them does.
        let gets = if is_shared { 2 } else { 1 };
        assert_eq!([after[0] - before[0], after[1] - before[1]], [gets, 1], "shared: {is_shared}");
        assert_eq!(source.calls(), 1);
        assert_eq!(source.asked.lock().await.len(), 98, "what a tier has is not loaded");

        terrace.clear_tier("memory").await.unwrap();
        let found = space.get_many(&keys).await.unwrap();
        assert!(found.iter().all(Option::is_some), "everything is stored below, too");
        assert_eq!(store.calls_of(Verb::Get) - after[0], 1);
    }
}

#[tokio::test]
async fn invalidating_one_key_of_a_batch_spares_the_others() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space = numbers(&bed);
        let source = Squarer::held();
        let keys = [1, 2, 3];
        let batch = tokio::spawn({
            let (space, source) = (space.clone(), Arc::clone(&source));
            async move { space.get_many_or_load(&keys, |load| source.many(load)).await }
        });
        eventually("the load", async || source.calls() == 1).await;
        space.invalidate(&2).await.everywhere();
        // Whoever comes from here on boards another flight for this key, and only for this one.
        let later = Squarer::held();
        let call = space.get_many_or_load(&keys, |load| {
            let later = Arc::clone(&later);
            async move {
                later.ask(load.keys()).await;
                Ok::<_, Refused>(load.keys().iter().map(|n| (*n, 100 + n)).collect::<Vec<_>>())
            }
        });
        let go = || {
            later.let_all_go();
            source.let_all_go();
        };
        let answers = ends("a batch after the line", once_polled(call, go)).await;
        assert_eq!(values(answers), [1, 102, 9], "{layout:?}");
        assert_eq!(values(ends("the batch", batch).await.unwrap()), [1, 4, 9], "{layout:?}");
        assert_eq!(later.asked.lock().await.keys().copied().collect::<Vec<_>>(), [2]);
        nothing_is_under_way(&bed).await;
        for forget in [false, true] {
            if forget && layout == Layout::MemoryAndDisk {
                bed.clear_tier("memory").await.unwrap();
            }
            let found = space.get_many(&keys).await.unwrap();
            let found: Vec<_> = found.iter().map(|found| found.as_deref().copied()).collect();
            assert_eq!(found, [Some(1), Some(102), Some(9)], "{layout:?}, below: {forget}");
        }
    }
}

/// Nobody loads the key again: what the batch brought must not be found later.
#[tokio::test]
async fn what_a_batch_brings_of_an_invalidated_key_is_not_stored() {
    for layout in Layout::ALL {
        for tag in [false, true] {
            let bed = Bed::new(layout).await;
            let space = numbers(&bed);
            let pass = Arc::new(Semaphore::new(0));
            let load = |_| {
                let pass = Arc::clone(&pass);
                async move {
                    pass.acquire().await.unwrap().forget();
                    Ok::<_, Refused>([
                        (1, Loaded::value(1).tags(tag.then_some("odd"))),
                        (2, Loaded::value(4).tags(tag.then_some("even"))),
                    ])
                }
            };
            // Whoever names a key twice gets it twice, whatever happened meanwhile.
            let mut batch = Box::pin(space.get_many_or_load(&[1, 2, 2], load));
            tokio::select! { biased;
                _ = &mut batch => panic!("the load is held"),
                () = let_others_run() => {}
            }
            let follower = tokio::spawn({
                let space = space.clone();
                async move {
                    let load = |_| async { Err::<Vec<(u64, u64)>, _>(Refused(1)) };
                    space.get_many_or_load(&[2, 1], load).await
                }
            });
            let single = tokio::spawn({
                let space = space.clone();
                async move { space.get_or_load(&2, |_| async { Ok::<_, Refused>(5) }).await }
            });
            let_others_run().await;
            if tag {
                bed.invalidate_tag("even").await.everywhere();
            } else {
                space.invalidate(&2).await.everywhere();
            }
            pass.add_permits(1);
            assert_eq!(values(ends("the batch", batch).await), [1, 4, 4], "{layout:?}, {tag}");
            let follower = ends("a follower", follower).await.unwrap();
            assert_eq!(**follower[1].as_ref().unwrap(), 1, "{layout:?}, {tag}");
            let single = *ends("a single call", single).await.unwrap().unwrap();
            if tag {
                // Nobody knew of the tag: the line may have come before the follower did.
                let answer = &follower[0];
                assert!(matches!(answer, Err(LoadError::Superseded)), "{layout:?}: {answer:?}");
                assert_eq!(single, 5, "{layout:?}: it loads again");
            } else {
                assert_eq!(**follower[0].as_ref().unwrap(), 4, "{layout:?}");
                assert_eq!(single, 4, "{layout:?}");
                assert!(space.get(&2).await.unwrap().is_none(), "{layout:?}");
            }
            nothing_is_under_way(&bed).await;
            let found = space.get(&2).await.unwrap();
            assert_ne!(found.as_deref(), Some(&4), "{layout:?}, {tag}");
            assert_eq!(space.get(&1).await.unwrap().as_deref(), Some(&1), "{layout:?}, {tag}");
        }
    }
}

#[tokio::test]
async fn a_cache_that_is_closed_says_so_for_each_key() {
    let bed = Bed::new(Layout::MemoryAndDisk).await;
    let space = numbers(&bed);
    assert!(bed.close().await);
    let calls = AtomicU64::new(0);
    let load = |_| {
        calls.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, Refused>([(1, 1)]) }
    };
    for answer in space.get_many_or_load(&[1, 2], load).await {
        assert!(matches!(answer, Err(LoadError::Cache(Error::Closed))), "{answer:?}");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}
