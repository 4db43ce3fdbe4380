//! What the result of a migration does not say as the original did.
//!
//! Knows nothing of how it is found.

use sluice_crd::{Problem, Severity, Source};
use std::fmt;

/// In which way the result differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LossKind {
    /// The result lets through what the original refuses.
    Widened,
    /// The result refuses what the original lets through.
    Narrowed,
    /// A part of the original is not in the result: an allow that is left out refuses what it let through.
    Dropped,
    /// The result says the same today and does not follow: what the original finds by itself (namespaces, groups of
    /// CIDRs, service accounts) stands in it by name.
    Frozen,
}

impl LossKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Widened, Self::Narrowed, Self::Dropped, Self::Frozen];

    /// `widened`, `narrowed`, `dropped` or `frozen`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Widened => "widened",
            Self::Narrowed => "narrowed",
            Self::Dropped => "dropped",
            Self::Frozen => "frozen",
        }
    }
}

impl fmt::Display for LossKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One loss, and its place in the original.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loss {
    /// Where, what and what to do.
    pub problem: Problem,
    /// In which way.
    pub kind: LossKind,
}

/// Where the losses of one object go.
pub(super) struct Told<'a> {
    pub(super) source: &'a Source,
    pub(super) losses: Vec<Loss>,
}

impl<'a> Told<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        Self { source, losses: Vec::new() }
    }

    pub(super) fn tell(
        &mut self,
        kind: LossKind,
        path: &str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let problem = self.source.problem(Severity::Warning, path, reason, remedy);
        self.losses.push(Loss { problem, kind });
    }
}
