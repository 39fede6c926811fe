//! The **budget**: how the bytes that a disk tier may take are shared out.
//!
//! Everything in the directory counts: the database's pages, used or free, the write-ahead log,
//! its index, files of large values, and the directories that they are in.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::unsigned;

/// Bytes of a page, and of a block of most file systems.
pub(super) const PAGE: u64 = 4096;

/// What the write-ahead log takes for a page: its header and the page.
const FRAME: u64 = PAGE + 24;

/// The least that a disk tier can work in.
pub(super) const LEAST: u64 = 4 << 20;

/// What a change of one row writes to, as a rule: its own page, and those of indexes, some of which
/// it shares with others.
const PAGES_A_ROW: u64 = 3;

/// The shares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Pages of the database and files of large values.
    pub(super) data: u64,
    /// The write-ahead log.
    pub(super) log: u64,
    /// The part of `data` within which eviction begins to make room ahead of time.
    pub(super) slack: u64,
    /// Directories for files of large values.
    pub(super) shards: u8,
    /// Lines, and marks of each kind, that the ledger keeps.
    pub(super) ledger_lines: i64,
}

impl Budget {
    pub(super) fn new(max_bytes: u64) -> Self {
        const MOST_LINES: u64 = 65_536;
        let log = (max_bytes / 16).clamp(1 << 20, 64 << 20);
        let shards = u8::try_from(max_bytes >> 22).unwrap_or(u8::MAX).max(1);
        // Each region of the log's index stands for 4,096 pages.
        let index = (log / FRAME / 4096 + 2) * (32 << 10);
        let directories = (u64::from(shards) + 4) * PAGE;
        let data = max_bytes.saturating_sub(log + index + directories);
        // A line takes about a hundred bytes, and an index has its name once more.
        let lines = (max_bytes / 16 / 256).min(MOST_LINES);
        Self {
            data,
            log,
            slack: data / 64,
            shards,
            ledger_lines: i64::try_from(lines).unwrap_or(i64::MAX),
        }
    }

    /// Bytes that one transaction may write to the log, so that a few fit in, and so that nobody has
    /// to wait long for its end.
    fn transaction(&self) -> u64 {
        (self.log / 4).min(8 << 20)
    }

    /// Bytes of values that one change may bring.
    pub(super) fn largest_change(&self) -> u64 {
        self.transaction() / 2
    }

    /// Rows that one transaction may delete.
    pub(super) fn rows_at_once(&self) -> usize {
        usize::try_from(self.transaction() / FRAME / PAGES_A_ROW).unwrap_or(1).max(1)
    }

    /// Pages that one transaction may give back: each may move another one.
    pub(super) fn pages_at_once(&self) -> u64 {
        (self.transaction() / FRAME / 3).max(1)
    }
}

/// What a change adds to, before it is made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// Rows that it changes.
    pub(super) rows: u64,
    /// Bytes that it adds to the database.
    pub(super) pages: u64,
    /// Bytes of files that it reserves.
    pub(super) files: u64,
    /// Whether it is made even if nothing can make room for it: it is small, and what the ledger
    /// does not know would be wrong.
    pub(super) must_be: bool,
}

impl Cost {
    /// A change of so many rows that adds nothing worth speaking of.
    pub(super) fn rows(rows: usize) -> Self {
        Self { rows: rows as u64, ..Self::default() }
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self {
            rows: self.rows + other.rows,
            pages: self.pages + other.pages,
            files: self.files + other.files,
            must_be: self.must_be || other.must_be,
        }
    }

    /// A change of the ledger by so many lines.
    pub(super) fn lines(lines: usize) -> Self {
        let lines = lines as u64;
        Self { rows: 2 * lines, pages: 256 * lines, files: 0, must_be: true }
    }

    /// Whether it adds anything worth speaking of.
    pub(super) fn adds(&self) -> bool {
        self.pages + self.files > 0
    }

    /// Bytes that the log may grow by.
    pub(super) fn log(&self) -> u64 {
        (self.rows * PAGES_A_ROW + self.pages / PAGE + 8) * FRAME
    }

    /// Whether another change fits into the transaction.
    pub(super) fn leaves_room(&self, budget: &Budget) -> bool {
        self.log() <= budget.transaction()
    }
}

/// What a row takes beside the bytes of its frame and key: columns, index entries, and its share
/// of what pages leave unused.
const ROW: u64 = 128;

/// Bytes that a row takes in the database.
pub(super) fn row_bytes(key: u64, frame: u64) -> u64 {
    let payload = key + frame + ROW;
    // What does not fit into a page with others is a chain of pages of its own.
    if payload < PAGE / 2 { payload } else { payload.next_multiple_of(PAGE) + PAGE }
}

/// Bytes that a file takes on most file systems.
pub(super) fn file_bytes(length: u64) -> u64 {
    length.next_multiple_of(PAGE)
}

/// What is taken at the moment, as a transaction sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// Bytes of the database, free pages among them.
    pub(super) database: u64,
    /// Bytes of free pages.
    pub(super) free: u64,
    /// Bytes of files.
    pub(super) files: u64,
}

impl Taken {
    pub(super) fn measure(connection: &Connection, path: &Path) -> rusqlite::Result<Self> {
        let mut statement = connection.prepare_cached(
            "SELECT page_count, freelist_count, file_bytes
             FROM pragma_page_count, pragma_freelist_count, usage",
        )?;
        let [pages, free, files] = statement
            .query_row([], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?].map(unsigned)))?;
        // Until a checkpoint cuts it off, the file is longer than what is in use of it.
        let database = (pages * PAGE).max(length(path).unwrap_or(0));
        Ok(Self { database, free: free * PAGE, files })
    }

    /// Bytes by which the directory may still grow.
    pub(super) fn unused(&self, budget: &Budget) -> u64 {
        budget.data.saturating_sub(self.all())
    }

    /// Bytes of all of it.
    pub(super) fn all(&self) -> u64 {
        self.database + self.files
    }

    /// Whether it is more than may be.
    pub(super) fn is_too_much(&self, budget: &Budget) -> bool {
        self.all() > budget.data
    }
}

/// The write-ahead log of a database.
pub(super) fn log_of(database: &Path) -> PathBuf {
    let mut path = OsString::from(database);
    path.push("-wal");
    path.into()
}

/// Bytes of a file; none if it is not there. It is never opened: closing it would drop the locks
/// that this process has on it.
pub(super) fn length(path: &Path) -> io::Result<u64> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        other => other.map(|found| found.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_add_up_to_no_more_than_there_is() {
        for max in [LEAST, 5 << 20, 64 << 20, 1 << 30, 1 << 40, u64::MAX] {
            let budget = Budget::new(max);
            assert!(budget.data < max - budget.log, "{max}: {budget:?}");
            assert!(budget.data >= max / 2, "{max}: {budget:?}");
            assert!(budget.largest_change() >= 64 << 10, "{max}: {budget:?}");
            assert!(budget.rows_at_once() >= 10, "{max}: {budget:?}");
        }
        // Where it matters, next to nothing is set apart.
        for max in [64_u64 << 20, 1 << 30, 1 << 40] {
            assert!(Budget::new(max).data >= max / 100 * 93, "{max}");
        }
    }
}
