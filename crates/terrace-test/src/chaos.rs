//! The **chaos store**: a store around another one that fails as a test says.
//!
//! A fault is set for some [`Calls`], at any time, and meets every one of them until
//! [`ChaosStore::heal`]. Nothing here is random and nothing sleeps: a call that is
//! to be slow waits at a [`Gate`] until the test opens it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use terrace::authority::{Answer, Append, Appended, Authority, Written};
use terrace::clock::WallTime;
use terrace::key::StoredKey;
use terrace::ledger::{Name, Names, Stamp};
use terrace::protocol::{Follow, Leased, Snapshot};
use terrace::runtime::BoxFuture;
use terrace::store::{Put, Scope, Store, StoreError, StoreErrorKind, StoreResult, Stored, Usage};
use tokio::sync::{Semaphore, watch};

/// A [`Store`] that passes calls on to another one, and faults in between.
///
/// If that one keeps a ledger, this one does, and calls of the ledger meet the same
/// faults. A call counts from the moment at which its future is first polled. Of
/// several faults for one call, those before it are met in the order in which they
/// were set, then the call is made, then its answer meets the others.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use terrace::store::{Store, StoreErrorKind};
/// use terrace_test::{Calls, ChaosStore, Fault, MapStore, Verb};
///
/// let store = ChaosStore::over(Arc::new(MapStore::new()));
/// store.inject(Calls::of([Verb::Get]).nth(2), Fault::Fail(StoreErrorKind::Unavailable));
/// assert!(store.get(&[]).await.is_ok());
/// assert!(store.get(&[]).await.is_err());
/// assert!(store.get(&[]).await.is_ok());
/// assert_eq!(store.calls_of(Verb::Get), 3);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ChaosStore {
    inner: Arc<dyn Store>,
    chaos: Arc<Chaos>,
    hides_authority: bool,
}

/// What a store or its ledger is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Verb {
    /// [`Store::get`]
    Get,
    /// [`Store::put`]
    Put,
    /// [`Store::remove`]
    Remove,
    /// [`Store::clear`]
    Clear,
    /// [`Store::scan`]
    Scan,
    /// [`Store::usage`]
    Usage,
    /// [`Store::maintain`]
    Maintain,
    /// [`Store::close`]
    Close,
    /// [`Authority::snapshot`]
    Snapshot,
    /// [`Authority::append`]
    Append,
    /// [`Authority::append_if_unnamed`]
    AppendIfUnnamed,
    /// [`Authority::drop_again`]
    DropAgain,
    /// [`Authority::write`]
    Write,
    /// [`Authority::follow`]
    Follow,
    /// [`Authority::lease`]
    Lease,
    /// [`Authority::renew`]
    Renew,
    /// [`Authority::release`]
    Release,
    /// [`Authority::count`]
    Count,
    /// [`Authority::counter`]
    Counter,
}

impl Verb {
    /// Whether this is asked of the ledger.
    #[must_use]
    pub fn is_of_authority(self) -> bool {
        self >= Self::Snapshot
    }
}

/// Some of the calls that are still to come.
///
/// A cache calls its stores on its own, too: it follows the ledger and cleans up.
/// Count calls of one verb where that would get in the way.
///
/// ```
/// use terrace_test::{Calls, Verb};
///
/// let every = Calls::all();
/// let every_read = Calls::from(Verb::Get);
/// let third_write = Calls::of([Verb::Put, Verb::Remove]).nth(3);
/// let next_two = Calls::of_authority().first(2);
/// # let _ = (every, every_read, third_write, next_two);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Calls {
    of: Of,
    skip: u64,
    left: u64,
}

#[derive(Clone, Debug)]
enum Of {
    All,
    Store,
    Authority,
    Verbs(Vec<Verb>),
}

impl Calls {
    /// Every call from now on.
    pub fn all() -> Self {
        Self::kind(Of::All)
    }

