//! A **server**: one Redis or Valkey process, and everything that can happen to it.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::Signal;
use tempfile::TempDir;

use super::node::Node;
use super::port::Port;
use super::process::{Process, Program, tail};
use super::{Connection, PATIENCE, Reply, RigError, TlsFiles, connection, wait_for, wait_until};

/// A command of a test must not hang the test when the server is paused.
const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

/// Set, no client of a server may run scripts, unless a test gives a user the right.
const WITHOUT_SCRIPTS: &str = "TERRACE_WITHOUT_SCRIPTS";

/// Set to rights in the language of `ACL SETUSER`, clients that are no user in particular have them on
/// every server, and no others.
const RIGHTS: &str = "TERRACE_RIGHTS";

/// What a user loses without scripts.
const NO_SCRIPTS: &str = "-@scripting";

/// As whom the rig gives commands, and servers talk to each other, where not everybody may.
pub(super) const RIG_USER: &str = "terrace-rig";
pub(super) const RIG_PASSWORD: &str = "of-the-rig-alone";

/// A real server on a free port of the loopback device.
///
/// It keeps its data in memory alone unless its builder says otherwise. Dropping it kills the
/// process and removes its directory.
///
/// The rig gives its own commands over a Unix socket: they reach a server whose port is in
/// somebody else's hands, or that speaks nothing but TLS.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use terrace_test::rig::RedisServer;
///
/// let server = RedisServer::builder()
///     .config("maxmemory", "2mb")
///     .config("maxmemory-policy", "noeviction")
///     .start()
///     .await?;
/// let answer = server.command(["SET", "key", &"x".repeat(4 << 20)]).await?;
/// assert!(answer.error().is_some_and(|error| error.starts_with("OOM")));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct RedisServer {
    // Before the directory: the process has to be gone when that is removed.
    process: Mutex<Option<Process>>,
    directory: TempDir,
    port: Port,
    /// For the other nodes of a cluster.
    bus: Port,
    builder: RedisServerBuilder,
}

/// What a server is to be like; made by [`RedisServer::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct RedisServerBuilder {
    program: Program,
    kind: Kind,
    lines: Vec<(String, String)>,
    password: Option<String>,
    has_users: bool,
    without_scripts: bool,
    rights: Option<String>,
    tls: Option<TlsFiles>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Node,
    Sentinel,
}

