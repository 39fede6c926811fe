//! The `terrace` command: see a multi-tier cache at work, and look into one.
//!
//! From the top: [`args`] says what can be asked for, [`commands`] has a file for each command,
//! [`output`] writes the answer, and a [`failure::Failure`] becomes a message and an exit code.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod directory;
mod failure;
mod output;
mod warnings;

use std::process::ExitCode;

use failure::Exit;
use output::Output;

fn main() -> ExitCode {
    let args = match args::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    warnings::tell(args.json);
    let mut output = Output::new(args.json, args.color);
    let done = commands::run(&args.command, &mut output);
    // What was written before a failure is worth having too.
    let written = output.finish();
    match done.and(written) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => failure.tell(args.json).into(),
    }
}
