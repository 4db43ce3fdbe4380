//! `ClusterNetworkPolicy` (v1alpha2) and `ClusterL7NetworkPolicy`: ordered rules of two tiers.
//!
//! Source: the API documentation in `ClusterNetworkPolicy`'s CRD; DESIGN §4 (our kind has "the words and the
//! meaning of the upstream") and §5.6, §5.14.

use super::cluster::{Pod, Who};
use super::l7;
use super::selectors::{contains, given, items, matches, text};
use super::verdict::{Direction, Polarity, Truth, View};
use serde_json::Value;

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Accept,
    Deny,
    Pass,
}

/// The rules of a tier for this side, in their order. "Policies with lower priority values have higher precedence";
/// inside one, "the order in which the rule is written". Of equal priorities the documentation says nothing, so the
/// generators make none.
pub(crate) fn rules(view: &View<'_>, tier: &str, active: &dyn Fn(&Value) -> bool) -> Vec<(Action, Truth)> {
    let ours = |policy: &&Value| policy["spec"]["tier"] == tier && selects(policy, view.own, view);
    let mut policies: Vec<&Value> = view.cluster.policies.iter().filter(ours).filter(|p| active(p)).collect();
    policies.sort_by_key(|policy| policy["spec"]["priority"].as_i64());
    let mut out = Vec::new();
    for policy in policies {
        for rule in items(&policy["spec"][view.direction.section()]) {
            out.push(ruling(policy, rule, view));
        }
    }
    out
}

/// "`subject` defines the pods to which this policy applies": by namespaces, or by namespace AND pod selectors.
pub(crate) fn selects(policy: &Value, pod: &Pod, view: &View<'_>) -> bool {
    pods(&policy["spec"]["subject"], pod, view)
}

fn pods(selected: &Value, pod: &Pod, view: &View<'_>) -> bool {
    let namespace = view.cluster.namespace_labels(pod);
    let (all, some) = (&selected["namespaces"], &selected["pods"]);
    (given(all) && matches(all, namespace))
        || (given(some)
            && matches(&some["namespaceSelector"], namespace)
            && matches(&some["podSelector"], &pod.labels))
}

fn ruling(policy: &Value, rule: &Value, view: &View<'_>) -> (Action, Truth) {
    let action = match text(&rule["action"]) {
        "Accept" => Action::Accept,
        "Deny" => Action::Deny,
        "Pass" => Action::Pass,
        other => panic!("no action {other}"),
    };
    // "A fact that cannot be known … matches every deny condition and no allow, Accept or Pass condition."
    let polarity = if action == Action::Deny { Polarity::Deny } else { Polarity::Allow };
    if policy["kind"] == "ClusterL7NetworkPolicy" {
        return (action, l7::ruling(policy, rule, view, polarity).holds);
    }
    let peers = match view.peer {
        Who::Missing => polarity == Polarity::Deny,
        _ => items(&rule[view.direction.peers()]).any(|item| peer(item, view)),
    };
    let protocols = !given(&rule["protocols"]) || items(&rule["protocols"]).any(|item| protocol(item, view));
    (action, Truth::from(peers && protocols))
}

/// "Exactly one of the fields must be set for a given peer."
fn peer(item: &Value, view: &View<'_>) -> bool {
    if given(&item["networks"]) {
        // "Cluster-internal traffic will be checked against the rule as well."
        return items(&item["networks"]).any(|cidr| contains(text(cidr), view.peer_address));
    }
    match view.peer {
        // "Host-networked pods are not included in this type of peer": they are their node.
        Who::Pod(pod) => pods(item, pod, view),
        // "It selects the nodeIPs … present in the node.Status.Addresses field."
        Who::Node(node) => given(&item["nodes"]) && matches(&item["nodes"], &node.labels),
        Who::World | Who::Missing => false,
    }
}

/// "Exactly one field must be set": a protocol, with its port if given, or the name of a port.
fn protocol(item: &Value, view: &View<'_>) -> bool {
    if let Some(name) = item["destinationNamedPort"].as_str() {
        // The names at an address that is nobody's cannot be known: "no allow matches it, every peer deny does".
        let unknown = view.direction == Direction::Egress && matches!(view.peer, Who::Missing);
        return view.has_port(name) || (unknown && ["TCP", "UDP", "SCTP"].contains(&view.protocol));
    }
    let specific = &item[view.protocol.to_ascii_lowercase()];
    if !given(specific) {
        return false;
    }
    let port = &specific["destinationPort"];
    let number = |value: &Value| value.as_u64().expect("a port");
    if given(&port["number"]) {
        number(&port["number"]) == u64::from(view.port)
    } else if given(&port["range"]) {
        (number(&port["range"]["start"])..=number(&port["range"]["end"])).contains(&view.port.into())
    } else {
        true
    }
}
