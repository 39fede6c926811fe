//! The **database** of the journal: its tables, and every statement that is run on them.
//!
//! A write is *waiting*, *taken* (the owner has handed it to the writer), or *dead*. Of one key at
//! most one write waits: a newer one takes its place. One that is taken stays until its writer has
//! answered.

use std::path::Path;

use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use super::record::{checksum, key_hash};
use crate::clock::WallTime;
use crate::error::BuildError;
use crate::store::disk::connection::{begin_wal, connect, look};
use crate::store::disk::{signed, unsigned};

/// The name of the database in its directory.
pub(super) const DATABASE: &str = "journal.db";

/// Marks the file as ours: "TRRJ".
const APPLICATION: i32 = 0x5452_524A;

/// The version of the tables below.
const TABLES: i32 = 1;

/// docs/format.md explains each table. Numbers are never used twice, not even those of rows that
/// are gone: sources know writes by them.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS entry (
    number INTEGER PRIMARY KEY AUTOINCREMENT, space TEXT NOT NULL, hash INTEGER NOT NULL,
    state INTEGER NOT NULL, alone INTEGER NOT NULL, failures INTEGER NOT NULL,
    queued INTEGER NOT NULL, retry_at INTEGER NOT NULL, error TEXT NOT NULL,
    checksum INTEGER NOT NULL, key BLOB NOT NULL, record BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS entry_hash ON entry (hash);
CREATE INDEX IF NOT EXISTS entry_state ON entry (space, state, number);
CREATE TABLE IF NOT EXISTS usage (entries INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO usage SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM usage);
CREATE TABLE IF NOT EXISTS origin (journal INTEGER NOT NULL);
INSERT INTO origin SELECT random() WHERE NOT EXISTS (SELECT 1 FROM origin);
";

/// What has become of a write.
struct State;

impl State {
    const WAITING: i64 = 0;
    const TAKEN: i64 = 1;
    const DEAD: i64 = 2;
}

/// Opens the database for the one connection that writes; creates the tables if it is new.
///
/// One that is damaged is refused: what it holds was acknowledged, and who may lose it is for a
/// person to say.
pub(super) fn open(path: &Path) -> Result<Connection, BuildError> {
    open_tables(path).map_err(|error| match error {
        OpenError::Sqlite(error) => BuildError::directory(path, "open the journal", error),
        OpenError::Foreign => BuildError::Foreign { path: path.into() },
        OpenError::Newer(found) => BuildError::Newer { path: path.into(), found },
        OpenError::Damaged(verdict) => BuildError::directory(
            path,
            "read the journal, which is damaged",
            std::io::Error::other(verdict),
        ),
    })
}

/// Why the database cannot be used.
enum OpenError {
    Sqlite(rusqlite::Error),
    Foreign,
    Newer(i32),
    Damaged(String),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn open_tables(path: &Path) -> Result<Connection, OpenError> {
    let mut connection = connect(path)?;
    let found = look(&connection)?;
    if found.application != APPLICATION && !found.is_blank() {
        return Err(OpenError::Foreign);
    }
    if found.version > TABLES {
        return Err(OpenError::Newer(found.version));
    }
    begin_wal(&connection)?;
    set_up(&connection)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", TABLES)?;
    transaction.execute_batch(SCHEMA)?;
    transaction.commit()?;
    let verdict: String = connection.query_row("PRAGMA quick_check", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(OpenError::Damaged(verdict));
    }
    Ok(connection)
}

/// A connection that only reads.
pub(super) fn reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(path)?;
    set_up(&connection)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// Nothing is copied from the write-ahead log into the database but where the failure of it is
/// seen: see [`copy_log`].
fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(())
}

/// Whether commits wait until the device has them.
pub(super) fn set_synced(connection: &Connection, is_synced: bool) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", if is_synced { "FULL" } else { "NORMAL" })
}

/// Copies the write-ahead log into the database as far as nobody reads it.
pub(super) fn copy_log(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}

/// The random number of this journal.
pub(super) fn origin(connection: &Connection) -> rusqlite::Result<u64> {
    let number = connection.query_row("SELECT journal FROM origin", [], |row| row.get(0));
    number.map(i64::cast_unsigned)
}

/// A key of a space, as the journal knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) space: std::sync::Arc<str>,
    pub(crate) key: Box<[u8]>,
}

impl Place {
    fn hash(&self) -> i64 {
        key_hash(&self.space, &self.key).cast_signed()
    }
}

/// How much the journal may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

/// What became of a write that was to be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Appended {
    Yes { number: u64, superseded: u64 },
    Full,
}

