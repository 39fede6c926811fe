//! Two openings of one directory, asked in turn, keep the promises of one store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use terrace::authority::{Answer, Appended, Authority};
use terrace::clock::WallTime;
use terrace::key::StoredKey;
use terrace::ledger::{Name, Names, Stamp};
use terrace::protocol::{Follow, Leased, Snapshot};
use terrace::store::{Put, Scope, Store, StoreResult, Stored, Usage};
use terrace::{Disk, DiskStore};
use terrace_test::conformance;

#[derive(Clone, Debug)]
struct InTurn {
    openings: [Arc<DiskStore>; 2],
    calls: Arc<AtomicUsize>,
}

impl InTurn {
    fn next(&self) -> &DiskStore {
        let [one, other] = &self.openings;
        if self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) { one } else { other }
    }
}

impl Store for InTurn {
    fn scope(&self) -> Scope {
        Store::scope(self.next())
    }

    fn get<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<Option<Bytes>>> {
        self.next().get(keys)
    }

    fn put<'a>(&'a self, puts: &'a [Put]) -> StoreResult<'a, Vec<Stored>> {
        self.next().put(puts)
    }

    fn remove<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<bool>> {
        self.next().remove(keys)
    }

    fn clear<'a>(&'a self, prefix: &'a str) -> StoreResult<'a, u64> {
        self.next().clear(prefix)
    }

    fn scan<'a>(
        &'a self,
        after: Option<&'a StoredKey>,
        limit: usize,
    ) -> StoreResult<'a, Vec<(StoredKey, Bytes)>> {
        self.next().scan(after, limit)
    }

    fn usage(&self) -> StoreResult<'_, Usage> {
        self.next().usage()
    }

    fn authority(&self) -> Option<Arc<dyn Authority>> {
        Some(Arc::new(self.clone()))
    }

    fn maintain(&self, now: WallTime) -> StoreResult<'_, ()> {
        self.next().maintain(now)
    }

    fn close(&self) -> StoreResult<'_, ()> {
        let [one, other] = &self.openings;
        Box::pin(async move {
            one.close().await?;
            other.close().await
        })
    }
}

impl Authority for InTurn {
    fn scope(&self) -> Scope {
        Authority::scope(self.next())
    }

    fn snapshot(&self) -> Answer<'_, Snapshot> {
        self.next().snapshot()
    }

    fn append<'a>(&'a self, names: &'a [Name]) -> Answer<'a, Appended> {
        self.next().append(names)
    }

    fn append_if_unnamed<'a>(
        &'a self,
        ticket: Stamp,
        name: Name,
        names: Names<'a>,
    ) -> Answer<'a, Option<Appended>> {
        self.next().append_if_unnamed(ticket, name, names)
    }

    fn follow(&self, position: Stamp) -> Answer<'_, Follow> {
        self.next().follow(position)
    }

    fn lease<'a>(
        &'a self,
        key: &'a Arc<str>,
        now: WallTime,
        until: WallTime,
    ) -> Answer<'a, Leased> {
        self.next().lease(key, now, until)
    }

    fn renew<'a>(&'a self, key: &'a str, token: u64, until: WallTime) -> Answer<'a, bool> {
        self.next().renew(key, token, until)
    }

    fn release<'a>(&'a self, key: &'a str, token: u64) -> Answer<'a, ()> {
        self.next().release(key, token)
    }

    fn count<'a>(
        &'a self,
        key: &'a Arc<str>,
        by: i64,
        now: WallTime,
        expires: Option<WallTime>,
    ) -> Answer<'a, i64> {
        self.next().count(key, by, now, expires)
    }

    fn counter<'a>(&'a self, key: &'a str, now: WallTime) -> Answer<'a, Option<i64>> {
        self.next().counter(key, now)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_openings_of_a_directory_are_one_store() {
    let directory = tempfile::tempdir().unwrap();
    let made = AtomicUsize::new(0);
    let make = || {
        let disk =
            Disk::at(directory.path().join(made.fetch_add(1, Ordering::Relaxed).to_string()));
        let openings = [(); 2].map(|()| Arc::new(disk.open().unwrap()));
        InTurn { openings, calls: Arc::default() }
    };
    conformance::store(|| async { Arc::new(make()) as Arc<dyn Store> }).await;
    conformance::authority(|| async { Arc::new(make()) as Arc<dyn Authority> }).await;
}
