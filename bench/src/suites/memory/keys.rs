//! The keys of a thread, drawn before anything is timed.

use crate::kind::Kind;
use crate::load::{Draw, Drawer, Random};

#[derive(Debug)]
pub(super) struct Keys<K: Kind> {
    /// Gone through as often as it takes. A power of two long, like the numbers, or empty.
    ready: Vec<K::Key>,
    /// For draws that must not come again in the same order, or a cache could learn it: these are
    /// many more, and their keys are made when they are asked for.
    numbers: Vec<u32>,
    /// From here on, numbers belong to keys that nobody else has.
    first_new: u64,
}

/// What is made before anything is timed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Made {
    Keys,
    Numbers,
}

impl<K: Kind> Keys<K> {
    /// For so many threads, each with as many draws of one of `among` keys.
    pub(super) fn new(
        threads: u64,
        made: Made,
        draws: usize,
        draw: Draw,
        among: usize,
    ) -> Vec<Self> {
        let drawer = Drawer::new(draw, among);
        let mut random = Random::new(42);
        let keys = |thread| {
            let mut keys = Self { ready: Vec::new(), numbers: Vec::new(), first_new: thread << 36 };
            let drawn = (0..draws).map(|_| drawer.draw(&mut random));
            match made {
                Made::Keys => keys.ready = drawn.map(|number| K::key(number as u64)).collect(),
                Made::Numbers => keys.numbers = drawn.map(|number| number as u32).collect(),
            }
            keys
        };
        (1..=threads).map(keys).collect()
    }

    #[inline]
    pub(super) fn ready(&self, at: usize) -> &K::Key {
        &self.ready[at & (self.ready.len() - 1)]
    }

    #[inline]
    pub(super) fn ready_from(&self, at: usize, count: usize) -> &[K::Key] {
        let at = at & (self.ready.len() - 1);
        &self.ready[at..at + count]
    }

    /// Makes `key` the one that is drawn.
    #[inline]
    pub(super) fn draw(&self, at: usize, key: &mut K::Key) {
        K::rename(key, self.numbers[at & (self.numbers.len() - 1)].into());
    }

    /// The number of a key that is nobody's.
    #[inline]
    pub(super) fn new_number(&self, at: usize) -> u64 {
        self.first_new + at as u64
    }
}
