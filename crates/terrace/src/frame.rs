//! The **frame**: an entry's bytes below memory, readable from any language.
//!
//! docs/format.md describes them byte by byte. A frame that is damaged, foreign or
//! of another format is never an error to a caller: it is a miss, counted.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::clock::WallTime;
use crate::codec::Codec;
use crate::compress::{self, Compression, Packing};
use crate::ledger::Stamp;
use crate::mac::{MAC, Signer};

/// The first bytes of every frame.
pub const MAGIC: [u8; 3] = *b"TRC";

/// The format that this build writes, and the only one that it reads.
pub const FORMAT: u8 = 1;

/// Where the flags are.
const FLAGS: usize = 6;

/// Bytes before the key: everything of fixed length.
const FIXED: usize = 88;

/// Where the stamp is: behind the magic, the format, codec, packing, flags, and four times.
const STAMP: Range<usize> = MAGIC.len() + 5 + 4 * 8..MAGIC.len() + 5 + 4 * 8 + 16;

/// The flag of a frame that has a MAC before its checksum.
const WITH_MAC: u16 = 1;

/// The flag of a frame whose stamp stands behind its checksum, twice: a server that knows the stamp
/// and cannot compute the checksum has put it there.
const STAMPED_BEHIND: u16 = 2;

/// Bytes of the checksum at the end.
const CHECKSUM: usize = 8;

/// What a frame says about its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// How the value is encoded.
    pub codec: Codec,
    /// When the value was made.
    pub created: WallTime,
    /// When it stops being fresh; `None`: never.
    pub expires: Option<WallTime>,
    /// Until when it may be served stale; `None` as long as `expires` is `None`.
    pub stale_until: Option<WallTime>,
    /// The ledger's position before the value was made.
    pub stamp: Stamp,
    /// When the source says that it changed last.
    pub last_modified: Option<WallTime>,
    /// The source's own version of the value.
    pub version: Option<Arc<str>>,
    /// Tags, each as the ledger names it (`tenant:tag`).
    pub tags: Arc<[Arc<str>]>,
    /// Names of what the value was made from, as the ledger names them.
    pub dependencies: Arc<[Arc<str>]>,
    /// The caller's key, whole.
    pub key: Bytes,
}

impl Header {
    /// The same times on a clock that is so many milliseconds ahead. When the source changed is a
    /// time of its own.
    pub(crate) fn shift(&mut self, ahead: i64) {
        if ahead != 0 {
            self.created = self.created.shifted(ahead);
            self.expires = self.expires.map(|time| time.shifted(ahead));
            self.stale_until = self.stale_until.map(|time| time.shifted(ahead));
        }
    }
}

/// A frame that was read and whose checksum is right.
#[derive(Debug)]
pub struct Frame {
    /// What it says about its value.
    pub header: Header,
    /// Bytes of the value before packing.
    pub size: usize,
    packing: Packing,
    payload: Bytes,
}

/// Why bytes are not a frame that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The bytes do not begin like a frame.
    #[error("not a frame")]
    Foreign,
    /// A frame of a format, codec or compression that this build does not know.
    #[error("a frame of another format")]
    Unknown,
    /// Cut off, altered, or contradicting itself.
    #[error("a damaged frame")]
    Damaged,
    /// A frame with a MAC, which cannot be checked.
    #[error(
        "a frame with a MAC, and there is no key to check it: give the cache the key with Builder::mac"
    )]
    NoKey,
    /// A frame without a MAC, where all have to have one.
    #[error("a frame without a MAC, where all have to have one")]
    NoMac,
    /// Somebody without the key has made or altered the frame, or it belongs to another place.
    #[error("a frame with a wrong MAC: it was altered, moved, or signed with another key")]
    WrongMac,
    /// The value would be larger than the reader accepts.
    #[error("the value is larger than the tier's limit")]
    TooLarge,
}

