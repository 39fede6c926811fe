//! A cache of several tiers behind one loader.
//!
//! The handle is [`Terrace`], built with [`Terrace::builder`] from a [`Memory`] tier
//! and any number of [`Tier`]s below it, of which [`Disk`] is one. Values live in
//! [`Space`]s, each with a key type, a value type and a policy; what is read from
//! one is a [`Cached`] value. [`Terrace`] itself takes values of every type under
//! text keys.
//!
//! # Consistency
//!
//! Every invalidation and every write is a numbered line in one [`ledger`]. Every
//! entry carries the number that was current before its load began. An entry is dead
//! once a later line names its key, one of its tags, its space, or everything; and a
//! load stores nothing if a later line names what it loaded. No wall clock decides
//! anything, and nothing has to be searched for.
//!
//! # Writing
//!
//! What is inserted is in caches alone. A space that knows how to write to its source, by
//! [`SpaceBuilder::writer`], also writes [through](Space::insert_through) and
//! [around](Space::insert_around) the caches, and [behind](Space::insert_behind) them, by way of a
//! [`Journal`] that survives the end of the process.
//!
//! # Failures
//!
//! A tier below memory that fails, is slow or returns damaged bytes costs a miss and
//! is counted in [`Stats`]. A loader that fails, panics or hangs gives a typed
//! [`LoadError`] to everybody who waited. Where the ledger itself cannot be written,
//! what was to be invalidated is [`Settled::Pending`]: this process bypasses it, and
//! keeps trying.
//!
//! # Features
//!
//! `disk` (SQLite, compiled in; the journal too) and `zstd` (compression below memory) are on by
//! default. Without them neither is built, and a cache is memory and your own stores. `mac` is not:
//! with it every frame below memory can be signed (`Builder::mac`).
//!
//! # What it is not
//!
//! A database, a message broker, or linearizable between processes.

#![forbid(unsafe_code)]

mod append;
pub mod authority;
#[cfg(feature = "disk")]
mod behind;
mod builder;
mod bulkhead;
mod cache;
mod call;
pub mod clock;
mod codec;
mod compress;
mod core;
mod entry;
pub mod error;
mod event;
mod fill;
mod flight;
pub mod frame;
pub mod freshness;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod glob;
mod group;
mod guard;
mod implied;
#[cfg(feature = "disk")]
mod journal;
pub mod key;
mod kind;
mod lease;
pub mod ledger;
mod load;
mod loaded;
mod mac;
mod many;
mod one_step;
mod options;
mod pending;
mod policy;
mod probe;
pub mod protocol;
mod read;
mod removal;
mod retry;
pub mod runtime;
mod savings;
pub mod schema;
mod source;
mod space;
mod stats;
pub mod store;
mod sweep;
mod target;
mod tenant;
mod through;
mod tier;
mod tracking;
mod waits;
mod warm;
mod write;

#[cfg(feature = "disk")]
pub use behind::{DeadLetter, InsertBehind, RemoveBehind};
pub use builder::{Builder, Memory};
pub use cache::{Dynamic, Terrace};
pub use call::{Get, GetOrLoad};
pub use codec::{Codec, CodecError};
pub use compress::Compression;
pub use core::{Closed, Ticket};
pub use entry::{Cached, Source};
pub use error::{BuildError, Error, LoadError};
pub use event::Event;
pub use guard::{Breaker, BreakerState};
#[cfg(feature = "disk")]
pub use journal::{Acknowledge, Journal};
pub use kind::Kind;
pub use load::Load;
pub use loaded::Loaded;
#[cfg(feature = "mac")]
pub use mac::MacKeys;
pub use many::LoadMany;
pub use savings::Savings;
pub use source::{Change, Write, WriteBatch, WriteBehind, WriteId};
pub use space::{Mode, Space, SpaceBuilder};
pub use stats::{
    GuardStats, JournalStats, KindStats, SpaceStats, Stats, TenantStats, TierHealth, TierStats,
    Times, Traffic,
};
#[cfg(feature = "disk")]
pub use store::disk::{Disk, DiskEviction, DiskStore};
#[cfg(feature = "redis")]
pub use store::redis::{Redis, RedisStore};
pub use sweep::{RemovePattern, Removed};
pub use target::Target;
pub use tenant::Tenant;
pub use terrace_memory::Eviction;
pub use through::InsertThrough;
pub use tier::Tier;
pub use tracking::Dependency;
pub use warm::WarmStart;
pub use write::{Insert, Settled};

/// The examples of the project's front page.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// The examples of docs/redis.md.
#[cfg(all(doctest, feature = "disk", feature = "redis"))]
#[doc = include_str!("../../../docs/redis.md")]
struct RedisPage;

/// The examples of docs/write-behind.md.
#[cfg(all(doctest, feature = "disk"))]
#[doc = include_str!("../../../docs/write-behind.md")]
struct WriteBehindPage;
/// The examples of docs/invalidation.md.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/invalidation.md")]
struct Invalidation;

/// The examples of docs/loading.md.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/loading.md")]
struct Loading;