    /// Every call of some verbs from now on.
    pub fn of(verbs: impl IntoIterator<Item = Verb>) -> Self {
        Self::kind(Of::Verbs(verbs.into_iter().collect()))
    }

    /// Every call that is not one of the ledger's.
    pub fn of_store() -> Self {
        Self::kind(Of::Store)
    }

    /// Every call of the ledger.
    pub fn of_authority() -> Self {
        Self::kind(Of::Authority)
    }

    /// Of these calls the `n`-th from now alone; the next one is the first.
    pub fn nth(self, n: u64) -> Self {
        Self { skip: n.saturating_sub(1), left: 1, ..self }
    }

    /// Of these calls the next `n` alone.
    pub fn first(self, n: u64) -> Self {
        Self { skip: 0, left: n, ..self }
    }

    fn kind(of: Of) -> Self {
        Self { of, skip: 0, left: u64::MAX }
    }

    /// Whether a call is meant, which then has taken place.
    fn take(&mut self, verb: Verb) -> bool {
        let is_meant = match &self.of {
            Of::All => true,
            Of::Store => !verb.is_of_authority(),
            Of::Authority => verb.is_of_authority(),
            Of::Verbs(verbs) => verbs.contains(&verb),
        };
        if !is_meant || self.left == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.left -= 1;
        true
    }
}

impl From<Verb> for Calls {
    fn from(verb: Verb) -> Self {
        Self::of([verb])
    }
}

/// What happens to a call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// It fails and nothing was done.
    Fail(StoreErrorKind),
    /// It never completes and nothing was done.
    Hang,
    /// It is done, and yet it fails.
    FailAfter(StoreErrorKind),
    /// It is done, and yet it never completes.
    HangAfter,
    /// The frames that it reads are damaged. Calls that read none are left alone.
    Damage(Damage),
}

/// How a frame is damaged on its way out; what is stored stays whole.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Damage {
    /// All bits of the byte at this offset, counted round and round, are turned.
    Flip(usize),
    /// Only so many bytes are left.
    Truncate(usize),
    /// Other bytes stand in its place.
    Replace(Bytes),
    /// As many bytes of noise, the same for the same seed.
    Noise(u64),
}

impl Damage {
    /// `frame` with this damage. An empty frame can only be replaced.
    #[must_use]
    pub fn to(&self, frame: &Bytes) -> Bytes {
        match self {
            Self::Flip(at) => {
                let mut bytes = frame.to_vec();
                let at = at.checked_rem(bytes.len()).unwrap_or(0);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = !*byte;
                }
                bytes.into()
            }
            Self::Truncate(length) => frame.slice(..frame.len().min(*length)),
            Self::Replace(bytes) => bytes.clone(),
            Self::Noise(seed) => {
                let mut random = crate::random::Random::new(*seed);
                frame.iter().map(|_| random.byte()).collect::<Vec<_>>().into()
            }
        }
    }
}

/// Where calls wait until a test lets them go on. Made by [`ChaosStore::hold`].
///
/// Dropping it opens it.
#[derive(Debug)]
#[must_use = "a gate that is dropped is open"]
pub struct Gate {
    posts: Arc<Posts>,
}

#[derive(Debug)]
struct Posts {
    arrivals: watch::Sender<u64>,
    passes: Semaphore,
}

impl Gate {
    /// Completes once a call has arrived here, at once if one has already.
    pub async fn arrived(&self) {
        self.arrived_many(1).await;
    }

    /// Completes once `n` calls have arrived here since the gate was made.
    pub async fn arrived_many(&self, n: u64) {
        // The sender is ours, so that waiting cannot fail.
        let _ = self.posts.arrivals.subscribe().wait_for(|arrivals| *arrivals >= n).await;
    }

    /// Calls that have arrived here, those that went on or were dropped included.
    #[must_use]
    pub fn arrivals(&self) -> u64 {
        *self.posts.arrivals.borrow()
    }

