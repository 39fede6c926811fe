//! The **place** of the demonstration's files: a temporary directory, or the one to keep.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use terrace::BuildError;

use crate::failure::Failure;

/// The source's database.
const SOURCE: &str = "source.db";

/// The same while it is being filled; stays only if that is killed.
const PART: &str = "source.db.part";

/// The cache's directory.
const CACHE: &str = "cache";

#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    /// Goes away with all that is in it.
    temporary: Option<TempDir>,
    /// Keeps other demonstrations out of a directory that is kept.
    _lock: Option<File>,
}

impl Place {
    pub(crate) fn new(keep: Option<&Path>) -> Result<Self, Failure> {
        match keep {
            Some(directory) => Self::kept(directory),
            None => Self::temporary(),
        }
    }

    fn temporary() -> Result<Self, Failure> {
        let directory =
            tempfile::Builder::new().prefix("terrace-demo-").tempdir().map_err(|error| {
                let within = std::env::temp_dir();
                Failure::other(
                    format_args!(
                        "{}: could not make a temporary directory: {error}",
                        within.display()
                    ),
                    "set TMPDIR to a directory that can be written, or name one with --keep",
                )
            })?;
        Ok(Self { path: directory.path().to_owned(), temporary: Some(directory), _lock: None })
    }

    fn kept(directory: &Path) -> Result<Self, Failure> {
        let shown = directory.display();
        fs::create_dir_all(directory).map_err(|error| {
            Failure::directory(
                format_args!("{shown}: could not create it: {error}"),
                "choose another directory for --keep",
            )
        })?;
        let lock = lock(directory)?;
        let names = names(directory).map_err(|error| {
            Failure::directory(
                format_args!("{shown}: could not look into it: {error}"),
                "choose another directory for --keep",
            )
        })?;
        let has = |name: &str| names.iter().any(|found| **found == *OsStr::new(name));
        let foreign = names.iter().find(|name| {
            let is_ours = **name == SOURCE || **name == PART || **name == CACHE;
            !is_ours || (**name == CACHE && !has(SOURCE) && !has(PART))
        });
        match foreign {
            Some(name) => Err(Failure::directory(
                format_args!(
                    "{shown} is not the directory of a demonstration: {} is in it",
                    Path::new(name).display()
                ),
                "name a new or an empty directory with --keep",
            )),
            None => Ok(Self { path: directory.to_owned(), temporary: None, _lock: lock }),
        }
    }

    /// Where the source's database belongs.
    pub(crate) fn source(&self) -> PathBuf {
        self.path.join(SOURCE)
    }

    /// Where the cache belongs.
    pub(crate) fn cache(&self) -> PathBuf {
        self.path.join(CACHE)
    }

    /// The directory, if it is to be kept.
    pub(crate) fn to_keep(&self) -> Option<&Path> {
        self.temporary.is_none().then_some(&*self.path)
    }

    /// What went wrong while this place was used.
    pub(crate) fn failure(&self, error: anyhow::Error) -> Failure {
        match error.downcast::<BuildError>() {
            Ok(error) => error.into(),
            Err(error) if self.temporary.is_none() => Failure::directory(
                format_args!("{error:#}"),
                "name a new or an empty directory with --keep, with room for 50 MB",
            ),
            Err(error) => Failure::other(
                format_args!("{error:#}"),
                format_args!(
                    "see that {} has room for 50 MB, or name another directory with TMPDIR",
                    std::env::temp_dir().display()
                ),
            ),
        }
    }

    /// Removes what is not to be kept.
    pub(crate) fn close(self) -> Result<(), Failure> {
        let Some(directory) = self.temporary else { return Ok(()) };
        directory.close().map_err(|error| {
            Failure::other(
                format_args!(
                    "{}: could not remove the temporary directory: {error}",
                    self.path.display()
                ),
                "remove it by hand",
            )
        })
    }
}

/// Keeps a second demonstration out. Where directories cannot be locked, nothing is.
fn lock(directory: &Path) -> Result<Option<File>, Failure> {
    let Ok(file) = File::open(directory) else { return Ok(None) };
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Failure::directory(
            format_args!("{}: another demonstration is using it", directory.display()),
            "wait until that is done, or name another directory with --keep",
        )),
        Err(TryLockError::Error(_)) => Ok(None),
        Ok(()) => Ok(Some(file)),
    }
}

fn names(directory: &Path) -> std::io::Result<Vec<std::ffi::OsString>> {
    fs::read_dir(directory)?.map(|file| Ok(file?.file_name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_taken(names: &[&str]) -> bool {
        let directory = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(directory.path().join(name), "").unwrap();
        }
        Place::new(Some(directory.path())).is_ok()
    }

    #[test]
    fn only_what_looks_like_ours_is_used_again() {
        assert!(is_taken(&[]));
        assert!(is_taken(&[PART]));
        assert!(is_taken(&[SOURCE, CACHE]));
        assert!(!is_taken(&["thesis.txt"]));
        assert!(!is_taken(&[SOURCE, "thesis.txt"]));
        assert!(!is_taken(&[CACHE]));
    }

    #[test]
    fn a_temporary_place_goes_away_and_a_kept_one_stays() {
        let place = Place::new(None).unwrap();
        let path = place.path.clone();
        fs::write(place.source(), "").unwrap();
        assert_eq!(place.to_keep(), None);
        place.close().unwrap();
        assert!(!path.exists());

        let directory = tempfile::tempdir().unwrap();
        let place = Place::new(Some(directory.path())).unwrap();
        assert_eq!(place.to_keep(), Some(directory.path()));
        place.close().unwrap();
        assert!(directory.path().exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_place_is_taken_by_one_demonstration_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let first = Place::new(Some(directory.path())).unwrap();
        assert!(Place::new(Some(directory.path())).is_err());
        drop(first);
        assert!(Place::new(Some(directory.path())).is_ok());
    }
}
