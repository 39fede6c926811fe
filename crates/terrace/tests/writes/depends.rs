//! Dependencies: what was built from an entry dies with it, however far down the line it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use terrace::{Error, LoadError, Loaded, Space, Terrace};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::{
    Bed, Everywhere as _, Layout, Refused, count, ends, eventually, let_others_run, once_polled,
    poll_once, random, twins,
};

/// Prices, totals of them, and reports of those: each a space, the first two tracked.
#[derive(Clone)]
struct Shop {
    terrace: Terrace,
    prices: Space<str, u64>,
    totals: Space<str, u64>,
    reports: Space<str, u64>,
    price: Arc<AtomicU64>,
    loads: Arc<AtomicU64>,
}

impl Shop {
    fn over(terrace: &Terrace) -> Self {
        let space = |name: &str| terrace.space::<str, u64>(name);
        Self {
            terrace: terrace.clone(),
            prices: space("price").tracked().build().unwrap(),
            totals: space("total").tracked().build().unwrap(),
            reports: space("report").build().unwrap(),
            price: Arc::new(AtomicU64::new(1)),
            loads: Arc::default(),
        }
    }

    async fn price(&self, name: &str) -> u64 {
        let price = Arc::clone(&self.price);
        let load = self.prices.get_or_load(name, |_| async move {
            Ok::<_, Refused>(Loaded::value(price.load(Ordering::SeqCst)).tags(["priced"]))
        });
        *load.await.unwrap()
    }

    async fn total(&self) -> u64 {
        let shop = self.clone();
        let load = self.totals.get_or_load("cart", |_| async move {
            shop.loads.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Refused>(shop.price("fruit:apple").await + shop.price("fruit:pear").await)
        });
        *load.await.unwrap()
    }

    async fn report(&self) -> u64 {
        let shop = self.clone();
        let load = self.reports.get_or_load("year", |_| async move {
            shop.loads.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Refused>(10 * shop.total().await)
        });
        *load.await.unwrap()
    }

    async fn is_report_there(&self) -> bool {
        self.reports.get("year").await.unwrap().is_some()
    }

    /// Each way in which a price can go.
    async fn change(&self, way: u8) {
        let (terrace, prices) = (&self.terrace, &self.prices);
        match way {
            0 => prices.invalidate("fruit:apple").await.everywhere(),
            1 => prices.insert("fruit:apple", self.price.load(Ordering::SeqCst)).await.everywhere(),
            2 => terrace.invalidate_tag("priced").await.everywhere(),
            3 => prices.invalidate_prefix("fruit:a").await.everywhere(),
            4 => prices.clear().await.everywhere(),
            5 => terrace.clear().await.everywhere(),
            6 => drop(prices.remove_pattern("*a?ple").await.unwrap()),
            7 => drop(prices.remove_many(["fruit:pear", "fruit:apple"]).await.unwrap()),
            8 => {
                prices.remove("fruit:apple").await.unwrap();
                let price = self.price.load(Ordering::SeqCst);
                assert!(prices.insert_if_absent("fruit:apple", price).await.unwrap());
            }
            _ => self.totals.invalidate("cart").await.everywhere(),
        }
    }
}

const WAYS: u8 = 10;

#[tokio::test]
async fn what_was_loaded_while_an_entry_was_read_dies_with_it() {
    for layout in Layout::ALL {
        for way in 0..WAYS {
            let bed = Bed::new(layout).await;
            let shop = Shop::over(&bed);
            assert_eq!((shop.total().await, shop.report().await), (2, 20));
            assert_eq!(shop.report().await, 20);
            assert_eq!(shop.loads.load(Ordering::SeqCst), 2, "{layout:?}");
            let report = shop.reports.get("year").await.unwrap().unwrap();
            assert_eq!(report.tags().collect::<Vec<_>>(), ["priced"]);
            // What lies between may be gone.
            if way % 2 == 1 && layout.has_memory() {
                bed.clear_tier("memory").await.unwrap();
                shop.report().await;
            }
            shop.price.store(2, Ordering::SeqCst);
            shop.change(way).await;
            assert!(!shop.is_report_there().await, "way {way} in {layout:?}");
            let new = shop.report().await;
            assert!(new > 20 || way >= 9, "way {way} in {layout:?}: {new}");
            assert!(shop.is_report_there().await);
        }
    }
}

