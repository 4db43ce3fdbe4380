//! Manifests as text: YAML for people, with the keys in the order they are read in, or one JSON list.
//!
//! Knows nothing of what a manifest says.

use serde_json::{Map, Value, json};
use sluice_compile::migrate::{Manifest, Written};
use std::fmt::Write as _;

/// Keys in the order of documentation; the others follow by name.
const ORDER: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "name",
    "namespace",
    "spec",
    "podSelector",
    "namespaceSelector",
    "matchLabels",
    "matchExpressions",
    "key",
    "operator",
    "values",
    "policyTypes",
    "isolation",
    "ingress",
    "ingressDeny",
    "egress",
    "egressDeny",
    "from",
    "to",
    "serviceAccounts",
    "ipBlock",
    "entities",
    "ports",
    "port",
    "endPort",
    "protocol",
    "rules",
    "http",
    "methods",
    "path",
    "hosts",
    "headers",
    "queryParams",
    "type",
    "value",
];

/// The object as a value, without the fields that are not written.
pub(crate) fn value(manifest: &Manifest) -> Result<Value, serde_json::Error> {
    let value = match &manifest.object {
        Written::NetworkPolicy(policy) => serde_json::to_value(policy)?,
        Written::L7NetworkPolicy { namespace, name, spec } => json!({
            "apiVersion": format!("{}/{}", sluice_crd::GROUP, sluice_crd::VERSION),
            "kind": "L7NetworkPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": serde_json::to_value(spec)?,
        }),
    };
    Ok(without_nulls(value))
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let given = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(given.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// One document, its notes above it.
pub(crate) fn yaml(notes: &[String], value: &Value) -> String {
    let mut out = String::new();
    for note in notes {
        let _ = writeln!(out, "# {}", note.escape_debug());
    }
    block(value, 0, &mut out);
    out
}

fn sorted(fields: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let place = |key: &str| ORDER.iter().position(|known| *known == key).unwrap_or(ORDER.len());
    let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
    fields.sort_by_key(|(key, _)| (place(key), *key));
    fields
}

/// A value that has lines of its own, at this depth.
fn block(value: &Value, depth: usize, out: &mut String) {
    let indent = " ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (key, value) in sorted(fields) {
                let _ = write!(out, "{indent}{}:", scalar(key));
                below(value, depth, out);
            }
        }
        Value::Array(items) => {
            for item in items {
                match item {
                    Value::Object(fields) if !fields.is_empty() => {
                        let mut text = String::new();
                        block(item, depth + 2, &mut text);
                        // The first key stands beside the dash.
                        let _ = write!(out, "{indent}- {}", &text[depth + 2..]);
                    }
                    other => {
                        let _ = writeln!(out, "{indent}- {}", inline(other));
                    }
                }
            }
        }
        other => {
            let _ = writeln!(out, "{indent}{}", inline(other));
        }
    }
}

/// A value after its key.
fn below(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            out.push('\n');
            block(value, depth + 2, out);
        }
        // Lists of words stand in one line.
        Value::Array(items) if items.iter().all(|item| !item.is_object() && !item.is_array()) => {
            let _ = writeln!(out, " {}", inline(value));
        }
        Value::Array(_) => {
            out.push('\n');
            block(value, depth, out);
        }
        other => {
            let _ = writeln!(out, " {}", inline(other));
        }
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        Value::Array(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) if fields.is_empty() => "{}".to_owned(),
        // Only what is shorter than a line gets here: no key of ours has an object without lines of its own.
        other => other.to_string(),
    }
}

/// A text that every reader of YAML takes for this text.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '_' | '-');
    let first = text.chars().next();
    let word = first.is_some_and(|c| c.is_ascii_alphabetic() || c == '/')
        // An address with its length; a number has no slash.
        || text.split_once('/').is_some_and(|(head, _)| head.parse::<std::net::Ipv4Addr>().is_ok());
    let lower = text.to_ascii_lowercase();
    let reserved = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&lower.as_str());
    if word && !reserved && text.chars().all(plain) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            // Neither for a terminal nor for YAML.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_comes_back() {
        for text in [
            "",
            "a",
            "yes",
            "No",
            "null",
            "~",
            "80",
            "1.5",
            "0x1f",
            "1e3",
            "10.0.0.0/8",
            "::/0",
            "fd00::/16",
            "a: b",
            "- a",
            "# a",
            "a #b",
            "/v1/.*",
            "^/a$",
            "[a-z]+",
            "*",
            "&a",
            "!x",
            "'",
            "\"",
            "a\\d",
            "a\nb",
            "\u{85}\u{7f}é\u{feff}",
            " a",
            "a ",
            "@a",
            "`",
            "%a",
            "{}",
            "a,b",
            "2001-01-01",
            "-",
            "--- a",
            "...",
            "a:",
            "=",
            "<<",
            "TRUE",
            "0o7",
        ] {
            let value = json!({ "a": [text], text: {"b": text} });
            let printed = yaml(&["note\n- x".into()], &value);
            let read: Value =
                serde_saphyr::from_str(&printed).unwrap_or_else(|e| panic!("{text:?}: {e}: {printed}"));
            assert_eq!(read, value, "{printed}");
        }
    }

    #[test]
    fn keys_stand_in_their_order() {
        let value = json!({
            "spec": {"ingress": [{"ports": [{"protocol": "TCP", "port": 80}], "from": [{"podSelector": {}}]}], "podSelector": {}},
            "kind": "X", "apiVersion": "v1", "metadata": {"namespace": "b", "name": "a"},
        });
        let expected = "apiVersion: v1\nkind: X\nmetadata:\n  name: a\n  namespace: b\nspec:\n  podSelector: {}\n  ingress:\n  - from:\n    - podSelector: {}\n    ports:\n    - port: 80\n      protocol: TCP\n";
        assert_eq!(yaml(&[], &value), expected);
    }
}
