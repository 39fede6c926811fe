//! The server has no connections left, and half of those that there are answer nothing.

use std::time::Duration;

use futures_util::future::join_all;
use terrace_test::rig::{ChaosProxy, Connection, RedisServer};

use crate::source::Source;
use crate::support::{count, limit, until};
use crate::testnode::Make;

/// Of reads and of writes: a call that asks Redis for both takes no longer.
const DEADLINES: Duration = Duration::from_millis(100 + 250);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r7_a_server_that_runs_out_of_connections() {
    const SLICE: Duration = Duration::from_secs(5);
    let (nodes, slices) = count((3, 1), (8, 12));
    let server = RedisServer::builder().config("maxclients", "10").start().await.unwrap();
    let truth = RedisServer::start().await.unwrap();
    let source = Source::of(&truth);
    let proxy = ChaosProxy::before(server.address()).await.unwrap();
    // Whoever raises the limit in the end is in before there is none left.
    let mut operator = Connection::with_all_rights(server.address()).await.unwrap();
    let mut idle = Vec::new();
    // Everybody finds it crowded: some are let in, some are sent away.
    for _ in 0..count(5, 0) {
        idle.push(Connection::to(server.address()).await.unwrap());
    }
    let mut fleet = Vec::new();
    for number in 0..nodes {
        let url = if number % 2 == 0 { server.url() } else { proxy.url() };
        fleet.push(Make::over(&url, &source).start().await);
    }
    proxy.to_client().black_hole();
    let (mut calls, mut longest) = (0, Duration::ZERO);
    for slice in 1..=slices {
        // What nobody has loaded before.
        let first = |node: u64| (node + 100 * slice) * 100_000_000;
        let busy = (0..)
            .zip(&fleet)
            .map(|(number, node)| node.busy(SLICE, 8, (1, 5), first(number), false));
        for (made, longest_of_it) in join_all(busy).await {
            calls += made;
            longest = longest.max(longest_of_it);
        }
    }
    let rejected = server.info("rejected_connections").await;
    println!("{calls} calls, none longer than {longest:?}; rejected: {rejected:?}");
    assert!(longest <= limit(DEADLINES), "somebody waited for {longest:?}");
    assert!(calls > 1000, "callers went on: {calls}");

    proxy.heal();
    drop(idle);
    let raised = operator.command(["CONFIG", "SET", "maxclients", "1000"]).await;
    assert_eq!(raised.unwrap(), "OK");
    // What one of them invalidates the others hear of, now that all are let in.
    for (key, node) in (1..).zip(&fleet) {
        for other in &fleet {
            assert_eq!(other.load(key).await, 1);
        }
        until("everybody to be let in", async || {
            source.write(key, 2).await;
            node.say(&format!("invalidate {key}")).await;
            join_all(fleet.iter().map(|other| other.load(key)))
                .await
                .iter()
                .all(|version| *version == 2)
        })
        .await;
    }
}
