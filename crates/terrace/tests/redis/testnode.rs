//! The **test node**: a cache in a process of its own, as services of one fleet have it, over the
//! server that all share and in front of one [`Source`].
//!
//! Keys are numbers, and a value is its key and a version. Questions are lines:
//!
//! | line | does | answers |
//! | --- | --- | --- |
//! | `get KEY` | reads, and loads nothing | a version, or `miss` |
//! | `get_all FIRST COUNT` | the same for many keys at once | versions, 0 for none |
//! | `load KEY BEFORE AFTER` | reads or loads, waiting so many ms before and after it looks at the source | a version |
//! | `crowd KEY TASKS BEFORE AFTER` | the same by many tasks at once | each version once |
//! | `load_all FIRST COUNT` | reads or loads many keys | their versions |
//! | `held FIRST COUNT` | looks into memory alone | their versions, 0 for none |
//! | `insert KEY VERSION` | | `settled` or `pending` |
//! | `invalidate KEY` | | `settled` or `pending` |
//! | `remove_all FIRST COUNT` | invalidates many keys | `done` |
//! | `flood BYTES` | invalidates as many long keys as have so many bytes | `done` |
//! | `stats` | | reads of memory that missed, entries of each tier |
//! | `play …` | many calls at random, as [`play`] says | what it says |

use std::fmt::Display;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use terrace::{Disk, LoadError, Memory, Redis, Settled, Space, Terrace, Tier};
use terrace_test::rig;
use tokio::task::JoinSet;

use crate::play;
use crate::source::{Refused, Source};
use crate::support::{HOUR, SECOND, ends, ms, patient};

/// The key, so that no value can stand under another one, and its version.
pub(crate) type Value = (u64, u64);

/// How a node is made.
#[derive(Clone, Debug)]
pub(crate) struct Make {
    words: Vec<String>,
}

impl Make {
    /// Memory over the server at `url`.
    pub(crate) fn over(url: &str, source: &Source) -> Self {
        let make = Self { words: Vec::new() };
        make.with("redis", url).with("source", source.address())
    }

    /// Memory over a directory that all share, and no server.
    pub(crate) fn on(directory: &Path, source: &Source) -> Self {
        let make = Self { words: Vec::new() };
        make.disk(directory, false).with("source", source.address())
    }

    /// With a disk tier below the server, or above it.
    pub(crate) fn disk(self, directory: &Path, is_above: bool) -> Self {
        self.with(if is_above { "above" } else { "below" }, directory.display())
    }

    pub(crate) fn memory(self, bytes: u64) -> Self {
        self.with("memory", bytes)
    }

    pub(crate) fn max_isolated(self, time: Duration) -> Self {
        self.with("isolated", time.as_millis())
    }

    /// Gives nothing up because the machine is busy: whoever gets no answer in time goes on without.
    pub(crate) fn patient(self) -> Self {
        self.with("patient", true)
    }

    fn with(mut self, name: &str, value: impl Display) -> Self {
        self.words.push(format!("{name}={value}"));
        self
    }

    pub(crate) async fn start(&self) -> TestNode {
        let node = rig::TestNode::start("testnode::plays_a_node", &self.words.join(" ")).await;
        TestNode(node.unwrap())
    }
}

/// A node in a process of its own.
#[derive(Debug)]
pub(crate) struct TestNode(rig::TestNode);

impl Deref for TestNode {
    type Target = rig::TestNode;
    fn deref(&self) -> &rig::TestNode {
        &self.0
    }
}

impl TestNode {
    /// The answer to a question; a test in which it never comes says so and stops.
    pub(crate) async fn say(&self, question: &str) -> String {
        ends(question, self.0.ask(question)).await.unwrap().text
    }

    pub(crate) async fn load(&self, key: u64) -> u64 {
        let version = self.say(&format!("load {key} 0 0")).await;
        version.parse().unwrap_or_else(|_| panic!("load {key}: {version}"))
    }

    pub(crate) async fn get(&self, key: u64) -> Option<u64> {
        self.say(&format!("get {key}")).await.parse().ok()
    }

    /// What memory and Redis have under many keys.
    pub(crate) async fn get_all(&self, keys: Range<u64>) -> Vec<u64> {
        self.versions("get_all", keys).await
    }

    pub(crate) async fn load_all(&self, keys: Range<u64>) -> Vec<u64> {
        self.versions("load_all", keys).await
    }

    /// What memory has.
    pub(crate) async fn held(&self, keys: Range<u64>) -> Vec<u64> {
        self.versions("held", keys).await
    }

    async fn versions(&self, what: &str, keys: Range<u64>) -> Vec<u64> {
        let question = format!("{what} {} {}", keys.start, keys.end - keys.start);
        let answer = self.say(&question).await;
        answer.split(' ').map(|version| version.parse().unwrap()).collect()
    }

