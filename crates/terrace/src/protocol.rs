//! The **protocol**: the rules of the ledger as plain state and transitions.
//!
//! No task, no clock, no lock, no I/O. The authority in memory is [`Record`] under
//! a lock, every process judges with [`Marks`], and `tests/writes/model.rs` walks
//! through every order in which two processes can take these steps, crashes
//! included. What is true of them there is true of the cache.
//!
//! The rules:
//!
//! 1. Every invalidation and every write is a numbered line that names something.
//! 2. An entry carries the number that its process had applied *before* its load
//!    began: its stamp.
//! 3. An entry is dead once a later line names its key, a prefix of its key, one of
//!    its tags, its space, or everything. It is out of date, and may do meanwhile, once a
//!    later line says so of one of its tags.
//! 4. A fill is refused by the same rule, with the stamp of its ticket, by the
//!    memory of its process and by the authority, each in one step with storing.
//! 5. What can no longer be known (a line trimmed away, a name forgotten, another
//!    incarnation of the ledger) counts as named.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::ops::Bound;
use std::sync::Arc;

use foldhash::HashMap;

use crate::clock::WallTime;
use crate::implied;
use crate::ledger::{Line, Name, Names, Stamp};

/// What a process knows of the ledger: the number of the last line for each name.
///
/// Bounded: keys are kept for the last [`Limits::keys`] lines, which outlast any
/// load; of the other names the oldest are forgotten beyond [`Limits::names`], and
/// an entry older than a forgotten line is distrusted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Marks {
    incarnation: u64,
    applied: u64,
    floor: u64,
    key_floor: u64,
    joined: u64,
    forgotten: u64,
    everything: u64,
    broad: u64,
    untagged: u64,
    prefixed: u64,
    keys: KeyNumbers,
    key_lines: VecDeque<(u64, Arc<str>)>,
    tags: NameNumbers,
    /// Tags whose entries are out of date.
    stale: NameNumbers,
    /// Spaces whose loads that were under way store nothing.
    fences: NameNumbers,
    spaces: NameNumbers,
    prefixes: NameNumbers,
    limits: Limits,
}

/// The last line about each broader name. There may be many: each takes its text and little more.
type NameNumbers = BTreeMap<Box<str>, u64>;

/// The last line about each key. Every read below memory looks one of tens of thousands up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct KeyNumbers(HashMap<Arc<str>, u64>);

/// What is equal hashes alike, in whichever order it lies: models compare what they know.
impl Hash for KeyNumbers {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.iter().collect::<BTreeMap<_, _>>().hash(state);
    }
}

/// How much a process keeps of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Lines about keys that are kept.
    pub keys: usize,
    /// Tags, prefixes and spaces that are kept, of each kind; for a while an eighth more.
    pub names: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { keys: 65_536, names: 65_536 }
    }
}

/// What the ledger says about an entry of a certain stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// No line since the stamp names it.
    Good,
    /// A later line says that it is out of date: look for something newer. Until there is, it may
    /// do.
    Outdated,
    /// A later line names it.
    Named,
    /// Lines that might name it are no longer known.
    Unknown,
}

impl Standing {
    /// Whether it was not invalidated, and nothing may be unknown.
    #[must_use]
    pub fn stands(self) -> bool {
        matches!(self, Self::Good | Self::Outdated)
    }
}

impl Marks {
    /// Knowledge that begins at `position`: what was before is unknown.
    #[must_use]
    pub fn starting_at(position: Stamp, limits: Limits) -> Self {
        Self {
            incarnation: position.incarnation,
            applied: position.number,
            floor: position.number,
            key_floor: position.number,
            joined: position.number,
            forgotten: 0,
            everything: 0,
            broad: 0,
            untagged: 0,
            prefixed: 0,
            keys: KeyNumbers::default(),
            key_lines: VecDeque::new(),
            tags: NameNumbers::new(),
            stale: NameNumbers::new(),
            fences: NameNumbers::new(),
            spaces: NameNumbers::new(),
            prefixes: NameNumbers::new(),
            limits,
        }
    }

