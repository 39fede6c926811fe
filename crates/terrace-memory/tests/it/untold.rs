//! Entries that leave, and of which the listener is not told in time.

use std::sync::Arc;

use terrace_memory::Memory;

use crate::{Counter, NOW, PLAIN};

#[test]
fn what_makes_room_in_another_shard_is_told_of_before_the_call_returns() {
    for bytes in [false, true] {
        let told = Arc::new(Counter::default());
        let builder = Memory::<u64, u64>::builder().shards(8).listener({
            let told = Arc::clone(&told);
            move |_, _, _| told.add()
        });
        let room = 10 * (Memory::<u64, u64>::OVERHEAD + 16);
        let builder = if bytes {
            builder.max_bytes(room).max_value_bytes(room)
        } else {
            builder.max_entries(10)
        };
        let cache = builder.build();
        for key in 0..1_000 {
            cache.insert(key, key, PLAIN, NOW);
            assert_eq!(told.count(), cache.stats().evicted, "after {key}, by bytes: {bytes}");
        }
        assert!(told.count() > 900);
    }
}
