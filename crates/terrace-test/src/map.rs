//! The **map store**: a store that is nothing but a map, for tests to look into.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use terrace::clock::WallTime;
use terrace::key::StoredKey;
use terrace::ledger::Stamp;
use terrace::store::{Put, Scope, Store, StoreError, StoreResult, Stored, Usage};

/// A [`Store`] in memory, without a ledger, that counts what it is asked.
///
/// It never fails, never waits and never evicts; [`ChaosStore`](crate::ChaosStore)
/// around it does. Closing it lets go of nothing, so that a second cache over the
/// same store finds what the first one left, as after a restart.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use terrace::{Terrace, Tier};
/// use terrace_test::MapStore;
///
/// let store = Arc::new(MapStore::new());
/// let terrace = Terrace::builder().tier("map", Tier::shared(store.clone())).build().await?;
/// terrace.set("user:7", &"Ada".to_owned()).await?;
///
/// let key = &store.keys()[0];
/// assert_eq!(store.writes(), 1);
/// store.set_raw(key, "not a frame");
/// assert!(terrace.get::<String>("user:7").await?.is_none(), "damage is a miss");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct MapStore {
    scope: Scope,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<StoredKey, Put>,
    reads: u64,
    writes: u64,
    removes: u64,
    clears: u64,
    scans: u64,
    is_closed: bool,
}

impl MapStore {
    /// An empty store that this process has for itself.
    #[must_use]
    pub fn new() -> Self {
        Self::with_scope(Scope::Process)
    }

    /// An empty store that says that it is shared this widely.
    #[must_use]
    pub fn with_scope(scope: Scope) -> Self {
        Self { scope, state: Mutex::default() }
    }

    /// Calls of [`Store::get`] so far, however many keys each had.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.state.lock().reads
    }

    /// Calls of [`Store::put`] so far.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.state.lock().writes
    }

    /// Calls of [`Store::remove`] so far.
    #[must_use]
    pub fn removes(&self) -> u64 {
        self.state.lock().removes
    }

    /// Calls of [`Store::clear`] so far.
    #[must_use]
    pub fn clears(&self) -> u64 {
        self.state.lock().clears
    }

    /// Calls of [`Store::scan`] so far.
    #[must_use]
    pub fn scans(&self) -> u64 {
        self.state.lock().scans
    }

    /// Whether [`Store::close`] was called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state.lock().is_closed
    }

    /// What is stored, in the order of the keys' texts.
    #[must_use]
    pub fn keys(&self) -> Vec<StoredKey> {
        self.state.lock().entries.keys().cloned().collect()
    }

    /// The bytes under `key`. Not counted as a read.
    #[must_use]
    pub fn raw(&self, key: &StoredKey) -> Option<Bytes> {
        self.state.lock().entries.get(key).map(|put| put.frame.clone())
    }

    /// The bytes under `key` with all that was said about them when they were put.
    #[must_use]
    pub fn put_under(&self, key: &StoredKey) -> Option<Put> {
        self.state.lock().entries.get(key).cloned()
    }

    /// Replaces the bytes under `key`, or puts some there. Not counted as a write.
    pub fn set_raw(&self, key: &StoredKey, frame: impl Into<Bytes>) {
        let frame = frame.into();
        let mut state = self.state.lock();
        if let Some(put) = state.entries.get_mut(key) {
            put.frame = frame;
            return;
        }
        let (stamp, tags) = (Stamp::default(), Arc::from([]));
        state
            .entries
            .insert(key.clone(), Put { key: key.clone(), frame, expires: None, stamp, tags });
    }

    /// Loses what is under `key`, as any store may. Not counted as a removal.
    pub fn remove_raw(&self, key: &StoredKey) {
        self.state.lock().entries.remove(key);
    }

    /// Answers when the answer is asked for, not when the question is put together.
    fn answer<'a, T: Send>(
        &'a self,
        question: impl FnOnce(&mut State) -> T + Send + 'a,
    ) -> StoreResult<'a, T> {
        Box::pin(async move { Ok::<_, StoreError>(question(&mut self.state.lock())) })
    }
}

impl Default for MapStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MapStore {
    fn scope(&self) -> Scope {
        self.scope
    }

    fn get<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<Option<Bytes>>> {
        self.answer(|state| {
            state.reads += 1;
            keys.iter().map(|key| state.entries.get(key).map(|put| put.frame.clone())).collect()
        })
    }

    fn put<'a>(&'a self, puts: &'a [Put]) -> StoreResult<'a, Vec<Stored>> {
        self.answer(|state| {
            state.writes += 1;
            state.entries.extend(puts.iter().map(|put| (put.key.clone(), put.clone())));
            vec![Stored::Yes; puts.len()]
        })
    }

    fn remove<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<bool>> {
        self.answer(|state| {
            state.removes += 1;
            keys.iter().map(|key| state.entries.remove(key).is_some()).collect()
        })
    }

    fn clear<'a>(&'a self, prefix: &'a str) -> StoreResult<'a, u64> {
        self.answer(move |state| {
            state.clears += 1;
            let before = state.entries.len();
            state.entries.retain(|key, _| !key.as_str().starts_with(prefix));
            (before - state.entries.len()) as u64
        })
    }

    fn scan<'a>(
        &'a self,
        after: Option<&'a StoredKey>,
        limit: usize,
    ) -> StoreResult<'a, Vec<(StoredKey, Bytes)>> {
        self.answer(move |state| {
            state.scans += 1;
            let start = after.map_or(Bound::Unbounded, Bound::Excluded);
            let entries = state.entries.range::<StoredKey, _>((start, Bound::Unbounded));
            entries.take(limit).map(|(key, put)| (key.clone(), put.frame.clone())).collect()
        })
    }

    fn usage(&self) -> StoreResult<'_, Usage> {
        self.answer(|state| {
            let size = |put: &Put| put.key.as_str().len() + put.frame.len();
            let bytes: usize = state.entries.values().map(size).sum();
            Usage::new(state.entries.len() as u64, bytes as u64)
        })
    }

    fn maintain(&self, now: WallTime) -> StoreResult<'_, ()> {
        self.answer(move |state| {
            state.entries.retain(|_, put| put.expires.is_none_or(|expires| expires > now));
        })
    }

    fn close(&self) -> StoreResult<'_, ()> {
        self.answer(|state| state.is_closed = true)
    }
}
