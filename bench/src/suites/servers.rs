//! The servers of a run, and what went over their wires.

use anyhow::{Context as _, Result};
use terrace_test::rig::{Cluster, RedisServer};

/// One server, or the primaries of a cluster.
pub(in crate::suites) enum Servers {
    One(RedisServer),
    Cluster(Cluster),
}

/// Bytes that servers have received and sent, and how many of them asking for it costs.
#[derive(Clone, Copy)]
pub(in crate::suites) struct Bytes {
    all: u64,
    asking: u64,
}

/// How often servers were sent something.
#[derive(Clone, Copy)]
pub(in crate::suites) struct Exchanges {
    all: i64,
    asking: i64,
}

impl Servers {
    pub(in crate::suites) async fn one() -> Result<Self> {
        Ok(Self::One(RedisServer::start().await.context("no server")?))
    }

    pub(in crate::suites) async fn cluster() -> Result<Self> {
        let cluster = Cluster::builder().primaries(3).replicas(0).start().await;
        Ok(Self::Cluster(cluster.context("no cluster")?))
    }

    pub(in crate::suites) fn urls(&self) -> Vec<String> {
        self.all().into_iter().map(RedisServer::url).collect()
    }

    fn all(&self) -> Vec<&RedisServer> {
        match self {
            Self::One(server) => vec![server],
            Self::Cluster(cluster) => cluster.nodes(),
        }
    }

    /// Has them hold nothing.
    pub(in crate::suites) async fn empty(&self) -> Result<()> {
        for server in self.all() {
            server.expect(["FLUSHALL"]).await?;
        }
        Ok(())
    }

    /// What there was so far.
    pub(in crate::suites) async fn bytes(&self) -> Result<Bytes> {
        let first = self.counted().await?;
        let all = self.counted().await?;
        Ok(Bytes { all, asking: all.saturating_sub(first) })
    }

    /// What there was since then.
    pub(in crate::suites) async fn bytes_since(&self, before: Bytes) -> Result<f64> {
        let all = self.counted().await?;
        Ok(all.saturating_sub(before.all).saturating_sub(before.asking) as f64)
    }

    /// How often servers have been sent something so far, beside the questions of those who follow
    /// a ledger, and how much of that asking for it costs.
    pub(in crate::suites) async fn exchanges(&self) -> Result<Exchanges> {
        let first = self.asked().await?;
        let all = self.asked().await?;
        Ok(Exchanges { all, asking: all - first })
    }

    /// How often that was since then.
    pub(in crate::suites) async fn exchanges_since(&self, before: Exchanges) -> Result<f64> {
        let all = self.asked().await?;
        Ok((all - before.all - before.asking).max(0) as f64)
    }

    async fn asked(&self) -> Result<i64> {
        let mut sum = 0;
        for server in self.all() {
            let reads = server.info("total_reads_processed").await?;
            sum += reads.context("a server does not count what it reads")?.parse::<i64>()?;
            // `calls=12,usec=34,…`
            let followed = server.info("cmdstat_xread").await?.unwrap_or_default();
            let calls = followed.split(['=', ',']).nth(1);
            sum -= calls.map_or(Ok(0), str::parse::<i64>)?;
        }
        Ok(sum)
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
