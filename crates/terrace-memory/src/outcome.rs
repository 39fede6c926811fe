//! An outcome: what came of storing a value, or of a sweep.

/// What came of [`Memory::insert`](crate::Memory::insert).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Insert {
    /// The value was stored; the key had none, or an expired one.
    Stored,
    /// The value was stored in place of another one.
    Replaced,
    /// The value is larger than a value may be. It was dropped, and the key has no value now.
    TooLarge,
    /// No room could be made: all that is there is pinned, or readers have held on for too long
    /// to what was evicted, or negative entries have taken their share. The value was dropped,
    /// and the key has no value now.
    NoRoom,
}

/// What came of [`Memory::replace_if`](crate::Memory::replace_if).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "the value may have been refused"]
pub enum Replace {
    /// The value was stored; the key had none, or an expired one.
    Stored,
    /// The value was stored in place of another one.
    Replaced,
    /// The closure said no. The value was dropped, and the key has what it had.
    Refused,
    /// The closure said yes, but the value is larger than a value may be. It was dropped, and
    /// the key has no value now.
    TooLarge,
    /// The closure said yes, but no room could be made: see [`Insert::NoRoom`]. The value was
    /// dropped, and the key has no value now.
    NoRoom,
}

/// What [`Memory::compute`](crate::Memory::compute) is to make of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compute<V> {
    /// What is at the key stays. The outcome is [`Replace::Refused`].
    Keep,
    /// What is at the key is removed. The outcome is [`Replace::Replaced`] if there was something.
    Remove,
    /// A value is stored.
    Store(V, crate::Attributes),
}

/// What came of [`Memory::sweep`](crate::Memory::sweep).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Sweep {
    /// Slots looked at, empty ones too: the work that was done.
    pub examined: usize,
    /// Expired entries that were removed.
    pub removed: usize,
}
