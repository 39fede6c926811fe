//! A **failure**: what was wrong and where, what to do about it, and the exit code.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;
use terrace::store::{StoreError, StoreErrorKind};
use terrace::{BuildError, Error};

use crate::output::{json_text, printable};

/// How the program ends. `--help` explains each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Done = 0,
    NothingThere = 1,
    Usage = 2,
    Directory = 3,
    Other = 4,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Whoever read the output went away. Nothing to tell anybody, and not a failure.
    ReaderGone,
    /// Anything else.
    Told {
        exit: Exit,
        /// What was wrong, and where.
        what: String,
        /// What to do about it.
        hint: String,
    },
}

impl Failure {
    fn new(exit: Exit, what: impl Display, hint: impl Display) -> Self {
        Self::Told { exit, what: what.to_string(), hint: hint.to_string() }
    }

    pub(crate) fn nothing_there(what: impl Display, hint: impl Display) -> Self {
        Self::new(Exit::NothingThere, what, hint)
    }

    pub(crate) fn usage(what: impl Display, hint: impl Display) -> Self {
        Self::new(Exit::Usage, what, hint)
    }

    pub(crate) fn directory(what: impl Display, hint: impl Display) -> Self {
        Self::new(Exit::Directory, what, hint)
    }

    pub(crate) fn other(what: impl Display, hint: impl Display) -> Self {
        Self::new(Exit::Other, what, hint)
    }

    pub(crate) fn interrupted() -> Self {
        Self::new(Exit::Interrupted, "interrupted", "nothing is left half done: run it again")
    }

    /// A store that could not be read or written in `directory`.
    pub(crate) fn store(directory: &Path, error: &StoreError) -> Self {
        let hint = match error.kind() {
            StoreErrorKind::Full => "the disk is full: make room",
            StoreErrorKind::Unavailable | StoreErrorKind::Deadline => {
                "another process may hold it: try again when that is done"
            }
            StoreErrorKind::Damaged => {
                "the next `terrace set` there sets a damaged database aside and begins a new one"
            }
            _ => "try again; if it stays so, delete the directory: a cache can be filled again",
        };
        Self::other(format_args!("{}: {error}", directory.display()), hint)
    }

    /// Tells the person or program that waits for it, and returns how to end.
    ///
    /// Where that is written may be closed or full; there is nobody left to complain to.
    pub(crate) fn tell(&self, is_json: bool) -> Exit {
        let Self::Told { exit, what, hint } = self else { return Exit::Done };
        let mut stderr = io::stderr().lock();
        let _ = if is_json {
            writeln!(stderr, "{}", json_text(&json!({ "error": what, "hint": hint })))
        } else {
            writeln!(stderr, "error: {}\nhint: {}", printable(what), printable(hint))
        };
        *exit
    }
}

/// Where output could not be written to.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::ReaderGone;
        }
        Self::other(
            format_args!("could not write to the standard output: {error}"),
            "check where the output goes",
        )
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        match &error {
            BuildError::Directory { path, doing, remedy, source } => {
                let path = path.display();
                Self::directory(format_args!("{path}: could not {doing}: {source}"), remedy)
            }
            BuildError::Foreign { path } => Self::directory(
                format_args!("{} is the database of another program", path.display()),
                "choose another directory",
            ),
            BuildError::Newer { path, found } => Self::directory(
                format_args!(
                    "{} has format {found}, which this version does not know",
                    path.display()
                ),
                "upgrade, or choose another directory",
            ),
            BuildError::Ledger { source, .. } => Self::directory(
                format_args!("{error}: {source}"),
                "try again; if it stays so, choose another directory",
            ),
            _ => Self::other(&error, "this is a mistake of the program: please report it"),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match &error {
            Error::KeyTooLong { bytes } => Self::usage(
                format_args!(
                    "the key has {bytes} bytes, and {} are allowed",
                    terrace::key::LARGEST_KEY
                ),
                "use a hash of it as the key",
            ),
            Error::ValueTooLarge { bytes } => Self::usage(
                format_args!("the value has {bytes} bytes, which is more than a cache takes"),
                "store it in parts, or a reference to it",
            ),
            Error::Tags(what) => Self::usage(what, "use up to 64 tags of 1 to 256 bytes"),
            Error::Encode(source) => {
                Self::usage(format_args!("{error}: {source}"), "store something simpler")
            }
            Error::Authority(source) => Self::other(
                format_args!("{error}: {source}"),
                "another process may hold it: try again when that is done",
            ),
            _ => Self::other(error, "try again"),
        }
    }
}
