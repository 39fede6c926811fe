//! What single steps cost on this machine: a frame of 64 KB packed and unpacked, and a
//! write that waits for the disk.
//!
//! `cargo run --release -p terrace --example costs`

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use terrace::clock::{Clock, SystemClock, WallTime};
use terrace::frame::{self, Header};
use terrace::ledger::Stamp;
use terrace::{Codec, Compression, Disk, Terrace};

const ROUNDS: usize = 200;
const FRAME: usize = 64 * 1024;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let clock = SystemClock::new();
    for level in [1, 3, 9] {
        packing(&clock, level)?;
    }
    writing(&clock).await
}

fn packing(clock: &SystemClock, level: u8) -> Result<(), Box<dyn Error>> {
    let compression = Compression::default().level(level);
    let value = records();
    let (mut packing, mut unpacking, mut stored) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        let begun = clock.elapsed();
        let bytes = frame::encode(&header(), value.clone(), compression);
        packing.push(clock.elapsed() - begun);
        let begun = clock.elapsed();
        let unpacked = frame::decode(&bytes, FRAME)?.value()?;
        unpacking.push(clock.elapsed() - begun);
        assert_eq!(unpacked, value, "what was packed comes back");
        stored = bytes.len();
    }
    tell(&format!("pack a frame of 64 KB, level {level} ({stored} bytes)"), packing);
    tell(&format!("unpack it, level {level}"), unpacking);
    Ok(())
}

async fn writing(clock: &SystemClock) -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let terrace = Terrace::builder().tier("disk", Disk::at(directory.path())).build().await?;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let (key, value) = (format!("key:{round}"), "x".repeat(1024));
        let begun = clock.elapsed();
        terrace.set(&key, &value).await?;
        times.push(clock.elapsed() - begun);
    }
    terrace.close().await;
    tell("write 1 KB to the disk tier and wait for it", times);
    Ok(())
}

/// 64 KB of text that repeats itself as records do.
fn records() -> Vec<u8> {
    let mut text = String::new();
    for number in 0.. {
        if text.len() >= FRAME {
            break;
        }
        let line = format!(
            r#"{{"icao":"{number:04X}","name":"Airport {number}","elevation":{}}},"#,
            number * 37 % 9000
        );
        text.push_str(&line);
    }
    text.truncate(FRAME);
    text.into_bytes()
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
        tags: Vec::new().into(),
        dependencies: Vec::new().into(),
        key: Bytes::from_static(b"key"),
    }
}

#[expect(clippy::print_stdout, reason = "an example speaks to whoever runs it")]
fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    println!("{what}: p50 {:?}, p99 {:?}", at(50), at(99));
}
