//! The **builder**: tiers in order, defaults, and every check before anything starts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use parking_lot::Mutex;

use crate::append::APPENDED_AT_ONCE;
use crate::authority::{Authority, LocalAuthority};
use crate::bulkhead::Bulkhead;
use crate::cache::Terrace;
use crate::clock::{AnyClock, Clock, SteadyWall, SystemClock};
use crate::codec::Codec;
use crate::core::{Core, Engine};
use crate::entry::AnyEntry;
use crate::error::BuildError;
use crate::event::{Event, Events};
use crate::flight::Flights;
use crate::group::Group;
use crate::guard::within;
#[cfg(feature = "disk")]
use crate::journal::Journal;
use crate::key::MemoryKey;
use crate::ledger::Mirror;
use crate::mac::MacKeys;
use crate::pending::Pending;
use crate::policy::Policy;
use crate::protocol::Snapshot;
use crate::retry::Retries;
use crate::runtime::{Runtime, Tokio};
use crate::space::{Identity, Spaces};
use crate::store::{Scope, StoreError, StoreErrorKind};
use crate::sweep;
use crate::tenant::Tenants;
use crate::tier::{OpenTier, Tier};
use crate::tracking::Undropped;
use crate::warm::WarmStart;
use terrace_memory::Eviction;

/// Settings of the memory tier.
#[derive(Clone, Debug)]
pub struct Memory {
    max_bytes: u64,
    max_entries: Option<u64>,
    max_value_bytes: Option<u64>,
    eviction: Eviction,
}

impl Memory {
    /// At most so many bytes, keys, values and what is spent on keeping them included.
    ///
    /// A value counts as what it takes encoded, and as the size of its type.
    #[must_use]
    pub fn bytes(max_bytes: u64) -> Self {
        Self { max_bytes, max_entries: None, max_value_bytes: None, eviction: Eviction::default() }
    }

    /// At most so many values as well, however small. Not limited unless set.
    ///
    /// ```
    /// use terrace::{Eviction, Memory};
    ///
    /// let memory = Memory::bytes(64 << 20).max_entries(100_000).eviction(Eviction::Lru);
    /// ```
    #[must_use]
    pub fn max_entries(self, max_entries: u64) -> Self {
        Self { max_entries: Some(max_entries), ..self }
    }

    /// Who leaves to make room. [`Eviction::Hybrid`] unless set, which suits almost everybody.
    #[must_use]
    pub fn eviction(self, eviction: Eviction) -> Self {
        Self { eviction, ..self }
    }

    /// Larger values are not kept in memory: a sixteenth of the whole unless set.
    #[must_use]
    pub fn max_value_bytes(self, max_value_bytes: u64) -> Self {
        Self { max_value_bytes: Some(max_value_bytes), ..self }
    }

    fn build(&self) -> Engine {
        let largest = self.max_value_bytes.unwrap_or(self.max_bytes / 16);
        let builder = Engine::builder().max_bytes(self.max_bytes).max_value_bytes(largest);
        let builder = match self.max_entries {
            Some(entries) => builder.max_entries(entries),
            None => builder,
        };
        builder
            .eviction(self.eviction)
            .weigher(|key: &MemoryKey, entry: &AnyEntry| {
                let pointers = size_of::<MemoryKey>() + size_of::<AnyEntry>() + ARC_COUNTS;
                ((pointers + key.spilled()) as u64).saturating_add(entry.meta().bytes())
            })
            .build()
    }
}

/// How long joining a ledger may take before a cache starts without it.
const JOINING: Duration = Duration::from_secs(2);

/// Loads that run at once unless the builder says otherwise.
const MOST_LOADS: usize = 256;

/// Tenants that are known at a time unless the builder says otherwise.
const MOST_TENANTS: usize = 1_000;

/// How long memory is trusted without the ledger unless the builder says otherwise.
const MAX_ISOLATED: Duration = Duration::from_secs(60);

