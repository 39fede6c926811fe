//! The servers of a run, and what went over their wires.

use anyhow::{Context as _, Result};
use terrace_test::rig::{Cluster, RedisServer};

/// One server, or the primaries of a cluster.
pub(super) enum Servers {
    One(RedisServer),
    Cluster(Cluster),
}

/// Bytes that servers have received and sent, and how many of them asking for it costs.
#[derive(Clone, Copy)]
pub(super) struct Bytes {
    all: u64,
    asking: u64,
}

impl Servers {
    pub(super) async fn one() -> Result<Self> {
        Ok(Self::One(RedisServer::start().await.context("no server")?))
    }

    pub(super) async fn cluster() -> Result<Self> {
        let cluster = Cluster::builder().primaries(3).replicas(0).start().await;
        Ok(Self::Cluster(cluster.context("no cluster")?))
    }

    pub(super) fn urls(&self) -> Vec<String> {
        self.all().into_iter().map(RedisServer::url).collect()
    }

    fn all(&self) -> Vec<&RedisServer> {
        match self {
            Self::One(server) => vec![server],
            Self::Cluster(cluster) => cluster.nodes(),
        }
    }

    /// What there was so far.
    pub(super) async fn bytes(&self) -> Result<Bytes> {
        let first = self.counted().await?;
        let all = self.counted().await?;
        Ok(Bytes { all, asking: all.saturating_sub(first) })
    }

    /// What there was since then.
    pub(super) async fn bytes_since(&self, before: Bytes) -> Result<f64> {
        let all = self.counted().await?;
        Ok(all.saturating_sub(before.all).saturating_sub(before.asking) as f64)
    }

    async fn counted(&self) -> Result<u64> {
        let mut sum = 0;
        for server in self.all() {
            for field in ["total_net_input_bytes", "total_net_output_bytes"] {
                let found = server.info(field).await?.context("a server does not count bytes")?;
                sum += found.parse::<u64>()?;
            }
        }
        Ok(sum)
    }
}
