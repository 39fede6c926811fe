//! Callers leave before their replies have come.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use terrace::{Redis, Terrace};
use terrace_test::rig::RedisServer;
use tokio::task::JoinSet;

use crate::support::{HOUR, count};

const KEYS: u64 = 500;
const TASKS: u64 = 32;

/// The output of `future`, unless it takes more polls than these.
async fn abandoned<F: Future>(polls: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            // Whoever has had enough does not wait to be woken.
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r10_replies_never_meet_the_wrong_caller() {
    let server = RedisServer::start().await.unwrap();
    // Without memory every call is an exchange.
    let redis = Redis::url(server.url()).connections(2);
    let terrace = Terrace::builder().tier("redis", redis).build().await.unwrap();
    let texts = terrace.space::<str, String>("texts").ttl(HOUR).build().unwrap();
    for key in 0..KEYS {
        texts.insert(&format!("key-{key}"), format!("value of key-{key}")).await.unwrap();
    }
    let calls = count(20_000, 1_000_000);
    let seed = 0x5eed;
    let counts = Arc::new([const { AtomicU64::new(0) }; 2]);
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (texts, counts) = (texts.clone(), Arc::clone(&counts));
        tasks.spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed + task);
            for _ in 0..calls / TASKS {
                let polls = random.u32(1..6);
                let wanted: Vec<_> = (0..random.usize(1..5))
                    .map(|_| format!("key-{}", random.u64(..KEYS + 20)))
                    .collect();
                let found = if let [key] = &*wanted {
                    let found = abandoned(polls, texts.get(key).into_future()).await;
                    found.map(|found| vec![found.unwrap()])
                } else {
                    let many = texts.get_many(wanted.iter().map(String::as_str));
                    abandoned(polls, many).await.map(Result::unwrap)
                };
                counts[usize::from(found.is_some())].fetch_add(1, Ordering::Relaxed);
                for (key, value) in wanted.iter().zip(found.into_iter().flatten()) {
                    if let Some(value) = value {
                        let expected = format!("value of {key}");
                        assert_eq!(value.as_str(), expected, "with the seed {seed}");
                    }
                }
                tokio::task::yield_now().await;
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    let [left, stayed] = [0, 1].map(|at| counts[at].load(Ordering::Relaxed));
    println!("{left} left, {stayed} stayed");
    assert!(left > calls / 10 && stayed > calls / 100, "{left} left, {stayed} stayed");
    for key in 0..KEYS {
        let value = texts.get(&format!("key-{key}")).await.unwrap();
        assert_eq!(value.unwrap().as_str(), format!("value of key-{key}"), "nothing is lost");
    }
}
