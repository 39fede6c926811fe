//! The **endpoint**: where the server is, and how to connect to it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::{TcpSettings, socket2};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind,
    IntoConnectionInfo, Pipeline, ProtocolVersion, TlsCertificates, Value,
};
use tokio::time::timeout;

use super::reply;
use super::sentinel::Sentinels;
use crate::store::{StoreError, StoreErrorKind};

/// How long making a connection may take, its greetings included.
pub(super) const CONNECTING: Duration = Duration::from_secs(1);

/// The host and port of a server.
pub(super) type Node = (String, u16);

/// Who we are, asked for each time that we connect.
pub(super) type Credentials = Arc<dyn Fn() -> (String, String) + Send + Sync>;

/// What a server wants to see, and what we want to see of it, beside the address.
#[derive(Clone, Default)]
pub(super) struct Access {
    pub(super) credentials: Option<Credentials>,
    /// In PEM, in place of the authorities that the machine trusts.
    pub(super) root_certificate: Option<Vec<u8>>,
    /// A certificate and its key, in PEM.
    pub(super) client_certificate: Option<(Vec<u8>, Vec<u8>)>,
}

impl Access {
    /// Whether an endpoint that was made before is not the one to connect to now.
    pub(super) fn changes(&self) -> bool {
        self.credentials.is_some()
    }

    fn certificates(&self) -> Option<TlsCertificates> {
        if self.root_certificate.is_none() && self.client_certificate.is_none() {
            return None;
        }
        let client_tls = self.client_certificate.clone();
        let client_tls =
            client_tls.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
        Some(TlsCertificates { client_tls, root_cert: self.root_certificate.clone() })
    }

    /// How to connect to the server at `url`, as whom, with the settings of the sockets.
    fn info(&self, url: &str) -> redis::RedisResult<ConnectionInfo> {
        let mut info = info(url)?;
        if let Some(credentials) = &self.credentials {
            let (user, password) = credentials();
            let settings = info.redis_settings().clone();
            info = info.set_redis_settings(settings.set_username(user).set_password(password));
        }
        self.trusting(info)
    }

    /// The same with certificates.
    fn trusting(&self, info: ConnectionInfo) -> redis::RedisResult<ConnectionInfo> {
        if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            install_cryptography();
        }
        match self.certificates() {
            // Refuses an address without TLS: whoever has certificates wants them looked at.
            Some(certificates) => {
                Ok(Client::build_with_tls(info, certificates)?.get_connection_info().clone())
            }
            None => Ok(info),
        }
    }
}

/// The client library takes the process's own, if it has chosen one: it may have several, and
/// none of them is chosen by itself then.
fn install_cryptography() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Somebody else may have been quicker.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

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

/// How to connect.
pub(super) enum Endpoint {
    Server(Client),
    Sentinels(Sentinels),
    Cluster {
        client: ClusterClient,
        /// What is the same for every node.
        node: Box<ConnectionInfo>,
    },
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(client) => write!(formatter, "{}", client.get_connection_info().addr()),
            Self::Sentinels(sentinels) => write!(formatter, "the primary of {}", sentinels.service),
            Self::Cluster { .. } => formatter.write_str("the cluster"),
        }
    }
}

impl Endpoint {
    pub(super) fn of(target: &Target, access: &Access) -> redis::RedisResult<Self> {
        match target {
            Target::Server(url) => Ok(Self::Server(Client::open(access.info(url)?)?)),
            Target::Sentinels { sentinels, service, server } => {
                // Sentinels have users of their own, which their addresses name.
                let all = sentinels.iter().map(|url| Client::open(info(url)?));
                let all = all.collect::<Result<_, _>>()?;
                let server = access.info(server.as_deref().unwrap_or("redis://primary"))?;
                Ok(Self::Sentinels(Sentinels { all, service: service.clone(), server }))
            }
            Target::Cluster(nodes) => {
                let nodes =
                    nodes.iter().map(|url| access.info(url)).collect::<Result<Vec<_>, _>>()?;
                let Some(node) = nodes.first().cloned().map(Box::new) else {
                    return Err((ErrorKind::InvalidClientConfig, "no node of the cluster").into());
                };
                let mut client = ClusterClient::builder(nodes)
                    .tcp_settings(node.tcp_settings().clone())
                    .connection_timeout(CONNECTING)
                    .retries(3)
                    .min_retry_wait(20)
                    .max_retry_wait(200)
                    // One that is lost is noticed by what the server pushes, too.
                    .use_protocol(ProtocolVersion::RESP3);
                if let Some(certificates) = access.certificates() {
                    client = client.certs(certificates);
                }
                Ok(Self::Cluster { client: client.build()?, node })
            }
        }
    }

