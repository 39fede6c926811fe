//! Tags as cashews and others keep them on a server: a set for each tag, of the keys that carry it.
//! Who stores adds its key to the set, and who invalidates reads the set and removes every key. By
//! the client of Redis without anything around it.

use std::time::Duration;

use anyhow::Result;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, Cmd, IntoConnectionInfo as _, Pipeline};

use super::Tagging;
use super::terrace_tags::VALUE;
use crate::versions;

/// Keys that are stored by one pipeline, and removed by one command.
const AT_ONCE: usize = 1000;

/// Reading a set of a million keys takes as long as it takes.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct TagSets(MultiplexedConnection);

impl TagSets {
    pub async fn at(url: &str) -> Result<Self> {
        let info = url.into_connection_info()?;
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        let client = Client::open(info)?;
        Ok(Self(client.get_multiplexed_async_connection_with_config(&config).await?))
    }
}

fn name(key: &str) -> String {
    format!("sets:{key}")
}

fn set_of(tag: &str) -> String {
    format!("sets-tag:{tag}")
}

impl Tagging for TagSets {
    const NAME: &'static str = "tag-sets";

    const TAKES_AWAY: bool = true;

    fn version() -> &'static str {
        versions::of("redis")
    }

    async fn fill(&self, keys: &[String], tag: &str) -> Result<()> {
        for keys in keys.chunks(AT_ONCE) {
            let mut pipeline = Pipeline::with_capacity(2 * keys.len());
            for key in keys {
                let name = name(key);
                pipeline.cmd("SADD").arg(set_of(tag)).arg(&name).ignore();
                pipeline.cmd("SET").arg(name).arg(&VALUE).arg("PX").arg(3_600_000).ignore();
            }
            pipeline.exec_async(&mut self.0.clone()).await?;
        }
        Ok(())
    }

    async fn has(&self, key: &str) -> Result<bool> {
        let mut get = Cmd::new();
        let value: Option<Vec<u8>> =
            get.arg("GET").arg(name(key)).query_async(&mut self.0.clone()).await?;
        Ok(value.is_some_and(|value| value == VALUE))
    }

    async fn count(&self, keys: &[&str]) -> Result<usize> {
        let mut exists = Cmd::new();
        exists.arg("EXISTS");
        for key in keys {
            exists.arg(name(key));
        }
        Ok(exists.query_async(&mut self.0.clone()).await?)
    }

    async fn invalidate(&self, tag: &str) -> Result<()> {
        let connection = &mut self.0.clone();
        let mut members = Cmd::new();
        let keys: Vec<Vec<u8>> =
            members.arg("SMEMBERS").arg(set_of(tag)).query_async(connection).await?;
        for keys in keys.chunks(AT_ONCE) {
            let mut unlink = Cmd::new();
            unlink.arg("UNLINK").arg(keys).exec_async(connection).await?;
        }
        let mut unlink = Cmd::new();
        Ok(unlink.arg("UNLINK").arg(set_of(tag)).exec_async(connection).await?)
    }
}
