//! Tenants that share a server.

use terrace::{Memory, Redis, Terrace};
use terrace_test::rig::RedisServer;

use crate::support::{count, random};
use crate::two_tenants::{play, with_event};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x16_tenants_do_not_meet_on_a_server() {
    let server = RedisServer::start().await.unwrap();
    let mut random = random("tenants on a server");
    for round in 0..count(3, 40) {
        let redis = Redis::url(server.url()).prefix(format!("{round}:"));
        let mut builder = with_event(Terrace::builder()).tier("redis", redis);
        if round % 2 == 0 {
            builder = builder.memory(Memory::bytes(64 << 20));
        }
        let terrace = builder.build().await.unwrap();
        play(&terrace, &mut random, 700).await;
        terrace.close().await;
    }
}
