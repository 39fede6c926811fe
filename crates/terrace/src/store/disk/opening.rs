//! **Opening** a directory: what is there is used, or set aside and begun anew.
//!
//! Everybody who has the directory open holds a shared lock on a file of its own, or the only one
//! where it is not shared. A database is set aside only by somebody who holds it alone: whoever else
//! has the database open would go on with the one that was renamed, and remove the journal of the
//! new one at the end.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use super::connection::{self, PAUSE, begin_wal, create_file, look};
use super::{DATABASE, Disk};
use crate::error::BuildError;

/// The name of the file that is locked by whoever has the directory open.
const LOCK: &str = "terrace.lock";

/// Marks the file as ours: "TRRC".
const APPLICATION: i32 = 0x5452_5243;

/// The version of the tables below.
const TABLES: i32 = 3;

/// The first SQLite without the write-ahead reset bug.
const OLDEST_SQLITE: i32 = 3_051_003;

/// How long a lock is waited for that somebody else who has the directory open holds: most open it
/// alone only for as long as it takes to set a database aside.
const PATIENCE: Duration = Duration::from_secs(1);

/// An open directory.
pub(super) struct Opened {
    /// The database.
    pub(super) path: PathBuf,
    /// The writer's connection.
    pub(super) connection: Connection,
    /// The number of the folder for files.
    pub(super) folder: i64,
    /// Held for as long as any connection to the database is open.
    pub(super) lock: Arc<File>,
}

/// Opens the database of a directory; creates what is not there.
///
/// What cannot be used is set aside and an empty database begun: a cache may lose what it holds,
/// and must not fail to start for it.
pub(super) fn open(settings: &Disk) -> Result<Opened, BuildError> {
    if rusqlite::version_number() < OLDEST_SQLITE {
        return Err(BuildError::OldSqlite { found: rusqlite::version() });
    }
    let directory = &connection::enter(&settings.directory)?;
    let path = directory.join(DATABASE);
    let cannot =
        |doing| move |error| BuildError::directory(&directory.join(DATABASE), doing, error);
    let lock = hold(directory, settings.is_exclusive)?;
    create_file(&path).map_err(cannot("open it for writing"))?;
    let opened = match open_tables(&path) {
        Err(error) if error.is_set_aside(settings) => {
            let Some(alone) = hold_alone(&lock, directory)? else {
                return Err(error.into_build_error(&path));
            };
            // Another process may have done it while this one waited.
            let again = open_tables(&path);
            let opened = match again {
                Err(error) if error.is_set_aside(settings) => {
                    let aside = set_aside(&path, error.suffix())
                        .map_err(cannot("set the unusable database aside"))?;
                    tracing::warn!(database = %path.display(), set_aside = %aside.display(), %error,
                        "the cache's database cannot be used: it was set aside and an empty one begun");
                    create_file(&path).map_err(cannot("open it for writing"))?;
                    open_tables(&path)
                }
                other => other,
            };
            if !settings.is_exclusive {
                share(alone, directory)?;
            }
            opened
        }
        other => other,
    };
    let (connection, folder) = opened.map_err(|error| error.into_build_error(&path))?;
    Ok(Opened { path, connection, folder, lock: Arc::new(lock) })
}

/// The right to have the directory open, alone or not, for as long as the file is kept.
///
/// Whoever opened the file has the lock, and not the process: a second cache of the same process is
/// somebody else, too.
fn hold(directory: &Path, is_alone: bool) -> Result<File, BuildError> {
    let file = lock_file(&directory.join(LOCK))
        .map_err(|error| BuildError::directory(&directory.join(LOCK), "open it", error))?;
    if !is_alone {
        share(&file, directory)?;
    } else if !in_time(|| file.try_lock(), directory)? {
        return Err(BuildError::InUse { path: directory.into(), wants_it_alone: true });
    }
    Ok(file)
}

pub(super) fn lock_file(path: &Path) -> io::Result<File> {
    create_file(path)?;
    let mut options = fs::OpenOptions::new();
    options.read(true);
    no_link(&mut options);
    options.open(path)
}

