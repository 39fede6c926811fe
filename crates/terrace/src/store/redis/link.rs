//! The **link** to a server: its connections, made again when they break.
//!
//! Connections live on a thread of their own, so that what a service does with its runtime holds
//! nobody's answer back, and so that a caller who is dropped leaves no half-read reply behind. Many
//! callers share one connection; what they ask at the same time goes out in one write.
//!
//! A link that has lost its server answers at once that it is unavailable, and tries again in the
//! background; only the first attempt after a loss is waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::io::tcp::{TcpSettings, socket2};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, IntoConnectionInfo, Pipeline,
    ProtocolVersion, Value,
};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};

use super::apart::{Range, primaries};
use super::reply::{self, Verdict};
use crate::error::BuildError;
use crate::store::{StoreError, StoreErrorKind};

/// How long making a connection may take, its greetings included.
const CONNECTING: Duration = Duration::from_secs(1);

/// Two attempts to connect are so far apart at least: a server that comes and goes, or refuses us,
/// is not stormed.
const FIRST_WAIT: Duration = Duration::from_millis(400);

/// And at most: so long may it go unnoticed that a server is back.
const LONGEST_WAIT: Duration = Duration::from_millis(800);

/// A connection over which nothing came for so many questions in a row is asked whether it is alive.
const SILENT: u32 = 3;

/// How long it has to say so.
const ALIVE: Duration = Duration::from_secs(1);

/// The host and port of a node.
pub(super) type Node = (String, u16);

/// Where the server is.
#[derive(Clone)]
pub(super) enum Target {
    Server(String),
    Sentinels { sentinels: Vec<String>, service: String, server: Option<String> },
    Cluster(Vec<String>),
}

impl Target {
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(url) => formatter.write_str(without_secrets(url)),
            Self::Sentinels { sentinels, service, .. } => {
                let sentinels = sentinels.iter().map(|url| without_secrets(url));
                write!(formatter, "{service} of ")?;
                formatter.debug_list().entries(sentinels).finish()
            }
            Self::Cluster(nodes) => {
                let nodes = nodes.iter().map(|url| without_secrets(url));
                formatter.debug_list().entries(nodes).finish()
            }
        }
    }
}

/// An address without the user and password that may stand in it.
fn without_secrets(url: &str) -> &str {
    url.rsplit_once('@').map_or_else(|| url, |(_, address)| address)
}

/// What the links of one store share: the server's address and the thread.
pub(super) struct Links {
    endpoint: Arc<Endpoint>,
    thread: Arc<Thread>,
}

/// The thread on which connections live, until the last link is gone.
struct Thread {
    handle: Handle,
    _alive: mpsc::Sender<()>,
}

impl Thread {
    fn start() -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (alive, mut over) = mpsc::channel::<()>(1);
        std::thread::Builder::new().name("terrace-redis".into()).spawn(move || {
            // Nobody sends: it ends when the last sender is dropped.
            runtime.block_on(over.recv());
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _alive: alive })
    }
}

impl Links {
    pub(super) fn start(target: &Target) -> Result<Self, BuildError> {
        let endpoint = Endpoint::of(target).map_err(|error| BuildError::Address {
            address: format!("{target:?}"),
            reason: error.to_string(),
        })?;
        let thread = Thread::start().map_err(|error| BuildError::Address {
            address: format!("{target:?}"),
            reason: format!("no thread can be started for its connections: {error}"),
        })?;
        Ok(Self { endpoint: Arc::new(endpoint), thread: Arc::new(thread) })
    }

    /// A link of so many connections, which are made at once, in the background.
    pub(super) fn link(&self, connections: usize) -> Link {
        let shared = Arc::new(Shared {
            endpoint: Arc::clone(&self.endpoint),
            thread: Arc::clone(&self.thread),
            count: connections,
            state: Mutex::new(State::Connecting),
            changed: Notify::new(),
            next: AtomicUsize::new(0),
            silent: AtomicU32::new(0),
            is_probing: AtomicBool::new(false),
        });
        let task = connect(Arc::downgrade(&shared), Duration::ZERO);
        self.thread.handle.spawn(task);
        Link { shared }
    }
}

/// Connections to a server. See the [module](self).
#[derive(Clone)]
pub(super) struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: Arc<Endpoint>,
    thread: Arc<Thread>,
    count: usize,
    state: Mutex<State>,
    changed: Notify,
    /// Which connection is next: they take turns.
    next: AtomicUsize,
    /// Questions in a row that were given up without an answer.
    silent: AtomicU32,
    is_probing: AtomicBool,
}

enum State {
    /// The first attempt is under way: whoever asks waits for it.
    Connecting,
    Up(Arc<Connections>),
    /// Further attempts are under way: whoever asks hears why the last one failed.
    Down(StoreError),
    Closed,
}

