//! Files are held to the bounds of the CRDs, whatever these are: every bound of the generated schemas is met and
//! overstepped by one. A field that the sample lacks fails here, so that none is forgotten.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "a test fails loudly")]

mod common;

use common::{Ask, load};
use serde_json::{Map, Value, json};
use sluice_crd::{Problem, Severity};
use sluice_policy::Decision;

/// A rule with every field that the schema has, for these peers.
fn rule(name: &str, field: &str, peer: &str) -> Value {
    let selector = |key: &str, value: &str| {
        json!({"matchLabels": {key: value},
            "matchExpressions": [{"key": key, "operator": "In", "values": [value]}]})
    };
    let parameter = json!([{"name": "x-a", "type": "Exact", "value": "1"}]);
    json!({
        "name": name,
        field: [
            {"podSelector": selector("app", peer), "namespaceSelector": selector("team", "a")},
            {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}},
            {"serviceAccounts": [{"namespace": "other", "name": "nobody"}]},
            {"entities": ["World"]},
        ],
        "ports": [{"port": 8000, "endPort": 8100, "protocol": "TCP"}],
        "rules": {
            "http": [{
                "methods": ["GET"], "path": {"type": "PathPrefix", "value": "/items"},
                "hosts": [{"type": "Exact", "value": "cart"}], "headers": parameter,
                "queryParams": [{"name": "v", "type": "Present"}, {"name": "w", "type": "Exact", "value": "1"}],
            }, {"upgrades": ["websocket"]}],
            "grpc": [{"service": "shop.v1.Cart", "methods": ["GetCart"], "protocols": ["GRPC"]}],
            "tls": {"serverNames": ["cart.example"]},
        },
    })
}

fn l7() -> Value {
    json!({
        "apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "cart"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "cart"}, "matchExpressions": [{"key": "app", "operator": "In", "values": ["cart"]}]},
            "policyTypes": ["Ingress", "Egress"],
            "mode": "Enforce", "denyAction": "Drop", "denyDetail": "None", "isolation": "Direction",
            "ingress": [rule("in", "from", "frontend")],
            "egress": [rule("out", "to", "frontend")],
            "ingressDeny": [rule("no-in", "from", "intruder")],
            "egressDeny": [rule("no-out", "to", "intruder")],
        },
    })
}

fn with_action(mut rule: Value, action: &str) -> Value {
    rule["action"] = action.into();
    rule
}

fn cluster_l7(action: &str) -> Value {
    let cart = json!({"matchLabels": {"app": "cart"}, "matchExpressions": [{"key": "app", "operator": "In", "values": ["cart"]}]});
    let shop = json!({"matchLabels": {"team": "a"}, "matchExpressions": [{"key": "team", "operator": "In", "values": ["a"]}]});
    json!({
        "apiVersion": "policy.sluice.dev/v1alpha1", "kind": "ClusterL7NetworkPolicy",
        "metadata": {"name": "cart"},
        "spec": {
            "tier": "Admin", "priority": 5, "mode": "Enforce", "denyAction": "Drop", "denyDetail": "None",
            "subject": {"pods": {"namespaceSelector": shop, "podSelector": cart}},
            "ingress": [with_action(rule("in", "from", "frontend"), action)],
            "egress": [with_action(rule("out", "to", "frontend"), action)],
        },
    })
}

/// The same with the subject's other form, whose fields the first has not.
fn of_namespaces(mut policy: Value) -> Value {
    let shop = policy["spec"]["subject"]["pods"]["namespaceSelector"].clone();
    policy["spec"]["subject"] = json!({"namespaces": shop});
    policy
}

/// One bound at one place of a sample.
#[derive(Debug)]
struct Bound {
    /// The place, as problems name it.
    path: String,
    /// The value at the bound, and one beyond.
    met: Value,
    over: Value,
}

