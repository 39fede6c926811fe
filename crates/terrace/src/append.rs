//! How lines reach the ledger: those that several callers **append** go together, with the frames, if
//! any, that the authority stores in the same step.

use std::sync::Arc;

use crate::authority::{Append, Appended, Written};
use crate::core::Core;
use crate::group::{self, Group, Together, Turn};
use crate::implied;
use crate::ledger::{Line, Name, Stamp};
use crate::pending::{self, Unfinished};
use crate::runtime::BoxFuture;
use crate::store::{Put, Scope, StoreError, StoreErrorKind, Stored};
use crate::write::Settled;

/// Lines that several callers append together: the server does nothing else meanwhile.
pub(crate) const APPENDED_AT_ONCE: usize = 128;

/// What appending lines did.
#[derive(Debug)]
pub(crate) struct Invalidated {
    pub(crate) settled: Settled,
    /// The position of the last line; `None` while it is pending.
    pub(crate) position: Option<Stamp>,
    /// For each name, whether the authority held something under it.
    pub(crate) held: Vec<bool>,
    /// What became of each frame; `None` if they have to be stored without the lines.
    pub(crate) stored: Option<Vec<Stored>>,
    /// The places of names whose values it may still hold.
    undropped: Vec<usize>,
}

impl Core {
    /// Appends a line for each name and applies it here: memory first of all.
    ///
    /// If the ledger cannot be written the names are pending: bypassed below memory,
    /// and tried again until they are settled.
    pub(crate) async fn invalidate(self: &Arc<Self>, names: Vec<Name>) -> Invalidated {
        self.write(names, Vec::new()).await
    }

    /// The same with frames that the authority stores in one step with the lines, if it has room.
    pub(crate) async fn write(
        self: &Arc<Self>,
        mut names: Vec<Name>,
        puts: Vec<Put>,
    ) -> Invalidated {
        let asked = names.len();
        self.add_implied(&mut names);
        let mut invalidated = if self.authority.scope() != Scope::Fleet {
            let (invalidated, stored) = self.append(vec![Append { names, puts }], None).await;
            Invalidated { stored: stored.into_iter().collect(), ..invalidated }
        } else {
            // Many at once on the way to a server: their lines go together, and come back in
            // order.
            match group::ask(self, Append { names: names.clone(), puts }).await {
                Some(invalidated) => invalidated,
                None => self.not_invalidated(names),
            }
        };
        invalidated.held.truncate(asked);
        if !invalidated.undropped.is_empty() {
            invalidated.settled = self.all_pending();
        }
        invalidated
    }

    fn add_implied(&self, names: &mut Vec<Name>) {
        if self.spaces.has_tracked() || names.iter().any(|name| matches!(name, Name::Prefix(_))) {
            names.extend(implied::by_names(names, |space| self.spaces.is_tracked(space)));
        }
    }

    /// What has to be named for the sake of what was built from these.
    pub(crate) fn dependents(&self, names: &[Name]) -> Vec<Name> {
        if !self.spaces.has_tracked() {
            return Vec::new();
        }
        implied::by_names(names, |space| self.spaces.is_tracked(space))
    }

    /// Names what was built from something once more, if there can be such a thing.
    pub(crate) async fn invalidate_again(self: &Arc<Self>, dependents: Vec<Name>) -> Settled {
        if dependents.is_empty() {
            return Settled::Settled;
        }
        self.invalidate(dependents).await.settled
    }

    /// The same for keys, which are taken out of the stores that do not hear the ledger, too.
    pub(crate) async fn forget(self: &Arc<Self>, names: Vec<Name>) -> Invalidated {
        let unfinished = Unfinished::new(self, false, names.iter().cloned());
        let mut invalidated = self.invalidate(names.clone()).await;
        let are_dropped = self.drop_from_stores(names.iter()).await;
        unfinished.done();
        if !are_dropped {
            invalidated.settled = self.all_pending();
            self.hold_back(names);
        }
        invalidated
    }

    /// What became of the lines, and of each frame.
    ///
    /// The turn is let go of as soon as the lines are in the ledger: one after the other, or each
    /// exchange would have to ask for the lines of those before it.
    async fn append(
        self: &Arc<Self>,
        appends: Vec<Append>,
        turn: Option<Turn<Self, Append>>,
    ) -> (Invalidated, Vec<Option<Stored>>) {
        let answer = self.ask_to_append(&appends).await;
        let unstored = vec![None; appends.iter().map(|append| append.puts.len()).sum()];
        let names = appends.into_iter().flat_map(|append| append.names).collect();
        match answer {
            Ok((appended, stored)) => {
                drop(turn);
                (self.appended(names, appended).await, stored.unwrap_or(unstored))
            }
            Err(error) => {
                tracing::debug!(%error, "the ledger cannot be written: what it was to name is pending");
                // Whoever waits has waited for as long as the ledger is given already.
                if turn.is_some() {
                    for (append, answer) in self.appends.take_all() {
                        let _ = answer.send(self.not_invalidated(append.names));
                    }
                }
                (self.not_invalidated(names), unstored)
            }
        }
    }

