//! The **pending** names: invalidations that a tier below memory does not know of yet.
//!
//! Until they are settled, what they name is neither read from nor written to any
//! tier below memory, and no load that began before them stores anything. A task tries again until
//! they are.
//!
//! Most of them the ledger could not take: nobody else has heard of them. Some are *told*: their line is
//! written, and only a store that was not asked, or did not answer, may still hold what they name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::core::{Core, drop_all};
use crate::implied;
use crate::ledger::{Name, Names};
use crate::sweep::{self, Swept};

/// Names that are kept one by one; beyond that, everything is pending.
const MOST_NAMES: usize = 10_000;

/// Names that one exchange settles: few enough for a server that has only just come back.
const SETTLED_AT_ONCE: usize = 64;

/// How soon an attempt is followed by another one, at first.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// And at last.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Pending {
    names: Mutex<BTreeMap<Name, Waiting>>,
    count: AtomicUsize,
    epoch: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// In which it was added last.
    epoch: u64,
    is_told: bool,
}

/// What waits, as it did in an epoch.
struct Left {
    untold: Vec<Name>,
    told: Vec<Name>,
    epoch: u64,
}

impl Pending {
    /// Adds names; `true` if there were none, so that somebody has to settle them.
    fn add(&self, names: Vec<Name>, is_told: bool) -> bool {
        let mut pending = self.names.lock();
        let was_empty = pending.is_empty();
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        for name in names {
            let waiting = pending.entry(name).or_insert(Waiting { epoch, is_told });
            // Which of two was first is not known here: the line may be from before the one that
            // could not be written.
            *waiting = Waiting { epoch, is_told: is_told && waiting.is_told };
        }
        if pending.len() > MOST_NAMES {
            pending.clear();
            pending.insert(Name::Everything, Waiting { epoch, is_told: false });
        }
        self.count.store(pending.len(), Ordering::SeqCst);
        was_empty
    }

    /// Removes names that were settled as they were in `epoch`.
    ///
    /// A name that was added again since is another invalidation.
    fn settled(&self, names: &[Name], epoch: u64) {
        let mut pending = self.names.lock();
        for name in names {
            if pending.get(name).is_some_and(|waiting| waiting.epoch <= epoch) {
                pending.remove(name);
            }
        }
        self.count.store(pending.len(), Ordering::SeqCst);
    }

    /// The ledger has names now that waited in `epoch`.
    fn told(&self, names: &[Name], epoch: u64) {
        let mut pending = self.names.lock();
        for name in names {
            if let Some(waiting) = pending.get_mut(name).filter(|waiting| waiting.epoch <= epoch) {
                waiting.is_told = true;
            }
        }
    }

    fn left(&self) -> Left {
        let pending = self.names.lock();
        let having = |told: bool| {
            let having = pending.iter().filter(move |(_, waiting)| waiting.is_told == told);
            having.map(|(name, _)| name.clone()).collect()
        };
        Left { untold: having(false), told: having(true), epoch: self.epoch() }
    }

    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Grows with every addition: a load remembers it from its beginning.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Whether a pending name speaks of an entry.
    pub(crate) fn speaks_of(&self, names: &Names<'_>) -> bool {
        if self.is_empty() {
            return false;
        }
        self.names.lock().keys().any(|name| match name {
            Name::Key(key) | Name::Set(key) => **key == *names.key,
            Name::Prefix(prefix) => names.key.starts_with(&**prefix),
            Name::Tag(tag) => names.tags.contains(tag),
            Name::Space(space) => **space == *names.space,
            Name::Everything => true,
        })
    }
}

/// What a caller has begun and not finished: names whose values are about to be taken out of tiers that
/// do not hear the ledger, or put there although a line may name them meanwhile.
///
/// A caller that is dropped before it has [finished](Self::done) leaves them pending: the ledger forgets
/// lines about keys one day, and what such a tier still has would be good again.
pub(crate) struct Unfinished {
    core: Arc<Core>,
    names: Vec<Name>,
    are_told: bool,
}

impl Unfinished {
    /// `are_told`: the ledger has nothing to hear of them.
    pub(crate) fn new(
        core: &Arc<Core>,
        are_told: bool,
        names: impl IntoIterator<Item = Name>,
    ) -> Self {
        let is_needed = core.tiers.iter().any(|tier| !tier.is_authority);
        let names = if is_needed { names.into_iter().collect() } else { Vec::new() };
        Self { core: Arc::clone(core), names, are_told }
    }

