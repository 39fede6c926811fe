//! A builder: the settings of a cache that is about to be built.

use std::fmt;
use std::hash::RandomState;
use std::num::NonZero;
use std::thread;

use crate::cache::Settings;
use crate::listener::Listener;
use crate::{Cause, Memory};

const DEFAULT_MAX_BYTES: u64 = 256 << 20;

/// A value may take one in this many of all bytes, unless the caller says otherwise.
const DEFAULT_VALUE_SHARE: u64 = 16;

/// Enough that two threads seldom want the same shard at the same time.
const SHARDS_PER_THREAD: usize = 4;

/// The shard of a key is chosen by 16 bits of its hash.
const MAX_SHARDS: usize = 1 << 16;

/// How many bytes a key and a value take.
pub(crate) type Weigher<K, V> = dyn Fn(&K, &V) -> u64 + Send + Sync;

/// The settings of a [`Memory`]; made by [`Memory::builder`].
///
/// ```
/// use terrace_memory::{Attributes, Cause, Memory, Tick};
///
/// let cache = Memory::builder()
///     .max_bytes(1 << 20)
///     .shards(8)
///     .weigher(|key: &u32, value: &String| {
///         (size_of_val(key) + size_of_val(value) + value.capacity()) as u64
///     })
///     .listener(|key, _value, cause: Cause| assert_eq!((*key, cause), (1, Cause::Replaced)))
///     .build();
///
/// cache.insert(1, "one".to_owned(), Attributes::default(), Tick(0));
/// cache.insert(1, "uno".to_owned(), Attributes::default(), Tick(0));
/// ```
#[must_use = "a builder does nothing until `build` is called"]
pub struct Builder<K, V, S = RandomState> {
    max_bytes: u64,
    max_value_bytes: Option<u64>,
    shards: Option<usize>,
    weigher: Box<Weigher<K, V>>,
    listener: Option<Box<Listener<K, V>>>,
    hasher: S,
}

impl<K, V> Builder<K, V> {
    pub(crate) fn new() -> Self {
        Self {
            max_bytes: DEFAULT_MAX_BYTES,
            max_value_bytes: None,
            shards: None,
            weigher: Box::new(|_, _| (size_of::<K>() + size_of::<V>()) as u64),
            listener: None,
            hasher: RandomState::new(),
        }
    }
}

impl<K, V, S> Builder<K, V, S> {
    /// The most bytes that all entries together may be charged. 256 MiB unless set.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// The most bytes that one entry may be charged, its [`Memory::OVERHEAD`] included; a larger
    /// one is not stored. One sixteenth of [`Builder::max_bytes`] unless set, and never more than
    /// all of it.
    pub fn max_value_bytes(mut self, bytes: u64) -> Self {
        self.max_value_bytes = Some(bytes);
        self
    }

    /// How many parts the cache has, each with a lock of its own. Rounded up to a power of two,
    /// and to at most 65536. Unless set, four for each thread the machine can run.
    ///
    /// With more than one, an entry is the least recently used one of its shard, not of the
    /// cache, when it is evicted.
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = Some(shards);
        self
    }

    /// How many bytes a key and a value take: themselves, and all they own elsewhere. Unless set,
    /// only the key and the value themselves (their `size_of`), which is right for types that own
    /// nothing.
    ///
    /// Called once for each value that is offered, before any lock is taken. When it panics, so
    /// does the method that offers the value, and nothing is changed.
    pub fn weigher(mut self, weigher: impl Fn(&K, &V) -> u64 + Send + Sync + 'static) -> Self {
        self.weigher = Box::new(weigher);
        self
    }

    /// A function that is told of each entry that leaves the cache, and why.
    ///
    /// Called on the thread whose call made the entry leave, before that call returns, and with
    /// no lock held: the entry has left, and another one may already be at its key. Values that
    /// were never stored are not told of, nor are the entries of a cache that is dropped. When it
    /// panics, so does the method that called it; the cache is consistent, and the entries that
    /// it was still to be told of are dropped without.
    pub fn listener(mut self, listener: impl Fn(&K, &V, Cause) + Send + Sync + 'static) -> Self {
        self.listener = Some(Box::new(listener));
        self
    }

    /// The hasher for keys. Unless set, the randomly seeded one of the standard library, which
    /// withstands keys that were chosen to collide; others are faster.
    pub fn hasher<T>(self, hasher: T) -> Builder<K, V, T> {
        Builder {
            max_bytes: self.max_bytes,
            max_value_bytes: self.max_value_bytes,
            shards: self.shards,
            weigher: self.weigher,
            listener: self.listener,
            hasher,
        }
    }

    /// The cache. It is empty, and has allocated nothing but its shards.
    #[must_use]
    pub fn build(self) -> Memory<K, V, S> {
        let max_value_bytes = self.max_value_bytes.unwrap_or(self.max_bytes / DEFAULT_VALUE_SHARE);
        Memory::new(Settings {
            max_bytes: self.max_bytes,
            max_value_bytes: max_value_bytes.min(self.max_bytes),
            shards: shard_count(self.shards),
            weigher: self.weigher,
            listener: self.listener,
            hasher: self.hasher,
        })
    }
}

impl<K, V, S> fmt::Debug for Builder<K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("max_bytes", &self.max_bytes)
            .field("max_value_bytes", &self.max_value_bytes)
            .field("shards", &self.shards)
            .finish_non_exhaustive()
    }
}

/// A power of two, from 1 to the maximum.
fn shard_count(wanted: Option<usize>) -> usize {
    let wanted = wanted.unwrap_or_else(|| {
        thread::available_parallelism().map_or(1, NonZero::get).saturating_mul(SHARDS_PER_THREAD)
    });
    wanted.clamp(1, MAX_SHARDS).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_shards_is_a_power_of_two() {
        for (wanted, given) in [(0, 1), (1, 1), (3, 4), (8, 8), (usize::MAX, MAX_SHARDS)] {
            assert_eq!(shard_count(Some(wanted)), given);
        }
        assert!(shard_count(None).is_power_of_two());
    }
}
