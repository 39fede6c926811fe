//! The **transactions** that take the place of scripts where a server does not let us run these.
//!
//! Each script has a [twin](Twin) that decides the same in this process: what it reads is watched
//! (`WATCH`), and what it writes is written in one step (`MULTI` … `EXEC`), unless somebody has
//! touched meanwhile what was read. Then everything is read and decided once more.
//!
//! What is watched is watched by a connection, so that transactions under way at the same time need
//! a connection each. These are the *lanes*: a task on the thread of the connections, with a
//! connection of its own and a queue. A transaction whose caller is gone is brought to its end, or not
//! begun, and no connection is ever left half-way. One lane changes the ledger; the others share what
//! belongs to names, and a name has its lane. What waits in a lane goes into one transaction where that
//! is possible: processes get into each other's way, callers of one do not.

mod counter;
mod ledger;
mod twins;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::OnceLock;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Arg, Cmd, ErrorKind, Pipeline, RedisError, ServerErrorKind, Value};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::endpoint::Node;
use super::link::WeakLink;
use super::reply::{self, Verdict};
use crate::store::{StoreError, StoreErrorKind};
use ledger::{Head, Keys, Ledger};
use view::{Answer, Args, View};

pub(super) use twins::{
    Twin, append, count, count_apart, distrust, follow, latest, lease, put, put_apart, renew,
    snapshot, void,
};

/// Lanes of a link, the one that changes the ledger included.
const LANES: usize = 17;

/// One lane more is used after each of these: whoever has just connected does not at once ask for
/// many connections of a server that may be short of them.
const WIDENS: Duration = Duration::from_millis(500);

/// How many calls one transaction takes, and of how many bytes.
const MOST_CALLS: usize = 128;
const MOST_BYTES: usize = 1 << 20;

/// How often a transaction is begun anew because others have been quicker.
const ATTEMPTS: u32 = 64;

/// How long the server has to answer before the connection counts as dead.
const ANSWERS: Duration = Duration::from_secs(1);

/// A node that did not let us connect is left alone for so long.
const REFUSED: Duration = Duration::from_millis(500);

/// A call of a script, to be run by its twin.
pub(super) struct Step {
    twin: Twin,
    keys: Vec<String>,
    args: Vec<Vec<u8>>,
}

impl Step {
    /// What `EVALSHA digest count keys… arguments…` calls.
    pub(super) fn of(command: &Cmd, twin: Twin) -> Self {
        let mut words = command.args_iter().skip(2).map(|word| match word {
            Arg::Simple(word) => word.to_vec(),
            // None of ours has any.
            _ => Vec::new(),
        });
        let count = words.next().and_then(|count| String::from_utf8(count).ok()?.parse().ok());
        let keys = words.by_ref().take(count.unwrap_or(0));
        let keys = keys.map(|key| String::from_utf8_lossy(&key).into_owned()).collect();
        Self { twin, keys, args: words.collect() }
    }

    fn bytes(&self) -> usize {
        self.args.iter().map(Vec::len).sum()
    }

    fn key(&self) -> &str {
        self.keys.first().map_or("", String::as_str)
    }
}

/// Why a transaction failed.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Server(RedisError),
    Odd(StoreError),
    Contended,
    Closed,
}

impl Failure {
    /// The failure as callers see it, and what becomes of the connections.
    pub(super) fn classify(self, doing: &'static str) -> (StoreError, Verdict) {
        match self {
            Self::Server(error) => reply::classify(error, doing),
            Self::Odd(error) => (error, Verdict::Keep),
            Self::Contended => {
                let error = StoreError::new(StoreErrorKind::Unavailable, doing);
                (error.caused_by(Contended), Verdict::Keep)
            }
            Self::Closed => (StoreError::new(StoreErrorKind::Unavailable, doing), Verdict::Keep),
        }
    }

    /// Whether the user may run neither scripts nor what takes their place.
    pub(super) fn is_denied(&self) -> bool {
        let denied = ErrorKind::Server(ServerErrorKind::NoPerm);
        matches!(self, Self::Server(error) if error.kind() == denied)
    }

