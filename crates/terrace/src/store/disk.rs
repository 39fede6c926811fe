//! The **disk store**: frames in a SQLite database, shared by every process that
//! opens the same directory, and the ledger of all of them.
//!
//! Values that are not small are files beside it, and the directory as a whole stays within its
//! bound at every instant.
//!
//! One thread writes and groups what waits into one transaction; reads take a
//! pooled connection on the caller's own thread, because a point read costs a few
//! microseconds and a hop to another thread costs more. SQLite is compiled in, so
//! that its version is known: builds before 3.51.3 can damage a database in
//! write-ahead mode (<https://sqlite.org/wal.html#walresetbug>) and are refused.
//!
//! Rows are found by a 64-bit hash of their key as the integer primary key, with
//! the full key beside it and compared; the file format is in docs/format.md.

mod batch;
mod budget;
mod checkpoints;
mod chores;
pub(crate) mod connection;
mod folder;
mod large;
mod ledger;
mod opening;
mod place;
mod room;
mod touches;
mod turn;
mod writer;

use std::fs::File;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::Connection;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::authority::Authority;
use crate::clock::WallTime;
use crate::error::BuildError;
use crate::key::StoredKey;
use crate::runtime::off_thread;
use crate::store::{
    KeyPage, Position, Put, Scope, Store, StoreError, StoreErrorKind, StoreResult, Stored, Usage,
};
use batch::Batch;
use budget::{Budget, Cost, LEAST, Taken, length, log_of};
use chores::Chores;
use folder::Folder;
use large::{Found, Underway};
use opening::Opened;
use room::{Room, Surroundings};
use touches::Touches;
use writer::Writer;

pub use connection::sqlite_version;
pub use touches::DiskEviction;

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
    inline_bytes: usize,
    eviction: DiskEviction,
    keeps_foreign: bool,
    is_exclusive: bool,
}

impl Disk {
    /// A disk tier in `directory`, which is created (for its owner alone) if it is
    /// not there. At most 1 GiB, values of at most 64 MiB.
    #[must_use]
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            max_bytes: 1 << 30,
            max_value_bytes: 64 << 20,
            inline_bytes: 32 << 10,
            eviction: DiskEviction::default(),
            keeps_foreign: false,
            is_exclusive: false,
        }
    }

    /// The directory never takes more than this on the disk: the database, its write-ahead log
    /// and files of large values, whoever writes. 4 MiB at least; 1 GiB unless set.
    ///
    /// Entries leave before others come. Databases that were set aside, two at most, are beside
    /// it. Processes that share a directory should give the same.
    #[must_use]
    pub fn max_bytes(self, max_bytes: u64) -> Self {
        Self { max_bytes, ..self }
    }

    /// Larger values are not stored here; nor are those of more than a quarter of
    /// [`max_bytes`](Self::max_bytes).
    #[must_use]
    pub fn max_value_bytes(self, max_value_bytes: usize) -> Self {
        Self { max_value_bytes, ..self }
    }

    /// Entries up to this size are in the database, larger ones in files beside it: 32 KiB
    /// unless set, 64 KiB at most.
    #[must_use]
    pub fn inline_bytes(self, inline_bytes: usize) -> Self {
        Self { inline_bytes: inline_bytes.min(64 << 10), ..self }
    }

    /// Who leaves when it is full: what was not used for the longest time, unless set.
    #[must_use]
    pub fn eviction(self, eviction: DiskEviction) -> Self {
        Self { eviction, ..self }
    }

    /// Refuses a directory with the database of another program, or of a newer version of this
    /// library, and leaves it as it is. Unless set, such a database is set aside, and an empty
    /// one begun.
    #[must_use]
    pub fn keep_foreign(self) -> Self {
        Self { keeps_foreign: true, ..self }
    }

    /// Nobody else may have the directory open at the same time: no other process, and no other
    /// cache of this one. Whoever comes second gets [`BuildError::InUse`] after a second at most,
    /// whether it is this one or a cache that would share the directory.
    ///
    /// The system keeps the right to the directory, and takes it back when the process ends,
    /// however that happens.
    ///
    /// ```no_run
    /// use terrace::Disk;
    ///
    /// let disk = Disk::at("/var/cache/shop").exclusive();
    /// ```
    #[must_use]
    pub fn exclusive(self) -> Self {
        Self { is_exclusive: true, ..self }
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
    budget: Budget,
    max_value_bytes: usize,
    inline_bytes: usize,
    writer: Writer,
    readers: Mutex<Vec<Connection>>,
    folder: Arc<Folder>,
    underway: Underway,
    touches: Arc<Touches>,
    chores: Chores,
    evicted: Arc<AtomicU64>,
    /// Whether frames are judged by the ledger in this directory.
    is_judge: AtomicBool,
    /// Let go of when no connection is open any more.
    lock: Mutex<Option<Arc<File>>>,
}

