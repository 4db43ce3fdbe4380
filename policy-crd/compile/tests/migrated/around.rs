//! A cluster and questions made for a policy from what it says: pods that its selectors take and pods that they just
//! miss, addresses in and beside its CIDRs, requests that its expressions match and some that they do not.
//!
//! Knows nothing of what the policy means.

use serde_json::{Map, Value, json};
use sluice_compile::query::{Cluster, Port, Query, Said};
use sluice_policy::{Decision, Prefix, Protocol, Reason};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Most pods of a world: every pair of them is a question.
const MOST_PODS: usize = 28;

const NAMESPACE: &str = "io.kubernetes.pod.namespace";
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";

/// What is read in a policy.
#[derive(Default)]
pub(crate) struct Words {
    /// Labels of each selector that could be met.
    selectors: Vec<BTreeMap<String, String>>,
    cidrs: BTreeSet<String>,
    ports: BTreeSet<u16>,
    names: BTreeSet<String>,
    methods: BTreeSet<String>,
    paths: BTreeSet<String>,
    hosts: BTreeSet<String>,
    headers: Vec<(String, String)>,
    servers: BTreeSet<String>,
}

impl Words {
    pub(crate) fn of(objects: &[Value]) -> Self {
        let mut words = Self::default();
        objects.iter().for_each(|object| words.read(object));
        words.selectors.sort();
        words.selectors.dedup();
        words
    }

    fn read(&mut self, value: &Value) {
        match value {
            Value::Object(fields) => {
                if fields.contains_key("matchLabels") || fields.contains_key("matchExpressions") {
                    self.selector(fields);
                }
                for (key, value) in fields {
                    self.field(key, value);
                    self.read(value);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.read(item)),
            Value::String(text) if Prefix::parse(text).is_ok() || text.parse::<IpAddr>().is_ok() => {
                self.cidrs.insert(text.clone());
            }
            _ => {}
        }
    }

    fn selector(&mut self, fields: &Map<String, Value>) {
        let plain = |key: &str| key.trim_start_matches("k8s:").trim_start_matches("any:").to_owned();
        let mut labels = BTreeMap::new();
        for (key, value) in fields.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            labels.insert(plain(key), value.as_str().unwrap_or("x").to_owned());
        }
        for one in fields.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = plain(one["key"].as_str().unwrap_or_default());
            let first = one["values"][0].as_str();
            match one["operator"].as_str() {
                Some("In") => labels.insert(key, first.unwrap_or("x").to_owned()),
                Some("Exists") => labels.insert(key, "x".to_owned()),
                // Just missed; pods without the label are made anyway.
                Some("NotIn") => {
                    let missed = labels.clone().into_iter().chain([(key, first.unwrap_or("x").to_owned())]);
                    self.selectors.push(missed.collect());
                    None
                }
                _ => None,
            };
        }
        self.selectors.push(labels);
    }

    fn field(&mut self, key: &str, value: &Value) {
        let text = value.as_str().map(ToOwned::to_owned).or_else(|| value.as_i64().map(|n| n.to_string()));
        let Some(text) = text else {
            if key == "serverNames" {
                let all = value.as_array().into_iter().flatten().filter_map(Value::as_str);
                self.servers.extend(
                    all.flat_map(|name| [name.to_owned(), name.replace("**", "a.b"), name.replace('*', "a")]),
                );
            }
            if key == "headers" {
                let all = value.as_array().into_iter().flatten().filter_map(Value::as_str);
                self.headers.extend(all.map(|header| {
                    let (name, value) = header.split_once(' ').unwrap_or((header, "1"));
                    (name.trim_end_matches(':').to_owned(), value.trim().to_owned())
                }));
            }
            if key == "headerMatches" {
                let all = value.as_array().into_iter().flatten();
                self.headers.extend(all.map(|one| {
                    let text = |key: &str| one[key].as_str().unwrap_or("1").to_owned();
                    (text("name"), text("value"))
                }));
            }
            return;
        };
        match key {
            "port" | "endPort" => match text.parse::<u16>() {
                Ok(0) => {}
                Ok(number) => {
                    self.ports.extend([number, number.saturating_sub(1).max(1), number.saturating_add(1)]);
                }
                Err(_) => {
                    self.names.insert(text.to_ascii_lowercase());
                }
            },
            "method" => {
                let bare = text.trim_matches(['^', '$', '(', ')']);
                self.methods.extend(bare.split('|').map(ToOwned::to_owned));
            }
            "path" => self.paths.extend(samples(&text)),
            "host" => self.hosts.extend(samples(&text)),
            _ => {}
        }
    }
}

