//! Each fault of the proxy, seen by a client that hides nothing.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use terrace_test::rig::{ChaosProxy, Connection, RedisServer, RigError, wait_until};

const SOON: Duration = Duration::from_millis(100);
const LATE: Duration = Duration::from_secs(20);

async fn both() -> (RedisServer, ChaosProxy) {
    let server = RedisServer::start().await.unwrap();
    let proxy = ChaosProxy::before(server.address()).await.unwrap();
    (server, proxy)
}

async fn to(proxy: &ChaosProxy) -> Connection {
    Connection::to(proxy.address()).await.unwrap()
}

/// Whether there is an answer, and no end of the connection either.
async fn is_silent(connection: &mut Connection) -> bool {
    tokio::time::timeout(SOON, connection.read()).await.is_err()
}

fn kind(error: RigError) -> Option<ErrorKind> {
    match error {
        RigError::Io { source, .. } => Some(source.kind()),
        _ => None,
    }
}

#[expect(clippy::disallowed_methods, reason = "how long a delay takes is the question")]
async fn time_of(work: impl Future) -> Duration {
    let start = Instant::now();
    work.await;
    start.elapsed()
}

#[tokio::test]
async fn it_passes_everything_on() {
    let (server, proxy) = both().await;
    let mut connections = [to(&proxy).await, to(&proxy).await];
    let long = "x".repeat(1 << 20);
    for connection in &mut connections {
        assert_eq!(connection.command(["SET", "key", &long]).await.unwrap(), "OK");
        assert_eq!(connection.command(["GET", "key"]).await.unwrap(), long.as_str());
    }
    assert_eq!((proxy.connections(), proxy.open_connections()), (2, 2));
    assert!(proxy.to_server().bytes() > 2 << 20 && proxy.to_client().bytes() > 2 << 20);
    drop(connections);
    wait_until("the end", LATE, async || proxy.open_connections() == 0).await.unwrap();
    let is_alone = async || server.info("connected_clients").await.unwrap().as_deref() == Some("1");
    wait_until("the server to hear of it", LATE, is_alone).await.unwrap();
}

#[tokio::test]
async fn a_delay_is_as_long_as_it_was_said_and_does_not_add_up() {
    let (_server, proxy) = both().await;
    let mut connection = to(&proxy).await;
    let delay = Duration::from_millis(60);
    proxy.to_server().delay(delay, Duration::ZERO);
    proxy.to_client().delay(delay, Duration::from_millis(5));
    let one = time_of(connection.command(["PING"])).await;
    assert!(one >= 2 * delay, "{one:?}");
    // Twenty at once are on their way together.
    let many = time_of(async {
        connection.write("PING\r\n".repeat(20).as_bytes()).await.unwrap();
        for _ in 0..20 {
            assert_eq!(connection.reply().await.unwrap(), "PONG");
        }
    });
    let many = many.await;
    assert!(many >= 2 * delay && many < 20 * delay, "{many:?}");

    proxy.to_server().delay(LATE, Duration::ZERO);
    connection.write(b"PING\r\n").await.unwrap();
    assert!(is_silent(&mut connection).await);
    proxy.heal();
    assert_eq!(connection.reply().await.unwrap(), "PONG", "nobody waits for what was healed");
}

#[tokio::test]
async fn a_black_hole_says_nothing_in_its_direction_alone() {
    let (server, proxy) = both().await;
    let (mut hit, mut idle) = (to(&proxy).await, to(&proxy).await);
    assert_eq!(idle.command(["PING"]).await.unwrap(), "PONG");
    proxy.to_server().black_hole();
    hit.write(b"INCR n\r\n").await.unwrap();
    assert!(is_silent(&mut hit).await);
    let mut new = to(&proxy).await;
    new.write(b"INCR n\r\n").await.unwrap();
    assert!(is_silent(&mut new).await);
    proxy.heal();
    hit.write(b"INCR n\r\n").await.unwrap();
    assert!(is_silent(&mut hit).await, "a stream with a gap must not go on");
    assert!(server.command(["GET", "n"]).await.unwrap().is_nil());
    assert_eq!(idle.command(["PING"]).await.unwrap(), "PONG", "it lost nothing");

    proxy.to_client().black_hole();
    idle.write(b"INCR n\r\n").await.unwrap();
    assert!(is_silent(&mut idle).await);
    assert_eq!(server.command(["GET", "n"]).await.unwrap(), "1", "it was done");
    // Not even that the server died can be seen through it.
    server.kill().unwrap();
    assert!(is_silent(&mut idle).await);
    let mut new = to(&proxy).await;
    assert!(is_silent(&mut new).await);
}

#[tokio::test]
async fn what_is_held_arrives_later() {
    let (server, proxy) = both().await;
    let mut connection = to(&proxy).await;
    proxy.hold();
    connection.write(b"INCR n\r\n").await.unwrap();
    assert!(is_silent(&mut connection).await);
    assert!(server.command(["GET", "n"]).await.unwrap().is_nil());
    proxy.heal();
    assert_eq!(connection.reply().await.unwrap(), "1");
}