    /// Knowledge handed over by the authority when a process joins it.
    #[must_use]
    pub fn joining(snapshot: &Snapshot, limits: Limits) -> Self {
        let start = Stamp { incarnation: snapshot.incarnation, number: snapshot.floor };
        let mut marks = Self::starting_at(start, limits);
        for line in &snapshot.names {
            marks.apply(line);
        }
        for (key, number) in &snapshot.keys {
            marks.apply(&Line { number: *number, name: Name::Key(Arc::clone(key)) });
        }
        marks.applied = snapshot.last;
        // Other lines about keys from before are not told. The authority dropped the values
        // that they name by itself; a ticket from before may have missed one.
        marks.key_floor = snapshot.last;
        marks.joined = snapshot.last;
        marks
    }

    /// The position up to which this process knows the ledger: the stamp of a load
    /// that begins now.
    #[must_use]
    pub fn position(&self) -> Stamp {
        Stamp { incarnation: self.incarnation, number: self.applied }
    }

    /// The last line that named something else than a single key.
    #[must_use]
    pub fn broad(&self) -> u64 {
        self.broad.max(self.floor)
    }

    /// The last line that named something else than a key or a tag.
    #[must_use]
    pub fn untagged(&self) -> u64 {
        self.untagged.max(self.floor)
    }

    /// The last line that named a prefix.
    #[must_use]
    pub fn prefixed(&self) -> u64 {
        self.prefixed
    }

    /// Takes note of `line`, which follows directly on what is known.
    pub fn apply(&mut self, line: &Line) {
        let number = line.number;
        self.applied = self.applied.max(number);
        match &line.name {
            Name::Key(key) | Name::Set(key) => {
                self.keys.0.insert(Arc::clone(key), number);
                self.key_lines.push_back((number, Arc::clone(key)));
                self.forget_keys();
                return;
            }
            Name::Tag(tag) => {
                if let Some(tag) = implied::of_stale(tag) {
                    self.stale.insert((*tag).into(), number);
                } else if let Some(space) = implied::of_fence(tag) {
                    self.fences.insert((*space).into(), number);
                } else if implied::of_sweep(tag).is_none() {
                    self.tags.insert((**tag).into(), number);
                }
            }
            Name::Space(space) => {
                self.spaces.insert((**space).into(), number);
            }
            Name::Prefix(prefix) => {
                self.prefixes.insert((**prefix).into(), number);
                self.prefixed = self.prefixed.max(number);
            }
            Name::Everything => self.everything = number,
        }
        self.broad = self.broad.max(number);
        if !matches!(line.name, Name::Tag(_)) {
            self.untagged = self.untagged.max(number);
        }
        let limit = self.limits.names;
        let tags = [&mut self.tags, &mut self.stale, &mut self.fences];
        for names in tags.into_iter().chain([&mut self.spaces, &mut self.prefixes]) {
            // Many at a time: looking for the oldest costs as much as all of them.
            if names.len() > limit + limit / 8 {
                self.floor = self.floor.max(forget_oldest(names, limit));
            }
        }
    }

    /// Whether an entry of `stamp` with these names still stands.
    #[must_use]
    pub fn standing(&self, stamp: Stamp, names: &Names<'_>) -> Standing {
        if stamp.incarnation != self.incarnation {
            return Standing::Unknown;
        }
        let last = self.last_broad(names).max(self.keys.0.get(names.key).copied().unwrap_or(0));
        if last > stamp.number {
            Standing::Named
        } else if stamp.number < self.floor {
            Standing::Unknown
        } else if self.last_stale(names) > stamp.number {
            Standing::Outdated
        } else {
            Standing::Good
        }
    }

