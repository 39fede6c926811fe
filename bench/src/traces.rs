//! A trace: what a real program asked its storage for, one request after the other.

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, ensure};

/// What was asked for. Objects have the numbers from 0 on, in the order in which they first come.
#[derive(Debug, Default)]
pub struct Trace {
    pub requests: Vec<u32>,
    /// How many objects there are.
    pub unique: usize,
    /// The bytes of each object, as its first request has it; empty if they are not known.
    pub sizes: Vec<u32>,
}

/// A file that holds a trace.
#[derive(Clone, Debug)]
pub struct File {
    pub name: String,
    pub path: PathBuf,
    format: Format,
}

/// How requests are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// `start count …`: one request for each block from `start` on, `count` of them.
    Ranges,
    /// A number a line, first of all; lines that begin otherwise do not count.
    Numbers,
    /// `time id size` a line.
    TimeIdSize,
    BigEndian32,
    BigEndian64,
    /// Little-endian `u32` time, `u64` id, `u32` size, `i64` next request, packed: the format of
    /// libCacheSim.
    Oracle,
}

/// Well-known traces, by how their file is called.
const KNOWN: &[(&str, &str, Format)] = &[
    ("OLTP.lis", "OLTP", Format::Ranges),
    ("P3.lis", "P3", Format::Ranges),
    ("scarab_scarab-recs.trace", "scarab", Format::BigEndian64),
    ("corda_trace_vaultservice", "corda", Format::BigEndian64),
    ("cache2k_orm-busy.trace", "orm-busy", Format::BigEndian32),
    ("cache2k_web07.trace", "web07", Format::BigEndian32),
    ("adapt_size_request.trace", "adapt_size", Format::TimeIdSize),
    ("cloudPhysicsIO.oracleGeneral.bin", "cloudPhysics", Format::Oracle),
    ("tencentBlock.ns1326.sample.csv", "tencent-ns1326", Format::TimeIdSize),
    ("tencentBlock.ns2706.sample.csv", "tencent-ns2706", Format::TimeIdSize),
    ("loop.trace", "loop", Format::Numbers),
    ("2_pools.trace", "2_pools", Format::Numbers),
    ("multi1.trace", "multi1", Format::Numbers),
];

/// What other files hold, by how their name ends.
const ENDINGS: &[(&str, Format)] = &[
    (".lis", Format::Ranges),
    (".oracleGeneral.bin", Format::Oracle),
    (".oracleGeneral", Format::Oracle),
    (".csv", Format::TimeIdSize),
    (".tsv", Format::TimeIdSize),
    (".trace", Format::Numbers),
];

/// The traces in a folder: the well-known ones first. Other files are passed over.
///
/// # Errors
/// The folder cannot be read.
pub fn in_folder(folder: &Path) -> Result<Vec<File>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(folder)
        .with_context(|| format!("cannot read the folder {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        if let Some((place, name, format)) = name.as_deref().and_then(recognized) {
            found.push((place, File { name, path, format }));
        }
    }
    found.sort_by(|one, other| (one.0, &one.1.name).cmp(&(other.0, &other.1.name)));
    Ok(found.into_iter().map(|(_, file)| file).collect())
}

/// What a file holds, by its name: its place in the order, its name and its format.
fn recognized(file: &str) -> Option<(usize, String, Format)> {
    let plain = COMPRESSIONS.iter().find_map(|end| file.strip_suffix(end)).unwrap_or(file);
    if let Some(place) = KNOWN.iter().position(|(known, ..)| *known == plain) {
        let (_, name, format) = KNOWN[place];
        return Some((place, name.to_owned(), format));
    }
    let (end, format) = ENDINGS.iter().find(|(end, _)| plain.ends_with(end))?;
    let name = plain.strip_suffix(end).unwrap_or(plain);
    Some((KNOWN.len(), name.to_owned(), *format))
}

const COMPRESSIONS: &[&str] = &[".zst", ".gz", ".xz"];

impl File {
    /// Reads so many requests of it at most.
    ///
    /// # Errors
    /// It cannot be read, or holds something else.
    pub fn read(&self, most: usize) -> Result<Trace> {
        let bytes =
            unpacked(&self.path).with_context(|| format!("cannot read {}", self.path.display()))?;
        let trace = Trace::parse(&bytes, self.format, most);
        ensure!(!trace.requests.is_empty(), "there are no requests in {}", self.path.display());
        Ok(trace)
    }
}

fn unpacked(path: &Path) -> Result<Vec<u8>> {
    let packed = fs::read(path)?;
    let mut bytes = Vec::new();
    match path.extension().and_then(|end| end.to_str()) {
        Some("zst") => bytes = zstd::decode_all(packed.as_slice())?,
        Some("gz") => {
            flate2::read::MultiGzDecoder::new(packed.as_slice()).read_to_end(&mut bytes)?;
        }
        Some("xz") => {
            lzma_rust2::XzReader::new(packed.as_slice(), true).read_to_end(&mut bytes)?;
        }
        _ => bytes = packed,
    }
    Ok(bytes)
}

