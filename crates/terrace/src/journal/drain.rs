//! The **drain**: the task that hands what the journal holds of a space to the space's writer.
//!
//! One batch at a time, and each only if no other process owns the space. A batch that fails is
//! tried again one write at a time, so that the one that is to blame becomes a dead letter alone.
//! After every failure the whole space waits, ever longer: a source that is down is asked once in
//! a while, not once a write.

use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::database::Failure;
use super::owner::Owner;
use super::{OpenJournal, Row};
use crate::behind::readable;
use crate::clock::{Tick, WallTime};
use crate::codec::ValueCodec;
use crate::core::Core;
use crate::key::key_name;
use crate::ledger::Name;
use crate::load::catch_panic;
use crate::policy::left;
use crate::runtime::unless;
use crate::source::{NotWritten, Source, Write};
use crate::stats::bump;
use crate::store::{StoreError, StoreErrorKind};

/// How often the owner looks for what other processes have added.
const LOOKING: Duration = Duration::from_millis(50);

/// How often a process that is not the owner tries to become it.
const TAKING_OVER: Duration = Duration::from_millis(500);

/// How long the journal is left alone after it failed.
const FAILED: Duration = Duration::from_secs(1);

/// Bytes of an error that are kept.
const LONGEST_ERROR: usize = 1024;

/// What is needed to write what a space's journal holds.
pub(crate) struct Drain<K: ToOwned + ?Sized, V> {
    pub(crate) core: Weak<Core>,
    pub(crate) journal: Arc<OpenJournal>,
    /// The space, as the journal knows it.
    pub(crate) space: Arc<str>,
    /// The same as the ledger names it.
    pub(crate) name: Arc<str>,
    pub(crate) codec: ValueCodec<V>,
    pub(crate) source: Arc<Source<K, V>>,
}

/// How it stands with the source.
#[derive(Default)]
struct State {
    owner: Option<Owner>,
    /// Failures in a row.
    failures: u32,
    /// The writer is not called before this.
    paused_until: Tick,
}

