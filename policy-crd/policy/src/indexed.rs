//! Profiles with their indexes: what a snapshot holds.
//!
//! A profile cannot be changed once it is here, so that its index is always of its own rules. The index is no part of
//! what a profile is: two that say the same are equal, built or not.

use crate::fold::Row;
use crate::index::SideIndex;
use crate::observe::Nobody;
use crate::profile::{Direction, Profile, Side};
use crate::trace::Trace;
use crate::verdict::{Connection, Facts, SideVerdict};
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

/// A profile and the index of each of its sides, built when first asked for.
#[derive(Default)]
pub struct IndexedProfile {
    profile: Profile,
    /// Boxed: where nobody judges, as in control, they are never built and take no room.
    indexes: [OnceLock<Box<SideIndex>>; 2],
}

impl IndexedProfile {
    /// One direction of it, to be judged by.
    #[must_use]
    pub fn side(&self, direction: Direction) -> IndexedSide<'_> {
        let side = self.profile.side(direction);
        let index = self.indexes[direction as usize].get_or_init(|| Box::new(SideIndex::new(side)));
        IndexedSide { side, index }
    }
}

impl From<Profile> for IndexedProfile {
    fn from(profile: Profile) -> Self {
        Self { profile, indexes: Default::default() }
    }
}

impl Deref for IndexedProfile {
    type Target = Profile;

    fn deref(&self) -> &Profile {
        &self.profile
    }
}

impl PartialEq for IndexedProfile {
    fn eq(&self, other: &Self) -> bool {
        self.profile == other.profile
    }
}

impl Eq for IndexedProfile {}

impl fmt::Debug for IndexedProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.profile.fmt(f)
    }
}

/// One direction of a profile, with its index. Judges as [`Side`] does, and need not ask every rule.
#[derive(Clone, Copy, Debug)]
pub struct IndexedSide<'a> {
    side: &'a Side,
    pub(crate) index: &'a SideIndex,
}

impl IndexedSide<'_> {
    /// As [`Side::judge`].
    #[must_use]
    pub fn judge(self, connection: &Connection, facts: Facts<'_>) -> SideVerdict {
        self.side.judge_watched(Some(self.index), connection, facts, &mut Nobody)
    }

    /// As [`Side::row`].
    #[must_use]
    pub fn row(self, connection: &Connection) -> Row {
        self.side.row_by(Some(self.index), connection)
    }

    /// As [`Side::trace`].
    #[must_use]
    pub fn trace(self, connection: &Connection, facts: Facts<'_>) -> (SideVerdict, Trace) {
        self.side.trace_by(Some(self.index), connection, facts)
    }
}

impl Deref for IndexedSide<'_> {
    type Target = Side;

    fn deref(&self) -> &Side {
        self.side
    }
}

/// The profiles of a snapshot, by [`ProfileId`](crate::ProfileId). Reads like a slice; made from profiles, or from
/// those of a snapshot before it, which keep the indexes that they have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profiles(Vec<Arc<IndexedProfile>>);

impl Profiles {
    /// Builds every index now, rather than for the first request that needs it.
    pub fn prepare(&self) {
        for profile in &self.0 {
            for direction in Direction::ALL {
                let _ = profile.side(direction);
            }
        }
    }

    /// The profiles themselves, to make others of.
    #[must_use]
    pub fn to_vec(&self) -> Vec<Profile> {
        self.0.iter().map(|profile| profile.profile.clone()).collect()
    }
}

impl From<Vec<Profile>> for Profiles {
    fn from(profiles: Vec<Profile>) -> Self {
        profiles.into_iter().collect()
    }
}

impl FromIterator<Profile> for Profiles {
    fn from_iter<I: IntoIterator<Item = Profile>>(profiles: I) -> Self {
        profiles.into_iter().map(|profile| Arc::new(profile.into())).collect()
    }
}

impl FromIterator<Arc<IndexedProfile>> for Profiles {
    fn from_iter<I: IntoIterator<Item = Arc<IndexedProfile>>>(profiles: I) -> Self {
        Self(profiles.into_iter().collect())
    }
}

impl Deref for Profiles {
    type Target = [Arc<IndexedProfile>];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<'a> IntoIterator for &'a Profiles {
    type Item = &'a Arc<IndexedProfile>;
    type IntoIter = std::slice::Iter<'a, Arc<IndexedProfile>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}
