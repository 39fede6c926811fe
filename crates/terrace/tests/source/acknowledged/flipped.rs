//! A bit of the journal flips.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use terrace::{Change, Journal, Memory, Space, Terrace, WriteBatch, WriteBehind};

use super::{is_value, value};
use crate::support::{Refused, count, ends, ms, random};

const KEYS: u64 = 20;

/// What the source was told.
type Told = Arc<Mutex<Vec<(String, String)>>>;

async fn start(directory: &Path) -> Result<Terrace, terrace::BuildError> {
    let journal = Journal::at(directory);
    Terrace::builder().memory(Memory::bytes(1 << 20)).journal(journal).build().await
}

fn space(terrace: &Terrace, told: Option<&Told>) -> Space<str, String> {
    let told = told.map(Arc::clone);
    terrace
        .space::<str, String>("space")
        .writer(move |batch: WriteBatch<str, String>| {
            let told = told.clone();
            async move {
                let told = told.ok_or(Refused(1))?;
                for write in batch {
                    let Change::Insert(found) = write.change else { panic!("nobody removed it") };
                    told.lock().push((write.key, found));
                }
                Ok::<_, Refused>(())
            }
        })
        .write_behind(WriteBehind::default().linger(ms(1)).retry(ms(1), ms(2)).attempts(1_000))
        .build()
        .unwrap()
}

#[tokio::test]
async fn d4_flipped_bits_in_the_journal() {
    let mut random = random("bits");
    let original = tempfile::tempdir().unwrap();
    let terrace = start(original.path()).await.unwrap();
    let writing = space(&terrace, None);
    for key in 0..KEYS {
        let key = format!("key {key}");
        let _ = writing.insert_behind(&key, value(&key, 7, 3_000)).await.unwrap();
    }
    let closed = terrace.close_within(ms(1)).await;
    assert_eq!(closed.kept, KEYS);
    let (mut refused, mut wrote) = (0, 0);
    for bit in 0..count(200, 5_000) {
        let copy = tempfile::tempdir().unwrap();
        let names = ["journal.db", "journal.db-wal"];
        let name = names[random.usize(..2)];
        // Closing copies the log into the database; pages that are in both are read from the log.
        for copied in
            names.into_iter().filter(|copied| *copied != "journal.db-wal" || name == *copied)
        {
            std::fs::copy(original.path().join(copied), copy.path().join(copied)).unwrap();
        }
        let mut bytes = std::fs::read(copy.path().join(name)).unwrap();
        let at = random.usize(..bytes.len());
        bytes[at] ^= 1 << random.u8(..8);
        std::fs::write(copy.path().join(name), bytes).unwrap();

        let Ok(terrace) = start(copy.path()).await else {
            refused += 1;
            continue;
        };
        let told = Told::default();
        let space = space(&terrace, Some(&told));
        for key in 0..KEYS {
            let key = format!("key {key}");
            // What cannot be read is an error, and what is gone is not there.
            if let Ok(Some(found)) = space.get(&key).await {
                assert!(is_value(&key, &found).is_some(), "bit {bit}, {name} at {at}: {key}");
            }
        }
        let _ =
            ends("a flush", async { tokio::time::timeout(ms(5_000), space.flush()).await }).await;
        for (key, found) in told.lock().iter() {
            assert_eq!(is_value(key, found), Some(7), "bit {bit}, {name} at {at}: {key}");
            wrote += 1;
        }
        terrace.close_within(ms(1)).await;
    }
    // Whether a bit is where a journal is refused for it is chance.
    println!("{refused} refused, {wrote} written");
    assert!(wrote > 0, "nothing was readable");
}
