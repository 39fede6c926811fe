//! A **sentinel set**: a primary, its replicas, and the sentinels that watch them and
//! promote a replica when the primary is gone.

use std::net::SocketAddr;
use std::time::Duration;

use super::node::{Node, node_of};
use super::server::{Kind, RIG_PASSWORD, RIG_USER};
use super::{ChaosProxy, RedisServer, RedisServerBuilder, Reply, RigError, wait_for};

/// Under which name the sentinels know the primary.
const NAME: &str = "terrace";

/// Longer than a failover takes that has to be tried twice.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often sentinels do what they do every second or every ten, in milliseconds. Older ones
/// cannot be told, and then everything takes longer.
///
/// The pings are a compromise. Servers end all connections when they are promoted, and a
/// sentinel connects again after one such period at the soonest: with a longer one, the new
/// primary soon counts as down. A replica that was not heard of for five of them cannot be
/// promoted: with a shorter one, there may be none.
const PERIODS: [(&str, &str); 4] = [
    ("info-period", "100"),
    ("ask-period", "100"),
    ("publish-period", "100"),
    ("ping-period", "400"),
];

/// A sentinel that takes longer to answer is not asked.
const SENTINEL_DEADLINE: Duration = Duration::from_millis(500);

/// Replicas of one primary, and sentinels that choose another one when it is gone.
///
/// One primary, two replicas and three sentinels, two of which have to agree, unless its
/// builder says otherwise. Each server can be paused, killed and restarted by itself.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use terrace_test::rig::Sentinel;
///
/// let set = Sentinel::start().await?;
/// let old = set.kill_primary().await?;
/// let new = set.wait_for_new_primary(old).await?;
/// assert_eq!(new.command(["SET", "key", "value"]).await?, "OK");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Sentinel {
    nodes: Vec<Node>,
    sentinels: Vec<RedisServer>,
}

/// What a set is to be like; made by [`Sentinel::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct SentinelBuilder {
    server: RedisServerBuilder,
    sentinel: RedisServerBuilder,
    replicas: usize,
    down_after: Duration,
    behind_proxies: bool,
}

impl SentinelBuilder {
    /// How many replicas there are.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// A server that is silent for so long is down for a sentinel. 1 s unless said otherwise;
    /// with less, a busy machine makes sentinels replace a primary that is well.
    pub fn down_after(mut self, down_after: Duration) -> Self {
        self.down_after = down_after;
        self
    }

    /// A [`ChaosProxy`] stands before the primary and each replica, and everybody knows
    /// them by the addresses of their proxies: clients, sentinels, and each other.
    pub fn behind_proxies(mut self) -> Self {
        self.behind_proxies = true;
        self
    }

    /// A line in the configuration of the primary and of the replicas.
    pub fn config(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.server = self.server.config(name, value);
        self
    }

    /// No client may run scripts: see
    /// [`RedisServerBuilder::without_scripts`](super::RedisServerBuilder::without_scripts).
    pub fn without_scripts(mut self) -> Self {
        self.server = self.server.without_scripts();
        self
    }

    /// Valkey in place of Redis.
    pub fn valkey(mut self) -> Self {
        (self.server, self.sentinel) = (self.server.valkey(), self.sentinel.valkey());
        self
    }

    /// Clients of the primary and of the replicas have to show a password, those of the
    /// sentinels have not.
    pub fn password(mut self, password: &str) -> Self {
        self.server = self.server.password(password);
        self
    }

