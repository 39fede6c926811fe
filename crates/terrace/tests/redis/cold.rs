//! A cold restart in front of a source that takes no more than so much at once.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use terrace::clock::{Clock as _, SystemClock};
use terrace::{LoadError, Memory, Redis, Space, Terrace};
use terrace_test::rig::RedisServer;

use crate::support::{SECOND, count, ms};

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
            .tier("redis", Redis::url(words[4]))
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
            let test = "cold::s12_a_cold_restart_in_front_of_a_limited_source";
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

/// All nodes are killed and the server is emptied; their demand is back the moment they are.
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
    let source = std::thread::spawn({
        let shared = Arc::clone(&shared);
        move || serve(&listener, &shared)
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let redis = runtime.block_on(RedisServer::start()).unwrap();
    let order = format!("{port} {} {} {keys} {}", SOURCE / nodes, a_second / nodes, redis.url());
    // The first round is a start, each one after it a restart of what was killed under load.
    for round in 0..=count(1, 3) {
        cold_start(&shared, &order, round, nodes);
        // What the killed have begun ends by itself.
        let clock = SystemClock::new();
        while shared.running.load(Ordering::SeqCst) > 0 {
            assert!(clock.elapsed() < 30 * SECOND, "the source never comes to rest");
            std::thread::yield_now();
        }
        runtime.block_on(redis.expect(["FLUSHALL"])).unwrap();
    }
    shared.is_over.store(true, Ordering::SeqCst);
    let _ = TcpStream::connect(("127.0.0.1", port));
    source.join().unwrap();
}

fn cold_start(shared: &Shared, order: &str, round: usize, nodes: usize) {
    shared.asked.lock().unwrap().clear();
    let (said, hear) = mpsc::channel();
    let _nodes = Nodes::start((0..nodes).map(|_| order.to_owned()), &said);
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
