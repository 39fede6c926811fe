//! The **history** of a test: which calls began and ended when, and whether every read
//! of a key saw something that it may have seen.
//!
//! A value is known by its **version**, a number that the test gives out. Many tasks
//! record at once: a call takes two positions from one counter that all of them share,
//! one before it begins and one after it has ended. No clock is asked. In the end
//! [`History::check`] judges every read, and tells the few calls that matter to one that
//! was not possible.
//!
//! # What may be seen
//!
//! The rule is that of a cache that loads what it misses from a source, has a value for
//! as long as it likes, and is told of changes. The source holds a version from some
//! moment of its [write](History::writes) until some moment of the next one. An
//! [insert](History::inserts) puts a version into the cache alone. An insert and an
//! [invalidation](History::invalidates) end whatever the cache had before some moment of
//! theirs, and what is being loaded then. Calls that overlap may be in either order.
//!
//! Let the **floor** of a read be the latest beginning of an insert or an invalidation
//! that ended before the read began. A read may see a version that
//!
//! - an insert put there that began before the read ended, and did not end before the
//!   floor; or
//! - a write brought to the source that began before the read ended, unless another write
//!   began after that one had ended, and itself ended before the floor.
//!
//! A read that saw [`NotFound`](Seen::NotFound) heard that the source has nothing: that is
//! a version like others, which the source has in the beginning and after a write of
//! `None`. [`Miss`](Seen::Miss) says that the cache had nothing, which it always may;
//! with [`keeps_everything`](History::keeps_everything) only if an insert or an
//! invalidation overlaps the read, if nothing was inserted before it, or if an
//! invalidation may have come after the last insert.
//!
//! Each read is judged alone: none is evidence against another. A call that was dropped
//! before it ended may take effect at any later time, or never.
//!
//! ```
//! use terrace_test::history::{History, Seen};
//!
//! let history = History::new();
//! history.writes("user:7", Some(1)).ended();
//! history.writes("user:7", Some(2)).ended();
//! // Nobody has told the cache yet: it may have either.
//! history.reads("user:7").saw(Seen::Version(1));
//! history.reads("user:7").saw(Seen::Version(2));
//! assert_eq!(history.check().unwrap().reads, 2);
//!
//! let invalidation = history.invalidates("user:7");
//! history.reads("user:7").saw(Seen::Version(1));
//! invalidation.ended();
//! assert!(history.check().is_ok(), "they overlap");
//!
//! history.reads("user:7").saw(Seen::Version(1));
//! assert!(history.check().is_err(), "that began when the invalidation had ended");
//! ```

#[cfg(test)]
mod orders;
mod trial;

use std::fmt::{self, Debug, Display, Formatter};
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use trial::{Trial, Verdict};

/// What many tasks did to many keys, and saw of them. See the [module](self).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use terrace::{Memory, Terrace};
/// use terrace_test::history::{History, Seen};
///
/// let terrace = Terrace::builder().memory(Memory::default()).build().await?;
/// let space = terrace.space::<u64, u64>("number").build()?;
/// let history = History::new();
///
/// let insert = history.inserts(7, 1);
/// space.insert(&7, 1).await?;
/// insert.ended();
///
/// let look = history.reads(7);
/// let found = space.get(&7).await?;
/// look.saw(found.as_deref().copied().map_or(Seen::Miss, Seen::Version));
///
/// let judged = history.check()?;
/// assert_eq!((judged.reads, judged.versions), (1, 1));
/// # Ok(()) }
/// ```
pub struct History<K> {
    next: AtomicU64,
    hasher: RandomState,
    shards: Box<[Shard<K>]>,
    wide: Mutex<Vec<Wide<K>>>,
    keeps_everything: bool,
}

/// An invalidation of all keys that a test picks.
struct Wide<K> {
    picks: Picks<K>,
    call: Call,
}

type Picks<K> = Box<dyn Fn(&K) -> bool + Send + Sync>;

