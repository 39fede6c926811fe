//! A hot key near its end: it is loaded anew while it is served, and nobody waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use terrace::clock::{Clock, SystemClock};
use terrace::{Disk, Memory, Source, Space, Terrace};
use terrace_test::ManualClock;
use tokio::sync::Semaphore;

use crate::support::{
    Everywhere as _, Layout, PausedClock, Refused, count, ends, eventually, is_full,
    let_others_run, ms, poll_once,
};

const SECOND: Duration = Duration::from_secs(1);

async fn bed(layout: Layout, directory: &tempfile::TempDir, clock: Arc<dyn Clock>) -> Terrace {
    let mut builder = Terrace::builder().clock(clock).memory(Memory::bytes(1 << 20));
    if layout == Layout::MemoryAndDisk {
        builder = builder.tier("disk", Disk::at(directory.path()));
    }
    builder.build().await.unwrap()
}

/// A loader that counts.
#[derive(Default)]
struct Loads {
    begun: AtomicUsize,
    running: AtomicUsize,
    most: AtomicUsize,
    fails: AtomicBool,
}

impl Loads {
    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    async fn load(self: Arc<Self>, work: impl Future<Output = ()>) -> Result<u64, Refused> {
        let begun = self.begun.fetch_add(1, Ordering::SeqCst) as u64;
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        work.await;
        self.running.fetch_sub(1, Ordering::SeqCst);
        if self.fails.load(Ordering::SeqCst) { Err(Refused(begun)) } else { Ok(begun) }
    }
}

/// A thousand reads a second in the time of a paused runtime.
#[tokio::test(start_paused = true)]
async fn s11_nobody_waits_for_a_hot_key_through_its_ttls() {
    let ttls = count(3, 10) as u32;
    let directory = tempfile::tempdir().unwrap();
    for early in [None, Some(1.0)] {
        // Where it is left to chance, a load of 200 ms begins about a second before the end.
        let ttl = if is_full() || early.is_some() { 6 * SECOND } else { 2 * SECOND };
        let clock = Arc::new(PausedClock::default());
        let terrace = bed(Layout::Memory, &directory, Arc::clone(&clock) as _).await;
        let mut space = terrace.space::<str, u64>("space").ttl(ttl);
        if let Some(factor) = early {
            space = space.early_refresh(factor);
        }
        let space = space.build().unwrap();
        let loads = Arc::new(Loads::default());
        let load = |_| Arc::clone(&loads).load(tokio::time::sleep(ms(200)));
        space.get_or_load("hot", load).await.unwrap();

        let began = clock.elapsed();
        let mut waited = 0;
        while clock.elapsed() < began + ttls * ttl {
            let load = |_| Arc::clone(&loads).load(tokio::time::sleep(ms(200)));
            let mut read = Box::pin(space.get_or_load("hot", load));
            match poll_once(read.as_mut()).await {
                Poll::Ready(answer) => assert!(!answer.unwrap().is_stale()),
                Poll::Pending => waited += 1,
            }
            tokio::time::sleep(ms(1)).await;
        }
        assert_eq!(waited, 0, "{early:?}: callers who wait");
        let begun = loads.begun() - 1;
        assert!(begun <= 2 * ttls as usize, "{early:?}: {begun} loads in {ttls} TTLs");
        assert!(begun >= ttls as usize - 1, "{early:?}: {begun} loads in {ttls} TTLs");
        assert_eq!(loads.most.load(Ordering::SeqCst), 1, "{early:?}");
    }
}

/// The same in real time, by several tasks. There is a second between the time from which the
/// key is loaded anew and its end, so that a busy machine has the time, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s11_nobody_waits_for_a_hot_key_in_real_time() {
    let (ttls, ttl) = (count(3, 10) as u32, if is_full() { 6 * SECOND } else { 2 * SECOND });
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(SystemClock::new());
    let terrace = bed(Layout::MemoryAndDisk, &directory, Arc::clone(&clock) as _).await;
    let space = terrace.space::<str, u64>("space").ttl(ttl).jitter(0.0).refresh_at(0.5);
    let space = space.build().unwrap();
    let loads = Arc::new(Loads::default());
    let load = |_| Arc::clone(&loads).load(tokio::time::sleep(ms(200)));
    space.get_or_load("hot", load).await.unwrap();
    let end = clock.elapsed() + ttls * ttl;
    let readers = (0..4).map(|_| {
        let (space, loads, clock) = (space.clone(), Arc::clone(&loads), Arc::clone(&clock));
        tokio::spawn(async move {
            let mut reads = 0;
            while clock.elapsed() < end {
                let load = |_| Arc::clone(&loads).load(tokio::time::sleep(ms(200)));
                let mut read = Box::pin(space.get_or_load("hot", load));
                let answer = poll_once(read.as_mut()).await;
                assert!(matches!(answer, Poll::Ready(Ok(_))), "a caller waits");
                reads += 1;
                tokio::time::sleep(ms(4)).await;
            }
            reads
        })
    });
    let mut reads = 0;
    for reader in readers.collect::<Vec<_>>() {
        reads += reader.await.unwrap();
    }
    let begun = loads.begun() - 1;
    // Half a TTL from one to the next.
    assert!(begun <= 2 * ttls as usize, "{begun} loads in {ttls} TTLs, {reads} reads");
    assert!(begun >= ttls as usize, "{begun} loads in {ttls} TTLs, {reads} reads");
    assert_eq!(loads.most.load(Ordering::SeqCst), 1);
}

