//! Which pods a policy is about, and in which namespaces they are.
//!
//! Knows nothing of rules.

use crate::index::{Index, NamespaceEntry};
use crate::labelled::Labelled;
use crate::lower::PolicyIr;
use crate::lowering::LoweredPolicy;
use crate::selector::Selector;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

/// Pods and namespaces, ready to be selected.
pub(crate) struct Subjects<'a> {
    index: &'a Index,
    pods: Labelled,
    namespaces: Labelled,
    /// By number, in the order of their names.
    names: Vec<(&'a Arc<str>, &'a NamespaceEntry)>,
    /// The pods of each namespace that has any.
    ranges: HashMap<&'a str, Range<usize>>,
}

impl<'a> Subjects<'a> {
    pub(crate) fn new(index: &'a Index, policies: &[LoweredPolicy]) -> Self {
        let keys = |selector: fn(&PolicyIr) -> Option<&Selector>| -> HashSet<&str> {
            let selectors = policies.iter().filter_map(|policy| selector(&policy.ir));
            selectors.flat_map(Selector::keys).map(|key| &**key).collect()
        };
        let of_pods = keys(|ir| Some(&ir.selector));
        let of_namespaces = keys(|ir| Some(&ir.tiered.as_ref()?.namespaces));
        let pods = index.pods.iter().map(|pod| &pod.labels).enumerate();
        let namespaces = index.namespaces.values().map(|entry| &entry.labels).enumerate();
        Self {
            index,
            pods: Labelled::new(pods, |key| of_pods.contains(key)),
            namespaces: Labelled::new(namespaces, |key| of_namespaces.contains(key)),
            names: index.namespaces.iter().collect(),
            ranges: ranges(index),
        }
    }

    /// A namespace by its name.
    pub(crate) fn namespace(&self, name: &str) -> Option<&'a NamespaceEntry> {
        self.index.namespaces.get(name)
    }

    /// The namespaces that a policy of several is about, in the order of their names: a tier's by the labels of the
    /// namespace, any other by its pods, for its selector reads both at once.
    pub(crate) fn namespaces(&self, policy: &PolicyIr) -> Vec<(&'a Arc<str>, &'a NamespaceEntry)> {
        let numbered = |number: usize| self.names.get(number).copied();
        let Some(tiered) = &policy.tiered else {
            let everyone = self.pods.candidates(&policy.selector, 0..self.index.pods.len());
            let selected = everyone.into_iter().map(|pod| &self.index.pods[pod]);
            let selected = selected.filter(|pod| policy.selector.matches(&pod.labels));
            let names: BTreeSet<&Arc<str>> = selected.map(|pod| &pod.workload.namespace).collect();
            return names.into_iter().filter_map(|name| self.index.namespaces.get_key_value(name)).collect();
        };
        let mut found = self.namespaces.candidates(&tiered.namespaces, 0..self.names.len());
        found.sort_unstable();
        let found = found.into_iter().filter_map(numbered);
        found.filter(|(_, entry)| tiered.namespaces.matches(&entry.labels)).collect()
    }

    /// For every pod, the policies that select it, in order.
    pub(crate) fn selections(&self, policies: &[LoweredPolicy]) -> Vec<Vec<usize>> {
        let mut out = vec![Vec::new(); self.index.pods.len()];
        for (number, policy) in policies.iter().enumerate() {
            let policy = &*policy.ir;
            let mut select = |namespace: &str| {
                let Some(range) = self.ranges.get(namespace) else { return };
                for pod in self.pods.candidates(&policy.selector, range.clone()) {
                    if policy.selector.matches(&self.index.pods[pod].labels) {
                        out[pod].push(number);
                    }
                }
            };
            match policy.members() {
                None => select(&policy.origin.namespace),
                Some(members) => members.iter().for_each(|namespace| select(namespace)),
            }
        }
        out
    }
}

/// The pods of each namespace: a range, for they are sorted.
fn ranges(index: &Index) -> HashMap<&str, Range<usize>> {
    let mut out: HashMap<&str, Range<usize>> = HashMap::new();
    for (number, pod) in index.pods.iter().enumerate() {
        out.entry(&pod.workload.namespace).or_insert(number..number).end = number + 1;
    }
    out
}
