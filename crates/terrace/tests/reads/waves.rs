//! Waves: what was stored together must not expire together.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use terrace::clock::{Clock, SystemClock};
use terrace::{Disk, LoadMany, Memory, Space, Terrace};
use terrace_test::ManualClock;

use crate::support::{Everywhere as _, count, is_full};

const ENTRIES: u64 = 100_000;
const SECOND: Duration = Duration::from_secs(1);

async fn bed(clock: Arc<dyn Clock>) -> (Terrace, Space<u64, u64>) {
    let terrace =
        Terrace::builder().memory(Memory::bytes(256 << 20)).clock(clock).build().await.unwrap();
    let space = terrace.space("space").ttl(60 * SECOND).build().unwrap();
    (terrace, space)
}

/// Time that passes when it is told to, or, for the full count, by itself.
enum Time {
    Manual(Arc<ManualClock>),
    Real(Arc<SystemClock>),
}

impl Time {
    fn clock(&self) -> Arc<dyn Clock> {
        match self {
            Self::Manual(clock) => Arc::clone(clock) as _,
            Self::Real(clock) => Arc::clone(clock) as _,
        }
    }

    /// Lets time pass until `elapsed` is over.
    async fn reach(&self, elapsed: Duration) {
        let left = elapsed.saturating_sub(self.clock().elapsed());
        match self {
            Self::Manual(clock) => clock.advance(left),
            Self::Real(_) => tokio::time::sleep(left).await,
        }
    }
}

/// Reads find out when each entry goes: nothing is taken from what is written in it.
#[tokio::test]
async fn s10_no_second_sees_more_than_a_twentieth_expire() {
    let time = if is_full() {
        Time::Real(Arc::new(SystemClock::new()))
    } else {
        Time::Manual(Arc::new(ManualClock::new()))
    };
    let (_terrace, space) = bed(time.clock()).await;
    let began = time.clock().elapsed();
    let keys: Vec<u64> = (0..ENTRIES).collect();
    for (millisecond, keys) in (0..).zip(keys.chunks(ENTRIES as usize / 1_000)) {
        time.reach(began + Duration::from_millis(millisecond)).await;
        space.insert_many(keys.iter().map(|key| (key, *key))).await.everywhere();
    }
    let mut left = keys;
    let mut waves = Vec::new();
    for second in 1.. {
        let before = left.len();
        left.retain(|key| space.read(key, |_| ()).is_some());
        waves.push(before - left.len());
        if left.is_empty() {
            break;
        }
        assert!(second < 100, "{} live too long", left.len());
        time.reach(began + second * SECOND).await;
    }
    let most = waves.iter().max().copied().unwrap();
    assert!(most <= ENTRIES as usize / 20, "{most} of {ENTRIES} in one second");
    let life = waves.iter().position(|&wave| wave > 0).unwrap();
    assert!((45..=60).contains(&life), "the first go after {life} s");
}

/// The same by what each entry says of itself, for every way to store one.
#[tokio::test]
async fn s10_every_way_to_store_spreads_the_ends() {
    let (terrace, space) = bed(Arc::new(ManualClock::new())).await;
    let most_in_a_second = async |way: &str| {
        let mut seconds: HashMap<u64, usize> = HashMap::new();
        for key in 0..10_000 {
            let found = space.get(&key).await.unwrap().expect("it was stored");
            let end = found.expires().expect("it ends");
            *seconds.entry(end.as_millis() / 1_000).or_default() += 1;
        }
        let most = seconds.values().max().copied().unwrap();
        // A twentieth, and what chance adds to it in a sample of ten thousand.
        assert!(most <= 600, "{way}: {most} of 10,000 end in one second");
    };
    for key in 0..10_000 {
        space.insert(&key, key).await.everywhere();
    }
    most_in_a_second("insert").await;

    space.clear().await.everywhere();
    let keys: Vec<u64> = (0..10_000).collect();
    space.insert_many(keys.iter().map(|key| (key, *key))).await.everywhere();
    most_in_a_second("insert_many").await;

    space.clear().await.everywhere();
    for key in 0..10_000 {
        space.get_or_load(&key, |_| async { Ok::<_, String>(1) }).await.unwrap();
    }
    most_in_a_second("get_or_load").await;

    space.clear().await.everywhere();
    let answers = space
        .get_many_or_load(&keys, |load: LoadMany<u64>| async move {
            Ok::<_, String>(load.keys().iter().map(|key| (*key, 1)).collect::<Vec<_>>())
        })
        .await;
    assert!(answers.iter().all(Result::is_ok));
    most_in_a_second("get_many_or_load").await;
    drop(terrace);
}

/// A copy in memory ends when the entry does from which it was made: a restart does not
/// gather them.
#[tokio::test]
async fn s10_copies_of_what_is_on_disk_keep_their_ends() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new());
    let start = async || {
        let terrace = Terrace::builder()
            .memory(Memory::bytes(64 << 20))
            .tier("disk", Disk::at(directory.path()))
            .clock(Arc::clone(&clock) as _)
            .build()
            .await
            .unwrap();
        let space: Space<u64, u64> = terrace.space("space").ttl(60 * SECOND).build().unwrap();
        (terrace, space)
    };
    let keys: Vec<u64> = (0..count(5_000, 100_000) as u64).collect();
    let (terrace, space) = start().await;
    for keys in keys.chunks(1_000) {
        space.insert_many(keys.iter().map(|key| (key, *key))).await.everywhere();
    }
    assert!(terrace.close().await);
    clock.advance(10 * SECOND);

    let (_terrace, space) = start().await;
    let mut left = keys;
    let share = if is_full() { 5 } else { 6 };
    let all = left.len();
    assert_eq!(space.get_many(&left).await.unwrap().iter().flatten().count(), all);
    let mut most = 0;
    while !left.is_empty() {
        let before = left.len();
        left.retain(|key| space.read(key, |_| ()).is_some());
        most = most.max(before - left.len());
        clock.advance(SECOND);
    }
    assert!(most * 100 <= all * share, "{most} of {all} in one second");
}
