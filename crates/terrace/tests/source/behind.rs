//! Written behind: what callers see until the source has it, and what its writer is given.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use terrace::clock::Clock as _;
use terrace::store::StoreErrorKind;
use terrace::{
    Acknowledge, Change, Disk, Error, Journal, LoadError, LoadMany, Loaded, Memory, Mode, Source,
    Space, SpaceBuilder, Terrace, Tier, WriteBatch, WriteBehind, WriteId,
};
use terrace_test::{Calls, ChaosStore, Fault, ManualClock, MapStore, sweep};
use tokio::sync::Semaphore;

use crate::support::{Everywhere as _, Layout, Refused, count, ends, eventually, ms, random};

/// A source that remembers what it was told, and answers when its gate is open.
pub(crate) struct Table {
    rows: Mutex<HashMap<String, u64>>,
    /// Each write that it was given, in order: key, value or removal, and id.
    told: Mutex<Vec<(String, Option<u64>, WriteId)>>,
    batches: Mutex<Vec<usize>>,
    gate: Semaphore,
    fails: AtomicBool,
    /// A key that the source does not take.
    poison: Mutex<Option<String>>,
}

impl Table {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            rows: Mutex::default(),
            told: Mutex::default(),
            batches: Mutex::default(),
            gate: Semaphore::new(0),
            fails: AtomicBool::new(false),
            poison: Mutex::default(),
        })
    }

    pub(crate) fn open(self: &Arc<Self>) -> Arc<Self> {
        self.gate.close();
        Arc::clone(self)
    }

    fn let_one_through(&self) {
        self.gate.add_permits(1);
    }

    /// Takes back what nobody has used to get through.
    fn shut(&self) {
        while let Ok(permit) = self.gate.try_acquire() {
            permit.forget();
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<u64> {
        self.rows.lock().get(key).copied()
    }

    fn set(&self, key: &str, value: u64) {
        self.rows.lock().insert(key.into(), value);
    }

    fn told(&self) -> Vec<(String, Option<u64>)> {
        self.told.lock().iter().map(|(key, value, _)| (key.clone(), *value)).collect()
    }

    fn times_told(&self) -> usize {
        self.batches.lock().len()
    }

    async fn write(self: Arc<Self>, batch: WriteBatch<str, u64>) -> Result<(), Refused> {
        self.batches.lock().push(batch.len());
        let mut told = Vec::new();
        for write in batch {
            let value = match write.change {
                Change::Insert(value) => Some(value),
                Change::Remove => None,
            };
            told.push((write.key, value, write.id));
        }
        self.told.lock().extend(told.iter().cloned());
        // Closed means open: nobody waits any longer.
        if let Ok(permit) = self.gate.acquire().await {
            permit.forget();
        }
        let is_poisoned = told.iter().any(|(key, ..)| Some(key) == self.poison.lock().as_ref());
        if is_poisoned || self.fails.load(Ordering::SeqCst) {
            return Err(Refused(0));
        }
        let mut rows = self.rows.lock();
        for (key, value, _) in told {
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
        Ok(())
    }
}

/// The space of these tests, over a source.
pub(crate) fn space(terrace: &Terrace, table: &Arc<Table>) -> SpaceBuilder<str, u64> {
    let table = Arc::clone(table);
    let fast = WriteBehind::default().linger(ms(1)).retry(ms(1), ms(5));
    terrace
        .space::<str, u64>("space")
        .writer(move |batch| Arc::clone(&table).write(batch))
        .write_behind(fast)
}

pub(crate) async fn start(layout: Layout, directory: &Path) -> Terrace {
    start_with(layout, directory, Journal::at(directory.join("journal"))).await
}

async fn start_with(layout: Layout, directory: &Path, journal: Journal) -> Terrace {
    let mut builder = Terrace::builder().journal(journal);
    if layout.has_memory() {
        builder = builder.memory(Memory::bytes(16 << 20));
    }
    builder = match layout {
        Layout::Memory => builder,
        Layout::MemoryAndDisk | Layout::Disk => {
            builder.tier("disk", Disk::at(directory.join("disk")))
        }
        Layout::MemoryAndMap => builder.tier("map", Tier::of(MapStore::new())),
    };
    builder.build().await.unwrap()
}

async fn start_without_journal(directory: &Path) -> Terrace {
    let disk = Disk::at(directory.join("disk"));
    Terrace::builder().memory(Memory::bytes(16 << 20)).tier("disk", disk).build().await.unwrap()
}

/// What a read with a loader says that asks the source.
async fn load(space: &Space<str, u64>, table: &Arc<Table>, key: &str) -> Option<u64> {
    let (source, row) = (Arc::clone(table), key.to_owned());
    let loader = |_| async move {
        Ok::<_, Infallible>(source.get(&row).map_or_else(Loaded::absent, Loaded::value))
    };
    match space.get_or_load(key, loader).await {
        Ok(value) => Some(*value),
        Err(LoadError::Absent) => None,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn the_source_has_it_in_the_end_and_callers_at_once() {
    for layout in Layout::ALL {
        for level in [Acknowledge::Memory, Acknowledge::Journal, Acknowledge::Synced] {
            let directory = tempfile::tempdir().unwrap();
            let table = Table::new();
            let terrace = start(layout, directory.path()).await;
            let space = space(&terrace, &table).build().unwrap();
            space.insert_behind("key", 7).acknowledge(level).await.everywhere();
            assert_eq!(*space.get("key").await.unwrap().unwrap(), 7, "{layout:?}, {level:?}");
            assert_eq!(table.get("key"), None);
            let stats = terrace.stats().await.journal.unwrap();
            assert_eq!(stats.depth, 1, "{layout:?}, {level:?}");
            table.open();
            ends("a flush", space.flush()).await.unwrap();
            assert_eq!(table.get("key"), Some(7), "{layout:?}, {level:?}");
            assert_eq!(load(&space, &table, "key").await, Some(7));
            let stats = terrace.stats().await.journal.unwrap();
            assert_eq!((stats.depth, stats.written, stats.bytes), (0, 1, 0));
            assert!(terrace.close().await);
            assert!(matches!(space.insert_behind("key", 8).await, Err(Error::Closed)));
        }
    }
}

/// Row by row what a read can be: whatever it is, it does not bring back the source's older row.
#[tokio::test]
async fn no_read_brings_back_what_the_source_still_has() {
    for layout in Layout::ALL {
        let directory = tempfile::tempdir().unwrap();
        let table = Table::new();
        let terrace = start(layout, directory.path()).await;
        let space = space(&terrace, &table).stale_for(ms(60_000)).build().unwrap();
        for key in ["old", "gone"] {
            table.set(key, 1);
            assert_eq!(load(&space, &table, key).await, Some(1));
        }
        space.insert_behind("old", 2).await.everywhere();
        space.insert_behind("new", 2).await.everywhere();
        space.remove_behind("gone").await.everywhere();
        let forget = async || {
            if layout.has_memory() {
                terrace.clear_tier("memory").await.unwrap();
            }
        };
        let what = format!("{layout:?}");
        for key in ["old", "new"] {
            forget().await;
            let found = space.get(key).await.unwrap().unwrap();
            assert_eq!((*found, found.source()), (2, &Source::Journal), "{what}");
            forget().await;
            assert_eq!(load(&space, &table, key).await, Some(2), "{what}");
            forget().await;
            assert!(space.exists(key).await.unwrap(), "{what}");
            let fresh = space.get_or_load(key, |_| async { Ok::<_, Infallible>(1) }).refresh();
            assert_eq!(*fresh.await.unwrap(), 2, "{what}");
            assert!(!space.insert_if_absent(key, 3).await.unwrap(), "{what}");
            // What somebody loads by himself is older.
            forget().await;
            let ticket = space.ticket();
            assert!(!space.fill(key, ticket, 1).await.unwrap(), "{what}");
            assert_eq!(*space.get(key).await.unwrap().unwrap(), 2, "{what}");
            // Neither has an invalidation brought anything to the source.
            space.invalidate(key).await.everywhere();
            assert_eq!(load(&space, &table, key).await, Some(2), "{what}");
        }
        forget().await;
        let keys = ["old", "gone", "new", "never"];
        let found = space.get_many(keys).await.unwrap();
        let found: Vec<_> = found.into_iter().map(|found| found.map(|found| *found)).collect();
        assert_eq!(found, [Some(2), None, Some(2), None], "{what}");
        forget().await;
        let loader = |load: LoadMany<String>| async move {
            assert_eq!(load.keys(), ["never"]);
            Ok::<_, Infallible>(vec![("never".to_owned(), 9)])
        };
        let found = space.get_many_or_load(keys, loader).await;
        let found: Vec<_> = found.into_iter().map(|found| found.ok().map(|found| *found)).collect();
        assert_eq!(found, [Some(2), None, Some(2), Some(9)], "{what}");
        assert!(!space.exists("gone").await.unwrap(), "{what}");
        assert!(space.get("gone").await.unwrap().is_none(), "{what}");
        assert_eq!(load(&space, &table, "gone").await, None, "{what}");

        table.open();
        ends("a flush", space.flush()).await.unwrap();
        for (key, value) in [("old", Some(2)), ("new", Some(2)), ("gone", None)] {
            forget().await;
            assert_eq!(table.get(key), value, "{what}, {key}");
            assert_eq!(load(&space, &table, key).await, value, "{what}, {key}");
        }
    }
}

#[tokio::test]
async fn others_on_the_same_directory_see_what_is_not_in_the_source() {
    let directory = tempfile::tempdir().unwrap();
    let table = Table::new();
    let mut spaces = Vec::new();
    let mut caches = Vec::new();
    for _ in 0..2 {
        let terrace = start(Layout::MemoryAndDisk, directory.path()).await;
        spaces.push(space(&terrace, &table).build().unwrap());
        caches.push(terrace);
    }
    for level in [Acknowledge::Memory, Acknowledge::Journal] {
        for (key, here, there) in [("a", 0, 1), ("b", 1, 0)] {
            table.set(key, 1);
            for space in &spaces {
                space.invalidate(key).await.everywhere();
                assert_eq!(load(space, &table, key).await, Some(1));
            }
            spaces[here].insert_behind(key, 2).acknowledge(level).await.everywhere();
            assert_eq!(load(&spaces[here], &table, key).await, Some(2));
            eventually("the ledger reaches the other one", async || {
                load(&spaces[there], &table, key).await == Some(2)
            })
            .await;
            // From then on nothing older comes back.
            for _ in 0..50 {
                for (cache, space) in caches.iter().zip(&spaces) {
                    cache.clear_tier("memory").await.unwrap();
                    assert_eq!(load(space, &table, key).await, Some(2), "{level:?}");
                }
            }
            assert_eq!(table.get(key), Some(1));
        }
        // One owner: whichever it is, only one batch is on its way.
        eventually("somebody writes", async || table.times_told() > 0).await;
        while ["a", "b"].iter().any(|key| table.get(key) != Some(2)) {
            table.let_one_through();
            tokio::task::yield_now().await;
        }
        for space in &spaces {
            ends("a flush", space.flush()).await.unwrap();
        }
        table.shut();
    }
    let ids: Vec<_> = table.told.lock().iter().map(|(.., id)| *id).collect();
    assert!(ids.is_sorted(), "{ids:?}");
    table.open();
    for cache in &caches {
        assert!(cache.close().await);
    }
}

/// What the ledger had not heard of when a process ended is named by whoever writes it to the source.
#[tokio::test]
async fn what_was_in_the_journal_and_not_in_the_ledger_leaves_nothing_old() {
    let directory = tempfile::tempdir().unwrap();
    let table = Table::new();
    let other = start_without_journal(directory.path()).await;
    let read = other.space::<str, u64>("space").build().unwrap();
    table.set("key", 1);
    assert_eq!(load(&read, &table, "key").await, Some(1));
    {
        // In a runtime of its own, which takes what would go on with it.
        let (directory, table) = (directory.path().to_owned(), Arc::clone(&table));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let disk = Arc::new(Disk::at(directory.join("disk")).open().unwrap());
                let chaos = Arc::new(ChaosStore::over(disk));
                let terrace = Terrace::builder()
                    .journal(Journal::at(directory.join("journal")))
                    .tier("disk", Tier::shared(Arc::clone(&chaos) as _))
                    .build()
                    .await
                    .unwrap();
                let space = space(&terrace, &table).build().unwrap();
                let away = Fault::Fail(StoreErrorKind::Unavailable);
                chaos.inject(Calls::of_authority(), away);
                let settled =
                    space.insert_behind("key", 2).acknowledge(Acknowledge::Journal).await.unwrap();
                assert!(!settled.is_settled());
            });
            runtime.shutdown_background();
        })
        .join()
        .unwrap();
    }
    table.open();
    let terrace = start(Layout::Disk, directory.path()).await;
    let space = space(&terrace, &table).build().unwrap();
    assert_eq!(load(&space, &table, "key").await, Some(2), "it is in the journal");
    ends("a flush", space.flush()).await.unwrap();
    assert_eq!(table.get("key"), Some(2));
    eventually("the other one hears of it", async || load(&read, &table, "key").await == Some(2))
        .await;
    other.clear_tier("memory").await.unwrap();
    assert_eq!(load(&read, &table, "key").await, Some(2));
    assert_eq!(load(&space, &table, "key").await, Some(2));
}