    /// Whether a load that took `ticket` may store what it found.
    ///
    /// Stricter than [`Marks::standing`]: a ticket from before the oldest line about
    /// a key that is still known is refused, and one from before a sweep of its space.
    #[must_use]
    pub fn permits(&self, ticket: Stamp, names: &Names<'_>) -> bool {
        ticket.number >= self.key_floor
            && self.fences.get(names.space).is_none_or(|&fence| fence <= ticket.number)
            && self.standing(ticket, names).stands()
    }

    /// Whether this process may have missed a line that names the key of an entry of
    /// this stamp: what is kept where no line reaches it is not to be trusted then.
    #[must_use]
    pub fn may_have_missed(&self, stamp: Stamp) -> bool {
        stamp.incarnation != self.incarnation || stamp.number < self.joined
    }

    /// Whether lines about keys that came after an entry of this stamp are forgotten:
    /// one that no such line took away by itself may have been named.
    #[must_use]
    pub fn may_have_forgotten(&self, stamp: Stamp) -> bool {
        stamp.number < self.forgotten
    }

    fn last_broad(&self, names: &Names<'_>) -> u64 {
        let space = self.spaces.get(names.space).copied().unwrap_or(0);
        let tags = names.tags.iter().filter_map(|tag| self.tags.get(&**tag).copied());
        tags.fold(self.everything.max(space), u64::max).max(self.last_prefix(names.key))
    }

    fn last_stale(&self, names: &Names<'_>) -> u64 {
        let tags = names.tags.iter().filter_map(|tag| self.stale.get(&**tag).copied());
        tags.fold(0, u64::max)
    }

    /// The last line that named a prefix of `key`. However many prefixes there are, few are looked
    /// at: each step leaves only those that begin as the last one and the key do.
    fn last_prefix(&self, key: &str) -> u64 {
        // The empty prefix is one of every key.
        let (mut last, mut rest) = (self.prefixes.get("").copied().unwrap_or(0), key);
        while !rest.is_empty() {
            let upto = (Bound::Unbounded, Bound::Included(rest));
            let Some((prefix, &number)) = self.prefixes.range::<str, _>(upto).next_back() else {
                break;
            };
            let shared = common_prefix(prefix, rest);
            if shared == prefix.len() {
                last = last.max(number);
            }
            // Shorter each time: the prefix itself has been looked at.
            let end = if shared == prefix.len() { previous(rest, shared) } else { shared };
            rest = rest.get(..end).unwrap_or_default();
        }
        last
    }

    fn forget_keys(&mut self) {
        while self.key_lines.len() > self.limits.keys {
            let Some((number, key)) = self.key_lines.pop_front() else { return };
            self.key_floor = self.key_floor.max(number);
            self.forgotten = number;
            if self.keys.0.get(&key) == Some(&number) {
                self.keys.0.remove(&key);
            }
        }
    }
}

/// How many bytes two texts have in common from the beginning, in whole characters.
fn common_prefix(one: &str, other: &str) -> usize {
    let same = one.bytes().zip(other.bytes()).take_while(|(one, other)| one == other).count();
    (0..=same).rev().find(|&end| other.is_char_boundary(end)).unwrap_or(0)
}

/// The end of `text` without the last character before `end`.
fn previous(text: &str, end: usize) -> usize {
    (0..end).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0)
}

/// Keeps the `keep` names with the highest numbers; returns the highest of the others.
fn forget_oldest(names: &mut NameNumbers, keep: usize) -> u64 {
    let mut numbers: Vec<u64> = names.values().copied().collect();
    let Some(last) = names.len().checked_sub(keep + 1) else { return 0 };
    let (_, &mut cutoff, _) = numbers.select_nth_unstable(last);
    names.retain(|_, number| *number > cutoff);
    cutoff
}

/// The state of an authority: the ledger's newest lines and the leases.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    marks: Marks,
    lines: VecDeque<Line>,
    leases: BTreeMap<Arc<str>, Lease>,
    tokens: u64,
    kept: usize,
}

/// The right to load a key, until a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// Tells this lease from every other one of the same authority.
    pub token: u64,
    /// When it lapses unless it is renewed.
    pub until: WallTime,
}

