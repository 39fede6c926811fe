//! Races: loads, copies and writes that are under way while their key is invalidated.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use terrace::{Disk, Loaded, Memory, Settled, Space, Terrace, Tier};
use terrace_test::{ChaosStore, MapStore, Verb};
use tokio::sync::{Barrier, Semaphore};
use tokio::task::{JoinHandle, JoinSet};

use crate::support::{
    Bed, Everywhere as _, Layout, Refused, count, ends, eventually, let_others_run, ms, poll_once,
    random, twins,
};

/// How a value is made to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Key,
    Tag,
    Prefix,
    Pattern,
    Space,
    Everything,
    Insert,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Key,
        Self::Tag,
        Self::Prefix,
        Self::Pattern,
        Self::Space,
        Self::Everything,
        Self::Insert,
    ];
}

type Numbers = Space<str, u64>;

/// Makes what is under `key` die; an insert puts `next` in its place.
async fn invalidate(terrace: &Terrace, space: &Numbers, key: &str, kind: Kind, next: u64) {
    match kind {
        Kind::Key => space.invalidate(key).await.everywhere(),
        Kind::Tag => terrace.invalidate_tag(&format!("of:{key}")).await.everywhere(),
        Kind::Prefix => {
            let prefix = key.split_inclusive(':').next().unwrap_or(key);
            space.invalidate_prefix(prefix).await.everywhere();
        }
        Kind::Pattern => {
            let number = key.rsplit(':').next().unwrap_or(key);
            let removed = space.remove_pattern(&format!("*{number}")).await.unwrap();
            assert_eq!(removed.settled, Settled::Settled);
        }
        Kind::Space => space.clear().await.everywhere(),
        Kind::Everything => terrace.clear().await.everywhere(),
        Kind::Insert => space.insert(key, next).tags([format!("of:{key}")]).await.everywhere(),
    }
}

/// The truth, with a loader that waits before it looks at it and before it tells.
#[derive(Debug)]
struct Source {
    version: AtomicU64,
    may_look: Semaphore,
    may_tell: Semaphore,
    running: AtomicUsize,
    most: AtomicUsize,
    loads: AtomicUsize,
}

impl Source {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            version: AtomicU64::new(0),
            may_look: Semaphore::new(0),
            may_tell: Semaphore::new(0),
            running: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            loads: AtomicUsize::new(0),
        })
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    async fn load(self: Arc<Self>, waits: bool) -> Result<u64, Refused> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        if waits {
            // An error says that nobody is made to wait any longer.
            let _ = self.may_look.acquire().await.map(|pass| pass.forget());
        }
        let version = self.version();
        if waits {
            let _ = self.may_tell.acquire().await.map(|pass| pass.forget());
        }
        self.running.fetch_sub(1, Ordering::SeqCst);
        Ok(version)
    }

    fn open(&self) {
        self.may_look.close();
        self.may_tell.close();
    }
}

/// A call that begins here and now, and ends when it ends: not with less than the
/// version that was told to be invalidated when it began.
async fn call(
    calls: &mut JoinSet<()>,
    space: &Numbers,
    key: &str,
    source: &Arc<Source>,
    waits: bool,
    floor: u64,
) {
    call_so(calls, space, key, source, waits, floor, Manner::Plain).await;
}

/// How a call is made.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Plain,
    /// Only the loader knows the tag.
    OwnTag,
    Refresh,
}

async fn call_so(
    calls: &mut JoinSet<()>,
    space: &Numbers,
    key: &str,
    source: &Arc<Source>,
    waits: bool,
    floor: u64,
    manner: Manner,
) {
    let (space, source, key) = (space.clone(), Arc::clone(source), key.to_owned());
    let mut call = Box::pin(async move {
        let tag = format!("of:{key}");
        let of_loader = matches!(manner, Manner::OwnTag).then(|| tag.clone());
        let call = space.get_or_load(&key, |_| async move {
            source.load(waits).await.map(|value| Loaded::value(value).tags(of_loader))
        });
        let found = *match manner {
            Manner::Plain => call.tags([tag]).await.unwrap(),
            Manner::OwnTag => call.await.unwrap(),
            Manner::Refresh => call.tags([tag]).refresh().await.unwrap(),
        };
        assert!(found >= floor, "get_or_load of {key} began at {floor} and was told {found}");
    });
    if poll_once(call.as_mut()).await.is_pending() {
        calls.spawn(call);
    }
}

