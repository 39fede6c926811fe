//! Keys never meet, whatever stands in them.

use std::collections::HashMap;
use std::convert::Infallible;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use terrace::key::{Key, KeyBuffer, LARGEST_KEY, LONGEST_KEY_TEXT, StoredKey};
use terrace::ledger::{Name, Stamp};
use terrace::protocol::Follow;
use terrace::store::Store;
use terrace::{Disk, Error, Memory, Source, Space, Terrace};

use crate::support::{Bed, Layout, count, random, twins};

/// Tenant, space, schema and key.
type Parts = (String, String, u64, Vec<u8>);

fn stored(parts: &Parts) -> StoredKey {
    StoredKey::new(&parts.0, &parts.1, parts.2, &parts.3)
}

/// What every text that is made of a key has to be.
#[track_caller]
fn is_harmless(text: &str) {
    let forbidden =
        |byte: u8| !(0x21..=0x7e).contains(&byte) || b"\"'`*?[]{}\\^$<>|;&!".contains(&byte);
    assert!(!text.bytes().any(forbidden), "{text:?}");
}

#[track_caller]
fn is_sound(parts: &Parts) {
    let (tenant, space, _, key) = parts;
    let stored = stored(parts);
    is_harmless(stored.as_str());
    is_harmless(&stored.name());
    assert_eq!(StoredKey::parse(stored.as_str()).as_ref(), Some(&stored));
    assert_eq!(stored.space(), *space);
    match stored.key() {
        Some(read) => assert_eq!(read, *key),
        None => assert!(key.len() > LONGEST_KEY_TEXT / 3, "{stored:?} need not be hashed"),
    }
    let other_schema = StoredKey::new(tenant, space, !parts.2, key);
    assert_ne!(other_schema, stored);
    assert_eq!(other_schema.name(), stored.name(), "names leave the schema out");
}

/// Characters that something along the way might give a meaning to.
fn hostile() -> impl Strategy<Value = String> {
    let character = prop::sample::select(
        ":%#~!*?[]{}\\/.\r\n\0\t \"'`$^|;&<>=,+-_@aA03\u{e9}\u{202e}\u{1f5dd}"
            .chars()
            .collect::<Vec<_>>(),
    );
    prop::collection::vec(prop_oneof![4 => character, 1 => any::<char>()], 0..12)
        .prop_map(String::from_iter)
}

fn keys() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => hostile().prop_map(String::into_bytes),
        8 => prop::collection::vec(any::<u8>(), 0..100),
        1 => prop::collection::vec(any::<u8>(), 0..=LARGEST_KEY),
        1 => (any::<u8>(), 0..=LARGEST_KEY).prop_map(|(byte, length)| vec![byte; length]),
    ]
}

