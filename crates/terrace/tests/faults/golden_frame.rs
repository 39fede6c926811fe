//! What is written is what docs/format.md says: frames, keys and tables.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use terrace::clock::WallTime;
use terrace::frame::{Header, decode, encode, stamp_behind, stamped, to_be_stamped};
use terrace::key::StoredKey;
use terrace::ledger::Stamp;
use terrace::{Codec, Compression, Disk, Terrace, Tier};
use terrace_test::MapStore;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const LIMIT: usize = 1 << 20;

fn document() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/format.md");
    std::fs::read_to_string(path).expect("docs/format.md describes the format")
}

/// The lines of the fenced block that begins with this line.
fn block(fence: &str) -> Vec<String> {
    let fence = format!("```{fence}");
    let document = document();
    let lines = document.lines().skip_while(|line| *line != fence).skip(1);
    let lines: Vec<_> = lines.take_while(|line| *line != "```").map(str::to_owned).collect();
    assert!(!lines.is_empty(), "docs/format.md has no block {fence}");
    lines
}

/// The bytes of a documented frame: what stands before `|`, as hexadecimal.
fn documented(name: &str) -> Bytes {
    let byte = |digits: &str| u8::from_str_radix(digits, 16).expect("two hexadecimal digits");
    let lines = block(&format!("frame {name}"));
    let bytes = lines.iter().filter_map(|line| line.split('|').next());
    bytes.flat_map(str::split_whitespace).map(byte).collect()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes
        .chunks(16)
        .map(|row| row.iter().map(|byte| format!("{byte:02x} ")).collect::<String>() + "\n")
        .collect()
}

fn every_field() -> (Header, &'static [u8]) {
    let header = Header {
        codec: Codec::Json,
        created: WallTime::from_millis(1_767_225_600_000),
        expires: Some(WallTime::from_millis(1_767_225_900_000)),
        stale_until: Some(WallTime::from_millis(1_767_229_500_000)),
        stamp: Stamp { incarnation: 0x0123_4567_89ab_cdef, number: 42 },
        last_modified: Some(WallTime::from_millis(1_766_966_400_000)),
        version: Some("v7".into()),
        tags: Arc::from([Arc::from("acme:country%3ACH"), Arc::from("acme:eu")]),
        dependencies: Arc::from([Arc::from("acme:region:47")]),
        key: Bytes::from_static(b"LSZH"),
    };
    (header, br#"{"name":"Kloten"}"#)
}

fn smallest() -> Header {
    Header {
        codec: Codec::Raw,
        created: WallTime::from_millis(0),
        expires: None,
        stale_until: None,
        stamp: Stamp::default(),
        last_modified: None,
        version: None,
        tags: Arc::default(),
        dependencies: Arc::default(),
        key: Bytes::new(),
    }
}

#[test]
fn a_frame_that_is_stamped_is_the_one_that_had_that_stamp() {
    let stamp = Stamp { incarnation: u64::MAX, number: 7 };
    for (header, value) in [every_field(), (smallest(), b"".as_slice())] {
        let frame = encode(&header, value.to_vec(), Compression::default());
        let expected = encode(&Header { stamp, ..header }, value.to_vec(), Compression::default());
        assert_eq!(stamped(&frame, stamp), Ok(expected));
        for byte in 0..frame.len() {
            let mut damaged = frame.to_vec();
            damaged[byte] ^= 1;
            assert!(stamped(&damaged.into(), stamp).is_err(), "byte {byte} of {}", frame.len());
        }
        assert!(stamped(&frame.slice(..frame.len() - 1), stamp).is_err());
    }
}

#[test]
fn a_frame_with_its_stamp_behind_is_as_documented() {
    let stamp = Stamp { incarnation: 0x0123_4567_89ab_cdef, number: 42 };
    let frame = encode(&smallest(), Vec::new(), Compression::default());
    let open = to_be_stamped(&frame).unwrap();
    let written = Bytes::from([&*open, &stamp_behind(stamp)].concat());
    assert_eq!(hexadecimal(&written), hexadecimal(&documented("stamped-behind")));
    assert_eq!(decode(&written, LIMIT).unwrap().header, Header { stamp, ..smallest() });
}

#[test]
fn a_stamp_behind_a_frame_counts_and_every_flipped_bit_is_found() {
    let stamp = Stamp { incarnation: 1 << 63 | 5, number: u64::MAX };
    let (header, value) = every_field();
    let frame = encode(&header, value.to_vec(), Compression::default());
    let open = to_be_stamped(&frame).unwrap();
    assert!(decode(&open, LIMIT).is_err(), "nobody has stamped it yet");
    assert!(stamped(&open, stamp).is_err() && to_be_stamped(&open).is_err());
    let whole = [&*open, &stamp_behind(stamp)].concat();
    let read = decode(&whole.clone().into(), LIMIT).unwrap();
    let payload = read.value().unwrap();
    assert_eq!((read.header, &*payload), (Header { stamp, ..header }, value));
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&damaged.into(), LIMIT).is_err(), "bit {bit}");
    }
    for length in 0..whole.len() {
        assert!(decode(&whole[..length].to_vec().into(), LIMIT).is_err(), "{length} bytes");
    }
}