    /// Whether it says something about one command, and nothing about the connection.
    fn is_an_answer(&self) -> bool {
        let Self::Server(error) = self else { return false };
        reply::classify(error.clone(), "").1 == Verdict::Keep
    }

    /// Whether the slot is served elsewhere, or not at the moment.
    fn is_about_slots(&self) -> bool {
        use ServerErrorKind as Kind;
        let Self::Server(error) = self else { return false };
        matches!(
            error.kind(),
            ErrorKind::Server(Kind::Moved | Kind::Ask | Kind::TryAgain | Kind::ClusterDown)
        )
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        Self::Server(error)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("others changed the same {ATTEMPTS} times in a row")]
struct Contended;

type Outcome = Result<Value, Failure>;

/// A step and who waits for it.
pub(super) struct Job {
    step: Step,
    caller: oneshot::Sender<Outcome>,
}

/// The lanes of one set of connections; they end with it.
#[derive(Default)]
pub(super) struct Lanes {
    all: [OnceLock<UnboundedSender<Job>>; LANES],
}

impl fmt::Debug for Lanes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Lanes").finish_non_exhaustive()
    }
}

impl Lanes {
    /// Runs a step in its lane; `age` is for how long there have been connections, and `start` begins
    /// to serve a lane that is used for the first time.
    pub(super) async fn run(
        &self,
        step: Step,
        age: Duration,
        start: impl FnOnce(UnboundedReceiver<Job>),
    ) -> Outcome {
        let Some(lane) = self.all.get(lane_of(&step, age)) else { return Err(Failure::Closed) };
        // As many wait in it as callers: the guard before the tier bounds them.
        let queue = lane.get_or_init(|| {
            let (queue, jobs) = unbounded_channel();
            start(jobs);
            queue
        });
        let (caller, outcome) = oneshot::channel();
        if queue.send(Job { step, caller }).is_err() {
            return Err(Failure::Closed);
        }
        outcome.await.unwrap_or(Err(Failure::Closed))
    }
}

fn lane_of(step: &Step, age: Duration) -> usize {
    let wide = usize::try_from(age.as_millis() / WIDENS.as_millis()).unwrap_or(LANES);
    let wide = wide.min(LANES - 2) + 1;
    match step.twin {
        Twin::Writes(_) => 0,
        Twin::Reads(_) => 1 + fastrand::usize(..wide),
        Twin::Alone(_) => {
            let mut hasher = DefaultHasher::new();
            step.key().hash(&mut hasher);
            1 + usize::try_from(hasher.finish() % wide as u64).unwrap_or(0)
        }
    }
}

/// Serves a lane until nobody can ask any more.
pub(super) async fn serve(link: WeakLink, mut jobs: UnboundedReceiver<Job>) {
    let mut lane = Lane { link, nodes: HashMap::new(), refused: HashMap::new(), slots: None };
    let mut next = None;
    while let Some(first) = match next.take() {
        Some(job) => Some(job),
        None => jobs.recv().await,
    } {
        let mut batch = vec![first];
        let mut bytes = batch.iter().map(|job: &Job| job.step.bytes()).sum::<usize>();
        // All that waits goes into one transaction, if it can.
        let is_cluster = lane.link.upgrade().is_none_or(|link| link.is_cluster());
        while batch.len() < MOST_CALLS
            && let Ok(job) = jobs.try_recv()
        {
            bytes += job.step.bytes();
            if bytes > MOST_BYTES || !goes_with(&job.step, &batch, is_cluster) {
                next = Some(job);
                break;
            }
            batch.push(job);
        }
        lane.run(batch).await;
    }
}

