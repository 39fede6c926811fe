//! The **authority**: whoever keeps the ledger and grants leases.
//!
//! The widest tier that can keep a ledger is asked to; a cache of memory alone, or
//! above stores that cannot, has its own in memory: [`LocalAuthority`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::WallTime;
use crate::ledger::{Name, Names, Stamp};
use crate::protocol::{Follow, Leased, Limits, Record, Snapshot};
use crate::runtime::BoxFuture;
use crate::store::{Put, Scope, StoreError, StoreErrorKind, Stored};

/// The result of a question to an authority.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Keeps the ledger and grants leases, for every process that shares it.
///
/// Every step is atomic: no other process sees half of it. The rules are those of
/// [`protocol`](crate::protocol); `terrace_test::conformance::authority` checks an
/// implementation against them.
///
/// An authority that is a store too drops, in the same step in which it appends a
/// line about a key, the values that it holds under that name, and judges each
/// [`Put`] by its stamp in the same step in which it stores it.
pub trait Authority: fmt::Debug + Send + Sync + 'static {
    /// Who shares this ledger.
    fn scope(&self) -> Scope;

    /// What a process that joins has to know.
    fn snapshot(&self) -> Answer<'_, Snapshot>;

    /// Appends a line for each name; returns the position of the last one.
    ///
    /// Voids the leases of the keys that are invalidated. Where values lie on other servers than
    /// the ledger, one that does not answer keeps nobody from hearing of the line:
    /// [`Appended::undropped`] says what it may still hold.
    fn append<'a>(&'a self, names: &'a [Name]) -> Answer<'a, Appended>;

    /// Values of up to so many bytes, all together, are stored in one step with the lines about them by
    /// [`write`](Self::write). 0, unless the authority is a store that can.
    fn most_in_one_step(&self) -> usize {
        0
    }

    /// Appends the lines of each and stores its frames, everything in one step, in this order. The
    /// [stamp](crate::frame::stamped) of frames is the position of the last line that came with them,
    /// whatever they say.
    ///
    /// An error says that nothing of it was done, or that nobody knows. With [`StoreErrorKind::Full`]
    /// there was no room for the values, and the lines can still be [appended](Self::append).
    fn write<'a>(&'a self, appends: &'a [Append]) -> Answer<'a, Written> {
        let _ = appends;
        Box::pin(std::future::ready(Err(StoreError::new(
            StoreErrorKind::Other,
            "write in one step",
        ))))
    }

    /// Drops what it holds of keys whose lines were appended before and could not be dropped then.
    ///
    /// Returns the places of those that it may still hold. An authority that drops values in the same
    /// step in which it appends never has any.
    fn drop_again<'a>(&'a self, names: &'a [Name]) -> Answer<'a, Vec<usize>> {
        let _ = names;
        at_once(Vec::new())
    }

    /// Appends a line only if none since `ticket` names the same things.
    ///
    /// `None` if one does. What writes "if nobody wrote between" are made of.
    fn append_if_unnamed<'a>(
        &'a self,
        ticket: Stamp,
        name: Name,
        names: Names<'a>,
    ) -> Answer<'a, Option<Appended>>;

    /// The lines after `position`.
    fn follow(&self, position: Stamp) -> Answer<'_, Follow>;

    /// The same as soon as there are any; an authority that can wait for them does so for about
    /// a second, and answers then that there are none. `None`: it has to be asked again and again.
    fn listen(&self, position: Stamp) -> Option<Answer<'_, Follow>> {
        let _ = position;
        None
    }

    /// Asks for the right to load `key` until `until`. An authority with a clock of its own goes
    /// by how long that is from `now`.
    fn lease<'a>(&'a self, key: &'a Arc<str>, now: WallTime, until: WallTime)
    -> Answer<'a, Leased>;

    /// Prolongs a lease; `false` if it was voided or taken over.
    fn renew<'a>(&'a self, key: &'a str, token: u64, until: WallTime) -> Answer<'a, bool>;

    /// Gives a lease back.
    fn release<'a>(&'a self, key: &'a str, token: u64) -> Answer<'a, ()>;

    /// Adds `by` to the counter `key` and returns the sum; a counter that is not
    /// there, or has lapsed at `now`, counts from 0 and lapses at `expires`.
    ///
    /// A line that names the key, a prefix of it, its space, or everything drops the
    /// counter.
    fn count<'a>(
        &'a self,
        key: &'a Arc<str>,
        by: i64,
        now: WallTime,
        expires: Option<WallTime>,
    ) -> Answer<'a, i64>;

    /// The counter `key` at `now`, if there is one.
    fn counter<'a>(&'a self, key: &'a str, now: WallTime) -> Answer<'a, Option<i64>>;
}

/// What appending lines did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The position of the last line.
    pub position: Stamp,
    /// For each name, whether the authority held a value or counter under it. Of names that are
    /// broader than a key, or under which a frame was [written](Authority::write), an authority need
    /// not know.
    pub held: Vec<bool>,
    /// The places, from 0, of names whose values may still lie on a server that did not answer:
    /// who follows the ledger knows better than to serve them. They are to be
    /// [dropped again](Authority::drop_again).
    pub undropped: Vec<usize>,
}

