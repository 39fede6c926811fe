//! Races between processes: loads and reads that are under way in one while another invalidates.

use std::sync::Arc;

use terrace_test::rig::{Answer, ChaosProxy, RedisServer};
use tokio::task::JoinSet;

use crate::source::Source;
use crate::support::{SECOND, count, limit, ms, random, until_within};
use crate::testnode::{Make, TestNode};

const OLD: u64 = 1;
const NEW: u64 = 2;

/// Orders that are under way at once.
const AT_ONCE: u64 = 50;

/// How late the steps of an order begin, in milliseconds at most.
const LATE: u64 = 12;

/// Whether `answer` told the old version after `change` had begun.
fn is_race(answer: &Answer, change: &Answer) -> bool {
    answer.text == OLD.to_string() && answer.end > change.begin && answer.begin < change.end
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c2_a_load_in_one_process_meets_an_invalidation_in_another() {
    let (server, truth) =
        (RedisServer::start().await.unwrap(), RedisServer::start().await.unwrap());
    let source = Arc::new(Source::of(&truth));
    // Lines reach nobody at once: what is stored in Redis is judged there or not at all.
    let proxy = ChaosProxy::before(server.address()).await.unwrap();
    let make = Make::over(&proxy.url(), &source);
    loads_meet_invalidations(make, source, Some(proxy)).await;
}

/// Here it is the time between two looks at the ledger by which lines are late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c2_a_load_meets_an_invalidation_by_another_process_on_its_disk() {
    let (truth, directory) = (RedisServer::start().await.unwrap(), tempfile::tempdir().unwrap());
    let source = Arc::new(Source::of(&truth));
    let make = Make::on(directory.path(), &source);
    loads_meet_invalidations(make, source, None).await;
}

async fn loads_meet_invalidations(make: Make, source: Arc<Source>, proxy: Option<ChaosProxy>) {
    let nodes = [make.start().await, make.start().await].map(Arc::new);
    let mut random = random("orders of loads and invalidations");
    let (orders, mut races) = (count(300, 10_000), 0);
    for first in (0..orders).step_by(AT_ONCE as usize) {
        let keys = first..(first + AT_ONCE).min(orders);
        if let Some(proxy) = &proxy {
            proxy.to_client().delay(ms(0), ms(8));
        }
        let mut underway = JoinSet::new();
        for key in keys.clone() {
            let (nodes, source) = (nodes.clone(), Arc::clone(&source));
            underway.spawn(load_and_invalidate(nodes, source, key, random.fork()));
        }
        races += underway.join_all().await.into_iter().sum::<u64>();
        if let Some(proxy) = &proxy {
            proxy.heal();
        }
        // Quiet.
        until_within(limit(SECOND), "both to equal the source", async || {
            for node in &nodes {
                for key in keys.clone() {
                    if node.get(key).await == Some(OLD) {
                        return false;
                    }
                }
            }
            true
        })
        .await;
        // Whoever joins now has heard of nothing, and trusts what the tier that is shared has kept.
        let kept = make.start().await.get_all(keys.clone()).await;
        assert!(!kept.contains(&OLD), "{keys:?}: {kept:?} below memory");
        for node in &nodes {
            let versions = node.load_all(keys.clone()).await;
            assert!(versions.iter().all(|version| *version == NEW), "{keys:?}: {versions:?}");
        }
    }
    println!("{races} loads told the old version while it was invalidated, in {orders} orders");
    assert!(races * 20 > orders, "only {races} races");
}

/// One order; returns how many loads were under way while the key was invalidated.
async fn load_and_invalidate(
    nodes: [Arc<TestNode>; 2],
    source: Arc<Source>,
    key: u64,
    mut random: fastrand::Rng,
) -> u64 {
    // A load takes longer than what comes before it, so that most of them are changed under way.
    let mut late = move |most| random.u64(..most);
    let mut loads = JoinSet::new();
    for node in [0, 1, (key % 2) as usize] {
        let (node, begin) = (Arc::clone(&nodes[node]), ms(late(LATE)));
        let question = format!("load {key} {} {}", late(LATE), late(4 * LATE));
        loads.spawn(async move {
            // The order of the steps is left to chance.
            tokio::time::sleep(begin).await;
            node.ask(&question).await.unwrap()
        });
    }
    tokio::time::sleep(ms(LATE + late(4 * LATE))).await;
    source.write(key, NEW).await;
    let whoever = &nodes[late(2) as usize];
    let change = whoever.ask(&format!("invalidate {key}")).await.unwrap();
    assert_eq!(change.text, "settled");
    assert_ne!(whoever.get(key).await, Some(OLD), "{key}: old where it was invalidated");
    loads.join_all().await.iter().filter(|load| is_race(load, &change)).count() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c3_what_is_copied_up_while_it_is_removed_below_does_not_stay() {
    let (server, truth) =
        (RedisServer::start().await.unwrap(), RedisServer::start().await.unwrap());
    let source = Arc::new(Source::of(&truth));
    let writer = Arc::new(Make::over(&server.url(), &source).start().await);
    // Answers of Redis to those who read take their time, each connection's its own.
    let proxy = ChaosProxy::before(server.address()).await.unwrap();
    let make = Make::over(&proxy.url(), &source);
    let readers = [make.start().await, make.start().await].map(Arc::new);
    let mut random = random("orders of reads and removals");
    let (orders, mut races) = (count(1_000, 10_000), 0);
    for first in (0..orders).step_by(AT_ONCE as usize) {
        let keys = first..(first + AT_ONCE).min(orders);
        writer.load_all(keys.clone()).await;
        proxy.to_client().delay(ms(0), ms(8));
        let mut underway = JoinSet::new();
        for key in keys.clone() {
            let (writer, readers, source) =
                (Arc::clone(&writer), readers.clone(), Arc::clone(&source));
            underway.spawn(read_and_remove(writer, readers, source, key, random.fork()));
        }
        races += underway.join_all().await.into_iter().sum::<u64>();
        proxy.heal();
        // Quiet.
        until_within(limit(SECOND), "nobody to have the old version", async || {
            for reader in &readers {
                if reader.held(keys.clone()).await.contains(&OLD) {
                    return false;
                }
            }
            true
        })
        .await;
        for node in readers.iter().chain([&writer]) {
            let versions = node.load_all(keys.clone()).await;
            assert!(versions.iter().all(|version| *version == NEW), "{keys:?}: {versions:?}");
        }
    }
    println!("{races} reads told the old version while it was removed, in {orders} orders");
    assert!(races * 20 > orders, "only {races} races");
}

async fn read_and_remove(
    writer: Arc<TestNode>,
    readers: [Arc<TestNode>; 2],
    source: Arc<Source>,
    key: u64,
    mut random: fastrand::Rng,
) -> u64 {
    let mut reads = JoinSet::new();
    for reader in readers {
        let begin = ms(random.u64(..LATE));
        reads.spawn(async move {
            // The order of the steps is left to chance.
            tokio::time::sleep(begin).await;
            reader.ask(&format!("get {key}")).await.unwrap()
        });
    }
    source.write(key, NEW).await;
    tokio::time::sleep(ms(random.u64(..LATE))).await;
    let change = writer.ask(&format!("invalidate {key}")).await.unwrap();
    assert_eq!(change.text, "settled");
    assert_ne!(writer.get(key).await, Some(OLD), "{key}: old where it was invalidated");
    reads.join_all().await.iter().filter(|read| is_race(read, &change)).count() as u64
}