    /// Starts all of it, and waits until the replicas are in sync and all sentinels know it.
    ///
    /// # Errors
    /// A server does not start, or they do not find each other.
    pub async fn start(self) -> Result<Sentinel, RigError> {
        let mut nodes: Vec<Node> = Vec::new();
        for _ in 0..=self.replicas {
            let primary = nodes.first().map(Node::port);
            let announce = |node: &Node| {
                let mut lines = vec![("replica-announce-ip".to_owned(), "127.0.0.1".to_owned())];
                lines.push(("replica-announce-port".to_owned(), node.port().to_string()));
                lines.extend(primary.map(|p| ("replicaof".to_owned(), format!("127.0.0.1 {p}"))));
                lines
            };
            nodes.push(Node::start(&self.server, self.behind_proxies, &announce).await?);
        }
        let mut sentinel = self.sentinel;
        let primary = nodes.first().map_or(0, Node::port);
        let down_after = self.down_after.as_millis();
        let lines = [
            format!("monitor {NAME} 127.0.0.1 {primary} 2"),
            format!("down-after-milliseconds {NAME} {down_after}"),
            // A failover that failed is tried again after twice this time.
            format!("failover-timeout {NAME} 3000"),
            format!("parallel-syncs {NAME} 2"),
        ];
        for line in lines {
            sentinel = sentinel.config("sentinel", line);
        }
        if self.server.has_rig_user() {
            for line in
                [format!("auth-user {NAME} {RIG_USER}"), format!("auth-pass {NAME} {RIG_PASSWORD}")]
            {
                sentinel = sentinel.config("sentinel", line);
            }
        }
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            let started = sentinel.clone().start().await?;
            for (period, milliseconds) in PERIODS {
                started.command(["SENTINEL", "DEBUG", period, milliseconds]).await?;
            }
            sentinels.push(started);
        }
        let set = Sentinel { nodes, sentinels };
        set.wait_until_ok().await?;
        Ok(set)
    }
}

impl Sentinel {
    /// One primary, two replicas, three sentinels.
    ///
    /// # Errors
    /// A server does not start, or they do not find each other.
    pub async fn start() -> Result<Self, RigError> {
        Self::builder().start().await
    }

    /// Says first what the set is to be like.
    pub fn builder() -> SentinelBuilder {
        SentinelBuilder {
            server: RedisServerBuilder::new(Kind::Data),
            sentinel: RedisServerBuilder::new(Kind::Sentinel),
            replicas: 2,
            down_after: Duration::from_secs(1),
            behind_proxies: false,
        }
    }

    /// Under which name the sentinels know the primary.
    #[must_use]
    pub fn name(&self) -> &str {
        NAME
    }

    /// Where clients ask who the primary is.
    #[must_use]
    pub fn sentinel_addresses(&self) -> Vec<SocketAddr> {
        self.sentinels.iter().map(RedisServer::address).collect()
    }

    /// The sentinels. One that was restarted looks round every ten seconds, as they do
    /// outside of tests.
    #[must_use]
    pub fn sentinels(&self) -> &[RedisServer] {
        &self.sentinels
    }

    /// The primary and the replicas; the first was the primary at the start.
    #[must_use]
    pub fn servers(&self) -> Vec<&RedisServer> {
        self.nodes.iter().map(|node| &node.server).collect()
    }

    /// The proxy before a server, with [`SentinelBuilder::behind_proxies`].
    #[must_use]
    pub fn proxy_of(&self, server: &RedisServer) -> Option<&ChaosProxy> {
        node_of(&self.nodes, server)?.proxy.as_ref()
    }

    /// The primary, as the first sentinel knows it that answers.
    ///
    /// # Errors
    /// No sentinel answers.
    pub async fn primary(&self) -> Result<&RedisServer, RigError> {
        for sentinel in &self.sentinels {
            if let Some(primary) = self.primary_as_known_to(sentinel).await {
                return Ok(primary);
            }
        }
        Err(RigError::NotRunning { what: "every sentinel".to_owned() })
    }

    /// Kills the primary, and says which one it was.
    ///
    /// # Errors
    /// No sentinel answers, or the primary does not run.
    pub async fn kill_primary(&self) -> Result<&RedisServer, RigError> {
        let primary = self.primary().await?;
        primary.kill()?;
        Ok(primary)
    }

    /// Waits until all sentinels that run know another primary than `old`, and until that
    /// one says so itself.
    ///
    /// # Errors
    /// There is none within half a minute.
    pub async fn wait_for_new_primary(&self, old: &RedisServer) -> Result<&RedisServer, RigError> {
        let what = format!("another primary than {}", old.name());
        wait_for(what, PATIENCE, async || {
            let new = self.primary_as_known_to_all().await.filter(|new| new.port() != old.port());
            new.ok_or_else(|| {
                let logs = self.sentinels.iter().map(RedisServer::log_tail);
                format!("the sentinels say:\n{}", logs.collect::<String>())
            })
        })
        .await
    }

