//! The **Redis store**: frames on a Redis or Valkey server that many processes share, and the
//! ledger of all of them.
//!
//! What belongs to a name lies under keys that begin alike, in one slot of a cluster:
//!
//! | key | holds |
//! | --- | --- |
//! | `terrace:{tenant:space:key}:1:schema` | a frame; lives as long as its entry, by the server's own clock |
//! | `terrace:{tenant:space:key}:lease` | who loads it |
//! | `terrace:{tenant:space:key}:count` | a counter |
//! | `terrace:{ledger}:…` | the ledger: store/redis/ledger.rs says what |
//!
//! Values are read with `GET` and `MGET`, and written by a script that judges them by the ledger in
//! the same step. Connections are made and kept by store/redis/link.rs, on a thread of their own.

mod apart;
mod endpoint;
mod health;
mod ledger;
mod link;
mod reply;
mod scripts;
mod sentinel;
mod transactions;
mod walk;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use bytes::Bytes;
use redis::Cmd;

use crate::authority::Authority;
use crate::clock::{Clock, WallTime};
use crate::error::BuildError;
use crate::group::{self, Group, Together, Turn};
use crate::key::StoredKey;
use crate::runtime::BoxFuture;
use crate::store::{
    Health, KeyPage, Position, Put, Scope, Store, StoreError, StoreErrorKind, StoreResult, Stored,
    Usage,
};
use apart::Apart;
use endpoint::{Access, Target};
use health::Limit;
use ledger::{Known, LedgerKeys};
use link::{Link, Links};
use reply::bulk;
use scripts::Scripts;
use walk::Walks;

/// Settings of a Redis or Valkey tier.
///
/// ```no_run
/// # async fn example() -> Result<(), terrace::BuildError> {
/// use terrace::{Redis, Terrace};
///
/// let terrace = Terrace::builder()
///     .tier("redis", Redis::url("redis://127.0.0.1:6379"))
///     .build()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Redis {
    target: Target,
    access: Access,
    prefix: String,
    connections: usize,
    pub(crate) max_value_bytes: usize,
    max_bytes: Option<u64>,
    told_time: bool,
}

impl Redis {
    /// A tier on one server: `redis://user:password@host:port/database`, or `rediss://` for TLS.
    #[must_use]
    pub fn url(url: impl Into<String>) -> Self {
        Self::at(Target::Server(url.into()))
    }

    /// A tier on whichever server the sentinels name as the primary of `service`.
    ///
    /// User, password, database and TLS are the same for every primary: [`server`](Self::server)
    /// says them.
    #[must_use]
    pub fn sentinels<S: Into<String>>(
        sentinels: impl IntoIterator<Item = S>,
        service: impl Into<String>,
    ) -> Self {
        let sentinels = sentinels.into_iter().map(Into::into).collect();
        Self::at(Target::Sentinels { sentinels, service: service.into(), server: None })
    }

    /// A tier on a cluster, of which at least one of these nodes answers.
    #[must_use]
    pub fn cluster<S: Into<String>>(nodes: impl IntoIterator<Item = S>) -> Self {
        Self::at(Target::Cluster(nodes.into_iter().map(Into::into).collect()))
    }

    /// With [`sentinels`](Self::sentinels): the user, password, database and TLS of the primaries,
    /// as a URL whose host and port are not used: `redis://:password@-/0`.
    #[must_use]
    pub fn server(mut self, url: impl Into<String>) -> Self {
        if let Target::Sentinels { server, .. } = &mut self.target {
            *server = Some(url.into());
        }
        self
    }

    fn at(target: Target) -> Self {
        Self {
            target,
            access: Access::default(),
            prefix: "terrace:".into(),
            connections: 1,
            max_value_bytes: 1 << 20,
            max_bytes: None,
            told_time: false,
        }
    }

    /// Asks for the user and the password each time that it connects, in place of those in the
    /// address: they may change while the cache is in use.
    ///
    /// A password that the server has replaced is presented no longer than until the server ends the
    /// connection that it once opened. Servers do not do so by themselves: `CLIENT KILL USER`
    /// does. It must not block. Sentinels are asked as their own addresses say.
    ///
    /// ```
    /// use terrace::Redis;
    ///
    /// let secret = || std::fs::read_to_string("/run/secrets/redis").unwrap_or_default();
    /// let redis = Redis::url("redis://cache.internal").credentials(move || ("terrace".into(), secret()));
    /// ```
    #[must_use]
    pub fn credentials(
        mut self,
        ask: impl Fn() -> (String, String) + Send + Sync + 'static,
    ) -> Self {
        self.access.credentials = Some(Arc::new(ask));
        self
    }