#[tokio::test]
async fn all_connections_can_be_reset_or_closed() {
    let (server, proxy) = both().await;
    let (mut one, mut two) = (to(&proxy).await, to(&proxy).await);
    for connection in [&mut one, &mut two] {
        assert_eq!(connection.command(["PING"]).await.unwrap(), "PONG");
    }
    proxy.reset().await;
    for connection in [&mut one, &mut two] {
        let error = connection.read().await.unwrap_err();
        assert_eq!(kind(error), Some(ErrorKind::ConnectionReset));
    }
    let mut three = to(&proxy).await;
    assert_eq!(three.command(["PING"]).await.unwrap(), "PONG");
    proxy.close().await;
    assert!(three.read().await.unwrap().is_empty(), "an end in order");
    assert_eq!(proxy.open_connections(), 0);
    let is_alone = async || server.info("connected_clients").await.unwrap().as_deref() == Some("1");
    wait_until("the server to hear of it", LATE, is_alone).await.unwrap();
}

#[tokio::test]
async fn new_connections_can_be_refused() {
    let (_server, proxy) = both().await;
    let mut open = to(&proxy).await;
    assert_eq!(open.command(["PING"]).await.unwrap(), "PONG");
    for _ in 0..2 {
        proxy.refuse().await;
        let error = Connection::to(proxy.address()).await.unwrap_err();
        assert_eq!(kind(error), Some(ErrorKind::ConnectionRefused));
        assert_eq!(open.command(["PING"]).await.unwrap(), "PONG", "open ones go on");
        proxy.heal();
        assert_eq!(to(&proxy).await.command(["PING"]).await.unwrap(), "PONG");
    }
    assert_eq!(proxy.connections(), 3);
}

#[tokio::test]
async fn where_no_server_is_connections_are_reset() {
    let (server, proxy) = both().await;
    let mut connection = to(&proxy).await;
    assert_eq!(connection.command(["PING"]).await.unwrap(), "PONG");
    server.kill().unwrap();
    assert!(connection.command(["PING"]).await.is_err());
    let error = to(&proxy).await.read().await.unwrap_err();
    assert_eq!(kind(error), Some(ErrorKind::ConnectionReset));
    server.restart().await.unwrap();
    assert_eq!(to(&proxy).await.command(["PING"]).await.unwrap(), "PONG");
}

#[tokio::test]
async fn a_throttle_lets_so_many_bytes_pass_in_a_second() {
    let (server, proxy) = both().await;
    let long = "x".repeat(10_000);
    server.expect(["SET", "key", &long]).await.unwrap();
    let mut connection = to(&proxy).await;
    proxy.to_client().throttle(40_000);
    let time = time_of(async {
        assert_eq!(connection.command(["GET", "key"]).await.unwrap(), long.as_str());
    });
    let time = time.await;
    assert!(time >= Duration::from_millis(220), "{time:?}");

    proxy.to_client().throttle(1);
    connection.write(b"GET key\r\n").await.unwrap();
    connection.read().await.unwrap();
    proxy.heal();
    while !connection.read().await.unwrap().ends_with(b"x\r\n") {}
}

#[tokio::test]
async fn a_connection_can_be_cut_after_any_byte() {
    let (server, proxy) = both().await;
    server.expect(["SET", "key", "value"]).await.unwrap();
    let whole = b"$5\r\nvalue\r\n";
    for bytes in 0..whole.len() {
        let mut connection = to(&proxy).await;
        proxy.to_client().cut_after(bytes as u64);
        connection.write(b"GET key\r\n").await.unwrap();
        let mut received = Vec::new();
        loop {
            let more = connection.read().await.unwrap();
            if more.is_empty() {
                break;
            }
            received.extend(more);
        }
        assert_eq!(received, whole[..bytes]);
        assert_eq!(to(&proxy).await.command(["GET", "key"]).await.unwrap(), "value", "once");
    }
    proxy.to_server().cut_after(3);
    let mut connection = to(&proxy).await;
    connection.write(b"FLUSHALL\r\n").await.unwrap();
    assert!(connection.read().await.unwrap().is_empty());
    assert_eq!(server.command(["GET", "key"]).await.unwrap(), "value");
}

#[tokio::test]
async fn any_one_byte_can_be_turned_over() {
    let (server, proxy) = both().await;
    server.expect(["SET", "key", "value"]).await.unwrap();
    let whole = b"$5\r\nvalue\r\n";
    let mut connection = to(&proxy).await;
    for at in 0..whole.len() {
        proxy.to_client().flip_byte(at as u64);
        let mut expected = whole.to_vec();
        expected[at] = !expected[at];
        connection.write(b"GET key\r\n").await.unwrap();
        assert_eq!(connection.read().await.unwrap(), expected);
        assert_eq!(connection.command(["GET", "key"]).await.unwrap(), "value", "once");
    }
}

#[tokio::test]
async fn dropping_it_ends_its_connections() {
    let (_server, proxy) = both().await;
    let mut connection = to(&proxy).await;
    assert_eq!(connection.command(["PING"]).await.unwrap(), "PONG");
    let address = proxy.address();
    drop(proxy);
    assert!(connection.read().await.unwrap().is_empty());
    let refuses = async || Connection::to(address).await.is_err();
    wait_until("its port to be closed", LATE, refuses).await.unwrap();
}
