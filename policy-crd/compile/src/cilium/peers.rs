//! `from…` and `to…` of a rule of Cilium.
//!
//! Knows nothing of pods or addresses. One of the fields names the peers; none of them leaves them to the ports.

use super::groups::View;
use super::selector;
use crate::peers::{PeerItem, Peers};
use crate::report::Report;
use crate::selector::Selector;
use sluice_crd::{CiliumPeers, CiliumPolicyObject, CiliumRule, Part};
use sluice_policy::Prefix;

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
    view: &View<'_>,
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
    let given = [endpoints.is_absent(), cidr.is_absent(), cidr_set.is_absent(), entities.is_absent()];
    if given.iter().filter(|absent| !**absent).count() > 1 {
        let reason = "a rule names its peers by one field";
        report.error(&rule.path, reason, "write a rule for each of them");
        doubt = true;
    }
    let by_endpoints = each(endpoints, &at("Endpoints"), |given, path| {
        let pods = selector::peer(given, super::home(object), path, report)?;
        Some(vec![PeerItem::Elsewhere { namespaces: Selector::default(), pods }])
    });
    let by_cidr = each(cidr, &at("CIDR"), |given, path| {
        let cidr = prefix(given, true, path, report)?;
        Some(vec![PeerItem::Outside { cidr, except: Vec::new() }])
    });
    let by_set = each(cidr_set, &at("CIDRSet"), |given, path| view.item(given, path, report));
    let by_entities = by_entities(entities, &at("Entities"), report);
    if doubt || deny && !rule.sound {
        return None;
    }
    match given {
        [true, true, true, true] => Some(Who::Unlimited),
        [false, ..] => by_endpoints.map(Who::Named),
        [_, false, ..] => by_cidr.map(Who::Named),
        [_, _, false, _] => by_set.map(Who::Named),
        [.., false] => by_entities.map(Who::Named),
    }
}

/// A CIDR; where Cilium takes one, an address alone is itself.
pub(super) fn prefix(text: &str, address: bool, path: &str, report: &mut Report<'_>) -> Option<Prefix> {
    if let (true, Ok(one)) = (address, text.parse::<std::net::IpAddr>())
        && one.to_canonical() == one
    {
        return Some(Prefix::host(one));
    }
    crate::peers::parse_cidr(text).map_err(|reason| report.error(path, reason, "correct it")).ok()
}

/// A list of peers; an empty one means nobody.
fn each<T>(
    given: &Part<Vec<Part<T>>>,
    path: &str,
    mut lower: impl FnMut(&T, &str) -> Option<Vec<PeerItem>>,
) -> Option<Peers> {
    let Part::Whole(items) = given else { return None };
    let mut out = Some(Vec::new());
    for (index, item) in items.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let lowered = match item {
            Part::Whole(given) => lower(given, &path),
            Part::Absent | Part::Bad | Part::Flawed(_) => None,
        };
        match (lowered, &mut out) {
            (Some(items), Some(out)) => out.extend(items),
            // One doubtful item makes the rule doubtful; the others are still looked through for problems.
            _ => out = None,
        }
    }
    out.map(Peers::Any)
}

fn by_entities(given: &Part<Vec<Part<String>>>, path: &str, report: &mut Report<'_>) -> Option<Peers> {
    let Part::Whole(items) = given else { return None };
    let (mut all, mut doubt) = (false, false);
    let mut out = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match item.value().map(String::as_str) {
            Some("all") => all = true,
            Some("none") => {}
            Some("world") => out.extend(["0.0.0.0/0", "::/0"].iter().filter_map(|all| outside(all))),
            Some("world-ipv4") => out.extend(outside("0.0.0.0/0")),
            Some("world-ipv6") => out.extend(outside("::/0")),
            Some(
                "cluster" | "host" | "remote-node" | "kube-apiserver" | "init" | "ingress" | "health"
                | "unmanaged",
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
        (false, false) => Some(Peers::Any(out)),
    }
}

/// Everything of one family that is outside the cluster.
fn outside(all: &str) -> Option<PeerItem> {
    Some(PeerItem::Outside { cidr: Prefix::parse(all).ok()?, except: Vec::new() })
}