/// Texts near what an expression matches.
fn samples(expression: &str) -> Vec<String> {
    let bare = expression.trim_start_matches('^').trim_end_matches('$').replace("??", "").replace("\\.", ".");
    let bare = bare.replace("\\?", "?");
    let with = |text: &str| {
        bare.replace(".*", text).replace(".+", text).replace("[a-z]+", "abc").replace("[0-9]+", "42")
    };
    let mut out = vec![with(""), with("abc"), with("a/b"), with("a?b=1")];
    out.sort();
    out.dedup();
    out
}

/// Namespaces, nodes and pods for these words.
pub(crate) fn world(words: &Words, home: &str) -> Vec<Value> {
    let mut namespaces: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for name in [home, "elsewhere"] {
        namespaces.entry(name.to_owned()).or_default();
    }
    let mut pods: Vec<(String, BTreeMap<String, String>, String)> = Vec::new();
    let mut union = BTreeMap::new();
    for (number, selector) in words.selectors.iter().enumerate() {
        let named = selector.get(NAMESPACE).cloned();
        let labels_of_namespace: BTreeMap<String, String> = selector
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(NAMESPACE_LABELS)?.to_owned(), value.clone())))
            .collect();
        let mut homes = vec![home.to_owned(), "elsewhere".to_owned()];
        homes.extend(named.clone());
        if let Some(named) = named {
            namespaces.entry(named).or_default();
        }
        if !labels_of_namespace.is_empty() {
            let name = labels_of_namespace.get("kubernetes.io/metadata.name").cloned();
            let name = name.unwrap_or_else(|| format!("labelled-{number}"));
            namespaces.insert(name.clone(), labels_of_namespace);
            homes.push(name);
        }
        let account = selector.get(SERVICE_ACCOUNT).cloned().unwrap_or_else(|| "default".to_owned());
        let own: BTreeMap<String, String> = selector
            .iter()
            .filter(|(key, _)| {
                !key.starts_with("io.kubernetes.") && !key.starts_with("io.cilium.") && !key.contains(':')
            })
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        union.extend(own.clone());
        homes.dedup();
        for home in homes {
            pods.push((home.clone(), own.clone(), account.clone()));
            // Just missed: another value, another account.
            if let Some((key, _)) = own.first_key_value() {
                let mut other = own.clone();
                other.insert(key.clone(), "just-missed".to_owned());
                pods.push((home.clone(), other, account.clone()));
            }
            if account != "default" {
                pods.push((home, own.clone(), "other".to_owned()));
            }
        }
    }
    pods.push((home.to_owned(), union, "default".to_owned()));
    pods.push((home.to_owned(), BTreeMap::new(), "default".to_owned()));
    pods.push(("elsewhere".to_owned(), BTreeMap::new(), "default".to_owned()));
    let mut seen = BTreeSet::new();
    pods.retain(|pod| seen.insert(pod.clone()));
    // Of many, some of every kind.
    let step = pods.len().div_ceil(MOST_PODS).max(1);
    let pods = pods.into_iter().step_by(step).enumerate();
    let mut objects: Vec<Value> = namespaces
        .into_iter()
        .map(|(name, labels)| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}))
        .collect();
    objects.extend((1..=2).map(node));
    objects.extend(pods.map(|(number, pod)| manifest(words, number, &pod)));
    objects
}

