//! The Redis tier against real servers, which are paused, killed and cut off: one file per hazard.
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

mod away;
mod clocks;
mod conformance;
mod cut;
mod failover;
mod fleet;
mod health;
mod history;
mod isolated;
mod jitter;
mod play;
mod race;
mod resurrection;
mod source;
mod stampede;
mod support;
mod testnode;
