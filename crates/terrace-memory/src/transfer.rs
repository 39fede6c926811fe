//! A transfer: what one call carries out of the shards, to be announced and dropped without a lock.

use std::mem;

use crate::Cause;
use crate::listener::Listener;

/// Entries whose slots are free.
///
/// A call makes its transfer before it takes a lock. So, when a panic unwinds, the lock is
/// released first, and only then the caller's keys and values are dropped.
pub(crate) struct Transfer<'a, K, V> {
    listener: Option<&'a Listener<K, V>>,
    freed: Vec<(K, V, Cause)>,
}

impl<'a, K, V> Transfer<'a, K, V> {
    pub(crate) fn new(listener: Option<&'a Listener<K, V>>) -> Self {
        Self { listener, freed: Vec::new() }
    }

    /// Whether somebody waits to be told of what leaves.
    pub(crate) fn has_listener(&self) -> bool {
        self.listener.is_some()
    }

    /// Takes over what was in a slot, and why it left.
    #[inline]
    pub(crate) fn receive(&mut self, (key, value): (K, V), cause: Cause) {
        if mem::needs_drop::<(K, V)>() || self.listener.is_some() {
            self.freed.push((key, value, cause));
        }
    }

    /// Announces and drops. The caller must hold no lock.
    pub(crate) fn finish(self) {
        for (key, value, cause) in self.freed {
            if let Some(listener) = self.listener {
                listener(&key, &value, cause);
            }
        }
    }
}
