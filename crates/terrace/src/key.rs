//! The **key**: how a caller's key becomes bytes, without two keys ever meeting.
//!
//! Three texts are made of a key, all of them injective:
//!
//! | text | for | form |
//! | --- | --- | --- |
//! | bytes | the memory tier, together with the number of the space | the key's own encoding |
//! | name | the ledger | `tenant:space:key` |
//! | stored key | stores below memory | `1:tenant:space:schema:key` |
//!
//! `1` is the version of this format and `schema` the fingerprint of the value's
//! type, so that two builds that disagree about a type never read each other's
//! values, and yet hear each other's invalidations, because names leave it out.
//! In every part, bytes that could mean something to a store, a terminal or a
//! pattern (separators, control characters, quotes, `* ? [ ] { } \`, everything
//! beyond ASCII) are written as `%XX`. A key whose text would be longer than
//! [`LONGEST_KEY_TEXT`] is replaced by `#` and its 128-bit hash; the full key
//! stands in the frame and is compared when the frame is read.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use hashbrown::Equivalent;
use smallvec::SmallVec;
use std::hash::{Hash, Hasher};

/// Version of the stored key's format, its first part.
pub const KEY_FORMAT: &str = "1";

/// Digits of a schema in a stored key.
const SCHEMA_DIGITS: usize = 16;

/// Bytes of a key's escaped text beyond which its hash takes its place.
pub const LONGEST_KEY_TEXT: usize = 200;

/// The largest key that is accepted, in bytes: 64 KiB.
pub const LARGEST_KEY: usize = 64 * 1024;

/// A type that can be a key: text, bytes, integers, tuples of these.
///
/// An implementation must be injective (two different keys give different bytes)
/// and stable (the same key gives the same bytes in every build and process).
///
/// ```
/// use terrace::key::{Key, KeyBuffer};
///
/// #[derive(Clone)]
/// struct Report { company: String, year: u16 }
///
/// impl Key for Report {
///     const KIND: &'static str = "report";
///     fn encode<'a>(&'a self, buffer: &'a mut KeyBuffer) -> &'a [u8] {
///         buffer.part(&self.company);
///         buffer.part(&self.year);
///         buffer.as_bytes()
///     }
/// }
///
/// let mut buffer = KeyBuffer::default();
/// let report = Report { company: "A:B".into(), year: 2023 };
/// assert_eq!(report.encode(&mut buffer), b"A%3AB:2023");
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a cache key",
    note = "keys are `str`, `String`, `[u8]`, integers, tuples of these, or any type that implements `terrace::key::Key`"
)]
pub trait Key: ToOwned {
    /// Name of this kind of key; part of the space's fingerprint.
    const KIND: &'static str;

    /// The key's bytes, written to `buffer` where they do not exist already.
    fn encode<'a>(&'a self, buffer: &'a mut KeyBuffer) -> &'a [u8];
}

/// Where a key is encoded: on the stack up to 64 bytes.
#[derive(Debug, Default)]
pub struct KeyBuffer {
    bytes: SmallVec<[u8; 64]>,
}

impl KeyBuffer {
    /// Appends `bytes` as they are.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends one part of a key of several, with `:` between them.
    pub fn part<K: Key + ?Sized>(&mut self, part: &K) {
        if !self.bytes.is_empty() {
            self.bytes.push(b':');
        }
        let mut inner = Self::default();
        for &byte in part.encode(&mut inner) {
            // The first part may be empty: a mark keeps ("", "a") and ("a",) apart.
            if matches!(byte, b':' | b'%' | b'~') {
                self.bytes.extend_from_slice(&percent(byte));
            } else {
                self.bytes.push(byte);
            }
        }
        if self.bytes.is_empty() {
            self.bytes.push(b'~');
        }
    }

