//! A **counter** as a transaction finds it and leaves it: what `counter.lua` is to scripts.

use redis::Value;

use super::ledger::{Head, Ledger};
use super::view::{Answer, View, bulk, items, number, text};

/// Whoever tells the time decides when it is over: the server keeps it for longer.
pub(super) const SPARE: u64 = 60_000;

#[derive(Clone, Debug)]
pub(super) struct Counter {
    pub(super) value: String,
    pub(super) incarnation: String,
    pub(super) number: u64,
    /// 0: never.
    pub(super) expires: u64,
}

/// What is done to a counter.
pub(super) struct Change<'a> {
    pub(super) key: &'a str,
    /// `None` to read only.
    pub(super) by: Option<i64>,
    /// Milliseconds to live, 0 for ever.
    pub(super) lives: u64,
    /// The time of day if callers tell it, or 0.
    pub(super) told: u64,
}

impl Counter {
    pub(super) fn find(view: &mut View, key: &str) -> Option<Self> {
        let found = view.ask("HMGET", key, &["value", "incarnation", "number", "expires"]);
        let [value, incarnation, line, expires] = items(&found) else { return None };
        Some(Self {
            value: text(value)?.to_owned(),
            incarnation: text(incarnation).unwrap_or_default().to_owned(),
            number: number(line).unwrap_or(0),
            expires: number(expires).unwrap_or(0),
        })
    }

    pub(super) fn is_over(&self, view: &mut View, told: u64) -> bool {
        self.expires != 0 && self.expires <= view.millis(told)
    }

    fn plus(&self, by: i64) -> i64 {
        let most = if by < 0 { i64::MIN } else { i64::MAX };
        self.value.parse::<i64>().ok().and_then(|value| value.checked_add(by)).unwrap_or(most)
    }
}

/// Adds to a counter, or reads it. `found` is one that counts on, `incarnation` and `last` are where
/// the ledger is. Says what the counter is from then on.
pub(super) fn change(
    view: &mut View,
    change: &Change<'_>,
    found: Option<Counter>,
    incarnation: &str,
    last: u64,
) -> (Answer, Option<Counter>) {
    let Some(by) = change.by else {
        let value = found.as_ref().map_or(Value::Nil, |found| bulk(&*found.value));
        return (Answer::Now(value), found);
    };
    let now = view.millis(change.told);
    let is_new = found.is_none();
    let mut counter = found.unwrap_or_else(|| Counter {
        value: "0".to_owned(),
        incarnation: incarnation.to_owned(),
        number: last,
        expires: if change.lives > 0 { now + change.lives } else { 0 },
    });
    counter.value = counter.plus(by).to_string();
    let mut set = redis::cmd("HSET");
    set.arg(change.key).arg("value").arg(&counter.value);
    if is_new {
        view.write(redis::cmd("UNLINK").arg(change.key).take());
        set.arg("incarnation").arg(&counter.incarnation).arg("number").arg(counter.number);
        set.arg("expires").arg(counter.expires);
    }
    view.write(set);
    if is_new && change.lives > 0 {
        let spare = if change.told == 0 { 0 } else { SPARE };
        view.write(redis::cmd("PEXPIRE").arg(change.key).arg(change.lives + spare).take());
    }
    (Answer::Now(bulk(&*counter.value)), Some(counter))
}

/// Counts beside the ledger.
pub(super) fn beside(
    ledger: &mut Ledger<'_>,
    name: &str,
    head: &Head<'_>,
    step: &Change<'_>,
) -> Answer {
    let found = ledger.counter(step.key, name, head.now);
    let (incarnation, last) = (ledger.incarnation.clone(), ledger.last);
    let is_read = step.by.is_none();
    let (answer, counter) = change(ledger.view, step, found, &incarnation, last);
    if !is_read {
        ledger.note_counter(step.key, counter);
    }
    answer
}
