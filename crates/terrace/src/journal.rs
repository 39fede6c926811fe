//! The **journal**: what was written behind and is not in the source yet, on disk.
//!
//! It is a SQLite database of its own, which every process opens that opens the same directory.
//! All of them add to it, and read from it before they ask anything below memory: what it holds is
//! newer than what the source has. Of each space one process at a time is the *owner*, which hands
//! the writes to the space's writer ([`drain`]).

mod committer;
mod database;
pub(crate) mod drain;
mod owner;
mod record;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::clock::WallTime;
use crate::error::{BuildError, Error};
use crate::runtime::{Runtime, unless};
use crate::source::WriteId;
use crate::stats::{JournalStats, bump};
use crate::store::disk::{connection, failed};
use crate::store::{StoreError, StoreErrorKind};
use committer::{Committer, How};
use database::{Appended, Due, Failure, Limits};
use owner::Owners;

pub(crate) use database::{Place, Row};
pub(crate) use record::Record;

/// Settings of the journal: where it is, and how much it may hold.
///
/// ```no_run
/// # async fn example() -> Result<(), terrace::BuildError> {
/// use terrace::{Journal, Memory, Terrace};
///
/// let terrace = Terrace::builder()
///     .memory(Memory::bytes(64 << 20))
///     .journal(Journal::at("/var/lib/shop/journal"))
///     .build()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Journal {
    directory: PathBuf,
    limits: Limits,
    max_wait: Duration,
}

impl Journal {
    /// A journal in `directory`, which is created (for its owner alone) if it is not there. It
    /// must be on a disk of this machine. At most 100,000 writes and 256 MiB; callers wait 5 s for
    /// room.
    #[must_use]
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            limits: Limits { entries: 100_000, bytes: 256 << 20 },
            max_wait: Duration::from_secs(5),
        }
    }

    /// At most so many writes that are not in the source yet, dead letters included.
    #[must_use]
    pub fn max_entries(self, entries: u64) -> Self {
        Self { limits: Limits { entries, ..self.limits }, ..self }
    }

    /// The keys and values of these writes take no more than this. The files may be larger, by
    /// their indexes and by the write-ahead log.
    #[must_use]
    pub fn max_bytes(self, bytes: u64) -> Self {
        Self { limits: Limits { bytes, ..self.limits }, ..self }
    }

    /// How long a caller waits for room in a full journal before it fails with
    /// [`Error::JournalFull`].
    #[must_use]
    pub fn max_wait(self, time: Duration) -> Self {
        Self { max_wait: time, ..self }
    }

    /// Where the database is.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.directory.join(database::DATABASE)
    }

    pub(crate) fn open(&self) -> Result<OpenJournal, BuildError> {
        // Closing a file lets go of every lock that the process has on it: nobody may
        // hold one while another one makes the file.
        static OPENING: Mutex<()> = Mutex::new(());
        let opening = OPENING.lock();
        let path = connection::prepare(&self.directory, database::DATABASE)?;
        let connection = database::open(&path)?;
        drop(opening);
        sync_directories(&path)
            .map_err(|error| BuildError::directory(&path, "sync its directory", error))?;
        let unreadable = |error| BuildError::directory(&path, "read the journal", error);
        let origin = database::origin(&connection).map_err(unreadable)?;
        let committer = Committer::start(connection)
            .map_err(|error| BuildError::directory(&path, "start the journal's thread", error))?;
        Ok(OpenJournal {
            owners: Owners::in_directory(path.parent().unwrap_or(Path::new("."))),
            path,
            origin,
            committer,
            limits: self.limits,
            max_wait: self.max_wait,
            readers: Mutex::default(),
            early: Arc::default(),
            early_room: Arc::new(Semaphore::new(MOST_EARLY)),
            calls: AtomicU64::new(0),
            changed: Notify::new(),
            flushes: AtomicUsize::new(0),
            is_closing: AtomicBool::new(false),
            left: Mutex::default(),
            counters: Counters::default(),
        })
    }
}

