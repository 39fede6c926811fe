//! The **rig**: real servers for a test, with everything that can happen to them.
//!
//! | you need | you take |
//! | --- | --- |
//! | a Redis or Valkey server, to be paused, killed and started again | [`RedisServer`] |
//! | a network before a server, to be slow, silent, cut or wrong | [`ChaosProxy`] |
//! | to speak to any server, byte by byte if need be | [`Connection`], [`Reply`] |
//! | a process of your own, to be stopped and killed as a node of a fleet is | [`TestNode`] |
//! | to wait for something | [`wait_until`] |
//!
//! Servers are processes of their own, on free ports of the loopback device, in temporary
//! directories; whoever drops one kills it and removes what it wrote. They are the ones that
//! this machine has installed. Where there are none, starting one is an error that says which
//! package to install: a test must fail then, because a test that skips itself proves nothing.
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

mod connection;
mod error;
mod port;
mod process;
mod proxy;
mod reply;
mod server;
mod testnode;

pub use connection::Connection;
pub use error::RigError;
pub use proxy::{ChaosProxy, Direction};
pub use reply::Reply;
pub use server::{RedisServer, RedisServerBuilder, TlsFiles};
pub use testnode::{Answer, TestNode, monotonic, serve, settings};

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
/// use terrace_test::rig::wait_until;
///
/// let mut asked = 0;
/// wait_until("three questions", Duration::from_secs(5), async || {
///     asked += 1;
///     asked == 3
/// })
/// .await?;
///
/// let error = wait_until("the moon", Duration::from_millis(10), async || false).await;
/// assert!(error.unwrap_err().to_string().contains("in vain for the moon"));
/// # Ok(()) }
/// ```
///
/// # Errors
/// It did not hold in time.
pub async fn wait_until(
    what: impl Into<String>,
    within: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) -> Result<(), RigError> {
    let holds = async {
        while !condition().await {
            tokio::time::sleep(PAUSE).await;
        }
    };
    let in_vain = |_| RigError::InVain { what: what.into(), within };
    tokio::time::timeout(within, holds).await.map_err(in_vain)
}