/// Adds a write in place of those of its key that nobody has taken.
pub(super) fn append(
    connection: &Connection,
    place: &Place,
    record: &[u8],
    queued: WallTime,
    limits: Limits,
) -> rusqlite::Result<Appended> {
    let size = signed((place.key.len() + record.len()) as u64);
    let (replaced, freed): (i64, i64) = connection
        .prepare_cached(
            "SELECT count(*), coalesce(sum(length(key) + length(record)), 0) FROM entry
             WHERE hash = ?1 AND space = ?2 AND key = ?3 AND state != ?4",
        )?
        .query_row(params![place.hash(), place.space, place.key, State::TAKEN], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    let (entries, bytes): (i64, i64) = connection
        .prepare_cached("SELECT entries, bytes FROM usage")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let needs_room = replaced == 0 && entries >= signed(limits.entries)
        || size > freed && bytes - freed + size > signed(limits.bytes);
    if needs_room {
        return Ok(Appended::Full);
    }
    if replaced > 0 {
        connection
            .prepare_cached(
                "DELETE FROM entry WHERE hash = ?1 AND space = ?2 AND key = ?3 AND state != ?4",
            )?
            .execute(params![place.hash(), place.space, place.key, State::TAKEN])?;
    }
    connection
        .prepare_cached(
            "INSERT INTO entry (space, hash, state, alone, failures, queued, retry_at, error,
             checksum, key, record) VALUES (?1, ?2, ?3, 0, 0, ?4, 0, '', ?5, ?6, ?7)",
        )?
        .execute(params![
            place.space,
            place.hash(),
            State::WAITING,
            signed(queued.as_millis()),
            checksum(&place.space, &place.key, record).cast_signed(),
            place.key,
            record,
        ])?;
    let number = unsigned(connection.last_insert_rowid());
    add_usage(connection, 1 - replaced, size - freed)?;
    Ok(Appended::Yes { number, superseded: unsigned(replaced) })
}

fn add_usage(connection: &Connection, entries: i64, bytes: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE usage SET entries = entries + ?1, bytes = bytes + ?2")?
        .execute([entries, bytes])?;
    Ok(())
}

/// The number and the record of the newest write of a key that is not in the source yet.
pub(super) fn newest(
    connection: &Connection,
    place: &Place,
) -> rusqlite::Result<Option<(u64, Option<Bytes>)>> {
    connection
        .prepare_cached(
            "SELECT number, checksum, record FROM entry
             WHERE hash = ?1 AND space = ?2 AND key = ?3 AND state != ?4
             ORDER BY number DESC LIMIT 1",
        )?
        .query_row(params![place.hash(), place.space, place.key, State::DEAD], |row| {
            let record = intact(&place.space, &place.key, row.get(1)?, row.get(2)?);
            Ok((unsigned(row.get(0)?), record))
        })
        .optional()
}

/// The record, unless it is damaged.
fn intact(space: &str, key: &[u8], sum: i64, record: Vec<u8>) -> Option<Bytes> {
    (checksum(space, key, &record).cast_signed() == sum).then(|| record.into())
}

/// A write as it is handed out.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) number: u64,
    /// The key's bytes, by which caches know it.
    pub(crate) key: Box<[u8]>,
    /// `None`: damaged.
    pub(crate) record: Option<Bytes>,
    pub(crate) failures: u32,
    pub(crate) queued: WallTime,
    pub(crate) error: String,
}

const ROW: &str = "number, key, checksum, record, failures, queued, error";

fn row(space: &str, row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let key: Vec<u8> = row.get(1)?;
    let record = intact(space, &key, row.get(2)?, row.get(3)?);
    Ok(Row {
        number: unsigned(row.get(0)?),
        key: key.into(),
        record,
        failures: u32::try_from(row.get::<_, i64>(4)?).unwrap_or(u32::MAX),
        queued: WallTime::from_millis(unsigned(row.get(5)?)),
        // It has no checksum, and a space must not stand still for it.
        error: String::from_utf8_lossy(row.get_ref(6)?.as_bytes().unwrap_or_default()).into_owned(),
    })
}

