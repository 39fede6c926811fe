//! `terrace health`, with a server, without one, and with an address that is none.

use terrace_test::rig::RedisServer;

use super::{Run, run, terrace};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_says_how_it_is() {
    let server = RedisServer::builder().config("maxmemory", "10mb").start().await.unwrap();
    let found = run(["health", "--url", &server.url(), "--json"]).json();
    assert_eq!(found["up"], true);
    assert_eq!(found["memory_limit"], "10485760");
    let warnings = found["warnings"].to_string();
    assert!(warnings.contains("volatile-lfu"), "{warnings}");

    let text = run(["health", "--url", &server.url()]);
    assert!(text.stdout.contains("  up, ") && text.stdout.contains("warning:"), "{text:?}");

    let by_environment = terrace().arg("health").env("TERRACE_REDIS", server.url()).output();
    assert_eq!(Run::of(by_environment.unwrap()).code, Some(0));

    server.kill().unwrap();
    let down = run(["health", "--url", &server.url()]);
    assert_eq!(down.code, Some(4), "{down:?}");
    assert!(down.stderr.contains("no answer from"), "{down:?}");
}

#[test]
fn an_address_that_is_none_is_told_without_its_password() {
    for url in ["http://u:secret@host", "redis//x", "", "redis://u:secret@host:99999"] {
        let run = run(["health", "--url", url]);
        run.fails(2, &["redis://host:port"]);
        assert!(!run.stderr.contains("secret"), "{run:?}");
    }
    run(["health", "--url", "redis://a", "--url", "redis://b"]).fails(2, &["--cluster"]);
    let nothing = run(["health"]);
    assert!(nothing.code == Some(2) && nothing.stderr.contains("--url"), "{nothing:?}");
}
