//! The **room** in which changes are written: no transaction takes the directory beyond its budget.
//!
//! What a transaction will add is known before it begins, and what is taken already is measured
//! within it, when no other process can write. If it does not fit, entries leave first, in
//! transactions of a bounded size. Near the limit some leave with every write, so that nobody has
//! to wait for many at once.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use super::batch::Batch;
use super::budget::{Budget, Cost, Taken, length, log_of};
use super::checkpoints::{Checkpoints, Why, checkpoint, is_long};
use super::connection;
use super::failed;
use super::folder::Folder;
use super::touches::Touches;
use super::turn::Turn;
use super::writer::Change;
use crate::store::{StoreError, StoreErrorKind};

const WRITING: &str = "write to the disk tier";

/// Entries that leave for one that comes, at most, as long as it is not urgent.
const MOST_FOR_ONE: u64 = 8;

/// Transactions that may be needed to make room for one: others may take what is made.
const TRIES: usize = 10_000;

/// Transactions of reads that are noted at once, at most.
const READS_AT_ONCE: usize = 512;

/// How long the writer waits for readers who keep the log from being cut off.
const LOG_PATIENCE: Duration = Duration::from_secs(1);

/// How long one try takes, and how long it is until the next.
const LOG_PAUSE: Duration = Duration::from_millis(5);

/// See the [module](self).
pub(super) struct Room {
    connection: Connection,
    path: PathBuf,
    log: PathBuf,
    budget: Budget,
    folder: Arc<Folder>,
    touches: Arc<Touches>,
    evicted: Arc<AtomicU64>,
    turn: Turn,
    checkpoints: Checkpoints,
    /// Files that are removed, of which there are rows yet.
    removed: Vec<i64>,
    /// Let go of when the connection is closed.
    _lock: Arc<File>,
}

/// What a transaction came to.
enum Step {
    /// The changes are committed.
    Done,
    /// Some room was made, and the changes wait for more.
    More,
    /// There is nothing left that could make room.
    Stuck,
}

/// What else a room needs to know.
pub(super) struct Surroundings {
    pub(super) budget: Budget,
    pub(super) folder: Arc<Folder>,
    pub(super) touches: Arc<Touches>,
    pub(super) evicted: Arc<AtomicU64>,
    pub(super) lock: Arc<File>,
}

impl Room {
    pub(super) fn new(
        connection: Connection,
        path: &Path,
        surroundings: Surroundings,
    ) -> std::io::Result<Self> {
        let Surroundings { budget, folder, touches, evicted, lock } = surroundings;
        let directory = path.parent().unwrap_or(path);
        Ok(Self {
            connection,
            path: path.to_owned(),
            log: log_of(path),
            budget,
            folder,
            touches,
            evicted,
            turn: Turn::among(directory),
            checkpoints: Checkpoints::start(path.to_owned(), budget.log)?,
            removed: Vec::new(),
            _lock: lock,
        })
    }

    /// How many of the changes go into the next transaction: at least one.
    pub(super) fn fitting(&self, changes: &[Box<dyn Change>]) -> usize {
        let mut sum = Cost::default();
        let costs = changes.iter().map(|change| change.cost());
        let fitting = costs.take_while(|cost| {
            sum = sum.and(*cost);
            sum.leaves_room(&self.budget)
        });
        fitting.count().clamp(1, changes.len().max(1))
    }

    /// Applies all changes or none.
    pub(super) fn write(&mut self, changes: &mut [Box<dyn Change>]) -> Result<(), StoreError> {
        let mut cost = changes.iter().fold(Cost::default(), |sum, change| sum.and(change.cost()));
        // With others it waits for room as they do; if that fails, each is tried for itself.
        cost.must_be &= changes.len() == 1;
        let (mut was_full, mut was_stuck) = (false, false);
        for _ in 0..TRIES {
            let step = self.spare_log(&cost).and_then(|()| self.step(changes, &mut cost));
            match step {
                Ok(Step::Done) => return Ok(()),
                Ok(Step::More) => {}
                // The first time, all was counted anew.
                Ok(Step::Stuck) if !was_stuck => was_stuck = true,
                Ok(Step::Stuck) => break,
                Err(error) => {
                    self.mend(&error);
                    let is_full = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
                    if !is_full || std::mem::replace(&mut was_full, true) || !self.retreat() {
                        return Err(failed(WRITING, error));
                    }
                }
            }
        }
        Err(StoreError::new(StoreErrorKind::Full, WRITING))
    }

