//! Stores that hang, limp, flap or are crowded: how soon they are left alone, what that costs
//! whom, and how soon they are in use again.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use terrace::clock::Clock as _;
use terrace::key::StoredKey;
use terrace::store::{Put, Scope, Store, StoreErrorKind, StoreResult, Stored, Usage};
use terrace::{
    Breaker, BreakerState, Disk, Error, GuardStats, Memory, Settled, Space, Terrace, Tier,
};
use terrace_test::{Calls, ChaosStore, Damage, Fault, Gate, ManualClock, MapStore, Verb};
use tokio::task::JoinSet;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::support::{
    Everywhere as _, PausedClock, Refused, ends, eventually, let_others_run, ms, poll_once, random,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A cache over a store that a test makes fail, in the paused time of the runtime.
struct Bed {
    terrace: Terrace,
    space: Space<str, u64>,
    store: Arc<ChaosStore>,
    clock: Arc<PausedClock>,
}

impl Bed {
    async fn new() -> Self {
        Self::with(|tier| tier).await
    }

    /// With the deadlines of a store across a network.
    async fn with(settings: impl FnOnce(Tier) -> Tier) -> Self {
        Self::over(Arc::new(MapStore::new()), settings).await
    }

    async fn over(store: Arc<dyn Store>, settings: impl FnOnce(Tier) -> Tier) -> Self {
        let store = Arc::new(ChaosStore::over(store));
        let clock = Arc::new(PausedClock::default());
        let tier = Tier::shared(Arc::clone(&store) as _).deadlines(ms(100), ms(250));
        let terrace = Terrace::builder()
            .memory(Memory::bytes(1 << 20))
            .tier("far", settings(tier))
            .clock(Arc::clone(&clock) as _)
            .build()
            .await
            .unwrap();
        let space = terrace.space("space").build().unwrap();
        Self { terrace, space, store, clock }
    }

    /// A bed whose breaker is open, for as long as it may be.
    async fn open(settings: impl FnOnce(Tier) -> Tier) -> Self {
        let bed = Self::with(settings).await;
        bed.store.fail();
        for _ in 0..5 {
            bed.miss().await;
        }
        assert_eq!(bed.guard().await.breaker, BreakerState::Open);
        bed
    }

    async fn guard(&self) -> GuardStats {
        guard(&self.terrace).await
    }

    async fn state(&self) -> BreakerState {
        self.guard().await.breaker
    }

    /// A read of what is nowhere, and how long it took.
    async fn miss(&self) -> Duration {
        let began = self.clock.elapsed();
        let found = self.space.get("nothing").await;
        assert!(found.expect("no tier that is away fails a read").is_none());
        self.clock.elapsed().saturating_sub(began)
    }

    fn reads(&self) -> u64 {
        self.store.calls_of(Verb::Get)
    }

    /// A read that asks the store on the caller's own task.
    fn ask(&self) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        let space = self.space.clone();
        Box::pin(async move { space.exists("nothing").await.unwrap() })
    }
}

async fn guard(terrace: &Terrace) -> GuardStats {
    terrace.stats().await.tiers.last().unwrap().guard
}

/// A store whose answers are late.
#[derive(Debug, Default)]
struct Late {
    inner: MapStore,
    millis: AtomicU64,
}

impl Late {
    fn late<'a, T: 'a>(&'a self, answer: StoreResult<'a, T>) -> StoreResult<'a, T> {
        let late = ms(self.millis.load(Ordering::SeqCst));
        Box::pin(async move {
            tokio::time::sleep(late).await;
            answer.await
        })
    }
}

impl Store for Late {
    fn scope(&self) -> Scope {
        self.inner.scope()
    }
    fn get<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<Option<Bytes>>> {
        self.late(self.inner.get(keys))
    }
    fn put<'a>(&'a self, puts: &'a [Put]) -> StoreResult<'a, Vec<Stored>> {
        self.late(self.inner.put(puts))
    }
    fn remove<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<bool>> {
        self.late(self.inner.remove(keys))
    }
    fn clear<'a>(&'a self, prefix: &'a str) -> StoreResult<'a, u64> {
        self.late(self.inner.clear(prefix))
    }
    fn scan<'a>(
        &'a self,
        after: Option<&'a StoredKey>,
        limit: usize,
    ) -> StoreResult<'a, Vec<(StoredKey, Bytes)>> {
        self.late(self.inner.scan(after, limit))
    }
    fn usage(&self) -> StoreResult<'_, Usage> {
        self.inner.usage()
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_left_alone_after_five_failures_in_a_row() {
    let bed = Bed::new().await;
    for row in [4, 3, 4] {
        // Few enough in the window for their share not to matter.
        bed.store.inject(Verb::Get, Fault::Fail(StoreErrorKind::Unavailable));
        for _ in 0..row {
            bed.miss().await;
        }
        bed.store.heal();
        bed.miss().await;
        assert_eq!(bed.state().await, BreakerState::Closed, "an answer begins the row anew");
        tokio::time::sleep(3 * SECOND).await;
    }
    bed.store.fail();
    for failures in 1..=5 {
        assert_eq!(bed.state().await, BreakerState::Closed, "after {}", failures - 1);
        bed.miss().await;
    }
    let stats = bed.guard().await;
    assert_eq!((stats.breaker, stats.opened), (BreakerState::Open, 1));
}

