//! Clocks: time is an argument, and only one file reads it.

use std::path::Path;

use crate::unsafe_code::{root, sources, words};

/// What only clock.rs may name: whoever has no such value cannot ask it for the time.
const CLOCKS: [&str; 2] = ["Instant", "SystemTime"];

/// What asks the operating system for the time, or turns a file's time into an age.
const READINGS: [&str; 2] = ["now", "elapsed"];

#[test]
fn nothing_but_clock_rs_reads_a_clock() {
    let mut readers = Vec::new();
    let mut looked_at = 0;
    for file in sources(&root().join("crates")) {
        let inside = file.strip_prefix(root().join("crates")).unwrap();
        if inside.components().nth(1).is_none_or(|part| part.as_os_str() != "src") {
            continue;
        }
        looked_at += 1;
        let text = std::fs::read_to_string(&file).unwrap();
        let words = words(&text);
        let is_named = words.iter().any(|word| CLOCKS.contains(&&*word.text));
        let is_read = words.iter().any(|word| READINGS.contains(&&*word.text));
        let calls = words
            .windows(2)
            .any(|pair| CLOCKS.contains(&&*pair[0].text) && READINGS.contains(&&*pair[1].text));
        if calls || (is_named && is_read) {
            readers.push(inside.to_owned());
        }
    }
    assert!(looked_at > 40, "only {looked_at} files: are these the sources?");
    assert_eq!(readers, [Path::new("terrace/src/clock.rs")]);
}
