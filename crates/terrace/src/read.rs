//! A **read**: memory, then each tier below it in order, and the copies upwards.

use std::future::Future;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::clock::Tick;
use crate::codec::ValueCodec;
use crate::core::Ticket;
use crate::entry::{AnyEntry, Cached, Entry, Meta, Source, Times, typed, typed_ref};
use crate::error::{Error, LoadError, LoaderFailure, SharedError};
use crate::flight::{Crash, Flight, Joined, Outcome, Takeoff};
use crate::frame::Frame;
use crate::freshness::{Freshness, Life, Written, judge};
use crate::key::{Key, KeyBuffer, KeyRef, StoredKey};
use crate::ledger::{Names, Stamp};
use crate::load::{Load, Loading, Order, catch_panic, fly};
use crate::policy::Ttl;
use crate::protocol::Standing;
use crate::runtime::BoxFuture;
use crate::space::SpaceCore;
use crate::stats::{bump, is_sampled};
use crate::tier::OpenTier;
use crate::write::{self, EntryOptions};

/// A read without a loader; await it. See [`Space::get`](crate::Space::get).
#[must_use = "a read does nothing until it is awaited"]
pub struct Get<'a, K: ?Sized, V> {
    space: &'a Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    key: &'a K,
    /// What is awaited once memory has missed.
    below: Option<BoxFuture<'static, Option<Cached<V>>>>,
}

impl<'a, K: ?Sized, V> Get<'a, K, V> {
    pub(crate) fn new(space: &'a Arc<SpaceCore>, codec: Option<ValueCodec<V>>, key: &'a K) -> Self {
        Self { space, codec, key, below: None }
    }
}

impl<K: Key + ?Sized, V: Send + Sync + 'static> Future for Get<'_, K, V> {
    type Output = Result<Option<Cached<V>>, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let below = match &mut self.below {
            Some(below) => below,
            None => {
                let mut buffer = KeyBuffer::default();
                let key = self.space.checked_key(self.key, &mut buffer)?;
                if let Some(hit) = hit(self.space, key) {
                    return Poll::Ready(Ok(Some(hit)));
                }
                if self.space.core.tiers.is_empty() {
                    return Poll::Ready(Ok(None));
                }
                let (space, codec) = (Arc::clone(self.space), self.codec);
                let wanted = space.wanted(key.bytes);
                self.below.insert(Box::pin(async move {
                    let ticket = space.core.ticket();
                    let (found, source) = one_from_tiers(&space, codec, &wanted, ticket).await?;
                    let is_stale = !found.is_fresh;
                    (!is_stale).then_some(Cached { entry: found.entry, source, is_stale })
                }))
            }
        };
        below.as_mut().poll(context).map(Ok)
    }
}

/// A read with a loader; await it. See [`Space::get_or_load`](crate::Space::get_or_load).
#[must_use = "a read does nothing until it is awaited"]
pub struct GetOrLoad<'a, K: ?Sized, V, F, E> {
    space: &'a Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    key: &'a K,
    loader: Option<F>,
    ttl: Ttl,
    tags: Result<Arc<[Arc<str>]>, Error>,
    waiting: Option<BoxFuture<'static, Outcome>>,
    error: PhantomData<fn() -> E>,
}

// Nothing in it is ever pinned: a loader is called before it is polled.
impl<K: ?Sized, V, F, E> Unpin for GetOrLoad<'_, K, V, F, E> {}

impl<'a, K: ?Sized, V, F, E> GetOrLoad<'a, K, V, F, E> {
    pub(crate) fn new(
        space: &'a Arc<SpaceCore>,
        codec: Option<ValueCodec<V>>,
        key: &'a K,
        loader: F,
    ) -> Self {
        Self {
            space,
            codec,
            key,
            loader: Some(loader),
            ttl: Ttl::default(),
            tags: Ok(Arc::default()),
            waiting: None,
            error: PhantomData,
        }
    }

    /// What is loaded lives exactly this long, whatever its space says.
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { ttl: Ttl::Exactly(ttl), ..self }
    }

    /// What is loaded never expires.
    pub fn forever(self) -> Self {
        Self { ttl: Ttl::Forever, ..self }
    }

    /// What is loaded carries these tags.
    pub fn tags<T: AsRef<str>>(self, tags: impl IntoIterator<Item = T>) -> Self {
        Self { tags: write::checked_tags(tags), ..self }
    }
}

