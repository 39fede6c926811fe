//! `terrace inspect`: what a cache directory holds, entry by entry.

use std::ops::ControlFlow;
use std::sync::Arc;

use serde::Serialize;
use terrace::key::{KEY_FORMAT, StoredKey};

use crate::args::Inspect;
use crate::directory::{Directory, Listed, State};
use crate::failure::Failure;
use crate::output::{GREEN, Output, RED, YELLOW, grouped, printable, time};

pub(crate) async fn run(args: &Inspect, output: &mut Output) -> Result<(), Failure> {
    let directory = Directory::open(&args.place.dir).await?;
    let listed = list(&directory, args, output).await;
    directory.close().await;
    listed
}

async fn list(directory: &Directory, args: &Inspect, output: &mut Output) -> Result<(), Failure> {
    let mut left = args.limit.unwrap_or(u64::MAX);
    if !output.is_json() {
        output.line(format_args!(
            "{:<11}  {:<20}  {:<20}  {:>11}  {:<10}  {:<12}  key",
            "state", "created", "expires", "size", "version", "space"
        ))?;
    }
    if left == 0 {
        return Ok(());
    }
    let list = |listed: Listed| {
        let is_wanted = args.space.as_ref().is_none_or(|space| *space == listed.space)
            && listed.key.starts_with(&args.prefix);
        if is_wanted {
            left -= 1;
            let row = Row::from(listed);
            if output.is_json() { output.json(&row)? } else { text(&row, output)? }
        }
        Ok(if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    directory.each(list).await
}

/// One line for people. Columns that do not fit push the rest to the right: the key comes last.
fn text(row: &Row, output: &mut Output) -> Result<(), Failure> {
    let colour = match row.state {
        State::Fresh => GREEN,
        State::Damaged => RED,
        _ => YELLOW,
    };
    let state = output.style().paint(colour, &format!("{:<11}", row.state.name()));
    let created = row.created.as_deref().unwrap_or("-");
    let expires = match (&row.damage, &row.expires) {
        (Some(_), _) => "-",
        (None, Some(expires)) => expires,
        (None, None) => "never",
    };
    let size = row.size.map_or_else(|| "-".to_owned(), |size| grouped(size as u64));
    let version = printable(row.version.as_deref().unwrap_or("-"));
    let space = if row.space.is_empty() { "-".into() } else { printable(&row.space) };
    let key = printable(&row.key);
    output.line(format_args!(
        "{state}  {created:<20}  {expires:<20}  {size:>11}  {version:<10}  {space:<12}  {key}{}",
        row.damage.as_ref().map_or_else(String::new, |damage| format!("  ({damage})"))
    ))
}

/// What is told about an entry. A damaged one has nothing but its key.
#[derive(Debug, Serialize)]
struct Row {
    state: State,
    space: String,
    key: String,
    created: Option<String>,
    /// `None`: never.
    expires: Option<String>,
    stale_until: Option<String>,
    /// Bytes of the value, unpacked.
    size: Option<usize>,
    /// Bytes of the whole entry as it is stored.
    stored_bytes: usize,
    /// The source's own version of the value.
    version: Option<String>,
    tags: Vec<String>,
    /// The ledger's position before the value was made.
    stamp: Option<u64>,
    damage: Option<String>,
}

impl From<Listed> for Row {
    fn from(listed: Listed) -> Self {
        let Listed { space, key, state, stored_bytes, frame } = listed;
        let (frame, damage) = match frame {
            Ok(frame) => (Some(frame), None),
            Err(damage) => (None, Some(damage.to_string())),
        };
        let header = frame.as_ref().map(|frame| &frame.header);
        Self {
            created: header.map(|header| time(header.created)),
            expires: header.and_then(|header| header.expires).map(time),
            stale_until: header.and_then(|header| header.stale_until).map(time),
            size: frame.as_ref().map(|frame| frame.size),
            version: header.and_then(|header| header.version.as_deref().map(str::to_owned)),
            tags: header.map_or_else(Vec::new, |header| header.tags.iter().map(tag).collect()),
            stamp: header.map(|header| header.stamp.number),
            state,
            space,
            key,
            stored_bytes,
            damage,
        }
    }
}

/// A tag as its user knows it, from what the ledger calls it: `tenant:tag`, each escaped as keys
/// are.
fn tag(name: &Arc<str>) -> String {
    let escaped = name.split_once(':').map_or(&**name, |(_, tag)| tag);
    StoredKey::parse(&format!("{KEY_FORMAT}:::0000000000000000:{escaped}"))
        .and_then(|key| String::from_utf8(key.key()?).ok())
        .unwrap_or_else(|| escaped.to_owned())
}