/// Whether a step may share the transaction of those that came before it.
fn goes_with(step: &Step, batch: &[Job], is_cluster: bool) -> bool {
    batch.iter().all(|job| match (step.twin, job.step.twin) {
        // Each sees what those before it did to the ledger.
        (Twin::Writes(_), Twin::Writes(_)) => true,
        // And none, what is done to names; on a cluster they lie in slots of their own.
        (Twin::Alone(_), Twin::Alone(_)) => !is_cluster && step.key() != job.step.key(),
        _ => false,
    })
}

/// A lane at work.
struct Lane {
    link: WeakLink,
    /// Connections, to each node of a cluster that was asked.
    nodes: HashMap<Option<Node>, MultiplexedConnection>,
    /// Nodes that did not let us connect, why, and until when they are not asked again.
    refused: HashMap<Option<Node>, (Duration, Failure)>,
    /// Which primary serves the slots from each of these on.
    slots: Option<BTreeMap<u64, Node>>,
}

impl Lane {
    /// Brings jobs to their end.
    async fn run(&mut self, batch: Vec<Job>) {
        let outcome = self.attempt(&batch).await;
        match outcome {
            Ok(answers) => {
                for (job, answer) in batch.into_iter().zip(answers) {
                    // Whoever has given up does not want to know.
                    let _ = job.caller.send(Ok(answer));
                }
            }
            // One of them fails, and would fail alone: the others must not suffer for it.
            Err(failure) if failure.is_an_answer() && batch.len() > 1 => {
                for job in batch {
                    let mut alone = vec![job];
                    let outcome = self.attempt(&alone).await;
                    let outcome = outcome.and_then(|mut all| all.pop().ok_or(Failure::Closed));
                    if let Some(job) = alone.pop() {
                        let _ = job.caller.send(outcome);
                    }
                }
            }
            Err(failure) => {
                for job in batch {
                    let _ = job.caller.send(Err(failure.clone()));
                }
            }
        }
    }

    /// Answers for all jobs, in one transaction that is begun anew if others were quicker.
    async fn attempt(&mut self, batch: &[Job]) -> Result<Vec<Value>, Failure> {
        for attempt in 0..ATTEMPTS {
            // What nobody waits for any more is not done late.
            let steps = batch.iter().map(|job| (!job.caller.is_closed()).then_some(&job.step));
            let steps: Vec<_> = steps.collect();
            let wanted: Vec<_> = steps.iter().copied().flatten().collect();
            let Some(first) = wanted.first() else { return Ok(vec![Value::Nil; batch.len()]) };
            let node = self.node_of(first.key()).await?;
            match self.once(node.as_ref(), &wanted).await {
                Ok(Some(answers)) => {
                    let mut answers = answers.into_iter();
                    let each = steps.iter().map(|step| step.and_then(|_| answers.next()));
                    return Ok(each.map(Option::unwrap_or_default).collect());
                }
                Ok(None) => {}
                Err(failure) if failure.is_about_slots() && node.is_some() => {
                    self.slots = None;
                    if attempt + 1 == ATTEMPTS {
                        return Err(failure);
                    }
                    // Others are told at the same moment as we are.
                    sleep(Duration::from_millis(5 + fastrand::u64(..10))).await;
                    continue;
                }
                Err(failure) => {
                    if !failure.is_an_answer() {
                        // Where it is in its conversation nobody knows.
                        self.nodes.remove(&node);
                        self.slots = None;
                    }
                    return Err(failure);
                }
            }
            // Whoever lost twice lets others pass, so that not all meet again.
            if attempt > 1 {
                sleep(Duration::from_micros(fastrand::u64(..500 << attempt.min(5)))).await;
            }
        }
        Err(Failure::Contended)
    }