impl<K, V, F, Fut, E> Future for GetOrLoad<'_, K, V, F, E>
where
    K: Key + ?Sized,
    V: Send + Sync + 'static,
    F: FnOnce(Load<K>) -> Fut,
    Fut: Future<Output = Result<V, E>> + Send + 'static,
    E: LoaderFailure,
{
    type Output = Result<Cached<V>, LoadError<E>>;

    /// The life of a read, as ARCHITECTURE.md tells it.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(waiting) = &mut this.waiting {
            return waiting.as_mut().poll(context).map(answer);
        }
        let space = this.space;
        let mut buffer = KeyBuffer::default();
        let key = space.checked_key(this.key, &mut buffer)?;
        if let Some(hit) = hit(space, key) {
            return Poll::Ready(Ok(hit));
        }
        let tags = std::mem::replace(&mut this.tags, Ok(Arc::default()))?;
        let flight = match board(space, key) {
            Joined::Following(flight) => {
                bump(&space.counters.loads_shared);
                flight
            }
            Joined::Leading(takeoff) => {
                let Some(loader) = this.loader.take() else {
                    return Poll::Ready(Err(LoadError::Abandoned));
                };
                let options = EntryOptions { ttl: this.ttl, tags, ..EntryOptions::default() };
                let load = Load { key: this.key.to_owned() };
                start(takeoff, space, this.codec, options, || begin(loader, load), context)
            }
        };
        let waiting = this.waiting.insert(Box::pin(async move { flight.wait().await }));
        waiting.as_mut().poll(context).map(answer)
    }
}

/// A fresh answer from memory, counted. What it costs is what a cache hit costs.
fn hit<V: Send + Sync + 'static>(space: &Arc<SpaceCore>, key: KeyRef<'_>) -> Option<Cached<V>> {
    let counters = space.memory_counters()?;
    let clock = &space.core.clock;
    let started = clock.elapsed();
    let now = Tick::from_millis(crate::clock::millis(started));
    let found = from_memory(space, key, now).filter(|found| found.is_fresh);
    if found.is_some() {
        counters.hits.bump();
    } else {
        counters.misses.bump();
    }
    if is_sampled() {
        counters.read_time.add(clock.elapsed().saturating_sub(started));
    }
    found.map(|found| Cached { entry: found.entry, source: Source::Memory, is_stale: false })
}

/// The flight of the key, or the duty to start one.
fn board(space: &Arc<SpaceCore>, key: KeyRef<'_>) -> Joined {
    let core = &space.core;
    core.flights.join(key, |departure| {
        departure.ticket != core.ticket() && {
            let (name, tags) = (space.name_of(key.bytes), &departure.tags);
            !core.permits(departure.ticket, &Names { key: &name, space: &space.name, tags })
        }
    })
}

/// Starts a flight: its first steps here and now, the rest in a task of its own.
fn start<V: Send + Sync + 'static>(
    mut takeoff: Takeoff,
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    options: EntryOptions,
    begin: impl FnOnce() -> Loading<V>,
    context: &mut Context<'_>,
) -> Arc<Flight> {
    let flight = takeoff.flight();
    // The loader is the caller's code: it must not take others down with it.
    let Ok(loading) = catch_unwind(AssertUnwindSafe(begin)) else {
        takeoff.land(Err(Crash::Panicked));
        return flight;
    };
    let order = Order { space: Arc::clone(space), codec, options, loading };
    let mut task: BoxFuture<'static, ()> = Box::pin(async move {
        // A panic drops the takeoff, which lands the flight as abandoned.
        let _ = catch_panic(fly(takeoff, order)).await;
    });
    if task.as_mut().poll(context).is_pending() {
        space.core.runtime.spawn(task);
    }
    flight
}

/// Calls the loader; its future is polled later, in the flight's task.
fn begin<K, V, F, Fut, E>(loader: F, load: Load<K>) -> Loading<V>
where
    K: Key + ?Sized,
    F: FnOnce(Load<K>) -> Fut,
    Fut: Future<Output = Result<V, E>> + Send + 'static,
    E: LoaderFailure,
{
    let loading = loader(load);
    Box::pin(async move { loading.await.map_err(|error| Arc::new(error) as SharedError) })
}

