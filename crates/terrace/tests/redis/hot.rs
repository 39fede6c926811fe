//! One key that everybody wants.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use terrace::Error;
use terrace_test::rig::{RedisServer, ScriptedServer, without_scripts};

use crate::source::Source;
use crate::support::{Node, count};
use crate::testnode::Make;

/// A text that no compressor makes smaller than three quarters.
fn noise(bytes: usize) -> String {
    let mut random = fastrand::Rng::with_seed(12);
    std::iter::repeat_with(|| random.alphanumeric()).take(bytes).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_a_hot_key() {
    const SLICE: Duration = Duration::from_secs(5);
    let (processes, a_second, slices) = count((2, 20_000, 1), (8, 200_000, 6));
    let (server, truth) =
        (RedisServer::start().await.unwrap(), RedisServer::start().await.unwrap());
    let source = Source::of(&truth);
    let mut fleet = Vec::new();
    for _ in 0..processes {
        // It counts what a node asks.
        let script = ScriptedServer::before(server.address()).await.unwrap();
        let node = Make::over(&script.url(), &source).start().await;
        assert_eq!(node.load(1).await, 1);
        fleet.push((node, script));
    }
    let before: Vec<_> = fleet.iter().map(|(_, script)| script.requests()).collect();
    let (began, mut reads) = (Instant::now(), 0);
    for _ in 0..slices {
        let a_turn = (a_second / processes / 100, 10);
        let busy = fleet.iter().map(|(node, _)| node.busy(SLICE, 1, a_turn, 1, true));
        reads += join_all(busy).await.iter().map(|(reads, _)| reads).sum::<u64>();
    }
    let seconds = began.elapsed().as_secs_f64();
    for ((_, script), before) in fleet.iter().zip(before) {
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let commands = (script.requests() - before) as f64 / seconds;
        println!("{commands:.1} commands a second");
        // Without scripts, looking once a second whether the ledger is there is ten commands, not one.
        let most = if without_scripts() { 20.0 } else { 10.0 };
        assert!(commands <= most, "{commands:.1} commands a second of one process");
    }
    println!("{reads} reads in {seconds:.1} s");
    let least = a_second * slices * SLICE.as_secs() * 9 / 10;
    assert!(reads >= least, "it was hot: {reads} reads of {least}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_a_huge_value() {
    const HUGE: usize = 64 << 20;
    let server = RedisServer::builder().config("slowlog-log-slower-than", "100000").start();
    let server = server.await.unwrap();
    let (node, other) = (Node::at(server.url()).await, Node::at(server.url()).await);
    node.texts.insert("huge", "small".to_owned()).await.unwrap();
    assert_eq!(other.get("huge").await.as_deref(), Some("small"));
    let refused = node.texts.insert("huge", noise(HUGE)).await;
    assert!(matches!(refused, Err(Error::ValueTooLarge { .. })), "{refused:?}");
    for node in [&node, &other] {
        assert_eq!(node.get("huge").await.as_deref(), Some("small"), "nothing was done");
    }
    let memory = server.info("used_memory_peak").await.unwrap().unwrap();
    assert!(memory.parse::<usize>().unwrap() < HUGE / 2, "{memory} bytes were in the server");
    assert_eq!(server.expect(["SLOWLOG", "GET"]).await.unwrap().items().len(), 0);
}
