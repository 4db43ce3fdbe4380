//! Classes that no rule of a side tells apart.
//!
//! Two classes that are in the same sets have the same rows and the same verdicts, so rules are filed by group and
//! rows are folded once for each. Exact, by partition refinement: each distinct set splits the groups that it cuts.

use crate::class::{ClassId, ClassSet};
use std::collections::{HashMap, HashSet};

/// The group of every class, as one side's rules see it.
#[derive(Debug)]
pub(crate) struct Groups {
    /// By class; a class beyond the end is in [`Self::UNNAMED`].
    of: Box<[u32]>,
    /// Group numbers are below this.
    len: u32,
}

impl Groups {
    /// The classes that are in no set.
    const UNNAMED: u32 = 0;

    /// Splits the classes by these sets.
    pub(super) fn new<'a>(sets: impl Iterator<Item = &'a ClassSet>) -> Self {
        let distinct: HashSet<&[u64]> = sets
            .filter_map(|set| match set {
                ClassSet::All => None,
                ClassSet::Bits(bits) => Some(&**bits),
            })
            .collect();
        let classes = distinct.iter().map(|bits| bits.len() * 64).max().unwrap_or(0);
        let mut split = Split::new(classes);
        for set in distinct {
            split.by(set);
        }
        split.finish()
    }

    /// The group of a class.
    pub(crate) fn of(&self, ClassId(class): ClassId) -> u32 {
        self.of.get(class as usize).copied().unwrap_or(Self::UNNAMED)
    }

    /// How many numbers groups have.
    pub(crate) const fn len(&self) -> usize {
        self.len as usize
    }
}

/// Groups while they are being split.
struct Split {
    of: Vec<u32>,
    /// How many classes a group has. Those without number are all in the group of the unnamed, which never empties.
    sizes: Vec<usize>,
    /// Numbers of groups that emptied.
    free: Vec<u32>,
    /// By group: the set that split it last, and into which.
    parts: Vec<(u32, u32)>,
    set: u32,
}

impl Split {
    fn new(classes: usize) -> Self {
        Self {
            of: vec![Groups::UNNAMED; classes],
            sizes: vec![usize::MAX],
            free: Vec::new(),
            parts: vec![(0, 0)],
            set: 0,
        }
    }

    /// Moves the classes of a set into groups of their own.
    fn by(&mut self, set: &[u64]) {
        self.set += 1;
        for class in members(set) {
            let old = self.of[class] as usize;
            let new = match self.parts[old] {
                (set, part) if set == self.set => part,
                _ => {
                    let part = self.empty();
                    self.parts[old] = (self.set, part);
                    part
                }
            };
            self.of[class] = new;
            self.sizes[new as usize] += 1;
            self.sizes[old] -= 1;
            if self.sizes[old] == 0 {
                // Not before this set is through: its part is still being filled.
                self.parts[old] = (0, 0);
                self.free.push(u32::try_from(old).unwrap_or(u32::MAX));
            }
        }
    }

    fn empty(&mut self) -> u32 {
        if let Some(group) = self.free.pop() {
            // What this set makes of a group that it made itself is never asked.
            self.parts[group as usize] = (0, 0);
            return group;
        }
        self.sizes.push(0);
        self.parts.push((0, 0));
        u32::try_from(self.sizes.len() - 1).unwrap_or(u32::MAX)
    }

    /// Numbers the groups without gaps.
    fn finish(mut self) -> Groups {
        let mut numbers = HashMap::from([(Groups::UNNAMED, Groups::UNNAMED)]);
        for group in &mut self.of {
            let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
            *group = *numbers.entry(*group).or_insert(next);
        }
        while self.of.last() == Some(&Groups::UNNAMED) {
            self.of.pop();
        }
        Groups { of: self.of.into(), len: u32::try_from(numbers.len()).unwrap_or(u32::MAX) }
    }
}

/// The classes of a set's bits.
pub(super) fn members(bits: &[u64]) -> impl Iterator<Item = usize> + '_ {
    bits.iter().enumerate().flat_map(|(at, word)| {
        let mut rest = *word;
        std::iter::from_fn(move || {
            let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
            rest &= rest - 1;
            Some(at * 64 + bit)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn classes_share_a_group_where_they_share_every_set(
            sets in prop::collection::vec(prop::collection::vec(1..200u32, 0..40), 0..12),
        ) {
            let sets: Vec<ClassSet> =
                sets.into_iter().map(|classes| ClassSet::of(classes.into_iter().map(ClassId))).collect();
            let groups = Groups::new(sets.iter());
            let signature = |class| sets.iter().map(|set| set.contains(class)).collect::<Vec<_>>();
            for a in (1..300).map(ClassId) {
                prop_assert!((groups.of(a) as usize) < groups.len());
                for b in (1..300).map(ClassId) {
                    prop_assert_eq!(signature(a) == signature(b), groups.of(a) == groups.of(b), "{:?} {:?}", a, b);
                }
            }
        }
    }
}