#[tokio::test]
async fn the_newest_wins_and_none_overtakes_the_one_under_way() {
    let directory = tempfile::tempdir().unwrap();
    let table = Table::new();
    let terrace = start(Layout::Memory, directory.path()).await;
    let space = space(&terrace, &table).build().unwrap();
    space.insert_behind("key", 1).await.everywhere();
    eventually("it is under way", async || table.times_told() == 1).await;
    for value in 2..=5 {
        space.insert_behind("key", value).await.everywhere();
        assert_eq!(*space.get("key").await.unwrap().unwrap(), value);
    }
    assert_eq!(terrace.stats().await.journal.unwrap().depth, 2);
    space.insert_behind("other", 9).await.everywhere();
    table.open();
    ends("a flush", space.flush()).await.unwrap();
    let told: Vec<_> = table.told().into_iter().filter(|(key, _)| key == "key").collect();
    assert_eq!(told, [("key".to_owned(), Some(1)), ("key".to_owned(), Some(5))]);
    assert_eq!(terrace.stats().await.journal.unwrap().superseded, 3);
    assert_eq!((table.get("key"), table.get("other")), (Some(5), Some(9)));
}

#[tokio::test]
async fn a_batch_that_fails_is_tried_again_one_by_one_with_the_same_ids() {
    let directory = tempfile::tempdir().unwrap();
    let table = Table::new().open();
    *table.poison.lock() = Some("bad".into());
    let terrace = start(Layout::Memory, directory.path()).await;
    let space = space(&terrace, &table)
        .write_behind(WriteBehind::default().linger(ms(20)).attempts(3).retry(ms(1), ms(2)))
        .build()
        .unwrap();
    for key in ["a", "bad", "b"] {
        table.set(key, 1);
        space.insert_behind(key, 7).await.everywhere();
    }
    ends("a flush", space.flush()).await.unwrap();
    assert_eq!((table.get("a"), table.get("b"), table.get("bad")), (Some(7), Some(7), Some(1)));
    let mut ids: HashMap<String, Vec<WriteId>> = HashMap::new();
    for (key, _, id) in table.told.lock().iter() {
        ids.entry(key.clone()).or_default().push(*id);
    }
    assert!(ids.values().all(|ids| ids.windows(2).all(|pair| pair[0] == pair[1])), "{ids:?}");
    let stats = terrace.stats().await.journal.unwrap();
    assert_eq!((stats.depth, stats.dead_letters, stats.died), (0, 1, 1));
    // What the source will not have is not in the cache.
    assert_eq!(load(&space, &table, "bad").await, Some(1));

    let dead = space.dead_letters(10).unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].write, Some(("bad".to_owned(), Change::Insert(7))));
    assert_eq!((dead[0].failures, &*dead[0].error), (3, "refused 0"));
    assert_eq!(dead[0].id, ids["bad"][0]);
    *table.poison.lock() = None;
    assert!(space.replay(dead[0].id).await.unwrap());
    assert!(!space.replay(dead[0].id).await.unwrap(), "it is none any more");
    ends("a flush", space.flush()).await.unwrap();
    assert_eq!(load(&space, &table, "bad").await, Some(7));
    assert_eq!(table.told.lock().last().unwrap().2, ids["bad"][0], "the same id");

    // One that is dropped is gone, and so is one that a newer write takes the place of.
    for key in ["c", "d"] {
        *table.poison.lock() = Some(key.into());
        space.insert_behind(key, 1).await.everywhere();
        ends("a flush", space.flush()).await.unwrap();
    }
    *table.poison.lock() = None;
    let dead = space.dead_letters(10).unwrap();
    assert_eq!(dead.len(), 2);
    assert!(space.drop_dead_letter(dead[0].id).await.unwrap());
    assert!(!space.drop_dead_letter(dead[0].id).await.unwrap());
    space.insert_behind("d", 2).await.everywhere();
    assert!(space.dead_letters(10).unwrap().is_empty());
    assert!(!space.replay(dead[1].id).await.unwrap());
    ends("a flush", space.flush()).await.unwrap();
    assert_eq!((table.get("c"), table.get("d")), (None, Some(2)));
    let stats = terrace.stats().await.journal.unwrap();
    assert_eq!((stats.depth, stats.dead_letters, stats.bytes), (0, 0, 0));
}

