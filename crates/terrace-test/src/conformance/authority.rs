//! The **authority kit**: what whoever keeps the ledger has promised.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;

use terrace::authority::{Appended, Authority};
use terrace::ledger::{Line, Name, Names, Stamp};
use terrace::protocol::{Follow, Lease, Leased, Limits, Marks, Snapshot, Standing};

use super::{Entry, abandon, answered, at, broken, foreign, holds, position, same, together};

pub(super) async fn check<Fut>(make: &impl Fn() -> Fut)
where
    Fut: Future<Output = Arc<dyn Authority>>,
{
    macro_rules! check_each {
        ($($check:ident)*) => {$(
            $check(&make().await).await;
        )*};
    }
    check_each! {
        is_empty_at_first numbers_its_lines is_followed breaks_the_chain snapshots
        joins_like_it_judges appends_only_if_unnamed refuses_other_ledgers
        forgets_without_a_gap grants_one_lease renews_a_lease releases_a_lease voids_leases
        counts counts_until_it_lapses drops_counters numbers_tasks_without_a_gap
        appends_in_one_step lets_one_task_win adds_up_tasks survives_abandoned_calls
    }
}

type Subject = Arc<dyn Authority>;

async fn append(authority: &dyn Authority, name: Name) -> Appended {
    append_many(authority, &[name]).await
}

async fn append_many(authority: &dyn Authority, names: &[Name]) -> Appended {
    let appended = answered(authority.append(names).await);
    same(&appended.held.len(), &names.len(), "append says for each name whether it was held");
    appended
}

async fn lines_since(authority: &dyn Authority, position: Stamp) -> Vec<Line> {
    match answered(authority.follow(position).await) {
        Follow::Lines(lines) => lines,
        Follow::Broken => {
            broken("the newest lines can be followed", &format!("\n  since: {position}"))
        }
    }
}

async fn is_broken(authority: &dyn Authority, position: Stamp) -> bool {
    answered(authority.follow(position).await) == Follow::Broken
}

fn key_name(number: impl std::fmt::Display) -> Arc<str> {
    format!("te:kit:{number}").into()
}

async fn is_empty_at_first(authority: &Subject) {
    let snapshot = answered(authority.snapshot().await);
    let expected = Snapshot::empty(snapshot.incarnation);
    same(&snapshot, &expected, "a fresh ledger has no line");
    let here = position(&**authority).await;
    same(&lines_since(&**authority, here).await, &Vec::new(), "a fresh ledger has no line");
    let now = at(0);
    let counter = answered(authority.counter("te:kit:a", now).await);
    same(&counter, &None, "a fresh authority has no counter");
    same(
        &answered(authority.renew("te:kit:a", 1, at(1)).await),
        &false,
        "a lease that was never granted cannot be renewed",
    );
    answered(authority.release("te:kit:a", 1).await);
}

async fn numbers_its_lines(authority: &Subject) {
    let start = position(&**authority).await;
    let nothing = append_many(&**authority, &[]).await;
    same(&nothing.position, &start, "appending no names appends no line");
    let mut number = start.number;
    for count in [1, 2, 3, 10, 100] {
        let names: Vec<_> = (0..count).map(|n| Name::Key(key_name(n))).collect();
        let appended = append_many(&**authority, &names).await;
        number += count;
        let expected = Stamp { number, ..start };
        same(&appended.position, &expected, "positions grow by one for each name");
        same(&position(&**authority).await, &expected, "a snapshot knows the newest line");
    }
}

