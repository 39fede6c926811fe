//! The **rig**: real servers for a test, with everything that can happen to them.
//!
//! | you need | you take |
//! | --- | --- |
//! | a Redis or Valkey server, to be paused, killed and started again | [`RedisServer`] |
//! | replicas, and sentinels that promote one of them | [`Sentinel`] |
//! | nodes that share the slots, move them and replace each other | [`Cluster`] |
//! | a network before a server, to be slow, silent, cut or wrong | [`ChaosProxy`] |
//! | replies that no server gives on request | [`ScriptedServer`] |
//! | to speak to any server, byte by byte if need be | [`Connection`], [`Reply`] |
//! | servers that speak TLS | [`Certificates`] |
//! | a process of your own, to be stopped and killed as a node of a fleet is | [`TestNode`] |
//! | to wait for something | [`wait_until`] |
//!
//! Servers are processes of their own, on free ports of the loopback device, in temporary
//! directories; whoever drops one kills it and removes what it wrote. A test that is itself
//! killed leaves them behind, unless its whole process group is killed, as nextest does.
//!
//! The servers are the ones that this machine has installed. Where there are none, starting
//! one is an error that says which package to install: a test must fail then, because a test
//! that skips itself proves nothing.
//!
//! Processes take real time. Do not use the rig under Tokio's paused clock, where a
//! deadline is over as soon as everybody waits.
//!
//! ```
//! use terrace_test::rig::RedisServer;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = RedisServer::start().await?;
//! assert_eq!(server.command(["SET", "key", "value"]).await?, "OK");
//!
//! server.kill()?;
//! assert!(server.command(["GET", "key"]).await.is_err());
//!
//! server.restart().await?;
//! assert!(server.command(["GET", "key"]).await?.is_nil(), "nothing was on disk");
//! # Ok(()) }
//! ```

use std::time::Duration;

mod cluster;
mod connection;
mod error;
mod node;
mod port;
mod process;
mod proxy;
mod reply;
mod script;
mod sentinel;
mod server;
mod testnode;
mod tls;

pub use cluster::{Cluster, ClusterBuilder};
pub use connection::Connection;
pub use error::RigError;
pub use proxy::{ChaosProxy, Direction};
pub use reply::Reply;
pub use script::{Play, Requests, ScriptedServer};
pub use sentinel::{Sentinel, SentinelBuilder};
pub use server::{RedisServer, RedisServerBuilder, without_scripts};
pub use testnode::{Answer, TestNode, monotonic, serve, settings};
pub use tls::{Certificates, TlsFiles};

/// How long the rig waits for a server to do what takes it milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long nothing is asked after a condition did not hold.
const PAUSE: Duration = Duration::from_millis(5);

/// Asks for `condition` again and again until it holds.
///
/// `what` is waited for, in words that end the sentence "waited in vain for". A condition
/// that takes longer than the deadline is given up at the deadline.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use terrace_test::rig::{RedisServer, wait_until};
///
/// let server = RedisServer::start().await?;
/// server.command(["SET", "key", "value", "PX", "20"]).await?;
/// let is_gone = async || server.command(["GET", "key"]).await.is_ok_and(|reply| reply.is_nil());
/// wait_until("the end of a key", Duration::from_secs(5), is_gone).await?;
///
/// let error = wait_until("the moon", Duration::from_millis(10), async || false).await;
/// assert!(error.unwrap_err().to_string().contains("in vain for the moon"));
/// # Ok(()) }
/// ```
///
/// # Errors
/// It did not hold in time.
pub async fn wait_until<F: Future<Output = bool>>(
    what: impl Into<String>,
    within: Duration,
    mut condition: impl FnMut() -> F,
) -> Result<(), RigError> {
    let condition = || {
        let condition = condition();
        async { condition.await.then_some(()).ok_or_else(String::new) }
    };
    wait_for(what, within, condition).await
}

/// The same for something that brings a value, or says what is missing.
async fn wait_for<T, F: Future<Output = Result<T, String>>>(
    what: impl Into<String>,
    within: Duration,
    mut find: impl FnMut() -> F,
) -> Result<T, RigError> {
    let mut missing = String::new();
    let found = async {
        loop {
            match find().await {
                Ok(value) => return value,
                Err(reason) => missing = reason,
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(within, found).await.map_err(|_| {
        let mut what = what.into();
        if !missing.is_empty() {
            what = format!("{what}; at last, {missing}");
        }
        RigError::InVain { what, within }
    })
}
