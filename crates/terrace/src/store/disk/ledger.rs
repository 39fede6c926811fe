//! The **ledger in SQLite**: the authority of every process that shares a directory.
//!
//! The same rules as [`protocol`](crate::protocol), as queries: each step is a part
//! of one transaction of the writer, so that no process sees half of it.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, params};

use super::batch::Batch;
use super::budget::Cost;
use super::{DiskStore, large, signed, unsigned};
use crate::authority::{Answer, Append, Appended, Authority, Written};
use crate::clock::WallTime;
use crate::frame;
use crate::key::space_of;
use crate::ledger::{Line, Name, Names, Stamp};
use crate::protocol::{Follow, Lease, Leased, Snapshot};
use crate::store::{Put, Scope, Stored};

/// How many lines may pass between two looks at what can be forgotten.
const TRIM_EVERY: u64 = 1024;

impl Authority for DiskStore {
    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn snapshot(&self) -> Answer<'_, Snapshot> {
        let answer = self.read("read the ledger", |connection| {
            // One statement after another would let a line slip in between.
            let transaction = connection.unchecked_transaction()?;
            let (incarnation, floor) = origin(&transaction)?;
            let mut statement = transaction
                .prepare_cached("SELECT number, kind, name FROM mark ORDER BY number")?;
            let names = statement.query_map([], line)?.collect::<Result<_, _>>()?;
            Ok(Snapshot { incarnation, last: last(&transaction)?, floor, names, keys: Vec::new() })
        });
        Box::pin(std::future::ready(answer))
    }

    fn append<'a>(&'a self, names: &'a [Name]) -> Answer<'a, Appended> {
        let names = names.to_vec();
        let cost = Cost::lines(names.len());
        Box::pin(self.write("append to the ledger", cost, move |batch| append(batch, &names)))
    }

    fn most_in_one_step(&self) -> usize {
        let budget = &self.shared.budget;
        self.shared.inline_bytes.min(usize::try_from(budget.largest_change() / 2).unwrap_or(0))
    }

    fn write<'a>(&'a self, appends: &'a [Append]) -> Answer<'a, Written> {
        let cost = |put: &Put| large::cost_of_row(put, put.frame.len());
        let lines = Cost::lines(appends.iter().map(|append| append.names.len()).sum());
        let puts = appends.iter().flat_map(|append| &append.puts);
        // The lines have to be, the values not.
        let cost = Cost { must_be: false, ..puts.map(cost).fold(lines, Cost::and) };
        let (appends, largest) = (appends.to_vec(), self.shared.largest());
        Box::pin(self.write("write to the disk tier", cost, move |batch| {
            let (mut appended, mut stored) = (None, Vec::new());
            for each in &appends {
                let lines = append(batch, &each.names)?;
                for put in &each.puts {
                    stored.push(Some(match frame::stamped(&put.frame, lines.position) {
                        Ok(frame) => {
                            let put = Put { frame, stamp: lines.position, ..put.clone() };
                            large::put_row(batch, &put, largest, false)?
                        }
                        // Nobody could read it.
                        Err(_) => Stored::Refused,
                    }));
                }
                appended = Some(and(appended, lines));
            }
            let appended = appended.map_or_else(|| append(batch, &[]), Ok)?;
            Ok(Written { appended, stored })
        }))
    }

    fn append_if_unnamed<'a>(
        &'a self,
        ticket: Stamp,
        name: Name,
        names: Names<'a>,
    ) -> Answer<'a, Option<Appended>> {
        let (key, space, tags) =
            (names.key.to_owned(), names.space.to_owned(), names.tags.to_vec());
        Box::pin(self.write("append to the ledger", Cost::lines(1), move |batch| {
            let names = Names { key: &key, space: &space, tags: &tags };
            if !is_unnamed(batch.connection, ticket, &names)? {
                return Ok(None);
            }
            append(batch, std::slice::from_ref(&name)).map(Some)
        }))
    }

    fn follow(&self, position: Stamp) -> Answer<'_, Follow> {
        let answer = self.read("follow the ledger", |connection| {
            let transaction = connection.unchecked_transaction()?;
            let (incarnation, _) = origin(&transaction)?;
            let (first, last) = (first_kept(&transaction)?, last(&transaction)?);
            if position.incarnation != incarnation
                || position.number > last
                || position.number + 1 < first
            {
                return Ok(Follow::Broken);
            }
            if position.number == last {
                return Ok(Follow::Lines(Vec::new()));
            }
            let mut statement = transaction.prepare_cached(
                "SELECT number, kind, name FROM ledger WHERE number > ?1 ORDER BY number",
            )?;
            let lines = statement.query_map([signed(position.number)], line)?;
            lines.collect::<Result<_, _>>().map(Follow::Lines)
        });
        Box::pin(std::future::ready(answer))
    }

    fn lease<'a>(
        &'a self,
        key: &'a Arc<str>,
        now: WallTime,
        until: WallTime,
    ) -> Answer<'a, Leased> {
        let key = Arc::clone(key);
        Box::pin(self.write("ask for a lease", Cost::rows(1), move |batch| {
            let held = batch
                .connection
                .prepare_cached("SELECT until FROM lease WHERE name = ?1 AND until > ?2")?
                .query_row(params![&*key, signed(now.as_millis())], |row| row.get::<_, i64>(0))
                .optional()?;
            if let Some(held) = held {
                return Ok(Leased::Held(WallTime::from_millis(unsigned(held))));
            }
            let token: i64 = batch
                .connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO lease VALUES (?1, random(), ?2) RETURNING token",
                )?
                .query_row(params![&*key, signed(until.as_millis())], |row| row.get(0))?;
            Ok(Leased::Granted(Lease { token: token.cast_unsigned(), until }))
        }))
    }

    fn renew<'a>(&'a self, key: &'a str, token: u64, until: WallTime) -> Answer<'a, bool> {
        let key = key.to_owned();
        Box::pin(self.write("renew a lease", Cost::rows(1), move |batch| {
            let changed = batch
                .connection
                .prepare_cached("UPDATE lease SET until = ?3 WHERE name = ?1 AND token = ?2")?
                .execute(params![key, token.cast_signed(), signed(until.as_millis())])?;
            Ok(changed == 1)
        }))
    }

    fn release<'a>(&'a self, key: &'a str, token: u64) -> Answer<'a, ()> {
        let key = key.to_owned();
        Box::pin(self.write("release a lease", Cost::rows(1), move |batch| {
            batch
                .connection
                .prepare_cached("DELETE FROM lease WHERE name = ?1 AND token = ?2")?
                .execute(params![key, token.cast_signed()])?;
            Ok(())
        }))
    }

    fn count<'a>(
        &'a self,
        key: &'a Arc<str>,
        by: i64,
        now: WallTime,
        expires: Option<WallTime>,
    ) -> Answer<'a, i64> {
        let key = Arc::clone(key);
        Box::pin(self.write(
            "count",
            Cost { rows: 1, pages: 256, ..Cost::default() },
            move |batch| {
                let expires = expires.map_or(i64::MAX, |time| signed(time.as_millis()));
                let value = counter(batch.connection, &key, now)?;
                let sum = value.unwrap_or(0).saturating_add(by);
                let statement = if value.is_some() {
                    "UPDATE counter SET value = ?2 WHERE name = ?1 AND ?3 = ?3"
                } else {
                    "INSERT OR REPLACE INTO counter VALUES (?1, ?2, ?3)"
                };
                batch
                    .connection
                    .prepare_cached(statement)?
                    .execute(params![&*key, sum, expires])?;
                Ok(sum)
            },
        ))
    }

    fn counter<'a>(&'a self, key: &'a str, now: WallTime) -> Answer<'a, Option<i64>> {
        let answer = self.read("read a counter", |connection| counter(connection, key, now));
        Box::pin(std::future::ready(answer))
    }
}

