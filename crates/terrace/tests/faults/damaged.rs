//! Frames that are damaged, foreign or under the wrong key are misses.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use terrace::clock::WallTime;
use terrace::frame::{FrameError, Header, decode, encode};
use terrace::key::StoredKey;
use terrace::ledger::Stamp;
use terrace::{Codec, Compression, Disk, Source, Terrace, Tier, Traffic};
use terrace_test::MapStore;

use crate::support::count;

const LIMIT: usize = 1 << 20;

/// Where the fields of a frame stand; docs/format.md has them all.
const FORMAT: usize = 3;
const CODEC: usize = 4;
const PACKING: usize = 5;
const FLAGS: usize = 6;
const SIZE: usize = 56;
const PAYLOAD_LENGTH: usize = 64;
const KEY_LENGTH: usize = 72;
const TAGS: usize = 76;
const FIXED: usize = 88;
const CHECKSUM: usize = 8;

fn header() -> Header {
    Header {
        codec: Codec::Json,
        created: WallTime::from_millis(1_000),
        expires: Some(WallTime::from_millis(2_000)),
        stale_until: Some(WallTime::from_millis(3_000)),
        stamp: Stamp { incarnation: 7, number: 9 },
        last_modified: None,
        version: Some("v".into()),
        tags: Arc::from([Arc::from(":red"), Arc::from(":blue")]),
        dependencies: Arc::from([Arc::from(":other")]),
        key: Bytes::from_static(b"key"),
    }
}

/// One frame that is packed and one that is not.
fn frames() -> [Bytes; 2] {
    let value = b"a value that can be packed; ".repeat(40);
    [
        encode(&header(), value.clone(), Compression::off()),
        encode(&header(), value, Compression::default().from_bytes(1)),
    ]
}

/// The frame with other bytes at `at`, and the checksum that goes with them.
fn altered(frame: &[u8], at: usize, bytes: &[u8]) -> Bytes {
    let mut body = frame[..frame.len() - CHECKSUM].to_vec();
    body[at..at + bytes.len()].copy_from_slice(bytes);
    sealed(body)
}

fn sealed(mut body: Vec<u8>) -> Bytes {
    body.extend_from_slice(&xxhash_rust::xxh3::xxh3_64(&body).to_le_bytes());
    body.into()
}

/// Reads a frame as a tier does; what comes out keeps to the limit.
fn read(frame: &Bytes, limit: usize) -> Result<(Header, Bytes), FrameError> {
    let frame = decode(frame, limit)?;
    let value = frame.value()?;
    assert_eq!(value.len(), frame.size);
    assert!(value.len() <= limit);
    Ok((frame.header, value))
}