/// Collects the bounds of a schema, each at the first place of the samples that has it.
fn bounds(schema: &Value, places: &[(String, Value)], out: &mut Vec<Bound>) {
    let (path, value) = &places[0];
    let count = |field: &str| schema[field].as_u64().map(|bound| usize::try_from(bound).unwrap());
    let mut bound = |met, over| out.push(Bound { path: path.clone(), met, over });
    if let Some(most) = count("maxItems") {
        let list = |len: usize| {
            let items = value.as_array().unwrap().iter().cycle().take(len).enumerate();
            items.map(|(number, item)| numbered(item, number)).collect::<Value>()
        };
        bound(list(most), list(most + 1));
    }
    if let Some(most) = count("maxLength") {
        // The API server counts characters.
        bound("é".repeat(most).into(), "é".repeat(most + 1).into());
    }
    if let Some(most) = count("maxProperties") {
        let map = |len: usize| {
            (0..len).map(|n| (format!("k{n}"), "v".into())).collect::<Map<String, Value>>().into()
        };
        bound(map(most), map(most + 1));
    }
    if let Some(most) = schema["maximum"].as_i64() {
        bound(most.into(), (most + 1).into());
    }
    if let Some(least) = schema["minimum"].as_i64() {
        bound(least.into(), (least - 1).into());
    }
    for (field, inner) in schema["properties"].as_object().into_iter().flatten() {
        let below: Vec<(String, Value)> = places
            .iter()
            .filter_map(|(path, value)| Some((format!("{path}.{field}"), value.get(field)?.clone())))
            .collect();
        // `to` of an ingress rule does not exist, whatever the schema's one type of rule says.
        let misplaced = (field == "to" && path.starts_with("spec.ingress") && path.ends_with(']'))
            || (field == "from" && path.starts_with("spec.egress") && path.ends_with(']'));
        if below.is_empty() && misplaced {
            continue;
        }
        // What one form of a subject lacks, the other has.
        if below.is_empty() && (path.contains(".subject") || path == "spec.subject") {
            continue;
        }
        assert!(!below.is_empty(), "the sample has no {path}.{field}");
        bounds(inner, &below, out);
    }
    if schema["items"].is_object() {
        let items: Vec<(String, Value)> = places
            .iter()
            .flat_map(|(path, list)| {
                let list = list.as_array().unwrap().iter().enumerate();
                list.map(move |(index, item)| (format!("{path}[{index}]"), item.clone()))
            })
            .collect();
        bounds(&schema["items"], &items, out);
    }
    if schema["additionalProperties"].is_object() {
        let entries: Vec<(String, Value)> = places
            .iter()
            .flat_map(|(path, map)| {
                map.as_object()
                    .unwrap()
                    .iter()
                    .map(move |(key, value)| (format!("{path}.{key}"), value.clone()))
            })
            .collect();
        bounds(&schema["additionalProperties"], &entries, out);
    }
}

/// A rule with a name of its own.
fn numbered(item: &Value, number: usize) -> Value {
    let mut item = item.clone();
    if number > 0 && item.get("ports").is_some() {
        item["name"] = format!("r{number}").into();
    }
    item
}

/// The object with another value at a place.
fn with(object: &Value, path: &str, value: &Value) -> Value {
    let mut object = object.clone();
    let pointer = format!("/{}", path.replace(['.', '['], "/").replace(']', ""));
    *object.pointer_mut(&pointer).unwrap_or_else(|| panic!("no {pointer}")) = value.clone();
    object
}

fn schema_of(kind: &str) -> Value {
    let all = sluice_crd::custom_resource_definitions();
    let (_, definition) = all.into_iter().find(|(_, crd)| crd["spec"]["names"]["kind"] == kind).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
}

fn bounds_of(object: &Value) -> Vec<Bound> {
    let mut out = Vec::new();
    let schema = schema_of(object["kind"].as_str().unwrap());
    bounds(&schema, &[("spec".to_owned(), object["spec"].clone())], &mut out);
    out
}

fn world() -> Vec<Value> {
    let namespace = |name: &str, team: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": team}}});
    let pod = |name: &str, ip: &str| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": name, "labels": {"app": name}},
            "spec": {"nodeName": "n", "containers": [{"name": "c"}]}, "status": {"podIP": ip}})
    };
    vec![
        namespace("shop", "a"),
        namespace("other", "b"),
        pod("cart", "10.0.0.1"),
        pod("frontend", "10.0.0.2"),
        pod("intruder", "10.0.0.3"),
    ]
}

fn decide(objects: &[Value], (from, to): Probe) -> Decision {
    let (cluster, _) = load(objects);
    Ask::new(from, to, 8080, "GET /items?v=1&w=1").host("cart").decide(&cluster)
}

