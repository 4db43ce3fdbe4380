//! Every rule in CEL, at every place where it stands, from both sides, as the API server judges it.
//!
//! The places are read from the definitions themselves: a rule that no line here knows fails the test, and so does
//! one at a place where nothing is refused.

use crate::{NEEDS, shared};
use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Map, Value, json};
use sluice_tests::apiserver::ApiServer;
use sluice_tests::harness::test;

/// What a rule takes, and what it refuses, at the place where it stands. The message is the rule's.
struct Case {
    message: &'static str,
    taken: fn() -> Vec<Value>,
    refused: fn() -> Vec<Value>,
}

const CASES: &[Case] = &[
    Case {
        message: "a rule name is unique in the policy",
        taken: || vec![json!({"ingress": [{"name": "a"}, {"name": "b"}, {}, {}], "egress": [{"name": "c"}]})],
        refused: || {
            vec![
                json!({"ingress": [{"name": "a"}, {"name": "a"}]}),
                json!({"egress": [{}, {"name": "a"}, {"name": "a"}]}),
                json!({"ingress": [{"name": "a"}], "egress": [{"name": "a"}]}),
            ]
        },
    },
    Case {
        message: "an ingress rule names its peers in `from`, not `to`",
        taken: || vec![json!({"from": [{"entities": ["World"]}]}), json!({})],
        refused: || vec![json!({"to": [{"entities": ["World"]}]}), json!({"to": []})],
    },
    Case {
        message: "an egress rule names its peers in `to`, not `from`",
        taken: || vec![json!({"to": [{"entities": ["World"]}]}), json!({})],
        refused: || vec![json!({"from": [{"entities": ["World"]}]}), json!({"from": []})],
    },
    Case {
        message: "an allow of CONNECT names its hosts",
        taken: || vec![connect(Some("a")), json!({"rules": {"http": [{"methods": ["GET"]}, {}]}})],
        refused: || vec![connect(None)],
    },
    Case {
        message: "an Accept of CONNECT names its hosts",
        taken: || vec![connect(Some("a")), merged(&connect(None), &json!({"action": "Deny"}))],
        refused: || vec![connect(None)],
    },
    Case {
        message: "In and NotIn need values, Exists and DoesNotExist take none",
        taken: || {
            vec![
                json!({"key": "a", "operator": "In", "values": ["b"]}),
                json!({"key": "a", "operator": "NotIn", "values": ["b", "c"]}),
                json!({"key": "a", "operator": "Exists"}),
                json!({"key": "a", "operator": "DoesNotExist", "values": []}),
            ]
        },
        refused: || {
            vec![
                json!({"key": "a", "operator": "In"}),
                json!({"key": "a", "operator": "NotIn", "values": []}),
                json!({"key": "a", "operator": "Exists", "values": ["b"]}),
                json!({"key": "a", "operator": "DoesNotExist", "values": ["b"]}),
            ]
        },
    },
    Case {
        message: "endPort needs a number as port",
        taken: || vec![json!({"port": 80, "endPort": 90}), json!({"port": "http"}), json!({})],
        refused: || vec![json!({"endPort": 90}), json!({"port": "http", "endPort": 90})],
    },
    Case {
        message: "endPort is not less than port",
        taken: || vec![json!({"port": 80, "endPort": 80}), json!({"port": 80, "endPort": 65535})],
        refused: || vec![json!({"port": 80, "endPort": 79})],
    },
    Case {
        message: "CONNECT stands alone in methods, without path, queryParams and upgrades: its target is a host",
        taken: || {
            vec![json!({"methods": ["CONNECT"], "hosts": [host("a")]}), json!({"methods": ["GET", "POST"]})]
        },
        refused: || {
            let with = |field: &Value| merged(&json!({"methods": ["CONNECT"], "hosts": [host("a")]}), field);
            vec![
                with(&json!({"methods": ["CONNECT", "GET"]})),
                with(&json!({"path": {"type": "Exact", "value": "/"}})),
                with(&json!({"queryParams": [{"name": "a", "type": "Present"}]})),
                with(&json!({"upgrades": ["websocket"]})),
            ]
        },
    },
    Case {
        message: "Exact and RegularExpression need a value, Present and Absent take none",
        taken: || {
            vec![
                json!({"name": "x", "type": "Exact", "value": ""}),
                json!({"name": "x", "type": "RegularExpression", "value": "a+"}),
                json!({"name": "x", "type": "Present"}),
                json!({"name": "x", "type": "Absent"}),
            ]
        },
        refused: || {
            vec![
                json!({"name": "x", "type": "Exact"}),
                json!({"name": "x", "type": "RegularExpression"}),
                json!({"name": "x", "type": "Present", "value": "a"}),
                json!({"name": "x", "type": "Absent", "value": ""}),
            ]
        },
    },
    Case {
        message: "a path starts with /",
        taken: || {
            vec![
                json!({"type": "PathPrefix", "value": "/a"}),
                json!({"type": "Exact", "value": "*"}),
                json!({"type": "RegularExpression", "value": ".*"}),
            ]
        },
        refused: || {
            vec![
                json!({"type": "PathPrefix", "value": "*"}),
                json!({"type": "Exact", "value": "a/b"}),
                json!({"type": "PathPrefix", "value": "a"}),
            ]
        },
    },
    Case {
        message: "a subject is namespaces or pods, exactly one of them",
        taken: || vec![json!({"namespaces": {}}), json!({"pods": pods()})],
        refused: || vec![json!({}), json!({"namespaces": {}, "pods": pods()})],
    },
];

