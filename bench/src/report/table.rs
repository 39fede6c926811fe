//! Tables for people.

use std::fmt::Write as _;

use super::{POINTS, Record, Verdict, distinct, goal, shown, titled};
use crate::goal::MET;
use crate::harness::Outcome;

/// A case: who measured what, and how ours compares.
pub(super) fn case(name: &str, outcome: &Outcome) -> String {
    let records = &outcome.records;
    let metrics = distinct(records.iter().filter_map(|record| match record {
        Record::Value { metric, .. } => Some(metric.as_str()),
        _ => None,
    }));
    let engines = distinct(records.iter().filter_map(|record| match record {
        Record::Value { engine, .. } | Record::Skipped { engine, .. } => Some(engine.as_str()),
        // Most are above; others are what ours did in another case.
        Record::Ratio { against, .. } => Some(against.as_str()),
        Record::Goal { .. } => None,
    }));

    let mut rows = vec![vec!["engine".to_owned(), "version".to_owned()]];
    rows[0].extend(metrics.iter().map(|metric| heading(metric, records)));
    let by_points = records
        .iter()
        .any(|record| matches!(record, Record::Ratio { metric, .. } if metric == POINTS));
    let points = if by_points { ", in points" } else { "" };
    rows[0].push(format!("terrace against it{points} (95 % interval)"));
    rows.extend(engines.iter().map(|engine| row(engine, &metrics, records)));

    let rounds = outcome.rounds.map_or(String::new(), |rounds| format!(", {rounds} rounds"));
    let goals: String =
        records.iter().filter_map(goal).map(|goal| format!("  goal: {goal}\n")).collect();
    format!("{name}{rounds}\n{}{goals}", aligned(&rows, 2 + metrics.len()))
}

fn heading(metric: &str, records: &[Record]) -> String {
    let unit = records.iter().find_map(|record| match record {
        Record::Value { metric: of, unit, .. } if of == metric => Some(unit.as_str()),
        _ => None,
    });
    titled(metric, unit.unwrap_or_default())
}

fn row(name: &str, metrics: &[&str], records: &[Record]) -> Vec<String> {
    let mut row = vec![name.to_owned(), String::new()];
    row.resize(2 + metrics.len(), "-".to_owned());
    let mut notes = Vec::new();
    for record in records {
        match record {
            Record::Value { engine, version, metric, value, .. } if engine == name => {
                row[1].clone_from(version);
                if let Some(index) = metrics.iter().position(|of| of == metric) {
                    row[2 + index] = shown(*value);
                }
            }
            Record::Ratio { against, metric, value, low, high, .. } if against == name => {
                let word = Verdict::of(metric, *low, *high).word();
                let [value, low, high] = [value, low, high].map(|number| shown(*number));
                notes.push(format!("{value} ({low} to {high}) {word}"));
            }
            Record::Skipped { engine, version, reason, .. } if engine == name => {
                row[1].clone_from(version);
                notes.push(format!("skipped: {reason}"));
            }
            _ => {}
        }
    }
    row.push(notes.join("; "));
    row
}

/// What is won, what is lost, and what this run cannot tell.
pub(super) fn summary(records: &[Record]) -> String {
    let mut lists = [Verdict::Ahead, Verdict::Level, Verdict::Behind].map(|of| (of, Vec::new()));
    let (mut skipped, mut unmet, mut goals) = (Vec::new(), Vec::new(), 0);
    for record in records {
        match record {
            Record::Ratio { case, against, metric, value, low, high, .. } => {
                let verdict = Verdict::of(metric, *low, *high);
                for (of, list) in &mut lists {
                    if *of == verdict {
                        list.push(format!("  {case} against {against}: {}", shown(*value)));
                    }
                }
            }
            Record::Skipped { case, engine, .. } => skipped.push(format!("  {case}: {engine}")),
            Record::Goal { case, verdict, .. } => {
                goals += 1;
                if verdict != MET {
                    unmet.extend(goal(record).map(|goal| format!("  {case}: {goal}")));
                }
            }
            Record::Value { .. } => {}
        }
    }
    let [(_, ahead), (_, level), (_, behind)] = lists;
    let all = ahead.len() + level.len() + behind.len();
    let mut text = format!("Of {all} comparisons, terrace is ahead in {}.\n", ahead.len());
    if goals > 0 {
        // Writing to a text cannot fail, here and below.
        let _ = writeln!(text, "Of {goals} goals, {} are met.", goals - unmet.len());
    }
    for (title, list) in [
        ("Behind", behind),
        ("Level: the interval holds what is neither, so this run does not tell", level),
        ("Goals that are not met", unmet),
        ("Skipped", skipped),
    ] {
        if !list.is_empty() {
            let _ = writeln!(text, "{title}:\n{}", list.join("\n"));
        }
    }
    text
}

/// Rows in columns: text to the left, and from the third to the `numbers`th to the right.
fn aligned(rows: &[Vec<String>], numbers: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let _ = if (2..numbers).contains(&column) {
                write!(line, "  {cell:>width$}")
            } else {
                write!(line, "  {cell:<width$}")
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}
