//! The **bulkhead**: how many loads run at once, so that a cold cache does not sink its source.
//!
//! A load within a load runs under the permit of the outer one: it could otherwise wait for a
//! permit that only its own end would free.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::runtime::{Runtime, unless};

/// Loads that may wait for a permit; more than that are refused.
const LONGEST_QUEUE: usize = 10_000;

/// Permits for loads.
#[derive(Debug)]
pub(crate) struct Bulkhead {
    permits: Arc<Semaphore>,
    most: usize,
    queued: AtomicUsize,
}

/// The right to run a loader. It is given back when this is dropped.
pub(crate) type Permit = OwnedSemaphorePermit;

/// No permit was to be had in time, or too many wait already.
#[derive(Debug)]
pub(crate) struct Overloaded;

impl Bulkhead {
    pub(crate) fn new(most: usize) -> Self {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        Self { permits: Arc::new(Semaphore::new(most)), most, queued: AtomicUsize::new(0) }
    }

    /// A permit, once there is one.
    pub(crate) async fn permit(
        &self,
        runtime: &dyn Runtime,
        patience: Duration,
    ) -> Result<Permit, Overloaded> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(permit);
        }
        let Some(_queued) = Queued::enter(&self.queued) else { return Err(Overloaded) };
        let permit = Arc::clone(&self.permits).acquire_owned();
        match unless(|| runtime.sleep(patience), permit).await {
            Some(Ok(permit)) => Ok(permit),
            // It is never closed.
            Some(Err(_)) | None => Err(Overloaded),
        }
    }

    /// Loads that run.
    pub(crate) fn running(&self) -> usize {
        self.most.saturating_sub(self.permits.available_permits())
    }

    /// Loads that wait for a permit.
    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }
}

/// A place in the queue, left when this is dropped.
struct Queued<'a>(&'a AtomicUsize);

impl<'a> Queued<'a> {
    fn enter(queued: &'a AtomicUsize) -> Option<Self> {
        let enter = |queued: usize| (queued < LONGEST_QUEUE).then_some(queued + 1);
        queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).ok().map(|_| Self(queued))
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
