//! A directory that somebody wants alone, and one on a file system where no database may be.

use std::path::Path;
use std::time::Instant;

use terrace::store::Store as _;
use terrace::{BuildError, Disk, DiskStore, Journal, Memory, Terrace};
use terrace_test::rig;

use crate::support::{eventually, limit, ms};

/// What a node does with its directory.
const ALONE: &str = "alone";
const SHARED: &str = "shared";

fn disk(directory: &Path, how: &str) -> Disk {
    let disk = Disk::at(directory);
    if how == ALONE { disk.exclusive() } else { disk }
}

fn open(directory: &Path, how: &str) -> Result<DiskStore, BuildError> {
    disk(directory, how).open()
}

/// Opening fails soon, and says who wants the directory alone.
#[track_caller]
fn is_refused(directory: &Path, how: &str) {
    let began = Instant::now();
    match open(directory, how) {
        Err(error @ BuildError::InUse { wants_it_alone, .. }) => {
            assert_eq!(wants_it_alone, how == ALONE, "{error}");
            let said = error.to_string();
            let path = directory.canonicalize().unwrap();
            assert!(
                said.contains(path.to_str().unwrap()) && said.contains("exclusively"),
                "{said}"
            );
        }
        other => panic!("{other:?}"),
    }
    // A second, and what opening takes.
    let took = began.elapsed();
    assert!(took < limit(ms(1_200)), "{took:?}");
}

#[tokio::test]
async fn d8_a_directory_is_refused_that_somebody_has_alone() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let first = open(directory, ALONE).unwrap();
    is_refused(directory, SHARED);
    is_refused(directory, ALONE);
    // Whoever was refused has let go of nothing that the first one counts on.
    is_refused(directory, SHARED);
    first.close().await.unwrap();

    let [one, other] = [(); 2].map(|()| open(directory, SHARED).unwrap());
    is_refused(directory, ALONE);
    one.close().await.unwrap();
    is_refused(directory, ALONE);
    // Nobody who shares it has lost it by that.
    drop(open(directory, SHARED).unwrap());
    other.close().await.unwrap();
    let last = open(directory, ALONE).unwrap();
    is_refused(directory, SHARED);
    // One that is only dropped lets go of it when its thread has ended.
    drop(last);
    eventually("the directory to be free", async || open(directory, ALONE).is_ok()).await;
}

#[tokio::test]
async fn a_cache_says_why_it_cannot_be_built() {
    let directory = tempfile::tempdir().unwrap();
    let build = |how| Terrace::builder().tier("disk", disk(directory.path(), how)).build();
    let first = build(ALONE).await.unwrap();
    let refused = build(SHARED).await.unwrap_err();
    assert!(matches!(refused, BuildError::InUse { wants_it_alone: false, .. }), "{refused}");
    first.set("key", &1).await.unwrap();
    first.close().await;
    let second = build(SHARED).await.unwrap();
    assert_eq!(second.get::<i32>("key").await.unwrap().as_deref(), Some(&1));
}

/// A process that has a directory open. It is started by other tests.
#[test]
#[ignore = "a process that other tests start"]
fn holds_a_directory() {
    let Some(settings) = rig::settings() else { return };
    let (how, directory) = settings.split_once(' ').unwrap();
    let store = open(Path::new(directory), how);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let said = match &store {
        Ok(_) => "opened".to_owned(),
        Err(error) => error.to_string(),
    };
    runtime.block_on(rig::serve(move |_| {
        let said = said.clone();
        async move { said }
    }));
}

async fn start(how: &str, directory: &Path) -> (rig::TestNode, String) {
    let settings = format!("{how} {}", directory.display());
    let node = rig::TestNode::start("alone::holds_a_directory", &settings).await.unwrap();
    let said = node.ask("how").await.unwrap().text;
    (node, said)
}

#[tokio::test]
async fn d8_processes_refuse_each_other_until_one_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    for [first, second] in [[ALONE, SHARED], [ALONE, ALONE], [SHARED, ALONE]] {
        let (holder, said) = start(first, directory).await;
        assert_eq!(said, "opened");
        is_refused(directory, second);
        let (_other, said) = start(second, directory).await;
        assert!(said.contains("exclusively"), "{said}");
        // Its lock goes with it.
        holder.kill().unwrap();
        let store = open(directory, second).unwrap();
        store.close().await.unwrap();
    }
    let (_holder, said) = start(SHARED, directory).await;
    assert_eq!(said, "opened");
    open(directory, SHARED).unwrap();
}

#[tokio::test]
async fn what_cannot_be_used_is_set_aside_by_whoever_has_it_alone() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    std::fs::write(directory.join("terrace.db"), vec![b'x'; 8192]).unwrap();
    let store = open(directory, ALONE).unwrap();
    assert!(
        directory.join("terrace.db.damaged-1").exists()
            || directory.join("terrace.db.foreign-1").exists()
    );
    is_refused(directory, SHARED);
    store.close().await.unwrap();
    open(directory, SHARED).unwrap();
}

/// Where the kernel says that a directory is on another machine.
#[cfg(target_os = "linux")]
#[test]
fn a_network_file_system_is_refused() {
    const DIRECTORY: &str = "TERRACE_TEST_NETWORK";
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let directory = Path::new(&directory);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let refused = |error: BuildError| {
            assert!(matches!(error, BuildError::NetworkFileSystem { .. }), "{error}");
            println!("refused: {error}");
        };
        refused(Disk::at(directory.join("disk")).open().unwrap_err());
        let cache = Terrace::builder().memory(Memory::bytes(1 << 20));
        let cache = cache.journal(Journal::at(directory.join("journal")));
        refused(runtime.block_on(cache.build()).unwrap_err());
        return;
    }
    for (magic, name) in [("6969", "NFS"), ("97190201", "9p"), ("46557365", "FUSE")] {
        let directory = tempfile::tempdir().unwrap();
        // The kernel's answer is replaced: the type of the file system comes first in it.
        let bytes: String =
            (0..8).map(|at| magic.get(2 * at..2 * at + 2).unwrap_or("00")).collect();
        let child = std::process::Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "signal=none", "-e"])
            .arg(format!("inject=statfs:poke_exit=@arg2={bytes}"))
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "alone::a_network_file_system_is_refused", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .output()
            .expect("strace is installed");
        let said = String::from_utf8_lossy(&child.stdout);
        let complained = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{name}: {said}\n{complained}");
        assert_eq!(said.matches("refused: ").count(), 2, "{said}");
        assert!(said.contains(&format!(" is on {name}")), "{said}");
        // Nothing was begun there.
        let begun = std::fs::read_dir(directory.path().join("disk")).unwrap().count();
        assert_eq!(begun, 0);
    }
}
