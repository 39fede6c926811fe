//! The **ledger** as one transaction finds and leaves it: what `ledger.lua` is to scripts.
//!
//! The steps of a transaction see what those before them did, though nothing of it is written yet.

use std::collections::{HashMap, HashSet};

use redis::{Cmd, Value};

use super::counter::Counter;
use super::view::{View, items, key, number, scored, text};
use crate::key::space_of;
use crate::store::StoreError;

/// Lines that are kept for those who follow and for tickets; tags, spaces and prefixes likewise: the
/// `KEPT` of `ledger.lua`.
pub(super) const KEPT: u64 = 65_536;

/// Lines that are written anew when others have to go: the `LATEST` of `ledger.lua`.
const LATEST: u64 = 1000;

pub(in crate::store::redis) struct Ledger<'a> {
    pub(super) view: &'a mut View,
    keys: Keys<'a>,
    pub(super) incarnation: String,
    pub(super) last: u64,
    pub(super) floor: u64,
    pub(super) tip: String,
    /// Nothing was read yet: everything that may have to be known is asked for.
    is_guess: bool,
    has_begun: bool,
    has_lines: bool,
    has_schemas: bool,
    /// What steps of this transaction have written.
    scores: HashMap<(Part, String), u64>,
    schemas: HashMap<String, String>,
    counters: HashMap<String, Option<Counter>>,
}

/// What all scripts about the ledger are told first.
pub(in crate::store::redis) struct Head<'a> {
    pub(super) prefix: &'a str,
    pub(super) now: u64,
    /// An incarnation for a ledger that begins.
    pub(super) fresh: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Marks,
    Prefixes,
    Named,
}

/// The keys of a ledger's parts.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    origin: &'a str,
    pub(super) lines: &'a str,
    pub(super) marks: &'a str,
    pub(super) prefixes: &'a str,
    named: &'a str,
    schemas: &'a str,
}

impl<'a> Keys<'a> {
    pub(super) fn of(keys: &'a [String]) -> Result<Self, StoreError> {
        Ok(Self {
            origin: key(keys, 0)?,
            lines: key(keys, 1)?,
            marks: key(keys, 2)?,
            prefixes: key(keys, 3)?,
            named: key(keys, 4)?,
            schemas: key(keys, 5)?,
        })
    }

    pub(super) fn all(self) -> [&'a str; 6] {
        [self.origin, self.lines, self.marks, self.prefixes, self.named, self.schemas]
    }

    fn of_part(self, part: Part) -> &'a str {
        match part {
            Part::Marks => self.marks,
            Part::Prefixes => self.prefixes,
            Part::Named => self.named,
        }
    }

    /// What is read first and last. Whoever changes the ledger changes its origin: what was read
    /// between two equal answers was there at one moment.
    pub(super) fn origin(self) -> Cmd {
        let fields = ["incarnation", "last", "floor", "tip", "sizes"];
        redis::cmd("HMGET").arg(self.origin).arg(&fields).take()
    }

    /// How large its parts are. Read after everything else: a part that has its size now had it when
    /// it was asked, too.
    pub(super) fn sizes(self) -> [Cmd; 5] {
        [
            self.size(Part::Marks),
            self.size(Part::Prefixes),
            self.size(Part::Named),
            redis::cmd("HLEN").arg(self.schemas).take(),
            redis::cmd("XREVRANGE").arg(self.lines).arg(&["+", "-", "COUNT", "1"]).take(),
        ]
    }

    fn size(self, part: Part) -> Cmd {
        redis::cmd("ZCARD").arg(self.of_part(part)).take()
    }
}

impl<'a> Ledger<'a> {
    /// The ledger as it was read; one that is not whole begins anew.
    pub(super) fn open(view: &'a mut View, keys: Keys<'a>, head: &Head<'_>) -> Self {
        let is_guess = !view.knows(&keys.origin());
        let mut ledger = Self {
            view,
            keys,
            incarnation: String::new(),
            last: 0,
            floor: 0,
            tip: String::new(),
            is_guess,
            has_begun: false,
            has_lines: false,
            has_schemas: false,
            scores: HashMap::new(),
            schemas: HashMap::new(),
            counters: HashMap::new(),
        };
        if is_guess || ledger.read() {
            return ledger;
        }
        ledger.begin(head.fresh);
        ledger
    }

