//! A **rig error**: why a server could not be started, asked or disturbed.

use std::fmt;
use std::io;
use std::time::Duration;

/// What went wrong in the [rig](super), where, and what to do.
///
/// Its `Debug` form is the same sentence, because that is what `unwrap` shows.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum RigError {
    /// The program is not installed. A test fails for that; it does not skip itself.
    #[error(
        "the program {program} was not found: install it (the Debian package is called \
         {package}); RedisServerBuilder::program names a server that lies elsewhere"
    )]
    NotInstalled {
        /// What was looked for, in the directories of `PATH` unless it is a path.
        program: String,
        /// What Debian calls the package that has it.
        package: &'static str,
    },
    /// The program ended before it answered, or did not answer in time.
    #[error("{what} did not start: {why}. The end of its log:\n{log}")]
    DidNotStart {
        /// Which server.
        what: String,
        /// What became of it.
        why: String,
        /// The last lines that it wrote.
        log: String,
    },
    /// What was asked for needs a running process, and there is none.
    #[error("{what} is not running: it was killed or has ended; call restart first")]
    NotRunning {
        /// Which server.
        what: String,
    },
    /// There is no old snapshot to start from.
    #[error("nothing was saved of {what}: call save before restart_from_saved")]
    NothingSaved {
        /// Which server.
        what: String,
    },
    /// A command that the rig itself depends on was answered with an error.
    #[error("{what} refused {command}: {answer}")]
    Refused {
        /// Which server.
        what: String,
        /// What the rig asked it.
        command: String,
        /// What it answered.
        answer: String,
    },
    /// Bytes that are no reply of a Redis server.
    #[error("bytes that are no reply: {why}")]
    Malformed {
        /// What is wrong with them.
        why: String,
    },
    /// Something did not happen in time.
    #[error("waited {within:?} in vain for {what}")]
    InVain {
        /// What was waited for.
        what: String,
        /// For how long.
        within: Duration,
    },
    /// The operating system refused something.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the operating system said.
        source: io::Error,
    },
}

impl fmt::Debug for RigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl RigError {
    /// For `map_err`: says what was being done.
    pub(super) fn while_(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing: doing.into(), source }
    }
}
