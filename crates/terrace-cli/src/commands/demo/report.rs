//! What the demonstration measured, and how it is told: as JSON (the serialized
//! [`DemoReport`]) or as text ([`render`]).

use std::fmt::{Display, Write as _};
use std::time::Duration;

use comfy_table::presets::{ASCII_FULL_CONDENSED, UTF8_FULL_CONDENSED};
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::output::{BOLD, GREEN, RED, Style, YELLOW, grouped, printable, separated};

/// Everything that the demonstration measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DemoReport {
    /// How many rows the source has.
    pub(crate) rows: u64,
    /// How many queries were asked in all phases.
    pub(crate) queries: u64,
    /// How many of them the source did not have to answer.
    pub(crate) loads_saved: u64,
    /// The compared queries, read from memory.
    pub(crate) memory: TierReads,
    /// The same queries, read from disk.
    pub(crate) disk: TierReads,
    /// The same queries, asked at the source itself.
    pub(crate) source: Reads,
    /// The same, by kind of query.
    pub(crate) kinds: Vec<Kind>,
    /// What became of many callers at once on one cold key.
    pub(crate) stampede: Stampede,
    /// The parts of the demonstration, in their order.
    pub(crate) phases: Vec<Phase>,
    /// Where the files were left, if they were.
    pub(crate) directory: Option<String>,
}

/// How long reads took that one place answered. A number that was not measured is `None`, in
/// JSON `null`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Reads {
    /// How many reads it answered.
    pub(crate) reads: u64,
    /// What half of them did not exceed, in microseconds.
    pub(crate) p50_us: Option<f64>,
    /// What 99 of 100 did not exceed, in microseconds.
    pub(crate) p99_us: Option<f64>,
    /// How long 1,000 reads one after the other took, in milliseconds.
    pub(crate) read_1000_ms: Option<f64>,
}

/// [`Reads`] of a tier, and how much it helped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct TierReads {
    /// The reads themselves.
    #[serde(flatten)]
    pub(crate) reads: Reads,
    /// Which share of what it was asked for it had, from 0 to 1.
    pub(crate) hit_rate: Option<f64>,
    /// The p50 of the source divided by its own.
    pub(crate) times_faster: Option<f64>,
    /// How long 1,000 reads took at the source, divided by how long they took here.
    pub(crate) times_faster_in_total: Option<f64>,
}

/// One kind of query in each tier. Times are what half of them did not exceed, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Kind {
    /// What is asked for.
    pub(crate) name: &'static str,
    /// How many queries of this kind were compared.
    pub(crate) reads: u64,
    /// At the source.
    pub(crate) source_p50_us: Option<f64>,
    /// On disk.
    pub(crate) disk_p50_us: Option<f64>,
    /// In memory.
    pub(crate) memory_p50_us: Option<f64>,
    /// How many times faster disk is than the source.
    pub(crate) disk_times_faster: Option<f64>,
    /// How many times faster memory is than the source.
    pub(crate) memory_times_faster: Option<f64>,
}

/// Many callers at once on one cold key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Stampede {
    /// How many callers.
    pub(crate) callers: u64,
    /// How many loads the source saw.
    pub(crate) loads: u64,
    /// How long it took until the last caller had its answer, in milliseconds.
    pub(crate) ms: f64,
}

/// A part of the demonstration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Phase {
    /// What was done.
    pub(crate) name: String,
    /// How many queries were asked.
    pub(crate) queries: u64,
    /// How long it took.
    pub(crate) seconds: f64,
    /// How many memory answered.
    pub(crate) from_memory: u64,
    /// How many the disk answered.
    pub(crate) from_disk: u64,
    /// How many the source had to answer: its own count.
    pub(crate) from_source: u64,
    /// How many waited for an answer that another caller had asked the source for.
    pub(crate) shared: u64,
}