    /// `false` if a part of it is missing.
    fn read(&mut self) -> bool {
        let origin = self.view.known(&self.keys.origin());
        let [incarnation, last, floor, tip, sizes] = items(&origin) else { return false };
        let (Some(incarnation), Some(last), Some(sizes)) =
            (text(incarnation), number(last), text(sizes))
        else {
            return false;
        };
        self.incarnation = incarnation.to_owned();
        self.last = last;
        self.floor = number(floor).unwrap_or(0);
        self.tip = text(tip).unwrap_or_default().to_owned();
        let [marks, prefixes, named, schemas, newest] =
            self.keys.sizes().map(|question| self.view.known(&question));
        let [marks, prefixes, named, schemas] =
            [marks, prefixes, named, schemas].map(|size| number(&size).unwrap_or(0));
        sizes == format!("{marks} {prefixes} {named} {schemas}") && self.ends_with_ours(&newest)
    }

    /// Whether the stream ends with the newest line of ours; what others have added behind it goes.
    /// See `ends_with_ours` in `ledger.lua`.
    fn ends_with_ours(&mut self, newest: &Value) -> bool {
        let ours = format!("{}-0", self.last);
        if items(newest).first().map_or(Some("0-0"), line_id) == Some(&*ours) {
            return true;
        }
        let mut question = redis::cmd("XREVRANGE");
        question.arg(self.keys.lines).arg(&ours).arg(&["-", "COUNT"]).arg(LATEST);
        let lines = self.view.look(question);
        if self.last > 0 && items(&lines).first().and_then(line_id) != Some(&*ours) {
            return false;
        }
        self.view.write(redis::cmd("UNLINK").arg(self.keys.lines).take());
        for line in items(&lines).iter().rev() {
            let [Value::BulkString(id), pairs] = items(line) else { continue };
            let mut again = redis::cmd("XADD");
            again.arg(self.keys.lines).arg(id);
            for word in items(pairs) {
                if let Value::BulkString(word) = word {
                    again.arg(word);
                }
            }
            self.view.write(again);
        }
        true
    }

    /// What is left cannot be trusted: a ledger begins, and all that is older is unknown.
    pub(super) fn begin(&mut self, fresh: &str) {
        let mut unlink = redis::cmd("UNLINK");
        for key in self.keys.all() {
            unlink.arg(key);
        }
        self.view.write(unlink);
        let mut origin = redis::cmd("HSET");
        origin.arg(self.keys.origin).arg(&["incarnation", fresh, "last", "0", "floor", "0"]);
        self.view.write(origin.arg(&["tip", "", "sizes", "0 0 0 0"]).take());
        self.incarnation = fresh.to_owned();
        (self.last, self.floor) = (0, 0);
        self.tip.clear();
        (self.has_begun, self.has_lines, self.has_schemas) = (true, false, false);
        self.scores.clear();
        self.schemas.clear();
    }

    /// A line more, and what it says by name.
    pub(super) fn append(&mut self, kind: &str, name: &str, tip: String) {
        self.last += 1;
        self.has_lines = true;
        let mut line = redis::cmd("XADD");
        line.arg(self.keys.lines).arg(&["MAXLEN", "~"]).arg(KEPT).arg(format!("{}-0", self.last));
        line.arg(&["kind", kind, "name", name, "after", &self.tip, "tip", &tip]);
        self.view.write(line);
        self.tip = tip;
        match kind {
            "k" | "w" => self.mark(Part::Named, name.to_owned()),
            "p" => self.mark(Part::Prefixes, name.to_owned()),
            kind => self.mark(Part::Marks, format!("{kind}{name}")),
        }
    }

    fn mark(&mut self, part: Part, member: String) {
        let key = self.keys.of_part(part);
        self.view.write(redis::cmd("ZADD").arg(key).arg(self.last).arg(&member).take());
        self.scores.insert((part, member), self.last);
    }

    /// What the server has, before this transaction.
    fn score_before(&mut self, part: Part, member: &str) -> Option<u64> {
        if self.has_begun {
            return None;
        }
        number(&self.view.ask("ZSCORE", self.keys.of_part(part), member))
    }

    pub(super) fn score(&mut self, part: Part, member: &str) -> Option<u64> {
        let written = self.scores.get(&(part, member.to_owned())).copied();
        let before = self.score_before(part, member);
        written.or(before)
    }

