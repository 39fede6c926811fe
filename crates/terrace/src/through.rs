//! A **write through**, or around: the source first, then the caches.
//!
//! Two of one key never overlap, in the whole fleet: whoever holds the key's lease writes the
//! source and tells the ledger before anybody else writes either.

use std::future::IntoFuture;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use crate::codec::ValueCodec;
use crate::error::Error;
use crate::flight::Underway;
use crate::key::Key;
use crate::lease::{Lease, Patience, while_held};
use crate::ledger::Name;
use crate::options::Tiers;
use crate::policy::Ttl;
use crate::read::Wanted;
use crate::runtime::{BoxFuture, in_task};
use crate::source::{Change, NotWritten, Source, Write, WriteId};
use crate::space::{Space, SpaceCore};
use crate::tracking::Dependencies;
use crate::write::{
    Encoded, EntryOptions, Settled, WRITERS_PATIENCE, checked_tags, checked_wanted, encode_first,
    insert_encoded,
};

/// A write of one value to the source and then to every tier; await it. See
/// [`Space::insert_through`].
#[must_use = "a write does nothing until it is awaited"]
pub struct InsertThrough<'a, K: ToOwned + ?Sized, V> {
    space: &'a Space<K, V>,
    key: &'a K,
    value: V,
    ttl: Ttl,
    tags: Result<Arc<[Arc<str>]>, Error>,
    version: Option<Arc<str>>,
}

impl<'a, K: ToOwned + ?Sized, V> InsertThrough<'a, K, V> {
    pub(crate) fn new(space: &'a Space<K, V>, key: &'a K, value: V) -> Self {
        Self { space, key, value, ttl: Ttl::default(), tags: Ok(Arc::default()), version: None }
    }

    /// The value lives exactly this long in caches, whatever its space says.
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { ttl: Ttl::Exactly(ttl), ..self }
    }

    /// The value never expires.
    pub fn forever(self) -> Self {
        Self { ttl: Ttl::Forever, ..self }
    }

    /// The value carries these tags.
    pub fn tags<T: AsRef<str>>(self, tags: impl IntoIterator<Item = T>) -> Self {
        Self { tags: checked_tags(self.space.core.tenant.as_str(), tags), ..self }
    }

    /// The source's version of the value: see [`Loaded::version`](crate::Loaded::version).
    pub fn version(self, version: impl Into<Arc<str>>) -> Self {
        Self { version: Some(version.into()), ..self }
    }
}

impl<K: ToOwned + ?Sized, V> std::fmt::Debug for InsertThrough<'_, K, V> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("InsertThrough").field("space", self.space).finish_non_exhaustive()
    }
}

impl<'a, K, V> IntoFuture for InsertThrough<'a, K, V>
where
    K: Key + Sync + ?Sized + 'static,
    K::Owned: Send + 'static,
    V: Send + Sync + 'static,
{
    type Output = Result<Settled, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let options = EntryOptions {
                ttl: self.ttl,
                tags: self.tags?,
                version: self.version,
                ..EntryOptions::default()
            };
            let then = Then::Insert(options);
            Passage::new(self.space, self.key, Some(self.value), then)?.make().await
        })
    }
}

/// Writes to the source, then invalidates: the next read loads.
pub(crate) async fn around<K, V>(
    space: &Space<K, V>,
    key: &K,
    value: Option<V>,
) -> Result<Settled, Error>
where
    K: Key + ?Sized + 'static,
    K::Owned: Send + 'static,
    V: Send + Sync + 'static,
{
    Passage::new(space, key, value, Then::Invalidate)?.make().await
}

/// What caches are told once the source is written.
enum Then {
    Insert(EntryOptions),
    Invalidate,
}

/// A write on its way to the source.
struct Passage<K: ToOwned + ?Sized, V> {
    space: Arc<SpaceCore>,
    codec: ValueCodec<V>,
    source: Arc<Source<K, V>>,
    wanted: Wanted,
    write: Write<K, V>,
    cached: Option<Encoded<V>>,
    then: Then,
    /// Closing waits for it.
    _underway: Underway,
}

