//! A **play**: many calls of one node at random, written down as they happen.
//!
//! `play history SEED CALLS KEYS TASKS NODE FILE` reads and changes keys, and writes a line for each call to
//! a file: what it was, its key, what it brought or saw, when it began and ended by the clock of
//! the machine (an end of 0: nobody knows). `play updates SEED CALLS KEYS TASKS NODE` inserts. Both answer with how many inserts settled.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use terrace::{LoadError, Settled};
use terrace_test::rig::monotonic;
use tokio::task::JoinSet;

use crate::testnode::{Bed, TAGS, tag};

/// What a line of a play begins with.
pub(crate) const READ: &str = "read";
pub(crate) const WRITE: &str = "write";
pub(crate) const INSERT: &str = "insert";
pub(crate) const INVALIDATE: &str = "invalidate";
pub(crate) const TAG: &str = "tag";
pub(crate) const CLEAR: &str = "clear";

/// What a read saw that found nothing in the cache. 0 is what the source says of nothing.
pub(crate) const MISS: u64 = u64::MAX;

/// Nodes of a play, so that no two bring the same version.
pub(crate) const NODES: u64 = 4;

struct Stage {
    bed: Arc<Bed>,
    keys: u64,
    node: u64,
    next: AtomicU64,
    /// Inserts that settled.
    settled: AtomicU64,
    lines: Mutex<String>,
}

pub(crate) async fn play(bed: &Arc<Bed>, words: &[&str]) -> String {
    let number = |index: usize| words[index].parse::<u64>().unwrap();
    let (seed, calls, keys, tasks, node) = (number(1), number(2), number(3), number(4), number(5));
    let stage = Arc::new(Stage {
        bed: Arc::clone(bed),
        keys,
        node,
        next: AtomicU64::new(1),
        settled: AtomicU64::new(0),
        lines: Mutex::default(),
    });
    let mut random = fastrand::Rng::with_seed(seed);
    let (is_history, made) = (words[0] == "history", Arc::new(AtomicU64::new(0)));
    let mut playing = JoinSet::new();
    for _ in 0..tasks {
        let (stage, made, mut random) = (Arc::clone(&stage), Arc::clone(&made), random.fork());
        playing.spawn(async move {
            for _ in 0..calls / tasks {
                // However many calls there are, some are for a tag and one for everything.
                match made.fetch_add(1, Ordering::Relaxed) {
                    _ if !is_history => {
                        let key = random.u64(..stage.keys);
                        stage.insert(key, stage.version()).await;
                    }
                    number if number == calls / 2 => stage.clear().await,
                    number if number % (calls / 25) == 0 => {
                        stage.invalidate_tag(random.u64(..TAGS)).await;
                    }
                    _ => stage.call(&mut random).await,
                }
            }
        });
    }
    playing.join_all().await;
    if is_history {
        let lines = std::mem::take(&mut *stage.lines.lock());
        std::fs::File::create(words[6]).unwrap().write_all(lines.as_bytes()).unwrap();
    }
    stage.settled.load(Ordering::Relaxed).to_string()
}

impl Stage {
    /// Half of the calls are for one key of a thousand.
    fn pick(&self, random: &mut fastrand::Rng) -> u64 {
        let keys = if random.bool() { self.keys.div_ceil(1_000) } else { self.keys };
        random.u64(..keys)
    }

    fn version(&self) -> u64 {
        // 1 is what every key has in the beginning.
        1 + self.next.fetch_add(1, Ordering::Relaxed) * NODES + self.node
    }

    async fn call(&self, random: &mut fastrand::Rng) {
        let mut key = self.pick(random);
        let verb = random.u8(..100);
        // Every other key is changed by one node alone: the rest know of it from the ledger or not
        // at all.
        if verb >= 80 && key.is_multiple_of(2) && (key / 2) % NODES != self.node {
            key += 1;
        }
        match verb {
            0..35 => self.get(key).await,
            35..80 => self.load(key, random).await,
            80..87 => {
                self.write(key, self.version()).await;
                self.invalidate(key).await;
            }
            87..91 => {
                let version = self.version();
                self.write(key, version).await;
                self.insert(key, version).await;
            }
            91..94 => self.insert(key, self.version()).await,
            94..96 => {
                self.write(key, 0).await;
                self.invalidate(key).await;
            }
            _ => self.invalidate(key).await,
        }
    }

    async fn get(&self, key: u64) {
        let begin = monotonic();
        let found = self.bed.space.get(&key).await.unwrap();
        let seen = found.map_or(MISS, |found| {
            assert_eq!(found.0, key, "a value of another key");
            found.1
        });
        self.note(READ, key, seen, begin, true);
    }

    async fn load(&self, key: u64, random: &mut fastrand::Rng) {
        // Now and then so long that others change the key and read it again meanwhile.
        let mut wait = || if random.u8(..50) == 0 { random.u64(..30) } else { 0 };
        let (before, after) = (wait(), wait());
        let begin = monotonic();
        let seen = match self.bed.load(key, before, after).await {
            Ok((_, version)) => version,
            Err(LoadError::Loader(refused)) if refused.is_removed() => 0,
            Err(error) => panic!("{key}: {error}"),
        };
        self.note(READ, key, seen, begin, true);
    }

    async fn write(&self, key: u64, version: u64) {
        let begin = monotonic();
        self.bed.source.write(key, version).await;
        self.note(WRITE, key, version, begin, true);
    }

    async fn insert(&self, key: u64, version: u64) {
        let begin = monotonic();
        let inserting = self.bed.space.insert(&key, (key, version)).tags([tag(key)]);
        let settled = inserting.await.unwrap();
        self.settled.fetch_add(u64::from(settled.is_settled()), Ordering::Relaxed);
        self.note(INSERT, key, version, begin, settled == Settled::Settled);
    }

    async fn invalidate(&self, key: u64) {
        let begin = monotonic();
        let settled = self.bed.space.invalidate(&key).await.unwrap();
        self.note(INVALIDATE, key, 0, begin, settled == Settled::Settled);
    }

    async fn invalidate_tag(&self, tagged: u64) {
        let begin = monotonic();
        let settled = self.bed.terrace.invalidate_tag(&tag(tagged)).await.unwrap();
        self.note(TAG, tagged, 0, begin, settled == Settled::Settled);
    }

    async fn clear(&self) {
        let begin = monotonic();
        let settled = self.bed.space.clear().await.unwrap();
        self.note(CLEAR, 0, 0, begin, settled == Settled::Settled);
    }

    fn note(&self, what: &str, key: u64, version: u64, begin: u64, has_ended: bool) {
        use std::fmt::Write as _;
        let end = if has_ended { monotonic() } else { 0 };
        writeln!(self.lines.lock(), "{what} {key} {version} {begin} {end}").unwrap();
    }
}
