//! The server has no connections left, and half of those that there are answer nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use terrace_test::rig::{ChaosProxy, RedisServer};

use crate::support::{Node, count, limit, until};

/// Of reads and of writes: a call that asks Redis for both takes no longer.
const DEADLINES: Duration = Duration::from_millis(100 + 250);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r7_a_server_that_runs_out_of_connections() {
    let (nodes, lasts) = count((3, Duration::from_secs(5)), (8, Duration::from_secs(60)));
    let server = RedisServer::builder().config("maxclients", "10").start().await.unwrap();
    let proxy = ChaosProxy::before(server.address()).await.unwrap();
    let mut idle = Vec::new();
    // Everybody finds it crowded: some are let in, some are sent away.
    for _ in 0..count(6, 0) {
        idle.push(terrace_test::rig::Connection::to(server.address()).await.unwrap());
    }
    let mut fleet = Vec::new();
    for number in 0..nodes {
        let url = if number % 2 == 0 { server.url() } else { proxy.url() };
        fleet.push(Arc::new(Node::at(url).await));
    }
    proxy.to_client().black_hole();
    let is_over = Arc::new(AtomicBool::new(false));
    let mut callers = Vec::new();
    for (number, node) in fleet.iter().enumerate() {
        for caller in 0..8 {
            let (node, is_over) = (Arc::clone(node), Arc::clone(&is_over));
            callers.push(tokio::spawn(async move {
                let (mut calls, mut longest) = (0, Duration::ZERO);
                while !is_over.load(Ordering::Relaxed) {
                    calls += 1;
                    let key = format!("{number}-{caller}-{calls}");
                    let began = Instant::now();
                    assert_eq!(node.load(&key, &key).await, key, "no caller sees an error");
                    longest = longest.max(began.elapsed());
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                (calls, longest)
            }));
        }
    }
    tokio::time::sleep(lasts).await;
    let rejected = server.info("rejected_connections").await;
    is_over.store(true, Ordering::Relaxed);
    let (mut calls, mut longest) = (0, Duration::ZERO);
    for caller in callers {
        let (made, longest_of_it) = caller.await.unwrap();
        calls += made;
        longest = longest.max(longest_of_it);
    }
    println!("{calls} calls, none longer than {longest:?}; rejected: {rejected:?}");
    assert!(longest <= limit(DEADLINES), "somebody waited for {longest:?}");
    assert!(calls > 1000, "callers went on: {calls}");

    proxy.heal();
    drop(idle);
    server.command(["CONFIG", "SET", "maxclients", "1000"]).await.unwrap();
    for node in &fleet {
        until("everybody to be let in", async || {
            let value = format!("{:?}", Instant::now());
            node.texts.insert("shared", value.clone()).await.unwrap();
            fleet[0].get("shared").await == Some(value)
        })
        .await;
    }
}
