//! `ClusterL7NetworkPolicy` as people write it: serde types for every field of `policy.sluice.dev/v1alpha1`.
//!
//! Tier, priority, subject and actions have the words and the meaning of the upstream `ClusterNetworkPolicy`,
//! which is read with them too; peers, ports and what must be said are `L7NetworkPolicy`'s. Knows nothing of what
//! a field means; the reader takes these types piece by piece.

use crate::l7::{DenyAction, DenyDetail, L7Rules, Mode, Peer, Port};
use crate::limits;
use crate::schema;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `spec` of a `ClusterL7NetworkPolicy`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::checks(&[schema::UNIQUE_CLUSTER_NAMES])))]
pub struct ClusterL7NetworkPolicySpec {
    /// Before or after what namespaces say for themselves.
    pub tier: Tier,
    /// From 0 to 1000: the lower is asked first among the policies of the tier.
    #[schemars(range(min = 0, max = limits::MAX_PRIORITY))]
    pub priority: i32,
    /// The pods.
    pub subject: Subject,
    /// Whether the policy decides (Enforce) or only says what it would have decided (Audit).
    #[serde(default)]
    #[schemars(extend("default" = Mode::Enforce))]
    pub mode: Option<Mode>,
    /// What a refused L3/L4 flow gets: silence (Drop) or a reset (Reject).
    #[serde(default)]
    #[schemars(extend("default" = DenyAction::Drop))]
    pub deny_action: Option<DenyAction>,
    /// What a refused request is told: nothing, the policy and rule, or the nearest miss too.
    #[serde(default)]
    #[schemars(extend("default" = DenyDetail::None))]
    pub deny_detail: Option<DenyDetail>,
    /// What reaches the pods; the first rule that matches decides.
    #[serde(default)]
    #[schemars(schema_with = "schema::cluster_ingress")]
    pub ingress: Option<Vec<ClusterL7Rule>>,
    /// What the pods reach; the first rule that matches decides.
    #[serde(default)]
    #[schemars(schema_with = "schema::cluster_egress")]
    pub egress: Option<Vec<ClusterL7Rule>>,
}

/// `spec.tier`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Tier {
    /// Asked before the namespaced policies: they cannot override it.
    Admin,
    /// Asked where no namespaced policy says who may connect.
    Baseline,
}

/// `spec.subject`: exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = schema::checks(&[(
    "has(self.namespaces) != has(self.pods)",
    "a subject is namespaces or pods, exactly one of them",
)])))]
pub struct Subject {
    /// Every pod of these namespaces; `{}` is every namespace.
    #[schemars(schema_with = "schema::selector")]
    pub namespaces: Option<LabelSelector>,
    /// These pods of these namespaces.
    pub pods: Option<NamespacedPods>,
}

/// Pods by their labels and their namespaces'.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NamespacedPods {
    /// The namespaces; absent or empty means every namespace.
    #[serde(default)]
    #[schemars(schema_with = "schema::selector")]
    pub namespace_selector: Option<LabelSelector>,
    /// The pods in them; empty means every pod.
    #[schemars(schema_with = "schema::selector")]
    pub pod_selector: LabelSelector,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = []))]
pub struct ClusterL7Rule {
    /// Its name, unique in the policy: every verdict of the rule says it.
    #[serde(default)]
    #[schemars(length(min = 1, max = limits::MAX_RULE_NAME), regex(pattern = schema::RULE_NAME))]
    pub name: Option<String>,
    /// What it does with what it matches.
    pub action: Action,
    /// The sources, of an ingress rule; absent means everybody.
    #[serde(default)]
    #[schemars(length(max = limits::MAX_PEERS))]
    pub from: Option<Vec<Peer>>,
    /// The destinations, of an egress rule; absent means everybody.
    #[serde(default)]
    #[schemars(length(max = limits::MAX_PEERS))]
    pub to: Option<Vec<Peer>>,
    /// The destination ports.
    #[serde(default)]
    #[schemars(length(max = limits::MAX_PORTS))]
    pub ports: Option<Vec<Port>>,
    /// What must be said.
    #[serde(default)]
    pub rules: Option<L7Rules>,
}

/// What a rule of a tier does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// Lets it through: no further tier and no namespaced policy is asked.
    Accept,
    /// Refuses it.
    Deny,
    /// Skips the rest of the tier.
    Pass,
}
