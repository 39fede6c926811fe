//! Whose a value is: tenants, kinds, and frames that are signed. One file per hazard.
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

mod forged;
mod kinds;
mod redis_forged;
mod redis_tenants;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "other binaries use more of it")]
mod support;
mod tenants;
mod two_tenants;
