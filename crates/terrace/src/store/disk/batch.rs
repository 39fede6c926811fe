//! The **batch**: a transaction that changes are applied to, and what they add up to.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::budget::file_bytes;
use super::touches::{DiskEviction, Touches};
use super::{row_of, rows_of, signed, unsigned};
use crate::clock::WallTime;
use crate::key::{StoredKey, parts_of_name};
use crate::store::Put;

/// What a row of `file` says of its file.
struct State;

impl State {
    /// It is about to be written.
    const RESERVED: i64 = 0;
    /// An entry has it. No index knows of these.
    const LIVE: i64 = 1;
    /// No entry has it any more.
    const DEAD: i64 = 2;
}

/// See the [module](self).
pub(super) struct Batch<'a> {
    pub(super) connection: &'a Connection,
    pub(super) ledger_lines: i64,
    eviction: DiskEviction,
    /// What the row of `usage` is to be changed by.
    entries: i64,
    bytes: i64,
    files: i64,
    file_bytes: i64,
    /// The rank of the newest entry, once it was asked for.
    newest: Option<i64>,
    /// Files that no entry has any more, to be removed once that is committed.
    dead: Vec<i64>,
    /// Whether pages were given back.
    pub(super) is_shorter: bool,
}

impl<'a> Batch<'a> {
    pub(super) fn new(
        connection: &'a Connection,
        eviction: DiskEviction,
        ledger_lines: i64,
    ) -> Self {
        Self {
            connection,
            ledger_lines,
            eviction,
            entries: 0,
            bytes: 0,
            files: 0,
            file_bytes: 0,
            newest: None,
            dead: Vec::new(),
            is_shorter: false,
        }
    }
}

/// Entries.
impl Batch<'_> {
    /// Stores a frame in its row, or with the file that was reserved and written for it. False if
    /// that is not reserved any more.
    pub(super) fn insert(&mut self, put: &Put, file: Option<i64>) -> rusqlite::Result<bool> {
        if let Some(file) = file
            && !self.mark_file(file, State::RESERVED, State::LIVE)?
        {
            return Ok(false);
        }
        let key = put.key.as_str();
        let id = row_of(&put.key);
        let rank = self.rank_of_new(id)?;
        self.delete_row(id)?;
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO entry (id, key, expires, rank, file, frame)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        let expires = put.expires.map_or(i64::MAX, |time| signed(time.as_millis()));
        let inline: &[u8] = if file.is_some() { &[] } else { &put.frame };
        statement.execute(params![id, key, expires, rank, file, inline])?;
        self.entries += 1;
        self.bytes += signed((key.len() + put.frame.len()) as u64);
        Ok(true)
    }

    pub(super) fn delete(&mut self, key: &StoredKey) -> rusqlite::Result<bool> {
        self.delete_row(row_of(key))
    }

    /// Deletes what is stored under a name, by whichever build.
    pub(super) fn delete_named(&mut self, name: &str) -> rusqlite::Result<bool> {
        let (space, key) = parts_of_name(name).unwrap_or(("", name));
        let rows = rows_of(space, key);
        let gone = self.delete_where("id BETWEEN ?1 AND ?2", [rows.start(), rows.end()])?;
        Ok(gone > 0)
    }

    fn delete_row(&mut self, id: i64) -> rusqlite::Result<bool> {
        self.delete_where("id = ?1", [id]).map(|gone| gone > 0)
    }

    /// Deletes rows; says how many there were.
    pub(super) fn delete_rows(&mut self, ids: &[i64]) -> rusqlite::Result<u64> {
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
    ) -> rusqlite::Result<u64> {
        let mut statement = self.connection.prepare_cached(&format!(
            "DELETE FROM entry WHERE {condition} RETURNING length(key) + length(frame), file"
        ))?;
        let mut rows = statement.query(parameters)?;
        let (mut gone, mut files) = (0, Vec::new());
        while let Some(row) = rows.next()? {
            self.bytes -= row.get::<_, i64>(0)?;
            files.extend(row.get::<_, Option<i64>>(1)?);
            gone += 1;
        }
        drop(rows);
        self.entries -= signed(gone);
        for file in files {
            self.bytes -= signed(self.file_length(file)?.unwrap_or(0));
            self.give_up(file)?;
        }
        Ok(gone)
    }
}

