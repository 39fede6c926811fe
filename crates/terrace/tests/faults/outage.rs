//! Outages: a tier that fails, hangs or lies fails no read that another tier or the
//! loader can answer, and nothing that was invalidated meanwhile comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use terrace::ledger::{Line, Name, Stamp};
use terrace::protocol::Follow;
use terrace::store::{Store, StoreErrorKind};
use terrace::{Disk, Error, Memory, Settled, Space, Terrace, Tier};
use terrace_test::{Calls, ChaosStore, Damage, Fault, MapStore, Verb};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::{Everywhere as _, Refused, count, ends, eventually, ms, twins};

type Numbers = Space<str, u64>;

/// What a tier can be made to do, and a cache of it that is fit to be tested.
struct Site {
    terrace: Terrace,
    space: Numbers,
    /// The store that fails.
    chaos: Arc<ChaosStore>,
    source: AtomicU64,
    _directory: tempfile::TempDir,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stack {
    /// Memory above a store that keeps no ledger.
    Map,
    /// Memory above the store that keeps the ledger.
    Disk,
    /// That store alone.
    DiskAlone,
    /// Memory, a store that fails, and below it the one that keeps the ledger.
    MapAboveDisk,
}

impl Stack {
    const ALL: [Self; 4] = [Self::Map, Self::Disk, Self::DiskAlone, Self::MapAboveDisk];

    fn keeps_the_ledger(self) -> bool {
        matches!(self, Self::Disk | Self::DiskAlone)
    }
}

impl Site {
    async fn new(stack: Stack) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let inner: Arc<dyn Store> = if stack.keeps_the_ledger() {
            Arc::new(Disk::at(directory.path()).open().unwrap())
        } else {
            Arc::new(MapStore::new())
        };
        let chaos = Arc::new(ChaosStore::over(inner));
        let tier = Tier::shared(Arc::clone(&chaos) as _).deadlines(ms(20), ms(20));
        let mut builder = Terrace::builder();
        if stack != Stack::DiskAlone {
            builder = builder.memory(Memory::bytes(16 << 20));
        }
        builder = builder.tier("frail", tier);
        if stack == Stack::MapAboveDisk {
            builder = builder.tier("disk", Disk::at(directory.path()));
        }
        let terrace = builder.build().await.unwrap();
        let space = terrace.space("space").build().unwrap();
        Self { terrace, space, chaos, source: AtomicU64::new(0), _directory: directory }
    }

    /// The same with a value in place. What deadlines so short make of a busy machine is
    /// not what is to be tested.
    async fn with_value(stack: Stack) -> Self {
        for _ in 0..100 {
            let site = Self::new(stack).await;
            let value = site.next();
            if site.space.insert("key", value).tags(["tag"]).await.unwrap().is_settled() {
                return site;
            }
        }
        panic!("no write settles on this machine");
    }

    /// What is true now. Every write of [`Site::walk`] goes here first.
    fn now(&self) -> u64 {
        self.source.load(Ordering::SeqCst)
    }

    fn next(&self) -> u64 {
        self.source.fetch_add(1, Ordering::SeqCst) + 1
    }

    async fn load(&self) -> u64 {
        let now = self.now();
        let load = |_| async move { Ok::<_, Refused>(now) };
        let call = self.space.get_or_load("key", load).tags(["tag"]);
        *ends("get_or_load", call).await.expect("the loader can answer")
    }

