//! A network on which nothing is in time: lines of the ledger come late, and in bursts.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use terrace::clock::{Clock as _, SystemClock};
use terrace_test::rig::{ChaosProxy, RedisServer};
use tokio::task::JoinSet;

use crate::source::Source;
use crate::support::{SECOND, count, is_soak, limit, ms, random, until};
use crate::testnode::Make;

const NODES: u64 = 4;
const KEYS: u64 = 100;

/// Longer than any play takes.
const PLAYING: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c11_nodes_agree_when_everything_is_late() {
    let truth = RedisServer::start().await.unwrap();
    let source = Source::of(&truth);
    let (updates, clock) = (count(2_000, 100_000), SystemClock::new());
    for run in 0..if is_soak() { 50 } else { count(2, 10) } {
        let mut random = random("late lines");
        let server = RedisServer::start().await.unwrap();
        let (mut nodes, mut proxies) = (Vec::new(), Vec::new());
        for _ in 0..NODES {
            let proxy = ChaosProxy::before(server.address()).await.unwrap();
            nodes.push(Arc::new(Make::over(&proxy.url(), &source).start().await));
            proxies.push(proxy);
        }
        for proxy in &proxies {
            proxy.to_server().delay(ms(0), ms(25));
            proxy.to_client().delay(ms(0), ms(25));
        }
        let mut playing = JoinSet::new();
        for (number, node) in (0..).zip(&nodes) {
            let node = Arc::clone(node);
            let seed = random.u64(..);
            let question = format!("play updates {seed} {updates} {KEYS} 250 {number}");
            playing.spawn(async move { node.ask(&question).await.unwrap().text });
        }
        let begun = clock.elapsed();
        let played = tokio::time::timeout(PLAYING, playing.join_all()).await.expect("it ends");
        // One that nobody answered in time takes the key's value away in the end.
        let settled: u64 = played.iter().map(|settled| settled.parse::<u64>().unwrap()).sum();
        println!("run {run}: {settled} of {} updates settled", NODES * updates);
        assert!(settled > KEYS, "run {run}: too few to disagree about");
        println!("run {run}: {:?}", clock.elapsed() - begun);

        // Quiet: the network stays as it is.
        tokio::time::sleep(limit(SECOND)).await;
        let mut seen = Vec::new();
        for node in &nodes {
            seen.push(node.get_all(0..KEYS).await);
        }
        let other = Arc::new(Make::over(&server.url(), &source).patient().start().await);
        seen.push(other.get_all(0..KEYS).await);
        // What was not answered in time is a miss, and says nothing of what is there.
        let is_somewhere = |key: usize| seen.iter().any(|versions| versions[key] > 0);
        let somewhere: Vec<_> =
            (0..).zip(0..seen[0].len()).filter(|at| is_somewhere(at.1)).collect();
        for (node, versions) in nodes.iter().zip(&mut seen) {
            for (key, at) in &somewhere {
                if versions[*at] == 0 {
                    let found = Cell::new(0);
                    until("an answer in time", async || {
                        found.set(node.get(*key).await.unwrap_or(0));
                        found.get() > 0
                    })
                    .await;
                    versions[*at] = found.get();
                }
            }
        }
        let there = seen[0].iter().filter(|version| **version > 0).count() as u64;
        println!("run {run}: {there} of {KEYS} keys have a value");
        for (key, first) in seen[0].iter().enumerate() {
            for (node, versions) in seen.iter().enumerate() {
                assert_eq!(
                    versions[key], *first,
                    "run {run}: key {key} at node {node} and at node 0"
                );
            }
        }
    }
}
