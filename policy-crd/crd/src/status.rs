//! `status` of our kinds: on how many pods and nodes a policy is in force, and what was wrong with it.
//!
//! Knows nothing of how that is found out; control fills it in.

use crate::schema;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `status` of an `L7NetworkPolicy` or a `ClusterL7NetworkPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyStatus {
    /// The generation of the policy that all of this was said of.
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// The pods that it selects.
    #[schemars(range(min = 0))]
    pub selected_pods: Option<i32>,
    /// On how many nodes it is in force.
    pub nodes: Option<NodeCounts>,
    /// The weakest of the cluster's cap, the namespace's label and `spec.mode`.
    pub effective_mode: Option<EffectiveMode>,
    /// Accepted: nothing in it was wrong. Programmed: it is in force on every node that has a pod of it.
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Option<Vec<Condition>>,
}

/// `status.nodes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCounts {
    /// Nodes that have a pod that it selects.
    #[schemars(range(min = 0))]
    pub desired: i32,
    /// Those on which it is in force.
    #[schemars(range(min = 0))]
    pub programmed: i32,
}

/// `status.effectiveMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EffectiveMode {
    /// It decides.
    Enforce,
    /// It only says what it would have decided.
    Audit,
    /// It is not judged.
    Off,
}