/// Whether the ledger permits a frame to be stored.
pub(super) fn permits(connection: &Connection, put: &Put) -> rusqlite::Result<bool> {
    let name = put.key.name();
    let space = space_of(&name);
    is_unnamed(connection, put.stamp, &Names { key: &name, space, tags: &put.tags })
}

/// Whether no line after `ticket` names any of `names`: rules 3 and 5 of the protocol.
fn is_unnamed(connection: &Connection, ticket: Stamp, names: &Names<'_>) -> rusqlite::Result<bool> {
    let (incarnation, floor) = origin(connection)?;
    if ticket.incarnation != incarnation {
        return Ok(false);
    }
    let last = last(connection)?;
    if ticket.number >= last {
        return Ok(ticket.number == last);
    }
    if ticket.number < floor || ticket.number + 1 < first_kept(connection)? {
        return Ok(false);
    }
    let ticket = signed(ticket.number);
    // Through the lines since, which are few: an index of them would cost every line a page or two.
    let key_is_named = connection
        .prepare_cached(
            "SELECT 1 FROM ledger WHERE number > ?4 AND name = ?1 AND kind IN (?2, ?3)",
        )?
        .exists(params![names.key, Kind::KEY, Kind::SET, ticket])?;
    if key_is_named {
        return Ok(false);
    }
    let mut mark = connection
        .prepare_cached("SELECT 1 FROM mark WHERE kind = ?1 AND name = ?2 AND number > ?3")?;
    if mark.exists(params![Kind::EVERYTHING, "", ticket])?
        || mark.exists(params![Kind::SPACE, names.space, ticket])?
    {
        return Ok(false);
    }
    for tag in names.tags {
        if mark.exists(params![Kind::TAG, &**tag, ticket])? {
            return Ok(false);
        }
    }
    let prefix_is_named = connection
        .prepare_cached(
            "SELECT 1 FROM mark WHERE kind = ?1 AND number > ?2 AND substr(?3, 1, length(name)) = name",
        )?
        .exists(params![Kind::PREFIX, ticket, names.key])?;
    Ok(!prefix_is_named)
}

