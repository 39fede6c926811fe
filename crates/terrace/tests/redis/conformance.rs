//! The Redis store keeps what every store and every authority has promised.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use terrace::authority::Authority;
use terrace::store::Store;
use terrace::{Redis, RedisStore};
use terrace_test::rig::{Cluster, RedisServer, Sentinel};
use terrace_test::{ManualClock, conformance};

use crate::support::{cluster_of, primary_of};

/// A store of its own: nothing is under its prefix yet.
pub(crate) fn store(redis: Redis) -> Arc<RedisStore> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    // With everything that means something to patterns.
    let prefix = format!("kit-{}*?[a]\\:", MADE.fetch_add(1, Ordering::Relaxed));
    Arc::new(redis.prefix(prefix).told_time().open(Arc::new(ManualClock::new())).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_a_store() {
    let server = RedisServer::start().await.unwrap();
    conformance::store(|| async { store(Redis::url(server.url())) as Arc<dyn Store> }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_an_authority() {
    let server = RedisServer::start().await.unwrap();
    conformance::authority(|| async { store(Redis::url(server.url())) as Arc<dyn Authority> })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_a_store() {
    let cluster = Cluster::start().await.unwrap();
    let redis = cluster_of(&cluster);
    conformance::store(|| async { store(redis.clone()) as Arc<dyn Store> }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_an_authority() {
    let cluster = Cluster::start().await.unwrap();
    let redis = cluster_of(&cluster);
    conformance::authority(|| async { store(redis.clone()) as Arc<dyn Authority> }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_of_sentinels_is_a_store() {
    let sentinel = Sentinel::start().await.unwrap();
    let redis = primary_of(&sentinel);
    conformance::store(|| async { store(redis.clone()) as Arc<dyn Store> }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn valkey_is_a_store() {
    let server = RedisServer::builder().valkey().start().await.unwrap();
    conformance::store(|| async { store(Redis::url(server.url())) as Arc<dyn Store> }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn valkey_is_an_authority() {
    let server = RedisServer::builder().valkey().start().await.unwrap();
    conformance::authority(|| async { store(Redis::url(server.url())) as Arc<dyn Authority> })
        .await;
}
