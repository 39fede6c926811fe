//! The **health** of servers: what they say of themselves, and which of their settings endanger a
//! cache.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use redis::Value;

use super::RedisStore;
use super::endpoint::Node;
use super::reply::{odd, text};
use crate::store::{Health, NodeHealth, StoreError, StoreErrorKind};

/// How much memory servers are to use, if somebody has asked for a limit.
#[derive(Debug)]
pub(super) struct Limit {
    bytes: Option<u64>,
    /// They keep to it, or will not do so because we asked.
    is_settled: AtomicBool,
}

impl Limit {
    pub(super) fn of(bytes: Option<u64>) -> Self {
        Self { bytes, is_settled: AtomicBool::new(false) }
    }
}

impl RedisStore {
    /// Has every primary keep to the limit, unless that was done.
    pub(super) async fn limit_servers(&self) -> Result<(), StoreError> {
        const DOING: &str = "limit the memory of the server";
        let limit = &self.shared.limit;
        let Some(bytes) = limit.bytes.filter(|_| !limit.is_settled.load(Ordering::Relaxed)) else {
            return Ok(());
        };
        for node in self.shared.link.nodes().await? {
            let info = self.info(node.as_ref()).await?;
            let mut settings = Vec::new();
            if info.number("maxmemory") != Some(bytes) {
                settings.push(("maxmemory", bytes.to_string()));
            }
            if info.text("maxmemory_policy") == Some("noeviction") {
                settings.push(("maxmemory-policy", "volatile-lfu".to_owned()));
            }
            for (name, value) in settings {
                let mut set = redis::cmd("CONFIG");
                set.arg("SET").arg(name).arg(&value);
                match self.shared.link.ask_node(node.as_ref(), &set, DOING).await {
                    Ok(_) => {
                        let server = self.name_of(node.as_ref());
                        tracing::info!(server, name, value, "a setting of the server was changed");
                    }
                    // Asking again would not help; its health says that the limit is another one.
                    Err(error) if error.kind() == StoreErrorKind::Denied => {}
                    Err(error) => return Err(error),
                }
            }
        }
        limit.is_settled.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn name_of(&self, node: Option<&Node>) -> String {
        match node {
            Some((host, port)) => format!("{host}:{port}"),
            None => self.shared.link.server(),
        }
    }

    /// Asks every primary; one that does not answer is down.
    pub(super) async fn examine(&self) -> Result<Health, StoreError> {
        let nodes = self.shared.link.nodes().await?;
        let asked = nodes.iter().map(|node| self.examine_node(node.as_ref()));
        Ok(Health { nodes: join_all(asked).await })
    }

    async fn examine_node(&self, node: Option<&Node>) -> NodeHealth {
        let name = self.name_of(node);
        let begun = self.shared.clock.elapsed();
        let answer = self.info(node).await;
        let latency = self.shared.clock.elapsed().saturating_sub(begun);
        match answer {
            Ok(info) => {
                let limit = &self.shared.limit;
                if limit.bytes.is_some_and(|bytes| info.number("maxmemory") != Some(bytes)) {
                    // Another server may have taken over.
                    limit.is_settled.store(false, Ordering::Relaxed);
                }
                let (facts, warnings) = (facts(&info), warnings(&info, limit.bytes));
                NodeHealth { name, is_up: true, latency, facts, warnings }
            }
            Err(error) => NodeHealth {
                name,
                is_up: false,
                latency,
                facts: Vec::new(),
                warnings: vec![error.to_string()],
            },
        }
    }

    async fn info(&self, node: Option<&Node>) -> Result<Info, StoreError> {
        const DOING: &str = "ask the server how it is";
        let mut question = redis::cmd("INFO");
        question.arg("everything");
        let answer = match self.shared.link.ask_node(node, &question, DOING).await? {
            // One node that was asked by its address.
            Value::Map(mut answers) => answers.pop().map(|(_, answer)| answer),
            answer => Some(answer),
        };
        Ok(Info(text(answer.ok_or_else(|| odd(DOING, "nothing"))?, DOING)?))
    }
}

/// What a server says of itself, a field a line.
struct Info(String);

impl Info {
    fn text(&self, field: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
    }

    fn number(&self, field: &str) -> Option<u64> {
        self.text(field)?.parse().ok()
    }

    /// The server's version, Valkey's own where it is one.
    fn version(&self) -> Option<String> {
        match self.text("valkey_version") {
            Some(version) => Some(format!("Valkey {version}")),
            None => self.text("redis_version").map(|version| format!("Redis {version}")),
        }
    }