fn node(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{number}")},
        "spec": {"podCIDRs": [format!("10.244.{number}.0/24")]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("172.18.0.{number}")}]},
    })
}

fn manifest(
    words: &Words,
    number: usize,
    (namespace, labels, account): &(String, BTreeMap<String, String>, String),
) -> Value {
    let node = number % 2 + 1;
    let address = format!("10.244.{node}.{}", number + 10);
    let second = format!("fd00:10:244::{number:x}");
    // The same name is another number on every third pod.
    let port = |(at, name): (usize, &String)| json!({"name": name, "containerPort": 8080 + at + usize::from(number % 3 == 2) * 100});
    let ports: Vec<Value> = words.names.iter().enumerate().map(port).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("p{number}"), "namespace": namespace, "labels": labels},
        "spec": {"nodeName": format!("n{node}"), "serviceAccountName": account, "containers": [{"name": "c", "ports": ports}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}, {"ip": second}]},
    })
}

/// Numbers that look random and are the same every time (xorshift).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).unwrap()
    }

    fn of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        let at = self.roll(items.len());
        &items[at]
    }

    fn often(&mut self, of: usize) -> bool {
        self.roll(of) != 0
    }
}

/// A question, and what a TLS client says where one asks.
pub(crate) struct Question {
    pub(crate) query: Query,
    /// The server name, if one is sent.
    pub(crate) tls: Option<Option<String>>,
}

/// Connections looked through for those that a policy decides.
const TRIED: usize = 6000;

/// What questions are made of.
pub(crate) struct Asker {
    /// Connections that a rule of the original lets through, and those that the original denies.
    decided: [Vec<Query>; 2],
    /// The two addresses of each.
    pods: Vec<[String; 2]>,
    outside: Vec<String>,
    ports: Vec<u16>,
    methods: Vec<String>,
    paths: Vec<String>,
    hosts: Vec<String>,
    headers: Vec<(String, String)>,
    servers: Vec<Option<String>>,
}

impl Asker {
    pub(crate) fn new(words: &Words, world: &[Value]) -> Self {
        let pods = world.iter().filter(|object| object["kind"] == "Pod");
        let addresses = |pod: &Value| {
            [0, 1].map(|at| pod["status"]["podIPs"][at]["ip"].as_str().unwrap_or_default().to_owned())
        };
        let mut outside: Vec<String> = words.cidrs.iter().flat_map(|cidr| near(cidr)).collect();
        // The world, nodes, and an address of the pods' range that no pod has.
        outside.extend(
            ["1.1.1.1", "2001:db8:ffff::5", "172.18.0.1", "172.18.0.2", "10.244.1.250"].map(String::from),
        );
        let mut ports: Vec<u16> = words.ports.iter().copied().collect();
        ports.extend([80, 8080, 12345]);
        ports.extend(
            (0..words.names.len())
                .flat_map(|at| [8080 + at, 8180 + at])
                .filter_map(|port| u16::try_from(port).ok()),
        );
        let mut methods: Vec<String> = words.methods.iter().cloned().collect();
        methods.extend(["GET", "POST", "PUT", "get", "PURGE"].map(String::from));
        let mut paths: Vec<String> = words.paths.iter().cloned().collect();
        paths.extend(
            words
                .paths
                .iter()
                .flat_map(|path| [format!("{path}?x=1"), format!("{path}/more"), format!("/x/..{path}")]),
        );
        paths.extend(["/", "/?x=1", "/other", "*"].map(String::from));
        paths.retain(|path| path.starts_with('/') || path == "*");
        let mut hosts: Vec<String> = words.hosts.iter().cloned().collect();
        hosts.extend(
            words
                .hosts
                .iter()
                .flat_map(|host| [host.to_uppercase(), format!("{host}:8080"), format!("{host}.")]),
        );
        hosts.push("other.example".to_owned());
        let mut servers: Vec<Option<String>> = words.servers.iter().cloned().map(Some).collect();
        servers.extend([None, Some("other.example".to_owned())]);
        let mut headers = words.headers.clone();
        headers.extend(words.headers.iter().map(|(name, _)| (name.clone(), "other".to_owned())));
        headers.push(("upgrade".to_owned(), "websocket".to_owned()));
        headers.push(("x-other".to_owned(), "1".to_owned()));
        Self {
            decided: [Vec::new(), Vec::new()],
            pods: pods.map(addresses).collect(),
            outside,
            ports,
            methods,
            paths,
            hosts,
            headers,
            servers,
        }
    }

