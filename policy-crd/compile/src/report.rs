//! Where lowering puts what it finds wrong with one object.
//!
//! Knows nothing of what is lowered; counts errors, so that an object that has one is not accepted.

use sluice_crd::{Problem, Severity, Source};

/// Where problems of one object go.
pub(crate) struct Report<'a> {
    pub(crate) source: &'a Source,
    pub(crate) problems: &'a mut Vec<Problem>,
    /// What an error costs, for the reason.
    pub(crate) effect: &'static str,
    pub(crate) errors: usize,
    /// Regular expressions so far.
    pub(crate) regexes: usize,
}

impl Report<'_> {
    pub(crate) fn error(&mut self, path: &str, reason: impl AsRef<str>, remedy: impl Into<String>) {
        self.errors += 1;
        let reason = format!("{}; {}", reason.as_ref(), self.effect);
        self.problems.push(self.source.problem(Severity::Error, path, reason, remedy));
    }

    pub(crate) fn not_built(&mut self, path: &str) {
        self.error(path, "not built yet", "say it without, or wait for it");
    }

    pub(crate) fn warn(&mut self, path: &str, reason: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(self.source.problem(Severity::Warning, path, reason, remedy));
    }
}
