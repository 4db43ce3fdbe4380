//! The parts of an upstream `ClusterNetworkPolicy` (`policy.networking.k8s.io/v1alpha2`) that are its own: peers
//! and protocols, the experimental ones too.
//!
//! What it shares with `ClusterL7NetworkPolicy` (tier, subject, action) is in `cluster_l7`. Knows nothing of what a
//! part means; the reader takes these types piece by piece.

use crate::cluster_l7::NamespacedPods;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;

/// One item of `from` or `to`: exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterPeer {
    /// Every pod of these namespaces.
    pub namespaces: Option<LabelSelector>,
    /// These pods.
    pub pods: Option<NamespacedPods>,
    /// The addresses of these nodes; of egress alone, experimental.
    pub nodes: Option<LabelSelector>,
    /// CIDRs, pods' addresses among them; of egress alone.
    pub networks: Option<Vec<String>>,
    /// Names, resolved by somebody; of egress alone, experimental.
    pub domain_names: Option<Vec<String>>,
}

/// One item of `protocols`: exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterProtocol {
    /// TCP.
    pub tcp: Option<TransportMatch>,
    /// UDP.
    pub udp: Option<TransportMatch>,
    /// SCTP.
    pub sctp: Option<TransportMatch>,
    /// The name of a container port, of whatever protocol.
    pub destination_named_port: Option<String>,
}

/// What is asked of one protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TransportMatch {
    /// The destination port.
    pub destination_port: Option<DestinationPort>,
}

/// A port or a range: exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DestinationPort {
    /// One port.
    pub number: Option<i32>,
    /// A range.
    pub range: Option<DestinationRange>,
}

/// A range of ports.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DestinationRange {
    /// The first.
    pub start: i32,
    /// The last, greater than the first.
    pub end: i32,
}