/// A part of a history: tasks write to different ones without getting in each other's way.
type Shard<K> = Mutex<Vec<(K, Call)>>;

const SHARDS: usize = 64;

impl<K> Debug for History<K> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("History")
            .field("positions", &self.next)
            .field("keeps_everything", &self.keeps_everything)
            .finish_non_exhaustive()
    }
}

impl<K: Clone + Hash + Ord> Default for History<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Clone + Hash + Ord> History<K> {
    /// An empty history. The source has nothing under any key.
    #[must_use]
    pub fn new() -> Self {
        Self {
            next: AtomicU64::new(1),
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            wide: Mutex::default(),
            keeps_everything: false,
        }
    }

    /// The same of a cache that has room for everything, and must not lose what was
    /// inserted.
    ///
    /// ```
    /// use terrace_test::history::{History, Seen};
    ///
    /// let history = History::new().keeps_everything();
    /// history.inserts("user:7", 1).ended();
    /// history.reads("user:7").saw(Seen::Miss);
    /// assert!(history.check().is_err());
    /// ```
    #[must_use]
    pub fn keeps_everything(self) -> Self {
        Self { keeps_everything: true, ..self }
    }

    /// A write to the source begins: of `version`, or of nothing, which removes the key.
    pub fn writes(&self, key: K, version: Option<u64>) -> Change<'_, K> {
        self.change(Subject::Key(key), What::Write(version))
    }

    /// An insert of `version` into the cache begins. If the source gets it too, that is a
    /// [write](Self::writes) besides.
    pub fn inserts(&self, key: K, version: u64) -> Change<'_, K> {
        self.change(Subject::Key(key), What::Insert(version))
    }

    /// An invalidation of `key`, or its removal from the cache, begins.
    pub fn invalidates(&self, key: K) -> Change<'_, K> {
        self.change(Subject::Key(key), What::Invalidate)
    }

    /// An invalidation of every key that `picks` says begins: of a tag, a space or all.
    ///
    /// ```
    /// use terrace_test::history::{History, Seen};
    ///
    /// let history = History::new();
    /// history.inserts(3, 1).ended();
    /// history.inserts(4, 2).ended();
    /// history.invalidates_where(|key| key % 2 == 1).ended();
    /// history.reads(4).saw(Seen::Version(2));
    /// assert!(history.check().is_ok());
    /// history.reads(3).saw(Seen::Version(1));
    /// assert!(history.check().is_err());
    /// ```
    pub fn invalidates_where(
        &self,
        picks: impl Fn(&K) -> bool + Send + Sync + 'static,
    ) -> Change<'_, K> {
        self.change(Subject::Many(Box::new(picks)), What::Invalidate)
    }

    /// A call that was made and timed elsewhere: by another process, with positions from a clock
    /// that all of them share. One without an end was dropped.
    ///
    /// Do not mix such positions with those that a history gives out itself.
    ///
    /// ```
    /// use terrace_test::history::{Event, History, Seen};
    ///
    /// let history = History::new();
    /// history.recorded("user:7", 10, Some(20), Event::Write(Some(1)));
    /// history.recorded("user:7", 30, Some(40), Event::Invalidate);
    /// history.recorded("user:7", 35, Some(50), Event::Read(Seen::NotFound));
    /// assert!(history.check().is_ok(), "they overlap");
    /// history.recorded("user:7", 45, Some(50), Event::Read(Seen::NotFound));
    /// assert!(history.check().is_err());
    /// ```
    pub fn recorded(&self, key: K, begin: u64, end: Option<u64>, event: Event) {
        let what = match event {
            Event::Write(version) => What::Write(version),
            Event::Insert(version) => What::Insert(version),
            Event::Invalidate => What::Invalidate,
            Event::Read(seen) => What::Read(seen),
        };
        self.record(key, Call { begin, end: end.unwrap_or(NEVER), what });
    }

    /// The same for an invalidation of every key that `picks` says.
    pub fn recorded_where(
        &self,
        picks: impl Fn(&K) -> bool + Send + Sync + 'static,
        begin: u64,
        end: Option<u64>,
    ) {
        let call = Call { begin, end: end.unwrap_or(NEVER), what: What::Invalidate };
        self.wide.lock().push(Wide { picks: Box::new(picks), call });
    }

    /// A read begins.
    pub fn reads(&self, key: K) -> Look<'_, K> {
        Look { history: self, key, begin: self.position() }
    }

    /// Judges every read that was recorded so far, by all calls that were.
    ///
    /// A call is recorded when it ends or is dropped: let all of them come to that first.
    /// Takes about a microsecond a call.
    ///
    /// # Errors
    /// A read was not possible: the first one that began, and how many others there are.
    pub fn check(&self) -> Result<Judged, Impossible<K>> {
        let mut judged = Judged::default();
        let mut first: Option<Impossible<K>> = None;
        let wide = self.wide.lock();
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.sort_unstable_by(|(key, call), (other, than)| {
                key.cmp(other).then(call.begin.cmp(&than.begin))
            });
            for calls in shard.chunk_by(|(key, _), (other, _)| key == other) {
                let Some((key, _)) = calls.first() else { continue };
                let wide = wide.iter().filter(|wide| (wide.picks)(key)).map(|wide| wide.call);
                let calls = calls.iter().map(|(_, call)| *call).chain(wide);
                let found = Trial::new(calls, self.keeps_everything).judge(&mut judged);
                let Some(Verdict { story, why, count }) = found else { continue };
                let others = count - 1 + first.as_ref().map_or(0, |first| first.others + 1);
                let found = Impossible { key: key.clone(), story, why, others };
                first = Some(match first {
                    Some(first) if first.begin() < found.begin() => Impossible { others, ..first },
                    _ => found,
                });
            }
        }
        first.map_or(Ok(judged), Err)
    }

    fn change(&self, subject: Subject<K>, what: What) -> Change<'_, K> {
        let call = Call { begin: self.position(), end: NEVER, what };
        Change { history: self, subject: Some(subject), call }
    }

    fn record(&self, key: K, call: Call) {
        let hash = self.hasher.hash_one(&key);
        let index = usize::try_from(hash % SHARDS as u64).unwrap_or(0);
        if let Some(shard) = self.shards.get(index) {
            shard.lock().push((key, call));
        }
    }

    fn position(&self) -> u64 {
        self.next.fetch_add(1, Ordering::SeqCst)
    }
}