fn append(batch: &mut Batch<'_>, names: &[Name]) -> rusqlite::Result<Appended> {
    let mut number = last(batch.connection)?;
    let mut held = Vec::with_capacity(names.len());
    for name in names {
        number += 1;
        let (kind, text) = parts(name);
        batch
            .connection
            .prepare_cached("INSERT INTO ledger VALUES (?1, ?2, ?3)")?
            .execute(params![signed(number), kind, text])?;
        if !matches!(name, Name::Key(_) | Name::Set(_)) {
            batch
                .connection
                .prepare_cached("INSERT OR REPLACE INTO mark VALUES (?1, ?2, ?3)")?
                .execute(params![kind, text, signed(number)])?;
        }
        held.push(void(batch, name)?);
        if number.is_multiple_of(TRIM_EVERY) {
            trim(batch.connection, number, batch.ledger_lines)?;
        }
    }
    let (incarnation, _) = origin(batch.connection)?;
    Ok(Appended { position: Stamp { incarnation, number }, held, undropped: Vec::new() })
}

/// Lines, behind those before them.
fn and(before: Option<Appended>, lines: Appended) -> Appended {
    let held = before.into_iter().flat_map(|before| before.held).chain(lines.held).collect();
    Appended { held, ..lines }
}

/// Drops leases, values and counters that `name` speaks of; of the broader names
/// only the counters, because their values are judged when they are read.
fn void(batch: &mut Batch<'_>, name: &Name) -> rusqlite::Result<bool> {
    let counters = |condition: &str, text: &str| -> rusqlite::Result<bool> {
        batch
            .connection
            .prepare_cached(&format!("DELETE FROM counter WHERE {condition}"))?
            .execute([text])
            .map(|gone| gone > 0)
    };
    match name {
        Name::Key(key) | Name::Set(key) => {
            if matches!(name, Name::Key(_)) {
                batch
                    .connection
                    .prepare_cached("DELETE FROM lease WHERE name = ?1")?
                    .execute([&**key])?;
            }
            let counted = counters("name = ?1", key)?;
            Ok(batch.delete_named(key)? || counted)
        }
        Name::Prefix(prefix) => counters("substr(name, 1, length(?1)) = ?1", prefix),
        Name::Space(space) => counters("substr(name, 1, length(?1)) = ?1", &format!("{space}:")),
        Name::Everything => counters("?1 = ''", ""),
        Name::Tag(_) => Ok(false),
    }
}

