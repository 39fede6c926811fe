//! Cancellation: callers are dropped at every point, set aside half-way, or given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use terrace::clock::{Clock as _, SystemClock};
use terrace::{Disk, Error, LoadError, Memory, Space, Terrace, Tier};
use terrace_test::sweep::{self, Cut, poll_and_drop};
use terrace_test::{Calls, ChaosStore, Oracle, Verb};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use crate::support::{
    Bed, Everywhere as _, Layout, Refused, count, ends, eventually, let_others_run, limit, ms,
    poll_once,
};

/// A loader that says how often it began and ended, and waits to be let go.
#[derive(Default)]
struct Source {
    begun: AtomicUsize,
    ended: AtomicUsize,
    is_open: Semaphore0,
}

/// A semaphore without passes.
struct Semaphore0(Semaphore);

impl Default for Semaphore0 {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Source {
    async fn load(self: Arc<Self>) -> Result<u64, Refused> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        // Closed means open: nobody waits any longer.
        let _ = self.is_open.0.acquire().await;
        self.ended.fetch_add(1, Ordering::SeqCst);
        Ok(7)
    }

    fn open(&self) {
        self.is_open.0.close();
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }
}

fn follow(callers: &mut JoinSet<()>, space: &Space<str, u64>, key: &str, source: &Arc<Source>) {
    let (space, source, key) = (space.clone(), Arc::clone(source), key.to_owned());
    callers.spawn(async move {
        assert_eq!(*space.get_or_load(&key, |_| source.load()).await.unwrap(), 7);
    });
}

#[tokio::test]
async fn s9_a_call_may_be_dropped_after_any_number_of_polls() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, u64>("space").build().unwrap();
        for polls in 0..=20 {
            let key = format!("key:{polls}");
            let source = Arc::new(Source::default());
            // A caller that leads, and is woken between its polls for as long as it asks to be.
            let leader = space.get_or_load(&key, |_| Arc::clone(&source).load());
            let leader = async {
                tokio::select! { biased;
                    left = poll_and_drop(polls, leader) => assert!(left.is_none()),
                    () = let_others_run() => {}
                }
            };
            leader.await;
            let mut followers = JoinSet::new();
            for _ in 0..count(100, 1_000) {
                follow(&mut followers, &space, &key, &source);
            }
            eventually("a load begins", async || source.begun() == 1).await;
            source.open();
            ends("followers of a dropped leader", followers.join_all()).await;
            assert_eq!(source.begun(), 1, "{layout:?}: {polls} polls");
        }
        nothing_is_left(&bed).await;
    }
}

#[tokio::test]
async fn s9_every_kind_of_call_may_be_dropped_at_any_of_its_polls() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, u64>("space").build().unwrap();
        let is_old_or_new = async |what: &str| {
            // A line that was written takes the old value with it, and what was to replace it
            // may be gone with its caller: then there is none.
            let found = ends(what, space.get("key")).await.unwrap().map(|found| *found);
            assert!(matches!(found, None | Some(1 | 2)), "{layout:?}: {what}: {found:?}");
            ends(what, async { space.insert("key", 3).await }).await.everywhere();
            let found = ends(what, space.get("key")).await.unwrap().map(|found| *found);
            assert_eq!(found, Some(3), "{layout:?}: {what}");
            assert!(ends(what, space.remove("key")).await.unwrap(), "{layout:?}: {what}");
            // Nobody holds the key: writers who exclude each other get at it at once.
            let inserted = ends(what, space.insert_if_absent("key", 4)).await;
            assert!(inserted.unwrap(), "{layout:?}: {what}");
        };
        let mut rounds = [0; 8];
        for (kind, rounds) in rounds.iter_mut().enumerate() {
            *rounds = sweep::every_poll(async |cut: &Cut| {
                ends("insert", async { space.insert("key", 1).await }).await.everywhere();
                if kind == 3 {
                    space.remove("key").await.unwrap();
                }
                match kind {
                    0 => drop(cut.at(async { space.insert("key", 2).await.unwrap() }).await),
                    1 => drop(cut.at(space.remove("key")).await),
                    2 => drop(cut.at(space.expire("key", ms(60_000))).await),
                    3 => drop(cut.at(space.insert_if_absent("key", 2)).await),
                    4 => drop(cut.at(space.get("key")).await),
                    5 => drop(cut.at(bed.clear()).await),
                    6 => drop(cut.at(space.get_many(["key", "other"])).await),
                    _ => drop(cut.at(space.clear()).await),
                }
                is_old_or_new(&format!("call {kind} dropped after {} polls", cut.polls())).await;
            })
            .await;
        }
        if layout == Layout::MemoryAndDisk {
            assert!(rounds[0] > 1, "a write to disk is more than one step: {rounds:?}");
        }
        nothing_is_left(&bed).await;
    }
}

