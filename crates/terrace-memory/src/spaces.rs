//! Spaces: groups of entries that can be removed as a whole, in one step.
//!
//! Removing a space begins a new **generation**. Entries carry the generation in which they were
//! stored; those of the present one need no further look. An older one is looked up here: it is
//! dead if its space was removed after it was stored.

use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};

use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};

use crate::slot::Life;

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

    /// Removes a space. `renew` is called when generations have run out: it has to remove what is
    /// dead, and to put all else into generation 0.
    pub(crate) fn remove(&self, space: u32, renew: impl FnOnce()) {
        let _removing = self.removing.lock();
        if self.generation() == u16::MAX {
            // First, so that no entry is stored in the last generation behind the back of `renew`.
            // Meanwhile entries of spaces that were ever removed look older than they are: some
            // are lost, once in 65,535 removals, and none is found that should not be.
            self.plain.store(Life::plain(0), Release);
            renew();
            self.removed.write().clear();
        }
        let next = self.generation() + 1;
        // Before the entries are judged by it.
        self.removed.write().insert(space, next);
        self.plain.store(Life::plain(next), Release);
    }
}
