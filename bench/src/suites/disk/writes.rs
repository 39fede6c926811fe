//! **Writes** over what is there: by one task, and by several that each wait for one write before
//! the next.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;

use super::side::Round;
use crate::engines::Disk;
use crate::load::{Random, text_key};

const WRITERS: usize = 8;

/// Microseconds a value, and values a second, over all tasks.
pub(super) fn by_tasks<D: Disk>(
    disk: &Arc<D>,
    round: &Round,
    mut random: Random,
) -> Result<Vec<f64>> {
    let each = round.operations / WRITERS;
    let orders: Vec<_> = (0..WRITERS).map(|_| made(round, each, &mut random)).collect();
    round.runtime.block_on(async {
        let mut tasks = Vec::new();
        let began = Instant::now();
        for order in orders {
            let disk = Arc::clone(disk);
            tasks.push(tokio::spawn(async move { write(&*disk, &order).await }));
        }
        for task in tasks {
            task.await??;
        }
        let each = began.elapsed().as_secs_f64() / (each * WRITERS) as f64;
        Ok(vec![each * 1e6, 1.0 / each])
    })
}

/// Microseconds a value.
pub(super) fn one_by_one<D: Disk>(
    disk: &Arc<D>,
    round: &Round,
    mut random: Random,
) -> Result<Vec<f64>> {
    let warm_up = made(round, round.operations / 5, &mut random);
    let timed = made(round, round.operations, &mut random);
    round.runtime.block_on(async {
        write(&**disk, &warm_up).await?;
        let began = Instant::now();
        write(&**disk, &timed).await?;
        Ok(vec![began.elapsed().as_secs_f64() * 1e6 / timed.len() as f64])
    })
}

fn made(round: &Round, count: usize, random: &mut Random) -> Vec<(String, Bytes)> {
    let mut make = || {
        let number = random.below(round.values.count);
        (text_key(number), round.values.make(number, random))
    };
    (0..count).map(|_| make()).collect()
}

async fn write<D: Disk>(disk: &D, entries: &[(String, Bytes)]) -> Result<()> {
    for (key, value) in entries {
        disk.write(key, value).await?;
    }
    Ok(())
}
