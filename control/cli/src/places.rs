//! Where policies and their rules stand in the files: `examples/shop/cart.yaml:13:5`.
//!
//! Knows nothing of what a rule means. What cannot be found exactly is found as far as possible: the policy instead
//! of its rule.

use sluice_crd::{Objects, RuleObject, Source};
use sluice_policy::Policy;
use std::collections::HashMap;
use std::sync::Arc;

/// The places of every policy and rule of some objects.
#[derive(Default)]
pub(crate) struct Places {
    policies: HashMap<Arc<str>, Entry>,
}

struct Entry {
    source: Source,
    /// Rules that have names, by them, with their paths.
    named: HashMap<Arc<str>, String>,
}

impl Places {
    pub(crate) fn new(objects: &Objects) -> Self {
        let mut places = Self::default();
        for policy in &objects.policies {
            let sections = [&policy.ingress, &policy.egress, &policy.ingress_deny, &policy.egress_deny];
            let rules = sections.into_iter().filter_map(|section| section.value()).flatten();
            places.add(&policy.source, rules.filter_map(named));
        }
        for policy in &objects.cluster_l7_policies {
            let sections =
                [&policy.ingress, &policy.egress].into_iter().filter_map(|section| section.value());
            places.add(&policy.source, sections.flatten().filter_map(|tiered| named(&tiered.rule)));
        }
        for policy in &objects.cluster_network_policies {
            let sections =
                [&policy.ingress, &policy.egress].into_iter().filter_map(|section| section.value());
            let named = sections
                .flatten()
                .filter_map(|tiered| Some((tiered.rule.name.clone()?, tiered.rule.path.clone())));
            places.add(&policy.source, named);
        }
        for policy in &objects.cilium {
            places.add(&policy.source, std::iter::empty());
        }
        places
    }

    fn add(&mut self, source: &Source, rules: impl Iterator<Item = (Arc<str>, String)>) {
        let Some(object) = source.object() else { return };
        let mut entry = Entry { source: source.clone(), named: HashMap::new() };
        for (name, path) in rules {
            // Of two with one name the first has it.
            entry.named.entry(name).or_insert(path);
        }
        self.policies.entry(object.clone()).or_insert(entry);
    }

    /// Where a rule of a policy stands; `None` where its object came from no file.
    pub(crate) fn rule(&self, policy: &Policy, rule: &str) -> Option<String> {
        let entry = self.policies.get(policy.origin.to_string().as_str())?;
        let path = match entry.named.get(rule) {
            Some(path) => path.clone(),
            // A rule without a name is known by its path.
            None if rule.starts_with("spec") => rule.to_owned(),
            None => format!("spec.{rule}"),
        };
        let place = entry.source.place(&path);
        (!place.file.is_empty()).then(|| match place.line {
            0 => place.file.to_string(),
            line => format!("{}:{line}:{}", place.file, place.column),
        })
    }
}

fn named(rule: &RuleObject) -> Option<(Arc<str>, String)> {
    Some((rule.name.clone()?, rule.path.clone()))
}
