//! The power fails: what was not synced is there in part, in any part.
//!
//! A process that writes is recorded, each of its operations on files in their order. A disk that
//! remembers what was synced plays them up to a random moment, keeps any sectors of what was not,
//! and the journal that is left then is opened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Acknowledged, Order, child, has_all, is_in_order, note, read, recover, write_behind};
use crate::support::{count, random};

/// Bytes that a disk writes at once or not at all.
const SECTOR: usize = 512;

/// Seeds that one recording is good for.
const SEEDS: usize = 50;

#[test]
fn d3_the_power_fails_while_writing_behind() {
    if let Some(order) = Order::given() {
        return write_behind(&order);
    }
    let mut random = random("power failures");
    let mut lost = 0;
    for recording in 0..count(200, 10_000) / SEEDS {
        let directory = tempfile::tempdir().unwrap();
        // Values of which some recordings fill the log so that it is copied into the database.
        let longest = if recording % 2 == 0 { 300 } else { 40_000 };
        let events = record(directory.path(), longest);
        for _ in 0..SEEDS {
            let seed = random.u64(..);
            lost += fail(directory.path(), &events, seed);
        }
    }
    assert!(lost > 0, "every time everything was there: that is no power failure");
}

/// One operation of the process.
#[derive(Debug)]
enum Event {
    Created(PathBuf),
    Written(PathBuf, Place, Vec<u8>),
    Truncated(PathBuf, usize),
    Removed(PathBuf),
    Synced(PathBuf),
    Said(String),
}

#[derive(Clone, Copy, Debug)]
enum Place {
    At(usize),
    End,
}

