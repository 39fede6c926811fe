//! The server does not let us run scripts: never, no longer, or not all of us.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use terrace::authority::Authority;
use terrace::clock::{Clock as _, SystemClock};
use terrace::key::StoredKey;
use terrace::ledger::{Name, Stamp};
use terrace::protocol::{Follow, Leased};
use terrace::store::{Put, Store, Stored};
use terrace::{Redis, RedisStore, Settled};
use terrace_test::conformance;
use terrace_test::rig::{Cluster, RedisServer, Sentinel};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::conformance::store;
use crate::support::{Node, cluster_of, count, ends, primary_of, random, until};

const PASSWORD: &str = "a-password";

/// What a call brings; others may be quicker more often than it tries.
macro_rules! tried {
    ($call:expr) => {
        loop {
            if let Ok(output) = $call.await {
                break output;
            }
        }
    };
}

/// A server on which `plain` may run no scripts and `scripted` may.
async fn mixed() -> RedisServer {
    let server = RedisServer::builder().user("somebody", "off").start().await.unwrap();
    let secret = format!(">{PASSWORD}");
    for (user, right) in [("plain", "-@scripting"), ("scripted", "+@all")] {
        let rules = ["on", &secret, "~*", "&*", "+@all", right];
        server.expect(["ACL", "SETUSER", user].iter().chain(&rules)).await.unwrap();
    }
    server
}

fn tier(server: &RedisServer, user: &str) -> Redis {
    Redis::url(server.url_as(user, PASSWORD))
}

