//! Allocations are counted by a program of its own, `terrace-bench-counting`: the same suites
//! under an allocator that counts, which would slow down what is timed.

use std::io::{self, Write as _};
use std::ops::Sub;
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail, ensure};

use crate::report::Record;
use crate::suites::{footprint, hit_path, tags};

/// What the allocator was asked for since the program began, by all threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// New blocks, and blocks that changed their size.
    pub allocations: i64,
    /// Bytes in blocks that have not been given back, as they were asked for.
    pub live_bytes: i64,
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            allocations: self.allocations - before.allocations,
            live_bytes: self.live_bytes - before.live_bytes,
        }
    }
}

static COUNTER: OnceLock<fn() -> Counts> = OnceLock::new();

/// What was counted so far; nothing in a program that does not count.
pub fn counts() -> Counts {
    COUNTER.get().map_or_else(Counts::default, |counter| counter())
}

/// The whole of the counting program: its arguments are a suite, a case, and whether to be quick.
pub fn answer(counter: fn() -> Counts) -> ExitCode {
    COUNTER.get_or_init(|| counter);
    match try_answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_answer() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [suite, case, quick] = arguments.as_slice() else {
        bail!("this is a part of terrace-bench, which runs it by itself");
    };
    let records = match suite.as_str() {
        footprint::SUITE => footprint::count(case, quick == "true")?,
        hit_path::SUITE => hit_path::count(case)?,
        tags::SUITE => tags::count(case, quick == "true")?,
        _ => bail!("nothing is counted in the suite {suite:?}"),
    };
    let mut out = io::stdout().lock();
    for record in records {
        writeln!(out, "{}", serde_json::to_string(&record)?)?;
    }
    Ok(())
}

/// Has the counting program, which is beside this one, count a case.
///
/// # Errors
/// It is not there, or failed.
pub fn ask(suite: &str, case: &str, quick: bool) -> Result<Vec<Record>> {
    let program = std::env::current_exe()?.with_file_name("terrace-bench-counting");
    let output = Command::new(&program)
        .args([suite, case, if quick { "true" } else { "false" }])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}: build all of bench/", program.display()))?;
    ensure!(output.status.success(), "terrace-bench-counting failed: {}", output.status);
    let lines = String::from_utf8(output.stdout)?;
    lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}