/// The two counts of references before a shared value.
const ARC_COUNTS: usize = 16;

impl Default for Memory {
    /// 256 MiB.
    fn default() -> Self {
        Self::bytes(256 << 20)
    }
}

/// A cache that is being built. Made by [`Terrace::builder`].
#[derive(Debug, Default)]
#[must_use = "a cache is built by build"]
pub struct Builder {
    memory: Option<Memory>,
    tiers: Vec<(String, Tier)>,
    events: Vec<Event>,
    policy: Policy,
    max_loads: Option<usize>,
    max_isolated: Option<Duration>,
    max_tenants: Option<usize>,
    mac: Option<Arc<MacKeys>>,
    clock: Option<Arc<dyn Clock>>,
    runtime: Option<Arc<dyn Runtime>>,
    #[cfg(feature = "disk")]
    journal: Option<Journal>,
    warm_start: Option<WarmStart>,
}

impl Builder {
    /// Adds the memory tier, which is asked before all others.
    pub fn memory(mut self, memory: Memory) -> Self {
        self.memory = Some(memory);
        self
    }

    /// Adds a tier below those that were added before.
    pub fn tier(mut self, name: &str, tier: impl Into<Tier>) -> Self {
        self.tiers.push((name.into(), tier.into()));
        self
    }

