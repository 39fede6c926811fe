//! Goals: what Terrace is to reach in a case, and whether a run says that it does.

use crate::harness::{Case, OURS};
use crate::report::Record;
use crate::statistics::rounded;

/// The verdict on a goal that is reached.
pub const MET: &str = "met";

/// What is to be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The ratio against an engine is at least this.
    Ratio { against: &'static str, at_least: f64 },
    /// Our own value of a metric is at most this.
    Value { metric: &'static str, at_most: f64 },
    /// Our own value of a metric is at least this.
    Least { metric: &'static str, at_least: f64 },
}

impl Goal {
    /// What `records`, which are all of the case, say about it; nothing where whoever it is
    /// against took no part.
    #[must_use]
    pub fn judged(self, case: &Case<'_>, records: &[Record]) -> Option<Record> {
        match self {
            Self::Ratio { against: them, at_least } => {
                let found = records.iter().find_map(|record| match record {
                    Record::Ratio { against, value, low, high, .. } if against == them => {
                        Some((*value, *low, *high))
                    }
                    _ => None,
                });
                let Some((value, low, high)) = found else {
                    // Who fails reaches nothing.
                    return is_skipped(records, OURS)
                        .then(|| record(case, Some(them), "ratio", at_least, None, Reached::No));
                };
                let reached = if low >= at_least {
                    Reached::Yes
                } else if high < at_least {
                    Reached::No
                } else {
                    Reached::Unclear
                };
                Some(record(case, Some(them), "ratio", at_least, Some(value), reached))
            }
            Self::Value { metric, at_most } => {
                let found = our_value(records, metric);
                let reached = Reached::by(found.is_some_and(|value| value <= at_most));
                Some(record(case, None, metric, at_most, found, reached))
            }
            Self::Least { metric, at_least } => {
                let found = our_value(records, metric);
                let reached = Reached::by(found.is_some_and(|value| value >= at_least));
                let mut judged = record(case, None, metric, at_least, found, reached);
                if let Record::Goal { or_more, .. } = &mut judged {
                    *or_more = true;
                }
                Some(judged)
            }
        }
    }
}

fn our_value(records: &[Record], of: &str) -> Option<f64> {
    records.iter().find_map(|record| match record {
        Record::Value { engine, metric, value, .. } if engine == OURS && metric == of => {
            Some(*value)
        }
        _ => None,
    })
}

/// Whether a goal is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    Yes,
    /// The interval holds the goal: this run does not tell.
    Unclear,
    No,
}

impl Reached {
    fn by(is_reached: bool) -> Self {
        if is_reached { Self::Yes } else { Self::No }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Yes => MET,
            Self::Unclear => "unclear",
            Self::No => "MISSED",
        }
    }
}

fn is_skipped(records: &[Record], name: &str) -> bool {
    let is_it =
        |record: &Record| matches!(record, Record::Skipped { engine, .. } if engine == name);
    records.iter().any(is_it)
}

fn record(
    case: &Case<'_>,
    against: Option<&str>,
    of: &str,
    wanted: f64,
    value: Option<f64>,
    reached: Reached,
) -> Record {
    Record::Goal {
        suite: case.suite.into(),
        case: case.name.into(),
        engine: OURS.into(),
        against: against.map(str::to_owned),
        metric: "goal".into(),
        of: of.into(),
        or_more: false,
        wanted,
        value: value.map(rounded),
        verdict: reached.word().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{Better, Metric};
    use crate::statistics::Estimate;

    const CASE: Case<'_> = Case { suite: "suite", name: "case", metrics: &[] };
    const NS: Metric = Metric { name: "ns", unit: "ns", better: Better::Lower };
    const TWICE: Goal = Goal::Ratio { against: "moka", at_least: 2.0 };

    fn verdict(goal: Goal, records: &[Record]) -> Option<String> {
        match goal.judged(&CASE, records)? {
            Record::Goal { verdict, .. } => Some(verdict),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_goal_within_the_interval_is_neither_met_nor_missed() {
        for (low, high, expected) in
            [(2.0, 3.0, "met"), (1.9, 2.1, "unclear"), (1.0, 1.9, "MISSED")]
        {
            let found = Estimate { median: f64::midpoint(low, high), low, high };
            let records = [Record::ratio(&CASE, "moka", found)];
            assert_eq!(verdict(TWICE, &records).as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_value_counts_if_it_is_ours() {
        let goal = Goal::Value { metric: "ns", at_most: 5.0 };
        let theirs = Record::value(&CASE, "moka", "1", NS, 1.0);
        let ours = |value| [theirs.clone(), Record::value(&CASE, OURS, "1", NS, value)];
        assert_eq!(verdict(goal, &ours(5.0)).as_deref(), Some("met"));
        assert_eq!(verdict(goal, &ours(5.1)).as_deref(), Some("MISSED"));
        assert_eq!(verdict(goal, std::slice::from_ref(&theirs)).as_deref(), Some("MISSED"));

        let goal = Goal::Least { metric: "ns", at_least: 5.0 };
        assert_eq!(verdict(goal, &ours(5.0)).as_deref(), Some("met"));
        assert_eq!(verdict(goal, &ours(4.9)).as_deref(), Some("MISSED"));
        assert_eq!(verdict(goal, &[theirs]).as_deref(), Some("MISSED"));
    }

    #[test]
    fn who_fails_misses_and_who_is_absent_is_no_goal() {
        let skipped = |name| [Record::skipped(&CASE, name, "1", &anyhow::anyhow!("no room"))];
        assert_eq!(verdict(TWICE, &skipped(OURS)).as_deref(), Some("MISSED"));
        assert_eq!(verdict(TWICE, &skipped("moka")), None);
    }
}
