//! A **cache directory**, to be looked into: opened only if it is there, and its entries judged as
//! a cache would judge them.

use std::fs;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Serialize;
use terrace::authority::Authority as _;
use terrace::clock::{Clock as _, SystemClock};
use terrace::frame::{self, Frame, FrameError, Header};
use terrace::freshness::{Freshness, Life, Written, judge};
use terrace::key::StoredKey;
use terrace::ledger::Names;
use terrace::protocol::{Limits, Marks, Snapshot, Standing};
use terrace::store::{Store as _, Usage};
use terrace::{Disk, DiskStore, Terrace};

use crate::failure::Failure;

/// Entries that are read at once: few, because each may have megabytes.
const AT_ONCE: usize = 32;

/// The largest value that is read: more than the disk tier takes unless it is told to.
const LARGEST_VALUE: usize = 1 << 30;

/// Opens the cache in `directory` for one command, creating it if it is not there.
///
/// There is no memory tier, because nobody would read from it. Another program's entries must not
/// be evicted because of one that this program writes, so the size has no bound here.
pub(crate) async fn cache(directory: &Path) -> Result<Terrace, Failure> {
    let disk = Disk::at(directory).max_bytes(u64::MAX).keep_foreign();
    refuse_special_files(&disk.database())?;
    Ok(Terrace::builder().tier("disk", disk).build().await?)
}

/// The same for reading: the cache must be there, and its largest values can be read.
pub(crate) async fn existing_cache(directory: &Path) -> Result<Terrace, Failure> {
    must_exist(directory)?;
    let disk = Disk::at(directory).max_bytes(u64::MAX).keep_foreign();
    let disk = disk.max_value_bytes(LARGEST_VALUE);
    Ok(Terrace::builder().tier("disk", disk).build().await?)
}

/// The same for invalidating: whatever may have been built from something is reached.
pub(crate) async fn tracked_cache(directory: &Path) -> Result<Terrace, Failure> {
    must_exist(directory)?;
    let disk = Disk::at(directory).max_bytes(u64::MAX);
    Ok(Terrace::builder().tracked().tier("disk", disk).build().await?)
}

/// Opening a cache makes one where none is: whoever only wants to look must not.
fn must_exist(directory: &Path) -> Result<(), Failure> {
    let shown = directory.display();
    let missing = |what: &str| {
        Failure::directory(
            format_args!("there is no cache in {shown}: {what}"),
            "check --dir and TERRACE_DIR, or make a cache there with `terrace set`",
        )
    };
    let unreadable = |error| {
        Failure::directory(
            format_args!("{shown}: could not look into it: {error}"),
            "check that this user may read and write there, or choose another directory",
        )
    };
    match fs::metadata(directory) {
        Ok(found) if !found.is_dir() => return Err(missing("it is not a directory")),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(missing("the directory does not exist"));
        }
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            return Err(missing("a part of the path is a file"));
        }
        Err(error) => return Err(unreadable(error)),
    }
    let database = Disk::at(directory).database();
    match fs::symlink_metadata(&database) {
        Ok(_) => refuse_special_files(&database),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(missing("it holds no terrace.db")),
        Err(error) => Err(unreadable(error)),
    }
}

/// A pipe, a device, a directory or a link in the database's place is nothing to open.
fn refuse_special_files(database: &Path) -> Result<(), Failure> {
    match fs::symlink_metadata(database) {
        Ok(found) if !found.is_file() => Err(Failure::directory(
            format_args!("{} is not a plain file", database.display()),
            "choose another directory, or move what is in the way",
        )),
        // What cannot be asked will fail when it is opened, with a reason.
        _ => Ok(()),
    }
}

/// A cache directory that is open for looking.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    store: DiskStore,
    pub(crate) ledger: Snapshot,
    marks: Marks,
    clock: SystemClock,
}

impl Directory {
    pub(crate) async fn open(path: &Path) -> Result<Self, Failure> {
        must_exist(path)?;
        let store = Disk::at(path).max_bytes(u64::MAX).keep_foreign().open()?;
        let ledger = match store.snapshot().await {
            Ok(ledger) => ledger,
            Err(error) => {
                let _ = store.close().await;
                return Err(Failure::store(path, &error));
            }
        };
        let marks = Marks::joining(&ledger, Limits::default());
        Ok(Self { path: path.to_owned(), store, ledger, marks, clock: SystemClock::new() })
    }

