//! How much of a compilation was done anew, for tests and for people.
//!
//! No result depends on it.

/// What the last change of the objects has cost, and the snapshots made since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Objects that were lowered, for they are new or say something else.
    pub lowered: usize,
    /// Objects of which the rules were known.
    pub reused: usize,
    /// Policies whose peers were looked for, by node.
    pub resolved: usize,
    /// Profiles that were put together.
    pub profiles_built: usize,
    /// Profiles that were there, and are the very same.
    pub profiles_reused: usize,
    /// Classes that got a number.
    pub classes_added: usize,
    /// Classes that are gone.
    pub classes_removed: usize,
    /// Classes that kept their number.
    pub classes_kept: usize,
}