impl RedisServerBuilder {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            program: Program { file: "redis-server".into(), package: "redis-server" },
            kind,
            lines: Vec::new(),
            password: None,
            has_users: false,
            without_scripts: without_scripts(),
            rights: rights(),
            tls: None,
        }
    }

    /// Valkey in place of Redis.
    pub fn valkey(mut self) -> Self {
        self.program = Program { file: "valkey-server".into(), package: "valkey-server" };
        self
    }

    /// Another build of the server: the path of its program.
    pub fn program(mut self, file: impl Into<PathBuf>) -> Self {
        self.program.file = file.into();
        self
    }

    /// A line of the configuration file, in its language: a value with blanks that is one
    /// value has to be in quotes. Of several with one name the last one counts, except for
    /// those that Redis collects (`save`, `user`).
    pub fn config(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.lines.push((name.into(), value.into()));
        self
    }

    /// Every command is on disk before it is answered: `appendfsync always`.
    pub fn append_only(self) -> Self {
        self.config("appendonly", "yes").config("appendfsync", "always")
    }

    /// Allows `DEBUG`: `DEBUG SLEEP`, `DEBUG JMAP` and so on.
    pub fn debug_commands(self) -> Self {
        self.config("enable-debug-command", "local")
    }

    /// Loading its data takes so long for each key, and clients are answered meanwhile, with
    /// `-LOADING`. See [`RedisServer::restart_loading`].
    pub fn loads_slowly(self, each_key: Duration) -> Self {
        self.config("key-load-delay", each_key.as_micros().to_string())
            .config("loading-process-events-interval-bytes", "1024")
    }

    /// Clients have to show a password; it is in [`RedisServer::url`].
    pub fn password(mut self, password: impl Into<String>) -> Self {
        let password = password.into();
        self.password = Some(password.clone());
        self.config("requirepass", quoted(&password))
    }

    /// One more user, with rules in the language of `ACL SETUSER`: `on >secret ~a:* +get`.
    pub fn user(mut self, name: &str, rules: &str) -> Self {
        self.has_users = true;
        self.config("user", format!("{name} {rules}"))
    }

    /// No client may run scripts: what `EVAL`, `EVALSHA` and `SCRIPT` bring is `-NOPERM`. Users that
    /// are made later, with `ACL SETUSER`, may do what they are given.
    ///
    /// All servers of the rig are so if `TERRACE_WITHOUT_SCRIPTS` is set in the environment. What else
    /// clients may do is in `TERRACE_RIGHTS`, such as `+get +set`: everything unless it is set.
    pub fn without_scripts(mut self) -> Self {
        self.without_scripts = true;
        self
    }

    /// The port speaks TLS and nothing else. [`Certificates`](super::Certificates) has the
    /// files.
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self
    }

    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// It is not installed, does not like its configuration, or does not answer.
    pub async fn start(self) -> Result<RedisServer, RigError> {
        Ok(Node::start(&self, false, &|_| Vec::new()).await?.server)
    }

    /// Whether the rig needs a user of its own to be let in.
    pub(super) fn has_rig_user(&self) -> bool {
        let is_open = self.password.is_none() && !self.has_users && self.rights.is_none();
        !is_open && self.kind != Kind::Sentinel
    }

    /// What clients are that are no user in particular, if they may not do everything.
    fn default_user(&self) -> Option<String> {
        if self.kind == Kind::Sentinel || (self.rights.is_none() && !self.without_scripts) {
            return None;
        }
        let password = self.password.as_ref().map_or("nopass".into(), |text| format!(">{text}"));
        let rights =
            self.rights.as_ref().map_or("+@all".into(), |rights| format!("-@all {rights}"));
        let scripts = if self.without_scripts { NO_SCRIPTS } else { "" };
        Some(format!("default on {password} ~* &* {rights} {scripts}"))
    }

    fn file(&self, port: u16, bus: u16, directory: &Path, more: &[(String, String)]) -> String {
        let mut file = String::new();
        let mut line = |name: &str, value: &str| {
            let value = if value.is_empty() { "\"\"" } else { value };
            // Writing to a string cannot fail.
            let _ = writeln!(file, "{name} {value}");
        };
        let path = |path: &Path| path.display().to_string();
        line("bind", "127.0.0.1");
        line("dir", &path(&data_of(directory)));
        line("unixsocket", &path(&socket_of(directory)));
        if self.kind != Kind::Sentinel {
            line("save", "");
            // A replica waits for others to join it, which nobody does here.
            line("repl-diskless-sync-delay", "0");
        }
        if self.kind == Kind::Node {
            line("cluster-enabled", "yes");
            line("cluster-config-file", "../nodes.conf");
            line("cluster-port", &bus.to_string());
        }
        if self.has_rig_user() {
            line("user", &format!("{RIG_USER} on >{RIG_PASSWORD} ~* &* +@all"));
            line("masteruser", RIG_USER);
            line("masterauth", RIG_PASSWORD);
        }
        if let Some(user) = self.default_user() {
            line("user", &user);
        }
        match &self.tls {
            None => line("port", &port.to_string()),
            Some(tls) => {
                line("port", "0");
                line("tls-port", &port.to_string());
                line("tls-cert-file", &path(&tls.certificate));
                line("tls-key-file", &path(&tls.key));
                line("tls-ca-cert-file", &path(&tls.authority));
                line("tls-auth-clients", if tls.asks_clients { "yes" } else { "no" });
            }
        }
        for (name, value) in self.lines.iter().chain(more) {
            if self.without_scripts && name == "user" {
                line(name, &format!("{value} {NO_SCRIPTS}"));
            } else {
                line(name, value);
            }
        }
        file
    }
}

