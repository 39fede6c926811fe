//! The **sweep**: a call that is dropped at each of its polls, one after the other.
//!
//! Whoever awaits a call may be dropped wherever the call waits: by a timeout, by a
//! `select!`, by a connection that is closed. A sweep finds all of these places without
//! knowing them. It gives the call up after no poll at all, then after one, then after
//! two, and so on until the call comes through; the test says each time what has to hold.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use terrace::{Memory, Terrace};
//! use terrace_test::sweep;
//!
//! let terrace = Terrace::builder().memory(Memory::default()).build().await?;
//! let rounds = sweep::every_poll(async |cut| {
//!     terrace.remove("key").await.unwrap();
//!     let stored = cut.at(async { terrace.set("key", &1_u64).await }).await;
//!     let found = terrace.get::<u64>("key").await.unwrap();
//!     // Whether it was dropped in between or not: all of it or nothing.
//!     assert!(found.is_none_or(|found| *found == 1));
//!     assert!(stored.is_none() || terrace.exists("key").await.unwrap());
//! })
//! .await;
//! assert!(rounds >= 2);
//! # Ok(()) }
//! ```

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

/// A sweep that takes more rounds than this is over a call that never ends.
const MOST_ROUNDS: usize = 2_000;

/// Does `round` again and again, each time with a [`Cut`] that comes one poll later,
/// until what is cut comes through; returns how many rounds that took.
///
/// A round prepares what it needs, gives one call to [`Cut::at`], and looks at what it
/// left behind. A call that has to wait for others comes through only if they are let run.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use terrace_test::sweep;
///
/// let mut steps = Vec::new();
/// let rounds = sweep::every_poll(async |cut| {
///     let mut done = 0;
///     let call = async {
///         for _ in 0..2 {
///             done += 1;
///             tokio::task::yield_now().await;
///         }
///     };
///     cut.at(call).await;
///     steps.push(done);
/// })
/// .await;
/// assert_eq!((rounds, steps), (4, vec![0, 1, 2, 2]));
/// # }
/// ```
///
/// # Panics
/// The call does not come through within 2,000 polls, or a round gave none.
#[expect(clippy::panic, reason = "this is how a test says that it failed")]
pub async fn every_poll(mut round: impl AsyncFnMut(&Cut)) -> usize {
    for polls in 0..MOST_ROUNDS {
        let cut = Cut { polls, was_asked: false.into(), came_through: true.into() };
        round(&cut).await;
        assert!(cut.was_asked.into_inner(), "a round of a sweep gave no call to Cut::at");
        if cut.came_through.into_inner() {
            return polls + 1;
        }
    }
    panic!("a call that was swept has not ended after {MOST_ROUNDS} polls");
}

/// Where a round of a [sweep](every_poll) gives its call up.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use terrace_test::sweep;
///
/// let mut polls = Vec::new();
/// sweep::every_poll(async |cut| {
///     polls.push(cut.polls());
///     cut.at(tokio::task::yield_now()).await;
/// })
/// .await;
/// assert_eq!(polls, [0, 1, 2]);
/// # }
/// ```
#[derive(Debug)]
pub struct Cut {
    polls: usize,
    was_asked: AtomicBool,
    came_through: AtomicBool,
}

impl Cut {
    /// What `work` brings, or `None` if it is given up. See [`poll_and_drop`].
    ///
    /// A round may cut several calls; its sweep ends once all of them come through.
    pub async fn at<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.was_asked.store(true, Ordering::Relaxed);
        let output = poll_and_drop(self.polls, work).await;
        self.came_through.fetch_and(output.is_some(), Ordering::Relaxed);
        output
    }

    /// How often a call is polled in this round, at most.
    #[must_use]
    pub fn polls(&self) -> usize {
        self.polls
    }
}

/// What `work` brings, or `None` if it is still under way after its poll number `polls`,
/// and then dropped.
///
/// It is polled when it asks to be, so that each number of polls is another point in its
/// life at which its caller leaves.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use terrace_test::sweep::poll_and_drop;
///
/// assert_eq!(poll_and_drop(0, async { 7 }).await, None);
/// assert_eq!(poll_and_drop(1, async { 7 }).await, Some(7));
/// assert_eq!(poll_and_drop(5, std::future::ready(7)).await, Some(7));
/// assert_eq!(poll_and_drop(1, std::future::pending::<u64>()).await, None);
/// # }
/// ```
pub async fn poll_and_drop<T>(polls: usize, work: impl Future<Output = T>) -> Option<T> {
    let mut work = Box::pin(work);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match work.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sweep_ends_once_all_of_its_calls_come_through() {
        let mut answers = Vec::new();
        let rounds = every_poll(async |cut| {
            let short = cut.at(async { 1 }).await;
            let long = cut.at(tokio::task::yield_now()).await;
            answers.push((short, long.is_some()));
        })
        .await;
        assert_eq!(rounds, 3);
        assert_eq!(answers, [(None, false), (Some(1), false), (Some(1), true)]);
    }

    #[tokio::test]
    #[should_panic(expected = "has not ended after 2000 polls")]
    async fn a_call_that_never_ends_is_told() {
        every_poll(async |cut| {
            let work = async {
                loop {
                    tokio::task::yield_now().await;
                }
            };
            let (): () = cut.at(work).await.unwrap_or_default();
        })
        .await;
    }

    #[tokio::test]
    #[should_panic(expected = "gave no call")]
    async fn a_round_without_a_call_is_told() {
        every_poll(async |_| {}).await;
    }
}
