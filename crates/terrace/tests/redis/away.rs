//! The server dies, hangs, comes back empty or with old data, or was never there.

use std::time::{Duration, Instant};

use terrace::{Redis, Settled, Terrace};
use terrace_test::rig::RedisServer;

use crate::support::{Node, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_fails_no_read() {
    let server = RedisServer::start().await.unwrap();
    let node = Node::at(server.url()).await;
    assert_eq!(node.load("a", "1").await, "1");
    server.kill().unwrap();
    assert_eq!(node.load("a", "2").await, "1", "memory has it");
    assert_eq!(node.load("b", "2").await, "2", "the loader has it");
    let settled = node.texts.remove("a").await;
    assert_eq!(node.get("a").await, None, "gone here: {settled:?}");
    server.restart().await.unwrap();
    until("values to reach the server again", async || {
        node.texts.insert("c", "3".to_owned()).await.unwrap();
        server.command(["DBSIZE"]).await.unwrap().integer().unwrap() > 3
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_starts_without_its_server() {
    let server = RedisServer::start().await.unwrap();
    let other = Node::at(server.url()).await;
    // A load may be answered before the server has its value; a write is not.
    other.texts.insert("a", "1".to_owned()).await.unwrap();
    server.save().await.unwrap();
    server.kill().unwrap();
    let node = Node::at(server.url()).await;
    assert_eq!(node.load("b", "2").await, "2");
    server.restart_from_saved().await.unwrap();
    until("it to join", async || node.get("a").await.as_deref() == Some("1")).await;
    assert_eq!(node.get("b").await, None, "what was loaded alone is not vouched for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_data_resurrect_nothing() {
    let server = RedisServer::start().await.unwrap();
    let (a, b) = (Node::at(server.url()).await, Node::at(server.url()).await);
    a.texts.insert("key", "old".to_owned()).await.unwrap();
    assert_eq!(b.get("key").await.as_deref(), Some("old"));
    server.save().await.unwrap();
    assert_eq!(a.texts.invalidate("key").await.unwrap(), Settled::Settled);
    server.kill().unwrap();
    server.restart_from_saved().await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(3);
    while Instant::now() < deadline {
        for node in [&a, &b] {
            assert_ne!(node.get("key").await.as_deref(), Some("old"));
        }
    }
    assert_eq!(a.load("key", "new").await, "new");
    until("the other to find it", async || b.load("key", "new").await == "new").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_costs_the_deadline() {
    let server = RedisServer::start().await.unwrap();
    let node = Node::at(server.url()).await;
    node.load("a", "1").await;
    server.pause().await.unwrap();
    let begun = Instant::now();
    assert_eq!(node.load("a", "2").await, "1", "memory has it");
    assert!(begun.elapsed() < Duration::from_millis(50));
    let begun = Instant::now();
    assert_eq!(node.load("b", "2").await, "2", "the loader has it");
    println!("a miss with a hanging server took {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(3));
    server.resume().unwrap();
    until("values to reach the server again", async || {
        node.texts.insert("c", "3".to_owned()).await.unwrap();
        server.command(["DBSIZE"]).await.unwrap().integer().unwrap() > 3
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_told_at_the_start() {
    let server = RedisServer::builder().password("right").start().await.unwrap();
    let wrong = Redis::url(format!("redis://:wrong-one@{}", server.address()));
    let built = Terrace::builder().tier("redis", wrong).build().await;
    let error = built.expect_err("it fails");
    let source = std::error::Error::source(&error).expect("it says why").to_string();
    assert!(source.contains("not permitted"), "{source}");
    let texts = format!("{error} {error:?} {source}");
    assert!(!texts.contains("wrong-one"), "{texts}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_with_braces_is_told_at_the_start() {
    for prefix in ["{shop}:", "shop{", "}"] {
        // No server is needed to know it.
        let redis = Redis::url("redis://127.0.0.1:1").prefix(prefix);
        let error = Terrace::builder().tier("redis", redis).build().await.expect_err(prefix);
        let text = error.to_string();
        assert!(text.contains("braces") && text.contains(&format!("{prefix:?}")), "{text}");
    }
}
