//! Entries that are read half-written, or with the value of another key.

use loom::sync::Arc;
use loom::thread;

use super::explore;
use crate::epoch::Epoch;
use crate::index::{Index, IndexReader};
use crate::policy::Touch;
use crate::slot::Life;
use crate::slots::{Slots, SlotsReader};
use crate::{Attributes, Tick};

/// What readers of a shard share.
struct Shelf {
    epoch: Epoch,
    index: IndexReader,
    slots: SlotsReader<u64, u64>,
}

/// What the writer of a shard has, without lock, order and budget.
struct Writer {
    shelf: Arc<Shelf>,
    index: Index,
    slots: Slots<u64, u64>,
}

/// All keys have the same hash, so that nothing but the entry tells them apart.
const HASH: u32 = 0x12_3456;
const NOW: Tick = Tick(0);

fn shelf() -> (Arc<Shelf>, Writer) {
    let epoch = Epoch::new(1);
    drop(epoch.pin());
    let (index, index_reader) = Index::new();
    let (slots, slots_reader) = Slots::new(Touch::Nothing);
    let shelf = Arc::new(Shelf { epoch, index: index_reader, slots: slots_reader });
    (Arc::clone(&shelf), Writer { shelf, index, slots })
}

impl Shelf {
    /// As a read of the cache does.
    fn get(&self, key: u64) -> Option<u64> {
        let _pin = self.epoch.pin();
        let mut found = None;
        self.index.find(HASH, |number| {
            // SAFETY: the number was found while the epoch was pinned, as it still is.
            let slot = unsafe { self.slots.slot(number) };
            // SAFETY: as above.
            let is_it = unsafe { slot.entry() }.0 == key;
            if is_it {
                found = Some(slot);
            }
            is_it
        });
        let slot = found?;
        assert!(slot.is_full(), "a slot is found that is empty");
        assert!(!slot.life().is_expired(Tick(1)), "a life is found that is of no entry");
        slot.count_use();
        // SAFETY: as above.
        let entry = unsafe { slot.entry() };
        assert_eq!(entry.0, key, "another entry is in a slot that is read");
        Some(entry.1)
    }
}

impl Writer {
    /// As a store does, up to where the entry can be found.
    fn fill(&mut self, key: u64, value: u64) -> u32 {
        let number = self.slots.claim(&self.shelf.slots, drop).unwrap();
        let slot = self.slots.get(number);
        // SAFETY: the slot was claimed, so it is empty and in no index.
        unsafe { slot.fill(key, value, HASH, 1, false) };
        slot.set_life(Life::new(&Attributes::default(), NOW, 0));
        number
    }

    fn insert(&mut self, key: u64, value: u64) -> u32 {
        let number = self.fill(key, value);
        self.index.insert(HASH, number);
        number
    }

    fn replace(&mut self, replaced: u32, key: u64, value: u64) -> u32 {
        let number = self.fill(key, value);
        let (_, place) = self.index.find(HASH, |found| found == replaced).unwrap();
        self.index.replace(place, number);
        self.slots.get(replaced).retire(0);
        number
    }

    fn remove(&mut self, number: u32) {
        assert!(self.index.remove_slot(HASH, number));
        self.slots.get(number).retire(0);
    }

    /// Frees a slot that has been taken out, if no reader is in the way; says whether it did.
    fn free(&mut self, number: u32) -> bool {
        let epoch = self.shelf.epoch.advance();
        self.shelf.epoch.settle();
        let is_settled = self.shelf.epoch.is_settled(epoch);
        if is_settled {
            // SAFETY: nobody finds it any more, and the epoch is settled.
            let _ = unsafe { self.slots.get(number).take() };
            self.slots.release(&[number]);
        }
        is_settled
    }
}

/// Fails when number and tag are stored without a release, and when a reader loads them without an
/// acquire.
#[test]
fn while_it_is_stored() {
    explore(|| {
        let (shelf, mut writer) = shelf();
        let reader = thread::spawn(move || {
            let found = shelf.get(1);
            assert!(matches!(found, None | Some(10)), "{found:?}");
        });
        writer.insert(1, 10);
        reader.join().unwrap();
    });
}

/// The tag was there before: the number alone says that there is another entry. Fails when the
/// number is replaced without a release.
#[test]
fn while_it_is_replaced() {
    explore(|| {
        let (shelf, mut writer) = shelf();
        let first = writer.insert(1, 10);
        let reader = thread::spawn(move || {
            let found = shelf.get(1);
            assert!(matches!(found, Some(10 | 11)), "{found:?}");
        });
        writer.replace(first, 1, 11);
        writer.free(first);
        reader.join().unwrap();
    });
}

/// The slot is used again for another key with the same hash, in the same lane. Fails when it is
/// freed whether or not the epoch is settled.
#[test]
fn when_its_slot_is_used_again() {
    explore(|| {
        let (shelf, mut writer) = shelf();
        let first = writer.insert(1, 10);
        let reader = thread::spawn(move || {
            let found = shelf.get(1);
            assert!(matches!(found, None | Some(10)), "{found:?}");
            let other = shelf.get(2);
            assert!(matches!(other, None | Some(20)), "{other:?}");
        });
        writer.remove(first);
        if writer.free(first) {
            assert_eq!(writer.insert(2, 20), first);
        }
        reader.join().unwrap();
    });
}

/// The number in an empty lane is that of a slot that is empty by now. Fails when the tag is stored
/// before the number.
#[test]
fn when_its_lane_is_used_again() {
    explore(|| {
        let (shelf, mut writer) = shelf();
        for number in [writer.insert(1, 10), writer.insert(2, 20)] {
            writer.remove(number);
            assert!(writer.free(number));
        }
        let reader = thread::spawn(move || {
            let found = shelf.get(1);
            assert!(matches!(found, None | Some(11)), "{found:?}");
        });
        // In the lane of the first, and the slot of the second.
        assert_eq!(writer.insert(1, 11), 1);
        reader.join().unwrap();
    });
}

/// Index and slots are begun anew, as when a cache is cleared. Fails when slots are emptied
/// before the epoch is settled, and when a tag is stored without a release.
#[test]
fn when_the_whole_shard_begins_anew() {
    explore(|| {
        let (shelf, mut writer) = shelf();
        let first = writer.insert(1, 10);
        let reader = thread::spawn(move || {
            let found = shelf.get(1);
            assert!(matches!(found, None | Some(10 | 11)), "{found:?}");
        });
        writer.remove(first);
        if writer.free(first) {
            let shelf = Arc::clone(&writer.shelf);
            let index = writer.index.renew(&shelf.index);
            let slots = writer.slots.renew(&shelf.slots);
            let since = shelf.epoch.advance();
            writer.insert(1, 11);
            shelf.epoch.settle();
            if !shelf.epoch.is_settled(since) {
                // Freed when the model ends.
                reader.join().unwrap();
                drop((index, slots));
                return;
            }
            drop((index, slots));
        }
        reader.join().unwrap();
    });
}