/// A change that is under way.
///
/// One that is dropped may have taken effect, or do so later, or never: it explains what
/// is seen, and forbids nothing.
///
/// ```
/// use terrace_test::history::{History, Seen};
///
/// let history = History::new();
/// history.writes("user:7", Some(1)).ended();
/// drop(history.invalidates("user:7"));
/// drop(history.inserts("user:7", 2));
/// history.reads("user:7").saw(Seen::Version(1));
/// history.reads("user:7").saw(Seen::Version(2));
/// assert!(history.check().is_ok());
/// ```
#[must_use = "a change that is dropped may have taken effect or not"]
pub struct Change<'a, K: Clone + Hash + Ord> {
    history: &'a History<K>,
    /// `None` once it is recorded.
    subject: Option<Subject<K>>,
    call: Call,
}

enum Subject<K> {
    Key(K),
    Many(Picks<K>),
}

impl<K: Clone + Hash + Ord> Change<'_, K> {
    /// The change has ended, and is done.
    pub fn ended(mut self) {
        self.call.end = self.history.position();
    }
}

impl<K: Clone + Hash + Ord> Drop for Change<'_, K> {
    fn drop(&mut self) {
        match self.subject.take() {
            Some(Subject::Key(key)) => self.history.record(key, self.call),
            Some(Subject::Many(picks)) => {
                self.history.wide.lock().push(Wide { picks, call: self.call });
            }
            None => {}
        }
    }
}

