//! A **call**: a read that somebody awaits, with a loader or without.

use std::cell::LazyCell;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::codec::ValueCodec;
use crate::entry::{Cached, Details, Entry, Meta, Source, typed};
use crate::error::{Error, LoadError, LoaderFailure, SharedError};
use crate::flight::{Crash, Flight, Joined, Landed, Outcome, Passenger, Takeoff};
use crate::freshness::{Freshness, Life, Written};
use crate::key::{Key, KeyBuffer, KeyRef};
use crate::ledger::{Names, Stamp};
use crate::load::{Load, LoadState, Loading, Order, Request, catch_panic, fly};
use crate::loaded::Loaded;
use crate::options::{CallOptions, Reading, Wants};
use crate::policy::{Ttl, left};
use crate::probe::Probe;
use crate::read::{self, Found, Known, Unflushed, Wanted};
use crate::runtime::{BoxFuture, unless};
use crate::space::{Mode, SpaceCore};
use crate::stats::{bump, is_sampled, sample_next};
use crate::tracking;
use crate::waits::{self, Wait};
use crate::write::EntryOptions;

/// A read without a loader; await it. See [`Space::get`](crate::Space::get).
#[must_use = "a read does nothing until it is awaited"]
pub struct Get<'a, K: ?Sized, V> {
    space: &'a Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    key: &'a K,
    options: Option<Box<CallOptions<V>>>,
    /// What is awaited once memory has missed.
    below: Option<BoxFuture<'static, Result<Option<Cached<V>>, Error>>>,
}

// Nothing in it is ever pinned.
impl<K: ?Sized, V> Unpin for Get<'_, K, V> {}

impl<'a, K: ?Sized, V> Get<'a, K, V> {
    pub(crate) fn new(space: &'a Arc<SpaceCore>, codec: Option<ValueCodec<V>>, key: &'a K) -> Self {
        Self { space, codec, key, options: None, below: None }
    }

    fn with(mut self, set: impl FnOnce(&mut CallOptions<V>)) -> Self {
        set(self.options.get_or_insert_default());
        self
    }

    /// Answers also with what is past its end, by this much at most, where the space keeps such
    /// values: see [`SpaceBuilder::stale_for`](crate::SpaceBuilder::stale_for).
    pub fn max_stale(self, time: Duration) -> Self {
        self.with(|options| options.reading.max_stale = Some(time))
    }

    /// Answers only with this version of the source or a later one: to read what you have
    /// written. See [`Loaded::version`] for which versions are ordered.
    pub fn at_least(self, version: impl Into<Arc<str>>) -> Self {
        self.with(|options| options.reading.at_least = Some(version.into()))
    }

    /// Does not read this tier: `memory`, or a tier's own name.
    pub fn skip(self, tier: &str) -> Self {
        let space = self.space;
        self.with(|options| options.add_tier(space, tier, |reading| &mut reading.unread))
    }

    /// Does not copy what is found to the tiers above.
    pub fn without_promotion(self) -> Self {
        self.with(|options| options.reading.stays_below = true)
    }

    /// Waits for so long at most; what the tiers have not answered by then is a miss.
    pub fn patience(self, time: Duration) -> Self {
        self.with(|options| options.patience = Some(time))
    }
}

impl<K: Key + ?Sized, V: Send + Sync + 'static> Future for Get<'_, K, V> {
    type Output = Result<Option<Cached<V>>, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(self.poll_answer(context));
        if self.space.is_tracked {
            let found = answer.as_ref().ok().and_then(Option::as_ref);
            let mut buffer = KeyBuffer::default();
            let key = self.key.encode(&mut buffer);
            tracking::note(self.space, key, found.map(|cached| &cached.entry.meta));
        }
        Poll::Ready(answer)
    }
}