fn cases() -> ProptestConfig {
    ProptestConfig { cases: count(2_000, 50_000) as u32, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn stored_keys_are_harmless_and_come_back(
        tenant in hostile(), space in hostile(), schema in any::<u64>(), key in keys(),
    ) {
        is_sound(&(tenant, space, schema, key));
    }

    #[test]
    fn what_is_read_as_a_stored_key_is_harmless(
        (tenant, space, key) in (hostile(), hostile(), hostile()), is_escaped in any::<bool>(),
    ) {
        let text = format!("1:{tenant}:{space}:0123456789abcdef:{key}");
        let text = if is_escaped { text.replace(|byte: char| !byte.is_ascii_graphic(), "%20") } else { text };
        if let Some(key) = StoredKey::parse(&text) {
            is_harmless(key.as_str());
            prop_assert_eq!(key.as_str(), text);
        }
    }

    #[test]
    fn tuples_are_one_key_each(
        one in (hostile(), hostile(), any::<u8>()), other in (hostile(), hostile(), any::<u8>()),
    ) {
        let encoded = |key: &(String, String, u8)| key.encode(&mut KeyBuffer::default()).to_vec();
        prop_assert_eq!(encoded(&one) == encoded(&other), one == other);
    }
}

#[test]
fn what_is_no_stored_key_is_not_read_as_one() {
    let right = StoredKey::new("tenant", "space", 0xab, b"key");
    assert_eq!(right.as_str(), "1:tenant:space:00000000000000ab:key");
    assert_eq!(StoredKey::parse(right.as_str()), Some(right));
    let wrong = [
        "",
        "key",
        "1:tenant:space:00000000000000ab",
        "2:tenant:space:00000000000000ab:key",
        ":tenant:space:00000000000000ab:key",
        "1:tenant:space:ab:key",
        "1:tenant:space:+0000000000000ab:key",
        "1:tenant:space:00000000000000AB:key",
        "1:tenant:space:000000000000000ab:key",
        "1:tenant:space:00000000000000xy:key",
        "1:tenant:space:00000000000000ab:a key",
        "1:tenant:space:00000000000000ab:\u{1b}[2J",
        "1:tenant:space:00000000000000ab:\u{e9}",
        "1:tenant:*:00000000000000ab:key",
    ];
    for text in wrong {
        assert_eq!(StoredKey::parse(text), None, "{text:?}");
    }
}

/// Every text of up to `length` of these characters.
fn every_text(length: usize) -> Vec<String> {
    let mut texts = vec![String::new()];
    let mut longest = texts.clone();
    for _ in 0..length {
        let longer = |text: &String| {
            [':', '%', '3', 'A', '#', '~', '\0'].map(|character| format!("{text}{character}"))
        };
        longest = longest.iter().flat_map(longer).collect();
        texts.extend(longest.iter().cloned());
    }
    texts
}

#[test]
fn no_two_short_texts_make_one_key() {
    let (tenants, spaces, keys) = (every_text(1), every_text(2), every_text(3));
    let mut seen: HashMap<String, (&str, &str, &str)> = HashMap::new();
    for tenant in &tenants {
        for space in &spaces {
            for key in &keys {
                let made = StoredKey::new(tenant, space, 0, key.as_bytes());
                let triple = (&**tenant, &**space, &**key);
                for text in [made.as_str(), &made.name()] {
                    // A stored key has four colons before the key, a name two.
                    let before = seen.insert(text.to_owned(), triple);
                    assert_eq!(before, None, "{text} is made of {triple:?} too");
                }
            }
        }
    }
    assert_eq!(seen.len(), 2 * 8 * spaces.len() * keys.len());
}

#[test]
fn no_two_tuples_make_one_key() {
    let texts = every_text(2);
    let mut seen = HashMap::new();
    for first in &texts {
        for second in &texts {
            let key = (first.clone(), second.clone());
            let mut buffer = KeyBuffer::default();
            let bytes = key.encode(&mut buffer).to_vec();
            assert_eq!(seen.insert(bytes, key.clone()), None, "{key:?}");
        }
    }
}

#[test]
fn x1_random_keys_do_not_meet() {
    let mut random = random("random keys");
    let mut seen = HashMap::new();
    let alphabet: Vec<char> = ":%*?[]{}\\\r\n\0#~!aA0\u{e9}\u{202e}".chars().collect();
    for _ in 0..count(20_000, 1_000_000) {
        let mut text = |longest: usize| -> String {
            let length = random.usize(0..=longest);
            (0..length).map(|_| alphabet[random.usize(..alphabet.len())]).collect()
        };
        let (tenant, space) = (text(3), text(3));
        // A few are long: those that are hashed must not meet either.
        let mut key = text(4).into_bytes();
        if random.u8(..) == 0 {
            key.resize(random.usize(1..=LARGEST_KEY), random.u8(..));
        }
        let parts = (tenant, space, 0, key);
        let made = stored(&parts);
        is_harmless(made.as_str());
        if let Some(before) = seen.insert(made.as_str().to_owned(), parts.clone()) {
            assert_eq!(before, parts, "both are {made:?}");
        }
    }
}

#[test]
fn a_key_is_hashed_from_where_its_text_is_too_long() {
    let text = |key: &[u8]| StoredKey::new("", "s", 0, key);
    assert_eq!(text(&[b'x'; LONGEST_KEY_TEXT]).key(), Some(vec![b'x'; LONGEST_KEY_TEXT]));
    assert_eq!(text(&[b'x'; LONGEST_KEY_TEXT + 1]).key(), None);
    assert_eq!(text(&[b'%'; LONGEST_KEY_TEXT / 3]).key(), Some(vec![b'%'; LONGEST_KEY_TEXT / 3]));
    assert_eq!(text(&[b'%'; LONGEST_KEY_TEXT / 3 + 1]).key(), None);
    // A key that looks like the hash of another one is not it.
    let long = text(&[b'x'; 1_000]);
    let (_, hash) = long.as_str().rsplit_once(':').unwrap();
    assert!(hash.starts_with('#'));
    assert_ne!(text(hash.as_bytes()), long);
    assert_eq!(text(hash.as_bytes()).key(), Some(hash.as_bytes().to_vec()));
}

/// Pairs of space and key that a careless store would take for each other.
const CRAFTED: [(&str, &str); 18] = [
    ("a", "b:c"),
    ("a:b", "c"),
    ("a:b:c", ""),
    ("a", "b%3Ac"),
    ("a%3Ab", "c"),
    ("a%3Ab:c", ""),
    (":a", "b:c"),
    ("::a", ":b:c"),
    ("a", ":b:c"),
    ("a:", "b:c"),
    ("a*", "b"),
    ("a?", "b"),
    ("[ab]", "b"),
    ("\\", "b"),
    ("a\0", "b"),
    ("a\r\nDEL a", "b"),
    ("a ", "b"),
    ("..", "/../../etc/passwd"),
];

#[tokio::test]
async fn crafted_spaces_and_keys_keep_to_themselves() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let spaces: Vec<Space<str, String>> =
            CRAFTED.iter().map(|(space, _)| bed.space(space).forever().build().unwrap()).collect();
        let value = |index: usize| format!("the value of {:?}", CRAFTED[index]);
        for (index, (space, (_, key))) in spaces.iter().zip(CRAFTED).enumerate() {
            let _ = space.insert(key, value(index)).await.unwrap();
        }
        let keep = async |gone: &[usize]| {
            for (index, (space, (_, key))) in spaces.iter().zip(CRAFTED).enumerate() {
                let found = space.get(key).await.unwrap().map(|value| value.to_string());
                let expected = (!gone.contains(&index)).then(|| value(index));
                assert_eq!(found, expected, "{layout:?}, {:?}", CRAFTED[index]);
            }
        };
        keep(&[]).await;
        let _ = spaces[0].invalidate(CRAFTED[0].1).await.unwrap();
        keep(&[0]).await;
        let _ = spaces[10].clear().await.unwrap();
        keep(&[0, 10]).await;
        let _ = spaces[13].clear().await.unwrap();
        keep(&[0, 10, 13]).await;
        let _ = spaces[6].clear().await.unwrap();
        keep(&[0, 6, 10, 13]).await;
    }
}

