//! Another server becomes the primary, and may not know what the one before did last.

use std::time::Duration;

use terrace::{Memory, Redis, Settled, Terrace};
use terrace_test::rig::{Cluster, Sentinel};

use crate::support::{HOUR, Node, cluster_of, primary_of, until};

fn rounds() -> usize {
    if std::env::var_os("TERRACE_FULL").is_some() { 50 } else { 2 }
}

/// Keys of one round.
const KEYS: usize = 50;

/// Invalidates all keys on one node, kills the primary at once, and asks both nodes until they agree.
async fn invalidate_and_kill<Fut: Future<Output = ()>>(
    a: &Node,
    b: &Node,
    round: usize,
    kill: impl AsyncFnOnce() -> Fut,
) {
    let key = |number: usize| format!("{round}-{number}");
    let old = format!("old-{round}");
    for number in 0..KEYS {
        assert_eq!(a.load(&key(number), &old).await, old);
        assert_eq!(b.load(&key(number), &old).await, old);
    }
    for number in 0..KEYS {
        a.texts.invalidate(&key(number)).await.unwrap();
    }
    let failover = kill().await;
    // The source has changed before: whoever reads now reads what is new.
    let new = format!("new-{round}");
    for number in 0..KEYS {
        assert_eq!(a.load(&key(number), &new).await, new, "where it was invalidated: at once");
    }
    failover.await;
    for number in 0..KEYS {
        let key = key(number);
        until("everybody to hear of it", async || b.load(&key, &new).await == new).await;
        assert_eq!(b.load(&key, &new).await, new, "{key}: what was old does not come back");
        assert_eq!(a.load(&key, &new).await, new, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c7_a_failover_loses_no_invalidation() {
    for round in 0..rounds() {
        let sentinel = Sentinel::start().await.unwrap();
        let redis = primary_of(&sentinel);
        let (a, b) = (Node::over(redis.clone()).await, Node::over(redis.clone()).await);
        let kill = async || {
            let old = sentinel.kill_primary().await.unwrap();
            let sentinel = &sentinel;
            async move {
                sentinel.wait_for_new_primary(old).await.unwrap();
            }
        };
        invalidate_and_kill(&a, &b, round, kill).await;
        let late = Node::over(redis).await;
        for number in 0..KEYS {
            let new = format!("new-{round}");
            assert_eq!(late.load(&format!("{round}-{number}"), &new).await, new);
        }
        until("values to be shared again", async || {
            let value = format!("{:?}", std::thread::current().id());
            a.texts.insert("shared", value.clone()).await.unwrap();
            b.get("shared").await == Some(value)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_dies_takes_no_invalidation_with_it() {
    let cluster = Cluster::start().await.unwrap();
    let redis = cluster_of(&cluster);
    let (a, b) = (Node::over(redis.clone()).await, Node::over(redis.clone()).await);
    // The shard with the ledger, and one without.
    for (round, slot_of) in
        ["terrace:{ledger}:lines", "terrace:{:texts:1-1}:1:x"].iter().enumerate()
    {
        let slot = cluster.slot_of(slot_of).await.unwrap();
        let kill = async || {
            let old = cluster.kill_primary_of(slot).await.unwrap();
            let cluster = &cluster;
            async move {
                cluster.wait_until_ok().await.unwrap();
                old.restart().await.unwrap();
                cluster.wait_until_ok().await.unwrap();
            }
        };
        invalidate_and_kill(&a, &b, round, kill).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_under_a_running_cache() {
    let cluster = Cluster::start().await.unwrap();
    let a = Node::over(cluster_of(&cluster)).await;
    let b = Node::over(cluster_of(&cluster)).await;
    let slot = cluster.slot_of("terrace:{ledger}:lines").await.unwrap();
    let owner = cluster.primary_of(slot).await.unwrap().port();
    let other = cluster.nodes().into_iter().find(|node| node.port() != owner).unwrap();
    let mut primaries = Vec::new();
    for slot in [0, 8000, 16_000] {
        primaries.push(cluster.primary_of(slot).await.unwrap());
    }
    let to = primaries.into_iter().find(|node| node.port() != owner).unwrap_or(other);
    a.load("before", "1").await;
    cluster.move_slot(slot, to).await.unwrap();
    assert_eq!(a.load("after", "1").await, "1");
    until("the line to be written where the ledger is now", async || {
        a.texts.invalidate("before").await.unwrap() == Settled::Settled
    })
    .await;
    until("the other to hear of it", async || b.get("before").await.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_server_before_a_shared_one() {
    let (local, shared) = (
        terrace_test::rig::RedisServer::start().await.unwrap(),
        terrace_test::rig::RedisServer::start().await.unwrap(),
    );
    let build = async || {
        let terrace = Terrace::builder()
            .memory(Memory::bytes(1 << 20))
            .tier("near", Redis::url(local.url()))
            .tier("far", Redis::url(shared.url()))
            .build()
            .await
            .unwrap();
        let texts = terrace.space::<str, String>("texts").ttl(HOUR).build().unwrap();
        (terrace, texts)
    };
    let ((a, texts_a), (_b, texts_b)) = (build().await, build().await);
    texts_a.insert("key", "old".to_owned()).await.unwrap();
    assert_eq!(texts_b.get("key").await.unwrap().unwrap().as_str(), "old");
    for server in [&local, &shared] {
        let values = server.command(["KEYS", "terrace:{:texts:key}:1:*"]).await.unwrap();
        assert_eq!(values.items().len(), 1, "both hold it");
    }
    assert!(a.invalidate("nothing").await.is_ok());
    assert_eq!(texts_a.invalidate("key").await.unwrap(), Settled::Settled);
    let gone = async || texts_b.get("key").await.unwrap().is_none();
    until("the other to hear of it, and to find it in neither", gone).await;
    tokio::time::timeout(Duration::from_secs(5), async {
        let load = |_| async { Ok::<_, std::io::Error>("new".to_owned()) };
        assert_eq!(texts_b.get_or_load("key", load).await.unwrap().as_str(), "new");
    })
    .await
    .unwrap();
}
