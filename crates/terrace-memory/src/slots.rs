//! The slots of a shard: allocated by the segment, numbered from 0, never moved.
//!
//! A segment takes about 2 KiB, so that growing copies nothing and wastes little. Readers find
//! the segments in a list that is replaced when it is full. What few entries have (a stamp, a
//! space, an idle time) is in a column beside the segment, which is there once it is needed.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::{iter, mem, ptr};

use Ordering::{Acquire, Relaxed, Release};

use crate::policy::Touch;
use crate::slot::Slot;
use crate::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use crate::sync::load_unshared;
use crate::{Attributes, Tick};

/// Bytes of a segment, about.
const SEGMENT_BYTES: usize = 2048;

/// Slots of a segment, as a power of two.
const fn shift<K, V>() -> u32 {
    let slots = SEGMENT_BYTES / size_of::<Slot<K, V>>();
    if slots < 8 { 3 } else { slots.ilog2() }
}

/// What few entries have.
#[derive(Default)]
pub(crate) struct Extra {
    pub(crate) stamp: AtomicU64,
    /// When the entry expires however much it is used.
    until: AtomicU64,
    pub(crate) space: AtomicU32,
    /// Milliseconds without use after which the entry expires; 0 if it need not be used.
    idle: AtomicU32,
}

impl Extra {
    fn set(&self, attributes: &Attributes) {
        self.stamp.store(attributes.stamp, Relaxed);
        self.until.store(attributes.expires.0, Relaxed);
        self.space.store(attributes.space, Relaxed);
        self.idle.store(attributes.idle_millis(), Relaxed);
    }

    pub(crate) fn until(&self) -> Tick {
        Tick(self.until.load(Relaxed))
    }

    pub(crate) fn set_until(&self, until: Tick) {
        self.until.store(until.0, Relaxed);
    }

    pub(crate) fn idle_millis(&self) -> u32 {
        self.idle.load(Relaxed)
    }
}

/// What is beside the slots of a segment; null where there is none.
struct Columns {
    extras: AtomicPtr<Extra>,
    touched: AtomicPtr<AtomicU32>,
}

impl Columns {
    fn absent() -> Self {
        Self { extras: AtomicPtr::default(), touched: AtomicPtr::default() }
    }

    fn copy(&self) -> Self {
        Self { extras: copy(&self.extras), touched: copy(&self.touched) }
    }
}

fn copy<T>(pointer: &AtomicPtr<T>) -> AtomicPtr<T> {
    AtomicPtr::new(pointer.load(Relaxed))
}

/// What readers see of the slots: for each segment where its slots are, and its columns.
pub(crate) struct SlotsReader<K, V> {
    segments: AtomicPtr<AtomicPtr<Slot<K, V>>>,
    columns: AtomicPtr<Columns>,
}

impl<K, V> SlotsReader<K, V> {
    /// # Safety
    /// The caller has found the number in the index of the same shard, while its epoch was pinned
    /// or its lock held, and does not use what is returned after that.
    #[inline(always)]
    pub(crate) unsafe fn slot(&self, slot: u32) -> &Slot<K, V> {
        // SAFETY: the segment was stored before the slot was put into the index; the list has been
        // long enough since then, and is not freed before the epoch is settled.
        unsafe {
            let segments = self.segments.load(Acquire);
            let slots = (*segments.add(segment::<K, V>(slot))).load(Relaxed);
            &*slots.add(offset::<K, V>(slot))
        }
    }

    /// What few entries have, if any in the segment has.
    ///
    /// # Safety
    /// As for [`SlotsReader::slot`].
    pub(crate) unsafe fn extra(&self, slot: u32) -> Option<&Extra> {
        // SAFETY: as above; columns are as long as their segment, and live as long.
        unsafe { at(&self.columns(slot).extras, offset::<K, V>(slot)) }
    }

    /// Where a hit is noted, if the order asked for it.
    ///
    /// # Safety
    /// As for [`SlotsReader::slot`].
    pub(crate) unsafe fn touched(&self, slot: u32) -> Option<&AtomicU32> {
        // SAFETY: as above.
        unsafe { at(&self.columns(slot).touched, offset::<K, V>(slot)) }
    }

    /// # Safety
    /// As for [`SlotsReader::slot`].
    unsafe fn columns(&self, slot: u32) -> &Columns {
        // SAFETY: as for the segments.
        unsafe { &*self.columns.load(Acquire).add(segment::<K, V>(slot)) }
    }
}

