//! A **cluster**: primaries that share the slots among them, and a replica of each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::node::{Node, node_of};
use super::server::{Kind, RIG_PASSWORD, RIG_USER};
use super::{ChaosProxy, RedisServer, RedisServerBuilder, RigError, wait_for, wait_until};

/// Longer than a failover takes that has to be tried twice.
const PATIENCE: Duration = Duration::from_secs(30);

/// Slots of a cluster.
const SLOTS: u16 = 16_384;

/// Keys that move in one step.
const KEYS_A_STEP: &str = "100";

/// A real cluster: three primaries with a replica each, unless its builder says otherwise.
///
/// Each node can be paused, killed and restarted by itself.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use terrace_test::rig::{Cluster, Connection};
///
/// let cluster = Cluster::builder().primaries(2).replicas(0).start().await?;
/// let slot = cluster.slot_of("key").await?;
/// let owner = cluster.primary_of(slot).await?;
/// let other = cluster.primary_of(if slot < 8_192 { 16_383 } else { 0 }).await?;
/// assert_eq!(owner.command(["SET", "key", "value"]).await?, "OK");
///
/// cluster.move_slot(slot, other).await?;
/// assert_eq!(other.command(["GET", "key"]).await?, "value");
/// assert!(owner.command(["GET", "key"]).await?.error().unwrap().starts_with("MOVED"));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    /// What the nodes call each other, in the order of the nodes.
    ids: Vec<String>,
}

/// What a cluster is to be like; made by [`Cluster::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ClusterBuilder {
    server: RedisServerBuilder,
    primaries: usize,
    replicas: usize,
    node_timeout: Duration,
    behind_proxies: bool,
}

impl ClusterBuilder {
    /// How many primaries share the slots. With less than three, none can be replaced when
    /// it dies.
    pub fn primaries(mut self, primaries: usize) -> Self {
        self.primaries = primaries.max(1);
        self
    }

    /// How many replicas each primary has.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// A node that is silent for so long is down. 1 s unless said otherwise.
    pub fn node_timeout(mut self, node_timeout: Duration) -> Self {
        self.node_timeout = node_timeout;
        self
    }

    /// A [`ChaosProxy`] stands before each node, and everybody knows the nodes by the
    /// addresses of their proxies. What the nodes tell each other on their own bus does
    /// not go through them: a fault is one between clients and nodes, or between primary
    /// and replica.
    pub fn behind_proxies(mut self) -> Self {
        self.behind_proxies = true;
        self
    }

    /// A line in the configuration of every node.
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
        self.server = self.server.valkey();
        self
    }

    /// Clients have to show a password.
    pub fn password(mut self, password: &str) -> Self {
        self.server = self.server.password(password);
        self
    }

    /// Starts all nodes, gives out the slots, and waits until all agree on them.
    ///
    /// # Errors
    /// A node does not start, or they do not find each other.
    pub async fn start(self) -> Result<Cluster, RigError> {
        let server = self
            .server
            .config("cluster-node-timeout", self.node_timeout.as_millis().to_string())
            // A replica may take over however long ago it heard of its primary, and stays
            // with it: who replicates whom is for the test to say.
            .config("cluster-replica-validity-factor", "0")
            .config("cluster-allow-replica-migration", "no");
        let announce = |node: &Node| {
            let lines = [
                ("cluster-announce-ip", "127.0.0.1".to_owned()),
                ("cluster-announce-port", node.port().to_string()),
                ("cluster-announce-bus-port", node.server.bus_port().to_string()),
            ];
            lines.map(|(name, value)| (name.to_owned(), value)).to_vec()
        };
        let mut cluster = Cluster { nodes: Vec::new(), ids: Vec::new() };
        for _ in 0..self.primaries * (1 + self.replicas) {
            let node = Node::start(&server, self.behind_proxies, &announce).await?;
            let id = node.server.expect(["CLUSTER", "MYID"]).await?;
            cluster.ids.push(id.text().unwrap_or_default().into_owned());
            cluster.nodes.push(node);
        }
        cluster.form(self.primaries).await?;
        cluster.wait_until_ok().await?;
        Ok(cluster)
    }
}

