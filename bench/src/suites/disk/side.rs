//! A **side** of a comparison: an engine that is filled, in a directory of its own.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::engines::Disk;
use crate::engines::diskcache::{self, Ask, DiskCache};
use crate::harness::Engine;
use crate::load::{Random, text_key};

/// What a round needs, beside numbers of its own to draw keys with.
#[derive(Clone)]
pub(super) struct Round {
    pub(super) runtime: Arc<Runtime>,
    pub(super) values: Values,
    pub(super) operations: usize,
}

impl Round {
    /// Which values a round is about: a part to warm up, and what is timed.
    pub(super) fn order(&self, random: &mut Random) -> (Vec<usize>, Vec<usize>) {
        let mut draw = |count| (0..count).map(|_| random.below(self.values.count)).collect();
        (draw(self.operations / 5), draw(self.operations))
    }
}

/// How many values of how many bytes.
#[derive(Clone, Copy)]
pub(super) struct Values {
    pub(super) count: usize,
    pub(super) bytes: usize,
}

impl Values {
    /// Another value at each call, for the key of this number: it begins with the number.
    pub(super) fn make(&self, number: usize, random: &mut Random) -> Bytes {
        let mut value = Vec::with_capacity(self.bytes + 8);
        value.extend((number as u64).to_le_bytes());
        while value.len() < self.bytes {
            value.extend(random.number().to_le_bytes());
        }
        value.truncate(self.bytes);
        value.into()
    }

    pub(super) fn is_of(&self, value: &[u8], number: usize) -> bool {
        value.len() == self.bytes && value.starts_with(&(number as u64).to_le_bytes())
    }

    /// Some at a time, so that a million of them need not be in memory at once.
    pub(super) async fn fill<D: Disk>(&self, disk: &D) -> Result<()> {
        let mut random = Random::new(44);
        let at_once = ((8 << 20) / self.bytes).clamp(1, 10_000);
        for from in (0..self.count).step_by(at_once) {
            let numbers = from..self.count.min(from + at_once);
            let entries: Vec<_> =
                numbers.map(|number| (text_key(number), self.make(number, &mut random))).collect();
            disk.fill(&entries).await?;
        }
        Ok(())
    }
}

pub(super) struct Side<D: Disk> {
    runtime: Arc<Runtime>,
    disk: Option<Arc<D>>,
    directory: TempDir,
}

impl<D: Disk> Side<D> {
    pub(super) fn filled(round: &Round) -> Result<Self> {
        let runtime = Arc::clone(&round.runtime);
        let directory = tempfile::tempdir()?;
        let disk = runtime.block_on(async {
            let disk = D::open(directory.path()).await?;
            round.values.fill(&disk).await?;
            anyhow::Ok(disk)
        })?;
        Ok(Self { runtime, disk: Some(Arc::new(disk)), directory })
    }

    pub(super) fn disk(&self) -> Result<&Arc<D>> {
        self.disk.as_ref().context("it is closed")
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Closes it; what it stored stays until this is dropped.
    pub(super) fn close(&mut self) {
        if let Some(disk) = self.disk.take().and_then(Arc::into_inner) {
            self.runtime.block_on(disk.close());
        }
    }
}

impl<D: Disk> Drop for Side<D> {
    fn drop(&mut self) {
        self.close();
    }
}

/// What a round of an engine comes to: a number for each metric of its case.
type Measure<D> = fn(&Arc<D>, &Round, Random) -> Result<Vec<f64>>;

/// An engine that is opened and filled now.
pub(super) fn engine<D: Disk>(round: &Round, measure: Measure<D>) -> Engine<'static> {
    let (round, side) = (round.clone(), Side::<D>::filled(round));
    let mut seed = 0;
    Engine::new(D::NAME, D::version(), move || {
        let side = side.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        // The same keys for all in a round, others in the next.
        seed += 1;
        read_in(side.directory())?;
        measure(side.disk()?, &round, Random::new(seed))
    })
}

/// What diskcache is to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    Read,
    Write,
}

/// diskcache, in a process of its own that is begun and filled now, if there is a Python for it.
pub(super) fn diskcache(round: &Round, deed: Deed) -> Engine<'static> {
    let round = round.clone();
    let mut side = filled_diskcache(round.values);
    let mut seed = 0;
    Engine::new(diskcache::NAME, diskcache::VERSION, move || {
        let (process, directory) = side.as_mut().map_err(|error| anyhow!("{error:#}"))?;
        seed += 1;
        read_in(directory.path())?;
        let (warm_up, timed) = round.order(&mut Random::new(seed));
        let length = round.values.bytes;
        let ask = |order| match deed {
            Deed::Read => Ask::Read { order, length },
            Deed::Write => Ask::Write { order, length },
        };
        process.ask(ask(&warm_up))?;
        let nanos = process.ask(ask(&timed))?;
        let micros = |nanos: &[u64]| nanos.iter().sum::<u64>() as f64 / 1e3;
        let each = micros(&nanos) / nanos.len().max(1) as f64;
        let thousands = nanos.chunks_exact(1000).map(|some| micros(some) / 1e3).collect();
        let thousand = crate::statistics::estimate(thousands).map(|found| found.median);
        Ok([each].into_iter().chain(thousand).collect())
    })
}

pub(super) fn filled_diskcache(values: Values) -> Result<(DiskCache, TempDir)> {
    let directory = tempfile::tempdir()?;
    let mut process = DiskCache::open(directory.path())?;
    process.ask(Ask::Fill { count: values.count, length: values.bytes })?;
    Ok((process, directory))
}

/// Has the operating system read all files of a directory, which it may have dropped meanwhile.
pub(super) fn read_in(directory: &Path) -> Result<()> {
    for file in std::fs::read_dir(directory)? {
        let (file, kind) = {
            let file = file?;
            (file.path(), file.file_type()?)
        };
        if kind.is_dir() {
            read_in(&file)?;
        } else if kind.is_file() {
            // It may be gone meanwhile, as a file of a value that was written over.
            if let Ok(mut file) = std::fs::File::open(file) {
                std::io::copy(&mut file, &mut std::io::sink())?;
            }
        }
    }
    Ok(())
}
