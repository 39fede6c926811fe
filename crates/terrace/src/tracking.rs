//! The **tracking** of what is read while something is loaded: what a value was built from.
//!
//! A dependency is a tag. An entry that was built from another one carries a tag made of that
//! one's name, one made of the name of its space, and all tags that it carries itself; so what is
//! built from what was built is found by the same names, without a walk from one to the next, and a
//! circle is only a few names more. A line about a key of a tracked space is followed, in the same
//! step, by a line about the tag that is made of its name. Why that is enough: a loader's ticket is
//! older than anything that it reads here, so that whatever happens to what it has read has a
//! later number than the ticket, and rule 3 of the [protocol](crate::protocol) does the rest.
//!
//! Two things keep a ticket from being newer than what is read after it. A line is known to a
//! process before what it names has left its memory: a ticket that is taken in between is one from
//! before the line ([`Undropped`]). And a write has its line before its value is where others read:
//! once it is there, what may have been built upon its absence meanwhile is named once more.
//!
//! Whose loader it is that reads is known as long as its future runs in the task in which the cache
//! polls it: what a loader hands to tasks of its own is not seen.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::core::Core;
use crate::entry::{Cached, Meta};
use crate::error::Error;
use crate::implied;
use crate::key::{Key, KeyBuffer};
use crate::ledger::{Names, Stamp};
use crate::space::SpaceCore;

/// Tags of all kinds that an entry may carry.
const MOST_NAMES: usize = 256;

thread_local! {
    /// Of the loader that is being polled on this thread.
    static LOADING: RefCell<Option<Arc<Tracker>>> = const { RefCell::new(None) };
}

/// Takes notes for one loader.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    noted: Mutex<BuiltFrom>,
}

/// What a value was built from, as the tags that it is to carry.
#[derive(Clone, Debug, Default)]
pub(crate) struct BuiltFrom {
    tags: BTreeSet<Arc<str>>,
    /// There was more than an entry can carry.
    is_too_much: bool,
}

impl BuiltFrom {
    fn add(&mut self, tags: impl IntoIterator<Item = Arc<str>>) {
        self.tags.extend(tags);
        self.is_too_much |= self.tags.len() > MOST_NAMES;
        if self.is_too_much {
            self.tags.clear();
        }
    }

    /// These tags and those of what the value was built from; `None` if they are too many for the
    /// entry to be found by all of them.
    pub(crate) fn joined(&self, tags: &Arc<[Arc<str>]>) -> Option<Arc<[Arc<str>]>> {
        if self.is_too_much {
            return None;
        }
        if self.tags.is_empty() {
            return Some(Arc::clone(tags));
        }
        let new = self.tags.iter().filter(|tag| !tags.contains(tag));
        let joined: Vec<_> = tags.iter().chain(new).cloned().collect();
        (joined.len() <= MOST_NAMES).then(|| joined.into())
    }
}

impl Tracker {
    pub(crate) fn built_from(&self) -> BuiltFrom {
        self.noted.lock().clone()
    }
}

/// Takes note of an answer about a key of a tracked space, if it is a loader that gets it.
pub(crate) fn note(space: &SpaceCore, key: &[u8], found: Option<&Meta>) {
    let Some(tracker) = current() else { return };
    let mut noted = tracker.noted.lock();
    noted.add(implied::dependent_on(&space.name_of(key), &space.name));
    if let Some(meta) = found {
        noted.add(meta.details().tags.iter().cloned());
        noted.is_too_much |= meta.details().is_untraced;
    }
}

/// Whether the caller runs within a loader that is tracked.
pub(crate) fn is_noting() -> bool {
    LOADING.try_with(|loading| loading.borrow().is_some()).unwrap_or(false)
}

/// Runs `work`, a loader, and has `tracker` take notes of what it reads.
pub(crate) fn noting<T>(
    tracker: Option<Arc<Tracker>>,
    mut work: impl Future<Output = T> + Unpin,
) -> impl Future<Output = T> + Unpin {
    std::future::poll_fn(move |context| {
        let _scope = Scope { outer: replace(tracker.clone()) };
        Pin::new(&mut work).poll(context)
    })
}

/// Puts back what was there before, also when the loader panics.
struct Scope {
    outer: Option<Arc<Tracker>>,
}

impl Drop for Scope {
    fn drop(&mut self) {
        let _ = replace(self.outer.take());
    }
}

fn replace(tracker: Option<Arc<Tracker>>) -> Option<Arc<Tracker>> {
    LOADING.try_with(|loading| loading.replace(tracker)).unwrap_or(None)
}

fn current() -> Option<Arc<Tracker>> {
    LOADING.try_with(|loading| loading.borrow().clone()).unwrap_or(None)
}