#[tokio::test]
async fn a_writer_that_is_dropped_does_not_keep_others_waiting() {
    let clock = SystemClock::new();
    for layout in [Layout::Memory, Layout::MemoryAndDisk] {
        let bed = Bed::new(layout).await;
        let began = clock.elapsed();
        for polls in 0..10 {
            let key = format!("key:{polls}");
            poll_and_drop(polls, bed.set_if_absent(&key, &1_u64)).await;
            // Stored or not, but answered: the right to write died with whoever held it.
            ends("the next writer", bed.set_if_absent(&key, &2_u64)).await.unwrap();
            assert!(bed.get::<u64>(&key).await.unwrap().is_some());
        }
        let took = clock.elapsed() - began;
        assert!(took < limit(ms(1_000)), "{layout:?}: {took:?} for ten writers");
    }
}

/// The lease was granted already, and its answer is under way to somebody who is gone.
#[tokio::test]
async fn a_lease_whose_asker_is_gone_is_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Disk::at(directory.path()).open().unwrap());
    let chaos = Arc::new(ChaosStore::over(store));
    let terrace = Terrace::builder()
        .tier("disk", Tier::shared(Arc::clone(&chaos) as _))
        .build()
        .await
        .unwrap();
    let gate = chaos.hold_answers(Calls::of([Verb::Lease]).first(1));
    let writer = tokio::spawn({
        let terrace = terrace.clone();
        async move { terrace.set_if_absent("key", &1_u64).await }
    });
    ends("the lease", gate.arrived()).await;
    writer.abort();
    assert!(writer.await.unwrap_err().is_cancelled());
    gate.open();
    // Well before it would lapse by itself.
    let next = tokio::time::timeout(ms(3_000), terrace.set_if_absent("key", &2_u64)).await;
    assert!(next.expect("nobody holds the key").unwrap());
    assert!(ends("closing", terrace.close()).await);
}

