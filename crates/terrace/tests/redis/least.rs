//! The user may do what this tier needs, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use terrace::authority::Authority;
use terrace::store::Store;
use terrace::{Redis, RedisStore, Settled};
use terrace_test::rig::{RedisServer, Reply, without_scripts};
use terrace_test::{ManualClock, conformance};

use crate::support::{Node, until};

const PASSWORD: &str = "a-password";

/// A server on which the user `terrace` is as the tier describes it, or has all but scripts of that.
async fn server(with_scripts: bool) -> RedisServer {
    // With a user of its own, the rig may do everything whatever becomes of the others.
    let server = RedisServer::builder().user("somebody", "off").start().await.unwrap();
    grant(&server, &Redis::url(server.url()), with_scripts).await;
    server
}

async fn grant(server: &RedisServer, redis: &Redis, with_scripts: bool) {
    let rights = redis.acl("terrace").replace("PASSWORD", PASSWORD);
    let rights = rights.split(' ').filter(|right| with_scripts || !SCRIPTS.contains(right));
    server.expect(rights).await.unwrap();
}

/// What is left out of the rights where scripts are forbidden.
const SCRIPTS: [&str; 2] = ["+evalsha", "+script|load"];

fn tier(server: &RedisServer) -> Redis {
    Redis::url(server.url_as("terrace", PASSWORD))
}

/// Commands and keys that the server has denied, scripts left out where they are forbidden.
async fn denied(server: &RedisServer, with_scripts: bool) -> Vec<String> {
    let log = server.expect(["ACL", "LOG"]).await.unwrap();
    // That scripts are forbidden is found out by trying.
    let is_odd = |entry: &&Reply| entry.field("object").as_deref() != Some("evalsha");
    let items = log.items();
    let odd = items.iter().filter(|entry| with_scripts || is_odd(entry));
    odd.map(|entry| format!("{entry:?}")).collect()
}

fn store(redis: Redis) -> Arc<RedisStore> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("terrace:{}:", MADE.fetch_add(1, Ordering::Relaxed));
    Arc::new(redis.prefix(prefix).told_time().open(Arc::new(ManualClock::new())).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x15_the_kits_with_the_least_rights() {
    the_kits(!without_scripts()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x15_the_kits_with_the_least_rights_without_scripts() {
    the_kits(false).await;
}

async fn the_kits(with_scripts: bool) {
    let server = server(with_scripts).await;
    conformance::store(|| async { store(tier(&server)) as Arc<dyn Store> }).await;
    conformance::authority(|| async { store(tier(&server)) as Arc<dyn Authority> }).await;
    assert_eq!(denied(&server, with_scripts).await, Vec::<String>::new(), "nothing is denied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x15_a_fleet_with_the_least_rights() {
    a_fleet(!without_scripts()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x15_a_fleet_with_the_least_rights_without_scripts() {
    a_fleet(false).await;
}

async fn a_fleet(with_scripts: bool) {
    let server = server(with_scripts).await;
    let (a, b) = (Node::over(tier(&server)).await, Node::over(tier(&server)).await);
    a.texts.insert("LSZH", "old".to_owned()).tags(["country:CH"]).await.unwrap();
    assert_eq!(b.load("LSZH", "nobody asks").await, "old");
    assert_eq!(b.terrace.invalidate_tag("country:CH").await.unwrap(), Settled::Settled);
    until("the others to hear of it", async || a.get("LSZH").await.is_none()).await;
    assert_eq!(a.load("LSZH", "new").await, "new");
    let many = a.texts.get_many(["LSZH", "LSGG"]).await.unwrap();
    assert_eq!(many.iter().flatten().count(), 1);
    assert!(b.texts.insert_if_absent("LSGG", "Geneva".to_owned()).await.unwrap());
    assert!(b.texts.remove("LSGG").await.unwrap());
    let health = a.terrace.health().await;
    assert!(health[0].error.is_none() && health[0].health.nodes[0].is_up, "{health:?}");
    assert!(!health[0].health.nodes[0].facts.is_empty(), "{health:?}");
    assert!(a.terrace.stats().await.tiers[1].entries > 0);
    assert_eq!(b.texts.clear().await.unwrap(), Settled::Settled);
    until("the others to hear of it", async || a.get("LSZH").await.is_none()).await;
    assert_eq!(denied(&server, with_scripts).await, Vec::<String>::new(), "nothing is denied");
}
