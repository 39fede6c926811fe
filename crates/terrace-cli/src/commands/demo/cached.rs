//! The source behind a cache: this is all that a program has to write to use one.

use std::hint::black_box;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use terrace::clock::{Clock as _, SystemClock};
use terrace::error::LoadError;
use terrace::{BuildError, Cached, Disk, Memory, Space, Terrace};

use super::source::{Airport, Nearest, Report, Source};
use super::stream::Query;

/// Neighbours that [`Query::Nearest`] asks for.
const NEIGHBOURS: u32 = 5;

/// How long answers are good: longer than any demonstration.
const TTL: Duration = Duration::from_secs(3600);

const MEMORY: u64 = 128 << 20;
const DISK: u64 = 512 << 20;

/// The source behind memory and disk: a space for each kind of query.
#[derive(Clone, Debug)]
pub(crate) struct CachedSource {
    pub(crate) terrace: Terrace,
    airports: Space<str, Airport>,
    nearest: Space<str, Nearest>,
    reports: Space<str, Report>,
    source: Source,
}

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    Memory,
    Disk,
    /// The source, asked by this caller or by another one that asked before.
    Source,
}

impl CachedSource {
    /// The cache in `directory`, empty or not.
    async fn open(directory: &Path, source: Source) -> Result<Self, BuildError> {
        let terrace = Terrace::builder()
            .memory(Memory::bytes(MEMORY))
            .tier("disk", Disk::at(directory).max_bytes(DISK))
            .ttl(TTL)
            .build()
            .await?;
        Ok(Self {
            airports: terrace.space("airport").build()?,
            nearest: terrace.space("nearest").build()?,
            reports: terrace.space("report").build()?,
            terrace,
            source,
        })
    }

    /// Answers a query: from the nearest tier that can, or else from the source.
    pub(crate) async fn ask(&self, query: &Query) -> Result<Tier> {
        let source = self.source.clone();
        match query {
            Query::Airport(icao) => answered(
                self.airports.get_or_load(icao, |load| fetch(source, load.key, airport)).await,
            ),
            Query::Nearest(icao) => answered(
                self.nearest.get_or_load(icao, |load| fetch(source, load.key, nearest)).await,
            ),
            Query::Report(country) => answered(
                self.reports
                    .get_or_load(country, |load| fetch(source, load.key, Source::report))
                    .await,
            ),
        }
    }

    /// Answers a query if a tier can.
    pub(crate) async fn get(&self, query: &Query) -> Result<Option<Tier>> {
        Ok(match query {
            Query::Airport(icao) => self.airports.get(icao.as_str()).await?.map(|it| tier(&it)),
            Query::Nearest(icao) => self.nearest.get(icao.as_str()).await?.map(|it| tier(&it)),
            Query::Report(country) => self.reports.get(country.as_str()).await?.map(|it| tier(&it)),
        })
    }
}

/// Answers a query at the source itself, as its user would without a cache, and says how long
/// that took.
pub(crate) fn time_at_source(
    source: &Source,
    query: &Query,
    clock: &SystemClock,
) -> Result<Duration> {
    match query {
        Query::Airport(icao) => timed(clock, || airport(source, icao)),
        Query::Nearest(icao) => timed(clock, || nearest(source, icao)),
        Query::Report(country) => timed(clock, || source.report(country)),
    }
}

fn timed<V>(clock: &SystemClock, query: impl FnOnce() -> Result<V>) -> Result<Duration> {
    let begin = clock.elapsed();
    let answer = query()?;
    let time = clock.elapsed().saturating_sub(begin);
    drop(black_box(answer));
    Ok(time)
}

fn airport(source: &Source, icao: &str) -> Result<Airport> {
    source.airport(icao)?.with_context(|| format!("there is no airport {icao}"))
}

fn nearest(source: &Source, icao: &str) -> Result<Nearest> {
    source.nearest(icao, NEIGHBOURS)
}

/// A query that blocks its thread, on a thread that may be blocked.
async fn fetch<V: Send + 'static>(
    source: Source,
    key: String,
    query: fn(&Source, &str) -> Result<V>,
) -> Result<V> {
    tokio::task::spawn_blocking(move || query(&source, &key)).await?
}

fn answered<V>(answer: Result<Cached<V>, LoadError<anyhow::Error>>) -> Result<Tier> {
    match answer {
        Ok(answer) => Ok(tier(&answer)),
        Err(error) => Err(anyhow!("a query failed: {error}")),
    }
}

fn tier<V>(answer: &Cached<V>) -> Tier {
    match answer.source() {
        terrace::Source::Memory => Tier::Memory,
        terrace::Source::Tier(_) => Tier::Disk,
        terrace::Source::Journal | terrace::Source::Loader | terrace::Source::Default => {
            Tier::Source
        }
    }
}

/// Every cache that was opened and not closed yet: closed at the end whatever happens, so that
/// nothing writes into a directory that is being removed.
#[derive(Debug, Default)]
pub(crate) struct OpenCaches {
    caches: Mutex<Vec<Terrace>>,
}

impl OpenCaches {
    pub(crate) async fn open(&self, directory: &Path, source: &Source) -> Result<CachedSource> {
        let cached = CachedSource::open(directory, source.clone()).await?;
        self.caches.lock().unwrap_or_else(PoisonError::into_inner).push(cached.terrace.clone());
        Ok(cached)
    }

    pub(crate) async fn close(&self) {
        loop {
            let cache = self.caches.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match cache {
                Some(cache) => cache.close().await,
                None => return,
            };
        }
    }
}