    /// Trusts servers whose certificate this authority has signed, and no others: in PEM. Those
    /// that the machine trusts, unless set. The address has to begin with `rediss://`.
    #[must_use]
    pub fn root_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.access.root_certificate = Some(pem.into());
        self
    }

    /// Shows this certificate to a server that asks for one; both it and its key in PEM.
    #[must_use]
    pub fn client_certificate(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.access.client_certificate = Some((certificate.into(), key.into()));
        self
    }

    /// The command that makes a user on the server with the rights that this tier needs, and no
    /// others: `ACL SETUSER …`. Put the password in the place of `PASSWORD`.
    ///
    /// The user may read and write keys that begin with this tier's prefix, run the scripts of this
    /// tier on them or the transactions that take their place, and see how the server is. It may not
    /// see other keys or channels, nor change anything of the server. Without `+evalsha` and
    /// `+script|load` it still suffices: docs/redis.md says what is slower then.
    ///
    /// ```
    /// let rights = terrace::Redis::url("redis://localhost").acl("terrace");
    /// assert!(rights.starts_with("ACL SETUSER terrace reset on >PASSWORD ~terrace:* -@all +get "));
    /// ```
    #[must_use]
    pub fn acl(&self, user: &str) -> String {
        let prefix = walk::escaped(&self.prefix);
        let limiting = if self.max_bytes.is_some() { " +config|set" } else { "" };
        let rights = RIGHTS.join(" +");
        format!("ACL SETUSER {user} reset on >PASSWORD ~{prefix}* -@all +{rights}{limiting}")
    }

    /// What every key of this tier begins with on the server: `terrace:` unless set. Caches with
    /// different prefixes share nothing.
    ///
    /// Without `{` and `}`, which [`open`](Self::open) and `build` refuse: on a cluster the first
    /// braces of a key say in which slot it lies, and those are the ones around its name.
    #[must_use]
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..self }
    }

    /// Connections for reads and writes, 1 unless set and 50 at most; one more follows the ledger.
    /// One serves thousands of callers at once: more help only with many large values.
    #[must_use]
    pub fn connections(self, connections: usize) -> Self {
        Self { connections: connections.clamp(1, 50), ..self }
    }

    /// Has the server hold so many bytes and no more, which it does not care for unless this is set:
    /// its `maxmemory` is set to that, on every primary of a cluster, and its `maxmemory-policy` to
    /// `volatile-lfu` where it was `noeviction`.
    ///
    /// For a server that this cache has for itself. It is looked at every 30 s, so that one that took
    /// over keeps to it, too. A user who may not set it needs `+config|set`, which [`acl`](Self::acl)
    /// then has; without it, [`Terrace::health`](crate::Terrace::health) says that the limit is another
    /// one.
    #[must_use]
    pub fn max_bytes(self, max_bytes: u64) -> Self {
        Self { max_bytes: Some(max_bytes), ..self }
    }

    /// Larger values are not stored here: 1 MiB unless set.
    #[must_use]
    pub fn max_value_bytes(self, max_value_bytes: usize) -> Self {
        Self { max_value_bytes, ..self }
    }

    /// Leases and counters live by the time that callers tell, not by the server's: for tests that
    /// make time pass.
    #[doc(hidden)]
    #[must_use]
    pub fn told_time(self) -> Self {
        Self { told_time: true, ..self }
    }

    /// Opens the store by itself, to be used without a cache: to look into it, say. Connects in the
    /// background; what is asked meanwhile waits.
    ///
    /// # Errors
    /// The address cannot be understood, or the prefix has braces in it; the error says where.
    pub fn open(&self, clock: Arc<dyn Clock>) -> Result<RedisStore, BuildError> {
        RedisStore::open(self, clock)
    }
}

/// The commands of this tier, those of its scripts included, and of what takes their place.
const RIGHTS: &[&str] = &[
    "get",
    "mget",
    "set",
    "unlink",
    "strlen",
    "exists",
    "pexpire",
    "scan",
    "dbsize",
    "time",
    "ping",
    "info",
    "role",
    "hello",
    "cluster|slots",
    "cluster|shards",
    "cluster|nodes",
    "asking",
    "evalsha",
    "script|load",
    "watch",
    "unwatch",
    "multi",
    "exec",
    "xadd",
    "xread",
    "xrange",
    "xrevrange",
    "hget",
    "hincrby",
    "hmget",
    "hset",
    "hlen",
    "zadd",
    "zcard",
    "zcount",
    "zrange",
    "zrangebyscore",
    "zscore",
    "zremrangebyrank",
    "zremrangebyscore",
];