#[track_caller]
fn is_written_and_read(name: &str, header: &Header, value: &[u8]) {
    let written = encode(header, value.to_vec(), Compression::default());
    let documented = documented(name);
    assert_eq!(hexadecimal(&written), hexadecimal(&documented), "{name}: written, documented");
    let frame = decode(&documented, LIMIT).unwrap();
    assert_eq!(frame.header, *header);
    assert_eq!(frame.size, value.len());
    assert_eq!(frame.value().unwrap(), value);
}

#[test]
fn a_frame_with_every_field_is_as_documented() {
    let (header, value) = every_field();
    is_written_and_read("every-field", &header, value);
}

#[test]
fn the_smallest_frame_is_as_documented() {
    is_written_and_read("smallest", &smallest(), b"");
}

#[test]
fn a_packed_frame_is_read_as_documented() {
    let value = "terrace ".repeat(64).into_bytes();
    let header = Header { key: Bytes::from_static(b"packed"), ..smallest() };
    let frame = decode(&documented("packed"), LIMIT).unwrap();
    assert_eq!(frame.header, header);
    assert_eq!(frame.value().unwrap(), value);
    assert!(frame.stored_size() < frame.size / 4, "it is packed");
    let written = encode(&header, value.clone(), Compression::default().from_bytes(1));
    let written = decode(&written, LIMIT).unwrap();
    assert_eq!(written.value().unwrap(), value);
    assert!(written.stored_size() < written.size / 4);
}

/// The cells of the table rows after `heading`, without their code marks.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let document = document();
    let rows = document.lines().skip_while(|line| !line.starts_with(heading)).skip(2);
    let cells = |row: &str| {
        let row = row.trim().trim_matches('|');
        row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    let rows: Vec<_> = rows.take_while(|line| line.starts_with('|')).map(cells).collect();
    assert!(!rows.is_empty(), "docs/format.md has no table {heading}");
    rows
}

/// Keys stand in the document as JSON writes them, or as `count × text`.
fn key_bytes(cell: &str) -> Vec<u8> {
    match cell.split_once(" × ") {
        Some((count, text)) => text.repeat(count.parse().expect("a number")).into_bytes(),
        None => serde_json::from_str::<String>(cell).expect("a text").into_bytes(),
    }
}

#[test]
fn keys_and_names_are_as_documented() {
    let rows = rows("| tenant | space | schema |");
    assert!(rows.len() >= 6);
    for row in rows {
        let [tenant, space, schema, key, stored, name] = &row[..] else {
            panic!("six cells: {row:?}")
        };
        let schema = u64::from_str_radix(schema, 16).expect("a hexadecimal number");
        let key = key_bytes(key);
        let written = StoredKey::new(tenant, space, schema, &key);
        assert_eq!(written.as_str(), stored);
        assert_eq!(&*written.name(), name);
    }
}

