//! SQLite without anything around it: one table, the hash of the key as integer primary key, the
//! key itself beside it and compared, set up as the disk tier of Terrace sets up its own.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension as _, params};
use xxhash_rust::xxh3::xxh3_64;

use super::Disk;
use crate::versions;

/// One connection reads and one writes, each for one task at a time.
pub struct BareSqlite {
    reader: Mutex<Connection>,
    writer: Mutex<Connection>,
}

impl Disk for BareSqlite {
    const NAME: &'static str = "bare-sqlite";

    fn version() -> &'static str {
        versions::of("rusqlite")
    }

    async fn open(directory: &Path) -> Result<Self> {
        let path = directory.join("bare.db");
        let writer = connect(&path)?;
        writer.execute_batch(
            "CREATE TABLE entry (id INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB NOT NULL)",
        )?;
        let reader = connect(&path)?;
        reader.pragma_update(None, "query_only", true)?;
        Ok(Self { reader: Mutex::new(reader), writer: Mutex::new(writer) })
    }

    async fn fill(&self, entries: &[(String, Bytes)]) -> Result<()> {
        let mut writer = locked(&self.writer);
        for some in entries.chunks(1000) {
            let transaction = writer.transaction()?;
            for (key, value) in some {
                put(&transaction, key, value)?;
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
        put(&locked(&self.writer), key, value)
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

fn put(connection: &Connection, key: &str, value: &[u8]) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO entry (id, key, value) VALUES (?1, ?2, ?3)
             ON CONFLICT (id) DO UPDATE SET key = excluded.key, value = excluded.value",
        )?
        .execute(params![id(key), key, value])?;
    Ok(())
}

fn id(key: &str) -> i64 {
    xxh3_64(key.as_bytes()).cast_signed()
}

fn locked(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}
