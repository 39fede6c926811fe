//! What several files of this binary need: counts, values that are counted, and a process alone.

use std::env;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::Weigh;

/// A count of every day, or the full one.
pub(crate) fn count(everyday: u64, full: u64) -> u64 {
    if env::var_os("TERRACE_FULL").is_some() { full } else { everyday }
}

/// Counts values that are alive, and the bytes that they say they weigh.
#[derive(Clone, Default)]
pub(crate) struct Census(Arc<[AtomicU64; 2]>);

impl Census {
    /// A value that is counted until it is dropped.
    pub(crate) fn value(&self, number: u64, weight: u64) -> Tracked {
        self.0[0].fetch_add(1, Relaxed);
        self.0[1].fetch_add(weight, Relaxed);
        Tracked { number: Box::new(number), weight, census: self.clone() }
    }

    pub(crate) fn values(&self) -> u64 {
        self.0[0].load(Relaxed)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0[1].load(Relaxed)
    }
}

/// A value that is counted, and owns something that is gone when it is dropped.
pub(crate) struct Tracked {
    number: Box<u64>,
    weight: u64,
    census: Census,
}

/// What a number is when its value has been dropped.
const DROPPED: u64 = u64::MAX;

impl Tracked {
    /// The number it was made with.
    pub(crate) fn number(&self) -> u64 {
        let number = *self.number;
        assert_ne!(number, DROPPED, "a value is read that was dropped");
        number
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        assert_ne!(*self.number, DROPPED, "a value is dropped twice");
        *self.number = DROPPED;
        self.census.0[0].fetch_sub(1, Relaxed);
        self.census.0[1].fetch_sub(self.weight, Relaxed);
    }
}

impl Weigh for Tracked {
    fn weight(&self) -> u64 {
        self.weight
    }
}

/// Runs a test in a process of its own: a thread that reads two caches at a time keeps all other
/// caches of the process from freeing anything.
pub(crate) fn alone(test: &str, body: impl FnOnce()) {
    alone_with(test, &[], body);
}

/// The same with these variables in its environment.
pub(crate) fn alone_with(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) {
    const IS_ALONE: &str = "TERRACE_MEMORY_TEST_IS_ALONE";
    if env::var_os(IS_ALONE).is_some() {
        return body();
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command.envs(variables.iter().copied());
    let output =
        command.args(["--exact", test, "--nocapture"]).env(IS_ALONE, "1").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}{failed}");
    assert!(told.contains("1 passed"), "there is no test of this name: {told}");
}
