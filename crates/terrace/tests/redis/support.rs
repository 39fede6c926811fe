//! Nodes: caches that share a server, as services of one fleet do.

use std::time::Duration;

use terrace::{BreakerState, Memory, Redis, Space, Terrace, Tier};
use terrace_test::rig::{Cluster, Sentinel, wait_until};

/// Whether the full counts of docs/reliability.md are wanted.
pub(crate) fn is_full() -> bool {
    std::env::var_os("TERRACE_FULL").is_some()
}

/// Whether the counts for a day or longer are wanted.
pub(crate) fn is_soak() -> bool {
    std::env::var_os("TERRACE_SOAK").is_some()
}

/// A count of docs/reliability.md, or whatever else is less every day.
pub(crate) fn count<T>(everyday: T, full: T) -> T {
    if is_full() { full } else { everyday }
}

/// A time limit of docs/reliability.md: the everyday run may take three times as long.
pub(crate) fn limit(time: Duration) -> Duration {
    if is_full() { time } else { 3 * time }
}

/// Milliseconds.
pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What `work` brings; a test in which it never ends says so and stops.
pub(crate) async fn ends<T>(what: &str, work: impl Future<Output = T>) -> T {
    let patience = Duration::from_secs(60);
    let Ok(output) = tokio::time::timeout(patience, work).await else { panic!("hung: {what}") };
    output
}

/// Random choices that the same seed makes again. The seed is in the output of a
/// test that fails; `TERRACE_SEED` sets it.
pub(crate) fn random(what: &str) -> fastrand::Rng {
    let given = std::env::var("TERRACE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("{what}: TERRACE_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// A cache of memory over the server at `url`, with one space of texts.
pub(crate) struct Node {
    pub(crate) terrace: Terrace,
    pub(crate) texts: Space<str, String>,
}

impl Node {
    pub(crate) async fn at(url: impl Into<String>) -> Self {
        Self::over(Redis::url(url)).await
    }

    pub(crate) async fn over(redis: Redis) -> Self {
        let terrace = Terrace::builder()
            .memory(Memory::bytes(16 << 20))
            .tier("redis", redis)
            .build()
            .await
            .unwrap();
        Self::of(terrace)
    }

    pub(crate) fn of(terrace: Terrace) -> Self {
        let texts = terrace.space::<str, String>("texts").ttl(HOUR).build().unwrap();
        Self { terrace, texts }
    }

    /// The value of `key`, loaded as `source` if no tier has it.
    pub(crate) async fn load(&self, key: &str, source: &str) -> String {
        let source = source.to_owned();
        let load = |_| async move { Ok::<_, std::io::Error>(source) };
        self.texts.get_or_load(key, load).await.unwrap().to_string()
    }

    /// What memory and Redis hold under `key`.
    pub(crate) async fn get(&self, key: &str) -> Option<String> {
        self.texts.get(key).await.unwrap().map(|text| text.to_string())
    }
}

/// A tier on which nothing is given up because the machine is busy.
pub(crate) fn patient(url: impl Into<String>) -> Tier {
    Tier::from(Redis::url(url)).deadlines(10 * SECOND, 10 * SECOND)
}

/// A tier on whichever server is the primary.
pub(crate) fn primary_of(sentinel: &Sentinel) -> Redis {
    let urls =
        sentinel.sentinel_addresses().into_iter().map(|address| format!("redis://{address}"));
    Redis::sentinels(urls, sentinel.name())
}

pub(crate) fn cluster_of(cluster: &Cluster) -> Redis {
    Redis::cluster(cluster.addresses().into_iter().map(|address| format!("redis://{address}")))
}

/// Waits until `condition` holds, which it must in time.
pub(crate) async fn until_within<F: Future<Output = bool>>(
    within: Duration,
    what: &str,
    condition: impl FnMut() -> F,
) {
    wait_until(what, within, condition).await.unwrap();
}

/// Waits until `condition` holds, for as long as an idle machine would never need.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, condition: impl FnMut() -> F) {
    wait_until(what, Duration::from_secs(20), condition).await.unwrap();
}

/// The time that 99 of 100 did not exceed.
pub(crate) fn p99(times: &mut [Duration]) -> Duration {
    assert!(!times.is_empty(), "nothing was measured");
    times.sort_unstable();
    times[(times.len() - 1) * 99 / 100]
}

/// The state of the breaker before the tier below memory.
pub(crate) async fn breaker(terrace: &Terrace) -> BreakerState {
    terrace.stats().await.tiers[1].guard.breaker
}
