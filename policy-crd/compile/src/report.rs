//! Where lowering puts what it finds wrong with one object.
//!
//! Knows nothing of what is lowered; counts errors, so that an object that has one is not accepted.

use sluice_crd::{Category, Problem, Problems, Severity, Source};

/// Where problems of one object go.
pub(crate) struct Report<'a> {
    pub(crate) source: &'a Source,
    problems: Problems,
    /// What an error costs, for the reason.
    pub(crate) effect: &'static str,
    pub(crate) errors: usize,
    /// Regular expressions so far.
    pub(crate) regexes: usize,
}

impl<'a> Report<'a> {
    pub(crate) fn new(source: &'a Source, effect: &'static str) -> Self {
        Self { source, problems: Problems::default(), effect, errors: 0, regexes: 0 }
    }

    /// Hands over what was found; says whether nothing was an error.
    pub(crate) fn finish(self, problems: &mut Vec<Problem>) -> bool {
        let clean = self.errors == 0;
        problems.extend(self.problems.into_list(self.source));
        clean
    }

    pub(crate) fn error(&mut self, path: &str, reason: impl AsRef<str>, remedy: impl Into<String>) {
        self.error_of(Category::Value, path, reason, remedy);
    }

    /// An error that is of another category than most.
    pub(crate) fn error_of(
        &mut self,
        category: Category,
        path: &str,
        reason: impl AsRef<str>,
        remedy: impl Into<String>,
    ) {
        self.errors += 1;
        let reason = format!("{}; {}", reason.as_ref(), self.effect);
        self.problems.add(self.source.problem(Severity::Error, path, reason, remedy).of(category));
    }

    pub(crate) fn warn(&mut self, path: &str, reason: impl Into<String>, remedy: impl Into<String>) {
        self.warn_of(Category::Surprise, path, reason, remedy);
    }

    /// A warning that is of another category than most.
    pub(crate) fn warn_of(
        &mut self,
        category: Category,
        path: &str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.problems.add(self.source.problem(Severity::Warning, path, reason, remedy).of(category));
    }
}
