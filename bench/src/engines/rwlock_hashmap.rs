//! The standard library's map under its lock for readers and writers: what one would write
//! without a library. It is not bounded.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use super::Memory;
use crate::versions;

pub struct RwLockHashMap(RwLock<HashMap<u64, u64>>);

impl Memory for RwLockHashMap {
    const NAME: &'static str = "rwlock-hashmap";

    fn version() -> &'static str {
        versions::COMPILER
    }

    fn with_room_for(_: usize) -> Self {
        Self(RwLock::default())
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&key).copied()
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key, value);
    }
}
