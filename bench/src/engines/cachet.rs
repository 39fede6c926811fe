//! cachet: its builder with its memory and a capacity, with its protection against stampedes and
//! without; `Arc` for values that are dear to clone.

use std::sync::Arc;

use anyhow::Result;
use cachet::Cache;
use tick::Clock;

use super::{Loading, Sharing};
use crate::load::{Source, User};
use crate::versions;

/// `Cache::get_or_insert`. As it comes, it loads for every caller; `PROTECTED`, once for all.
pub struct CachetLoading<const PROTECTED: bool>(Arc<Cache<String, Arc<User>>>);

impl<const PROTECTED: bool> Clone for CachetLoading<PROTECTED> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<const PROTECTED: bool> Loading for CachetLoading<PROTECTED> {
    const NAME: &'static str = "cachet";

    fn version() -> &'static str {
        versions::of("cachet")
    }

    async fn with_room_for(entries: usize) -> Result<Self> {
        let builder = Cache::builder(Clock::new_tokio())
            .memory_with(|memory| memory.max_capacity(entries as u64));
        let builder = if PROTECTED { builder.stampede_protection() } else { builder };
        Ok(Self(Arc::new(builder.build())))
    }

    async fn fill(&self, keys: &[String]) -> Result<()> {
        for key in keys {
            self.0.insert(key.clone(), Arc::new(User::of(key))).await?;
        }
        Ok(())
    }

    #[inline]
    async fn get_or_load(&self, key: &str, source: &'static Source) -> Result<u64> {
        let load = || async { Arc::new(source.load(key).await) };
        Ok(self.0.get_or_insert(key, load).await?.value().id)
    }
}

impl Sharing for CachetLoading<true> {
    async fn try_load(&self, key: &str, source: &'static Source) -> Option<u64> {
        let load = || async { source.try_load(key).await.map(Arc::new) };
        Some(self.0.try_get_or_insert(key, load).await.ok()?.value().id)
    }
}
