//! Directories, keys and values that cannot be used: a clear error or a counted miss, and nothing
//! lost.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;

use rusqlite::Connection;
use serde_json::Value;
use tempfile::tempdir;

use crate::{Run, names_in, run_in, run_with_input, terrace};

/// Every command that only looks.
const LOOKING: [&[&str]; 3] = [&["get", "key"], &["inspect"], &["stats"]];

fn database(directory: &Path) -> Connection {
    Connection::open(directory.join("terrace.db")).unwrap()
}

#[test]
fn looking_makes_no_cache() {
    let parent = tempdir().unwrap();
    let missing = parent.path().join("missing");
    for command in LOOKING {
        run_in(&missing, command).fails(3, &["there is no cache in", "missing", "does not exist"]);
        assert!(!missing.exists());
        run_in(parent.path(), command).fails(3, &["it holds no terrace.db"]);
        assert_eq!(names_in(parent.path()), [""; 0]);
        assert_eq!(run_in(Path::new(""), command).code, Some(2));
    }
    let json = run_in(&missing, &["get", "key", "--json"]);
    let error: Value = serde_json::from_str(&json.stderr).unwrap();
    assert_eq!(json.code, Some(3));
    assert!(error["error"].as_str().unwrap().contains("missing"), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("--dir"), "{error}");

    assert_eq!(run_in(&missing, &["set", "key", "1"]).code, Some(0));
    assert_eq!(run_in(&missing, &["get", "key"]).stdout, "1\n");
}

#[test]
fn a_file_in_the_way_stays_as_it_is() {
    let parent = tempdir().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "precious").unwrap();
    for command in LOOKING {
        run_in(&file, command).fails(3, &["it is not a directory"]);
        run_in(&file.join("below"), command).fails(3, &["a part of the path is a file"]);
    }
    run_in(&file, &["set", "key", "1"]).fails(3, &["file", "choose another directory"]);
    assert_eq!(fs::read(&file).unwrap(), b"precious");

    let directory = tempdir().unwrap();
    fs::create_dir(directory.path().join("terrace.db")).unwrap();
    for command in [LOOKING[0], LOOKING[1], LOOKING[2], &["set", "key", "1"]] {
        run_in(directory.path(), command).fails(3, &["is not a plain file"]);
    }
}

#[test]
fn the_database_of_another_program_is_not_touched() {
    let directory = tempdir().unwrap();
    database(directory.path()).execute_batch("CREATE TABLE thesis (text)").unwrap();
    let before = fs::read(directory.path().join("terrace.db")).unwrap();
    for command in [LOOKING[0], LOOKING[1], LOOKING[2], &["set", "key", "1"]] {
        run_in(directory.path(), command).fails(3, &["terrace.db", "another program"]);
    }
    assert_eq!(fs::read(directory.path().join("terrace.db")).unwrap(), before);
}

#[test]
fn the_database_of_a_newer_version_is_not_touched() {
    let directory = tempdir().unwrap();
    assert_eq!(run_in(directory.path(), &["set", "key", "1"]).code, Some(0));
    database(directory.path()).pragma_update(None, "user_version", 99).unwrap();
    for command in [LOOKING[0], LOOKING[1], LOOKING[2], &["set", "key", "1"]] {
        run_in(directory.path(), command).fails(3, &["format 99", "upgrade"]);
    }
}

