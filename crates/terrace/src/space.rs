//! The **space**: a namespace with a key type, a value type and a policy.

use std::any::TypeId;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(feature = "disk")]
use crate::behind::{self, Behind, DeadLetter, InsertBehind, RemoveBehind};
use crate::bulkhead::Bulkhead;
use crate::cache::Terrace;
use crate::call::{Get, GetOrLoad};
use crate::codec::{Codec, ValueCodec};
use crate::core::{Core, Ticket};
use crate::entry::{Cached, Entry};
use crate::error::{BuildError, Error, LoadError, LoaderFailure};
use crate::fill;
use crate::implied;
use crate::key::{
    self, Key, KeyBuffer, KeyPrefix, KeyRef, LARGEST_KEY, MemoryKey, StoredKey, key_name,
    space_name,
};
use crate::kind::Kind;
use crate::ledger::Name;
use crate::load::Load;
use crate::loaded::Loaded;
use crate::many::{self, LoadMany};
use crate::policy::{Backoff, Policy};
use crate::probe::{self, Probe};
use crate::read;
use crate::removal;
use crate::schema::fingerprint;
#[cfg(feature = "disk")]
use crate::source::WriteId;
use crate::source::{Source, WriteBatch, WriteBehind};
use crate::stats::{KindStats, SpaceCounters, SpaceStats, Traffic, TrafficCounters, TrafficSum};
use crate::sweep::RemovePattern;
use crate::tenant::TenantName;
use crate::through::{self, InsertThrough};
use crate::tracking::Dependency;
use crate::warm;
use crate::write::{self, Insert, Settled};

/// A typed namespace of a cache. Cloning it is cheap.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use serde::{Deserialize, Serialize};
/// use terrace::{Memory, Terrace};
///
/// #[derive(Serialize, Deserialize)]
/// struct Airport { name: String, elevation: i32 }
///
/// let terrace = Terrace::builder().memory(Memory::bytes(64 << 20)).build().await?;
/// let airports = terrace
///     .space::<str, Airport>("airport")
///     .ttl(Duration::from_secs(3600))
///     .build()?;
///
/// let zurich = airports
///     .get_or_load("LSZH", |load| async move {
///         // A query, a request, a computation: run once, however many callers wait.
///         Ok::<_, std::io::Error>(Airport { name: format!("Airport {}", load.key), elevation: 1416 })
///     })
///     .tags(["country:CH"])
///     .await?;
/// assert_eq!(zurich.elevation, 1416);
///
/// let letters = airports.read("LSZH", |airport| airport.name.len());
/// assert_eq!(letters, Some(12));
///
/// terrace.invalidate_tag("country:CH").await?;
/// assert!(airports.get("LSZH").await?.is_none());
/// # Ok(()) }
/// ```
pub struct Space<K: ToOwned + ?Sized, V> {
    pub(crate) core: Arc<SpaceCore>,
    pub(crate) codec: Option<ValueCodec<V>>,
    probe: Option<Probe<K>>,
    /// How its source is written.
    pub(crate) source: Option<Arc<Source<K, V>>>,
}

impl<K: ToOwned + ?Sized, V> Clone for Space<K, V> {
    fn clone(&self) -> Self {
        Self {
            core: Arc::clone(&self.core),
            codec: self.codec,
            probe: self.probe.clone(),
            source: self.source.clone(),
        }
    }
}

impl<K: ToOwned + ?Sized, V> fmt::Debug for Space<K, V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Space").field("name", &self.core.title).finish_non_exhaustive()
    }
}

