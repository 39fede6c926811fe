//! moka: its builder with a capacity, its own policy and hasher; `Arc` for values that are dear
//! to clone, as its documentation says; the look-up by reference that spares a clone of the key.

use std::sync::Arc;

use anyhow::Result;

use super::{Loading, Memory};
use crate::load::{Source, User};
use crate::versions;

fn version() -> &'static str {
    versions::of("moka")
}

/// `moka::sync`.
pub struct Moka(moka::sync::Cache<u64, u64>);

impl Memory for Moka {
    const NAME: &'static str = "moka";

    fn version() -> &'static str {
        version()
    }

    fn with_room_for(entries: usize) -> Self {
        Self(moka::sync::Cache::builder().max_capacity(entries as u64).build())
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.0.get(&key)
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.0.insert(key, value);
    }

    fn settle(&self) {
        self.0.run_pending_tasks();
    }
}

/// `moka::future`.
#[derive(Clone)]
pub struct MokaLoading(moka::future::Cache<String, Arc<User>>);

impl Loading for MokaLoading {
    const NAME: &'static str = "moka-future";

    fn version() -> &'static str {
        version()
    }

    async fn with_room_for(entries: usize) -> Result<Self> {
        Ok(Self(moka::future::Cache::builder().max_capacity(entries as u64).build()))
    }

    async fn fill(&self, keys: &[String]) -> Result<()> {
        for key in keys {
            self.0.insert(key.clone(), Arc::new(User::of(key))).await;
        }
        self.0.run_pending_tasks().await;
        Ok(())
    }

    #[inline]
    async fn get_or_load(&self, key: &str, source: &'static Source) -> Result<u64> {
        Ok(self.0.get_with_by_ref(key, async { Arc::new(source.load(key).await) }).await.id)
    }
}
