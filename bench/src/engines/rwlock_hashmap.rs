//! The standard library's map under its lock for readers and writers: what one would write
//! without a library. It is not bounded.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use super::Memory;
use crate::kind::Kind;
use crate::versions;

pub struct RwLockHashMap<K: Kind>(RwLock<HashMap<K::Key, K::Value>>);

impl<K: Kind> Memory for RwLockHashMap<K> {
    type Kind = K;

    const NAME: &'static str = "rwlock-hashmap";

    fn version() -> &'static str {
        versions::COMPILER
    }

    fn with_room_for(_: usize) -> Self {
        Self(RwLock::default())
    }

    #[inline]
    fn get(&self, key: &K::Key) -> Option<K::Value> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    #[inline]
    fn insert(&self, key: K::Key, value: K::Value) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key, value);
    }

    fn entries(&self) -> Option<usize> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).len())
    }
}
