//! The server comes back without its data, or with those of yesterday.

use std::time::{Duration, Instant};

use terrace::Settled;
use terrace_test::rig::RedisServer;

use crate::support::{Node, count, until};

const KEYS: usize = 60;

/// Of three keys, the first is invalidated, the second replaced, the third left.
fn value_after(key: usize) -> Option<&'static str> {
    [None, Some("new"), Some("old")][key % 3]
}

async fn come_back(from_copy: bool) {
    let server = RedisServer::start().await.unwrap();
    let nodes = [Node::at(server.url()).await, Node::at(server.url()).await];
    for key in 0..KEYS {
        nodes[0].texts.insert(&key.to_string(), "old".to_owned()).await.unwrap();
        if key % 2 == 0 {
            assert_eq!(nodes[1].get(&key.to_string()).await.as_deref(), Some("old"));
        }
    }
    server.save().await.unwrap();
    for key in 0..KEYS {
        let name = key.to_string();
        let settled = match value_after(key) {
            None => nodes[0].texts.invalidate(&name).await.unwrap(),
            Some("new") => nodes[0].texts.insert(&name, "new".to_owned()).await.unwrap(),
            _ => Settled::Settled,
        };
        assert_eq!(settled, Settled::Settled);
    }
    let newest = |node: &Node, key: usize| {
        let found = node.texts.read(&key.to_string(), |text| text.clone() == "old");
        value_after(key) == Some("old") || found != Some(true)
    };
    until("the other to have heard", async || (0..KEYS).all(|key| newest(&nodes[1], key))).await;

    server.kill().unwrap();
    if from_copy {
        server.restart_from_saved().await.unwrap();
    } else {
        server.restart_empty().await.unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(3);
    let mut rounds = 0;
    while Instant::now() < deadline {
        for node in &nodes {
            for key in 0..KEYS {
                let found = node.get(&key.to_string()).await;
                let found = found.as_deref();
                assert!(
                    found.is_none() || found == value_after(key),
                    "{key} came back as {found:?}, from a copy: {from_copy}"
                );
            }
        }
        rounds += 1;
    }
    println!("asked {rounds} times");
    // Who joins later, too.
    let late = Node::at(server.url()).await;
    for key in (0..KEYS).filter(|key| key % 3 != 2) {
        assert_ne!(late.get(&key.to_string()).await.as_deref(), Some("old"), "{key}");
        let source = format!("source-{key}");
        let loaded = nodes[0].load(&key.to_string(), &source).await;
        assert!(loaded == source || loaded == "new", "{key} is {loaded}");
        until("the others to find it", async || {
            late.load(&key.to_string(), &source).await == loaded
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r6_a_server_that_restarts_empty() {
    for _ in 0..count(1, 10) {
        come_back(false).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r6_a_server_that_restarts_from_an_old_copy() {
    for _ in 0..count(1, 10) {
        come_back(true).await;
    }
}
