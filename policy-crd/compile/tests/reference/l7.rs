//! `L7NetworkPolicy`: peers, ports, isolation, and what must be said.
//!
//! Source: DESIGN §4 (the object) and §5.4, §5.6, §5.8 to §5.12.

use super::cluster::{Pod, Who};
use super::headers;
use super::networkpolicy;
use super::paths;
use super::selectors::{block_contains, given, items, matches, text};
use super::verdict::{Direction, Http, Polarity, Ruling, Said, Truth, View};
use serde_json::Value;

/// "`podSelector`: as NetworkPolicy; `{}` = every pod of this namespace".
pub(crate) fn selects(policy: &Value, pod: &Pod) -> bool {
    networkpolicy::selects(policy, pod)
}

/// "Isolation is per (pod, direction, port): … `Direction` isolates every port, `ListedPorts` the ports it names, on
/// every protocol; `None` isolates nothing."
pub(crate) fn isolates(policy: &Value, view: &View<'_>) -> bool {
    let affects = networkpolicy::affects(policy, view.direction);
    match policy["spec"]["isolation"].as_str().unwrap_or("Direction") {
        "Direction" => affects,
        "ListedPorts" => affects && lists(policy, view.direction.section(), view),
        "None" => false,
        other => panic!("no isolation {other}"),
    }
}

fn lists(policy: &Value, section: &str, view: &View<'_>) -> bool {
    items(&policy["spec"][section]).any(|rule| {
        let names = |item: &Value| match &item["port"] {
            Value::String(name) => {
                let protocol = item["protocol"].as_str().unwrap_or("TCP");
                let has = |pod: &Pod| {
                    pod.ports.iter().any(|port| (&*port.0, &*port.1, port.2) == (name, protocol, view.port))
                };
                named_there(policy, rule, view).any(has)
            }
            _ => networkpolicy::number(item, view),
        };
        // A rule without ports is about every one of them.
        items(&rule["ports"]).next().is_none() || items(&rule["ports"]).any(names)
    })
}

/// Whose ports the names in a rule are. Isolation is "per (pod, direction, port)", so that on egress it is not that of
/// the peer at hand alone: a name is that of a port of every pod that the rule is about.
fn named_there<'a>(policy: &'a Value, rule: &'a Value, view: &'a View<'a>) -> impl Iterator<Item = &'a Pod> {
    let about = move |pod: &&Pod| match view.direction {
        Direction::Ingress => std::ptr::eq(*pod, view.own),
        Direction::Egress => pod.addresses.iter().any(|address| {
            let peer = view.cluster.who(*address);
            let is_it = matches!(peer, Who::Pod(found) if std::ptr::eq(found, *pod));
            is_it
                && peers(
                    policy,
                    &rule["to"],
                    &View { peer, peer_address: *address, ..*view },
                    Polarity::Allow,
                )
        }),
    };
    view.cluster.pods.iter().filter(about)
}

/// The allows of this direction.
pub(crate) fn allows(policy: &Value, view: &View<'_>) -> Vec<Ruling> {
    // "`None` …: its allows only observe."
    let observes = policy["spec"]["isolation"] == "None";
    if observes || !networkpolicy::affects(policy, view.direction) {
        return Vec::new();
    }
    let section = items(&policy["spec"][view.direction.section()]);
    section.map(|rule| ruling(policy, rule, view, Polarity::Allow)).collect()
}

/// "`ingressDeny`: same form; a deny beats every allow." A deny is meant wherever it stands: `policyTypes` says what
/// becomes default-deny.
pub(crate) fn denies(policy: &Value, view: &View<'_>) -> Vec<Ruling> {
    let section = items(&policy["spec"][view.direction.deny_section()]);
    section.map(|rule| ruling(policy, rule, view, Polarity::Deny)).collect()
}

