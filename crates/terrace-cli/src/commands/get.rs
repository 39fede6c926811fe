//! `terrace get`: the value under a key.

use serde_json::{Value, json};
use terrace::{Cached, Terrace};

use crate::args::Get;
use crate::directory;
use crate::failure::Failure;
use crate::output::{Output, json_text, time};

pub(crate) async fn run(args: &Get, output: &mut Output) -> Result<(), Failure> {
    let terrace = directory::existing_cache(&args.place.dir).await?;
    let found = find(&terrace, args).await;
    terrace.close().await;
    let (found, expires) = match found? {
        Found::Value(value) => {
            let expires = value.expires().map(time);
            let created = Some(time(value.created()));
            (Value::clone(&value), (created, expires))
        }
        Found::Counter(number) => (number.into(), (None, None)),
    };
    if output.is_json() {
        let (created, expires) = expires;
        let (key, value) = (&args.key, found);
        let answer = json!({ "key": key, "value": value, "created": created, "expires": expires });
        return output.json(&answer);
    }
    match found.as_str().filter(|_| args.text) {
        Some(text) => output.stored_text(text),
        None => output.line(json_text(&found)),
    }
}

enum Found {
    Value(Cached<Value>),
    Counter(i64),
}

async fn find(terrace: &Terrace, args: &Get) -> Result<Found, Failure> {
    if let Some(value) = terrace.get::<Value>(&args.key).await? {
        return Ok(Found::Value(value));
    }
    if let Some(number) = terrace.counter(&args.key).await? {
        return Ok(Found::Counter(number));
    }
    let (key, dir) = (&args.key, args.place.dir.display());
    let stats = terrace.stats().await;
    let sum = |count: fn(&terrace::Traffic) -> u64| -> u64 {
        stats.tiers.iter().map(|tier| count(&tier.traffic)).sum()
    };
    if sum(|traffic| traffic.errors) > 0 {
        return Err(Failure::other(
            format_args!("{dir}: could not be read"),
            "the warning above says why; try again",
        ));
    }
    if sum(|traffic| traffic.unreadable) > 0 {
        return Err(Failure::nothing_there(
            format_args!(
                "what is under the key {key} in {dir} cannot be read: it counts as absent"
            ),
            "it is damaged, which `terrace inspect` shows, or not a value that JSON can express",
        ));
    }
    Err(Failure::nothing_there(
        format_args!("there is nothing under the key {key} in {dir}"),
        "`terrace inspect` lists what there is, and what has expired",
    ))
}
