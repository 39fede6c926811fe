//! The **conformance kits**: what every store and every authority has promised.
//!
//! Each kit makes fresh subjects with the closure that it is given, puts them to
//! the test, and panics with a plain sentence on the first promise that is broken.
//! They take a second or so for a store in memory, and write some 10 MB to a slower
//! one. Time is an argument of every question, so that nothing waits for it; a
//! subject that never answers is waited for without end, though.
//!
//! They run inside a Tokio runtime, because some promises are about tasks that get
//! into each other's way. With more than one thread they find more.
//!
//! ```
//! use std::sync::Arc;
//! use terrace::authority::{Authority, LocalAuthority};
//! use terrace::store::Store;
//! use terrace_test::{MapStore, conformance};
//!
//! # #[tokio::main]
//! # async fn main() {
//! conformance::store(|| async { Arc::new(MapStore::new()) as Arc<dyn Store> }).await;
//! conformance::authority(|| async { Arc::new(LocalAuthority::new(7)) as Arc<dyn Authority> }).await;
//! # }
//! ```

mod authority;
mod judging;
mod random_walk;
mod store;

use std::fmt::Debug;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use terrace::authority::Authority;
use terrace::clock::WallTime;
use terrace::key::StoredKey;
use terrace::ledger::{Name, Names, Stamp};
use terrace::store::{Store, StoreError};

/// Checks a store; `make` returns a fresh, empty one each time.
///
/// A store that keeps a ledger is also checked for what it has to do with the two
/// in one step. Its ledger by itself is a matter for [`authority`].
///
/// A store must take frames of 64 KiB; it may answer that larger ones are too large.
///
/// # Panics
/// A promise is broken.
pub async fn store<Fut>(make: impl Fn() -> Fut)
where
    Fut: Future<Output = Arc<dyn Store>>,
{
    store::check(&make).await;
    judging::check(&make).await;
}

/// Checks an authority; `make` returns a fresh one each time, whose ledger is empty.
///
/// The last part is a number of [`random_walk`]s.
///
/// # Panics
/// A promise is broken.
pub async fn authority<Fut>(make: impl Fn() -> Fut)
where
    Fut: Future<Output = Arc<dyn Authority>>,
{
    authority::check(&make).await;
    for seed in 0..8 {
        random_walk(&*make().await, seed).await;
    }
}

/// Asks a fresh authority and the model, [`protocol::Record`](terrace::protocol::Record),
/// the same random questions, and compares the answers.
///
/// The same seed asks the same questions.
///
/// # Panics
/// An answer differs; the message has the seed and the question.
pub async fn random_walk(authority: &dyn Authority, seed: u64) {
    random_walk::walk(authority, seed).await;
}

/// Details of a broken promise beyond which it is cut off.
const LONGEST_DETAIL: usize = 2000;

#[track_caller]
#[expect(clippy::panic, reason = "a kit says what is broken by panicking")]
fn broken(promise: &str, details: &str) -> ! {
    let details: String = details.chars().take(LONGEST_DETAIL).collect();
    panic!("broken promise: {promise}{details}");
}

#[track_caller]
fn holds(is_so: bool, promise: &str) {
    if !is_so {
        broken(promise, "");
    }
}

#[track_caller]
fn same<T: PartialEq + Debug>(found: &T, expected: &T, promise: &str) {
    if found != expected {
        broken(promise, &format!("\n  found:    {found:?}\n  expected: {expected:?}"));
    }
}

/// The answer of a subject that has no reason to fail.
#[track_caller]
fn answered<T>(answer: Result<T, StoreError>) -> T {
    match answer {
        Ok(answer) => answer,
        Err(error) => {
            broken("a healthy subject answers every question", &format!("\n  error: {error}"))
        }
    }
}

