//! The kinds of entries: which types their keys and values have, and how they come from numbers.

use std::hash::Hash;
use std::sync::Arc;

use crate::load::mixed;

pub trait Kind: 'static {
    type Key: Clone + Eq + Hash + Send + Sync + 'static;
    type Value: Clone + Send + Sync + 'static;

    /// The key with this number: all differ.
    fn key(number: u64) -> Self::Key;

    /// Makes `key` the one with this number.
    fn rename(key: &mut Self::Key, number: u64) {
        *key = Self::key(number);
    }

    /// The value under a key.
    fn value(key: &Self::Key) -> Self::Value;

    fn is_right(key: &Self::Key, value: &Self::Value) -> bool;
}

/// Integers under integers; neighbouring numbers make keys that are far apart.
#[derive(Debug)]
pub struct Integers;

impl Kind for Integers {
    type Key = u64;
    type Value = u64;

    #[inline]
    fn key(number: u64) -> u64 {
        mixed(number + 1)
    }

    #[inline]
    fn value(key: &u64) -> u64 {
        !key
    }

    #[inline]
    fn is_right(key: &u64, value: &u64) -> bool {
        *value == !key
    }
}

/// 100 bytes, shared by whoever has read them, under 17 characters.
#[derive(Debug)]
pub struct Texts;

/// The length of the values of [`Texts`].
const TEXT_VALUE: usize = 100;

impl Kind for Texts {
    type Key = String;
    type Value = Arc<[u8]>;

    fn key(number: u64) -> String {
        let mut key = String::with_capacity(17);
        Self::rename(&mut key, number);
        key
    }

    // By hand and in place: formatting would take as long as storing what comes of it.
    fn rename(key: &mut String, mut number: u64) {
        let mut text = *b"user:000000000000";
        for digit in text[5..].iter_mut().rev() {
            *digit += (number % 10) as u8;
            number /= 10;
        }
        key.clear();
        key.push_str(str::from_utf8(&text).unwrap_or_default());
    }

    fn value(key: &String) -> Arc<[u8]> {
        let mut value = [0; TEXT_VALUE];
        value[..key.len()].copy_from_slice(key.as_bytes());
        Arc::from(value.as_slice())
    }

    #[inline]
    fn is_right(key: &String, value: &Arc<[u8]>) -> bool {
        value.starts_with(key.as_bytes())
    }
}

/// Objects that are known by an integer, and of which only the size in bytes matters.
#[derive(Debug)]
pub struct Sizes;

impl Kind for Sizes {
    type Key = u64;
    type Value = u32;

    #[inline]
    fn key(number: u64) -> u64 {
        Integers::key(number)
    }

    fn value(_: &u64) -> u32 {
        1
    }

    fn is_right(_: &u64, _: &u32) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_differ_and_belong_to_their_values() {
        fn check<K: Kind>() {
            let keys: HashSet<_> = (0..100_000).map(K::key).collect();
            assert_eq!(keys.len(), 100_000);
            let (one, other) = (K::key(1), K::key(1 << 32));
            assert!(one != other);
            assert!(K::is_right(&one, &K::value(&one)));
        }
        check::<Integers>();
        check::<Texts>();
        check::<Sizes>();
        assert!(!Integers::is_right(&1, &1));
        assert!(!Texts::is_right(&Texts::key(1), &Texts::value(&Texts::key(2))));
        assert_eq!(Texts::key(1234), "user:000000001234");
    }
}