/// One rule: peers, ports and what must be said are ANDed.
pub(crate) fn ruling(policy: &Value, rule: &Value, view: &View<'_>, polarity: Polarity) -> Ruling {
    // "UDP on a port with L7 rules needs a rule that names it (HTTP/3 walks round nothing)" (DESIGN §5.6): a rule that
    // asks what is said speaks of what can be read, and by the sentence before that one nothing in datagrams can be:
    // "a fact that cannot be known … matches … no allow, Accept or Pass condition".
    let unnamed = polarity == Polarity::Allow && view.protocol != "TCP" && given(&rule["rules"]);
    let named = !unnamed
        && peers(policy, &rule[view.direction.peers()], view, polarity)
        && (networkpolicy::ports(&rule["ports"], view) || unknown_port(&rule["ports"], view, polarity));
    let holds = if !named {
        Truth::No
    } else if given(&rule["rules"]) {
        conditions(&rule["rules"], view, polarity)
    } else {
        Truth::Yes
    };
    Ruling { named, holds, asks: holds == Truth::Maybe }
}

/// What the ports of an address that is nobody's are called cannot be known, and "a fact that cannot be known matches
/// every deny condition".
fn unknown_port(ports: &Value, view: &View<'_>, polarity: Polarity) -> bool {
    let named = |port: &Value| {
        port["port"].is_string() && port["protocol"].as_str().unwrap_or("TCP") == view.protocol
    };
    let unknown = view.direction == Direction::Egress && matches!(view.peer, Who::Missing);
    unknown && polarity == Polarity::Deny && items(ports).any(named)
}

/// "OR over items, AND inside an item." Where the address is nobody's: "no allow matches it, every peer deny does"
/// (DESIGN §5.14).
fn peers(policy: &Value, list: &Value, view: &View<'_>, polarity: Polarity) -> bool {
    if matches!(view.peer, Who::Missing) {
        return polarity == Polarity::Deny;
    }
    items(list).next().is_none() || items(list).any(|item| peer(policy, item, view))
}

fn peer(policy: &Value, item: &Value, view: &View<'_>) -> bool {
    let namespace = &policy["metadata"]["namespace"];
    let pod = match view.peer {
        Who::Pod(pod) => Some(pod),
        _ => None,
    };
    let is_pod = |condition: &dyn Fn(&Pod) -> bool| pod.is_some_and(condition);
    let labels = |selector: &Value| is_pod(&|pod| matches(selector, &pod.labels));
    let namespaces = |selector: &Value| is_pod(&|pod| matches(selector, view.cluster.namespace_labels(pod)));
    let own_namespace = || is_pod(&|pod| *namespace == pod.namespace.as_str());
    let account = |account: &Value| {
        let of = if given(&account["namespace"]) { &account["namespace"] } else { namespace };
        is_pod(&|pod| *of == pod.namespace.as_str() && account["name"] == pod.service_account.as_str())
    };
    let pods = &item["podSelector"];
    let all = &item["namespaceSelector"];
    (!given(pods) || labels(pods))
        && (!given(all) || namespaces(all))
        && (!given(pods) || given(all) || own_namespace())
        && (!given(&item["ipBlock"]) || block_contains(&item["ipBlock"], view.peer_address))
        && (!given(&item["serviceAccounts"]) || items(&item["serviceAccounts"]).any(account))
        && (!given(&item["entities"]) || items(&item["entities"]).any(|entity| is_entity(text(entity), view)))
}

/// "`Host` | `RemoteNode` | `World` | `Cluster` | `KubeApiserver`": the pod's own node, another node, outside the
/// cluster, everything in it, the API server. The API server is the cluster's wherever it answers.
pub(crate) fn is_entity(entity: &str, view: &View<'_>) -> bool {
    match (entity, view.peer) {
        ("Host", Who::Node(node)) => node.name == view.own.node,
        ("RemoteNode", Who::Node(node)) => node.name != view.own.node,
        ("World", Who::World) | ("Cluster", Who::Pod(_) | Who::Node(_)) => true,
        ("KubeApiserver" | "Cluster", _) => view.is_api_server(),
        ("Host" | "RemoteNode" | "World", _) => false,
        (other, _) => panic!("no entity {other} here"),
    }
}

