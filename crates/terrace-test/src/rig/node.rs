//! A **node**: one server of several, and the network before it if there is one.

use std::net::SocketAddr;

use super::server::Until;
use super::{ChaosProxy, RedisServer, RedisServerBuilder, RigError};

/// A port that was free may be taken by the time at which a server wants it.
const ATTEMPTS: usize = 5;

/// What a node has to be configured with besides, once its ports are known.
pub(super) type Announce<'a> = &'a (dyn Fn(&Node) -> Vec<(String, String)> + Sync);

#[derive(Debug)]
pub(super) struct Node {
    pub(super) server: RedisServer,
    pub(super) proxy: Option<ChaosProxy>,
}

impl Node {
    pub(super) async fn start(
        builder: &RedisServerBuilder,
        behind_proxy: bool,
        announce: Announce<'_>,
    ) -> Result<Self, RigError> {
        let mut attempt = 1;
        loop {
            let server = RedisServer::prepare(builder.clone())?;
            let mut node = Self { server, proxy: None };
            if behind_proxy {
                node.proxy = Some(ChaosProxy::before(node.server.address()).await?);
            }
            node.server.write_config(&announce(&node))?;
            match node.server.launch(Until::Ready).await {
                Err(RigError::DidNotStart { log, .. })
                    if attempt < ATTEMPTS && log.contains("Address already in use") =>
                {
                    attempt += 1;
                }
                result => return result.map(|()| node),
            }
        }
    }

    /// Where everybody else reaches it.
    pub(super) fn address(&self) -> SocketAddr {
        self.proxy.as_ref().map_or(self.server.address(), ChaosProxy::address)
    }

    pub(super) fn port(&self) -> u16 {
        self.address().port()
    }
}

/// The node that a server is.
pub(super) fn node_of<'a>(nodes: &'a [Node], server: &RedisServer) -> Option<&'a Node> {
    nodes.iter().find(|node| node.server.port() == server.port())
}