/// One of a column, if there is that column.
///
/// # Safety
/// It is null, or longer than `offset`, and lives as long as what is returned is used.
unsafe fn at<'a, T>(column: &AtomicPtr<T>, offset: usize) -> Option<&'a T> {
    let column = column.load(Acquire);
    // SAFETY: by the contract.
    if column.is_null() { None } else { Some(unsafe { &*column.add(offset) }) }
}

#[inline(always)]
fn segment<K, V>(slot: u32) -> usize {
    (slot >> shift::<K, V>()) as usize
}

#[inline(always)]
fn offset<K, V>(slot: u32) -> usize {
    slot as usize & ((1 << shift::<K, V>()) - 1)
}

/// The slots of a shard, for the one who has its lock.
pub(crate) struct Slots<K, V> {
    /// What readers look into; there is more room than there are segments.
    lists: Lists<K, V>,
    segments: u32,
    /// Slots from here on were never used.
    fresh: u32,
    free: Vec<u32>,
    touch: Touch,
    /// Whether any entry ever had what few have.
    has_extras: bool,
}

/// Lists of segments, and of what is beside them.
pub(crate) struct Lists<K, V> {
    segments: Box<[AtomicPtr<Slot<K, V>>]>,
    columns: Box<[Columns]>,
}

impl<K, V> Slots<K, V> {
    pub(crate) fn new(touch: Touch) -> (Self, SlotsReader<K, V>) {
        let reader = SlotsReader { segments: AtomicPtr::default(), columns: AtomicPtr::default() };
        (Self::empty(touch), reader)
    }

    fn empty(touch: Touch) -> Self {
        let lists = Lists { segments: Box::default(), columns: Box::default() };
        Self { lists, segments: 0, fresh: 0, free: Vec::new(), touch, has_extras: false }
    }

    /// Begins anew without slots. Returns the slots that readers may still look for.
    pub(crate) fn renew(&mut self, reader: &SlotsReader<K, V>) -> Self {
        reader.segments.store(ptr::null_mut(), Release);
        reader.columns.store(ptr::null_mut(), Release);
        mem::replace(self, Self::empty(self.touch))
    }

    /// The number of an empty slot. `None` when all numbers are taken. Lists that readers may
    /// still be in are handed to `old`.
    #[inline]
    pub(crate) fn claim(
        &mut self,
        reader: &SlotsReader<K, V>,
        old: impl FnOnce(Lists<K, V>),
    ) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let slot = self.fresh;
        self.fresh = slot.checked_add(1)?;
        if segment::<K, V>(slot) == self.segments as usize {
            self.add_segment(reader, old);
        }
        Some(slot)
    }

    /// Takes back empty slots.
    pub(crate) fn release(&mut self, slots: &[u32]) {
        self.free.extend_from_slice(slots);
    }

    #[cold]
    fn add_segment(&mut self, reader: &SlotsReader<K, V>, old: impl FnOnce(Lists<K, V>)) {
        let count = self.lists.segments.len();
        if self.segments as usize == count {
            let capacity = (2 * count).max(4);
            let segments = self.lists.segments.iter().map(copy);
            let columns = self.lists.columns.iter().map(Columns::copy);
            let lists = Lists {
                segments: segments
                    .chain(iter::repeat_with(AtomicPtr::default))
                    .take(capacity)
                    .collect(),
                columns: columns.chain(iter::repeat_with(Columns::absent)).take(capacity).collect(),
            };
            reader.segments.store(lists.segments.as_ptr().cast_mut(), Release);
            reader.columns.store(lists.columns.as_ptr().cast_mut(), Release);
            old(mem::replace(&mut self.lists, lists));
        }
        let index = self.segments as usize;
        let lists = self.lists.segments.get(index).zip(self.lists.columns.get(index));
        if let Some((slots, columns)) = lists {
            slots.store(column(Slot::empty, shift::<K, V>()), Release);
            if self.touch != Touch::Nothing {
                columns.touched.store(column(AtomicU32::default, shift::<K, V>()), Release);
            }
            self.segments += 1;
        }
    }

    /// Keeps what few entries have. Before the slot can be found.
    #[inline]
    pub(crate) fn set_extra(&mut self, slot: u32, attributes: &Attributes) {
        if attributes.has_extra() {
            self.has_extras = true;
        }
        if self.has_extras {
            self.set_extra_in_column(slot, attributes);
        }
    }

    fn set_extra_in_column(&self, slot: u32, attributes: &Attributes) {
        let Some(columns) = self.lists.columns.get(segment::<K, V>(slot)) else { return };
        if attributes.has_extra() && columns.extras.load(Relaxed).is_null() {
            columns.extras.store(column(Extra::default, shift::<K, V>()), Release);
        }
        if let Some(extra) = self.extra(slot) {
            extra.set(attributes);
        }
    }

    /// All slots have numbers below this.
    pub(crate) fn end(&self) -> u32 {
        self.fresh
    }

    /// A slot, empty or full.
    #[inline(always)]
    pub(crate) fn get(&self, slot: u32) -> &Slot<K, V> {
        assert!(slot < self.fresh, "no such slot");
        // SAFETY: a slot below `fresh` is in a segment that is in the list, and that is as long as
        // all of them and lives as long as this.
        unsafe {
            let slots = self.lists.segments.get_unchecked(segment::<K, V>(slot));
            // Nobody writes to the list but who has the lock.
            &*load_unshared(slots).add(offset::<K, V>(slot))
        }
    }

    /// See [`SlotsReader::touched`].
    pub(crate) fn touched(&self, slot: u32) -> Option<&AtomicU32> {
        let columns = self.lists.columns.get(segment::<K, V>(slot))?;
        // SAFETY: a column is as long as its segment, and lives as long as this.
        unsafe { at(&columns.touched, offset::<K, V>(slot)) }
    }

    /// See [`SlotsReader::extra`].
    pub(crate) fn extra(&self, slot: u32) -> Option<&Extra> {
        let columns = self.lists.columns.get(segment::<K, V>(slot))?;
        // SAFETY: a column is as long as its segment, and lives as long as this.
        unsafe { at(&columns.extras, offset::<K, V>(slot)) }
    }
}