    /// What was appended so far.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

macro_rules! text_keys {
    ($($text:ty)*) => {$(
        impl Key for $text {
            const KIND: &'static str = "text";
            fn encode<'a>(&'a self, _: &'a mut KeyBuffer) -> &'a [u8] {
                self.as_bytes()
            }
        }
    )*};
}
text_keys!(str String);

impl Key for [u8] {
    const KIND: &'static str = "bytes";
    fn encode<'a>(&'a self, _: &'a mut KeyBuffer) -> &'a [u8] {
        self
    }
}

macro_rules! integer_keys {
    ($($integer:ty)*) => {$(
        impl Key for $integer {
            const KIND: &'static str = "integer";
            fn encode<'a>(&'a self, buffer: &'a mut KeyBuffer) -> &'a [u8] {
                use std::io::Write as _;
                // Writing to memory cannot fail.
                let _ = write!(buffer.bytes, "{self}");
                &buffer.bytes
            }
        }
    )*};
}
integer_keys!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize);

macro_rules! tuple_keys {
    ($($name:ident . $index:tt),+) => {
        impl<$($name: Key + Clone),+> Key for ($($name,)+) {
            const KIND: &'static str = "tuple";
            fn encode<'a>(&'a self, buffer: &'a mut KeyBuffer) -> &'a [u8] {
                $(buffer.part(&self.$index);)+
                &buffer.bytes
            }
        }
    };
}
tuple_keys!(A.0, B.1);
tuple_keys!(A.0, B.1, C.2);
tuple_keys!(A.0, B.1, C.2, D.3);

/// What the keys begin with that are invalidated together: a text, or the first parts of a tuple.
///
/// ```
/// use terrace::key::{KeyBuffer, KeyPrefix};
///
/// let mut buffer = KeyBuffer::default();
/// ("emission".to_owned(), 2023_u16).encode_prefix(&mut buffer);
/// assert_eq!(buffer.as_bytes(), b"emission:2023:");
/// ```
pub trait KeyPrefix {
    /// Appends the bytes that such keys begin with.
    fn encode_prefix(&self, buffer: &mut KeyBuffer);
}

impl KeyPrefix for str {
    fn encode_prefix(&self, buffer: &mut KeyBuffer) {
        buffer.push(self.as_bytes());
    }
}

impl KeyPrefix for String {
    fn encode_prefix(&self, buffer: &mut KeyBuffer) {
        self.as_str().encode_prefix(buffer);
    }
}

macro_rules! tuple_prefixes {
    ($($name:ident . $index:tt),+) => {
        impl<$($name: Key),+> KeyPrefix for ($($name,)+) {
            fn encode_prefix(&self, buffer: &mut KeyBuffer) {
                $(buffer.part(&self.$index);)+
                buffer.push(b":");
            }
        }
    };
}
tuple_prefixes!(A.0);
tuple_prefixes!(A.0, B.1);
tuple_prefixes!(A.0, B.1, C.2);

/// A key as the memory tier and the flights hold it: a space's number and bytes. Short ones lie
/// beside the value that is read: looking up does not have to fetch them from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemoryKey {
    pub(crate) space: u32,
    pub(crate) bytes: KeyBytes,
}

/// A key's own bytes.
pub(crate) type KeyBytes = SmallVec<[u8; 16]>;

impl MemoryKey {
    /// Bytes that it takes beside itself.
    pub(crate) fn spilled(&self) -> usize {
        if self.bytes.spilled() { self.bytes.capacity() } else { 0 }
    }
}

/// A [`MemoryKey`] that borrows: looking up allocates nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyRef<'a> {
    pub(crate) space: u32,
    pub(crate) bytes: &'a [u8],
}

impl KeyRef<'_> {
    pub(crate) fn to_memory_key(self) -> MemoryKey {
        MemoryKey { space: self.space, bytes: SmallVec::from_slice(self.bytes) }
    }
}

impl MemoryKey {
    pub(crate) fn as_ref(&self) -> KeyRef<'_> {
        KeyRef { space: self.space, bytes: &self.bytes }
    }
}

impl Hash for KeyRef<'_> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.space);
        state.write(self.bytes);
    }
}

impl Hash for MemoryKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_ref().hash(state);
    }
}

impl Equivalent<MemoryKey> for KeyRef<'_> {
    #[inline]
    fn equivalent(&self, key: &MemoryKey) -> bool {
        self.space == key.space && is_same(self.bytes, &key.bytes)
    }
}

