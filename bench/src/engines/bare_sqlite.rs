//! SQLite without anything around it: one table, the hash of the key as integer primary key, the
//! key itself beside it and compared, set up as the disk tier of Terrace sets up its own. Also with
//! the columns and indexes of Terrace's table, and with every commit synced.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension as _, params};
use xxhash_rust::xxh3::xxh3_64;

use super::Disk;
use crate::versions;

/// The small table; a transaction is on the device when a checkpoint is.
pub type BareSqlite = Bare<false, false>;

/// The table of Terrace, with its indexes.
pub type BareIndexed = Bare<true, false>;

/// The small table; a transaction is on the device when it is committed.
pub type BareFull = Bare<false, true>;

/// One connection reads and one writes, each for one task at a time.
pub struct Bare<const INDEXED: bool, const FULL: bool> {
    reader: Mutex<Connection>,
    writer: Mutex<Connection>,
}

impl<const INDEXED: bool, const FULL: bool> Bare<INDEXED, FULL> {
    const TABLE: &str = if INDEXED {
        "CREATE TABLE IF NOT EXISTS entry (
             id INTEGER PRIMARY KEY, key TEXT NOT NULL, expires INTEGER NOT NULL,
             rank INTEGER NOT NULL, file INTEGER, value BLOB NOT NULL);
         CREATE INDEX IF NOT EXISTS entry_expires ON entry (expires);
         CREATE INDEX IF NOT EXISTS entry_rank ON entry (rank)"
    } else {
        "CREATE TABLE IF NOT EXISTS entry (
             id INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB NOT NULL)"
    };

    const WRITE: &str = if INDEXED {
        "INSERT INTO entry (id, key, expires, rank, value) VALUES (?1, ?2, ?4, ?4, ?3)
         ON CONFLICT (id) DO UPDATE SET key = excluded.key,
             expires = excluded.expires, rank = excluded.rank, value = excluded.value"
    } else {
        "INSERT INTO entry (id, key, value) VALUES (?1, ?2, ?3)
         ON CONFLICT (id) DO UPDATE SET key = excluded.key, value = excluded.value"
    };

    fn put(connection: &Connection, key: &str, value: &[u8]) -> Result<()> {
        let mut write = connection.prepare_cached(Self::WRITE)?;
        if INDEXED {
            write.execute(params![id(key), key, value, next()])?;
        } else {
            write.execute(params![id(key), key, value])?;
        }
        Ok(())
    }
}

impl<const INDEXED: bool, const FULL: bool> Disk for Bare<INDEXED, FULL> {
    const NAME: &'static str = match (INDEXED, FULL) {
        (false, false) => "bare-sqlite",
        (true, _) => "bare-sqlite-indexed",
        (false, true) => "bare-sqlite-full",
    };

    fn version() -> &'static str {
        versions::of("rusqlite")
    }

    async fn open(directory: &Path) -> Result<Self> {
        let path = directory.join("bare.db");
        let writer = connect(&path)?;
        writer.execute_batch(Self::TABLE)?;
        if FULL {
            writer.pragma_update(None, "synchronous", "FULL")?;
        }
        let reader = connect(&path)?;
        reader.pragma_update(None, "query_only", true)?;
        Ok(Self { reader: Mutex::new(reader), writer: Mutex::new(writer) })
    }

    async fn fill(&self, entries: &[(String, Bytes)]) -> Result<()> {
        let mut writer = locked(&self.writer);
        for some in entries.chunks(1000) {
            let transaction = writer.transaction()?;
            for (key, value) in some {
                Self::put(&transaction, key, value)?;
            }
            transaction.commit()?;
        }
        Ok(())
    }

    #[inline]
    async fn read<T>(&self, key: &str, look: impl FnOnce(&[u8]) -> T + Send) -> Result<Option<T>> {
        let reader = locked(&self.reader);
        let mut select =
            reader.prepare_cached("SELECT value FROM entry WHERE id = ?1 AND key = ?2")?;
        // The value is copied out, as it would be to hand it to somebody.
        let found: Option<Vec<u8>> =
            select.query_row(params![id(key), key], |row| row.get(0)).optional()?;
        Ok(found.map(|value| look(&value)))
    }

    #[inline]
    async fn write(&self, key: &str, value: &Bytes) -> Result<()> {
        Self::put(&locked(&self.writer), key, value)
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// A number that only goes up: as times and ranks do.
fn next() -> i64 {
    static NUMBER: AtomicI64 = AtomicI64::new(1);
    NUMBER.fetch_add(1, Relaxed)
}

fn id(key: &str) -> i64 {
    xxh3_64(key.as_bytes()).cast_signed()
}

fn locked(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}
