//! Cilium's label selectors, whose keys say where a label comes from, as selectors over one set of labels.
//!
//! A pod has, beside its own labels, those that Cilium derives: its namespace and the namespace's labels, its service
//! account, its cluster. They are kept under [`PREFIX`], which no label of Kubernetes can have, so that a pod that
//! gives itself such a label says nothing by it.

use crate::index::{NamespaceEntry, PodEntry};
use crate::report::Report;
use crate::selector::Selector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use sluice_crd::Category;

/// Where Cilium's labels of a pod are kept among its labels.
pub(crate) const PREFIX: &str = "k8s:";

/// Its namespace.
pub(crate) const NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Before each label of its namespace.
pub(crate) const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
/// Its service account.
pub(crate) const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";
/// Its cluster.
pub(crate) const CLUSTER: &str = "io.cilium.k8s.policy.cluster";
/// Cilium's default for `cluster.name`; there is no other cluster here.
pub(crate) const CLUSTER_NAME: &str = "default";

/// What a key asks for.
enum Key<'a> {
    /// A label of a pod, its own or a derived one.
    Pod(&'a str),
    /// What is no pod: `reserved:world`.
    Reserved,
    /// From somewhere that is not known here.
    Elsewhere(&'a str),
}

fn key(given: &str) -> Key<'_> {
    match given.split_once(':') {
        None => Key::Pod(given),
        Some(("k8s" | "any", rest)) if !rest.is_empty() => Key::Pod(rest),
        Some(("reserved", _)) => Key::Reserved,
        Some((source, _)) => Key::Elsewhere(source),
    }
}

/// One pod's value of a key under [`PREFIX`].
pub(crate) fn value(pod: &PodEntry, namespace: Option<&NamespaceEntry>, key: &str) -> Option<String> {
    let key = key.strip_prefix(PREFIX)?;
    match key {
        NAMESPACE => Some(pod.workload.namespace.to_string()),
        SERVICE_ACCOUNT => Some(pod.workload.service_account.to_string()),
        CLUSTER => Some(CLUSTER_NAME.to_owned()),
        _ => match key.strip_prefix(NAMESPACE_LABELS) {
            Some(label) => namespace?.labels.get(label).cloned(),
            None => pod.labels.get(key).cloned(),
        },
    }
}

/// What a key under [`PREFIX`] is a label of.
pub(crate) enum Derived<'k> {
    /// The pod, by this key.
    Own(&'k str),
    /// Its namespace's name.
    Namespace,
    /// Its namespace, by this key.
    NamespaceLabel(&'k str),
    /// Its service account's name.
    ServiceAccount,
    /// Its cluster's name.
    Cluster,
}

/// What a key under [`PREFIX`] is a label of; `None`: it is no such key.
pub(crate) fn derived(key: &str) -> Option<Derived<'_>> {
    let key = key.strip_prefix(PREFIX)?;
    Some(match key {
        NAMESPACE => Derived::Namespace,
        SERVICE_ACCOUNT => Derived::ServiceAccount,
        CLUSTER => Derived::Cluster,
        _ => key.strip_prefix(NAMESPACE_LABELS).map_or(Derived::Own(key), Derived::NamespaceLabel),
    })
}

/// Nobody at all.
pub(crate) fn nobody() -> Selector {
    requirement("", "Exists", Vec::new()).unwrap_or_default()
}

fn requirement(key: &str, operator: &str, values: Vec<String>) -> Option<Selector> {
    let one = LabelSelectorRequirement {
        key: format!("{PREFIX}{key}"),
        operator: operator.into(),
        values: (!values.is_empty()).then_some(values),
    };
    Selector::new(&LabelSelector { match_labels: None, match_expressions: Some(vec![one]) }).ok()
}

/// Whom a policy of a namespace, or of none, is about. `None`: in doubt, and told.
pub(crate) fn subject(
    given: &LabelSelector,
    namespace: Option<&str>,
    path: &str,
    report: &mut Report<'_>,
) -> Option<Selector> {
    let own = format!("{PREFIX}{NAMESPACE}");
    let mut given = given.clone();
    // So Cilium does: the policy's own namespace takes the place of one that is named with its source.
    if let Some(namespace) = namespace
        && let Some(named) = given.match_labels.as_mut().and_then(|labels| labels.remove(&own))
        && named != namespace
    {
        let reason = format!("the policy applies to its own namespace {namespace}, whatever is named here");
        report.warn(&format!("{path}.matchLabels"), reason, "remove it");
    }
    match translated(&given, path, report)? {
        Translated::Pods(selector) => Some(selector),
        Translated::Reserved => {
            let remedy = "select pods by their labels";
            report.warn(path, "a reserved label selects no pod: the policy does nothing here", remedy);
            Some(nobody())
        }
    }
}

/// What a selector came to.
enum Translated {
    Pods(Selector),
    Reserved,
}

/// Whom one item of `fromEndpoints` or `toEndpoints` of a policy of this namespace means: its own pods unless it
/// names a namespace or asks for a namespace's labels; of a policy of no namespace, all pods. `None`: in doubt, and told.
pub(crate) fn peer(
    given: &LabelSelector,
    namespace: Option<&str>,
    path: &str,
    report: &mut Report<'_>,
) -> Option<Selector> {
    let mut scoped = given.clone();
    let names = keys(given).any(
        |given| matches!(key(given), Key::Pod(key) if key == NAMESPACE || key.starts_with(NAMESPACE_LABELS)),
    );
    // Without one, every pod of the cluster; the selector is asked of nothing else.
    if let (false, Some(namespace)) = (names, namespace) {
        let own = LabelSelectorRequirement {
            key: format!("{PREFIX}{NAMESPACE}"),
            operator: "In".into(),
            values: Some(vec![namespace.to_owned()]),
        };
        scoped.match_expressions.get_or_insert_default().push(own);
    }
    match translated(&scoped, path, report)? {
        Translated::Pods(selector) => Some(selector),
        Translated::Reserved => {
            let remedy = "write the entity under fromEntities or toEntities";
            let reason = "a reserved label stands alone: it is of no pod";
            report.error_of(Category::Unsupported, path, reason, remedy);
            None
        }
    }
}