    /// Invalidates, which must settle.
    pub(crate) async fn invalidate(&self, key: u64) {
        assert_eq!(self.say(&format!("invalidate {key}")).await, "settled");
    }

    pub(crate) async fn remove_all(&self, keys: Range<u64>) {
        let question = format!("remove_all {} {}", keys.start, keys.end - keys.start);
        assert_eq!(self.say(&question).await, "done");
    }

    /// Reads of memory that found nothing.
    pub(crate) async fn memory_misses(&self) -> u64 {
        self.stats().await[0]
    }

    /// Entries of a tier below memory.
    pub(crate) async fn entries(&self, tier: usize) -> u64 {
        self.stats().await[1 + tier]
    }

    /// Loads for some time in so many tasks, so many every so many milliseconds: the one key, or
    /// others each time from it on. How many it were, and how long the longest took.
    pub(crate) async fn busy(
        &self,
        time: Duration,
        tasks: u64,
        (at_a_time, every): (u64, u64),
        key: u64,
        is_one: bool,
    ) -> (u64, Duration) {
        let (time, step) = (time.as_millis(), u64::from(!is_one));
        let question = format!("busy {time} {tasks} {at_a_time} {every} {key} {step}");
        let answer = self.say(&question).await;
        let (loads, longest) = answer.split_once(' ').unwrap_or_else(|| panic!("{answer}"));
        (loads.parse().unwrap(), Duration::from_micros(longest.parse().unwrap()))
    }

    async fn stats(&self) -> Vec<u64> {
        self.say("stats").await.split(' ').map(|number| number.parse().unwrap()).collect()
    }
}

/// The process of a node. It is started by other tests.
#[test]
#[ignore = "a process that other tests start"]
fn plays_a_node() {
    let Some(settings) = rig::settings() else { return };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let bed = Arc::new(Bed::new(&settings).await);
        rig::serve(move |question| answer(Arc::clone(&bed), question)).await;
    });
}

/// What a node consists of.
pub(crate) struct Bed {
    pub(crate) terrace: Terrace,
    pub(crate) space: Space<u64, Value>,
    /// For keys that fill the ledger.
    long: Space<str, u64>,
    pub(crate) source: Arc<Source>,
}

impl Bed {
    async fn new(settings: &str) -> Self {
        let setting = |name: &str| {
            let mut words = settings.split(' ').filter_map(|word| word.split_once('='));
            words.find(|(found, _)| *found == name).map(|(_, value)| value)
        };
        let number = |name: &str| setting(name).map(|value| value.parse().unwrap());
        let mut builder =
            Terrace::builder().memory(Memory::bytes(number("memory").unwrap_or(64 << 20)));
        if let Some(millis) = number("isolated") {
            builder = builder.max_isolated(ms(millis));
        }
        let is_patient = setting("patient").is_some();
        for name in ["above", "redis", "below"] {
            let Some(place) = setting(name) else { continue };
            builder = match name {
                "redis" if is_patient => builder.tier("redis", patient(place)),
                "redis" => builder.tier("redis", Redis::url(place)),
                _ if is_patient => {
                    let disk = Tier::from(Disk::at(place));
                    builder.tier("disk", disk.deadlines(10 * SECOND, 10 * SECOND))
                }
                _ => builder.tier("disk", Disk::at(place)),
            };
        }
        let terrace = builder.build().await.unwrap();
        let space = terrace.space("values").ttl(HOUR).build().unwrap();
        let long = terrace.space("long").build().unwrap();
        let source = Source::at(setting("source").unwrap().parse().unwrap());
        Self { terrace, space, long, source: Arc::new(source) }
    }

    /// Reads or loads.
    pub(crate) async fn load(
        &self,
        key: u64,
        before: u64,
        after: u64,
    ) -> Result<Value, LoadError<Refused>> {
        let source = Arc::clone(&self.source);
        let load = |_| async move {
            let version = source.load(key, ms(before), ms(after)).await?;
            Ok((key, version))
        };
        let value = *self.space.get_or_load(&key, load).tags([tag(key)]).await?;
        assert_eq!(value.0, key, "a value of another key");
        Ok(value)
    }
}

/// Every entry carries one of so many tags.
pub(crate) const TAGS: u64 = 16;

pub(crate) fn tag(key: u64) -> String {
    format!("tag:{}", key % TAGS)
}

/// Keys that are asked for at once by a question about many.
const AT_ONCE: usize = 64;

