//! The kits catch stores that break a promise.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use terrace::Disk;
use terrace::authority::Authority;
use terrace::clock::WallTime;
use terrace::key::StoredKey;
use terrace::store::{Put, Scope, Store, StoreResult, Stored, Usage};
use terrace_test::{MapStore, conformance};

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    AnswersInReverse,
    LeavesOutMisses,
    ClearsEverything,
    ClearsByPattern,
    ClearsInAnyCase,
    MiscountsCleared,
    AlwaysRemoved,
    ScanRepeats,
    ScanEndsEarly,
    ScanNeverEnds,
    PageTooLong,
    CutsLongFrames,
    SwallowsEmptyFrames,
    IgnoresCase,
    KeepsTheEarlier,
    ForgetsToCountReplaced,
    SweepsEverything,
    HalfOfACall,
    HidesBehindClose,
    RefusesNothing,
    RefusesAll,
    KeepsItsLedgerToItself,
}

use Flaw::*;

#[derive(Debug)]
struct Flawed {
    inner: Arc<dyn Store>,
    flaw: Flaw,
    puts: AtomicU64,
    is_closed: AtomicBool,
}

impl Flawed {
    fn over(inner: Arc<dyn Store>, flaw: Flaw) -> Arc<dyn Store> {
        Arc::new(Self { inner, flaw, puts: 0.into(), is_closed: false.into() })
    }

    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn keys(&self, keys: &[StoredKey]) -> Vec<StoredKey> {
        keys.iter().map(|key| self.key(key)).collect()
    }

    fn key(&self, key: &StoredKey) -> StoredKey {
        if self.is(IgnoresCase) {
            return StoredKey::parse(&key.as_str().to_lowercase()).unwrap();
        }
        key.clone()
    }
}

impl Store for Flawed {
    fn scope(&self) -> Scope {
        self.inner.scope()
    }

    fn get<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<Option<Bytes>>> {
        Box::pin(async move {
            let mut frames = self.inner.get(&self.keys(keys)).await?;
            if self.is(AnswersInReverse) {
                frames.reverse();
            }
            if self.is(LeavesOutMisses) {
                frames.retain(Option::is_some);
            }
            if self.is(SwallowsEmptyFrames) {
                frames = frames.into_iter().map(|frame| frame.filter(|f| !f.is_empty())).collect();
            }
            if self.is(HidesBehindClose) && self.is_closed.load(Ordering::Relaxed) {
                frames = vec![Some(Bytes::from_static(b"?")); keys.len()];
            }
            Ok(frames)
        })
    }

    fn put<'a>(&'a self, puts: &'a [Put]) -> StoreResult<'a, Vec<Stored>> {
        Box::pin(async move {
            let mut puts = puts.to_vec();
            for put in &mut puts {
                put.key = self.key(&put.key);
                if self.is(CutsLongFrames) {
                    put.frame.truncate(1 << 16);
                }
                if self.is(RefusesNothing) {
                    let snapshot = self.inner.authority().unwrap().snapshot().await?;
                    put.stamp.number = snapshot.last;
                }
            }
            if self.is(KeepsTheEarlier) {
                puts.reverse();
            }
            if self.is(HalfOfACall) {
                let halves: Vec<_> = puts
                    .iter()
                    .map(|put| Put { frame: put.frame.slice(..put.frame.len() / 2), ..put.clone() })
                    .collect();
                self.inner.put(&halves).await?;
                tokio::task::yield_now().await;
            }
            self.puts.fetch_add(puts.len() as u64, Ordering::Relaxed);
            let mut stored = self.inner.put(&puts).await?;
            if self.is(RefusesAll) && stored.contains(&Stored::Refused) {
                stored.fill(Stored::Refused);
            }
            Ok(stored)
        })
    }

    fn remove<'a>(&'a self, keys: &'a [StoredKey]) -> StoreResult<'a, Vec<bool>> {
        Box::pin(async move {
            let mut removed = self.inner.remove(&self.keys(keys)).await?;
            if self.is(AlwaysRemoved) {
                removed.fill(true);
            }
            Ok(removed)
        })
    }

    fn clear<'a>(&'a self, prefix: &'a str) -> StoreResult<'a, u64> {
        Box::pin(async move {
            if self.is(ClearsEverything) {
                return self.inner.clear("").await;
            }
            if self.is(MiscountsCleared) {
                return self.inner.clear(prefix).await.map(|cleared| cleared.min(500));
            }
            if !self.is(ClearsByPattern) && !self.is(ClearsInAnyCase) {
                return self.inner.clear(prefix).await;
            }
            let mut cleared = 0;
            for (key, _) in self.inner.scan(None, usize::MAX).await? {
                let matches = if self.is(ClearsInAnyCase) {
                    key.as_str().to_lowercase().starts_with(&prefix.to_lowercase())
                } else {
                    // As LIKE would have it: `_` is any character.
                    prefix.len() <= key.as_str().len()
                        && prefix
                            .bytes()
                            .zip(key.as_str().bytes())
                            .all(|(p, k)| p == b'_' || p == k)
                };
                if matches {
                    self.inner.remove(&[key]).await?;
                    cleared += 1;
                }
            }
            Ok(cleared)
        })
    }

