//! The **ledger in Redis**: the authority of every process that shares a server.
//!
//! The same rules as [`protocol`](crate::protocol), as scripts. The ledger's parts are keys of one
//! slot: its lines a stream, in which every line names the one before; the last line of each tag
//! and space, of each prefix, and of each key that was named lately as sorted sets; and its origin,
//! which knows how large the others have to be, so that none of them can be lost unnoticed.
//!
//! A server that was put back to an older state (a failover that lost lines, a restart from an
//! old copy) is found out by whoever knows a later line, or a line that the stream does not continue.
//! The ledger begins anew then, under another incarnation.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use redis::{Cmd, Value};

use super::apart::Voided;
use super::reply::{array, array_of, fields, integer, integers, odd, text, unsigned};
use super::scripts::{Call, Script};
use super::{RedisStore, lives};
use crate::authority::{Answer, Append, Appended, Authority, Written};
use crate::clock::WallTime;
use crate::frame;
use crate::ledger::{Line, Name, Names, Stamp};
use crate::protocol::{Follow, Lease, Leased, Snapshot};
use crate::store::{Put, Scope, StoreError, StoreErrorKind, Stored};

/// Lines that one answer brings.
const LINES_AT_ONCE: usize = 1_000;

/// Keys that one answer brings which were named lately.
const NAMED_AT_ONCE: usize = 4_096;

/// Bytes of values that are written in one step with their lines: while the server does that, it does
/// nothing else.
const MOST_IN_ONE_STEP: usize = 16 << 10;

/// How long a question waits at the server for lines that come: silence is noticed after this.
const WAITS_MILLIS: u64 = 1000;

/// The keys of a ledger's parts.
#[derive(Debug)]
pub(super) struct LedgerKeys {
    all: [String; 6],
}

impl LedgerKeys {
    pub(super) fn new(prefix: &str) -> Self {
        let parts = ["origin", "lines", "marks", "prefixes", "named", "schemas"];
        Self { all: parts.map(|part| format!("{prefix}{{ledger}}:{part}")) }
    }

    fn lines(&self) -> &str {
        let [_, lines, ..] = &self.all;
        lines
    }

    fn named(&self) -> &str {
        let [.., named, _] = &self.all;
        named
    }
}

/// The newest lines that this process knows, each by the random text that the next one repeats.
#[derive(Debug, Default)]
pub(super) struct Known {
    tips: Mutex<Tips>,
}

#[derive(Debug, Default)]
struct Tips {
    incarnation: u64,
    by_number: BTreeMap<u64, String>,
}

/// Lines whose text is remembered.
const KNOWN_TIPS: usize = 1024;

impl Known {
    fn note(&self, incarnation: u64, number: u64, tip: String) {
        let mut tips = self.tips.lock();
        if tips.incarnation != incarnation {
            *tips = Tips { incarnation, by_number: BTreeMap::new() };
        }
        tips.by_number.insert(number, tip);
        if tips.by_number.len() > KNOWN_TIPS {
            tips.by_number.pop_first();
        }
    }

    /// The text of the line at a position, if it is known.
    fn tip(&self, position: Stamp) -> Option<String> {
        let tips = self.tips.lock();
        let is_same = tips.incarnation == position.incarnation;
        is_same.then(|| tips.by_number.get(&position.number).cloned()).flatten()
    }

    pub(super) fn newest(&self) -> (u64, u64, String) {
        let tips = self.tips.lock();
        let newest = tips.by_number.last_key_value();
        let (number, tip) = newest.map_or((0, String::new()), |(at, tip)| (*at, tip.clone()));
        (tips.incarnation, number, tip)
    }
}

/// What the script that appends says of a name: something was held that nothing takes the place of; or its
/// frame is not stored.
const HELD: i64 = 1;
const NOT_STORED: i64 = 2;

impl RedisStore {
    /// A call of a script about the ledger, with the arguments that all of them begin with.
    pub(super) fn ledger_call<'a>(&'a self, script: &'a Script, now: WallTime) -> Call<'a> {
        let shared = &self.shared;
        let mut call = script.on(&shared.ledger.all);
        call.arg(&shared.prefix).arg(self.told(now)).arg(hex(fastrand::u64(..)));
        call
    }

