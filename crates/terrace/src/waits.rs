//! The **waits**: which running load waits for which other one.
//!
//! A loader may read other keys of the cache. If one of those loads, however indirectly, waits
//! for the load that asks, nobody would ever be answered: the wait that would close the circle
//! is refused instead. Whose load it is that asks is known as long as its future runs in the
//! task in which the cache polls it; what a loader hands to tasks of its own asks as a stranger.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::flight::{Flight, Flown};

thread_local! {
    /// The flights whose loader is being polled on this thread.
    static LOADING: RefCell<Option<Flown>> = const { RefCell::new(None) };
}

/// One wait begins or ends at a time, in all caches of the process: only loads within loads
/// come here.
static ORDER: Mutex<()> = Mutex::new(());

/// A wait of loads for another one. It ends when this is dropped.
pub(crate) struct Wait {
    waiting: Flown,
    awaited: Arc<Flight>,
}

/// The load would wait for itself.
#[derive(Debug)]
pub(crate) struct Circle;

/// Begins to wait for `awaited`; `None` outside of any loader, which no circle goes through.
pub(crate) fn begin(awaited: &Arc<Flight>) -> Result<Option<Wait>, Circle> {
    let Some(waiting) = current() else { return Ok(None) };
    let wait = begin_for(&waiting, awaited)?;
    // A running loader has a permit, which others may be waiting for.
    urge(awaited);
    Ok(Some(wait))
}

/// The flights of one task begin to wait for another one.
pub(crate) fn begin_for(waiting: &Flown, awaited: &Arc<Flight>) -> Result<Wait, Circle> {
    let _order = ORDER.lock();
    if waiting.iter().any(|waiting| leads(awaited, waiting)) {
        return Err(Circle);
    }
    for waiting in &**waiting {
        waiting.waits_for.lock().push(Arc::clone(awaited));
    }
    if waiting.iter().any(|waiting| waiting.is_urgent()) {
        urge(awaited);
    }
    Ok(Wait { waiting: waiting.clone(), awaited: Arc::clone(awaited) })
}

/// Whether the caller runs within a loader.
pub(crate) fn is_within_load() -> bool {
    LOADING.try_with(|loading| loading.borrow().is_some()).unwrap_or(false)
}

/// Runs `work`, the loader of these flights.
pub(crate) fn within_load<T>(
    flights: Flown,
    mut work: impl Future<Output = T> + Unpin,
) -> impl Future<Output = T> + Unpin {
    std::future::poll_fn(move |context| {
        let _scope = Scope { outer: replace(Some(flights.clone())) };
        Pin::new(&mut work).poll(context)
    })
}

/// Puts back what was there before, also when the loader panics.
struct Scope {
    outer: Option<Flown>,
}

impl Drop for Scope {
    fn drop(&mut self) {
        let _ = replace(self.outer.take());
    }
}

fn replace(flights: Option<Flown>) -> Option<Flown> {
    LOADING.try_with(|loading| loading.replace(flights)).unwrap_or(None)
}

fn current() -> Option<Flown> {
    LOADING.try_with(|loading| loading.borrow().clone()).unwrap_or(None)
}

/// Whether `from` is, or waits for something that waits for, `to`.
fn leads(from: &Arc<Flight>, to: &Arc<Flight>) -> bool {
    any_from(from, |flight| Arc::ptr_eq(flight, to))
}

/// Has a flight, and what it waits for, go on without a permit.
fn urge(flight: &Arc<Flight>) {
    any_from(flight, |flight| {
        flight.urge();
        false
    });
}

/// Whether something is true of `from`, or of a flight that it waits for, however indirectly.
fn any_from(from: &Arc<Flight>, is_true: impl Fn(&Arc<Flight>) -> bool) -> bool {
    let mut open = vec![Arc::clone(from)];
    let mut seen: Vec<*const Flight> = Vec::new();
    while let Some(flight) = open.pop() {
        if is_true(&flight) {
            return true;
        }
        if !seen.contains(&Arc::as_ptr(&flight)) {
            seen.push(Arc::as_ptr(&flight));
            open.extend(flight.waits_for.lock().iter().cloned());
        }
    }
    false
}

impl Drop for Wait {
    fn drop(&mut self) {
        let _order = ORDER.lock();
        for waiting in &*self.waiting {
            let mut waits = waiting.waits_for.lock();
            if let Some(index) = waits.iter().position(|other| Arc::ptr_eq(other, &self.awaited)) {
                waits.swap_remove(index);
            }
        }
    }
}