/// Nothing else is touched.
#[tokio::test]
async fn what_was_not_read_changes_nothing() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let shop = Shop::over(&bed);
        let untracked = bed.space::<str, u64>("untracked").build().unwrap();
        shop.report().await;
        shop.price("another").await;
        shop.prices.invalidate("another").await.everywhere();
        shop.prices.insert("fruit:fig", 1).await.everywhere();
        untracked.insert("fruit:apple", 1).await.everywhere();
        untracked.clear().await.everywhere();
        bed.invalidate_tag("another").await.everywhere();
        assert!(shop.is_report_there().await, "{layout:?}");

        // A space that is not tracked leaves no trace.
        let load = shop.reports.get_or_load("other", |_| {
            let untracked = untracked.clone();
            async move {
                untracked.get("fruit:apple").await.unwrap();
                Ok::<u64, Refused>(1)
            }
        });
        load.await.unwrap();
        untracked.insert("fruit:apple", 1).await.everywhere();
        assert!(shop.reports.get("other").await.unwrap().is_some(), "{layout:?}");
    }
}

/// Every verb that reads, and what it does not find.
#[tokio::test]
async fn every_read_is_seen_and_what_was_not_there_too() {
    let bed = Bed::new(Layout::MemoryAndMap).await;
    let prices = bed.space::<str, u64>("price").tracked().build().unwrap();
    let totals = bed.space::<u8, u64>("total").build().unwrap();
    for way in 0..7 {
        for was_there in [true, false] {
            prices.clear().await.everywhere();
            if was_there {
                prices.insert("key", 1).await.everywhere();
            }
            let reader = prices.clone();
            let load = totals.get_or_load(&way, |_| async move {
                match way {
                    0 => drop(reader.get("key").await.unwrap()),
                    1 => drop(reader.get_many(["key"]).await.unwrap()),
                    2 => drop(reader.read("key", |price| *price)),
                    3 => drop(reader.exists("key").await.unwrap()),
                    4 => drop(reader.get("key").skip("memory").await.unwrap()),
                    5 => {
                        let loads = |_| async { Ok::<_, Refused>([("key".to_owned(), 1)]) };
                        reader.get_many_or_load(["key"], loads).await;
                    }
                    _ => {
                        let failed =
                            reader.get_or_load("key", |_| async { Err::<u64, _>(Refused(1)) });
                        drop(failed.await);
                    }
                }
                Ok::<u64, Refused>(1)
            });
            load.await.unwrap();
            assert!(totals.get(&way).await.unwrap().is_some());
            prices.insert("key", 2).await.everywhere();
            let found = totals.get(&way).await.unwrap();
            assert!(found.is_none(), "read {way}, there: {was_there}");
        }
    }
}

#[tokio::test]
async fn a_dependency_that_changes_during_the_load_keeps_it_from_being_stored() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let shop = Shop::over(&bed);
        let gate = Arc::new(Semaphore::new(0));
        let load = tokio::spawn({
            let (shop, gate) = (shop.clone(), Arc::clone(&gate));
            async move {
                let totals = shop.totals.clone();
                let load = totals.get_or_load("cart", |_| async move {
                    let price = shop.price("fruit:apple").await;
                    let _ = gate.acquire().await;
                    Ok::<_, Refused>(price)
                });
                *once_polled(load, || {}).await.unwrap()
            }
        });
        eventually("the price was read", async || shop.prices.exists("fruit:apple").await.unwrap())
            .await;
        shop.price.store(5, Ordering::SeqCst);
        shop.prices.invalidate("fruit:apple").await.everywhere();
        gate.close();
        ends("the load", load).await.unwrap();
        assert!(shop.totals.get("cart").await.unwrap().is_none(), "{layout:?}");
        assert_eq!(shop.total().await, 10, "{layout:?}");
    }
}

