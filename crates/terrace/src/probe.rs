//! The **probe**: a cheap question to the source, which version of a value it has.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{LoaderFailure, SharedError};
use crate::key::Key;
use crate::load::{Loading, catch_panic};
use crate::runtime::{Runtime, unless};

/// A space's probe.
pub(crate) type Probe<K> =
    Arc<dyn Fn(<K as ToOwned>::Owned) -> Loading<Option<Arc<str>>> + Send + Sync>;

/// The caller's function as a probe.
pub(crate) fn probe<K, F, Fut, T, E>(ask: F) -> Probe<K>
where
    K: Key + ?Sized,
    F: Fn(K::Owned) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Option<T>, E>> + Send + 'static,
    T: Into<Arc<str>>,
    E: LoaderFailure,
{
    Arc::new(move |key| {
        let asked = ask(key);
        Box::pin(async move {
            let version = asked.await.map_err(|error| Arc::new(error) as SharedError)?;
            Ok(version.map(Into::into))
        })
    })
}

/// What a source says when it is asked whether it still has a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Same,
    Changed,
    /// It did not answer, or not in time.
    Unknown,
}

/// Asks a source that had `version` when the value was loaded.
pub(crate) async fn ask(
    runtime: &dyn Runtime,
    limit: Duration,
    asked: Loading<Option<Arc<str>>>,
    version: Option<&Arc<str>>,
) -> Verdict {
    match unless(|| runtime.sleep(limit), catch_panic(asked)).await {
        Some(Ok(Ok(now))) if now.is_some() && now.as_ref() == version => Verdict::Same,
        Some(Ok(Ok(_))) => Verdict::Changed,
        Some(Ok(Err(error))) => {
            tracing::debug!(%error, "a version probe failed: what is cached is served");
            Verdict::Unknown
        }
        Some(Err(_)) | None => Verdict::Unknown,
    }
}
