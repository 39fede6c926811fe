//! Threads that come and go, that are many, and that read when they are about to end.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use terrace_memory::{Insert, Memory};

use crate::support::{Census, Tracked, alone, count};
use crate::{Dice, NOW, PLAIN, weighed};

const THREADS: u64 = 64;

#[test]
fn threads_come_and_go_and_read() {
    let census = Census::default();
    let cache = weighed::<Tracked>(20_000, 4).build();
    let (mut hits, mut misses) = (0, 0);
    for round in 0..count(20, 2_000) {
        let results: Vec<(u64, u64)> = thread::scope(|scope| {
            let threads: Vec<_> = (1..=THREADS)
                .map(|thread| {
                    let (cache, census) = (&cache, &census);
                    scope.spawn(move || come_and_go(cache, census, round * THREADS + thread))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (hit, missed) in results {
            hits += hit;
            misses += missed;
        }
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses), (hits, misses));
        // Those who are gone hold nothing.
        cache.sweep(NOW, usize::MAX);
        assert_eq!(census.bytes(), cache.bytes());
        assert_eq!(cache.stats().garbage_bytes, 0);
    }
    assert!(hits > 0 && misses > 0);
    cache.validate();
}

/// Reads and stores a little; says how many reads have found something, and how many have not.
fn come_and_go(cache: &Memory<u64, Tracked>, census: &Census, seed: u64) -> (u64, u64) {
    let mut dice = Dice(seed);
    let (mut hits, mut misses) = (0, 0);
    for _ in 0..20 {
        let key = dice.roll(100);
        match cache.get_with(&key, NOW, Tracked::number) {
            Some(number) => {
                assert_eq!(number, key);
                hits += 1;
            }
            None => misses += 1,
        }
        cache.insert(key, census.value(key, 200 + dice.roll(200)), PLAIN, NOW);
    }
    (hits, misses)
}

#[test]
fn reads_are_counted_exactly_however_many_threads_there_are() {
    // A few have counters of their own, all others share.
    let reads = count(2_000, 200_000);
    for threads in [1, 8, 17, THREADS] {
        let cache = Memory::<u64, u64>::builder().build();
        for key in 0..100 {
            cache.insert(key, key, PLAIN, NOW);
        }
        let meet = Barrier::new(threads as usize);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    // All are there before the first one goes.
                    cache.contains(&0, NOW);
                    meet.wait();
                    for read in 0..reads {
                        match read % 4 {
                            0 => assert_eq!(cache.get(&(read % 100), NOW), Some(read % 100)),
                            1 => assert_eq!(cache.get(&(1_000 + read), NOW), None),
                            2 => assert!(cache.get_with(&1, NOW, |_| ()).is_some()),
                            _ => cache.get_many(&[1, 1_000], NOW, |_, _| ()),
                        }
                        cache.peek_with(&1, NOW, |_| ());
                    }
                    meet.wait();
                });
            }
        });
        let stats = cache.stats();
        let quarter = threads * reads / 4;
        assert_eq!((stats.hits, stats.misses), (3 * quarter, 2 * quarter), "{threads} threads");
    }
}