    /// Makes some room, and applies the changes if they fit then.
    fn step(&mut self, changes: &mut [Box<dyn Change>], cost: &mut Cost) -> rusqlite::Result<Step> {
        let turn = self.turn.wait();
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut batch = Batch::new(&transaction, self.touches.eviction, self.budget.ledger_lines);
        let forgotten = batch.forget(&self.removed)?;
        let before = if cost.adds() {
            batch.settle()?;
            Some(Taken::measure(&transaction, &self.path)?)
        } else {
            None
        };
        let made = match &before {
            Some(taken) => {
                let measure = || Taken::measure(&transaction, &self.path);
                make_room(&mut batch, taken, measure, cost, &self.budget, &self.touches)?
            }
            None => Made { is_enough: true, ..Made::default() },
        };
        let has_made_some = made.evicted + made.given_back + forgotten > 0;
        let step = match made.is_enough {
            false if has_made_some => Step::More,
            false if !cost.must_be => Step::Stuck,
            _ => Step::Done,
        };
        match step {
            Step::Done => {
                for change in &mut *changes {
                    change.apply(&mut batch)?;
                }
            }
            Step::More => {}
            Step::Stuck => batch.recount()?,
        }
        batch.settle()?;
        if let (Step::Done, Some(before), false) = (&step, &before, cost.must_be) {
            let has_plenty = before.unused(&self.budget) / 4 > cost.pages + cost.files;
            if !has_plenty {
                let after = Taken::measure(&transaction, &self.path)?;
                if after.is_too_much(&self.budget) && after.all() > before.all() {
                    // It took more than it was taken for: all back, and more room at once.
                    cost.pages = cost.pages * 2 + (64 << 10);
                    return Ok(Step::More);
                }
            }
        }
        let is_shorter = batch.is_shorter;
        let dead = batch.into_dead();
        transaction.commit()?;
        drop(turn);
        self.evicted.fetch_add(made.evicted, Ordering::Relaxed);
        self.removed.clear();
        self.remove(dead);
        // Only a checkpoint makes the file shorter.
        if made.given_back > 0 {
            self.cut_log()?;
        } else if is_shorter {
            self.checkpoints.are_due(Why::FileIsShorter);
        }
        Ok(step)
    }

    /// Removes files that no entry has any more. Those that stay are tried again later.
    fn remove(&mut self, files: Vec<i64>) {
        for file in files {
            match self.folder.remove(file) {
                Ok(()) => self.removed.push(file),
                Err(error) => tracing::debug!(%error, "a file could not be removed"),
            }
        }
    }

    /// Has the log cut off before it can become longer than it may.
    fn spare_log(&mut self, cost: &Cost) -> rusqlite::Result<()> {
        let taken = length(&self.log).unwrap_or(0);
        // Beside the changes, one part of a transaction makes room for them.
        let grows = cost.log() + self.budget.log / 4;
        if taken + grows > self.budget.log && taken > 0 {
            self.cut_log()?;
            if !cost.must_be && length(&self.log).unwrap_or(0) + grows > self.budget.log {
                return Err(log_is_full());
            }
        } else if is_long(taken, self.budget.log, self.path.parent().unwrap_or(&self.path)) {
            self.checkpoints.are_due(Why::LogIsLong);
        }
        Ok(())
    }

    /// Has the log cut off now. Another checkpoint that is under way, and readers, are waited for,
    /// but not for long.
    fn cut_log(&self) -> rusqlite::Result<()> {
        let mut left = LOG_PATIENCE.as_millis() / LOG_PAUSE.as_millis();
        self.connection.busy_timeout(LOG_PAUSE)?;
        let cut = loop {
            match checkpoint(&self.connection, "TRUNCATE") {
                // SQLite does not wait for other checkpoints.
                Ok(false) if left > 0 => std::thread::sleep(LOG_PAUSE),
                other => break other,
            }
            left -= 1;
        };
        connection::wait_for_others(&self.connection)?;
        cut.map(drop)
    }

    /// The disk has no room, for whatever reason: gives back what can be given back. Says whether
    /// that is anything.
    fn retreat(&mut self) -> bool {
        let retreated = self.try_retreat();
        if let Err(error) = &retreated {
            tracing::debug!(%error, "nothing could be given back to a full disk");
        }
        retreated.unwrap_or(false)
    }

