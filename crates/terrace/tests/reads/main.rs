//! Reads and loads: what callers get, how often the source is asked, and who waits for what. One file
//! per hazard.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test that cannot go on has to say so and stop"
)]

mod answers;
mod bulkhead;
mod cancel;
mod circle;
mod copies;
mod many_keys;
mod not_found;
mod options;
mod probe;
mod refresh;
mod savings;
mod slow;
mod stampede;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "other binaries use more of it")]
mod support;
mod waves;
