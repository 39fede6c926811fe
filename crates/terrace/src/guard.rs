//! The **guard** of a tier: deadlines, a breaker and a bound on exchanges before its store.
//!
//! "What happens when a store hangs?" is answered here. An exchange that does not end costs its
//! caller the deadline; after a few of them the [breaker] is open, and exchanges
//! fail at once. Whoever asks goes on without the store, as with any other failure of it:
//!
//! | while the breaker is open | |
//! | --- | --- |
//! | reads | are misses: the next tier or the loader answers |
//! | loads | go on without a lease: each process loads for itself, and stamps keep what it stores from doing harm |
//! | writes, removals | the names are pending |
//! | invalidations, where the store keeps the ledger | are pending; a task tries again |
//! | strict spaces, counters, "if absent" | fail at once |
//! | following the ledger | goes on: it is one call of the process at a time, and delays nobody |
//! | closing the store | is done |

mod breaker;
mod places;

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::{Clock, Tick};
use crate::runtime::{BoxFuture, Runtime, unless};
use crate::stats::{GuardStats, bump};
use crate::store::{StoreError, StoreErrorKind};

use breaker::{Admission, Change, Circuit, Verdict};
pub use breaker::{Breaker, BreakerState};
use places::{Place, Places};

/// How long a tier's store may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadlines {
    pub(crate) read: Duration,
    pub(crate) write: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { read: Duration::from_secs(1), write: Duration::from_secs(10) }
    }
}

/// Settings of a guard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) deadlines: Deadlines,
    pub(crate) breaker: Breaker,
    pub(crate) concurrency: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let (deadlines, breaker) = (Deadlines::default(), Breaker::default());
        Self { deadlines, breaker, concurrency: 1024 }
    }
}

/// Which failures say that the store is away. The others are answers: a store that gives them
/// is there, and leaving it alone would help nobody.
fn is_outage(kind: StoreErrorKind) -> bool {
    match kind {
        StoreErrorKind::Deadline | StoreErrorKind::Unavailable | StoreErrorKind::Other => true,
        StoreErrorKind::Full
        | StoreErrorKind::Damaged
        | StoreErrorKind::Denied
        | StoreErrorKind::Closed => false,
    }
}

/// Why the store was not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The breaker is open for so long yet.
    Open(Duration),
    /// The breaker is half-open, and somebody else's call is the probe.
    Probing,
    /// So many exchanges are under way.
    Crowded(usize),
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(left) => {
                write!(formatter, "the tier's breaker is open, the next attempt is in {left:?}")
            }
            Self::Probing => {
                formatter.write_str("the tier's breaker is half-open, one attempt is under way")
            }
            Self::Crowded(most) => {
                write!(formatter, "no place among {most} exchanges, raise the tier's concurrency")
            }
        }
    }
}

impl StdError for Refusal {}

/// Whether an error says that the store was not asked.
pub(crate) fn is_refusal(error: &StoreError) -> bool {
    StdError::source(error).is_some_and(|source| source.is::<Refusal>())
}

/// The guard of one tier.
#[derive(Debug)]
pub(crate) struct Guard {
    tier: Arc<str>,
    deadlines: Deadlines,
    slow_read: Duration,
    slow_write: Duration,
    circuit: Option<Circuit>,
    places: Places,
    refused: AtomicU64,
    crowded: AtomicU64,
    slow: AtomicU64,
    /// Whether the ledger could not be followed lately.
    is_deaf: AtomicBool,
    /// How often it could.
    heard: AtomicU64,
    clock: Arc<dyn Clock>,
    runtime: Arc<dyn Runtime>,
}

/// What an exchange may take.
#[derive(Clone, Copy)]
struct Terms {
    doing: &'static str,
    limit: Duration,
    slow: Duration,
    /// With less time than this, a deadline that passes says nothing of the store.
    enough: Duration,
}

