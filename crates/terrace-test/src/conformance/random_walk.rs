//! The **random walk**: an authority and the model, asked the same questions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;

use terrace::authority::Authority;
use terrace::clock::WallTime;
use terrace::ledger::{Name, Names, Stamp};
use terrace::protocol::{Leased, Limits, Record};

use super::{answered, at, broken, foreign, position};
use crate::random::Random;

/// Questions of one walk: few enough that no authority forgets a line meanwhile.
const STEPS: u32 = 400;

pub(super) async fn walk(authority: &dyn Authority, seed: u64) {
    let start = position(authority).await;
    let mut walk = Walk {
        authority,
        model: Record::new(start.incarnation, usize::MAX, Limits::default()),
        counters: BTreeMap::new(),
        dropped_broadly: BTreeSet::new(),
        grants: Vec::new(),
        random: Random::new(seed),
        now: 0,
        place: format!("seed {seed}"),
    };
    walk.agree("position", &start, &walk.model.position());
    for step in 0..STEPS {
        walk.place = format!("seed {seed}, step {step}");
        walk.now += walk.random.below(60);
        match walk.random.below(12) {
            0..=2 => walk.append().await,
            3..=4 => walk.append_if_unnamed().await,
            5 => walk.follow().await,
            6 => walk.snapshot().await,
            7..=8 => walk.lease().await,
            9 => walk.renew_or_release().await,
            _ => walk.count().await,
        }
    }
}

struct Walk<'a> {
    authority: &'a dyn Authority,
    model: Record,
    counters: BTreeMap<Arc<str>, Counter>,
    /// Keys whose counters were dropped by a broader name: who judges them when they are read has
    /// them still.
    dropped_broadly: BTreeSet<Arc<str>>,
    /// Key, the authority's token, the model's token.
    grants: Vec<(Arc<str>, u64, u64)>,
    random: Random,
    now: u64,
    place: String,
}

struct Counter {
    value: i64,
    expires: Option<WallTime>,
}

impl Counter {
    fn lives(&self, now: WallTime) -> bool {
        self.expires.is_none_or(|expires| expires > now)
    }
}

/// Few enough that they meet often.
const KEYS: [(&str, &str); 6] = [
    ("t:s:a", "t:s"),
    ("t:s:ab", "t:s"),
    ("t:s:a_", "t:s"),
    ("t:s2:a", "t:s2"),
    ("u:s:a", "u:s"),
    ("u:%25:a", "u:%25"),
];
const PREFIXES: [&str; 6] = ["t:s:a", "t:s", "t:s:a_", "u:%", "t:_", ""];
const TAGS: [&str; 3] = ["t:x", "t:x_", "u:x"];

