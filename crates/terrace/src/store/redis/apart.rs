//! Values **apart** from their ledger: on a cluster, where no step reaches two slots.
//!
//! All that belongs to a name lies in its own slot, and the ledger in one. Beside the values of a name
//! lies its *fence*: the number of the last line about its key. A line about a key is three steps:
//! values and lease are dropped and the fence is raised, the line is appended, and both are done once
//! more with the line's own number. Whoever dies half-way has either told nobody, or left no value that
//! the line speaks of. A frame is judged by the ledger, and in one step with storing it by the fence;
//! what slips through between the two is a frame whose stamp every reader finds dead.
//!
//! A server that does not answer keeps nobody from hearing of the line: what it holds is dropped once
//! it is back.
//!
//! A replica that takes over may have missed what its primary did last, and a server that comes back
//! may have older values. Whoever sees another primary repeats the lines that it appended lately, and
//! whoever joins is told the last line about each key that was named lately.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use redis::Value;

use super::ledger::hex;
use super::reply::{fields, integer, text, unsigned};
use super::{RedisStore, WRITING, lives};
use crate::authority::Authority as _;
use crate::clock::WallTime;
use crate::key::space_of;
use crate::ledger::{Name, Stamp};
use crate::store::{Put, StoreError, StoreErrorKind, Stored};

/// How long a fence stands: longer than any load, and than any process goes on with what it knew
/// before it was stopped.
const FENCE: Duration = Duration::from_secs(3600);

/// Replicas lag behind their primary by less.
const REPLICATION: Duration = Duration::from_secs(60);

/// How long servers have to drop what a line speaks of before it goes on without them.
const DROPPING: Duration = Duration::from_millis(100);

/// Names that are repeated when a primary changes; of more, everything is.
const MOST_SENT: usize = 10_000;

/// How many names one call repeats.
const REPEATED_AT_ONCE: usize = 100;

/// What this process knows of values that lie apart.
#[derive(Debug, Default)]
pub(super) struct Apart {
    /// Which schemas the values of each space have.
    schemas: Mutex<HashMap<String, String>>,
    /// Names that were sent lately.
    sent: Mutex<Sent>,
    /// Who serves which slots.
    primaries: Mutex<Option<BTreeMap<u64, String>>>,
}

/// Names by when they were sent last: in the time of a replication that goes on, or in the one before.
#[derive(Debug, Default)]
struct Sent {
    lately: Names,
    before: Names,
    since: Duration,
}

#[derive(Debug, Default)]
struct Names {
    keys: HashSet<Arc<str>>,
    /// There were more than are kept.
    has_overflowed: bool,
}

impl Apart {
    pub(super) fn note_schemas(&self, name: &str, schemas: &str) {
        let mut known = self.schemas.lock();
        let space = space_of(name);
        if known.get(space).is_none_or(|known| known != schemas) {
            known.insert(space.to_owned(), schemas.to_owned());
        }
    }

    fn schemas_of(&self, name: &str) -> Option<String> {
        self.schemas.lock().get(space_of(name)).cloned()
    }

    /// Remembers what was sent, for as long as a replica may have missed it.
    pub(super) fn note_sent(&self, names: &[Name], now: Duration) {
        let mut sent = self.sent.lock();
        sent.forget(now);
        for name in names {
            if let Name::Key(key) | Name::Set(key) = name {
                sent.lately.add(key);
            }
        }
    }

    /// A write is repeated as an invalidation: what it stored may be lost, or older.
    fn sent_lately(&self, now: Duration) -> Vec<Name> {
        let mut sent = self.sent.lock();
        sent.forget(now);
        if sent.lately.has_overflowed || sent.before.has_overflowed {
            return vec![Name::Everything];
        }
        sent.lately.keys.union(&sent.before.keys).cloned().map(Name::Key).collect()
    }
}

