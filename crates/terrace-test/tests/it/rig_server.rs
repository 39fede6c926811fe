//! A real server does what a test has it do, and comes back as it was told.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use terrace_test::rig::{Certificates, Connection, RedisServer, RigError, wait_until};

const SOON: Duration = Duration::from_millis(100);
const LATE: Duration = Duration::from_secs(20);

async fn set(server: &RedisServer, value: &str) {
    assert_eq!(server.command(["SET", "key", value]).await.unwrap(), "OK");
}

async fn get(server: &RedisServer) -> Option<String> {
    server.expect(["GET", "key"]).await.unwrap().text().map(Into::into)
}

#[tokio::test]
async fn it_answers_at_its_address() {
    let server = RedisServer::start().await.unwrap();
    set(&server, "1").await;
    let mut connection = Connection::to(server.address()).await.unwrap();
    assert_eq!(connection.command(["GET", "key"]).await.unwrap(), "1");
    assert_eq!(server.url(), format!("redis://127.0.0.1:{}", server.port()));
    let id = server.info("process_id").await.unwrap();
    assert_eq!(id, server.process_id().map(|id| id.to_string()));
}

#[tokio::test]
async fn valkey_answers_too() {
    let server = RedisServer::builder().valkey().start().await.unwrap();
    set(&server, "1").await;
    assert_eq!(server.info("server_name").await.unwrap().as_deref(), Some("valkey"));
}

#[tokio::test]
async fn one_that_is_paused_answers_nobody_until_it_goes_on() {
    let server = RedisServer::start().await.unwrap();
    let mut before = Connection::to(server.address()).await.unwrap();
    server.pause().await.unwrap();
    server.pause().await.unwrap();
    let asked = tokio::time::timeout(SOON, before.command(["PING"])).await;
    assert!(asked.is_err(), "an open connection");
    let mut after = Connection::to(server.address()).await.unwrap();
    let asked = tokio::time::timeout(SOON, after.command(["PING"])).await;
    assert!(asked.is_err(), "a new connection");
    server.resume().unwrap();
    assert_eq!(before.reply().await.unwrap(), "PONG");
    assert_eq!(after.reply().await.unwrap(), "PONG");
}

#[tokio::test]
async fn one_that_is_killed_refuses_and_comes_back_at_its_port() {
    let server = RedisServer::start().await.unwrap();
    set(&server, "1").await;
    let (id, port) = (server.process_id(), server.port());
    let mut connection = Connection::to(server.address()).await.unwrap();
    server.kill().unwrap();
    assert!(connection.command(["PING"]).await.is_err());
    assert!(Connection::to(server.address()).await.is_err());
    assert!(matches!(server.command(["PING"]).await, Err(RigError::NotRunning { .. })));
    assert!(matches!(server.kill(), Err(RigError::NotRunning { .. })));

    server.restart().await.unwrap();
    assert_eq!((server.port(), get(&server).await), (port, None), "nothing was on disk");
    assert_ne!(server.process_id(), id);
}

#[tokio::test]
async fn what_was_appended_to_its_file_survives_a_kill() {
    let server = RedisServer::builder().append_only().start().await.unwrap();
    set(&server, "1").await;
    server.kill().unwrap();
    server.restart().await.unwrap();
    assert_eq!(get(&server).await.as_deref(), Some("1"));
    server.restart_empty().await.unwrap();
    assert_eq!(get(&server).await, None);
}

#[tokio::test]
async fn one_that_may_save_does_so_when_it_is_asked_to_end() {
    let server = RedisServer::builder().config("save", "3600 1").start().await.unwrap();
    set(&server, "1").await;
    server.pause().await.unwrap();
    server.terminate().await.unwrap();
    server.restart().await.unwrap();
    assert_eq!(get(&server).await.as_deref(), Some("1"));
}

#[tokio::test]
async fn an_old_copy_of_the_data_comes_back() {
    for builder in [RedisServer::builder(), RedisServer::builder().append_only()] {
        let server = builder.start().await.unwrap();
        let nothing = server.restart_from_saved().await;
        assert!(matches!(nothing, Err(RigError::NothingSaved { .. })));
        set(&server, "old").await;
        server.save().await.unwrap();
        set(&server, "new").await;
        for _ in 0..2 {
            server.restart_from_saved().await.unwrap();
            assert_eq!(get(&server).await.as_deref(), Some("old"));
            set(&server, "newer").await;
        }
    }
}