/// A flight's outcome as the caller's types.
fn answer<V: Send + Sync + 'static, E: LoaderFailure>(
    outcome: Outcome,
) -> Result<Cached<V>, LoadError<E>> {
    match outcome {
        Ok(landed) => match typed(&landed.entry) {
            Some(entry) => Ok(Cached { entry, source: landed.source, is_stale: landed.is_stale }),
            None => Err(LoadError::OtherType),
        },
        Err(Crash::Loader(error)) => {
            let any: Arc<dyn std::any::Any + Send + Sync> = Arc::clone(&error) as _;
            Err(any.downcast().map_or(LoadError::OtherLoader(error), LoadError::Loader))
        }
        Err(Crash::Panicked) => Err(LoadError::Panicked),
        Err(Crash::Deadline(limit)) => Err(LoadError::Deadline(limit)),
        Err(Crash::Abandoned) => Err(LoadError::Abandoned),
    }
}

/// An entry that may be served, fresh or stale.
pub(crate) struct Found<V> {
    pub(crate) entry: Arc<Entry<V>>,
    pub(crate) is_fresh: bool,
}

impl<V> Clone for Found<V> {
    fn clone(&self) -> Self {
        Self { entry: Arc::clone(&self.entry), is_fresh: self.is_fresh }
    }
}

/// What memory has under `key` that is not dead.
pub(crate) fn from_memory<V: Send + Sync + 'static>(
    space: &SpaceCore,
    key: KeyRef<'_>,
    now: Tick,
) -> Option<Found<V>> {
    let found = space.core.memory.as_ref()?.get_with(&key, now, |entry| {
        let freshness = judge_in_memory(space, key, entry, now);
        let is_fresh = freshness == Freshness::Fresh;
        (freshness != Freshness::Dead).then(|| typed(entry).map(|entry| Found { entry, is_fresh }))
    });
    found.flatten().flatten()
}

/// Reads a fresh value in memory without counting a reference to it.
pub(crate) fn with_memory<V: Send + Sync + 'static, R>(
    space: &SpaceCore,
    key: KeyRef<'_>,
    read: impl FnOnce(&V) -> R,
) -> Option<R> {
    let now = space.core.clock.tick();
    let answer = space.core.memory.as_ref().and_then(|memory| {
        memory.get_with(&key, now, |entry| {
            let is_fresh = judge_in_memory(space, key, entry, now) == Freshness::Fresh;
            let entry = typed_ref::<V>(entry).filter(|_| is_fresh)?;
            Some(read(&entry.value))
        })
    });
    let answer = answer.flatten();
    if let Some(counters) = space.memory_counters() {
        if answer.is_some() { counters.hits.bump() } else { counters.misses.bump() }
    }
    answer
}

fn judge_in_memory(space: &SpaceCore, key: KeyRef<'_>, entry: &AnyEntry, now: Tick) -> Freshness {
    let meta = entry.meta();
    judge(meta.times.life(), space.core.standing_in_memory(space, key, meta), now)
}

/// A key as everything below memory knows it.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) bytes: Box<[u8]>,
    pub(crate) name: Arc<str>,
    pub(crate) stored: StoredKey,
    pub(crate) is_hashed: bool,
}

/// The same for one key.
pub(crate) async fn one_from_tiers<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    wanted: &Wanted,
    ticket: Ticket,
) -> Option<(Found<V>, Source)> {
    let wanted = std::slice::from_ref(wanted);
    from_tiers(space, codec, wanted, ticket).await.pop().flatten()
}

/// What the tiers below memory have: each is asked once, for all keys that are
/// still missing. What is found fresh is copied to memory and to the tiers above.
pub(crate) async fn from_tiers<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    wanted: &[Wanted],
    ticket: Ticket,
) -> Vec<Option<(Found<V>, Source)>> {
    let mut answers: Vec<Option<(Found<V>, Source)>> = wanted.iter().map(|_| None).collect();
    let Some(codec) = codec else { return answers };
    for (depth, tier) in space.core.tiers.iter().enumerate() {
        let missing: Vec<_> = answers
            .iter_mut()
            .zip(wanted)
            .filter(|(answer, _)| !answer.as_ref().is_some_and(|(found, _)| found.is_fresh))
            .collect();
        if missing.is_empty() {
            break;
        }
        let keys: Vec<_> = missing.iter().map(|(_, wanted)| wanted).copied().collect();
        let found = from_tier(space, codec, tier, depth, &keys).await;
        for ((answer, wanted), found) in missing.into_iter().zip(found) {
            let Some(found) = found else { continue };
            if found.is_fresh {
                copy_up(space, codec, wanted, &found.entry, depth, ticket).await;
            } else if answer.is_some() {
                // The nearest stale answer is as good as one from farther away.
                continue;
            }
            *answer = Some((found, Source::Tier(Arc::clone(&tier.name))));
        }
    }
    answers
}

