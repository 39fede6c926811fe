//! A **read**: memory, then each tier below it in order, and the copies upwards.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::clock::{Moment, Tick};
use crate::codec::ValueCodec;
use crate::core::Ticket;
use crate::entry::{Absent, AnyEntry, Details, Entry, Meta, Source, typed, typed_ref};
use crate::error::Error;
use crate::flight::Crash;
use crate::frame::Frame;
use crate::freshness::{Freshness, Life, Written, judge};
use crate::key::{Key, KeyBuffer, KeyBytes, KeyRef, StoredKey, is_hashed};
use crate::ledger::{Name, Names, Stamp};
use crate::options::Reading;
use crate::pending::Unfinished;
use crate::protocol::Standing;
use crate::retry::Failed;
use crate::runtime::{BoxFuture, in_task, unless};
use crate::space::{Mode, SpaceCore};
use crate::stats::{TrafficCounters, bump};
use crate::store::StoreError;
use crate::tier::OpenTier;
use crate::tracking;
use crate::write;

/// An entry that may be served, fresh or stale.
pub(crate) struct Found<V> {
    pub(crate) entry: Arc<Entry<V>>,
    pub(crate) freshness: Freshness,
}

/// What memory knows of a key.
pub(crate) enum Known<V> {
    Entry(Found<V>),
    /// The source has no value.
    Absent,
}

/// What memory has under `key`, if it is fresh and does not age.
#[inline]
pub(crate) fn fresh_in_memory<V: Send + Sync + 'static>(
    space: &SpaceCore,
    key: KeyRef<'_>,
) -> Option<Arc<Entry<V>>> {
    let now = space.core.clock.tick();
    let is_fresh =
        |entry: &Arc<Entry<V>>| judge_in_memory(space, key, &entry.meta, now) == Freshness::Fresh;
    let memory = space.core.memory.as_ref()?;
    memory.get_with(&key, now, |entry| typed(entry).filter(is_fresh)).flatten()
}

/// What memory has under `key` that is not dead.
pub(crate) fn from_memory<V: Send + Sync + 'static>(
    space: &SpaceCore,
    key: KeyRef<'_>,
    now: Tick,
) -> Option<Known<V>> {
    let known = space.core.memory.as_ref()?.get_with(&key, now, |entry| {
        let Some(entry) = typed(entry) else {
            let is_known = || judge_in_memory(space, key, entry.meta(), now).is_fresh();
            return (is_absent(entry) && is_known()).then_some(Known::Absent);
        };
        match judge_in_memory(space, key, &entry.meta, now) {
            Freshness::Dead => None,
            freshness => Some(Known::Entry(Found { entry, freshness })),
        }
    });
    known.flatten()
}

fn is_absent(entry: &AnyEntry) -> bool {
    typed_ref::<Absent>(entry).is_some()
}

/// Whether an entry is what a read asks for that is particular about it.
pub(crate) fn is_recent_enough(meta: &Meta, reading: &Reading) -> bool {
    reading.at_least.as_ref().is_none_or(|version| meta.source_age().is_at_least(version))
}

/// Whether the source is to be asked for its version before an entry is served.
pub(crate) fn is_unchecked(space: &SpaceCore, meta: &Meta, now: Tick) -> bool {
    let Some(every) = space.policy.check_every else { return false };
    meta.times.checked().is_none_or(|checked| now.saturating_since(checked) >= every)
}

/// Whether an entry that is past its end is not so by more than a read accepts.
pub(crate) fn is_stale_enough(space: &SpaceCore, meta: &Meta, reading: &Reading) -> bool {
    reading.max_stale.is_none_or(|most| {
        let here = space.core.clock.tick().saturating_since(meta.times.life().fresh_until);
        // What was found below when it was past its end already only says when that was.
        let end = meta.times.written().expires;
        let written = end.map_or(Duration::ZERO, |end| space.core.wall().saturating_since(end));
        here.max(written) <= most
    })
}

