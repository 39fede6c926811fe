//! The **ledger**: numbered lines of what was invalidated, and this process's mirror of it.
//!
//! "Why was it invalidated?" ends here: every removal, tag, clear and write is one
//! [`Line`], kept by the [authority](crate::authority) and repeated in each process
//! by its `Mirror`. The rules themselves stand in [`protocol`](crate::protocol).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::implied;
use crate::protocol::{Limits, Marks, Snapshot, Standing};

/// A position in the ledger, and what an entry remembers of it.
///
/// Numbers of different incarnations cannot be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// A random number that a ledger draws when it is created.
    pub incarnation: u64,
    /// The number of a line; 0 before the first.
    pub number: u64,
}

impl fmt::Display for Stamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{:016x}", self.number, self.incarnation)
    }
}

/// What a line names. Texts are in the escaped form of [`key`](crate::key).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Name {
    /// One key was invalidated.
    Key(Arc<str>),
    /// One key was written: what was there before is dead, what is written is not.
    Set(Arc<str>),
    /// Every key whose name begins like this.
    Prefix(Arc<str>),
    /// Every entry that carries this tag.
    Tag(Arc<str>),
    /// Every entry of a space.
    Space(Arc<str>),
    /// Every entry.
    Everything,
}

/// A numbered line. Numbers of an incarnation follow each other without a gap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    /// One more than the line before.
    pub number: u64,
    /// What it names.
    pub name: Name,
}

/// The names under which an entry can be invalidated.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// `tenant:space:key`
    pub key: &'a str,
    /// `tenant:space`
    pub space: &'a str,
    /// Each `tenant:tag`
    pub tags: &'a [Arc<str>],
}

/// What this process knows of the ledger, cheap enough to ask on every read.
#[derive(Debug)]
pub(crate) struct Mirror {
    marks: RwLock<Marks>,
    // Copies of numbers in `marks`, so that a hit need not take the lock.
    incarnation: AtomicU64,
    broad: AtomicU64,
    untagged: AtomicU64,
    prefixed: AtomicU64,
    tags: TagSlots,
}

/// The last line about any tag of a slot: most entries are seen to stand by those of their tags,
/// without a look at what the tags are called.
#[derive(Debug)]
struct TagSlots {
    lines: Box<[AtomicU64]>,
}

/// Which slot the lines about a tag are noted in. Many tags may share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TagSlot(u16);

impl TagSlot {
    /// How many there are.
    const COUNT: u16 = 4096;

    /// That of no tag.
    pub(crate) const NONE: Self = Self(Self::COUNT);

    /// That of tags of which nothing is noted.
    pub(crate) const UNKNOWN: Self = Self(u16::MAX);

    /// That of a tag as the ledger names it.
    pub(crate) fn of(tag: &str) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_64(tag.as_bytes());
        Self(u16::try_from(hash % u64::from(Self::COUNT)).unwrap_or(0))
    }
}

impl TagSlots {
    const LINES: u16 = TagSlot::COUNT + 1;