impl Guard {
    /// `never_slow`: writes are not slow unless the breaker says when.
    pub(crate) fn new(
        tier: Arc<str>,
        limits: Limits,
        never_slow: bool,
        clock: Arc<dyn Clock>,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        let Limits { deadlines, breaker, concurrency } = limits;
        let write = if never_slow { Duration::MAX } else { deadlines.write / 2 };
        let (slow_read, slow_write) = breaker.slow.unwrap_or((deadlines.read / 2, write));
        // A store that takes longer than this for a probe is not back, whatever it is asked.
        let probe_limit = slow_read.min(deadlines.read);
        Self {
            tier,
            deadlines,
            slow_read,
            slow_write,
            circuit: breaker.is_on.then(|| Circuit::new(breaker, probe_limit)),
            places: Places::new(concurrency),
            refused: AtomicU64::new(0),
            crowded: AtomicU64::new(0),
            slow: AtomicU64::new(0),
            is_deaf: AtomicBool::new(false),
            heard: AtomicU64::new(0),
            clock,
            runtime,
        }
    }

    /// Reads, within `left` and no more than the deadline.
    pub(crate) async fn read<'a, T>(
        &self,
        doing: &'static str,
        left: Option<Duration>,
        exchange: impl FnOnce() -> BoxFuture<'a, Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let deadline = self.deadlines.read;
        let (limit, slow) = (left.map_or(deadline, |left| left.min(deadline)), self.slow_read);
        self.exchange(Terms { doing, limit, slow, enough: slow.min(deadline) }, exchange).await
    }

    /// Writes, or asks the ledger.
    pub(crate) async fn write<'a, T>(
        &self,
        doing: &'static str,
        exchange: impl FnOnce() -> BoxFuture<'a, Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let (limit, slow) = (self.deadlines.write, self.slow_write);
        self.exchange(Terms { doing, limit, slow, enough: slow.min(limit) }, exchange).await
    }

    /// Does what nobody waits for, if the breaker is closed. It is never the probe and says
    /// nothing of the store: how much is there may be known without asking it.
    pub(crate) async fn housekeep<'a, T>(
        &self,
        doing: &'static str,
        exchange: impl FnOnce() -> BoxFuture<'a, Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match &self.circuit {
            Some(circuit) if circuit.state() != BreakerState::Closed => {
                Err(refused(doing, circuit.refusal(self.clock.tick())))
            }
            _ => self.insist(doing, exchange()).await,
        }
    }

    /// Does what may well take long.
    pub(crate) async fn chore<'a, T>(
        &self,
        doing: &'static str,
        exchange: impl FnOnce() -> BoxFuture<'a, Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let (limit, slow) = (self.deadlines.write, Duration::MAX);
        self.exchange(Terms { doing, limit, slow, enough: limit }, exchange).await
    }

    /// Does what has to be tried whatever the store was like, and says nothing of it.
    pub(crate) async fn insist<T>(
        &self,
        doing: &'static str,
        exchange: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        within(&*self.runtime, self.deadlines.write, doing, exchange).await
    }

    /// Follows the ledger: past the breaker, since that harms no caller, and a success after a
    /// failure says that the store may be back.
    ///
    /// What comes of it opens nothing and closes nothing: a store may well answer the one and
    /// hang in the other.
    pub(crate) async fn follow<'a, T>(
        &self,
        exchange: impl FnOnce() -> BoxFuture<'a, Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let followed = self.insist("follow the ledger", exchange()).await;
        match &followed {
            Ok(_) => {
                self.heard.fetch_add(1, Ordering::Relaxed);
                if self.is_deaf.load(Ordering::Relaxed)
                    && self.is_deaf.swap(false, Ordering::AcqRel)
                {
                    tracing::info!(tier = %self.tier, "the ledger can be followed again");
                    if let Some(circuit) = &self.circuit {
                        circuit.nudge(self.clock.tick());
                    }
                }
            }
            Err(error) if !self.is_deaf.swap(true, Ordering::AcqRel) => {
                tracing::warn!(tier = %self.tier, %error, "the ledger cannot be followed");
            }
            Err(error) => {
                tracing::debug!(tier = %self.tier, %error, "the ledger cannot be followed");
            }
        }
        followed
    }

    /// Waits for `following`, which makes its exchanges by [`follow`](Self::follow), perhaps
    /// after others. It is refused like any exchange, may be the probe, and takes no place.
    pub(crate) async fn confirm<T>(
        &self,
        following: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let doing = "ask the ledger";
        let pass = self.enter(doing, Duration::MAX)?;
        let limit = pass.limit(self.deadlines.write);
        let heard = self.heard.load(Ordering::Relaxed);
        let answer = unless(|| self.runtime.sleep(limit), following).await;
        let verdict = match &answer {
            Some(Err(error)) if is_outage(error.kind()) => Verdict::Failed,
            Some(_) => Verdict::Good,
            // It was its turn that did not come: others were answered.
            None if self.heard.load(Ordering::Relaxed) != heard => Verdict::Unknown,
            None => Verdict::Failed,
        };
        pass.end(verdict, self.clock.tick());
        answer.unwrap_or_else(|| Err(StoreError::new(StoreErrorKind::Deadline, doing)))
    }

    /// How long a write may take.
    pub(crate) fn write_deadline(&self) -> Duration {
        self.deadlines.write
    }

    /// Whether the next exchange is refused.
    pub(crate) fn is_shut(&self) -> bool {
        self.circuit.as_ref().is_some_and(|circuit| circuit.is_shut(self.clock.tick()))
    }

    /// Whether the last exchange that told anything of the store was a failure.
    pub(crate) fn is_failing(&self) -> bool {
        self.circuit.as_ref().is_some_and(Circuit::is_failing)
    }

    fn state(&self) -> BreakerState {
        self.circuit.as_ref().map_or(BreakerState::Off, Circuit::state)
    }

    pub(crate) fn stats(&self) -> GuardStats {
        GuardStats {
            breaker: self.state(),
            opened: self.circuit.as_ref().map_or(0, Circuit::opened),
            refused: self.refused.load(Ordering::Relaxed),
            crowded: self.crowded.load(Ordering::Relaxed),
            slow: self.slow.load(Ordering::Relaxed),
            underway: self.places.taken() as u64,
        }
    }

    /// Makes an exchange if it is let through: `exchange` is not called otherwise.
    async fn exchange<'a, T>(
        &self,
        terms: Terms,
        exchange: impl FnOnce() -> BoxFuture<'a, Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let (pass, limit, _place) = self.admit(&terms).await?;
        let answer = unless(|| self.runtime.sleep(limit), exchange()).await;
        let (enough, now) = (pass.limit(terms.enough), self.clock.tick());
        let verdict = match &answer {
            Some(Err(error)) if is_outage(error.kind()) => Verdict::Failed,
            Some(_) => pass.in_time(now),
            None if limit < enough => Verdict::Unknown,
            None => Verdict::Failed,
        };
        pass.end(verdict, now);
        answer.unwrap_or_else(|| Err(StoreError::new(StoreErrorKind::Deadline, terms.doing)))
    }

    /// A pass, how long the exchange may take, and its place.
    async fn admit(
        &self,
        terms: &Terms,
    ) -> Result<(Pass<'_>, Duration, Option<Place<'_>>), StoreError> {
        let pass = self.enter(terms.doing, terms.slow)?;
        // Others may be stuck in all places: the probe, one at a time, needs none.
        if pass.is_probe() {
            let limit = pass.limit(terms.limit);
            return Ok((pass, limit, None));
        }
        if let Some(place) = self.places.try_take() {
            return Ok((pass, terms.limit, Some(place)));
        }
        // A burst is no outage: it waits, though no longer than its deadline.
        let began = pass.began;
        pass.end(Verdict::Unknown, began);
        let place = unless(|| self.runtime.sleep(terms.limit), self.places.take()).await.flatten();
        let left = terms.limit.saturating_sub(self.clock.tick().saturating_since(began));
        // Nor is the store asked what there is no time left to answer.
        let Some(place) = place.filter(|_| !left.is_zero()) else {
            bump(&self.crowded);
            return Err(refused(terms.doing, Refusal::Crowded(self.places.most())));
        };
        let pass = self.enter(terms.doing, terms.slow)?;
        let limit = pass.limit(left);
        Ok((pass, limit, Some(place)))
    }

    fn enter(&self, doing: &'static str, slow: Duration) -> Result<Pass<'_>, StoreError> {
        let began = self.clock.tick();
        let Some(circuit) = &self.circuit else {
            return Ok(Pass { guard: self, admission: None, began, slow });
        };
        match circuit.enter(began) {
            Ok(admission) => {
                let is_probe = admission.is_probe();
                let slow = if is_probe { slow.min(circuit.probe_limit()) } else { slow };
                if is_probe {
                    tracing::debug!(tier = %self.tier, "the breaker is half-open: one call is let through");
                }
                Ok(Pass { guard: self, admission: Some((circuit, admission)), began, slow })
            }
            Err(refusal) => {
                bump(&self.refused);
                Err(refused(doing, refusal))
            }
        }
    }

    fn tell(&self, change: Change) {
        let tier = &*self.tier;
        match change {
            Change::Opened(reason) => {
                tracing::warn!(tier, %reason, "the breaker has opened: the tier is left out");
            }
            Change::Reopened => tracing::debug!(tier, "the breaker is open again"),
            Change::Closed(after) => {
                tracing::info!(tier, ?after, "the breaker has closed: the tier is in use again");
            }
        }
    }
}