/// The failure for which a load of a key has to wait; what was invalidated since need not.
pub(crate) fn waits_for_retry(space: &SpaceCore, key: KeyRef<'_>) -> Option<Failed> {
    let core = &space.core;
    let failure = core.retries.waiting(key, core.clock.tick())?;
    let name = space.name_of(key.bytes);
    let names = Names { key: &name, space: &space.name, tags: &failure.tags };
    if core.permits(failure.ticket, || names) {
        return Some(failure);
    }
    core.retries.forget(key);
    None
}

/// Reads a fresh value in memory without counting a reference to it.
pub(crate) fn with_memory<V: Send + Sync + 'static, R>(
    space: &SpaceCore,
    key: KeyRef<'_>,
    read: impl FnOnce(&V) -> R,
) -> Option<R> {
    if space.confirms || space.mode() != Mode::On {
        return None;
    }
    if space.is_tracked && tracking::is_noting() {
        let found = fresh_in_memory::<V>(space, key);
        tracking::note(space, key.bytes, found.as_ref().map(|entry| &entry.meta));
    }
    let now = space.core.clock.tick();
    let answer = space.core.memory.as_ref().and_then(|memory| {
        memory.get_with(&key, now, |entry| {
            let entry = typed_ref::<V>(entry)?;
            let is_fresh = judge_in_memory(space, key, &entry.meta, now).is_fresh();
            is_fresh.then(|| read(&entry.value))
        })
    });
    let answer = answer.flatten();
    if let Some(counters) = space.memory_counters() {
        if answer.is_some() { counters.hits.bump() } else { counters.misses.bump() }
    }
    answer
}

#[inline]
fn judge_in_memory(space: &SpaceCore, key: KeyRef<'_>, meta: &Meta, now: Tick) -> Freshness {
    judge_in(space, meta.times.life(), space.core.standing_in_memory(space, key, meta), now)
}

/// A key as everything below memory knows it. Its texts are made when they are asked for: a
/// cache of memory alone seldom needs them.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) bytes: KeyBytes,
    name: OnceLock<Arc<str>>,
    stored: OnceLock<StoredKey>,
    pub(crate) is_hashed: bool,
}

impl Wanted {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self {
            bytes: KeyBytes::from_slice(bytes),
            name: OnceLock::new(),
            stored: OnceLock::new(),
            is_hashed: is_hashed(bytes),
        }
    }

    /// As the ledger names it in `space`, which is always the same.
    pub(crate) fn name(&self, space: &SpaceCore) -> &Arc<str> {
        self.name.get_or_init(|| space.name_of(&self.bytes))
    }

    /// As stores know it in `space`, which is always the same.
    pub(crate) fn stored(&self, space: &SpaceCore) -> &StoredKey {
        self.stored.get_or_init(|| space.stored_key(&self.bytes))
    }
}

/// What was written behind of a key and is not in its source yet.
#[cfg_attr(
    not(feature = "disk"),
    expect(dead_code, reason = "without a journal nothing is written behind")
)]
pub(crate) enum Unflushed<V> {
    Value(Arc<Entry<V>>),
    Removed,
}

#[cfg(feature = "disk")]
pub(crate) use crate::behind::{is_unflushed, unflushed};

#[cfg(not(feature = "disk"))]
pub(crate) fn unflushed<V>(
    _: &SpaceCore,
    _: Option<ValueCodec<V>>,
    _: &Wanted,
    _: Ticket,
    _: &Reading,
) -> Result<Option<Unflushed<V>>, Crash> {
    Ok(None)
}

#[cfg(not(feature = "disk"))]
pub(crate) fn is_unflushed(_: &SpaceCore, _: &[u8]) -> Result<Option<bool>, Crash> {
    Ok(None)
}

/// Why a read without a loader failed.
pub(crate) fn failed(crash: Crash) -> Error {
    match crash {
        Crash::Tier(tier, source) => Error::Tier { tier, source },
        _ => Error::Closed,
    }
}

/// The same for one key.
pub(crate) async fn one_from_tiers<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    wanted: &Wanted,
    ticket: Ticket,
    reading: &Reading,
) -> Result<Option<(Found<V>, Source)>, Crash> {
    let wanted = std::slice::from_ref(wanted);
    Ok(from_tiers(space, codec, wanted, ticket, reading).await?.pop().flatten())
}

/// One for each key of a call, which mostly has one.
pub(crate) type Each<T> = SmallVec<[T; 1]>;