#[test]
fn every_flipped_bit_is_found() {
    for frame in frames() {
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged.into(), LIMIT).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn every_truncation_is_found() {
    for frame in frames() {
        for length in 0..frame.len() {
            assert!(read(&frame.slice(..length), LIMIT).is_err(), "the first {length} bytes");
            assert!(
                read(&frame.slice(frame.len() - length..), LIMIT).is_err(),
                "the last {length}"
            );
        }
        let mut longer = frame.to_vec();
        longer.push(0);
        assert!(read(&longer.into(), LIMIT).is_err(), "a byte too many");
    }
}

#[test]
fn lengths_that_do_not_add_up_are_found_behind_a_right_checksum() {
    for frame in frames() {
        let field = |at: usize, bytes: usize| {
            let mut number = [0; 8];
            number[..bytes].copy_from_slice(&frame[at..at + bytes]);
            u64::from_le_bytes(number)
        };
        let lengths = [
            (SIZE, 8),
            (PAYLOAD_LENGTH, 8),
            (KEY_LENGTH, 4),
            (TAGS, 4),
            (TAGS + 4, 4),
            (TAGS + 8, 4),
        ];
        for (at, bytes) in lengths {
            let right = field(at, bytes);
            let largest = if bytes == 8 { u64::MAX } else { u64::from(u32::MAX) };
            let wrong = [
                0,
                1,
                2,
                right + 1,
                right.wrapping_sub(1),
                LIMIT as u64,
                LIMIT as u64 + 1,
                largest / 2,
                largest - 1,
                largest,
            ];
            for wrong in wrong.into_iter().filter(|&wrong| wrong != right && wrong <= largest) {
                let damaged = altered(&frame, at, &wrong.to_le_bytes()[..bytes]);
                assert!(read(&damaged, LIMIT).is_err(), "{wrong} for {right} at {at}");
            }
        }
    }
}

#[test]
fn a_frame_has_one_version_at_most() {
    let frame = encode(&header(), Vec::new(), Compression::off());
    let end = frame.len() - CHECKSUM;
    let mut two = frame[..end].to_vec();
    two.extend([0; 4]);
    two[TAGS + 8] = 2;
    assert_eq!(read(&sealed(two), LIMIT).err(), Some(FrameError::Damaged));
    let mut none = frame[..end - 5].to_vec();
    none[TAGS + 8] = 0;
    let (without, _) = read(&sealed(none), LIMIT).unwrap();
    assert_eq!(without, Header { version: None, ..header() });
}

#[test]
fn frames_of_other_formats_are_unknown() {
    for frame in frames() {
        for byte in 0..=u8::MAX {
            let unknown = |at, known: &[u8]| {
                let error = decode(&altered(&frame, at, &[byte]), LIMIT).err();
                if known.contains(&byte) {
                    assert_eq!(error, None, "{byte} at {at}");
                } else {
                    assert_eq!(error, Some(FrameError::Unknown), "{byte} at {at}");
                }
            };
            unknown(FORMAT, &[1]);
            unknown(CODEC, &[1, 2, 3]);
            unknown(PACKING, &[0, 1]);
            // The first flag says that there is a MAC, the second that there is a stamp behind.
            if ![1, 2].contains(&byte) {
                unknown(FLAGS, &[0]);
            }
            unknown(FLAGS + 1, &[0]);
        }
        assert_eq!(decode(&altered(&frame, FLAGS, &[1]), LIMIT).err(), Some(FrameError::NoKey));
        assert_eq!(decode(&altered(&frame, FLAGS, &[2]), LIMIT).err(), Some(FrameError::Damaged));
        // A later format may be shorter, and have its checksum elsewhere.
        assert_eq!(decode(&Bytes::from_static(b"TRC\x02"), LIMIT).err(), Some(FrameError::Unknown));
        assert_eq!(decode(&altered(&frame, 0, b"TRD"), LIMIT).err(), Some(FrameError::Foreign));
    }
}

fn texts() -> impl Strategy<Value = Arc<[Arc<str>]>> {
    prop::collection::vec(".{0,20}".prop_map(Arc::from), 0..5).prop_map(Arc::from)
}

fn times() -> impl Strategy<Value = Option<WallTime>> {
    prop::option::of((0..u64::MAX).prop_map(WallTime::from_millis))
}

prop_compose! {
    fn headers()(
        codec in prop::sample::select(vec![Codec::MessagePack, Codec::Json, Codec::Raw]),
        created in any::<u64>().prop_map(WallTime::from_millis),
        expires in times(),
        stale_until in times(),
        last_modified in times(),
        stamp in any::<(u64, u64)>(),
        version in prop::option::of(".{0,20}".prop_map(Arc::from)),
        tags in texts(),
        dependencies in texts(),
        key in prop::collection::vec(any::<u8>(), 0..300),
    ) -> Header {
        let stamp = Stamp { incarnation: stamp.0, number: stamp.1 };
        let key = key.into();
        Header { codec, created, expires, stale_until, stamp, last_modified, version, tags, dependencies, key }
    }
}

fn cases() -> ProptestConfig {
    ProptestConfig { cases: count(2_000, 100_000) as u32, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn what_is_written_is_read(
        header in headers(),
        value in prop::collection::vec(0_u8..4, 0..2_000),
        level in 0_u8..4,
    ) {
        let frame = encode(&header, value.clone(), Compression::default().level(level).from_bytes(100));
        let (read, unpacked) = read(&frame, value.len()).unwrap();
        prop_assert_eq!(read, header);
        prop_assert_eq!(unpacked, value.clone());
        if let Some(limit) = value.len().checked_sub(1) {
            prop_assert_eq!(decode(&frame, limit).err(), Some(FrameError::TooLarge));
        }
    }

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(read(&bytes.clone().into(), LIMIT).is_err());
        let framed = [b"TRC\x01", &bytes[..]].concat();
        prop_assert!(read(&framed.into(), LIMIT).is_err());
    }

    // What a forger can make: here only panics and the limit count, and `read` looks at both.
    #[test]
    fn random_bytes_behind_a_right_checksum_do_no_harm(
        (codec, packing) in (1_u8..4, 0_u8..2),
        stamps_and_times in prop::collection::vec(any::<u8>(), SIZE - FLAGS - 2),
        (size, payload) in (0_u64..200, 0_u64..60),
        lengths in prop::array::uniform4(prop_oneof![4 => 0_u32..4, 1 => any::<u32>()]),
        rest in prop::collection::vec(prop_oneof![3 => 0_u8..3, 1 => any::<u8>()], 0..200),
    ) {
        let mut body = vec![b'T', b'R', b'C', 1, codec, packing, 0, 0];
        body.extend(stamps_and_times);
        body.extend([size, payload].into_iter().flat_map(u64::to_le_bytes));
        body.extend(lengths.into_iter().flat_map(u32::to_le_bytes));
        body.extend(rest);
        let _ = read(&sealed(body), LIMIT);
    }

    #[test]
    fn a_frame_that_was_altered_behind_a_right_checksum_does_no_harm(
        frame in prop::sample::select(frames().to_vec()),
        changes in prop::collection::vec((0_usize..FIXED + 40, any::<u8>()), 1..6),
        cut in 0_usize..60,
    ) {
        let mut body = frame[..frame.len() - CHECKSUM - cut].to_vec();
        for (at, byte) in changes {
            let at = at.clamp(FORMAT + 1, body.len() - 1);
            body[at] = byte;
        }
        let _ = read(&sealed(body), LIMIT);
    }
}

/// A cache over one map, without memory, so that every read goes down.
struct Rig {
    store: Arc<MapStore>,
    terrace: Terrace,
}

impl Rig {
    async fn new() -> Self {
        let store = Arc::new(MapStore::new());
        let tier = Tier::shared(store.clone()).compression(Compression::default().from_bytes(64));
        let terrace = Terrace::builder().tier("map", tier).build().await.unwrap();
        Self { store, terrace }
    }

    /// Stores `value` under `key` and says under which stored key its frame is.
    async fn set(&self, key: &str, value: &str) -> StoredKey {
        let _ = self.terrace.set(key, &value.to_owned()).forever().await.unwrap();
        StoredKey::new("", "", 0, key.as_bytes())
    }

    async fn get_or_load(&self, key: &str, loaded: &'static str) -> (String, Source) {
        let load = |_| async move { Ok::<_, Infallible>(loaded.to_owned()) };
        let answer = self.terrace.get_or_load(key, load).forever().await.unwrap();
        (answer.to_string(), answer.source().clone())
    }

    async fn traffic(&self) -> Traffic {
        self.terrace.stats().await.tiers[0].traffic.clone()
    }
}

const VALUE: &str =
    "the value that was stored, long enough to be packed; ; ; ; ; ; ; ; ; ; ; ; ; ; ; ;";
const LOADED: &str = "the value that the loader brings";

/// Puts each frame under the key in turn: it is a miss, counted as `unreadable`
/// says, the loader answers, and its value takes the frame's place.
async fn are_misses(
    rig: &Rig,
    key: &str,
    frames: impl IntoIterator<Item = Bytes>,
    unreadable: bool,
) {
    let stored = StoredKey::new("", "", 0, key.as_bytes());
    for (index, frame) in frames.into_iter().enumerate() {
        rig.store.set_raw(&stored, frame.clone());
        let before = rig.traffic().await;
        assert!(rig.terrace.get::<String>(key).await.unwrap().is_none(), "frame {index}");
        let answer = rig.get_or_load(key, LOADED).await;
        assert_eq!(answer, (LOADED.to_owned(), Source::Loader), "frame {index}");
        let after = rig.traffic().await;
        assert_eq!(after.misses - before.misses, 2, "frame {index}");
        let counted = after.unreadable - before.unreadable;
        assert_eq!(counted, if unreadable { 2 } else { 0 }, "frame {index}");
        assert_eq!(after.errors, 0, "a frame is not a failure of its tier");
        let again = rig.get_or_load(key, "not asked for").await;
        assert_eq!(again, (LOADED.to_owned(), Source::Tier("map".into())), "frame {index}");
        assert_ne!(rig.store.raw(&stored).unwrap(), frame, "frame {index} was replaced");
    }
}

#[tokio::test]
async fn a_damaged_frame_is_a_miss_that_is_counted() {
    let rig = Rig::new().await;
    let stored = rig.set("key", VALUE).await;
    let whole = rig.store.raw(&stored).unwrap();
    assert_eq!(rig.get_or_load("key", "not asked for").await.0, VALUE);
    assert_eq!(whole[PACKING], 1, "it is packed");

    let flipped = (0..whole.len()).map(|at| {
        let mut damaged = whole.to_vec();
        damaged[at] ^= 1 << (at % 8);
        damaged.into()
    });
    are_misses(&rig, "key", flipped, true).await;
    are_misses(&rig, "key", (0..whole.len()).map(|length| whole.slice(..length)), true).await;
    let noise = (0..200).map(|length| (0..length).map(|_| fastrand::u8(..)).collect());
    are_misses(&rig, "key", noise, true).await;
}

#[tokio::test]
async fn a_foreign_frame_is_a_miss_that_is_counted() {
    let rig = Rig::new().await;
    let stored = rig.set("key", VALUE).await;
    let whole = rig.store.raw(&stored).unwrap();
    let foreign = [
        altered(&whole, FORMAT, &[2]),
        altered(&whole, FORMAT, &[0]),
        altered(&whole, CODEC, &[4]),
        altered(&whole, CODEC, &[255]),
        altered(&whole, PACKING, &[2]),
        altered(&whole, PACKING, &[255]),
        altered(&whole, FLAGS, &[1, 0]),
        altered(&whole, FLAGS, &[0, 128]),
        altered(&whole, 0, b"XYZ"),
        Bytes::new(),
        Bytes::from_static(b"TRC"),
        Bytes::from_static(b"{\"not\": \"a frame\"}"),
    ];
    are_misses(&rig, "key", foreign, true).await;
}

#[tokio::test]
async fn a_frame_whose_value_is_something_else_is_a_miss_that_is_counted() {
    let rig = Rig::new().await;
    let stored = rig.set("key", VALUE).await;
    let whole = rig.store.raw(&stored).unwrap();
    let header = decode(&whole, LIMIT).unwrap().header;
    let with = |codec, value: &[u8]| {
        let header = Header { codec, ..header.clone() };
        encode(&header, value.to_vec(), Compression::off())
    };
    let others = [
        with(Codec::MessagePack, b""),
        with(Codec::MessagePack, b"\xc1"),
        with(Codec::MessagePack, b"\xdb\xff\xff\xff\xff"),
        with(Codec::MessagePack, &[0x91; 5_000]),
        with(Codec::Json, b"17"),
        with(Codec::Json, &[b'['; 5_000]),
        with(Codec::Raw, b"bytes"),
        // Packed, it says, and is not; of another size than it says.
        altered(&with(Codec::Json, b"\"text\""), PACKING, &[1]),
        altered(&whole, SIZE, &1_u64.to_le_bytes()),
        altered(&whole, SIZE, &(64_u64 << 20).to_le_bytes()),
        altered(&whole, SIZE, &u64::MAX.to_le_bytes()),
    ];
    are_misses(&rig, "key", others, true).await;
}

#[tokio::test]
async fn a_frame_under_the_wrong_key_is_a_miss() {
    let rig = Rig::new().await;
    let long = |last: char| format!("{}{last}", "x".repeat(1_000));
    for (key, other) in [("key".to_owned(), "other".to_owned()), (long('1'), long('2'))] {
        let _ = rig.set(&key, VALUE).await;
        let other = rig.set(&other, "the other value").await;
        let frame = rig.store.raw(&other).unwrap();
        are_misses(&rig, &key, [frame], false).await;
    }
}

#[tokio::test]
async fn a_frame_of_another_ledger_is_a_miss() {
    let rig = Rig::new().await;
    let stored = rig.set("key", VALUE).await;
    let whole = rig.store.raw(&stored).unwrap();
    let Header { stamp, .. } = decode(&whole, LIMIT).unwrap().header;
    let other = (stamp.incarnation ^ 1).to_le_bytes();
    are_misses(&rig, "key", [altered(&whole, 40, &other)], false).await;
}

#[tokio::test]
async fn many_keys_share_their_damage_with_nobody() {
    let rig = Rig::new().await;
    let keys: Vec<_> = (0..10).map(|number| format!("key:{number}")).collect();
    for key in &keys {
        let stored = rig.set(key, VALUE).await;
        if key.ends_with(['3', '7']) {
            rig.store.set_raw(&stored, "damaged");
        }
    }
    let asked: Vec<_> = keys.iter().map(String::as_str).collect();
    let answers = rig.terrace.get_many::<String>(&asked).await.unwrap();
    for (key, answer) in keys.iter().zip(answers) {
        assert_eq!(answer.is_none(), key.ends_with(['3', '7']), "{key}");
    }
    assert_eq!(rig.traffic().await.unreadable, 2);
}

#[tokio::test]
async fn a_damaged_frame_on_disk_is_a_miss_that_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::at(directory.path());
    let terrace = Terrace::builder().tier("disk", disk.clone()).build().await.unwrap();
    let _ = terrace.set("key", &VALUE.to_owned()).forever().await.unwrap();
    let whole = terrace.get::<String>("key").await.unwrap();
    assert_eq!(whole.as_deref().map(String::as_str), Some(VALUE));

    let database = rusqlite::Connection::open(disk.database()).unwrap();
    let frames: Vec<u8> =
        database.query_row("SELECT frame FROM entry", [], |row| row.get(0)).unwrap();
    for at in (0..frames.len()).step_by(7) {
        let mut damaged = frames.clone();
        damaged[at] ^= 255;
        database.execute("UPDATE entry SET frame = ?1", [damaged]).unwrap();
        assert!(terrace.get::<String>("key").await.unwrap().is_none(), "byte {at}");
    }
    let traffic = terrace.stats().await.tiers[0].traffic.clone();
    assert_eq!((traffic.unreadable, traffic.errors), (frames.len().div_ceil(7) as u64, 0));
    let load = |_| async { Ok::<_, Infallible>(LOADED.to_owned()) };
    assert_eq!(terrace.get_or_load("key", load).await.unwrap().as_str(), LOADED);
    let stored = terrace.get::<String>("key").await.unwrap();
    assert_eq!(stored.as_deref().map(String::as_str), Some(LOADED));
}
