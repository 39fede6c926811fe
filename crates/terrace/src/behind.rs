//! A **write behind**: into memory and the journal at once, into the source when its writer comes
//! to it.
//!
//! The journal first, then the line *set*: a load that knows the line finds the value in the
//! journal, and one that does not stores nothing. What memory then gets is what the journal says
//! is newest, so that of two writers the one whose value comes to the source last is the one that
//! is seen.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::codec::ValueCodec;
use crate::core::Ticket;
use crate::entry::Entry;
use crate::error::Error;
use crate::flight::{Crash, Underway};
use crate::journal::drain::Drain;
use crate::journal::{Acknowledge, Addition, OpenJournal, Place, Record, Row, Which};
use crate::key::{Key, KeyRef};
use crate::ledger::Name;
use crate::options::Reading;
use crate::policy::Ttl;
use crate::read::{Unflushed, Wanted};
use crate::runtime::{BoxFuture, in_task, unless};
use crate::source::{Change, Source, WriteId};
use crate::space::{Mode, Space, SpaceCore};
use crate::store::{StoreError, StoreErrorKind};
use crate::tenant::TenantName;
use crate::write::{
    Encoded, EntryOptions, Settled, checked_tags, checked_wanted, encode_first, make, to_memory,
};

/// How a space's writes behind are kept.
#[derive(Clone, Debug)]
pub(crate) struct Behind {
    pub(crate) journal: Arc<OpenJournal>,
    /// The space, as the journal knows it.
    pub(crate) space: Arc<str>,
    /// Whoever has something written behind is not forgotten.
    _tenant: Arc<TenantName>,
}

impl Behind {
    fn place(&self, key: &[u8]) -> Place {
        Place { space: Arc::clone(&self.space), key: key.into() }
    }
}

/// Begins to write behind, unless another opening of the space does so already.
pub(crate) fn begin<K: ToOwned + ?Sized, V>(
    space: &Arc<SpaceCore>,
    codec: ValueCodec<V>,
    source: &Arc<Source<K, V>>,
    kind: &str,
) {
    let core = &space.core;
    let Some(journal) = &core.journal else { return };
    // Names hold no blank. Keys of two kinds may be the same bytes.
    let title: Arc<str> = format!("{} {kind}", space.name).into();
    let behind = Behind {
        journal: Arc::clone(journal),
        space: Arc::clone(&title),
        _tenant: Arc::clone(&space.tenant),
    };
    if space.state.behind.set(behind).is_ok() {
        let drain = Drain {
            core: Arc::downgrade(core),
            journal: Arc::clone(journal),
            space: title,
            name: Arc::clone(&space.name),
            codec,
            source: Arc::clone(source),
        };
        core.runtime.spawn((source.start)(drain));
    }
}

/// A write of one value that the source hears of later; await it. See
/// [`Space::insert_behind`].
#[must_use = "a write does nothing until it is awaited"]
pub struct InsertBehind<'a, K: ToOwned + ?Sized, V> {
    space: &'a Space<K, V>,
    key: &'a K,
    value: V,
    ttl: Ttl,
    tags: Result<Arc<[Arc<str>]>, Error>,
    version: Option<Arc<str>>,
    acknowledge: Acknowledge,
}

impl<'a, K: ToOwned + ?Sized, V> InsertBehind<'a, K, V> {
    pub(crate) fn new(space: &'a Space<K, V>, key: &'a K, value: V) -> Self {
        let (ttl, acknowledge) = (Ttl::default(), Acknowledge::default());
        Self { space, key, value, ttl, tags: Ok(Arc::default()), version: None, acknowledge }
    }

    /// The value lives exactly this long in caches, whatever its space says. Until the source has
    /// it, it is read from the journal all the same.
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { ttl: Ttl::Exactly(ttl), ..self }
    }

    /// The value never expires.
    pub fn forever(self) -> Self {
        Self { ttl: Ttl::Forever, ..self }
    }

    /// The value carries these tags.
    pub fn tags<T: AsRef<str>>(self, tags: impl IntoIterator<Item = T>) -> Self {
        Self { tags: checked_tags(self.space.core.tenant.as_str(), tags), ..self }
    }

    /// The source's version of the value: see [`Loaded::version`](crate::Loaded::version).
    pub fn version(self, version: impl Into<Arc<str>>) -> Self {
        Self { version: Some(version.into()), ..self }
    }

    /// How far the write has to get before the call returns: [`Acknowledge::Journal`] unless set.
    pub fn acknowledge(self, level: Acknowledge) -> Self {
        Self { acknowledge: level, ..self }
    }
}

impl<K: ToOwned + ?Sized, V> std::fmt::Debug for InsertBehind<'_, K, V> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("InsertBehind").field("space", self.space).finish_non_exhaustive()
    }
}

