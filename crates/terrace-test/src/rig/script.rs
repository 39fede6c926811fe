//! A **script**: a server that answers some requests as a test says, and passes the others
//! on to a real one.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::port::{Port, listen};
use super::{PAUSE, Reply, RigError};

/// Read at once.
const CHUNK: usize = 16 << 10;

/// A server with a script.
///
/// Requests count from the moment at which they arrive whole, those of all connections
/// together; what clients send by themselves when they connect (`HELLO`, `AUTH`, `CLIENT`)
/// counts too. Of several lines of the script for one request the first counts.
///
/// It tells replies apart by their number, so that it is of no use to clients that
/// subscribe to channels, or that turn replies off.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use terrace_test::rig::{Connection, Play, RedisServer, Requests, ScriptedServer};
///
/// let server = RedisServer::start().await?;
/// let script = ScriptedServer::before(server.address()).await?;
/// script.on(Requests::of(["GET"]).nth(2), Play::answer("-LOADING not yet\r\n"));
///
/// let mut connection = Connection::to(script.address()).await?;
/// assert_eq!(connection.command(["SET", "key", "value"]).await?, "OK");
/// assert_eq!(connection.command(["GET", "key"]).await?, "value");
/// assert_eq!(connection.command(["GET", "key"]).await?.error(), Some("LOADING not yet"));
/// assert_eq!(connection.command(["GET", "key"]).await?, "value");
/// assert_eq!((script.requests(), script.requests_of("get")), (4, 3));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ScriptedServer {
    port: Port,
    shared: Arc<Shared>,
    /// Tasks end when this is gone.
    _alive: watch::Sender<()>,
}

/// Some of the requests that are still to come.
#[derive(Clone, Debug)]
#[must_use]
pub struct Requests {
    names: Option<Vec<String>>,
    skip: u64,
    left: u64,
}

/// What happens to a request.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Play {
    /// These bytes are the reply, and the server never hears of the request.
    Answer(Bytes),
    /// The server does what it was asked, and these bytes take the place of its reply.
    Replace(Bytes),
    /// These bytes come just before the reply.
    Precede(Bytes),
    /// The server does what it was asked; so many bytes of its reply come, and then the
    /// connection ends.
    Truncate(usize),
    /// The server does what it was asked, and its reply never comes. Nor do later ones.
    Silence,
}

#[derive(Debug)]
struct Shared {
    server: Option<SocketAddr>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    script: Vec<(Requests, Play)>,
    counts: BTreeMap<String, u64>,
}

impl Requests {
    /// Every request from now on.
    pub fn all() -> Self {
        Self { names: None, skip: 0, left: u64::MAX }
    }

    /// Every request from now on of commands with these names.
    pub fn of<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> Self {
        let names = names.into_iter().map(|name| name.as_ref().to_ascii_uppercase());
        Self { names: Some(names.collect()), ..Self::all() }
    }

    /// Of these the `n`-th from now alone; the next one is the first.
    pub fn nth(self, n: u64) -> Self {
        Self { skip: n.saturating_sub(1), left: 1, ..self }
    }

    /// Of these the next `n` alone.
    pub fn first(self, n: u64) -> Self {
        Self { skip: 0, left: n, ..self }
    }

    /// Whether a request is meant, which then has taken place.
    fn take(&mut self, name: &str) -> bool {
        let is_meant = self.names.as_ref().is_none_or(|names| names.iter().any(|n| n == name));
        if !is_meant || self.left == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.left -= 1;
        true
    }
}

impl Play {
    /// [`Play::Answer`] of anything that is bytes.
    pub fn answer(bytes: impl Into<Bytes>) -> Self {
        Self::Answer(bytes.into())
    }

    /// [`Play::Replace`] of anything that is bytes.
    pub fn replace(bytes: impl Into<Bytes>) -> Self {
        Self::Replace(bytes.into())
    }
}

impl ScriptedServer {
    /// Passes on to the server at `address` what is not in the script, and its replies.
    ///
    /// # Errors
    /// There is no free port.
    pub async fn before(address: SocketAddr) -> Result<Self, RigError> {
        Self::new(Some(address)).await
    }

    /// Has no server behind it: what is not in the script is answered with an error.
    ///
    /// # Errors
    /// There is no free port.
    pub async fn alone() -> Result<Self, RigError> {
        Self::new(None).await
    }

    #[expect(clippy::unused_async, reason = "its tasks need a runtime, as an async fn makes sure")]
    async fn new(server: Option<SocketAddr>) -> Result<Self, RigError> {
        let port = Port::reserve()?;
        let listener = listen(port.address()).map_err(RigError::while_("listening"))?;
        let shared = Arc::new(Shared { server, state: Mutex::default() });
        let (alive, is_alive) = watch::channel(());
        tokio::spawn(accept(listener, Arc::clone(&shared), is_alive));
        Ok(Self { port, shared, _alive: alive })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// `redis://…` of it, for a server without a password.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// Adds a line to the script, which counts at once.
    pub fn on(&self, requests: Requests, play: Play) {
        self.shared.state.lock().script.push((requests, play));
    }

    /// Forgets the script. Requests that wait for a reply get what was meant for them.
    pub fn heal(&self) {
        self.shared.state.lock().script.clear();
    }

    /// Requests so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.state.lock().counts.values().sum()
    }

    /// Requests so far of the command called `name`.
    #[must_use]
    pub fn requests_of(&self, name: &str) -> u64 {
        let name = name.to_ascii_uppercase();
        self.shared.state.lock().counts.get(&name).copied().unwrap_or(0)
    }
}