#[tokio::test]
async fn a_dependency_holds_in_other_processes_and_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let [one, two] = twins(&directory).await;
    let shops = [Shop::over(&one), Shop::over(&two)];
    assert_eq!(shops[0].report().await, 20);
    eventually("the report is found below", async || shops[1].is_report_there().await).await;
    shops[0].prices.invalidate("fruit:apple").await.everywhere();
    eventually("the report is dead there", async || !shops[1].is_report_there().await).await;

    assert_eq!(shops[1].report().await, 20);
    one.close().await;
    two.close().await;
    drop(shops);
    let [one, two] = twins(&directory).await;
    let shop = Shop::over(&one);
    assert!(shop.is_report_there().await, "nothing has happened to it");
    two.close().await;
    shop.prices.invalidate("fruit:pear").await.everywhere();
    one.close().await;
    let [later, _] = twins(&directory).await;
    assert!(!Shop::over(&later).is_report_there().await);
}

#[tokio::test]
async fn entries_that_were_built_from_each_other_are_no_circle() {
    let bed = Bed::new(Layout::MemoryAndDisk).await;
    let space = bed.space::<str, u64>("space").tracked().build().unwrap();
    let load = async |key: &'static str, other: &'static str| {
        let reader = space.clone();
        let load = space.get_or_load(key, |_| async move {
            let other = reader.get(other).await.unwrap().map_or(0, |other| *other);
            Ok::<_, Refused>(other + 1)
        });
        *load.refresh().await.unwrap()
    };
    for round in 0..50 {
        assert_eq!(load("one", "two").await, 2 * round + 1);
        assert_eq!(load("two", "one").await, 2 * round + 2);
    }
    space.invalidate("one").await.everywhere();
    assert_eq!(space.exists_many(["one", "two"]).await.unwrap(), 0);
    assert_eq!(load("one", "two").await, 1);
}

#[tokio::test]
async fn what_was_built_from_too_much_is_answered_and_not_stored() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let parts = bed.space::<u64, u64>("part").tracked().build().unwrap();
        let sums = bed.space::<u64, u64>("sum").tracked().build().unwrap();
        let sum_of = async |most: u64| {
            let parts = parts.clone();
            let load = sums.get_or_load(&most, |_| async move {
                let keys: Vec<u64> = (0..most).collect();
                let found = parts.get_many(&keys).await.unwrap();
                Ok::<_, Refused>(found.len() as u64)
            });
            *load.await.unwrap()
        };
        assert_eq!(sum_of(250).await, 250);
        assert!(sums.exists(&250).await.unwrap(), "{layout:?}");
        assert_eq!(sum_of(300).await, 300);
        assert!(!sums.exists(&300).await.unwrap(), "{layout:?}");
        // Nor is what was built from that.
        let nested = sums.get_or_load(&1000, |_| {
            let (sums, parts) = (sums.clone(), parts.clone());
            async move {
                let inner = sums.get_or_load(&300, |_| async move {
                    let keys: Vec<u64> = (0..300).collect();
                    Ok::<_, Refused>(parts.get_many(&keys).await.unwrap().len() as u64)
                });
                Ok::<u64, Refused>(*inner.await.unwrap())
            }
        });
        assert_eq!(*nested.await.unwrap(), 300);
        assert!(!sums.exists(&1000).await.unwrap(), "{layout:?}");
        let stats = bed.stats().await;
        let untraced: u64 = stats.spaces.iter().map(|space| space.untraced).sum();
        assert_eq!(untraced, 3, "{layout:?}");
    }
}

