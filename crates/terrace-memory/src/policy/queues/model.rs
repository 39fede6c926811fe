//! A model: the queues once more, written to be read and not to be fast, and what tests need to
//! compare the orders with it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::Rule;
use crate::policy::ghost::Ghost;
use crate::policy::sketch::Sketch;
use crate::policy::{Entries, MOST_USES, Order};

/// What [`Queues`](super::Queues) are to do.
pub(crate) struct Model {
    entries: BTreeMap<u32, Entry>,
    /// From the oldest to the newest.
    window: Vec<u32>,
    main: BTreeSet<u32>,
    /// The victim is searched from here on.
    hand: u32,
    ghost: Ghost,
    sketch: Sketch,
    random: u64,
    limit: u64,
    is_full: bool,
}

#[derive(Clone, Copy)]
struct Entry {
    hash: u32,
    cost: u64,
    uses: u8,
    is_pinned: bool,
}

impl Model {
    fn new(expected: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            window: Vec::new(),
            main: BTreeSet::new(),
            hand: 0,
            ghost: Ghost::new(expected),
            sketch: Sketch::new(expected),
            random: 0x9e37_79b9_7f4a_7c15,
            limit: 0,
            is_full: false,
        }
    }

    fn insert(&mut self, slot: u32, entry: Entry, rule: Rule) {
        let is_known = match rule {
            Rule::S3Fifo => self.ghost.take(entry.hash),
            Rule::TinyLfu { .. } => {
                self.sketch.add(entry.hash);
                false
            }
        };
        let total = self.entries.values().map(|entry| entry.cost).sum::<u64>() + entry.cost;
        let is_near = (self.limit - self.limit / 16 + 1..=self.limit).contains(&total);
        if !self.is_full && !is_near {
            let target = target(rule, total.max(self.limit));
            for _ in 0..2 {
                if !self.window.is_empty() && self.window_cost() + entry.cost > target {
                    let oldest = self.window.remove(0);
                    self.promote(oldest);
                }
            }
        }
        self.is_full = false;
        self.entries.insert(slot, entry);
        if is_known {
            self.main.insert(slot);
        } else {
            self.window.push(slot);
        }
    }

    fn replace(&mut self, old: u32, new: u32, cost: u64, is_pinned: bool) {
        let Entry { hash, uses, .. } = self.entries.remove(&old).unwrap();
        let uses = (uses + 1).min(MOST_USES);
        self.entries.insert(new, Entry { hash, cost, uses, is_pinned });
        if self.main.remove(&old) {
            self.main.insert(new);
        } else {
            *self.window.iter_mut().find(|slot| **slot == old).unwrap() = new;
        }
    }

    fn remove(&mut self, slot: u32) {
        self.entries.remove(&slot).unwrap();
        self.main.remove(&slot);
        self.window.retain(|&found| found != slot);
    }

    fn evict(&mut self, limit: u64, rule: Rule, slots: u32) -> Option<u32> {
        (self.limit, self.is_full) = (limit, true);
        let target = target(rule, limit);
        let mean = self.entries.values().map(|entry| entry.cost).sum::<u64>()
            / self.entries.len().max(1) as u64;
        let mut is_shrunk = false;
        let mut has_victims = !self.main.is_empty();
        loop {
            if has_victims && self.window_cost() < target {
                let Some(victim) = self.victim(slots, rule, mean) else {
                    has_victims = false;
                    continue;
                };
                self.hand = victim + 1;
                self.remove(victim);
                return Some(victim);
            }
            if self.window.is_empty() {
                return None;
            }
            let candidate = self.window.remove(0);
            let Entry { hash, cost, uses, is_pinned } = self.entries[&candidate];
            if is_pinned {
                self.main.insert(candidate);
                continue;
            }
            if rule != Rule::S3Fifo {
                (0..uses).for_each(|_| self.sketch.add(hash));
            }
            let mut leaves = candidate;
            if has_victims && rule == Rule::S3Fifo && uses > 0 && u64::from(uses) * mean >= cost {
                self.promote(candidate);
                continue;
            }
            if has_victims && rule != Rule::S3Fifo {
                if !is_shrunk && self.window_cost() / 2 >= target {
                    is_shrunk = true;
                    self.promote(candidate);
                    continue;
                }
                if let Some(victim) = self.victim(slots, rule, mean)
                    && self.is_preferred(candidate, victim)
                {
                    self.promote(candidate);
                    self.hand = victim + 1;
                    leaves = victim;
                }
            }
            if leaves == candidate {
                self.ghost.push(hash);
            }
            self.remove(leaves);
            return Some(leaves);
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.window.clear();
        self.main.clear();
        (self.hand, self.is_full) = (0, false);
    }

    fn window_cost(&self) -> u64 {
        self.window.iter().map(|slot| self.entries[slot].cost).sum()
    }

    fn promote(&mut self, slot: u32) {
        self.entries.get_mut(&slot).unwrap().uses = 0;
        self.main.insert(slot);
    }

    fn victim(&mut self, slots: u32, rule: Rule, mean: u64) -> Option<u32> {
        if self.hand >= slots {
            self.hand = 0;
        }
        let mut round: Vec<u32> = self.main.range(self.hand..).copied().collect();
        round.extend(self.main.range(..self.hand));
        round.retain(|slot| !self.entries[slot].is_pinned);
        if round.is_empty() {
            // A whole round ends where it began, but behind the last slot rather than at the first.
            if self.hand == 0 {
                self.hand = slots;
            }
            return None;
        }
        for slot in round.into_iter().cycle() {
            let Entry { hash, uses, cost, .. } = self.entries.get_mut(&slot).unwrap();
            if u64::from(*uses) * mean < *cost {
                self.hand = slot;
                return Some(slot);
            }
            *uses -= 1;
            if rule != Rule::S3Fifo {
                self.sketch.add(*hash);
            }
        }
        None
    }

    fn is_preferred(&mut self, candidate: u32, victim: u32) -> bool {
        let [candidate, victim] = [candidate, victim].map(|slot| &self.entries[&slot]);
        let [uses, of_victim] = [candidate, victim].map(|entry| self.sketch.estimate(entry.hash));
        if uses * victim.cost > of_victim * candidate.cost {
            return true;
        }
        if uses <= 5 {
            return false;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random & 127 == 0
    }

    fn region(&self, slot: u32) -> u8 {
        u8::from(self.window.contains(&slot)) + 2 * u8::from(self.main.contains(&slot))
    }
}

fn target(rule: Rule, limit: u64) -> u64 {
    let share = match rule {
        Rule::S3Fifo => 10,
        Rule::TinyLfu { window } => u64::from(window),
    };
    (limit * share / 100).max(1)
}

/// Entries in an array.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) slots: Vec<Slot>,
}

