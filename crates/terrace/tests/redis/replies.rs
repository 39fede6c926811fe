//! The server answers with errors, and with what is no answer at all.

use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use terrace::clock::SystemClock;
use terrace::key::StoredKey;
use terrace::store::{Store, StoreErrorKind};
use terrace::{BuildError, Memory, Redis, Settled, Terrace};
use terrace_test::rig::{Play, RedisServer, Requests, ScriptedServer};
use tokio::task::JoinSet;

use crate::support::{Node, count, until};

/// What servers say, and what the guard is to think of it.
const REPLIES: [(&str, StoreErrorKind); 16] = [
    ("-LOADING Redis is loading the dataset in memory\r\n", StoreErrorKind::Unavailable),
    ("-READONLY You can't write against a read only replica.\r\n", StoreErrorKind::Unavailable),
    ("-MASTERDOWN Link with MASTER is down\r\n", StoreErrorKind::Unavailable),
    ("-CLUSTERDOWN The cluster is down\r\n", StoreErrorKind::Unavailable),
    ("-TRYAGAIN Multiple keys request during rehashing of slot\r\n", StoreErrorKind::Unavailable),
    ("-MOVED 3999 127.0.0.1:1\r\n", StoreErrorKind::Unavailable),
    ("-ASK 3999 127.0.0.1:1\r\n", StoreErrorKind::Unavailable),
    ("-OOM command not allowed when used memory > 'maxmemory'.\r\n", StoreErrorKind::Full),
    ("-NOREPLICAS Not enough good replicas to write.\r\n", StoreErrorKind::Unavailable),
    ("-NOAUTH Authentication required.\r\n", StoreErrorKind::Denied),
    ("-NOPERM this user has no permissions\r\n", StoreErrorKind::Denied),
    ("-BUSY Redis is busy running a script.\r\n", StoreErrorKind::Unavailable),
    ("-WRONGTYPE Operation against a key\r\n", StoreErrorKind::Other),
    ("?!\r\n", StoreErrorKind::Unavailable),
    // As servers before 7.0 say it of a script.
    (
        "-ERR Error running script (call to f_0): @user_script:7: -OOM command not allowed.\r\n",
        StoreErrorKind::Full,
    ),
    (
        "-ERR Error running script (call to f_0): @user_script:7: -READONLY You can't write.\r\n",
        StoreErrorKind::Unavailable,
    ),
];

/// Where a conversation can be when it comes: which command it answers.
const STATES: [&str; 9] =
    ["CLIENT", "EVALSHA", "SCRIPT", "TIME", "XREAD", "GET", "MGET", "UNLINK", "STRLEN"];

/// How many times in a row the server says so.
const TIMES: [u64; 3] = [1, 2, 20];

/// A node. That its server refuses it from the beginning is an error that says so.
async fn begun(redis: Redis) -> Node {
    loop {
        match Terrace::builder()
            .memory(Memory::bytes(1 << 20))
            .tier("redis", redis.clone())
            .build()
            .await
        {
            Ok(terrace) => return Node::of(terrace),
            Err(error) => assert!(matches!(error, BuildError::Ledger { .. }), "{error}"),
        }
    }
}

/// A life of two nodes, one of which hears `reply` in place of answers to `state`.
async fn live(server: &RedisServer, reply: &'static str, state: &str, times: u64) {
    static LIVES: AtomicU64 = AtomicU64::new(0);
    let prefix = format!("life-{}:", LIVES.fetch_add(1, Ordering::Relaxed));
    let what = format!("{reply:?} to {state}, {times} times");
    let script = ScriptedServer::before(server.address()).await.unwrap();
    let other = Node::over(Redis::url(server.url()).prefix(prefix.clone())).await;
    assert_eq!(other.load("shared", "shared").await, "shared");
    // From the first word of the conversation on, and once it goes on for a while.
    for is_early in [true, false] {
        let play = || script.on(Requests::of([state]).first(times), Play::answer(reply));
        if is_early {
            play();
        }
        let node = begun(Redis::url(script.url()).prefix(prefix.clone())).await;
        if !is_early {
            node.load("before", "before").await;
            play();
        }
        for key in ["shared", "a", "b"] {
            assert_eq!(node.load(key, key).await, key, "{what}");
        }
        let many = node.texts.get_many(["shared", "a", "b", "nowhere"]).await.unwrap();
        for (key, value) in ["shared", "a", "b", "nowhere"].iter().zip(many) {
            assert!(value.is_none_or(|value| value.as_str() == *key), "{what}: {key}");
        }
        let settled = node.texts.insert("a", "new".to_owned()).await.unwrap();
        assert!(node.get("a").await.is_none_or(|value| value == "new"), "{what}: {settled:?}");
        let settled = node.texts.invalidate("b").await.unwrap();
        assert_eq!(node.get("b").await, None, "{what}: {settled:?}");
        if settled == Settled::Settled {
            until("the other to hear of it", async || other.get("b").await.is_none()).await;
        }
        node.terrace.stats().await;
        script.heal();
        until(&format!("it to go on: {what}"), async || {
            let settled = node.texts.insert("after", what.clone()).await.unwrap();
            settled == Settled::Settled && other.get("after").await.as_ref() == Some(&what)
        })
        .await;
        until("the other to hear of everything", async || {
            other.get("b").await.is_none() && other.get("a").await.is_none_or(|now| now == "new")
        })
        .await;
        node.texts.remove_many(["a", "b", "after"]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r4_error_replies() {
    // Of tasks, too, whose panics nobody waits for.
    let panics = Arc::new(AtomicU64::new(0));
    let hook = panic::take_hook();
    let counter = Arc::clone(&panics);
    panic::set_hook(Box::new(move |info| {
        counter.fetch_add(1, Ordering::Relaxed);
        hook(info);
    }));
    let server = Arc::new(RedisServer::start().await.unwrap());
    for _ in 0..count(1, 20) {
        let mut lives = JoinSet::new();
        for (at, (reply, _)) in REPLIES.into_iter().enumerate() {
            let server = Arc::clone(&server);
            lives.spawn(async move {
                for (state, times) in STATES.iter().zip(TIMES.iter().cycle().skip(at)) {
                    live(&server, reply, state, *times).await;
                }
            });
        }
        while let Some(life) = lives.join_next().await {
            life.unwrap();
        }
    }
    assert_eq!(panics.load(Ordering::Relaxed), 0, "something panicked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r4_error_replies_are_what_the_guard_thinks() {
    let server = RedisServer::start().await.unwrap();
    let script = ScriptedServer::before(server.address()).await.unwrap();
    let store = Redis::url(script.url()).open(Arc::new(SystemClock::new())).unwrap();
    let keys = [StoredKey::new("", "texts", 1, b"a"), StoredKey::new("", "texts", 1, b"b")];
    for (reply, kind) in REPLIES {
        for keys in [&keys[..1], &keys[..]] {
            until("it to be connected", async || store.get(keys).await.is_ok()).await;
            script.on(Requests::of(["GET", "MGET"]).first(1), Play::answer(reply));
            let answer = tokio::time::timeout(Duration::from_secs(5), store.get(keys)).await;
            let error = answer.unwrap().expect_err(reply);
            assert_eq!(error.kind(), kind, "{reply:?}: {error}");
        }
    }
}
