//! A **connection** of a test's own: it hides nothing, retries nothing, and knows no pool.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::server::{RIG_PASSWORD, RIG_USER, rights};
use super::{Reply, RigError};

/// Read at once.
const CHUNK: usize = 16 << 10;

trait Wire: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Wire for T {}

/// One connection to a server, without any deadline: wrap calls in
/// [`tokio::time::timeout`] where a server may not answer.
///
/// A call that was given up leaves its reply on the way, where the next one finds it; open
/// another connection then.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use terrace_test::rig::{Connection, RedisServer};
///
/// let server = RedisServer::start().await?;
/// let mut connection = Connection::to(server.address()).await?;
/// connection.write(b"PING\r\nPING\r\n").await?;
/// assert_eq!(connection.reply().await?, "PONG");
/// assert_eq!(connection.reply().await?, "PONG");
/// assert_eq!(connection.command(["INCR", "n"]).await?.integer(), Some(1));
/// # Ok(()) }
/// ```
pub struct Connection {
    wire: Box<dyn Wire>,
    received: Vec<u8>,
}

impl Connection {
    /// Connects over TCP.
    ///
    /// # Errors
    /// Nobody listens there, or whoever does refuses.
    pub async fn to(address: SocketAddr) -> Result<Self, RigError> {
        let wire = TcpStream::connect(address).await;
        let wire = wire.map_err(RigError::while_(format!("connecting to {address}")))?;
        wire.set_nodelay(true).map_err(RigError::while_("setting TCP_NODELAY"))?;
        Ok(Self { wire: Box::new(wire), received: Vec::new() })
    }

    /// The same as somebody who may do everything, whatever `TERRACE_RIGHTS` leaves to others.
    ///
    /// # Errors
    /// Nobody listens there, or whoever does refuses.
    pub async fn with_all_rights(address: SocketAddr) -> Result<Self, RigError> {
        let mut connection = Self::to(address).await?;
        if rights().is_some() {
            connection.command(["AUTH", RIG_USER, RIG_PASSWORD]).await?;
        }
        Ok(connection)
    }

    pub(super) async fn to_socket(path: &Path) -> Result<Self, RigError> {
        let wire = UnixStream::connect(path).await;
        let wire = wire.map_err(RigError::while_(format!("connecting to {}", path.display())))?;
        Ok(Self { wire: Box::new(wire), received: Vec::new() })
    }

    /// Sends a command and waits for the next reply.
    ///
    /// What the server complains of is a [`Reply::Error`].
    ///
    /// # Errors
    /// The connection has ended, or what came is no reply.
    pub async fn command(
        &mut self,
        parts: impl IntoIterator<Item: AsRef<[u8]>>,
    ) -> Result<Reply, RigError> {
        let request = request(parts);
        self.write(&request).await?;
        self.reply().await
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), RigError> {
        self.wire.write_all(bytes).await.map_err(RigError::while_("writing to a server"))
    }

    /// The next reply.
    ///
    /// # Errors
    /// The connection has ended, or what came is no reply.
    pub async fn reply(&mut self) -> Result<Reply, RigError> {
        loop {
            if let Some((reply, length)) = Reply::parse(&self.received)? {
                self.received.drain(..length);
                return Ok(reply);
            }
            if self.fill().await? == 0 {
                let end = std::io::ErrorKind::UnexpectedEof.into();
                return Err(RigError::while_("reading from a server")(end));
            }
        }
    }

    /// The next bytes, whatever they are; none when the server has closed the connection.
    ///
    /// # Errors
    /// The connection was reset.
    pub async fn read(&mut self) -> Result<Vec<u8>, RigError> {
        if self.received.is_empty() {
            self.fill().await?;
        }
        Ok(std::mem::take(&mut self.received))
    }

    async fn fill(&mut self) -> Result<usize, RigError> {
        self.received.reserve(CHUNK);
        let read = self.wire.read_buf(&mut self.received).await;
        read.map_err(RigError::while_("reading from a server"))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("received", &self.received.len()).finish_non_exhaustive()
    }
}

/// A command as servers read it.
pub(super) fn request(parts: impl IntoIterator<Item: AsRef<[u8]>>) -> Vec<u8> {
    let (mut count, mut body) = (0_usize, Vec::new());
    for part in parts {
        let part = part.as_ref();
        body.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        body.extend_from_slice(part);
        body.extend_from_slice(b"\r\n");
        count += 1;
    }
    let mut request = format!("*{count}\r\n").into_bytes();
    request.append(&mut body);
    request
}
