//! Pieces of the schemas that no derive can say: selectors, ports, conditions and rules in CEL.
//!
//! Knows the API server's structural schemas, nothing of what a field means. Used beside the fields of our kinds.

use crate::cluster_l7::ClusterL7Rule;
use crate::l7::L7Rule;
use crate::limits;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// The rules of an allow list, and of each rule in it.
type Checks = &'static [(&'static str, &'static str)];

/// A rule name: it stands in verdicts, logs and metrics.
pub(crate) const RULE_NAME: &str = "^[A-Za-z0-9._-]+$";
/// A token by RFC 9110 §5.6.2: a method, a header's name.
pub(crate) const TOKEN: &str = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$";
/// A gRPC service or method: a segment of a path.
pub(crate) const GRPC_NAME: &str = "^[!-.0-~]+$";
/// A label by RFC 1123: the name of a namespace.
pub(crate) const DNS_LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// A subdomain by RFC 1123: the name of an object.
pub(crate) const DNS_SUBDOMAIN: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// A name that a TLS client sends, or `*.` and what it ends with.
pub(crate) const SERVER_NAME: &str =
    r"^(\*\.)?[a-z0-9_]([-a-z0-9_]*[a-z0-9_])?(\.[a-z0-9_]([-a-z0-9_]*[a-z0-9_])?)*$";

/// `x-kubernetes-validations` of these rules and messages.
pub(crate) fn checks(given: &[(&str, &str)]) -> Value {
    given.iter().map(|(rule, message)| json!({"rule": rule, "message": message})).collect()
}

/// Names of the rules of a namespace's policy, in all its lists.
pub(crate) const UNIQUE_NAMES: (&str, &str) = (
    "[(has(self.ingress) ? self.ingress.filter(r, has(r.name)).map(r, r.name) : []) + \
     (has(self.egress) ? self.egress.filter(r, has(r.name)).map(r, r.name) : []) + \
     (has(self.ingressDeny) ? self.ingressDeny.filter(r, has(r.name)).map(r, r.name) : []) + \
     (has(self.egressDeny) ? self.egressDeny.filter(r, has(r.name)).map(r, r.name) : [])]\
     .all(names, names.all(n, names.exists_one(other, other == n)))",
    TWICE,
);
/// Names of the rules of a cluster's policy.
pub(crate) const UNIQUE_CLUSTER_NAMES: (&str, &str) = (
    "[(has(self.ingress) ? self.ingress.filter(r, has(r.name)).map(r, r.name) : []) + \
     (has(self.egress) ? self.egress.filter(r, has(r.name)).map(r, r.name) : [])]\
     .all(names, names.all(n, names.exists_one(other, other == n)))",
    TWICE,
);
const TWICE: &str = "a rule name is unique in the policy";

/// What holds for every rule of an ingress list.
const INGRESS: Checks = &[("!has(self.to)", "an ingress rule names its peers in `from`, not `to`")];
/// What holds for every rule of an egress list.
const EGRESS: Checks = &[("!has(self.from)", "an egress rule names its peers in `to`, not `from`")];
/// What holds for every rule that allows.
const ALLOW: Checks = &[(
    "!has(self.rules) || !has(self.rules.http) || self.rules.http.all(h, !has(h.methods) || !('CONNECT' in h.methods) \
     || (has(h.hosts) && h.hosts.size() > 0))",
    "an allow of CONNECT names its hosts",
)];

/// What holds for a cluster's rule that accepts.
const ACCEPT: Checks = &[(
    "self.action != 'Accept' || !has(self.rules) || !has(self.rules.http) || self.rules.http.all(h, !has(h.methods) || \
     !('CONNECT' in h.methods) || (has(h.hosts) && h.hosts.size() > 0))",
    "an Accept of CONNECT names its hosts",
)];

fn rules<Rule: JsonSchema>(generator: &mut SchemaGenerator, each: &[Checks]) -> Schema {
    let mut item = generator.subschema_for::<Rule>();
    if let Some(Value::Array(list)) = item.get_mut("x-kubernetes-validations") {
        for (rule, message) in each.iter().copied().flatten() {
            list.push(json!({"rule": rule, "message": message}));
        }
    }
    json_schema!({"type": "array", "items": item, "maxItems": limits::MAX_RULES})
}

