//! The **registry** of a cache's spaces: which were opened, and what stays of them when their handles
//! are gone.

use std::any::TypeId;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::RwLock;

use super::core::{SpaceCore, SpaceState};
use crate::codec::Codec;
use crate::core::Core;
use crate::implied;
use crate::key::{self, KeyRef, MemoryKey, StoredKey, space_name};
use crate::ledger::Name;
use crate::policy::Policy;
use crate::stats::{KindStats, SpaceCounters, SpaceStats, Traffic, TrafficCounters, TrafficSum};
use crate::tenant::TenantName;

/// The spaces that were opened.
pub(crate) struct Spaces {
    known: RwLock<Known>,
    unnamed: Arc<SpaceCounters>,
    /// Names of those whose entries others are built from.
    tracked: RwLock<HashSet<Arc<str>>>,
    has_tracked: AtomicBool,
    tracks_all: AtomicBool,
    tiers: usize,
}

/// What makes two openings of a space by one tenant the same space.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) space: String,
    pub(crate) schema: u64,
    pub(crate) value: TypeId,
}

impl Identity {
    /// That of dynamic keys.
    pub(crate) fn dynamic() -> Self {
        Self { space: String::new(), schema: 0, value: TypeId::of::<()>() }
    }
}

#[derive(Default)]
struct Known {
    /// By their numbers; those of tenants that were forgotten are free.
    in_order: Vec<Option<Registered>>,
    free: Vec<usize>,
    by_identity: HashMap<(Box<str>, Identity), usize>,
    by_name: HashMap<Arc<str>, Vec<usize>>,
}

/// What stays of a space when its handles are gone.
#[derive(Clone)]
pub(crate) struct Registered {
    pub(crate) tenant: Arc<str>,
    title: Arc<str>,
    prefix: Box<str>,
    pub(crate) counters: Arc<SpaceCounters>,
    state: Arc<SpaceState>,
}

impl Spaces {
    /// No spaces yet, over `tiers` tiers, memory included.
    pub(crate) fn new(tiers: usize) -> Self {
        Self {
            known: RwLock::default(),
            unnamed: Arc::new(SpaceCounters::new(tiers)),
            tracked: RwLock::default(),
            has_tracked: AtomicBool::new(false),
            tracks_all: AtomicBool::new(false),
            tiers,
        }
    }

    /// Whether any space is tracked.
    pub(crate) fn has_tracked(&self) -> bool {
        self.has_tracked.load(Ordering::SeqCst)
    }

    /// Whether the space of this name in the ledger is.
    pub(crate) fn is_tracked(&self, name: &str) -> bool {
        self.has_tracked()
            && (self.tracks_all.load(Ordering::SeqCst) || self.tracked.read().contains(name))
    }

    /// The space of this identity: its number and counters are the same each time,
    /// its policy is that of this opening.
    pub(crate) fn open(
        &self,
        core: &Arc<Core>,
        tenant: &Arc<TenantName>,
        identity: Identity,
        policy: Policy,
        codec: Codec,
    ) -> Arc<SpaceCore> {
        let name = space_name(tenant.as_str(), &identity.space);
        let prefix = key::stored_prefix(tenant.as_str(), &identity.space, identity.schema);
        let title: Arc<str> = identity.space.as_str().into();
        let mut known = self.known.write();
        let identity = (tenant.as_str().into(), identity);
        let index = match known.by_identity.get(&identity) {
            Some(index) => *index,
            None => {
                let space = Registered {
                    tenant: tenant.as_str().into(),
                    title: Arc::clone(&title),
                    prefix: prefix.as_str().into(),
                    counters: Arc::new(SpaceCounters::new(self.tiers)),
                    state: Arc::default(),
                };
                known.add(identity, Arc::clone(&name), space)
            }
        };
        let registered = known.get(index);
        let counters = registered.map_or(&self.unnamed, |space| &space.counters);
        let state = registered.map(|space| Arc::clone(&space.state)).unwrap_or_default();
        if let Some(kind) = &policy.kind {
            // The first one decides.
            let _ = state.kind.set(Arc::clone(kind));
        }
        let confirms = policy.is_strict && core.is_shared();
        // What the cache says of dynamic keys, it says of all spaces.
        let is_dynamic = title.is_empty();
        if policy.is_tracked && is_dynamic {
            self.tracks_all.store(true, Ordering::SeqCst);
            self.has_tracked.store(true, Ordering::SeqCst);
        } else if policy.is_tracked {
            self.tracked.write().insert(Arc::clone(&name));
            self.has_tracked.store(true, Ordering::SeqCst);
        }
        let is_tracked = self.is_tracked(&name);
        Arc::new(SpaceCore {
            core: Arc::clone(core),
            tenant: Arc::clone(tenant),
            // Nobody opens four billion spaces.
            number: u32::try_from(index).unwrap_or(u32::MAX),
            title,
            fence: implied::fence(&name),
            name,
            prefix: prefix.into(),
            policy,
            confirms,
            is_tracked,
            codec,
            counters: Arc::clone(counters),
            state,
        })
    }

