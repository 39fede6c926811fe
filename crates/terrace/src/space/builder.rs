//! The **builder** of a space: its settings, and every check before it is opened.

use std::any::TypeId;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Space;
use super::registry::Identity;
#[cfg(feature = "disk")]
use crate::behind;
use crate::cache::Terrace;
use crate::codec::{Codec, ValueCodec};
use crate::core::Core;
use crate::error::{BuildError, LoaderFailure};
use crate::key::Key;
use crate::kind::Kind;
use crate::policy::{Backoff, Policy};
use crate::probe::{self, Probe};
use crate::schema::fingerprint;
use crate::source::{Source, WriteBatch, WriteBehind};
use crate::tenant::TenantName;
use crate::warm;

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

    /// The share of the TTL by which lifetimes vary at random, 0 to 1: a fifth unless
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

    /// What a load costs at the source, whether it succeeds or not, in a unit of your own: cents,
    /// tokens, rows. For [`SpaceStats::savings`](crate::SpaceStats::savings); a loader may
    /// [add to it](crate::Loaded::cost). Counted in millionths of it. Nothing unless set.
    pub fn load_cost(mut self, cost: f64) -> Self {
        self.policy.load_cost = cost;
        self
    }

    /// Entries that were not read for so long are gone from memory, whatever their TTL; tiers
    /// below memory keep them no longer than this. Not limited unless set.
    pub fn idle(mut self, time: Duration) -> Self {
        self.policy.idle = Some(time);
        self
    }

    /// For how long memory remembers that the source has no value, when a loader
    /// [says so](crate::Loaded::absent): not at all unless set. Such entries take a tenth of memory at
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
    /// was loaded while that was read. [`Insert::depends_on`](crate::Insert::depends_on) and
    /// [`Loaded::depends_on`](crate::Loaded::depends_on) say the same of what no loader reads.
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
    /// fails with [`Error::Tier`](crate::Error::Tier).
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
    /// version is not the one that the loader [gave](crate::Loaded::version), the value is loaded anew;
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
        if !(self.policy.load_cost.is_finite() && self.policy.load_cost >= 0.0) {
            return Err(BuildError::Setting("load_cost is a number that is not negative"));
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