impl<K: Clone + Hash + Ord> Debug for Change<'_, K> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Change").field("call", &self.call).finish_non_exhaustive()
    }
}

/// A read that is under way. One that is dropped saw nothing and is not judged.
///
/// ```
/// use terrace_test::history::{History, Seen};
///
/// let history = History::new();
/// let look = history.reads("user:7");
/// history.writes("user:7", Some(1)).ended();
/// look.saw(Seen::Version(1));
/// drop(history.reads("user:7"));
/// assert_eq!(history.check().unwrap().reads, 1);
/// ```
#[must_use = "a read that is dropped is not judged"]
pub struct Look<'a, K> {
    history: &'a History<K>,
    key: K,
    begin: u64,
}

impl<K: Clone + Hash + Ord> Look<'_, K> {
    /// The read has ended, with this.
    pub fn saw(self, seen: Seen) {
        let end = self.history.position();
        let call = Call { begin: self.begin, end, what: What::Read(seen) };
        self.history.record(self.key, call);
    }
}

impl<K> Debug for Look<'_, K> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Look").field("begin", &self.begin).finish_non_exhaustive()
    }
}

/// What a call did that was [recorded elsewhere](History::recorded).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// It [wrote](History::writes) to the source.
    Write(Option<u64>),
    /// It [inserted](History::inserts) into the cache.
    Insert(u64),
    /// It [invalidated](History::invalidates).
    Invalidate,
    /// It [read](History::reads). One without an end is not possible.
    Read(Seen),
}

/// What a read saw.
///
/// ```
/// use terrace_test::history::{History, Seen};
///
/// let history = History::new();
/// history.reads("user:7").saw(Seen::NotFound);
/// history.writes("user:7", Some(1)).ended();
/// history.invalidates("user:7").ended();
/// history.reads("user:7").saw(Seen::Miss);
/// assert!(history.check().is_ok(), "a cache may have nothing");
/// history.reads("user:7").saw(Seen::NotFound);
/// assert!(history.check().is_err(), "the source has something");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    /// This version.
    Version(u64),
    /// That the source has nothing: a loader, or what it left behind, said so.
    NotFound,
    /// Nothing in the cache, and no loader was asked.
    Miss,
}

/// How many reads were judged, all of which were possible.
///
/// ```
/// use terrace_test::history::{History, Seen};
///
/// let history = History::new();
/// history.reads("user:7").saw(Seen::NotFound);
/// history.reads("user:7").saw(Seen::Miss);
/// let judged = history.check().unwrap();
/// assert_eq!((judged.reads, judged.versions, judged.not_found, judged.misses), (2, 0, 1, 1));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Judged {
    /// All of them.
    pub reads: u64,
    /// Those that saw a version.
    pub versions: u64,
    /// Those that heard that the source has nothing.
    pub not_found: u64,
    /// Those that found nothing in the cache.
    pub misses: u64,
}

/// A read that no order of the calls allows.
///
/// It displays the calls of its key that matter, in the order in which they began, each
/// with the positions at which it began and ended. By themselves they are as impossible.
///
/// ```
/// use terrace_test::history::{History, Seen};
///
/// let history = History::new();
/// history.writes("user:7", Some(1)).ended();
/// history.reads("user:7").saw(Seen::Version(1));
/// history.writes("user:7", Some(2)).ended();
/// history.invalidates("user:7").ended();
/// history.reads("user:7").saw(Seen::Version(1));
/// assert_eq!(
///     history.check().unwrap_err().to_string(),
///     r#"a read of "user:7" saw what it cannot have seen: an invalidation had ended it
///          1..2          write of 1 to the source
///          5..6          write of 2 to the source
///          7..8          invalidation
///          9..10         read: 1"#
/// );
/// ```
#[derive(Debug)]
pub struct Impossible<K> {
    key: K,
    story: Vec<Call>,
    why: Why,
    others: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    NeverWritten,
    NotYetWritten,
    Ended,
    Lost,
}

