//! The **breaker**: whether a store is asked at all, by how its last exchanges went.
//!
//! ```text
//!            failures in a row, or too large a share that failed or was slow
//!   closed ────────────────────────────────────────────────────────▶ open
//!     ▲                                              ▲                 │
//!     │ it answers in time             it does not   │                 │ after a while,
//!     └───────────────────── half-open ──────────────┘                 │ the next call
//!                            (one probe) ◀─────────────────────────────┘
//! ```
//!
//! Nothing here reads a clock or waits: the time is an argument.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::Refusal;
use crate::clock::{Tick, millis};

/// When a tier's store is left alone, and for how long. Given to
/// [`Tier::breaker`](crate::Tier::breaker).
///
/// A store that hangs or limps would otherwise cost every miss its deadline. While the breaker
/// is open, exchanges with the store fail at once, in microseconds: reads go on to the next tier
/// or the loader, and what is written or invalidated is pending where the store has to know of
/// it. One call in a while is let through to see whether the store is back.
///
/// The defaults suit most stores. Raise [`failures`](Self::failures) and [`share`](Self::share)
/// for a store that is known to fail now and then and that nothing else can stand in for; set
/// [`slow`](Self::slow) where answers that are late but in time are of no use. An exchange costs
/// a few additions for it, and no lock.
///
/// ```
/// use std::time::Duration;
/// use terrace::{Breaker, Tier};
/// # use terrace_test::MapStore;
/// # let store = MapStore::new();
///
/// let tier = Tier::of(store)
///     .deadlines(Duration::from_millis(100), Duration::from_millis(250))
///     .breaker(Breaker::default().slow(Duration::from_millis(20), Duration::from_millis(100)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Breaker {
    pub(super) is_on: bool,
    failures: u32,
    percent: u32,
    calls: u32,
    /// Of reads and of writes.
    pub(super) slow: Option<(Duration, Duration)>,
    first: Duration,
    longest: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            is_on: true,
            failures: 5,
            percent: 50,
            calls: 8,
            slow: None,
            first: FIRST,
            longest: LONGEST,
        }
    }
}

/// How long a store is left alone at first.
const FIRST: Duration = Duration::from_millis(500);

/// How long it is left alone at most. Far below the 30 s that load balancers use: what that
/// would save is one call in 1.5 s, and what it would cost is a store that is unused long after
/// it is back. With the probe that follows, a tier is in use again within 2 s.
const LONGEST: Duration = Duration::from_millis(1500);

impl Breaker {
    /// No breaker: every exchange is tried and may take its deadline.
    ///
    /// For a store that callers would rather wait for than do without.
    pub fn off() -> Self {
        Self { is_on: false, ..Self::default() }
    }

    /// Opens after so many failures in a row: 5 unless set, and 1 at least.
    ///
    /// An answer of any kind, a slow one too, begins the row anew. Answers such as "no room
    /// left" are no failures.
    pub fn failures(self, failures: u32) -> Self {
        Self { failures: failures.max(1), ..self }
    }

    /// Opens when so many of 100 exchanges within 2 s failed or were slow, if there were
    /// `calls` at least: 50 of 100, and 8 calls, unless set.
    pub fn share(self, percent: u32, calls: u32) -> Self {
        Self { percent: percent.clamp(1, 100), calls: calls.max(1), ..self }
    }

    /// Reads and writes that take longer than this are slow: half of their deadlines unless
    /// set. Writes of a [`Disk`](crate::Disk) tier never are unless set, because a checkpoint
    /// that takes long is no outage.
    ///
    /// A read for which its space leaves less time than this tells nothing of the store.
    pub fn slow(self, read: Duration, write: Duration) -> Self {
        Self { slow: Some((read, write)), ..self }
    }

