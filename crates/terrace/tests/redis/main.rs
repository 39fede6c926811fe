//! The Redis tier against real servers, which are paused, killed and cut off: one file per hazard.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test that cannot go on has to say so and stop"
)]

mod away;
mod clocks;
mod conformance;
mod failover;
mod fleet;
mod health;
mod isolated;
mod support;
