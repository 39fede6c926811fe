//! The **tenant**: a part of a cache that sees and changes nothing of the others.
//!
//! Its name is the first part of every stored key and of every name in the ledger, escaped so that
//! it cannot reach into another part; memory tells its spaces apart by their numbers. What holds
//! for keys, tags, prefixes, patterns, leases and counters holds for it without a rule of its own,
//! and all of it is cleared by one line about the prefix that its names have.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::cache::{Dynamic, Terrace};
use crate::call::{Get, GetOrLoad};
use crate::codec::Codec;
use crate::core::{Core, drop_all};
use crate::entry::Cached;
use crate::error::{BuildError, Error, LoaderFailure};
use crate::key::tenant_prefix;
use crate::ledger::Name;
use crate::load::Load;
use crate::removal;
use crate::space::{Identity, SpaceBuilder, sum_of};
use crate::stats::TenantStats;
use crate::sweep::RemovePattern;
use crate::target::Target;
use crate::write::{Insert, Settled};

/// The longest name of a tenant, in bytes.
const LONGEST_NAME: usize = 256;

/// The part of a cache that belongs to one tenant. Made by [`Terrace::tenant`]; cloning it is cheap.
///
/// The same key, tag, space or event under another tenant, or under none, is another one: nothing
/// that is called on this handle, or on a space that it opened, reads, counts, loads, invalidates or
/// clears anything of theirs. Any text can be a name. Whoever has this handle and not the
/// [`Terrace`] cannot reach the others.
///
/// What tenants share is what there is of the machine: the bounds of the tiers, in which one may
/// push another's entries out, the permits for loads, and how many names the ledger remembers.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let terrace = terrace::Terrace::builder().memory(terrace::Memory::bytes(1 << 20)).build().await?;
/// let (acme, zenith) = (terrace.tenant("acme")?, terrace.tenant("zenith")?);
/// acme.set("user:1", &"Ada".to_owned()).tags(["users"]).await?;
/// zenith.set("user:1", &"Grace".to_owned()).tags(["users"]).await?;
///
/// acme.invalidate_tag("users").await?;
/// assert!(!acme.exists("user:1").await?);
/// assert_eq!(zenith.get::<String>("user:1").await?.as_deref().map(String::as_str), Some("Grace"));
///
/// let prices = acme.space::<str, u64>("price").build()?;
/// prices.insert("apple", 2).await?;
/// acme.clear().await?;
/// assert!(!prices.exists("apple").await?);
/// assert!(zenith.exists("user:1").await?);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Tenant {
    /// The cache, whose dynamic keys are those of the tenant.
    own: Terrace,
}

impl std::fmt::Debug for Tenant {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tenant").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl Tenant {
    pub(crate) fn open(terrace: &Terrace, name: &str) -> Result<Self, BuildError> {
        let bad_name = |reason| Err(BuildError::BadName { name: name.into(), reason });
        if name.is_empty() {
            return bad_name("the empty name is that of what has no tenant");
        }
        if name.len() > LONGEST_NAME {
            return bad_name("a tenant's name has 256 bytes at most");
        }
        let core = &terrace.core;
        let tenant = core.tenant(name)?;
        let policy = terrace.dynamic.policy.clone();
        let dynamic =
            core.spaces.open(core, &tenant, Identity::dynamic(), policy, Codec::default());
        Ok(Self { own: Terrace { core: Arc::clone(core), dynamic } })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.own.dynamic.tenant.as_str()
    }

    /// Begins a space of this tenant: see [`Terrace::space`].
    pub fn space<K: ToOwned + ?Sized, V>(&self, name: &str) -> SpaceBuilder<K, V> {
        self.own.space(name)
    }

    /// The value under `key`: see [`Terrace::get`].
    pub fn get<'a, V: Dynamic>(&'a self, key: &'a str) -> Get<'a, str, V> {
        self.own.get(key)
    }

