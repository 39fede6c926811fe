//! The **store kit**: what every store has promised, whether it keeps a ledger or not.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use terrace::authority::Authority;
use terrace::clock::WallTime;
use terrace::key::{KEY_FORMAT, StoredKey};
use terrace::ledger::Stamp;
use terrace::store::{Put, Store, Stored};

use super::{abandon, answered, at, broken, holds, position, same, together};
use crate::random::Random;

/// Frames up to this size must be taken.
const SURELY_TAKEN: usize = 64 << 10;

/// Later than any time in this kit.
const LATER: Duration = Duration::from_secs(100 * 365 * 86_400);

pub(super) async fn check<Fut>(make: &impl Fn() -> Fut)
where
    Fut: Future<Output = Arc<dyn Store>>,
{
    macro_rules! check_each {
        ($($check:ident)*) => {$(
            let subject = Subject::of(make().await);
            $check(&subject).await;
            answered(subject.store.close().await);
        )*};
    }
    check_each! {
        is_empty_at_first puts_and_replaces answers_in_order takes_a_key_twice
        takes_many_at_once removes_and_says_whether takes_every_key takes_every_size
        clears_by_prefix clears_all scans_everything_once tells_the_keys_of_a_prefix measures_itself
        keeps_what_has_not_expired survives_abandoned_calls serves_many_tasks
    }
    let subject = Subject::of(make().await);
    closes(&subject).await;
}

/// A store under test.
pub(super) struct Subject {
    pub(super) store: Arc<dyn Store>,
    pub(super) authority: Option<Arc<dyn Authority>>,
}

impl Subject {
    pub(super) fn of(store: Arc<dyn Store>) -> Self {
        Self { authority: store.authority(), store }
    }

    /// The stamp of a frame that is made now.
    async fn stamp(&self) -> Stamp {
        match &self.authority {
            Some(authority) => position(&**authority).await,
            None => Stamp::default(),
        }
    }

    async fn put_many(&self, entries: &[(StoredKey, Bytes)]) -> Vec<Stored> {
        let stamp = self.stamp().await;
        let puts: Vec<_> =
            entries.iter().map(|(key, frame)| put(key, frame.clone(), stamp)).collect();
        let stored = answered(self.store.put(&puts).await);
        same(&stored.len(), &puts.len(), "put gives one answer for each frame");
        stored
    }

    /// Puts frames that the store has no reason not to take.
    async fn fill(&self, entries: &[(StoredKey, Bytes)]) {
        let stored = self.put_many(entries).await;
        same(&stored, &vec![Stored::Yes; entries.len()], "a small frame that is current is stored");
    }

    async fn fill_one(&self, key: &StoredKey, frame: impl Into<Bytes>) {
        self.fill(&[(key.clone(), frame.into())]).await;
    }

    pub(super) async fn get_many(&self, keys: &[StoredKey]) -> Vec<Option<Bytes>> {
        let frames = answered(self.store.get(keys).await);
        same(&frames.len(), &keys.len(), "get gives one answer for each key");
        frames
    }

    pub(super) async fn get_one(&self, key: &StoredKey) -> Option<Bytes> {
        self.get_many(std::slice::from_ref(key)).await.pop().flatten()
    }

    async fn remove(&self, keys: &[StoredKey]) -> Vec<bool> {
        answered(self.store.remove(keys).await)
    }

    /// Everything that a scan in pages of `limit` finds.
    async fn scan(&self, limit: usize, at_most: usize) -> Vec<(StoredKey, Bytes)> {
        let mut found: Vec<(StoredKey, Bytes)> = Vec::new();
        loop {
            let after = found.last().map(|(key, _)| key.clone());
            let page = answered(self.store.scan(after.as_ref(), limit).await);
            if page.is_empty() {
                return found;
            }
            holds(page.len() <= limit, "a page of a scan is not longer than its limit");
            found.extend(page);
            if found.len() > at_most {
                broken(
                    "a scan finds each entry once and comes to an end",
                    &format!("\n  in pages of {limit}: {} of {at_most} found", found.len()),
                );
            }
        }
    }
}

