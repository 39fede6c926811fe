//! Values forged on a server by somebody who can write to it and does not have the secret.

use std::time::Duration;

use bytes::Bytes;
use terrace::{Memory, Redis, Space, Terrace, Tier};
use terrace_test::rig::{Connection, RedisServer};

use crate::forged::{keys, made_of, with_some_mac};
use crate::support::{Everywhere, count, random};

/// Who writes to the server beside the cache.
struct Forger {
    connection: Connection,
}

impl Forger {
    /// The server's key of a value.
    async fn place(&mut self, key: &str) -> String {
        let found = self.connection.command(["KEYS", &format!("*:{key}}}:1:*")]).await.unwrap();
        assert_eq!(found.items().len(), 1, "{found:?}");
        found.items()[0].text().unwrap().into_owned()
    }

    async fn read(&mut self, place: &str) -> Bytes {
        self.connection.command(["GET", place]).await.unwrap().bytes().unwrap().into()
    }

    async fn write(&mut self, place: &str, bytes: &[u8]) {
        let command = [b"SET".as_slice(), place.as_bytes(), bytes];
        assert_eq!(self.connection.command(command).await.unwrap(), "OK");
    }
}

/// The cache reads from the server alone: nothing of it stays in its memory.
async fn get(terrace: &Terrace, texts: &Space<str, String>, key: &str) -> Option<String> {
    terrace.clear_tier("memory").await.unwrap();
    texts.get(key).await.unwrap().map(|text| text.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x7_values_forged_on_a_server_are_refused() {
    let server = RedisServer::start().await.unwrap();
    let builder = Terrace::builder().memory(Memory::bytes(1 << 20)).mac(keys());
    // However busy the machine is: what is not answered in time would be a miss of another kind.
    let patience = Duration::from_secs(10);
    let redis = Tier::from(Redis::url(server.url())).deadlines(patience, patience);
    let terrace = builder.tier("redis", redis).build().await.unwrap();
    let texts = terrace.space::<str, String>("s").forever().build().unwrap();
    let mut forger = Forger { connection: Connection::to(server.address()).await.unwrap() };
    for key in ["k", "l"] {
        texts.insert(key, key.repeat(3)).await.everywhere();
    }
    let places = [forger.place("k").await, forger.place("l").await];
    let frames = [forger.read(&places[0]).await, forger.read(&places[1]).await];
    assert_eq!(get(&terrace, &texts, "k").await.as_deref(), Some("kkk"));

    let (mut random, rounds) = (random("forged values"), count(300, 10_000));
    for round in 0..rounds {
        let forged = made_of(&frames[0], "forged");
        let mac = std::array::from_fn(|_| random.u8(..));
        let bytes = match round % 3 {
            0 => forged,
            1 => with_some_mac(&forged, mac),
            _ => (0..random.usize(1..300)).map(|_| random.u8(..)).collect(),
        };
        forger.write(&places[0], &bytes).await;
        assert_eq!(get(&terrace, &texts, "k").await, None, "{bytes:?}");
    }
    for round in 0..rounds {
        // One in the place of the other.
        let (to, from) = (round % 2, 1 - round % 2);
        forger.write(&places[to], &frames[from]).await;
        assert_eq!(get(&terrace, &texts, ["k", "l"][to]).await, None);
        forger.write(&places[to], &frames[to]).await;
    }
    assert_eq!(get(&terrace, &texts, "k").await.as_deref(), Some("kkk"));
    for round in 0..rounds {
        texts.insert("k", format!("old {round}")).await.everywhere();
        let old = forger.read(&places[0]).await;
        texts.insert("k", format!("new {round}")).await.everywhere();
        forger.write(&places[0], &old).await;
        assert_eq!(get(&terrace, &texts, "k").await, None, "{round}");
    }
    let unreadable = terrace.stats().await.tiers[1].traffic.unreadable;
    assert_eq!(unreadable, 2 * rounds as u64, "each that is no frame of ours is counted");
    terrace.close().await;
}