    /// Every read answers, and with nothing but what is true.
    async fn look(&self, what: &str) {
        let true_now = self.now();
        let is_true = |found: Option<u64>| {
            assert!(
                found.is_none_or(|found| found == true_now),
                "{what}: {found:?}, not {true_now}"
            );
        };
        is_true(ends("get", self.space.get("key")).await.unwrap().map(|value| *value));
        is_true(self.space.read("key", |value| *value));
        let many = ends("get_many", self.space.get_many(["other", "key"])).await.unwrap();
        is_true(many[1].as_deref().copied());
        ends("exists", self.space.exists("key")).await.unwrap();
        let nothing = ends("exists", self.terrace.exists("nothing")).await.unwrap();
        assert!(!nothing, "{what}");
        if self.terrace.tiers().next() == Some("memory") {
            self.terrace.clear_tier("memory").await.unwrap();
            is_true(ends("get", self.space.get("key")).await.unwrap().map(|value| *value));
        }
        assert_eq!(self.load().await, true_now, "{what}");
        is_true(ends("get", self.space.get("key")).await.unwrap().map(|value| *value));
    }

    /// All that a user does with a key. No call fails but those that need the ledger to
    /// decide, and no read finds what is no longer true.
    async fn walk(&self, what: &str) {
        self.look(what).await;
        let next = self.next();
        let insert = async { self.space.insert("key", next).tags(["tag"]).await };
        let _ = ends("insert", insert).await.expect("a tier that is away is no error");
        self.look(what).await;
        ends("expire", self.space.expire("key", ms(600_000))).await.unwrap();
        self.look(what).await;
        self.next();
        ends("remove", self.space.remove("key")).await.unwrap();
        self.look(what).await;
        self.next();
        let _ = ends("invalidate_tag", self.terrace.invalidate_tag("tag")).await.unwrap();
        self.look(what).await;
        let next = self.next();
        let many = [("other", 0), ("key", next)];
        let _ = ends("insert_many", self.space.insert_many(many)).await.unwrap();
        self.look(what).await;
        self.next();
        let _ = ends("clear of a space", self.space.clear()).await.unwrap();
        self.look(what).await;
        self.next();
        let _ = ends("clear", self.terrace.clear()).await.unwrap();
        self.look(what).await;
        ends("clear_tier", self.terrace.clear_tier("frail")).await.ok();
        // These say that they could not, rather than guess.
        let decided = ends("insert_if_absent", self.space.insert_if_absent("new", 1)).await;
        assert!(matches!(decided, Ok(_) | Err(Error::Authority(_) | Error::Busy)), "{decided:?}");
        let counted = ends("increment", self.terrace.increment("count", 1)).await;
        assert!(matches!(counted, Ok(_) | Err(Error::Authority(_))), "{what}: {counted:?}");
        ends("stats", self.terrace.stats()).await;
    }

    async fn is_in_use(&self, key: &str, has_memory: bool) -> bool {
        let next = self.next();
        let settled = self.space.insert(key, next).tags(["tag"]).await.unwrap();
        if has_memory {
            self.terrace.clear_tier("memory").await.unwrap();
        }
        let found = self.space.get(key).await.unwrap();
        let is_there = found.as_deref() == Some(&next);
        let from_it = found.is_some_and(|found| found.source().to_string() == "frail");
        settled.is_settled() && is_there && from_it
    }

    /// Once nothing fails any longer, all tiers are in use again and nothing is pending.
    async fn recovers(self, what: &str) {
        self.chaos.heal();
        let memory = self.terrace.tiers().next() == Some("memory");
        for key in ["key", "other", "new"] {
            // A closure that borrows would keep this from running beside others.
            let mut attempts = 0;
            while !self.is_in_use(key, memory).await {
                tokio::time::sleep(ms(1)).await;
                attempts += 1;
                assert!(attempts < 10_000, "{what}: the tier that failed is not used again");
            }
        }
        assert!(ends("closing", self.terrace.close()).await, "{what}: something is pending");
    }
}

const VERBS: [Verb; 16] = [
    Verb::Get,
    Verb::Put,
    Verb::Remove,
    Verb::Clear,
    Verb::Usage,
    Verb::Maintain,
    Verb::Snapshot,
    Verb::Append,
    Verb::AppendIfUnnamed,
    Verb::Write,
    Verb::Follow,
    Verb::Lease,
    Verb::Renew,
    Verb::Release,
    Verb::Count,
    Verb::Counter,
];

