//! `L7NetworkPolicy` as people write it: serde types for every field of `policy.sluice.dev/v1alpha1`.
//!
//! Fields that are not built yet are here too, so that they are told apart from fields that do not exist. Knows
//! nothing of what a field means; the reader takes these types piece by piece.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};

/// `spec` of an `L7NetworkPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct L7NetworkPolicySpec {
    /// The pods; absent or empty means every pod of the namespace.
    pub pod_selector: Option<LabelSelector>,
    /// `Ingress`, `Egress`; defaulted as for `NetworkPolicy`.
    pub policy_types: Option<Vec<String>>,
    /// Whether the policy decides.
    pub mode: Option<Mode>,
    /// What a refused L3/L4 flow gets.
    pub deny_action: Option<DenyAction>,
    /// What a refused request is told.
    pub deny_detail: Option<DenyDetail>,
    /// Which ports become default-deny.
    pub isolation: Option<IsolationScope>,
    /// What may reach the pods.
    pub ingress: Option<Vec<L7Rule>>,
    /// What the pods may reach.
    pub egress: Option<Vec<L7Rule>>,
    /// What may not reach the pods, whatever else allows it.
    pub ingress_deny: Option<Vec<L7Rule>>,
    /// What the pods may not reach, whatever else allows it.
    pub egress_deny: Option<Vec<L7Rule>>,
}

/// `spec.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// It decides.
    #[default]
    Enforce,
    /// It only says what it would have decided.
    Audit,
}

/// `spec.denyAction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DenyAction {
    /// Silence.
    #[default]
    Drop,
    /// A reset.
    Reject,
}

/// `spec.denyDetail`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct L7Rule {
    /// Its name, unique in the policy.
    pub name: Option<String>,
    /// The sources, of an ingress rule.
    pub from: Option<Vec<Peer>>,
    /// The destinations, of an egress rule.
    pub to: Option<Vec<Peer>>,
    /// The destination ports.
    pub ports: Option<Vec<Port>>,
    /// What must be said.
    pub rules: Option<L7Rules>,
}

/// One item of `from` or `to`; its parts are `ANDed`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Peer {
    /// Pods, of the policy's namespace unless `namespaceSelector` says otherwise.
    pub pod_selector: Option<LabelSelector>,
    /// Namespaces.
    pub namespace_selector: Option<LabelSelector>,
    /// Addresses.
    pub ip_block: Option<IpBlock>,
    /// Service accounts.
    pub service_accounts: Option<Vec<ServiceAccountRef>>,
    /// What is no pod.
    pub entities: Option<Vec<Entity>>,
}

/// Addresses, less some.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpBlock {
    /// The prefix.
    pub cidr: String,
    /// Prefixes in it that are not meant.
    #[serde(default)]
    pub except: Option<Vec<String>>,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountRef {
    /// Its namespace; absent means the policy's.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// A peer that is no pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    /// A number or the name of a container port; absent means every port of the protocol.
    pub port: Option<IntOrString>,
    /// `TCP` (default), `UDP` or `SCTP`.
    pub protocol: Option<String>,
    /// The last port of a range.
    pub end_port: Option<i32>,
}

/// What must be said. Several kinds are a union.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct L7Rules {
    /// HTTP requests.
    pub http: Option<Vec<HttpRule>>,
    /// gRPC calls.
    pub grpc: Option<Vec<GrpcRule>>,
    /// TLS by its server name.
    pub tls: Option<TlsRules>,
}

/// One item of `rules.http`; its parts are `ANDed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRule {
    /// Any of these methods.
    pub methods: Option<Vec<String>>,
    /// The path.
    pub path: Option<StringMatch>,
    /// Any of these hosts.
    pub hosts: Option<Vec<StringMatch>>,
    /// All of these headers.
    pub headers: Option<Vec<HeaderMatch>>,
    /// All of these query parameters.
    pub query_params: Option<Vec<HeaderMatch>>,
    /// Upgrades let through.
    pub upgrades: Option<Vec<String>>,
}

/// A condition on a string.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StringMatch {
    /// How it is compared.
    #[serde(rename = "type")]
    pub kind: StringMatchType,
    /// With what.
    pub value: String,
}

/// How a string is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StringMatchType {
    /// The whole string.
    Exact,
    /// By path segment.
    PathPrefix,
    /// A full match in linear time.
    RegularExpression,
}

/// A condition on a header or a query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderMatch {
    /// The name.
    pub name: String,
    /// How its value is compared.
    #[serde(rename = "type")]
    pub kind: HeaderMatchType,
    /// With what; not for `Present` and `Absent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// How a header is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrpcRule {
    /// The service, with its package.
    pub service: String,
    /// Any of these methods; absent means every method of the service.
    #[serde(default)]
    pub methods: Option<Vec<String>>,
    /// The protocols that open it; absent means `GRPC`.
    #[serde(default)]
    pub protocols: Option<Vec<GrpcProtocol>>,
}

/// How a gRPC call is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GrpcProtocol {
    /// gRPC over HTTP/2.
    GRPC,
    /// gRPC-Web.
    GRPCWeb,
    /// Connect.
    Connect,
}

/// `rules.tls`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsRules {
    /// Any of these server names.
    pub server_names: Vec<String>,
}
