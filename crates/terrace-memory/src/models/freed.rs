//! Entries that are freed while a reader holds them.
//!
//! Not modelled is a thread that reads after it has given its record back: `loom` ends the
//! variables of a thread in an order that differs from run to run. See `threads.rs` in `tests/it`.

use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering::{Acquire, Release};
use loom::thread;

use super::explore;
use crate::epoch::Epoch;
use crate::slot::Slot;

/// An entry that readers find for as long as it is published.
struct Stage {
    epoch: Epoch,
    is_published: AtomicBool,
    slot: Slot<u64, u64>,
}

const KEY: u64 = 3;
const VALUE: u64 = 7;

impl Stage {
    fn new(cache: u64) -> Self {
        let slot = Slot::empty();
        // SAFETY: the slot is empty, and no other thread has it.
        unsafe { slot.fill(KEY, VALUE, 0, 1, false) };
        let epoch = Epoch::new(cache);
        // What every thread shares is made before there are any.
        drop(epoch.pin());
        Self { epoch, is_published: AtomicBool::new(true), slot }
    }

    /// Reads the entry, if it is still there, before and after `meanwhile`.
    fn read_around(&self, meanwhile: impl FnOnce()) {
        let _pin = self.epoch.pin();
        if self.is_published.load(Acquire) {
            self.look();
            meanwhile();
            self.look();
        }
    }

    fn read(&self) {
        self.read_around(|| ());
    }

    fn look(&self) {
        // SAFETY: it was published while the epoch was pinned, as it still is.
        assert_eq!(unsafe { self.slot.entry() }, &(KEY, VALUE));
    }

    /// Takes the entry out; the epoch that has to be settled before it can be freed.
    fn withdraw(&self) -> u64 {
        self.is_published.store(false, Release);
        self.epoch.advance()
    }

    fn free_if_settled(&self, epoch: u64) {
        if self.epoch.is_settled(epoch) {
            // SAFETY: nobody finds it any more, and the epoch is settled.
            assert_eq!(unsafe { self.slot.take() }, (KEY, VALUE));
        }
    }

    fn free(&self) {
        let epoch = self.withdraw();
        self.epoch.settle();
        self.free_if_settled(epoch);
    }
}

/// Fails without the fence of readers, without that of writers, when the end of a pin is stored
/// without a release or loaded without an acquire, and when it is not asked whether the epoch is
/// settled. It does not fail when `pin` loads the epoch without an acquire: the fence is one.
#[test]
fn by_a_writer_that_has_seen_no_reader() {
    explore(|| {
        let stage = Arc::new(Stage::new(1));
        let reader = thread::spawn({
            let stage = Arc::clone(&stage);
            move || stage.read()
        });
        stage.free();
        reader.join().unwrap();
    });
}

/// A reader that lets go and reads again is seen in its second pin only. Fails when a pin is stored
/// without a release: who sees it has to know that the reads before it are over.
#[test]
fn by_a_writer_that_has_seen_the_next_read() {
    explore(|| {
        let stage = Arc::new(Stage::new(1));
        let reader = thread::spawn({
            let stage = Arc::clone(&stage);
            move || {
                stage.read();
                stage.read();
            }
        });
        stage.free();
        reader.join().unwrap();
    });
}

/// Fails when the end of a pin stores 0 in place of what was pinned before, and when the inner pin
/// is of a later epoch.
#[test]
fn by_the_end_of_a_read_within_a_read() {
    explore(|| {
        let stage = Arc::new(Stage::new(1));
        let reader = thread::spawn({
            let stage = Arc::clone(&stage);
            move || stage.read_around(|| stage.read())
        });
        stage.free();
        reader.join().unwrap();
    });
}

/// Fails when a pin over that of another cache pins the epoch of its own alone.
#[test]
fn by_a_read_of_another_cache_within_a_read() {
    explore(|| {
        let stages = Arc::new([Stage::new(1), Stage::new(2)]);
        let reader = thread::spawn({
            let stages = Arc::clone(&stages);
            move || stages[0].read_around(|| stages[1].read())
        });
        stages[0].free();
        stages[1].free();
        reader.join().unwrap();
    });
}

/// Caches whose numbers are alike wait for each other, and free nothing too early: the older epoch
/// of both is pinned. Fails when the later one is.
#[test]
fn by_a_read_of_a_cache_with_the_same_number() {
    alike(0);
}

/// The same, when the inner cache is the one with the older epoch. Fails when the outer one stays
/// pinned.
#[test]
fn by_a_read_of_a_younger_cache_with_the_same_number() {
    alike(1);
}

fn alike(outer: usize) {
    explore(move || {
        let stages = Arc::new([Stage::new(1), Stage::new(1 + 0xFFFF)]);
        stages[1].epoch.advance();
        stages[1].epoch.advance();
        let reader = thread::spawn({
            let stages = Arc::clone(&stages);
            move || stages[outer].read_around(|| stages[1 - outer].read())
        });
        stages[0].free();
        stages[1].free();
        reader.join().unwrap();
    });
}

/// One thread takes out, another finds out about readers, and the first frees. Fails when
/// `settled` is loaded or changed without an order, and when the epoch is advanced without one.
#[test]
fn on_the_word_of_another_thread() {
    explore(|| {
        let stage = Arc::new(Stage::new(1));
        let reader = thread::spawn({
            let stage = Arc::clone(&stage);
            move || stage.read()
        });
        let settler = thread::spawn({
            let stage = Arc::clone(&stage);
            move || stage.epoch.settle()
        });
        let epoch = stage.withdraw();
        stage.free_if_settled(epoch);
        settler.join().unwrap();
        reader.join().unwrap();
    });
}

/// Fails when `settle_patiently` takes the epoch for settled after the last round.
#[test]
fn by_a_writer_that_has_waited() {
    explore(|| {
        let stage = Arc::new(Stage::new(1));
        let reader = thread::spawn({
            let stage = Arc::clone(&stage);
            move || stage.read()
        });
        let epoch = stage.withdraw();
        if stage.epoch.settle_patiently(epoch) {
            stage.free_if_settled(epoch);
        }
        reader.join().unwrap();
    });
}

/// Two threads with the record of one: the second may begin when the first has ended. Fails when
/// the record is given back before what is pinned in it, and when it is claimed without an acquire.
#[test]
fn after_the_end_of_a_thread_whose_record_is_used_again() {
    explore(|| {
        let stage = Arc::new(Stage::new(1));
        let reader = || {
            let stage = Arc::clone(&stage);
            thread::spawn(move || stage.read())
        };
        let readers = [reader(), reader()];
        stage.free();
        for reader in readers {
            reader.join().unwrap();
        }
    });
}
