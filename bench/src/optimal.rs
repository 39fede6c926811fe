//! What no cache can exceed: one that knows the future, and evicts what is needed last (Belady).

use std::collections::BinaryHeap;

/// How many of `requests`, which are numbers below `unique`, find their entry in a cache that has
/// room for `capacity`, when each that does not is inserted.
#[must_use]
pub fn hits(requests: &[u32], unique: usize, capacity: usize) -> usize {
    let next = next_requests(requests, unique);
    // What is there, by when it is needed next. Older needs of the same entry stay and are
    // passed over.
    let mut needs = BinaryHeap::new();
    let mut needed: Vec<Option<usize>> = vec![None; unique];
    let (mut hits, mut residents) = (0, 0);
    for (id, next) in requests.iter().zip(next) {
        let index = *id as usize;
        if needed[index].is_some() {
            hits += 1;
        } else {
            residents += 1;
        }
        if residents > capacity {
            while let Some((need, victim)) = needs.pop() {
                let at: &mut Option<usize> = &mut needed[victim as usize];
                if *at == Some(need) {
                    *at = None;
                    residents -= 1;
                    break;
                }
            }
        }
        needed[index] = Some(next);
        needs.push((next, *id));
    }
    hits
}

/// When what each request is for is asked for again.
fn next_requests(requests: &[u32], unique: usize) -> Vec<usize> {
    let mut next = vec![usize::MAX; requests.len()];
    let mut later = vec![usize::MAX; unique];
    for (at, id) in requests.iter().enumerate().rev() {
        next[at] = std::mem::replace(&mut later[*id as usize], at);
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_what_is_needed_first() {
        // The first 1 has to leave for 2, not 0.
        assert_eq!(hits(&[0, 1, 2, 0, 1], 3, 2), 1);
        assert_eq!(hits(&[0, 1, 2, 0, 1], 3, 3), 2);
        // Of a loop over four, three stay but for one place.
        let ring: Vec<u32> = (0..4).cycle().take(4000).collect();
        let found = hits(&ring, 4, 3);
        assert!((2600..2700).contains(&found), "{found}");
    }
}
