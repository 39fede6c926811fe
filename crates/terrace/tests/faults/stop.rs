//! Starts and stops: nothing is left behind, and an end that was asked for under load is an
//! orderly one.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use terrace::store::StoreErrorKind;
use terrace::{Disk, LoadMany, Memory, Space, Terrace, Tier};
use terrace_test::{Calls, ChaosStore, Fault};
use tokio::runtime::Handle;

use crate::support::{Refused, count, ends, eventually};

const CHILD: &str = "TERRACE_TEST_STOP";

/// This test again, in a process of its own.
fn again(test: &str, order: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("stop::{test}"), "--nocapture"]).env(CHILD, order);
    command
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Bytes of memory that this process takes.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Threads that write to a disk.
fn disk_threads() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let name = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("comm"));
    // One that ends while it is looked at has no name any more.
    threads
        .filter_map(|thread| name(thread).ok())
        .filter(|name| name.trim() == "terrace-disk")
        .count()
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

#[test]
fn r11_starts_and_stops_leave_nothing_behind() {
    const NAME: &str = "r11_starts_and_stops_leave_nothing_behind";
    if std::env::var_os(CHILD).is_none() {
        // Tests beside this one open files, too.
        let output = again(NAME, "here").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<_> = said.lines().filter(|line| line.contains("stop:")).collect();
        assert!(output.status.success(), "{said:?}");
        return;
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(start_and_stop());
}

async fn start_and_stop() {
    let directory = tempfile::tempdir().unwrap();
    let rounds = count(50, 1_000);
    // What the first rounds take is kept for all: threads, arenas, files of the runtime.
    let settling = rounds / 5;
    let mut level = (0, 0);
    for round in 0..rounds {
        use_it(directory.path(), round).await;
        // One after the other: the allocator keeps what many that end slowly held at the same time.
        eventually("the thread of the disk ends", async || disk_threads() == 0).await;
        if round == settling {
            eventually("all tasks end", async || tasks() == 0).await;
            level = (open_files(), resident());
        }
    }
    eventually("all tasks end", async || tasks() == 0).await;
    let mut files = 0;
    eventually("all files are closed", async || {
        files = open_files();
        files <= level.0
    })
    .await;
    let grown = resident().saturating_sub(level.1);
    // Each of them had more than 1 MiB of values.
    assert!(grown < 16 << 20, "stop: {grown} bytes more after {rounds} rounds");
}

/// Builds a cache, has loads, refreshes and writes under way, and ends it.
async fn use_it(directory: &Path, round: usize) {
    let terrace = Terrace::builder()
        .memory(Memory::bytes(8 << 20))
        .tier("disk", Disk::at(directory).max_bytes(32 << 20))
        .build()
        .await
        .expect("stop: it starts");
    // Every read of what is there has it loaded anew.
    let space: Space<u64, Vec<u8>> = terrace.space("space").refresh_at(0.0).build().unwrap();
    let value = || vec![7_u8; 16 << 10];
    for key in 0..80 {
        let load = |_| async move { Ok::<_, Refused>(value()) };
        let _ = space.get_or_load(&key, load).await.expect("stop: a load");
    }
    let calls: Vec<_> = (0..12_u64)
        .map(|call| {
            let (space, terrace) = (space.clone(), terrace.clone());
            tokio::spawn(async move {
                let slow = |_| async move {
                    tokio::task::yield_now().await;
                    Ok::<_, Refused>(value())
                };
                match call % 6 {
                    // A refresh goes on when its caller has its answer.
                    0 => drop(space.get_or_load(&(call + 1), slow).await),
                    1 => drop(space.get_or_load(&(1_000 + call), slow).await),
                    2 => drop(space.insert(&call, value()).await),
                    3 => {
                        let slow = |load: LoadMany<u64>| async move {
                            tokio::task::yield_now().await;
                            Ok::<_, Refused>(
                                load.keys().iter().map(|n| (*n, value())).collect::<Vec<_>>(),
                            )
                        };
                        drop(space.get_many_or_load(&[call, 2_000 + call, 2_001], slow).await);
                    }
                    4 => drop(space.invalidate(&(call + 3)).await),
                    _ => drop(terrace.increment("count", 1).await),
                }
            })
        })
        .collect();
    for _ in 0..round % 7 {
        tokio::task::yield_now().await;
    }
    if round.is_multiple_of(2) {
        assert!(ends("stop: closing", terrace.close()).await, "stop: not everything was finished");
        assert!(space.get(&1).await.is_err(), "stop: it is closed");
    }
    drop((space, terrace));
    for call in calls {
        ends("stop: a call", call).await.expect("stop: a call");
    }
}

const FINISHED: i32 = 0;
const NOT_FINISHED: i32 = 3;

#[test]
fn r11_asked_to_end_under_load_it_drains_and_says_whether_it_did() {
    const NAME: &str = "r11_asked_to_end_under_load_it_drains_and_says_whether_it_did";
    if let Ok(order) = std::env::var(CHILD) {
        let (ending, directory) = order.split_once(' ').unwrap();
        std::process::exit(work_until_asked_to_end(directory, ending == "cut-off"));
    }
    for termination in 0..count(3, 50) {
        let directory = tempfile::tempdir().unwrap();
        // One that cannot finish, because its ledger is away, says so.
        let ending = if termination % 3 == 2 { "cut-off" } else { "good" };
        let mut child = again(NAME, &format!("{ending} {}", directory.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = HashSet::new();
        let mut note = |line: &str| {
            if let Some(key) = line.strip_prefix("stored ") {
                acknowledged.insert(key.parse::<u64>().unwrap());
            }
        };
        for _ in 0..200 + 37 * termination % 300 {
            note(&lines.next().expect("it works until it is asked to end").unwrap());
        }
        let kill = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
        assert!(kill.unwrap().success());
        let rest: Vec<_> = lines.map_while(Result::ok).collect();
        rest.iter().for_each(|line| note(line));
        let code = child.wait().unwrap().code();
        let expected = if ending == "good" { FINISHED } else { NOT_FINISHED };
        assert_eq!(code, Some(expected), "termination {termination}, {ending}");
        if ending == "good" {
            // The code is true: all that was begun is there, whether or not somebody was told.
            let loads = |what: &str| {
                let line = rest.iter().find_map(|line| line.strip_prefix(what));
                line.expect("it counts its loads").parse::<u64>().unwrap()
            };
            assert_eq!(loads("begun "), loads("ended "), "termination {termination}");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let missing = runtime.unwrap().block_on(missing(directory.path(), &acknowledged));
            assert!(missing.is_empty(), "termination {termination}: {missing:?}");
        }
    }
}

/// Which of these keys a new start does not find.
async fn missing(directory: &Path, keys: &HashSet<u64>) -> Vec<u64> {
    assert!(!keys.is_empty());
    let terrace = Terrace::builder().tier("disk", Disk::at(directory)).build().await.unwrap();
    let space: Space<u64, u64> = terrace.space("written").forever().build().unwrap();
    let mut missing = Vec::new();
    for key in keys {
        match space.get(key).await.unwrap() {
            Some(found) => assert_eq!(*found, key * key),
            None => missing.push(*key),
        }
    }
    assert!(terrace.close().await);
    missing
}

/// Loads and writes until the signal comes; then ends the cache, and says with a code whether
/// everything was finished by the deadline.
fn work_until_asked_to_end(directory: &str, is_cut_off: bool) -> i32 {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let asked = tokio::signal::unix::SignalKind::terminate();
        let mut asked = tokio::signal::unix::signal(asked).unwrap();
        let line = Arc::new(ChaosStore::over(Arc::new(Disk::at(directory).open().unwrap())));
        let tier = Tier::shared(Arc::clone(&line) as _);
        let terrace = Terrace::builder().memory(Memory::bytes(8 << 20)).tier("disk", tier);
        let terrace = terrace.build().await.unwrap();
        let written: Space<u64, u64> = terrace.space("written").forever().build().unwrap();
        let loaded: Space<u64, u64> = terrace.space("loaded").forever().build().unwrap();
        let (begun, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        for worker in 0..4_u64 {
            let written = written.clone();
            tokio::spawn(async move {
                for key in (worker..).step_by(4) {
                    match written.insert(&key, key * key).await {
                        Ok(settled) if settled.is_settled() => println!("stored {key}"),
                        Ok(_) => {}
                        Err(_) => return,
                    }
                }
            });
            let (loaded, begun, ended) = (loaded.clone(), Arc::clone(&begun), Arc::clone(&ended));
            tokio::spawn(async move {
                for key in (worker..).step_by(4) {
                    let (begun, ended) = (Arc::clone(&begun), Arc::clone(&ended));
                    let load = |_| async move {
                        begun.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        ended.fetch_add(1, Ordering::SeqCst);
                        Ok::<_, Refused>(key)
                    };
                    if loaded.get_or_load(&key, load).await.is_err() {
                        return;
                    }
                }
            });
        }
        asked.recv().await;
        if is_cut_off {
            line.inject(Calls::of_authority(), Fault::Fail(StoreErrorKind::Unavailable));
            let settled = terrace.invalidate("key").await.unwrap();
            assert!(!settled.is_settled());
        }
        let deadline = Duration::from_secs(20);
        let is_finished = tokio::time::timeout(deadline, terrace.close()).await;
        // Before the loads are counted: one more would show.
        tokio::task::yield_now().await;
        println!("ended {}", ended.load(Ordering::SeqCst));
        println!("begun {}", begun.load(Ordering::SeqCst));
        match is_finished {
            Ok(true) => FINISHED,
            Ok(false) => NOT_FINISHED,
            Err(_) => 4,
        }
    })
}
