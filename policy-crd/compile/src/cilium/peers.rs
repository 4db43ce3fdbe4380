//! `from…` and `to…` of a rule of Cilium.
//!
//! Knows nothing of pods or addresses. One of the fields names the peers; none of them leaves them to the ports.

use super::{Around, selector};
use crate::peers::{PeerItem, Peers};
use crate::report::Report;
use crate::selector::Selector;
use sluice_crd::{Category, CiliumPeers, CiliumRule, Entity, Part};
use sluice_policy::Prefix;
use std::collections::BTreeSet;

/// Whom a rule names.
pub(super) enum Who {
    /// No field is written.
    Unlimited,
    /// These.
    Named(Peers),
}

/// Lowers the peers. `None`: in doubt, and told.
pub(super) fn lower(
    around: &Around<'_>,
    rule: &CiliumRule,
    deny: bool,
    report: &mut Report<'_>,
) -> Option<Who> {
    let side = if rule.path.contains("ingress") { "from" } else { "to" };
    let at = |field: &str| format!("{}.{side}{field}", rule.path);
    let CiliumPeers { endpoints, requires: _, cidr, cidr_set, entities, nodes, groups, services, fqdns } =
        &rule.peers;
    let mut doubt = unsupported(rule, side, report);
    let given = [
        !endpoints.is_absent(),
        !cidr.is_absent(),
        !cidr_set.is_absent(),
        !entities.is_absent(),
        !services.is_absent(),
    ];
    let others = [!nodes.is_absent(), !groups.is_absent(), !fqdns.is_absent()];
    if given.iter().chain(&others).filter(|given| **given).count() > 1 {
        let reason = "a rule names its peers by one field";
        report.error(&rule.path, reason, "write a rule for each of them");
        doubt = true;
    }
    let home = super::home(around.object);
    let by_endpoints = each(endpoints, &at("Endpoints"), |given, path| {
        // To Cilium the label of an identity that it reserves is the entity.
        if let Some(name) = selector::reserved(given)
            && let Some(items) = entity(name, path, report)
        {
            return Some(items);
        }
        let pods = selector::peer(given, home, path, report)?;
        Some(vec![PeerItem::Elsewhere { namespaces: Selector::default(), pods }])
    });
    let by_cidr = each(cidr, &at("CIDR"), |given, path| {
        let cidr = prefix(given, true, path, report)?;
        Some(vec![PeerItem::Outside { cidr, except: Vec::new() }])
    });
    let by_set = each(cidr_set, &at("CIDRSet"), |given, path| around.groups.item(given, path, report));
    let by_entities = by_entities(entities, &at("Entities"), report);
    let by_services =
        each(services, &at("Services"), |given, path| around.services.item(given, home, deny, path, report));
    if doubt || deny && !rule.sound {
        return None;
    }
    match given {
        [true, ..] => by_endpoints.map(Who::Named),
        [_, true, ..] => by_cidr.map(Who::Named),
        [_, _, true, ..] => by_set.map(Who::Named),
        [_, _, _, true, _] => by_entities.map(Who::Named),
        [.., true] => by_services.map(Who::Named),
        [false, false, false, false, false] => Some(Who::Unlimited),
    }
}

/// Whether a field is written that nobody honours here; it is told.
fn unsupported(rule: &CiliumRule, side: &str, report: &mut Report<'_>) -> bool {
    let CiliumPeers { requires, nodes, groups, fqdns, .. } = &rule.peers;
    let requirements = "a requirement is not honoured, which other rules would have to meet, too";
    let given = [
        ("Requires", requirements, "write its labels into every item of the others", required(requires)),
        (
            "Nodes",
            "nodes are not told apart by their labels",
            "write remote-node as entity",
            !nodes.is_absent(),
        ),
        ("Groups", "no cloud provider is asked for groups", "write their CIDRs", !groups.is_absent()),
        ("FQDNs", "no names are resolved here", "write CIDRs, and serverNames for TLS", !fqdns.is_absent()),
    ];
    let mut found = false;
    for (field, reason, remedy, _) in given.into_iter().filter(|(.., given)| *given) {
        report.error_of(Category::Unsupported, &format!("{}.{side}{field}", rule.path), reason, remedy);
        found = true;
    }
    found
}

/// Whether a list of requirements asks for anything. To Cilium an empty one does not.
pub(super) fn required<T>(requires: &Part<Vec<T>>) -> bool {
    match requires {
        Part::Absent => false,
        Part::Bad => true,
        Part::Flawed(items) | Part::Whole(items) => !items.is_empty(),
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
            Some("cluster") => out.push(PeerItem::Entities(BTreeSet::from([Entity::Cluster]))),
            Some(name) => match entity(name, &path, report) {
                Some(items) => out.extend(items),
                None => {
                    let reason = format!("\"{}\" is no entity", name.escape_debug());
                    let remedy = "write all, world, cluster, host, remote-node or kube-apiserver";
                    report.error(&path, reason, remedy);
                    doubt = true;
                }
            },
            None => doubt = true,
        }
    }
    match (doubt, all) {
        (true, _) => None,
        (false, true) => Some(Peers::All),
        (false, false) => Some(Peers::Any(out)),
    }
}

/// Whom an identity that Cilium reserves stands for; `None`: there is no such identity.
fn entity(name: &str, path: &str, report: &mut Report<'_>) -> Option<Vec<PeerItem>> {
    let one = |entity: Entity| Some(vec![PeerItem::Entities(BTreeSet::from([entity]))]);
    match name {
        "host" => one(Entity::Host),
        "remote-node" => one(Entity::RemoteNode),
        "kube-apiserver" => one(Entity::KubeApiserver),
        "world" => one(Entity::World),
        "world-ipv4" => Some(outside("0.0.0.0/0").into_iter().collect()),
        "world-ipv6" => Some(outside("::/0").into_iter().collect()),
        "health" | "ingress" | "init" | "unmanaged" => {
            let reason = format!("{name} is of Cilium itself: here it is nobody");
            report.warn(path, reason, "remove it, or name whom you mean");
            Some(Vec::new())
        }
        _ => None,
    }
}

/// Everything of one family that is outside the cluster.
fn outside(all: &str) -> Option<PeerItem> {
    Some(PeerItem::Outside { cidr: Prefix::parse(all).ok()?, except: Vec::new() })
}
