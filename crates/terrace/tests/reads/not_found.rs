//! Not found: what a source did not have when it was asked is there later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use terrace::{LoadError, Space};
use terrace_test::History;
use terrace_test::history::Seen;
use tokio::task::JoinSet;

use crate::support::{Bed, Everywhere as _, Layout, Refused, count, ends, let_others_run};

/// How a loader says that there is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nothing {
    /// With an error, which no tier keeps.
    Error,
    /// With a value, which every tier keeps.
    Value,
}

struct Ids {
    space: Space<u64, Option<u64>>,
    source: Vec<AtomicU64>,
    invalidated: Vec<AtomicBool>,
    nothing: Nothing,
    history: History<u64>,
}

/// How to look with a loader that does not wait.
const LOAD: u64 = 3;

impl Ids {
    /// Looks at an id in one of several ways. Some that load are slow: what they saw
    /// before the id turned up they tell afterwards.
    async fn look(self: &Arc<Self>, id: u64, way: u64) -> Seen {
        let look = self.history.reads(id);
        let found = match way % 4 {
            0 => self.space.get(&id).await.unwrap().map(|found| *found),
            1 => self.space.get_many(&[id, id + 1]).await.unwrap()[0].as_deref().copied(),
            2 => self.space.read(&id, |found| *found),
            _ => {
                let ids = Arc::clone(self);
                let is_slow = way > LOAD && id % 2 == 1;
                let load = |_| async move {
                    let version = ids.source[id as usize].load(Ordering::SeqCst);
                    if is_slow {
                        while !ids.invalidated[id as usize].load(Ordering::SeqCst) {
                            tokio::task::yield_now().await;
                        }
                        let_others_run().await;
                    }
                    match (version, ids.nothing) {
                        (0, Nothing::Error) => Err(Refused(id)),
                        (0, Nothing::Value) => Ok(None),
                        (version, _) => Ok(Some(version)),
                    }
                };
                match self.space.get_or_load(&id, load).await {
                    Ok(found) => Some(*found),
                    Err(LoadError::Loader(_)) => Some(None),
                    Err(error) => panic!("{id}: {error}"),
                }
            }
        };
        let seen = found.map_or(Seen::Miss, |found| found.map_or(Seen::NotFound, Seen::Version));
        look.saw(seen);
        seen
    }

    /// A missing id is read, inserted into the source and invalidated, while others read.
    async fn turns_up(self: Arc<Self>, id: u64) {
        assert_eq!(self.look(id, LOAD).await, Seen::NotFound);
        let is_over = Arc::new(AtomicBool::new(false));
        let mut readers = JoinSet::new();
        for reader in 0..3 {
            let (ids, is_over) = (Arc::clone(&self), Arc::clone(&is_over));
            readers.spawn(async move {
                for way in reader.. {
                    let is_last = is_over.load(Ordering::SeqCst);
                    ids.look(id, way).await;
                    if is_last {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            });
        }
        for _ in 0..id % 8 {
            tokio::task::yield_now().await;
        }
        let write = self.history.writes(id, Some(id + 1));
        self.source[id as usize].store(id + 1, Ordering::SeqCst);
        write.ended();
        let invalidation = self.history.invalidates(id);
        self.space.invalidate(&id).await.everywhere();
        invalidation.ended();
        self.invalidated[id as usize].store(true, Ordering::SeqCst);
        assert_eq!(self.look(id, LOAD).await, Seen::Version(id + 1));
        is_over.store(true, Ordering::SeqCst);
        ends("readers", readers.join_all()).await;
    }
}

async fn every_id_turns_up(nothing: Nothing) {
    /// Ids that turn up side by side.
    const TASKS: usize = 8;
    let count = count(1_000, 10_000);
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let ids = Arc::new(Ids {
            space: bed.space("space").forever().build().unwrap(),
            source: (0..=count).map(|_| AtomicU64::new(0)).collect(),
            invalidated: (0..=count).map(|_| AtomicBool::new(false)).collect(),
            nothing,
            history: History::new(),
        });
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let ids = Arc::clone(&ids);
            tasks.spawn(async move {
                for id in (task..count).step_by(TASKS) {
                    Arc::clone(&ids).turns_up(id as u64).await;
                }
            });
        }
        tasks.join_all().await;
        // Nothing that was stored late comes up from below.
        for when in ["in the end", "from below memory"] {
            for id in 0..count as u64 {
                assert_eq!(ids.look(id, LOAD).await, Seen::Version(id + 1), "{layout:?}, {when}");
            }
            if layout.has_memory() {
                bed.clear_tier("memory").await.unwrap();
            }
        }
        let judged = ids.history.check().unwrap_or_else(|impossible| panic!("{impossible}"));
        assert!(judged.not_found >= count as u64, "{judged:?}");
        assert!(bed.close().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c13_what_was_refused_is_found_once_it_is_there() {
    every_id_turns_up(Nothing::Error).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c13_what_was_known_to_be_missing_is_found_once_it_is_there() {
    every_id_turns_up(Nothing::Value).await;
}