    fn later(&mut self, part: Part, member: &str, number: u64) -> bool {
        self.score(part, member).is_some_and(|score| score > number)
    }

    /// Prefixes of a name that lines after `number` name, by the last of these lines.
    pub(super) fn prefix_named(&mut self, number: u64, name: &str) -> Option<u64> {
        let written = self.scores.iter().filter_map(|((part, prefix), score)| {
            let is_one = *part == Part::Prefixes && *score > number && name.starts_with(&**prefix);
            is_one.then_some(*score)
        });
        let written = written.max();
        if self.has_begun {
            return written;
        }
        let range = (format!("({number}"), "+inf", "WITHSCORES");
        let before = self.view.ask("ZRANGEBYSCORE", self.keys.prefixes, range);
        let before = scored(&before).filter(|(prefix, _)| name.starts_with(prefix));
        before.map(|(_, score)| score).max().max(written)
    }

    /// Whether a line after `number` names everything, the space, or a prefix of `name`. Everything
    /// that may decide it is asked for at once.
    fn is_broadly_named(&mut self, number: u64, name: &str) -> bool {
        let space = format!("s{}", space_of(name));
        self.later(Part::Marks, "e", number)
            | self.later(Part::Marks, &space, number)
            | self.prefix_named(number, name).is_some()
    }

    /// Whether no line after the ticket names the key, its space, a tag or a prefix: rules 3 and 5 of
    /// the protocol.
    pub(super) fn permits(
        &mut self,
        incarnation: &str,
        number: u64,
        name: &str,
        tags: &[&str],
    ) -> bool {
        if !self.is_guess {
            if incarnation != self.incarnation || number > self.last {
                return false;
            }
            if number == self.last {
                return true;
            }
            if number < self.floor || number < self.last.saturating_sub(KEPT) {
                return false;
            }
        }
        let mut is_named =
            self.later(Part::Named, name, number) | self.is_broadly_named(number, name);
        for tag in tags {
            is_named |= self.later(Part::Marks, &format!("t{tag}"), number);
        }
        !is_named
    }

    /// Two builds that disagree about a type share the name of a value.
    pub(super) fn schemas_of(&mut self, name: &str) -> String {
        let space = space_of(name);
        let written = self.schemas.get(space).cloned();
        written.or_else(|| self.schemas_before(space)).unwrap_or_default()
    }

    fn schemas_before(&mut self, space: &str) -> Option<String> {
        if self.has_begun {
            return None;
        }
        text(&self.view.ask("HGET", self.keys.schemas, space)).map(str::to_owned)
    }

    pub(super) fn note_schema(&mut self, name: &str, schema: &str) {
        let schemas = self.schemas_of(name);
        if schemas.contains(schema) {
            return;
        }
        let (space, schemas) = (space_of(name), format!("{schemas} {schema}"));
        self.view.write(redis::cmd("HSET").arg(self.keys.schemas).arg(space).arg(&schemas).take());
        self.schemas.insert(space.to_owned(), schemas);
        self.has_schemas = true;
    }

    /// The counter of a name if it lives: lines about its key drop it by themselves, broader ones are
    /// judged when it is read.
    pub(super) fn counter(&mut self, key: &str, name: &str, told: u64) -> Option<Counter> {
        let found = Counter::find(self.view, key);
        let found = self.counters.get(key).cloned().unwrap_or(found)?;
        let lives = found.incarnation == self.incarnation
            && !found.is_over(self.view, told)
            && found.number >= self.floor;
        (lives && !self.is_broadly_named(found.number, name)).then_some(found)
    }

    pub(super) fn note_counter(&mut self, key: &str, counter: Option<Counter>) {
        self.counters.insert(key.to_owned(), counter);
    }

