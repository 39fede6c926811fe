//! A bit flips in the directory of a disk tier while nobody has it open.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use terrace::{Disk, Space, Terrace};

use crate::support::{count, ends, random};

const KEYS: u64 = 30;

/// The value of a version of a key: all its bytes follow from both. Some are files, packed or not.
fn value(key: u64, version: u64) -> String {
    let length = if key.is_multiple_of(3) { 60_000 } else { 300 };
    let mut random = fastrand::Rng::with_seed(key << 8 | version);
    std::iter::repeat_with(|| random.alphanumeric()).take(length).collect()
}

async fn open(directory: &Path) -> (Terrace, Space<u64, String>) {
    let builder = Terrace::builder().tier("disk", Disk::at(directory));
    let terrace = builder.build().await.expect("what is damaged is set aside");
    let space = terrace.space("space").forever().build().unwrap();
    (terrace, space)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for file in fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let copied = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(copied.parent().unwrap()).unwrap();
        fs::copy(file, copied).unwrap();
    }
}

#[tokio::test]
async fn d4_flipped_bits_of_a_disk_tier() {
    let mut random = random("bits");
    let original = tempfile::tempdir().unwrap();
    let (terrace, space) = open(original.path()).await;
    for key in 0..KEYS {
        let _ = space.insert(&key, value(key, 0)).await.unwrap();
        let _ = space.insert(&key, value(key, 1)).await.unwrap();
    }
    // With a log that is not in the database yet.
    let left = tempfile::tempdir().unwrap();
    copy(original.path(), left.path());
    assert!(terrace.close().await);
    let log = left.path().join("terrace.db-wal");
    assert!(fs::metadata(&log).unwrap().len() > 100_000, "{:?}", fs::metadata(&log));
    // Made anew from the log by whoever opens it first.
    fs::remove_file(left.path().join("terrace.db-shm")).unwrap();

    let (mut set_aside, mut right, mut missed) = (0, 0, 0);
    let mut flipped = HashSet::new();
    for bit in 0..count(250, 5_000) {
        for from in [original.path(), left.path()] {
            let directory = tempfile::tempdir().unwrap();
            let directory = directory.path();
            copy(from, directory);
            // The database as often as all files of values.
            let mut files: Vec<_> = files(directory)
                .into_iter()
                .filter(|file| fs::metadata(file).unwrap().len() > 0)
                .collect();
            files.sort_by_key(|file| file.parent() != Some(directory));
            let inside = files.iter().filter(|file| file.parent() == Some(directory)).count();
            let among = if random.bool() { inside } else { files.len() };
            let file = &files[random.usize(..among)];
            let mut bytes = fs::read(file).unwrap();
            let at = random.usize(..bytes.len());
            bytes[at] ^= 1 << random.u8(..8);
            fs::write(file, bytes).unwrap();
            let name = file.strip_prefix(directory).unwrap();
            flipped.insert(name.components().next().unwrap().as_os_str().to_owned());

            let what = format!("bit {bit}: {} at {at}", name.display());
            let (terrace, space) = ends(&what, open(directory)).await;
            for key in 0..KEYS {
                match space.get(&key).await.expect("a read is no error").as_deref() {
                    Some(found) => {
                        // In a log that ends early is what was there before.
                        let is_right = *found == value(key, 1);
                        let is_before = from == left.path() && *found == value(key, 0);
                        assert!(is_right || is_before, "{what}: {key}");
                        right += 1;
                    }
                    None => missed += 1,
                }
            }
            for key in 0..KEYS {
                let load = |_| async move { Ok::<_, std::io::Error>(value(key, 2)) };
                let loaded = ends(&what, space.get_or_load(&key, load)).await.unwrap();
                assert!((0..3).any(|version| *loaded == value(key, version)), "{what}: {key}");
            }
            terrace.close().await;
            set_aside += u32::from(directory.join("terrace.db.damaged-1").exists());
        }
    }
    println!("{set_aside} set aside; {right} values right, {missed} missed; in {flipped:?}");
    assert!(right > missed && missed > 0, "{right} right, {missed} missed");
    assert_eq!(flipped.len(), 3, "the database, its log, and files of values");
}
