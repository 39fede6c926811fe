//! The **store**: bytes in, bytes out. The one trait to implement for a new tier.
//!
//! A store knows nothing of values, types or policies: it keeps frames under keys.
//! `terrace_test::conformance::store` checks an implementation.

#[cfg(feature = "disk")]
pub mod disk;
#[cfg(feature = "redis")]
pub mod redis;

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::authority::Authority;
use crate::clock::WallTime;
use crate::key::StoredKey;
use crate::ledger::Stamp;
use crate::runtime::BoxFuture;

/// The result of a question to a store.
pub type StoreResult<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Keeps frames under keys.
///
/// Every verb takes many keys, so that many cost one round trip, and answers in the
/// order of the keys. Futures may be dropped at any point: what was begun is then
/// either done or not, never half. A store must be able to lose anything at any
/// time except what it says is there.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Who shares what is stored here.
    fn scope(&self) -> Scope;

    /// The frames under `keys`. May return frames that have expired.
    fn get<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<Option<Bytes>>>;

    /// Stores frames, each in place of what was under its key.
    ///
    /// A store that is the authority refuses, in the same step, every frame whose
    /// stamp the ledger does not permit. Others ignore the stamp.
    fn put<'a>(&'a self, puts: &'a [Put]) -> StoreResult<'a, Vec<Stored>>;

    /// Removes what is under `keys`; says for each whether something was.
    fn remove<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<bool>>;

    /// Removes everything whose key begins with `prefix`; returns how many. A call that is dropped
    /// may leave some of it.
    fn clear<'a>(&'a self, prefix: &'a str) -> StoreResult<'a, u64>;

    /// Up to `limit` keys and frames after `after`, in an order of the store's own.
    ///
    /// Calling again with the last key goes on; an empty answer is the end.
    fn scan<'a>(
        &'a self,
        after: Option<&'a StoredKey>,
        limit: usize,
    ) -> StoreResult<'a, Vec<(StoredKey, Bytes)>>;

    /// Some of the keys that begin with `prefix`, after `position`, in an order of the store's own.
    ///
    /// One call does a bounded piece of work: it may look at about `limit` keys and find none.
    /// Calling again with the position that it answers with goes on; none is the end. A key that is
    /// there from the beginning to the end is told at least once.
    ///
    /// Unless a store knows a cheaper way, [`scan`](Store::scan) does it.
    fn keys<'a>(
        &'a self,
        prefix: &'a str,
        position: Option<&'a Position>,
        limit: usize,
    ) -> StoreResult<'a, KeyPage> {
        Box::pin(async move {
            let after = position.and_then(|position| StoredKey::parse(&position.0));
            // What is not wanted, the frames, may be large.
            let page = self.scan(after.as_ref(), limit.min(64)).await?;
            let next = page.last().map(|(key, _)| Position(key.as_str().into()));
            let keys = page.into_iter().map(|(key, _)| key);
            Ok(KeyPage {
                keys: keys.filter(|key| key.as_str().starts_with(prefix)).collect(),
                next,
            })
        })
    }

    /// How much is stored now.
    fn usage(&self) -> StoreResult<'_, Usage>;

    /// How the store is, in its own words. Asked for on demand and every 30 s.
    fn health(&self) -> StoreResult<'_, Health> {
        Box::pin(std::future::ready(Ok(Health::default())))
    }

    /// The ledger that lives in this store, if it can keep one.
    fn authority(&self) -> Option<Arc<dyn Authority>> {
        None
    }

    /// The ledger that counts is kept elsewhere: from now on, this store ignores the stamps of
    /// what is put into it, even if it could keep a ledger itself.
    fn obey_another_ledger(&self) {}

    /// By how many milliseconds the clock by which frames are written here is ahead of the
    /// reader's own. Machines that share a store need not agree on the time of day then.
    fn clock_ahead(&self) -> i64 {
        0
    }

    /// Does a bounded piece of housekeeping, such as deleting what has expired at
    /// `now`. Called every few seconds.
    fn maintain(&self, now: WallTime) -> StoreResult<'_, ()> {
        let _ = now;
        Box::pin(std::future::ready(Ok(())))
    }

    /// Finishes what was begun and lets go of files and connections.
    fn close(&self) -> StoreResult<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Some keys of a store, and where to go on.
