//! Peer classes: what the kernel and the verdict key on instead of an address.
//!
//! A class folds identity, the set of policy CIDRs that contain the address and the named-port numbers. The
//! compiler numbers them, the same from one snapshot to the next where it can. Knows nothing of what a class stands
//! for.

use std::sync::Arc;

/// A peer class, by its number in one snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClassId(pub u32);

impl ClassId {
    /// An address of the cluster's pod ranges that has no binding, or a node's address worn by forwarded
    /// traffic: nobody knows who this is. No allow matches it; every deny does.
    pub const MISSING: Self = Self(0);
}

/// A set of peer classes. [`ClassId::MISSING`] is in no set; the verdict treats it apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClassSet {
    /// Every class (a rule without `from` or `to`).
    All,
    /// These classes, as a bit set over class numbers. Many rules share one.
    Bits(Arc<[u64]>),
}

impl ClassSet {
    /// The set of these classes.
    #[must_use]
    pub fn of(classes: impl IntoIterator<Item = ClassId>) -> Self {
        let mut bits = Vec::new();
        for ClassId(id) in classes {
            let word = id as usize / 64;
            if bits.len() <= word {
                bits.resize(word + 1, 0);
            }
            bits[word] |= 1 << (id % 64);
        }
        Self::Bits(bits.into())
    }

    /// Whether the class is in the set.
    #[must_use]
    pub fn contains(&self, ClassId(id): ClassId) -> bool {
        match self {
            Self::All => true,
            Self::Bits(bits) => bits.get(id as usize / 64).is_some_and(|word| word >> (id % 64) & 1 == 1),
        }
    }

    /// Whether no class is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::All => false,
            Self::Bits(bits) => bits.iter().all(|word| *word == 0),
        }
    }
}
