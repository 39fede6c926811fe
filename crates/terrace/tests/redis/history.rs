//! Histories: four nodes read and change many keys through memory and what they share, and no
//! read sees what no order of their calls allows.
//!
//! What a node changes it sees at once. What others change it may see later, by the time that an
//! invalidation takes to reach it: each node's reads are judged by a history in which the calls of
//! the others end so much later.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use terrace_test::History;
use terrace_test::history::{Event, Seen};
use terrace_test::rig::RedisServer;
use tokio::task::JoinSet;

use crate::play::{self, MISS, NODES};
use crate::source::Source;
use crate::support::{SECOND, count, limit, ms, random};
use crate::testnode::{Make, TAGS};

/// So little that most of what is read comes from Redis.
const MEMORY: u64 = 64 << 10;

struct Line {
    what: String,
    key: u64,
    version: u64,
    begin: u64,
    end: Option<u64>,
}

fn lines(file: &Path) -> Vec<Line> {
    let read = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        let number = |index: usize| words[index].parse::<u64>().unwrap();
        let end = Some(number(4)).filter(|end| *end > 0);
        Line { what: words[0].into(), key: number(1), version: number(2), begin: number(3), end }
    };
    std::fs::read_to_string(file).unwrap().lines().map(read).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c12_no_node_reads_what_no_order_of_the_calls_of_all_allows() {
    let (server, truth) =
        (RedisServer::start().await.unwrap(), RedisServer::start().await.unwrap());
    let source = Source::of(&truth);
    let make = Make::over(&server.url(), &source);
    let (calls, keys) = (count(200_000, 10_000_000), count(10_000, 200_000));
    play_and_judge(make, &source, Fleet { nodes: NODES, calls, keys, late: limit(SECOND) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d8_no_impossible_read_by_processes_that_share_a_directory() {
    let (truth, directory) = (RedisServer::start().await.unwrap(), tempfile::tempdir().unwrap());
    let source = Source::of(&truth);
    let make = Make::on(directory.path(), &source).patient();
    let (nodes, calls, keys) = (count(2, NODES), count(40_000, 1_000_000), count(2_000, 50_000));
    // Far more than the time between two looks at the ledger.
    let late = limit(ms(200));
    play_and_judge(make, &source, Fleet { nodes, calls, keys, late }).await;
}

/// Who plays, how much, and how late what one does may reach the others.
struct Fleet {
    nodes: u64,
    calls: u64,
    keys: u64,
    late: Duration,
}

async fn play_and_judge(make: Make, source: &Source, fleet: Fleet) {
    let Fleet { nodes: count, calls, keys, late: most } = fleet;
    let (make, directory) = (make.memory(MEMORY), tempfile::tempdir().unwrap());
    let mut random = random("history of a fleet");
    let (mut playing, mut nodes) = (JoinSet::new(), Vec::new());
    for number in 0..count {
        let (node, seed) = (Arc::new(make.start().await), random.u64(..));
        let file = directory.path().join(number.to_string());
        let question =
            format!("play history {seed} {} {keys} 10 {number} {}", calls / count, file.display());
        nodes.push((Arc::clone(&node), question));
    }
    for (node, question) in nodes {
        playing.spawn(async move { node.ask(&question).await.unwrap().text });
    }
    assert!(playing.join_all().await.iter().all(|settled| settled != "0"));

    let told: Vec<_> =
        (0..count).map(|node| lines(&directory.path().join(node.to_string()))).collect();
    let late = most.as_nanos() as u64;
    let mut judged = (0, 0, 0, 0);
    for node in 0..told.len() {
        let history = History::new();
        for key in 0..keys {
            history.recorded(key, 1, Some(2), Event::Write(Some(1)));
        }
        for (other, lines) in told.iter().enumerate() {
            let is_own = other == node;
            for line in lines {
                let heard = line.end.map(|end| if is_own { end } else { end + late });
                match &*line.what {
                    play::READ => {
                        let seen = match line.version {
                            MISS => Seen::Miss,
                            0 => Seen::NotFound,
                            version => Seen::Version(version),
                        };
                        if is_own {
                            history.recorded(line.key, line.begin, line.end, Event::Read(seen));
                        }
                    }
                    play::WRITE => {
                        let version = Some(line.version).filter(|version| *version > 0);
                        history.recorded(line.key, line.begin, line.end, Event::Write(version));
                    }
                    play::INSERT => {
                        history.recorded(line.key, line.begin, heard, Event::Insert(line.version));
                    }
                    play::INVALIDATE => {
                        history.recorded(line.key, line.begin, heard, Event::Invalidate);
                    }
                    play::TAG => {
                        let tagged = line.key;
                        let picks = move |key: &u64| key % TAGS == tagged;
                        history.recorded_where(picks, line.begin, heard);
                    }
                    _ => history.recorded_where(|_| true, line.begin, heard),
                }
            }
        }
        let found = history.check().unwrap_or_else(|found| panic!("node {node}: {found}"));
        judged.0 += found.reads;
        judged.1 += found.versions;
        judged.2 += found.not_found;
        judged.3 += found.misses;
    }
    let (reads, versions, not_found, misses) = judged;
    let begun = source.begun().await;
    let begin = told.iter().flatten().map(|line| line.begin).min().unwrap();
    let end = told.iter().flatten().filter_map(|line| line.end).max().unwrap();
    let took = Duration::from_nanos(end - begin);
    println!("{reads} reads in {took:?}, {begun} loads");
    assert!(took > 4 * most / 3, "so short that most reads may have seen anything: {took:?}");
    for (what, happened) in [
        ("versions were seen", versions),
        ("readers heard of nothing", not_found),
        ("reads missed", misses),
        ("loads", begun),
    ] {
        println!("{happened} times: {what}");
        assert!(happened * 1_000 > calls, "only {happened} times: {what}");
    }
}