    /// Finds connections that the policies decide, so that questions are not all of what they leave alone.
    pub(crate) fn look_at(&mut self, cluster: &Cluster, dice: &mut Dice) {
        for _ in 0..TRIED {
            let query = self.connection(dice);
            let verdict = cluster.ask(&query).unwrap_or_else(|error| panic!("{query:?}: {error}"));
            let granted =
                [&verdict.egress, &verdict.ingress].iter().any(|side| side.reason == Reason::RuleMatched);
            match verdict.decision() {
                Decision::Allow if granted => self.decided[0].push(query),
                Decision::Deny => self.decided[1].push(query),
                Decision::Allow => {}
            }
        }
    }

    /// One question; at least one of its ends is a pod. Half of them on what a rule lets through, a quarter on what is
    /// denied, where there is any of it.
    pub(crate) fn question(&self, dice: &mut Dice) -> Question {
        let known = match dice.roll(4) {
            0 | 1 => &self.decided[0],
            2 => &self.decided[1],
            _ => &Vec::new(),
        };
        let query = if known.is_empty() { self.connection(dice) } else { dice.of(known).clone() };
        if query.protocol != Protocol::Tcp || !dice.often(3) {
            return Question { query, tls: None };
        }
        if !dice.often(4) {
            return Question { query, tls: Some(dice.of(&self.servers).clone()) };
        }
        Question { query: Query { said: self.request(dice), ..query }, tls: None }
    }

    /// A connection.
    fn connection(&self, dice: &mut Dice) -> Query {
        let [v4, v6] = dice.of(&self.pods);
        let (pod, other) = if dice.often(3) {
            let family = usize::from(!dice.often(4));
            ([v4, v6][family].clone(), dice.of(&self.pods)[family].clone())
        } else {
            let outside = dice.of(&self.outside).clone();
            (if outside.contains(':') { v6.clone() } else { v4.clone() }, outside)
        };
        let (from, to) = if dice.often(2) { (pod, other) } else { (other, pod) };
        let port = Port::Number(*dice.of(&self.ports));
        let all = [Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp];
        Query { from, to, protocol: *dice.of(&all), port, said: Said::Nothing }
    }

    fn request(&self, dice: &mut Dice) -> Said {
        let host = dice.often(6).then(|| dice.of(&self.hosts).clone());
        let count = dice.roll(4);
        let headers = (0..count).map(|_| dice.of(&self.headers).clone()).collect();
        Said::Http {
            method: dice.of(&self.methods).clone(),
            target: dice.of(&self.paths).clone(),
            host,
            headers,
        }
    }
}

/// Addresses in a CIDR, at its ends, and beside it.
fn near(text: &str) -> Vec<String> {
    let Ok(cidr) = Prefix::parse(text).or_else(|_| text.parse().map(Prefix::host).map_err(|_| String::new()))
    else {
        return Vec::new();
    };
    let (first, len) = (cidr.mapped_bits(), u32::from(cidr.mapped_len()));
    let last = if len == 0 { u128::MAX } else { first | u128::MAX.checked_shr(len).unwrap_or(0) };
    let v4 = !text.contains(':');
    let address = |bits: u128| {
        let address = IpAddr::V6(bits.into()).to_canonical();
        (address.is_ipv4() == v4).then(|| address.to_string())
    };
    [first, first.wrapping_add(1), last, first.wrapping_sub(1), last.wrapping_add(1)]
        .into_iter()
        .filter_map(address)
        .collect()
}
