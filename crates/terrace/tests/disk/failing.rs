//! A disk that fails: full, read-only, forbidden, no files to be had. Reads go on, nothing is
//! acknowledged that is not there, and all is normal soon after the repair.

use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use terrace::key::StoredKey;
use terrace::ledger::Stamp;
use terrace::store::{Put, Store as _, Stored};
use terrace::{Disk, DiskStore, Terrace};

use crate::support::{count, limit};

const DIRECTORY: &str = "TERRACE_TEST_FAILING";

/// A process that uses a directory, and says what it sees.
struct User {
    child: Child,
    orders: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
}

impl User {
    /// Started by a command that is given the program and its arguments.
    fn start(directory: &Path, through: &[&str]) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut command = match through {
            [] => Command::new(&program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(&program);
                command
            }
        };
        let mut child = command
            .args(["--exact", "failing::a_user_of_a_directory", "--nocapture"])
            .env(DIRECTORY, directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut user = Self { child, orders, said };
        assert_eq!(user.order("begin"), "begun");
        user
    }

    fn order(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        let answer = self.said.by_ref().map_while(Result::ok).find_map(|line| {
            // The harness writes to the same lines.
            line.split_once("answer: ").map(|(_, answer)| answer.to_owned())
        });
        answer.unwrap_or_else(|| panic!("it died of {order}"))
    }

    /// While it is broken: some writes or reads fail, and whatever is said is true.
    fn is_broken(&mut self) {
        let answer = self.order("use");
        assert!(answer.starts_with("true, ") && !answer.ends_with(" 0 failed"), "{answer}");
    }

    /// After the repair.
    fn recovers(&mut self) {
        let began = Instant::now();
        assert_eq!(self.order("recover"), "recovered");
        let took = began.elapsed();
        assert!(took < limit(Duration::from_secs(5)), "{took:?}");
        let answer = self.order("use");
        assert!(answer.starts_with("true, ") && answer.ends_with(" 0 failed"), "{answer}");
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn put(store: &DiskStore, name: &str, size: usize, byte: u8) -> Option<Put> {
    let now = store.authority()?.snapshot().await.ok()?;
    Some(Put {
        key: StoredKey::new("", "space", 0, name.as_bytes()),
        frame: vec![byte; size].into(),
        expires: None,
        stamp: Stamp { incarnation: now.incarnation, number: now.last },
        tags: Arc::default(),
    })
}

/// Stores some and reads them: how much failed. What is said to be stored is there.
async fn use_store(store: &DiskStore, round: u8) -> usize {
    let mut failed = 0;
    for number in 0..40 {
        // In the database, and in files.
        let size = if number % 2 == 0 { 20_000 } else { 200_000 };
        let Some(put) = put(store, &number.to_string(), size, round).await else {
            failed += 1;
            continue;
        };
        let stored = store.put(std::slice::from_ref(&put)).await;
        let is_stored = matches!(stored.as_deref(), Ok([Stored::Yes]));
        failed += usize::from(!is_stored);
        match store.get(std::slice::from_ref(&put.key)).await.map(|mut found| found.pop().flatten())
        {
            Ok(Some(found)) if is_stored => assert!(found == put.frame, "another value"),
            Ok(Some(found)) => assert!(found.iter().all(|byte| *byte == found[0]), "torn"),
            Ok(None) => assert!(!is_stored, "acknowledged, and not there"),
            Err(_) => failed += 1,
        }
    }
    failed
}

#[test]
fn a_user_of_a_directory() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut opened, mut held, mut round) = (None, Vec::new(), 0_u8);
        for order in std::io::stdin().lines().map_while(Result::ok) {
            let answer = match &*order {
                "begin" => {
                    let store = Disk::at(&directory).open().unwrap();
                    let cache = Terrace::builder().tier("disk", Disk::at(&directory));
                    assert_eq!(use_store(&store, 0).await, 0);
                    opened = Some((store, cache.build().await.unwrap()));
                    "begun".to_owned()
                }
                "use" => {
                    let (store, cache) = opened.as_ref().unwrap();
                    round += 1;
                    let failed = use_store(store, round).await;
                    // A cache answers all the same.
                    for number in 0..20 {
                        let load = |_| async move { Ok::<_, String>(vec![7_u8; 50_000]) };
                        let key = format!("{round} {number}");
                        let loaded = cache.get_or_load(&key, load).await.unwrap();
                        assert_eq!(loaded.len(), 50_000);
                    }
                    format!("true, {failed} failed")
                }
                "recover" => {
                    let (store, _) = opened.as_ref().unwrap();
                    round += 1;
                    let began = Instant::now();
                    let has_failed = loop {
                        let has_failed = use_store(store, round).await > 0;
                        // Longer than whoever asks allows: to say so, and not to go on for ever.
                        if !has_failed || began.elapsed() > limit(Duration::from_secs(10)) {
                            break has_failed;
                        }
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    };
                    if has_failed { "still broken" } else { "recovered" }.to_owned()
                }
                "hold" => {
                    while let Ok(file) = fs::File::open("/dev/null") {
                        held.push(file);
                    }
                    "held".to_owned()
                }
                "let go" => {
                    held.clear();
                    "let go".to_owned()
                }
                other => panic!("{other}"),
            };
            println!("answer: {answer}");
        }
    });
}

