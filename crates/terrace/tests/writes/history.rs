//! Histories: many tasks read and change many keys through all tiers, and no read sees
//! what no order of their calls allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tempfile::TempDir;
use terrace::{Disk, LoadError, Memory, Space, Terrace, Tier};
use terrace_test::history::{Impossible, Judged, Seen};
use terrace_test::{History, Oracle};
use tokio::task::JoinSet;

use crate::support::{Everywhere as _, Refused, count, ms, random};

const TASKS: usize = 40;

/// So little that most of what is read comes from disk.
const MEMORY: u64 = 32 << 10;

/// The key, so that no value can stand under another one, and its version.
type Value = (u64, u64);

/// Tags, and keys of tracked spaces, of which the ledger remembers the last line.
const NAMES_REMEMBERED: usize = 65_536;

/// A cache, the source that it stands for, and the history of both.
struct Stage {
    terrace: Terrace,
    space: Space<u64, Value>,
    /// What is built from each entry of that: the same.
    built: Space<u64, Value>,
    builds: bool,
    /// The version of each key, 0 for none, and the one before.
    source: Vec<[AtomicU64; 2]>,
    /// One load of so many tells the version before.
    lies: u64,
    history: History<u64>,
    next: AtomicU64,
    /// Keys that memory was asked for.
    asked: AtomicU64,
    /// Reads of what was built.
    built_reads: AtomicU64,
    /// Calls that ended.
    ended: AtomicU64,
    _directory: TempDir,
}

impl Stage {
    async fn new(keys: usize, lies: u64, builds: bool) -> Arc<Self> {
        let directory = tempfile::tempdir().unwrap();
        // Nothing is given up because the machine is busy: that would be a miss.
        let disk = Tier::from(Disk::at(directory.path())).deadlines(ms(60_000), ms(60_000));
        let memory = Memory::bytes(MEMORY);
        let terrace = Terrace::builder().memory(memory).tier("disk", disk).build().await.unwrap();
        let space = terrace.space("space").forever();
        // Of more keys of tracked spaces the last lines are not all remembered: older entries are
        // loaded again.
        let keeps_everything = !builds || keys <= NAMES_REMEMBERED;
        let history = History::new();
        Arc::new(Self {
            space: if builds { space.tracked() } else { space }.build().unwrap(),
            built: terrace.space("built").forever().retry(ms(0), ms(0)).build().unwrap(),
            terrace,
            source: (0..keys).map(|_| [0, 0].map(AtomicU64::new)).collect(),
            lies,
            builds,
            history: if keeps_everything { history.keeps_everything() } else { history },
            next: AtomicU64::new(1),
            asked: AtomicU64::new(0),
            built_reads: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            _directory: directory,
        })
    }

    fn version(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Half of the calls are for one key of a thousand.
    fn pick(&self, random: &mut fastrand::Rng) -> u64 {
        let keys = self.source.len();
        let picked = if random.bool() { keys.div_ceil(1_000) } else { keys };
        random.usize(..picked) as u64
    }

    async fn call(self: &Arc<Self>, random: &mut fastrand::Rng) {
        let key = self.pick(random);
        match random.u8(..100) {
            0..25 => self.get(key).await,
            25..60 => self.get_or_load(key, random).await,
            60..68 if self.builds => self.get_built(key).await,
            60..80 => {
                let keys: Vec<_> = (0..random.usize(1..8)).map(|_| self.pick(random)).collect();
                self.get_many(&keys).await;
            }
            80..87 => {
                self.write(key, self.version());
                self.invalidate(key).await;
            }
            87..91 => {
                let version = self.version();
                self.write(key, version);
                self.insert(key, version).await;
            }
            91..94 => self.insert(key, self.version()).await,
            94..96 => {
                self.write(key, 0);
                self.remove(key).await;
            }
            _ => self.invalidate(key).await,
        }
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    async fn get(&self, key: u64) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let look = self.history.reads(key);
        let found = self.space.get(&key).await.unwrap();
        look.saw(seen(key, found.as_deref()));
    }

    async fn get_many(&self, keys: &[u64]) {
        self.asked.fetch_add(keys.len() as u64, Ordering::Relaxed);
        let looks: Vec<_> = keys.iter().map(|key| self.history.reads(*key)).collect();
        let found = self.space.get_many(keys).await.unwrap();
        for ((look, key), found) in looks.into_iter().zip(keys).zip(found) {
            look.saw(seen(*key, found.as_deref()));
        }
    }

    async fn get_or_load(self: &Arc<Self>, key: u64, random: &mut fastrand::Rng) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let lies = self.lies > 0 && random.u64(..self.lies) == 0;
        // Now and then so long that others change the key and read it again meanwhile.
        let calls = if random.u8(..50) == 0 { 2 * TASKS as u64 } else { random.u64(..4) };
        let stage = Arc::clone(self);
        let look = self.history.reads(key);
        let load = |_| async move {
            let version = stage.source[key as usize][usize::from(lies)].load(Ordering::SeqCst);
            stage.let_calls_end(calls).await;
            if version == 0 { Err(Refused(key)) } else { Ok((key, version)) }
        };
        match self.space.get_or_load(&key, load).tags([tag(key)]).await {
            Ok(found) => look.saw(seen(key, Some(&found))),
            Err(LoadError::Loader(_)) => look.saw(Seen::NotFound),
            Err(error) => panic!("{key}: {error}"),
        }
    }