/// Every way to look that waits for no load.
async fn look(space: &Numbers, key: &str, floor: u64, random: &mut fastrand::Rng) {
    let found = match random.u8(0..3) {
        0 => space.get(key).await.unwrap().map(|value| *value),
        1 => space.get_many([key, "another"]).await.unwrap()[0].as_deref().copied(),
        _ => space.read(key, |value| *value),
    };
    assert!(
        found.is_none_or(|found| found >= floor),
        "a read of {key} began at {floor} and was told {found:?}"
    );
}

/// One random order of loads, writes to the source, invalidations of some kinds and reads of a
/// key. Returns the version that is true in the end.
async fn one_order(
    terrace: &Terrace,
    space: &Numbers,
    key: &str,
    has_memory: bool,
    kinds: &[Kind],
    random: &mut fastrand::Rng,
) -> u64 {
    let source = Source::new();
    let mut calls = JoinSet::new();
    let mut floor = 0;
    let mut invalidating: Option<(u64, JoinHandle<()>)> = None;
    for _ in 0..random.usize(4..16) {
        match random.u8(0..12) {
            0..=2 => call(&mut calls, space, key, &source, true, floor).await,
            3 => {
                let manners = [Manner::Plain, Manner::OwnTag, Manner::Refresh];
                let (manner, waits) = (manners[random.usize(0..3)], random.bool());
                call_so(&mut calls, space, key, &source, waits, floor, manner).await;
            }
            4 => source.may_look.add_permits(1),
            5 => source.may_tell.add_permits(1),
            6 | 7 => look(space, key, floor, random).await,
            8 if has_memory => drop(terrace.clear_tier("memory").await.unwrap()),
            9 => tokio::task::yield_now().await,
            // One invalidation at a time: two writers of a source have an order of their own.
            _ if invalidating.is_none() => {
                let next = source.version() + 1;
                source.version.store(next, Ordering::SeqCst);
                let kind = kinds[random.usize(0..kinds.len())];
                let (terrace, space, key) = (terrace.clone(), space.clone(), key.to_owned());
                let work = async move { invalidate(&terrace, &space, &key, kind, next).await };
                if random.bool() {
                    work.await;
                    floor = next;
                } else {
                    invalidating = Some((next, tokio::spawn(work)));
                }
            }
            _ => {
                if let Some((next, work)) = invalidating.take() {
                    ends("an invalidation", work).await.unwrap();
                    floor = next;
                }
            }
        }
    }
    source.open();
    if let Some((_, work)) = invalidating {
        ends("an invalidation", work).await.unwrap();
    }
    let last = source.version();
    look(space, key, last, random).await;
    ends("calls of a key that was invalidated meanwhile", calls.join_all()).await;
    look(space, key, last, random).await;
    if has_memory {
        terrace.clear_tier("memory").await.unwrap();
        look(space, key, last, random).await;
    }
    let loaded = space.get_or_load(key, |_| Arc::clone(&source).load(false));
    assert_eq!(*ends("the last call", loaded).await.unwrap(), last);
    assert_eq!(space.get(key).await.unwrap().map(|value| *value), Some(last), "{key}");
    last
}

async fn many_orders(layout: Layout) {
    many_orders_of(layout, &Kind::ALL, count(2_000, 10_000)).await;
}

