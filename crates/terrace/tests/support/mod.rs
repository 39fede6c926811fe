//! What several binaries need: counts, seeds, limits, and caches to test.

use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tempfile::TempDir;
use terrace::clock::{Clock, WallTime};
use terrace::{Disk, Memory, Settled, Terrace, Tier};
use terrace_test::MapStore;

/// Whether the full counts of docs/reliability.md are wanted.
pub(crate) fn is_full() -> bool {
    std::env::var_os("TERRACE_FULL").is_some()
}

/// A count of docs/reliability.md.
pub(crate) fn count(everyday: usize, full: usize) -> usize {
    if is_full() { full } else { everyday }
}

/// A time limit of docs/reliability.md: the everyday run may take three times as long.
pub(crate) fn limit(time: Duration) -> Duration {
    if is_full() { time } else { 3 * time }
}

/// Milliseconds.
pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What `work` brings; a test in which it never ends says so and stops.
pub(crate) async fn ends<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(30), work).await {
        Ok(output) => output,
        Err(_) => panic!("hung: {what}"),
    }
}

/// Waits until `is_true` says so; a test in which that does not come true says so.
pub(crate) async fn eventually(what: &str, mut is_true: impl AsyncFnMut() -> bool) {
    let deadline = Duration::from_secs(10);
    let came_true = tokio::time::timeout(deadline, async {
        while !is_true().await {
            tokio::time::sleep(ms(1)).await;
        }
    });
    assert!(came_true.await.is_ok(), "not within {deadline:?}: {what}");
}

/// Random choices that the same seed makes again. The seed is in the output of a
/// test that fails; `TERRACE_SEED` sets it.
pub(crate) fn random(what: &str) -> fastrand::Rng {
    let given = std::env::var("TERRACE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("{what}: TERRACE_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// One poll, by a caller that goes on to other things.
pub(crate) async fn poll_once<F: Future + ?Sized>(mut work: Pin<&mut F>) -> Poll<F::Output> {
    std::future::poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await
}

/// `work`, with `then` done right after its first poll: by then its caller has boarded
/// whatever there is to board.
pub(crate) async fn once_polled<F: Future>(work: F, then: impl FnOnce()) -> F::Output {
    let mut work = Box::pin(work);
    let first = poll_once(work.as_mut()).await;
    then();
    match first {
        Poll::Ready(output) => output,
        Poll::Pending => work.await,
    }
}

/// Gives every task that can run the chance to, many times over.
pub(crate) async fn let_others_run() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Which tiers a cache has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Memory,
    MemoryAndDisk,
    Disk,
    MemoryAndMap,
}

impl Layout {
    /// All of them.
    pub(crate) const ALL: [Self; 4] =
        [Self::Memory, Self::MemoryAndDisk, Self::Disk, Self::MemoryAndMap];

    pub(crate) fn has_memory(self) -> bool {
        self != Self::Disk
    }
}

/// A cache to test, with what it stands on.
pub(crate) struct Bed {
    pub(crate) terrace: Terrace,
    pub(crate) directory: TempDir,
}

impl Bed {
    pub(crate) async fn new(layout: Layout) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        // Many flights at once are what most tests are about, not how many there may be.
        let mut builder = Terrace::builder().max_loads(200_000);
        if layout.has_memory() {
            builder = builder.memory(Memory::bytes(64 << 20));
        }
        builder = match layout {
            Layout::Memory => builder,
            Layout::MemoryAndDisk | Layout::Disk => {
                builder.tier("disk", Disk::at(directory.path()))
            }
            Layout::MemoryAndMap => builder.tier("map", Tier::of(MapStore::new())),
        };
        let terrace = builder.build().await.expect("a cache");
        Self { terrace, directory }
    }
}

impl Deref for Bed {
    type Target = Terrace;
    fn deref(&self) -> &Terrace {
        &self.terrace
    }
}

/// For writes that no tier was away for.
pub(crate) trait Everywhere {
    fn everywhere(self);
}

impl Everywhere for Result<Settled, terrace::Error> {
    fn everywhere(self) {
        assert_eq!(self.expect("a write"), Settled::Settled);
    }
}

/// Two caches over one directory, as two processes would be.
pub(crate) async fn twins(directory: &TempDir) -> [Terrace; 2] {
    let build = async || {
        Terrace::builder()
            .memory(Memory::bytes(64 << 20))
            .tier("disk", Disk::at(directory.path()))
            .build()
            .await
            .expect("a cache")
    };
    [build().await, build().await]
}

/// The error of loaders that fail.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) u64);

impl std::fmt::Display for Refused {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "refused {}", self.0)
    }
}

impl std::error::Error for Refused {}

/// The time of a runtime that is paused: it moves when everybody waits for it.
#[derive(Debug)]
pub(crate) struct PausedClock(tokio::time::Instant);

impl Clock for PausedClock {
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
    fn wall(&self) -> WallTime {
        WallTime::from_millis(self.0.elapsed().as_millis() as u64)
    }
}

impl Default for PausedClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the time of a paused runtime is in the test's hands"
    )]
    fn default() -> Self {
        Self(tokio::time::Instant::now())
    }
}