#[tokio::test]
async fn what_is_inserted_depends_on_what_its_caller_says() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let shop = Shop::over(&bed);
        let pages = bed.space::<str, u64>("page").build().unwrap();
        let insert = async |key: &'static str| {
            let total = shop.totals.get("cart").await.unwrap().unwrap();
            let on = shop.totals.dependency("cart").on(&total);
            pages.insert(key, *total).tags(["page"]).depends_on([on]).await.everywhere();
        };
        shop.total().await;
        insert("/").await;
        assert!(pages.get("/").await.unwrap().is_some());
        // Two steps away.
        shop.prices.invalidate("fruit:pear").await.everywhere();
        assert!(pages.get("/").await.unwrap().is_none(), "{layout:?}");

        // What has gone since it was read is nothing to build on.
        shop.total().await;
        let total = shop.totals.get("cart").await.unwrap().unwrap();
        shop.prices.insert("fruit:apple", 4).await.everywhere();
        let late = shop.totals.dependency("cart").on(&total);
        pages.insert("/late", *total).depends_on([late]).await.everywhere();
        assert!(pages.get("/late").await.unwrap().is_none(), "{layout:?}");

        // What was written, and not loaded, is as good.
        shop.prices.insert("fruit:kiwi", 3).await.everywhere();
        let kiwi = shop.prices.get("fruit:kiwi").await.unwrap().unwrap();
        let on = shop.prices.dependency("fruit:kiwi").on(&kiwi);
        pages.insert("/kiwi", *kiwi).depends_on([on]).await.everywhere();
        assert!(pages.get("/kiwi").await.unwrap().is_some(), "{layout:?}");
        shop.prices.insert("fruit:kiwi", 4).await.everywhere();
        assert!(pages.get("/kiwi").await.unwrap().is_none(), "{layout:?}");

        // Nobody read it: the key alone.
        pages.insert("/", 1).depends_on([shop.totals.dependency("cart")]).await.everywhere();
        shop.totals.invalidate("cart").await.everywhere();
        assert!(pages.get("/").await.unwrap().is_none(), "{layout:?}");

        // A loader says it, too.
        let on = shop.prices.dependency("fruit:fig");
        let load = pages.get_or_load("/", |_| async move {
            Ok::<_, Refused>(Loaded::value(1_u64).depends_on([on]))
        });
        load.await.unwrap();
        shop.prices.insert("fruit:fig", 1).await.everywhere();
        assert!(pages.get("/").await.unwrap().is_none(), "{layout:?}");
    }
}

#[tokio::test]
async fn what_is_not_tracked_cannot_be_depended_on() {
    let bed = Bed::new(Layout::MemoryAndMap).await;
    let untracked = bed.space::<str, u64>("untracked").build().unwrap();
    let space = bed.space::<str, u64>("space").build().unwrap();
    let insert = space.insert("key", 1).depends_on([untracked.dependency("key")]);
    assert!(matches!(insert.await, Err(Error::Dependencies(_))));
    let on = untracked.dependency("key");
    let load = space.get_or_load("key", |_| async move {
        Ok::<_, Refused>(Loaded::value(1_u64).depends_on([on]))
    });
    let failed = load.await;
    assert!(matches!(failed, Err(LoadError::Cache(Error::Dependencies(_)))), "{failed:?}");
    assert!(!space.exists("key").await.unwrap());
}

#[tokio::test]
async fn dynamic_keys_are_tracked_if_the_cache_says_so() {
    let terrace =
        Terrace::builder().memory(terrace::Memory::bytes(1 << 20)).tracked().build().await.unwrap();
    terrace.set("part", &1_u64).await.everywhere();
    let sum = async || {
        let reader = terrace.clone();
        let load = terrace.get_or_load("sum", |_| async move {
            Ok::<u64, Refused>(*reader.get::<u64>("part").await.unwrap().unwrap())
        });
        *load.await.unwrap()
    };
    assert_eq!(sum().await, 1);
    terrace.set("part", &2_u64).await.everywhere();
    assert_eq!(sum().await, 2);
}

/// What each source said when a value was built, by the number of the source.
type Versions = BTreeMap<u8, u64>;

const SOURCES: u8 = 4;

/// Three layers: of each source, of two sources, and of two of those and a source.
#[derive(Clone)]
struct Layers {
    spaces: [Space<u8, Versions>; 3],
    sources: Arc<[AtomicU64; SOURCES as usize]>,
}

impl Layers {
    fn over(terrace: &Terrace, order: usize) -> Self {
        let space = |layer: usize| {
            let space = terrace.space(&format!("layer {layer} of {order}"));
            space.tracked().build().unwrap()
        };
        Self { spaces: [space(0), space(1), space(2)], sources: Arc::default() }
    }

    fn version(&self, source: u8) -> u64 {
        self.sources[usize::from(source)].load(Ordering::SeqCst)
    }

    /// What is below a value: its layer and its key.
    fn below(layer: usize, key: u8) -> Vec<(usize, u8)> {
        let (this, next) = (key % SOURCES, (key + 1) % SOURCES);
        match layer {
            0 => Vec::new(),
            1 => vec![(0, this), (0, next)],
            _ => vec![(1, this), (1, next), (0, (key + 3) % SOURCES)],
        }
    }

