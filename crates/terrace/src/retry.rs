//! The **retries**: keys whose last load failed, and when each may be loaded again.
//!
//! Until then callers get what is stale, or else the error again: a source that is down is asked
//! once in a while, not once a caller. Anything that invalidates the key makes it loadable at
//! once, and so does a load that succeeds.

use std::collections::HashSet;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use parking_lot::Mutex;

use crate::clock::Tick;
use crate::core::Ticket;
use crate::flight::Crash;
use crate::key::{KeyRef, MemoryKey};
use crate::policy::Backoff;

/// Keys that are remembered, in all; beyond that those that have waited longest are forgotten.
const MOST_KEYS: usize = 65_536;

/// The keys that failed.
pub(crate) struct Retries {
    shards: Box<[Mutex<HashTable<Remembered>>]>,
    hasher: RandomState,
    count: AtomicUsize,
}

struct Remembered {
    key: MemoryKey,
    failed: Failed,
    /// Not to be loaded before this.
    retry_at: Tick,
    /// Failures in a row.
    failures: u32,
}

/// A load that failed.
#[derive(Clone)]
pub(crate) struct Failed {
    pub(crate) crash: Crash,
    /// When the load began: what was invalidated since may be loaded at once.
    pub(crate) ticket: Ticket,
    /// The tags that the key is known by.
    pub(crate) tags: Arc<[Arc<str>]>,
}

const SHARDS: usize = 64;

impl Retries {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::default(),
            count: AtomicUsize::new(0),
        }
    }

    /// The failure for which a load of `key` has to wait at `now`.
    pub(crate) fn waiting(&self, key: KeyRef<'_>, now: Tick) -> Option<Failed> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let hash = self.hasher.hash_one(key);
        let shard = self.shard(hash).lock();
        let known = shard.find(hash, |known| is(key, known))?;
        (now < known.retry_at).then(|| known.failed.clone())
    }

    /// Takes note of a failure; returns when the key may be loaded again.
    pub(crate) fn failed(
        &self,
        key: KeyRef<'_>,
        failed: Failed,
        next: impl FnOnce(u32) -> Tick,
    ) -> Tick {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash).lock();
        if let Some(known) = shard.find_mut(hash, |known| is(key, known)) {
            known.failures = known.failures.saturating_add(1);
            known.retry_at = next(known.failures);
            known.failed = failed;
            return known.retry_at;
        }
        if shard.len() >= MOST_KEYS / SHARDS {
            self.forget_one(&mut shard);
        }
        let retry_at = next(1);
        let known = Remembered { key: key.to_memory_key(), failed, retry_at, failures: 1 };
        shard.insert_unique(hash, known, |known| self.hasher.hash_one(&known.key));
        self.count.fetch_add(1, Ordering::Relaxed);
        retry_at
    }

    /// Forgets what was remembered of `key`.
    pub(crate) fn forget(&self, key: KeyRef<'_>) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash).lock();
        if let Ok(known) = shard.find_entry(hash, |known| is(key, known)) {
            known.remove();
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Forgets the keys of these spaces.
    pub(crate) fn forget_spaces(&self, numbers: &HashSet<u32>) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let before = shard.len();
            shard.retain(|known| !numbers.contains(&known.key.space));
            self.count.fetch_sub(before - shard.len(), Ordering::Relaxed);
        }
    }

    /// Forgets keys that nobody has asked for since long after they could be loaded again.
    pub(crate) fn sweep(&self, now: Tick) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        for shard in &self.shards {
            let mut shard = shard.lock();
            let before = shard.len();
            shard.retain(|known| now < known.retry_at.saturating_add(Backoff::default().longest));
            self.count.fetch_sub(before - shard.len(), Ordering::Relaxed);
        }
    }

    fn forget_one(&self, shard: &mut HashTable<Remembered>) {
        let oldest = shard.iter().min_by_key(|known| known.retry_at);
        let Some(key) = oldest.map(|known| known.key.clone()) else { return };
        let hash = self.hasher.hash_one(&key);
        if let Ok(known) = shard.find_entry(hash, |known| known.key == key) {
            known.remove();
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn shard(&self, hash: u64) -> &Mutex<HashTable<Remembered>> {
        // There are as many shards as the mask has values.
        let index = usize::try_from(hash >> 58).unwrap_or(0);
        #[expect(clippy::indexing_slicing, reason = "six bits, sixty-four shards")]
        &self.shards[index]
    }
}

fn is(key: KeyRef<'_>, known: &Remembered) -> bool {
    hashbrown::Equivalent::equivalent(&key, &known.key)
}
