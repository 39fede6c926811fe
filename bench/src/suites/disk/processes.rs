//! `set-p99-8-processes`: eight processes write to one directory at once, each one value after the
//! other, for the same time. They begin anew in every round, so that nobody is idle in another's.

use std::cell::Cell;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::Bytes;
use tokio::runtime::Runtime;

use super::SUITE;
use super::side::{Round, Side, Values, filled_diskcache, read_in};
use crate::engines::Disk;
use crate::engines::bare_sqlite::BareSqlite;
use crate::engines::diskcache::{self, Ask, DiskCache};
use crate::engines::terrace_disk::TerraceDisk;
use crate::goal::Goal;
use crate::harness::{Better, Case, Engine, Metric, OURS, Outcome, Pace, compare};
use crate::load::{Random, text_key};
use crate::report::Record;
use crate::statistics::rounded;
use crate::suites::Request;

pub(super) const CASE: &str = "set-p99-8-processes";

const P99: Metric = Metric { name: "p99_us", unit: "us", better: Better::Lower };
const HALF: Metric = Metric { name: "p50_us", unit: "us", better: Better::Lower };
const MOST: Metric = Metric { name: "max_us", unit: "us", better: Better::Lower };
/// Of all rounds, and not the median.
const SLOWEST: Metric = Metric { name: "slowest_us", unit: "us", better: Better::Lower };

/// Half of diskcache's, and no write longer than a tenth of a second.
const GOALS: &[Goal] = &[
    Goal::Ratio { against: diskcache::NAME, at_least: 2.0 },
    Goal::Value { metric: SLOWEST.name, at_most: 100_000.0 },
];

const PROCESSES: usize = 8;

const BYTES: usize = 1024;

/// Values that a process draws; it goes through them over and over.
const DRAWN: usize = 20_000;

/// The part of the time whose writes do not count: not everybody has begun.
const WARM_UP: u32 = 10;

pub(super) fn run(request: &Request, runtime: &Arc<Runtime>, pace: Pace) -> Result<Outcome> {
    let values = Values { count: request.size(20_000, 100_000), bytes: BYTES };
    // Milliseconds, of a round.
    let operations = request.size(1_000, 3_000);
    let round = &Round { runtime: Arc::clone(runtime), values, operations };
    let slowest = [Cell::new(0.0), Cell::new(0.0), Cell::new(0.0)];
    let [of_ours, of_bare, of_diskcache] = &slowest;
    let engines = vec![
        engine::<TerraceDisk>(round, of_ours),
        engine::<BareSqlite>(round, of_bare),
        of_python(round, of_diskcache),
    ];
    let case = Case { suite: SUITE, name: CASE, metrics: &[P99, HALF, MOST] };
    let mut outcome = compare(&case, engines, pace);
    let names = [
        (OURS, TerraceDisk::version()),
        (BareSqlite::NAME, BareSqlite::version()),
        (diskcache::NAME, diskcache::VERSION),
    ];
    for ((name, version), slowest) in names.into_iter().zip(&slowest) {
        if slowest.get() > 0.0 {
            let slowest = rounded(slowest.get());
            outcome.records.push(Record::value(&case, name, version, SLOWEST, slowest));
        }
    }
    outcome.judge(&case, GOALS);
    Ok(outcome)
}

fn engine<'a, D: Disk>(round: &Round, slowest: &'a Cell<f64>) -> Engine<'a> {
    let round = round.clone();
    let mut side = Side::<D>::filled(&round);
    if let Ok(side) = &mut side {
        // From here on only others use it.
        side.close();
    }
    let mut seed = 0;
    Engine::new(D::NAME, D::version(), move || {
        let side = side.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        seed += 1;
        read_in(side.directory())?;
        let mut writers = Vec::new();
        for number in 0..PROCESSES {
            writers.push(Writer::of::<D>(side.directory(), &round, seed * 100 + number as u64)?);
        }
        for writer in &mut writers {
            writer.has_opened()?;
        }
        for writer in &mut writers {
            writer.go()?;
        }
        let times = writers.iter_mut().map(Writer::times).collect::<Result<Vec<_>>>()?.concat();
        summed_up(times, slowest)
    })
}