/// Files. A row of `file` is there before its file, and goes after it: what is on the disk is
/// always counted.
impl Batch<'_> {
    /// Counts a file that is about to be written.
    pub(super) fn reserve(&mut self, file: i64, length: u64) -> rusqlite::Result<()> {
        let mut statement = self
            .connection
            .prepare_cached("INSERT INTO file (id, bytes, state) VALUES (?1, ?2, ?3)")?;
        statement.execute(params![file, signed(length), State::RESERVED])?;
        self.files += 1;
        self.file_bytes += signed(file_bytes(length));
        Ok(())
    }

    /// No entry has this file any more, or none will.
    pub(super) fn give_up(&mut self, file: i64) -> rusqlite::Result<()> {
        if self.mark_file(file, State::LIVE, State::DEAD)?
            || self.mark_file(file, State::RESERVED, State::DEAD)?
        {
            self.dead.push(file);
        }
        Ok(())
    }

    /// Files that were given up, or reserved and never written: up to `most`.
    pub(super) fn leftovers(connection: &Connection, most: usize) -> rusqlite::Result<Leftovers> {
        let mut statement = connection
            .prepare_cached("SELECT id, state FROM file WHERE state IN (0, 2) LIMIT ?1")?;
        let mut leftovers = Leftovers::default();
        let mut rows = statement.query([signed(most as u64)])?;
        while let Some(row) = rows.next()? {
            let file = row.get(0)?;
            if row.get::<_, i64>(1)? == State::DEAD {
                leftovers.dead.push(file);
            } else {
                leftovers.reserved.push(file);
            }
        }
        Ok(leftovers)
    }

    /// Whether any row speaks of this file.
    pub(super) fn knows(connection: &Connection, file: i64) -> rusqlite::Result<bool> {
        connection.prepare_cached("SELECT 1 FROM file WHERE id = ?1")?.exists([file])
    }

    /// Forgets files that are removed; says how many of them there were.
    pub(super) fn forget(&mut self, files: &[i64]) -> rusqlite::Result<u64> {
        let mut forgotten = 0;
        for file in files {
            let length: Option<i64> = self
                .connection
                .prepare_cached("DELETE FROM file WHERE id = ?1 AND state = ?2 RETURNING bytes")?
                .query_row(params![file, State::DEAD], |row| row.get(0))
                .optional()?;
            if let Some(length) = length {
                self.files -= 1;
                self.file_bytes -= signed(file_bytes(unsigned(length)));
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }

    /// The files that are to be removed once this is committed.
    pub(super) fn into_dead(self) -> Vec<i64> {
        self.dead
    }

    fn mark_file(&self, file: i64, from: i64, to: i64) -> rusqlite::Result<bool> {
        let mut statement = self
            .connection
            .prepare_cached("UPDATE file SET state = ?3 WHERE id = ?1 AND state = ?2")?;
        statement.execute(params![file, from, to]).map(|changed| changed == 1)
    }

    fn file_length(&self, file: i64) -> rusqlite::Result<Option<u64>> {
        self.connection
            .prepare_cached("SELECT bytes FROM file WHERE id = ?1")?
            .query_row([file], |row| row.get(0))
            .optional()
            .map(|length| length.map(unsigned))
    }
}

/// Files that no entry has: see [`Batch::leftovers`].
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    pub(super) dead: Vec<i64>,
    pub(super) reserved: Vec<i64>,
}

/// Who leaves. Ranks are numbers of the database's own, no times: with LRU the higher was used
/// later, with LFU more often since what leaves now came.
impl Batch<'_> {
    /// The rank of an entry that is stored now.
    fn rank_of_new(&mut self, id: i64) -> rusqlite::Result<i64> {
        match self.eviction {
            DiskEviction::Lru => self.next_rank(),
            DiskEviction::Lfu => {
                let before: Option<i64> = self
                    .connection
                    .prepare_cached("SELECT rank FROM entry WHERE id = ?1")?
                    .query_row([id], |row| row.get(0))
                    .optional()?;
                Ok(before.unwrap_or(0).max(self.lowest_rank()?).saturating_add(1))
            }
            DiskEviction::Ttl => Ok(0),
        }
    }

    fn next_rank(&mut self) -> rusqlite::Result<i64> {
        let newest = match self.newest {
            Some(newest) => newest,
            None => self
                .connection
                .prepare_cached("SELECT coalesce(max(rank), 0) FROM entry")?
                .query_row([], |row| row.get(0))?,
        };
        let next = newest.saturating_add(1);
        self.newest = Some(next);
        Ok(next)
    }

    fn lowest_rank(&self) -> rusqlite::Result<i64> {
        self.connection
            .prepare_cached("SELECT coalesce(min(rank), 0) FROM entry")?
            .query_row([], |row| row.get(0))
    }

    /// Writes down what was read lately, as much of it as fits.
    pub(super) fn note_reads(&mut self, touches: &Touches, most: usize) -> rusqlite::Result<()> {
        if touches.is_empty() {
            return Ok(());
        }
        let lowest = match self.eviction {
            DiskEviction::Lfu => self.lowest_rank()?,
            _ => 0,
        };
        for (id, count) in touches.take(most) {
            let (rank, plus) = match self.eviction {
                DiskEviction::Lru => (self.next_rank()?, 0),
                DiskEviction::Lfu => (lowest, count),
                DiskEviction::Ttl => continue,
            };
            self.connection
                .prepare_cached("UPDATE entry SET rank = max(rank, ?2) + ?3 WHERE id = ?1")?
                .execute([id, rank, plus])?;
        }
        Ok(())
    }

    /// Deletes entries until `bytes` are freed, but no more than `rows`; says how many left.
    pub(super) fn evict(&mut self, bytes: u64, rows: usize) -> rusqlite::Result<u64> {
        let order = if self.eviction == DiskEviction::Ttl { "expires" } else { "rank" };
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT id, length(key) + length(frame)
                 + coalesce((SELECT bytes FROM file WHERE file.id = entry.file), 0)
             FROM entry ORDER BY {order} LIMIT ?1"
        ))?;
        let mut found = statement.query([signed(rows as u64)])?;
        let (mut leaving, mut freed) = (Vec::new(), 0);
        while freed < bytes
            && let Some(row) = found.next()?
        {
            leaving.push(row.get(0)?);
            freed += unsigned(row.get(1)?);
        }
        drop(found);
        self.delete_rows(&leaving)
    }

    /// Tells the touches from where on an entry is new.
    pub(super) fn tell_ranks(&mut self, touches: &Touches) -> rusqlite::Result<()> {
        if self.eviction == DiskEviction::Lru {
            let oldest = self.lowest_rank()?;
            let newest: i64 = self
                .connection
                .prepare_cached("SELECT coalesce(max(rank), 0) FROM entry")?
                .query_row([], |row| row.get(0))?;
            touches.ranks_are(oldest, newest);
        }
        Ok(())
    }
}