#[derive(Clone, Default)]
pub(crate) struct Slot {
    pub(crate) hash: u32,
    pub(crate) cost: u64,
    pub(crate) uses: Cell<u8>,
    pub(crate) region: Cell<u8>,
    pub(crate) is_pinned: bool,
    pub(crate) is_taken: bool,
}

impl Table {
    /// Puts an entry into the first empty slot.
    pub(crate) fn add(&mut self, hash: u32, cost: u64, is_pinned: bool) -> u32 {
        let at = self.slots.iter().position(|slot| !slot.is_taken).unwrap_or(self.slots.len());
        self.slots.resize_with(self.slots.len().max(at + 1), Slot::default);
        self.slots[at] = Slot { hash, cost, is_pinned, is_taken: true, ..Slot::default() };
        u32::try_from(at).unwrap()
    }

    /// The slots that are taken.
    pub(crate) fn taken(&self) -> Vec<u32> {
        (0..self.slots()).filter(|&slot| self.slots[slot as usize].is_taken).collect()
    }

    /// The costs of all entries.
    pub(crate) fn total(&self) -> u64 {
        self.taken().into_iter().map(|slot| self.cost(slot)).sum()
    }

    /// The entry in this slot has left.
    pub(crate) fn free(&mut self, slot: u32) {
        self.slots[slot as usize].is_taken = false;
    }
}

impl Entries for Table {
    fn uses(&self, slot: u32) -> u8 {
        self.slots[slot as usize].uses.get()
    }

    fn set_uses(&self, slot: u32, uses: u8) {
        self.slots[slot as usize].uses.set(uses);
    }

    fn touched(&self, _slot: u32) -> u32 {
        0
    }

    fn set_touched(&self, _slot: u32, _touched: u32) {}

    fn hash(&self, slot: u32) -> u32 {
        self.slots[slot as usize].hash
    }

    fn cost(&self, slot: u32) -> u64 {
        self.slots[slot as usize].cost
    }

    fn expires(&self, _slot: u32) -> u64 {
        u64::MAX
    }

    fn is_pinned(&self, slot: u32) -> bool {
        self.slots[slot as usize].is_pinned
    }

    fn region(&self, slot: u32) -> u8 {
        // An empty slot is in no region.
        if self.slots[slot as usize].is_taken { self.slots[slot as usize].region.get() } else { 0 }
    }

    fn set_region(&self, slot: u32, region: u8) {
        self.slots[slot as usize].region.set(region);
    }

    fn slots(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap()
    }
}

/// What can happen to a shard. An index is that of one of the entries that are there.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Insert { key: u32, cost: u64, is_pinned: bool },
    Use { index: usize },
    Replace { index: usize, cost: u64, is_pinned: bool },
    Remove { index: usize },
    Pin { index: usize, is_pinned: bool },
    Evict,
    Limit { limit: u64 },
    Rule { rule: Rule },
    Expect { entries: usize },
    Clear,
}

