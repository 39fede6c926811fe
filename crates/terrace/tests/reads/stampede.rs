//! A stampede: everybody wants one cold key at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use terrace::clock::{Clock as _, SystemClock};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::support::{Bed, Layout, Refused, count, ends, limit, ms};

const CALLERS: usize = 10_000;

/// How long the load itself takes.
const LOAD: Duration = ms(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_ten_thousand_callers_one_load_into_memory() {
    stampede(Layout::Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_ten_thousand_callers_one_load_into_memory_and_disk() {
    stampede(Layout::MemoryAndDisk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_ten_thousand_callers_one_load_without_memory() {
    stampede(Layout::Disk).await;
}

async fn stampede(layout: Layout) {
    let bed = Bed::new(layout).await;
    let airports = bed.space::<str, u64>("airport").build().unwrap();
    let clock = Arc::new(SystemClock::new());
    for round in 0..count(3, 50) {
        let key: Arc<str> = format!("cold:{round}").into();
        let loads = Arc::new(AtomicUsize::new(0));
        let start = Arc::new(Barrier::new(CALLERS));
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let (airports, key, clock) = (airports.clone(), Arc::clone(&key), Arc::clone(&clock));
            let (loads, start) = (Arc::clone(&loads), Arc::clone(&start));
            callers.spawn(async move {
                start.wait().await;
                let began = clock.elapsed();
                let value = airports
                    .get_or_load(&key, |_| async move {
                        loads.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(LOAD).await;
                        Ok::<_, Refused>(1416)
                    })
                    .await
                    .unwrap();
                assert_eq!(*value, 1416);
                clock.elapsed() - began
            });
        }
        let mut waits = ends("callers of one cold key", callers.join_all()).await;
        waits.sort_unstable();
        let p99 = waits[CALLERS * 99 / 100 - 1];
        assert_eq!(loads.load(Ordering::SeqCst), 1, "round {round}");
        assert!(p99 <= LOAD + limit(ms(50)), "p99 {p99:?} for a load of {LOAD:?}");
    }
    let stats = bed.stats().await;
    assert_eq!(stats.spaces[1].loads, count(3, 50) as u64);
}
