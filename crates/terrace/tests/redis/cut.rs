//! The way to the ledger is cut, falls silent, or nobody is there to read: what was invalidated
//! meanwhile is not served for long, and what was not is not loaded again.

use std::ops::Range;
use std::time::Duration;

use terrace::clock::{Clock as _, SystemClock};
use terrace_test::rig::{ChaosProxy, RedisServer};

use crate::source::Source;
use crate::support::{SECOND, count, limit, ms, until, until_within};
use crate::testnode::{Make, TestNode};

const KEYS: u64 = 10_000;

/// Those that are invalidated.
const CHANGED: Range<u64> = 0..1_000;

/// A node that is on its own way to the server, and another one that invalidates.
struct Stage {
    source: Source,
    proxy: ChaosProxy,
    near: TestNode,
    far: TestNode,
    clock: SystemClock,
    _servers: [RedisServer; 2],
}

impl Stage {
    async fn new() -> Self {
        let (server, truth) =
            (RedisServer::start().await.unwrap(), RedisServer::start().await.unwrap());
        let source = Source::of(&truth);
        let proxy = ChaosProxy::before(server.address()).await.unwrap();
        let near = Make::over(&server.url(), &source).start().await;
        let far = Make::over(&proxy.url(), &source).start().await;
        Self { source, proxy, near, far, clock: SystemClock::new(), _servers: [server, truth] }
    }

    /// Brings the new version of what changes to the source, and invalidates the old one.
    async fn change(&self, version: u64) {
        self.source.write_all(CHANGED, version).await;
        self.near.remove_all(CHANGED).await;
    }

    /// Waits until memory of the far node has nothing older than `version`; returns how long that
    /// took from `since` on.
    async fn none_stale(&self, version: u64, since: Duration, within: Duration) -> Duration {
        until_within(within, "the node to hear of it", async || {
            self.far.held(CHANGED).await.iter().all(|held| *held == 0 || *held >= version)
        })
        .await;
        self.clock.elapsed() - since
    }

    /// Everything is read; returns how much was loaded, and how much was not in memory.
    async fn read_all(&self, version: u64) -> (u64, u64) {
        let (begun, missed) = (self.source.begun().await, self.far.memory_misses().await);
        let versions = self.far.load_all(0..KEYS).await;
        for key in CHANGED {
            assert_eq!(versions[key as usize], version, "key {key}");
        }
        (self.source.begun().await - begun, self.far.memory_misses().await - missed)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lines {
    Kept,
    Trimmed,
}

async fn cut(lines: Lines) {
    let stage = Stage::new().await;
    stage.far.load_all(0..KEYS).await;
    for round in 0..count(1, 10) {
        let version = round + 2;
        let stale = stage.far.held(CHANGED).await;
        assert!(stale.iter().all(|held| *held == version - 1), "everything is in memory");
        stage.proxy.refuse().await;
        stage.proxy.reset().await;
        let cut = stage.clock.elapsed();
        stage.change(version).await;
        if lines == Lines::Trimmed {
            // More than the ledger keeps.
            stage.near.remove_all(KEYS..KEYS + 70_000).await;
        }
        tokio::time::sleep((cut + 5 * SECOND).saturating_sub(stage.clock.elapsed())).await;
        assert_eq!(stage.far.held(CHANGED).await, stale, "it cannot have heard");
        stage.proxy.heal();
        let took = stage.none_stale(version, stage.clock.elapsed(), limit(SECOND)).await;
        let (loads, misses) = stage.read_all(version).await;
        println!("nothing stale {took:?} after the cut; {loads} loads, {misses} not in memory");
        match lines {
            Lines::Kept => assert!(loads.max(misses) <= 1_050, "{loads} loads, {misses} misses"),
            Lines::Trimmed => assert!(loads <= 1_000, "{loads} loads"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c4_what_was_said_during_a_cut_is_heard_after_it() {
    cut(Lines::Kept).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c4_what_was_said_during_a_cut_and_is_forgotten_is_not_trusted() {
    cut(Lines::Trimmed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c5_a_connection_that_goes_silent_is_noticed() {
    let stage = Stage::new().await;
    stage.far.load_all(CHANGED).await;
    for round in 0..count(1, 10) {
        let version = round + 2;
        stage.proxy.silence();
        let silent = stage.clock.elapsed();
        stage.change(version).await;
        assert!(stage.far.held(CHANGED).await.contains(&(version - 1)), "it cannot have heard");
        let took = stage.none_stale(version, silent, limit(ms(3_500))).await;
        println!("nothing stale {took:?} after the connections fell silent");
        let versions = stage.far.load_all(CHANGED).await;
        assert!(versions.iter().all(|found| *found == version), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c6_a_stopped_node_misses_a_flood() {
    let stage = Stage::new().await;
    for round in 0..count(1, 5) {
        let version = round + 2;
        stage.far.load_all(0..KEYS).await;
        stage.far.pause().await.unwrap();
        stage.change(version).await;
        assert_eq!(stage.near.say(&format!("flood {}", count(8, 64) << 20)).await, "done");
        stage.far.resume().unwrap();
        let took = stage.none_stale(version, stage.clock.elapsed(), limit(SECOND)).await;
        println!("nothing stale {took:?} after it went on");
        stage.read_all(version).await;
    }
}

/// Whoever cannot reach the server at all trusts memory for a while, and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c5_a_network_that_goes_silent_is_noticed() {
    let (server, truth) =
        (RedisServer::start().await.unwrap(), RedisServer::start().await.unwrap());
    let source = Source::of(&truth);
    let proxy = ChaosProxy::before(server.address()).await.unwrap();
    let near = Make::over(&server.url(), &source).start().await;
    let far = Make::over(&proxy.url(), &source).max_isolated(ms(3_000)).start().await;
    assert_eq!(far.load(1).await, 1);
    until("it to be in Redis", async || near.get(1).await == Some(1)).await;
    proxy.black_hole();
    let (clock, limit) = (SystemClock::new(), limit(5 * SECOND));
    source.write(1, 2).await;
    near.invalidate(1).await;
    until_within(limit, "memory to be distrusted", async || far.held(1..2).await == [0]).await;
    println!("memory was trusted for {:?}", clock.elapsed());
    assert_eq!(far.load(1).await, 2, "loads go on");
}
