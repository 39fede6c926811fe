//! Operations on a cache in memory. The driver is a file of the tests, which play random scripts
//! without this fuzzer.

#![no_main]

#[path = "../../crates/terrace-memory/tests/it/script.rs"]
mod script;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| script::play(bytes));
