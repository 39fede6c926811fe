//! A model: entries without a cache around them, with which an order is compared to a naive one.

use std::cell::{Cell, RefCell};

use proptest::prelude::*;

use super::{Entries, MOST_USES, Order, Touch};

/// The slots of a shard: what an order may know, and nothing else.
pub(crate) struct Table {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    touch: Touch,
    /// The number of values stored so far.
    clock: Cell<u32>,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    uses: u8,
    touched: u32,
    cost: u64,
    expires: u64,
    pinned: bool,
    region: u8,
}

impl Table {
    /// No entries, and a clock that stands at `clock`.
    pub(crate) fn new(touch: Touch, clock: u32) -> Self {
        let (slots, free) = Default::default();
        Self { slots, free, touch, clock: Cell::new(clock) }
    }

    /// Puts an entry into a slot that is free, the one freed last if there are any.
    pub(crate) fn add(&self, cost: u64, expires: u64) -> u32 {
        self.clock.set(self.clock.get().wrapping_add(1));
        let mut slots = self.slots.borrow_mut();
        let slot = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(Slot::default());
            u32::try_from(slots.len()).unwrap() - 1
        });
        // What was touched stays as the entry before left it.
        let place = &mut slots[slot as usize];
        *place = Slot { cost, expires, touched: place.touched, ..Slot::default() };
        slot
    }

    /// The entry in this slot is gone.
    pub(crate) fn free(&self, slot: u32) {
        self.free.borrow_mut().push(slot);
    }

    /// A hit.
    pub(crate) fn read(&self, slot: u32) {
        let (touch, clock) = (self.touch, self.clock.get());
        self.change(slot, |slot| {
            slot.uses = (slot.uses + 1).min(MOST_USES);
            slot.touched = match touch {
                Touch::Nothing => slot.touched,
                Touch::Time => clock,
                Touch::Count => slot.touched.saturating_add(1),
            };
        });
    }

    pub(crate) fn pin(&self, slot: u32, pinned: bool) {
        self.change(slot, |slot| slot.pinned = pinned);
    }

    pub(crate) fn set_expires(&self, slot: u32, expires: u64) {
        self.change(slot, |slot| slot.expires = expires);
    }

    fn get(&self, slot: u32) -> Slot {
        self.slots.borrow()[slot as usize]
    }

    fn change(&self, slot: u32, change: impl FnOnce(&mut Slot)) {
        change(&mut self.slots.borrow_mut()[slot as usize]);
    }
}

impl Entries for Table {
    fn uses(&self, slot: u32) -> u8 {
        self.get(slot).uses
    }

    fn set_uses(&self, slot: u32, uses: u8) {
        assert!(uses <= MOST_USES);
        self.change(slot, |slot| slot.uses = uses);
    }

    fn touched(&self, slot: u32) -> u32 {
        self.get(slot).touched
    }

    fn set_touched(&self, slot: u32, touched: u32) {
        self.change(slot, |slot| slot.touched = touched);
    }

    fn hash(&self, slot: u32) -> u32 {
        slot.wrapping_mul(0x9e37_79b1) >> 8
    }

    fn cost(&self, slot: u32) -> u64 {
        self.get(slot).cost
    }

    fn expires(&self, slot: u32) -> u64 {
        self.get(slot).expires
    }

    fn is_pinned(&self, slot: u32) -> bool {
        self.get(slot).pinned
    }

    fn region(&self, slot: u32) -> u8 {
        self.get(slot).region
    }

    fn set_region(&self, slot: u32, region: u8) {
        self.change(slot, |slot| slot.region = region);
    }

    fn slots(&self) -> u32 {
        u32::try_from(self.slots.borrow().len()).unwrap()
    }
}

/// Two orders of the same entries. Each has a table of its own, so that neither sees what the
/// other one notes.
pub(crate) struct Pair<A, B> {
    orders: (A, B),
    tables: (Table, Table),
    /// The slots that hold entries, in the order in which they were taken.
    live: Vec<u32>,
}

/// What the entries may cost together.
const LIMIT: u64 = 400;

/// Entries are named by their number among those that are there, modulo how many there are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    Insert { cost: u64, expires: u64 },
    Replace { entry: usize, cost: u64, expires: u64 },
    Remove { entry: usize },
    Read { entry: usize, times: u8 },
    Pin { entry: usize, pinned: bool },
    Expire { entry: usize, expires: u64 },
    Evict,
    PinAll { pinned: bool },
    Clear,
}

/// Far more reads of few entries than of others, some pins, and seldom everything at once.
pub(crate) fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let cost = || prop_oneof![9 => 1..20_u64, 1 => 20..200_u64];
    let expires = || prop_oneof![2 => 0..100_u64, 1 => Just(u64::MAX)];
    let entry = || prop_oneof![1 => 0..8_usize, 1 => 0..1_000_usize];
    let operation = prop_oneof![
        300 => (cost(), expires()).prop_map(|(cost, expires)| Operation::Insert { cost, expires }),
        50 => (entry(), cost(), expires()).prop_map(|(entry, cost, expires)| {
            Operation::Replace { entry, cost, expires }
        }),
        30 => entry().prop_map(|entry| Operation::Remove { entry }),
        400 => (entry(), 1..6_u8).prop_map(|(entry, times)| Operation::Read { entry, times }),
        20 => entry().prop_map(|entry| Operation::Pin { entry, pinned: true }),
        30 => entry().prop_map(|entry| Operation::Pin { entry, pinned: false }),
        50 => (entry(), expires()).prop_map(|(entry, expires)| {
            Operation::Expire { entry, expires }
        }),
        100 => Just(Operation::Evict),
        3 => prop::bool::weighted(0.3).prop_map(|pinned| Operation::PinAll { pinned }),
        1 => Just(Operation::Clear),
    ];
    prop::collection::vec(operation, 1..600)
}

