//! A **proxy**: a network before one server, which fails as a test says.

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Sleep;

use super::port::{Port, listen};
use super::{PAUSE, RigError};
use crate::random::Random;

/// Read at once.
const CHUNK: usize = 16 << 10;

/// Chunks on their way in one direction of a connection; a sender then has to wait.
const QUEUE: usize = 1_024;

/// A slow network delivers little by little, so many times a second.
const PORTIONS_A_SECOND: u64 = 50;

/// A TCP proxy before one server.
///
/// It passes everything on until it is told otherwise, for each [`Direction`] by itself:
/// [`to_server`](Self::to_server) and [`to_client`](Self::to_client). What it is told counts
/// at once, for connections that are open and for those to come, until
/// [`heal`](Self::heal).
///
/// A client connects to the proxy, whether there is a server or not: where nobody listens
/// behind it, the connection is reset. See [`refuse`](Self::refuse) for the other way.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use terrace_test::rig::{ChaosProxy, Connection, RedisServer};
///
/// let server = RedisServer::start().await?;
/// let proxy = ChaosProxy::before(server.address()).await?;
/// let mut connection = Connection::to(proxy.address()).await?;
/// assert_eq!(connection.command(["PING"]).await?, "PONG");
///
/// proxy.to_client().black_hole();
/// let answer = tokio::time::timeout(Duration::from_millis(50), connection.command(["PING"]));
/// assert!(answer.await.is_err(), "no answer, and no end of the connection");
///
/// proxy.heal();
/// let mut connection = Connection::to(proxy.address()).await?;
/// assert_eq!(connection.command(["PING"]).await?, "PONG");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ChaosProxy {
    port: Port,
    shared: Arc<Shared>,
    /// Every connection hears this, and that it is gone.
    orders: watch::Sender<End>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

/// One direction of all connections of a [`ChaosProxy`].
#[derive(Debug)]
pub struct Direction {
    faults: watch::Sender<Faults>,
    passed: AtomicU64,
    random: Mutex<Random>,
}

#[derive(Clone, Debug, Default)]
struct Faults {
    delay: Duration,
    jitter: Duration,
    holds: bool,
    swallows: bool,
    bytes_per_second: Option<u64>,
    /// Bytes that pass before a connection is cut.
    cut: Option<u64>,
    /// Bytes that pass before one is turned over.
    flip: Option<u64>,
}

#[derive(Debug)]
struct Shared {
    server: SocketAddr,
    to_server: Direction,
    to_client: Direction,
    accepted: AtomicU64,
    /// Connections keep a copy for as long as they are open.
    open: Mutex<Arc<()>>,
}

/// How a connection ends, on both of its sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    /// In order, with what is called FIN.
    #[default]
    Close,
    /// At once, with what is called RST.
    Reset,
    /// Not at all, as far as anybody can tell.
    Silence,
}

