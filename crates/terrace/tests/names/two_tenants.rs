//! Two tenants that do the same things at random, each compared with a plain model of what it did
//! itself: whatever one could see or change of the other would be a difference.

use std::collections::BTreeMap;

use terrace::{Builder, Event, Space, Target, Tenant, Terrace};

/// Names that a careless cache would take for each other, or for something else.
pub(crate) const NAMES: [&str; 18] = [
    "a",
    "a:",
    "a:b",
    ":",
    "%3A",
    "a%3A",
    "*",
    "?",
    "[a]",
    "\\",
    "{a}",
    "#a",
    "!s",
    "a\r\nDEL a",
    "\0",
    "..",
    "\u{e9}\u{202e}",
    " ",
];

/// Two of them, or two that only differ at their very end.
pub(crate) fn two_names(random: &mut fastrand::Rng) -> [String; 2] {
    if random.u8(..8) == 0 {
        return ["x".repeat(256), "x".repeat(255)];
    }
    let one = random.usize(..NAMES.len());
    let other = (one + random.usize(1..NAMES.len())) % NAMES.len();
    [NAMES[one].into(), NAMES[other].into()]
}

/// A cache that knows the event of these calls.
pub(crate) fn with_event(builder: Builder) -> Builder {
    let changed = Event::new("changed").key("s", "{key}").tag("{tag}").prefix("", "{key}");
    builder.event(changed.pattern("s", "*{key}*0"))
}

/// What a value is, and its tags.
type Known = (String, Vec<String>);

/// One tenant, and what it has done.
pub(crate) struct Party {
    pub(crate) tenant: Tenant,
    space: Space<str, String>,
    /// By whether it is a key of the space, and the key.
    entries: BTreeMap<(bool, String), Known>,
    counter: i64,
    written: u64,
}

const SPACE: bool = true;
const DYNAMIC: bool = false;

impl Party {
    pub(crate) fn new(terrace: &Terrace, name: &str) -> Self {
        let tenant = terrace.tenant(name).unwrap();
        let space = tenant.space::<str, String>("s").forever().build().unwrap();
        Self { tenant, space, entries: BTreeMap::new(), counter: 0, written: 0 }
    }

    fn forget(&mut self, is_named: impl Fn(bool, &str, &[String]) -> bool) {
        self.entries.retain(|(space, key), (_, tags)| !is_named(*space, key, tags));
    }

    fn key(random: &mut fastrand::Rng) -> String {
        let key = format!("k{}", random.u8(..24));
        // A few are known below memory by their hash alone.
        if random.u8(..16) == 0 { format!("{key}{}", "y".repeat(300)) } else { key }
    }

    /// One call at random, and what it has to answer.
    pub(crate) async fn step(&mut self, random: &mut fastrand::Rng) {
        let (key, tag) = (Self::key(random), format!("t{}", random.u8(..4)));
        match random.u8(..100) {
            0..25 => self.write(random.bool(), key, tag, random.bool()).await,
            25..55 => self.read(random.bool(), &key).await,
            55..60 => self.load(key).await,
            60..64 => {
                let was_there = self.tenant.remove(&key).await.unwrap();
                // What a tag has killed may still take room, and counts as there.
                assert!(was_there || self.entries.remove(&(DYNAMIC, key.clone())).is_none());
                self.entries.remove(&(DYNAMIC, key));
            }
            64..68 => {
                self.space.invalidate(&key).await.unwrap();
                self.entries.remove(&(SPACE, key));
            }
            68..72 => {
                if random.bool() {
                    self.tenant.invalidate_tag(&tag).await.unwrap();
                } else {
                    self.tenant.mark_stale_tag(&tag).await.unwrap();
                }
                self.forget(|_, _, tags| tags.contains(&tag));
            }
            72..75 => {
                self.tenant.invalidate_prefix("k1").await.unwrap();
                // A prefix takes the keys along of which only the hash is known.
                self.forget(|space, key, _| !space && (key.starts_with("k1") || key.len() > 200));
            }
            75..78 => {
                self.space.remove_pattern("*1?").await.unwrap();
                self.forget(|space, key, _| {
                    space && key.chars().rev().nth(1) == Some('1') && key.len() > 1
                });
            }
            78..80 => {
                let parameters = [("key", key.clone()), ("tag", tag.clone())];
                self.tenant.raise("changed", parameters).await.unwrap();
                self.forget(|space, other, tags| {
                    let is_dynamic = !space && (other.starts_with(&key) || other.len() > 200);
                    let is_in_space = space
                        && (other == key || {
                            other.rfind('0').is_some_and(|end| end + 1 == other.len())
                                && other[..other.len() - 1].contains(&*key)
                        });
                    tags.contains(&tag) || is_dynamic || is_in_space
                });
            }
            80..84 => {
                self.counter += 3;
                assert_eq!(self.tenant.increment("count", 3).await.unwrap(), self.counter);
            }
            84..88 => {
                let counter = (self.counter != 0).then_some(self.counter);
                assert_eq!(self.tenant.counter("count").await.unwrap(), counter);
            }
            88..91 => {
                let is_new = !self.entries.contains_key(&(DYNAMIC, key.clone()));
                let value = self.value();
                assert_eq!(self.tenant.set_if_absent(&key, &value).await.unwrap(), is_new);
                self.entries.entry((DYNAMIC, key)).or_insert((value, Vec::new()));
            }
            91..93 => {
                let targets = [Target::key("s", &key), Target::tag(&tag)];
                self.tenant.invalidate_all(targets).await.unwrap();
                self.entries.remove(&(SPACE, key));
                self.forget(|_, _, tags| tags.contains(&tag));
            }
            93..95 => {
                // A key that only the other one has, and one that both may have.
                let found = self.tenant.remove_pattern("*of other*").dry_run().await.unwrap();
                assert!(found.entries.iter().all(|(_, count)| *count == 0), "{found:?}");
            }
            95..97 => {
                self.space.clear().await.unwrap();
                self.forget(|space, _, _| space);
            }
            97..99 => self.check_stats().await,
            _ => self.clear(random.bool()).await,
        }
    }

