//! The **twins** of the scripts: each decides as the script of its name does, in the same words.
//!
//! They take the same keys and arguments and bring the same answers; see the `.lua` files for both.

use redis::Value;

use super::counter::{self, Change, Counter, SPARE};
use super::ledger::{Head, KEPT, Keys, Ledger, Part, key_of, line_number};
use super::view::{Answer, Args, View, bulk, int, items, key, text};
use crate::frame::stamp_behind;
use crate::key::space_of;
use crate::ledger::Stamp;
use crate::store::StoreError;

/// A twin, by what it reaches.
#[derive(Clone, Copy, Debug)]
pub(in crate::store::redis) enum Twin {
    /// The ledger, which it may change: those of one process take turns, many in one transaction.
    Writes(fn(&mut Ledger<'_>, &mut Args<'_>, &Head<'_>) -> Result<Answer, StoreError>),
    /// The ledger, which it leaves as it is unless that is not whole.
    Reads(fn(&mut Ledger<'_>, &mut Args<'_>, &Head<'_>) -> Result<Answer, StoreError>),
    /// Keys of one name.
    Alone(fn(&mut View, &[String], &mut Args<'_>) -> Result<Answer, StoreError>),
}

/// What becomes of a name whose values were dropped.
enum Held {
    No,
    Schemas(String),
    /// What was dropped besides, and at which place the server says how many frames were.
    Dropped {
        had_counter: bool,
        frames: Option<usize>,
    },
}

pub(in crate::store::redis) fn append(
    ledger: &mut Ledger<'_>,
    args: &mut Args<'_>,
    head: &Head<'_>,
) -> Result<Answer, StoreError> {
    let (incarnation, number, tip) = (args.text()?, args.number::<u64>()?, args.text()?);
    let (random, is_apart, _has_frames) = (args.text()?, args.flag()?, args.flag()?);
    // Somebody knows a later line than there is: the server was put back to an older state.
    let is_later = number > ledger.last || (number == ledger.last && tip != ledger.tip);
    if incarnation == ledger.incarnation && is_later {
        ledger.begin(head.fresh);
    }
    let condition = args.text()?;
    if !condition.is_empty() {
        let (number, name, tags) = (args.number()?, args.text()?, args.texts()?);
        if !ledger.permits(condition, number, name, &tags) {
            return Ok(Answer::Now(Value::Nil));
        }
    }
    let mut held = Vec::new();
    while !args.is_over() {
        let count = args.number::<u64>()?;
        let last = ledger.last + count;
        for _ in 0..count {
            let (kind, name, schema) = (args.text()?, args.text()?, args.text()?);
            ledger.append(kind, name, format!("{random}{}", held.len() + 1));
            let is_key = matches!(kind, "k" | "w");
            held.push(match (is_apart, is_key) {
                _ if !schema.is_empty() => {
                    // A transaction that comes late finds another ledger than it was made for: it need
                    // not ask whether anybody has written since.
                    let (_tags, lives, frame) = (args.texts()?, args.number()?, args.bytes()?);
                    replace(ledger, name, schema, lives, frame, last, head);
                    Held::No
                }
                (true, true) => Held::Schemas(ledger.schemas_of(name)),
                (true, false) => Held::Schemas(String::new()),
                (false, true) => void_beside(ledger, name, kind == "k", head),
                (false, false) => Held::No,
            });
        }
    }
    let (incarnation, last) = (bulk(&*ledger.incarnation), int(ledger.last));
    let tip = bulk(&*ledger.tip);
    Ok(Answer::After(Box::new(move |replies| {
        let held = held.into_iter().map(|held| match held {
            Held::No => Value::Int(0),
            Held::Schemas(schemas) => bulk(schemas),
            Held::Dropped { had_counter, frames } => {
                let gone = frames.and_then(|place| replies.get(place));
                let gone = matches!(gone, Some(Value::Int(gone)) if *gone > 0);
                Value::Int(i64::from(gone || had_counter))
            }
        });
        Value::Array(vec![incarnation, last, tip, Value::Array(held.collect())])
    })))
}

/// Stores a frame in the place of whatever lies beside the ledger under its name; `last` is its stamp.
fn replace(
    ledger: &mut Ledger<'_>,
    name: &str,
    schema: &str,
    lives: i64,
    frame: &[u8],
    last: u64,
    head: &Head<'_>,
) {
    void_beside(ledger, name, false, head);
    ledger.note_schema(name, schema);
    // Of an incarnation that was not read yet nothing is written.
    let incarnation = u64::from_str_radix(&ledger.incarnation, 16).unwrap_or(0);
    let behind = stamp_behind(Stamp { incarnation, number: last });
    let key = key_of(head.prefix, name, &format!("1:{schema}"));
    store(ledger.view, &key, &[frame, &behind].concat(), lives);
}

/// Drops what lies beside the ledger under a name.
fn void_beside(ledger: &mut Ledger<'_>, name: &str, with_lease: bool, head: &Head<'_>) -> Held {
    let counter = key_of(head.prefix, name, "count");
    let had_counter = ledger.counter(&counter, name, head.now).is_some();
    let schemas = ledger.schemas_of(name);
    let mut unlink = redis::cmd("UNLINK");
    let mut has_frames = false;
    for schema in schemas.split(|letter: char| !letter.is_ascii_hexdigit()) {
        if !schema.is_empty() {
            unlink.arg(key_of(head.prefix, name, &format!("1:{schema}")));
            has_frames = true;
        }
    }
    let frames = has_frames.then(|| ledger.view.write(unlink));
    let mut unlink = redis::cmd("UNLINK");
    unlink.arg(&counter);
    if with_lease {
        unlink.arg(key_of(head.prefix, name, "lease"));
    }
    ledger.view.write(unlink);
    ledger.note_counter(&counter, None);
    Held::Dropped { had_counter, frames }
}

pub(in crate::store::redis) fn put(
    ledger: &mut Ledger<'_>,
    args: &mut Args<'_>,
    head: &Head<'_>,
) -> Result<Answer, StoreError> {
    let is_apart = args.flag()?;
    let mut answers = Vec::new();
    while !args.is_over() {
        let (name, schema, lives) = (args.text()?, args.text()?, args.number()?);
        let (incarnation, number) = (args.text()?, args.number()?);
        let tags = args.texts()?;
        let frame = if is_apart { None } else { Some(args.bytes()?) };
        let is_permitted = ledger.permits(incarnation, number, name, &tags);
        answers.push(Value::Int(i64::from(is_permitted)));
        // What it may have to know is asked for at once.
        let known = ledger.schemas_of(name);
        if is_permitted {
            if !known.contains(schema) {
                ledger.note_schema(name, schema);
            }
            if let Some(frame) = frame {
                let key = key_of(head.prefix, name, &format!("1:{schema}"));
                store(ledger.view, &key, frame, lives);
            }
        }
    }
    Ok(Answer::Now(Value::Array(answers)))
}

fn store(view: &mut View, key: &str, frame: &[u8], lives: i64) {
    view.write(match lives {
        0 => redis::cmd("SET").arg(key).arg(frame).take(),
        ..0 => redis::cmd("UNLINK").arg(key).take(),
        lives => redis::cmd("SET").arg(key).arg(frame).arg("PX").arg(lives).take(),
    });
}

pub(in crate::store::redis) fn follow(
    ledger: &mut Ledger<'_>,
    args: &mut Args<'_>,
    _head: &Head<'_>,
) -> Result<Answer, StoreError> {
    let (number, most) = (args.number::<u64>()?, args.number::<u64>()?);
    let mut lines = redis::cmd("XRANGE");
    lines.arg(ledger.keys().lines).arg(format!("({number}-0")).arg(&["+", "COUNT"]).arg(most);
    let lines = ledger.view.look(lines.take());
    // Those behind the last are not ours.
    let ours = items(&lines).iter().take_while(|line| line_number(line) <= Some(ledger.last));
    let lines = ours.cloned().collect();
    Ok(Answer::Now(Value::Array(vec![
        bulk(&*ledger.incarnation),
        int(ledger.last),
        bulk(&*ledger.tip),
        int(KEPT),
        Value::Array(lines),
    ])))
}

pub(in crate::store::redis) fn snapshot(
    ledger: &mut Ledger<'_>,
    _args: &mut Args<'_>,
    _head: &Head<'_>,
) -> Result<Answer, StoreError> {
    let Keys { marks, prefixes, .. } = ledger.keys();
    let [marks, prefixes] = [marks, prefixes].map(|key| {
        let all = ledger.view.ask("ZRANGE", key, &["0", "-1", "WITHSCORES"]);
        // Of a ledger that has just begun nothing is left.
        if ledger.has_begun() { Value::Array(Vec::new()) } else { all }
    });
    Ok(Answer::Now(Value::Array(vec![
        bulk(&*ledger.incarnation),
        int(ledger.last),
        bulk(&*ledger.tip),
        int(ledger.floor),
        marks,
        prefixes,
    ])))
}

pub(in crate::store::redis) fn distrust(
    ledger: &mut Ledger<'_>,
    args: &mut Args<'_>,
    head: &Head<'_>,
) -> Result<Answer, StoreError> {
    if ledger.incarnation == args.text()? {
        ledger.begin(head.fresh);
    }
    Ok(Answer::Now(Value::Int(1)))
}

pub(in crate::store::redis) fn count(
    ledger: &mut Ledger<'_>,
    args: &mut Args<'_>,
    head: &Head<'_>,
) -> Result<Answer, StoreError> {
    let name = args.text()?;
    let key = key_of(head.prefix, name, "count");
    let (by, lives) = (addend(args)?, args.number()?);
    Ok(counter::beside(ledger, name, head, &Change { key: &key, by, lives, told: head.now }))
}

fn addend(args: &mut Args<'_>) -> Result<Option<i64>, StoreError> {
    let mut rest = args.clone();
    if args.text()?.is_empty() { Ok(None) } else { rest.number().map(Some) }
}

pub(in crate::store::redis) fn latest(
    ledger: &mut Ledger<'_>,
    args: &mut Args<'_>,
    _head: &Head<'_>,
) -> Result<Answer, StoreError> {
    let name = args.text()?;
    let marks = ["e".to_owned(), format!("s{}", space_of(name))];
    let marks = marks.map(|mark| ledger.score(Part::Marks, &mark));
    let latest = marks.into_iter().flatten().max().unwrap_or(0).max(ledger.floor);
    let latest = ledger.prefix_named(latest, name).unwrap_or(latest);
    Ok(Answer::Now(Value::Array(vec![bulk(&*ledger.incarnation), int(ledger.last), int(latest)])))
}

/// The line to which a fence was raised.
fn fence(view: &mut View, key: &str) -> Option<(String, u64)> {
    let fence = view.ask("GET", key, NOTHING);
    let (incarnation, number) = text(&fence)?.split_once(' ')?;
    Some((incarnation.to_owned(), number.parse().ok()?))
}

/// No arguments besides the key.
const NOTHING: &[&str] = &[];

pub(in crate::store::redis) fn put_apart(
    view: &mut View,
    keys: &[String],
    args: &mut Args<'_>,
) -> Result<Answer, StoreError> {
    let (incarnation, number) = (args.text()?, args.number::<u64>()?);
    let (lives, frame) = (args.number()?, args.bytes()?);
    let fence = fence(view, key(keys, 0)?);
    if fence.is_some_and(|(of, raised)| of == incarnation && raised > number) {
        return Ok(Answer::Now(Value::Int(0)));
    }
    store(view, key(keys, 1)?, frame, lives);
    Ok(Answer::Now(Value::Int(1)))
}

pub(in crate::store::redis) fn count_apart(
    view: &mut View,
    keys: &[String],
    args: &mut Args<'_>,
) -> Result<Answer, StoreError> {
    let (told, incarnation) = (args.number()?, args.text()?);
    let (last, latest) = (args.number()?, args.number::<u64>()?);
    let (by, lives) = (addend(args)?, args.number()?);
    let key = key(keys, 0)?;
    let found = Counter::find(view, key).filter(|found| {
        found.incarnation == incarnation && found.number >= latest && !found.is_over(view, told)
    });
    let change = Change { key, by, lives, told };
    Ok(counter::change(view, &change, found, incarnation, last).0)
}

pub(in crate::store::redis) fn void(
    view: &mut View,
    keys: &[String],
    args: &mut Args<'_>,
) -> Result<Answer, StoreError> {
    let (incarnation, number) = (args.text()?, args.number::<u64>()?);
    let (with_lease, stands) = (args.flag()?, args.number::<u64>()?);
    let fence_key = key(keys, 0)?;
    let stands_already =
        fence(view, fence_key).is_some_and(|(of, raised)| of == incarnation && raised >= number);
    if !stands_already {
        let raised = format!("{incarnation} {number}");
        view.write(redis::cmd("SET").arg(fence_key).arg(raised).arg("PX").arg(stands).take());
    }
    if with_lease {
        view.write(redis::cmd("UNLINK").arg(key(keys, 1)?).take());
    }
    let held = keys.get(2..).unwrap_or_default();
    let gone = (!held.is_empty()).then(|| view.write(redis::cmd("UNLINK").arg(held).take()));
    Ok(Answer::After(Box::new(move |replies| {
        let gone = gone.and_then(|place| replies.get(place));
        Value::Int(i64::from(matches!(gone, Some(Value::Int(gone)) if *gone > 0)))
    })))
}

pub(in crate::store::redis) fn lease(
    view: &mut View,
    keys: &[String],
    args: &mut Args<'_>,
) -> Result<Answer, StoreError> {
    let wanted = Lease::of(keys, args)?;
    let held = wanted.find(view).filter(|(holder, _)| *holder != wanted.token);
    let held = held.and_then(|(_, until)| until);
    let left = held.and_then(|until| until.checked_sub(view.millis(wanted.told)));
    if let Some(left) = left.filter(|left| *left > 0) {
        return Ok(Answer::Now(Value::Array(vec![Value::Int(0), int(left)])));
    }
    wanted.hold(view);
    Ok(Answer::Now(Value::Array(vec![Value::Int(1), int(wanted.lasts)])))
}

pub(in crate::store::redis) fn renew(
    view: &mut View,
    keys: &[String],
    args: &mut Args<'_>,
) -> Result<Answer, StoreError> {
    let ours = Lease::of(keys, args)?;
    if ours.find(view).is_none_or(|(holder, _)| holder != ours.token) {
        return Ok(Answer::Now(Value::Int(0)));
    }
    if ours.lasts == 0 {
        view.write(redis::cmd("UNLINK").arg(ours.key).take());
    } else {
        ours.hold(view);
    }
    Ok(Answer::Now(Value::Int(1)))
}

/// A lease as its caller wants it.
struct Lease<'k, 'a> {
    key: &'k str,
    /// The time of day if callers tell it, or 0.
    told: u64,
    lasts: u64,
    token: &'a str,
}

impl<'k, 'a> Lease<'k, 'a> {
    fn of(keys: &'k [String], args: &mut Args<'a>) -> Result<Self, StoreError> {
        let (told, lasts, token) = (args.number()?, args.number()?, args.text()?);
        Ok(Self { key: key(keys, 0)?, told, lasts, token })
    }

    /// Who holds it, and until when. The time of day is asked for along with it.
    fn find(&self, view: &mut View) -> Option<(String, Option<u64>)> {
        view.millis(self.told);
        let held = view.ask("GET", self.key, NOTHING);
        let (holder, until) = text(&held)?.split_once(':')?;
        Some((holder.to_owned(), until.parse().ok()))
    }

    fn hold(&self, view: &mut View) {
        // Whoever tells the time decides when it is over.
        let keeps = if self.told == 0 { self.lasts } else { self.lasts + SPARE };
        let held = format!("{}:{}", self.token, view.millis(self.told) + self.lasts);
        view.write(redis::cmd("SET").arg(self.key).arg(held).arg("PX").arg(keeps).take());
    }
}
