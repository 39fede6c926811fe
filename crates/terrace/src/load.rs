//! A **load**: what a flight does when it has to, from its ticket to its landing.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::Notify;

use crate::bulkhead::{Bulkhead, Overloaded, Permit};
use crate::clock::WallTime;
use crate::codec::ValueCodec;
use crate::core::Ticket;
use crate::entry::{Cached, Entry, Meta, Source};
use crate::error::{Error, SharedError};
use crate::fill;
use crate::flight::{Crash, Departure, Flown, Landed, Takeoff};
use crate::freshness::Freshness;
use crate::lease::{Lease, Patience, while_held};
use crate::ledger::Names;
use crate::loaded::{Answer, Loaded};
use crate::options::{Reading, Wants};
use crate::policy::left;
use crate::probe::{self, Verdict};
use crate::protocol::Standing;
use crate::read::{self, Found, Known, Unflushed, Wanted};
use crate::retry::Failed;
use crate::runtime::{BoxFuture, step_aside, unless};
use crate::space::{Mode, SpaceCore};
use crate::stats::bump;
use crate::tracking::{self, BuiltFrom, Tracker};
use crate::waits::{self, within_load};
use crate::write::{self, EntryOptions, Fresh};

/// What a loader is given.
#[non_exhaustive]
pub struct Load<K: ToOwned + ?Sized, V> {
    /// The key to load.
    pub key: K::Owned,
    state: Arc<LoadState<V>>,
}

impl<K: ToOwned + ?Sized, V> Load<K, V> {
    pub(crate) fn new(key: K::Owned, state: Arc<LoadState<V>>) -> Self {
        Self { key, state }
    }

    /// What the cache has, past its end or near it: to ask the source whether it has changed
    /// since, and to answer [`Loaded::not_modified`](crate::Loaded::not_modified) if not.
    ///
    /// Known as soon as the loader's future runs, not yet in a closure around it.
    #[must_use]
    pub fn stale(&self) -> Option<&Cached<V>> {
        self.state.stale.get()
    }

    /// The source's version, or the `ETag`, of [`Load::stale`].
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.stale()?.version()
    }

    /// When the source of [`Load::stale`] changed last.
    #[must_use]
    pub fn last_modified(&self) -> Option<WallTime> {
        self.stale()?.last_modified()
    }

    /// Whether the load was given up: nobody waits for what it brings.
    ///
    /// The loader's future is dropped then. This is for what it has handed to others.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        self.state.is_given_up.load(Ordering::Acquire)
    }

    /// Completes when the load is given up; never if it ends by itself.
    pub fn given_up(&self) -> impl Future<Output = ()> + Send + use<K, V>
    where
        V: Send + Sync + 'static,
    {
        let state = Arc::clone(&self.state);
        async move {
            loop {
                let told = state.told.notified();
                if state.is_given_up.load(Ordering::Acquire) {
                    return;
                }
                told.await;
            }
        }
    }
}

impl<K: ToOwned + ?Sized, V> std::fmt::Debug for Load<K, V> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys may be secrets.
        formatter.debug_struct("Load").finish_non_exhaustive()
    }
}

/// What a loader is told while it runs.
pub(crate) struct LoadState<V> {
    stale: OnceLock<Cached<V>>,
    is_given_up: AtomicBool,
    told: Notify,
}

impl<V> LoadState<V> {
    pub(crate) fn new() -> Arc<Self> {
        let (is_given_up, told) = (AtomicBool::new(false), Notify::new());
        Arc::new(Self { stale: OnceLock::new(), is_given_up, told })
    }

    pub(crate) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Release);
        self.told.notify_waiters();
    }
}

/// A loader that was called and is not running yet.
pub(crate) type Loading<A> = BoxFuture<'static, Result<A, SharedError>>;

/// A flight's loader, and what it is told.
pub(crate) struct Order<V> {
    pub(crate) loading: Loading<Loaded<V>>,
    /// Asks the source for its version, if the space knows how to.
    pub(crate) probe: Option<Loading<Option<Arc<str>>>>,
    pub(crate) state: Arc<LoadState<V>>,
    /// Its caller is a loader itself.
    pub(crate) is_nested: bool,
}

