//! A transfer: what one operation carries between the shards and the outside.

use crate::Cause;
use crate::budget::{Budget, Hold};
use crate::entry::Node;
use crate::listener::Listener;

/// The bytes an operation holds, and the entries that left a shard and still have to be announced
/// and dropped.
///
/// An operation makes its transfer before it takes a lock. So, when a panic unwinds, the lock is
/// released first, then the bytes go back (the fields are dropped in order), and only then the
/// caller's keys and values are dropped.
pub(crate) struct Transfer<'a, K, V> {
    pub(crate) hold: Hold<'a>,
    departed: Vec<(Node<K, V>, Cause)>,
}

impl<'a, K, V> Transfer<'a, K, V> {
    pub(crate) fn new(budget: &'a Budget) -> Self {
        Self { hold: Hold::new(budget), departed: Vec::new() }
    }

    /// Takes an entry that has left its shard, with its bytes.
    pub(crate) fn receive(&mut self, node: Node<K, V>, cause: Cause) {
        self.hold.take_over(node.weight);
        self.departed.push((node, cause));
    }

    /// Gives back the bytes, then announces and drops what has left. The caller of this must
    /// hold no lock. Says how many entries have left.
    pub(crate) fn finish(mut self, listener: Option<&Listener<K, V>>) -> usize {
        // First, because the caller's code may want to store something.
        self.hold.give_back();
        let count = self.departed.len();
        for (node, cause) in self.departed {
            announce(listener, &node, cause);
        }
        count
    }
}

/// Tells the listener, if there is one, that an entry has left.
pub(crate) fn announce<K, V>(listener: Option<&Listener<K, V>>, node: &Node<K, V>, cause: Cause) {
    if let Some(listener) = listener {
        listener(&node.key, &node.value, cause);
    }
}