#[derive(Clone, Debug, Default)]
pub struct KeyPage {
    /// The keys that were found.
    pub keys: Vec<StoredKey>,
    /// Where to go on; `None` at the end.
    pub next: Option<Position>,
}

/// Where a walk over the keys of a store goes on. Means something to that store alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position(pub Arc<str>);

/// Who shares a store: the narrower first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// This process alone.
    Process,
    /// Every process on this machine that opens the same directory.
    Host,
    /// Every process of a service, wherever it runs.
    Fleet,
}

/// A frame to store.
#[derive(Clone, Debug)]
pub struct Put {
    /// Under which key.
    pub key: StoredKey,
    /// What.
    pub frame: Bytes,
    /// After when nobody will want it; `None`: never.
    pub expires: Option<WallTime>,
    /// The frame's stamp.
    pub stamp: Stamp,
    /// The frame's tags, as the ledger names them.
    pub tags: Arc<[Arc<str>]>,
}

/// What became of a [`Put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stored {
    /// It is stored.
    Yes,
    /// The ledger does not permit it: something was invalidated since its stamp.
    Refused,
    /// It is larger than this store takes.
    TooLarge,
}

/// How much a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Entries, expired ones that are still there included.
    pub entries: u64,
    /// Bytes of their keys and frames.
    pub bytes: u64,
    /// Entries that had to leave to make room, since the store was opened.
    pub evicted: u64,
    /// Files that hold large values, of a store that has such.
    pub files: u64,
    /// Bytes that all of it takes on the disk, of a store that is on one.
    pub disk_bytes: u64,
    /// Bytes among them that hold nothing and are used next.
    pub free_bytes: u64,
}

impl Usage {
    /// So many entries of so many bytes.
    #[must_use]
    pub fn new(entries: u64, bytes: u64) -> Self {
        Self { entries, bytes, ..Self::default() }
    }
}

/// How a store is: see [`Terrace::health`](crate::Terrace::health).
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Health {
    /// The servers that it consists of; none if it has none.
    pub nodes: Vec<NodeHealth>,
}

/// How one server is.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeHealth {
    /// Its address, or what it is for.
    pub name: String,
    /// Whether it answered.
    pub is_up: bool,
    /// How long the answer took.
    pub latency: Duration,
    /// What it says of itself: version, role, memory, clients, hit rate and the like.
    pub facts: Vec<(&'static str, String)>,
    /// What endangers the cache, each with what to do about it.
    pub warnings: Vec<String>,
}

/// Why a store could not answer.
#[derive(Debug, Clone)]
pub struct StoreError {
    kind: StoreErrorKind,
    doing: &'static str,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// The kinds of failure that are treated differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// Nothing answered in time.
    Deadline,
    /// It cannot be reached, or somebody else holds it.
    Unavailable,
    /// It has no room left.
    Full,
    /// What is stored there is damaged.
    Damaged,
    /// It does not let us: the password, or what the user may do there.
    Denied,
    /// It was closed.
    Closed,
    /// Anything else.
    Other,
}

impl StoreError {
    /// A failure of some kind; `doing` completes "could not …".
    #[must_use]
    pub fn new(kind: StoreErrorKind, doing: &'static str) -> Self {
        Self { kind, doing, source: None }
    }

    /// The same with its cause.
    #[must_use]
    pub fn caused_by(self, source: impl StdError + Send + Sync + 'static) -> Self {
        Self { source: Some(Arc::new(source)), ..self }
    }

    /// Which kind of failure it was.
    #[must_use]
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "could not {}", self.doing)?;
        match self.kind {
            StoreErrorKind::Deadline => formatter.write_str(" in time")?,
            StoreErrorKind::Unavailable => formatter.write_str(": unavailable")?,
            StoreErrorKind::Full => formatter.write_str(": no room left")?,
            StoreErrorKind::Damaged => formatter.write_str(": damaged")?,
            StoreErrorKind::Denied => formatter.write_str(": not permitted")?,
            StoreErrorKind::Closed => formatter.write_str(": closed")?,
            StoreErrorKind::Other => {}
        }
        match &self.source {
            Some(source) => write!(formatter, ": {source}"),
            None => Ok(()),
        }
    }
}

impl StdError for StoreError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
