//! `terrace invalidate`: keys, tags, prefixes and spaces, for every process that shares the cache.

use serde_json::json;
use terrace::{Redis, Settled, Target, Terrace};

use crate::args::{Invalidate, What};
use crate::directory;
use crate::failure::Failure;
use crate::output::{Output, printable};

pub(crate) async fn run(args: &Invalidate, output: &mut Output) -> Result<(), Failure> {
    let space = args.space.as_deref().unwrap_or_default();
    let targets: Vec<_> = args
        .names
        .iter()
        .map(|name| match args.what {
            What::Key => Target::key(space, name),
            What::Prefix => Target::prefix(space, name),
            What::Tag => Target::tag(name),
            What::Space => Target::space(name),
        })
        .collect();
    let terrace = open(args).await?;
    let settled = terrace.invalidate_all(targets).await;
    terrace.close().await;
    if let Settled::Pending(tiers) = settled? {
        return Err(Failure::other(
            format_args!("the ledger could not be written: {}", tiers.join(", ")),
            "nothing is sure to be invalidated: try again when it answers",
        ));
    }
    let what = args.what.name();
    if output.is_json() {
        let answer = json!({ "what": what, "names": args.names, "space": args.space });
        return output.json(&answer);
    }
    for name in &args.names {
        output.line(format_args!("invalidated the {what} {}", printable(name)))?;
    }
    Ok(())
}

/// The cache whose ledger is to be written.
async fn open(args: &Invalidate) -> Result<Terrace, Failure> {
    match (&args.url, &args.dir) {
        (Some(url), _) => {
            let redis = Redis::url(url).prefix(&args.prefix);
            // Whoever builds upon which space is not known here.
            Ok(Terrace::builder().tracked().tier("redis", redis).build().await?)
        }
        (None, Some(dir)) => directory::tracked_cache(dir).await,
        (None, None) => Err(Failure::usage(
            "neither --dir nor --url",
            "name the cache directory, or the Redis server if the cache has one",
        )),
    }
}