/// A space with a key that is stored and, unless it is loaded anew, ends after ten seconds.
async fn stored(
    layout: Layout,
    directory: &tempfile::TempDir,
) -> (Terrace, Space<str, u64>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new());
    let terrace = bed(layout, directory, Arc::clone(&clock) as _).await;
    let space = terrace.space("space").ttl(10 * SECOND).jitter(0.0).stale_for(60 * SECOND);
    let space: Space<str, u64> = space.build().unwrap();
    space.insert("key", 100).tags(["tag"]).await.everywhere();
    (terrace, space, clock)
}

async fn none_underway(terrace: &Terrace) {
    eventually("no load is under way", async || terrace.stats().await.underway == 0).await;
}

#[tokio::test]
async fn a_key_is_loaded_anew_once_at_a_time_and_served_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    for layout in [Layout::Memory, Layout::MemoryAndDisk] {
        let (terrace, space, clock) = stored(layout, &directory).await;
        let (loads, pass) = (Arc::new(Loads::default()), Arc::new(Semaphore::new(0)));
        let ask = async || {
            let pass = Arc::clone(&pass);
            let work = async move { pass.acquire().await.unwrap().forget() };
            let mut read = Box::pin(space.get_or_load("key", |_| Arc::clone(&loads).load(work)));
            match poll_once(read.as_mut()).await {
                Poll::Ready(answer) => *answer.unwrap(),
                Poll::Pending => panic!("{layout:?}: a caller waits"),
            }
        };
        clock.advance(7_999 * ms(1));
        assert_eq!(ask().await, 100);
        let_others_run().await;
        assert_eq!(loads.begun(), 0, "{layout:?}: four fifths of its life are not over");
        clock.advance(ms(1));
        for _ in 0..100 {
            assert_eq!(ask().await, 100);
            let_others_run().await;
        }
        eventually("it is loaded anew", async || loads.begun() == 1).await;
        assert_eq!(terrace.stats().await.spaces[1].refreshes, 1, "{layout:?}");
        pass.add_permits(1);
        none_underway(&terrace).await;
        assert_eq!(ask().await, 0, "{layout:?}: what it brought");
        clock.advance(7 * SECOND);
        assert_eq!(ask().await, 0, "{layout:?}: it has a life of its own");
        let_others_run().await;
        assert_eq!(loads.begun(), 1, "{layout:?}");
        space.clear().await.everywhere();
    }
}

#[tokio::test]
async fn a_refresh_that_fails_is_tried_again_after_a_while() {
    let directory = tempfile::tempdir().unwrap();
    for panics in [false, true] {
        let (terrace, space, clock) = stored(Layout::Memory, &directory).await;
        let loads = Arc::new(Loads::default());
        loads.fails.store(true, Ordering::SeqCst);
        let ask = async || {
            let work = async move { assert!(!panics, "on purpose") };
            let read = space.get_or_load("key", |_| Arc::clone(&loads).load(work));
            let answer = ends("a read", read).await.unwrap();
            none_underway(&terrace).await;
            answer
        };
        clock.advance(8 * SECOND);
        for _ in 0..2_000 {
            let answer = ask().await;
            assert!(*answer == 100 && !answer.is_stale() && answer.source() == &Source::Memory);
            clock.advance(ms(1));
        }
        // After 0, 100, 300, 700 and 1,500 ms; what panics, every 100 ms.
        let begun = loads.begun();
        let expected = if panics { 18..=20 } else { 4..=5 };
        assert!(expected.contains(&begun), "{begun} attempts");
        // Past its end it is served all the same, and tried again.
        for _ in 0..600 {
            let answer = ask().await;
            assert!(*answer == 100 && answer.is_stale());
            clock.advance(ms(100));
            if clock.elapsed() > 69 * SECOND {
                break;
            }
        }
        assert!(loads.begun() > begun, "it is tried again");
    }
}

