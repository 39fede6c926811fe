//! Terrace beside other caches: the same keys and values, interleaved in one process.
//!
//! `README.md` says how to read what comes out, and how every engine is set up and why.

pub mod counting;
pub mod engines;
pub mod goal;
pub mod harness;
pub mod kind;
pub mod load;
pub mod optimal;
pub mod report;
pub mod simulator;
pub mod statistics;
pub mod suites;
pub mod traces;
pub mod versions;