/// What the tiers below memory have: each is asked once, for all keys that are
/// still missing. What is found fresh is copied to memory and to the tiers above.
///
/// Fails only where the space wants to hear of tiers that fail.
pub(crate) async fn from_tiers<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    wanted: &[Wanted],
    ticket: Ticket,
    reading: &Reading,
) -> Result<Each<Option<(Found<V>, Source)>>, Crash> {
    let mut answers: Each<Option<(Found<V>, Source)>> = wanted.iter().map(|_| None).collect();
    let Some(codec) = codec.filter(|_| space.mode() != Mode::Off) else { return Ok(answers) };
    let core = &space.core;
    let mut began = core.clock.elapsed();
    let until = began.saturating_add(space.policy.tiers_deadline);
    for (depth, (tier, counters)) in
        core.tiers.iter().zip(space.counters.below_memory()).enumerate()
    {
        if reading.unread.has(depth + 1) || space.policy.unused.has(depth + 1) {
            continue;
        }
        let missing: Each<_> = answers
            .iter_mut()
            .zip(wanted)
            .filter(|(answer, _)| {
                !answer.as_ref().is_some_and(|(found, _)| found.freshness.is_fresh())
            })
            .collect();
        let left = until.saturating_sub(began);
        if missing.is_empty() || left.is_zero() {
            break;
        }
        let keys: Each<_> = missing.iter().map(|(_, wanted)| wanted).copied().collect();
        let found = from_tier(space, codec, tier, counters, &keys, left).await;
        let ended = core.clock.elapsed();
        counters.read_time.add(ended.saturating_sub(began));
        began = ended;
        let found = match found {
            Ok(found) => found,
            Err(_) if space.policy.is_graceful => continue,
            Err(error) => return Err(Crash::Tier(Arc::clone(&tier.name), Arc::new(error))),
        };
        for ((answer, wanted), found) in missing.into_iter().zip(found) {
            let Some(found) = found else { continue };
            if found.freshness.is_fresh() {
                if !reading.stays_below {
                    if !reading.unwritten.has_memory() {
                        let key = KeyRef { space: space.number, bytes: &wanted.bytes };
                        write::to_memory(space, key, &found.entry, ticket);
                    }
                    copy_up(space, codec, wanted, &found.entry, depth, reading, until).await;
                }
            } else if answer.is_some() {
                // The nearest stale answer is as good as one from farther away.
                continue;
            }
            *answer = Some((found, Source::Tier(Arc::clone(&tier.name))));
        }
        if depth > 0 {
            // The next tier is not as slow as copying was.
            began = core.clock.elapsed();
        }
    }
    Ok(answers)
}

/// What one tier has of `keys`.
async fn from_tier<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: ValueCodec<V>,
    tier: &OpenTier,
    counters: &TrafficCounters,
    wanted: &[&Wanted],
    left: Duration,
) -> Result<Each<Option<Found<V>>>, StoreError> {
    let keys: Each<_> = wanted.iter().map(|wanted| wanted.stored(space).clone()).collect();
    let frames = match tier.read(counters, &keys, Some(left)).await {
        Ok(frames) => frames,
        Err(error) => {
            keys.iter().for_each(|_| counters.misses.bump());
            return Err(error);
        }
    };
    let now = space.core.moment();
    let found = frames.into_iter().zip(&keys).zip(wanted).map(|((bytes, key), wanted)| {
        let frame = tier.check(counters, key, &bytes?, &wanted.bytes)?;
        let found = open(space, codec, wanted, tier, frame, now);
        if found.is_none() {
            tracing::trace!(tier = %tier.name, "what was found may not be served");
        }
        found?.map_err(|_| bump(&counters.unreadable)).ok()
    });
    let found: Each<Option<Found<V>>> = found.collect();
    for found in &found {
        let is_fresh = found.as_ref().is_some_and(|found| found.freshness.is_fresh());
        if is_fresh { counters.hits.bump() } else { counters.misses.bump() }
    }
    Ok(found)
}