fn host(value: &str) -> Value {
    json!({"type": "Exact", "value": value})
}

fn pods() -> Value {
    json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"a": "b"}}})
}

/// A rule that allows CONNECT, to a host or to whichever.
fn connect(to: Option<&str>) -> Value {
    let mut http = json!({"methods": ["CONNECT"]});
    if let Some(name) = to {
        http["hosts"] = json!([host(name)]);
    }
    json!({"rules": {"http": [http]}})
}

/// The fields of both, the second's where both have one.
fn merged(one: &Value, other: &Value) -> Value {
    let fields = |value: &Value| value.as_object().cloned().unwrap_or_default();
    Value::Object(fields(one).into_iter().chain(fields(other)).collect::<Map<_, _>>())
}

pub(crate) fn tests() -> Vec<Trial> {
    ["L7NetworkPolicy", "ClusterL7NetworkPolicy"]
        .map(|kind| {
            test(format!("cel::every_rule_of_{kind}_from_both_sides"), NEEDS, move || both_sides(kind))
        })
        .into()
}

fn both_sides(kind: &str) -> Result<()> {
    let server = shared()?;
    let definitions = sluice_crd::custom_resource_definitions();
    let own = definitions.iter().find(|(_, definition)| definition["spec"]["names"]["kind"] == kind);
    let (_, definition) = own.context("no such kind")?;
    let mut places = Vec::new();
    find(
        &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"],
        "",
        &mut places,
    );
    ensure!(places.len() > 25, "only {} rules are found", places.len());
    for (place, message) in places {
        let case = CASES.iter().find(|case| case.message == message);
        let case = case.with_context(|| format!("{kind}: no case knows the rule \"{message}\""))?;
        for value in (case.taken)() {
            check(server, kind, &place, &value, &message, false)?;
        }
        for value in (case.refused)() {
            check(server, kind, &place, &value, &message, true)?;
        }
    }
    Ok(())
}

/// Every place below this one that has a rule, as `.ingress[].ports[]`, with the rule's message.
fn find(schema: &Value, place: &str, places: &mut Vec<(String, String)>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        places.push((place.to_owned(), rule["message"].as_str().unwrap_or_default().to_owned()));
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        find(inner, &format!("{place}.{name}"), places);
    }
    if schema["items"].is_object() {
        find(&schema["items"], &format!("{place}[]"), places);
    }
}

fn check(
    server: &ApiServer,
    kind: &str,
    place: &str,
    value: &Value,
    message: &str,
    refused: bool,
) -> Result<()> {
    let object = policy(kind, place, value);
    let said = match server.dry_run(&object) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    let what = format!("{kind}{place} = {value}: \"{message}\"");
    if refused {
        ensure!(said.contains(message), "{what} should refuse it; the server says \"{said}\"");
        return Ok(());
    }
    ensure!(!said.contains(message), "{what} should take it; the server says \"{said}\"");
    // Peers of the other direction are refused by another rule, whatever they hold.
    let misplaced = place.contains("egress[].from")
        || place.contains("ingress[].to")
        || place.contains("egressDeny[].from")
        || place.contains("ingressDeny[].to");
    ensure!(misplaced || said.is_empty(), "{what}: the server refuses it for something else: \"{said}\"");
    Ok(())
}

/// A policy with this value at a place, and around it what is required.
fn policy(kind: &str, place: &str, value: &Value) -> Value {
    let spec =
        place.split('.').filter(|part| !part.is_empty()).rev().fold(value.clone(), |inner, part| match part
            .strip_suffix("[]")
        {
            Some(name) => json!({name: [inner]}),
            None => json!({part: inner}),
        });
    let cluster = kind.starts_with("Cluster");
    let base = if cluster {
        json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}})
    } else {
        json!({"podSelector": {}})
    };
    let mut spec = merged(&base, &spec);
    for list in ["ingress", "egress"] {
        for rule in spec[list].as_array_mut().into_iter().flatten().filter(|_| cluster) {
            *rule = merged(&json!({"action": "Accept"}), rule);
        }
    }
    if let Some(pods) = spec.pointer_mut("/subject/pods") {
        *pods = merged(&json!({"podSelector": {}}), pods);
    }
    let mut metadata = json!({"name": "cel"});
    if !cluster {
        metadata["namespace"] = "default".into();
    }
    json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
}
