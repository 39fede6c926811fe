//! The **flight**: one running load of a key, which all callers of that key share.
//!
//! "Why two loads?" is answered here. Nobody owns a flight but its own task: every
//! caller, the first one too, only waits, and may be dropped at any time. A line of
//! the ledger that names the key supersedes the flight: those who wait for it get
//! its result, and whoever comes later boards the next one. At most two loads of a
//! key run at once, because a third flight waits until the first has landed.
//!
//! Before it lands, a flight may offer something stale to those who take that: it goes on, and
//! they need not wait for it.

use std::any::Any;
use std::hash::BuildHasher as _;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;

use crate::core::Ticket;
use crate::entry::{AnyEntry, Source};
use crate::error::{Error, LoadError, LoaderFailure, SharedError};
use crate::key::{KeyRef, MemoryKey};
use crate::store::StoreError;
use crate::waits;

/// How a flight ended.
pub(crate) type Outcome = Result<Landed, Crash>;

/// What a flight brought.
#[derive(Clone)]
pub(crate) struct Landed {
    pub(crate) entry: AnyEntry,
    pub(crate) source: Source,
    /// Past its end.
    pub(crate) is_stale: bool,
    /// What went wrong with the load in whose place it stands.
    pub(crate) instead_of: Option<Crash>,
    /// A line named it meanwhile by a tag that the flight did not know of when it began.
    pub(crate) has_own_tags: bool,
}

