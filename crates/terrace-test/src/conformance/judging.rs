//! The **judging kit**: what a store that keeps the ledger does in one step with it.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use terrace::authority::{Append, Authority, Written};
use terrace::clock::WallTime;
use terrace::frame::{Header, decode, encode};
use terrace::key::StoredKey;
use terrace::ledger::{Name, Stamp};
use terrace::protocol::Follow;
use terrace::store::{Put, Store, Stored};
use terrace::{Codec, Compression};

use super::store::{Subject, put};
use super::{Entry, answered, broken, foreign, holds, position, same, together};

pub(super) async fn check<Fut>(make: &impl Fn() -> Fut)
where
    Fut: Future<Output = Arc<dyn Store>>,
{
    macro_rules! check_each {
        ($($check:ident)*) => {$(
            let subject = Subject::of(make().await);
            let Some(authority) = &subject.authority else { return };
            $check(&subject, &**authority).await;
            answered(subject.store.close().await);
        )*};
    }
    check_each! {
        refuses_what_was_named judges_each_frame_of_a_call refuses_other_ledgers
        voids_values_with_their_line writes_in_one_step appends_and_voids_only_if_unnamed is_not_raced
    }
}

async fn append(authority: &dyn Authority, name: Name) -> Vec<bool> {
    answered(authority.append(&[name]).await).held
}

fn put_entry(entry: &Entry, frame: &'static str, stamp: Stamp) -> Put {
    Put { tags: Arc::clone(&entry.tags), ..put(&entry.key, frame, stamp) }
}

async fn put_one(subject: &Subject, put: Put) -> Stored {
    let stored = answered(subject.store.put(&[put]).await);
    match stored.as_slice() {
        [stored] => *stored,
        _ => broken("put gives one answer for each frame", &format!("\n  found: {stored:?}")),
    }
}

async fn refuses_what_was_named(subject: &Subject, authority: &dyn Authority) {
    let entry = Entry::new();
    let lines = entry.named_by().into_iter().map(|name| (name, true));
    for (name, is_named) in lines.chain(entry.not_named_by().into_iter().map(|name| (name, false)))
    {
        answered(subject.store.clear("").await);
        let ticket = position(authority).await;
        append(authority, name.clone()).await;
        let early = put_one(subject, put_entry(&entry, "early", ticket)).await;
        let found = subject.get_one(&entry.key).await;
        if is_named {
            let promise = format!("a frame older than a line that names it is refused: {name:?}");
            same(&early, &Stored::Refused, &promise);
            same(&found, &None, &format!("what is refused is not stored: {name:?}"));
        } else {
            let promise = format!("a line that names something else refuses nothing: {name:?}");
            same(&early, &Stored::Yes, &promise);
            same(&found, &Some("early".into()), "what is stored is found");
        }
        let late = put_one(subject, put_entry(&entry, "late", position(authority).await)).await;
        let promise = format!("a frame as new as the line that names it is stored: {name:?}");
        same(&late, &Stored::Yes, &promise);
        let refused = put_one(subject, put_entry(&entry, "early", ticket)).await;
        let left = if is_named { "late" } else { "early" };
        same(&(refused == Stored::Refused), &is_named, &promise);
        same(
            &subject.get_one(&entry.key).await,
            &Some(left.into()),
            "a frame that is refused leaves what was there",
        );
    }
}

async fn judges_each_frame_of_a_call(subject: &Subject, authority: &dyn Authority) {
    let key = |text: &str| StoredKey::new("", "kit", 1, text.as_bytes());
    let ticket = position(authority).await;
    append(authority, Name::Key(key("named").name())).await;
    let puts = ["a", "named", "b", "named"].map(|text| put(&key(text), text.to_owned(), ticket));
    same(
        &answered(subject.store.put(&puts).await),
        &vec![Stored::Yes, Stored::Refused, Stored::Yes, Stored::Refused],
        "each frame of a call is judged by itself",
    );
    let keys = ["a", "named", "b"].map(key);
    let frames = vec![Some(Bytes::from("a")), None, Some(Bytes::from("b"))];
    same(&subject.get_many(&keys).await, &frames, "of a call what is permitted is stored");
}

async fn refuses_other_ledgers(subject: &Subject, authority: &dyn Authority) {
    let entry = Entry::new();
    let stamp = foreign(position(authority).await);
    same(
        &put_one(subject, put_entry(&entry, "foreign", stamp)).await,
        &Stored::Refused,
        "a stamp of another incarnation is refused",
    );
    same(&subject.get_one(&entry.key).await, &None, "what is refused is not stored");
}