/// Takes writes of a space that are due, oldest first: one that has to go alone by itself, others
/// up to `most` of them and about `most_bytes`.
pub(super) fn take(
    connection: &Connection,
    space: &str,
    now: WallTime,
    most: usize,
    most_bytes: usize,
) -> rusqlite::Result<Vec<Row>> {
    let now = signed(now.as_millis());
    let select = |alone: bool, most: usize| -> rusqlite::Result<Vec<Row>> {
        let mut statement = connection.prepare_cached(&format!(
            "SELECT {ROW} FROM entry
             WHERE space = ?1 AND state = ?2 AND alone = ?3 AND retry_at <= ?4
             ORDER BY number LIMIT ?5"
        ))?;
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![space, State::WAITING, alone, now, most])?;
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < most_bytes
            && let Some(next) = rows.next()?
        {
            let next = row(space, next)?;
            bytes += next.record.as_ref().map_or(0, Bytes::len);
            taken.push(next);
        }
        Ok(taken)
    };
    let mut rows = select(true, 1)?;
    if rows.is_empty() {
        rows = select(false, most)?;
    }
    let mut statement =
        connection.prepare_cached("UPDATE entry SET state = ?2 WHERE number = ?1")?;
    for row in &rows {
        statement.execute(params![signed(row.number), State::TAKEN])?;
    }
    Ok(rows)
}

/// Makes writes wait again that a former owner has taken; says how many.
pub(super) fn recover(connection: &Connection, space: &str) -> rusqlite::Result<u64> {
    let mut statement =
        connection.prepare_cached("SELECT number FROM entry WHERE space = ?1 AND state = ?2")?;
    let taken = statement
        .query_map(params![space, State::TAKEN], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<i64>>>()?;
    for &number in &taken {
        if !drop_if_superseded(connection, number)? {
            connection
                .prepare_cached("UPDATE entry SET state = ?2 WHERE number = ?1")?
                .execute(params![number, State::WAITING])?;
        }
    }
    // By the clock of somebody else, which may have been ahead.
    connection
        .prepare_cached("UPDATE entry SET retry_at = 0 WHERE space = ?1 AND state = ?2")?
        .execute(params![space, State::WAITING])?;
    Ok(taken.len() as u64)
}

/// Deletes a write if a newer one of its key waits.
fn drop_if_superseded(connection: &Connection, number: i64) -> rusqlite::Result<bool> {
    let gone = delete(
        connection,
        "number = ?1 AND EXISTS (SELECT 1 FROM entry AS newer WHERE newer.hash = entry.hash
         AND newer.space = entry.space AND newer.key = entry.key AND newer.number > entry.number)",
        [number],
    )?;
    Ok(gone > 0)
}

/// Deletes writes and keeps count of them. `condition` is one of a few constants.
fn delete(
    connection: &Connection,
    condition: &'static str,
    parameters: impl rusqlite::Params,
) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare_cached(&format!(
        "DELETE FROM entry WHERE {condition} RETURNING length(key) + length(record)"
    ))?;
    let sizes = statement
        .query_map(parameters, |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<i64>>>()?;
    let gone = sizes.len() as u64;
    add_usage(connection, -signed(gone), -sizes.iter().sum::<i64>())?;
    Ok(gone)
}

/// Deletes writes that the source has.
pub(super) fn settle(connection: &Connection, numbers: &[u64]) -> rusqlite::Result<()> {
    for &number in numbers {
        delete(connection, "number = ?1", [signed(number)])?;
    }
    Ok(())
}

/// A batch failed: each of its writes goes alone from now on, but for those that a newer one has
/// taken the place of. Says how many those are.
pub(super) fn part(connection: &Connection, numbers: &[u64]) -> rusqlite::Result<u64> {
    let mut superseded = 0;
    for number in numbers.iter().copied().map(signed) {
        if drop_if_superseded(connection, number)? {
            superseded += 1;
            continue;
        }
        connection
            .prepare_cached("UPDATE entry SET state = ?2, alone = 1 WHERE number = ?1")?
            .execute(params![number, State::WAITING])?;
    }
    Ok(superseded)
}

/// One write failed by itself.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) number: u64,
    pub(super) error: String,
    pub(super) retry_at: WallTime,
    pub(super) is_dead: bool,
}

/// Takes note of a failure; `false` if a newer write has taken the place of the one that failed.
pub(super) fn fail(connection: &Connection, failure: &Failure) -> rusqlite::Result<bool> {
    let number = signed(failure.number);
    if drop_if_superseded(connection, number)? {
        return Ok(false);
    }
    connection
        .prepare_cached(
            "UPDATE entry SET state = ?2, alone = 1, failures = failures + 1, error = ?3,
             retry_at = ?4 WHERE number = ?1",
        )?
        .execute(params![
            number,
            if failure.is_dead { State::DEAD } else { State::WAITING },
            failure.error,
            signed(failure.retry_at.as_millis()),
        ])?;
    Ok(true)
}

/// What waits in a space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// Writes that are due, counted up to a batch.
    pub(super) writes: usize,
    /// When the oldest of them was called for.
    pub(super) oldest: WallTime,
    /// Whether one of them has failed before: it has waited already.
    pub(super) has_failed: bool,
    /// When the next write is due, if one waits for that.
    pub(super) next: Option<WallTime>,
}

