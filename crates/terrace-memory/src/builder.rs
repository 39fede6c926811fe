//! A builder: the settings of a cache that is about to be built.

use std::fmt;
use std::num::NonZero;
use std::thread;

use crate::cache::Settings;
use crate::listener::Listener;
use crate::{Cause, Eviction, Memory};

/// The hasher of a cache unless it is given another one: foldhash, with a seed of its own.
pub type DefaultHasher = foldhash::fast::RandomState;

const DEFAULT_MAX_BYTES: u64 = 256 << 20;

/// A value may take one in this many of all bytes, unless the caller says otherwise.
const DEFAULT_VALUE_SHARE: u64 = 16;

/// More than there can ever be, and still far from an overflow.
pub(crate) const UNBOUNDED: u64 = 1 << 60;

/// Negative entries may take so much of a cache.
const DEFAULT_NEGATIVE_PERCENT: u8 = 10;

/// What an entry is expected to take besides its key and its value, when only bytes are bounded.
const GUESS: u64 = 512;

/// Enough that two threads seldom want the same shard at the same time.
const SHARDS_PER_THREAD: u64 = 4;

/// Fewer entries are no shard of their own: an order knows best what to evict from many.
const FEWEST_ENTRIES: u64 = 512;

/// With more entries it takes a while until the index of a shard has grown.
const MOST_ENTRIES: u64 = 4096;

/// The shard of a key is chosen by so many bits of its hash.
pub(crate) const MAX_SHARD_BITS: u32 = 16;

/// How many bytes a key and a value take.
pub(crate) type Weigher<K, V> = dyn Fn(&K, &V) -> u64 + Send + Sync;

/// The settings of a [`Memory`]; made by [`Memory::builder`].
///
/// ```
/// use terrace_memory::{Attributes, Cause, Eviction, Memory, Tick};
///
/// let cache = Memory::builder()
///     .max_bytes(1 << 20)
///     .max_entries(10_000)
///     .eviction(Eviction::S3Fifo)
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
pub struct Builder<K, V, S = DefaultHasher> {
    max_bytes: Option<u64>,
    max_entries: Option<u64>,
    max_value_bytes: Option<u64>,
    negative_percent: u8,
    eviction: Eviction,
    shards: Option<usize>,
    weigher: Option<Box<Weigher<K, V>>>,
    listener: Option<Box<Listener<K, V>>>,
    hasher: S,
}

impl<K, V> Builder<K, V> {
    pub(crate) fn new() -> Self {
        Self {
            max_bytes: None,
            max_entries: None,
            max_value_bytes: None,
            negative_percent: DEFAULT_NEGATIVE_PERCENT,
            eviction: Eviction::default(),
            shards: None,
            weigher: None,
            listener: None,
            hasher: DefaultHasher::default(),
        }
    }
}