async fn voids_values_with_their_line(subject: &Subject, authority: &dyn Authority) {
    let long = [b'x'; 1000];
    for text in [b"a_b%c".as_slice(), b"", &long] {
        // Two builds that disagree about the type share the name.
        let one = StoredKey::new("te", "s", 1, text);
        let two = StoredKey::new("te", "s", 2, text);
        let other = StoredKey::new("te", "s", 1, b"other");
        let keys = [one.clone(), two.clone(), other.clone()];
        for name in [Name::Key(one.name()), Name::Set(one.name())] {
            let stamp = position(authority).await;
            let puts = keys.each_ref().map(|key| put(key, "frame", stamp));
            answered(subject.store.put(&puts).await);
            let held = append(authority, name.clone()).await;
            same(&held, &vec![true], &format!("append says that a value was held: {name:?}"));
            same(
                &subject.get_many(&keys).await,
                &vec![None, None, Some("frame".into())],
                &format!("the line about a key drops its values, and no others: {name:?}"),
            );
            let held = append(authority, name.clone()).await;
            same(&held, &vec![false], &format!("append says that nothing was held: {name:?}"));
        }
    }
}

async fn appends_and_voids_only_if_unnamed(subject: &Subject, authority: &dyn Authority) {
    let entry = Entry::new();
    let ticket = position(authority).await;
    append(authority, Name::Set(Arc::clone(&entry.name))).await;
    let stamp = position(authority).await;
    put_one(subject, put_entry(&entry, "frame", stamp)).await;
    let name = Name::Set(Arc::clone(&entry.name));
    let refused = answered(authority.append_if_unnamed(ticket, name.clone(), entry.names()).await);
    same(&refused, &None, "a line is not appended if one since the ticket names the same");
    same(
        &subject.get_one(&entry.key).await,
        &Some("frame".into()),
        "a line that is not appended leaves the value",
    );
    let appended = answered(authority.append_if_unnamed(stamp, name, entry.names()).await);
    let held = appended.map(|appended| appended.held);
    same(&held, &Some(vec![true]), "a line is appended if none since the ticket names the same");
    same(&subject.get_one(&entry.key).await, &None, "a line that is appended drops the value");
}

async fn writes_in_one_step(subject: &Subject, authority: &dyn Authority) {
    if authority.most_in_one_step() == 0 {
        return;
    }
    let entry = Entry::new();
    let line = [Name::Set(Arc::clone(&entry.name))];
    let unstamped = || put_entry(&entry, "", Stamp::default());
    let before = position(authority).await;
    put_one(subject, put_entry(&entry, "before", before)).await;
    // Nor what else lies under the name: a counter, and what a build wrote that disagrees about the type.
    let other_schema = StoredKey::new("te", "sp_ace", 2, b"a_b%c");
    put_one(subject, Put { key: other_schema.clone(), ..put_entry(&entry, "other", before) }).await;
    answered(authority.count(&entry.name, 5, WallTime::from_millis(1), None).await);
    let write = |frame: Bytes| {
        let puts = vec![Put { frame, ..unstamped() }];
        Append { names: line.to_vec(), puts }
    };
    let frame = frame_of(&entry, b"written");
    let Written { appended, stored } = answered(authority.write(&[write(frame)]).await);
    let next = Stamp { number: before.number + 1, ..before };
    same(&appended.position, &next, "what is written has its line");
    same(&stored, &vec![Some(Stored::Yes)], "what is written is stored");
    let promise = "what is written is found, with the position of its line as its stamp";
    same(&found(subject, &entry).await, &Some((b"written".to_vec(), next)), promise);
    let promise = "what is written takes the place of all that was under its name";
    same(&subject.get_one(&other_schema).await, &None, promise);
    let counter = answered(authority.counter(&entry.name, WallTime::from_millis(1)).await);
    same(&counter, &None, promise);
    let early = put_one(subject, put_entry(&entry, "early", before)).await;
    same(&early, &Stored::Refused, "what was loaded before is refused");
    same(&append(authority, Name::Key(Arc::clone(&entry.name))).await, &vec![true], promise);
    same(&subject.get_one(&entry.key).await, &None, "the next line drops what was written");
    // Whatever becomes of the value, the line is true.
    answered(authority.write(&[write(frame_of(&entry, b"to be dropped"))]).await);
    let Written { appended, stored } = answered(authority.write(&[write("no frame".into())]).await);
    same(&stored, &vec![Some(Stored::Refused)], "what nobody could read is not stored");
    same(&appended.position, &position(authority).await, "what is not stored has its line");
    same(&subject.get_one(&entry.key).await, &None, "what nobody could read is not stored");
    writes_of_many_callers(subject, authority, &entry, write).await;
}