    /// Lines and frames in one step; the lines alone if there are no frames, or no room for any.
    async fn ask_to_append(
        &self,
        appends: &[Append],
    ) -> Result<(Appended, Option<Vec<Option<Stored>>>), StoreError> {
        if appends.iter().any(|append| !append.puts.is_empty()) {
            match self.ask(|| self.authority.write(appends)).await {
                Ok(Written { appended, stored }) => return Ok((appended, Some(stored))),
                Err(error) if error.kind() == StoreErrorKind::Full => {}
                Err(error) => return Err(error),
            }
        }
        let names: Vec<_> = appends.iter().flat_map(|append| &append.names).cloned().collect();
        Ok((self.ask(|| self.authority.append(&names)).await?, None))
    }

    /// Takes note of lines that were appended, and of what keeps them from being settled.
    async fn appended(self: &Arc<Self>, names: Vec<Name>, appended: Appended) -> Invalidated {
        let mut settled = Settled::Settled;
        let is_applied = self.applied(&names, &appended).await;
        let Appended { position, held, undropped } = appended;
        if !is_applied {
            settled = self.all_pending();
            self.hold_back(names);
        } else if !undropped.is_empty() {
            self.hold_back_told(pending::at(&names, &undropped));
        }
        Invalidated { settled, position: Some(position), held, stored: None, undropped }
    }

    fn not_invalidated(self: &Arc<Self>, names: Vec<Name>) -> Invalidated {
        let held = names.iter().map(|_| false).collect();
        self.hold_back(names);
        Invalidated {
            settled: self.all_pending(),
            position: None,
            held,
            stored: None,
            undropped: Vec::new(),
        }
    }

    pub(crate) fn all_pending(&self) -> Settled {
        Settled::Pending(self.tiers.iter().map(|tier| Arc::clone(&tier.name)).collect())
    }

    /// Takes note of lines that this process appended; `false` if lines of others come
    /// first that cannot be read, so that the mirror does not know them yet.
    pub(crate) async fn applied(self: &Arc<Self>, names: &[Name], appended: &Appended) -> bool {
        let last = appended.position.number;
        let first = (last + 1).saturating_sub(names.len() as u64);
        let lines: Vec<_> = (first..)
            .zip(names)
            .map(|(number, name)| Line { number, name: name.clone() })
            .collect();
        let position = appended.position;
        let is_next = {
            let _dropping = self.undropped.from(first);
            let is_next = self.mirror.apply(position.incarnation, &lines);
            self.drop_from_memory(&lines);
            is_next && self.mirror.has_applied(position)
        };
        if is_next {
            return true;
        }
        // Others wrote between: their lines come first. Whoever follows takes out of memory what
        // these name as well; nothing is held meanwhile that the caller could keep for ever.
        let _ = self.follow_to(Some(position)).await;
        self.drop_from_memory(&lines);
        self.mirror.has_applied(position)
    }
}

/// Lines of many callers are one exchange with the ledger.
impl Together<Append> for Core {
    type Answer = Invalidated;

    fn group(&self) -> &Group<Append, Invalidated> {
        &self.appends
    }

    fn size(append: &Append) -> usize {
        append.names.len()
    }

    fn exchange(
        self: Arc<Self>,
        appends: Vec<Append>,
        turn: Turn<Self, Append>,
    ) -> BoxFuture<'static, Vec<Invalidated>> {
        Box::pin(async move {
            let sizes: Vec<_> =
                appends.iter().map(|append| (append.names.len(), append.puts.len())).collect();
            let (invalidated, stored) = self.append(appends, Some(turn)).await;
            let Invalidated { settled, position, held, undropped, stored: _ } = invalidated;
            let (mut held, all) = (held.into_iter(), sizes.iter().map(|(names, _)| names).sum());
            let (mut stored, mut first) = (stored.into_iter(), 0);
            let answer = |(names, puts): (usize, usize)| {
                let own = first..first + names;
                first = own.end;
                let later = usize::saturating_sub(all, own.end) as u64;
                let places = undropped.iter().filter(|at| own.contains(at));
                Invalidated {
                    settled: settled.clone(),
                    // Later lines of the exchange are other callers'.
                    position: position.map(|last| Stamp { number: last.number - later, ..last }),
                    held: held.by_ref().take(names).collect(),
                    stored: stored.by_ref().take(puts).collect(),
                    undropped: places.map(|at| at - own.start).collect(),
                }
            };
            sizes.into_iter().map(answer).collect()
        })
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.runtime.spawn(task);
    }
}