impl<K: Key + ?Sized, V: Send + Sync + 'static> Get<'_, K, V> {
    #[inline]
    fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Cached<V>>, Error>> {
        let this = self;
        if let Some(below) = &mut this.below {
            return below.as_mut().poll(context);
        }
        let mut buffer = KeyBuffer::default();
        let key = this.space.checked_key(this.key, &mut buffer)?;
        let options = this.options.take();
        if options.is_none() && !this.space.confirms {
            if let Some(entry) = quick_hit(this.space, key) {
                return Poll::Ready(Ok(Some(fresh(entry))));
            }
            match hit(this.space, key, None) {
                Hit::Fresh(entry) | Hit::Aging(entry) => {
                    return Poll::Ready(Ok(Some(fresh(entry))));
                }
                Hit::Absent => return Poll::Ready(Ok(None)),
                _ if this.space.core.tiers.is_empty() && !this.space.has_journal() => {
                    return Poll::Ready(Ok(None));
                }
                Hit::Stale(_) | Hit::Nothing => {}
            }
        }
        let space = Arc::clone(this.space);
        let wanted = Wanted::new(key.bytes);
        let has_looked = options.is_none() && !space.confirms;
        let getting = get(space, this.codec, wanted, options.unwrap_or_default(), has_looked);
        this.below.insert(Box::pin(getting)).as_mut().poll(context)
    }
}

/// The rest of a [`Get`]: everything but the quick look into memory.
async fn get<V: Send + Sync + 'static>(
    space: Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    wanted: Wanted,
    options: Box<CallOptions<V>>,
    has_looked: bool,
) -> Result<Option<Cached<V>>, Error> {
    if let Some(error) = options.error {
        return Err(error);
    }
    if space.confirms {
        Box::pin(space.core.confirm()).await?;
    }
    let reading = options.reading;
    let mut stale = None;
    if !has_looked {
        let key = KeyRef { space: space.number, bytes: &wanted.bytes };
        match hit(&space, key, Some(&reading)) {
            Hit::Fresh(entry) | Hit::Aging(entry) => return Ok(Some(fresh(entry))),
            Hit::Absent => return Ok(None),
            Hit::Stale(entry) => stale = Some((entry, Source::Memory)),
            Hit::Nothing => {}
        }
    }
    let ticket = space.core.ticket();
    match read::unflushed(&space, codec, &wanted, ticket, &reading) {
        Ok(None) => {}
        Ok(Some(Unflushed::Removed)) => return Ok(None),
        Ok(Some(Unflushed::Value(entry))) => {
            return Ok(Some(Cached { entry, source: Source::Journal, is_stale: false }));
        }
        Err(crash) => return Err(read::failed(crash)),
    }
    // Pinned here, so that it has its place in this future once, whoever waits for it.
    let mut below = pin!(read::one_from_tiers(&space, codec, &wanted, ticket, &reading));
    let found = match options.patience {
        Some(time) => {
            unless(|| space.core.runtime.sleep(time), below.as_mut()).await.unwrap_or(Ok(None))
        }
        None => below.await,
    };
    let found = found.map_err(read::failed)?;
    let found = found.filter(|(found, _)| read::is_recent_enough(&found.entry.meta, &reading));
    if let Some((found, source)) = found {
        if found.freshness.is_fresh() {
            return Ok((space.mode() == Mode::On).then(|| Cached {
                entry: found.entry,
                source,
                is_stale: false,
            }));
        }
        stale = stale.or(Some((found.entry, source)));
    }
    let stale = stale.filter(|(entry, _)| {
        reading.max_stale.is_some()
            && !space.policy.is_strict
            && space.mode() == Mode::On
            && read::is_stale_enough(&space, &entry.meta, &reading)
    });
    Ok(stale.map(|(entry, source)| {
        bump(&space.counters.stale);
        Cached { entry, source, is_stale: true }
    }))
}

/// A read with a loader; await it. See [`Space::get_or_load`](crate::Space::get_or_load).
#[must_use = "a read does nothing until it is awaited"]
pub struct GetOrLoad<'a, K: ToOwned + ?Sized, V, F, E> {
    space: &'a Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    key: &'a K,
    loader: Option<F>,
    probe: Option<&'a Probe<K>>,
    options: Option<Box<CallOptions<V>>>,
    waiting: Waiting<V>,
    error: PhantomData<fn() -> E>,
}

/// What a call is waiting for.
enum Waiting<V> {
    Nothing,
    /// The ledger's word that what is in memory still stands.
    Word(BoxFuture<'static, Result<(), Error>>),
    /// It has been given.
    Confirmed,
    Flight {
        is_leading: bool,
        passenger: Passenger,
        /// Of a load for another one.
        _wait: Option<Box<Wait>>,
        patience: Option<Box<Patience<V>>>,
    },
}

/// How long a caller waits.
struct Patience<V> {
    time: Duration,
    over: Option<BoxFuture<'static, ()>>,
    /// What it may take then.
    at_hand: Option<Arc<Entry<V>>>,
}

// Nothing in it is ever pinned: a loader is called before it is polled.
impl<K: ToOwned + ?Sized, V, F, E> Unpin for GetOrLoad<'_, K, V, F, E> {}

impl<'a, K: ToOwned + ?Sized, V, F, E> GetOrLoad<'a, K, V, F, E> {
    pub(crate) fn new(
        space: &'a Arc<SpaceCore>,
        codec: Option<ValueCodec<V>>,
        key: &'a K,
        loader: F,
    ) -> Self {
        Self {
            space,
            codec,
            key,
            loader: Some(loader),
            probe: None,
            options: None,
            waiting: Waiting::Nothing,
            error: PhantomData,
        }
    }

