//! What is reported: lines of JSON for programs, tables for people, and a page with plots.

mod html;
mod table;

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::harness::{Case, Metric, OURS, Outcome};
use crate::statistics::{Estimate, rounded};

/// The metric of a comparison that is a difference and not a ratio.
const POINTS: &str = "points";

/// One line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Record {
    /// What an engine measured: the median of the rounds.
    Value {
        suite: String,
        case: String,
        engine: String,
        version: String,
        metric: String,
        value: f64,
        unit: String,
    },
    /// Ours beside theirs, above 1 if ours is better, or in points above 0: the median of the
    /// rounds and its interval.
    Ratio {
        suite: String,
        case: String,
        engine: String,
        against: String,
        metric: String,
        value: f64,
        low: f64,
        high: f64,
    },
    /// Whether something that Terrace is to reach is reached.
    Goal {
        suite: String,
        case: String,
        engine: String,
        /// Whom a ratio is against.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        against: Option<String>,
        metric: String,
        /// What it is about: a ratio, which is to be this or more, or a metric, this or less
        /// unless `or_more` says otherwise.
        of: String,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        or_more: bool,
        wanted: f64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<f64>,
        verdict: String,
    },
    /// An engine that could not run.
    Skipped {
        suite: String,
        case: String,
        engine: String,
        version: String,
        metric: String,
        reason: String,
    },
}

impl Record {
    #[must_use]
    pub fn value(case: &Case<'_>, engine: &str, version: &str, metric: Metric, value: f64) -> Self {
        Self::Value {
            suite: case.suite.into(),
            case: case.name.into(),
            engine: engine.into(),
            version: version.into(),
            metric: metric.name.into(),
            value,
            unit: metric.unit.into(),
        }
    }

    #[must_use]
    pub fn ratio(case: &Case<'_>, against: &str, found: Estimate) -> Self {
        Self::Ratio {
            suite: case.suite.into(),
            case: case.name.into(),
            engine: OURS.into(),
            against: against.into(),
            metric: if case.by_points() { POINTS } else { "ratio" }.into(),
            value: rounded(found.median),
            low: rounded(found.low),
            high: rounded(found.high),
        }
    }

    #[must_use]
    pub fn skipped(case: &Case<'_>, engine: &str, version: &str, error: &anyhow::Error) -> Self {
        Self::Skipped {
            suite: case.suite.into(),
            case: case.name.into(),
            engine: engine.into(),
            version: version.into(),
            metric: "skipped".into(),
            reason: format!("{error:#}"),
        }
    }

    #[must_use]
    pub fn case(&self) -> &str {
        match self {
            Self::Value { case, .. }
            | Self::Ratio { case, .. }
            | Self::Goal { case, .. }
            | Self::Skipped { case, .. } => case,
        }
    }
}

/// How a comparison came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ahead,
    /// The interval holds what is neither: this run does not tell.
    Level,
    Behind,
}

impl Verdict {
    fn of(metric: &str, low: f64, high: f64) -> Self {
        let neither = neither(metric);
        if low > neither {
            Self::Ahead
        } else if high < neither {
            Self::Behind
        } else {
            Self::Level
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Ahead => "ahead",
            Self::Level => "level",
            Self::Behind => "BEHIND",
        }
    }
}

/// Shows cases as they come in, and keeps them for the end.
#[derive(Debug)]
pub struct Report {
    title: String,
    is_json: bool,
    records: Vec<Record>,
}

impl Report {
    #[must_use]
    pub fn new(title: String, is_json: bool) -> Self {
        Self { title, is_json, records: Vec::new() }
    }

    /// Shows what came of a case.
    ///
    /// # Errors
    /// Nobody reads it any more.
    pub fn add(&mut self, case: &str, outcome: Outcome) -> Result<()> {
        let mut out = io::stdout().lock();
        if self.is_json {
            for record in &outcome.records {
                writeln!(out, "{}", serde_json::to_string(record)?)?;
            }
        } else {
            writeln!(out, "{}", table::case(case, &outcome))?;
        }
        out.flush()?;
        self.records.extend(outcome.records);
        Ok(())
    }

    /// Sums up for people.
    ///
    /// # Errors
    /// Nobody reads it any more.
    pub fn finish(&self) -> Result<()> {
        if !self.is_json {
            writeln!(io::stdout(), "{}", table::summary(&self.records))?;
        }
        Ok(())
    }

