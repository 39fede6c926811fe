//! The password changes while it is in use.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use terrace::{Redis, Settled};
use terrace_test::rig::RedisServer;

use crate::support::{Node, count, limit, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r8_a_password_that_changes() {
    let server =
        RedisServer::builder().user("terrace", "on >password-0 ~* &* +@all").start().await.unwrap();
    let secret = Arc::new(Mutex::new("password-0".to_owned()));
    let asked = Arc::clone(&secret);
    let redis = Redis::url(format!("redis://{}", server.address()))
        .credentials(move || ("terrace".into(), asked.lock().clone()));
    let (node, other) = (Node::over(redis.clone()).await, Node::over(redis).await);
    for change in 1..=count(1, 20) {
        assert_eq!(node.load("a", "a").await, "a");
        let password = format!("password-{change}");
        server.expect(["ACL", "LOG", "RESET"]).await.unwrap();
        // The server first: connections are refused until the secret is there, too.
        let rule = format!(">{password}");
        server.expect(["ACL", "SETUSER", "terrace", "resetpass", &rule]).await.unwrap();
        server.expect(["CLIENT", "KILL", "USER", "terrace"]).await.unwrap();
        assert_eq!(node.load(&format!("b-{change}"), "b").await, "b", "loads go on");
        until("the old password to be refused", async || {
            !server.expect(["ACL", "LOG"]).await.unwrap().items().is_empty()
        })
        .await;
        let changed = Instant::now();
        *secret.lock() = password;
        until("both to work again", async || {
            let value = format!("{change}, {:?}", changed.elapsed());
            let settled = node.texts.insert("shared", value.clone()).await.unwrap();
            settled == Settled::Settled && other.get("shared").await == Some(value)
        })
        .await;
        let took = changed.elapsed();
        println!("worked again after {took:?}");
        assert!(took <= limit(Duration::from_secs(5)), "it took {took:?}");
    }
}