impl<K: Key + ?Sized, V: Send + Sync + 'static> Space<K, V> {
    /// The value under `key`, if there is a fresh one.
    ///
    /// From memory it costs no allocation and no await; otherwise every tier is
    /// asked in order, and what is found is copied to the tiers above it. A tier
    /// that fails counts as a miss.
    pub fn get<'a>(&'a self, key: &'a K) -> Get<'a, K, V> {
        Get::new(&self.core, self.codec, key)
    }

    /// The value under `key`, or what `loader` makes of it.
    ///
    /// From memory it costs no allocation and no await. On a miss the tiers below
    /// are asked, and if none has a fresh value the loader runs: once, in a task of
    /// its own, for everybody who asks for the key meanwhile; dropping any of them
    /// harms no other. What it brings is stored in every tier, unless the key, its
    /// space or one of its tags was invalidated since the load began; those who
    /// waited get it all the same, and whoever comes later has it loaded again.
    ///
    /// `loader` is called only on a miss, and may borrow; the future that it returns
    /// may not. It is given up after the space's deadline.
    ///
    /// Fails with what the loader failed with, to all who waited; if the space allows
    /// stale answers and has one, it answers with that instead. Until the source is asked
    /// again, after 100 ms at first and then ever later, callers get the same.
    ///
    /// A loader that knows more than a value, for example that there is none, answers with
    /// [`Loaded`]. One that reads the cache itself must not wait for what waits for it: that
    /// is [`LoadError::Circle`](crate::LoadError::Circle).
    pub fn get_or_load<'a, F, Fut, A, E>(
        &'a self,
        key: &'a K,
        loader: F,
    ) -> GetOrLoad<'a, K, V, F, E>
    where
        F: FnOnce(Load<K, V>) -> Fut,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
        A: Into<Loaded<V>>,
        E: LoaderFailure,
    {
        GetOrLoad::new(&self.core, self.codec, key, loader).probing(self.probe.as_ref())
    }

    /// The values under `keys`, in their order, or what `loader` makes of those that are
    /// missing: one look into memory, one exchange with each tier, one call of the loader.
    ///
    /// Each key is loaded once, also if other calls for one key or many overlap with this one:
    /// the loader gets those [keys](LoadMany::keys) that nobody else is loading. It answers with
    /// pairs of key and value, in any order. A key that it leaves out is
    /// [absent](Loaded::absent); if it fails, all keys that it was to load fail with its error,
    /// and [`Loaded::failed`] is for one of them.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use terrace::{LoadMany, Memory, Terrace};
    /// # let terrace = Terrace::builder().memory(Memory::bytes(1 << 20)).build().await?;
    /// let squares = terrace.space::<u64, u64>("square").build()?;
    /// squares.insert(&2, 4).await?;
    ///
    /// let answers = squares
    ///     .get_many_or_load(&[1, 2, 3], |load: LoadMany<u64>| async move {
    ///         assert_eq!(load.keys(), [1, 3]);
    ///         Ok::<_, std::io::Error>(load.keys().iter().map(|n| (*n, n * n)).collect::<Vec<_>>())
    ///     })
    ///     .await;
    /// let answers: Result<Vec<u64>, _> = answers.into_iter().map(|n| n.map(|n| *n)).collect();
    /// assert_eq!(answers?, [1, 4, 9]);
    /// # Ok(()) }
    /// ```
    pub async fn get_many_or_load<'a, F, Fut, I, A, E>(
        &self,
        keys: impl IntoIterator<Item = &'a K>,
        loader: F,
    ) -> Vec<Result<Cached<V>, LoadError<E>>>
    where
        K: 'a,
        K::Owned: Send + Sync + 'static,
        F: FnOnce(LoadMany<K::Owned>) -> Fut,
        Fut: Future<Output = Result<I, E>> + Send + 'static,
        I: IntoIterator<Item = (K::Owned, A)>,
        A: Into<Loaded<V>>,
        E: LoaderFailure,
    {
        let keys = keys.into_iter().collect();
        many::get_many_or_load(&self.core, self.codec, keys, loader).await
    }

    /// The ledger's position now, for a load that you run yourself, because it cannot be
    /// `'static`: take it before the source is read, and give it to [`Space::fill`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let terrace = terrace::Terrace::builder().memory(terrace::Memory::bytes(1 << 20)).build().await?;
    /// let prices = terrace.space::<str, u64>("price").build()?;
    ///
    /// let ticket = prices.ticket();
    /// let price = 17; // read from the source, which takes its time
    /// prices.invalidate("apple").await?; // meanwhile, somewhere else
    /// assert!(!prices.fill("apple", ticket, price).await?, "it may be out of date");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        self.core.core.ticket()
    }

    /// Stores what was loaded since `ticket`, in every tier, unless something has been
    /// invalidated or written since that makes it out of date; says whether it did.
    ///
    /// # Errors
    /// The key is too long, a tag cannot be used, or the cache is closed.
    pub async fn fill(
        &self,
        key: &K,
        ticket: Ticket,
        value: impl Into<Loaded<V>>,
    ) -> Result<bool, Error> {
        fill::fill_one(&self.core, self.codec, key, ticket, value.into()).await
    }

    /// What `read` makes of the fresh value in memory, if there is one.
    ///
    /// Looks at memory alone, awaits nothing, allocates nothing and counts no
    /// reference, which is what lets many threads read one key. `read` runs under
    /// the entry's lock: it must be short and must not use this cache.
    pub fn read<R>(&self, key: &K, read: impl FnOnce(&V) -> R) -> Option<R> {
        let mut buffer = KeyBuffer::default();
        let key = self.core.checked_key(key, &mut buffer).ok()?;
        read::with_memory(&self.core, key, read)
    }

    /// Stores `value` in every tier; await it.
    pub fn insert<'a>(&'a self, key: &'a K, value: V) -> Insert<'a, K, V> {
        Insert::new(&self.core, self.codec, key, value)
    }

    /// Writes `value` to the source, then stores it in every tier; await it.
    ///
    /// The [writer](SpaceBuilder::writer) gets a batch of this one write, and the call takes as
    /// long as it does. Of several for one key one goes after the other, in the whole fleet; what
    /// was written behind of the key goes first. If the writer fails, the call fails with
    /// [`Error::Source`], and what caches hold of the key is gone, because the source may have the
    /// write all the same. Dropping the caller does not stop a write that has begun.
    ///
    /// Fails for the same reasons as [`Space::insert`] too, with nothing written; with
    /// [`Error::Busy`] if others write the key for too long.
    pub fn insert_through<'a>(&'a self, key: &'a K, value: V) -> InsertThrough<'a, K, V> {
        InsertThrough::new(self, key, value)
    }

    /// Writes `value` to the source, then invalidates the key: the next read loads.
    ///
    /// For values that the source changes when it stores them, or that are seldom read.
    ///
    /// # Errors
    /// As for [`Space::insert_through`].
    pub async fn insert_around(&self, key: &K, value: V) -> Result<Settled, Error>
    where
        K: 'static,
        K::Owned: Send + 'static,
    {
        through::around(self, key, Some(value)).await
    }

    /// Removes the key from the source, then from every tier.
    ///
    /// # Errors
    /// As for [`Space::insert_through`].
    pub async fn remove_through(&self, key: &K) -> Result<Settled, Error>
    where
        K: 'static,
        K::Owned: Send + 'static,
    {
        through::around(self, key, None).await
    }

    /// Stores `value` in memory and in the journal, and leaves it to the space's
    /// [writer](SpaceBuilder::writer) to bring it to the source; await it.
    ///
    /// It returns when the write has got as far as you
    /// [ask](InsertBehind::acknowledge) it to: by default the journal has it, which survives the
    /// end of the process. From then on every read that begins here sees it before anything else,
    /// and no loader is asked for what the source does not have yet; in other processes that open
    /// the same journal, within the time that the ledger takes to reach them. Dropping the caller
    /// does not stop a write that has begun.
    ///
    /// Of two writes of one key the newer one takes the place of the older one, unless the writer
    /// has that already: then it comes after. A write that fails too often becomes a
    /// [dead letter](Space::dead_letters).
    ///
    /// Fails with [`Error::JournalFull`] if there is no room in time, with [`Error::Journal`] if
    /// the journal cannot be written, and for the same reasons as [`Space::insert`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use terrace::{Acknowledge, Journal, Memory, Terrace, WriteBatch};
    /// # let directory = tempfile::tempdir()?;
    /// let terrace = Terrace::builder()
    ///     .memory(Memory::bytes(64 << 20))
    ///     .journal(Journal::at(directory.path().join("journal")))
    ///     .build()
    ///     .await?;
    /// let orders = terrace
    ///     .space::<u64, String>("order")
    ///     .writer(|batch: WriteBatch<u64, String>| async move {
    ///         for write in batch {
    ///             // INSERT … ON CONFLICT …, with write.id to tell a repeat from a new write
    ///             let _ = (write.key, write.change, write.id);
    ///         }
    ///         Ok::<_, std::io::Error>(())
    ///     })
    ///     .build()?;
    ///
    /// orders.insert_behind(&7, "tea".to_owned()).acknowledge(Acknowledge::Synced).await?;
    /// assert_eq!(orders.get(&7).await?.as_deref().map(String::as_str), Some("tea"));
    /// orders.flush().await?; // the source has it now
    /// assert!(terrace.close().await);
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "disk")]
    pub fn insert_behind<'a>(&'a self, key: &'a K, value: V) -> InsertBehind<'a, K, V> {
        InsertBehind::new(self, key, value)
    }

    /// The same for a removal: from when it is acknowledged the key is absent, until the source has
    /// heard of it and beyond.
    #[cfg(feature = "disk")]
    pub fn remove_behind<'a>(&'a self, key: &'a K) -> RemoveBehind<'a, K, V> {
        RemoveBehind::new(self, key)
    }

    /// Waits until everything that was acknowledged in this space before, by whichever process
    /// with the same journal, is in the source, or a dead letter.
    ///
    /// As long as the source is away, so long does this wait: put it under a deadline.
    ///
    /// # Errors
    /// The space has no journal, it cannot be read, or the cache is closed.
    #[cfg(feature = "disk")]
    pub async fn flush(&self) -> Result<(), Error> {
        self.core.core.check_open()?;
        let behind = self.core.behind().ok_or(Error::NoJournal)?;
        behind.journal.flush(&*self.core.core.runtime, &behind.space).await
    }

    /// Up to `limit` writes that were tried too often, the oldest first. They stay in the journal
    /// until they are [replayed](Space::replay) or [dropped](Space::drop_dead_letter), or a newer
    /// write of their key takes their place. Reads do not see them: they get what the source has.
    ///
    /// # Errors
    /// The space has no journal or no writer, or the journal cannot be read.
    #[cfg(feature = "disk")]
    pub fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter<K, V>>, Error> {
        behind::dead_letters(self, limit)
    }

    /// Has a dead letter tried again, as often as a new write, with the same id; says whether it
    /// was there. Reads see it from then on.
    ///
    /// # Errors
    /// The space has no journal, it cannot be written, or the cache is closed.
    #[cfg(feature = "disk")]
    pub async fn replay(&self, id: WriteId) -> Result<bool, Error> {
        behind::replay(&self.core, id).await
    }

    /// Drops a dead letter; says whether it was there.
    ///
    /// # Errors
    /// As for [`Space::replay`].
    #[cfg(feature = "disk")]
    pub async fn drop_dead_letter(&self, id: WriteId) -> Result<bool, Error> {
        behind::bury(&self.core, id).await
    }

    /// Stores `value` unless a fresh one is there; says whether it did.
    ///
    /// Of several that try at once, in this process or another that shares the
    /// authority, one succeeds.
    ///
    /// # Errors
    /// As for [`Space::insert`]; [`Error::Busy`] if somebody holds the key for too long.
    pub async fn insert_if_absent(&self, key: &K, value: V) -> Result<bool, Error> {
        write::insert_if_absent(self.insert(key, value)).await
    }

    /// Stores many values; one exchange with each tier.
    ///
    /// # Errors
    /// As for [`Space::insert`]; then nothing is stored.
    pub async fn insert_many<'a>(
        &self,
        entries: impl IntoIterator<Item = (&'a K, V)>,
    ) -> Result<Settled, Error>
    where
        K: 'a,
    {
        let entries = entries.into_iter().collect();
        write::insert_many(&self.core, self.codec, entries).await
    }

    /// The values under `keys`, in their order; one exchange with each tier.
    ///
    /// # Errors
    /// A key is too long, or the cache is closed.
    pub async fn get_many<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a K>,
    ) -> Result<Vec<Option<Cached<V>>>, Error>
    where
        K: 'a,
    {
        many::get_many(&self.core, self.codec, keys).await
    }

    /// Removes `key` from every tier; says whether anything was there.
    ///
    /// The same as [`Space::invalidate`], with another answer.
    ///
    /// # Errors
    /// The key is too long, or the cache is closed.
    pub async fn remove(&self, key: &K) -> Result<bool, Error> {
        let (gone, _) = removal::remove(&self.core, [key]).await?;
        Ok(gone == 1)
    }

    /// Removes many keys; returns how many were there.
    ///
    /// # Errors
    /// As for [`Space::remove`].
    pub async fn remove_many<'a>(&self, keys: impl IntoIterator<Item = &'a K>) -> Result<u64, Error>
    where
        K: 'a,
    {
        removal::remove(&self.core, keys).await.map(|(gone, _)| gone)
    }

    /// Invalidates `key`: from when this returns, no read here that begins later
    /// returns what was there before, and no load that is under way stores it.
    ///
    /// # Errors
    /// The key is too long, or the cache is closed.
    pub async fn invalidate(&self, key: &K) -> Result<Settled, Error> {
        removal::remove(&self.core, [key]).await.map(|(_, settled)| settled)
    }

    /// Invalidates every key that begins with `prefix`: a text, or the first parts of a tuple.
    ///
    /// Costs one exchange with the ledger, however many entries there are; nothing is searched
    /// for, and what is dead leaves as room is needed. Of keys whose text is longer than 200 bytes
    /// only the hash is known below memory: all of the space's go along.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let terrace = terrace::Terrace::builder().memory(terrace::Memory::bytes(1 << 20)).build().await?;
    /// let emissions = terrace.space::<(u16, String), f64>("emission").build()?;
    /// let (tesla, other_year) = ((2023, "TSLA".to_owned()), (2022, "TSLA".to_owned()));
    /// emissions.insert(&tesla, 1.9).await?;
    /// emissions.insert(&other_year, 1.7).await?;
    ///
    /// emissions.invalidate_prefix(&(2023_u16,)).await?;
    /// assert!(emissions.get(&tesla).await?.is_none());
    /// assert!(emissions.get(&other_year).await?.is_some());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The prefix is longer than a key can be, or the cache is closed.
    pub async fn invalidate_prefix<P>(&self, prefix: &P) -> Result<Settled, Error>
    where
        P: KeyPrefix + ?Sized,
    {
        removal::invalidate_prefix(&self.core, prefix).await
    }

    /// Removes every key that matches `pattern`, from every tier and for every process that shares the
    /// authority; await it.
    ///
    /// `*` stands for any text, `?` for one character, `[a-z]` for one of these, `[^a-z]` for one
    /// of the others; a backslash takes the next character as it is. What is matched is a
    /// text key as it is, and the parts of a tuple with `:` between them.
    ///
    /// A pattern that is a text and a `*` is an [invalidated prefix](Space::invalidate_prefix): one line,
    /// and nothing is searched for. Any other has each tier walked through, in the background and
    /// in steps of 512 keys, and each key that is found invalidated by a line of its own; matching
    /// is done here, and no server ever gets the pattern. What is being loaded in the space
    /// meanwhile, whatever its key, is not stored. What is stored while the walk is under way may
    /// go or stay.
    ///
    /// Fails if the pattern cannot be read, if a tier could not be walked through to its end (what
    /// was found until then is gone), or if the cache is closed.
    pub fn remove_pattern<'a>(&'a self, pattern: &'a str) -> RemovePattern<'a> {
        RemovePattern::new(&self.core, pattern)
    }

    /// That something was built from what is under `key`, to be given to
    /// [`Insert::depends_on`] or [`Loaded::depends_on`]. The space has to be
    /// [tracked](SpaceBuilder::tracked), or they fail.
    pub fn dependency(&self, key: &K) -> Dependency {
        Dependency::new(&self.core, key)
    }

    /// Whether a fresh value is under `key`. Loads and copies nothing.
    ///
    /// # Errors
    /// The key is too long, the cache is closed, or the space is
    /// [strict](SpaceBuilder::strict) and its ledger cannot be asked.
    pub async fn exists(&self, key: &K) -> Result<bool, Error> {
        Ok(self.exists_many([key]).await? == 1)
    }

    /// Under how many of `keys` there is a fresh value.
    ///
    /// # Errors
    /// As for [`Space::exists`].
    pub async fn exists_many<'a>(&self, keys: impl IntoIterator<Item = &'a K>) -> Result<u64, Error>
    where
        K: 'a,
    {
        let found = read::exist(&self.core, keys).await?;
        Ok(found.into_iter().map(u64::from).sum())
    }

    /// Gives what is under `key` another lifetime, from now; says whether it was there.
    ///
    /// A read that is under way meanwhile may still copy the old lifetime upwards.
    ///
    /// # Errors
    /// The key is too long, or the cache is closed.
    pub async fn expire(&self, key: &K, ttl: Duration) -> Result<bool, Error> {
        removal::expire(&self.core, key, ttl).await
    }

    /// Has `key` loaded again by the next read, while what is there stays at hand for when that
    /// fails or is slow, for as long as the space [allows](SpaceBuilder::stale_for); says whether
    /// it was there.
    ///
    /// This is for values that may be a little out of date, and reaches this process and the
    /// tiers below memory; other processes keep what they have in memory to its end. To have
    /// something gone everywhere, [`Space::invalidate`] it.
    ///
    /// # Errors
    /// The key is too long, or the cache is closed.
    pub async fn mark_stale(&self, key: &K) -> Result<bool, Error> {
        removal::expire(&self.core, key, Duration::ZERO).await
    }

    /// Changes what this space does, in this process, for all its handles at once.
    pub fn set_mode(&self, mode: Mode) {
        self.core.state.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// What this space does.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.core.mode()
    }

    /// Removes everything in this space, from every tier and for every process that
    /// shares the authority.
    ///
    /// # Errors
    /// The cache is closed.
    pub async fn clear(&self) -> Result<Settled, Error> {
        removal::clear_space(&self.core).await
    }
}

