//! `HTTPRoute` of the Gateway API: its matches as rules of ours, and which of several wins.
//!
//! Source: the Gateway API's documentation of `HTTPRouteRule.matches`, `HTTPRouteSpec.hostnames` and
//! `Listener.hostname`. Knows nothing of the engine.

use serde_json::{Value, json};

/// A request of the corpus.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) host: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn read(request: &Value) -> Self {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let headers = request["headers"].as_object().into_iter().flatten();
        Self {
            method: text(&request["method"]).unwrap_or_else(|| "GET".to_owned()),
            target: text(&request["path"]).unwrap_or_else(|| "/".to_owned()),
            host: text(&request["host"]),
            headers: headers.map(|(name, value)| (name.clone(), text(value).unwrap_or_default())).collect(),
        }
    }
}

/// One match of a rule of a route.
#[derive(Clone, Debug)]
pub(crate) struct Match {
    /// Unique, as a rule's name must be.
    pub(crate) name: String,
    /// Where its route sends what it matches.
    pub(crate) backend: String,
    /// The rule of an `L7NetworkPolicy`.
    pub(crate) rule: Value,
    given: Value,
    hostnames: Vec<String>,
    /// `namespace/name` of the route.
    route: String,
    /// Of the rule in the route.
    place: usize,
}

/// Sorts the match that wins first.
type Precedence = (usize, usize, usize, usize, usize, usize, usize, String, usize);

/// Every match of every route, in order.
pub(crate) fn matches(objects: &[Value]) -> Result<Vec<Match>, String> {
    let mut out = Vec::new();
    for route in objects.iter().filter(|object| object["kind"] == "HTTPRoute") {
        let hostnames = hostnames(route, objects);
        let metadata = &route["metadata"];
        let (namespace, name) = (text(&metadata["namespace"]), text(&metadata["name"]));
        for (place, rule) in items(&route["spec"]["rules"]).enumerate() {
            // "If no matches are specified, the default is a prefix path match on "/"."
            let every = vec![json!({})];
            let given = rule["matches"].as_array().unwrap_or(&every);
            for (index, given) in given.iter().enumerate() {
                let backend = text(&rule["backendRefs"][0]["name"]).to_owned();
                let route = format!("{namespace}/{name}");
                let name = format!("{name}-{place}-{index}");
                let rule = ours(&name, given, &hostnames)?;
                let (given, hostnames) = (given.clone(), hostnames.clone());
                out.push(Match { name, backend, rule, given, hostnames, route, place });
            }
        }
    }
    if out.is_empty() { Err("no HTTPRoute in the manifest".to_owned()) } else { Ok(out) }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The hosts of a route: its own, or those of the listeners that it is bound to. None: any.
fn hostnames(route: &Value, objects: &[Value]) -> Vec<String> {
    let own: Vec<String> = items(&route["spec"]["hostnames"]).map(|host| text(host).to_owned()).collect();
    if !own.is_empty() {
        return own;
    }
    let bound = |parent: &Value| {
        let gateway = objects
            .iter()
            .find(|object| object["kind"] == "Gateway" && object["metadata"]["name"] == parent["name"]);
        let listeners = gateway.map(|gateway| items(&gateway["spec"]["listeners"])).into_iter().flatten();
        let section = parent["sectionName"].clone();
        listeners
            .filter(move |listener| section.is_null() || listener["name"] == section)
            .map(|listener| text(&listener["hostname"]).to_owned())
            .collect::<Vec<_>>()
    };
    let hosts: Vec<String> = items(&route["spec"]["parentRefs"]).flat_map(bound).collect();
    // A listener without a hostname takes every host.
    if hosts.iter().any(String::is_empty) { Vec::new() } else { hosts }
}

/// A match as a rule of an `L7NetworkPolicy`.
fn ours(name: &str, given: &Value, hostnames: &[String]) -> Result<Value, String> {
    let mut item = json!({});
    let path = &given["path"];
    // "PathPrefix" and "/" by default.
    let kind = path["type"].as_str().unwrap_or("PathPrefix");
    item["path"] = json!({"type": kind, "value": path["value"].as_str().unwrap_or("/")});
    if let Some(method) = given["method"].as_str() {
        item["methods"] = json!([method]);
    }
    for (theirs, ours) in [("headers", "headers"), ("queryParams", "queryParams")] {
        let condition = |one: &Value| json!({"name": one["name"], "type": one["type"].as_str().unwrap_or("Exact"), "value": one["value"]});
        let conditions: Vec<Value> = items(&given[theirs]).map(condition).collect();
        if !conditions.is_empty() {
            item[ours] = conditions.into();
        }
    }
    if !hostnames.is_empty() {
        item["hosts"] = hostnames.iter().map(|host| host_condition(host)).collect();
    }
    let known = ["path", "method", "headers", "queryParams"];
    let unknown = given.as_object().into_iter().flatten().find(|(field, _)| !known.contains(&field.as_str()));
    if let Some((field, _)) = unknown {
        return Err(format!("matches.{field} is no condition of ours"));
    }
    Ok(json!({"name": name, "rules": {"http": [item]}}))
}

/// "A wildcard label `*` … `*.example.com` would match both `test.example.com` and `foo.test.example.com`, not
/// `example.com`."
fn host_condition(host: &str) -> Value {
    match host.strip_prefix("*.") {
        None => json!({"type": "Exact", "value": host}),
        Some(suffix) => {
            let suffix = suffix.replace('.', r"\.");
            json!({"type": "RegularExpression", "value": format!(r"([^.]+\.)+{suffix}")})
        }
    }
}

/// Whether a hostname, maybe a wildcard, takes a host.
fn takes(hostname: &str, host: &str) -> bool {
    match hostname.strip_prefix('*') {
        None => hostname == host,
        Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
    }
}

impl Match {
    /// "Proxy or Load Balancer routing configuration generated from HTTPRoutes MUST prioritize matches based on the
    /// following criteria, continuing on ties": the most specific hostname, an Exact path, the longest prefix, a
    /// method, the most headers, the most query parameters; then the oldest route, the first by name, the first rule.
    pub(crate) fn precedence(&self, request: &Request) -> Precedence {
        let host = request.host.as_deref().unwrap_or_default();
        let taking = self.hostnames.iter().filter(|name| takes(name, host));
        // "Characters in a matching non-wildcard hostname. Characters in a matching hostname."
        let (exact, any) = taking.fold((0, 0), |(exact, any), name| {
            let plain = if name.starts_with('*') { 0 } else { name.len() };
            (exact.max(plain), any.max(name.len()))
        });
        let path = &self.given["path"];
        let value = path["value"].as_str().unwrap_or("/");
        let count = |field: &str| self.given[field].as_array().map_or(0, Vec::len);
        // Smaller wins.
        let most = |count: usize| usize::MAX - count;
        (
            most(exact),
            most(any),
            most(usize::from(path["type"] == "Exact")),
            most(value.len()),
            most(usize::from(self.given["method"].is_string())),
            most(count("headers")),
            most(count("queryParams")),
            self.route.clone(),
            self.place,
        )
    }
}
