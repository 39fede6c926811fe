//! Ours: the engine of the memory tier alone, and caches as a service would build them.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use terrace::{Memory as MemoryTier, Space, Terrace};
use terrace_memory::{Attributes, Memory as Engine, Tick};

use super::{Expiring, Loading, Memory, Sharing, Weighed};
use crate::harness::{OURS, OURS_IN_FULL};
use crate::kind::{Integers, Kind, Sizes};
use crate::load::{Source, User};
use crate::versions;

/// The clock is not read for entries that do not expire, as with the engines that know no expiry.
const NOW: Tick = Tick::from_millis(1);

/// Longer than any case; entries that expire cost the reading of a clock at each hit.
const HOUR: Duration = Duration::from_secs(3600);

/// Enough for a key of the suites, a user, and what is spent on keeping them.
const USER_BYTES: u64 = 1024;

/// `terrace-memory` by itself, bounded in entries.
pub struct TerraceMemory<K: Kind>(Engine<K::Key, K::Value>);

impl<K: Kind> Memory for TerraceMemory<K> {
    type Kind = K;

    const NAME: &'static str = OURS;

    fn version() -> &'static str {
        versions::of("terrace-memory")
    }

    fn with_room_for(entries: usize) -> Self {
        Self(Engine::builder().max_entries(entries as u64).build())
    }

    #[inline]
    fn get(&self, key: &K::Key) -> Option<K::Value> {
        self.0.get(key, NOW)
    }

    #[inline]
    fn get_many(&self, keys: &[K::Key], see: impl FnMut(usize, Option<&K::Value>)) {
        self.0.get_many(keys, NOW, see);
    }

    #[inline]
    fn insert(&self, key: K::Key, value: K::Value) {
        self.0.insert(key, value, Attributes::default(), NOW);
    }

    fn entries(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

impl Weighed for TerraceMemory<Sizes> {
    // Only the objects count, as with the others: what we charge for keeping an entry is taken
    // off its size.
    fn with_bytes(bytes: u64, _: usize) -> Self {
        let weigher =
            |_: &u64, size: &u32| u64::from(*size).saturating_sub(Engine::<u64, u32>::OVERHEAD);
        Self(Engine::builder().max_bytes(bytes).weigher(weigher).build())
    }
}

/// `terrace-memory` with all that it can do: a bound in bytes and a weigher, and for each entry a
/// time at which it expires, a stamp and a space.
pub struct TerraceFull(Engine<u64, u64>);

impl Memory for TerraceFull {
    type Kind = Integers;

    const NAME: &'static str = OURS_IN_FULL;

    fn version() -> &'static str {
        versions::of("terrace-memory")
    }

    fn with_room_for(entries: usize) -> Self {
        let weigher = |key: &u64, value: &u64| (size_of_val(key) + size_of_val(value)) as u64;
        let entry = 2 * size_of::<u64>() as u64 + Engine::<u64, u64>::OVERHEAD;
        let bytes = entries as u64 * entry;
        Self(Engine::builder().max_bytes(bytes).weigher(weigher).build())
    }

    #[inline]
    fn get(&self, key: &u64) -> Option<u64> {
        self.0.get(key, NOW)
    }

    #[inline]
    fn get_many(&self, keys: &[u64], see: impl FnMut(usize, Option<&u64>)) {
        self.0.get_many(keys, NOW, see);
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        let attributes =
            Attributes { expires: NOW.saturating_add(HOUR), stamp: value, ..Attributes::default() };
        self.0.insert(key, value, attributes, NOW);
    }

    fn entries(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

/// `terrace-memory` with entries that expire during the case: the clock is read at every call.
pub struct TerraceExpiring {
    engine: Engine<u64, u64>,
    ttl: Duration,
    begun: Instant,
}

impl TerraceExpiring {
    fn now(&self) -> Tick {
        NOW.saturating_add(self.begun.elapsed())
    }
}

impl Memory for TerraceExpiring {
    type Kind = Integers;

    const NAME: &'static str = OURS;

    fn version() -> &'static str {
        versions::of("terrace-memory")
    }

    fn with_room_for(entries: usize) -> Self {
        Self::with_ttl(entries, HOUR)
    }

    #[inline]
    fn get(&self, key: &u64) -> Option<u64> {
        self.engine.get(key, self.now())
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        let now = self.now();
        let attributes =
            Attributes { expires: now.saturating_add(self.ttl), ..Attributes::default() };
        self.engine.insert(key, value, attributes, now);
    }

    fn entries(&self) -> Option<usize> {
        Some(self.engine.len())
    }
}

impl Expiring for TerraceExpiring {
    fn with_ttl(entries: usize, ttl: Duration) -> Self {
        let TerraceMemory(engine) = TerraceMemory::<Integers>::with_room_for(entries);
        Self { engine, ttl, begun: Instant::now() }
    }

    // As many at once as the cache built on it does.
    fn sweep(&self) {
        self.engine.sweep(self.now(), 16_384);
    }
}

/// A space of users in a cache with a memory tier.
#[derive(Clone)]
pub struct TerraceLoading {
    cache: Terrace,
    users: Space<str, User>,
}

impl Loading for TerraceLoading {
    const NAME: &'static str = OURS;

    fn version() -> &'static str {
        versions::of("terrace")
    }

    async fn with_room_for(entries: usize) -> Result<Self> {
        let memory = MemoryTier::bytes(entries as u64 * USER_BYTES);
        let cache = Terrace::builder().memory(memory).build().await?;
        let users = cache.space("user").ttl(HOUR).build()?;
        Ok(Self { cache, users })
    }

    async fn fill(&self, keys: &[String]) -> Result<()> {
        let users = keys.iter().map(|key| (key.as_str(), User::of(key)));
        let settled = self.users.insert_many(users).await?;
        ensure!(settled.is_settled(), "a write was not settled");
        Ok(())
    }

    #[inline]
    async fn get_or_load(&self, key: &str, source: &'static Source) -> Result<u64> {
        let user =
            self.users
                .get_or_load(key, |load| async move {
                    Ok::<_, Infallible>(source.load(&load.key).await)
                })
                .await?;
        Ok(user.id)
    }

    async fn close(self) {
        self.cache.close().await;
    }
}

impl Sharing for TerraceLoading {
    async fn try_load(&self, key: &str, source: &'static Source) -> Option<u64> {
        let load =
            self.users.get_or_load(key, |load| async move { source.try_load(&load.key).await });
        Some(load.await.ok()?.id)
    }
}
