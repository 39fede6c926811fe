//! Counts allocations; see the module `counting`.

use std::alloc::System;
use std::process::ExitCode;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use terrace_bench::counting::{self, Counts};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() -> ExitCode {
    counting::answer(|| {
        let stats = ALLOCATOR.stats();
        Counts {
            allocations: stats.allocations.wrapping_add(stats.reallocations) as i64,
            live_bytes: stats.bytes_allocated.wrapping_sub(stats.bytes_deallocated) as i64,
        }
    })
}
