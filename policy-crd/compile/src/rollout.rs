//! Which namespaces are in the dataplane, and how strictly their policies hold.
//!
//! Knows labels alone. A label that cannot be read counts as the strictest.

use crate::index::{Index, NamespaceEntry};
use sluice_crd::{Problem, Severity};
use sluice_policy::Mode;
use std::collections::HashSet;
use std::sync::Arc;

const DATAPLANE: &str = "sluice.dev/dataplane";
const ENFORCEMENT: &str = "sluice.dev/enforcement";

/// How strictly policies hold at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Enforcement {
    /// Not judged.
    Off,
    /// Judged and reported.
    Audit,
    /// Decides.
    Enforce,
}

/// How the namespaces' labels count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollout {
    /// As if every namespace were enabled and enforcing.
    AsIfEnforced,
    /// As the labels say.
    AsLabelled {
        /// Whether a namespace without the label is in the dataplane.
        default_dataplane: bool,
        /// The cluster's cap.
        max_enforcement: Enforcement,
    },
}

impl Rollout {
    /// Whether the pods of a namespace are in the dataplane.
    pub(crate) fn in_dataplane(self, namespace: Option<&NamespaceEntry>) -> bool {
        let Self::AsLabelled { default_dataplane, .. } = self else { return true };
        match namespace.and_then(|entry| entry.labels.get(DATAPLANE)).map(String::as_str) {
            None => default_dataplane,
            Some("disabled") => false,
            Some(_) => true,
        }
    }

    /// The effective mode of a policy; `None` is off.
    pub(crate) fn mode(self, namespace: Option<&NamespaceEntry>, spec: Mode) -> Option<Mode> {
        let Self::AsLabelled { max_enforcement, .. } = self else { return Some(spec) };
        let label = match namespace.and_then(|entry| entry.labels.get(ENFORCEMENT)).map(String::as_str) {
            Some("off") => Enforcement::Off,
            Some("audit") => Enforcement::Audit,
            _ => Enforcement::Enforce,
        };
        let spec = match spec {
            Mode::Audit => Enforcement::Audit,
            Mode::Enforce => Enforcement::Enforce,
        };
        match max_enforcement.min(label).min(spec) {
            Enforcement::Off => None,
            Enforcement::Audit => Some(Mode::Audit),
            Enforcement::Enforce => Some(Mode::Enforce),
        }
    }
}

/// Labels of ours that nobody can read.
pub(crate) fn check(index: &Index, problems: &mut Vec<Problem>) {
    for entry in index.namespaces.values() {
        let Some(source) = &entry.source else { continue };
        let lists = [
            (DATAPLANE, &["enabled", "disabled"][..], "it counts as enabled"),
            (ENFORCEMENT, &["off", "audit", "enforce"], "it counts as enforce"),
        ];
        for (label, words, effect) in lists {
            let Some(value) = entry.labels.get(label).filter(|value| !words.contains(&value.as_str())) else {
                continue;
            };
            let reason = format!("\"{}\" is no value of this label; {effect}", value.escape_debug());
            let path = format!("metadata.labels.{label}");
            let remedy = format!("write {}", words.join(", "));
            problems.push(source.problem(Severity::Error, &path, reason, remedy));
        }
    }
}

/// The namespaces in the dataplane.
pub(crate) fn enabled(index: &Index, rollout: Rollout) -> HashSet<Arc<str>> {
    let in_dataplane = |(_, entry): &(&Arc<str>, &NamespaceEntry)| rollout.in_dataplane(Some(entry));
    index.namespaces.iter().filter(in_dataplane).map(|(name, _)| name.clone()).collect()
}
