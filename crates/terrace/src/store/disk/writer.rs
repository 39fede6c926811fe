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

/// Entries that one eviction deletes.
const EVICT_AT_ONCE: i64 = 64;

/// Applies a change, and returns how to tell its caller once it is committed.
type Change = Box<dyn FnOnce(&mut Batch<'_>) -> rusqlite::Result<Report> + Send>;
type Report = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

#[derive(Debug)]
pub(super) struct Writer {
    changes: Mutex<Option<mpsc::Sender<Change>>>,
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
        change: impl FnOnce(&mut Batch<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let closed = || StoreError::new(StoreErrorKind::Closed, doing);
        let (answer, answered) = oneshot::channel();
        let change: Change = Box::new(move |batch| {
            let output = change(batch)?;
            Ok(Box::new(move |committed| {
                let _ = answer.send(committed.map(|()| output));
            }))
        });
        let changes = self.changes.lock().clone().ok_or_else(closed)?;
        changes.send(change).await.map_err(|_| closed())?;
        drop(changes);
        // The writer drops a change that failed without a word: its batch was undone.
        answered.await.unwrap_or_else(|_| Err(StoreError::new(StoreErrorKind::Other, doing)))
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
    mut queue: mpsc::Receiver<Change>,
    max_bytes: u64,
    evicted: &AtomicU64,
) {
    let mut waiting = Vec::with_capacity(LARGEST_BATCH);
    while queue.blocking_recv_many(&mut waiting, LARGEST_BATCH) > 0 {
        let mut reports = Vec::with_capacity(waiting.len());
        let outcome = write_batch(&mut connection, &mut waiting, &mut reports, max_bytes, evicted);
        if let Err(error) = &outcome {
            tracing::warn!(%error, "the disk tier could not write");
        }
        for report in reports {
            report(outcome.as_ref().map(|_| ()).map_err(StoreError::clone));
        }
        waiting.clear();
    }
    // The last to go leaves a database without a journal to replay.
    if let Err(error) =
        connection.execute_batch("PRAGMA optimize; PRAGMA wal_checkpoint(TRUNCATE);")
    {
        tracing::debug!(%error, "the journal stays until the next start");
    }
}

fn write_batch(
    connection: &mut Connection,
    changes: &mut Vec<Change>,
    reports: &mut Vec<Report>,
    max_bytes: u64,
    evicted: &AtomicU64,
) -> Result<(), StoreError> {
    let failed = |error| failed("write to the disk tier", error);
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let mut batch = Batch { connection: &transaction, entries: 0, bytes: 0 };
    for change in changes.drain(..) {
        reports.push(change(&mut batch).map_err(failed)?);
    }
    let gone = batch.finish(max_bytes).map_err(failed)?;
    transaction.commit().map_err(failed)?;
    evicted.fetch_add(gone, Ordering::Relaxed);
    Ok(())
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
        let (mut stored, mut evicted) = (self.settle()?, 0);
        while stored > max_bytes {
            let gone = self.delete_where(
                "id IN (SELECT id FROM entry ORDER BY expires LIMIT ?1)",
                [EVICT_AT_ONCE],
            )?;
            if gone == 0 {
                break;
            }
            evicted += unsigned(gone);
            stored = self.settle()?;
        }
        Ok(evicted)
    }

    fn settle(&mut self) -> rusqlite::Result<u64> {
        let mut statement = self.connection.prepare_cached(
            "UPDATE usage SET entries = entries + ?1, bytes = bytes + ?2 RETURNING bytes",
        )?;
        let bytes: i64 = statement.query_row([self.entries, self.bytes], |row| row.get(0))?;
        (self.entries, self.bytes) = (0, 0);
        Ok(unsigned(bytes))
    }

    /// Deletes entries that nobody will want any more, as many as one sweep may, and
    /// gives room back to the file system.
    pub(super) fn sweep(&mut self, now: WallTime) -> rusqlite::Result<()> {
        self.delete_where(
            "id IN (SELECT id FROM entry WHERE expires <= ?1 ORDER BY expires LIMIT ?2)",
            [signed(now.as_millis()), SWEEP_AT_ONCE],
        )?;
        self.connection.execute_batch("PRAGMA incremental_vacuum(256)")
    }
}
