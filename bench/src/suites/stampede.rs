//! `stampede`: ten thousand callers at once for one missing value.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::runtime::Runtime;

use super::Request;
use crate::engines::Loading;
use crate::engines::foyer::FoyerLoading;
use crate::engines::moka::MokaLoading;
use crate::engines::quick_cache::QuickCacheLoading;
use crate::engines::terrace::TerraceLoading;
use crate::harness::{Better, Case, Engine, Metric, compare};
use crate::load::{Source, id_of, text_key};
use crate::report::Report;

pub const SUITE: &str = "stampede";

pub const CASES: &[&str] = &["10k-callers"];

/// Of the last caller's wait, what the load itself does not explain; how often it was loaded.
const METRICS: &[Metric] = &[
    Metric { name: "added_ms", unit: "ms", better: Better::Lower },
    Metric { name: "loads", unit: "loads", better: Better::Lower },
];

static SOURCE: Source = Source::new(Duration::from_millis(50));

pub fn run(request: &Request, report: &mut Report) -> Result<()> {
    let runtime = &Runtime::new().context("no runtime")?;
    for &name in CASES.iter().filter(|case| request.wants(case)) {
        let callers = match name {
            "10k-callers" => 10_000,
            _ => unreachable!("no case of this suite: {name}"),
        };
        let engines = vec![
            engine::<TerraceLoading>(runtime, callers),
            engine::<MokaLoading>(runtime, callers),
            engine::<QuickCacheLoading>(runtime, callers),
            engine::<FoyerLoading>(runtime, callers),
        ];
        let case = Case { suite: SUITE, name, metrics: METRICS };
        report.add(name, compare(&case, engines, request.pace(CASES.len())))?;
    }
    Ok(())
}

fn engine<L: Loading>(runtime: &Runtime, callers: usize) -> Engine<'_> {
    Engine::new(L::NAME, L::version(), move || {
        runtime.block_on(async {
            let cache = L::with_room_for(1000).await?;
            let loads = SOURCE.loads();
            // As in a service: whoever starts the callers runs on the runtime too.
            let took = tokio::spawn(storm(cache.clone(), callers)).await??;
            let loads = SOURCE.loads() - loads;
            cache.close().await;
            let added = took.saturating_sub(SOURCE.delay());
            Ok(vec![added.as_secs_f64() * 1e3, loads as f64])
        })
    })
}

/// From before the first caller asks to after the last one has its answer.
async fn storm<L: Loading>(cache: L, callers: usize) -> Result<Duration> {
    let key = text_key(7);
    let mut tasks = Vec::with_capacity(callers);
    let begun = Instant::now();
    for _ in 0..callers {
        let (cache, key) = (cache.clone(), key.clone());
        tasks.push(tokio::spawn(async move { cache.get_or_load(&key, &SOURCE).await }));
    }
    let mut right = 0;
    for task in tasks {
        if task.await?? == id_of(&key) {
            right += 1;
        }
    }
    let took = begun.elapsed();
    ensure!(right == callers, "{} of {callers} callers got a wrong answer", callers - right);
    Ok(took)
}