/// What one tier has of `keys`.
async fn from_tier<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: ValueCodec<V>,
    tier: &OpenTier,
    depth: usize,
    wanted: &[&Wanted],
) -> Vec<Option<Found<V>>> {
    let Some(counters) = space.counters.tiers.get(depth + 1) else { return Vec::new() };
    let core = &space.core;
    let keys: Vec<_> = wanted.iter().map(|wanted| wanted.stored.clone()).collect();
    let bytes: Vec<_> = wanted.iter().map(|wanted| &*wanted.bytes).collect();
    let started = core.clock.elapsed();
    let frames = tier.read(&*core.runtime, counters, &keys, &bytes).await;
    let found: Vec<_> = frames
        .into_iter()
        .zip(wanted)
        .map(|(frame, wanted)| {
            let found = open(space, codec, wanted, tier, frame?);
            if found.is_none() {
                tracing::trace!(tier = %tier.name, "what was found may not be served");
            }
            found?.map_err(|_| bump(&counters.unreadable)).ok()
        })
        .collect();
    counters.read_time.add(core.clock.elapsed().saturating_sub(started));
    for found in &found {
        let is_fresh = found.as_ref().is_some_and(|found| found.is_fresh);
        if is_fresh { counters.hits.bump() } else { counters.misses.bump() }
    }
    found
}

/// The entry in a frame: `None` if it is dead, an error if it cannot be decoded.
fn open<V>(
    space: &SpaceCore,
    codec: ValueCodec<V>,
    wanted: &Wanted,
    tier: &OpenTier,
    frame: Frame,
) -> Option<Result<Found<V>, Unreadable>> {
    let core = &space.core;
    let freshness = judge_frame(space, wanted, tier, &frame);
    if freshness == Freshness::Dead {
        return None;
    }
    let is_fresh = freshness == Freshness::Fresh;
    let decoded = frame
        .value()
        .map_err(|_| Unreadable)
        .and_then(|value| codec.decode(value, frame.header.codec).map_err(|_| Unreadable));
    Some(decoded.map(|value| {
        let written = written(&frame);
        let meta = Meta {
            times: Times::new(Life::remaining(&written, core.wall(), core.clock.tick()), written),
            stamp: frame.header.stamp,
            tags: frame.header.tags,
            version: frame.header.version,
            last_modified: frame.header.last_modified,
            is_hashed: wanted.is_hashed,
            bytes: space.weight_of::<V>(frame.size),
        };
        Found { entry: Arc::new(Entry { value, meta }), is_fresh }
    }))
}

/// A frame whose value cannot be decoded.
struct Unreadable;

/// Whether a fresh value of any type is in memory.
pub(crate) fn is_fresh_in_memory(
    space: &SpaceCore,
    key: KeyRef<'_>,
    entry: &AnyEntry,
    now: Tick,
) -> bool {
    judge_in_memory(space, key, entry, now) == Freshness::Fresh
}

/// Whether an entry that was found before may still be served, fresh or stale.
pub(crate) fn may_serve<V>(space: &SpaceCore, wanted: &Wanted, entry: &Entry<V>) -> bool {
    let (meta, now) = (&entry.meta, space.core.clock.tick());
    stands(space, wanted, meta.stamp, &meta.tags)
        && judge(meta.times.life(), Standing::Good, now) != Freshness::Dead
}

/// Whether nothing was invalidated that an entry of this stamp and these tags is.
pub(crate) fn stands(space: &SpaceCore, wanted: &Wanted, stamp: Stamp, tags: &[Arc<str>]) -> bool {
    let core = &space.core;
    let names = Names { key: &wanted.name, space: &space.name, tags };
    !core.pending.speaks_of(&names) && core.mirror.standing_in_full(stamp, &names) == Standing::Good
}

/// Whether a frame may be served.
pub(crate) fn is_fresh_frame(
    space: &SpaceCore,
    wanted: &Wanted,
    tier: &OpenTier,
    frame: &Frame,
) -> bool {
    judge_frame(space, wanted, tier, frame) == Freshness::Fresh
}

