//! Keys, values and the order in which they are asked for: the same for every engine.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

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
#[must_use]
pub fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// How keys are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Draw {
    Uniform,
    /// The larger the skew, the more often what is asked for often.
    Zipf {
        skew: f64,
    },
}

impl Draw {
    /// With the skew of YCSB and most papers on caches.
    pub const ZIPF: Self = Self::Zipf { skew: 0.99 };
}

/// Draws numbers from 0 to below a count.
#[derive(Debug)]
pub struct Drawer {
    /// The shares of the ranks, summed up; empty when all are alike.
    sums: Vec<f64>,
    /// Where in `sums` each of equal parts of the whole begins: drawing looks into one of them.
    parts: Vec<usize>,
    /// Which number has which rank: what is asked for often was not stored side by side.
    numbers: Vec<u32>,
}

impl Drawer {
    #[must_use]
    pub fn new(draw: Draw, count: usize) -> Self {
        let mut sum = 0.0;
        let sums: Vec<f64> = match draw {
            Draw::Uniform => Vec::new(),
            Draw::Zipf { skew } => (1..=count)
                .map(|rank| {
                    sum += (rank as f64).powf(-skew);
                    sum
                })
                .collect(),
        };
        let begin = |part: usize| {
            let at = part as f64 / PARTS as f64 * sum;
            sums.partition_point(|sum| *sum < at)
        };
        let parts = (0..=PARTS).map(begin).collect();
        let mut random = Random::new(count as u64);
        let mut numbers: Vec<u32> = (0..count as u32).collect();
        for end in (1..count).rev() {
            numbers.swap(end, random.below(end + 1));
        }
        Self { sums, parts, numbers }
    }

    pub fn draw(&self, random: &mut Random) -> usize {
        let rank = match self.sums.last() {
            None => random.below(self.numbers.len()),
            Some(whole) => {
                let share = random.share();
                let at = share * whole;
                let part = (share * PARTS as f64) as usize;
                let (from, to) = (self.parts[part], self.parts[part + 1]);
                from + self.sums[from..to].partition_point(|sum| *sum < at)
            }
        };
        self.numbers[rank.min(self.numbers.len() - 1)] as usize
    }
}

const PARTS: usize = 1 << 16;

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
    is_down: bool,
}

/// The source could not be asked.
#[derive(Clone, Copy, Debug)]
pub struct Down;

impl std::fmt::Display for Down {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("the source is down")
    }
}

impl std::error::Error for Down {}

impl Source {
    #[must_use]
    pub const fn new(delay: Duration) -> Self {
        Self { loads: AtomicU64::new(0), delay, is_down: false }
    }

    /// One that fails, after as long as it would take to succeed.
    #[must_use]
    pub const fn down(delay: Duration) -> Self {
        Self { is_down: true, ..Self::new(delay) }
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

    /// # Errors
    /// It is down.
    pub async fn try_load(&self, key: &str) -> Result<User, Down> {
        let user = self.load(key).await;
        if self.is_down { Err(Down) } else { Ok(user) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_differ() {
        let ids: HashSet<_> = (0..100_000).map(|number| id_of(&text_key(number))).collect();
        assert_eq!(ids.len(), 100_000);
    }

    #[test]
    fn zipf_favours_the_first_and_uniform_nobody() {
        let mut random = Random::new(1);
        let mut firsts = |draw| {
            let drawer = Drawer::new(draw, 1000);
            let first = drawer.numbers[0] as usize;
            (0..100_000).filter(|_| drawer.draw(&mut random) == first).count()
        };
        // One in 7.7, and one in 1000.
        assert!((12_000..14_000).contains(&firsts(Draw::ZIPF)));
        assert!((50..200).contains(&firsts(Draw::Uniform)));
    }
}
