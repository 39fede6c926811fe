//! A **sweep**: the removal of all keys that match a pattern, from every tier, in bounded steps.
//!
//! Two lines begin it. One keeps every load of the space that is under way, here and elsewhere,
//! from storing what it found. The other tells every process the pattern, by which it empties its
//! own memory. Then each tier's keys are walked through, and each key that matches is invalidated
//! by a line of its own, as if its caller had named it.

use std::collections::HashSet;
use std::future::IntoFuture;
use std::sync::Arc;

use crate::core::{Core, drop_all};
use crate::error::Error;
use crate::glob::Glob;
use crate::implied;
use crate::key::{KEY_FORMAT, StoredKey};
use crate::ledger::Name;
use crate::runtime::{BoxFuture, in_task};
use crate::space::SpaceCore;
use crate::store::{StoreError, StoreErrorKind};
use crate::target::name_of_prefix;
use crate::tier::OpenTier;
use crate::write::{Settled, index_of};

/// Keys that one step looks at.
const STEP: usize = 512;

/// Walks through tiers at the same time.
pub(crate) const MOST_AT_ONCE: usize = 4;

/// Keys that are remembered by a count, because a store that grows tells some twice.
const REMEMBERED: usize = 100_000;

/// The removal of all keys that match a pattern; await it. See
/// [`Terrace::remove_pattern`](crate::Terrace::remove_pattern).
///
/// It goes on if its caller does not wait for it.
#[must_use = "nothing is removed until it is awaited"]
pub struct RemovePattern<'a> {
    space: &'a Arc<SpaceCore>,
    pattern: &'a str,
    is_dry: bool,
}

impl std::fmt::Debug for RemovePattern<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("RemovePattern")
            .field("is_dry", &self.is_dry)
            .finish_non_exhaustive()
    }
}

/// What a removal by pattern did, or would do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removed {
    /// Whether it holds everywhere.
    pub settled: Settled,
    /// Entries that matched in each tier, memory first; an entry may be in several. Empty if the
    /// pattern was a plain prefix: that is one line, and nothing is searched for.
    pub entries: Vec<(Arc<str>, u64)>,
}

impl<'a> RemovePattern<'a> {
    pub(crate) fn new(space: &'a Arc<SpaceCore>, pattern: &'a str) -> Self {
        Self { space, pattern, is_dry: false }
    }

    /// Removes nothing, and counts what would be removed, in memory and in the tiers below.
    pub fn dry_run(self) -> Self {
        Self { is_dry: true, ..self }
    }
}

impl<'a> IntoFuture for RemovePattern<'a> {
    type Output = Result<Removed, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let (core, space) = (&self.space.core, Arc::clone(&self.space.name));
        Box::pin(remove(core, space, self.pattern, self.is_dry))
    }
}

/// Removes what matches `pattern` in the space of this name in the ledger, or counts it.
pub(crate) async fn remove(
    core: &Arc<Core>,
    space: Arc<str>,
    pattern: &str,
    is_dry: bool,
) -> Result<Removed, Error> {
    let underway = core.begin()?;
    let glob = Glob::parse(pattern).map_err(Error::Pattern)?;
    if !is_dry && let Some(prefix) = glob.as_prefix() {
        let name = name_of_prefix(&space, prefix.as_bytes())?;
        let settled = core.invalidate(vec![name]).await.settled;
        return Ok(Removed { settled, entries: Vec::new() });
    }
    let swept = Swept { space, glob: Some(glob) };
    let sweep = Sweep { core: Arc::clone(core), swept, is_dry };
    let pattern = pattern.to_owned();
    let sweeping = async move {
        let _underway = underway;
        sweep.all(&pattern).await
    };
    in_task(&*core.runtime, sweeping).await.unwrap_or(Err(Error::Closed))
}

/// What a sweep is about.
pub(crate) struct Swept {
    /// As the ledger names it.
    space: Arc<str>,
    /// `None` matches every key: a pattern that this build cannot read may be any.
    glob: Option<Glob>,
}

impl Swept {
    /// What a line names, if it begins a sweep.
    pub(crate) fn by(name: &Name) -> Option<Self> {
        let Name::Tag(tag) = name else { return None };
        let (space, pattern) = implied::of_sweep(tag)?;
        Some(Self { space, glob: Glob::parse(&pattern).ok() })
    }

    fn matches(&self, key: &[u8]) -> bool {
        self.glob.as_ref().is_none_or(|glob| glob.matches(key))
    }
}

struct Sweep {
    core: Arc<Core>,
    swept: Swept,
    is_dry: bool,
}