/// Runs tasks side by side and waits for all; a panic in one goes on here.
async fn together<Fut>(tasks: impl IntoIterator<Item = Fut>) -> Vec<Fut::Output>
where
    Fut: Future<Output: Send + 'static> + Send + 'static,
{
    let tasks: Vec<_> = tasks.into_iter().map(tokio::spawn).collect();
    let mut outputs = Vec::with_capacity(tasks.len());
    for task in tasks {
        match task.await {
            Ok(output) => outputs.push(output),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => broken("a task runs to its end", &format!("\n  error: {error}")),
            },
        }
    }
    outputs
}

/// Polls `work` at most `times`, others taking their turns in between, and drops it.
async fn abandon(work: impl Future, times: usize) {
    let mut work = pin!(work);
    for _ in 0..times {
        let is_done =
            std::future::poll_fn(|context| Poll::Ready(work.as_mut().poll(context).is_ready()))
                .await;
        if is_done {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// So many milliseconds after the clock of the kits started.
fn at(millis: u64) -> WallTime {
    crate::START.saturating_add(Duration::from_millis(millis))
}

/// The position of an authority's newest line.
async fn position(authority: &dyn Authority) -> Stamp {
    let snapshot = answered(authority.snapshot().await);
    Stamp { incarnation: snapshot.incarnation, number: snapshot.last }
}

/// The same number in another ledger.
fn foreign(stamp: Stamp) -> Stamp {
    Stamp { incarnation: stamp.incarnation ^ 1, ..stamp }
}

/// An entry as the ledger sees it, with texts that pattern languages trip over.
struct Entry {
    key: StoredKey,
    name: Arc<str>,
    space: Arc<str>,
    tags: Arc<[Arc<str>]>,
}

impl Entry {
    fn new() -> Self {
        Self::of(b"a_b%c")
    }

    fn of(key: &[u8]) -> Self {
        let key = StoredKey::new("te", "sp_ace", 1, key);
        let tags = Arc::from([Arc::from("te:blue"), Arc::from("te:r_d")]);
        Self { name: key.name(), key, space: "te:sp_ace".into(), tags }
    }

    fn names(&self) -> Names<'_> {
        Names { key: &self.name, space: &self.space, tags: &self.tags }
    }

    /// Lines that name it.
    fn named_by(&self) -> Vec<Name> {
        vec![
            Name::Key(Arc::clone(&self.name)),
            Name::Set(Arc::clone(&self.name)),
            Name::Prefix(Arc::clone(&self.name)),
            Name::Prefix("te:sp_ace:a_b%25".into()),
            Name::Prefix("te:sp_ace:".into()),
            Name::Prefix("t".into()),
            Name::Prefix("".into()),
            Name::Tag("te:blue".into()),
            Name::Tag("te:r_d".into()),
            Name::Space(Arc::clone(&self.space)),
            Name::Everything,
        ]
    }

    /// Lines that name something else, however much they look alike.
    fn not_named_by(&self) -> Vec<Name> {
        vec![
            Name::Key("te:sp_ace:a_b%25".into()),
            Name::Key("te:sp_ace:a_b%25cd".into()),
            Name::Key("te:sp_ace:A_B%25C".into()),
            Name::Set("te:sp_ace:other".into()),
            Name::Prefix("te:sp_ace:a_b%25cd".into()),
            Name::Prefix("te:sp_ace:axb".into()),
            Name::Prefix("te:%".into()),
            Name::Prefix("te:s_".into()),
            Name::Prefix("te:*".into()),
            Name::Prefix("te:[a-z]".into()),
            Name::Prefix("te:sp.ace".into()),
            Name::Prefix("TE:SP_ACE:".into()),
            Name::Prefix("te:sp_ace:a' OR '1'='1".into()),
            Name::Prefix("e:sp_ace".into()),
            Name::Tag("te:r".into()),
            Name::Tag("te:red".into()),
            Name::Tag("te:R_D".into()),
            Name::Tag(Arc::clone(&self.space)),
            Name::Space("te:sp".into()),
            Name::Space("te:sp-ace".into()),
            Name::Space("te:sp_ace2".into()),
            Name::Space("te:".into()),
            Name::Space(":sp_ace".into()),
            Name::Space("TE:SP_ACE".into()),
            Name::Space("te:r_d".into()),
        ]
    }
}
