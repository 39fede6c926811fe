//! The **tier**: a store in the stack, with its guard, limits, codec and counters.
//!
//! What leaves a tier is an entry that may be served; everything else that can
//! happen below (no answer, damage, another format, the wrong key) is a miss here,
//! counted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Clock;
use crate::codec::Codec;
use crate::compress::Compression;
use crate::error::{BuildError, Error};
use crate::frame::{self, Frame, Header};
use crate::guard::{Deadlines, within};
use crate::key::StoredKey;
use crate::runtime::Runtime;
use crate::stats::{TrafficCounters, bump};
use crate::store::{Put, Scope, Store, StoreError, StoreResult, Stored};

/// Settings of a tier below memory.
///
/// A [`Disk`](crate::Disk) and a [`Redis`](crate::Redis) turn into one by themselves; any other
/// store is given with [`Tier::of`].
///
/// ```no_run
/// # async fn example() -> Result<(), terrace::BuildError> {
/// use std::time::Duration;
/// use terrace::{Codec, Compression, Disk, Terrace, Tier};
///
/// let disk = Tier::from(Disk::at("/var/cache/shop"))
///     .max_ttl(Duration::from_secs(86_400))
///     .compression(Compression::default().level(3).from_bytes(1024))
///     .codec(Codec::Json);
/// let terrace = Terrace::builder().tier("disk", disk).build().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Tier {
    pub(crate) origin: Origin,
    pub(crate) max_ttl: Option<Duration>,
    pub(crate) max_value_bytes: usize,
    pub(crate) compression: Compression,
    pub(crate) codec: Option<Codec>,
    pub(crate) deadlines: Deadlines,
}

/// Where a tier's store comes from.
#[derive(Debug)]
pub(crate) enum Origin {
    Store(Arc<dyn Store>),
    #[cfg(feature = "disk")]
    Disk(crate::Disk),
    #[cfg(feature = "redis")]
    Redis(crate::Redis),
}

impl Origin {
    #[allow(unused_variables, clippy::unnecessary_wraps, reason = "stores can be left out")]
    fn open(
        self,
        max_value_bytes: usize,
        clock: &Arc<dyn Clock>,
    ) -> Result<Arc<dyn Store>, BuildError> {
        // The tier's limit is for values, and stores see frames.
        let largest = max_value_bytes.saturating_add(LARGEST_HEADER);
        match self {
            Self::Store(store) => Ok(store),
            #[cfg(feature = "disk")]
            Self::Disk(disk) => Ok(Arc::new(disk.max_value_bytes(largest).open()?)),
            #[cfg(feature = "redis")]
            Self::Redis(redis) => {
                Ok(Arc::new(redis.max_value_bytes(largest).open(Arc::clone(clock))?))
            }
        }
    }
}

/// What a frame has beside its value: a key of up to 64 KiB and 64 tags at most.
const LARGEST_HEADER: usize = 256 << 10;

/// Values larger than this are not stored in a tier unless it says otherwise.
const LARGEST_VALUE: usize = 64 << 20;

impl Tier {
    /// A tier over a store of your own.
    #[must_use]
    pub fn of(store: impl Store) -> Self {
        Self::shared(Arc::new(store))
    }

    /// A tier over a store that is shared with others.
    #[must_use]
    pub fn shared(store: Arc<dyn Store>) -> Self {
        Self::with(Origin::Store(store), LARGEST_VALUE)
    }

    fn with(origin: Origin, max_value_bytes: usize) -> Self {
        Self {
            origin,
            max_ttl: None,
            max_value_bytes,
            compression: Compression::default(),
            codec: None,
            deadlines: Deadlines::default(),
        }
    }

    /// Entries are fresh in this tier for at most `max_ttl`, whatever their space says.
    #[must_use]
    pub fn max_ttl(self, max_ttl: Duration) -> Self {
        Self { max_ttl: Some(max_ttl), ..self }
    }

    /// Larger values, before compression, are not stored here, and not read either.
    #[must_use]
    pub fn max_value_bytes(self, max_value_bytes: usize) -> Self {
        Self { max_value_bytes, ..self }
    }

    /// When and how hard to compress.
    #[must_use]
    pub fn compression(self, compression: Compression) -> Self {
        Self { compression, ..self }
    }

    /// How values of serde types are encoded here, whatever their space prefers.
    /// Values of raw spaces stay raw.
    #[must_use]
    pub fn codec(self, codec: Codec) -> Self {
        Self { codec: Some(codec), ..self }
    }

    /// How long a read and a write may take: 1 s and 10 s unless set, 100 ms and 250 ms for Redis.
    #[must_use]
    pub fn deadlines(self, read: Duration, write: Duration) -> Self {
        Self { deadlines: Deadlines { read, write }, ..self }
    }

    pub(crate) fn open(
        self,
        name: Arc<str>,
        clock: &Arc<dyn Clock>,
    ) -> Result<OpenTier, BuildError> {
        let store = self.origin.open(self.max_value_bytes, clock)?;
        Ok(OpenTier {
            name,
            scope: store.scope(),
            store,
            is_authority: false,
            max_ttl: self.max_ttl,
            max_value_bytes: self.max_value_bytes,
            compression: self.compression,
            codec: self.codec,
            deadlines: self.deadlines,
        })
    }
}

