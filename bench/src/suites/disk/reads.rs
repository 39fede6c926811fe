//! **Reads** by one task, one after the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::side::Round;
use crate::engines::Disk;
use crate::load::{Random, text_key};
use crate::statistics::estimate;

/// Microseconds a read, and milliseconds for a thousand of them: of those thousands, the median.
pub(super) fn of_thousands<D: Disk>(
    disk: &Arc<D>,
    round: &Round,
    random: Random,
) -> Result<Vec<f64>> {
    let times = timed(disk, round, random, 1000)?;
    let each = times.iter().sum::<Duration>() / u32::try_from(times.len() * 1000)?;
    let thousands = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    let thousand = estimate(thousands).map(|found| found.median);
    Ok([each.as_nanos() as f64 / 1e3].into_iter().chain(thousand).collect())
}

/// Microseconds a read.
pub(super) fn one_by_one<D: Disk>(
    disk: &Arc<D>,
    round: &Round,
    random: Random,
) -> Result<Vec<f64>> {
    let times = timed(disk, round, random, 1)?;
    let all = times.iter().sum::<Duration>();
    Ok(vec![all.as_secs_f64() * 1e6 / times.len() as f64])
}

/// The times of so many reads each.
fn timed<D: Disk>(
    disk: &Arc<D>,
    round: &Round,
    mut random: Random,
    each: usize,
) -> Result<Vec<Duration>> {
    let keys = |order: Vec<usize>| -> Vec<(String, usize)> {
        order.into_iter().map(|number| (text_key(number), number)).collect()
    };
    let (warm_up, timed) = round.order(&mut random);
    let (warm_up, timed) = (keys(warm_up), keys(timed));
    round.runtime.block_on(async {
        read(&**disk, round, &warm_up).await?;
        let mut times = Vec::with_capacity(timed.len() / each);
        for some in timed.chunks_exact(each) {
            let began = Instant::now();
            read(&**disk, round, some).await?;
            times.push(began.elapsed());
        }
        Ok(times)
    })
}

async fn read<D: Disk>(disk: &D, round: &Round, keys: &[(String, usize)]) -> Result<()> {
    for (key, number) in keys {
        let is_right = disk.read(key, |found| round.values.is_of(found, *number)).await?;
        ensure!(is_right == Some(true), "a read found nothing, or another value");
    }
    Ok(())
}
