//! The machine that numbers come from.

use std::fs;
use std::thread;
use std::time::Duration;

use terrace_bench::versions;

/// Its threads, processor and compiler, in a few words.
pub fn described() -> String {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let processor = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(": ")?.1.trim().to_owned())
    });
    let processor = processor.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let system = fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| std::env::consts::OS.to_owned(), |text| format!("Linux {}", text.trim()));
    format!("{threads} threads of {processor}, {system}, rustc {}", versions::COMPILER)
}

/// The share of the machine that others use, if it is enough to disturb.
pub fn busy() -> Option<f64> {
    let (before, _) = (processor_time()?, thread::sleep(Duration::from_millis(500)));
    let after = processor_time()?;
    let all = after.0.checked_sub(before.0).filter(|all| *all > 0)?;
    let busy = 1.0 - after.1.saturating_sub(before.1) as f64 / all as f64;
    (busy > 0.05).then_some(busy)
}

/// All of it since the start, and the idle part of it.
fn processor_time() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let times: Vec<u64> =
        text.lines().next()?.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // user, nice, system, idle, waiting for disks, …
    Some((times.iter().take(8).sum(), times.get(3)? + times.get(4)?))
}