/// Why a flight brought nothing.
#[derive(Clone, Debug)]
pub(crate) enum Crash {
    Loader(SharedError),
    Panicked,
    Deadline(Duration),
    /// The loader is slow; it goes on.
    Slow,
    /// The same, for so long that a caller does not wait any more.
    Waited(Duration),
    Abandoned,
    Absent,
    Circle,
    NothingToConfirm,
    Overloaded,
    Tags(&'static str),
    Dependencies(&'static str),
    Tier(Arc<str>, Arc<StoreError>),
}

impl<E: LoaderFailure> From<Crash> for LoadError<E> {
    fn from(crash: Crash) -> Self {
        match crash {
            Crash::Loader(error) => {
                let any: Arc<dyn Any + Send + Sync> = Arc::clone(&error) as _;
                any.downcast().map_or(Self::OtherLoader(error), Self::Loader)
            }
            Crash::Panicked => Self::Panicked,
            Crash::Deadline(limit) => Self::Deadline(limit),
            Crash::Waited(time) => Self::Waited(time),
            // Nobody is told that a load is slow but along with an answer.
            Crash::Slow | Crash::Abandoned => Self::Abandoned,
            Crash::Absent => Self::Absent,
            Crash::Circle => Self::Circle,
            Crash::NothingToConfirm => Self::NothingToConfirm,
            Crash::Overloaded => Self::Overloaded,
            Crash::Tags(reason) => Self::Cache(Error::Tags(reason)),
            Crash::Dependencies(reason) => Self::Cache(Error::Dependencies(reason)),
            Crash::Tier(tier, source) => Self::Cache(Error::Tier { tier, source }),
        }
    }
}

/// From when a flight can be superseded, and by what.
#[derive(Clone, Debug)]
pub(crate) struct Departure {
    pub(crate) ticket: Ticket,
    pub(crate) tags: Arc<[Arc<str>]>,
}

/// A load that is under way or over.
#[derive(Default)]
pub(crate) struct Flight {
    departure: OnceLock<Departure>,
    /// Something stale for whoever does not want to wait.
    offer: OnceLock<Landed>,
    outcome: OnceLock<Outcome>,
    places: Mutex<Places>,
    /// Somebody waits for it who holds what it may be waiting for.
    is_urgent: AtomicBool,
    urged: Notify,
    /// Other flights that this one cannot land before.
    pub(crate) waits_for: Mutex<Vec<Arc<Self>>>,
}

impl Flight {
    /// Waits until the flight has landed. May be dropped at any time.
    pub(crate) async fn wait(self: &Arc<Self>) -> Outcome {
        self.wait_or_take(|_| false).await
    }

    /// The same, or until it offers something that the caller takes.
    pub(crate) async fn wait_or_take(self: &Arc<Self>, takes: impl Fn(&Landed) -> bool) -> Outcome {
        let mut passenger = Passenger::of(Arc::clone(self));
        std::future::poll_fn(|context| passenger.poll(context, &takes)).await
    }

    /// What there is for whoever waits.
    fn answer(&self, takes: impl Fn(&Landed) -> bool) -> Option<Outcome> {
        let landed = || self.outcome.get().cloned();
        landed().or_else(|| self.offer.get().filter(|offer| takes(offer)).cloned().map(Ok))
    }

    /// Has all who wait look again.
    fn call(&self) {
        let wakers = self.places.lock().take_wakers(self.is_over());
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Who holds a permit waits for this flight: it must not wait for one.
    pub(crate) fn urge(&self) {
        self.is_urgent.store(true, Ordering::Release);
        self.urged.notify_waiters();
    }

    pub(crate) fn is_urgent(&self) -> bool {
        self.is_urgent.load(Ordering::Acquire)
    }

    /// Completes when the flight is urgent.
    pub(crate) async fn urgent(&self) {
        loop {
            let urged = self.urged.notified();
            if self.is_urgent() {
                return;
            }
            urged.await;
        }
    }

    fn is_over(&self) -> bool {
        self.outcome.get().is_some()
    }
}

/// Somebody who waits for a flight. May be dropped at any time.
pub(crate) struct Passenger {
    flight: Arc<Flight>,
    place: Option<usize>,
}

impl Passenger {
    pub(crate) fn of(flight: Arc<Flight>) -> Self {
        Self { flight, place: None }
    }

    /// The outcome of the flight, or an offer that the caller takes.
    pub(crate) fn poll(
        &mut self,
        context: &Context<'_>,
        takes: impl Fn(&Landed) -> bool,
    ) -> Poll<Outcome> {
        if let Some(answer) = self.flight.answer(&takes) {
            return Poll::Ready(answer);
        }
        let (place, _before) = self.flight.places.lock().wait_at(self.place, context.waker());
        self.place = Some(place);
        // What came between is called out either after the place was taken, or before this.
        self.flight.answer(takes).map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Passenger {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let _waker = self.flight.places.lock().leave(place);
        }
    }
}

/// Where those who wait for a flight have left word how to wake them. Wakers are dropped when the
/// lock is not held: a task may end with its last one, and others that wait here with it.
#[derive(Default)]
struct Places {
    wakers: Wakers,
    /// Places that somebody has left.
    free: Vec<usize>,
}

/// For most flights nobody waits but who began it.
type Wakers = SmallVec<[Option<Waker>; 1]>;

impl Places {
    /// Leaves word at the `place` that the caller has, or at a new one. Returns what was there.
    fn wait_at(&mut self, place: Option<usize>, waker: &Waker) -> (usize, Option<Waker>) {
        let place = place.or_else(|| self.free.pop()).unwrap_or_else(|| {
            self.wakers.push(None);
            self.wakers.len() - 1
        });
        let before = self.wakers.get_mut(place).and_then(|word| word.replace(waker.clone()));
        (place, before)
    }

    fn leave(&mut self, place: usize) -> Option<Waker> {
        let word = self.wakers.get_mut(place)?;
        self.free.push(place);
        word.take()
    }

    /// Those who wait keep their places, unless they will not come back.
    fn take_wakers(&mut self, is_over: bool) -> Wakers {
        if is_over {
            std::mem::take(&mut self.wakers)
        } else {
            self.wakers.iter_mut().map(Option::take).collect()
        }
    }
}

/// The flights of one task. Cloning it is cheap.
#[derive(Clone)]
pub(crate) enum Flown {
    One(Arc<Flight>),
    Many(Arc<[Arc<Flight>]>),
}

impl Deref for Flown {
    type Target = [Arc<Flight>];

    fn deref(&self) -> &[Arc<Flight>] {
        match self {
            Self::One(flight) => std::slice::from_ref(flight),
            Self::Many(flights) => flights,
        }
    }
}

/// The flights that are under way.
pub(crate) struct Flights {
    shards: Box<[Mutex<HashTable<Slot>>]>,
    hasher: RandomState,
    airborne: AtomicUsize,
    idle: Notify,
}

struct Slot {
    key: MemoryKey,
    current: Arc<Flight>,
    /// A flight that was superseded and may not be over yet.
    superseded: Option<Arc<Flight>>,
}

/// What [`Flights::join`] says to a caller.
pub(crate) enum Joined {
    /// Somebody loads already: wait for that flight.
    Following(Arc<Flight>),
    /// The caller has to start the flight.
    Leading(Takeoff),
}

const SHARDS: usize = 64;

impl Flights {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::default(),
            airborne: AtomicUsize::new(0),
            idle: Notify::new(),
        }
    }

    /// Boards the key's flight, or begins a new one if there is none, if the one there
    /// `is_superseded`, or if it departed and the caller's `must_be_new`.
    pub(crate) fn join(
        self: &Arc<Self>,
        key: KeyRef<'_>,
        must_be_new: bool,
        is_superseded: impl Fn(&Departure) -> bool,
    ) -> Joined {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash).lock();
        let same = |slot: &Slot| hashbrown::Equivalent::equivalent(&key, &slot.key);
        let Some(slot) = shard.find_mut(hash, same) else {
            let current = Arc::new(Flight::default());
            let slot =
                Slot { key: key.to_memory_key(), current: Arc::clone(&current), superseded: None };
            shard.insert_unique(hash, slot, |slot| self.hasher.hash_one(&slot.key));
            drop(shard);
            return Joined::Leading(self.take_off(key, current, [None, None]));
        };
        // A flight that has not departed has read nothing yet: nothing supersedes it.
        let is_superseded = |flight: &Flight| flight.departure.get().map(&is_superseded);
        let is_superseded = match is_superseded(&slot.current) {
            Some(is_superseded) if is_superseded || must_be_new => is_superseded,
            Some(_) => return Joined::Following(Arc::clone(&slot.current)),
            None => {
                // It may wait for one before it that hangs, and that is good enough for whoever does
                // not want a new one.
                let before = slot.superseded.as_ref().filter(|before| {
                    !must_be_new && !before.is_over() && is_superseded(before) == Some(false)
                });
                return Joined::Following(Arc::clone(before.unwrap_or(&slot.current)));
            }
        };
        let current = Arc::new(Flight::default());
        let before = std::mem::replace(&mut slot.current, Arc::clone(&current));
        // No line keeps it from storing what is older than what the new one will bring.
        let unnamed = (!is_superseded).then(|| Arc::clone(&before));
        let oldest = slot.superseded.replace(before);
        drop(shard);
        let mut takeoff = self.take_off(key, current, [None, unnamed]);
        // A value may be dropped with it, and panic: no lock is held, and somebody lands the new one.
        takeoff.after[0] = oldest.filter(|flight| !flight.is_over());
        Joined::Leading(takeoff)
    }