impl Reads {
    /// Sums up single reads, each in nanoseconds (their order is lost), and the time that 1,000
    /// in a row took.
    pub(crate) fn measured(nanos: &mut [u64], read_1000: Option<Duration>) -> Self {
        let micros = |nanos: u64| nanos as f64 / 1e3;
        Self {
            reads: nanos.len() as u64,
            p50_us: percentile(nanos, 0.50).map(micros),
            p99_us: percentile(nanos, 0.99).map(micros),
            read_1000_ms: read_1000.map(|time| time.as_nanos() as f64 / 1e6),
        }
    }
}

impl TierReads {
    /// The reads of a tier that was asked `asked` times and had `hits` of them, compared with the
    /// reads of the source.
    pub(crate) fn new(reads: Reads, hits: u64, asked: u64, source: &Reads) -> Self {
        Self {
            reads,
            hit_rate: share(hits, asked),
            times_faster: times_faster(reads.p50_us, source.p50_us),
            times_faster_in_total: times_faster(reads.read_1000_ms, source.read_1000_ms),
        }
    }
}

impl Kind {
    /// The p50 of each tier, compared.
    pub(crate) fn new(
        name: &'static str,
        reads: u64,
        source_p50_us: Option<f64>,
        disk_p50_us: Option<f64>,
        memory_p50_us: Option<f64>,
    ) -> Self {
        Self {
            name,
            reads,
            source_p50_us,
            disk_p50_us,
            memory_p50_us,
            disk_times_faster: times_faster(disk_p50_us, source_p50_us),
            memory_times_faster: times_faster(memory_p50_us, source_p50_us),
        }
    }
}

/// How many times faster the first is, if both were measured.
fn times_faster(own: Option<f64>, source: Option<f64>) -> Option<f64> {
    own.filter(|&own| own > 0.0).zip(source).map(|(own, source)| source / own)
}

/// The names of the tiers in the table, and their colours.
const TIERS: [(&str, &str); 3] = [("memory", GREEN), ("disk", YELLOW), ("source", RED)];

/// Where a newcomer finds more.
const READ_NEXT: [(&str, &str); 3] = [
    ("README.md", "what Terrace is, and your first cache"),
    ("ARCHITECTURE.md", "how it works, and why"),
    ("terrace --help", "what else this program can do"),
];

/// The smallest of the values that at least this share (0 to 1) of them does not exceed; `None`
/// if there are none. Their order is lost.
pub(crate) fn percentile(nanos: &mut [u64], share: f64) -> Option<u64> {
    let last = nanos.len().checked_sub(1)?;
    // Not even a rounding error may lift the rank by one: 0.07 * 100 is 7.000000000000001.
    let rank = (share.clamp(0.0, 1.0) * nanos.len() as f64 - 1e-6).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a length fits the length, and the cast saturates at 0"
    )]
    let index = (rank as usize).saturating_sub(1).min(last);
    Some(*nanos.select_nth_unstable(index).1)
}

/// The report as text for people, at most 80 columns wide, with a line break at the end.
pub(crate) fn render(report: &DemoReport, style: Style) -> String {
    let sections = [
        tiers(report, style),
        kinds(report, style),
        facts(report, style),
        phases(report, style),
        read_next(style),
    ];
    sections.join("\n")
}

/// The table of the tiers.
fn tiers(report: &DemoReport, style: Style) -> String {
    let row = |name: &str, reads: &Reads, by_p50: String, in_total: String| {
        let (p50, p99) = (time(reads.p50_us), time(reads.p99_us));
        let thousand = time(reads.read_1000_ms.map(|ms| ms * 1e3));
        [name.to_owned(), grouped(reads.reads), p50, p99, thousand, by_p50, in_total]
    };
    let tier = |name: &str, tier: &TierReads| {
        row(name, &tier.reads, times(tier.times_faster), times(tier.times_faster_in_total))
    };
    let lines = table(
        [
            "tier",
            "reads",
            "p50",
            "p99",
            "1,000\nreads",
            "times faster\n(by p50)",
            "times faster\n(in total)",
        ],
        &[
            tier("memory", &report.memory),
            tier("disk", &report.disk),
            row("source", &report.source, "1".to_owned(), "1".to_owned()),
        ],
        style,
    );
    let mut text =
        style.paint(BOLD, "The same queries in each tier, one after the other, against the source");
    text.push('\n');
    for row in lines {
        let tier = TIERS.into_iter().find_map(|(name, code)| {
            // Only the first cell: a border, a blank and the name.
            let at = row.find(&format!(" {name} ")).filter(|&at| at <= '│'.len_utf8())?;
            let (border, rest) = row.split_at_checked(at + 1)?;
            Some(format!("{border}{}{}", style.paint(code, name), rest.strip_prefix(name)?))
        });
        line(&mut text, tier.unwrap_or(row));
    }
    text
}

