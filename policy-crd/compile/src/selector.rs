//! Label selectors as values that can be compared, hashed and matched.
//!
//! Knows nothing of where the labels come from.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Labels of a pod or a namespace.
pub(crate) type Labels = BTreeMap<String, String>;

/// A selector; without requirements it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Selector {
    /// All of them must hold. Sorted, without doubles.
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Requirement {
    pub(crate) key: Arc<str>,
    pub(crate) test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Test {
    In(Vec<Arc<str>>),
    NotIn(Vec<Arc<str>>),
    Exists,
    DoesNotExist,
}

/// What is wrong with a selector, at a path below it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadSelector {
    pub(crate) path: String,
    pub(crate) reason: String,
    pub(crate) remedy: &'static str,
}

impl Selector {
    pub(crate) fn new(selector: &LabelSelector) -> Result<Self, BadSelector> {
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements
                .push(Requirement { key: key.as_str().into(), test: Test::In(vec![value.as_str().into()]) });
        }
        for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
            let bad = |field: &str, reason: String, remedy| BadSelector {
                path: format!("matchExpressions[{index}]{field}"),
                reason,
                remedy,
            };
            if expression.key.is_empty() {
                return Err(bad("", "the expression names no key".into(), "write `key`"));
            }
            let mut values: Vec<Arc<str>> =
                expression.values.iter().flatten().map(|value| value.as_str().into()).collect();
            values.sort_unstable();
            values.dedup();
            let test = match (expression.operator.as_str(), values.is_empty()) {
                ("In", false) => Test::In(values),
                ("NotIn", false) => Test::NotIn(values),
                ("Exists", true) => Test::Exists,
                ("DoesNotExist", true) => Test::DoesNotExist,
                ("In" | "NotIn", true) => {
                    let reason = format!("{} needs values", expression.operator);
                    return Err(bad(".values", reason, "write at least one value"));
                }
                ("Exists" | "DoesNotExist", false) => {
                    let reason = format!("{} takes no values", expression.operator);
                    return Err(bad(".values", reason, "remove them, or write In or NotIn"));
                }
                (other, _) => {
                    let reason = format!("\"{other}\" is no operator");
                    return Err(bad(".operator", reason, "write In, NotIn, Exists or DoesNotExist"));
                }
            };
            requirements.push(Requirement { key: expression.key.as_str().into(), test });
        }
        requirements.sort_unstable();
        requirements.dedup();
        Ok(Self { requirements })
    }

    /// Whether the labels are selected.
    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&*requirement.key);
            match &requirement.test {
                Test::In(values) => value.is_some_and(|value| values.iter().any(|v| **v == **value)),
                // A label that is not there is not in the list either.
                Test::NotIn(values) => value.is_none_or(|value| values.iter().all(|v| **v != **value)),
                Test::Exists => value.is_some(),
                Test::DoesNotExist => value.is_none(),
            }
        })
    }

    /// What must all hold: sorted, without doubles.
    pub(crate) fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// The keys that it reads, each with the values that it asks for, if it asks for values.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = (&str, Option<&[Arc<str>]>)> {
        self.requirements.iter().map(|requirement| {
            let values = match &requirement.test {
                Test::In(values) => Some(&values[..]),
                Test::NotIn(_) | Test::Exists | Test::DoesNotExist => None,
            };
            (&*requirement.key, values)
        })
    }

    /// Labels that it selects, with nothing in them that it does not ask for: one set for each of the first values
    /// that it takes. None where it contradicts itself.
    pub(crate) fn examples(&self, most: usize) -> Vec<Labels> {
        let example = |choice: usize| {
            let mut out = Labels::new();
            for requirement in &self.requirements {
                let value = match &requirement.test {
                    Test::In(values) => &*values[choice.min(values.len() - 1)],
                    Test::Exists => "made-up",
                    Test::NotIn(_) | Test::DoesNotExist => continue,
                };
                out.entry(requirement.key.to_string()).or_insert_with(|| value.to_owned());
            }
            out
        };
        let longest = self.wanted().filter_map(|(_, values)| Some(values?.len())).max().unwrap_or(1);
        let mut out: Vec<Labels> = (0..longest.min(most)).map(example).collect();
        out.retain(|labels| self.matches(labels));
        out.dedup();
        out
    }

    /// Whether it selects everything.
    pub(crate) fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The keys that it reads.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.requirements.iter().map(|requirement| &requirement.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    fn expression(operator: &str, values: &[&str]) -> LabelSelector {
        LabelSelector {
            match_labels: None,
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: "app".into(),
                operator: operator.into(),
                values: Some(values.iter().map(ToString::to_string).collect()),
            }]),
        }
    }

    fn labels(value: Option<&str>) -> Labels {
        value.map(|value| ("app".to_owned(), value.to_owned())).into_iter().collect()
    }

    #[test]
    fn operators_mean_what_kubernetes_says() {
        for (operator, values, a, c, none) in [
            ("In", &["a", "b"][..], true, false, false),
            ("NotIn", &["a", "b"], false, true, true),
            ("Exists", &[], true, true, false),
            ("DoesNotExist", &[], false, false, true),
        ] {
            let selector = Selector::new(&expression(operator, values)).unwrap();
            assert_eq!(selector.matches(&labels(Some("a"))), a, "{operator} a");
            assert_eq!(selector.matches(&labels(Some("c"))), c, "{operator} c");
            assert_eq!(selector.matches(&labels(None)), none, "{operator} none");
        }
        assert!(Selector::default().matches(&labels(None)));
    }

    #[test]
    fn what_cannot_be_judged_is_refused() {
        for (operator, values) in
            [("In", &[][..]), ("NotIn", &[]), ("Exists", &["a"]), ("DoesNotExist", &["a"]), ("in", &["a"])]
        {
            assert!(Selector::new(&expression(operator, values)).is_err(), "{operator} {values:?}");
        }
    }
}