pub(super) fn put(key: &StoredKey, frame: impl Into<Bytes>, stamp: Stamp) -> Put {
    Put { key: key.clone(), frame: frame.into(), expires: None, stamp, tags: Arc::from([]) }
}

fn key(text: impl AsRef<[u8]>) -> StoredKey {
    StoredKey::new("", "kit", 0xc0ffee, text.as_ref())
}

/// So many entries, each with bytes of its own.
fn numbered(count: usize) -> Vec<(StoredKey, Bytes)> {
    (0..count).map(|n| (key(format!("n{n}")), format!("frame {n}").into())).collect()
}

fn keys_of(entries: &[(StoredKey, Bytes)]) -> Vec<StoredKey> {
    entries.iter().map(|(key, _)| key.clone()).collect()
}

async fn is_empty_at_first(subject: &Subject) {
    let keys = [key("a"), key("b")];
    same(&subject.get_many(&keys).await, &vec![None, None], "a fresh store has nothing");
    same(&subject.get_many(&[]).await, &Vec::new(), "to no keys there are no answers");
    same(&subject.put_many(&[]).await, &Vec::new(), "to no frames there are no answers");
    same(&subject.remove(&[]).await, &Vec::new(), "to no keys there are no answers");
    same(&subject.remove(&keys).await, &vec![false, false], "nothing cannot be removed");
    same(&answered(subject.store.clear("").await), &0, "clearing a fresh store removes nothing");
    same(&subject.scan(10, 0).await, &Vec::new(), "a scan of a fresh store is empty");
    let usage = answered(subject.store.usage().await);
    same(&(usage.entries, usage.bytes), &(0, 0), "a fresh store uses nothing");
}

async fn puts_and_replaces(subject: &Subject) {
    let key = key("a");
    for frame in ["first", "a second one that is longer", "3rd", ""] {
        subject.fill_one(&key, frame).await;
        same(&subject.get_one(&key).await, &Some(frame.into()), "get finds what was put last");
    }
}

async fn answers_in_order(subject: &Subject) {
    let entries = numbered(50);
    subject.fill(&entries).await;
    let mut random = Random::new(1);
    let mut asked: Vec<(StoredKey, Option<Bytes>)> =
        entries.iter().map(|(key, frame)| (key.clone(), Some(frame.clone()))).collect();
    asked.extend((0..50).map(|n| (key(format!("missing{n}")), None)));
    random.shuffle(&mut asked);
    let (keys, frames): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
    same(&subject.get_many(&keys).await, &frames, "get answers in the order of the keys");
    let were_there: Vec<_> = frames.iter().map(Option::is_some).collect();
    same(&subject.remove(&keys).await, &were_there, "remove answers in the order of the keys");
}

async fn takes_a_key_twice(subject: &Subject) {
    let (twice, once, missing) = (key("twice"), key("once"), key("missing"));
    subject
        .fill(&[
            (twice.clone(), "early".into()),
            (once.clone(), "once".into()),
            (twice.clone(), "late".into()),
        ])
        .await;
    let keys = [twice.clone(), missing, twice.clone(), once];
    let (late, once): (Option<Bytes>, _) = (Some("late".into()), Some("once".into()));
    same(
        &subject.get_many(&keys).await,
        &vec![late.clone(), None, late, once],
        "of two frames for one key in one call the later one is stored",
    );
    same(
        &subject.remove(&[twice.clone(), twice]).await,
        &vec![true, false],
        "what a call names twice is removed once",
    );
}

async fn takes_many_at_once(subject: &Subject) {
    let entries = numbered(3000);
    subject.fill(&entries).await;
    let found = subject.get_many(&keys_of(&entries)).await;
    let is_right =
        found.iter().zip(&entries).all(|(found, (_, frame))| found.as_ref() == Some(frame));
    holds(is_right, "3000 frames that were put in one call are found in one call");
    let removed = subject.remove(&keys_of(&entries)).await;
    same(&removed, &vec![true; 3000], "3000 keys are removed in one call");
}

