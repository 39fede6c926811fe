//! The **arguments**: what can be asked for, and what `--help` says about it.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::failure::Failure;

/// What every help text ends with.
macro_rules! help_with {
    ($examples:literal) => {
        concat!(
            "Examples:\n",
            $examples,
            "
Exit codes:
  0    done; also when whoever reads the output goes away early, as `head` does
  1    nothing there: `get` found no value that may be served
  2    wrong usage: an argument, a key or a value that cannot be used
  3    the directory cannot be used as a cache: missing, foreign, locked, read-only
  4    any other failure
  130  interrupted, by Ctrl-C for instance; nothing is left half done

Errors go to the standard error stream: what was wrong and where, and a hint what to do.
With --json they are objects: {\"error\": ..., \"hint\": ...}."
        )
    };
}

/// See a multi-tier cache at work, and look into one.
#[derive(Debug, Parser)]
#[command(
    name = "terrace",
    version,
    arg_required_else_help = true,
    after_help = help_with!(
        "  terrace demo
  terrace set user:1 '{\"name\":\"Ada\"}' --ttl 30m --dir /tmp/cache
  terrace get user:1 --dir /tmp/cache
  terrace inspect --dir /tmp/cache --prefix user: --json
  TERRACE_DIR=/tmp/cache terrace stats
"
    )
)]
pub(crate) struct Terrace {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Write JSON, for programs
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// When to use colours
    #[arg(help = "When to use colours; `auto`: on a terminal, unless NO_COLOR is set")]
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: When,
}

/// When to do something that only suits a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run real queries through memory, disk and source, and show what each of them costs
    Demo(Demo),
    /// Print the value under a key
    Get(Get),
    /// Store a value under a key
    Set(Set),
    /// Invalidate keys, tags, prefixes or spaces, for every process that shares the cache
    Invalidate(Invalidate),
    /// List what a cache directory holds
    Inspect(Inspect),
    /// Sum up what a cache directory holds
    Stats(Stats),
    /// Ask Redis or Valkey servers how they are, and whether their settings suit a cache
    Health(Health),
    /// Print the command that gives a user on Redis the rights that a tier needs
    Acl(Acl),
}

/// Run real queries through memory, disk and source, and show what each of them costs.
///
/// Fills a SQLite database with the 28,298 airports that are built in, and asks it a skewed
/// stream of queries through a cache: an airport by its code, the airports nearest to it, a
/// country's report. The stream runs cold, again, and after a restart with the disk tier kept;
/// then 1,000 callers ask for one cold key at once; then the same queries are timed in each tier.
///
/// Everything is in a temporary directory, which is gone afterwards, unless --keep names one.
#[derive(Args, Debug)]
#[command(after_help = help_with!(
    "  terrace demo
  terrace demo --json
  terrace demo --keep /tmp/demo && terrace inspect --dir /tmp/demo/cache
  terrace demo --queries 10000 --seed 7
"
))]
pub(crate) struct Demo {
    /// Queries of each of the three runs of the stream
    ///
    /// The tiers are compared on 1,000 different queries of them, or on fewer if there are fewer.
    #[arg(long, value_name = "N", default_value_t = 3000,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) queries: u32,

    /// Which airports and countries are popular; the same seed asks the same queries
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,

    /// Keep the source database and the cache in this directory
    ///
    /// It must be new, empty, or the one of a demonstration before: then its database is used
    /// again, and its cache is emptied first, so that "cold" is cold.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
}

/// Print the value under a key.
///
/// Looks among the dynamic keys, those without a space of their own, and prints the value as
/// JSON. Expired, invalidated and damaged entries are not there. Counters print as numbers.
#[derive(Args, Debug)]
#[command(after_help = help_with!(
    "  terrace get user:1 --dir /tmp/cache
  terrace get user:1 --dir /tmp/cache --json
  terrace get note --dir /tmp/cache --text
"
))]
pub(crate) struct Get {
    /// The key
    pub(crate) key: String,

    #[command(flatten)]
    pub(crate) place: Place,

    /// Print a text value as it is, not as a JSON string
    #[arg(long)]
    pub(crate) text: bool,
}

/// Store a value under a key.
///
/// Stores it among the dynamic keys, those without a space of their own, for every process that
/// uses the directory. The cache is created if it is not there.
#[derive(Args, Debug)]
#[command(after_help = help_with!(
    "  terrace set user:1 '{\"name\":\"Ada\"}' --ttl 30m --dir /tmp/cache
  terrace set greeting --text 'Guten Tag' --dir /tmp/cache
  curl -s https://example.org/rates.json | terrace set rates - --ttl 1h --tag rates --dir /tmp/cache
  terrace set limits '[10, 20]' --ttl forever --dir /tmp/cache
