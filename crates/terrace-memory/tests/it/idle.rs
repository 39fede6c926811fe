//! Entries that expire when they are not read, too early or too late.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use terrace_memory::{Attributes, Memory, Tick};

use crate::{Dice, NOW, PLAIN};

/// To within an eighth.
const IDLE: u64 = 800;
const EIGHTH: u64 = IDLE / 8;

type Cache = Memory<u64, u64>;

fn idle(millis: u64) -> Attributes {
    Attributes { idle: Some(Duration::from_millis(millis)), ..PLAIN }
}

fn cache() -> Cache {
    Memory::builder().shards(1).build()
}

#[test]
fn an_entry_that_is_not_read_expires() {
    for millis in [1, 7, 8, IDLE, 100_000] {
        let cache = cache();
        cache.insert(1, 1, idle(millis), Tick(50));
        let end = Tick(50 + millis);
        assert!(cache.contains(&1, Tick(end.0 - 1)));
        assert!(!cache.contains(&1, end));
        cache.for_each(end, |_, _| panic!("expired"));
        assert_eq!(cache.sweep(Tick(end.0 - 1), 10).removed, 0);
        assert_eq!(cache.sweep(end, 10).removed, 1);
        assert_eq!(cache.stats().expired, 1);
    }
}

#[test]
fn a_read_puts_off_the_end() {
    let cache = cache();
    cache.insert(1, 1, idle(IDLE), NOW);
    let mut now = NOW;
    for _ in 0..100 {
        now = Tick(now.0 + IDLE - EIGHTH - 1);
        assert_eq!(cache.get(&1, now), Some(1));
    }
    assert!(cache.contains(&1, Tick(now.0 + IDLE - 1)));
    assert_eq!(cache.get(&1, Tick(now.0 + IDLE)), None);
    assert_eq!(cache.stats().expired, 1);
}

#[test]
fn all_kinds_of_reads_put_it_off_and_looks_do_not() {
    let reads: [fn(&Cache, Tick) -> bool; 3] = [
        |cache, now| cache.get(&1, now).is_some(),
        |cache, now| cache.get_with(&1, now, |_| ()).is_some(),
        |cache, now| {
            let mut found = false;
            cache.get_many(&[1], now, |_, value| found = value.is_some());
            found
        },
    ];
    for read in reads {
        let cache = cache();
        cache.insert(1, 1, idle(IDLE), NOW);
        assert!(read(&cache, Tick(IDLE - 1)));
        assert!(read(&cache, Tick(2 * IDLE - 2)));
        assert!(!read(&cache, Tick(3 * IDLE - 2)));
    }
    let looks: [fn(&Cache, Tick); 5] = [
        |cache, now| assert!(cache.contains(&1, now)),
        |cache, now| assert_eq!(cache.peek_with(&1, now, |view| *view.value), Some(1)),
        |cache, now| cache.for_each(now, |key, _| assert_eq!(*key, 1)),
        |cache, now| assert_eq!(cache.hottest(9, now), [1]),
        |cache, now| assert_eq!(cache.sweep(now, 9).removed, 0),
    ];
    for look in looks {
        let cache = cache();
        cache.insert(1, 1, idle(IDLE), NOW);
        look(&cache, Tick(IDLE - 1));
        assert!(!cache.contains(&1, Tick(IDLE)));
    }
}

#[test]
fn the_end_is_right_to_within_an_eighth() {
    let mut dice = Dice(23);
    for millis in [1, 5, 8, 9, 100, IDLE, 12_345] {
        let mut early = 0;
        for _ in 0..200 {
            let cache = cache();
            cache.insert(1, 1, idle(millis), NOW);
            let (mut now, mut last) = (0, 0);
            loop {
                now += dice.roll(millis + 1) / (1 + dice.roll(8));
                if dice.roll(3) == 0 {
                    now += dice.roll(millis / 4 + 2);
                }
                let is_found = cache.get(&1, Tick(now)).is_some();
                if now < last + millis - millis / 8 {
                    assert!(is_found, "{now}, read at {last}, must not expire before {millis}");
                }
                if now >= last + millis {
                    assert!(!is_found, "{now}, read at {last}, has to expire after {millis}");
                }
                if !is_found {
                    early += u64::from(now < last + millis);
                    break;
                }
                last = now;
            }
            assert!(cache.is_empty());
        }
        assert!(millis >= 8 || early == 0, "less than eight milliseconds have no eighth");
    }
}

#[test]
fn it_never_lives_beyond_its_absolute_end() {
    let cache = cache();
    cache.insert(1, 1, Attributes { expires: Tick(3_000), ..idle(IDLE) }, NOW);
    for now in (0..3_000).step_by(7) {
        assert_eq!(cache.get(&1, Tick(now)), Some(1));
    }
    assert!(cache.contains(&1, Tick(2_999)));
    assert_eq!(cache.get(&1, Tick(3_000)), None);

    // Nor does it live that long when it is not read.
    cache.insert(1, 1, Attributes { expires: Tick(3_000), ..idle(IDLE) }, NOW);
    assert!(!cache.contains(&1, Tick(IDLE)));
    cache.insert(1, 1, Attributes { expires: Tick(10), ..idle(IDLE) }, NOW);
    assert!(!cache.contains(&1, Tick(10)));
}

