//! Who takes part, one engine a file, and what a suite asks of an engine.

pub mod amalgam;
pub mod bare_redis;
pub mod bare_sqlite;
pub mod cached;
pub mod cachet;
pub mod diskcache;
pub mod foyer;
pub mod foyer_hybrid;
pub mod mini_moka;
pub mod moka;
pub mod plain_files;
pub mod quick_cache;
pub mod rwlock_hashmap;
pub mod tag_sets;
pub mod terrace;
pub mod terrace_disk;
pub mod terrace_redis;
pub mod terrace_tags;
pub mod tinyufo;

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;

use crate::kind::{Integers, Kind, Sizes};
use crate::load::Source;

/// A cache in memory.
pub trait Memory: Send + Sync + Sized {
    type Kind: Kind;

    const NAME: &'static str;

    fn version() -> &'static str;

    /// An empty cache that evicts nothing before it has so many entries, and has not many more.
    fn with_room_for(entries: usize) -> Self;

    fn get(&self, key: &Key<Self>) -> Option<Value<Self>>;

    /// Tells `see` what is under each of `keys`, by its place among them. One look-up after the
    /// other, unless the engine has something better.
    #[inline]
    fn get_many(&self, keys: &[Key<Self>], mut see: impl FnMut(usize, Option<&Value<Self>>)) {
        for (index, key) in keys.iter().enumerate() {
            see(index, self.get(key).as_ref());
        }
    }

    fn insert(&self, key: Key<Self>, value: Value<Self>);

    /// Does what the engine has put off.
    fn settle(&self) {}

    /// How many entries there are, from engines that tell.
    fn entries(&self) -> Option<usize>;
}

pub type Key<M> = <<M as Memory>::Kind as Kind>::Key;
pub type Value<M> = <<M as Memory>::Kind as Kind>::Value;

/// A cache in memory that is bounded in bytes.
pub trait Weighed: Memory<Kind = Sizes> {
    /// An empty cache for so many bytes, which are about so many entries.
    fn with_bytes(bytes: u64, entries: usize) -> Self;
}

/// A cache in memory whose entries expire.
pub trait Expiring: Memory<Kind = Integers> {
    /// An empty cache that keeps each entry for so long.
    fn with_ttl(entries: usize, ttl: Duration) -> Self;

    /// Lets go of what has expired, where somebody has to say so.
    fn sweep(&self) {}
}

/// An asynchronous cache that loads what is missing.
pub trait Loading: Clone + Send + Sync + Sized + 'static {
    const NAME: &'static str;

    fn version() -> &'static str;

    /// An empty cache that evicts nothing before it has so many entries.
    fn with_room_for(entries: usize) -> impl Future<Output = Result<Self>> + Send;

    /// Stores the users under these keys.
    fn fill(&self, keys: &[String]) -> impl Future<Output = Result<()>> + Send;

    /// The identity of the user under a key, who comes from `source` if they are not cached.
    fn get_or_load(
        &self,
        key: &str,
        source: &'static Source,
    ) -> impl Future<Output = Result<u64>> + Send;

    fn close(self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// One that loads once for all who wait.
pub trait Sharing: Loading {
    /// [`get_or_load`](Loading::get_or_load) from a source that may be down; nothing if it is.
    fn try_load(
        &self,
        key: &str,
        source: &'static Source,
    ) -> impl Future<Output = Option<u64>> + Send;
}

/// Values on disk.
pub trait Disk: Send + Sync + Sized + 'static {
    const NAME: &'static str;

    fn version() -> &'static str;

    /// Empty, in an empty directory.
    fn open(directory: &Path) -> impl Future<Output = Result<Self>> + Send;

    /// Stores many values.
    fn fill(&self, entries: &[(String, Bytes)]) -> impl Future<Output = Result<()>> + Send;

    /// What `look` makes of the value under a key.
    fn read<T>(
        &self,
        key: &str,
        look: impl FnOnce(&[u8]) -> T + Send,
    ) -> impl Future<Output = Result<Option<T>>> + Send;

    fn write(&self, key: &str, value: &Bytes) -> impl Future<Output = Result<()>> + Send;

    fn close(self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// Values on a server.
pub trait Remote: Clone + Send + Sync + 'static {
    const NAME: &'static str;

    fn version() -> &'static str;

    /// What `look` makes of the value under a key.
    fn get<T>(
        &self,
        key: &str,
        look: impl FnOnce(&[u8]) -> T + Send,
    ) -> impl Future<Output = Result<Option<T>>> + Send;

    /// Stores a value for an hour.
    fn set(&self, key: &str, value: &Bytes) -> impl Future<Output = Result<()>> + Send;

    /// Has `look` see the values under many keys, by their places among them, in one exchange.
    fn get_many(
        &self,
        keys: &[&str],
        look: impl FnMut(usize, &[u8]) + Send,
    ) -> impl Future<Output = Result<()>> + Send;
}

/// One that invalidates, and others that follow.
pub trait Following {
    const NAME: &'static str;

    type Writer: Invalidating;

    fn version() -> &'static str;

    /// Has every follower know these keys.
    fn fill(&mut self, keys: &[String]) -> impl Future<Output = Result<()>> + Send;

    fn writer(&self) -> Self::Writer;

    /// Whether what a follower knew of a key is gone.
    fn has_heard(&mut self, follower: usize, key: &str) -> bool;
}

/// The one that invalidates.
pub trait Invalidating: Clone + Send + Sync + 'static {
    fn invalidate(&self, key: &str) -> impl Future<Output = Result<()>> + Send;
}

/// Entries that carry tags, and go with them.
pub trait Tagging: Send + Sync {
    const NAME: &'static str;

    /// Whether an invalidation takes the entries away themselves, so that they have to be stored
    /// again before the next.
    const TAKES_AWAY: bool;

    fn version() -> &'static str;

    /// Stores a value of its own under each of these keys, with this tag.
    fn fill(&self, keys: &[String], tag: &str) -> impl Future<Output = Result<()>> + Send;

    /// Whether there is a value that can be read.
    fn has(&self, key: &str) -> impl Future<Output = Result<bool>> + Send;

    /// How many of these keys are there.
    fn count(&self, keys: &[&str]) -> impl Future<Output = Result<usize>> + Send;

    fn invalidate(&self, tag: &str) -> impl Future<Output = Result<()>> + Send;
}
