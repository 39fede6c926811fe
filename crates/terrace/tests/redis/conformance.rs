//! The Redis store keeps what every store and every authority has promised.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use terrace::authority::Authority;
use terrace::store::Store;
use terrace::{Redis, RedisStore};
use terrace_test::rig::RedisServer;
use terrace_test::{ManualClock, conformance};

/// A store of its own on the server: nothing is under its prefix yet.
fn store(server: &RedisServer) -> Arc<RedisStore> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    // With everything that means something to patterns.
    let prefix = format!("kit-{}*?[a]\\:", MADE.fetch_add(1, Ordering::Relaxed));
    let redis = Redis::url(server.url()).prefix(prefix).told_time();
    Arc::new(redis.open(Arc::new(ManualClock::new())).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_store() {
    let server = RedisServer::start().await.unwrap();
    conformance::store(|| async { store(&server) as Arc<dyn Store> }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_an_authority() {
    let server = RedisServer::start().await.unwrap();
    conformance::authority(|| async { store(&server) as Arc<dyn Authority> }).await;
}
