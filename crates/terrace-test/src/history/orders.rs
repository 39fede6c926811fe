//! All **orders** in which a few calls can have taken effect, tried one by one: the judge
//! by which the rule is judged.

use std::collections::{BTreeSet, HashSet};

use proptest::prelude::*;

use super::trial::Trial;
use super::{Call, Judged, NEVER, Seen, What};
use What::{Insert, Invalidate};

/// All that a read can have seen, by trying every order in which the calls can have
/// taken effect.
struct Orders<'a> {
    changes: &'a [Call],
    read: Call,
    visited: HashSet<State>,
    seen: BTreeSet<u64>,
}

/// Seen as numbers, for sets: 0 is nothing, this is a miss.
const MISSED: u64 = u64::MAX;

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    now: u64,
    /// Steps of each change so far: an insert has two, a line and the storing.
    steps: Vec<u8>,
    source: u64,
    /// What the cache, and loads that are under way, may answer with.
    held: BTreeSet<u64>,
    /// Whose line was the last, and whether what it inserts is there.
    last: Option<usize>,
    is_there: bool,
    /// While the read is under way.
    answers: Option<BTreeSet<u64>>,
}

impl Orders<'_> {
    fn all(&mut self) -> &BTreeSet<u64> {
        let state = State {
            now: 0,
            steps: vec![0; self.changes.len()],
            source: 0,
            held: BTreeSet::from([0]),
            last: None,
            is_there: false,
            answers: None,
        };
        self.explore(&state);
        &self.seen
    }

    fn explore(&mut self, state: &State) {
        if !self.visited.insert(state.clone()) {
            return;
        }
        for (index, change) in self.changes.iter().enumerate() {
            let is_under_way = change.begin <= state.now && state.now < change.end;
            if is_under_way && state.steps[index] < steps(change) {
                self.explore(&step(state, index, change));
            }
        }
        let now = state.now + 1;
        let mut done = self.changes.iter().zip(&state.steps);
        if done.any(|(change, &done)| change.end == now && done < steps(change)) {
            return;
        }
        let mut state = State { now, ..state.clone() };
        if now == self.read.begin {
            state.answers = Some(BTreeSet::new());
        }
        if now == self.read.end {
            self.seen.extend(answer(&state).answers.unwrap());
            return;
        }
        self.explore(&answer(&state));
    }
}

/// A line and a value for an insert, one step for the others.
fn steps(change: &Call) -> u8 {
    if matches!(change.what, Insert(_)) { 2 } else { 1 }
}

fn step(state: &State, index: usize, change: &Call) -> State {
    let mut state = state.clone();
    state.steps[index] += 1;
    match change.what {
        What::Write(version) => state.source = version.unwrap_or(0),
        Insert(version) if state.steps[index] == 2 => {
            if state.last == Some(index) {
                state.held.insert(version);
                state.is_there = true;
            }
        }
        _ => {
            state.held.clear();
            state.last = Some(index);
            state.is_there = false;
        }
    }
    state.held.insert(state.source);
    answer(&state)
}

fn answer(state: &State) -> State {
    let mut state = state.clone();
    let State { held, answers, is_there, .. } = &mut state;
    if let Some(answers) = answers {
        answers.extend(&*held);
        if !*is_there {
            answers.insert(MISSED);
        }
    }
    state
}

fn few_calls() -> impl Strategy<Value = (Vec<Call>, Call)> {
    let what = prop_oneof![
        3 => (0..4_u64).prop_map(|version| What::Write((version > 0).then_some(version))),
        3 => (1..4_u64).prop_map(Insert),
        2 => Just(Invalidate),
    ];
    let changes = prop::collection::vec((what, prop::bool::weighted(0.1)), 0..5);
    changes.prop_flat_map(|changes| {
        let points: Vec<u64> = (1..=2 * changes.len() as u64 + 2).collect();
        (Just(changes), Just(points).prop_shuffle()).prop_map(|(changes, points)| {
            let call = |points: &[u64], what| Call {
                begin: points[0].min(points[1]),
                end: points[0].max(points[1]),
                what,
            };
            let read = call(&points, What::Read(Seen::Miss));
            let changes = changes.into_iter().zip(points[2..].chunks(2));
            let changes = changes.map(|((what, is_dropped), points)| {
                let call = call(points, what);
                if is_dropped { Call { end: NEVER, ..call } } else { call }
            });
            (changes.collect(), read)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3_000) })]

    #[test]
    fn the_rule_is_what_every_order_says((changes, read) in few_calls()) {
        let (visited, seen) = Default::default();
        let mut orders = Orders { changes: &changes, read, visited, seen };
        let seen_by_some_order = orders.all().clone();
        for number in (0..4).chain([MISSED]) {
            let seen = match number {
                0 => Seen::NotFound,
                MISSED => Seen::Miss,
                version => Seen::Version(version),
            };
            let read = Call { what: What::Read(seen), ..read };
            let calls = changes.iter().copied().chain([read]);
            let found = Trial::new(calls, true).judge(&mut Judged::default());
            prop_assert_eq!(
                found.is_none(),
                seen_by_some_order.contains(&number),
                "{:?}: {:?}", seen, found
            );
        }
    }
}
