//! Tests of the real program: what it prints, how it ends, and what it leaves behind.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "in a test each of them is a failure that says where"
)]

mod acl;
mod bad_input;
mod commands;
mod demo;
mod health;
mod invalidate;

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The program, with nothing in its environment that could change what it does.
fn terrace() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_terrace"));
    command
        .env_remove("TERRACE_DIR")
        .env_remove("TERRACE_REDIS")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null());
    command
}

/// What a run came to.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The output as one JSON value.
    fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The output as one JSON value a line.
    fn json_lines(&self) -> Vec<Value> {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Asserts how it ended, and that there is an error with these words and a hint.
    #[track_caller]
    fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stdout.is_empty(), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        let lines: Vec<_> = self.stderr.lines().collect();
        assert!(lines.iter().any(|line| line.starts_with("error: ")), "{self:?}");
        assert!(lines.iter().any(|line| line.starts_with("hint: ")), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing in {self:?}");
        }
    }
}

/// Runs the program with these arguments.
fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    Run::of(terrace().args(args).output().unwrap())
}

/// Runs it on a cache directory.
fn run_in(directory: &Path, args: &[&str]) -> Run {
    Run::of(terrace().args(args).arg("--dir").arg(directory).output().unwrap())
}

/// The same with something on its standard input.
fn run_with_input(directory: &Path, args: &[&str], input: &[u8]) -> Run {
    let mut child = terrace()
        .args(args)
        .arg("--dir")
        .arg(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may stop reading before the end.
    let _ = child.stdin.take().unwrap().write_all(input);
    Run::of(child.wait_with_output().unwrap())
}

/// Names in a directory, in their order.
fn names_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