async fn removes_and_says_whether(subject: &Subject) {
    let (gone, kept) = (key("gone"), key("kept"));
    subject.fill_one(&gone, "1").await;
    subject.fill_one(&kept, "2").await;
    let keys = [gone.clone()];
    same(&subject.remove(&keys).await, &vec![true], "remove says that something was there");
    same(&subject.remove(&keys).await, &vec![false], "what was removed is not there again");
    same(&subject.get_one(&gone).await, &None, "what was removed is not found");
    same(&subject.get_one(&kept).await, &Some("2".into()), "remove leaves other keys alone");
    subject.fill_one(&gone, "3").await;
    same(&subject.get_one(&gone).await, &Some("3".into()), "what was removed can be put again");
}

async fn clears_by_prefix(subject: &Subject) {
    let spaces =
        ["a_b", "axb", "a%b", "a*b", "a?b", "a[b", "a\\b", "a'b", "a\"b", "A_B", "a_bc", "a", "é"];
    let mut entries = Vec::new();
    for (tenant, space) in ["", "t", "T"].iter().flat_map(|t| spaces.map(|space| (t, space))) {
        for (schema, text) in [(1, "k"), (1, "k_k%k*k"), (2, "K\"'\\")] {
            let key = StoredKey::new(tenant, space, schema, text.as_bytes());
            entries.push((key, Bytes::from_static(b"frame")));
        }
    }
    // What every key of a space begins with is the key of nothing in it.
    let mut prefixes: Vec<String> =
        spaces.iter().map(|space| StoredKey::new("t", space, 1, b"").as_str().to_owned()).collect();
    let odd = [
        "1:",
        "1::",
        "1:t:",
        "1::a",
        "1::a_",
        "1::a%",
        "1::a%2",
        "1::a%25b:",
        "1:_:",
        "1:%",
        "%",
        "_",
        "*",
        "1:*",
        "?",
        "1:?:",
        "[1]",
        "[0-9]",
        "1::a'b",
        "'",
        "\"",
        "' OR 1 --",
        "\\",
        "1::\\a",
        "é",
        " ",
        ".",
        "1..a",
        "2:",
        "A",
        "1::A_B:",
        "1:T:",
    ];
    prefixes.extend(odd.map(str::to_owned));
    prefixes.extend(entries.iter().step_by(7).map(|(key, _)| key.as_str().to_owned()));
    prefixes.extend(entries.iter().step_by(11).map(|(key, _)| format!("{}x", key.as_str())));
    for prefix in prefixes {
        subject.fill(&entries).await;
        let goes = |key: &StoredKey| key.as_str().starts_with(&prefix);
        let expected = entries.iter().filter(|(key, _)| goes(key)).count() as u64;
        let cleared = answered(subject.store.clear(&prefix).await);
        let found = subject.get_many(&keys_of(&entries)).await;
        for ((key, _), found) in entries.iter().zip(found) {
            if goes(key) == found.is_some() {
                broken(
                    "clear removes what begins with the prefix and nothing else",
                    &format!("\n  prefix: {prefix:?}\n  key: {key:?}\n  found: {found:?}"),
                );
            }
        }
        same(&cleared, &expected, &format!("clear says how many it removed, for {prefix:?}"));
    }
}

async fn clears_all(subject: &Subject) {
    let entries = numbered(700);
    subject.fill(&entries).await;
    same(&answered(subject.store.clear("").await), &700, "the empty prefix clears everything");
    same(&subject.scan(100, 0).await, &Vec::new(), "nothing is left of what was cleared");
    same(&subject.get_one(&key("n1")).await, &None, "what was cleared is not found");
    subject.fill_one(&key("n1"), "again").await;
    same(
        &subject.get_one(&key("n1")).await,
        &Some("again".into()),
        "a store that was cleared can be filled again",
    );
}

