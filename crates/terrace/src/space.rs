//! The **space**: a namespace with a key type, a value type and a policy, and the handle of it.

mod builder;
mod core;
mod registry;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[cfg(feature = "disk")]
use crate::behind::{self, DeadLetter, InsertBehind, RemoveBehind};
use crate::call::{Get, GetOrLoad};
use crate::codec::ValueCodec;
use crate::core::Ticket;
use crate::entry::Cached;
use crate::error::{Error, LoadError, LoaderFailure};
use crate::fill;
use crate::key::{Key, KeyBuffer, KeyPrefix};
use crate::load::Load;
use crate::loaded::Loaded;
use crate::many::{self, LoadMany};
use crate::probe::Probe;
use crate::read;
use crate::removal;
use crate::source::Source;
#[cfg(feature = "disk")]
use crate::source::WriteId;
use crate::sweep::RemovePattern;
use crate::through::{self, InsertThrough};
use crate::tracking::Dependency;
use crate::write::{self, Insert, Settled};

pub(crate) use self::core::SpaceCore;
pub use builder::SpaceBuilder;
pub(crate) use registry::{Identity, Spaces, stats_by_kind, sum_of};

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
