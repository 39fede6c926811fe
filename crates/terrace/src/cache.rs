//! The **cache**: the handle that callers hold, and its verbs for dynamic keys.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::builder::Builder;
use crate::call::{Get, GetOrLoad};
use crate::codec::ValueCodec;
use crate::core::{CLOSING, Closed, Core};
use crate::error::{BuildError, Error, LoaderFailure};
use crate::event;
use crate::implied;
use crate::key::tag_name;
use crate::ledger::Name;
use crate::load::Load;
use crate::removal;
use crate::space::{SpaceBuilder, SpaceCore};
use crate::stats::{Stats, TierHealth};
use crate::sweep::RemovePattern;
use crate::target::{self, Target};
use crate::tenant::Tenant;
use crate::write::{self, Insert, Settled};

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
    pub fn space<K: ToOwned + ?Sized, V>(&self, name: &str) -> SpaceBuilder<K, V> {
        SpaceBuilder::new(self, name)
    }

    /// The part of this cache that belongs to one tenant, and to no other: see [`Tenant`].
    ///
    /// What is not under such a handle belongs to the tenant without a name. Costs a look into a
    /// table; clone the handle where it is needed often.
    ///
    /// # Errors
    /// The name is empty or longer than 256 bytes, or handles of
    /// [as many tenants as there may be](crate::Builder::max_tenants) are held.
    pub fn tenant(&self, name: &str) -> Result<Tenant, BuildError> {
        Tenant::open(self, name)
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
        F: FnOnce(Load<str, V>) -> Fut,
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
        crate::many::get_many(&self.dynamic, codec, keys.iter().copied()).await
    }

    /// Removes `key` from every tier; says whether anything was there.
    ///
    /// # Errors
    /// The key is too long, or the cache is closed. Tiers that are away are not an
    /// error: see [`Terrace::invalidate`].
    pub async fn remove(&self, key: &str) -> Result<bool, Error> {
        let (gone, _) = removal::remove(&self.dynamic, [key]).await?;
        Ok(gone == 1)
    }

    /// Removes many keys; returns how many were there.
    ///
    /// # Errors
    /// As for [`Terrace::remove`].
    pub async fn remove_many(&self, keys: &[&str]) -> Result<u64, Error> {
        removal::remove(&self.dynamic, keys.iter().copied()).await.map(|(gone, _)| gone)
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
            // Where the ledger does not answer, no counter can be seen.
            if found || matches!(self.counter(key).await, Ok(Some(_))) {
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
        removal::expire(&self.dynamic, key, ttl).await
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
        let now = self.core.wall();
        let expires = ttl.map(|ttl| now.saturating_add(ttl));
        Ok(self.core.ask(|| self.core.authority.count(&name, by, now, expires)).await?)
    }

    /// The counter `key`, if there is one.
    ///
    /// # Errors
    /// As for [`Terrace::increment`].
    pub async fn counter(&self, key: &str) -> Result<Option<i64>, Error> {
        let name = self.dynamic.checked_name(key.as_bytes())?;
        Ok(self.core.ask(|| self.core.authority.counter(&name, self.core.wall())).await?)
    }

    /// Invalidates `key`: from when this returns, no read here that begins later
    /// returns what was there before, and no load that is under way stores it.
    ///
    /// # Errors
    /// The key is too long, or the cache is closed.
    pub async fn invalidate(&self, key: &str) -> Result<Settled, Error> {
        removal::remove(&self.dynamic, [key]).await.map(|(_, settled)| settled)
    }

    /// Invalidates every entry that carries `tag`, in every space.
    ///
    /// Costs one line, however many entries there are.
    ///
    /// # Errors
    /// The cache is closed.
    pub async fn invalidate_tag(&self, tag: &str) -> Result<Settled, Error> {
        let _underway = self.core.begin()?;
        let name = Name::Tag(tag_name(self.dynamic.tenant.as_str(), tag));
        Ok(self.core.invalidate(vec![name]).await.settled)
    }

    /// Invalidates every dynamic key that begins with `prefix`, as text.
    ///
    /// Costs one exchange with the ledger, however many entries there are; nothing is searched
    /// for, and what is dead leaves as room is needed. Of keys whose text is longer than 200 bytes
    /// only the hash is known below memory: all of the space's go along.
    ///
    /// # Errors
    /// The prefix is longer than a key can be, or the cache is closed.
    pub async fn invalidate_prefix(&self, prefix: &str) -> Result<Settled, Error> {
        removal::invalidate_prefix(&self.dynamic, prefix).await
    }

    /// Removes every dynamic key that matches `pattern`, from every tier and for every process that
    /// shares the authority; await it. See [`Space::remove_pattern`](crate::Space::remove_pattern).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let terrace = terrace::Terrace::builder().memory(terrace::Memory::bytes(1 << 20)).build().await?;
    /// for key in ["user:1:cart", "user:2:cart", "user:2:name"] {
    ///     terrace.set(key, &1).await?;
    /// }
    /// let carts = "user:*:cart";
    /// let would = terrace.remove_pattern(carts).dry_run().await?;
    /// assert_eq!(would.entries, [("memory".into(), 2)]);
    ///
    /// terrace.remove_pattern(carts).await?;
    /// assert!(!terrace.exists("user:1:cart").await?);
    /// assert!(terrace.exists("user:2:name").await?);
    /// # Ok(()) }
    /// ```
    pub fn remove_pattern<'a>(&'a self, pattern: &'a str) -> RemovePattern<'a> {
        RemovePattern::new(&self.dynamic, pattern)
    }

    /// Invalidates all of these, in one exchange with the ledger: what is said with names alone,
    /// whether its space is open here or not.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let terrace = terrace::Terrace::builder().memory(terrace::Memory::bytes(1 << 20)).build().await?;
    /// use terrace::Target;
    ///
    /// terrace.set("user:1", &"Ada".to_owned()).await?;
    /// terrace.invalidate_all([Target::prefix("", "user:"), Target::tag("users")]).await?;
    /// assert!(!terrace.exists("user:1").await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A key or a tag cannot be one; nothing is invalidated then. The cache is closed.
    pub async fn invalidate_all(
        &self,
        targets: impl IntoIterator<Item = Target>,
    ) -> Result<Settled, Error> {
        target::invalidate(&self.core, &self.dynamic.tenant, targets).await
    }

    /// Invalidates what `event` [says](crate::Event), with these parameters.
    ///
    /// Keys, tags and prefixes cost one exchange with the ledger together; each pattern costs a
    /// [removal](crate::Space::remove_pattern) of its own.
    ///
    /// # Errors
    /// The event was not declared, a parameter is missing, or what they make cannot be a key, a tag
    /// or a pattern: nothing is invalidated then. A tier could not be searched for a pattern. The
    /// cache is closed.
    pub async fn raise<'a, V: Into<String>>(
        &self,
        event: &'a str,
        parameters: impl IntoIterator<Item = (&'a str, V)>,
    ) -> Result<Settled, Error> {
        event::raise(&self.core, &self.dynamic.tenant, event, parameters).await
    }

    /// Has every entry that carries `tag`, in every space and process, loaded again by the next
    /// read, while what is there stays at hand for when that fails or is slow, for as long as its
    /// space [allows](crate::SpaceBuilder::stale_for); where it allows nothing stale, the entry is
    /// gone.
    ///
    /// Costs one line, however many entries there are. For values that may be a little out of
    /// date: what is being loaded meanwhile is stored, and loaded again by the read after.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # let terrace = terrace::Terrace::builder().memory(terrace::Memory::bytes(1 << 20)).build().await?;
    /// let rates = terrace.space::<str, f64>("rate").stale_for(Duration::from_secs(60)).build()?;
    /// rates.insert("CHF", 1.07).tags(["ecb"]).await?;
    ///
    /// terrace.mark_stale_tag("ecb").await?;
    /// assert!(rates.get("CHF").await?.is_none());
    /// // The source is down: the rate of before has to do.
    /// let rate = rates.get_or_load("CHF", |_| async { Err::<f64, _>(std::io::Error::other("down")) });
    /// let rate = rate.await?;
    /// assert!(*rate == 1.07 && rate.is_stale());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The cache is closed.
    pub async fn mark_stale_tag(&self, tag: &str) -> Result<Settled, Error> {
        let _underway = self.core.begin()?;
        let name = Name::Tag(implied::stale(&tag_name(self.dynamic.tenant.as_str(), tag)));
        Ok(self.core.invalidate(vec![name]).await.settled)
    }

    /// Removes everything of every tenant from every tier, for every process that shares the
    /// authority. Counters go too.
    ///
    /// # Errors
    /// The cache is closed.
    pub async fn clear(&self) -> Result<Settled, Error> {
        removal::clear(&self.core).await
    }

    /// Removes everything from one tier: `memory`, or a tier's own name. The others
    /// keep what they have.
    ///
    /// # Errors
    /// There is no such tier, it does not answer, or the cache is closed.
    pub async fn clear_tier(&self, tier: &str) -> Result<u64, Error> {
        removal::clear_tier(&self.core, tier).await
    }

    /// What happened since the cache was built, and how much it holds.
    ///
    /// Asks every tier for its size; one that does not answer counts as empty.
    pub async fn stats(&self) -> Stats {
        self.core.stats().await
    }

    /// How the servers below memory are: whether they answer and how fast, what they say of
    /// themselves, and which of their settings endanger the cache.
    ///
    /// Asked every 30 s by itself too; what is new then is logged as a warning. Costs one exchange
    /// with each server.
    pub async fn health(&self) -> Vec<TierHealth> {
        self.core.health().await
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
    ///
    /// What was written behind is written to the source meanwhile. What is not by then stays in
    /// the journal; [`Terrace::close_within`] says how much that is.
    pub async fn close(&self) -> bool {
        self.close_within(CLOSING).await.is_finished
    }

    /// The same within a time of your choice: says what was finished, what the journal keeps for
    /// the next start, and what is lost.
    pub async fn close_within(&self, time: Duration) -> Closed {
        self.core.close(time).await
    }
}

/// What dynamic keys can hold: any type that serde knows.
pub trait Dynamic: Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<V: Serialize + DeserializeOwned + Send + Sync + 'static> Dynamic for V {}