async fn scans_everything_once(subject: &Subject) {
    let mut entries = numbered(257);
    entries.push((StoredKey::new("t%", "s ", 1, &[b'x'; 500]), "hashed".into()));
    entries.push((StoredKey::new("t%", "s ", 1, &[0, 255, b'%']), "odd".into()));
    subject.fill(&entries).await;
    let expected: BTreeMap<_, _> = entries.iter().cloned().collect();
    for limit in [1, 2, 7, 100, 258, 259, 260, 10_000] {
        let found = subject.scan(limit, entries.len()).await;
        let count = found.len();
        let found: BTreeMap<_, _> = found.into_iter().collect();
        same(&found.len(), &count, &format!("a scan in pages of {limit} repeats nothing"));
        same(&found, &expected, &format!("a scan in pages of {limit} finds everything"));
    }
}

async fn tells_the_keys_of_a_prefix(subject: &Subject) {
    const MOST_STEPS: usize = 10_000;
    let entries = numbered(257);
    subject.fill(&entries).await;
    let other = |n| (StoredKey::new("", "kit2", 0xc0ffee, &[n]), Bytes::from("other"));
    subject.fill(&(0..20).map(other).collect::<Vec<_>>()).await;
    let prefix = format!("{KEY_FORMAT}::kit:");
    let expected: BTreeSet<_> = keys_of(&entries).into_iter().collect();
    for limit in [1, 7, 512] {
        let (mut found, mut position) = (BTreeSet::new(), None);
        for step in 0.. {
            let asked = subject.store.keys(&prefix, position.as_ref(), limit).await;
            let page = answered(asked);
            found.extend(page.keys);
            position = page.next;
            if position.is_none() {
                break;
            }
            holds(step < MOST_STEPS, "a walk over the keys comes to an end");
        }
        same(&found, &expected, &format!("a walk in steps of {limit} tells the keys of a prefix"));
    }
}

async fn measures_itself(subject: &Subject) {
    let mut entries: Vec<_> =
        (1..=20_usize).map(|n| (key(format!("n{n}")), Bytes::from(vec![b'x'; n * 1000]))).collect();
    subject.fill(&entries).await;
    measures(subject, &entries, "after frames were put").await;
    // The same again, and each half as long.
    subject.fill(&entries).await;
    for (_, frame) in &mut entries {
        frame.truncate(frame.len() / 2);
    }
    subject.fill(&entries).await;
    measures(subject, &entries, "after frames were replaced").await;
    let gone = entries.split_off(12);
    subject.remove(&keys_of(&gone)).await;
    subject.remove(&keys_of(&gone)).await;
    measures(subject, &entries, "after some were removed").await;
    answered(subject.store.clear(key("n1").as_str()).await);
    entries.retain(|(kept, _)| !kept.as_str().starts_with(key("n1").as_str()));
    measures(subject, &entries, "after some were cleared").await;
    answered(subject.store.clear("").await);
    measures(subject, &[], "after all were cleared").await;
}

async fn measures(subject: &Subject, entries: &[(StoredKey, Bytes)], when: &str) {
    let usage = answered(subject.store.usage().await);
    let bytes: usize = entries.iter().map(|(key, frame)| key.as_str().len() + frame.len()).sum();
    let (count, bytes) = (entries.len() as u64, bytes as u64);
    same(&usage.entries, &count, &format!("usage counts the entries {when}"));
    // What it takes to keep them may be counted too.
    let plausible = bytes..=bytes * 2 + count * 1024;
    if !plausible.contains(&usage.bytes) {
        let details = format!("\n  found:    {}\n  expected: {plausible:?}", usage.bytes);
        broken(&format!("usage counts the bytes of keys and frames {when}"), &details);
    }
    same(&usage.evicted, &0, "nothing is evicted while there is room");
}

