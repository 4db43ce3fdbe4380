//! Random clusters, policies of every kind and requests, from vocabularies so small that they overlap all the time.
//!
//! What is made here is well-formed: what is not is the business of the tests of reading and lowering. Knows
//! nothing of what anything means; the property tests use it.

#![allow(dead_code, reason = "every test binary uses its part")]

pub(crate) mod cilium;
pub(crate) mod l7;
pub(crate) mod network;
pub(crate) mod requests;
pub(crate) mod services;
pub(crate) mod tiers;
pub(crate) mod world;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// What the generators make.
pub(crate) type Made = BoxedStrategy<Value>;

/// One of these.
pub(crate) fn one_of(values: &[Value]) -> Made {
    prop::sample::select(values.to_vec()).boxed()
}

/// One of these texts.
pub(crate) fn word(words: &'static [&'static str]) -> Made {
    prop::sample::select(words).prop_map(Value::from).boxed()
}

/// In one case of `of` the value, else nothing.
pub(crate) fn sometimes(of: u32, value: impl Strategy<Value = Value> + 'static) -> Made {
    prop_oneof![of - 1 => Just(Value::Null), 1 => value].boxed()
}

/// A list of so many.
pub(crate) fn list(value: impl Strategy<Value = Value> + 'static, size: std::ops::Range<usize>) -> Made {
    prop::collection::vec(value, size).prop_map(Value::from).boxed()
}

/// Some of these words, at least one.
pub(crate) fn some_of(words: &'static [&'static str]) -> Made {
    prop::sample::subsequence(words, 1..=words.len().min(2)).prop_map(|words| json!(words)).boxed()
}

/// An object of those fields that have a value.
pub(crate) fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let given = fields.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(given.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

/// A manifest. A namespace of null is a cluster's object.
pub(crate) fn manifest(api: &str, kind: &str, namespace: &Value, name: &str, spec: Value) -> Value {
    let metadata = object([("namespace", namespace.clone()), ("name", name.into())]);
    object([("apiVersion", api.into()), ("kind", kind.into()), ("metadata", metadata), ("spec", spec)])
}

/// The namespaces that a world may have.
pub(crate) const NAMESPACES: [&str; 3] = ["a", "b", "c"];

/// One of them.
pub(crate) fn namespace() -> Made {
    word(&NAMESPACES)
}

/// A selector of pods.
pub(crate) fn pods() -> Made {
    prop_oneof![
        3 => Just(json!({})),
        4 => one_of(&[json!({"matchLabels": {"app": "x"}}), json!({"matchLabels": {"app": "y"}}), json!({"matchLabels": {"tier": "db"}})]),
        1 => Just(json!({"matchLabels": {"app": "x", "tier": "db"}})),
        2 => expression(&["app", "tier"]),
    ]
    .boxed()
}

/// A selector of namespaces.
pub(crate) fn namespaces() -> Made {
    prop_oneof![
        2 => Just(json!({})),
        4 => one_of(&[
            json!({"matchLabels": {"team": "red"}}),
            json!({"matchLabels": {"team": "blue"}}),
            json!({"matchLabels": {"kubernetes.io/metadata.name": "b"}}),
        ]),
        2 => expression(&["team", "env"]),
    ]
    .boxed()
}

fn expression(keys: &'static [&'static str]) -> Made {
    let values = some_of(&["x", "y", "db", "red", "prod"]);
    let with = (word(keys), word(&["In", "NotIn"]), values)
        .prop_map(|(key, operator, values)| json!({"key": key, "operator": operator, "values": values}));
    let without = (word(keys), word(&["Exists", "DoesNotExist"]))
        .prop_map(|(key, operator)| json!({"key": key, "operator": operator}));
    prop_oneof![with, without].prop_map(|item| json!({"matchExpressions": [item]})).boxed()
}

/// An `ipBlock`: of pods, of nodes, of the world, and of several.
pub(crate) fn block() -> Made {
    one_of(&[
        json!({"cidr": "0.0.0.0/0"}),
        json!({"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}),
        json!({"cidr": "10.0.0.0/8", "except": ["10.0.1.0/24", "10.0.2.2/32"]}),
        json!({"cidr": "10.0.1.0/24"}),
        json!({"cidr": "10.0.1.1/32"}),
        json!({"cidr": "192.0.2.0/24"}),
        json!({"cidr": "192.0.2.1/32"}),
        json!({"cidr": "203.0.113.0/24", "except": ["203.0.113.128/25"]}),
        json!({"cidr": "::/0", "except": ["fd00::/16"]}),
        json!({"cidr": "fd00::/16"}),
    ])
}

/// A port as `NetworkPolicy` writes it.
pub(crate) fn port() -> Made {
    let protocol = || sometimes(3, word(&["TCP", "UDP", "SCTP"]));
    let number = (protocol(), prop::sample::select(vec![80, 81, 8080]))
        .prop_map(|(protocol, port)| object([("protocol", protocol), ("port", port.into())]));
    let range = (protocol(), prop::sample::select(vec![(80, 81), (79, 90), (81, 8080), (1, 65535)]))
        .prop_map(|(protocol, (first, last))| {
            object([("protocol", protocol), ("port", first.into()), ("endPort", last.into())])
        });
    let named = (protocol(), word(&["web", "db"]))
        .prop_map(|(protocol, port)| object([("protocol", protocol), ("port", port)]));
    let every = word(&["TCP", "UDP", "SCTP"]).prop_map(|protocol| json!({"protocol": protocol}));
    prop_oneof![5 => number, 2 => range, 2 => named, 1 => every].boxed()
}
