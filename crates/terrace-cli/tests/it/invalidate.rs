//! `invalidate`: what is named is dead for whoever shares the cache, and nothing else.

use tempfile::tempdir;
use terrace::{Disk, Memory, Terrace};

use crate::{run, run_in};

#[test]
fn what_is_named_is_gone_and_nothing_else() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let set = |key: &str| {
        assert_eq!(run_in(dir, &["set", key, "1", "--tag", "odd [tag]*"]).code, Some(0));
    };
    let is_there = |key: &str| run_in(dir, &["get", key]).code == Some(0);
    for (what, name, gone) in [
        ("key", "user:1", [true, false, false]),
        ("prefix", "user:", [true, true, false]),
        ("tag", "odd [tag]*", [true, true, true]),
        ("space", "", [true, true, true]),
        ("space", "another", [false, false, false]),
        ("tag", "odd [tag]", [false, false, false]),
    ] {
        let keys = ["user:1", "user:2", "other"];
        keys.iter().for_each(|key| set(key));
        let done = run_in(dir, &["invalidate", what, name]);
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{what} {name}");
        assert_eq!(keys.map(is_there), gone.map(|gone| !gone), "{what} {name}");
    }
    set("user:1");
    set("user:2");
    let many = run_in(dir, &["invalidate", "key", "user:1", "user:2", "--json"]).json();
    assert_eq!(many["names"][1], "user:2");
    assert!(!is_there("user:1") && !is_there("user:2"));
}

/// Another process has the cache open, with a memory of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_runs_hears_of_it() {
    let dir = tempdir().unwrap();
    let terrace = Terrace::builder()
        .memory(Memory::bytes(1 << 20))
        .tier("disk", Disk::at(dir.path()))
        .build()
        .await
        .unwrap();
    let emissions = terrace.space::<(u16, String), u64>("emission").tracked().build().unwrap();
    let totals = terrace.space::<str, u64>("total").build().unwrap();
    let key = (2023, "TSLA".to_owned());
    emissions.insert(&key, 1).await.unwrap();
    let total = totals.get_or_load("TSLA", |_| {
        let (emissions, key) = (emissions.clone(), key.clone());
        async move { Ok::<u64, std::io::Error>(*emissions.get(&key).await.unwrap().unwrap()) }
    });
    total.await.unwrap();
    let path = dir.path().to_owned();
    let done = tokio::task::spawn_blocking(move || {
        run_in(&path, &["invalidate", "key", "2023:TSLA", "--space", "emission"])
    });
    assert_eq!(done.await.unwrap().code, Some(0));
    // It looks at the ledger many times a second.
    for _ in 0..1_000 {
        let is_gone = emissions.get(&key).await.unwrap().is_none();
        if is_gone && totals.get("TSLA").await.unwrap().is_none() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("what another process invalidated is still there");
}

#[test]
fn what_cannot_be_done_says_why() {
    let dir = tempdir().unwrap();
    run_in(dir.path(), &["invalidate", "key", "a"]).fails(3, &["no cache"]);
    run(["invalidate", "key", "a"]).fails(2, &["--dir", "--url"]);
    assert_eq!(run_in(dir.path(), &["set", "a", "1"]).code, Some(0));
    run_in(dir.path(), &["invalidate", "tag", ""]).fails(2, &["tag"]);
    let long = "x".repeat(70_000);
    run_in(dir.path(), &["invalidate", "key", &long]).fails(2, &["70000"]);
    assert_eq!(run_in(dir.path(), &["invalidate", "nothing", "a"]).code, Some(2));
}