impl DiskStore {
    fn open(settings: &Disk) -> Result<Self, BuildError> {
        // Closing a file lets go of every lock that the process has on it: nobody may
        // hold one while another one makes the file.
        static OPENING: Mutex<()> = Mutex::new(());
        if settings.max_bytes < LEAST {
            return Err(BuildError::Setting("a disk tier needs at least 4 MiB: raise max_bytes"));
        }
        let opening = OPENING.lock();
        let Opened { path, connection, folder, lock } = opening::open(settings)?;
        drop(opening);
        let cannot = |doing| {
            let path = path.clone();
            move |error| BuildError::directory(&path, doing, error)
        };
        let root = path.parent().unwrap_or(&path);
        let folder = Arc::new(Folder::new(root, folder).map_err(cannot("open its directory"))?);
        // The shares are those of what there is: a log that is small beside the limit alone could take
        // all of a small file system, and could not be written back to the database then.
        let most = settings.max_bytes.min(place::most_bytes(root));
        let budget = Budget::new(most.max(LEAST));
        let touches = Arc::new(Touches::new(settings.eviction));
        let evicted = Arc::new(AtomicU64::new(0));
        let surroundings = Surroundings {
            budget,
            folder: Arc::clone(&folder),
            touches: Arc::clone(&touches),
            evicted: Arc::clone(&evicted),
            lock: Arc::clone(&lock),
        };
        let writer = Room::new(connection, &path, surroundings).and_then(Writer::start);
        let writer = writer.map_err(cannot("start its threads"))?;
        let shared = Shared {
            path,
            budget,
            max_value_bytes: settings.max_value_bytes,
            inline_bytes: settings.inline_bytes,
            writer,
            readers: Mutex::new(Vec::new()),
            folder,
            underway: Underway::default(),
            touches,
            chores: Chores::default(),
            evicted,
            is_judge: AtomicBool::new(true),
            lock: Mutex::new(Some(lock)),
        };
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
        let writer = self
            .write(doing, Cost::default(), |batch| connection::settings(batch.connection))
            .await?;
        let reader = self.read(doing, connection::settings)?;
        let version = ("sqlite.version".to_owned(), sqlite_version().to_owned());
        let named = |who: &'static str, settings: Vec<(&'static str, String)>| {
            settings.into_iter().map(move |(name, value)| (format!("{who}.{name}"), value))
        };
        let all = [version].into_iter().chain(named("writer", writer));
        Ok(all.chain(named("reader", reader)).collect())
    }

    fn read<T: Send>(
        &self,
        doing: &'static str,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.shared.read(doing, question)
    }

    /// Runs a write on the writer's thread, with others that wait, in one transaction.
    async fn write<T: Send + 'static>(
        &self,
        doing: &'static str,
        cost: Cost,
        change: impl FnMut(&mut Batch<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.shared.writer.run(doing, cost, change).await
    }

    /// Does what may block its thread on another one; goes on if the caller does not wait.
    async fn elsewhere<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Arc<Shared>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        let done = off_thread(move || work(&shared)).await;
        done.unwrap_or_else(|| Err(StoreError::new(StoreErrorKind::Closed, doing)))
    }

    /// Stores frames of which none goes into a file, in as many transactions as it takes.
    async fn put_rows(&self, puts: &[Put]) -> Result<Vec<Stored>, StoreError> {
        let (largest, is_judge) = (self.shared.largest(), self.shared.is_judge());
        let mut stored = Vec::with_capacity(puts.len());
        let mut left = puts;
        while !left.is_empty() {
            let (count, cost) = self.shared.first_change(left);
            let (some, rest) = left.split_at(count);
            let some = some.to_vec();
            let change =
                move |batch: &mut Batch<'_>| large::put_rows(batch, &some, largest, is_judge);
            stored.extend(self.write("write to the disk tier", cost, change).await?);
            left = rest;
        }
        Ok(stored)
    }
}