    /// How many flights and writes are under way.
    pub(crate) fn airborne(&self) -> usize {
        self.airborne.load(Ordering::SeqCst)
    }

    /// Waits until neither a flight nor a write is under way.
    pub(crate) async fn all_landed(&self) {
        loop {
            let idle = self.idle.notified();
            if self.airborne() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Something that [`Flights::all_landed`] waits for: a flight, or a write.
    pub(crate) fn underway(self: &Arc<Self>) -> Underway {
        self.airborne.fetch_add(1, Ordering::SeqCst);
        Underway { flights: Arc::clone(self) }
    }

    fn take_off(
        self: &Arc<Self>,
        key: KeyRef<'_>,
        flight: Arc<Flight>,
        after: [Option<Arc<Flight>>; 2],
    ) -> Takeoff {
        let underway = self.underway();
        Takeoff {
            underway,
            key: key.to_memory_key(),
            flight,
            after,
            is_over: AtomicBool::new(false),
        }
    }

    fn shard(&self, hash: u64) -> &Mutex<HashTable<Slot>> {
        // There are as many shards as the mask has values.
        let index = usize::try_from(hash >> 58).unwrap_or(0);
        #[expect(clippy::indexing_slicing, reason = "six bits, sixty-four shards")]
        &self.shards[index]
    }
}

/// The duty to land a flight. Dropping it lands the flight as abandoned, so that
/// nobody waits for ever, whatever becomes of the task.
pub(crate) struct Takeoff {
    underway: Underway,
    key: MemoryKey,
    flight: Arc<Flight>,
    /// Flights of the same key that have to land before this one begins.
    after: [Option<Arc<Flight>>; 2],
    is_over: AtomicBool,
}

impl Takeoff {
    pub(crate) fn flight(&self) -> Arc<Flight> {
        Arc::clone(&self.flight)
    }

    pub(crate) fn key(&self) -> KeyRef<'_> {
        self.key.as_ref()
    }

    /// Waits until at most one older flight of this key is under way, and none that might store
    /// its value over that of this one; `flights` are those whose task waits. If what it waits
    /// for waits for them in turn, this one cannot begin.
    pub(crate) async fn wait_for_turn(&mut self, flights: &Flown) -> Result<(), waits::Circle> {
        for before in self.after.iter_mut().filter_map(Option::take) {
            let _wait = waits::begin_for(flights, &before)?;
            let _ = before.wait().await;
        }
        Ok(())
    }

    /// From here on the flight can be superseded.
    pub(crate) fn depart(&self, departure: Departure) {
        // Only this task sets it, once.
        let _ = self.flight.departure.set(departure);
    }

    /// Offers something stale to everybody who waits and takes it, if it `holds`, in one step
    /// with letting nobody else board. The flight goes on.
    pub(crate) fn offer(&self, stale: Landed, holds: impl FnOnce() -> bool) {
        let flights = &self.underway.flights;
        let shard = flights.shard(flights.hasher.hash_one(&self.key)).lock();
        let is_offered = holds() && self.flight.offer.set(stale).is_ok();
        drop(shard);
        if is_offered {
            self.flight.call();
        }
    }

    /// Hands the outcome to everybody who waits. The first call counts.
    pub(crate) fn land(&self, outcome: Outcome) {
        self.land_if(outcome, || true);
    }

    /// The same, if `holds` says so in one step with letting nobody else board: whoever
    /// boarded after an invalidation does not get what was found before it. `false` if the
    /// flight goes on.
    pub(crate) fn land_if(&self, outcome: Outcome, holds: impl FnOnce() -> bool) -> bool {
        if self.is_over.load(Ordering::Acquire) {
            return true;
        }
        let flights = &self.underway.flights;
        let hash = flights.hasher.hash_one(&self.key);
        let mut shard = flights.shard(hash).lock();
        if !holds() {
            return false;
        }
        self.is_over.store(true, Ordering::Release);
        let _ = self.flight.outcome.set(outcome);
        // Values are dropped, and may panic, when nobody waits for this any more.
        let mut over = None;
        if let Ok(mut slot) = shard.find_entry(hash, |slot| slot.key == self.key)
            && Arc::ptr_eq(&slot.get().current, &self.flight)
        {
            // An older flight that is still under way keeps its place, so that the
            // flights of this key stay counted.
            over = match slot.get_mut().superseded.take() {
                Some(older) if !older.is_over() => {
                    Some(std::mem::replace(&mut slot.get_mut().current, older))
                }
                older => {
                    slot.remove();
                    older
                }
            };
        }
        drop(shard);
        self.flight.call();
        drop(over);
        true
    }
}

impl Drop for Takeoff {
    fn drop(&mut self) {
        self.land(Err(Crash::Abandoned));
    }
}

/// Is under way until it is dropped.
pub(crate) struct Underway {
    flights: Arc<Flights>,
}

impl Drop for Underway {
    fn drop(&mut self) {
        if self.flights.airborne.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.flights.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::clock::{Tick, WallTime};
    use crate::entry::{Details, Entry, Meta};
    use crate::freshness::{Life, Written};
    use crate::ledger::Stamp;

    const KEY: KeyRef<'static> = KeyRef { space: 1, bytes: b"key" };

    fn departure() -> Departure {
        Departure { ticket: Ticket::default(), tags: Arc::default() }
    }

    fn lead(flights: &Arc<Flights>, superseded: bool) -> Takeoff {
        match flights.join(KEY, false, |_| superseded) {
            Joined::Leading(takeoff) => takeoff,
            Joined::Following(_) => panic!("there should be no flight to follow"),
        }
    }

    #[tokio::test]
    async fn a_dropped_flight_leaves_nobody_waiting() {
        let flights = Arc::new(Flights::new());
        let takeoff = lead(&flights, false);
        let flight = takeoff.flight();
        drop(takeoff);
        assert!(matches!(flight.wait().await, Err(Crash::Abandoned)));
        flights.all_landed().await;
        assert_eq!(flights.airborne(), 0);
    }

    /// Panics when it is dropped, which it is with the last flight that has it.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(std::thread::panicking(), "on purpose: a value that is dropped");
        }
    }

