//! TinyUFO: its constructor with a capacity, of entries that weigh 1 each. It keeps a hash of 64
//! bits in place of the key.

use tinyufo::TinyUfo;

use super::Memory;
use crate::kind::Kind;
use crate::versions;

pub struct TinyUFO<K: Kind>(TinyUfo<K::Key, K::Value>);

impl<K: Kind> Memory for TinyUFO<K> {
    type Kind = K;

    const NAME: &'static str = "tinyufo";

    fn version() -> &'static str {
        versions::of("TinyUFO")
    }

    fn with_room_for(entries: usize) -> Self {
        Self(TinyUfo::new(entries, entries))
    }

    #[inline]
    fn get(&self, key: &K::Key) -> Option<K::Value> {
        self.0.get(key)
    }

    #[inline]
    fn insert(&self, key: K::Key, value: K::Value) {
        // It returns what it evicted.
        drop(self.0.put(key, value, 1));
    }

    fn entries(&self) -> Option<usize> {
        None
    }
}