    fn scan<'a>(
        &'a self,
        after: Option<&'a StoredKey>,
        limit: usize,
    ) -> StoreResult<'a, Vec<(StoredKey, Bytes)>> {
        Box::pin(async move {
            if self.is(ScanNeverEnds) {
                let page = self.inner.scan(after, limit).await?;
                return if page.is_empty() { self.inner.scan(None, limit).await } else { Ok(page) };
            }
            if self.is(PageTooLong) {
                return self.inner.scan(after, limit + 1).await;
            }
            let mut page = self.inner.scan(after, limit).await?;
            if self.is(ScanRepeats) && page.len() < limit {
                page.extend(page.last().cloned());
            }
            if self.is(ScanEndsEarly) && page.len() < limit {
                page.pop();
            }
            Ok(page)
        })
    }

    fn usage(&self) -> StoreResult<'_, Usage> {
        Box::pin(async move {
            let usage = self.inner.usage().await?;
            if self.is(ForgetsToCountReplaced) && usage.entries > 0 {
                let puts = self.puts.load(Ordering::Relaxed);
                return Ok(Usage::new(puts, usage.bytes));
            }
            Ok(usage)
        })
    }

    fn authority(&self) -> Option<Arc<dyn Authority>> {
        if self.is(KeepsItsLedgerToItself) {
            // A ledger that has nothing to do with what is stored.
            return Some(Arc::new(terrace::authority::LocalAuthority::new(1)));
        }
        self.inner.authority()
    }

    fn maintain(&self, now: WallTime) -> StoreResult<'_, ()> {
        Box::pin(async move {
            if self.is(SweepsEverything) {
                self.inner.clear("").await?;
            }
            self.inner.maintain(now).await
        })
    }

    fn close(&self) -> StoreResult<'_, ()> {
        self.is_closed.store(true, Ordering::Relaxed);
        self.inner.close()
    }
}

/// The sentence with which the kit turns a store down.
fn verdict(make: impl Fn() -> Arc<dyn Store>) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let kit = AssertUnwindSafe(|| runtime.block_on(conformance::store(|| async { make() })));
    match std::panic::catch_unwind(kit) {
        Ok(()) => "passed".into(),
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
    }
}

#[test]
fn the_kit_says_what_is_wrong_with_a_store() {
    let flaws = [
        (AnswersInReverse, "get answers in the order of the keys"),
        (LeavesOutMisses, "get gives one answer for each key"),
        (ClearsEverything, "clear removes what begins with the prefix and nothing else"),
        (ClearsByPattern, "clear removes what begins with the prefix and nothing else"),
        (ClearsInAnyCase, "clear removes what begins with the prefix and nothing else"),
        (MiscountsCleared, "the empty prefix clears everything"),
        (AlwaysRemoved, "nothing cannot be removed"),
        (ScanRepeats, "a scan finds each entry once"),
        (ScanEndsEarly, "a scan gives keys back as they were put"),
        (ScanNeverEnds, "comes to an end"),
        (PageTooLong, "a page of a scan is not longer than its limit"),
        (CutsLongFrames, "a frame comes back byte for byte"),
        (SwallowsEmptyFrames, "get finds what was put last"),
        (IgnoresCase, "keys of any bytes and length do not meet"),
        (KeepsTheEarlier, "of two frames for one key in one call the later one is stored"),
        (ForgetsToCountReplaced, "usage counts the entries after frames were replaced"),
        (SweepsEverything, "housekeeping leaves what has not expired"),
        (HalfOfACall, "a call that is dropped is done or not done, never half"),
        (HidesBehindClose, "a closed store that answers tells the truth"),
    ];
    let mut overlooked = Vec::new();
    for (flaw, sentence) in flaws {
        let verdict = verdict(|| Flawed::over(Arc::new(MapStore::new()), flaw));
        if !verdict.contains(sentence) {
            overlooked.push(format!("{flaw:?}: {verdict}"));
        }
    }
    assert!(overlooked.is_empty(), "{}", overlooked.join("\n"));
}

#[test]
fn the_kit_says_what_is_wrong_with_a_store_that_keeps_a_ledger() {
    let flaws = [
        (RefusesNothing, "a frame older than a line that names it is refused"),
        (RefusesAll, "each frame of a call is judged by itself"),
        (KeepsItsLedgerToItself, "a small frame that is current is stored"),
    ];
    let directory = tempfile::tempdir().unwrap();
    let stores = AtomicU32::new(0);
    let mut overlooked = Vec::new();
    for (flaw, sentence) in flaws {
        let verdict = verdict(|| {
            let number = stores.fetch_add(1, Ordering::Relaxed);
            let disk = Disk::at(directory.path().join(number.to_string())).open().unwrap();
            Flawed::over(Arc::new(disk), flaw)
        });
        if !verdict.contains(sentence) {
            overlooked.push(format!("{flaw:?}: {verdict}"));
        }
    }
    assert!(overlooked.is_empty(), "{}", overlooked.join("\n"));
    // Beside a store that keeps none it refuses nothing and drops nothing.
    let verdict = verdict(|| Flawed::over(Arc::new(MapStore::new()), KeepsItsLedgerToItself));
    assert!(verdict.contains("is refused"), "{verdict}");
}
