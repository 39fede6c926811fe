//! The **checkpoints**: what copies the write-ahead log into the database, on a thread and a
//! connection of its own.
//!
//! Most of a checkpoint is waiting for the disk, for tens of milliseconds, and nobody who writes
//! needs to wait for that too. Only the end of it, which cuts the log off, keeps writers away, and
//! has next to nothing left to copy.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::Connection;

use super::budget::{length, log_of};
use super::connection;

/// How long the end of a checkpoint waits for readers, while writers wait for it.
const PATIENCE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Checkpoints {
    due: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpoints {
    /// For the database at `path`, whose log is cut off when it has reached `from` bytes.
    pub(super) fn start(path: PathBuf, from: u64) -> std::io::Result<Self> {
        let (due, when_due) = sync_channel(1);
        let thread = thread::Builder::new()
            .name("terrace-log".into())
            .spawn(move || make_checkpoints(&path, from, &when_due))?;
        Ok(Self { due, thread: Some(thread) })
    }

    /// The log has become long.
    pub(super) fn are_due(&self) {
        // If one is due already, that is enough.
        let _ = self.due.try_send(());
    }

    /// Ends the thread, and waits for it.
    pub(super) fn end(self) {
        let Self { due, thread } = self;
        drop(due);
        // What panicked has said so.
        let _ = thread.map(JoinHandle::join);
    }
}

fn make_checkpoints(path: &std::path::Path, from: u64, when_due: &Receiver<()>) {
    let log = log_of(path);
    let mut connection = None;
    while when_due.recv().is_ok() {
        let made = match &connection {
            Some(connection) => make_checkpoint(connection),
            None => connection::connect(path).and_then(|new| {
                new.busy_timeout(PATIENCE)?;
                make_checkpoint(connection.insert(new))
            }),
        };
        if let Err(error) = made {
            // The writer makes one itself when the log may not become longer.
            tracing::debug!(%error, log = length(&log).unwrap_or(0), from, "no checkpoint was made");
            connection = None;
        }
    }
}

fn make_checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    checkpoint(connection, "PASSIVE")?;
    checkpoint(connection, "TRUNCATE").map(drop)
}

/// Whether the checkpoint was made in full: nobody was in the way.
pub(super) fn checkpoint(connection: &Connection, kind: &str) -> rusqlite::Result<bool> {
    let pragma = format!("PRAGMA wal_checkpoint({kind})");
    connection.query_row(&pragma, [], |row| row.get::<_, i64>(0)).map(|busy| busy == 0)
}
