//! A **load**: what a flight does when it has to, from its ticket to its landing.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use crate::codec::ValueCodec;
use crate::core::Ticket;
use crate::entry::{Entry, Source};
use crate::error::SharedError;
use crate::flight::{Crash, Departure, Landed, Outcome, Takeoff};
use crate::lease::{Lease, Patience};
use crate::read::{self, Found, Wanted};
use crate::runtime::{BoxFuture, step_aside, unless};
use crate::space::SpaceCore;
use crate::stats::bump;
use crate::store::Scope;
use crate::write::{self, EntryOptions};

/// What a loader is given.
#[non_exhaustive]
pub struct Load<K: ToOwned + ?Sized> {
    /// The key to load.
    pub key: K::Owned,
}

impl<K: ToOwned + ?Sized> std::fmt::Debug for Load<K> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys may be secrets.
        formatter.debug_struct("Load").finish_non_exhaustive()
    }
}

/// A loader that was called and is not running yet.
pub(crate) type Loading<V> = BoxFuture<'static, Result<V, SharedError>>;

/// Everything that a flight needs to know.
pub(crate) struct Order<V> {
    pub(crate) space: Arc<SpaceCore>,
    pub(crate) codec: Option<ValueCodec<V>>,
    pub(crate) options: EntryOptions,
    pub(crate) loading: Loading<V>,
}

/// The flight itself: look below memory, and load if nothing fresh is there.
///
/// The first poll may happen on the caller's own task, so that an answer from a
/// quick store costs no task; from where the loader begins it always runs in a
/// task of its own.
pub(crate) async fn fly<V: Send + Sync + 'static>(mut takeoff: Takeoff, order: Order<V>) {
    takeoff.wait_for_turn().await;
    let space = Arc::clone(&order.space);
    let ticket = space.core.ticket();
    takeoff.depart(Departure { ticket, tags: Arc::clone(&order.options.tags) });

    // Another flight may have landed between the caller's look and this one.
    let in_memory = read::from_memory::<V>(&space, takeoff.key(), space.core.clock.tick());
    let wanted = space.wanted(takeoff.key().bytes);
    if let Some(found) = in_memory.clone().filter(|found| found.is_fresh)
        && land_found(&mut takeoff, &space, &wanted, found, Source::Memory)
    {
        return;
    }
    let below = read::one_from_tiers(&space, order.codec, &wanted, ticket).await;
    if let Some((found, source)) = below.clone().filter(|(found, _)| found.is_fresh)
        && land_found(&mut takeoff, &space, &wanted, found, source)
    {
        return;
    }

    step_aside().await;
    let stale = in_memory.map(|found| (found, Source::Memory)).or(below);
    let lease = match lease_or_answer(&space, order.codec, &wanted, ticket).await {
        Ok(lease) => lease,
        Err((found, source)) => {
            if land_found(&mut takeoff, &space, &wanted, found, source) {
                return;
            }
            None
        }
    };
    load(takeoff, order, &wanted, ticket, lease, stale).await;
}

/// Lands with an entry that was found, unless it died on the way: its tags are its own,
/// and no line about them has superseded the flight.
fn land_found<V: Send + Sync + 'static>(
    takeoff: &mut Takeoff,
    space: &SpaceCore,
    wanted: &Wanted,
    found: Found<V>,
    source: Source,
) -> bool {
    let entry = Arc::clone(&found.entry);
    takeoff.land_if(landed(found, source), || read::may_serve(space, wanted, &entry))
}

/// The lease of the key, or the answer of whoever held it before.
async fn lease_or_answer<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    wanted: &Wanted,
    ticket: Ticket,
) -> Result<Option<Lease>, (Found<V>, Source)> {
    let mut patience = Patience::new(space.policy.load_deadline);
    loop {
        if let Some(lease) = Lease::ask(&space.core, &wanted.name).await {
            // Whoever held it before may have stored the value since the tiers were asked.
            let is_there = space.core.authority.scope() > Scope::Process
                && read::exist(space, [&*wanted.bytes]).await.is_ok_and(|there| there == [true]);
            if is_there
                && let Some((found, source)) =
                    read::one_from_tiers(space, codec, wanted, ticket).await
                && found.is_fresh
            {
                lease.release().await;
                return Err((found, source));
            }
            return Ok(Some(lease));
        }
        if !patience.wait(&space.core).await {
            // Whoever holds it is alive and slow: load beside it rather than fail.
            return Ok(None);
        }
        if let Some((found, source)) = read::one_from_tiers(space, codec, wanted, ticket).await
            && found.is_fresh
        {
            return Err((found, source));
        }
    }
}

/// Runs the loader, stores what it brings, and lands the flight.
async fn load<V: Send + Sync + 'static>(
    mut takeoff: Takeoff,
    order: Order<V>,
    wanted: &Wanted,
    ticket: Ticket,
    lease: Option<Lease>,
    stale: Option<(Found<V>, Source)>,
) {
    let Order { space, codec, options, loading } = order;
    let loaded = match &lease {
        Some(lease) => lease.while_held(run(&space, loading)).await,
        None => run(&space, loading).await,
    };
    match loaded {
        Ok(value) => {
            let is_hashed = wanted.is_hashed;
            let options = EntryOptions { stamp: ticket.stamp, is_hashed, ..options };
            let fresh = write::prepare(&space, codec, value, &options);
            let is_in_memory = write::to_memory(&space, takeoff.key(), &fresh.entry, ticket);
            let found = Found { entry: Arc::clone(&fresh.entry), is_fresh: true };
            if is_in_memory {
                // Whoever comes from here on finds it there: nobody waits for the disk.
                takeoff.land(landed(found, Source::Loader));
                write::fill(&space, codec, wanted, &fresh, ticket).await;
            } else {
                write::fill(&space, codec, wanted, &fresh, ticket).await;
                takeoff.land(landed(found, Source::Loader));
            }
        }
        Err(crash) => {
            bump(&space.counters.load_errors);
            // What was invalidated or became too old while the loader ran does not answer.
            let has_landed = stale.is_some_and(|(found, source)| {
                land_found(&mut takeoff, &space, wanted, found, source)
            });
            if !has_landed {
                takeoff.land(Err(crash));
            }
        }
    }
    if let Some(lease) = lease {
        lease.release().await;
    }
}

/// The loader's value, or why there is none.
async fn run<V>(space: &SpaceCore, loading: Loading<V>) -> Result<V, Crash> {
    let (clock, runtime) = (&space.core.clock, &space.core.runtime);
    let limit = space.policy.load_deadline;
    bump(&space.counters.loads);
    let started = clock.elapsed();
    let loaded = unless(|| runtime.sleep(limit), catch_panic(loading)).await;
    space.counters.load_time.add(clock.elapsed().saturating_sub(started));
    match loaded {
        Some(Ok(loaded)) => loaded.map_err(Crash::Loader),
        Some(Err(Panicked)) => Err(Crash::Panicked),
        None => Err(Crash::Deadline(limit)),
    }
}

fn landed<V: Send + Sync + 'static>(found: Found<V>, source: Source) -> Outcome {
    let entry: Arc<Entry<V>> = found.entry;
    Ok(Landed { entry, source, is_stale: !found.is_fresh })
}

/// The future panicked; what it said went to the panic hook.
pub(crate) struct Panicked;

/// The output of `work`, or that it panicked.
pub(crate) async fn catch_panic<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut work = pin!(work);
    std::future::poll_fn(|context| {
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
    .await
}

/// Notes that a load's value was not stored.
pub(crate) fn count_superseded(space: &SpaceCore) {
    space.counters.superseded.fetch_add(1, Ordering::Relaxed);
}
