//! Sampling: which requests the duel of the hybrid policy sees, and when it sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

use crate::policy::duel::Duel;
use crate::sync::Mutex;

/// The duel of a cache, and whether it is of any use at present: while nothing is evicted, all
/// rules are alike, and hits need not be sampled.
pub(crate) struct Sampling {
    /// `None` if the policy has no rules to choose from.
    duel: Option<Mutex<Duel>>,
    /// The rule that all shards follow; see `Rule::code`.
    rule: Arc<AtomicU8>,
    /// Requests whose hash has none of these bits are sampled.
    mask: AtomicU64,
    is_evicting: AtomicBool,
}

/// So many bits cannot all be missing, but in one hash of all.
const ASLEEP: u64 = u64::MAX;

impl Sampling {
    /// For a cache that is expected to hold so many entries. Nothing is sampled unless the policy
    /// has rules to choose from.
    pub(crate) fn new(entries: usize, has_rules: bool) -> Self {
        let duel = has_rules.then(|| Duel::new(entries));
        let mask = duel.as_ref().map_or(ASLEEP, |duel| duel.present_ratio() - 1);
        Self {
            rule: Arc::new(AtomicU8::new(duel.as_ref().map_or(0, |duel| duel.rule().code()))),
            duel: duel.map(Mutex::new),
            mask: AtomicU64::new(mask),
            is_evicting: AtomicBool::new(false),
        }
    }

    pub(crate) fn rule(&self) -> &Arc<AtomicU8> {
        &self.rule
    }

    /// Whether a request is to be sampled.
    #[inline(always)]
    pub(crate) fn wants(&self, hash: u64) -> bool {
        hash & self.mask.load(Relaxed) == 0
    }

    /// Samples a request, unless another thread does so at this moment. `entries` counts the
    /// entries of the cache, which takes some time, and is not called often.
    #[cold]
    pub(crate) fn sample(&self, hash: u64, entries: impl FnOnce() -> usize) {
        let Some(mut duel) = self.duel.as_ref().and_then(Mutex::try_lock) else { return };
        if !duel.sample(hash) {
            return;
        }
        self.rule.store(duel.rule().code(), Relaxed);
        if self.is_evicting.swap(false, Relaxed) {
            duel.expect(entries());
            self.mask.store(duel.present_ratio() - 1, Relaxed);
        } else {
            self.mask.store(ASLEEP, Relaxed);
        }
    }

    /// Something is being evicted.
    #[inline]
    pub(crate) fn evicting(&self) {
        if !self.is_evicting.load(Relaxed) {
            self.is_evicting.store(true, Relaxed);
            if self.mask.load(Relaxed) == ASLEEP
                && let Some(duel) = &self.duel
            {
                self.mask.store(duel.lock().present_ratio() - 1, Relaxed);
            }
        }
    }
}
