//! A **write**: the line first, then the value, in every tier, with one stamp.

use std::cell::LazyCell;
use std::future::IntoFuture;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::WallTime;
use crate::codec::{Codec, ValueCodec};
use crate::core::{Core, Ticket};
use crate::entry::{AnyEntry, Details, Entry, Meta};
use crate::error::Error;
use crate::frame::Header;
use crate::freshness::{Life, Written};
use crate::implied;
use crate::key::{Key, KeyBuffer, KeyRef, StoredKey, tag_name};
use crate::lease::{Lease, Patience, while_held};
use crate::ledger::{Name, Names, Stamp};
use crate::one_step;
use crate::options::Tiers;
use crate::pending::Unfinished;
use crate::policy::Ttl;
use crate::read::{self, Wanted};
use crate::removal::of_other_types;
use crate::runtime::BoxFuture;
use crate::space::{Mode, SpaceCore};
use crate::stats::bump;
use crate::store::{Put, StoreError, Stored};
use crate::tier::OpenTier;
use crate::tracking::{Dependencies, Dependency};
use terrace_memory::{Attributes, Replace};

/// Whether what was written or invalidated holds everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It does.
    Settled,
    /// These tiers could not be told yet. Until they are, this process does not read
    /// from them what was named; it keeps trying.
    Pending(Vec<Arc<str>>),
}

impl Settled {
    /// Whether it holds everywhere.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        *self == Self::Settled
    }
}

/// A write of one value; await it. See [`Space::insert`](crate::Space::insert).
///
/// Everything under the key that was loaded or written before is dead from here on,
/// in every process that shares the authority; what is being loaded meanwhile is not
/// stored. If somebody else writes the key at the same time, the later line wins.
///
/// Fails if the key is too long, a tag cannot be used, the value cannot be encoded or
/// is too large for every tier, or the cache is closed. Tiers that are away are not an
/// error: they are named in [`Settled::Pending`].
#[must_use = "a write does nothing until it is awaited"]
pub struct Insert<'a, K: ?Sized, V> {
    space: &'a Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    key: &'a K,
    value: V,
    ttl: Ttl,
    tags: Result<Arc<[Arc<str>]>, Error>,
    dependencies: Dependencies,
    version: Option<Arc<str>>,
    unwritten: Result<Tiers, Error>,
}

impl<K: ?Sized, V> std::fmt::Debug for Insert<'_, K, V> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Insert").field("space", &self.space.title).finish_non_exhaustive()
    }
}

impl<'a, K: ?Sized, V> Insert<'a, K, V> {
    pub(crate) fn new(
        space: &'a Arc<SpaceCore>,
        codec: Option<ValueCodec<V>>,
        key: &'a K,
        value: V,
    ) -> Self {
        Self {
            space,
            codec,
            key,
            value,
            ttl: Ttl::default(),
            tags: Ok(Arc::default()),
            dependencies: Dependencies::default(),
            version: None,
            unwritten: Ok(Tiers::default()),
        }
    }

