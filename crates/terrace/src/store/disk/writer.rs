//! The **writer**: the one thread that changes the database.
//!
//! It takes everything that waits, up to a limit, into one transaction: a hundred
//! callers that write at once pay for one commit. Callers only wait; one that is
//! dropped leaves its change whole, done or not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::batch::Batch;
use super::budget::Cost;
use super::room::Room;
use crate::store::{StoreError, StoreErrorKind};

/// Changes that one transaction takes at most.
const LARGEST_BATCH: usize = 256;

/// Changes that may wait; further callers wait for room.
const QUEUE: usize = 1024;

/// A change that waits for its transaction, and the caller who waits for the change.
pub(super) trait Change: Send {
    /// What it adds to.
    fn cost(&self) -> Cost;
    /// Applies it; may be called again in another transaction if that one was undone.
    fn apply(&mut self, batch: &mut Batch<'_>) -> rusqlite::Result<()>;
    /// Tells the caller what became of it.
    fn report(self: Box<Self>, outcome: Result<(), StoreError>);
}

struct Waiting<T, F> {
    cost: Cost,
    change: F,
    output: Option<T>,
    answer: oneshot::Sender<Result<T, StoreError>>,
    doing: &'static str,
}

impl<T, F> Change for Waiting<T, F>
where
    T: Send,
    F: FnMut(&mut Batch<'_>) -> rusqlite::Result<T> + Send,
{
    fn cost(&self) -> Cost {
        self.cost
    }

    fn apply(&mut self, batch: &mut Batch<'_>) -> rusqlite::Result<()> {
        self.output = Some((self.change)(batch)?);
        Ok(())
    }

    fn report(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Self { output, answer, doing, .. } = *self;
        let missing = StoreError::new(StoreErrorKind::Other, doing);
        // Whoever asked may be gone; the change stands all the same.
        let _ = answer.send(outcome.and_then(|()| output.ok_or(missing)));
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    changes: Mutex<Option<mpsc::Sender<Box<dyn Change>>>>,
    ended: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
    closed: AtomicBool,
}

/// The answer to a change, once it is written.
type Answer<T> = oneshot::Receiver<Result<T, StoreError>>;

impl Writer {
    pub(super) fn start(room: Room) -> std::io::Result<Self> {
        let (changes, queue) = mpsc::channel(QUEUE);
        let (ending, ended) = oneshot::channel();
        thread::Builder::new().name("terrace-disk".into()).spawn(move || {
            write_all(room, queue);
            let _ = ending.send(());
        })?;
        Ok(Self {
            changes: Mutex::new(Some(changes)),
            ended: tokio::sync::Mutex::new(Some(ended)),
            closed: AtomicBool::new(false),
        })
    }

    /// Runs `change` in a transaction and waits until that is committed.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        doing: &'static str,
        cost: Cost,
        change: impl FnMut(&mut Batch<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (waiting, answer) = waiting(doing, cost, change);
        let closed = || StoreError::new(StoreErrorKind::Closed, doing);
        let changes = self.changes.lock().clone().ok_or_else(closed)?;
        changes.send(waiting).await.map_err(|_| closed())?;
        drop(changes);
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// The same from a thread that may be blocked.
    pub(super) fn run_blocking<T: Send + 'static>(
        &self,
        doing: &'static str,
        cost: Cost,
        change: impl FnMut(&mut Batch<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (waiting, answer) = waiting(doing, cost, change);
        let closed = || StoreError::new(StoreErrorKind::Closed, doing);
        let changes = self.changes.lock().clone().ok_or_else(closed)?;
        changes.blocking_send(waiting).map_err(|_| closed())?;
        drop(changes);
        answer.blocking_recv().unwrap_or_else(|_| Err(closed()))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Waits until everything that was asked for is written.
    pub(super) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changes.lock().take();
        if let Some(ended) = self.ended.lock().await.take() {
            let _ = ended.await;
        }
    }
}

fn waiting<T: Send + 'static>(
    doing: &'static str,
    cost: Cost,
    change: impl FnMut(&mut Batch<'_>) -> rusqlite::Result<T> + Send + 'static,
) -> (Box<dyn Change>, Answer<T>) {
    let (answer, answered) = oneshot::channel();
    (Box::new(Waiting { cost, change, output: None, answer, doing }), answered)
}

fn write_all(mut room: Room, mut queue: mpsc::Receiver<Box<dyn Change>>) {
    let mut waiting = Vec::with_capacity(LARGEST_BATCH);
    while queue.blocking_recv_many(&mut waiting, LARGEST_BATCH) > 0 {
        while !waiting.is_empty() {
            let rest = waiting.split_off(room.fitting(&waiting));
            write_some(&mut room, &mut waiting);
            waiting = rest;
        }
    }
    room.close();
}

/// Writes changes and reports on them, which leaves none.
fn write_some(room: &mut Room, changes: &mut Vec<Box<dyn Change>>) {
    let outcome = room.write(changes);
    if outcome.is_ok() || changes.len() == 1 {
        changes.drain(..).for_each(|change| change.report(outcome.clone()));
        return;
    }
    // One that fails must not take the others with it: each for itself now.
    for mut change in changes.drain(..) {
        let outcome = room.write(std::slice::from_mut(&mut change));
        change.report(outcome);
    }
}
