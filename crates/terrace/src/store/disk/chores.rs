//! The **chores** of a disk store: what is done every second, a bounded piece at a time.
//!
//! Expired entries go, and so do files that no entry has: those of values that were replaced, of
//! writers that were killed, and those that the database knows nothing of. Free pages are given
//! back to the file system. A chore that finds nothing to do writes nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::Connection;

use super::batch::{Batch, Leftovers};
use super::budget::{Cost, PAGE, Taken};
use super::{Shared, signed};
use crate::clock::WallTime;
use crate::store::StoreError;

const SWEEPING: &str = "sweep the disk tier";

/// A file that is reserved, and not by this process, is left over if it is so for this long.
const ABANDONED: Duration = Duration::from_secs(600);

/// Transactions that delete what has expired, at once.
const SWEEPS_AT_ONCE: usize = 6;

/// Files that are removed at once.
const FILES_AT_ONCE: usize = 256;

/// Directories that are looked through at once, until each was looked through.
const SHARDS_AT_ONCE: u32 = 16;

/// What the chores know of the last time.
#[derive(Debug, Default)]
pub(super) struct Chores {
    /// Since when a file was seen to be reserved by others.
    reserved: Mutex<HashMap<i64, WallTime>>,
    /// Directories that were looked through.
    looked: AtomicU32,
}

/// Does a piece of each chore. Blocks its thread.
pub(super) fn do_some(shared: &Shared, now: WallTime) -> Result<(), StoreError> {
    for _ in 0..SWEEPS_AT_ONCE {
        if !sweep(shared, now)? {
            break;
        }
    }
    note_reads(shared)?;
    remove_leftovers(shared, now)?;
    if let Err(error) = remove_strangers(shared) {
        tracing::debug!(%error, "files that belong to nobody could not be looked for");
    }
    give_back(shared)
}

/// Deletes what has expired, as much as one transaction may; says whether there was anything.
fn sweep(shared: &Shared, now: WallTime) -> Result<bool, StoreError> {
    // An empty sweep would still be a write: look first.
    let due = shared.read("look for expired entries", |connection| {
        connection
            .prepare_cached(
                "SELECT 1 WHERE EXISTS (SELECT 1 FROM entry WHERE expires <= ?1)
                 OR EXISTS (SELECT 1 FROM counter WHERE expires <= ?1)
                 OR EXISTS (SELECT 1 FROM lease WHERE until <= ?1)",
            )?
            .exists([signed(now.as_millis())])
    })?;
    if due {
        let most = shared.budget.rows_at_once();
        shared.write_blocking(SWEEPING, Cost::rows(most), move |batch| batch.sweep(now, most))?;
    }
    Ok(due)
}

fn note_reads(shared: &Shared) -> Result<(), StoreError> {
    if !shared.touches.are_many() {
        return Ok(());
    }
    let (touches, most) = (shared.touches.clone(), shared.budget.rows_at_once());
    shared.write_blocking(SWEEPING, Cost::rows(most), move |batch| batch.note_reads(&touches, most))
}

/// Removes files that were given up, and gives up those that nobody will write any more.
fn remove_leftovers(shared: &Shared, now: WallTime) -> Result<(), StoreError> {
    let Leftovers { mut dead, reserved } = shared
        .read("look for files that are left over", |connection| {
            Batch::leftovers(connection, FILES_AT_ONCE)
        })?;
    let abandoned = shared.chores.abandoned(shared, reserved, now);
    // Those that cannot be removed stay, and are counted.
    dead.retain(|file| shared.folder.remove(*file).is_ok());
    if dead.is_empty() && abandoned.is_empty() {
        return Ok(());
    }
    let cost = Cost::rows(dead.len() + abandoned.len());
    shared.write_blocking(SWEEPING, cost, move |batch| {
        batch.forget(&dead)?;
        abandoned.iter().try_for_each(|file| batch.give_up(*file))
    })
}

impl Chores {
    /// Which of the reserved files nobody is going to write.
    fn abandoned(&self, shared: &Shared, reserved: Vec<i64>, now: WallTime) -> Vec<i64> {
        let underway = shared.underway.lock();
        let others: Vec<_> = reserved.into_iter().filter(|file| !underway.contains(file)).collect();
        drop(underway);
        let mut seen = self.reserved.lock();
        seen.retain(|file, _| others.contains(file));
        let is_abandoned = |file: &i64| {
            let since = *seen.entry(*file).or_insert(now);
            now.as_millis().saturating_sub(since.as_millis())
                >= u64::try_from(ABANDONED.as_millis()).unwrap_or(u64::MAX)
        };
        others.into_iter().filter(is_abandoned).collect()
    }
}

/// Removes files that no row knows, which a power failure may leave, and folders of databases that
/// were set aside.
fn remove_strangers(shared: &Shared) -> std::io::Result<()> {
    shared.folder.remove_others(FILES_AT_ONCE)?;
    let looked = shared.chores.looked.load(Ordering::Relaxed);
    let at_once = if looked < 256 { SHARDS_AT_ONCE } else { 1 };
    for number in looked..looked + at_once {
        // A row is there before its file, and as long as it: look for rows after the files.
        let files = shared.folder.list(u8::try_from(number % 256).unwrap_or(0))?;
        let is_stranger = |connection: &Connection, file: &i64| -> rusqlite::Result<bool> {
            Batch::knows(connection, *file).map(|is_known| !is_known)
        };
        let strangers = shared.read("look for files of nobody", |connection| {
            let mut strangers = Vec::new();
            for file in files {
                if is_stranger(connection, &file)? {
                    strangers.push(file);
                }
            }
            Ok(strangers)
        });
        for file in strangers.map_err(std::io::Error::other)? {
            shared.folder.remove(file)?;
        }
    }
    // Round and round, and never slow at the start again.
    let next = looked + at_once;
    shared.chores.looked.store(if next >= 512 { 256 } else { next }, Ordering::Relaxed);
    Ok(())
}

/// Gives free pages back, beyond those that are kept to write in, and makes room if there is less
/// than there should be: somebody else may have had a larger budget.
fn give_back(shared: &Shared) -> Result<(), StoreError> {
    let path = shared.path.clone();
    let taken = shared
        .read("measure the disk tier", move |connection| Taken::measure(connection, &path))?;
    let over = taken.all().saturating_sub(shared.budget.data);
    let excess = taken.free.saturating_sub(shared.budget.slack).max(over.min(taken.free));
    if excess == 0 && over == 0 {
        return Ok(());
    }
    let (leaves, rows) = (over.saturating_sub(taken.free), shared.budget.rows_at_once());
    let pages = (excess / PAGE).min(shared.budget.pages_at_once());
    let gone = shared.write_blocking(SWEEPING, Cost::rows(rows), move |batch| {
        let gone = if leaves > 0 { batch.evict(leaves, rows)? } else { 0 };
        if pages > 0 {
            batch.give_back(pages)?;
        }
        Ok(gone)
    })?;
    shared.evicted.fetch_add(gone, Ordering::Relaxed);
    Ok(())
}