/// Forgets the oldest lines, beyond those that are `kept` for those who follow and for tickets; of
/// the names of each kind, the oldest, with the floor.
fn trim(connection: &Connection, last: u64, kept: i64) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM ledger WHERE number <= ?1", [signed(last) - kept])?;
    for kind in [Kind::TAG, Kind::SPACE, Kind::PREFIX] {
        let oldest_to_go: Option<i64> = connection
            .query_row(
                "SELECT number FROM mark WHERE kind = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2",
                [kind, kept],
                |row| row.get(0),
            )
            .optional()?;
        if let Some(number) = oldest_to_go {
            connection
                .execute("DELETE FROM mark WHERE kind = ?1 AND number <= ?2", [kind, number])?;
            connection.execute("UPDATE origin SET floor = max(floor, ?1)", [number])?;
        }
    }
    Ok(())
}

fn counter(connection: &Connection, key: &str, now: WallTime) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT value FROM counter WHERE name = ?1 AND expires > ?2")?
        .query_row(params![key, signed(now.as_millis())], |row| row.get(0))
        .optional()
}

/// The incarnation and the floor.
fn origin(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    connection
        .prepare_cached("SELECT incarnation, floor FROM origin")?
        .query_row([], |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), unsigned(row.get(1)?))))
}

/// The number of the newest line.
fn last(connection: &Connection) -> rusqlite::Result<u64> {
    let last: Option<i64> = connection
        .prepare_cached("SELECT max(number) FROM ledger")?
        .query_row([], |row| row.get(0))?;
    Ok(last.map_or(0, unsigned))
}

/// The number of the oldest line that is kept; 1 if none was ever dropped.
fn first_kept(connection: &Connection) -> rusqlite::Result<u64> {
    let first: Option<i64> = connection
        .prepare_cached("SELECT min(number) FROM ledger")?
        .query_row([], |row| row.get(0))?;
    Ok(first.map_or(1, unsigned))
}

/// How the kinds of names are written in the table.
struct Kind;

impl Kind {
    const KEY: i64 = 1;
    const SET: i64 = 2;
    const PREFIX: i64 = 3;
    const TAG: i64 = 4;
    const SPACE: i64 = 5;
    const EVERYTHING: i64 = 6;
}

fn parts(name: &Name) -> (i64, &str) {
    match name {
        Name::Key(text) => (Kind::KEY, text),
        Name::Set(text) => (Kind::SET, text),
        Name::Prefix(text) => (Kind::PREFIX, text),
        Name::Tag(text) => (Kind::TAG, text),
        Name::Space(text) => (Kind::SPACE, text),
        Name::Everything => (Kind::EVERYTHING, ""),
    }
}

fn line(row: &rusqlite::Row<'_>) -> rusqlite::Result<Line> {
    let (kind, text): (i64, String) = (row.get(1)?, row.get(2)?);
    let text = Arc::<str>::from(text);
    let name = match kind {
        Kind::KEY => Name::Key(text),
        Kind::SET => Name::Set(text),
        Kind::PREFIX => Name::Prefix(text),
        Kind::TAG => Name::Tag(text),
        Kind::SPACE => Name::Space(text),
        // A kind that this build does not know may name anything.
        _ => Name::Everything,
    };
    Ok(Line { number: unsigned(row.get(0)?), name })
}
