//! `terrace demo`: the figures are all there, and the files are not.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tempfile::tempdir;

use crate::{Run, names_in, run, terrace};

/// Few queries: the source takes its time for each that it has not answered before.
fn demo(tmp: &Path, args: &[&str]) -> Run {
    let output = terrace().args(["demo", "--queries", "60"]).args(args).env("TMPDIR", tmp).output();
    Run::of(output.unwrap())
}

fn has_phases(report: &Value) {
    let names: Vec<_> =
        report["phases"].as_array().unwrap().iter().map(|phase| &phase["name"]).collect();
    assert_eq!(names, ["cold", "again", "after a restart", "1,000 callers at once"]);
    let phase = |index: usize, name: &str| report["phases"][index][name].as_u64().unwrap();
    assert!(phase(0, "from_source") > 0, "cold is cold: {report}");
    assert_eq!(phase(1, "from_memory"), 60, "{report}");
    assert_eq!(phase(2, "from_source"), 0, "the disk tier survived: {report}");
    assert!(phase(2, "from_disk") > 0, "{report}");
    assert_eq!((phase(3, "from_source"), phase(3, "queries")), (1, 1000), "{report}");
    for index in 0..4 {
        let answered: u64 = ["from_memory", "from_disk", "from_source", "shared"]
            .iter()
            .map(|name| phase(index, name))
            .sum();
        assert_eq!(answered, phase(index, "queries"), "{report}");
    }
}

#[test]
fn json_in_a_pipe_has_every_figure_and_leaves_nothing_behind() {
    let tmp = tempdir().unwrap();
    let run = demo(tmp.path(), &["--json"]);
    let report = run.json();
    assert_eq!(run.stdout.lines().count(), 1);
    assert_eq!(run.stderr, "");
    assert!(!run.stdout.contains('\x1b'));
    assert_eq!(report["stampede"]["callers"], 1000);
    assert_eq!(report["stampede"]["loads"], 1);
    assert_eq!(report["rows"], 28_298);
    assert_eq!(report["directory"], Value::Null);
    for tier in ["memory", "disk", "source"] {
        assert_eq!(report[tier]["reads"], 60, "{report}");
        assert!(report[tier]["p50_us"].as_f64().unwrap() > 0.0, "{report}");
        assert!(report[tier]["p99_us"].is_number(), "{report}");
    }
    // How much faster depends on the machine and on what else it does; memory is, in any case.
    assert!(report["memory"]["times_faster"].as_f64().unwrap() > 10.0, "{report}");
    assert_eq!(report["kinds"].as_array().unwrap().len(), 3);
    let loads: u64 = (0..4).map(|n| report["phases"][n]["from_source"].as_u64().unwrap()).sum();
    assert_eq!(report["queries"], 3 * 60 + 1000);
    assert_eq!(report["loads_saved"], 3 * 60 + 1000 - loads);
    has_phases(&report);
    assert_eq!(names_in(tmp.path()), [""; 0]);
}

#[test]
fn text_in_a_pipe_is_plain_and_says_what_to_read_next() {
    let tmp = tempdir().unwrap();
    let run = demo(tmp.path(), &[]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    assert!(run.stdout.is_ascii() && !run.stdout.contains('\x1b'), "{}", run.stdout);
    assert!(run.stdout.contains("1,000 callers at once on one cold key -> 1 load in"));
    assert!(run.stdout.contains("\nWhat to read next\n  README.md"), "{}", run.stdout);
    assert_eq!(names_in(tmp.path()), [""; 0]);

    let run = demo(tmp.path(), &["--color", "always"]);
    assert!(run.stdout.contains("\x1b[32mmemory\x1b[0m"), "{}", run.stdout);
}

#[test]
fn a_kept_directory_is_used_again_and_cold_is_cold_each_time() {
    let (tmp, parent) = (tempdir().unwrap(), tempdir().unwrap());
    let directory = parent.path().join("kept");
    let keep = ["--json", "--keep", directory.to_str().unwrap()];
    for _ in 0..2 {
        let report = demo(tmp.path(), &keep).json();
        has_phases(&report);
        assert_eq!(report["directory"].as_str(), directory.to_str());
        assert_eq!(names_in(&directory), ["cache", "source.db"]);
    }
    assert_eq!(names_in(tmp.path()), [""; 0]);
    let stats = run(["stats", "--json", "--dir", directory.join("cache").to_str().unwrap()]);
    let stats = stats.json();
    assert!(stats["entries"].as_u64().unwrap() > 30, "{stats}");
    let spaces: Vec<_> = stats["spaces"].as_array().unwrap().iter().map(|s| &s["name"]).collect();
    assert_eq!(spaces, ["airport", "nearest", "report"]);
}

#[test]
fn a_directory_of_somebody_else_is_not_used() {
    let directory = tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    std::fs::write(directory.path().join("thesis.txt"), "42").unwrap();
    run(["demo", "--keep", path]).fails(3, &["thesis.txt", "is not the directory of a demo"]);
    assert_eq!(names_in(directory.path()), ["thesis.txt"]);

    let directory = tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    std::fs::write(directory.path().join("source.db"), "not a database").unwrap();
    run(["demo", "--keep", path]).fails(3, &["source.db"]);
    assert_eq!(std::fs::read(directory.path().join("source.db")).unwrap(), b"not a database");

    let file = directory.path().join("source.db");
    run(["demo", "--keep", file.to_str().unwrap()]).fails(3, &["could not create it"]);
}

#[test]
fn a_temporary_directory_that_is_not_there_is_named() {
    let tmp = tempdir().unwrap();
    let missing = tmp.path().join("missing");
    demo(&missing, &[]).fails(4, &["missing", "TMPDIR"]);
}

/// Starts a long demonstration and waits until its files are there.
#[cfg(unix)]
fn long_demo(tmp: &Path, args: &[&str], file: &str) -> Child {
    let mut child = terrace()
        .args(["demo", "--queries", "100000"])
        .args(args)
        .env("TMPDIR", tmp)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    for _ in 0..6000 {
        let has_begun = names_in(tmp).iter().any(|name| tmp.join(name).join(file).exists());
        if has_begun {
            return child;
        }
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        thread::sleep(Duration::from_millis(5));
    }
    panic!("it never began");
}

#[cfg(unix)]
fn interrupted(child: Child, signal: &str) -> Run {
    let killed = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    Run::of(child.wait_with_output().unwrap())
}

#[cfg(unix)]
#[test]
fn an_interruption_leaves_nothing_behind() {
    // While the source is filled, and while the stream runs.
    for (file, signal) in
        [("source.db.part", "-INT"), ("cache/terrace.db", "-INT"), ("cache/terrace.db", "-TERM")]
    {
        let tmp = tempdir().unwrap();
        let run = interrupted(long_demo(tmp.path(), &[], file), signal);
        run.fails(130, &["interrupted"]);
        assert_eq!(names_in(tmp.path()), [""; 0], "{file} {signal}");
    }
}

#[cfg(unix)]
#[test]
fn an_interruption_keeps_what_is_to_be_kept_and_it_can_be_used_again() {
    let parent = tempdir().unwrap();
    let directory = parent.path().join("kept");
    let keep = directory.to_str().unwrap();
    let child = long_demo(parent.path(), &["--keep", keep], "cache/terrace.db");
    run(["demo", "--keep", keep]).fails(3, &["another demonstration is using it"]);
    interrupted(child, "-INT").fails(130, &["interrupted"]);
    let tmp = tempdir().unwrap();
    has_phases(&demo(tmp.path(), &["--json", "--keep", keep]).json());
}
