//! The **codec**: how a value becomes bytes below memory, and a value again.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The encodings that a frame can name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// MessagePack with named fields: small, fast, and a field more or less does
    /// not shift the others. The default.
    #[default]
    MessagePack,
    /// JSON: larger and slower, readable by everything.
    Json,
    /// The value's own bytes, untouched. For spaces of bytes alone.
    Raw,
}

impl Codec {
    pub(crate) fn id(self) -> u8 {
        match self {
            Self::MessagePack => 1,
            Self::Json => 2,
            Self::Raw => 3,
        }
    }

    pub(crate) fn from_id(id: u8) -> Option<Self> {
        [Self::MessagePack, Self::Json, Self::Raw].into_iter().find(|codec| codec.id() == id)
    }
}

/// A value that could not be encoded or decoded.
#[derive(Debug)]
pub struct CodecError {
    codec: Codec,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl CodecError {
    fn new(codec: Codec, source: impl StdError + Send + Sync + 'static) -> Self {
        Self { codec, source: Some(Box::new(source)) }
    }

    fn unsupported(codec: Codec) -> Self {
        Self { codec, source: None }
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(formatter, "{:?}: {source}", self.codec),
            None => write!(formatter, "values of this space are not written as {:?}", self.codec),
        }
    }
}

impl StdError for CodecError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// How the values of one type are encoded and decoded.
pub(crate) struct ValueCodec<V> {
    encode: fn(&V, Codec) -> Result<Bytes, CodecError>,
    decode: fn(Bytes, Codec) -> Result<V, CodecError>,
    pub(crate) preferred: Codec,
}

/// Encoding and decoding run code of the value's type, which must not take others down
/// with it when it panics.
impl<V> ValueCodec<V> {
    pub(crate) fn encode(&self, value: &V, codec: Codec) -> Result<Bytes, CodecError> {
        catch_unwind(AssertUnwindSafe(|| (self.encode)(value, codec)))
            .unwrap_or_else(|_| Err(CodecError::new(codec, Panicked)))
    }

    pub(crate) fn decode(&self, bytes: Bytes, codec: Codec) -> Result<V, CodecError> {
        catch_unwind(AssertUnwindSafe(|| (self.decode)(bytes, codec)))
            .unwrap_or_else(|_| Err(CodecError::new(codec, Panicked)))
    }
}

/// What it said went to the panic hook.
#[derive(Debug, thiserror::Error)]
#[error("the code of the value's type panicked")]
struct Panicked;

impl<V> Clone for ValueCodec<V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for ValueCodec<V> {}

impl<V: Serialize + DeserializeOwned> ValueCodec<V> {
    /// Values that serde knows: MessagePack or JSON.
    pub(crate) fn serde(preferred: Codec) -> Self {
        Self { encode: encode_serde, decode: |bytes, codec| decode_serde(&bytes, codec), preferred }
    }
}

impl<V: AsRef<[u8]> + From<Bytes> + 'static> ValueCodec<V> {
    /// Values that are bytes: no encoding at all.
    pub(crate) fn raw() -> Self {
        Self {
            encode: |value, codec| match codec {
                // What is shared already is not copied.
                Codec::Raw => match (value as &dyn Any).downcast_ref::<Bytes>() {
                    Some(bytes) => Ok(bytes.clone()),
                    None => Ok(Bytes::copy_from_slice(value.as_ref())),
                },
                other => Err(CodecError::unsupported(other)),
            },
            decode: |bytes, codec| match codec {
                Codec::Raw => Ok(V::from(bytes)),
                other => Err(CodecError::unsupported(other)),
            },
            preferred: Codec::Raw,
        }
    }
}

fn encode_serde<V: Serialize>(value: &V, codec: Codec) -> Result<Bytes, CodecError> {
    let encoded = match codec {
        Codec::MessagePack => {
            rmp_serde::to_vec_named(value).map_err(|error| CodecError::new(codec, error))
        }
        Codec::Json => serde_json::to_vec(value).map_err(|error| CodecError::new(codec, error)),
        Codec::Raw => Err(CodecError::unsupported(codec)),
    };
    Ok(encoded?.into())
}

fn decode_serde<V: DeserializeOwned>(bytes: &[u8], codec: Codec) -> Result<V, CodecError> {
    match codec {
        Codec::MessagePack => {
            rmp_serde::from_slice(bytes).map_err(|error| CodecError::new(codec, error))
        }
        Codec::Json => serde_json::from_slice(bytes).map_err(|error| CodecError::new(codec, error)),
        Codec::Raw => Err(CodecError::unsupported(codec)),
    }
}
