//! Calls of several callers that go to the server together, and are mixed up.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use terrace::authority::{Append, Authority as _};
use terrace::clock::{SystemClock, WallTime};
use terrace::frame::{Header, decode, encode};
use terrace::key::StoredKey;
use terrace::ledger::{Name, Stamp};
use terrace::store::{Put, Store as _, Stored};
use terrace::{Codec, Compression, Memory, Redis, Terrace};
use terrace_test::rig::RedisServer;

use crate::support::{HOUR, Node, patient};

/// So many calls of a command the server has answered.
async fn calls(server: &RedisServer, command: &str) -> u64 {
    let stats = server.info(&format!("cmdstat_{command}")).await.unwrap().unwrap_or_default();
    let calls = stats.split(',').find_map(|field| field.strip_prefix("calls="));
    calls.map_or(0, |calls| calls.parse().unwrap())
}

async fn node(server: &RedisServer) -> Node {
    let builder = Terrace::builder().memory(Memory::bytes(1 << 20));
    Node::of(builder.tier("redis", patient(server.url())).build().await.unwrap())
}

/// On one thread all callers have asked before the task runs that asks for them.
#[tokio::test]
async fn a_value_is_as_old_as_its_own_line_and_not_as_the_last_of_those_it_went_with() {
    let server = RedisServer::start().await.unwrap();
    let (a, b) = (node(&server).await, node(&server).await);
    for round in 0..20 {
        let key = round.to_string();
        let insert = async { a.texts.insert(&key, "old".to_owned()).await };
        let (inserted, invalidated) = tokio::join!(insert, a.texts.invalidate(&key));
        assert!(inserted.unwrap().is_settled() && invalidated.unwrap().is_settled());
        for node in [&a, &b] {
            assert_eq!(node.get(&key).await, None, "its line came before the invalidation");
        }
    }
}

#[tokio::test]
async fn each_caller_has_the_answer_to_its_own_question() {
    const KEYS: usize = 200;
    let server = RedisServer::start().await.unwrap();
    let builder = Terrace::builder().tier("redis", patient(server.url()));
    let terrace = builder.build().await.unwrap();
    let texts = terrace.space::<str, String>("texts").ttl(HOUR).build().unwrap();
    let keys: Vec<_> = (0..KEYS).map(|key| key.to_string()).collect();
    let scripts = calls(&server, "evalsha").await;
    // Of every third key nothing is there.
    let there = keys.iter().filter(|key| key.parse::<usize>().unwrap() % 3 > 0);
    let inserts = there.map(async |key| texts.insert(key, format!("value {key}")).await);
    for settled in join_all(inserts).await {
        assert!(settled.unwrap().is_settled());
    }
    let scripts = calls(&server, "evalsha").await - scripts;
    // What scripts read counts as well.
    let reads = async || calls(&server, "get").await + calls(&server, "mget").await;
    let before = reads().await;
    for (key, found) in
        keys.iter().zip(join_all(keys.iter().map(async |key| texts.get(key).await)).await)
    {
        let expected = (key.parse::<usize>().unwrap() % 3 > 0).then(|| format!("value {key}"));
        assert_eq!(found.unwrap().map(|text| text.to_string()), expected, "{key}");
    }
    let reads = reads().await - before;
    println!("{scripts} scripts, {reads} reads");
    assert!(scripts <= KEYS as u64 / 2, "{scripts} scripts: writes went one by one");
    // Several exchanges may be under way: on a slow machine each takes few.
    assert!(reads < KEYS as u64, "{reads} reads: they went one by one");
}

#[tokio::test]
async fn a_write_is_one_exchange_however_many_go_with_it() {
    let server = RedisServer::start().await.unwrap();
    let (a, b) = (node(&server).await, node(&server).await);
    assert!(a.texts.insert("key", "old".to_owned()).await.unwrap().is_settled());
    let scripts = calls(&server, "evalsha").await;
    assert!(a.texts.insert("key", "new".to_owned()).await.unwrap().is_settled());
    // Where the user may not run any, a transaction takes its place.
    let may_run_scripts = std::env::var_os("TERRACE_WITHOUT_SCRIPTS").is_none();
    assert_eq!(calls(&server, "evalsha").await - scripts, u64::from(may_run_scripts));
    assert_eq!(b.get("key").await.as_deref(), Some("new"));
    assert!(a.texts.invalidate("key").await.unwrap().is_settled());
    assert_eq!(b.get("key").await, None, "the next line drops it");
}

