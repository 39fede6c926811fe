//! python-diskcache, in processes of its own: what Python services keep on a disk.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

pub const NAME: &str = "diskcache";

/// The version that `scripts/bench` installs.
pub const VERSION: &str = "5.6.3";

/// Which Python has it; `scripts/bench` says so.
const PYTHON: &str = "TERRACE_BENCH_PYTHON";

/// Why there is none; so does it.
const REASON: &str = "TERRACE_BENCH_NO_PYTHON";

const PROGRAM: &str = include_str!("../../ask_diskcache.py");

/// A process that reads and writes one directory.
pub struct DiskCache {
    process: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// What it is asked.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum Ask<'a> {
    /// Stores so many values.
    Fill { count: usize, length: usize },
    /// Reads these, one after the other.
    Read { order: &'a [usize], length: usize },
    /// Writes these.
    Write { order: &'a [usize], length: usize },
    /// Writes these over and over, for so long.
    WriteFor { order: &'a [usize], length: usize, millis: u64 },
    /// Closes and opens it, and reads this one.
    Open { number: usize },
}

#[derive(Deserialize)]
struct Hello {
    version: String,
}

#[derive(Deserialize)]
struct Answer {
    nanos: Vec<u64>,
}

impl DiskCache {
    /// # Errors
    /// There is no Python that has it.
    pub fn open(directory: &Path) -> Result<Self> {
        let Some(python) = std::env::var_os(PYTHON) else {
            let reason = std::env::var(REASON);
            bail!(reason.unwrap_or_else(|_| format!("{PYTHON} names no Python that has it")));
        };
        let mut process = Command::new(&python)
            .args(["-c", PROGRAM])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", python.display()))?;
        let requests = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().context("no answers from Python")?);
        let mut opened = Self { process, requests, answers };
        let Hello { version } = serde_json::from_str(&opened.line()?)?;
        if version != VERSION {
            bail!("this is diskcache {version} in place of {VERSION}");
        }
        Ok(opened)
    }

    /// The times of what was asked for, in nanoseconds.
    ///
    /// # Errors
    /// It failed, and said why on its standard error.
    pub fn ask(&mut self, request: Ask<'_>) -> Result<Vec<u64>> {
        self.send(request)?;
        self.answer()
    }

    /// Asks without waiting for the [answer](Self::answer).
    ///
    /// # Errors
    /// It is gone.
    pub fn send(&mut self, request: Ask<'_>) -> Result<()> {
        let requests = self.requests.as_mut().context("diskcache is gone")?;
        writeln!(requests, "{}", serde_json::to_string(&request)?)?;
        Ok(requests.flush()?)
    }

    /// # Errors
    /// It failed, and said why on its standard error.
    pub fn answer(&mut self) -> Result<Vec<u64>> {
        let Answer { nanos } = serde_json::from_str(&self.line()?)?;
        Ok(nanos)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("diskcache ended: see what Python says above");
        }
        Ok(line)
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        // It ends when nothing more can be asked.
        drop(self.requests.take());
        let _ = self.process.wait();
    }
}