impl<'a, K, V> IntoFuture for InsertBehind<'a, K, V>
where
    K: Key + Sync + ?Sized,
    V: Send + Sync + 'static,
{
    type Output = Result<Settled, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let tags = self.tags?;
            let options = EntryOptions {
                ttl: self.ttl,
                tags,
                version: self.version,
                ..EntryOptions::default()
            };
            let post = Post::new(self.space, self.key, Some(self.value), options)?;
            post.send(self.acknowledge).await
        })
    }
}

/// A removal that the source hears of later; await it. See [`Space::remove_behind`].
#[must_use = "a removal does nothing until it is awaited"]
pub struct RemoveBehind<'a, K: ToOwned + ?Sized, V> {
    space: &'a Space<K, V>,
    key: &'a K,
    acknowledge: Acknowledge,
}

impl<'a, K: ToOwned + ?Sized, V> RemoveBehind<'a, K, V> {
    pub(crate) fn new(space: &'a Space<K, V>, key: &'a K) -> Self {
        Self { space, key, acknowledge: Acknowledge::default() }
    }

    /// How far the removal has to get before the call returns: [`Acknowledge::Journal`] unless
    /// set.
    pub fn acknowledge(self, level: Acknowledge) -> Self {
        Self { acknowledge: level, ..self }
    }
}

impl<K: ToOwned + ?Sized, V> std::fmt::Debug for RemoveBehind<'_, K, V> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RemoveBehind").field("space", self.space).finish_non_exhaustive()
    }
}

impl<'a, K, V> IntoFuture for RemoveBehind<'a, K, V>
where
    K: Key + Sync + ?Sized,
    V: Send + Sync + 'static,
{
    type Output = Result<Settled, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let post = Post::new(self.space, self.key, None, EntryOptions::default())?;
            post.send(self.acknowledge).await
        })
    }
}

/// A write on its way into the journal and into memory.
struct Post<V> {
    space: Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    journal: Arc<OpenJournal>,
    wanted: Wanted,
    place: Place,
    record: Bytes,
    value: Option<Encoded<V>>,
    options: EntryOptions,
    /// Closing waits for it.
    _underway: Underway,
}