/// Makes sure that the files are found again after a power failure, all of which are there by now.
#[cfg(unix)]
fn sync_directories(path: &Path) -> std::io::Result<()> {
    for directory in path.ancestors().skip(1).take(2) {
        match File::open(directory) {
            Ok(directory) => directory.sync_all()?,
            // The directory above may be closed to us; then somebody else has made this one.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(not(unix))]
fn sync_directories(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// How far a write behind has got when its call returns. Each level includes those before it.
///
/// docs/write-behind.md says what each of them survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Acknowledge {
    /// This process has it in memory: its end loses it, unless it was
    /// [closed](crate::Terrace::close).
    Memory,
    /// The journal has it: it survives the end of the process, however sudden.
    #[default]
    Journal,
    /// The device has it: it survives the end of the machine.
    Synced,
}

/// Writes that are acknowledged and not in the journal yet, at most.
const MOST_EARLY: usize = 1024;

/// How long a disk may take for what it was told before the journal is closed.
const CLOSING: Duration = Duration::from_secs(5);

/// How often those who wait for another process look.
const LOOKING: Duration = Duration::from_millis(20);

/// An open journal. See the [module](self).
#[derive(Debug)]
pub(crate) struct OpenJournal {
    path: PathBuf,
    origin: u64,
    committer: Committer,
    limits: Limits,
    max_wait: Duration,
    readers: Mutex<Vec<Connection>>,
    /// What was acknowledged and is not in the journal yet, the newest of each key.
    early: Arc<Mutex<HashMap<Place, Early>>>,
    early_room: Arc<Semaphore>,
    /// Numbers the calls of this process, in their order.
    calls: AtomicU64,
    changed: Notify,
    /// Callers who wait until everything is written.
    flushes: AtomicUsize,
    is_closing: AtomicBool,
    /// What was left when it was closed.
    left: Mutex<Option<Left>>,
    owners: Owners,
    counters: Counters,
}

#[derive(Debug)]
struct Early {
    call: u64,
    record: Bytes,
}

#[derive(Debug, Default)]
struct Counters {
    written: AtomicU64,
    superseded: AtomicU64,
    failures: AtomicU64,
    dead: AtomicU64,
    waited: AtomicU64,
    largest_lag: AtomicU64,
}

/// Which write it is that is not in the source yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// One that is not in the journal yet, by its call.
    Early(u64),
    Number(u64),
}

/// What a journal leaves behind when it is closed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    pub(crate) kept: u64,
    pub(crate) elsewhere: u64,
    pub(crate) lost: u64,
}

/// A write that waits to be added.
#[derive(Clone, Debug)]
pub(crate) struct Addition {
    pub(crate) place: Place,
    pub(crate) record: Bytes,
    pub(crate) call: u64,
    pub(crate) is_synced: bool,
    /// It is acknowledged already.
    pub(crate) is_early: bool,
}

impl OpenJournal {
    /// A number for a call that begins now.
    pub(crate) fn begin_call(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::SeqCst)
    }

    pub(crate) fn id(&self, number: u64) -> WriteId {
        WriteId { journal: self.origin, number }
    }

    /// Whether a write is larger than the whole journal may be.
    pub(crate) fn takes(&self, place: &Place, record: &Bytes) -> bool {
        (place.key.len() + record.len()) as u64 <= self.limits.bytes
    }

    /// Acknowledges a write before it is in the journal; whoever holds the permit has to
    /// [add](Self::add_early) it.
    pub(crate) async fn accept_early(
        &self,
        runtime: &dyn Runtime,
        place: Place,
        record: Bytes,
    ) -> Result<(u64, OwnedSemaphorePermit), Error> {
        let room = Arc::clone(&self.early_room).acquire_owned();
        let permit = unless(|| runtime.sleep(self.max_wait), room).await;
        let Some(Ok(permit)) = permit else { return Err(Error::JournalFull(self.max_wait)) };
        let mut early = self.early.lock();
        // Under the lock: of two calls for one key the later one is the newer.
        let call = self.begin_call();
        if early.insert(place, Early { call, record }).is_some() {
            bump(&self.counters.superseded);
        }
        Ok((call, permit))
    }

    /// Adds a write; its number, or `None` if a newer one of this process came before it.
    ///
    /// Waits for room, for as long as the settings say.
    pub(crate) async fn add(
        &self,
        runtime: &dyn Runtime,
        queued: WallTime,
        addition: &Addition,
    ) -> Result<Option<u64>, Error> {
        let mut patience = runtime.sleep(self.max_wait);
        loop {
            let changed = self.changed.notified();
            match self.try_add(queued, addition).await? {
                Added::Yes(number) => return Ok(Some(number)),
                Added::Superseded => return Ok(None),
                Added::Full => bump(&self.counters.waited),
            }
            // Only the wait for room is cut off: what is being written is written.
            if unless(|| std::future::ready(()), &mut patience).await.is_some() {
                return Err(Error::JournalFull(self.max_wait));
            }
            unless(|| runtime.sleep(LOOKING), changed).await;
        }
    }

    /// Adds a write that was accepted early, however long that takes; `None`: a newer one has
    /// taken its place, or the journal was closed.
    pub(crate) async fn add_early(
        &self,
        runtime: &dyn Runtime,
        queued: WallTime,
        addition: &Addition,
    ) -> Option<u64> {
        let mut wait = LOOKING;
        loop {
            match self.try_add(queued, addition).await {
                Ok(Added::Yes(number)) => return Some(number),
                Ok(Added::Superseded) => return None,
                Ok(Added::Full) => {}
                Err(Error::Journal(error)) if error.kind() == StoreErrorKind::Closed => {
                    return None;
                }
                Err(error) => {
                    tracing::warn!(%error, "what was acknowledged is not in the journal yet");
                }
            }
            let changed = self.changed.notified();
            unless(|| runtime.sleep(wait), changed).await;
            wait = (wait * 2).min(Duration::from_secs(1));
        }
    }

    async fn try_add(&self, queued: WallTime, addition: &Addition) -> Result<Added, Error> {
        let Addition { place, record, call, is_synced, is_early } = addition.clone();
        let how = How { is_synced, bytes: place.key.len() + record.len() };
        let (early, limits) = (Arc::clone(&self.early), self.limits);
        let (known, added_place) = (Arc::clone(&self.early), place.clone());
        let added = self.committer.run(
            "write to the journal",
            how,
            move |connection| {
                // One that was accepted early must not come after what is newer.
                let is_newest = || early.lock().get(&place).is_some_and(|early| early.call == call);
                if is_early && !is_newest() {
                    return Ok(None);
                }
                database::append(connection, &place, &record, queued, limits).map(Some)
            },
            move |appended| {
                let mut early = known.lock();
                let is_known = early.get(&added_place).is_some_and(|early| early.call <= call);
                if is_known && matches!(appended, Some(Appended::Yes { .. })) {
                    early.remove(&added_place);
                }
            },
        );
        let added = match added.await.map_err(Error::Journal)? {
            Some(Appended::Yes { number, superseded }) => {
                self.changed.notify_waiters();
                self.counters.superseded.fetch_add(superseded, Ordering::Relaxed);
                Added::Yes(number)
            }
            Some(Appended::Full) => Added::Full,
            None => Added::Superseded,
        };
        Ok(added)
    }

    /// The newest write of a key that is not in the source yet.
    pub(crate) fn newest(&self, place: &Place) -> Result<Option<(Which, Record)>, StoreError> {
        let doing = "read the journal";
        let damaged = || StoreError::new(StoreErrorKind::Damaged, doing);
        let early = self.early.lock().get(place).map(|early| (early.call, early.record.clone()));
        let (which, record) = match early {
            Some((call, record)) => (Which::Early(call), record),
            None => match self.read(doing, |connection| database::newest(connection, place))? {
                Some((number, record)) => (Which::Number(number), record.ok_or_else(damaged)?),
                None => return Ok(None),
            },
        };
        let record = Record::decode(record).ok_or_else(damaged)?;
        Ok(Some((which, record)))
    }

    /// Whether a write is in its source already, and certainly none of its key came after it.
    pub(crate) fn is_last_and_settled(&self, which: Which) -> bool {
        let Which::Number(number) = which else { return false };
        let is_it = |connection: &_| database::is_last_and_settled(connection, number);
        self.read("read the journal", is_it).unwrap_or(false)
    }

    /// Waits until everything of a space that was acknowledged before is in the source, or dead.
    pub(crate) async fn flush(&self, runtime: &dyn Runtime, space: &str) -> Result<(), Error> {
        let _flush = self.begin_flush();
        let call = self.begin_call();
        let is_early = || {
            let early = self.early.lock();
            early.iter().any(|(place, early)| &*place.space == space && early.call < call)
        };
        self.wait(runtime, || Ok(!is_early())).await?;
        let last = self.read("read the journal", database::last).map_err(Error::Journal)?;
        self.wait(runtime, || Ok(self.left(space, last)? == 0)).await
    }

    /// The same for what was written of one key.
    pub(crate) async fn flush_key(
        &self,
        runtime: &dyn Runtime,
        place: &Place,
    ) -> Result<(), Error> {
        let is_flushed = || Ok(self.newest(place)?.is_none());
        if is_flushed().map_err(Error::Journal)? {
            return Ok(());
        }
        let _flush = self.begin_flush();
        self.wait(runtime, is_flushed).await
    }

    async fn wait(
        &self,
        runtime: &dyn Runtime,
        is_over: impl Fn() -> Result<bool, StoreError>,
    ) -> Result<(), Error> {
        loop {
            let changed = self.changed.notified();
            if is_over().map_err(Error::Journal)? {
                return Ok(());
            }
            unless(|| runtime.sleep(LOOKING), changed).await;
        }
    }

    fn begin_flush(&self) -> Flush<'_> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
        Flush { journal: self }
    }

    /// Whether writes are handed out without waiting for others to go with.
    fn is_hurried(&self) -> bool {
        self.flushes.load(Ordering::SeqCst) > 0 || self.is_closing.load(Ordering::SeqCst)
    }

    /// How many writes of a space up to a number are neither in the source nor dead.
    fn left(&self, space: &str, number: u64) -> Result<u64, StoreError> {
        self.read("read the journal", |connection| database::left(connection, space, number))
    }

    /// Nothing that is written behind waits for others any longer.
    pub(crate) fn begin_close(&self) {
        self.is_closing.store(true, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// Has what it holds written as far as the time allows, where no other process does so, and
    /// ends the journal here.
    pub(crate) async fn close(&self, runtime: &dyn Runtime, time: Duration) -> Left {
        if let Some(left) = *self.left.lock() {
            return left;
        }
        self.begin_close();
        let is_over = || Ok(self.early.lock().is_empty() && self.left_here()? == 0);
        let ended = unless(|| runtime.sleep(time), self.wait(runtime, is_over)).await;
        if let Some(Err(error)) = ended {
            tracing::warn!(%error, "the journal did not close as it should");
        }
        let kept = self.left_here().unwrap_or(0);
        let elsewhere = self.left_in(&self.owners.elsewhere()).unwrap_or(0);
        if unless(|| runtime.sleep(CLOSING), self.committer.close()).await.is_none() {
            tracing::warn!("the journal's disk does not answer: it is closed without it");
        }
        self.readers.lock().clear();
        self.changed.notify_waiters();
        let left = Left { kept, elsewhere, lost: self.early.lock().len() as u64 };
        *self.left.lock() = Some(left);
        left
    }

    /// How many writes are not in the source yet of spaces that no other process owns.
    fn left_here(&self) -> Result<u64, StoreError> {
        self.left_in(&self.owners.not_elsewhere())
    }

    fn left_in(&self, spaces: &[Arc<str>]) -> Result<u64, StoreError> {
        spaces.iter().map(|space| self.left(space, u64::MAX)).sum()
    }

    /// Wakes whoever waits for something to happen.
    pub(crate) fn wake(&self) {
        self.changed.notify_waiters();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.committer.is_closed()
    }

    fn note_lag(&self, lag: Duration) {
        self.counters.largest_lag.fetch_max(crate::clock::millis(lag), Ordering::Relaxed);
    }

    fn due(&self, space: &str, now: WallTime, most: usize) -> Result<Due, StoreError> {
        self.read("read the journal", |connection| database::due(connection, space, now, most))
    }

    /// What a write is known by must be on the device before its source hears of it: numbers that
    /// a power failure takes back would be used again.
    async fn take(
        &self,
        space: &Arc<str>,
        now: WallTime,
        most: usize,
    ) -> Result<Vec<Row>, StoreError> {
        let space = Arc::clone(space);
        let how = How { is_synced: true, bytes: 0 };
        self.change("take from the journal", how, move |connection| {
            database::take(connection, &space, now, most, LARGEST_BATCH)
        })
        .await
    }

    async fn recover(&self, space: &Arc<str>) -> Result<u64, StoreError> {
        let space = Arc::clone(space);
        self.change("take over the journal", How::default(), move |connection| {
            database::recover(connection, &space)
        })
        .await
    }

    async fn settle(&self, numbers: Vec<u64>) -> Result<(), StoreError> {
        self.counters.written.fetch_add(numbers.len() as u64, Ordering::Relaxed);
        // A power failure must not have it written once more, over what is written to the source
        // later than this.
        let how = How { is_synced: true, bytes: 0 };
        self.change("settle what is written", how, move |connection| {
            database::settle(connection, &numbers)
        })
        .await
    }

    async fn part(&self, numbers: Vec<u64>) -> Result<(), StoreError> {
        let superseded = self
            .change("note a failure", How::default(), move |connection| {
                database::part(connection, &numbers)
            })
            .await?;
        self.counters.superseded.fetch_add(superseded, Ordering::Relaxed);
        Ok(())
    }

    async fn fail(&self, failure: Failure) -> Result<(), StoreError> {
        let is_dead = failure.is_dead;
        let how = How { is_synced: false, bytes: failure.error.len() };
        let stands = self
            .change("note a failure", how, move |connection| database::fail(connection, &failure))
            .await?;
        match (stands, is_dead) {
            (true, true) => bump(&self.counters.dead),
            (true, false) => {}
            (false, _) => bump(&self.counters.superseded),
        }
        Ok(())
    }

    /// Dead letters of a space, the oldest first.
    pub(crate) fn dead(&self, space: &str, limit: usize) -> Result<Vec<Row>, StoreError> {
        self.read("read the journal", |connection| database::dead(connection, space, limit))
    }

    /// Has a dead letter tried again; its key, if it was there.
    pub(crate) async fn replay(
        &self,
        space: &Arc<str>,
        number: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let space = Arc::clone(space);
        self.change("replay a dead letter", How::default(), move |connection| {
            database::replay(connection, &space, number)
        })
        .await
    }

    /// Drops a dead letter; says whether it was there.
    pub(crate) async fn bury(&self, space: &Arc<str>, number: u64) -> Result<bool, StoreError> {
        let space = Arc::clone(space);
        self.change("drop a dead letter", How::default(), move |connection| {
            database::bury(connection, &space, number)
        })
        .await
    }

    pub(crate) fn stats(&self, now: WallTime) -> JournalStats {
        let depth = self.read("read the journal", database::depth).unwrap_or_default();
        let lag = depth.oldest.map_or(Duration::ZERO, |oldest| now.saturating_since(oldest));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        JournalStats {
            depth: depth.unflushed + self.early.lock().len() as u64,
            bytes: depth.bytes,
            dead_letters: depth.dead,
            lag,
            largest_lag: Duration::from_millis(count(&self.counters.largest_lag)).max(lag),
            written: count(&self.counters.written),
            superseded: count(&self.counters.superseded),
            failures: count(&self.counters.failures),
            died: count(&self.counters.dead),
            waited: count(&self.counters.waited),
        }
    }

    /// Runs a read on the caller's own thread.
    fn read<T>(
        &self,
        doing: &'static str,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        if self.is_closed() {
            return Err(StoreError::new(StoreErrorKind::Closed, doing));
        }
        let pooled = self.readers.lock().pop();
        let connection = match pooled {
            Some(connection) => connection,
            None => database::reader(&self.path).map_err(|error| failed(doing, error))?,
        };
        let answer = question(&connection).map_err(|error| failed(doing, error));
        // A connection that failed may be the reason: it is not used again.
        if answer.is_ok() {
            self.readers.lock().push(connection);
        }
        answer
    }

    /// Runs a change on the committer's thread, and lets those know who wait for one.
    async fn change<T: Send + 'static>(
        &self,
        doing: &'static str,
        how: How,
        change: impl FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let answer = self.committer.run(doing, how, change, |_| {}).await;
        self.changed.notify_waiters();
        answer
    }
}

/// Bytes that a writer is given at once, roughly.
const LARGEST_BATCH: usize = 8 << 20;

enum Added {
    Yes(u64),
    Superseded,
    Full,
}

/// Somebody waits until everything is written.
struct Flush<'a> {
    journal: &'a OpenJournal,
}

impl Drop for Flush<'_> {
    fn drop(&mut self) {
        self.journal.flushes.fetch_sub(1, Ordering::SeqCst);
    }
}