impl Shared {
    /// What happens to a request that has arrived.
    fn play(&self, name: &str) -> Option<Play> {
        let mut state = self.state.lock();
        *state.counts.entry(name.to_owned()).or_default() += 1;
        // Every line counts its requests, also those that another line plays.
        let mut plays = state
            .script
            .iter_mut()
            .filter_map(|(requests, play)| requests.take(name).then(|| play.clone()));
        let first = plays.next();
        plays.for_each(drop);
        first
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, mut is_alive: watch::Receiver<()>) {
    loop {
        let accepted = tokio::select! {
            _ = is_alive.changed() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((client, _)) = accepted else {
            // Too many open files, or a client that is gone already.
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (shared, mut is_alive) = (Arc::clone(&shared), is_alive.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = is_alive.changed() => {}
                // However it ends, it has.
                _ = serve(client, &shared) => {}
            }
        });
    }
}

/// What the client waits for.
enum Awaited {
    /// A reply of the server, and what is to happen to it.
    Reply(Option<Play>),
    /// What the script says, and what is to happen to that.
    Scripted(Option<Play>, Bytes),
}

impl Awaited {
    fn into_play(self) -> Option<Play> {
        match self {
            Self::Reply(play) | Self::Scripted(play, _) => play,
        }
    }
}

/// One connection.
async fn serve(mut client: TcpStream, shared: &Shared) -> Result<(), RigError> {
    client.set_nodelay(true).map_err(broken)?;
    let mut server = match shared.server {
        Some(address) => Some(TcpStream::connect(address).await.map_err(broken)?),
        None => None,
    };
    let (mut from_client, mut from_server) = (BytesMut::new(), BytesMut::new());
    let mut awaited = VecDeque::new();
    loop {
        from_client.reserve(CHUNK);
        from_server.reserve(CHUNK);
        let receive = async {
            match &mut server {
                Some(server) => server.read_buf(&mut from_server).await,
                None => pending().await,
            }
        };
        tokio::select! {
            read = client.read_buf(&mut from_client) => ended(read)?,
            read = receive => ended(read)?,
        }
        while let Some((name, length)) = request(&from_client)? {
            let request = from_client.split_to(length);
            if name.is_empty() {
                // Servers do not answer to an empty line.
                continue;
            }
            awaited.push_back(match (shared.play(&name), &mut server) {
                (Some(Play::Answer(bytes)), _) => Awaited::Scripted(None, bytes),
                (play, Some(server)) => {
                    server.write_all(&request).await.map_err(broken)?;
                    Awaited::Reply(play)
                }
                (play, None) => Awaited::Scripted(play, without_script(&name)),
            });
        }
        while let Some((play, bytes)) = next(&mut awaited, &mut from_server)? {
            let bytes = match play {
                None => bytes,
                Some(Play::Answer(bytes) | Play::Replace(bytes)) => bytes,
                Some(Play::Precede(before)) => [before, bytes].concat().into(),
                Some(Play::Truncate(length)) => {
                    let bytes = bytes.slice(..length.min(bytes.len()));
                    client.write_all(&bytes).await.map_err(broken)?;
                    return client.shutdown().await.map_err(broken);
                }
                Some(Play::Silence) => return silence(client).await,
            };
            client.write_all(&bytes).await.map_err(broken)?;
        }
    }
}

/// The next reply, if it is there, and what is to happen to it.
fn next(
    awaited: &mut VecDeque<Awaited>,
    from_server: &mut BytesMut,
) -> Result<Option<(Option<Play>, Bytes)>, RigError> {
    match awaited.pop_front() {
        Some(Awaited::Scripted(play, bytes)) => return Ok(Some((play, bytes))),
        Some(reply) => awaited.push_front(reply),
        None => {}
    }
    let Some((reply, length)) = Reply::parse(from_server)? else { return Ok(None) };
    let bytes = from_server.split_to(length).freeze();
    let play = match reply {
        // Nobody waits for it.
        Reply::Push(_) => None,
        _ => awaited.pop_front().and_then(Awaited::into_play),
    };
    Ok(Some((play, bytes)))
}

/// The name of the first request and its length, if it has arrived whole.
fn request(bytes: &[u8]) -> Result<Option<(String, usize)>, RigError> {
    let name = |name: &str| name.to_ascii_uppercase();
    if bytes.first() == Some(&b'*') {
        let parsed = Reply::parse(bytes)?;
        return Ok(parsed.map(|(request, length)| {
            let first = request.items().first().and_then(|first| first.text());
            (name(&first.unwrap_or_default()), length)
        }));
    }
    // Typed by hand.
    let Some(length) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let line = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
    Ok(Some((name(line.split_whitespace().next().unwrap_or_default()), length + 1)))
}

fn without_script(name: &str) -> Bytes {
    format!("-ERR the script says nothing about {name}\r\n").into()
}

/// Says nothing until the client has had enough.
async fn silence(mut client: TcpStream) -> Result<(), RigError> {
    let mut ignored = BytesMut::new();
    loop {
        ignored.clear();
        ended(client.read_buf(&mut ignored).await)?;
    }
}

fn ended(read: io::Result<usize>) -> Result<(), RigError> {
    match read.map_err(broken)? {
        0 => Err(broken(io::ErrorKind::UnexpectedEof.into())),
        _ => Ok(()),
    }
}

fn broken(error: io::Error) -> RigError {
    RigError::while_("passing requests on")(error)
}
