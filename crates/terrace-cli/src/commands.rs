//! The **commands**, one a file.

mod acl;
mod demo;
mod get;
mod health;
mod inspect;
mod invalidate;
mod set;
mod stats;

use tokio::runtime::{self, Runtime};

use crate::args::Command;
use crate::failure::Failure;
use crate::output::Output;

/// Does what was asked for.
pub(crate) fn run(command: &Command, output: &mut Output) -> Result<(), Failure> {
    match command {
        Command::Acl(args) => acl::run(args, output),
        Command::Demo(args) => demo::run(args, output),
        Command::Get(args) => small_runtime()?.block_on(get::run(args, output)),
        Command::Set(args) => small_runtime()?.block_on(set::run(args, output)),
        Command::Invalidate(args) => small_runtime()?.block_on(invalidate::run(args, output)),
        Command::Inspect(args) => small_runtime()?.block_on(inspect::run(args, output)),
        Command::Stats(args) => small_runtime()?.block_on(stats::run(args, output)),
        Command::Health(args) => small_runtime()?.block_on(health::run(args, output)),
    }
}

/// A runtime for a command that does one thing.
fn small_runtime() -> Result<Runtime, Failure> {
    started(runtime::Builder::new_current_thread().enable_time())
}

fn started(builder: &mut runtime::Builder) -> Result<Runtime, Failure> {
    builder.build().map_err(|error| {
        Failure::other(
            format_args!("could not start a runtime: {error}"),
            "the system may be short of threads or open files: try again",
        )
    })
}
