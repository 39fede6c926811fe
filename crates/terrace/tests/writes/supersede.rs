//! A load that is superseded: whoever comes after an invalidation boards another
//! flight, and never more than two loads of a key run at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use terrace::Space;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::support::{
    Bed, Everywhere as _, Layout, Refused, count, ends, eventually, let_others_run, once_polled,
    random,
};

/// A source that counts who reads it at once, and lets them go when it is told to.
struct Source {
    version: AtomicU64,
    running: AtomicUsize,
    most: AtomicUsize,
    loads: AtomicUsize,
    passes: Semaphore,
}

impl Source {
    fn new(passes: usize) -> Arc<Self> {
        Arc::new(Self {
            version: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            loads: AtomicUsize::new(0),
            passes: Semaphore::new(passes),
        })
    }

    async fn load(self: Arc<Self>) -> Result<u64, Refused> {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        self.loads.fetch_add(1, Ordering::SeqCst);
        let version = self.version.load(Ordering::SeqCst);
        self.passes.acquire().await.expect("never closed").forget();
        self.running.fetch_sub(1, Ordering::SeqCst);
        Ok(version)
    }

    fn ask(self: &Arc<Self>, space: &Space<str, u64>) -> JoinHandle<u64> {
        let (source, space) = (Arc::clone(self), space.clone());
        tokio::spawn(async move { *space.get_or_load("key", |_| source.load()).await.unwrap() })
    }
}

#[tokio::test]
async fn ten_invalidations_in_a_row_never_make_more_than_two_loads_run() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, u64>("space").build().unwrap();
        let source = Source::new(0);
        let mut waves = Vec::new();
        for wave in 0..10 {
            let callers: Vec<_> = (0..20).map(|_| source.ask(&space)).collect();
            waves.push(callers);
            if wave < 2 {
                let begun = wave + 1;
                eventually("the wave's load begins", async || {
                    source.loads.load(Ordering::SeqCst) == begun
                })
                .await;
            }
            // Those who share a flight have nothing to show for it: let them board.
            let_others_run().await;
            source.version.fetch_add(1, Ordering::SeqCst);
            space.invalidate("key").await.everywhere();
        }
        assert_eq!(source.running.load(Ordering::SeqCst), 2, "{layout:?}: the third has to wait");

        source.passes.add_permits(100);
        for (wave, callers) in waves.into_iter().enumerate() {
            // Before the first line: the first flight's. Before the second: its successor's. All
            // others share the one that began when there was room for it.
            let expected = [0, 1, 10][wave.min(2)];
            for caller in callers {
                let version = ends("a caller of a superseded load", caller).await.unwrap();
                assert_eq!(version, expected, "{layout:?}: wave {wave}");
            }
        }
        assert_eq!(source.most.load(Ordering::SeqCst), 2, "{layout:?}");
        assert_eq!(source.loads.load(Ordering::SeqCst), 3, "{layout:?}");
        let later = ends("a later call", source.ask(&space)).await.unwrap();
        assert_eq!(later, 10, "{layout:?}: what the last flight brought is stored");
        assert_eq!(source.loads.load(Ordering::SeqCst), 3, "{layout:?}");
    }
}

/// A flight that outlives its successor is still one of the two.
#[tokio::test]
async fn a_load_that_outlives_its_successor_is_still_counted() {
    for layout in [Layout::Memory, Layout::MemoryAndDisk] {
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, u64>("space").build().unwrap();
        // The oldest waits for passes of its own.
        let (oldest, source) = (Source::new(0), Source::new(0));
        let first = oldest.ask(&space);
        eventually("the first load", async || oldest.running.load(Ordering::SeqCst) == 1).await;
        space.invalidate("key").await.everywhere();
        source.passes.add_permits(1);
        assert_eq!(ends("its successor", source.ask(&space)).await.unwrap(), 0);

        // With the oldest still under way there is room for one, and not for two.
        let mut later = Vec::new();
        for _ in 0..3 {
            space.invalidate("key").await.everywhere();
            later.push(source.ask(&space));
            eventually("one more load", async || source.loads.load(Ordering::SeqCst) == 2).await;
            for _ in 0..5 {
                // What another load would ask of the ledger is answered before this is.
                let_others_run().await;
                bed.increment("fence", 1).await.unwrap();
            }
            assert_eq!(source.loads.load(Ordering::SeqCst), 2, "{layout:?}: beside the oldest");
        }
        oldest.passes.add_permits(1);
        source.passes.add_permits(3);
        for caller in later.into_iter().chain([first]) {
            ends("a caller", caller).await.unwrap();
        }
    }
}

