//! The disk tier: what is found in its directory, its bound, and what others do to its files: one
//! file per hazard.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test that cannot go on has to say so and stop; between processes real time passes"
)]

mod alone;
mod bound;
#[cfg(target_os = "linux")]
mod failing;
#[cfg(unix)]
mod files;
mod flipped;
#[cfg(target_os = "linux")]
mod nth;
mod opening;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "other binaries use more of it")]
mod support;
mod warm;
