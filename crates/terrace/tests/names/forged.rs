//! Frames that somebody else has made, altered, moved or put back, in a store that anybody may
//! write to.

use std::sync::Arc;

use bytes::Bytes;
use terrace::frame::{FrameError, decode, encode, stamped};
use terrace::key::StoredKey;
use terrace::ledger::Stamp;
use terrace::store::Store as _;
use terrace::{BuildError, Compression, Disk, MacKeys, Memory, Space, Terrace, Tier};
use terrace_test::MapStore;

use crate::support::{Everywhere, count, random};

/// A secret that only the caches have.
pub(crate) const SECRET: [u8; 32] = [7; 32];

pub(crate) fn keys() -> MacKeys {
    MacKeys::new(&SECRET).unwrap()
}

/// A frame as whoever has no key can make one: of the header of another frame, with `value`, and
/// with the checksum that it has to have.
pub(crate) fn made_of(frame: &Bytes, value: &str) -> Bytes {
    let unsigned = with_checksum([&frame[..6], &[0, 0], &frame[8..frame.len() - 40]].concat());
    let header = decode(&unsigned, usize::MAX).unwrap().header;
    // MessagePack of a short text.
    let value: Vec<u8> = std::iter::once(0xa0 | value.len() as u8).chain(value.bytes()).collect();
    encode(&header, value, Compression::off())
}

/// The same, said to have a MAC.
pub(crate) fn with_some_mac(unsigned: &Bytes, mac: [u8; 32]) -> Bytes {
    let end = unsigned.len() - 8;
    with_checksum([&unsigned[..6], &[1, 0], &unsigned[8..end], &mac].concat())
}

pub(crate) fn with_checksum(mut body: Vec<u8>) -> Bytes {
    body.extend(xxhash_rust::xxh3::xxh3_64(&body).to_le_bytes());
    body.into()
}

/// A frame with one bit changed, and the checksum put right.
fn altered(frame: &Bytes, bit: usize) -> Bytes {
    let mut body = frame[..frame.len() - 8].to_vec();
    body[bit / 8] ^= 1 << (bit % 8);
    with_checksum(body)
}

/// A store that others can write to, below a cache that has nothing else.
struct Bed {
    store: Arc<MapStore>,
    terrace: Terrace,
    texts: Space<str, String>,
}

impl Bed {
    async fn new(keys: Option<MacKeys>) -> Self {
        let store = Arc::new(MapStore::new());
        let mut builder = Terrace::builder().tier("map", Tier::shared(Arc::clone(&store) as _));
        if let Some(keys) = keys {
            builder = builder.mac(keys);
        }
        let terrace = builder.build().await.unwrap();
        let texts = terrace.space::<str, String>("s").forever().build().unwrap();
        Self { store, terrace, texts }
    }

    async fn get(&self, key: &str) -> Option<String> {
        self.texts.get(key).await.unwrap().map(|text| text.to_string())
    }

    /// What the store holds under a key of the space.
    async fn stored(&self, key: &str) -> (StoredKey, Bytes) {
        let is_it = |stored: &StoredKey| {
            stored.space() == "s" && stored.key().as_deref() == Some(key.as_bytes())
        };
        let stored = self.store.keys().into_iter().find(is_it).unwrap();
        let mut frames = self.store.get(std::slice::from_ref(&stored)).await.unwrap();
        (stored, frames.pop().flatten().unwrap())
    }

    async fn unreadable(&self) -> u64 {
        self.terrace.stats().await.tiers[0].traffic.unreadable
    }
}