impl Shared {
    /// Runs a read on the caller's own thread.
    fn read<T>(
        &self,
        doing: &'static str,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        if self.writer.is_closed() {
            return Err(StoreError::new(StoreErrorKind::Closed, doing));
        }
        let pooled = self.readers.lock().pop();
        let connection = match pooled {
            Some(connection) => connection,
            None => connection::reader(&self.path).map_err(|error| failed(doing, error))?,
        };
        let answer = question(&connection).map_err(|error| failed(doing, error));
        // A connection that failed may be the reason: it is not used again.
        if answer.is_ok() {
            let mut readers = self.readers.lock();
            if !self.writer.is_closed() {
                readers.push(connection);
            }
        }
        answer
    }

    fn write_blocking<T: Send + 'static>(
        &self,
        doing: &'static str,
        cost: Cost,
        change: impl FnMut(&mut Batch<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.writer.run_blocking(doing, cost, change)
    }

    fn is_judge(&self) -> bool {
        self.is_judge.load(Ordering::Relaxed)
    }

    /// Bytes of the largest frame that is stored.
    fn largest(&self) -> u64 {
        (self.max_value_bytes as u64).min(self.budget.data / 4)
    }

    fn is_for_file(&self, put: &Put) -> bool {
        put.frame.len() > self.inline_bytes && put.frame.len() as u64 <= self.largest()
    }

    /// How many of the frames one change takes, and what it adds.
    fn first_change(&self, puts: &[Put]) -> (usize, Cost) {
        let mut sum = Cost::default();
        let mut count = 0;
        for put in puts {
            let next = sum.and(large::cost_of_row(put, put.frame.len().min(self.inline_bytes)));
            if count > 0 && next.log() > self.budget.largest_change() {
                break;
            }
            (sum, count) = (next, count + 1);
        }
        (count, sum)
    }
}

impl Store for DiskStore {
    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn get<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<Option<Bytes>>> {
        Box::pin(large::get(&self.shared, keys))
    }

    fn put<'a>(&'a self, puts: &'a [Put]) -> StoreResult<'a, Vec<Stored>> {
        Box::pin(async move {
            if !puts.iter().any(|put| self.shared.is_for_file(put)) {
                return self.put_rows(puts).await;
            }
            let mut stored = Vec::with_capacity(puts.len());
            // One by one what is large; between them, as many as fit.
            for some in puts.chunk_by(|one, next| {
                !self.shared.is_for_file(one) && !self.shared.is_for_file(next)
            }) {
                if some.first().is_some_and(|put| self.shared.is_for_file(put)) {
                    let some = some.to_vec();
                    let put = move |shared: &Arc<Shared>| large::put(shared, &some);
                    stored.extend(self.elsewhere("write to the disk tier", put).await?);
                } else {
                    stored.extend(self.put_rows(some).await?);
                }
            }
            Ok(stored)
        })
    }

