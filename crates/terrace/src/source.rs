//! The **source's writer**: the caller's function that writes to the source, and what it is given.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{LoaderFailure, SharedError};
use crate::key::Key;
use crate::load::catch_panic;
use crate::policy::Backoff;
use crate::runtime::{BoxFuture, Runtime, unless};

/// What a writer is to write to the source: no key twice, in the order in which they were called
/// for. See [`SpaceBuilder::writer`](crate::SpaceBuilder::writer).
pub struct WriteBatch<K: ToOwned + ?Sized, V> {
    writes: Vec<Write<K, V>>,
}

/// One write of a [`WriteBatch`].
#[non_exhaustive]
pub struct Write<K: ToOwned + ?Sized, V> {
    /// The key.
    pub key: K::Owned,
    /// What is to become of it.
    pub change: Change<V>,
    /// The same each time that this write is tried, in whichever process.
    pub id: WriteId,
    /// How often it was tried before, as far as is known: 0 the first time. A process that was
    /// killed may have tried once more.
    pub failures: u32,
}

/// What a write does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<V> {
    /// The key gets this value.
    Insert(V),
    /// The key goes.
    Remove,
}

/// Tells a write from all others: a source that remembers the ids that it has seen can tell a
/// repeat from a new write.
///
/// Of two writes of one journal that were handed to a writer, the later one has the larger number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriteId {
    /// A random number that a journal draws when it is created.
    pub journal: u64,
    /// The number of the write in it.
    pub number: u64,
}

impl fmt::Display for WriteId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}-{}", self.journal, self.number)
    }
}

impl<K: ToOwned + ?Sized, V> WriteBatch<K, V> {
    /// The writes, the oldest first.
    #[must_use]
    pub fn writes(&self) -> &[Write<K, V>] {
        &self.writes
    }

    /// How many there are: at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.writes.len()
    }
}

impl<K: ToOwned + ?Sized, V> IntoIterator for WriteBatch<K, V> {
    type Item = Write<K, V>;
    type IntoIter = std::vec::IntoIter<Write<K, V>>;
    fn into_iter(self) -> Self::IntoIter {
        self.writes.into_iter()
    }
}

impl<K: ToOwned + ?Sized, V> fmt::Debug for WriteBatch<K, V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(&self.writes).finish()
    }
}

impl<K: ToOwned + ?Sized, V> fmt::Debug for Write<K, V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys may be secrets.
        formatter
            .debug_struct("Write")
            .field("id", &self.id)
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}

/// How a space writes to its source. See
/// [`SpaceBuilder::write_behind`](crate::SpaceBuilder::write_behind).
///
/// ```
/// use std::time::Duration;
/// use terrace::WriteBehind;
///
/// let often = WriteBehind::default().linger(Duration::from_millis(10)).max_batch(1_000);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteBehind {
    pub(crate) max_batch: usize,
    pub(crate) linger: Duration,
    pub(crate) deadline: Duration,
    pub(crate) attempts: u32,
    pub(crate) backoff: Backoff,
}

impl Default for WriteBehind {
    /// Batches of up to 100, handed over after 100 ms; 30 s for each; 10 attempts for each write,
    /// 100 ms apart at first, doubling to 30 s.
    fn default() -> Self {
        Self {
            max_batch: 100,
            linger: Duration::from_millis(100),
            deadline: Duration::from_secs(30),
            attempts: 10,
            backoff: Backoff::default(),
        }
    }
}

impl WriteBehind {
    /// The writer is given so many writes at most in one batch.
    #[must_use]
    pub fn max_batch(self, writes: usize) -> Self {
        Self { max_batch: writes.max(1), ..self }
    }

    /// A write waits so long for others that go with it, and for a newer one of its key to take
    /// its place.
    #[must_use]
    pub fn linger(self, time: Duration) -> Self {
        Self { linger: time, ..self }
    }

    /// The writer is given so long for a batch; then its future is dropped, which counts as a
    /// failure.
    #[must_use]
    pub fn deadline(self, time: Duration) -> Self {
        Self { deadline: time, ..self }
    }

