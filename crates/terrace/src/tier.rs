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
use crate::frame::{self, Frame, FrameError, Header};
use crate::guard::{Breaker, Deadlines, Guard, Limits, is_refusal};
use crate::key::StoredKey;
use crate::mac::{MacKeys, Signer};
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
    pub(crate) limits: Limits,
}

/// Where a tier's store comes from.
#[derive(Debug)]
pub(crate) enum Origin {
    Store(Arc<dyn Store>),
    #[cfg(feature = "disk")]
    Disk(crate::Disk),
    #[cfg(feature = "redis")]
    Redis(Box<crate::Redis>),
}

impl Origin {
    fn is_disk(&self) -> bool {
        #[cfg(feature = "disk")]
        return matches!(self, Self::Disk(_));
        #[cfg(not(feature = "disk"))]
        false
    }

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
            limits: Limits::default(),
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
        let deadlines = Deadlines { read, write };
        Self { limits: Limits { deadlines, ..self.limits }, ..self }
    }

    /// When the store is left alone because it is away or slow: see [`Breaker`].
    #[must_use]
    pub fn breaker(self, breaker: Breaker) -> Self {
        Self { limits: Limits { breaker, ..self.limits }, ..self }
    }

    /// Exchanges with the store that may be under way at once: 1,024 unless set. More of them
    /// wait for no longer than their deadline, and fail at once when 10,000 wait already.
    ///
    /// Lower it for a store that many exchanges at once slow down. Below what the load needs,
    /// reads become misses, and invalidations pending.
    #[must_use]
    pub fn concurrency(self, exchanges: usize) -> Self {
        Self { limits: Limits { concurrency: exchanges, ..self.limits }, ..self }
    }

    pub(crate) fn open(
        self,
        name: Arc<str>,
        mac: Option<Arc<MacKeys>>,
        clock: &Arc<dyn Clock>,
        runtime: &Arc<dyn Runtime>,
    ) -> Result<OpenTier, BuildError> {
        // One thread writes to a disk: what its checkpoint delays, it delays all at once.
        let never_slow = self.origin.is_disk();
        let store = self.origin.open(self.max_value_bytes, clock)?;
        let (clock, runtime) = (Arc::clone(clock), Arc::clone(runtime));
        Ok(OpenTier {
            guard: Guard::new(Arc::clone(&name), self.limits, never_slow, clock, runtime),
            name,
            scope: store.scope(),
            store,
            is_authority: false,
            max_ttl: self.max_ttl,
            max_value_bytes: self.max_value_bytes,
            compression: self.compression,
            codec: self.codec,
            mac,
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
        Self::with(Origin::Redis(Box::new(redis)), max_value_bytes)
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
    /// By which frames are signed, if they are.
    pub(crate) mac: Option<Arc<MacKeys>>,
    pub(crate) guard: Guard,
}

impl OpenTier {
    /// What lies under `keys`, for [`check`](Self::check) to look at.
    ///
    /// The tier is given `left` and no more than its own deadline. A failure is counted and
    /// returned.
    pub(crate) async fn read(
        &self,
        counters: &TrafficCounters,
        keys: &[StoredKey],
        left: Option<Duration>,
    ) -> Result<Vec<Option<Bytes>>, StoreError> {
        let exchange = || self.store.get(keys);
        let read = self.guard.read("read from a tier", left, exchange).await;
        read.inspect_err(|error| self.count_error(counters, error))
    }

    /// The frame in what lies under `key`, if it can be read and is what was asked for: `wanted`
    /// is the caller's own key, which each frame repeats.
    pub(crate) fn check(
        &self,
        counters: &TrafficCounters,
        key: &StoredKey,
        bytes: &Bytes,
        wanted: &[u8],
    ) -> Option<Frame> {
        match self.decode(key, bytes, self.max_value_bytes) {
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

    /// The frame of a value, as this tier keeps it under `key`.
    pub(crate) fn encode(&self, key: &StoredKey, mut header: Header, value: Bytes) -> Bytes {
        header.shift(self.store.clock_ahead());
        frame::encode_signed(&header, value, self.compression, self.signer(key))
    }

    /// The frame in what this tier keeps under `key`, with its times by the tier's clock.
    pub(crate) fn decode(
        &self,
        key: &StoredKey,
        bytes: &Bytes,
        limit: usize,
    ) -> Result<Frame, FrameError> {
        frame::decode_signed(bytes, limit, self.signer(key))
    }

    /// Whether frames have a MAC here.
    pub(crate) fn is_signed(&self) -> bool {
        self.mac.is_some()
    }

    fn signer<'a>(&'a self, key: &'a StoredKey) -> Option<Signer<'a>> {
        let keys = self.mac.as_deref()?;
        Some(Signer { keys, place: key.as_str() })
    }

    /// Writes frames; a failure is counted and returned.
    pub(crate) async fn write(
        &self,
        counters: &TrafficCounters,
        puts: &[Put],
    ) -> Result<Vec<Stored>, StoreError> {
        let exchange = || self.store.put(puts);
        let stored = self
            .guard
            .write("write to a tier", exchange)
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
        counters: &TrafficCounters,
        keys: &[StoredKey],
    ) -> Result<Vec<bool>, StoreError> {
        let exchange = || self.store.remove(keys);
        let gone = self
            .guard
            .write("remove from a tier", exchange)
            .await
            .inspect_err(|error| self.count_error(counters, error))?;
        let removed = gone.iter().filter(|gone| **gone).count() as u64;
        counters.removed.fetch_add(removed, Ordering::Relaxed);
        Ok(gone)
    }

    /// The answer to anything else, however long it takes within the deadline for writes.
    pub(crate) async fn ask<'a, T>(
        &self,
        question: impl FnOnce() -> StoreResult<'a, T>,
    ) -> Result<T, StoreError> {
        self.guard.chore("ask a tier", question).await
    }

    /// The failure as callers see it who want to.
    pub(crate) fn failed(&self, error: StoreError) -> Error {
        Error::Tier { tier: Arc::clone(&self.name), source: Arc::new(error) }
    }

    /// What the guard refused is counted there, and no failure of the store.
    pub(crate) fn count_error(&self, counters: &TrafficCounters, error: &StoreError) {
        if !is_refusal(error) {
            bump(&counters.errors);
            tracing::debug!(tier = %self.name, %error, "a tier failed: the next one answers");
        }
    }
}
