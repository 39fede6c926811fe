//! Names of all kinds on a server: keys that would inject, spaces and patterns that would match
//! more, and what is broader than a key, between nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use terrace::clock::SystemClock;
use terrace::key::StoredKey;
use terrace::store::Store;
use terrace::{Loaded, Memory, Redis, RedisStore, Settled, Space, Terrace};
use terrace_test::rig::{Connection, RedisServer};
use tokio::task::JoinSet;

use crate::support::{Node, SECOND, count, limit, ms, patient, random, until, until_within};

/// What might mean something on the way.
const ODD: &str = ":%{}*[]?\\\r\n\0\t \"'`#~!$^|;&<>=,+-_@aA03\u{e9}\u{202e}";

fn odd_text(random: &mut fastrand::Rng, longest: usize) -> String {
    let letters: Vec<char> = ODD.chars().collect();
    (0..random.usize(0..=longest)).map(|_| letters[random.usize(0..letters.len())]).collect()
}

/// What the server was told between now and the end.
struct Watched {
    monitor: Connection,
}

impl Watched {
    async fn begin(server: &RedisServer) -> Self {
        let mut monitor = Connection::with_all_rights(server.address()).await.unwrap();
        assert_eq!(monitor.command(["MONITOR"]).await.unwrap(), "OK");
        Self { monitor }
    }

