//! The **writer**: the one thread that changes the database.
//!
//! It takes everything that waits, up to a limit, into one transaction: a hundred
//! callers that write at once pay for one commit. Callers only wait; one that is
//! dropped leaves its change whole, done or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use parking_lot::Mutex;
use rusqlite::{Connection, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

use super::{failed, row_id, signed, unsigned};
use crate::clock::WallTime;
use crate::key::StoredKey;
use crate::store::{Put, StoreError, StoreErrorKind};

/// Changes that one transaction takes at most.
const LARGEST_BATCH: usize = 256;

/// Changes that may wait; further callers wait for room.
const QUEUE: usize = 1024;

/// Entries that one sweep deletes at most.
const SWEEP_AT_ONCE: i64 = 4096;

/// Free pages that one sweep gives back to the file system at most.
const GIVE_BACK_AT_ONCE: u32 = 256;

/// A change that waits for its transaction, and the caller who waits for the change.
trait Change: Send {
    /// Applies it; may be called again in another transaction if that one was undone.
    fn apply(&mut self, batch: &mut Batch<'_>) -> rusqlite::Result<()>;
    /// Tells the caller what became of it.
    fn report(self: Box<Self>, outcome: Result<(), StoreError>);
}

struct Waiting<T, F> {
    change: F,
    output: Option<T>,
    answer: oneshot::Sender<Result<T, StoreError>>,
    doing: &'static str,
}

impl<T, F> Change for Waiting<T, F>
where
    T: Send,
    F: FnMut(&mut Batch<'_>) -> rusqlite::Result<T> + Send,
{
    fn apply(&mut self, batch: &mut Batch<'_>) -> rusqlite::Result<()> {
        self.output = Some((self.change)(batch)?);
        Ok(())
    }

    fn report(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Self { output, answer, doing, .. } = *self;
        let missing = StoreError::new(StoreErrorKind::Other, doing);
        // Whoever asked may be gone; the change stands all the same.
        let _ = answer.send(outcome.and_then(|()| output.ok_or(missing)));
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    changes: Mutex<Option<mpsc::Sender<Box<dyn Change>>>>,
    ended: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
    closed: AtomicBool,
}

impl Writer {
    pub(super) fn start(
        connection: Connection,
        max_bytes: u64,
        evicted: Arc<AtomicU64>,
    ) -> std::io::Result<Self> {
        let (changes, queue) = mpsc::channel(QUEUE);
        let (ending, ended) = oneshot::channel();
        thread::Builder::new().name("terrace-disk".into()).spawn(move || {
            write_all(connection, queue, max_bytes, &evicted);
            let _ = ending.send(());
        })?;
        Ok(Self {
            changes: Mutex::new(Some(changes)),
            ended: tokio::sync::Mutex::new(Some(ended)),
            closed: AtomicBool::new(false),
        })
    }

    /// Runs `change` in a transaction and waits until that is committed.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        doing: &'static str,
        change: impl FnMut(&mut Batch<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let closed = || StoreError::new(StoreErrorKind::Closed, doing);
        let (answer, answered) = oneshot::channel();
        let waiting = Box::new(Waiting { change, output: None, answer, doing });
        let changes = self.changes.lock().clone().ok_or_else(closed)?;
        changes.send(waiting).await.map_err(|_| closed())?;
        drop(changes);
        answered.await.unwrap_or_else(|_| Err(closed()))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Waits until everything that was asked for is written.
    pub(super) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changes.lock().take();
        if let Some(ended) = self.ended.lock().await.take() {
            let _ = ended.await;
        }
    }
}

fn write_all(
    mut connection: Connection,
    mut queue: mpsc::Receiver<Box<dyn Change>>,
    max_bytes: u64,
    evicted: &AtomicU64,
) {
    let mut waiting = Vec::with_capacity(LARGEST_BATCH);
    while queue.blocking_recv_many(&mut waiting, LARGEST_BATCH) > 0 {
        let outcome = write_batch(&mut connection, &mut waiting, max_bytes, evicted);
        if outcome.is_ok() || waiting.len() == 1 {
            waiting.drain(..).for_each(|change| change.report(outcome.clone()));
            continue;
        }
        // One that fails must not take the others with it: each for itself now.
        for mut change in waiting.drain(..) {
            let alone = std::slice::from_mut(&mut change);
            let outcome = write_batch(&mut connection, alone, max_bytes, evicted);
            change.report(outcome);
        }
    }
    // The last to go leaves a database without a journal to replay. It takes no
    // statistics: those of a small database make plans that scan a large one.
    let last = connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE);");
    if let Err(error) = last {
        tracing::debug!(%error, "the journal stays until the next start");
    }
}

fn write_batch(
    connection: &mut Connection,
    changes: &mut [Box<dyn Change>],
    max_bytes: u64,
    evicted: &AtomicU64,
) -> Result<(), StoreError> {
    let outcome = try_batch(connection, changes, max_bytes);
    let gone = outcome.map_err(|error| failed("write to the disk tier", error))?;
    evicted.fetch_add(gone, Ordering::Relaxed);
    Ok(())
}

/// Applies all changes or none; returns how many entries had to make room.
fn try_batch(
    connection: &mut Connection,
    changes: &mut [Box<dyn Change>],
    max_bytes: u64,
) -> rusqlite::Result<u64> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut batch = Batch { connection: &transaction, entries: 0, bytes: 0 };
    for change in changes {
        change.apply(&mut batch)?;
    }
    let gone = batch.finish(max_bytes)?;
    transaction.commit()?;
    Ok(gone)
}

/// The transaction that changes are applied to, and what they add up to.
pub(super) struct Batch<'a> {
    pub(super) connection: &'a Connection,
    entries: i64,
    bytes: i64,
}

impl Batch<'_> {
    pub(super) fn insert(&mut self, put: &Put) -> rusqlite::Result<()> {
        self.delete_row(row_id(put.key.as_str()))?;
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO entry (id, key, name, expires, frame) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        let key = put.key.as_str();
        let expires = put.expires.map_or(i64::MAX, |time| signed(time.as_millis()));
        statement.execute(params![
            row_id(key),
            key,
            row_id(&put.key.name()),
            expires,
            &*put.frame
        ])?;
        self.entries += 1;
        self.bytes += signed((key.len() + put.frame.len()) as u64);
        Ok(())
    }

    pub(super) fn delete(&mut self, key: &StoredKey) -> rusqlite::Result<bool> {
        self.delete_row(row_id(key.as_str()))
    }

    /// Deletes what is stored under a name, by whichever build.
    pub(super) fn delete_named(&mut self, name: &str) -> rusqlite::Result<bool> {
        self.delete_where("name = ?1", params![row_id(name)]).map(|gone| gone > 0)
    }

    pub(super) fn clear(&mut self, prefix: &str) -> rusqlite::Result<u64> {
        let gone = if prefix.is_empty() {
            self.delete_where("TRUE", [])?
        } else {
            self.delete_where("substr(key, 1, length(?1)) = ?1", [prefix])?
        };
        Ok(unsigned(gone))
    }

    fn delete_row(&mut self, id: i64) -> rusqlite::Result<bool> {
        self.delete_where("id = ?1", [id]).map(|gone| gone > 0)
    }

    fn delete_rows(&mut self, ids: &[i64]) -> rusqlite::Result<u64> {
        let mut gone = 0;
        for &id in ids {
            gone += u64::from(self.delete_row(id)?);
        }
        Ok(gone)
    }

    /// Deletes rows and keeps count of them. `condition` is one of a few constants.
    fn delete_where(
        &mut self,
        condition: &'static str,
        parameters: impl rusqlite::Params,
    ) -> rusqlite::Result<i64> {
        let mut statement = self.connection.prepare_cached(&format!(
            "DELETE FROM entry WHERE {condition} RETURNING length(key) + length(frame)"
        ))?;
        let mut rows = statement.query(parameters)?;
        let mut gone = 0;
        while let Some(row) = rows.next()? {
            self.bytes -= row.get::<_, i64>(0)?;
            gone += 1;
        }
        self.entries -= gone;
        Ok(gone)
    }

    /// Writes down what the batch added up to and makes room if it is too much.
    fn finish(mut self, max_bytes: u64) -> rusqlite::Result<u64> {
        let stored = self.settle()?;
        if stored <= max_bytes {
            return Ok(0);
        }
        let evicted = self.evict(stored - max_bytes)?;
        if self.settle()? > max_bytes {
            // Nothing is left, and yet it counts as too much: the count was wrong.
            self.connection.execute("UPDATE usage SET entries = 0, bytes = 0", [])?;
        }
        Ok(evicted)
    }

    /// Deletes what expires soonest until `excess` bytes are gone, and no more.
    fn evict(&mut self, excess: u64) -> rusqlite::Result<u64> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT id, length(key) + length(frame) FROM entry ORDER BY expires")?;
        let mut rows = statement.query([])?;
        let (mut leaving, mut freed) = (Vec::new(), 0);
        while freed < excess
            && let Some(row) = rows.next()?
        {
            leaving.push(row.get(0)?);
            freed += unsigned(row.get(1)?);
        }
        drop(rows);
        self.delete_rows(&leaving)
    }

    fn settle(&mut self) -> rusqlite::Result<u64> {
        let mut statement = self.connection.prepare_cached(
            "UPDATE usage SET entries = entries + ?1, bytes = bytes + ?2 RETURNING bytes",
        )?;
        let bytes: i64 = statement.query_row([self.entries, self.bytes], |row| row.get(0))?;
        (self.entries, self.bytes) = (0, 0);
        Ok(unsigned(bytes))
    }

    /// Deletes entries that nobody will want any more, as many as one sweep may, with
    /// lapsed counters and leases, and gives room back to the file system.
    pub(super) fn sweep(&mut self, now: WallTime) -> rusqlite::Result<()> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT id FROM entry WHERE expires <= ?1 ORDER BY expires LIMIT ?2")?;
        let due = statement
            .query_map([signed(now.as_millis()), SWEEP_AT_ONCE], |row| row.get(0))?
            .collect::<Result<Vec<_>, _>>()?;
        self.delete_rows(&due)?;
        for statement in
            ["DELETE FROM counter WHERE expires <= ?1", "DELETE FROM lease WHERE until <= ?1"]
        {
            self.connection.execute(statement, [signed(now.as_millis())])?;
        }
        // Each step gives back one page.
        let mut statement =
            self.connection.prepare(&format!("PRAGMA incremental_vacuum({GIVE_BACK_AT_ONCE})"))?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        Ok(())
    }
}
