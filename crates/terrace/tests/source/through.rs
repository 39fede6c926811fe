//! Written through, and around: which of the source and the caches hears of it first, and what is
//! left when one of them fails.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use terrace::{Change, Error, Loaded, Memory, Space, Terrace, WriteBatch, WriteBehind};
use terrace_test::sweep;
use tokio::task::JoinSet;

use crate::behind::{self, Table};
use crate::support::{Bed, Everywhere as _, Layout, Refused, ends, eventually, ms};

/// A source of one row, which fails when it is told to.
#[derive(Default)]
struct Row {
    value: Mutex<Option<u64>>,
    failures: AtomicUsize,
    underway: AtomicUsize,
}

fn space(terrace: &Terrace, row: &Arc<Row>) -> Space<str, u64> {
    let row = Arc::clone(row);
    terrace
        .space::<str, u64>("space")
        .writer(move |batch: WriteBatch<str, u64>| {
            let row = Arc::clone(&row);
            async move {
                assert_eq!(row.underway.fetch_add(1, Ordering::SeqCst), 0, "one after the other");
                // More often than whoever drives it polls at once.
                for _ in 0..5 {
                    tokio::task::yield_now().await;
                }
                let failed = row
                    .failures
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                    .is_ok();
                for write in batch {
                    *row.value.lock() = match write.change {
                        Change::Insert(value) => Some(value),
                        Change::Remove => None,
                    };
                }
                row.underway.fetch_sub(1, Ordering::SeqCst);
                // It may have got the write although it says that it has not.
                if failed { Err(Refused(1)) } else { Ok(()) }
            }
        })
        .build()
        .unwrap()
}

async fn load(space: &Space<str, u64>, row: &Arc<Row>) -> Option<u64> {
    let value = *row.value.lock();
    let answer = value.map_or_else(Loaded::absent, Loaded::value);
    let loaded = space.get_or_load("key", move |_| async move { Ok::<_, Infallible>(answer) });
    loaded.await.ok().map(|value| *value)
}

#[tokio::test]
async fn the_source_has_it_before_any_cache() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let row = Arc::new(Row::default());
        let space = space(&bed, &row);
        space.insert_through("key", 1).tags(["tag"]).await.everywhere();
        assert_eq!(*row.value.lock(), Some(1));
        assert_eq!(*space.get("key").await.unwrap().unwrap(), 1);
        bed.invalidate_tag("tag").await.everywhere();
        assert!(space.get("key").await.unwrap().is_none(), "{layout:?}");

        space.insert_through("key", 2).await.everywhere();
        space.insert_around("key", 3).await.everywhere();
        assert_eq!(*row.value.lock(), Some(3));
        assert!(space.get("key").await.unwrap().is_none(), "the next read loads, {layout:?}");
        assert_eq!(load(&space, &row).await, Some(3));

        space.remove_through("key").await.everywhere();
        let value = *row.value.lock();
        assert_eq!((value, load(&space, &row).await), (None, None), "{layout:?}");
    }
}

/// What the source says that it does not have it may have all the same: caches have neither.
#[tokio::test]
async fn a_source_that_fails_leaves_nothing_old_and_nothing_new() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let row = Arc::new(Row::default());
        let space = space(&bed, &row);
        for around in [false, true] {
            space.insert_through("key", 1).await.everywhere();
            row.failures.store(1, Ordering::SeqCst);
            let failed = if around {
                space.insert_around("key", 2).await
            } else {
                space.insert_through("key", 2).await
            };
            let Err(Error::Source(error)) = failed else { panic!("{failed:?}") };
            assert_eq!(error.to_string(), "refused 1");
            assert!(space.get("key").await.unwrap().is_none(), "{layout:?}");
            let found = load(&space, &row).await;
            assert_eq!(found, *row.value.lock());
        }
    }
}

#[tokio::test]
async fn a_writer_that_hangs_or_panics_is_an_error() {
    let terrace = Terrace::builder().memory(Memory::bytes(1 << 20)).build().await.unwrap();
    let space = terrace
        .space::<str, u64>("space")
        .writer(|batch: WriteBatch<str, u64>| async move {
            assert_ne!(batch.writes()[0].key, "panics");
            std::future::pending::<Result<(), Infallible>>().await
        })
        .write_behind(WriteBehind::default().deadline(ms(20)))
        .build()
        .unwrap();
    for (key, expected) in
        [("panics", "the writer panicked"), ("hangs", "the writer took longer than 20ms")]
    {
        let Err(Error::Source(error)) = space.insert_through(key, 1).await else { panic!("{key}") };
        assert_eq!(error.to_string(), expected);
    }
}

#[tokio::test]
async fn of_many_at_once_the_caches_have_what_the_source_has() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let row = Arc::new(Row::default());
        let space = space(&bed, &row);
        let mut writers = JoinSet::new();
        for value in 0..50 {
            let space = space.clone();
            writers.spawn(async move { space.insert_through("key", value).await.everywhere() });
        }
        while let Some(done) = writers.join_next().await {
            done.unwrap();
        }
        let found = space.get("key").await.unwrap().map(|found| *found);
        assert_eq!(found, *row.value.lock(), "{layout:?}");
    }
}

#[tokio::test]
async fn a_caller_that_is_dropped_leaves_source_and_caches_alike() {
    let bed = Bed::new(Layout::MemoryAndDisk).await;
    let row = Arc::new(Row::default());
    let space = space(&bed, &row);
    let mut value = 0;
    let rounds = sweep::every_poll(async |cut| {
        value += 1;
        let call = space.insert_through("key", value).into_future();
        if let Some(outcome) = cut.at(call).await {
            outcome.everywhere();
            assert_eq!(*row.value.lock(), Some(value));
        }
        eventually("they agree", async || {
            space.get("key").await.unwrap().is_none_or(|found| Some(*found) == *row.value.lock())
        })
        .await;
    })
    .await;
    assert!(rounds >= 2);
}

#[tokio::test]
async fn what_was_written_behind_before_goes_first() {
    let directory = tempfile::tempdir().unwrap();
    let table = Table::new();
    let terrace = behind::start(Layout::Memory, directory.path()).await;
    let space = behind::space(&terrace, &table).build().unwrap();
    space.insert_behind("key", 1).await.everywhere();
    let (through, table_here) = (space.clone(), Arc::clone(&table));
    let through = tokio::spawn(async move { through.insert_through("key", 2).await });
    eventually("the first one is under way", async || terrace.stats().await.underway > 0).await;
    table_here.open();
    ends("the second one", through).await.unwrap().everywhere();
    assert_eq!(table.get("key"), Some(2));
    assert_eq!(*space.get("key").await.unwrap().unwrap(), 2);
    assert!(terrace.close().await);
    assert_eq!(table.get("key"), Some(2));
}
