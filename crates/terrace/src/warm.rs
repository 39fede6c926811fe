//! The **warm start**: a cache that closes notes which keys were hot, and the next one brings them
//! into memory before anybody asks.
//!
//! The [snapshot](file) holds keys and no values. What memory is filled with comes from the tiers
//! below, by the way that every read goes: an entry that was invalidated meanwhile is not there
//! any more, or is judged by the ledger as always. So that it is there, a cache that closes puts
//! what is hot into the disk tiers that have let go of it: of what memory answers they hear no
//! reads, and take it for cold.

mod file;

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::codec::{Codec, ValueCodec};
use crate::core::Core;
use crate::error::BuildError;
use crate::key::{KeyBytes, KeyRef};
use crate::load::catch_panic;
use crate::options::Reading;
use crate::policy::Policy;
use crate::read::{self, Known, Wanted};
use crate::runtime::{BoxFuture, off_thread};
use crate::space::{Identity, Mode, SpaceCore};
use crate::store::Scope;
use crate::tenant::TenantName;

/// Where a cache that closes notes what was hot, and how the next one is warmed with it. See
/// [`Builder::warm_start`](crate::Builder::warm_start).
#[derive(Clone, Debug)]
pub struct WarmStart {
    path: PathBuf,
    max_keys: usize,
    keys_per_second: u32,
}

impl WarmStart {
    /// With a snapshot in the file `path`, which need not be there yet. Its directory must be. Up to
    /// 10,000 keys, 10,000 a second.
    ///
    /// Processes that share a tier may share the file, too: who closes last writes it.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), max_keys: 10_000, keys_per_second: 10_000 }
    }

    /// How many keys are noted at most, the hottest first. The file takes no more than 16 MiB,
    /// however long they are.
    #[must_use]
    pub fn max_keys(self, max_keys: usize) -> Self {
        Self { max_keys, ..self }
    }

    /// How many keys a second the tiers below are asked for at most, all spaces together, so that
    /// callers come first. At least 1.
    #[must_use]
    pub fn keys_per_second(self, keys_per_second: u32) -> Self {
        Self { keys_per_second, ..self }
    }

    pub(crate) fn check(&self, has_memory: bool, has_tiers: bool) -> Result<(), BuildError> {
        if !(has_memory && has_tiers) {
            return Err(BuildError::Setting(
                "a warm start fills memory from a tier below: it needs both",
            ));
        }
        if self.keys_per_second == 0 {
            return Err(BuildError::Setting("a warm start needs keys_per_second of at least 1"));
        }
        Ok(())
    }

    /// What the cache before noted: nothing if that cannot be used.
    pub(crate) async fn begin(self) -> Warm {
        let path = self.path.clone();
        let read = off_thread(move || file::read(&path)).await;
        let snapshot = match read {
            Some(Ok(snapshot)) => snapshot,
            Some(Err(error)) => {
                tracing::warn!(file = %self.path.display(), %error,
                    "the snapshot of what was hot cannot be used: memory begins empty");
                file::Snapshot::default()
            }
            None => file::Snapshot::default(),
        };
        // A space may be there twice: with what was hot, and with what had been before that.
        let mut cold: HashMap<_, VecDeque<_>> = HashMap::new();
        for (space, keys) in snapshot {
            cold.entry(space).or_default().extend(keys);
        }
        Warm {
            settings: self,
            cold: Mutex::new(cold),
            openings: Mutex::default(),
            turn: Arc::default(),
            warmed: AtomicU64::new(0),
        }
    }
}

/// What is still to be brought into memory, and what it takes to note what is hot.
pub(crate) struct Warm {
    settings: WarmStart,
    /// The keys that nobody has looked for yet, by what the stored keys of their space begin with.
    cold: Mutex<HashMap<Box<str>, VecDeque<KeyBytes>>>,
    openings: Mutex<HashMap<u32, Arc<dyn Opening>>>,
    /// Who has it may ask for some keys.
    turn: Arc<tokio::sync::Mutex<()>>,
    warmed: AtomicU64,
}

impl Warm {
    /// Keys that are still to be looked for. Those of spaces that are not open wait for that.
    pub(crate) fn left(&self) -> u64 {
        self.cold.lock().values().map(|keys| keys.len() as u64).sum()
    }

    /// Entries that were brought into memory.
    pub(crate) fn warmed(&self) -> u64 {
        self.warmed.load(Ordering::Relaxed)
    }

    /// The keys of a space that are looked for next. They stay until [they were](Self::looked_for).
    fn next(&self, prefix: &str, most: usize) -> Vec<KeyBytes> {
        let cold = self.cold.lock();
        cold.get(prefix).into_iter().flatten().take(most).cloned().collect()
    }

