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
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{Cmd, Pipeline, Value};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::apart::{Range, primaries};
use super::endpoint::{Access, Connection, Endpoint, Node, Target};
use super::reply::{self, Verdict};
use super::transactions::{self, Failure, Lanes, Step};
use crate::clock::{Clock as _, SystemClock};
use crate::error::BuildError;
use crate::store::{StoreError, StoreErrorKind};

/// Two attempts to connect are so far apart at least: a server that comes and goes, or refuses us,
/// is not stormed.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// And at most: so long may it go unnoticed that a server is back.
const LONGEST_WAIT: Duration = Duration::from_millis(900);

/// A connection over which nothing came for so many questions in a row is asked whether it is alive.
const SILENT: u32 = 3;

/// How long it has to say so.
const ALIVE: Duration = Duration::from_secs(1);

/// What the links of one store share: the server's address and the thread.
pub(super) struct Links {
    endpoint: Arc<Endpoint>,
    address: Arc<(Target, Access)>,
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
    pub(super) fn start(target: &Target, access: &Access) -> Result<Self, BuildError> {
        let endpoint = Endpoint::of(target, access).map_err(|error| BuildError::Address {
            address: format!("{target:?}"),
            reason: error.to_string(),
        })?;
        let thread = Thread::start().map_err(|error| BuildError::Address {
            address: format!("{target:?}"),
            reason: format!("no thread can be started for its connections: {error}"),
        })?;
        let address = Arc::new((target.clone(), access.clone()));
        Ok(Self { endpoint: Arc::new(endpoint), address, thread: Arc::new(thread) })
    }

    /// A link of so many connections, which are made at once, in the background.
    pub(super) fn link(&self, connections: usize) -> Link {
        let shared = Arc::new(Shared {
            endpoint: Arc::clone(&self.endpoint),
            address: Arc::clone(&self.address),
            thread: Arc::clone(&self.thread),
            count: connections,
            state: Mutex::new(State::Connecting),
            changed: Notify::new(),
            next: AtomicUsize::new(0),
            silent: AtomicU32::new(0),
            is_probing: AtomicBool::new(false),
            has_warned: AtomicBool::new(false),
            clock: SystemClock::new(),
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

/// A link for those who do not keep it alive.
pub(super) struct WeakLink(Weak<Shared>);

impl WeakLink {
    pub(super) fn upgrade(&self) -> Option<Link> {
        self.0.upgrade().map(|shared| Link { shared })
    }
}

struct Shared {
    endpoint: Arc<Endpoint>,
    address: Arc<(Target, Access)>,
    thread: Arc<Thread>,
    count: usize,
    state: Mutex<State>,
    changed: Notify,
    /// Which connection is next: they take turns.
    next: AtomicUsize,
    /// Questions in a row that were given up without an answer.
    silent: AtomicU32,
    is_probing: AtomicBool,
    /// That scripts are denied is said once.
    has_warned: AtomicBool,
    /// Connections are made in real time, whatever time a cache goes by.
    clock: SystemClock,
}

enum State {
    /// The first attempt is under way: whoever asks waits for it.
    Connecting,
    Up(Arc<Connections>),
    /// Further attempts are under way: whoever asks hears why the last one failed.
    Down(StoreError),
    Closed,
}

impl State {
    fn has(&self, connections: &Arc<Connections>) -> bool {
        matches!(self, Self::Up(ours) if Arc::ptr_eq(ours, connections))
    }
}

struct Connections {
    all: Vec<Connection>,
    since: Duration,
    /// The server has refused to run a script: until there are other connections, they are not
    /// tried again.
    are_scripts_denied: AtomicBool,
    /// For what takes the place of scripts.
    lanes: Lanes,
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
        if !self.is_cluster() {
            return Ok(vec![None]);
        }
        let ranges = self.ranges().await?;
        let nodes: BTreeSet<_> = ranges.into_iter().map(|range| (range.host, range.port)).collect();
        Ok(nodes.into_iter().map(Some).collect())
    }

    /// The server, as a person would name it.
    pub(super) fn server(&self) -> String {
        format!("{:?}", self.shared.endpoint)
    }

    /// Which primary serves the slots from each of these on.
    pub(super) async fn slots(&self) -> Result<BTreeMap<u64, String>, StoreError> {
        Ok(self.ranges().await?.into_iter().map(|range| (range.first, range.id)).collect())
    }

    /// The primary that serves the slots from each of these on.
    pub(super) async fn serving(&self) -> Result<BTreeMap<u64, Node>, StoreError> {
        let ranges = self.ranges().await?.into_iter();
        Ok(ranges.map(|range| (range.first, (range.host, range.port))).collect())
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.shared.endpoint.as_ref(), Endpoint::Cluster { .. })
    }

    /// Whether the server has refused to run scripts since we are connected.
    pub(super) fn are_scripts_denied(&self) -> bool {
        match &*self.shared.state.lock() {
            State::Up(connections) => connections.are_scripts_denied.load(Ordering::Relaxed),
            _ => false,
        }
    }

    /// The server refuses to run scripts: transactions take their place until there are other
    /// connections.
    pub(super) fn deny_scripts(&self, error: &StoreError) {
        if let State::Up(connections) = &*self.shared.state.lock() {
            connections.are_scripts_denied.store(true, Ordering::Relaxed);
        }
        if !self.shared.has_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                server = ?self.shared.endpoint, %error,
                "the server does not let us run scripts: transactions take their place, which need \
                 more round trips and connections"
            );
        }
    }

