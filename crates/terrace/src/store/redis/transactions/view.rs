//! The **view** of one transaction: what it has read and watches, and what it is going to write.
//!
//! Whoever decides asks the view. What nobody has asked yet is answered with nothing; it is read
//! then, and everything is decided once more, until nothing is missing. So a decision is written
//! down once, and it is known before the first exchange what most of them want to know.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::str::FromStr;

use redis::{Cmd, Pipeline, ToRedisArgs, Value};

use crate::store::StoreError;
use crate::store::redis::reply::odd;

/// What is being done when an argument is none, or a reply is not what was asked for.
const DOING: &str = "run a transaction in place of a script";

#[derive(Default)]
pub(in crate::store::redis) struct View {
    answers: HashMap<Vec<u8>, Value>,
    missing: Vec<Cmd>,
    /// What was asked, once however often somebody wants to know it.
    asked: HashSet<Vec<u8>>,
    /// Keys of questions that are missing, and are not watched yet.
    unwatched: BTreeSet<String>,
    watched: BTreeSet<String>,
    writes: Pipeline,
}

/// What a script would have answered.
pub(in crate::store::redis) enum Answer {
    Now(Value),
    /// It is known once the writes are done, from the replies to them.
    After(Tell),
}

type Tell = Box<dyn FnOnce(&[Value]) -> Value + Send>;

impl View {
    /// What the server answers to a question about a key, which is watched from then on.
    pub(super) fn ask(&mut self, name: &str, key: &str, arguments: impl ToRedisArgs) -> Value {
        let question = redis::cmd(name).arg(key).arg(arguments).take();
        self.watch(key);
        self.look(question)
    }

    /// The time of day in milliseconds: what is told, or else the server's own.
    pub(super) fn millis(&mut self, told: u64) -> u64 {
        if told != 0 {
            return told;
        }
        let time = self.look(redis::cmd("TIME"));
        match items(&time) {
            [seconds, micros] => {
                let micros = number(micros).unwrap_or(0);
                number(seconds).unwrap_or(0).saturating_mul(1000) + micros / 1000
            }
            _ => 0,
        }
    }

    /// The same without a watch: about what changes with something else that is watched, or with time.
    pub(super) fn look(&mut self, question: Cmd) -> Value {
        let packed = question.get_packed_command();
        if let Some(answer) = self.answers.get(&packed) {
            return answer.clone();
        }
        if self.asked.insert(packed) {
            self.missing.push(question);
        }
        Value::Nil
    }

    /// The answer to a question that is asked in every transaction.
    pub(super) fn known(&self, question: &Cmd) -> Value {
        self.answers.get(&question.get_packed_command()).cloned().unwrap_or(Value::Nil)
    }

    pub(super) fn knows(&self, question: &Cmd) -> bool {
        self.answers.contains_key(&question.get_packed_command())
    }

    pub(super) fn watch(&mut self, key: &str) {
        if !self.watched.contains(key) {
            self.unwatched.insert(key.to_owned());
        }
    }

    pub(super) fn learn(&mut self, question: &Cmd, answer: Value) {
        self.answers.insert(question.get_packed_command(), answer);
    }

    /// What has to be read before anything can be decided, and keys to be watched before that.
    pub(super) fn take_missing(&mut self) -> (BTreeSet<String>, Vec<Cmd>) {
        let unwatched = std::mem::take(&mut self.unwatched);
        self.watched.extend(unwatched.iter().cloned());
        (unwatched, std::mem::take(&mut self.missing))
    }

    pub(super) fn is_missing_nothing(&self) -> bool {
        self.missing.is_empty()
    }

    /// Adds to what is written at once; says at which place its reply will be.
    pub(super) fn write(&mut self, command: Cmd) -> usize {
        let place = self.writes.len();
        self.writes.add_command(command);
        place
    }

    /// What was decided without knowing everything is not to be done.
    pub(super) fn forget_writes(&mut self) {
        self.writes.clear();
    }

    pub(super) fn writes(&self) -> &Pipeline {
        &self.writes
    }
}

/// The arguments of a script, one after the other.
#[derive(Clone)]
pub(in crate::store::redis) struct Args<'a> {
    left: std::slice::Iter<'a, Vec<u8>>,
}

impl<'a> Args<'a> {
    pub(super) fn new(all: &'a [Vec<u8>]) -> Self {
        Self { left: all.iter() }
    }

    pub(super) fn is_over(&self) -> bool {
        self.left.as_slice().is_empty()
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], StoreError> {
        self.left.next().map(Vec::as_slice).ok_or_else(|| odd(DOING, "too few arguments"))
    }

    pub(super) fn text(&mut self) -> Result<&'a str, StoreError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| odd(DOING, "an argument that is no text"))
    }

    pub(super) fn number<T: FromStr>(&mut self) -> Result<T, StoreError> {
        self.text()?.parse().map_err(|_| odd(DOING, "an argument that is no number"))
    }

    pub(super) fn flag(&mut self) -> Result<bool, StoreError> {
        Ok(self.text()? == "1")
    }

    /// So many texts as the first of them says.
    pub(super) fn texts(&mut self) -> Result<Vec<&'a str>, StoreError> {
        let count = self.number::<usize>()?;
        (0..count).map(|_| self.text()).collect()
    }
}

/// A key among those of a call.
pub(super) fn key(keys: &[String], at: usize) -> Result<&str, StoreError> {
    keys.get(at).map(String::as_str).ok_or_else(|| odd(DOING, "too few keys"))
}

pub(super) fn items(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) => items,
        _ => &[],
    }
}

pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

pub(super) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        value => text(value)?.parse().ok(),
    }
}

/// Members and scores, which servers tell in turns.
pub(super) fn scored(value: &Value) -> impl Iterator<Item = (&str, u64)> {
    items(value).chunks_exact(2).filter_map(|pair| match pair {
        [member, score] => Some((text(member)?, number(score)?)),
        _ => None,
    })
}

pub(super) fn bulk(text: impl Into<Vec<u8>>) -> Value {
    Value::BulkString(text.into())
}

pub(super) fn int(number: u64) -> Value {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}
