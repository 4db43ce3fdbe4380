//! One item of `ingress`, `egress`, `ingressDeny` or `egressDeny`, field by field.
//!
//! Types alone. The reader beside them fills them; the small ones are serde types with the words of `cilium.io/v2`.

use crate::policy::Part;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One item of a section.
#[derive(Clone, Debug, PartialEq)]
pub struct CiliumRule {
    /// Its place, as `spec.ingress[0]`.
    pub path: String,
    /// False: something in it belongs to no known part.
    pub sound: bool,
    /// `from…` or `to…`.
    pub peers: CiliumPeers,
    /// `toPorts`.
    pub to_ports: Part<Vec<CiliumPortRule>>,
    /// `icmps`.
    pub icmps: Part<Vec<Part<CiliumIcmpRule>>>,
    /// `authentication`.
    pub authentication: Part<CiliumAuthentication>,
}

/// A list, each item a part of its own.
type Items<T> = Part<Vec<Part<T>>>;

/// Who a rule names: of `ingress` by `from…`, of `egress` by `to…`. Cilium takes one of these fields in a rule, or
/// none for everybody.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CiliumPeers {
    /// `fromEndpoints`, `toEndpoints`.
    pub endpoints: Items<LabelSelector>,
    /// `fromRequires`, `toRequires`.
    pub requires: Items<LabelSelector>,
    /// `fromCIDR`, `toCIDR`.
    pub cidr: Items<String>,
    /// `fromCIDRSet`, `toCIDRSet`.
    pub cidr_set: Items<CiliumCidrRule>,
    /// `fromEntities`, `toEntities`.
    pub entities: Items<String>,
    /// `fromNodes`, `toNodes`.
    pub nodes: Items<LabelSelector>,
    /// `fromGroups`, `toGroups`: of cloud providers.
    pub groups: Items<Value>,
    /// `toServices`.
    pub services: Items<CiliumService>,
    /// `toFQDNs`.
    pub fqdns: Items<CiliumFqdn>,
}

/// One item of `toPorts`.
#[derive(Clone, Debug, PartialEq)]
pub struct CiliumPortRule {
    /// Its place, as `spec.ingress[0].toPorts[0]`.
    pub path: String,
    /// False: something in it belongs to no known part.
    pub sound: bool,
    /// `ports`.
    pub ports: Items<CiliumPort>,
    /// `rules`.
    pub rules: Part<CiliumL7Rules>,
    /// `serverNames`.
    pub server_names: Items<String>,
    /// `terminatingTLS`.
    pub terminating_tls: Part<CiliumTlsContext>,
    /// `originatingTLS`.
    pub originating_tls: Part<CiliumTlsContext>,
    /// `listener`.
    pub listener: Part<CiliumListener>,
}

/// `rules` of an item of `toPorts`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CiliumL7Rules {
    /// `http`.
    pub http: Items<CiliumHttpRule>,
    /// `dns`.
    pub dns: Items<CiliumFqdn>,
    /// `kafka`.
    pub kafka: Items<Value>,
    /// `l7proto`.
    pub l7proto: Part<String>,
    /// `l7`.
    pub l7: Items<Value>,
}

/// `enableDefaultDeny`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CiliumDefaultDeny {
    /// Whether the endpoints become default-deny for ingress.
    pub ingress: Option<bool>,
    /// And for egress.
    pub egress: Option<bool>,
}

/// One item of `fromCIDRSet` or `toCIDRSet`: a CIDR, or a group of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CiliumCidrRule {
    /// The prefix.
    pub cidr: Option<String>,
    /// The name of a `CiliumCIDRGroup`.
    pub cidr_group_ref: Option<String>,
    /// Every `CiliumCIDRGroup` with these labels.
    pub cidr_group_selector: Option<LabelSelector>,
    /// Prefixes that are not meant.
    pub except: Option<Vec<String>>,
}

/// One item of `toServices`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CiliumService {
    /// By name.
    pub k8s_service: Option<CiliumServiceName>,
    /// By labels.
    pub k8s_service_selector: Option<CiliumServiceSelector>,
}

/// `k8sService`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CiliumServiceName {
    /// The service.
    pub service_name: Option<String>,
    /// Its namespace.
    pub namespace: Option<String>,
}

/// `k8sServiceSelector`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CiliumServiceSelector {
    /// The services.
    pub selector: LabelSelector,
    /// Their namespace.
    #[serde(default)]
    pub namespace: Option<String>,
}

/// One item of `toFQDNs` or of `rules.dns`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CiliumFqdn {
    /// A name.
    pub match_name: Option<String>,
    /// Names by wildcard.
    pub match_pattern: Option<String>,
}

/// One item of `ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CiliumPort {
    /// A number or a name, in quotes either way.
    pub port: Option<String>,
    /// The last port of a range.
    pub end_port: Option<i32>,
    /// `TCP`, `UDP`, `SCTP`, … or `ANY` (default).
    pub protocol: Option<String>,
}

/// One item of `rules.http`; its parts are `ANDed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CiliumHttpRule {
    /// A regular expression for the path with its query.
    pub path: Option<String>,
    /// A regular expression for the method.
    pub method: Option<String>,
    /// A regular expression for the host.
    pub host: Option<String>,
    /// `Name` or `Name: value`.
    pub headers: Option<Vec<String>>,
    /// Headers with a value and an action.
    pub header_matches: Option<Vec<CiliumHeaderMatch>>,
}

/// One item of `headerMatches`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CiliumHeaderMatch {
    /// The name.
    pub name: String,
    /// The value.
    #[serde(default)]
    pub value: Option<String>,
    /// Where the value is kept.
    #[serde(default)]
    pub secret: Option<CiliumSecret>,
    /// `LOG`, `ADD`, `DELETE` or `REPLACE`: what becomes of a request that does not match.
    #[serde(default)]
    pub mismatch: Option<String>,
}

/// A reference to a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CiliumSecret {
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its name.
    pub name: Option<String>,
}

/// `terminatingTLS`, `originatingTLS`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CiliumTlsContext {
    /// Certificates and keys.
    pub secret: Option<CiliumSecret>,
    /// The key of the CA in the secret.
    #[serde(rename = "trustedCA")]
    pub trusted_ca: Option<String>,
    /// The key of the certificate in the secret.
    pub certificate: Option<String>,
    /// The key of the private key in the secret.
    pub private_key: Option<String>,
}

/// `listener`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CiliumListener {
    /// Where it is configured.
    pub envoy_config: Option<CiliumEnvoyConfigRef>,
    /// Its name.
    pub name: Option<String>,
    /// Which of several wins.
    pub priority: Option<i32>,
}

/// `envoyConfig` of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CiliumEnvoyConfigRef {
    /// `CiliumEnvoyConfig` or `CiliumClusterwideEnvoyConfig`.
    pub kind: Option<String>,
    /// Its name.
    pub name: Option<String>,
}

/// One item of `icmps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CiliumIcmpRule {
    /// Any of these.
    pub fields: Option<Vec<CiliumIcmpField>>,
}

/// One item of `fields`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CiliumIcmpField {
    /// `IPv4` (default) or `IPv6`.
    #[serde(default)]
    pub family: Option<String>,
    /// The type, by number or by name.
    #[serde(rename = "type")]
    pub kind: IntOrString,
}

/// `authentication`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CiliumAuthentication {
    /// `disabled`, `required` or `test-always-fail`.
    pub mode: Option<String>,
}
