//! The **scripts** that the server runs, each one step that nobody sees half of.

use std::error::Error as _;

use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, ToRedisArgs, Value};

use super::link::Link;
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
}

/// A script with its keys and arguments.
pub(super) struct Call<'a> {
    script: &'a Script,
    command: Cmd,
}

impl Scripts {
    pub(super) fn new() -> Self {
        let of_ledger = |code| Script::new(format!("{}{}", include_str!("ledger.lua"), code));
        Self {
            append: of_ledger(include_str!("append.lua")),
            put: of_ledger(include_str!("put.lua")),
            follow: of_ledger(include_str!("follow.lua")),
            snapshot: of_ledger(include_str!("snapshot.lua")),
            distrust: of_ledger(include_str!("distrust.lua")),
            count: of_ledger(concat!(include_str!("counter.lua"), include_str!("count.lua"))),
            latest: of_ledger(include_str!("latest.lua")),
            put_apart: Script::new(include_str!("put_apart.lua").into()),
            count_apart: Script::new(
                concat!(include_str!("counter.lua"), include_str!("count_apart.lua")).into(),
            ),
            void: Script::new(include_str!("void.lua").into()),
            lease: Script::new(include_str!("lease.lua").into()),
            renew: Script::new(include_str!("renew.lua").into()),
        }
    }
}

impl Script {
    fn new(code: String) -> Self {
        let digest = redis::Script::new(&code).get_hash().to_owned();
        Self { code, digest }
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

    /// Runs the script; one that the server does not know yet is sent to it.
    pub(super) async fn ask(&self, link: &Link, doing: &'static str) -> Result<Value, StoreError> {
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

fn is_unknown_script(error: &StoreError) -> bool {
    let error = error.source().and_then(|source| source.downcast_ref::<RedisError>());
    error.is_some_and(|error| error.kind() == ErrorKind::Server(ServerErrorKind::NoScript))
}
