//! The ledger is out of reach: memory is trusted for a while, and no longer.

use std::time::{Duration, Instant};

use terrace::{Memory, Redis, Settled, Terrace};
use terrace_test::rig::{ChaosProxy, RedisServer};

use crate::support::{HOUR, Node, until};

const MAX_ISOLATED: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::disallowed_methods, reason = "what passes here is real time")]
async fn whoever_hears_nothing_serves_nothing_old_for_long() {
    let server = RedisServer::start().await.unwrap();
    let proxy = ChaosProxy::before(server.address()).await.unwrap();
    let other = Node::at(server.url()).await;
    let terrace = Terrace::builder()
        .memory(Memory::bytes(1 << 20))
        .tier("redis", Redis::url(proxy.url()))
        .max_isolated(MAX_ISOLATED)
        .build()
        .await
        .unwrap();
    let texts = terrace.space::<str, String>("texts").ttl(HOUR).build().unwrap();
    other.load("key", "old").await;
    until("it to be filled", async || texts.get("key").await.unwrap().is_some()).await;

    proxy.black_hole();
    assert_eq!(other.texts.invalidate("key").await.unwrap(), Settled::Settled);
    let cut = Instant::now();
    let held = || texts.read("key", |text| text == "old").is_some();
    assert!(held(), "trusted at first");
    until("memory to be distrusted", async || !held()).await;
    let trusted = cut.elapsed();
    println!("memory was trusted for {trusted:?}");
    // The last word that was heard may be a second old, and a question takes its deadlines.
    assert!(trusted < MAX_ISOLATED + Duration::from_secs(2), "{trusted:?}");
    let load = |_| async { Ok::<_, std::io::Error>("new".to_owned()) };
    assert_eq!(texts.get_or_load("key", load).await.unwrap().as_str(), "new", "loads go on");

    proxy.heal();
    let healed = Instant::now();
    until("it to hear others again", async || {
        other.texts.insert("probe", format!("{:?}", healed.elapsed())).await.unwrap();
        let expected = other.get("probe").await;
        texts.get("probe").await.unwrap().map(|text| text.to_string()) == expected
    })
    .await;
    println!("others were heard again after {:?}", healed.elapsed());
    assert!(healed.elapsed() < Duration::from_secs(4), "{:?}", healed.elapsed());
}