    /// A read of what was built from an entry is one of the entry.
    async fn get_built(self: &Arc<Self>, key: u64) {
        let look = self.history.reads(key);
        let stage = Arc::clone(self);
        let load = |_| async move {
            let (inner, calls) = (Arc::clone(&stage), key % 3);
            let load = stage.space.get_or_load(&key, |_| async move {
                let version = inner.source[key as usize][0].load(Ordering::SeqCst);
                inner.let_calls_end(calls).await;
                if version == 0 { Err(Refused(key)) } else { Ok((key, version)) }
            });
            let found = load.tags([tag(key)]).await;
            stage.let_calls_end(calls).await;
            found.map(|found| *found).map_err(|_| Refused(key))
        };
        match self.built.get_or_load(&key, load).await {
            Ok(found) => look.saw(seen(key, Some(&found))),
            // Whoever shares a load that fails gets its error, whatever it had read.
            Err(LoadError::Loader(_)) => drop(look),
            Err(error) => panic!("{key}: {error}"),
        }
        self.built_reads.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until so many more calls have ended, unless all of them wait like this.
    async fn let_calls_end(&self, calls: u64) {
        let target = self.ended.load(Ordering::Relaxed) + calls;
        for _ in 0..2_000 {
            if self.ended.load(Ordering::Relaxed) >= target {
                break;
            }
            tokio::task::yield_now().await;
        }
    }

    fn write(&self, key: u64, version: u64) {
        let write = self.history.writes(key, (version > 0).then_some(version));
        let [now, before] = &self.source[key as usize];
        before.store(now.swap(version, Ordering::SeqCst), Ordering::SeqCst);
        write.ended();
    }

    async fn insert(&self, key: u64, version: u64) {
        let insert = self.history.inserts(key, version);
        self.space.insert(&key, (key, version)).tags([tag(key)]).await.everywhere();
        insert.ended();
    }

    async fn invalidate(&self, key: u64) {
        let invalidation = self.history.invalidates(key);
        self.space.invalidate(&key).await.everywhere();
        invalidation.ended();
    }

    async fn remove(&self, key: u64) {
        let removal = self.history.invalidates(key);
        self.space.remove(&key).await.unwrap();
        removal.ended();
    }

    async fn invalidate_tag(&self, tagged: u64) {
        let invalidation = self.history.invalidates_where(move |key| key % TAGS == tagged);
        self.terrace.invalidate_tag(&tag(tagged)).await.everywhere();
        invalidation.ended();
    }

    async fn invalidate_prefix(&self, prefix: u64) {
        let prefix = prefix.to_string();
        let begins = prefix.clone();
        let named = move |key: &u64| key.to_string().starts_with(&begins);
        let invalidation = self.history.invalidates_where(named);
        self.space.invalidate_prefix(prefix.as_str()).await.everywhere();
        invalidation.ended();
    }

    /// Those with this digit before their last.
    async fn remove_pattern(&self, digit: u64) {
        let invalidation =
            self.history.invalidates_where(move |key| *key >= 10 && key / 10 % 10 == digit);
        let removed = self.space.remove_pattern(&format!("*{digit}?")).await.unwrap();
        assert!(removed.settled.is_settled());
        invalidation.ended();
    }

    async fn clear(&self) {
        let invalidation = self.history.invalidates_where(|_| true);
        self.space.clear().await.everywhere();
        invalidation.ended();
    }
}

/// Every entry carries one of so many tags.
const TAGS: u64 = 16;

fn tag(key: u64) -> String {
    format!("tag:{}", key % TAGS)
}

fn seen(key: u64, found: Option<&Value>) -> Seen {
    let Some(&(of, version)) = found else { return Seen::Miss };
    assert_eq!(of, key, "a value of another key");
    Seen::Version(version)
}

/// Calls by all tasks at once, and what the history says of them. However many they are,
/// a hundred invalidate a tag, another hundred a prefix, four remove what matches a pattern, and four
/// clear the space.
async fn play(
    calls: usize,
    keys: usize,
    lies: u64,
    builds: bool,
) -> (Arc<Stage>, Result<Judged, Impossible<u64>>) {
    let mut random = random("history");
    let stage = Stage::new(keys, lies, builds).await;
    let made = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (stage, made, mut random) = (Arc::clone(&stage), Arc::clone(&made), random.fork());
        tasks.spawn(async move {
            for _ in 0..calls / TASKS {
                match made.fetch_add(1, Ordering::Relaxed) {
                    number if number % (calls / 4) == calls / 8 => stage.clear().await,
                    number if number % (calls / 4) == calls / 16 => {
                        stage.remove_pattern(random.u64(..10)).await;
                    }
                    number if number % (calls / 100) == calls / 200 => {
                        stage.invalidate_prefix(random.u64(1..keys as u64)).await;
                    }
                    number if number % (calls / 100) == 0 => {
                        stage.invalidate_tag(random.u64(..TAGS)).await;
                    }
                    _ => stage.call(&mut random).await,
                }
            }
        });
    }
    tasks.join_all().await;
    let judged = stage.history.check();
    (stage, judged)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c12_no_read_sees_what_no_order_of_the_calls_allows() {
    let calls = count(200_000, 10_000_000);
    let (stage, judged) = play(calls, count(10_000, 200_000), 0, false).await;
    let judged = judged.unwrap_or_else(|impossible| panic!("{impossible}"));
    let asked = stage.asked.load(Ordering::Relaxed);
    assert_eq!(judged.reads, asked);

    let stats = Oracle::new().reads(asked).bytes("memory", MEMORY).check(&stage.terrace).await;
    let stats = stats.unwrap();
    // Of everything there was enough to go wrong.
    for (what, happened) in [
        ("versions were seen", judged.versions),
        ("readers heard of nothing", judged.not_found),
        ("reads missed", judged.misses),
        ("reads hit memory", stats.tiers[0].traffic.hits),
        ("reads hit the disk", stats.tiers[1].traffic.hits),
        ("entries were evicted", stats.tiers[0].evicted),
        ("loads were superseded", stats.spaces[1].superseded),
        ("loads were shared", stats.spaces[1].loads_shared),
    ] {
        println!("{happened} times: {what}");
        assert!(happened * 1_000 > calls as u64, "only {happened} times: {what}");
    }
    assert!(stage.terrace.close().await);
}

/// What is built from entries is no older than they are, whatever names them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c12_what_is_built_from_entries_is_read_in_an_order_too() {
    let calls = count(100_000, 4_000_000);
    let (stage, judged) = play(calls, count(2_000, 100_000), 0, true).await;
    judged.unwrap_or_else(|impossible| panic!("{impossible}"));
    let (built, stats) = (stage.built_reads.load(Ordering::Relaxed), stage.terrace.stats().await);
    let of_built = &stats.spaces[2];
    for (what, happened) in [
        ("reads of what was built", built),
        ("loads of it", of_built.loads),
        ("loads of it were superseded", of_built.superseded),
        ("reads of it hit", of_built.tiers.iter().map(|(_, traffic)| traffic.hits).sum()),
    ] {
        println!("{happened} times: {what}");
        assert!(happened * 10_000 > calls as u64, "only {happened} times: {what}");
    }
    assert!(stage.terrace.close().await);
}

/// The test above would see it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loader_that_tells_old_versions_is_found_out() {
    let (_, judged) = play(20_000, 1_000, 50, false).await;
    let impossible = judged.unwrap_err();
    assert!(impossible.others() > 10, "{impossible}");
}