    /// The value under `key`, or what `loader` makes of it: see [`Terrace::get_or_load`].
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
        self.own.get_or_load(key, loader)
    }

    /// Stores `value` under `key`: see [`Terrace::set`].
    pub fn set<'a, V: Dynamic + Clone>(&'a self, key: &'a str, value: &V) -> Insert<'a, str, V> {
        self.own.set(key, value)
    }

    /// Stores `value` under `key` unless a value is there; says whether it did.
    ///
    /// # Errors
    /// As for [`Terrace::set_if_absent`].
    pub async fn set_if_absent<V: Dynamic + Clone>(
        &self,
        key: &str,
        value: &V,
    ) -> Result<bool, Error> {
        self.own.set_if_absent(key, value).await
    }

    /// Stores many values; one exchange with each tier.
    ///
    /// # Errors
    /// As for [`Terrace::set_many`].
    pub async fn set_many<V: Dynamic + Clone>(
        &self,
        entries: &[(&str, V)],
    ) -> Result<Settled, Error> {
        self.own.set_many(entries).await
    }

    /// The values under `keys`, in their order; one exchange with each tier.
    ///
    /// # Errors
    /// As for [`Terrace::get_many`].
    pub async fn get_many<V: Dynamic>(
        &self,
        keys: &[&str],
    ) -> Result<Vec<Option<Cached<V>>>, Error> {
        self.own.get_many(keys).await
    }

    /// Removes `key` from every tier; says whether anything was there.
    ///
    /// # Errors
    /// As for [`Terrace::remove`].
    pub async fn remove(&self, key: &str) -> Result<bool, Error> {
        self.own.remove(key).await
    }

    /// Removes many keys; returns how many were there.
    ///
    /// # Errors
    /// As for [`Terrace::remove`].
    pub async fn remove_many(&self, keys: &[&str]) -> Result<u64, Error> {
        self.own.remove_many(keys).await
    }

    /// Whether a fresh value, or a counter, is under `key`.
    ///
    /// # Errors
    /// As for [`Terrace::exists`].
    pub async fn exists(&self, key: &str) -> Result<bool, Error> {
        self.own.exists(key).await
    }

    /// Under how many of `keys` there is a fresh value or a counter.
    ///
    /// # Errors
    /// As for [`Terrace::exists`].
    pub async fn exists_many(&self, keys: &[&str]) -> Result<u64, Error> {
        self.own.exists_many(keys).await
    }

    /// Gives what is under `key` another lifetime, from now; says whether it was there.
    ///
    /// # Errors
    /// As for [`Terrace::expire`].
    pub async fn expire(&self, key: &str, ttl: Duration) -> Result<bool, Error> {
        self.own.expire(key, ttl).await
    }

    /// Adds `by` to the counter `key` and returns the sum: see [`Terrace::increment`].
    ///
    /// # Errors
    /// As for [`Terrace::increment`].
    pub async fn increment(&self, key: &str, by: i64) -> Result<i64, Error> {
        self.own.increment(key, by).await
    }

    /// The same for a counter that lapses `ttl` after it was begun.
    ///
    /// # Errors
    /// As for [`Terrace::increment`].
    pub async fn increment_for(&self, key: &str, by: i64, ttl: Duration) -> Result<i64, Error> {
        self.own.increment_for(key, by, ttl).await
    }

    /// The counter `key`, if there is one.
    ///
    /// # Errors
    /// As for [`Terrace::increment`].
    pub async fn counter(&self, key: &str) -> Result<Option<i64>, Error> {
        self.own.counter(key).await
    }

    /// Invalidates `key`: see [`Terrace::invalidate`].
    ///
    /// # Errors
    /// As for [`Terrace::invalidate`].
    pub async fn invalidate(&self, key: &str) -> Result<Settled, Error> {
        self.own.invalidate(key).await
    }

    /// Invalidates every entry of this tenant that carries `tag`, in every space.
    ///
    /// # Errors
    /// As for [`Terrace::invalidate_tag`].
    pub async fn invalidate_tag(&self, tag: &str) -> Result<Settled, Error> {
        self.own.invalidate_tag(tag).await
    }

    /// Has every entry of this tenant that carries `tag` loaded again: see
    /// [`Terrace::mark_stale_tag`].
    ///
    /// # Errors
    /// As for [`Terrace::mark_stale_tag`].
    pub async fn mark_stale_tag(&self, tag: &str) -> Result<Settled, Error> {
        self.own.mark_stale_tag(tag).await
    }

    /// Invalidates every dynamic key of this tenant that begins with `prefix`: see
    /// [`Terrace::invalidate_prefix`].
    ///
    /// # Errors
    /// As for [`Terrace::invalidate_prefix`].
    pub async fn invalidate_prefix(&self, prefix: &str) -> Result<Settled, Error> {
        self.own.invalidate_prefix(prefix).await
    }

    /// Removes every dynamic key of this tenant that matches `pattern`: see
    /// [`Terrace::remove_pattern`].
    pub fn remove_pattern<'a>(&'a self, pattern: &'a str) -> RemovePattern<'a> {
        self.own.remove_pattern(pattern)
    }

    /// Invalidates all of these, as names of this tenant: see [`Terrace::invalidate_all`].
    ///
    /// # Errors
    /// As for [`Terrace::invalidate_all`].
    pub async fn invalidate_all(
        &self,
        targets: impl IntoIterator<Item = Target>,
    ) -> Result<Settled, Error> {
        self.own.invalidate_all(targets).await
    }

    /// Invalidates what `event` says, as names of this tenant: see [`Terrace::raise`].
    ///
    /// # Errors
    /// As for [`Terrace::raise`].
    pub async fn raise<'a, V: Into<String>>(
        &self,
        event: &'a str,
        parameters: impl IntoIterator<Item = (&'a str, V)>,
    ) -> Result<Settled, Error> {
        self.own.raise(event, parameters).await
    }

    /// Removes everything of this tenant from every tier, for every process that shares the
    /// authority, whether its spaces are open here or not. Counters go too.
    ///
    /// Costs one line; then the room is freed, for which a Redis tier is walked through.
    ///
    /// # Errors
    /// The cache is closed.
    pub async fn clear(&self) -> Result<Settled, Error> {
        removal::clear_tenant(&self.own.core, &self.own.dynamic.tenant).await
    }

    /// What happened in the spaces of this tenant since it became known here. Asks no tier.
    #[must_use]
    pub fn stats(&self) -> TenantStats {
        self.own.core.tenant_stats(self.name())
    }

    /// Names of the tiers, in the order in which they are asked.
    pub fn tiers(&self) -> impl Iterator<Item = &str> {
        self.own.tiers()
    }
}

