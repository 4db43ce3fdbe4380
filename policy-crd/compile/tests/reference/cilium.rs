//! `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy`.
//!
//! Source: Cilium's documentation of network policy (layer 3, 4 and 7 examples, policy enforcement modes, deny
//! policies) and DESIGN §5.16: "CNP keeps Cilium's (`ingress: [{}]` denies all, CIDRs never match pods, a regex is
//! a full match and sees the query)".

use super::cluster::{Pod, Who};
use super::headers;
use super::paths;
use super::selectors::{Labels, block_contains, contains, given, items, matches, text};
use super::verdict::{Direction, Http, Polarity, Ruling, Said, Truth, View};
use serde_json::{Value, json};

/// `spec`, or each of `specs`.
pub(crate) fn specs(policy: &Value) -> Vec<&Value> {
    std::iter::once(&policy["spec"]).chain(items(&policy["specs"])).filter(|spec| given(spec)).collect()
}

/// "`endpointSelector` selects all endpoints which should be subject to this rule": of the namespace, where there
/// is one.
pub(crate) fn selects(policy: &Value, spec: &Value, pod: &Pod, view: &View<'_>) -> bool {
    let namespace = &policy["metadata"]["namespace"];
    let mut selector = unprefixed(&spec["endpointSelector"]);
    // "The endpointSelector always applies in the namespace of the policy": Cilium removes another from it.
    if let (true, Some(labels)) = (given(namespace), selector["matchLabels"].as_object_mut()) {
        labels.remove(NAMESPACE);
    }
    (!given(namespace) || *namespace == pod.namespace.as_str())
        && matches(&selector, &cilium_labels(pod, view))
}

/// "If any rule selects an endpoint and the rule has an ingress section, the endpoint goes into default deny mode for
/// ingress"; `enableDefaultDeny` says otherwise. An empty list is no section; a section of denies is one.
pub(crate) fn isolates(spec: &Value, direction: Direction) -> bool {
    let (word, allow, deny) = match direction {
        Direction::Ingress => ("ingress", "ingress", "ingressDeny"),
        Direction::Egress => ("egress", "egress", "egressDeny"),
    };
    let section = items(&spec[allow]).next().is_some() || items(&spec[deny]).next().is_some();
    spec["enableDefaultDeny"][word].as_bool().unwrap_or(section)
}

/// The allows of one direction.
pub(crate) fn allows(policy: &Value, spec: &Value, view: &View<'_>) -> Vec<Ruling> {
    rulings(policy, &spec[view.direction.section()], view, Polarity::Allow)
}

/// "Deny policies take precedence over allow policies."
pub(crate) fn denies(policy: &Value, spec: &Value, view: &View<'_>) -> Vec<Ruling> {
    let section = if view.direction == Direction::Ingress { "ingressDeny" } else { "egressDeny" };
    rulings(policy, &spec[section], view, Polarity::Deny)
}

fn rulings(policy: &Value, rules: &Value, view: &View<'_>, polarity: Polarity) -> Vec<Ruling> {
    let ruling = |rule: &Value| {
        let peers = peers(policy, rule, view, polarity);
        let all = items(&rule["toPorts"]).next().is_none();
        let ports = items(&rule["toPorts"]).filter(|item| ports(item, view, polarity));
        let truths: Vec<Truth> = ports.map(|item| said(item, view, polarity)).collect();
        // A rule of HTTP says nothing of datagrams.
        let named =
            peers && (all || truths.iter().any(|truth| view.protocol == "TCP" || *truth != Truth::No));
        let asks = peers && truths.contains(&Truth::Maybe);
        let holds = if !peers {
            Truth::No
        } else if all {
            Truth::Yes
        } else {
            truths.into_iter().fold(Truth::No, Truth::or)
        };
        Ruling { named, holds, asks }
    };
    items(rules).map(ruling).collect()
}