/// The clock is in the test's hands; what it says when the writer is called is how long was waited.
#[tokio::test]
async fn waits_between_attempts_double() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new());
    let terrace = Terrace::builder()
        .memory(Memory::bytes(1 << 20))
        .journal(Journal::at(directory.path()))
        .clock(Arc::clone(&clock) as _)
        .build()
        .await
        .unwrap();
    let calls: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let (noted, time) = (Arc::clone(&calls), Arc::clone(&clock));
    let space = terrace
        .space::<str, u64>("space")
        .writer(move |_: WriteBatch<str, u64>| {
            noted.lock().push(time.elapsed());
            async { Err::<(), _>(Refused(1)) }
        })
        .write_behind(
            WriteBehind::default().linger(Duration::ZERO).attempts(6).retry(ms(1_000), ms(8_000)),
        )
        .build()
        .unwrap();
    space.insert_behind("key", 1).await.everywhere();
    let mut steps = 0;
    while space.dead_letters(1).unwrap().is_empty() {
        clock.advance(ms(10));
        tokio::time::sleep(ms(1)).await;
        steps += 1;
        assert!(steps < 20_000, "{:?}", calls.lock());
    }
    let waits: Vec<_> =
        calls.lock().windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert_eq!(waits.len(), 5);
    for (wait, least) in waits.iter().zip([900, 1_800, 3_600, 7_200, 7_200]) {
        assert!(*wait >= least, "{waits:?}");
    }
}

