//! A **process** of the rig: signals reach it, and it does not outlive whoever holds it.

use std::fs::{File, OpenOptions};
use std::future::ready;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::{PATIENCE, RigError, wait_for};

/// As much of a log as an error shows.
const LINES_SHOWN: usize = 20;

/// What to run, and where.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) file: PathBuf,
    /// What Debian calls the package that has it.
    pub(super) package: &'static str,
}

/// A running process, or one that has ended by itself.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
}

impl Process {
    /// What it prints is appended to `log`.
    pub(super) fn spawn(
        program: &Program,
        arguments: &[&str],
        directory: &Path,
        log: &Path,
    ) -> Result<Self, RigError> {
        let open = || -> io::Result<(File, File)> {
            let log = OpenOptions::new().create(true).append(true).open(log)?;
            Ok((log.try_clone()?, log))
        };
        let (out, err) = open().map_err(RigError::while_("opening the log of a server"))?;
        let mut command = Command::new(&program.file);
        command.args(arguments).current_dir(directory);
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => RigError::NotInstalled {
                program: program.file.display().to_string(),
                package: program.package,
            },
            _ => RigError::while_(format!("starting {}", program.file.display()))(error),
        })?;
        Ok(Self { child })
    }

    /// One that was started elsewhere.
    pub(super) fn holding(child: Child) -> Self {
        Self { child }
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), RigError> {
        kill_process(Pid::from_child(&self.child), signal)
            .map_err(|error| RigError::while_("sending a signal to a server")(error.into()))
    }

    /// Whether a signal has stopped it.
    pub(super) fn has_stopped(&self) -> bool {
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(Pid::from_child(&self.child)), stopped).is_ok_and(|s| s.is_some())
    }

    /// Ends it without a warning.
    pub(super) fn kill(mut self) -> Result<(), RigError> {
        self.end().map_err(RigError::while_("killing a server"))
    }

    /// Asks it to end, as an orderly shutdown of the machine would.
    pub(super) async fn terminate(mut self) -> Result<ExitStatus, RigError> {
        // One that is paused hears nothing else.
        self.signal(Signal::CONT)?;
        self.signal(Signal::TERM)?;
        let what = format!("process {} to end when it was asked to", self.id());
        wait_for(what, PATIENCE, || ready(self.ended().ok_or_else(String::new))).await
    }

    fn end(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(|_| ())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already when this fails.
        let _ = self.end();
    }
}

/// The end of the log of a server.
pub(super) fn tail(log: &Path) -> String {
    let log = std::fs::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().collect();
    let shown = lines.get(lines.len().saturating_sub(LINES_SHOWN)..).unwrap_or_default();
    shown.iter().map(|line| format!("    {line}\n")).collect()
}
