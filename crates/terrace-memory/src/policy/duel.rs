//! A duel: which rule would have had the most hits.

use std::cell::Cell;
use std::mem;

use hashbrown::HashTable;

use super::queues::{Queues, Rule};
use super::{Entries, MOST_USES};

/// Miniature caches, one for each rule, that see a sample of the keys and hold nothing but hashes.
///
/// A sample is one key in [`Duel::ratio`], chosen by its hash; each miniature is that much smaller
/// than the cache, so that it has about the same share of hits ("Cache Modeling and Optimization
/// using Miniature Simulations", Waldspurger, Saemundsson, Ahmad, Park; ATC '17). Every few
/// requests the rule with the most hits wins, but not by a hair. All three together take about
/// 100 bytes for each entry of a miniature.
pub(crate) struct Duel {
    miniatures: [Miniature; RULES.len()],
    rule: Rule,
    entries: usize,
    /// Requests since the last vote.
    requests: u64,
}

/// The rules that are tried.
const RULES: [Rule; 3] = [Rule::S3Fifo, Rule::TinyLfu { window: 1 }, Rule::TinyLfu { window: 20 }];

/// A miniature has no fewer entries than this, unless the cache has.
const ENTRIES: usize = 64;

/// No fewer keys than one in so many are sampled.
const SPARSEST: u64 = 64;

impl Duel {
    /// For a cache of so many entries.
    pub(crate) fn new(entries: usize) -> Self {
        Self { miniatures: miniatures(entries), rule: Rule::S3Fifo, entries, requests: 0 }
    }

    /// Of how many keys one is to be sampled, in a cache of so many entries: a power of two.
    pub(crate) fn ratio(entries: usize) -> u64 {
        let fits = (entries / ENTRIES).max(1) as u64;
        (1 << fits.ilog2()).min(SPARSEST)
    }

    /// The rule that won last.
    pub(crate) fn rule(&self) -> Rule {
        self.rule
    }

    /// [`Duel::ratio`] for the entries that were expected last.
    pub(crate) fn present_ratio(&self) -> u64 {
        Self::ratio(self.entries)
    }

    /// A request for a sampled key. Says whether it brought a vote.
    pub(crate) fn sample(&mut self, hash: u64) -> bool {
        // What the hashes of all sampled keys have in common must not weigh here.
        let hash = mix(hash);
        for miniature in &mut self.miniatures {
            miniature.request(hash);
        }
        self.requests += self.present_ratio();
        let is_time = self.requests >= (4 * self.entries as u64).max(5_000);
        if is_time {
            self.requests = 0;
            self.vote();
        }
        is_time
    }

    /// The cache is expected to hold so many entries. If that is a quarter more or less than it
    /// was, the miniatures begin anew; the rule stays.
    pub(crate) fn expect(&mut self, entries: usize) {
        if entries.abs_diff(self.entries) > self.entries / 4 {
            *self = Self { rule: self.rule, ..Self::new(entries) };
        }
    }

    fn vote(&mut self) {
        let hits = |rule| {
            let miniature = self.miniatures.iter().find(|miniature| miniature.rule == rule);
            miniature.map_or(0, |miniature| miniature.hits)
        };
        let mut best = self.rule;
        for rule in RULES {
            // One in 500 more, and one.
            if hits(rule) * 500 > hits(best) * 501 + 500 {
                best = rule;
            }
        }
        self.rule = best;
        for miniature in &mut self.miniatures {
            miniature.hits /= 2;
        }
    }
}

fn miniatures(entries: usize) -> [Miniature; RULES.len()] {
    let ratio = usize::try_from(Duel::ratio(entries)).unwrap_or(1);
    RULES.map(|rule| Miniature::new((entries / ratio).max(4), rule))
}