"
))]
pub(crate) struct Set {
    /// The key, 64 KiB at most
    pub(crate) key: String,

    /// The value as JSON, 64 MiB at most; `-` reads it from the standard input
    #[arg(allow_negative_numbers = true)]
    pub(crate) value: String,

    #[command(flatten)]
    pub(crate) place: Place,

    /// How long it lives: 30s, 5m, "1h 30m", 7d, or forever
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = lifetime)]
    pub(crate) ttl: Lifetime,

    /// The value is plain text, not JSON
    #[arg(long)]
    pub(crate) text: bool,

    /// A tag by which it can be invalidated with others; may be given again
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,
}

/// Invalidate keys, tags, prefixes or spaces, for every process that shares the cache.
///
/// Writes to the cache's ledger: a cache with a Redis tier keeps it there, and hears of nothing that
/// is written to a directory's. What is named need not be there. A key that is a tuple is written
/// with `:` between its parts.
#[derive(Args, Debug)]
#[command(after_help = help_with!(
    "  terrace invalidate key user:1 user:2 --dir /tmp/cache
  terrace invalidate tag country:CH --url redis://127.0.0.1:6379
  terrace invalidate prefix 2023: --space emission --dir /tmp/cache
  TERRACE_REDIS=redis://127.0.0.1 terrace invalidate space airport
"
))]
pub(crate) struct Invalidate {
    /// What the names are
    pub(crate) what: What,

    /// What is invalidated
    #[arg(required = true)]
    pub(crate) names: Vec<String>,

    /// The space of keys and prefixes; that of dynamic keys unless given
    #[arg(long, value_name = "NAME")]
    pub(crate) space: Option<String>,

    /// The cache directory, if the cache has no Redis tier
    #[arg(long, value_name = "DIR", env = "TERRACE_DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// The Redis or Valkey server, if the cache has one
    #[arg(long, value_name = "URL", env = "TERRACE_REDIS", hide_env_values = true)]
    pub(crate) url: Option<String>,

    /// What every key of the Redis tier begins with
    #[arg(long, value_name = "TEXT", default_value = "terrace:", value_parser = one_word)]
    pub(crate) prefix: String,
}

/// What a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    Key,
    Tag,
    Prefix,
    Space,
}

impl What {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Tag => "tag",
            Self::Prefix => "prefix",
            Self::Space => "space",
        }
    }
}

/// List what a cache directory holds.
///
/// Lists the entries of all spaces in no particular order: state, times, size of the value in
/// bytes, the source's version, space and key. Control characters in keys are escaped. The states:
/// fresh; stale (served only if nothing fresher can be had); expired; invalidated; untrusted (the
/// ledger no longer knows); damaged (cannot be read, counts as a miss).
///
/// With --json it writes one object a line.
#[derive(Args, Debug)]
#[command(after_help = help_with!(
    "  terrace inspect --dir /tmp/cache
  terrace inspect --dir /tmp/cache --space airport --limit 10
  terrace inspect --dir /tmp/cache --space '' --prefix user:
  terrace inspect --dir /tmp/cache --json | jq -r 'select(.state == \"damaged\") | .key'
"
))]
pub(crate) struct Inspect {
    #[command(flatten)]
    pub(crate) place: Place,

    /// Only this space; the empty name stands for dynamic keys
    #[arg(long, value_name = "NAME")]
    pub(crate) space: Option<String>,

    /// Only keys that begin like this
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,

    /// At most so many entries
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
}

/// Sum up what a cache directory holds.
///
/// Entries and bytes, how many of them are fresh or damaged, the files, the ledger's position,
/// and the spaces. Reads every entry once.
#[derive(Args, Debug)]
#[command(after_help = help_with!(
    "  terrace stats --dir /tmp/cache
  terrace stats --dir /tmp/cache --json | jq .damaged