/// What a process does that writes behind.
fn record(root: &Path, longest: u64) -> Vec<Event> {
    let order = Order { first: 1, writes: 100, tasks: 3, longest, directory: root.to_owned() };
    let trace = root.join("trace");
    let mut program = Command::new("strace");
    program.args(["-f", "-qq", "-y", "-xx", "-s", "1000000", "-e", "signal=none"]);
    let calls = "openat,mkdir,pwrite64,write,fsync,fdatasync,ftruncate,unlink,rename";
    program.args(["-e", &format!("trace={calls}"), "-o"]).arg(&trace);
    program.arg(std::env::current_exe().unwrap());
    child(&mut program, "acknowledged::power::d3_the_power_fails_while_writing_behind", &order);
    let output = program.output().expect("strace is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let trace = std::fs::read_to_string(&trace).unwrap();
    let events = parse(&trace, root);
    let synced = events.iter().filter(|event| matches!(event, Event::Synced(_))).count();
    assert!(synced > 20, "{synced} syncs were recorded");
    events
}

/// The events of a trace, each where its call ended.
fn parse(trace: &str, root: &Path) -> Vec<Event> {
    let mut begun: BTreeMap<&str, String> = BTreeMap::new();
    let mut events = Vec::new();
    for line in trace.lines() {
        let Some((process, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        let whole = if let Some(first) = call.strip_suffix("<unfinished ...>") {
            begun.insert(process, first.into());
            continue;
        } else if call.starts_with("<... ") {
            let Some(first) = begun.remove(process) else { continue };
            let (_, rest) = call.split_once("resumed>").unwrap();
            first + rest
        } else {
            call.into()
        };
        events.extend(event(&whole, root));
    }
    events
}

fn event(call: &str, root: &Path) -> Option<Event> {
    let (name, rest) = call.split_once('(')?;
    let (arguments, outcome) = rest.rsplit_once(") = ").or_else(|| rest.rsplit_once(") "))?;
    if outcome.trim_start_matches("= ").trim_start().starts_with(['-', '?']) {
        return None;
    }
    // Strings and paths are in hexadecimal: no comma or bracket is in any of them.
    let arguments: Vec<_> = arguments.split(", ").map(str::trim).collect();
    let within = |path: PathBuf| path.starts_with(root).then_some(path);
    let of_descriptor = || {
        let (_, path) = arguments.first()?.split_once('<')?;
        Some(PathBuf::from(String::from_utf8(bytes(path.strip_suffix('>')?)).ok()?))
    };
    let of_string =
        |index: usize| -> Option<Vec<u8>> { Some(bytes(arguments.get(index)?.trim_matches('"'))) };
    let of_path = |index: usize| within(PathBuf::from(String::from_utf8(of_string(index)?).ok()?));
    match name {
        "openat" if arguments.get(2)?.contains("O_CREAT") => Some(Event::Created(of_path(1)?)),
        "mkdir" => Some(Event::Created(of_path(0)?)),
        "write" if arguments.first()?.starts_with("1<") => {
            Some(Event::Said(String::from_utf8(of_string(1)?).ok()?))
        }
        "write" => Some(Event::Written(within(of_descriptor()?)?, Place::End, of_string(1)?)),
        "pwrite64" => {
            let at = arguments.get(3)?.parse().expect("where it was written");
            Some(Event::Written(within(of_descriptor()?)?, Place::At(at), of_string(1)?))
        }
        "ftruncate" => Some(Event::Truncated(
            within(of_descriptor()?)?,
            arguments.get(1)?.parse().expect("a length"),
        )),
        "fsync" | "fdatasync" => Some(Event::Synced(within(of_descriptor()?)?)),
        "unlink" => Some(Event::Removed(of_path(0)?)),
        "rename" => panic!("nothing is renamed here: {call}"),
        _ => None,
    }
}

/// `\x41\x42` as bytes.
fn bytes(text: &str) -> Vec<u8> {
    let digits = text.split("\\x").skip(1);
    digits.map(|digits| u8::from_str_radix(digits, 16).expect("two digits")).collect()
}

/// A disk: what of each file is safe, and what may be.
#[derive(Default)]
struct Disk {
    files: BTreeMap<PathBuf, File>,
}

#[derive(Default)]
struct File {
    safe: Vec<u8>,
    unsafe_changes: Vec<(Place, Vec<u8>)>,
    /// The directory knows it.
    is_known: bool,
    is_removed: bool,
}

impl Disk {
    fn play(&mut self, event: &Event) {
        match event {
            Event::Created(path) => {
                let file = self.files.entry(path.clone()).or_default();
                if file.is_removed {
                    *file = File::default();
                }
            }
            Event::Written(path, place, data) => {
                let file = self.files.entry(path.clone()).or_default();
                file.unsafe_changes.push((*place, data.clone()));
            }
            Event::Truncated(path, length) => {
                let file = self.files.entry(path.clone()).or_default();
                file.unsafe_changes.push((Place::At(*length), Vec::new()));
            }
            Event::Removed(path) => {
                if let Some(file) = self.files.get_mut(path) {
                    file.is_removed = true;
                }
            }
            Event::Synced(path) => {
                if let Some(file) = self.files.get_mut(path) {
                    for (place, data) in std::mem::take(&mut file.unsafe_changes) {
                        change(&mut file.safe, place, &data, |_| true);
                    }
                }
                // A directory that is synced knows what is in it, and what is not any more.
                let is_inside = |inside: &Path| inside.parent() == Some(path);
                self.files.retain(|inside, file| !(is_inside(inside) && file.is_removed));
                for (inside, file) in &mut self.files {
                    file.is_known |= is_inside(inside);
                }
            }
            Event::Said(_) => {}
        }
    }

    /// What is left in `to`; says whether that is less than there was.
    fn fail(&self, from: &Path, to: &Path, random: &mut fastrand::Rng) -> bool {
        let likely = [0, 50, 90, 99, 100][random.usize(..5)];
        let mut is_less = false;
        let mut gone: Vec<&Path> = Vec::new();
        for (path, file) in &self.files {
            let is_kept = path.parent().is_none_or(|parent| !gone.contains(&parent))
                && (file.is_known || random.u8(..100) < likely)
                && !(file.is_removed && random.bool());
            if !is_kept {
                gone.push(path);
                is_less = true;
                continue;
            }
            let target = to.join(path.strip_prefix(from).unwrap());
            let name = path.file_name().unwrap().to_string_lossy();
            if name == "journal" {
                std::fs::create_dir(&target).unwrap();
                continue;
            }
            // Shared memory and locks end with their process, whatever is in the file.
            if name.ends_with("-shm") || name.ends_with(".lock") || name == "trace" {
                continue;
            }
            let mut content = file.safe.clone();
            for (place, data) in &file.unsafe_changes {
                change(&mut content, *place, data, |random_sector| {
                    let _ = random_sector;
                    let is_kept = random.u8(..100) < likely;
                    is_less |= !is_kept;
                    is_kept
                });
            }
            std::fs::write(target, content).unwrap();
        }
        is_less
    }
}

/// Writes `data` into `content`, those of its sectors that are kept; no data at a place cuts the
/// file off there.
fn change(
    content: &mut Vec<u8>,
    place: Place,
    data: &[u8],
    mut is_kept: impl FnMut(usize) -> bool,
) {
    let start = match place {
        Place::At(start) => start,
        Place::End => content.len(),
    };
    if data.is_empty() {
        if is_kept(start / SECTOR) {
            content.resize(start, 0);
        }
        return;
    }
    let mut at = start;
    while at < start + data.len() {
        let end = ((at / SECTOR + 1) * SECTOR).min(start + data.len());
        if is_kept(at / SECTOR) {
            if content.len() < end {
                content.resize(end, 0);
            }
            content[at..end].copy_from_slice(&data[at - start..end - start]);
        }
        at = end;
    }
}

/// Fails at a random moment of a recording; 1 if anything was lost by that.
fn fail(root: &Path, events: &[Event], seed: u64) -> usize {
    let mut random = fastrand::Rng::with_seed(seed);
    let moment = random.usize(..events.len());
    let what = format!("seed {seed}, after {moment} of {}", events.len());
    let mut disk = Disk::default();
    let mut acknowledged = Acknowledged::new();
    let mut told = String::new();
    for event in &events[..moment] {
        disk.play(event);
        match event {
            Event::Said(said) => {
                said.lines().for_each(|line| {
                    note(&mut acknowledged, line, &["synced"]);
                });
            }
            // A source of its own has what it was told, whatever becomes of this machine.
            Event::Written(path, _, data) if path.ends_with("source.log") => {
                told += std::str::from_utf8(data).unwrap();
            }
            _ => {}
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let is_less = disk.fail(root, directory.path(), &mut random);
    std::fs::write(directory.path().join("source.log"), &told).unwrap();
    recover(directory.path());
    let log = std::fs::read_to_string(directory.path().join("source.log")).unwrap();
    let log = read(&log);
    is_in_order(&log, &what);
    has_all(&log, &acknowledged, &what);
    usize::from(is_less)
}
