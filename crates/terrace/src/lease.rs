//! The **lease**: the right to load or to write a key, alone among all processes
//! that share the authority, for as long as its holder is alive.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock::Tick;
use crate::core::Core;
use crate::protocol::Leased;

/// A lease lapses so long after its holder was last heard of.
const LASTS: Duration = Duration::from_secs(5);

/// How often a holder is heard of.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The first wait for a lease that somebody else holds; later ones are longer.
const FIRST_WAIT: Duration = Duration::from_millis(2);
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// A lease that is held, or a licence to do without one.
pub(crate) struct Lease {
    core: Arc<Core>,
    name: Arc<str>,
    /// `None`: the authority did not answer. Each process then loads for itself, and
    /// stamps keep what it stores from doing harm.
    token: Option<u64>,
    /// When the authority heard of its holder last, in milliseconds of the cache's clock.
    heard: AtomicU64,
}

impl Lease {
    fn new(core: &Arc<Core>, name: &Arc<str>, token: Option<u64>) -> Self {
        let heard = AtomicU64::new(core.clock.tick().as_millis());
        Self { core: Arc::clone(core), name: Arc::clone(name), token, heard }
    }

    /// Asks once. `None`: somebody else holds it.
    pub(crate) async fn ask(core: &Arc<Core>, name: &Arc<str>) -> Option<Self> {
        // Whoever has waited in vain for a read of it does not wait for this as well.
        if core.keeper().is_some_and(|tier| tier.guard.is_failing()) {
            return Some(Self::new(core, name, None));
        }
        let now = core.clock.wall();
        let asked = || core.authority.lease(name, now, now.saturating_add(LASTS));
        let token = match core.ask(asked).await {
            Ok(Leased::Granted(lease)) => Some(lease.token),
            Ok(Leased::Held(_)) => return None,
            Err(error) => {
                tracing::debug!(%error, "no lease to be had: going on without");
                None
            }
        };
        Some(Self::new(core, name, token))
    }

    /// The same for a caller that may be dropped while the answer is under way: the lease
    /// that it would have got is given back.
    pub(crate) async fn ask_from_outside(core: &Arc<Core>, name: &Arc<str>) -> Option<Self> {
        let (answer, answered) = oneshot::channel();
        let asking = (Arc::clone(core), Arc::clone(name));
        core.runtime.spawn(Box::pin(async move {
            let (core, name) = asking;
            // A lease that nobody takes is dropped, which gives it back.
            let _ = answer.send(Self::ask(&core, &name).await);
        }));
        answered.await.ok().flatten()
    }

    /// Gives the lease back.
    pub(crate) async fn release(mut self) {
        if let Some(token) = self.token {
            give_back(&self.core, &self.name, token).await;
            self.token = None;
        }
    }

    /// Goes on where an earlier one ended: many leases are kept through one piece of work after the other.
    async fn heartbeat(&self) {
        let mut token = self.token;
        loop {
            let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
            let since = Duration::from_millis(self.core.clock.tick().as_millis());
            self.core.runtime.sleep(HEARTBEAT.saturating_sub(since.saturating_sub(heard))).await;
            self.heard.store(self.core.clock.tick().as_millis(), Ordering::Relaxed);
            if let Some(held) = token {
                let until = self.core.clock.wall().saturating_add(LASTS);
                // A lease that was voided is not taken back: what is loaded is stale.
                let renewed = || self.core.authority.renew(&self.name, held, until);
                if let Ok(false) = self.core.ask(renewed).await {
                    token = None;
                }
            }
        }
    }
}

/// Does `work` and keeps these leases meanwhile.
pub(crate) fn while_held<'a, T>(
    leases: impl IntoIterator<Item = &'a Lease, IntoIter: Unpin>,
    mut work: impl Future<Output = T> + Unpin,
) -> impl Future<Output = T> + Unpin {
    let mut leases = Some(leases.into_iter());
    let mut heartbeats = Vec::new();
    std::future::poll_fn(move |context| {
        if let Poll::Ready(output) = Pin::new(&mut work).poll(context) {
            return Poll::Ready(output);
        }
        // What is done at once keeps nothing waiting: for many keys that is most of the work.
        heartbeats
            .extend(leases.take().into_iter().flatten().map(|lease| Box::pin(lease.heartbeat())));
        for heartbeat in &mut heartbeats {
            // It never ends by itself.
            let _ = heartbeat.as_mut().poll(context);
        }
        Poll::Pending
    })
}

/// Whoever holds a lease may be dropped or panic: nobody has to wait for it to lapse.
impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            let (core, name) = (Arc::clone(&self.core), Arc::clone(&self.name));
            self.core.runtime.spawn(Box::pin(async move {
                give_back(&core, &name, token).await;
            }));
        }
    }
}

async fn give_back(core: &Core, name: &str, token: u64) {
    if let Err(error) = core.ask(|| core.authority.release(name, token)).await {
        tracing::debug!(%error, "a lease was not given back: it lapses by itself");
    }
}

/// Waits between two attempts at a lease: a little longer each time, never in step
/// with others.
pub(crate) struct Patience {
    wait: Duration,
    left: Duration,
    /// When the last wait was over: what is done between two of them takes patience, too.
    resumed: Option<Tick>,
}

impl Patience {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { wait: FIRST_WAIT, left: limit, resumed: None }
    }

    /// `false` once there is no patience left.
    pub(crate) async fn wait(&mut self, core: &Core) -> bool {
        let now = core.clock.tick();
        let worked = self.resumed.map_or(Duration::ZERO, |resumed| now.saturating_since(resumed));
        self.left = self.left.saturating_sub(worked);
        if self.left.is_zero() {
            return false;
        }
        let spread = Duration::from_micros(core.runtime.random() % 1000);
        let wait = (self.wait + spread).min(self.left);
        core.runtime.sleep(wait).await;
        self.left = self.left.saturating_sub(wait);
        self.resumed = Some(core.clock.tick());
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        true
    }
}
