//! The client of Redis without anything around it: the connection that callers share, as it comes.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, Cmd, IntoConnectionInfo as _, Pipeline, PushInfo};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{Following, Invalidating, Remote};
use crate::versions;

const HOUR_MILLIS: u64 = 3_600_000;

/// Where invalidations are published.
const CHANNEL: &str = "bare:invalidated";

/// One connection to a server.
#[derive(Clone)]
pub struct BareRedis(MultiplexedConnection);

impl BareRedis {
    pub async fn at(url: &str) -> Result<Self> {
        Ok(Self(connect(url, AsyncConnectionConfig::new()).await?))
    }

    /// Stores many values.
    pub async fn fill(&self, entries: &[(String, Bytes)]) -> Result<()> {
        for some in entries.chunks(1000) {
            let mut pipeline = Pipeline::with_capacity(some.len());
            for (key, value) in some {
                pipeline.add_command(set(key, value)).ignore();
            }
            pipeline.exec_async(&mut self.0.clone()).await?;
        }
        Ok(())
    }
}

async fn connect(url: &str, config: AsyncConnectionConfig) -> Result<MultiplexedConnection> {
    let info = url.into_connection_info()?;
    let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    Ok(Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await?)
}

fn name(key: &str) -> String {
    format!("bare:{key}")
}

fn get(key: &str) -> Cmd {
    let mut command = Cmd::new();
    command.arg("GET").arg(name(key));
    command
}

fn set(key: &str, value: &[u8]) -> Cmd {
    let mut command = Cmd::new();
    command.arg("SET").arg(name(key)).arg(value).arg("PX").arg(HOUR_MILLIS);
    command
}

impl Remote for BareRedis {
    const NAME: &'static str = "bare-client";

    fn version() -> &'static str {
        versions::of("redis")
    }

    async fn get<T>(&self, key: &str, look: impl FnOnce(&[u8]) -> T + Send) -> Result<Option<T>> {
        let value: Option<Bytes> = get(key).query_async(&mut self.0.clone()).await?;
        Ok(value.map(|value| look(&value)))
    }

    async fn set(&self, key: &str, value: &Bytes) -> Result<()> {
        Ok(set(key, value).exec_async(&mut self.0.clone()).await?)
    }

    async fn get_many(
        &self,
        keys: &[&str],
        mut look: impl FnMut(usize, &[u8]) + Send,
    ) -> Result<()> {
        let mut pipeline = Pipeline::with_capacity(keys.len());
        for key in keys {
            pipeline.add_command(get(key));
        }
        let values: Vec<Option<Bytes>> = pipeline.query_async(&mut self.0.clone()).await?;
        for (index, value) in values.iter().enumerate() {
            value.iter().for_each(|value| look(index, value));
        }
        Ok(())
    }
}

/// The connections to all nodes of a cluster.
#[derive(Clone)]
pub struct BareCluster(ClusterConnection);

impl BareCluster {
    pub async fn at(urls: &[String]) -> Result<Self> {
        let client = ClusterClient::builder(urls.to_vec())
            .tcp_settings(TcpSettings::default().set_nodelay(true))
            .connection_timeout(Duration::from_secs(5))
            .build()?;
        Ok(Self(client.get_async_connection().await?))
    }

    /// Stores many values.
    pub async fn fill(&self, entries: &[(String, Bytes)]) -> Result<()> {
        for (key, value) in entries {
            self.set(key, value).await?;
        }
        Ok(())
    }
}

impl Remote for BareCluster {
    const NAME: &'static str = BareRedis::NAME;

    fn version() -> &'static str {
        BareRedis::version()
    }

    async fn get<T>(&self, key: &str, look: impl FnOnce(&[u8]) -> T + Send) -> Result<Option<T>> {
        let value: Option<Bytes> = get(key).query_async(&mut self.0.clone()).await?;
        Ok(value.map(|value| look(&value)))
    }

    async fn set(&self, key: &str, value: &Bytes) -> Result<()> {
        Ok(set(key, value).exec_async(&mut self.0.clone()).await?)
    }

    async fn get_many(&self, _: &[&str], _: impl FnMut(usize, &[u8]) + Send) -> Result<()> {
        bail!("the client's pipelines stay in one slot")
    }
}

/// What one would write without a library: whoever changes something publishes its key, and all
/// others are subscribed. Nobody notices what is lost.
pub struct BareChannel {
    publisher: MultiplexedConnection,
    followers: Vec<Subscriber>,
}

struct Subscriber {
    /// Subscribed for as long as it is kept.
    _connection: MultiplexedConnection,
    pushed: UnboundedReceiver<PushInfo>,
    heard: HashSet<String>,
}

impl Subscriber {
    async fn at(url: &str) -> Result<Self> {
        let (sender, mut pushed) = unbounded_channel();
        let config = AsyncConnectionConfig::new().set_push_sender(sender);
        let mut connection = connect(&format!("{url}?protocol=resp3"), config).await?;
        connection.subscribe(CHANNEL).await?;
        // That it is subscribed is the first thing it hears.
        ensure!(pushed.recv().await.is_some(), "a subscriber hears nothing");
        Ok(Self { _connection: connection, pushed, heard: HashSet::new() })
    }
}

impl BareChannel {
    pub async fn at(url: &str, followers: usize) -> Result<Self> {
        let publisher = connect(url, AsyncConnectionConfig::new()).await?;
        let mut all = Vec::new();
        for _ in 0..followers {
            all.push(Subscriber::at(url).await?);
        }
        Ok(Self { publisher, followers: all })
    }
}

impl Following for BareChannel {
    const NAME: &'static str = BareRedis::NAME;

    type Writer = Publisher;

    fn version() -> &'static str {
        BareRedis::version()
    }

    async fn fill(&mut self, _: &[String]) -> Result<()> {
        for follower in &mut self.followers {
            follower.heard.clear();
        }
        Ok(())
    }

    fn writer(&self) -> Publisher {
        Publisher(self.publisher.clone())
    }

    fn has_heard(&mut self, follower: usize, key: &str) -> bool {
        let Some(Subscriber { pushed, heard, .. }) = self.followers.get_mut(follower) else {
            return false;
        };
        while let Ok(message) = pushed.try_recv() {
            if let Some(redis::Value::BulkString(key)) = message.data.last() {
                heard.insert(String::from_utf8_lossy(key).into_owned());
            }
        }
        heard.contains(key)
    }
}

/// Who publishes.
#[derive(Clone)]
pub struct Publisher(MultiplexedConnection);

impl Invalidating for Publisher {
    async fn invalidate(&self, key: &str) -> Result<()> {
        let mut publish = Cmd::new();
        publish.arg("PUBLISH").arg(CHANNEL).arg(key);
        Ok(publish.exec_async(&mut self.0.clone()).await?)
    }
}