"
))]
pub(crate) struct Stats {
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Ask Redis or Valkey servers how they are, and whether their settings suit a cache.
///
/// Each server's version, role, memory, clients, hit rate, eviction and persistence, how long its
/// answer took, and a warning, with what to do, for each setting that endangers a cache. Changes
/// nothing on the server. Exit code 4 if a server does not answer.
///
/// A password is better given in the environment, where other users do not see it.
#[derive(Args, Debug)]
#[command(after_help = help_with!(
    "  terrace health --url redis://127.0.0.1:6379
  terrace health --url redis://node-1:7000 --url redis://node-2:7000 --cluster
  terrace health --url redis://sentinel-1:26379 --sentinel mymaster
  TERRACE_REDIS=rediss://cache:secret@cache.example.org terrace health --json
"
))]
pub(crate) struct Health {
    /// The server; with --cluster or --sentinel each of those that may be asked
    #[arg(
        long = "url",
        value_name = "URL",
        env = "TERRACE_REDIS",
        hide_env_values = true,
        value_delimiter = ',',
        required = true
    )]
    pub(crate) urls: Vec<String>,

    /// The servers are nodes of a cluster
    #[arg(long, conflicts_with = "sentinel")]
    pub(crate) cluster: bool,

    /// The servers are sentinels, and this is the service whose primary is meant
    #[arg(long, value_name = "SERVICE")]
    pub(crate) sentinel: Option<String>,

    /// How long an answer is waited for
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = humantime::parse_duration)]
    pub(crate) deadline: Duration,
}

/// Print the command that gives a user on Redis the rights that a tier needs.
///
/// Give it to the server with a password in the place of PASSWORD. The user may read and write the
/// keys of the cache and see how the server is, and nothing else.
#[derive(Args, Debug)]
#[command(after_help = help_with!(
    "  terrace acl
  terrace acl --user shop --prefix shop:
  terrace acl | sed \"s/PASSWORD/$SECRET/\" | redis-cli
"
))]
pub(crate) struct Acl {
    /// The name of the user
    #[arg(long, value_name = "NAME", default_value = "terrace", value_parser = one_word)]
    pub(crate) user: String,

    /// What every key of the tier begins with
    #[arg(long, value_name = "TEXT", default_value = "terrace:", value_parser = one_word)]
    pub(crate) prefix: String,
}

/// What the server could take for more than one word would mean something else.
fn one_word(text: &str) -> Result<String, String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("one word of printable ASCII characters is needed".into());
    }
    Ok(text.to_owned())
}

/// Where the cache is.
#[derive(Args, Debug)]
pub(crate) struct Place {
    /// The cache directory: what `Disk::at` was given
    #[arg(long, value_name = "DIR", env = "TERRACE_DIR")]
    pub(crate) dir: PathBuf,
}

/// How long a value lives; `None`: for ever. A type of its own, because a plain `Option` would
/// make the argument optional.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetime(pub(crate) Option<Duration>);

fn lifetime(text: &str) -> Result<Lifetime, String> {
    if text == "forever" {
        return Ok(Lifetime(None));
    }
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("a value that lives no time at all would never be there".into()),
        Ok(ttl) if ttl < Duration::from_millis(1) => {
            Err("times are kept in milliseconds: 1ms is the least".into())
        }
        Ok(ttl) => Ok(Lifetime(Some(ttl))),
        Err(error) => Err(format!("{error}; write 30s, 5m, 1h 30m, 7d or forever")),
    }
}

/// The arguments, or the exit code after help, the version or an error was printed.
pub(crate) fn parse() -> Result<Terrace, ExitCode> {
    Terrace::try_parse().map_err(|error| {
        let is_json =
            error.use_stderr() && std::env::args_os().any(|arg| arg == OsStr::new("--json"));
        if is_json {
            let text = error.render().to_string();
            let what = text.lines().next().unwrap_or_default();
            let what = what.strip_prefix("error: ").unwrap_or(what);
            return Failure::usage(what, "see `terrace --help`").tell(true).into();
        }
        // Whoever asked for help and does not listen any more does not mind.
        let _ = error.print();
        ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Terrace::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_and_tells_the_exit_codes() {
        for command in Terrace::command().get_subcommands() {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Examples:\n  terrace "), "{help}");
            assert!(help.contains("130  interrupted"), "{help}");
        }
    }

    #[test]
    fn a_lifetime_is_a_time_or_for_ever() {
        assert_eq!(lifetime("30m"), Ok(Lifetime(Some(Duration::from_secs(1800)))));
        assert_eq!(lifetime("1h 30m"), Ok(Lifetime(Some(Duration::from_secs(5400)))));
        assert_eq!(lifetime("forever"), Ok(Lifetime(None)));
        for wrong in ["", "30", "0s", "10ns", "-5m", "soon", "99999999999999999999d"] {
            assert!(lifetime(wrong).is_err(), "{wrong}");
        }
    }
}
