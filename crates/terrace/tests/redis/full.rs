//! The server has no room left, and drops nothing to make some.

use terrace_test::rig::RedisServer;

use crate::support::{Node, count};

/// Of a value: what cannot be compressed.
const BYTES: usize = 20_000;

fn value(key: usize) -> String {
    let mut random = fastrand::Rng::with_seed(key as u64);
    (0..BYTES).map(|_| random.alphanumeric()).collect()
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
    crate::support::until("every write to be count", async || {
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

    // What cannot be told to others is pending, and true here at once.
    let (old, new) = (value(0), value(1));
    assert_eq!(node.load("0", "nobody asks").await, old);
    let settled = node.texts.insert("0", new.clone()).await.unwrap();
    assert!(node.get("0").await.is_none_or(|text| text == new), "{settled:?}");
    server.expect(["CONFIG", "SET", "maxmemory", "0"]).await.unwrap();
    crate::support::until("it to be of use again", async || {
        node.texts.insert("0", new.clone()).await.unwrap() == terrace::Settled::Settled
            && other.get("0").await.as_ref() == Some(&new)
    })
    .await;
}
