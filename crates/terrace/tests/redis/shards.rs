//! One server of a cluster is away, or is back with what it had long ago: the ledger lies elsewhere.

use std::time::Duration;

use terrace::Settled;
use terrace_test::rig::{Cluster, RedisServer};

use crate::support::{Node, cluster_of, limit, until, until_within};

/// A cluster without replicas, so that whoever is away is not replaced, and nobody is found to be
/// away so soon.
async fn unreplaced() -> Cluster {
    let hour = Duration::from_secs(3600);
    Cluster::builder().replicas(0).node_timeout(hour).start().await.unwrap()
}

/// Keys whose values do not lie where the ledger does, and the server that has them.
async fn apart(cluster: &Cluster) -> (Vec<String>, &RedisServer) {
    let slot = cluster.slot_of("terrace:{ledger}:lines").await.unwrap();
    let keeper = cluster.primary_of(slot).await.unwrap().port();
    let (mut keys, mut server) = (Vec::new(), None);
    for key in (0..).map(|number| number.to_string()) {
        let slot = cluster.slot_of(&format!("terrace:{{:texts:{key}}}:1:x")).await.unwrap();
        let owner = cluster.primary_of(slot).await.unwrap();
        if owner.port() != keeper && server.is_none_or(|s: &RedisServer| s.port() == owner.port()) {
            server = Some(owner);
            keys.push(key);
        }
        if keys.len() == 3 {
            break;
        }
    }
    (keys, server.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_shard_keeps_nobody_from_hearing_of_a_line() {
    let cluster = unreplaced().await;
    let (keys, server) = apart(&cluster).await;
    let a = Node::over(cluster_of(&cluster)).await;
    let b = Node::over(cluster_of(&cluster)).await;
    for key in &keys {
        assert_eq!(a.load(key, "old").await, "old");
        until("the other to share it", async || b.get(key).await.as_deref() == Some("old")).await;
    }
    server.pause().await.unwrap();
    let of_redis = |settled| match settled {
        Settled::Pending(tiers) => tiers.len() == 1,
        settled => panic!("{settled:?}: nobody can know that"),
    };
    assert!(of_redis(a.texts.invalidate(&keys[0]).await.unwrap()));
    a.texts.insert(&keys[1], "new".to_owned()).await.unwrap();
    assert!(of_redis(a.texts.invalidate(&keys[2]).await.unwrap()));
    for key in &keys {
        assert_eq!(a.load(key, "new").await, "new", "{key}: where it was invalidated, at once");
        let within = limit(Duration::from_secs(2));
        until_within(within, "the other to hear of it", async || b.load(key, "new").await == "new")
            .await;
    }
    server.resume().unwrap();
    until("nothing to be pending", async || a.terrace.stats().await.pending == 0).await;
    drop((a, b));
    let late = Node::over(cluster_of(&cluster)).await;
    let later = Node::over(cluster_of(&cluster)).await;
    for key in &keys {
        assert_eq!(late.load(key, "new").await, "new", "{key}: nothing is left of it");
        let is_shared = async || later.get(key).await.as_deref() == Some("new");
        until("what is loaded now to be shared", is_shared).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_back_with_old_values_serves_none_of_them() {
    let cluster = unreplaced().await;
    let (keys, server) = apart(&cluster).await;
    let a = Node::over(cluster_of(&cluster)).await;
    for key in &keys {
        a.texts.insert(key, "old".to_owned()).await.unwrap();
    }
    server.save().await.unwrap();
    for key in &keys {
        assert_eq!(a.texts.invalidate(key).await.unwrap(), Settled::Settled);
    }
    server.restart_from_saved().await.unwrap();
    cluster.wait_until_ok().await.unwrap();
    for key in &keys {
        let left =
            server.command(["KEYS", &format!("terrace:{{:texts:{key}}}:1:*")]).await.unwrap();
        assert_eq!(left.items().len(), 1, "it is back");
    }
    // Whoever knew of it need not be there any more.
    drop(a);
    let late = Node::over(cluster_of(&cluster)).await;
    for key in &keys {
        assert_eq!(late.load(key, "new").await, "new", "{key}");
    }
}