/// Writes a frame of `header` and `value`, packed as `compression` says.
///
/// Costs one copy of the value, its checksum, and the compression if there is any.
#[must_use]
pub fn encode(header: &Header, value: impl Into<Bytes>, compression: Compression) -> Bytes {
    encode_signed(header, value.into(), compression, None)
}

/// The same with a MAC, if there is somebody to sign it.
pub(crate) fn encode_signed(
    header: &Header,
    value: Bytes,
    compression: Compression,
    signer: Option<Signer<'_>>,
) -> Bytes {
    let size = value.len();
    let (packing, payload) = compress::pack(value, compression);
    let mut frame = BytesMut::with_capacity(FIXED + header.key.len() + payload.len() + 128);
    frame.put_slice(&MAGIC);
    frame.put_u8(FORMAT);
    frame.put_u8(header.codec.id());
    frame.put_u8(packing.id());
    frame.put_u16_le(if signer.is_some() { WITH_MAC } else { 0 });
    frame.put_u64_le(header.created.as_millis());
    put_time(&mut frame, header.expires);
    put_time(&mut frame, header.stale_until);
    put_time(&mut frame, header.last_modified);
    frame.put_u64_le(header.stamp.incarnation);
    frame.put_u64_le(header.stamp.number);
    frame.put_u64_le(size as u64);
    frame.put_u64_le(payload.len() as u64);
    put_length(&mut frame, header.key.len());
    put_length(&mut frame, header.tags.len());
    put_length(&mut frame, header.dependencies.len());
    put_length(&mut frame, usize::from(header.version.is_some()));
    debug_assert_eq!(frame.len(), FIXED, "docs/format.md says where the key begins");
    frame.put_slice(&header.key);
    for text in header.tags.iter().chain(header.dependencies.iter()).chain(&header.version) {
        put_length(&mut frame, text.len());
        frame.put_slice(text.as_bytes());
    }
    frame.put_slice(&payload);
    if let Some(signer) = signer {
        let mac = signer.sign(&frame);
        frame.put_slice(&mac);
    }
    frame.put_u64_le(checksum(&frame));
    frame.freeze()
}

/// The same frame with another stamp, for who finds out what it is when it is stored.
///
/// Costs a copy of the frame and its checksum.
///
/// # Errors
/// It is damaged, or none of this format; or it has a MAC, which only its signer could renew.
pub fn stamped(frame: &Bytes, stamp: Stamp) -> Result<Bytes, FrameError> {
    let body = authentic(checked(frame)?, None)?;
    let mut stamped = BytesMut::with_capacity(frame.len());
    stamped.put_slice(body.get(..STAMP.start).ok_or(FrameError::Damaged)?);
    stamped.put_u64_le(stamp.incarnation);
    stamped.put_u64_le(stamp.number);
    stamped.put_slice(body.get(STAMP.end..).ok_or(FrameError::Damaged)?);
    stamped.put_u64_le(checksum(&stamped));
    Ok(stamped.freeze())
}

/// The same frame for a stamp that is added behind it, by whom it is stored: incarnation and number, as
/// little-endian `u64`, and both once more. Until then it cannot be read.
///
/// Costs what [`stamped`] does, and fails as it does.
///
/// # Errors
/// Those of [`stamped`].
pub fn to_be_stamped(frame: &Bytes) -> Result<Bytes, FrameError> {
    let body = authentic(checked(frame)?, None)?;
    let mut open = BytesMut::with_capacity(frame.len());
    open.put_slice(body.get(..FLAGS).ok_or(FrameError::Damaged)?);
    open.put_u16_le(STAMPED_BEHIND);
    open.put_slice(body.get(FLAGS + 2..).ok_or(FrameError::Damaged)?);
    open.put_u64_le(checksum(&open));
    Ok(open.freeze())
}

/// What is added behind a frame that is [to be stamped](to_be_stamped).
#[must_use]
pub fn stamp_behind(stamp: Stamp) -> [u8; 32] {
    let words = [stamp.incarnation, stamp.number].map(u64::to_le_bytes);
    let mut behind = [0; 32];
    for (bytes, word) in behind.as_chunks_mut::<8>().0.iter_mut().zip(words.iter().cycle()) {
        *bytes = *word;
    }
    behind
}