fn faults() -> [Fault; 4] {
    [
        Fault::Fail(StoreErrorKind::Unavailable),
        Fault::FailAfter(StoreErrorKind::Other),
        Fault::Hang,
        Fault::HangAfter,
    ]
}

/// Several sites at once: most of what they do is to wait for what hangs.
struct Sites {
    running: JoinSet<()>,
    at_once: Arc<Semaphore>,
}

impl Sites {
    fn new() -> Self {
        Self { running: JoinSet::new(), at_once: Arc::new(Semaphore::new(8)) }
    }

    fn run(&mut self, test: impl Future<Output = ()> + Send + 'static) {
        let at_once = Arc::clone(&self.at_once);
        self.running.spawn(async move {
            let _turn = at_once.acquire().await;
            test.await;
        });
    }

    async fn done(self) {
        self.running.join_all().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_verb_may_fail_or_hang() {
    let mut sites = Sites::new();
    for stack in Stack::ALL {
        for verb in VERBS {
            if verb.is_of_authority() && !stack.keeps_the_ledger() {
                continue;
            }
            for fault in faults() {
                sites.run(async move {
                    let what = format!("{stack:?}: {verb:?} {fault:?}");
                    let site = Site::new(stack).await;
                    site.chaos.inject(verb, fault);
                    site.walk(&what).await;
                    if matches!(verb, Verb::Get | Verb::Put) {
                        let stats = site.terrace.stats().await;
                        let frail = &stats.tiers[usize::from(stack != Stack::DiskAlone)];
                        assert!(frail.traffic.errors > 0, "{what}: not counted");
                    }
                    site.recovers(&what).await;
                });
            }
        }
    }
    sites.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_may_be_away_altogether() {
    let mut sites = Sites::new();
    for stack in Stack::ALL {
        for fault in faults() {
            sites.run(async move {
                let what = format!("{stack:?}: everything {fault:?}");
                let site = Site::new(stack).await;
                site.walk(&what).await;
                site.chaos.inject(Calls::all(), fault.clone());
                site.walk(&what).await;
                site.chaos.heal();
                site.walk(&what).await;
                site.chaos.inject(Calls::all(), fault);
                site.walk(&what).await;
                site.recovers(&what).await;
            });
        }
    }
    sites.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nth_call_may_fail_or_hang() {
    let mut sites = Sites::new();
    for stack in Stack::ALL {
        for fault in faults() {
            for n in 1..=count(40, 400) as u64 {
                let fault = fault.clone();
                sites.run(async move {
                    let what = format!("{stack:?}: call {n} {fault:?}");
                    let site = Site::new(stack).await;
                    // Not what the cache asks by itself: that comes when it comes.
                    let of_its_own = [Verb::Follow, Verb::Usage, Verb::Maintain];
                    let asked = VERBS.into_iter().filter(|verb| !of_its_own.contains(verb));
                    site.chaos.inject(Calls::of(asked).nth(n), fault);
                    site.walk(&what).await;
                    if n % 10 == 0 {
                        site.recovers(&what).await;
                    }
                });
            }
        }
    }
    sites.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_may_answer_with_rubbish() {
    for stack in Stack::ALL {
        let rubbish = [
            Damage::Flip(100),
            Damage::Flip(4),
            Damage::Truncate(0),
            Damage::Truncate(50),
            Damage::Replace(b"not a frame".to_vec().into()),
            Damage::Noise(1),
        ];
        for damage in rubbish {
            let what = format!("{stack:?}: {damage:?}");
            let site = Site::new(stack).await;
            site.chaos.inject(Verb::Get, Fault::Damage(damage));
            site.walk(&what).await;
            let stats = site.terrace.stats().await;
            let frail = &stats.tiers[usize::from(stack != Stack::DiskAlone)];
            assert!(frail.traffic.unreadable > 0, "{what}: not counted");
            site.recovers(&what).await;
        }
    }
}

/// All lines of the ledger in a store.
async fn lines(store: &ChaosStore) -> Vec<Line> {
    let authority = store.inner().authority().unwrap();
    let incarnation = authority.snapshot().await.unwrap().incarnation;
    match authority.follow(Stamp { incarnation, number: 0 }).await.unwrap() {
        Follow::Lines(lines) => lines,
        Follow::Broken => panic!("the ledger forgot its beginning"),
    }
}

/// The five ways in which a value dies.
const KINDS: usize = 5;

async fn invalidate(site: &Site, kind: usize, next: u64) -> Settled {
    let settled = match kind {
        0 => ends("invalidate", site.space.invalidate("key")).await,
        1 => ends("invalidate_tag", site.terrace.invalidate_tag("tag")).await,
        2 => ends("clear", site.space.clear()).await,
        3 => ends("clear", site.terrace.clear()).await,
        _ => ends("insert", async { site.space.insert("key", next).tags(["tag"]).await }).await,
    };
    settled.expect("a tier that is away is no error")
}

fn name_of(kind: usize) -> Name {
    match kind {
        0 => Name::Key(":space:key".into()),
        1 => Name::Tag(":tag".into()),
        2 => Name::Space(":space".into()),
        3 => Name::Everything,
        _ => Name::Set(":space:key".into()),
    }
}

#[tokio::test]
async fn what_the_ledger_could_not_take_is_pending_until_it_can() {
    for stack in [Stack::Disk, Stack::DiskAlone] {
        for kind in 0..KINDS {
            // The store itself, which has the old value, answers all the time, or never.
            for away in [Calls::of_authority(), Calls::all()] {
                for fault in [Fault::Fail(StoreErrorKind::Unavailable), Fault::Hang] {
                    let what = format!("{stack:?}, kind {kind}: {away:?} {fault:?}");
                    let site = Site::with_value(stack).await;
                    site.chaos.inject(away.clone(), fault);
                    let next = site.next();
                    let settled = invalidate(&site, kind, next).await;
                    assert_eq!(settled, Settled::Pending(vec!["frail".into()]), "{what}");
                    site.look(&what).await;
                    // Back, and read before anything can be settled.
                    site.chaos.heal();
                    site.look(&what).await;
                    eventually("the line is written by itself", async || {
                        lines(&site.chaos).await.iter().any(|line| line.name == name_of(kind))
                    })
                    .await;
                    site.look(&what).await;
                    site.recovers(&what).await;
                }
            }
        }
    }
}

/// A store that keeps no ledger could not be told to remove something.
#[tokio::test]
async fn what_a_store_could_not_remove_is_not_read_from_it() {
    for kind in [0, 4] {
        for fault in [Fault::Fail(StoreErrorKind::Unavailable), Fault::Hang] {
            let what = format!("kind {kind}: {fault:?}");
            for stack in [Stack::Map, Stack::MapAboveDisk] {
                let site = Site::with_value(stack).await;
                site.chaos.inject(Calls::of([Verb::Put, Verb::Remove]), fault.clone());
                let next = site.next();
                let settled = invalidate(&site, kind, next).await;
                assert_eq!(settled, Settled::Pending(vec!["frail".into()]), "{what} {stack:?}");
                site.look(&what).await;
                site.recovers(&what).await;
            }
        }
    }
}

/// What a sweep finds in memory goes, whether or not the ledger can take that; what it finds below
/// stays until the ledger can, and the caller hears of it.
#[tokio::test]
async fn a_sweep_that_the_ledger_could_not_take_is_pending_until_it_can() {
    for is_below in [true, false] {
        for fault in [Fault::Fail(StoreErrorKind::Unavailable), Fault::Hang] {
            let what = format!("below memory: {is_below}, {fault:?}");
            let site = Site::with_value(Stack::Disk).await;
            if !is_below {
                site.terrace.clear_tier("frail").await.unwrap();
            }
            site.chaos.inject(Calls::of_authority(), fault);
            site.next();
            let sweep = async { site.space.remove_pattern("k[e]y").await };
            let removed = ends("remove_pattern", sweep).await;
            assert!(site.terrace.stats().await.pending > 0, "{what}");
            assert_eq!(site.space.read("key", |value| *value), None, "{what}");
            match removed {
                Err(error @ Error::Tier { .. }) if is_below => {
                    assert!(error.to_string().contains("frail"), "{what}: {error}");
                    site.chaos.heal();
                    eventually("another try", async || {
                        site.space.remove_pattern("k[e]y").await.is_ok()
                    })
                    .await;
                }
                Ok(removed) if !is_below => {
                    let pending = Settled::Pending(vec!["frail".into()]);
                    assert_eq!(removed.settled, pending, "{what}");
                    site.look(&what).await;
                    site.chaos.heal();
                }
                other => panic!("{what}: {other:?}"),
            }
            site.look(&what).await;
            eventually("nothing is pending", async || site.terrace.stats().await.pending == 0)
                .await;
            site.look(&what).await;
            site.recovers(&what).await;
        }
    }
}

/// More names than are kept one by one: then everything is pending.
#[tokio::test]
async fn a_flood_of_pending_names_distrusts_everything() {
    let site = Site::with_value(Stack::Disk).await;
    eventually("a bystander", async || {
        site.terrace.set("bystander", &1_u64).await.unwrap().is_settled()
    })
    .await;
    site.chaos.inject(Calls::of_authority(), Fault::Fail(StoreErrorKind::Unavailable));
    let mut keys: Vec<String> = (0..10_001).map(|at| format!("other:{at}")).collect();
    keys.push("key".into());
    site.next();
    site.space.remove_many(keys.iter().map(String::as_str)).await.unwrap();
    site.look("a flood").await;
    site.terrace.clear_tier("memory").await.unwrap();
    let found = site.terrace.get::<u64>("bystander").await.unwrap();
    assert!(found.is_none(), "it cannot be told any longer what is pending");
    site.chaos.heal();
    eventually("a line about everything", async || {
        lines(&site.chaos).await.iter().any(|line| line.name == Name::Everything)
    })
    .await;
    site.recovers("a flood").await;
}

/// The same name becomes pending again while it is being settled.
#[tokio::test]
async fn what_becomes_pending_while_it_is_being_settled_stays_pending() {
    let directory = tempfile::tempdir().unwrap();
    let keeper = Arc::new(ChaosStore::over(Arc::new(Disk::at(directory.path()).open().unwrap())));
    let above = Arc::new(ChaosStore::over(Arc::new(MapStore::new())));
    let terrace = Terrace::builder()
        .memory(Memory::bytes(1 << 20))
        .tier("above", Tier::shared(Arc::clone(&above) as _))
        .tier("keeper", Tier::shared(Arc::clone(&keeper) as _))
        .build()
        .await
        .unwrap();
    let space = terrace.space::<str, u64>("space").build().unwrap();
    space.insert("key", 0).await.everywhere();

    let away =
        || keeper.inject(Calls::of([Verb::Append]).first(1), Fault::Fail(StoreErrorKind::Other));
    let key_lines = async || {
        let lines = lines(&keeper).await;
        lines.iter().filter(|line| line.name == Name::Key(":space:key".into())).count()
    };
    away();
    assert!(!space.invalidate("key").await.unwrap().is_settled());
    // The line is written by itself; then the store above is told, and takes its time.
    let gate = above.hold(Calls::of([Verb::Remove]).first(1));
    ends("the removal above", gate.arrived()).await;
    assert_eq!(key_lines().await, 1);
    // Meanwhile the key is loaded and invalidated once more.
    let load = space.get_or_load("key", |_| async { Ok::<_, Refused>(1) });
    assert_eq!(*ends("a load", load).await.unwrap(), 1);
    eventually("it is on disk", async || keeper.inner().usage().await.unwrap().entries == 1).await;
    away();
    assert!(!space.invalidate("key").await.unwrap().is_settled());
    gate.open();
    eventually("the second line is written too", async || {
        let found = space.get("key").await.unwrap().map(|value| *value);
        assert_eq!(found, None, "invalidated twice, and here again");
        key_lines().await == 2
    })
    .await;
    assert!(space.get("key").await.unwrap().is_none());
    eventually("nothing is pending", async || {
        space.insert("key", 2).await.everywhere();
        terrace.clear_tier("memory").await.unwrap();
        space.get("key").await.unwrap().is_some_and(|value| *value == 2)
    })
    .await;
    assert!(ends("closing", terrace.close()).await);
}

/// A tier that does not hear the ledger keeps nothing of what was named, whoever goes away half-way: the
/// ledger forgets lines about keys one day, and what is left would be good again.
#[tokio::test]
async fn what_a_caller_that_was_dropped_left_in_a_deaf_tier_is_taken_away() {
    for step in ["remove", "invalidate", "insert", "insert if absent", "copy upwards"] {
        let directory = tempfile::tempdir().unwrap();
        let map = Arc::new(MapStore::new());
        let above = Arc::new(ChaosStore::over(Arc::clone(&map) as _));
        let terrace = Terrace::builder()
            .memory(Memory::bytes(1 << 20))
            .tier("above", Tier::shared(Arc::clone(&above) as _))
            .tier("disk", Disk::at(directory.path()))
            .build()
            .await
            .unwrap();
        let space = terrace.space::<str, u64>("space").build().unwrap();
        space.insert("key", 0).await.everywhere();
        let [key] = &map.keys()[..] else { panic!("one frame") };
        let held =
            if matches!(step, "insert" | "insert if absent") { Verb::Put } else { Verb::Remove };
        if step == "insert if absent" {
            space.invalidate("key").await.everywhere();
            // What nobody can take away but who knows of it: no line names it any more.
            map.set_raw(key, b"left over".as_slice());
        }
        let copied = (step == "copy upwards").then(|| {
            map.remove_raw(key);
            above.hold(Calls::of([Verb::Put]).first(1))
        });
        if copied.is_some() {
            terrace.clear_tier("memory").await.unwrap();
        }
        let caller = tokio::spawn({
            let space = space.clone();
            async move {
                match step {
                    "remove" => drop(space.remove("key").await),
                    "invalidate" => drop(space.invalidate("key").await),
                    "insert" => drop(space.insert("key", 1).await),
                    "insert if absent" => drop(space.insert_if_absent("key", 1).await),
                    _ => drop(space.get("key").await),
                }
            }
        });
        if let Some(copied) = &copied {
            ends("the copy", copied.arrived()).await;
            space.invalidate("key").await.everywhere();
        }
        let gate = above.hold(Calls::of([held]).first(1));
        if let Some(copied) = &copied {
            copied.open();
        }
        ends(step, gate.arrived()).await;
        assert!(map.raw(key).is_some(), "{step}: nothing to be taken away");
        caller.abort();
        let _ = caller.await;
        gate.open();
        eventually(step, async || map.raw(key).is_none()).await;
        eventually("nothing is pending", async || {
            space.insert("key", 2).await.unwrap().is_settled() && map.raw(key).is_some()
        })
        .await;
        assert_eq!(space.get("key").await.unwrap().as_deref(), Some(&2), "{step}");
        assert!(ends("closing", terrace.close()).await);
    }
}

/// Others wrote between, and their lines cannot be read: ours must count all the same.
#[tokio::test]
async fn a_line_that_cannot_be_applied_in_order_is_not_settled() {
    for kind in 0..KINDS {
        let directory = tempfile::tempdir().unwrap();
        let [other, _] = twins(&directory).await;
        let chaos =
            Arc::new(ChaosStore::over(Arc::new(Disk::at(directory.path()).open().unwrap())));
        let terrace = Terrace::builder()
            .memory(Memory::bytes(1 << 20))
            .tier("frail", Tier::shared(Arc::clone(&chaos) as _))
            .build()
            .await
            .unwrap();
        let space = terrace.space("space").build().unwrap();
        let source = AtomicU64::new(0);
        let site = Site { terrace, space, chaos, source, _directory: directory };
        let old = site.next();
        site.space.insert("key", old).tags(["tag"]).await.everywhere();
        site.chaos.inject(Verb::Follow, Fault::Fail(StoreErrorKind::Unavailable));
        other.invalidate("another").await.everywhere();
        let next = site.next();
        let _ = invalidate(&site, kind, next).await;
        let found = site.space.read("key", |value| *value);
        assert!(found.is_none_or(|found| found == next), "kind {kind}: {found:?} from memory");
        site.look(&format!("kind {kind}")).await;
        site.recovers(&format!("kind {kind}")).await;
    }
}

/// A writer that cannot find out what came between gives up in the end.
#[tokio::test]
async fn an_insert_that_cannot_find_out_what_came_between_ends() {
    let directory = tempfile::tempdir().unwrap();
    let [other, _] = twins(&directory).await;
    let chaos = Arc::new(ChaosStore::over(Arc::new(Disk::at(directory.path()).open().unwrap())));
    let terrace = Terrace::builder()
        .memory(Memory::bytes(1 << 20))
        .tier("frail", Tier::shared(Arc::clone(&chaos) as _))
        .build()
        .await
        .unwrap();
    chaos.inject(Verb::Follow, Fault::Fail(StoreErrorKind::Unavailable));
    other.invalidate("key").await.everywhere();
    let inserted = ends("an insert", terrace.set_if_absent("key", &1_u64)).await;
    assert!(matches!(inserted, Err(Error::Busy)), "{inserted:?}");
    chaos.heal();
    assert!(ends("an insert", terrace.set_if_absent("key", &1_u64)).await.unwrap());
}

/// Following and cleaning up go on after a while in which nothing answered.
#[tokio::test]
async fn what_others_invalidate_during_an_outage_is_heard_of_afterwards() {
    for fault in faults() {
        let directory = tempfile::tempdir().unwrap();
        let [other, _] = twins(&directory).await;
        let chaos =
            Arc::new(ChaosStore::over(Arc::new(Disk::at(directory.path()).open().unwrap())));
        let terrace = Terrace::builder()
            .memory(Memory::bytes(1 << 20))
            .tier("frail", Tier::shared(Arc::clone(&chaos) as _).deadlines(ms(300), ms(300)))
            .build()
            .await
            .unwrap();
        terrace.set("key", &1_u64).await.everywhere();
        chaos.inject(Calls::all(), fault.clone());
        let asked = chaos.calls_of(Verb::Follow);
        eventually("the cache asks in vain", async || chaos.calls_of(Verb::Follow) > asked + 1)
            .await;
        other.invalidate("key").await.everywhere();
        chaos.heal();
        eventually("the line is heard of", async || {
            terrace.get::<u64>("key").await.unwrap().is_none()
        })
        .await;
        assert!(ends("closing", terrace.close()).await, "{fault:?}");
    }
}

/// Closing tells the truth about stores that do not let go, and does not wait for them.
#[tokio::test]
async fn a_store_that_hangs_does_not_keep_a_cache_from_closing() {
    for fault in faults() {
        let site = Site::new(Stack::Map).await;
        site.walk("before").await;
        site.chaos.inject(Verb::Close, fault.clone());
        ends("closing", site.terrace.close()).await;
        assert!(matches!(site.space.get("key").await, Err(Error::Closed)), "{fault:?}");
    }
}