/// The table of the kinds of queries.
fn kinds(report: &DemoReport, style: Style) -> String {
    let mut text = style.paint(BOLD, "By kind of query: p50 in each tier");
    text.push('\n');
    let rows: Vec<_> = report
        .kinds
        .iter()
        .map(|kind| {
            [
                kind.name.to_owned(),
                grouped(kind.reads),
                time(kind.source_p50_us),
                time(kind.disk_p50_us),
                times(kind.disk_times_faster),
                time(kind.memory_p50_us),
                times(kind.memory_times_faster),
            ]
        })
        .collect();
    let header = ["query", "reads", "source", "disk", "times\nfaster", "memory", "times\nfaster"];
    for row in table(header, &rows, style) {
        line(&mut text, row);
    }
    text
}

/// The numbers that are not about time.
fn facts(report: &DemoReport, style: Style) -> String {
    let rate = |tier: &TierReads| tier.hit_rate.map_or_else(|| "-".to_owned(), percent);
    let saved = share(report.loads_saved, report.queries).map_or_else(|| "-".to_owned(), percent);
    let Stampede { callers, loads, ms } = report.stampede;
    let mut facts = vec![
        ("Source", format!("SQLite, {}", counted(report.rows, "row"))),
        ("Hit rates", format!("memory {}, disk {}", rate(&report.memory), rate(&report.disk))),
        (
            "Loads saved",
            format!(
                "{} of {} ({saved})",
                grouped(report.loads_saved),
                counted(report.queries, "query")
            ),
        ),
        (
            "Stampede",
            format!(
                "{} at once on one cold key {} {} in {}",
                counted(callers, "caller"),
                if style.unicode { "→" } else { "->" },
                style.paint(if loads == 1 { GREEN } else { RED }, &counted(loads, "load")),
                duration(ms * 1e3),
            ),
        ),
    ];
    if let Some(directory) = &report.directory {
        facts.push(("Files", printable(directory).into_owned()));
    }
    let mut text = String::new();
    for (name, fact) in facts {
        line(&mut text, format_args!("{} {fact}", style.paint(BOLD, &format!("{name:<11}"))));
    }
    text
}

/// The table of the phases.
fn phases(report: &DemoReport, style: Style) -> String {
    let mut text = style.paint(BOLD, "Phases, and who answered");
    text.push('\n');
    let rows: Vec<_> = report
        .phases
        .iter()
        .map(|phase| {
            [
                phase.name.clone(),
                grouped(phase.queries),
                duration(phase.seconds * 1e6),
                grouped(phase.from_memory),
                grouped(phase.from_disk),
                grouped(phase.from_source),
                grouped(phase.shared),
            ]
        })
        .collect();
    let header = ["phase", "queries", "time", "memory", "disk", "source", "shared"];
    for row in table(header, &rows, style) {
        line(&mut text, row);
    }
    text
}

/// Where to go from here.
fn read_next(style: Style) -> String {
    let mut text = style.paint(BOLD, "What to read next");
    text.push('\n');
    for (name, what) in READ_NEXT {
        line(&mut text, format_args!("  {name:<16} {what}"));
    }
    text
}

/// Adds a line.
fn line(text: &mut String, line: impl Display) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

