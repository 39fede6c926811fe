//! What is broken, hostile or away: loaders, stores, bytes, keys, clocks, processes, and what the sources
//! must not contain. One file per hazard.
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

mod backoff;
mod bomb;
mod clock;
mod conformance;
mod damaged;
mod errors;
mod golden_frame;
mod guard;
mod keys;
mod one_step;
mod outage;
mod panic;
mod restart;
mod skew;
mod stop;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "other binaries use more of it")]
mod support;
mod unsafe_code;
