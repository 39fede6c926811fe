//! The **disk store**: frames in a SQLite database, shared by every process that
//! opens the same directory, and the ledger of all of them.
//!
//! One thread writes and groups what waits into one transaction; reads take a
//! pooled connection on the caller's own thread, because a point read costs a few
//! microseconds and a hop to another thread costs more. SQLite is compiled in, so
//! that its version is known: builds before 3.51.3 can damage a database in
//! write-ahead mode (<https://sqlite.org/wal.html#walresetbug>) and are refused.
//!
//! Rows are found by a 64-bit hash of their key as the integer primary key, with
//! the full key beside it and compared; the file format is in docs/format.md.

pub(crate) mod connection;
mod ledger;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension as _, params};
use xxhash_rust::xxh3::xxh3_64;

use crate::authority::Authority;
use crate::clock::WallTime;
use crate::error::BuildError;
use crate::key::StoredKey;
use crate::store::{Put, Scope, Store, StoreError, StoreErrorKind, StoreResult, Stored, Usage};
use writer::{Batch, Writer};

pub use connection::sqlite_version;

/// The name of the database in its directory.
pub const DATABASE: &str = "terrace.db";

/// Settings of a disk tier.
///
/// ```no_run
/// # async fn example() -> Result<(), terrace::BuildError> {
/// use terrace::{Disk, Terrace};
///
/// let terrace = Terrace::builder()
///     .tier("disk", Disk::at("/var/cache/shop").max_bytes(4 << 30))
///     .build()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Disk {
    pub(crate) directory: PathBuf,
    pub(crate) max_bytes: u64,
    pub(crate) max_value_bytes: usize,
}

impl Disk {
    /// A disk tier in `directory`, which is created (for its owner alone) if it is
    /// not there. At most 1 GiB, values of at most 64 MiB.
    #[must_use]
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), max_bytes: 1 << 30, max_value_bytes: 64 << 20 }
    }

    /// Keys and frames never take more than this; what expires soonest leaves first.
    #[must_use]
    pub fn max_bytes(self, max_bytes: u64) -> Self {
        Self { max_bytes, ..self }
    }

    /// Larger values are not stored here.
    #[must_use]
    pub fn max_value_bytes(self, max_value_bytes: usize) -> Self {
        Self { max_value_bytes, ..self }
    }

    /// Opens the store by itself, to be used without a cache: to look into it, say.
    ///
    /// # Errors
    /// The directory or the database cannot be used; the error says why and what to do.
    pub fn open(&self) -> Result<DiskStore, BuildError> {
        DiskStore::open(self)
    }

    /// Where the database is.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.directory.join(DATABASE)
    }
}

/// An open disk store. See the [module](self).
#[derive(Clone, Debug)]
pub struct DiskStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    max_value_bytes: usize,
    writer: Writer,
    readers: Mutex<Vec<Connection>>,
    evicted: Arc<AtomicU64>,
    /// Whether frames are judged by the ledger in this directory.
    is_judge: AtomicBool,
}

impl DiskStore {
    fn open(settings: &Disk) -> Result<Self, BuildError> {
        // Closing a file lets go of every lock that the process has on it: nobody may
        // hold one while another one makes the file.
        static OPENING: Mutex<()> = Mutex::new(());
        let opening = OPENING.lock();
        let path = connection::prepare(&settings.directory, DATABASE)?;
        let connection = connection::open_database(&path)?;
        drop(opening);
        let evicted = Arc::new(AtomicU64::new(0));
        let writer = Writer::start(connection, settings.max_bytes, Arc::clone(&evicted))
            .map_err(|error| BuildError::directory(&path, "start its writer", error))?;
        let max_value_bytes = settings.max_value_bytes;
        let readers = Mutex::new(Vec::new());
        let is_judge = AtomicBool::new(true);
        let shared = Shared { path, max_value_bytes, writer, readers, evicted, is_judge };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The database file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The version of SQLite, and how it is set up: each setting as the writer's
    /// connection has it, and as those of readers do.
    ///
    /// # Errors
    /// The store is closed, or the database does not answer.
    #[doc(hidden)]
    pub async fn settings(&self) -> Result<Vec<(String, String)>, StoreError> {
        let doing = "read the settings of the disk tier";
        let writer = self.write(doing, |batch| connection::settings(batch.connection)).await?;
        let reader = self.read(doing, connection::settings)?;
        let version = ("sqlite.version".to_owned(), sqlite_version().to_owned());
        let named = |who: &'static str, settings: Vec<(&'static str, String)>| {
            settings.into_iter().map(move |(name, value)| (format!("{who}.{name}"), value))
        };
        let all = [version].into_iter().chain(named("writer", writer));
        Ok(all.chain(named("reader", reader)).collect())
    }

    /// Runs a read on the caller's own thread.
    fn read<T: Send>(
        &self,
        doing: &'static str,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        if self.shared.writer.is_closed() {
            return Err(StoreError::new(StoreErrorKind::Closed, doing));
        }
        let pooled = self.shared.readers.lock().pop();
        let connection = match pooled {
            Some(connection) => connection,
            None => connection::reader(&self.shared.path).map_err(|error| failed(doing, error))?,
        };
        let answer = question(&connection).map_err(|error| failed(doing, error));
        // A connection that failed may be the reason: it is not used again.
        if answer.is_ok() {
            self.shared.readers.lock().push(connection);
        }
        answer
    }

    /// Runs a write on the writer's thread, with others that wait, in one transaction.
    async fn write<T: Send + 'static>(
        &self,
        doing: &'static str,
        change: impl FnMut(&mut Batch<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.shared.writer.run(doing, change).await
    }
}