/// A shared lock, in place of the other one if this file has that.
fn share(file: &File, directory: &Path) -> Result<(), BuildError> {
    if in_time(|| file.try_lock_shared(), directory)? {
        return Ok(());
    }
    Err(BuildError::InUse { path: directory.into(), wants_it_alone: false })
}

/// The lock, if nobody else has the directory open, or soon has not any more. If not, this one has
/// it no longer either: trying lets go of the shared lock.
fn hold_alone<'a>(lock: &'a File, directory: &Path) -> Result<Option<&'a File>, BuildError> {
    Ok(in_time(|| lock.try_lock(), directory)?.then_some(lock))
}

/// Whether a lock could be had before our patience ended.
fn in_time(
    attempt: impl Fn() -> Result<(), TryLockError>,
    directory: &Path,
) -> Result<bool, BuildError> {
    for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
        match attempt() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            Err(TryLockError::Error(error)) => {
                return Err(BuildError::directory(&directory.join(LOCK), "lock it", error));
            }
        }
    }
    Ok(false)
}

enum OpenError {
    Sqlite(rusqlite::Error),
    Foreign,
    Newer(i32),
    Older(i32),
    Damaged(String),
}

impl OpenError {
    /// Whether a new database is begun in place of this one.
    fn is_set_aside(&self, settings: &Disk) -> bool {
        match self {
            Self::Sqlite(error) => is_damage(error),
            Self::Damaged(_) | Self::Older(_) => true,
            Self::Foreign | Self::Newer(_) => !settings.keeps_foreign,
        }
    }

    /// What the name of the database ends with when it was set aside.
    fn suffix(&self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Newer(_) => "newer",
            Self::Older(_) => "older",
            Self::Sqlite(_) | Self::Damaged(_) => "damaged",
        }
    }

    fn into_build_error(self, path: &Path) -> BuildError {
        let directory = |doing, error: io::Error| BuildError::directory(path, doing, error);
        match self {
            Self::Sqlite(error) => BuildError::directory(path, "open the database", error),
            Self::Foreign => BuildError::Foreign { path: path.into() },
            Self::Newer(found) => BuildError::Newer { path: path.into(), found },
            Self::Older(found) => directory(
                "begin a database of this version",
                io::Error::other(format!("others use one of format {found}")),
            ),
            Self::Damaged(verdict) => {
                directory("begin an empty database", io::Error::other(verdict))
            }
        }
    }
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
            Self::Foreign => formatter.write_str("it is another program's"),
            Self::Newer(version) | Self::Older(version) => write!(formatter, "format {version}"),
            Self::Damaged(verdict) => formatter.write_str(verdict),
        }
    }
}

/// The writer's connection, and the number of the folder. Writes only if the database is new.
fn open_tables(path: &Path) -> Result<(Connection, i64), OpenError> {
    let mut connection = connection::writer(path)?;
    let found = look(&connection)?;
    if found.application != APPLICATION && !found.is_blank() {
        return Err(OpenError::Foreign);
    }
    let is_new = found.application != APPLICATION || found.version == 0;
    match found.version {
        _ if is_new => {}
        TABLES => {}
        version if version > TABLES => return Err(OpenError::Newer(version)),
        version => return Err(OpenError::Older(version)),
    }
    if found.pages == 0 {
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    begin_wal(&connection)?;
    if is_new {
        let transaction =
            connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", TABLES)?;
        transaction.execute_batch(SCHEMA)?;
        transaction.commit()?;
    } else {
        // Whether anybody could write is found out now, and not at the first invalidation.
        connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?
            .rollback()?;
    }
    check(&connection)?;
    let folder = connection.query_row("SELECT folder FROM usage", [], |row| row.get(0))?;
    Ok((connection, folder))
}

/// Whether SQLite says so, or has found something in a column that nobody has put there.
fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error as E;
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
        || matches!(
            error,
            E::Utf8Error(..)
                | E::FromSqlConversionFailure(..)
                | E::IntegralValueOutOfRange(..)
                | E::InvalidColumnType(..)
                | E::QueryReturnedNoRows
        )
}