    pub(crate) fn probing(self, probe: Option<&'a Probe<K>>) -> Self {
        Self { probe, ..self }
    }

    fn with(mut self, set: impl FnOnce(&mut CallOptions<V>)) -> Self {
        set(self.options.get_or_insert_default());
        self
    }

    /// What is loaded lives exactly this long, whatever its space says.
    pub fn ttl(self, ttl: Duration) -> Self {
        self.with(|options| options.ttl = Ttl::Exactly(ttl))
    }

    /// What is loaded never expires.
    pub fn forever(self) -> Self {
        self.with(|options| options.ttl = Ttl::Forever)
    }

    /// What is loaded carries these tags.
    pub fn tags<T: AsRef<str>>(self, tags: impl IntoIterator<Item = T>) -> Self {
        let space = self.space;
        self.with(|options| options.set_tags(space, tags))
    }

    /// This caller waits for so long at most: then it takes what is stale, if something is and
    /// its space allows it, or fails with [`LoadError::Waited`]. The load goes on.
    pub fn patience(self, time: Duration) -> Self {
        self.with(|options| options.patience = Some(time))
    }

    /// The answer if the load fails, whatever the reason, and nothing stale may stand in. It
    /// is not stored.
    pub fn or_default(self, value: V) -> Self {
        self.with(|options| options.default = Some(value))
    }

    /// Loads even if the cache has a fresh value: the answer is from a load that began no
    /// earlier than this call. If that load fails, so does the call.
    pub fn refresh(self) -> Self {
        self.with(|options| options.reading.wants = Wants::New)
    }

    /// Takes stale answers that are past their end by this much at most.
    pub fn max_stale(self, time: Duration) -> Self {
        self.with(|options| options.reading.max_stale = Some(time))
    }

    /// Loads unless the cache has this version of the source or a later one: to read what you
    /// have written. See [`Loaded::version`] for which versions are ordered.
    pub fn at_least(self, version: impl Into<Arc<str>>) -> Self {
        self.with(|options| options.reading.at_least = Some(version.into()))
    }

    /// Does not read this tier: `memory`, or a tier's own name.
    ///
    /// Of callers who share a load, the one that began it decides which tiers it uses.
    pub fn skip_read(self, tier: &str) -> Self {
        let space = self.space;
        self.with(|options| options.add_tier(space, tier, |reading| &mut reading.unread))
    }

    /// Stores nothing in this tier: `memory`, or a tier's own name.
    pub fn skip_write(self, tier: &str) -> Self {
        let space = self.space;
        self.with(|options| options.add_tier(space, tier, |reading| &mut reading.unwritten))
    }

    /// Stores nothing anywhere: neither what is loaded nor copies of what is found.
    pub fn read_only(self) -> Self {
        self.with(|options| {
            options.reading.unwritten = crate::options::Tiers::ALL;
            options.reading.stays_below = true;
        })
    }

    /// Does not copy what is found to the tiers above; what is loaded is stored in all.
    pub fn without_promotion(self) -> Self {
        self.with(|options| options.reading.stays_below = true)
    }
}

impl<K, V, F, Fut, A, E> Future for GetOrLoad<'_, K, V, F, E>
where
    K: Key + ?Sized,
    V: Send + Sync + 'static,
    F: FnOnce(Load<K, V>) -> Fut,
    Fut: Future<Output = Result<A, E>> + Send + 'static,
    A: Into<Loaded<V>>,
    E: LoaderFailure,
{
    type Output = Result<Cached<V>, LoadError<E>>;

    /// The life of a read, as ARCHITECTURE.md tells it.
    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.plain_hit() {
            Some(hit) => Poll::Ready(Ok(hit)),
            None => {
                let answer = ready!(self.poll_further(context));
                if self.space.is_tracked {
                    let found = answer.as_ref().ok().map(|cached| &cached.entry.meta);
                    let mut buffer = KeyBuffer::default();
                    tracking::note(self.space, self.key.encode(&mut buffer), found);
                }
                Poll::Ready(answer)
            }
        }
    }
}

