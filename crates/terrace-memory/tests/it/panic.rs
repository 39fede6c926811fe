//! Panics in the caller's code, at every place where it is called.

use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use terrace_memory::{Attributes, Insert, Memory, Tick, View};

use crate::{NOW, PLAIN};

/// The places where a panic can be set off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Hash,
    Eq,
    Clone,
    DropKey,
    DropValue,
    Weigher,
    Listener,
}

/// Sets off one panic, at the chosen place, after a number of calls there.
#[derive(Clone, Default)]
struct Fuse(Arc<[AtomicU64; 8]>);

impl Fuse {
    /// The panic is set off by the `calls`th call.
    fn light(&self, place: Place, calls: u64) {
        self.0[place as usize].store(calls, Relaxed);
    }

    fn put_out(&self) {
        for calls in &*self.0 {
            calls.store(0, Relaxed);
        }
    }

    fn pass(&self, place: Place) {
        let calls = &self.0[place as usize];
        let left = calls.load(Relaxed);
        calls.store(left.saturating_sub(1), Relaxed);
        // A second panic while one unwinds would end the process, whatever the cache does.
        assert!(left != 1 || std::thread::panicking(), "set off at {place:?}");
    }
}

struct Key(u64, Fuse);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.1.pass(Place::Hash);
        // Few different ones, so that there is something to compare.
        (self.0 % 4).hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.1.pass(Place::Eq);
        self.0 == other.0
    }
}

impl Eq for Key {}

impl Drop for Key {
    fn drop(&mut self) {
        self.1.pass(Place::DropKey);
    }
}

/// A value that counts how many of its kind there are.
struct Value {
    alive: Arc<()>,
    fuse: Fuse,
}

impl Clone for Value {
    fn clone(&self) -> Self {
        self.fuse.pass(Place::Clone);
        Self { alive: Arc::clone(&self.alive), fuse: self.fuse.clone() }
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        self.fuse.pass(Place::DropValue);
    }
}

/// A cache with room for eight entries, and six or so in it.
struct Scene {
    cache: Memory<Key, Value>,
    fuse: Fuse,
    alive: Arc<()>,
}

const ROOM: u64 = 8;

impl Scene {
    fn new(shards: usize) -> Self {
        let fuse = Fuse::default();
        let unit = 1_000 + Memory::<Key, Value>::OVERHEAD;
        let cache = Memory::<Key, Value>::builder()
            .max_bytes(ROOM * unit)
            .max_value_bytes(ROOM * unit)
            .shards(shards)
            .weigher({
                let fuse = fuse.clone();
                move |key, _| {
                    fuse.pass(Place::Weigher);
                    if key.0 == LARGE { (ROOM - 1) * unit } else { 1_000 }
                }
            })
            .listener({
                let fuse = fuse.clone();
                move |_, _, _| fuse.pass(Place::Listener)
            })
            .build();
        let scene = Self { cache, fuse, alive: Arc::new(()) };
        for key in 0..ROOM {
            scene.insert(key);
        }
        scene
    }

    fn key(&self, key: u64) -> Key {
        Key(key, self.fuse.clone())
    }

    fn value(&self) -> Value {
        Value { alive: Arc::clone(&self.alive), fuse: self.fuse.clone() }
    }

    fn insert(&self, key: u64) -> Insert {
        let expires = if key.is_multiple_of(2) { Tick::NEVER } else { Tick(5) };
        let attributes = Attributes { expires, space: key as u32 % 2, ..PLAIN };
        self.cache.insert(self.key(key), self.value(), attributes, NOW)
    }

    /// Consistent, nothing lost, and good for further use.
    fn check(self, what: &str) {
        self.fuse.put_out();
        self.cache.validate();
        // What had left when the panic came is freed now.
        self.cache.sweep(NOW, usize::MAX);
        let stats = self.cache.stats();
        let gone = stats.replaced + stats.evicted + stats.expired + stats.removed;
        assert_eq!(stats.entries, stats.inserts - gone, "{what}");
        // One handle is the scene's own. A value that is still somewhere else has leaked.
        assert_eq!(Arc::strong_count(&self.alive) as u64, stats.entries + 1, "{what}");

        for key in 100..100 + ROOM {
            assert_eq!(self.insert(key), Insert::Stored, "{what}");
            assert!(self.cache.contains(&self.key(key), NOW), "{what}");
        }
        self.cache.validate();
        // Shards may keep back a little, which one entry may need.
        assert!(self.cache.bytes() >= self.cache.max_bytes() / ROOM * (ROOM - 1), "{what}");
        self.cache.clear();
        assert_eq!(self.cache.bytes(), 0, "{what}");
        assert_eq!(Arc::strong_count(&self.alive), 1, "{what}");
    }
}

/// The key of a value that takes almost all the room.
const LARGE: u64 = 1_000;

type Action = fn(&Scene);

