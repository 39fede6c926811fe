//! [`Memory`] is a cache inside one process: bounded in bytes, sharded, least recently used out
//! first, with an expiry time per entry and a conditional replace.
//!
//! It is the engine of the in-process tier of Terrace, and it is useful alone. It is synchronous,
//! needs no runtime, starts no thread and never reads a clock: the time is an argument.
//!
//! ```
//! use std::time::Duration;
//! use terrace_memory::{Attributes, Memory, Tick};
//!
//! let cache: Memory<String, Vec<u8>> = Memory::builder()
//!     .max_bytes(64 << 20)
//!     .weigher(|key: &String, value: &Vec<u8>| {
//!         (size_of_val(key) + key.capacity() + size_of_val(value) + value.capacity()) as u64
//!     })
//!     .build();
//!
//! let now = Tick::from_millis(1_000);
//! let minute = Attributes {
//!     expires: now.saturating_add(Duration::from_secs(60)),
//!     ..Attributes::default()
//! };
//! cache.insert("amsterdam".to_owned(), vec![1, 2, 3], minute, now);
//!
//! assert_eq!(cache.get("amsterdam", now), Some(vec![1, 2, 3]));
//! let later = now.saturating_add(Duration::from_secs(61));
//! assert_eq!(cache.get("amsterdam", later), None);
//! ```
//!
//! # Guarantees
//!
//! - **The bound holds.** [`Memory::bytes`] is never above [`Memory::max_bytes`], at any instant
//!   and for any thread that looks. Room is reserved before a value is stored, and entries are
//!   evicted until the reservation fits. There is one budget for the whole cache: how large a
//!   single value may be depends on [`Builder::max_value_bytes`], never on a shard.
//! - **What has expired is not read.** A read, and the question of [`Memory::replace_if`], never
//!   see an entry that has expired at the time they were given, swept or not.
//! - **You read what you wrote.** A thread that inserted a value sees it, until the value is
//!   replaced, removed, expired or evicted.
//! - **An older value never survives a newer one.** A value that is too large to be stored still
//!   removes what was at its key.
//! - **Deciding and storing are one step.** Between the question of [`Memory::replace_if`] and
//!   the store that follows it, no other thread sees or changes the key.
//! - **Your code cannot break the cache.** Keys and values are dropped, and the weigher, the
//!   listener and the hasher are called, outside all locks. When one of them panics, or the
//!   equality of a key, or a closure, the panic reaches the caller and the cache stays consistent
//!   and usable; notices that the same call still owed to the listener may be lost.
//!
//! # What runs under a lock
//!
//! The equality of keys, the clone in [`Memory::get`] and every closure given to a method run
//! while one shard is locked. They must be short, and a closure must not call the same cache: it
//! could wait for itself forever. The weigher, the listener and the drop of a key or a value may
//! call the cache.
//!
//! # What an entry costs
//!
//! An entry is charged what the weigher says, which is to be the size of the key and the value
//! with everything they own, and [`Memory::OVERHEAD`], which covers the slot and the table at
//! their worst fill. A few slots per shard are not charged. Nor is what is no longer
//! in the cache: values in the hands of callers, and evicted ones in the moment before their
//! drop. Slots that fall free are kept for reuse and not charged; [`Memory::clear`] gives them back.
//!
//! # What it is not
//!
//! It does not load missing values, does not keep two callers from computing the same one, does
//! not serialize, and frees what has expired only when it comes across it or when
//! [`Memory::sweep`] is called. `terrace` is built on top of it and does these things.

#![warn(unsafe_op_in_unsafe_fn)]

mod barrier;
mod budget;
mod builder;
mod cache;
mod entry;
mod epoch;
mod index;
mod listener;
mod outcome;
mod policy;
mod prefetch;
mod sampling;
mod shard;
mod slot;
mod slots;
mod spaces;
mod stats;
mod tick;
mod transfer;

pub use builder::{Builder, DefaultHasher};
pub use cache::Memory;
pub use entry::{Attributes, View};
pub use hashbrown::Equivalent;
pub use listener::Cause;
pub use outcome::{Compute, Insert, Replace, Sweep};
pub use policy::Eviction;
pub use stats::Stats;
pub use tick::Tick;