async fn answer(bed: Arc<Bed>, question: String) -> String {
    let words: Vec<_> = question.split(' ').collect();
    let number = |index: usize| words[index].parse::<u64>().unwrap();
    match words[0] {
        "get" => match bed.space.get(&number(1)).await.unwrap() {
            Some(found) => found.1.to_string(),
            None => "miss".into(),
        },
        "get_all" => {
            let keys: Vec<_> = (number(1)..number(1) + number(2)).collect();
            let found = bed.space.get_many(&keys).await.unwrap();
            let versions = found.iter().map(|found| found.as_ref().map_or(0, |value| value.1));
            versions.map(|version| version.to_string()).collect::<Vec<_>>().join(" ")
        }
        "load" => version(bed.load(number(1), number(2), number(3)).await),
        "crowd" => {
            let mut tasks = JoinSet::new();
            let (key, before, after) = (number(1), number(3), number(4));
            for _ in 0..number(2) {
                let bed = Arc::clone(&bed);
                tasks.spawn(async move { version(bed.load(key, before, after).await) });
            }
            let mut versions = tasks.join_all().await;
            versions.sort();
            versions.dedup();
            versions.join(" ")
        }
        "load_all" => {
            let keys: Vec<_> = (number(1)..number(1) + number(2)).collect();
            let mut versions = Vec::new();
            for keys in keys.chunks(AT_ONCE) {
                let loads = keys.iter().map(|&key| {
                    let bed = Arc::clone(&bed);
                    tokio::spawn(async move { version(bed.load(key, 0, 0).await) })
                });
                for load in loads.collect::<Vec<_>>() {
                    versions.push(load.await.unwrap());
                }
            }
            versions.join(" ")
        }
        "held" => {
            let held = (number(1)..number(1) + number(2))
                .map(|key| bed.space.read(&key, |value| value.1).unwrap_or(0).to_string());
            held.collect::<Vec<_>>().join(" ")
        }
        "insert" => {
            let (key, version) = (number(1), number(2));
            settled(&bed.space.insert(&key, (key, version)).tags([tag(key)]).await.unwrap())
        }
        "invalidate" => settled(&bed.space.invalidate(&number(1)).await.unwrap()),
        "remove_all" => {
            let keys: Vec<_> = (number(1)..number(1) + number(2)).collect();
            for keys in keys.chunks(500) {
                bed.space.remove_many(keys).await.unwrap();
            }
            "done".into()
        }
        "stats" => {
            let stats = bed.terrace.stats().await;
            let misses = stats.tiers[0].traffic.misses;
            let entries = stats.tiers.iter().map(|tier| tier.entries);
            let numbers = std::iter::once(misses).chain(entries);
            numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
        }
        "flood" => {
            let (mut left, mut next) = (number(1), 0);
            while left > 0 {
                let keys: Vec<_> = (next..next + 500).map(|key| format!("{key:0>190}")).collect();
                bed.long.remove_many(keys.iter().map(String::as_str)).await.unwrap();
                left = left.saturating_sub(500 * 190);
                next += 500;
            }
            "done".into()
        }
        "busy" => {
            let ([time, every], step) = ([number(1), number(4)].map(ms), number(6));
            let mut tasks = JoinSet::new();
            for task in 0..number(2) {
                let first = number(5) + task * step * TASKS_APART;
                tasks.spawn(busy(Arc::clone(&bed), time, every, number(3), first, step));
            }
            let (mut loads, mut longest) = (0, Duration::ZERO);
            for (made, longest_of_it) in tasks.join_all().await {
                loads += made;
                longest = longest.max(longest_of_it);
            }
            format!("{loads} {}", longest.as_micros())
        }
        "play" => play::play(&bed, &words[1..]).await,
        _ => panic!("what is {question}?"),
    }
}

/// Keys between those of two tasks.
const TASKS_APART: u64 = 1_000_000;

/// Loads so many at a time, of keys that are so far apart; how many, and how long the longest took.
async fn busy(
    bed: Arc<Bed>,
    time: Duration,
    every: Duration,
    at_a_time: u64,
    first: u64,
    step: u64,
) -> (u64, Duration) {
    let (mut loads, mut longest, mut key) = (0, Duration::ZERO, first);
    let (began, mut turn) = (Instant::now(), tokio::time::interval(every));
    while began.elapsed() < time {
        turn.tick().await;
        for _ in 0..at_a_time {
            let asked = Instant::now();
            assert_eq!(version(bed.load(key, 0, 0).await), "1", "no caller sees an error");
            longest = longest.max(asked.elapsed());
            key += step;
        }
        loads += at_a_time;
    }
    (loads, longest)
}

fn version(loaded: Result<Value, LoadError<Refused>>) -> String {
    match loaded {
        Ok((_, version)) => version.to_string(),
        Err(error) => error.to_string(),
    }
}

fn settled(settled: &Settled) -> String {
    if settled.is_settled() { "settled".into() } else { "pending".into() }
}
