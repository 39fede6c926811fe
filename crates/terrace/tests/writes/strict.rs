//! Strict spaces: what was revoked anywhere is accepted nowhere, and a node that cannot ask the
//! ledger accepts nothing at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use terrace::store::StoreErrorKind;
use terrace::{Disk, Error, LoadError, LoadMany, Loaded, Memory, Space, Terrace, Tier};
use terrace_test::{Calls, ChaosStore, Fault};
use tokio::task::JoinSet;

use crate::support::{
    Everywhere as _, Refused, count, ends, eventually, let_others_run, ms, twins,
};

type Sessions = Space<str, u64>;

/// Two nodes that share a directory; one of them can be cut off from it.
struct Nodes {
    here: Terrace,
    line: Arc<ChaosStore>,
    there: Terrace,
    _directory: tempfile::TempDir,
}

impl Nodes {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Disk::at(directory.path()).open().unwrap();
        let line = Arc::new(ChaosStore::over(Arc::new(store)));
        let tier = Tier::shared(Arc::clone(&line) as _);
        let here = Terrace::builder().memory(Memory::bytes(16 << 20)).tier("disk", tier);
        let there = Terrace::builder().memory(Memory::bytes(16 << 20));
        let there = there.tier("disk", Disk::at(directory.path()));
        let (here, there) = (here.build().await.unwrap(), there.build().await.unwrap());
        Self { here, line, there, _directory: directory }
    }
}

fn sessions(terrace: &Terrace) -> Sessions {
    terrace.space("session").strict().forever().build().unwrap()
}

/// Whether a node accepts a session, asked in every way that there is.
async fn accepts(node: &Sessions, key: &str) -> Vec<Result<bool, String>> {
    let source_is_not_asked = |_| async { Err::<u64, _>(Refused(0)) };
    let load = ends("a load", node.get_or_load(key, source_is_not_asked).patience(ms(20_000)));
    let many = |_: LoadMany<String>| async { Err::<Vec<(String, u64)>, _>(Refused(0)) };
    let many = ends("a load of many", node.get_many_or_load([key], many)).await.remove(0);
    let of_load = |answer: Result<bool, LoadError<Refused>>| match answer {
        // The source would have to say: the cache does not.
        Err(LoadError::Loader(_)) => Ok(false),
        Err(error) => Err(error.to_string()),
        Ok(accepts) => Ok(accepts),
    };
    let plain = |answer: Result<bool, Error>| answer.map_err(|error| error.to_string());
    vec![
        plain(ends("get", node.get(key)).await.map(|found| found.is_some())),
        of_load(load.await.map(|_| true)),
        plain(ends("get_many", node.get_many([key])).await.map(|found| found[0].is_some())),
        of_load(many.map(|_| true)),
        plain(ends("exists", node.exists(key)).await),
        plain(ends("exists_many", node.exists_many([key])).await.map(|found| found == 1)),
        plain(ends("stale", node.get(key).max_stale(ms(1_000_000))).await.map(|f| f.is_some())),
    ]
}

#[track_caller]
fn all(answers: &[Result<bool, String>], expected: bool, what: &str) {
    assert!(answers.iter().all(|answer| *answer == Ok(expected)), "{what}: {answers:?}");
}

#[tokio::test]
async fn x17_a_revoked_session_is_dead_everywhere() {
    let nodes = Nodes::new().await;
    let (here, there) = (sessions(&nodes.here), sessions(&nodes.there));
    let ways = 4;
    for round in 0..count(10, 500) {
        let what = format!("revocation {round}");
        let key = format!("session {round}");
        let good = format!("good {round}");
        for key in [&key, &good] {
            let tag = key.clone();
            let log_in = |_| async { Ok::<_, Refused>(Loaded::value(7).tags([tag])) };
            assert_eq!(*there.get_or_load(key, log_in).await.unwrap(), 7, "{what}");
        }
        // Both nodes accept it, from their memories.
        for node in [&here, &there] {
            all(&accepts(node, &key).await, true, &what);
            all(&accepts(node, &good).await, true, &what);
        }
        // Cut off altogether or from the ledger alone, with a refusal or with answers that are
        // lost, or not at all.
        let is_cut_off = match round % 5 {
            0 => false,
            1 => {
                nodes.line.fail();
                true
            }
            2 => {
                let refused = Fault::Fail(StoreErrorKind::Unavailable);
                nodes.line.inject(Calls::of_authority(), refused);
                true
            }
            3 => {
                nodes
                    .line
                    .inject(Calls::of_authority(), Fault::FailAfter(StoreErrorKind::Deadline));
                true
            }
            _ => false,
        };
        match round % ways {
            0 => there.invalidate(&key).await.everywhere(),
            1 => assert!(there.remove(&key).await.unwrap(), "{what}"),
            2 => nodes.there.invalidate_tag(&key).await.everywhere(),
            _ => {
                there.clear().await.everywhere();
                let log_in = |_| async { Ok::<_, Refused>(7) };
                assert_eq!(*there.get_or_load(&good, log_in).await.unwrap(), 7, "{what}");
            }
        }
        all(&accepts(&there, &key).await, false, &what);
        assert!(here.read(&key, |_| ()).is_none(), "{what}: nothing vouches for it");
        let answers = accepts(&here, &key).await;
        if is_cut_off {
            assert!(answers.iter().all(Result::is_err), "{what}: {answers:?}");
            // What was not revoked cannot be vouched for either, nor stored if it is not there.
            let answers = accepts(&here, &good).await;
            assert!(answers.iter().all(Result::is_err), "{what}: {answers:?}");
            let absent = ends("insert_if_absent", here.insert_if_absent(&key, 8)).await;
            assert!(matches!(absent, Err(Error::Authority(_))), "{what}: {absent:?}");
        } else {
            all(&answers, false, &what);
        }
        nodes.line.heal();
        eventually("it is connected again", async || {
            accepts(&here, &key).await.iter().all(|answer| *answer == Ok(false))
        })
        .await;
        for node in [&here, &there] {
            all(&accepts(node, &good).await, true, &what);
            all(&accepts(node, &key).await, false, &what);
        }
    }
}

