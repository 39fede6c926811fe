//! **Many** keys at once: one look into memory, one exchange with each tier, one load.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, OnceLock};

use crate::call::{self, Hit, board};
use crate::codec::ValueCodec;
use crate::entry::{Cached, Source};
use crate::error::{Error, LoadError, LoaderFailure, SharedError};
use crate::flight::{Crash, Flight, Flown, Joined, Landed, Takeoff};
use crate::key::{Key, KeyBuffer, KeyBytes, KeyRef};
use crate::lease::{Lease, while_held};
use crate::load::{Brought, Job, Loading, Request, catch_panic, may_be_there_now, run};
use crate::loaded::{Answer, Loaded};
use crate::options::{Reading, Wants};
use crate::read::{self, Unflushed, Wanted};
use crate::runtime::{BoxFuture, step_aside, unless};
use crate::space::{Mode, SpaceCore};
use crate::stats::bump;
use crate::tracking;
use crate::waits;
use crate::write::EntryOptions;

/// The values under many keys; one exchange with each tier.
pub(crate) async fn get_many<'a, K: Key + ?Sized + 'a, V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    keys: impl IntoIterator<Item = &'a K>,
) -> Result<Vec<Option<Cached<V>>>, Error> {
    let keys: Vec<_> = keys.into_iter().collect();
    if space.confirms {
        space.core.confirm().await?;
    }
    let mut answers = Vec::with_capacity(keys.len());
    let mut wanted = Vec::new();
    for key in &keys {
        let mut buffer = KeyBuffer::default();
        let key = space.checked_key(*key, &mut buffer)?;
        answers.push(match call::hit(space, key, None) {
            Hit::Fresh(entry) | Hit::Aging(entry) => Ask::Answered(Some(in_memory(entry, false))),
            Hit::Absent => Ask::Answered(None),
            Hit::Stale(_) | Hit::Nothing => {
                wanted.push(Wanted::new(key.bytes));
                Ask::Below
            }
        });
    }
    let (ticket, reading) = (space.core.ticket(), Reading::default());
    let mut below = Vec::with_capacity(wanted.len());
    let mut unflushed = Vec::with_capacity(wanted.len());
    for wanted in wanted {
        let found = read::unflushed(space, codec, &wanted, ticket, &reading);
        let found = found.map_err(read::failed)?;
        if found.is_none() {
            below.push(wanted);
        }
        unflushed.push(found);
    }
    let found = read::from_tiers(space, codec, &below, ticket, &reading).await;
    let (mut found, mut unflushed) =
        (found.map_err(read::failed)?.into_iter(), unflushed.into_iter());
    let answers = answers.into_iter().map(|answer| match answer {
        Ask::Answered(answer) => answer,
        Ask::Below => {
            match unflushed.next()? {
                Some(Unflushed::Removed) => return None,
                Some(Unflushed::Value(entry)) => {
                    return Some(Cached { entry, source: Source::Journal, is_stale: false });
                }
                None => {}
            }
            let (found, source) = found.next().flatten()?;
            (found.freshness.is_fresh() && space.mode() == Mode::On).then_some(Cached {
                entry: found.entry,
                source,
                is_stale: false,
            })
        }
    });
    let answers: Vec<_> = answers.collect();
    for (key, answer) in keys.into_iter().zip(&answers).filter(|_| space.is_tracked) {
        let found = answer.as_ref().map(|cached| &cached.entry.meta);
        tracking::note(space, key.encode(&mut KeyBuffer::default()), found);
    }
    Ok(answers)
}

/// What memory said about one of many keys.
enum Ask<V> {
    Answered(Option<Cached<V>>),
    Below,
}

fn in_memory<V>(entry: Arc<crate::entry::Entry<V>>, is_stale: bool) -> Cached<V> {
    Cached { entry, source: Source::Memory, is_stale }
}

/// What a loader of many keys is given.
#[derive(Debug)]
pub struct LoadMany<K> {
    keys: Arc<OnceLock<Vec<K>>>,
}

impl<K> LoadMany<K> {
    /// The keys to load: those that no tier has, and nobody else is loading.
    ///
    /// Known as soon as the loader's future runs; empty in a closure around it.
    #[must_use]
    pub fn keys(&self) -> &[K] {
        self.keys.get().map_or(&[], Vec::as_slice)
    }
}

