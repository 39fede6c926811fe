//! An epoch: a number that tells whether a reader may still hold what has been taken out.
//!
//! This is epoch-based reclamation (Fraser, "Practical lock-freedom", 2004; crossbeam-epoch), with
//! an epoch for each cache instead of one for the process, so that a reader of one cache delays no
//! other, and with the barriers of [`barrier`] in place of fences. A reader **pins** the epoch it
//! began in. Who takes something out **advances** the epoch; once every pinned reader pinned that
//! epoch or a later one, the epoch is **settled**, and what was taken out before can be freed.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr;

use Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::barrier;
use crate::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use crate::sync::{global, hint, local, thread};

/// The epoch of one cache.
pub(crate) struct Epoch {
    /// The number of the epoch, and below it [`ID_BITS`] that tell caches apart.
    now: AtomicU64,
    /// No reader is left from before this epoch.
    settled: AtomicU64,
}

/// Caches whose numbers agree in so many bits wait for each other's readers, and nothing worse.
const ID_BITS: u32 = 16;
const ID_MASK: u64 = (1 << ID_BITS) - 1;

/// What a thread pins that reads two caches at a time: the oldest epoch of all caches.
const ANY_CACHE: u64 = ID_MASK;

/// In place of what was pinned before, when the record is not that of the thread.
const BORROWED: u64 = u64::MAX;

impl Epoch {
    /// The first epoch. `id` is to be another one for each cache.
    pub(crate) fn new(id: u64) -> Self {
        barrier::prepare();
        Self { now: AtomicU64::new((1 << ID_BITS) | (id % ANY_CACHE)), settled: AtomicU64::new(1) }
    }

    /// Keeps alive what this thread comes across from now on, until the pin is dropped.
    #[inline(always)]
    pub(crate) fn pin(&self) -> Pin {
        let Some(record) = Record::of_thread() else { return self.pin_first() };
        let outer = record.pinned.load(Relaxed);
        self.pin_in(record, outer)
    }

    #[inline(always)]
    fn pin_in(&self, record: &'static Record, outer: u64) -> Pin {
        record.pin(self.word_over(outer));
        Pin { record, outer, not_send: PhantomData }
    }

    /// What to pin over `outer`, which the thread has pinned already; 0 if it has not.
    #[inline(always)]
    fn word_over(&self, outer: u64) -> u64 {
        let now = self.now.load(Acquire);
        if outer == 0 { now } else { Self::word_over_another(outer, now) }
    }

    #[cold]
    fn word_over_another(outer: u64, now: u64) -> u64 {
        // The older epoch keeps all that the later one would. That is the outer one, but for a cache
        // that happens to have the same number.
        if (outer ^ now) & ID_MASK == 0 { outer.min(now) } else { ANY_CACHE }
    }

    /// The first time on a thread, or the last times, when its record has been given back.
    #[cold]
    #[inline(never)]
    fn pin_first(&self) -> Pin {
        let record = Record::claim();
        if Owner::keep(record) {
            return self.pin_in(record, 0);
        }
        record.pin(self.word_over(0));
        Pin { record, outer: BORROWED, not_send: PhantomData }
    }

    /// Begins the next epoch and returns its number. What this thread took out before is out of
    /// the reach of all who pin it; see [`Epoch::is_settled`].
    pub(crate) fn advance(&self) -> u64 {
        // Readers that see a later epoch must see what was taken out: a release, and their load
        // acquires. Later advances are read-modify-writes too and pass it on.
        (self.now.fetch_add(1 << ID_BITS, AcqRel) >> ID_BITS) + 1
    }

    /// Whether no reader is left from before this epoch, as far as is known.
    pub(crate) fn is_settled(&self, epoch: u64) -> bool {
        self.settled.load(Acquire) >= epoch
    }

    /// Finds out which epochs are settled.
    pub(crate) fn settle(&self) {
        let now = self.now.load(Acquire);
        // A reader whose pin is not seen below sees all that was taken out before this.
        if barrier::heavy() {
            self.look(now);
        }
    }

    /// Waits a short time for an epoch to be settled: long enough for a reader that is reading,
    /// or that has been interrupted and finds a processor. `false` if one has held on for longer.
    pub(crate) fn settle_patiently(&self, epoch: u64) -> bool {
        let now = self.now.load(Acquire);
        if self.is_settled(epoch) {
            return true;
        }
        // A thread cannot wait for itself.
        let rounds = if self.is_pinned_here() { 1 } else { SPINS + YIELDS };
        if !barrier::heavy() {
            return false;
        }
        for round in 0..rounds {
            self.look(now);
            if self.is_settled(epoch) {
                return true;
            }
            if round < SPINS { hint::spin_loop() } else { thread::yield_now() }
        }
        false
    }

    /// Whether no reader that began before `now` is left: all are seen that have to be, because a
    /// heavy barrier was passed since.
    fn look(&self, now: u64) {
        let mut oldest = now >> ID_BITS;
        for record in Record::all() {
            let pinned = record.pinned.load(Acquire);
            if pinned == ANY_CACHE {
                return;
            }
            if pinned != 0 && (pinned ^ now) & ID_MASK == 0 {
                oldest = oldest.min(pinned >> ID_BITS);
            }
        }
        self.settled.fetch_max(oldest, AcqRel);
    }