#[cfg(feature = "disk")]
impl From<crate::Disk> for Tier {
    fn from(disk: crate::Disk) -> Self {
        let max_value_bytes = disk.max_value_bytes;
        Self::with(Origin::Disk(disk), max_value_bytes)
    }
}

#[cfg(feature = "redis")]
impl From<crate::Redis> for Tier {
    fn from(redis: crate::Redis) -> Self {
        let max_value_bytes = redis.max_value_bytes;
        Self::with(Origin::Redis(redis), max_value_bytes)
            .deadlines(Duration::from_millis(100), Duration::from_millis(250))
    }
}

/// A tier in use.
#[derive(Debug)]
pub(crate) struct OpenTier {
    pub(crate) name: Arc<str>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) scope: Scope,
    /// Whether the ledger lives in this tier's store.
    pub(crate) is_authority: bool,
    pub(crate) max_ttl: Option<Duration>,
    pub(crate) max_value_bytes: usize,
    pub(crate) compression: Compression,
    pub(crate) codec: Option<Codec>,
    pub(crate) deadlines: Deadlines,
}

impl OpenTier {
    /// The frames under `keys` that can be read and are what was asked for.
    ///
    /// `wanted` are the callers' own keys, which each frame repeats. The tier is given `left`
    /// and no more than its own deadline. A failure is counted and returned.
    pub(crate) async fn read(
        &self,
        runtime: &dyn Runtime,
        counters: &TrafficCounters,
        keys: &[StoredKey],
        wanted: &[&[u8]],
        left: Option<Duration>,
    ) -> Result<Vec<Option<Frame>>, StoreError> {
        let deadline = left.map_or(self.deadlines.read, |left| left.min(self.deadlines.read));
        let frames = within(runtime, deadline, "read from a tier", self.store.get(keys))
            .await
            .inspect_err(|error| self.count_error(counters, error))?;
        let frames = frames.into_iter().zip(wanted);
        Ok(frames.map(|(frame, wanted)| self.check(counters, &frame?, wanted)).collect())
    }

    fn check(&self, counters: &TrafficCounters, bytes: &Bytes, wanted: &[u8]) -> Option<Frame> {
        match frame::decode(bytes, self.max_value_bytes) {
            // Two long keys with one hash: the other one's value is not ours.
            Ok(frame) if frame.header.key != wanted => None,
            Ok(mut frame) => {
                frame.header.shift(self.store.clock_ahead().saturating_neg());
                Some(frame)
            }
            Err(error) => {
                bump(&counters.unreadable);
                tracing::debug!(tier = %self.name, %error, "unreadable: counts as a miss");
                None
            }
        }
    }

    /// The frame of a value, as this tier keeps it.
    pub(crate) fn encode(&self, mut header: Header, value: Vec<u8>) -> Bytes {
        header.shift(self.store.clock_ahead());
        frame::encode(&header, value, self.compression)
    }

    /// Writes frames; a failure is counted and returned.
    pub(crate) async fn write(
        &self,
        runtime: &dyn Runtime,
        counters: &TrafficCounters,
        puts: &[Put],
    ) -> Result<Vec<Stored>, StoreError> {
        let exchange = self.store.put(puts);
        let stored = within(runtime, self.deadlines.write, "write to a tier", exchange)
            .await
            .inspect_err(|error| self.count_error(counters, error))?;
        let written = stored.iter().filter(|stored| **stored == Stored::Yes).count() as u64;
        counters.writes.fetch_add(written, Ordering::Relaxed);
        counters.refused.fetch_add(stored.len() as u64 - written, Ordering::Relaxed);
        Ok(stored)
    }

    /// Removes keys; a failure is counted and returned.
    pub(crate) async fn remove(
        &self,
        runtime: &dyn Runtime,
        counters: &TrafficCounters,
        keys: &[StoredKey],
    ) -> Result<Vec<bool>, StoreError> {
        let exchange = self.store.remove(keys);
        let gone = within(runtime, self.deadlines.write, "remove from a tier", exchange)
            .await
            .inspect_err(|error| self.count_error(counters, error))?;
        let removed = gone.iter().filter(|gone| **gone).count() as u64;
        counters.removed.fetch_add(removed, Ordering::Relaxed);
        Ok(gone)
    }

    /// The answer to anything else than a read, or an error once the deadline for
    /// writes has passed.
    pub(crate) async fn ask<T>(
        &self,
        runtime: &dyn Runtime,
        answer: StoreResult<'_, T>,
    ) -> Result<T, StoreError> {
        within(runtime, self.deadlines.write, "ask a tier", answer).await
    }

    /// The failure as callers see it who want to.
    pub(crate) fn failed(&self, error: StoreError) -> Error {
        Error::Tier { tier: Arc::clone(&self.name), source: Arc::new(error) }
    }

    pub(crate) fn count_error(&self, counters: &TrafficCounters, error: &StoreError) {
        bump(&counters.errors);
        tracing::warn!(tier = %self.name, %error, "a tier failed: the next one answers");
    }
}
