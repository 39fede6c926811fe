//! **Compression** of payloads below memory: when it pays, and never trusted on the way back.

use bytes::Bytes;

/// When and how hard a tier compresses.
///
/// ```
/// use terrace::Compression;
///
/// let archive = Compression::default().level(9).from_bytes(1024);
/// let none = Compression::off();
/// # let _ = (archive, none);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    level: u8,
    threshold: usize,
}

impl Default for Compression {
    /// Zstandard, level 1, from 4 KiB.
    fn default() -> Self {
        Self { level: 1, threshold: 4096 }
    }
}

impl Compression {
    /// Stores payloads as they are.
    #[must_use]
    pub fn off() -> Self {
        Self { level: 0, ..Self::default() }
    }

    /// Level 0 (store) to 9 (smallest, slowest); larger numbers count as 9.
    #[must_use]
    pub fn level(self, level: u8) -> Self {
        Self { level: level.min(9), ..self }
    }

    /// Payloads smaller than this are stored as they are.
    #[must_use]
    pub fn from_bytes(self, threshold: usize) -> Self {
        Self { threshold, ..self }
    }
}

/// How the payload of a frame is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Stored,
    Zstd,
}

impl Packing {
    pub(crate) fn id(self) -> u8 {
        match self {
            Self::Stored => 0,
            Self::Zstd => 1,
        }
    }

    pub(crate) fn from_id(id: u8) -> Option<Self> {
        [Self::Stored, Self::Zstd].into_iter().find(|packing| packing.id() == id)
    }
}

/// Why a payload could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("the payload unpacks to another size than its frame says")]
    Size,
    #[cfg(feature = "zstd")]
    #[error("the payload does not unpack")]
    Damaged,
    #[cfg(not(feature = "zstd"))]
    #[error("this build has no Zstandard")]
    Unsupported,
}

/// Packs `payload` if it is large enough and at least a tenth smaller afterwards.
///
/// A compressor that fails costs the saving and nothing else: the payload is stored.
pub(crate) fn pack(payload: Vec<u8>, compression: Compression) -> (Packing, Bytes) {
    if compression.level > 0 && payload.len() >= compression.threshold.max(1) {
        match compress(&payload, compression.level) {
            Ok(packed) if packed.len() <= payload.len() - payload.len() / 10 => {
                return (Packing::Zstd, packed.into());
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "compression failed: the payload is stored as it is");
            }
        }
    }
    (Packing::Stored, payload.into())
}

/// Unpacks `payload`, which claims to be `size` bytes long.
///
/// Never allocates more than `size`: the caller has compared it with its limit.
pub(crate) fn unpack(packing: Packing, payload: Bytes, size: usize) -> Result<Bytes, UnpackError> {
    let payload = match packing {
        Packing::Stored => payload,
        Packing::Zstd => decompress(&payload, size)?.into(),
    };
    if payload.len() == size { Ok(payload) } else { Err(UnpackError::Size) }
}

#[cfg(feature = "zstd")]
fn compress(payload: &[u8], level: u8) -> std::io::Result<Vec<u8>> {
    zstd::bulk::compress(payload, i32::from(level))
}

#[cfg(not(feature = "zstd"))]
fn compress(_: &[u8], _: u8) -> std::io::Result<Vec<u8>> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// The window of a payload is at most 8 MiB: more memory than that is never lent to it.
#[cfg(feature = "zstd")]
const LARGEST_WINDOW_LOG: u32 = 23;

#[cfg(feature = "zstd")]
fn decompress(payload: &[u8], size: usize) -> Result<Vec<u8>, UnpackError> {
    let mut unpacker = zstd::bulk::Decompressor::new().map_err(|_| UnpackError::Damaged)?;
    unpacker.window_log_max(LARGEST_WINDOW_LOG).map_err(|_| UnpackError::Damaged)?;
    unpacker.decompress(payload, size).map_err(|_| UnpackError::Damaged)
}

#[cfg(not(feature = "zstd"))]
fn decompress(_: &[u8], _: usize) -> Result<Vec<u8>, UnpackError> {
    Err(UnpackError::Unsupported)
}

#[cfg(all(test, feature = "zstd"))]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_pay_is_stored() {
        let noise: Vec<u8> = (0..8192).map(|_| fastrand::u8(..)).collect();
        assert_eq!(pack(noise.clone(), Compression::default()).0, Packing::Stored);
        assert_eq!(pack(vec![0; 4095], Compression::default()).0, Packing::Stored);
        assert_eq!(pack(vec![0; 4096], Compression::off()).0, Packing::Stored);
        assert_eq!(pack(vec![0; 4096], Compression::default()).0, Packing::Zstd);
    }

    #[test]
    fn every_level_comes_back() {
        let text: Vec<u8> = "a terrace above a terrace; ".repeat(1000).into_bytes();
        for level in 0..=9 {
            let (packing, packed) = pack(text.clone(), Compression::default().level(level));
            assert_eq!(unpack(packing, packed, text.len()).unwrap(), text, "level {level}");
        }
    }

    #[test]
    fn a_payload_of_another_size_is_refused() {
        let (packing, packed) = pack(vec![7; 10_000], Compression::default());
        assert!(unpack(packing, packed.clone(), 9_999).is_err());
        assert!(unpack(packing, packed, 10_001).is_err());
    }
}