impl Cluster {
    /// Three primaries, and a replica of each.
    ///
    /// # Errors
    /// A node does not start, or they do not find each other.
    pub async fn start() -> Result<Self, RigError> {
        Self::builder().start().await
    }

    /// Says first what the cluster is to be like.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder {
            server: RedisServerBuilder::new(Kind::Node),
            primaries: 3,
            replicas: 1,
            node_timeout: Duration::from_secs(1),
            behind_proxies: false,
        }
    }

    /// All nodes; those come first that were primaries at the start.
    #[must_use]
    pub fn nodes(&self) -> Vec<&RedisServer> {
        self.nodes.iter().map(|node| &node.server).collect()
    }

    /// Where clients reach the nodes, in the order of the nodes.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(Node::address).collect()
    }

    /// The proxy before a node, with [`ClusterBuilder::behind_proxies`].
    #[must_use]
    pub fn proxy_of(&self, server: &RedisServer) -> Option<&ChaosProxy> {
        node_of(&self.nodes, server)?.proxy.as_ref()
    }

    /// The slot that a key is in.
    ///
    /// # Errors
    /// No node runs.
    pub async fn slot_of(&self, key: &str) -> Result<u16, RigError> {
        let Some(node) = self.nodes().into_iter().find(|node| node.is_running()) else {
            return Err(RigError::NotRunning { what: "every node".to_owned() });
        };
        let slot = node.expect(["CLUSTER", "KEYSLOT", key]).await?.integer();
        Ok(slot.and_then(|slot| u16::try_from(slot).ok()).unwrap_or_default())
    }

    /// The primary of a slot, as those nodes say that run. It need not run itself.
    ///
    /// # Errors
    /// Nobody has the slot, or no node runs.
    pub async fn primary_of(&self, slot: u16) -> Result<&RedisServer, RigError> {
        // A primary that was replaced may still think that it is one: the later claim counts.
        let mut latest = None;
        for node in self.nodes().into_iter().filter(|node| node.is_running()) {
            let view = self.view_of(node).await?;
            let claim = view.values().find(|seen| seen.has(slot));
            latest = latest.max(claim.map(|seen| (seen.epoch, seen.index)));
        }
        let owner = latest.and_then(|(_, index)| self.nodes.get(index));
        let owner = owner.map(|node| &node.server);
        owner.ok_or_else(|| RigError::NotRunning { what: format!("the primary of slot {slot}") })
    }

    /// Kills the primary of a slot, and says which one it was.
    ///
    /// # Errors
    /// Nobody has the slot, or its primary does not run.
    pub async fn kill_primary_of(&self, slot: u16) -> Result<&RedisServer, RigError> {
        let primary = self.primary_of(slot).await?;
        primary.kill()?;
        Ok(primary)
    }

    /// Moves a slot with its keys to another primary, and waits until all nodes know.
    ///
    /// # Errors
    /// A node refuses a step, or does not run.
    pub async fn move_slot(&self, slot: u16, to: &RedisServer) -> Result<(), RigError> {
        self.begin_move(slot, to).await?;
        self.finish_move(slot, to).await
    }

    /// Begins to move a slot and leaves all keys where they are. Until
    /// [`finish_move`](Self::finish_move), the old primary answers `-ASK` for keys that it
    /// does not have, and `-TRYAGAIN` for several of which it has only some.
    ///
    /// # Errors
    /// A node refuses a step, or does not run.
    pub async fn begin_move(&self, slot: u16, to: &RedisServer) -> Result<(), RigError> {
        let from = self.primary_of(slot).await?;
        let number = slot.to_string();
        to.expect(["CLUSTER", "SETSLOT", &number, "IMPORTING", self.id_of(from)]).await?;
        from.expect(["CLUSTER", "SETSLOT", &number, "MIGRATING", self.id_of(to)]).await?;
        Ok(())
    }

    /// Moves one key of a slot that is [being moved](Self::begin_move).
    ///
    /// # Errors
    /// A node refuses a step, or does not run.
    pub async fn move_key(&self, key: &str, to: &RedisServer) -> Result<(), RigError> {
        let from = self.primary_of(self.slot_of(key).await?).await?;
        self.migrate(from, to, &[key.as_bytes().to_vec()]).await
    }

    /// Moves all keys of a slot that is [being moved](Self::begin_move), gives the slot to
    /// its new primary, and waits until all nodes know.
    ///
    /// # Errors
    /// A node refuses a step, or does not run.
    pub async fn finish_move(&self, slot: u16, to: &RedisServer) -> Result<(), RigError> {
        let from = self.primary_of(slot).await?;
        let number = slot.to_string();
        loop {
            let keys = from.expect(["CLUSTER", "GETKEYSINSLOT", &number, KEYS_A_STEP]).await?;
            let keys: Vec<_> = keys.items().into_iter().filter_map(|key| key.bytes()).collect();
            if keys.is_empty() {
                break;
            }
            self.migrate(from, to, &keys).await?;
        }
        // The new one first: a slot must not be without a primary.
        for node in [to, from] {
            node.expect(["CLUSTER", "SETSLOT", &number, "NODE", self.id_of(to)]).await?;
        }
        self.wait_until_ok().await
    }

    /// Waits until all nodes that run say that the cluster is well, agree on who has which
    /// slot, and until all of these primaries run and their replicas that run have a link
    /// to them.
    ///
    /// # Errors
    /// That is not so within half a minute.
    pub async fn wait_until_ok(&self) -> Result<(), RigError> {
        wait_for("a cluster that is well", PATIENCE, async || {
            self.find_missing().await.map_or(Ok(()), Err)
        })
        .await
    }

    /// Makes one cluster of nodes that know nothing of each other.
    async fn form(&self, primaries: usize) -> Result<(), RigError> {
        let share = usize::from(SLOTS).div_ceil(primaries);
        for (index, node) in self.nodes.iter().enumerate() {
            let epoch = (index + 1).to_string();
            // Nobody may know anybody for that.
            node.server.expect(["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await?;
            if index < primaries {
                let first = (index * share).to_string();
                let last = ((index + 1) * share).min(usize::from(SLOTS)) - 1;
                let last = last.to_string();
                node.server.expect(["CLUSTER", "ADDSLOTSRANGE", &first, &last]).await?;
            }
        }
        for (index, node) in self.nodes.iter().enumerate() {
            // All of them meet, because word of mouth takes longer.
            for other in self.nodes.iter().skip(index + 1) {
                let (port, bus) = (other.port().to_string(), other.server.bus_port().to_string());
                node.server.expect(["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).await?;
            }
        }
        for (index, node) in self.nodes.iter().enumerate().skip(primaries) {
            let primary = self.ids.get(index % primaries).map_or("", String::as_str);
            let what = format!("{} to know its primary", node.server.name());
            wait_until(what, PATIENCE, async || {
                let reply = node.server.command(["CLUSTER", "REPLICATE", primary]).await;
                reply.is_ok_and(|reply| reply == "OK")
            })
            .await?;
        }
        Ok(())
    }

    async fn migrate(
        &self,
        from: &RedisServer,
        to: &RedisServer,
        keys: &[Vec<u8>],
    ) -> Result<(), RigError> {
        let port = to.port().to_string();
        let mut command: Vec<&[u8]> = vec![b"MIGRATE", b"127.0.0.1", port.as_bytes()];
        command.extend([b"".as_slice(), b"0", b"5000"]);
        if to.has_rig_user() {
            command.extend([b"AUTH2".as_slice(), RIG_USER.as_bytes(), RIG_PASSWORD.as_bytes()]);
        }
        command.push(b"KEYS");
        command.extend(keys.iter().map(Vec::as_slice));
        from.expect(command).await.map(|_| ())
    }

    fn id_of(&self, server: &RedisServer) -> &str {
        let index = self.nodes.iter().position(|node| node.server.port() == server.port());
        index.and_then(|index| self.ids.get(index)).map_or("", String::as_str)
    }

    /// What a node knows of all nodes, by their ids.
    async fn view_of(&self, node: &RedisServer) -> Result<BTreeMap<String, Seen>, RigError> {
        let reply = node.expect(["CLUSTER", "NODES"]).await?;
        let text = reply.text().unwrap_or_default();
        let seen = text.lines().filter_map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            let id = (*words.first()?).to_owned();
            let index = self.ids.iter().position(|other| *other == id)?;
            let flags: Vec<_> = words.get(2)?.split(',').collect();
            // Slots in brackets are on the move and still belong to their old primary.
            let slots = words.iter().skip(8).filter(|slots| !slots.starts_with('['));
            let seen = Seen {
                index,
                is_primary: flags.contains(&"master"),
                epoch: words.get(6)?.parse().ok()?,
                slots: slots.map(|slots| (*slots).to_owned()).collect(),
            };
            Some((id, seen))
        });
        Ok(seen.collect())
    }

    /// What is not yet as it has to be, in words.
    async fn find_missing(&self) -> Option<String> {
        let mut agreed: Option<Vec<(usize, Vec<String>)>> = None;
        for node in self.nodes().into_iter().filter(|node| node.is_running()) {
            let name = node.name();
            let Ok(info) = node.expect(["CLUSTER", "INFO"]).await else {
                return Some(format!("{name} does not answer"));
            };
            let info = info.text().unwrap_or_default();
            let has = |line: &str| info.lines().any(|other| other == line);
            if !has("cluster_state:ok") || !has(&format!("cluster_slots_ok:{SLOTS}")) {
                return Some(format!("{name} says that the cluster is down"));
            }
            let Ok(view) = self.view_of(node).await else {
                return Some(format!("{name} does not answer"));
            };
            if view.len() < self.nodes.len() {
                return Some(format!("{name} does not know all nodes"));
            }
            let owners = view.values().filter(|seen| seen.is_primary && !seen.slots.is_empty());
            let owners: Vec<_> = owners.map(|seen| (seen.index, seen.slots.clone())).collect();
            let is_away =
                |index: &usize| self.nodes.get(*index).is_some_and(|n| !n.server.is_running());
            if let Some((index, _)) = owners.iter().find(|(index, _)| is_away(index)) {
                return Some(format!("{name} counts on node {index}, which does not run"));
            }
            if agreed.as_ref().is_some_and(|agreed| *agreed != owners) {
                return Some(format!("{name} sees other primaries than the others do"));
            }
            let own = self.id_of(node);
            let is_owner = view.get(own).is_some_and(|seen| seen.is_primary);
            let link = node.info("master_link_status").await.ok().flatten();
            if !is_owner && link.as_deref() != Some("up") {
                return Some(format!("{name} has no link to its primary"));
            }
            agreed = Some(owners);
        }
        agreed.is_none().then(|| "no node runs".to_owned())
    }
}

/// What one node knows of another one.
#[derive(Debug)]
struct Seen {
    index: usize,
    is_primary: bool,
    epoch: u64,
    /// As ranges: `0-5460`.
    slots: Vec<String>,
}

impl Seen {
    fn has(&self, slot: u16) -> bool {
        self.slots.iter().any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse::<u16>(), last.parse::<u16>());
            first.is_ok_and(|first| first <= slot) && last.is_ok_and(|last| slot <= last)
        })
    }
}
