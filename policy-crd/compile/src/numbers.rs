//! Numbers of policies and of peer classes that stay what they are from one snapshot of a node to the next.
//!
//! What refers to a number can then stay as well: only what is new or gone is renumbered. The first time the numbers
//! follow the order of what is numbered, so that the same objects compiled from nothing always give the same. Knows
//! nothing of what it numbers.

use std::collections::HashMap;
use std::hash::Hash;

/// Of this many numbers or fewer any part may stand for nothing.
const FEW: usize = 64;

/// Numbers with holes: what is gone leaves one, for what is new to take.
#[derive(Debug)]
pub(crate) struct Sparse<K> {
    numbers: HashMap<K, usize>,
    slots: Vec<Option<K>>,
}

impl<K> Default for Sparse<K> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), slots: Vec::new() }
    }
}

/// What renewing numbers changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Renewed {
    pub(crate) added: usize,
    pub(crate) removed: usize,
    pub(crate) kept: usize,
}

impl<K: Hash + Eq + Clone> Sparse<K> {
    /// Numbers these, which are all different. Where more than half would be holes, everything is numbered anew.
    pub(crate) fn renew(&mut self, wanted: &[K]) -> Renewed {
        let mut before = std::mem::take(&mut self.numbers);
        if self.slots.len() > FEW && wanted.len() < self.slots.len() / 2 {
            before.clear();
            self.slots.clear();
        }
        let mut fresh = Vec::new();
        for key in wanted {
            match before.remove(key) {
                Some(number) => _ = self.numbers.insert(key.clone(), number),
                None => fresh.push(key),
            }
        }
        let renewed = Renewed { added: fresh.len(), removed: before.len(), kept: self.numbers.len() };
        for number in before.into_values() {
            self.slots[number] = None;
        }
        let mut hole = 0;
        for key in fresh {
            while self.slots.get(hole).is_some_and(Option::is_some) {
                hole += 1;
            }
            if hole == self.slots.len() {
                self.slots.push(None);
            }
            self.slots[hole] = Some(key.clone());
            self.numbers.insert(key.clone(), hole);
        }
        renewed
    }

    pub(crate) fn number(&self, key: &K) -> Option<usize> {
        self.numbers.get(key).copied()
    }

    /// What each number stands for.
    pub(crate) fn slots(&self) -> &[Option<K>] {
        &self.slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_numbers_stay_and_holes_are_filled_first() {
        let mut sparse = Sparse::default();
        assert_eq!(sparse.renew(&["a", "b", "c"]), Renewed { added: 3, removed: 0, kept: 0 });
        assert_eq!(sparse.renew(&["a", "c"]), Renewed { added: 0, removed: 1, kept: 2 });
        assert_eq!(sparse.slots(), [Some("a"), None, Some("c")]);
        assert_eq!(sparse.renew(&["0", "1", "a", "c"]), Renewed { added: 2, removed: 0, kept: 2 });
        assert_eq!(sparse.slots(), [Some("a"), Some("0"), Some("c"), Some("1")]);
        assert_eq!((sparse.number(&"1"), sparse.number(&"b")), (Some(3), None));
    }

    #[test]
    fn mostly_holes_are_numbered_anew() {
        let mut sparse = Sparse::default();
        sparse.renew(&(0..100).collect::<Vec<_>>());
        sparse.renew(&(50..90).collect::<Vec<_>>());
        assert_eq!(sparse.slots().len(), 40);
        assert_eq!(sparse.number(&50), Some(0));
    }
}