/// Each with the position of its own last line, in their order.
async fn writes_of_many_callers(
    subject: &Subject,
    authority: &dyn Authority,
    entry: &Entry,
    write: impl Fn(Bytes) -> Append,
) {
    let promise = "writes in one step are done in their order";
    let frame = |value: &[u8]| frame_of(entry, value);
    let other = Entry::of(b"another");
    let others = Append {
        names: vec![Name::Set(Arc::clone(&other.name)), Name::Tag("kit:another".into())],
        puts: vec![Put {
            frame: frame_of(&other, b"other"),
            ..put_entry(&other, "", Stamp::default())
        }],
    };
    let invalidation = Append { names: vec![Name::Key(Arc::clone(&entry.name))], puts: Vec::new() };
    let start = position(authority).await;
    let at = |lines: u64| Stamp { number: start.number + lines, ..start };
    let writes =
        [write(frame(b"first")), others.clone(), invalidation.clone(), write(frame(b"last"))];
    let Written { appended, stored } = answered(authority.write(&writes).await);
    same(&(appended.position, appended.held.len()), &(at(5), 5), promise);
    same(&stored, &vec![Some(Stored::Yes); 3], promise);
    same(&found(subject, entry).await, &Some((b"last".to_vec(), at(5))), promise);
    same(&found(subject, &other).await, &Some((b"other".to_vec(), at(3))), promise);
    let writes = [write(frame(b"again")), invalidation, others];
    let Written { appended, .. } = answered(authority.write(&writes).await);
    let held = appended.held.get(1).copied();
    same(&held, &Some(true), "what is invalidated after it was written was held");
    same(&found(subject, entry).await, &None, "what is invalidated after it was written is gone");
    same(&found(subject, &other).await, &Some((b"other".to_vec(), at(9))), promise);
}

/// The value that is found under an entry's key, and its stamp.
async fn found(subject: &Subject, entry: &Entry) -> Option<(Vec<u8>, Stamp)> {
    let frame = decode(&subject.get_one(&entry.key).await?, 1024).ok()?;
    Some((frame.value().ok()?.to_vec(), frame.header.stamp))
}

fn frame_of(entry: &Entry, value: &[u8]) -> Bytes {
    let created = WallTime::from_millis(1);
    let header = Header {
        codec: Codec::Raw,
        created,
        expires: None,
        stale_until: None,
        stamp: Stamp::default(),
        last_modified: None,
        version: None,
        tags: Arc::clone(&entry.tags),
        dependencies: Arc::default(),
        key: Bytes::new(),
    };
    encode(&header, value.to_vec(), Compression::off())
}

/// Tasks that fill and invalidate one key: nothing older than the last line is left.
async fn is_not_raced(subject: &Subject, authority: &dyn Authority) {
    let key = StoredKey::new("", "kit", 1, b"raced");
    let start = position(authority).await;
    let tasks = (0..8).map(|task| {
        let (store, key) = (Arc::clone(&subject.store), key.clone());
        async move {
            let Some(authority) = store.authority() else { return };
            for round in 0..30 {
                let ticket = position(&*authority).await;
                if (task + round) % 3 == 0 {
                    append(&*authority, Name::Key(key.name())).await;
                }
                tokio::task::yield_now().await;
                let frame = ticket.number.to_le_bytes().to_vec();
                answered(store.put(&[put(&key, frame, ticket)]).await);
            }
        }
    });
    together(tasks).await;
    let lines = match answered(authority.follow(start).await) {
        Follow::Lines(lines) => lines,
        Follow::Broken => broken("a ledger can be followed over a hundred lines", ""),
    };
    let last = lines.last().map_or(0, |line| line.number);
    if let Some(frame) = subject.get_one(&key).await {
        let stamp = frame.first_chunk().map_or(0, |number| u64::from_le_bytes(*number));
        holds(stamp >= last, "no frame slips in that is older than a line about its key");
    }
}