/// Never five in a row, and never fewer than half.
#[tokio::test(start_paused = true)]
async fn a_store_that_fails_every_other_time_is_left_alone() {
    let bed = Bed::new().await;
    for call in 1.. {
        let is_failing = call % 2 == 0;
        bed.store.heal();
        if is_failing {
            bed.store.inject(Verb::Get, Fault::Fail(StoreErrorKind::Other));
        }
        bed.miss().await;
        if bed.state().await == BreakerState::Open {
            assert_eq!(call, 8, "the fewest calls that a share is made of");
            break;
        }
        assert!(call < 8, "still asked");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_left_alone_within_a_second() {
    let bed = Bed::new().await;
    bed.store.hang();
    let began = bed.clock.elapsed();
    while bed.state().await != BreakerState::Open {
        let waited = bed.miss().await;
        assert!(waited <= ms(110), "{waited:?}");
        // Statistics ask the store for its size as well, and wait for that.
    }
    let took = bed.clock.elapsed().saturating_sub(began);
    assert!(took <= 2 * SECOND, "{took:?}, half of it spent on statistics");
    for _ in 0..100 {
        assert_eq!(bed.miss().await, Duration::ZERO);
    }

    let bed = Bed::new().await;
    bed.store.inject(Verb::Get, Fault::Hang);
    let began = bed.clock.elapsed();
    while bed.miss().await > Duration::ZERO {}
    let took = bed.clock.elapsed().saturating_sub(began);
    assert!(took <= SECOND, "{took:?} of one caller at a time");
}

/// All answers are in time, none fails, and each is late.
#[tokio::test(start_paused = true)]
async fn a_store_that_limps_is_left_alone_within_two_seconds() {
    // One caller at a time, and one every 10 ms.
    for is_busy in [false, true] {
        let late = Arc::new(Late::default());
        let settings = |tier: Tier| {
            tier.deadlines(SECOND, SECOND).breaker(Breaker::default().slow(ms(100), ms(100)))
        };
        let bed = Bed::over(Arc::clone(&late) as _, settings).await;
        for _ in 0..100 {
            bed.miss().await;
            tokio::time::sleep(ms(10)).await;
        }
        late.millis.store(200, Ordering::SeqCst);
        let began = bed.clock.elapsed();
        while bed.state().await != BreakerState::Open {
            if is_busy {
                tokio::spawn(bed.ask());
                tokio::time::sleep(ms(10)).await;
            } else {
                bed.miss().await;
            }
            let took = bed.clock.elapsed().saturating_sub(began);
            assert!(took <= 2 * SECOND, "busy: {is_busy}: still asked after {took:?}");
        }
        let stats = bed.terrace.stats().await.tiers.remove(1);
        assert_eq!(stats.traffic.errors, 0, "slowness alone");
        assert!(stats.guard.slow >= 8, "{stats:?}");
        // It is no better, and a probe of it no success.
        tokio::time::sleep(SECOND).await;
        let probes = bed.reads();
        assert!(bed.miss().await <= ms(110));
        assert_eq!((bed.reads(), bed.state().await), (probes + 1, BreakerState::Open));
        late.millis.store(0, Ordering::SeqCst);
        tokio::time::sleep(2 * SECOND).await;
        bed.miss().await;
        assert_eq!(bed.state().await, BreakerState::Closed);
    }
}

/// One in four is late: that is what a share is for.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_slow_now_and_then_is_asked_all_the_same() {
    let late = Arc::new(Late::default());
    let bed = Bed::over(Arc::clone(&late) as _, |tier| tier).await;
    for call in 0..1000 {
        late.millis.store(if call % 4 == 0 { 60 } else { 1 }, Ordering::SeqCst);
        bed.miss().await;
    }
    let stats = bed.guard().await;
    assert_eq!((stats.breaker, stats.opened, stats.slow), (BreakerState::Closed, 0, 250));
}

/// A checkpoint, or another process, holds the writer up: all that wait for it are late at once.
#[tokio::test]
async fn a_disk_that_is_held_up_once_is_no_outage() {
    let usual = (Breaker::default(), BreakerState::Closed);
    // What the same would be of a store that is to answer within a second.
    let strict = (Breaker::default().slow(SECOND, SECOND), BreakerState::Open);
    for (breaker, state) in [usual, strict] {
        let directory = tempfile::tempdir().unwrap();
        let (disk, clock) = (Disk::at(directory.path()), Arc::new(ManualClock::new()));
        let database = disk.database();
        let terrace = Terrace::builder()
            .memory(Memory::bytes(1 << 20))
            .tier("disk", Tier::from(disk).breaker(breaker))
            .clock(Arc::clone(&clock) as _)
            .build()
            .await
            .unwrap();
        let space: Space<str, u64> = terrace.space("space").build().unwrap();
        space.insert("key", 0).await.everywhere();
        let other = rusqlite::Connection::open(database).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut writers = JoinSet::new();
        for at in 0..20 {
            let space = space.clone();
            writers.spawn(async move { space.insert(&format!("key {at}"), at).await });
        }
        eventually("all wait", async || guard(&terrace).await.underway == 20).await;
        clock.advance(9 * SECOND);
        other.execute_batch("COMMIT").unwrap();
        for written in ends("the writes", writers.join_all()).await {
            assert!(written.is_ok());
        }
        assert_eq!(guard(&terrace).await.breaker, state);
    }
}

#[tokio::test(start_paused = true)]
async fn while_it_is_open_the_store_is_not_asked_anything() {
    let bed = Bed::open(|tier| tier.breaker(Breaker::default().open_for(HOUR, HOUR))).await;
    let (calls, refused) = (bed.store.calls(), bed.guard().await.refused);
    for at in 0..1000 {
        assert_eq!(bed.miss().await, Duration::ZERO);
        let key = format!("key {at}");
        let load = |_| async move { Ok::<_, Refused>(at) };
        assert_eq!(*bed.space.get_or_load(&key, load).await.unwrap(), at);
    }
    assert!(!bed.space.exists("nothing").await.unwrap());
    bed.terrace.stats().await;
    // Housekeeping comes by, too.
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(bed.store.calls(), calls);
    let now = bed.guard().await.refused;
    assert!(now >= refused + 3000, "{refused} and then {now}");
}

#[tokio::test(start_paused = true)]
async fn whoever_wants_to_know_is_told_why_and_for_how_long() {
    let bed = Bed::open(|tier| tier.breaker(Breaker::default().open_for(HOUR, HOUR))).await;
    let careful: Space<str, u64> = bed.terrace.space("careful").graceful(false).build().unwrap();
    let error = match careful.get("key").await {
        Err(error @ Error::Tier { .. }) => error,
        other => panic!("{other:?}"),
    };
    let text = error_chain(&error);
    assert!(text.contains("far") && text.contains("breaker is open, the next attempt"), "{text}");
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

/// A hundred callers at the moment at which the store may be tried again.
#[tokio::test(start_paused = true)]
async fn one_call_of_a_hundred_is_the_probe() {
    for is_back in [true, false] {
        let bed = Bed::open(|tier| tier).await;
        bed.store.heal();
        tokio::time::sleep(SECOND).await;
        let gate = bed.store.hold(Verb::Get);
        let mut callers: Vec<_> = (0..100).map(|_| bed.ask()).collect();
        let mut waiting = Vec::new();
        for mut caller in callers.drain(..) {
            if poll_once(caller.as_mut()).await.is_pending() {
                waiting.push(caller);
            }
        }
        assert_eq!((gate.arrivals(), waiting.len()), (1, 1), "the others fail at once");
        assert_eq!(bed.state().await, BreakerState::HalfOpen);
        if is_back {
            gate.open();
        }
        assert!(!waiting.remove(0).await);
        let state = if is_back { BreakerState::Closed } else { BreakerState::Open };
        assert_eq!(bed.state().await, state);
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_makes_room_for_another() {
    let bed = Bed::open(|tier| tier).await;
    bed.store.heal();
    tokio::time::sleep(SECOND).await;
    for round in 0..20 {
        let gate = bed.store.hold(Verb::Get);
        let mut probe = bed.ask();
        assert!(poll_once(probe.as_mut()).await.is_pending(), "{round}");
        assert_eq!(bed.state().await, BreakerState::HalfOpen, "{round}");
        drop(probe);
        assert_eq!(bed.state().await, BreakerState::Open, "{round}");
        assert_eq!(gate.arrivals(), 1, "{round}");
        bed.store.heal();
        tokio::time::sleep(ms(50)).await;
    }
    bed.miss().await;
    assert_eq!(bed.state().await, BreakerState::Closed);
}

/// Its caller neither drives it on nor drops it.
#[tokio::test(start_paused = true)]
async fn a_probe_that_nobody_drives_on_holds_nobody_up() {
    let bed = Bed::open(|tier| tier).await;
    bed.store.heal();
    tokio::time::sleep(SECOND).await;
    let gate = bed.store.hold(Calls::from(Verb::Get).first(1));
    let mut parked = bed.ask();
    assert!(poll_once(parked.as_mut()).await.is_pending());
    bed.miss().await;
    assert_eq!(bed.state().await, BreakerState::HalfOpen);
    tokio::time::sleep(ms(200)).await;
    bed.miss().await;
    assert_eq!(bed.state().await, BreakerState::Closed);
    gate.open();
    parked.await;
    assert_eq!(bed.state().await, BreakerState::Closed, "what it says is of the past");
}

/// Calls that hang since before an outage end after it.
#[tokio::test(start_paused = true)]
async fn calls_from_before_an_outage_do_not_bring_it_back() {
    let bed = Bed::with(|tier| tier.deadlines(10 * SECOND, 10 * SECOND)).await;
    bed.store.inject(Calls::from(Verb::Get).first(50), Fault::Hang);
    let mut hanging = JoinSet::new();
    for _ in 0..50 {
        hanging.spawn(bed.ask());
    }
    let_others_run().await;
    bed.store.fail();
    for _ in 0..5 {
        bed.miss().await;
    }
    assert_eq!(bed.state().await, BreakerState::Open);
    bed.store.heal();
    tokio::time::sleep(SECOND).await;
    bed.miss().await;
    assert_eq!(bed.state().await, BreakerState::Closed);
    hanging.join_all().await;
    let stats = bed.guard().await;
    assert_eq!((stats.breaker, stats.opened), (BreakerState::Closed, 1));
}

/// Reads without end, every 10 ms; when the store was asked.
async fn asked_at(bed: &Bed, time: Duration) -> Vec<Duration> {
    let (began, mut asked) = (bed.clock.elapsed(), Vec::new());
    while bed.clock.elapsed() < began + time {
        let before = bed.reads();
        let now = bed.clock.elapsed();
        bed.miss().await;
        if bed.reads() > before {
            asked.push(now);
        }
        tokio::time::sleep(ms(10)).await;
    }
    asked
}

#[tokio::test(start_paused = true)]
async fn the_longer_it_is_away_the_rarer_the_probes_up_to_a_bound() {
    let bed = Bed::new().await;
    let gaps = async |time| {
        let asked = asked_at(&bed, time).await;
        // After the failures in a row that open it.
        let gaps: Vec<_> = asked.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
        gaps.into_iter().skip_while(|gap| *gap < ms(200)).collect::<Vec<_>>()
    };
    let is_about = |gap: Duration, full: u64| {
        // A probe fails at once; the reads are 10 ms apart; up to a quarter is cut off.
        (ms(full * 3 / 4)..=ms(full + 15)).contains(&gap)
    };
    bed.store.inject(Verb::Get, Fault::Fail(StoreErrorKind::Unavailable));
    let first = gaps(30 * SECOND).await;
    assert!(is_about(first[0], 500) && is_about(first[1], 1000), "{first:?}");
    assert!(first[2..].iter().all(|gap| is_about(*gap, 1500)), "{first:?}");

    // Back, and in use again within 2 s.
    bed.store.heal();
    let back = asked_at(&bed, 2 * SECOND).await;
    assert_eq!(bed.state().await, BreakerState::Closed);
    assert!(back.len() > 10, "{}", back.len());

    // Away again soon: it has not been healthy for long.
    bed.store.inject(Verb::Get, Fault::Fail(StoreErrorKind::Unavailable));
    let soon = gaps(5 * SECOND).await;
    assert!(is_about(soon[0], 1500), "{soon:?}");

    // And after it was.
    bed.store.heal();
    asked_at(&bed, 13 * SECOND).await;
    bed.store.inject(Verb::Get, Fault::Fail(StoreErrorKind::Unavailable));
    let later = gaps(5 * SECOND).await;
    assert!(is_about(later[0], 500) && is_about(later[1], 1000), "{later:?}");
}

/// One second there, one second gone.
#[tokio::test(start_paused = true)]
async fn a_store_that_flaps_fails_no_caller_and_is_not_pestered() {
    let bed = Bed::new().await;
    bed.space.insert("hot", 1).await.everywhere();
    let mut asked_in_vain = 0;
    for round in 0..60 {
        let before = bed.reads();
        bed.store.hang();
        for _ in 0..100 {
            let (load, began) = (|_| async { Ok::<_, Refused>(7) }, bed.clock.elapsed());
            let key = format!("key {round}");
            assert_eq!(*bed.space.get_or_load(&key, load).await.unwrap(), 7);
            assert_eq!(bed.space.get("hot").await.unwrap().as_deref(), Some(&1));
            bed.miss().await;
            let waited = bed.clock.elapsed().saturating_sub(began);
            assert!(waited <= ms(600), "{round}: {waited:?}");
            tokio::time::sleep(ms(10)).await;
        }
        asked_in_vain += bed.reads() - before;
        bed.store.heal();
        for _ in 0..100 {
            bed.miss().await;
            tokio::time::sleep(ms(10)).await;
        }
    }
    assert!(asked_in_vain <= 60 * 8, "{asked_in_vain} reads of a store that was gone");
    assert!(bed.guard().await.opened <= 60);
    tokio::time::sleep(2 * SECOND).await;
    bed.miss().await;
    assert_eq!(bed.state().await, BreakerState::Closed);
}

/// What each kind of failure says of a store.
#[tokio::test(start_paused = true)]
async fn answers_that_are_errors_are_no_outage() {
    use StoreErrorKind as Kind;
    for (kind, is_outage) in [
        (Kind::Deadline, true),
        (Kind::Unavailable, true),
        (Kind::Other, true),
        (Kind::Full, false),
        (Kind::Damaged, false),
        (Kind::Closed, false),
    ] {
        let bed = Bed::new().await;
        bed.store.inject(Calls::of([Verb::Get, Verb::Put]), Fault::Fail(kind));
        for at in 0..50 {
            bed.miss().await;
            let _ = bed.space.insert("key", at).await.unwrap();
        }
        let is_open = bed.state().await == BreakerState::Open;
        assert_eq!(is_open, is_outage, "{kind:?}");
    }
    // Nor is what cannot be read.
    let bed = Bed::new().await;
    bed.space.insert("key", 1).await.everywhere();
    bed.store.inject(Verb::Get, Fault::Damage(Damage::Noise(1)));
    for _ in 0..50 {
        bed.terrace.clear_tier("memory").await.unwrap();
        assert!(bed.space.get("key").await.unwrap().is_none());
    }
    assert_eq!(bed.state().await, BreakerState::Closed);
    // A store that is full is back when it says so.
    let bed = Bed::open(|tier| tier).await;
    bed.store.heal();
    bed.store.inject(Calls::all(), Fault::Fail(Kind::Full));
    tokio::time::sleep(SECOND).await;
    bed.miss().await;
    assert_eq!(bed.state().await, BreakerState::Closed);
}

/// Another tier has used up the time of a read: this one is not to blame.
#[tokio::test(start_paused = true)]
async fn a_read_that_was_given_no_time_says_nothing_of_the_store() {
    let late = Arc::new(Late::default());
    let bed = Bed::over(Arc::clone(&late) as _, |tier| tier).await;
    late.millis.store(20, Ordering::SeqCst);
    let hasty: Space<str, u64> = bed.terrace.space("hasty").tiers_deadline(ms(10)).build().unwrap();
    for _ in 0..50 {
        assert!(hasty.get("nothing").await.unwrap().is_none());
    }
    assert_eq!(bed.state().await, BreakerState::Closed);
}

/// Callers leave before the deadline, and yet it is noticed that nothing comes.
#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_noticed_though_nobody_waits_for_the_deadline() {
    let bed = Bed::new().await;
    bed.store.inject(Verb::Get, Fault::Hang);
    for _ in 0..8 {
        let mut hasty = bed.ask();
        assert!(tokio::time::timeout(ms(60), hasty.as_mut()).await.is_err());
    }
    assert_eq!(bed.state().await, BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn no_more_exchanges_are_under_way_than_there_are_places() {
    let bed = Bed::with(|tier| tier.concurrency(4)).await;
    let gate = bed.store.hold(Verb::Get);
    let burst = || {
        let mut callers = JoinSet::new();
        (0..20).for_each(|_| drop(callers.spawn(bed.ask())));
        callers
    };
    // A burst waits its turn.
    let callers = burst();
    let_others_run().await;
    assert_eq!((gate.arrivals(), bed.guard().await.underway), (4, 4));
    for arrived in 5..=20 {
        gate.release_one();
        let_others_run().await;
        assert_eq!(gate.arrivals(), arrived);
    }
    gate.open();
    callers.join_all().await;
    let stats = bed.guard().await;
    assert_eq!((stats.underway, stats.crowded), (0, 0));
    bed.store.heal();

    // And no longer than its deadline, whatever becomes of those before it.
    let gate: Gate = bed.store.hold(Verb::Get);
    let began = bed.clock.elapsed();
    burst().join_all().await;
    let waited = bed.clock.elapsed().saturating_sub(began);
    assert!(waited <= ms(110), "{waited:?}");
    let stats = bed.guard().await;
    assert_eq!((gate.arrivals(), stats.crowded, stats.underway), (4, 16, 0));
    assert_eq!(stats.opened, 0, "four failures are no five, and the others asked nothing");
    bed.store.heal();

    // Whoever goes away while it waits leaves nothing behind.
    let gate = bed.store.hold(Verb::Get);
    let callers = burst();
    let_others_run().await;
    drop(callers);
    let_others_run().await;
    assert_eq!((gate.arrivals(), bed.guard().await.underway), (4, 0));
    bed.store.heal();
    assert_eq!(bed.miss().await, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn the_queue_for_places_has_a_bound() {
    let bed = Bed::with(|tier| tier.concurrency(1)).await;
    let _gate = bed.store.hold(Verb::Get);
    let mut waiting = Vec::new();
    let mut refused = 0;
    for _ in 0..10_010 {
        let mut caller = bed.ask();
        match poll_once(caller.as_mut()).await.is_pending() {
            true => waiting.push(caller),
            false => refused += 1,
        }
    }
    assert_eq!((waiting.len(), refused), (10_001, 9));
    assert_eq!(bed.guard().await.crowded, 9);
}

/// A cache whose ledger is in a store that a test makes fail, in real time: it is SQLite.
struct Ledger {
    terrace: Terrace,
    space: Space<str, u64>,
    store: Arc<ChaosStore>,
    _directory: tempfile::TempDir,
}

impl Ledger {
    async fn new(breaker: Breaker) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::at(directory.path()).open().unwrap();
        let store = Arc::new(ChaosStore::over(Arc::new(disk)));
        let tier = Tier::shared(Arc::clone(&store) as _).deadlines(ms(2000), ms(2000));
        let terrace = Terrace::builder()
            .memory(Memory::bytes(1 << 20))
            .tier("keeper", tier.breaker(breaker))
            .build()
            .await
            .unwrap();
        let space = terrace.space("space").build().unwrap();
        Self { terrace, space, store, _directory: directory }
    }

    async fn open(breaker: Breaker) -> Self {
        let bed = Self::new(breaker).await;
        bed.space.insert("key", 1).await.everywhere();
        bed.store.fail();
        for _ in 0..5 {
            assert!(bed.space.get("nothing").await.unwrap().is_none());
        }
        assert_eq!(guard(&bed.terrace).await.breaker, BreakerState::Open);
        bed
    }

    /// Calls but those that the cache makes on its own.
    fn calls(&self) -> u64 {
        let own = [Verb::Follow, Verb::Usage, Verb::Maintain, Verb::Snapshot];
        self.store.calls() - own.map(|verb| self.store.calls_of(verb)).iter().sum::<u64>()
    }
}

#[tokio::test]
async fn a_load_goes_on_without_a_lease_and_asks_the_store_nothing() {
    let bed = Ledger::open(Breaker::default().open_for(HOUR, HOUR)).await;
    // Its ledger hangs as well, and the follower has not heard of it since.
    bed.store.heal();
    bed.store.hang();
    let calls = bed.calls();
    for at in 0..100 {
        let key = format!("key {at}");
        let load = bed.space.get_or_load(&key, |_| async move { Ok::<_, Refused>(at) });
        assert_eq!(*ends("a load", load).await.unwrap(), at);
    }
    let many: Vec<_> = (0..100).map(|at| format!("many {at}")).collect();
    let load = |_| async {
        let found = (0..100).map(|at| (format!("many {at}"), at));
        Ok::<Vec<_>, Refused>(found.collect())
    };
    let found = ends("loads", bed.space.get_many_or_load(many.iter().map(String::as_str), load));
    assert!(found.await.iter().all(Result::is_ok));
    assert_eq!(bed.calls(), calls, "neither leases nor reads nor writes");
}

#[tokio::test]
async fn what_is_invalidated_while_it_is_open_is_pending_and_settles_afterwards() {
    let bed = Ledger::open(Breaker::default()).await;
    let settled = bed.space.invalidate("key").await.unwrap();
    assert_eq!(settled, Settled::Pending(vec!["keeper".into()]));
    assert!(bed.space.get("key").await.unwrap().is_none(), "neither from memory nor from below");
    bed.store.heal();
    assert!(bed.space.get("key").await.unwrap().is_none(), "nor after it is back");
    eventually("it settles", async || {
        bed.space.insert("other", 2).await.unwrap().is_settled()
            && bed.space.invalidate("key").await.unwrap().is_settled()
    })
    .await;
    assert!(bed.space.get("key").await.unwrap().is_none());
    eventually("nothing is pending", async || {
        bed.space.insert("key", 3).await.everywhere();
        bed.terrace.clear_tier("memory").await.unwrap();
        bed.space.get("key").await.unwrap().is_some_and(|value| *value == 3)
    })
    .await;
    assert!(ends("closing", bed.terrace.close()).await);
}

#[tokio::test]
async fn strict_reads_fail_at_once_while_it_is_open() {
    let bed = Ledger::open(Breaker::default().open_for(HOUR, HOUR)).await;
    bed.store.heal();
    bed.store.hang();
    let strict: Space<str, u64> = bed.terrace.space("strict").strict().build().unwrap();
    let calls = bed.calls();
    for _ in 0..100 {
        let found = ends("a strict read", strict.get("key")).await;
        assert!(matches!(found, Err(Error::Authority(_))), "{found:?}");
        let load = strict.get_or_load("key", |_| async { Ok::<_, Refused>(1) });
        assert!(ends("a strict load", load).await.is_err());
        let counted = ends("a counter", bed.terrace.increment("count", 1)).await;
        assert!(matches!(counted, Err(Error::Authority(_))), "{counted:?}");
    }
    assert_eq!(bed.calls(), calls);
}

/// Nobody else asks the store anything: strict reads alone notice that it hangs, and that it
/// is back.
#[tokio::test]
async fn strict_reads_notice_an_outage_and_its_end() {
    let bed = Ledger::new(Breaker::default()).await;
    let strict: Space<str, u64> = bed.terrace.space("strict").strict().build().unwrap();
    strict.insert("key", 1).await.everywhere();
    bed.store.inject(Calls::of_authority(), Fault::Fail(StoreErrorKind::Unavailable));
    eventually("it is noticed", async || {
        assert!(strict.get("key").await.is_err());
        guard(&bed.terrace).await.opened > 0
    })
    .await;
    bed.store.heal();
    eventually("it is back", async || strict.get("key").await.is_ok()).await;
    assert_eq!(**strict.get("key").await.unwrap().as_ref().unwrap(), 1);
}

/// The follower finds out that the store is back, long before the next probe is due.
#[tokio::test]
async fn a_ledger_that_is_heard_again_ends_the_wait() {
    let bed = Ledger::open(Breaker::default().open_for(HOUR, HOUR)).await;
    let asked = bed.store.calls_of(Verb::Follow);
    eventually("it is not heard", async || bed.store.calls_of(Verb::Follow) > asked + 1).await;
    bed.store.heal();
    eventually("it is in use again", async || {
        bed.terrace.clear_tier("memory").await.unwrap();
        bed.space.get("key").await.unwrap().is_some_and(|value| *value == 1)
    })
    .await;
    assert_eq!(guard(&bed.terrace).await.breaker, BreakerState::Closed);
}

/// The ledger answers all the time: that says nothing of reads that fail.
#[tokio::test]
async fn a_ledger_that_answers_does_not_excuse_reads_that_fail() {
    let bed = Ledger::new(Breaker::default().open_for(HOUR, HOUR)).await;
    bed.store.inject(Verb::Get, Fault::Fail(StoreErrorKind::Unavailable));
    for _ in 0..5 {
        assert!(bed.space.get("nothing").await.unwrap().is_none());
    }
    let heard = bed.store.calls_of(Verb::Follow);
    eventually("it is heard", async || bed.store.calls_of(Verb::Follow) > heard + 5).await;
    assert!(bed.space.get("nothing").await.unwrap().is_none());
    let stats = guard(&bed.terrace).await;
    assert_eq!((stats.breaker, stats.opened), (BreakerState::Open, 1));
    assert_eq!(bed.store.calls_of(Verb::Get), 5);
}

#[tokio::test(start_paused = true)]
async fn without_a_breaker_every_exchange_is_tried() {
    let bed = Bed::with(|tier| tier.breaker(Breaker::off())).await;
    bed.store.hang();
    for _ in 0..50 {
        assert_eq!(bed.miss().await, ms(100));
    }
    let stats = bed.guard().await;
    assert_eq!((stats.breaker, stats.opened, stats.refused), (BreakerState::Off, 0, 0));
}

/// All that is asked of the tier is either refused, or fails, or is answered.
#[tokio::test(start_paused = true)]
async fn the_statistics_add_up() {
    let bed = Bed::new().await;
    let mut random = random("the_statistics_add_up");
    let mut asked = 0;
    for _ in 0..200 {
        bed.store.heal();
        match random.u8(..4) {
            0 => bed.store.inject(Verb::Get, Fault::Fail(StoreErrorKind::Other)),
            1 => bed.store.inject(Verb::Get, Fault::Hang),
            _ => {}
        }
        for _ in 0..random.u8(..20) {
            bed.miss().await;
            asked += 1;
        }
        tokio::time::sleep(ms(random.u64(..800))).await;
    }
    bed.store.heal();
    tokio::time::sleep(2 * SECOND).await;
    bed.miss().await;
    asked += 1;
    let refused_usage = bed.guard().await.refused;
    let stats = bed.terrace.stats().await.tiers.remove(1);
    let answered = stats.traffic.misses - stats.traffic.errors - (asked - bed.reads());
    assert_eq!(stats.traffic.hits, 0);
    assert_eq!(stats.traffic.misses, asked, "each read that brings nothing is a miss");
    assert!(stats.traffic.errors > 0 && stats.guard.refused > 0 && stats.guard.opened > 0);
    assert!(answered > 0 && bed.reads() + stats.guard.refused >= asked, "{stats:?}");
    assert_eq!(stats.guard.refused, refused_usage, "nothing is refused any longer");
    assert_eq!(stats.guard.breaker, BreakerState::Closed);
    assert_eq!((stats.guard.underway, stats.guard.crowded), (0, 0));
    assert_eq!(bed.terrace.stats().await.tiers[0].guard, GuardStats::default(), "memory has none");
}

/// Takes down what Terrace logs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(Level, String)>>>);

impl Log {
    fn take(&self) -> Vec<(Level, String)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("terrace")
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{}={value:?} ", field.name());
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push((*event.metadata().level(), text.0));
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_two_lines_in_the_log() {
    let log = Log::default();
    let _logging = tracing::subscriber::set_default(log.clone());
    let bed = Bed::new().await;
    bed.miss().await;
    log.take();
    bed.store.hang();
    for at in 0..1000 {
        bed.miss().await;
        let key = format!("key {at}");
        bed.space.get_or_load(&key, |_| async { Ok::<_, Refused>(1) }).await.unwrap();
        tokio::time::sleep(ms(10)).await;
    }
    bed.store.heal();
    tokio::time::sleep(2 * SECOND).await;
    for _ in 0..100 {
        bed.miss().await;
    }
    let lines = log.take();
    let loud: Vec<_> = lines.iter().filter(|(level, _)| *level <= Level::INFO).collect();
    let [(Level::WARN, opened), (Level::INFO, closed)] = &loud[..] else { panic!("{loud:#?}") };
    assert!(opened.contains("opened") && opened.contains("5 failures in a row"), "{opened}");
    assert!(opened.contains("tier=\"far\""), "{opened}");
    assert!(closed.contains("closed") && closed.contains("after=1"), "{closed}");
    // Each probe is one line for whoever looks closely, and what came of it another.
    let count = |what: &str| lines.iter().filter(|(_, text)| text.contains(what)).count();
    assert_eq!(count("half-open"), count("open again") + 1);
    assert!(count("half-open") > 5);
    assert!(!lines.iter().any(|(_, text)| text.contains("key ")), "no key in a log line");
}

/// The reliability goal's first row of resilience, with a stand-in for the server.
#[tokio::test(start_paused = true)]
async fn five_thousand_reads_a_second_hardly_notice_a_store_that_hangs() {
    const LOAD: Duration = ms(5);
    let bed = Bed::new().await;
    bed.space.insert("hot", 1).await.everywhere();
    let slowest_load = Arc::new(Mutex::new(Vec::new()));
    let mut next = 0_u64;
    let mut callers = JoinSet::new();
    let (mut hung_since, mut healed) = (None, None);
    // In milliseconds: five reads each, one of ten a miss.
    for now in 0..35_000_u64 {
        if now == 2_000 {
            bed.store.hang();
            hung_since = Some(bed.clock.elapsed());
        }
        if now == 32_000 {
            bed.store.heal();
            healed = Some(bed.clock.elapsed());
        }
        for read in 0..5 {
            if read == 0 && now % 2 == 0 {
                next += 1;
                let (space, clock) = (bed.space.clone(), Arc::clone(&bed.clock));
                let times = Arc::clone(&slowest_load);
                callers.spawn(async move {
                    let (key, began) = (format!("key {next}"), clock.elapsed());
                    let load = |_| async {
                        tokio::time::sleep(LOAD).await;
                        Ok::<_, Refused>(7)
                    };
                    assert_eq!(*space.get_or_load(&key, load).await.unwrap(), 7);
                    let took = clock.elapsed().saturating_sub(began);
                    times.lock().unwrap().push((began, took));
                });
            } else {
                let began = bed.clock.elapsed();
                assert_eq!(bed.space.get("hot").await.unwrap().as_deref(), Some(&1));
                assert_eq!(bed.clock.elapsed(), began, "a hit waits for nothing");
            }
        }
        tokio::time::sleep(ms(1)).await;
        while callers.try_join_next().is_some_and(|caller| caller.is_ok()) {}
    }
    callers.join_all().await;
    let (hung_since, healed) = (hung_since.unwrap(), healed.unwrap());
    let (mut probes, mut late) = (0, 0);
    for (began, took) in &*slowest_load.lock().unwrap() {
        let cost = took.saturating_sub(LOAD);
        assert!(cost <= ms(112), "{began:?}: {cost:?}");
        if cost > ms(2) {
            assert!(*began + *took > hung_since && *began <= healed, "{began:?}: {cost:?}");
            if *began < hung_since + SECOND / 2 {
                late += 1;
            } else {
                // Somebody has to try.
                probes += 1;
                assert!(cost <= ms(52), "{began:?}: {cost:?}");
            }
        }
    }
    assert!(late <= 60, "{late} misses waited until the breaker was open");
    assert!(probes <= 30, "{probes} of 15,000");
    assert_eq!(bed.state().await, BreakerState::Closed);

    // Back within 2 s: at the end reads are answered by the store again.
    let stats = bed.guard().await;
    assert_eq!(stats.opened, 1);
    let (before, key) = (bed.reads(), format!("key {next}"));
    bed.terrace.clear_tier("memory").await.unwrap();
    let found = bed.space.get(&key).await.unwrap().unwrap();
    assert_eq!((*found, found.source().to_string(), bed.reads()), (7, "far".into(), before + 1));
}
