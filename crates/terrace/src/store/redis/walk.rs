//! The **walk** over all keys of a store, in bounded steps: the server answers others in between.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use redis::Cmd;

use super::RedisStore;
use super::endpoint::Node;
use super::reply::{array, bulk, fields, integer, odd, text};
use crate::key::StoredKey;
use crate::store::{KeyPage, Position, Store as _, StoreError, StoreErrorKind, Usage};

/// Keys of the server that one step looks at.
const STEP: usize = 512;

/// Walks that can be gone on with.
const MOST_WALKS: usize = 16;

/// Keys that are remembered, because a server that is growing its table tells some twice.
const REMEMBERED: usize = 100_000;

/// Entries up to which they are counted one by one.
const COUNTED: u64 = 10_000;

/// Walks that were begun, by the key or the number at which they stopped.
#[derive(Debug, Default)]
pub(super) struct Walks {
    paused: Mutex<VecDeque<(Stop, Walk)>>,
    numbers: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stop {
    Key(StoredKey),
    Number(u64),
}

#[derive(Debug)]
struct Walk {
    pattern: String,
    /// Nodes that are left to be asked; the last one is being asked.
    nodes: Option<Vec<Option<Node>>>,
    cursor: String,
    found: VecDeque<StoredKey>,
    seen: HashSet<StoredKey>,
}

impl Walk {
    /// Over all keys that may begin with `prefix`, and others.
    fn over(store: &RedisStore, prefix: &str) -> Self {
        let mut pattern = escaped(&store.shared.prefix);
        pattern.push('{');
        // The format, tenant and space come first in both forms of a key.
        let parts = prefix.split_inclusive(':').skip(1).take(2);
        parts
            .take_while(|part| part.ends_with(':'))
            .for_each(|part| pattern.push_str(&escaped(part)));
        pattern.push_str("*}:1:*");
        Self {
            pattern,
            nodes: None,
            cursor: "0".into(),
            found: VecDeque::new(),
            seen: HashSet::new(),
        }
    }

    /// One step; `false` if there is no other.
    async fn step(&mut self, store: &RedisStore) -> Result<bool, StoreError> {
        const DOING: &str = "scan the Redis tier";
        let nodes = match &mut self.nodes {
            Some(nodes) => nodes,
            none => none.insert(store.shared.link.nodes().await?),
        };
        let Some(node) = nodes.last() else { return Ok(false) };
        let mut scan = Cmd::new();
        scan.arg("SCAN").arg(&self.cursor).arg("MATCH").arg(&self.pattern).arg("COUNT").arg(STEP);
        let answer = store.shared.link.ask_node(node.as_ref(), &scan, DOING).await?;
        let [cursor, keys] = fields(answer, DOING)?;
        self.cursor = text(cursor, DOING)?;
        if self.cursor == "0" {
            nodes.pop();
        }
        for key in array(keys, DOING)? {
            let key = bulk(key, DOING)?.ok_or_else(|| odd(DOING, "nothing"))?;
            // What somebody else left there is not ours to show.
            let Some(key) = store.stored_key(&key) else { continue };
            if self.seen.insert(key.clone()) {
                self.found.push_back(key);
            }
        }
        if self.seen.len() > REMEMBERED {
            self.seen.clear();
        }
        Ok(true)
    }