#[tokio::test]
async fn x7_what_was_made_or_altered_without_the_key_is_refused() {
    let bed = Bed::new(Some(keys())).await;
    bed.texts.insert("k", "true".into()).await.everywhere();
    let (stored, frame) = bed.stored("k").await;
    assert_eq!(bed.get("k").await.as_deref(), Some("true"));
    let forged = made_of(&frame, "false");
    let mut random = random("altered frames");
    let mut others = vec![
        Bytes::from_static(b"anything"),
        with_some_mac(&forged, [0; 32]),
        with_some_mac(&forged, frame[frame.len() - 40..frame.len() - 8].try_into().unwrap()),
        // Too short for a MAC, and nothing but one.
        with_checksum([&frame[..6], &[1, 0], &frame[8..88]].concat()),
        with_checksum([&frame[..6], &[1, 0], &frame[8..100]].concat()),
        forged,
    ];
    let bits = (0..count(300, 10_000)).map(|_| random.usize(..(frame.len() - 8) * 8));
    others.extend(bits.map(|bit| altered(&frame, bit)));
    for (at, other) in others.into_iter().enumerate() {
        bed.store.set_raw(&stored, other.clone());
        let before = bed.unreadable().await;
        assert_eq!(bed.get("k").await, None, "{other:?}");
        assert!(
            !bed.texts.exists("k").await.unwrap()
                && !bed.texts.expire("k", Default::default()).await.unwrap()
        );
        // Each is counted as damage is.
        assert!(bed.unreadable().await > before, "number {at}");
    }
    bed.store.set_raw(&stored, frame);
    assert_eq!(bed.get("k").await.as_deref(), Some("true"));
}

/// A frame is right in its own place alone: not under another key, space, tenant, or type.
#[tokio::test]
async fn x7_values_that_were_exchanged_are_refused() {
    let bed = Bed::new(Some(keys())).await;
    let long = |end: &str| format!("{}{end}", "k".repeat(300));
    for key in ["k", "l", &long("1"), &long("2")] {
        bed.texts.insert(key, format!("s {key}")).await.everywhere();
        bed.terrace.set(key, &"dynamic".to_owned()).forever().await.everywhere();
        let other = bed.terrace.space::<str, String>("t").forever().build().unwrap();
        other.insert(key, "t".into()).await.everywhere();
        let tenant = bed.terrace.tenant("acme").unwrap();
        tenant.set(key, &"of acme".to_owned()).forever().await.everywhere();
        let numbers = bed.terrace.space::<str, u64>("s").forever().build().unwrap();
        numbers.insert(key, 7).await.everywhere();
        bed.texts.insert(key, format!("s {key}")).await.everywhere();
    }
    let (texts, stored) = (&bed.texts, bed.store.keys());
    let frames = bed.store.get(&stored).await.unwrap();
    let mut exchanged = 0;
    for (place, own) in stored.iter().zip(&frames) {
        for other in frames.iter().filter(|other| *other != own) {
            bed.store.set_raw(place, other.clone().unwrap());
            exchanged += 1;
            for key in ["k", "l", &long("1"), &long("2")] {
                let found = texts.get(key).await.unwrap();
                assert!(found.is_none_or(|found| *found == format!("s {key}")));
                let found = bed.terrace.get::<String>(key).await.unwrap();
                assert!(found.is_none_or(|found| *found == "dynamic"));
                let tenant = bed.terrace.tenant("acme").unwrap();
                let found = tenant.get::<String>(key).await.unwrap();
                assert!(found.is_none_or(|found| *found == "of acme"));
            }
        }
        bed.store.set_raw(place, own.clone().unwrap());
    }
    assert!(exchanged >= 200, "{exchanged}");
    assert_eq!(bed.get("k").await.as_deref(), Some("s k"));
}

#[tokio::test]
async fn x7_what_is_put_back_is_refused_where_the_ledger_knows_newer() {
    let bed = Bed::new(Some(keys())).await;
    for number in 0..count(300, 10_000) {
        bed.texts.insert("k", "old".into()).tags(["t"]).await.everywhere();
        let (stored, old) = bed.stored("k").await;
        match number % 5 {
            0 => drop(bed.texts.invalidate("k").await.unwrap()),
            1 => drop(bed.terrace.invalidate_tag("t").await.unwrap()),
            2 => drop(bed.texts.clear().await.unwrap()),
            3 => drop(bed.texts.invalidate_prefix("k").await.unwrap()),
            _ => drop(bed.texts.insert("k", "new".into()).await.unwrap()),
        }
        bed.store.set_raw(&stored, old);
        assert_eq!(bed.get("k").await, None, "{number}");
    }
}

