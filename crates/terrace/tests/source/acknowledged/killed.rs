//! Killed at a random moment.

use std::io::{BufRead as _, BufReader};
use std::process::Command;

use super::{Acknowledged, Order, child, has_all, is_in_order, note, read, recover, write_behind};
use crate::support::{count, random};

#[test]
fn d2_killed_while_writing_behind() {
    if let Some(order) = Order::given() {
        return write_behind(&order);
    }
    let directory = tempfile::tempdir().unwrap();
    let mut random = random("kills");
    let mut acknowledged = Acknowledged::new();
    let mut writes = 0;
    for kill in 0..count(10, 200) as u64 {
        let order = Order {
            first: kill * 1_000_000,
            writes: u64::MAX,
            tasks: 4,
            longest: 2_000,
            directory: directory.path().into(),
        };
        let mut program = Command::new(std::env::current_exe().unwrap());
        child(&mut program, "acknowledged::killed::d2_killed_while_writing_behind", &order);
        let mut child = program.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "started"), "kill {kill}");
        let levels = ["journal", "synced"];
        for _ in 0..random.usize(0..500) {
            let line = lines.next().expect("the child goes on").unwrap();
            writes += usize::from(note(&mut acknowledged, &line, &levels));
        }
        child.kill().unwrap();
        // What it said before it died counts.
        for line in lines.map_while(Result::ok) {
            writes += usize::from(note(&mut acknowledged, &line, &levels));
        }
        assert!(!child.wait().unwrap().success());
        // Of two kills, one is recovered from by the next process that writes.
        if kill % 2 == 1 {
            recover(directory.path());
            let log = std::fs::read_to_string(directory.path().join("source.log")).unwrap();
            let log = read(&log);
            is_in_order(&log, &format!("kill {kill}"));
            has_all(&log, &acknowledged, &format!("kill {kill}"));
        }
    }
    assert!(writes > 500, "{writes}");
}
