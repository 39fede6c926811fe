//! The **entry**: a value and what is known about it, in one allocation.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::clock::{Tick, WallTime};
use crate::freshness::{Life, Written};
use crate::implied::is_implied;
use crate::key::tag_of_name;
use crate::ledger::{Stamp, TagSlot};
use crate::loaded::SourceAge;

/// A value that the cache answered with.
///
/// It dereferences to the value, and is shared: cloning counts a reference.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let terrace = terrace::Terrace::builder().memory(terrace::Memory::bytes(1 << 20)).build().await?;
/// terrace.set("greeting", &"Guten Tag".to_owned()).await?;
/// if let Some(greeting) = terrace.get::<String>("greeting").await? {
///     assert_eq!(greeting.len(), 9);
///     assert_eq!(greeting.source(), &terrace::Source::Memory);
///     assert!(!greeting.is_stale());
/// }
/// # Ok(()) }
/// ```
pub struct Cached<V> {
    pub(crate) entry: Arc<Entry<V>>,
    pub(crate) source: Source,
    pub(crate) is_stale: bool,
}

/// Who answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The memory of this process.
    Memory,
    /// A tier below memory, by its name.
    Tier(Arc<str>),
    /// The journal: the value was written behind, and its source does not have it yet.
    Journal,
    /// The loader.
    Loader,
    /// Nobody: it is the value that the call gave for when nothing else is to be had.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Memory => "memory",
            Self::Tier(name) => name,
            Self::Journal => "journal",
            Self::Loader => "loader",
            Self::Default => "default",
        })
    }
}

impl<V> Cached<V> {
    /// Who answered.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Whether the value is past its end, and served because nothing fresher could be had.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// When the value was made, or its source last said that it had not changed.
    #[must_use]
    pub fn created(&self) -> WallTime {
        self.entry.meta.times.written().created
    }

    /// When the value stops being fresh; `None`: never.
    #[must_use]
    pub fn expires(&self) -> Option<WallTime> {
        self.entry.meta.times.written().expires
    }

    /// How old the value is at `now`.
    #[must_use]
    pub fn age(&self, now: WallTime) -> Duration {
        now.saturating_since(self.created())
    }

    /// The source's own version of the value, or its `ETag`, if the loader said one.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.entry.meta.details().version.as_deref()
    }

    /// When the source changed last, if the loader said so.
    #[must_use]
    pub fn last_modified(&self) -> Option<WallTime> {
        self.entry.meta.details().last_modified
    }

    /// The ledger's position before the value was made.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        self.entry.meta.stamp
    }

    /// The tags that it carries, without their tenant.
    pub fn tags(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let tags = self.entry.meta.details().tags.iter();
        tags.filter(|tag| !is_implied(tag)).map(|tag| tag_of_name(tag))
    }
}

impl<V> Deref for Cached<V> {
    type Target = V;
    fn deref(&self) -> &V {
        &self.entry.value
    }
}

impl<V> Clone for Cached<V> {
    fn clone(&self) -> Self {
        Self {
            entry: Arc::clone(&self.entry),
            source: self.source.clone(),
            is_stale: self.is_stale,
        }
    }
}

impl<V: fmt::Debug> fmt::Debug for Cached<V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Cached")
            .field("value", &self.entry.value)
            .field("source", &self.source)
            .field("is_stale", &self.is_stale)
            .finish_non_exhaustive()
    }
}

impl<V: PartialEq> PartialEq<V> for Cached<V> {
    fn eq(&self, value: &V) -> bool {
        self.entry.value == *value
    }
}

/// What every hit looks at comes first, beside the count of references.
#[repr(C)]
pub(crate) struct Entry<V> {
    pub(crate) meta: Meta,
    pub(crate) value: V,
}

/// What is known about a value.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Meta {
    pub(crate) stamp: Stamp,
    pub(crate) times: Times,
    details: Option<Box<Details>>,
    bytes: u32,
    load_micros: u32,
}

/// Tags of an entry whose slots are kept with it.
const FEW_TAGS: usize = 4;

