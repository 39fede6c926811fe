//! A bit flips in a value on the server.

use terrace_test::rig::{Connection, RedisServer, Reply};

use crate::support::{Node, count, random};

fn text(key: u64) -> String {
    format!("the text under {key};").repeat(1 + 20 * key as usize)
}

#[tokio::test]
async fn d4_flipped_bits_on_the_server() {
    let server = RedisServer::start().await.unwrap();
    let mut server_itself = Connection::with_all_rights(server.address()).await.unwrap();
    let writer = Node::at(server.url()).await;
    let mut stored = Vec::new();
    for key in 0..20 {
        let _ = writer.texts.insert(&key.to_string(), text(key)).await.unwrap();
        let pattern = format!("*{{:texts:{key}}}:1:*");
        let found = server_itself.command(&["KEYS", &pattern]).await.unwrap();
        let [name] = found.items()[..] else { panic!("one key: {found:?}") };
        stored.push(name.text().unwrap().into_owned());
    }
    let mut random = random("bits");
    let unreadable = async |node: &Node| node.terrace.stats().await.tiers[1].traffic.unreadable;
    for bit in 0..count(500, 10_000) {
        let key = random.u64(..20);
        let name = &*stored[key as usize];
        let length = server_itself.command(&["STRLEN", name]).await.unwrap();
        let Reply::Integer(length) = length else { panic!("{length:?}") };
        let at = random.u64(..length as u64 * 8).to_string();
        let was = server_itself.command(&["GETBIT", name, &at]).await.unwrap();
        let Reply::Integer(was) = was else { panic!("{was:?}") };
        let mut set = async |value: i64| {
            server_itself.command(&["SETBIT", name, &at, &value.to_string()]).await.unwrap();
        };
        set(1 - was).await;
        // One that has nothing in memory.
        writer.terrace.clear_tier("memory").await.unwrap();
        let before = unreadable(&writer).await;
        assert_eq!(writer.get(&key.to_string()).await, None, "bit {bit}: {at} of {name}");
        assert_eq!(unreadable(&writer).await, before + 1, "bit {bit}: {at} of {name}");
        set(was).await;
        assert_eq!(writer.get(&key.to_string()).await, Some(text(key)), "bit {bit}");
    }
}