impl<K, V, F, Fut, A, E> GetOrLoad<'_, K, V, F, E>
where
    K: Key + ?Sized,
    V: Send + Sync + 'static,
    F: FnOnce(Load<K, V>) -> Fut,
    Fut: Future<Output = Result<A, E>> + Send + 'static,
    A: Into<Loaded<V>>,
    E: LoaderFailure,
{
    /// The answer to a call that asks for nothing special, if memory has a fresh one that does
    /// not age: what most calls get, and all that they should cost.
    #[inline]
    fn plain_hit(&self) -> Option<Cached<V>> {
        let space = self.space;
        let is_plain = matches!(self.waiting, Waiting::Nothing)
            && self.options.is_none()
            && self.probe.is_none()
            && !space.confirms
            && !space.is_tracked;
        if !is_plain {
            return None;
        }
        let mut buffer = KeyBuffer::default();
        let key = space.checked_key(self.key, &mut buffer).ok()?;
        quick_hit(space, key).map(fresh)
    }

    #[cold]
    fn poll_further(&mut self, context: &mut Context<'_>) -> Poll<Result<Cached<V>, LoadError<E>>> {
        let this = self;
        let space = this.space;
        loop {
            match &mut this.waiting {
                Waiting::Flight { is_leading, passenger, patience, .. } => {
                    let reading = this.options.as_ref().map(|options| &options.reading);
                    let takes = |offer: &Landed| {
                        let mut buffer = KeyBuffer::default();
                        takes(space, this.key.encode(&mut buffer), offer, reading)
                    };
                    let outcome = match (passenger.poll(context, takes), patience) {
                        (Poll::Ready(outcome), _) => outcome,
                        (Poll::Pending, None) => return Poll::Pending,
                        (Poll::Pending, Some(patience)) => {
                            let landed = ready!(patience.poll_end(space, context));
                            landed
                                .filter(|landed| takes(landed))
                                .ok_or(Crash::Waited(patience.time))
                        }
                    };
                    if !*is_leading && is_doubtful(&outcome, reading) {
                        this.waiting = Waiting::Nothing;
                        continue;
                    }
                    return Poll::Ready(answer(space, this.options.as_deref_mut(), outcome));
                }
                Waiting::Word(word) => {
                    ready!(word.as_mut().poll(context))?;
                    this.waiting = Waiting::Confirmed;
                }
                Waiting::Nothing if space.confirms => {
                    let core = Arc::clone(&space.core);
                    let word = async move { core.confirm().await };
                    this.waiting = Waiting::Word(Box::pin(word));
                    continue;
                }
                Waiting::Nothing | Waiting::Confirmed => {}
            }

            let mut buffer = KeyBuffer::default();
            let key = space.checked_key(this.key, &mut buffer)?;
            if let Some(error) = this.options.as_mut().and_then(|options| options.error.take()) {
                return Poll::Ready(Err(error.into()));
            }
            let reading = this.options.as_ref().map(|options| &options.reading);
            let mut at_hand = None;
            match hit(space, key, reading) {
                Hit::Fresh(entry) | Hit::Aging(entry)
                    if this.probe.is_some() && is_unchecked(space, &entry.meta) =>
                {
                    at_hand = Some(entry);
                }
                Hit::Fresh(entry) => return Poll::Ready(Ok(fresh(entry))),
                Hit::Aging(entry) => {
                    if claims_refresh(space, &entry.meta) {
                        this.begin_refresh(key);
                    }
                    return Poll::Ready(Ok(fresh(entry)));
                }
                Hit::Absent => return Poll::Ready(Err(LoadError::Absent)),
                Hit::Stale(entry) if is_held_back(space, key, &entry.meta, reading) => {
                    let source = Source::Memory;
                    return Poll::Ready(Ok(Cached { entry, source, is_stale: true }));
                }
                Hit::Stale(entry) => at_hand = Some(entry),
                Hit::Nothing => {}
            }

            let must_be_new = reading.is_some_and(|reading| reading.wants == Wants::New);
            let (flight, task) = match board(space, key, must_be_new) {
                Joined::Following(flight) => {
                    bump(&space.counters.loads_shared);
                    (flight, None)
                }
                Joined::Leading(takeoff) => {
                    let Some(started) = this.start(takeoff, true) else {
                        return Poll::Ready(Err(LoadError::Abandoned));
                    };
                    (started.flight, Some(started.task))
                }
            };
            // Before the flight runs, so that it knows who waits for it.
            let Ok(wait) = waits::begin(&flight) else {
                return Poll::Ready(Err(LoadError::Circle));
            };
            let is_leading = task.is_some();
            if let Some(task) = task {
                task.run_here_first(space, context);
            }
            let patience = this.options.as_ref().and_then(|options| options.patience);
            this.waiting = Waiting::Flight {
                is_leading,
                passenger: Passenger::of(flight),
                _wait: wait.map(Box::new),
                patience: patience.map(|time| Box::new(Patience { time, over: None, at_hand })),
            };
        }
    }
}