#[test]
fn a_view_shows_the_absolute_end() {
    let cache = cache();
    let attributes = Attributes { expires: Tick(3_000), stamp: 4, ..idle(IDLE) };
    cache.insert(1, 1, attributes, NOW);
    cache.get(&1, Tick(500));
    assert_eq!(cache.peek_with(&1, Tick(500), |view| view.attributes), Some(attributes));
}

#[test]
fn the_absolute_end_can_be_moved() {
    let cache = cache();
    let stays = |until: u64| {
        for now in (0..until).step_by(50) {
            assert_eq!(cache.get(&1, Tick(now)), Some(1), "at {now} of {until}");
        }
        assert_eq!(cache.get(&1, Tick(until)), None);
    };
    cache.insert(1, 1, Attributes { expires: Tick(1_000), ..idle(IDLE) }, NOW);
    assert!(cache.set_expires(&1, Tick(5_000), NOW), "later");
    stays(5_000);
    cache.insert(1, 1, Attributes { expires: Tick(5_000), ..idle(IDLE) }, NOW);
    assert!(cache.set_expires(&1, Tick(1_000), NOW), "sooner");
    stays(1_000);
    cache.insert(1, 1, idle(IDLE), NOW);
    assert!(cache.set_expires(&1, Tick(100), NOW), "sooner than it would expire unread");
    stays(100);

    // It still expires when it is not read, and does not come back.
    cache.insert(1, 1, Attributes { expires: Tick(100), ..idle(IDLE) }, NOW);
    assert!(cache.set_expires(&1, Tick::NEVER, NOW));
    assert!(cache.contains(&1, Tick(IDLE - 1)));
    assert!(!cache.contains(&1, Tick(IDLE)));
    assert!(!cache.set_expires(&1, Tick::NEVER, Tick(IDLE)));
    assert!(!cache.contains(&1, Tick(IDLE)));
}

#[test]
fn a_new_value_begins_anew() {
    let cache = cache();
    cache.insert(1, 1, idle(IDLE), NOW);
    cache.insert(1, 2, idle(IDLE), Tick(700));
    assert!(cache.contains(&1, Tick(700 + IDLE - 1)));
    cache.insert(1, 3, PLAIN, Tick(700));
    assert_eq!(cache.get(&1, Tick(1 << 40)), Some(3), "and need not be one that expires");
    cache.insert(1, 4, idle(IDLE), NOW);
    assert!(!cache.contains(&1, Tick(IDLE)));
}

#[test]
fn entries_side_by_side_keep_their_own_times() {
    let cache = cache();
    let attributes = |key: u64| if key.is_multiple_of(3) { PLAIN } else { idle(key + 1) };
    for key in 0..1_000 {
        cache.insert(key, key, attributes(key), NOW);
    }
    for now in (0..1_100).step_by(50) {
        for key in 0..1_000_u64 {
            let is_alive = key.is_multiple_of(3) || now <= key;
            assert_eq!(cache.contains(&key, Tick(now)), is_alive, "{key} at {now}");
        }
    }
    cache.validate();
}

#[test]
fn slots_that_are_used_again_are_not_idle() {
    let cache = Memory::<u64, u64>::builder().max_entries(16).shards(1).build();
    for key in 0..1_000 {
        let attributes = if key % 2 == 0 { idle(10) } else { PLAIN };
        cache.insert(key, key, attributes, Tick(key));
    }
    cache.for_each(Tick(1_000), |_, view| {
        assert_eq!(view.attributes.idle.is_some(), *view.value % 2 == 0);
    });
    let mut odd = 0;
    cache.for_each(Tick(9_000), |key, _| {
        odd += 1;
        assert_eq!(key % 2, 1);
    });
    assert!(odd > 0);
}

#[test]
fn moving_the_absolute_end_is_no_use() {
    let cache = cache();
    cache.insert(1, 1, idle(100), NOW);
    assert!(cache.set_expires(&1, Tick(1_000_000), Tick(90)));
    assert!(cache.contains(&1, Tick(99)));
    assert!(!cache.contains(&1, Tick(100)));
}

#[test]
fn no_idle_time_is_longer_than_49_days() {
    const DAY: u64 = 24 * 60 * 60 * 1000;
    let cache = cache();
    cache.insert(1, 1, idle(100 * DAY), NOW);
    assert!(cache.contains(&1, Tick(49 * DAY)));
    assert!(!cache.contains(&1, Tick(50 * DAY)));
    cache.insert(1, 1, Attributes { idle: Some(Duration::MAX), ..PLAIN }, NOW);
    assert!(!cache.contains(&1, Tick(50 * DAY)));
}

#[test]
fn an_end_that_is_brought_forward_beside_readers_stays_there() {
    let cache = cache();
    for round in 0..2_000 {
        cache.insert(1, round, Attributes { expires: Tick(10_000), ..idle(500) }, NOW);
        let start = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                for now in 300..330 {
                    cache.get(&1, Tick(now));
                }
            });
            start.wait();
            assert!(cache.set_expires(&1, Tick(600), Tick(310)));
        });
        assert!(cache.contains(&1, Tick(599)) || !cache.contains(&1, Tick(520)));
        assert!(!cache.contains(&1, Tick(600)));
        cache.get(&1, Tick(590));
        assert!(!cache.contains(&1, Tick(600)));
    }
}
