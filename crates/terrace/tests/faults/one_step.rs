//! Lines and values that are written in one step, where the store of the ledger can: both or neither.

use std::sync::Arc;

use terrace::store::StoreErrorKind;
use terrace::{Disk, MacKeys, Memory, Settled, Space, Terrace, Tier};
use terrace_test::{Calls, ChaosStore, Fault, Verb};

use crate::support::eventually;

struct Site {
    terrace: Terrace,
    space: Space<str, String>,
    chaos: Arc<ChaosStore>,
    directory: tempfile::TempDir,
}

impl Site {
    async fn new(mac: Option<MacKeys>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Disk::at(directory.path()).inline_bytes(1 << 10).open().unwrap();
        let chaos = Arc::new(ChaosStore::over(Arc::new(store)));
        let mut builder = Terrace::builder().memory(Memory::bytes(1 << 20));
        if let Some(mac) = mac {
            builder = builder.mac(mac);
        }
        let terrace = builder.tier("disk", Tier::shared(Arc::clone(&chaos) as _));
        let terrace = terrace.build().await.unwrap();
        let space = terrace.space("texts").build().unwrap();
        Self { terrace, space, chaos, directory }
    }

    /// How often lines and values were written together, lines alone, and values alone.
    fn steps(&self) -> [u64; 3] {
        [Verb::Write, Verb::Append, Verb::Put].map(|verb| self.chaos.calls_of(verb))
    }

    async fn insert(&self, key: &str, value: impl Into<String>) -> Settled {
        self.space.insert(key, value.into()).await.unwrap()
    }

    /// What a process finds that comes later.
    async fn found_later(self, key: &str) -> Option<String> {
        assert!(self.terrace.close().await);
        let terrace = Terrace::builder().tier("disk", Disk::at(self.directory.path()));
        let terrace = terrace.build().await.unwrap();
        let space = terrace.space::<str, String>("texts").build().unwrap();
        space.get(key).await.unwrap().map(|found| found.to_string())
    }
}

#[tokio::test]
async fn a_write_is_one_step() {
    let site = Site::new(None).await;
    assert_eq!(site.insert("key", "old").await, Settled::Settled);
    assert_eq!(site.insert("key", "new").await, Settled::Settled);
    assert_eq!(site.steps(), [2, 0, 0]);
    assert_eq!(site.found_later("key").await.as_deref(), Some("new"));
}

#[tokio::test]
async fn a_step_that_fails_leaves_neither_line_nor_value() {
    let site = Site::new(None).await;
    site.insert("key", "old").await;
    site.chaos.inject(Calls::of([Verb::Write]).first(1), Fault::Fail(StoreErrorKind::Other));
    site.chaos.inject(Calls::of([Verb::Put]).first(1), Fault::Fail(StoreErrorKind::Other));
    assert!(matches!(site.insert("key", "new").await, Settled::Pending(_)));
    assert_eq!(site.space.get("key").await.unwrap().unwrap().as_str(), "new", "from memory");
    eventually("the line to be written", async || site.terrace.stats().await.pending == 0).await;
    assert_eq!(site.found_later("key").await, None, "the old one is gone, the new one not there");
}

#[tokio::test]
async fn without_room_for_the_value_there_is_a_line() {
    let site = Site::new(None).await;
    site.insert("key", "old").await;
    site.chaos.inject(Calls::of([Verb::Write]).first(1), Fault::Fail(StoreErrorKind::Full));
    site.chaos.inject(Calls::of([Verb::Put]).first(1), Fault::Fail(StoreErrorKind::Full));
    assert_eq!(site.insert("key", "new").await, Settled::Settled);
    assert_eq!(site.steps(), [2, 1, 1]);
    assert_eq!(site.found_later("key").await, None, "the line drops what was there");
}

#[tokio::test]
async fn what_cannot_be_one_step_is_two() {
    let site = Site::new(None).await;
    // A file.
    site.insert("key", "x".repeat(2 << 10)).await;
    assert_eq!(site.steps(), [0, 1, 1]);
    // More than a few.
    let keys: Vec<_> = (0..20).map(|number| number.to_string()).collect();
    let entries = keys.iter().map(|key| (key.as_str(), key.clone())).collect::<Vec<_>>();
    site.space.insert_many(entries).await.unwrap();
    assert_eq!(site.steps(), [0, 2, 2]);
    assert_eq!(site.found_later("7").await.as_deref(), Some("7"));
    // A MAC, which is one of the stamp as well.
    let signed = Site::new(Some(MacKeys::new(&[7; 32]).unwrap())).await;
    signed.insert("key", "signed").await;
    assert_eq!(signed.steps(), [0, 1, 1]);
}
