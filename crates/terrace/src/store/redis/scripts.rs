//! The **scripts** that the server runs, each one step that nobody sees half of. Where it does not
//! let us, [transactions](super::transactions) take their place.

use std::error::Error as _;

use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, ToRedisArgs, Value};

use super::link::Link;
use super::transactions::{self as twins, Step, Twin};
use crate::store::StoreError;

/// Every script, with the digest under which a server keeps it.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) append: Script,
    pub(super) put: Script,
    pub(super) follow: Script,
    pub(super) snapshot: Script,
    pub(super) distrust: Script,
    pub(super) count: Script,
    pub(super) latest: Script,
    pub(super) put_apart: Script,
    pub(super) count_apart: Script,
    pub(super) void: Script,
    pub(super) lease: Script,
    pub(super) renew: Script,
}

#[derive(Debug)]
pub(super) struct Script {
    code: String,
    digest: String,
    /// What takes its place.
    twin: Twin,
}

/// A script with its keys and arguments.
pub(super) struct Call<'a> {
    script: &'a Script,
    command: Cmd,
}

impl Scripts {
    pub(super) fn new() -> Self {
        let of_ledger = |code: &str, twin| {
            let ledger = concat!(include_str!("clock.lua"), include_str!("ledger.lua"));
            Script::new(format!("{ledger}{code}"), twin)
        };
        let alone = |code: &str, twin| Script::new(code.into(), Twin::Alone(twin));
        Self {
            append: of_ledger(
                concat!(include_str!("store.lua"), include_str!("append.lua")),
                Twin::Writes(twins::append),
            ),
            put: of_ledger(
                concat!(include_str!("store.lua"), include_str!("put.lua")),
                Twin::Writes(twins::put),
            ),
            follow: of_ledger(include_str!("follow.lua"), Twin::Reads(twins::follow)),
            snapshot: of_ledger(include_str!("snapshot.lua"), Twin::Reads(twins::snapshot)),
            distrust: of_ledger(include_str!("distrust.lua"), Twin::Writes(twins::distrust)),
            count: of_ledger(
                concat!(include_str!("counter.lua"), include_str!("count.lua")),
                Twin::Writes(twins::count),
            ),
            latest: of_ledger(include_str!("latest.lua"), Twin::Reads(twins::latest)),
            put_apart: alone(
                concat!(include_str!("store.lua"), include_str!("put_apart.lua")),
                twins::put_apart,
            ),
            count_apart: alone(
                concat!(
                    include_str!("clock.lua"),
                    include_str!("counter.lua"),
                    include_str!("count_apart.lua")
                ),
                twins::count_apart,
            ),
            void: alone(include_str!("void.lua"), twins::void),
            lease: alone(
                concat!(include_str!("clock.lua"), include_str!("lease.lua")),
                twins::lease,
            ),
            renew: alone(
                concat!(include_str!("clock.lua"), include_str!("renew.lua")),
                twins::renew,
            ),
        }
    }
}

impl Script {
    fn new(code: String, twin: Twin) -> Self {
        let digest = redis::Script::new(&code).get_hash().to_owned();
        Self { code, digest, twin }
    }

    /// A call of this script on `keys`.
    pub(super) fn on(&self, keys: &[impl AsRef<str>]) -> Call<'_> {
        let mut command = Cmd::new();
        command.arg("EVALSHA").arg(&self.digest).arg(keys.len());
        for key in keys {
            command.arg(key.as_ref());
        }
        Call { script: self, command }
    }
}

impl Call<'_> {
    pub(super) fn arg(&mut self, argument: impl ToRedisArgs) -> &mut Self {
        self.command.arg(argument);
        self
    }

    /// Runs the script, or what takes its place where the server does not let us run any.
    pub(super) async fn ask(&self, link: &Link, doing: &'static str) -> Result<Value, StoreError> {
        if !link.are_scripts_denied() {
            match self.ask_script(link, doing).await {
                Err(error) if is_denied(&error) => link.deny_scripts(&error),
                answer => return answer,
            }
        }
        link.transact(Step::of(&self.command, self.script.twin), doing).await
    }

    /// Runs the script; one that the server does not know yet is sent to it.
    async fn ask_script(&self, link: &Link, doing: &'static str) -> Result<Value, StoreError> {
        match link.ask(&self.command, doing).await {
            Err(error) if is_unknown_script(&error) => {
                let mut load = redis::cmd("SCRIPT");
                load.arg("LOAD").arg(&self.script.code);
                link.ask(&load, doing).await?;
                link.ask(&self.command, doing).await
            }
            answer => answer,
        }
    }
}

fn server_error(error: &StoreError) -> Option<(ServerErrorKind, &str)> {
    let error = error.source()?.downcast_ref::<RedisError>()?;
    let ErrorKind::Server(kind) = error.kind() else { return None };
    Some((kind, error.detail().unwrap_or_default()))
}

fn is_unknown_script(error: &StoreError) -> bool {
    server_error(error).is_some_and(|(kind, _)| kind == ServerErrorKind::NoScript)
}

/// Whether the server refuses to run scripts, or to be sent any: by its rights, or because the
/// command has been renamed or taken out.
fn is_denied(error: &StoreError) -> bool {
    server_error(error).is_some_and(|(kind, detail)| match kind {
        // Where the user may not touch the key, transactions would not help.
        ServerErrorKind::NoPerm => !detail.contains("access"),
        ServerErrorKind::ResponseError => {
            detail.starts_with("unknown command") || detail.starts_with("unknown subcommand")
        }
        _ => false,
    })
}
