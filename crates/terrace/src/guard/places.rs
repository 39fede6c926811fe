//! The **places** of a tier: how many exchanges with its store are under way at once.
//!
//! Taking a place and giving it back is an addition each, without a lock.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Exchanges that may wait for a place; more than that are refused.
const LONGEST_QUEUE: usize = 10_000;

#[derive(Debug)]
pub(crate) struct Places {
    most: usize,
    taken: AtomicUsize,
    queued: AtomicUsize,
    freed: Notify,
}

/// A place, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Place<'a>(&'a Places);

impl Places {
    pub(crate) fn new(most: usize) -> Self {
        let (taken, queued) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { most: most.max(1), taken, queued, freed: Notify::new() }
    }

    /// A place, if one is free.
    pub(crate) fn try_take(&self) -> Option<Place<'_>> {
        let take = |taken: usize| (taken < self.most).then_some(taken + 1);
        let taken = self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        // A place that is made is one that is given back.
        taken.is_ok().then(|| Place(self))
    }

    /// A place, once there is one; `None` at once if too many wait already.
    pub(crate) async fn take(&self) -> Option<Place<'_>> {
        let _queued = Queued::enter(&self.queued)?;
        loop {
            let mut freed = pin!(self.freed.notified());
            // Before the look: what is freed in between must not be missed.
            freed.as_mut().enable();
            if let Some(place) = self.try_take() {
                return Some(place);
            }
            freed.await;
        }
    }

    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    pub(crate) fn most(&self) -> usize {
        self.most
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::SeqCst);
        if self.0.queued.load(Ordering::SeqCst) > 0 {
            self.0.freed.notify_one();
        }
    }
}

/// A place in the queue, left when this is dropped.
struct Queued<'a>(&'a AtomicUsize);

impl<'a> Queued<'a> {
    fn enter(queued: &'a AtomicUsize) -> Option<Self> {
        let enter = |queued: usize| (queued < LONGEST_QUEUE).then_some(queued + 1);
        queued.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enter).ok().map(|_| Self(queued))
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
