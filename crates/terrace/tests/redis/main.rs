//! The Redis tier against real servers, which are paused, killed and cut off: one file per hazard.
//! Where processes that share a directory are promised the same, they are here, too.
#![allow(
    clippy::async_yields_async,
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

mod away;
mod clocks;
mod cold;
mod conformance;
mod connections;
mod crosstalk;
mod cut;
mod failover;
mod flap;
mod fleet;
mod flipped;
mod flood;
mod formats;
mod full;
mod hang;
mod health;
mod history;
mod hot;
mod isolated;
mod jitter;
mod least;
mod names;
mod no_scripts;
mod parked;
mod play;
mod race;
mod replies;
mod restart;
mod resurrection;
mod rights;
mod shards;
mod slow;
mod source;
mod stampede;
mod support;
mod testnode;
mod tls;
mod together;