    /// The time of day for scripts: 0 stands for the server's own.
    pub(super) fn told(&self, now: WallTime) -> u64 {
        if self.shared.told_time { now.as_millis() } else { 0 }
    }

    pub(super) fn key_of(&self, name: &str, what: &str) -> String {
        format!("{}{{{name}}}:{what}", self.shared.prefix)
    }

    async fn append_lines(
        &self,
        condition: Option<(Stamp, Names<'_>)>,
        names: &[Name],
    ) -> Result<Option<Appended>, StoreError> {
        const DOING: &str = "append to the ledger";
        // A condition may not hold, and nothing is to be dropped then.
        let mut voided = Voided::none_of(names);
        if self.shared.is_apart && condition.is_none() {
            self.void_before(names, &mut voided).await;
        }
        let mut call = self.append_call(false, condition);
        call.arg(names.len());
        for name in names {
            let (kind, text) = parts(name);
            call.arg(kind).arg(text).arg("");
        }
        let answer = call.ask(&self.shared.link, DOING).await?;
        if answer == Value::Nil {
            return Ok(None);
        }
        let (position, held) = self.note_appended(answer, DOING)?;
        if !self.shared.is_apart {
            return Ok(Some(all_dropped(position, &integers(held, DOING)?)));
        }
        let schemas = array_of(held, names.len(), DOING)?.into_iter();
        let schemas: Vec<_> = schemas.map(|texts| text(texts, DOING)).collect::<Result<_, _>>()?;
        for (name, schemas) in names.iter().zip(&schemas) {
            if let Name::Key(key) | Name::Set(key) = name {
                self.shared.apart.note_schemas(key, schemas);
            }
        }
        let first = position.number + 1 - names.len() as u64;
        let line = |at: usize| Stamp { number: first + at as u64, ..position };
        let schemas = |at: usize, _: &str| schemas.get(at).cloned().unwrap_or_default();
        self.void(names, &mut voided, line, schemas).await;
        self.shared.apart.note_sent(names, self.shared.clock.elapsed());
        let Voided { held, undropped } = voided;
        Ok(Some(Appended { position, held, undropped: undropped.into_iter().collect() }))
    }

    /// A call that appends lines, for which the arguments of the lines are missing.
    fn append_call(&self, has_frames: bool, condition: Option<(Stamp, Names<'_>)>) -> Call<'_> {
        let mut call = self.ledger_call(&self.shared.scripts.append, self.shared.clock.wall());
        let (incarnation, number, tip) = self.shared.known.newest();
        call.arg(hex(incarnation)).arg(number).arg(tip);
        call.arg(hex(fastrand::u64(..))).arg(u8::from(self.shared.is_apart));
        call.arg(u8::from(has_frames));
        match condition {
            None => {
                call.arg("");
            }
            Some((ticket, names)) => {
                call.arg(hex(ticket.incarnation)).arg(ticket.number);
                call.arg(names.key).arg(names.tags.len());
                for tag in names.tags {
                    call.arg(&**tag);
                }
            }
        }
        call
    }

    /// The position of the last line that was appended, which is noted, and what the server says of the
    /// names.
    fn note_appended(
        &self,
        answer: Value,
        doing: &'static str,
    ) -> Result<(Stamp, Value), StoreError> {
        let [incarnation, number, tip, held] = fields(answer, doing)?;
        let position =
            Stamp { incarnation: unhex(incarnation, doing)?, number: unsigned(number, doing)? };
        self.shared.known.note(position.incarnation, position.number, text(tip, doing)?);
        Ok((position, held))
    }

    async fn write_all(&self, appends: &[Append]) -> Result<Written, StoreError> {
        const DOING: &str = "write to the Redis tier";
        let now = self.shared.clock.wall();
        let all = || appends.iter().flat_map(|append| &append.puts);
        if all().any(|put| put.frame.len() > self.shared.max_value_bytes) {
            // What becomes of it is found out without the lines.
            return Err(StoreError::new(StoreErrorKind::Full, DOING));
        }
        let frames: Vec<_> = all().map(|put| frame::to_be_stamped(&put.frame).ok()).collect();
        let mut call = self.append_call(true, None);
        let mut left = &*frames;
        for append in appends {
            let (own, others) = left.split_at(append.puts.len());
            left = others;
            call.arg(append.names.len());
            for name in &append.names {
                let (kind, text) = parts(name);
                call.arg(kind).arg(text);
                // The last of a name is the one that counts.
                let frames = append.puts.iter().zip(own).rev();
                match frames
                    .filter(|(put, _)| is_of(put, name))
                    .find_map(|(put, frame)| Some((put, frame.as_ref()?)))
                {
                    Some((put, frame)) => {
                        let (_, schema) = put.key.name_and_schema();
                        call.arg(schema).arg(put.tags.len());
                        for tag in &*put.tags {
                            call.arg(&**tag);
                        }
                        call.arg(lives(now, put.expires)).arg(&**frame);
                    }
                    None => {
                        call.arg("");
                    }
                }
            }
        }
        let answer = call.ask(&self.shared.link, DOING).await?;
        let (position, held) = self.note_appended(answer, DOING)?;
        let answers = integers(held, DOING)?;
        let (mut stored, mut left, mut answers_left) = (Vec::new(), &*frames, &*answers);
        for append in appends {
            let (own, others) = left.split_at(append.puts.len());
            let (lines, later) = answers_left
                .split_at_checked(append.names.len())
                .ok_or_else(|| odd(DOING, "a list of another length"))?;
            (left, answers_left) = (others, later);
            for (put, frame) in append.puts.iter().zip(own) {
                let mut lines = append.names.iter().zip(lines);
                let is_left = lines.any(|(name, answer)| *answer == NOT_STORED && is_of(put, name));
                stored.push(match frame {
                    // Nobody could read what is no frame.
                    None => Some(Stored::Refused),
                    Some(_) => (!is_left).then_some(Stored::Yes),
                });
            }
        }
        Ok(Written { appended: all_dropped(position, &answers), stored })
    }

    async fn follow_from(&self, position: Stamp) -> Result<Follow, StoreError> {
        const DOING: &str = "follow the ledger";
        let mut call = self.ledger_call(&self.shared.scripts.follow, self.shared.clock.wall());
        call.arg(position.number).arg(LINES_AT_ONCE);
        let answer = call.ask(&self.shared.link, DOING).await?;
        let [incarnation, last, tip, kept, lines] = fields(answer, DOING)?;
        let (incarnation, last) = (unhex(incarnation, DOING)?, unsigned(last, DOING)?);
        if incarnation != position.incarnation {
            return Ok(Follow::Broken);
        }
        let known = self.shared.known.tip(position);
        if position.number > last {
            if known.is_some() {
                self.distrust(incarnation).await?;
            }
            return Ok(Follow::Broken);
        }
        if last - position.number > unsigned(kept, DOING)? {
            return Ok(Follow::Broken);
        }
        let lines = read_lines(lines, DOING)?;
        let tip = text(tip, DOING)?;
        // Lines that were trimmed away are a gap, and say nothing of the chain.
        let after = match lines.first() {
            Some(line) if line.line.number == position.number + 1 => Some(&line.after),
            Some(_) => None,
            None => Some(&tip),
        };
        if known.as_ref().zip(after).is_some_and(|(known, after)| known != after) {
            self.distrust(incarnation).await?;
            return Ok(Follow::Broken);
        }
        let all = lines.len();
        let lines = self.chained(position, known, lines);
        Ok(if lines.len() == all { Follow::Lines(lines) } else { Follow::Broken })
    }

    /// The last line about each key that was named lately, in order.
    async fn named_lately(&self) -> Result<Vec<(Arc<str>, u64)>, StoreError> {
        const DOING: &str = "read which keys were named";
        let (mut named, mut after) = (Vec::new(), 0);
        loop {
            let mut range = Cmd::new();
            range.arg("ZRANGEBYSCORE").arg(self.shared.ledger.named()).arg(format!("({after}"));
            range.arg("+inf").arg("WITHSCORES").arg("LIMIT").arg(0).arg(NAMED_AT_ONCE);
            let answer = self.shared.link.ask(&range, DOING).await?;
            let more = scored(answer, DOING, |member| Some(member.into()))?;
            let Some(&(_, last)) = more.last() else { return Ok(named) };
            after = last;
            named.extend(more);
        }
    }

    /// Waits until there are lines after `position`, a second at most.
    async fn listen_from(&self, position: Stamp) -> Result<Follow, StoreError> {
        const DOING: &str = "listen to the ledger";
        let mut read = Cmd::new();
        read.arg("XREAD").arg("COUNT").arg(LINES_AT_ONCE).arg("BLOCK").arg(WAITS_MILLIS);
        read.arg("STREAMS").arg(self.shared.ledger.lines()).arg(format!("{}-0", position.number));
        let answer = self.shared.listening.ask(&read, DOING).await?;
        if answer == Value::Nil {
            // Silence may be all there is to hear, or a ledger that is not there any more.
            return self.follow_from(position).await;
        }
        let lines = match answer {
            // The newer protocol's answer.
            Value::Map(mut streams) => streams.pop().map_or(Value::Nil, |(_, lines)| lines),
            answer => {
                let [stream] = fields(answer, DOING)?;
                let [_, lines] = fields(stream, DOING)?;
                lines
            }
        };
        let known = self.shared.known.tip(position);
        let lines = self.chained(position, known, read_lines(lines, DOING)?);
        // Others may write there, too. What is ours comes to those who ask.
        Ok(if lines.is_empty() { Follow::Broken } else { Follow::Lines(lines) })
    }

    /// The lines for as long as each follows on the one before.
    fn chained(&self, position: Stamp, known: Option<String>, lines: Vec<Chained>) -> Vec<Line> {
        let mut before = known;
        let continues = |(line, number): &(Chained, u64)| {
            let tip = before.replace(line.tip.clone());
            line.line.number == *number && tip.is_none_or(|tip| tip == line.after)
        };
        let ours: Vec<_> =
            lines.into_iter().zip(position.number + 1..).take_while(continues).collect();
        if let Some((last, number)) = ours.last() {
            self.shared.known.note(position.incarnation, *number, last.tip.clone());
        }
        ours.into_iter().map(|(line, _)| line.line).collect()
    }

    /// Has the ledger begin anew if it is still the one that cannot be trusted.
    async fn distrust(&self, incarnation: u64) -> Result<(), StoreError> {
        tracing::warn!("the ledger was put back to an older state: it begins anew");
        let mut call = self.ledger_call(&self.shared.scripts.distrust, self.shared.clock.wall());
        call.arg(hex(incarnation)).ask(&self.shared.link, "begin the ledger anew").await.map(drop)
    }

    async fn prolong(
        &self,
        key: &str,
        token: u64,
        millis: u64,
        now: u64,
    ) -> Result<bool, StoreError> {
        const DOING: &str = "renew a lease";
        let mut call = self.shared.scripts.renew.on(&[self.key_of(key, "lease")]);
        call.arg(now).arg(millis).arg(hex(token));
        Ok(integer(call.ask(&self.shared.link, DOING).await?, DOING)? == 1)
    }

    async fn add(
        &self,
        key: &str,
        by: Option<i64>,
        now: WallTime,
        expires: Option<WallTime>,
    ) -> Result<Option<i64>, StoreError> {
        const DOING: &str = "count";
        // What ends the moment it begins is one millisecond long.
        let lives = expires.map_or(0, |expires| since(now, expires).max(1));
        let answer = if self.shared.is_apart {
            self.count_apart(key, by, now, lives).await?
        } else {
            let mut call = self.ledger_call(&self.shared.scripts.count, now);
            call.arg(key).arg(by.map(|by| by.to_string()).unwrap_or_default()).arg(lives);
            call.ask(&self.shared.link, DOING).await?
        };
        match answer {
            Value::Nil => Ok(None),
            value => integer(value, DOING).map(Some),
        }
    }
}

impl Authority for RedisStore {
    fn scope(&self) -> Scope {
        Scope::Fleet
    }

    fn snapshot(&self) -> Answer<'_, Snapshot> {
        const DOING: &str = "read the ledger";
        Box::pin(async {
            let call = self.ledger_call(&self.shared.scripts.snapshot, self.shared.clock.wall());
            let answer = call.ask(&self.shared.link, DOING).await?;
            let [incarnation, last, tip, floor, marks, prefixes] = fields(answer, DOING)?;
            let (incarnation, last) = (unhex(incarnation, DOING)?, unsigned(last, DOING)?);
            self.shared.known.note(incarnation, last, text(tip, DOING)?);
            self.compare_clocks(self.shared.clock.wall()).await?;
            let mut names = scored(marks, DOING, |member| {
                let (kind, text) = member.split_at_checked(1)?;
                Some(name(kind, text))
            })?;
            names.extend(scored(prefixes, DOING, |member| Some(Name::Prefix(member.into())))?);
            let lines = names.into_iter().map(|(name, number)| Line { number, name });
            let mut names: Vec<_> = lines.collect();
            names.sort_by_key(|line| line.number);
            let keys = if self.shared.is_apart { self.named_lately().await? } else { Vec::new() };
            Ok(Snapshot { incarnation, last, floor: unsigned(floor, DOING)?, names, keys })
        })
    }

    fn append<'a>(&'a self, names: &'a [Name]) -> Answer<'a, Appended> {
        Box::pin(async {
            let appended = self.append_lines(None, names).await?;
            appended.ok_or_else(|| odd("append to the ledger", "nothing"))
        })
    }

    fn most_in_one_step(&self) -> usize {
        // On a cluster values lie on other servers than the ledger.
        if self.shared.is_apart { 0 } else { MOST_IN_ONE_STEP.min(self.shared.max_value_bytes / 2) }
    }

    fn write<'a>(&'a self, appends: &'a [Append]) -> Answer<'a, Written> {
        Box::pin(self.write_all(appends))
    }

    fn drop_again<'a>(&'a self, names: &'a [Name]) -> Answer<'a, Vec<usize>> {
        Box::pin(async {
            Ok(if self.shared.is_apart { self.void_again(names).await } else { Vec::new() })
        })
    }

    fn append_if_unnamed<'a>(
        &'a self,
        ticket: Stamp,
        name: Name,
        names: Names<'a>,
    ) -> Answer<'a, Option<Appended>> {
        Box::pin(async move { self.append_lines(Some((ticket, names)), &[name]).await })
    }

