//! cached: its macro on an asynchronous function, with the store that it has by itself (no bound,
//! no expiry), with its locks by key and without; `Arc` for values that are dear to clone.

use std::sync::Arc;

use anyhow::Result;
use cached::Cached as _;
use cached::macros::cached;

use super::{Loading, Sharing};
use crate::load::{Down, Source, User};
use crate::versions;

#[cached(name = "USERS", key = "String", convert = { key.to_owned() })]
async fn user(key: &str, source: &'static Source) -> Arc<User> {
    Arc::new(source.load(key).await)
}

#[cached(
    name = "USERS_BY_KEY",
    key = "String",
    convert = { key.to_owned() },
    sync_writes = "by_key"
)]
async fn user_by_key(key: &str, source: &'static Source) -> Arc<User> {
    Arc::new(source.load(key).await)
}

#[cached(
    name = "USERS_IF_UP",
    key = "String",
    convert = { key.to_owned() },
    sync_writes = "by_key"
)]
async fn user_if_up(key: &str, source: &'static Source) -> Result<Arc<User>, Down> {
    source.try_load(key).await.map(Arc::new)
}

/// A function with the macro, of which there is one in the program: it is emptied in place of
/// being built anew. As it comes, it loads for every caller; `LOCKED`, callers of one key wait
/// for each other.
#[derive(Clone)]
pub struct CachedLoading<const LOCKED: bool>(());

impl<const LOCKED: bool> Loading for CachedLoading<LOCKED> {
    const NAME: &'static str = "cached-macro";

    fn version() -> &'static str {
        versions::of("cached")
    }

    async fn with_room_for(_: usize) -> Result<Self> {
        let empty = Self(());
        empty.clone().close().await;
        Ok(empty)
    }

    async fn fill(&self, keys: &[String]) -> Result<()> {
        let mut users = USERS.write().await;
        let mut users_by_key = USERS_BY_KEY.write().await;
        for key in keys {
            let user = Arc::new(User::of(key));
            if LOCKED {
                users_by_key.cache_set(key.clone(), user);
            } else {
                users.cache_set(key.clone(), user);
            }
        }
        Ok(())
    }

    #[inline]
    async fn get_or_load(&self, key: &str, source: &'static Source) -> Result<u64> {
        if LOCKED { Ok(user_by_key(key, source).await.id) } else { Ok(user(key, source).await.id) }
    }

    async fn close(self) {
        USERS.write().await.cache_reset();
        USERS_BY_KEY.write().await.cache_reset();
        USERS_IF_UP.write().await.cache_reset();
    }
}

impl Sharing for CachedLoading<true> {
    async fn try_load(&self, key: &str, source: &'static Source) -> Option<u64> {
        Some(user_if_up(key, source).await.ok()?.id)
    }
}
