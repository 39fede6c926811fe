//! A **fill**: what a load found, stored in every tier unless a line since its ticket names it.

use std::cell::LazyCell;
use std::sync::Arc;
use std::time::Duration;

use smallvec::{SmallVec, smallvec};

use crate::codec::ValueCodec;
use crate::core::{Ticket, drop_all};
use crate::entry::{Absent, AnyEntry, Entry};
use crate::error::Error;
use crate::key::{self, Key, KeyRef};
use crate::ledger::{Name, Names};
use crate::load::count_superseded;
use crate::loaded::{Answer, Loaded};
use crate::options::Tiers;
use crate::pending::Unfinished;
use crate::policy::Ttl;
use crate::read::{self, Wanted};
use crate::space::{Mode, SpaceCore};
use crate::store::Put;
use crate::write::{
    Encoded, EntryOptions, Fresh, checked_wanted, is_outdated, make, new_life, prepare, put,
    put_all, take_away, to_memory,
};
use terrace_memory::Attributes;

/// What a load is to store below memory.
pub(crate) struct Fill<'a, V> {
    pub(crate) wanted: &'a Wanted,
    pub(crate) fresh: &'a Fresh<V>,
    pub(crate) ticket: Ticket,
}

impl<V> Fill<'_, V> {
    fn is_permitted(&self, space: &SpaceCore) -> bool {
        let tags = &self.fresh.entry.meta.details().tags;
        let names = || Names { key: self.wanted.name(space), space: &space.name, tags };
        space.core.permits(self.ticket, names)
    }
}

/// Most loads are of one key.
pub(crate) type Fills<'a, V> = SmallVec<[Fill<'a, V>; 1]>;

/// Leaves out what a line since the ticket names, and counts it.
pub(crate) fn keep_permitted<V>(space: &SpaceCore, fills: &mut Fills<'_, V>) {
    fills.retain(|fill| {
        let is_permitted = fill.is_permitted(space);
        if !is_permitted {
            count_superseded(space);
        }
        is_permitted
    });
}

/// Stores what was loaded in every tier below memory, in one exchange with each. A tier that
/// fails is none of the callers' business.
pub(crate) async fn fill<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    mut fills: Fills<'_, V>,
    unwritten: Tiers,
) {
    let Some(codec) = codec else { return };
    for (index, tier) in space.core.tiers.iter().enumerate() {
        let is_unwritten = unwritten.has(index + 1) || space.policy.unused.has(index + 1);
        if is_unwritten || fills.is_empty() {
            continue;
        }
        let puts = fills.iter().map(|fill| {
            let put = put(space, codec, fill.wanted, fill.fresh, tier);
            (fill.wanted, put.map(|put| if tier.is_authority { fenced(space, put) } else { put }))
        });
        let puts = puts.collect();
        let names = fills.iter().map(|fill| Name::Key(Arc::clone(fill.wanted.name(space))));
        let unfinished = Unfinished::new(&space.core, true, names);
        put_all(space, tier, index, puts).await;
        // A store that does not hear the ledger may have taken what was invalidated
        // in between.
        let dead = fills.iter().filter(|fill| !tier.is_authority && !fill.is_permitted(space));
        let dead: Vec<_> = dead.map(|fill| fill.wanted).collect();
        let left: Vec<_> = dead.iter().map(|wanted| wanted.stored(space).clone()).collect();
        if !left.is_empty() && !take_away(space, tier, index, &left).await {
            let names = dead.iter().map(|wanted| Name::Key(Arc::clone(wanted.name(space))));
            space.core.hold_back(names.collect());
        }
        unfinished.done();
        keep_permitted(space, &mut fills);
    }
}

/// The same, to be refused if the space was swept since the ticket. Copies and writes need not be:
/// a sweep finds what was there before.
fn fenced(space: &SpaceCore, put: Put) -> Put {
    let fence = std::iter::once(Arc::clone(&space.fence));
    Put { tags: put.tags.iter().cloned().chain(fence).collect(), ..put }
}

