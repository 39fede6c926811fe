//! foyer's cache in memory: its builder with a capacity, its own hasher and number of shards,
//! once with each of three policies, and with its own choice where it loads.

use std::convert::Infallible;

use anyhow::Result;
use foyer_memory::{Cache, CacheBuilder, LfuConfig, LruConfig, S3FifoConfig};

use super::{Loading, Memory, Sharing, Weighed};
use crate::kind::{Kind, Sizes};
use crate::load::{Source, User};
use crate::versions;

fn version() -> &'static str {
    versions::of("foyer-memory")
}

macro_rules! with_policy {
    ($engine:ident, $name:literal, $policy:ty) => {
        pub struct $engine<K: Kind>(Cache<K::Key, K::Value>);

        impl<K: Kind> Memory for $engine<K> {
            type Kind = K;

            const NAME: &'static str = $name;

            fn version() -> &'static str {
                version()
            }

            fn with_room_for(entries: usize) -> Self {
                let policy = <$policy>::default();
                Self(CacheBuilder::new(entries).with_eviction_config(policy).build())
            }

            #[inline]
            fn get(&self, key: &K::Key) -> Option<K::Value> {
                self.0.get(key).map(|entry| entry.value().clone())
            }

            #[inline]
            fn insert(&self, key: K::Key, value: K::Value) {
                self.0.insert(key, value);
            }

            fn entries(&self) -> Option<usize> {
                Some(self.0.entries())
            }
        }

        impl Weighed for $engine<Sizes> {
            fn with_bytes(bytes: u64, _: usize) -> Self {
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                let cache = CacheBuilder::new(bytes)
                    .with_eviction_config(<$policy>::default())
                    .with_weighter(|_, size: &u32| *size as usize);
                Self(cache.build())
            }
        }
    };
}

with_policy!(FoyerS3Fifo, "foyer-s3fifo", S3FifoConfig);
with_policy!(FoyerLfu, "foyer-lfu", LfuConfig);
with_policy!(FoyerLru, "foyer-lru", LruConfig);

/// It hands out handles to its entries, so that a value needs no `Arc` of its own.
#[derive(Clone)]
pub struct FoyerLoading(Cache<String, User>);

impl Loading for FoyerLoading {
    const NAME: &'static str = "foyer";

    fn version() -> &'static str {
        version()
    }

    async fn with_room_for(entries: usize) -> Result<Self> {
        Ok(Self(CacheBuilder::new(entries).build()))
    }

    async fn fill(&self, keys: &[String]) -> Result<()> {
        for key in keys {
            self.0.insert(key.clone(), User::of(key));
        }
        Ok(())
    }

    // The closure is called on a hit too, and its future may borrow nothing: whoever calls this
    // has to own the key beforehand.
    #[inline]
    async fn get_or_load(&self, key: &str, source: &'static Source) -> Result<u64> {
        let load = || {
            let key = key.to_owned();
            async move { Ok::<_, Infallible>(source.load(&key).await) }
        };
        Ok(self.0.get_or_fetch(key, load).await?.value().id)
    }
}

impl Sharing for FoyerLoading {
    async fn try_load(&self, key: &str, source: &'static Source) -> Option<u64> {
        let load = || {
            let key = key.to_owned();
            async move { source.try_load(&key).await }
        };
        Some(self.0.get_or_fetch(key, load).await.ok()?.value().id)
    }
}
