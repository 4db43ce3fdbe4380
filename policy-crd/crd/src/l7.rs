//! `L7NetworkPolicy` as people write it: serde types for every field of `policy.sluice.dev/v1alpha1`.
//!
//! What the API server can check of it stands beside each field, with the bounds of [`limits`]: the CRD is
//! generated from here. Knows nothing of what a field means; the reader takes these types piece by piece.

use crate::limits;
use crate::schema;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `spec` of an `L7NetworkPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = schema::checks(&[schema::UNIQUE_NAMES])))]
pub struct L7NetworkPolicySpec {
    /// The pods; absent or empty means every pod of the namespace.
    #[schemars(schema_with = "schema::selector")]
    pub pod_selector: Option<LabelSelector>,
    /// The directions that the policy is about. Absent: Ingress, and Egress if there are egress rules.
    #[schemars(schema_with = "schema::policy_types")]
    pub policy_types: Option<Vec<String>>,
    /// Whether the policy decides (Enforce) or only says what it would have decided (Audit).
    #[schemars(extend("default" = Mode::Enforce))]
    pub mode: Option<Mode>,
    /// What a refused L3/L4 flow gets: silence (Drop) or a reset (Reject).
    #[schemars(extend("default" = DenyAction::Drop))]
    pub deny_action: Option<DenyAction>,
    /// What a refused request is told: nothing, the policy and rule, or the nearest miss too.
    #[schemars(extend("default" = DenyDetail::None))]
    pub deny_detail: Option<DenyDetail>,
    /// Which ports become default-deny: every port of each direction (Direction), those that the policy's allow
    /// rules name, on every protocol (ListedPorts), or none (None).
    #[schemars(extend("default" = IsolationScope::Direction))]
    pub isolation: Option<IsolationScope>,
    /// What may reach the pods.
    #[schemars(schema_with = "schema::ingress")]
    pub ingress: Option<Vec<L7Rule>>,
    /// What the pods may reach.
    #[schemars(schema_with = "schema::egress")]
    pub egress: Option<Vec<L7Rule>>,
    /// What may not reach the pods, whatever else allows it.
    #[schemars(schema_with = "schema::ingress_deny")]
    pub ingress_deny: Option<Vec<L7Rule>>,
    /// What the pods may not reach, whatever else allows it.
    #[schemars(schema_with = "schema::egress_deny")]
    pub egress_deny: Option<Vec<L7Rule>>,
}

/// `spec.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// It decides.
    #[default]
    Enforce,
    /// It only says what it would have decided.
    Audit,
}

/// `spec.denyAction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DenyAction {
    /// Silence.
    #[default]
    Drop,
    /// A reset.
    Reject,
}

/// `spec.denyDetail`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DenyDetail {
    /// Nothing.
    #[default]
    None,
    /// The policy and rule.
    Rule,
    /// The nearest miss too.
    NearestMiss,
}

/// `spec.isolation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum IsolationScope {
    /// Every port, as `NetworkPolicy`.
    #[default]
    Direction,
    /// Only the ports named.
    ListedPorts,
    /// None.
    None,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = []))]
pub struct L7Rule {
    /// Its name, unique in the policy: every verdict of the rule says it.
    #[schemars(length(min = 1, max = limits::MAX_RULE_NAME), regex(pattern = schema::RULE_NAME))]
    pub name: Option<String>,
    /// The sources, of an ingress rule: any of them. Absent or empty means everybody.
    #[schemars(length(max = limits::MAX_PEERS))]
    pub from: Option<Vec<Peer>>,
    /// The destinations, of an egress rule: any of them. Absent or empty means everybody.
    #[schemars(length(max = limits::MAX_PEERS))]
    pub to: Option<Vec<Peer>>,
    /// The destination ports: any of them. Absent or empty means every port of every protocol.
    #[schemars(length(max = limits::MAX_PORTS))]
    pub ports: Option<Vec<Port>>,
    /// What must be said. Absent: the rule decides at L3/L4 alone.
    pub rules: Option<L7Rules>,
}

