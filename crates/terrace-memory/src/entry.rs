//! An entry, as the caller describes it and as the caller's closures see it.

use std::fmt;

use crate::Tick;

/// What is kept beside a value.
///
/// ```
/// use terrace_memory::{Attributes, Tick};
///
/// let attributes = Attributes { stamp: 7, ..Attributes::default() };
/// assert_eq!(attributes.expires, Tick::NEVER);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// From this tick on, the entry is not returned any more. An entry that is inserted with a
    /// tick in the past takes room like any other and is never returned.
    pub expires: Tick,
    /// A number that means something to the caller, for example the generation of the value. The
    /// cache keeps it and shows it; see [`Memory::replace_if`](crate::Memory::replace_if).
    pub stamp: u64,
    /// The group the entry belongs to;
    /// [`Memory::remove_space`](crate::Memory::remove_space) removes a whole group.
    pub space: u32,
}

impl Attributes {
    /// Whether an entry with these attributes has expired at `now`.
    #[must_use]
    pub fn is_expired(&self, now: Tick) -> bool {
        self.expires <= now && self.expires != Tick::NEVER
    }
}

impl Default for Attributes {
    /// Never expires, stamp 0, space 0.
    fn default() -> Self {
        Self { expires: Tick::NEVER, stamp: 0, space: 0 }
    }
}

/// An entry as a closure sees it.
#[non_exhaustive]
pub struct View<'a, V> {
    /// The value.
    pub value: &'a V,
    /// What is kept beside it.
    pub attributes: Attributes,
    /// The bytes the entry is charged for: what the weigher said, and
    /// [`Memory::OVERHEAD`](crate::Memory::OVERHEAD).
    pub weight: u64,
}

// By hand, because a derive would ask the same of `V`.
impl<V> Clone for View<'_, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for View<'_, V> {}

impl<V: fmt::Debug> fmt::Debug for View<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("value", self.value)
            .field("attributes", &self.attributes)
            .field("weight", &self.weight)
            .finish()
    }
}

/// An entry as a shard stores it.
pub(crate) struct Node<K, V> {
    pub(crate) key: K,
    pub(crate) value: V,
    pub(crate) attributes: Attributes,
    pub(crate) weight: u64,
    /// Kept so that a table can grow without calling the caller's `Hash`.
    pub(crate) hash: u64,
}

impl<K, V> Node<K, V> {
    pub(crate) fn view(&self) -> View<'_, V> {
        View { value: &self.value, attributes: self.attributes, weight: self.weight }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_expires_at_its_tick() {
        let attributes = Attributes { expires: Tick::from_millis(10), ..Attributes::default() };
        assert!(!attributes.is_expired(Tick::from_millis(9)));
        assert!(attributes.is_expired(Tick::from_millis(10)));
        assert!(attributes.is_expired(Tick::NEVER));
    }

    #[test]
    fn never_is_never() {
        assert!(!Attributes::default().is_expired(Tick::NEVER));
    }
}
