//! Checks of what comes of the policies together: names that can no longer be looked up, audits that would deny
//! everything, policies that are not in force.
//!
//! Asks the compiled cluster. Knows nothing of how rules are written.

use super::codes;
use super::finding::{Findings, Related};
use super::views::{Effect, PolicyView, Rulebook};
use super::world;
use crate::PolicyState;
use crate::index::{Index, PodEntry};
use sluice_crd::Mode;
use sluice_policy::{
    ClassId, Direction, Identity, IsolatedPorts, Layer, Origin, Policy, PortRange, Protocol, Rule, Side,
    Snapshot,
};
use std::collections::{BTreeMap, HashSet};

/// The port of DNS (RFC 1035 §4.2).
const DNS: u16 = 53;
/// Most pods that a finding names.
const MAX_NAMED: usize = 3;

/// What the name servers of clusters are known by.
const NAME_SERVERS: [(&str, &str); 3] =
    [world::NAME_SERVER.1, ("k8s-app", "coredns"), ("k8s-app", "node-local-dns")];

/// What every policy has come to, as audited and as rolled out.
pub(super) fn check(
    policies: &[PolicyView<'_>],
    states: &[PolicyState],
    as_labelled: bool,
    findings: &mut Findings,
) {
    audits(policies, findings);
    if as_labelled {
        not_enforced(states, &Rulebook::new(policies), findings);
    }
}

/// A pod that may reach something by egress rules, and no name server: a given pod or, where none is given, any.
pub(super) fn dns(inhabited: &Snapshot, policies: &[PolicyView<'_>], index: &Index, findings: &mut Findings) {
    let book = Rulebook::new(policies);
    let servers = name_servers(inhabited, index);
    let mut cut: BTreeMap<Origin, Vec<String>> = BTreeMap::new();
    for endpoint in inhabited.endpoints.iter() {
        let workload = &endpoint.workload;
        if !index.pods.is_empty() && world::is_made_up(&workload.pod) {
            continue;
        }
        let Some(profile) = inhabited.profile(endpoint.profile) else { continue };
        for policy in cuts_dns(&profile.egress, &servers, inhabited.classes.len()) {
            cut.entry(policy.origin.clone())
                .or_default()
                .push(format!("{}/{}", workload.namespace, workload.pod));
        }
    }
    for (origin, pods) in cut {
        let Some(source) = book.source(&origin) else { continue };
        let rule = policies
            .iter()
            .filter(|policy| policy.origin == origin)
            .flat_map(|policy| &policy.rules)
            .find(|rule| rule.direction == Direction::Egress && rule.effect == Effect::Allow);
        let path = rule.map_or("spec", |rule| section(&rule.path));
        let whose = if index.pods.is_empty() { "the selected pods".to_owned() } else { named(&pods) };
        let reason = format!(
            "egress of {whose} is isolated, and no name server is reached on port {DNS}/UDP: names do not resolve"
        );
        let remedy = "allow port 53, UDP and TCP, to the cluster's name server";
        findings.add(&codes::DNS, source, path, reason, remedy);
    }
}

fn named(pods: &[String]) -> String {
    let mut out = pods.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
    if pods.len() > MAX_NAMED {
        out.push_str(&format!(" and {} more", pods.len() - MAX_NAMED));
    }
    out
}

/// The classes that may be a name server: what is outside or is a node, and pods that are known for it.
fn name_servers(inhabited: &Snapshot, index: &Index) -> HashSet<ClassId> {
    let classes = (0..).map(ClassId).zip(&inhabited.classes);
    let outside = classes.filter(|(_, class)| matches!(class.identity, Identity::World | Identity::Node(_)));
    let mut out: HashSet<ClassId> = outside.map(|(id, _)| id).collect();
    let serves = |pod: &&PodEntry| {
        NAME_SERVERS.iter().any(|(key, value)| pod.labels.get(*key).is_some_and(|given| given == value))
            || pod.ports.iter().any(|port| port.number == DNS)
    };
    let known: HashSet<&str> = index.pods.iter().filter(serves).map(|pod| &*pod.workload.pod).collect();
    let pods = inhabited.endpoints.iter().filter(|endpoint| {
        &*endpoint.workload.namespace == world::NAME_SERVER.0 || known.contains(&*endpoint.workload.pod)
    });
    out.extend(pods.flat_map(|pod| &pod.addresses).map(|address| inhabited.class_of(*address)));
    out
}

/// `spec.egress[0]` stands in `spec.egress`.
fn section(path: &str) -> &str {
    path.rfind('[').map_or(path, |cut| &path[..cut])
}

/// Whether an allow lets a question to a name server through: to one that may be one, or where it names the port.
fn asks_names(rule: &Rule, servers: &HashSet<ClassId>, classes: usize) -> bool {
    let everything = PortRange::all(Protocol::Udp);
    let named = rule.ranges().any(|range| range.contains(Protocol::Udp, DNS) && *range != everything);
    (1..u32::try_from(classes).unwrap_or(u32::MAX))
        .map(ClassId)
        .any(|peer| (named || servers.contains(&peer)) && rule.allows_reach(peer, Protocol::Udp, DNS))
}

/// The policies that isolate egress with some allow, in the layer that lets no question to a name server through.
fn cuts_dns<'s>(side: &'s Side, servers: &HashSet<ClassId>, classes: usize) -> Vec<&'s Policy> {
    let reaches = |rule: &Rule| asks_names(rule, servers, classes);
    let accepted = side
        .admin
        .iter()
        .any(|tiered| tiered.action == sluice_policy::TierAction::Accept && reaches(&tiered.rule));
    if accepted {
        return Vec::new();
    }
    let closed = |layer: &&Layer| {
        let isolated =
            layer.isolation.iter().any(|isolation| isolates_dns(&isolation.ports, &isolation.policy));
        // Without any allow the pod was meant to reach nothing.
        isolated && !layer.allow.is_empty() && !layer.allow.iter().any(reaches)
    };
    let Some(layer) = side.layers.iter().find(closed) else { return Vec::new() };
    let allows = |policy: &Policy| layer.allow.iter().any(|rule| rule.policy.id == policy.id);
    let isolating = layer.isolation.iter().map(|isolation| &*isolation.policy);
    isolating.filter(|policy| policy.mode == sluice_policy::Mode::Enforce && allows(policy)).collect()
}