struct Connections {
    all: Vec<Connection>,
    since: Instant,
}

/// One connection, or the connections to all nodes of a cluster.
#[derive(Clone)]
enum Connection {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    async fn ask_one(&mut self, command: &Cmd) -> redis::RedisResult<Value> {
        let answer = match self {
            Self::Server(connection) => connection.send_packed_command(command).await,
            Self::Cluster(connection) => connection.req_packed_command(command).await,
        };
        answer.and_then(Value::extract_error)
    }

    async fn ask_all(&mut self, commands: &Pipeline) -> redis::RedisResult<Vec<Value>> {
        match self {
            Self::Server(connection) => {
                let answers = connection.send_packed_commands(commands, 0, commands.len()).await?;
                answers.into_iter().map(Value::extract_error).collect()
            }
            // Of different slots: they go out side by side.
            Self::Cluster(connection) => {
                let asked = commands.cmd_iter().map(|command| {
                    let mut connection = Self::Cluster(connection.clone());
                    async move { connection.ask_one(command).await }
                });
                join_all(asked).await.into_iter().collect()
            }
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &*self.shared.state.lock() {
            State::Connecting => "connecting",
            State::Up(_) => "up",
            State::Down(_) => "down",
            State::Closed => "closed",
        };
        formatter.debug_struct("Link").field("state", &state).finish_non_exhaustive()
    }
}

impl Link {
    /// The server's answer to one command.
    pub(super) async fn ask(
        &self,
        command: &Cmd,
        doing: &'static str,
    ) -> Result<Value, StoreError> {
        let (connections, mut connection) = self.connection(doing).await?;
        let question = Question::new(&self.shared, &connections);
        let answer = connection.ask_one(command).await;
        question.answered();
        answer.map_err(|error| self.failed(error, &connections, doing))
    }

    /// The server's answers to several commands that are sent together; one that fails fails all.
    pub(super) async fn ask_all(
        &self,
        commands: &Pipeline,
        doing: &'static str,
    ) -> Result<Vec<Value>, StoreError> {
        let (connections, mut connection) = self.connection(doing).await?;
        let question = Question::new(&self.shared, &connections);
        let answers = connection.ask_all(commands).await;
        question.answered();
        answers.map_err(|error| self.failed(error, &connections, doing))
    }

    /// The answer of one node of a cluster; of the server, if it is none.
    pub(super) async fn ask_node(
        &self,
        node: Option<&Node>,
        command: &Cmd,
        doing: &'static str,
    ) -> Result<Value, StoreError> {
        let Some(node) = node else { return self.ask(command, doing).await };
        let (connections, connection) = self.connection(doing).await?;
        let Connection::Cluster(mut cluster) = connection else {
            return self.ask(command, doing).await;
        };
        let question = Question::new(&self.shared, &connections);
        let (host, port) = node.clone();
        let route = RoutingInfo::SingleNode(SingleNodeRoutingInfo::ByAddress { host, port });
        let answer = cluster.route_command(command.clone(), route).await;
        question.answered();
        let answer = answer.and_then(Value::extract_error);
        answer.map_err(|error| self.failed(error, &connections, doing))
    }

    /// The primaries of a cluster; one without an address stands for a server that is none.
    pub(super) async fn nodes(&self) -> Result<Vec<Option<Node>>, StoreError> {
        if !matches!(self.shared.endpoint.as_ref(), Endpoint::Cluster(_)) {
            return Ok(vec![None]);
        }
        let ranges = self.ranges().await?;
        let nodes: BTreeSet<_> = ranges.into_iter().map(|range| (range.host, range.port)).collect();
        Ok(nodes.into_iter().map(Some).collect())
    }

    /// Which primary serves the slots from each of these on.
    pub(super) async fn slots(&self) -> Result<BTreeMap<u64, String>, StoreError> {
        Ok(self.ranges().await?.into_iter().map(|range| (range.first, range.id)).collect())
    }

    async fn ranges(&self) -> Result<Vec<Range>, StoreError> {
        const DOING: &str = "ask for the nodes of the cluster";
        let mut question = redis::cmd("CLUSTER");
        question.arg("SLOTS");
        primaries(self.ask(&question, DOING).await?, DOING)
    }

    /// Lets go of the connections; what is asked from now on fails.
    pub(super) fn close(&self) {
        *self.shared.state.lock() = State::Closed;
        self.shared.changed.notify_waiters();
    }