/// Reads a frame whose value, unpacked, is at most `limit` bytes.
///
/// The value itself stays packed until [`Frame::value`]; nothing is copied but the
/// names in the header.
///
/// # Errors
/// Every sequence of bytes that is not a whole, undamaged frame of this format; a frame with a MAC,
/// because there is no key to check it.
pub fn decode(bytes: &Bytes, limit: usize) -> Result<Frame, FrameError> {
    decode_signed(bytes, limit, None)
}

/// The same where each frame has to have the MAC that `signer` would give it; none, if there is no
/// signer.
pub(crate) fn decode_signed(
    bytes: &Bytes,
    limit: usize,
    signer: Option<Signer<'_>>,
) -> Result<Frame, FrameError> {
    let (frame, behind) = split_stamp(bytes)?;
    let body = checked(frame)?;
    let mut rest = match (behind, signer) {
        (Some(_), Some(_)) => return Err(FrameError::NoMac),
        (Some(_), None) => body,
        (None, signer) => authentic(body, signer)?,
    };
    rest.advance(MAGIC.len() + 1);
    let (codec, packing, _) = (rest.get_u8(), rest.get_u8(), rest.get_u16_le());
    let codec = Codec::from_id(codec).ok_or(FrameError::Unknown)?;
    let packing = Packing::from_id(packing).ok_or(FrameError::Unknown)?;
    let created = WallTime::from_millis(rest.get_u64_le());
    let (expires, stale_until) = (get_time(&mut rest), get_time(&mut rest));
    let last_modified = get_time(&mut rest);
    let within = Stamp { incarnation: rest.get_u64_le(), number: rest.get_u64_le() };
    let stamp = behind.unwrap_or(within);
    let size = usize::try_from(rest.get_u64_le()).map_err(|_| FrameError::TooLarge)?;
    let payload_length = usize::try_from(rest.get_u64_le()).map_err(|_| FrameError::Damaged)?;
    if size > limit {
        return Err(FrameError::TooLarge);
    }
    if payload_length > rest.len() {
        return Err(FrameError::Damaged);
    }
    let (key_length, tags) = (get_length(&mut rest)?, get_length(&mut rest)?);
    let (dependencies, version) = (get_length(&mut rest)?, get_length(&mut rest)?);
    if version > 1 {
        return Err(FrameError::Damaged);
    }
    let key = bytes.slice_ref(take(&mut rest, key_length)?);
    let tags = get_texts(&mut rest, tags)?;
    let dependencies = get_texts(&mut rest, dependencies)?;
    let version = get_texts(&mut rest, version)?.first().cloned();
    let payload = bytes.slice_ref(take(&mut rest, payload_length)?);
    if !rest.is_empty() {
        return Err(FrameError::Damaged);
    }
    let header = Header {
        codec,
        created,
        expires,
        stale_until,
        stamp,
        last_modified,
        version,
        tags,
        dependencies,
        key,
    };
    Ok(Frame { header, size, packing, payload })
}

impl Frame {
    /// The value's bytes, unpacked. Never more than the limit given to [`decode`].
    ///
    /// # Errors
    /// [`FrameError::Damaged`] if the payload does not unpack to the size it claims.
    pub fn value(&self) -> Result<Bytes, FrameError> {
        compress::unpack(self.packing, self.payload.clone(), self.size)
            .map_err(|_| FrameError::Damaged)
    }

    /// Bytes of the value as it is stored, packed or not.
    #[must_use]
    pub fn stored_size(&self) -> usize {
        self.payload.len()
    }
}