    /// Counters of what belongs to no space.
    pub(crate) fn unnamed(&self) -> &SpaceCounters {
        &self.unnamed
    }

    pub(crate) fn all(&self) -> Vec<Registered> {
        self.known.read().in_order.iter().flatten().cloned().collect()
    }

    /// The numbers under which memory holds the spaces of a tenant.
    pub(crate) fn numbers_of_tenant(&self, tenant: &str) -> HashSet<u32> {
        let known = self.known.read();
        let spaces = (0..).zip(&known.in_order);
        let is_its = |space: &Option<Registered>| {
            space.as_ref().is_some_and(|space| &*space.tenant == tenant)
        };
        spaces.filter(|(_, space)| is_its(space)).map(|(number, _)| number).collect()
    }

    /// Names of the spaces of a tenant whose entries others may be built from.
    pub(crate) fn tracked_of_tenant(&self, prefix: &str) -> Vec<Arc<str>> {
        if !self.has_tracked() {
            return Vec::new();
        }
        let known = self.known.read();
        let names = known.by_name.keys().filter(|name| name.starts_with(prefix));
        names.filter(|name| self.is_tracked(name)).cloned().collect()
    }

    /// Forgets the spaces of tenants of which nobody holds a handle: returns their numbers, which
    /// are taken until they are [given back](Self::free).
    pub(crate) fn forget_tenants(&self, tenants: &HashSet<Box<str>>) -> HashSet<u32> {
        let mut known = self.known.write();
        let mut tracked = self.tracked.write();
        let mut gone = HashSet::new();
        known.by_identity.retain(|(tenant, identity), index| {
            let is_gone = tenants.contains(tenant);
            if is_gone {
                tracked.remove(&space_name(tenant, &identity.space));
                gone.extend(u32::try_from(*index));
            }
            !is_gone
        });
        let is_gone = |index: &usize| u32::try_from(*index).is_ok_and(|it| gone.contains(&it));
        known.by_name.retain(|_, indices| !indices.iter().any(is_gone));
        for (number, space) in (0..).zip(&mut known.in_order) {
            if gone.contains(&number) {
                *space = None;
            }
        }
        gone
    }

    /// Lets other spaces have the numbers of those that were forgotten.
    pub(crate) fn free(&self, numbers: &HashSet<u32>) {
        let indices = numbers.iter().filter_map(|&number| usize::try_from(number).ok());
        self.known.write().free.extend(indices);
    }

    /// The numbers under which memory holds a space of this name, one for each type.
    pub(crate) fn numbers(&self, name: &str) -> Vec<u32> {
        let known = self.known.read();
        let indices = known.by_name.get(name).into_iter().flatten();
        indices.filter_map(|&index| u32::try_from(index).ok()).collect()
    }

    /// The keys under which memory holds `bytes` of a space of this name.
    pub(crate) fn keys_in(&self, name: &str, bytes: &[u8]) -> Vec<MemoryKey> {
        let numbers = self.numbers(name).into_iter();
        numbers.map(|space| KeyRef { space, bytes }.to_memory_key()).collect()
    }

