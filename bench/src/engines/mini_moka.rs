//! mini-moka: its builder with a capacity, its own policy and hasher.

use std::time::Duration;

use mini_moka::sync::{Cache, ConcurrentCacheExt as _};

use super::{Expiring, Memory, Weighed};
use crate::kind::{Integers, Kind, Sizes};
use crate::versions;

pub struct MiniMoka<K: Kind>(Cache<K::Key, K::Value>);

impl<K: Kind> Memory for MiniMoka<K> {
    type Kind = K;

    const NAME: &'static str = "mini-moka";

    fn version() -> &'static str {
        versions::of("mini-moka")
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
        self.0.sync();
    }

    fn entries(&self) -> Option<usize> {
        usize::try_from(self.0.entry_count()).ok()
    }
}

impl Weighed for MiniMoka<Sizes> {
    fn with_bytes(bytes: u64, _: usize) -> Self {
        Self(Cache::builder().max_capacity(bytes).weigher(|_, size| *size).build())
    }
}

impl Expiring for MiniMoka<Integers> {
    fn with_ttl(entries: usize, ttl: Duration) -> Self {
        Self(Cache::builder().max_capacity(entries as u64).time_to_live(ttl).build())
    }
}
