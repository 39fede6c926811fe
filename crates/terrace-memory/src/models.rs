//! Models: small programs of two or three threads, each run in every interleaving that matters,
//! and with every value that a weak memory model lets a load return.
//!
//! What runs is the code of the crate itself, on the types of `loom` ([`crate::sync`]); `loom`
//! also reports an entry that is read or taken without a happens-before. What it cannot run is
//! the system call that [`crate::barrier`] makes on Linux: here both halves of the barrier are
//! sequentially consistent fences, as on other systems. Nor does it see plain memory that is used
//! after it was freed: lists and tables that have been replaced are left to the address sanitizer.
//!
//! Each model says by which weakening of the code it was made to fail.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

mod freed;
mod torn;
mod undead;

use std::env;

use loom::model::Builder;

/// Runs a model in all interleavings with a few preemptions, as most races need no more than three.
/// `LOOM_MAX_PREEMPTIONS` says otherwise.
fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    let bound = if env::var_os("TERRACE_FULL").is_some() { 4 } else { 3 };
    builder.preemption_bound = builder.preemption_bound.or(Some(bound));
    builder.max_branches = 100_000;
    builder.check(model);
}
