//! The **runtime**: where tasks are spawned, timers wait and random numbers come from.
//!
//! Everything in Terrace that runs by itself goes through this one seam, so that
//! a test can decide when a task runs and what "random" means.

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;

/// A boxed future that may move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What Terrace needs of an asynchronous runtime.
///
/// The default is [`Tokio`].
pub trait Runtime: fmt::Debug + Send + Sync + 'static {
    /// Runs `task` to its end, whatever becomes of the caller.
    fn spawn(&self, task: BoxFuture<'static, ()>);

    /// Completes after `time`.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;

    /// A random number: jitter, incarnations and lease tokens come from here.
    fn random(&self) -> u64;
}

/// The Tokio runtime that was current when the cache was built.
///
/// Its timers must be enabled (`enable_time`, which `#[tokio::main]` does).
#[derive(Debug)]
pub struct Tokio {
    handle: tokio::runtime::Handle,
}

impl Tokio {
    /// The runtime in whose context this is called; `None` outside of any.
    #[must_use]
    pub fn current() -> Option<Self> {
        tokio::runtime::Handle::try_current().ok().map(|handle| Self { handle })
    }
}

impl Runtime for Tokio {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.handle.spawn(task);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        // A timer registers with the runtime in whose context it is made.
        let _context = self.handle.enter();
        Box::pin(tokio::time::sleep(time))
    }

    fn random(&self) -> u64 {
        fastrand::u64(..)
    }
}

/// The output of `work`, which goes on whatever becomes of the caller; `None` if it panicked, or its
/// runtime is gone.
pub(crate) async fn in_task<T: Send + 'static>(
    runtime: &dyn Runtime,
    work: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    runtime.spawn(Box::pin(async move {
        // Whoever gave up needs no answer.
        let _ = sender.send(work.await);
    }));
    receiver.await.ok()
}

/// The output of `work`, which may block its thread: away from the caller's, where a Tokio runtime
/// is at hand, and whatever becomes of the caller. `None` if it panicked, or its runtime is gone.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => runtime.spawn_blocking(work).await.ok(),
        Err(_) => Some(work()),
    }
}

/// The output of `work`, or `None` if `limit` completes first.
///
/// The limit is made only if `work` does not complete at once.
pub(crate) async fn unless<T, Limit: Future<Output = ()>>(
    limit: impl FnOnce() -> Limit,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = pin!(work);
    let first = std::future::poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await;
    if let Poll::Ready(output) = first {
        return Some(output);
    }
    let mut limit = pin!(limit());
    std::future::poll_fn(|context| {
        if let Poll::Ready(output) = work.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        limit.as_mut().poll(context).map(|()| None)
    })
    .await
}

/// Gives way once: whoever polls this future first does not run what comes after.
pub(crate) async fn step_aside() {
    let mut stepped = false;
    std::future::poll_fn(|context| {
        if stepped {
            return Poll::Ready(());
        }
        stepped = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