    /// The answer of a script, by a transaction that takes its place.
    pub(super) async fn transact(
        &self,
        step: Step,
        doing: &'static str,
    ) -> Result<Value, StoreError> {
        let (connections, _) = self.connection(doing).await?;
        let question = Question::new(&self.shared, &connections);
        let age = self.shared.clock.elapsed().saturating_sub(connections.since);
        let start = |jobs| {
            let serving = transactions::serve(WeakLink(Arc::downgrade(&self.shared)), jobs);
            self.shared.thread.handle.spawn(serving);
        };
        let outcome = connections.lanes.run(step, age, start).await;
        question.answered();
        outcome.map_err(|failure| {
            if failure.is_denied() {
                // Scripts may be what is permitted now.
                connections.are_scripts_denied.store(false, Ordering::Relaxed);
            }
            let (error, verdict) = failure.classify(doing);
            // A node of a cluster that is gone says nothing about the others.
            if verdict == Verdict::Replace && !self.is_cluster() {
                self.shared.replace(&connections);
            }
            error
        })
    }

    /// A connection that is shared with nobody; to be made on the thread of connections.
    pub(super) async fn alone(
        &self,
        node: Option<&Node>,
    ) -> Result<redis::aio::MultiplexedConnection, Failure> {
        let endpoint = self.shared.endpoint()?;
        Ok(endpoint.alone(node).await?)
    }

    /// Since the link was made.
    pub(super) fn elapsed(&self) -> Duration {
        self.shared.clock.elapsed()
    }

    async fn ranges(&self) -> Result<Vec<Range>, StoreError> {
        const DOING: &str = "ask for the nodes of the cluster";
        let mut question = redis::cmd("CLUSTER");
        question.arg("SLOTS");
        primaries(self.ask(&question, DOING).await?, DOING)
    }

    /// Sleeps by the timer of the connections: whoever asks need not have one.
    pub(super) fn sleep(&self, time: Duration) -> tokio::time::Sleep {
        let _entered = self.shared.thread.handle.enter();
        tokio::time::sleep(time)
    }

    /// Runs `task` beside the connections.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.shared.thread.handle.spawn(task);
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
        if !state.has(broken) {
            return;
        }
        *state = State::Connecting;
        let wait = FIRST_WAIT.saturating_sub(self.clock.elapsed().saturating_sub(broken.since));
        self.thread.handle.spawn(connect(Arc::downgrade(self), wait));
    }

    /// New connections, with the credentials of this moment.
    async fn connections(&self) -> Result<(Vec<Connection>, Option<Node>), StoreError> {
        let endpoint = self.endpoint();
        let endpoint = endpoint.map_err(|failure| failure.classify("connect to the server").0)?;
        endpoint.connect(self.count).await
    }

    /// Where the server is, and who we are at this moment.
    fn endpoint(&self) -> Result<Arc<Endpoint>, Failure> {
        let (target, access) = &*self.address;
        if !access.changes() {
            return Ok(Arc::clone(&self.endpoint));
        }
        // Whoever is asked for them may panic, and this thread serves everybody.
        let endpoint = catch_unwind(AssertUnwindSafe(|| Endpoint::of(target, access)));
        let Ok(endpoint) = endpoint else {
            let denied = StoreError::new(StoreErrorKind::Denied, "ask for the credentials");
            return Err(Failure::Odd(denied));
        };
        Ok(Arc::new(endpoint?))
    }

    fn has(&self, connections: &Arc<Connections>) -> bool {
        self.state.lock().has(connections)
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
        match shared.connections().await {
            Ok((all, leads_to)) => {
                tracing::debug!(server = ?shared.endpoint, "connected");
                let connections = Arc::new(Connections {
                    all,
                    since: shared.clock.elapsed(),
                    are_scripts_denied: AtomicBool::new(false),
                    lanes: Lanes::default(),
                });
                shared.set(State::Up(Arc::clone(&connections)));
                if let Some(node) = leads_to {
                    let watching = watch(Arc::downgrade(&shared), connections, node);
                    shared.thread.handle.spawn(watching);
                }
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

/// Replaces connections to a server that is no longer the one that the sentinels name.
async fn watch(shared: Weak<Shared>, connections: Arc<Connections>, node: Node) {
    let Some(endpoint) = shared.upgrade().map(|shared| Arc::clone(&shared.endpoint)) else {
        return;
    };
    let Endpoint::Sentinels(sentinels) = &*endpoint else { return };
    let is_over = || !shared.upgrade().is_some_and(|shared| shared.has(&connections));
    sentinels.wait_for_another(&node, is_over).await;
    if let Some(shared) = shared.upgrade() {
        shared.replace(&connections);
    }
}
