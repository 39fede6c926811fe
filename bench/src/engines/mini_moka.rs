//! mini-moka: its builder with a capacity, its own policy and hasher.

use mini_moka::sync::{Cache, ConcurrentCacheExt as _};

use super::Memory;
use crate::versions;

pub struct MiniMoka(Cache<u64, u64>);

impl Memory for MiniMoka {
    const NAME: &'static str = "mini-moka";

    fn version() -> &'static str {
        versions::of("mini-moka")
    }

    fn with_room_for(entries: usize) -> Self {
        Self(Cache::builder().max_capacity(entries as u64).build())
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
        self.0.sync();
    }
}
