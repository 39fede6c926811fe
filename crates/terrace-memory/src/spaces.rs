//! Spaces: groups of entries that can be removed as a whole, in one step.
//!
//! Removing a space begins a new **generation**. Entries carry the generation in which they were
//! stored; those of the present one need no further look. An older one is looked up here: it is
//! dead if its space was removed after it was stored.

use hashbrown::HashMap;

use crate::slot::Life;
use crate::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};
use crate::sync::{Mutex, MutexGuard, RwLock};

pub(crate) struct Spaces {
    /// What [`Life::odd_bits`] are for an entry that need not be looked up.
    plain: AtomicU64,
    /// The generation that began when a space was last removed.
    removed: RwLock<HashMap<u32, u16, foldhash::fast::RandomState>>,
    /// Held while a space is being removed.
    removing: Mutex<()>,
}

impl Spaces {
    pub(crate) fn new() -> Self {
        Self {
            plain: AtomicU64::new(Life::plain(0)),
            removed: RwLock::default(),
            removing: Mutex::new(()),
        }
    }

    #[inline(always)]
    pub(crate) fn plain(&self) -> u64 {
        self.plain.load(Acquire)
    }

    pub(crate) fn generation(&self) -> u16 {
        (self.plain() / Life::plain(1)) as u16
    }

    /// Whether an entry of this space and generation was removed with its space.
    pub(crate) fn is_removed(&self, space: u32, generation: u16) -> bool {
        self.removed.read().get(&space).is_some_and(|&removed| generation < removed)
    }

    /// Begins the removal of a space. One at a time: others wait.
    pub(crate) fn removal(&self) -> Removal<'_> {
        Removal { spaces: self, _removing: self.removing.lock() }
    }
}

/// The removal of a space, under way.
pub(crate) struct Removal<'a> {
    spaces: &'a Spaces,
    _removing: MutexGuard<'a, ()>,
}

impl Removal<'_> {
    /// Whether the present generation is the last one.
    pub(crate) fn has_run_out(&self) -> bool {
        self.spaces.generation() == u16::MAX
    }

    /// Begins anew with generation 0. All entries have to be of the last one, and no reader left
    /// who found one of an earlier generation.
    pub(crate) fn begin_anew(&self) {
        self.spaces.plain.store(Life::plain(0), Release);
    }

    /// Forgets what was removed when. All entries have to be of generation 0.
    pub(crate) fn forget(&self) {
        self.spaces.removed.write().clear();
    }

    /// Removes a space.
    pub(crate) fn finish(self, space: u32) {
        let next = self.spaces.generation().saturating_add(1);
        // Before the entries are judged by it.
        self.spaces.removed.write().insert(space, next);
        self.spaces.plain.store(Life::plain(next), Release);
    }
}