    /// Waits until the replicas that run are in sync with the primary, and until all
    /// sentinels that run know them and each other.
    ///
    /// # Errors
    /// That is not so within half a minute.
    pub async fn wait_until_ok(&self) -> Result<(), RigError> {
        wait_for("replicas and sentinels to find each other", PATIENCE, async || {
            self.find_missing().await.map_or(Ok(()), Err)
        })
        .await
    }

    async fn primary_as_known_to(&self, sentinel: &RedisServer) -> Option<&RedisServer> {
        let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME];
        let reply = ask(sentinel, &question).await?;
        let port = reply.items().get(1)?.integer()?;
        let node = self.nodes.iter().find(|node| i64::from(node.port()) == port)?;
        Some(&node.server)
    }

    async fn primary_as_known_to_all(&self) -> Option<&RedisServer> {
        let mut known = None;
        for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.is_running()) {
            let primary = self.primary_as_known_to(sentinel).await?;
            if known.is_some_and(|known: &RedisServer| known.port() != primary.port()) {
                return None;
            }
            known = Some(primary);
        }
        let role = ask(known?, &["ROLE"]).await?;
        known.filter(|_| role.items().first().is_some_and(|role| **role == "master"))
    }

    /// What is not yet as it has to be, in words.
    async fn find_missing(&self) -> Option<String> {
        let Some(primary) = self.primary_as_known_to_all().await else {
            return Some("the sentinels know no primary, or not the same one".to_owned());
        };
        let replicas = self.nodes.iter().map(|node| &node.server);
        let replicas = replicas.filter(|s| s.is_running() && s.port() != primary.port());
        let mut count = 0;
        for replica in replicas {
            count += 1;
            let (link, offset) = ("master_link_status", "master_repl_offset");
            if replica.info(link).await.ok().flatten().as_deref() != Some("up") {
                return Some(format!("{} has no link to the primary", replica.name()));
            }
            // What the primary has now, the replica will have in a moment.
            let [Ok(Some(theirs)), Ok(Some(its))] =
                [primary.info(offset).await, replica.info(offset).await]
            else {
                return Some(format!("{} is not in sync", replica.name()));
            };
            let (theirs, its) = (theirs.parse::<i64>(), its.parse::<i64>());
            if its.ok() < theirs.ok() {
                return Some(format!("{} is behind", replica.name()));
            }
        }
        let sentinels = self.sentinels.iter().filter(|sentinel| sentinel.is_running());
        for sentinel in sentinels {
            let Some(known) = ask(sentinel, &["SENTINEL", "REPLICAS", NAME]).await else {
                return Some(format!("{} does not answer", sentinel.name()));
            };
            let is_well = |replica: &&Reply| {
                let link = replica.field("master-link-status");
                let flags = replica.field("flags");
                flags.as_deref() == Some("slave") && link.as_deref() == Some("ok")
            };
            if known.items().into_iter().filter(is_well).count() < count {
                return Some(format!("{} does not know all replicas", sentinel.name()));
            }
            let Some(quorum) = ask(sentinel, &["SENTINEL", "CKQUORUM", NAME]).await else {
                return Some(format!("{} does not answer", sentinel.name()));
            };
            if let Some(error) = quorum.error() {
                return Some(format!("{} says: {error}", sentinel.name()));
            }
            let others = ask(sentinel, &["SENTINEL", "SENTINELS", NAME]).await;
            let others = others.map_or(0, |others| others.items().len());
            if others + 1 < self.sentinels.len() {
                return Some(format!("{} does not know all sentinels", sentinel.name()));
            }
        }
        None
    }
}

/// What a server answers that may be away, or may not answer.
async fn ask(server: &RedisServer, question: &[&str]) -> Option<Reply> {
    tokio::time::timeout(SENTINEL_DEADLINE, server.command(question)).await.ok()?.ok()
}
