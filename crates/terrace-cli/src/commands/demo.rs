//! `terrace demo`: a multi-tier cache at work on real queries, measured.

mod cached;
mod interruption;
mod measure;
mod place;
mod progress;
mod report;
mod source;
mod stream;

use tokio::runtime;

use crate::args::Demo;
use crate::failure::Failure;
use crate::output::Output;
use cached::OpenCaches;
use interruption::Interruption;
use place::Place;
use progress::Progress;

/// Runs the demonstration and prints what it measured.
///
/// Whatever happens, nothing is left behind: caches are closed first, then the runtime ends and
/// with it every query that is under way, and then the files can go.
pub(crate) fn run(args: &Demo, output: &mut Output) -> Result<(), Failure> {
    let runtime = super::started(runtime::Builder::new_multi_thread().enable_all())?;
    // Before there is anything to clean up.
    let mut interruption = {
        let _inside = runtime.enter();
        Interruption::listen()
    };
    let place = Place::new(args.keep.as_deref())?;
    let progress = Progress::new(output);
    let open = OpenCaches::default();
    let outcome = runtime.block_on(async {
        let outcome = tokio::select! {
            biased;
            () = interruption.wait() => Err(Failure::interrupted()),
            measured = measure::demonstrate(args, &place, &open, &progress) => {
                measured.map_err(|error| place.failure(error))
            }
        };
        tokio::select! {
            () = open.close() => {}
            // Whoever insists does not wait for writes to be finished.
            () = interruption.wait() => {}
        }
        outcome
    });
    drop(runtime);
    progress.finish();
    let gone = place.close();
    let report = outcome?;
    gone?;
    if output.is_json() {
        output.json(&report)
    } else {
        output.line(report::render(&report, output.style()).trim_end())
    }
}