/// `ingress`.
pub(crate) fn ingress(generator: &mut SchemaGenerator) -> Schema {
    rules::<L7Rule>(generator, &[INGRESS, ALLOW])
}

/// `egress`.
pub(crate) fn egress(generator: &mut SchemaGenerator) -> Schema {
    rules::<L7Rule>(generator, &[EGRESS, ALLOW])
}

/// `ingressDeny`.
pub(crate) fn ingress_deny(generator: &mut SchemaGenerator) -> Schema {
    rules::<L7Rule>(generator, &[INGRESS])
}

/// `egressDeny`.
pub(crate) fn egress_deny(generator: &mut SchemaGenerator) -> Schema {
    rules::<L7Rule>(generator, &[EGRESS])
}

/// `ingress` of a cluster's policy.
pub(crate) fn cluster_ingress(generator: &mut SchemaGenerator) -> Schema {
    rules::<ClusterL7Rule>(generator, &[INGRESS, ACCEPT])
}

/// `egress` of a cluster's policy.
pub(crate) fn cluster_egress(generator: &mut SchemaGenerator) -> Schema {
    rules::<ClusterL7Rule>(generator, &[EGRESS, ACCEPT])
}

/// `policyTypes`.
pub(crate) fn policy_types(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 2,
        "x-kubernetes-list-type": "set",
        "items": {"type": "string", "enum": ["Ingress", "Egress"]},
    })
}

/// `protocol` of a port.
pub(crate) fn protocol(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["TCP", "UDP", "SCTP"]})
}

/// `except` of an `ipBlock`.
pub(crate) fn except(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": limits::MAX_EXCEPT,
        "items": {"type": "string", "format": "cidr", "maxLength": limits::MAX_CIDR},
    })
}

/// `upgrades`.
pub(crate) fn upgrades(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": limits::MAX_UPGRADES,
        "x-kubernetes-list-type": "set",
        "items": {"type": "string", "enum": ["websocket"]},
    })
}

/// A label selector, bounded.
pub(crate) fn selector(_: &mut SchemaGenerator) -> Schema {
    let value = json!({"type": "string", "maxLength": limits::MAX_LABEL});
    json_schema!({
        "type": "object",
        "x-kubernetes-map-type": "atomic",
        "properties": {
            "matchLabels": {
                "type": "object",
                "description": "All of these labels, with these values.",
                "maxProperties": limits::MAX_SELECTOR,
                "additionalProperties": value.clone(),
            },
            "matchExpressions": {
                "type": "array",
                "description": "All of these hold.",
                "maxItems": limits::MAX_SELECTOR,
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {"type": "string", "description": "The label.", "minLength": 1, "maxLength": limits::MAX_LABEL_KEY},
                        "operator": {
                            "type": "string",
                            "description": "How its value is compared.",
                            "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                        },
                        "values": {
                            "type": "array",
                            "description": "With what; not for `Exists` and `DoesNotExist`.",
                            "maxItems": limits::MAX_SELECTOR_VALUES,
                            "items": value,
                        },
                    },
                    "x-kubernetes-validations": checks(&[(
                        "self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0 : \
                         !has(self.values) || self.values.size() == 0",
                        "In and NotIn need values, Exists and DoesNotExist take none",
                    )]),
                },
            },
        },
    })
}

/// A port: a number, or the name of a container port. Each bound holds for what it can hold for.
pub(crate) fn port(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "minimum": 1,
        "maximum": limits::MAX_PORT,
        "minLength": 1,
        "maxLength": limits::MAX_PORT_NAME,
        "pattern": "^[a-z0-9]([a-z0-9]|-[a-z0-9])*$",
    })
}

/// `status.conditions`.
pub(crate) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": limits::MAX_CONDITIONS,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {"type": "string", "description": "What it is about.", "maxLength": 316,
                    "pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"},
                "status": {"type": "string", "description": "Whether it holds.", "enum": ["True", "False", "Unknown"]},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0,
                    "description": "The generation of the policy that it was said of."},
                "lastTransitionTime": {"type": "string", "format": "date-time", "description": "Since when."},
                "reason": {"type": "string", "description": "Why, in one word.", "minLength": 1, "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                "message": {"type": "string", "description": "Why, for people.", "maxLength": 32_768},
            },
        },
    })
}