/// Several values of one key go in one exchange: memory keeps the one that the server keeps.
#[tokio::test]
async fn the_last_of_those_who_write_one_key_together_is_the_one_that_stays() {
    let server = RedisServer::start().await.unwrap();
    let (a, b) = (node(&server).await, node(&server).await);
    for round in 0..10 {
        let keys: Vec<_> = (0..4).map(|key| format!("{round}/{key}")).collect();
        let insert = async |call: usize| {
            a.texts.insert(&keys[call % keys.len()], format!("value {call}")).await
        };
        for settled in join_all((0..100).map(insert)).await {
            assert!(settled.unwrap().is_settled());
        }
        for key in &keys {
            let (here, there) = (a.get(key).await, b.get(key).await);
            assert!(here.is_some() && here == there, "{key}: {here:?}, {there:?}");
        }
    }
}

/// A write that was given up may reach the server late, when others have written and been told so.
#[tokio::test]
async fn a_write_that_comes_late_stores_nothing_over_what_was_written_since() {
    // A transaction that comes late finds another ledger than it was made for, and does nothing.
    if std::env::var_os("TERRACE_WITHOUT_SCRIPTS").is_some() {
        return;
    }
    let server = RedisServer::start().await.unwrap();
    let open = || Redis::url(server.url()).open(Arc::new(SystemClock::new())).unwrap();
    let (late, other) = (open(), open());
    let key = |key: &str| StoredKey::new("", "space", 1, key.as_bytes());
    let write = |text: &str, value: &str, tags: &[&str]| {
        let key = key(text);
        let tags: Arc<[Arc<str>]> = tags.iter().map(|tag| Arc::from(*tag)).collect();
        let frame = encode(&header(&tags), value.to_owned(), Compression::off());
        let names = vec![Name::Set(format!(":space:{text}").into())];
        let put = Put { key, frame, expires: None, stamp: Stamp::default(), tags };
        Append { names, puts: vec![put] }
    };
    let found = async |text: &str| {
        let frame = late.get(&[key(text)]).await.unwrap().pop().flatten()?;
        Some(decode(&frame, 1 << 20).unwrap().value().unwrap())
    };
    for store in [&late, &other] {
        store.snapshot().await.unwrap();
    }
    // Since what the late one knows, others have written a key and named a tag.
    let written = other.write(&[write("key", "new", &[])]).await.unwrap();
    assert_eq!(written.stored, [Some(Stored::Yes)]);
    other.append(&[Name::Tag(":tag".into())]).await.unwrap();
    let all = [
        write("key", "late", &[]),
        write("tagged", "late", &[":tag"]),
        write("free", "late", &[":other"]),
    ];
    let written = late.write(&all).await.unwrap();
    assert_eq!(written.stored, [None, None, Some(Stored::Yes)]);
    assert_eq!(
        written.appended.held, [false; 3],
        "a frame is not stored, and nothing else is held"
    );
    assert_eq!(found("key").await, None, "its line names what was written before");
    assert_eq!(found("tagged").await, None);
    assert_eq!(found("free").await.as_deref(), Some(&b"late"[..]));
    // Told of all there is, it may.
    let written = late.write(&all).await.unwrap();
    assert_eq!(written.stored, [Some(Stored::Yes); 3]);
    assert_eq!(found("key").await.as_deref(), Some(&b"late"[..]));
}

fn header(tags: &Arc<[Arc<str>]>) -> Header {
    Header {
        codec: Codec::Raw,
        created: WallTime::from_millis(1),
        expires: None,
        stale_until: None,
        stamp: Stamp::default(),
        last_modified: None,
        version: None,
        tags: Arc::clone(tags),
        dependencies: Arc::default(),
        key: Bytes::new(),
    }
}