fn of_python<'a>(round: &Round, slowest: &'a Cell<f64>) -> Engine<'a> {
    let round = round.clone();
    // Who filled it ends.
    let side = filled_diskcache(round.values).map(|(_, directory)| directory);
    let mut seed = 0;
    Engine::new(diskcache::NAME, diskcache::VERSION, move || {
        let directory = side.as_ref().map_err(|error| anyhow!("{error:#}"))?.path();
        seed += 1;
        read_in(directory)?;
        let mut writers = Vec::new();
        for _ in 0..PROCESSES {
            writers.push(DiskCache::open(directory)?);
        }
        for (number, writer) in writers.iter_mut().enumerate() {
            let order = order(&round, seed * 100 + number as u64);
            let millis = round.operations as u64;
            writer.send(Ask::WriteFor { order: &order, length: BYTES, millis })?;
        }
        let answers = writers.iter_mut().map(DiskCache::answer);
        summed_up(answers.collect::<Result<Vec<_>>>()?.concat(), slowest)
    })
}

/// Which values a process writes, those to warm up first.
fn order(round: &Round, seed: u64) -> Vec<usize> {
    let mut random = Random::new(seed);
    (0..DRAWN).map(|_| random.below(round.values.count)).collect()
}

fn summed_up(mut nanos: Vec<u64>, slowest: &Cell<f64>) -> Result<Vec<f64>> {
    ensure!(nanos.len() >= 100, "only {} writes", nanos.len());
    nanos.sort_unstable();
    let share = |of: usize| nanos[(nanos.len() - 1) * of / 100] as f64 / 1e3;
    let most = share(100);
    slowest.set(slowest.get().max(most));
    Ok(vec![share(99), share(50), most])
}

/// A process of this program that only writes.
struct Writer {
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Writer {
    fn of<D: Disk>(directory: &Path, round: &Round, seed: u64) -> Result<Self> {
        let program = std::env::current_exe()?;
        let numbers = [seed, round.values.count as u64, round.operations as u64];
        let mut process = Command::new(&program)
            .args([WRITER, D::NAME])
            .arg(directory)
            .args(numbers.map(|number| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().context("no answers")?);
        Ok(Self { process, orders, answers })
    }

    fn has_opened(&mut self) -> Result<()> {
        ensure!(self.line()?.trim() == READY, "a process did not open what it writes to");
        Ok(())
    }

    fn go(&mut self) -> Result<()> {
        let orders = self.orders.as_mut().context("a process has ended")?;
        Ok(writeln!(orders, "{GO}")?)
    }

    fn times(&mut self) -> Result<Vec<u64>> {
        Ok(serde_json::from_str(&self.line()?)?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("a process that writes has ended: see above");
        }
        Ok(line)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It ends when nothing more can come.
        drop(self.orders.take());
        let _ = self.process.wait();
    }
}

const READY: &str = "ready";
const GO: &str = "go";

/// The first argument of a process that writes.
pub const WRITER: &str = "--write-as";

/// The whole of a process that writes: its further arguments are an engine, a directory, a seed, how
/// many values there are, and how many milliseconds it writes.
pub fn answer() -> ExitCode {
    match try_answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_answer() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let [engine, directory, seed, count, operations] = arguments.as_slice() else {
        bail!("this is a part of terrace-bench, which runs it by itself");
    };
    let runtime = Arc::new(Runtime::new().context("no runtime")?);
    let values = Values { count: count.parse()?, bytes: BYTES };
    let round = Round { runtime, values, operations: operations.parse()? };
    let (directory, seed) = (Path::new(directory), seed.parse()?);
    match engine.as_str() {
        OURS => write::<TerraceDisk>(directory, &round, seed),
        name if name == BareSqlite::NAME => write::<BareSqlite>(directory, &round, seed),
        other => bail!("nobody writes as {other:?}"),
    }
}

fn write<D: Disk>(directory: &Path, round: &Round, seed: u64) -> Result<()> {
    let mut random = Random::new(!seed);
    let make = |number| (text_key(number), round.values.make(number, &mut random));
    let entries: Vec<(String, Bytes)> = order(round, seed).into_iter().map(make).collect();
    let disk = round.runtime.block_on(D::open(directory))?;
    println!("{READY}");
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    ensure!(line.trim() == GO, "nobody wants anything to be written");
    let time = Duration::from_millis(round.operations as u64);
    let nanos = round.runtime.block_on(async {
        let mut nanos = Vec::new();
        let start = Instant::now();
        for (key, value) in entries.iter().cycle() {
            let began = Instant::now();
            if began - start >= time {
                break;
            }
            disk.write(key, value).await?;
            if began - start >= time / WARM_UP {
                nanos.push(began.elapsed().as_nanos());
            }
        }
        anyhow::Ok(nanos)
    })?;
    println!("{}", serde_json::to_string(&nanos)?);
    round.runtime.block_on(disk.close());
    Ok(())
}
