//! A **removal**: what takes entries away or shortens their lives, from every tier.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use crate::core::{Core, drop_all};
use crate::error::Error;
use crate::freshness::{Life, Written};
use crate::key::{
    Key, KeyBuffer, KeyPrefix, KeyRef, StoredKey, all_schemas_prefix, stored_tenant_prefix,
};
use crate::ledger::Name;
use crate::pending::Unfinished;
use crate::read::{self, Wanted};
use crate::space::SpaceCore;
use crate::store::Put;
use crate::target::name_of_prefix;
use crate::tenant::TenantName;
use crate::tier::OpenTier;
use crate::write::{Settled, checked_wanted, index_of, max_ttl, undo_if_dead};
use terrace_memory::Tick;

/// Removes keys everywhere; returns how many were there.
pub(crate) async fn remove<'a, K: Key + ?Sized + 'a>(
    space: &Arc<SpaceCore>,
    keys: impl IntoIterator<Item = &'a K>,
) -> Result<(u64, Settled), Error> {
    let core = &space.core;
    let _underway = core.begin()?;
    let wanted = keys
        .into_iter()
        .map(|key| checked_wanted(space, key))
        .collect::<Result<Vec<_>, Error>>()?;
    let mut there: Vec<bool> = Vec::with_capacity(wanted.len());
    for wanted in &wanted {
        let key = KeyRef { space: space.number, bytes: &wanted.bytes };
        there.push(match &core.memory {
            Some(memory) => memory.contains(&key, core.clock.tick()),
            None => false,
        });
    }
    let names: Vec<_> =
        wanted.iter().map(|wanted| Name::Key(Arc::clone(wanted.name(space)))).collect();
    let unfinished = Unfinished::new(core, false, names.iter().cloned());
    let invalidated = core.invalidate(names).await;
    for (there, held) in there.iter_mut().zip(invalidated.held) {
        *there |= held;
    }
    let mut settled = invalidated.settled;
    let mut stored: Vec<_> = wanted.iter().map(|wanted| wanted.stored(space).clone()).collect();
    stored.extend(wanted.iter().flat_map(|wanted| of_other_types(space, wanted)));
    for (tier, counters) in core.tiers.iter().zip(space.counters.below_memory()) {
        if tier.is_authority {
            let removed = there.iter().filter(|there| **there).count() as u64;
            counters.removed.fetch_add(removed, Ordering::Relaxed);
            continue;
        }
        match tier.remove(counters, &stored).await {
            Ok(gone) => there.iter_mut().zip(gone).for_each(|(there, gone)| *there |= gone),
            Err(_) => {
                let names = wanted.iter().map(|wanted| Name::Key(Arc::clone(wanted.name(space))));
                core.hold_back(names.collect());
                settled = add_pending(settled, tier);
            }
        }
    }
    unfinished.done();
    Ok((there.into_iter().map(u64::from).sum(), settled))
}

/// What stores that do not hear the ledger may hold under the same name in spaces of
/// other types.
pub(crate) fn of_other_types(space: &SpaceCore, wanted: &Wanted) -> Vec<StoredKey> {
    let spaces = &space.core.spaces;
    if spaces.numbers(&space.name).len() < 2 {
        return Vec::new();
    }
    let name = Name::Key(Arc::clone(wanted.name(space)));
    let stored = spaces.stored_keys(&name).into_iter();
    stored.filter(|stored| stored != wanted.stored(space)).collect()
}

fn add_pending(settled: Settled, tier: &OpenTier) -> Settled {
    let mut tiers = match settled {
        Settled::Settled => Vec::new(),
        Settled::Pending(tiers) => tiers,
    };
    if !tiers.contains(&tier.name) {
        tiers.push(Arc::clone(&tier.name));
    }
    Settled::Pending(tiers)
}

/// Another lifetime for what is under `key`, wherever it is.
pub(crate) async fn expire<K: Key + ?Sized>(
    space: &Arc<SpaceCore>,
    key: &K,
    ttl: Duration,
) -> Result<bool, Error> {
    let core = &space.core;
    let _underway = core.begin()?;
    let wanted = checked_wanted(space, key)?;
    let stale_for = space.policy.stale_for;
    let mut found = false;
    // From below: a read that copies upwards meanwhile finds the new lifetime.
    for (tier, counters) in core.tiers.iter().zip(space.counters.below_memory()).rev() {
        let keys = std::slice::from_ref(wanted.stored(space));
        let frames = tier.read(counters, keys, None).await;
        let bytes = frames.ok().and_then(|mut frames| frames.pop().flatten());
        let now = core.moment();
        let fresh = |bytes: Bytes| read::fresh_frame(space, &wanted, tier, counters, &bytes, now);
        let Some(frame) = bytes.and_then(fresh) else { continue };
        found = true;
        let mut header = frame.header.clone();
        let written =
            Written::begin(now.wall, Some(ttl), stale_for).capped(now.wall, max_ttl(space, tier));
        (header.expires, header.stale_until) = (written.expires, written.stale_until);
        let Ok(value) = frame.value() else { continue };
        let put = Put {
            key: wanted.stored(space).clone(),
            frame: tier.encode(wanted.stored(space), header.clone(), value.clone()),
            expires: written.end(),
            stamp: header.stamp,
            tags: Arc::clone(&header.tags),
        };
        // A tier that fails keeps the old lifetime; the failure is counted.
        let _ = tier.write(counters, &[put]).await;
        let index = index_of(core, tier);
        undo_if_dead(space, &wanted, header.stamp, &header.tags, index).await;
    }
    Ok(expire_in_memory(space, &wanted, ttl) || found)
}

