//! The **guard** of a tier: a deadline around every exchange with its store.
//!
//! "Redis is down?" is answered here: a store that does not answer in time costs a
//! caller the deadline and no more, and its answer, if one ever comes, is dropped.

use std::future::Future;
use std::time::Duration;

use crate::runtime::{Runtime, unless};
use crate::store::{StoreError, StoreErrorKind};

/// How long a tier's store may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadlines {
    pub(crate) read: Duration,
    pub(crate) write: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { read: Duration::from_secs(1), write: Duration::from_secs(10) }
    }
}

/// The answer of `exchange`, or an error once `deadline` has passed.
pub(crate) async fn within<T>(
    runtime: &dyn Runtime,
    deadline: Duration,
    doing: &'static str,
    exchange: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    unless(|| runtime.sleep(deadline), exchange)
        .await
        .unwrap_or_else(|| Err(StoreError::new(StoreErrorKind::Deadline, doing)))
}