    /// How long entries are fresh where their space says nothing: 5 minutes unless set.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.policy.ttl = Some(ttl);
        self
    }

    /// Declares what is invalidated when something happens.
    pub fn event(mut self, event: Event) -> Self {
        self.events.push(event);
        self
    }

    /// Has what is built from entries of any space depend on them: see
    /// [`SpaceBuilder::tracked`](crate::SpaceBuilder::tracked). Dynamic keys are tracked in no other
    /// way.
    pub fn tracked(mut self) -> Self {
        self.policy.is_tracked = true;
        self
    }

    /// Loads that run at once, of all spaces together: 256 unless set. More of them wait, and
    /// fail with [`LoadError::Overloaded`](crate::LoadError::Overloaded) when they have waited
    /// as long as a load may take, or when 10,000 wait already.
    pub fn max_loads(mut self, loads: usize) -> Self {
        self.max_loads = Some(loads);
        self
    }

    /// How long memory is trusted while the ledger that others write is out of reach: 60 s unless
    /// set. What others invalidate meanwhile is not heard of; no answer is older than this because
    /// of it.
    pub fn max_isolated(mut self, time: Duration) -> Self {
        self.max_isolated = Some(time);
        self
    }

    /// How many [tenants](crate::Tenant) are known at a time beside the one without a name: 1,000
    /// unless set. If there would be more, those whose handles have all been dropped are forgotten:
    /// their entries leave memory and stay below it, and their statistics begin anew.
    ///
    /// A tenant costs some ten kilobytes for each of its spaces, tiers and counters.
    pub fn max_tenants(mut self, tenants: usize) -> Self {
        self.max_tenants = Some(tenants);
        self
    }

    /// Signs every frame below memory with a MAC, and takes no frame without the right one: whoever
    /// can write to a store, and does not have the key, can make, alter or exchange no value. What it
    /// refuses is a miss, counted in [`Traffic::unreadable`](crate::Traffic::unreadable).
    ///
    /// A frame that is put back later is refused if this process knows that its key, its tags or its
    /// space were written or invalidated since: of the last 65,536 keys, since this process began.
    /// Whoever can write to a store can still remove what is there, and what it puts back is taken to
    /// its end where no newer line is known. Neither the ledger nor the journal is signed.
    ///
    /// Costs one hash of each frame that is read or written, and 32 bytes.
    #[cfg(feature = "mac")]
    pub fn mac(mut self, keys: MacKeys) -> Self {
        self.mac = Some(Arc::new(keys));
        self
    }

    /// Keeps what is written behind in a journal: see
    /// [`Space::insert_behind`](crate::Space::insert_behind).
    #[cfg(feature = "disk")]
    pub fn journal(mut self, journal: Journal) -> Self {
        self.journal = Some(journal);
        self
    }

    /// Begins with what was hot when the cache before closed: it notes which keys, and this one brings
    /// what a tier below has of them into memory, the hottest first, in the background, as soon as
    /// their space is opened. Off unless set.
    ///
    /// What was invalidated meanwhile is not brought back, nor what is past its end: each entry is
    /// read and judged as by any other call. Only [`close`](Terrace::close) notes what is hot; a
    /// process that is killed leaves the note of the one before it. Dynamic keys are not among them,
    /// because nobody knows their types yet, nor are spaces that are [built in
    /// memory](crate::SpaceBuilder::build_in_memory).
    ///
    /// How far it got is in [`Stats::warming`](crate::Stats::warming) and
    /// [`Stats::warmed`](crate::Stats::warmed). A file that cannot be used is a warning in the log,
    /// and no error.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # #[cfg(feature = "disk")] {
    /// # let directory = tempfile::tempdir()?;
    /// # let directory = directory.path();
    /// use terrace::{Disk, Memory, Terrace, WarmStart};
    ///
    /// for is_again in [false, true] {
    ///     let terrace = Terrace::builder()
    ///         .memory(Memory::default())
    ///         .tier("disk", Disk::at(directory.join("cache")))
    ///         .warm_start(WarmStart::at(directory.join("hot")).max_keys(1_000))
    ///         .build()
    ///         .await?;
    ///     let airports = terrace.space::<str, String>("airport").build()?;
    ///     if is_again {
    ///         while terrace.stats().await.warmed < 1 {
    ///             tokio::task::yield_now().await;
    ///         }
    ///         assert!(airports.read("LSZH", |name| name == "Zürich").unwrap());
    ///     } else {
    ///         airports.insert("LSZH", "Zürich".to_owned()).await?;
    ///     }
    ///     terrace.close().await;
    /// }
    /// # }
    /// # Ok(()) }
    /// ```
    pub fn warm_start(mut self, settings: WarmStart) -> Self {
        self.warm_start = Some(settings);
        self
    }

    /// Takes time from another clock than the operating system's.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Runs tasks on another runtime than the Tokio one that is current.
    pub fn runtime(mut self, runtime: Arc<dyn Runtime>) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Opens every tier and starts the cache.
    ///
    /// # Errors
    /// There is no tier, a name cannot be used, there is no runtime, or a tier cannot
    /// be opened; nothing is left running then.
    pub async fn build(self) -> Result<Terrace, BuildError> {
        if self.memory.is_none() && self.tiers.is_empty() {
            return Err(BuildError::NoTier);
        }
        let events = Events::declared(self.events)?;
        let runtime: Arc<dyn Runtime> = match self.runtime {
            Some(runtime) => runtime,
            None => Arc::new(Tokio::current().ok_or(BuildError::NoRuntime)?),
        };
        let of_tiers = self.clock.clone().unwrap_or_else(|| Arc::new(SystemClock::new()));
        let clock =
            self.clock.map_or_else(|| AnyClock::System(SystemClock::new()), AnyClock::Other);
        check_names(&self.tiers)?;
        if let Some(warm_start) = &self.warm_start {
            warm_start.check(self.memory.is_some(), !self.tiers.is_empty())?;
        }
        #[cfg(feature = "disk")]
        let journal = self.journal.as_ref().map(Journal::open).transpose()?.map(Arc::new);
        let mut tiers = self
            .tiers
            .into_iter()
            .map(|(name, tier)| tier.open(name.into(), self.mac.clone(), &of_tiers, &runtime))
            .collect::<Result<Vec<_>, _>>()?;
        let authority = elect(&mut tiers, &*runtime);
        let keeper = tiers.iter().find(|tier| tier.is_authority);
        let joining = within(&*runtime, JOINING, "read the ledger", authority.snapshot());
        let snapshot = match joining.await {
            Ok(snapshot) => snapshot,
            Err(source) => join_later(source, keeper, &*runtime)?,
        };
        let warm = match self.warm_start {
            Some(warm_start) => Some(warm_start.begin().await),
            None => None,
        };
        let heard = AtomicU64::new(clock.tick().as_millis());
        let core = Arc::new(Core {
            memory: self.memory.as_ref().map(Memory::build),
            authority,
            mirror: Mirror::joining(&snapshot),
            flights: Arc::new(Flights::new()),
            pending: Pending::default(),
            retries: Retries::new(),
            loads: Bulkhead::new(self.max_loads.unwrap_or(MOST_LOADS)),
            spaces: Spaces::new(tiers.len() + 1),
            events,
            sweeps: tokio::sync::Semaphore::new(sweep::MOST_AT_ONCE),
            tenants: Tenants::new(self.max_tenants.unwrap_or(MOST_TENANTS)),
            undropped: Undropped::default(),
            clock,
            steady_wall: SteadyWall::default(),
            runtime,
            largest: (0..=tiers.len()).map(|_| AtomicU64::new(0)).collect(),
            appends: Group::new(APPENDED_AT_ONCE),
            following: tokio::sync::Mutex::new(()),
            heard,
            is_isolated: AtomicBool::new(false),
            max_isolated: self.max_isolated.unwrap_or(MAX_ISOLATED),
            warned: Mutex::default(),
            is_closed: AtomicBool::new(false),
            #[cfg(feature = "disk")]
            journal,
            warm,
            tiers: tiers.into(),
        });
        core.start_housekeeping();
        let unnamed = core.tenants.unnamed();
        let dynamic =
            core.spaces.open(&core, unnamed, Identity::dynamic(), self.policy, Codec::default());
        Ok(Terrace { core, dynamic })
    }
}

