//! The **owner** of a space in the journal: the one process that hands its writes to its writer.
//!
//! The right to it is a lock that the operating system keeps, and takes back when the process ends,
//! however that happens. There is no time in which two could have it, and none in which nobody can
//! get it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

/// The right to hand out a space's writes, for as long as this is kept.
#[derive(Debug)]
pub(super) struct Owner {
    _lock: File,
}

/// Who owns the spaces that have a writer here, as far as is known.
#[derive(Debug)]
pub(super) struct Owners {
    directory: PathBuf,
    known: Mutex<HashMap<Arc<str>, Whose>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Unknown,
    Ours,
    Another,
}

impl Owners {
    pub(super) fn in_directory(directory: &Path) -> Self {
        Self { directory: directory.into(), known: Mutex::default() }
    }

    /// A space has a writer from here on.
    pub(super) fn begin(&self, space: &Arc<str>) {
        self.known.lock().entry(Arc::clone(space)).or_insert(Whose::Unknown);
    }

    /// The right to hand out a space's writes; none if another process has it.
    pub(super) fn own(&self, space: &Arc<str>) -> io::Result<Option<Owner>> {
        let name = format!("owner-{:016x}.lock", xxh3_64(space.as_bytes()));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(self.directory.join(name))?;
        let (whose, owner) = match file.try_lock() {
            Ok(()) => (Whose::Ours, Some(Owner { _lock: file })),
            Err(TryLockError::WouldBlock) => (Whose::Another, None),
            Err(TryLockError::Error(error)) => return Err(error),
        };
        self.known.lock().insert(Arc::clone(space), whose);
        Ok(owner)
    }

    /// The spaces with a writer here that no other process is known to own.
    pub(super) fn not_elsewhere(&self) -> Vec<Arc<str>> {
        self.spaces(|whose| whose != Whose::Another)
    }

    /// Those that another one owned when this one tried last.
    pub(super) fn elsewhere(&self) -> Vec<Arc<str>> {
        self.spaces(|whose| whose == Whose::Another)
    }

    fn spaces(&self, are_wanted: impl Fn(Whose) -> bool) -> Vec<Arc<str>> {
        let known = self.known.lock();
        let wanted = known.iter().filter(|(_, whose)| are_wanted(**whose));
        wanted.map(|(space, _)| Arc::clone(space)).collect()
    }
}
