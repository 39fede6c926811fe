//! A **connection** to the database: how it is opened, set up, and refused.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::error::BuildError;

/// Marks the file as ours: "TRRC".
const APPLICATION: i32 = 0x5452_5243;

/// The version of the tables below.
const TABLES: i32 = 1;

/// The first SQLite without the write-ahead reset bug.
const OLDEST_SQLITE: i32 = 3_051_003;

/// How long a connection waits for another process that writes.
const BUSY: Duration = Duration::from_secs(5);

/// The version of the SQLite that is compiled in, such as `3.51.3`.
#[must_use]
pub fn sqlite_version() -> &'static str {
    rusqlite::version()
}

/// Makes the directory and an empty database file in it, both for their owner alone.
pub(crate) fn prepare(directory: &Path, database: &str) -> Result<PathBuf, BuildError> {
    // SQLite follows no link in the whole path; those to the directory are the user's.
    let directory = &create_directory(directory)
        .and_then(|()| fs::canonicalize(directory))
        .map_err(|error| BuildError::directory(directory, "create or enter it", error))?;
    let path = directory.join(database);
    create_file(&path)
        .map_err(|error| BuildError::directory(&path, "open it for writing", error))?;
    Ok(path)
}

/// The writer's connection; creates the tables if the database is new.
///
/// A database that SQLite calls damaged is set aside and a new one begun: a cache
/// may lose what it holds, and must not fail to start for it.
pub(super) fn open_database(path: &Path) -> Result<Connection, BuildError> {
    if rusqlite::version_number() < OLDEST_SQLITE {
        return Err(BuildError::OldSqlite { found: rusqlite::version() });
    }
    match open_tables(path) {
        Err(error) if is_damage(&error) => {
            let aside = set_aside(path).map_err(|error| {
                BuildError::directory(path, "set the damaged database aside", error)
            })?;
            tracing::warn!(database = %path.display(), set_aside = %aside.display(), %error,
                "the cache's database is damaged: it was set aside and an empty one begun");
            create_file(path)
                .map_err(|error| BuildError::directory(path, "open it for writing", error))?;
            open_tables(path)
        }
        other => other,
    }
    .map_err(|error| match error {
        OpenError::Sqlite(error) => BuildError::directory(path, "open the database", error),
        OpenError::Foreign => BuildError::Foreign { path: path.into() },
        OpenError::Newer(found) => BuildError::Newer { path: path.into(), found },
        OpenError::Damaged(verdict) => {
            BuildError::directory(path, "begin an empty database", io::Error::other(verdict))
        }
    })
}

/// A connection that only reads.
pub(super) fn reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(path)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// What a connection says of its settings.
pub(super) fn settings(connection: &Connection) -> rusqlite::Result<Vec<(&'static str, String)>> {
    const PRAGMAS: [&str; 10] = [
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

pub(crate) enum OpenError {
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

impl std::fmt::Display for OpenError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(error) => error.fmt(formatter),
            Self::Foreign => formatter.write_str("foreign"),
            Self::Newer(version) => write!(formatter, "version {version}"),
            Self::Damaged(verdict) => formatter.write_str(verdict),
        }
    }
}

fn is_damage(error: &OpenError) -> bool {
    match error {
        OpenError::Sqlite(error) => matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
        ),
        OpenError::Damaged(_) => true,
        OpenError::Foreign | OpenError::Newer(_) => false,
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
    if found.pages == 0 {
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    begin_wal(&connection)?;
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", TABLES)?;
    transaction.execute_batch(SCHEMA)?;
    transaction.commit()?;
    check(&connection)?;
    Ok(connection)
}

/// What a file is, before anything is done to it.
pub(crate) struct Found {
    pages: i64,
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
    const PAUSE: Duration = Duration::from_millis(10);
    let mut left = BUSY.as_millis() / PAUSE.as_millis();
    connection.busy_timeout(Duration::ZERO)?;
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(error) if left > 0 && is_busy(&error) => std::thread::sleep(PAUSE),
            Err(error) => return Err(error),
            Ok(()) => return connection.busy_timeout(BUSY),
        }
        left -= 1;
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Looks for damage in what a cache cannot do without: without a ledger none is built.
/// Entries are too many to look at, and one that cannot be read is a miss.
fn check(connection: &Connection) -> Result<(), OpenError> {
    for table in ["usage", "ledger", "mark", "origin", "lease"] {
        let check = format!("PRAGMA quick_check({table})");
        let verdict: String = connection.query_row(&check, [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(OpenError::Damaged(verdict));
        }
    }
    Ok(())
}

/// docs/format.md explains each table.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS entry (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, name INTEGER NOT NULL,
    expires INTEGER NOT NULL, frame BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS entry_name ON entry (name);
CREATE INDEX IF NOT EXISTS entry_expires ON entry (expires);
CREATE TABLE IF NOT EXISTS usage (entries INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO usage SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM usage);
CREATE TABLE IF NOT EXISTS ledger (
    number INTEGER PRIMARY KEY, kind INTEGER NOT NULL, name TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS ledger_name ON ledger (name);
CREATE TABLE IF NOT EXISTS mark (
    kind INTEGER NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (kind, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS origin (incarnation INTEGER NOT NULL, floor INTEGER NOT NULL);
INSERT INTO origin SELECT random(), 0 WHERE NOT EXISTS (SELECT 1 FROM origin);
CREATE TABLE IF NOT EXISTS lease (
    name TEXT PRIMARY KEY, token INTEGER NOT NULL, until INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter (
    name TEXT PRIMARY KEY, value INTEGER NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS counter_expires ON counter (expires);
";

pub(crate) fn connect(path: &Path) -> rusqlite::Result<Connection> {
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

/// Renames the database; keeps the two newest that were set aside.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let numbered = |number: u32| path.with_extension(format!("db.damaged-{number}"));
    for journal in ["db-wal", "db-shm"] {
        match fs::remove_file(path.with_extension(journal)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    if numbered(1).exists() {
        fs::rename(numbered(1), numbered(2))?;
    }
    fs::rename(path, numbered(1))?;
    Ok(numbered(1))
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
fn create_file(path: &Path) -> io::Result<()> {
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
