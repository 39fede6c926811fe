//! A ghost: what is remembered of keys whose entries were evicted.

use crate::prefetch;

/// Fingerprints of evicted keys: two bytes a key, in buckets of a fixed size from which the
/// oldest falls out.
///
/// The high bits of a hash choose the bucket, its low 16 bits are the fingerprint. A key can
/// therefore be taken for another, which costs nothing but a worse choice.
pub(crate) struct Ghost {
    buckets: Box<[Bucket]>,
}

/// From the newest fingerprint to the oldest; 0 stands for none. In one cache line.
#[derive(Clone, Copy, Default)]
#[repr(align(32))]
struct Bucket([u16; WAYS]);

const WAYS: usize = 16;

impl Ghost {
    /// For a shard of so many entries: it remembers a fifth more.
    pub(crate) fn new(entries: usize) -> Self {
        Self { buckets: vec![Bucket::default(); buckets(entries)].into() }
    }

    /// Remembers a key by 24 bits of its hash.
    #[inline]
    pub(crate) fn push(&mut self, hash: u32) {
        let Some(Bucket(bucket)) = self.bucket(hash) else { return };
        bucket.copy_within(..WAYS - 1, 1);
        bucket[0] = fingerprint(hash);
    }

    /// Forgets a key. Whether it was remembered.
    #[inline]
    pub(crate) fn take(&mut self, hash: u32) -> bool {
        let wanted = fingerprint(hash);
        let Some(Bucket(bucket)) = self.bucket(hash) else { return false };
        // Most keys are not there. Without an early end this is a few vector instructions.
        let equal = |&found: &u16| if found == wanted { u16::MAX } else { 0 };
        if bucket.iter().map(equal).fold(0, |any, equal| any | equal) == 0 {
            return false;
        }
        let Some(at) = bucket.iter().position(|&found| found == wanted) else { return false };
        bucket.copy_within(at + 1.., at);
        bucket[WAYS - 1] = 0;
        true
    }

    /// Asks for what is needed to remember a key, or to look for it.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u32) {
        prefetch::line(self.buckets.as_ptr().wrapping_add(self.at(hash)));
    }

    /// Adapts to so many entries. Nothing is lost where the buckets are doubled; otherwise keys
    /// at the edges of buckets may be.
    pub(crate) fn resize(&mut self, entries: usize) {
        let (old, new) = (self.buckets.len(), buckets(entries));
        if new != old {
            // The keys of a new bucket were in this one.
            let before = |at| self.buckets.get(at * old / new).copied().unwrap_or_default();
            self.buckets = (0..new).map(before).collect();
        }
    }

    fn bucket(&mut self, hash: u32) -> Option<&mut Bucket> {
        let at = self.at(hash);
        self.buckets.get_mut(at)
    }

    fn at(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.buckets.len() as u64) >> 24) as usize
    }
}

fn buckets(entries: usize) -> usize {
    ((entries + entries / 5) / WAYS).max(1)
}

fn fingerprint(hash: u32) -> u16 {
    // The mask leaves 16 bits.
    u16::try_from(hash & 0xffff).unwrap_or_default().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hash in bucket `bucket` of 8.
    fn hash(bucket: u32, fingerprint: u32) -> u32 {
        bucket << 21 | fingerprint
    }

    fn ghost() -> Ghost {
        let ghost = Ghost::new(8 * WAYS * 5 / 6 + 1);
        assert_eq!(ghost.buckets.len(), 8);
        ghost
    }

    #[test]
    fn a_key_is_remembered_once() {
        let mut ghost = ghost();
        for key in [hash(0, 7), hash(7, 7), hash(7, 0xffff), 0, 0xff_ffff] {
            assert!(!ghost.take(key));
            ghost.push(key);
            assert!(ghost.take(key));
            assert!(!ghost.take(key));
        }
    }

    #[test]
    fn the_oldest_of_a_bucket_falls_out() {
        let mut ghost = ghost();
        ghost.push(hash(2, 1));
        for key in 0..17 {
            ghost.push(hash(3, 100 + key));
        }
        assert!(!ghost.take(hash(3, 100)));
        assert!(ghost.take(hash(3, 105)));
        // There is room for one again, and the others have not moved.
        ghost.push(hash(3, 200));
        assert!(ghost.take(hash(3, 101)) && ghost.take(hash(3, 116)) && ghost.take(hash(3, 200)));
        assert!(ghost.take(hash(2, 1)));
        // The last of a full bucket is taken for good, too.
        for key in 0..16 {
            ghost.push(hash(4, 100 + key));
        }
        assert!(ghost.take(hash(4, 100)) && !ghost.take(hash(4, 100)));
    }

    #[test]
    fn doubling_loses_nothing() {
        let mut ghost = ghost();
        let keys: Vec<u32> = (0..8).flat_map(|at| [hash(at, 3), hash(at, 0xfff3)]).collect();
        for &key in &keys {
            ghost.push(key);
        }
        ghost.resize(32 * WAYS * 5 / 6 + 1);
        assert_eq!(ghost.buckets.len(), 32);
        assert!(keys.iter().all(|&key| ghost.take(key)));
        ghost.resize(0);
        assert_eq!(ghost.buckets.len(), 1);
    }

    #[test]
    fn few_keys_are_taken_for_others() {
        let mut ghost = Ghost::new(4_096);
        let key = |n: u32| n.wrapping_mul(0x9e37_79b9) >> 8;
        for n in 0..100_000 {
            ghost.push(key(n));
        }
        let mistaken = (100_000..200_000).filter(|&n| ghost.take(key(n))).count();
        assert!(mistaken < 300, "{mistaken} of 100000");
    }
}
