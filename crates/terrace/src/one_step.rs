//! A write in **one step**: the lines about keys and their values, where whoever keeps the ledger
//! stores values as well and can do both at once.
//!
//! Nobody sees a line of it without its value, and it costs one exchange with the store where it would
//! be two, one after the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::append::Invalidated;
use crate::codec::ValueCodec;
use crate::ledger::Name;
use crate::options::Tiers;
use crate::read::Wanted;
use crate::space::SpaceCore;
use crate::store::Stored;
use crate::write::{Fresh, put};

/// Entries of one call: of more, two steps cost next to nothing for each.
const MOST_ENTRIES: usize = 8;

/// Says what became of the lines, and whether the values are dealt with. `None`: lines and values have
/// to go one after the other, and nothing was done.
pub(crate) async fn write<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: ValueCodec<V>,
    entries: &[(Wanted, Fresh<V>)],
    names: &[Name],
    unwritten: Tiers,
) -> Option<(Invalidated, bool)> {
    let core = &space.core;
    let most = core.authority.most_in_one_step();
    let bytes = entries.iter().map(|(_, fresh)| {
        // What has no bytes is not stored below memory.
        fresh.encoded.as_ref().map_or(usize::MAX, |(_, bytes)| bytes.len())
    });
    if most == 0 || entries.len() > MOST_ENTRIES || bytes.fold(0, usize::saturating_add) > most {
        return None;
    }
    let index = core.tiers.iter().position(|tier| tier.is_authority)?;
    let (tier, counters) = core.tiers.get(index).zip(space.counters.below_memory().get(index))?;
    // A MAC is one of the stamp, too, which is not known yet.
    if unwritten.has(index + 1) || space.policy.unused.has(index + 1) || tier.is_signed() {
        return None;
    }
    let puts = entries.iter().map(|(wanted, fresh)| put(space, codec, wanted, fresh, tier));
    let puts = puts.collect::<Option<Vec<_>>>()?;
    let invalidated = core.write(names.to_vec(), puts).await;
    let Some(stored) = &invalidated.stored else { return Some((invalidated, false)) };
    let written = stored.iter().filter(|stored| **stored == Stored::Yes).count() as u64;
    counters.writes.fetch_add(written, Ordering::Relaxed);
    counters.refused.fetch_add(stored.len() as u64 - written, Ordering::Relaxed);
    Some((invalidated, true))
}
