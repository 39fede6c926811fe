//! The simulator: the hybrid policy by itself, without shards, threads or anything but its order.
//!
//! A new entry comes into a window, first in first out, and from there into the main part, where a
//! hand goes around and evicts what was not read since it was there the last time. Three caches in
//! miniature, which see a sample of the keys, compete for how large the window is and what may
//! leave it for the main part.

use std::collections::VecDeque;

use crate::load::mixed;

/// How many of `requests`, which are numbers below `unique`, find their entry in a cache that has
/// room for `capacity`, when each that does not is inserted.
#[must_use]
pub fn hits(requests: &[u32], unique: usize, capacity: usize) -> usize {
    let mut hybrid = Hybrid::new(unique, capacity);
    requests.iter().filter(|id| hybrid.request(**id)).count()
}

/// What may come from the window into the main part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// What was read while it was in the window, and what comes back soon after it has left.
    Reread,
    /// What is asked for more often than what would have to leave for it.
    Contest,
}

/// The settings that compete: a rule, and the share of the window.
const SETTINGS: [(Rule, f64); 3] =
    [(Rule::Reread, 0.1), (Rule::Contest, 0.01), (Rule::Contest, 0.2)];

/// A miniature has room for at least so many entries, and for at least this share of all.
const MINIATURE: usize = 64;
const MINIATURE_SHARE: usize = 64;

/// A rival takes over when it has so much more hits, and one more.
const ADVANTAGE: f64 = 1.002;

struct Hybrid {
    cache: Cache,
    miniatures: [Cache; 3],
    /// The hits of each, of which older ones count less and less.
    hits: [f64; 3],
    chosen: usize,
    /// The miniatures see the keys whose hash has none of these bits.
    unsampled: u64,
    requests: usize,
    period: usize,
}

impl Hybrid {
    fn new(unique: usize, capacity: usize) -> Self {
        let mut share = 1;
        while capacity / (share * 2) >= MINIATURE && share < MINIATURE_SHARE {
            share *= 2;
        }
        let miniature = |(rule, window)| {
            let mut cache = Cache::new(unique, (capacity / share).max(4));
            cache.set(rule, window);
            cache
        };
        Self {
            cache: Cache::new(unique, capacity),
            miniatures: SETTINGS.map(miniature),
            hits: [0.0; 3],
            chosen: 0,
            unsampled: share as u64 - 1,
            requests: 0,
            period: (4 * capacity).max(5_000),
        }
    }

    fn request(&mut self, id: u32) -> bool {
        if mixed(u64::from(id) + 77) & self.unsampled == 0 {
            for (miniature, hits) in self.miniatures.iter_mut().zip(&mut self.hits) {
                *hits += f64::from(miniature.request(id));
            }
        }
        self.requests += 1;
        if self.requests == self.period {
            self.requests = 0;
            self.choose();
        }
        self.cache.request(id)
    }

    fn choose(&mut self) {
        let mut best = self.chosen;
        for (rival, hits) in self.hits.iter().enumerate() {
            if *hits > self.hits[best] * ADVANTAGE + 1.0 {
                best = rival;
            }
        }
        self.hits = self.hits.map(|hits| hits / 2.0);
        if best != self.chosen {
            self.chosen = best;
            let (rule, window) = SETTINGS[best];
            self.cache.set(rule, window);
        }
    }
}

/// Reads of an entry are counted up to here.
const MOST_USES: u8 = 3;

/// Nobody's slot, and nobody in a slot.
const NONE: u32 = u32::MAX;

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Out,
    Window,
    Main,
}

struct Cache {
    capacity: usize,
    rule: Rule,
    window_room: usize,
    /// The oldest first.
    window: VecDeque<u32>,
    main: usize,
    /// The hand of the main part goes around in their order.
    slots: Vec<u32>,
    free: VecDeque<u32>,
    hand: usize,
    // By the number of the entry.
    slot_of: Vec<u32>,
    place: Vec<Place>,
    uses: Vec<u8>,
    ghosts: Ghosts,
    sketch: Sketch,
    random: u64,
}

