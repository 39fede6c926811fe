//! The **fuzzed surfaces**: what may be given any bytes, with what has to hold of each answer.
//!
//! ./scripts/sanitize fuzz drives these by what they reach; the tests below, blindly and in bounded
//! time. A panic is a fault; so are an answer that is not what it was made of, and time or memory
//! that grows beyond the input's.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "in no build but those of tests; what does not hold has to stop them"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::WallTime;
use crate::codec::{Codec, ValueCodec};
use crate::compress::Compression;
use crate::frame::{self, Header};
use crate::glob::Glob;
use crate::implied;
use crate::key::{self, LARGEST_KEY, StoredKey};
use crate::ledger::{Line, Name, Names, Stamp};
use crate::protocol::{Limits, Marks};

/// A surface's name, and what it is given bytes by.
pub type Surface = (&'static str, fn(&[u8]));

/// All of them.
pub const SURFACES: &[Surface] = &[
    ("frames", frames),
    ("payloads", payloads),
    ("values", values),
    ("keys", keys),
    ("globs", globs),
    ("lines", lines),
    ("templates", templates),
    #[cfg(feature = "disk")]
    ("records", records),
];

/// What readers accept at most.
const LIMIT: usize = 1 << 20;

/// Takes a part of the input off, whose length is in its first byte; at the end, nothing.
fn part<'a>(input: &mut &'a [u8]) -> &'a [u8] {
    let Some((&length, rest)) = input.split_first() else { return &[] };
    let (part, rest) = rest.split_at(rest.len().min(usize::from(length)));
    *input = rest;
    part
}

fn text_part(input: &mut &[u8]) -> String {
    String::from_utf8_lossy(part(input)).into_owned()
}

/// Frames as a store may return them: as they are, and with what only chance would get past the
/// first checks put right.
pub fn frames(input: &[u8]) {
    frame(&Bytes::copy_from_slice(input));
    let mut whole = input.to_vec();
    if let Some(head) = whole.first_chunk_mut::<4>() {
        *head = *b"TRC\x01";
    }
    if let Some(flags) = whole.get_mut(6..8) {
        flags.copy_from_slice(&[0, 0]);
    }
    let mut open = whole.clone();
    whole.extend(xxhash_rust::xxh3::xxh3_64(&whole).to_le_bytes());
    frame(&whole.into());
    // The same with a stamp behind it.
    if let Some(flags) = open.get_mut(6..8) {
        flags.copy_from_slice(&[2, 0]);
    }
    open.extend(xxhash_rust::xxh3::xxh3_64(&open).to_le_bytes());
    open.extend(frame::stamp_behind(Stamp { incarnation: u64::MAX, number: 1 }));
    frame(&open.into());
}

fn frame(bytes: &Bytes) {
    let Ok(frame) = frame::decode(bytes, LIMIT) else { return };
    assert!(frame.size <= LIMIT, "more than the limit");
    let Ok(value) = frame.value() else { return };
    assert_eq!(value.len(), frame.size, "another size than the frame says");
    let again = frame::encode(&frame.header, value.clone(), Compression::off());
    let again = frame::decode(&again, LIMIT).expect("what was written can be read");
    assert_eq!(again.header, frame.header);
    assert_eq!(again.value().expect("what was written can be read"), value);
}

/// Payloads that are said to be packed, in frames that are otherwise right.
pub fn payloads(input: &[u8]) {
    let (size, payload) = input.split_first().map_or((0, input), |(size, rest)| (*size, rest));
    let header = Header {
        codec: Codec::Raw,
        created: WallTime::from_millis(0),
        expires: None,
        stale_until: None,
        stamp: Stamp::default(),
        last_modified: None,
        version: None,
        tags: Arc::default(),
        dependencies: Arc::default(),
        key: Bytes::new(),
    };
    let mut bytes = frame::encode(&header, payload.to_vec(), Compression::off()).to_vec();
    bytes.truncate(bytes.len().saturating_sub(8));
    // Packing 1 is Zstandard; its size stands at 56.
    if let Some(packing) = bytes.get_mut(5) {
        *packing = 1;
    }
    if let Some(claimed) = bytes.get_mut(56..64) {
        claimed.copy_from_slice(&(u64::from(size) * 4096).to_le_bytes());
    }
    bytes.extend(xxhash_rust::xxh3::xxh3_64(&bytes).to_le_bytes());
    let frame = frame::decode(&bytes.into(), LIMIT).expect("a frame");
    if let Ok(value) = frame.value() {
        assert_eq!(value.len(), frame.size);
    }
}

/// A value of every shape that serde knows.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Nothing,
    Number(i64),
    Fraction(f64),
    Text(String),
    Bytes(Vec<u8>),
    Many(Vec<Self>),
    Named(BTreeMap<String, Self>),
    Inner { left: Box<Self>, right: Option<Box<Self>> },
}