#[tokio::test]
async fn a_full_journal_makes_callers_wait_and_then_refuses() {
    let directory = tempfile::tempdir().unwrap();
    let table = Table::new();
    for journal in [
        Journal::at(directory.path().join("entries")).max_entries(3),
        Journal::at(directory.path().join("bytes")).max_bytes(100),
    ] {
        let terrace = start_with(Layout::Memory, directory.path(), journal.max_wait(ms(100))).await;
        let space = space(&terrace, &table).build().unwrap();
        let mut added = 0;
        let refused = loop {
            match space.insert_behind(&format!("key {added}"), added).await {
                Ok(_) => added += 1,
                Err(error) => break error,
            }
            assert!(added < 10);
        };
        assert!(matches!(refused, Error::JournalFull(_)), "{refused}");
        let stats = terrace.stats().await.journal.unwrap();
        assert_eq!(stats.depth, added);
        assert!(stats.waited > 0 && stats.bytes <= 100, "{stats:?}");
        assert!(space.get(&format!("key {added}")).await.unwrap().is_none());
        let large = space.insert_behind(&"k".repeat(60_000), 1).await;
        assert!(large.is_err());

        // Whoever waits gets the room that the source makes.
        let next = format!("key {added}");
        let waiting = space.insert_behind(&next, added);
        let opens = async {
            table.let_one_through();
        };
        let (waited, ()) = tokio::join!(ends("a wait", waiting.into_future()), opens);
        waited.everywhere();
        let (here, table) = (space.clone(), Arc::clone(&table));
        let flushing = tokio::spawn(async move { here.flush().await });
        while !flushing.is_finished() {
            table.let_one_through();
            tokio::task::yield_now().await;
        }
        flushing.await.unwrap().unwrap();
        assert_eq!(table.get(&next), Some(added));
        assert!(terrace.close().await);
        table.shut();
    }
}

