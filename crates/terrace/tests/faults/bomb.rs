//! Payloads that unpack to more than anybody asked for.
//!
//! Time and memory are measured in a process of the test's own, so that no other
//! test is measured with it.

#![cfg(target_os = "linux")]
#![expect(clippy::disallowed_methods, reason = "how long a bomb burns is measured")]

use std::convert::Infallible;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use terrace::clock::WallTime;
use terrace::frame::{Header, decode, encode};
use terrace::key::StoredKey;
use terrace::ledger::Stamp;
use terrace::{Codec, Compression, Source, Terrace, Tier};
use terrace_test::MapStore;

use crate::support::{count, limit, ms};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// How much more than its limit a reader may take.
const ALLOWANCE: u64 = 16 * MIB;

/// A Zstandard stream of `blocks` blocks of 128 KiB of zeros, four bytes each, that
/// says as much about its length as `claim` does.
fn zeros(blocks: u64, claim: Option<u64>) -> Vec<u8> {
    let mut stream = vec![0x28, 0xb5, 0x2f, 0xfd];
    match claim {
        // A window of 8 MiB, and no length.
        None => stream.extend([0x00, 13 << 3]),
        // The length in eight bytes, after a window of 8 MiB.
        Some(length) => {
            stream.extend([0xc0, 13 << 3]);
            stream.extend(length.to_le_bytes());
        }
    }
    for block in 1..=blocks {
        let is_last = u32::from(block == blocks);
        let repeated: u32 = 1;
        let head = is_last | repeated << 1 | (128 << 10) << 3;
        stream.extend(&head.to_le_bytes()[..3]);
        stream.push(0);
    }
    stream
}

const BLOCK: u64 = 128 << 10;

/// A frame that says that `payload` is packed in some way, and unpacks to `size`.
fn frame(header: &Header, packing: u8, size: u64, payload: &[u8]) -> Bytes {
    let mut frame = encode(header, payload.to_vec(), Compression::off()).to_vec();
    frame.truncate(frame.len() - 8);
    frame[5] = packing;
    frame[56..64].copy_from_slice(&size.to_le_bytes());
    frame.extend_from_slice(&xxhash_rust::xxh3::xxh3_64(&frame).to_le_bytes());
    frame.into()
}

struct Bomb {
    name: String,
    packing: u8,
    size: u64,
    payload: Vec<u8>,
}

fn bombs(largest: u64) -> Vec<Bomb> {
    let mut bombs = Vec::new();
    let mut add = |name: &str, packing, size, payload: &[u8]| {
        let name = format!("{name}, packing {packing}, says {size}");
        bombs.push(Bomb { name, packing, size, payload: payload.to_vec() });
    };
    let ten_gib = 10 * GIB / BLOCK;
    let lies = [0, 1, 1_000, largest - 1, largest, largest + 1, 10 * GIB, u64::MAX - 1, u64::MAX];

    let streams = [
        ("without a length", zeros(ten_gib, None)),
        ("with its length", zeros(ten_gib, Some(10 * GIB))),
        ("with a small length", zeros(ten_gib, Some(1_000))),
        ("with the largest length", zeros(ten_gib, Some(u64::MAX))),
    ];
    for (name, stream) in &streams {
        for size in lies {
            add(&format!("10 GiB {name}"), 1, size, stream);
        }
    }
    // 10 KiB of blocks are the most that one layer makes of 10 KiB.
    for size in lies {
        add("10 KiB of blocks", 1, size, &zeros(2_560, None));
    }
    // Many streams one after another, and streams that are skipped, are one payload.
    let parts = zeros(1_000, Some(1_000 * BLOCK)).repeat(80);
    let skipped = [[0x50, 0x2a, 0x4d, 0x18].as_slice(), &[0xff; 4], &streams[0].1].concat();
    let empty = zeros(1, Some(0))[..13].repeat(25_000);
    for size in lies {
        add("80 streams", 1, size, &parts);
        add("a stream to skip", 1, size, &skipped);
        add("empty streams", 1, size, &empty);
    }
    // 10 GiB in two layers are a few bytes, in three even fewer.
    let two = zstd::bulk::compress(&streams[0].1, 19).expect("packed");
    let three = zstd::bulk::compress(&two.repeat(1_000), 19).expect("packed");
    for nested in [&two, &three] {
        assert!(nested.len() < 1_000, "{}", nested.len());
        for size in lies.into_iter().filter(|&size| size != streams[0].1.len() as u64) {
            add("nested", 1, size, nested);
        }
    }
    // What a build without the compression must refuse by its number alone.
    let gzip = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &[0; 10_000]].concat();
    let lz4 = [&[0x04, 0x22, 0x4d, 0x18, 0x60, 0x70, 0x73][..], &[0x1f; 10_000]].concat();
    for packing in 2..=255 {
        add("gzip", packing, 10 * GIB, &gzip);
        add("lz4", packing, largest, &lz4);
        add("zstd", packing, 1_000, &streams[0].1);
    }
    bombs
}