#[cold]
fn refused(doing: &'static str, refusal: Refusal) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, doing).caused_by(refusal)
}

/// An exchange that was let through. If it is dropped before its end, a probe makes room for
/// the next one.
struct Pass<'a> {
    guard: &'a Guard,
    admission: Option<(&'a Circuit, Admission)>,
    began: Tick,
    slow: Duration,
}

impl Pass<'_> {
    fn is_probe(&self) -> bool {
        self.admission.is_some_and(|(_, admission)| admission.is_probe())
    }

    /// `limit`, or less of it for a probe.
    fn limit(&self, limit: Duration) -> Duration {
        match self.admission {
            Some((circuit, admission)) if admission.is_probe() => limit.min(circuit.probe_limit()),
            _ => limit,
        }
    }

    fn in_time(&self, now: Tick) -> Verdict {
        let taken = now.saturating_since(self.began);
        if taken > self.slow { Verdict::Slow } else { Verdict::Good }
    }

    fn end(mut self, verdict: Verdict, now: Tick) {
        self.report(verdict, now);
    }

    fn report(&mut self, verdict: Verdict, now: Tick) {
        let guard = self.guard;
        if verdict == Verdict::Slow {
            bump(&guard.slow);
        }
        if let Some((circuit, admission)) = self.admission.take()
            && let Some(change) = circuit.leave(admission, verdict, now, || guard.runtime.random())
        {
            guard.tell(change);
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.admission.is_some() {
            // Its caller did not wait for it: no answer for longer than is slow is one, too.
            let now = self.guard.clock.tick();
            match self.in_time(now) {
                Verdict::Good => self.report(Verdict::Unknown, now),
                verdict => self.report(verdict, now),
            }
        }
    }
}

/// The answer of `exchange`, or an error once `deadline` has passed.
pub(crate) async fn within<T>(
    runtime: &dyn Runtime,
    deadline: Duration,
    doing: &'static str,
    exchange: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    unless(|| runtime.sleep(deadline), exchange)
        .await
        .unwrap_or_else(|| Err(StoreError::new(StoreErrorKind::Deadline, doing)))
}
