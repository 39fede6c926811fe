//! Two builds side by side, of which one writes frames of the next format.
//!
//! There is none yet: the store of the newer build marks what it writes as one, and takes the mark
//! off what it reads. The older build is the one that is tested.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use terrace::authority::Authority;
use terrace::clock::{SystemClock, WallTime};
use terrace::key::StoredKey;
use terrace::store::{Health, KeyPage, Position, Put, Scope, Store, StoreResult, Stored, Usage};
use terrace::{Disk, Redis, Space, Terrace, Tier};
use terrace_test::rig::RedisServer;
use xxhash_rust::xxh3::xxh3_64;

use crate::support::{HOUR, count, random};

/// Where a frame says which format it is of.
const FORMAT: usize = 3;

/// A frame that says that it is of format `to`, behind a right checksum, if it is one of `from`.
fn marked(frame: &Bytes, from: u8, to: u8) -> Bytes {
    let Some((body, _)) = frame.split_last_chunk::<8>() else { return frame.clone() };
    let mut body = body.to_vec();
    if body.get(FORMAT) != Some(&from) {
        return frame.clone();
    }
    body[FORMAT] = to;
    body.extend(xxh3_64(&body).to_le_bytes());
    body.into()
}

/// The store of a build that writes format 2 and knows both.
#[derive(Debug)]
struct Newer<S>(S);

impl<S: Store> Store for Newer<S> {
    fn scope(&self) -> Scope {
        self.0.scope()
    }

    fn get<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<Option<Bytes>>> {
        Box::pin(async move {
            let found = self.0.get(keys).await?;
            Ok(found.into_iter().map(|frame| Some(marked(&frame?, 2, 1))).collect())
        })
    }

    fn put<'a>(&'a self, puts: &'a [Put]) -> StoreResult<'a, Vec<Stored>> {
        Box::pin(async move {
            let mut puts = puts.to_vec();
            for put in &mut puts {
                put.frame = marked(&put.frame, 1, 2);
            }
            self.0.put(&puts).await
        })
    }

    fn remove<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<bool>> {
        self.0.remove(keys)
    }

    fn clear<'a>(&'a self, prefix: &'a str) -> StoreResult<'a, u64> {
        self.0.clear(prefix)
    }

    fn scan<'a>(
        &'a self,
        after: Option<&'a StoredKey>,
        limit: usize,
    ) -> StoreResult<'a, Vec<(StoredKey, Bytes)>> {
        self.0.scan(after, limit)
    }

    fn keys<'a>(
        &'a self,
        prefix: &'a str,
        position: Option<&'a Position>,
        limit: usize,
    ) -> StoreResult<'a, KeyPage> {
        self.0.keys(prefix, position, limit)
    }

    fn usage(&self) -> StoreResult<'_, Usage> {
        self.0.usage()
    }

    fn health(&self) -> StoreResult<'_, Health> {
        self.0.health()
    }

    fn authority(&self) -> Option<Arc<dyn Authority>> {
        self.0.authority()
    }

    fn clock_ahead(&self) -> i64 {
        self.0.clock_ahead()
    }

    fn maintain(&self, now: WallTime) -> StoreResult<'_, ()> {
        self.0.maintain(now)
    }

    fn close(&self) -> StoreResult<'_, ()> {
        self.0.close()
    }
}

/// The key, and its version.
type Value = (u64, u64);

/// A build, without a memory of its own: every read is of what both share.
async fn build(tier: Tier) -> (Terrace, Space<u64, Value>) {
    let terrace = Terrace::builder().tier("shared", tier).build().await.unwrap();
    let space = terrace.space("values").ttl(HOUR).build().unwrap();
    (terrace, space)
}

async fn side_by_side(older: Tier, newer: Tier) {
    const KEYS: u64 = 100;
    let builds = [build(older).await, build(newer).await];
    let mut random = random("reads of two builds");
    let mut versions = [1; KEYS as usize];
    let (mut reads, loads) = ([0_u64; 2], [(); 2].map(|()| Arc::new(AtomicU64::new(0))));
    for _ in 0..count(10_000, 1_000_000) {
        let (number, key) = (random.usize(..2), random.u64(..KEYS));
        let (_, space) = &builds[number];
        let version = &mut versions[key as usize];
        match random.u8(..100) {
            0 => {
                *version += 1;
                assert!(space.invalidate(&key).await.unwrap().is_settled());
            }
            1 => {
                *version += 1;
                assert!(space.insert(&key, (key, *version)).await.unwrap().is_settled());
            }
            _ => {
                let (source, loaded) = (*version, Arc::clone(&loads[number]));
                let load = |_| async move {
                    loaded.fetch_add(1, Ordering::Relaxed);
                    Ok::<_, std::io::Error>((key, source))
                };
                let found = *space.get_or_load(&key, load).await.expect("no caller sees an error");
                assert_eq!(found, (key, source));
                reads[number] += 1;
            }
        }
    }
    for (name, number) in [("older", 0), ("newer", 1)] {
        let (reads, loads) = (reads[number], loads[number].load(Ordering::Relaxed));
        let unreadable = builds[number].0.stats().await.tiers[0].traffic.unreadable;
        println!("{name}: {loads} loads, {unreadable} frames unreadable, in {reads} reads");
        assert!(loads * 10 <= reads, "{name}: {loads} loads in {reads} reads");
        assert_eq!(unreadable > 0, name == "older", "{name}: {unreadable}");
    }
}

#[tokio::test]
async fn d9_two_builds_on_one_redis() {
    let server = RedisServer::start().await.unwrap();
    let redis = Redis::url(server.url());
    let newer = Tier::of(Newer(redis.open(Arc::new(SystemClock::new())).unwrap()));
    side_by_side(redis.into(), newer).await;
}

#[tokio::test]
async fn d9_two_builds_in_one_directory() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::at(directory.path());
    let newer = Tier::of(Newer(disk.open().unwrap()));
    side_by_side(disk.into(), newer).await;
}
