//! What one node invalidates while another is cut off lies on the other's disk still: it does not
//! come back from there.

use tempfile::TempDir;
use terrace::clock::{Clock as _, SystemClock};
use terrace_test::rig::{ChaosProxy, RedisServer};

use crate::source::Source;
use crate::support::{SECOND, limit, ms, until, until_within};
use crate::testnode::{Make, TestNode};

const KEY: u64 = 1;
const OLD: u64 = 1;
const NEW: u64 = 2;

/// A node with a disk behind a network of its own, and another node that invalidates.
struct Stage {
    source: Source,
    proxy: ChaosProxy,
    near: TestNode,
    make: Make,
    far: TestNode,
    _kept: (TempDir, [RedisServer; 2]),
}

impl Stage {
    /// The old value is in every tier of both, and the far node is cut off when it dies.
    async fn cut_off(is_above: bool, shape: impl FnOnce(Make) -> Make, cut: Cut) -> Self {
        let (server, truth) =
            (RedisServer::start().await.unwrap(), RedisServer::start().await.unwrap());
        let (source, directory) = (Source::of(&truth), tempfile::tempdir().unwrap());
        let proxy = ChaosProxy::before(server.address()).await.unwrap();
        let near = Make::over(&server.url(), &source).start().await;
        let make = shape(Make::over(&proxy.url(), &source).disk(directory.path(), is_above));
        let far = make.start().await;
        assert_eq!(far.load(KEY).await, OLD);
        let disk = if is_above { 1 } else { 2 };
        until("it to be on disk", async || far.entries(disk).await == 1).await;
        until("it to be in Redis", async || near.get(KEY).await == Some(OLD)).await;
        match cut {
            Cut::Refused => {
                proxy.refuse().await;
                proxy.reset().await;
            }
            Cut::Silent => proxy.black_hole(),
        }
        source.write(KEY, NEW).await;
        near.invalidate(KEY).await;
        assert_eq!(far.held(KEY..KEY + 1).await, [OLD], "it cannot have heard");
        Self { source, proxy, near, make, far, _kept: (directory, [server, truth]) }
    }

    /// The far node is reached again: from the bound on nobody sees the old value, and whoever
    /// has seen the new one sees no other.
    async fn heals(&self, far: &TestNode) {
        self.proxy.heal();
        let (clock, mut has_new) = (SystemClock::new(), false);
        let bound = limit(SECOND);
        while clock.elapsed() < bound + SECOND {
            let begun = clock.elapsed();
            let version = far.load(KEY).await;
            assert!(version == NEW || begun < bound, "old {begun:?} after it could be reached");
            assert!(
                version == NEW || !has_new,
                "old after new, {begun:?} after it could be reached"
            );
            has_new = version == NEW;
            assert_eq!(self.near.load(KEY).await, NEW);
        }
    }
}

#[derive(Clone, Copy)]
enum Cut {
    Refused,
    Silent,
}

/// The disk below Redis, and above it.
const PLACES: [bool; 2] = [false, true];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_died_during_a_cut_does_not_come_back_from_disk() {
    for is_above in PLACES {
        let stage = Stage::cut_off(is_above, |make| make, Cut::Refused).await;
        stage.heals(&stage.far).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_died_during_a_cut_stays_dead_though_its_line_is_forgotten() {
    for is_above in PLACES {
        let stage = Stage::cut_off(is_above, |make| make, Cut::Refused).await;
        stage.near.remove_all(100..70_100).await;
        stage.heals(&stage.far).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_died_during_a_cut_stays_dead_when_the_node_is_restarted_after_it() {
    for is_above in PLACES {
        let stage = Stage::cut_off(is_above, |make| make, Cut::Refused).await;
        stage.far.kill().unwrap();
        stage.proxy.heal();
        let far = stage.make.start().await;
        assert_eq!(far.load(KEY).await, NEW, "the disk is above: {is_above}");
        stage.heals(&far).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_died_during_a_cut_stays_dead_when_the_node_is_restarted_in_it() {
    for is_above in PLACES {
        let stage = Stage::cut_off(is_above, |make| make, Cut::Refused).await;
        stage.far.kill().unwrap();
        let far = stage.make.start().await;
        assert_eq!(far.load(KEY).await, NEW, "the disk is above: {is_above}");
        stage.heals(&far).await;
    }
}

/// What holds of memory holds of the disk: both are trusted for a while, and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_died_during_a_long_cut_does_not_come_back_from_disk_in_it() {
    for is_above in PLACES {
        let shape = |make: Make| make.max_isolated(ms(2_000));
        let stage = Stage::cut_off(is_above, shape, Cut::Silent).await;
        let isolated = limit(ms(4_000));
        until_within(isolated, "memory to be distrusted", async || {
            stage.far.held(KEY..KEY + 1).await == [0]
        })
        .await;
        assert_eq!(stage.far.load(KEY).await, NEW, "the disk is above: {is_above}");
        assert_eq!(stage.source.begun_of(KEY).await, 2, "the disk is above: {is_above}");
        stage.heals(&stage.far).await;
    }
}
