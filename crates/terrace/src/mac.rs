//! The **MAC**: a keyed hash at the end of a frame, by which a cache knows its own frames from those
//! that somebody else has made, altered, or moved to another place.
//!
//! It is BLAKE3 with a key, over the stored key under which the frame is kept and over the frame
//! itself: docs/format.md has the bytes. A frame under another key, space, tenant or schema than
//! the one that it was made for has the wrong MAC there. It says nothing of when: that a frame is
//! an older one put back is seen by its stamp, which the MAC covers.

#[cfg(feature = "mac")]
pub use keyed::MacKeys;

#[cfg(not(feature = "mac"))]
pub(crate) use none::MacKeys;

/// Bytes of a MAC.
pub(crate) const MAC: usize = 32;

/// Makes and checks the MACs of frames that are kept under one stored key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signer<'a> {
    pub(crate) keys: &'a MacKeys,
    /// The stored key.
    pub(crate) place: &'a str,
}

impl Signer<'_> {
    pub(crate) fn sign(self, frame: &[u8]) -> [u8; MAC] {
        self.keys.sign(self.place, frame)
    }

    /// Whether the MAC is right by any of the keys. Takes the same time wherever two MACs differ.
    pub(crate) fn is_right(self, frame: &[u8], mac: [u8; MAC]) -> bool {
        self.keys.verify(self.place, frame, mac)
    }
}

#[cfg(feature = "mac")]
mod keyed {
    use std::fmt;

    use super::MAC;
    use crate::error::BuildError;

    /// Tells keys that are derived for frames from those that a secret is used for elsewhere.
    const CONTEXT: &str = "terrace 2026 frame MAC";

    /// Bytes of a secret at least.
    const SHORTEST_SECRET: usize = 32;

    /// The keys by which frames below memory are signed and checked: see
    /// [`Builder::mac`](crate::Builder::mac).
    ///
    /// ```
    /// use terrace::{MacKeys, Memory, Terrace};
    ///
    /// # fn main() -> Result<(), terrace::BuildError> {
    /// # let (new, old) = ([1; 32], [2; 32]);
    /// // While the secret is being changed, frames of both are accepted.
    /// let keys = MacKeys::new(&new)?.former(&old)?;
    /// let builder = Terrace::builder().memory(Memory::bytes(64 << 20)).mac(keys);
    /// # Ok(()) }
    /// ```
    #[derive(Clone)]
    pub struct MacKeys {
        current: [u8; 32],
        former: Vec<[u8; 32]>,
    }

    impl MacKeys {
        /// Signs with a key that is derived from `secret`: at least 32 bytes that nobody can guess,
        /// the same in every process that shares a tier.
        ///
        /// # Errors
        /// The secret is shorter.
        pub fn new(secret: &[u8]) -> Result<Self, BuildError> {
            Ok(Self { current: derived(secret)?, former: Vec::new() })
        }

        /// Accepts what was signed with this secret, too, and signs nothing with it.
        ///
        /// To change a secret without misses: first give every process the new one as `former`,
        /// then make it the current one and the old one `former`, and leave the old one out when
        /// no entry is left that was made with it. Each costs a hash more for frames that it did
        /// not sign.
        ///
        /// # Errors
        /// The secret is shorter than 32 bytes.
        pub fn former(mut self, secret: &[u8]) -> Result<Self, BuildError> {
            self.former.push(derived(secret)?);
            Ok(self)
        }

        pub(super) fn sign(&self, place: &str, frame: &[u8]) -> [u8; MAC] {
            mac(&self.current, place, frame).into()
        }

        pub(super) fn verify(&self, place: &str, frame: &[u8], found: [u8; MAC]) -> bool {
            // Two hashes are compared in constant time.
            let found = blake3::Hash::from_bytes(found);
            let mut keys = std::iter::once(&self.current).chain(&self.former);
            keys.any(|key| mac(key, place, frame) == found)
        }
    }

    fn derived(secret: &[u8]) -> Result<[u8; 32], BuildError> {
        if secret.len() < SHORTEST_SECRET {
            return Err(BuildError::Setting("the secret of a MAC has at least 32 bytes"));
        }
        Ok(blake3::derive_key(CONTEXT, secret))
    }

    fn mac(key: &[u8; 32], place: &str, frame: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(key);
        // With its length first, no place and frame are the same bytes as another two.
        hasher.update(&(place.len() as u64).to_le_bytes());
        hasher.update(place.as_bytes());
        hasher.update(frame);
        hasher.finalize()
    }

    /// Shows no key.
    impl fmt::Debug for MacKeys {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter
                .debug_struct("MacKeys")
                .field("former", &self.former.len())
                .finish_non_exhaustive()
        }
    }
}

#[cfg(not(feature = "mac"))]
mod none {
    use super::MAC;

    /// Without the feature nobody has keys.
    #[derive(Debug)]
    pub(crate) enum MacKeys {}

    impl MacKeys {
        pub(super) fn sign(&self, _: &str, _: &[u8]) -> [u8; MAC] {
            match *self {}
        }

        pub(super) fn verify(&self, _: &str, _: &[u8], _: [u8; MAC]) -> bool {
            match *self {}
        }
    }
}