async fn takes_every_key(subject: &Subject) {
    let mut texts: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    texts.push((0..=255).collect());
    for length in [0, 2, 63, 64, 65, 199, 200, 201, 1000, 64 << 10, 1 << 20] {
        texts.push(vec![b'k'; length]);
        texts.push(vec![0xff; length]);
    }
    texts.extend(
        ["Key", "key", "KEY", "key ", " key", "é", "e\u{301}", "#", "a:b", "%41"].map(Into::into),
    );
    let texts: BTreeSet<_> = texts.into_iter().collect();
    let spaces = [("", "s"), ("t", "s"), ("", "S"), ("t:s", ""), ("%", "*")];
    let mut entries = Vec::new();
    for (tenant, space) in spaces {
        for text in &texts {
            let frame = format!("{tenant} {space} {} {:?}", text.len(), text.first());
            entries.push((StoredKey::new(tenant, space, 7, text), Bytes::from(frame)));
        }
    }
    subject.fill(&entries).await;
    for (found, (key, frame)) in subject.get_many(&keys_of(&entries)).await.iter().zip(&entries) {
        same(
            found,
            &Some(frame.clone()),
            &format!("keys of any bytes and length do not meet: {key:?}"),
        );
    }
    let count = entries.len();
    let scanned: BTreeSet<_> = subject.scan(64, count).await.into_iter().collect();
    holds(scanned == entries.into_iter().collect(), "a scan gives keys back as they were put");
}

async fn takes_every_size(subject: &Subject) {
    let mut random = Random::new(2);
    let sizes = [
        0,
        1,
        2,
        255,
        256,
        257,
        4095,
        4096,
        4097,
        65_535,
        SURELY_TAKEN,
        100_000,
        512 << 10,
        1 << 20,
    ];
    let mut entries = Vec::new();
    for size in sizes {
        let noise: Vec<u8> = (0..size).map(|_| random.byte()).collect();
        entries.push((key(format!("noise {size}")), Bytes::from(noise)));
        entries.push((key(format!("zeroes {size}")), vec![0; size].into()));
    }
    let stored = subject.put_many(&entries).await;
    let found = subject.get_many(&keys_of(&entries)).await;
    for ((stored, found), (key, frame)) in stored.iter().zip(found).zip(&entries) {
        match stored {
            Stored::Yes => holds(
                found.as_ref() == Some(frame),
                &format!("a frame comes back byte for byte: {key:?}"),
            ),
            Stored::TooLarge if frame.len() > SURELY_TAKEN => {
                holds(found.is_none(), &format!("what is too large is not stored: {key:?}"));
            }
            other => broken(
                "a frame of 64 KiB and less is stored, a larger one at most too large",
                &format!("\n  key: {key:?}\n  found: {other:?}"),
            ),
        }
    }
}

async fn keeps_what_has_not_expired(subject: &Subject) {
    let stamp = subject.stamp().await;
    let late = at(0).saturating_add(LATER);
    let with = |text: &str, expires: Option<WallTime>| Put {
        expires,
        ..put(&key(text), text.to_owned(), stamp)
    };
    let puts = [with("never", None), with("late", Some(late)), with("prolonged", Some(at(1)))];
    answered(subject.store.put(&puts).await);
    answered(subject.store.put(&[with("prolonged", None)]).await);
    answered(subject.store.maintain(at(1000)).await);
    let keys = ["never", "late", "prolonged"].map(key);
    let frames = ["never", "late", "prolonged"].map(|text| Some(Bytes::from(text))).to_vec();
    same(&subject.get_many(&keys).await, &frames, "housekeeping leaves what has not expired");
    answered(subject.store.maintain(late.saturating_add(LATER)).await);
    let [never, _, prolonged] = keys;
    same(
        &subject.get_many(&[never, prolonged]).await,
        &vec![Some("never".into()), Some("prolonged".into())],
        "housekeeping leaves what never expires",
    );
}

