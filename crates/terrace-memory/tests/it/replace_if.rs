//! A lower stamp that overwrites a higher one: threads race to store at the same few keys.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::thread;

use terrace_memory::{Attributes, Cause, Memory, Replace, View};

use crate::{Dice, NOW, PLAIN, Weigh, weighed};

const THREADS: u64 = 4;
const ROUNDS: u64 = 30_000;
const KEYS: u64 = 3;

/// A reader that the system stops for a while may keep a value from being stored, and the one before
/// it goes then: what was seen before says nothing any more.
fn has_stalled(cache: &Memory<u64, u64>) -> bool {
    cache.stats().no_room > 0
}

#[test]
fn a_lower_stamp_never_overwrites_a_higher_one() {
    let is_through = || {
        let cache = Memory::<u64, u64>::builder().shards(2).build();
        let start = Barrier::new(THREADS as usize);
        let highest: Vec<[u64; KEYS as usize]> = thread::scope(|scope| {
            let racers: Vec<_> = (1..=THREADS)
                .map(|seed| {
                    let (cache, start) = (&cache, &start);
                    scope.spawn(move || {
                        start.wait();
                        race(cache, Dice(seed))
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        cache.validate();
        if has_stalled(&cache) {
            return false;
        }
        for key in 0..KEYS {
            let expected = highest.iter().map(|highest| highest[key as usize]).max();
            assert_eq!(cache.get(&key, NOW), expected, "the highest stamp wins");
        }
        true
    };
    assert!((0..50).any(|_| is_through()), "readers stall all the time");
}

/// Stores values whose stamps rise, by and large, and sees that no stamp ever goes down.
fn race(cache: &Memory<u64, u64>, mut dice: Dice) -> [u64; KEYS as usize] {
    let mut highest = [0; KEYS as usize];
    let mut seen = [0; KEYS as usize];
    for round in 0..ROUNDS {
        let (key, stamp) = (dice.roll(KEYS), round + 1 + dice.roll(64));
        let outcome = store_if_newer(cache, key, stamp, stamp);
        let present = cache.peek_with(&key, NOW, stamp_of).unwrap_or(0);

        let (highest, seen) = (&mut highest[key as usize], &mut seen[key as usize]);
        if present < stamp || present < *seen {
            let what =
                format!("{present} is left of {stamp}, which was {outcome:?}, and of {seen}");
            assert!(has_stalled(cache), "{what}");
            break;
        }
        *seen = present;
        *highest = stamp.max(*highest);
    }
    highest
}

/// The stamp of an entry whose value is its stamp.
fn stamp_of(view: View<'_, u64>) -> u64 {
    assert_eq!(*view.value, view.attributes.stamp, "value and stamp are of different entries");
    view.attributes.stamp
}

fn store_if_newer(cache: &Memory<u64, u64>, key: u64, value: u64, stamp: u64) -> Replace {
    cache.replace_if(key, value, Attributes { stamp, ..PLAIN }, NOW, |present| {
        present.is_none_or(|present| present.attributes.stamp < stamp)
    })
}

/// A value that counts the steps that led to it.
struct Steps {
    count: u64,
    weight: u64,
}

impl Weigh for Steps {
    fn weight(&self) -> u64 {
        self.weight
    }
}

/// The key that all threads count up.
const COUNTER: u64 = 0;

#[test]
fn the_question_and_the_store_are_one_step() {
    for shards in [1, 4] {
        // Room is short: it has to be made for most steps, and now and then it costs the counter.
        let evicted = Arc::new(AtomicU64::new(0));
        let cache = weighed::<Steps>(20_000, shards)
            .listener({
                let evicted = Arc::clone(&evicted);
                move |&key, steps, cause| {
                    if key == COUNTER && matches!(cause, Cause::Evicted | Cause::Removed) {
                        evicted.fetch_add(steps.count, Relaxed);
                    }
                }
            })
            .build();
        let steps: u64 = thread::scope(|scope| {
            let threads: Vec<_> = (1..=THREADS)
                .map(|seed| {
                    let cache = &cache;
                    scope.spawn(move || count_up(cache, Dice(seed)))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        cache.validate();
        let last = cache.peek_with(&COUNTER, NOW, |view| view.value.count).unwrap_or(0);
        assert_eq!(evicted.load(Relaxed) + last, steps, "a step is lost");
    }
}

/// Replaces a count by the next one, if no other thread was faster, next to stores that need
/// room. Says how many steps that were.
fn count_up(cache: &Memory<u64, Steps>, mut dice: Dice) -> u64 {
    let mut steps = 0;
    for _ in 0..ROUNDS / 4 {
        let known = cache.peek_with(&COUNTER, NOW, |view| view.value.count);
        let next = Steps { count: known.unwrap_or(0) + 1, weight: 500 + dice.roll(19_000) };
        let mut asked = 0;
        let outcome = cache.replace_if(COUNTER, next, PLAIN, NOW, |present| {
            asked += 1;
            present.map(|view| view.value.count) == known
        });
        assert_eq!(asked, 1, "the question is asked once");
        match outcome {
            Replace::Replaced => assert!(known.is_some()),
            Replace::Stored => assert!(known.is_none()),
            // Without room the counter is removed, with what it has counted.
            Replace::Refused | Replace::NoRoom => continue,
            Replace::TooLarge => panic!("it fits"),
        }
        steps += 1;
        let filler = Steps { count: 0, weight: 500 + dice.roll(5_000) };
        cache.insert(1 + dice.roll(100), filler, PLAIN, NOW);
    }
    steps
}

#[test]
fn the_question_sees_what_is_there() {
    let cache = Memory::<u64, u64>::builder().build();
    let outcome = cache.replace_if(1, 10, PLAIN, NOW, |present| present.is_none());
    assert_eq!(outcome, Replace::Stored);
    let outcome = cache.replace_if(1, 20, PLAIN, NOW, |present| *present.unwrap().value == 10);
    assert_eq!(outcome, Replace::Replaced);
    let outcome = cache.replace_if(1, 30, PLAIN, NOW, |present| *present.unwrap().value == 10);
    assert_eq!(outcome, Replace::Refused);
    assert_eq!(cache.get(&1, NOW), Some(20));
    let stats = cache.stats();
    assert_eq!((stats.inserts, stats.replaced, stats.refused), (2, 1, 1));
}