    pub(crate) fn done(mut self) {
        self.names.clear();
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let names = std::mem::take(&mut self.names);
        match (names.is_empty(), self.are_told) {
            (true, _) => {}
            (false, true) => self.core.hold_back_told(names),
            (false, false) => self.core.hold_back(names),
        }
    }
}

/// The names at these places.
pub(crate) fn at(names: &[Name], places: &[usize]) -> Vec<Name> {
    places.iter().filter_map(|&place| names.get(place).cloned()).collect()
}

impl Core {
    /// Keeps names that the ledger could not take, and sees to it that it does.
    pub(crate) fn hold_back(self: &Arc<Self>, names: Vec<Name>) {
        self.drop_untold(&names);
        self.wait_for(names, false);
    }

    /// Keeps names that the ledger has, and sees to it that what they name is dropped everywhere.
    pub(crate) fn hold_back_told(self: &Arc<Self>, names: Vec<Name>) {
        self.wait_for(names, true);
    }

    /// Takes what `names` say out of memory, which no line does.
    fn drop_untold(self: &Arc<Self>, names: &[Name]) {
        let Some(memory) = &self.memory else { return };
        for name in names {
            for key in self.memory_keys(name) {
                drop_all(|| {
                    memory.remove(&key.as_ref());
                });
            }
            match name {
                Name::Key(_) | Name::Set(_) => {}
                // What is only out of date may do until the ledger is there again.
                Name::Tag(tag) if implied::kills_nothing(tag) => {
                    if let Some(swept) = Swept::by(name) {
                        sweep::drop_from_memory(self, &swept, u64::MAX);
                    }
                }
                Name::Tag(tag) => drop_all(|| {
                    memory.retain(|_, view| !view.value.meta().details().tags.contains(tag));
                }),
                // Rare, and memory is the only tier that this process can answer for.
                _ => self.empty_memory(),
            }
        }
    }

    fn wait_for(self: &Arc<Self>, names: Vec<Name>, are_told: bool) {
        if !self.pending.add(names, are_told) {
            return;
        }
        tracing::warn!("what was invalidated is not gone from every tier yet: it is pending");
        let core = Arc::downgrade(self);
        let runtime = Arc::clone(&self.runtime);
        self.runtime.spawn(Box::pin(async move {
            let mut wait = FIRST_WAIT;
            loop {
                runtime.sleep(wait).await;
                let Some(core) = core.upgrade() else { return };
                // Looking is cheap, and an attempt writes lines even if another tier is what is
                // away.
                if core.is_any_shut() {
                    wait = FIRST_WAIT;
                    continue;
                }
                core.settle_pending().await;
                if core.pending.is_empty() {
                    tracing::info!("nothing is pending any more");
                    return;
                }
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }));
    }

    fn is_any_shut(&self) -> bool {
        self.tiers.iter().any(|tier| tier.guard.is_shut())
    }

    /// Tries to write the names that are pending, and to drop what others speak of.
    async fn settle_pending(self: &Arc<Self>) {
        let Left { untold, told, epoch } = self.pending.left();
        for names in untold.chunks(SETTLED_AT_ONCE) {
            if let Ok(appended) = self.ask(|| self.authority.append(names)).await
                && self.applied(names, &appended).await
                && self.drop_from_stores(names.iter()).await
            {
                self.pending.told(&at(names, &appended.undropped), epoch);
                self.pending.settled(&but(names, &appended.undropped), epoch);
            } else if self.is_any_shut() {
                return;
            }
        }
        for names in told.chunks(SETTLED_AT_ONCE) {
            if self.drop_from_stores(names.iter()).await
                && let Ok(undropped) = self.ask(|| self.authority.drop_again(names)).await
            {
                self.pending.settled(&but(names, &undropped), epoch);
            } else if self.is_any_shut() {
                return;
            }
        }
    }
}

/// The names at other places than these.
fn but(names: &[Name], places: &[usize]) -> Vec<Name> {
    let others = names.iter().enumerate().filter(|(place, _)| !places.contains(place));
    others.map(|(_, name)| name.clone()).collect()
}
