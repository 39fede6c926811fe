//! What hits have spared the source: an estimate from what loads took and cost.

use std::sync::Arc;
use std::time::Duration;

use terrace::{BuildError, Disk, LoadError, LoadMany, Loaded, Memory, SpaceStats, Stats, Terrace};
use terrace_test::ManualClock;

use crate::support::{Refused, ms};

/// A cache whose loaders take time by this clock.
async fn bed(directory: &tempfile::TempDir) -> (Terrace, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    let builder = Terrace::builder().clock(Arc::clone(&clock) as _);
    let builder = builder.memory(Memory::bytes(1 << 20));
    (builder.tier("disk", Disk::at(directory.path())).build().await.unwrap(), clock)
}

fn of_squares(stats: &Stats) -> &SpaceStats {
    stats.spaces.iter().find(|space| &*space.name == "square").unwrap()
}

#[tokio::test]
async fn each_hit_saves_a_load_of_mean_time_and_cost() {
    let directory = tempfile::tempdir().unwrap();
    let (terrace, clock) = bed(&directory).await;
    let squares = terrace.space::<u64, u64>("square").load_cost(2.0).build().unwrap();
    assert_eq!(terrace.stats().await.savings(), terrace::Savings::default());
    let load = |key: u64, cost: f64| {
        let clock = Arc::clone(&clock);
        async move {
            clock.advance(ms(100 * key));
            Ok::<_, Refused>(Loaded::value(key * key).cost(cost))
        }
    };
    // Loads of 100 and 300 ms, for 2 and 6: 200 ms and 4 for each on average.
    squares.get_or_load(&1, |_| load(1, 0.0)).await.unwrap();
    squares.get_or_load(&3, |_| load(3, 4.0)).await.unwrap();
    let before = terrace.stats().await;
    assert_eq!((of_squares(&before).loaded, of_squares(&before).load_cost), (2, 8.0));
    assert_eq!(before.savings().values, 0);
    for _ in 0..5 {
        squares.get_or_load(&1, |_| load(1, 0.0)).await.unwrap();
    }
    assert!(squares.get(&3).await.unwrap().is_some());
    let savings = terrace.stats().await.savings();
    assert_eq!((savings.values, savings.cost), (6, 24.0));
    let error = savings.time.abs_diff(Duration::from_millis(1200));
    assert!(error < ms(10), "{:?}", savings.time);
}

#[tokio::test]
async fn what_is_found_below_memory_saves_a_load_as_well() {
    let directory = tempfile::tempdir().unwrap();
    {
        let (terrace, _) = bed(&directory).await;
        let squares = terrace.space::<u64, u64>("square").build().unwrap();
        squares.insert(&7, 49).await.unwrap();
        assert!(terrace.close().await);
    }
    let (terrace, _) = bed(&directory).await;
    let squares = terrace.space::<u64, u64>("square").load_cost(1.0).build().unwrap();
    assert!(squares.get(&7).await.unwrap().is_some());
    let savings = terrace.stats().await.savings();
    assert_eq!((savings.values, savings.cost), (1, 0.0), "no load has shown what one costs");
    squares.get_or_load(&8, |_| async { Ok::<_, Refused>(64) }).await.unwrap();
    assert_eq!(terrace.stats().await.savings().cost, 1.0);
}

/// One call of a loader for many keys costs as much as for one: each key has its share.
#[tokio::test]
async fn keys_that_are_loaded_together_share_what_their_load_costs() {
    let directory = tempfile::tempdir().unwrap();
    let (terrace, _) = bed(&directory).await;
    let squares = terrace.space::<u64, u64>("square").load_cost(10.0).build().unwrap();
    let load = |load: LoadMany<u64>| async move {
        let squares = load.keys().iter().map(|key| (*key, key * key));
        Ok::<_, Refused>(squares.collect::<Vec<_>>())
    };
    for _ in 0..2 {
        let found = squares.get_many_or_load(&[1, 2, 3, 4, 5], load).await;
        assert!(found.iter().all(Result::is_ok));
    }
    let stats = terrace.stats().await;
    assert_eq!((of_squares(&stats).loads, of_squares(&stats).loaded), (1, 5));
    assert_eq!((stats.savings().values, stats.savings().cost), (5, 10.0));
}

#[tokio::test]
async fn a_load_that_fails_has_cost_what_each_does() {
    let directory = tempfile::tempdir().unwrap();
    let (terrace, _) = bed(&directory).await;
    let squares = terrace.space::<u64, u64>("square").load_cost(0.5).build().unwrap();
    let failed = squares.get_or_load(&1, |_| async { Err::<u64, _>(Refused(1)) }).await;
    assert!(matches!(failed, Err(LoadError::Loader(_))));
    let stats = terrace.stats().await;
    assert_eq!((of_squares(&stats).loaded, of_squares(&stats).load_cost), (0, 0.5));
    for cost in [-1.0, f64::NAN, f64::INFINITY] {
        let space = terrace.space::<u64, u64>("of odd cost").load_cost(cost).build();
        assert!(matches!(space, Err(BuildError::Setting(_))), "{cost}");
    }
}
