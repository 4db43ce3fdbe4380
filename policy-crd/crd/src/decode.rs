//! One value into one type, with the place of what failed and every field that the type does not know.
//!
//! Knows nothing of policies. Called by the reader.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Most unknown fields told of one value: enough to correct it by, and no flood.
const MAX_UNKNOWN: usize = 64;

/// The fields of derived types that hold fields of their own.
const STRUCTS: &[&str] = &[
    "ipBlock",
    "path",
    "tls",
    "subject",
    "pods",
    "tcp",
    "udp",
    "sctp",
    "destinationPort",
    "range",
    "enableDefaultDeny",
    "authentication",
    "k8sService",
    "k8sServiceSelector",
    "terminatingTLS",
    "originatingTLS",
    "listener",
    "envoyConfig",
    "secret",
];

/// The place of a list where none belongs. Derived types would take `[Exact, /x]` for `{type: Exact, value: /x}`,
/// by position, which nobody can have meant.
pub(crate) fn misplaced_list(value: &Value, path: &str) -> Option<String> {
    match value {
        Value::Array(items) => {
            let field = path.rsplit('.').next().unwrap_or_default();
            if STRUCTS.contains(&field) || field.ends_with(']') {
                return Some(path.to_owned());
            }
            items.iter().enumerate().find_map(|(i, item)| misplaced_list(item, &format!("{path}[{i}]")))
        }
        Value::Object(fields) => {
            fields.iter().find_map(|(key, inner)| misplaced_list(inner, &joined(path, key)))
        }
        _ => None,
    }
}

/// What became of one value.
pub(crate) enum Decoded<T> {
    Failed { path: String, reason: String },
    Read { value: T, unknown: Vec<(String, String)> },
}

/// Decodes a value, and names the fields that its type does not know, as (parent, field).
pub(crate) fn decode<T: DeserializeOwned>(value: &Value) -> Decoded<T> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    let result = serde_ignored::deserialize(deserializer, |path| {
        if unknown.len() < MAX_UNKNOWN {
            unknown.push(split_ignored(&path));
        }
    });
    match result {
        Ok(value) => Decoded::Read { value, unknown },
        Err(error) => {
            let path = track.path().to_string();
            let path = if path == "." { String::new() } else { path };
            Decoded::Failed { path, reason: error.to_string() }
        }
    }
}

fn split_ignored(path: &serde_ignored::Path<'_>) -> (String, String) {
    use serde_ignored::Path;
    fn render(path: &Path<'_>, out: &mut String) {
        match path {
            Path::Root => {}
            Path::Seq { parent, index } => {
                render(parent, out);
                out.push_str(&format!("[{index}]"));
            }
            Path::Map { parent, key } => {
                render(parent, out);
                join(out, key);
            }
            Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
                render(parent, out);
            }
        }
    }
    let mut out = String::new();
    match path {
        Path::Map { parent, key } => {
            render(parent, &mut out);
            (out, key.clone())
        }
        other => {
            render(other, &mut out);
            (String::new(), out)
        }
    }
}

fn join(path: &mut String, field: &str) {
    if !path.is_empty() && !field.starts_with('[') && !field.is_empty() {
        path.push('.');
    }
    path.push_str(field);
}

pub(crate) fn joined(base: &str, rest: &str) -> String {
    let mut out = base.to_owned();
    join(&mut out, rest);
    out
}

/// What to do about a value of the wrong type.
pub(crate) fn type_remedy(reason: &str) -> &'static str {
    if reason.contains("expected a string")
        && ["boolean", "integer", "floating point"].iter().any(|scalar| reason.contains(scalar))
    {
        "put it in quotes"
    } else if reason.starts_with("missing field") {
        "add it"
    } else if reason.starts_with("unknown variant") {
        "write one of these words"
    } else if reason.contains("expected a sequence") {
        "write a list, each item after a `-`"
    } else {
        "write a value of the type expected"
    }
}

/// The labels by which a namespace joins, and how strictly.
const OURS: &[&str] = &["sluice.dev/dataplane", "sluice.dev/enforcement"];
/// The value of a label of ours that cannot be read. It is none of the words it may have, so the strictest holds.
const UNREADABLE: &str = "unreadable";

fn labels(given: &Value) -> Value {
    let Value::Object(given) = given else {
        return Value::Object([(OURS[0].to_owned(), UNREADABLE.into())].into_iter().collect());
    };
    let kept = given.iter().filter_map(|(key, value)| match value {
        Value::String(_) => Some((key.clone(), value.clone())),
        _ if OURS.contains(&key.as_str()) => Some((key.clone(), UNREADABLE.into())),
        _ => None,
    });
    Value::Object(kept.collect())
}

/// What is left of a namespace whose text breaks off: if it does not say whether it is in the dataplane, it is.
pub(crate) fn broken_namespace(value: &Value) -> Value {
    let mut out = essential(value);
    if let Some(metadata) = out.get_mut("metadata").and_then(Value::as_object_mut) {
        let labels = metadata.entry("labels").or_insert_with(|| Value::Object(Map::new()));
        if let Some(labels) = labels.as_object_mut() {
            labels.entry(OURS[0]).or_insert_with(|| UNREADABLE.into());
        }
    }
    out
}

/// The fields of a pod, a namespace or a node that verdicts depend on.
/// Labels that are no text are left out; of ours, which decide whether a namespace is protected at all, it is
/// kept that they were there.
pub(crate) fn essential(value: &Value) -> Value {
    fn keep(value: Option<&Value>, fields: &[&str]) -> Value {
        let kept = fields.iter().filter_map(|field| {
            let inner = value?.get(field)?;
            let inner = match *field {
                "containers" | "initContainers" => {
                    let fields = ["name", "ports", "restartPolicy"];
                    inner.as_array().map(|all| all.iter().map(|one| keep(Some(one), &fields)).collect())?
                }
                "labels" => labels(inner),
                _ => inner.clone(),
            };
            Some(((*field).to_owned(), inner))
        });
        Value::Object(kept.collect())
    }
    let spec = [
        "nodeName",
        "serviceAccountName",
        "hostNetwork",
        "containers",
        "initContainers",
        "podCIDR",
        "podCIDRs",
    ];
    let sections = [
        ("metadata", &["name", "namespace", "uid", "labels"][..]),
        ("spec", &spec),
        ("status", &["phase", "podIP", "podIPs", "addresses"]),
    ];
    let mut out: Map<String, Value> = ["apiVersion", "kind"]
        .into_iter()
        .filter_map(|field| Some((field.to_owned(), value.get(field)?.clone())))
        .collect();
    for (section, fields) in sections {
        if value.get(section).is_some() {
            out.insert(section.to_owned(), keep(value.get(section), fields));
        }
    }
    Value::Object(out)
}