    /// Lets one call go on: the one that waits longest, or the next one to arrive.
    pub fn release_one(&self) {
        self.posts.passes.add_permits(1);
    }

    /// Lets all calls go on that wait or will arrive.
    pub fn open(&self) {
        self.posts.passes.close();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

impl Posts {
    async fn pass(&self) {
        self.arrivals.send_modify(|arrivals| *arrivals += 1);
        // An error says that the gate is open.
        if let Ok(pass) = self.passes.acquire().await {
            pass.forget();
        }
    }
}

impl ChaosStore {
    /// A store that passes everything on to `inner` until it is told otherwise.
    #[must_use]
    pub fn over(inner: Arc<dyn Store>) -> Self {
        Self { inner, chaos: Arc::default(), hides_authority: false }
    }

    /// The same without the ledger that `inner` keeps, if it does.
    #[must_use]
    pub fn without_authority(self) -> Self {
        Self { hides_authority: true, ..self }
    }

    /// The store inside, which knows no faults.
    #[must_use]
    pub fn inner(&self) -> &Arc<dyn Store> {
        &self.inner
    }

    /// From now on, `calls` meet `fault`.
    pub fn inject(&self, calls: impl Into<Calls>, fault: Fault) {
        self.chaos.add(calls.into(), Step::of(fault));
    }

    /// Every call fails from now on: the store cannot be reached.
    pub fn fail(&self) {
        self.inject(Calls::all(), Fault::Fail(StoreErrorKind::Unavailable));
    }

    /// No call completes from now on.
    pub fn hang(&self) {
        self.inject(Calls::all(), Fault::Hang);
    }

    /// From now on, `calls` wait at a gate before anything is done.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::sync::Arc;
    /// use terrace::store::Store;
    /// use terrace_test::{ChaosStore, MapStore, Verb};
    ///
    /// let store = Arc::new(ChaosStore::over(Arc::new(MapStore::new())));
    /// let gate = store.hold(Verb::Get);
    /// let read = tokio::spawn({
    ///     let store = Arc::clone(&store);
    ///     async move { store.get(&[]).await }
    /// });
    /// gate.arrived().await;
    /// assert!(!read.is_finished());
    /// gate.open();
    /// assert!(read.await?.is_ok());
    /// # Ok(()) }
    /// ```
    pub fn hold(&self, calls: impl Into<Calls>) -> Gate {
        let gate = Gate::new();
        self.chaos.add(calls.into(), Step::Before(Before::Hold(Arc::clone(&gate.posts))));
        gate
    }

    /// From now on, `calls` are made, and their answers wait at a gate.
    pub fn hold_answers(&self, calls: impl Into<Calls>) -> Gate {
        let gate = Gate::new();
        self.chaos.add(calls.into(), Step::After(After::Hold(Arc::clone(&gate.posts))));
        gate
    }

    /// Forgets all faults. Calls that hang already never complete, and those at a
    /// gate wait for it.
    pub fn heal(&self) {
        self.chaos.state.lock().rules.clear();
    }

    /// Calls so far, of the store and of its ledger.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.chaos.state.lock().calls.values().sum()
    }

    /// Calls of one verb so far.
    #[must_use]
    pub fn calls_of(&self, verb: Verb) -> u64 {
        self.chaos.state.lock().calls.get(&verb).copied().unwrap_or(0)
    }
}

impl Gate {
    fn new() -> Self {
        let posts = Posts { arrivals: watch::Sender::new(0), passes: Semaphore::new(0) };
        Self { posts: Arc::new(posts) }
    }
}

/// The faults that are set and the calls that came, of a store and its ledger.
#[derive(Debug, Default)]
struct Chaos {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<(Calls, Step)>,
    calls: BTreeMap<Verb, u64>,
}

#[derive(Clone, Debug)]
enum Step {
    Before(Before),
    After(After),
}

#[derive(Clone, Debug)]
enum Before {
    Fail(StoreErrorKind),
    Hang,
    Hold(Arc<Posts>),
}

#[derive(Clone, Debug)]
enum After {
    Fail(StoreErrorKind),
    Hang,
    Hold(Arc<Posts>),
    Damage(Damage),
}

impl Step {
    fn of(fault: Fault) -> Self {
        match fault {
            Fault::Fail(kind) => Self::Before(Before::Fail(kind)),
            Fault::Hang => Self::Before(Before::Hang),
            Fault::FailAfter(kind) => Self::After(After::Fail(kind)),
            Fault::HangAfter => Self::After(After::Hang),
            Fault::Damage(damage) => Self::After(After::Damage(damage)),
        }
    }
}

impl Chaos {
    fn add(&self, calls: Calls, step: Step) {
        self.state.lock().rules.push((calls, step));
    }