#[tokio::test]
async fn one_that_loads_says_so() {
    let server =
        RedisServer::builder().loads_slowly(Duration::from_micros(200)).start().await.unwrap();
    let mut keys = vec!["MSET".to_owned()];
    keys.extend((0..2_000).flat_map(|n| [format!("k{n}"), "v".to_owned()]));
    server.expect(&keys).await.unwrap();
    server.expect(["SAVE"]).await.unwrap();
    server.restart_loading().await.unwrap();
    let answer = server.command(["GET", "k1"]).await.unwrap();
    assert!(answer.error().is_some_and(|error| error.starts_with("LOADING")), "{answer:?}");
    wait_until("all of it", LATE, async || {
        server.command(["GET", "k1"]).await.is_ok_and(|reply| reply == "v")
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn passwords_and_users_are_asked_for() {
    let builder = RedisServer::builder().password("p w").user("reader", "on >r ~* +get");
    let server = builder.start().await.unwrap();
    set(&server, "1").await;
    assert_eq!(server.url(), format!("redis://:p%20w@{}", server.address()));
    let mut connection = Connection::to(server.address()).await.unwrap();
    let mut ask = async |parts: &[&str]| {
        let reply = connection.command(parts).await.unwrap();
        reply.error().and_then(|error| error.split(' ').next()).map(str::to_owned)
    };
    assert_eq!(ask(&["GET", "key"]).await.as_deref(), Some("NOAUTH"));
    assert_eq!(ask(&["AUTH", "wrong"]).await.as_deref(), Some("WRONGPASS"));
    assert_eq!(ask(&["AUTH", "p w"]).await, None);
    assert_eq!(ask(&["SET", "key", "2"]).await, None);
    assert_eq!(ask(&["AUTH", "reader", "r"]).await, None);
    assert_eq!(ask(&["GET", "key"]).await, None);
    assert_eq!(ask(&["SET", "key", "3"]).await.as_deref(), Some("NOPERM"));
}

/// What another client than our own gets for a `PING`.
fn ping_over_tls(server: &RedisServer, files: &[(&str, &Path)]) -> Option<String> {
    let mut command = Command::new("redis-cli");
    command.args(["-h", "127.0.0.1", "-p", &server.port().to_string(), "--tls"]);
    for (option, file) in files {
        command.arg(option).arg(file);
    }
    let output = command.arg("PING").output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

#[tokio::test]
async fn certificates_are_shown_and_asked_for() {
    let certificates = Certificates::make().unwrap();
    let others = Certificates::make().unwrap();
    let (authority, other) = (certificates.authority(), others.authority());
    let mut files = certificates.for_server();
    let server = RedisServer::builder().tls(files.clone()).start().await.unwrap();
    assert_eq!(server.url(), format!("rediss://{}", server.address()));
    assert_eq!(ping_over_tls(&server, &[("--cacert", &authority)]).as_deref(), Some("PONG"));
    assert_eq!(ping_over_tls(&server, &[("--cacert", &other)]), None);
    let mut plain = Connection::to(server.address()).await.unwrap();
    assert!(plain.command(["PING"]).await.is_err(), "it speaks nothing else");

    files.asks_clients = true;
    let server = RedisServer::builder().tls(files).start().await.unwrap();
    assert_eq!(ping_over_tls(&server, &[("--cacert", &authority)]), None);
    let (certificate, key) = (certificates.client_certificate(), certificates.client_key());
    let shown = [("--cacert", &*authority), ("--cert", &certificate), ("--key", &key)];
    assert_eq!(ping_over_tls(&server, &shown).as_deref(), Some("PONG"));
}

#[tokio::test]
async fn debug_commands_are_allowed_when_asked_for() {
    let server = RedisServer::builder().debug_commands().start().await.unwrap();
    let mut connection = Connection::to(server.address()).await.unwrap();
    assert_eq!(connection.command(["DEBUG", "SLEEP", "0"]).await.unwrap(), "OK");
}

#[tokio::test]
async fn what_is_missing_or_wrong_is_said() {
    let program = RedisServer::builder().program("redis-server-of-nobody");
    let error = program.start().await.unwrap_err();
    assert!(matches!(error, RigError::NotInstalled { .. }));
    let text = format!("{error:?}");
    assert!(text.contains("redis-server-of-nobody") && text.contains("install"), "{text}");

    let wrong = RedisServer::builder().config("maxmemory-policy", "whim").start().await;
    let text = wrong.unwrap_err().to_string();
    assert!(text.contains("ended at once") && text.contains("maxmemory-policy whim"), "{text}");
}

#[tokio::test]
async fn tasks_can_use_it_too() {
    let task = tokio::spawn(async {
        let server = RedisServer::start().await.unwrap();
        server.pause().await.unwrap();
        server.resume().unwrap();
        server.save().await.unwrap();
        server.restart_from_saved().await.unwrap();
        server.terminate().await.unwrap();
        wait_until("nothing", LATE, async || !server.is_running()).await.unwrap();
    });
    task.await.unwrap();
}

#[tokio::test]
async fn dropping_it_leaves_nothing() {
    let server = RedisServer::builder().append_only().start().await.unwrap();
    set(&server, "1").await;
    server.pause().await.unwrap();
    let (address, data) = (server.address(), server.data_directory());
    assert!(data.exists());
    drop(server);
    assert!(Connection::to(address).await.is_err());
    assert!(!data.parent().unwrap().exists());
}
