//! The **committer**: the one thread that changes the journal.
//!
//! It takes everything that waits, up to a limit, into one transaction, so that a hundred callers
//! pay for one commit. Where one of them wants to hear that the device has it, the commit waits for
//! the device. When the device does not take what it was told to, nothing is written any more:
//! what the system drops then it calls written the next time.

use std::thread;

use parking_lot::Mutex;
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::database;
use crate::store::disk::failed;
use crate::store::{StoreError, StoreErrorKind};

/// Changes that one transaction takes at most.
const LARGEST_BATCH: usize = 256;

/// Changes that may wait; further callers wait for room.
const QUEUE: usize = 1024;

/// Bytes of the write-ahead log after which it is copied into the database.
const LONGEST_LOG: usize = 4 << 20;

/// What a transaction adds to the log beside the bytes that are written, roughly.
const OVERHEAD: usize = 16 << 10;

/// How a change is to be committed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct How {
    /// Whether the device has to have it.
    pub(super) is_synced: bool,
    /// How many bytes it writes, roughly.
    pub(super) bytes: usize,
}

/// A change that waits for its transaction, and the caller who waits for the change.
trait Change: Send {
    fn how(&self) -> How;
    /// Applies it; may be called again in another transaction if that one was undone.
    fn apply(&mut self, connection: &Connection) -> rusqlite::Result<()>;
    /// Tells the caller what became of it.
    fn report(self: Box<Self>, outcome: Result<(), StoreError>);
}

struct Waiting<T, F, G> {
    change: F,
    committed: G,
    output: Option<T>,
    answer: oneshot::Sender<Result<T, StoreError>>,
    how: How,
    doing: &'static str,
}

impl<T, F, G> Change for Waiting<T, F, G>
where
    T: Send,
    F: FnMut(&Connection) -> rusqlite::Result<T> + Send,
    G: FnOnce(&T) + Send,
{
    fn how(&self) -> How {
        self.how
    }

    fn apply(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        self.output = Some((self.change)(connection)?);
        Ok(())
    }

    fn report(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Self { committed, output, answer, doing, .. } = *self;
        let missing = StoreError::new(StoreErrorKind::Other, doing);
        let output = outcome.and_then(|()| output.ok_or(missing));
        if let Ok(output) = &output {
            committed(output);
        }
        // Whoever asked may be gone; the change stands all the same.
        let _ = answer.send(output);
    }
}

#[derive(Debug)]
pub(super) struct Committer {
    changes: Mutex<Option<mpsc::Sender<Box<dyn Change>>>>,
    ended: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
}

impl Committer {
    pub(super) fn start(connection: Connection) -> std::io::Result<Self> {
        let (changes, queue) = mpsc::channel(QUEUE);
        let (ending, ended) = oneshot::channel();
        thread::Builder::new().name("terrace-journal".into()).spawn(move || {
            commit_all(connection, queue);
            let _ = ending.send(());
        })?;
        Ok(Self { changes: Mutex::new(Some(changes)), ended: tokio::sync::Mutex::new(Some(ended)) })
    }

    /// Runs `change` in a transaction and waits until that is committed; `committed` is called
    /// before any later transaction begins.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        doing: &'static str,
        how: How,
        change: impl FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
        committed: impl FnOnce(&T) + Send + 'static,
    ) -> Result<T, StoreError> {
        let closed = || StoreError::new(StoreErrorKind::Closed, doing);
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { change, committed, output: None, answer, how, doing };
        let changes = self.changes.lock().clone().ok_or_else(closed)?;
        changes.send(Box::new(waiting)).await.map_err(|_| closed())?;
        drop(changes);
        answered.await.unwrap_or_else(|_| Err(closed()))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.changes.lock().is_none()
    }

    /// Waits until everything that was asked for is written.
    pub(super) async fn close(&self) {
        self.changes.lock().take();
        if let Some(ended) = self.ended.lock().await.take() {
            let _ = ended.await;
        }
    }
}

fn commit_all(connection: Connection, mut queue: mpsc::Receiver<Box<dyn Change>>) {
    let mut log = Log { connection, is_synced: false, length: 0, unsynced: None };
    let mut waiting = Vec::with_capacity(LARGEST_BATCH);
    while queue.blocking_recv_many(&mut waiting, LARGEST_BATCH) > 0 {
        let outcome = log.commit(&mut waiting);
        if outcome.is_ok() || waiting.len() == 1 || log.unsynced.is_some() {
            waiting.drain(..).for_each(|change| change.report(outcome.clone()));
        } else {
            // One that fails must not take the others with it: each for itself now.
            for mut change in waiting.drain(..) {
                let outcome = log.commit(std::slice::from_mut(&mut change));
                change.report(outcome);
            }
        }
        if log.length > LONGEST_LOG {
            log.copy();
        }
    }
    log.copy();
}

/// The connection, and what is to be known of its write-ahead log.
struct Log {
    connection: Connection,
    is_synced: bool,
    /// Bytes since it was copied into the database, roughly.
    length: usize,
    /// The device did not take what it was told to: why nothing is written any more.
    unsynced: Option<StoreError>,
}

const DOING: &str = "write to the journal";

impl Log {
    /// Applies all changes or none.
    fn commit(&mut self, changes: &mut [Box<dyn Change>]) -> Result<(), StoreError> {
        if let Some(error) = &self.unsynced {
            return Err(error.clone());
        }
        let is_synced = changes.iter().any(|change| change.how().is_synced);
        let outcome = self.try_commit(changes, is_synced);
        self.length += OVERHEAD + changes.iter().map(|change| change.how().bytes).sum::<usize>();
        outcome.map_err(|error| self.judge(error))
    }

    fn try_commit(
        &mut self,
        changes: &mut [Box<dyn Change>],
        is_synced: bool,
    ) -> rusqlite::Result<()> {
        if self.is_synced != is_synced {
            database::set_synced(&self.connection, is_synced)?;
            self.is_synced = is_synced;
        }
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for change in changes {
            change.apply(&transaction)?;
        }
        transaction.commit()
    }

    fn copy(&mut self) {
        if self.unsynced.is_some() {
            return;
        }
        self.length = 0;
        if let Err(error) = database::copy_log(&self.connection) {
            let error = self.judge(error);
            tracing::debug!(%error, "the journal's log stays as long as it is");
        }
    }

    /// Once a sync has failed it is never tried again on these files.
    fn judge(&mut self, error: rusqlite::Error) -> StoreError {
        let is_unsynced =
            error.sqlite_error().is_some_and(|error| SYNC_FAILURES.contains(&error.extended_code));
        let error = failed(DOING, error);
        if is_unsynced {
            tracing::error!(%error, "the device did not take what was written to the journal: \
                nothing more is acknowledged until the process is started anew");
            self.unsynced = Some(error.clone());
        }
        error
    }
}

/// What SQLite says when a file or its directory could not be synced.
const SYNC_FAILURES: [i32; 2] =
    [rusqlite::ffi::SQLITE_IOERR_FSYNC, rusqlite::ffi::SQLITE_IOERR_DIR_FSYNC];