/// Whether two keys are the same; without a call where they are as long as most keys are.
#[inline]
fn is_same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    if !(8..=16).contains(&one.len()) {
        return one == other;
    }
    // Two words, which may overlap, are the whole of it.
    one.first_chunk::<8>() == other.first_chunk() && one.last_chunk::<8>() == other.last_chunk()
}

/// The full name of a value in a store: tenant, space, schema and key.
///
/// ```
/// use terrace::key::StoredKey;
///
/// let key = StoredKey::new("", "airport", 0xab, b"LSZH");
/// assert_eq!(key.as_str(), "1::airport:00000000000000ab:LSZH");
/// assert_eq!(&*key.name(), ":airport:LSZH");
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoredKey {
    text: Arc<str>,
}

impl StoredKey {
    /// The stored key of `key` in a space of a tenant.
    #[must_use]
    pub fn new(tenant: &str, space: &str, schema: u64, key: &[u8]) -> Self {
        let mut text = stored_prefix(tenant, space, schema);
        push_key(&mut text, key);
        Self { text: text.into() }
    }

    pub(crate) fn from_prefix(prefix: &str, key: &[u8]) -> Self {
        let mut text = String::with_capacity(prefix.len() + key.len());
        text.push_str(prefix);
        push_key(&mut text, key);
        Self { text: text.into() }
    }

    /// Reads a stored key back from its text, as a scan of a store finds it.
    ///
    /// `None` if the text is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // What somebody else left in a store may be anything, and this is printed.
        if !text.bytes().all(|byte| plain(byte) || b":%#".contains(&byte)) {
            return None;
        }
        let key = Self { text: text.into() };
        key.parts().map(|_| key.clone())
    }

    /// The text: printable ASCII without blanks, quotes or pattern characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name that invalidations use: the stored key without format and schema.
    #[must_use]
    pub fn name(&self) -> Arc<str> {
        match self.parts() {
            Some(Parts { space, key, .. }) => [space, ":", key].concat().into(),
            None => Arc::clone(&self.text),
        }
    }

    /// What the name is made of, with `:` between, and the schema as 16 digits.
    #[cfg(any(feature = "redis", feature = "disk"))]
    pub(crate) fn name_and_schema(&self) -> ([&str; 2], &str) {
        let parts = self.parts();
        parts.map_or((["", &self.text], ""), |parts| ([parts.space, parts.key], parts.schema))
    }

    /// The key of a name and a schema, if they make one.
    #[cfg(feature = "redis")]
    pub(crate) fn of_name(name: &str, schema: &str) -> Option<Self> {
        let mut parts = name.splitn(3, ':');
        let (tenant, space, key) = (parts.next()?, parts.next()?, parts.next()?);
        Self::parse(&format!("{KEY_FORMAT}:{tenant}:{space}:{schema}:{key}"))
    }

    /// The space's name, unescaped.
    #[must_use]
    pub fn space(&self) -> String {
        let space = self.parts().and_then(|parts| parts.space.split_once(':'));
        let space = space.map(|(_, space)| unescape(space)).unwrap_or_default();
        String::from_utf8_lossy(&space).into_owned()
    }

    /// The caller's key, unescaped; `None` where only its hash is kept.
    #[must_use]
    pub fn key(&self) -> Option<Vec<u8>> {
        self.parts().filter(|parts| !parts.key.starts_with('#')).map(|parts| unescape(parts.key))
    }

    fn parts(&self) -> Option<Parts<'_>> {
        let rest = self.text.strip_prefix(KEY_FORMAT)?.strip_prefix(':')?;
        let mut colons = rest.bytes().enumerate().filter(|(_, byte)| *byte == b':');
        let (_, (end, _)) = (colons.next()?, colons.next()?);
        let (space, rest) = (rest.get(..end)?, rest.get(end + 1..)?);
        let (schema, key) = (rest.get(..SCHEMA_DIGITS)?, rest.get(SCHEMA_DIGITS..)?);
        let is_schema = schema.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        Some(Parts { space, schema, key: key.strip_prefix(':').filter(|_| is_schema)? })
    }
}

