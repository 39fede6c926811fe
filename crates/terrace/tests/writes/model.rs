//! The protocol, walked through in every order: two processes, two keys, a tag, a crash.
//!
//! The state of the world below is made of the library's own `protocol::Record`
//! (the authority) and `protocol::Marks` (each process); the steps are those of
//! read.rs, load.rs and write.rs, each as small as what is atomic there. The
//! explorer visits every state that any order of steps can reach and asks in each:
//! could a process be answered with something that it knows to be invalidated?
//! With a fence taken out on purpose it has to find that it could.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use terrace::clock::WallTime;
use terrace::ledger::{Line, Name, Names, Stamp};
use terrace::protocol::{Follow, Leased, Limits, Marks, Record, Standing};

/// Key 0 carries the tag; key 1 does not.
const KEYS: usize = 2;
const PROCESSES: usize = 2;

/// How much happens in one exploration, and which fence is missing.
#[derive(Clone, Copy)]
struct Scenario {
    writes: u8,
    loads_each: u8,
    crashes: u8,
    lines_kept: usize,
    limits: Limits,
    /// In the place of the tag a prefix is named that key 0 begins with, and key 1 does not.
    by_prefix: bool,
    missing: Option<Fence>,
}

/// A rule of the protocol that an exploration can leave out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fence {
    MemoryCommit,
    StorePut,
    JudgeOnRead,
    ForgetMemoryOnGap,
    TicketBeforeRead,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct World {
    source: [u8; KEYS],
    authority: Record,
    /// The store that is the authority's: value and stamp.
    store: BTreeMap<usize, Kept>,
    processes: [Process; PROCESSES],
    writes_left: u8,
    crashes_left: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Kept {
    value: u8,
    stamp: Stamp,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Process {
    marks: Marks,
    memory: BTreeMap<usize, Kept>,
    load: Option<Load>,
    invalidation: Option<Invalidation>,
    /// Lines that were applied and whose keys are still to be dropped from memory.
    to_drop: Vec<Line>,
    /// What a read that begins now must at least return.
    settled: [u8; KEYS],
    loads_left: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Load {
    key: usize,
    ticket: Stamp,
    step: LoadStep,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum LoadStep {
    /// The ticket is taken.
    Departed,
    /// The store was read and had something that stands.
    FoundBelow(Kept),
    /// The store had nothing.
    Missed,
    /// The lease is held.
    Leased(u64),
    /// The source answered.
    Loaded(u64, u8),
    /// Memory was offered the value.
    Committed(u64, u8),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Invalidation {
    key: usize,
    by_tag: bool,
    version: u8,
    /// `None` until the line is appended.
    line: Option<u64>,
}

impl World {
    fn new(scenario: Scenario) -> Self {
        let authority = Record::new(7, scenario.lines_kept, scenario.limits);
        let process = Process {
            marks: Marks::joining(&authority.snapshot(), scenario.limits),
            memory: BTreeMap::new(),
            load: None,
            invalidation: None,
            to_drop: Vec::new(),
            settled: [0; KEYS],
            loads_left: scenario.loads_each,
        };
        Self {
            source: [0; KEYS],
            authority,
            store: BTreeMap::new(),
            processes: [process.clone(), process],
            writes_left: scenario.writes,
            crashes_left: scenario.crashes,
        }
    }

    /// Every world that is one step away.
    fn steps(&self, scenario: Scenario) -> Vec<(String, Self)> {
        let mut next = Vec::new();
        for process in 0..PROCESSES {
            let mut take = |name: &str, step: &dyn Fn(&mut Self) -> bool| {
                let mut world = self.clone();
                if step(&mut world) {
                    // Returning as soon as it can is the strictest promise.
                    (0..PROCESSES).for_each(|process| world.settle(process));
                    next.push((format!("{process}: {name}"), world));
                }
            };
            for key in 0..KEYS {
                take(&format!("load {key}"), &|world| world.depart(process, key));
                for by_tag in [false, true] {
                    take(&format!("write {key}, tag: {by_tag}"), &|world| {
                        world.write(process, key, by_tag)
                    });
                }
            }
            take("go on loading", &|world| world.load_step(process, scenario));
            take("append", &|world| world.append(process, scenario));
            take("follow", &|world| world.follow(process, scenario));
            take("drop from memory", &|world| world.drop_named(process));
            take("crash", &|world| world.crash(process, scenario));
        }
        next
    }

    /// Two worlds that differ only in which process is which are one.
    fn fingerprint(&self) -> u128 {
        let hash = |seed: u64, process: &Process| {
            let mut hasher = DefaultHasher::new();
            seed.hash(&mut hasher);
            process.hash(&mut hasher);
            hasher.finish()
        };
        let half = |seed: u64| {
            let mut processes = self.processes.each_ref().map(|process| hash(seed, process));
            processes.sort_unstable();
            let mut hasher = DefaultHasher::new();
            (seed, self.source, &self.authority, &self.store).hash(&mut hasher);
            (processes, self.writes_left, self.crashes_left).hash(&mut hasher);
            hasher.finish()
        };
        (u128::from(half(1)) << 64) | u128::from(half(2))
    }

    fn depart(&mut self, process: usize, key: usize) -> bool {
        let process = &mut self.processes[process];
        if process.load.is_some() || process.loads_left == 0 {
            return false;
        }
        process.loads_left -= 1;
        let ticket = process.marks.position();
        process.load = Some(Load { key, ticket, step: LoadStep::Departed });
        true
    }

    fn load_step(&mut self, index: usize, scenario: Scenario) -> bool {
        let Some(mut load) = self.processes[index].load else { return false };
        let key = load.key;
        let now = WallTime::from_millis(1);
        load.step = match load.step {
            LoadStep::Departed => match self.below(index, key, scenario) {
                Some(kept) => LoadStep::FoundBelow(kept),
                None => LoadStep::Missed,
            },
            LoadStep::FoundBelow(kept) => {
                self.commit(index, load, kept, scenario);
                self.processes[index].load = None;
                return true;
            }
            LoadStep::Missed => {
                match self.authority.lease(&key_name(key), now, WallTime::from_millis(10)) {
                    Leased::Granted(lease) => LoadStep::Leased(lease.token),
                    // Whoever waits for a lease looks below again.
                    Leased::Held(_) => match self.below(index, key, scenario) {
                        Some(kept) => LoadStep::FoundBelow(kept),
                        None => return false,
                    },
                }
            }
            LoadStep::Leased(token) => LoadStep::Loaded(token, self.source[key]),
            LoadStep::Loaded(token, value) => {
                if scenario.missing == Some(Fence::TicketBeforeRead) {
                    load.ticket = self.processes[index].marks.position();
                }
                self.commit(index, load, Kept { value, stamp: load.ticket }, scenario);
                LoadStep::Committed(token, value)
            }
            LoadStep::Committed(token, value) => {
                let permitted = self.authority.permits(load.ticket, &names(key, &tags(key)));
                if permitted || scenario.missing == Some(Fence::StorePut) {
                    self.store.insert(key, Kept { value, stamp: load.ticket });
                }
                // Nobody can tell a lease that is given back later from one that is not yet.
                self.authority.release(&key_name(key), token);
                self.processes[index].load = None;
                return true;
            }
        };
        self.processes[index].load = Some(load);
        true
    }

    /// What the store has and this process may use.
    fn below(&self, index: usize, key: usize, scenario: Scenario) -> Option<Kept> {
        let kept = *self.store.get(&key)?;
        let marks = &self.processes[index].marks;
        let stands = marks.standing(kept.stamp, &names(key, &tags(key))) == Standing::Good;
        (stands || scenario.missing == Some(Fence::JudgeOnRead)).then_some(kept)
    }

    /// `write::to_memory`: judged and stored in one step.
    fn commit(&mut self, index: usize, load: Load, kept: Kept, scenario: Scenario) {
        let process = &mut self.processes[index];
        let tags = tags(load.key);
        let names = names(load.key, &tags);
        let is_newer = process
            .memory
            .get(&load.key)
            .is_none_or(|there| there.stamp.number <= kept.stamp.number);
        let permitted = process.marks.permits(load.ticket, &names)
            && process.marks.standing(kept.stamp, &names) == Standing::Good;
        if is_newer && (permitted || scenario.missing == Some(Fence::MemoryCommit)) {
            process.memory.insert(load.key, kept);
        }
    }

    fn write(&mut self, index: usize, key: usize, by_tag: bool) -> bool {
        if self.writes_left == 0
            || self.processes[index].invalidation.is_some()
            || (by_tag && tags(key).is_empty())
        {
            return false;
        }
        self.writes_left -= 1;
        self.source[key] += 1;
        let version = self.source[key];
        self.processes[index].invalidation =
            Some(Invalidation { key, by_tag, version, line: None });
        true
    }

    fn append(&mut self, index: usize, scenario: Scenario) -> bool {
        let Some(invalidation) = &mut self.processes[index].invalidation else { return false };
        if invalidation.line.is_some() {
            return false;
        }
        let name = if invalidation.by_tag && scenario.by_prefix {
            Name::Prefix(key_name(0))
        } else if invalidation.by_tag {
            Name::Tag(tag_name())
        } else {
            // The authority's store drops the value in the same step.
            self.store.remove(&invalidation.key);
            Name::Key(key_name(invalidation.key))
        };
        invalidation.line = Some(self.authority.append([name]).number);
        true
    }

    fn follow(&mut self, index: usize, scenario: Scenario) -> bool {
        let process = &mut self.processes[index];
        match self.authority.follow(process.marks.position()) {
            Follow::Lines(lines) if lines.is_empty() => return false,
            Follow::Lines(lines) => {
                for line in &lines {
                    process.marks.apply(line);
                }
                process.to_drop.extend(lines);
            }
            Follow::Broken => {
                process.marks = Marks::joining(&self.authority.snapshot(), scenario.limits);
                if scenario.missing != Some(Fence::ForgetMemoryOnGap) {
                    process.memory.clear();
                }
            }
        }
        true
    }

    fn drop_named(&mut self, index: usize) -> bool {
        let process = &mut self.processes[index];
        if process.to_drop.is_empty() {
            return false;
        }
        for line in std::mem::take(&mut process.to_drop) {
            for key in 0..KEYS {
                if line.name == Name::Key(key_name(key))
                    && process.memory.get(&key).is_some_and(|kept| kept.stamp.number < line.number)
                {
                    process.memory.remove(&key);
                }
            }
        }
        true
    }

    /// `invalidate` returns once its line is applied here and memory has let go.
    fn settle(&mut self, index: usize) {
        let process = &mut self.processes[index];
        let Some(invalidation) = &process.invalidation else { return };
        let applied = process.marks.position().number;
        if invalidation.line.is_none_or(|line| line > applied) || !process.to_drop.is_empty() {
            return;
        }
        let settled = &mut process.settled[invalidation.key];
        *settled = (*settled).max(invalidation.version);
        process.invalidation = None;
    }

    /// The process is killed and starts again. Its lease stays until it lapses,
    /// which here means that nobody else gets it: the worst case.
    fn crash(&mut self, index: usize, scenario: Scenario) -> bool {
        if self.crashes_left == 0 {
            return false;
        }
        self.crashes_left -= 1;
        let process = &mut self.processes[index];
        process.marks = Marks::joining(&self.authority.snapshot(), scenario.limits);
        process.memory.clear();
        process.load = None;
        process.to_drop.clear();
        // Whoever changed the source repeats an invalidation that nobody acknowledged.
        if let Some(invalidation) = &mut process.invalidation {
            invalidation.line = None;
        }
        true
    }

    /// What a read by this process would return now.
    fn answer(&self, index: usize, key: usize, scenario: Scenario) -> Option<Kept> {
        let process = &self.processes[index];
        let tags = tags(key);
        let in_memory = process.memory.get(&key).copied().filter(|kept| {
            // A hit in memory asks for broader names only: lines about keys take the entry out
            // themselves. Its own name is one of those if a prefix was named since.
            let has_prefix = process.marks.prefixed() > kept.stamp.number;
            let name = if has_prefix { key_name(key) } else { "".into() };
            let broad = Names { key: &name, space: SPACE, tags: &tags };
            process.marks.standing(kept.stamp, &broad) == Standing::Good
                || scenario.missing == Some(Fence::JudgeOnRead)
        });
        in_memory.or_else(|| self.below(index, key, scenario))
    }

    /// What is wrong with this world, if anything.
    fn fault(&self, scenario: Scenario) -> Option<String> {
        for (index, process) in self.processes.iter().enumerate() {
            for key in 0..KEYS {
                let Some(kept) = self.answer(index, key, scenario) else { continue };
                if kept.value < process.settled[key] {
                    return Some(format!(
                        "process {index} reads version {} of key {key} after it invalidated up to {}",
                        kept.value, process.settled[key]
                    ));
                }
            }
        }
        self.fault_at_rest(scenario)
    }

    /// Once everybody has heard everything, everybody reads what the source has.
    fn fault_at_rest(&self, scenario: Scenario) -> Option<String> {
        let position = self.authority.position();
        let at_rest = self.processes.iter().all(|process| {
            process.invalidation.is_none()
                && process.to_drop.is_empty()
                && process.marks.position() == position
        });
        if !at_rest {
            return None;
        }
        (0..PROCESSES).flat_map(|index| (0..KEYS).map(move |key| (index, key))).find_map(
            |(index, key)| {
                let kept = self.answer(index, key, scenario)?;
                (kept.value != self.source[key]).then(|| {
                format!(
                    "at rest process {index} reads version {} of key {key}, and the source has {}",
                    kept.value, self.source[key]
                )
            })
            },
        )
    }
}

const SPACE: &str = ":space";

fn key_name(key: usize) -> Arc<str> {
    format!("{SPACE}:{key}").into()
}

fn tag_name() -> Arc<str> {
    ":tag".into()
}

fn tags(key: usize) -> Vec<Arc<str>> {
    if key == 0 { vec![tag_name()] } else { Vec::new() }
}

fn names(key: usize, tags: &[Arc<str>]) -> Names<'_> {
    Names { key: if key == 0 { ":space:0" } else { ":space:1" }, space: SPACE, tags }
}

/// Visits every reachable world; returns how many, or the way to a faulty one.
fn explore(scenario: Scenario) -> Result<usize, String> {
    let first = World::new(scenario);
    // Worlds are told apart by a hash of 128 bits: there are far too few of them for
    // two to share one.
    let mut seen = HashSet::from([first.fingerprint()]);
    // For each world, the one before it and the step between.
    let mut ways: Vec<(usize, String)> = vec![(0, "begin".into())];
    let mut ahead = vec![(first, 0)];
    while let Some((world, way)) = ahead.pop() {
        for (step, next) in world.steps(scenario) {
            let fault = next.fault(scenario);
            if let Some(fault) = fault {
                return Err(format!("{fault}, after:\n{}\n{step}", tell(&ways, way)));
            }
            if seen.insert(next.fingerprint()) {
                ways.push((way, step));
                ahead.push((next, ways.len() - 1));
            }
        }
    }
    Ok(seen.len())
}

/// The steps that lead to a world, one a line.
fn tell(ways: &[(usize, String)], mut way: usize) -> String {
    let mut steps = Vec::new();
    while way > 0 {
        steps.push(ways[way].1.as_str());
        way = ways[way].0;
    }
    steps.reverse();
    steps.join("\n")
}

const PLENTY: Scenario = Scenario {
    writes: 1,
    loads_each: 1,
    crashes: 1,
    lines_kept: 16,
    limits: Limits { keys: 16, names: 16 },
    by_prefix: false,
    missing: None,
};

/// So little is kept that lines and names are forgotten all the time.
const SCARCE: Scenario = Scenario { lines_kept: 1, limits: Limits { keys: 1, names: 1 }, ..PLENTY };

/// Two writes make twenty times as many worlds: a minute of work.
fn is_full() -> bool {
    std::env::var_os("TERRACE_FULL").is_some()
}

fn expect_no_fault(scenario: Scenario, at_least: usize) {
    let worlds = explore(scenario).unwrap_or_else(|fault| panic!("{fault}"));
    assert!(worlds > at_least, "only {worlds} worlds: the exploration is not what it was");
}

#[test]
fn no_order_of_steps_returns_what_was_invalidated() {
    expect_no_fault(PLENTY, 100_000);
}

#[test]
fn nor_with_two_writes() {
    let writes = if is_full() { 2 } else { 1 };
    expect_no_fault(Scenario { writes, crashes: 0, loads_each: 1, ..PLENTY }, 10_000);
}

#[test]
fn nor_with_two_loads_of_each_process() {
    expect_no_fault(Scenario { loads_each: 2, crashes: 0, ..PLENTY }, 100_000);
}

#[test]
fn nor_when_almost_everything_is_forgotten() {
    expect_no_fault(SCARCE, 100_000);
    if is_full() {
        expect_no_fault(Scenario { writes: 2, crashes: 0, ..SCARCE }, 1_000_000);
    }
}

#[test]
fn nor_when_prefixes_are_named() {
    let by_prefix = Scenario { by_prefix: true, ..PLENTY };
    expect_no_fault(by_prefix, 100_000);
    expect_no_fault(Scenario { by_prefix: true, ..SCARCE }, 100_000);
    let found = explore(Scenario { missing: Some(Fence::JudgeOnRead), ..by_prefix });
    assert!(found.is_err(), "a read that is not judged was not noticed");
}

#[test]
fn every_fence_is_needed() {
    for missing in [
        Fence::MemoryCommit,
        Fence::StorePut,
        Fence::JudgeOnRead,
        Fence::TicketBeforeRead,
        Fence::ForgetMemoryOnGap,
    ] {
        // A gap takes two lines that were trimmed before they were followed.
        let scenario = match missing {
            Fence::ForgetMemoryOnGap => Scenario { writes: 2, crashes: 0, ..SCARCE },
            _ => PLENTY,
        };
        let found = explore(Scenario { missing: Some(missing), ..scenario });
        assert!(found.is_err(), "{missing:?} was missing, and nobody noticed");
    }
}
