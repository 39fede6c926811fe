//! Ours with entries that carry a tag: in memory, on a disk, or on a server, and nowhere else.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use terrace::{Disk, Memory, Redis, Space, Terrace, Tier};

use super::Tagging;
use crate::harness::OURS;
use crate::versions;

/// Longer than any run.
const HOUR: Duration = Duration::from_secs(3600);

/// On a machine that does other things, too, no call is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Enough for a million entries.
const BYTES: u64 = 4 << 30;

/// Who write at once while entries are stored, where writing means waiting.
const WRITERS: usize = 256;

/// A space of bytes in a cache with one tier.
pub struct TerraceTags {
    cache: Terrace,
    values: Space<str, Bytes>,
    writers: usize,
}

impl TerraceTags {
    pub async fn in_memory() -> Result<Self> {
        let builder = Terrace::builder().memory(Memory::bytes(BYTES));
        Self::of(builder.build().await?, 1)
    }

    pub async fn on_disk(directory: &Path) -> Result<Self> {
        let disk = Tier::from(Disk::at(directory).max_bytes(BYTES)).deadlines(PATIENCE, PATIENCE);
        Self::of(Terrace::builder().tier("disk", disk).build().await?, WRITERS)
    }

    pub async fn on_server(url: &str) -> Result<Self> {
        let redis = Tier::from(Redis::url(url)).deadlines(PATIENCE, PATIENCE);
        Self::of(Terrace::builder().tier("redis", redis).build().await?, WRITERS)
    }

    fn of(cache: Terrace, writers: usize) -> Result<Self> {
        let values = cache.space("value").ttl(HOUR).build_raw()?;
        Ok(Self { cache, values, writers })
    }

    /// Stores a value with these tags.
    pub async fn store(&self, key: &str, tags: &[String]) -> Result<()> {
        store(&self.values, key, tags).await
    }

    pub async fn close(&self) {
        self.cache.close().await;
    }
}

/// What is stored under every key.
pub(super) const VALUE: [u8; 100] = [7; 100];

async fn store(values: &Space<str, Bytes>, key: &str, tags: &[String]) -> Result<()> {
    let insert = values.insert(key, Bytes::from_static(&VALUE)).tags(tags);
    ensure!(insert.await?.is_settled(), "a write was not settled");
    Ok(())
}

impl Tagging for TerraceTags {
    const NAME: &'static str = OURS;

    /// They are dead, and leave when room is needed.
    const TAKES_AWAY: bool = false;

    fn version() -> &'static str {
        versions::of("terrace")
    }

    async fn fill(&self, keys: &[String], tag: &str) -> Result<()> {
        let tags = [tag.to_owned()];
        if self.writers == 1 {
            for key in keys {
                self.store(key, &tags).await?;
            }
            return Ok(());
        }
        let mut tasks = Vec::new();
        for keys in keys.chunks(keys.len().div_ceil(self.writers).max(1)) {
            let (values, keys, tags) = (self.values.clone(), keys.to_vec(), tags.clone());
            tasks.push(tokio::spawn(async move {
                for key in &keys {
                    store(&values, key, &tags).await?;
                }
                anyhow::Ok(())
            }));
        }
        for task in tasks {
            task.await??;
        }
        Ok(())
    }

    #[inline]
    async fn has(&self, key: &str) -> Result<bool> {
        Ok(self.values.get(key).await?.is_some_and(|value| value.len() == VALUE.len()))
    }

    async fn count(&self, keys: &[&str]) -> Result<usize> {
        let found = self.values.get_many(keys.iter().copied()).await?;
        Ok(found.iter().flatten().count())
    }

    async fn invalidate(&self, tag: &str) -> Result<()> {
        let settled = self.cache.invalidate_tag(tag).await?;
        ensure!(settled.is_settled(), "an invalidation was not settled");
        Ok(())
    }
}