    /// Writes the page with plots.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_html(&self, file: &Path) -> Result<()> {
        fs::write(file, html::page(&self.title, &self.records))
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

/// Where a comparison is neither ahead nor behind.
fn neither(metric: &str) -> f64 {
    if metric == POINTS { 0.0 } else { 1.0 }
}

/// A number as people read it.
fn shown(value: f64) -> String {
    let digits = match value.abs() {
        size if size == 0.0 || size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        size if size >= 0.001 => 3,
        _ => 6,
    };
    format!("{value:.digits$}")
}

/// A goal in words; nothing if it is none.
fn goal(record: &Record) -> Option<String> {
    let Record::Goal { against, of, or_more, wanted, value, verdict, .. } = record else {
        return None;
    };
    let wanted = match against {
        Some(against) => format!("{} or more against {against}", shown(*wanted)),
        None if *or_more => format!("{of} {} or more", shown(*wanted)),
        None => format!("{of} {} or less", shown(*wanted)),
    };
    let found = value.map_or_else(|| "nothing".to_owned(), shown);
    Some(format!("{wanted}: {found}, {verdict}"))
}

/// A metric with its unit, unless one says the other.
fn titled(metric: &str, unit: &str) -> String {
    if metric.contains(unit) || unit.to_lowercase().contains(metric) {
        return metric.to_owned();
    }
    format!("{metric} ({unit})")
}

/// Each of `values` once, in the order in which they come.
fn distinct<'a>(values: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goal::Goal;
    use crate::harness::Better;

    const CASE: Case<'_> = Case { suite: "memory", name: "hit", metrics: &[] };
    const MOPS: Metric = Metric { name: "mops", unit: "Mops/s", better: Better::Higher };

    #[test]
    fn lines_are_as_promised() {
        let value = Record::value(&CASE, "quick_cache", "0.7.0", MOPS, 33.1);
        let ratio = Record::ratio(&CASE, "moka", Estimate { median: 1.62, low: 1.55, high: 1.7 });
        let skipped = Record::skipped(&CASE, "moka", "0.12", &anyhow::anyhow!("no room"));
        let twice = Goal::Ratio { against: "moka", at_least: 2.0 };
        let goal = twice.judged(&CASE, std::slice::from_ref(&ratio)).unwrap();
        let one = Goal::Value { metric: "mops", at_most: 1.0 };
        let ours = one.judged(&CASE, &[]).unwrap();
        let least = Goal::Least { metric: "mops", at_least: 1.0 };
        let least = least.judged(&CASE, &[]).unwrap();
        let expected = [
            r#"{"suite":"memory","case":"hit","engine":"quick_cache","version":"0.7.0","metric":"mops","value":33.1,"unit":"Mops/s"}"#,
            r#"{"suite":"memory","case":"hit","engine":"terrace","against":"moka","metric":"ratio","value":1.62,"low":1.55,"high":1.7}"#,
            r#"{"suite":"memory","case":"hit","engine":"moka","version":"0.12","metric":"skipped","reason":"no room"}"#,
            r#"{"suite":"memory","case":"hit","engine":"terrace","against":"moka","metric":"goal","of":"ratio","wanted":2.0,"value":1.62,"verdict":"MISSED"}"#,
            r#"{"suite":"memory","case":"hit","engine":"terrace","metric":"goal","of":"mops","wanted":1.0,"verdict":"MISSED"}"#,
            r#"{"suite":"memory","case":"hit","engine":"terrace","metric":"goal","of":"mops","or_more":true,"wanted":1.0,"verdict":"MISSED"}"#,
        ];
        for (record, expected) in
            [value, ratio, skipped, goal, ours, least].into_iter().zip(expected)
        {
            let line = serde_json::to_string(&record).unwrap();
            assert_eq!(line, expected);
            assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
        }
    }

    #[test]
    fn an_interval_around_what_is_neither_is_no_verdict() {
        assert_eq!(Verdict::of("ratio", 1.01, 1.2), Verdict::Ahead);
        assert_eq!(Verdict::of("ratio", 0.9, 1.1), Verdict::Level);
        assert_eq!(Verdict::of("ratio", 0.8, 0.99), Verdict::Behind);
        assert_eq!(Verdict::of(POINTS, 0.1, 0.2), Verdict::Ahead);
        assert_eq!(Verdict::of(POINTS, -0.1, 0.2), Verdict::Level);
    }

    #[test]
    fn a_page_has_a_bar_for_each_engine_and_hides_no_tags() {
        let value = |engine| Record::value(&CASE, engine, "1", MOPS, 2.0);
        let ratio = Record::ratio(&CASE, "<b>", Estimate { median: 2.0, low: 1.0, high: 3.0 });
        let page = html::page("memory", &[value("terrace"), value("<b>"), ratio]);
        assert_eq!(page.matches("class=\"bar").count(), 2);
        assert!(page.contains("&lt;b>") && !page.contains("<b>"));
    }
}