/// What a process goes by that cannot reach its ledger yet: a service must be able to start while
/// its Redis is away. Nothing that is stored below memory is trusted until it has joined.
fn join_later(
    source: StoreError,
    keeper: Option<&OpenTier>,
    runtime: &dyn Runtime,
) -> Result<Snapshot, BuildError> {
    let tier = keeper.map_or("memory", |tier| &*tier.name);
    let is_away = matches!(source.kind(), StoreErrorKind::Unavailable | StoreErrorKind::Deadline);
    let is_remote = keeper.is_some_and(|tier| tier.scope == Scope::Fleet);
    if !(is_away && is_remote) {
        return Err(BuildError::Ledger { tier: tier.into(), source });
    }
    tracing::warn!(tier, error = %source, "the ledger is away: starting without it");
    Ok(Snapshot::empty(runtime.random()))
}

fn check_names(tiers: &[(String, Tier)]) -> Result<(), BuildError> {
    for (index, (name, _)) in tiers.iter().enumerate() {
        if name.is_empty() || name == "memory" || name == "loader" {
            let reason = "it is empty, or stands for something else";
            return Err(BuildError::BadName { name: name.clone(), reason });
        }
        if tiers.iter().take(index).any(|(other, _)| other == name) {
            return Err(BuildError::NameTaken(name.clone()));
        }
    }
    Ok(())
}

/// The widest tier that can keep a ledger is the authority; of several, the last. If
/// none can, this process keeps its own.
fn elect(tiers: &mut [OpenTier], runtime: &dyn Runtime) -> Arc<dyn Authority> {
    let able = tiers.iter_mut().filter_map(|tier| Some((tier.store.authority()?, tier)));
    let authority = match able.max_by_key(|(authority, _)| authority.scope()) {
        Some((authority, tier)) => {
            tier.is_authority = true;
            authority
        }
        None => Arc::new(LocalAuthority::new(runtime.random())),
    };
    for tier in tiers.iter().filter(|tier| !tier.is_authority) {
        tier.store.obey_another_ledger();
    }
    authority
}