/// The flight that runs when its predecessor lands first keeps being counted.
#[tokio::test]
async fn the_order_in_which_loads_end_does_not_let_a_third_one_in() {
    let bed = Bed::new(Layout::Memory).await;
    let space = bed.space::<str, u64>("space").build().unwrap();
    let source = Source::new(0);
    for round in 1..=20 {
        let first = source.ask(&space);
        eventually("the first load", async || source.running.load(Ordering::SeqCst) == 1).await;
        space.invalidate("key").await.everywhere();
        let second = source.ask(&space);
        eventually("the second load", async || source.running.load(Ordering::SeqCst) == 2).await;
        space.invalidate("key").await.everywhere();
        let others: Vec<_> = (0..10).map(|_| source.ask(&space)).collect();
        let_others_run().await;
        assert_eq!(source.running.load(Ordering::SeqCst), 2, "round {round}");
        // One may go: whichever it is, at most one of those that wait may follow.
        source.passes.add_permits(1);
        let_others_run().await;
        assert!(source.running.load(Ordering::SeqCst) <= 2, "round {round}");
        source.passes.add_permits(10);
        for caller in [first, second].into_iter().chain(others) {
            ends("a caller", caller).await.unwrap();
        }
        assert_eq!(source.most.load(Ordering::SeqCst), 2, "round {round}");
        space.invalidate("key").await.everywhere();
        eventually("all loads end", async || source.running.load(Ordering::SeqCst) == 0).await;
        while let Ok(pass) = source.passes.try_acquire() {
            pass.forget();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_invalidated_at_most_two_loads_of_a_key_run() {
    let mut random = random("supersede");
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, u64>("space").build().unwrap();
        let source = Source::new(0);
        let mut callers = JoinSet::new();
        let (mut begun, boarded) = (0, Arc::new(AtomicUsize::new(0)));
        for _ in 0..count(500, 5_000) {
            for _ in 0..random.usize(0..4) {
                let (source, space) = (Arc::clone(&source), space.clone());
                let (floor, boarded) =
                    (source.version.load(Ordering::SeqCst), Arc::clone(&boarded));
                begun += 1;
                callers.spawn(async move {
                    let call =
                        space.get_or_load("key", |_| Arc::clone(&source).load()).tags(["tag"]);
                    let count = || {
                        boarded.fetch_add(1, Ordering::SeqCst);
                    };
                    let version = *once_polled(call, count).await.unwrap();
                    assert!(version >= floor, "version {version} for a call that began at {floor}");
                });
            }
            while boarded.load(Ordering::SeqCst) < begun {
                tokio::task::yield_now().await;
            }
            let next = source.version.load(Ordering::SeqCst) + 1;
            let kind = random.u8(0..8);
            if kind < 5 {
                source.version.store(next, Ordering::SeqCst);
            }
            match kind {
                0 => space.invalidate("key").await.everywhere(),
                1 => bed.invalidate_tag("tag").await.everywhere(),
                2 => space.clear().await.everywhere(),
                3 => bed.clear().await.everywhere(),
                4 => space.insert("key", next).tags(["tag"]).await.everywhere(),
                // No more than there are loads to end, or none would ever be under way.
                _ if source.passes.available_permits() == 0 => source.passes.add_permits(1),
                _ => {}
            }
        }
        source.passes.add_permits(1 << 20);
        ends("callers of superseded loads", callers.join_all()).await;
        let most = source.most.load(Ordering::SeqCst);
        assert!(most <= 2, "{layout:?}: {most} loads of one key ran at once");
        let last = source.version.load(Ordering::SeqCst);
        let now = ends("a later call", source.ask(&space)).await.unwrap();
        assert_eq!(now, last, "{layout:?}");
    }
}