const ACTIONS: [(&str, Action); 17] = [
    ("insert", |scene| {
        scene.insert(50);
    }),
    ("insert over another", |scene| {
        scene.insert(2);
    }),
    ("insert over an expired one", |scene| {
        scene.cache.insert(scene.key(3), scene.value(), PLAIN, Tick(9));
    }),
    ("insert a large one", |scene| {
        scene.insert(LARGE);
    }),
    ("replace_if, agreed", |scene| {
        let _ = scene.cache.replace_if(scene.key(2), scene.value(), PLAIN, NOW, |_| true);
    }),
    ("replace_if, agreed, large", |scene| {
        let _ = scene.cache.replace_if(scene.key(LARGE), scene.value(), PLAIN, NOW, |_| true);
    }),
    ("replace_if, refused", |scene| {
        let _ = scene.cache.replace_if(scene.key(2), scene.value(), PLAIN, NOW, |_| false);
    }),
    ("get", |scene| drop(scene.cache.get(&scene.key(2), NOW))),
    ("get an expired one", |scene| drop(scene.cache.get(&scene.key(3), Tick(9)))),
    ("peek_with", |scene| {
        scene.cache.peek_with(&scene.key(2), NOW, |_| ());
    }),
    ("remove", |scene| drop(scene.cache.remove(&scene.key(2)))),
    ("remove_if, refused", |scene| {
        scene.cache.remove_if(&scene.key(2), |_| false);
    }),
    ("set_expires", |scene| {
        scene.cache.set_expires(&scene.key(2), Tick(3), NOW);
    }),
    ("clear", |scene| {
        scene.cache.clear();
    }),
    ("remove_space", |scene| {
        scene.cache.remove_space(1);
    }),
    ("retain", |scene| {
        scene.cache.retain(|key, _| key.0 == 2);
    }),
    ("sweep", |scene| {
        scene.cache.sweep(Tick(9), usize::MAX);
    }),
];

const PLACES: [Place; 7] = [
    Place::Hash,
    Place::Eq,
    Place::Clone,
    Place::DropKey,
    Place::DropValue,
    Place::Weigher,
    Place::Listener,
];

#[test]
fn a_panic_anywhere_leaves_the_cache_whole() {
    let mut panics = [0; PLACES.len()];
    for shards in [1, 4] {
        for (name, action) in ACTIONS {
            for place in PLACES {
                for calls in 1..=6 {
                    let scene = Scene::new(shards);
                    scene.fuse.light(place, calls);
                    let result = catch_unwind(AssertUnwindSafe(|| action(&scene)));
                    panics[place as usize] += usize::from(result.is_err());
                    scene.check(&format!("{name}, {place:?}, call {calls}, {shards} shards"));
                }
            }
        }
    }
    assert!(panics.iter().all(|&panics| panics > 0), "no panic at some place: {panics:?}");
}

fn no_answer(_: Option<View<'_, Value>>) -> bool {
    panic!("deciding");
}

#[test]
fn a_closure_that_panics_changes_nothing() {
    let closures: [(&str, Action); 7] = [
        ("get_with", |scene| {
            scene.cache.get_with(&scene.key(2), NOW, |_| panic!("reading"));
        }),
        ("peek_with", |scene| {
            scene.cache.peek_with(&scene.key(2), NOW, |_| panic!("peeking"));
        }),
        ("replace_if at a key", |scene| {
            let _ = scene.cache.replace_if(scene.key(2), scene.value(), PLAIN, NOW, no_answer);
        }),
        ("replace_if elsewhere", |scene| {
            let _ = scene.cache.replace_if(scene.key(50), scene.value(), PLAIN, NOW, no_answer);
        }),
        ("remove_if", |scene| {
            scene.cache.remove_if(&scene.key(2), |_| panic!("removing"));
        }),
        ("retain", |scene| {
            scene.cache.retain(|_, _| panic!("keeping"));
        }),
        ("for_each", |scene| {
            scene.cache.for_each(NOW, |_, _| panic!("seeing"));
        }),
    ];
    for (name, action) in closures {
        let scene = Scene::new(1);
        let before = (scene.cache.len(), scene.cache.bytes());
        assert!(catch_unwind(AssertUnwindSafe(|| action(&scene))).is_err(), "{name}");
        assert_eq!((scene.cache.len(), scene.cache.bytes()), before, "{name}");
        assert!(scene.cache.contains(&scene.key(2), NOW), "{name}");
        scene.check(name);
    }
}

#[test]
fn a_retain_that_panics_has_removed_what_it_was_told_to() {
    let scene = Scene::new(1);
    let before = scene.cache.len();
    let mut asked = 0;
    let retain = || {
        scene.cache.retain(|_, _| {
            asked += 1;
            assert!(asked < 4, "enough");
            false
        })
    };
    assert!(catch_unwind(AssertUnwindSafe(retain)).is_err());
    assert_eq!(scene.cache.len(), before - 3);
    scene.check("retain");
}

#[test]
fn a_panic_while_it_is_decided_has_evicted_nothing() {
    let scene = Scene::new(8);
    let before = scene.cache.len();
    let store = || scene.cache.replace_if(scene.key(LARGE), scene.value(), PLAIN, NOW, no_answer);
    assert!(catch_unwind(AssertUnwindSafe(store)).is_err());
    assert_eq!(scene.cache.len(), before);
    scene.check("replace_if");
}

/// A key that equals no other, and each time hashes to something else.
struct Liar(AtomicU64);

impl Hash for Liar {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.fetch_add(1, Relaxed).hash(state);
    }
}

impl PartialEq for Liar {
    fn eq(&self, _: &Self) -> bool {
        self.0.fetch_add(1, Relaxed).is_multiple_of(3)
    }
}

impl Eq for Liar {}

#[test]
fn keys_that_lie_are_lost_but_nothing_else_is() {
    let cache = Memory::<Liar, u64>::builder().max_bytes(3_000).max_value_bytes(300).build();
    for round in 0..3_000 {
        let liar = || Liar(AtomicU64::new(round % 10));
        cache.insert(liar(), round, PLAIN, NOW);
        cache.get(&liar(), NOW);
        if round % 7 == 0 {
            cache.remove(&liar());
        }
        cache.validate();
    }
    cache.clear();
    assert_eq!((cache.len(), cache.bytes()), (0, 0));
}
