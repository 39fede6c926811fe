//! Subjects that keep their promises pass the kits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use terrace::Disk;
use terrace::authority::{Authority, LocalAuthority};
use terrace::store::Store;
use terrace_test::{ChaosStore, MapStore, conformance};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_map_is_a_store() {
    conformance::store(|| async { Arc::new(MapStore::new()) as Arc<dyn Store> }).await;
}

#[tokio::test]
async fn a_map_is_a_store_on_one_thread() {
    conformance::store(|| async { Arc::new(MapStore::new()) as Arc<dyn Store> }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_ledger_of_a_process_is_an_authority() {
    let make = || async { Arc::new(LocalAuthority::new(7)) as Arc<dyn Authority> };
    conformance::authority(make).await;
    for seed in 1000..1200 {
        conformance::random_walk(&*make().await, seed).await;
    }
}

/// A chaos store without faults changes nothing, its ledger included.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_behind_no_chaos_is_a_store() {
    let directory = tempfile::tempdir().unwrap();
    let stores = AtomicU32::new(0);
    let make = || {
        let number = stores.fetch_add(1, Ordering::Relaxed);
        let path = directory.path().join(number.to_string());
        async move {
            let store = Disk::at(path).open().unwrap();
            Arc::new(ChaosStore::over(Arc::new(store))) as Arc<dyn Store>
        }
    };
    conformance::store(make).await;
    conformance::authority(|| async { make().await.authority().unwrap() }).await;
}