/// Columns begin with a cache line, so that a slot that fits into one lies in one.
fn layout<T>(shift: u32) -> Layout {
    let bytes = size_of::<T>() << shift;
    let layout = Layout::from_size_align(bytes, align_of::<T>().max(64));
    layout.unwrap_or_else(|_| handle_alloc_error(Layout::new::<T>()))
}

/// Allocates a column of a segment.
fn column<T>(empty: impl Fn() -> T, shift: u32) -> *mut T {
    let layout = layout::<T>(shift);
    // SAFETY: a slot and what is beside it are never of size 0.
    let column = unsafe { alloc(layout) }.cast::<T>();
    if column.is_null() {
        handle_alloc_error(layout);
    }
    for index in 0..1 << shift {
        // SAFETY: that many fit into what was allocated.
        unsafe { column.add(index).write(empty()) };
    }
    column
}

/// Frees a column, without dropping what is in it.
///
/// # Safety
/// It is null, or was allocated by [`column`] with the same shift, and nobody uses it any more.
unsafe fn free<T>(column: &AtomicPtr<T>, shift: u32) {
    let column = column.load(Relaxed);
    if !column.is_null() {
        // SAFETY: by the contract.
        unsafe { dealloc(column.cast(), layout::<T>(shift)) };
    }
}

impl<K, V> Drop for Slots<K, V> {
    fn drop(&mut self) {
        /// Frees the columns when an entry panics as it is dropped, too.
        struct Columns<'a, K, V>(&'a Lists<K, V>);

        impl<K, V> Drop for Columns<'_, K, V> {
            fn drop(&mut self) {
                let shift = shift::<K, V>();
                for (slots, columns) in self.0.segments.iter().zip(&self.0.columns) {
                    // SAFETY: the slots are dropped as a whole, so nobody uses them any more, and
                    // there is nothing to be dropped in empty slots and in columns.
                    unsafe {
                        free(slots, shift);
                        free(&columns.extras, shift);
                        free(&columns.touched, shift);
                    }
                }
            }
        }

        let _columns = Columns(&self.lists);
        if mem::needs_drop::<(K, V)>() {
            for slot in (0..self.fresh).map(|slot| self.get(slot)).filter(|slot| slot.is_full()) {
                // SAFETY: it is full, and nobody else has access to slots that are dropped.
                drop(unsafe { slot.take() });
            }
        }
    }
}
