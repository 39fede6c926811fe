//! Ours with a Redis tier: without memory before it, so that every call goes to the server, and
//! with memory where what counts is that it is told.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use terrace::clock::SystemClock;
use terrace::key::StoredKey;
use terrace::store::Store as _;
use terrace::{Memory, Redis, RedisStore, Space, Terrace, Tier};

use super::{Following, Invalidating, Remote};
use crate::harness::OURS;
use crate::versions;

/// So long are all values of the suite.
const VALUE_BYTES: usize = 100;

/// Longer than any run.
const HOUR: Duration = Duration::from_secs(3600);

/// On a machine that does other things, too, no call is given up and no server left alone: a read
/// without an answer would be a miss, and its time would not count.
const PATIENCE: Duration = Duration::from_secs(5);

fn patient(redis: Redis) -> Tier {
    Tier::from(redis).deadlines(PATIENCE, PATIENCE)
}

/// Enough for all keys of the suite.
const MEMORY_BYTES: u64 = 64 << 20;

/// A space of bytes in a cache with a Redis tier and no other.
#[derive(Clone)]
pub struct TerraceRedis {
    cache: Terrace,
    values: Space<str, Bytes>,
}

impl TerraceRedis {
    pub async fn over(redis: Redis) -> Result<Self> {
        let cache = Terrace::builder().tier("redis", patient(redis)).build().await?;
        let values = cache.space("value").ttl(HOUR).build_raw()?;
        Ok(Self { cache, values })
    }

    /// Stores many values.
    pub async fn fill(&self, entries: &[(String, Bytes)]) -> Result<()> {
        for some in entries.chunks(500) {
            let some = some.iter().map(|(key, value)| (key.as_str(), value.clone()));
            let settled = self.values.insert_many(some).await?;
            ensure!(settled.is_settled(), "a write was not settled");
        }
        Ok(())
    }

    pub async fn close(&self) {
        self.cache.close().await;
    }
}

impl Remote for TerraceRedis {
    const NAME: &'static str = OURS;

    fn version() -> &'static str {
        versions::of("terrace")
    }

    async fn get<T>(&self, key: &str, look: impl FnOnce(&[u8]) -> T + Send) -> Result<Option<T>> {
        Ok(self.values.get(key).await?.map(|value| look(&value)))
    }

    async fn set(&self, key: &str, value: &Bytes) -> Result<()> {
        let settled = self.values.insert(key, value.clone()).await?;
        ensure!(settled.is_settled(), "a write was not settled");
        Ok(())
    }

    async fn get_many(
        &self,
        keys: &[&str],
        mut look: impl FnMut(usize, &[u8]) + Send,
    ) -> Result<()> {
        let values = self.values.get_many(keys.iter().copied()).await?;
        for (index, value) in values.iter().enumerate() {
            value.iter().for_each(|value| look(index, value));
        }
        Ok(())
    }
}

/// The store by itself: what is left of the time when the cache around it is taken away.
#[derive(Clone)]
pub struct TerraceStore {
    store: RedisStore,
    /// What every stored key of the space begins with.
    schema: u64,
}

impl TerraceStore {
    /// A look at what `cache` has stored on the same server.
    pub async fn beside(redis: &Redis) -> Result<Self> {
        let store = redis.open(Arc::new(SystemClock::new()))?;
        let found = store.scan(None, 1).await?;
        let (key, _) = found.first().context("nothing is stored on the server")?;
        // `1:tenant:space:schema:key`
        let schema = key.as_str().split(':').nth(3).context("a stored key has no schema")?;
        Ok(Self { schema: u64::from_str_radix(schema, 16)?, store })
    }

    fn key(&self, key: &str) -> StoredKey {
        StoredKey::new("", "value", self.schema, key.as_bytes())
    }
}

impl Remote for TerraceStore {
    const NAME: &'static str = "terrace-store";

