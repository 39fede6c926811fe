//! Writing to the source: through, around, and behind. One file per hazard.
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

mod acknowledged;
mod behind;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "other binaries use more of it")]
mod support;
mod through;
