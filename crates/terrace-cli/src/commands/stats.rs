//! `terrace stats`: what a cache directory holds, summed up.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;

use serde::Serialize;

use crate::args::Stats;
use crate::directory::{Directory, State};
use crate::failure::Failure;
use crate::output::{BOLD, Output, RED, grouped, printable};

pub(crate) async fn run(args: &Stats, output: &mut Output) -> Result<(), Failure> {
    let directory = Directory::open(&args.place.dir).await?;
    let summary = Summary::of(&directory).await;
    directory.close().await;
    let summary = summary?;
    if output.is_json() { output.json(&summary) } else { text(&summary, output) }
}

/// What a directory holds.
#[derive(Debug, Serialize)]
struct Summary {
    directory: String,
    entries: u64,
    /// Bytes of keys and frames.
    bytes: u64,
    /// Entries that cannot be read.
    damaged: u64,
    states: BTreeMap<&'static str, u64>,
    spaces: Vec<Space>,
    files: Vec<File>,
    ledger: Ledger,
}

#[derive(Debug, Default, Serialize)]
struct Space {
    /// Empty for dynamic keys.
    name: String,
    entries: u64,
    /// Bytes of frames.
    bytes: u64,
    fresh: u64,
    damaged: u64,
}

#[derive(Debug, Serialize)]
struct File {
    name: String,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Ledger {
    /// The number of the last line.
    position: u64,
    /// The random number of this ledger; hexadecimal, because JSON's numbers are too small.
    incarnation: String,
    /// Entries from before this line are not trusted.
    floor: u64,
}

impl Summary {
    async fn of(directory: &Directory) -> Result<Self, Failure> {
        let mut states: BTreeMap<_, u64> =
            State::ALL.into_iter().map(|state| (state.name(), 0)).collect();
        let mut spaces: BTreeMap<String, Space> = BTreeMap::new();
        let count = |listed: crate::directory::Listed| {
            *states.entry(listed.state.name()).or_default() += 1;
            let space = spaces.entry(listed.space).or_default();
            space.entries += 1;
            space.bytes += listed.stored_bytes as u64;
            space.fresh += u64::from(listed.state == State::Fresh);
            space.damaged += u64::from(listed.state == State::Damaged);
            Ok(ControlFlow::Continue(()))
        };
        directory.each(count).await?;
        let usage = directory.usage().await?;
        let ledger = &directory.ledger;
        Ok(Self {
            directory: directory.path.display().to_string(),
            entries: usage.entries,
            bytes: usage.bytes,
            damaged: states.get(State::Damaged.name()).copied().unwrap_or_default(),
            states,
            spaces: spaces.into_iter().map(|(name, space)| Space { name, ..space }).collect(),
            files: files(directory),
            ledger: Ledger {
                position: ledger.last,
                incarnation: format!("{:016x}", ledger.incarnation),
                floor: ledger.floor,
            },
        })
    }
}

/// The database, its journals, and databases that were set aside.
fn files(directory: &Directory) -> Vec<File> {
    let Some(database) = directory.database().file_name() else { return Vec::new() };
    let database = database.to_string_lossy();
    // A file that goes away meanwhile is not there.
    let mut files: Vec<_> = fs::read_dir(&directory.path)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            let bytes = file.metadata().ok()?.len();
            name.starts_with(&*database).then_some(File { name, bytes })
        })
        .collect();
    files.sort_by(|one, other| one.name.cmp(&other.name));
    files
}

fn text(summary: &Summary, output: &mut Output) -> Result<(), Failure> {
    let style = output.style();
    let mut fact = |name: &str, fact: String| {
        output.line(format_args!("{} {fact}", style.paint(BOLD, &format!("{name:<10}"))))
    };
    fact("Directory", printable(&summary.directory).into_owned())?;
    fact("Entries", grouped(summary.entries))?;
    fact("Bytes", grouped(summary.bytes))?;
    let states: Vec<_> = summary
        .states
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(state, count)| {
            let text = format!("{} {state}", grouped(*count));
            if *state == State::Damaged.name() { style.paint(RED, &text) } else { text }
        })
        .collect();
    fact("States", if states.is_empty() { "-".into() } else { states.join(", ") })?;
    let Ledger { position, incarnation, floor } = &summary.ledger;
    let (position, floor) = (grouped(*position), grouped(*floor));
    fact("Ledger", format!("position {position}, floor {floor}, incarnation {incarnation}"))?;
    for file in &summary.files {
        fact("File", format!("{:>14}  {}", grouped(file.bytes), printable(&file.name)))?;
    }
    if !summary.spaces.is_empty() {
        output.line("")?;
        let heading = format!(
            "{:<20}  {:>12}  {:>12}  {:>12}  {:>14}",
            "space", "entries", "fresh", "damaged", "bytes"
        );
        output.line(style.paint(BOLD, &heading))?;
    }
    for space in &summary.spaces {
        let name =
            if space.name.is_empty() { "(dynamic keys)".into() } else { printable(&space.name) };
        output.line(format_args!(
            "{name:<20}  {:>12}  {:>12}  {:>12}  {:>14}",
            grouped(space.entries),
            grouped(space.fresh),
            grouped(space.damaged),
            grouped(space.bytes)
        ))?;
    }
    Ok(())
}