impl<K, V> Drain<K, V>
where
    K: ToOwned + ?Sized + 'static,
    K::Owned: Send,
    V: Send + 'static,
{
    /// Writes until the cache is closed or dropped.
    pub(crate) async fn run(self) {
        self.journal.owners.begin(&self.space);
        let mut state = State::default();
        loop {
            let changed = self.journal.changed.notified();
            let Some(core) = self.core.upgrade() else { return };
            let runtime = Arc::clone(&core.runtime);
            // Keys and values may panic when they are dropped; the next round comes.
            let stepped = catch_panic(pin!(self.step(&core, &mut state))).await;
            drop(core);
            match stepped {
                Ok(Ok(Duration::ZERO)) => {}
                Ok(Ok(wait)) => {
                    unless(|| runtime.sleep(wait), changed).await;
                }
                Ok(Err(error)) if error.kind() == StoreErrorKind::Closed => return,
                failed => {
                    if let Ok(Err(error)) = failed {
                        tracing::warn!(%error, "what is written behind has to wait");
                    }
                    // What is taken and not settled is found again by whoever takes over.
                    state.owner = None;
                    runtime.sleep(FAILED).await;
                }
            }
        }
    }

    /// Does what can be done now, and says how long to wait before the next look.
    async fn step(&self, core: &Arc<Core>, state: &mut State) -> Result<Duration, StoreError> {
        if self.journal.is_closed() {
            return Err(StoreError::new(StoreErrorKind::Closed, "hand out the journal"));
        }
        if state.owner.is_none() {
            let own = self.journal.owners.own(&self.space).map_err(|error| {
                let doing = "lock the journal of a space";
                StoreError::new(StoreErrorKind::Unavailable, doing).caused_by(error)
            })?;
            let Some(owner) = own else { return Ok(TAKING_OVER) };
            state.owner = Some(owner);
            let found = self.journal.recover(&self.space).await?;
            if found > 0 {
                tracing::info!(writes = found, "taking over what a former process has not written");
            }
        }
        let (now, tick) = (core.wall(), core.clock.tick());
        let due = self.journal.due(&self.space, now, self.source.settings.max_batch)?;
        if due.writes == 0 {
            let next = due.next.map_or(LOOKING, |next| next.saturating_since(now));
            return Ok(next.clamp(Duration::from_millis(1), LOOKING));
        }
        let pause = left(tick, state.paused_until);
        if !pause.is_zero() {
            return Ok(pause.min(LOOKING));
        }
        let lingered = now.saturating_since(due.oldest);
        let is_ripe = due.writes >= self.source.settings.max_batch
            || due.has_failed
            // The clock was put back: how long it has waited is not known.
            || due.oldest > now
            || lingered >= self.source.settings.linger
            || self.journal.is_hurried();
        if !is_ripe {
            return Ok((self.source.settings.linger - lingered).min(LOOKING));
        }
        let rows = self.journal.take(&self.space, now, self.source.settings.max_batch).await?;
        let (rows, writes) = self.decode(core, rows).await?;
        if !writes.is_empty() {
            self.write(core, state, rows, writes).await?;
        }
        Ok(Duration::ZERO)
    }

    /// The writes as the writer gets them; those that cannot be read become dead letters.
    async fn decode(
        &self,
        core: &Arc<Core>,
        rows: Vec<Row>,
    ) -> Result<(Vec<Row>, Vec<Write<K, V>>), StoreError> {
        let (mut readable, mut writes) = (Vec::new(), Vec::new());
        for row in rows {
            match self.write_of(&row) {
                Some(write) => {
                    readable.push(row);
                    writes.push(write);
                }
                None => {
                    let error = "it is damaged, or of a type that this build does not know";
                    let retry_at = WallTime::default();
                    let (number, error) = (row.number, error.to_owned());
                    let failure = Failure { number, error, retry_at, is_dead: true };
                    self.journal.fail(failure).await?;
                    // Caches hold what the source will not have.
                    self.invalidate(core, std::slice::from_ref(&row)).await;
                }
            }
        }
        Ok((readable, writes))
    }

    fn write_of(&self, row: &Row) -> Option<Write<K, V>> {
        let (key, change) = readable(&self.source, Some(self.codec), row)?;
        Some(Write { key, change, id: self.journal.id(row.number), failures: row.failures })
    }

    async fn write(
        &self,
        core: &Arc<Core>,
        state: &mut State,
        rows: Vec<Row>,
        writes: Vec<Write<K, V>>,
    ) -> Result<(), StoreError> {
        let numbers: Vec<_> = rows.iter().map(|row| row.number).collect();
        let runtime = &*core.runtime;
        let written = self.source.write(runtime, writes).await;
        let Err(error) = written else {
            state.failures = 0;
            for row in &rows {
                self.journal.note_lag(core.wall().saturating_since(row.queued));
            }
            // Others who share the ledger and not this journal may have loaded what was there
            // before, and who wrote it may have been killed before it told the ledger: what is
            // older than this in any tier must not be found once the journal lets go of it.
            if core.is_shared() {
                self.invalidate(core, &rows).await;
            }
            return self.journal.settle(numbers).await;
        };
        tracing::warn!(%error, writes = rows.len(), "the source was not written");
        bump(&self.journal.counters.failures);
        state.failures = state.failures.saturating_add(1);
        let pause = self.source.settings.backoff.wait(state.failures, runtime.random());
        state.paused_until = core.clock.tick().saturating_add(pause);
        match rows.as_slice() {
            [row] => self.fail(core, row, &error).await,
            _ => self.journal.part(numbers).await,
        }
    }

    async fn fail(
        &self,
        core: &Arc<Core>,
        row: &Row,
        error: &NotWritten,
    ) -> Result<(), StoreError> {
        let failures = row.failures.saturating_add(1);
        let is_dead = failures >= self.source.settings.attempts;
        let wait = self.source.settings.backoff.wait(failures, core.runtime.random());
        let mut error = error.to_string();
        error.truncate(error.floor_char_boundary(LONGEST_ERROR));
        let retry_at = core.wall().saturating_add(wait);
        self.journal.fail(Failure { number: row.number, error, retry_at, is_dead }).await?;
        if is_dead {
            // Caches hold what the source will not have.
            self.invalidate(core, std::slice::from_ref(row)).await;
        }
        Ok(())
    }

    async fn invalidate(&self, core: &Arc<Core>, rows: &[Row]) {
        let names = rows.iter().map(|row| Name::Key(key_name(&self.name, &row.key)));
        // What cannot be told now is pending, and told later.
        core.forget(names.collect()).await;
    }
}