    fn load(self, layer: usize, key: u8) -> terrace::runtime::BoxFuture<'static, Versions> {
        Box::pin(async move {
            let layers = self.clone();
            let load = self.spaces[layer].get_or_load(&key, |_| async move {
                let mut versions = Versions::new();
                if layer == 0 {
                    let version = layers.version(key);
                    tokio::task::yield_now().await;
                    versions.insert(key, version);
                }
                for (layer, key) in Self::below(layer, key) {
                    for (source, version) in layers.clone().load(layer, key).await {
                        let known = versions.entry(source).or_insert(version);
                        *known = version.min(*known);
                    }
                    tokio::task::yield_now().await;
                }
                Ok::<_, Refused>(versions)
            });
            Versions::clone(&load.await.unwrap())
        })
    }

    /// Nothing that is there was built from less than what is settled.
    async fn check(&self, settled: &[u64]) {
        for (layer, space) in self.spaces.iter().enumerate() {
            for key in 0..SOURCES {
                let Some(found) = space.get(&key).await.unwrap() else { continue };
                for (source, version) in &*found {
                    let least = settled[usize::from(*source)];
                    assert!(*version >= least, "{layer}/{key} of {version} for {least}: {found:?}");
                }
            }
        }
    }
}

async fn one_order(terrace: &Terrace, order: usize, random: &mut fastrand::Rng) {
    let layers = Layers::over(terrace, order);
    let mut calls = JoinSet::new();
    let mut settled = [0; SOURCES as usize];
    for _ in 0..random.usize(4..20) {
        let (layer, key) = (random.usize(0..3), random.u8(0..SOURCES));
        match random.u8(0..10) {
            0..=4 => {
                let call = layers.clone().load(layer, key);
                let mut call = Box::pin(async move { drop(call.await) });
                if poll_once(call.as_mut()).await.is_pending() {
                    calls.spawn(call);
                }
            }
            5 => tokio::task::yield_now().await,
            6 => let_others_run().await,
            7 if terrace.tiers().any(|tier| tier == "memory") => {
                let _ = terrace.clear_tier("memory").await.unwrap();
            }
            _ => {
                let version = layers.version(key) + 1;
                layers.sources[usize::from(key)].store(version, Ordering::SeqCst);
                match random.u8(0..3) {
                    0 => layers.spaces[0].invalidate(&key).await.everywhere(),
                    1 => {
                        let value = Versions::from([(key, version)]);
                        layers.spaces[0].insert(&key, value).await.everywhere();
                    }
                    _ => layers.spaces[0].clear().await.everywhere(),
                }
                settled[usize::from(key)] = version;
                layers.check(&settled).await;
            }
        }
    }
    ends("calls", calls.join_all()).await;
    layers.check(&settled).await;
    for key in 0..SOURCES {
        for (source, version) in layers.clone().load(2, key).await {
            assert_eq!(version, layers.version(source), "source {source} in 2/{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c1_what_is_built_from_entries_is_never_older_than_they_are() {
    let mut random = random("orders");
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        for order in 0..count(500, 10_000) {
            one_order(&bed, order, &mut random).await;
        }
    }
}

#[tokio::test]
async fn a_write_that_is_parked_keeps_no_load_from_being_stored() {
    let directory = tempfile::tempdir().unwrap();
    let [here, there] = twins(&directory).await;
    let (shop, other) = (Shop::over(&here), Shop::over(&there));
    let mut parked = Vec::new();
    for polls in 1..20 {
        let mut write = shop.prices.insert("parked", polls).into_future();
        let mut is_done = false;
        for _ in 0..polls {
            // A line of others comes between, and time passes.
            other.prices.insert("between", polls).await.everywhere();
            is_done = is_done || poll_once(write.as_mut()).await.is_ready();
        }
        let is_parked = !is_done;
        parked.extend(is_parked.then_some(write));
        shop.totals.invalidate("cart").await.everywhere();
        shop.total().await;
        assert!(shop.totals.exists("cart").await.unwrap(), "after {polls} polls");
        if is_done {
            break;
        }
    }
    assert!(!parked.is_empty(), "nobody was parked");
}