fn expire_in_memory(space: &SpaceCore, wanted: &Wanted, ttl: Duration) -> bool {
    let core = &space.core;
    let Some(memory) = &core.memory else { return false };
    let key = KeyRef { space: space.number, bytes: &wanted.bytes };
    let now = core.clock.tick();
    let life = Life::begin(now, Some(ttl), space.policy.stale_for);
    let life = life.aging(space.policy.aging(Some(ttl), Duration::ZERO));
    let changed = memory.peek_with(&key, now, |view| {
        if !read::is_fresh_in_memory(space, key, view.value, now) {
            return false;
        }
        let times = &view.value.meta().times;
        let end = Written::begin(core.wall(), Some(ttl), space.policy.stale_for);
        times.set(life, Written { created: times.written().created, ..end });
        true
    });
    let changed = changed == Some(true);
    if changed {
        memory.set_expires(&key, Tick::max(life.stale_until, life.fresh_until), now);
    }
    changed
}

pub(crate) async fn clear(core: &Arc<Core>) -> Result<Settled, Error> {
    let _underway = core.begin()?;
    let invalidated = core.invalidate(vec![Name::Everything]).await;
    if let (Some(memory), Some(position)) = (&core.memory, invalidated.position) {
        drop_all(|| {
            memory.retain(|_, view| view.value.meta().stamp.number >= position.number);
        });
    }
    Ok(clear_stores(core, invalidated.settled, "").await)
}

pub(crate) async fn clear_space(space: &Arc<SpaceCore>) -> Result<Settled, Error> {
    let core = &space.core;
    let _underway = core.begin()?;
    let invalidated = core.invalidate(vec![Name::Space(Arc::clone(&space.name))]).await;
    if let (Some(memory), Some(position)) = (&core.memory, invalidated.position) {
        let numbers = core.spaces.numbers(&space.name);
        drop_all(|| {
            memory.retain(|key, view| {
                !numbers.contains(&key.space) || view.value.meta().stamp.number >= position.number
            });
        });
    }
    let prefix = all_schemas_prefix(space.tenant.as_str(), &space.title);
    Ok(clear_stores(core, invalidated.settled, &prefix).await)
}

/// The same for all spaces of a tenant, whether they are open here or not.
pub(crate) async fn clear_tenant(core: &Arc<Core>, tenant: &TenantName) -> Result<Settled, Error> {
    let _underway = core.begin()?;
    let invalidated = core.invalidate(core.names_of(tenant)).await;
    if let (Some(memory), Some(position)) = (&core.memory, invalidated.position) {
        let numbers = core.spaces.numbers_of_tenant(tenant.as_str());
        drop_all(|| {
            memory.retain(|key, view| {
                !numbers.contains(&key.space) || view.value.meta().stamp.number >= position.number
            });
        });
    }
    let prefix = stored_tenant_prefix(tenant.as_str());
    Ok(clear_stores(core, invalidated.settled, &prefix).await)
}

/// Invalidates all keys of a space that begin with `prefix`, by one line.
pub(crate) async fn invalidate_prefix<P: KeyPrefix + ?Sized>(
    space: &SpaceCore,
    prefix: &P,
) -> Result<Settled, Error> {
    let _underway = space.core.begin()?;
    let mut buffer = KeyBuffer::default();
    prefix.encode_prefix(&mut buffer);
    let name = name_of_prefix(&space.name, buffer.as_bytes())?;
    Ok(space.core.invalidate(vec![name]).await.settled)
}

/// Frees the room of what a line has killed already. What is not freed now is dead
/// all the same.
async fn clear_stores(core: &Core, mut settled: Settled, prefix: &str) -> Settled {
    for (tier, counters) in core.tiers.iter().zip(core.spaces.unnamed().below_memory()) {
        match tier.ask(|| tier.store.clear(prefix)).await {
            Ok(gone) => {
                counters.removed.fetch_add(gone, Ordering::Relaxed);
            }
            Err(error) => {
                tier.count_error(counters, &error);
                settled = add_pending(settled, tier);
            }
        }
    }
    settled
}

pub(crate) async fn clear_tier(core: &Arc<Core>, name: &str) -> Result<u64, Error> {
    let _underway = core.begin()?;
    if name == "memory"
        && let Some(memory) = &core.memory
    {
        let mut gone = 0;
        drop_all(|| gone += memory.clear());
        return Ok(gone);
    }
    match core.tiers.iter().find(|tier| &*tier.name == name) {
        Some(tier) => Ok(tier.ask(|| tier.store.clear("")).await?),
        None => Err(Error::NoSuchTier(name.into())),
    }
}
