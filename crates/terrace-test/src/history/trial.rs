//! The **trial**: every read of one key, judged by the calls of that key.

use std::collections::HashMap;

use super::{Call, Judged, NEVER, Seen, What, Why};

/// The calls of one key, put in order for judging.
pub(super) struct Trial {
    reads: Vec<Call>,
    /// Writes and inserts by what they bring, in the order in which they began.
    births: HashMap<Seen, Vec<Call>>,
    /// Writes by their beginnings, from the back: the earliest end.
    writes: Peaks,
    /// Inserts and invalidations by their ends: the latest beginning.
    floors: Peaks,
    /// The same by their beginnings: the latest end.
    ends: Peaks,
    /// Invalidations alone by their beginnings: the latest end.
    invalidations: Peaks,
    /// Inserts alone by their ends: the latest beginning.
    inserts: Peaks,
    keeps_everything: bool,
}

/// What is found against the reads of a key.
#[derive(Debug)]
pub(super) struct Verdict {
    /// The calls that matter to the first one that was not possible, and it.
    pub(super) story: Vec<Call>,
    /// Why it was not.
    pub(super) why: Why,
    /// How many were not.
    pub(super) count: u64,
}

/// What the source has before anything is written.
const NOTHING: Call = Call { begin: 0, end: 0, what: What::Write(None) };

impl Trial {
    pub(super) fn new(calls: impl Iterator<Item = Call>, keeps_everything: bool) -> Self {
        let (mut reads, mut changes) = (Vec::new(), vec![NOTHING]);
        for call in calls {
            let is_read = matches!(call.what, What::Read(_));
            if is_read { reads.push(call) } else { changes.push(call) }
        }
        changes.sort_unstable_by_key(|call| call.begin);
        let mut births: HashMap<_, Vec<_>> = HashMap::new();
        for call in &changes {
            if let Some(seen) = call.what.brings() {
                births.entry(seen).or_default().push(*call);
            }
        }
        let of = |picks: fn(&Call) -> bool| changes.iter().copied().filter(picks);
        let is_line = |call: &Call| call.what.ends();
        Self {
            reads,
            births,
            writes: Peaks::new(
                of(|call| matches!(call.what, What::Write(_))),
                |call| NEVER - call.begin,
                |call| NEVER - call.end,
            ),
            floors: Peaks::new(of(is_line), |call| call.end, |call| call.begin),
            ends: Peaks::new(of(is_line), |call| call.begin, |call| call.end),
            invalidations: Peaks::new(
                of(|call| call.what == What::Invalidate),
                |call| call.begin,
                |call| call.end,
            ),
            inserts: Peaks::new(
                of(|call| matches!(call.what, What::Insert(_))),
                |call| call.end,
                |call| call.begin,
            ),
            keeps_everything,
        }
    }

    /// Judges all reads; `None` if each of them was possible.
    pub(super) fn judge(&self, judged: &mut Judged) -> Option<Verdict> {
        let mut first: Option<(Call, Vec<Call>, Why)> = None;
        let mut count = 0;
        for read in &self.reads {
            let What::Read(seen) = read.what else { continue };
            judged.reads += 1;
            *match seen {
                Seen::Version(_) => &mut judged.versions,
                Seen::NotFound => &mut judged.not_found,
                Seen::Miss => &mut judged.misses,
            } += 1;
            let verdict = match seen {
                Seen::Miss => self.judge_miss(read),
                _ => self.judge_version(read, seen),
            };
            if let Err((why, story)) = verdict {
                count += 1;
                if first.as_ref().is_none_or(|(earlier, ..)| read.begin < earlier.begin) {
                    first = Some((*read, story, why));
                }
            }
        }
        first.map(|(read, mut story, why)| {
            story.push(read);
            story.sort_unstable_by_key(|call| call.begin);
            story.dedup();
            Verdict { story, why, count }
        })
    }

    fn judge_version(&self, read: &Call, seen: Seen) -> Result<(), (Why, Vec<Call>)> {
        let births = self.births.get(&seen).map_or(&[][..], Vec::as_slice);
        let begun = births.partition_point(|birth| birth.begin < read.end);
        let (begun, later) = births.split_at(begun);
        let floor = self.floors.highest_before(read.begin);
        let mut story = Vec::new();
        // The last ones first: they explain what was seen, or come closest to it.
        for birth in begun.iter().rev() {
            let Some(ended_by) = self.ended_by(birth, floor) else { return Ok(()) };
            if !story.iter().any(|told: &Call| told.what == birth.what) {
                story.push(*birth);
                story.extend(ended_by);
            }
        }
        match (story.is_empty(), later.first()) {
            (false, _) => Err((Why::Ended, story)),
            (true, Some(later)) => Err((Why::NotYetWritten, vec![*later])),
            (true, None) => Err((Why::NeverWritten, story)),
        }
    }

    /// What ended all that `birth` brought, as whoever has this floor knows.
    fn ended_by(&self, birth: &Call, floor: Option<Call>) -> Option<Vec<Call>> {
        let floor = floor?;
        match birth.what {
            What::Insert(_) => (floor.begin > birth.end).then(|| vec![floor]),
            _ => {
                let next = self.writes.highest_before(NEVER - birth.end)?;
                (next.end < floor.begin).then(|| vec![next, floor])
            }
        }
    }

    fn judge_miss(&self, read: &Call) -> Result<(), (Why, Vec<Call>)> {
        let overlaps = self.ends.highest_before(read.end).is_some_and(|last| last.end > read.begin);
        if !self.keeps_everything || overlaps {
            return Ok(());
        }
        let removed = self.invalidations.highest_before(read.end).map_or(0, |last| last.end);
        match self.inserts.highest_before(read.begin) {
            Some(insert) if insert.begin > removed => Err((Why::Lost, vec![insert])),
            _ => Ok(()),
        }
    }
}

/// The highest of all calls up to each point.
struct Peaks {
    /// Points in order, each with the height of the highest call up to there, and it.
    peaks: Vec<(u64, u64, Call)>,
}

impl Peaks {
    fn new(
        calls: impl Iterator<Item = Call>,
        point: fn(&Call) -> u64,
        height: fn(&Call) -> u64,
    ) -> Self {
        let mut peaks: Vec<_> = calls.map(|call| (point(&call), height(&call), call)).collect();
        peaks.sort_unstable_by_key(|(point, ..)| *point);
        let mut highest: Option<(u64, Call)> = None;
        for (_, height, call) in &mut peaks {
            match highest {
                Some(before) if before.0 >= *height => (*height, *call) = before,
                _ => highest = Some((*height, *call)),
            }
        }
        Self { peaks }
    }

    /// The highest call whose point is below `limit`.
    fn highest_before(&self, limit: u64) -> Option<Call> {
        let before = self.peaks.partition_point(|(point, ..)| *point < limit);
        self.peaks.get(before.checked_sub(1)?).map(|(.., call)| *call)
    }
}