    /// The value lives exactly this long, whatever its space says.
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { ttl: Ttl::Exactly(ttl), ..self }
    }

    /// The value never expires.
    pub fn forever(self) -> Self {
        Self { ttl: Ttl::Forever, ..self }
    }

    /// The value carries these tags.
    pub fn tags<T: AsRef<str>>(self, tags: impl IntoIterator<Item = T>) -> Self {
        Self { tags: checked_tags(self.space.tenant.as_str(), tags), ..self }
    }

    /// The value was built from these: invalidating or writing one of them invalidates it.
    ///
    /// A dependency is what [`Space::dependency`](crate::Space::dependency) says of a key;
    /// [`Dependency::on`] adds what was found there, whatever that was built from, and keeps the
    /// value from being stored if it has been invalidated since.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let terrace = terrace::Terrace::builder().memory(terrace::Memory::bytes(1 << 20)).build().await?;
    /// let users = terrace.space::<u64, String>("user").tracked().build()?;
    /// let pages = terrace.space::<str, String>("page").build()?;
    /// users.insert(&7, "Ada".into()).await?;
    ///
    /// if let Some(user) = users.get(&7).await? {
    ///     let page = format!("<h1>{}</h1>", *user);
    ///     pages.insert("/7", page).depends_on([users.dependency(&7).on(&user)]).await?;
    /// }
    /// users.invalidate(&7).await?;
    /// assert!(pages.get("/7").await?.is_none());
    /// # Ok(()) }
    /// ```
    pub fn depends_on(mut self, dependencies: impl IntoIterator<Item = Dependency>) -> Self {
        self.dependencies.add(dependencies);
        self
    }

    /// The source's version of the value: see [`Loaded::version`](crate::Loaded::version).
    pub fn version(self, version: impl Into<Arc<str>>) -> Self {
        Self { version: Some(version.into()), ..self }
    }

    /// Stores the value in this tier alone: `memory`, or a tier's own name. What the others
    /// have under the key is gone all the same.
    pub fn only(self, tier: &str) -> Self {
        let number = self.space.core.tier_number(tier);
        let unwritten = number.map(Tiers::all_but).ok_or_else(|| Error::NoSuchTier(tier.into()));
        Self { unwritten, ..self }
    }

    /// Stores the value in all tiers but this one, where what is under the key is gone.
    pub fn skip(self, tier: &str) -> Self {
        let number = self.space.core.tier_number(tier);
        let unwritten = match (self.unwritten, number) {
            (Ok(mut unwritten), Some(number)) => {
                unwritten.add(number);
                Ok(unwritten)
            }
            (Err(error), _) => Err(error),
            (Ok(_), None) => Err(Error::NoSuchTier(tier.into())),
        };
        Self { unwritten, ..self }
    }
}

impl<'a, K, V> IntoFuture for Insert<'a, K, V>
where
    K: Key + Sync + ?Sized,
    V: Send + Sync + 'static,
{
    type Output = Result<Settled, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(mut self) -> Self::IntoFuture {
        Box::pin(async move {
            let tags = self.dependencies.joined(&self.tags?)?;
            let (ttl, version) = (self.ttl, self.version);
            let options = EntryOptions { ttl, tags, version, ..Default::default() };
            let (wanted, unwritten) = (checked_wanted(self.space, self.key)?, self.unwritten?);
            let entries = vec![(wanted, self.value)];
            insert(self.space, self.codec, entries, options, &self.dependencies, unwritten).await
        })
    }
}

/// What a call says about the entry that it makes.
#[derive(Clone, Debug, Default)]
pub(crate) struct EntryOptions {
    pub(crate) ttl: Ttl,
    pub(crate) tags: Arc<[Arc<str>]>,
    pub(crate) stamp: Stamp,
    pub(crate) is_hashed: bool,
    pub(crate) version: Option<Arc<str>>,
    pub(crate) last_modified: Option<WallTime>,
    pub(crate) load_time: Duration,
    pub(crate) is_untraced: bool,
}

/// Tags of a tenant as the ledger names them.
pub(crate) fn checked_tags<T: AsRef<str>>(
    tenant: &str,
    tags: impl IntoIterator<Item = T>,
) -> Result<Arc<[Arc<str>]>, Error> {
    let mut names: Vec<Arc<str>> = Vec::new();
    for tag in tags {
        let tag = tag.as_ref();
        checked_tag(tag)?;
        let name = tag_name(tenant, tag);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.len() > MOST_TAGS {
        return Err(Error::Tags("there are too many tags"));
    }
    Ok(names.into())
}

pub(crate) fn checked_tag(tag: &str) -> Result<(), Error> {
    if tag.is_empty() || tag.len() > 256 {
        return Err(Error::Tags("a tag is empty or too long"));
    }
    Ok(())
}

/// Tags that an entry may carry.
const MOST_TAGS: usize = 64;

/// The tags of a call and those that its loader found out.
pub(crate) fn joined_tags(
    of_call: &Arc<[Arc<str>]>,
    of_loader: &[Arc<str>],
) -> Result<Arc<[Arc<str>]>, &'static str> {
    if of_loader.is_empty() {
        return Ok(Arc::clone(of_call));
    }
    let new = of_loader.iter().filter(|tag| !of_call.contains(tag));
    let joined: Vec<_> = of_call.iter().chain(new).cloned().collect();
    if joined.len() > MOST_TAGS { Err("there are too many tags") } else { Ok(joined.into()) }
}

