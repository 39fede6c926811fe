//! `terrace acl`: a command that the server takes, and rights that suffice.

use terrace_test::rig::RedisServer;

use super::run;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_takes_what_is_printed() {
    let server = RedisServer::builder().password("secret").start().await.unwrap();
    let printed = run(["acl", "--user", "shop", "--prefix", "shop:"]);
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert!(printed.stdout.contains("~shop:*") && printed.stdout.contains("-@all"), "{printed:?}");
    let command = printed.stdout.trim().replace("PASSWORD", "hidden");
    let words: Vec<_> = command.split_whitespace().collect();
    assert_eq!(server.command(words).await.unwrap(), "OK");

    let health = run(["health", "--url", &server.url_as("shop", "hidden")]);
    assert_eq!(health.code, Some(0), "{health:?}");

    let json = run(["acl", "--json"]).json();
    assert!(json["command"].as_str().unwrap().starts_with("ACL SETUSER terrace "), "{json}");
    let odd = run(["acl", "--user", "two words"]);
    assert!(odd.code == Some(2) && odd.stderr.contains("one word"), "{odd:?}");
}