impl<K, V> Passage<K, V>
where
    K: Key + ?Sized + 'static,
    K::Owned: Send + 'static,
    V: Send + Sync + 'static,
{
    fn new(space: &Space<K, V>, key: &K, value: Option<V>, then: Then) -> Result<Self, Error> {
        let core = &space.core;
        let underway = core.core.begin()?;
        let source = space.source.as_ref().ok_or(Error::NoWriter)?;
        let codec = space.codec.ok_or(Error::NoWriter)?;
        let wanted = checked_wanted(core, key)?;
        let (change, cached) = match (value, &then) {
            (None, _) => (Change::Remove, None),
            (Some(value), Then::Invalidate) => (Change::Insert(value), None),
            (Some(value), Then::Insert(_)) => {
                let encoded = encode_first(core, Some(codec), value)?;
                let (change, cached) = in_two(codec, encoded)?;
                (Change::Insert(change), Some(cached))
            }
        };
        let id = WriteId { journal: core.core.runtime.random(), number: 0 };
        Ok(Self {
            space: Arc::clone(core),
            codec,
            source: Arc::clone(source),
            wanted,
            write: Write { key: key.to_owned(), change, id, failures: 0 },
            cached,
            then,
            _underway: underway,
        })
    }

    /// In a task of its own: a caller that is dropped leaves it done in the source and in the
    /// caches, or in neither.
    async fn make(self) -> Result<Settled, Error> {
        let runtime = Arc::clone(&self.space.core.runtime);
        in_task(&*runtime, self.pass()).await.unwrap_or(Err(Error::Closed))
    }

    async fn pass(self) -> Result<Settled, Error> {
        let core = Arc::clone(&self.space.core);
        let lock: Arc<str> = format!("{}!", self.wanted.name(&self.space)).into();
        let mut patience = Patience::new(WRITERS_PATIENCE);
        let lease = loop {
            if let Some(lease) = Lease::ask(&core, &lock).await {
                break lease;
            }
            if !patience.wait(&core).await {
                return Err(Error::Busy);
            }
        };
        let written = while_held([&lease], pin!(self.pass_alone())).await;
        lease.release().await;
        written
    }

    async fn pass_alone(self) -> Result<Settled, Error> {
        let Self { space, codec, source, wanted, write, cached, then, .. } = self;
        let core = &space.core;
        let name = Arc::clone(wanted.name(&space));
        #[cfg(feature = "disk")]
        crate::behind::flush_key(&space, &wanted, source.settings.deadline).await?;
        if let Err(error) = source.write(&*core.runtime, vec![write]).await {
            // The source may have it all the same: nobody must go on with what was there before.
            core.forget(vec![Name::Key(name)]).await;
            return Err(Error::Source(match error {
                NotWritten::Failed(error) => error,
                other => Arc::new(other),
            }));
        }
        let settled = match (then, cached) {
            (Then::Insert(options), Some(cached)) => {
                let entries = vec![(wanted.clone(), cached)];
                let (from, everywhere) = (Dependencies::default(), Tiers::default());
                insert_encoded(&space, Some(codec), entries, options, &from, everywhere).await?
            }
            _ => return Ok(core.forget(vec![Name::Key(name)]).await.settled),
        };
        // What was written behind meanwhile comes to the source later than this.
        #[cfg(feature = "disk")]
        if !matches!(crate::behind::is_unflushed(&space, &wanted.bytes), Ok(None)) {
            let told = core.forget(vec![Name::Key(name)]).await.settled;
            if !told.is_settled() {
                return Ok(told);
            }
        }
        Ok(settled)
    }
}

/// One value for the writer, and one for the caches.
fn in_two<V>(codec: ValueCodec<V>, encoded: Encoded<V>) -> Result<(V, Encoded<V>), Error> {
    let bytes = match &encoded.bytes {
        Some((_, bytes)) => bytes.clone(),
        None => codec.encode(&encoded.value, codec.preferred).map_err(Error::Encode)?,
    };
    let other = codec.decode(bytes, codec.preferred).map_err(Error::Encode)?;
    Ok((other, encoded))
}
