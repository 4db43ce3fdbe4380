//! Cilium's selectors, which are over one set of labels, taken apart into what our kinds ask of pods, of namespaces and
//! of service accounts; and what two selectors have in common.
//!
//! Knows nothing of rules.

use crate::cilium::selector::{CLUSTER, CLUSTER_NAME, NAMESPACE, NAMESPACE_LABELS, PREFIX, SERVICE_ACCOUNT};
use crate::index::NAME_LABEL;
use crate::selector::{Labels, Requirement, Selector, Test};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use sluice_crd::limits::{MAX_SELECTOR, MAX_SELECTOR_VALUES};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Whom a selector means, by who has the label.
#[derive(Clone, Debug, Default)]
pub(super) struct Chosen {
    /// Of the namespace; its name stands under the label that every namespace has.
    pub(super) namespaces: Vec<Requirement>,
    /// Of the pod.
    pub(super) pods: Vec<Requirement>,
    /// Of the name of the service account.
    pub(super) accounts: Vec<Test>,
}

impl Chosen {
    /// Takes a selector apart. `None`: it means nobody, whatever pods there are.
    pub(super) fn new(selector: &Selector) -> Option<Self> {
        let mut out = Self::default();
        for Requirement { key, test } in selector.requirements() {
            let Some(label) = key.strip_prefix(PREFIX) else {
                out.pods.push(Requirement { key: key.clone(), test: test.clone() });
                continue;
            };
            let known = |value: Option<&str>| meets(test, value);
            match label {
                // A label that no pod has.
                "" if !known(None) => return None,
                CLUSTER if !known(Some(CLUSTER_NAME)) => return None,
                "" | CLUSTER => {}
                // Every pod has a namespace and an account.
                NAMESPACE | SERVICE_ACCOUNT if *test == Test::DoesNotExist => return None,
                NAMESPACE | SERVICE_ACCOUNT if *test == Test::Exists => {}
                NAMESPACE => {
                    out.namespaces.push(Requirement { key: NAME_LABEL.into(), test: test.clone() });
                }
                SERVICE_ACCOUNT => out.accounts.push(test.clone()),
                _ => {
                    let (key, of) = match label.strip_prefix(NAMESPACE_LABELS) {
                        Some(key) => (key, &mut out.namespaces),
                        None => (label, &mut out.pods),
                    };
                    of.push(Requirement { key: key.into(), test: test.clone() });
                }
            }
        }
        for of in [&mut out.namespaces, &mut out.pods] {
            of.sort_unstable();
            of.dedup();
        }
        Some(out)
    }

    /// Whether it is about the pods of this one namespace.
    pub(super) fn is_of(&self, namespace: &str) -> bool {
        let named = |one: &Requirement| {
            &*one.key == NAME_LABEL
                && matches!(&one.test, Test::In(names) if matches!(&names[..], [name] if **name == *namespace))
        };
        !self.namespaces.is_empty() && self.namespaces.iter().all(named)
    }

    /// Whether a namespace is asked for nothing but its name.
    pub(super) fn asks_names_alone(&self) -> bool {
        self.namespaces.iter().all(|one| &*one.key == NAME_LABEL)
    }

    /// The namespaces that it names, if it names them.
    pub(super) fn named(&self) -> Option<&[Arc<str>]> {
        self.namespaces.iter().find_map(|one| match &one.test {
            Test::In(names) if &*one.key == NAME_LABEL => Some(&names[..]),
            _ => None,
        })
    }

    /// Whether a namespace with these labels is meant.
    pub(super) fn takes_namespace(&self, labels: &Labels) -> bool {
        self.namespaces.iter().all(|one| meets(&one.test, labels.get(&*one.key).map(String::as_str)))
    }

    /// The accounts that it names, if it names them and rules out no other way.
    pub(super) fn account_names(&self) -> Option<Vec<Arc<str>>> {
        let (first, rest) = self.accounts.split_first()?;
        let Test::In(names) = first else { return None };
        let met = |name: &&Arc<str>| rest.iter().all(|test| meets(test, Some(name)));
        Some(names.iter().filter(met).cloned().collect())
    }
}

/// Whether a label with this value, or its absence, is what it must be.
fn meets(test: &Test, value: Option<&str>) -> bool {
    match test {
        Test::In(values) => value.is_some_and(|value| values.iter().any(|one| **one == *value)),
        Test::NotIn(values) => value.is_none_or(|value| values.iter().all(|one| **one != *value)),
        Test::Exists => value.is_some(),
        Test::DoesNotExist => value.is_none(),
    }
}

/// Whether our kinds take a selector as long as this.
pub(super) fn fits(requirements: &[Requirement]) -> bool {
    let values = |one: &Requirement| match &one.test {
        Test::In(values) | Test::NotIn(values) => values.len(),
        Test::Exists | Test::DoesNotExist => 0,
    };
    requirements.len() <= MAX_SELECTOR && requirements.iter().all(|one| values(one) <= MAX_SELECTOR_VALUES)
}