/// Steps under costs of up to `cost`.
pub(crate) fn steps(cost: u64) -> impl Strategy<Value = Vec<Step>> {
    let index = 0..1_000_usize;
    let pinned = prop::bool::weighted(0.05);
    let rule = prop_oneof![
        Just(Rule::S3Fifo),
        Just(Rule::TinyLfu { window: 1 }),
        Just(Rule::TinyLfu { window: 20 }),
    ];
    let step = prop_oneof![
        400 => (0..90_u32, 1..=cost, pinned)
            .prop_map(|(key, cost, is_pinned)| Step::Insert { key, cost, is_pinned }),
        300 => index.clone().prop_map(|index| Step::Use { index }),
        40 => (index.clone(), 1..=cost, pinned)
            .prop_map(|(index, cost, is_pinned)| Step::Replace { index, cost, is_pinned }),
        40 => index.clone().prop_map(|index| Step::Remove { index }),
        20 => (index, prop::bool::ANY).prop_map(|(index, is_pinned)| Step::Pin { index, is_pinned }),
        20 => Just(Step::Evict),
        10 => (1..40 * cost).prop_map(|limit| Step::Limit { limit }),
        10 => rule.prop_map(|rule| Step::Rule { rule }),
        3 => (0..100_usize).prop_map(|entries| Step::Expect { entries }),
        1 => Just(Step::Clear),
    ];
    prop::collection::vec(step, 0..600)
}

/// Runs the steps on an order made for `expected` entries and on a model, and panics where they
/// differ. `set_rule` says which rule is in force after it was asked for one.
pub(crate) fn agree<O: Order>(
    mut order: O,
    expected: usize,
    mut set_rule: impl FnMut(Rule) -> Rule,
    steps: Vec<Step>,
) {
    let mut table = Table::default();
    let mut model = Model::new(expected);
    let mut rule = set_rule(Rule::S3Fifo);
    let mut limit = 30;
    let evict = |order: &mut O, model: &mut Model, table: &mut Table, limit, rule| {
        let victim = order.evict(table, limit);
        assert_eq!(victim, model.evict(limit, rule, table.slots()), "another has to leave");
        victim.inspect(|&victim| table.free(victim))
    };
    for step in steps {
        let taken = table.taken();
        let at = |index| taken.get(index % taken.len().max(1)).copied();
        match step {
            Step::Insert { key, cost, is_pinned } => {
                while table.total() + cost > limit
                    && evict(&mut order, &mut model, &mut table, limit, rule).is_some()
                {
                }
                let hash = key.wrapping_mul(0x9e37_79b9) >> 8;
                let slot = table.add(hash, cost, is_pinned);
                order.insert(&table, slot);
                model.insert(slot, Entry { hash, cost, uses: 0, is_pinned }, rule);
            }
            Step::Use { index } => {
                if let Some(slot) = at(index) {
                    let uses = (table.uses(slot) + 1).min(MOST_USES);
                    table.set_uses(slot, uses);
                    model.entries.get_mut(&slot).unwrap().uses = uses;
                }
            }
            Step::Replace { index, cost, is_pinned } => {
                if let Some(old) = at(index) {
                    let new = table.add(table.hash(old), cost, is_pinned);
                    order.replace(&table, old, new);
                    model.replace(old, new, cost, is_pinned);
                    table.free(old);
                }
            }
            Step::Remove { index } => {
                if let Some(slot) = at(index) {
                    order.remove(&table, slot);
                    model.remove(slot);
                    table.free(slot);
                }
            }
            Step::Pin { index, is_pinned } => {
                if let Some(slot) = at(index) {
                    table.slots[slot as usize].is_pinned = is_pinned;
                    model.entries.get_mut(&slot).unwrap().is_pinned = is_pinned;
                }
            }
            Step::Evict => {
                evict(&mut order, &mut model, &mut table, limit, rule);
            }
            Step::Limit { limit: new } => limit = new,
            Step::Rule { rule: wanted } => rule = set_rule(wanted),
            Step::Expect { entries } => {
                order.expect(entries);
                model.ghost.resize(entries);
                model.sketch.resize(entries);
            }
            Step::Clear => {
                order.clear();
                model.clear();
                table.slots.clear();
            }
        }
        let taken = table.taken();
        order.validate(&table, &taken);
        for (slot, entry) in (0..).zip(&table.slots) {
            let region = if entry.is_taken { entry.region.get() } else { 0 };
            assert_eq!(region, model.region(slot), "slot {slot} is somewhere else");
        }
        for slot in taken {
            assert_eq!(table.uses(slot), model.entries[&slot].uses, "slot {slot} has other uses");
        }
    }
}