/// The entry in a frame: `None` if it is dead, an error if it cannot be decoded.
fn open<V>(
    space: &SpaceCore,
    codec: ValueCodec<V>,
    wanted: &Wanted,
    tier: &OpenTier,
    frame: Frame,
    now: Moment,
) -> Option<Result<Found<V>, Unreadable>> {
    let freshness = judge_frame(space, wanted, tier, &frame, now);
    if freshness == Freshness::Dead {
        return None;
    }
    let decoded = frame
        .value()
        .map_err(|_| Unreadable)
        .and_then(|value| codec.decode(value, frame.header.codec).map_err(|_| Unreadable));
    Some(decoded.map(|value| {
        let written = written(&frame);
        let given = written.expires.map(|end| end.saturating_since(written.created));
        let life = Life::remaining(&written, now.wall, now.tick);
        let life = life.aging(space.policy.aging(given, Duration::ZERO));
        let header = frame.header;
        let details =
            Details::new(header.tags, header.version, header.last_modified, wanted.is_hashed);
        let bytes = space.weight_of::<V>(frame.size);
        let meta = Meta::new(header.stamp, life, written, details, bytes);
        let is_aging = freshness.is_fresh() && now.tick >= life.aging_from;
        let freshness = if is_aging { Freshness::Aging } else { freshness };
        Found { entry: Arc::new(Entry { value, meta }), freshness }
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
    judge_in_memory(space, key, entry.meta(), now).is_fresh() && !is_absent(entry)
}

/// What may be done with an entry that was found before, wherever that was.
pub(crate) fn freshness_below(space: &SpaceCore, name: &str, meta: &Meta) -> Freshness {
    let core = &space.core;
    let names = Names { key: name, space: &space.name, tags: &meta.details().tags };
    if core.pending.speaks_of(&names) {
        return Freshness::Dead;
    }
    let standing = core.mirror.standing_in_full(meta.stamp, &names);
    judge_in(space, meta.times.life(), standing, core.clock.tick())
}

/// What is out of date is of no use where nothing stale is answered.
#[inline]
fn judge_in(space: &SpaceCore, life: Life, standing: Standing, now: Tick) -> Freshness {
    match standing {
        Standing::Outdated if !space.policy.allows_stale() => Freshness::Dead,
        _ => judge(life, standing, now),
    }
}

/// Whether nothing was invalidated that an entry of this stamp and these tags is.
pub(crate) fn stands(space: &SpaceCore, name: &str, stamp: Stamp, tags: &[Arc<str>]) -> bool {
    let core = &space.core;
    let names = Names { key: name, space: &space.name, tags };
    !core.pending.speaks_of(&names) && core.mirror.standing_in_full(stamp, &names).stands()
}

/// The frame in what a tier has, if it may be served and is fresh.
pub(crate) fn fresh_frame(
    space: &SpaceCore,
    wanted: &Wanted,
    tier: &OpenTier,
    counters: &TrafficCounters,
    bytes: &Bytes,
    now: Moment,
) -> Option<Frame> {
    let frame = tier.check(counters, wanted.stored(space), bytes, &wanted.bytes)?;
    judge_frame(space, wanted, tier, &frame, now).is_fresh().then_some(frame)
}

fn judge_frame(
    space: &SpaceCore,
    wanted: &Wanted,
    tier: &OpenTier,
    frame: &Frame,
    now: Moment,
) -> Freshness {
    let core = &space.core;
    let names = Names { key: wanted.name(space), space: &space.name, tags: &frame.header.tags };
    if core.pending.speaks_of(&names) {
        return Freshness::Dead;
    }
    let stamp = frame.header.stamp;
    let is_isolated = core.is_isolated.load(Ordering::SeqCst);
    if !tier.is_authority && (is_isolated || core.mirror.may_have_missed(stamp)) {
        return Freshness::Dead;
    }
    let standing = core.mirror.standing_in_full(stamp, &names);
    let life = Life::remaining(&written(frame), now.wall, now.tick);
    judge_in(space, life, standing, now.tick)
}

fn written(frame: &Frame) -> Written {
    let header = &frame.header;
    Written { created: header.created, expires: header.expires, stale_until: header.stale_until }
}

/// Copies what was found at `depth` to the tiers above, with what is left of its life and the stamp that
/// it has. The caller waits for that until a time of the clock, and it goes on without the caller.
async fn copy_up<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: ValueCodec<V>,
    wanted: &Wanted,
    entry: &Arc<Entry<V>>,
    depth: usize,
    reading: &Reading,
    until: Duration,
) {
    let core = &space.core;
    let Some((tier, above)) = core.tiers.get(..=depth).and_then(<[_]>::split_last) else {
        return;
    };
    // What came from a narrower tier may be unknown to those who share a wider one.
    let takes = |index: usize, upper: &OpenTier| {
        upper.scope <= tier.scope && !reading.unwritten.has(index + 1)
    };
    let indexes = above.iter().enumerate().filter(|(index, upper)| takes(*index, upper));
    let indexes: Vec<_> = indexes.map(|(index, _)| index).collect();
    if indexes.is_empty() {
        return;
    }
    let (owned, wanted, entry) = (Arc::clone(space), wanted.clone(), Arc::clone(entry));
    let copying: BoxFuture<'static, ()> = Box::pin(async move {
        let Ok(_underway) = owned.core.begin() else { return };
        for index in indexes {
            copy_to(&owned, codec, &wanted, &entry, index).await;
        }
    });
    let left = until.saturating_sub(core.clock.elapsed());
    unless(|| core.runtime.sleep(left), in_task(&*core.runtime, copying)).await;
}