/// Values as their frames hold them.
pub fn values(input: &[u8]) {
    for codec in [Codec::MessagePack, Codec::Json] {
        let shapes = ValueCodec::<Shape>::serde(codec);
        let Ok(value) = shapes.decode(Bytes::copy_from_slice(input), codec) else { continue };
        let bytes = shapes.encode(&value, codec).expect("what was read can be written");
        let again = shapes.decode(bytes, codec).expect("what was written can be read");
        // Not every number equals itself.
        assert_eq!(format!("{again:?}"), format!("{value:?}"));
    }
}

/// Keys of any tenant and space, and texts that pass for stored keys.
pub fn keys(mut input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        let name = StoredKey::parse(text).map(|key| {
            assert_eq!(key.as_str(), text);
            (key.space(), key.key(), key.name())
        });
        let _ = (name, key::split_key_name(text), key::tag_of_name(text), key::unescape(text));
    }
    let (tenant, space) = (text_part(&mut input), text_part(&mut input));
    let bytes = input.get(..input.len().min(LARGEST_KEY)).unwrap_or_default();
    let stored = StoredKey::new(&tenant, &space, 7, bytes);
    assert_eq!(StoredKey::parse(stored.as_str()).as_ref(), Some(&stored));
    let is_harmless = |byte: u8| byte.is_ascii_graphic() && !b"\"'`\\*?[]{}".contains(&byte);
    assert!(stored.as_str().bytes().all(is_harmless), "{stored:?}");
    assert_eq!(stored.space(), space);
    assert!(stored.key().is_none_or(|key| key == bytes));
    let of_space = key::space_name(&tenant, &space);
    let name = stored.name();
    assert_eq!(name, key::key_name(&of_space, bytes));
    assert_eq!(key::split_key_name(&name).map(|(space, _)| space), Some(&*of_space));
    assert!(name.starts_with(&*key::tenant_prefix(&tenant)));
    assert_eq!(key::tag_of_name(&key::tag_name(&tenant, &space)), space);
    assert!(!implied::is_implied(&key::tag_name(&tenant, &space)));
}

/// Patterns, and keys to match.
pub fn globs(mut input: &[u8]) {
    let pattern = text_part(&mut input);
    let key = input.get(..input.len().min(1024)).unwrap_or_default();
    if let Ok(glob) = Glob::parse(&pattern) {
        let matches = glob.matches(key);
        if let Some(prefix) = glob.as_prefix() {
            assert_eq!(matches, key.starts_with(prefix.as_bytes()), "{pattern:?} and {key:?}");
        }
    }
    let mut literal = String::new();
    Glob::escape(&pattern, &mut literal);
    if let Ok(glob) = Glob::parse(&literal) {
        assert!(glob.matches(pattern.as_bytes()), "{pattern:?} does not match itself");
        assert_eq!(glob.matches(key), key == pattern.as_bytes());
    }
}

/// Lines of a ledger, whoever wrote them, and entries that are judged by them.
pub fn lines(mut input: &[u8]) {
    let mut marks = Marks::starting_at(Stamp::default(), Limits::default());
    let mut number = 0;
    let mut last = BTreeMap::new();
    while let Some((&kind, rest)) = input.split_first() {
        input = rest;
        let text: Arc<str> = text_part(&mut input).into();
        let name = match kind % 6 {
            0 => Name::Key(text),
            1 => Name::Set(text),
            2 => Name::Prefix(text),
            3 => Name::Tag(text),
            4 => Name::Space(text),
            _ => Name::Everything,
        };
        for implied in implied::by_names(std::slice::from_ref(&name), |_| true) {
            let Name::Tag(tag) = implied else { panic!("only tags are implied") };
            assert!(!tag.contains(':') || implied::is_implied(&tag), "{tag:?}");
        }
        let _ = crate::sweep::Swept::by(&name);
        number += 1;
        last.insert(name.clone(), number);
        marks.apply(&Line { number, name });
    }
    assert_eq!(marks.position().number, number);
    for (name, named) in last {
        let (text, is_key) = match name {
            Name::Key(text) | Name::Set(text) => (text, true),
            Name::Space(text) => (text, false),
            _ => continue,
        };
        let none: Arc<str> = "".into();
        let (key, space) = if is_key { (&text, &none) } else { (&none, &text) };
        let names = Names { key, space, tags: &[] };
        let before = Stamp { incarnation: 0, number: named - 1 };
        assert!(!marks.standing(before, &names).stands(), "{text:?} was named by line {named}");
        assert!(!marks.permits(before, &names));
    }
}

/// Texts of events, with places for parameters.
pub fn templates(input: &[u8]) {
    crate::event::fuzz(&String::from_utf8_lossy(input));
}

