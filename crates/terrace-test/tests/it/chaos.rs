//! The chaos store does what it is told, and nothing else.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use terrace::Disk;
use terrace::key::StoredKey;
use terrace::ledger::{Name, Stamp};
use terrace::store::{Put, Store, StoreErrorKind};
use terrace_test::{Calls, ChaosStore, Damage, Fault, MapStore, Verb};

fn key() -> StoredKey {
    StoredKey::new("", "s", 1, b"k")
}

fn put(frame: &'static str) -> Put {
    let (stamp, tags) = (Stamp::default(), Arc::from([]));
    Put { key: key(), frame: frame.into(), expires: None, stamp, tags }
}

fn over_map() -> (Arc<MapStore>, Arc<ChaosStore>) {
    let map = Arc::new(MapStore::new());
    (Arc::clone(&map), Arc::new(ChaosStore::over(map)))
}

/// Whether `work` waits, however often it is asked.
fn waits(work: impl Future) -> bool {
    let mut work = pin!(work);
    let mut context = Context::from_waker(Waker::noop());
    (0..10).all(|_| matches!(work.as_mut().poll(&mut context), Poll::Pending))
}

#[tokio::test]
async fn a_call_that_fails_does_nothing() {
    let (map, chaos) = over_map();
    chaos.inject(Verb::Put, Fault::Fail(StoreErrorKind::Full));
    assert_eq!(chaos.put(&[put("1")]).await.unwrap_err().kind(), StoreErrorKind::Full);
    assert_eq!(map.writes(), 0);
    assert!(chaos.get(&[key()]).await.is_ok(), "another verb");
    chaos.heal();
    assert!(chaos.put(&[put("1")]).await.is_ok());
    assert_eq!((chaos.calls_of(Verb::Put), chaos.calls_of(Verb::Get), chaos.calls()), (2, 1, 3));
}

#[tokio::test]
async fn a_call_can_be_done_and_yet_fail_or_hang() {
    let (map, chaos) = over_map();
    chaos.inject(Calls::from(Verb::Put).nth(1), Fault::FailAfter(StoreErrorKind::Deadline));
    assert!(chaos.put(&[put("1")]).await.is_err());
    assert_eq!(map.raw(&key()), Some("1".into()));
    chaos.inject(Verb::Put, Fault::HangAfter);
    assert!(waits(chaos.put(&[put("2")])));
    assert_eq!(map.raw(&key()), Some("2".into()));
    chaos.heal();
    chaos.hang();
    assert!(waits(chaos.put(&[put("3")])));
    assert_eq!(map.raw(&key()), Some("2".into()));
}

#[tokio::test]
async fn the_calls_that_are_meant_are_met() {
    let (_, chaos) = over_map();
    let keys = [key()];
    let fault = || Fault::Fail(StoreErrorKind::Other);
    chaos.inject(Calls::of([Verb::Get, Verb::Scan]).nth(3), fault());
    chaos.inject(Calls::from(Verb::Get).first(1), fault());
    let mut failed = Vec::new();
    for _ in 0..2 {
        failed.push(chaos.get(&keys).await.is_err());
        failed.push(chaos.usage().await.is_err());
        failed.push(chaos.scan(None, 1).await.is_err());
    }
    assert_eq!(failed, [true, false, false, true, false, false]);
}

#[tokio::test]
async fn a_call_that_is_never_polled_is_no_call() {
    let (_, chaos) = over_map();
    drop(chaos.get(&[key()]));
    assert_eq!(chaos.calls(), 0);
}

#[tokio::test]
async fn frames_are_damaged_on_their_way_out() {
    let (map, chaos) = over_map();
    chaos.put(&[put("abc")]).await.unwrap();
    let cases: [(Damage, &[u8]); 4] = [
        (Damage::Flip(4), &[b'a', !b'b', b'c']),
        (Damage::Truncate(1), b"a"),
        (Damage::Truncate(9), b"abc"),
        (Damage::Replace("xy".into()), b"xy"),
    ];
    for (damage, expected) in cases {
        chaos.heal();
        chaos.inject(Calls::all(), Fault::Damage(damage));
        let expected = Bytes::copy_from_slice(expected);
        assert_eq!(chaos.get(&[key()]).await.unwrap(), [Some(expected.clone())]);
        assert_eq!(chaos.scan(None, 9).await.unwrap(), [(key(), expected)]);
    }
    assert_eq!(map.raw(&key()), Some("abc".into()), "what is stored stays whole");

    let long = Bytes::from(vec![0; 100]);
    let noise = Damage::Noise(1).to(&long);
    assert_eq!(noise.len(), 100);
    assert_eq!(noise, Damage::Noise(1).to(&long), "the same seed, the same noise");
    assert_ne!(noise, Damage::Noise(2).to(&long));
    assert_eq!(Damage::Flip(3).to(&Bytes::new()), Bytes::new());
}

#[tokio::test]
async fn a_gate_lets_calls_go_on_one_by_one() {
    let (map, chaos) = over_map();
    let gate = chaos.hold(Verb::Put);
    let write = |frame| {
        let chaos = Arc::clone(&chaos);
        tokio::spawn(async move { chaos.put(&[put(frame)]).await.map(drop) })
    };
    let first = write("1");
    gate.arrived().await;
    let second = write("2");
    gate.arrived_many(2).await;
    assert_eq!((gate.arrivals(), map.writes()), (2, 0));
    gate.release_one();
    first.await.unwrap().unwrap();
    assert_eq!((map.writes(), second.is_finished()), (1, false));
    gate.open();
    second.await.unwrap().unwrap();
    chaos.put(&[put("3")]).await.unwrap();
    assert_eq!((gate.arrivals(), map.writes()), (3, 3));
}

#[tokio::test]
async fn a_call_dropped_at_a_gate_leaves_its_pass_to_the_next() {
    let (map, chaos) = over_map();
    let gate = chaos.hold(Verb::Put);
    assert!(waits(chaos.put(&[put("1")])));
    gate.release_one();
    chaos.put(&[put("2")]).await.unwrap();
    assert_eq!((map.writes(), map.raw(&key())), (1, Some("2".into())));
    assert!(waits(chaos.put(&[put("3")])), "one pass, one call");
    drop(gate);
    chaos.put(&[put("4")]).await.unwrap();
}

#[tokio::test]
async fn an_answer_can_be_held_back_while_the_call_is_done() {
    let (map, chaos) = over_map();
    let gate = chaos.hold_answers(Verb::Put);
    let write = tokio::spawn({
        let chaos = Arc::clone(&chaos);
        async move { chaos.put(&[put("1")]).await.map(drop) }
    });
    gate.arrived().await;
    assert_eq!((map.writes(), write.is_finished()), (1, false));
    gate.open();
    write.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_ledger_meets_the_same_faults() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(Disk::at(directory.path()).open().unwrap());
    let chaos = ChaosStore::over(disk.clone());
    let authority = chaos.authority().unwrap();
    let name = [Name::Everything];
    chaos.inject(Calls::of_authority(), Fault::Fail(StoreErrorKind::Unavailable));
    assert!(authority.append(&name).await.is_err());
    assert!(chaos.get(&[key()]).await.is_ok());
    chaos.heal();
    chaos.inject(Calls::of_store(), Fault::Fail(StoreErrorKind::Unavailable));
    assert_eq!(authority.append(&name).await.unwrap().position.number, 1, "the first was not done");
    assert!(chaos.get(&[key()]).await.is_err());
    assert_eq!(chaos.calls_of(Verb::Append), 2);
    assert!(ChaosStore::over(disk).without_authority().authority().is_none());
}
