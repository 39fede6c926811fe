//! Nodes whose clocks disagree, with each other and with the server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use terrace::clock::{Clock, SystemClock, WallTime};
use terrace::{Memory, Redis, Space, Terrace};
use terrace_test::rig::RedisServer;

use crate::support::until;

/// The machine's clock, set wrong.
#[derive(Debug)]
struct Skewed {
    right: SystemClock,
    ahead_seconds: i64,
}

impl Clock for Skewed {
    fn elapsed(&self) -> Duration {
        self.right.elapsed()
    }

    fn wall(&self) -> WallTime {
        self.right.wall().shifted(self.ahead_seconds * 1000)
    }
}

async fn node(server: &RedisServer, ahead_seconds: i64) -> (Terrace, Space<str, String>) {
    let terrace = Terrace::builder()
        .memory(Memory::bytes(1 << 20))
        .tier("redis", Redis::url(server.url()))
        .clock(Arc::new(Skewed { right: SystemClock::new(), ahead_seconds }))
        .build()
        .await
        .unwrap();
    let space = terrace.space::<str, String>("texts").ttl(TTL).jitter(0.0).build().unwrap();
    (terrace, space)
}

const TTL: Duration = Duration::from_secs(3);

/// How much longer or shorter a life may be than it was meant to be.
const OFF: Duration = Duration::from_secs(1);

const QUARTER: i64 = 15 * 60;
const DAY: i64 = 86_400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::disallowed_methods, reason = "what passes here is real time")]
async fn c10_clocks_that_differ_change_no_life() {
    let server = RedisServer::start().await.unwrap();
    let writers = [-DAY, -QUARTER, 0, QUARTER, DAY];
    let mut nodes = Vec::new();
    for ahead in writers {
        nodes.push(node(&server, ahead).await);
    }
    for (at, (_, writer)) in nodes.iter().enumerate() {
        let key = at.to_string();
        let written = Instant::now();
        writer.insert(&key, "value".to_owned()).await.unwrap();
        for (_, reader) in &nodes {
            let found = reader.get(&key).await.unwrap();
            assert!(
                found.is_some(),
                "what is {} s ahead wrote {:?} ago",
                writers[at],
                written.elapsed()
            );
        }
        for (reader, ahead) in nodes.iter().zip(writers) {
            until("it to expire", async || reader.1.get(&key).await.unwrap().is_none()).await;
            let lived = written.elapsed();
            let place = format!("written {} s ahead, read {ahead} s ahead", writers[at]);
            assert!(lived + OFF > TTL && lived < TTL + OFF, "{place}: it lived {lived:?}");
        }
    }
    // Whoever invalidates, whatever its clock says, everybody hears it.
    for (at, (_, writer)) in nodes.iter().enumerate() {
        let key = format!("gone-{at}");
        nodes[0].1.insert(&key, "value".to_owned()).await.unwrap();
        for (_, reader) in &nodes {
            assert!(reader.get(&key).await.unwrap().is_some());
        }
        let begun = Instant::now();
        writer.remove(&key).await.unwrap();
        for (_, reader) in &nodes {
            until("it to be gone", async || reader.get(&key).await.unwrap().is_none()).await;
        }
        assert!(begun.elapsed() < OFF, "an invalidation took {:?}", begun.elapsed());
    }
}