#[test]
fn statistics_add_up_after_many_threads() {
    let cache = weighed::<u64>(20_000, 4).build();
    let rounds = count(5_000, 500_000);
    let sums: Vec<[u64; 5]> = thread::scope(|scope| {
        let threads: Vec<_> = (1..=8)
            .map(|seed| {
                let cache = &cache;
                scope.spawn(move || {
                    let mut dice = Dice(seed);
                    let [mut hits, mut misses, mut stored, mut replaced, mut refused] = [0; 5];
                    for _ in 0..rounds {
                        let key = dice.roll(300);
                        match dice.roll(4) {
                            0 => match cache.insert(key, 100 + dice.roll(200), PLAIN, NOW) {
                                Insert::Stored => stored += 1,
                                Insert::Replaced => (stored, replaced) = (stored + 1, replaced + 1),
                                Insert::NoRoom => refused += 1,
                                Insert::TooLarge => panic!("none is too large"),
                            },
                            _ if cache.get(&key, NOW).is_some() => hits += 1,
                            _ => misses += 1,
                        }
                    }
                    [hits, misses, stored, replaced, refused]
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let sum = |at: usize| sums.iter().map(|sums| sums[at]).sum::<u64>();
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses), (sum(0), sum(1)));
    assert_eq!((stats.inserts, stats.no_room), (sum(2), sum(4)));
    // One that has made way for the value that replaces it, where all room is needed, has been
    // replaced as well; also if readers who stood still kept the room from being used.
    let replaced = sum(3)..=sum(3) + sum(4);
    assert!(replaced.contains(&stats.replaced), "{} and not {replaced:?}", stats.replaced);
    assert_eq!(stats.entries, stats.inserts - stats.replaced - stats.evicted - stats.removed);
    cache.validate();
}

thread_local! {
    static LAST: RefCell<Vec<LastReader>> = const { RefCell::new(Vec::new()) };
}

/// Reads and stores when its thread ends.
struct LastReader {
    cache: Arc<Memory<u64, Tracked>>,
    census: Census,
    report: mpsc::Sender<Option<u64>>,
}

impl Drop for LastReader {
    fn drop(&mut self) {
        let (cache, census) = (&self.cache, &self.census);
        let number = cache.get_with(&1, NOW, |value| {
            // Neither a read within a read nor what it removes takes away what it holds.
            cache.insert(1, census.value(1, 200), PLAIN, NOW);
            assert_eq!(cache.get_with(&1, NOW, Tracked::number), Some(1));
            cache.sweep(NOW, usize::MAX);
            value.number()
        });
        assert!(cache.get_with(&2, NOW, |_| ()).is_none());
        self.report.send(number).unwrap();
    }
}

#[test]
fn a_thread_may_read_when_it_ends() {
    let census = Census::default();
    let cache = Arc::new(weighed::<Tracked>(20_000, 1).build());
    cache.insert(1, census.value(1, 200), PLAIN, NOW);
    let (report, reports) = mpsc::channel();
    let mut expected = 0;
    let before = cache.stats();
    for round in 0..count(5, 500) {
        let threads: Vec<_> = (0..16)
            .map(|thread| {
                let (cache, census) = (Arc::clone(&cache), census.clone());
                let report = report.clone();
                thread::spawn(move || {
                    // Of what a thread keeps, the order in which it is dropped is not known:
                    // before what the cache keeps for it, after it, or where there is no such.
                    let reads_first = (round + thread) % 3;
                    if reads_first == 1 {
                        assert!(cache.contains(&1, NOW));
                    }
                    let reader = LastReader { cache: Arc::clone(&cache), census, report };
                    LAST.with_borrow_mut(|last| last.push(reader));
                    if reads_first == 2 {
                        assert!(cache.contains(&1, NOW));
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
            expected += 1;
        }
    }
    drop(report);
    let reports: Vec<_> = reports.into_iter().collect();
    assert_eq!(reports, vec![Some(1); expected]);
    let stats = cache.stats();
    let expected = expected as u64;
    assert_eq!(stats.hits - before.hits, 2 * expected);
    assert_eq!(stats.misses - before.misses, expected);
    // None of them has left anything held.
    cache.sweep(NOW, usize::MAX);
    assert_eq!((census.values(), cache.len()), (1, 1));
    cache.validate();
}

#[test]
fn two_caches_are_read_within_each_other() {
    alone("threads::two_caches_are_read_within_each_other", || {
        let (outside, inside) = (Census::default(), Census::default());
        let outer = weighed::<Tracked>(10_000, 1).build();
        let inner = weighed::<Tracked>(10_000, 1).build();
        outer.insert(1, outside.value(1, 200), PLAIN, NOW);
        inner.insert(2, inside.value(2, 200), PLAIN, NOW);
        let drain = |cache: &Memory<u64, Tracked>| {
            cache.clear();
            for _ in 0..10 {
                cache.sweep(NOW, usize::MAX);
            }
        };

        let seen = outer.get_with(&1, NOW, |first| {
            let seen = inner.get_with(&2, NOW, |second| {
                let again = outer.get_with(&1, NOW, Tracked::number);
                drain(&outer);
                drain(&inner);
                assert_eq!((outside.values(), inside.values()), (1, 1), "both are held");
                (again, first.number(), second.number())
            });
            assert_eq!(seen, Some((Some(1), 1, 2)));
            drain(&outer);
            drain(&inner);
            assert_eq!(inside.values(), 0, "the inner one was let go");
            assert_eq!(outside.values(), 1, "the outer one is still held");
            first.number()
        });
        assert_eq!(seen, Some(1));
        drain(&outer);
        assert_eq!(outside.values(), 0);
        outer.validate();
        inner.validate();
    });
}

#[test]
fn threads_read_two_caches_within_each_other() {
    alone("threads::threads_read_two_caches_within_each_other", || {
        let census = Census::default();
        let caches = [weighed::<Tracked>(10_000, 2).build(), weighed::<Tracked>(10_000, 2).build()];
        let store = |which: usize, key| {
            caches[which].insert(key, census.value(key, 200), PLAIN, NOW);
        };
        let done = AtomicBool::new(false);
        let rounds = count(1_000, 1_000_000);
        thread::scope(|scope| {
            let (caches, done) = (&caches, &done);
            for seed in 1..=3 {
                scope.spawn(move || {
                    let mut dice = Dice(seed);
                    while !done.load(Relaxed) {
                        let (a, b, which) = (dice.roll(60), dice.roll(60), dice.roll(2) as usize);
                        caches[which].get_with(&a, NOW, |first| {
                            let inner = caches[1 - which].get_with(&b, NOW, |second| {
                                assert_eq!(first.number(), a);
                                second.number()
                            });
                            assert!(inner.is_none_or(|number| number == b));
                            assert_eq!(first.number(), a);
                        });
                    }
                });
            }
            let writers: Vec<_> = (4..6)
                .map(|seed| {
                    scope.spawn(move || {
                        let mut dice = Dice(seed);
                        for _ in 0..rounds {
                            store(dice.roll(2) as usize, dice.roll(60));
                        }
                    })
                })
                .collect();
            let results: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
            done.store(true, Relaxed);
            for result in results {
                result.unwrap();
            }
        });
        for cache in &caches {
            cache.sweep(NOW, usize::MAX);
            cache.validate();
        }
        assert_eq!(census.bytes(), caches[0].bytes() + caches[1].bytes());
    });
}