    fn follow(&self, position: Stamp) -> Answer<'_, Follow> {
        Box::pin(async move {
            let mut lines = Vec::new();
            let mut here = position;
            loop {
                // However many there are, the server answers others in between.
                match self.follow_from(here).await? {
                    Follow::Lines(more) => {
                        let is_all = more.len() < LINES_AT_ONCE;
                        if let Some(last) = more.last() {
                            here.number = last.number;
                        }
                        lines.extend(more);
                        // Others may write all the time: what comes meanwhile is not waited for.
                        if is_all {
                            return Ok(Follow::Lines(lines));
                        }
                    }
                    Follow::Broken => return Ok(Follow::Broken),
                }
            }
        })
    }

    fn listen(&self, position: Stamp) -> Option<Answer<'_, Follow>> {
        Some(Box::pin(self.listen_from(position)))
    }

    fn lease<'a>(
        &'a self,
        key: &'a Arc<str>,
        now: WallTime,
        until: WallTime,
    ) -> Answer<'a, Leased> {
        const DOING: &str = "ask for a lease";
        Box::pin(async move {
            let token = fastrand::u64(..);
            let mut call = self.shared.scripts.lease.on(&[self.key_of(key, "lease")]);
            call.arg(self.told(now)).arg(since(now, until)).arg(hex(token));
            let answer = integers(call.ask(&self.shared.link, DOING).await?, DOING)?;
            let [is_granted, millis] = *answer else {
                return Err(odd(DOING, "a list of another length"));
            };
            // By the clock of whoever asks.
            let until = WallTime::from_millis(now.as_millis().saturating_add_signed(millis));
            Ok(if is_granted == 1 {
                Leased::Granted(Lease { token, until })
            } else {
                Leased::Held(until)
            })
        })
    }

    fn renew<'a>(&'a self, key: &'a str, token: u64, until: WallTime) -> Answer<'a, bool> {
        // The caller has counted from its own clock.
        let now = self.shared.clock.wall();
        let (told, millis) =
            if self.shared.told_time { (1, until.as_millis() - 1) } else { (0, since(now, until)) };
        Box::pin(self.prolong(key, token, millis.max(1), told))
    }

    fn release<'a>(&'a self, key: &'a str, token: u64) -> Answer<'a, ()> {
        Box::pin(async move { self.prolong(key, token, 0, 0).await.map(drop) })
    }

    fn count<'a>(
        &'a self,
        key: &'a Arc<str>,
        by: i64,
        now: WallTime,
        expires: Option<WallTime>,
    ) -> Answer<'a, i64> {
        Box::pin(async move {
            self.add(key, Some(by), now, expires).await?.ok_or_else(|| odd("count", "nothing"))
        })
    }

    fn counter<'a>(&'a self, key: &'a str, now: WallTime) -> Answer<'a, Option<i64>> {
        Box::pin(self.add(key, None, now, None))
    }
}

