//! `ClusterL7NetworkPolicy` as people write it: serde types for every field of `policy.sluice.dev/v1alpha1`.
//!
//! Tier, priority, subject and actions have the words and the meaning of the upstream `ClusterNetworkPolicy`,
//! which is read with them too; peers, ports and what must be said are `L7NetworkPolicy`'s. Knows nothing of what
//! a field means; the reader takes these types piece by piece.

use crate::l7::{DenyAction, DenyDetail, L7Rules, Mode, Peer, Port};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::{Deserialize, Serialize};

/// `spec` of a `ClusterL7NetworkPolicy`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterL7NetworkPolicySpec {
    /// Before or after what namespaces say for themselves.
    pub tier: Tier,
    /// From 0 to 1000: the lower is asked first among the policies of the tier.
    pub priority: i32,
    /// The pods.
    pub subject: Subject,
    /// Whether the policy decides.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// What a refused L3/L4 flow gets.
    #[serde(default)]
    pub deny_action: Option<DenyAction>,
    /// What a refused request is told.
    #[serde(default)]
    pub deny_detail: Option<DenyDetail>,
    /// What reaches the pods; the first rule that matches decides.
    #[serde(default)]
    pub ingress: Option<Vec<ClusterL7Rule>>,
    /// What the pods reach; the first rule that matches decides.
    #[serde(default)]
    pub egress: Option<Vec<ClusterL7Rule>>,
}

/// `spec.tier`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Tier {
    /// Asked before the namespaced policies: they cannot override it.
    Admin,
    /// Asked where no namespaced policy says who may connect.
    Baseline,
}

/// `spec.subject`: exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subject {
    /// Every pod of these namespaces; `{}` is every namespace.
    pub namespaces: Option<LabelSelector>,
    /// These pods of these namespaces.
    pub pods: Option<NamespacedPods>,
}

/// Pods by their labels and their namespaces'.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespacedPods {
    /// The namespaces; absent or empty means every namespace.
    #[serde(default)]
    pub namespace_selector: Option<LabelSelector>,
    /// The pods in them; empty means every pod.
    pub pod_selector: LabelSelector,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterL7Rule {
    /// Its name, unique in the policy.
    #[serde(default)]
    pub name: Option<String>,
    /// What it does with what it matches.
    pub action: Action,
    /// The sources, of an ingress rule; absent means everybody.
    #[serde(default)]
    pub from: Option<Vec<Peer>>,
    /// The destinations, of an egress rule; absent means everybody.
    #[serde(default)]
    pub to: Option<Vec<Peer>>,
    /// The destination ports.
    #[serde(default)]
    pub ports: Option<Vec<Port>>,
    /// What must be said.
    #[serde(default)]
    pub rules: Option<L7Rules>,
}

/// What a rule of a tier does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Action {
    /// Lets it through: no further tier and no namespaced policy is asked.
    Accept,
    /// Refuses it.
    Deny,
    /// Skips the rest of the tier.
    Pass,
}
