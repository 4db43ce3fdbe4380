//! The `CustomResourceDefinition`s of our kinds, made from their types.
//!
//! schemars gives JSON Schema; the API server takes structural schemas, which are less: no `$ref`, no null, closed
//! words as `enum`. kube's derive would bring a second form of every object (ours are read piece by piece, never
//! as one typed resource) and leave the same corrections to do, so the few fields around the schema stand here.
//!
//! Every object below `spec` keeps unknown fields. Pruned, which is the API server's habit, a misspelt or newer
//! limit of an allow would be gone before anybody saw it, and the rule would allow more than its author wrote; kept,
//! it is an unknown field, the rule grants nothing and the status says why. Called by what writes deploy/crds.

use crate::cluster_l7::ClusterL7NetworkPolicySpec;
use crate::l7::L7NetworkPolicySpec;
use crate::status::PolicyStatus;
use crate::{GROUP, VERSION};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

const KEEP_UNKNOWN: &str = "x-kubernetes-preserve-unknown-fields";

/// Every definition with the name of its file, as controller-gen names it.
#[must_use]
pub fn custom_resource_definitions() -> Vec<(String, Value)> {
    let namespaced = definition::<L7NetworkPolicySpec>(&Names {
        kind: "L7NetworkPolicy",
        plural: "l7networkpolicies",
        short: "l7np",
        scope: "Namespaced",
        about: "What may be said to the pods of a namespace, and by them.",
        columns: &[],
    });
    let cluster = definition::<ClusterL7NetworkPolicySpec>(&Names {
        kind: "ClusterL7NetworkPolicy",
        plural: "clusterl7networkpolicies",
        short: "cl7np",
        scope: "Cluster",
        about: "What a cluster's administrators say before (tier Admin) or after (tier Baseline) its namespaces.",
        columns: &[("Tier", "string", ".spec.tier"), ("Priority", "integer", ".spec.priority")],
    });
    vec![namespaced, cluster]
}

struct Names {
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
    scope: &'static str,
    about: &'static str,
    /// Printed before those that both kinds have.
    columns: &'static [(&'static str, &'static str, &'static str)],
}

fn definition<Spec: JsonSchema>(names: &Names) -> (String, Value) {
    const COLUMNS: [(&str, &str, &str); 5] = [
        ("Mode", "string", ".status.effectiveMode"),
        ("Pods", "integer", ".status.selectedPods"),
        ("Accepted", "string", ".status.conditions[?(@.type==\"Accepted\")].status"),
        ("Programmed", "string", ".status.conditions[?(@.type==\"Programmed\")].status"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ];
    let columns: Value = names
        .columns
        .iter()
        .chain(&COLUMNS)
        .map(|(name, kind, path)| json!({"name": name, "type": kind, "jsonPath": path}))
        .collect();
    let Names { kind, plural, short, scope, about, .. } = names;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{GROUP}")},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind,
                "listKind": format!("{kind}List"),
                "plural": plural,
                "singular": kind.to_lowercase(),
                "shortNames": [short],
                "categories": ["sluice"],
            },
            "scope": scope,
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "description": about,
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": {"type": "string"},
                        "kind": {"type": "string"},
                        "metadata": {"type": "object"},
                        "spec": structural::<Spec>(true),
                        "status": structural::<PolicyStatus>(false),
                    },
                }},
            }],
        },
    });
    (format!("{GROUP}_{plural}.yaml"), definition)
}

/// The schema of an `L7NetworkPolicy`'s `spec`.
pub(crate) fn l7_spec() -> Value {
    structural::<L7NetworkPolicySpec>(true)
}

/// The schema of a `ClusterL7NetworkPolicy`'s `spec`.
pub(crate) fn cluster_l7_spec() -> Value {
    structural::<ClusterL7NetworkPolicySpec>(true)
}

/// The structural schema of a type.
fn structural<T: JsonSchema>(keep_unknown: bool) -> Value {
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    correct(&mut schema, keep_unknown);
    schema
}

/// Corrects a schema and all that it holds.
fn correct(schema: &mut Value, keep_unknown: bool) {
    let Value::Object(fields) = schema else { return };
    for useless in ["$schema", "title", "$defs", "definitions"] {
        fields.remove(useless);
    }
    // serde's default of a field that may be left out; the API server must put in nothing for it.
    if fields.get("default").is_some_and(|default| !default.is_string()) {
        fields.remove("default");
    }
    without_null(fields);
    words(fields);
    if fields.get("x-kubernetes-validations").and_then(Value::as_array).is_some_and(Vec::is_empty) {
        fields.remove("x-kubernetes-validations");
    }
    // A structural schema has no list of types, and numbers only these formats.
    if fields.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
        fields.remove("format");
    }
    if let Some(Value::Object(inner)) = fields.get_mut("properties") {
        inner.values_mut().for_each(|schema| correct(schema, keep_unknown));
        if keep_unknown {
            fields.insert(KEEP_UNKNOWN.into(), true.into());
        }
    }
    for holder in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get_mut(holder) {
            correct(inner, keep_unknown);
        }
    }
}

/// An optional field may be left out, and is never null.
fn without_null(fields: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = fields.get_mut("type") {
        types.retain(|one| one != "null");
        if let [one] = types.as_slice() {
            let one = one.clone();
            fields.insert("type".into(), one);
        }
    }
    if let Some(Value::Array(list)) = fields.get_mut("enum") {
        list.retain(|one| !one.is_null());
    }
    let Some(Value::Array(any)) = fields.get_mut("anyOf") else { return };
    let before = any.len();
    any.retain(|one| one["type"] != "null");
    if any.len() == before {
        return;
    }
    if let [Value::Object(only)] = any.as_slice() {
        let only = only.clone();
        fields.remove("anyOf");
        for (key, value) in only {
            // What stands beside the field says more than what stands at its type.
            fields.entry(key).or_insert(value);
        }
    }
}

/// Closed words with a description each are one `enum`; the descriptions go to the field's.
fn words(fields: &mut Map<String, Value>) {
    let Some(Value::Array(variants)) = fields.get("oneOf") else { return };
    let mut words = Vec::new();
    let mut told = String::new();
    for variant in variants {
        let listed = variant["enum"].as_array().into_iter().flatten().cloned();
        words.extend(listed.chain(variant.get("const").cloned()));
        if let (Some(word), Some(about)) =
            (words.last().and_then(Value::as_str), variant["description"].as_str())
        {
            told.push_str(&format!("\n- {word}: {about}"));
        }
    }
    let about = fields.get("description").and_then(Value::as_str).unwrap_or_default();
    let about = format!("{about}{told}");
    fields.remove("oneOf");
    fields.insert("type".into(), "string".into());
    fields.insert("enum".into(), words.into());
    fields.insert("description".into(), about.trim().into());
}
