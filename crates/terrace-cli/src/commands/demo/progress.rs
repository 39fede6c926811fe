//! The **progress bar**: on a terminal only, and gone at the end.

use std::io::{self, IsTerminal as _};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::Output;

#[derive(Clone, Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub(crate) fn new(output: &Output) -> Self {
        // The bar is drawn on the standard error stream, but is there for whoever waits for a
        // table: not for a program at the other end of a pipe.
        let is_watched = output.is_terminal() && io::stderr().is_terminal() && !output.is_json();
        let bar = if is_watched { ProgressBar::new(1) } else { ProgressBar::hidden() };
        let filled = if output.style().unicode { "━━ " } else { "##-" };
        let template = if output.style().colour {
            "{msg:<28} {wide_bar:.green} {pos}/{len}"
        } else {
            "{msg:<28} {wide_bar} {pos}/{len}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars(filled));
        }
        Self { bar }
    }

    /// A new part of so many steps.
    pub(crate) fn begin(&self, what: &'static str, steps: u64) {
        self.bar.set_position(0);
        self.bar.set_length(steps);
        self.bar.set_message(what);
    }

    /// Some of them are done.
    pub(crate) fn done(&self, steps: u64) {
        self.bar.inc(steps);
    }

    /// So many of them are done.
    pub(crate) fn at(&self, steps: u64) {
        self.bar.set_position(steps);
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