impl Walk<'_> {
    /// # Panics
    /// The two answers differ.
    #[track_caller]
    fn agree<T: PartialEq + Debug>(&self, question: impl Debug, found: &T, expected: &T) {
        if found != expected {
            broken(
                "an authority answers like the model",
                &format!(
                    "\n  {}: {question:?}\n  found:    {found:?}\n  expected: {expected:?}",
                    self.place
                ),
            );
        }
    }

    fn now(&self) -> WallTime {
        at(self.now)
    }

    fn one_of<T: Copy>(&mut self, several: &[T], otherwise: T) -> T {
        self.random.one_of(several).copied().unwrap_or(otherwise)
    }

    fn key(&mut self) -> (Arc<str>, &'static str) {
        let (key, space) = self.one_of(&KEYS, ("t:s:a", "t:s"));
        (key.into(), space)
    }

    fn name(&mut self) -> Name {
        let (key, space) = self.key();
        match self.random.below(12) {
            0..=3 => Name::Key(key),
            4..=6 => Name::Set(key),
            7 => Name::Space(space.into()),
            8 => Name::Prefix(self.one_of(&PREFIXES, "").into()),
            9..=10 => Name::Tag(self.one_of(&TAGS, "t:x").into()),
            _ => match self.random.below(4) {
                0 => Name::Everything,
                _ => Name::Prefix(key),
            },
        }
    }

    /// A position that there was, mostly a late one; sometimes of another ledger.
    fn ticket(&mut self) -> Stamp {
        let here = self.model.position();
        let back = match self.random.below(3) {
            0 => self.random.below(here.number + 1),
            _ => self.random.below(6).min(here.number),
        };
        let stamp = Stamp { number: here.number - back, ..here };
        if self.random.below(20) == 0 { foreign(stamp) } else { stamp }
    }

    async fn append(&mut self) {
        let count = self.random.below(4);
        let names: Vec<_> = (0..count).map(|_| self.name()).collect();
        let found = answered(self.authority.append(&names).await);
        let expected = self.model.append(names.iter().cloned());
        self.agree(("append", &names), &found.position, &expected);
        self.agree(("append, held", &names), &found.held.len(), &names.len());
        for (name, held) in names.iter().zip(found.held) {
            self.drop_counters(name, held);
        }
    }

    async fn append_if_unnamed(&mut self) {
        let ticket = self.ticket();
        let (key, space) = self.key();
        let tags: Vec<Arc<str>> = match self.random.below(2) {
            0 => Vec::new(),
            _ => vec![self.one_of(&TAGS, "t:x").into()],
        };
        let names = Names { key: &key, space, tags: &tags };
        let name = Name::Set(Arc::clone(&key));
        let question = format!("append_if_unnamed {ticket} {names:?}");
        let answer = self.authority.append_if_unnamed(ticket, name.clone(), names).await;
        let found = answered(answer);
        let expected = self.model.append_if_unnamed(ticket, name.clone(), &names);
        self.agree(question, &found.as_ref().map(|appended| appended.position), &expected);
        if let Some([held]) = found.as_ref().map(|appended| appended.held.as_slice()) {
            self.drop_counters(&name, *held);
        }
    }

    async fn follow(&mut self) {
        let mut since = self.ticket();
        if self.random.below(10) == 0 {
            since.number = self.model.position().number + 1 + self.random.below(3);
        }
        let found = answered(self.authority.follow(since).await);
        self.agree(format!("follow {since}"), &found, &self.model.follow(since));
    }

    async fn snapshot(&mut self) {
        let mut found = answered(self.authority.snapshot().await);
        // Not every authority has to tell.
        found.keys.clear();
        self.agree("snapshot", &found, &self.model.snapshot());
    }

    async fn lease(&mut self) {
        let (key, _) = self.key();
        let (now, until) = (self.now(), at(self.now + 1 + self.random.below(400)));
        let found = answered(self.authority.lease(&key, now, until).await);
        let expected = self.model.lease(&key, now, until);
        let question = format!("lease {key} from {now:?} until {until:?}");
        match (found, expected) {
            (Leased::Granted(theirs), Leased::Granted(ours)) => {
                self.agree(question, &theirs.until, &ours.until);
                self.grants.push((key, theirs.token, ours.token));
            }
            (found, expected) => self.agree(question, &found, &expected),
        }
    }

    async fn renew_or_release(&mut self) {
        // The last few, so that most of them still stand.
        let recent: Vec<_> = self.grants.iter().rev().take(8).cloned().collect();
        let Some((key, theirs, ours)) = self.random.one_of(&recent).cloned() else { return };
        if self.random.below(3) == 0 {
            answered(self.authority.release(&key, theirs).await);
            self.model.release(&key, ours);
            return;
        }
        let until = at(self.now + 1 + self.random.below(400));
        let found = answered(self.authority.renew(&key, theirs, until).await);
        let expected = self.model.renew(&key, ours, until);
        self.agree(format!("renew {key} until {until:?}"), &found, &expected);
    }

    async fn count(&mut self) {
        let (key, _) = self.key();
        let now = self.now();
        let question = format!("count {key} at {now:?}");
        let living = self.counters.get(&key).filter(|counter| counter.lives(now));
        let before = living.map(|counter| counter.value);
        let found = answered(self.authority.counter(&key, now).await);
        self.agree(&question, &found, &before);
        if self.random.below(3) == 0 {
            return;
        }
        let by = i64::from(self.random.byte()) - 100;
        let expires = (self.random.below(3) > 0).then(|| at(self.now + 1 + self.random.below(900)));
        let found = answered(self.authority.count(&key, by, now, expires).await);
        if before.is_none() {
            self.counters.insert(Arc::clone(&key), Counter { value: 0, expires });
        }
        let expected = self.counters.get_mut(&key).map(|counter| {
            counter.value += by;
            counter.value
        });
        self.agree(question, &Some(found), &expected);
    }

    /// Drops the counters that a line names; `held` has to say whether there were any.
    fn drop_counters(&mut self, name: &Name, held: bool) {
        let (now, before) = (self.now(), self.counters.len());
        let mut lived = false;
        let dropped_broadly = &mut self.dropped_broadly;
        let is_key = matches!(name, Name::Key(_) | Name::Set(_));
        self.counters.retain(|key, counter| {
            let space = key.rsplit_once(':').map_or("", |(space, _)| space);
            let is_named = match name {
                Name::Key(named) | Name::Set(named) => named == key,
                Name::Prefix(prefix) => key.starts_with(&**prefix),
                Name::Space(named) => **named == *space,
                Name::Everything => true,
                _ => false,
            };
            lived |= is_named && counter.lives(now);
            if is_named && !is_key {
                dropped_broadly.insert(Arc::clone(key));
            }
            !is_named
        });
        // One that has lapsed may be there still, or not; of broader names nobody need know.
        let (Name::Key(key) | Name::Set(key)) = name else { return };
        let may_be_there = self.dropped_broadly.remove(key);
        if lived || (self.counters.len() == before && !may_be_there) {
            self.agree(("held", name), &held, &lived);
        }
    }
}