    /// Stays open for `first`, and twice as long each time that the store is still away, up to
    /// `longest`: 500 ms and 1.5 s unless set. Up to a quarter less at random, so that
    /// processes do not try in step.
    pub fn open_for(self, first: Duration, longest: Duration) -> Self {
        Self { first, longest, ..self }
    }
}

/// What a breaker lets through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BreakerState {
    /// Everything, always: there is no breaker.
    #[default]
    Off,
    /// Everything.
    Closed,
    /// Nothing: the store was found to be away.
    Open,
    /// One call, to see whether the store is back.
    HalfOpen,
}

/// A breaker in use.
#[derive(Debug)]
pub(crate) struct Circuit {
    rules: Breaker,
    /// How long a probe may take.
    probe_limit: Duration,
    /// The number of the last change of state, and in the lowest two bits the state.
    state: AtomicU64,
    /// While it is not closed: the tick from which on the next call is a probe.
    probe_from: AtomicU64,
    in_a_row: AtomicU32,
    window: Window,
    opened: AtomicU64,
    // Locked when the state changes, and at no other time.
    history: Mutex<History>,
}

#[derive(Debug, Default)]
struct History {
    opened: Tick,
    closed: Tick,
    /// How often it was opened since the store was healthy for a while.
    growth: u32,
}

const CLOSED: u64 = 0;
const OPEN: u64 = 1;
const HALF_OPEN: u64 = 2;

fn kind(state: u64) -> u64 {
    state & 3
}

/// A store that was in use for so long is healthy: the next outage begins with the first wait.
const HEALTHY: Duration = Duration::from_secs(10);

/// A probe whose caller went away before it could tell anything is followed by another one after
/// this: soon, and not so soon that impatient callers queue up to be it.
const PAUSE: Duration = Duration::from_millis(50);

/// A probe that nobody drives on is given up so long after its limit.
const GRACE: Duration = Duration::from_millis(100);

/// The right to make one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admission {
    state: u64,
}

impl Admission {
    pub(crate) fn is_probe(self) -> bool {
        kind(self.state) == HALF_OPEN
    }
}

/// What a call says of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    /// It answered, and late.
    Slow,
    Failed,
    /// Nothing: it was dropped, or had too little time.
    Unknown,
}

/// A change of state that a call has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Opened(Reason),
    /// After a probe that brought nothing.
    Reopened,
    /// After it was open for so long.
    Closed(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    InARow(u32),
    Share { bad: u32, calls: u32 },
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InARow(failures) => write!(formatter, "{failures} failures in a row"),
            Self::Share { bad, calls } => {
                write!(formatter, "{bad} of {calls} exchanges failed or were slow")
            }
        }
    }
}

impl Circuit {
    pub(crate) fn new(rules: Breaker, probe_limit: Duration) -> Self {
        Self {
            rules,
            probe_limit,
            state: AtomicU64::new(CLOSED),
            probe_from: AtomicU64::new(0),
            in_a_row: AtomicU32::new(0),
            window: Window::default(),
            opened: AtomicU64::new(0),
            history: Mutex::default(),
        }
    }

    pub(crate) fn probe_limit(&self) -> Duration {
        self.probe_limit
    }

    pub(crate) fn state(&self) -> BreakerState {
        match kind(self.state.load(Ordering::Acquire)) {
            CLOSED => BreakerState::Closed,
            OPEN => BreakerState::Open,
            _ => BreakerState::HalfOpen,
        }
    }