/// Lines to be appended, and frames that are stored in the same step.
#[derive(Clone, Debug)]
pub struct Append {
    /// What the lines name: the key of each frame once, and whatever else.
    pub names: Vec<Name>,
    /// The frames, if there are any.
    pub puts: Vec<Put>,
}

/// What writing in one step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// All lines, one after the other.
    pub appended: Appended,
    /// What became of each frame. `None`: it is to be stored without the lines, which stand; somebody
    /// else has written since the one who wrote this was last told of it.
    pub stored: Vec<Option<Stored>>,
}

/// Lines that the ledger of a single process keeps. Only that process follows it,
/// and it applies each line as it appends it.
const LOCAL_LINES: usize = 1024;

/// How many counters are begun between two looks for lapsed ones.
const FORGET_LAPSED_EVERY: u64 = 1024;

/// The ledger of one process: nobody else shares it, and it ends with the process.
#[derive(Debug)]
pub struct LocalAuthority {
    state: Mutex<Local>,
}

#[derive(Debug)]
struct Local {
    record: Record,
    counters: BTreeMap<Arc<str>, Counter>,
    begun: u64,
}

#[derive(Debug)]
struct Counter {
    value: i64,
    expires: Option<WallTime>,
}

impl LocalAuthority {
    /// A new, empty ledger. `incarnation` should be random.
    #[must_use]
    pub fn new(incarnation: u64) -> Self {
        let record = Record::new(incarnation, LOCAL_LINES, Limits::default());
        Self { state: Mutex::new(Local { record, counters: BTreeMap::new(), begun: 0 }) }
    }
}

impl Local {
    fn append(&mut self, names: &[Name]) -> Appended {
        let held = names.iter().map(|name| self.drop_counters(name)).collect();
        let position = self.record.append(names.iter().cloned());
        Appended { position, held, undropped: Vec::new() }
    }

    fn drop_counters(&mut self, name: &Name) -> bool {
        let before = self.counters.len();
        match name {
            Name::Key(key) | Name::Set(key) => {
                self.counters.remove(key);
            }
            Name::Prefix(prefix) => self.counters.retain(|key, _| !key.starts_with(&**prefix)),
            Name::Space(space) => self.counters.retain(|key, _| {
                key.strip_prefix(&**space).is_none_or(|rest| !rest.starts_with(':'))
            }),
            Name::Everything => self.counters.clear(),
            Name::Tag(_) => {}
        }
        self.counters.len() < before
    }
}

impl Counter {
    fn lives(&self, now: WallTime) -> bool {
        self.expires.is_none_or(|expires| expires > now)
    }
}

/// The answer of an authority that need not wait for anything.
fn at_once<'a, T: Send + 'a>(answer: T) -> Answer<'a, T> {
    Box::pin(std::future::ready(Ok(answer)))
}

impl Authority for LocalAuthority {
    fn scope(&self) -> Scope {
        Scope::Process
    }

    fn snapshot(&self) -> Answer<'_, Snapshot> {
        at_once(self.state.lock().record.snapshot())
    }

    fn append<'a>(&'a self, names: &'a [Name]) -> Answer<'a, Appended> {
        at_once(self.state.lock().append(names))
    }

    fn append_if_unnamed<'a>(
        &'a self,
        ticket: Stamp,
        name: Name,
        names: Names<'a>,
    ) -> Answer<'a, Option<Appended>> {
        let mut state = self.state.lock();
        at_once(state.record.permits(ticket, &names).then(|| state.append(&[name])))
    }

    fn follow(&self, position: Stamp) -> Answer<'_, Follow> {
        at_once(self.state.lock().record.follow(position))
    }

    fn lease<'a>(
        &'a self,
        key: &'a Arc<str>,
        now: WallTime,
        until: WallTime,
    ) -> Answer<'a, Leased> {
        at_once(self.state.lock().record.lease(key, now, until))
    }

    fn renew<'a>(&'a self, key: &'a str, token: u64, until: WallTime) -> Answer<'a, bool> {
        at_once(self.state.lock().record.renew(key, token, until))
    }

    fn release<'a>(&'a self, key: &'a str, token: u64) -> Answer<'a, ()> {
        self.state.lock().record.release(key, token);
        at_once(())
    }

    fn count<'a>(
        &'a self,
        key: &'a Arc<str>,
        by: i64,
        now: WallTime,
        expires: Option<WallTime>,
    ) -> Answer<'a, i64> {
        let mut state = self.state.lock();
        if !state.counters.contains_key(key) {
            state.begun += 1;
            if state.begun.is_multiple_of(FORGET_LAPSED_EVERY) {
                state.counters.retain(|_, counter| counter.lives(now));
            }
        }
        let counter = state
            .counters
            .entry(Arc::clone(key))
            .and_modify(|counter| {
                if !counter.lives(now) {
                    *counter = Counter { value: 0, expires };
                }
            })
            .or_insert(Counter { value: 0, expires });
        counter.value = counter.value.saturating_add(by);
        let value = counter.value;
        at_once(value)
    }

    fn counter<'a>(&'a self, key: &'a str, now: WallTime) -> Answer<'a, Option<i64>> {
        let state = self.state.lock();
        at_once(
            state
                .counters
                .get(key)
                .filter(|counter| counter.lives(now))
                .map(|counter| counter.value),
        )
    }
}
