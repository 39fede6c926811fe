//! Somebody who may write to the server forges lines of the ledger, very many of them.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use terrace_test::rig::{Connection, RedisServer};

use crate::support::{Node, count, limit, p99, until};

const HOT: usize = 100;

/// Adds lines until it is over; says how many.
async fn flood(server: Arc<RedisServer>, a_second: u64, is_over: Arc<AtomicBool>) -> u64 {
    let mut connection = Connection::with_all_rights(server.address()).await.unwrap();
    let mut random = fastrand::Rng::with_seed(8);
    let mut added = 0;
    let began = Instant::now();
    while !is_over.load(Ordering::Relaxed) {
        let due = u64::try_from(began.elapsed().as_millis()).unwrap() * a_second / 1000;
        let batch = due.saturating_sub(added).min(1000);
        let mut lines = String::new();
        for _ in 0..batch {
            let kind = ["k", "w", "t", "s", "p", "value", ""][random.usize(..7)];
            let name = format!(":texts:hot-{}", random.usize(..HOT));
            writeln!(
                lines,
                "XADD terrace:{{ledger}}:lines * kind {kind:?} name {name} after {after} tip {tip} \
                 value forged frame forged\r",
                after = random.u64(..),
                tip = random.u64(..),
            )
            .unwrap();
        }
        connection.write(lines.as_bytes()).await.unwrap();
        for _ in 0..batch {
            let answer = connection.reply().await.unwrap();
            assert!(answer.error().is_none(), "{answer:?}");
        }
        added += batch;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    added
}

/// How long hits in memory take, until enough were made and it `is_enough`, and how many of the keys
/// were not there.
async fn times_of_hits(node: &Node, is_enough: impl Fn() -> bool) -> (Vec<Duration>, usize) {
    let (mut times, mut misses) = (Vec::new(), 0);
    while times.len() < 1_000 || !is_enough() {
        for key in 0..HOT {
            let key = format!("hot-{key}");
            let began = Instant::now();
            let hit = node.texts.read(&key, |text| *text == key);
            let took = began.elapsed();
            match hit {
                Some(is_right) => {
                    assert!(is_right, "{key} is something else");
                    times.push(took);
                }
                None => {
                    assert_eq!(node.load(&key, &key).await, key);
                    misses += 1;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (times, misses)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x8_lines_that_are_forged() {
    let (a_second, lasts) =
        count((10_000, Duration::from_secs(3)), (100_000, Duration::from_secs(60)));
    let server = Arc::new(RedisServer::start().await.unwrap());
    let (node, other) = (Node::at(server.url()).await, Node::at(server.url()).await);
    let begun = Instant::now();
    let (mut before, misses) =
        times_of_hits(&node, || begun.elapsed() > Duration::from_secs(1)).await;
    assert_eq!(misses, HOT, "each is loaded once");
    let before = p99(&mut before);

    let is_over = Arc::new(AtomicBool::new(false));
    let flood = tokio::spawn(flood(Arc::clone(&server), a_second, Arc::clone(&is_over)));
    let began = Instant::now();
    let (mut during, misses) = times_of_hits(&node, || began.elapsed() > lasts).await;
    let hits = during.len();
    let during = p99(&mut during);
    is_over.store(true, Ordering::Relaxed);
    let added = flood.await.unwrap();
    println!("{added} lines: hits took {before:?} before, {during:?} meanwhile ({hits})");
    assert!(added > 1000, "it was a flood");
    assert_eq!(misses, 0, "lines that continue nothing took values away");
    // A clock that is read twice tells nothing smaller than this.
    let unit = Duration::from_nanos(500);
    assert!(during <= limit(before.max(unit) * 2), "{before:?} became {during:?}");

    until("the ledger to be of use again", async || {
        // The same each time: the other may hear of it a moment later.
        node.texts.insert("shared", "new".to_owned()).await.unwrap();
        other.get("shared").await.as_deref() == Some("new")
    })
    .await;
    for key in 0..HOT {
        let key = format!("hot-{key}");
        for node in [&node, &other] {
            assert!(node.get(&key).await.is_none_or(|text| text == key), "{key} was forged");
        }
    }
}