#[tokio::test]
async fn closing_keeps_what_cannot_be_written_in_time_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let table = Table::new();
    let terrace = start(Layout::Memory, directory.path()).await;
    let first = space(&terrace, &table).build().unwrap();
    for (key, level) in
        [("a", Acknowledge::Memory), ("b", Acknowledge::Journal), ("c", Acknowledge::Synced)]
    {
        first.insert_behind(key, 7).acknowledge(level).await.everywhere();
    }
    let closed = ends("a close", terrace.close_within(ms(200))).await;
    assert_eq!((closed.is_finished, closed.kept, closed.lost), (false, 3, 0));
    let told = table.told.lock().clone();

    // The writer of the first one still waits; it owns the space until it is gone.
    table.open();
    drop((first, terrace));
    let terrace = start(Layout::Memory, directory.path()).await;
    let space = space(&terrace, &table).build().unwrap();
    assert_eq!(*space.get("a").await.unwrap().unwrap(), 7);
    ends("a flush", space.flush()).await.unwrap();
    let closed = ends("a close", terrace.close_within(ms(20_000))).await;
    assert_eq!((closed.is_finished, closed.kept, closed.lost), (true, 0, 0));
    assert_eq!(["a", "b", "c"].map(|key| table.get(key)), [Some(7); 3]);
    for (key, _, id) in told {
        let repeats = table.told.lock().clone();
        assert!(repeats.iter().filter(|(other, ..)| *other == key).all(|(.., other)| *other == id));
    }
}