    /// One attempt; `None` if somebody was quicker.
    async fn once(
        &mut self,
        node: Option<&Node>,
        steps: &[&Step],
    ) -> Result<Option<Vec<Value>>, Failure> {
        let connection = self.connection(node).await?;
        let ledger = match steps.first() {
            Some(step) if !matches!(step.twin, Twin::Alone(_)) => {
                Some(Keys::of(&step.keys).map_err(Failure::Odd)?)
            }
            _ => None,
        };
        let mut view = View::default();
        let mut origin = None;
        let answers = loop {
            view.forget_writes();
            let answers = decide(&mut view, ledger, steps).map_err(Failure::Odd)?;
            let is_read = ledger.is_none() || origin.is_some();
            if view.is_missing_nothing() && is_read {
                break answers;
            }
            let found = read(connection, &mut view, ledger, origin.is_none()).await?;
            let Some(found) = found else { return Ok(None) };
            if origin.get_or_insert_with(|| found.clone()) != &found {
                return Ok(None);
            }
        };
        let replies = if view.writes().is_empty() {
            Vec::new()
        } else {
            match write(connection, view.writes()).await? {
                Some(replies) => replies,
                None => return Ok(None),
            }
        };
        let answers = answers.into_iter().map(|answer| match answer {
            Answer::Now(value) => value,
            Answer::After(tell) => tell(&replies),
        });
        Ok(Some(answers.collect()))
    }

    async fn connection(
        &mut self,
        node: Option<&Node>,
    ) -> Result<&mut MultiplexedConnection, Failure> {
        let node = node.cloned();
        if !self.nodes.contains_key(&node) {
            let link = self.link.upgrade().ok_or(Failure::Closed)?;
            let now = link.elapsed();
            if let Some((until, failure)) = self.refused.get(&node)
                && now < *until
            {
                return Err(failure.clone());
            }
            match link.alone(node.as_ref()).await {
                Ok(connection) => {
                    self.refused.remove(&node);
                    self.nodes.insert(node.clone(), connection);
                }
                Err(failure) => {
                    self.slots = None;
                    self.refused.insert(node, (now + REFUSED, failure.clone()));
                    return Err(failure);
                }
            }
        }
        self.nodes.get_mut(&node).ok_or(Failure::Closed)
    }

    /// The node of a cluster that serves a key; `None` for a server that is in none.
    async fn node_of(&mut self, key: &str) -> Result<Option<Node>, Failure> {
        let link = self.link.upgrade().ok_or(Failure::Closed)?;
        if !link.is_cluster() {
            return Ok(None);
        }
        if self.slots.is_none() {
            let serving = link.serving().await.map_err(Failure::Odd)?;
            self.slots = Some(serving);
        }
        let serving =
            self.slots.as_ref().and_then(|slots| slots.range(..=slot_of(key)).next_back());
        // A cluster that gives out no slots is down; whoever is asked says so.
        serving.map(|(_, node)| Some(node.clone())).ok_or(Failure::Closed)
    }
}

/// What all steps answer, and what they write, as far as it is known what they have to know.
fn decide(
    view: &mut View,
    ledger: Option<Keys<'_>>,
    steps: &[&Step],
) -> Result<Vec<Answer>, StoreError> {
    let Some(keys) = ledger else {
        let alone = steps.iter().filter_map(|step| match step.twin {
            Twin::Alone(twin) => Some(twin(view, &step.keys, &mut Args::new(&step.args))),
            Twin::Writes(_) | Twin::Reads(_) => None,
        });
        return alone.collect();
    };
    let mut answers = Vec::with_capacity(steps.len());
    let mut ledger: Option<Ledger<'_>> = None;
    let mut view = Some(view);
    for step in steps {
        let mut args = Args::new(&step.args);
        let head = Head { prefix: args.text()?, now: args.number()?, fresh: args.text()? };
        if let Some(view) = view.take() {
            ledger = Some(Ledger::open(view, keys, &head));
        }
        if let (Some(ledger), Twin::Writes(twin) | Twin::Reads(twin)) = (&mut ledger, step.twin) {
            answers.push(twin(ledger, &mut args, &head)?);
        }
    }
    if let Some(mut ledger) = ledger {
        ledger.close();
    }
    Ok(answers)
}