impl Cache {
    fn new(unique: usize, capacity: usize) -> Self {
        let slots = capacity + capacity / 32 + 8;
        Self {
            capacity,
            rule: Rule::Reread,
            window_room: (capacity / 10).max(1),
            window: VecDeque::new(),
            main: 0,
            slots: vec![NONE; slots],
            free: (0..slots as u32).collect(),
            hand: 0,
            slot_of: vec![NONE; unique],
            place: vec![Place::Out; unique],
            uses: vec![0; unique],
            ghosts: Ghosts::new(capacity),
            sketch: Sketch::new(capacity),
            random: 88_172_645_463_325_252,
        }
    }

    fn set(&mut self, rule: Rule, window: f64) {
        self.rule = rule;
        self.window_room = ((self.capacity as f64 * window) as usize).max(1).min(self.capacity - 1);
    }

    fn request(&mut self, id: u32) -> bool {
        let index = id as usize;
        if self.place[index] != Place::Out {
            self.uses[index] = (self.uses[index] + 1).min(MOST_USES);
            return true;
        }
        self.sketch.add(id);
        let was_here = self.ghosts.take(id);
        // While there is room, nothing has to earn its place.
        if !self.is_full()
            && self.window.len() >= self.window_room
            && let Some(oldest) = self.window.pop_front()
        {
            self.promote(oldest);
        }
        self.make_room();
        if let Some(slot) = self.free.pop_front() {
            self.slots[slot as usize] = id;
            self.slot_of[index] = slot;
        }
        if was_here && self.rule == Rule::Reread {
            self.promote(id);
        } else {
            self.uses[index] = 0;
            self.place[index] = Place::Window;
            self.window.push_back(id);
        }
        false
    }

    fn is_full(&self) -> bool {
        self.window.len() + self.main >= self.capacity
    }

    fn make_room(&mut self) {
        while self.is_full() {
            if self.window.len() < self.window_room && self.main > 0 {
                self.evict_main();
            } else if let Some(candidate) = self.window.pop_front() {
                for _ in 0..self.uses[candidate as usize] {
                    self.sketch.add(candidate);
                }
                if self.main > 0 && self.earns_a_place(candidate) {
                    self.promote(candidate);
                } else {
                    self.ghosts.add(candidate);
                    self.remove(candidate);
                }
            } else {
                return;
            }
        }
    }

    /// Whether what leaves the window may go to the main part; if so, there is a place for it.
    fn earns_a_place(&mut self, candidate: u32) -> bool {
        match self.rule {
            Rule::Reread => self.uses[candidate as usize] > 0,
            Rule::Contest => {
                let victim = self.victim();
                let uses = self.sketch.estimate(candidate);
                let wins = if uses > self.sketch.estimate(victim) {
                    true
                } else {
                    // Now and then by chance, against keys that were chosen to collide.
                    uses > 5 && self.throw().is_multiple_of(128)
                };
                if wins {
                    self.evict_main();
                }
                wins
            }
        }
    }

    fn promote(&mut self, id: u32) {
        self.place[id as usize] = Place::Main;
        self.uses[id as usize] = 0;
        self.main += 1;
    }

    /// Turns the hand to an entry of the main part that was not read for a whole turn.
    fn victim(&mut self) -> u32 {
        loop {
            let id = self.slots[self.hand];
            if id != NONE && self.place[id as usize] == Place::Main {
                if self.uses[id as usize] == 0 {
                    return id;
                }
                self.sketch.add(id);
                self.uses[id as usize] -= 1;
            }
            self.turn();
        }
    }

    fn evict_main(&mut self) {
        let victim = self.victim();
        self.turn();
        self.main -= 1;
        self.remove(victim);
    }

    fn turn(&mut self) {
        self.hand = (self.hand + 1) % self.slots.len();
    }

