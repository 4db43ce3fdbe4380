//! What is kept of an object that an API server sent: what somebody here reads, and nothing else.
//!
//! A cluster has a hundred thousand pods, of each of which a fiftieth matters, and every object has managedFields and
//! the whole of itself again as an annotation. Policies keep all of their spec: a field that nobody knows must be
//! seen. Knows nothing of watching. Called by whoever holds the objects of a whole cluster.

use serde_json::{Map, Value};

/// What is read of the metadata of every kind. Not its version: what says the same is the same.
const METADATA: &[&str] = &["name", "namespace", "uid", "labels"];

/// What is read of the kinds that come in great numbers, or that are large.
const PARTS: &[(&str, &[Kept])] = &[
    (
        "Pod",
        &[
            Kept { section: "spec", fields: &["nodeName", "serviceAccountName", "hostNetwork"], list: false },
            Kept { section: "spec.containers", fields: &["name", "ports", "restartPolicy"], list: true },
            Kept { section: "spec.initContainers", fields: &["name", "ports", "restartPolicy"], list: true },
            Kept { section: "status", fields: &["phase", "podIP", "podIPs"], list: false },
        ],
    ),
    (
        "Node",
        &[
            Kept { section: "spec", fields: &["podCIDR", "podCIDRs"], list: false },
            Kept { section: "status", fields: &["addresses"], list: false },
        ],
    ),
    ("Namespace", &[]),
    (
        "Service",
        &[
            Kept {
                section: "spec",
                fields: &[
                    "type",
                    "clusterIP",
                    "clusterIPs",
                    "externalIPs",
                    "ports",
                    "selector",
                    "sessionAffinity",
                    "sessionAffinityConfig",
                    "internalTrafficPolicy",
                ],
                list: false,
            },
            Kept { section: "status", fields: &["loadBalancer"], list: false },
        ],
    ),
    (
        "EndpointSlice",
        &[Kept { section: "endpoints", fields: &["addresses", "conditions", "nodeName"], list: true }],
    ),
];

/// Fields kept of one part of an object.
struct Kept {
    /// Where: `spec`, or a list in it.
    section: &'static str,
    fields: &'static [&'static str],
    /// Of each item.
    list: bool,
}

/// The object without what nobody reads. What does not have the form that it should have stays as it is, for whoever
/// reads it to say so.
#[must_use]
pub fn slim(mut object: Value) -> Value {
    let Some(fields) = object.as_object_mut() else { return object };
    if let Some(metadata) = fields.get_mut("metadata") {
        keep(metadata, METADATA);
    }
    let kind = fields.get("kind").and_then(Value::as_str).unwrap_or_default();
    match PARTS.iter().find(|(name, _)| *name == kind) {
        Some((_, parts)) => slim_parts(fields, parts),
        None => {
            fields.remove("status");
        }
    }
    object
}

fn slim_parts(fields: &mut Map<String, Value>, parts: &[Kept]) {
    for section in ["spec", "status"] {
        let nested = format!("{section}.");
        let own =
            parts.iter().filter(|part| part.section == section).flat_map(|part| part.fields.iter().copied());
        let lists = parts.iter().filter_map(|part| part.section.strip_prefix(&nested));
        let kept: Vec<&str> = own.chain(lists).collect();
        if kept.is_empty() {
            fields.remove(section);
        } else if let Some(value) = fields.get_mut(section) {
            keep(value, &kept);
            // One that says nothing is as good as none.
            if value.as_object().is_some_and(Map::is_empty) {
                fields.remove(section);
            }
        }
    }
    for part in parts.iter().filter(|part| part.list) {
        let list = match part.section.split_once('.') {
            Some((section, name)) => fields.get_mut(section).and_then(|section| section.get_mut(name)),
            None => fields.get_mut(part.section),
        };
        for item in list.and_then(Value::as_array_mut).into_iter().flatten() {
            keep(item, part.fields);
        }
    }
}

fn keep(value: &mut Value, names: &[&str]) {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| names.contains(&name.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_keeps_who_and_where_it_is() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "b", "uid": "u", "labels": {"x": "y"}, "managedFields": [{}],
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "…"}, "resourceVersion": "7"},
            "spec": {"nodeName": "n", "hostNetwork": true, "serviceAccountName": "s", "volumes": [{}],
                "containers": [{"name": "c", "image": "i", "env": [{}], "ports": [{"containerPort": 80}]}],
                "initContainers": [{"name": "d", "image": "i", "restartPolicy": "Always"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "conditions": [{}]},
        });
        let kept = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "b", "uid": "u", "labels": {"x": "y"}},
            "spec": {"nodeName": "n", "hostNetwork": true, "serviceAccountName": "s",
                "containers": [{"name": "c", "ports": [{"containerPort": 80}]}],
                "initContainers": [{"name": "d", "restartPolicy": "Always"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]},
        });
        assert_eq!(slim(pod), kept);
    }

    #[test]
    fn a_policy_keeps_what_nobody_knows() {
        let policy = json!({
            "apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
            "metadata": {"name": "a", "namespace": "b", "generation": 3, "managedFields": [{}]},
            "spec": {"podSelector": {}, "unheardOf": 1}, "status": {"selectedPods": 4}, "beside": 2,
        });
        let kept = json!({
            "apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
            "metadata": {"name": "a", "namespace": "b"},
            "spec": {"podSelector": {}, "unheardOf": 1}, "beside": 2,
        });
        assert_eq!(slim(policy), kept);
    }

    #[test]
    fn what_has_another_form_is_left_to_who_reads_it() {
        let odd = json!({"kind": "Pod", "metadata": [], "spec": {"containers": "none"}, "status": 1});
        assert_eq!(slim(odd.clone()), odd);
        assert_eq!(slim(json!([1])), json!([1]));
    }
}