impl fmt::Debug for StoredKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

struct Parts<'a> {
    /// `tenant:space`
    space: &'a str,
    #[cfg_attr(not(feature = "redis"), expect(dead_code, reason = "a key of Redis ends with it"))]
    schema: &'a str,
    key: &'a str,
}

/// What every stored key of a space begins with.
pub(crate) fn stored_prefix(tenant: &str, space: &str, schema: u64) -> String {
    format!("{}{schema:0SCHEMA_DIGITS$x}:", all_schemas_prefix(tenant, space))
}

/// What every stored key of a space begins with, whichever build wrote it.
pub(crate) fn all_schemas_prefix(tenant: &str, space: &str) -> String {
    format!("{KEY_FORMAT}:{}:{}:", escaped_part(tenant), escaped_part(space))
}

/// The ledger's name of a space: `tenant:space`.
pub(crate) fn space_name(tenant: &str, space: &str) -> Arc<str> {
    format!("{}:{}", escaped_part(tenant), escaped_part(space)).into()
}

/// The ledger's name of a tag: `tenant:tag`.
pub(crate) fn tag_name(tenant: &str, tag: &str) -> Arc<str> {
    space_name(tenant, tag)
}

/// What the ledger's names of a tenant's keys begin with, and of no other's.
pub(crate) fn tenant_prefix(tenant: &str) -> Arc<str> {
    format!("{}:", escaped_part(tenant)).into()
}

/// What every stored key of a tenant begins with.
pub(crate) fn stored_tenant_prefix(tenant: &str) -> String {
    format!("{KEY_FORMAT}:{}:", escaped_part(tenant))
}

/// Names of tags that were made for no tenant, as those of this one.
pub(crate) fn tags_of_tenant(tenant: &str, tags: Arc<[Arc<str>]>) -> Arc<[Arc<str>]> {
    if tenant.is_empty() || tags.is_empty() {
        return tags;
    }
    let tenant = escaped_part(tenant);
    tags.iter().map(|tag| [&*tenant, &**tag].concat().into()).collect()
}

/// The tag that a ledger's name stands for, as its caller gave it.
pub(crate) fn tag_of_name(name: &str) -> Cow<'_, str> {
    let tag = name.split_once(':').map_or(name, |(_, tag)| tag);
    if tag.contains('%') {
        String::from_utf8_lossy(&unescape(tag)).into_owned().into()
    } else {
        tag.into()
    }
}

/// The ledger's name of a key, from the name of its space.
pub(crate) fn key_name(space: &str, key: &[u8]) -> Arc<str> {
    let mut name = String::with_capacity(space.len() + 1 + key.len());
    name.push_str(space);
    name.push(':');
    push_key(&mut name, key);
    name.into()
}

/// The ledger's name of all keys in a space that begin with `prefix`; `None` if they are so long
/// that only their hashes are known.
pub(crate) fn prefix_name(space: &str, prefix: &[u8]) -> Option<Arc<str>> {
    (!is_hashed(prefix)).then(|| key_name(space, prefix))
}

/// The space and the key's bytes that a ledger's name speaks of.
///
/// The bytes are `None` where the name holds the hash of a long key.
pub(crate) fn split_key_name(name: &str) -> Option<(&str, Option<Vec<u8>>)> {
    let (space, key) = parts_of_name(name)?;
    Some((space, (!key.starts_with('#')).then(|| unescape(key))))
}

/// `tenant:space` and the key of the name `tenant:space:key`, as they stand there.
pub(crate) fn parts_of_name(name: &str) -> Option<(&str, &str)> {
    let (at, _) = name.match_indices(':').nth(1)?;
    Some((name.get(..at)?, name.get(at + 1..)?))
}

/// `tenant:space` of `tenant:space:key`, or of itself.
#[cfg(any(feature = "redis", feature = "disk"))]
pub(crate) fn space_of(name: &str) -> &str {
    parts_of_name(name).map_or(name, |(space, _)| space)
}