    /// The next command, without its time and its connection.
    async fn next(&mut self) -> String {
        let line = self.monitor.reply().await.unwrap();
        let line = line.text().unwrap();
        let (_, command) = line.split_once("] ").unwrap();
        command.to_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x1_each_key_is_one_command_and_no_other() {
    let server = RedisServer::start().await.unwrap();
    let redis = Redis::url(server.url()).prefix("x:");
    let store: RedisStore = redis.open(Arc::new(SystemClock::new())).unwrap();
    let mut random = random("tenants, spaces and keys");
    let warm = StoredKey::new("", "warm", 0, b"warm");
    store.get(std::slice::from_ref(&warm)).await.unwrap();
    let mut watched = Watched::begin(&server).await;
    for _ in 0..count(20_000, 1_000_000) {
        let (tenant, space) = (odd_text(&mut random, 6), odd_text(&mut random, 6));
        let mut key = odd_text(&mut random, 20).into_bytes();
        if random.u8(..) < 4 {
            key.resize(random.usize(1..=64 << 10), random.u8(..));
        }
        let key = StoredKey::new(&tenant, &space, random.u64(..), &key);
        store.get(std::slice::from_ref(&key)).await.unwrap();
        let schema = key.as_str().split(':').nth(3).unwrap();
        let expected = format!("\"GET\" \"x:{{{}}}:1:{schema}\"", key.name());
        // The next one tells that nothing else came with it.
        assert_eq!(watched.next().await, expected, "for {tenant:?}, {space:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x2_clearing_a_space_of_an_odd_name_on_a_server() {
    let server = RedisServer::start().await.unwrap();
    let terrace = Node::at(server.url()).await.terrace;
    let mut random = random("names of spaces");
    let mut names: Vec<String> =
        ["a*", "[ab]", "\\", "a", "b", "*", "?", "a:b"].map(str::to_owned).into();
    while names.len() < 8 + count(20, 1_000) {
        let name = odd_text(&mut random, 5);
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    let spaces: Vec<Space<str, u64>> =
        names.iter().map(|name| terrace.space(name).build().unwrap()).collect();
    for space in &spaces {
        assert_eq!(space.insert("key", 1).await.unwrap(), Settled::Settled);
    }
    for (at, space) in spaces.iter().enumerate() {
        let settled = match at % 2 {
            0 => space.clear().await.unwrap(),
            _ => space.remove_pattern("?e*").await.unwrap().settled,
        };
        assert_eq!(settled, Settled::Settled);
        // Dead for everybody, and gone from the server.
        assert!(!space.exists("key").await.unwrap(), "{:?}", names[at]);
        let left = terrace.space::<str, u64>(&names[at]).build().unwrap();
        let dry = left.remove_pattern("*").dry_run().await.unwrap();
        assert!(dry.entries.iter().all(|(_, entries)| *entries == 0), "{:?}", names[at]);
        for other in &spaces[at + 1..(at + 4).min(spaces.len())] {
            assert!(other.exists("key").await.unwrap(), "after {:?}", names[at]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x2_no_server_is_given_a_pattern_of_a_caller() {
    let server = RedisServer::start().await.unwrap();
    let terrace = Terrace::builder().memory(Memory::bytes(16 << 20));
    let terrace = terrace.tier("redis", patient(server.url())).build().await.unwrap();
    let node = Node::of(terrace);
    let keys: Vec<String> = (0..3_000).map(|number| format!("user:{number}:cart")).collect();
    for some in keys.chunks(100) {
        let some = some.iter().map(|key| (key.as_str(), "x".to_owned()));
        assert_eq!(node.texts.insert_many(some).await.unwrap(), Settled::Settled);
    }
    let mut watched = Watched::begin(&server).await;
    let would = node.texts.remove_pattern("user:*[13579]:c?rt").dry_run().await.unwrap();
    assert_eq!(would.entries[1].1, 1_500);
    let removed = node.texts.remove_pattern("user:*[13579]:c?rt").await.unwrap();
    assert_eq!(removed.settled, Settled::Settled);
    assert_eq!(removed.entries[1].1, 1_500, "{removed:?}");
    assert_eq!(node.texts.exists_many(keys.iter().map(String::as_str)).await.unwrap(), 1_500);
    server.expect(["ECHO", "the end"]).await.unwrap();
    let mut scans = 0;
    loop {
        let command = watched.next().await;
        if command.contains("the end") {
            break;
        }
        if command.starts_with("\"SCAN\"") {
            scans += 1;
            assert!(!command.contains("13579") && !command.contains("c?rt"), "{command}");
        }
    }
    assert!(scans >= 12, "in {scans} steps only");
}

/// What is broader than a key, named on one node while the other loads: 1 s after quiet both equal
/// the source.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c2_names_broader_than_a_key_meet_loads_elsewhere() {
    let server = RedisServer::start().await.unwrap();
    let terraces = [Node::at(server.url()).await.terrace, Node::at(server.url()).await.terrace];
    let mut random = random("orders of loads and invalidations");
    let orders = count(100, 2_000);
    for order in 0..orders {
        let source = Arc::new(AtomicU64::new(1));
        let name = format!("space {order}");
        let nodes: Vec<_> = terraces.iter().map(|terrace| Built::over(terrace, &name)).collect();
        let mut underway = JoinSet::new();
        for _ in 0..random.usize(2..6) {
            let (node, source) = (nodes[random.usize(0..2)].clone(), Arc::clone(&source));
            let (late, slow) = (ms(random.u64(0..6)), ms(random.u64(0..6)));
            underway.spawn(async move {
                // The order of the steps is left to chance.
                tokio::time::sleep(late).await;
                node.sum(&source, slow).await;
            });
        }
        tokio::time::sleep(ms(random.u64(0..8))).await;
        source.store(2, Ordering::SeqCst);
        let whoever = random.usize(0..2);
        let way = order % 5;
        nodes[whoever].change(way).await;
        let found = nodes[whoever].sums.get("sum").await.unwrap();
        assert!(found.is_none_or(|sum| *sum == 2), "old where it was invalidated, way {way}");
        underway.join_all().await;
        until_within(limit(SECOND), "both to equal the source", async || {
            let mut is_old = false;
            for node in &nodes {
                is_old |= node.sums.get("sum").await.unwrap().is_some_and(|sum| *sum != 2);
                is_old |= node.parts.get("part:1").await.unwrap().is_some_and(|part| *part != 2);
            }
            !is_old
        })
        .await;
        for node in &nodes {
            assert_eq!(node.sum(&source, ms(0)).await, 2, "way {way}");
        }
    }
}

/// A value, and another one that is built from it.
#[derive(Clone)]
struct Built {
    terrace: Terrace,
    parts: Space<str, u64>,
    sums: Space<str, u64>,
}

impl Built {
    fn over(terrace: &Terrace, name: &str) -> Self {
        let parts = terrace.space(name).tracked().build().unwrap();
        let sums = terrace.space(&format!("{name} of sums")).build().unwrap();
        Self { terrace: terrace.clone(), parts, sums }
    }

    async fn sum(&self, source: &Arc<AtomicU64>, slow: std::time::Duration) -> u64 {
        let (parts, source) = (self.parts.clone(), Arc::clone(source));
        let load = self.sums.get_or_load("sum", |_| async move {
            let part = parts.get_or_load("part:1", |_| async move {
                let part = source.load(Ordering::SeqCst);
                tokio::time::sleep(slow).await;
                Ok::<_, std::io::Error>(Loaded::value(part).tags(["parts"]))
            });
            Ok::<u64, std::io::Error>(*part.await.unwrap())
        });
        *load.await.unwrap()
    }

    async fn change(&self, way: usize) {
        let settled = match way {
            0 => self.parts.invalidate("part:1").await.unwrap(),
            1 => self.terrace.invalidate_tag("parts").await.unwrap(),
            2 => self.parts.invalidate_prefix("part:").await.unwrap(),
            3 => self.parts.remove_pattern("p?rt:*").await.unwrap().settled,
            _ => self.parts.clear().await.unwrap(),
        };
        assert_eq!(settled, Settled::Settled);
    }
}

/// Whoever joins later judges as whoever was there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_later_knows_what_was_named() {
    let server = RedisServer::start().await.unwrap();
    let source = Arc::new(AtomicU64::new(1));
    let one = Node::at(server.url()).await.terrace;
    for way in 0..5 {
        let name = format!("space {way}");
        let here = Built::over(&one, &name);
        source.store(1, Ordering::SeqCst);
        assert_eq!(here.sum(&source, ms(0)).await, 1);
        // It is there for whoever joins before.
        let before = Node::at(server.url()).await.terrace;
        let there = Built::over(&before, &name);
        until("the sum to be in Redis", async || there.sums.exists("sum").await.unwrap()).await;
        here.change(way).await;
        let later = Node::at(server.url()).await.terrace;
        let later = Built::over(&later, &name);
        assert!(!later.sums.exists("sum").await.unwrap(), "way {way}");
        source.store(2, Ordering::SeqCst);
        assert_eq!(later.sum(&source, ms(0)).await, 2, "way {way}");
    }
}