pub(crate) fn checked_wanted<K: Key + ?Sized>(space: &SpaceCore, key: &K) -> Result<Wanted, Error> {
    let mut buffer = KeyBuffer::default();
    Ok(Wanted::new(space.checked_key(key, &mut buffer)?.bytes))
}

pub(crate) async fn insert_many<K: Key + ?Sized, V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    entries: Vec<(&K, V)>,
) -> Result<Settled, Error> {
    let entries = entries
        .into_iter()
        .map(|(key, value)| Ok((checked_wanted(space, key)?, value)))
        .collect::<Result<_, Error>>()?;
    let options = EntryOptions::default();
    insert(space, codec, entries, options, &Dependencies::default(), Tiers::default()).await
}

/// Line, then memory, then each tier.
async fn insert<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    entries: Vec<(Wanted, V)>,
    options: EntryOptions,
    dependencies: &Dependencies,
    unwritten: Tiers,
) -> Result<Settled, Error> {
    let _underway = space.core.begin()?;
    if entries.is_empty() {
        return Ok(Settled::Settled);
    }
    // What cannot be encoded or stored must not cost anybody the value before it.
    let entries = entries
        .into_iter()
        .map(|(wanted, value)| Ok((wanted, encode_first(space, codec, value)?)))
        .collect::<Result<Vec<_>, Error>>()?;
    insert_encoded(space, codec, entries, options, dependencies, unwritten).await
}

/// The same for what is encoded.
pub(crate) async fn insert_encoded<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    entries: Vec<(Wanted, Encoded<V>)>,
    options: EntryOptions,
    dependencies: &Dependencies,
    unwritten: Tiers,
) -> Result<Settled, Error> {
    let mut unwritten = if space.mode() == Mode::Off { Tiers::ALL } else { unwritten };
    let names: Vec<_> =
        entries.iter().map(|(wanted, _)| Name::Set(Arc::clone(wanted.name(space)))).collect();
    let dependents = space.core.dependents(&names);
    let mut entries = make_all(space, entries, &options);
    let unfinished = Unfinished::new(&space.core, false, names.iter().cloned());
    // What depends on something has to look at it between the two.
    let one_step = match codec {
        Some(codec) if dependencies.is_empty() => {
            one_step::write(space, codec, &entries, &names, unwritten).await
        }
        _ => None,
    };
    let (invalidated, is_there) = match one_step {
        Some(done) => done,
        None => (space.core.invalidate(names).await, false),
    };
    // Lines of the same batch name only keys of the batch: its last position stamps all.
    let mut ticket = space.core.ticket();
    if let Some(position) = invalidated.position {
        ticket.stamp = position;
    }
    if !dependencies.stand(&space.core) {
        unwritten = Tiers::ALL;
    }
    stamp_all(&mut entries, ticket.stamp);
    let stored = store(space, codec, entries, ticket, unwritten, is_there).await;
    unfinished.done();
    // What was built meanwhile may have been built without it.
    let named = space.core.invalidate_again(dependents).await;
    Ok(match (invalidated.settled, named) {
        (Settled::Settled, Settled::Settled) => stored?,
        (Settled::Settled, pending) | (pending, _) => stored.map(|_| pending)?,
    })
}

/// Entries of what was encoded, which have no stamp yet.
fn make_all<V>(
    space: &SpaceCore,
    entries: Vec<(Wanted, Encoded<V>)>,
    options: &EntryOptions,
) -> Vec<(Wanted, Fresh<V>)> {
    let make = |(wanted, encoded): (Wanted, Encoded<V>)| {
        let options = EntryOptions { is_hashed: wanted.is_hashed, ..options.clone() };
        (wanted, make(space, encoded, &options))
    };
    entries.into_iter().map(make).collect()
}

fn stamp_all<V>(entries: &mut [(Wanted, Fresh<V>)], stamp: Stamp) {
    for (_, fresh) in entries {
        // Nobody else has it yet.
        if let Some(entry) = Arc::get_mut(&mut fresh.entry) {
            entry.meta.stamp = stamp;
        }
    }
}

