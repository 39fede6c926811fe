//! Which versions are compared.

include!(concat!(env!("OUT_DIR"), "/locked.rs"));

/// The compiler's version, which is that of what the standard library has.
pub const COMPILER: &str = env!("COMPILER");

/// The version of a package in the lock file that this program was built with.
#[must_use]
pub fn of(package: &str) -> &'static str {
    LOCKED.iter().find(|(name, _)| *name == package).map_or("unknown", |(_, version)| version)
}