/// Whether clients of all servers of the rig are denied scripts: `TERRACE_WITHOUT_SCRIPTS` is set.
#[must_use]
pub fn without_scripts() -> bool {
    std::env::var_os(WITHOUT_SCRIPTS).is_some()
}

/// What clients of all servers of the rig may do, if that is not everything: `TERRACE_RIGHTS`.
pub(super) fn rights() -> Option<String> {
    std::env::var(RIGHTS).ok()
}

/// When a server that is started counts as started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// It answers, and has loaded its data.
    Ready,
    /// It answers, be it that it is still loading.
    Answers,
}

impl RedisServer {
    /// A server with nothing out of the ordinary.
    ///
    /// # Errors
    /// It is not installed, or does not answer.
    pub async fn start() -> Result<Self, RigError> {
        Self::builder().start().await
    }

    /// Says first what the server is to be like.
    pub fn builder() -> RedisServerBuilder {
        RedisServerBuilder::new(Kind::Data)
    }

    pub(super) fn has_rig_user(&self) -> bool {
        self.builder.has_rig_user()
    }

    /// The port at which clients reach it; the same after it is restarted.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The address at which clients reach it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// `redis://…`, or `rediss://…` with TLS, with the password if there is one.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.builder.password {
            Some(password) => self.url_as("", password),
            None => format!("{}://{}", self.scheme(), self.address()),
        }
    }

    /// The same for one user.
    #[must_use]
    pub fn url_as(&self, user: &str, password: &str) -> String {
        let (user, password) = (escaped(user), escaped(password));
        format!("{}://{user}:{password}@{}", self.scheme(), self.address())
    }

    /// What it has written to its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read(log_of(self.directory.path())).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Where its data lies.
    #[must_use]
    pub fn data_directory(&self) -> PathBuf {
        data_of(self.directory.path())
    }

    /// The id of its process, if it runs.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.process.lock().as_ref().map(Process::id)
    }

    /// Whether it has a process that has neither ended nor been [paused](Self::pause).
    #[must_use]
    pub fn is_running(&self) -> bool {
        let mut process = self.process.lock();
        process.as_mut().is_some_and(|process| process.ended().is_none() && !process.has_stopped())
    }

    /// Gives a command as somebody who may do everything, on a connection of its own.
    ///
    /// What the server complains of is a [`Reply::Error`].
    ///
    /// # Errors
    /// It does not run, or does not answer within 10 s.
    pub async fn command(
        &self,
        parts: impl IntoIterator<Item: AsRef<[u8]>>,
    ) -> Result<Reply, RigError> {
        self.ask(connection::request(parts)).await
    }

    /// The same for a command that must not fail.
    ///
    /// # Errors
    /// Those of [`command`](Self::command), and what the server complains of.
    pub async fn expect(
        &self,
        parts: impl IntoIterator<Item: AsRef<[u8]>>,
    ) -> Result<Reply, RigError> {
        let request = connection::request(parts);
        let reply = self.ask(request.clone()).await?;
        let Some(error) = reply.error() else { return Ok(reply) };
        let parts = Reply::parse(&request)?.map(|(request, _)| request);
        let parts = parts.iter().flat_map(Reply::items).filter_map(Reply::text);
        Err(RigError::Refused {
            what: self.name(),
            command: parts.collect::<Vec<_>>().join(" "),
            answer: error.to_owned(),
        })
    }

    /// One field of `INFO`; `None` if the server does not know it.
    ///
    /// # Errors
    /// It does not run, or does not answer.
    pub async fn info(&self, field: &str) -> Result<Option<String>, RigError> {
        let info = self.expect(["INFO", "everything"]).await?;
        let info = info.text().unwrap_or_default();
        let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        Ok(value.map(str::to_owned))
    }

    /// Stops it in the middle of what it does (`SIGSTOP`): connections stay open, new ones
    /// are still accepted by the kernel, and nobody gets an answer. Returns once it has
    /// stopped.
    ///
    /// # Errors
    /// It does not run.
    pub async fn pause(&self) -> Result<(), RigError> {
        self.signal(Signal::STOP)?;
        let has_stopped = || self.process.lock().as_ref().is_none_or(Process::has_stopped);
        wait_until(format!("{} to stop", self.name()), PATIENCE, async || has_stopped()).await
    }

    /// Lets it go on where it was [paused](Self::pause).
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&self) -> Result<(), RigError> {
        self.signal(Signal::CONT)
    }

    /// Ends it without a warning (`SIGKILL`). What was not on disk is lost.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&self) -> Result<(), RigError> {
        self.take()?.kill()
    }

    /// Asks it to end (`SIGTERM`) and waits until it has. It saves first what it was
    /// configured to save.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub async fn terminate(&self) -> Result<(), RigError> {
        self.take()?.terminate().await.map(|_| ())
    }

    /// Starts it again on its port, with the data that is on disk. One that still runs is
    /// killed.
    ///
    /// # Errors
    /// It does not come back.
    pub async fn restart(&self) -> Result<(), RigError> {
        self.stop()?;
        self.launch(Until::Ready).await
    }

    /// Starts it again and does not wait until it has loaded its data. Until it has, it
    /// answers `-LOADING`; [`RedisServerBuilder::loads_slowly`] says how long that is.
    ///
    /// # Errors
    /// It does not come back.
    pub async fn restart_loading(&self) -> Result<(), RigError> {
        self.stop()?;
        self.launch(Until::Answers).await
    }

    /// Starts it again on its port, without any data.
    ///
    /// # Errors
    /// It does not come back.
    pub async fn restart_empty(&self) -> Result<(), RigError> {
        self.stop()?;
        let empty = || {
            fs::remove_dir_all(self.data_directory())?;
            fs::create_dir(self.data_directory())
        };
        empty().map_err(RigError::while_("removing the data of a server"))?;
        self.launch(Until::Ready).await
    }

    /// Keeps a copy of all data as it is now, for [`restart_from_saved`](Self::restart_from_saved).
    ///
    /// # Errors
    /// It does not run, or cannot save.
    pub async fn save(&self) -> Result<(), RigError> {
        self.expect(["SAVE"]).await?;
        copy(&self.data_directory(), &self.saved())
            .map_err(RigError::while_("copying the data of a server"))
    }

    /// Starts it again on its port, with the data that was [saved](Self::save) last: as if a
    /// machine came back from an old copy of its disk.
    ///
    /// # Errors
    /// Nothing was saved, or it does not come back.
    pub async fn restart_from_saved(&self) -> Result<(), RigError> {
        if !self.saved().exists() {
            return Err(RigError::NothingSaved { what: self.name() });
        }
        self.stop()?;
        copy(&self.saved(), &self.data_directory())
            .map_err(RigError::while_("copying the data of a server"))?;
        self.launch(Until::Ready).await
    }

    /// The port at which the other nodes of a cluster reach it.
    pub(super) fn bus_port(&self) -> u16 {
        self.bus.number()
    }

    /// The last lines of its log, with its name above them.
    pub(super) fn log_tail(&self) -> String {
        format!("{}:\n{}", self.name(), tail(&log_of(self.directory.path())))
    }

    pub(super) fn name(&self) -> String {
        let program = self.builder.program.file.display();
        let sentinel = if self.builder.kind == Kind::Sentinel { " --sentinel" } else { "" };
        format!("{program}{sentinel} at {}", self.address())
    }

    /// A directory and a port, without a configuration and without a process.
    pub(super) fn prepare(builder: RedisServerBuilder) -> Result<Self, RigError> {
        let make = || {
            let directory = tempfile::Builder::new().prefix("terrace-rig-").tempdir()?;
            fs::create_dir(data_of(directory.path()))?;
            Ok(directory)
        };
        let directory = make().map_err(RigError::while_("making a temporary directory"))?;
        let (port, bus) = (Port::reserve()?, Port::reserve()?);
        Ok(Self { process: Mutex::new(None), directory, port, bus, builder })
    }

    /// `more` are lines that nobody knew before there was a port.
    pub(super) fn write_config(&self, more: &[(String, String)]) -> Result<(), RigError> {
        let (port, bus) = (self.port.number(), self.bus.number());
        let file = self.builder.file(port, bus, self.directory.path(), more);
        fs::write(config_of(self.directory.path()), file)
            .map_err(RigError::while_("writing the configuration of a server"))
    }

    pub(super) async fn launch(&self, until: Until) -> Result<(), RigError> {
        let directory = self.directory.path();
        let (config, log) = (config_of(directory), log_of(directory));
        let config = config.display().to_string();
        let mut arguments = vec![config.as_str()];
        if self.builder.kind == Kind::Sentinel {
            arguments.push("--sentinel");
        }
        // An error is to show what this start wrote, not the one before.
        let _ = fs::remove_file(&log);
        let process = Process::spawn(&self.builder.program, &arguments, directory, &log)?;
        *self.process.lock() = Some(process);

        let answers = wait_for("an answer to PING", PATIENCE, async || {
            let ended = self.process.lock().as_mut().and_then(Process::ended);
            if ended.is_some() {
                return Ok(ended);
            }
            let reply = self.command(["PING"]).await.map_err(|error| error.to_string())?;
            match reply.error() {
                Some(error) if until == Until::Ready && error.starts_with("LOADING") => {
                    Err(error.to_owned())
                }
                _ => Ok(None),
            }
        });
        let why = match answers.await {
            Ok(None) => return Ok(()),
            Ok(Some(status)) => format!("it ended at once ({status})"),
            Err(error) => error.to_string(),
        };
        drop(self.process.lock().take());
        Err(RigError::DidNotStart { what: self.name(), why, log: tail(&log) })
    }

    async fn ask(&self, request: Vec<u8>) -> Result<Reply, RigError> {
        if self.process.lock().is_none() {
            return Err(RigError::NotRunning { what: self.name() });
        }
        let talk = async {
            let mut connection = Connection::to_socket(&socket_of(self.directory.path())).await?;
            if self.has_rig_user() {
                connection.command(["AUTH", RIG_USER, RIG_PASSWORD]).await?;
            }
            connection.write(&request).await?;
            connection.reply().await
        };
        let in_vain = |_| RigError::InVain {
            what: format!("a reply of {}", self.name()),
            within: COMMAND_DEADLINE,
        };
        tokio::time::timeout(COMMAND_DEADLINE, talk).await.map_err(in_vain)?
    }

    fn signal(&self, signal: Signal) -> Result<(), RigError> {
        match self.process.lock().as_ref() {
            Some(process) => process.signal(signal),
            None => Err(RigError::NotRunning { what: self.name() }),
        }
    }

    fn take(&self) -> Result<Process, RigError> {
        let process = self.process.lock().take();
        process.ok_or_else(|| RigError::NotRunning { what: self.name() })
    }

    /// Kills it if it runs.
    fn stop(&self) -> Result<(), RigError> {
        let process = self.process.lock().take();
        process.map_or(Ok(()), Process::kill)
    }

    fn saved(&self) -> PathBuf {
        self.directory.path().join("saved")
    }

    fn scheme(&self) -> &'static str {
        if self.builder.tls.is_some() { "rediss" } else { "redis" }
    }
}

fn config_of(directory: &Path) -> PathBuf {
    directory.join("server.conf")
}

fn data_of(directory: &Path) -> PathBuf {
    directory.join("data")
}

fn log_of(directory: &Path) -> PathBuf {
    directory.join("log")
}

fn socket_of(directory: &Path) -> PathBuf {
    directory.join("socket")
}

/// Makes `to` what `from` is.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let (from, to) = (entry?.path(), to);
        let Some(name) = from.file_name() else { continue };
        if from.is_dir() {
            copy(&from, &to.join(name))?;
        } else {
            fs::copy(&from, to.join(name))?;
        }
    }
    Ok(())
}

/// As one value in a configuration file.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for byte in text.bytes() {
        // Writing to a string cannot fail.
        let _ = write!(quoted, "\\x{byte:02x}");
    }
    quoted + "\""
}

/// As a part of a URL.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}
