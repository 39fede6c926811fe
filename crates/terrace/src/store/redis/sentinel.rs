//! The **sentinels**: which server is the primary, and when another one is.

use std::time::Duration;

use futures_util::StreamExt as _;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{Client, ConnectionInfo, ErrorKind, RedisError, RedisResult, Value};
use tokio::time::timeout;

use super::endpoint::{CONNECTING, Node, at, open};

/// How often sentinels are asked whether the primary has changed: they tell, but may be away.
const ASKING: Duration = Duration::from_secs(1);

/// Those that watch a service.
pub(super) struct Sentinels {
    pub(super) all: Vec<Client>,
    pub(super) service: String,
    /// What is the same for every primary.
    pub(super) server: ConnectionInfo,
}

impl Sentinels {
    /// The server that the first sentinel names that answers.
    pub(super) async fn primary(&self) -> RedisResult<Node> {
        let mut failure = RedisError::from((ErrorKind::EmptySentinelList, "no sentinels"));
        let each = CONNECTING / (u32::try_from(self.all.len()).unwrap_or(1) + 1);
        for sentinel in &self.all {
            let asked = timeout(each, async {
                let mut connection = open(sentinel).await?;
                let mut question = redis::cmd("SENTINEL");
                question.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.service);
                question.query_async::<Option<Node>>(&mut connection).await
            });
            match asked.await {
                Ok(Ok(Some(primary))) => return Ok(primary),
                Ok(Ok(None)) => {
                    let kind = ErrorKind::MasterNameNotFoundBySentinel;
                    failure = (kind, "the sentinels know no such service").into();
                }
                Ok(Err(error)) => failure = error,
                Err(_) => {
                    let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
                    failure = RedisError::from(late);
                }
            }
        }
        Err(failure)
    }

    /// How to connect to a server of this service.
    pub(super) fn client(&self, node: &Node) -> RedisResult<Client> {
        Client::open(at(&self.server, node))
    }

    /// Sentinels may name a server that is none the wiser: it must say itself that it is the
    /// primary.
    pub(super) async fn check_role(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<()> {
        let role = connection.send_packed_command(&redis::cmd("ROLE")).await?.extract_error()?;
        let is_primary = match &role {
            Value::Array(fields) => {
                matches!(fields.first(), Some(Value::BulkString(role)) if role == b"master")
            }
            _ => false,
        };
        if is_primary {
            return Ok(());
        }
        let kind = ErrorKind::MasterNameNotFoundBySentinel;
        Err((kind, "the server that the sentinels name is no primary yet").into())
    }

    /// Waits until the sentinels name another primary, or `is_over`.
    pub(super) async fn wait_for_another(&self, than: &Node, is_over: impl Fn() -> bool) {
        let mut listening: Option<PubSub> = None;
        while !is_over() {
            match &mut listening {
                Some(channel) => {
                    let told = timeout(ASKING, channel.on_message().next()).await;
                    let is_gone = matches!(told, Ok(None));
                    if is_gone {
                        listening = None;
                    }
                }
                None => {
                    listening = self.listen().await;
                    if listening.is_none() {
                        tokio::time::sleep(ASKING).await;
                    }
                }
            }
            if self.primary().await.is_ok_and(|primary| primary != *than) {
                return;
            }
        }
    }

    /// What the first sentinel that answers tells of changes.
    async fn listen(&self) -> Option<PubSub> {
        for sentinel in &self.all {
            let listening = timeout(CONNECTING, async {
                let mut channel = sentinel.get_async_pubsub().await?;
                channel.subscribe("+switch-master").await?;
                RedisResult::Ok(channel)
            });
            if let Ok(Ok(channel)) = listening.await {
                return Some(channel);
            }
        }
        None
    }
}