/// One item of `from` or `to`; its parts are `ANDed`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("minProperties" = 1))]
pub struct Peer {
    /// Pods with these labels, of the policy's namespace unless `namespaceSelector` says otherwise.
    #[schemars(schema_with = "schema::selector")]
    pub pod_selector: Option<LabelSelector>,
    /// Pods of namespaces with these labels.
    #[schemars(schema_with = "schema::selector")]
    pub namespace_selector: Option<LabelSelector>,
    /// Addresses, of pods as well.
    pub ip_block: Option<IpBlock>,
    /// Pods that run as any of these service accounts.
    #[schemars(length(min = 1, max = limits::MAX_SERVICE_ACCOUNTS))]
    pub service_accounts: Option<Vec<ServiceAccountRef>>,
    /// Any of these entities.
    #[schemars(length(min = 1, max = limits::MAX_ENTITIES), extend("x-kubernetes-list-type" = "set"))]
    pub entities: Option<Vec<Entity>>,
}

/// Addresses, less some.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IpBlock {
    /// The prefix, as `10.1.0.0/16`.
    #[schemars(length(max = limits::MAX_CIDR), extend("format" = "cidr"))]
    pub cidr: String,
    /// Prefixes in it that are not meant.
    #[serde(default)]
    #[schemars(schema_with = "schema::except")]
    pub except: Option<Vec<String>>,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountRef {
    /// Its namespace; absent means the policy's.
    #[serde(default)]
    #[schemars(length(max = limits::MAX_LABEL), regex(pattern = schema::DNS_LABEL))]
    pub namespace: Option<String>,
    /// Its name.
    #[schemars(length(max = limits::MAX_OBJECT_NAME), regex(pattern = schema::DNS_SUBDOMAIN))]
    pub name: String,
}

/// A peer that is no pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Entity {
    /// The pod's own node.
    Host,
    /// Another node.
    RemoteNode,
    /// Outside the cluster.
    World,
    /// Everything in the cluster.
    Cluster,
    /// The API server.
    KubeApiserver,
}

/// One port, or a range of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = schema::checks(&[
    ("!has(self.endPort) || (has(self.port) && type(self.port) == int)", "endPort needs a number as port"),
    (
        "!has(self.endPort) || !has(self.port) || type(self.port) != int || self.port <= self.endPort",
        "endPort is not less than port",
    ),
])))]
pub struct Port {
    /// A number or the name of a container port; absent means every port of the protocol.
    #[schemars(schema_with = "schema::port")]
    pub port: Option<IntOrString>,
    /// The protocol.
    #[schemars(schema_with = "schema::protocol", extend("default" = "TCP"))]
    pub protocol: Option<String>,
    /// The last port of a range that begins at `port`.
    #[schemars(range(min = 1, max = limits::MAX_PORT))]
    pub end_port: Option<i32>,
}

/// What must be said. Several kinds are a union.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("minProperties" = 1))]
pub struct L7Rules {
    /// HTTP requests: any of these.
    #[schemars(length(min = 1, max = limits::MAX_MATCHES))]
    pub http: Option<Vec<HttpRule>>,
    /// gRPC calls: any of these.
    #[schemars(length(min = 1, max = limits::MAX_MATCHES))]
    pub grpc: Option<Vec<GrpcRule>>,
    /// TLS connections by the server name that the client sends; nothing is decrypted.
    pub tls: Option<TlsRules>,
}