/// Addresses are shown without what they say about passwords.
impl fmt::Debug for Redis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Redis")
            .field("target", &self.target)
            .field("prefix", &self.prefix)
            .field("connections", &self.connections)
            .field("max_value_bytes", &self.max_value_bytes)
            .finish_non_exhaustive()
    }
}

/// An open Redis store. See the [module](self).
#[derive(Clone, Debug)]
pub struct RedisStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    prefix: String,
    max_value_bytes: usize,
    /// Told by the clock of this process, to scripts that would use the server's otherwise.
    told_time: bool,
    clock: Arc<dyn Clock>,
    /// By how many milliseconds the server's clock is ahead of this process's.
    ahead: AtomicI64,
    link: Link,
    /// For the one question that waits for an answer: it would keep others waiting.
    listening: Link,
    scripts: Scripts,
    ledger: LedgerKeys,
    known: Known,
    /// Whether stamps are judged here: the ledger of this server is the one that counts.
    is_judge: AtomicBool,
    /// Whether values lie in other slots of a cluster than the ledger.
    is_apart: bool,
    apart: Apart,
    walks: Walks,
    limit: Limit,
    /// Frames that wait to be stored together.
    puts: Group<Put, Result<Stored, StoreError>>,
    /// Keys of the server that wait to be read together.
    gets: Group<String, Result<Option<Bytes>, StoreError>>,
}

/// Frames that one script stores: the server does nothing else meanwhile.
const PUTS_AT_ONCE: usize = 64;

/// Frames of different callers that one command reads.
const GETS_AT_ONCE: usize = 64;

const READING: &str = "read from the Redis tier";
const WRITING: &str = "write to the Redis tier";

impl RedisStore {
    fn open(settings: &Redis, clock: Arc<dyn Clock>) -> Result<Self, BuildError> {
        if settings.prefix.contains(['{', '}']) {
            return Err(BuildError::BadName {
                name: settings.prefix.clone(),
                reason: "the prefix of a Redis tier must not have braces in it: on a cluster the \
                         first braces of a key say in which slot it lies",
            });
        }
        let links = Links::start(&settings.target, &settings.access)?;
        Ok(Self {
            shared: Arc::new(Shared {
                prefix: settings.prefix.clone(),
                max_value_bytes: settings.max_value_bytes,
                told_time: settings.told_time,
                clock,
                ahead: AtomicI64::new(0),
                link: links.link(settings.connections),
                listening: links.link(1),
                scripts: Scripts::new(),
                ledger: LedgerKeys::new(&settings.prefix),
                known: Known::default(),
                is_judge: AtomicBool::new(true),
                is_apart: settings.target.is_cluster(),
                apart: Apart::default(),
                walks: Walks::default(),
                limit: Limit::of(settings.max_bytes),
                puts: Group::new(PUTS_AT_ONCE),
                gets: Group::new(GETS_AT_ONCE),
            }),
        })
    }

    /// The key of the server under which a frame lies.
    fn key(&self, key: &StoredKey) -> String {
        let ([space, name], schema) = key.name_and_schema();
        [&*self.shared.prefix, "{", space, ":", name, "}:1:", schema].concat()
    }

    /// Which frame lies under a key of the server; `None` if it is not one of ours.
    fn stored_key(&self, key: &[u8]) -> Option<StoredKey> {
        let key = std::str::from_utf8(key).ok()?.strip_prefix(&*self.shared.prefix)?;
        let (name, schema) = key.strip_prefix('{')?.rsplit_once("}:1:")?;
        StoredKey::of_name(name, schema)
    }

    /// Compares the server's clock with this process's, which says `now`.
    async fn compare_clocks(&self, now: WallTime) -> Result<(), StoreError> {
        const DOING: &str = "ask the server for the time";
        if self.shared.told_time {
            return Ok(());
        }
        let before = self.shared.clock.elapsed();
        let time = self.shared.link.ask(&redis::cmd("TIME"), DOING).await?;
        let took = self.shared.clock.elapsed().saturating_sub(before);
        let [seconds, micros] = reply::fields(time, DOING)?;
        let micros = reply::integer(micros, DOING)?;
        let theirs = reply::integer(seconds, DOING)?.saturating_mul(1000) + micros / 1000;
        // It said so half-way.
        let ours = now.saturating_add(took / 2).as_millis();
        let ahead = theirs.saturating_sub_unsigned(ours);
        self.shared.ahead.store(ahead, Ordering::Relaxed);
        Ok(())
    }

