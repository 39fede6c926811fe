//! A slot: where one entry lives, and what is known about it.
//!
//! Key and value are written before the slot can be found, and not touched again until nobody can
//! hold it any more: so readers look at them without a lock. Everything else is atomic.

use std::mem::MaybeUninit;

use Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::policy::MOST_USES;
use crate::sync::UnsafeCell;
use crate::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use crate::{Attributes, Tick};

/// For two integers, half a cache line: 16 bytes besides the entry.
pub(crate) struct Slot<K, V> {
    entry: UnsafeCell<MaybeUninit<(K, V)>>,
    life: AtomicU64,
    /// [`WEIGHT_BITS`] of weight, 2 of region, 1 for pinned.
    weight: AtomicU32,
    hash_low: AtomicU16,
    hash_high: AtomicU8,
    uses: AtomicU8,
}

/// The heaviest an entry may be: 512 MiB.
pub(crate) const MAX_WEIGHT: u64 = (1 << WEIGHT_BITS) - 1;
const WEIGHT_BITS: u32 = 29;
const REGION_MASK: u32 = 3 << WEIGHT_BITS;
const PINNED: u32 = 1 << 31;

/// When an entry ends: the tick at which it expires, the generation it belongs to, and marks.
///
/// Only an entry whose [`Life::odd_bits`] are those of the cache's present generation can be
/// judged by its tick alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life(u64);

/// Ticks below memory have 42 bits: as milliseconds since 1970 they last until 2109.
const TICK_BITS: u32 = 42;
const TICK_SHIFT: u32 = 64 - TICK_BITS;
const NEVER: u64 = (1 << TICK_BITS) - 1;
const GENERATION_SHIFT: u32 = 6;
const IS_FULL: u64 = 1;
const IS_IDLE: u64 = 2;
const IS_NEGATIVE: u64 = 4;
const IS_RETIRED: u64 = 8;
const ODD_BITS: u64 = (0xFFFF << GENERATION_SHIFT) | IS_IDLE;

impl Life {
    #[inline]
    pub(crate) fn new(attributes: &Attributes, now: Tick, generation: u16) -> Self {
        let expires = attributes.first_expires(now);
        let idle = if attributes.idle.is_some() { IS_IDLE } else { 0 };
        let negative = if attributes.negative { IS_NEGATIVE } else { 0 };
        let generation = u64::from(generation) << GENERATION_SHIFT;
        Self(ticks(expires) << TICK_SHIFT | generation | IS_FULL | idle | negative)
    }

    /// The odd bits of an entry of this generation that has nothing odd about it.
    pub(crate) const fn plain(generation: u16) -> u64 {
        (generation as u64) << GENERATION_SHIFT
    }

    /// See [`Life::plain`].
    #[inline(always)]
    pub(crate) fn odd_bits(self) -> u64 {
        self.0 & ODD_BITS
    }

    #[inline(always)]
    pub(crate) fn is_expired(self, now: Tick) -> bool {
        let expires = self.0 >> TICK_SHIFT;
        expires <= now.0 && expires != NEVER
    }

    pub(crate) fn expires(self) -> Tick {
        let expires = self.0 >> TICK_SHIFT;
        if expires == NEVER { Tick::NEVER } else { Tick(expires) }
    }

    pub(crate) fn generation(self) -> u16 {
        ((self.0 >> GENERATION_SHIFT) & 0xFFFF) as u16
    }

    pub(crate) fn is_idle(self) -> bool {
        self.0 & IS_IDLE != 0
    }

    pub(crate) fn is_negative(self) -> bool {
        self.0 & IS_NEGATIVE != 0
    }

    pub(crate) fn with_expires(self, expires: Tick) -> Self {
        Self(ticks(expires) << TICK_SHIFT | self.0 & ((1 << TICK_SHIFT) - 1))
    }

    pub(crate) fn with_generation(self, generation: u16) -> Self {
        Self(self.0 & !(0xFFFF << GENERATION_SHIFT) | Self::plain(generation))
    }
}

#[inline]
fn region_bits(region: u8) -> u32 {
    u32::from(region & 3) << WEIGHT_BITS
}