async fn is_followed(authority: &Subject) {
    let entry = Entry::new();
    let start = position(&**authority).await;
    let mut names = entry.named_by();
    names.extend(entry.not_named_by());
    names.extend(entry.named_by());
    names.push(Name::Key("te:ö\u{301}:\"'%\\".into()));
    for chunk in names.chunks(5) {
        append_many(&**authority, chunk).await;
    }
    let lines: Vec<_> = (start.number + 1..)
        .zip(&names)
        .map(|(number, name)| Line { number, name: name.clone() })
        .collect();
    for skip in 0..=lines.len() {
        let since = Stamp { number: start.number + skip as u64, ..start };
        let expected: Vec<_> = lines.iter().skip(skip).cloned().collect();
        same(
            &lines_since(&**authority, since).await,
            &expected,
            "follow gives exactly the lines since, in order, as they were appended",
        );
    }
}

async fn breaks_the_chain(authority: &Subject) {
    for _ in 0..2 {
        let here = position(&**authority).await;
        holds(
            is_broken(&**authority, foreign(here)).await,
            "the chain is broken for those who followed another incarnation",
        );
        for ahead in [1, 2, 1000] {
            let future = Stamp { number: here.number + ahead, ..here };
            holds(
                is_broken(&**authority, future).await,
                "the chain is broken for those who know lines that there never were",
            );
        }
        append(&**authority, Name::Key(key_name("a"))).await;
    }
}

async fn snapshots(authority: &Subject) {
    let entry = Entry::new();
    let mut names = entry.named_by();
    names.extend(entry.not_named_by());
    // The same texts once more, in another order.
    names.extend(entry.not_named_by().into_iter().rev());
    names.extend(entry.named_by().into_iter().rev().step_by(2));
    let appended = append_many(&**authority, &names).await;
    let first = appended.position.number + 1 - names.len() as u64;
    let (mut last, mut of_keys) = (BTreeMap::<&Name, u64>::new(), BTreeMap::new());
    for (number, name) in (first..).zip(&names) {
        if let Name::Key(key) | Name::Set(key) = name {
            of_keys.insert(key, number);
        } else {
            last.insert(name, number);
        }
    }
    let mut expected: Vec<_> =
        last.into_iter().map(|(name, number)| Line { number, name: name.clone() }).collect();
    expected.sort_by_key(|line| line.number);
    let snapshot = answered(authority.snapshot().await);
    same(&snapshot.last, &appended.position.number, "a snapshot knows the newest line");
    same(&snapshot.floor, &0, "nothing is forgotten of a hundred names");
    same(
        &snapshot.names,
        &expected,
        "a snapshot has the last line of each tag, prefix, space and of everything, in order",
    );
    for (key, number) in &snapshot.keys {
        same(
            &Some(number),
            &of_keys.get(key),
            "what a snapshot says of a key is the last line about it",
        );
    }
}

/// Those who join know of broad names what those know who followed from the start,
/// and what the authority itself goes by.
async fn joins_like_it_judges(authority: &Subject) {
    let entry = Entry::new();
    let start = position(&**authority).await;
    let mut follower = Marks::starting_at(start, Limits::default());
    let broad = |name: &Name| !matches!(name, Name::Key(_) | Name::Set(_));
    let mut names = entry.not_named_by();
    names.extend(entry.named_by());
    names.retain(broad);
    // Everything last would leave nothing to tell apart.
    names.retain(|name| *name != Name::Everything);
    names.insert(3, Name::Everything);
    for name in &names {
        append(&**authority, name.clone()).await;
    }
    for line in lines_since(&**authority, start).await {
        follower.apply(&line);
    }
    let snapshot = answered(authority.snapshot().await);
    let joiner = Marks::joining(&snapshot, Limits::default());
    same(&joiner.position(), &follower.position(), "who joins is where those are who followed");
    let tags: [Arc<str>; 2] = ["te:red".into(), "te:r_d".into()];
    let entries = [
        entry.names(),
        Names { key: "te:sp_ace:axb", space: "te:sp_ace", tags: &[] },
        Names { key: "te:other:k", space: "te:other", tags: &tags },
        Names { key: "xx:other:k", space: "xx:other", tags: &tags },
        Names { key: "xx:other:k", space: "xx:other", tags: &[] },
    ];
    for number in start.number..=snapshot.last {
        let stamp = Stamp { number, ..start };
        for names in &entries {
            let expected = follower.standing(stamp, names);
            let promise = format!("who joins judges like those who followed: {stamp} {names:?}");
            same(&joiner.standing(stamp, names), &expected, &promise);
            let unrelated = Name::Key("yy:none:k".into());
            let appended =
                answered(authority.append_if_unnamed(stamp, unrelated, *names).await).is_some();
            let promise = format!("the authority judges like those who follow: {stamp} {names:?}");
            same(&appended, &(expected == Standing::Good), &promise);
        }
    }
}

