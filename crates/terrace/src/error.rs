//! The **errors**: what was wrong, where, and what to do about it.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt::{self, Debug, Display};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::codec::CodecError;
use crate::key::LARGEST_KEY;
use crate::store::StoreError;

/// Why an operation on the cache failed.
///
/// A tier that fails is not among the reasons for a read: the next tier answers, and
/// the failure is counted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The cache was closed.
    #[error("the cache is closed")]
    Closed,
    /// The key is too long.
    #[error("the key has {bytes} bytes, and {LARGEST_KEY} are allowed: hash long keys yourself")]
    KeyTooLong {
        /// How long it is.
        bytes: usize,
    },
    /// A tag is empty, too long, or there are too many.
    #[error("{0}: use up to 64 tags of 1 to 256 bytes")]
    Tags(&'static str),
    /// No event of this name was declared.
    #[error("there is no event named {0:?}: declare it where the cache is built")]
    NoSuchEvent(String),
    /// An event was raised without something that it has to be raised with.
    #[error("the event {event:?} has to be raised with {parameter:?}")]
    MissingParameter {
        /// The event.
        event: String,
        /// What is missing.
        parameter: String,
    },
    /// Something that a value is said to depend on cannot be, or there are too many such things.
    #[error("a dependency cannot be used: {0}")]
    Dependencies(&'static str),
    /// A pattern cannot be read.
    #[error("the pattern cannot be read: {0}")]
    Pattern(&'static str),
    /// The value could not be turned into bytes.
    #[error("the value could not be encoded")]
    Encode(#[source] CodecError),
    /// The value was not stored anywhere: larger than every tier takes. What was under the key still
    /// is: invalidate it if it is not right any more.
    #[error("the value has {bytes} bytes, which is more than any tier takes")]
    ValueTooLarge {
        /// Its encoded size, or its weight in a cache of memory alone.
        bytes: u64,
    },
    /// The authority could not be asked, and without it this cannot be done.
    #[error("the ledger could not be asked")]
    Authority(#[from] StoreError),
    /// Somebody else is writing or loading this key, and did not finish in time.
    #[error("the key is held by another writer; try again")]
    Busy,
    /// The space does not know how to write to its source.
    #[error("the space has no writer: give it one with SpaceBuilder::writer")]
    NoWriter,
    /// The key's owned form could not be encoded, to be kept until the source is written.
    #[error("the key could not be encoded for the journal")]
    KeyNotEncoded,
    /// Nothing can be written behind without a journal.
    #[error("the cache has no journal: give it one with Builder::journal")]
    NoJournal,
    /// The journal could not be written or read. Nothing was acknowledged.
    #[error("the journal failed")]
    Journal(#[source] StoreError),
    /// The journal holds as much as it may, and nothing left it in time.
    #[error(
        "the journal is full, and nothing left it within {0:?}: the source is slow or away; \
         try again later, or look at the dead letters"
    )]
    JournalFull(Duration),
    /// The source was not written, as far as is known: what its writer failed with.
    #[error("the source was not written: {0}")]
    Source(SharedError),
    /// There is no tier of this name.
    #[error("there is no tier named {0:?}")]
    NoSuchTier(String),
    /// A tier failed, and its space is not graceful: see
    /// [`SpaceBuilder::graceful`](crate::SpaceBuilder::graceful).
    #[error("the tier {tier:?} failed")]
    Tier {
        /// The tier.
        tier: Arc<str>,
        /// Why.
        source: Arc<StoreError>,
    },
}

/// Why a load failed.
///
/// `E` is the loader's own error. It is shared, because everybody who waited for the
/// load gets it.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum LoadError<E> {
    /// The loader failed.
    #[error("the loader failed: {0}")]
    Loader(Arc<E>),
    /// Another call's loader failed, with an error of another type.
    #[error("the loader of another call failed: {0}")]
    OtherLoader(SharedError),
    /// The loader panicked. What it said went to the panic hook, not in here: it may
    /// hold secrets.
    #[error("the loader panicked")]
    Panicked,
    /// The load was given up.
    #[error("the load took longer than {0:?}")]
    Deadline(Duration),
    /// The caller did not want to wait longer; the load goes on. See
    /// [`GetOrLoad::patience`](crate::GetOrLoad::patience).
    #[error("the load is not done after {0:?}: it goes on, try again later")]
    Waited(Duration),
    /// The source has no value, as its loader says.
    #[error("the source has no such value")]
    Absent,
    /// The load would have to wait for itself: its loader reads the key, or one whose load
    /// reads it.
    #[error("the load would wait for itself: a loader must not read what waits for it")]
    Circle,
    /// The load that this call shared brought something that was invalidated meanwhile, perhaps
    /// before this call began. Only loads of many keys at once fail with this; the next call
    /// loads.
    #[error("what was loaded was invalidated meanwhile: try again")]
    Superseded,
    /// Too many loads run or wait already.
    #[error("too many loads at once: try again later, or allow more with max_loads")]
    Overloaded,
    /// The loader said that nothing has changed, and there is nothing that could have.
    #[error("the loader answered \"not modified\" without a value that it was asked to confirm")]
    NothingToConfirm,
    /// Another call loads this key as another type.
    #[error("the key is being loaded as another type")]
    OtherType,
    /// The load was abandoned: its runtime is shutting down.
    #[error("the load was abandoned")]
    Abandoned,
    /// The cache itself could not do it.
    #[error(transparent)]
    Cache(#[from] Error),
}

// Derived, it would ask for `E: Debug`, which `LoaderFailure` has already.
impl<E: Debug> Debug for LoadError<E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loader(error) => formatter.debug_tuple("Loader").field(error).finish(),
            Self::OtherLoader(error) => formatter.debug_tuple("OtherLoader").field(error).finish(),
            Self::Panicked => formatter.write_str("Panicked"),
            Self::Deadline(limit) => formatter.debug_tuple("Deadline").field(limit).finish(),
            Self::Waited(time) => formatter.debug_tuple("Waited").field(time).finish(),
            Self::Absent => formatter.write_str("Absent"),
            Self::Circle => formatter.write_str("Circle"),
            Self::Superseded => formatter.write_str("Superseded"),
            Self::Overloaded => formatter.write_str("Overloaded"),
            Self::NothingToConfirm => formatter.write_str("NothingToConfirm"),
            Self::OtherType => formatter.write_str("OtherType"),
            Self::Abandoned => formatter.write_str("Abandoned"),
            Self::Cache(error) => formatter.debug_tuple("Cache").field(error).finish(),
        }
    }
}