impl ChaosProxy {
    /// A proxy on a free port before the server at `address`, which need not run yet.
    ///
    /// # Errors
    /// There is no free port.
    #[expect(clippy::unused_async, reason = "its tasks need a runtime, as an async fn makes sure")]
    pub async fn before(address: SocketAddr) -> Result<Self, RigError> {
        let port = Port::reserve()?;
        let shared = Arc::new(Shared {
            server: address,
            to_server: Direction::new(1),
            to_client: Direction::new(2),
            accepted: AtomicU64::new(0),
            open: Mutex::default(),
        });
        let orders = watch::Sender::default();
        let proxy = Self { port, shared, orders, accepting: Mutex::new(None) };
        let listener = listen(proxy.address()).map_err(RigError::while_("listening"))?;
        proxy.accept(Some(listener));
        Ok(proxy)
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The port of that.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// `redis://…` of the proxy, for a server without a password.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// What clients send.
    #[must_use]
    pub fn to_server(&self) -> &Direction {
        &self.shared.to_server
    }

    /// What the server sends.
    #[must_use]
    pub fn to_client(&self) -> &Direction {
        &self.shared.to_client
    }

    /// Both directions fall silent, see [`Direction::black_hole`].
    pub fn black_hole(&self) {
        self.to_server().black_hole();
        self.to_client().black_hole();
    }

    /// Both directions stand still, see [`Direction::hold`].
    pub fn hold(&self) {
        self.to_server().hold();
        self.to_client().hold();
    }

    /// Ends all connections at once, as when a machine on the way forgot them (RST).
    /// Returns once they have ended; new ones are welcome.
    pub async fn reset(&self) {
        self.end(End::Reset).await;
    }

    /// Ends all connections in order (FIN). Returns once they have ended; new ones are
    /// welcome.
    pub async fn close(&self) {
        self.end(End::Close).await;
    }

    /// All connections that are open fall silent for ever, and stay open; new ones are welcome.
    /// So does a connection whose state a machine on the way has lost.
    pub fn silence(&self) {
        // Of a connection that is new just now, it hears this or is not open yet.
        let _open = self.shared.open.lock();
        self.orders.send_replace(End::Silence);
    }

    /// From now on nobody listens here: new connections are refused. Open ones go on.
    pub async fn refuse(&self) {
        let accepting = self.accepting.lock().take();
        if let Some(accepting) = accepting {
            accepting.abort();
            // It was aborted: an error is what is expected.
            let _ = accepting.await;
        }
    }

    /// Everything passes again, and new connections are accepted. Bytes that were held back
    /// arrive; a connection that lost bytes stays silent for ever.
    pub fn heal(&self) {
        self.to_server().heal();
        self.to_client().heal();
        if self.accepting.lock().is_none() {
            self.accept(listen(self.address()).ok());
        }
    }

    /// Connections that were accepted since the start.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Connections that are open since the last [`reset`](Self::reset) or
    /// [`close`](Self::close).
    #[must_use]
    pub fn open_connections(&self) -> usize {
        Arc::strong_count(&self.shared.open.lock()).saturating_sub(1)
    }

    async fn end(&self, end: End) {
        let open = {
            // Of a connection that is new just now, both or neither are told.
            let mut open = self.shared.open.lock();
            self.orders.send_replace(end);
            std::mem::take(&mut *open)
        };
        while Arc::strong_count(&open) > 1 {
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn accept(&self, listener: Option<TcpListener>) {
        let (shared, orders) = (Arc::clone(&self.shared), self.orders.subscribe());
        let task = tokio::spawn(accept(listener, self.address(), shared, orders));
        *self.accepting.lock() = Some(task);
    }
}

impl Drop for ChaosProxy {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.lock().take() {
            accepting.abort();
        }
    }
}

impl Direction {
    fn new(seed: u64) -> Self {
        let random = Mutex::new(Random::new(seed));
        Self { faults: watch::Sender::default(), passed: AtomicU64::new(0), random }
    }

    /// Everything takes `delay` longer, and up to `jitter` more: each portion its own time,
    /// none before those that were sent earlier. How much goes through does not change.
    pub fn delay(&self, delay: Duration, jitter: Duration) {
        self.set(|faults| (faults.delay, faults.jitter) = (delay, jitter));
    }

    /// What is sent is swallowed, and so is the end of a connection: nobody can tell from
    /// a network that has gone. A connection that has lost something that way never brings
    /// anything in this direction again, even after [`heal`](Self::heal).
    pub fn black_hole(&self) {
        self.set(|faults| faults.swallows = true);
    }

    /// What is sent waits until [`heal`](Self::heal) and then arrives, as after a short
    /// interruption.
    pub fn hold(&self) {
        self.set(|faults| faults.holds = true);
    }

    /// No more than so many bytes arrive in a second, of each connection.
    pub fn throttle(&self, bytes_per_second: u64) {
        self.set(|faults| faults.bytes_per_second = Some(bytes_per_second.max(1)));
    }

    /// After so many bytes more, of all connections together, the connection that brings
    /// the next one ends in order. The others go on, and so do new ones.
    pub fn cut_after(&self, bytes: u64) {
        self.set(|faults| faults.cut = Some(bytes));
    }

    /// After so many bytes more, of all connections together, all bits of the next one are
    /// turned over. Those after it pass as they are.
    pub fn flip_byte(&self, after: u64) {
        self.set(|faults| faults.flip = Some(after));
    }

    /// Everything passes again in this direction.
    pub fn heal(&self) {
        self.set(|faults| *faults = Faults::default());
    }

    /// Bytes that arrived in this direction so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    fn set(&self, change: impl FnOnce(&mut Faults)) {
        self.faults.send_modify(change);
    }

    /// When something that is sent now has to arrive; `None` at once.
    fn due(&self) -> Option<Pin<Box<Sleep>>> {
        let (delay, jitter) = {
            let faults = self.faults.borrow();
            (faults.delay, faults.jitter)
        };
        let jitter = u64::try_from(jitter.as_micros()).unwrap_or(u64::MAX);
        let jitter = self.random.lock().below(jitter.saturating_add(1));
        let delay = delay.saturating_add(Duration::from_micros(jitter));
        (!delay.is_zero()).then(|| Box::pin(tokio::time::sleep(delay)))
    }

    /// Decides about the beginning of `chunk`, which may be all of it.
    fn judge(&self, chunk: &mut BytesMut) -> Verdict {
        let mut verdict = Verdict::Swallow;
        self.faults.send_if_modified(|faults| {
            if faults.swallows {
                return false;
            }
            let mut length = chunk.len() as u64;
            if let Some(rate) = faults.bytes_per_second {
                length = length.min(rate.div_ceil(PORTIONS_A_SECOND));
            }
            if faults.cut == Some(0) {
                faults.cut = None;
                verdict = Verdict::Cut;
                return false;
            }
            if let Some(left) = &mut faults.cut {
                length = length.min(*left);
                *left -= length;
            }
            let length_here = usize::try_from(length).unwrap_or(usize::MAX).min(chunk.len());
            let mut portion = chunk.split_to(length_here);
            match faults.flip {
                Some(at) if at < length => {
                    faults.flip = None;
                    let byte = usize::try_from(at).ok().and_then(|at| portion.get_mut(at));
                    if let Some(byte) = byte {
                        *byte = !*byte;
                    }
                }
                Some(at) => faults.flip = Some(at - length),
                None => {}
            }
            let rate = faults.bytes_per_second;
            let pause =
                rate.map(|rate| Duration::from_secs(1).mul_f64(length as f64 / rate as f64));
            verdict = Verdict::Pass(portion.freeze(), pause);
            // Nobody waits for counters to change.
            false
        });
        verdict
    }
}

enum Verdict {
    Pass(Bytes, Option<Duration>),
    Swallow,
    Cut,
}

async fn accept(
    mut listener: Option<TcpListener>,
    address: SocketAddr,
    shared: Arc<Shared>,
    orders: watch::Receiver<End>,
) {
    loop {
        let Some(open) = &listener else {
            // Somebody else has the port, who is not supposed to: until it is free.
            tokio::time::sleep(PAUSE).await;
            listener = listen(address).ok();
            continue;
        };
        match open.accept().await {
            Ok((client, _)) => {
                shared.accepted.fetch_add(1, Ordering::Relaxed);
                let (open, mut orders) = (shared.open.lock(), orders.clone());
                orders.mark_unchanged();
                tokio::spawn(relay(client, Arc::clone(&shared), orders, Arc::clone(&open)));
            }
            // Too many open files, or a client that is gone already.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// One connection, from its beginning to its end.
async fn relay(
    mut client: TcpStream,
    shared: Arc<Shared>,
    mut orders: watch::Receiver<End>,
    _open: Arc<()>,
) {
    let ordered = async {
        match orders.changed().await {
            Ok(()) => *orders.borrow(),
            Err(_) => End::Close,
        }
    };
    let mut server = None;
    let passing = async {
        let server = match TcpStream::connect(shared.server).await {
            Ok(connected) => server.insert(connected),
            Err(_) => return shared.to_client.lost().await,
        };
        // Small portions are not to wait for one another: delays are for the test to set.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let both = tokio::try_join!(
            pass(from_client, to_server, &shared.to_server),
            pass(from_server, to_client, &shared.to_client),
        );
        both.err().unwrap_or(End::Close)
    };
    let mut end = tokio::select! {
        biased;
        end = ordered => end,
        end = passing => end,
    };
    if end == End::Silence {
        end = silence(&mut client, &mut orders).await;
    }
    for mut stream in [Some(client), server].into_iter().flatten() {
        // It may have ended already.
        let _ = match end {
            End::Reset => stream.set_zero_linger(),
            End::Close | End::Silence => stream.shutdown().await,
        };
    }
}

/// Takes what the client sends and answers nothing, until the client leaves or the connection
/// is to end.
async fn silence(client: &mut TcpStream, orders: &mut watch::Receiver<End>) -> End {
    let mut bytes = vec![0; CHUNK];
    loop {
        tokio::select! {
            read = client.read(&mut bytes) => match read {
                Ok(0) | Err(_) => return End::Close,
                Ok(_) => {}
            },
            changed = orders.changed() => match changed {
                Ok(()) if *orders.borrow() == End::Silence => {}
                Ok(()) => return *orders.borrow(),
                Err(_) => return End::Close,
            },
        }
    }
}

impl Direction {
    /// How a client learns that there is no server: not at all as long as nothing arrives.
    async fn lost(&self) -> End {
        // The sender is ours: waiting cannot fail.
        let _ = self.faults.subscribe().wait_for(|faults| !faults.holds).await;
        if self.faults.borrow().swallows {
            return pending().await;
        }
        End::Reset
    }
}

/// What one side sent, and when it has to arrive.
struct Sent {
    what: What,
    due: Option<Pin<Box<Sleep>>>,
}

enum What {
    Bytes(BytesMut),
    /// It sends no more.
    Finished,
    /// It ended the connection.
    Ended,
}

/// One direction of one connection, until that ends. Finishing is no end: the other direction
/// may go on.
async fn pass(from: ReadHalf<'_>, to: WriteHalf<'_>, way: &Direction) -> Result<(), End> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::select! {
        biased;
        result = deliver(receiver, to, way) => result,
        never = collect(from, sender, way) => match never {},
    }
}

async fn collect(
    mut from: ReadHalf<'_>,
    sender: mpsc::Sender<Sent>,
    way: &Direction,
) -> Infallible {
    loop {
        let mut bytes = BytesMut::with_capacity(CHUNK);
        let what = match from.read_buf(&mut bytes).await {
            Ok(0) => What::Finished,
            Ok(_) => What::Bytes(bytes),
            Err(_) => What::Ended,
        };
        let is_last = !matches!(what, What::Bytes(_));
        let sent = Sent { what, due: way.due() };
        // The receiver lives as long as this is polled.
        if sender.send(sent).await.is_err() || is_last {
            return pending().await;
        }
    }
}

async fn deliver(
    mut receiver: mpsc::Receiver<Sent>,
    mut to: WriteHalf<'_>,
    way: &Direction,
) -> Result<(), End> {
    let mut faults = way.faults.subscribe();
    while let Some(Sent { what, due }) = receiver.recv().await {
        if let Some(due) = due {
            let is_healed = |faults: &Faults| faults.delay.is_zero() && faults.jitter.is_zero();
            tokio::select! {
                () = due => {}
                _ = faults.wait_for(is_healed) => {}
            }
        }
        let mut bytes = match what {
            What::Bytes(bytes) => bytes,
            What::Finished | What::Ended => {
                wait_while_held(&mut faults).await;
                if faults.borrow().swallows {
                    return swallow(receiver).await;
                }
                if matches!(what, What::Ended) {
                    return Err(End::Reset);
                }
                return to.shutdown().await.map_err(|_| End::Reset);
            }
        };
        while !bytes.is_empty() {
            wait_while_held(&mut faults).await;
            match way.judge(&mut bytes) {
                Verdict::Swallow => return swallow(receiver).await,
                Verdict::Cut => return Err(End::Close),
                Verdict::Pass(portion, pause) => {
                    to.write_all(&portion).await.map_err(|_| End::Reset)?;
                    way.passed.fetch_add(portion.len() as u64, Ordering::Relaxed);
                    if let Some(pause) = pause {
                        let is_healed = |faults: &Faults| faults.bytes_per_second.is_none();
                        tokio::select! {
                            () = tokio::time::sleep(pause) => {}
                            _ = faults.wait_for(is_healed) => {}
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

async fn wait_while_held(faults: &mut watch::Receiver<Faults>) {
    // The sender lives as long as the connection does.
    let _ = faults.wait_for(|faults| !faults.holds).await;
}

/// Takes everything and tells nobody: a stream with a gap in it must never go on.
async fn swallow(mut receiver: mpsc::Receiver<Sent>) -> Result<(), End> {
    while receiver.recv().await.is_some() {}
    pending().await
}