    pub(crate) fn database(&self) -> &Path {
        self.store.path()
    }

    pub(crate) async fn usage(&self) -> Result<Usage, Failure> {
        self.store.usage().await.map_err(|error| Failure::store(&self.path, &error))
    }

    /// Shows every entry to `visit`, in no particular order, until that has seen enough.
    pub(crate) async fn each(
        &self,
        mut visit: impl FnMut(Listed) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<(), Failure> {
        let mut after = None;
        loop {
            let page = self.store.scan(after.as_ref(), AT_ONCE).await;
            let page = page.map_err(|error| Failure::store(&self.path, &error))?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for (key, bytes) in page {
                if visit(self.judge(&key, &bytes))?.is_break() {
                    return Ok(());
                }
            }
        }
    }

    /// Lets go of the files.
    pub(crate) async fn close(self) {
        // Nothing was written, so that nothing is lost if this fails.
        let _ = self.store.close().await;
    }

    /// The judgement that a read would come to.
    fn judge(&self, stored: &StoredKey, bytes: &Bytes) -> Listed {
        let frame =
            frame::decode(bytes, LARGEST_VALUE).map_err(Damage::Frame).and_then(
                |frame| match stored.key() {
                    Some(key) if key != *frame.header.key => Err(Damage::OtherKey),
                    _ => Ok(frame),
                },
            );
        let state = match &frame {
            Ok(frame) => self.state(stored, &frame.header),
            Err(_) => State::Damaged,
        };
        let key = match &frame {
            Ok(frame) => Some(frame.header.key.to_vec()),
            Err(_) => stored.key(),
        };
        Listed {
            space: stored.space(),
            // Where it is no text, or only its hash is known, the escaped form says what it is.
            key: key.and_then(|key| String::from_utf8(key).ok()).unwrap_or_else(|| escaped(stored)),
            state,
            stored_bytes: bytes.len(),
            frame,
        }
    }

    fn state(&self, stored: &StoredKey, header: &Header) -> State {
        let name = stored.name();
        let space = name.match_indices(':').nth(1).and_then(|(end, _)| name.get(..end));
        let names = Names { key: &name, space: space.unwrap_or(&name), tags: &header.tags };
        let standing = self.marks.standing(header.stamp, &names);
        let written = Written {
            created: header.created,
            expires: header.expires,
            stale_until: header.stale_until,
        };
        let now = self.clock.tick();
        let life = Life::remaining(&written, self.clock.wall(), now);
        match (standing, judge(life, standing, now)) {
            (Standing::Named, _) => State::Invalidated,
            (Standing::Unknown, _) => State::Untrusted,
            (_, Freshness::Fresh | Freshness::Aging) => State::Fresh,
            (_, Freshness::Stale) => State::Stale,
            (_, Freshness::Dead) => State::Expired,
        }
    }
}

/// The key's part of a stored key, as it is written there.
fn escaped(stored: &StoredKey) -> String {
    stored.as_str().splitn(5, ':').nth(4).unwrap_or_default().to_owned()
}

/// An entry that was found.
#[derive(Debug)]
pub(crate) struct Listed {
    /// The space's name; empty for dynamic keys.
    pub(crate) space: String,
    /// The caller's key; not escaped.
    pub(crate) key: String,
    pub(crate) state: State,
    /// Bytes of its frame.
    pub(crate) stored_bytes: usize,
    /// What its frame says, if that can be read.
    pub(crate) frame: Result<Frame, Damage>,
}

/// What a read would make of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// It is served.
    Fresh,
    /// It is served if nothing fresher can be had.
    Stale,
    /// It is past its end.
    Expired,
    /// The ledger names it.
    Invalidated,
    /// The ledger no longer knows whether it was named.
    Untrusted,
    /// It cannot be read.
    Damaged,
}

impl State {
    pub(crate) const ALL: [Self; 6] = [
        Self::Fresh,
        Self::Stale,
        Self::Expired,
        Self::Invalidated,
        Self::Untrusted,
        Self::Damaged,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Expired => "expired",
            Self::Invalidated => "invalidated",
            Self::Untrusted => "untrusted",
            Self::Damaged => "damaged",
        }
    }
}

/// Why an entry cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    Frame(FrameError),
    OtherKey,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Frame(error) => error.fmt(formatter),
            Self::OtherKey => formatter.write_str("the frame of another key"),
        }
    }
}
