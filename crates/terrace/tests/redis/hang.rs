//! The server hangs: it accepts everything and answers nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use terrace::BreakerState;
use terrace_test::rig::RedisServer;

use crate::support::{Node, breaker, count, limit, p99, until};

/// How long a loader takes that has what it wants.
const LOAD: Duration = Duration::from_millis(20);

/// Keys that memory holds.
const HOT: u64 = 100;

/// What a read cost, and when it began.
#[derive(Clone, Copy)]
struct Read {
    began: Instant,
    took: Duration,
}

#[derive(Default)]
struct Reads {
    hits: Mutex<Vec<Read>>,
    /// Without the time that the loader took.
    misses: Mutex<Vec<Read>>,
    errors: AtomicU32,
}

impl Reads {
    fn of(reads: &Mutex<Vec<Read>>, from: Instant, until: Instant) -> Vec<Duration> {
        let reads = reads.lock();
        let meant = reads.iter().filter(|read| read.began >= from && read.began < until);
        meant.map(|read| read.took).collect()
    }
}

/// Reads at a steady pace until it is aborted: one in `share` of keys that nobody has.
async fn traffic(node: Arc<Node>, reads: Arc<Reads>, a_second: u64, share: u64) {
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let begun = Instant::now();
    let mut number = 0;
    loop {
        tick.tick().await;
        let due = u64::try_from(begun.elapsed().as_millis()).unwrap() * a_second / 1000;
        while number < due {
            number += 1;
            let (node, reads) = (Arc::clone(&node), Arc::clone(&reads));
            if number.is_multiple_of(share) {
                tokio::spawn(miss(node, reads, number));
            } else {
                tokio::spawn(hit(node, reads, number % HOT));
            }
        }
    }
}

async fn hit(node: Arc<Node>, reads: Arc<Reads>, key: u64) {
    let key = format!("hot-{key}");
    let began = Instant::now();
    let value = node.load(&key, "not this").await;
    let took = began.elapsed();
    assert_eq!(value, key);
    reads.hits.lock().push(Read { began, took });
}

async fn miss(node: Arc<Node>, reads: Arc<Reads>, key: u64) {
    let key = format!("cold-{key}");
    let loaded = Arc::new(Mutex::new(Duration::ZERO));
    let load = {
        let loaded = Arc::clone(&loaded);
        move |load: terrace::Load<str, String>| async move {
            let began = Instant::now();
            tokio::time::sleep(LOAD).await;
            *loaded.lock() = began.elapsed();
            Ok::<_, std::io::Error>(load.key)
        }
    };
    let began = Instant::now();
    match node.texts.get_or_load(&key, load).await {
        Ok(value) => assert_eq!(value.as_str(), key),
        Err(_) => drop(reads.errors.fetch_add(1, Ordering::Relaxed)),
    }
    let took = began.elapsed().saturating_sub(*loaded.lock());
    reads.misses.lock().push(Read { began, took });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r1_a_server_that_hangs() {
    let server = RedisServer::start().await.unwrap();
    let (node, other) = (Arc::new(Node::at(server.url()).await), Node::at(server.url()).await);
    for key in 0..HOT {
        let key = format!("hot-{key}");
        assert_eq!(node.load(&key, &key).await, key);
    }
    other.texts.insert("shared", "by Redis".to_owned()).await.unwrap();
    let reads = Arc::new(Reads::default());
    let (a_second, share) = count((500, 2), (5_000, 10));
    let traffic = tokio::spawn(traffic(Arc::clone(&node), Arc::clone(&reads), a_second, share));
    until("the traffic to flow", async || reads.misses.lock().len() > 20).await;

    server.pause().await.unwrap();
    let stopped = Instant::now();
    until("the breaker to open", async || breaker(&node.terrace).await != BreakerState::Closed)
        .await;
    println!("open after {:?}", stopped.elapsed());
    // That it hangs for so long is what is tested.
    tokio::time::sleep(count(Duration::from_secs(5), Duration::from_secs(30))).await;
    server.resume().unwrap();
    let continued = Instant::now();
    until("Redis to be read again", async || {
        node.get("shared").await.is_some() && breaker(&node.terrace).await == BreakerState::Closed
    })
    .await;
    let back = continued.elapsed();
    traffic.abort();

    let opened = stopped + Duration::from_secs(1);
    let mut hits = Reads::of(&reads.hits, stopped, continued);
    let mut first = Reads::of(&reads.misses, stopped, opened);
    let mut later = Reads::of(&reads.misses, opened, continued);
    let counts = (hits.len(), first.len(), later.len());
    let (hits, first, later) = (p99(&mut hits), p99(&mut first), p99(&mut later));
    println!("{counts:?}: hits {hits:?}, misses {first:?} and then {later:?}, back in {back:?}");
    assert_eq!(reads.errors.load(Ordering::Relaxed), 0, "no caller saw an error");
    assert!(hits <= limit(Duration::from_millis(1)), "hits took {hits:?}");
    assert!(first <= limit(Duration::from_millis(110)), "misses took {first:?} more at first");
    assert!(later <= limit(Duration::from_millis(2)), "misses took {later:?} more afterwards");
    assert!(back <= limit(Duration::from_secs(2)), "it took {back:?} to be back");
}
