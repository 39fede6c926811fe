//! `tail-expiry`: many entries expire at once while they are asked for.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::pass::Pass;
use crate::engines::Expiring;
use crate::engines::mini_moka::MiniMoka;
use crate::engines::moka::Moka;
use crate::engines::terrace::TerraceExpiring;
use crate::harness::{Engine, race};
use crate::kind::{Integers, Kind as _};
use crate::load::{Draw, Drawer, Random};

const ENTRIES: usize = 100_000;

/// How long entries are kept: longer than it takes to store them all.
const TTL: Duration = Duration::from_millis(300);

/// Threads begin so long before the first entry expires, and end so long after the last.
const AROUND: Duration = Duration::from_millis(10);

/// How often somebody lets go of what has expired, in engines that have to be told.
const SWEEPING: Duration = Duration::from_millis(10);

pub(super) fn engines(order: &[u32]) -> Vec<Engine<'_>> {
    vec![
        engine::<TerraceExpiring>(order),
        engine::<Moka<Integers>>(order),
        engine::<MiniMoka<Integers>>(order),
    ]
}

/// The numbers that are asked for.
pub(super) fn order() -> Vec<u32> {
    let drawer = Drawer::new(Draw::Uniform, ENTRIES);
    let mut random = Random::new(42);
    (0..1 << 18).map(|_| drawer.draw(&mut random) as u32).collect()
}

fn engine<E: Expiring>(order: &[u32]) -> Engine<'_> {
    Engine::new(E::NAME, E::version(), move || {
        let engine = E::with_ttl(2 * ENTRIES, TTL);
        let begun = Instant::now();
        for number in 0..ENTRIES as u64 {
            insert(&engine, number);
        }
        engine.settle();
        let filled = begun.elapsed();
        ensure!(filled + AROUND < TTL, "entries expired before all were stored");
        thread::sleep((TTL - AROUND).saturating_sub(filled));

        let end = begun + filled + TTL + AROUND;
        // Two ask, and the third lets go of what has expired.
        let race = race(3, |thread| match thread {
            2 => {
                while Instant::now() < end {
                    engine.sweep();
                    thread::sleep(SWEEPING);
                }
                Ok(Vec::new())
            }
            _ => ask(&engine, order, thread * order.len() / 2, end),
        });
        let mut pass = Pass::default();
        for times in race.results {
            pass.times.extend(times?);
        }
        Ok(pass.slowest().to_vec())
    })
}

/// Reads and stores anew what has expired, each timed on its own.
fn ask<E: Expiring>(engine: &E, order: &[u32], first: usize, end: Instant) -> Result<Vec<u32>> {
    let mut times = Vec::with_capacity(1 << 22);
    let mut expired = 0;
    let mut now = Instant::now();
    let mut timed = |since: Instant| {
        let now = Instant::now();
        times.push(u32::try_from((now - since).as_nanos()).unwrap_or(u32::MAX));
        now
    };
    for number in order.iter().cycle().skip(first) {
        if now >= end {
            break;
        }
        let key = Integers::key((*number).into());
        let found = engine.get(&key);
        now = timed(now);
        match found {
            Some(value) => ensure!(Integers::is_right(&key, &value), "a read was wrong"),
            None => {
                insert(engine, (*number).into());
                now = timed(now);
                expired += 1;
            }
        }
    }
    ensure!(expired > 0, "nothing expired");
    Ok(times)
}

fn insert<E: Expiring>(engine: &E, number: u64) {
    let key = Integers::key(number);
    engine.insert(key, Integers::value(&key));
}