/// Stores entries everywhere but where they are: in the tier of the ledger, in one step with their lines.
async fn store<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    entries: Vec<(Wanted, Fresh<V>)>,
    ticket: Ticket,
    unwritten: Tiers,
    is_there: bool,
) -> Result<Settled, Error> {
    for (wanted, fresh) in &entries {
        let key = KeyRef { space: space.number, bytes: &wanted.bytes };
        space.core.retries.forget(key);
        if !unwritten.has_memory() {
            to_memory(space, key, &fresh.entry, ticket);
        }
    }
    let mut away = Vec::new();
    let mut failure = None;
    for (index, tier) in space.core.tiers.iter().enumerate() {
        let Some(codec) = codec else { continue };
        let mut failed: Vec<_> =
            entries.iter().map(|(wanted, _)| Arc::clone(wanted.name(space))).collect();
        let is_done = tier.is_authority && is_there;
        if !is_done && !unwritten.has(index + 1) && !space.policy.unused.has(index + 1) {
            let puts: Vec<_> = entries
                .iter()
                .map(|(wanted, fresh)| (wanted, put(space, codec, wanted, fresh, tier)))
                .collect();
            let (names, error) = put_all(space, tier, index, puts).await;
            failed = names;
            failure = failure.or(error.map(|error| tier.failed(error)));
        }
        if tier.is_authority {
            continue;
        }
        // What could not be replaced, is of another type, or was overtaken by a later line
        // must not be found there later.
        let (mut names, mut left) = (Vec::new(), Vec::new());
        for (wanted, fresh) in &entries {
            let (before, meta) = (left.len(), &fresh.entry.meta);
            let is_left = failed.contains(wanted.name(space))
                || !read::stands(space, wanted.name(space), meta.stamp, &meta.details().tags);
            left.extend(is_left.then(|| wanted.stored(space).clone()));
            left.extend(of_other_types(space, wanted));
            names.extend((left.len() > before).then(|| Name::Key(Arc::clone(wanted.name(space)))));
        }
        if !left.is_empty() && !take_away(space, tier, index, &left).await {
            away.push(Arc::clone(&tier.name));
            space.core.hold_back(names);
        }
    }
    match failure {
        Some(failure) if !space.policy.is_graceful => Err(failure),
        _ if away.is_empty() => Ok(Settled::Settled),
        _ => Ok(Settled::Pending(away)),
    }
}

/// Puts frames into a tier; returns the names of those that are not stored there, and what
/// went wrong if the tier failed.
pub(crate) async fn put_all(
    space: &SpaceCore,
    tier: &OpenTier,
    index: usize,
    puts: Vec<(&Wanted, Option<Put>)>,
) -> (Vec<Arc<str>>, Option<StoreError>) {
    let Some(counters) = space.counters.below_memory().get(index) else {
        return (Vec::new(), None);
    };
    let (mut names, mut frames, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for (wanted, put) in puts {
        match put {
            Some(put) => {
                names.push(Arc::clone(wanted.name(space)));
                frames.push(put);
            }
            None => {
                bump(&counters.refused);
                failed.push(Arc::clone(wanted.name(space)));
            }
        }
    }
    if frames.is_empty() {
        return (failed, None);
    }
    match tier.write(counters, &frames).await {
        Ok(stored) => {
            let refused =
                names.into_iter().zip(stored).filter(|(_, stored)| *stored != Stored::Yes);
            failed.extend(refused.map(|(name, _)| name));
            (failed, None)
        }
        Err(error) => {
            failed.extend(names);
            (failed, Some(error))
        }
    }
}

pub(crate) async fn take_away(
    space: &SpaceCore,
    tier: &OpenTier,
    index: usize,
    left: &[StoredKey],
) -> bool {
    let Some(counters) = space.counters.below_memory().get(index) else { return true };
    tier.remove(counters, left).await.is_ok()
}

/// Stores an entry in one tier below memory.
pub(crate) async fn to_tier<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: ValueCodec<V>,
    wanted: &Wanted,
    entry: &Arc<Entry<V>>,
    encoded: Option<&(Codec, Bytes)>,
    index: usize,
) {
    let Some(tier) = space.core.tiers.get(index) else { return };
    if space.policy.unused.has(index + 1) {
        return;
    }
    let fresh = Fresh { entry: Arc::clone(entry), encoded: encoded.cloned() };
    let put = put(space, codec, wanted, &fresh, tier);
    put_all(space, tier, index, vec![(wanted, put)]).await;
}

