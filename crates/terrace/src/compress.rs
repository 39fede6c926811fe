//! **Compression** of payloads below memory: when it pays, and never trusted on the way back.

#[cfg(feature = "zstd")]
use std::cell::Cell;
use std::io;

use bytes::Bytes;
#[cfg(feature = "zstd")]
use zstd::bulk::{Compressor, Decompressor};

/// When and how hard a tier compresses.
///
/// What does not become smaller by a tenth is stored as it is. Of a payload of more than 256 KiB a
/// sample of 32 KiB is tried first, and the rest only if that pays.
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

/// Packs `payload` if it is large enough and at least a tenth smaller afterwards: a large one only
/// if a sample of it is, so that pictures and archives do not pay for a try on the whole.
///
/// A compressor that fails costs the saving and nothing else: the payload is stored.
pub(crate) fn pack(payload: Bytes, compression: Compression) -> (Packing, Bytes) {
    let is_to_be_packed = compression.level > 0 && payload.len() >= compression.threshold.max(1);
    let packed = is_to_be_packed.then(|| pack_if_it_pays(&payload, compression.level));
    match packed {
        Some(Ok(Some(packed))) => return (Packing::Zstd, packed.into()),
        Some(Err(error)) => {
            tracing::debug!(%error, "compression failed: the payload is stored as it is");
        }
        None | Some(Ok(None)) => {}
    }
    (Packing::Stored, payload)
}

/// Larger payloads than this are judged by a sample first.
const SAMPLED_FROM: usize = 256 << 10;

/// A sample is so many pieces, spread over the payload, of so many bytes each.
const PIECES: usize = 8;
const PIECE: usize = 4 << 10;

fn pack_if_it_pays(payload: &[u8], level: u8) -> io::Result<Option<Vec<u8>>> {
    if payload.len() > SAMPLED_FROM {
        let pieces =
            payload.chunks(payload.len().div_ceil(PIECES)).filter_map(|part| part.get(..PIECE));
        let sample = pieces.collect::<Vec<_>>().concat();
        if !pays(&sample, &compress(&sample, level)?) {
            return Ok(None);
        }
    }
    let packed = compress(payload, level)?;
    Ok(pays(payload, &packed).then_some(packed))
}

fn pays(payload: &[u8], packed: &[u8]) -> bool {
    packed.len() <= payload.len() - payload.len() / 10
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

// To make a packer or an unpacker costs more than to use it on a few kilobytes: each thread keeps
// those that it used last.
#[cfg(feature = "zstd")]
thread_local! {
    static PACKER: Cell<Option<Compressor<'static>>> = const { Cell::new(None) };
    static UNPACKER: Cell<Option<Decompressor<'static>>> = const { Cell::new(None) };
}

/// A packer's memory grows with what it packs: one that was used on a larger payload is not kept.
#[cfg(feature = "zstd")]
const KEEP_PACKER_UP_TO: usize = 256 << 10;

#[cfg(feature = "zstd")]
fn compress(payload: &[u8], level: u8) -> io::Result<Vec<u8>> {
    let level = i32::from(level);
    if payload.len() > KEEP_PACKER_UP_TO {
        return zstd::bulk::compress(payload, level);
    }
    let mut packer = match PACKER.take() {
        Some(mut packer) => {
            packer.set_compression_level(level)?;
            packer
        }
        None => Compressor::new(level)?,
    };
    let packed = packer.compress(payload)?;
    PACKER.set(Some(packer));
    Ok(packed)
}

#[cfg(not(feature = "zstd"))]
fn compress(_: &[u8], _: u8) -> io::Result<Vec<u8>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The window of a payload is at most 8 MiB: more memory than that is never lent to it.
#[cfg(feature = "zstd")]
const LARGEST_WINDOW_LOG: u32 = 23;

#[cfg(feature = "zstd")]
fn decompress(payload: &[u8], size: usize) -> Result<Vec<u8>, UnpackError> {
    let unpacker = UNPACKER.take().map_or_else(new_unpacker, Ok);
    let unpacked = unpacker.and_then(|mut unpacker| {
        let unpacked = unpacker.decompress(payload, size)?;
        UNPACKER.set(Some(unpacker));
        Ok(unpacked)
    });
    unpacked.map_err(|_| UnpackError::Damaged)
}

#[cfg(feature = "zstd")]
fn new_unpacker() -> io::Result<Decompressor<'static>> {
    let mut unpacker = Decompressor::new()?;
    unpacker.window_log_max(LARGEST_WINDOW_LOG)?;
    Ok(unpacker)
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
        let packing = |payload: Vec<u8>, compression| pack(payload.into(), compression).0;
        assert_eq!(packing(noise(8192), Compression::default()), Packing::Stored);
        assert_eq!(packing(vec![0; 4095], Compression::default()), Packing::Stored);
        assert_eq!(packing(vec![0; 4096], Compression::off()), Packing::Stored);
        assert_eq!(packing(vec![0; 4096], Compression::default()), Packing::Zstd);
    }

    #[test]
    fn a_large_payload_is_packed_if_a_sample_of_it_pays() {
        let packing = |payload: Vec<u8>| pack(payload.into(), Compression::default()).0;
        for length in [SAMPLED_FROM, SAMPLED_FROM + 1, 1 << 20, (3 << 20) + 7] {
            assert_eq!(packing(noise(length)), Packing::Stored, "noise of {length} bytes");
            assert_eq!(packing(vec![7; length]), Packing::Zstd, "{length} bytes of one kind");
            // Noise at either end alone does not hide the rest.
            let mut half = noise(length / 2);
            half.resize(length, 7);
            assert_eq!(packing(half.clone()), Packing::Zstd, "the second half of {length} bytes");
            half.reverse();
            assert_eq!(packing(half), Packing::Zstd, "the first half of {length} bytes");
        }
    }

    #[test]
    fn what_is_kept_from_one_payload_does_nothing_to_the_next() {
        let text: Bytes = "a terrace above a terrace; ".repeat(1000).into();
        let is_right = || {
            let (packing, packed) = pack(text.clone(), Compression::default());
            assert_eq!(unpack(packing, packed.clone(), text.len()).unwrap(), text);
            packed
        };
        let packed = is_right();
        for level in [9, 1, 3] {
            pack(text.clone(), Compression::default().level(level));
            assert_eq!(is_right(), packed, "after a payload of level {level}");
        }
        for damaged in [packed.slice(..packed.len() / 2), packed.slice(1..), noise(99).into()] {
            assert!(unpack(Packing::Zstd, damaged, text.len()).is_err());
            is_right();
        }
    }

    fn noise(length: usize) -> Vec<u8> {
        std::iter::repeat_with(|| fastrand::u8(..)).take(length).collect()
    }

    #[test]
    fn every_level_comes_back() {
        let text: Bytes = "a terrace above a terrace; ".repeat(1000).into();
        for level in 0..=9 {
            let (packing, packed) = pack(text.clone(), Compression::default().level(level));
            assert_eq!(unpack(packing, packed, text.len()).unwrap(), text, "level {level}");
        }
    }

    #[test]
    fn a_payload_of_another_size_is_refused() {
        let (packing, packed) = pack(vec![7; 10_000].into(), Compression::default());
        assert!(unpack(packing, packed.clone(), 9_999).is_err());
        assert!(unpack(packing, packed, 10_001).is_err());
    }
}