/// Later ticks than fit are never reached.
#[inline]
fn ticks(tick: Tick) -> u64 {
    tick.0.min(NEVER)
}

impl<K, V> Slot<K, V> {
    pub(crate) fn empty() -> Self {
        Self {
            entry: UnsafeCell::new(MaybeUninit::uninit()),
            life: AtomicU64::new(0),
            weight: AtomicU32::new(0),
            hash_low: AtomicU16::new(0),
            hash_high: AtomicU8::new(0),
            uses: AtomicU8::new(0),
        }
    }

    /// Writes an entry.
    ///
    /// # Safety
    /// The slot is empty, and no other thread can find it.
    pub(crate) unsafe fn fill(&self, key: K, value: V, hash: u32, weight: u32, is_pinned: bool) {
        // SAFETY: nobody else has access, by the contract.
        self.entry.with_mut(|entry| unsafe { (*entry).write((key, value)) });
        self.weight.store(weight | if is_pinned { PINNED } else { 0 }, Relaxed);
        self.hash_low.store(hash as u16, Relaxed);
        self.hash_high.store((hash >> 16) as u8, Relaxed);
        self.uses.store(0, Relaxed);
    }

    /// # Safety
    /// The slot is full, and stays so for the lifetime of what is returned: the caller has found
    /// it in an index while its epoch was pinned, or holds the lock of its shard.
    #[inline(always)]
    pub(crate) unsafe fn entry(&self) -> &(K, V) {
        // SAFETY: by the contract, and nobody writes to the entry of a full slot.
        self.entry.with(|entry| unsafe { (*entry).assume_init_ref() })
    }

    /// Takes the entry out, and leaves the slot empty.
    ///
    /// # Safety
    /// The slot is full and no other thread can hold it: it is in no index any more, and the
    /// epoch that followed is settled.
    pub(crate) unsafe fn take(&self) -> (K, V) {
        self.store_life(0, Relaxed);
        // SAFETY: the entry is there, nobody else has access, and the mark of a full slot is gone.
        self.entry.with_mut(|entry| unsafe { (*entry).assume_init_read() })
    }

    /// Whether there is an entry, in the index or not.
    pub(crate) fn is_full(&self) -> bool {
        self.life.load(Relaxed) & IS_FULL != 0
    }

    /// Whether there is an entry that can be found.
    pub(crate) fn is_live(&self) -> bool {
        self.life.load(Relaxed) & (IS_FULL | IS_RETIRED) == IS_FULL
    }

    /// The entry can be found no more, but readers may hold it. Under the lock of the shard only. A
    /// reader that puts off its end at the same time is overruled: the end does not matter any more.
    /// The order has no use for the region now, and so it is the code of why the entry left. Returns
    /// its life and its weight.
    #[inline]
    pub(crate) fn retire(&self, cause: u8) -> (Life, u32) {
        let life = self.life.load(Relaxed);
        self.store_life(life | IS_RETIRED, Relaxed);
        let weight = self.weight.load(Relaxed);
        self.weight.store(weight & !REGION_MASK | region_bits(cause), Relaxed);
        (Life(life), weight & MAX_WEIGHT as u32)
    }

    #[inline(always)]
    pub(crate) fn life(&self) -> Life {
        Life(self.life.load(Acquire))
    }

    /// Under the lock of the shard only. Release: who sees this life sees the generation that it
    /// is of.
    pub(crate) fn set_life(&self, life: Life) {
        self.store_life(life.0, Release);
    }

    /// A plain store. What changed the life in between comes before it; `loom` knows that only of
    /// what reads and writes in one step.
    fn store_life(&self, life: u64, order: Ordering) {
        if cfg!(loom) {
            self.life.swap(life, order);
        } else {
            self.life.store(life, order);
        }
    }

    /// Changes the life unless it is another one by now, and says whether it did. Who loses has
    /// met somebody who knew better, or as well.
    pub(crate) fn change_life(&self, from: Life, to: Life) -> bool {
        self.life.compare_exchange(from.0, to.0, AcqRel, Relaxed).is_ok()
    }

