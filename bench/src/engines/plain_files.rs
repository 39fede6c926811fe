//! Files without anything around them: each value in one of its own, written over in place.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use bytes::Bytes;

use super::Disk;
use crate::versions;

/// Named after the keys, in one directory; neither synced nor checked.
pub struct PlainFiles(PathBuf);

impl Disk for PlainFiles {
    const NAME: &'static str = "plain-files";

    fn version() -> &'static str {
        versions::COMPILER
    }

    async fn open(directory: &Path) -> Result<Self> {
        Ok(Self(directory.to_owned()))
    }

    async fn fill(&self, entries: &[(String, Bytes)]) -> Result<()> {
        for (key, value) in entries {
            fs::write(self.0.join(key), value)?;
        }
        Ok(())
    }

    #[inline]
    async fn read<T>(&self, key: &str, look: impl FnOnce(&[u8]) -> T + Send) -> Result<Option<T>> {
        Ok(Some(look(&fs::read(self.0.join(key))?)))
    }

    #[inline]
    async fn write(&self, key: &str, value: &Bytes) -> Result<()> {
        Ok(fs::write(self.0.join(key), value)?)
    }
}
