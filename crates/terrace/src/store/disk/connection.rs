//! A **connection** to a database of ours: how it is set up, and what it needs to be there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::place;
use crate::error::BuildError;

/// How long a connection waits for another process that writes.
pub(super) const BUSY: Duration = Duration::from_secs(5);

/// How long it is until a lock is tried again.
const STEP: Duration = Duration::from_micros(200);

/// How often something is tried again that another process may be in the way of.
pub(super) const PAUSE: Duration = Duration::from_millis(10);

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
    const PRAGMAS: [&str; 10] = [
        "auto_vacuum",
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
pub(crate) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    // No URI, no symbolic link at the end of the path, and never a new file: the
    // file exists already, with the permissions that it must have.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    wait_for_others(&connection)?;
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

/// Has a connection wait for the locks of others, for [`BUSY`] and in small steps.
///
/// SQLite's own steps grow to a tenth of a second. Where several processes write all the time, one
/// that sleeps for so long is overtaken by all that do not, again and again.
pub(super) fn wait_for_others(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_handler(Some(|before| {
        std::thread::sleep(STEP);
        u128::from(before.unsigned_abs()) < BUSY.as_micros() / STEP.as_micros()
    }))
}

/// Makes the directory and an empty database file in it, both for their owner alone.
pub(crate) fn prepare(directory: &Path, database: &str) -> Result<PathBuf, BuildError> {
    let path = enter(directory)?.join(database);
    create_file(&path)
        .map_err(|error| BuildError::directory(&path, "open it for writing", error))?;
    Ok(path)
}

/// The whole path of a directory, which is made if it is not there. One where a database would be
/// damaged is refused.
pub(super) fn enter(directory: &Path) -> Result<PathBuf, BuildError> {
    // SQLite follows no link in the whole path; those to the directory are the user's.
    let path = create_directory(directory)
        .and_then(|()| fs::canonicalize(directory))
        .map_err(|error| BuildError::directory(directory, "create or enter it", error))?;
    place::check(&path)?;
    Ok(path)
}

#[cfg(unix)]
fn create_directory(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

#[cfg(not(unix))]
fn create_directory(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)
}

/// SQLite gives its journals the permissions of the database. What is there already
/// is left as it is, and nothing is created where a link leads.
pub(super) fn create_file(path: &Path) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::symlink_metadata(path)?.is_file() { Ok(()) } else { Err(error) }
        }
        other => other.map(drop),
    }
}

/// What a file is, before anything is done to it.
pub(crate) struct Found {
    pub(crate) pages: i64,
    pub(crate) application: i32,
    pub(crate) version: i32,
    tables: i64,
}

impl Found {
    /// A database without tables is nobody's. Two processes may open a new one at once,
    /// and one of them see what the other has begun.
    pub(crate) fn is_blank(&self) -> bool {
        self.application == 0 && self.tables == 0
    }
}

pub(crate) fn look(connection: &Connection) -> rusqlite::Result<Found> {
    // All at one instant: another process may be making the tables just now.
    let transaction = connection.unchecked_transaction()?;
    let number = |name: &str| transaction.pragma_query_value(None, name, |row| row.get(0));
    let tables = "SELECT count(*) FROM sqlite_schema";
    let tables = transaction.query_row(tables, [], |row| row.get(0))?;
    Ok(Found {
        pages: number("page_count")?,
        application: i32::try_from(number("application_id")?).unwrap_or(-1),
        version: i32::try_from(number("user_version")?).unwrap_or(i32::MAX),
        tables,
    })
}

/// Switches a new database to write-ahead mode.
///
/// SQLite does not wait for others here, because two that switch at once would wait
/// for each other; the one that is told so tries again.
pub(crate) fn begin_wal(connection: &Connection) -> rusqlite::Result<()> {
    let mut left = BUSY.as_millis() / PAUSE.as_millis();
    connection.busy_timeout(Duration::ZERO)?;
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(error) if left > 0 && is_busy(&error) => std::thread::sleep(PAUSE),
            Err(error) => return Err(error),
            Ok(()) => return wait_for_others(connection),
        }
        left -= 1;
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}