/// What a space does. Every mode shares loads, limits them and counts what happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It caches.
    #[default]
    On,
    /// It reads, stores and counts like one that caches, and answers every call from the loader:
    /// to see what a cache would be worth before anything depends on it.
    Shadow,
    /// It neither reads nor stores.
    Off,
}

/// A space that is being opened.
///
/// Finish with [`build`](SpaceBuilder::build) for types that serde knows, with
/// [`build_raw`](SpaceBuilder::build_raw) for bytes, or with
/// [`build_in_memory`](SpaceBuilder::build_in_memory) for anything else.
#[must_use = "a space is opened by one of the build methods"]
pub struct SpaceBuilder<K: ToOwned + ?Sized, V> {
    core: Arc<Core>,
    tenant: Arc<TenantName>,
    name: String,
    policy: Policy,
    kind: Option<Kind>,
    codec: Codec,
    schema: Option<u64>,
    probe: Option<Probe<K>>,
    source: Option<Source<K, V>>,
    write_behind: WriteBehind,
    value: PhantomData<fn() -> V>,
}

impl<K: ToOwned + ?Sized, V> fmt::Debug for SpaceBuilder<K, V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SpaceBuilder")
            .field("name", &self.name)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl<K: ToOwned + ?Sized, V> SpaceBuilder<K, V> {
    pub(crate) fn new(terrace: &Terrace, name: &str) -> Self {
        Self {
            core: Arc::clone(&terrace.core),
            tenant: Arc::clone(&terrace.dynamic.tenant),
            name: name.into(),
            policy: terrace.dynamic.policy.clone(),
            kind: None,
            codec: Codec::default(),
            schema: None,
            probe: None,
            source: None,
            write_behind: WriteBehind::default(),
            value: PhantomData,
        }
    }

    /// What kind of data it holds: sets for how long entries are fresh, and in which tiers they are.
    /// What is set afterwards takes precedence. The first opening of a space with a kind decides
    /// under which it counts.
    pub fn kind(mut self, kind: Kind) -> Self {
        kind.apply(&self.core, &mut self.policy);
        self.kind = Some(kind);
        self
    }

    /// How long entries are fresh: 5 minutes unless the cache or this says otherwise,
    /// give or take the jitter.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.policy.ttl = Some(ttl);
        self
    }

    /// Entries never expire.
    pub fn forever(mut self) -> Self {
        self.policy.ttl = None;
        self
    }

    /// The share of the TTL by which lifetimes vary at random, 0 to 1: a tenth unless
    /// set, so that what was stored together does not expire together.
    pub fn jitter(mut self, share: f64) -> Self {
        self.policy.jitter = share;
        self
    }

    /// How long after its end an entry may still answer when the loader fails: not at
    /// all unless set. What was invalidated never answers.
    pub fn stale_for(mut self, time: Duration) -> Self {
        self.policy.stale_for = time;
        self
    }

    /// How long a load may take: 30 s unless set. Then its loader is dropped, and all who wait
    /// get [`LoadError::Deadline`](crate::LoadError::Deadline) or what is stale.
    pub fn load_deadline(mut self, time: Duration) -> Self {
        self.policy.load_deadline = time;
        self
    }

    /// How long callers wait for a load when something stale is at hand: 1 s unless set. Then
    /// they get that, and the load goes on.
    pub fn soft_deadline(mut self, time: Duration) -> Self {
        self.policy.soft_deadline = time;
        self
    }

    /// How long the tiers below memory may take together to answer a read: 2 s unless set. Those
    /// that it is not enough for are not asked.
    pub fn tiers_deadline(mut self, time: Duration) -> Self {
        self.policy.tiers_deadline = time;
        self
    }

    /// After which share of its life a read has an entry loaded anew, while it is served: 0.8
    /// unless set; 1 for never.
    pub fn refresh_at(mut self, share: f64) -> Self {
        self.policy.refresh_at = (share < 1.0).then_some(share);
        self
    }

    /// Has entries loaded anew at random before their end, the likelier the nearer it is and the
    /// longer the last load took, in place of [`refresh_at`](SpaceBuilder::refresh_at): for
    /// loads whose times differ widely, and fleets that should not renew in step. With a factor
    /// of 1 a load is under way at about the end; larger ones begin earlier.
    pub fn early_refresh(mut self, factor: f64) -> Self {
        self.policy.early = Some(factor);
        self
    }

    /// Entries that were not read for so long are gone from memory, whatever their TTL; tiers
    /// below memory keep them no longer than this. Not limited unless set.
    pub fn idle(mut self, time: Duration) -> Self {
        self.policy.idle = Some(time);
        self
    }

    /// For how long memory remembers that the source has no value, when a loader
    /// [says so](Loaded::absent): not at all unless set. Such entries take a tenth of memory at
    /// most.
    pub fn negative_ttl(mut self, ttl: Duration) -> Self {
        self.policy.negative_ttl = Some(ttl);
        self
    }

    /// When a load that failed is tried again: after `first`, then after twice as long each
    /// time, up to `longest`; 100 ms and 30 s unless set. While there is nothing stale to answer
    /// with, at most 5 s. Until then callers get what is stale, or the error again. A `first` of
    /// zero turns it off.
    pub fn retry(mut self, first: Duration, longest: Duration) -> Self {
        self.policy.retry = Backoff { first, longest };
        self
    }

    /// Loads that run at once in this space, within what the
    /// [cache](crate::Builder::max_loads) allows. The first opening of a space decides.
    pub fn max_loads(mut self, loads: usize) -> Self {
        self.policy.max_loads = Some(loads);
        self
    }

    /// For permissions and sessions: nothing stale is ever answered, and where the ledger is
    /// shared, every read asks it first. If it cannot be asked, the read fails.
    pub fn strict(mut self) -> Self {
        self.policy.is_strict = true;
        self
    }

    /// Has what is built from entries of this space depend on them: invalidating or writing one of
    /// them invalidates, in every tier and process, whatever was loaded while it was read, and what
    /// was loaded while that was read. [`Insert::depends_on`] and [`Loaded::depends_on`] say the
    /// same of what no loader reads.
    ///
    /// Seen is what a loader reads of this cache in its own future, by any verb, found or not; not
    /// what it hands to tasks of its own, nor what it reads before its future runs. Each
    /// invalidation and each write of a tracked space costs a second line, in the same exchange. An
    /// entry that is renewed because it has expired leaves what was built from it as it is. A value
    /// built from more than some hundred entries (256 names, tags included) is answered with and
    /// not stored.
    ///
    /// Every process that writes to the space has to say so: what another one invalidates without
    /// is not heard by what was built from it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let terrace = terrace::Terrace::builder().memory(terrace::Memory::bytes(1 << 20)).build().await?;
    /// let prices = terrace.space::<str, u64>("price").tracked().build()?;
    /// let totals = terrace.space::<str, u64>("total").build()?;
    /// prices.insert("apple", 2).await?;
    ///
    /// let total = totals.get_or_load("cart", |_| {
    ///     let prices = prices.clone();
    ///     async move { Ok::<_, std::io::Error>(prices.get("apple").await.ok().flatten().map_or(0, |price| 3 * *price)) }
    /// });
    /// assert_eq!(*total.await?, 6);
    ///
    /// prices.insert("apple", 3).await?;
    /// assert!(totals.get("cart").await?.is_none());
    /// # Ok(()) }
    /// ```
    pub fn tracked(mut self) -> Self {
        self.policy.is_tracked = true;
        self
    }

    /// Whether a tier that fails costs a miss, which is counted: yes unless set. If not, the call
    /// fails with [`Error::Tier`].
    pub fn graceful(mut self, is_graceful: bool) -> Self {
        self.policy.is_graceful = is_graceful;
        self
    }

    /// How values are encoded below memory; a tier may say otherwise for itself.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// A number that stands for the value's type, in place of the fingerprint that is
    /// taken of it: for types whose encoding changes while their fields do not, or
    /// for two builds that are to share what their fingerprints keep apart.
    pub fn schema(mut self, number: u64) -> Self {
        self.schema = Some(number);
        self
    }
}