#[tokio::test]
async fn a_caller_that_is_dropped_leaves_it_done_or_not_begun() {
    let directory = tempfile::tempdir().unwrap();
    let table = Table::new();
    let terrace = start(Layout::MemoryAndDisk, directory.path()).await;
    let space = space(&terrace, &table).build().unwrap();
    for level in [Acknowledge::Memory, Acknowledge::Journal, Acknowledge::Synced] {
        let (key, mut value) = (format!("{level:?}"), 0);
        let rounds = sweep::every_poll(async |cut| {
            value += 1;
            let call = space.insert_behind(&key, value).acknowledge(level).into_future();
            let outcome = cut.at(call).await;
            if let Some(outcome) = outcome {
                outcome.everywhere();
                assert_eq!(*space.get(&key).await.unwrap().unwrap(), value);
            }
            // Memory and the journal agree in the end, whichever of the two it is.
            eventually("they agree", async || {
                let here = space.get(&key).await.unwrap().map(|found| *found);
                terrace.clear_tier("memory").await.unwrap();
                let journal = space.get(&key).await.unwrap().map(|found| *found);
                here == journal && journal.is_none_or(|found| found == value || found == value - 1)
            })
            .await;
        })
        .await;
        assert!(rounds >= 2, "{rounds}");
    }
    table.open();
    assert!(terrace.close().await);
}