/// The name of a tenant that is known. All its handles share it: by that it is seen whether there
/// are any.
#[derive(Debug)]
pub(crate) struct TenantName(Box<str>);

impl TenantName {
    /// As the caller gave it; empty for the tenant without a name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The tenants that are known.
#[derive(Debug)]
pub(crate) struct Tenants {
    most: usize,
    unnamed: Arc<TenantName>,
    named: Mutex<HashMap<Box<str>, Arc<TenantName>>>,
}

impl Tenants {
    /// Up to `most` with a name.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, unnamed: Arc::new(TenantName("".into())), named: Mutex::default() }
    }

    /// The tenant without a name, which is always known.
    pub(crate) fn unnamed(&self) -> &Arc<TenantName> {
        &self.unnamed
    }
}

impl Core {
    /// The tenant of this name. To make room for it, those that nobody has a handle of are forgotten.
    fn tenant(&self, name: &str) -> Result<Arc<TenantName>, BuildError> {
        let Tenants { most, named, .. } = &self.tenants;
        let mut named = named.lock();
        if let Some(known) = named.get(name) {
            return Ok(Arc::clone(known));
        }
        let mut numbers = HashSet::new();
        if named.len() >= *most {
            let unheld = named.extract_if(|_, tenant| Arc::strong_count(tenant) == 1);
            let unheld = unheld.map(|(name, _)| name).collect();
            // As long as the lock is held, nobody can open a space of one of them.
            numbers = self.spaces.forget_tenants(&unheld);
        }
        if named.len() >= *most {
            return Err(BuildError::TooManyTenants { most: *most });
        }
        let tenant = Arc::new(TenantName(name.into()));
        named.insert(name.into(), Arc::clone(&tenant));
        drop(named);
        self.empty_spaces(&numbers);
        Ok(tenant)
    }

    /// Takes what spaces hold that were forgotten out of memory, and lets others have their numbers.
    fn empty_spaces(&self, numbers: &HashSet<u32>) {
        if numbers.is_empty() {
            return;
        }
        if let Some(memory) = &self.memory {
            drop_all(|| {
                memory.retain(|key, _| !numbers.contains(&key.space));
            });
        }
        self.retries.forget_spaces(numbers);
        self.spaces.free(numbers);
    }

    /// What is named to invalidate everything of a tenant; of the one without a name, everything
    /// that there is.
    pub(crate) fn names_of(&self, tenant: &TenantName) -> Vec<Name> {
        if tenant.as_str().is_empty() {
            return vec![Name::Everything];
        }
        let prefix = tenant_prefix(tenant.as_str());
        // What another tenant's loader has built from its entries goes by these.
        let tracked = self.spaces.tracked_of_tenant(&prefix);
        tracked.into_iter().map(Name::Space).chain([Name::Prefix(prefix)]).collect()
    }

    fn tenant_stats(&self, tenant: &str) -> TenantStats {
        let names: Vec<Arc<str>> = self.tier_names().map(Into::into).collect();
        let skip = usize::from(self.memory.is_none());
        let mut spaces = self.spaces.all();
        spaces.retain(|space| &*space.tenant == tenant);
        TenantStats {
            name: tenant.into(),
            tiers: sum_of(spaces.iter(), &names, skip),
            spaces: spaces.iter().map(|space| space.stats(&names, skip)).collect(),
        }
    }
}
