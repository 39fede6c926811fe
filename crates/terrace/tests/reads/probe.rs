//! A source that can say cheaply which version it has: what it changed is loaded anew at the next
//! read, and only then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use terrace::{Cached, LoadError, Loaded, Memory, Source, Space, Terrace, Tier};
use terrace_test::{ManualClock, MapStore};

use crate::support::{Refused, ends};

const SECOND: Duration = Duration::from_secs(1);

/// A source that counts what it is asked. Version 0: it does not answer probes.
#[derive(Debug, Default)]
struct Origin {
    version: AtomicU64,
    probes: AtomicU64,
    loads: AtomicU64,
}

impl Origin {
    fn probe(self: Arc<Self>) -> Result<Option<String>, Refused> {
        self.probes.fetch_add(1, Ordering::SeqCst);
        match self.version.load(Ordering::SeqCst) {
            0 => Err(Refused(0)),
            version => Ok(Some(version.to_string())),
        }
    }

    fn asked(&self) -> (u64, u64) {
        (self.probes.load(Ordering::SeqCst), self.loads.load(Ordering::SeqCst))
    }
}

struct Rig {
    terrace: Terrace,
    space: Space<str, u64>,
    origin: Arc<Origin>,
    clock: Arc<ManualClock>,
}

impl Rig {
    async fn new() -> Self {
        let clock = Arc::new(ManualClock::new());
        let terrace = Terrace::builder()
            .memory(Memory::bytes(1 << 20))
            .tier("map", Tier::of(MapStore::new()))
            .clock(Arc::<ManualClock>::clone(&clock))
            .build()
            .await
            .unwrap();
        let origin = Arc::new(Origin { version: AtomicU64::new(1), ..Origin::default() });
        let asked = Arc::clone(&origin);
        let space = terrace
            .space("space")
            .forever()
            .version_probe(5 * SECOND, move |_: String| {
                let asked = Arc::clone(&asked);
                async move { asked.probe() }
            })
            .build()
            .unwrap();
        Self { terrace, space, origin, clock }
    }

    async fn read(&self) -> Result<Cached<u64>, LoadError<Refused>> {
        let origin = Arc::clone(&self.origin);
        let read = self.space.get_or_load("key", move |_| async move {
            origin.loads.fetch_add(1, Ordering::SeqCst);
            let version = origin.version.load(Ordering::SeqCst);
            Ok(Loaded::value(version).version(version.to_string()))
        });
        ends("a read", read).await
    }
}

#[tokio::test]
async fn what_its_source_has_not_changed_is_asked_for_now_and_then_and_never_loaded() {
    let rig = Rig::new().await;
    for _ in 0..10 {
        assert_eq!(*rig.read().await.unwrap(), 1);
    }
    assert_eq!(rig.origin.asked(), (0, 1), "a load is as good as an answer");
    for round in 1..=3 {
        rig.clock.advance(5 * SECOND);
        for _ in 0..10 {
            assert_eq!(*rig.read().await.unwrap(), 1);
        }
        assert_eq!(rig.origin.asked(), (round, 1));
    }
}

#[tokio::test]
async fn what_its_source_has_changed_is_loaded_before_it_is_answered() {
    let rig = Rig::new().await;
    assert_eq!(*rig.read().await.unwrap(), 1);
    rig.origin.version.store(2, Ordering::SeqCst);
    rig.clock.advance(5 * SECOND);
    let read = rig.read().await.unwrap();
    assert_eq!((*read, read.version(), read.source()), (2, Some("2"), &Source::Loader));
    assert_eq!(rig.origin.asked(), (1, 2));
    assert_eq!(rig.read().await.unwrap().source(), &Source::Memory);
}

#[tokio::test]
async fn what_comes_from_below_memory_is_asked_for_first() {
    let rig = Rig::new().await;
    assert_eq!(*rig.read().await.unwrap(), 1);
    rig.terrace.clear_tier("memory").await.unwrap();
    let read = rig.read().await.unwrap();
    assert_eq!((*read, read.source()), (1, &Source::Tier("map".into())));
    assert_eq!(rig.origin.asked(), (1, 1));
    rig.terrace.clear_tier("memory").await.unwrap();
    rig.origin.version.store(2, Ordering::SeqCst);
    assert_eq!(*rig.read().await.unwrap(), 2);
}

#[tokio::test]
async fn a_source_that_does_not_answer_keeps_nobody_from_what_is_fresh() {
    let rig = Rig::new().await;
    assert_eq!(*rig.read().await.unwrap(), 1);
    rig.origin.version.store(0, Ordering::SeqCst);
    rig.clock.advance(5 * SECOND);
    for _ in 0..10 {
        assert_eq!(*rig.read().await.unwrap(), 1);
    }
    assert_eq!(rig.origin.asked(), (1, 1));
}
