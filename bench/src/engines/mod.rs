//! Who takes part, one engine a file, and what a suite asks of an engine.

pub mod bare_sqlite;
pub mod foyer;
pub mod mini_moka;
pub mod moka;
pub mod quick_cache;
pub mod rwlock_hashmap;
pub mod terrace;

use std::future::Future;
use std::path::Path;

use anyhow::Result;
use bytes::Bytes;

use crate::load::Source;

/// A cache in memory, of integers.
pub trait Memory: Send + Sync + Sized {
    const NAME: &'static str;

    fn version() -> &'static str;

    /// An empty cache that evicts nothing before it has so many entries.
    fn with_room_for(entries: usize) -> Self;

    fn get(&self, key: u64) -> Option<u64>;

    fn insert(&self, key: u64, value: u64);

    /// Does what the engine has put off.
    fn settle(&self) {}
}

/// An asynchronous cache that loads what is missing, once for all who wait.
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