/// What few entries have. What hits look at, where there are tags, comes first, in one line of the
/// processor's cache wherever allocations begin at multiples of 16 bytes.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Details {
    /// The last line up to which none was found to name the entry: those before need not be
    /// compared with its tags again. Of the stamp's incarnation.
    stood_at: AtomicU64,
    /// Those of its tags in the mirror.
    slots: [TagSlot; FEW_TAGS],
    pub(crate) tags: Arc<[Arc<str>]>,
    pub(crate) version: Option<Arc<str>>,
    pub(crate) last_modified: Option<WallTime>,
    /// The name in the ledger is a hash: lines cannot find this entry by its key.
    pub(crate) is_hashed: bool,
    /// It was built from more than it can carry the names of.
    pub(crate) is_untraced: bool,
}

impl Meta {
    /// `bytes` is what the value weighs in memory, the key not included.
    pub(crate) fn new(
        stamp: Stamp,
        life: Life,
        written: Written,
        details: Details,
        bytes: u64,
    ) -> Self {
        let details = (!details.is_empty()).then(|| Box::new(details));
        let bytes = bytes + details.as_ref().map_or(0, |details| size_of_val(&**details) as u64);
        Self {
            stamp,
            times: Times::new(life, written),
            details,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            load_micros: 0,
        }
    }

    pub(crate) fn loaded_in(self, time: Duration) -> Self {
        Self { load_micros: u32::try_from(time.as_micros()).unwrap_or(u32::MAX), ..self }
    }

    pub(crate) fn details(&self) -> &Details {
        static NONE: LazyLock<Details> = LazyLock::new(Details::default);
        self.details.as_deref().unwrap_or_else(|| &NONE)
    }

    /// No line up to this one names the entry.
    pub(crate) fn stands_at(&self, number: u64) {
        if let Some(details) = &self.details {
            details.stood_at.fetch_max(number, Ordering::Relaxed);
        }
    }

    /// What the value and this weigh in memory, the key not included; 4 GiB if it is more.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.into()
    }

    /// How long its load took; zero if it was not loaded here.
    pub(crate) fn load_time(&self) -> Duration {
        Duration::from_micros(self.load_micros.into())
    }

    /// How old the value is at its source, as far as the source said so.
    pub(crate) fn source_age(&self) -> SourceAge<'_> {
        let Details { version, last_modified, .. } = self.details();
        SourceAge { version: version.as_deref(), last_modified: *last_modified }
    }
}

impl Default for Details {
    fn default() -> Self {
        Self::new(Arc::default(), None, None, false)
    }
}

impl Details {
    pub(crate) fn new(
        tags: Arc<[Arc<str>]>,
        version: Option<Arc<str>>,
        last_modified: Option<WallTime>,
        is_hashed: bool,
    ) -> Self {
        let (is_untraced, stood_at) = (false, AtomicU64::new(0));
        let mut slots = [TagSlot::NONE; FEW_TAGS];
        if tags.len() > FEW_TAGS {
            slots = [TagSlot::UNKNOWN; FEW_TAGS];
        } else {
            slots.iter_mut().zip(&*tags).for_each(|(slot, tag)| *slot = TagSlot::of(tag));
        }
        Self { stood_at, slots, tags, version, last_modified, is_hashed, is_untraced }
    }

    /// The slots of its tags; unknown ones if there are too many.
    pub(crate) fn slots(&self) -> &[TagSlot] {
        &self.slots
    }

    pub(crate) fn stood_at(&self) -> u64 {
        self.stood_at.load(Ordering::Relaxed)
    }

    fn is_empty(&self) -> bool {
        let Self { tags, version, last_modified, is_hashed, is_untraced, slots: _, stood_at: _ } =
            self;
        let is_plain = !is_hashed && !is_untraced;
        tags.is_empty() && version.is_none() && last_modified.is_none() && is_plain
    }
}

/// That the source has no value: what memory holds under such a key.
pub(crate) struct Absent;

/// When an entry ends: here, and as it is written down. The only thing about an
/// entry that ever changes.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Times {
    aging_from: AtomicU64,
    fresh_until: AtomicU64,
    stale_until: AtomicU64,
    /// When the source was last known to have this version; `NEVER`: it was not asked.
    checked: AtomicU64,
    created: AtomicU64,
    expires: AtomicU64,
    of_use_until: AtomicU64,
}

