//! `open-1m`: a cache of a million entries is opened, and the first read answered.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use tokio::runtime::Runtime;

use super::side::{Round, Side, Values, filled_diskcache, read_in};
use super::{SUITE, US};
use crate::engines::Disk;
use crate::engines::bare_sqlite::{BareIndexed, BareSqlite};
use crate::engines::diskcache::{self, Ask};
use crate::engines::foyer_hybrid::FoyerHybrid;
use crate::engines::terrace_disk::TerraceDisk;
use crate::goal::Goal;
use crate::harness::{Case, Engine, Outcome, Pace, compare};
use crate::load::{Random, text_key};
use crate::suites::{Request, TAKES_LONG};

pub(super) const CASE: &str = "open-1m";

/// A tenth of a second.
const GOALS: &[Goal] = &[Goal::Value { metric: US.name, at_most: 100_000.0 }];

const VALUES: Values = Values { count: 1_000_000, bytes: 100 };

/// Which of them is read first.
const FIRST: usize = 4711;

pub(super) fn run(request: &Request, runtime: &Arc<Runtime>, pace: Pace) -> Result<Outcome> {
    let round = &Round { runtime: Arc::clone(runtime), values: VALUES, operations: 1 };
    let case = Case { suite: SUITE, name: CASE, metrics: &[US] };
    let pace = Pace { most_rounds: 20, ..pace };
    if request.leaves_out_long() {
        let out = |name, version| Engine::out(name, version, TAKES_LONG);
        let engines = vec![out(TerraceDisk::NAME, TerraceDisk::version())];
        return Ok(compare(&case, engines, pace));
    }
    let mut engines = vec![engine::<TerraceDisk>(round), engine::<BareIndexed>(round)];
    if request.quick {
        for (name, version) in [
            (BareSqlite::NAME, BareSqlite::version()),
            (FoyerHybrid::NAME, FoyerHybrid::version()),
            (diskcache::NAME, diskcache::VERSION),
        ] {
            engines.push(Engine::out(name, version, TAKES_LONG));
        }
    } else {
        engines.push(engine::<BareSqlite>(round));
        engines.push(engine::<FoyerHybrid>(round));
        engines.push(of_python());
    }
    let mut outcome = compare(&case, engines, pace);
    outcome.judge(&case, GOALS);
    Ok(outcome)
}

fn engine<D: Disk>(round: &Round) -> Engine<'static> {
    let round = round.clone();
    let mut side = Side::<D>::filled(&round);
    if let Ok(side) = &mut side {
        side.close();
    }
    let mut random = Random::new(1);
    Engine::new(D::NAME, D::version(), move || {
        let side = side.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        read_in(side.directory())?;
        let number = (FIRST + random.below(1000)) % VALUES.count;
        round.runtime.block_on(async {
            let key = text_key(number);
            let began = Instant::now();
            let disk = D::open(side.directory()).await?;
            let is_right = disk.read(&key, |found| VALUES.is_of(found, number)).await?;
            let took = began.elapsed();
            disk.close().await;
            ensure!(is_right == Some(true), "a read found nothing, or another value");
            Ok(vec![took.as_secs_f64() * 1e6])
        })
    })
}

fn of_python() -> Engine<'static> {
    let mut side = filled_diskcache(VALUES);
    Engine::new(diskcache::NAME, diskcache::VERSION, move || {
        let (process, directory) = side.as_mut().map_err(|error| anyhow!("{error:#}"))?;
        read_in(directory.path())?;
        let nanos = process.ask(Ask::Open { number: FIRST })?;
        Ok(nanos.iter().map(|nanos| *nanos as f64 / 1e3).collect())
    })
}
