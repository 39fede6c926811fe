//! `terrace acl`: the rights that a Redis tier needs.

use serde::Serialize;
use terrace::Redis;

use crate::args::Acl;
use crate::failure::Failure;
use crate::output::Output;

#[derive(Debug, Serialize)]
struct Rights {
    command: String,
}

pub(crate) fn run(args: &Acl, output: &mut Output) -> Result<(), Failure> {
    // No connection is made: the address does not matter.
    let redis = Redis::url("redis://localhost").prefix(&args.prefix);
    let rights = Rights { command: redis.acl(&args.user) };
    if output.is_json() { output.json(&rights) } else { output.line(&rights.command) }
}
