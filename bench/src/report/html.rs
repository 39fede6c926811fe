//! A page with plots, in one file: bars for what was measured, and a line with an interval for
//! each comparison.

use std::fmt::Write as _;

use super::{POINTS, Record, Verdict, distinct, goal, neither, shown, titled};
use crate::harness::OURS;

/// Where labels end and plots begin, how wide plots are, and how high a row is.
const LEFT: f64 = 190.0;
const WIDE: f64 = 460.0;
const ROW: f64 = 24.0;

const STYLE: &str = "
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
svg { display: block; width: 100%; max-width: 780px; height: auto; margin: .25rem 0 1.25rem }
svg text { font: 13px system-ui, sans-serif; fill: currentColor }
h2 { margin: 2rem 0 .5rem; font-size: 1.15rem } h3 { margin: 0; font-size: .95rem }
.bar { fill: #8a94a3 } .bar.ours { fill: #1f7a5c }
.one { stroke: currentColor; stroke-dasharray: 3 3; opacity: .6 }
.range { stroke-width: 3 } .ahead { stroke: #1f7a5c; fill: #1f7a5c }
.level { stroke: #8a94a3; fill: #8a94a3 } .behind { stroke: #b3392f; fill: #b3392f }
.skipped { opacity: .75 }";

pub(super) fn page(title: &str, records: &[Record]) -> String {
    let title = escaped(title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n<h1>{title}</h1>\n\
         <p>Medians of the rounds. A ratio above 1, or points above 0, mean that terrace is \
         better; \
         its line is the 95&nbsp;% interval.</p>\n"
    );
    for case in distinct(records.iter().map(Record::case)) {
        let of_case: Vec<&Record> = records.iter().filter(|record| record.case() == case).collect();
        // Writing to a text cannot fail, here and below.
        let _ = writeln!(page, "<h2>{}</h2>", escaped(case));
        let metrics = distinct(of_case.iter().filter_map(|record| match record {
            Record::Value { metric, .. } => Some(metric.as_str()),
            _ => None,
        }));
        for metric in metrics {
            bars(&mut page, metric, &of_case);
        }
        ratios(&mut page, &of_case);
        for record in of_case {
            if let Some(goal) = goal(record) {
                let _ = writeln!(page, "<p class=\"goal\">Goal: {}</p>", escaped(&goal));
            }
            if let Record::Skipped { engine, reason, .. } = record {
                let (engine, reason) = (escaped(engine), escaped(reason));
                let _ = writeln!(page, "<p class=\"skipped\">{engine} was skipped: {reason}</p>");
            }
        }
    }
    page
}

fn bars(page: &mut String, name: &str, records: &[&Record]) {
    let rows: Vec<_> = records
        .iter()
        .filter_map(|record| match record {
            Record::Value { engine, version, metric, value, unit, .. } if metric == name => {
                Some((engine, version, *value, unit))
            }
            _ => None,
        })
        .collect();
    let most = rows.iter().map(|(_, _, value, _)| *value).fold(0.0, f64::max);
    let unit = rows.first().map_or("", |(_, _, _, unit)| unit);
    let _ = writeln!(page, "<h3>{}</h3>", escaped(&titled(name, unit)));
    begin(page, rows.len());
    for (index, (engine, version, value, _)) in rows.iter().enumerate() {
        let top = index as f64 * ROW;
        let length = if most > 0.0 { (value / most).max(0.0) * WIDE } else { 0.0 };
        let ours = if *engine == OURS { " ours" } else { "" };
        label(page, top, &format!("{engine} {version}"));
        let _ = writeln!(
            page,
            "<rect class=\"bar{ours}\" x=\"{LEFT}\" y=\"{:.1}\" width=\"{length:.1}\" \
             height=\"{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            top + 4.0,
            ROW - 8.0,
            LEFT + length + 6.0,
            top + 17.0,
            shown(*value),
        );
    }
    page.push_str("</svg>\n");
}

/// Ratios are on a scale of powers, so that twice as fast and half as fast are equally far from 1.
fn ratios(page: &mut String, records: &[&Record]) {
    let rows: Vec<_> = records
        .iter()
        .filter_map(|record| match record {
            Record::Ratio { against, metric, value, low, high, .. } => {
                Some((against, metric.as_str(), *value, *low, *high))
            }
            _ => None,
        })
        .collect();
    let Some(&(_, metric, ..)) = rows.first() else {
        return;
    };
    let scaled = |value: f64| if metric == POINTS { value } else { value.max(1e-3).ln() };
    let first = rows.iter().map(|(.., low, _)| scaled(*low)).fold(-0.1, f64::min);
    let last = rows.iter().map(|(.., high)| scaled(*high)).fold(0.1, f64::max);
    let at = |value: f64| LEFT + (scaled(value) - first) / (last - first) * WIDE;

    let _ = writeln!(
        page,
        "<h3>terrace against{}</h3>",
        if metric == POINTS { ", in points" } else { "" }
    );
    begin(page, rows.len());
    let (one, bottom) = (at(neither(metric)), rows.len() as f64 * ROW);
    let _ = writeln!(
        page,
        "<line class=\"one\" x1=\"{one:.1}\" x2=\"{one:.1}\" y1=\"0\" y2=\"{bottom:.1}\"/>"
    );
    for (index, (against, metric, value, low, high)) in rows.iter().enumerate() {
        let top = index as f64 * ROW;
        let middle = top + ROW / 2.0;
        let class = Verdict::of(metric, *low, *high).word().to_lowercase();
        label(page, top, against);
        let _ = writeln!(
            page,
            "<line class=\"range {class}\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" \
             y2=\"{middle:.1}\"/><circle class=\"{class}\" cx=\"{:.1}\" cy=\"{middle:.1}\" \
             r=\"5\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            at(*low),
            at(*high),
            at(*value),
            at(*high).max(at(*value)) + 10.0,
            top + 17.0,
            shown(*value),
        );
    }
    page.push_str("</svg>\n");
}

fn begin(page: &mut String, rows: usize) {
    let (width, height) = (LEFT + WIDE + 80.0, rows as f64 * ROW);
    let _ = writeln!(page, "<svg viewBox=\"0 0 {width} {height}\">");
}

fn label(page: &mut String, top: f64, text: &str) {
    let _ = write!(
        page,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
        LEFT - 8.0,
        top + 17.0,
        escaped(text)
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