impl<K: Key + ?Sized, V: Send + Sync + 'static> SpaceBuilder<K, V> {
    /// A cheap question to the source, which version of a key's value it has: asked before a read
    /// with a loader is answered from the cache, at most once in `every` for each key. If the
    /// version is not the one that the loader [gave](Loaded::version), the value is loaded anew;
    /// if there is no answer, it is served.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # use terrace::{Loaded, Memory, Terrace};
    /// # let terrace = Terrace::builder().memory(Memory::bytes(1 << 20)).build().await?;
    /// let pages = terrace
    ///     .space::<str, String>("page")
    ///     .version_probe(Duration::from_secs(5), |_key| async {
    ///         Ok::<_, std::io::Error>(Some("v2")) // what a HEAD request says
    ///     })
    ///     .build()?;
    /// let page = pages.get_or_load("/", |_| async {
    ///     Ok::<_, std::io::Error>(Loaded::value("Hello".to_owned()).version("v2"))
    /// });
    /// assert_eq!(*page.await?, "Hello");
    /// # Ok(()) }
    /// ```
    pub fn version_probe<F, Fut, T, E>(mut self, every: Duration, ask: F) -> Self
    where
        F: Fn(K::Owned) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<T>, E>> + Send + 'static,
        T: Into<Arc<str>>,
        E: LoaderFailure,
    {
        self.policy.check_every = Some(every);
        self.probe = Some(probe::probe::<K, _, _, _, _>(ask));
        self
    }

    /// How the space writes to its source: given batches, in the order in which they were called
    /// for, and no key twice in one. For [`insert_through`](Space::insert_through),
    /// [`insert_around`](Space::insert_around) and [`insert_behind`](Space::insert_behind). The
    /// first opening of a space with a writer decides who writes behind.
    ///
    /// A batch may be given again, in part or as a whole, if the writer fails, panics, takes longer
    /// than its [deadline](WriteBehind::deadline) or does not live to answer: a source that must
    /// not apply a write twice remembers the [ids](crate::Write::id) that it has seen. A newer write of a
    /// key is never given before the older one is done with.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::collections::HashMap;
    /// # use std::sync::{Arc, Mutex};
    /// # use terrace::{Change, Memory, Terrace, WriteBatch};
    /// # let terrace = Terrace::builder().memory(Memory::bytes(1 << 20)).build().await?;
    /// let table = Arc::new(Mutex::new(HashMap::new())); // what the source is
    /// let source = Arc::clone(&table);
    /// let prices = terrace
    ///     .space::<str, u64>("price")
    ///     .writer(move |batch: WriteBatch<str, u64>| {
    ///         let source = Arc::clone(&source);
    ///         async move {
    ///             let mut source = source.lock().map_err(|_| "the source is broken")?;
    ///             for write in batch {
    ///                 match write.change {
    ///                     Change::Insert(price) => source.insert(write.key, price),
    ///                     Change::Remove => source.remove(&write.key),
    ///                 };
    ///             }
    ///             Ok::<_, &str>(())
    ///         }
    ///     })
    ///     .build()?;
    /// prices.insert_through("apple", 17).await?;
    /// assert_eq!(table.lock().unwrap().get("apple"), Some(&17));
    /// # Ok(()) }
    /// ```
    pub fn writer<F, Fut, E>(mut self, write: F) -> Self
    where
        K: 'static,
        K::Owned: Serialize + DeserializeOwned + Send,
        F: Fn(WriteBatch<K, V>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: LoaderFailure,
    {
        self.source = Some(Source::new(write));
        self
    }

    /// How large batches are, how long writes wait for them, and what happens when the writer
    /// fails.
    pub fn write_behind(mut self, settings: WriteBehind) -> Self {
        self.write_behind = settings;
        self
    }

    /// Opens a space of values that serde knows.
    ///
    /// # Errors
    /// The name is empty, or a setting cannot be meant.
    pub fn build(self) -> Result<Space<K, V>, BuildError>
    where
        V: Serialize + DeserializeOwned,
    {
        if self.codec == Codec::Raw {
            return Err(BuildError::Setting("the raw codec is for bytes: use build_raw"));
        }
        let codec = ValueCodec::serde(self.codec);
        self.open(Some(codec), fingerprint::<V>())
    }

    /// Opens a space of bytes, which are stored as they are.
    ///
    /// # Errors
    /// As for [`SpaceBuilder::build`].
    pub fn build_raw(self) -> Result<Space<K, V>, BuildError>
    where
        V: AsRef<[u8]> + From<Bytes>,
    {
        self.open(Some(ValueCodec::raw()), RAW_SCHEMA)
    }

    /// Opens a space whose values never leave memory, of any type.
    ///
    /// They count as what the type takes by itself, without what it points to.
    ///
    /// # Errors
    /// As for [`SpaceBuilder::build`].
    pub fn build_in_memory(self) -> Result<Space<K, V>, BuildError> {
        self.open(None, IN_MEMORY_SCHEMA)
    }

    fn open(self, codec: Option<ValueCodec<V>>, schema: u64) -> Result<Space<K, V>, BuildError> {
        if self.name.is_empty() {
            let reason = "the empty name is that of dynamic keys";
            return Err(BuildError::BadName { name: self.name, reason });
        }
        if let Some(kind) = &self.kind {
            kind.check(&self.core)?;
        }
        if !(0.0..=1.0).contains(&self.policy.jitter) {
            return Err(BuildError::Setting("jitter is a share between 0 and 1"));
        }
        if self.policy.refresh_at.is_some_and(|share| !(0.0..1.0).contains(&share)) {
            return Err(BuildError::Setting("refresh_at is a share between 0 and 1"));
        }
        if self.policy.early.is_some_and(|factor| !(factor.is_finite() && factor > 0.0)) {
            return Err(BuildError::Setting("the factor of early_refresh is a positive number"));
        }
        if self.policy.max_loads == Some(0) {
            return Err(BuildError::Setting("max_loads is at least 1"));
        }
        if self.policy.is_strict && !self.policy.stale_for.is_zero() {
            return Err(BuildError::Setting(
                "a strict space has nothing stale: leave out stale_for",
            ));
        }
        if self.source.is_some() && codec.is_none() {
            return Err(BuildError::Setting(
                "a writer needs values that can be encoded: use build or build_raw",
            ));
        }
        let identity = Identity {
            space: self.name,
            schema: self.schema.unwrap_or(schema) ^ xxhash_rust::xxh3::xxh3_64(K::KIND.as_bytes()),
            value: TypeId::of::<V>(),
        };
        let spaces = &self.core.spaces;
        let (policy, tenant) = (self.policy, &self.tenant);
        let core = spaces.open(&self.core, tenant, identity.clone(), policy, self.codec);
        if let Some(codec) = codec {
            warm::begin(&core, identity, codec);
        }
        let settings = self.write_behind;
        let source = self.source.map(|source| Arc::new(source.with(settings)));
        #[cfg(feature = "disk")]
        if let (Some(source), Some(codec)) = (&source, codec) {
            behind::begin(&core, codec, source, K::KIND);
        }
        Ok(Space { core, codec, probe: self.probe, source })
    }
}