    /// Counts a call and says what it meets on its way in and on its way out.
    fn meet(&self, verb: Verb) -> (Vec<Before>, Vec<After>) {
        let mut state = self.state.lock();
        *state.calls.entry(verb).or_default() += 1;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for (calls, step) in &mut state.rules {
            if calls.take(verb) {
                match step {
                    Step::Before(step) => before.push(step.clone()),
                    Step::After(step) => after.push(step.clone()),
                }
            }
        }
        (before, after)
    }

    /// Makes a call with all that it meets; `damage` does harm to its answer.
    async fn pass<'a, T: Send>(
        &self,
        verb: Verb,
        call: impl FnOnce() -> BoxFuture<'a, Result<T, StoreError>> + Send,
        damage: impl Fn(&mut T, &Damage) + Send + Sync,
    ) -> Result<T, StoreError> {
        let (before, after) = self.meet(verb);
        for step in before {
            match step {
                Before::Fail(kind) => return Err(failure(kind)),
                Before::Hang => std::future::pending().await,
                Before::Hold(posts) => posts.pass().await,
            }
        }
        let mut answer = call().await;
        for step in after {
            match step {
                After::Fail(kind) => answer = Err(failure(kind)),
                After::Hang => std::future::pending().await,
                After::Hold(posts) => posts.pass().await,
                After::Damage(harm) => {
                    if let Ok(answer) = &mut answer {
                        damage(answer, &harm);
                    }
                }
            }
        }
        answer
    }

    /// The same for a call whose answer holds no frames.
    fn relay<'a, T: Send + 'a>(
        &'a self,
        verb: Verb,
        call: impl FnOnce() -> BoxFuture<'a, Result<T, StoreError>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        Box::pin(self.pass(verb, call, |_, _| {}))
    }
}

fn failure(kind: StoreErrorKind) -> StoreError {
    StoreError::new(kind, "pass the chaos store")
}

impl Store for ChaosStore {
    fn scope(&self) -> Scope {
        self.inner.scope()
    }

    fn get<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<Option<Bytes>>> {
        let harm = |frames: &mut Vec<Option<Bytes>>, damage: &Damage| {
            frames.iter_mut().flatten().for_each(|frame| *frame = damage.to(frame));
        };
        Box::pin(self.chaos.pass(Verb::Get, || self.inner.get(keys), harm))
    }

    fn put<'a>(&'a self, puts: &'a [Put]) -> StoreResult<'a, Vec<Stored>> {
        self.chaos.relay(Verb::Put, || self.inner.put(puts))
    }

    fn remove<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<bool>> {
        self.chaos.relay(Verb::Remove, || self.inner.remove(keys))
    }

    fn clear<'a>(&'a self, prefix: &'a str) -> StoreResult<'a, u64> {
        self.chaos.relay(Verb::Clear, || self.inner.clear(prefix))
    }

