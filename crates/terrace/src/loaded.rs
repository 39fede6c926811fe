//! What a loader answers: a **value**, or that there is none, or that it has not changed.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::WallTime;
use crate::error::{LoaderFailure, SharedError};
use crate::key::tags_of_tenant;
use crate::policy::Ttl;
use crate::tenant::TenantName;
use crate::tracking::{Dependencies, Dependency};
use crate::write::checked_tags;

/// A loader's answer, with what is to be known about it.
///
/// A loader that only has values returns them as they are. This is for those that know more:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use terrace::{LoadError, Loaded, Memory, Terrace};
///
/// let terrace = Terrace::builder().memory(Memory::bytes(1 << 20)).build().await?;
/// let pages = terrace
///     .space::<str, String>("page")
///     .negative_ttl(Duration::from_secs(10))
///     .build()?;
///
/// let page = pages
///     .get_or_load("/", |_| async {
///         let page = Loaded::value("<h1>Hello</h1>".to_owned());
///         Ok::<_, std::io::Error>(page.ttl(Duration::from_secs(60)).version("v7").tags(["pages"]))
///     })
///     .await?;
/// assert_eq!(page.version(), Some("v7"));
///
/// let nothing = pages.get_or_load("/nothing", |_| async {
///     Ok::<_, std::io::Error>(Loaded::absent())
/// });
/// assert!(matches!(nothing.await, Err(LoadError::Absent)));
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a loader returns it"]
pub struct Loaded<V> {
    pub(crate) answer: Answer<V>,
    pub(crate) ttl: Option<Ttl>,
    /// As the ledger names those of no tenant: whose they are, the loader does not know.
    tags: Result<Arc<[Arc<str>]>, &'static str>,
    pub(crate) dependencies: Dependencies,
    pub(crate) version: Option<Arc<str>>,
    pub(crate) last_modified: Option<WallTime>,
    pub(crate) cost: f64,
}

#[derive(Debug)]
pub(crate) enum Answer<V> {
    Value(V),
    NotStored(V),
    NotModified,
    Absent,
    Failed(SharedError),
}

impl<V> From<V> for Loaded<V> {
    fn from(value: V) -> Self {
        Self::value(value)
    }
}

impl<V> Loaded<V> {
    fn new(answer: Answer<V>) -> Self {
        Self {
            answer,
            ttl: None,
            tags: Ok(Arc::default()),
            dependencies: Dependencies::default(),
            version: None,
            last_modified: None,
            cost: 0.0,
        }
    }

    /// A value, to be answered with and stored.
    pub fn value(value: V) -> Self {
        Self::new(Answer::Value(value))
    }

    /// A value for those who wait for it; it is stored nowhere.
    pub fn do_not_cache(value: V) -> Self {
        Self::new(Answer::NotStored(value))
    }

    /// What the loader was given as [stale](crate::Load::stale) is still right: it begins a
    /// new life. Fails with [`NothingToConfirm`](crate::LoadError::NothingToConfirm) if
    /// there was nothing.
    pub fn not_modified() -> Self {
        Self::new(Answer::NotModified)
    }

    /// The source has no such value. Callers get [`LoadError::Absent`](crate::LoadError::Absent);
    /// what was cached before is removed. It is remembered, in memory, for as long as the space
    /// says with [`negative_ttl`](crate::SpaceBuilder::negative_ttl).
    pub fn absent() -> Self {
        Self::new(Answer::Absent)
    }

    /// The load of this one key failed: for loaders of [many
    /// keys](crate::Space::get_many_or_load), whose other keys are none the worse.
    pub fn failed(error: impl LoaderFailure) -> Self {
        Self::new(Answer::Failed(Arc::new(error)))
    }

