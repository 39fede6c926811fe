//! `set`, `get`, `inspect` and `stats`: what goes in comes out.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use tempfile::tempdir;

use crate::{Run, run, run_in, run_with_input, terrace};

#[test]
fn what_is_set_can_be_got_in_every_form() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    for value in [r#"{"age":36,"name":"Ada"}"#, "null", "true", "-1.5", "[1,[2,{}]]", r#""a\nb""#] {
        let set = run_in(dir, &["set", "key", value]);
        assert_eq!((set.code, set.stderr.as_str()), (Some(0), ""), "{value}");
        let get = run_in(dir, &["get", "key"]);
        assert_eq!((get.code, get.stdout), (Some(0), format!("{value}\n")));
    }
    let set = run_with_input(dir, &["set", "piped", "-", "--json"], b" {\"b\": 1} \n").json();
    assert_eq!((&set["key"], &set["stored"]), (&"piped".into(), &true.into()));
    let get = run_in(dir, &["get", "piped", "--json"]).json();
    assert_eq!((&get["key"], &get["value"]["b"]), (&"piped".into(), &1.into()));
    assert!(get["created"].as_str().unwrap().ends_with('Z'));
    assert_eq!(get["expires"], set["expires"]);
}

#[test]
fn text_is_taken_and_given_as_it_is() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    assert_eq!(run_in(dir, &["set", "greeting", "--text", "Guten \"Tag\""]).code, Some(0));
    assert_eq!(run_in(dir, &["get", "greeting"]).stdout, "\"Guten \\\"Tag\\\"\"\n");
    assert_eq!(run_in(dir, &["get", "greeting", "--text"]).stdout, "Guten \"Tag\"\n");
    let lines = b"one\ntwo";
    assert_eq!(run_with_input(dir, &["set", "lines", "--text", "-"], lines).code, Some(0));
    assert_eq!(run_in(dir, &["get", "lines", "--text"]).stdout, "one\ntwo\n");
}

#[test]
fn keys_can_be_anything() {
    let dir = tempdir().unwrap();
    let long = "k".repeat(10_000);
    for key in ["", "a b:c%d*", "--", "Zürich 日本", "a\x1b[31m\n", &long] {
        let set = Run::of(
            terrace()
                .args(["set", "--dir"])
                .arg(dir.path())
                .args(["--", key, "1"])
                .output()
                .unwrap(),
        );
        assert_eq!(set.code, Some(0), "{set:?}");
        let get = Run::of(
            terrace().args(["get", "--dir"]).arg(dir.path()).args(["--", key]).output().unwrap(),
        );
        assert_eq!(get.stdout, "1\n", "{key:?} {get:?}");
    }
    let listed = run_in(dir.path(), &["inspect", "--json"]).json_lines();
    let mut keys: Vec<_> = listed.iter().map(|entry| entry["key"].as_str().unwrap()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["", "--", "Zürich 日本", "a\x1b[31m\n", "a b:c%d*", &long]);
}

#[test]
fn a_value_lives_as_long_as_was_said() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    assert_eq!(run_in(dir, &["set", "short", "1", "--ttl", "50ms"]).code, Some(0));
    assert_eq!(run_in(dir, &["set", "long", "1", "--ttl", "1h 30m"]).code, Some(0));
    assert_eq!(run_in(dir, &["set", "ever", "1", "--ttl", "forever"]).code, Some(0));
    assert_eq!(run_in(dir, &["get", "ever", "--json"]).json()["expires"], serde_json::Value::Null);
    for _ in 0..2000 {
        let gone = run_in(dir, &["get", "short"]);
        if gone.code == Some(1) {
            gone.fails(1, &["there is nothing under the key short"]);
            assert_eq!(run_in(dir, &["get", "long"]).stdout, "1\n");
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("it never expired");
}

#[test]
fn inspect_lists_and_selects() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    for key in ["user:1", "user:2", "order:1"] {
        let set = run_in(dir, &["set", key, "\"value\"", "--tag", "a:b", "--ttl", "1h"]);
        assert_eq!(set.code, Some(0), "{set:?}");
    }
    let all = run_in(dir, &["inspect", "--json"]).json_lines();
    assert_eq!(all.len(), 3);
    for entry in &all {
        assert_eq!((&entry["state"], &entry["space"]), (&"fresh".into(), &"".into()), "{entry}");
        assert_eq!((&entry["size"], &entry["tags"][0]), (&6.into(), &"a:b".into()), "{entry}");
        assert!(entry["stored_bytes"].as_u64().unwrap() > 100, "{entry}");
        assert!(entry["created"].is_string() && entry["expires"].is_string(), "{entry}");
        assert_eq!(entry["version"], serde_json::Value::Null);
    }
    let count =
        |args: &[&str]| run_in(dir, &[&["inspect", "--json"], args].concat()).json_lines().len();
    assert_eq!(count(&["--prefix", "user:"]), 2);
    assert_eq!(count(&["--limit", "1"]), 1);
    assert_eq!(count(&["--limit", "0"]), 0);
    assert_eq!(count(&["--space", ""]), 3);
    assert_eq!(count(&["--space", "airport"]), 0);

    let text = run_in(dir, &["inspect", "--prefix", "order"]).stdout;
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("state ") && lines[0].ends_with(" key"), "{text}");
    assert!(lines[1].starts_with("fresh ") && lines[1].ends_with(" order:1"), "{text}");
    assert_eq!(lines.len(), 2);
}

