//! The **cache**: the handle that callers hold, and the state that its parts share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::authority::{Answer, Appended, Authority};
use crate::builder::Builder;
use crate::clock::Clock;
use crate::codec::ValueCodec;
use crate::entry::{AnyEntry, Meta};
use crate::error::{Error, LoaderFailure};
use crate::flight::Flights;
use crate::guard::within;
use crate::key::{KeyRef, MemoryKey, key_name, split_key_name, tag_name};
use crate::ledger::{Line, Mirror, Name, Names, Stamp};
use crate::load::Load;
use crate::pending::Pending;
use crate::protocol::{Follow, Standing};
use crate::read::{Get, GetOrLoad};
use crate::runtime::{Runtime, unless};
use crate::space::{SpaceBuilder, SpaceCore, Spaces};
use crate::stats::{SpaceStats, Stats, TierStats, TrafficSum};
use crate::store::{Scope, StoreError, Usage};
use crate::tier::OpenTier;
use crate::write::{self, Insert, Settled};

/// The memory tier's engine, as the cache uses it.
pub(crate) type Engine = terrace_memory::Memory<MemoryKey, AnyEntry>;

/// A cache of several tiers. Cloning it is cheap; all clones are the same cache.
///
/// Values live in [spaces](Terrace::space), each with a type and a policy. One space
/// has no name and takes values of every type under text keys: the verbs below that
/// take a key speak of it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use terrace::{Memory, Terrace};
///
/// let terrace = Terrace::builder().memory(Memory::bytes(64 << 20)).build().await?;
///
/// terrace.set("user:123", &"Ada".to_owned()).ttl(Duration::from_secs(1800)).await?;
/// let user = terrace.get::<String>("user:123").await?;
/// assert_eq!(user.as_deref().map(String::as_str), Some("Ada"));
///
/// assert_eq!(terrace.increment("visits", 1).await?, 1);
/// assert!(terrace.remove("user:123").await?);
/// terrace.close().await;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Terrace {
    pub(crate) core: Arc<Core>,
    pub(crate) dynamic: Arc<SpaceCore>,
}

impl std::fmt::Debug for Terrace {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tiers: Vec<_> = self.core.tier_names().collect();
        formatter.debug_struct("Terrace").field("tiers", &tiers).finish_non_exhaustive()
    }
}

impl Terrace {
    /// Begins a cache: add tiers, then build it.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Begins a space: a namespace with a key type, a value type and a policy.
    ///
    /// The same name may be opened more than once. The name must not be empty.
    pub fn space<K: ?Sized, V>(&self, name: &str) -> SpaceBuilder<K, V> {
        SpaceBuilder::new(self, name)
    }

    /// The value under `key`, if it is fresh and of type `V`.
    ///
    /// From memory it costs no allocation and no await; otherwise every tier is
    /// asked in order and what is found is copied to the tiers above it. A tier that
    /// fails, and a value of another type, count as a miss.
    pub fn get<'a, V: Dynamic>(&'a self, key: &'a str) -> Get<'a, str, V> {
        Get::new(&self.dynamic, Some(ValueCodec::serde(self.dynamic.codec)), key)
    }