/// Takes back what was put into a store that does not hear the ledger, if a line came
/// meanwhile that it is dead by.
pub(crate) async fn undo_if_dead(
    space: &SpaceCore,
    wanted: &Wanted,
    stamp: Stamp,
    tags: &[Arc<str>],
    index: usize,
) {
    if let Some(tier) = space.core.tiers.get(index)
        && !tier.is_authority
        && !read::stands(space, wanted.name(space), stamp, tags)
        && !take_away(space, tier, index, std::slice::from_ref(wanted.stored(space))).await
    {
        space.core.hold_back(vec![Name::Key(Arc::clone(wanted.name(space)))]);
    }
}

/// Stores an entry in memory if nothing since its ticket names it and nothing newer
/// is there: decided and done in one step, under the entry's lock.
pub(crate) fn to_memory<V: Send + Sync + 'static>(
    space: &SpaceCore,
    key: KeyRef<'_>,
    entry: &Arc<Entry<V>>,
    ticket: Ticket,
) -> bool {
    let core = &space.core;
    let Some(memory) = &core.memory else { return false };
    if space.policy.unused.has_memory() {
        return false;
    }
    let meta = &entry.meta;
    let name = LazyCell::new(|| space.name_of(key.bytes));
    let names = || Names { key: &name, space: &space.name, tags: &meta.details().tags };
    // Stamp and space are those of the entry itself.
    let attributes = Attributes {
        expires: meta.times.life().stale_until,
        idle: space.policy.idle,
        ..Attributes::default()
    };
    let any: AnyEntry = Arc::clone(entry) as _;
    let replace = || {
        memory.replace_if(key.to_memory_key(), any, attributes, core.clock.tick(), |present| {
            let is_newer = present.is_none_or(|present| {
                let present = present.value.meta();
                core.mirror.is_foreign(present.stamp)
                    || present.stamp.number <= meta.stamp.number
                        && !is_outdated_by(space, key, meta, present)
            });
            is_newer
                && core.permits(ticket, names)
                // Copies keep the stamp of another load.
                && (meta.stamp == ticket.stamp
                    || core.mirror.standing_in_full(meta.stamp, &names()).stands())
        })
    };
    // A value that had to make room may panic when it is dropped. Nobody counts on this one
    // being in memory then.
    let replaced = catch_unwind(AssertUnwindSafe(replace)).unwrap_or(Replace::Refused);
    let is_stored = matches!(replaced, Replace::Stored | Replace::Replaced);
    if let Some(counters) = space.memory_counters() {
        bump(if is_stored { &counters.writes } else { &counters.refused });
    }
    is_stored
}

/// Whether memory has something newer, as the source itself says.
pub(crate) fn is_outdated(space: &SpaceCore, key: KeyRef<'_>, meta: &Meta) -> bool {
    let core = &space.core;
    let outdated = core.memory.as_ref().and_then(|memory| {
        memory.peek_with(&key, core.clock.tick(), |view| {
            is_outdated_by(space, key, meta, view.value.meta())
        })
    });
    outdated == Some(true)
}

/// The same of one entry in memory: what was invalidated makes way for anything.
pub(crate) fn is_outdated_by(
    space: &SpaceCore,
    key: KeyRef<'_>,
    meta: &Meta,
    present: &Meta,
) -> bool {
    meta.source_age().is_older_than(present.source_age())
        && space.core.standing_in_memory(space, key, present).stands()
}

/// A new entry, and its bytes if they were needed already.
pub(crate) struct Fresh<V> {
    pub(crate) entry: Arc<Entry<V>>,
    pub(crate) encoded: Option<(Codec, Bytes)>,
}

/// A value and its bytes, if it has any.
pub(crate) struct Encoded<V> {
    pub(crate) value: V,
    pub(crate) bytes: Option<(Codec, Bytes)>,
}

/// An entry for a value that was loaded. One that cannot be encoded stays in memory.
pub(crate) fn prepare<V>(
    space: &SpaceCore,
    codec: Option<ValueCodec<V>>,
    value: V,
    options: &EntryOptions,
) -> Fresh<V> {
    let bytes = codec.and_then(|codec| match codec.encode(&value, codec.preferred) {
        Ok(bytes) => Some((codec.preferred, bytes)),
        Err(error) => {
            tracing::warn!(space = %space.title, %error, "a value cannot be encoded: it stays in memory");
            None
        }
    });
    make(space, Encoded { value, bytes }, options)
}