impl<E> LoadError<E> {
    /// The loader's own error, if that is what failed.
    #[must_use]
    pub fn loader(&self) -> Option<&E> {
        match self {
            Self::Loader(error) => Some(error),
            _ => None,
        }
    }
}

/// A loader's error whose type another call does not know.
pub type SharedError = Arc<dyn LoaderFailure>;

/// What a loader may fail with: anything that can be shown and shared.
///
/// Implemented for every such type, `anyhow::Error` and `String` among them.
pub trait LoaderFailure: Any + Debug + Display + Send + Sync {}

impl<E: Any + Debug + Display + Send + Sync> LoaderFailure for E {}

/// Why a cache could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// There is neither a memory tier nor another.
    #[error("a cache needs a tier: call memory(…) or tier(…) on the builder")]
    NoTier,
    /// Two tiers, or two spaces of different values, have one name.
    #[error("the name {0:?} is taken")]
    NameTaken(String),
    /// A name that cannot be used.
    #[error("the name {name:?} cannot be used: {reason}")]
    BadName {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// Handles of as many tenants are held as there may be.
    #[error(
        "handles of {most} tenants are held, which is as many as there may be: drop those that \
         are not needed, or raise Builder::max_tenants"
    )]
    TooManyTenants {
        /// How many there may be.
        most: usize,
    },
    /// An event that cannot be meant.
    #[error("the event {event:?} cannot be declared: {reason}")]
    Event {
        /// The event.
        event: String,
        /// Why not.
        reason: &'static str,
    },
    /// A setting that cannot be meant.
    #[error("{0}")]
    Setting(&'static str),
    /// No runtime to spawn tasks on.
    #[error(
        "no Tokio runtime here: build the cache inside one, or give it another with runtime(…)"
    )]
    NoRuntime,
    /// A directory cannot be used.
    #[error("{path}: could not {doing}: {source}; {remedy}", path = path.display())]
    Directory {
        /// The directory or the database in it.
        path: PathBuf,
        /// What could not be done.
        doing: &'static str,
        /// What to do about it.
        remedy: &'static str,
        /// Why it could not.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// An address cannot be understood, or nothing can be connected to it.
    #[error("{address}: {reason}")]
    Address {
        /// The address, without the user and password in it.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The database belongs to another program.
    #[error("{path} is the database of another program; choose another directory", path = path.display())]
    Foreign {
        /// The database.
        path: PathBuf,
    },
    /// The database was written by a newer version.
    #[error("{path} has format {found}, which this version does not know; upgrade, or choose another directory", path = path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its format.
        found: i32,
    },
    /// Somebody else has the directory, and one of both wants it alone: see `Disk::exclusive`.
    #[error(
        "{path} cannot be opened {how}: close the other one first, or choose another directory",
        path = path.display(),
        how = if *wants_it_alone {
            "exclusively, because another cache, of this process or another, has it open"
        } else {
            "because another cache, of this process or another, opened it exclusively"
        }
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Whether it is this cache that does not share it; else it is the other one.
        wants_it_alone: bool,
    },
    /// A database cannot be where other machines may write to it.
    #[error(
        "{path} is on {kind}: a database that other machines can open is damaged by them; \
         choose a directory on a disk of this machine",
        path = path.display()
    )]
    NetworkFileSystem {
        /// The directory.
        path: PathBuf,
        /// What kind of file system it is on.
        kind: &'static str,
    },
    /// The SQLite that is linked can damage databases.
    #[error("SQLite {found} can damage a database in write-ahead mode; 3.51.3 or newer is needed")]
    OldSqlite {
        /// The version that is linked.
        found: &'static str,
    },
    /// A tier's ledger could not be read.
    #[error("the ledger of tier {tier:?} could not be read")]
    Ledger {
        /// The tier.
        tier: String,
        /// Why not.
        source: StoreError,
    },
}

