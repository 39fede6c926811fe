//! `terrace health`: how Redis servers are, and whether their settings suit a cache.

use std::sync::Arc;

use serde::Serialize;
use terrace::Redis;
use terrace::clock::SystemClock;
use terrace::store::{NodeHealth, Store as _};

use crate::args::Health;
use crate::failure::Failure;
use crate::output::{BOLD, GREEN, Output, RED, YELLOW, printable};

pub(crate) async fn run(args: &Health, output: &mut Output) -> Result<(), Failure> {
    let redis = match (&args.sentinel, args.urls.as_slice()) {
        (Some(service), sentinels) => Redis::sentinels(sentinels, service),
        (None, nodes) if args.cluster => Redis::cluster(nodes),
        (None, [url]) => Redis::url(url),
        (None, _) => {
            return Err(Failure::usage(
                "more than one --url",
                "give one server, or say --cluster or --sentinel SERVICE",
            ));
        }
    };
    let store = redis.open(Arc::new(SystemClock::new())).map_err(|error| {
        Failure::usage(error, "write redis://host:port, or rediss://host:port for TLS")
    })?;
    let answer = tokio::time::timeout(args.deadline, store.health()).await;
    let hint = "check the address and the password, and that the server runs";
    let health = match answer {
        Ok(Ok(health)) => health,
        Ok(Err(error)) => return Err(Failure::other(error, hint)),
        Err(_) => {
            let what = format!("no answer from {redis:?} in {:?}", args.deadline);
            return Err(Failure::other(what, hint));
        }
    };
    for node in &health.nodes {
        if output.is_json() { output.json(&Report::of(node))? } else { text(node, output)? }
    }
    let down: Vec<_> =
        health.nodes.iter().filter(|node| !node.is_up).map(|node| node.name.as_str()).collect();
    if down.is_empty() {
        return Ok(());
    }
    Err(Failure::other(format_args!("no answer from {}", down.join(", ")), hint))
}

/// One server, for programs.
#[derive(Debug, Serialize)]
struct Report<'a> {
    server: &'a str,
    up: bool,
    latency_ms: f64,
    #[serde(flatten)]
    facts: std::collections::BTreeMap<String, &'a str>,
    warnings: &'a [String],
}

impl<'a> Report<'a> {
    fn of(node: &'a NodeHealth) -> Self {
        let facts = node.facts.iter();
        Self {
            server: &node.name,
            up: node.is_up,
            latency_ms: node.latency.as_secs_f64() * 1000.0,
            facts: facts.map(|(name, value)| (name.replace(' ', "_"), value.as_str())).collect(),
            warnings: &node.warnings,
        }
    }
}

fn text(node: &NodeHealth, output: &mut Output) -> Result<(), Failure> {
    let style = output.style();
    let state = if node.is_up { style.paint(GREEN, "up") } else { style.paint(RED, "down") };
    let name = style.paint(BOLD, &printable(&node.name));
    output.line(format_args!("{name}  {state}, {:.2} ms", node.latency.as_secs_f64() * 1000.0))?;
    for (name, value) in &node.facts {
        output.line(format_args!("  {name:<14} {}", printable(value)))?;
    }
    for warning in &node.warnings {
        output.line(format_args!(
            "  {} {}",
            style.paint(YELLOW, "warning:"),
            printable(warning)
        ))?;
    }
    Ok(())
}
