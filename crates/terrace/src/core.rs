//! The **core**: what the parts of one cache share, and how lines of the ledger reach
//! all of them.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::append::Invalidated;
use crate::authority::{Answer, Append, Authority};
use crate::bulkhead::Bulkhead;
use crate::clock::{AnyClock, Moment, SteadyWall, WallTime};
use crate::entry::{AnyEntry, Meta};
use crate::error::Error;
use crate::event::Events;
use crate::flight::{Flights, Underway};
use crate::group::Group;
use crate::guard::{is_refusal, within};
#[cfg(feature = "disk")]
use crate::journal::{Left, OpenJournal};
use crate::key::{KeyRef, MemoryKey, is_never_hashed, key_name, split_key_name};
use crate::ledger::{Line, Mirror, Name, Names, Stamp};
use crate::load::catch_panic;
use crate::pending::Pending;
use crate::protocol::{Follow, Standing};
use crate::retry::Retries;
use crate::runtime::{BoxFuture, Runtime, in_task, unless};
use crate::space::{self, SpaceCore, Spaces};
use crate::stats::{SpaceStats, Stats, TierHealth, TierStats, TrafficSum};
use crate::store::{Health, Scope, StoreError, StoreErrorKind, Usage};
use crate::sweep::{self, Swept};
use crate::tenant::Tenants;
use crate::tier::OpenTier;
use crate::tracking::Undropped;
use crate::warm::{self, Warm};

/// The memory tier's engine, as the cache uses it.
pub(crate) type Engine = terrace_memory::Memory<MemoryKey, AnyEntry>;

/// What the parts of one cache share.
pub(crate) struct Core {
    pub(crate) memory: Option<Engine>,
    /// Below memory, in the order in which they are asked.
    pub(crate) tiers: Box<[OpenTier]>,
    pub(crate) authority: Arc<dyn Authority>,
    pub(crate) mirror: Mirror,
    pub(crate) flights: Arc<Flights>,
    pub(crate) pending: Pending,
    pub(crate) retries: Retries,
    /// How many loads run at once.
    pub(crate) loads: Bulkhead,
    pub(crate) spaces: Spaces,
    /// A permit for each walk through a tier.
    pub(crate) sweeps: tokio::sync::Semaphore,
    pub(crate) tenants: Tenants,
    pub(crate) undropped: Undropped,
    pub(crate) events: Events,
    pub(crate) clock: AnyClock,
    pub(crate) steady_wall: SteadyWall,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) largest: Box<[AtomicU64]>,
    /// Lines that wait to be appended together.
    pub(crate) appends: Group<Append, Invalidated>,
    pub(crate) following: tokio::sync::Mutex<()>,
    /// When the ledger was heard of last, in milliseconds of elapsed time.
    pub(crate) heard: AtomicU64,
    /// Whether that is too long ago for anything to be trusted that lines have to reach.
    pub(crate) is_isolated: AtomicBool,
    /// How long memory is trusted without hearing of the ledger.
    pub(crate) max_isolated: Duration,
    /// What endangered the cache when it was looked at last: tier, server, warning.
    pub(crate) warned: Mutex<BTreeSet<(Arc<str>, String, String)>>,
    pub(crate) is_closed: AtomicBool,
    /// What is written behind.
    #[cfg(feature = "disk")]
    pub(crate) journal: Option<Arc<OpenJournal>>,
    /// What was hot before, and is noted to be hot.
    pub(crate) warm: Option<Warm>,
}

/// What a load remembers of its beginning, to be judged by when it ends. See
/// [`Space::ticket`](crate::Space::ticket).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticket {
    pub(crate) stamp: Stamp,
    epoch: u64,
}

/// What became of what was under way when a cache was closed. See
/// [`Terrace::close_within`](crate::Terrace::close_within).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// Whether everything was finished: loads, writes, and what was written behind, as far as this
    /// process has the right to write it.
    pub is_finished: bool,
    /// Writes behind that the source does not have: the journal keeps them for the next start.
    pub kept: u64,
    /// Writes behind that the source does not have, and that another process has the right to
    /// write. If that ends as well, the journal keeps them.
    pub elsewhere: u64,
    /// Writes that were acknowledged in memory alone and could not be brought to the journal.
    pub lost: u64,
}

/// How long closing waits for what is under way.
pub(crate) const CLOSING: Duration = Duration::from_secs(30);

