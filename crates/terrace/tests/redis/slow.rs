//! The server is slow and not dead: what it says is right, and comes late.

use std::sync::Arc;
use std::time::{Duration, Instant};

use terrace::{Breaker, BreakerState, Memory, Redis, Terrace, Tier};
use terrace_test::rig::{ChaosProxy, RedisServer};

use crate::support::{HOUR, Node, breaker, count, limit};

/// What a network can do to replies.
#[derive(Clone, Copy, Debug)]
enum Slowness {
    /// Each comes 200 ms later.
    Late,
    /// 1,000 bytes of them a second.
    Trickle,
}

/// Reads of what only Redis has, until the breaker is open.
async fn opens(slowness: Slowness, deadlines: Option<Duration>) {
    let server = RedisServer::start().await.unwrap();
    let proxy = ChaosProxy::before(server.address()).await.unwrap();
    let other = Node::at(server.url()).await;
    for key in 0..400 {
        other.texts.insert(&key.to_string(), format!("{key:0>40}")).await.unwrap();
    }
    let mut tier = Tier::from(Redis::url(proxy.url()));
    if let Some(deadline) = deadlines {
        let slow = Duration::from_millis(50);
        tier = tier.deadlines(deadline, deadline).breaker(Breaker::default().slow(slow, slow));
    }
    let memory = Memory::bytes(1 << 20);
    let terrace = Terrace::builder().memory(memory).tier("redis", tier).build().await.unwrap();
    let texts = terrace.space::<str, String>("texts").ttl(HOUR).build().unwrap();
    assert_eq!(texts.get("0").await.unwrap().unwrap().as_str(), format!("{:0>40}", 0));
    assert_eq!(breaker(&terrace).await, BreakerState::Closed);

    match slowness {
        Slowness::Late => proxy.to_client().delay(Duration::from_millis(200), Duration::ZERO),
        Slowness::Trickle => proxy.to_client().throttle(1_000),
    }
    let begun = Instant::now();
    let readers = (0..8).map(|reader| {
        let (texts, terrace) = (texts.clone(), terrace.clone());
        tokio::spawn(async move {
            for round in 0.. {
                let key = 1 + (round * 8 + reader) % 399;
                let value = texts.get(&key.to_string()).await.unwrap();
                assert!(value.is_none_or(|value| value.as_str() == format!("{key:0>40}")));
                if breaker(&terrace).await != BreakerState::Closed {
                    return begun.elapsed();
                }
            }
            unreachable!("there is no end")
        })
    });
    let mut opened = Duration::MAX;
    for reader in readers.collect::<Vec<_>>() {
        opened = opened.min(reader.await.unwrap());
    }
    let stats = terrace.stats().await;
    let (guard, traffic) = (&stats.tiers[1].guard, &stats.tiers[1].traffic);
    println!("{slowness:?}, {deadlines:?}: {opened:?}, {} errors, {guard:?}", traffic.errors);
    assert!(opened <= limit(Duration::from_secs(2)), "{slowness:?}: opened after {opened:?}");
    if deadlines.is_some() {
        assert_eq!(traffic.errors, 0, "{slowness:?}: nothing failed, it was slow");
        assert!(guard.slow >= 4, "{slowness:?}: {guard:?}");
    }
    // While it is left alone nobody waits for it.
    let begun = Instant::now();
    let texts = Arc::new(texts);
    let load = |_| async { Ok::<_, std::io::Error>("loaded".to_owned()) };
    assert_eq!(texts.get_or_load("nowhere", load).await.unwrap().as_str(), "loaded");
    println!("a miss took {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r2_a_server_that_is_slow() {
    for _ in 0..count(1, 10) {
        opens(Slowness::Late, None).await;
        // Each of the answers comes in time, and is too late to be of use.
        opens(Slowness::Late, Some(Duration::from_secs(5))).await;
        opens(Slowness::Trickle, None).await;
        opens(Slowness::Trickle, Some(Duration::from_secs(5))).await;
    }
}
