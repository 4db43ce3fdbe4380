//! `from…` and `to…` of a rule of Cilium.
//!
//! Knows nothing of pods or addresses. One of the fields names the peers; none of them leaves them to the ports.

use super::selector;
use crate::peers::{PeerItem, Peers};
use crate::report::Report;
use crate::selector::Selector;
use sluice_crd::{CiliumPeers, CiliumPolicyObject, CiliumRule, Part};

/// Whom a rule names.
pub(super) enum Who {
    /// No field is written.
    Unlimited,
    /// These.
    Named(Peers),
}

/// Lowers the peers. `None`: in doubt, and told.
pub(super) fn lower(
    object: &CiliumPolicyObject,
    rule: &CiliumRule,
    deny: bool,
    report: &mut Report<'_>,
) -> Option<Who> {
    let side = if rule.path.contains("ingress") { "from" } else { "to" };
    let at = |field: &str| format!("{}.{side}{field}", rule.path);
    let CiliumPeers { endpoints, requires, cidr, cidr_set, entities, nodes, groups, services, fqdns } =
        &rule.peers;
    let unsupported = [
        ("Requires", !requires.is_absent()),
        ("CIDR", !cidr.is_absent()),
        ("CIDRSet", !cidr_set.is_absent()),
        ("Nodes", !nodes.is_absent()),
        ("Groups", !groups.is_absent()),
        ("Services", !services.is_absent()),
        ("FQDNs", !fqdns.is_absent()),
    ];
    let mut doubt = false;
    for (field, _) in unsupported.iter().filter(|(_, given)| *given) {
        report.not_built(&at(field));
        doubt = true;
    }
    if !endpoints.is_absent() && !entities.is_absent() {
        let reason = "a rule names its peers by one field";
        report.error(&rule.path, reason, "write a rule for each of them");
        doubt = true;
    }
    let by_endpoints = by_endpoints(object, endpoints, &at("Endpoints"), report);
    let by_entities = by_entities(entities, &at("Entities"), report);
    if doubt || deny && !rule.sound {
        return None;
    }
    match (endpoints.is_absent(), entities.is_absent()) {
        (true, true) => Some(Who::Unlimited),
        (false, _) => by_endpoints.map(Who::Named),
        (true, false) => by_entities.map(Who::Named),
    }
}

/// An empty list means nobody.
fn by_endpoints(
    object: &CiliumPolicyObject,
    given: &Part<Vec<Part<k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>>>,
    path: &str,
    report: &mut Report<'_>,
) -> Option<Peers> {
    let Part::Whole(items) = given else { return None };
    let mut out = Some(Vec::new());
    for (index, item) in items.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let lowered = match item {
            Part::Whole(given) => selector::peer(given, &object.namespace, &path, report),
            Part::Absent | Part::Bad | Part::Flawed(_) => None,
        };
        match (lowered, &mut out) {
            (Some(pods), Some(out)) => {
                out.push(PeerItem::Elsewhere { namespaces: Selector::default(), pods });
            }
            _ => out = None,
        }
    }
    out.map(Peers::Any)
}

fn by_entities(given: &Part<Vec<Part<String>>>, path: &str, report: &mut Report<'_>) -> Option<Peers> {
    let Part::Whole(items) = given else { return None };
    let (mut all, mut doubt) = (false, false);
    for (index, item) in items.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match item.value().map(String::as_str) {
            Some("all") => all = true,
            Some("none") => {}
            Some(
                "world" | "world-ipv4" | "world-ipv6" | "cluster" | "host" | "remote-node" | "kube-apiserver"
                | "init" | "ingress" | "health" | "unmanaged",
            ) => {
                report.not_built(&path);
                doubt = true;
            }
            Some(other) => {
                let reason = format!("\"{}\" is no entity", other.escape_debug());
                report.error(&path, reason, "write all, world, cluster, host, remote-node or kube-apiserver");
                doubt = true;
            }
            None => doubt = true,
        }
    }
    match (doubt, all) {
        (true, _) => None,
        (false, true) => Some(Peers::All),
        (false, false) => Some(Peers::Any(Vec::new())),
    }
}
