//! The **turn**: which of the processes that share a directory writes next.
//!
//! SQLite has no queue. Whoever finds its lock taken sleeps and tries again, and where several
//! processes write all the time, it is overtaken by those who come at the right moment: most write
//! at once, and some wait for most of a second. A lock of the kernel has a queue, and whoever waits
//! in it is woken when it is its turn.
//!
//! It only says who is next. What is true is decided by SQLite's own lock, so that nothing depends on
//! everybody asking for a turn: checkpoints that cannot wait do not, nor does a process whose
//! directory or file system has no such lock.

use std::fs::File;
use std::path::Path;

use super::opening::lock_file;

/// Empty; nobody has it locked for longer than a transaction takes.
const FILE: &str = "terrace.turn";

/// The queue, as one who may stand in it.
#[derive(Debug)]
pub(super) struct Turn {
    file: Option<File>,
}

/// Whose turn it is, until this is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Taken<'a> {
    file: Option<&'a File>,
}

impl Turn {
    /// One for each thread that writes: who opened the file has the lock.
    pub(super) fn among(directory: &Path) -> Self {
        let file = lock_file(&directory.join(FILE));
        if let Err(error) = &file {
            tracing::debug!(%error, "processes that write at once are not served in order");
        }
        Self { file: file.ok() }
    }

    /// Waits until it is this one's turn.
    pub(super) fn wait(&self) -> Taken<'_> {
        Taken { file: self.file.as_ref().filter(|file| file.lock().is_ok()) }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.file {
            // It ends with the file at the latest.
            let _ = file.unlock();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{TryRecvError, channel};
    use std::thread;

    use super::*;

    #[test]
    fn one_at_a_time_has_its_turn() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (Turn::among(directory.path()), Turn::among(directory.path()));
        let taken = one.wait();
        assert!(taken.file.is_some(), "this file system has such locks");
        let (tell, told) = channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let taken = other.wait();
                tell.send(taken.file.is_some()).unwrap();
            });
            assert_eq!(told.try_recv(), Err(TryRecvError::Empty));
            drop(taken);
            assert!(told.recv().unwrap(), "it is the other's turn then");
        });
        drop(one.wait());
    }

    #[test]
    fn without_a_queue_nobody_waits() {
        let nowhere = Turn::among(Path::new("/nowhere at all"));
        let (_first, second) = (nowhere.wait(), nowhere.wait());
        assert!(second.file.is_none());
    }
}