/// Who asks whom.
type Probe = (&'static str, &'static str);

const IN: Probe = ("shop/frontend", "shop/cart");
const OUT: Probe = ("shop/cart", "shop/frontend");

/// Meets and oversteps every bound; beside these objects a value that is beyond one refuses what `refused` names for
/// its place.
fn check(object: &Value, beside: &Value, refused: impl Fn(&str) -> Vec<Probe>) -> usize {
    let found = bounds_of(object);
    for Bound { path, met, over } in &found {
        let loaded = sluice_crd::load_value(&[with(object, path, met)]);
        assert!(loaded.problems.is_empty(), "{path}: {:?}", loaded.problems);
        let broken = with(object, path, over);
        let loaded = sluice_crd::load_value(std::slice::from_ref(&broken));
        let told = |problem: &Problem| problem.severity == Severity::Error && problem.path == *path;
        assert!(loaded.problems.iter().any(told), "{path} is not told: {:?}", loaded.problems);
        for probe in refused(path) {
            let objects = [world(), vec![broken.clone(), beside.clone()]].concat();
            assert_eq!(decide(&objects, probe), Decision::Deny, "{path} {over}: {probe:?}");
        }
    }
    found.len()
}

/// A policy that isolates these pods, and allows what it is given.
fn beside(pods: Value, rules: Value) -> Value {
    json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "beside"},
        "spec": {"podSelector": pods, "policyTypes": ["Ingress", "Egress"], "ingress": rules, "egress": rules}})
}

/// Allows everything to every pod.
fn door() -> Value {
    beside(json!({}), json!([{}]))
}

/// Allows nothing to the cart.
fn closed() -> Value {
    beside(json!({"matchLabels": {"app": "cart"}}), json!([]))
}

/// The probes that a place of a policy has a say in.
fn of_direction(path: &str) -> Vec<Probe> {
    let named = |field: &str| path.starts_with(&format!("spec.{field}"));
    [IN].into_iter()
        .filter(|_| !named("egress"))
        .chain([OUT].into_iter().filter(|_| !named("ingress")))
        .collect()
}

fn decisions(objects: &[Value]) -> [Decision; 2] {
    let objects = [world(), objects.to_vec()].concat();
    [IN, OUT].map(|probe| decide(&objects, probe))
}

#[test]
fn every_bound_of_an_l7_policy_holds_for_files() {
    assert_eq!(decisions(&[l7(), closed()]), [Decision::Allow; 2]);
    // What its allows grant is granted no more, and none of it if nobody knows whom it selects.
    let seen = check(&l7(), &closed(), |path| {
        let at = |field: &str| path == field || path.starts_with(&format!("{field}["));
        match path.starts_with("spec.podSelector") {
            true => vec![IN, OUT],
            false if at("spec.ingress") => vec![IN],
            false if at("spec.egress") => vec![OUT],
            false => Vec::new(),
        }
    });
    // What its denies refuse is refused, whatever else is allowed.
    let intruder = [("shop/intruder", "shop/cart"), ("shop/cart", "shop/intruder")];
    let objects = [world(), vec![door()]].concat();
    assert_eq!(intruder.map(|probe| decide(&objects, probe)), [Decision::Allow; 2]);
    check(&l7(), &door(), |_| intruder.to_vec());
    assert!(seen > 100, "{seen}");
}

#[test]
fn every_bound_of_a_policy_of_a_tier_holds_for_files() {
    for form in [Value::clone, |policy: &Value| of_namespaces(policy.clone())] {
        let [accept, pass, deny] = ["Accept", "Pass", "Deny"].map(|action| form(&cluster_l7(action)));
        assert_eq!(decisions(&[accept.clone(), closed()]), [Decision::Allow; 2]);
        assert_eq!(decisions(&[pass.clone(), door()]), [Decision::Allow; 2]);
        assert_eq!(decisions(&[deny.clone(), door()]), [Decision::Deny; 2]);
        let seen = check(&accept, &closed(), of_direction);
        check(&pass, &door(), of_direction);
        check(&deny, &door(), |_| vec![IN, OUT]);
        assert!(seen > 50, "{seen}");
    }
}