/// Lines that are known, and have not taken what they name out of memory yet.
#[derive(Debug, Default)]
pub(crate) struct Undropped {
    first: Mutex<Vec<u64>>,
}

/// Some lines of those, until this is dropped.
#[must_use]
pub(crate) struct Dropping<'a> {
    of: &'a Undropped,
    first: u64,
}

impl Undropped {
    /// Lines from `first` on are about to become known.
    pub(crate) fn from(&self, first: u64) -> Dropping<'_> {
        self.first.lock().push(first);
        Dropping { of: self, first }
    }

    /// The last line up to `position` that has taken out of memory what it names.
    pub(crate) fn before(&self, position: u64) -> u64 {
        let first = self.first.lock().iter().copied().min();
        first.map_or(position, |first| position.min(first.saturating_sub(1)))
    }
}

impl Drop for Dropping<'_> {
    fn drop(&mut self) {
        let mut first = self.of.first.lock();
        if let Some(index) = first.iter().position(|first| *first == self.first) {
            first.swap_remove(index);
        }
    }
}

/// Something that a value was built from: see [`Insert::depends_on`](crate::Insert::depends_on).
#[derive(Debug)]
#[must_use = "it is for `depends_on`"]
pub struct Dependency {
    /// The key and its space, as the ledger names them.
    names: [Arc<str>; 2],
    tags: Vec<Arc<str>>,
    /// When what it was built from was made, and the tags that it carries.
    found: Option<(Stamp, Arc<[Arc<str>]>)>,
    error: Option<Error>,
}

impl Dependency {
    pub(crate) fn new<K: Key + ?Sized>(space: &SpaceCore, key: &K) -> Self {
        let mut buffer = KeyBuffer::default();
        let checked = if space.is_tracked {
            space.checked_key(key, &mut buffer)
        } else {
            Err(Error::Dependencies("its space is not tracked: say so where it is opened"))
        };
        match checked {
            Ok(key) => {
                let names = [space.name_of(key.bytes), Arc::clone(&space.name)];
                let tags = implied::dependent_on(&names[0], &names[1]).into();
                Self { names, tags, found: None, error: None }
            }
            Err(error) => {
                let names = [space.name_of(&[]), Arc::clone(&space.name)];
                Self { names, tags: Vec::new(), found: None, error: Some(error) }
            }
        }
    }

    /// What was found under the key: it takes over the tags that this carries and what this was
    /// built from, and if this has been invalidated in the meantime, nothing is stored.
    pub fn on<V>(mut self, found: &Cached<V>) -> Self {
        let meta = &found.entry.meta;
        self.tags.extend(meta.details().tags.iter().cloned());
        if meta.details().is_untraced {
            let reason = "what it was built from was itself built from too much";
            self.error = self.error.or(Some(Error::Dependencies(reason)));
        }
        self.found = Some((meta.stamp, Arc::clone(&meta.details().tags)));
        self
    }

    /// Whether nothing has been invalidated since that it speaks of.
    fn stands(&self, core: &Core) -> bool {
        let [key, space] = &self.names;
        // What it was built from, by its own names: a write says again, after it, that what depends
        // on the key is out of date.
        let stands = |(stamp, tags): &(Stamp, Arc<[Arc<str>]>)| {
            let names = Names { key, space, tags };
            core.mirror.standing_of_hashed(*stamp, &names).stands()
                && !core.pending.speaks_of(&names)
        };
        let carried = Names { key: "", space: "", tags: &self.tags };
        !core.pending.speaks_of(&carried) && self.found.as_ref().is_none_or(stands)
    }
}

/// What a caller says that a value was built from.
#[derive(Debug, Default)]
pub(crate) struct Dependencies {
    all: Vec<Dependency>,
}

impl Dependencies {
    pub(crate) fn add(&mut self, dependencies: impl IntoIterator<Item = Dependency>) {
        self.all.extend(dependencies);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Adds them to what a loader has read.
    pub(crate) fn add_to(&mut self, built_from: &mut BuiltFrom) -> Result<(), Error> {
        for dependency in &mut self.all {
            if let Some(error) = dependency.error.take() {
                return Err(error);
            }
            built_from.add(dependency.tags.iter().cloned());
        }
        Ok(())
    }

    /// Adds them to the tags of an entry.
    pub(crate) fn joined(&mut self, tags: &Arc<[Arc<str>]>) -> Result<Arc<[Arc<str>]>, Error> {
        let mut built_from = BuiltFrom::default();
        self.add_to(&mut built_from)?;
        built_from.joined(tags).ok_or(Error::Dependencies("there are too many of them"))
    }

    /// Whether nothing has been invalidated since that they speak of.
    pub(crate) fn stand(&self, core: &Core) -> bool {
        self.all.iter().all(|dependency| dependency.stands(core))
    }
}
