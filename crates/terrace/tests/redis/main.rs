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
mod connections;
mod crosstalk;
mod failover;
mod flap;
mod fleet;
mod full;
mod hang;
mod health;
mod hot;
mod isolated;
mod least;
mod replies;
mod restart;
mod rights;
mod slow;
mod support;
mod tls;