/// A file system of 16 MB, which is unmounted in the end; none where this user may not mount.
struct Mount(PathBuf);

impl Mount {
    fn new(parent: &Path) -> Option<Self> {
        let at = parent.join("mount");
        fs::create_dir(&at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=16m", "none"]).arg(&at);
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(Self(at));
        }
        println!("NOT TESTED: no file system can be mounted here; run this as root");
        None
    }

    fn remount(&self, how: &str) {
        let options = format!("remount,{how}");
        let status = Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap();
        assert!(status.success(), "{how}");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn d5_a_file_system_without_room() {
    let parent = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::new(parent.path()) else { return };
    let mut user = User::start(&mount.0.join("cache"), &[]);
    // Each leaves more in the tier, which may take more than the file system has.
    for _ in 0..count(3, 10) {
        let ballast = mount.0.join("ballast");
        let mut file = fs::File::create(&ballast).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        drop(file);
        user.is_broken();
        fs::remove_file(ballast).unwrap();
        user.recovers();
    }
}

/// What does not fit leaves, as in a tier of that size: others need the file system too.
#[tokio::test]
async fn a_tier_leaves_room_on_a_file_system_smaller_than_its_limit() {
    let parent = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::new(parent.path()) else { return };
    let store = Disk::at(mount.0.join("cache")).open().unwrap();
    for number in 0..400 {
        let put = put(&store, &number.to_string(), 100_000, 1).await.unwrap();
        let stored = store.put(&[put]).await;
        assert!(matches!(stored.as_deref(), Ok([Stored::Yes])), "{number}: {stored:?}");
        let taken = store.usage().await.unwrap().disk_bytes;
        assert!(taken <= 15 << 20, "{number}: {taken} of 16 MiB");
    }
    store.close().await.unwrap();
}

#[test]
fn d5_a_file_system_that_becomes_read_only() {
    let parent = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::new(parent.path()) else { return };
    // The kernel refuses it while somebody has files open to write to; a bind mount can be.
    let at = parent.path().join("bound");
    fs::create_dir(&at).unwrap();
    let bound = Command::new("mount").arg("--bind").arg(&mount.0).arg(&at).status().unwrap();
    assert!(bound.success());
    let bound = Mount(at);
    let mut user = User::start(&bound.0.join("cache"), &[]);
    for _ in 0..count(1, 3) {
        // Open files of a bind mount keep it writable, too: those of a new connection fail.
        let refused = Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&bound.0).output();
        if !refused.unwrap().status.success() {
            println!("NOT TESTED: the kernel keeps a file system writable that is in use");
            return;
        }
        user.is_broken();
        bound.remount("bind,rw");
        user.recovers();
    }
}

#[test]
fn d5_a_limit_on_the_size_of_files() {
    let directory = tempfile::tempdir().unwrap();
    // Without this the first write beyond the limit ends the process.
    let mut user = User::start(directory.path(), &["sh", "-c", "trap '' XFSZ; exec \"$0\" \"$@\""]);
    let process = format!("--pid={}", user.child.id());
    let limit_to = |size: &str| {
        let size = format!("--fsize={size}");
        let status = Command::new("prlimit").args([&process, &size]).status();
        assert!(status.unwrap().success());
    };
    for _ in 0..count(1, 3) {
        limit_to("65536:unlimited");
        user.is_broken();
        limit_to("unlimited:unlimited");
        user.recovers();
    }
}

#[test]
fn d5_no_files_to_be_had() {
    let directory = tempfile::tempdir().unwrap();
    let limited = ["sh", "-c", "ulimit -n 64; exec \"$0\" \"$@\""];
    let mut user = User::start(directory.path(), &limited);
    for _ in 0..count(1, 3) {
        assert_eq!(user.order("hold"), "held");
        user.is_broken();
        assert_eq!(user.order("let go"), "let go");
        user.recovers();
    }
}

#[test]
fn d5_no_permission() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("cache");
    fs::create_dir(&directory).unwrap();
    for path in [parent.path(), &directory] {
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }
    // Root may do anything: somebody else is to use it.
    let program = parent.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let somebody = "exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$PROGRAM\" \"$@\"";
    let mut can = Command::new("setpriv");
    can.args(["--reuid=65534", "--regid=65534", "--clear-groups", "true"]);
    if !can.output().is_ok_and(|output| output.status.success()) {
        println!("NOT TESTED: no process of another user can be started here; run this as root");
        return;
    }
    let script = format!("export PROGRAM='{}'; {somebody}", program.display());
    let mut user = User::start(&directory, &["sh", "-c", &script]);
    for _ in 0..count(1, 3) {
        // The files of values go to any of many folders: none may be had, old or new.
        let inside = fs::read_dir(&directory).unwrap().map(|file| file.unwrap().path());
        let mut closed: Vec<_> = inside.filter(|path| path.is_dir()).collect();
        assert!(!closed.is_empty(), "there are values in files");
        closed.push(directory.clone());
        for path in &closed {
            fs::set_permissions(path, Permissions::from_mode(0o000)).unwrap();
        }
        user.is_broken();
        for path in &closed {
            fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
        }
        user.recovers();
    }
}
