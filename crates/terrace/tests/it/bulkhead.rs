//! How many loads run at once: a cold cache must not sink its source.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use terrace::clock::{Clock as _, SystemClock};
use terrace::runtime::BoxFuture;
use terrace::{Disk, LoadError, LoadMany, Memory, Space, Terrace};
use terrace_test::ManualClock;
use terrace_test::sweep::poll_and_drop;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::{
    Everywhere as _, PausedClock, Refused, count, ends, eventually, let_others_run, ms,
};

const SECOND: Duration = Duration::from_secs(1);

/// A source that counts who is at it.
#[derive(Default)]
struct Source {
    running: AtomicUsize,
    most: AtomicUsize,
    begun: AtomicUsize,
}

/// One call at the source, until this is dropped.
struct Running(Arc<Source>);

impl Source {
    fn enter(self: &Arc<Self>) -> Running {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        self.begun.fetch_add(1, Ordering::SeqCst);
        Running(Arc::clone(self))
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn cache(max_loads: usize) -> Terrace {
    let memory = Memory::bytes(16 << 20);
    Terrace::builder().memory(memory).max_loads(max_loads).build().await.unwrap()
}

async fn nothing_is_left(terrace: &Terrace) {
    eventually("no load is left", async || {
        let stats = terrace.stats().await;
        (stats.underway, stats.loads_running, stats.loads_queued) == (0, 0, 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_loads_run_at_once_than_the_cache_and_each_space_allow() {
    let terrace = cache(10).await;
    let of_all = Arc::new(Source::default());
    let mut callers = JoinSet::new();
    let mut sources = Vec::new();
    for (name, most) in [("one", Some(3)), ("two", Some(5)), ("three", None)] {
        let mut space = terrace.space::<u64, u64>(name);
        if let Some(most) = most {
            space = space.max_loads(most);
        }
        let space = space.build().unwrap();
        let source = Arc::new(Source::default());
        sources.push((Arc::clone(&source), most.unwrap_or(10)));
        for caller in 0..400_u64 {
            let (space, source, of_all) = (space.clone(), Arc::clone(&source), Arc::clone(&of_all));
            callers.spawn(async move {
                let running = move || [source.enter(), of_all.enter()];
                // Each hundredth loads many keys at once, under one permit.
                if caller % 100 == 0 {
                    let keys: Vec<u64> = (1_000 + caller..1_050 + caller).collect();
                    let load = |load: LoadMany<u64>| async move {
                        let _running = running();
                        tokio::time::sleep(ms(2)).await;
                        Ok::<_, Refused>(
                            load.keys().iter().map(|key| (*key, 1)).collect::<Vec<_>>(),
                        )
                    };
                    let answers = space.get_many_or_load(&keys, load).await;
                    assert!(answers.iter().all(Result::is_ok));
                    return;
                }
                let load = |_| async move {
                    let _running = running();
                    tokio::time::sleep(ms(caller % 5)).await;
                    match caller % 7 {
                        0 => Err(Refused(caller)),
                        1 => panic!("on purpose"),
                        _ => Ok(caller),
                    }
                };
                if caller % 3 == 0 {
                    // A caller who leaves half-way.
                    let polls = caller as usize % 4;
                    let call = poll_and_drop(polls, space.get_or_load(&caller, load));
                    let _ = tokio::time::timeout(ms(20), call).await;
                } else {
                    let _ = space.get_or_load(&caller, load).await;
                }
            });
        }
    }
    ends("all callers", callers.join_all()).await;
    nothing_is_left(&terrace).await;
    for (source, most) in sources {
        assert_eq!(source.most(), most);
    }
    assert_eq!(of_all.most(), 10);
}

/// Permits that are lost would be missing here in the end.
#[tokio::test(start_paused = true)]
async fn permits_are_back_after_drops_panics_and_timeouts() {
    let terrace = cache(2).await;
    let space: Space<u64, u64> =
        terrace.space("space").load_deadline(SECOND).max_loads(2).build().unwrap();
    for round in 0..100 {
        let mut callers = JoinSet::new();
        for kind in 0..4 {
            let space = space.clone();
            callers.spawn(async move {
                let load = |_| async move {
                    match kind {
                        0 => Err(Refused(0)),
                        1 => panic!("on purpose"),
                        2 => std::future::pending().await,
                        _ => Ok(1),
                    }
                };
                let key = round * 4 + kind;
                if kind == 3 {
                    poll_and_drop(2, space.get_or_load(&key, load)).await;
                } else {
                    assert!(space.get_or_load(&key, load).await.is_err());
                }
            });
        }
        callers.join_all().await;
        nothing_is_left(&terrace).await;
    }
    // Both are there: two loads that wait for each other end.
    let both = Arc::new(tokio::sync::Barrier::new(2));
    let last = [1_000, 1_001].map(|key| {
        let (space, both) = (space.clone(), Arc::clone(&both));
        async move {
            let load = |_| async move {
                both.wait().await;
                Ok::<_, Refused>(1)
            };
            space.get_or_load(&key, load).await.map(|value| *value)
        }
    });
    let [one, two] = last;
    let (one, two) = tokio::join!(one, two);
    assert_eq!((one.unwrap(), two.unwrap()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_for_a_permit_is_told_so() {
    let terrace = cache(1).await;
    let space: Space<u64, u64> = terrace.space("space").load_deadline(5 * SECOND).build().unwrap();
    let slow: Space<u64, u64> = terrace.space("slow").load_deadline(60 * SECOND).build().unwrap();
    let source = Arc::new(Source::default());
    let holder = tokio::spawn({
        let running = source.enter();
        async move {
            let load = |_| async move {
                let _running = running;
                tokio::time::sleep(30 * SECOND).await;
                Ok::<_, Refused>(1)
            };
            slow.get_or_load(&0, load).await.map(|value| *value)
        }
    });
    let_others_run().await;
    let mut callers = JoinSet::new();
    for key in 0..100 {
        let (space, source) = (space.clone(), Arc::clone(&source));
        callers.spawn(async move {
            let load = |_| async move {
                let _running = source.enter();
                Ok::<_, Refused>(1)
            };
            let began = PausedClock::default();
            (space.get_or_load(&key, load).await, began.elapsed())
        });
    }
    let_others_run().await;
    let stats = terrace.stats().await;
    assert_eq!((stats.loads_running, stats.loads_queued), (1, 100));
    for (answer, waited) in callers.join_all().await {
        assert!(matches!(answer, Err(LoadError::Overloaded)), "{answer:?}");
        assert!((5 * SECOND..=5 * SECOND + ms(10)).contains(&waited), "{waited:?}");
    }
    assert_eq!(terrace.stats().await.spaces[1].overloaded, 100);
    // It says nothing about the key: the next caller is not held back.
    let load = |_| async { Ok::<_, Refused>(2) };
    assert_eq!(holder.await.unwrap().unwrap(), 1);
    assert_eq!(*space.get_or_load(&0, load).await.unwrap(), 2);
    nothing_is_left(&terrace).await;
    assert_eq!(source.most(), 1);
}

/// Loads that read on, in a cache that allows a single one.
#[tokio::test(start_paused = true)]
async fn a_load_within_a_load_needs_no_permit() {
    fn nested(space: Space<u64, u64>, depth: u64) -> BoxFuture<'static, Result<u64, String>> {
        Box::pin(async move {
            let inner = space.clone();
            let load = |_| async move {
                if depth == 0 {
                    return Ok::<_, String>(0);
                }
                nested(inner, depth - 1).await.map(|value| value + 1)
            };
            let answer = space.get_or_load(&depth, load).await;
            answer.map(|value| *value).map_err(|error| error.to_string())
        })
    }
    let terrace = cache(1).await;
    let space: Space<u64, u64> = terrace.space("space").max_loads(1).build().unwrap();
    assert_eq!(ends("nested loads", nested(space, 10)).await, Ok(10));
    nothing_is_left(&terrace).await;
}

/// A loader reads what somebody else has begun to load, who waits for the permit that the
/// loader holds.
#[tokio::test(start_paused = true)]
async fn a_load_that_a_running_one_waits_for_needs_no_permit() {
    for many in [false, true] {
        let terrace = cache(1).await;
        let space: Space<u64, u64> = terrace.space("space").max_loads(1).build().unwrap();
        let pass = Arc::new(Semaphore::new(0));
        let outer = tokio::spawn({
            let (space, inner, pass) = (space.clone(), space.clone(), Arc::clone(&pass));
            async move {
                let load = |_| async move {
                    pass.acquire().await.unwrap().forget();
                    let load = |_| async { Ok::<_, Refused>(100) };
                    inner.get_or_load(&1, load).await.map(|value| *value + 1)
                };
                space
                    .get_or_load(&0, load)
                    .await
                    .map(|value| *value)
                    .map_err(|error| error.to_string())
            }
        });
        let_others_run().await;
        let queued = tokio::spawn({
            let space = space.clone();
            async move {
                if many {
                    let load = |load: LoadMany<u64>| async move {
                        Ok::<_, Refused>(
                            load.keys().iter().map(|key| (*key, 5)).collect::<Vec<_>>(),
                        )
                    };
                    let mut answers = space.get_many_or_load(&[2, 1], load).await;
                    answers.remove(1).map(|value| *value)
                } else {
                    let load = |_| async { Ok::<_, Refused>(5) };
                    space.get_or_load(&1, load).await.map(|value| *value)
                }
            }
        });
        eventually("it waits for a permit", async || {
            let stats = terrace.stats().await;
            stats.underway >= 2 && stats.loads_running == 1
        })
        .await;
        let_others_run().await;
        let began = PausedClock::default();
        pass.add_permits(1);
        assert_eq!(ends("the load that holds the permit", outer).await.unwrap(), Ok(6));
        assert_eq!(queued.await.unwrap().unwrap(), 5);
        assert_eq!(began.elapsed(), Duration::ZERO, "many: {many}: nobody waited for a deadline");
        nothing_is_left(&terrace).await;
    }
}

/// What a loader has loaded anew without waiting for it is a load like others.
#[tokio::test]
async fn a_refresh_that_a_load_begins_needs_a_permit() {
    let clock = Arc::new(ManualClock::new());
    let terrace = Terrace::builder()
        .memory(Memory::bytes(1 << 20))
        .clock(Arc::clone(&clock) as _)
        .max_loads(2)
        .build()
        .await
        .unwrap();
    let space: Space<u64, u64> =
        terrace.space("space").ttl(10 * SECOND).jitter(0.0).build().unwrap();
    for key in 1..=20 {
        space.insert(&key, key).await.everywhere();
    }
    clock.advance(9 * SECOND);
    let (source, pass) = (Arc::new(Source::default()), Arc::new(Semaphore::new(0)));
    let inner = (space.clone(), Arc::clone(&source), Arc::clone(&pass));
    let load = |_| async move {
        let (space, source, pass) = inner;
        for key in 1..=20 {
            let (running, pass) = (Arc::clone(&source), Arc::clone(&pass));
            let load = |_| async move {
                let _running = running.enter();
                pass.acquire().await.unwrap().forget();
                Ok::<_, Refused>(0)
            };
            assert_eq!(*space.get_or_load(&key, load).await.unwrap(), key);
        }
        Ok::<_, Refused>(0)
    };
    space.get_or_load(&0, load).await.unwrap();
    eventually("they are begun", async || source.begun() >= 2).await;
    let_others_run().await;
    assert_eq!(source.most(), 2);
    pass.add_permits(20);
    nothing_is_left(&terrace).await;
    assert_eq!((source.begun(), source.most()), (20, 2));
}

// Cold restart in front of a limited source.

const CHILD: &str = "TERRACE_TEST_NODE";

/// What the source takes at once.
const SOURCE: usize = 50;

/// What a call of the source takes.
const CALL: Duration = ms(200);

/// A source that all processes share: how many are at it, and what they ask for.
#[derive(Default)]
struct Shared {
    running: AtomicUsize,
    most: AtomicUsize,
    is_over: AtomicBool,
    /// How often each key was asked for in this round.
    asked: Mutex<HashMap<u64, usize>>,
}

fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.is_over.load(Ordering::SeqCst) {
            return;
        }
        let (mut stream, shared) = (stream.unwrap(), Arc::clone(shared));
        std::thread::spawn(move || {
            let mut key = [0; 8];
            // A process that was killed asks nothing more.
            if stream.read_exact(&mut key).is_err() {
                return;
            }
            let running = shared.running.fetch_add(1, Ordering::SeqCst) + 1;
            shared.most.fetch_max(running, Ordering::SeqCst);
            *shared.asked.lock().unwrap().entry(u64::from_le_bytes(key)).or_default() += 1;
            std::thread::sleep(CALL);
            // It is over before its caller knows.
            shared.running.fetch_sub(1, Ordering::SeqCst);
            let _ = stream.write_all(&key);
        });
    }
}

/// A node: reads keys at random, so many a second, whether or not they are answered, and says
/// what came of each.
fn read_until_killed(order: &str) {
    let words: Vec<_> = order.splitn(5, ' ').collect();
    let number = |index: usize| words[index].parse::<u64>().unwrap();
    let (port, most, a_second, keys) = (number(0), number(1) as usize, number(2), number(3));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let terrace = Terrace::builder()
            .memory(Memory::bytes(64 << 20))
            .tier("disk", Disk::at(words[4]))
            .max_loads(most)
            .build()
            .await
            .unwrap();
        let space: Space<u64, u64> = terrace.space("space").forever().build().unwrap();
        println!("started");
        let mut tick = tokio::time::interval(SECOND / a_second as u32);
        loop {
            tick.tick().await;
            let space = space.clone();
            tokio::spawn(async move {
                let key = fastrand::u64(..keys);
                let load = |_| async move {
                    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                    let mut stream =
                        tokio::net::TcpStream::connect(("127.0.0.1", port as u16)).await?;
                    stream.write_all(&key.to_le_bytes()).await?;
                    stream.read_u64_le().await
                };
                // Callers do not wait for ever.
                let read = space.get_or_load(&key, load).patience(SECOND);
                let word = match read.await {
                    Ok(value) if *value != key => "wrong",
                    Ok(value) if value.source() == &terrace::Source::Loader => "loaded",
                    Ok(_) => "hit",
                    Err(LoadError::Waited(_)) => "left",
                    Err(_) => "failed",
                };
                println!("{word}");
            });
        }
    });
}

/// The nodes of a round, killed when they are dropped.
struct Nodes(Vec<Child>);

impl Nodes {
    fn start(orders: impl Iterator<Item = String>, said: &mpsc::Sender<String>) -> Self {
        let start = |order| {
            let test = "bulkhead::s12_a_cold_restart_in_front_of_a_limited_source";
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", test, "--nocapture"])
                .env(CHILD, order)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (lines, said) =
                (BufReader::new(child.stdout.take().unwrap()).lines(), said.clone());
            std::thread::spawn(move || {
                for line in lines.map_while(Result::ok) {
                    let _ = said.send(line);
                }
            });
            child
        };
        Self(orders.map(start).collect())
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in &mut self.0 {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

/// With the shared tier emptied: here that is a directory on disk.
#[test]
fn s12_a_cold_restart_in_front_of_a_limited_source() {
    if let Ok(order) = std::env::var(CHILD) {
        return read_until_killed(&order);
    }
    let (nodes, a_second) = (count(2, 8), count(400, 2_000));
    let keys = count(1_500, 5_000);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let shared = Arc::new(Shared::default());
    let server = std::thread::spawn({
        let shared = Arc::clone(&shared);
        move || serve(&listener, &shared)
    });
    // The first round is a start, each one after it a restart of what was killed under load.
    for round in 0..=count(1, 3) {
        let directory = tempfile::tempdir().unwrap();
        cold_start(&shared, directory.path(), (round, nodes), |path| {
            format!("{port} {} {} {keys} {}", SOURCE / nodes, a_second / nodes, path.display())
        });
        // What the killed have begun ends by itself.
        let clock = SystemClock::new();
        while shared.running.load(Ordering::SeqCst) > 0 {
            assert!(clock.elapsed() < 30 * SECOND, "the source never comes to rest");
            std::thread::yield_now();
        }
    }
    shared.is_over.store(true, Ordering::SeqCst);
    let _ = TcpStream::connect(("127.0.0.1", port));
    server.join().unwrap();
}

fn cold_start(
    shared: &Shared,
    directory: &Path,
    (round, nodes): (usize, usize),
    order: impl Fn(&Path) -> String,
) {
    shared.asked.lock().unwrap().clear();
    let (said, hear) = mpsc::channel();
    let _nodes = Nodes::start((0..nodes).map(|_| order(directory)), &said);
    for _ in 0..nodes {
        // Their own test harness speaks, too.
        while hear.recv_timeout(30 * SECOND).expect("a node starts") != "started" {}
    }
    let clock = SystemClock::new();
    let (mut hits, mut reads, mut failed) = (0, 0, 0);
    // How busy the source is while more than it takes is asked of it.
    let (mut samples, mut busy, mut sampled) = (0, 0, Duration::ZERO);
    loop {
        let now = clock.elapsed();
        assert!(now < 60 * SECOND, "round {round}: {hits} of the last {reads} reads are hits");
        if let Ok(word) = hear.recv_timeout(ms(5)) {
            match word.as_str() {
                "hit" => hits += 1,
                "loaded" | "left" => {}
                "failed" => failed += 1,
                "wrong" => panic!("round {round}: a wrong value"),
                _ => continue,
            }
            reads += 1;
        }
        // The first calls take their time to come, and with most keys there few are asked for.
        let asked = shared.asked.lock().unwrap().len();
        if now > sampled + ms(10) && (100..500).contains(&asked) {
            sampled = now;
            samples += 1;
            busy += shared.running.load(Ordering::SeqCst);
        }
        if reads == 400 {
            if hits >= reads * 95 / 100 {
                break;
            }
            (hits, reads) = (0, 0);
        }
    }
    let took = clock.elapsed();
    let most = shared.most.load(Ordering::SeqCst);
    assert!(most <= SOURCE, "round {round}: {most} at the source");
    let asked = shared.asked.lock().unwrap();
    let calls: usize = asked.values().sum();
    // Every value is stored and used: what is asked for twice is for nothing.
    let useful = asked.len() * 100 / calls;
    assert!(useful >= 80, "round {round}: {} keys in {calls} calls", asked.len());
    let share = busy * 100 / (samples.max(1) * (SOURCE / nodes * nodes));
    assert!(samples > 10 && share * useful / 100 >= 80, "round {round}: {share} % busy, {samples}");
    assert_eq!(failed, 0, "round {round}");
    println!(
        "round {round}: {took:?}, {calls} calls, {useful} % useful, {share} % busy, most {most}"
    );
}
