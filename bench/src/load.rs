//! Keys, values and the order in which they are asked for: the same for every engine.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The skew of the Zipf distributions: that of YCSB and most papers on caches.
const SKEW: f64 = 0.99;

/// A small generator of random numbers (SplitMix64), with a seed so that runs repeat.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed(self.0)
    }

    /// From 0 to below 1.
    pub fn share(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0 to below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.number()) * end as u128) >> 64) as usize
    }
}

/// A permutation of all 64-bit numbers that leaves no pattern.
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// How keys are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    Zipf,
    Uniform,
}

/// Draws numbers from 0 to below a count.
#[derive(Debug)]
pub struct Drawer {
    count: usize,
    /// The shares of the ranks, summed up; empty when all are alike.
    sums: Vec<f64>,
    /// Which number has which rank: what is asked for often was not stored side by side.
    numbers: Vec<usize>,
}

impl Drawer {
    #[must_use]
    pub fn new(draw: Draw, count: usize) -> Self {
        let mut sum = 0.0;
        let ranks = 1..=if draw == Draw::Zipf { count } else { 0 };
        let sums = ranks.map(|rank| {
            sum += (rank as f64).powf(-SKEW);
            sum
        });
        let sums = sums.collect();
        let mut random = Random::new(count as u64);
        let mut numbers: Vec<usize> = (0..count).collect();
        for end in (1..count).rev() {
            numbers.swap(end, random.below(end + 1));
        }
        Self { count, sums, numbers }
    }

    pub fn draw(&self, random: &mut Random) -> usize {
        match self.sums.last() {
            None => random.below(self.count),
            Some(whole) => {
                let at = random.share() * whole;
                let rank = self.sums.partition_point(|sum| *sum < at);
                self.numbers[rank.min(self.count - 1)]
            }
        }
    }
}

/// The key with this number: all differ, and neighbours are far apart.
#[must_use]
pub fn integer_key(number: usize) -> u64 {
    mixed(number as u64 + 1)
}

/// The value under an integer key.
#[must_use]
pub fn integer_value(key: u64) -> u64 {
    !key
}

/// The text key with this number.
#[must_use]
pub fn text_key(number: usize) -> String {
    format!("user:{number:08}")
}

/// What a service would keep: a record with an identity and two texts of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub id: u64,
    pub name: String,
    pub email: String,
}

impl User {
    /// The user under a text key.
    #[must_use]
    pub fn of(key: &str) -> Self {
        Self { id: id_of(key), name: format!("Name of {key}"), email: format!("{key}@example.com") }
    }
}

/// The identity of the user under a text key.
#[must_use]
pub fn id_of(key: &str) -> u64 {
    key.bytes().fold(0_u64, |id, byte| id.wrapping_mul(31).wrapping_add(byte.into()))
}

/// Where users are loaded from: counts, and takes its time.
#[derive(Debug)]
pub struct Source {
    loads: AtomicU64,
    delay: Duration,
}

impl Source {
    #[must_use]
    pub const fn new(delay: Duration) -> Self {
        Self { loads: AtomicU64::new(0), delay }
    }

    #[must_use]
    pub fn loads(&self) -> u64 {
        self.loads.load(Relaxed)
    }

    #[must_use]
    pub fn delay(&self) -> Duration {
        self.delay
    }

    pub async fn load(&self, key: &str) -> User {
        self.loads.fetch_add(1, Relaxed);
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        User::of(key)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_differ() {
        let integers: HashSet<_> = (0..1_000_000).map(integer_key).collect();
        assert_eq!(integers.len(), 1_000_000);
        let ids: HashSet<_> = (0..100_000).map(|number| id_of(&text_key(number))).collect();
        assert_eq!(ids.len(), 100_000);
    }

    #[test]
    fn zipf_favours_the_first_and_uniform_nobody() {
        let mut random = Random::new(1);
        let mut firsts = |draw| {
            let drawer = Drawer::new(draw, 1000);
            let first = drawer.numbers[0];
            (0..100_000).filter(|_| drawer.draw(&mut random) == first).count()
        };
        // One in 7.7, and one in 1000.
        assert!((12_000..14_000).contains(&firsts(Draw::Zipf)));
        assert!((50..200).contains(&firsts(Draw::Uniform)));
    }
}
