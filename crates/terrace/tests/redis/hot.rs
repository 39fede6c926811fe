//! One key that everybody wants.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use terrace::Error;
use terrace_test::rig::{RedisServer, ScriptedServer, without_scripts};

use crate::support::{Node, count, until};

/// A text that no compressor makes smaller than three quarters.
fn noise(bytes: usize) -> String {
    let mut random = fastrand::Rng::with_seed(12);
    std::iter::repeat_with(|| random.alphanumeric()).take(bytes).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_a_hot_key() {
    let (processes, a_second) = count((2, 20_000), (8, 200_000));
    let server = RedisServer::start().await.unwrap();
    let mut fleet = Vec::new();
    for _ in 0..processes {
        // It counts what a node asks.
        let script = ScriptedServer::before(server.address()).await.unwrap();
        let node = Arc::new(Node::at(script.url()).await);
        assert_eq!(node.load("hot", "hot").await, "hot");
        fleet.push((node, script));
    }
    let (is_over, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let before: Vec<_> = fleet.iter().map(|(_, script)| script.requests()).collect();
    let began = Instant::now();
    let readers = fleet.iter().map(|(node, _)| {
        let (node, is_over, reads) = (Arc::clone(node), Arc::clone(&is_over), Arc::clone(&reads));
        tokio::spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                for _ in 0..a_second / processes / 100 {
                    assert_eq!(node.load("hot", "nobody asks").await, "hot");
                }
                reads.fetch_add(a_second / processes / 100, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    tokio::time::sleep(Duration::from_secs(count(5, 30))).await;
    is_over.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    let seconds = began.elapsed().as_secs_f64();
    for ((_, script), before) in fleet.iter().zip(before) {
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let commands = (script.requests() - before) as f64 / seconds;
        println!("{commands:.1} commands a second");
        // Without scripts, looking once a second whether the ledger is there is ten commands, not one.
        let most = if without_scripts() { 20.0 } else { 10.0 };
        assert!(commands <= most, "{commands:.1} commands a second of one process");
    }
    println!("{} reads in {seconds:.1} s", reads.load(Ordering::Relaxed));
    assert!(reads.load(Ordering::Relaxed) > a_second, "it was hot");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_a_huge_value() {
    const HUGE: usize = 64 << 20;
    let server = RedisServer::builder().config("slowlog-log-slower-than", "100000").start();
    let server = server.await.unwrap();
    let (node, other) = (Node::at(server.url()).await, Node::at(server.url()).await);
    node.texts.insert("huge", "small".to_owned()).await.unwrap();
    assert_eq!(other.get("huge").await.as_deref(), Some("small"));
    let refused = node.texts.insert("huge", noise(HUGE)).await;
    assert!(matches!(refused, Err(Error::ValueTooLarge { .. })), "{refused:?}");
    // What was there before does not outlive it.
    for node in [&node, &other] {
        until("the small one to be gone", async || node.get("huge").await.is_none()).await;
    }
    let memory = server.info("used_memory_peak").await.unwrap().unwrap();
    assert!(memory.parse::<usize>().unwrap() < HUGE / 2, "{memory} bytes were in the server");
    assert_eq!(server.expect(["SLOWLOG", "GET"]).await.unwrap().items().len(), 0);
}