/// The flight itself: look in memory and below, and load if nothing good enough is there.
///
/// The first poll may happen on the caller's own task, so that an answer from a
/// quick store costs no task; from where the loader begins it always runs in a
/// task of its own.
pub(crate) async fn fly<V: Send + Sync + 'static>(
    mut takeoff: Takeoff,
    request: Request<V>,
    mut order: Order<V>,
) {
    let flights = Flown::One(takeoff.flight());
    if let Err(waits::Circle) = takeoff.wait_for_turn(&flights).await {
        return takeoff.land(Err(Crash::Circle));
    }
    let mut job = Job::begin(&takeoff, request);
    let probe = order.probe.take();
    job.is_probing = probe.is_some();
    if job.look_in_memory(&takeoff)
        || job.look_in_journal(&takeoff)
        || job.look_below(&takeoff).await
    {
        return;
    }
    step_aside().await;
    if job.is_held_back(&takeoff) || job.is_unchanged(&takeoff, probe).await {
        return;
    }
    job.load(&takeoff, flights, order).await;
}

/// What a call wants of one or more keys.
pub(crate) struct Request<V> {
    pub(crate) space: Arc<SpaceCore>,
    pub(crate) codec: Option<ValueCodec<V>>,
    pub(crate) options: EntryOptions,
    pub(crate) reading: Reading,
}

impl<V> Clone for Request<V> {
    fn clone(&self) -> Self {
        Self {
            space: Arc::clone(&self.space),
            codec: self.codec,
            options: self.options.clone(),
            reading: self.reading.clone(),
        }
    }
}

/// One key on its way: what it is stored by, and what is at hand meanwhile.
pub(crate) struct Job<V> {
    request: Request<V>,
    pub(crate) wanted: Wanted,
    pub(crate) ticket: Ticket,
    /// Found, and not good enough: it may have to do all the same.
    stale: Option<(Arc<Entry<V>>, Source)>,
    /// The source can be asked for its version.
    pub(crate) is_probing: bool,
}

/// How an attempt at a load went.
enum Attempt {
    /// The flight has landed with what another process has stored.
    Landed,
    Ended(Option<Lease>),
}

