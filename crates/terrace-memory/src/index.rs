//! An index: from the hash of a key to the slots that may hold it.
//!
//! A table of groups, each one cache line: twelve tags (8 bits of the hash each) and the twelve
//! numbers of the slots they stand for. A key lives in the group its hash points to, or, if that
//! is full, in the next that has room; each group counts the entries that went past it, so that a
//! search knows when to stop (as in F14, Facebook's hash table). Entries never move within a
//! table. So readers need no lock: they see an entry, or they see it gone, or being replaced.

use std::{array, mem, ptr, slice};

use Ordering::{Acquire, Relaxed, Release};

use crate::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// So many bits of a hash are used for a place in the index.
pub(crate) const HASH_BITS: u32 = 24;

const LANES: usize = 12;
const LANES_IN_WORD: usize = 8;

#[repr(C, align(64))]
pub(crate) struct Group {
    /// Twelve tags, each 0 where the lane is empty; then the count of entries that went past,
    /// [`STUCK`] when there were too many to count.
    tags: [AtomicU64; 2],
    slots: [AtomicU32; LANES],
}

/// Where the count is, in the second word.
const PAST_SHIFT: u32 = 32;
const STUCK: u64 = 0xFF;

const ALL_LANES: u32 = (1 << LANES) - 1;

#[cfg(not(target_arch = "x86_64"))]
const LOW_BITS: u64 = 0x0101_0101_0101_0101;
const HIGH_BITS: u64 = 0x8080_8080_8080_8080;

/// Where an entry is in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    group: u32,
    lane: u8,
}

/// What tables are made of, so that they begin at multiples of 128.
#[repr(C, align(128))]
struct Pair([Group; 2]);

/// What readers see of an index: the table, which is another one when it has grown.
pub(crate) struct IndexReader {
    /// Tables begin at multiples of 128: the bits that are free tell the size.
    table: AtomicPtr<Group>,
}

/// Where the size is, in the address of a table.
const SIZE_MASK: usize = align_of::<Pair>() - 1;

/// How many groups there are: 8 to 15 times a power of two, so that growing by one size leaves
/// little unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Size(u8);

impl Size {
    const MAX: Self = Self(SIZE_MASK as u8);

    #[inline(always)]
    fn groups(self) -> u32 {
        (8 + u32::from(self.0 & 7)) << (self.0 >> 3)
    }

    /// How many entries it can take: five in six lanes.
    fn entries(self) -> u32 {
        self.groups() * 10
    }

    /// For so many entries in three of four lanes. Fuller tables take little less memory, and every
    /// search of them more often has to go on in another group; but a shard that holds somewhat
    /// more than its part need not grow for that.
    fn for_entries(entries: u32) -> Self {
        (0..Self::MAX.0).map(Self).find(|size| size.groups() * 9 >= entries).unwrap_or(Self::MAX)
    }
}

#[inline(always)]
fn home(hash: u32, groups: u32) -> u32 {
    ((u64::from(hash) * u64::from(groups)) >> HASH_BITS) as u32
}

/// Never 0, which is an empty lane.
#[inline(always)]
fn tag(hash: u32) -> u8 {
    (hash as u8).max(1)
}

/// A bit for each lane whose tag this is, and for no other: in an empty lane there may be the
/// number of a slot that is not to be looked at.
#[inline(always)]
fn matches(tags: [u64; 2], tag: u8) -> u32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of this architecture has these instructions.
    let found = unsafe {
        use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_movemask_epi8, _mm_set_epi64x, _mm_set1_epi8};
        let tags = _mm_set_epi64x(tags[1].cast_signed(), tags[0].cast_signed());
        _mm_movemask_epi8(_mm_cmpeq_epi8(tags, _mm_set1_epi8(tag.cast_signed()))).cast_unsigned()
    };
    #[cfg(not(target_arch = "x86_64"))]
    let found = {
        let [low, high] = tags.map(|word| zeros(word ^ (u64::from(tag) * LOW_BITS)));
        low | high << LANES_IN_WORD
    };
    found & ALL_LANES
}