#[tokio::test]
async fn crafted_tuples_keep_to_themselves() {
    let bed = Bed::new(Layout::Disk).await;
    let space = bed.space::<(String, String), u8>("tuples").build().unwrap();
    let pair = |first: &str, second: &str| (first.to_owned(), second.to_owned());
    let keys = [pair("a", "b:c"), pair("a:b", "c"), pair("", "a"), pair("~", "a"), pair("a", "")];
    for (key, number) in keys.iter().zip(0..) {
        let _ = space.insert(key, number).await.unwrap();
    }
    for (key, number) in keys.iter().zip(0..) {
        assert_eq!(space.get(key).await.unwrap().as_deref(), Some(&number), "{key:?}");
    }
    let _ = space.invalidate(&keys[0]).await.unwrap();
    assert!(space.get(&keys[0]).await.unwrap().is_none());
    assert_eq!(space.get(&keys[1]).await.unwrap().as_deref(), Some(&1));
}

#[tokio::test]
async fn the_ledger_names_keys_as_stores_do() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::at(directory.path());
    let terrace = Terrace::builder().tier("disk", disk.clone()).build().await.unwrap();
    let store = disk.open().unwrap();
    let authority = store.authority().unwrap();
    let start = authority.snapshot().await.unwrap();
    let long = "k".repeat(1_000);
    for key in ["plain", "a:b\r\n%*", "", "#1", &long] {
        let space = terrace.space::<str, u8>("a space: *").build().unwrap();
        let _ = space.insert(key, 1).await.unwrap();
        let stored = store.scan(None, 1_000).await.unwrap().pop().expect("it is stored").0;
        let _ = terrace.clear_tier("disk").await.unwrap();
        let _ = space.invalidate(key).await.unwrap();
        let position = Stamp { incarnation: start.incarnation, number: start.last };
        let Follow::Lines(lines) = authority.follow(position).await.unwrap() else {
            panic!("the chain is whole")
        };
        let [.., set, gone] = &lines[..] else { panic!("two lines: {lines:?}") };
        assert_eq!(set.name, Name::Set(stored.name()), "{key:?}");
        assert_eq!(gone.name, Name::Key(stored.name()), "{key:?}");
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Old {
    name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct New {
    name: String,
    age: u32,
}

/// Fills a space by a load: writes would kill what the other type has there.
async fn fill<V>(space: &Space<str, V>, key: &str, value: &V) -> Source
where
    V: Clone + Send + Sync + 'static,
{
    let value = value.clone();
    let load = |_| async { Ok::<_, Infallible>(value) };
    space.get_or_load(key, load).await.unwrap().source().clone()
}

#[tokio::test]
async fn two_types_of_one_space_never_meet_and_share_invalidations() {
    let long = "k".repeat(1_000);
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let old = bed.space::<str, Old>("user").forever().build().unwrap();
        let new = bed.space::<str, New>("user").forever().build().unwrap();
        let before = Old { name: "Ada".into() };
        let after = New { name: "Ada".into(), age: 36 };
        for key in ["user:7", &long] {
            let ways = ["by key", "by a write", "by clearing", "by clearing all"];
            for (number, way) in ways.into_iter().enumerate() {
                let what = format!("{layout:?}, {way}, {} bytes", key.len());
                assert_eq!(fill(&old, key, &before).await, Source::Loader, "{what}");
                assert!(new.get(key).await.unwrap().is_none(), "{what}: the old is not the new");
                assert_eq!(fill(&new, key, &after).await, Source::Loader, "{what}");
                let found = old.get(key).await.unwrap().map(|value| (*value).clone());
                assert_eq!(found.as_ref(), Some(&before), "{what}");
                let found = new.get(key).await.unwrap().map(|value| (*value).clone());
                assert_eq!(found.as_ref(), Some(&after), "{what}");

                let settled = match number {
                    0 => new.invalidate(key).await.unwrap(),
                    1 => new.insert(key, after.clone()).await.unwrap(),
                    2 => new.clear().await.unwrap(),
                    _ => bed.clear().await.unwrap(),
                };
                assert!(settled.is_settled(), "{what}");
                assert!(old.get(key).await.unwrap().is_none(), "{what}: the old type's is dead");
                assert_eq!(new.get(key).await.unwrap().is_some(), number == 1, "{what}");
                let _ = new.invalidate(key).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn keys_of_64_kib_work_and_longer_ones_are_errors() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let space = bed.space::<[u8], u32>("long").forever().build().unwrap();
        let mut key = vec![b'k'; LARGEST_KEY];
        let mut other = key.clone();
        *other.last_mut().unwrap() = b'l';
        let load = async |key: &[u8], number: u32| {
            let load = |_| async move { Ok::<_, Infallible>(number) };
            let answer = space.get_or_load(key, load).await.unwrap();
            (*answer, answer.source().clone())
        };
        let _ = space.insert(&key, 1).await.unwrap();
        let _ = space.insert(&other, 2).await.unwrap();
        assert_eq!(load(&key, 9).await.0, 1, "{layout:?}");
        assert_eq!(load(&other, 9).await.0, 2, "{layout:?}");
        assert!(space.exists(&key).await.unwrap());
        assert!(space.invalidate(&key).await.unwrap().is_settled());
        assert!(space.get(&key).await.unwrap().is_none(), "{layout:?}");
        assert!(!space.exists(&key).await.unwrap());
        assert!(space.read(&key, |_| ()).is_none(), "{layout:?}");
        assert_eq!(load(&key, 3).await, (3, Source::Loader), "{layout:?}");
        assert_eq!(load(&key, 9).await.0, 3, "{layout:?}");
        assert_eq!(load(&other, 9).await.0, 2, "{layout:?}: the other one stays");

        for longer in [LARGEST_KEY + 1, 1 << 20] {
            key.resize(longer, b'k');
            let is_refused = |error: Error| match error {
                Error::KeyTooLong { bytes } => assert_eq!(bytes, longer),
                other => panic!("{other}"),
            };
            is_refused(space.get(&key).await.unwrap_err());
            is_refused(space.insert(&key, 1).await.unwrap_err());
            is_refused(space.insert_if_absent(&key, 1).await.unwrap_err());
            is_refused(space.remove(&key).await.unwrap_err());
            is_refused(space.invalidate(&key).await.unwrap_err());
            is_refused(space.exists(&key).await.unwrap_err());
            is_refused(space.expire(&key, std::time::Duration::MAX).await.unwrap_err());
            is_refused(space.get_many([&key[..]]).await.unwrap_err());
            is_refused(space.insert_many([(&key[..], 1)]).await.unwrap_err());
            assert!(space.read(&key, |_| ()).is_none());
            let load = |_| std::future::pending::<Result<u32, Infallible>>();
            match space.get_or_load(&key, load).await {
                Err(terrace::LoadError::Cache(error)) => is_refused(error),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_long_key_that_another_process_invalidates_is_dead_here() {
    let directory = tempfile::tempdir().unwrap();
    let [here, there] = twins(&directory).await;
    let long = "k".repeat(1_000);
    let _ = there.set(&long, &1).forever().await.unwrap();
    // A write of this process's own makes it read what the other one wrote before.
    let _ = here.set("other", &1).await.unwrap();
    assert_eq!(here.get::<i32>(&long).await.unwrap().as_deref(), Some(&1));
    let again = here.get::<i32>(&long).await.unwrap().unwrap();
    assert_eq!(again.source(), &Source::Memory);
    let _ = there.invalidate(&long).await.unwrap();
    let _ = here.set("other", &2).await.unwrap();
    assert!(here.get::<i32>(&long).await.unwrap().is_none());
}

/// Lines about keys are forgotten after 65,536 others. What they killed stays dead.
#[tokio::test]
async fn what_was_invalidated_stays_dead_when_its_line_is_forgotten() {
    let terrace = Terrace::builder().memory(Memory::bytes(256 << 20)).build().await.unwrap();
    let long = "k".repeat(1_000);
    for key in ["short", &long] {
        let _ = terrace.set(key, &1).forever().await.unwrap();
        let _ = terrace.invalidate(key).await.unwrap();
    }
    let others: Vec<String> = (0..70_000).map(|number| format!("other:{number}")).collect();
    for others in others.chunks(1_000) {
        let entries: Vec<_> = others.iter().map(|key| (&**key, 1)).collect();
        let _ = terrace.set_many(&entries).await.unwrap();
    }
    for key in ["short", &long] {
        assert!(terrace.get::<i32>(key).await.unwrap().is_none(), "{} bytes", key.len());
        assert!(!terrace.exists(key).await.unwrap(), "{} bytes", key.len());
    }
}

/// The same for another type's value in a store that does not hear the ledger.
#[tokio::test]
async fn another_types_value_stays_dead_when_its_line_is_forgotten() {
    let bed = Bed::new(Layout::MemoryAndMap).await;
    let old = bed.space::<str, Old>("user").forever().build().unwrap();
    let new = bed.space::<str, New>("user").forever().build().unwrap();
    let (before, after) = (Old { name: "Ada".into() }, New { name: "Ada".into(), age: 36 });
    for key in ["removed", "written"] {
        assert_eq!(fill(&old, key, &before).await, Source::Loader);
    }
    let _ = new.invalidate("removed").await.unwrap();
    let _ = new.insert("written", after).await.unwrap();
    let others: Vec<String> = (0..70_000).map(|number| format!("other:{number}")).collect();
    for others in others.chunks(1_000) {
        let entries: Vec<_> = others.iter().map(|key| (&**key, 1)).collect();
        let _ = bed.set_many(&entries).await.unwrap();
    }
    for key in ["removed", "written"] {
        assert!(old.get(key).await.unwrap().is_none(), "{key}");
    }
}

#[tokio::test]
async fn tags_come_back_as_they_were_given() {
    for layout in Layout::ALL {
        let bed = Bed::new(layout).await;
        let tags = ["country:CH", "a b", "100%", "\u{e9}\r\n", "plain"];
        let _ = bed.set("key", &1).tags(tags).await.unwrap();
        let found = bed.get::<i32>("key").await.unwrap().unwrap();
        assert_eq!(found.tags().collect::<Vec<_>>(), tags, "{layout:?}");
        for other in ["country", "country:C", "CH", "country%3ACH", "a", "a%20b", "100%25"] {
            let _ = bed.invalidate_tag(other).await.unwrap();
            assert!(bed.get::<i32>("key").await.unwrap().is_some(), "{layout:?}: {other}");
        }
        let _ = bed.invalidate_tag("\u{e9}\r\n").await.unwrap();
        assert!(bed.get::<i32>("key").await.unwrap().is_none(), "{layout:?}");
    }
}
