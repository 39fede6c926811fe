//! The **record**: what the journal keeps of one write, as bytes.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::codec::Codec;
use crate::policy::Ttl;

/// A write that is not in the source yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The key, as the space's writer gets it.
    pub(crate) key: Bytes,
    /// The value, encoded; `None`: the key is to be removed.
    pub(crate) value: Option<(Codec, Bytes)>,
    pub(crate) ttl: Ttl,
    pub(crate) tags: Arc<[Arc<str>]>,
    pub(crate) version: Option<Arc<str>>,
}

/// The first byte of every record.
const FORMAT: u8 = 1;

/// How the codec of a removal is written.
const REMOVED: u8 = 0;

/// A TTL in milliseconds, and what stands for the two that are none.
const OF_SPACE: u64 = u64::MAX;
const FOREVER: u64 = u64::MAX - 1;

impl Record {
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u8(FORMAT);
        bytes.put_u8(self.value.as_ref().map_or(REMOVED, |(codec, _)| codec.id()));
        bytes.put_u64(match self.ttl {
            Ttl::OfSpace => OF_SPACE,
            Ttl::Forever => FOREVER,
            Ttl::Exactly(ttl) => crate::clock::millis(ttl).min(FOREVER - 1),
        });
        // Tags are few and short.
        bytes.put_u8(u8::try_from(self.tags.len()).unwrap_or(u8::MAX));
        self.tags.iter().for_each(|tag| put_part(&mut bytes, tag.as_bytes()));
        bytes.put_u8(u8::from(self.version.is_some()));
        put_part(&mut bytes, self.version.as_deref().unwrap_or_default().as_bytes());
        put_part(&mut bytes, &self.key);
        if let Some((_, value)) = &self.value {
            bytes.put_slice(value);
        }
        bytes.freeze()
    }

    /// The record in these bytes; `None` if it is none, or of another format.
    pub(crate) fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let codec = bytes.try_get_u8().ok()?;
        let ttl = match bytes.try_get_u64().ok()? {
            OF_SPACE => Ttl::OfSpace,
            FOREVER => Ttl::Forever,
            millis => Ttl::Exactly(Duration::from_millis(millis)),
        };
        let tags = bytes.try_get_u8().ok()?;
        let tags = (0..tags).map(|_| text(&mut bytes)).collect::<Option<Vec<_>>>()?.into();
        let has_version = bytes.try_get_u8().ok()? == 1;
        let version = text(&mut bytes)?;
        let version = has_version.then_some(version);
        let key = part(&mut bytes)?;
        let value = match codec {
            REMOVED => None,
            codec => Some((Codec::from_id(codec)?, bytes)),
        };
        Some(Self { key, value, ttl, tags, version })
    }
}

fn put_part(bytes: &mut BytesMut, part: &[u8]) {
    // Nothing of four gigabytes comes here: SQLite takes no such blob.
    bytes.put_u32(u32::try_from(part.len()).unwrap_or(u32::MAX));
    bytes.put_slice(part);
}

fn part(bytes: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
    (length <= bytes.remaining()).then(|| bytes.split_to(length))
}

fn text(bytes: &mut Bytes) -> Option<Arc<str>> {
    std::str::from_utf8(&part(bytes)?).ok().map(Arc::from)
}

/// The hash by which the writes of a key are found.
pub(crate) fn key_hash(space: &str, key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, xxh3_64(space.as_bytes()))
}

/// The checksum of a record under its key: what was moved to another key is damaged, too.
pub(crate) fn checksum(space: &str, key: &[u8], record: &[u8]) -> u64 {
    xxh3_64_with_seed(record, key_hash(space, key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> impl Strategy<Value = Record> {
        let codec = prop_oneof![Just(Codec::MessagePack), Just(Codec::Json), Just(Codec::Raw)];
        let ttl = prop_oneof![
            Just(Ttl::OfSpace),
            Just(Ttl::Forever),
            (0..u64::MAX - 2).prop_map(|millis| Ttl::Exactly(Duration::from_millis(millis))),
        ];
        let bytes = || proptest::collection::vec(any::<u8>(), 0..50).prop_map(Bytes::from);
        let text = || ".{0,20}".prop_map(|text: String| Arc::<str>::from(text));
        let tags = proptest::collection::vec(text(), 0..5).prop_map(Arc::from);
        let value = proptest::option::of((codec, bytes()));
        (bytes(), value, ttl, tags, proptest::option::of(text()))
            .prop_map(|(key, value, ttl, tags, version)| Record { key, value, ttl, tags, version })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(record in record()) {
            prop_assert_eq!(Record::decode(record.encode()), Some(record));
        }

        #[test]
        fn what_is_cut_off_or_foreign_is_no_panic(bytes: Vec<u8>, record in record(), at: usize) {
            let _ = Record::decode(bytes.into());
            let whole = record.encode();
            let _ = Record::decode(whole.slice(..at % whole.len()));
        }
    }
}