pub(crate) fn encode_first<V>(
    space: &SpaceCore,
    codec: Option<ValueCodec<V>>,
    value: V,
) -> Result<Encoded<V>, Error> {
    let bytes = match codec {
        Some(codec) => {
            let bytes = codec.encode(&value, codec.preferred).map_err(Error::Encode)?;
            Some((codec.preferred, bytes))
        }
        None => None,
    };
    let size = bytes.as_ref().map_or(0, |(_, bytes)| bytes.len());
    let weight = space.weight_of::<V>(size);
    let (core, unused) = (&space.core, space.policy.unused);
    let fits_memory = !unused.has_memory()
        && core.memory.as_ref().is_some_and(|memory| weight <= memory.max_value_bytes());
    let takes = |tier: &OpenTier| size <= tier.max_value_bytes;
    let fits_a_tier = codec.is_some()
        && (1..).zip(&core.tiers).any(|(number, tier)| !unused.has(number) && takes(tier));
    if fits_memory || fits_a_tier {
        Ok(Encoded { value, bytes })
    } else {
        Err(Error::ValueTooLarge { bytes: weight })
    }
}

pub(crate) fn make<V>(space: &SpaceCore, encoded: Encoded<V>, options: &EntryOptions) -> Fresh<V> {
    let (life, written) = new_life(space, options);
    let size = encoded.bytes.as_ref().map_or(0, |(_, bytes)| bytes.len());
    let mut tags = Arc::clone(&options.tags);
    if options.is_hashed {
        // Lines about prefixes find it by this.
        tags = tags.iter().cloned().chain([implied::long_keys(&space.name)]).collect();
    }
    let (version, is_hashed) = (options.version.clone(), options.is_hashed);
    let mut details = Details::new(tags, version, options.last_modified, is_hashed);
    details.is_untraced = options.is_untraced;
    let meta = Meta::new(options.stamp, life, written, details, space.weight_of::<V>(size))
        .loaded_in(options.load_time);
    meta.times.set_checked(space.core.clock.tick());
    Fresh { entry: Arc::new(Entry { value: encoded.value, meta }), encoded: encoded.bytes }
}

/// A life that begins now, here and as it is written down.
pub(crate) fn new_life(space: &SpaceCore, options: &EntryOptions) -> (Life, Written) {
    let (core, policy) = (&space.core, &space.policy);
    let ttl = policy.lifetime(options.ttl, core.runtime.random());
    let life = Life::begin(core.clock.tick(), ttl, policy.stale_for);
    let life = life.aging(policy.aging(ttl, options.load_time));
    (life, Written::begin(core.wall(), ttl, policy.stale_for))
}

/// The frame of an entry for a tier; `None` if the tier does not take it.
pub(crate) fn put<V>(
    space: &SpaceCore,
    codec: ValueCodec<V>,
    wanted: &Wanted,
    fresh: &Fresh<V>,
    tier: &OpenTier,
) -> Option<Put> {
    let meta = &fresh.entry.meta;
    // Values of raw spaces are bytes whatever the tier prefers.
    let used = match (codec.preferred, tier.codec) {
        (Codec::Raw, _) | (_, None) => codec.preferred,
        (_, Some(codec)) => codec,
    };
    let bytes = match &fresh.encoded {
        Some((codec, bytes)) if *codec == used => bytes.clone(),
        _ => codec.encode(&fresh.entry.value, used).ok()?,
    };
    if bytes.len() > tier.max_value_bytes {
        return None;
    }
    let core = &space.core;
    let written = meta.times.written().capped(core.wall(), max_ttl(space, tier));
    let header = Header {
        codec: used,
        created: written.created,
        expires: written.expires,
        stale_until: written.stale_until,
        stamp: meta.stamp,
        last_modified: meta.details().last_modified,
        version: meta.details().version.clone(),
        tags: Arc::clone(&meta.details().tags),
        dependencies: Arc::default(),
        key: wanted.bytes.to_vec().into(),
    };
    let (raw, frame) = (bytes.len(), tier.encode(wanted.stored(space), header, bytes));
    if let Some(counters) = space.counters.below_memory().get(index_of(core, tier)) {
        counters.raw_bytes.fetch_add(raw as u64, Ordering::Relaxed);
        counters.packed_bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
    }
    let tags = Arc::clone(&meta.details().tags);
    let (expires, stamp) = (written.end(), meta.stamp);
    Some(Put { key: wanted.stored(space).clone(), frame, expires, stamp, tags })
}