    fn is_pinned_here(&self) -> bool {
        let pinned = Record::of_thread().map_or(0, |record| record.pinned.load(Relaxed));
        pinned == ANY_CACHE || pinned != 0 && (pinned ^ self.now.load(Relaxed)) & ID_MASK == 0
    }
}

/// Reads take some ten nanoseconds.
const SPINS: u32 = if IS_EXPLORED { 0 } else { 64 };
/// More than enough for every other thread that waits for this processor to run once.
const YIELDS: u32 = if IS_EXPLORED { 2 } else { 64 };
/// Whether all interleavings are tried anyhow.
const IS_EXPLORED: bool = cfg!(any(loom, shuttle));

/// Keeps alive what a thread comes across in a cache.
pub(crate) struct Pin {
    record: &'static Record,
    /// What the thread had pinned before, or [`BORROWED`].
    outer: u64,
    /// It belongs to the thread whose record it is.
    not_send: PhantomData<*const ()>,
}

impl Pin {
    /// A number that no other living thread has, unless this one is ending.
    #[inline(always)]
    pub(crate) fn thread(&self) -> usize {
        self.record.number
    }
}

impl Drop for Pin {
    #[inline(always)]
    fn drop(&mut self) {
        if self.outer == BORROWED {
            self.record.give_back();
        } else {
            self.record.pinned.store(self.outer, Release);
        }
    }
}

/// What a thread has pinned. Records are never freed, and used again when their thread has ended.
#[repr(align(128))]
struct Record {
    /// The epoch with the cache, [`ANY_CACHE`], or 0.
    pinned: AtomicU64,
    is_taken: AtomicBool,
    number: usize,
    next: *const Self,
}

// SAFETY: `next` is written before the record is shared, and points to a record, which are never
// freed and are `Sync` but for that.
unsafe impl Sync for Record {}

impl Record {
    /// `None` before the thread has one, and when it has none any more.
    #[inline(always)]
    fn of_thread() -> Option<&'static Self> {
        RECORD.try_with(Cell::get).ok().flatten()
    }

    #[inline(always)]
    fn pin(&self, word: u64) {
        // Release: who sees this pin, and not the end of the last one, has to know as well that
        // the reads before are over.
        self.pinned.store(word, Release);
        barrier::light();
    }

    /// A record that nobody has; a new one if need be.
    fn claim() -> &'static Self {
        let free = |record: &&Self| {
            !record.is_taken.load(Relaxed)
                && record.is_taken.compare_exchange(false, true, Acquire, Relaxed).is_ok()
        };
        Self::all().find(free).unwrap_or_else(Self::add)
    }

    fn add() -> &'static Self {
        let record = Box::leak(Box::new(Self {
            pinned: AtomicU64::new(0),
            is_taken: AtomicBool::new(true),
            number: 0,
            next: ptr::null(),
        }));
        let mut head = HEAD.load(Acquire);
        loop {
            record.next = head;
            // SAFETY: `head` is null or a record, which are never freed.
            record.number = unsafe { head.as_ref() }.map_or(0, |head| head.number + 1);
            let new = ptr::from_mut(record);
            match HEAD.compare_exchange(head, new, AcqRel, Acquire) {
                Ok(_) => return record,
                Err(changed) => head = changed,
            }
        }
    }

    fn give_back(&self) {
        self.pinned.store(0, Release);
        self.is_taken.store(false, Release);
    }

    fn all() -> impl Iterator<Item = &'static Self> {
        let mut next: *const Self = HEAD.load(Acquire);
        std::iter::from_fn(move || {
            // SAFETY: `next` is null or a record, which are never freed.
            let record = unsafe { next.as_ref() }?;
            next = record.next;
            Some(record)
        })
    }
}

global! {
    /// The record that was added last; the others follow.
    static HEAD: AtomicPtr<Record> = AtomicPtr::new(ptr::null_mut());
}

local! {
    /// The record of this thread. Nothing to be dropped, so that it costs one load.
    static RECORD: Cell<Option<&'static Record>> = Cell::new(None);
}

local! {
    /// Gives the record back when the thread ends.
    static OWNER: Owner = Owner(Cell::new(None));
}

struct Owner(Cell<Option<&'static Record>>);

impl Owner {
    /// Makes a record that of this thread; `false` when the thread is ending.
    fn keep(record: &'static Record) -> bool {
        let is_kept = |owner: &Self| {
            let is_kept = RECORD.try_with(|cell| cell.set(Some(record))).is_ok();
            owner.0.set(is_kept.then_some(record));
            is_kept
        };
        OWNER.try_with(is_kept).unwrap_or(false)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Whatever the thread drops after this borrows a record for each read.
        let _ = RECORD.try_with(Cell::take);
        if let Some(record) = self.0.take() {
            record.give_back();
        }
    }
}
