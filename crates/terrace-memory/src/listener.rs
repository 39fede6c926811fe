//! A listener: the caller's function that is told when an entry leaves the cache.

/// Why an entry left the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// Another value was stored at its key.
    Replaced,
    /// It made room for others.
    Evicted,
    /// It had expired when it was met.
    Expired,
    /// It was removed on request, or because the value that was to replace it was too large.
    Removed,
}

impl Cause {
    /// A number below 4, to be kept in a slot.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Replaced => 0,
            Self::Evicted => 1,
            Self::Expired => 2,
            Self::Removed => 3,
        }
    }

    pub(crate) fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Replaced,
            1 => Self::Evicted,
            2 => Self::Expired,
            _ => Self::Removed,
        }
    }
}

/// The function that [`Builder::listener`](crate::Builder::listener) was given.
pub(crate) type Listener<K, V> = dyn Fn(&K, &V, Cause) + Send + Sync;