impl Core {
    /// The answer of the authority, or an error once its deadline has passed.
    pub(crate) async fn ask<'a, T>(
        &self,
        question: impl FnOnce() -> Answer<'a, T>,
    ) -> Result<T, StoreError> {
        match self.keeper() {
            Some(tier) => tier.guard.write("ask the ledger", question).await,
            // It is in this process, and answers at once.
            None => question().await,
        }
    }

    /// The tier whose store keeps the ledger.
    pub(crate) fn keeper(&self) -> Option<&OpenTier> {
        self.tiers.iter().find(|tier| tier.is_authority)
    }

    /// Whether other processes share the ledger, or may.
    pub(crate) fn is_shared(&self) -> bool {
        self.authority.scope() > Scope::Process
    }

    /// The time of day by which entries live. Leases go by the one that others see.
    pub(crate) fn wall(&self) -> WallTime {
        self.steady_wall.now(&self.clock)
    }

    pub(crate) fn moment(&self) -> Moment {
        Moment { wall: self.wall(), tick: self.clock.tick() }
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if self.is_closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// The same for what changes something: closing waits for as long as the answer is
    /// kept.
    pub(crate) fn begin(&self) -> Result<Underway, Error> {
        // First of all, so that whoever closes sees it or is seen.
        let underway = self.flights.underway();
        self.check_open().map(|()| underway)
    }

    pub(crate) fn tier_names(&self) -> impl Iterator<Item = &str> {
        let memory = self.memory.is_some().then_some("memory");
        memory.into_iter().chain(self.tiers.iter().map(|tier| &*tier.name))
    }

    /// The number of the tier of this name: memory is 0, those below it follow.
    pub(crate) fn tier_number(&self, name: &str) -> Option<usize> {
        if name == "memory" {
            return self.memory.is_some().then_some(0);
        }
        self.tiers.iter().position(|tier| &*tier.name == name).map(|index| index + 1)
    }

    /// Hears everything that the ledger says up to now, or fails.
    pub(crate) async fn confirm(self: &Arc<Self>) -> Result<(), Error> {
        match self.keeper() {
            // However many wait for their turn before a ledger that does not answer.
            Some(tier) => Ok(tier.guard.confirm(self.follow()).await?),
            None => Ok(self.follow().await?),
        }
    }

    /// Whether an entry in memory still stands: on the usual day two loads and two comparisons,
    /// because lines about keys take the entry out of memory themselves.
    #[inline]
    pub(crate) fn standing_in_memory(
        &self,
        space: &SpaceCore,
        key: KeyRef<'_>,
        meta: &Meta,
    ) -> Standing {
        let is_by_name = is_never_hashed(key.bytes) || !meta.details().is_hashed;
        if is_by_name && self.mirror.is_undisturbed(meta.stamp) {
            return Standing::Good;
        }
        self.standing_by_names(space, key, meta, is_by_name)
    }

    #[cold]
    fn standing_by_names(
        &self,
        space: &SpaceCore,
        key: KeyRef<'_>,
        meta: &Meta,
        is_by_name: bool,
    ) -> Standing {
        let details = meta.details();
        if is_by_name {
            let number = details.stood_at().max(meta.stamp.number);
            let seen = Stamp { number, ..meta.stamp };
            if self.mirror.is_undisturbed_but_by_other_tags(seen, details.slots())
                || self.mirror.is_undisturbed(seen)
            {
                return Standing::Good;
            }
            let name = || key_name(&space.name, key.bytes);
            let (standing, position) =
                self.mirror.standing(meta.stamp, &space.name, &details.tags, name);
            if standing == Standing::Good {
                meta.stands_at(position);
            }
            return standing;
        }
        let name = key_name(&space.name, key.bytes);
        let names = Names { key: &name, space: &space.name, tags: &details.tags };
        self.mirror.standing_of_hashed(meta.stamp, &names)
    }

    /// Reads and applies what others have appended.
    pub(crate) async fn follow(self: &Arc<Self>) -> Result<(), StoreError> {
        self.follow_to(None).await
    }

    /// The same as [`ask`](Self::ask) for what follows the ledger.
    async fn hear<'a, T>(&self, question: impl FnOnce() -> Answer<'a, T>) -> Result<T, StoreError> {
        match self.keeper() {
            Some(tier) => tier.guard.follow(question).await,
            None => question().await,
        }
    }

    /// The same up to `position` at least: of many who write at once, one asks for all.
    ///
    /// In a task of its own, because only one can do so at a time: a caller that is never polled
    /// again would keep everybody from hearing of what others have invalidated.
    pub(crate) async fn follow_to(
        self: &Arc<Self>,
        position: Option<Stamp>,
    ) -> Result<(), StoreError> {
        let core = Arc::clone(self);
        let following = async move {
            let _one_at_a_time = core.following.lock().await;
            if position.is_some_and(|position| core.mirror.has_applied(position)) {
                return Ok(());
            }
            core.follow_to_the_end().await
        };
        // Nobody has to be waited for.
        if !self.is_shared() && self.tiers.is_empty() {
            return following.await;
        }
        let gone = || Err(StoreError::new(StoreErrorKind::Closed, "follow the ledger"));
        in_task(&*self.runtime, following).await.unwrap_or_else(gone)
    }

    async fn follow_to_the_end(self: &Arc<Self>) -> Result<(), StoreError> {
        loop {
            let position = self.mirror.ticket();
            match self.hear(|| self.authority.follow(position)).await? {
                // Those that come meanwhile are for whoever asks next: there may always be more.
                Follow::Lines(lines) => {
                    let _dropping = self.undropped.from(position.number + 1);
                    self.mirror.apply(position.incarnation, &lines);
                    self.take(&lines).await;
                    return Ok(());
                }
                Follow::Broken => {
                    let snapshot = self.hear(|| self.authority.snapshot()).await?;
                    tracing::warn!(
                        "the ledger's chain is broken: what was cached before is not trusted"
                    );
                    // Until memory is empty, no ticket is new.
                    let _dropping = self.undropped.from(0);
                    self.mirror.rejoin(&snapshot);
                    // Lines about keys were missed, and memory hears of no others.
                    self.empty_memory();
                }
            }
        }
    }

    /// Applies what others have appended, for as long as the cache is open: waits for it where
    /// the authority can, and looks again and again where it cannot.
    fn hear_others(self: &Arc<Self>) {
        let core = Arc::downgrade(self);
        let (authority, runtime) = (Arc::clone(&self.authority), Arc::clone(&self.runtime));
        let limit = LISTENING + self.keeper().map_or(LISTENING, |tier| tier.guard.write_deadline());
        self.runtime.spawn(Box::pin(async move {
            let mut failures = 0;
            loop {
                let Some(position) = core.upgrade().map(|core| core.mirror.ticket()) else {
                    return;
                };
                // Nobody is kept from dropping the cache meanwhile.
                let heard = match authority.listen(position) {
                    Some(answer) => {
                        Some(within(&*runtime, limit, "listen to the ledger", answer).await)
                    }
                    None => None,
                };
                let has_waited = matches!(heard, Some(Ok(Follow::Lines(_))));
                let Some(core) = core.upgrade() else { return };
                if core.check_open().is_err() {
                    return;
                }
                // Values that are dropped on the way may panic; the next round comes.
                let applied =
                    catch_panic(pin!(Arc::clone(&core).apply_heard(position, heard))).await;
                if matches!(applied, Ok(Ok(()))) {
                    core.note_heard();
                    core.is_isolated.store(false, Ordering::Relaxed);
                    failures = 0;
                } else {
                    core.distrust_memory_in_time();
                    failures += 1;
                }
                if failures > 0 || !has_waited {
                    runtime.sleep(FOLLOWING * (1 << failures.min(4))).await;
                }
            }
        }));
    }

    /// Applies what listening brought; what did not come that way is asked for.
    async fn apply_heard(
        self: Arc<Self>,
        position: Stamp,
        heard: Option<Result<Follow, StoreError>>,
    ) -> Result<(), StoreError> {
        match heard {
            Some(Ok(Follow::Lines(lines))) => {
                // Whoever can be heard may be back.
                self.hear(|| Box::pin(std::future::ready(Ok(())))).await?;
                let _one_at_a_time = self.following.lock().await;
                let known = self.mirror.ticket().number;
                // Those of this process have come back.
                let lines: Vec<_> = lines.into_iter().filter(|line| line.number > known).collect();
                let _dropping = self.undropped.from(known + 1);
                if self.mirror.apply(position.incarnation, &lines) {
                    self.take(&lines).await;
                }
                Ok(())
            }
            // Perhaps it answers those who do not wait.
            Some(Err(_) | Ok(Follow::Broken)) | None => self.follow().await,
        }
    }

    /// Empties memory once nothing was heard of the ledger for too long, and again after as long:
    /// what is loaded meanwhile may be invalidated by others all the same.
    fn distrust_memory_in_time(&self) {
        let silent_for = self.silent_for();
        if silent_for >= self.max_isolated {
            tracing::warn!(
                ?silent_for,
                "the ledger is out of reach: what memory holds is not trusted any longer"
            );
            // Before: what is there must not come back to memory from stores that heard no more.
            self.is_isolated.store(true, Ordering::SeqCst);
            self.empty_memory();
            self.note_heard();
        }
    }

    /// How long ago the ledger was heard of last.
    fn silent_for(&self) -> Duration {
        let now = self.clock.tick().as_millis();
        Duration::from_millis(now.saturating_sub(self.heard.load(Ordering::Relaxed)))
    }

    fn note_heard(&self) {
        self.heard.store(self.clock.tick().as_millis(), Ordering::Relaxed);
    }

    /// Takes what lines of others name out of memory, and out of stores that do not hear them.
    async fn take(self: &Arc<Self>, lines: &[Line]) {
        self.drop_from_memory(lines);
        for swept in lines.iter().filter_map(|line| Swept::by(&line.name)) {
            sweep::go_on(self, swept);
        }
        let names = lines.iter().map(|line| &line.name);
        if !self.drop_from_stores(names.clone()).await {
            self.hold_back(names.cloned().collect());
        }
    }

    /// Takes what lines about keys and patterns name out of memory: lines about more than a key
    /// are judged on each read instead.
    pub(crate) fn drop_from_memory(&self, lines: &[Line]) {
        let Some(memory) = &self.memory else { return };
        for line in lines {
            if let Some(swept) = Swept::by(&line.name) {
                sweep::drop_from_memory(self, &swept, line.number);
            }
            for key in self.memory_keys(&line.name) {
                drop_all(|| {
                    memory.remove_if(&key.as_ref(), |view| {
                        let stamp = view.value.meta().stamp;
                        stamp.number < line.number || self.mirror.is_foreign(stamp)
                    });
                });
            }
        }
    }

    pub(crate) fn empty_memory(&self) {
        if let Some(memory) = &self.memory {
            drop_all(|| {
                memory.clear();
            });
        }
    }

    /// Takes what `names` say of keys out of stores that do not hear the ledger;
    /// `false` if one of them did not answer.
    pub(crate) async fn drop_from_stores<'a>(
        &self,
        names: impl Iterator<Item = &'a Name> + Clone,
    ) -> bool {
        let mut dropped = true;
        for (tier, counters) in self.tiers.iter().zip(self.spaces.unnamed().below_memory()) {
            let keys: Vec<_> = if tier.is_authority {
                Vec::new()
            } else {
                names.clone().flat_map(|name| self.spaces.stored_keys(name)).collect()
            };
            if !keys.is_empty() {
                dropped &= tier.remove(counters, &keys).await.is_ok();
            }
        }
        dropped
    }

    pub(crate) fn memory_keys(&self, name: &Name) -> Vec<MemoryKey> {
        let (Name::Key(name) | Name::Set(name)) = name else { return Vec::new() };
        let Some((space, Some(bytes))) = split_key_name(name) else { return Vec::new() };
        self.spaces.keys_in(space, &bytes)
    }

    /// The ledger's position and the pending names, as a load knows them that
    /// begins now. Not for comparing with a ticket of before: it may be of an earlier position
    /// than others that were taken already.
    pub(crate) fn ticket(&self) -> Ticket {
        // The epoch first: a name that is added between must not be missed.
        let epoch = self.pending.epoch();
        let mut stamp = self.mirror.ticket();
        if self.spaces.has_tracked() {
            stamp.number = self.undropped.before(stamp.number);
        }
        Ticket { stamp, epoch }
    }

    /// Whether a load with this ticket may store what it found.
    pub(crate) fn permits<'a>(&self, ticket: Ticket, names: impl FnOnce() -> Names<'a>) -> bool {
        ticket.epoch == self.pending.epoch() && self.mirror.permits(ticket.stamp, names)
    }

    pub(crate) async fn stats(&self) -> Stats {
        let spaces = self.spaces.all();
        let mut sums: Vec<TrafficSum> = Vec::new();
        sums.resize_with(self.tiers.len() + 1, TrafficSum::default);
        for space in &spaces {
            for (sum, counters) in sums.iter_mut().zip(&space.counters.tiers) {
                counters.add_to(sum);
            }
        }
        let mut tiers = Vec::new();
        for (index, sum) in sums.into_iter().enumerate() {
            let Some((name, usage)) = self.measure(index).await else { continue };
            let largest = self.note_size(index, usage.bytes);
            let below = index.checked_sub(1).and_then(|below| self.tiers.get(below));
            let guard = below.map(|tier| tier.guard.stats()).unwrap_or_default();
            tiers.push(TierStats {
                name,
                traffic: sum.traffic,
                entries: usage.entries,
                bytes: usage.bytes,
                largest_bytes: largest,
                evicted: usage.evicted,
                files: usage.files,
                disk_bytes: usage.disk_bytes,
                free_bytes: usage.free_bytes,
                guard,
            });
        }
        let names: Vec<_> = tiers.iter().map(|tier| Arc::clone(&tier.name)).collect();
        let skip = usize::from(self.memory.is_none());
        let kinds = space::stats_by_kind(&spaces, &names, skip);
        let spaces =
            spaces.iter().map(|space| space.stats(&names, skip)).collect::<Vec<SpaceStats>>();
        Stats {
            tiers,
            spaces,
            kinds,
            underway: self.flights.airborne() as u64,
            loads_running: self.loads.running() as u64,
            loads_queued: self.loads.queued() as u64,
            pending: self.pending.len() as u64,
            silent_for: if self.is_shared() { self.silent_for() } else { Duration::ZERO },
            warming: self.warm.as_ref().map_or(0, Warm::left),
            warmed: self.warm.as_ref().map_or(0, Warm::warmed),
            #[cfg(feature = "disk")]
            journal: self.journal.as_ref().map(|journal| journal.stats(self.wall())),
            #[cfg(not(feature = "disk"))]
            journal: None,
        }
    }

    /// The name and size of tier number `index`; memory is number 0.
    async fn measure(&self, index: usize) -> Option<(Arc<str>, Usage)> {
        let Some(below) = index.checked_sub(1) else {
            let memory = self.memory.as_ref()?;
            let stats = memory.stats();
            self.note_size(0, stats.peak_bytes);
            let usage = Usage::new(stats.entries, stats.bytes);
            return Some(("memory".into(), Usage { evicted: stats.evicted, ..usage }));
        };
        let tier = self.tiers.get(below)?;
        let usage = tier.guard.housekeep("measure a tier", || tier.store.usage()).await;
        Some((Arc::clone(&tier.name), usage.unwrap_or_default()))
    }

    /// How each tier below memory is.
    pub(crate) async fn health(&self) -> Vec<TierHealth> {
        let mut healths = Vec::with_capacity(self.tiers.len());
        for tier in &self.tiers {
            let health = tier.guard.insist("ask how a tier is", tier.store.health()).await;
            let (health, error) = match health {
                Ok(health) => (health, None),
                Err(error) => (Health::default(), Some(error)),
            };
            healths.push(TierHealth { tier: Arc::clone(&tier.name), health, error });
        }
        healths
    }

    /// Warns of what has come to endanger the cache since it was looked at last.
    async fn examine(&self) {
        let mut found = BTreeSet::new();
        for health in self.health().await {
            for node in health.health.nodes {
                for warning in node.warnings {
                    found.insert((Arc::clone(&health.tier), node.name.clone(), warning));
                }
            }
        }
        let known = std::mem::replace(&mut *self.warned.lock(), found.clone());
        for (tier, server, warning) in found.difference(&known) {
            tracing::warn!(%tier, server, "{warning}");
        }
        for (tier, index) in self.tiers.iter().zip(1..) {
            if tier.scope == Scope::Fleet
                && let Ok(usage) =
                    tier.guard.housekeep("measure a tier", || tier.store.usage()).await
            {
                self.note_size(index, usage.bytes);
            }
        }
    }

    fn note_size(&self, index: usize, bytes: u64) -> u64 {
        self.largest
            .get(index)
            .map_or(bytes, |largest| largest.fetch_max(bytes, Ordering::Relaxed).max(bytes))
    }

    pub(crate) async fn close(self: &Arc<Self>, time: Duration) -> Closed {
        let is_first = !self.is_closed.swap(true, Ordering::AcqRel);
        let until = self.clock.elapsed().saturating_add(time);
        #[cfg(feature = "disk")]
        if let Some(journal) = &self.journal {
            journal.begin_close();
        }
        // What is written behind is under way until the journal has it, which has to go on for
        // that; new calls are refused already.
        let landed = unless(|| self.runtime.sleep(time), self.flights.all_landed()).await;
        let is_finished = landed.is_some() && self.pending.is_empty();
        let closed = Closed { is_finished, kept: 0, elsewhere: 0, lost: 0 };
        #[cfg(feature = "disk")]
        let closed = self.close_journal(closed, until).await;
        if is_first {
            let left = until.saturating_sub(self.clock.elapsed());
            unless(|| self.runtime.sleep(left), warm::note(self)).await;
            for tier in &self.tiers {
                if let Err(error) = tier.guard.insist("close a tier", tier.store.close()).await {
                    tracing::warn!(tier = %tier.name, %error, "a store did not close as it should");
                }
            }
        }
        closed
    }

    /// Has what is written behind written until the time is over.
    #[cfg(feature = "disk")]
    async fn close_journal(&self, closed: Closed, until: Duration) -> Closed {
        let Some(journal) = &self.journal else { return closed };
        let time = until.saturating_sub(self.clock.elapsed());
        let Left { kept, elsewhere, lost } = journal.close(&*self.runtime, time).await;
        let is_finished = closed.is_finished && kept == 0 && lost == 0;
        Closed { is_finished, kept, elsewhere, lost }
    }

    /// Frees what has expired, notes sizes, and follows the ledger if others write it.
    pub(crate) fn start_housekeeping(self: &Arc<Self>) {
        // From here on the time of day does not go back.
        self.wall();
        if self.is_shared() {
            self.hear_others();
        }
        if self.tiers.iter().any(|tier| tier.scope == Scope::Fleet) {
            self.repeat(EXAMINING, |core| Box::pin(async move { core.examine().await }));
        }
        self.repeat(SWEEPING, |core| Box::pin(async move { core.sweep().await }));
    }

    /// Runs `chore` again and again, until the cache is closed or dropped.
    fn repeat(self: &Arc<Self>, every: Duration, chore: fn(Arc<Self>) -> BoxFuture<'static, ()>) {
        let core = Arc::downgrade(self);
        let runtime = Arc::clone(&self.runtime);
        self.runtime.spawn(Box::pin(async move {
            loop {
                runtime.sleep(every).await;
                match core.upgrade() {
                    Some(core) if core.check_open().is_ok() => {
                        // Values that are dropped on the way may panic; the next round comes.
                        let _ = catch_panic(chore(core)).await;
                    }
                    _ => return,
                }
            }
        }));
    }

    async fn sweep(&self) {
        if let Some(memory) = &self.memory {
            memory.sweep(self.clock.tick(), SWEEP_AT_ONCE);
        }
        self.retries.sweep(self.clock.tick());
        for (tier, index) in self.tiers.iter().zip(1..) {
            let chores = || tier.store.maintain(self.wall());
            if let Err(error) = tier.guard.housekeep("clean up a tier", chores).await
                && !is_refusal(&error)
            {
                tracing::warn!(tier = %tier.name, %error, "housekeeping failed");
            }
            // Of a server that others fill it is looked at less often: that is many questions.
            if tier.scope < Scope::Fleet
                && let Ok(usage) =
                    tier.guard.housekeep("measure a tier", || tier.store.usage()).await
            {
                self.note_size(index, usage.bytes);
            }
        }
    }
}

/// Whoever hands out what is written behind lets go of it.
#[cfg(feature = "disk")]
impl Drop for Core {
    fn drop(&mut self) {
        if let Some(journal) = &self.journal {
            journal.wake();
        }
    }
}

/// Does `work`, which drops values, and does it again for as long as one of them panics:
/// what one value does must not keep another from being dropped.
pub(crate) fn drop_all(mut work: impl FnMut()) {
    while catch_unwind(AssertUnwindSafe(&mut work)).is_err() {}
}

/// How often a ledger that others write is looked at: what they invalidate reaches
/// this process's memory within this and the time that one query takes.
const FOLLOWING: Duration = Duration::from_millis(20);

/// How long an authority waits for lines that come before it answers that there are none.
const LISTENING: Duration = Duration::from_secs(1);

/// How often expired entries are looked for.
const SWEEPING: Duration = Duration::from_secs(1);

/// How often servers are asked how they are.
const EXAMINING: Duration = Duration::from_secs(30);

/// Entries in memory that one sweep looks at.
const SWEEP_AT_ONCE: usize = 16_384;
