//! **Large values**: each in a file of its own, beside its row in the database.
//!
//! The file is reserved by a row first, so that it is counted before it is there; then it is
//! written, under a random name that nobody else knows; then the entry refers to it. Whatever
//! stops that half-way leaves a row that says which file is to be removed.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::batch::Batch;
use super::budget::{Cost, file_bytes, row_bytes};
use super::folder::Folder;
use super::{Shared, ledger, row_of, unsigned};
use crate::key::StoredKey;
use crate::runtime::off_thread;
use crate::store::{Put, StoreError, StoreErrorKind, Stored};

const WRITING: &str = "write to the disk tier";

const READING: &str = "read from the disk tier";

/// Files of more bytes than this are read on the caller's thread only if the operating system has
/// them in its cache, and those of more than the second never: what the way to another thread costs
/// is nothing beside a disk that is slow, and beside reading so much.
const READ_IF_CACHED: u64 = 128 << 10;
const READ_ELSEWHERE: u64 = 2 << 20;

/// How often a file may be replaced while it is looked for.
const LOOKS: usize = 8;

/// What is under a key.
pub(super) enum Found {
    Nothing,
    Inline(Bytes),
    File { number: i64, length: u64 },
}

impl Found {
    fn file_length(&self) -> u64 {
        match self {
            Self::File { length, .. } => *length,
            _ => 0,
        }
    }

    fn is_cached(&self, folder: &Folder) -> bool {
        match *self {
            Self::File { number, length } => folder.is_cached(number, length),
            _ => true,
        }
    }
}

/// What is in a row: its file, if it has one, or its frame. The file's length is in its own row.
pub(super) fn found(
    connection: &Connection,
    file: Option<i64>,
    frame: impl FnOnce() -> rusqlite::Result<Vec<u8>>,
) -> rusqlite::Result<Found> {
    let Some(number) = file else { return Ok(Found::Inline(frame()?.into())) };
    let length: Option<i64> = connection
        .prepare_cached("SELECT bytes FROM file WHERE id = ?1")?
        .query_row([number], |row| row.get(0))
        .optional()?;
    Ok(length.map_or(Found::Nothing, |length| Found::File { number, length: unsigned(length) }))
}

