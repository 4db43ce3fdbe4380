//! docs/policies.md is true of the objects: its examples have no problem, and no field of the schemas is left out.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use serde_json::Value;
use sluice_compile::Rollout;
use sluice_compile::query::Cluster;
use sluice_crd::{Problem, Severity};
use std::path::Path;

fn text() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/policies.md")).unwrap()
}

#[test]
fn the_examples_have_no_problem() {
    let text = text();
    let blocks = text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let mut seen = 0;
    for block in blocks {
        seen += 1;
        let loaded = sluice_crd::load_str("docs/policies.md", block);
        let cluster = Cluster::new(&loaded.objects, Rollout::AsIfEnforced);
        let problems: Vec<&Problem> = loaded.problems.iter().chain(&cluster.problems).collect();
        // That the namespaces are not given is an information.
        assert!(problems.iter().all(|p| p.severity == Severity::Info), "{problems:#?}");
        assert!(cluster.policies.iter().all(|policy| policy.accepted), "{block}");
    }
    assert_eq!(seen, 4);
}

/// Every name and word of a schema.
fn names(schema: &Value, out: &mut Vec<String>) {
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        out.push(name.clone());
        names(inner, out);
    }
    out.extend(schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str).map(String::from));
    names_below(schema, out);
}

fn names_below(schema: &Value, out: &mut Vec<String>) {
    for holder in ["items", "additionalProperties"] {
        if schema[holder].is_object() {
            names(&schema[holder], out);
        }
    }
}

#[test]
fn every_field_and_every_word_is_explained() {
    let text = text();
    let words: std::collections::HashSet<&str> =
        text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let mut seen = 0;
    for (file, definition) in sluice_crd::custom_resource_definitions() {
        let mut given = Vec::new();
        names(
            &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"],
            &mut given,
        );
        for name in given {
            seen += 1;
            assert!(words.contains(name.as_str()), "{file}: {name} is not in docs/policies.md");
        }
    }
    assert!(seen > 100, "{seen}");
}
