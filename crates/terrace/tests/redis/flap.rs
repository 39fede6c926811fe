//! The server comes and goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use terrace_test::rig::{ChaosProxy, RedisServer, without_scripts};

use crate::support::{Node, count, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r3_a_server_that_comes_and_goes() {
    let server = RedisServer::start().await.unwrap();
    // What connects while there is no server is accepted, count, and sent away.
    let proxy = ChaosProxy::before(server.address()).await.unwrap();
    let node = Arc::new(Node::at(proxy.url()).await);
    let (calls, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let callers = (0..4).map(|caller| {
        let (node, calls) = (Arc::clone(&node), Arc::clone(&calls));
        let is_over = Arc::clone(&is_over);
        tokio::spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let key = format!("{caller}-{}", calls.fetch_add(1, Ordering::Relaxed) % 1000);
                // Fails the test if it fails.
                assert_eq!(node.load(&key, &key).await, key);
                node.texts.invalidate(&key).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    let counting = {
        let is_over = Arc::clone(&is_over);
        async move {
            let mut counts = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                counts.push((Instant::now(), proxy.connections()));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (counts, proxy)
        }
    };
    let counting = tokio::spawn(counting);
    for _ in 0..count(5, 60) {
        server.kill().unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.restart_empty().await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    is_over.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    let (counts, _proxy) = counting.await.unwrap();
    let mut most = 0;
    for (at, (began, before)) in counts.iter().enumerate() {
        let second = counts[at..].iter().take_while(|(now, _)| *now - *began < SECOND);
        most = most.max(second.last().map_or(0, |(_, now)| now - before));
    }
    let (all, calls) = (counts.last().unwrap().1, calls.load(Ordering::Relaxed));
    println!("{calls} calls, {all} connections, {most} of them in one second at most");
    // What takes the place of scripts has two connections of its own at first, and soon a third.
    let allowed = if without_scripts() { 8 } else { 5 };
    assert!(most <= allowed, "{most} connections within one second");
    assert!(calls > 100, "callers went on: {calls}");
    until("values to reach the server again", async || {
        node.texts.insert("c", "3".to_owned()).await.unwrap();
        server.command(["DBSIZE"]).await.unwrap().integer().unwrap() > 3
    })
    .await;
}

const SECOND: Duration = Duration::from_secs(1);