impl<V: Send + Sync + 'static> Job<V> {
    /// Takes the ticket, before anything below memory is read.
    pub(crate) fn begin(takeoff: &Takeoff, request: Request<V>) -> Self {
        let space = &request.space;
        let ticket = space.core.ticket();
        takeoff.depart(Departure { ticket, tags: Arc::clone(&request.options.tags) });
        let wanted = Wanted::new(takeoff.key().bytes);
        Self { request, wanted, ticket, stale: None, is_probing: false }
    }

    /// Another flight may have landed since the caller looked: `true` if this one is over.
    pub(crate) fn look_in_memory(&mut self, takeoff: &Takeoff) -> bool {
        let space = &self.request.space;
        if self.request.reading.unread.has_memory() || space.mode() != Mode::On {
            return false;
        }
        match read::from_memory::<V>(space, takeoff.key(), space.core.clock.tick()) {
            Some(Known::Absent) if self.request.reading.takes_absent() => {
                takeoff.land(Err(Crash::Absent));
                true
            }
            Some(Known::Entry(found)) => self.take(takeoff, found, Source::Memory),
            _ => false,
        }
    }

    /// The same for what was written behind: newer than anything that a load can bring.
    pub(crate) fn look_in_journal(&mut self, takeoff: &Takeoff) -> bool {
        let Request { space, codec, reading, .. } = &self.request;
        let landed = match read::unflushed(space, *codec, &self.wanted, self.ticket, reading) {
            Ok(None) => return false,
            Ok(Some(Unflushed::Value(entry))) => Ok(self.landed(&entry, Source::Journal, None)),
            Ok(Some(Unflushed::Removed)) => Err(Crash::Absent),
            Err(crash) => Err(crash),
        };
        takeoff.land(landed);
        true
    }

    /// The same for the tiers below memory.
    async fn look_below(&mut self, takeoff: &Takeoff) -> bool {
        // Of what has to be loaded or asked for anyhow, one copy is enough.
        let is_enough = self.request.reading.wants == Wants::New || self.is_probing;
        if is_enough && self.stale.is_some() || self.request.space.core.tiers.is_empty() {
            return false;
        }
        let found = {
            let (runtime, policy) = (&self.request.space.core.runtime, &self.request.space.policy);
            let mut finding = Box::pin(self.find_below());
            // Tiers may be as slow as loads.
            let soft_deadline = || runtime.sleep(policy.soft_deadline);
            if self.stale.is_none() {
                finding.await
            } else if let Some(found) = unless(soft_deadline, finding.as_mut()).await {
                found
            } else {
                self.offer_stale(takeoff);
                finding.await
            }
        };
        match found {
            Ok(Some((found, source))) => self.take(takeoff, found, source),
            Ok(None) => false,
            Err(crash) => {
                takeoff.land(Err(crash));
                true
            }
        }
    }

    /// Lands with what was found, if it is good enough; otherwise keeps it at hand.
    pub(crate) fn take(&mut self, takeoff: &Takeoff, found: Found<V>, source: Source) -> bool {
        if self.is_good(&found) && self.land_found(takeoff, &found.entry, source.clone(), None) {
            return true;
        }
        if self.stale.is_none() {
            self.stale = Some((found.entry, source));
        }
        false
    }

    fn is_good(&self, found: &Found<V>) -> bool {
        let is_young_enough = match self.request.reading.wants {
            Wants::Fresh => found.freshness.is_fresh(),
            // Not by when it ages: whoever had it loaded anew has put that off.
            Wants::Young => found.freshness.is_fresh() && self.is_young(&found.entry),
            Wants::New => false,
        };
        let space = &self.request.space;
        let is_checked = || {
            !self.is_probing
                || !read::is_unchecked(space, &found.entry.meta, space.core.clock.tick())
        };
        is_young_enough
            && is_checked()
            && space.mode() == Mode::On
            && read::is_recent_enough(&found.entry.meta, &self.request.reading)
    }

    /// Whether an entry is not worth renewing yet.
    fn is_young(&self, entry: &Entry<V>) -> bool {
        let (space, meta) = (&self.request.space, &entry.meta);
        let written = meta.times.written();
        let given = written.expires.map(|end| end.saturating_since(written.created));
        let time_left = left(space.core.clock.tick(), meta.times.life().fresh_until);
        time_left > space.policy.aging(given, meta.load_time())
    }

    async fn find_below(&self) -> Result<Option<(Found<V>, Source)>, Crash> {
        let Request { space, codec, reading, .. } = &self.request;
        read::one_from_tiers(space, *codec, &self.wanted, self.ticket, reading).await
    }

    /// Whether the last load of the key failed so lately that this one has to wait; the flight
    /// is over then.
    pub(crate) fn is_held_back(&self, takeoff: &Takeoff) -> bool {
        let space = &self.request.space;
        if self.request.reading.wants == Wants::New {
            return false;
        }
        let Some(failure) = read::waits_for_retry(space, takeoff.key()) else { return false };
        bump(&space.counters.held_back);
        self.fail(takeoff, failure.crash);
        true
    }

    /// Whether the source still has the version that is at hand, which is the answer then. What
    /// cannot be learnt in time does not keep anybody from what is fresh otherwise.
    async fn is_unchanged(
        &self,
        takeoff: &Takeoff,
        probe: Option<Loading<Option<Arc<str>>>>,
    ) -> bool {
        let space = &self.request.space;
        let core = &space.core;
        let (Some(probe), Some((entry, source))) = (probe, &self.stale) else { return false };
        let meta = &entry.meta;
        let freshness = read::freshness_below(space, self.wanted.name(space), meta);
        if !freshness.is_fresh() || self.request.reading.wants == Wants::New {
            return false;
        }
        let limit = space.policy.load_deadline;
        let verdict =
            probe::ask(&*core.runtime, limit, probe, meta.details().version.as_ref()).await;
        if verdict == Verdict::Changed || verdict == Verdict::Unknown && space.policy.is_strict {
            return false;
        }
        meta.times.set_checked(core.clock.tick());
        self.land_found(takeoff, entry, source.clone(), None)
    }

    /// Runs the loader, stores what it brings, and lands the flight.
    async fn load(&self, takeoff: &Takeoff, flights: Flown, order: Order<V>) {
        self.tell_stale(&order.state);
        let mut attempt = pin!(self.attempt(takeoff, flights, order));
        let policy = &self.request.space.policy;
        let runtime = &self.request.space.core.runtime;
        let soft_deadline = || runtime.sleep(policy.soft_deadline);
        let attempt = match unless(soft_deadline, attempt.as_mut()).await {
            Some(attempt) => attempt,
            None => {
                self.offer_stale(takeoff);
                attempt.await
            }
        };
        if let Attempt::Ended(Some(lease)) = attempt {
            Box::pin(lease.release()).await;
        }
    }

    /// Tells the loader what is at hand, unless a line says that it is out of date: such a line stands
    /// whatever the source confirms.
    pub(crate) fn tell_stale(&self, state: &LoadState<V>) {
        let space = &self.request.space;
        let is_outdated = |meta: &Meta| {
            let key = self.wanted.name(space);
            let names = Names { key, space: &space.name, tags: &meta.details().tags };
            space.core.mirror.standing_in_full(meta.stamp, &names) == Standing::Outdated
        };
        if let Some((entry, source)) = &self.stale
            && !is_outdated(&entry.meta)
        {
            let now = self.request.space.core.clock.tick();
            let is_stale = now >= entry.meta.times.life().fresh_until;
            let cached = Cached { entry: Arc::clone(entry), source: source.clone(), is_stale };
            let _ = state.stale.set(cached);
        }
    }

    /// Those who wait need not any more, if what is at hand may stand in.
    pub(crate) fn offer_stale(&self, takeoff: &Takeoff) {
        if let Some((entry, source)) = &self.stale
            && self.request.space.policy.allows_stale()
        {
            let offer = self.landed(entry, source.clone(), Some(Crash::Slow));
            takeoff.offer(offer, || self.may_serve(entry));
        }
    }

    async fn attempt(&self, takeoff: &Takeoff, flights: Flown, order: Order<V>) -> Attempt {
        let lease = if self.request.space.core.is_shared() {
            match Box::pin(self.lease_or_answer(takeoff)).await {
                Ok(lease) => lease,
                Err(Answered) => return Attempt::Landed,
            }
        } else {
            None
        };
        let Order { loading, state, is_nested, .. } = order;
        let work = run(&self.request.space, flights, loading, is_nested);
        match while_held(&lease, pin!(work)).await {
            Ok(brought) => {
                let (loaded, rest) = brought.apart();
                let new = self.commit(takeoff, loaded, &rest).await;
                self.store_below(new.iter().map(|new| (self, takeoff, new))).await;
            }
            Err(crash) => {
                state.give_up();
                self.note_failure(takeoff, &crash);
                self.fail(takeoff, crash);
            }
        }
        Attempt::Ended(lease)
    }

    /// The lease of the key; or whoever held it before has answered.
    async fn lease_or_answer(&self, takeoff: &Takeoff) -> Result<Option<Lease>, Answered> {
        let lease = self.lease(takeoff).await?;
        if let Some(lease) = lease {
            if may_be_there_now(&self.request.space, &[&self.wanted]).await
                && self.lands_from_tiers(takeoff).await
            {
                lease.release().await;
                return Err(Answered);
            }
            return Ok(Some(lease));
        }
        Ok(None)
    }

    /// The lease of the key, or none if whoever has it is slow; unless the holder has answered.
    ///
    /// Loads of one process need none: its flights see to it that they are one.
    pub(crate) async fn lease(&self, takeoff: &Takeoff) -> Result<Option<Lease>, Answered> {
        let Request { space, .. } = &self.request;
        if !space.core.is_shared() {
            return Ok(None);
        }
        let mut patience = Patience::new(space.policy.load_deadline);
        loop {
            if let Some(lease) = Lease::ask(&space.core, self.wanted.name(space)).await {
                return Ok(Some(lease));
            }
            if !patience.wait(&space.core).await {
                // Whoever holds it is alive and slow: load beside it rather than fail.
                return Ok(None);
            }
            if self.lands_from_tiers(takeoff).await {
                return Err(Answered);
            }
        }
    }

    async fn lands_from_tiers(&self, takeoff: &Takeoff) -> bool {
        match self.find_below().await {
            Ok(Some((found, source))) => {
                self.is_good(&found) && self.land_found(takeoff, &found.entry, source, None)
            }
            _ => false,
        }
    }

    /// Takes what the loader answered: into memory, and to those who wait. Returns what is to be
    /// stored below.
    pub(crate) async fn commit(
        &self,
        takeoff: &Takeoff,
        mut loaded: Loaded<V>,
        Brought { time: load_time, built_from, .. }: &Brought<()>,
    ) -> Option<New<V>> {
        let Request { space, codec, options, .. } = &self.request;
        space.counters.load_cost.add(loaded.cost);
        if !matches!(loaded.answer, Answer::Failed(_)) {
            bump(&space.counters.loaded);
        }
        let mut built_from = built_from.clone();
        if let Err(error) = loaded.dependencies.add_to(&mut built_from) {
            let Error::Dependencies(reason) = error else {
                self.fail(takeoff, Crash::Dependencies("its key is too long"));
                return None;
            };
            self.fail(takeoff, Crash::Dependencies(reason));
            return None;
        }
        let own = loaded.tags_of(&space.tenant);
        let tags = match own.and_then(|own| write::joined_tags(&options.tags, &own)) {
            Ok(tags) => tags,
            Err(reason) => {
                self.fail(takeoff, Crash::Tags(reason));
                return None;
            }
        };
        let traced = built_from.joined(&tags);
        let is_untraced = traced.is_none();
        let options = EntryOptions {
            ttl: loaded.ttl.unwrap_or(options.ttl),
            stamp: self.ticket.stamp,
            is_hashed: self.wanted.is_hashed,
            tags: traced.unwrap_or(tags),
            version: loaded.version,
            last_modified: loaded.last_modified,
            load_time: *load_time,
            is_untraced,
        };
        let may_be_stored = !is_untraced && loaded.dependencies.stand(&space.core);
        if is_untraced {
            bump(&space.counters.untraced);
        }
        if !matches!(loaded.answer, Answer::Failed(_)) {
            space.core.retries.forget(takeoff.key());
        }
        match loaded.answer {
            Answer::Value(value) if may_be_stored => {
                let fresh = write::prepare(space, *codec, value, &options);
                return Some(self.keep(takeoff, fresh));
            }
            Answer::Value(value) | Answer::NotStored(value) => {
                let fresh = write::prepare(space, None, value, &options);
                self.land_loaded(takeoff, &fresh);
            }
            Answer::NotModified => match &self.stale {
                Some((entry, _)) if may_be_stored && has_all(&entry.meta, &options.tags) => {
                    let fresh = fill::renew(space, entry, &options);
                    return Some(self.keep(takeoff, fresh));
                }
                // It would live on without the names that it was confirmed under.
                Some((entry, _)) => {
                    let fresh = Fresh { entry: Arc::clone(entry), encoded: None };
                    self.land_loaded(takeoff, &fresh);
                }
                None => self.fail(takeoff, Crash::NothingToConfirm),
            },
            Answer::Absent => {
                bump(&space.counters.absent);
                self.store_absent(takeoff, &options.tags, may_be_stored).await;
            }
            Answer::Failed(error) => {
                let crash = Crash::Loader(error);
                self.note_failure(takeoff, &crash);
                self.fail(takeoff, crash);
            }
        }
        None
    }

    /// Puts a new entry into memory. Whoever comes from then on finds it there: nobody waits for
    /// the disk. If it is not taken, the flight lands once the tiers below have it.
    fn keep(&self, takeoff: &Takeoff, fresh: Fresh<V>) -> New<V> {
        let Request { space, reading, .. } = &self.request;
        let is_stored = space.mode() != Mode::Off && !self.is_outdated(takeoff, &fresh);
        let is_in_memory = is_stored
            && !reading.unwritten.has_memory()
            && write::to_memory(space, takeoff.key(), &fresh.entry, self.ticket);
        if is_in_memory || !is_stored {
            self.land_loaded(takeoff, &fresh);
        }
        New { fresh, is_stored, has_landed: is_in_memory || !is_stored }
    }

    /// Whether something newer is known, as the source itself says: a source may answer from a
    /// replica that lags behind.
    fn is_outdated(&self, takeoff: &Takeoff, fresh: &Fresh<V>) -> bool {
        let (space, meta) = (&self.request.space, &fresh.entry.meta);
        let is_older = self.stale.as_ref().is_some_and(|(known, _)| {
            meta.source_age().is_older_than(known.meta.source_age())
                && read::freshness_below(space, self.wanted.name(space), &known.meta)
                    != Freshness::Dead
        });
        is_older || write::is_outdated(space, takeoff.key(), meta)
    }

    /// Stores new entries in the tiers below memory, and lands the flights that have not.
    pub(crate) async fn store_below<'a>(
        &self,
        new: impl Iterator<Item = (&'a Self, &'a Takeoff, &'a New<V>)> + Clone,
    ) {
        let Request { space, codec, reading, .. } = &self.request;
        let mut fills: SmallVec<[_; 1]> = new
            .clone()
            .filter(|(_, _, new)| new.is_stored)
            .map(|(job, _, New { fresh, .. })| fill::Fill {
                wanted: &job.wanted,
                fresh,
                ticket: job.ticket,
            })
            .collect();
        fill::keep_permitted(space, &mut fills);
        if !space.core.tiers.is_empty() {
            Box::pin(fill::fill(space, *codec, fills, reading.unwritten)).await;
        }
        for (job, takeoff, new) in new.filter(|(_, _, new)| !new.has_landed) {
            job.land_loaded(takeoff, &new.fresh);
        }
    }

    async fn store_absent(
        &self,
        takeoff: &Takeoff,
        tags: &Arc<[Arc<str>]>,
        may_be_remembered: bool,
    ) {
        let Request { space, reading, .. } = &self.request;
        if space.mode() != Mode::Off && !reading.unwritten.has_memory() {
            let ttl = space.policy.negative_ttl.filter(|_| may_be_remembered);
            fill::absent_to_memory(space, takeoff.key(), self.ticket, tags, ttl);
        }
        // Whoever is told so must not find it below afterwards.
        if self.stale.is_some() && space.mode() != Mode::Off {
            fill::take_away_everywhere(space, &self.wanted, reading.unwritten).await;
        }
        takeoff.land(Err(Crash::Absent));
    }

    fn land_loaded(&self, takeoff: &Takeoff, fresh: &Fresh<V>) {
        let space = &self.request.space;
        let tags = &fresh.entry.meta.details().tags;
        let names = || Names { key: self.wanted.name(space), space: &space.name, tags };
        let landed = self.landed(&fresh.entry, Source::Loader, None);
        if !takeoff.land_if(Ok(landed.clone()), || space.core.permits(self.ticket, names)) {
            // Something named it meanwhile. Lines that name what the flight was known to be about
            // have superseded it; those about tags that only the loader knew have not.
            let of_call = &self.request.options.tags;
            let has_own_tags = tags.iter().any(|tag| !of_call.contains(tag));
            takeoff.land(Ok(Landed { has_own_tags, ..landed }));
        }
    }

    /// Lands with an entry that was found, unless it died on the way: its tags are its own,
    /// and no line about them has superseded the flight.
    fn land_found(
        &self,
        takeoff: &Takeoff,
        entry: &Arc<Entry<V>>,
        source: Source,
        instead_of: Option<Crash>,
    ) -> bool {
        let landed = self.landed(entry, source, instead_of);
        takeoff.land_if(Ok(landed), || self.may_serve(entry))
    }

    fn landed(&self, entry: &Arc<Entry<V>>, source: Source, instead_of: Option<Crash>) -> Landed {
        let space = &self.request.space;
        let is_past_end = space.core.clock.tick() >= entry.meta.times.life().fresh_until;
        // Something else was to be had that could not.
        let is_outdated = || {
            let freshness = read::freshness_below(space, self.wanted.name(space), &entry.meta);
            freshness == Freshness::Stale
        };
        let is_stale = is_past_end || instead_of.is_some() && is_outdated();
        let entry: Arc<Entry<V>> = Arc::clone(entry);
        Landed { entry, source, is_stale, instead_of, has_own_tags: false }
    }

    fn may_serve(&self, entry: &Entry<V>) -> bool {
        let space = &self.request.space;
        let freshness = read::freshness_below(space, self.wanted.name(space), &entry.meta);
        // In a shadow every answer is the loader's, its errors too.
        if space.mode() != Mode::On {
            return false;
        }
        freshness.is_fresh() || freshness == Freshness::Stale && space.policy.allows_stale()
    }

    /// Lands without a value: with what is stale if there is something and it is allowed.
    pub(crate) fn fail(&self, takeoff: &Takeoff, crash: Crash) {
        let has_landed = self.stale.as_ref().is_some_and(|(entry, source)| {
            self.land_found(takeoff, entry, source.clone(), Some(crash.clone()))
        });
        if !has_landed {
            takeoff.land(Err(crash));
        }
    }

    /// Remembers that the load failed, so that the next one waits.
    pub(crate) fn note_failure(&self, takeoff: &Takeoff, crash: &Crash) {
        let space = &self.request.space;
        let (core, policy) = (&space.core, &space.policy);
        let now = core.clock.tick();
        let is_remembered =
            matches!(crash, Crash::Loader(_) | Crash::Deadline(_)) && !policy.retry.first.is_zero();
        if !is_remembered {
            // The key is usable at once, and what ages is renewed by a read that comes soon.
            if let Some((entry, _)) = &self.stale {
                entry.meta.times.set_aging(now.saturating_add(policy.retry.first));
            }
            return;
        }
        let can_serve = self.stale.as_ref().is_some_and(|(entry, _)| self.may_serve(entry));
        let of_call = &self.request.options.tags;
        let (tags, end) = match &self.stale {
            Some((entry, _)) if can_serve => (
                write::joined_tags(of_call, &entry.meta.details().tags),
                entry.meta.times.life().stale_until,
            ),
            _ => (Ok(Arc::clone(of_call)), now),
        };
        let failure = Failed {
            crash: crash.clone(),
            ticket: self.ticket,
            tags: tags.unwrap_or_else(|_| Arc::clone(of_call)),
        };
        let retry_at = core.retries.failed(takeoff.key(), failure, |failures| {
            let random = core.runtime.random();
            // A long wait is over soon after what answers meanwhile is.
            let without = policy.retry.next(now, failures, false, random);
            policy.retry.next(now, failures, can_serve, random).min(without.max(end))
        });
        if let Some((entry, _)) = &self.stale {
            entry.meta.times.set_aging(retry_at);
        }
    }
}

