//! The server has no room left, and drops nothing to make some.

use terrace::Settled;
use terrace_test::rig::{Cluster, RedisServer, without_scripts};

use crate::support::{Node, cluster_of, count, until};

/// Of a value: what cannot be compressed.
const BYTES: usize = 20_000;

fn value(key: usize) -> String {
    let mut random = fastrand::Rng::with_seed(key as u64);
    (0..BYTES).map(|_| random.alphanumeric()).collect()
}

/// On a server that is full.
async fn stale_can_be_named(node: &Node, other: &Node, key: &str) {
    let settled = node.texts.invalidate(key).await.unwrap();
    if without_scripts() {
        // Such a server refuses any transaction that needs memory: it is true here, and told later.
        assert!(!settled.is_settled());
        assert_eq!(node.get(key).await, None);
        return;
    }
    assert_eq!(settled, Settled::Settled);
    until("the other to hear of it", async || other.get(key).await.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r5_a_server_that_is_full() {
    let writes = count(500, 10_000);
    let server = RedisServer::builder()
        .config("maxmemory", format!("{}", 2_000_000 + writes * BYTES / 4))
        .config("maxmemory-policy", "noeviction")
        .start()
        .await
        .unwrap();
    let node = Node::at(server.url()).await;
    for key in 0..writes {
        let (key, value) = (key.to_string(), value(key));
        assert_eq!(node.load(&key, &value).await, value, "{key}: loads go on");
    }
    // What is loaded is stored below after its callers have it.
    until("every write to be count", async || {
        let traffic = node.terrace.stats().await.tiers[1].traffic.clone();
        traffic.writes + traffic.errors + traffic.refused >= writes as u64
    })
    .await;
    let traffic = node.terrace.stats().await.tiers[1].traffic.clone();
    let (written, dropped) = (traffic.writes, traffic.errors + traffic.refused);
    println!("{written} written, {dropped} dropped: {traffic:?}");
    assert!(written > 50, "there was room at first: {traffic:?}");
    assert_eq!(written + dropped, writes as u64, "each write is count once: {traffic:?}");
    assert!(dropped > writes as u64 / 2, "there was no room for all: {traffic:?}");
    let refused = server.info("errorstat_OOM").await.unwrap();
    assert!(refused.is_some(), "the server has refused something");

    // What it has is answered, to others too.
    let other = Node::at(server.url()).await;
    let mut found = 0;
    for key in 0..writes {
        if let Some(text) = other.get(&key.to_string()).await {
            assert_eq!(text, value(key));
            found += 1;
        }
    }
    assert_eq!(found, written, "what was count as written is there");

    // What is stale can be named all the same, and is gone everywhere.
    let full = server.command(["SET", "more", &value(1)]).await.unwrap();
    assert!(full.error().is_some_and(|error| error.contains("OOM")), "{full:?}");
    let mut named = 0;
    for key in (0..writes).take(100) {
        let key = key.to_string();
        let had = other.get(&key).await.is_some();
        stale_can_be_named(&node, &other, &key).await;
        named += u32::from(had);
    }
    assert!(named > 10, "some of them were there");
    server.expect(["CONFIG", "SET", "maxmemory", "0"]).await.unwrap();
    let new = value(1);
    until("it to be of use again", async || {
        node.texts.insert("0", new.clone()).await.unwrap() == Settled::Settled
            && other.get("0").await.as_ref() == Some(&new)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stale_can_be_named_on_a_cluster_that_is_full() {
    let cluster = Cluster::start().await.unwrap();
    let (node, other) =
        (Node::over(cluster_of(&cluster)).await, Node::over(cluster_of(&cluster)).await);
    for key in 0..30 {
        node.texts.insert(&key.to_string(), value(key)).await.unwrap();
        assert_eq!(other.get(&key.to_string()).await, Some(value(key)));
    }
    for server in cluster.nodes() {
        server.expect(["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await.unwrap();
        server.expect(["CONFIG", "SET", "maxmemory", "1"]).await.unwrap();
    }
    for key in 0..30 {
        let key = key.to_string();
        stale_can_be_named(&node, &other, &key).await;
    }
}