#[test]
fn stats_sum_up() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    for key in ["one", "two", "one"] {
        assert_eq!(run_in(dir, &["set", key, "1"]).code, Some(0));
    }
    let stats = run_in(dir, &["stats", "--json"]).json();
    assert_eq!((&stats["entries"], &stats["damaged"]), (&2.into(), &0.into()), "{stats}");
    assert_eq!((&stats["states"]["fresh"], &stats["states"]["damaged"]), (&2.into(), &0.into()));
    assert_eq!(stats["ledger"]["position"], 3);
    assert_eq!(stats["ledger"]["incarnation"].as_str().unwrap().len(), 16);
    assert_eq!(
        (&stats["spaces"][0]["name"], &stats["spaces"][0]["entries"]),
        (&"".into(), &2.into())
    );
    assert_eq!(stats["files"][0]["name"], "terrace.db");
    assert!(stats["files"][0]["bytes"].as_u64().unwrap() > 0);
    let text = run_in(dir, &["stats"]).stdout;
    assert!(text.contains("Entries    2\n") && text.contains("(dynamic keys)"), "{text}");
    assert!(text.is_ascii() && !text.contains('\x1b'), "{text}");
}

#[test]
fn the_directory_can_come_from_the_environment() {
    let dir = tempdir().unwrap();
    let with = |args: &[&str]| {
        Run::of(terrace().args(args).env("TERRACE_DIR", dir.path()).output().unwrap())
    };
    assert_eq!(with(&["set", "key", "7"]).code, Some(0));
    assert_eq!(with(&["get", "key"]).stdout, "7\n");
    let without = run(["get", "key"]);
    assert_eq!(without.code, Some(2));
    assert!(without.stderr.contains("--dir"), "{without:?}");
}

#[test]
fn processes_that_write_at_once_lose_nothing() {
    let dir = tempdir().unwrap();
    let keys: Vec<_> = (0..8).map(|n| format!("key:{n}")).collect();
    // None of them finds a database: all of them make one.
    let children: Vec<_> = keys
        .iter()
        .map(|key| {
            terrace()
                .args(["set", key, "\"value\"", "--dir"])
                .arg(dir.path())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let run = Run::of(child.wait_with_output().unwrap());
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:?}");
    }
    for key in &keys {
        assert_eq!(run_in(dir.path(), &["get", key]).stdout, "\"value\"\n");
    }
    assert_eq!(run_in(dir.path(), &["stats", "--json"]).json()["entries"], 8);
}

#[test]
fn help_has_examples_and_exit_codes_and_wrong_usage_is_2() {
    for args in [&["--help"][..], &["demo", "--help"], &["get", "--help"], &["set", "-h"]] {
        let help = run(args);
        assert_eq!(help.code, Some(0));
        assert!(help.stdout.contains("Examples:\n  terrace "), "{help:?}");
        assert!(help.stdout.contains("130  interrupted"), "{help:?}");
    }
    assert_eq!(run(["--version"]).stdout, concat!("terrace ", env!("CARGO_PKG_VERSION"), "\n"));
    for args in [&[][..], &["nonsense"], &["demo", "--queries", "0"], &["demo", "--queries", "x"]] {
        let wrong = run(args);
        assert_eq!((wrong.code, wrong.stdout.as_str()), (Some(2), ""), "{args:?} {wrong:?}");
    }
    let json = run(["demo", "--json", "--queries", "0"]);
    let error: serde_json::Value = serde_json::from_str(&json.stderr).unwrap();
    assert!(error["error"].as_str().unwrap().contains("--queries"), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("--help"), "{error}");
}
