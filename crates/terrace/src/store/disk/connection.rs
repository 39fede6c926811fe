//! A **connection** to the database, and how it is set up.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

/// How long a connection waits for another process that writes.
pub(super) const BUSY: Duration = Duration::from_secs(5);

/// The version of the SQLite that is compiled in, such as `3.51.3`.
#[must_use]
pub fn sqlite_version() -> &'static str {
    rusqlite::version()
}

/// A connection that only reads.
pub(super) fn reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(path)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// A connection that writes. Checkpoints are made by another one, away from it.
pub(super) fn writer(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(path)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    Ok(connection)
}

/// What a connection says of its settings.
pub(super) fn settings(connection: &Connection) -> rusqlite::Result<Vec<(&'static str, String)>> {
    const PRAGMAS: [&str; 11] = [
        "auto_vacuum",
        "busy_timeout",
        "cell_size_check",
        "journal_mode",
        "journal_size_limit",
        "mmap_size",
        "query_only",
        "synchronous",
        "temp_store",
        "trusted_schema",
        "wal_autocheckpoint",
    ];
    let defensive = connection.db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE)?;
    let mut settings = vec![("defensive", u8::from(defensive).to_string())];
    for name in PRAGMAS {
        let value = connection.pragma_query_value(None, name, |row| {
            Ok(match row.get_ref(0)? {
                ValueRef::Integer(number) => number.to_string(),
                other => other.as_str()?.to_owned(),
            })
        })?;
        settings.push((name, value));
    }
    Ok(settings)
}

/// A connection to a database that is there.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    // No URI, no symbolic link at the end of the path, and never a new file: the
    // file exists already, with the permissions that it must have.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}
