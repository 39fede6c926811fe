//! The n-th operation on the journal's files fails.

use std::path::Path;
use std::process::Command;

use super::{Acknowledged, Order, child, has_all, is_in_order, note, read, recover, write_behind};
use crate::support::is_full;

/// For every n until nothing is left to fail: the process neither panics nor acknowledges what is
/// not there, and after a sync that failed it acknowledges nothing any more.
#[test]
fn d6_the_nth_operation_on_the_journal_fails() {
    if let Some(order) = Order::given() {
        return write_behind(&order);
    }
    let mut kinds = vec![("pwrite64,ftruncate", "EIO"), ("fsync,fdatasync", "EIO")];
    if is_full() {
        kinds.extend([("pwrite64,ftruncate", "ENOSPC"), ("fsync,fdatasync", "ENOSPC")]);
        kinds.extend([("pread64", "EIO"), ("openat", "EMFILE"), ("openat", "EACCES")]);
    }
    for (calls, error) in kinds {
        let mut nth = 1;
        while fails_at(calls, error, nth) {
            nth += 1;
        }
        assert!(nth > 3, "{calls}: nothing was made to fail");
    }
}

/// `false` if there was no n-th operation.
fn fails_at(calls: &str, error: &str, nth: usize) -> bool {
    let what = format!("{calls} fails with {error} at {nth}");
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let trace = root.join("trace");
    let order =
        Order { first: 0, writes: 6, tasks: 1, longest: 20_000, directory: root.to_owned() };
    let mut program = Command::new("strace");
    program.args(["-f", "-qq", "-e", "signal=none", "-o"]).arg(&trace);
    let journal = root.join("journal");
    for path in [journal.clone(), journal.join("journal.db"), journal.join("journal.db-wal")] {
        program.arg("-P").arg(path);
    }
    program.args(["-e", &format!("inject={calls}:error={error}:when={nth}")]);
    program.arg(std::env::current_exe().unwrap());
    let name = "acknowledged::failing::d6_the_nth_operation_on_the_journal_fails";
    child(&mut program, name, &order);
    let output = program.output().expect("strace is installed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{what}: {said}\n{complaint}");
    let trace = std::fs::read_to_string(&trace).unwrap();
    let was_injected = trace.contains("(INJECTED)");

    let (mut acknowledged, mut failed) = (Acknowledged::new(), false);
    for line in said.lines() {
        failed |= line.starts_with("failed");
        let is_acknowledged = note(&mut acknowledged, line, &["journal", "synced"]);
        let is_after_a_failed_sync = failed && calls.contains("sync");
        assert!(!(is_acknowledged && is_after_a_failed_sync), "{what}: {said}");
    }
    if !was_injected {
        assert!(!failed && said.contains("done"), "{what}: {said}");
    }
    is_whole(root, &acknowledged, &what);
    was_injected
}

/// A new start finds everything that was acknowledged.
#[track_caller]
fn is_whole(root: &Path, acknowledged: &Acknowledged, what: &str) {
    recover(root);
    let log = std::fs::read_to_string(root.join("source.log")).unwrap_or_default();
    let log = read(&log);
    is_in_order(&log, what);
    has_all(&log, acknowledged, what);
}
