//! Writes down which versions are compared: those of the lock file, and the compiler's.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=Cargo.lock");
    println!("cargo::rerun-if-changed=build.rs");

    let lock = fs::read_to_string("Cargo.lock").expect("bench/Cargo.lock can be read");
    let mut code = String::from("const LOCKED: &[(&str, &str)] = &[\n");
    let mut name = None;
    for line in lock.lines() {
        if let Some(quoted) = line.strip_prefix("name = ") {
            name = Some(quoted);
        } else if let Some(version) = line.strip_prefix("version = ")
            && let Some(name) = name.take()
        {
            code.push_str(&format!("    ({name}, {version}),\n"));
        }
    }
    code.push_str("];\n");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::write(Path::new(&out).join("locked.rs"), code).expect("the build folder can be written");

    let compiler = env::var("RUSTC").expect("cargo sets RUSTC");
    let answer = Command::new(compiler).arg("--version").output().expect("rustc answers");
    // "rustc 1.95.0 (59807616e 2026-04-14)"
    let answer = String::from_utf8_lossy(&answer.stdout);
    println!("cargo::rustc-env=COMPILER={}", answer.split(' ').nth(1).unwrap_or("unknown"));
}
