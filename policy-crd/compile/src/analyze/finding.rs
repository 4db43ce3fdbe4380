//! What a check says, and where it says it.
//!
//! Knows nothing of the checks, of terminals or of formats; the CLI draws findings.

use super::codes::Code;
use sluice_crd::{Place, Problem, Severity, Source};
use std::sync::Arc;

/// Most findings that are told: more are nobody's reading, and a machine is helped by the count of the rest.
pub const MAX_FINDINGS: usize = 2000;

/// One finding.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What it is.
    pub code: &'static Code,
    /// Where it is, how bad, and what to do.
    pub problem: Problem,
    /// Other places that it is about.
    pub related: Vec<Related>,
}

/// A place that a finding is about, too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Related {
    /// Where.
    pub place: Place,
    /// The object there, as `Kind/namespace/name`.
    pub object: Option<Arc<str>>,
    /// What it has to do with the finding.
    pub message: String,
}

impl Related {
    pub(super) fn new(source: &Source, path: &str, message: impl Into<String>) -> Self {
        Self { place: source.place(path), object: source.object().cloned(), message: message.into() }
    }
}

/// Findings as they are made.
#[derive(Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    /// A finding of the code's usual severity.
    pub(super) fn add(
        &mut self,
        code: &'static Code,
        source: &Source,
        path: &str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add_with(code, source, path, reason, remedy, Vec::new());
    }

    /// A finding that is about other places, too.
    pub(super) fn add_with(
        &mut self,
        code: &'static Code,
        source: &Source,
        path: &str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
        related: Vec<Related>,
    ) {
        let problem = source.problem(code.severity, path, reason, remedy);
        self.0.push(Finding { code, problem, related });
    }

    /// A finding of another severity than its code usually has.
    pub(super) fn add_as(
        &mut self,
        severity: Severity,
        code: &'static Code,
        source: &Source,
        path: &str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.problem(code, source.problem(severity, path, reason, remedy));
    }

    /// What reading or lowering found.
    pub(super) fn problem(&mut self, code: &'static Code, problem: Problem) {
        self.0.push(Finding { code, problem, related: Vec::new() });
    }

    /// In the order of the files, each once, and how many did not fit.
    pub(super) fn finish(mut self) -> (Vec<Finding>, usize) {
        self.0.sort_by(|a, b| (&a.problem, a.code.id, &a.related).cmp(&(&b.problem, b.code.id, &b.related)));
        self.0.dedup_by(|a, b| a.problem == b.problem && a.code.id == b.code.id);
        let omitted = self.0.len().saturating_sub(MAX_FINDINGS);
        if omitted > 0 {
            // An error is not left out for what is less.
            self.0.sort_by_key(|finding| finding.problem.severity);
            self.0.truncate(MAX_FINDINGS);
            self.0.sort_by(|a, b| a.problem.cmp(&b.problem));
        }
        (self.0, omitted)
    }
}

/// The worst severity among findings.
#[must_use]
pub fn worst(findings: &[Finding]) -> Option<Severity> {
    findings.iter().map(|finding| finding.problem.severity).min()
}
