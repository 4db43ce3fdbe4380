//! `NetworkPolicy` of `networking.k8s.io/v1`, sentence by sentence of its API documentation.

use super::cluster::{Pod, Who};
use super::selectors::{block_contains, given, items, matches, text};
use super::verdict::{Direction, Ruling, Truth, View};
use serde_json::Value;

/// "`podSelector` selects the pods to which this `NetworkPolicy` object applies": of its own namespace.
pub(crate) fn selects(policy: &Value, pod: &Pod) -> bool {
    policy["metadata"]["namespace"] == pod.namespace.as_str()
        && matches(&policy["spec"]["podSelector"], &pod.labels)
}

/// "If this field is not specified, it will default based on the existence of ingress or egress rules; policies
/// that contain an egress section are assumed to affect egress, and all policies (whether or not they contain an
/// ingress section) are assumed to affect ingress." An empty list is no section: the API server cannot tell them
/// apart.
pub(crate) fn affects(policy: &Value, direction: Direction) -> bool {
    let spec = &policy["spec"];
    if items(&spec["policyTypes"]).next().is_some() {
        return items(&spec["policyTypes"]).any(|given| given == direction.word());
    }
    direction == Direction::Ingress || items(&spec["egress"]).next().is_some()
}

/// Every rule of this direction, as far as the connection satisfies it.
pub(crate) fn rules(policy: &Value, view: &View<'_>) -> Vec<Ruling> {
    let rule = |rule: &Value| {
        let named = peers(policy, &rule[view.direction.peers()], view) && ports(&rule["ports"], view);
        Ruling { named, holds: Truth::from(named), asks: false }
    };
    items(&policy["spec"][view.direction.section()]).map(rule).collect()
}

/// "Items in this list are combined using a logical OR operation. If this field is empty or missing, this rule
/// matches all sources." But of an address that is nobody's, "no allow matches it" (DESIGN §5.14).
fn peers(policy: &Value, list: &Value, view: &View<'_>) -> bool {
    if matches!(view.peer, Who::Missing) {
        return false;
    }
    items(list).next().is_none() || items(list).any(|item| peer(policy, item, view))
}

fn peer(policy: &Value, item: &Value, view: &View<'_>) -> bool {
    // "If this field is set then neither of the other fields can be."
    if given(&item["ipBlock"]) {
        return block_contains(&item["ipBlock"], view.peer_address);
    }
    let Who::Pod(pod) = view.peer else { return false };
    let in_namespace = match &item["namespaceSelector"] {
        // "… Otherwise it selects the pods matching podSelector in the policy's own namespace."
        Value::Null => policy["metadata"]["namespace"] == pod.namespace.as_str(),
        selector => matches(selector, view.cluster.namespace_labels(pod)),
    };
    in_namespace && matches(&item["podSelector"], &pod.labels)
}

/// "Each item in this list is combined using a logical OR. If this field is empty or missing, this rule matches
/// all ports."
pub(crate) fn ports(list: &Value, view: &View<'_>) -> bool {
    items(list).next().is_none() || items(list).any(|item| port(item, view))
}

fn port(item: &Value, view: &View<'_>) -> bool {
    // "`protocol` … If not specified, this field defaults to TCP."
    item["protocol"].as_str().unwrap_or("TCP") == view.protocol && number(item, view)
}

/// The port of an item, whatever its protocol: a number, the first of a range, or a name.
pub(crate) fn number(item: &Value, view: &View<'_>) -> bool {
    match &item["port"] {
        // "If this field is not provided, this matches all port names and numbers."
        Value::Null => true,
        // "a … named port on a pod": of the one that is reached.
        Value::String(name) => view.has_port(name),
        first => {
            let first = first.as_u64().expect("a port");
            // "`endPort` … indicates that the range of ports from port to endPort … should be allowed."
            let last = item["endPort"].as_u64().unwrap_or(first);
            (first..=last).contains(&view.port.into())
        }
    }
}

/// The name that a verdict gives the policy.
pub(crate) fn name(policy: &Value) -> String {
    let meta = &policy["metadata"];
    let parts = [&policy["kind"], &meta["namespace"], &meta["name"]];
    parts.into_iter().filter(|part| given(part)).map(text).collect::<Vec<_>>().join("/")
}