    fn value(&mut self) -> String {
        self.written += 1;
        format!("{} {}", self.tenant.name(), self.written)
    }

    async fn write(&mut self, in_space: bool, key: String, tag: String, is_tagged: bool) {
        let value = self.value();
        let tags = if is_tagged { vec![tag] } else { Vec::new() };
        if in_space {
            self.space.insert(&key, value.clone()).tags(&tags).await.unwrap();
        } else {
            self.tenant.set(&key, &value).forever().tags(&tags).await.unwrap();
        }
        self.entries.insert((in_space, key), (value, tags));
    }

    pub(crate) async fn read(&self, in_space: bool, key: &str) {
        let found = if in_space {
            self.space.get(key).await.unwrap()
        } else {
            self.tenant.get::<String>(key).await.unwrap()
        };
        let known = self.entries.get(&(in_space, key.to_owned()));
        let found = found.as_deref().map(String::as_str);
        assert_eq!(found, known.map(|(value, _)| &**value), "{key:?} of {:?}", self.tenant);
    }

    async fn load(&mut self, key: String) {
        let value = self.value();
        let loaded = terrace::Loaded::value(value.clone()).forever().tags(["t0"]);
        let load = |_| async { Ok::<_, std::io::Error>(loaded) };
        let found = self.space.get_or_load(&key, load).await.unwrap();
        let fresh = (value, vec!["t0".to_owned()]);
        let (known, _) = self.entries.entry((SPACE, key)).or_insert(fresh);
        assert_eq!(&*found, known);
    }

    async fn clear(&mut self, by_target: bool) {
        if by_target {
            self.tenant.invalidate_all([Target::everything()]).await.unwrap();
        } else {
            self.tenant.clear().await.unwrap();
        }
        self.entries.clear();
        self.counter = 0;
    }

    /// Only its own calls are in its statistics.
    async fn check_stats(&self) {
        let before = self.tenant.stats();
        assert_eq!(&*before.name, self.tenant.name());
        assert!(before.spaces.iter().all(|space| &*space.tenant == self.tenant.name()));
        assert_eq!(before.spaces.len(), 2, "{before:?}");
        let first = |stats: &terrace::TenantStats| {
            let (_, traffic) = &stats.tiers[0];
            traffic.hits + traffic.misses
        };
        self.read(SPACE, "k0").await;
        assert_eq!(first(&self.tenant.stats()), first(&before) + 1);
    }

    /// Everything is as it was left.
    pub(crate) async fn check_all(&self) {
        for key in 0..24 {
            for in_space in [SPACE, DYNAMIC] {
                self.read(in_space, &format!("k{key}")).await;
            }
        }
    }
}

/// Both of them do `steps` calls in turn.
pub(crate) async fn play(terrace: &Terrace, random: &mut fastrand::Rng, steps: usize) {
    terrace.set("k1", &"nobody's".to_owned()).forever().tags(["t1"]).await.unwrap();
    let own = terrace.space::<str, String>("s").forever().build().unwrap();
    own.insert("k1", "nobody's".into()).await.unwrap();
    let [one, other] = two_names(random);
    let mut parties = [Party::new(terrace, &one), Party::new(terrace, &other)];
    for party in &parties {
        let key = format!("key of other {}", party.tenant.name().len());
        terrace.set(&key, &1).forever().await.unwrap();
    }
    for _ in 0..steps {
        let party = &mut parties[usize::from(random.bool())];
        // Statistics are read and compared in one step: nothing of the other may be in between.
        party.step(random).await;
    }
    for party in &parties {
        party.check_all().await;
    }
    // What belongs to no tenant has seen nothing of it all.
    assert_eq!(terrace.get::<String>("k1").await.unwrap().as_deref().unwrap(), "nobody's");
    assert_eq!(own.get("k1").await.unwrap().as_deref().unwrap(), "nobody's");
}
