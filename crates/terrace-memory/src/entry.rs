//! An entry, as the caller describes it and as the caller's closures see it.

use std::fmt;
use std::time::Duration;

use crate::Tick;

/// What is kept beside a value.
///
/// ```
/// use terrace_memory::{Attributes, Tick};
///
/// let attributes = Attributes { stamp: 7, ..Attributes::default() };
/// assert_eq!(attributes.expires, Tick::NEVER);
/// ```
///
/// The tick and the marks cost nothing beyond [`Memory::OVERHEAD`](crate::Memory::OVERHEAD). A
/// stamp, a space or an idle time cost 24 bytes more, for this entry and for those that are
/// allocated together with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// From this tick on, the entry is not returned any more. An entry that is inserted with a
    /// tick in the past takes room like any other and is never returned. Ticks from 2^42 - 1 on
    /// (139 years) are never reached.
    pub expires: Tick,
    /// If set, the entry also expires when it was not read for so long: to within an eighth,
    /// because not every read is noted. At most 49 days, and never beyond `expires`.
    pub idle: Option<Duration>,
    /// A number that means something to the caller, for example the generation of the value. The
    /// cache keeps it and shows it; see [`Memory::replace_if`](crate::Memory::replace_if).
    pub stamp: u64,
    /// The group the entry belongs to;
    /// [`Memory::remove_space`](crate::Memory::remove_space) removes a whole group.
    pub space: u32,
    /// The entry is never evicted to make room; it can expire, and be removed. When nothing but
    /// such entries is left, values are not stored any more.
    pub pinned: bool,
    /// The entry says that there is no value. Such entries together take no more than a share of
    /// the cache; see [`Builder::max_negative`](crate::Builder::max_negative).
    pub negative: bool,
}

impl Attributes {
    /// Whether an entry with these attributes has expired at `now`, provided that it was used.
    #[must_use]
    pub fn is_expired(&self, now: Tick) -> bool {
        self.expires <= now && self.expires != Tick::NEVER
    }

    /// When an entry that is stored or used now expires if it is not used again.
    #[inline]
    pub(crate) fn first_expires(&self, now: Tick) -> Tick {
        let Some(_) = self.idle else { return self.expires };
        self.expires.min(Tick(now.0.saturating_add(self.idle_millis().into())))
    }

    /// 0 for none.
    pub(crate) fn idle_millis(&self) -> u32 {
        let millis = |idle: Duration| u32::try_from(idle.as_millis()).unwrap_or(u32::MAX).max(1);
        self.idle.map_or(0, millis)
    }

    /// Whether there is anything that a slot has no place for.
    #[inline]
    pub(crate) fn has_extra(&self) -> bool {
        self.stamp != 0 || self.space != 0 || self.idle.is_some()
    }
}

impl Default for Attributes {
    /// Never expires, stamp 0, space 0, neither pinned nor negative.
    fn default() -> Self {
        Self {
            expires: Tick::NEVER,
            idle: None,
            stamp: 0,
            space: 0,
            pinned: false,
            negative: false,
        }
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