async fn appends_only_if_unnamed(authority: &Subject) {
    let entry = Entry::new();
    let fresh = Name::Set("te:kit:written".into());
    for name in entry.named_by() {
        let ticket = position(&**authority).await;
        append(&**authority, name.clone()).await;
        append(&**authority, Name::Key("te:kit:unrelated".into())).await;
        let before = position(&**authority).await;
        let answer = authority.append_if_unnamed(ticket, fresh.clone(), entry.names()).await;
        let promise = format!("no line is appended if one since the ticket names it: {name:?}");
        same(&answered(answer), &None, &promise);
        same(&position(&**authority).await, &before, &promise);
    }
    for name in entry.not_named_by() {
        let ticket = position(&**authority).await;
        append(&**authority, name.clone()).await;
        let before = position(&**authority).await;
        let answer = authority.append_if_unnamed(ticket, fresh.clone(), entry.names()).await;
        let promise = format!("a line is appended if none since the ticket names it: {name:?}");
        let position = Stamp { number: before.number + 1, ..before };
        let expected = Appended { position, held: vec![false], undropped: Vec::new() };
        same(&answered(answer), &Some(expected.clone()), &promise);
        let line = Line { number: expected.position.number, name: fresh.clone() };
        same(&lines_since(&**authority, before).await, &vec![line], &promise);
    }
    // A ticket is used up by the line that it permitted.
    let ticket = position(&**authority).await;
    let own = Name::Set(Arc::clone(&entry.name));
    for is_first in [true, false] {
        let answer = authority.append_if_unnamed(ticket, own.clone(), entry.names()).await;
        same(&answered(answer).is_some(), &is_first, "of two writes with one ticket one succeeds");
    }
}

async fn refuses_other_ledgers(authority: &Subject) {
    let entry = Entry::new();
    for _ in 0..2 {
        let ticket = foreign(position(&**authority).await);
        let name = Name::Set(Arc::clone(&entry.name));
        let answer = authority.append_if_unnamed(ticket, name, entry.names()).await;
        same(&answered(answer), &None, "a ticket of another incarnation permits nothing");
        append(&**authority, Name::Key("te:kit:unrelated".into())).await;
    }
}

/// An authority keeps as many lines as it likes: what it no longer knows counts as
/// named, and it never leaves a hole.
async fn forgets_without_a_gap(authority: &Subject) {
    const CALLS: u64 = 70;
    const LINES: u64 = 1000;
    let entry = Entry::new();
    let start = position(&**authority).await;
    append(&**authority, Name::Key(Arc::clone(&entry.name))).await;
    append(&**authority, Name::Tag("te:early".into())).await;
    for call in 0..CALLS {
        let names: Vec<_> = (0..LINES).map(|n| Name::Key(key_name(call * LINES + n))).collect();
        append_many(&**authority, &names).await;
    }
    let last = position(&**authority).await;
    same(&last.number, &(start.number + 2 + CALLS * LINES), "positions grow by one for each name");
    for since in [start.number, start.number + 1, last.number / 2, last.number - 500, last.number] {
        let since = Stamp { number: since, ..start };
        if let Follow::Lines(lines) = answered(authority.follow(since).await) {
            let numbers = lines.iter().map(|line| line.number);
            holds(
                numbers.eq(since.number + 1..=last.number),
                "whoever follows a long way gets every line or learns that the chain is broken",
            );
        }
    }
    holds(
        !is_broken(&**authority, Stamp { number: last.number - 500, ..last }).await,
        "the last 500 lines are kept",
    );
    let name = Name::Set(Arc::clone(&entry.name));
    let answer = answered(authority.append_if_unnamed(start, name, entry.names()).await);
    same(&answer, &None, "a line that names a key counts even when it is long ago");
    let snapshot = answered(authority.snapshot().await);
    let early = Line { number: start.number + 2, name: Name::Tag("te:early".into()) };
    same(&snapshot.names, &vec![early], "a snapshot has broad names from long ago");
}