/// Nodes that accept all the time: none does so that began to after the revocation returned.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x17_no_call_that_begins_after_a_revocation_accepts() {
    let directory = tempfile::tempdir().unwrap();
    let caches = twins(&directory).await;
    let (here, there) = (sessions(&caches[0]), sessions(&caches[1]));
    for round in 0..count(10, 500) {
        let key: Arc<str> = format!("session {round}").into();
        there.insert(&key, 7).await.everywhere();
        let (is_revoked, is_over) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (accepted, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let guards: Vec<_> = (0..3)
            .map(|guard| {
                let (here, key) = (here.clone(), Arc::clone(&key));
                let (is_revoked, is_over) = (Arc::clone(&is_revoked), Arc::clone(&is_over));
                let (accepted, refused) = (Arc::clone(&accepted), Arc::clone(&refused));
                tokio::spawn(async move {
                    while !is_over.load(Ordering::SeqCst) {
                        let began_after = is_revoked.load(Ordering::SeqCst);
                        let accepts = match guard {
                            0 => here.get(&key).await.unwrap().is_some(),
                            1 => here.exists(&key).await.unwrap(),
                            _ => {
                                let source = |_| async { Err::<u64, _>(Refused(0)) };
                                here.get_or_load(&key, source).await.is_ok()
                            }
                        };
                        assert!(!(began_after && accepts), "guard {guard} in round {round}");
                        let counter = if accepts { &accepted } else { &refused };
                        counter.fetch_add(1, Ordering::SeqCst);
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        eventually("they accept", async || accepted.load(Ordering::SeqCst) > 5).await;
        there.invalidate(&key).await.everywhere();
        is_revoked.store(true, Ordering::SeqCst);
        let before = refused.load(Ordering::SeqCst);
        eventually("they refuse", async || refused.load(Ordering::SeqCst) > before + 9).await;
        is_over.store(true, Ordering::SeqCst);
        for guard in guards {
            ends("a guard", guard).await.unwrap();
        }
    }
}

#[tokio::test]
async fn x17_nothing_past_its_end_is_accepted() {
    let nodes = Nodes::new().await;
    let space: Sessions = nodes.here.space("session").strict().forever().build().unwrap();
    space.insert("key", 7).await.everywhere();
    assert!(space.mark_stale("key").await.unwrap());
    let_others_run().await;
    all(&accepts(&space, "key").await, false, "stale");
    let answer = space.get_or_load("key", |_| async { Err::<u64, _>(Refused(1)) });
    assert!(answer.max_stale(ms(1_000_000)).await.is_err());
}

/// A ledger that never answers: whoever asks is refused in time, however many ask.
#[tokio::test]
async fn x17_a_ledger_that_never_answers_vouches_for_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Disk::at(directory.path()).open().unwrap();
    let line = Arc::new(ChaosStore::over(Arc::new(store)));
    let tier = Tier::shared(Arc::clone(&line) as _).deadlines(ms(1_000), ms(1_000));
    let here = Terrace::builder().memory(Memory::bytes(16 << 20)).tier("disk", tier);
    let here = here.build().await.unwrap();
    let there = Terrace::builder().tier("disk", Disk::at(directory.path())).build().await.unwrap();
    let (here, there) = (sessions(&here), sessions(&there));
    there.insert("key", 7).await.everywhere();
    all(&accepts(&here, "key").await, true, "before");
    line.hang();
    there.invalidate("key").await.everywhere();
    let mut callers = JoinSet::new();
    for _ in 0..20 {
        let here = here.clone();
        callers.spawn(async move { accepts(&here, "key").await });
    }
    for answers in ends("those who ask", callers.join_all()).await {
        assert!(answers.iter().all(Result::is_err), "{answers:?}");
    }
    line.heal();
    eventually("it is connected again", async || {
        accepts(&here, "key").await.iter().all(|answer| *answer == Ok(false))
    })
    .await;
}