/// The same with some kinds of invalidations alone. What is read ages at once: hits have it
/// loaded anew.
pub(crate) async fn many_orders_of(layout: Layout, kinds: &[Kind], orders: usize) {
    let mut random = random("orders");
    let bed = Bed::new(layout).await;
    let space = bed.space::<str, u64>("space").refresh_at(0.0).build().unwrap();
    let mut last = Vec::new();
    for order in 0..orders {
        // Long ones are known to the ledger by their hash alone.
        let part = if order % 8 == 7 { "long ".repeat(35) } else { "key".into() };
        let key = format!("{part}:{order}");
        let version = one_order(&bed, &space, &key, layout.has_memory(), kinds, &mut random).await;
        last.push((key, version));
    }
    let stats = &bed.stats().await.spaces[1];
    assert!(stats.superseded * 20 > last.len() as u64, "few loads met a line: {stats:?}");
    // What was stored late would be there now.
    assert!(ends("closing", bed.close()).await);
    if matches!(layout, Layout::MemoryAndDisk | Layout::Disk) {
        let later =
            Terrace::builder().tier("disk", Disk::at(bed.directory.path())).build().await.unwrap();
        let space = later.space::<str, u64>("space").build().unwrap();
        for (key, version) in &last {
            let found = space.get(key).await.unwrap().map(|value| *value);
            assert!(found.is_none_or(|found| found == *version), "{key}: {found:?}, not {version}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c1_an_invalidation_meets_loads_in_memory() {
    many_orders(Layout::Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c1_an_invalidation_meets_loads_in_memory_and_on_disk() {
    many_orders(Layout::MemoryAndDisk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c1_an_invalidation_meets_loads_on_disk_alone() {
    many_orders(Layout::Disk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c1_an_invalidation_meets_loads_above_a_store_that_hears_no_ledger() {
    many_orders(Layout::MemoryAndMap).await;
}

/// The tags of a load are known when it begins: a line about one of them supersedes it.
#[tokio::test]
async fn c1_a_call_after_an_invalidation_does_not_share_the_load_from_before() {
    for layout in Layout::ALL {
        for kind in Kind::ALL {
            let bed = Bed::new(layout).await;
            let space = bed.space::<str, u64>("space").build().unwrap();
            let source = Source::new();
            let mut calls = JoinSet::new();
            call(&mut calls, &space, "key", &source, true, 0).await;
            source.may_look.add_permits(1);
            eventually("the load has looked", async || source.may_look.available_permits() == 0)
                .await;
            source.version.store(1, Ordering::SeqCst);
            invalidate(&bed, &space, "key", kind, 1).await;
            call(&mut calls, &space, "key", &source, false, 1).await;
            let_others_run().await;
            source.open();
            ends("calls", calls.join_all()).await;
            let now = space.get("key").await.unwrap().map(|value| *value);
            assert_eq!(now, Some(1), "{layout:?} {kind:?}");
        }
    }
}

/// The tags of what a load finds below memory are known only when it is found.
#[tokio::test]
async fn c1_a_call_after_an_invalidation_does_not_share_what_was_found_before() {
    for kind in Kind::ALL {
        let near = Arc::new(ChaosStore::over(Arc::new(MapStore::new())));
        let terrace = Terrace::builder()
            .tier("near", Tier::shared(Arc::clone(&near) as _))
            .tier("far", Tier::of(MapStore::new()))
            .build()
            .await
            .unwrap();
        let space = terrace.space::<str, u64>("space").build().unwrap();
        space.insert("key", 0).tags(["of:key"]).await.everywhere();
        terrace.clear_tier("near").await.unwrap();
        // Found and judged good, and on its way up.
        let gate = near.hold(Verb::Put);
        let source = Source::new();
        let ask = || {
            let (space, source) = (space.clone(), Arc::clone(&source));
            tokio::spawn(
                async move { *space.get_or_load("key", |_| source.load(false)).await.unwrap() },
            )
        };
        let first = ask();
        ends("the copy", gate.arrived()).await;
        source.version.store(1, Ordering::SeqCst);
        let invalidating = tokio::spawn({
            let (terrace, space) = (terrace.clone(), space.clone());
            async move { invalidate(&terrace, &space, "key", kind, 1).await }
        });
        if kind == Kind::Insert {
            // It has to pass the same gate.
            ends("the write", gate.arrived_many(2)).await;
        } else {
            ends("the invalidation", invalidating).await.unwrap();
        }
        let later = ask();
        let_others_run().await;
        gate.open();
        ends("the first call", first).await.unwrap();
        assert_eq!(ends("the later call", later).await.unwrap(), 1, "{kind:?}");
    }
}

/// Lines about so many other keys that the one about ours is forgotten.
async fn write_many_lines(terrace: &Terrace) {
    let others = terrace.space::<u64, u64>("others").build().unwrap();
    let keys: Vec<u64> = (0..70_000).collect();
    assert_eq!(others.remove_many(&keys).await.unwrap(), 0);
}

/// A cache of memory above two tiers; the upper one can be held up.
struct Stack {
    terrace: Terrace,
    space: Numbers,
    map: Arc<MapStore>,
    near: Arc<ChaosStore>,
    _directory: tempfile::TempDir,
}

impl Stack {
    async fn new(far_is_disk: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let map = Arc::new(MapStore::new());
        let near = Arc::new(ChaosStore::over(Arc::clone(&map) as _));
        let builder = Terrace::builder()
            .memory(Memory::bytes(64 << 20))
            .tier("near", Tier::shared(Arc::clone(&near) as _));
        let builder = if far_is_disk {
            builder.tier("disk", Disk::at(directory.path()))
        } else {
            builder.tier("far", Tier::of(MapStore::new()))
        };
        let terrace = builder.build().await.unwrap();
        let space = terrace.space("space").build().unwrap();
        Self { terrace, space, map, near, _directory: directory }
    }

    /// No read, however it is made, and however late, finds less than `floor`.
    async fn is_clean(&self, floor: u64, what: &str) {
        // So many lines take their time on disk, and each kind is the same there.
        let is_disk = self.terrace.stats().await.tiers.iter().any(|tier| &*tier.name == "disk");
        let latest = !is_disk || what.contains("Key");
        for late in [false, true].into_iter().filter(|late| !*late || latest) {
            for layer in ["memory", "memory", "near"] {
                let found = self.space.get("key").await.unwrap().map(|value| *value);
                assert!(
                    found.is_none_or(|found| found >= floor),
                    "{what}: {found:?}, late: {late}"
                );
                self.terrace.clear_tier(layer).await.unwrap();
                if layer == "memory" && !late {
                    continue;
                }
            }
            if !late && latest {
                write_many_lines(&self.terrace).await;
            }
        }
    }
}

#[tokio::test]
async fn c1_what_is_read_from_below_during_an_invalidation_is_not_stored() {
    for far_is_disk in [false, true] {
        for kind in Kind::ALL {
            let stack = Stack::new(far_is_disk).await;
            let Stack { terrace, space, near, .. } = &stack;
            space.insert("key", 0).tags(["of:key"]).await.everywhere();
            terrace.clear_tier("memory").await.unwrap();
            let gate = near.hold_answers(Verb::Get);
            let mut reads = JoinSet::new();
            for way in 0..3 {
                let space = space.clone();
                reads.spawn(async move {
                    match way {
                        0 => drop(space.get("key").await.unwrap()),
                        1 => drop(space.get_many(["key"]).await.unwrap()),
                        _ => drop(
                            space.get_or_load("key", |_| async { Err::<u64, _>(Refused(0)) }).await,
                        ),
                    }
                });
            }
            ends("three reads", gate.arrived_many(3)).await;
            invalidate(terrace, space, "key", kind, 1).await;
            gate.open();
            ends("reads from before", reads.join_all()).await;
            let expected = (kind == Kind::Insert).then_some(1);
            assert_eq!(space.read("key", |value| *value), expected, "{kind:?}");
            assert_eq!(space.get("key").await.unwrap().map(|value| *value), expected, "{kind:?}");
            stack.is_clean(1, &format!("far_is_disk: {far_is_disk}, {kind:?}")).await;
        }
    }
}

/// The same one step later: it was read, and is being copied to the tier above.
#[tokio::test]
async fn c1_what_is_copied_up_during_an_invalidation_does_not_stay() {
    for far_is_disk in [false, true] {
        for kind in Kind::ALL {
            let stack = Stack::new(far_is_disk).await;
            let Stack { terrace, space, near, map, .. } = &stack;
            space.insert("key", 0).tags(["of:key"]).await.everywhere();
            terrace.clear_tier("memory").await.unwrap();
            terrace.clear_tier("near").await.unwrap();
            let gate = near.hold(terrace_test::Calls::of([Verb::Put]).first(1));
            let read = tokio::spawn({
                let space = space.clone();
                async move { space.get("key").await.unwrap().map(|value| *value) }
            });
            ends("the copy", gate.arrived()).await;
            invalidate(terrace, space, "key", kind, 1).await;
            gate.open();
            ends("the read from before", read).await.unwrap();
            if kind != Kind::Insert {
                assert!(map.keys().is_empty(), "{kind:?}: what is dead takes no room");
            }
            stack.is_clean(1, &format!("far_is_disk: {far_is_disk}, {kind:?}")).await;
        }
    }
}

/// The same for a lifetime that is being written back, and for a write that is overtaken.
#[tokio::test]
async fn c1_what_is_written_during_an_invalidation_does_not_stay() {
    for far_is_disk in [false, true] {
        for is_insert in [false, true] {
            for kind in Kind::ALL {
                let stack = Stack::new(far_is_disk).await;
                let Stack { terrace, space, near, .. } = &stack;
                space.insert("key", 0).tags(["of:key"]).await.everywhere();
                let gate = near.hold(terrace_test::Calls::of([Verb::Put]).first(1));
                let write = tokio::spawn({
                    let space = space.clone();
                    async move {
                        if is_insert {
                            let _ = space.insert("key", 0).tags(["of:key"]).await.unwrap();
                        } else {
                            space.expire("key", ms(600_000)).await.unwrap();
                        }
                    }
                });
                ends("the write", gate.arrived()).await;
                invalidate(terrace, space, "key", kind, 1).await;
                gate.open();
                ends("the write from before", write).await.unwrap();
                let what = format!("far_is_disk: {far_is_disk}, insert: {is_insert}, {kind:?}");
                stack.is_clean(1, &what).await;
            }
        }
    }
}

/// A copy that was under way does not replace what was loaded after it was read.
#[tokio::test]
async fn what_is_copied_up_does_not_replace_something_newer() {
    for far_is_disk in [false, true] {
        let stack = Stack::new(far_is_disk).await;
        let Stack { terrace, space, near, map, .. } = &stack;
        space.insert("key", 0).await.everywhere();
        terrace.clear_tier("memory").await.unwrap();
        let gate = near.hold_answers(terrace_test::Calls::of([Verb::Get]).first(1));
        let read = tokio::spawn({
            let space = space.clone();
            async move { *space.get("key").await.unwrap().unwrap() }
        });
        ends("the read", gate.arrived()).await;
        // The tiers lose it, the source has another value, and somebody loads that. Its stamp
        // is a later one, although no line names the key.
        for tier in terrace.tiers().skip(1) {
            terrace.clear_tier(tier).await.unwrap();
        }
        assert!(map.keys().is_empty());
        terrace.invalidate("another").await.everywhere();
        let load = space.get_or_load("key", |_| async { Ok::<_, Refused>(1) });
        assert_eq!(*ends("a load", load).await.unwrap(), 1);
        gate.open();
        assert_eq!(ends("the read", read).await.unwrap(), 0);
        assert_eq!(space.read("key", |value| *value), Some(1));
    }
}

/// What a load brings is being stored below memory.
#[tokio::test]
async fn c1_what_is_filled_in_during_an_invalidation_does_not_stay() {
    for far_is_disk in [false, true] {
        for kind in Kind::ALL {
            let stack = Stack::new(far_is_disk).await;
            let Stack { terrace, space, near, .. } = &stack;
            let gate = near.hold(terrace_test::Calls::of([Verb::Put]).first(1));
            let load = space.get_or_load("key", |_| async { Ok::<_, Refused>(0) }).tags(["of:key"]);
            ends("the load", load).await.unwrap();
            ends("the fill", gate.arrived()).await;
            invalidate(terrace, space, "key", kind, 1).await;
            gate.open();
            // A second load waits for the first one's lease, which goes with its last step.
            let load = space.get_or_load("key", |_| async { Ok::<_, Refused>(1) }).tags(["of:key"]);
            assert_eq!(*ends("the next load", load).await.unwrap(), 1);
            stack.is_clean(1, &format!("far_is_disk: {far_is_disk}, {kind:?}")).await;
        }
    }
}

#[tokio::test]
async fn an_insert_beats_the_load_that_began_before_it() {
    for layout in Layout::ALL {
        for looked_before in [false, true] {
            let bed = Bed::new(layout).await;
            let space = bed.space::<str, u64>("space").build().unwrap();
            let source = Source::new();
            let mut calls = JoinSet::new();
            call(&mut calls, &space, "key", &source, true, 0).await;
            if looked_before {
                source.may_look.add_permits(1);
                eventually("it looked", async || source.may_look.available_permits() == 0).await;
            }
            space.insert("key", 1).await.everywhere();
            source.open();
            ends("the load", calls.join_all()).await;
            for _ in 0..2 {
                assert_eq!(space.get("key").await.unwrap().map(|value| *value), Some(1));
                if layout.has_memory() && layout != Layout::Memory {
                    bed.clear_tier("memory").await.unwrap();
                }
            }
            assert!(ends("closing", bed.close()).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_who_insert_if_absent_one_does() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        for round in 0..count(5, 100) {
            let start = Arc::new(Barrier::new(100));
            let mut writers = JoinSet::new();
            for writer in 0..100_u64 {
                let (terrace, start) = (bed.terrace.clone(), Arc::clone(&start));
                writers.spawn(async move {
                    start.wait().await;
                    let key = format!("key:{round}");
                    (writer, terrace.set_if_absent(&key, &writer).await.unwrap())
                });
            }
            let all = ends("writers of one key", writers.join_all()).await;
            let won: Vec<_> = all.iter().filter(|(_, won)| *won).map(|(by, _)| *by).collect();
            assert_eq!(won.len(), 1, "{layout:?} round {round}: {won:?}");
            let there = bed.get::<u64>(&format!("key:{round}")).await.unwrap();
            assert_eq!(there.map(|by| *by), Some(won[0]), "{layout:?} round {round}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_who_count_lose_nothing() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let mut tasks = JoinSet::new();
        for task in 0..100_i64 {
            let terrace = bed.terrace.clone();
            tasks.spawn(async move {
                let mut seen = Vec::new();
                for _ in 0..20 {
                    seen.push(terrace.increment("up", 1).await.unwrap());
                    terrace.increment("down", -task).await.unwrap();
                }
                seen
            });
        }
        let mut seen: Vec<_> =
            ends("counting", tasks.join_all()).await.into_iter().flatten().collect();
        seen.sort_unstable();
        assert_eq!(seen, (1..=2_000).collect::<Vec<_>>(), "{layout:?}: each sum once");
        assert_eq!(bed.counter("up").await.unwrap(), Some(2_000), "{layout:?}");
        assert_eq!(bed.counter("down").await.unwrap(), Some(-20 * 4_950), "{layout:?}");
    }
}

#[tokio::test]
async fn an_invalidation_here_reaches_the_memory_there() {
    let directory = tempfile::tempdir().unwrap();
    let [here, there] = twins(&directory).await;
    let space = here.space::<str, u64>("space").build().unwrap();
    let space_there = there.space::<str, u64>("space").build().unwrap();
    for kind in Kind::ALL {
        for round in 0..count(5, 50) {
            let key = format!("{kind:?}:{round}");
            space.insert(&key, 0).tags([format!("of:{key}")]).await.everywhere();
            assert_eq!(space_there.get(&key).await.unwrap().map(|value| *value), Some(0));
            assert_eq!(space_there.read(&key, |value| *value), Some(0), "it is in memory there");
            invalidate(&here, &space, &key, kind, 1).await;
            let new = (kind == Kind::Insert).then_some(1);
            assert_eq!(space.get(&key).await.unwrap().map(|value| *value), new, "{kind:?} here");
            if matches!(kind, Kind::Key | Kind::Insert) {
                // It is off the disk already: only memory can be behind.
                there.clear_tier("memory").await.unwrap();
                let found = space_there.get(&key).await.unwrap().map(|value| *value);
                assert_eq!(found, new, "{kind:?}: at once from the disk");
                space.insert(&key, 2).await.everywhere();
                there.clear_tier("memory").await.unwrap();
                assert_eq!(space_there.get(&key).await.unwrap().map(|value| *value), Some(2));
                invalidate(&here, &space, &key, kind, 3).await;
            }
            let new = (kind == Kind::Insert).then_some(3);
            eventually("it is gone from memory there", async || {
                space_there.read(&key, |value| *value).is_none_or(|found| Some(found) == new)
            })
            .await;
            let found = space_there.get(&key).await.unwrap().map(|value| *value);
            assert_eq!(found, new, "{kind:?} there");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_here_meets_an_invalidation_there() {
    let mut random = random("twins");
    let directory = tempfile::tempdir().unwrap();
    let caches = twins(&directory).await;
    let spaces: Vec<Numbers> =
        caches.iter().map(|cache| cache.space("space").build().unwrap()).collect();
    let mut last = Vec::new();
    for order in 0..count(300, 5_000) {
        let key = format!("key:{order}");
        let source = Source::new();
        let mut calls = JoinSet::new();
        for _ in 0..random.usize(4..12) {
            let at = random.usize(0..2);
            match random.u8(0..8) {
                0..=2 => call(&mut calls, &spaces[at], &key, &source, true, 0).await,
                3 => source.may_look.add_permits(1),
                4 => source.may_tell.add_permits(1),
                5 => tokio::task::yield_now().await,
                _ => {
                    let next = source.version() + 1;
                    source.version.store(next, Ordering::SeqCst);
                    let kind = Kind::ALL[random.usize(0..Kind::ALL.len())];
                    invalidate(&caches[at], &spaces[at], &key, kind, next).await;
                    look(&spaces[at], &key, next, &mut random).await;
                }
            }
        }
        source.open();
        ends("calls in both caches", calls.join_all()).await;
        last.push((key, source.version()));
    }
    let is_true = async |space: &Numbers, key: &str, version: u64| {
        let found = space.get(key).await.unwrap().map(|value| *value);
        found.is_none_or(|found| found == version)
    };
    for (space, cache) in spaces.iter().zip(&caches) {
        for is_below in [false, true] {
            for (key, version) in &last {
                eventually("each cache has what is true", async || {
                    is_true(space, key, *version).await
                })
                .await;
            }
            if !is_below {
                cache.clear_tier("memory").await.unwrap();
            }
        }
    }
    // It was no state in passing: it stays so.
    for space in &spaces {
        for (key, version) in &last {
            assert!(is_true(space, key, *version).await, "{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_caches_over_one_directory_load_a_key_once_between_them() {
    let directory = tempfile::tempdir().unwrap();
    let caches = twins(&directory).await;
    let spaces: Vec<Numbers> =
        caches.iter().map(|cache| cache.space("space").build().unwrap()).collect();
    for round in 0..count(50, 1_000) {
        let key = format!("key:{round}");
        let source = Source::new();
        let mut calls = JoinSet::new();
        for caller in 0..100 {
            let (space, key) = (spaces[caller % 2].clone(), key.clone());
            let source = Arc::clone(&source);
            calls.spawn(
                async move { *space.get_or_load(&key, |_| source.load(true)).await.unwrap() },
            );
        }
        eventually("a load begins", async || source.loads.load(Ordering::SeqCst) == 1).await;
        for _ in 0..round % 20 {
            tokio::task::yield_now().await;
        }
        source.open();
        let found = ends("calls in both caches", calls.join_all()).await;
        assert_eq!(found, vec![0; 100]);
        assert_eq!(source.most.load(Ordering::SeqCst), 1, "round {round}: at once");
        assert_eq!(source.loads.load(Ordering::SeqCst), 1, "round {round}: in all");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_caches_over_one_directory_count_and_exclude_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let caches = twins(&directory).await;
    let mut tasks = JoinSet::new();
    for task in 0..40_u64 {
        let cache = caches[task as usize % 2].clone();
        tasks.spawn(async move {
            for _ in 0..10 {
                cache.increment("count", 1).await.unwrap();
            }
            cache.set_if_absent("first", &task).await.unwrap()
        });
    }
    let won = ends("both caches", tasks.join_all()).await;
    assert_eq!(won.iter().filter(|won| **won).count(), 1);
    for cache in &caches {
        assert_eq!(cache.counter("count").await.unwrap(), Some(400));
    }
}

/// A cache that missed lines, because others wrote more than are kept, trusts nothing.
#[tokio::test]
async fn a_cache_that_missed_lines_serves_nothing_from_before() {
    let directory = tempfile::tempdir().unwrap();
    let [here, there] = twins(&directory).await;
    let space = here.space::<str, u64>("space").build().unwrap();
    let space_there = there.space::<str, u64>("space").build().unwrap();
    space.insert("key", 0).await.everywhere();
    assert_eq!(*space_there.get("key").await.unwrap().unwrap(), 0);
    // In one step, so that nobody can follow in between.
    let keys: Vec<String> =
        (0..140_000).map(|at| if at == 0 { "key".into() } else { format!("other:{at}") }).collect();
    assert_eq!(space.remove_many(keys.iter().map(String::as_str)).await.unwrap(), 1);
    eventually("the other cache hears that something is missing", async || {
        space_there.read("key", |value| *value).is_none()
    })
    .await;
    assert!(space_there.get("key").await.unwrap().is_none());
    // And it is in step again.
    space_there.insert("key", 1).await.everywhere();
    assert_eq!(*space_there.get("key").await.unwrap().unwrap(), 1);
    space.insert("key", 2).await.everywhere();
    eventually("the next line is heard", async || {
        space_there.get("key").await.unwrap().is_some_and(|value| *value == 2)
    })
    .await;
}

/// Many tasks at once, without a plan: what each read tells is never less than what was
/// told to be invalidated before it began.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn c1_reads_in_the_crossfire_never_go_back() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<str, u64>("space").build().unwrap();
        let source = Source::new();
        source.open();
        let (told, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let reads = Arc::new(AtomicUsize::new(0));
        let mut readers = JoinSet::new();
        for reader in 0..8 {
            let (terrace, space, source) =
                (bed.terrace.clone(), space.clone(), Arc::clone(&source));
            let (told, is_over) = (Arc::clone(&told), Arc::clone(&is_over));
            let reads = Arc::clone(&reads);
            let mut random = fastrand::Rng::with_seed(reader);
            readers.spawn(async move {
                while !is_over.load(Ordering::SeqCst) {
                    let floor = told.load(Ordering::SeqCst);
                    if reader == 0 && layout.has_memory() {
                        terrace.clear_tier("memory").await.unwrap();
                    }
                    if random.bool() {
                        look(&space, "key", floor, &mut random).await;
                    } else {
                        let call = space.get_or_load("key", |_| Arc::clone(&source).load(true));
                        let found = *call.tags(["of:key"]).await.unwrap();
                        assert!(found >= floor, "{layout:?}: {found} after {floor}");
                    }
                    reads.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                }
            });
        }
        for next in 1..=count(100, 2_000) as u64 {
            source.version.store(next, Ordering::SeqCst);
            let kind = Kind::ALL[next as usize % 5];
            ends("an invalidation", invalidate(&bed, &space, "key", kind, next)).await;
            told.store(next, Ordering::SeqCst);
            // Some reads between, and the next write in the midst of others.
            let before = reads.load(Ordering::SeqCst);
            ends("some reads", async {
                while reads.load(Ordering::SeqCst) < before + next as usize % 7 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
        is_over.store(true, Ordering::SeqCst);
        ends("readers", readers.join_all()).await;
    }
}