impl BuildError {
    #[cfg(feature = "disk")]
    pub(crate) fn directory(
        path: &std::path::Path,
        doing: &'static str,
        source: impl StdError + Send + Sync + 'static,
    ) -> Self {
        let source: Box<dyn StdError + Send + Sync> = Box::new(source);
        Self::Directory { path: path.into(), doing, remedy: remedy(&*source), source }
    }
}

/// What a person can do about a directory that cannot be used.
#[cfg(feature = "disk")]
fn remedy(error: &(dyn StdError + Send + Sync + 'static)) -> &'static str {
    use rusqlite::ErrorCode as Code;
    use std::io::ErrorKind as Kind;

    let io = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    let sqlite =
        error.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code);
    match (io, sqlite) {
        (Some(Kind::PermissionDenied), _) | (_, Some(Code::PermissionDenied)) => {
            "give this user the right to write there, or choose another directory"
        }
        (Some(Kind::ReadOnlyFilesystem), _) | (_, Some(Code::ReadOnly)) => {
            "the place is read-only: choose another directory"
        }
        (Some(Kind::NotADirectory | Kind::AlreadyExists), _) => {
            "a file is in the way: choose another directory"
        }
        (Some(Kind::StorageFull), _) | (_, Some(Code::DiskFull)) => "the disk is full: make room",
        (_, Some(Code::DatabaseBusy | Code::DatabaseLocked)) => {
            "another process holds it: wait until that is done, or choose another directory"
        }
        _ => "check that the path is right and can be written, or choose another directory",
    }
}
