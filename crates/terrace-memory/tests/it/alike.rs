//! Caches that cannot be told apart by the number that readers pin.

use terrace_memory::Memory;

use crate::support::{Census, Tracked, alone};
use crate::{NOW, PLAIN, weighed};

/// Numbers begin anew after so many caches.
const NUMBERS: usize = 65_535;

#[test]
fn a_read_within_a_read_holds_what_it_found_in_either() {
    alone("alike::a_read_within_a_read_holds_what_it_found_in_either", || {
        let [first, second] = [Census::default(), Census::default()];
        let older = weighed::<Tracked>(10_000, 1).build();
        for _ in 1..NUMBERS {
            drop(Memory::<u64, u64>::builder().shards(1).build());
        }
        let younger = weighed::<Tracked>(10_000, 1).build();
        // The older one is in a later epoch.
        for round in 0..50 {
            older.insert(1, first.value(1, 200), PLAIN, NOW);
            older.sweep(NOW, round);
        }
        younger.insert(2, second.value(2, 200), PLAIN, NOW);

        let both = [(&older, 1, &first), (&younger, 2, &second)];
        for [outer, inner] in [[both[1], both[0]], [both[0], both[1]]] {
            let (values, held) = outer
                .0
                .get_with(&outer.1, NOW, |_| {
                    inner.0.get_with(&inner.1, NOW, |_| {
                        for (cache, ..) in both {
                            cache.clear();
                            cache.sweep(NOW, usize::MAX);
                            cache.sweep(NOW, usize::MAX);
                        }
                        (inner.2.values(), outer.2.values())
                    })
                })
                .flatten()
                .expect("both are there");
            assert_eq!((values, held), (1, 1), "what is read is dropped");
            for (cache, key, census) in both {
                cache.sweep(NOW, usize::MAX);
                assert_eq!(census.values(), 0);
                cache.insert(key, census.value(key, 200), PLAIN, NOW);
            }
        }
    });
}