    /// Whichever connection is next, as soon as there is one.
    async fn connection(
        &self,
        doing: &'static str,
    ) -> Result<(Arc<Connections>, Connection), StoreError> {
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            match &*self.shared.state.lock() {
                State::Up(connections) => {
                    let turn = match self.shared.count {
                        1 => 0,
                        count => self.shared.next.fetch_add(1, Ordering::Relaxed) % count,
                    };
                    if let Some(connection) = connections.all.get(turn) {
                        return Ok((Arc::clone(connections), connection.clone()));
                    }
                }
                State::Down(error) => return Err(error.clone()),
                State::Closed => return Err(StoreError::new(StoreErrorKind::Closed, doing)),
                // Registered before the state is let go of, so that no change is missed.
                State::Connecting => {
                    changed.as_mut().enable();
                }
            }
            changed.await;
        }
    }

    fn failed(
        &self,
        error: redis::RedisError,
        connections: &Arc<Connections>,
        doing: &'static str,
    ) -> StoreError {
        let (error, verdict) = reply::classify(error, doing);
        if verdict == Verdict::Replace {
            self.shared.replace(connections);
        }
        error
    }
}

/// A question under way. Given up by whoever asked, it is a sign that the connection may be dead.
struct Question<'a> {
    shared: &'a Arc<Shared>,
    connections: &'a Arc<Connections>,
    is_answered: bool,
}

impl<'a> Question<'a> {
    fn new(shared: &'a Arc<Shared>, connections: &'a Arc<Connections>) -> Self {
        Self { shared, connections, is_answered: false }
    }

    fn answered(mut self) {
        self.is_answered = true;
        // A store would take the line from those who count: look first.
        if self.shared.silent.load(Ordering::Relaxed) != 0 {
            self.shared.silent.store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        if !self.is_answered && self.shared.silent.fetch_add(1, Ordering::Relaxed) + 1 >= SILENT {
            self.shared.probe(self.connections);
        }
    }
}

impl Shared {
    /// Asks connections that say nothing whether they are alive, and replaces them if they are not.
    fn probe(self: &Arc<Self>, connections: &Arc<Connections>) {
        if self.is_probing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (shared, connections) = (Arc::clone(self), Arc::clone(connections));
        self.thread.handle.spawn(async move {
            let ping = redis::cmd("PING");
            for connection in &connections.all {
                let mut connection = connection.clone();
                let answer = timeout(ALIVE, connection.ask_one(&ping)).await;
                if !matches!(answer, Ok(Ok(_))) {
                    shared.replace(&connections);
                    break;
                }
            }
            shared.silent.store(0, Ordering::Relaxed);
            shared.is_probing.store(false, Ordering::Release);
        });
    }

    /// Makes other connections, unless somebody has done so since these were made.
    fn replace(self: &Arc<Self>, broken: &Arc<Connections>) {
        let mut state = self.state.lock();
        if !matches!(&*state, State::Up(connections) if Arc::ptr_eq(connections, broken)) {
            return;
        }
        *state = State::Connecting;
        let wait = FIRST_WAIT.saturating_sub(broken.since.elapsed());
        self.thread.handle.spawn(connect(Arc::downgrade(self), wait));
    }

    /// `false` once nobody wants a connection any more.
    fn set(&self, new: State) -> bool {
        let mut state = self.state.lock();
        if matches!(*state, State::Closed) {
            return false;
        }
        *state = new;
        self.changed.notify_waiters();
        true
    }
}

/// Connects after `wait`, and tries until it succeeds or nobody wants it any more.
async fn connect(shared: Weak<Shared>, mut wait: Duration) {
    loop {
        tokio::time::sleep(wait).await;
        let Some(shared) = shared.upgrade() else { return };
        match shared.endpoint.connect(shared.count).await {
            Ok(all) => {
                tracing::debug!(server = ?shared.endpoint, "connected");
                shared.set(State::Up(Arc::new(Connections { all, since: Instant::now() })));
                return;
            }
            Err(error) => {
                tracing::debug!(server = ?shared.endpoint, %error, "not connected");
                if !shared.set(State::Down(error)) {
                    return;
                }
            }
        }
        // Of many processes that lost one server, not all come back at the same moment.
        let spread = Duration::from_millis(fastrand::u64(..200));
        wait = (wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT - Duration::from_millis(200)) + spread;
    }
}

/// How to connect.
enum Endpoint {
    Server(Client),
    Sentinels { sentinels: Vec<Client>, service: String, server: ConnectionInfo },
    Cluster(ClusterClient),
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(client) => write!(formatter, "{}", client.get_connection_info().addr()),
            Self::Sentinels { service, .. } => write!(formatter, "the primary of {service}"),
            Self::Cluster(_) => formatter.write_str("the cluster"),
        }
    }
}

