//! quick_cache: its constructor with a capacity, its own hasher; `Arc` for values that are dear to clone.

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::Result;
use quick_cache::sync::Cache;
use quick_cache::{UnitWeighter, Weighter};

use super::{Loading, Memory, Sharing, Weighed};
use crate::kind::{Kind, Sizes};
use crate::load::{Source, User};
use crate::versions;

const NAME: &str = "quick_cache";

fn version() -> &'static str {
    versions::of("quick_cache")
}

pub struct QuickCache<K: Kind, W = UnitWeighter>(Cache<K::Key, K::Value, W>);

/// Bounded in bytes.
pub type QuickCacheBytes = QuickCache<Sizes, BySize>;

impl<K, W> Memory for QuickCache<K, W>
where
    K: Kind,
    W: Weighter<K::Key, K::Value> + Clone + Default + Send + Sync,
{
    type Kind = K;

    const NAME: &'static str = NAME;

    fn version() -> &'static str {
        version()
    }

    // What `Cache::new` does.
    fn with_room_for(entries: usize) -> Self {
        Self(Cache::with_weighter(entries, entries as u64, W::default()))
    }

    #[inline]
    fn get(&self, key: &K::Key) -> Option<K::Value> {
        self.0.get(key)
    }

    #[inline]
    fn insert(&self, key: K::Key, value: K::Value) {
        self.0.insert(key, value);
    }

    fn entries(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

impl Weighed for QuickCacheBytes {
    fn with_bytes(bytes: u64, entries: usize) -> Self {
        Self(Cache::with_weighter(entries, bytes, BySize))
    }
}

#[derive(Clone, Default)]
pub struct BySize;

impl Weighter<u64, u32> for BySize {
    fn weight(&self, _: &u64, size: &u32) -> u64 {
        (*size).into()
    }
}

#[derive(Clone)]
pub struct QuickCacheLoading(Arc<Cache<String, Arc<User>>>);

impl Loading for QuickCacheLoading {
    const NAME: &'static str = NAME;

    fn version() -> &'static str {
        version()
    }

    async fn with_room_for(entries: usize) -> Result<Self> {
        Ok(Self(Arc::new(Cache::new(entries))))
    }

    async fn fill(&self, keys: &[String]) -> Result<()> {
        for key in keys {
            self.0.insert(key.clone(), Arc::new(User::of(key)));
        }
        Ok(())
    }

    #[inline]
    async fn get_or_load(&self, key: &str, source: &'static Source) -> Result<u64> {
        let load = async { Ok::<_, Infallible>(Arc::new(source.load(key).await)) };
        Ok(self.0.get_or_insert_async(key, load).await?.id)
    }
}

impl Sharing for QuickCacheLoading {
    async fn try_load(&self, key: &str, source: &'static Source) -> Option<u64> {
        let load = async { source.try_load(key).await.map(Arc::new) };
        Some(self.0.get_or_insert_async(key, load).await.ok()?.id)
    }
}