/// "Never", as times are kept.
const NEVER: u64 = u64::MAX;

impl Times {
    pub(crate) fn new(life: Life, written: Written) -> Self {
        let times = Self {
            aging_from: AtomicU64::new(0),
            fresh_until: AtomicU64::new(0),
            stale_until: AtomicU64::new(0),
            checked: AtomicU64::new(NEVER),
            created: AtomicU64::new(0),
            expires: AtomicU64::new(0),
            of_use_until: AtomicU64::new(0),
        };
        times.set(life, written);
        times
    }

    pub(crate) fn life(&self) -> Life {
        let tick = |time: &AtomicU64| Tick::from_millis(time.load(Ordering::Relaxed));
        Life {
            aging_from: tick(&self.aging_from),
            fresh_until: tick(&self.fresh_until),
            stale_until: tick(&self.stale_until),
        }
    }

    pub(crate) fn written(&self) -> Written {
        let wall = |time: &AtomicU64| {
            let millis = time.load(Ordering::Relaxed);
            (millis != NEVER).then(|| WallTime::from_millis(millis))
        };
        Written {
            created: WallTime::from_millis(self.created.load(Ordering::Relaxed)),
            expires: wall(&self.expires),
            stale_until: wall(&self.of_use_until),
        }
    }

    /// Another end. A reader meanwhile may see parts of the old one.
    pub(crate) fn set(&self, life: Life, written: Written) {
        let millis = |time: Option<WallTime>| time.map_or(NEVER, WallTime::as_millis);
        self.aging_from.store(life.aging_from.as_millis(), Ordering::Relaxed);
        self.created.store(written.created.as_millis(), Ordering::Relaxed);
        self.fresh_until.store(life.fresh_until.as_millis(), Ordering::Relaxed);
        self.stale_until.store(life.stale_until.as_millis(), Ordering::Relaxed);
        self.expires.store(millis(written.expires), Ordering::Relaxed);
        self.of_use_until.store(millis(written.stale_until), Ordering::Relaxed);
    }
}

impl Times {
    /// Puts off the time from which the entry is worth renewing; `false` if somebody else has
    /// done so since it was `seen`.
    pub(crate) fn put_off_aging(&self, seen: Tick, until: Tick) -> bool {
        let (seen, until) = (seen.as_millis(), until.as_millis());
        let changed =
            self.aging_from.compare_exchange(seen, until, Ordering::Relaxed, Ordering::Relaxed);
        changed.is_ok()
    }

    /// Its source was seen to have this version.
    pub(crate) fn set_checked(&self, now: Tick) {
        self.checked.store(now.as_millis(), Ordering::Relaxed);
    }

    pub(crate) fn checked(&self) -> Option<Tick> {
        let checked = self.checked.load(Ordering::Relaxed);
        (checked != NEVER).then(|| Tick::from_millis(checked))
    }

    /// The entry is worth renewing from `at` on, if it is fresh by then.
    pub(crate) fn set_aging(&self, at: Tick) {
        self.aging_from.store(at.as_millis(), Ordering::Relaxed);
    }
}

/// An entry of any type, as memory and flights hold it.
pub(crate) type AnyEntry = Arc<dyn ErasedEntry>;

pub(crate) trait ErasedEntry: Any + Send + Sync {
    fn meta(&self) -> &Meta;
}

impl<V: Send + Sync + 'static> ErasedEntry for Entry<V> {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

/// The entry as what it is; `None` if it holds another type.
pub(crate) fn typed<V: Send + Sync + 'static>(entry: &AnyEntry) -> Option<Arc<Entry<V>>> {
    let entry: Arc<dyn Any + Send + Sync> = Arc::clone(entry) as _;
    entry.downcast().ok()
}

/// The same without counting a reference.
pub(crate) fn typed_ref<V: Send + Sync + 'static>(entry: &AnyEntry) -> Option<&Entry<V>> {
    let entry: &dyn Any = &**entry;
    entry.downcast_ref()
}