#[test]
fn garbage_is_set_aside_and_said() {
    let directory = tempdir().unwrap();
    let garbage = "garbage ".repeat(1000);
    fs::write(directory.path().join("terrace.db"), &garbage).unwrap();
    let set = run_in(directory.path(), &["set", "key", "1"]);
    assert_eq!(set.code, Some(0), "{set:?}");
    assert!(set.stderr.starts_with("warning: ") && set.stderr.contains("set aside"), "{set:?}");
    let aside = directory.path().join("terrace.db.damaged-1");
    assert_eq!(fs::read_to_string(aside).unwrap(), garbage);
    assert_eq!(run_in(directory.path(), &["get", "key"]).stdout, "1\n");
    let stats = run_in(directory.path(), &["stats", "--json"]).json();
    let mut files = stats["files"].as_array().unwrap().iter();
    assert!(files.any(|file| file["name"] == "terrace.db.damaged-1"), "{stats}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_place_that_cannot_be_written_is_named() {
    for place in ["/proc/terrace", "/dev/null/terrace", "/proc/sys"] {
        let set = run_in(Path::new(place), &["set", "key", "1"]);
        set.fails(3, &[place, "choose another directory"]);
    }
    for command in LOOKING {
        run_in(Path::new("/proc/terrace"), command).fails(3, &["/proc/terrace"]);
    }
}

#[test]
fn a_database_that_another_process_holds_is_an_error_after_a_while() {
    let directory = tempdir().unwrap();
    assert_eq!(run_in(directory.path(), &["set", "key", "1"]).code, Some(0));
    let holder = database(directory.path());
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    run_in(directory.path(), &["set", "key", "2"]).fails(3, &["terrace.db", "another process"]);
    holder.execute_batch("ROLLBACK").unwrap();
    assert_eq!(run_in(directory.path(), &["get", "key"]).stdout, "1\n");
}

#[test]
fn keys_that_are_too_long_are_refused() {
    let directory = tempdir().unwrap();
    let key = |bytes: usize| "k".repeat(bytes);
    assert_eq!(run_in(directory.path(), &["set", &key(64 << 10), "1"]).code, Some(0));
    assert_eq!(run_in(directory.path(), &["get", &key(64 << 10)]).stdout, "1\n");
    // The system does not pass on an argument of 128 KiB or more.
    for command in [&["set", &*key(100_000), "1"][..], &["get", &*key(100_000)]] {
        let run = run_in(directory.path(), command);
        run.fails(2, &["the key has 100000 bytes, and 65536 are allowed", "hash"]);
        assert!(run.stderr.len() < 1000, "the key itself is not repeated");
    }
    assert!(terrace().args(["get", &key(1 << 20)]).output().is_err(), "nobody can ask for it");
}

#[test]
fn control_characters_never_reach_people() {
    let directory = tempdir().unwrap();
    let (key, value) = ("a\x1b[31m\r\nb\u{9b}\u{7f}\u{202e}", "\"\\u001b]0;title\\u0007\u{9b}\"");
    let set = run_in(directory.path(), &["set", key, value]);
    let inspect = run_in(directory.path(), &["inspect"]);
    let get = run_in(directory.path(), &["get", key]);
    let missing = run_in(directory.path(), &["get", &format!("{key}!")]);
    missing.fails(1, &[r"a\u{1b}[31m\r\nb\u{9b}\u{7f}\u{202e}!"]);
    for text in [&set.stdout, &inspect.stdout, &get.stdout, &missing.stderr] {
        let is_unsafe = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!text.contains(is_unsafe), "{text:?}");
    }
    assert!(
        inspect.stdout.ends_with("  a\\u{1b}[31m\\r\\nb\\u{9b}\\u{7f}\\u{202e}\n"),
        "{inspect:?}"
    );
    assert_eq!(get.stdout, "\"\\u001b]0;title\\u0007\\u009b\"\n");
    // In JSON they mean what they are.
    let listed = run_in(directory.path(), &["inspect", "--json"]).json_lines();
    assert_eq!(listed[0]["key"], key);
}

#[test]
fn values_that_cannot_be_stored_leave_what_was_there() {
    let directory = tempdir().unwrap();
    let dir = directory.path();
    assert_eq!(run_in(dir, &["set", "key", "1"]).code, Some(0));
    run_in(dir, &["set", "key", "{name: Ada}"]).fails(2, &["is not JSON", "--text"]);
    run_in(dir, &["set", "key", "Ada"]).fails(2, &["is not JSON", "'\"text\"'"]);
    run_with_input(dir, &["set", "key", "-"], b"").fails(2, &["is not JSON"]);
    run_with_input(dir, &["set", "key", "-"], b"\"\xff\"").fails(2, &["is not text"]);
    let nested = "[".repeat(100_000);
    run_with_input(dir, &["set", "key", "-"], nested.as_bytes()).fails(2, &["recursion"]);
    let large = vec![b'x'; (64 << 20) + 1];
    run_with_input(dir, &["set", "key", "-", "--text"], &large).fails(2, &["67108864 bytes"]);
    // As text it is small enough, but not as it is encoded.
    run_with_input(dir, &["set", "key", "-", "--text"], &large[1..])
        .fails(2, &["more than a cache"]);
    run_in(dir, &["set", "key", "2", "--tag", ""]).fails(2, &["tag"]);
    for ttl in ["0s", "soon", "-1s", ""] {
        let run = run_in(dir, &["set", "key", "2", &format!("--ttl={ttl}")]);
        assert_eq!(run.code, Some(2), "{ttl} {run:?}");
    }
    assert_eq!(run_in(dir, &["get", "key"]).stdout, "1\n");
}

