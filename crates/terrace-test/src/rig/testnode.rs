//! A **test node**: the test's own program, run once more as a process that can be stopped and
//! killed, and that answers lines.
//!
//! A test that is marked `#[ignore]` plays the node: it takes its [`settings`] and
//! [`serve`]s. Everybody else starts it by its name, with [`TestNode::start`], and
//! [asks](TestNode::ask) it. Questions travel over its standard input and answers over its
//! standard output; many may be under way at once, and each is answered when it is done.

use std::collections::HashMap;
use std::env;
use std::fmt;
use std::future::Future;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use parking_lot::Mutex;
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;

use super::process::Process;
use super::{PATIENCE, RigError, wait_until};

/// What a node finds its settings in.
const SETTINGS: &str = "TERRACE_TEST_NODE";

/// What lines of a node begin with: the harness of its tests writes lines of its own.
const MARK: &str = "@node ";

/// A process that runs one test of this test's own program.
///
/// Dropping it kills the process. The process ends by itself when the test's process does.
pub struct TestNode {
    name: String,
    process: Mutex<Option<Process>>,
    questions: mpsc::Sender<String>,
    waiting: Arc<Mutex<Waiting>>,
    next: AtomicU64,
}

/// Who waits for which answer; `None` once no answer can come any more.
type Waiting = Option<HashMap<u64, oneshot::Sender<Answer>>>;

/// What a node answered, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// When the node began with it, as [`monotonic`] tells the time.
    pub begin: u64,
    /// When the node had the answer.
    pub end: u64,
    /// The answer.
    pub text: String,
}

/// Nanoseconds since some moment that is the same for all processes of the machine.
#[must_use]
pub fn monotonic() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    seconds * 1_000_000_000 + nanos
}

/// What this process was started with, if it is a node.
#[must_use]
pub fn settings() -> Option<String> {
    env::var(SETTINGS).ok()
}

/// In the process of a node: answers questions, each in a task of its own, until it is killed
/// or nobody can ask any more.
///
/// # Panics
/// Outside of a Tokio runtime.
pub async fn serve<F: Future<Output = String> + Send + 'static>(
    answer: impl Fn(String) -> F + Send + Sync + 'static,
) {
    let (heard, mut questions) = tokio::sync::mpsc::unbounded_channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if heard.send(line).is_err() {
                return;
            }
        }
    });
    say("ready");
    while let Some(line) = questions.recv().await {
        let Some((number, question)) = line.split_once(' ') else { continue };
        let (number, begin) = (number.to_owned(), monotonic());
        let answering = answer(question.to_owned());
        tokio::spawn(async move {
            let text = answering.await;
            say(&format!("{number} {begin} {} {text}", monotonic()));
        });
    }
}

fn say(line: &str) {
    // The harness may be in the middle of a line. Nobody listens any more when this fails.
    let _ = io::stdout().lock().write_all(format!("\n{MARK}{line}\n").as_bytes());
}

impl TestNode {
    /// Starts the test of this name (`module::function`) of this program, and waits until it
    /// serves. What it prints to its standard error goes to the test's own.
    ///
    /// # Errors
    /// It cannot be started, or does not serve.
    pub async fn start(test: &str, settings: &str) -> Result<Self, RigError> {
        let name = format!("the node {test}");
        let starting = || RigError::while_(format!("starting {name}"));
        let program = env::current_exe().map_err(starting())?;
        let mut child = Command::new(program)
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env(SETTINGS, settings)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(starting())?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let process = Mutex::new(Some(Process::holding(child)));
        let (mut input, output) =
            pipes.ok_or_else(|| starting()(io::ErrorKind::BrokenPipe.into()))?;

        let (questions, asked) = mpsc::channel::<String>();
        // A node that is stopped reads nothing: no test has to wait for it to write.
        thread::spawn(move || {
            for question in asked {
                if input.write_all(question.as_bytes()).is_err() {
                    return;
                }
            }
        });
        let (ready, is_ready) = oneshot::channel();
        let waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let answered = Arc::clone(&waiting);
        thread::spawn(move || {
            let mut ready = Some(ready);
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                match line.strip_prefix(MARK) {
                    Some("ready") => {
                        ready.take().map(|ready| ready.send(()));
                    }
                    Some(line) => deliver(&answered, line),
                    None => {}
                }
            }
            *answered.lock() = None;
        });
        let node = Self { name, process, questions, waiting, next: AtomicU64::new(0) };
        match tokio::time::timeout(PATIENCE, is_ready).await {
            Ok(Ok(())) => Ok(node),
            Ok(Err(_)) => Err(RigError::NotRunning { what: node.name.clone() }),
            Err(_) => {
                Err(RigError::InVain { what: format!("{} to serve", node.name), within: PATIENCE })
            }
        }
    }

    /// Asks one line and waits for the answer, however long it takes.
    ///
    /// # Errors
    /// The node is dead, or dies before it answers.
    pub async fn ask(&self, question: &str) -> Result<Answer, RigError> {
        let dead = || RigError::NotRunning { what: self.name.clone() };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().as_mut().ok_or_else(dead)?.insert(number, sender);
        self.questions.send(format!("{number} {question}\n")).map_err(|_| dead())?;
        answer.await.map_err(|_| dead())
    }

    /// Stops it in the middle of what it does (`SIGSTOP`). Returns once it has stopped.
    ///
    /// # Errors
    /// It is dead.
    pub async fn pause(&self) -> Result<(), RigError> {
        self.signal(Signal::STOP)?;
        let has_stopped = || self.process.lock().as_ref().is_none_or(Process::has_stopped);
        wait_until(format!("{} to stop", self.name), PATIENCE, async || has_stopped()).await
    }

    /// Lets it go on where it was [paused](Self::pause).
    ///
    /// # Errors
    /// It is dead.
    pub fn resume(&self) -> Result<(), RigError> {
        self.signal(Signal::CONT)
    }

    /// Ends it without a warning (`SIGKILL`).
    ///
    /// # Errors
    /// It is dead already.
    pub fn kill(&self) -> Result<(), RigError> {
        let process = self.process.lock().take();
        process.ok_or_else(|| RigError::NotRunning { what: self.name.clone() })?.kill()
    }

    fn signal(&self, signal: Signal) -> Result<(), RigError> {
        let process = self.process.lock();
        let process = process.as_ref();
        process.ok_or_else(|| RigError::NotRunning { what: self.name.clone() })?.signal(signal)
    }
}

fn deliver(waiting: &Mutex<Waiting>, line: &str) {
    let mut words = line.splitn(4, ' ');
    let mut number = || words.next()?.parse().ok();
    let (Some(of), Some(begin), Some(end)) = (number(), number(), number()) else { return };
    let text = words.next().unwrap_or_default().to_owned();
    let waits = waiting.lock().as_mut().and_then(|waiting| waiting.remove(&of));
    if let Some(waits) = waits {
        // Whoever asked may have given up.
        let _ = waits.send(Answer { begin, end, text });
    }
}

impl fmt::Debug for TestNode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TestNode")
            .field("name", &self.name)
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}