/// How often a command was let in, as the server counts.
async fn calls_of(server: &RedisServer, command: &str) -> u64 {
    let stats = server.info(&format!("cmdstat_{command}")).await.unwrap().unwrap_or_default();
    let calls = stats.strip_prefix("calls=").and_then(|rest| rest.split(',').next());
    calls.map_or(0, |calls| calls.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_scripts_is_a_store() {
    let server = RedisServer::builder().without_scripts().start().await.unwrap();
    conformance::store(|| async { store(Redis::url(server.url())) as Arc<dyn Store> }).await;
    assert_eq!(calls_of(&server, "evalsha").await, 0, "nobody ran a script");
    assert!(calls_of(&server, "exec").await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_scripts_is_an_authority() {
    let server = RedisServer::builder().without_scripts().start().await.unwrap();
    conformance::authority(|| async { store(Redis::url(server.url())) as Arc<dyn Authority> })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_without_scripts_is_a_store() {
    let cluster = Cluster::builder().without_scripts().start().await.unwrap();
    let redis = cluster_of(&cluster);
    conformance::store(|| async { store(redis.clone()) as Arc<dyn Store> }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_without_scripts_is_an_authority() {
    let cluster = Cluster::builder().without_scripts().start().await.unwrap();
    let redis = cluster_of(&cluster);
    conformance::authority(|| async { store(redis.clone()) as Arc<dyn Authority> }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_of_sentinels_without_scripts_is_a_store() {
    let sentinel = Sentinel::builder().without_scripts().start().await.unwrap();
    let redis = primary_of(&sentinel);
    conformance::store(|| async { store(redis.clone()) as Arc<dyn Store> }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn valkey_without_scripts_is_an_authority() {
    let server = RedisServer::builder().valkey().without_scripts().start().await.unwrap();
    conformance::authority(|| async { store(Redis::url(server.url())) as Arc<dyn Authority> })
        .await;
}

/// The commands were taken out of the server: it does not know them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_knows_no_scripts_is_an_authority() {
    let server = RedisServer::builder()
        .config("rename-command", "EVALSHA \"\"")
        .config("rename-command", "SCRIPT \"\"")
        .start()
        .await
        .unwrap();
    conformance::authority(|| async { store(Redis::url(server.url())) as Arc<dyn Authority> })
        .await;
}

/// Each of these has connections and a thread of its own, as a process has.
struct Fleet {
    stores: Vec<Arc<RedisStore>>,
}

impl Fleet {
    fn of(tiers: impl IntoIterator<Item = Redis>) -> Self {
        let open = |redis: Redis| Arc::new(redis.open(Arc::new(SystemClock::new())).unwrap());
        Self { stores: tiers.into_iter().map(open).collect() }
    }

    fn first(&self) -> &RedisStore {
        &self.stores[0]
    }

    async fn position(&self) -> Stamp {
        let snapshot = self.first().snapshot().await.unwrap();
        Stamp { incarnation: snapshot.incarnation, number: snapshot.last }
    }

    /// Has each store do the same at the same time, in so many tasks.
    async fn together<F, T>(
        &self,
        tasks: usize,
        work: impl Fn(Arc<RedisStore>, usize) -> F,
    ) -> Vec<T>
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let start = Arc::new(Barrier::new(self.stores.len() * tasks));
        let mut underway = JoinSet::new();
        for (at, store) in self.stores.iter().enumerate() {
            for task in 0..tasks {
                let start = Arc::clone(&start);
                let work = work(Arc::clone(store), at * tasks + task);
                underway.spawn(async move {
                    start.wait().await;
                    work.await
                });
            }
        }
        ends("a fleet at work", underway.join_all()).await
    }

    /// No line is lost or told twice, numbers are consecutive, and the chain holds.
    async fn appends_add_up(&self) {
        let (start, tasks, appends) = (self.position().await, 4, count(20, 500));
        let told = self
            .together(tasks, |store, number| async move {
                let mut told = Vec::new();
                for append in 0..appends {
                    let name = Name::Key(format!("te:kit:{number}-{append}").into());
                    let appended = tried!(store.append(std::slice::from_ref(&name)));
                    told.push((appended.position.number, name));
                }
                told
            })
            .await;
        let told: BTreeMap<_, _> = told.into_iter().flatten().collect();
        let expected = self.stores.len() * tasks * appends;
        assert_eq!(told.len(), expected, "each line has a number of its own");
        for store in &self.stores {
            let Follow::Lines(lines) = store.follow(start).await.unwrap() else {
                panic!("the chain is broken");
            };
            assert_eq!(lines[0].number, start.number + 1);
            assert!(lines.windows(2).all(|pair| pair[1].number == pair[0].number + 1));
            let lines: BTreeMap<_, _> =
                lines.into_iter().map(|line| (line.number, line.name)).collect();
            // A line may be there twice, whose writer was not told of the first; none is missing.
            for (number, name) in &told {
                assert_eq!(lines.get(number), Some(name), "line {number}");
            }
        }
        assert_eq!(self.position().await.incarnation, start.incarnation, "it is the same ledger");
    }

    /// What was loaded before a line about its key is not there after it, whoever was quicker.
    async fn refused_puts_stay_refused(&self) {
        for round in 0..count(20, 500) {
            let key = StoredKey::new("", "kit", 1, format!("put-{round}").as_bytes());
            let ticket = self.position().await;
            let put = |frame: &'static str, stamp| Put {
                key: key.clone(),
                frame: Bytes::from_static(frame.as_bytes()),
                expires: None,
                stamp,
                tags: Arc::from([]),
            };
            self.together(2, |store, number| {
                let (key, old) = (key.clone(), put("old", ticket));
                async move {
                    if number == 0 {
                        let line = [Name::Key(key.name())];
                        tried!(store.append(&line));
                    } else {
                        tried!(store.put(std::slice::from_ref(&old)));
                    }
                }
            })
            .await;
            for store in &self.stores {
                assert_eq!(store.get(std::slice::from_ref(&key)).await.unwrap(), [None]);
                let late = store.put(&[put("old", ticket)]).await.unwrap();
                assert_eq!(late, [Stored::Refused], "round {round}");
            }
            let now = self.position().await;
            assert_eq!(self.first().put(&[put("new", now)]).await.unwrap(), [Stored::Yes]);
        }
    }

    /// Of all who ask at once one has the lease, and of who renew it only its holder.
    async fn one_holds_a_lease(&self) {
        let clock = SystemClock::new();
        for round in 0..count(20, 500) {
            let key: Arc<str> = format!("te:kit:lease-{round}").into();
            let now = clock.wall();
            let until = now.saturating_add(Duration::from_secs(60));
            let asked = Arc::clone(&key);
            let leases = self
                .together(3, move |store, _| {
                    let key = Arc::clone(&asked);
                    async move { tried!(store.lease(&key, now, until)) }
                })
                .await;
            let granted = leases.iter().filter_map(|leased| match leased {
                Leased::Granted(lease) => Some(lease.token),
                _ => None,
            });
            let granted: Vec<_> = granted.collect();
            assert_eq!(granted.len(), 1, "round {round}: {leases:?}");
            for store in &self.stores {
                assert!(!store.renew(&key, granted[0] ^ 1, until).await.unwrap());
                assert!(store.renew(&key, granted[0], until).await.unwrap());
            }
            self.stores.last().unwrap().release(&key, granted[0]).await.unwrap();
            let next = self.first().lease(&key, now, until).await.unwrap();
            assert!(matches!(next, Leased::Granted(_)), "round {round}: {next:?}");
        }
    }

    /// No count is lost or made twice.
    async fn counts_add_up(&self, key: &str) {
        let (tasks, counts) = (3, count(20, 500));
        let (key, clock): (Arc<str>, _) = (key.into(), SystemClock::new());
        let now = clock.wall();
        let counted = Arc::clone(&key);
        let seen = self
            .together(tasks, move |store, _| {
                let key = Arc::clone(&counted);
                async move {
                    let mut seen = Vec::new();
                    for _ in 0..counts {
                        seen.push(store.count(&key, 1, now, None).await.unwrap());
                    }
                    seen
                }
            })
            .await;
        let all = self.stores.len() * tasks * counts;
        let seen: BTreeSet<_> = seen.into_iter().flatten().collect();
        assert_eq!(seen.len(), all, "each has its own");
        for store in &self.stores {
            assert_eq!(store.counter(&key, now).await.unwrap(), i64::try_from(all).ok());
        }
    }

    async fn agrees(&self) {
        self.appends_add_up().await;
        self.refused_puts_stay_refused().await;
        self.one_holds_a_lease().await;
        self.counts_add_up("te:kit:counted").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_without_scripts_agrees() {
    let server = RedisServer::builder().without_scripts().start().await.unwrap();
    Fleet::of([(); 3].map(|()| Redis::url(server.url()))).agrees().await;
    assert_eq!(calls_of(&server, "evalsha").await, 0, "nobody ran a script");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_of_which_some_run_scripts_agrees() {
    let server = mixed().await;
    let users = ["plain", "scripted", "plain", "scripted"];
    Fleet::of(users.map(|user| tier(&server, user))).agrees().await;
    for command in ["evalsha", "exec"] {
        assert!(calls_of(&server, command).await > 0, "{command}: both have their part");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_on_a_cluster_without_scripts_agrees() {
    let cluster = Cluster::builder().without_scripts().start().await.unwrap();
    Fleet::of([(); 3].map(|()| cluster_of(&cluster))).agrees().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_on_a_cluster_of_which_some_run_scripts_agrees() {
    let cluster = Cluster::builder().start().await.unwrap();
    let secret = format!(">{PASSWORD}");
    for node in cluster.nodes() {
        let rules = ["on", &secret, "~*", "&*", "+@all", "-@scripting"];
        node.expect(["ACL", "SETUSER", "plain"].iter().chain(&rules)).await.unwrap();
    }
    let plain = || cluster_of(&cluster).credentials(|| ("plain".into(), PASSWORD.into()));
    Fleet::of([plain(), cluster_of(&cluster), plain()]).agrees().await;
}

/// Twins and scripts leave the same behind, whatever they are asked one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_go_on_where_transactions_were_and_the_other_way_round() {
    let server = mixed().await;
    let stores = ["plain", "scripted"].map(|user| tier(&server, user));
    let fleet = Fleet::of(stores);
    let mut random = random("questions to both");
    let (start, clock) = (fleet.position().await, SystemClock::new());
    let mut appended = 0;
    for question in 0..count(400, 20_000) {
        let store = &fleet.stores[random.usize(..2)];
        let key = StoredKey::new("", "kit", random.u64(1..3), &[random.u8(..4)]);
        let name = key.name();
        match random.u8(..10) {
            0..5 => {
                let texts = [":kit:", ":", ""].map(Arc::from);
                let names = [
                    Name::Key(Arc::clone(&name)),
                    Name::Set(Arc::clone(&name)),
                    Name::Prefix(Arc::clone(&texts[random.usize(..3)])),
                    Name::Tag(":tag".into()),
                    Name::Space(":kit".into()),
                    Name::Everything,
                ];
                let names: Vec<_> =
                    (0..random.usize(..4)).map(|_| names[random.usize(..6)].clone()).collect();
                let told = store.append(&names).await.unwrap();
                appended += names.len() as u64;
                assert_eq!(told.position.number, start.number + appended, "question {question}");
                assert_eq!(told.held.len(), names.len());
            }
            5..8 => {
                let late = random.u64(..3).min(appended);
                let stamp = Stamp { number: start.number + appended - late, ..start };
                let frame = Bytes::from_static(b"frame");
                let put =
                    Put { key, frame, expires: None, stamp, tags: Arc::from([":tag".into()]) };
                let stored = store.put(std::slice::from_ref(&put)).await.unwrap();
                // Whoever is asked once more, by the other way, says the same.
                for other in &fleet.stores {
                    assert_eq!(other.put(std::slice::from_ref(&put)).await.unwrap(), stored);
                }
            }
            8 => {
                let before = store.counter(&name, clock.wall()).await.unwrap().unwrap_or(0);
                for (other, by) in fleet.stores.iter().zip([2, -1]) {
                    other.count(&name, by, clock.wall(), None).await.unwrap();
                }
                assert_eq!(store.counter(&name, clock.wall()).await.unwrap(), Some(before + 1));
            }
            _ => {
                let seen = [0, 1].map(|at| &fleet.stores[at]).map(|store| store.snapshot());
                let [a, b] = seen;
                assert_eq!(a.await.unwrap(), b.await.unwrap(), "question {question}");
            }
        }
    }
    let [a, b] = [0, 1].map(|at| fleet.stores[at].follow(start));
    let (a, b) = (a.await.unwrap(), b.await.unwrap());
    assert_eq!(a, b);
    let Follow::Lines(lines) = a else { panic!("the chain is broken") };
    assert_eq!(lines.len() as u64, appended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_loses_the_right_in_the_middle() {
    let server = mixed().await;
    let (a, b) =
        (Node::over(tier(&server, "scripted")).await, Node::over(tier(&server, "scripted")).await);
    let works = async |value: &str| {
        assert_eq!(a.texts.insert("key", value.to_owned()).await.unwrap(), Settled::Settled);
        until("the other to hear of it", async || b.get("key").await.as_deref() == Some(value))
            .await;
        let own = format!("own-{value}");
        assert_eq!(a.load(&own, value).await, value, "loads go on");
    };
    works("with scripts").await;
    let before = calls_of(&server, "exec").await;
    server.expect(["ACL", "SETUSER", "scripted", "-@scripting"]).await.unwrap();
    works("without scripts").await;
    assert!(calls_of(&server, "exec").await > before);

    // Given back, it is used again by whoever connects again.
    server.expect(["ACL", "SETUSER", "scripted", "+@scripting"]).await.unwrap();
    let before = calls_of(&server, "evalsha").await;
    works("with transactions still").await;
    // The connections on which the two listen may have asked for nothing while it was gone.
    let tried = calls_of(&server, "evalsha").await - before;
    assert!(tried <= 2, "it is not tried before that, and was {tried} times");
    server.expect(["CLIENT", "KILL", "USER", "scripted"]).await.unwrap();
    until("scripts to be run again", async || {
        let settled = a.texts.insert("key", "again".to_owned()).await.unwrap();
        settled == Settled::Settled && calls_of(&server, "evalsha").await > before
    })
    .await;
    until("the other to hear of it", async || b.get("key").await.as_deref() == Some("again")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_while_the_right_comes_and_goes() {
    let server = Arc::new(mixed().await);
    let fleet = Fleet::of([(); 2].map(|()| tier(&server, "scripted")));
    let taking = Arc::clone(&server);
    let comes_and_goes = tokio::spawn(async move {
        loop {
            for right in ["-@scripting", "+@scripting"] {
                taking.expect(["ACL", "SETUSER", "scripted", right]).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    });
    fleet.agrees().await;
    comes_and_goes.abort();
    assert!(comes_and_goes.await.is_err_and(|error| error.is_cancelled()), "it went on");
}
