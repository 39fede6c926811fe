//! **Warnings**: what the library has to say while it works, on the standard error stream.
//!
//! A subscriber of a few lines, because a whole logging framework would be one for a handful of
//! messages: a database that was set aside, a tier that failed.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};

use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::output::{json_text, printable};

/// Tells warnings from here on.
pub(crate) fn tell(is_json: bool) {
    // Fails only if there is a subscriber already, and nobody else sets one.
    let _ = tracing::subscriber::set_global_default(Warnings { is_json });
}

struct Warnings {
    is_json: bool,
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && *metadata.level() <= Level::WARN
            && metadata.target().starts_with("terrace")
    }

    fn event(&self, event: &Event<'_>) {
        let mut warning = Warning::default();
        event.record(&mut warning);
        let Warning { message, details } = warning;
        let mut stderr = io::stderr().lock();
        // If that is closed, nobody wants to be warned.
        let _ = if self.is_json {
            writeln!(stderr, "{}", json_text(&json!({ "warning": message + &details })))
        } else {
            writeln!(stderr, "warning: {}", printable(&(message + &details)))
        };
    }

    // Spans are never enabled.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// What an event says.
#[derive(Default)]
struct Warning {
    message: String,
    details: String,
}

impl Visit for Warning {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.details, "; {}: {value:?}", field.name())
        };
    }
}
