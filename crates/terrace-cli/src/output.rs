//! The **output**: text for people on a terminal, plain text in a pipe, or JSON.
//!
//! What comes out of a cache was put there by others: characters that could drive a terminal are
//! escaped before it gets there.

use std::borrow::Cow;
use std::env;
use std::fmt::{Display, Write as _};
use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write as _};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use terrace::clock::WallTime;

use crate::args::When;
use crate::failure::Failure;

/// Where a command writes its answer.
#[derive(Debug)]
pub(crate) struct Output {
    is_json: bool,
    is_terminal: bool,
    style: Style,
    stdout: BufWriter<Stdout>,
}

/// How text looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Style {
    /// Box lines and arrows; plain ASCII otherwise. For a terminal.
    pub(crate) unicode: bool,
    /// ANSI colours.
    pub(crate) colour: bool,
}

pub(crate) const BOLD: &str = "1";
pub(crate) const RED: &str = "31";
pub(crate) const GREEN: &str = "32";
pub(crate) const YELLOW: &str = "33";

impl Style {
    /// Wraps text into an ANSI style such as [`BOLD`], if colours are wanted.
    pub(crate) fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

impl Output {
    pub(crate) fn new(is_json: bool, colour: When) -> Self {
        let stdout = io::stdout();
        let is_terminal = stdout.is_terminal();
        let colour = match colour {
            When::Always => true,
            When::Never => false,
            When::Auto => is_terminal && terminal_has_colours(),
        };
        let style = Style { unicode: is_terminal && locale_is_unicode(), colour };
        Self { is_json, is_terminal, style, stdout: BufWriter::new(stdout) }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.is_json
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    pub(crate) fn style(&self) -> Style {
        self.style
    }

    /// Writes text that is safe for a terminal, and ends the line.
    pub(crate) fn line(&mut self, text: impl Display) -> Result<(), Failure> {
        Ok(writeln!(self.stdout, "{text}")?)
    }

    /// Writes a value as one line of JSON.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        self.line(json_text(value))
    }

    /// Writes bytes that somebody stored: as they are into a pipe, escaped on a terminal.
    pub(crate) fn stored_text(&mut self, text: &str) -> Result<(), Failure> {
        if !self.is_terminal {
            return self.line(text);
        }
        for line in text.lines() {
            self.line(printable(line))?;
        }
        Ok(())
    }

    /// Hands everything over that was written.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        Ok(self.stdout.flush()?)
    }
}

/// <https://no-color.org>
fn terminal_has_colours() -> bool {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether a terminal can be expected to show box lines.
fn locale_is_unicode() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()))
        .unwrap_or_default()
        .to_ascii_lowercase();
    cfg!(windows) || locale.contains("utf-8") || locale.contains("utf8")
}

/// Whether a character does something to a terminal, or to the order of the text around it,
/// instead of being shown.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// The text with unsafe characters as escapes such as `\n` and `\u{1b}`.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_unsafe(c) { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    Cow::Owned(safe)
}

/// A value as JSON on one line, with every unsafe character escaped.
pub(crate) fn json_text(value: &impl Serialize) -> String {
    // Only maps with keys that are no texts cannot be written, and there are none here.
    let text = serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned());
    if !text.contains(is_unsafe) {
        return text;
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_unsafe(c) {
            // Such a character can only be within a string, where this means the same.
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(c);
        }
    }
    safe
}

/// A time of day in UTC, to the second: `2026-01-31T12:00:00Z`.
pub(crate) fn time(time: WallTime) -> String {
    /// The last second that four digits of a year can say.
    const LAST: u64 = 253_402_300_799;
    let seconds = (time.as_millis() / 1000).min(LAST);
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// A number with thousands separators: `28,298`.
pub(crate) fn grouped(number: u64) -> String {
    separated(&number.to_string())
}

/// Puts thousands separators between digits.
pub(crate) fn separated(digits: &str) -> String {
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_drives_a_terminal_gets_through() {
        assert_eq!(printable("plain Zürich 日本 \\ '"), "plain Zürich 日本 \\ '");
        assert_eq!(printable("a\x1b[31m\n\t\u{9b}0m\u{7f}"), r"a\u{1b}[31m\n\t\u{9b}0m\u{7f}");
        assert_eq!(printable("\u{202e}gpj"), r"\u{202e}gpj");
    }

    #[test]
    fn json_means_the_same_when_it_is_safe() {
        let text = "a\x1b[31m\n\u{9b}\u{7f}\u{e0041}\u{202e}é";
        let json = json_text(&text);
        assert!(json.is_ascii() == json.replace('é', "").is_ascii() || json.contains('é'));
        assert!(!json.contains(is_unsafe), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }

    #[test]
    fn times_have_an_end() {
        assert_eq!(time(WallTime::from_millis(1_769_860_800_999)), "2026-01-31T12:00:00Z");
        assert_eq!(time(WallTime::from_millis(0)), "1970-01-01T00:00:00Z");
        assert_eq!(time(WallTime::from_millis(u64::MAX)), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn numbers_have_separators() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1_000, "1,000"), (28_298, "28,298"), (1_234_567, "1,234,567")]
        {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
    }
}