    /// The value under `key`, or what `loader` makes of it: see
    /// [`Space::get_or_load`](crate::Space::get_or_load).
    pub fn get_or_load<'a, V, F, Fut, E>(
        &'a self,
        key: &'a str,
        loader: F,
    ) -> GetOrLoad<'a, str, V, F, E>
    where
        V: Dynamic,
        F: FnOnce(Load<str>) -> Fut,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: LoaderFailure,
    {
        GetOrLoad::new(&self.dynamic, Some(ValueCodec::serde(self.dynamic.codec)), key, loader)
    }

    /// Stores `value` under `key` in every tier; await it.
    pub fn set<'a, V: Dynamic + Clone>(&'a self, key: &'a str, value: &V) -> Insert<'a, str, V> {
        Insert::new(&self.dynamic, Some(ValueCodec::serde(self.dynamic.codec)), key, value.clone())
    }

    /// Stores `value` under `key` unless a value is there; says whether it did.
    ///
    /// Of several that try at once, in this process or another that shares the
    /// authority, one succeeds.
    ///
    /// # Errors
    /// As for [`Terrace::set`]; [`Error::Busy`] if somebody holds the key for too long.
    pub async fn set_if_absent<V: Dynamic + Clone>(
        &self,
        key: &str,
        value: &V,
    ) -> Result<bool, Error> {
        let insert = self.set(key, value);
        write::insert_if_absent(insert).await
    }

    /// Stores many values; one exchange with each tier.
    ///
    /// # Errors
    /// As for [`Terrace::set`]; then nothing is stored.
    pub async fn set_many<V: Dynamic + Clone>(
        &self,
        entries: &[(&str, V)],
    ) -> Result<Settled, Error> {
        let codec = Some(ValueCodec::serde(self.dynamic.codec));
        let entries = entries.iter().map(|(key, value)| (*key, value.clone())).collect();
        write::insert_many::<str, V>(&self.dynamic, codec, entries).await
    }

    /// The values under `keys`, in their order; one exchange with each tier.
    ///
    /// # Errors
    /// A key is too long, or the cache is closed.
    pub async fn get_many<V: Dynamic>(
        &self,
        keys: &[&str],
    ) -> Result<Vec<Option<crate::Cached<V>>>, Error> {
        let codec = Some(ValueCodec::serde(self.dynamic.codec));
        crate::read::get_many(&self.dynamic, codec, keys.iter().copied()).await
    }

    /// Removes `key` from every tier; says whether anything was there.
    ///
    /// # Errors
    /// The key is too long, or the cache is closed. Tiers that are away are not an
    /// error: see [`Terrace::invalidate`].
    pub async fn remove(&self, key: &str) -> Result<bool, Error> {
        let (gone, _) = write::remove(&self.dynamic, [key]).await?;
        Ok(gone == 1)
    }

    /// Removes many keys; returns how many were there.
    ///
    /// # Errors
    /// As for [`Terrace::remove`].
    pub async fn remove_many(&self, keys: &[&str]) -> Result<u64, Error> {
        write::remove(&self.dynamic, keys.iter().copied()).await.map(|(gone, _)| gone)
    }

    /// Whether a fresh value, or a counter, is under `key`. Loads and copies nothing.
    ///
    /// # Errors
    /// The key is too long, or the cache is closed.
    pub async fn exists(&self, key: &str) -> Result<bool, Error> {
        Ok(self.exists_many(&[key]).await? == 1)
    }

    /// Under how many of `keys` there is a fresh value or a counter.
    ///
    /// # Errors
    /// As for [`Terrace::exists`].
    pub async fn exists_many(&self, keys: &[&str]) -> Result<u64, Error> {
        let found = crate::read::exist(&self.dynamic, keys.iter().copied()).await?;
        let mut count = 0;
        for (key, found) in keys.iter().zip(found) {
            if found || self.counter(key).await?.is_some() {
                count += 1;
            }
        }
        Ok(count)
    }

    /// Gives what is under `key` another lifetime, from now; says whether it was there.
    ///
    /// A read that is under way meanwhile may still copy the old lifetime upwards.
    ///
    /// # Errors
    /// The key is too long, or the cache is closed.
    pub async fn expire(&self, key: &str, ttl: Duration) -> Result<bool, Error> {
        write::expire(&self.dynamic, key, ttl).await
    }

    /// Adds `by` to the counter `key` and returns the sum.
    ///
    /// Counters are a kind of their own, kept by the authority: they are exact
    /// between all processes that share it, live until they are removed, and are
    /// not values: [`Terrace::get`] does not see them.
    ///
    /// # Errors
    /// The authority cannot be asked, the key is too long, or the cache is closed.
    pub async fn increment(&self, key: &str, by: i64) -> Result<i64, Error> {
        self.count(key, by, None).await
    }

    /// The same for a counter that lapses `ttl` after it was begun.
    ///
    /// # Errors
    /// As for [`Terrace::increment`].
    pub async fn increment_for(&self, key: &str, by: i64, ttl: Duration) -> Result<i64, Error> {
        self.count(key, by, Some(ttl)).await
    }

    async fn count(&self, key: &str, by: i64, ttl: Option<Duration>) -> Result<i64, Error> {
        let name = self.dynamic.checked_name(key.as_bytes())?;
        let now = self.core.clock.wall();
        let expires = ttl.map(|ttl| now.saturating_add(ttl));
        Ok(self.core.ask(self.core.authority.count(&name, by, now, expires)).await?)
    }

    /// The counter `key`, if there is one.
    ///
    /// # Errors
    /// As for [`Terrace::increment`].
    pub async fn counter(&self, key: &str) -> Result<Option<i64>, Error> {
        let name = self.dynamic.checked_name(key.as_bytes())?;
        Ok(self.core.ask(self.core.authority.counter(&name, self.core.clock.wall())).await?)
    }

    /// Invalidates `key`: from when this returns, no read here that begins later
    /// returns what was there before, and no load that is under way stores it.
    ///
    /// # Errors
    /// The key is too long, or the cache is closed.
    pub async fn invalidate(&self, key: &str) -> Result<Settled, Error> {
        write::remove(&self.dynamic, [key]).await.map(|(_, settled)| settled)
    }

    /// Invalidates every entry that carries `tag`, in every space.
    ///
    /// Costs one line, however many entries there are.
    ///
    /// # Errors
    /// The cache is closed.
    pub async fn invalidate_tag(&self, tag: &str) -> Result<Settled, Error> {
        self.core.check_open()?;
        let name = Name::Tag(tag_name("", tag));
        Ok(self.core.invalidate(vec![name]).await.settled)
    }

    /// Removes everything from every tier, for every process that shares the
    /// authority. Counters go too.
    ///
    /// # Errors
    /// The cache is closed.
    pub async fn clear(&self) -> Result<Settled, Error> {
        write::clear(&self.core).await
    }

    /// Removes everything from one tier: `memory`, or a tier's own name. The others
    /// keep what they have.
    ///
    /// # Errors
    /// There is no such tier, it does not answer, or the cache is closed.
    pub async fn clear_tier(&self, tier: &str) -> Result<u64, Error> {
        write::clear_tier(&self.core, tier).await
    }

    /// What happened since the cache was built, and how much it holds.
    ///
    /// Asks every tier for its size; one that does not answer counts as empty.
    pub async fn stats(&self) -> Stats {
        self.core.stats().await
    }

    /// Names of the tiers, in the order in which they are asked.
    pub fn tiers(&self) -> impl Iterator<Item = &str> {
        self.core.tier_names()
    }

    /// Ends the cache: nothing new begins, loads and writes that are under way are
    /// finished (at most 30 s are given to them), and every store is closed.
    ///
    /// Says whether everything was finished. Afterwards every verb fails with
    /// [`Error::Closed`]. A cache that is only dropped gives what is under way to
    /// its runtime.
    pub async fn close(&self) -> bool {
        self.core.close().await
    }
}