impl Store for DiskStore {
    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn get<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<Option<Bytes>>> {
        let answer = self.read("read from the disk tier", |connection| {
            keys.iter().map(|key| select(connection, key)).collect()
        });
        Box::pin(std::future::ready(answer))
    }

    fn put<'a>(&'a self, puts: &'a [Put]) -> StoreResult<'a, Vec<Stored>> {
        let puts = puts.to_vec();
        let largest = self.shared.max_value_bytes;
        let is_judge = self.shared.is_judge.load(Ordering::Relaxed);
        Box::pin(self.write("write to the disk tier", move |batch| {
            puts.iter()
                .map(|put| {
                    if put.frame.len() > largest {
                        // What was there before must not outlive what replaces it.
                        batch.delete(&put.key)?;
                        return Ok(Stored::TooLarge);
                    }
                    if is_judge && !ledger::permits(batch.connection, put)? {
                        return Ok(Stored::Refused);
                    }
                    batch.insert(put)?;
                    Ok(Stored::Yes)
                })
                .collect()
        }))
    }

    fn remove<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<bool>> {
        let keys = keys.to_vec();
        Box::pin(self.write("remove from the disk tier", move |batch| {
            keys.iter().map(|key| batch.delete(key)).collect()
        }))
    }

    fn clear<'a>(&'a self, prefix: &'a str) -> StoreResult<'a, u64> {
        let prefix = prefix.to_owned();
        Box::pin(self.write("clear the disk tier", move |batch| batch.clear(&prefix)))
    }

    fn scan<'a>(
        &'a self,
        after: Option<&'a StoredKey>,
        limit: usize,
    ) -> StoreResult<'a, Vec<(StoredKey, Bytes)>> {
        let answer = self.read("scan the disk tier", |connection| scan(connection, after, limit));
        Box::pin(std::future::ready(answer))
    }

    fn usage(&self) -> StoreResult<'_, Usage> {
        let answer = self.read("measure the disk tier", |connection| {
            let mut statement = connection.prepare_cached("SELECT entries, bytes FROM usage")?;
            statement.query_row([], |row| {
                Ok(Usage {
                    entries: unsigned(row.get(0)?),
                    bytes: unsigned(row.get(1)?),
                    evicted: self.shared.evicted.load(Ordering::Relaxed),
                })
            })
        });
        Box::pin(std::future::ready(answer))
    }

    fn authority(&self) -> Option<Arc<dyn Authority>> {
        Some(Arc::new(self.clone()))
    }

    fn obey_another_ledger(&self) {
        self.shared.is_judge.store(false, Ordering::Relaxed);
    }

    fn maintain(&self, now: WallTime) -> StoreResult<'_, ()> {
        Box::pin(async move {
            // An empty sweep would still be a write: look first.
            let due = self.read("look for expired entries", |connection| {
                connection
                    .prepare_cached(
                        "SELECT 1 WHERE EXISTS (SELECT 1 FROM entry WHERE expires <= ?1)
                         OR EXISTS (SELECT 1 FROM counter WHERE expires <= ?1)
                         OR EXISTS (SELECT 1 FROM lease WHERE until <= ?1)",
                    )?
                    .exists([signed(now.as_millis())])
            })?;
            if due {
                self.write("sweep the disk tier", move |batch| batch.sweep(now)).await?;
            }
            Ok(())
        })
    }

    fn close(&self) -> StoreResult<'_, ()> {
        Box::pin(async {
            self.shared.readers.lock().clear();
            self.shared.writer.close().await;
            Ok(())
        })
    }
}

fn select(connection: &Connection, key: &StoredKey) -> rusqlite::Result<Option<Bytes>> {
    let mut statement =
        connection.prepare_cached("SELECT frame FROM entry WHERE id = ?1 AND key = ?2")?;
    statement
        .query_row(params![row_id(key.as_str()), key.as_str()], |row| row.get::<_, Vec<u8>>(0))
        .optional()
        .map(|frame| frame.map(Bytes::from))
}

fn scan(
    connection: &Connection,
    after: Option<&StoredKey>,
    limit: usize,
) -> rusqlite::Result<Vec<(StoredKey, Bytes)>> {
    let mut statement =
        connection.prepare_cached("SELECT key, frame FROM entry WHERE id > ?1 ORDER BY id")?;
    let after = after.map_or(i64::MIN, |key| row_id(key.as_str()));
    let rows = statement.query_map([after], |row| {
        // A row that nobody of us could have written is not ours to show.
        let key = row.get_ref(0)?.as_str().ok().and_then(StoredKey::parse);
        let frame = row.get_ref(1)?.as_blob().ok().map(Bytes::copy_from_slice);
        Ok(key.zip(frame))
    })?;
    let ours = rows.filter_map(Result::transpose);
    ours.take(limit).collect()
}

/// The row of a text: its hash as SQLite's signed integer.
fn row_id(text: &str) -> i64 {
    xxh3_64(text.as_bytes()).cast_signed()
}

/// SQLite's integers are signed; ours of this kind never are.
pub(crate) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn failed(doing: &'static str, error: rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode as Code;
    let kind = match error.sqlite_error_code() {
        Some(Code::DatabaseBusy | Code::DatabaseLocked | Code::CannotOpen | Code::ReadOnly) => {
            StoreErrorKind::Unavailable
        }
        Some(Code::DiskFull) => StoreErrorKind::Full,
        Some(Code::DatabaseCorrupt | Code::NotADatabase) => StoreErrorKind::Damaged,
        _ => StoreErrorKind::Other,
    };
    StoreError::new(kind, doing).caused_by(error)
}
