//! Servers that are not who they say they are, and connections that anybody could read.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use terrace::clock::SystemClock;
use terrace::key::StoredKey;
use terrace::store::{Store, StoreError};
use terrace::{BuildError, Redis};
use terrace_test::rig::{Certificates, RedisServer, TlsFiles};

use crate::support::{Node, count, until};

fn authority(certificates: &Certificates) -> Vec<u8> {
    fs::read(certificates.authority()).unwrap()
}

/// What the first question brings.
async fn asked(redis: &Redis) -> Result<(), StoreError> {
    let store = redis.open(Arc::new(SystemClock::new())).unwrap();
    let key = StoredKey::new("", "texts", 1, b"a");
    let keys = [key];
    let asked = tokio::time::timeout(Duration::from_secs(10), store.get(&keys));
    asked.await.expect("an answer").map(drop)
}

/// The address of a server by another name.
fn named(server: &RedisServer, host: &str) -> String {
    format!("rediss://{host}:{}", server.port())
}

fn openssl(at: &Path, arguments: &str) {
    let arguments = arguments.split_whitespace();
    let output = Command::new("openssl").args(arguments).current_dir(at).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Another certificate for a server, signed by the same authority, in the same directory.
fn signed(certificates: &Certificates, name: &str, names: &str, more: &str) -> TlsFiles {
    let files = certificates.for_server();
    let at = files.authority.parent().unwrap();
    fs::write(at.join(format!("{name}.names")), format!("subjectAltName={names}\n")).unwrap();
    openssl(
        at,
        &format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {name}.key \
             -out {name}.csr -subj /CN={name}"
        ),
    );
    openssl(
        at,
        &format!(
            "x509 -req -in {name}.csr -out {name}.pem -CA authority.pem -CAkey authority.key \
             -set_serial 7 -extfile {name}.names {more}"
        ),
    );
    let (certificate, key) = (at.join(format!("{name}.pem")), at.join(format!("{name}.key")));
    TlsFiles { certificate, key, ..files }
}

async fn speaking(files: TlsFiles) -> RedisServer {
    RedisServer::builder().tls(files).start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x14_tls_means_tls() {
    for _ in 0..count(1, 20) {
        let (certificates, others) = (Certificates::make().unwrap(), Certificates::make().unwrap());
        let trusting = |url: String| Redis::url(url).root_certificate(authority(&certificates));
        let refused = async |what: &str, redis: Redis| {
            let error = asked(&redis).await.expect_err(what);
            println!("{what}: {error}: {:?}", std::error::Error::source(&error));
        };

        let server = speaking(certificates.for_server()).await;
        asked(&trusting(server.url())).await.unwrap();
        asked(&trusting(named(&server, "localhost"))).await.unwrap();
        refused("an authority that nobody trusts", Redis::url(server.url())).await;
        let other = Redis::url(server.url()).root_certificate(authority(&others));
        refused("another authority", other).await;
        let plain = Redis::url(format!("redis://{}", server.address()));
        refused("a plain connection to a port with TLS", plain).await;

        let wrong = speaking(signed(&certificates, "wrong", "DNS:elsewhere", "-days 2")).await;
        refused("a wrong name", trusting(named(&wrong, "localhost"))).await;
        // That it is signed is not the question: its own name is right.
        let old = signed(&certificates, "old", "DNS:localhost", "-days 0");
        let old = speaking(old).await;
        until("the certificate to be over", async || {
            asked(&trusting(named(&old, "localhost"))).await.is_err()
        })
        .await;
        refused("an expired certificate", trusting(named(&old, "localhost"))).await;

        let open = RedisServer::start().await.unwrap();
        let redis = trusting(format!("rediss://{}", open.address()));
        refused("a plain port", redis).await;
        let redis = trusting(format!("redis://{}", open.address()));
        let error = redis.open(Arc::new(SystemClock::new())).expect_err("no TLS in the address");
        assert!(matches!(error, BuildError::Address { .. }), "{error}");

        // The server wants to see something as well.
        let files = TlsFiles { asks_clients: true, ..certificates.for_server() };
        let strict = speaking(files).await;
        refused("nothing to show", trusting(strict.url())).await;
        let shown = trusting(strict.url()).client_certificate(
            fs::read(certificates.client_certificate()).unwrap(),
            fs::read(certificates.client_key()).unwrap(),
        );
        asked(&shown).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x14_a_certificate_that_is_renewed() {
    let certificates = Certificates::make().unwrap();
    let server = speaking(certificates.for_server()).await;
    let redis = Redis::url(server.url()).root_certificate(authority(&certificates));
    let node = Arc::new(Node::over(redis.clone()).await);
    assert_eq!(node.load("a", "a").await, "a");
    let is_over = Arc::new(AtomicBool::new(false));
    let caller = {
        let (node, is_over) = (Arc::clone(&node), Arc::clone(&is_over));
        tokio::spawn(async move {
            let mut calls = 0;
            while !is_over.load(Ordering::Relaxed) {
                let key = format!("b-{calls}");
                assert_eq!(node.load(&key, &key).await, key);
                calls += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            calls
        })
    };
    for round in 0..count(1, 20) {
        let names = "DNS:localhost,IP:127.0.0.1";
        let files = signed(&certificates, &format!("renewed-{round}"), names, "-days 2");
        let (certificate, key) = (files.certificate.display(), files.key.display());
        let set = ["CONFIG", "SET", "tls-cert-file", &certificate.to_string(), "tls-key-file"];
        let set = set.into_iter().map(str::to_owned).chain([key.to_string()]);
        server.expect(set).await.unwrap();
        // Old connections go on, and new ones see the new certificate.
        let joined = Node::over(redis.clone()).await;
        until("both to share", async || {
            let value = format!("{round}");
            node.texts.insert("shared", value.clone()).await.unwrap();
            joined.get("shared").await == Some(value)
        })
        .await;
        server.expect(["CLIENT", "KILL", "TYPE", "normal"]).await.ok();
        until("both to share again", async || {
            let value = format!("{round} again");
            node.texts.insert("shared", value.clone()).await.unwrap();
            joined.get("shared").await == Some(value)
        })
        .await;
    }
    is_over.store(true, Ordering::Relaxed);
    assert!(caller.await.unwrap() > 10, "callers went on");
}
