//! One key that everybody wants.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use terrace_test::rig::{RedisServer, ScriptedServer, without_scripts};

use crate::support::{Node, count};

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