/// Stores what a caller has loaded by itself; says whether nothing has made it out of date.
pub(crate) async fn fill_one<K: Key + ?Sized, V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    key: &K,
    ticket: Ticket,
    loaded: Loaded<V>,
) -> Result<bool, Error> {
    let _underway = space.core.begin()?;
    let wanted = checked_wanted(space, key)?;
    // What was read from the source is older than what it does not have yet.
    if read::is_unflushed(space, &wanted.bytes).map_err(read::failed)?.is_some() {
        return Ok(false);
    }
    let own = loaded.tags_of(&space.tenant).map_err(Error::Tags)?;
    let mut dependencies = loaded.dependencies;
    let tags = dependencies.joined(&own)?;
    let options = EntryOptions {
        ttl: loaded.ttl.unwrap_or_default(),
        tags,
        stamp: ticket.stamp,
        is_hashed: wanted.is_hashed,
        version: loaded.version,
        last_modified: loaded.last_modified,
        load_time: Duration::ZERO,
        is_untraced: false,
    };
    if !dependencies.stand(&space.core) {
        return Ok(false);
    }
    let key = KeyRef { space: space.number, bytes: &wanted.bytes };
    let value = match loaded.answer {
        Answer::Value(value) if space.mode() != Mode::Off => value,
        Answer::Absent if space.mode() != Mode::Off => {
            absent_to_memory(space, key, ticket, &options.tags, space.policy.negative_ttl);
            let names =
                || Names { key: wanted.name(space), space: &space.name, tags: &options.tags };
            if space.core.permits(ticket, names) {
                take_away_everywhere(space, &wanted, Tiers::default()).await;
            }
            return Ok(false);
        }
        _ => return Ok(false),
    };
    space.core.retries.forget(key);
    let fresh = prepare(space, codec, value, &options);
    if is_outdated(space, key, &fresh.entry.meta) {
        return Ok(false);
    }
    to_memory(space, key, &fresh.entry, ticket);
    let mut fills = smallvec![Fill { wanted: &wanted, fresh: &fresh, ticket }];
    keep_permitted(space, &mut fills);
    let is_permitted = !fills.is_empty();
    fill(space, codec, fills, Tiers::default()).await;
    Ok(is_permitted)
}

/// Remembers that the source has no value, if there is a `ttl` for that, and nothing since the
/// ticket names the key; forgets what was there before in any case.
pub(crate) fn absent_to_memory(
    space: &SpaceCore,
    key: KeyRef<'_>,
    ticket: Ticket,
    tags: &Arc<[Arc<str>]>,
    ttl: Option<Duration>,
) {
    let core = &space.core;
    let Some(memory) = &core.memory else { return };
    let now = core.clock.tick();
    let Some(ttl) = ttl.filter(|_| !space.policy.unused.has_memory()) else {
        return drop_all(|| {
            memory.remove_if(&key, |view| view.value.meta().stamp.number <= ticket.stamp.number);
        });
    };
    let options = EntryOptions {
        ttl: Ttl::Exactly(ttl),
        stamp: ticket.stamp,
        is_hashed: key::is_hashed(key.bytes),
        tags: Arc::clone(tags),
        ..EntryOptions::default()
    };
    let absent = make(space, Encoded { value: Absent, bytes: None }, &options).entry;
    let life = absent.meta.times.life();
    let attributes =
        Attributes { expires: life.fresh_until, negative: true, ..Attributes::default() };
    let name = LazyCell::new(|| space.name_of(key.bytes));
    let own = Arc::clone(&absent);
    let names = || Names { key: &name, space: &space.name, tags: &own.meta.details().tags };
    let any: AnyEntry = absent;
    drop_all(|| {
        // Where it is refused, the next call asks the source again.
        let _ =
            memory.replace_if(key.to_memory_key(), Arc::clone(&any), attributes, now, |present| {
                let is_newer = present.is_none_or(|present| {
                    let present = present.value.meta().stamp;
                    core.mirror.is_foreign(present) || present.number <= ticket.stamp.number
                });
                is_newer && core.permits(ticket, names)
            });
    });
}

/// Takes what the tiers below memory have under a key out of them.
pub(crate) async fn take_away_everywhere(space: &SpaceCore, wanted: &Wanted, unwritten: Tiers) {
    for (index, tier) in space.core.tiers.iter().enumerate() {
        if !unwritten.has(index + 1) {
            // A tier that fails keeps it to its end; the failure is counted.
            take_away(space, tier, index, std::slice::from_ref(wanted.stored(space))).await;
        }
    }
}

/// An entry whose value its source has confirmed: it begins a new life.
pub(crate) fn renew<V>(
    space: &SpaceCore,
    entry: &Arc<Entry<V>>,
    options: &EntryOptions,
) -> Fresh<V> {
    let (life, written) = new_life(space, options);
    entry.meta.times.set(life, written);
    entry.meta.times.set_checked(space.core.clock.tick());
    Fresh { entry: Arc::clone(entry), encoded: None }
}