    /// Changes the life, whatever others do to it meanwhile. It is written to even if it stays the
    /// same, so that of two who call this, one sees all that the other did before.
    pub(crate) fn update_life(&self, change: impl Fn(Life) -> Life) {
        let mut life = self.life.load(Relaxed);
        while let Err(changed) =
            self.life.compare_exchange_weak(life, change(Life(life)).0, AcqRel, Relaxed)
        {
            life = changed;
        }
    }

    pub(crate) fn weight(&self) -> u32 {
        self.weight.load(Relaxed) & MAX_WEIGHT as u32
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.weight.load(Relaxed) & PINNED != 0
    }

    pub(crate) fn region(&self) -> u8 {
        ((self.weight.load(Relaxed) & REGION_MASK) >> WEIGHT_BITS) as u8
    }

    /// Under the lock of the shard only.
    pub(crate) fn set_region(&self, region: u8) {
        let rest = self.weight.load(Relaxed) & !REGION_MASK;
        self.weight.store(rest | region_bits(region), Relaxed);
    }

    pub(crate) fn hash(&self) -> u32 {
        u32::from(self.hash_high.load(Relaxed)) << 16 | u32::from(self.hash_low.load(Relaxed))
    }

    /// Counts a use. Of two at the same time one may be lost; what matters is that an entry
    /// read often is not written to any more.
    #[inline(always)]
    pub(crate) fn count_use(&self) {
        let uses = self.uses.load(Relaxed);
        if uses < MOST_USES {
            self.uses.store(uses + 1, Relaxed);
        }
    }

    pub(crate) fn uses(&self) -> u8 {
        self.uses.load(Relaxed)
    }

    pub(crate) fn set_uses(&self, uses: u8) {
        self.uses.store(uses, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn two_integers_fill_half_a_cache_line() {
        assert_eq!(size_of::<Slot<u64, u64>>(), 32);
    }

    #[test]
    fn a_life_keeps_what_it_was_made_of() {
        let attributes = Attributes { expires: Tick(77), negative: true, ..Attributes::default() };
        let life = Life::new(&attributes, Tick(0), 9);
        assert_eq!((life.expires(), life.generation()), (Tick(77), 9));
        assert!(life.is_negative() && !life.is_idle());
        assert_eq!(life.odd_bits(), Life::plain(9));
        assert!(!life.is_expired(Tick(76)) && life.is_expired(Tick(77)));

        let moved = life.with_expires(Tick::NEVER).with_generation(u16::MAX);
        assert_eq!((moved.expires(), moved.generation()), (Tick::NEVER, u16::MAX));
        assert!(moved.is_negative() && !moved.is_expired(Tick::NEVER));
    }

    #[test]
    fn an_idle_entry_is_odd_and_ends_when_it_is_not_used() {
        let idle = Some(Duration::from_millis(10));
        let attributes = Attributes { expires: Tick(15), idle, ..Attributes::default() };
        let life = Life::new(&attributes, Tick(3), 0);
        assert_eq!(life.expires(), Tick(13));
        assert_ne!(life.odd_bits(), Life::plain(0));
        assert_eq!(Life::new(&attributes, Tick(9), 0).expires(), Tick(15));
    }

    #[test]
    fn ticks_out_of_range_are_never_reached() {
        let attributes = Attributes { expires: Tick(1 << 50), ..Attributes::default() };
        assert_eq!(Life::new(&attributes, Tick(0), 0).expires(), Tick::NEVER);
    }

    #[test]
    fn marks_do_not_disturb_the_weight() {
        let slot = Slot::empty();
        let hash = 0xAB_CDEF;
        // SAFETY: the slot is empty, and this thread is the only one.
        unsafe { slot.fill((), (), hash, MAX_WEIGHT as u32, true) };
        for region in [1, 3, 0, 2] {
            slot.set_region(region);
            assert_eq!((slot.weight(), slot.region()), (MAX_WEIGHT as u32, region));
            assert!(slot.is_pinned());
        }
        assert_eq!(slot.hash(), hash);
    }
}