/// The schemas of spaces whose values have none.
const RAW_SCHEMA: u64 = 1;
const IN_MEMORY_SCHEMA: u64 = 2;

/// A space without its types: what reads and writes work with.
pub(crate) struct SpaceCore {
    pub(crate) core: Arc<Core>,
    /// Whose it is.
    pub(crate) tenant: Arc<TenantName>,
    /// Tells spaces apart in memory.
    pub(crate) number: u32,
    /// As the caller named it.
    pub(crate) title: Arc<str>,
    /// As the ledger names it.
    pub(crate) name: Arc<str>,
    /// What stored keys begin with.
    prefix: Box<str>,
    /// The tag by which authorities refuse what was loaded since before a sweep.
    pub(crate) fence: Arc<str>,
    pub(crate) policy: Policy,
    /// Nothing is answered that the ledger has not just vouched for.
    pub(crate) confirms: bool,
    /// What is built from its entries depends on them.
    pub(crate) is_tracked: bool,
    pub(crate) codec: Codec,
    pub(crate) counters: Arc<SpaceCounters>,
    pub(crate) state: Arc<SpaceState>,
}

/// What all openings of a space share and may change.
#[derive(Debug, Default)]
pub(crate) struct SpaceState {
    pub(crate) mode: AtomicU8,
    kind: OnceLock<Arc<str>>,
    loads: OnceLock<Bulkhead>,
    /// What is written behind.
    #[cfg(feature = "disk")]
    pub(crate) behind: OnceLock<Behind>,
}

