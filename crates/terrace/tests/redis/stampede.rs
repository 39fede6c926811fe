//! One cold key, many processes: one of them loads, and dies while it does.

use std::sync::Arc;
use std::time::Duration;

use terrace::clock::{Clock as _, SystemClock};
use terrace_test::rig::RedisServer;
use tokio::task::JoinSet;

use crate::source::Source;
use crate::support::{SECOND, count, ends, limit, ms, until};
use crate::testnode::Make;

/// A load, half of it before it looks at the source.
const LOAD: Duration = ms(200);

/// A lease lapses so long after its holder was last heard of.
const LEASE: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_one_load_in_the_whole_fleet() {
    let (server, truth) =
        (RedisServer::start().await.unwrap(), RedisServer::start().await.unwrap());
    let source = Source::of(&truth);
    one_load(Make::over(&server.url(), &source).patient(), &source).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_one_load_of_all_who_share_a_directory() {
    let (truth, directory) = (RedisServer::start().await.unwrap(), tempfile::tempdir().unwrap());
    let source = Source::of(&truth);
    one_load(Make::on(directory.path(), &source).patient(), &source).await;
}

async fn one_load(make: Make, source: &Source) {
    let mut nodes = Vec::new();
    for _ in 0..count(3, 8) {
        nodes.push(Arc::new(make.start().await));
    }
    let (tasks, clock) = (count(200, 1_250), SystemClock::new());
    let half = LOAD.as_millis() / 2;
    let mut slowest = Duration::ZERO;
    for key in 0..count(3, 50) {
        let begun = clock.elapsed();
        let mut crowds = JoinSet::new();
        for node in &nodes {
            let (node, question) = (Arc::clone(node), format!("crowd {key} {tasks} {half} {half}"));
            crowds.spawn(async move { node.say(&question).await });
        }
        for versions in crowds.join_all().await {
            assert_eq!(versions, "1", "round {key}");
        }
        slowest = slowest.max(clock.elapsed() - begun);
        assert_eq!(source.begun_of(key).await, 1, "loads in round {key}");
    }
    println!("{} × {tasks} tasks had their answers after {slowest:?} at most", nodes.len());
    assert!(slowest < LEASE, "nobody waits for a lease to lapse: {slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_the_holder_of_the_lease_is_killed() {
    let (server, truth) =
        (RedisServer::start().await.unwrap(), RedisServer::start().await.unwrap());
    let source = Source::of(&truth);
    kill_the_holder(Make::over(&server.url(), &source).patient(), &source).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_the_holder_of_a_lease_in_a_directory_is_killed() {
    let (truth, directory) = (RedisServer::start().await.unwrap(), tempfile::tempdir().unwrap());
    let source = Source::of(&truth);
    kill_the_holder(Make::on(directory.path(), &source).patient(), &source).await;
}

async fn kill_the_holder(make: Make, source: &Source) {
    let others = [Arc::new(make.start().await), Arc::new(make.start().await)];
    let (clock, half) = (SystemClock::new(), LOAD.as_millis() / 2);
    let mut slowest = Duration::ZERO;
    for key in 0..count(3, 50) {
        let holder = Arc::new(make.start().await);
        let begun = clock.elapsed();
        let question = format!("load {key} {half} {half}");
        let loading = tokio::spawn({
            let holder = Arc::clone(&holder);
            async move { ends("the load of whoever dies", holder.ask(&question)).await }
        });
        until("it to load", async || source.begun_of(key).await == 1).await;
        let mut crowds = JoinSet::new();
        for node in &others {
            let (node, question) = (Arc::clone(node), format!("crowd {key} 100 {half} {half}"));
            crowds.spawn(async move { node.say(&question).await });
        }
        until("it to be half-way", async || source.looked(key).await == 1).await;
        holder.kill().unwrap();
        assert!(loading.await.unwrap().is_err(), "it is dead");
        for versions in crowds.join_all().await {
            assert_eq!(versions, "1", "kill {key}");
        }
        slowest = slowest.max(clock.elapsed() - begun);
        assert_eq!(source.begun_of(key).await, 2, "loads in round {key}");
    }
    println!("everybody had an answer {slowest:?} after the lease began, at most");
    assert!(slowest > LEASE - SECOND, "the lease did not matter: {slowest:?}");
    let late = LEASE + limit(ms(300));
    assert!(slowest < late, "{slowest:?}");
}