    async fn put_unjudged(&self, puts: &[&Put], now: WallTime) -> Result<Vec<Stored>, StoreError> {
        let mut pipeline = redis::Pipeline::with_capacity(puts.len());
        for put in puts {
            let key = self.key(&put.key);
            match lives(now, put.expires) {
                0 => pipeline.cmd("SET").arg(key).arg(&*put.frame),
                ..0 => pipeline.cmd("UNLINK").arg(key),
                millis => pipeline.cmd("SET").arg(key).arg(&*put.frame).arg("PX").arg(millis),
            };
        }
        self.shared.link.ask_all(&pipeline, WRITING).await?;
        Ok(vec![Stored::Yes; puts.len()])
    }

    async fn put_some(&self, puts: &[&Put]) -> Result<Vec<Stored>, StoreError> {
        let now = self.shared.clock.wall();
        if !self.shared.is_judge.load(Ordering::Relaxed) {
            return self.put_unjudged(puts, now).await;
        }
        let mut call = self.ledger_call(&self.shared.scripts.put, now);
        call.arg(u8::from(self.shared.is_apart));
        for put in puts {
            let (name, schema) = put.key.name_and_schema();
            call.arg(name.join(":")).arg(schema).arg(lives(now, put.expires));
            call.arg(ledger::hex(put.stamp.incarnation)).arg(put.stamp.number);
            call.arg(put.tags.len());
            for tag in &*put.tags {
                call.arg(&**tag);
            }
            if !self.shared.is_apart {
                call.arg(&*put.frame);
            }
        }
        let answer = call.ask(&self.shared.link, WRITING).await?;
        let answers = reply::integers(answer, WRITING)?;
        if self.shared.is_apart {
            return self.put_apart(puts, answers, now).await;
        }
        let stored =
            answers.iter().map(|answer| if *answer == 1 { Stored::Yes } else { Stored::Refused });
        Ok(stored.collect())
    }
}

/// Milliseconds to live, as scripts want them: 0 is for ever, -1 is over already.
fn lives(now: WallTime, expires: Option<WallTime>) -> i64 {
    let Some(expires) = expires else { return 0 };
    let millis = expires.as_millis().saturating_sub(now.as_millis());
    // Redis refuses what would overflow its clock: a century will do.
    let millis = i64::try_from(millis).unwrap_or(i64::MAX).min(100 * 365 * 86_400_000);
    if millis == 0 { -1 } else { millis }
}

/// Frames that many callers store are one exchange with the server.
impl Together<Put> for Shared {
    type Answer = Result<Stored, StoreError>;

    fn group(&self) -> &Group<Put, Self::Answer> {
        &self.puts
    }

    fn exchange(
        self: Arc<Self>,
        puts: Vec<Put>,
        turn: Turn<Self, Put>,
    ) -> BoxFuture<'static, Vec<Self::Answer>> {
        Box::pin(async move {
            let _turn = turn;
            let all: Vec<_> = puts.iter().collect();
            match (RedisStore { shared: self }).put_some(&all).await {
                Ok(stored) => stored.into_iter().map(Ok).collect(),
                Err(error) => puts.iter().map(|_| Err(error.clone())).collect(),
            }
        })
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.link.spawn(task);
    }
}

/// Frames that many callers read are one command.
impl Together<String> for Shared {
    type Answer = Result<Option<Bytes>, StoreError>;

    fn group(&self) -> &Group<String, Self::Answer> {
        &self.gets
    }

    fn exchange(
        self: Arc<Self>,
        keys: Vec<String>,
        turn: Turn<Self, String>,
    ) -> BoxFuture<'static, Vec<Self::Answer>> {
        // Answers come in the order of the questions, and the next question need not wait for them.
        drop(turn);
        Box::pin(async move {
            match get_all(&self.link, &keys).await {
                Ok(frames) => frames.into_iter().map(Ok).collect(),
                Err(error) => keys.iter().map(|_| Err(error.clone())).collect(),
            }
        })
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.link.spawn(task);
    }
}

/// The frame under each key of the server.
async fn get_all(link: &Link, keys: &[String]) -> Result<Vec<Option<Bytes>>, StoreError> {
    let mut get = Cmd::new();
    if let [key] = keys {
        let frame = link.ask(get.arg("GET").arg(key), READING).await?;
        return Ok(vec![bulk(frame, READING)?]);
    }
    get.arg("MGET").arg(keys);
    let frames = reply::array_of(link.ask(&get, READING).await?, keys.len(), READING)?;
    frames.into_iter().map(|frame| bulk(frame, READING)).collect()
}

