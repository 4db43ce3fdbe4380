//! The names of Cilium's fields by the place they stand in: for remedies, and to know which fields are known.

const SELECTOR: &[&str] = &["matchLabels", "matchExpressions"];

/// The fields that can stand in the object at this place, its last path segment without its index. Empty where the
/// place is not one of a policy's.
pub(crate) fn known(place: &str) -> &'static [&'static str] {
    match place {
        "" => &["apiVersion", "kind", "metadata", "spec", "specs"],
        "metadata" => &["name", "namespace", "labels", "annotations"],
        "spec" | "specs" => &[
            "endpointSelector",
            "nodeSelector",
            "ingress",
            "ingressDeny",
            "egress",
            "egressDeny",
            "enableDefaultDeny",
            "description",
            "labels",
            "log",
        ],
        "ingress" => &[
            "fromEndpoints",
            "fromRequires",
            "fromCIDR",
            "fromCIDRSet",
            "fromEntities",
            "fromNodes",
            "fromGroups",
            "toPorts",
            "icmps",
            "authentication",
        ],
        "ingressDeny" => &[
            "fromEndpoints",
            "fromRequires",
            "fromCIDR",
            "fromCIDRSet",
            "fromEntities",
            "fromNodes",
            "fromGroups",
            "toPorts",
            "icmps",
        ],
        "egress" => &[
            "toEndpoints",
            "toRequires",
            "toCIDR",
            "toCIDRSet",
            "toEntities",
            "toNodes",
            "toGroups",
            "toServices",
            "toFQDNs",
            "toPorts",
            "icmps",
            "authentication",
        ],
        "egressDeny" => &[
            "toEndpoints",
            "toRequires",
            "toCIDR",
            "toCIDRSet",
            "toEntities",
            "toNodes",
            "toGroups",
            "toServices",
            "toPorts",
            "icmps",
        ],
        other => inner(other),
    }
}

/// The fields of what stands inside a rule.
fn inner(place: &str) -> &'static [&'static str] {
    match place {
        "endpointSelector" | "nodeSelector" | "fromEndpoints" | "toEndpoints" | "fromRequires"
        | "toRequires" | "fromNodes" | "toNodes" | "cidrGroupSelector" | "selector" => SELECTOR,
        "matchExpressions" => &["key", "operator", "values"],
        "enableDefaultDeny" => &["ingress", "egress"],
        "fromCIDRSet" | "toCIDRSet" => &["cidr", "cidrGroupRef", "cidrGroupSelector", "except"],
        "toServices" => &["k8sService", "k8sServiceSelector"],
        "k8sService" => &["serviceName", "namespace"],
        "k8sServiceSelector" => &["selector", "namespace"],
        "toFQDNs" | "dns" => &["matchName", "matchPattern"],
        "toPorts" => &["ports", "rules", "serverNames", "terminatingTLS", "originatingTLS", "listener"],
        "ports" => &["port", "endPort", "protocol"],
        "rules" => &["http", "dns", "kafka", "l7proto", "l7"],
        "http" => &["path", "method", "host", "headers", "headerMatches"],
        "headerMatches" => &["name", "value", "secret", "mismatch"],
        "secret" => &["namespace", "name"],
        "terminatingTLS" | "originatingTLS" => &["secret", "trustedCA", "certificate", "privateKey"],
        "listener" => &["envoyConfig", "name", "priority"],
        "envoyConfig" => &["kind", "name"],
        "icmps" => &["fields"],
        "fields" => &["family", "type"],
        "authentication" => &["mode"],
        _ => &[],
    }
}

/// Cilium's word for one of `NetworkPolicy`'s, which no likeness of letters finds.
pub(crate) fn meant(field: &str) -> Option<&'static str> {
    match field {
        "podSelector" => Some("endpointSelector"),
        "from" => Some("fromEndpoints"),
        "to" => Some("toEndpoints"),
        "policyTypes" => Some("enableDefaultDeny"),
        _ => None,
    }
}

/// The fields of a `CiliumCIDRGroup`, likewise.
pub(crate) fn known_of_group(place: &str) -> &'static [&'static str] {
    match place {
        "" => &["apiVersion", "kind", "metadata", "spec"],
        "metadata" => &["name", "labels", "annotations"],
        "spec" => &["externalCIDRs"],
        _ => &[],
    }
}