/// What comes of each key, in the order of the call.
enum Pending<V> {
    Known(Result<Cached<V>, Crash>),
    Refused(Error),
    Circle,
    Flying(Flying),
}

struct Flying {
    flight: Arc<Flight>,
    wait: Option<waits::Wait>,
    key: KeyBytes,
}

/// See [`Space::get_many_or_load`](crate::Space::get_many_or_load).
pub(crate) async fn get_many_or_load<'a, K, V, F, Fut, I, A, E>(
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    keys: Vec<&'a K>,
    loader: F,
) -> Vec<Result<Cached<V>, LoadError<E>>>
where
    K: Key + ?Sized + 'a,
    K::Owned: Send + Sync + 'static,
    V: Send + Sync + 'static,
    F: FnOnce(LoadMany<K::Owned>) -> Fut,
    Fut: Future<Output = Result<I, E>> + Send + 'static,
    I: IntoIterator<Item = (K::Owned, A)>,
    A: Into<Loaded<V>>,
    E: LoaderFailure,
{
    if space.confirms
        && let Err(Error::Authority(error)) = space.core.confirm().await
    {
        let failed = || LoadError::Cache(Error::Authority(error.clone()));
        return keys.iter().map(|_| Err(failed())).collect();
    }
    let mut answers = Vec::with_capacity(keys.len());
    let mut leading = Vec::new();
    for &key in &keys {
        let mut buffer = KeyBuffer::default();
        answers.push(match space.checked_key(key, &mut buffer) {
            Ok(encoded) => ask(space, encoded, &mut |takeoff, wants| {
                leading.push(Leg { takeoff, wants, key: key.to_owned() });
            }),
            Err(error) => Pending::Refused(error),
        });
    }
    // A key may be there twice: each of both waits for a flight of this call.
    let own: Vec<_> = leading.iter().map(|leg| leg.takeoff.flight()).collect();
    if !leading.is_empty() {
        start::<K, _, _, _, _, _, _>(space, codec, leading, loader);
    }
    let mut outcomes = Vec::with_capacity(answers.len());
    for answer in answers {
        outcomes.push(match answer {
            Pending::Known(answer) => answer.map_err(LoadError::from),
            Pending::Refused(error) => Err(LoadError::Cache(error)),
            Pending::Circle => Err(LoadError::Circle),
            Pending::Flying(Flying { flight, wait: _wait, key }) => {
                let takes = |offer: &Landed| call::takes(space, &key, offer, None);
                match flight.wait_or_take(takes).await {
                    // What it is about may have been invalidated before this call.
                    Ok(landed)
                        if landed.has_own_tags
                            && !own.iter().any(|own| Arc::ptr_eq(own, &flight)) =>
                    {
                        Err(LoadError::Superseded)
                    }
                    outcome => call::answer(space, None, outcome),
                }
            }
        });
    }
    for (key, outcome) in keys.into_iter().zip(&outcomes).filter(|_| space.is_tracked) {
        let found = outcome.as_ref().ok().map(|cached: &Cached<V>| &cached.entry.meta);
        tracking::note(space, key.encode(&mut KeyBuffer::default()), found);
    }
    outcomes
}

/// One key of a load of many.
struct Leg<K> {
    takeoff: Takeoff,
    wants: Wants,
    key: K,
}

