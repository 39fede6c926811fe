//! The **options** of a call: where it says something else than its space.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::policy::Ttl;
use crate::space::SpaceCore;
use crate::write::checked_tags;

/// What a read with or without a loader may be told.
pub(crate) struct CallOptions<V> {
    pub(crate) reading: Reading,
    pub(crate) ttl: Ttl,
    pub(crate) tags: Arc<[Arc<str>]>,
    /// How long the caller waits.
    pub(crate) patience: Option<Duration>,
    /// The answer if there is no other.
    pub(crate) default: Option<V>,
    /// What was wrong with an option: the call fails with it.
    pub(crate) error: Option<Error>,
}

impl<V> Default for CallOptions<V> {
    fn default() -> Self {
        Self {
            reading: Reading::default(),
            ttl: Ttl::default(),
            tags: Arc::default(),
            patience: None,
            default: None,
            error: None,
        }
    }
}

impl<V> CallOptions<V> {
    pub(crate) fn set_tags<T: AsRef<str>>(
        &mut self,
        space: &SpaceCore,
        tags: impl IntoIterator<Item = T>,
    ) {
        match checked_tags(space.tenant.as_str(), tags) {
            Ok(tags) => self.tags = tags,
            Err(error) => self.error = Some(error),
        }
    }

    /// Adds the tier of this name to a set.
    pub(crate) fn add_tier(
        &mut self,
        space: &SpaceCore,
        name: &str,
        set: impl FnOnce(&mut Reading) -> &mut Tiers,
    ) {
        match space.core.tier_number(name) {
            Some(number) => set(&mut self.reading).add(number),
            None => self.error = Some(Error::NoSuchTier(name.into())),
        }
    }
}

/// How a read goes about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    /// Tiers that are not read.
    pub(crate) unread: Tiers,
    /// Tiers that nothing is stored in.
    pub(crate) unwritten: Tiers,
    /// What is found is not copied to the tiers above.
    pub(crate) stays_below: bool,
    /// Answers past their end by more than this are none.
    pub(crate) max_stale: Option<Duration>,
    /// Answers of an older version of the source are none.
    pub(crate) at_least: Option<Arc<str>>,
    pub(crate) wants: Wants,
}

impl Reading {
    /// Whether "there is none", as it is remembered, is an answer.
    pub(crate) fn takes_absent(&self) -> bool {
        // Whoever wants a version knows that there is one.
        self.wants != Wants::New && self.at_least.is_none()
    }
}

/// What a read is content with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wants {
    /// Anything fresh.
    #[default]
    Fresh,
    /// Something that does not age yet: the read renews an entry before its end.
    Young,
    /// Only what is loaded from now on.
    New,
}

/// A set of tiers. Memory is number 0, those below it follow in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tiers(u64);

impl Tiers {
    pub(crate) const ALL: Self = Self(u64::MAX);

    pub(crate) fn add(&mut self, number: usize) {
        self.0 |= bit(number);
    }

    /// All but this one.
    pub(crate) fn all_but(number: usize) -> Self {
        Self(!bit(number))
    }

    pub(crate) fn has(self, number: usize) -> bool {
        self.0 & bit(number) != 0
    }

    pub(crate) fn has_memory(self) -> bool {
        self.has(0)
    }
}

fn bit(number: usize) -> u64 {
    u32::try_from(number).ok().and_then(|number| 1_u64.checked_shl(number)).unwrap_or(0)
}
