//! Tests of the whole cache: one file per hazard.
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
mod backoff;
mod bomb;
mod broad;
mod bulkhead;
mod cancel;
mod circle;
mod clock;
mod conformance;
mod copies;
mod damaged;
mod depends;
mod errors;
mod events;
mod golden_frame;
mod guard;
mod history;
mod keys;
mod many_keys;
mod model;
mod not_found;
mod options;
mod outage;
mod panic;
mod probe;
mod race;
mod refresh;
mod restart;
mod skew;
mod slow;
mod stampede;
mod stop;
mod strict;
mod supersede;
mod support;
mod sweep;
mod tickets;
mod unsafe_code;
mod verbs;
mod waves;