impl<K, V, F, Fut, A, E> GetOrLoad<'_, K, V, F, E>
where
    K: Key + ?Sized,
    V: Send + Sync + 'static,
    F: FnOnce(Load<K, V>) -> Fut,
    Fut: Future<Output = Result<A, E>> + Send + 'static,
    A: Into<Loaded<V>>,
    E: LoaderFailure,
{
    /// Calls the loader and prepares the flight, which its caller waits for or not; `None` if
    /// the loader is gone already.
    fn start(&mut self, takeoff: Takeoff, is_awaited: bool) -> Option<Started> {
        let loader = self.loader.take()?;
        let (key, state) = (self.key.to_owned(), LoadState::new());
        let probed = self.probe.map(|_| self.key.to_owned());
        let load = Load::new(key, Arc::clone(&state));
        let flight = takeoff.flight();
        // The loader is the caller's code: it must not take others down with it.
        let probe = self.probe;
        let begun = catch_unwind(AssertUnwindSafe(|| {
            (begin(loader, load), probe.zip(probed).map(|(probe, key)| probe(key)))
        }));
        let Ok((loading, probe)) = begun else {
            takeoff.land(Err(Crash::Panicked));
            return Some(Started { flight, task: Task(None) });
        };
        let order =
            Order { loading, probe, state, is_nested: is_awaited && waits::is_within_load() };
        let request = self.request();
        let task = Box::pin(async move {
            // A panic drops the takeoff, which lands the flight as abandoned.
            let _ = catch_panic(pin!(fly(takeoff, request, order))).await;
        });
        Some(Started { flight, task: Task(Some(task)) })
    }

    fn request(&self) -> Request<V> {
        let (options, reading) = match &self.options {
            Some(options) => {
                let tags = Arc::clone(&options.tags);
                let entry = EntryOptions { ttl: options.ttl, tags, ..EntryOptions::default() };
                (entry, options.reading.clone())
            }
            None => (EntryOptions::default(), Reading::default()),
        };
        Request { space: Arc::clone(self.space), codec: self.codec, options, reading }
    }

    /// Loads anew what is served meanwhile.
    fn begin_refresh(&mut self, key: KeyRef<'_>) {
        let space = self.space;
        if let Joined::Leading(takeoff) = board(space, key, false) {
            bump(&space.counters.refreshes);
            let options = self.options.get_or_insert_default();
            options.reading.wants = Wants::Young;
            if let Some(started) = self.start(takeoff, false) {
                started.task.run(space);
            }
        }
    }
}

/// A flight that was begun, and what runs it.
struct Started {
    flight: Arc<Flight>,
    task: Task,
}