    /// Whether the last answer is missing.
    pub(crate) fn is_failing(&self) -> bool {
        self.in_a_row.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Lets a call through, or says why not. Whoever is let through [leaves](Self::leave).
    #[inline]
    pub(crate) fn enter(&self, now: Tick) -> Result<Admission, Refusal> {
        let state = self.state.load(Ordering::Acquire);
        if kind(state) == CLOSED { Ok(Admission { state }) } else { self.enter_late(now) }
    }

    #[cold]
    fn enter_late(&self, now: Tick) -> Result<Admission, Refusal> {
        if !self.is_due(now) {
            return Err(self.refusal(now));
        }
        let _history = self.history.lock();
        let state = self.state.load(Ordering::Acquire);
        if kind(state) == CLOSED {
            return Ok(Admission { state });
        }
        // Somebody else may have been quicker.
        if !self.is_due(now) {
            return Err(self.refusal(now));
        }
        // Also in place of a probe that is overdue, whose end then tells nothing any more.
        self.put_off(now, self.probe_limit.saturating_add(GRACE));
        Ok(Admission { state: self.change(HALF_OPEN) })
    }

    /// Whether the next call is refused.
    pub(crate) fn is_shut(&self, now: Tick) -> bool {
        kind(self.state.load(Ordering::Acquire)) != CLOSED && !self.is_due(now)
    }

    /// What to tell those who are not let through.
    pub(crate) fn refusal(&self, now: Tick) -> Refusal {
        match kind(self.state.load(Ordering::Acquire)) {
            HALF_OPEN => Refusal::Probing,
            _ => {
                let from = self.probe_from.load(Ordering::Acquire);
                Refusal::Open(Duration::from_millis(from.saturating_sub(now.as_millis())))
            }
        }
    }

    /// What came of a call that was let through.
    ///
    /// One from before the last change of state says nothing of the store as it is now.
    pub(crate) fn leave(
        &self,
        admission: Admission,
        verdict: Verdict,
        now: Tick,
        random: impl FnOnce() -> u64,
    ) -> Option<Change> {
        if self.state.load(Ordering::Acquire) != admission.state {
            return None;
        }
        if admission.is_probe() {
            return self.judge_probe(admission, verdict, now, random);
        }
        match verdict {
            Verdict::Good => {
                self.end_row();
                self.window.add(now, false);
                None
            }
            Verdict::Unknown => None,
            Verdict::Slow => {
                self.end_row();
                self.window.add(now, true);
                self.open(admission, self.share(now)?, now, random)
            }
            Verdict::Failed => {
                let in_a_row = self.in_a_row.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                self.window.add(now, true);
                let in_a_row =
                    (in_a_row >= self.rules.failures).then_some(Reason::InARow(in_a_row));
                self.open(admission, in_a_row.or_else(|| self.share(now))?, now, random)
            }
        }
    }

    /// The store was heard of in another way: the next call may be the probe at once.
    pub(crate) fn nudge(&self, now: Tick) {
        let _history = self.history.lock();
        if kind(self.state.load(Ordering::Acquire)) == OPEN {
            self.probe_from.fetch_min(now.as_millis(), Ordering::AcqRel);
        }
    }

    /// Most exchanges go well: nothing is written then.
    fn end_row(&self) {
        if self.in_a_row.load(Ordering::Relaxed) != 0 {
            self.in_a_row.store(0, Ordering::Relaxed);
        }
    }

    fn share(&self, now: Tick) -> Option<Reason> {
        let (calls, bad) = self.window.sums(now);
        let is_large = u64::from(bad) * 100 >= u64::from(self.rules.percent) * u64::from(calls);
        (calls >= self.rules.calls && is_large).then_some(Reason::Share { bad, calls })
    }

    fn open(
        &self,
        admission: Admission,
        reason: Reason,
        now: Tick,
        random: impl FnOnce() -> u64,
    ) -> Option<Change> {
        let mut history = self.history.lock();
        if self.state.load(Ordering::Acquire) != admission.state {
            return None;
        }
        if now.saturating_since(history.closed) >= HEALTHY {
            history.growth = 0;
        }
        history.opened = now;
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.leave_alone(&mut history, now, random());
        Some(Change::Opened(reason))
    }

    fn judge_probe(
        &self,
        admission: Admission,
        verdict: Verdict,
        now: Tick,
        random: impl FnOnce() -> u64,
    ) -> Option<Change> {
        let mut history = self.history.lock();
        if self.state.load(Ordering::Acquire) != admission.state {
            return None;
        }
        match verdict {
            Verdict::Good => {
                self.end_row();
                self.window.clear();
                history.closed = now;
                self.change(CLOSED);
                return Some(Change::Closed(now.saturating_since(history.opened)));
            }
            Verdict::Slow | Verdict::Failed => self.leave_alone(&mut history, now, random()),
            Verdict::Unknown => {
                self.put_off(now, PAUSE);
                self.change(OPEN);
            }
        }
        Some(Change::Reopened)
    }

    /// Open for longer than the last time.
    fn leave_alone(&self, history: &mut History, now: Tick, random: u64) {
        self.put_off(now, wait(&self.rules, history.growth, random));
        history.growth = history.growth.saturating_add(1);
        self.change(OPEN);
    }

    fn is_due(&self, now: Tick) -> bool {
        now.as_millis() >= self.probe_from.load(Ordering::Acquire)
    }

    fn put_off(&self, now: Tick, wait: Duration) {
        self.probe_from.store(now.as_millis().saturating_add(millis(wait)), Ordering::Release);
    }

    /// Under the lock. Returns the new state.
    fn change(&self, kind: u64) -> u64 {
        let state = ((self.state.load(Ordering::Acquire) >> 2) + 1) << 2 | kind;
        self.state.store(state, Ordering::Release);
        state
    }
}

/// How long the store is left alone the next time: at most the longest, and up to a quarter less.
fn wait(rules: &Breaker, growth: u32, random: u64) -> Duration {
    let doubled = rules.first.saturating_mul(1 << growth.min(16)).min(rules.longest);
    // A quarter in 1,024 steps.
    let less = (doubled / 4096).saturating_mul(u32::try_from(random % 1024).unwrap_or(0));
    doubled.saturating_sub(less)
}

/// The window is of this many slots, the present one included...
const SLOTS: u64 = 4;

/// ...of this many milliseconds each.
const SLOT: u64 = 500;

/// Exchanges of the last 1.5 to 2 s, and those of them that failed or were slow.
#[derive(Debug, Default)]
struct Window {
    slots: [AtomicU64; 4],
}

/// 24 bits for the number of the slot, 20 for calls, 20 for bad ones.
const COUNT_BITS: u32 = 20;
const MOST: u64 = (1 << COUNT_BITS) - 1;
const NUMBER_BITS: u32 = 24;

impl Window {
    fn add(&self, now: Tick, is_bad: bool) {
        let number = slot_number(now);
        let Some(slot) = self.slots.get((number % SLOTS) as usize) else { return };
        let add = |packed: u64| {
            let (of, calls, bad) = unpack(packed);
            let (calls, bad) = if of == number { (calls, bad) } else { (0, 0) };
            // Full: the share is known well enough.
            (calls < MOST).then(|| pack(number, calls + 1, bad + u64::from(is_bad)))
        };
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Calls, and bad ones of them.
    fn sums(&self, now: Tick) -> (u32, u32) {
        let number = slot_number(now);
        let mask = (1 << NUMBER_BITS) - 1;
        let (mut calls, mut bad) = (0, 0);
        for slot in &self.slots {
            let (of, its_calls, its_bad) = unpack(slot.load(Ordering::Relaxed));
            if number.wrapping_sub(of) & mask < SLOTS {
                calls += its_calls;
                bad += its_bad;
            }
        }
        // Four counts of 20 bits each.
        (u32::try_from(calls).unwrap_or(u32::MAX), u32::try_from(bad).unwrap_or(u32::MAX))
    }

    fn clear(&self) {
        self.slots.iter().for_each(|slot| slot.store(0, Ordering::Relaxed));
    }
}

fn slot_number(now: Tick) -> u64 {
    (now.as_millis() / SLOT) & ((1 << NUMBER_BITS) - 1)
}

fn pack(number: u64, calls: u64, bad: u64) -> u64 {
    number << (2 * COUNT_BITS) | calls << COUNT_BITS | bad
}

fn unpack(packed: u64) -> (u64, u64, u64) {
    (packed >> (2 * COUNT_BITS), packed >> COUNT_BITS & MOST, packed & MOST)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use proptest::prelude::*;

    use super::*;

    const PROBE_LIMIT: Duration = Duration::from_millis(50);

    fn at(millis: u64) -> Tick {
        // Not at the beginning of time: nothing may depend on that.
        Tick::from_millis(1_000_000 + millis)
    }

    /// The breaker as one would explain it to somebody: all calls are remembered.
    struct Model {
        state: BreakerState,
        /// Changes of state so far: calls from before the last one count no more.
        changes: u64,
        due: u64,
        in_a_row: u32,
        /// When calls ended, and whether they were bad.
        calls: Vec<(u64, bool)>,
        growth: u32,
        closed: Option<u64>,
        opened: u64,
    }

    impl Model {
        fn new() -> Self {
            let (state, calls) = (BreakerState::Closed, Vec::new());
            let (changes, due, in_a_row, growth, opened) = (0, 0, 0, 0, 0);
            Self { state, changes, due, in_a_row, calls, growth, closed: None, opened }
        }

        fn turn(&mut self, state: BreakerState) {
            self.state = state;
            self.changes += 1;
        }

        fn enter(&mut self, now: u64) -> Option<(u64, bool)> {
            if self.state == BreakerState::Closed {
                return Some((self.changes, false));
            }
            if now < self.due {
                return None;
            }
            self.due = now + 150;
            self.turn(BreakerState::HalfOpen);
            Some((self.changes, true))
        }

        fn leave(&mut self, (changes, is_probe): (u64, bool), verdict: Verdict, now: u64) {
            if changes != self.changes {
                return;
            }
            match (is_probe, verdict) {
                (true, Verdict::Good) => {
                    self.calls.clear();
                    self.in_a_row = 0;
                    self.closed = Some(now);
                    self.turn(BreakerState::Closed);
                }
                (true, Verdict::Unknown) => {
                    self.due = now + 50;
                    self.turn(BreakerState::Open);
                }
                (true, Verdict::Slow | Verdict::Failed) => self.leave_alone(now),
                (false, Verdict::Unknown) => {}
                (false, _) => {
                    let is_bad = verdict != Verdict::Good;
                    self.calls.push((now, is_bad));
                    self.in_a_row = if verdict == Verdict::Failed { self.in_a_row + 1 } else { 0 };
                    if is_bad && (self.in_a_row >= 5 || self.is_share_large(now)) {
                        let was_healthy = self.closed.is_none_or(|closed| now - closed >= 10_000);
                        self.growth = if was_healthy { 0 } else { self.growth };
                        self.opened += 1;
                        self.leave_alone(now);
                    }
                }
            }
        }

        fn is_share_large(&self, now: u64) -> bool {
            let recent = self.calls.iter().filter(|(ended, _)| ended / 500 + 4 > now / 500);
            let bad = recent.clone().filter(|(_, is_bad)| *is_bad).count();
            recent.clone().count() >= 8 && 2 * bad >= recent.count()
        }

        fn leave_alone(&mut self, now: u64) {
            self.due = now + [500, 1000, 1500][self.growth.min(2) as usize];
            self.growth += 1;
            self.turn(BreakerState::Open);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Enter,
        /// One of the calls that are under way ends.
        Leave(usize, Verdict),
        /// Calls that end at once.
        Calls(usize, Verdict),
        Nudge,
    }

    fn verdict() -> impl Strategy<Value = Verdict> {
        prop_oneof![
            3 => Just(Verdict::Good),
            2 => Just(Verdict::Slow),
            3 => Just(Verdict::Failed),
            1 => Just(Verdict::Unknown),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..700_u64).prop_map(Step::Wait),
            1 => (0..20_000_u64).prop_map(Step::Wait),
            3 => Just(Step::Enter),
            3 => (any::<usize>(), verdict()).prop_map(|(which, how)| Step::Leave(which, how)),
            4 => (1..7_usize, verdict()).prop_map(|(calls, how)| Step::Calls(calls, how)),
            1 => Just(Step::Nudge),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        #[test]
        fn it_does_what_the_model_does(steps in prop::collection::vec(step(), 1..150)) {
            let circuit = Circuit::new(Breaker::default(), PROBE_LIMIT);
            let mut model = Model::new();
            let (mut now, mut underway) = (0, Vec::new());
            let enter = |model: &mut Model, now| {
                let (admission, expected) = (circuit.enter(at(now)).ok(), model.enter(now));
                let is_probe = admission.map(Admission::is_probe);
                assert_eq!(is_probe, expected.map(|(_, is_probe)| is_probe));
                admission.zip(expected)
            };
            for step in steps {
                match step {
                    Step::Wait(time) => now += time,
                    Step::Enter => underway.extend(enter(&mut model, now)),
                    Step::Leave(which, how) if !underway.is_empty() => {
                        let (mine, its) = underway.swap_remove(which % underway.len());
                        circuit.leave(mine, how, at(now), || 0);
                        model.leave(its, how, now);
                    }
                    Step::Leave(..) => {}
                    Step::Calls(calls, how) => for _ in 0..calls {
                        if let Some((mine, its)) = enter(&mut model, now) {
                            circuit.leave(mine, how, at(now), || 0);
                            model.leave(its, how, now);
                        }
                    }
                    Step::Nudge => {
                        circuit.nudge(at(now));
                        if model.state == BreakerState::Open {
                            model.due = model.due.min(now);
                        }
                    }
                }
                prop_assert_eq!(circuit.state(), model.state);
                prop_assert_eq!(circuit.opened(), model.opened);
            }
        }

        #[test]
        fn a_wait_is_never_above_the_longest_nor_far_below(growth in 0..40_u32, random: u64) {
            let waits = wait(&Breaker::default(), growth, random);
            let full = Duration::from_millis([500, 1000, 1500][growth.min(2) as usize]);
            prop_assert!(waits <= full && waits >= full.mul_f64(0.75), "{waits:?} of {full:?}");
        }

        #[test]
        fn the_window_adds_up(calls in prop::collection::vec((0..400_u64, any::<bool>()), 1..60)) {
            let window = Window::default();
            let (mut now, mut all) = (0, Vec::new());
            for (wait, is_bad) in calls {
                now += wait;
                window.add(at(now), is_bad);
                all.push((now / SLOT, is_bad));
                let recent = all.iter().filter(|(slot, _)| slot + SLOTS > now / SLOT);
                let bad = recent.clone().filter(|(_, is_bad)| *is_bad).count();
                let (calls, its_bad) = window.sums(at(now));
                prop_assert_eq!((calls as usize, its_bad as usize), (recent.count(), bad));
            }
        }
    }

    #[test]
    fn threads_that_come_at_once_are_one_probe() {
        for _ in 0..200 {
            let circuit = Circuit::new(Breaker::default().failures(1), PROBE_LIMIT);
            let first = circuit.enter(at(0)).unwrap();
            assert!(circuit.leave(first, Verdict::Failed, at(0), || 0).is_some());
            let together = Barrier::new(4);
            let probes: usize = std::thread::scope(|scope| {
                let enter = || {
                    together.wait();
                    usize::from(circuit.enter(at(500)).is_ok())
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(enter)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(probes, 1);
        }
    }

    #[test]
    fn a_full_slot_counts_no_further() {
        let window = Window::default();
        for _ in 0..MOST + 10 {
            window.add(at(0), true);
        }
        let most = u32::try_from(MOST).unwrap();
        assert_eq!(window.sums(at(0)), (most, most));
    }
}