/// `rules`: several kinds are a union. "A fact that cannot be known (TLS, unknown bytes, ambiguous header) matches
/// every deny condition and no allow, Accept or Pass condition" (DESIGN §5.6).
pub(crate) fn conditions(rules: &Value, view: &View<'_>, polarity: Polarity) -> Truth {
    let unknown = Truth::from(polarity == Polarity::Deny);
    // Nobody reads HTTP in datagrams: "HTTP/3 walks round nothing".
    if view.protocol != "TCP" {
        return unknown;
    }
    let http = |request: &Http| {
        items(&rules["http"]).any(|rule| http_rule(rule, request, polarity))
            || items(&rules["grpc"]).any(|rule| grpc_rule(rule, request, polarity))
    };
    let tls = |name: Option<&str>| {
        given(&rules["tls"])
            && items(&rules["tls"]["serverNames"]).any(|pattern| match name {
                Some(name) => server_name(text(pattern), name),
                // "No SNI, or an encrypted one, is no match"; a deny cannot know that it is another.
                None => polarity == Polarity::Deny,
            })
    };
    let reads_http = given(&rules["http"]) || given(&rules["grpc"]);
    match view.said {
        Said::Nothing => Truth::Maybe,
        Said::Http(request) => Truth::from(http(request)),
        Said::Tls(name) => Truth::from(tls(name.as_deref()) || (reads_http && unknown == Truth::Yes)),
        Said::Bytes => unknown,
    }
}

/// "`serverNames`: … exact or `*.suffix`". Names in DNS have no case and may end in a dot.
fn server_name(pattern: &str, name: &str) -> bool {
    let plain = |name: &str| name.to_ascii_lowercase().trim_end_matches('.').to_owned();
    let (pattern, name) = (plain(pattern), plain(name));
    match pattern.strip_prefix('*') {
        Some(suffix) => name.strip_suffix(suffix).is_some_and(|front| !front.is_empty()),
        None => pattern == name,
    }
}

/// One item of `http`: "OR over items, AND inside".
fn http_rule(rule: &Value, request: &Http, polarity: Polarity) -> bool {
    method(rule, request, polarity)
        && (!given(&rule["path"]) || path(&rule["path"], request, polarity))
        && (!given(&rule["hosts"]) || items(&rule["hosts"]).any(|want| host(want, request, polarity)))
        && items(&rule["headers"]).all(|want| headers::header(want, &request.headers, polarity))
        && items(&rule["queryParams"]).all(|want| headers::query(want, request.query(), polarity))
        && upgrade(rule, request, polarity)
}

/// "Methods are case-sensitive. HEAD is not implied by GET." "CONNECT matches only where it is named."
fn method(rule: &Value, request: &Http, polarity: Polarity) -> bool {
    let same = |method: &str| match polarity {
        Polarity::Allow => method == request.method,
        // "Methods are case-sensitive" (DESIGN §5.8) says what a rule means by `GET`, and so all that an allow takes.
        // What the server makes of `get` (some write it in upper case first) is "a fact that cannot be known", which
        // "matches every deny condition" (§5.6); no sentence says so of methods in particular.
        Polarity::Deny => method.eq_ignore_ascii_case(&request.method),
    };
    if given(&rule["methods"]) {
        return items(&rule["methods"]).any(|method| same(text(method)));
    }
    // "CONNECT matches only where it is named" limits what is opened. A deny without methods is one of every request:
    // DESIGN §5.16, "denies more, never less".
    polarity == Polarity::Deny || request.method != "CONNECT"
}

/// A path condition: the strict reading for an allow, any for a deny.
fn path(condition: &Value, request: &Http, polarity: Polarity) -> bool {
    let value = text(&condition["value"]);
    let matches = |path: &str| match text(&condition["type"]) {
        "Exact" => path == value,
        "PathPrefix" => paths::has_prefix(path, value),
        "RegularExpression" => paths::full_match(value, path),
        other => panic!("no type {other}"),
    };
    match polarity {
        Polarity::Allow => paths::strict(request.path()).is_some_and(|path| matches(&path)),
        Polarity::Deny => paths::readings(request.path(), request.far).iter().any(|path| matches(path)),
    }
}