struct Task(Option<BoxFuture<'static, ()>>);

impl Task {
    fn run(self, space: &SpaceCore) {
        if let Some(task) = self.0 {
            space.core.runtime.spawn(task);
        }
    }

    /// The first steps here and now, the rest in a task of its own.
    fn run_here_first(self, space: &SpaceCore, context: &mut Context<'_>) {
        if let Some(mut task) = self.0
            && task.as_mut().poll(context).is_pending()
        {
            space.core.runtime.spawn(task);
        }
    }
}

/// Calls the loader; its future is polled later, in the flight's task.
fn begin<K, V, F, Fut, A, E>(loader: F, load: Load<K, V>) -> Loading<Loaded<V>>
where
    K: Key + ?Sized,
    F: FnOnce(Load<K, V>) -> Fut,
    Fut: Future<Output = Result<A, E>> + Send + 'static,
    A: Into<Loaded<V>>,
    E: LoaderFailure,
{
    let loading = loader(load);
    Box::pin(async move {
        loading.await.map(Into::into).map_err(|error| Arc::new(error) as SharedError)
    })
}

/// The flight of the key, or the duty to start one.
pub(crate) fn board(space: &Arc<SpaceCore>, key: KeyRef<'_>, must_be_new: bool) -> Joined {
    let core = &space.core;
    core.flights.join(key, must_be_new, |departure| {
        let name = LazyCell::new(|| space.name_of(key.bytes));
        let names = || Names { key: &name, space: &space.name, tags: &departure.tags };
        !core.permits(departure.ticket, names)
    })
}

/// Whether the flight of others brought something that may not do for this caller, who then
/// has to board one that does.
fn is_doubtful(outcome: &Outcome, reading: Option<&Reading>) -> bool {
    let Ok(landed) = outcome else { return false };
    // What it is about may have been invalidated before this caller came.
    landed.has_own_tags
        || reading.is_some_and(|reading| {
            let is_old = reading.wants == Wants::New && landed.source != Source::Loader;
            landed.instead_of.is_none()
                && (is_old || !read::is_recent_enough(landed.entry.meta(), reading))
        })
}

impl<V: Send + Sync + 'static> Patience<V> {
    /// Completes when the caller does not wait any longer, with what it may take then.
    fn poll_end(&mut self, space: &SpaceCore, context: &mut Context<'_>) -> Poll<Option<Landed>> {
        let over = self.over.get_or_insert_with(|| space.core.runtime.sleep(self.time));
        ready!(over.as_mut().poll(context));
        let at_hand = self.at_hand.take().filter(|_| space.policy.allows_stale());
        Poll::Ready(at_hand.map(|entry| Landed {
            entry,
            source: Source::Memory,
            is_stale: true,
            instead_of: Some(Crash::Waited(self.time)),
            has_own_tags: false,
        }))
    }
}

/// Whether a caller takes what a flight offers that goes on.
pub(crate) fn takes(
    space: &SpaceCore,
    key: &[u8],
    offer: &Landed,
    reading: Option<&Reading>,
) -> bool {
    let meta = offer.entry.meta();
    reading.is_none_or(|reading| {
        reading.wants != Wants::New
            && read::is_recent_enough(meta, reading)
            && read::is_stale_enough(space, meta, reading)
    }) && read::freshness_below(space, &space.name_of(key), meta) != Freshness::Dead
}

/// A flight's outcome as the caller's types.
pub(crate) fn answer<V: Send + Sync + 'static, E: LoaderFailure>(
    space: &SpaceCore,
    options: Option<&mut CallOptions<V>>,
    outcome: Outcome,
) -> Result<Cached<V>, LoadError<E>> {
    let reading = options.as_ref().map(|options| &options.reading);
    let outcome = outcome.and_then(|landed| match &landed.instead_of {
        Some(crash) if !stands_in(space, &landed, reading) => Err(crash.clone()),
        _ => Ok(landed),
    });
    match outcome {
        Ok(landed) => {
            if landed.is_stale {
                bump(&space.counters.stale);
            }
            match typed(&landed.entry) {
                Some(entry) => {
                    Ok(Cached { entry, source: landed.source, is_stale: landed.is_stale })
                }
                None => Err(LoadError::OtherType),
            }
        }
        Err(crash) => match options.and_then(|options| options.default.take()) {
            Some(value) => Ok(default(space, value)),
            None => Err(crash.into()),
        },
    }
}

/// Whether this caller accepts what a flight landed with when its load had failed.
fn stands_in(space: &SpaceCore, landed: &Landed, reading: Option<&Reading>) -> bool {
    reading.is_none_or(|reading| {
        reading.wants != Wants::New
            && read::is_recent_enough(landed.entry.meta(), reading)
            && read::is_stale_enough(space, landed.entry.meta(), reading)
    })
}

fn default<V>(space: &SpaceCore, value: V) -> Cached<V> {
    let now = Written { created: space.core.wall(), expires: None, stale_until: None };
    let life = Life::begin(space.core.clock.tick(), Some(Duration::ZERO), Duration::ZERO);
    let meta = Meta::new(Stamp::default(), life, now, Details::default(), 0);
    let entry = Arc::new(Entry { value, meta });
    Cached { entry, source: Source::Default, is_stale: true }
}