/// The answer to a request for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leased {
    /// The caller is the one that loads.
    Granted(Lease),
    /// Somebody else loads; the lease lapses then at the latest.
    Held(WallTime),
}

/// What the ledger says to a process that knows it up to some position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Follow {
    /// The lines since, in order, none missing.
    Lines(Vec<Line>),
    /// The chain is broken: trimmed, or another incarnation. Join anew.
    Broken,
}

/// What a process that joins an authority has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The random number of this ledger.
    pub incarnation: u64,
    /// The number of the newest line.
    pub last: u64,
    /// Below this number, names were forgotten.
    pub floor: u64,
    /// The last line of each tag, prefix and space, and of everything, in order.
    pub names: Vec<Line>,
    /// The number of the last line about each key that was named lately, in order. Only where values
    /// may come back that were dropped; a line after `last` may be among them.
    pub keys: Vec<(Arc<str>, u64)>,
}

impl Snapshot {
    /// Of a ledger that has no line.
    #[must_use]
    pub fn empty(incarnation: u64) -> Self {
        Self { incarnation, last: 0, floor: 0, names: Vec::new(), keys: Vec::new() }
    }
}

/// How many leases are granted between two looks for lapsed ones.
const FORGET_LAPSED_EVERY: u64 = 1024;

impl Record {
    /// An empty ledger of a random incarnation that keeps its newest `kept` lines.
    #[must_use]
    pub fn new(incarnation: u64, kept: usize, limits: Limits) -> Self {
        let start = Stamp { incarnation, number: 0 };
        Self {
            marks: Marks::starting_at(start, limits),
            lines: VecDeque::new(),
            leases: BTreeMap::new(),
            tokens: 0,
            kept,
        }
    }

    /// The position of the newest line.
    #[must_use]
    pub fn position(&self) -> Stamp {
        self.marks.position()
    }

    /// Appends a line for each name; an invalidated key's lease is void.
    pub fn append(&mut self, names: impl IntoIterator<Item = Name>) -> Stamp {
        for name in names {
            let line = Line { number: self.marks.applied + 1, name };
            self.void_leases(&line.name);
            self.marks.apply(&line);
            self.lines.push_back(line);
            if self.lines.len() > self.kept {
                self.lines.pop_front();
            }
        }
        self.position()
    }

    /// Appends `name` only if no line since `ticket` names the same key.
    pub fn append_if_unnamed(
        &mut self,
        ticket: Stamp,
        name: Name,
        names: &Names<'_>,
    ) -> Option<Stamp> {
        self.permits(ticket, names).then(|| self.append([name]))
    }

    /// The lines after `position`.
    #[must_use]
    pub fn follow(&self, position: Stamp) -> Follow {
        let here = self.position();
        let first_kept = here.number - self.lines.len() as u64 + 1;
        if position.incarnation != here.incarnation
            || position.number > here.number
            || position.number + 1 < first_kept
        {
            return Follow::Broken;
        }
        Follow::Lines(
            self.lines.iter().filter(|line| line.number > position.number).cloned().collect(),
        )
    }