/// What memory and the flights say about a key; `lead` is called if this call has to load it.
fn ask<V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    key: KeyRef<'_>,
    lead: &mut dyn FnMut(Takeoff, Wants),
) -> Pending<V> {
    match call::hit(space, key, None) {
        Hit::Fresh(entry) => Pending::Known(Ok(in_memory(entry, false))),
        Hit::Aging(entry) => {
            if call::claims_refresh(space, &entry.meta)
                && let Joined::Leading(takeoff) = board(space, key, false)
            {
                bump(&space.counters.refreshes);
                lead(takeoff, Wants::Young);
            }
            Pending::Known(Ok(in_memory(entry, false)))
        }
        Hit::Absent => Pending::Known(Err(Crash::Absent)),
        Hit::Stale(entry) if call::is_held_back(space, key, &entry.meta, None) => {
            Pending::Known(Ok(in_memory(entry, true)))
        }
        Hit::Stale(_) | Hit::Nothing => {
            let flight = match board(space, key, false) {
                Joined::Following(flight) => {
                    bump(&space.counters.loads_shared);
                    flight
                }
                Joined::Leading(takeoff) => {
                    let flight = takeoff.flight();
                    lead(takeoff, Wants::Fresh);
                    flight
                }
            };
            let key = KeyBytes::from_slice(key.bytes);
            match waits::begin(&flight) {
                Ok(wait) => Pending::Flying(Flying { flight, wait, key }),
                Err(waits::Circle) => Pending::Circle,
            }
        }
    }
}

/// Calls the loader and starts the flights, all in one task.
fn start<K, V, F, Fut, I, A, E>(
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    legs: Vec<Leg<K::Owned>>,
    loader: F,
) where
    K: Key + ?Sized,
    K::Owned: Send + Sync + 'static,
    V: Send + Sync + 'static,
    F: FnOnce(LoadMany<K::Owned>) -> Fut,
    Fut: Future<Output = Result<I, E>> + Send + 'static,
    I: IntoIterator<Item = (K::Owned, A)>,
    A: Into<Loaded<V>>,
    E: LoaderFailure,
{
    let keys = Arc::new(OnceLock::new());
    let load = LoadMany { keys: Arc::clone(&keys) };
    let Ok(loading) = catch_unwind(AssertUnwindSafe(|| loader(load))) else {
        return legs.iter().for_each(|leg| leg.takeoff.land(Err(Crash::Panicked)));
    };
    let loading: Loading<Answers<V>> = Box::pin(async move {
        let loaded = loading.await.map_err(|error| Arc::new(error) as SharedError)?;
        let mut answers = HashMap::new();
        for (key, answer) in loaded {
            let mut buffer = KeyBuffer::default();
            let key: &K = key.borrow();
            answers.insert(key.encode(&mut buffer).into(), answer.into());
        }
        Ok(answers)
    });
    let request = |wants| Request {
        space: Arc::clone(space),
        codec,
        options: EntryOptions::default(),
        reading: Reading { wants, ..Reading::default() },
    };
    let legs: Vec<_> =
        legs.into_iter().map(|leg| (leg.takeoff, request(leg.wants), leg.key)).collect();
    // What is only loaded anew is awaited by nobody.
    let is_awaited = legs.iter().any(|(_, request, _)| request.reading.wants != Wants::Young);
    let is_nested = is_awaited && waits::is_within_load();
    let flying = fly_many(Arc::clone(space), codec, legs, keys, loading, is_nested);
    let task: BoxFuture<'static, ()> = Box::pin(async move {
        // A panic drops the takeoffs, which lands the flights as abandoned.
        let _ = catch_panic(pin!(flying)).await;
    });
    space.core.runtime.spawn(task);
}

/// What a loader of many keys answered, by the keys' bytes.
type Answers<V> = HashMap<Box<[u8]>, Loaded<V>>;

/// A key of the load that is not answered yet.
struct Open<K, V> {
    takeoff: Takeoff,
    job: Job<V>,
    key: K,
}

