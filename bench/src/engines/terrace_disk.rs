//! Ours with a disk tier and no memory before it, so that every read and write goes to the disk;
//! its store by itself; and the journal of what is written behind.

use std::convert::Infallible;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use terrace::key::StoredKey;
use terrace::store::Store as _;
use terrace::{
    Acknowledge, Disk as DiskTier, DiskStore, Journal, Memory, Settled, Space, Terrace, Tier,
    WriteBatch,
};

use super::Disk;
use crate::harness::OURS;
use crate::versions;

/// Longer than any run.
const HOUR: Duration = Duration::from_secs(3600);

/// On a machine that does other things, too, no call is given up: a read without an answer would
/// be a miss, and its time would not count.
const PATIENCE: Duration = Duration::from_secs(10);

/// Room for a million small entries, or for the large ones; nothing is evicted.
const BYTES: u64 = 4 << 30;

/// What the cache keeps, so that the store by itself can be asked for it.
const SPACE: &str = "value";

/// A space of bytes in a cache with a disk tier and no other.
pub struct TerraceDisk {
    cache: Terrace,
    values: Space<str, Bytes>,
}

fn settings(directory: &Path) -> DiskTier {
    DiskTier::at(directory).max_bytes(BYTES)
}

impl Disk for TerraceDisk {
    const NAME: &'static str = OURS;

    fn version() -> &'static str {
        versions::of("terrace")
    }

    async fn open(directory: &Path) -> Result<Self> {
        let tier = Tier::from(settings(directory)).deadlines(PATIENCE, PATIENCE);
        let cache = Terrace::builder().tier("disk", tier).build().await?;
        let values = cache.space(SPACE).ttl(HOUR).build_raw()?;
        Ok(Self { cache, values })
    }

    async fn fill(&self, entries: &[(String, Bytes)]) -> Result<()> {
        // Large values are not handed over all at once.
        let at_once =
            if entries.first().is_some_and(|(_, value)| value.len() > 65_536) { 8 } else { 1000 };
        for some in entries.chunks(at_once) {
            let some = some.iter().map(|(key, value)| (key.as_str(), value.clone()));
            check(&self.values.insert_many(some).await?)?;
        }
        Ok(())
    }

    #[inline]
    async fn read<T>(&self, key: &str, look: impl FnOnce(&[u8]) -> T + Send) -> Result<Option<T>> {
        Ok(self.values.get(key).await?.map(|value| look(&value)))
    }

    #[inline]
    async fn write(&self, key: &str, value: &Bytes) -> Result<()> {
        check(&self.values.insert(key, value.clone()).await?)
    }

    async fn close(self) {
        self.cache.close().await;
    }
}

fn check(settled: &Settled) -> Result<()> {
    ensure!(settled.is_settled(), "a write was not settled");
    Ok(())
}

/// The store by itself: frames as they lie on the disk, not decoded and not judged.
pub struct TerraceDiskStore {
    /// Who wrote them.
    cache: TerraceDisk,
    store: DiskStore,
    /// What every stored key of the space has in it.
    schema: OnceLock<u64>,
}

impl Disk for TerraceDiskStore {
    const NAME: &'static str = "terrace-store";

    fn version() -> &'static str {
        versions::of("terrace")
    }

    async fn open(directory: &Path) -> Result<Self> {
        let cache = TerraceDisk::open(directory).await?;
        let store = settings(directory).open()?;
        Ok(Self { cache, store, schema: OnceLock::new() })
    }

    async fn fill(&self, entries: &[(String, Bytes)]) -> Result<()> {
        self.cache.fill(entries).await?;
        let found = self.store.scan(None, 1).await?;
        let (key, _) = found.first().context("nothing is stored on the disk")?;
        // `1:tenant:space:schema:key`
        let schema = key.as_str().split(':').nth(3).context("a stored key has no schema")?;
        let _ = self.schema.set(u64::from_str_radix(schema, 16)?);
        Ok(())
    }

    #[inline]
    async fn read<T>(&self, key: &str, look: impl FnOnce(&[u8]) -> T + Send) -> Result<Option<T>> {
        let schema = *self.schema.get().context("nothing is stored on the disk")?;
        let frames = self.store.get(&[StoredKey::new("", SPACE, schema, key.as_bytes())]).await?;
        let Some(frame) = frames.into_iter().flatten().next() else { return Ok(None) };
        let value = value_in(&frame).context("a frame without its value")?;
        Ok(Some(look(value)))
    }

    async fn write(&self, _: &str, _: &Bytes) -> Result<()> {
        bail!("a store writes what a cache has stamped")
    }

    async fn close(self) {
        // An error would be one of closing twice.
        let _ = self.store.close().await;
        self.cache.close().await;
    }
}

/// The value in a frame, which ends with it and a checksum of eight bytes: of the lengths that
/// values of the suite have, the largest that fits.
fn value_in(frame: &[u8]) -> Option<&[u8]> {
    let end = frame.len().checked_sub(8)?;
    let from = [1 << 20, 1024, 100].into_iter().find_map(|length| end.checked_sub(length))?;
    frame.get(from..end)
}

/// A space whose writes go to the journal first, and from there to a source that takes no time.
/// A write returns when the device has it.
pub struct TerraceJournal {
    cache: Terrace,
    values: Space<str, Bytes>,
}

impl Disk for TerraceJournal {
    const NAME: &'static str = OURS;

    fn version() -> &'static str {
        versions::of("terrace")
    }

    async fn open(directory: &Path) -> Result<Self> {
        let cache = Terrace::builder()
            .memory(Memory::bytes(256 << 20))
            .journal(Journal::at(directory))
            .build()
            .await?;
        let writer = |_: WriteBatch<str, Bytes>| async { Ok::<(), Infallible>(()) };
        let values = cache.space(SPACE).ttl(HOUR).writer(writer).build_raw()?;
        Ok(Self { cache, values })
    }

    async fn fill(&self, _: &[(String, Bytes)]) -> Result<()> {
        Ok(())
    }

    async fn read<T>(&self, key: &str, look: impl FnOnce(&[u8]) -> T + Send) -> Result<Option<T>> {
        Ok(self.values.get(key).await?.map(|value| look(&value)))
    }

    #[inline]
    async fn write(&self, key: &str, value: &Bytes) -> Result<()> {
        let write = self.values.insert_behind(key, value.clone());
        check(&write.acknowledge(Acknowledge::Synced).await?)
    }

    async fn close(self) {
        self.cache.close().await;
    }
}