/// The lines of a table; all columns but the first hold numbers, and stand right.
fn table<const N: usize>(header: [&str; N], rows: &[[String; N]], style: Style) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(if style.unicode { UTF8_FULL_CONDENSED } else { ASCII_FULL_CONDENSED });
    table.set_header(header).add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.lines().collect()
}

/// A part of a whole, from 0 to 1; `None` if the whole is nothing.
fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// A time in microseconds as text, if there is one.
fn time(time: Option<f64>) -> String {
    time.map_or_else(|| "-".to_owned(), duration)
}

/// How many times faster something is as text, if that is known.
fn times(times: Option<f64>) -> String {
    times.map_or_else(|| "-".to_owned(), digits)
}

/// A time in the unit that suits it, with three digits: `85 ns`, `1.25 us`, `37.0 ms`.
fn duration(us: f64) -> String {
    // The limits are where rounding would reach the next unit.
    let (value, unit) = match us {
        ..0.9995 => return format!("{:.0} ns", us.max(0.0) * 1e3),
        ..999.5 => (us, "us"),
        ..999_500.0 => (us / 1e3, "ms"),
        _ => (us / 1e6, "s"),
    };
    format!("{} {unit}", digits(value))
}

/// A number with three digits or more, and separators: `1.25`, `41,234`.
fn digits(value: f64) -> String {
    match value {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => separated(&format!("{value:.0}")),
    }
}

/// A share as text: `97.3 %`. Only what is whole is called 100 %.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let percent = if percent < 100.0 { percent.min(99.9) } else { percent };
    format!("{percent:.1} %")
}