impl Sweep {
    async fn all(&self, pattern: &str) -> Result<Removed, Error> {
        let core = &self.core;
        let mut entries = Vec::with_capacity(core.tiers.len() + 1);
        if core.memory.is_some() {
            entries.push(("memory".into(), self.count_in_memory()));
        }
        let mut settled = Settled::Settled;
        if !self.is_dry {
            let space = &self.swept.space;
            let names = [implied::fence(space), implied::sweep(space, pattern)];
            settled = core.invalidate(names.map(Name::Tag).into()).await.settled;
        }
        let (mut found_below, mut failure) = (Vec::with_capacity(core.tiers.len()), None);
        // From below: what a reader has found there is copied upwards, into what is still to be
        // walked through, or where it is seen to be dead.
        for tier in core.tiers.iter().rev() {
            match self.tier(tier).await {
                Ok(found) => found_below.push((Arc::clone(&tier.name), found)),
                Err(error) => failure = failure.or(Some(tier.failed(error))),
            }
        }
        entries.extend(found_below.into_iter().rev());
        // What was not found for a failure is still there: that is not for anybody to overlook.
        failure.map_or(Ok(Removed { settled, entries }), Err)
    }

    fn count_in_memory(&self) -> u64 {
        let numbers = self.core.spaces.numbers(&self.swept.space);
        let mut count = 0;
        if let Some(memory) = &self.core.memory {
            memory.for_each(self.core.clock.tick(), |key, _| {
                let is_one = numbers.contains(&key.space) && self.swept.matches(&key.bytes);
                count += u64::from(is_one);
            });
        }
        count
    }

    /// Walks through one tier; returns how many keys were found, or were removed.
    async fn tier(&self, tier: &OpenTier) -> Result<u64, StoreError> {
        // Others wait: a store keeps the place of a few only, and a server has more to do.
        let _turn = self.core.sweeps.acquire().await;
        let prefix = format!("{KEY_FORMAT}:{}:", self.swept.space);
        let (mut position, mut count) = (None, 0);
        let mut seen = HashSet::new();
        loop {
            let step = || tier.store.keys(&prefix, position.as_ref(), STEP);
            let page = tier.ask(step).await?;
            let mut found = self.matching(tier, page.keys).await?;
            if self.is_dry {
                found.retain(|key| seen.insert(key.clone()));
                count += found.len() as u64;
                if seen.len() > REMEMBERED {
                    seen.clear();
                }
            } else if !found.is_empty() {
                count += self.remove(tier, &found).await?;
            }
            match page.next {
                Some(next) => position = Some(next),
                None => return Ok(count),
            }
        }
    }

    /// Those of some keys of a tier that match.
    async fn matching(
        &self,
        tier: &OpenTier,
        keys: Vec<StoredKey>,
    ) -> Result<Vec<StoredKey>, StoreError> {
        let (mut found, mut hashed) = (Vec::new(), Vec::new());
        for key in keys {
            match key.key() {
                Some(bytes) if self.swept.matches(&bytes) => found.push(key),
                Some(_) => {}
                None => hashed.push(key),
            }
        }
        if !hashed.is_empty() {
            // The whole key is in the frame.
            let frames = tier.ask(|| tier.store.get(&hashed)).await?;
            let matching = hashed.iter().zip(frames).filter(|(key, frame)| {
                let decode = |bytes| tier.decode(key, bytes, usize::MAX).ok();
                frame
                    .as_ref()
                    .and_then(decode)
                    .is_some_and(|frame| self.swept.matches(&frame.header.key))
            });
            found.extend(matching.map(|(key, _)| key.clone()));
        }
        Ok(found)
    }

    async fn remove(&self, tier: &OpenTier, keys: &[StoredKey]) -> Result<u64, StoreError> {
        let names = keys.iter().map(|key| Name::Key(key.name())).collect();
        let invalidated = self.core.invalidate(names).await;
        if invalidated.position.is_none() {
            return Err(StoreError::new(StoreErrorKind::Unavailable, "invalidate what was found"));
        }
        let gone = if tier.is_authority {
            invalidated.held
        } else {
            let counters = self.core.spaces.unnamed().below_memory();
            let Some(counters) = counters.get(index_of(&self.core, tier)) else { return Ok(0) };
            tier.remove(counters, keys).await?
        };
        Ok(gone.into_iter().map(u64::from).sum())
    }
}

/// Takes what a line of a sweep names out of memory: what is older than it.
pub(crate) fn drop_from_memory(core: &Core, swept: &Swept, number: u64) {
    let Some(memory) = &core.memory else { return };
    let numbers = core.spaces.numbers(&swept.space);
    if numbers.is_empty() {
        return;
    }
    drop_all(|| {
        memory.retain(|key, view| {
            let stamp = view.value.meta().stamp;
            let is_older = stamp.number < number || core.mirror.is_foreign(stamp);
            !(is_older && numbers.contains(&key.space) && swept.matches(&key.bytes))
        });
    });
}

/// Goes on with a sweep that another process has begun, in the tiers that only this one may see.
pub(crate) fn go_on(core: &Arc<Core>, swept: Swept) {
    if core.tiers.iter().all(|tier| tier.is_authority) {
        return;
    }
    let sweep = Sweep { core: Arc::clone(core), swept, is_dry: false };
    core.runtime.spawn(Box::pin(async move {
        for tier in sweep.core.tiers.iter().filter(|tier| !tier.is_authority) {
            if let Err(error) = sweep.tier(tier).await {
                tracing::warn!(tier = %tier.name, %error, "a sweep of another process is not done here");
            }
        }
    }));
}