    /// Takes out the first `count` keys of a space.
    fn looked_for(&self, prefix: &str, count: usize) {
        let mut cold = self.cold.lock();
        let Some(keys) = cold.get_mut(prefix) else { return };
        keys.drain(..count.min(keys.len()));
        if keys.is_empty() {
            cold.remove(prefix);
        }
    }

    /// How many keys are asked for at once, and how long that is enough for.
    fn pace(&self) -> (usize, Duration) {
        let a_second = self.settings.keys_per_second;
        let at_once = (a_second / 20).clamp(1, AT_ONCE);
        (at_once as usize, Duration::from_secs(1) * at_once / a_second.max(1))
    }
}

/// Begins to warm a space that was opened. Only the first opening finds something to do.
pub(crate) fn begin<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    identity: Identity,
    values: ValueCodec<V>,
) {
    let core = &space.core;
    let Some(warm) = &core.warm else { return };
    let opening: Arc<dyn Opening> = Arc::new(Typed {
        tenant: Arc::downgrade(&space.tenant),
        identity,
        policy: space.policy.clone(),
        codec: space.codec,
        values,
    });
    warm.openings.lock().insert(space.number, Arc::clone(&opening));
    if warm.cold.lock().contains_key(space.prefix()) {
        let (core, prefix) = (Arc::downgrade(core), space.prefix().into());
        space.core.runtime.spawn(Box::pin(fill_memory(core, prefix, opening)));
    }
}

/// Some keys at a time, for as long as the cache is open.
async fn fill_memory(core: Weak<Core>, prefix: Box<str>, opening: Arc<dyn Opening>) {
    let turn_of = |core: Arc<Core>| Some(Arc::clone(&core.warm.as_ref()?.turn));
    loop {
        // A cache that is dropped is not kept by who waits here.
        let Some(turn) = core.upgrade().and_then(turn_of) else { return };
        let _turn = turn.lock_owned().await;
        let Some(open) = core.upgrade().filter(|core| core.check_open().is_ok()) else { return };
        let Some(warm) = &open.warm else { return };
        let (at_once, time) = warm.pace();
        let keys = warm.next(&prefix, at_once);
        if keys.is_empty() {
            return;
        }
        // Values may panic when they are decoded: those after them are warmed all the same.
        let count = keys.len();
        let warmed = catch_panic(opening.warm(Arc::clone(&open), keys)).await.unwrap_or(0);
        warm.warmed.fetch_add(warmed, Ordering::Relaxed);
        warm.looked_for(&prefix, count);
        let runtime = Arc::clone(&open.runtime);
        drop(open);
        runtime.sleep(time).await;
    }
}

/// Notes what is hot, and sees to it that disks have it.
pub(crate) async fn note(core: &Arc<Core>) {
    let Some(warm) = &core.warm else { return };
    let hot = warm.hot(core);
    let snapshot = warm.snapshot(core, &hot);
    let (path, random) = (warm.settings.path.clone(), core.runtime.random());
    let written = off_thread(move || file::write(&path, snapshot, random)).await;
    if let Some(Err(error)) = written {
        tracing::warn!(file = %warm.settings.path.display(), %error,
            "what was hot could not be noted: the next start is a cold one");
    }
    for (opening, keys) in hot {
        for some in keys.chunks(AT_ONCE as usize) {
            let _ = catch_panic(opening.carry(Arc::clone(core), some.to_vec())).await;
        }
    }
}

/// Hot keys by their spaces, those with the hottest first.
type Hot = Vec<(Arc<dyn Opening>, Vec<KeyBytes>)>;

impl Warm {
    /// The hottest keys in memory.
    fn hot(&self, core: &Core) -> Hot {
        let Some(memory) = &core.memory else { return Hot::new() };
        let openings = self.openings.lock().clone();
        // What a space holds in memory alone can be nowhere else.
        let hottest = memory.hottest(usize::MAX, core.clock.tick()).into_iter();
        let can_be_found = hottest.filter_map(|key| Some((openings.get(&key.space)?, key)));
        let (mut hot, mut places) = (Hot::new(), HashMap::new());
        for (opening, key) in can_be_found.take(self.settings.max_keys) {
            let place = *places.entry(key.space).or_insert(hot.len());
            match hot.get_mut(place) {
                Some((_, keys)) => keys.push(key.bytes),
                None => hot.push((Arc::clone(opening), vec![key.bytes])),
            }
        }
        hot
    }