/// What a load has brought.
pub(crate) struct New<V> {
    fresh: Fresh<V>,
    is_stored: bool,
    has_landed: bool,
}

/// The flight is over.
pub(crate) struct Answered;

/// Whether whoever held the leases of these keys before may have stored a value since the tiers
/// were asked.
pub(crate) async fn may_be_there_now(space: &Arc<SpaceCore>, wanted: &[&Wanted]) -> bool {
    space.core.is_shared()
        && read::exist(space, wanted.iter().map(|wanted| &*wanted.bytes))
            .await
            .is_ok_and(|there| there.contains(&true))
}

/// A loader's answer, and what is known of how it came about.
pub(crate) struct Brought<A> {
    answer: A,
    time: Duration,
    built_from: BuiltFrom,
}

impl<A> Brought<A> {
    pub(crate) fn apart(self) -> (A, Brought<()>) {
        let Self { answer, time, built_from } = self;
        (answer, Brought { answer: (), time, built_from })
    }
}

/// The loader's answer, or why there is none.
pub(crate) async fn run<A>(
    space: &SpaceCore,
    flights: Flown,
    loading: Loading<A>,
    is_nested: bool,
) -> Result<Brought<A>, Crash> {
    let _permits = if is_nested {
        Permits::default()
    } else {
        let permits = pin!(permits(space));
        unless(|| any_urgent(&flights), permits).await.unwrap_or(Ok(Permits::default()))?
    };
    let (clock, runtime) = (&space.core.clock, &space.core.runtime);
    let limit = space.policy.load_deadline;
    bump(&space.counters.loads);
    let started = clock.elapsed();
    let tracker = space.core.spaces.has_tracked().then(Arc::<Tracker>::default);
    let loading = within_load(flights, catch_panic(loading));
    let loading = tracking::noting(tracker.clone(), loading);
    let loaded = unless(|| runtime.sleep(limit), loading).await;
    let time = clock.elapsed().saturating_sub(started);
    space.counters.load_time.add(time);
    space.counters.load_cost.add(space.policy.load_cost);
    let crash = match loaded {
        Some(Ok(Ok(answer))) => {
            let built_from = tracker.map(|tracker| tracker.built_from()).unwrap_or_default();
            return Ok(Brought { answer, time, built_from });
        }
        Some(Ok(Err(error))) => Crash::Loader(error),
        Some(Err(Panicked)) => Crash::Panicked,
        None => Crash::Deadline(limit),
    };
    bump(&space.counters.load_errors);
    Err(crash)
}