    fn remove(&mut self, id: u32) {
        let slot = self.slot_of[id as usize];
        self.place[id as usize] = Place::Out;
        self.slots[slot as usize] = NONE;
        self.free.push_back(slot);
    }

    fn throw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// What has left not long ago, by 16 bits of its hash: in each set the latest first.
struct Ghosts {
    sets: Vec<[u16; 16]>,
}

impl Ghosts {
    fn new(capacity: usize) -> Self {
        let remembered = (1.2 * capacity as f64) as usize;
        Self { sets: vec![[0; 16]; (remembered / 16).max(1)] }
    }

    fn add(&mut self, id: u32) {
        let (set, mark) = self.home(id);
        set.copy_within(0..15, 1);
        set[0] = mark;
    }

    /// Whether it is there. If so, it is not any more.
    fn take(&mut self, id: u32) -> bool {
        let (set, mark) = self.home(id);
        let Some(at) = set.iter().position(|other| *other == mark) else {
            return false;
        };
        set.copy_within(at + 1.., at);
        set[15] = 0;
        true
    }

    fn home(&mut self, id: u32) -> (&mut [u16; 16], u16) {
        let hash = mixed(u64::from(id) + 991);
        let set = ((hash >> 40) * self.sets.len() as u64) >> 24;
        (&mut self.sets[set as usize], (hash as u16).max(1))
    }
}

/// How often each key was asked for, about: four counters of four bits for each, in one block of
/// eight words. All are halved now and then.
struct Sketch {
    blocks: Vec<[u64; 8]>,
    added: u64,
    until_halved: u64,
}

impl Sketch {
    fn new(capacity: usize) -> Self {
        // Two entries to a word.
        let blocks = (capacity as f64 / 16.0).ceil() as usize;
        Self { blocks: vec![[0; 8]; blocks.max(1)], added: 0, until_halved: 10 * capacity as u64 }
    }

    fn add(&mut self, id: u32) {
        let (block, counters) = self.home(id);
        let mut is_new = false;
        for (word, shift) in counters {
            if (block[word] >> shift) & 15 != 15 {
                block[word] += 1 << shift;
                is_new = true;
            }
        }
        self.added += u64::from(is_new);
        if self.added >= self.until_halved {
            self.halve();
        }
    }

    fn estimate(&mut self, id: u32) -> u64 {
        let (block, counters) = self.home(id);
        counters.map(|(word, shift)| (block[word] >> shift) & 15).into_iter().min().unwrap_or(0)
    }

    /// The block of a key, and where in it its counters are.
    fn home(&mut self, id: u32) -> (&mut [u64; 8], [(usize, u64); 4]) {
        let hash = mixed(u64::from(id) + 1);
        let block = ((hash & 0xff_ffff) * self.blocks.len() as u64) >> 24;
        let counters = [0, 1, 2, 3].map(|row| {
            let bits = hash >> (32 + 8 * row);
            ((bits as usize & 1) + 2 * row, ((bits >> 1) & 15) * 4)
        });
        (&mut self.blocks[block as usize], counters)
    }

    fn halve(&mut self) {
        let mut odd = 0;
        for word in self.blocks.as_flattened_mut() {
            odd += u64::from((*word & 0x1111_1111_1111_1111).count_ones());
            *word = (*word >> 1) & 0x7777_7777_7777_7777;
        }
        self.added = (self.added - odd / 4) / 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_found_again_and_a_scan_does_not_displace_it() {
        let mut requests: Vec<u32> = (0..100).cycle().take(1000).collect();
        assert_eq!(hits(&requests, 100, 100), 900);

        requests.extend(1000..5000);
        requests.extend(0..100);
        assert!(hits(&requests, 5000, 100) >= 900 - 100);
        let hot = (0..20_000).map(|at| if at % 2 == 0 { at / 2 % 50 } else { 100 + at });
        assert!(hits(&hot.collect::<Vec<_>>(), 30_000, 100) > 9_000);
    }
}