async fn lease(authority: &dyn Authority, key: &Arc<str>, now: u64, until: u64) -> Leased {
    answered(authority.lease(key, at(now), at(until)).await)
}

#[track_caller]
fn granted(leased: Leased, until: u64, promise: &str) -> Lease {
    match leased {
        Leased::Granted(lease) => {
            same(&lease.until, &at(until), "a lease runs as long as was asked for");
            lease
        }
        Leased::Held(until) => broken(promise, &format!("\n  found: held until {until:?}")),
    }
}

async fn grants_one_lease(authority: &Subject) {
    let authority = &**authority;
    let (key, other) = (key_name("leased"), key_name("leased:too"));
    let first = granted(lease(authority, &key, 0, 100).await, 100, "a free lease is granted");
    let promise = "a lease that stands is held, until the time that it runs to";
    same(&lease(authority, &key, 0, 500).await, &Leased::Held(at(100)), promise);
    same(&lease(authority, &key, 99, 500).await, &Leased::Held(at(100)), promise);
    let beside = granted(lease(authority, &other, 0, 100).await, 100, "each key has its own lease");
    let second =
        granted(lease(authority, &key, 100, 200).await, 200, "a lease that has lapsed is free");
    same(&lease(authority, &key, 150, 500).await, &Leased::Held(at(200)), promise);
    let tokens = BTreeSet::from([first.token, second.token, beside.token]);
    same(&tokens.len(), &3, "each lease has a token of its own");
}

async fn renews_a_lease(authority: &Subject) {
    let authority = &**authority;
    let key = key_name("leased");
    let first = granted(lease(authority, &key, 0, 100).await, 100, "a free lease is granted");
    let renew = async |token, until| answered(authority.renew(&key, token, at(until)).await);
    same(&renew(first.token ^ 1, 900).await, &false, "a lease is renewed with its token alone");
    same(
        &lease(authority, &key, 50, 500).await,
        &Leased::Held(at(100)),
        "a lease is renewed with its token alone",
    );
    same(&renew(first.token, 300).await, &true, "a lease is renewed with its token");
    same(
        &lease(authority, &key, 299, 500).await,
        &Leased::Held(at(300)),
        "a lease that was renewed runs on",
    );
    let second = granted(
        lease(authority, &key, 300, 400).await,
        400,
        "a lease that was renewed lapses in the end",
    );
    same(&renew(first.token, 900).await, &false, "a lease that was taken over cannot be renewed");
    same(
        &lease(authority, &key, 350, 500).await,
        &Leased::Held(at(400)),
        "a lease that was taken over cannot be renewed",
    );
    same(&renew(second.token, 450).await, &true, "who took a lease over can renew it");
    let other = key_name("other");
    same(
        &answered(authority.renew(&other, second.token, at(900)).await),
        &false,
        "a token is good for its own key alone",
    );
}