    /// The keys under which stores hold what `name` says of a key.
    pub(crate) fn stored_keys(&self, name: &Name) -> Vec<StoredKey> {
        let (Name::Key(name) | Name::Set(name)) = name else { return Vec::new() };
        let Some((space, _)) = key::split_key_name(name) else { return Vec::new() };
        let Some(key) = name.strip_prefix(space).and_then(|rest| rest.strip_prefix(':')) else {
            return Vec::new();
        };
        let known = self.known.read();
        let indices = known.by_name.get(space).into_iter().flatten();
        indices
            .filter_map(|&index| known.get(index))
            .filter_map(|space| StoredKey::parse(&format!("{}{key}", space.prefix)))
            .collect()
    }
}

impl Known {
    fn get(&self, index: usize) -> Option<&Registered> {
        self.in_order.get(index)?.as_ref()
    }

    /// Takes a space in; returns its number.
    fn add(&mut self, identity: (Box<str>, Identity), name: Arc<str>, space: Registered) -> usize {
        let index = self.free.pop().unwrap_or(self.in_order.len());
        match self.in_order.get_mut(index) {
            Some(free) => *free = Some(space),
            None => self.in_order.push(Some(space)),
        }
        self.by_identity.insert(identity, index);
        self.by_name.entry(name).or_default().push(index);
        index
    }
}

impl Registered {
    /// What happened here; the first `skip` counters belong to no tier.
    pub(crate) fn stats(&self, tiers: &[Arc<str>], skip: usize) -> SpaceStats {
        let counters = &self.counters;
        let traffic = counters.tiers.iter().skip(skip).map(TrafficCounters::snapshot);
        SpaceStats {
            tenant: Arc::clone(&self.tenant),
            name: Arc::clone(&self.title),
            kind: self.state.kind.get().cloned().unwrap_or_default(),
            tiers: tiers.iter().cloned().zip(traffic).collect::<Vec<(Arc<str>, Traffic)>>(),
            loads: counters.loads.load(Ordering::Relaxed),
            load_errors: counters.load_errors.load(Ordering::Relaxed),
            loads_shared: counters.loads_shared.load(Ordering::Relaxed),
            superseded: counters.superseded.load(Ordering::Relaxed),
            refreshes: counters.refreshes.load(Ordering::Relaxed),
            stale: counters.stale.load(Ordering::Relaxed),
            held_back: counters.held_back.load(Ordering::Relaxed),
            absent: counters.absent.load(Ordering::Relaxed),
            untraced: counters.untraced.load(Ordering::Relaxed),
            overloaded: counters.overloaded.load(Ordering::Relaxed),
            load_time: counters.load_time.snapshot(),
            loaded: counters.loaded.load(Ordering::Relaxed),
            load_cost: counters.load_cost.sum(),
        }
    }
}

/// What happened in the spaces of each kind.
pub(crate) fn stats_by_kind(
    spaces: &[Registered],
    tiers: &[Arc<str>],
    skip: usize,
) -> Vec<KindStats> {
    let mut kinds: BTreeMap<Arc<str>, Vec<&Registered>> = BTreeMap::new();
    for space in spaces {
        if let Some(kind) = space.state.kind.get() {
            kinds.entry(Arc::clone(kind)).or_default().push(space);
        }
    }
    let sum = |spaces: &[&Registered], count: fn(&SpaceCounters) -> &AtomicU64| -> u64 {
        spaces.iter().map(|space| count(&space.counters).load(Ordering::Relaxed)).sum()
    };
    let kinds = kinds.into_iter().map(|(name, spaces)| KindStats {
        name,
        spaces: spaces.len() as u64,
        tiers: sum_of(spaces.iter().copied(), tiers, skip),
        loads: sum(&spaces, |counters| &counters.loads),
        load_errors: sum(&spaces, |counters| &counters.load_errors),
    });
    kinds.collect()
}

/// What several spaces asked of each tier together; the first `skip` counters belong to no tier.
pub(crate) fn sum_of<'a>(
    spaces: impl Iterator<Item = &'a Registered>,
    tiers: &[Arc<str>],
    skip: usize,
) -> Vec<(Arc<str>, Traffic)> {
    let mut sums: Vec<TrafficSum> = tiers.iter().map(|_| TrafficSum::default()).collect();
    for space in spaces {
        for (sum, counters) in sums.iter_mut().zip(space.counters.tiers.iter().skip(skip)) {
            counters.add_to(sum);
        }
    }
    tiers.iter().cloned().zip(sums.into_iter().map(|sum| sum.traffic)).collect()
}