#[test]
fn a_damaged_frame_is_a_miss_and_is_shown_as_damaged() {
    let directory = tempdir().unwrap();
    let dir = directory.path();
    for key in ["whole", "damaged", "foreign", "other"] {
        assert_eq!(run_in(dir, &["set", key, "\"value\""]).code, Some(0));
    }
    let connection = database(dir);
    for (key, frame) in [
        ("damaged", "CAST(substr(frame, 1, 50) || x'ff' || substr(frame, 52) AS BLOB)"),
        ("foreign", "x'00'"),
        ("other", "(SELECT frame FROM entry WHERE key LIKE '%:whole')"),
    ] {
        let sql = format!("UPDATE entry SET frame = {frame} WHERE key LIKE '%:{key}'");
        assert_eq!(connection.execute(&sql, []).unwrap(), 1);
    }
    drop(connection);
    assert_eq!(run_in(dir, &["get", "whole"]).stdout, "\"value\"\n");
    for key in ["damaged", "foreign"] {
        run_in(dir, &["get", key]).fails(1, &[key, "cannot be read"]);
    }
    run_in(dir, &["get", "other"]).fails(1, &["other"]);

    let listed = run_in(dir, &["inspect", "--json"]).json_lines();
    let state = |key: &str| {
        let entry = listed.iter().find(|entry| entry["key"] == key).unwrap();
        (entry["state"].as_str().unwrap(), entry["damage"].as_str())
    };
    assert_eq!(state("whole"), ("fresh", None));
    assert_eq!(state("damaged"), ("damaged", Some("a damaged frame")));
    assert_eq!(state("foreign"), ("damaged", Some("not a frame")));
    assert_eq!(state("other"), ("damaged", Some("the frame of another key")));
    let text = run_in(dir, &["inspect", "--prefix", "foreign"]).stdout;
    assert!(text.ends_with("  foreign  (not a frame)\n"), "{text}");
    assert_eq!(run_in(dir, &["stats", "--json"]).json()["damaged"], 3);
    // Setting it again repairs it.
    assert_eq!(run_in(dir, &["set", "damaged", "2"]).code, Some(0));
    assert_eq!(run_in(dir, &["get", "damaged"]).stdout, "2\n");
}

#[test]
fn what_was_invalidated_is_not_shown_as_fresh() {
    let directory = tempdir().unwrap();
    let dir = directory.path();
    assert_eq!(run_in(dir, &["set", "key", "1", "--tag", "rates"]).code, Some(0));
    let connection = database(dir);
    // What another process leaves behind that invalidates the tag.
    connection
        .execute_batch(
            "INSERT INTO ledger SELECT max(number) + 1, 4, ':rates' FROM ledger;
             INSERT INTO mark SELECT 4, ':rates', max(number) FROM ledger",
        )
        .unwrap();
    drop(connection);
    run_in(dir, &["get", "key"]).fails(1, &["there is nothing under the key key"]);
    assert_eq!(run_in(dir, &["inspect", "--json"]).json_lines()[0]["state"], "invalidated");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let directory = tempdir().unwrap();
    let large = format!("\"{}\"", "x".repeat(4 << 20));
    let set = run_with_input(directory.path(), &["set", "key", "-"], large.as_bytes());
    assert_eq!(set.code, Some(0), "{set:?}");
    let mut child = terrace()
        .args(["get", "key", "--dir"])
        .arg(directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10]).unwrap();
    drop(stdout);
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_an_error() {
    let directory = tempdir().unwrap();
    assert_eq!(run_in(directory.path(), &["set", "key", "1"]).code, Some(0));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = terrace()
        .args(["get", "key", "--dir"])
        .arg(directory.path())
        .stdout(full)
        .output()
        .unwrap();
    Run::of(output).fails(4, &["could not write to the standard output"]);
}
