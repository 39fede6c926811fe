//! Sentinels find out that a primary has gone, and agree on another one.

use std::time::Duration;

use terrace_test::rig::{ChaosProxy, Connection, RedisServer, Sentinel, wait_until};

const LATE: Duration = Duration::from_secs(20);

async fn set(server: &RedisServer, value: &str) {
    assert_eq!(server.command(["SET", "key", value]).await.unwrap(), "OK");
}

async fn is_eventually(server: &RedisServer, value: &str) {
    let has = async || server.command(["GET", "key"]).await.is_ok_and(|reply| reply == value);
    wait_until(format!("{value} at {}", server.address()), LATE, has).await.unwrap();
}

/// What a client of the sentinels is told.
async fn told_address(set: &Sentinel) -> String {
    let address = set.sentinel_addresses().pop().unwrap();
    let mut sentinel = Connection::to(address).await.unwrap();
    let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", set.name()];
    let reply = sentinel.command(question).await.unwrap();
    let parts: Vec<_> = reply.items().iter().map(|part| part.text().unwrap()).collect();
    parts.join(":")
}

#[tokio::test]
async fn a_killed_primary_is_replaced_and_comes_back_as_a_replica() {
    let sentinels = Sentinel::start().await.unwrap();
    assert_eq!((sentinels.servers().len(), sentinels.sentinel_addresses().len()), (3, 3));
    let first = sentinels.primary().await.unwrap();
    set(first, "1").await;
    for server in sentinels.servers() {
        is_eventually(server, "1").await;
    }

    let old = sentinels.kill_primary().await.unwrap();
    assert_eq!(old.port(), first.port());
    let new = sentinels.wait_for_new_primary(old).await.unwrap();
    assert_ne!(new.port(), old.port());
    assert_eq!(told_address(&sentinels).await, new.address().to_string());
    set(new, "2").await;

    old.restart().await.unwrap();
    is_eventually(old, "2").await;
    sentinels.wait_until_ok().await.unwrap();
    let readonly = old.command(["SET", "key", "3"]).await.unwrap();
    let is_refused = readonly.error().is_some_and(|error| error.starts_with("READONLY"));
    assert!(is_refused, "{readonly:?}\n{}", sentinels.sentinels()[0].log());
}

#[tokio::test]
async fn valkey_fails_over_too() {
    // In a task: all of it has to be able to move between threads.
    let task = tokio::spawn(async {
        let sentinels = Sentinel::builder().valkey().replicas(1).start().await.unwrap();
        let old = sentinels.kill_primary().await.unwrap();
        let new = sentinels.wait_for_new_primary(old).await.unwrap();
        set(new, "1").await;
    });
    task.await.unwrap();
}

#[tokio::test]
async fn a_primary_behind_a_proxy_that_falls_silent_is_replaced() {
    let sentinels = Sentinel::builder().behind_proxies().password("p").start().await.unwrap();
    let old = sentinels.primary().await.unwrap();
    let proxy = sentinels.proxy_of(old).unwrap();
    assert_eq!(told_address(&sentinels).await, proxy.address().to_string());
    set(old, "1").await;
    for server in sentinels.servers() {
        is_eventually(server, "1").await;
    }

    proxy.black_hole();
    let new = sentinels.wait_for_new_primary(old).await.unwrap();
    let announced = sentinels.proxy_of(new).map(ChaosProxy::address).unwrap();
    assert_eq!(told_address(&sentinels).await, announced.to_string());
    set(new, "2").await;
    assert_eq!(old.command(["GET", "key"]).await.unwrap(), "1", "it knows nothing of it");
    set(old, "3").await;

    proxy.heal();
    proxy.reset().await;
    is_eventually(old, "2").await;
}