/// What dynamic keys can hold: any type that serde knows.
pub trait Dynamic: Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<V: Serialize + DeserializeOwned + Send + Sync + 'static> Dynamic for V {}

/// What the parts of one cache share.
pub(crate) struct Core {
    pub(crate) memory: Option<Engine>,
    /// Below memory, in the order in which they are asked.
    pub(crate) tiers: Box<[OpenTier]>,
    pub(crate) authority: Arc<dyn Authority>,
    pub(crate) authority_deadline: Duration,
    pub(crate) mirror: Mirror,
    pub(crate) flights: Arc<Flights>,
    pub(crate) pending: Pending,
    pub(crate) spaces: Spaces,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) largest: Box<[AtomicU64]>,
    pub(crate) following: tokio::sync::Mutex<()>,
    pub(crate) is_closed: AtomicBool,
}

/// What a load remembers of its beginning, to be judged by when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) stamp: Stamp,
    epoch: u64,
}

/// How long [`Terrace::close`] waits for what is under way.
const CLOSING: Duration = Duration::from_secs(30);

/// What an invalidation did.
pub(crate) struct Invalidated {
    pub(crate) settled: Settled,
    /// The position of the last line; `None` while it is pending.
    pub(crate) position: Option<Stamp>,
    /// For each name, whether the authority held something under it.
    pub(crate) held: Vec<bool>,
}

