//! The **target**: what is invalidated, said with names alone: where the types of its space are not
//! at hand, in another program for instance.

use std::sync::Arc;

use crate::core::Core;
use crate::error::Error;
use crate::implied;
use crate::key::{KeyBuffer, LARGEST_KEY, key_name, prefix_name, space_name, tag_name};
use crate::ledger::Name;
use crate::tenant::TenantName;
use crate::write::{Settled, checked_tag};

/// Something to invalidate. See [`Terrace::invalidate_all`](crate::Terrace::invalidate_all).
///
/// A space is named as it was opened; the empty name is that of dynamic keys. Nothing has to be
/// open here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Key { space: String, key: Vec<u8> },
    Prefix { space: String, prefix: Vec<u8> },
    Tag(String),
    Space(String),
    Everything,
}

impl Target {
    /// One key, by its text: see [`Target::key_of_parts`] for keys that are tuples.
    #[must_use]
    pub fn key(space: &str, key: &str) -> Self {
        Self(Kind::Key { space: space.into(), key: key.into() })
    }

    /// The key that is a tuple of these. Numbers are written as usual: `2023` is `2023_u16` too.
    #[must_use]
    pub fn key_of_parts<P: AsRef<str>>(space: &str, parts: impl IntoIterator<Item = P>) -> Self {
        Self(Kind::Key { space: space.into(), key: joined(parts).as_bytes().into() })
    }

    /// Every key that begins with this text.
    #[must_use]
    pub fn prefix(space: &str, prefix: &str) -> Self {
        Self(Kind::Prefix { space: space.into(), prefix: prefix.into() })
    }

    /// Every key that is a longer tuple, and begins with these.
    #[must_use]
    pub fn prefix_of_parts<P: AsRef<str>>(space: &str, parts: impl IntoIterator<Item = P>) -> Self {
        let mut prefix = joined(parts);
        prefix.push(b":");
        Self(Kind::Prefix { space: space.into(), prefix: prefix.as_bytes().into() })
    }

    /// Every entry that carries this tag.
    #[must_use]
    pub fn tag(tag: &str) -> Self {
        Self(Kind::Tag(tag.into()))
    }

    /// Every entry of a space.
    #[must_use]
    pub fn space(space: &str) -> Self {
        Self(Kind::Space(space.into()))
    }

    /// Every entry; of a [tenant](crate::Tenant), every one of its own.
    #[must_use]
    pub fn everything() -> Self {
        Self(Kind::Everything)
    }

    fn names(&self, core: &Core, tenant: &TenantName) -> Result<Vec<Name>, Error> {
        let space_name = |space: &str| space_name(tenant.as_str(), space);
        let name = match &self.0 {
            Kind::Key { space, key } => {
                check_length(key)?;
                Name::Key(key_name(&space_name(space), key))
            }
            Kind::Prefix { space, prefix } => name_of_prefix(&space_name(space), prefix)?,
            Kind::Tag(tag) => {
                checked_tag(tag)?;
                Name::Tag(tag_name(tenant.as_str(), tag))
            }
            Kind::Space(space) => Name::Space(space_name(space)),
            Kind::Everything => return Ok(core.names_of(tenant)),
        };
        Ok(vec![name])
    }
}

fn joined<P: AsRef<str>>(parts: impl IntoIterator<Item = P>) -> KeyBuffer {
    let mut key = KeyBuffer::default();
    parts.into_iter().for_each(|part| key.part(part.as_ref()));
    key
}

fn check_length(key: &[u8]) -> Result<(), Error> {
    if key.len() > LARGEST_KEY { Err(Error::KeyTooLong { bytes: key.len() }) } else { Ok(()) }
}

/// What is named to invalidate all keys of a space that begin with `prefix`.
pub(crate) fn name_of_prefix(space: &Arc<str>, prefix: &[u8]) -> Result<Name, Error> {
    check_length(prefix)?;
    if prefix.is_empty() {
        return Ok(Name::Space(Arc::clone(space)));
    }
    let long_keys = || Name::Tag(implied::long_keys(space));
    Ok(prefix_name(space, prefix).map_or_else(long_keys, Name::Prefix))
}

/// Invalidates all of these in one exchange with the ledger.
pub(crate) async fn invalidate(
    core: &Arc<Core>,
    tenant: &TenantName,
    targets: impl IntoIterator<Item = Target>,
) -> Result<Settled, Error> {
    let _underway = core.begin()?;
    let names = targets.into_iter().map(|target| target.names(core, tenant));
    let names = names.collect::<Result<Vec<_>, _>>()?.concat();
    if names.is_empty() {
        return Ok(Settled::Settled);
    }
    let settled = core.invalidate(names.clone()).await.settled;
    // Stores that do not hear the ledger may hold what the keys name.
    let keys: Vec<_> = names.into_iter().filter(|name| matches!(name, Name::Key(_))).collect();
    if core.drop_from_stores(keys.iter()).await {
        return Ok(settled);
    }
    core.hold_back(keys);
    let away = core.tiers.iter().filter(|tier| !tier.is_authority);
    Ok(Settled::Pending(away.map(|tier| Arc::clone(&tier.name)).collect()))
}