/// Random calls against a source that fails at random, beside a plain map.
#[tokio::test]
async fn random_writes_end_as_in_a_plain_map() {
    let mut random = random("writes");
    for round in 0..count(5, 100) {
        let directory = tempfile::tempdir().unwrap();
        let table = Table::new().open();
        let caches = [
            start(Layout::MemoryAndDisk, directory.path()).await,
            start(Layout::MemoryAndDisk, directory.path()).await,
        ];
        let settings = WriteBehind::default()
            .linger(ms(random.u64(0..3)))
            .max_batch(random.usize(1..5))
            .attempts(u32::MAX)
            .retry(ms(1), ms(2));
        let spaces = caches
            .each_ref()
            .map(|terrace| space(terrace, &table).write_behind(settings.clone()).build().unwrap());
        let mut reference: HashMap<String, Option<u64>> = HashMap::new();
        let mut called: HashMap<String, Vec<Option<u64>>> = HashMap::new();
        for value in 0..60 {
            table.fails.store(random.u8(..3) == 0, Ordering::SeqCst);
            let key = format!("key {}", random.u8(..4));
            let space = &spaces[random.usize(..2)];
            // What is in memory alone comes to the journal in an order of its own.
            let level = [Acknowledge::Journal, Acknowledge::Synced][random.usize(..2)];
            let change = (random.u8(..4) > 0).then_some(value);
            match change {
                Some(value) => {
                    space.insert_behind(&key, value).acknowledge(level).await.everywhere();
                }
                None => space.remove_behind(&key).acknowledge(level).await.everywhere(),
            }
            reference.insert(key.clone(), change);
            called.entry(key.clone()).or_default().push(change);
            let found = space.get(&key).await.unwrap().map(|found| *found);
            assert_eq!(found, change, "round {round}: whoever wrote it reads it");
            if random.bool() {
                tokio::task::yield_now().await;
            }
        }
        table.fails.store(false, Ordering::SeqCst);
        for space in &spaces {
            ends("a flush", space.flush()).await.unwrap();
        }
        let told = table.told.lock().clone();
        for (key, expected) in &reference {
            assert_eq!(table.get(key), *expected, "round {round}, {key}");
            // What the source was told is what was called for, in that order, with some left out
            // and some repeated.
            let mut calls = called[key].iter();
            let mut last: Option<(Option<u64>, WriteId)> = None;
            for (_, value, id) in told.iter().filter(|(other, ..)| other == key) {
                if last == Some((*value, *id)) {
                    continue;
                }
                assert!(last.is_none_or(|(_, last)| last < *id), "round {round}: a new id");
                assert!(calls.any(|call| call == value), "round {round}: out of order");
                last = Some((*value, *id));
            }
        }
        for cache in &caches {
            assert!(cache.close().await);
        }
    }
}