    /// Trims what has grown too long, and notes how large the parts are now.
    pub(super) fn close(&mut self) {
        if !self.has_lines && !self.has_schemas {
            return;
        }
        let [mut marks, mut prefixes, mut named] =
            [Part::Marks, Part::Prefixes, Part::Named].map(|part| self.grown(part));
        let new_spaces: Vec<_> = self.schemas.keys().cloned().collect();
        let schemas = self.size(&redis::cmd("HLEN").arg(self.keys.schemas).take())
            + new_spaces.iter().filter(|space| self.schemas_before(space).is_none()).count() as u64;
        if self.has_lines {
            named -= self.forget_named().min(named);
            marks -= self.forget(Part::Marks, marks).min(marks);
            prefixes -= self.forget(Part::Prefixes, prefixes).min(prefixes);
        }
        let mut keep = redis::cmd("HSET");
        keep.arg(self.keys.origin).arg("last").arg(self.last).arg("floor").arg(self.floor);
        keep.arg("tip").arg(&self.tip);
        keep.arg("sizes").arg(format!("{marks} {prefixes} {named} {schemas}"));
        self.view.write(keep);
    }

    fn size(&self, question: &Cmd) -> u64 {
        if self.has_begun { 0 } else { number(&self.view.known(question)).unwrap_or(0) }
    }

    fn written(&self, part: Part) -> Vec<(String, u64)> {
        let written = self.scores.iter().filter(|((of, _), _)| *of == part);
        let mut written: Vec<_> =
            written.map(|((_, member), score)| (member.clone(), *score)).collect();
        written.sort_by_key(|(_, score)| *score);
        written
    }

    /// How many members a part has with those that are new.
    fn grown(&mut self, part: Part) -> u64 {
        let written = self.written(part);
        let new = written.iter().filter(|(member, _)| self.score_before(part, member).is_none());
        new.count() as u64 + self.size(&self.keys.size(part))
    }

    /// Drops names that no ticket is older than; says how many.
    fn forget_named(&mut self) -> u64 {
        if self.has_begun {
            return 0;
        }
        let written = self.written(Part::Named);
        // As a rule no more of them go than have come.
        let most = written.len();
        let oldest = self.view.ask("ZRANGE", self.keys.named, (0, most, "WITHSCORES"));
        let over = self.last.saturating_sub(KEPT);
        if over == 0 {
            return 0;
        }
        let kept: HashSet<_> = written.iter().map(|(member, _)| &**member).collect();
        let gone: Vec<_> = scored(&oldest).take_while(|(_, score)| *score <= over).collect();
        let mut count = gone.iter().filter(|(member, _)| !kept.contains(member)).count() as u64;
        if gone.len() > most {
            count = number(&self.view.ask("ZCOUNT", self.keys.named, ("-inf", over))).unwrap_or(0);
            for (member, _) in &written {
                let before = self.score_before(Part::Named, member);
                count -= u64::from(before.is_some_and(|score| score <= over)).min(count);
            }
        }
        let trim = redis::cmd("ZREMRANGEBYSCORE").arg(self.keys.named).arg("-inf").arg(over).take();
        self.view.write(trim);
        count
    }

    /// Drops the oldest of too many; what they said is true of everything from then on.
    fn forget(&mut self, part: Part, size: u64) -> u64 {
        let over = size.saturating_sub(KEPT);
        let Some(at) = over.checked_sub(1) else { return 0 };
        let written = self.written(part);
        let mut scores = Vec::new();
        if !self.has_begun {
            let range = (0, at + written.len() as u64, "WITHSCORES");
            let oldest = self.view.ask("ZRANGE", self.keys.of_part(part), range);
            let rewritten: HashSet<_> = written.iter().map(|(member, _)| &**member).collect();
            let kept = scored(&oldest).filter(|(member, _)| !rewritten.contains(member));
            scores.extend(kept.map(|(_, score)| score));
        }
        scores.extend(written.iter().map(|(_, score)| *score));
        let newest_gone = usize::try_from(at).ok().and_then(|at| scores.get(at));
        self.floor = self.floor.max(newest_gone.copied().unwrap_or(0));
        let key = self.keys.of_part(part);
        self.view.write(redis::cmd("ZREMRANGEBYRANK").arg(key).arg(0).arg(at).take());
        over
    }

    pub(super) fn keys(&self) -> Keys<'a> {
        self.keys
    }

    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }
}

/// A key of ours: all that belongs to a name lies in one slot.
pub(super) fn key_of(prefix: &str, name: &str, what: &str) -> String {
    format!("{prefix}{{{name}}}:{what}")
}

fn line_id(line: &Value) -> Option<&str> {
    items(line).first().and_then(text)
}

/// The number of a line of the stream, from its id.
pub(super) fn line_number(line: &Value) -> Option<u64> {
    line_id(line)?.split('-').next()?.parse().ok()
}