/// Looks for damage in what a cache cannot do without: the tables as they must be, and what is in
/// those of the ledger. Entries are too many to look at, and one that cannot be read is a miss.
fn check(connection: &Connection) -> Result<(), OpenError> {
    // A view, a trigger or another table in a place of ours would do what nobody asked for.
    let ours = expected_schema()?;
    if ours != schema_of(connection)? {
        return Err(OpenError::Damaged("its tables are not those of a cache".to_owned()));
    }
    for table in ["usage", "ledger", "mark", "origin", "lease"] {
        let check = format!("PRAGMA quick_check({table})");
        let verdict: String = connection.query_row(&check, [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(OpenError::Damaged(verdict));
        }
    }
    for table in ["usage", "origin"] {
        let count = format!("SELECT count(*) FROM {table}");
        let rows: i64 = connection.query_row(&count, [], |row| row.get(0))?;
        if rows != 1 {
            return Err(OpenError::Damaged(format!("{rows} rows in {table}")));
        }
    }
    Ok(())
}

/// What a database with our tables says of them.
fn expected_schema() -> rusqlite::Result<Vec<(String, String)>> {
    let empty = Connection::open_in_memory()?;
    empty.execute_batch(SCHEMA)?;
    schema_of(&empty)
}

fn schema_of(connection: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    let mut statement = connection.prepare(
        "SELECT name, coalesce(sql, '') FROM sqlite_schema
         WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// docs/format.md explains each table.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS entry (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, expires INTEGER NOT NULL,
    rank INTEGER NOT NULL, file INTEGER, frame BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS entry_expires ON entry (expires);
CREATE INDEX IF NOT EXISTS entry_rank ON entry (rank);
CREATE TABLE IF NOT EXISTS file (
    id INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, state INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS file_state ON file (state) WHERE state <> 1;
CREATE TABLE IF NOT EXISTS usage (
    entries INTEGER NOT NULL, bytes INTEGER NOT NULL,
    files INTEGER NOT NULL, file_bytes INTEGER NOT NULL, folder INTEGER NOT NULL);
INSERT INTO usage SELECT 0, 0, 0, 0, random() WHERE NOT EXISTS (SELECT 1 FROM usage);
CREATE TABLE IF NOT EXISTS ledger (
    number INTEGER PRIMARY KEY, kind INTEGER NOT NULL, name TEXT NOT NULL);
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

/// Renames the database; keeps the two newest of a kind that were set aside. Of another program's,
/// none is ever lost: there is no room for a third.
fn set_aside(path: &Path, suffix: &str) -> io::Result<PathBuf> {
    let numbered = |number: u32| path.with_extension(format!("db.{suffix}-{number}"));
    if numbered(1).exists() && suffix == "foreign" && numbered(2).exists() {
        let what = "two databases of other programs were set aside here already: remove them";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
    }
    if numbered(1).exists() {
        rename(&numbered(1), &numbered(2))?;
    }
    rename(path, &numbered(1))?;
    Ok(numbered(1))
}

/// Renames a database with the log of what is not in it yet. The index of the log is made anew.
fn rename(path: &Path, to: &Path) -> io::Result<()> {
    let beside = |path: &Path, suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let unless_missing = |outcome: io::Result<()>| match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    unless_missing(fs::remove_file(beside(path, "-shm")))?;
    // A log that stayed behind would be taken for the new database's.
    unless_missing(fs::remove_file(beside(to, "-wal")))?;
    unless_missing(fs::rename(beside(path, "-wal"), beside(to, "-wal")))?;
    fs::rename(path, to)
}

#[cfg(unix)]
fn no_link(options: &mut fs::OpenOptions) {
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = rustix::fs::OFlags::NOFOLLOW.bits();
    options.custom_flags(flags.cast_signed());
}

#[cfg(not(unix))]
fn no_link(_: &mut fs::OpenOptions) {}