/// A request without a host may be anybody's to a server: an unknown fact.
fn host(condition: &Value, request: &Http, polarity: Polarity) -> bool {
    let Some(given) = request.host.as_deref() else { return polarity == Polarity::Deny };
    // "Ambiguity fails the allow and matches the deny."
    let Some(name) = headers::host(given) else { return polarity == Polarity::Deny };
    match text(&condition["type"]) {
        "Exact" => condition["value"] == name.as_str(),
        "RegularExpression" => paths::full_match(text(&condition["value"]), &name),
        other => panic!("no type {other} of a host"),
    }
}

/// "`websocket` only under a rule that names it (`upgrades: [websocket]`); every other Upgrade token is refused."
/// In a deny it is a condition like the others.
fn upgrade(rule: &Value, request: &Http, polarity: Polarity) -> bool {
    // RFC 9110 §7.8: a list of protocols, each with a version behind a slash if it has one; §5.3: several fields are
    // one list.
    let asked: Vec<&str> =
        request.header("upgrade").flat_map(|field| field.split(',')).map(str::trim).collect();
    let named = items(&rule["upgrades"]).any(|upgrade| upgrade == "websocket");
    let name = |token: &str| token.split('/').next().unwrap_or_default().to_ascii_lowercase();
    match polarity {
        Polarity::Allow => {
            asked.is_empty() || (named && asked.len() == 1 && asked[0].eq_ignore_ascii_case("websocket"))
        }
        Polarity::Deny => !given(&rule["upgrades"]) || asked.iter().any(|token| name(token) == "websocket"),
    }
}

/// "A grpc allow matches HTTP/2, POST, content type `application/grpc` or `application/grpc+…`; `protocols` … opens the
/// others by their own marks. A grpc deny matches the path under any method, version and content type."
fn grpc_rule(rule: &Value, request: &Http, polarity: Polarity) -> bool {
    let service = text(&rule["service"]);
    let named = |path: &str| {
        let Some(rest) = path.strip_prefix('/').and_then(|path| path.strip_prefix(service)) else {
            return false;
        };
        let Some(method) = rest.strip_prefix('/') else { return false };
        match &rule["methods"] {
            Value::Null => !method.is_empty() && !method.contains('/'),
            methods => items(methods).any(|given| given == method),
        }
    };
    match polarity {
        Polarity::Deny => paths::readings(request.path(), request.far).iter().any(|path| named(path)),
        Polarity::Allow => {
            let opened = |word: &str| match &rule["protocols"] {
                Value::Null => word == "GRPC",
                protocols => items(protocols).any(|given| given == word),
            };
            // "`websocket` only under a rule that names it …; every other Upgrade token is refused" (DESIGN §5.11).
            let upgrades = request.header("upgrade").next().is_some();
            let is_open = |word: &&str| !upgrades && opened(word) && is_call(word, request);
            ["GRPC", "GRPCWeb", "Connect"].iter().any(is_open)
                && paths::strict(request.path()).is_some_and(|path| named(&path))
        }
    }
}

/// Whether a request has the marks of a protocol that carries calls.
fn is_call(protocol: &str, request: &Http) -> bool {
    let types: Vec<&str> = request.header("content-type").collect();
    let [kind] = types[..] else { return false };
    let of = |bases: &[&str]| {
        bases
            .iter()
            .any(|base| kind.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('+')))
    };
    let post = request.method == "POST";
    match protocol {
        "GRPC" => post && request.version == 2 && of(&["application/grpc"]),
        // "content-type: application/grpc-web", also `-text` (the gRPC-Web protocol).
        "GRPCWeb" => post && of(&["application/grpc-web", "application/grpc-web-text"]),
        // Streams: `application/connect+proto`; one call: `application/proto` or `application/json` with the
        // version header (the Connect protocol).
        _ => {
            let version: Vec<&str> = request.header("connect-protocol-version").collect();
            let stream = kind.starts_with("application/connect+");
            post && (stream
                || (version == ["1"] && ["application/proto", "application/json"].contains(&kind)))
        }
    }
}

impl Direction {
    /// The list of this direction's denies.
    fn deny_section(self) -> &'static str {
        match self {
            Self::Ingress => "ingressDeny",
            Self::Egress => "egressDeny",
        }
    }
}
