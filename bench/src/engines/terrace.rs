//! Ours: the engine of the memory tier alone, and caches as a service would build them.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use terrace::{Disk as DiskTier, Memory as MemoryTier, Space, Terrace};
use terrace_memory::{Attributes, Memory as Engine, Tick};

use super::{Disk, Loading, Memory};
use crate::harness::OURS;
use crate::load::{Source, User};
use crate::versions;

/// Entries neither expire nor is the clock read, as with the engines that know no expiry.
const NOW: Tick = Tick::from_millis(1);

/// Longer than any case; entries that expire cost the reading of a clock at each hit.
const HOUR: Duration = Duration::from_secs(3600);

/// What an entry of two integers is charged.
const ENTRY_BYTES: u64 = 2 * size_of::<u64>() as u64 + Engine::<u64, u64>::OVERHEAD;

/// Enough for a key of the suites, a user, and what is spent on keeping them.
const USER_BYTES: u64 = 1024;

/// `terrace-memory` by itself.
pub struct TerraceMemory(Engine<u64, u64>);

impl Memory for TerraceMemory {
    const NAME: &'static str = OURS;

    fn version() -> &'static str {
        versions::of("terrace-memory")
    }

    fn with_room_for(entries: usize) -> Self {
        Self(Engine::builder().max_bytes(entries as u64 * ENTRY_BYTES).build())
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.0.get(&key, NOW)
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.0.insert(key, value, Attributes::default(), NOW);
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

/// A space of bytes in a cache with a disk tier and no other.
pub struct TerraceDisk {
    cache: Terrace,
    values: Space<str, Bytes>,
}

impl Disk for TerraceDisk {
    const NAME: &'static str = OURS;

    fn version() -> &'static str {
        versions::of("terrace")
    }

    async fn open(directory: &Path) -> Result<Self> {
        let cache = Terrace::builder().tier("disk", DiskTier::at(directory)).build().await?;
        let values = cache.space("value").ttl(HOUR).build_raw()?;
        Ok(Self { cache, values })
    }

    async fn fill(&self, entries: &[(String, Bytes)]) -> Result<()> {
        for some in entries.chunks(1000) {
            let some = some.iter().map(|(key, value)| (key.as_str(), value.clone()));
            let settled = self.values.insert_many(some).await?;
            ensure!(settled.is_settled(), "a write was not settled");
        }
        Ok(())
    }

    #[inline]
    async fn read<T>(&self, key: &str, look: impl FnOnce(&[u8]) -> T + Send) -> Result<Option<T>> {
        Ok(self.values.get(key).await?.map(|value| look(&value)))
    }

    #[inline]
    async fn write(&self, key: &str, value: &Bytes) -> Result<()> {
        let settled = self.values.insert(key, value.clone()).await?;
        ensure!(settled.is_settled(), "a write was not settled");
        Ok(())
    }

    async fn close(self) {
        self.cache.close().await;
    }
}
