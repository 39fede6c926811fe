//! `stampede`: ten thousand callers at once for one missing value.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::Request;
use crate::engines::Sharing;
use crate::engines::amalgam::AmalgamLoading;
use crate::engines::cached::CachedLoading;
use crate::engines::cachet::CachetLoading;
use crate::engines::foyer::FoyerLoading;
use crate::engines::moka::MokaLoading;
use crate::engines::quick_cache::QuickCacheLoading;
use crate::engines::terrace::TerraceLoading;
use crate::goal::Goal;
use crate::harness::{Better, Case, Engine, Metric, compare};
use crate::load::{Source, id_of, text_key};
use crate::report::Report;

pub const SUITE: &str = "stampede";

pub const CASES: &[&str] = &["10k-callers", "10k-callers-failing", "10k-callers-leader-dropped"];

/// Of the last caller's wait, what the load itself does not explain; how often it was loaded.
const METRICS: &[Metric] = &[
    Metric { name: "added_ms", unit: "ms", better: Better::Lower },
    Metric { name: "loads", unit: "loads", better: Better::Lower },
];

/// Whatever happens, one load is enough.
const GOALS: &[Goal] = &[Goal::Value { metric: "loads", at_most: 1.0 }];

const CALLERS: usize = 10_000;

/// Whoever has no answer after so long is said to have none: many times what a load takes.
const LIMIT: Duration = Duration::from_secs(5);

/// So often it is tried to drop the first caller while it loads, before the machine is too slow.
const ATTEMPTS: usize = 5;

/// What happens while everybody waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Nothing,
    /// The loader fails.
    Failure,
    /// The task of the first caller, whose loader runs, is dropped.
    LeaderDropped,
}

pub fn run(request: &Request, report: &mut Report) -> Result<()> {
    let runtime = &Runtime::new().context("no runtime")?;
    for &name in CASES.iter().filter(|case| request.wants(case)) {
        let event = match name {
            "10k-callers" => Event::Nothing,
            "10k-callers-failing" => Event::Failure,
            "10k-callers-leader-dropped" => Event::LeaderDropped,
            _ => bail!("no case {name:?} in {SUITE}"),
        };
        let engines = vec![
            engine::<TerraceLoading>(runtime, event),
            engine::<MokaLoading>(runtime, event),
            engine::<QuickCacheLoading>(runtime, event),
            engine::<FoyerLoading>(runtime, event),
            engine::<CachetLoading<true>>(runtime, event),
            engine::<AmalgamLoading<false>>(runtime, event),
            engine::<AmalgamLoading<true>>(runtime, event),
            engine::<CachedLoading<true>>(runtime, event),
        ];
        let case = Case { suite: SUITE, name, metrics: METRICS };
        let mut outcome = compare(&case, engines, request.pace(CASES.len()));
        outcome.judge(&case, GOALS);
        report.add(name, outcome)?;
    }
    Ok(())
}

fn engine<L: Sharing>(runtime: &Runtime, event: Event) -> Engine<'_> {
    Engine::new(L::NAME, L::version(), move || {
        runtime.block_on(async {
            for _ in 0..ATTEMPTS {
                let cache = L::with_room_for(1000).await?;
                // As in a service: whoever starts the callers runs on the runtime too.
                let storm = tokio::spawn(storm(cache.clone(), event)).await??;
                cache.close().await;
                if let Some(Storm { took, source }) = storm {
                    let added = took.saturating_sub(source.delay());
                    return Ok(vec![added.as_secs_f64() * 1e3, source.loads() as f64]);
                }
            }
            bail!(
                "the machine is too slow: each time the first caller was done before it was dropped"
            )
        })
    })
}

/// What came of one.
struct Storm {
    /// From before the first caller asks to after the last one has its answer.
    took: Duration,
    source: &'static Source,
}

/// Nothing if the first caller was done before it could be dropped.
async fn storm<L: Sharing>(cache: L, event: Event) -> Result<Option<Storm>> {
    // One of its own, never given back: some go on loading after everybody has left.
    let source: &'static Source = Box::leak(Box::new(match event {
        Event::Nothing => Source::new(Duration::from_millis(50)),
        // Enough for all to come while it loads: who comes after a failure loads again.
        Event::Failure => Source::down(Duration::from_millis(200)),
        Event::LeaderDropped => Source::new(Duration::from_millis(200)),
    }));
    let key = text_key(7);
    let waiting = Arc::new(AtomicUsize::new(0));
    let call = || {
        let (cache, key, waiting) = (cache.clone(), key.clone(), Arc::clone(&waiting));
        tokio::spawn(async move {
            match event {
                Event::Nothing => cache.get_or_load(&key, source).await.map(Some),
                Event::Failure => Ok(cache.try_load(&key, source).await),
                Event::LeaderDropped => {
                    let mut answer = pin!(cache.get_or_load(&key, source));
                    let first = poll_fn(|context| Poll::Ready(answer.as_mut().poll(context))).await;
                    waiting.fetch_add(1, Relaxed);
                    match first {
                        Poll::Ready(answer) => answer.map(Some),
                        Poll::Pending => answer.await.map(Some),
                    }
                }
            }
        })
    };

    let begun = Instant::now();
    let mut callers = Callers { tasks: Vec::with_capacity(CALLERS), begun };
    if event == Event::LeaderDropped {
        let leader = call();
        until(begun, || source.loads() > 0).await.context("the first caller loaded nothing")?;
        callers.tasks.extend((1..CALLERS).map(|_| call()));
        until(begun, || waiting.load(Relaxed) == CALLERS).await.context("not all callers came")?;
        leader.abort();
        if leader.await.is_ok() {
            return Ok(None);
        }
    } else {
        callers.tasks.extend((0..CALLERS).map(|_| call()));
    }
    let expected = if event == Event::Failure { None } else { Some(id_of(&key)) };
    callers.wait_for(expected, source).await?;
    Ok(Some(Storm { took: begun.elapsed(), source }))
}

/// Tasks that are dropped with this.
struct Callers {
    tasks: Vec<JoinHandle<Result<Option<u64>>>>,
    begun: Instant,
}

impl Callers {
    /// Waits until all have the answer that is `expected`.
    async fn wait_for(&mut self, expected: Option<u64>, source: &Source) -> Result<()> {
        let limit = tokio::time::Instant::from_std(self.begun + LIMIT);
        let (count, mut right) = (self.tasks.len(), 0);
        for task in &mut self.tasks {
            let Ok(answer) = tokio::time::timeout_at(limit, task).await else { break };
            if answer?? == expected {
                right += 1;
            }
        }
        let waiting = self.tasks.iter().filter(|task| !task.is_finished()).count();
        let loads = source.loads();
        ensure!(
            waiting == 0,
            "after {LIMIT:?}, {waiting} of {count} callers had no answer; it had loaded {loads} times"
        );
        ensure!(right == count, "{} of {count} callers got a wrong answer", count - right);
        Ok(())
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Waits until something is so, for as long as a caller waits for an answer.
async fn until(begun: Instant, is_so: impl Fn() -> bool) -> Result<()> {
    while !is_so() {
        ensure!(begun.elapsed() < LIMIT, "nothing happened within {LIMIT:?}");
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    Ok(())
}