#[tokio::test]
async fn a_dropped_close_is_still_a_close() {
    for layout in Layout::ALL {
        for polls in 0..100 {
            let bed = Bed::new(layout).await;
            bed.set("key", &1_u64).await.everywhere();
            let closed = poll_and_drop(polls, bed.close()).await;
            assert_ne!(closed, Some(false), "{layout:?}: nothing was under way");
            assert!(ends("a second close", bed.close()).await, "{layout:?}");
            assert!(matches!(bed.get::<u64>("key").await, Err(Error::Closed)), "{layout:?}");
            if closed.is_some() {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_callers_that_began_the_load_leave() {
    const DROPPED: usize = 300;
    for round in 0..count(1, 20) {
        let layout = Layout::ALL[round % 4];
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, u64>("space").build().unwrap();
        let source = Arc::new(Source::default());
        let mut followers = JoinSet::new();
        for dropped in 0..DROPPED {
            let call = space.get_or_load("key", |_| Arc::clone(&source).load());
            assert!(poll_and_drop(1, call).await.is_none(), "the load has not ended");
            for _ in 0..1_000_usize.div_ceil(DROPPED) {
                if followers.len() < 1_000 {
                    follow(&mut followers, &space, "key", &source);
                }
            }
            if dropped % 10 == 0 {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(followers.len(), 1_000);
        source.open();
        ends("those who wait for loads that others began", followers.join_all()).await;
        assert_eq!(source.begun(), 1, "{layout:?}: a load outlives whoever began it");
        ends("a later call", space.get_or_load("key", |_| Arc::clone(&source).load()))
            .await
            .unwrap();
        assert_eq!(source.begun(), 1, "{layout:?}");
        nothing_is_left(&bed).await;
    }
}

/// The same when each leader's key is new, so that each of them really leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_three_hundred_leaders_of_their_own_leave() {
    let bed = Bed::new(Layout::MemoryAndDisk).await;
    let space = bed.space::<str, u64>("space").build().unwrap();
    let source = Arc::new(Source::default());
    let mut followers = JoinSet::new();
    for leader in 0..300 {
        let key = format!("key:{leader}");
        poll_and_drop(1, space.get_or_load(&key, |_| Arc::clone(&source).load())).await;
        for _ in 0..4 {
            follow(&mut followers, &space, &key, &source);
        }
    }
    eventually("every flight loads", async || source.begun() == 300).await;
    source.open();
    ends("those who wait for loads that others began", followers.join_all()).await;
    assert_eq!(source.begun(), 300);
    nothing_is_left(&bed).await;
}

#[tokio::test]
async fn s5_a_caller_that_is_left_unpolled_blocks_nobody() {
    const LOAD: std::time::Duration = ms(10);
    let clock = SystemClock::new();
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, u64>("space").build().unwrap();
        for round in 0..count(10, 1_000) {
            let key = format!("key:{round}");
            let load = || async {
                tokio::time::sleep(LOAD).await;
                Ok::<_, Refused>(7_u64)
            };
            let mut parked = Box::pin(space.get_or_load(&key, |_| load()));
            assert!(poll_once(parked.as_mut()).await.is_pending());
            let began = clock.elapsed();
            let second = ends("a caller behind one that is parked", async {
                space.get_or_load(&key, |_| load()).await
            })
            .await;
            let took = clock.elapsed() - began;
            assert_eq!(*second.unwrap(), 7);
            assert!(took <= LOAD + limit(ms(100)), "{layout:?}: {took:?}");
            // It is answered too, once somebody looks.
            let Poll::Ready(first) = poll_once(parked.as_mut()).await else {
                panic!("{layout:?}: the one that was parked is not answered");
            };
            assert_eq!(*first.unwrap(), 7);
        }
        assert_eq!(bed.stats().await.spaces[1].loads, count(10, 1_000) as u64, "{layout:?}");
    }
}

#[tokio::test]
async fn a_load_that_nobody_waits_for_is_stored() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, u64>("space").build().unwrap();
        let source = Arc::new(Source::default());
        let mut callers = JoinSet::new();
        for _ in 0..10 {
            follow(&mut callers, &space, "key", &source);
        }
        eventually("the load begins", async || source.begun() == 1).await;
        callers.abort_all();
        while callers.join_next().await.is_some() {}
        source.open();
        eventually("the value is stored", async || {
            space.get("key").await.unwrap().is_some_and(|value| *value == 7)
        })
        .await;
        assert_eq!(source.ended.load(Ordering::SeqCst), 1, "{layout:?}");
        nothing_is_left(&bed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s9_calls_that_time_out_leave_nothing_behind() {
    let calls = count(5_000, 100_000);
    let bed = Bed::new(Layout::Memory).await;
    let space = bed.space::<u64, u64>("space").build().unwrap();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let open = Arc::new(Notify::new());
    let ended = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for key in 0..calls as u64 {
        let (space, open, ended) = (space.clone(), Arc::clone(&open), Arc::clone(&ended));
        callers.spawn(async move {
            let load = |_| async move {
                open.notified().await;
                ended.fetch_add(1, Ordering::SeqCst);
                Ok::<_, Refused>(key)
            };
            tokio::time::timeout(ms(5), space.get_or_load(&key, load)).await.is_err()
        });
    }
    let timed_out = ends("calls with a limit", callers.join_all()).await;
    assert!(timed_out.iter().all(|timed_out| *timed_out));
    eventually("all loads end", async || {
        open.notify_waiters();
        ended.load(Ordering::SeqCst) == calls
    })
    .await;
    eventually("tasks are as before", async || tasks() <= before).await;
    assert_eq!(bed.stats().await.spaces[1].loads, calls as u64);
    nothing_is_left(&bed).await;
}

#[tokio::test]
async fn a_runtime_that_ends_leaves_no_caller_waiting() {
    let terrace = tokio::task::spawn_blocking(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let terrace = runtime.block_on(async {
            let terrace = Terrace::builder().memory(Memory::bytes(1 << 20)).build().await.unwrap();
            let call =
                terrace.get_or_load("key", |_| std::future::pending::<Result<u64, Refused>>());
            assert!(poll_and_drop(1, call).await.is_none());
            terrace
        });
        drop(runtime);
        terrace
    })
    .await
    .unwrap();
    // The tasks of that cache went with their runtime.
    let call = terrace.get_or_load("key", |_| async { Ok::<_, Refused>(1_u64) });
    let answer = ends("a caller of a cache without a runtime", call).await;
    assert!(matches!(answer, Err(LoadError::Abandoned)), "{answer:?}");
}

/// Closing waits for what is under way, and finds nothing that never ends.
async fn nothing_is_left(bed: &Bed) {
    Oracle::new().check(bed).await.unwrap();
    assert!(ends("closing", bed.close()).await, "something was still under way");
}