impl SpaceCore {
    /// What stored keys of this space and its type begin with, and no others.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn mode(&self) -> Mode {
        match self.state.mode.load(Ordering::Relaxed) {
            0 => Mode::On,
            1 => Mode::Shadow,
            _ => Mode::Off,
        }
    }

    /// How many loads run at once here, if that is limited.
    pub(crate) fn loads(&self) -> Option<&Bulkhead> {
        let most = self.policy.max_loads?;
        Some(self.state.loads.get_or_init(|| Bulkhead::new(most)))
    }

    /// How what is written behind is kept, if it is.
    #[cfg(feature = "disk")]
    pub(crate) fn behind(&self) -> Option<&Behind> {
        self.state.behind.get()
    }

    /// Whether there may be something above the tiers that is newer than they are.
    pub(crate) fn has_journal(&self) -> bool {
        #[cfg(feature = "disk")]
        return self.state.behind.get().is_some();
        #[cfg(not(feature = "disk"))]
        false
    }

    /// The key's bytes, if it can be used and the cache is open.
    pub(crate) fn checked_key<'a, K: Key + ?Sized>(
        &self,
        key: &'a K,
        buffer: &'a mut KeyBuffer,
    ) -> Result<KeyRef<'a>, Error> {
        self.core.check_open()?;
        let bytes = key.encode(buffer);
        if bytes.len() > LARGEST_KEY {
            return Err(Error::KeyTooLong { bytes: bytes.len() });
        }
        Ok(KeyRef { space: self.number, bytes })
    }

    /// The key's name in the ledger, if it can be used and the cache is open.
    pub(crate) fn checked_name(&self, bytes: &[u8]) -> Result<Arc<str>, Error> {
        self.checked_key(bytes, &mut KeyBuffer::default())?;
        Ok(self.name_of(bytes))
    }

    pub(crate) fn name_of(&self, bytes: &[u8]) -> Arc<str> {
        key_name(&self.name, bytes)
    }

    pub(crate) fn stored_key(&self, bytes: &[u8]) -> StoredKey {
        StoredKey::from_prefix(&self.prefix, bytes)
    }

    /// The counters of memory, if there is a memory tier.
    pub(crate) fn memory_counters(&self) -> Option<&TrafficCounters> {
        self.core.memory.as_ref().and(self.counters.tiers.first())
    }

    /// What an entry weighs in memory whose value takes `size` bytes encoded.
    pub(crate) fn weight_of<V>(&self, size: usize) -> u64 {
        (size_of::<Entry<V>>() + size) as u64
    }
}