async fn survives_abandoned_calls(subject: &Subject) {
    let stamp = subject.stamp().await;
    let (key, other) = (key("abandoned"), key("other"));
    let frame = |byte: u8| Bytes::from(vec![byte; 10_000]);
    for round in 0..24_u8 {
        let (old, new) = (frame(b'a' + round), frame(b'A' + round));
        subject.fill_one(&key, old.clone()).await;
        let keys = [key.clone()];
        let puts = [put(&key, new.clone(), stamp)];
        let polls = usize::from(round / 6);
        let is_put = round % 3 == 0;
        match round % 3 {
            0 => abandon(subject.store.put(&puts), polls).await,
            1 => abandon(subject.store.remove(&keys), polls).await,
            _ => abandon(subject.store.clear(key.as_str()), polls).await,
        }
        for _ in 0..2 {
            let found = subject.get_one(&key).await;
            let outcome = if is_put { Some(new.clone()) } else { None };
            holds(
                found.as_ref() == Some(&old) || found == outcome,
                "a call that is dropped is done or not done, never half",
            );
            // What is still under way has its turn.
            subject.fill_one(&other, "other").await;
        }
        let last = frame(b'0');
        subject.fill_one(&key, last.clone()).await;
        subject.fill_one(&other, "other").await;
        holds(
            subject.get_one(&key).await == Some(last),
            "a call that was dropped does not undo a later one",
        );
    }
    measures(subject, &[(key, frame(b'0')), (other, "other".into())], "after calls were dropped")
        .await;
}

async fn serves_many_tasks(subject: &Subject) {
    const TASKS: u8 = 8;
    const ROUNDS: u8 = 40;
    let stamp = subject.stamp().await;
    let shared = key("shared");
    subject.fill_one(&shared, vec![0; 5000]).await;
    let tasks = (1..=TASKS).map(|task| {
        let (store, shared) = (Arc::clone(&subject.store), shared.clone());
        async move {
            for round in 0..ROUNDS {
                let own = put(&key([task, round]), vec![task, round], stamp);
                let ours = put(&shared, vec![task; 5000], stamp);
                let stored = answered(store.put(&[own, ours]).await);
                same(&stored, &vec![Stored::Yes; 2], "frames are stored while others write");
                let found = answered(store.get(&[key([task, round]), shared.clone()]).await);
                let [Some(own), Some(ours)] = found.as_slice() else {
                    broken("what was put is found while others write", &format!("\n  {found:?}"))
                };
                same(own, &Bytes::from(vec![task, round]), "tasks do not mix up their frames");
                let whole = ours.first().is_some_and(|first| ours.iter().all(|byte| byte == first));
                holds(whole && ours.len() == 5000, "a frame is read whole while others write it");
            }
        }
    });
    together(tasks).await;
    let mut keys = Vec::new();
    for task in 1..=TASKS {
        keys.extend((0..ROUNDS).map(|round| key([task, round])));
    }
    let found = subject.get_many(&keys).await;
    holds(found.iter().all(Option::is_some), "what tasks put side by side is there");
    let usage = answered(subject.store.usage().await);
    let expected = u64::from(TASKS) * u64::from(ROUNDS) + 1;
    same(&usage.entries, &expected, "usage counts what tasks put side by side");
}

/// After it is closed a store may answer or fail, but does not lie and does not hang.
async fn closes(subject: &Subject) {
    let (there, missing) = (key("there"), key("missing"));
    subject.fill_one(&there, "frame").await;
    let late = [put(&key("late"), "late", subject.stamp().await)];
    answered(subject.store.close().await);
    if let Ok(found) = subject.store.get(&[there.clone(), missing]).await {
        let is_honest = match found.as_slice() {
            [there, None] => there.as_ref().is_none_or(|frame| frame == "frame"),
            _ => false,
        };
        holds(is_honest, "a closed store that answers tells the truth");
    }
    let store = &subject.store;
    let _ = store.put(&late).await;
    let _ = store.remove(&[there]).await;
    let _ = store.clear("1:none").await;
    let _ = store.scan(None, 10).await;
    let _ = store.usage().await;
    let _ = store.maintain(at(0)).await;
    let _ = store.close().await;
    if let Some(authority) = &subject.authority {
        let _ = authority.snapshot().await;
        let _ = authority.append(&[]).await;
    }
}