    fn try_retreat(&mut self) -> rusqlite::Result<bool> {
        self.cut_log()?;
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut batch = Batch::new(&transaction, self.touches.eviction, self.budget.ledger_lines);
        batch.forget(&self.removed)?;
        let gone = batch.evict(self.budget.log.min(1 << 20), 64)?;
        batch.give_back(self.budget.pages_at_once().min(256))?;
        batch.settle()?;
        let dead = batch.into_dead();
        transaction.commit()?;
        self.evicted.fetch_add(gone, Ordering::Relaxed);
        self.removed.clear();
        self.remove(dead);
        self.cut_log()?;
        Ok(gone > 0)
    }

    /// A connection that is spoiled is replaced, as soon as another one can be made.
    fn mend(&mut self, error: &rusqlite::Error) {
        let is_spoiled = matches!(
            error.sqlite_error_code(),
            Some(
                ErrorCode::SystemIoFailure
                    | ErrorCode::CannotOpen
                    | ErrorCode::ReadOnly
                    | ErrorCode::DatabaseCorrupt
                    | ErrorCode::NotADatabase
            )
        );
        if is_spoiled && let Ok(connection) = connection::writer(&self.path) {
            self.connection = connection;
        }
    }

    /// Leaves a database without a log to replay, if nobody else uses it.
    pub(super) fn close(mut self) {
        self.checkpoints.end();
        let noted = (|| {
            let transaction =
                self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut batch =
                Batch::new(&transaction, self.touches.eviction, self.budget.ledger_lines);
            batch.forget(&self.removed)?;
            batch.note_reads(&self.touches, READS_AT_ONCE)?;
            batch.settle()?;
            transaction.commit()
        })();
        if let Err(error) = noted.and_then(|()| checkpoint(&self.connection, "TRUNCATE")) {
            tracing::debug!(%error, "the log stays until the next start");
        }
    }
}

fn log_is_full() -> rusqlite::Error {
    let what = "somebody who reads for long keeps the write-ahead log from being emptied";
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
    rusqlite::Error::SqliteFailure(code, Some(what.to_owned()))
}

/// What [`make_room`] did.
#[derive(Default)]
struct Made {
    /// Entries that left.
    evicted: u64,
    /// Pages that were given back to the file system.
    given_back: u64,
    /// Whether the changes fit now.
    is_enough: bool,
}

/// Lets entries leave, as many as one transaction may.
fn make_room(
    batch: &mut Batch<'_>,
    taken: &Taken,
    measure: impl Fn() -> rusqlite::Result<Taken>,
    cost: &Cost,
    budget: &Budget,
    touches: &Touches,
) -> rusqlite::Result<Made> {
    let lacks = lack(taken, cost, budget, 0);
    let lacks_slack = lack(taken, cost, budget, budget.slack);
    if lacks_slack == 0 {
        return Ok(Made { is_enough: true, ..Made::default() });
    }
    batch.note_reads(touches, READS_AT_ONCE.min(budget.rows_at_once()))?;
    let bytes = if cost.files > 0 {
        lacks_slack
    } else {
        // The less is left, the more leave: pages are only free when all that is in them is gone.
        let left = budget.slack.saturating_sub(lacks_slack).max(budget.slack / MOST_FOR_ONE);
        let ahead = cost.pages * budget.slack / left.max(1);
        ahead.min(cost.pages * MOST_FOR_ONE).max(lacks)
    };
    let evicted = batch.evict(bytes, budget.rows_at_once())?;
    batch.tell_ranks(touches)?;
    batch.settle()?;
    let (mut given_back, mut now) = (0, measure()?);
    if cost.files > 0 && lack(&now, cost, budget, 0) > 0 && now.free > 0 {
        // Files cannot lie in free pages.
        given_back = (now.free / super::budget::PAGE).min(budget.pages_at_once());
        batch.give_back(given_back)?;
        now = measure()?;
    }
    Ok(Made { evicted, given_back, is_enough: lack(&now, cost, budget, 0) == 0 })
}

/// Bytes by which changes are too large for what is left, beside a slack.
fn lack(taken: &Taken, cost: &Cost, budget: &Budget, slack: u64) -> u64 {
    let beyond_free = (cost.pages + slack).saturating_sub(taken.free);
    (cost.files + beyond_free).saturating_sub(taken.unused(budget))
}
