//! foyer's hybrid cache: memory for a few entries, so that what is read comes from its engine on
//! disk, which is the one that it has by itself.

use std::path::Path;

use anyhow::{Result, bail};
use bytes::Bytes;
use foyer::{
    BlockEngineConfig, DeviceBuilder as _, FsDeviceBuilder, HybridCache, HybridCacheBuilder,
    HybridCachePolicy,
};

use super::Disk;
use crate::versions;

/// Entries in memory: it has no cache without one.
const IN_MEMORY: usize = 16;

pub struct FoyerHybrid(HybridCache<String, Vec<u8>>);

/// Why it takes no part where something is written.
pub const NO_WRITES: &str = "an insert returns before anything is written, and what exceeds its \
                             buffer is dropped without a word: there is no time to compare";

impl Disk for FoyerHybrid {
    const NAME: &'static str = "foyer-hybrid";

    fn version() -> &'static str {
        versions::of("foyer")
    }

    async fn open(directory: &Path) -> Result<Self> {
        let device = FsDeviceBuilder::new(directory).with_capacity(512 << 20).build()?;
        let cache = HybridCacheBuilder::new()
            .with_policy(HybridCachePolicy::WriteOnInsertion)
            .memory(IN_MEMORY)
            .with_shards(1)
            .storage()
            .with_engine_config(BlockEngineConfig::new(device))
            .build()
            .await?;
        Ok(Self(cache))
    }

    async fn fill(&self, entries: &[(String, Bytes)]) -> Result<()> {
        let at_once =
            if entries.first().is_some_and(|(_, value)| value.len() > 65_536) { 2 } else { 500 };
        for some in entries.chunks(at_once) {
            for (key, value) in some {
                self.0.insert(key.clone(), value.to_vec());
            }
            // What does not fit into its buffer would be dropped.
            self.0.storage().wait().await;
        }
        Ok(())
    }

    #[inline]
    async fn read<T>(&self, key: &str, look: impl FnOnce(&[u8]) -> T + Send) -> Result<Option<T>> {
        Ok(self.0.get(key).await?.map(|entry| look(entry.value())))
    }

    async fn write(&self, _: &str, _: &Bytes) -> Result<()> {
        bail!(NO_WRITES)
    }

    async fn close(self) {
        // What it has left is in a directory that goes.
        let _ = self.0.close().await;
    }
}