/// One kind of peer in a rule; where none is given, "a rule that has no peers and no ports selects nothing"
/// (`- {}` is the documented default deny), and one with ports alone selects everybody.
fn peers(policy: &Value, rule: &Value, view: &View<'_>, polarity: Polarity) -> bool {
    let (endpoints, entities, cidr, set) = match view.direction {
        Direction::Ingress => ("fromEndpoints", "fromEntities", "fromCIDR", "fromCIDRSet"),
        Direction::Egress => ("toEndpoints", "toEntities", "toCIDR", "toCIDRSet"),
    };
    let kinds = [endpoints, entities, cidr, set];
    if kinds.iter().all(|kind| !given(&rule[*kind])) {
        let selects = items(&rule["toPorts"]).next().is_some();
        return selects && (polarity == Polarity::Deny || !matches!(view.peer, Who::Missing));
    }
    // DESIGN §5.14: "no allow matches it, every peer deny does", be its list empty.
    if matches!(view.peer, Who::Missing) {
        return polarity == Polarity::Deny;
    }
    // "CIDR policies do not apply to traffic where both sides are managed by Cilium": pods, and nodes beside them.
    let outside = matches!(view.peer, Who::World);
    items(&rule[endpoints]).any(|selector| endpoint(policy, selector, view))
        || items(&rule[entities]).any(|name| entity(text(name), view))
        || (outside && items(&rule[cidr]).any(|cidr| contains(text(cidr), view.peer_address)))
        || (outside && items(&rule[set]).any(|block| block_contains(block, view.peer_address)))
}

/// "The `fromEndpoints` … only match pods of the policy's namespace unless a namespace is explicitly given."
fn endpoint(policy: &Value, selector: &Value, view: &View<'_>) -> bool {
    let Who::Pod(pod) = view.peer else { return false };
    let selector = unprefixed(selector);
    let keys = selector["matchLabels"].as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    let mut keys = keys.chain(items(&selector["matchExpressions"]).map(|item| text(&item["key"])));
    let says = keys.any(|key| key == NAMESPACE || key.starts_with(NAMESPACE_LABELS));
    let namespace = &policy["metadata"]["namespace"];
    (says || !given(namespace) || *namespace == pod.namespace.as_str())
        && matches(&selector, &cilium_labels(pod, view))
}

/// "host: the local host … remote-node: any node in the cluster other than the local … cluster: all network
/// endpoints inside of the local cluster (and host, remote-node) … world: all endpoints outside of the cluster …
/// all: the combination of all known clusters as well as world".
fn entity(name: &str, view: &View<'_>) -> bool {
    let local = |node: &str| node == view.own.node;
    match (name, view.peer) {
        ("all", _) | ("world", Who::World) | ("cluster", Who::Pod(_) | Who::Node(_)) => true,
        // "kube-apiserver: the kube-apiserver in a Kubernetes cluster … both within the cluster and outside", which is
        // one of the entities that Cilium's `cluster` is made of.
        ("kube-apiserver" | "cluster", _) => view.is_api_server(),
        ("host", Who::Node(node)) => local(&node.name),
        ("remote-node", Who::Node(node)) => !local(&node.name),
        ("world" | "host" | "remote-node" | "none", _) => false,
        (other, _) => panic!("no entity {other} here"),
    }
}

/// The label that Cilium gives every endpoint for its namespace.
const NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// What stands before the labels of the endpoint's namespace.
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";

/// The labels of a pod as Cilium selects by them.
fn cilium_labels(pod: &Pod, view: &View<'_>) -> Labels {
    let mut labels = pod.labels.clone();
    labels.insert(NAMESPACE.to_owned(), pod.namespace.clone());
    labels.insert("io.cilium.k8s.policy.serviceaccount".to_owned(), pod.service_account.clone());
    for (key, value) in view.cluster.namespace_labels(pod) {
        labels.insert(format!("{NAMESPACE_LABELS}{key}"), value.clone());
    }
    labels
}

/// "Labels may have a source before a colon": pods' are of `k8s`, and `any` is of every source.
fn unprefixed(selector: &Value) -> Value {
    let bare = |key: &str| key.strip_prefix("k8s:").or(key.strip_prefix("any:")).unwrap_or(key).to_owned();
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let labels: serde_json::Map<String, Value> =
        labels.map(|(key, value)| (bare(key), value.clone())).collect();
    let expression = |item: &Value| json!({"key": bare(text(&item["key"])), "operator": item["operator"], "values": item["values"]});
    let expressions: Vec<Value> = items(&selector["matchExpressions"]).map(expression).collect();
    json!({"matchLabels": labels, "matchExpressions": expressions})
}