/// The frame without the stamp behind it, and that, if it is there.
fn split_stamp(bytes: &[u8]) -> Result<(&[u8], Option<Stamp>), FrameError> {
    let is_one = bytes.starts_with(&MAGIC) && bytes.get(MAGIC.len()) == Some(&FORMAT);
    let flags = bytes.get(FLAGS..).and_then(|rest| rest.first_chunk()).copied();
    if !is_one || flags.map(u16::from_le_bytes) != Some(STAMPED_BEHIND) {
        return Ok((bytes, None));
    }
    let (frame, behind) = bytes.split_last_chunk::<32>().ok_or(FrameError::Damaged)?;
    match *behind.as_chunks::<8>().0 {
        [incarnation, number, again, once_more] if [incarnation, number] == [again, once_more] => {
            let [incarnation, number] = [incarnation, number].map(u64::from_le_bytes);
            Ok((frame, Some(Stamp { incarnation, number })))
        }
        _ => Err(FrameError::Damaged),
    }
}

/// The frame without its checksum, if that is right.
fn checked(bytes: &[u8]) -> Result<&[u8], FrameError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(FrameError::Foreign);
    }
    if bytes.get(MAGIC.len()) != Some(&FORMAT) {
        return Err(FrameError::Unknown);
    }
    let (body, sum) = bytes
        .split_last_chunk::<CHECKSUM>()
        .filter(|(body, _)| body.len() >= FIXED)
        .ok_or(FrameError::Damaged)?;
    if checksum(body) == u64::from_le_bytes(*sum) { Ok(body) } else { Err(FrameError::Damaged) }
}

/// The frame without its MAC, if it has one and that is right, or has none and needs none.
fn authentic<'a>(body: &'a [u8], signer: Option<Signer<'_>>) -> Result<&'a [u8], FrameError> {
    let flags = body.get(FLAGS..).and_then(|rest| rest.first_chunk()).copied();
    match (flags.map(u16::from_le_bytes), signer) {
        (Some(0), None) => Ok(body),
        (Some(0), Some(_)) => Err(FrameError::NoMac),
        (Some(WITH_MAC), None) => Err(FrameError::NoKey),
        (Some(WITH_MAC), Some(signer)) => {
            let (frame, mac) = body
                .split_last_chunk::<MAC>()
                .filter(|(frame, _)| frame.len() >= FIXED)
                .ok_or(FrameError::Damaged)?;
            if signer.is_right(frame, *mac) { Ok(frame) } else { Err(FrameError::WrongMac) }
        }
        _ => Err(FrameError::Unknown),
    }
}

/// XXH3, 64 bits: finds damage, not malice.
fn checksum(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// All bits set stands for "never" and "not known".
fn put_time(frame: &mut BytesMut, time: Option<WallTime>) {
    frame.put_u64_le(time.map_or(u64::MAX, WallTime::as_millis));
}

fn get_time(rest: &mut &[u8]) -> Option<WallTime> {
    let millis = rest.get_u64_le();
    (millis != u64::MAX).then(|| WallTime::from_millis(millis))
}

fn put_length(frame: &mut BytesMut, length: usize) {
    // Keys, tags and their numbers are bounded far below 4 GiB at the face.
    frame.put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
}

fn get_length(rest: &mut &[u8]) -> Result<usize, FrameError> {
    let length = rest.try_get_u32_le().map_err(|_| FrameError::Damaged)?;
    usize::try_from(length).map_err(|_| FrameError::Damaged)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], FrameError> {
    let (taken, after) = rest.split_at_checked(length).ok_or(FrameError::Damaged)?;
    *rest = after;
    Ok(taken)
}

fn get_texts(rest: &mut &[u8], count: usize) -> Result<Arc<[Arc<str>]>, FrameError> {
    if count == 0 {
        return Ok(Arc::default());
    }
    // Each text takes four bytes at least: a count that promises more is a lie.
    if count > rest.len() / 4 {
        return Err(FrameError::Damaged);
    }
    (0..count)
        .map(|_| {
            let length = get_length(rest)?;
            let text = std::str::from_utf8(take(rest, length)?).map_err(|_| FrameError::Damaged)?;
            Ok(Arc::from(text))
        })
        .collect()
}