/// The journal is no cache: what it holds is newer than the source, whatever the space does.
#[tokio::test]
async fn a_space_that_is_off_sees_what_the_source_does_not_have() {
    for mode in [Mode::Off, Mode::Shadow] {
        let directory = tempfile::tempdir().unwrap();
        let table = Table::new();
        table.set("key", 1);
        let terrace = start(Layout::MemoryAndDisk, directory.path()).await;
        let space = space(&terrace, &table).build().unwrap();
        space.insert("other", 1).await.everywhere();
        space.set_mode(mode);
        space.insert_behind("key", 2).await.everywhere();
        assert_eq!(load(&space, &table, "key").await, Some(2), "{mode:?}");
        assert!(space.exists("key").await.unwrap(), "{mode:?}");
        if mode == Mode::Off {
            assert_eq!(*space.get("key").await.unwrap().unwrap(), 2);
            assert!(!space.exists("other").await.unwrap());
        }
        table.open();
        ends("a flush", space.flush()).await.unwrap();
        assert_eq!(load(&space, &table, "key").await, Some(2), "{mode:?}");
        assert_eq!(space.exists("key").await.unwrap(), mode == Mode::Shadow);
    }
}

#[tokio::test]
async fn without_a_writer_or_a_journal_it_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let terrace = start(Layout::Memory, directory.path()).await;
    let without = terrace.space::<str, u64>("without").build().unwrap();
    assert!(matches!(without.insert_behind("key", 1).await, Err(Error::NoWriter)));
    assert!(matches!(without.insert_through("key", 1).await, Err(Error::NoWriter)));
    let table = Table::new();
    let alone = Terrace::builder().memory(Memory::bytes(1 << 20)).build().await.unwrap();
    let space = space(&alone, &table).build().unwrap();
    assert!(matches!(space.insert_behind("key", 1).await, Err(Error::NoJournal)));
    assert!(matches!(space.flush().await, Err(Error::NoJournal)));
    let unencoded = terrace
        .space::<str, u64>("memory")
        .writer(|_: WriteBatch<str, u64>| async { Ok::<_, Infallible>(()) })
        .build_in_memory();
    assert!(unencoded.is_err());
}

#[tokio::test]
async fn another_process_takes_over_when_the_owner_ends() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (Table::new(), Table::new());
    let one = start(Layout::Memory, directory.path()).await;
    let owner = space(&one, &first).build().unwrap();
    owner.insert_behind("a", 1).await.everywhere();
    eventually("the first one owns it", async || first.times_told() > 0).await;
    first.open();
    owner.flush().await.unwrap();
    let two = start(Layout::Memory, directory.path()).await;
    let other = space(&two, &second).build().unwrap();
    other.insert_behind("b", 1).await.everywhere();
    ends("the owner writes it", other.flush()).await.unwrap();
    assert_eq!((first.get("b"), second.times_told()), (Some(1), 0));
    drop((owner, one));
    second.open();
    other.insert_behind("c", 1).await.everywhere();
    ends("the other one writes it", other.flush()).await.unwrap();
    assert_eq!(second.get("c"), Some(1));
}

#[cfg(unix)]
#[test]
fn d10_a_private_journal_in_spite_of_the_umask() {
    use std::os::unix::fs::PermissionsExt as _;
    const DIRECTORY: &str = "TERRACE_TEST_JOURNAL_UMASK";

    let Some(parent) = std::env::var_os(DIRECTORY) else {
        // Only a process of its own can have another umask.
        let parent = tempfile::tempdir().unwrap();
        let child = std::process::Command::new("sh")
            .args(["-c", "umask 000; exec \"$0\" \"$@\""])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "behind::d10_a_private_journal_in_spite_of_the_umask", "--nocapture"])
            .env(DIRECTORY, parent.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success(), "{said}\n{}", String::from_utf8_lossy(&child.stderr));
        assert!(said.contains("looked at 4 files"), "{said}");
        return;
    };
    let parent = Path::new(&parent);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let table = Table::new().open();
        let terrace = start(Layout::Memory, parent).await;
        let space = space(&terrace, &table).build().unwrap();
        space.insert_behind("key", 7).await.everywhere();
        space.flush().await.unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&parent.join("journal")), 0o700);
        let files: Vec<_> = std::fs::read_dir(parent.join("journal")).unwrap().collect();
        for file in &files {
            let path = file.as_ref().unwrap().path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
        println!("looked at {} files", files.len());
    });
}