pub(crate) fn cases() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

impl<A: Order, B: Order> Pair<A, B> {
    pub(crate) fn new(order: A, naive: B, touch: Touch, clock: u32) -> Self {
        let tables = (Table::new(touch, clock), Table::new(touch, clock));
        Self { orders: (order, naive), tables, live: Vec::new() }
    }

    /// Panics as soon as the two do not choose the same entry.
    pub(crate) fn run(mut self, operations: &[Operation]) {
        for &operation in operations {
            self.apply(operation);
            self.validate();
        }
        while self.evict() {
            self.validate();
        }
        self.both_tables(|table, slot| table.pin(slot, false));
        while self.evict() {
            self.validate();
        }
        assert_eq!(self.live, [0; 0], "entries stay that could leave");
    }

    fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Insert { cost, expires } => {
                let slot = self.add(cost, expires);
                self.orders.0.insert(&self.tables.0, slot);
                self.orders.1.insert(&self.tables.1, slot);
                self.live.push(slot);
                self.shrink();
            }
            Operation::Replace { entry, cost, expires } => {
                let Some(at) = self.find(entry) else { return };
                let new = self.add(cost, expires);
                let old = std::mem::replace(&mut self.live[at], new);
                self.orders.0.replace(&self.tables.0, old, new);
                self.orders.1.replace(&self.tables.1, old, new);
                self.free(old);
                self.shrink();
            }
            Operation::Remove { entry } => {
                let Some(at) = self.find(entry) else { return };
                let slot = self.live.remove(at);
                self.orders.0.remove(&self.tables.0, slot);
                self.orders.1.remove(&self.tables.1, slot);
                self.free(slot);
            }
            Operation::Read { entry, times } => {
                let Some(slot) = self.find(entry).map(|at| self.live[at]) else { return };
                for _ in 0..times {
                    self.tables.0.read(slot);
                    self.tables.1.read(slot);
                }
            }
            Operation::Pin { entry, pinned } => {
                let Some(slot) = self.find(entry).map(|at| self.live[at]) else { return };
                self.tables.0.pin(slot, pinned);
                self.tables.1.pin(slot, pinned);
            }
            Operation::Expire { entry, expires } => {
                let Some(slot) = self.find(entry).map(|at| self.live[at]) else { return };
                let earlier = expires < self.tables.0.expires(slot);
                self.tables.0.set_expires(slot, expires);
                self.tables.1.set_expires(slot, expires);
                // Nobody has to say that it is later, but may.
                if earlier || entry % 3 == 0 {
                    self.orders.0.expires_changed(&self.tables.0, slot);
                    self.orders.1.expires_changed(&self.tables.1, slot);
                }
            }
            Operation::Evict => {
                self.evict();
            }
            Operation::PinAll { pinned } => self.both_tables(|table, slot| table.pin(slot, pinned)),
            Operation::Clear => {
                self.orders.0.clear();
                self.orders.1.clear();
                for slot in std::mem::take(&mut self.live) {
                    self.free(slot);
                }
            }
        }
    }

    /// Evicts until the entries cost no more than they may.
    fn shrink(&mut self) {
        while self.live.iter().map(|&slot| self.tables.0.cost(slot)).sum::<u64>() > LIMIT
            && self.evict()
        {
            self.validate();
        }
    }

    /// Has both orders choose. Whether there was anything to evict.
    fn evict(&mut self) -> bool {
        let movable = self.live.iter().any(|&slot| !self.tables.0.is_pinned(slot));
        let victim = self.orders.0.evict(&self.tables.0, LIMIT);
        let naive = self.orders.1.evict(&self.tables.1, LIMIT);
        assert_eq!(victim, naive, "the order and the naive one differ");
        assert_eq!(
            victim.is_some(),
            movable,
            "not the one that could leave, or one that could not"
        );
        let Some(slot) = victim else { return false };
        assert!(!self.tables.0.is_pinned(slot), "the victim is pinned");
        self.live.retain(|&other| other != slot);
        self.free(slot);
        true
    }

    fn validate(&self) {
        self.orders.0.validate(&self.tables.0, &self.live);
        self.orders.1.validate(&self.tables.1, &self.live);
    }

    fn find(&self, entry: usize) -> Option<usize> {
        entry.checked_rem(self.live.len())
    }

    fn add(&self, cost: u64, expires: u64) -> u32 {
        let slot = self.tables.0.add(cost, expires);
        assert_eq!(self.tables.1.add(cost, expires), slot);
        slot
    }

    fn free(&self, slot: u32) {
        self.tables.0.free(slot);
        self.tables.1.free(slot);
    }

    fn both_tables(&self, change: impl Fn(&Table, u32)) {
        for &slot in &self.live {
            change(&self.tables.0, slot);
            change(&self.tables.1, slot);
        }
    }
}