/// The last step of `MurmurHash3`, by which each bit depends on every other.
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// A hash for the table, which goes by the highest bits and by the lowest ones.
fn whole(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

/// A cache of hashes.
struct Miniature {
    table: HashTable<u32>,
    slots: Vec<Slot>,
    queues: Queues,
    rule: Rule,
    limit: usize,
    hits: u64,
}

struct Slot {
    hash: u32,
    uses: Cell<u8>,
    region: Cell<u8>,
}

impl Miniature {
    fn new(limit: usize, rule: Rule) -> Self {
        Self {
            table: HashTable::with_capacity(limit),
            slots: Vec::with_capacity(limit),
            queues: Queues::new(limit),
            rule,
            limit,
            hits: 0,
        }
    }

    /// Of two keys with the same 32 bits of their hashes, one is taken for the other.
    fn request(&mut self, hash: u64) {
        let slots = &self.slots;
        let short = (hash >> 32) as u32;
        let is_it = |&slot: &u32| slots.get(slot as usize).is_some_and(|slot| slot.hash == short);
        if let Some(slot) =
            self.table.find(whole(short), is_it).and_then(|&slot| slots.get(slot as usize))
        {
            slot.uses.set((slot.uses.get() + 1).min(MOST_USES));
            self.hits += 1;
            return;
        }
        let new = Slot { hash: short, uses: Cell::new(0), region: Cell::new(0) };
        let slot = if self.slots.len() < self.limit {
            self.slots.push(new);
            self.slots.slots() - 1
        } else {
            let Some(slot) = self.queues.evict(&self.slots, self.limit as u64, self.rule) else {
                return;
            };
            let Some(place) = self.slots.get_mut(slot as usize) else { return };
            let old = mem::replace(place, new);
            if let Ok(entry) = self.table.find_entry(whole(old.hash), |&found| found == slot) {
                entry.remove();
            }
            slot
        };
        let slots = &self.slots;
        let hash_of = |&slot: &u32| slots.get(slot as usize).map_or(0, |slot| whole(slot.hash));
        self.table.insert_unique(whole(short), slot, hash_of);
        self.queues.insert(&self.slots, slot, self.rule);
    }
}

impl Entries for Vec<Slot> {
    fn uses(&self, slot: u32) -> u8 {
        self.get(slot as usize).map_or(0, |slot| slot.uses.get())
    }

    fn set_uses(&self, slot: u32, uses: u8) {
        if let Some(slot) = self.get(slot as usize) {
            slot.uses.set(uses);
        }
    }

    fn touched(&self, _slot: u32) -> u32 {
        0
    }

    fn set_touched(&self, _slot: u32, _touched: u32) {}

    fn hash(&self, slot: u32) -> u32 {
        self.get(slot as usize).map_or(0, |slot| slot.hash >> 8)
    }

    fn cost(&self, _slot: u32) -> u64 {
        1
    }

    fn expires(&self, _slot: u32) -> u64 {
        u64::MAX
    }

    fn is_pinned(&self, _slot: u32) -> bool {
        false
    }

    fn region(&self, slot: u32) -> u8 {
        self.get(slot as usize).map_or(0, |slot| slot.region.get())
    }

    fn set_region(&self, slot: u32, region: u8) {
        if let Some(slot) = self.get(slot as usize) {
            slot.region.set(region);
        }
    }

    fn slots(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRIES_OF_CACHE: usize = 1_000;

    /// The share of hits, in hundredths, that a cache has with the rules of a duel, or with one
    /// rule throughout.
    fn hits(keys: &[u64], fixed: Option<Rule>) -> (u64, Rule) {
        let mut duel = Duel::new(ENTRIES_OF_CACHE);
        let mut cache = Miniature::new(ENTRIES_OF_CACHE, Rule::TinyLfu { window: 1 });
        for &key in keys {
            let hash = mix(key + 1);
            if hash.is_multiple_of(Duel::ratio(ENTRIES_OF_CACHE)) {
                duel.sample(hash);
            }
            cache.rule = fixed.unwrap_or(duel.rule());
            cache.request(mix(hash));
        }
        (100 * cache.hits / keys.len() as u64, duel.rule())
    }

    /// Numbers below `end`, each as likely as any other.
    fn random(seed: u64, end: u64) -> u64 {
        mix(seed + 1_000_000_007) % end
    }

    #[test]
    fn a_loop_larger_than_the_cache_is_for_tiny_lfu() {
        let keys: Vec<u64> = (0..300_000).map(|at| at % 1_500).collect();
        let (s3_fifo, _) = hits(&keys, Some(Rule::S3Fifo));
        let (duel, rule) = hits(&keys, None);
        assert!(matches!(rule, Rule::TinyLfu { .. }), "{rule:?}");
        assert!(s3_fifo + 20 < duel, "{s3_fifo} % of S3-FIFO, {duel} % of the duel");
    }

    #[test]
    fn what_was_new_of_late_is_not_for_a_small_window() {
        // One of the last 800 keys that came, or a new one: old keys never come back.
        let key = |at: u64| 1_000 + at / 4 - if at.is_multiple_of(4) { 0 } else { random(at, 800) };
        let keys: Vec<u64> = (0..300_000).map(key).collect();
        let of = |rule| hits(&keys, Some(rule)).0;
        let all = RULES.map(of);
        let (duel, rule) = hits(&keys, None);
        assert_ne!(rule, Rule::TinyLfu { window: 1 });
        assert!(duel + 2 >= all.into_iter().max().unwrap(), "{duel} % of {all:?}");
        assert!(of(Rule::TinyLfu { window: 1 }) + 5 < duel, "{duel} % of {all:?}");
    }

    #[test]
    fn it_follows_a_change() {
        let looped = (0..300_000).map(|at| at % 1_500);
        let recent = (0..300_000).map(|at: u64| 10_000 + at / 4 - random(at, 800) / 2);
        let (_, first) = hits(&looped.clone().collect::<Vec<_>>(), None);
        let (_, second) = hits(&looped.chain(recent).collect::<Vec<_>>(), None);
        assert_ne!(first, second);
    }

    #[test]
    fn a_vote_is_not_won_by_a_hair() {
        let mut duel = Duel::new(1_000);
        let mut vote = |hits: [u64; 3]| {
            for (miniature, hits) in duel.miniatures.iter_mut().zip(hits) {
                miniature.hits = hits;
            }
            duel.vote();
            assert_eq!(duel.miniatures[0].hits, hits[0] / 2, "old hits do not weigh less");
            duel.rule()
        };
        assert_eq!(vote([1_000, 1_003, 1_003]), RULES[0]);
        assert_eq!(vote([1_000, 1_004, 1_005]), RULES[1]);
        assert_eq!(vote([1_004, 1_004, 1_010]), RULES[2]);
        assert_eq!(vote([0, 0, 0]), RULES[2]);
    }

    #[test]
    fn a_miniature_has_64_entries_or_more_if_the_cache_has() {
        let of = |entries| (Duel::ratio(entries), Duel::new(entries).miniatures[0].limit);
        assert_eq!(of(0), (1, 4));
        assert_eq!(of(100), (1, 100));
        assert_eq!(of(127), (1, 127));
        assert_eq!(of(128), (2, 64));
        assert_eq!(of(1_000), (8, 125));
        assert_eq!(of(1_000_000), (64, 15_625));
    }

    #[test]
    fn another_size_begins_anew_with_the_same_rule() {
        let mut duel = Duel::new(1_000);
        let mut samples = 0;
        while duel.rule() == Rule::S3Fifo {
            duel.sample(samples % 187);
            samples += 1;
        }
        let rule = duel.rule();
        let held = |duel: &Duel| duel.miniatures[0].slots.len();
        duel.expect(1_250);
        assert_eq!(held(&duel), 125);
        duel.expect(1_251);
        assert_eq!((held(&duel), duel.rule(), duel.entries), (0, rule, 1_251));
        duel.expect(0);
        assert_eq!((duel.rule(), duel.entries), (rule, 0));
    }

    #[test]
    fn a_miniature_holds_what_its_queues_hold() {
        for rule in RULES {
            let mut miniature = Miniature::new(50, rule);
            for at in 0..5_000 {
                miniature.request(mix(random(at, 120)));
                let slots: Vec<u32> = (0..miniature.slots.slots()).collect();
                miniature.queues.validate(&miniature.slots, &slots);
                assert_eq!(miniature.table.len(), slots.len());
            }
            assert_eq!(miniature.slots.len(), 50);
            assert!(miniature.hits > 1_000, "{rule:?} had {} hits", miniature.hits);
        }
    }
}