/// What a look into memory says to a call.
pub(crate) enum Hit<V> {
    Fresh(Arc<Entry<V>>),
    /// Fresh, and near its end.
    Aging(Arc<Entry<V>>),
    Stale(Arc<Entry<V>>),
    /// The source has no value.
    Absent,
    Nothing,
}

/// A fresh entry in memory that does not age, counted. What it costs is what a cache hit costs.
#[inline(never)]
fn quick_hit<V: Send + Sync + 'static>(
    space: &SpaceCore,
    key: KeyRef<'_>,
) -> Option<Arc<Entry<V>>> {
    if is_sampled() {
        // The look that knows all cases does the timing.
        sample_next();
        return None;
    }
    if space.mode() != Mode::On {
        return None;
    }
    let entry = read::fresh_in_memory(space, key)?;
    space.memory_counters()?.hits.bump();
    Some(entry)
}

/// The look into memory, counted.
pub(crate) fn hit<V: Send + Sync + 'static>(
    space: &SpaceCore,
    key: KeyRef<'_>,
    reading: Option<&Reading>,
) -> Hit<V> {
    let Some(counters) = space.memory_counters() else { return Hit::Nothing };
    let mode = space.mode();
    if mode == Mode::Off || reading.is_some_and(|reading| reading.unread.has_memory()) {
        return Hit::Nothing;
    }
    let clock = &space.core.clock;
    let started = is_sampled().then(|| clock.elapsed());
    let now = clock.tick();
    let known = read::from_memory(space, key, now);
    let hit = match known {
        Some(Known::Entry(Found { entry, freshness })) => match freshness {
            _ if reading.is_some_and(|reading| !read::is_recent_enough(&entry.meta, reading)) => {
                Hit::Nothing
            }
            Freshness::Fresh => Hit::Fresh(entry),
            Freshness::Aging => Hit::Aging(entry),
            Freshness::Stale | Freshness::Dead => Hit::Stale(entry),
        },
        Some(Known::Absent) if reading.is_some_and(|reading| !reading.takes_absent()) => {
            Hit::Nothing
        }
        Some(Known::Absent) => Hit::Absent,
        None => Hit::Nothing,
    };
    if matches!(hit, Hit::Stale(_) | Hit::Nothing) {
        counters.misses.bump();
    } else {
        counters.hits.bump();
    }
    if let Some(started) = started {
        counters.read_time.add(clock.elapsed().saturating_sub(started));
    }
    let must_load =
        mode == Mode::Shadow || reading.is_some_and(|reading| reading.wants == Wants::New);
    if must_load { Hit::Nothing } else { hit }
}

fn fresh<V>(entry: Arc<Entry<V>>) -> Cached<V> {
    Cached { entry, source: Source::Memory, is_stale: false }
}

fn is_unchecked(space: &SpaceCore, meta: &Meta) -> bool {
    read::is_unchecked(space, meta, space.core.clock.tick())
}

/// Whether this read is the one that has an aging entry loaded anew.
pub(crate) fn claims_refresh(space: &SpaceCore, meta: &Meta) -> bool {
    let (core, life) = (&space.core, meta.times.life());
    let now = core.clock.tick();
    let until = now.saturating_add(space.policy.load_deadline);
    let time_left = left(now, life.fresh_until);
    space.policy.wants_refresh(time_left, meta.load_time(), core.runtime.random())
        && meta.times.put_off_aging(life.aging_from, until)
}

/// Whether something stale is the answer, because the next load of the key has to wait.
pub(crate) fn is_held_back(
    space: &SpaceCore,
    key: KeyRef<'_>,
    meta: &Meta,
    reading: Option<&Reading>,
) -> bool {
    let is_acceptable = space.policy.allows_stale()
        && reading.is_none_or(|reading| read::is_stale_enough(space, meta, reading));
    let waits = is_acceptable && read::waits_for_retry(space, key).is_some();
    if waits {
        bump(&space.counters.held_back);
        bump(&space.counters.stale);
    }
    waits
}

impl<K: ?Sized, V> std::fmt::Debug for Get<'_, K, V> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Get").field("space", &self.space.title).finish_non_exhaustive()
    }
}

impl<K: ToOwned + ?Sized, V, F, E> std::fmt::Debug for GetOrLoad<'_, K, V, F, E> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("GetOrLoad")
            .field("space", &self.space.title)
            .finish_non_exhaustive()
    }
}
