//! The names of fields by the place they stand in, and the one that somebody probably meant.
//!
//! Only for remedies: what exists is decided by the types, never by these lists.

use crate::cilium::fields as cilium;

const META: &[&str] = &["name", "namespace", "labels", "annotations"];
const SELECTOR: &[&str] = &["matchLabels", "matchExpressions"];

/// Whose words an object is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    NetworkPolicy,
    L7,
    ClusterNetwork,
    ClusterL7,
    Cilium,
    CiliumClusterwide,
    CiliumGroup,
}

/// The fields that can stand in the object at this path. Empty where the place is not one of a policy's.
pub(crate) fn known(path: &str, words: Words) -> &'static [&'static str] {
    let place = path.rsplit('.').next().unwrap_or_default();
    let place = place.split('[').next().unwrap_or_default();
    match words {
        Words::NetworkPolicy => namespaced(place, false),
        Words::L7 => namespaced(place, true),
        Words::ClusterNetwork => cluster_network(place),
        Words::ClusterL7 => cluster_l7(place),
        Words::Cilium | Words::CiliumClusterwide => cilium::known(place),
        Words::CiliumGroup => cilium::known_of_group(place),
    }
}

/// The words of the two tiered kinds: `ClusterNetworkPolicy`'s.
fn cluster_network(place: &str) -> &'static [&'static str] {
    match place {
        "spec" => &["tier", "priority", "subject", "ingress", "egress"],
        "ingress" => &["name", "action", "from", "protocols"],
        "egress" => &["name", "action", "to", "protocols"],
        "from" | "subject" => &["namespaces", "pods"],
        "to" => &["namespaces", "pods", "nodes", "networks", "domainNames"],
        "pods" => &["podSelector", "namespaceSelector"],
        "namespaces" | "nodes" => SELECTOR,
        "protocols" => &["tcp", "udp", "sctp", "destinationNamedPort"],
        "tcp" | "udp" | "sctp" => &["destinationPort"],
        "destinationPort" => &["number", "range"],
        "range" => &["start", "end"],
        "" | "metadata" | "podSelector" | "namespaceSelector" | "matchExpressions" => {
            namespaced(place, false)
        }
        _ => &[],
    }
}

/// The tiered kinds' words around `L7NetworkPolicy`'s.
fn cluster_l7(place: &str) -> &'static [&'static str] {
    match place {
        "spec" => &["tier", "priority", "subject", "mode", "denyAction", "denyDetail", "ingress", "egress"],
        "ingress" => &["name", "action", "from", "ports", "rules"],
        "egress" => &["name", "action", "to", "ports", "rules"],
        "subject" | "pods" | "namespaces" => cluster_network(place),
        "ingressDeny" | "egressDeny" => &[],
        other => namespaced(other, true),
    }
}

fn namespaced(place: &str, l7: bool) -> &'static [&'static str] {
    match place {
        "" => &["apiVersion", "kind", "metadata", "spec"],
        "metadata" => META,
        "spec" if l7 => &[
            "podSelector",
            "policyTypes",
            "mode",
            "denyAction",
            "denyDetail",
            "isolation",
            "ingress",
            "egress",
            "ingressDeny",
            "egressDeny",
        ],
        "spec" => &["podSelector", "policyTypes", "ingress", "egress"],
        "ingress" if l7 => &["name", "from", "ports", "rules"],
        "egress" if l7 => &["name", "to", "ports", "rules"],
        "ingressDeny" => &["name", "from", "ports", "rules"],
        "egressDeny" => &["name", "to", "ports", "rules"],
        "ingress" => &["from", "ports"],
        "egress" => &["to", "ports"],
        "from" | "to" if l7 => {
            &["podSelector", "namespaceSelector", "ipBlock", "serviceAccounts", "entities"]
        }
        "from" | "to" => &["podSelector", "namespaceSelector", "ipBlock"],
        "ports" => &["port", "protocol", "endPort"],
        "podSelector" | "namespaceSelector" => SELECTOR,
        "matchExpressions" => &["key", "operator", "values"],
        "ipBlock" => &["cidr", "except"],
        "serviceAccounts" => &["namespace", "name"],
        "rules" => &["http", "grpc", "tls"],
        "http" => &["methods", "path", "hosts", "headers", "queryParams", "upgrades"],
        "grpc" => &["service", "methods", "protocols"],
        "path" | "hosts" => &["type", "value"],
        "headers" | "queryParams" => &["name", "type", "value"],
        "tls" => &["serverNames"],
        _ => &[],
    }
}

/// What to do about a field that does not exist at this place.
pub(crate) fn remedy(parent: &str, field: &str, words: Words) -> String {
    let fields = known(parent, words);
    let of_cilium = matches!(words, Words::Cilium | Words::CiliumClusterwide);
    let other = of_cilium.then(|| cilium::meant(field)).flatten().filter(|meant| fields.contains(meant));
    if let Some(near) = other.or_else(|| nearest(field, fields)) {
        return format!("did you mean `{near}`?");
    }
    if fields.is_empty() {
        return "remove it".to_owned();
    }
    format!("remove it; known here: {}", fields.join(", "))
}

/// The known word nearest to this one, if it is near enough to have been meant.
#[must_use]
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    /// Words longer than this are nobody's typing error.
    const MAX_WORD: usize = 64;
    if word.len() > MAX_WORD {
        return None;
    }
    let lower = word.to_lowercase();
    known
        .iter()
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        assert_eq!(remedy("spec", "ingres", Words::L7), "did you mean `ingress`?");
        assert_eq!(remedy("spec", "PodSelector", Words::L7), "did you mean `podSelector`?");
        assert_eq!(remedy("spec.ingress[0]", "form", Words::L7), "did you mean `from`?");
        assert_eq!(
            remedy("spec.ingress[0].from[2]", "namespaceSelctor", Words::NetworkPolicy),
            "did you mean `namespaceSelector`?"
        );
    }

    #[test]
    fn does_not_guess_wildly() {
        assert_eq!(
            remedy("spec.ingress[0]", "rules", Words::NetworkPolicy),
            "remove it; known here: from, ports"
        );
        assert_eq!(nearest("zzzzzzzz", &["from", "to"]), None);
        assert_eq!(nearest(&"x".repeat(1000), &["from"]), None);
    }
}