impl<K> Impossible<K> {
    /// The key that was read.
    #[must_use]
    pub fn key(&self) -> &K {
        &self.key
    }

    /// How many other reads were not possible.
    #[must_use]
    pub fn others(&self) -> u64 {
        self.others
    }

    /// When the read began.
    fn begin(&self) -> u64 {
        let is_read = |call: &&Call| matches!(call.what, What::Read(_));
        self.story.iter().find(is_read).map_or(0, |read| read.begin)
    }
}

impl<K: Debug> Display for Impossible<K> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let why = match self.why {
            Why::NeverWritten => "nobody ever wrote it",
            Why::NotYetWritten => "it was written later",
            Why::Ended => "an invalidation had ended it",
            Why::Lost => "what was inserted is lost",
        };
        write!(formatter, "a read of {:?} saw what it cannot have seen: {why}", self.key)?;
        for call in &self.story {
            let end = if call.end == NEVER { "?".to_owned() } else { call.end.to_string() };
            write!(formatter, "\n{:>10}..{end:<10} {}", call.begin, call.what)?;
        }
        if self.others > 0 {
            write!(formatter, "\nand {} other reads saw what they cannot have seen", self.others)?;
        }
        Ok(())
    }
}

impl<K: Debug> std::error::Error for Impossible<K> {}

/// A call with the positions at which it began and ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    begin: u64,
    end: u64,
    what: What,
}

/// The end of a call that was dropped.
const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Write(Option<u64>),
    Insert(u64),
    Invalidate,
    Read(Seen),
}

impl Display for What {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(Some(version)) => write!(formatter, "write of {version} to the source"),
            Self::Write(None) => formatter.write_str("removal from the source"),
            Self::Insert(version) => write!(formatter, "insert of {version}"),
            Self::Invalidate => formatter.write_str("invalidation"),
            Self::Read(Seen::Version(version)) => write!(formatter, "read: {version}"),
            Self::Read(Seen::NotFound) => formatter.write_str("read: not found"),
            Self::Read(Seen::Miss) => formatter.write_str("read: a miss"),
        }
    }
}

impl What {
    /// What is seen where this took effect.
    fn brings(self) -> Option<Seen> {
        match self {
            Self::Write(version) => Some(version.map_or(Seen::NotFound, Seen::Version)),
            Self::Insert(version) => Some(Seen::Version(version)),
            Self::Invalidate | Self::Read(_) => None,
        }
    }

