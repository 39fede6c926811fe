//! Records of a journal: see crates/terrace/src/fuzz.rs, whose tests try the same blindly.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| terrace::fuzz::records(bytes));