/// Each is told apart in the log and in the errors, and neither is ever served.
#[tokio::test]
async fn frames_with_and_without_a_mac_do_not_mix() {
    let (with, without) = (Bed::new(Some(keys())).await, Bed::new(None).await);
    for bed in [&with, &without] {
        bed.texts.insert("k", "v".into()).await.everywhere();
    }
    let ((place, signed), (_, unsigned)) = (with.stored("k").await, without.stored("k").await);
    assert_eq!(decode(&signed, usize::MAX).unwrap_err(), FrameError::NoKey);
    assert_eq!(stamped(&signed, Stamp::default()).unwrap_err(), FrameError::NoKey);
    assert!(decode(&unsigned, usize::MAX).is_ok());
    assert_eq!(signed.len(), unsigned.len() + 32);
    with.store.set_raw(&place, unsigned);
    without.store.set_raw(&place, signed);
    for bed in [&with, &without] {
        assert_eq!(bed.get("k").await, None);
        assert_eq!(bed.unreadable().await, 1);
        // What is loaded takes its place.
        let load = |_| async { Ok::<_, std::io::Error>("w".to_owned()) };
        assert_eq!(*bed.texts.get_or_load("k", load).await.unwrap(), "w");
        assert_eq!(bed.get("k").await.as_deref(), Some("w"));
    }
}

/// From the old secret to the new one, in a directory that stays: without a miss if former secrets
/// are accepted, and without an answer if they are not.
#[tokio::test]
async fn secrets_can_be_changed() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new, other) = ([1; 32], [2; 40], [3; 32]);
    let keys = |secret: &[u8]| MacKeys::new(secret).unwrap();
    let over = async |keys: MacKeys| {
        let builder = Terrace::builder().memory(Memory::bytes(1 << 20)).mac(keys);
        builder.tier("disk", Disk::at(directory.path())).build().await.unwrap()
    };
    let before = over(keys(&old)).await;
    before.set("k", &1).forever().await.everywhere();
    before.close().await;
    let changing = keys(&new).former(&other).unwrap().former(&old).unwrap();
    let during = over(changing).await;
    assert_eq!(during.get::<i32>("k").await.unwrap().as_deref(), Some(&1));
    during.set("l", &2).forever().await.everywhere();
    during.close().await;
    let after = over(keys(&new)).await;
    assert_eq!(after.get::<i32>("k").await.unwrap().as_deref(), None);
    assert_eq!(after.get::<i32>("l").await.unwrap().as_deref(), Some(&2));
    // Long keys are found by patterns in signed frames, too.
    let long = "x".repeat(300);
    after.set(&long, &3).forever().await.everywhere();
    after.clear_tier("memory").await.unwrap();
    after.remove_pattern("*x?").await.unwrap();
    assert!(!after.exists(&long).await.unwrap());
    after.close().await;
}

#[test]
fn secrets_are_long_and_shown_nowhere() {
    assert!(matches!(MacKeys::new(&[7; 31]), Err(BuildError::Setting(_))));
    let keys = MacKeys::new(b"a marked secret, which is longer").unwrap();
    assert!(keys.clone().former(b"short").is_err());
    let keys = keys.former(&[b's'; 32]).unwrap();
    let shown = format!("{keys:?} {:?}", Terrace::builder().mac(keys.clone()));
    assert!(shown.contains("MacKeys") && !shown.contains("marked"), "{shown}");
    // Nor as a list of numbers.
    assert!(!format!("{keys:?}").contains('['), "{keys:?}");
}
