//! What servers say of themselves, and what endangers a cache.

use terrace_test::rig::RedisServer;

use crate::support::{Node, cluster_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_says_how_it_is() {
    let server = RedisServer::builder()
        .config("maxmemory", "50mb")
        .config("maxmemory-policy", "noeviction")
        .start()
        .await
        .unwrap();
    let node = Node::at(server.url()).await;
    node.load("key", "value").await;
    let health = node.terrace.health().await;
    let [redis] = health.as_slice() else { panic!("one tier below memory: {health:?}") };
    assert_eq!((&*redis.tier, redis.health.nodes.len()), ("redis", 1));
    let server_health = &redis.health.nodes[0];
    assert!(server_health.is_up && !server_health.latency.is_zero(), "{server_health:?}");
    let fact = |wanted| {
        let facts = server_health.facts.iter();
        facts.clone().find(|(name, _)| *name == wanted).map(|(_, value)| value.as_str())
    };
    assert_eq!(fact("memory limit"), Some("52428800"));
    assert_eq!(fact("eviction"), Some("noeviction"));
    assert_eq!(fact("role"), Some("master"));
    for name in ["version", "memory", "clients", "hit rate", "last snapshot"] {
        assert!(fact(name).is_some(), "{name} is missing in {server_health:?}");
    }
    let warned = server_health.warnings.join("\n");
    assert!(warned.contains("set maxmemory-policy to volatile-lfu"), "{warned}");

    server.kill().unwrap();
    let health = node.terrace.health().await;
    let nodes = &health[0].health.nodes;
    assert!(health[0].error.is_some() || nodes.iter().all(|node| !node.is_up), "{health:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_primary_of_a_cluster_says_how_it_is() {
    let cluster = terrace_test::rig::Cluster::start().await.unwrap();
    let node = Node::over(cluster_of(&cluster)).await;
    let health = node.terrace.health().await;
    let nodes = &health[0].health.nodes;
    assert_eq!(nodes.len(), 3, "{health:?}");
    assert!(nodes.iter().all(|node| node.is_up && !node.facts.is_empty()), "{nodes:?}");
}
