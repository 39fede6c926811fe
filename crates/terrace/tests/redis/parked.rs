//! Callers that are polled a few times and then never again, while they hold what others wait for.

use std::pin::Pin;
use std::task::Poll;

use terrace_test::rig::RedisServer;

use crate::support::{HOUR, Node, ends, until};

type Work<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Polls `work` so often, unless it is done before; says whether it is not.
async fn park(work: &mut Work<'_>, polls: usize) -> bool {
    let mut left = polls;
    std::future::poll_fn(|context| {
        // What it waits for has come by now, and nobody takes it.
        if left == 0 {
            return Poll::Ready(true);
        }
        left -= 1;
        work.as_mut().poll(context).map(|()| false)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_is_parked_keeps_nobody_from_the_ledger() {
    let server = RedisServer::start().await.unwrap();
    let (node, other) = (Node::at(server.url()).await, Node::at(server.url()).await);
    let strict = node.terrace.space::<str, String>("texts").ttl(HOUR).strict().build().unwrap();
    type Call = for<'a> fn(&'a Node, &'a terrace::Space<str, String>) -> Work<'a>;
    let calls: [(&str, Call); 4] = [
        ("insert", |node, _| {
            Box::pin(async { node.texts.insert("parked", "x".to_owned()).await.map(drop).unwrap() })
        }),
        ("remove", |node, _| {
            Box::pin(async { node.texts.remove("parked").await.map(drop).unwrap() })
        }),
        ("strict get", |_, strict| Box::pin(async { drop(strict.get("parked").await.unwrap()) })),
        ("strict load", |_, strict| {
            let load = |_| async { Ok::<_, std::io::Error>("x".to_owned()) };
            Box::pin(async move { drop(strict.get_or_load("parked", load).await.unwrap()) })
        }),
    ];
    let mut parked = Vec::new();
    for (what, call) in calls {
        for polls in 1..20 {
            let text = format!("{what}, {polls} polls");
            // Lines of others, to be read before the own.
            other.texts.insert("between", text.clone()).await.unwrap();
            let mut work = call(&node, &strict);
            let is_parked = ends(&text, park(&mut work, polls)).await;
            parked.extend(is_parked.then_some(work));
            ends(&text, async { node.texts.insert("own", text.clone()).await }).await.unwrap();
            ends(&text, async { strict.get("own").await }).await.unwrap();
            other.texts.insert("others", text.clone()).await.unwrap();
            until(&text, async || node.get("others").await.as_ref() == Some(&text)).await;
            if !is_parked {
                break;
            }
        }
    }
    assert!(!parked.is_empty(), "nobody was parked");
}