    fn scan<'a>(
        &'a self,
        after: Option<&'a StoredKey>,
        limit: usize,
    ) -> StoreResult<'a, Vec<(StoredKey, Bytes)>> {
        let harm = |found: &mut Vec<(StoredKey, Bytes)>, damage: &Damage| {
            found.iter_mut().for_each(|(_, frame)| *frame = damage.to(frame));
        };
        Box::pin(self.chaos.pass(Verb::Scan, move || self.inner.scan(after, limit), harm))
    }

    fn usage(&self) -> StoreResult<'_, Usage> {
        self.chaos.relay(Verb::Usage, || self.inner.usage())
    }

    fn authority(&self) -> Option<Arc<dyn Authority>> {
        let inner = self.inner.authority().filter(|_| !self.hides_authority)?;
        Some(Arc::new(ChaosAuthority { inner, chaos: Arc::clone(&self.chaos) }))
    }

    fn obey_another_ledger(&self) {
        self.inner.obey_another_ledger();
    }

    fn maintain(&self, now: WallTime) -> StoreResult<'_, ()> {
        self.chaos.relay(Verb::Maintain, move || self.inner.maintain(now))
    }

    fn close(&self) -> StoreResult<'_, ()> {
        self.chaos.relay(Verb::Close, || self.inner.close())
    }
}

/// The ledger of the store inside, with the same faults.
#[derive(Debug)]
struct ChaosAuthority {
    inner: Arc<dyn Authority>,
    chaos: Arc<Chaos>,
}

impl Authority for ChaosAuthority {
    fn scope(&self) -> Scope {
        self.inner.scope()
    }

    fn snapshot(&self) -> Answer<'_, Snapshot> {
        self.chaos.relay(Verb::Snapshot, || self.inner.snapshot())
    }

    fn append<'a>(&'a self, names: &'a [Name]) -> Answer<'a, Appended> {
        self.chaos.relay(Verb::Append, || self.inner.append(names))
    }

    fn most_in_one_step(&self) -> usize {
        self.inner.most_in_one_step()
    }

    fn write<'a>(&'a self, appends: &'a [Append]) -> Answer<'a, Written> {
        self.chaos.relay(Verb::Write, || self.inner.write(appends))
    }

    fn drop_again<'a>(&'a self, names: &'a [Name]) -> Answer<'a, Vec<usize>> {
        self.chaos.relay(Verb::DropAgain, || self.inner.drop_again(names))
    }

    fn append_if_unnamed<'a>(
        &'a self,
        ticket: Stamp,
        name: Name,
        names: Names<'a>,
    ) -> Answer<'a, Option<Appended>> {
        self.chaos
            .relay(Verb::AppendIfUnnamed, move || self.inner.append_if_unnamed(ticket, name, names))
    }

    fn follow(&self, position: Stamp) -> Answer<'_, Follow> {
        self.chaos.relay(Verb::Follow, move || self.inner.follow(position))
    }

    fn lease<'a>(
        &'a self,
        key: &'a Arc<str>,
        now: WallTime,
        until: WallTime,
    ) -> Answer<'a, Leased> {
        self.chaos.relay(Verb::Lease, move || self.inner.lease(key, now, until))
    }

    fn renew<'a>(&'a self, key: &'a str, token: u64, until: WallTime) -> Answer<'a, bool> {
        self.chaos.relay(Verb::Renew, move || self.inner.renew(key, token, until))
    }

    fn release<'a>(&'a self, key: &'a str, token: u64) -> Answer<'a, ()> {
        self.chaos.relay(Verb::Release, move || self.inner.release(key, token))
    }

    fn count<'a>(
        &'a self,
        key: &'a Arc<str>,
        by: i64,
        now: WallTime,
        expires: Option<WallTime>,
    ) -> Answer<'a, i64> {
        self.chaos.relay(Verb::Count, move || self.inner.count(key, by, now, expires))
    }

    fn counter<'a>(&'a self, key: &'a str, now: WallTime) -> Answer<'a, Option<i64>> {
        self.chaos.relay(Verb::Counter, move || self.inner.counter(key, now))
    }
}