    fn explosive() -> Outcome {
        let meta = Meta::new(
            Stamp::default(),
            Life::begin(Tick::from_millis(0), None, Duration::ZERO),
            Written::begin(WallTime::from_millis(0), None, Duration::ZERO),
            Details::default(),
            0,
        );
        let entry: AnyEntry = Arc::new(Entry { meta, value: Bomb });
        Ok(Landed {
            entry,
            source: Source::Loader,
            is_stale: false,
            instead_of: None,
            has_own_tags: false,
        })
    }

    #[test]
    fn a_value_that_panics_when_it_is_dropped_leaves_no_flight_that_nobody_lands() {
        for is_at_the_next in [true, false] {
            let flights = Arc::new(Flights::new());
            let first = lead(&flights, false);
            first.depart(departure());
            let second = lead(&flights, true);
            first.land(explosive());
            drop(first);
            // Nobody has it any more but the flight that is over.
            let dropped = catch_unwind(AssertUnwindSafe(|| {
                if is_at_the_next {
                    second.depart(departure());
                    lead(&flights, true);
                } else {
                    second.land(Err(Crash::Absent));
                }
            }));
            assert!(dropped.is_err(), "it was not dropped here");
            drop(second);
            assert_eq!(flights.airborne(), 0);
            drop(lead(&flights, false));
        }
    }