fn isolates_dns(ports: &IsolatedPorts, policy: &Policy) -> bool {
    policy.mode == sluice_policy::Mode::Enforce && ports.contains(Protocol::Udp, DNS)
}

/// An audited policy without any allow would deny everything.
fn audits(policies: &[PolicyView<'_>], findings: &mut Findings) {
    for policy in policies.iter().filter(|policy| policy.mode == Mode::Audit && policy.tier.is_none()) {
        let allows = policy.rules.iter().any(|rule| rule.effect == Effect::Allow);
        let of_tier = matches!(policy.origin.kind, sluice_policy::Kind::ClusterL7NetworkPolicy);
        // A policy that says what it isolates may well isolate nothing.
        if allows || of_tier || policy.subject.is_none() || policy.source.has("spec.isolation") {
            continue;
        }
        let path = if policy.source.has("spec.mode") { "spec.mode" } else { "spec" };
        let reason = "it has no allow: enforced, it would deny everything that it isolates";
        let remedy = "write the rules that shall be tried, or remove it";
        findings.add(&codes::AUDIT_ALL, policy.source, path, reason, remedy);
    }
}

/// Policies that select pods for which they are not in force.
fn not_enforced(states: &[PolicyState], book: &Rulebook<'_>, findings: &mut Findings) {
    for state in states {
        let Some(source) = book.source(&state.origin) else { continue };
        if state.mode.is_none() && !state.selected.is_empty() {
            let reason = "enforcement is off in the namespace: nothing is judged by it";
            let remedy = "set the label sluice.dev/enforcement of the namespace to audit or enforce";
            findings.add(&codes::NOT_ENFORCED, source, "metadata", reason, remedy);
            continue;
        }
        // Pods on the host's network are another finding.
        let outside: Vec<_> = state.not_enforced.iter().filter(|pod| state.selected.contains(pod)).collect();
        let Some(first) = outside.first() else { continue };
        let more = match outside.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        let reason = format!(
            "it is not in force for {}/{}{more}: the namespace is not in the dataplane",
            first.namespace, first.pod
        );
        let remedy = "set the label sluice.dev/dataplane of the namespace to enabled";
        let related: Vec<Related> = Vec::new();
        findings.add_with(&codes::NOT_ENFORCED, source, "metadata", reason, remedy, related);
    }
}