/// Whether an entry carries all of these tags.
fn has_all(meta: &Meta, tags: &[Arc<str>]) -> bool {
    tags.iter().all(|tag| meta.details().tags.contains(tag))
}

/// Completes when somebody waits for one of these flights who holds a permit.
async fn any_urgent(flights: &Flown) {
    let mut urgent: Vec<_> = flights.iter().map(|flight| Box::pin(flight.urgent())).collect();
    std::future::poll_fn(|context| {
        // Each has to be polled to be woken.
        let mut is_any = false;
        for urgent in &mut urgent {
            is_any |= urgent.as_mut().poll(context).is_ready();
        }
        if is_any { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// What a load has to have; nothing if it may do without.
#[derive(Default)]
struct Permits {
    _of_space: Option<Permit>,
    _of_cache: Option<Permit>,
}

/// Permits of the space and of the cache, in this order: who waits for the space's keeps
/// nobody else's.
async fn permits(space: &SpaceCore) -> Result<Permits, Crash> {
    let of_space = match space.loads() {
        Some(bulkhead) => Some(permit(space, bulkhead).await?),
        None => None,
    };
    let of_cache = permit(space, &space.core.loads).await?;
    Ok(Permits { _of_space: of_space, _of_cache: Some(of_cache) })
}

async fn permit(space: &SpaceCore, bulkhead: &Bulkhead) -> Result<Permit, Crash> {
    let permit = bulkhead.permit(&*space.core.runtime, space.policy.load_deadline).await;
    permit.map_err(|Overloaded| {
        bump(&space.counters.overloaded);
        Crash::Overloaded
    })
}

/// The future panicked; what it said went to the panic hook.
pub(crate) struct Panicked;

/// The output of `work`, or that it panicked.
pub(crate) fn catch_panic<T>(
    mut work: impl Future<Output = T> + Unpin,
) -> impl Future<Output = Result<T, Panicked>> + Unpin {
    std::future::poll_fn(move |context| {
        match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut work).poll(context))) {
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
}

/// Notes that a load's value was not stored.
pub(crate) fn count_superseded(space: &SpaceCore) {
    space.counters.superseded.fetch_add(1, Ordering::Relaxed);
}