pub(super) fn due(
    connection: &Connection,
    space: &str,
    now: WallTime,
    most: usize,
) -> rusqlite::Result<Due> {
    let now = signed(now.as_millis());
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let (writes, oldest, has_failed): (i64, i64, i64) = connection
        .prepare_cached(
            "SELECT count(*), coalesce(min(queued), 0), coalesce(max(alone), 0) FROM
             (SELECT queued, alone FROM entry WHERE space = ?1 AND state = ?2 AND retry_at <= ?3
              ORDER BY number LIMIT ?4)",
        )?
        .query_row(params![space, State::WAITING, now, most], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
    let next: Option<i64> = match writes {
        0 => connection
            .prepare_cached("SELECT min(retry_at) FROM entry WHERE space = ?1 AND state = ?2")?
            .query_row(params![space, State::WAITING], |row| row.get(0))?,
        _ => None,
    };
    Ok(Due {
        writes: usize::try_from(writes).unwrap_or(usize::MAX),
        oldest: WallTime::from_millis(unsigned(oldest)),
        has_failed: has_failed != 0,
        next: next.map(|time| WallTime::from_millis(unsigned(time))),
    })
}

/// The number of the last write that was ever added.
pub(super) fn last(connection: &Connection) -> rusqlite::Result<u64> {
    let last: Option<i64> = connection
        .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'entry'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(last.map_or(0, unsigned))
}

/// Whether a write is in its source, and none was added after it, of whichever key.
pub(super) fn is_last_and_settled(connection: &Connection, number: u64) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "SELECT 1 FROM sqlite_sequence WHERE name = 'entry' AND seq = ?1
             AND NOT EXISTS (SELECT 1 FROM entry WHERE number = ?1)",
        )?
        .exists([signed(number)])
}

/// How many writes of a space up to `number` are neither in the source nor dead.
pub(super) fn left(connection: &Connection, space: &str, number: u64) -> rusqlite::Result<u64> {
    let left: i64 = connection
        .prepare_cached(
            "SELECT count(*) FROM entry WHERE space = ?1 AND state IN (?2, ?3) AND number <= ?4",
        )?
        .query_row(params![space, State::WAITING, State::TAKEN, signed(number)], |row| {
            row.get(0)
        })?;
    Ok(unsigned(left))
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Depth {
    pub(crate) unflushed: u64,
    pub(crate) dead: u64,
    pub(crate) bytes: u64,
    /// When the oldest write was called for that is not in the source yet.
    pub(crate) oldest: Option<WallTime>,
}

pub(super) fn depth(connection: &Connection) -> rusqlite::Result<Depth> {
    let (entries, bytes): (i64, i64) =
        connection.query_row("SELECT entries, bytes FROM usage", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    // The index has it all: no record is looked at.
    let (unflushed, first): (i64, Option<i64>) = connection.query_row(
        "SELECT count(*), min(number) FROM entry WHERE state != ?1",
        [State::DEAD],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let oldest: Option<i64> = connection
        .query_row("SELECT queued FROM entry WHERE number = ?1", [first], |row| row.get(0))
        .optional()?;
    Ok(Depth {
        unflushed: unsigned(unflushed),
        dead: unsigned(entries - unflushed),
        bytes: unsigned(bytes),
        oldest: oldest.map(|time| WallTime::from_millis(unsigned(time))),
    })
}

/// Dead letters of a space, the oldest first.
pub(super) fn dead(
    connection: &Connection,
    space: &str,
    limit: usize,
) -> rusqlite::Result<Vec<Row>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {ROW} FROM entry WHERE space = ?1 AND state = ?2 ORDER BY number LIMIT ?3"
    ))?;
    statement.query_map(params![space, State::DEAD, limit], |found| row(space, found))?.collect()
}

/// Has a dead letter tried again from the beginning; `None` if there is none of this number, else
/// its key.
pub(super) fn replay(
    connection: &Connection,
    space: &str,
    number: u64,
) -> rusqlite::Result<Option<Vec<u8>>> {
    connection
        .prepare_cached(
            "UPDATE entry SET state = ?1, failures = 0, retry_at = 0
             WHERE number = ?2 AND space = ?3 AND state = ?4 RETURNING key",
        )?
        .query_row(params![State::WAITING, signed(number), space, State::DEAD], |row| row.get(0))
        .optional()
}

/// Drops a dead letter; says whether it was there.
pub(super) fn bury(connection: &Connection, space: &str, number: u64) -> rusqlite::Result<bool> {
    let parameters = params![signed(number), space, State::DEAD];
    Ok(delete(connection, "number = ?1 AND space = ?2 AND state = ?3", parameters)? > 0)
}