impl Sent {
    /// Forgets what has reached every replica long ago.
    fn forget(&mut self, now: Duration) {
        if now >= self.since + REPLICATION {
            let lately = std::mem::take(&mut self.lately);
            // After a time without anything, that is long ago as well.
            let is_old = now >= self.since + 2 * REPLICATION;
            self.before = if is_old { Names::default() } else { lately };
            self.since = now;
        }
    }
}

impl Names {
    fn add(&mut self, key: &Arc<str>) {
        if self.has_overflowed || self.keys.contains(key) {
            return;
        }
        self.keys.insert(Arc::clone(key));
        if self.keys.len() > MOST_SENT {
            *self = Self { keys: HashSet::new(), has_overflowed: true };
        }
    }
}

/// What became of what was held under each of some names.
#[derive(Debug)]
pub(super) struct Voided {
    pub(super) held: Vec<bool>,
    /// The places of those whose server did not answer.
    pub(super) undropped: BTreeSet<usize>,
}

impl Voided {
    /// Nothing yet.
    pub(super) fn none_of(names: &[Name]) -> Self {
        Self { held: vec![false; names.len()], undropped: BTreeSet::new() }
    }
}

impl RedisStore {
    /// Drops what is held under each key that is named and whose server has answered so far, and raises
    /// its fence to `line`. `schemas` has those of each name where they are known.
    pub(super) async fn void(
        &self,
        names: &[Name],
        voided: &mut Voided,
        line: impl Fn(usize) -> Stamp,
        schemas: impl Fn(usize, &str) -> String,
    ) {
        const DOING: &str = "drop what a line speaks of";
        let left = names.iter().enumerate().filter(|(at, _)| !voided.undropped.contains(at));
        let calls = left.filter_map(|(at, name)| {
            let (Name::Key(key) | Name::Set(key)) = name else { return None };
            let with_lease = matches!(name, Name::Key(_));
            let (line, schemas) = (line(at), schemas(at, key));
            let mut keys = vec![self.key_of(key, "fence"), self.key_of(key, "lease")];
            keys.push(self.key_of(key, "count"));
            for schema in schemas.split_whitespace() {
                keys.push(self.key_of(key, &format!("1:{schema}")));
            }
            let mut call = self.shared.scripts.void.on(&keys);
            call.arg(hex(line.incarnation)).arg(line.number).arg(u8::from(with_lease));
            call.arg(FENCE.as_secs() * 1000);
            Some((at, async move { integer(call.ask(&self.shared.link, DOING).await?, DOING) }))
        });
        let (mut asked, answers) = (BTreeSet::new(), FuturesUnordered::new());
        for (at, call) in calls {
            asked.insert(at);
            answers.push(async move { (at, call.await) });
        }
        let mut answers = pin!(answers.take_until(self.shared.link.sleep(DROPPING)));
        while let Some((at, answer)) = answers.next().await {
            match answer {
                Ok(held) => {
                    asked.remove(&at);
                    if let Some(before) = voided.held.get_mut(at) {
                        *before |= held == 1;
                    }
                }
                Err(error) => tracing::debug!(%error, "a value that was invalidated is left"),
            }
        }
        voided.undropped.append(&mut asked);
    }

    /// The first of the three steps: before the line has a number.
    pub(super) async fn void_before(&self, names: &[Name], voided: &mut Voided) {
        let newest = self.newest();
        self.void_as_known(names, voided, Stamp { number: newest.number + 1, ..newest }).await;
    }

    /// What servers did not answer to before, once more. What was stored since goes, too; what is
    /// loaded from now on can be stored, though no line follows.
    pub(super) async fn void_again(&self, names: &[Name]) -> Vec<usize> {
        let mut voided = Voided::none_of(names);
        self.void_as_known(names, &mut voided, self.newest()).await;
        voided.undropped.into_iter().collect()
    }

    /// With those schemas that this process has heard of.
    async fn void_as_known(&self, names: &[Name], voided: &mut Voided, line: Stamp) {
        let known = |_, key: &str| self.shared.apart.schemas_of(key).unwrap_or_default();
        self.void(names, voided, |_| line, known).await;
    }

    /// The last line that this process knows.
    fn newest(&self) -> Stamp {
        let (incarnation, number, _) = self.shared.known.newest();
        Stamp { incarnation, number }
    }