/// How long an entry may stay fresh in a tier. None but memory knows when it was read last: in
/// the others an entry that is to expire when it is idle does so at the latest by then.
pub(crate) fn max_ttl(space: &SpaceCore, tier: &OpenTier) -> Option<Duration> {
    [tier.max_ttl, space.policy.idle].into_iter().flatten().min()
}

pub(crate) fn index_of(core: &Core, tier: &OpenTier) -> usize {
    core.tiers.iter().take_while(|other| !std::ptr::eq(*other, tier)).count()
}

/// How long a writer waits for another one of the same key.
pub(crate) const WRITERS_PATIENCE: Duration = Duration::from_secs(5);

pub(crate) async fn insert_if_absent<K: Key + ?Sized, V: Send + Sync + 'static>(
    insert: Insert<'_, K, V>,
) -> Result<bool, Error> {
    let Insert { space, codec, key, value, ttl, tags, mut dependencies, version, unwritten } =
        insert;
    let (_underway, unwritten) = (space.core.begin()?, unwritten?);
    let tags = dependencies.joined(&tags?)?;
    let options = EntryOptions { ttl, tags, version, ..EntryOptions::default() };
    let wanted = checked_wanted(space, key)?;
    let encoded = encode_first(space, codec, value)?;
    // Writers exclude each other, not loaders: "!" never ends the name of a key.
    let lock: Arc<str> = format!("{}!", wanted.name(space)).into();
    let mut patience = Patience::new(WRITERS_PATIENCE);
    let lease = loop {
        // Whoever comes too late need not wait to be told so.
        if read::exist(space, [key]).await?.contains(&true) {
            return Ok(false);
        }
        if let Some(lease) = Lease::ask_from_outside(&space.core, &lock).await {
            break lease;
        }
        if !patience.wait(&space.core).await {
            return Err(Error::Busy);
        }
    };
    let inserted = {
        let inserting = insert_unless_there(
            space,
            codec,
            key,
            wanted,
            encoded,
            &options,
            &dependencies,
            unwritten,
        );
        while_held([&lease], pin!(inserting)).await
    };
    lease.release().await;
    inserted
}

#[expect(clippy::too_many_arguments, reason = "all that a write knows")]
async fn insert_unless_there<K: Key + ?Sized, V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    key: &K,
    wanted: Wanted,
    encoded: Encoded<V>,
    options: &EntryOptions,
    dependencies: &Dependencies,
    unwritten: Tiers,
) -> Result<bool, Error> {
    let core = &space.core;
    let name = Name::Set(Arc::clone(wanted.name(space)));
    let mut patience = Patience::new(WRITERS_PATIENCE);
    loop {
        let mut ticket = core.ticket();
        if read::exist(space, [key]).await?.contains(&true) {
            return Ok(false);
        }
        let names = Names { key: wanted.name(space), space: &space.name, tags: &[] };
        let append = || core.authority.append_if_unnamed(ticket.stamp, name.clone(), names);
        let unfinished = Unfinished::new(core, false, [name.clone()]);
        let appended = core.ask(append).await?;
        if let Some(appended) = appended {
            if !core.applied(std::slice::from_ref(&name), &appended).await {
                core.hold_back(vec![name.clone()]);
                ticket = core.ticket();
            } else if !appended.undropped.is_empty() {
                core.hold_back_told(vec![name.clone()]);
                ticket = core.ticket();
            }
            ticket.stamp = appended.position;
            let unwritten = if dependencies.stand(core) { unwritten } else { Tiers::ALL };
            let dependents = core.dependents(std::slice::from_ref(&name));
            core.invalidate_again(dependents.clone()).await;
            let mut entries = make_all(space, vec![(wanted, encoded)], options);
            stamp_all(&mut entries, ticket.stamp);
            let stored = store(space, codec, entries, ticket, unwritten, false).await;
            unfinished.done();
            core.invalidate_again(dependents).await;
            return stored.map(|_| true);
        }
        unfinished.done();
        // Somebody wrote or invalidated between: look again.
        let _ = core.follow().await;
        if !patience.wait(core).await {
            return Err(Error::Busy);
        }
    }
}
