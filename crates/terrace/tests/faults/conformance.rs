//! The stores that come with Terrace pass the kits for everybody's.

use std::sync::Arc;

use parking_lot::Mutex;
use tempfile::TempDir;
use terrace::authority::{Authority, LocalAuthority};
use terrace::store::Store;
use terrace::{Disk, DiskStore};
use terrace_test::conformance;

/// Empty disk stores, each in a directory that lasts as long as this.
#[derive(Default)]
struct Stores {
    directories: Mutex<Vec<TempDir>>,
}

impl Stores {
    fn fresh(&self) -> DiskStore {
        let directory = tempfile::tempdir().unwrap();
        let store = Disk::at(directory.path()).open().unwrap();
        self.directories.lock().push(directory);
        store
    }
}

#[tokio::test]
async fn the_disk_store_keeps_the_promises_of_a_store() {
    let stores = Stores::default();
    conformance::store(|| async { Arc::new(stores.fresh()) as Arc<dyn Store> }).await;
    assert!(!stores.directories.lock().is_empty());
}

#[tokio::test]
async fn the_ledger_on_disk_keeps_the_promises_of_an_authority() {
    let stores = Stores::default();
    let make = || async { stores.fresh().authority().expect("a disk keeps a ledger") };
    conformance::authority(make).await;
    assert!(!stores.directories.lock().is_empty());
}

#[tokio::test]
async fn the_ledger_in_memory_keeps_the_promises_of_an_authority() {
    let make = || async { Arc::new(LocalAuthority::new(fastrand::u64(..))) as Arc<dyn Authority> };
    conformance::authority(make).await;
}