/// One item of `rules.http`; its parts are `ANDed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = schema::checks(&[(
    "!has(self.methods) || !('CONNECT' in self.methods) || \
     (self.methods.size() == 1 && !has(self.path) && !has(self.queryParams) && !has(self.upgrades))",
    "CONNECT stands alone in methods, without path, queryParams and upgrades: its target is a host",
)])))]
pub struct HttpRule {
    /// Any of these methods, case-sensitive. Absent means any but CONNECT; GET does not stand for HEAD.
    #[schemars(length(min = 1, max = limits::MAX_METHODS), inner(length(max = limits::MAX_METHOD), regex(pattern = schema::TOKEN)))]
    pub methods: Option<Vec<String>>,
    /// The path, without the query.
    pub path: Option<StringMatch>,
    /// Any of these hosts, without port.
    #[schemars(length(min = 1, max = limits::MAX_HOSTS))]
    pub hosts: Option<Vec<HostMatch>>,
    /// All of these headers. An allow needs exactly one occurrence of each.
    #[schemars(length(min = 1, max = limits::MAX_HEADERS))]
    pub headers: Option<Vec<HeaderMatch>>,
    /// All of these query parameters. An allow needs exactly one occurrence of each.
    #[schemars(length(min = 1, max = limits::MAX_HEADERS))]
    pub query_params: Option<Vec<HeaderMatch>>,
    /// Upgrades let through; without it a request to upgrade is refused.
    #[schemars(schema_with = "schema::upgrades")]
    pub upgrades: Option<Vec<String>>,
}

/// A condition on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostMatch {
    /// How it is compared.
    #[serde(rename = "type")]
    pub kind: HostMatchType,
    /// With what, in lower case, without port and trailing dot.
    #[schemars(length(min = 1, max = limits::MAX_VALUE))]
    pub value: String,
}

/// How a host is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HostMatchType {
    /// The whole host.
    Exact,
    /// A full match in linear time.
    RegularExpression,
}

/// A condition on a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = schema::checks(&[(
    "self.type == 'RegularExpression' || self.value.startsWith('/') || \
     (self.type == 'Exact' && self.value == '*')",
    "a path starts with /",
)])))]
pub struct StringMatch {
    /// How it is compared.
    #[serde(rename = "type")]
    pub kind: StringMatchType,
    /// With what.
    #[schemars(length(min = 1, max = limits::MAX_VALUE))]
    pub value: String,
}

/// How a string is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StringMatchType {
    /// The whole string.
    Exact,
    /// By path segment.
    PathPrefix,
    /// A full match in linear time.
    RegularExpression,
}

/// A condition on a header or a query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = schema::checks(&[(
    "(self.type in ['Exact', 'RegularExpression']) == has(self.value)",
    "Exact and RegularExpression need a value, Present and Absent take none",
)])))]
pub struct HeaderMatch {
    /// The name.
    #[schemars(length(min = 1, max = limits::MAX_FIELD_NAME))]
    pub name: String,
    /// How its value is compared.
    #[serde(rename = "type")]
    pub kind: HeaderMatchType,
    /// With what; not for `Present` and `Absent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::MAX_VALUE))]
    pub value: Option<String>,
}

/// How a header is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HeaderMatchType {
    /// The whole value.
    Exact,
    /// A full match in linear time.
    RegularExpression,
    /// There, with any value.
    Present,
    /// Not there.
    Absent,
}

/// One item of `rules.grpc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrpcRule {
    /// The service, with its package.
    #[schemars(length(min = 1, max = limits::MAX_SERVICE), regex(pattern = schema::GRPC_NAME))]
    pub service: String,
    /// Any of these methods; absent means every method of the service.
    #[serde(default)]
    #[schemars(length(min = 1, max = limits::MAX_METHODS), inner(length(max = limits::MAX_METHOD), regex(pattern = schema::GRPC_NAME)))]
    pub methods: Option<Vec<String>>,
    /// The protocols that an allow opens; absent means `GRPC`. A deny holds for every protocol.
    #[serde(default)]
    #[schemars(length(min = 1, max = limits::MAX_PROTOCOLS), extend("x-kubernetes-list-type" = "set"))]
    pub protocols: Option<Vec<GrpcProtocol>>,
}

/// How a gRPC call is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GrpcProtocol {
    /// gRPC over HTTP/2.
    GRPC,
    /// gRPC-Web.
    GRPCWeb,
    /// Connect.
    Connect,
}

/// `rules.tls`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["serverNames"]))]
pub struct TlsRules {
    /// Any of these server names: exact, or `*.` and what it ends with.
    #[schemars(length(min = 1, max = limits::MAX_SERVER_NAMES), inner(length(max = limits::MAX_HOST), regex(pattern = schema::SERVER_NAME)))]
    pub server_names: Vec<String>,
}