impl<K, V, S> Builder<K, V, S> {
    /// The most bytes that all entries together may be charged. 256 MiB unless this or
    /// [`Builder::max_entries`] is set.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes.min(UNBOUNDED));
        self
    }

    /// The most entries there may be. Unbounded unless set; where bytes are bounded as well, both
    /// bounds hold.
    pub fn max_entries(mut self, entries: u64) -> Self {
        self.max_entries = Some(entries.min(UNBOUNDED));
        self
    }

    /// The most bytes that one entry may be charged, its [`Memory::OVERHEAD`] included; a larger
    /// one is not stored. One sixteenth of [`Builder::max_bytes`] unless set, never more than
    /// all of it, and never more than 512 MiB.
    pub fn max_value_bytes(mut self, bytes: u64) -> Self {
        self.max_value_bytes = Some(bytes);
        self
    }

    /// How much of the cache, in percent, entries may take that are marked as
    /// [negative](crate::Attributes::negative). 10 unless set. One that would be too many in its
    /// shard is not stored.
    pub fn max_negative(mut self, percent: u8) -> Self {
        self.negative_percent = percent.min(100);
        self
    }

    /// Which entry leaves when there is no room. [`Eviction::Hybrid`] unless set.
    pub fn eviction(mut self, eviction: Eviction) -> Self {
        self.eviction = eviction;
        self
    }

    /// How many parts the cache has, each with a lock and an order of its own. Rounded up to a
    /// power of two, and to at most 65,536. Unless set, enough for the machine's threads and for
    /// the number of entries that is expected, and one for a cache of less than 1,024 entries.
    ///
    /// Reads take no lock, and are as fast with one shard as with many. With more than one, which
    /// entry is evicted is decided among those of one shard.
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = Some(shards);
        self
    }

    /// How many bytes a key and a value take: themselves, and all they own elsewhere. Unless set,
    /// only the key and the value themselves (their `size_of`), which is right for types that own
    /// nothing.
    ///
    /// Called once for each value that is offered, before any lock is taken (but in
    /// [`Memory::compute`]). When it panics, so does the method that offers the value, and nothing
    /// is changed.
    pub fn weigher(mut self, weigher: impl Fn(&K, &V) -> u64 + Send + Sync + 'static) -> Self {
        self.weigher = Some(Box::new(weigher));
        self
    }

    /// A function that is told of each entry that leaves the cache, and why.
    ///
    /// Called with no lock held: the entry has left, and another one may already be at its key.
    /// Called by the call that made the entry leave, before it returns; or, if another thread is
    /// reading at that moment, by a later call that stores, removes or sweeps in the same shard.
    /// So that it is soon, each call that makes entries leave asks whether other threads are
    /// reading, which takes up to ten microseconds. Values that were never stored are not told
    /// of, nor are the entries of a cache that is dropped. When the function panics, so does the
    /// method that called it; the cache is consistent, and the entries that it was still to be
    /// told of are dropped without.
    pub fn listener(mut self, listener: impl Fn(&K, &V, Cause) + Send + Sync + 'static) -> Self {
        self.listener = Some(Box::new(listener));
        self
    }

    /// The hasher for keys. Unless set, foldhash with a random seed: fast, and such that keys
    /// that collide cannot be chosen without knowing the seed.
    pub fn hasher<T>(self, hasher: T) -> Builder<K, V, T> {
        Builder {
            max_bytes: self.max_bytes,
            max_entries: self.max_entries,
            max_value_bytes: self.max_value_bytes,
            negative_percent: self.negative_percent,
            eviction: self.eviction,
            shards: self.shards,
            weigher: self.weigher,
            listener: self.listener,
            hasher,
        }
    }

    /// The cache. It is empty, and has allocated nothing but its shards.
    #[must_use]
    pub fn build(self) -> Memory<K, V, S> {
        let by_bytes = self.max_bytes.is_some() || self.max_entries.is_none();
        let unset = if by_bytes { DEFAULT_MAX_BYTES } else { UNBOUNDED };
        let max_bytes = self.max_bytes.unwrap_or(unset);
        let max_entries = self.max_entries.unwrap_or(UNBOUNDED);
        let max_value_bytes = match self.max_value_bytes {
            Some(bytes) => bytes.min(max_bytes),
            None if by_bytes => max_bytes / DEFAULT_VALUE_SHARE,
            None => max_bytes,
        };
        let smallest = Memory::<K, V, S>::OVERHEAD + (size_of::<K>() + size_of::<V>()) as u64;
        let expected = if self.max_entries.is_some() {
            max_entries.min(max_bytes / smallest)
        } else {
            max_bytes / (smallest + GUESS)
        };
        Memory::new(Settings {
            max_bytes,
            max_entries,
            by_bytes,
            max_value_bytes,
            negative_percent: self.negative_percent,
            eviction: self.eviction,
            shard_bits: shard_bits(self.shards, expected),
            // A guess is no reason to set memory aside.
            expected: if self.max_entries.is_some() { expected } else { 0 },
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
            .field("max_entries", &self.max_entries)
            .field("max_value_bytes", &self.max_value_bytes)
            .field("eviction", &self.eviction)
            .field("shards", &self.shards)
            .finish_non_exhaustive()
    }
}

/// The number of shards as a power of two.
fn shard_bits(wanted: Option<usize>, expected: u64) -> u32 {
    if let Some(wanted) = wanted {
        return wanted.clamp(1, 1 << MAX_SHARD_BITS).next_power_of_two().ilog2();
    }
    let threads = thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let for_threads = (threads * SHARDS_PER_THREAD).min(expected / FEWEST_ENTRIES);
    let shards = for_threads.max(expected / MOST_ENTRIES).clamp(1, 256);
    shards.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_shards_is_a_power_of_two() {
        for (wanted, bits) in [(0, 0), (1, 0), (3, 2), (8, 3), (usize::MAX, MAX_SHARD_BITS)] {
            assert_eq!(shard_bits(Some(wanted), 0), bits);
        }
        assert_eq!((shard_bits(None, 0), shard_bits(None, 1_023)), (0, 0));
        assert_eq!(shard_bits(None, 100_000_000), 8);
    }
}
