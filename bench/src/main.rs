//! The arguments.

mod machine;

use std::path::PathBuf;
use std::process::ExitCode;

use terrace_bench::report::Report;
use terrace_bench::suites::disk::processes;
use terrace_bench::suites::{LATER, Request, SUITES, Suite, hit_ratio};

const USAGE: &str = "\
Runs one suite: terrace beside other caches, on the same keys and values, interleaved in rounds.

    ./scripts/bench SUITE [OPTION]...

    --quick         within about a minute, instead of five to twenty
    --json          one JSON object a line on stdout, and nothing else there
    --only CASE     this case alone
    --html FILE     also a page with plots
    --traces DIR    the traces of hit-ratio
    -h, --help      this, and the suites with their cases";

/// What the command line asks for.
#[derive(Default)]
struct Arguments {
    suite: Option<String>,
    is_quick: bool,
    is_json: bool,
    only: Option<String>,
    html: Option<PathBuf>,
    traces: Option<PathBuf>,
    is_help: bool,
}

fn main() -> ExitCode {
    // A process that a suite runs beside this one.
    if std::env::args().nth(1).as_deref() == Some(processes::WRITER) {
        return processes::answer();
    }
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => return misused(&message),
    };
    if arguments.is_help {
        println!("{USAGE}\n\n{}", known_suites());
        return ExitCode::SUCCESS;
    }
    let Some(name) = &arguments.suite else {
        return misused("which suite?");
    };
    if LATER.contains(&name.as_str()) {
        return misused(&format!("{name} is not here yet: it comes with the part it measures"));
    }
    let Some(suite) = SUITES.iter().find(|suite| suite.name == name) else {
        return misused(&format!("there is no suite {name:?}"));
    };
    if let Some(only) = &arguments.only
        && !suite.may_have(only)
    {
        let cases = suite.cases.join(", ");
        return misused(&format!("{name} has no case {only:?}; its cases: {cases}"));
    }
    if arguments.traces.is_some() && suite.name != hit_ratio::SUITE {
        return misused("traces are for hit-ratio");
    }
    match run(suite, arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(suite: &Suite, arguments: Arguments) -> anyhow::Result<()> {
    let quick = if arguments.is_quick { ", quick" } else { "" };
    let title = format!("{}{quick}: {}", suite.name, machine::described());
    if !arguments.is_json {
        println!("{title}\n");
    }
    if let Some(busy) = machine::busy() {
        eprintln!("note: others use {:.0} % of this machine: expect noise", 100.0 * busy);
    }
    let Arguments { is_quick: quick, only, traces, .. } = arguments;
    let request = Request { quick, only, traces };
    let mut report = Report::new(title, arguments.is_json);
    (suite.run)(&request, &mut report)?;
    report.finish()?;
    if let Some(file) = arguments.html {
        report.write_html(&file)?;
    }
    Ok(())
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    while let Some(word) = words.next() {
        let (option, mut inline) = match word.split_once('=') {
            Some((option, value)) if option.starts_with("--") => (option, Some(value.to_owned())),
            _ => (word.as_str(), None),
        };
        let mut value =
            || inline.take().or_else(|| words.next()).ok_or(format!("{option} wants a value"));
        match option {
            "--only" => arguments.only = Some(value()?),
            "--html" => arguments.html = Some(value()?.into()),
            "--traces" => arguments.traces = Some(value()?.into()),
            _ if inline.is_some() => return Err(format!("unknown option {option:?}")),
            "--quick" => arguments.is_quick = true,
            "--json" => arguments.is_json = true,
            "-h" | "--help" => arguments.is_help = true,
            _ if option.starts_with('-') => return Err(format!("unknown option {option:?}")),
            _ if arguments.suite.is_none() => arguments.suite = Some(word),
            _ => return Err(format!("one suite at a time: what is {word:?}?")),
        }
    }
    Ok(arguments)
}

fn misused(message: &str) -> ExitCode {
    eprintln!("error: {message}\n\n{}", known_suites());
    ExitCode::from(2)
}

fn known_suites() -> String {
    let mut text = String::from("Suites:\n");
    for suite in SUITES {
        text.push_str(&format!("    {:<12}{}\n", suite.name, suite.about));
        text.push_str(&format!("    {:<12}cases: {}\n", "", suite.cases.join(", ")));
    }
    text.push_str(&format!("Later: {}", LATER.join(", ")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Arguments, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_come_in_any_order() {
        let arguments = parsed("--quick memory --only=hit --json --html page.html").unwrap();
        assert_eq!(arguments.suite.as_deref(), Some("memory"));
        assert_eq!(arguments.only.as_deref(), Some("hit"));
        assert!(arguments.is_quick && arguments.is_json);
        assert_eq!(arguments.html, Some("page.html".into()));
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for line in ["memory --only", "memory disk", "memory --fast", "--quick=1 memory"] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
