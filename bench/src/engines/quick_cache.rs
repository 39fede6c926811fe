//! quick_cache: `Cache::new`, its own hasher; `Arc` for values that are dear to clone.

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::Result;
use quick_cache::sync::Cache;

use super::{Loading, Memory};
use crate::load::{Source, User};
use crate::versions;

const NAME: &str = "quick_cache";

fn version() -> &'static str {
    versions::of("quick_cache")
}

pub struct QuickCache(Cache<u64, u64>);

impl Memory for QuickCache {
    const NAME: &'static str = NAME;

    fn version() -> &'static str {
        version()
    }

    fn with_room_for(entries: usize) -> Self {
        Self(Cache::new(entries))
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.0.get(&key)
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.0.insert(key, value);
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