async fn releases_a_lease(authority: &Subject) {
    let authority = &**authority;
    let key = key_name("leased");
    let first = granted(lease(authority, &key, 0, 100).await, 100, "a free lease is granted");
    answered(authority.release(&key, first.token ^ 1).await);
    answered(authority.release(&key_name("other"), first.token).await);
    same(
        &lease(authority, &key, 0, 100).await,
        &Leased::Held(at(100)),
        "a lease is given back with its token alone",
    );
    answered(authority.release(&key, first.token).await);
    let second =
        granted(lease(authority, &key, 0, 100).await, 100, "a lease that was given back is free");
    answered(authority.release(&key, first.token).await);
    same(
        &lease(authority, &key, 0, 100).await,
        &Leased::Held(at(100)),
        "a lease is given back once",
    );
    holds(first.token != second.token, "each lease has a token of its own");
    same(
        &answered(authority.renew(&key, first.token, at(900)).await),
        &false,
        "a lease that was given back cannot be renewed",
    );
}

async fn voids_leases(authority: &Subject) {
    let authority = &**authority;
    let entry = Entry::new();
    let key = &entry.name;
    let mut lease_now =
        granted(lease(authority, key, 0, 1000).await, 1000, "a free lease is granted");
    for name in entry.named_by().into_iter().chain(entry.not_named_by()) {
        append(authority, name.clone()).await;
        let renewed = answered(authority.renew(key, lease_now.token, at(1000)).await);
        if name == Name::Key(Arc::clone(key)) {
            same(&renewed, &false, "the line that invalidates a key voids its lease");
            let leased = lease(authority, key, 0, 1000).await;
            lease_now = granted(leased, 1000, "a lease that was voided is free");
        } else {
            same(&renewed, &true, &format!("a lease outlasts every other line: {name:?}"));
        }
    }
    let ticket = position(authority).await;
    let name = Name::Set(Arc::clone(key));
    answered(authority.append_if_unnamed(ticket, name, entry.names()).await);
    let renewed = answered(authority.renew(key, lease_now.token, at(1000)).await);
    same(&renewed, &true, "a lease outlasts a write of its key");
}

async fn count(authority: &dyn Authority, key: &Arc<str>, by: i64) -> i64 {
    answered(authority.count(key, by, at(0), None).await)
}

async fn counter(authority: &dyn Authority, key: &str, now: u64) -> Option<i64> {
    answered(authority.counter(key, at(now)).await)
}

async fn counts(authority: &Subject) {
    let authority = &**authority;
    let (key, other) = (key_name("counted"), key_name("counted:too"));
    let mut sum = 0;
    for by in [1, 1, -5, 0, 1 << 40, -(1 << 41), 7] {
        sum += by;
        same(&count(authority, &key, by).await, &sum, "a counter returns the sum");
        same(&counter(authority, &key, 0).await, &Some(sum), "a counter keeps the sum");
    }
    same(&counter(authority, &other, 0).await, &None, "each counter counts for itself");
    same(&count(authority, &other, 3).await, &3, "each counter counts for itself");
    same(&counter(authority, &key, 0).await, &Some(sum), "each counter counts for itself");
    let forever = 1 << 40;
    same(
        &counter(authority, &key, forever).await,
        &Some(sum),
        "a counter without an end does not lapse",
    );
}

async fn counts_until_it_lapses(authority: &Subject) {
    let authority = &**authority;
    let key = key_name("counted");
    let count = async |by, now, expires: u64| {
        answered(authority.count(&key, by, at(now), Some(at(expires))).await)
    };
    same(&count(5, 0, 100).await, &5, "a new counter counts from 0");
    same(&count(5, 50, 900).await, &10, "a counter returns the sum");
    same(&counter(authority, &key, 99).await, &Some(10), "a counter is there until it lapses");
    let promise = "a counter lapses when was said when it was new";
    same(&counter(authority, &key, 100).await, &None, promise);
    same(&count(1, 100, 200).await, &1, "a counter that has lapsed counts from 0");
    same(&counter(authority, &key, 199).await, &Some(1), "a counter that begins anew lapses anew");
    same(&counter(authority, &key, 200).await, &None, "a counter that begins anew lapses anew");
    let sum = answered(authority.count(&key, 2, at(300), None).await);
    same(&sum, &2, "a counter that has lapsed counts from 0");
    same(
        &counter(authority, &key, 1 << 40).await,
        &Some(2),
        "a counter without an end does not lapse",
    );
}