    /// What is hot, and after it what was hot before and nobody had the time to look for.
    fn snapshot(&self, core: &Arc<Core>, hot: &Hot) -> file::Snapshot {
        let hot = hot.iter().filter_map(|(opening, keys)| {
            Some((opening.space(core)?.prefix().into(), keys.clone()))
        });
        let mut snapshot: file::Snapshot = hot.collect();
        let mut room = self.settings.max_keys;
        room -= snapshot.iter().map(|(_, keys)| keys.len()).sum::<usize>();
        for (prefix, keys) in &*self.cold.lock() {
            let keys: Vec<_> = keys.iter().take(room).cloned().collect();
            room -= keys.len();
            snapshot.push((prefix.clone(), keys));
        }
        snapshot
    }
}

/// An opened space, whatever its values are.
trait Opening: Send + Sync {
    /// Nothing if its tenant was forgotten.
    fn space(&self, core: &Arc<Core>) -> Option<Arc<SpaceCore>>;

    /// Brings what tiers have of these keys into memory: how many there were.
    fn warm(&self, core: Arc<Core>, keys: Vec<KeyBytes>) -> BoxFuture<'_, u64>;

    /// Puts what memory has of these keys into the disk tiers that do not have it.
    fn carry(&self, core: Arc<Core>, keys: Vec<KeyBytes>) -> BoxFuture<'_, ()>;
}

/// What it takes to open the space again. The space itself would keep its cache from being dropped.
struct Typed<V> {
    /// Which would not be forgotten either.
    tenant: Weak<TenantName>,
    identity: Identity,
    policy: Policy,
    codec: Codec,
    values: ValueCodec<V>,
}

impl<V: Send + Sync + 'static> Opening for Typed<V> {
    fn space(&self, core: &Arc<Core>) -> Option<Arc<SpaceCore>> {
        let (tenant, identity) = (self.tenant.upgrade()?, self.identity.clone());
        Some(core.spaces.open(core, &tenant, identity, self.policy.clone(), self.codec))
    }

    fn warm(&self, core: Arc<Core>, keys: Vec<KeyBytes>) -> BoxFuture<'_, u64> {
        Box::pin(async move {
            let Some(space) = self.space(&core) else { return 0 };
            if space.mode() != Mode::On {
                return 0;
            }
            let ticket = core.ticket();
            let is_cold = |key: &KeyBytes| {
                let key = KeyRef { space: space.number, bytes: key };
                read::from_memory::<V>(&space, key, core.clock.tick()).is_none()
                    && matches!(read::is_unflushed(&space, key.bytes), Ok(None))
            };
            let wanted: Vec<_> =
                keys.iter().filter(|key| is_cold(key)).map(|key| Wanted::new(key)).collect();
            let reading = Reading::default();
            let found =
                read::from_tiers(&space, Some(self.values), &wanted, ticket, &reading).await;
            let is_fresh = |found: &Option<(read::Found<V>, _)>| {
                found.as_ref().is_some_and(|(found, _)| found.freshness.is_fresh())
            };
            found.unwrap_or_default().iter().filter(|found| is_fresh(found)).count() as u64
        })
    }

    fn carry(&self, core: Arc<Core>, keys: Vec<KeyBytes>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some(space) = self.space(&core) else { return };
            let now = core.clock.tick();
            let entries = keys.iter().filter_map(|bytes| {
                let key = KeyRef { space: space.number, bytes };
                match read::from_memory::<V>(&space, key, now)? {
                    Known::Entry(found) => Some((Wanted::new(bytes), found.entry)),
                    Known::Absent => None,
                }
            });
            let entries: Vec<_> = entries.collect();
            for (index, tier) in core.tiers.iter().enumerate() {
                let Some(counters) = space.counters.below_memory().get(index) else { continue };
                // What others fill too is not flooded by everybody who leaves.
                if tier.scope != Scope::Host {
                    continue;
                }
                let stored: Vec<_> =
                    entries.iter().map(|(wanted, _)| wanted.stored(&space).clone()).collect();
                let Ok(frames) = tier.read(counters, &stored, None).await else { continue };
                let now = core.moment();
                for ((wanted, entry), bytes) in entries.iter().zip(frames) {
                    let frame = bytes.and_then(|bytes| {
                        read::fresh_frame(&space, wanted, tier, counters, &bytes, now)
                    });
                    if frame.is_none() {
                        read::copy_to(&space, self.values, wanted, entry, index).await;
                    }
                }
            }
        })
    }
}

/// Keys that are asked for at once at most.
const AT_ONCE: u32 = 64;