    fn new() -> Self {
        Self { lines: (0..Self::LINES).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Any tag may have been named by lines up to this one.
    fn fill(&self, number: u64) {
        for (slot, line) in (0..).map(TagSlot).zip(&self.lines) {
            if slot != TagSlot::NONE {
                line.store(number, Ordering::SeqCst);
            }
        }
    }

    fn note(&self, line: &Line) {
        let Name::Tag(tag) = &line.name else { return };
        let stale = implied::of_stale(tag);
        let slot = TagSlot::of(stale.as_deref().unwrap_or(tag));
        if let Some(last) = self.lines.get(usize::from(slot.0)) {
            last.store(line.number, Ordering::SeqCst);
        }
    }

    fn last(&self, slot: TagSlot) -> u64 {
        self.lines.get(usize::from(slot.0)).map_or(u64::MAX, |last| last.load(Ordering::SeqCst))
    }
}

impl Mirror {
    pub(crate) fn joining(snapshot: &Snapshot) -> Self {
        let mirror = Self {
            marks: RwLock::new(Marks::joining(snapshot, Limits::default())),
            incarnation: AtomicU64::new(0),
            broad: AtomicU64::new(0),
            untagged: AtomicU64::new(0),
            prefixed: AtomicU64::new(0),
            tags: TagSlots::new(),
        };
        mirror.tags.fill(snapshot.last);
        mirror.publish(&mirror.marks.read());
        mirror
    }

    /// What was known is void: join the ledger anew.
    pub(crate) fn rejoin(&self, snapshot: &Snapshot) {
        let mut marks = self.marks.write();
        *marks = Marks::joining(snapshot, Limits::default());
        self.publish(&marks);
        self.tags.fill(snapshot.last);
    }

    /// The stamp of a load that begins now.
    pub(crate) fn ticket(&self) -> Stamp {
        self.marks.read().position()
    }

    /// Whether nothing broader than a key was invalidated since `stamp`.
    #[inline]
    pub(crate) fn is_undisturbed(&self, stamp: Stamp) -> bool {
        stamp.number >= self.broad.load(Ordering::SeqCst) && !self.is_foreign(stamp)
    }

    /// Whether nothing was invalidated since `stamp` but keys, and tags of other slots.
    #[inline]
    pub(crate) fn is_undisturbed_but_by_other_tags(&self, stamp: Stamp, slots: &[TagSlot]) -> bool {
        stamp.number >= self.untagged.load(Ordering::SeqCst)
            && slots.iter().all(|&slot| self.tags.last(slot) <= stamp.number)
            && !self.is_foreign(stamp)
    }

    /// Whether an entry in memory still stands whose key lines can find, and up to which line
    /// that is known.
    ///
    /// The key's name is asked for only if a prefix was invalidated since the stamp.
    pub(crate) fn standing(
        &self,
        stamp: Stamp,
        space: &str,
        tags: &[Arc<str>],
        key: impl FnOnce() -> Arc<str>,
    ) -> (Standing, u64) {
        // No key has an empty name, so that only the broader names are compared.
        let no_prefix = stamp.number >= self.prefixed.load(Ordering::SeqCst);
        let key = (!no_prefix).then(key);
        let names = Names { key: key.as_deref().unwrap_or(""), space, tags };
        let marks = self.marks.read();
        (marks.standing(stamp, &names), marks.position().number)
    }

    /// Whether a stamp is of another incarnation than the ledger is now.
    #[inline]
    pub(crate) fn is_foreign(&self, stamp: Stamp) -> bool {
        stamp.incarnation != self.incarnation.load(Ordering::SeqCst)
    }

    /// Whether an entry from below memory still stands.
    pub(crate) fn standing_in_full(&self, stamp: Stamp, names: &Names<'_>) -> Standing {
        self.marks.read().standing(stamp, names)
    }

    /// Whether an entry in memory still stands whose name is a hash: lines about its
    /// key cannot take it out, so that they must still be known.
    pub(crate) fn standing_of_hashed(&self, stamp: Stamp, names: &Names<'_>) -> Standing {
        let marks = self.marks.read();
        if marks.may_have_forgotten(stamp) {
            return Standing::Unknown;
        }
        marks.standing(stamp, names)
    }

    /// Whether a load with this ticket may store what it found. Its names are asked for only if
    /// anything was named since.
    pub(crate) fn permits<'a>(&self, ticket: Stamp, names: impl FnOnce() -> Names<'a>) -> bool {
        self.ticket() == ticket || {
            let names = names();
            self.marks.read().permits(ticket, &names)
        }
    }

    /// Whether a line may have been missed that names the key of an entry of this
    /// stamp, in a store that does not hear the ledger itself.
    pub(crate) fn may_have_missed(&self, stamp: Stamp) -> bool {
        self.marks.read().may_have_missed(stamp)
    }

    /// Whether all lines up to `position` are known.
    pub(crate) fn has_applied(&self, position: Stamp) -> bool {
        let known = self.ticket();
        known.incarnation == position.incarnation && known.number >= position.number
    }

    /// Takes note of lines of an incarnation; `false` (and nothing noted) if they do not follow on
    /// what is known. Their numbers mean nothing in a ledger that was joined since.
    pub(crate) fn apply(&self, incarnation: u64, lines: &[Line]) -> bool {
        let mut marks = self.marks.write();
        if marks.position().incarnation != incarnation {
            return false;
        }
        let known = marks.position().number;
        let mut fresh = lines.iter().filter(|line| line.number > known).peekable();
        if fresh.peek().is_some_and(|line| line.number != known + 1) {
            return false;
        }
        for line in fresh {
            marks.apply(line);
            self.tags.note(line);
        }
        self.publish(&marks);
        true
    }

    /// The incarnation first, and whoever compares numbers asks for it last: nobody takes numbers of
    /// a ledger that was joined meanwhile for those of the one before.
    fn publish(&self, marks: &Marks) {
        let position = marks.position();
        self.incarnation.store(position.incarnation, Ordering::SeqCst);
        self.prefixed.store(marks.prefixed(), Ordering::SeqCst);
        self.untagged.store(marks.untagged(), Ordering::SeqCst);
        self.broad.store(marks.broad(), Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(last: u64) -> Snapshot {
        Snapshot { last, ..Snapshot::empty(7) }
    }

    fn at(number: u64) -> Stamp {
        Stamp { incarnation: 7, number }
    }

    #[test]
    fn lines_about_tags_disturb_those_of_their_slots_alone() {
        let mirror = Mirror::joining(&snapshot(10));
        let slots = |tag: &str| [TagSlot::of(tag)];
        let stands = |number, tag| mirror.is_undisturbed_but_by_other_tags(at(number), &slots(tag));
        // What was before it joined, it does not know.
        assert!(stands(10, ":own") && !stands(9, ":own"));
        let other = (0..).map(|n| format!(":{n}")).find(|tag| slots(tag) != slots(":own")).unwrap();
        let lines = [Name::Tag(other.as_str().into()), Name::Tag(implied::stale(&other))];
        for (number, name) in (11..).zip(lines) {
            assert!(mirror.apply(7, &[Line { number, name }]));
            assert!(stands(10, ":own") && !stands(number - 1, &other) && stands(number, &other));
        }
        for (number, name) in
            [(13, Name::Tag(":own".into())), (14, Name::Tag(implied::stale(":own")))]
        {
            assert!(mirror.apply(7, &[Line { number, name }]));
            assert!(!stands(number - 1, ":own") && stands(number, ":own"));
        }
        assert!(mirror.apply(7, &[Line { number: 15, name: Name::Space(":space".into()) }]));
        assert!(!stands(14, &other) && stands(15, &other));
        mirror.rejoin(&snapshot(20));
        assert!(!stands(15, &other) && stands(20, &other) && stands(20, ":own"));
    }

    /// Numbers of the ledger that is joined say nothing of an entry that the one before has killed.
    #[test]
    fn what_was_dead_stays_dead_while_another_ledger_is_joined() {
        let slots = [TagSlot::of(":own")];
        for _ in 0..2_000 {
            let mirror = Mirror::joining(&snapshot(100));
            assert!(mirror.apply(7, &[Line { number: 101, name: Name::Tag(":own".into()) }]));
            std::thread::scope(|scope| {
                scope.spawn(|| mirror.rejoin(&Snapshot { incarnation: 8, ..snapshot(3) }));
                while !mirror.is_foreign(at(100)) {
                    assert!(!mirror.is_undisturbed(at(100)));
                    assert!(!mirror.is_undisturbed_but_by_other_tags(at(100), &slots));
                }
            });
        }
    }
}
