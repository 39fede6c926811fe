//! [`Memory`] is a cache inside one process: bounded in bytes or entries, read without locks, with
//! a choice of policies for eviction, an expiry time per entry and a conditional replace.
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
//! - **Reads wait for nobody.** A read takes no lock and, once an entry has been read a few times,
//!   writes to nothing that another thread reads: two threads read twice as much as one, also when
//!   they read the same key.
//! - **The bound holds.** What all entries are charged, and what has left and is still kept for
//!   readers, is never more than [`Memory::max_bytes`], and entries are never more than
//!   [`Memory::max_entries`]. There is one budget for the whole cache, of which shards borrow: how
//!   large a single value may be depends on [`Builder::max_value_bytes`], never on a shard.
//! - **What has expired is not read.** A read, and the question of [`Memory::replace_if`], never
//!   see an entry that has expired at the time they were given, swept or not.
//! - **You read what you wrote.** A thread that stored a value sees it, until the value is
//!   replaced, removed, expired or evicted.
//! - **An older value never survives a newer one.** A value that cannot be stored still removes
//!   what was at its key.
//! - **Deciding and storing are one step.** Between the question of [`Memory::replace_if`] and
//!   the store that follows it, no other thread changes the key.
//! - **Your code cannot break the cache.** Keys and values are dropped, and the weigher, the
//!   listener and the hasher are called, outside all locks. When one of them panics, or the
//!   equality of a key, or a closure, the panic reaches the caller and the cache stays consistent
//!   and usable; notices that the same call still owed to the listener may be lost.
//!
//! # What runs under a lock
//!
//! The closures of [`Memory::replace_if`], [`Memory::compute`], [`Memory::remove_if`],
//! [`Memory::retain`] and [`Memory::for_each`], the weigher of a [`Memory::compute`], the clone
//! that [`Memory::remove`] and [`Memory::hottest`] return, and the equality of keys while something
//! is stored or removed, run while one shard is locked. They must be short, and must not store in
//! or remove from the same cache: they could wait for themselves forever. All reads may be done
//! anywhere, also there. The weigher otherwise, the listener and the drop of a key or a value may
//! call whatever they like.
//!
//! # When values are dropped
//!
//! What leaves the cache is dropped once no thread can be reading it any more: some calls later,
//! by whichever call comes to it, and at the latest by [`Memory::sweep`], [`Memory::clear`] or
//! [`Memory::retain`]. Until then it counts in the bound. A thread that does not return from the
//! closure of a read keeps alive what leaves meanwhile; when that is too much, values are not
//! stored ([`Insert::NoRoom`]) until it returns. Other caches are
//! not affected, unless the thread reads from two of them within each other. (In a child that was
//! forked and did not begin another program, reads of the parent's other threads never return.)
//!
//! # What an entry costs
//!
//! An entry is charged what the weigher says, which is to be the size of the key and the value
//! with everything they own, and [`Memory::OVERHEAD`], which covers the rest of its slot and its
//! part in index and policy. The shards themselves (less than a KiB each), the miniature caches
//! of the hybrid policy and the counters are not charged. Slots that fall free are kept for reuse
//! and not charged; [`Memory::clear`] gives them back.
//!
//! # What it is not
//!
//! It does not load missing values, does not keep two callers from computing the same one, does
//! not serialize, and frees what has expired only when it comes across it or when
//! [`Memory::sweep`] is called. `terrace` is built on top of it and does these things.

#![allow(
    clippy::cast_possible_truncation,
    reason = "hashes and packed words are taken apart into the bits that are needed"
)]

mod barrier;
mod budget;
mod builder;
mod cache;
mod entry;
mod epoch;
mod index;
mod listener;
#[cfg(all(test, loom))]
mod models;
mod outcome;
mod policy;
mod prefetch;
mod sampling;
mod shard;
mod slot;
mod slots;
mod spaces;
mod stats;
mod sync;
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