    /// Up to `limit` keys; fewer only at the end.
    async fn page(
        &mut self,
        store: &RedisStore,
        limit: usize,
    ) -> Result<Vec<StoredKey>, StoreError> {
        while self.found.len() < limit && self.step(store).await? {}
        let limit = limit.min(self.found.len());
        Ok(self.found.drain(..limit).collect())
    }
}

/// Removes everything whose key begins with `prefix`.
pub(super) async fn clear(store: &RedisStore, prefix: &str) -> Result<u64, StoreError> {
    let mut walk = Walk::over(store, prefix);
    let mut cleared = 0;
    loop {
        let keys = walk.page(store, STEP).await?;
        if keys.is_empty() {
            return Ok(cleared);
        }
        let keys: Vec<_> =
            keys.into_iter().filter(|key| key.as_str().starts_with(prefix)).collect();
        let gone = store.remove(&keys).await?;
        cleared += gone.into_iter().filter(|gone| *gone).count() as u64;
    }
}

/// A page of keys and frames after the key at which the one before ended.
pub(super) async fn scan(
    store: &RedisStore,
    after: Option<&StoredKey>,
    limit: usize,
) -> Result<Vec<(StoredKey, Bytes)>, StoreError> {
    let mut walk = match after {
        None => Walk::over(store, ""),
        Some(key) => store.shared.walks.resume(&Stop::Key(key.clone()))?,
    };
    loop {
        let keys = walk.page(store, limit).await?;
        let Some(last) = keys.last().cloned() else { return Ok(Vec::new()) };
        let frames = store.get(&keys).await?;
        let page: Vec<_> =
            keys.into_iter().zip(frames).filter_map(|(key, frame)| Some((key, frame?))).collect();
        if let Some((key, _)) = page.last() {
            // The page may end before what has just gone.
            store.shared.walks.pause(Stop::Key(key.clone()), walk);
            return Ok(page);
        }
        tracing::trace!(?last, "all of a page has gone meanwhile");
    }
}

/// Some keys that begin with `prefix`, after one look at about `limit` keys of the server.
pub(super) async fn keys(
    store: &RedisStore,
    prefix: &str,
    position: Option<&Position>,
    limit: usize,
) -> Result<KeyPage, StoreError> {
    let mut walk = match position {
        None => Walk::over(store, prefix),
        Some(position) => {
            let number = position.0.parse().unwrap_or(u64::MAX);
            store.shared.walks.resume(&Stop::Number(number))?
        }
    };
    let mut is_over = false;
    for _ in 0..limit.div_ceil(STEP) {
        is_over = !walk.step(store).await?;
        if is_over {
            break;
        }
    }
    let found = walk.found.drain(..).filter(|key| key.as_str().starts_with(prefix)).collect();
    let next = (!is_over).then(|| {
        let number = store.shared.walks.numbers.fetch_add(1, Ordering::Relaxed);
        store.shared.walks.pause(Stop::Number(number), walk);
        Position(number.to_string().into())
    });
    Ok(KeyPage { keys: found, next })
}

impl Walks {
    fn pause(&self, at: Stop, walk: Walk) {
        let mut paused = self.paused.lock();
        if paused.len() == MOST_WALKS {
            paused.pop_front();
        }
        paused.push_back((at, walk));
    }

    fn resume(&self, stop: &Stop) -> Result<Walk, StoreError> {
        let mut paused = self.paused.lock();
        let found = paused.iter().position(|(at, _)| at == stop);
        let found = found.and_then(|found| paused.remove(found)).map(|(_, walk)| walk);
        // A server tells its keys in an order of its own, which only it can go on with.
        found.ok_or_else(|| {
            StoreError::new(StoreErrorKind::Other, "go on with a scan: begin it anew")
        })
    }
}

/// What is stored, counted or estimated.
pub(super) async fn usage(store: &RedisStore) -> Result<Usage, StoreError> {
    const DOING: &str = "measure the Redis tier";
    let all = store.shared.link.ask(&redis::cmd("DBSIZE"), DOING).await?;
    let all = u64::try_from(integer(all, DOING)?).unwrap_or(0);
    let mut walk = Walk::over(store, "");
    let (mut entries, mut bytes, mut looked_at) = (0_u64, 0_u64, 0_u64);
    while looked_at < COUNTED && walk.step(store).await? {
        looked_at += STEP as u64;
        let keys: Vec<_> = walk.found.drain(..).collect();
        if keys.is_empty() {
            continue;
        }
        let mut lengths = redis::Pipeline::with_capacity(keys.len());
        for key in &keys {
            lengths.cmd("STRLEN").arg(store.key(key));
        }
        let lengths = store.shared.link.ask_all(&lengths, DOING).await?;
        for (key, length) in keys.iter().zip(lengths) {
            let length = u64::try_from(integer(length, DOING)?).unwrap_or(0);
            if length > 0 {
                entries += 1;
                bytes += key.as_str().len() as u64 + length;
            }
        }
    }
    if walk.nodes.is_some_and(|nodes| !nodes.is_empty()) {
        // A step looks at about as many keys as it is told to.
        let all = all.max(looked_at);
        entries = entries.saturating_mul(all) / looked_at;
        bytes = bytes.saturating_mul(all) / looked_at;
    }
    Ok(Usage::new(entries, bytes))
}

/// A text as a pattern that matches nothing else.
pub(super) fn escaped(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}