impl Endpoint {
    fn of(target: &Target) -> redis::RedisResult<Self> {
        match target {
            Target::Server(url) => Ok(Self::Server(Client::open(info(url)?)?)),
            Target::Sentinels { sentinels, service, server } => {
                let sentinels = sentinels
                    .iter()
                    .map(|url| Client::open(info(url)?))
                    .collect::<Result<_, _>>()?;
                let server = info(server.as_deref().unwrap_or("redis://primary"))?;
                Ok(Self::Sentinels { sentinels, service: service.clone(), server })
            }
            Target::Cluster(nodes) => {
                let nodes = nodes.iter().map(|url| info(url)).collect::<Result<Vec<_>, _>>()?;
                let sockets = nodes.first().map(|info| info.tcp_settings().clone());
                let client = ClusterClient::builder(nodes)
                    .tcp_settings(sockets.unwrap_or_default())
                    .connection_timeout(CONNECTING)
                    .retries(3)
                    .min_retry_wait(20)
                    .max_retry_wait(200)
                    // One that is lost is noticed by what the server pushes, too.
                    .use_protocol(ProtocolVersion::RESP3)
                    .build()?;
                Ok(Self::Cluster(client))
            }
        }
    }

    async fn connect(&self, count: usize) -> Result<Vec<Connection>, StoreError> {
        const DOING: &str = "connect to the server";
        let connecting = async {
            let client = match self {
                Self::Server(client) => client.clone(),
                Self::Sentinels { sentinels, service, server } => {
                    primary(sentinels, service, server).await?
                }
                Self::Cluster(client) => {
                    let mut all = Vec::with_capacity(count);
                    for _ in 0..count {
                        all.push(Connection::Cluster(client.get_async_connection().await?));
                    }
                    return Ok(all);
                }
            };
            let mut all = Vec::with_capacity(count);
            for _ in 0..count {
                let mut connection = open(&client).await?;
                if let Self::Sentinels { service, .. } = self {
                    check_role(&mut connection, service).await?;
                }
                all.push(Connection::Server(connection));
            }
            Ok(all)
        };
        match timeout(CONNECTING, connecting).await {
            Ok(Ok(all)) => Ok(all),
            Ok(Err(error)) => Err(reply::classify(error, DOING).0),
            Err(_) => Err(StoreError::new(StoreErrorKind::Deadline, DOING)),
        }
    }
}

async fn open(client: &Client) -> redis::RedisResult<MultiplexedConnection> {
    // Whoever asks has a deadline of its own; another one for each question would cost a timer.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
        .set_pipeline_buffer_size(1024);
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// The server that the first sentinel names that answers.
async fn primary(
    sentinels: &[Client],
    service: &str,
    server: &ConnectionInfo,
) -> redis::RedisResult<Client> {
    let mut failure =
        redis::RedisError::from((redis::ErrorKind::EmptySentinelList, "no sentinels"));
    let each = CONNECTING / (u32::try_from(sentinels.len()).unwrap_or(1) + 1);
    for sentinel in sentinels {
        let asked = timeout(each, async {
            let mut connection = open(sentinel).await?;
            let mut question = redis::cmd("SENTINEL");
            question.arg("GET-MASTER-ADDR-BY-NAME").arg(service);
            question.query_async::<Option<(String, u16)>>(&mut connection).await
        });
        match asked.await {
            Ok(Ok(Some((host, port)))) => {
                let address = match server.addr() {
                    redis::ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                        redis::ConnectionAddr::TcpTls {
                            host,
                            port,
                            insecure: *insecure,
                            tls_params: tls_params.clone(),
                        }
                    }
                    _ => redis::ConnectionAddr::Tcp(host, port),
                };
                return Client::open(server.clone().set_addr(address));
            }
            Ok(Ok(None)) => {
                let kind = redis::ErrorKind::MasterNameNotFoundBySentinel;
                failure = (kind, "the sentinels know no such service").into();
            }
            Ok(Err(error)) => failure = error,
            Err(_) => {
                let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
                failure = redis::RedisError::from(late);
            }
        }
    }
    Err(failure)
}

/// Sentinels may name a server that is none the wiser: it must say itself that it is the primary.
async fn check_role(
    connection: &mut MultiplexedConnection,
    service: &str,
) -> redis::RedisResult<()> {
    let role = connection.send_packed_command(&redis::cmd("ROLE")).await?;
    let is_primary = match &role {
        Value::Array(fields) => {
            matches!(fields.first(), Some(Value::BulkString(role)) if role == b"master")
        }
        _ => false,
    };
    if is_primary {
        return Ok(());
    }
    let kind = redis::ErrorKind::MasterNameNotFoundBySentinel;
    Err((kind, "the server that the sentinels name is no primary yet", service.to_owned()).into())
}

/// An address with the settings of its sockets.
fn info(url: &str) -> redis::RedisResult<ConnectionInfo> {
    let info = url.into_connection_info()?;
    let alive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(5))
        .with_interval(Duration::from_secs(2));
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(alive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(Duration::from_secs(5));
    let redis = info.redis_settings().clone().set_lib_name("terrace", env!("CARGO_PKG_VERSION"));
    Ok(info.set_tcp_settings(settings).set_redis_settings(redis))
}
