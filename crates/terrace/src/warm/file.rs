//! The **snapshot**: a file with the keys that were hot, by their spaces, the hottest first. Its
//! bytes are in docs/format.md.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use crate::key::{KeyBytes, LARGEST_KEY};

/// For each space, what its stored keys begin with, and its hot keys.
pub(super) type Snapshot = Vec<(Box<str>, Vec<KeyBytes>)>;

/// What a snapshot begins with.
const MAGIC: [u8; 4] = *b"TRRW";

/// The version of the format.
const FORMAT: u8 = 1;

/// Bytes of the largest snapshot.
const LARGEST: usize = 16 << 20;

/// Bytes of the checksum at its end.
const CHECKSUM: usize = 8;

/// What is in the file; nothing if it is not there.
pub(super) fn read(path: &Path) -> io::Result<Snapshot> {
    let file = match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Snapshot::default()),
        other => other?,
    };
    let mut bytes = Vec::new();
    file.take(LARGEST as u64 + 1).read_to_end(&mut bytes)?;
    decode(&bytes).ok_or_else(|| {
        let what = match bytes.strip_prefix(&MAGIC) {
            None => "it is not a snapshot",
            Some([format, ..]) if *format != FORMAT => "it is of another format",
            Some(_) => "it is damaged",
        };
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}

/// Replaces the file in one step; it is on the device before it has its name. What is no snapshot
/// is not replaced.
pub(super) fn write(path: &Path, snapshot: Snapshot, random: u64) -> io::Result<()> {
    if !is_ours(path)? {
        let what = "a file is in the way that is not a snapshot: choose another path";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{random:016x}"));
    let temporary = PathBuf::from(name);
    let written =
        write_new(&temporary, &encode(snapshot)).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_data()
}

/// Opens what is there, if it is a file: a pipe in its place would be waited for.
fn open(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    File::open(path)
}

/// Whether the file may be replaced: it is one of ours, damaged perhaps, or empty, or not there.
fn is_ours(path: &Path) -> io::Result<bool> {
    let file = match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        other => other?,
    };
    let mut begin = Vec::new();
    file.take(MAGIC.len() as u64).read_to_end(&mut begin)?;
    Ok(begin.is_empty() || begin == MAGIC)
}

fn encode(snapshot: Snapshot) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.push(FORMAT);
    for (space, keys) in snapshot {
        // As many as there is room for, and the number of those.
        let room = LARGEST.saturating_sub(bytes.len() + 2 * LENGTH + space.len() + CHECKSUM);
        let mut taken = 0;
        let fitting = keys.iter().take_while(|key| {
            taken += LENGTH + key.len();
            taken <= room
        });
        let keys: Vec<_> = fitting.collect();
        if keys.is_empty() {
            continue;
        }
        push_part(&mut bytes, space.as_bytes());
        push_length(&mut bytes, keys.len());
        keys.into_iter().for_each(|key| push_part(&mut bytes, key));
    }
    bytes.extend(xxh3_64(&bytes).to_le_bytes());
    bytes
}

/// Bytes of a length.
const LENGTH: usize = 4;

fn push_length(bytes: &mut Vec<u8>, length: usize) {
    // Nothing in here is as long as 4 GiB.
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

fn push_part(bytes: &mut Vec<u8>, part: &[u8]) {
    push_length(bytes, part.len());
    bytes.extend_from_slice(part);
}

fn decode(bytes: &[u8]) -> Option<Snapshot> {
    if bytes.len() > LARGEST {
        return None;
    }
    let (content, checksum) = bytes.split_last_chunk::<CHECKSUM>()?;
    if xxh3_64(content) != u64::from_le_bytes(*checksum) {
        return None;
    }
    let mut left = content.strip_prefix(&MAGIC)?.strip_prefix(&[FORMAT])?;
    let mut snapshot = Snapshot::default();
    while !left.is_empty() {
        let space = std::str::from_utf8(part(&mut left)?).ok()?.into();
        // Not trusted to make room for: each key takes some of what is left.
        let count = length(&mut left)?;
        let mut keys = Vec::new();
        for _ in 0..count {
            let key = part(&mut left).filter(|key| key.len() <= LARGEST_KEY)?;
            keys.push(KeyBytes::from_slice(key));
        }
        snapshot.push((space, keys));
    }
    Some(snapshot)
}

fn length(left: &mut &[u8]) -> Option<usize> {
    let (length, rest) = left.split_first_chunk::<LENGTH>()?;
    *left = rest;
    usize::try_from(u32::from_le_bytes(*length)).ok()
}

fn part<'a>(left: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = length(left)?;
    let (part, rest) = left.split_at_checked(length)?;
    *left = rest;
    Some(part)
}

#[cfg(test)]
mod tests {
    use super::{CHECKSUM, LARGEST, LARGEST_KEY, Snapshot, decode, encode};
    use crate::key::KeyBytes;
    use xxhash_rust::xxh3::xxh3_64;

    fn snapshot(spaces: &[(&str, &[&[u8]])]) -> Snapshot {
        let keys = |keys: &[&[u8]]| keys.iter().map(|key| KeyBytes::from_slice(key)).collect();
        spaces.iter().map(|(space, found)| ((*space).into(), keys(found))).collect()
    }

    #[test]
    fn what_is_written_is_read_in_its_order() {
        let noted = snapshot(&[("1::a:0:", &[b"hot", b"", b"cold \xff"]), ("1:t:b:1:", &[b"7"])]);
        assert_eq!(decode(&encode(noted.clone())), Some(noted));
        assert_eq!(decode(&encode(Snapshot::default())), Some(Snapshot::default()));
    }

    #[test]
    fn damage_is_told_wherever_it_is() {
        let bytes = encode(snapshot(&[("1::a:0:", &[b"one", b"two"])]));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                assert_eq!(decode(&bytes), None, "bit {bit} of {at}");
            }
            assert_eq!(decode(&bytes[..at]), None, "cut off at {at}");
        }
    }

    #[test]
    fn lengths_that_lie_cost_nothing() {
        let whole = encode(snapshot(&[("1::a:0:", &[b"one", b"two"])]));
        let content = &whole[..whole.len() - CHECKSUM];
        for at in 5..content.len() - 4 {
            let mut bytes = content.to_vec();
            bytes[at..at + 4].fill(0xff);
            bytes.extend(xxh3_64(&bytes).to_le_bytes());
            // Where it is no length it may be part of a name or a key.
            if let Some(found) = decode(&bytes) {
                assert!(found.iter().all(|(_, keys)| keys.len() <= 2), "{found:?}");
            }
        }
    }

    #[test]
    fn it_has_a_bound() {
        let key = vec![b'k'; LARGEST_KEY];
        let many: Vec<&[u8]> = (0..400).map(|_| &*key).collect();
        let bytes = encode(snapshot(&[("1::a:0:", &many), ("1::b:0:", &[b"one"])]));
        assert!(bytes.len() <= LARGEST && bytes.len() > LARGEST - 2 * LARGEST_KEY);
        let found = decode(&bytes).unwrap();
        assert_eq!(found.len(), 2, "what is small finds room");
        assert_eq!(found[0].1.len(), LARGEST / (LARGEST_KEY + 4));
    }
}