/// Copies an entry to one tier; takes it back if it died meanwhile.
pub(crate) async fn copy_to<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: ValueCodec<V>,
    wanted: &Wanted,
    entry: &Arc<Entry<V>>,
    index: usize,
) {
    let meta = &entry.meta;
    let name = Name::Key(Arc::clone(wanted.name(space)));
    let unfinished = Unfinished::new(&space.core, true, [name]);
    write::to_tier(space, codec, wanted, entry, None, index).await;
    write::undo_if_dead(space, wanted, meta.stamp, &meta.details().tags, index).await;
    unfinished.done();
}

/// Whether something fresh is under each key, or written behind. Decodes and copies nothing.
///
/// Where the space confirms what it says, this fails if the ledger cannot be asked.
pub(crate) async fn exist<'a, K: Key + ?Sized + 'a>(
    space: &Arc<SpaceCore>,
    keys: impl IntoIterator<Item = &'a K>,
) -> Result<Vec<bool>, Error> {
    let core = &space.core;
    if space.confirms {
        core.confirm().await?;
    }
    let mut wanted = Vec::new();
    let mut found = Vec::new();
    for key in keys {
        let mut buffer = KeyBuffer::default();
        let key = space.checked_key(key, &mut buffer)?;
        if space.is_tracked {
            tracking::note(space, key.bytes, None);
        }
        let now = core.clock.tick();
        let memory = core.memory.as_ref().filter(|_| space.mode() != Mode::Off);
        let in_memory = memory.and_then(|memory| {
            memory.peek_with(&key, now, |view| is_fresh_in_memory(space, key, view.value, now))
        });
        // What is written behind decides, before any tier below does.
        found.push(match in_memory {
            Some(true) => Some(true),
            _ => is_unflushed(space, key.bytes).map_err(failed)?,
        });
        wanted.push(Wanted::new(key.bytes));
    }
    if space.mode() == Mode::Off {
        return Ok(found.into_iter().map(Option::unwrap_or_default).collect());
    }
    for (depth, (tier, counters)) in
        core.tiers.iter().zip(space.counters.below_memory()).enumerate()
    {
        if space.policy.unused.has(depth + 1) {
            continue;
        }
        let missing: Vec<_> =
            found.iter_mut().zip(&wanted).filter(|(found, _)| found.is_none()).collect();
        if missing.is_empty() {
            break;
        }
        let keys: Vec<_> = missing.iter().map(|(_, wanted)| wanted.stored(space).clone()).collect();
        let frames = tier.read(counters, &keys, None).await;
        let now = core.moment();
        for ((found, wanted), bytes) in missing.into_iter().zip(frames.unwrap_or_default()) {
            let frame =
                bytes.and_then(|bytes| fresh_frame(space, wanted, tier, counters, &bytes, now));
            *found = frame.map(|_| true);
        }
    }
    Ok(found.into_iter().map(Option::unwrap_or_default).collect())
}
