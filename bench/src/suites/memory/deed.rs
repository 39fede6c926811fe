//! What a thread does again and again: a deed.

use std::hint::black_box;

use anyhow::{Result, ensure};

use super::keys::Keys;
use crate::engines::{Key, Memory};
use crate::kind::Kind;
use crate::load::mixed;

/// The names of all deeds, for tables of cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// Reads what is there.
    Get,
    /// Reads what is there, many keys at once.
    GetMany,
    /// Reads, and inserts what is not there.
    GetOrInsert,
    /// Inserts under a new key.
    Insert,
    /// Three reads, and then an insert.
    Mix,
    /// In turns a read that inserts what is not there, and an insert under a new key.
    Evict,
    /// In turns an insert under a new key, and a read of one that has been inserted.
    Grow,
}

impl Deed {
    /// Whether every read has to find something.
    pub(super) fn always_hits(self) -> bool {
        matches!(self, Self::Get | Self::GetMany | Self::Grow)
    }
}

/// What was seen meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) reads: usize,
    pub(super) hits: usize,
    wrong: usize,
}

impl Seen {
    pub(super) fn add(&mut self, other: Self) {
        self.reads += other.reads;
        self.hits += other.hits;
        self.wrong += other.wrong;
    }

    /// Fails unless all was right, and was there if it had to be.
    pub(super) fn check(&self, deed: Deed) -> Result<()> {
        ensure!(self.wrong == 0, "{} reads returned another value than was stored", self.wrong);
        let missing = self.reads - self.hits;
        ensure!(
            missing == 0 || !deed.always_hits(),
            "{missing} of {} reads found nothing",
            self.reads
        );
        Ok(())
    }

    fn note<K: Kind>(&mut self, key: &K::Key, found: Option<&K::Value>) -> bool {
        self.reads += 1;
        if let Some(value) = found {
            self.hits += 1;
            self.wrong += usize::from(!K::is_right(key, black_box(value)));
        }
        found.is_some()
    }
}

/// Does a deed, for the `at`th time.
pub(super) trait Does<M: Memory> {
    /// How many operations it counts for; `at` is a multiple of it.
    const OPERATIONS: usize = 1;

    /// `key` is a place for keys that are made meanwhile.
    fn does(engine: &M, keys: &Keys<M::Kind>, at: usize, key: &mut Key<M>, seen: &mut Seen);
}

pub(super) struct Get;

impl<M: Memory> Does<M> for Get {
    #[inline]
    fn does(engine: &M, keys: &Keys<M::Kind>, at: usize, _: &mut Key<M>, seen: &mut Seen) {
        get(engine, black_box(keys.ready(at)), seen);
    }
}

pub(super) struct GetMany;

impl<M: Memory> Does<M> for GetMany {
    const OPERATIONS: usize = 32;

    #[inline]
    fn does(engine: &M, keys: &Keys<M::Kind>, at: usize, _: &mut Key<M>, seen: &mut Seen) {
        let keys = black_box(keys.ready_from(at, <Self as Does<M>>::OPERATIONS));
        engine.get_many(keys, |index, found| {
            seen.note::<M::Kind>(&keys[index], found);
        });
    }
}

pub(super) struct GetOrInsert;

impl<M: Memory> Does<M> for GetOrInsert {
    #[inline]
    fn does(engine: &M, keys: &Keys<M::Kind>, at: usize, key: &mut Key<M>, seen: &mut Seen) {
        keys.draw(at, key);
        if !get(engine, black_box(key), seen) {
            engine.insert(key.clone(), M::Kind::value(key));
        }
    }
}

pub(super) struct Insert;

impl<M: Memory> Does<M> for Insert {
    #[inline]
    fn does(engine: &M, keys: &Keys<M::Kind>, at: usize, _: &mut Key<M>, _: &mut Seen) {
        let key = M::Kind::key(black_box(keys.new_number(at)));
        let value = M::Kind::value(&key);
        engine.insert(key, value);
    }
}

pub(super) struct Mix;

impl<M: Memory> Does<M> for Mix {
    #[inline]
    fn does(engine: &M, keys: &Keys<M::Kind>, at: usize, key: &mut Key<M>, seen: &mut Seen) {
        keys.draw(at, key);
        if at % 4 == 3 {
            engine.insert(key.clone(), M::Kind::value(key));
        } else {
            get(engine, black_box(key), seen);
        }
    }
}

pub(super) struct Evict;

impl<M: Memory> Does<M> for Evict {
    #[inline]
    fn does(engine: &M, keys: &Keys<M::Kind>, at: usize, key: &mut Key<M>, seen: &mut Seen) {
        if at.is_multiple_of(2) {
            GetOrInsert::does(engine, keys, at, key, seen);
        } else {
            Insert::does(engine, keys, at, key, seen);
        }
    }
}

pub(super) struct Grow;

impl<M: Memory> Does<M> for Grow {
    #[inline]
    fn does(engine: &M, keys: &Keys<M::Kind>, at: usize, key: &mut Key<M>, seen: &mut Seen) {
        let inserts = at / 2;
        if at.is_multiple_of(2) {
            Insert::does(engine, keys, inserts, key, seen);
        } else {
            let earlier = mixed(at as u64) as usize % (inserts + 1);
            M::Kind::rename(key, keys.new_number(earlier));
            get(engine, key, seen);
        }
    }
}

#[inline]
fn get<M: Memory>(engine: &M, key: &Key<M>, seen: &mut Seen) -> bool {
    seen.note::<M::Kind>(key, engine.get(key).as_ref())
}