/// A line and what holds it in the chain.
struct Chained {
    line: Line,
    after: String,
    tip: String,
}

fn read_lines(lines: Value, doing: &'static str) -> Result<Vec<Chained>, StoreError> {
    array(lines, doing)?.into_iter().map(|entry| read_line(entry, doing)).collect()
}

fn read_line(entry: Value, doing: &'static str) -> Result<Chained, StoreError> {
    let [id, pairs] = fields(entry, doing)?;
    let id = text(id, doing)?;
    let number = id.split('-').next().and_then(|number| number.parse().ok());
    let number = number.ok_or_else(|| odd(doing, "a line without a number"))?;
    let (mut kind, mut named, mut after, mut tip) = Default::default();
    let mut pairs = array(pairs, doing)?.into_iter();
    while let (Some(field), Some(value)) = (pairs.next(), pairs.next()) {
        let value = text(value, doing)?;
        match text(field, doing)?.as_str() {
            "kind" => kind = value,
            "name" => named = value,
            "after" => after = value,
            "tip" => tip = value,
            // What later builds say beside it.
            _ => {}
        }
    }
    Ok(Chained { line: Line { number, name: name(&kind, &named) }, after, tip })
}

/// What each member says, and its score.
fn scored<T>(
    members: Value,
    doing: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Vec<(T, u64)>, StoreError> {
    // Members and scores in turn, or in pairs in the newer protocol.
    let members = array(members, doing)?.into_iter().flat_map(|value| match value {
        Value::Array(pair) => pair,
        value => vec![value],
    });
    let mut members = members.collect::<Vec<_>>().into_iter();
    let mut lines = Vec::with_capacity(members.len() / 2);
    while let (Some(member), Some(score)) = (members.next(), members.next()) {
        let member = text(member, doing)?;
        let member = read(&member).ok_or_else(|| odd(doing, "a mark without a kind"))?;
        lines.push((member, unsigned(score, doing)?));
    }
    Ok(lines)
}

/// Whether a frame lies under the key that a line names.
fn is_of(put: &Put, name: &Name) -> bool {
    let ([space, key], _) = put.key.name_and_schema();
    let (Name::Key(text) | Name::Set(text)) = name else { return false };
    text.strip_prefix(space).and_then(|rest| rest.strip_prefix(':')) == Some(key)
}

/// What appending did where each value is dropped in the same step.
fn all_dropped(position: Stamp, held: &[i64]) -> Appended {
    let held = held.iter().map(|held| *held == HELD).collect();
    Appended { position, held, undropped: Vec::new() }
}

/// How the kinds of names are written.
fn parts(name: &Name) -> (&'static str, &str) {
    match name {
        Name::Key(text) => ("k", text),
        Name::Set(text) => ("w", text),
        Name::Prefix(text) => ("p", text),
        Name::Tag(text) => ("t", text),
        Name::Space(text) => ("s", text),
        Name::Everything => ("e", ""),
    }
}

fn name(kind: &str, text: &str) -> Name {
    match kind {
        "k" => Name::Key(text.into()),
        "w" => Name::Set(text.into()),
        "p" => Name::Prefix(text.into()),
        "t" => Name::Tag(text.into()),
        "s" => Name::Space(text.into()),
        // A kind that this build does not know may name anything.
        _ => Name::Everything,
    }
}

fn since(now: WallTime, until: WallTime) -> u64 {
    until.as_millis().saturating_sub(now.as_millis())
}

/// Numbers of scripts have 53 bits: what needs all 64 is a text.
pub(super) fn hex(number: u64) -> String {
    format!("{number:016x}")
}

fn unhex(value: Value, doing: &'static str) -> Result<u64, StoreError> {
    u64::from_str_radix(&text(value, doing)?, 16).map_err(|_| odd(doing, "no number"))
}
