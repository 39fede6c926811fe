//! The **checkpoints**: what copies the write-ahead log into the database, on a thread and a
//! connection of its own.
//!
//! Most of a checkpoint is waiting for the disk, for tens of milliseconds, and nobody who writes
//! needs to wait for that too. Only the end of it, which cuts the log off, keeps writers away, and
//! has next to nothing left to copy.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::Connection;

use super::budget::{length, log_of};
use super::turn::Turn;
use super::{connection, place};

/// How long the end of a checkpoint waits for readers, while writers wait for it.
const PATIENCE: Duration = Duration::from_millis(20);

/// Why the log is to be cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It is long, unless another process has cut it off meanwhile.
    LogIsLong,
    /// The database has given pages back, and its file is shorter after a checkpoint.
    FileIsShorter,
}

#[derive(Debug)]
pub(super) struct Checkpoints {
    due: SyncSender<Why>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpoints {
    /// For the database at `path`, whose log may take so many bytes.
    pub(super) fn start(path: PathBuf, share: u64) -> std::io::Result<Self> {
        let (due, when_due) = sync_channel(1);
        let thread = thread::Builder::new()
            .name("terrace-log".into())
            .spawn(move || make_checkpoints(&path, share, &when_due))?;
        Ok(Self { due, thread: Some(thread) })
    }

    /// One is to be made. If one is due already, that is enough, or the next one will do.
    pub(super) fn are_due(&self, why: Why) {
        let _ = self.due.try_send(why);
    }

    /// Ends the thread, and waits for it.
    pub(super) fn end(self) {
        let Self { due, thread } = self;
        drop(due);
        // What panicked has said so.
        let _ = thread.map(JoinHandle::join);
    }
}

/// Whether a log of so many bytes, which may take `share`, is to be cut off beside those who write: it
/// has to be copied into the database, and that needs room on the disk, too.
pub(super) fn is_long(log: u64, share: u64, directory: &Path) -> bool {
    // Below that nobody is helped.
    const SHORT: u64 = 512 << 10;
    log > share / 2 || (log > SHORT && log > place::free_bytes(directory) / 2)
}

fn make_checkpoints(path: &Path, share: u64, when_due: &Receiver<Why>) {
    let log = log_of(path);
    let directory = path.parent().unwrap_or(path);
    let mut connection = None;
    let turn = Turn::among(directory);
    while let Ok(why) = when_due.recv() {
        if why == Why::LogIsLong && !is_long(length(&log).unwrap_or(0), share, directory) {
            continue;
        }
        let made = match &connection {
            Some(connection) => make_checkpoint(connection, &turn),
            None => connection::connect(path).and_then(|new| {
                new.busy_timeout(PATIENCE)?;
                make_checkpoint(connection.insert(new), &turn)
            }),
        };
        if let Err(error) = made {
            // The writer makes one itself when the log may not become longer.
            tracing::debug!(%error, log = length(&log).unwrap_or(0), "no checkpoint was made");
            connection = None;
        }
    }
}

fn make_checkpoint(connection: &Connection, turn: &Turn) -> rusqlite::Result<()> {
    // What is written during the first is little, and less during the second.
    checkpoint(connection, "PASSIVE")?;
    checkpoint(connection, "PASSIVE")?;
    let _turn = turn.wait();
    checkpoint(connection, "TRUNCATE").map(drop)
}

/// Whether the checkpoint was made in full: nobody was in the way.
pub(super) fn checkpoint(connection: &Connection, kind: &str) -> rusqlite::Result<bool> {
    let pragma = format!("PRAGMA wal_checkpoint({kind})");
    connection.query_row(&pragma, [], |row| row.get::<_, i64>(0)).map(|busy| busy == 0)
}