/// The selector as Kubernetes writes it: what must be one value as a label, the rest as expressions.
pub(super) fn written(requirements: &[Requirement]) -> LabelSelector {
    let mut labels = BTreeMap::new();
    let mut expressions = Vec::new();
    for Requirement { key, test } in requirements {
        let (operator, values) = match test {
            Test::In(values) => match &values[..] {
                [one] if !labels.contains_key(&**key) => {
                    labels.insert(key.to_string(), one.to_string());
                    continue;
                }
                many => ("In", many),
            },
            Test::NotIn(values) => ("NotIn", &values[..]),
            Test::Exists => ("Exists", &[][..]),
            Test::DoesNotExist => ("DoesNotExist", &[][..]),
        };
        expressions.push(LabelSelectorRequirement {
            key: key.to_string(),
            operator: operator.into(),
            values: (!values.is_empty()).then(|| values.iter().map(ToString::to_string).collect()),
        });
    }
    LabelSelector {
        match_labels: (!labels.is_empty()).then_some(labels),
        match_expressions: (!expressions.is_empty()).then_some(expressions),
    }
}

/// Whether some pod may be selected by both: no label has to be two things.
pub(super) fn may_meet(a: &[Requirement], b: &[Requirement]) -> bool {
    let apart =
        |one: &Requirement, other: &Requirement| one.key == other.key && excludes(&one.test, &other.test);
    !a.iter().any(|one| b.iter().any(|other| apart(one, other) || apart(other, one)))
}

fn excludes(one: &Test, other: &Test) -> bool {
    match (one, other) {
        (Test::In(values), other) => values.iter().all(|value| !meets(other, Some(value))),
        (Test::Exists, Test::DoesNotExist) => true,
        _ => false,
    }
}

/// Whether every pod that `inner` selects is selected by `outer`, as far as can be told.
pub(super) fn within(inner: &[Requirement], outer: &[Requirement]) -> bool {
    outer
        .iter()
        .all(|wanted| inner.iter().any(|given| given.key == wanted.key && implies(&given.test, &wanted.test)))
}

fn implies(given: &Test, wanted: &Test) -> bool {
    match (given, wanted) {
        (Test::In(values), wanted) => values.iter().all(|value| meets(wanted, Some(value))),
        (Test::DoesNotExist, wanted) => meets(wanted, None),
        (Test::NotIn(more), Test::NotIn(less)) => less.iter().all(|value| more.contains(value)),
        (given, wanted) => given == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str, operator: &str, values: &[&str]) -> LabelSelectorRequirement {
        let values = (!values.is_empty()).then(|| values.iter().map(ToString::to_string).collect());
        LabelSelectorRequirement { key: key.into(), operator: operator.into(), values }
    }

    fn all(expressions: Vec<LabelSelectorRequirement>) -> Selector {
        Selector::new(&LabelSelector { match_labels: None, match_expressions: Some(expressions) }).unwrap()
    }

    fn requirements(key: &str, operator: &str, values: &[&str]) -> Vec<Requirement> {
        all(vec![one(key, operator, values)]).requirements().to_vec()
    }

    #[test]
    fn labels_go_to_whom_they_belong() {
        let selector = all(vec![
            one("k8s:app", "In", &["x"]),
            one("k8s:io.kubernetes.pod.namespace", "In", &["a"]),
            one("k8s:io.cilium.k8s.namespace.labels.team", "Exists", &[]),
            one("k8s:io.cilium.k8s.policy.serviceaccount", "In", &["one", "two"]),
            one("k8s:io.cilium.k8s.policy.serviceaccount", "NotIn", &["two"]),
            one("k8s:io.cilium.k8s.policy.cluster", "In", &["default"]),
        ]);
        let chosen = Chosen::new(&selector).unwrap();
        assert_eq!(written(&chosen.pods).match_labels.unwrap()["app"], "x");
        assert_eq!(chosen.named().unwrap(), ["a".into()]);
        assert!(!chosen.is_of("a") && !chosen.asks_names_alone());
        assert_eq!(chosen.account_names().unwrap(), ["one".into()]);
        for nobody in [
            one("k8s:io.cilium.k8s.policy.cluster", "In", &["other"]),
            one("k8s:io.kubernetes.pod.namespace", "DoesNotExist", &[]),
            one("k8s:", "Exists", &[]),
        ] {
            assert!(Chosen::new(&all(vec![nobody])).is_none());
        }
    }

    #[test]
    fn selectors_meet_unless_a_label_would_have_to_be_two_things() {
        let app = |operator, values: &[&str]| requirements("app", operator, values);
        for (a, b) in [
            (app("In", &["a"]), app("In", &["b"])),
            (app("In", &["a"]), app("NotIn", &["a", "b"])),
            (app("DoesNotExist", &[]), app("In", &["a"])),
            (app("Exists", &[]), app("DoesNotExist", &[])),
        ] {
            assert!(!may_meet(&a, &b) && !may_meet(&b, &a), "{a:?} {b:?}");
        }
        for (a, b) in [
            (app("In", &["a", "b"]), app("In", &["b"])),
            (app("NotIn", &["a"]), app("DoesNotExist", &[])),
            (app("In", &["a"]), requirements("tier", "In", &["b"])),
            (app("In", &["a"]), Vec::new()),
        ] {
            assert!(may_meet(&a, &b) && may_meet(&b, &a), "{a:?} {b:?}");
        }
    }

    #[test]
    fn one_selector_lies_within_another() {
        let app = |operator, values: &[&str]| requirements("app", operator, values);
        assert!(within(&app("In", &["a"]), &[]) && within(&app("In", &["a"]), &app("Exists", &[])));
        assert!(
            within(&app("In", &["a"]), &app("In", &["a", "b"]))
                && within(&app("DoesNotExist", &[]), &app("NotIn", &["a"]))
        );
        assert!(!within(&[], &app("Exists", &[])) && !within(&app("In", &["a", "b"]), &app("In", &["a"])));
        assert!(!within(&app("NotIn", &["a"]), &app("NotIn", &["a", "b"])));
    }
}
