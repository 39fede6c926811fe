//! A pass: threads that do the same deed to an engine, for some time or so many times.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::deed::{Deed, Does, Evict, Get, GetMany, GetOrInsert, Grow, Insert, Mix, Seen};
use super::keys::Keys;
use crate::engines::{Key, Memory};
use crate::harness::race;
use crate::kind::Kind as _;

/// Operations between two looks at the clock, in passes that are not about latency.
const AT_ONCE: usize = 256;

/// How long threads go on, and what they measure.
#[derive(Clone, Copy, Debug)]
pub(super) enum Length {
    /// Throughput, until the time is up.
    Time(Duration),
    /// So many deeds. One in so many of them is timed.
    Deeds(usize, usize),
}

/// What came of a pass.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// Millions a second, all threads together.
    pub(super) mops: f64,
    /// Of the deeds that were timed, in nanoseconds.
    pub(super) times: Vec<u32>,
    pub(super) seen: Seen,
}

impl Pass {
    /// Goes on where each of the threads was the last time, which is `at`.
    pub(super) fn run<M: Memory>(
        engine: &M,
        deed: Deed,
        keys: &[Keys<M::Kind>],
        at: &mut [usize],
        length: Length,
    ) -> Result<Self> {
        match deed {
            Deed::Get => Self::of::<M, Get>(engine, keys, at, length),
            Deed::GetMany => Self::of::<M, GetMany>(engine, keys, at, length),
            Deed::GetOrInsert => Self::of::<M, GetOrInsert>(engine, keys, at, length),
            Deed::Insert => Self::of::<M, Insert>(engine, keys, at, length),
            Deed::Mix => Self::of::<M, Mix>(engine, keys, at, length),
            Deed::Evict => Self::of::<M, Evict>(engine, keys, at, length),
            Deed::Grow => Self::of::<M, Grow>(engine, keys, at, length),
        }
        .checked(deed)
    }

    fn of<M: Memory, D: Does<M>>(
        engine: &M,
        keys: &[Keys<M::Kind>],
        at: &mut [usize],
        length: Length,
    ) -> Self {
        let from = &*at;
        let race = race(keys.len(), |thread| {
            let (keys, from) = (&keys[thread], from[thread]);
            match length {
                Length::Time(time) => timed::<M, D>(engine, keys, from, time),
                Length::Deeds(deeds, every) => sampled::<M, D>(engine, keys, from, deeds, every),
            }
        });
        let mut pass = Self::default();
        for (number, part) in race.results.into_iter().enumerate() {
            pass.mops += part.operations as f64 / part.time.as_secs_f64() / 1e6;
            pass.times.extend(part.times);
            pass.seen.add(part.seen);
            at[number] += part.operations;
        }
        pass
    }

    fn checked(self, deed: Deed) -> Result<Self> {
        self.seen.check(deed)?;
        Ok(self)
    }

    /// What 999 of 1,000 deeds took at most, and the one that took longest.
    pub(super) fn slowest(&mut self) -> [f64; 2] {
        let most = self.times.iter().max().copied().unwrap_or_default();
        let nearly_last = (self.times.len() * 999).div_ceil(1000).saturating_sub(1);
        let p999 = if self.times.is_empty() {
            most
        } else {
            *self.times.select_nth_unstable(nearly_last).1
        };
        [p999.into(), most.into()]
    }

    pub(super) fn hit_percent(&self) -> f64 {
        100.0 * self.seen.hits as f64 / self.seen.reads.max(1) as f64
    }
}

/// What one thread did.
struct Part {
    operations: usize,
    time: Duration,
    times: Vec<u32>,
    seen: Seen,
}

fn timed<M: Memory, D: Does<M>>(
    engine: &M,
    keys: &Keys<M::Kind>,
    from: usize,
    time: Duration,
) -> Part {
    let begun = Instant::now();
    let (mut key, mut seen, mut operations) = (M::Kind::key(0), Seen::default(), 0);
    loop {
        seen.add(some::<M, D>(engine, keys, from + operations, &mut key));
        operations += AT_ONCE;
        let so_far = begun.elapsed();
        if so_far >= time {
            return Part { operations, time: so_far, times: Vec::new(), seen };
        }
    }
}

#[inline(never)]
fn some<M: Memory, D: Does<M>>(
    engine: &M,
    keys: &Keys<M::Kind>,
    from: usize,
    key: &mut Key<M>,
) -> Seen {
    let mut seen = Seen::default();
    for at in (from..from + AT_ONCE).step_by(D::OPERATIONS) {
        D::does(engine, keys, at, key, &mut seen);
    }
    seen
}

fn sampled<M: Memory, D: Does<M>>(
    engine: &M,
    keys: &Keys<M::Kind>,
    from: usize,
    deeds: usize,
    every: usize,
) -> Part {
    let (mut key, mut seen) = (M::Kind::key(0), Seen::default());
    let mut times = Vec::with_capacity(deeds / every + 1);
    let begun = Instant::now();
    for deed in 0..deeds {
        let at = from + deed * D::OPERATIONS;
        if deed % every == 0 {
            let begun = Instant::now();
            D::does(engine, keys, at, &mut key, &mut seen);
            let took = begun.elapsed().as_nanos();
            times.push(u32::try_from(took).unwrap_or(u32::MAX));
        } else {
            D::does(engine, keys, at, &mut key, &mut seen);
        }
    }
    Part { operations: deeds * D::OPERATIONS, time: begun.elapsed(), times, seen }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::rwlock_hashmap::RwLockHashMap;
    use crate::kind::Integers;
    use crate::load::Draw;
    use crate::suites::memory::keys::Made;

    #[test]
    fn the_slowest_are_the_last_of_all() {
        let mut pass = Pass { times: (1..=2000).rev().collect(), ..Pass::default() };
        assert_eq!(pass.slowest(), [1998.0, 2000.0]);
        assert_eq!(Pass::default().slowest(), [0.0, 0.0]);
    }

    #[test]
    fn passes_go_on_where_the_last_one_was_and_notice_what_is_missing() {
        let engine = RwLockHashMap::<Integers>::with_room_for(0);
        let made = |made| Keys::<Integers>::new(2, made, 256, Draw::Uniform, 100);
        let (ready, numbers) = (made(Made::Keys), made(Made::Numbers));
        let mut at = [0, 0];
        let mut run =
            |deed, keys: &_| Pass::run(&engine, deed, keys, &mut at, Length::Deeds(512, 8));
        assert!(run(Deed::Get, &ready).is_err());

        let first = run(Deed::GetOrInsert, &numbers).unwrap();
        assert_eq!((first.seen.reads, first.times.len()), (1024, 128));
        assert!((80.0..95.0).contains(&first.hit_percent()));
        assert!(run(Deed::Get, &ready).is_ok());
        assert!(run(Deed::GetMany, &ready).is_ok());
        let before = engine.entries().unwrap();
        run(Deed::Insert, &numbers).unwrap();
        assert_eq!(engine.entries(), Some(before + 1024));
        let many = 512 * 32;
        assert_eq!(at, [512 * 4 + many; 2]);
    }
}
