//! A cluster moves slots, replaces primaries, and says where a key is.

use terrace_test::rig::{Cluster, Connection, RedisServer, Reply};

async fn set(server: &RedisServer, key: &str) {
    assert_eq!(server.command(["SET", key, key]).await.unwrap(), "OK");
}

fn code(reply: &Reply) -> Option<&str> {
    reply.error()?.split(' ').next()
}

#[tokio::test]
async fn a_killed_primary_is_replaced_by_its_replica() {
    let cluster = Cluster::start().await.unwrap();
    assert_eq!(cluster.nodes().len(), 6);
    let slot = cluster.slot_of("key").await.unwrap();
    assert_eq!(slot, 12_539);
    let first = cluster.primary_of(slot).await.unwrap();
    set(first, "key").await;
    assert_eq!(first.command(["WAIT", "1", "5000"]).await.unwrap(), "1");

    let old = cluster.kill_primary_of(slot).await.unwrap();
    assert_eq!(old.port(), first.port());
    cluster.wait_until_ok().await.unwrap();
    let new = cluster.primary_of(slot).await.unwrap();
    assert_ne!(new.port(), old.port());
    assert_eq!(new.command(["GET", "key"]).await.unwrap(), "key");

    old.restart().await.unwrap();
    cluster.wait_until_ok().await.unwrap();
    assert_eq!(cluster.primary_of(slot).await.unwrap().port(), new.port());
    assert_eq!(old.info("role").await.unwrap().as_deref(), Some("slave"));
}

#[tokio::test]
async fn valkey_moves_slots_too() {
    // In a task: all of it has to be able to move between threads.
    let task = tokio::spawn(async {
        let cluster = Cluster::builder().valkey().replicas(0).start().await.unwrap();
        let slot = cluster.slot_of("key").await.unwrap();
        let from = cluster.primary_of(slot).await.unwrap();
        let to = cluster.primary_of((slot + 8_192) % 16_384).await.unwrap();
        set(from, "key").await;
        cluster.move_slot(slot, to).await.unwrap();
        assert_eq!(to.command(["GET", "key"]).await.unwrap(), "key");
    });
    task.await.unwrap();
}

#[tokio::test]
async fn a_slot_moves_with_its_keys_and_can_stop_half_way() {
    let builder = Cluster::builder().replicas(0).behind_proxies().password("p");
    let cluster = builder.start().await.unwrap();
    let slot = cluster.slot_of("{key}1").await.unwrap();
    let from = cluster.primary_of(slot).await.unwrap();
    let to = cluster.primary_of((slot + 8_192) % 16_384).await.unwrap();
    assert_ne!(from.port(), to.port());
    set(from, "{key}1").await;
    set(from, "{key}2").await;

    cluster.begin_move(slot, to).await.unwrap();
    cluster.move_key("{key}1", to).await.unwrap();
    assert_eq!(from.command(["GET", "{key}2"]).await.unwrap(), "{key}2");
    let gone = from.command(["GET", "{key}1"]).await.unwrap();
    assert_eq!(code(&gone), Some("ASK"));
    let some = from.command(["MGET", "{key}1", "{key}2"]).await.unwrap();
    assert_eq!(code(&some), Some("TRYAGAIN"));

    cluster.finish_move(slot, to).await.unwrap();
    assert_eq!(cluster.primary_of(slot).await.unwrap().port(), to.port());
    for key in ["{key}1", "{key}2"] {
        assert_eq!(to.command(["GET", key]).await.unwrap(), key);
    }
    // Where clients are sent is where the proxy is.
    let proxy = cluster.proxy_of(to).unwrap();
    let moved = from.command(["GET", "{key}1"]).await.unwrap();
    assert_eq!(moved.error().unwrap(), format!("MOVED {slot} {}", proxy.address()));
    let mut client = Connection::to(proxy.address()).await.unwrap();
    assert_eq!(client.command(["AUTH", "p"]).await.unwrap(), "OK");
    assert_eq!(client.command(["GET", "{key}1"]).await.unwrap(), "{key}1");
    assert!(cluster.addresses().contains(&proxy.address()));
}