/// Looks a key up, and notes that it was read.
fn look_up(shared: &Shared, connection: &Connection, key: &StoredKey) -> rusqlite::Result<Found> {
    let id = row_of(key);
    let mut statement = connection
        .prepare_cached("SELECT rank, file, frame FROM entry WHERE id = ?1 AND key = ?2")?;
    let mut rows = statement.query(params![id, key.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(Found::Nothing) };
    shared.touches.note(id, row.get(0)?);
    found(connection, row.get(1)?, || row.get(2))
}

/// The frames under `keys`: on the caller's thread, unless there is much to read from files.
pub(super) async fn get(
    shared: &Arc<Shared>,
    keys: &[StoredKey],
) -> Result<Vec<Option<Bytes>>, StoreError> {
    let found = shared.read(READING, |connection| {
        keys.iter().map(|key| look_up(shared, connection, key)).collect::<Result<Vec<_>, _>>()
    })?;
    let bytes = found.iter().map(Found::file_length).sum::<u64>();
    let is_cached = || found.iter().all(|found| found.is_cached(&shared.folder));
    if bytes <= READ_IF_CACHED || bytes <= READ_ELSEWHERE && is_cached() {
        return read_all(shared, keys, found);
    }
    let (shared, keys) = (Arc::clone(shared), keys.to_vec());
    let read = off_thread(move || read_all(&shared, &keys, found)).await;
    read.unwrap_or_else(|| Err(StoreError::new(StoreErrorKind::Closed, READING)))
}

fn read_all(
    shared: &Shared,
    keys: &[StoredKey],
    found: Vec<Found>,
) -> Result<Vec<Option<Bytes>>, StoreError> {
    let read = keys.iter().zip(found).map(|(key, found)| read(shared, key, found));
    read.collect()
}

fn read(shared: &Shared, key: &StoredKey, mut found: Found) -> Result<Option<Bytes>, StoreError> {
    for _ in 0..LOOKS {
        let (number, length) = match found {
            Found::Nothing => return Ok(None),
            Found::Inline(frame) => return Ok(Some(frame)),
            Found::File { number, length } => (number, length),
        };
        if let Some(frame) = read_file(&shared.folder, number, length)? {
            return Ok(Some(frame));
        }
        // It was removed since: there is another value, or none.
        let again = shared.read(READING, |connection| look_up(shared, connection, key))?;
        if matches!(again, Found::File { number: same, .. } if same == number) {
            return Ok(None);
        }
        found = again;
    }
    Ok(None)
}

pub(super) fn read_file(
    folder: &Folder,
    number: i64,
    length: u64,
) -> Result<Option<Bytes>, StoreError> {
    let read = folder.read(number, length).map_err(|error| file_failed(READING, error))?;
    Ok(read.map(Bytes::from))
}

/// The files that this process is writing: reserved, and no leftovers.
pub(super) type Underway = Mutex<HashSet<i64>>;

/// What a frame is to be stored as.
enum Place {
    Row,
    File(i64),
    /// It is not stored.
    Nowhere(Stored),
}

/// Stores frames of which at least one goes into a file. Blocks its thread.
pub(super) fn put(shared: &Arc<Shared>, puts: &[Put]) -> Result<Vec<Stored>, StoreError> {
    let numbers: Vec<Option<i64>> = puts
        .iter()
        .map(|put| shared.is_for_file(put).then(|| Folder::number(shared.budget.shards)))
        .collect();
    let underway = Registered::new(shared, numbers.iter().flatten().copied().collect());
    let stored = put_reserved(shared, puts, &numbers);
    if stored.is_err() {
        let given_up = underway.numbers.clone();
        // What is left by this is found by the housekeeping.
        let _ = shared.writer.run_blocking(WRITING, Cost::rows(given_up.len()), move |batch| {
            given_up.iter().try_for_each(|number| batch.give_up(*number))
        });
    }
    stored
}

fn put_reserved(
    shared: &Arc<Shared>,
    puts: &[Put],
    numbers: &[Option<i64>],
) -> Result<Vec<Stored>, StoreError> {
    let places = reserve(shared, puts, numbers)?;
    for (put, place) in puts.iter().zip(&places) {
        if let Place::File(number) = place {
            let written = shared.folder.write(*number, &put.frame);
            written.map_err(|error| file_failed(WRITING, error))?;
        }
    }
    let is_judge = shared.is_judge();
    let cost = puts.iter().zip(&places).fold(Cost::default(), |sum, (put, place)| {
        let inline = if matches!(place, Place::Row) { put.frame.len() } else { 0 };
        sum.and(cost_of_row(put, inline))
    });
    let puts = puts.to_vec();
    let stored: Vec<Option<Stored>> = shared.writer.run_blocking(WRITING, cost, move |batch| {
        puts.iter().zip(&places).map(|(put, place)| store(batch, put, place, is_judge)).collect()
    })?;
    stored.into_iter().collect::<Option<_>>().ok_or_else(|| {
        let lost = io::Error::other("a file was taken for left over before it was in use");
        StoreError::new(StoreErrorKind::Other, WRITING).caused_by(lost)
    })
}

/// Rows of files that are counted from now on, of frames that would be stored now.
fn reserve(
    shared: &Arc<Shared>,
    puts: &[Put],
    numbers: &[Option<i64>],
) -> Result<Vec<Place>, StoreError> {
    let is_judge = shared.is_judge();
    let largest = shared.largest();
    let mut cost = Cost::rows(puts.len());
    for (put, number) in puts.iter().zip(numbers) {
        if number.is_some() {
            cost.files += file_bytes(put.frame.len() as u64);
        }
    }
    let (puts, numbers) = (puts.to_vec(), numbers.to_vec());
    shared.writer.run_blocking(WRITING, cost, move |batch| {
        let place = |(put, number): (&Put, &Option<i64>)| {
            if put.frame.len() as u64 > largest {
                return Ok(Place::Nowhere(Stored::TooLarge));
            }
            let Some(number) = *number else { return Ok(Place::Row) };
            if is_judge && !ledger::permits(batch.connection, put)? {
                return Ok(Place::Nowhere(Stored::Refused));
            }
            batch.reserve(number, put.frame.len() as u64)?;
            Ok(Place::File(number))
        };
        puts.iter().zip(&numbers).map(place).collect()
    })
}

/// Stores a frame in its place, if the ledger permits; none if its file is not reserved any more.
fn store(
    batch: &mut Batch<'_>,
    put: &Put,
    place: &Place,
    is_judge: bool,
) -> rusqlite::Result<Option<Stored>> {
    let number = match place {
        Place::Nowhere(Stored::TooLarge) => {
            // What was there before must not outlive what replaces it.
            batch.delete(&put.key)?;
            return Ok(Some(Stored::TooLarge));
        }
        Place::Nowhere(stored) => return Ok(Some(*stored)),
        Place::Row => None,
        Place::File(number) => Some(*number),
    };
    if is_judge && !ledger::permits(batch.connection, put)? {
        if let Some(number) = number {
            batch.give_up(number)?;
        }
        return Ok(Some(Stored::Refused));
    }
    Ok(batch.insert(put, number)?.then_some(Stored::Yes))
}

/// What storing a frame adds, of which so many bytes are in its row.
pub(super) fn cost_of_row(put: &Put, inline: usize) -> Cost {
    let pages = row_bytes(put.key.as_str().len() as u64, inline as u64);
    Cost { rows: 1, pages, ..Cost::default() }
}

/// Stores frames that all go into their rows, or are too large for any place.
pub(super) fn put_rows(
    batch: &mut Batch<'_>,
    puts: &[Put],
    largest: u64,
    is_judge: bool,
) -> rusqlite::Result<Vec<Stored>> {
    puts.iter().map(|put| put_row(batch, put, largest, is_judge)).collect()
}

/// The same with one.
pub(super) fn put_row(
    batch: &mut Batch<'_>,
    put: &Put,
    largest: u64,
    is_judge: bool,
) -> rusqlite::Result<Stored> {
    let is_too_large = put.frame.len() as u64 > largest;
    let place = if is_too_large { Place::Nowhere(Stored::TooLarge) } else { Place::Row };
    // Nothing but a file that is lost has no answer, and here is none.
    Ok(store(batch, put, &place, is_judge)?.unwrap_or(Stored::Refused))
}

/// Numbers that are among those under way for as long as this lives.
struct Registered<'a> {
    shared: &'a Shared,
    numbers: Vec<i64>,
}

impl<'a> Registered<'a> {
    fn new(shared: &'a Shared, numbers: Vec<i64>) -> Self {
        shared.underway.lock().extend(&numbers);
        Self { shared, numbers }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let mut underway = self.shared.underway.lock();
        for number in &self.numbers {
            underway.remove(number);
        }
    }
}

/// What went wrong with a file.
fn file_failed(doing: &'static str, error: io::Error) -> StoreError {
    use io::ErrorKind as Kind;
    let kind = match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => StoreErrorKind::Full,
        Kind::PermissionDenied => StoreErrorKind::Denied,
        Kind::ReadOnlyFilesystem => StoreErrorKind::Unavailable,
        _ => StoreErrorKind::Other,
    };
    StoreError::new(kind, doing).caused_by(error)
}
