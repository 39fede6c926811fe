//! A sketch: roughly how often keys were asked for lately, present or not.

use crate::prefetch;

/// The count-min sketch of `TinyLFU` ("A Highly Efficient Cache Admission Policy"; Einziger,
/// Friedman, Manes) in the form that Caffeine gave it: counters of four bits, and the four
/// counters of a key in one cache line.
///
/// It takes four bytes per entry of the shard. Adding and asking touch one cache line. All
/// counters are halved, in one go, after ten additions per entry.
pub(crate) struct Sketch {
    blocks: Box<[Block]>,
    added: u64,
    most: u64,
}

/// Four rows of 32 counters; a key has one in each.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Block([[u64; 2]; 4]);

/// The last bit of each counter.
const LOWEST: u64 = u64::MAX / 15;

/// Counters do not go further.
const MOST: u64 = 15;

impl Sketch {
    /// For a shard of so many entries.
    pub(crate) fn new(entries: usize) -> Self {
        let blocks = vec![Block::default(); blocks(entries)].into();
        Self { blocks, added: 0, most: most(entries) }
    }

    /// Counts one use of a key, by 24 bits of its hash.
    pub(crate) fn add(&mut self, hash: u32) {
        let at = block(hash, self.blocks.len());
        let Some(Block(rows)) = self.blocks.get_mut(at) else { return };
        let mut added = false;
        for ([even, odd], place) in rows.iter_mut().zip(places(hash)) {
            let counters = if place & 1 == 0 { even } else { odd };
            let one = 1 << shift(place);
            if *counters & (MOST * one) != MOST * one {
                *counters += one;
                added = true;
            }
        }
        self.added += u64::from(added);
        if self.added >= self.most {
            self.age();
        }
    }

    /// How often the key was counted, or more; at most 15.
    pub(crate) fn estimate(&self, hash: u32) -> u64 {
        let at = block(hash, self.blocks.len());
        let Some(Block(rows)) = self.blocks.get(at) else { return 0 };
        let counts = rows.iter().zip(places(hash)).map(|([even, odd], place)| {
            let counters = if place & 1 == 0 { even } else { odd };
            (counters >> shift(place)) & MOST
        });
        counts.fold(MOST, u64::min)
    }

    /// Asks for what is needed to count a use of a key, or to estimate them.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u32) {
        prefetch::line(self.blocks.as_ptr().wrapping_add(block(hash, self.blocks.len())));
    }

    /// Adapts to so many entries. Counts stay where the blocks are doubled; otherwise those of
    /// keys at the edges of blocks may be lost.
    pub(crate) fn resize(&mut self, entries: usize) {
        let (old, new) = (self.blocks.len(), blocks(entries));
        self.most = most(entries);
        if new != old {
            // The keys of a new block were in this one.
            let before = |at| self.blocks.get(at * old / new).copied().unwrap_or_default();
            self.blocks = (0..new).map(before).collect();
        }
    }

    #[cold]
    fn age(&mut self) {
        let mut odd = 0;
        for counters in self.blocks.iter_mut().flat_map(|Block(rows)| rows.as_flattened_mut()) {
            odd += u64::from((*counters & LOWEST).count_ones());
            *counters = (*counters >> 1) & (LOWEST * (MOST / 2));
        }
        // What halving rounded away was not counted: a quarter, as each key has four counters.
        self.added = self.added.saturating_sub(odd / 4) / 2;
    }
}

fn blocks(entries: usize) -> usize {
    entries.div_ceil(size_of::<Block>() / 4).max(1)
}

fn most(entries: usize) -> u64 {
    10 * entries.max(1) as u64
}

/// The block of a key: that of the high bits of its hash.
fn block(hash: u32, blocks: usize) -> usize {
    let at = (u64::from(hash) * blocks as u64) >> 24;
    usize::try_from(at).unwrap_or_default()
}

/// Where in each row the counter of a key is: the last bit says in which half, the next four at
/// which place.
fn places(hash: u32) -> [u8; 4] {
    // All keys of a block share the high bits of their hashes. Multiplied, the others tell
    // in every byte.
    let [.., a, b, c, d] = u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    [a, b, c, d]
}

fn shift(place: u8) -> u32 {
    u32::from(place >> 1 & 15) * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u32) -> u32 {
        n.wrapping_mul(0x85eb_ca6b) >> 8
    }

    #[test]
    fn a_block_is_a_cache_line() {
        assert_eq!((size_of::<Block>(), align_of::<Block>()), (64, 64));
        assert_eq!(Sketch::new(1_600).blocks.len(), 100);
        assert_eq!(Sketch::new(0).blocks.len(), 1);
    }

    #[test]
    fn it_counts_up_to_15() {
        let mut sketch = Sketch::new(1_000);
        for count in 1..20_u64 {
            sketch.add(hash(1));
            assert_eq!(sketch.estimate(hash(1)), count.min(15));
        }
        assert_eq!(sketch.estimate(hash(2)), 0);
    }

    #[test]
    fn it_never_says_less_and_seldom_more() {
        let mut sketch = Sketch::new(1_000);
        for n in 0..1_000 {
            for _ in 0..n % 6 {
                sketch.add(hash(n));
            }
        }
        let over = |n: u32| sketch.estimate(hash(n)).checked_sub(u64::from(n % 6)).unwrap();
        let wrong = (0..1_000).filter(|&n| over(n) > 1).count();
        assert!(wrong < 50, "{wrong} of 1000");
    }

    #[test]
    fn counts_are_halved_after_ten_additions_per_entry() {
        let mut sketch = Sketch::new(100);
        for _ in 0..10 {
            sketch.add(hash(1));
        }
        let halved = (1_000..2_000).find_map(|n| {
            let (added, before) = (sketch.added, sketch.estimate(hash(1)));
            sketch.add(hash(n));
            (sketch.added < added).then_some((added, before))
        });
        let (added, before) = halved.unwrap();
        assert_eq!(added, 999);
        assert!((10..15).contains(&before), "{before}");
        assert!((before / 2..=before.div_ceil(2)).contains(&sketch.estimate(hash(1))));
        assert!((300..500).contains(&sketch.added), "{} are left", sketch.added);
    }

    #[test]
    fn doubling_keeps_the_counts() {
        let mut sketch = Sketch::new(64);
        for n in 0..60 {
            for _ in 0..n % 5 {
                sketch.add(hash(n));
            }
        }
        let before: Vec<u64> = (0..60).map(|n| sketch.estimate(hash(n))).collect();
        sketch.resize(256);
        assert_eq!(sketch.blocks.len(), 16);
        let after: Vec<u64> = (0..60).map(|n| sketch.estimate(hash(n))).collect();
        assert_eq!(before, after);
    }
}