    /// The value lives exactly this long, whatever call and space say.
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { ttl: Some(Ttl::Exactly(ttl)), ..self }
    }

    /// The value never expires.
    pub fn forever(self) -> Self {
        Self { ttl: Some(Ttl::Forever), ..self }
    }

    /// The value carries these tags beside those of the call.
    pub fn tags<T: AsRef<str>>(self, tags: impl IntoIterator<Item = T>) -> Self {
        let tags = checked_tags("", tags).map_err(|_| "a tag of the loader cannot be used");
        Self { tags, ..self }
    }

    /// The value was built from these as well, beside what the loader read of
    /// [tracked](crate::SpaceBuilder::tracked) spaces in its future: see
    /// [`Insert::depends_on`](crate::Insert::depends_on).
    pub fn depends_on(mut self, dependencies: impl IntoIterator<Item = Dependency>) -> Self {
        self.dependencies.add(dependencies);
        self
    }

    /// The source's version of the value, or its `ETag`.
    ///
    /// Versions that are whole numbers are ordered: an older one never replaces a newer one.
    /// Of others it is only known whether they are the same.
    pub fn version(self, version: impl Into<Arc<str>>) -> Self {
        Self { version: Some(version.into()), ..self }
    }

    /// When the source says that it changed last. If there are no versions that are ordered,
    /// this is what tells older from newer.
    pub fn last_modified(self, time: WallTime) -> Self {
        Self { last_modified: Some(time), ..self }
    }

    /// What this load has cost, beside [what each of its space does](crate::SpaceBuilder::load_cost):
    /// tokens, cents, rows that were read. For the statistics alone; what is negative or no number
    /// counts as nothing.
    pub fn cost(self, cost: f64) -> Self {
        Self { cost, ..self }
    }
}

impl<V> Loaded<V> {
    /// The tags, as the ledger names those of this tenant.
    pub(crate) fn tags_of(&self, tenant: &TenantName) -> Result<Arc<[Arc<str>]>, &'static str> {
        self.tags.clone().map(|tags| tags_of_tenant(tenant.as_str(), tags))
    }
}

/// What is known about the age of a value at its source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SourceAge<'a> {
    pub(crate) version: Option<&'a str>,
    pub(crate) last_modified: Option<WallTime>,
}

impl SourceAge<'_> {
    /// Whether this is certainly older than `other`.
    pub(crate) fn is_older_than(self, other: SourceAge<'_>) -> bool {
        let number =
            |version: Option<&str>| version.and_then(|version| version.parse::<u64>().ok());
        match (number(self.version), number(other.version)) {
            (Some(mine), Some(theirs)) => mine < theirs,
            _ => match (self.last_modified, other.last_modified) {
                (Some(mine), Some(theirs)) => mine < theirs,
                _ => false,
            },
        }
    }

    /// Whether this is certainly of `version` or a later one.
    pub(crate) fn is_at_least(self, version: &str) -> bool {
        match (self.version.and_then(|version| version.parse::<u64>().ok()), version.parse()) {
            (Some(mine), Ok(wanted)) => mine >= wanted,
            _ => self.version == Some(version),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn age(version: Option<&str>, modified: Option<u64>) -> SourceAge<'_> {
        SourceAge { version, last_modified: modified.map(WallTime::from_millis) }
    }

    #[test]
    fn only_what_is_certain_counts_as_older() {
        assert!(age(Some("9"), None).is_older_than(age(Some("10"), None)));
        assert!(!age(Some("10"), Some(1)).is_older_than(age(Some("9"), Some(2))));
        assert!(age(Some("\"a\""), Some(1)).is_older_than(age(Some("\"b\""), Some(2))));
        assert!(!age(Some("\"a\""), None).is_older_than(age(Some("\"b\""), None)));
        assert!(!age(None, Some(2)).is_older_than(age(None, Some(2))));
        assert!(age(Some("10"), None).is_at_least("9"));
        assert!(!age(Some("8"), None).is_at_least("9"));
        assert!(age(Some("x"), None).is_at_least("x"));
        assert!(!age(None, None).is_at_least("1"));
    }
}