    fn remove<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<bool>> {
        Box::pin(async move {
            let mut removed = Vec::with_capacity(keys.len());
            for some in keys.chunks(self.shared.budget.rows_at_once()) {
                let (some, count) = (some.to_vec(), some.len());
                let change = move |batch: &mut Batch<'_>| {
                    some.iter().map(|key| batch.delete(key)).collect::<Result<Vec<_>, _>>()
                };
                let cost = Cost::rows(count);
                removed.extend(self.write("remove from the disk tier", cost, change).await?);
            }
            Ok(removed)
        })
    }

    fn clear<'a>(&'a self, prefix: &'a str) -> StoreResult<'a, u64> {
        const CLEARING: &str = "clear the disk tier";
        let prefix: Arc<str> = prefix.into();
        // Each step takes its place in the queue when it is asked for: what is stored after a call
        // that is dropped is not taken for what was there before.
        Box::pin(async move {
            let most = self.shared.budget.rows_at_once();
            let (mut gone, mut after) = (0, i64::MIN);
            loop {
                let prefix = Arc::clone(&prefix);
                let change = move |batch: &mut Batch<'_>| batch.clear(&prefix, after, most);
                let (some, last) = self.write(CLEARING, Cost::rows(most), change).await?;
                gone += some;
                match last {
                    Some(last) => after = last,
                    None => return Ok(gone),
                }
            }
        })
    }

    fn keys<'a>(
        &'a self,
        prefix: &'a str,
        position: Option<&'a Position>,
        limit: usize,
    ) -> StoreResult<'a, KeyPage> {
        let after = position.and_then(|position| position.0.parse().ok()).unwrap_or(i64::MIN);
        let page = self.read("look through the disk tier", |connection| {
            keys(connection, prefix, after, limit)
        });
        Box::pin(std::future::ready(page))
    }

    fn scan<'a>(
        &'a self,
        after: Option<&'a StoredKey>,
        limit: usize,
    ) -> StoreResult<'a, Vec<(StoredKey, Bytes)>> {
        let after = after.map_or(i64::MIN, row_of);
        Box::pin(async move {
            let found =
                self.read("scan the disk tier", |connection| scan(connection, after, limit));
            let found = found?;
            self.elsewhere("scan the disk tier", move |shared| {
                let mut rows = Vec::with_capacity(found.len());
                for (key, found) in found {
                    let frame = match found {
                        Found::Nothing => None,
                        Found::Inline(frame) => Some(frame),
                        Found::File { number, length } => {
                            large::read_file(&shared.folder, number, length)?
                        }
                    };
                    // One that is gone meanwhile was there when we looked: the next scan goes on
                    // after it.
                    rows.push((key, frame.unwrap_or_default()));
                }
                Ok(rows)
            })
            .await
        })
    }

    fn usage(&self) -> StoreResult<'_, Usage> {
        let answer = self.read("measure the disk tier", |connection| {
            let taken = Taken::measure(connection, &self.shared.path)?;
            let mut statement =
                connection.prepare_cached("SELECT entries, bytes, files FROM usage")?;
            statement.query_row([], |row| {
                Ok(Usage {
                    entries: unsigned(row.get(0)?),
                    bytes: unsigned(row.get(1)?),
                    evicted: self.shared.evicted.load(Ordering::Relaxed),
                    files: unsigned(row.get(2)?),
                    disk_bytes: taken.all() + length(&log_of(&self.shared.path)).unwrap_or(0),
                    free_bytes: taken.free,
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
        Box::pin(
            self.elsewhere("clean up the disk tier", move |shared| chores::do_some(shared, now)),
        )
    }

    fn close(&self) -> StoreResult<'_, ()> {
        Box::pin(async {
            self.shared.writer.close().await;
            self.shared.readers.lock().clear();
            self.shared.lock.lock().take();
            Ok(())
        })
    }
}

fn scan(
    connection: &Connection,
    after: i64,
    limit: usize,
) -> rusqlite::Result<Vec<(StoredKey, Found)>> {
    let mut statement = connection
        .prepare_cached("SELECT key, file, frame FROM entry WHERE id > ?1 ORDER BY id")?;
    let rows = statement.query_map([after], |row| {
        // A row that nobody of us could have written is not ours to show.
        let key = row.get_ref(0)?.as_str().ok().and_then(StoredKey::parse);
        let file = row.get_ref(1)?.as_i64_or_null().ok();
        let frame = row.get_ref(2)?.as_blob().ok();
        let (Some(key), Some(file), Some(frame)) = (key, file, frame) else { return Ok(None) };
        Ok(Some((key, large::found(connection, file, || Ok(frame.to_vec()))?)))
    })?;
    let ours = rows.filter_map(Result::transpose);
    ours.take(limit).collect()
}

fn keys(
    connection: &Connection,
    prefix: &str,
    after: i64,
    limit: usize,
) -> rusqlite::Result<KeyPage> {
    let mut statement = connection
        .prepare_cached("SELECT id, key FROM entry WHERE id > ?1 ORDER BY id LIMIT ?2")?;
    let mut rows =
        statement.query(rusqlite::params![after, i64::try_from(limit).unwrap_or(i64::MAX)])?;
    let mut page = KeyPage::default();
    while let Some(row) = rows.next()? {
        page.next = Some(Position(row.get::<_, i64>(0)?.to_string().into()));
        let key = row.get_ref(1)?.as_str().ok().filter(|key| key.starts_with(prefix));
        page.keys.extend(key.and_then(StoredKey::parse));
    }
    Ok(page)
}

/// The bits of a row's number that tell the schemas of one name apart.
const SCHEMAS: i64 = 0xFFF;

/// The rows of what is stored under a name, by whichever build: they are neighbours, so that they are
/// found without an index. Another name's are among them once in 2^52.
fn rows_of(space: &str, key: &str) -> RangeInclusive<i64> {
    let hash = xxh3_64_with_seed(key.as_bytes(), xxh3_64(space.as_bytes()));
    let first = hash.cast_signed() & !SCHEMAS;
    first..=(first | SCHEMAS)
}

/// The row of a key.
fn row_of(key: &StoredKey) -> i64 {
    let ([space, name], schema) = key.name_and_schema();
    rows_of(space, name).start() | (xxh3_64(schema.as_bytes()).cast_signed() & SCHEMAS)
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