impl<V: Send + Sync + 'static> Post<V> {
    /// Checks and encodes everything: what cannot be stored costs nobody the value before it.
    fn new<K: Key + ?Sized>(
        space: &Space<K, V>,
        key: &K,
        value: Option<V>,
        options: EntryOptions,
    ) -> Result<Self, Error> {
        let (core, codec) = (&space.core, space.codec);
        let underway = core.core.begin()?;
        let source = space.source.as_ref().ok_or(Error::NoWriter)?;
        let behind = core.behind().ok_or(Error::NoJournal)?;
        let wanted = checked_wanted(core, key)?;
        let encoded_key = source.encode_key(key).ok_or(Error::KeyNotEncoded)?;
        let value = value.map(|value| encode_first(core, codec, value)).transpose()?;
        let bytes = value.as_ref().and_then(|value| value.bytes.as_ref());
        let record = Record {
            key: encoded_key.into(),
            value: bytes.cloned(),
            ttl: options.ttl,
            tags: Arc::clone(&options.tags),
            version: options.version.clone(),
        };
        let (place, record) = (behind.place(&wanted.bytes), record.encode());
        if !behind.journal.takes(&place, &record) {
            return Err(Error::ValueTooLarge { bytes: record.len() as u64 });
        }
        Ok(Self {
            space: Arc::clone(core),
            codec,
            journal: Arc::clone(&behind.journal),
            options: EntryOptions { is_hashed: wanted.is_hashed, ..options },
            wanted,
            place,
            record,
            value,
            _underway: underway,
        })
    }

    /// Does it all in a task of its own: a caller that is dropped leaves it done or not begun.
    async fn send(self, level: Acknowledge) -> Result<Settled, Error> {
        let (answer, answered) = oneshot::channel();
        let runtime = Arc::clone(&self.space.core.runtime);
        let task: BoxFuture<'static, ()> = match level {
            Acknowledge::Memory => Box::pin(self.post_early(answer)),
            Acknowledge::Journal => Box::pin(self.post(false, answer)),
            Acknowledge::Synced => Box::pin(self.post(true, answer)),
        };
        runtime.spawn(task);
        answered.await.unwrap_or(Err(Error::Closed))
    }

    async fn post(mut self, is_synced: bool, answer: oneshot::Sender<Result<Settled, Error>>) {
        let call = self.journal.begin_call();
        let core = Arc::clone(&self.space.core);
        let addition = Addition { is_synced, ..self.addition(call) };
        let added = self.journal.add(&*core.runtime, core.wall(), &addition).await;
        let _ = answer.send(match added {
            Ok(number) => Ok(self.publish(number.map(Which::Number)).await),
            Err(error) => Err(error),
        });
    }

    /// The journal comes after the answer. Others who share it hear of the write only then.
    async fn post_early(mut self, answer: oneshot::Sender<Result<Settled, Error>>) {
        let core = Arc::clone(&self.space.core);
        let queued = core.wall();
        let (place, record) = (self.place.clone(), self.record.clone());
        let accepted = self.journal.accept_early(&*core.runtime, place, record).await;
        let (call, _permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                let _ = answer.send(Err(error));
                return;
            }
        };
        let _ = answer.send(Ok(self.publish(Some(Which::Early(call))).await));
        let addition = Addition { is_early: true, ..self.addition(call) };
        let added = self.journal.add_early(&*core.runtime, queued, &addition).await;
        if added.is_some() && core.is_shared() {
            self.publish(None).await;
        }
    }

    fn addition(&self, call: u64) -> Addition {
        let (place, record) = (self.place.clone(), self.record.clone());
        Addition { place, record, call, is_synced: false, is_early: false }
    }

    /// Tells the ledger, and gives memory what is newest: the own value if it is `mine`.
    async fn publish(&mut self, mine: Option<Which>) -> Settled {
        let (space, core) = (&self.space, &self.space.core);
        let name = Name::Set(Arc::clone(self.wanted.name(space)));
        let told = core.forget(vec![name]).await;
        let mut ticket = core.ticket();
        if let Some(position) = told.position {
            ticket.stamp = position;
        }
        let key = KeyRef { space: space.number, bytes: &self.wanted.bytes };
        core.retries.forget(key);
        let options = EntryOptions { stamp: ticket.stamp, ..self.options.clone() };
        let mut own = || self.value.take().map(|value| make(space, value, &options).entry);
        let newest = match self.journal.newest(&self.place) {
            Ok(Some((which, _))) if mine == Some(which) => own(),
            Ok(Some((_, record))) => {
                entry_of(space, self.codec, &self.wanted, record, ticket).ok().flatten()
            }
            // The source was quick.
            Ok(None) if mine.is_some_and(|mine| self.journal.is_last_and_settled(mine)) => own(),
            // What has become of it a read finds out, from the source; if the journal cannot be
            // read now, it says so to whoever reads.
            Ok(None) | Err(_) => None,
        };
        if let Some(entry) = newest
            && space.mode() != Mode::Off
        {
            to_memory(space, key, &entry, ticket);
        }
        told.settled
    }
}

/// What was written behind of a key and is not in the source yet; a value is copied to memory.
///
/// If the journal cannot be read, so cannot the key: what is below is older than what was
/// acknowledged.
pub(crate) fn unflushed<V: Send + Sync + 'static>(
    space: &SpaceCore,
    codec: Option<ValueCodec<V>>,
    wanted: &Wanted,
    ticket: Ticket,
    reading: &Reading,
) -> Result<Option<Unflushed<V>>, Crash> {
    let Some(behind) = space.behind() else { return Ok(None) };
    let newest = behind.journal.newest(&behind.place(&wanted.bytes)).map_err(failed)?;
    let Some((_, record)) = newest else { return Ok(None) };
    let Some(entry) = entry_of(space, codec, wanted, record, ticket).map_err(failed)? else {
        return Ok(Some(Unflushed::Removed));
    };
    let is_copied = !reading.unwritten.has_memory() && !reading.stays_below;
    if is_copied && space.mode() != Mode::Off {
        to_memory(space, KeyRef { space: space.number, bytes: &wanted.bytes }, &entry, ticket);
    }
    Ok(Some(Unflushed::Value(entry)))
}

/// Whether something was written behind of a key that is not in the source yet, and if so,
/// whether that is a value.
pub(crate) fn is_unflushed(space: &SpaceCore, key: &[u8]) -> Result<Option<bool>, Crash> {
    let Some(behind) = space.behind() else { return Ok(None) };
    let newest = behind.journal.newest(&behind.place(key)).map_err(failed)?;
    Ok(newest.map(|(_, record)| record.value.is_some()))
}

/// Waits until what was written behind of a key is in the source, for so long at most.
pub(crate) async fn flush_key(
    space: &SpaceCore,
    wanted: &Wanted,
    limit: Duration,
) -> Result<(), Error> {
    let Some(behind) = space.behind() else { return Ok(()) };
    let (runtime, place) = (&*space.core.runtime, behind.place(&wanted.bytes));
    let flushing = behind.journal.flush_key(runtime, &place);
    unless(|| runtime.sleep(limit), flushing).await.unwrap_or(Err(Error::Busy))
}