#[tokio::test]
async fn schemas_are_as_documented() {
    let store = Arc::new(MapStore::new());
    let tier = Tier::shared(store.clone());
    let terrace = Terrace::builder().tier("map", tier).build().await.unwrap();
    let kind = |kind: &str| xxh3_64(kind.as_bytes());

    let raw = terrace.space::<str, Vec<u8>>("raw").build_raw().unwrap();
    let _ = raw.insert("key", vec![1]).await.unwrap();
    let numbered = terrace.space::<u32, u8>("numbered").schema(7).build().unwrap();
    let _ = numbered.insert(&1, 1).await.unwrap();
    let tuples = terrace.space::<(u8, String), u8>("tuples").schema(7).build().unwrap();
    let _ = tuples.insert(&(1, "~".to_owned()), 1).await.unwrap();

    let mut expected = [
        StoredKey::new("", "raw", 1 ^ kind("text"), b"key"),
        StoredKey::new("", "numbered", 7 ^ kind("integer"), b"1"),
        StoredKey::new("", "tuples", 7 ^ kind("tuple"), b"1:%7E"),
    ];
    expected.sort();
    assert_eq!(store.keys(), expected);
}

#[tokio::test]
async fn the_tables_are_as_documented() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::at(directory.path());
    let terrace = Terrace::builder().tier("disk", disk).build().await.unwrap();
    let _ = terrace.set("user:7", &7_u8).ttl(Duration::from_secs(60)).await.unwrap();
    let _ = terrace.set("for ever", &8_u8).forever().await.unwrap();
    assert!(terrace.close().await);

    let database = rusqlite::Connection::open(directory.path().join("terrace.db")).unwrap();
    let number = |query: &str| -> i64 { database.query_row(query, [], |row| row.get(0)).unwrap() };
    assert_eq!(number("PRAGMA application_id"), i64::from(u32::from_be_bytes(*b"TRRC")));
    assert_eq!(number("PRAGMA user_version"), 3);

    let plain = |sql: &str| sql.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut statement = database
        .prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid")
        .unwrap();
    let tables = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
    let tables: String = tables.map(|sql| sql.unwrap() + ";\n").collect();
    assert_eq!(plain(&tables), plain(&block("sql").join("\n")), "in the database, documented");

    let mut statement =
        database.prepare("SELECT id, key, expires, frame FROM entry ORDER BY expires").unwrap();
    let mut rows = statement.query([]).unwrap();
    let mut read = || {
        let row = rows.next().unwrap().expect("a row");
        let (id, key): (i64, String) = (row.get(0).unwrap(), row.get(1).unwrap());
        let stored = StoredKey::parse(&key).expect("a stored key");
        let [_, tenant, space, schema, last] = key.splitn(5, ':').collect::<Vec<_>>()[..] else {
            panic!("{key}: five parts")
        };
        let seed = xxh3_64(format!("{tenant}:{space}").as_bytes());
        let of_name = xxh3_64_with_seed(last.as_bytes(), seed) & !0xFFF;
        let of_schema = xxh3_64(schema.as_bytes()) & 0xFFF;
        assert_eq!(id.cast_unsigned(), of_name | of_schema);
        let frame = Bytes::from(row.get::<_, Vec<u8>>(3).unwrap());
        (stored, row.get::<_, i64>(2).unwrap(), decode(&frame, LIMIT).unwrap())
    };
    let (key, expires, frame) = read();
    assert_eq!(key.as_str(), "1:::0000000000000000:user:7");
    assert_eq!(expires.cast_unsigned(), frame.header.expires.unwrap().as_millis());
    assert_eq!(frame.value().unwrap(), vec![7]);
    let (key, expires, frame) = read();
    assert_eq!(key.as_str(), "1:::0000000000000000:for%20ever");
    assert_eq!((expires, frame.header.expires), (i64::MAX, None));

    let incarnation = number("SELECT incarnation FROM origin").cast_unsigned();
    assert_eq!(frame.header.stamp, Stamp { incarnation, number: 2 });
    let lines = "SELECT group_concat(number || ' ' || kind || ' ' || name, ', ') FROM ledger";
    let lines: String = database.query_row(lines, [], |row| row.get(0)).unwrap();
    assert_eq!(lines, "1 2 ::user:7, 2 2 ::for%20ever");
    assert_eq!(number("SELECT entries FROM usage"), 2);
    let sum = number("SELECT sum(length(key) + length(frame)) FROM entry");
    assert_eq!(number("SELECT bytes FROM usage"), sum);
}
