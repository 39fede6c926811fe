//! What servers say of themselves, and what endangers a cache.

use terrace::Redis;
use terrace_test::rig::{Cluster, RedisServer};

use crate::support::{Node, cluster_of, until};

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
    let cluster = Cluster::start().await.unwrap();
    let node = Node::over(cluster_of(&cluster)).await;
    let health = node.terrace.health().await;
    let nodes = &health[0].health.nodes;
    assert_eq!(nodes.len(), 3, "{health:?}");
    assert!(nodes.iter().all(|node| node.is_up && !node.facts.is_empty()), "{nodes:?}");
}

const LIMIT: u64 = 40 << 20;

async fn keeps_to_the_limit(server: &RedisServer) -> bool {
    server.info("maxmemory").await.unwrap() == Some(LIMIT.to_string())
        && server.info("maxmemory_policy").await.unwrap().as_deref() == Some("volatile-lfu")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_are_limited_when_that_is_asked_for() {
    let server = RedisServer::start().await.unwrap();
    let left_alone = Node::at(server.url()).await;
    left_alone.load("key", "value").await;
    assert_eq!(server.info("maxmemory").await.unwrap().as_deref(), Some("0"));
    // Whatever else they may do.
    let may_set = ["ACL", "SETUSER", "default", "+config|set"];
    server.expect(may_set).await.unwrap();
    let _node = Node::over(Redis::url(server.url()).max_bytes(LIMIT)).await;
    until("it to keep to the limit", || keeps_to_the_limit(&server)).await;

    let cluster = Cluster::start().await.unwrap();
    for node in cluster.nodes() {
        node.expect(may_set).await.unwrap();
    }
    let _node = Node::over(cluster_of(&cluster).max_bytes(LIMIT)).await;
    for slot in [0, 8_000, 16_000] {
        let primary = cluster.primary_of(slot).await.unwrap();
        until("each primary to keep to the limit", || keeps_to_the_limit(primary)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_may_not_be_set_is_said_to_be_another_one() {
    let redis = Redis::url("redis://unused");
    let rights = |redis: &Redis| {
        let command = redis.acl("limited");
        command.strip_prefix("ACL SETUSER limited reset ").unwrap().replace("PASSWORD", "secret")
    };
    let server = RedisServer::start().await.unwrap();
    let grant = async |rights: &str| {
        let words: Vec<_> =
            ["ACL", "SETUSER", "limited", "reset"].into_iter().chain(rights.split(' ')).collect();
        server.expect(words).await.unwrap();
    };
    grant(&rights(&redis)).await;
    let node = Node::over(Redis::url(server.url_as("limited", "secret")).max_bytes(LIMIT)).await;
    until("it to be said", async || {
        let health = node.terrace.health().await;
        health[0].health.nodes[0].warnings.iter().any(|warning| warning.contains("asked for"))
    })
    .await;
    assert_eq!(node.load("key", "value").await, "value");
    assert_eq!(server.info("maxmemory").await.unwrap().as_deref(), Some("0"));

    grant(&rights(&redis.max_bytes(LIMIT))).await;
    until("it to keep to the limit", async || {
        // Whoever asks for the health of a server has it looked at again.
        node.terrace.health().await;
        keeps_to_the_limit(&server).await
    })
    .await;
}