    /// Whether it ends what the cache had.
    fn ends(self) -> bool {
        matches!(self, Self::Insert(_) | Self::Invalidate)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// What the check says of one key's calls, each given with its positions.
    fn check(calls: &[(u64, u64, What)]) -> Result<Judged, Impossible<u8>> {
        checked(&History::new(), calls)
    }

    fn checked(
        history: &History<u8>,
        calls: &[(u64, u64, What)],
    ) -> Result<Judged, Impossible<u8>> {
        for &(begin, end, what) in calls {
            history.record(7, Call { begin, end, what });
        }
        history.check()
    }

    fn read(version: u64) -> What {
        What::Read(Seen::Version(version))
    }

    fn write(version: u64) -> What {
        What::Write(Some(version))
    }

    const NOT_FOUND: What = What::Read(Seen::NotFound);
    const MISS: What = What::Read(Seen::Miss);
    use What::{Insert, Invalidate};

    #[track_caller]
    fn is_possible(calls: &[(u64, u64, What)]) {
        check(calls).unwrap();
    }

    /// That a history is not possible for this reason; and that its story alone is not
    /// either, and is possible without any of the calls that ended what was seen.
    #[track_caller]
    fn is_not(why: Why, calls: &[(u64, u64, What)]) -> Vec<(u64, u64, What)> {
        let found = check(calls).unwrap_err();
        assert_eq!(found.why, why, "{found}");
        let story: Vec<_> =
            found.story.iter().map(|call| (call.begin, call.end, call.what)).collect();
        check(&story).unwrap_err();
        for (index, (_, _, what)) in story.iter().enumerate() {
            let ends = matches!(what, Invalidate) || index > 0 && what.brings().is_some();
            if why == Why::Ended && ends {
                let mut fewer = story.clone();
                fewer.remove(index);
                check(&fewer).unwrap();
            }
        }
        story
    }

    #[test]
    fn what_may_be_seen_is_possible() {
        // Before anything, after a write, until it is told, after it was evicted.
        is_possible(&[(1, 2, NOT_FOUND), (3, 4, MISS)]);
        is_possible(&[(1, 2, write(1)), (3, 4, read(1)), (5, 6, NOT_FOUND)]);
        is_possible(&[(1, 2, write(1)), (3, 4, write(2)), (5, 6, read(1)), (7, 8, read(2))]);
        is_possible(&[(1, 2, write(1)), (3, 4, Insert(2)), (5, 6, read(2)), (7, 8, read(1))]);
        // While it is changed.
        is_possible(&[(1, 5, write(1)), (2, 4, read(1)), (3, 6, NOT_FOUND)]);
        is_possible(&[(1, 2, write(1)), (3, 4, write(2)), (5, 9, Invalidate), (6, 10, read(1))]);
        is_possible(&[(1, 2, Insert(1)), (3, 9, Insert(2)), (4, 5, read(2)), (6, 7, read(1))]);
        // Of two that overlap either may be the later one.
        is_possible(&[(1, 3, Insert(1)), (2, 4, Insert(2)), (5, 6, read(1)), (7, 8, read(2))]);
        is_possible(&[(1, 3, write(1)), (2, 4, write(2)), (5, 6, Invalidate), (7, 8, read(1))]);
        is_possible(&[(1, 3, Insert(1)), (2, 4, Invalidate), (5, 6, read(1))]);
        // The load looked at the source while it was changed, after the invalidation.
        is_possible(&[(1, 2, write(1)), (3, 6, write(2)), (4, 5, Invalidate), (7, 8, read(1))]);
        // A value may come back, and what was dropped may come late.
        is_possible(&[
            (1, 2, write(1)),
            (3, 4, write(2)),
            (5, 6, write(1)),
            (7, 8, Invalidate),
            (9, 10, read(1)),
        ]);
        is_possible(&[(1, NEVER, write(1)), (2, 3, write(2)), (4, 5, Invalidate), (6, 7, read(1))]);
        is_possible(&[(1, 2, Insert(1)), (3, NEVER, Invalidate), (4, 5, read(1))]);
    }

    #[test]
    fn what_is_stale_after_an_invalidation_is_not() {
        let calls = [
            (1, 2, write(1)),
            (3, 4, read(1)),
            (5, 6, write(2)),
            (7, 8, read(1)),
            (9, 10, Invalidate),
            (11, 12, read(2)),
            (13, 14, read(1)),
        ];
        let story = is_not(Why::Ended, &calls);
        assert_eq!(story, [calls[0], calls[2], calls[4], calls[6]]);
        // The source's own nothing is stale as well.
        is_not(Why::Ended, &[(1, 2, write(1)), (3, 4, Invalidate), (5, 6, NOT_FOUND)]);
        is_not(
            Why::Ended,
            &[(1, 2, write(1)), (3, 4, What::Write(None)), (5, 6, Invalidate), (7, 8, read(1))],
        );
        // An insert is an invalidation to what was loaded before.
        is_not(
            Why::Ended,
            &[(1, 2, write(1)), (3, 4, write(2)), (5, 6, Insert(2)), (7, 8, read(1))],
        );
    }

    #[test]
    fn what_was_removed_does_not_rise_again() {
        is_not(Why::Ended, &[(1, 2, Insert(1)), (3, 4, Invalidate), (5, 6, read(1))]);
        is_not(Why::Ended, &[(1, 2, Insert(1)), (3, 4, Insert(2)), (5, 6, read(1))]);
        // However late: a new version in between does not help the old one.
        let calls = [
            (1, 2, write(1)),
            (3, 4, write(2)),
            (5, 6, Invalidate),
            (7, 8, read(2)),
            (9, 20, read(1)),
        ];
        is_not(Why::Ended, &calls);
        // An insert that overlaps one of two invalidations ends before the other.
        is_not(
            Why::Ended,
            &[(1, 3, Insert(1)), (2, 4, Invalidate), (5, 6, Invalidate), (7, 8, read(1))],
        );
    }

    #[test]
    fn what_was_never_or_not_yet_written_is_not_seen() {
        assert_eq!(
            is_not(Why::NeverWritten, &[(1, 2, write(1)), (3, 4, read(9))]),
            [(3, 4, read(9))]
        );
        assert_eq!(
            is_not(Why::NotYetWritten, &[(1, 2, read(1)), (3, 4, write(1)), (5, 6, Insert(1))]),
            [(1, 2, read(1)), (3, 4, write(1))]
        );
    }

    #[test]
    fn what_was_inserted_is_not_lost() {
        let keeps = |calls: &[_]| checked(&History::new().keeps_everything(), calls);
        keeps(&[(1, 2, write(1)), (3, 4, MISS)]).unwrap();
        keeps(&[(1, 2, Insert(1)), (3, 4, Invalidate), (5, 6, MISS)]).unwrap();
        keeps(&[(1, 2, Insert(1)), (3, 6, Insert(2)), (4, 5, MISS)]).unwrap();
        keeps(&[(1, 3, Insert(1)), (2, 4, Invalidate), (5, 6, MISS)]).unwrap();
        keeps(&[(1, 2, Insert(1)), (3, NEVER, Invalidate), (4, 5, MISS)]).unwrap();
        let lost = keeps(&[(1, 2, Invalidate), (3, 4, Insert(1)), (5, 6, MISS)]).unwrap_err();
        assert_eq!((lost.why, lost.story.len()), (Why::Lost, 2), "{lost}");
    }

    #[test]
    fn the_first_of_all_impossible_reads_is_told() {
        let history = History::new();
        for key in 0..100_u8 {
            history.inserts(key, 1).ended();
        }
        history.invalidates_where(|key| *key >= 50).ended();
        for key in (40..60).rev() {
            history.reads(key).saw(Seen::Version(1));
        }
        let found = history.check().unwrap_err();
        assert_eq!((*found.key(), found.others()), (59, 9));
        assert!(found.to_string().ends_with("and 9 other reads saw what they cannot have seen"));
    }

    #[test]
    fn threads_record_side_by_side() {
        let history = Arc::new(History::new());
        let source: Vec<_> = (0..10).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (history, source) = (&history, &source);
                scope.spawn(move || {
                    for step in 0..2_000_u64 {
                        let key = (step % 10) as u8;
                        let truth = &source[usize::from(key)];
                        if step % 3 == thread % 3 {
                            let version = 1 + thread + 8 * step;
                            let write = history.writes(key, Some(version));
                            truth.store(version, Ordering::SeqCst);
                            write.ended();
                            history.invalidates(key).ended();
                        } else {
                            let look = history.reads(key);
                            let seen = match truth.load(Ordering::SeqCst) {
                                0 => Seen::NotFound,
                                version => Seen::Version(version),
                            };
                            look.saw(seen);
                        }
                    }
                });
            }
        });
        let judged = history.check().unwrap();
        assert_eq!(judged.reads, judged.versions + judged.not_found);
        assert!(judged.reads > 10_000, "{judged:?}");
        // Each key's truth is newer than what was told of it in the beginning.
        history.reads(0).saw(Seen::NotFound);
        assert_eq!(history.check().unwrap_err().why, Why::Ended);
    }
}