impl SpaceCounters {
    /// The counters of the tiers below memory.
    pub(crate) fn below_memory(&self) -> &[TrafficCounters] {
        self.tiers.get(1..).unwrap_or_default()
    }
}

/// What makes two openings of a space by one tenant the same space.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) space: String,
    pub(crate) schema: u64,
    pub(crate) value: TypeId,
}

impl Identity {
    /// That of dynamic keys.
    pub(crate) fn dynamic() -> Self {
        Self { space: String::new(), schema: 0, value: TypeId::of::<()>() }
    }
}

/// The spaces that were opened.
pub(crate) struct Spaces {
    known: RwLock<Known>,
    unnamed: Arc<SpaceCounters>,
    /// Names of those whose entries others are built from.
    tracked: RwLock<HashSet<Arc<str>>>,
    has_tracked: AtomicBool,
    tracks_all: AtomicBool,
    tiers: usize,
}

#[derive(Default)]
struct Known {
    /// By their numbers; those of tenants that were forgotten are free.
    in_order: Vec<Option<Registered>>,
    free: Vec<usize>,
    by_identity: HashMap<(Box<str>, Identity), usize>,
    by_name: HashMap<Arc<str>, Vec<usize>>,
}

/// What stays of a space when its handles are gone.
#[derive(Clone)]
pub(crate) struct Registered {
    pub(crate) tenant: Arc<str>,
    title: Arc<str>,
    prefix: Box<str>,
    pub(crate) counters: Arc<SpaceCounters>,
    state: Arc<SpaceState>,
}

impl Spaces {
    /// No spaces yet, over `tiers` tiers, memory included.
    pub(crate) fn new(tiers: usize) -> Self {
        Self {
            known: RwLock::default(),
            unnamed: Arc::new(SpaceCounters::new(tiers)),
            tracked: RwLock::default(),
            has_tracked: AtomicBool::new(false),
            tracks_all: AtomicBool::new(false),
            tiers,
        }
    }

    /// Whether any space is tracked.
    pub(crate) fn has_tracked(&self) -> bool {
        self.has_tracked.load(Ordering::SeqCst)
    }

    /// Whether the space of this name in the ledger is.
    pub(crate) fn is_tracked(&self, name: &str) -> bool {
        self.has_tracked()
            && (self.tracks_all.load(Ordering::SeqCst) || self.tracked.read().contains(name))
    }

    /// The space of this identity: its number and counters are the same each time,
    /// its policy is that of this opening.
    pub(crate) fn open(
        &self,
        core: &Arc<Core>,
        tenant: &Arc<TenantName>,
        identity: Identity,
        policy: Policy,
        codec: Codec,
    ) -> Arc<SpaceCore> {
        let name = space_name(tenant.as_str(), &identity.space);
        let prefix = key::stored_prefix(tenant.as_str(), &identity.space, identity.schema);
        let title: Arc<str> = identity.space.as_str().into();
        let mut known = self.known.write();
        let identity = (tenant.as_str().into(), identity);
        let index = match known.by_identity.get(&identity) {
            Some(index) => *index,
            None => {
                let space = Registered {
                    tenant: tenant.as_str().into(),
                    title: Arc::clone(&title),
                    prefix: prefix.as_str().into(),
                    counters: Arc::new(SpaceCounters::new(self.tiers)),
                    state: Arc::default(),
                };
                known.add(identity, Arc::clone(&name), space)
            }
        };
        let registered = known.get(index);
        let counters = registered.map_or(&self.unnamed, |space| &space.counters);
        let state = registered.map(|space| Arc::clone(&space.state)).unwrap_or_default();
        if let Some(kind) = &policy.kind {
            // The first one decides.
            let _ = state.kind.set(Arc::clone(kind));
        }
        let confirms = policy.is_strict && core.is_shared();
        // What the cache says of dynamic keys, it says of all spaces.
        let is_dynamic = title.is_empty();
        if policy.is_tracked && is_dynamic {
            self.tracks_all.store(true, Ordering::SeqCst);
            self.has_tracked.store(true, Ordering::SeqCst);
        } else if policy.is_tracked {
            self.tracked.write().insert(Arc::clone(&name));
            self.has_tracked.store(true, Ordering::SeqCst);
        }
        let is_tracked = self.is_tracked(&name);
        Arc::new(SpaceCore {
            core: Arc::clone(core),
            tenant: Arc::clone(tenant),
            // Nobody opens four billion spaces.
            number: u32::try_from(index).unwrap_or(u32::MAX),
            title,
            fence: implied::fence(&name),
            name,
            prefix: prefix.into(),
            policy,
            confirms,
            is_tracked,
            codec,
            counters: Arc::clone(counters),
            state,
        })
    }

    /// Counters of what belongs to no space.
    pub(crate) fn unnamed(&self) -> &SpaceCounters {
        &self.unnamed
    }

    pub(crate) fn all(&self) -> Vec<Registered> {
        self.known.read().in_order.iter().flatten().cloned().collect()
    }

    /// The numbers under which memory holds the spaces of a tenant.
    pub(crate) fn numbers_of_tenant(&self, tenant: &str) -> HashSet<u32> {
        let known = self.known.read();
        let spaces = (0..).zip(&known.in_order);
        let is_its = |space: &Option<Registered>| {
            space.as_ref().is_some_and(|space| &*space.tenant == tenant)
        };
        spaces.filter(|(_, space)| is_its(space)).map(|(number, _)| number).collect()
    }

