#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod authority;
mod builder;
mod cache;
pub mod clock;
mod codec;
mod compress;
mod entry;
pub mod error;
mod flight;
pub mod frame;
pub mod freshness;
mod guard;
pub mod key;
mod lease;
pub mod ledger;
mod load;
mod pending;
mod policy;
pub mod protocol;
mod read;
pub mod runtime;
pub mod schema;
mod space;
mod stats;
pub mod store;
mod tier;
mod write;

pub use builder::{Builder, Memory};
pub use cache::{Dynamic, Terrace};
pub use codec::{Codec, CodecError};
pub use compress::Compression;
pub use entry::{Cached, Source};
pub use error::{BuildError, Error, LoadError};
pub use load::Load;
pub use read::{Get, GetOrLoad};
pub use space::{Space, SpaceBuilder};
pub use stats::{SpaceStats, Stats, TierStats, Times, Traffic};
#[cfg(feature = "disk")]
pub use store::disk::{Disk, DiskStore};
pub use tier::Tier;
pub use write::{Insert, Settled};