/// What a read says when the journal does not answer.
fn failed(error: StoreError) -> Crash {
    Crash::Tier("journal".into(), Arc::new(error))
}

/// The entry that a record makes: it begins its life when it is read, as if it were loaded.
fn entry_of<V>(
    space: &SpaceCore,
    codec: Option<ValueCodec<V>>,
    wanted: &Wanted,
    record: Record,
    ticket: Ticket,
) -> Result<Option<Arc<Entry<V>>>, StoreError> {
    let Some((written_as, bytes)) = record.value else { return Ok(None) };
    let damaged = || StoreError::new(StoreErrorKind::Damaged, "read the journal");
    let codec = codec.ok_or_else(damaged)?;
    let value =
        codec.decode(bytes.clone(), written_as).map_err(|error| damaged().caused_by(error))?;
    let options = EntryOptions {
        ttl: record.ttl,
        tags: record.tags,
        version: record.version,
        stamp: ticket.stamp,
        is_hashed: wanted.is_hashed,
        ..EntryOptions::default()
    };
    let encoded = Encoded { value, bytes: Some((written_as, bytes)) };
    Ok(Some(make(space, encoded, &options).entry))
}

/// A write that its writer has failed to write too often. See [`Space::dead_letters`].
#[non_exhaustive]
pub struct DeadLetter<K: ToOwned + ?Sized, V> {
    /// The write's id, as its writer knows it.
    pub id: WriteId,
    /// The key and what was to become of it; `None` if this build cannot read it.
    pub write: Option<(K::Owned, Change<V>)>,
    /// How often it was tried.
    pub failures: u32,
    /// What the writer failed with the last time.
    pub error: String,
    /// When the write was called for.
    pub called: crate::clock::WallTime,
}

impl<K: ToOwned + ?Sized, V> std::fmt::Debug for DeadLetter<K, V> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys may be secrets.
        formatter
            .debug_struct("DeadLetter")
            .field("id", &self.id)
            .field("failures", &self.failures)
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

/// Up to `limit` dead letters of a space, the oldest first.
pub(crate) fn dead_letters<K: Key + ?Sized, V: Send + Sync + 'static>(
    space: &Space<K, V>,
    limit: usize,
) -> Result<Vec<DeadLetter<K, V>>, Error> {
    space.core.core.check_open()?;
    let source = space.source.as_deref().ok_or(Error::NoWriter)?;
    let behind = space.core.behind().ok_or(Error::NoJournal)?;
    let rows = behind.journal.dead(&behind.space, limit).map_err(Error::Journal)?;
    let letter = |row: Row| DeadLetter {
        id: behind.journal.id(row.number),
        write: readable(source, space.codec, &row),
        failures: row.failures,
        error: row.error,
        called: row.queued,
    };
    Ok(rows.into_iter().map(letter).collect())
}

/// The key and the change of a row; `None` if this build cannot read them.
pub(crate) fn readable<K: ToOwned + ?Sized, V>(
    source: &Source<K, V>,
    codec: Option<ValueCodec<V>>,
    row: &Row,
) -> Option<(K::Owned, Change<V>)> {
    let Record { key, value, .. } = Record::decode(row.record.clone()?)?;
    let key = source.decode_key(&key)?;
    let change = match value {
        Some((written_as, bytes)) => Change::Insert(codec?.decode(bytes, written_as).ok()?),
        None => Change::Remove,
    };
    Some((key, change))
}

/// Has a dead letter tried again; says whether it was there.
pub(crate) async fn replay(space: &Arc<SpaceCore>, id: WriteId) -> Result<bool, Error> {
    let _underway = space.core.begin()?;
    let behind = space.behind().ok_or(Error::NoJournal)?;
    if id != behind.journal.id(id.number) {
        return Ok(false);
    }
    let (replayed, behind) = (Arc::clone(space), behind.clone());
    // Both or neither, whatever becomes of the caller.
    let replay = async move {
        let key = behind.journal.replay(&behind.space, id.number).await.map_err(Error::Journal)?;
        let Some(key) = key else { return Ok(false) };
        // From here on the journal answers: what was loaded meanwhile is older.
        replayed.core.forget(vec![Name::Set(replayed.name_of(&key))]).await;
        Ok(true)
    };
    in_task(&*space.core.runtime, replay).await.unwrap_or(Err(Error::Closed))
}

/// Drops a dead letter; says whether it was there.
pub(crate) async fn bury(space: &Arc<SpaceCore>, id: WriteId) -> Result<bool, Error> {
    let _underway = space.core.begin()?;
    let behind = space.behind().ok_or(Error::NoJournal)?;
    if id != behind.journal.id(id.number) {
        return Ok(false);
    }
    behind.journal.bury(&behind.space, id.number).await.map_err(Error::Journal)
}
