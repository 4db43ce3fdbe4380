//! Where a rule came from. Every verdict names its policy and rule, so every rule carries this.
//!
//! Knows nothing of how the object was read or lowered.

use std::fmt;
use std::sync::Arc;

/// The kind of the Kubernetes object a policy was given as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `policy.sluice.dev` `L7NetworkPolicy`.
    L7NetworkPolicy,
    /// `policy.sluice.dev` `ClusterL7NetworkPolicy`.
    ClusterL7NetworkPolicy,
    /// `networking.k8s.io` `NetworkPolicy`.
    NetworkPolicy,
    /// `cilium.io` `CiliumNetworkPolicy`.
    CiliumNetworkPolicy,
    /// `cilium.io` `CiliumClusterwideNetworkPolicy`.
    CiliumClusterwideNetworkPolicy,
    /// `policy.networking.k8s.io` `ClusterNetworkPolicy`.
    ClusterNetworkPolicy,
}

impl Kind {
    /// Every kind, in a fixed order.
    pub const ALL: [Self; 6] = [
        Self::L7NetworkPolicy,
        Self::ClusterL7NetworkPolicy,
        Self::NetworkPolicy,
        Self::CiliumNetworkPolicy,
        Self::CiliumClusterwideNetworkPolicy,
        Self::ClusterNetworkPolicy,
    ];

    /// The kind as Kubernetes writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::L7NetworkPolicy => "L7NetworkPolicy",
            Self::ClusterL7NetworkPolicy => "ClusterL7NetworkPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }

    /// The kind with this Kubernetes name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// One object in the cluster. Displays as `Kind/namespace/name`, or `Kind/name` if cluster-scoped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// The object's kind.
    pub kind: Kind,
    /// The object's namespace; empty for a cluster-scoped object.
    pub namespace: Arc<str>,
    /// The object's name.
    pub name: Arc<str>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}/{}", self.kind.as_str(), self.name)
        } else {
            write!(f, "{}/{}/{}", self.kind.as_str(), self.namespace, self.name)
        }
    }
}

/// Whether a policy decides, or only says what it would have decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// It decides.
    #[default]
    Enforce,
    /// It is judged and reported, and decides nothing.
    Audit,
}

/// What a refused L3/L4 flow gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum DenyAction {
    /// Silence.
    #[default]
    Drop,
    /// A reset, or an unreachable.
    Reject,
}

/// What a refused request is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum DenyDetail {
    /// That it is refused, and the kind of the reason.
    #[default]
    None,
    /// The policy and the rule too.
    Rule,
    /// The nearest miss too.
    NearestMiss,
}

/// How what a policy refuses is answered. No verdict reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct OnDeny {
    /// A connection.
    pub action: DenyAction,
    /// A request.
    pub detail: DenyDetail,
}

/// A policy's place in [`Snapshot::policies`](crate::Snapshot::policies).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyId(pub u32);

/// A policy object as its rules remember it. The mode is the effective one, after rollout.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// Its place in the snapshot.
    pub id: PolicyId,
    /// The object.
    pub origin: Origin,
    /// The effective mode: the weakest of the cluster's cap, the namespace's label and `spec.mode`.
    pub mode: Mode,
    /// How what it refuses is answered.
    pub on_deny: OnDeny,
}

/// A rule's name: `metadata`-like name where the object has one, else its place, as `ingress[0]`.
pub type RuleName = Arc<str>;
