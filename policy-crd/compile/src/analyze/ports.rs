//! Checks of ports: names that nobody has, protocols that carry no request, TLS where a request is asked for.
//!
//! Knows nothing of verdicts.

use super::codes;
use super::finding::{Findings, Related};
use super::views::{Effect, PolicyView, PortNumber, PortView, RuleView};
use super::whom;
use crate::index::{Index, PodEntry};
use sluice_crd::nearest;
use sluice_policy::{Direction, Protocol};
use std::collections::BTreeSet;

/// The ports of TLS with HTTP in it: registered for it (443), or in general use.
const TLS_PORTS: [u16; 3] = [443, 6443, 8443];

/// Runs the checks of this file.
pub(super) fn check(policies: &[PolicyView<'_>], index: &Index, findings: &mut Findings) {
    for policy in policies {
        for rule in &policy.rules {
            names(policy, rule, index, findings);
            not_tcp(policy, rule, findings);
            tls(policy, rule, findings);
        }
    }
}

/// The pods whose ports a rule names: of ingress the selected ones, of egress those that are reached.
fn owners<'i>(policy: &'i PolicyView<'_>, rule: &'i RuleView<'_>, index: &'i Index) -> Vec<&'i PodEntry> {
    let own = |pod: &&PodEntry| pod.has_identity();
    let anybody = rule.everybody || rule.peers.iter().any(|peer| peer.pods.is_none());
    match rule.direction {
        Direction::Ingress => {
            policy.subject.iter().flat_map(|subject| whom::pods(index, subject)).filter(own).collect()
        }
        Direction::Egress if anybody => index.pods.iter().filter(own).collect(),
        Direction::Egress => {
            let peers = rule.peers.iter().filter_map(|peer| peer.pods.as_ref());
            peers.flat_map(|pods| whom::pods(index, pods)).filter(own).collect()
        }
    }
}

fn names(policy: &PolicyView<'_>, rule: &RuleView<'_>, index: &Index, findings: &mut Findings) {
    for port in &rule.ports {
        let PortNumber::Named(name) = &port.number else { continue };
        let owners = owners(policy, rule, index);
        let fits = |protocol: Protocol| port.protocol == Protocol::Other || port.protocol == protocol;
        let mut known = owners.iter().flat_map(|pod| &pod.ports);
        if owners.is_empty() || known.clone().any(|given| given.name == *name && fits(given.protocol)) {
            continue;
        }
        let whose = match rule.direction {
            Direction::Ingress => "pod that the policy selects",
            Direction::Egress => "pod that the rule reaches",
        };
        let other = known.find(|given| given.name == *name);
        let words: BTreeSet<&str> =
            owners.iter().flat_map(|pod| &pod.ports).map(|port| &*port.name).collect();
        let words: Vec<&str> = words.into_iter().collect();
        let remedy = match (other, nearest(name, &words)) {
            (Some(other), _) => {
                format!("it is a {} port: write protocol: {}", other.protocol, other.protocol)
            }
            (None, Some(meant)) => format!("did you mean `{meant}`?"),
            (None, None) if words.is_empty() => "name the port in the pod, or write its number".to_owned(),
            (None, None) => format!("named there: {}", words.join(", ")),
        };
        let protocol = match port.protocol {
            Protocol::Other => String::new(),
            protocol => format!("{protocol} "),
        };
        let reason = format!("no {whose} has a {protocol}port \"{name}\": the rule matches nothing there");
        let related = vec![Related::new(&owners[0].source, "", "this is such a pod")];
        let path = format!("{}.port", port.path);
        let path = if policy.source.has(&path) { path } else { port.path.clone() };
        findings.add_with(&codes::PORT_NAME, policy.source, &path, reason, remedy, related);
    }
}

/// A deny of requests where no request can be read denies all that is there. Of allows lowering tells.
fn not_tcp(policy: &PolicyView<'_>, rule: &RuleView<'_>, findings: &mut Findings) {
    if rule.effect != Effect::Deny || !rule.conditional {
        return;
    }
    if rule.ports.is_empty() {
        let reason = "without ports this denies everything that is not TCP, whatever it says";
        let remedy = "name the TCP ports that requests come to";
        findings.add(&codes::NOT_TCP, policy.source, &rule.path, reason, remedy);
    }
    for port in rule.ports.iter().filter(|port| port.protocol != Protocol::Tcp) {
        let reason =
            format!("no request can be read on {}: everything on this port is denied", port.protocol);
        let remedy = "deny it in a rule without conditions if that is meant, else leave it out";
        findings.add(&codes::NOT_TCP, policy.source, &port.path, reason, remedy);
    }
}

fn tls(policy: &PolicyView<'_>, rule: &RuleView<'_>, findings: &mut Findings) {
    let asks = !rule.http.is_empty() || !rule.grpc.is_empty();
    if !asks || rule.server_names.is_some() || rule.effect == Effect::Deny {
        return;
    }
    for port in rule.ports.iter().filter(|port| port.protocol == Protocol::Tcp) {
        let elsewhere = policy.rules.iter().find_map(|other| {
            let names = other.server_names.as_ref().filter(|_| other.direction == rule.direction)?;
            other.ports.iter().any(|theirs| same(theirs, port)).then_some(names)
        });
        let related: Vec<Related> = elsewhere
            .map(|path| Related::new(policy.source, path, "the same port carries TLS here"))
            .into_iter()
            .collect();
        if related.is_empty() && !is_tls(port) {
            continue;
        }
        let reason = "nothing is decrypted: no request can be read in TLS, and the rule grants it nothing";
        let remedy = "write rules.tls.serverNames, or name a port that carries HTTP in clear";
        findings.add_with(&codes::TLS_PORT, policy.source, &port.path, reason, remedy, related);
    }
}

fn is_tls(port: &PortView) -> bool {
    match &port.number {
        PortNumber::Range(first, last) => first == last && TLS_PORTS.contains(first),
        PortNumber::Named(name) => {
            &**name == "https" || name.starts_with("https-") || name.ends_with("-https")
        }
        PortNumber::Any => false,
    }
}

fn same(a: &PortView, b: &PortView) -> bool {
    match (&a.number, &b.number) {
        (PortNumber::Range(first, last), PortNumber::Range(from, to)) => (first, last) == (from, to),
        (PortNumber::Named(a), PortNumber::Named(b)) => a == b,
        _ => false,
    }
}