async fn drops_counters(authority: &Subject) {
    let authority = &**authority;
    let entry = Entry::new();
    let key = &entry.name;
    for name in entry.named_by() {
        let is_dropped = !matches!(name, Name::Tag(_));
        count(authority, key, 7).await;
        let held = append(authority, name.clone()).await.held;
        // Of broader names it need not know.
        if matches!(name, Name::Key(_) | Name::Set(_)) {
            same(&held, &vec![true], "append says whether it dropped a counter");
        }
        let left = (!is_dropped).then_some(7);
        let promise = format!("a line drops the counters it names; tags name none: {name:?}");
        same(&counter(authority, key, 0).await, &left, &promise);
        append(authority, Name::Key(Arc::clone(key))).await;
        let held = append(authority, name.clone()).await.held;
        same(&held, &vec![false], &format!("append says that nothing was held: {name:?}"));
    }
    for name in entry.not_named_by() {
        count(authority, key, 7).await;
        append(authority, name.clone()).await;
        let promise = format!("a line leaves the counters that it does not name: {name:?}");
        same(&counter(authority, key, 0).await, &Some(7), &promise);
        append(authority, Name::Key(Arc::clone(key))).await;
    }
    count(authority, key, 7).await;
    let ticket = position(authority).await;
    let answer = authority.append_if_unnamed(ticket, Name::Set(Arc::clone(key)), entry.names());
    let held = answered(answer.await).map(|appended| appended.held);
    same(&held, &Some(vec![true]), "append says whether it dropped a counter");
    same(&counter(authority, key, 0).await, &None, "a line that is appended drops its counter");
}

const TASKS: u64 = 8;
const ROUNDS: u64 = 40;

async fn numbers_tasks_without_a_gap(authority: &Subject) {
    let start = position(&**authority).await;
    let tasks = (0..TASKS).map(|task| {
        let authority = Arc::clone(authority);
        async move {
            let mut given = Vec::new();
            for round in 0..ROUNDS {
                let name = Name::Key(key_name(format_args!("{task}:{round}")));
                given.push((append(&*authority, name.clone()).await.position, name));
            }
            given
        }
    });
    let mut given: Vec<_> = together(tasks).await.into_iter().flatten().collect();
    for pair in given.chunks(ROUNDS.try_into().unwrap_or(usize::MAX)) {
        let grows = pair.windows(2).all(|pair| match pair {
            [(earlier, _), (later, _)] => earlier.number < later.number,
            _ => true,
        });
        holds(grows, "positions grow for each task");
    }
    given.sort_by_key(|(position, _)| position.number);
    let lines: Vec<_> =
        given.into_iter().map(|(position, name)| Line { number: position.number, name }).collect();
    let numbers = lines.iter().map(|line| line.number);
    holds(
        numbers.eq(start.number + 1..=start.number + TASKS * ROUNDS),
        "numbers are given once each and without a gap, however many tasks append",
    );
    same(
        &lines_since(&**authority, start).await,
        &lines,
        "each task's line stands where it was told",
    );
}

async fn appends_in_one_step(authority: &Subject) {
    let start = position(&**authority).await;
    let tasks = (0..TASKS).map(|task| {
        let authority = Arc::clone(authority);
        async move {
            for round in 0..ROUNDS {
                let name = |part| Name::Key(key_name(format_args!("{task}:{round}:{part}")));
                append_many(&*authority, &[name(0), name(1), name(2)]).await;
            }
        }
    });
    together(tasks).await;
    let lines = lines_since(&**authority, start).await;
    let is_whole = lines.chunks(3).all(|chunk| {
        let texts: Vec<_> = chunk
            .iter()
            .map(|line| match &line.name {
                Name::Key(name) => name.rsplit_once(':'),
                _ => None,
            })
            .collect();
        match texts.as_slice() {
            [Some((one, "0")), Some((two, "1")), Some((three, "2"))] => one == two && two == three,
            _ => false,
        }
    });
    holds(is_whole, "the lines of one call follow each other, whoever else appends");
}