    /// A write that has failed so often is a dead letter. A batch that fails as a whole counts for
    /// none of its writes: they are tried one by one from then on.
    #[must_use]
    pub fn attempts(self, attempts: u32) -> Self {
        Self { attempts: attempts.max(1), ..self }
    }

    /// How long to wait after a failure: `first`, then twice as long each time, up to `longest`,
    /// give or take a tenth at random.
    #[must_use]
    pub fn retry(self, first: Duration, longest: Duration) -> Self {
        Self { backoff: Backoff { first, longest }, ..self }
    }
}

type WriteFn<K, V> =
    dyn Fn(WriteBatch<K, V>) -> BoxFuture<'static, Result<(), SharedError>> + Send + Sync;

/// A space's writer, and how it stores keys until they are written.
pub(crate) struct Source<K: ToOwned + ?Sized, V> {
    write: Box<WriteFn<K, V>>,
    #[cfg(feature = "disk")]
    encode_key: fn(&K) -> Result<Vec<u8>, rmp_serde::encode::Error>,
    #[cfg(feature = "disk")]
    decode_key: fn(&[u8]) -> Result<K::Owned, rmp_serde::decode::Error>,
    pub(crate) settings: WriteBehind,
    /// Begins to hand out what is written behind.
    #[cfg(feature = "disk")]
    pub(crate) start: fn(crate::journal::drain::Drain<K, V>) -> BoxFuture<'static, ()>,
}

impl<K, V> Source<K, V>
where
    K: Key + ?Sized + 'static,
    K::Owned: Serialize + DeserializeOwned + Send,
    V: Send + Sync + 'static,
{
    pub(crate) fn new<F, Fut, E>(write: F) -> Self
    where
        F: Fn(WriteBatch<K, V>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: LoaderFailure,
    {
        Self {
            write: Box::new(move |batch| {
                let writing = write(batch);
                Box::pin(
                    async move { writing.await.map_err(|error| Arc::new(error) as SharedError) },
                )
            }),
            #[cfg(feature = "disk")]
            encode_key: |key| rmp_serde::to_vec_named(&key.to_owned()),
            #[cfg(feature = "disk")]
            decode_key: |bytes| rmp_serde::from_slice(bytes),
            settings: WriteBehind::default(),
            #[cfg(feature = "disk")]
            start: |drain| Box::pin(drain.run()),
        }
    }
}

/// Why a writer did not write.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum NotWritten {
    #[error("{0}")]
    Failed(SharedError),
    #[error("the writer panicked")]
    Panicked,
    #[error("the writer took longer than {0:?}")]
    Deadline(Duration),
}

impl<K: ToOwned + ?Sized, V> Source<K, V> {
    pub(crate) fn with(self, settings: WriteBehind) -> Self {
        Self { settings, ..self }
    }

    /// Runs the writer under its deadline; what it panics with stays here.
    pub(crate) async fn write(
        &self,
        runtime: &dyn Runtime,
        writes: Vec<Write<K, V>>,
    ) -> Result<(), NotWritten> {
        let deadline = self.settings.deadline;
        let begun = catch_unwind(AssertUnwindSafe(|| (self.write)(WriteBatch { writes })));
        let Ok(writing) = begun else { return Err(NotWritten::Panicked) };
        match unless(|| runtime.sleep(deadline), catch_panic(writing)).await {
            Some(Ok(written)) => written.map_err(NotWritten::Failed),
            Some(Err(_)) => Err(NotWritten::Panicked),
            None => Err(NotWritten::Deadline(deadline)),
        }
    }

    /// The key as it is kept until it is written; `None` if its type cannot be encoded.
    #[cfg(feature = "disk")]
    pub(crate) fn encode_key(&self, key: &K) -> Option<Vec<u8>> {
        catch_unwind(AssertUnwindSafe(|| (self.encode_key)(key))).ok()?.ok()
    }

    #[cfg(feature = "disk")]
    pub(crate) fn decode_key(&self, bytes: &[u8]) -> Option<K::Owned> {
        catch_unwind(AssertUnwindSafe(|| (self.decode_key)(bytes))).ok()?.ok()
    }
}
