//! A scripted server plays the replies that it was given, and passes on all others.

use std::time::Duration;

use terrace_test::rig::{Connection, Play, RedisServer, Requests, ScriptedServer, wait_until};

const SOON: Duration = Duration::from_millis(100);
const LATE: Duration = Duration::from_secs(20);

async fn both() -> (RedisServer, ScriptedServer) {
    let server = RedisServer::start().await.unwrap();
    let script = ScriptedServer::before(server.address()).await.unwrap();
    (server, script)
}

async fn to(script: &ScriptedServer) -> Connection {
    Connection::to(script.address()).await.unwrap()
}

#[tokio::test]
async fn an_answer_spares_the_server_and_a_replacement_does_not() {
    let (server, script) = both().await;
    script.on(Requests::of(["incr"]).nth(1), Play::answer("-READONLY no\r\n"));
    script.on(Requests::of(["INCR"]).nth(2), Play::replace("-OOM no\r\n"));
    let mut connection = to(&script).await;
    let mut incr = async || connection.command(["INCR", "n"]).await.unwrap();
    assert_eq!(incr().await.error(), Some("READONLY no"));
    assert_eq!(server.command(["GET", "n"]).await.unwrap().text(), None);
    assert_eq!(incr().await.error(), Some("OOM no"));
    assert_eq!(server.command(["GET", "n"]).await.unwrap(), "1");
    assert_eq!(incr().await.integer(), Some(2));
}

#[tokio::test]
async fn each_of_many_replies_at_once_can_be_the_odd_one() {
    let (server, script) = both().await;
    for odd in 1..=5 {
        for play in [Play::answer("+odd\r\n"), Play::replace("+odd\r\n")] {
            server.expect(["SET", "n", "0"]).await.unwrap();
            let is_done = matches!(play, Play::Replace(_));
            script.on(Requests::all().nth(odd), play);
            let mut connection = to(&script).await;
            connection.write("INCR n\r\n".repeat(5).as_bytes()).await.unwrap();
            let mut expected = 0;
            for number in 1..=5 {
                let reply = connection.reply().await.unwrap();
                expected += i64::from(number != odd || is_done);
                if number == odd {
                    assert_eq!(reply, "odd");
                } else {
                    assert_eq!(reply.integer(), Some(expected), "{odd}");
                }
            }
        }
    }
    assert_eq!((script.requests(), script.requests_of("INCR")), (50, 50));
}

#[tokio::test]
async fn a_reply_can_be_cut_and_the_connection_ends() {
    let (_server, script) = both().await;
    to(&script).await.command(["SET", "key", "value"]).await.unwrap();
    script.on(Requests::of(["GET"]).first(1), Play::Truncate(6));
    let mut connection = to(&script).await;
    connection.write(b"GET key\r\nGET key\r\n").await.unwrap();
    assert_eq!(connection.read().await.unwrap(), b"$5\r\nva");
    assert!(connection.read().await.unwrap().is_empty());
    assert_eq!(to(&script).await.command(["GET", "key"]).await.unwrap(), "value");
}

#[tokio::test]
async fn a_reply_can_fail_to_come() {
    let (server, script) = both().await;
    script.on(Requests::of(["INCR"]).first(1), Play::Silence);
    let mut connection = to(&script).await;
    let silent = tokio::time::timeout(SOON, connection.command(["INCR", "n"])).await;
    assert!(silent.is_err());
    assert_eq!(server.command(["GET", "n"]).await.unwrap(), "1");
    assert_eq!(to(&script).await.command(["INCR", "n"]).await.unwrap().integer(), Some(2));
}

#[tokio::test]
async fn a_message_can_come_before_a_reply() {
    let (_server, script) = both().await;
    let mut connection = to(&script).await;
    connection.command(["HELLO", "3"]).await.unwrap();
    script.on(Requests::of(["PING"]), Play::Precede(">1\r\n+news\r\n".into()));
    connection.write(b"PING\r\n").await.unwrap();
    assert_eq!(*connection.reply().await.unwrap().items()[0], "news");
    assert_eq!(connection.reply().await.unwrap(), "PONG");
    script.heal();
    assert_eq!(connection.command(["PING"]).await.unwrap(), "PONG");
}

#[tokio::test]
async fn real_messages_are_no_replies() {
    let (server, script) = both().await;
    let mut connection = to(&script).await;
    connection.command(["HELLO", "3"]).await.unwrap();
    connection.command(["CLIENT", "TRACKING", "ON"]).await.unwrap();
    connection.command(["GET", "key"]).await.unwrap();
    script.on(Requests::of(["BLPOP"]), Play::replace("+odd\r\n"));
    connection.write(b"BLPOP list 0\r\n").await.unwrap();
    let waits = async || server.info("blocked_clients").await.unwrap().as_deref() == Some("1");
    wait_until("a client that waits for a reply", LATE, waits).await.unwrap();
    server.expect(["SET", "key", "1"]).await.unwrap();
    assert_eq!(*connection.reply().await.unwrap().items()[0], "invalidate");
    server.expect(["RPUSH", "list", "1"]).await.unwrap();
    assert_eq!(connection.reply().await.unwrap(), "odd");
}

#[tokio::test]
async fn it_can_do_without_a_server() {
    let script = ScriptedServer::alone().await.unwrap();
    script.on(Requests::of(["PING"]), Play::answer("+PONG\r\n"));
    script.on(Requests::of(["GET"]).nth(2), Play::answer("garbage"));
    let mut connection = to(&script).await;
    assert_eq!(connection.command(["PING"]).await.unwrap(), "PONG");
    let error = connection.command(["GET", "key"]).await.unwrap();
    assert_eq!(error.error(), Some("ERR the script says nothing about GET"));
    connection.write(b"GET key\r\n").await.unwrap();
    assert_eq!(connection.read().await.unwrap(), b"garbage");

    let address = script.address();
    drop(script);
    assert!(connection.read().await.unwrap().is_empty());
    let refuses = async || Connection::to(address).await.is_err();
    wait_until("its port to be closed", LATE, refuses).await.unwrap();
}
