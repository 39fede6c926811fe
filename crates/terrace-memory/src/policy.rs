//! A policy: which entry has to leave when there is no room.
//!
//! Every shard has an order of its own. Readers tell it nothing: they count their use in the slot
//! of the entry, without a lock, and the order looks at the counts when it has to choose.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use hybrid::Hybrid;
use lfu::Lfu;
use lru::Lru;
use s3_fifo::S3Fifo;
use sieve::Sieve;
use ttl::Ttl;

mod column;
pub(crate) mod duel;
mod ghost;
mod heap;
mod hybrid;
mod lfu;
mod lru;
#[cfg(test)]
mod model;
mod queues;
mod s3_fifo;
mod sieve;
mod sketch;
mod ttl;

/// Which entry leaves when there is no room.
///
/// `docs/memory.md` says which is for what. When in doubt, keep the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Eviction {
    /// Whichever of three rules would have had the most hits lately: that of [`Eviction::S3Fifo`],
    /// or admission by frequency (W-TinyLFU) with a small window or with a large one.
    ///
    /// Miniature caches with a sample of the keys find out which. For everybody who does not know
    /// how their cache will be used, or whose use changes.
    #[default]
    Hybrid,
    /// Entries that are not read again soon leave soon; the others stay, until they are not read
    /// any more. Good for the web and for block storage; weak on loops that are larger than the
    /// cache.
    S3Fifo,
    /// Entries leave in the order in which they came, but those that were read since the last
    /// visit stay. Good where few keys get most of the requests; not for scans.
    Sieve,
    /// What was not used for the longest time leaves. Uses between two stores in the same shard
    /// count as one moment. For what depends on recency alone.
    Lru,
    /// What was used least often leaves; old uses weigh less and less. For popularity that does
    /// not change much.
    Lfu,
    /// What expires soonest leaves, and what never expires leaves last. For values whose worth
    /// is how long they will last.
    Ttl,
}

/// What an order may know about the entries of its shard, by the number of their slot.
///
/// The implementation that counts is that of a shard; the miniature caches of the hybrid policy
/// have a simpler one.
pub(crate) trait Entries {
    /// How often the entry was read since the count was last set; no more than [`MOST_USES`].
    fn uses(&self, slot: u32) -> u8;
    /// Sets the count of uses.
    fn set_uses(&self, slot: u32, uses: u8);
    /// When, or how often, the entry was used: see [`Touch`]. Always 0 for orders that did not
    /// ask for it.
    fn touched(&self, slot: u32) -> u32;
    /// Sets what [`Entries::touched`] returns.
    fn set_touched(&self, slot: u32, touched: u32);
    /// 24 bits of the hash of the key; the rest of the number is 0.
    fn hash(&self, slot: u32) -> u32;
    /// What the entry counts towards the bound: its bytes, or 1 where entries are counted.
    fn cost(&self, slot: u32) -> u64;
    /// The tick at which the entry expires, in milliseconds; `u64::MAX` for never.
    fn expires(&self, slot: u32) -> u64;
    /// Whether the entry must not be evicted.
    fn is_pinned(&self, slot: u32) -> bool;
    /// What the order last noted about the entry: a number below 4; 0 when it is inserted, and for
    /// a slot without an entry in the order.
    fn region(&self, slot: u32) -> u8;
    /// Notes a number below 4 about the entry.
    fn set_region(&self, slot: u32, region: u8);
    /// All slots have numbers below this one.
    fn slots(&self) -> u32;
    /// Asks for what is known of an entry that is to be looked at soon.
    fn prefetch(&self, _slot: u32) {}
    /// Asks for what will be needed when an entry with this hash has to leave, which is soon.
    fn prefetch_leaving(&self, _hash: u32) {}
    /// What is needed to decide about an entry, in one look.
    fn look(&self, slot: u32) -> Look {
        Look {
            hash: self.hash(slot),
            cost: self.cost(slot),
            uses: self.uses(slot),
            is_pinned: self.is_pinned(slot),
        }
    }
}

/// See the methods of [`Entries`] with these names.
pub(crate) struct Look {
    pub(crate) hash: u32,
    pub(crate) cost: u64,
    pub(crate) uses: u8,
    pub(crate) is_pinned: bool,
}

/// Reads are counted up to here.
pub(crate) const MOST_USES: u8 = 3;