/// Records of a journal.
#[cfg(feature = "disk")]
pub fn records(input: &[u8]) {
    use crate::journal::Record;
    for format in [None, Some(1)] {
        let mut bytes = input.to_vec();
        if let (Some(format), Some(first)) = (format, bytes.first_mut()) {
            *first = format;
        }
        let Some(record) = Record::decode(bytes.into()) else { continue };
        assert_eq!(Record::decode(record.encode()), Some(record));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::{Clock as _, SystemClock};

    /// Inputs that get beyond the first checks, for each surface.
    fn seeds() -> Vec<Vec<u8>> {
        let header = Header {
            codec: Codec::Json,
            created: WallTime::from_millis(5),
            expires: Some(WallTime::from_millis(10)),
            stale_until: None,
            stamp: Stamp { incarnation: 1, number: 2 },
            last_modified: Some(WallTime::from_millis(4)),
            version: Some("v7".into()),
            tags: ["t:a".into(), "t:b".into()].into(),
            dependencies: ["t:s:k".into()].into(),
            key: Bytes::from_static(b"key"),
        };
        let shape = Shape::Inner {
            left: Box::new(Shape::Many(vec![Shape::Number(-1), Shape::Text("é".into())])),
            right: Some(Box::new(Shape::Named([("a".into(), Shape::Bytes(vec![1]))].into()))),
        };
        let packed = Compression::default().from_bytes(1);
        let value = |codec| ValueCodec::<Shape>::serde(codec).encode(&shape, codec).unwrap();
        vec![
            frame::encode(&header, vec![7; 40], Compression::off()).to_vec(),
            frame::encode(&header, vec![7; 4000], packed).to_vec(),
            frame::encode(&header, vec![7; 4096], packed).slice(88..).to_vec(),
            value(Codec::MessagePack).to_vec(),
            value(Codec::Json).to_vec(),
            b"1:t:s:00000000000000ab:user:%251".to_vec(),
            b"\x05a*?b:user:1".to_vec(),
            b"\x08[a-z]?*\\*xyz*".to_vec(),
            b"\x02\x05t:s:k\x03\x04t:#s\x03\x07t:*s:a%\x00\x05t:s:k\x04\x03t:s\x05\x00".to_vec(),
            b"{company}:{{year}}:{x}".to_vec(),
            b"\x01\x01\0\0\0\0\0\0\0\x05\x01\0\0\0\x01t\x01\0\0\0\x01v\0\0\0\x01kvalue".to_vec(),
        ]
    }

    /// One input made of others: cut, joined, and changed here and there.
    fn mutated(seeds: &[Vec<u8>], random: &mut fastrand::Rng) -> Vec<u8> {
        let mut input = seeds[random.usize(..seeds.len())].clone();
        if random.u8(..) < 40 {
            let other = &seeds[random.usize(..seeds.len())];
            input.truncate(random.usize(..=input.len()));
            input.extend_from_slice(&other[random.usize(..=other.len())..]);
        }
        for _ in 0..random.usize(..6) {
            let at = random.usize(..=input.len());
            match random.u8(..6) {
                0 => input.insert(at, random.u8(..)),
                1 => input.truncate(at),
                2 => input.splice(at..at, (0..random.usize(..300)).map(|_| b'a')).for_each(drop),
                3 if at < input.len() => drop(input.remove(at)),
                _ if at < input.len() => {
                    input[at] =
                        random.choice([0, 1, 0x7f, 0x80, 0xff, b':', b'%', b'*']).unwrap_or(0);
                }
                _ => input.extend((0..random.usize(..20)).map(|_| random.u8(..))),
            }
        }
        input
    }

    /// For so long each surface is fuzzed.
    fn time() -> Duration {
        let is_set = |name| std::env::var_os(name).is_some();
        match () {
            () if is_set("TERRACE_SOAK") => Duration::from_secs(24 * 3600),
            () if is_set("TERRACE_FULL") => Duration::from_secs(60),
            () => Duration::from_secs(3),
        }
    }

    fn fuzz(name: &str) {
        let seed = std::env::var("TERRACE_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        println!("{name}: TERRACE_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let (_, surface) = SURFACES.iter().find(|(known, _)| *known == name).expect("a surface");
        let (seeds, clock, mut inputs) = (seeds(), SystemClock::new(), 0_u64);
        seeds.iter().for_each(|seed| surface(seed));
        while clock.elapsed() < time() {
            let input = mutated(&seeds, &mut random);
            let started = clock.elapsed();
            surface(&input);
            let took = clock.elapsed().saturating_sub(started);
            assert!(took < Duration::from_secs(10), "{took:?} for {input:?}");
            inputs += 1;
        }
        println!("{name}: {inputs} inputs");
        assert!(inputs > 100, "hardly anything was tried: {inputs} inputs");
    }

    macro_rules! surfaces {
        ($($test:ident $name:literal)*) => {$(
            #[test]
            fn $test() {
                fuzz($name);
            }
        )*};
    }
    surfaces! {
        x6_frames "frames"
        x6_payloads "payloads"
        x6_values "values"
        x6_keys "keys"
        x6_globs "globs"
        x6_ledger_lines "lines"
        x6_templates "templates"
    }
    #[cfg(feature = "disk")]
    surfaces! { x6_journal_records "records" }
}