impl Trace {
    fn parse(bytes: &[u8], format: Format, most: usize) -> Self {
        let mut gathered = Gathered::default();
        match format {
            Format::BigEndian32 => {
                for word in bytes.as_chunks().0.iter().take(most) {
                    gathered.add(u32::from_be_bytes(*word).into(), None);
                }
            }
            Format::BigEndian64 => {
                for word in bytes.as_chunks().0.iter().take(most) {
                    gathered.add(u64::from_be_bytes(*word), None);
                }
            }
            Format::Oracle => {
                for record in bytes.chunks_exact(24).take(most) {
                    let (id, rest) = record[4..].split_first_chunk().unwrap_or((&[0; 8], &[]));
                    let size = rest.first_chunk().unwrap_or(&[0; 4]);
                    gathered.add(u64::from_le_bytes(*id), Some(u32::from_le_bytes(*size)));
                }
            }
            Format::Ranges | Format::Numbers | Format::TimeIdSize => {
                for line in bytes.split(|byte| *byte == b'\n') {
                    if gathered.trace.requests.len() >= most {
                        break;
                    }
                    gathered.add_line(line, format, most);
                }
            }
        }
        gathered.trace.unique = gathered.numbers.len();
        gathered.trace
    }
}

/// A trace in the making.
#[derive(Default)]
struct Gathered {
    trace: Trace,
    numbers: HashMap<u64, u32>,
}

impl Gathered {
    fn add(&mut self, id: u64, size: Option<u32>) {
        let next = self.numbers.len() as u32;
        let number = *self.numbers.entry(id).or_insert(next);
        if number == next
            && let Some(size) = size
        {
            self.trace.sizes.push(size.max(1));
        }
        self.trace.requests.push(number);
    }

    fn add_line(&mut self, line: &[u8], format: Format, most: usize) {
        let line = String::from_utf8_lossy(line);
        let mut words = line.split([' ', '\t', ',', '\r']).filter(|word| !word.is_empty());
        match format {
            Format::Ranges => {
                let (Some(start), Some(count)) =
                    (number::<u64>(words.next()), number(words.next()))
                else {
                    return;
                };
                let room = (most - self.trace.requests.len()) as u64;
                for block in start..start + room.min(count) {
                    self.add(block, None);
                }
            }
            Format::TimeIdSize => {
                let (id, size) = (number(words.nth(1)), number(words.next()));
                if let (Some(id), Some(size)) = (id, size) {
                    self.add(id, Some(size));
                }
            }
            _ => {
                if let Some(id) = number(words.next()) {
                    self.add(id, None);
                }
            }
        }
    }
}

fn number<T: FromStr>(word: Option<&str>) -> Option<T> {
    word?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(bytes: &[u8], format: Format) -> (Vec<u32>, usize, Vec<u32>) {
        let trace = Trace::parse(bytes, format, usize::MAX);
        (trace.requests, trace.unique, trace.sizes)
    }

    #[test]
    fn every_format_is_understood() {
        let none = Vec::new();
        let ranges = parsed(b"7 3 0 0\n8 1 0 1\n", Format::Ranges);
        assert_eq!(ranges, (vec![0, 1, 2, 1], 3, none.clone()));
        let numbers = parsed(b"5\n*\n6\r\n 5\n", Format::Numbers);
        assert_eq!(numbers, (vec![0, 1, 0], 2, none.clone()));
        let sizes = parsed(b"1\t5\t100\n2\t6\t0\n3\t5\t7\n", Format::TimeIdSize);
        assert_eq!(sizes, (vec![0, 1, 0], 2, vec![100, 1]));
        let words = parsed(&[0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 9], Format::BigEndian32);
        assert_eq!(words, (vec![0, 1, 0], 2, none.clone()));
        let long = parsed(&[0, 0, 0, 9, 0, 0, 0, 8], Format::BigEndian64);
        assert_eq!(long, (vec![0], 1, none));
        let mut record = [0; 24];
        (record[4], record[12], record[13]) = (1, 2, 1);
        assert_eq!(parsed(&record.repeat(2), Format::Oracle), (vec![0, 0], 1, vec![258]));
    }

    #[test]
    fn no_more_is_read_than_asked_for() {
        let requests = |bytes: &[u8], format| Trace::parse(bytes, format, 2).requests.len();
        assert_eq!(requests(b"0 100", Format::Ranges), 2);
        assert_eq!(requests(b"1\n2\n3\n", Format::Numbers), 2);
        assert_eq!(requests(&[0; 100], Format::Oracle), 2);
    }

    #[test]
    fn files_are_known_by_their_names() {
        let name = |file: &str| recognized(file).map(|(_, name, format)| (name, format));
        assert_eq!(name("OLTP.lis.zst"), Some(("OLTP".to_owned(), Format::Ranges)));
        assert_eq!(name("corda_trace_vaultservice.gz").unwrap().0, "corda");
        assert_eq!(name("mine.csv.xz"), Some(("mine".to_owned(), Format::TimeIdSize)));
        assert_eq!(name("README.md"), None);
    }
}