/// A bit for each byte of `word` that is 0.
#[cfg_attr(target_arch = "x86_64", allow(dead_code, reason = "the processor has a better way"))]
#[inline(always)]
fn zeros(word: u64) -> u32 {
    let high = !(((word & !HIGH_BITS) + !HIGH_BITS) | word) & HIGH_BITS;
    // Brings the highest bit of each byte together in the highest byte.
    ((high >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32
}

impl Group {
    fn empty() -> Self {
        Self {
            tags: array::from_fn(|_| AtomicU64::new(0)),
            slots: array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    #[inline(always)]
    fn tags(&self, ordering: Ordering) -> [u64; 2] {
        [self.tags[0].load(ordering), self.tags[1].load(ordering)]
    }

    /// The first slot with this tag that `is_it`, with its lane; or how many entries went past.
    #[inline(always)]
    fn find(&self, tag: u8, mut is_it: impl FnMut(u32) -> bool) -> Result<(u32, u8), u64> {
        // Acquire: the number of the slot was stored before the tag.
        let tags = self.tags(Acquire);
        let mut found = matches(tags, tag);
        while found != 0 {
            let lane = found.trailing_zeros();
            // Acquire: the entry was stored before the number of its slot.
            #[expect(clippy::indexing_slicing, reason = "lanes are below their number")]
            let slot = self.slots[lane as usize].load(Acquire);
            if is_it(slot) {
                return Ok((slot, lane as u8));
            }
            found &= found - 1;
        }
        Err(tags[1] >> PAST_SHIFT & STUCK)
    }

    #[inline]
    fn empty_lane(&self) -> Option<usize> {
        let empty = matches(self.tags(Relaxed), 0);
        (empty != 0).then(|| empty.trailing_zeros() as usize)
    }

    #[inline]
    #[expect(clippy::indexing_slicing, reason = "lanes are below their number")]
    fn set(&self, lane: usize, tag: u8, slot: u32) {
        self.slots[lane].store(slot, Release);
        self.set_tag(lane, tag);
    }

    #[inline]
    #[expect(clippy::indexing_slicing, reason = "lanes are below their number")]
    fn set_tag(&self, lane: usize, tag: u8) {
        let (word, shift) = (&self.tags[lane / LANES_IN_WORD], lane % LANES_IN_WORD * 8);
        let rest = word.load(Relaxed) & !(0xFF << shift);
        word.store(rest | u64::from(tag) << shift, Release);
    }

    /// Counts an entry that goes past, or does no longer.
    fn count_past(&self, is_more: bool) {
        let [_, word] = &self.tags;
        let all = word.load(Relaxed);
        if all >> PAST_SHIFT & STUCK != STUCK {
            let one = 1 << PAST_SHIFT;
            word.store(if is_more { all + one } else { all - one }, Release);
        }
    }
}

impl IndexReader {
    /// The slot that `is_it`, among those whose key may have this hash.
    #[inline(always)]
    pub(crate) fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let (table, groups) = self.table();
        let (first, tag) = (home(hash, groups), tag(hash));
        let mut group = first;
        loop {
            // SAFETY: the number is below that of the groups, and the table is not freed while
            // the epoch is pinned, or the lock held, in which it was loaded.
            match unsafe { &*table.add(group as usize) }.find(tag, &mut is_it) {
                Ok((slot, _)) => return Some(slot),
                Err(0) => return None,
                Err(_) => group = next(group, groups),
            }
            // Entries may have gone past every group.
            if group == first {
                return None;
            }
        }
    }

    /// Asks for the line that [`IndexReader::find`] will read first.
    #[inline(always)]
    pub(crate) fn prefetch(&self, hash: u32) {
        let (table, groups) = self.table();
        crate::prefetch::line(table.wrapping_add(home(hash, groups) as usize));
    }

    #[inline(always)]
    fn table(&self) -> (*const Group, u32) {
        let table = self.table.load(Acquire);
        let size = Size((table.addr() & SIZE_MASK) as u8);
        (table.map_addr(|address| address & !SIZE_MASK), size.groups())
    }
}

#[inline(always)]
fn next(group: u32, groups: u32) -> u32 {
    if group + 1 == groups { 0 } else { group + 1 }
}

/// The index of a shard, for the one who has its lock.
pub(crate) struct Index {
    pairs: Box<[Pair]>,
    /// How many groups there are.
    count: u32,
    size: Size,
    len: u32,
    /// It has to grow before there are more entries than this.
    most: u32,
}

impl Index {
    /// An empty index, and what readers see of it.
    pub(crate) fn new() -> (Self, IndexReader) {
        let index = Self::with_size(Size(0));
        let reader = IndexReader { table: AtomicPtr::new(ptr::null_mut()) };
        index.publish(&reader);
        (index, reader)
    }

    /// Begins anew with an empty index. Returns the table that readers may still be in.
    pub(crate) fn renew(&mut self, reader: &IndexReader) -> Self {
        let index = Self::with_size(Size(0));
        index.publish(reader);
        mem::replace(self, index)
    }

    fn with_size(size: Size) -> Self {
        let count = size.groups();
        let pair = |_| Pair(array::from_fn(|_| Group::empty()));
        let pairs = (0..count.div_ceil(2)).map(pair).collect();
        Self { pairs, count, size, len: 0, most: size.entries() }
    }

    fn publish(&self, reader: &IndexReader) {
        let table = self.pairs.as_ptr().cast::<Group>().cast_mut();
        reader.table.store(table.map_addr(|address| address | usize::from(self.size.0)), Release);
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// The most entries that any index can have.
    pub(crate) fn max_len() -> u32 {
        Size::MAX.entries()
    }

    /// The slot that `is_it`, with its place.
    #[inline]
    pub(crate) fn find(
        &self,
        hash: u32,
        mut is_it: impl FnMut(u32) -> bool,
    ) -> Option<(u32, Place)> {
        let (first, tag) = (self.home(hash), tag(hash));
        let mut group = first;
        loop {
            match self.group(group).find(tag, &mut is_it) {
                Ok((slot, lane)) => return Some((slot, Place { group, lane })),
                Err(0) => return None,
                Err(_) => group = next(group, self.count),
            }
            if group == first {
                return None;
            }
        }
    }

    /// Asks for the line that a search will read first.
    #[inline(always)]
    pub(crate) fn prefetch(&self, hash: u32) {
        crate::prefetch::line(
            self.pairs.as_ptr().cast::<Group>().wrapping_add(self.home(hash) as usize),
        );
    }

    /// Puts another slot in the place of one with the same key.
    #[expect(clippy::indexing_slicing, reason = "lanes are below their number")]
    pub(crate) fn replace(&self, place: Place, slot: u32) {
        self.group(place.group).slots[usize::from(place.lane)].store(slot, Release);
    }

    /// Adds a slot. There has to be room: see [`Index::grow`].
    #[inline]
    pub(crate) fn insert(&mut self, hash: u32, slot: u32) {
        let mut group = self.home(hash);
        loop {
            if let Some(lane) = self.group(group).empty_lane() {
                self.group(group).set(lane, tag(hash), slot);
                self.len += 1;
                return;
            }
            self.group(group).count_past(true);
            group = next(group, self.count);
        }
    }

    #[inline]
    pub(crate) fn remove(&mut self, hash: u32, place: Place) {
        self.group(place.group).set_tag(usize::from(place.lane), 0);
        let mut group = self.home(hash);
        while group != place.group {
            self.group(group).count_past(false);
            group = next(group, self.count);
        }
        self.len -= 1;
    }

    /// Removes a slot; `false` if it is not there.
    #[inline]
    pub(crate) fn remove_slot(&mut self, hash: u32, slot: u32) -> bool {
        match self.find(hash, |found| found == slot) {
            Some((_, place)) => {
                self.remove(hash, place);
                true
            }
            None => false,
        }
    }

    /// Whether it has to grow before one more entry is added.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.len >= self.most
    }

    /// Makes room for more entries: `hash_of` tells the hash of a slot. The index grows by three
    /// quarters, but not beyond the entries that are `expected`, as long as there are no more;
    /// then by an eighth. Returns the table that readers may still be in.
    #[cold]
    pub(crate) fn grow(
        &mut self,
        reader: &IndexReader,
        expected: u32,
        hash_of: impl Fn(u32) -> u32,
    ) -> Self {
        let more = Size((self.size.0 + 6).min(Size::MAX.0));
        let next = Size((self.size.0 + 1).min(Size::MAX.0));
        let mut grown = Self::with_size(more.min(Size::for_entries(expected)).max(next));
        for slot in self.slots() {
            grown.insert(hash_of(slot), slot);
        }
        grown.publish(reader);
        mem::replace(self, grown)
    }

    /// The slots in the index, in no order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> {
        self.groups().iter().flat_map(|group| {
            group.slots.iter().enumerate().filter_map(|(lane, slot)| {
                let word = group.tags.get(lane / LANES_IN_WORD)?.load(Relaxed);
                (word >> (lane % LANES_IN_WORD * 8) & 0xFF != 0).then(|| slot.load(Relaxed))
            })
        })
    }

    #[inline(always)]
    fn home(&self, hash: u32) -> u32 {
        home(hash, self.count)
    }

    #[inline(always)]
    fn groups(&self) -> &[Group] {
        // SAFETY: a pair is two groups and nothing else, and there are enough of them.
        unsafe { slice::from_raw_parts(self.pairs.as_ptr().cast(), self.count as usize) }
    }

    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "groups are below their number")]
    fn group(&self, group: u32) -> &Group {
        &self.groups()[group as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lanes_with_a_tag_are_found_and_no_other() {
        for (word, expected) in [(0, 0xFF), (u64::MAX, 0), (0x00FF_0100_8000_0001, 0b1001_0110)] {
            assert_eq!(zeros(word), expected, "{word:#x}");
        }
        let tags = [0x0102_0001_0100_0101, 0xFFFF_FFFF_0001_0200];
        assert_eq!(matches(tags, 1), 0b0100_1001_1011);
        assert_eq!(matches(tags, 0), 0b1001_0010_0100);
        assert_eq!(matches(tags, 0xFF), 0);
    }

    #[test]
    fn a_group_is_a_cache_line() {
        assert_eq!((size_of::<Group>(), align_of::<Group>()), (64, 64));
    }

    #[test]
    fn sizes_grow_by_an_eighth_at_most() {
        for size in 0..Size::MAX.0 {
            let (size, next) = (Size(size), Size(size + 1));
            assert!(next > size && next.groups() * 8 <= size.groups() * 9);
        }
        assert_eq!(Size::for_entries(0), Size(0));
        for entries in [1, 40, 41, 1_000, 123_456] {
            assert!(Size::for_entries(entries).entries() >= entries);
        }
    }

    #[test]
    fn what_is_inserted_is_found_until_it_is_removed() {
        let (mut index, reader) = Index::new();
        // Many hashes are alike, so that groups overflow.
        let hash = |slot: u32| (slot.wrapping_mul(0x9E_3779) % 977 * 16_411) & 0xFF_FFFF;
        let mut old = Vec::new();
        let count = 20_000;
        for slot in 0..count {
            if index.is_full() {
                old.push(index.grow(&reader, 19_000, hash));
            }
            index.insert(hash(slot), slot);
        }
        let found = |index: &Index, slot| {
            let by_reader = reader.find(hash(slot), |found| found == slot);
            let by_writer = index.find(hash(slot), |found| found == slot);
            assert_eq!(by_reader, by_writer.map(|(slot, _)| slot));
            by_writer.map(|(_, place)| place)
        };
        assert!((0..count).all(|slot| found(&index, slot).is_some()));
        for slot in (0..count).filter(|slot| slot % 3 != 0) {
            let place = found(&index, slot).unwrap();
            index.remove(hash(slot), place);
        }
        for slot in 0..count {
            assert_eq!(found(&index, slot).is_some(), slot % 3 == 0);
        }
        let mut left: Vec<u32> = index.slots().collect();
        left.sort_unstable();
        assert!(left.into_iter().eq((0..count).step_by(3)));
    }

    #[test]
    fn entries_that_went_past_are_forgotten_when_all_are_gone() {
        let (mut index, _reader) = Index::new();
        for slot in 0..40 {
            index.insert(7, slot);
        }
        for slot in 0..40 {
            let (_, place) = index.find(7, |found| found == slot).unwrap();
            index.remove(7, place);
        }
        assert!(
            index
                .groups()
                .iter()
                .all(|group| { group.tags.iter().all(|word| word.load(Relaxed) == 0) })
        );
    }
}