    /// So many connections; and to which server they lead, if that may change.
    pub(super) async fn connect(
        &self,
        count: usize,
    ) -> Result<(Vec<Connection>, Option<Node>), StoreError> {
        const DOING: &str = "connect to the server";
        match timeout(CONNECTING, self.connect_in_time(count)).await {
            Ok(Ok(connected)) => Ok(connected),
            Ok(Err(error)) => Err(reply::classify(error, DOING).0),
            Err(_) => Err(StoreError::new(StoreErrorKind::Deadline, DOING)),
        }
    }

    async fn connect_in_time(
        &self,
        count: usize,
    ) -> redis::RedisResult<(Vec<Connection>, Option<Node>)> {
        let mut all = Vec::with_capacity(count);
        match self {
            Self::Server(client) => {
                for _ in 0..count {
                    all.push(Connection::Server(open(client).await?));
                }
                Ok((all, None))
            }
            Self::Sentinels(sentinels) => {
                let primary = sentinels.primary().await?;
                let client = sentinels.client(&primary)?;
                for _ in 0..count {
                    let mut connection = open(&client).await?;
                    sentinels.check_role(&mut connection).await?;
                    all.push(Connection::Server(connection));
                }
                Ok((all, Some(primary)))
            }
            Self::Cluster { client, .. } => {
                for _ in 0..count {
                    all.push(Connection::Cluster(client.get_async_connection().await?));
                }
                Ok((all, None))
            }
        }
    }

    /// A connection that is shared with nobody, to the server or to one node of a cluster.
    pub(super) async fn alone(
        &self,
        node: Option<&Node>,
    ) -> redis::RedisResult<MultiplexedConnection> {
        let connecting = async {
            match (self, node) {
                (Self::Server(client), _) => open(&older(client.get_connection_info())?).await,
                (Self::Sentinels(sentinels), _) => {
                    let primary = sentinels.client(&sentinels.primary().await?)?;
                    let mut connection = open(&older(primary.get_connection_info())?).await?;
                    sentinels.check_role(&mut connection).await?;
                    Ok(connection)
                }
                (Self::Cluster { node, .. }, None) => open(&older(node)?).await,
                (Self::Cluster { node: info, .. }, Some(node)) => {
                    open(&older(&at(info, node))?).await
                }
            }
        };
        let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
        timeout(CONNECTING, connecting).await.map_err(late)?
    }
}

/// A client that is answered as scripts are, whatever the address says of the protocol.
fn older(info: &ConnectionInfo) -> redis::RedisResult<Client> {
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
    Client::open(info.clone().set_redis_settings(settings))
}

/// The same as `info` for another server.
pub(super) fn at(info: &ConnectionInfo, (host, port): &Node) -> ConnectionInfo {
    let (host, port) = (host.clone(), *port);
    let address = match info.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host, port),
    };
    info.clone().set_addr(address)
}

/// One connection, or the connections to all nodes of a cluster.
#[derive(Clone)]
pub(super) enum Connection {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    pub(super) async fn ask_one(&mut self, command: &Cmd) -> redis::RedisResult<Value> {
        let answer = match self {
            Self::Server(connection) => connection.send_packed_command(command).await,
            Self::Cluster(connection) => connection.req_packed_command(command).await,
        };
        answer.and_then(Value::extract_error)
    }

    pub(super) async fn ask_all(&mut self, commands: &Pipeline) -> redis::RedisResult<Vec<Value>> {
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

pub(super) async fn open(client: &Client) -> redis::RedisResult<MultiplexedConnection> {
    // Whoever asks has a deadline of its own; another one for each question would cost a timer.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
        .set_pipeline_buffer_size(1024);
    client.get_multiplexed_async_connection_with_config(&config).await
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
    // Old servers know no right to say only that, and new ones would log that it is denied.
    let redis = info.redis_settings().clone().set_skip_set_lib_name();
    Ok(info.set_tcp_settings(settings).set_redis_settings(redis))
}