    /// Stores frames that the ledger has permitted.
    pub(super) async fn put_apart(
        &self,
        puts: &[&Put],
        permitted: Vec<i64>,
        now: WallTime,
    ) -> Result<Vec<Stored>, StoreError> {
        let calls = puts.iter().zip(permitted).map(|(put, is_permitted)| async move {
            if is_permitted != 1 {
                return Ok(Stored::Refused);
            }
            let keys = [self.key_of(&put.key.name(), "fence"), self.key(&put.key)];
            let mut call = self.shared.scripts.put_apart.on(&keys);
            call.arg(hex(put.stamp.incarnation)).arg(put.stamp.number);
            call.arg(lives(now, put.expires)).arg(&*put.frame);
            let answer = call.ask(&self.shared.link, WRITING).await?;
            Ok(if integer(answer, WRITING)? == 1 { Stored::Yes } else { Stored::Refused })
        });
        join_all(calls).await.into_iter().collect()
    }

    /// Counts by what the ledger says of the counter's name.
    pub(super) async fn count_apart(
        &self,
        key: &str,
        by: Option<i64>,
        now: WallTime,
        lives: u64,
    ) -> Result<Value, StoreError> {
        const DOING: &str = "count";
        let mut call = self.ledger_call(&self.shared.scripts.latest, now);
        call.arg(key);
        let [incarnation, last, latest] = fields(call.ask(&self.shared.link, DOING).await?, DOING)?;
        let mut call = self.shared.scripts.count_apart.on(&[self.key_of(key, "count")]);
        call.arg(self.told(now)).arg(text(incarnation, DOING)?);
        call.arg(unsigned(last, DOING)?).arg(unsigned(latest, DOING)?);
        call.arg(by.map(|by| by.to_string()).unwrap_or_default()).arg(lives);
        call.ask(&self.shared.link, DOING).await
    }

    /// Repeats what was sent lately if a slot is served by another primary than before.
    pub(super) async fn repeat_after_a_change(&self) -> Result<(), StoreError> {
        let primaries = self.shared.link.slots().await?;
        let has_changed = {
            let mut known = self.shared.apart.primaries.lock();
            let has_changed = known.as_ref().is_some_and(|known| *known != primaries);
            if !has_changed {
                *known = Some(primaries.clone());
            }
            has_changed
        };
        if !has_changed {
            return Ok(());
        }
        let names = self.shared.apart.sent_lately(self.shared.clock.elapsed());
        tracing::info!(names = names.len(), "a primary has changed: its lines are repeated");
        for names in names.chunks(REPEATED_AT_ONCE) {
            if !self.append(names).await?.undropped.is_empty() {
                return Err(StoreError::new(StoreErrorKind::Unavailable, "repeat lines"));
            }
        }
        // Only now: what failed is repeated once more.
        *self.shared.apart.primaries.lock() = Some(primaries);
        Ok(())
    }
}

/// Which server is the primary of the slots from each of these on, as the cluster tells it.
pub(super) fn primaries(slots: Value, doing: &'static str) -> Result<Vec<Range>, StoreError> {
    super::reply::array(slots, doing)?
        .into_iter()
        .map(|range| {
            let mut range = super::reply::array(range, doing)?.into_iter();
            let first = unsigned(range.next().unwrap_or(Value::Nil), doing)?;
            let _last = range.next();
            let mut primary =
                super::reply::array(range.next().unwrap_or(Value::Nil), doing)?.into_iter();
            let host = text(primary.next().unwrap_or(Value::Nil), doing)?;
            let port = unsigned(primary.next().unwrap_or(Value::Nil), doing)?;
            let id = text(primary.next().unwrap_or(Value::Nil), doing)?;
            let port = u16::try_from(port).unwrap_or(0);
            Ok(Range { first, host, port, id })
        })
        .collect()
}

/// Slots in a row that one primary serves.
pub(super) struct Range {
    pub(super) first: u64,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) id: String,
}
