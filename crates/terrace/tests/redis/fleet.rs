//! Nodes of a fleet share values, loads and invalidations.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use terrace_test::rig::RedisServer;

use crate::support::{Node, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_loads_others_find() {
    let server = RedisServer::start().await.unwrap();
    let (a, b) = (Node::at(server.url()).await, Node::at(server.url()).await);
    assert_eq!(a.load("LSZH", "Zurich").await, "Zurich");
    assert_eq!(b.load("LSZH", "nobody asks").await, "Zurich");
    assert_eq!(b.get("LSGG").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_invalidates_others_forget() {
    let server = RedisServer::start().await.unwrap();
    let (a, b) = (Node::at(server.url()).await, Node::at(server.url()).await);
    for change in ["remove", "insert", "tag", "clear"] {
        a.texts.insert("LSZH", "old".to_owned()).tags(["country:CH"]).await.unwrap();
        assert_eq!(b.load("LSZH", "nobody asks").await, "old", "{change}");
        match change {
            "remove" => drop(a.texts.remove("LSZH").await.unwrap()),
            "insert" => drop(a.texts.insert("LSZH", "new".to_owned()).await.unwrap()),
            "tag" => drop(a.terrace.invalidate_tag("country:CH").await.unwrap()),
            _ => drop(a.texts.clear().await.unwrap()),
        }
        let expected = (change == "insert").then(|| "new".to_owned());
        assert_eq!(a.get("LSZH").await, expected, "{change}: at once where it was asked for");
        until("the others to hear of it", async || b.get("LSZH").await == expected).await;
        a.texts.remove("LSZH").await.unwrap();
        until("the others to hear of it", async || b.get("LSZH").await.is_none()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_loads_once() {
    let server = RedisServer::start().await.unwrap();
    let nodes = [(); 4].map(|()| Node::at(server.url()));
    let mut tasks = Vec::new();
    let loads = Arc::new(AtomicU32::new(0));
    for node in nodes {
        let node = Arc::new(node.await);
        for _ in 0..50 {
            let (node, loads) = (Arc::clone(&node), Arc::clone(&loads));
            tasks.push(tokio::spawn(async move {
                let load = move |_| async move {
                    loads.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    Ok::<_, std::io::Error>("Zurich".to_owned())
                };
                node.texts.get_or_load("LSZH", load).await.unwrap().to_string()
            }));
        }
    }
    for task in tasks {
        assert_eq!(task.await.unwrap(), "Zurich");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1, "one load in the whole fleet");
}