/// "`ports` is a list of L4 ports"; `protocol`: "ANY" is the default; a port is a number, the first of a range, a
/// name, or "0" for all of the protocol.
fn ports(item: &Value, view: &View<'_>, polarity: Polarity) -> bool {
    // Of an address that is nobody's the names cannot be known: every deny condition matches.
    let unknown = view.direction == Direction::Egress && matches!(view.peer, Who::Missing);
    let port = |item: &Value| {
        let protocol = item["protocol"].as_str().unwrap_or("ANY");
        let given = text(&item["port"]);
        let number = match given.parse::<u64>() {
            Ok(0) => true,
            Ok(first) => {
                let last = item["endPort"].as_u64().filter(|last| *last != 0).unwrap_or(first);
                (first..=last).contains(&view.port.into())
            }
            Err(_) => view.has_port(given) || (unknown && polarity == Polarity::Deny),
        };
        (protocol == "ANY" || protocol == view.protocol) && number
    };
    items(&item["ports"]).any(port)
}

/// `rules.http`: "if empty or not given, all are allowed". Cilium has no L7 denies.
fn said(item: &Value, view: &View<'_>, polarity: Polarity) -> Truth {
    let http = &item["rules"]["http"];
    if !given(http) {
        return Truth::Yes;
    }
    assert_eq!(polarity, Polarity::Allow, "Cilium has no L7 denies");
    match view.said {
        _ if view.protocol != "TCP" => Truth::No,
        Said::Nothing => Truth::Maybe,
        Said::Http(request) => Truth::from(items(http).any(|rule| http_rule(rule, request))),
        Said::Tls(_) | Said::Bytes => Truth::No,
    }
}

/// "`path` is an extended POSIX regex matched against the path of a request", and so are `method` and `host`; all
/// conditions of an item must hold.
fn http_rule(rule: &Value, request: &Http) -> bool {
    let regex =
        |field: &str, value: &str| rule[field].as_str().is_none_or(|want| paths::full_match(want, value));
    // DESIGN §5.8 holds for every front end: an allow needs the strict reading, and what is judged is what goes on.
    let target = paths::strict(request.path()).map(|path| match request.target.split_once('?') {
        Some((_, query)) => format!("{path}?{query}"),
        None => path,
    });
    let path = !given(&rule["path"]) || target.is_some_and(|target| regex("path", &target));
    // "`host` is an extended POSIX regex matched against the host header of a request": as it was sent, with port and
    // case, as DESIGN §5.16 has it ("CNP keeps Cilium's"). A host with several readings is in no allow (§5.6).
    let host = !given(&rule["host"])
        || request.host.as_deref().is_some_and(|host| headers::host(host).is_some() && regex("host", host));
    let header = |want: &Value| {
        let condition = match text(want).split_once([':', ' ']) {
            Some((name, value)) => json!({"name": name, "type": "Exact", "value": value.trim()}),
            None => json!({"name": text(want), "type": "Present"}),
        };
        headers::header(&condition, &request.headers, Polarity::Allow)
    };
    let header_match = |want: &Value| {
        let condition = match &want["value"] {
            Value::Null => json!({"name": want["name"], "type": "Present"}),
            value => json!({"name": want["name"], "type": "Exact", "value": value}),
        };
        headers::header(&condition, &request.headers, Polarity::Allow)
    };
    // DESIGN §5.11: CONNECT and upgrades match only where they are named.
    let named = given(&rule["method"]) || request.method != "CONNECT";
    // Upgrades have no field in Cilium, whose proxy lets WebSockets be asked for and nothing else (docs/cilium.md):
    // "CNP keeps Cilium's" (§5.16), "every other Upgrade token is refused" (§5.11).
    let asked: Vec<&str> = request.header("upgrade").collect();
    let upgrades = !asked.is_empty() && !matches!(asked[..], [one] if one.eq_ignore_ascii_case("websocket"));
    regex("method", &request.method)
        && named
        && !upgrades
        && path
        && host
        && items(&rule["headers"]).all(header)
        && items(&rule["headerMatches"]).all(header_match)
}
