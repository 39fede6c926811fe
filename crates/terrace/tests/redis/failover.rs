//! Another server becomes the primary, and may not know what the one before did last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use terrace::{Memory, Settled, Terrace};
use terrace_test::rig::{Cluster, RedisServer, Sentinel};

use crate::support::{
    HOUR, Node, cluster_of, count, limit, patient, primary_of, until, until_within,
};

/// Keys of one round.
const KEYS: usize = 50;

/// Replicas that hear nothing of what their primary does: it is lost with it, more surely than if they
/// were half a second behind.
struct CutOff<'a> {
    replicas: Vec<&'a RedisServer>,
}

impl<'a> CutOff<'a> {
    async fn of(primary: &RedisServer, servers: &[&'a RedisServer]) -> Self {
        let mut replicas = Vec::new();
        for server in servers {
            if server.info("role").await.unwrap().as_deref() == Some("slave") {
                // Stopped, or they would be back at once.
                server.pause().await.unwrap();
                replicas.push(*server);
            }
        }
        primary.expect(["CLIENT", "KILL", "TYPE", "replica"]).await.unwrap();
        assert_eq!(primary.info("connected_slaves").await.unwrap().as_deref(), Some("0"));
        Self { replicas }
    }

    fn end(self) {
        self.replicas.iter().for_each(|replica| replica.resume().unwrap());
    }
}

/// Invalidates all keys on one node, of which the replicas hear nothing, kills the primary at once, and
/// asks both nodes until they agree.
async fn invalidate_and_kill<Fut: Future<Output = ()>>(
    a: &Node,
    b: &Node,
    round: usize,
    (primary, servers): (&RedisServer, &[&RedisServer]),
    kill: impl AsyncFnOnce() -> Fut,
) {
    let key = |number: usize| format!("{round}-{number}");
    let old = format!("old-{round}");
    for number in 0..KEYS {
        assert_eq!(a.load(&key(number), &old).await, old);
        assert_eq!(b.load(&key(number), &old).await, old);
    }
    let replicas = CutOff::of(primary, servers).await;
    for number in 0..KEYS {
        a.texts.invalidate(&key(number)).await.unwrap();
    }
    let failover = kill().await;
    replicas.end();
    // The source has changed before: whoever reads now reads what is new.
    let new = format!("new-{round}");
    for number in 0..KEYS {
        assert_eq!(a.load(&key(number), &new).await, new, "where it was invalidated: at once");
    }
    failover.await;
    for number in 0..KEYS {
        let key = key(number);
        until("everybody to hear of it", async || b.load(&key, &new).await == new).await;
        assert_eq!(b.load(&key, &new).await, new, "{key}: what was old does not come back");
        assert_eq!(a.load(&key, &new).await, new, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c7_a_failover_loses_no_invalidation() {
    for round in 0..count(2, 50) {
        let sentinel = Sentinel::start().await.unwrap();
        let redis = primary_of(&sentinel);
        let (a, b) = (Node::over(redis.clone()).await, Node::over(redis.clone()).await);
        let kill = async || {
            let old = sentinel.kill_primary().await.unwrap();
            let sentinel = &sentinel;
            async move {
                sentinel.wait_for_new_primary(old).await.unwrap();
            }
        };
        let primary = sentinel.primary().await.unwrap();
        invalidate_and_kill(&a, &b, round, (primary, &sentinel.servers()), kill).await;
        // Whoever joins before those who know of it are back may see what the replicas had.
        let late = Node::over(redis).await;
        until_within(limit(Duration::from_secs(5)), "whoever joins to hear of it", async || {
            let new = format!("new-{round}");
            for number in 0..KEYS {
                if late.load(&format!("{round}-{number}"), &new).await != new {
                    return false;
                }
            }
            true
        })
        .await;
        until("values to be shared again", async || {
            let value = format!("{:?}", std::thread::current().id());
            a.texts.insert("shared", value.clone()).await.unwrap();
            b.get("shared").await == Some(value)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_dies_takes_no_invalidation_with_it() {
    let cluster = Cluster::start().await.unwrap();
    let redis = cluster_of(&cluster);
    let (a, b) = (Node::over(redis.clone()).await, Node::over(redis.clone()).await);
    // The shard with the ledger, and one without.
    for (round, slot_of) in
        ["terrace:{ledger}:lines", "terrace:{:texts:1-1}:1:x"].iter().enumerate()
    {
        let slot = cluster.slot_of(slot_of).await.unwrap();
        let kill = async || {
            let old = cluster.kill_primary_of(slot).await.unwrap();
            let cluster = &cluster;
            async move {
                cluster.wait_until_ok().await.unwrap();
                old.restart().await.unwrap();
                cluster.wait_until_ok().await.unwrap();
            }
        };
        let primary = cluster.primary_of(slot).await.unwrap();
        invalidate_and_kill(&a, &b, round, (primary, &cluster.nodes()), kill).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_under_a_running_cache() {
    let cluster = Cluster::start().await.unwrap();
    let a = Node::over(cluster_of(&cluster)).await;
    let b = Node::over(cluster_of(&cluster)).await;
    let slot = cluster.slot_of("terrace:{ledger}:lines").await.unwrap();
    let owner = cluster.primary_of(slot).await.unwrap().port();
    let other = cluster.nodes().into_iter().find(|node| node.port() != owner).unwrap();
    let mut primaries = Vec::new();
    for slot in [0, 8000, 16_000] {
        primaries.push(cluster.primary_of(slot).await.unwrap());
    }
    let to = primaries.into_iter().find(|node| node.port() != owner).unwrap_or(other);
    a.load("before", "1").await;
    cluster.move_slot(slot, to).await.unwrap();
    assert_eq!(a.load("after", "1").await, "1");
    until("the line to be written where the ledger is now", async || {
        a.texts.invalidate("before").await.unwrap() == Settled::Settled
    })
    .await;
    until("the other to hear of it", async || b.get("before").await.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_server_before_a_shared_one() {
    let (local, shared) =
        (RedisServer::start().await.unwrap(), RedisServer::start().await.unwrap());
    let build = async || {
        let terrace = Terrace::builder()
            .memory(Memory::bytes(1 << 20))
            .tier("near", patient(local.url()))
            .tier("far", patient(shared.url()))
            .build()
            .await
            .unwrap();
        let texts = terrace.space::<str, String>("texts").ttl(HOUR).build().unwrap();
        (terrace, texts)
    };
    let ((a, texts_a), (_b, texts_b)) = (build().await, build().await);
    texts_a.insert("key", "old".to_owned()).await.unwrap();
    assert_eq!(texts_b.get("key").await.unwrap().unwrap().as_str(), "old");
    for server in [&local, &shared] {
        let values = server.command(["KEYS", "terrace:{:texts:key}:1:*"]).await.unwrap();
        assert_eq!(values.items().len(), 1, "both hold it");
    }
    assert!(a.invalidate("nothing").await.is_ok());
    assert_eq!(texts_a.invalidate("key").await.unwrap(), Settled::Settled);
    let gone = async || texts_b.get("key").await.unwrap().is_none();
    until("the other to hear of it, and to find it in neither", gone).await;
    tokio::time::timeout(Duration::from_secs(5), async {
        let load = |_| async { Ok::<_, std::io::Error>("new".to_owned()) };
        assert_eq!(texts_b.get_or_load("key", load).await.unwrap().as_str(), "new");
    })
    .await
    .unwrap();
}

/// What a fleet caches: the newest version of each key, in this process.
struct Versions {
    all: Vec<AtomicU64>,
}

impl Versions {
    fn of(keys: usize) -> Arc<Self> {
        Arc::new(Self { all: (0..keys).map(|_| AtomicU64::new(1)).collect() })
    }

    fn next(&self, key: usize) -> String {
        (self.all[key].fetch_add(1, Ordering::SeqCst) + 1).to_string()
    }

    fn now(&self, key: usize) -> String {
        self.all[key].load(Ordering::SeqCst).to_string()
    }
}

/// Calls and those that failed.
#[derive(Debug, Default)]
struct Calls {
    all: AtomicU64,
    failed: AtomicU64,
}

impl Calls {
    fn note<T, E: std::fmt::Display>(&self, what: &str, outcome: Result<T, E>) {
        self.all.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = outcome {
            self.failed.fetch_add(1, Ordering::Relaxed);
            println!("{what}: {error}");
        }
    }
}

/// One of so many writers, each with keys of its own: changes the source and says so to its node,
/// and reads another key, until it is over.
async fn write_and_read(
    (writer, writers): (usize, usize),
    node: Arc<Node>,
    versions: Arc<Versions>,
    calls: Arc<Calls>,
    every: Duration,
    is_over: Arc<AtomicBool>,
) {
    let mut random = fastrand::Rng::with_seed(writer as u64);
    let mut next = tokio::time::interval(every);
    while !is_over.load(Ordering::Relaxed) {
        next.tick().await;
        let keys = versions.all.len();
        let own = random.usize(..keys / writers) * writers + writer;
        let (key, version) = (own.to_string(), versions.next(own));
        if random.bool() {
            calls.note("insert", node.texts.insert(&key, version).await);
        } else {
            calls.note("invalidate", node.texts.invalidate(&key).await);
        }
        let other = random.usize(..keys);
        let source = Arc::clone(&versions);
        let load = |_| async move { Ok::<_, std::io::Error>(source.now(other)) };
        calls.note("load", node.texts.get_or_load(&other.to_string(), load).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c8_slots_move_and_shards_die_under_load() {
    const WRITERS: usize = 20;
    let (rounds, writes_a_second) = count((1, 200), (5, 2_000));
    let cluster = Cluster::start().await.unwrap();
    let redis = cluster_of(&cluster);
    let nodes = [Arc::new(Node::over(redis.clone()).await), Arc::new(Node::over(redis).await)];
    let (versions, calls) = (Versions::of(500), Arc::new(Calls::default()));
    let is_over = Arc::new(AtomicBool::new(false));
    let every = Duration::from_secs(1) * WRITERS as u32 / writes_a_second;
    let mut load = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (node, versions) = (Arc::clone(&nodes[writer % 2]), Arc::clone(&versions));
        let (calls, is_over) = (Arc::clone(&calls), Arc::clone(&is_over));
        load.spawn(write_and_read((writer, WRITERS), node, versions, calls, every, is_over));
    }
    for round in 0..rounds {
        // The ledger's own slot and shard first, then those of values.
        let key = match round {
            0 => "terrace:{ledger}:lines".to_owned(),
            _ => format!("terrace:{{:texts:{round}}}:1:x"),
        };
        let slot = cluster.slot_of(&key).await.unwrap();
        let owner = cluster.primary_of(slot).await.unwrap().port();
        for slot_elsewhere in [0, 8_000, 16_000] {
            let to = cluster.primary_of(slot_elsewhere).await.unwrap();
            if to.port() != owner {
                cluster.move_slot(slot, to).await.unwrap();
                break;
            }
        }
        let old = cluster.kill_primary_of(slot).await.unwrap();
        cluster.wait_until_ok().await.unwrap();
        old.restart().await.unwrap();
        cluster.wait_until_ok().await.unwrap();
    }
    is_over.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.unwrap();
    }
    let (all, failed) = (calls.all.load(Ordering::Relaxed), calls.failed.load(Ordering::Relaxed));
    println!("{failed} of {all} calls failed");
    assert!(all > 500, "there was load");
    assert!(failed * 1_000 <= all, "{failed} of {all} calls failed");
    until_within(limit(Duration::from_secs(5)), "all to be equal", async || {
        for key in 0..versions.all.len() {
            let now = versions.now(key);
            for node in &nodes {
                let found = node.load(&key.to_string(), &now).await;
                if found != now {
                    let stats = node.terrace.stats().await;
                    println!(
                        "{key}: {found} instead of {now}: {} {:?}",
                        stats.pending, stats.silent_for
                    );
                    return false;
                }
            }
        }
        true
    })
    .await;
}
