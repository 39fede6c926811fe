//! amalgam: its builder, without a bound as it comes and with one; `Arc` for values that are dear
//! to clone.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use amalgam::{Cache, EntryOptions};
use anyhow::Result;

use super::{Loading, Sharing};
use crate::load::{Source, User};
use crate::versions;

/// It knows no entries that do not expire; longer than any case.
const HOUR: Duration = Duration::from_secs(3600);

/// `Cache::get_or_set`, with a capacity or without.
#[derive(Clone)]
pub struct AmalgamLoading<const BOUNDED: bool>(Cache<Arc<User>>);

impl<const BOUNDED: bool> Loading for AmalgamLoading<BOUNDED> {
    const NAME: &'static str = if BOUNDED { "amalgam-bounded" } else { "amalgam-unbounded" };

    fn version() -> &'static str {
        versions::of("amalgam-cache")
    }

    async fn with_room_for(entries: usize) -> Result<Self> {
        let builder = Cache::builder().default_options(EntryOptions::new(HOUR));
        let builder = if BOUNDED { builder.max_capacity(entries as u64) } else { builder };
        Ok(Self(builder.try_build()?))
    }

    async fn fill(&self, keys: &[String]) -> Result<()> {
        for key in keys {
            self.0.set(key, Arc::new(User::of(key))).await?;
        }
        Ok(())
    }

    // What loads may borrow nothing: whoever calls this has to own the key beforehand.
    #[inline]
    async fn get_or_load(&self, key: &str, source: &'static Source) -> Result<u64> {
        let owned = key.to_owned();
        let load = move |_| async move { Ok::<_, Infallible>(Arc::new(source.load(&owned).await)) };
        Ok(self.0.get_or_set(key, load).await?.id)
    }

    async fn close(self) {
        // What it could not end is its own affair.
        let _ = self.0.shutdown().await;
    }
}

impl<const BOUNDED: bool> Sharing for AmalgamLoading<BOUNDED> {
    async fn try_load(&self, key: &str, source: &'static Source) -> Option<u64> {
        let owned = key.to_owned();
        let load = move |_| async move { source.try_load(&owned).await.map(Arc::new) };
        Some(self.0.get_or_set(key, load).await.ok()?.id)
    }
}