    /// Names of the spaces of a tenant whose entries others may be built from.
    pub(crate) fn tracked_of_tenant(&self, prefix: &str) -> Vec<Arc<str>> {
        if !self.has_tracked() {
            return Vec::new();
        }
        let known = self.known.read();
        let names = known.by_name.keys().filter(|name| name.starts_with(prefix));
        names.filter(|name| self.is_tracked(name)).cloned().collect()
    }

    /// Forgets the spaces of tenants of which nobody holds a handle: returns their numbers, which
    /// are taken until they are [given back](Self::free).
    pub(crate) fn forget_tenants(&self, tenants: &HashSet<Box<str>>) -> HashSet<u32> {
        let mut known = self.known.write();
        let mut tracked = self.tracked.write();
        let mut gone = HashSet::new();
        known.by_identity.retain(|(tenant, identity), index| {
            let is_gone = tenants.contains(tenant);
            if is_gone {
                tracked.remove(&space_name(tenant, &identity.space));
                gone.extend(u32::try_from(*index));
            }
            !is_gone
        });
        let is_gone = |index: &usize| u32::try_from(*index).is_ok_and(|it| gone.contains(&it));
        known.by_name.retain(|_, indices| !indices.iter().any(is_gone));
        for (number, space) in (0..).zip(&mut known.in_order) {
            if gone.contains(&number) {
                *space = None;
            }
        }
        gone
    }

    /// Lets other spaces have the numbers of those that were forgotten.
    pub(crate) fn free(&self, numbers: &HashSet<u32>) {
        let indices = numbers.iter().filter_map(|&number| usize::try_from(number).ok());
        self.known.write().free.extend(indices);
    }

    /// The numbers under which memory holds a space of this name, one for each type.
    pub(crate) fn numbers(&self, name: &str) -> Vec<u32> {
        let known = self.known.read();
        let indices = known.by_name.get(name).into_iter().flatten();
        indices.filter_map(|&index| u32::try_from(index).ok()).collect()
    }

    /// The keys under which memory holds `bytes` of a space of this name.
    pub(crate) fn keys_in(&self, name: &str, bytes: &[u8]) -> Vec<MemoryKey> {
        let numbers = self.numbers(name).into_iter();
        numbers.map(|space| KeyRef { space, bytes }.to_memory_key()).collect()
    }

    /// The keys under which stores hold what `name` says of a key.
    pub(crate) fn stored_keys(&self, name: &Name) -> Vec<StoredKey> {
        let (Name::Key(name) | Name::Set(name)) = name else { return Vec::new() };
        let Some((space, _)) = key::split_key_name(name) else { return Vec::new() };
        let Some(key) = name.strip_prefix(space).and_then(|rest| rest.strip_prefix(':')) else {
            return Vec::new();
        };
        let known = self.known.read();
        let indices = known.by_name.get(space).into_iter().flatten();
        indices
            .filter_map(|&index| known.get(index))
            .filter_map(|space| StoredKey::parse(&format!("{}{key}", space.prefix)))
            .collect()
    }
}

/// What happened in the spaces of each kind.
pub(crate) fn stats_by_kind(
    spaces: &[Registered],
    tiers: &[Arc<str>],
    skip: usize,
) -> Vec<KindStats> {
    let mut kinds: BTreeMap<Arc<str>, Vec<&Registered>> = BTreeMap::new();
    for space in spaces {
        if let Some(kind) = space.state.kind.get() {
            kinds.entry(Arc::clone(kind)).or_default().push(space);
        }
    }
    let sum = |spaces: &[&Registered], count: fn(&SpaceCounters) -> &AtomicU64| -> u64 {
        spaces.iter().map(|space| count(&space.counters).load(Ordering::Relaxed)).sum()
    };
    let kinds = kinds.into_iter().map(|(name, spaces)| KindStats {
        name,
        spaces: spaces.len() as u64,
        tiers: sum_of(spaces.iter().copied(), tiers, skip),
        loads: sum(&spaces, |counters| &counters.loads),
        load_errors: sum(&spaces, |counters| &counters.load_errors),
    });
    kinds.collect()
}

/// What several spaces asked of each tier together; the first `skip` counters belong to no tier.
pub(crate) fn sum_of<'a>(
    spaces: impl Iterator<Item = &'a Registered>,
    tiers: &[Arc<str>],
    skip: usize,
) -> Vec<(Arc<str>, Traffic)> {
    let mut sums: Vec<TrafficSum> = tiers.iter().map(|_| TrafficSum::default()).collect();
    for space in spaces {
        for (sum, counters) in sums.iter_mut().zip(space.counters.tiers.iter().skip(skip)) {
            counters.add_to(sum);
        }
    }
    tiers.iter().cloned().zip(sums.into_iter().map(|sum| sum.traffic)).collect()
}

impl Known {
    fn get(&self, index: usize) -> Option<&Registered> {
        self.in_order.get(index)?.as_ref()
    }

    /// Takes a space in; returns its number.
    fn add(&mut self, identity: (Box<str>, Identity), name: Arc<str>, space: Registered) -> usize {
        let index = self.free.pop().unwrap_or(self.in_order.len());
        match self.in_order.get_mut(index) {
            Some(free) => *free = Some(space),
            None => self.in_order.push(Some(space)),
        }
        self.by_identity.insert(identity, index);
        self.by_name.entry(name).or_default().push(index);
        index
    }
}

impl Registered {
    /// What happened here; the first `skip` counters belong to no tier.
    pub(crate) fn stats(&self, tiers: &[Arc<str>], skip: usize) -> SpaceStats {
        let counters = &self.counters;
        let traffic = counters.tiers.iter().skip(skip).map(TrafficCounters::snapshot);
        SpaceStats {
            tenant: Arc::clone(&self.tenant),
            name: Arc::clone(&self.title),
            kind: self.state.kind.get().cloned().unwrap_or_default(),
            tiers: tiers.iter().cloned().zip(traffic).collect::<Vec<(Arc<str>, Traffic)>>(),
            loads: counters.loads.load(Ordering::Relaxed),
            load_errors: counters.load_errors.load(Ordering::Relaxed),
            loads_shared: counters.loads_shared.load(Ordering::Relaxed),
            superseded: counters.superseded.load(Ordering::Relaxed),
            refreshes: counters.refreshes.load(Ordering::Relaxed),
            stale: counters.stale.load(Ordering::Relaxed),
            held_back: counters.held_back.load(Ordering::Relaxed),
            absent: counters.absent.load(Ordering::Relaxed),
            untraced: counters.untraced.load(Ordering::Relaxed),
            overloaded: counters.overloaded.load(Ordering::Relaxed),
            load_time: counters.load_time.snapshot(),
        }
    }
}