fn closed(doing: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Closed, doing)
}

impl Store for RedisStore {
    fn scope(&self) -> Scope {
        Scope::Fleet
    }

    fn get<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<Option<Bytes>>> {
        Box::pin(async move {
            match keys {
                [] => Ok(Vec::new()),
                // On a cluster they lie on many servers.
                [key] if !self.shared.is_apart => {
                    let frame = group::ask(&self.shared, self.key(key)).await;
                    Ok(vec![frame.unwrap_or_else(|| Err(closed(READING)))?])
                }
                keys => {
                    let keys: Vec<_> = keys.iter().map(|key| self.key(key)).collect();
                    get_all(&self.shared.link, &keys).await
                }
            }
        })
    }

    fn put<'a>(&'a self, puts: &'a [Put]) -> StoreResult<'a, Vec<Stored>> {
        Box::pin(async move {
            let mut stored = vec![Stored::TooLarge; puts.len()];
            let (mut places, mut small, mut large) = (Vec::new(), Vec::new(), Vec::new());
            for (place, put) in stored.iter_mut().zip(puts) {
                if put.frame.len() > self.shared.max_value_bytes {
                    large.push(put.key.clone());
                } else {
                    places.push(place);
                    small.push(put);
                }
            }
            // What was there before must not outlive what replaces it.
            if !large.is_empty() {
                self.remove(&large).await?;
            }
            let mut places = places.into_iter();
            // A caller with one frame is seldom the only one. In a cluster they go to many servers.
            if let ([put], false) = (&*small, self.shared.is_apart) {
                if let (Some(place), Some(answer)) =
                    (places.next(), group::ask(&self.shared, (*put).clone()).await)
                {
                    *place = answer?;
                    return Ok(stored);
                }
                return Err(closed(WRITING));
            }
            for puts in small.chunks(PUTS_AT_ONCE) {
                for answer in self.put_some(puts).await? {
                    if let Some(place) = places.next() {
                        *place = answer;
                    }
                }
            }
            Ok(stored)
        })
    }

    fn remove<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<bool>> {
        const DOING: &str = "remove from the Redis tier";
        Box::pin(async move {
            let mut removed = Vec::with_capacity(keys.len());
            for keys in keys.chunks(PUTS_AT_ONCE * 8) {
                let mut pipeline = redis::Pipeline::with_capacity(keys.len());
                for key in keys {
                    pipeline.cmd("UNLINK").arg(self.key(key));
                }
                let answers = self.shared.link.ask_all(&pipeline, DOING).await?;
                for answer in answers {
                    removed.push(reply::integer(answer, DOING)? > 0);
                }
            }
            Ok(removed)
        })
    }

    fn clear<'a>(&'a self, prefix: &'a str) -> StoreResult<'a, u64> {
        Box::pin(walk::clear(self, prefix))
    }

    fn scan<'a>(
        &'a self,
        after: Option<&'a StoredKey>,
        limit: usize,
    ) -> StoreResult<'a, Vec<(StoredKey, Bytes)>> {
        Box::pin(walk::scan(self, after, limit))
    }

    fn keys<'a>(
        &'a self,
        prefix: &'a str,
        position: Option<&'a Position>,
        limit: usize,
    ) -> StoreResult<'a, KeyPage> {
        Box::pin(walk::keys(self, prefix, position, limit))
    }

    /// Counted up to 10,000 entries; beyond that estimated from as many.
    fn usage(&self) -> StoreResult<'_, Usage> {
        Box::pin(walk::usage(self))
    }

    fn authority(&self) -> Option<Arc<dyn Authority>> {
        Some(Arc::new(self.clone()))
    }

    fn obey_another_ledger(&self) {
        self.shared.is_judge.store(false, Ordering::Relaxed);
    }

    fn health(&self) -> StoreResult<'_, Health> {
        Box::pin(self.examine())
    }

    fn clock_ahead(&self) -> i64 {
        self.shared.ahead.load(Ordering::Relaxed)
    }

    fn maintain(&self, now: WallTime) -> StoreResult<'_, ()> {
        Box::pin(async move {
            self.compare_clocks(now).await?;
            self.limit_servers().await?;
            if self.shared.is_apart {
                self.repeat_after_a_change().await?;
            }
            Ok(())
        })
    }

    fn close(&self) -> StoreResult<'_, ()> {
        Box::pin(async {
            self.shared.link.close();
            self.shared.listening.close();
            Ok(())
        })
    }
}