/// A number and what it counts: `1 load`, `1,000 callers`, `0 queries`.
fn counted(number: u64, what: &str) -> String {
    let number_text = grouped(number);
    match (number, what.strip_suffix('y')) {
        (1, _) => format!("{number_text} {what}"),
        (_, Some(stem)) => format!("{number_text} {stem}ies"),
        (_, None) => format!("{number_text} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn report() -> DemoReport {
        let reads = |scale: u64, thousand| {
            let mut nanos: Vec<u64> = (1..=100).rev().map(|n| n * scale).collect();
            Reads::measured(&mut nanos, Some(Duration::from_micros(thousand)))
        };
        let source = reads(100_000, 5_120_000);
        DemoReport {
            rows: 28_298,
            queries: 20_000,
            loads_saved: 18_123,
            memory: TierReads::new(reads(2, 113), 15_321, 20_000, &source),
            disk: TierReads::new(reads(400, 21_400), 2_802, 4_679, &source),
            source,
            kinds: vec![
                Kind::new("airport", 40, Some(16.0), Some(4.0), Some(0.16)),
                Kind::new("nearest", 60, Some(10_000.0), Some(5.0), None),
            ],
            stampede: Stampede { callers: 1000, loads: 1, ms: 6.125 },
            phases: vec![
                Phase {
                    name: "cold".into(),
                    queries: 10_000,
                    seconds: 12.3456,
                    from_memory: 8_000,
                    from_disk: 0,
                    from_source: 1_990,
                    shared: 10,
                },
                Phase {
                    name: "after a restart".into(),
                    queries: 10_000,
                    seconds: 0.2,
                    from_memory: 7_321,
                    from_disk: 2_679,
                    from_source: 0,
                    shared: 0,
                },
            ],
            directory: Some("/tmp/demo".into()),
        }
    }

    #[test]
    fn percentiles_are_the_nearest_rank() {
        let percentiles = |values: &[u64], share| percentile(&mut values.to_vec(), share);
        let hundred: Vec<u64> = (1..=100).rev().collect();
        for percent in 1..=100_u32 {
            let share = f64::from(percent) / 100.0;
            assert_eq!(percentiles(&hundred, share), Some(u64::from(percent)));
        }
        assert_eq!(percentiles(&hundred, 0.0), Some(1));
        assert_eq!(percentiles(&hundred, -1.0), Some(1));
        assert_eq!(percentiles(&hundred, 2.0), Some(100));
        assert_eq!(percentiles(&hundred, f64::NAN), Some(1));
        assert_eq!(percentiles(&[30, 10, 20], 0.5), Some(20));
        assert_eq!(percentiles(&[30, 10, 20], 0.99), Some(30));
        assert_eq!(percentiles(&[40, 10, 30, 20], 0.5), Some(20));
        assert_eq!(percentiles(&[7], 0.5), Some(7));
        assert_eq!(percentiles(&[], 0.5), None);
    }

    #[test]
    fn times_have_the_unit_that_suits_them() {
        for (us, text) in [
            (-1.0, "0 ns"),
            (0.0, "0 ns"),
            (0.0854, "85 ns"),
            (0.9994, "999 ns"),
            (0.9996, "1.00 us"),
            (1.25, "1.25 us"),
            (9.996, "10.0 us"),
            (12.34, "12.3 us"),
            (99.96, "100 us"),
            (999.4, "999 us"),
            (999.6, "1.00 ms"),
            (6_125.0, "6.12 ms"),
            (999_600.0, "1.00 s"),
            (12_345_600.0, "12.3 s"),
            (1_234_567_000_000.0, "1,234,567 s"),
        ] {
            assert_eq!(duration(us), text, "{us}");
        }
    }

    #[test]
    fn numbers_have_three_digits_and_a_plural() {
        assert_eq!(digits(1.0), "1.00");
        assert_eq!(digits(50_000.4), "50,000");
        assert_eq!(counted(1, "load"), "1 load");
        assert_eq!(counted(0, "load"), "0 loads");
        assert_eq!(counted(1_000, "query"), "1,000 queries");
        assert_eq!(counted(1, "query"), "1 query");
    }

    #[test]
    fn only_the_whole_is_100_percent() {
        assert_eq!(percent(1.0), "100.0 %");
        assert_eq!(percent(0.99999), "99.9 %");
        assert_eq!(percent(0.9061), "90.6 %");
        assert_eq!(percent(0.0), "0.0 %");
        assert_eq!(share(1, 0), None);
    }

    #[test]
    fn json_has_the_promised_names() {
        let json = serde_json::to_value(report()).unwrap();
        for tier in ["memory", "disk", "source"] {
            for name in ["reads", "p50_us", "p99_us", "read_1000_ms"] {
                assert!(json[tier][name].is_number(), "{tier}.{name}");
            }
        }
        for tier in ["memory", "disk"] {
            for name in ["times_faster", "hit_rate"] {
                assert!(json[tier][name].is_number(), "{tier}.{name}");
            }
        }
        assert_eq!(json["memory"]["p50_us"], 0.1);
        assert_eq!(json["memory"]["read_1000_ms"], 0.113);
        assert_eq!(json["memory"]["times_faster"], 50_000.0);
        assert_eq!(json["source"]["p99_us"], 9_900.0);
        let stampede = serde_json::json!({ "callers": 1000, "loads": 1, "ms": 6.125 });
        assert_eq!(json["stampede"], stampede);
        assert_eq!(json["loads_saved"], 18_123);
        assert_eq!((&json["queries"], &json["rows"]), (&20_000.into(), &28_298.into()));
        assert_eq!(json["directory"], "/tmp/demo");
        assert_eq!(json["phases"][1]["name"], "after a restart");
        assert_eq!(json["kinds"][0]["memory_times_faster"], 100.0);
        assert_eq!(json["kinds"][1]["memory_times_faster"], Value::Null);
        for name in ["queries", "seconds", "from_memory", "from_disk", "from_source", "shared"] {
            assert!(json["phases"][0][name].is_number(), "{name}");
        }
    }

    #[test]
    fn what_was_not_measured_is_null_and_a_dash() {
        let source = Reads::measured(&mut [], None);
        let memory = TierReads::new(Reads::measured(&mut [0], None), 0, 0, &source);
        assert_eq!(memory.times_faster, None);
        let report = DemoReport { source, memory, directory: None, ..report() };
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["source"]["p50_us"], Value::Null);
        assert_eq!(json["memory"]["hit_rate"], Value::Null);
        assert_eq!(json["directory"], Value::Null);
        let text = render(&report, Style::default());
        assert!(text.contains("memory -, disk 59.9 %"), "{text}");
        assert!(
            !text.contains("NaN") && !text.contains("inf") && !text.contains("Files"),
            "{text}"
        );
    }

    #[test]
    fn plain_text_is_this() {
        let text = render(&report(), Style::default());
        assert_eq!(text, PLAIN, "\n{text}");
        assert!(text.is_ascii());
        assert!(text.lines().all(|line| line.len() <= 80));
    }

    #[test]
    fn a_terminal_gets_box_lines_of_the_same_width() {
        let plain = render(&report(), Style::default());
        let boxed = render(&report(), Style { unicode: true, colour: false });
        assert!(boxed.contains("┌────────┬") && boxed.contains("cold key → 1 load in"), "{boxed}");
        assert!(!boxed.contains('+') && !boxed.contains('\x1b'), "{boxed}");
        for (plain, boxed) in plain.lines().zip(boxed.lines()) {
            let arrow = usize::from(boxed.contains('→'));
            assert_eq!(plain.len(), boxed.chars().count() + arrow);
        }
    }

    #[test]
    fn colours_come_only_when_asked_for_and_change_nothing_else() {
        let coloured = render(&report(), Style { unicode: false, colour: true });
        assert!(coloured.contains("| \x1b[32mmemory\x1b[0m |"), "{coloured}");
        assert!(coloured.contains("| \x1b[31msource\x1b[0m |"), "{coloured}");
        let mut text = coloured;
        for code in [BOLD, RED, GREEN, YELLOW, "0"] {
            text = text.replace(&format!("\x1b[{code}m"), "");
        }
        assert_eq!(text, PLAIN);
    }

    const PLAIN: &str = "\
The same queries in each tier, one after the other, against the source
+--------+-------+---------+---------+---------+--------------+--------------+
| tier   | reads |     p50 |     p99 |   1,000 | times faster | times faster |
|        |       |         |         |   reads |     (by p50) |   (in total) |
+============================================================================+
| memory |   100 |  100 ns |  198 ns |  113 us |       50,000 |       45,310 |
| disk   |   100 | 20.0 us | 39.6 us | 21.4 ms |          250 |          239 |
| source |   100 | 5.00 ms | 9.90 ms |  5.12 s |            1 |            1 |
+--------+-------+---------+---------+---------+--------------+--------------+

By kind of query: p50 in each tier
+---------+-------+---------+---------+--------+--------+--------+
| query   | reads |  source |    disk |  times | memory |  times |
|         |       |         |         | faster |        | faster |
+================================================================+
| airport |    40 | 16.0 us | 4.00 us |   4.00 | 160 ns |    100 |
| nearest |    60 | 10.0 ms | 5.00 us |  2,000 |      - |      - |
+---------+-------+---------+---------+--------+--------+--------+

Source      SQLite, 28,298 rows
Hit rates   memory 76.6 %, disk 59.9 %
Loads saved 18,123 of 20,000 queries (90.6 %)
Stampede    1,000 callers at once on one cold key -> 1 load in 6.12 ms
Files       /tmp/demo

Phases, and who answered
+-----------------+---------+--------+--------+-------+--------+--------+
| phase           | queries |   time | memory |  disk | source | shared |
+=======================================================================+
| cold            |  10,000 | 12.3 s |  8,000 |     0 |  1,990 |     10 |
| after a restart |  10,000 | 200 ms |  7,321 | 2,679 |      0 |      0 |
+-----------------+---------+--------+--------+-------+--------+--------+

What to read next
  README.md        what Terrace is, and your first cache
  ARCHITECTURE.md  how it works, and why
  terrace --help   what else this program can do
";
}