/// The flights of many keys: the same steps as for one, each for all of them.
async fn fly_many<K, V: Send + Sync + 'static>(
    space: Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    legs: Vec<(Takeoff, Request<V>, K)>,
    keys: Arc<OnceLock<Vec<K>>>,
    loading: Loading<Answers<V>>,
    is_nested: bool,
) {
    let flights = Flown::Many(legs.iter().map(|(takeoff, ..)| takeoff.flight()).collect());
    let mut ready = Vec::with_capacity(legs.len());
    for mut leg in legs {
        match leg.0.wait_for_turn(&flights).await {
            Ok(()) => ready.push(leg),
            Err(waits::Circle) => leg.0.land(Err(Crash::Circle)),
        }
    }
    let mut open: Vec<_> = ready
        .into_iter()
        .map(|(takeoff, request, key)| {
            let job = Job::begin(&takeoff, request);
            Open { takeoff, job, key }
        })
        .collect();
    open.retain_mut(|open| {
        !open.job.look_in_memory(&open.takeoff) && !open.job.look_in_journal(&open.takeoff)
    });
    look_below(&space, codec, &mut open).await;
    step_aside().await;
    open.retain_mut(|open| !open.job.is_held_back(&open.takeoff));
    // Whoever wants the same keys in another process takes the leases in the same order: two
    // can never hold what the other one waits for.
    open.sort_by(|one, other| one.job.wanted.name(&space).cmp(other.job.wanted.name(&space)));
    let mut leases: Vec<Lease> = Vec::new();
    let mut to_load = Vec::new();
    for open in open {
        let asked = while_held(&leases, pin!(open.job.lease(&open.takeoff))).await;
        if let Ok(lease) = asked {
            leases.extend(lease);
            to_load.push(open);
        }
    }
    let wanted: Vec<_> = to_load.iter().map(|open| &open.job.wanted).collect();
    if while_held(&leases, pin!(may_be_there_now(&space, &wanted))).await {
        while_held(&leases, pin!(look_below(&space, codec, &mut to_load))).await;
    }
    if !to_load.is_empty() {
        let loading = pin!(run(&space, flights, loading, is_nested));
        let loading = while_held(&leases, loading);
        load(&space, to_load, &keys, loading).await;
    }
    for lease in leases {
        lease.release().await;
    }
}

async fn look_below<K, V: Send + Sync + 'static>(
    space: &Arc<SpaceCore>,
    codec: Option<ValueCodec<V>>,
    open: &mut Vec<Open<K, V>>,
) {
    let Some(ticket) = open.first().map(|open| open.job.ticket) else { return };
    let wanted: Vec<_> = open.iter().map(|open| open.job.wanted.clone()).collect();
    let found = read::from_tiers(space, codec, &wanted, ticket, &Reading::default()).await;
    match found {
        Ok(found) => {
            let mut found = found.into_iter();
            open.retain_mut(|open| match found.next().flatten() {
                Some((found, source)) => !open.job.take(&open.takeoff, found, source),
                None => true,
            });
        }
        Err(crash) => {
            for open in open.drain(..) {
                open.takeoff.land(Err(crash.clone()));
            }
        }
    }
}

/// Runs the loader for what is still open, and hands out what it brings.
async fn load<K, V: Send + Sync + 'static>(
    space: &SpaceCore,
    open: Vec<Open<K, V>>,
    keys: &OnceLock<Vec<K>>,
    loading: impl Future<Output = Result<Brought<Answers<V>>, Crash>>,
) {
    let mut flying = Vec::with_capacity(open.len());
    let mut missing = Vec::with_capacity(open.len());
    for Open { takeoff, job, key } in open {
        flying.push((takeoff, job));
        missing.push(key);
    }
    let _ = keys.set(missing);
    let mut loading = pin!(loading);
    let soft_deadline = || space.core.runtime.sleep(space.policy.soft_deadline);
    let loaded = match unless(soft_deadline, loading.as_mut()).await {
        Some(loaded) => loaded,
        None => {
            flying.iter().for_each(|(takeoff, job)| job.offer_stale(takeoff));
            loading.await
        }
    };
    match loaded {
        Ok(brought) => {
            let (mut answers, brought) = brought.apart();
            let has_failed = |loaded: &Loaded<V>| matches!(loaded.answer, Answer::Failed(_));
            if answers.values().any(has_failed) {
                bump(&space.counters.load_errors);
            }
            let mut new = Vec::new();
            for (takeoff, job) in &flying {
                // What the loader does not mention is not there.
                let answer = answers.remove(&*job.wanted.bytes).unwrap_or_else(Loaded::absent);
                let committed = job.commit(takeoff, answer, &brought).await;
                new.extend(committed.map(|new| (job, takeoff, new)));
            }
            if let Some((job, ..)) = new.first() {
                job.store_below(new.iter().map(|(job, takeoff, new)| (*job, *takeoff, new))).await;
            }
        }
        Err(crash) => {
            for (takeoff, job) in &flying {
                job.note_failure(takeoff, &crash);
                job.fail(takeoff, crash.clone());
            }
        }
    }
}