fn judge_frame(space: &SpaceCore, wanted: &Wanted, tier: &OpenTier, frame: &Frame) -> Freshness {
    let core = &space.core;
    let names = Names { key: &wanted.name, space: &space.name, tags: &frame.header.tags };
    if core.pending.speaks_of(&names) {
        return Freshness::Dead;
    }
    let stamp = frame.header.stamp;
    if !tier.is_authority && core.mirror.may_have_missed(stamp) {
        return Freshness::Dead;
    }
    let standing = core.mirror.standing_in_full(stamp, &names);
    let life = Life::remaining(&written(frame), core.wall(), core.clock.tick());
    judge(life, standing, core.clock.tick())
}

fn written(frame: &Frame) -> Written {
    let header = &frame.header;
    Written { created: header.created, expires: header.expires, stale_until: header.stale_until }
}

/// Copies what was found at `depth` to memory and to the tiers above, with what is
/// left of its life and the stamp that it has.
async fn copy_up<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: ValueCodec<V>,
    wanted: &Wanted,
    entry: &Arc<Entry<V>>,
    depth: usize,
    ticket: Ticket,
) {
    let key = KeyRef { space: space.number, bytes: &wanted.bytes };
    write::to_memory(space, key, entry, ticket);
    let Some((tier, above)) = space.core.tiers.get(..=depth).and_then(<[_]>::split_last) else {
        return;
    };
    for (index, upper) in above.iter().enumerate() {
        // What came from a narrower tier may be unknown to those who share a wider one.
        if upper.scope <= tier.scope {
            write::to_tier(space, codec, wanted, entry, None, index).await;
            write::undo_if_dead(space, wanted, entry.meta.stamp, &entry.meta.tags, index).await;
        }
    }
}

/// The values under many keys; one exchange with each tier.
pub(crate) async fn get_many<'a, K: Key + ?Sized + 'a, V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    keys: impl IntoIterator<Item = &'a K>,
) -> Result<Vec<Option<Cached<V>>>, Error> {
    let mut answers = Vec::new();
    let mut wanted = Vec::new();
    for key in keys {
        let mut buffer = KeyBuffer::default();
        let key = space.checked_key(key, &mut buffer)?;
        let hit = hit(space, key);
        if hit.is_none() {
            wanted.push(space.wanted(key.bytes));
        }
        answers.push(hit);
    }
    let ticket = space.core.ticket();
    let mut found = from_tiers(space, codec, &wanted, ticket).await.into_iter();
    for answer in answers.iter_mut().filter(|answer| answer.is_none()) {
        if let Some((found, source)) = found.next().flatten().filter(|(found, _)| found.is_fresh) {
            *answer = Some(Cached { entry: found.entry, source, is_stale: false });
        }
    }
    Ok(answers)
}

/// Whether something fresh is under each key. Decodes and copies nothing.
pub(crate) async fn exist<'a, K: Key + ?Sized + 'a>(
    space: &Arc<SpaceCore>,
    keys: impl IntoIterator<Item = &'a K>,
) -> Result<Vec<bool>, Error> {
    let core = &space.core;
    let mut wanted = Vec::new();
    let mut found = Vec::new();
    for key in keys {
        let mut buffer = KeyBuffer::default();
        let key = space.checked_key(key, &mut buffer)?;
        let now = core.clock.tick();
        let in_memory = core.memory.as_ref().and_then(|memory| {
            memory.peek_with(&key, now, |view| is_fresh_in_memory(space, key, view.value, now))
        });
        found.push(in_memory == Some(true));
        wanted.push(space.wanted(key.bytes));
    }
    for (tier, counters) in core.tiers.iter().zip(space.counters.below_memory()) {
        let missing: Vec<_> = found.iter_mut().zip(&wanted).filter(|(found, _)| !**found).collect();
        if missing.is_empty() {
            break;
        }
        let keys: Vec<_> = missing.iter().map(|(_, wanted)| wanted.stored.clone()).collect();
        let bytes: Vec<_> = missing.iter().map(|(_, wanted)| &*wanted.bytes).collect();
        let frames = tier.read(&*core.runtime, counters, &keys, &bytes).await;
        for ((found, wanted), frame) in missing.into_iter().zip(frames) {
            *found = frame.is_some_and(|frame| is_fresh_frame(space, wanted, tier, &frame));
        }
    }
    Ok(found)
}

impl<K: ?Sized, V> std::fmt::Debug for Get<'_, K, V> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Get").field("space", &self.space.title).finish_non_exhaustive()
    }
}

impl<K: ?Sized, V, F, E> std::fmt::Debug for GetOrLoad<'_, K, V, F, E> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("GetOrLoad")
            .field("space", &self.space.title)
            .finish_non_exhaustive()
    }
}