    /// What a process needs to know to join.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let marks = &self.marks;
        let stale = |tag: Arc<str>| Name::Tag(implied::stale(&tag));
        let fence = |space: Arc<str>| Name::Tag(implied::fence(&space));
        let mut names: Vec<Line> = [
            (&marks.tags, Name::Tag as fn(Arc<str>) -> Name),
            (&marks.stale, stale),
            (&marks.fences, fence),
            (&marks.spaces, Name::Space),
            (&marks.prefixes, Name::Prefix),
        ]
        .into_iter()
        .flat_map(|(numbers, kind)| {
            numbers.iter().map(move |(name, &number)| Line { number, name: kind((**name).into()) })
        })
        .collect();
        if marks.everything > 0 {
            names.push(Line { number: marks.everything, name: Name::Everything });
        }
        names.sort_by_key(|line| line.number);
        let (last, floor, keys) = (marks.applied, marks.floor, Vec::new());
        Snapshot { incarnation: marks.incarnation, last, floor, names, keys }
    }

    /// Grants the lease of `key` unless another one stands at `now`.
    pub fn lease(&mut self, key: &Arc<str>, now: WallTime, until: WallTime) -> Leased {
        if let Some(lease) = self.leases.get(key)
            && lease.until > now
        {
            return Leased::Held(lease.until);
        }
        self.tokens += 1;
        if self.tokens.is_multiple_of(FORGET_LAPSED_EVERY) {
            self.leases.retain(|_, lease| lease.until > now);
        }
        let lease = Lease { token: self.tokens, until };
        self.leases.insert(Arc::clone(key), lease);
        Leased::Granted(lease)
    }

    /// Prolongs a lease; `false` if it was voided or taken over.
    pub fn renew(&mut self, key: &str, token: u64, until: WallTime) -> bool {
        match self.leases.get_mut(key) {
            Some(lease) if lease.token == token => {
                lease.until = until;
                true
            }
            _ => false,
        }
    }

    /// Gives a lease back.
    pub fn release(&mut self, key: &str, token: u64) {
        if self.leases.get(key).is_some_and(|lease| lease.token == token) {
            self.leases.remove(key);
        }
    }

    /// Whether a fill with this ticket may be stored at the authority.
    ///
    /// A ticket from the future is of a ledger that was put back to an older state.
    #[must_use]
    pub fn permits(&self, ticket: Stamp, names: &Names<'_>) -> bool {
        ticket.number <= self.marks.applied && self.marks.permits(ticket, names)
    }

    /// Leases that stand, lapsed ones included.
    #[must_use]
    pub fn leases(&self) -> usize {
        self.leases.len()
    }

    fn void_leases(&mut self, name: &Name) {
        match name {
            Name::Key(key) => {
                self.leases.remove(key);
            }
            // A lease says who loads, not what is valid: fills are judged by their
            // tickets, so that leases under other names may run out by themselves.
            Name::Set(_) | Name::Tag(_) | Name::Space(_) | Name::Prefix(_) | Name::Everything => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However few are looked at, the answer is that of looking at all.
    #[test]
    fn the_last_prefix_of_a_key_is_found() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut text = |most: usize| -> String {
            let letters = ['a', 'b', ':', '%', 'é'];
            (0..random.usize(0..=most)).map(|_| letters[random.usize(0..letters.len())]).collect()
        };
        let mut found = 0;
        for _ in 0..2_000 {
            let start = Stamp { incarnation: 1, number: 0 };
            let mut marks = Marks::starting_at(start, Limits::default());
            for number in 1..=12 {
                marks.apply(&Line { number, name: Name::Prefix(text(5).into()) });
            }
            for _ in 0..20 {
                let key = text(8);
                let named = marks.prefixes.iter().filter(|(prefix, _)| key.starts_with(&***prefix));
                let last = named.map(|(_, number)| *number).fold(0, u64::max);
                assert_eq!(marks.last_prefix(&key), last, "{key:?} in {:?}", marks.prefixes);
                found += u32::from(last > 0);
            }
        }
        assert!(found > 1_000, "{found}");
    }

    #[test]
    fn the_newest_names_are_kept_and_the_others_count_as_named() {
        let start = Stamp { incarnation: 1, number: 0 };
        let mut marks = Marks::starting_at(start, Limits { keys: 1, names: 16 });
        for number in 1..=1_000 {
            marks.apply(&Line { number, name: Name::Tag(format!(":tag {number}").into()) });
            assert!(marks.tags.len() <= 18);
            assert_eq!(marks.floor + marks.tags.len() as u64, number);
        }
        let tags = [Arc::from(":other")];
        let names = Names { key: ":s:k", space: ":s", tags: &tags };
        let standing = |number| marks.standing(Stamp { number, ..start }, &names);
        assert_eq!(standing(marks.floor - 1), Standing::Unknown);
        assert_eq!(standing(marks.floor), Standing::Good);
    }
}