/// Watches and reads what is missing, in one exchange. Says what the ledger's origin is; `None` if
/// it has changed meanwhile, and what was read is not of one moment.
async fn read(
    connection: &mut MultiplexedConnection,
    view: &mut View,
    ledger: Option<Keys<'_>>,
    is_first: bool,
) -> Result<Option<Value>, Failure> {
    let mut asked = Pipeline::new();
    if is_first {
        // What was watched for a transaction that had nothing to write.
        asked.cmd("UNWATCH");
        for key in ledger.into_iter().flat_map(Keys::all) {
            view.watch(key);
        }
    }
    let (unwatched, missing) = view.take_missing();
    if !unwatched.is_empty() {
        asked.add_command(redis::cmd("WATCH").arg(&unwatched).take());
    }
    let skipped = asked.len();
    let mut questions = Vec::new();
    questions.extend(ledger.map(Keys::origin));
    questions.extend(missing);
    questions.extend(ledger.into_iter().flat_map(Keys::sizes));
    questions.extend(ledger.map(Keys::origin));
    for question in &questions {
        asked.add_command(question.clone());
    }
    let mut replies = exchange(connection, &asked).await?.into_iter();
    for reply in replies.by_ref().take(skipped) {
        reply.extract_error()?;
    }
    let replies = replies.map(Value::extract_error).collect::<Result<Vec<_>, _>>()?;
    let origin = match (ledger, replies.first(), replies.last()) {
        (None, ..) => Some(Value::Nil),
        (Some(_), before, after) => after.filter(|after| before == Some(after)).cloned(),
    };
    for (question, reply) in questions.iter().zip(replies) {
        view.learn(question, reply);
    }
    Ok(origin)
}

/// Writes in one step; `None` if somebody has changed what was read.
async fn write(
    connection: &mut MultiplexedConnection,
    writes: &Pipeline,
) -> Result<Option<Vec<Value>>, Failure> {
    let mut all = Pipeline::with_capacity(writes.len() + 2);
    all.cmd("MULTI");
    for command in writes.cmd_iter() {
        all.add_command(command.clone());
    }
    all.cmd("EXEC");
    let mut replies = exchange(connection, &all).await?;
    let done = replies.pop().unwrap_or_default();
    // A command that is refused says why; the end of the transaction says only that there was one.
    for reply in replies {
        reply.extract_error()?;
    }
    match done.extract_error()? {
        Value::Nil => Ok(None),
        Value::Array(replies) => {
            let replies = replies.into_iter().map(Value::extract_error);
            Ok(Some(replies.collect::<Result<_, _>>()?))
        }
        _ => Err(Failure::Odd(reply::odd("end a transaction", "no list"))),
    }
}

async fn exchange(
    connection: &mut MultiplexedConnection,
    commands: &Pipeline,
) -> Result<Vec<Value>, Failure> {
    let answers = connection.send_packed_commands(commands, 0, commands.len());
    match timeout(ANSWERS, answers).await {
        Ok(answers) => Ok(answers?),
        Err(_) => Err(RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut)).into()),
    }
}

/// The slot of a cluster that a key is in: CRC16 (XMODEM) of what stands in its first braces.
fn slot_of(key: &str) -> u64 {
    let tagged = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    let hashed = tagged.map(|(tag, _)| tag).filter(|tag| !tag.is_empty()).unwrap_or(key);
    let crc = hashed.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    u64::from(crc) % 16_384
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        assert_eq!(slot_of("123456789"), 0x31C3);
        assert_eq!(slot_of("terrace:{ledger}:lines"), slot_of("ledger"));
        assert_eq!(slot_of("a{}b"), slot_of("a{}b"));
        assert_ne!(slot_of("a{}b"), slot_of("a{}c"));
    }

    #[test]
    fn a_call_is_read_as_the_server_would() {
        let mut command = Cmd::new();
        command.arg("EVALSHA").arg("digest").arg(1).arg("key").arg("a").arg(7);
        let step = Step::of(&command, Twin::Alone(lease));
        assert_eq!(step.keys, ["key"]);
        assert_eq!(step.args, [b"a".to_vec(), b"7".to_vec()]);
    }
}