async fn lets_one_task_win(authority: &Subject) {
    for round in 0..ROUNDS {
        let key = key_name(round);
        let ticket = position(&**authority).await;
        let tasks = (0..TASKS).map(|_| {
            let (authority, key) = (Arc::clone(authority), Arc::clone(&key));
            async move {
                let leased = lease(&*authority, &key, 0, 100).await;
                let names = Names { key: &key, space: "te:kit", tags: &[] };
                let name = Name::Set(Arc::clone(&key));
                let written = answered(authority.append_if_unnamed(ticket, name, names).await);
                (matches!(leased, Leased::Granted(_)), written.is_some())
            }
        });
        let outcomes = together(tasks).await;
        let leases = outcomes.iter().filter(|(is_leased, _)| *is_leased).count();
        same(&leases, &1, "of tasks that ask for one lease at once one gets it");
        let writes = outcomes.iter().filter(|(_, is_written)| *is_written).count();
        same(&writes, &1, "of tasks that write with one ticket at once one succeeds");
    }
}

async fn adds_up_tasks(authority: &Subject) {
    let key = key_name("counted");
    let tasks = (0..TASKS).map(|_| {
        let (authority, key) = (Arc::clone(authority), Arc::clone(&key));
        async move {
            let mut sums = Vec::new();
            for _ in 0..ROUNDS {
                sums.push(count(&*authority, &key, 1).await);
            }
            sums
        }
    });
    let sums: BTreeSet<_> = together(tasks).await.into_iter().flatten().collect();
    let expected = i64::try_from(TASKS * ROUNDS).unwrap_or(i64::MAX);
    holds(sums.into_iter().eq(1..=expected), "a counter misses nothing that tasks add at once");
    same(&counter(&**authority, &key, 0).await, &Some(expected), "a counter keeps the sum");
}

async fn survives_abandoned_calls(authority: &Subject) {
    const CALLS: usize = 12;
    let authority = &**authority;
    let start = position(authority).await;
    let counted = key_name("counted");
    let between = Name::Key(key_name("between"));
    for call in 0..CALLS {
        let polls = call / 3;
        let leased = key_name(format_args!("leased:{call}"));
        let names = [0, 1].map(|part| Name::Key(key_name(format_args!("{call}:{part}"))));
        abandon(authority.append(&names), polls).await;
        abandon(authority.count(&counted, 1, at(0), None), polls).await;
        abandon(authority.lease(&leased, at(0), at(100)), polls).await;
        append(authority, between.clone()).await;
        count(authority, &counted, 1000).await;
        let promise = "a lease that was asked for and not waited for is granted or is not";
        let found = lease(authority, &leased, 50, 100).await;
        holds(matches!(found, Leased::Granted(_)) || found == Leased::Held(at(100)), promise);
    }
    let lines = lines_since(authority, start).await;
    holds(
        lines.iter().map(|line| line.number).eq((start.number + 1..).take(lines.len())),
        "calls that are dropped leave no gap in the ledger",
    );
    let awaited = lines.iter().filter(|line| line.name == between).count();
    same(&awaited, &CALLS, "a line that was waited for is there, whatever was dropped");
    let others: Vec<_> = lines.iter().filter(|line| line.name != between).collect();
    let is_whole = others.chunks(2).all(|pair| match pair {
        [one, two] => two.number == one.number + 1,
        _ => false,
    });
    holds(is_whole, "a call that is dropped appends all of its lines or none");
    let sum = counter(authority, &counted, 0).await.unwrap_or(0);
    let calls = i64::try_from(CALLS).unwrap_or(i64::MAX);
    same(&(sum / 1000), &calls, "what was counted and waited for counts, whatever was dropped");
    holds(sum % 1000 <= calls, "a count that is dropped counts once or not at all");
}
