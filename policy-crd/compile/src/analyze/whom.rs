//! Checks of selectors: who is selected, and who was probably meant.
//!
//! Asks the pods and namespaces that are given; where none are, nothing is said. Knows nothing of verdicts.

use super::codes;
use super::finding::{Findings, Related};
use super::views::{Namespaces, Pods, PolicyView};
use crate::cilium::selector::PREFIX;
use crate::index::{Index, PodEntry};
use crate::peers::contains;
use crate::selector::{Labels, Selector};
use sluice_crd::{Severity, Source, nearest};
use sluice_policy::{Kind, Prefix};
use std::collections::BTreeSet;

/// The label that the API server puts on every namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Shorter words are near to too many others to say which was meant.
const MIN_WORD: usize = 3;

/// Runs the checks of this file.
pub(super) fn check(policies: &[PolicyView<'_>], index: &Index, findings: &mut Findings) {
    if index.pods.is_empty() && index.pod_ranges.is_empty() {
        return;
    }
    for policy in policies {
        if let Some(subject) = policy.subject.as_ref().filter(|_| !index.pods.is_empty()) {
            subject_of(policy, subject, index, findings);
        }
        let peers = policy.rules.iter().flat_map(|rule| &rule.peers);
        for (path, cidr) in peers.clone().filter_map(|peer| peer.cidr.as_ref()) {
            of_pods(policy, path, *cidr, index, findings);
        }
        for pods in peers.filter(|_| !index.pods.is_empty()).filter_map(|peer| peer.pods.as_ref()) {
            let whom =
                if pods.service_account.is_some() { "no pod runs as it" } else { "no pod is selected" };
            let reason = format!("{whom}: this peer is nobody");
            unselected(policy.source, pods, index, &codes::NAMES_NOBODY, &reason, findings);
        }
    }
}

fn subject_of(policy: &PolicyView<'_>, subject: &Pods, index: &Index, findings: &mut Findings) {
    let selected: Vec<&PodEntry> = pods(index, subject).collect();
    if selected.is_empty() {
        let reason = match &subject.namespaces {
            Namespaces::Named(namespace) => {
                format!("no pod of namespace {namespace} is selected: the policy does nothing")
            }
            Namespaces::Matching(..) => "no pod is selected: the policy does nothing".to_owned(),
        };
        unselected(policy.source, subject, index, &codes::SELECTS_NOBODY, &reason, findings);
    } else if selected.iter().all(|pod| pod.host_network) {
        let first = &selected[0].workload;
        let reason = format!(
            "every selected pod is on the host's network, as {}/{}: the policy is in force for none of them",
            first.namespace, first.pod
        );
        let related = vec![Related::new(&selected[0].source, "", "this pod has its node's address")];
        let remedy = "select pods with addresses of their own; rules about nodes are the CNI's";
        findings.add_with(&codes::HOST_NETWORK, policy.source, &subject.path, reason, remedy, related);
    }
}

/// Addresses of pods, and of nothing else: a pod's may be another's tomorrow, and Cilium's CIDRs are never pods'.
fn of_pods(policy: &PolicyView<'_>, path: &str, cidr: Prefix, index: &Index, findings: &mut Findings) {
    let holds = |pod: &&PodEntry| {
        pod.has_identity() && pod.addresses.iter().any(|address| contains(cidr, Prefix::host(*address)))
    };
    let owner = index.pods.iter().find(holds);
    let range = index.pod_ranges.iter().find(|range| contains(**range, cidr));
    let one = owner.filter(|pod| pod.addresses.iter().any(|address| Prefix::host(*address) == cidr));
    let whose = match (one, range) {
        (Some(pod), _) => format!("it is the address of {}/{}", pod.workload.namespace, pod.workload.pod),
        (None, Some(range)) => format!("it lies in {range}, where pods get their addresses"),
        (None, None) => return,
    };
    let related: Vec<Related> =
        owner.map(|pod| Related::new(&pod.source, "", "this pod has such an address")).into_iter().collect();
    let remedy = "select the pods by their labels";
    if matches!(policy.origin.kind, Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy) {
        let reason = format!("{whose}, and in Cilium's policies CIDRs are never pods: this peer is nobody");
        let problem = policy.source.problem(Severity::Warning, path, reason, remedy);
        findings.problem(&codes::POD_CIDR, problem);
    } else {
        let reason = format!("{whose}: another pod may have it tomorrow");
        findings.add_with(&codes::POD_CIDR, policy.source, path, reason, remedy, related);
    }
}

/// The running pods that are meant.
pub(super) fn pods<'i>(index: &'i Index, meant: &'i Pods) -> impl Iterator<Item = &'i PodEntry> {
    index.pods.iter().filter(|pod| {
        !pod.terminated
            && in_namespaces(index, &meant.namespaces, pod)
            && meant.pods.matches(&pod.labels)
            && meant.service_account.as_ref().is_none_or(|(namespace, name)| {
                (namespace, name) == (&pod.workload.namespace, &pod.workload.service_account)
            })
    })
}

fn in_namespaces(index: &Index, namespaces: &Namespaces, pod: &PodEntry) -> bool {
    match namespaces {
        Namespaces::Named(name) => *name == pod.workload.namespace,
        Namespaces::Matching(_, selector) => {
            index.namespaces.get(&pod.workload.namespace).is_some_and(|e| selector.matches(&e.labels))
        }
    }
}

/// Tells of a selector that selects no pod, or of the label in it that is nearly one that exists.
fn unselected(
    source: &Source,
    meant: &Pods,
    index: &Index,
    code: &'static codes::Code,
    reason: &str,
    findings: &mut Findings,
) {
    if pods(index, meant).next().is_some() {
        return;
    }
    if let Namespaces::Matching(path, selector) = &meant.namespaces
        && !index.namespaces.values().any(|entry| selector.matches(&entry.labels))
    {
        no_namespace(source, path, selector, index, code, findings);
        return;
    }
    // Everything of a namespace that has no pod yet was meant so.
    if meant.pods.wanted().next().is_none() && meant.service_account.is_none() {
        return;
    }
    let elsewhere = |pod: &&PodEntry| !pod.terminated && meant.pods.matches(&pod.labels);
    if let (Namespaces::Named(namespace), None) = (&meant.namespaces, &meant.service_account)
        && let Some(other) = index.pods.iter().find(elsewhere)
    {
        let theirs = &other.workload;
        let reason = format!("no pod of namespace {namespace} is selected, where this looks for them");
        let remedy = match *code == codes::NAMES_NOBODY {
            true => format!("write a namespaceSelector beside it, if pods of {} are meant", theirs.namespace),
            false => format!("write the policy in namespace {}, if its pods are meant", theirs.namespace),
        };
        let label = format!("{}/{} has these labels", theirs.namespace, theirs.pod);
        let related = vec![Related::new(&other.source, "", label)];
        findings.add_with(code, source, &meant.path, reason, remedy, related);
        return;
    }
    let near = index.pods.iter().filter(|pod| in_namespaces(index, &meant.namespaces, pod));
    let near: Vec<&Labels> = near.map(|pod| &pod.labels).collect();
    if typo(source, &meant.path, &meant.pods, &near, findings) {
        return;
    }
    findings.add(code, source, &meant.path, reason, "correct it, or give the pods that it means");
}

fn no_namespace(
    source: &Source,
    path: &str,
    selector: &Selector,
    index: &Index,
    code: &'static codes::Code,
    findings: &mut Findings,
) {
    let labels: Vec<&Labels> = index.namespaces.values().map(|entry| &entry.labels).collect();
    if typo(source, path, selector, &labels, findings) {
        return;
    }
    // A namespace by its name, or one whose labels nobody gave, may well exist beside what is given.
    let by_name = selector.wanted().any(|(key, _)| key == NAME_LABEL);
    let given = index.namespaces.values().any(|entry| entry.source.is_some());
    if given && !by_name {
        let reason = "no namespace that is given has these labels: nobody is selected";
        findings.add(code, source, path, reason, "correct it, or give the namespaces that it means");
    }
}

/// Tells of a label that nothing has, and that is nearly one that something has.
fn typo(source: &Source, path: &str, selector: &Selector, near: &[&Labels], findings: &mut Findings) -> bool {
    for (key, values) in selector.wanted() {
        let Some(values) = values else { continue };
        let known: BTreeSet<&str> =
            near.iter().filter_map(|labels| labels.get(key)).map(String::as_str).collect();
        if values.iter().any(|value| known.contains(&**value)) {
            continue;
        }
        let shown = key.strip_prefix(PREFIX).unwrap_or(key);
        let at = label_path(source, path, shown);
        if known.is_empty() {
            let keys: BTreeSet<&str> =
                near.iter().flat_map(|labels| labels.keys()).map(String::as_str).collect();
            if let Some(meant) = meant(key, &keys) {
                let meant = meant.strip_prefix(PREFIX).unwrap_or(meant);
                let reason = format!("nothing here has the label `{shown}`");
                findings.add(&codes::LABEL_TYPO, source, &at, reason, format!("did you mean `{meant}`?"));
                return true;
            }
        }
        for value in values {
            if let Some(meant) = meant(value, &known) {
                let reason = format!("nothing here has `{shown}: {value}`");
                let remedy = format!("did you mean `{shown}: {meant}`?");
                findings.add(&codes::LABEL_TYPO, source, &at, reason, remedy);
                return true;
            }
        }
    }
    false
}

/// The known word that was probably meant. Words that differ by their digits alone are different on purpose.
fn meant<'k>(word: &str, known: &BTreeSet<&'k str>) -> Option<&'k str> {
    let letters = |word: &str| word.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    let own = letters(word);
    let likely = |known: &&str| known.len() >= MIN_WORD && letters(known) != own;
    let known: Vec<&str> = known.iter().copied().filter(likely).collect();
    nearest(word, &known).filter(|_| word.len() >= MIN_WORD)
}

/// Where a label is asked for; Cilium's may be written with the source.
fn label_path(source: &Source, selector: &str, key: &str) -> String {
    let written = ["", "k8s:", "any:"].map(|prefix| format!("{selector}.matchLabels.{prefix}{key}"));
    written.into_iter().find(|path| source.has(path)).unwrap_or_else(|| selector.to_owned())
}