/// Housekeeping.
impl Batch<'_> {
    /// Deletes entries of which the key begins with `prefix`, of those after the row `after` and no
    /// more than `most`; says how many, and which row was the last.
    pub(super) fn clear(
        &mut self,
        prefix: &str,
        after: i64,
        most: usize,
    ) -> rusqlite::Result<(u64, Option<i64>)> {
        let mut statement = self.connection.prepare_cached(
            "SELECT id FROM entry WHERE id > ?2 AND substr(key, 1, length(?1)) = ?1
             ORDER BY id LIMIT ?3",
        )?;
        let ids = statement
            .query_map(params![prefix, after, signed(most as u64)], |row| row.get(0))?
            .collect::<Result<Vec<_>, _>>()?;
        Ok((self.delete_rows(&ids)?, ids.last().copied().filter(|_| ids.len() == most)))
    }

    /// Deletes entries that nobody will want any more, as many as one sweep may, with
    /// lapsed counters and leases.
    pub(super) fn sweep(&mut self, now: WallTime, most: usize) -> rusqlite::Result<()> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT id FROM entry WHERE expires <= ?1 ORDER BY expires LIMIT ?2")?;
        let most = signed(most as u64);
        let due = statement
            .query_map([signed(now.as_millis()), most], |row| row.get(0))?
            .collect::<Result<Vec<_>, _>>()?;
        self.delete_rows(&due)?;
        for statement in
            ["DELETE FROM counter WHERE expires <= ?1", "DELETE FROM lease WHERE until <= ?1"]
        {
            self.connection.execute(statement, [signed(now.as_millis())])?;
        }
        Ok(())
    }

    /// Gives free pages back to the file system; the file is shorter after the next checkpoint.
    pub(super) fn give_back(&mut self, pages: u64) -> rusqlite::Result<()> {
        self.is_shorter = true;
        // Each step gives back one page.
        let mut statement =
            self.connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        Ok(())
    }

    /// Counts everything anew: nothing was left to evict, and yet it counts as too much.
    pub(super) fn recount(&mut self) -> rusqlite::Result<()> {
        (self.entries, self.bytes, self.files, self.file_bytes) = (0, 0, 0, 0);
        let recount = format!(
            "UPDATE usage SET
                 entries = (SELECT count(*) FROM entry),
                 bytes = (SELECT coalesce(sum(length(key) + length(frame)), 0) FROM entry)
                     + (SELECT coalesce(sum(file.bytes), 0) FROM entry JOIN file ON file.id = file),
                 files = (SELECT count(*) FROM file),
                 file_bytes = (SELECT coalesce(sum((bytes + {0}) / {1} * {1}), 0) FROM file)",
            super::budget::PAGE - 1,
            super::budget::PAGE,
        );
        self.connection.execute(&recount, []).map(drop)
    }

    /// Writes down what the batch adds up to.
    pub(super) fn settle(&mut self) -> rusqlite::Result<()> {
        let deltas = [self.entries, self.bytes, self.files, self.file_bytes];
        if deltas != [0; 4] {
            let mut statement = self.connection.prepare_cached(
                "UPDATE usage SET entries = entries + ?1, bytes = bytes + ?2,
                     files = files + ?3, file_bytes = file_bytes + ?4",
            )?;
            statement.execute(deltas)?;
            (self.entries, self.bytes, self.files, self.file_bytes) = (0, 0, 0, 0);
        }
        Ok(())
    }
}