impl Core {
    /// The answer of the authority, or an error once its deadline has passed.
    pub(crate) async fn ask<T>(&self, answer: Answer<'_, T>) -> Result<T, StoreError> {
        within(&*self.runtime, self.authority_deadline, "ask the ledger", answer).await
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if self.is_closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    pub(crate) fn tier_names(&self) -> impl Iterator<Item = &str> {
        let memory = self.memory.is_some().then_some("memory");
        memory.into_iter().chain(self.tiers.iter().map(|tier| &*tier.name))
    }

    /// Whether an entry in memory still stands.
    pub(crate) fn standing_in_memory(
        &self,
        space: &SpaceCore,
        key: KeyRef<'_>,
        meta: &Meta,
    ) -> Standing {
        if !meta.is_hashed {
            return self.mirror.standing(meta.stamp, &space.name, &meta.tags, || {
                key_name(&space.name, key.bytes)
            });
        }
        let name = key_name(&space.name, key.bytes);
        let names = Names { key: &name, space: &space.name, tags: &meta.tags };
        self.mirror.standing_of_hashed(meta.stamp, &names)
    }

    /// Appends a line for each name and applies it here: memory first of all.
    ///
    /// If the ledger cannot be written the names are pending: bypassed below memory,
    /// and tried again until they are settled.
    pub(crate) async fn invalidate(self: &Arc<Self>, names: Vec<Name>) -> Invalidated {
        match self.ask(self.authority.append(&names)).await {
            Ok(appended) => {
                self.applied(&names, &appended).await;
                Invalidated {
                    settled: Settled::Settled,
                    position: Some(appended.position),
                    held: appended.held,
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the ledger cannot be written: invalidations are pending");
                let held = names.iter().map(|_| false).collect();
                let tiers = self.tiers.iter().map(|tier| Arc::clone(&tier.name)).collect();
                self.hold_back(names);
                Invalidated { settled: Settled::Pending(tiers), position: None, held }
            }
        }
    }

    /// Takes note of lines that this process appended.
    pub(crate) async fn applied(self: &Arc<Self>, names: &[Name], appended: &Appended) {
        let last = appended.position.number;
        let first = (last + 1).saturating_sub(names.len() as u64);
        let lines: Vec<_> = (first..)
            .zip(names)
            .map(|(number, name)| Line { number, name: name.clone() })
            .collect();
        if !self.mirror.apply(&lines) {
            // Others wrote between: their lines come first.
            self.follow().await;
        }
        self.drop_from_memory(&lines);
    }

    /// Reads and applies what others have appended.
    pub(crate) async fn follow(self: &Arc<Self>) {
        let _one_at_a_time = self.following.lock().await;
        loop {
            match self.ask(self.authority.follow(self.mirror.ticket())).await {
                Ok(Follow::Lines(lines)) if lines.is_empty() => return,
                Ok(Follow::Lines(lines)) => {
                    self.mirror.apply(&lines);
                    self.drop_from_memory(&lines);
                    let names = lines.iter().map(|line| &line.name);
                    if !self.drop_from_stores(names.clone()).await {
                        self.hold_back(names.cloned().collect());
                    }
                }
                Ok(Follow::Broken) => match self.ask(self.authority.snapshot()).await {
                    Ok(snapshot) => {
                        tracing::warn!(
                            "the ledger's chain is broken: what was cached before is not trusted"
                        );
                        self.mirror.rejoin(&snapshot);
                        // Lines about keys were missed, and memory hears of no others.
                        if let Some(memory) = &self.memory {
                            memory.clear();
                        }
                    }
                    Err(error) => return tracing::warn!(%error, "the ledger cannot be joined"),
                },
                Err(error) => return tracing::warn!(%error, "the ledger cannot be followed"),
            }
        }
    }

    /// Takes what lines about keys name out of memory: lines about more than a key
    /// are judged on each read instead.
    fn drop_from_memory(&self, lines: &[Line]) {
        let Some(memory) = &self.memory else { return };
        for line in lines {
            for key in self.memory_keys(&line.name) {
                memory.remove_if(&key.as_ref(), |view| {
                    let stamp = view.value.meta().stamp;
                    stamp.number < line.number || self.mirror.is_foreign(stamp)
                });
            }
        }
    }

    /// Takes what `names` say of keys out of stores that do not hear the ledger;
    /// `false` if one of them did not answer.
    async fn drop_from_stores<'a>(&self, names: impl Iterator<Item = &'a Name> + Clone) -> bool {
        let mut dropped = true;
        for (tier, counters) in self.tiers.iter().zip(self.spaces.unnamed().below_memory()) {
            let keys: Vec<_> = if tier.is_authority {
                Vec::new()
            } else {
                names.clone().flat_map(|name| self.spaces.stored_keys(name)).collect()
            };
            if !keys.is_empty() {
                dropped &= tier.remove(&*self.runtime, counters, &keys).await.is_ok();
            }
        }
        dropped
    }

    fn memory_keys(&self, name: &Name) -> Vec<MemoryKey> {
        let (Name::Key(name) | Name::Set(name)) = name else { return Vec::new() };
        let Some((space, Some(bytes))) = split_key_name(name) else { return Vec::new() };
        self.spaces.keys_in(space, &bytes)
    }

    /// Keeps names that the ledger could not take, and sees to it that it does.
    pub(crate) fn hold_back(self: &Arc<Self>, names: Vec<Name>) {
        if let Some(memory) = &self.memory {
            for name in &names {
                for key in self.memory_keys(name) {
                    memory.remove(&key.as_ref());
                }
                if !matches!(name, Name::Key(_) | Name::Set(_)) {
                    // Rare, and memory is the only tier that this process can answer for.
                    memory.clear();
                }
            }
        }
        if self.pending.add(names) {
            let core = Arc::downgrade(self);
            let runtime = Arc::clone(&self.runtime);
            self.runtime.spawn(Box::pin(async move {
                let mut wait = Duration::from_millis(100);
                loop {
                    runtime.sleep(wait).await;
                    let Some(core) = core.upgrade() else { return };
                    if core.settle_pending().await {
                        return;
                    }
                    wait = (wait * 2).min(Duration::from_secs(5));
                }
            }));
        }
    }

    /// Tries to write the names that are pending; `true` once none is left.
    async fn settle_pending(self: &Arc<Self>) -> bool {
        let names = self.pending.names();
        match self.ask(self.authority.append(&names)).await {
            Ok(appended) => {
                self.applied(&names, &appended).await;
                self.drop_from_stores(names.iter()).await && self.pending.settled(&names)
            }
            Err(_) => false,
        }
    }

    /// The ledger's position and the pending names, as a load knows them that
    /// begins now.
    pub(crate) fn ticket(&self) -> Ticket {
        // The epoch first: a name that is added between must not be missed.
        let epoch = self.pending.epoch();
        Ticket { stamp: self.mirror.ticket(), epoch }
    }

    /// Whether a load with this ticket may store what it found.
    pub(crate) fn permits(&self, ticket: Ticket, names: &Names<'_>) -> bool {
        ticket.epoch == self.pending.epoch() && self.mirror.permits(ticket.stamp, names)
    }

    async fn stats(&self) -> Stats {
        let spaces = self.spaces.all();
        let mut sums: Vec<TrafficSum> = Vec::new();
        sums.resize_with(self.tiers.len() + 1, TrafficSum::default);
        for space in &spaces {
            for (sum, counters) in sums.iter_mut().zip(&space.counters.tiers) {
                counters.add_to(sum);
            }
        }
        let mut tiers = Vec::new();
        for (index, sum) in sums.into_iter().enumerate() {
            let Some((name, usage)) = self.measure(index).await else { continue };
            let largest = self.note_size(index, usage.bytes);
            tiers.push(TierStats {
                name,
                traffic: sum.traffic,
                entries: usage.entries,
                bytes: usage.bytes,
                largest_bytes: largest,
                evicted: usage.evicted,
            });
        }
        let names: Vec<_> = tiers.iter().map(|tier| Arc::clone(&tier.name)).collect();
        let skip = usize::from(self.memory.is_none());
        let spaces =
            spaces.iter().map(|space| space.stats(&names, skip)).collect::<Vec<SpaceStats>>();
        Stats { tiers, spaces }
    }

    /// The name and size of tier number `index`; memory is number 0.
    async fn measure(&self, index: usize) -> Option<(Arc<str>, Usage)> {
        let Some(below) = index.checked_sub(1) else {
            let memory = self.memory.as_ref()?;
            let stats = memory.stats();
            self.note_size(0, stats.peak_bytes);
            let usage =
                Usage { entries: stats.entries, bytes: stats.bytes, evicted: stats.evicted };
            return Some(("memory".into(), usage));
        };
        let tier = self.tiers.get(below)?;
        let usage = tier.ask(&*self.runtime, tier.store.usage()).await;
        Some((Arc::clone(&tier.name), usage.unwrap_or_default()))
    }

    fn note_size(&self, index: usize, bytes: u64) -> u64 {
        self.largest
            .get(index)
            .map_or(bytes, |largest| largest.fetch_max(bytes, Ordering::Relaxed).max(bytes))
    }

    async fn close(&self) -> bool {
        let is_first = !self.is_closed.swap(true, Ordering::AcqRel);
        let landed = unless(|| self.runtime.sleep(CLOSING), self.flights.all_landed()).await;
        if is_first {
            for tier in &self.tiers {
                if let Err(error) = tier.ask(&*self.runtime, tier.store.close()).await {
                    tracing::warn!(tier = %tier.name, %error, "a store did not close as it should");
                }
            }
        }
        landed.is_some() && self.pending.is_empty()
    }

    /// Frees what has expired, notes sizes, and follows the ledger if others write it.
    pub(crate) fn start_housekeeping(self: &Arc<Self>) {
        if self.authority.scope() > Scope::Process {
            self.repeat(FOLLOWING, |core| Box::pin(async move { core.follow().await }));
        }
        self.repeat(SWEEPING, |core| Box::pin(async move { core.sweep().await }));
    }

    /// Runs `chore` again and again, until the cache is closed or dropped.
    fn repeat(
        self: &Arc<Self>,
        every: Duration,
        chore: fn(Arc<Self>) -> crate::runtime::BoxFuture<'static, ()>,
    ) {
        let core = Arc::downgrade(self);
        let runtime = Arc::clone(&self.runtime);
        self.runtime.spawn(Box::pin(async move {
            loop {
                runtime.sleep(every).await;
                match core.upgrade() {
                    Some(core) if core.check_open().is_ok() => chore(core).await,
                    _ => return,
                }
            }
        }));
    }

    async fn sweep(&self) {
        if let Some(memory) = &self.memory {
            memory.sweep(self.clock.tick(), SWEEP_AT_ONCE);
        }
        for (tier, index) in self.tiers.iter().zip(1..) {
            let chores = tier.store.maintain(self.clock.wall());
            if let Err(error) = tier.ask(&*self.runtime, chores).await {
                tracing::warn!(tier = %tier.name, %error, "housekeeping failed");
            }
            if let Ok(usage) = tier.ask(&*self.runtime, tier.store.usage()).await {
                self.note_size(index, usage.bytes);
            }
        }
    }
}

/// How often a ledger that others write is looked at: what they invalidate reaches
/// this process's memory within this and the time that one query takes.
const FOLLOWING: Duration = Duration::from_millis(20);

/// How often expired entries are looked for.
const SWEEPING: Duration = Duration::from_secs(1);

/// Entries in memory that one sweep looks at.
const SWEEP_AT_ONCE: usize = 16_384;
