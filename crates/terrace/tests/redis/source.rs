//! The **source**: what a fleet caches, on a server of its own, where everybody counts the loads.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use terrace_test::rig::{Connection, RedisServer, Reply};
use tokio::sync::Mutex;

/// The truth about every key: a version, 1 unless somebody wrote another one.
pub(crate) struct Source {
    address: SocketAddr,
    idle: Mutex<Vec<Connection>>,
}

/// The source has nothing under a key, or does not answer.
#[derive(Debug)]
pub(crate) struct Refused(String);

impl Refused {
    /// What a loader says of a key that was removed.
    pub(crate) fn is_removed(&self) -> bool {
        self.0 == REMOVED
    }
}

const REMOVED: &str = "removed";

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl Source {
    pub(crate) fn of(server: &RedisServer) -> Self {
        Self::at(server.address())
    }

    pub(crate) fn at(address: SocketAddr) -> Self {
        Self { address, idle: Mutex::default() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a loader does: it is count when it begins and when it looks.
    pub(crate) async fn load(
        &self,
        key: u64,
        before: Duration,
        after: Duration,
    ) -> Result<u64, Refused> {
        self.ask_at_once(&["INCR begun", &format!("INCR begun:{key}")]).await;
        // A load takes its time.
        tokio::time::sleep(before).await;
        let looks = [format!("INCR looked:{key}"), format!("GET {key}")];
        let found = self.ask_at_once(&looks.each_ref().map(String::as_str)).await;
        tokio::time::sleep(after).await;
        match number(&found) {
            Some(0) => Err(Refused(REMOVED.into())),
            version => Ok(version.unwrap_or(1)),
        }
    }

    /// Writes a version, or 0 for none.
    pub(crate) async fn write(&self, key: u64, version: u64) {
        self.ask(&["SET", &key.to_string(), &version.to_string()]).await;
    }

    pub(crate) async fn write_all(&self, keys: std::ops::Range<u64>, version: u64) {
        let version = version.to_string();
        let keys: Vec<_> = keys.map(|key| key.to_string()).collect();
        for keys in keys.chunks(1_000) {
            let pairs = keys.iter().flat_map(|key| [key, &*version]);
            let parts: Vec<_> = std::iter::once("MSET").chain(pairs).collect();
            self.ask(&parts).await;
        }
    }

    /// Loads of all keys that began.
    pub(crate) async fn begun(&self) -> u64 {
        number(&self.ask(&["GET", "begun"]).await).unwrap_or(0)
    }

    pub(crate) async fn begun_of(&self, key: u64) -> u64 {
        number(&self.ask(&["GET", &format!("begun:{key}")]).await).unwrap_or(0)
    }

    /// Loads of a key that looked.
    pub(crate) async fn looked(&self, key: u64) -> u64 {
        number(&self.ask(&["GET", &format!("looked:{key}")]).await).unwrap_or(0)
    }

    /// Several commands in one step, without a script, which the server may forbid: the last answer.
    async fn ask_at_once(&self, commands: &[&str]) -> Reply {
        let mut connection = self.connection().await;
        let all = format!("MULTI\r\n{}\r\nEXEC\r\n", commands.join("\r\n"));
        connection.write(all.as_bytes()).await.unwrap();
        for _ in 0..=commands.len() {
            connection.reply().await.unwrap();
        }
        let done = connection.reply().await.unwrap();
        assert!(done.error().is_none(), "{done:?}");
        self.idle.lock().await.push(connection);
        done.items().last().cloned().unwrap().clone()
    }

    async fn connection(&self) -> Connection {
        let idle = self.idle.lock().await.pop();
        match idle {
            Some(connection) => connection,
            None => Connection::with_all_rights(self.address).await.unwrap(),
        }
    }

    async fn ask(&self, parts: &[&str]) -> Reply {
        let mut connection = self.connection().await;
        let reply = connection.command(parts).await.unwrap();
        assert!(reply.error().is_none(), "{reply:?}");
        // A call that is dropped before keeps its connection, where a reply is on its way.
        self.idle.lock().await.push(connection);
        reply
    }
}

fn number(reply: &Reply) -> Option<u64> {
    reply.text()?.parse().ok()
}