    #[tokio::test]
    async fn a_third_flight_waits_for_the_first() {
        let flights = Arc::new(Flights::new());
        let first = lead(&flights, false);
        first.depart(departure());
        let second = lead(&flights, true);
        second.depart(departure());
        let mut third = lead(&flights, true);
        let own = Flown::One(third.flight());
        let mut turn = Box::pin(third.wait_for_turn(&own));
        assert!(poll_once(&mut turn).await.is_none(), "two flights are under way");
        first.land(Err(Crash::Panicked));
        turn.await.unwrap();
        third.depart(departure());
        // The second is still under way and superseded: a fourth has to wait for it.
        let mut fourth = lead(&flights, true);
        let own = Flown::One(fourth.flight());
        let mut turn = Box::pin(fourth.wait_for_turn(&own));
        assert!(poll_once(&mut turn).await.is_none());
        drop(second);
        turn.await.unwrap();
    }

    #[tokio::test]
    async fn whoever_comes_before_the_ticket_shares_the_flight() {
        let flights = Arc::new(Flights::new());
        let takeoff = lead(&flights, false);
        assert!(matches!(flights.join(KEY, false, |_| true), Joined::Following(_)));
        takeoff.depart(departure());
        assert!(matches!(flights.join(KEY, false, |_| false), Joined::Following(_)));
        assert!(matches!(flights.join(KEY, false, |_| true), Joined::Leading(_)));
    }

    async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
                Poll::Ready(output) => Some(output),
                Poll::Pending => None,
            })
        })
        .await
    }
}