    /// The share of reads that found something, of all that the server served.
    fn hit_rate(&self) -> Option<f64> {
        let (hits, misses) = (self.number("keyspace_hits")?, self.number("keyspace_misses")?);
        let all = hits + misses;
        (all > 0).then(|| hits as f64 / all as f64)
    }
}

fn facts(info: &Info) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let mut fact = |name, value: Option<String>| facts.extend(value.map(|value| (name, value)));
    let plain = |field| info.text(field).map(str::to_owned);
    fact("version", info.version());
    fact("role", plain("role"));
    fact("memory", info.number("used_memory").map(|bytes| bytes.to_string()));
    fact("memory limit", info.number("maxmemory").map(|bytes| bytes.to_string()));
    fact("eviction", plain("maxmemory_policy"));
    fact("evicted", plain("evicted_keys"));
    fact("clients", plain("connected_clients"));
    fact("replicas", plain("connected_slaves"));
    fact("hit rate", info.hit_rate().map(|rate| format!("{rate:.3}")));
    fact("log of writes", plain("aof_enabled"));
    fact("last snapshot", plain("rdb_last_bgsave_status"));
    fact(
        "uptime",
        info.number("uptime_in_seconds").map(|time| format!("{:?}", Duration::from_secs(time))),
    );
    facts
}

/// What endangers a cache, each with what to do about it.
fn warnings(info: &Info, wanted: Option<u64>) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |is_so: bool, warning: &str| {
        if is_so {
            warnings.push(warning.to_owned());
        }
    };
    let limit = info.number("maxmemory");
    warn(
        wanted.is_some() && limit != wanted,
        "the server's memory limit is not the one that was asked for: let the user run CONFIG SET, \
         or set maxmemory yourself",
    );
    let policy = info.text("maxmemory_policy").unwrap_or_default();
    warn(
        limit == Some(0),
        "the server has no memory limit and grows until its machine has none left: \
         set maxmemory",
    );
    warn(
        limit.is_some_and(|limit| limit > 0) && policy == "noeviction",
        "the server refuses writes once it is full: set maxmemory-policy to volatile-lfu",
    );
    warn(
        policy.starts_with("allkeys"),
        "the server may evict parts of the ledger, and all values are loaded anew then: set \
         maxmemory-policy to volatile-lfu, which leaves what has no end alone",
    );
    warn(
        info.number("connected_slaves").is_some_and(|count| count > 0)
            && info.text("min_slaves_good_slaves").is_none(),
        "a primary that is cut off from its replicas goes on taking writes, which are lost when \
         another one takes over: set min-replicas-to-write to 1",
    );
    warn(
        info.text("rdb_last_bgsave_status") == Some("err")
            || info.text("aof_last_write_status") == Some("err"),
        "the server cannot write to its disk: see its log",
    );
    warn(
        info.text("redis_version").is_some_and(has_known_hole),
        "this version of the server has a known hole in its scripts (CVE-2025-49844), unless \
         the distribution has mended it: upgrade, or make sure of it",
    );
    warnings
}

/// Versions before the fix of CVE-2025-49844, by branch
/// (<https://redis.io/blog/security-advisory-cve-2025-49844/>).
fn has_known_hole(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    let version = (next(), next(), next());
    match version {
        (major, ..) if major < 6 => true,
        (6, minor, patch) => (minor, patch) < (2, 20),
        (7, 0 | 1, _) => true,
        (7, 2, patch) => patch < 11,
        (7, 4, patch) => patch < 6,
        (8, 0, patch) => patch < 4,
        (8, 2, patch) => patch < 2,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_judged_by_their_branch() {
        for old in ["5.0.14", "6.2.19", "7.0.15", "7.2.10", "7.4.5", "8.0.3", "8.2.1"] {
            assert!(has_known_hole(old), "{old}");
        }
        for mended in ["6.2.20", "7.2.11", "7.4.6", "8.0.4", "8.2.2", "8.4.0", "9.0.0"] {
            assert!(!has_known_hole(mended), "{mended}");
        }
    }

    #[test]
    fn settings_that_endanger_a_cache_are_named_with_their_remedy() {
        let warned = |lines: &str| warnings(&Info(lines.replace(' ', "\r\n")), None).join("\n");
        assert_eq!(warned("maxmemory:1 maxmemory_policy:volatile-lfu"), "");
        assert_eq!(warnings(&Info("maxmemory:7".into()), Some(7)).len(), 0);
        assert!(warnings(&Info("maxmemory:7".into()), Some(8)).concat().contains("asked for"));
        assert!(warned("maxmemory:0").contains("set maxmemory"));
        assert!(warned("maxmemory:1 maxmemory_policy:noeviction").contains("volatile-lfu"));
        assert!(warned("maxmemory:1 maxmemory_policy:allkeys-lru").contains("the ledger"));
        assert!(warned("connected_slaves:2").contains("min-replicas-to-write"));
        assert_eq!(warned("connected_slaves:2 min_slaves_good_slaves:2"), "");
        assert!(warned("rdb_last_bgsave_status:err").contains("disk"));
    }
}