/// With a value that came while the refresh was failing, its back-off is over.
#[tokio::test]
async fn a_refresh_that_succeeds_again_begins_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (terrace, space, clock) = stored(Layout::Memory, &directory).await;
    let loads = Arc::new(Loads::default());
    loads.fails.store(true, Ordering::SeqCst);
    let ask = async || {
        let read = space.get_or_load("key", |_| Arc::clone(&loads).load(async {}));
        let answer = *ends("a read", read).await.unwrap();
        none_underway(&terrace).await;
        answer
    };
    clock.advance(8 * SECOND);
    assert_eq!((ask().await, ask().await, loads.begun()), (100, 100, 1));
    loads.fails.store(false, Ordering::SeqCst);
    clock.advance(ms(120));
    assert_eq!((ask().await, loads.begun()), (100, 2), "served, and loaded anew meanwhile");
    assert_eq!(ask().await, 1, "what it brought");
}

#[tokio::test]
async fn a_refresh_is_superseded_by_an_invalidation() {
    let directory = tempfile::tempdir().unwrap();
    for layout in [Layout::Memory, Layout::MemoryAndDisk] {
        for event in 0..4 {
            let (terrace, space, clock) = stored(layout, &directory).await;
            let (loads, pass) = (Arc::new(Loads::default()), Arc::new(Semaphore::new(0)));
            clock.advance(9 * SECOND);
            let passed = Arc::clone(&pass);
            let work = async move { passed.acquire().await.unwrap().forget() };
            let read = space.get_or_load("key", |_| Arc::clone(&loads).load(work)).tags(["tag"]);
            assert_eq!(*ends("a read", read).await.unwrap(), 100);
            eventually("it is loaded anew", async || loads.begun() == 1).await;
            match event {
                0 => space.invalidate("key").await.everywhere(),
                1 => terrace.invalidate_tag("tag").await.everywhere(),
                2 => space.clear().await.everywhere(),
                _ => space.insert("key", 200).await.everywhere(),
            }
            pass.add_permits(1);
            none_underway(&terrace).await;
            let found = ends("a read", space.get("key")).await.unwrap().map(|value| *value);
            assert_eq!(found, (event == 3).then_some(200), "{layout:?} {event}");
            space.clear().await.everywhere();
            assert!(terrace.close().await);
        }
    }
}

#[tokio::test]
async fn nothing_is_loaded_anew_where_that_is_turned_off() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new());
    let terrace = bed(Layout::Memory, &directory, Arc::clone(&clock) as _).await;
    let space = terrace.space("space").ttl(10 * SECOND).jitter(0.0).refresh_at(1.0);
    let space: Space<str, u64> = space.build().unwrap();
    space.insert("key", 1).await.everywhere();
    clock.advance(9_999 * ms(1));
    let loads = Arc::new(Loads::default());
    let read = space.get_or_load("key", |_| Arc::clone(&loads).load(async {}));
    assert_eq!(*read.await.unwrap(), 1);
    none_underway(&terrace).await;
    assert_eq!(loads.begun(), 0);
}

/// Of a load that took long, the renewal begins early; of one that took no time, at the end.
#[tokio::test]
async fn an_early_refresh_begins_the_earlier_the_longer_the_load() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new());
    let terrace = bed(Layout::Memory, &directory, Arc::clone(&clock) as _).await;
    let space = terrace.space("space").ttl(100 * SECOND).jitter(0.0).early_refresh(1.0);
    let space: Space<u64, u64> = space.build().unwrap();
    let mut means = Vec::new();
    for load_time in [ms(100), 2 * SECOND] {
        let mut before_the_end = Duration::ZERO;
        for key in 0..50 {
            let own = Arc::clone(&clock);
            let load = |_| async move {
                own.advance(load_time);
                Ok::<_, Refused>(1)
            };
            space.get_or_load(&key, load).await.unwrap();
            none_underway(&terrace).await;
            let end = clock.elapsed() + 100 * SECOND;
            let loads = Arc::new(Loads::default());
            clock.advance(60 * SECOND);
            while loads.begun() == 0 && clock.elapsed() < end {
                let read = space.get_or_load(&key, |_| Arc::clone(&loads).load(async {}));
                read.await.unwrap();
                none_underway(&terrace).await;
                clock.advance(ms(100));
            }
            before_the_end += end.saturating_sub(clock.elapsed());
            space.clear().await.everywhere();
        }
        means.push(before_the_end / 50);
    }
    // With ten draws a second for a load of two seconds: about ln 20 times as long before.
    assert!(means[0] < SECOND, "{means:?}");
    assert!((3 * SECOND..15 * SECOND).contains(&means[1]), "{means:?}");
}