/// What a hit notes in the slot, besides the count of uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touch {
    /// Nothing.
    Nothing,
    /// The time, in values stored in the shard so far.
    Time,
    /// One more use, until the count is full.
    Count,
}

/// An order of the entries of one shard, with the rule by which it chooses who leaves.
///
/// It is only ever used under the lock of its shard. `entries` are the same at each call. A slot
/// is in the order from `insert` (or `replace`) to `remove` (or `replace`, or being chosen by
/// `evict`).
pub(crate) trait Order {
    /// A new entry has come. Its uses and its region are 0.
    fn insert(&mut self, entries: &impl Entries, slot: u32);

    /// A new value for the same key: `new` takes the place of `old`, which is a use.
    fn replace(&mut self, entries: &impl Entries, old: u32, new: u32);

    /// An entry leaves for another reason than that it was chosen.
    fn remove(&mut self, entries: &impl Entries, slot: u32);

    /// Chooses the entry that has to leave, and takes it out of the order. `limit` is the cost
    /// that the shard may hold. `None` when nothing can leave: all is pinned, or nothing is there.
    fn evict(&mut self, entries: &impl Entries, limit: u64) -> Option<u32>;

    /// An entry expires at another time now.
    fn expires_changed(&mut self, _entries: &impl Entries, _slot: u32) {}

    /// The shard is expected to hold so many entries. Called when it turns out to be more or far
    /// fewer than it was told last.
    fn expect(&mut self, entries: usize);

    /// Forgets all entries, and gives back their memory. What was learned may stay.
    fn clear(&mut self);

    /// Panics unless the order holds exactly the entries of `slots`, each once.
    fn validate(&self, entries: &impl Entries, slots: &[u32]);
}

/// The order of a shard, of whichever kind.
pub(crate) enum AnyOrder {
    Hybrid(Hybrid),
    S3Fifo(S3Fifo),
    Sieve(Sieve),
    Lru(Lru),
    Lfu(Lfu),
    Ttl(Ttl),
}

impl AnyOrder {
    /// For a shard of so many entries. `rule` is what the hybrid goes by.
    pub(crate) fn new(eviction: Eviction, entries: usize, rule: &Arc<AtomicU8>) -> Self {
        match eviction {
            Eviction::Hybrid => Self::Hybrid(Hybrid::new(entries, Arc::clone(rule))),
            Eviction::S3Fifo => Self::S3Fifo(S3Fifo::new(entries)),
            Eviction::Sieve => Self::Sieve(Sieve::new()),
            Eviction::Lru => Self::Lru(Lru::new()),
            Eviction::Lfu => Self::Lfu(Lfu::new()),
            Eviction::Ttl => Self::Ttl(Ttl::new()),
        }
    }

    /// What it wants to know of a hit.
    pub(crate) fn touch(&self) -> Touch {
        match self {
            Self::Lru(_) => Touch::Time,
            Self::Lfu(_) => Touch::Count,
            _ => Touch::Nothing,
        }
    }
}

/// Passes a call on to whichever order it is.
macro_rules! each {
    ($any:expr, $order:ident => $call:expr) => {
        match $any {
            AnyOrder::Hybrid($order) => $call,
            AnyOrder::S3Fifo($order) => $call,
            AnyOrder::Sieve($order) => $call,
            AnyOrder::Lru($order) => $call,
            AnyOrder::Lfu($order) => $call,
            AnyOrder::Ttl($order) => $call,
        }
    };
}

impl Order for AnyOrder {
    #[inline]
    fn insert(&mut self, entries: &impl Entries, slot: u32) {
        each!(self, order => order.insert(entries, slot));
    }

    fn replace(&mut self, entries: &impl Entries, old: u32, new: u32) {
        each!(self, order => order.replace(entries, old, new));
    }

    fn remove(&mut self, entries: &impl Entries, slot: u32) {
        each!(self, order => order.remove(entries, slot));
    }

    #[inline]
    fn evict(&mut self, entries: &impl Entries, limit: u64) -> Option<u32> {
        each!(self, order => order.evict(entries, limit))
    }

    fn expires_changed(&mut self, entries: &impl Entries, slot: u32) {
        each!(self, order => order.expires_changed(entries, slot));
    }

    fn expect(&mut self, entries: usize) {
        each!(self, order => order.expect(entries));
    }

    fn clear(&mut self) {
        each!(self, order => order.clear());
    }

    fn validate(&self, entries: &impl Entries, slots: &[u32]) {
        each!(self, order => order.validate(entries, slots));
    }
}