    fn version() -> &'static str {
        versions::of("terrace")
    }

    async fn get<T>(&self, key: &str, look: impl FnOnce(&[u8]) -> T + Send) -> Result<Option<T>> {
        let frames = self.store.get(&[self.key(key)]).await?;
        Ok(frames.iter().flatten().next().map(|frame| look(value_in(frame))))
    }

    async fn set(&self, _: &str, _: &Bytes) -> Result<()> {
        bail!("a store writes what a cache has stamped")
    }

    async fn get_many(
        &self,
        keys: &[&str],
        mut look: impl FnMut(usize, &[u8]) + Send,
    ) -> Result<()> {
        let keys: Vec<_> = keys.iter().map(|key| self.key(key)).collect();
        let frames = self.store.get(&keys).await?;
        for (index, frame) in frames.iter().enumerate() {
            frame.iter().for_each(|frame| look(index, value_in(frame)));
        }
        Ok(())
    }
}

/// The value of [`VALUE_BYTES`] in a frame, which ends with it and a checksum of eight bytes.
fn value_in(frame: &[u8]) -> &[u8] {
    let end = frame.len().saturating_sub(8);
    frame.get(end.saturating_sub(VALUE_BYTES)..end).unwrap_or_default()
}

/// Caches of memory over one server: one of them writes, the others have what it wrote in memory.
pub struct TerraceFleet {
    writer: Node,
    followers: Vec<Node>,
}

struct Node {
    _cache: Terrace,
    values: Space<str, Bytes>,
}

impl Node {
    async fn at(url: &str) -> Result<Self> {
        let redis = Redis::url(url).prefix("fleet:");
        let memory = Memory::bytes(MEMORY_BYTES);
        let cache = Terrace::builder().memory(memory).tier("redis", patient(redis)).build().await?;
        let values = cache.space("value").ttl(HOUR).build_raw()?;
        Ok(Self { _cache: cache, values })
    }
}

impl TerraceFleet {
    pub async fn at(url: &str, followers: usize) -> Result<Self> {
        let writer = Node::at(url).await?;
        let mut all = Vec::new();
        for _ in 0..followers {
            all.push(Node::at(url).await?);
        }
        Ok(Self { writer, followers: all })
    }
}

impl Following for TerraceFleet {
    const NAME: &'static str = OURS;

    type Writer = Writer;

    fn version() -> &'static str {
        versions::of("terrace")
    }

    async fn fill(&mut self, keys: &[String]) -> Result<()> {
        for keys in keys.chunks(500) {
            let value = Bytes::from_static(&[7; 100]);
            let entries = keys.iter().map(|key| (key.as_str(), value.clone()));
            ensure!(self.writer.values.insert_many(entries).await?.is_settled(), "not settled");
            for follower in &self.followers {
                let found = follower.values.get_many(keys.iter().map(String::as_str)).await?;
                ensure!(found.iter().all(Option::is_some), "a follower does not have a value");
            }
        }
        // What a line overtook on its way into memory is read again.
        for follower in &self.followers {
            for key in keys {
                for _ in 0..20 {
                    if follower.values.read(key.as_str(), |_| ()).is_some() {
                        break;
                    }
                    follower.values.get(key.as_str()).await?;
                }
            }
        }
        Ok(())
    }

    fn writer(&self) -> Writer {
        Writer(self.writer.values.clone())
    }

    fn has_heard(&mut self, follower: usize, key: &str) -> bool {
        let follower = self.followers.get(follower);
        follower.is_some_and(|follower| follower.values.read(key, |_| ()).is_none())
    }
}

/// Who invalidates.
#[derive(Clone)]
pub struct Writer(Space<str, Bytes>);

impl Invalidating for Writer {
    async fn invalidate(&self, key: &str) -> Result<()> {
        ensure!(self.0.invalidate(key).await?.is_settled(), "an invalidation was not settled");
        Ok(())
    }
}
