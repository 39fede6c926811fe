//! The **core** of a space: it without its types, which is what reads and writes work with.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use super::Mode;
#[cfg(feature = "disk")]
use crate::behind::Behind;
use crate::bulkhead::Bulkhead;
use crate::codec::Codec;
use crate::core::Core;
use crate::entry::Entry;
use crate::error::Error;
use crate::key::{Key, KeyBuffer, KeyRef, LARGEST_KEY, StoredKey, key_name};
use crate::policy::Policy;
use crate::stats::{SpaceCounters, TrafficCounters};
use crate::tenant::TenantName;

/// A space without its types.
pub(crate) struct SpaceCore {
    pub(crate) core: Arc<Core>,
    /// Whose it is.
    pub(crate) tenant: Arc<TenantName>,
    /// Tells spaces apart in memory.
    pub(crate) number: u32,
    /// As the caller named it.
    pub(crate) title: Arc<str>,
    /// As the ledger names it.
    pub(crate) name: Arc<str>,
    /// What stored keys begin with.
    pub(super) prefix: Box<str>,
    /// The tag by which authorities refuse what was loaded since before a sweep.
    pub(crate) fence: Arc<str>,
    pub(crate) policy: Policy,
    /// Nothing is answered that the ledger has not just vouched for.
    pub(crate) confirms: bool,
    /// What is built from its entries depends on them.
    pub(crate) is_tracked: bool,
    pub(crate) codec: Codec,
    pub(crate) counters: Arc<SpaceCounters>,
    pub(crate) state: Arc<SpaceState>,
}

/// What all openings of a space share and may change.
#[derive(Debug, Default)]
pub(crate) struct SpaceState {
    pub(crate) mode: AtomicU8,
    pub(super) kind: OnceLock<Arc<str>>,
    loads: OnceLock<Bulkhead>,
    /// What is written behind.
    #[cfg(feature = "disk")]
    pub(crate) behind: OnceLock<Behind>,
}

impl SpaceCore {
    /// What stored keys of this space and its type begin with, and no others.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn mode(&self) -> Mode {
        match self.state.mode.load(Ordering::Relaxed) {
            0 => Mode::On,
            1 => Mode::Shadow,
            _ => Mode::Off,
        }
    }

    /// How many loads run at once here, if that is limited.
    pub(crate) fn loads(&self) -> Option<&Bulkhead> {
        let most = self.policy.max_loads?;
        Some(self.state.loads.get_or_init(|| Bulkhead::new(most)))
    }

    /// How what is written behind is kept, if it is.
    #[cfg(feature = "disk")]
    pub(crate) fn behind(&self) -> Option<&Behind> {
        self.state.behind.get()
    }

    /// Whether there may be something above the tiers that is newer than they are.
    pub(crate) fn has_journal(&self) -> bool {
        #[cfg(feature = "disk")]
        return self.state.behind.get().is_some();
        #[cfg(not(feature = "disk"))]
        false
    }

    /// The key's bytes, if it can be used and the cache is open.
    pub(crate) fn checked_key<'a, K: Key + ?Sized>(
        &self,
        key: &'a K,
        buffer: &'a mut KeyBuffer,
    ) -> Result<KeyRef<'a>, Error> {
        self.core.check_open()?;
        let bytes = key.encode(buffer);
        if bytes.len() > LARGEST_KEY {
            return Err(Error::KeyTooLong { bytes: bytes.len() });
        }
        Ok(KeyRef { space: self.number, bytes })
    }

    /// The key's name in the ledger, if it can be used and the cache is open.
    pub(crate) fn checked_name(&self, bytes: &[u8]) -> Result<Arc<str>, Error> {
        self.checked_key(bytes, &mut KeyBuffer::default())?;
        Ok(self.name_of(bytes))
    }

    pub(crate) fn name_of(&self, bytes: &[u8]) -> Arc<str> {
        key_name(&self.name, bytes)
    }

    pub(crate) fn stored_key(&self, bytes: &[u8]) -> StoredKey {
        StoredKey::from_prefix(&self.prefix, bytes)
    }

    /// The counters of memory, if there is a memory tier.
    pub(crate) fn memory_counters(&self) -> Option<&TrafficCounters> {
        self.core.memory.as_ref().and(self.counters.tiers.first())
    }

    /// What an entry weighs in memory whose value takes `size` bytes encoded.
    pub(crate) fn weight_of<V>(&self, size: usize) -> u64 {
        (size_of::<Entry<V>>() + size) as u64
    }
}