/// The identity that a selector of one label alone asks for: `reserved:host`.
pub(crate) fn reserved(given: &LabelSelector) -> Option<&str> {
    let labels: Vec<(&String, &String)> = given.match_labels.iter().flatten().collect();
    let expressions = given.match_expressions.as_deref().unwrap_or_default();
    let key = match (&labels[..], expressions) {
        ([(key, value)], []) if value.is_empty() => key,
        ([], [one]) if one.operator == "Exists" && one.values.iter().flatten().next().is_none() => &one.key,
        _ => return None,
    };
    key.strip_prefix("reserved:")
}

/// Services by their own labels; where a key says that a label comes from, it is left out. `None`: in doubt, and told.
pub(crate) fn service(given: &LabelSelector, path: &str, report: &mut Report<'_>) -> Option<Selector> {
    let mut plain = given.clone();
    let mut doubt = false;
    let mut bare = |given: &str| match key(given) {
        Key::Pod(key) => key.to_owned(),
        Key::Reserved | Key::Elsewhere(_) => {
            doubt = true;
            given.to_owned()
        }
    };
    // As expressions: `app` and `k8s:app` may both be written, and then both must hold.
    let labels = plain.match_labels.take().into_iter().flatten().map(|(key, value)| {
        let (operator, values) = ("In".to_owned(), Some(vec![value]));
        LabelSelectorRequirement { key: bare(&key), operator, values }
    });
    let mut all: Vec<LabelSelectorRequirement> = labels.collect();
    for one in plain.match_expressions.take().into_iter().flatten() {
        all.push(LabelSelectorRequirement { key: bare(&one.key), ..one });
    }
    if doubt {
        report.error(path, "Services have labels of Kubernetes alone", "write keys as app or k8s:app");
        return None;
    }
    if let Some(value) = values(given).find(|value| !is_label_value(value)) {
        let reason = format!("\"{}\" is the value of no label", value.escape_debug());
        report.error(path, reason, "write up to 63 letters, digits, `-`, `_` and `.`; fill templates in");
        return None;
    }
    let selector = Selector::new(&LabelSelector { match_labels: None, match_expressions: Some(all) });
    selector.map_err(|bad| report.error(&format!("{path}.{}", bad.path), bad.reason, bad.remedy)).ok()
}

fn keys(given: &LabelSelector) -> impl Iterator<Item = &str> {
    let labels = given.match_labels.iter().flat_map(|labels| labels.keys());
    let expressions = given.match_expressions.iter().flatten().map(|expression| &expression.key);
    labels.chain(expressions).map(String::as_str)
}

fn values(given: &LabelSelector) -> impl Iterator<Item = &String> {
    let labels = given.match_labels.iter().flat_map(|labels| labels.values());
    let expressions = given.match_expressions.iter().flatten();
    labels.chain(expressions.flat_map(|expression| expression.values.iter().flatten()))
}

/// As the API server has it for labels, so that nothing else can ever match.
fn is_label_value(value: &str) -> bool {
    const MAX_VALUE: usize = 63;
    let ends = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    bytes.len() <= MAX_VALUE
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && ends(bytes.first())
        && ends(bytes.last())
}

fn translated(given: &LabelSelector, path: &str, report: &mut Report<'_>) -> Option<Translated> {
    if let Err(bad) = Selector::new(given) {
        report.error(&format!("{path}.{}", bad.path), bad.reason, bad.remedy);
        return None;
    }
    if let Some(value) = values(given).find(|value| !is_label_value(value)) {
        let reason = format!("\"{}\" is the value of no label", value.escape_debug());
        report.error(path, reason, "write up to 63 letters, digits, `-`, `_` and `.`; fill templates in");
        return None;
    }
    let mut reserved = false;
    for given in keys(given) {
        match key(given) {
            Key::Pod(_) => {}
            Key::Reserved => reserved = true,
            Key::Elsewhere(source) => {
                let reason = format!("labels of the source \"{}\" are not known here", source.escape_debug());
                report.error(path, reason, "write labels of pods: k8s:app, or app alone");
                return None;
            }
        }
    }
    if reserved {
        return Some(Translated::Reserved);
    }
    let prefixed = |given: &str| match key(given) {
        Key::Pod(key) => format!("{PREFIX}{key}"),
        Key::Reserved | Key::Elsewhere(_) => given.to_owned(),
    };
    // As expressions: `app` and `k8s:app` may both be written, and then both must hold.
    let labels = given.match_labels.iter().flatten().map(|(key, value)| LabelSelectorRequirement {
        key: prefixed(key),
        operator: "In".into(),
        values: Some(vec![value.clone()]),
    });
    let expressions = given.match_expressions.iter().flatten().cloned();
    let expressions = expressions.map(|one| LabelSelectorRequirement { key: prefixed(&one.key), ..one });
    let all =
        LabelSelector { match_labels: None, match_expressions: Some(labels.chain(expressions).collect()) };
    Selector::new(&all).ok().map(Translated::Pods)
}
