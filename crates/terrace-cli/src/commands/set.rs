//! `terrace set`: a value under a key.

use std::borrow::Cow;
use std::io::{self, Read as _};

use serde_json::{Value, json};
use terrace::Terrace;
use terrace::clock::{Clock as _, SystemClock};

use crate::args::Set;
use crate::directory;
use crate::failure::Failure;
use crate::output::{Output, printable, time};

/// The longest text that is taken as a value: what the disk tier takes.
const LARGEST: usize = 64 << 20;

pub(crate) async fn run(args: &Set, output: &mut Output) -> Result<(), Failure> {
    // Whatever is wrong with the value is said before anything is touched.
    let value = parsed(&value_text(&args.value)?, args.text)?;
    let terrace = directory::cache(&args.place.dir).await?;
    let stored = store(&terrace, args, &value).await;
    terrace.close().await;
    stored?;
    let expires = args.ttl.0.map(|ttl| time(SystemClock::new().wall().saturating_add(ttl)));
    if output.is_json() {
        return output.json(&json!({ "key": args.key, "stored": true, "expires": expires }));
    }
    let key = printable(&args.key);
    match expires {
        Some(expires) => output.line(format_args!("stored {key} until {expires}")),
        None => output.line(format_args!("stored {key} for ever")),
    }
}

/// The value's text: the argument, or the standard input.
fn value_text(argument: &str) -> Result<Cow<'_, str>, Failure> {
    if argument != "-" {
        return Ok(Cow::Borrowed(argument));
    }
    let mut bytes = Vec::new();
    // One byte more than allowed tells that there is more.
    io::stdin().lock().take(LARGEST as u64 + 1).read_to_end(&mut bytes).map_err(|error| {
        Failure::other(
            format_args!("could not read the value from the standard input: {error}"),
            "pipe it in, or write it as the second argument",
        )
    })?;
    if bytes.len() > LARGEST {
        return Err(Failure::usage(
            format_args!("the value on the standard input has more than {LARGEST} bytes"),
            "store it in parts, or a reference to it",
        ));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Cow::Owned(text)),
        Err(error) => Err(Failure::usage(
            format_args!("the value on the standard input is not text: {}", error.utf8_error()),
            "encode it as text, in base64 for instance",
        )),
    }
}

fn parsed(text: &str, is_text: bool) -> Result<Value, Failure> {
    if is_text {
        return Ok(text.into());
    }
    serde_json::from_str(text).map_err(|error| {
        Failure::usage(
            format_args!("the value is not JSON: {error}"),
            "quote text as '\"text\"', or say --text to store it as it is",
        )
    })
}

async fn store(terrace: &Terrace, args: &Set, value: &Value) -> Result<(), Failure> {
    let insert = terrace.set(&args.key, value).tags(&args.tags);
    let insert = match args.ttl.0 {
        Some(ttl) => insert.ttl(ttl),
        None => insert.forever(),
    };
    let settled = insert.await?;
    let stats = terrace.stats().await;
    let written: u64 = stats.tiers.iter().map(|tier| tier.traffic.writes).sum();
    let refused: u64 = stats.tiers.iter().map(|tier| tier.traffic.refused).sum();
    let (key, dir) = (&args.key, args.place.dir.display());
    match (settled.is_settled(), written, refused) {
        (true, 1.., _) => Ok(()),
        (true, 0, 1..) => Err(Failure::other(
            format_args!("{dir}: another process wrote {key} at the same moment, and later"),
            "its value stands; set yours again if it is to replace that",
        )),
        _ => Err(Failure::other(
            format_args!("{dir}: {key} could not be stored"),
            "the warning above says why; what was there before may be gone",
        )),
    }
}