fn header() -> Header {
    Header {
        codec: Codec::Raw,
        created: WallTime::from_millis(0),
        expires: None,
        stale_until: None,
        stamp: Stamp::default(),
        last_modified: None,
        version: None,
        tags: Arc::default(),
        dependencies: Arc::default(),
        key: Bytes::from_static(b"bomb"),
    }
}

/// Bytes of memory: resident now, or the most that ever were.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    let kib: u64 = line.trim_matches([':', ' ', '\t', 'k', 'B']).parse().expect("a number");
    kib << 10
}

/// Lets the most that was ever resident be what is resident now.
fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").expect("Linux");
}

/// Asserts that `work` is quick and takes at most `largest` and the allowance.
#[track_caller]
fn contained<T>(name: &str, largest: u64, work: impl FnOnce() -> T) -> T {
    forget_peak();
    let (before, started) = (memory("VmRSS"), Instant::now());
    let output = work();
    let (took, most) = (started.elapsed(), memory("VmHWM").saturating_sub(before));
    assert!(took <= limit(ms(100)), "{name}: {took:?}");
    assert!(most <= largest + ALLOWANCE, "{name}: {} MiB, limit {} MiB", most >> 20, largest >> 20);
    output
}

const CHILD: &str = "TERRACE_TEST_BOMBS";

/// Runs a test of this file in a process of its own, where it does what it says.
fn in_a_process_of_its_own(test: &str) {
    let this = std::env::current_exe().expect("this binary");
    let child = Command::new(this)
        .args(["--exact", &format!("bomb::{test}"), "--nocapture", "--test-threads", "1"])
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .output()
        .expect("a process");
    let said = String::from_utf8_lossy(&child.stdout);
    let complained = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{said}\n{complained}");
    assert!(said.contains("1 passed"), "the test was found: {said}");
    assert!(said.contains("bombs were contained"), "the test did something: {said}");
}

#[test]
fn x5_frames_that_unpack_to_too_much_are_errors() {
    if std::env::var_os(CHILD).is_none() {
        return in_a_process_of_its_own("x5_frames_that_unpack_to_too_much_are_errors");
    }
    let mut contained_bombs = 0;
    for largest in [64 << 10, MIB, 64 * MIB] {
        for bomb in bombs(largest) {
            let frame = frame(&header(), bomb.packing, bomb.size, &bomb.payload);
            for _ in 0..count(1, 100) {
                let name = &bomb.name;
                let outcome = contained(name, largest, || {
                    decode(&frame, largest as usize).and_then(|frame| frame.value())
                });
                let length = outcome.as_ref().map(Bytes::len);
                assert!(outcome.is_err(), "{name}: limit {largest}, unpacked to {length:?}");
                contained_bombs += 1;
            }
        }
    }
    println!("{contained_bombs} bombs were contained");
}

#[test]
fn x5_a_cache_answers_in_spite_of_bombs() {
    if std::env::var_os(CHILD).is_none() {
        return in_a_process_of_its_own("x5_a_cache_answers_in_spite_of_bombs");
    }
    const LARGEST: u64 = 4 * MIB;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut contained_bombs = 0;
    for bomb in bombs(LARGEST) {
        for _ in 0..count(1, 100) {
            let store = Arc::new(MapStore::new());
            let tier = Tier::shared(store.clone()).max_value_bytes(LARGEST as usize);
            let terrace = runtime.block_on(Terrace::builder().tier("map", tier).build()).unwrap();
            let space = terrace.space::<str, Bytes>("raw").forever().build_raw().unwrap();
            let answer = |loaded: &'static [u8]| {
                let load = |_| async move { Ok::<_, Infallible>(Bytes::from_static(loaded)) };
                runtime.block_on(async { space.get_or_load("bomb", load).await.unwrap() })
            };
            assert_eq!(&answer(b"whole")[..], b"whole");
            let stored: StoredKey = store.keys()[0].clone();
            let whole = store.raw(&stored).unwrap();
            let header = decode(&whole, LARGEST as usize).unwrap().header;
            store.set_raw(&stored, frame(&header, bomb.packing, bomb.size, &bomb.payload));

            let answer = contained(&bomb.name, LARGEST, || answer(b"loaded"));
            assert_eq!((&answer[..], answer.source()), (&b"loaded"[..], &Source::Loader));
            let traffic = runtime.block_on(terrace.stats()).tiers[0].traffic.clone();
            assert_eq!(traffic.unreadable, 1, "{}", bomb.name);
            contained_bombs += 1;
        }
    }
    println!("{contained_bombs} bombs were contained");
}

/// What the streams above are, they are: one that is small enough unpacks.
#[test]
fn a_stream_of_zeros_within_the_limit_is_no_bomb() {
    let size = 10 * BLOCK;
    for stream in [zeros(10, None), zeros(10, Some(size)), zeros(5, None).repeat(2)] {
        let frame = frame(&header(), 1, size, &stream);
        let value = decode(&frame, size as usize).unwrap().value().unwrap();
        assert_eq!(value, vec![0; size as usize]);
    }
}