/// Whether a key is so long that its hash takes its place.
pub(crate) fn is_hashed(key: &[u8]) -> bool {
    !is_never_hashed(key)
        && key.iter().map(|&byte| if plain(byte) { 1 } else { 3 }).sum::<usize>() > LONGEST_KEY_TEXT
}

/// Whether a key is so short that it is not hashed whatever its bytes.
#[inline]
pub(crate) fn is_never_hashed(key: &[u8]) -> bool {
    key.len() <= LONGEST_KEY_TEXT / 3
}

fn push_key(text: &mut String, key: &[u8]) {
    if is_hashed(key) {
        text.push_str(&format!("#{:032x}", xxhash_rust::xxh3::xxh3_128(key)));
    } else {
        escape(text, key, |byte| plain(byte) || byte == b':');
    }
}

pub(crate) fn escaped_part(part: &str) -> String {
    let mut text = String::with_capacity(part.len());
    escape(&mut text, part.as_bytes(), plain);
    text
}

fn escape(text: &mut String, bytes: &[u8], keep: impl Fn(u8) -> bool) {
    // Most keys are as plain as they are, and what is plain is text.
    if bytes.iter().all(|&byte| keep(byte))
        && let Ok(plain) = std::str::from_utf8(bytes)
    {
        return text.push_str(plain);
    }
    for &byte in bytes {
        if keep(byte) {
            text.push(char::from(byte));
        } else {
            text.extend(percent(byte).map(char::from));
        }
    }
}

/// Bytes that mean nothing to any store, terminal, pattern or this format.
fn plain(byte: u8) -> bool {
    // A bit for each character of ASCII: every key that leaves memory is looked at byte by byte.
    const PLAIN: u128 =
        bits(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~/@+=,".as_slice());
    const fn bits(mut bytes: &[u8]) -> u128 {
        let mut bits = 0;
        while let [first, rest @ ..] = bytes {
            bits |= 1 << *first;
            bytes = rest;
        }
        bits
    }
    byte.is_ascii() && PLAIN >> byte & 1 == 1
}

fn percent(byte: u8) -> [u8; 3] {
    let digit = |value: u8| b"0123456789ABCDEF".get(usize::from(value)).copied().unwrap_or(b'0');
    [b'%', digit(byte >> 4), digit(byte & 15)]
}

pub(crate) fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'%').then(|| after.split_at_checked(2)).flatten().and_then(
            |(digits, after)| {
                let digits = std::str::from_utf8(digits).ok()?;
                Some((u8::from_str_radix(digits, 16).ok()?, after))
            },
        );
        let (byte, after) = escaped.unwrap_or((first, after));
        bytes.push(byte);
        rest = after;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded<K: Key + ?Sized>(key: &K) -> Vec<u8> {
        let mut buffer = KeyBuffer::default();
        key.encode(&mut buffer).to_vec()
    }

    #[test]
    fn tuples_keep_their_parts_apart() {
        let pairs =
            [("a", "b:c"), ("a:b", "c"), ("", "a"), ("a", ""), ("~", "a"), ("%", ":"), ("", "")];
        let texts: std::collections::BTreeSet<_> =
            pairs.iter().map(|&(a, b)| encoded(&(a.to_owned(), b.to_owned()))).collect();
        assert_eq!(texts.len(), pairs.len());
        assert_eq!(encoded(&("TSLA".to_owned(), 2023_u16)), b"TSLA:2023");
    }

    #[test]
    fn a_long_key_is_hashed_in_store_and_ledger() {
        let key = vec![b'x'; 1 << 20];
        let stored = StoredKey::new("t", "s", 1, &key);
        assert!(stored.as_str().len() < 80, "{stored:?}");
        assert_eq!(stored.key(), None);
        assert_eq!(&*stored.name(), &*key_name("t:s", &key));
    }

    #[test]
    fn names_split_into_space_and_key() {
        let name = key_name(&space_name("t:1", "s p"), b"a:b\n");
        assert_eq!(split_key_name(&name), Some(("t%3A1:s%20p", Some(b"a:b\n".to_vec()))));
    }
}
