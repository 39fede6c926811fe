//! moka: its builder with a capacity, its own policy and hasher; `Arc` for values that are dear
//! to clone, as its documentation says; the look-up by reference that spares a clone of the key.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use moka::sync::Cache;

use super::{Expiring, Loading, Memory, Sharing, Weighed};
use crate::kind::{Integers, Kind, Sizes};
use crate::load::{Source, User};
use crate::versions;

fn version() -> &'static str {
    versions::of("moka")
}

/// `moka::sync`.
pub struct Moka<K: Kind>(Cache<K::Key, K::Value>);

impl<K: Kind> Memory for Moka<K> {
    type Kind = K;

    const NAME: &'static str = "moka";

    fn version() -> &'static str {
        version()
    }

    fn with_room_for(entries: usize) -> Self {
        Self(Cache::builder().max_capacity(entries as u64).build())
    }

    #[inline]
    fn get(&self, key: &K::Key) -> Option<K::Value> {
        self.0.get(key)
    }

    #[inline]
    fn insert(&self, key: K::Key, value: K::Value) {
        self.0.insert(key, value);
    }

    fn settle(&self) {
        self.0.run_pending_tasks();
    }

    fn entries(&self) -> Option<usize> {
        usize::try_from(self.0.entry_count()).ok()
    }
}

impl Weighed for Moka<Sizes> {
    fn with_bytes(bytes: u64, _: usize) -> Self {
        Self(Cache::builder().max_capacity(bytes).weigher(|_, size| *size).build())
    }
}

impl Expiring for Moka<Integers> {
    fn with_ttl(entries: usize, ttl: Duration) -> Self {
        Self(Cache::builder().max_capacity(entries as u64).time_to_live(ttl).build())
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

impl Sharing for MokaLoading {
    async fn try_load(&self, key: &str, source: &'static Source) -> Option<u64> {
        let load = async { source.try_load(key).await.map(Arc::new) };
        Some(self.0.try_get_with_by_ref(key, load).await.ok()?.id)
    }
}
