//! The objects: our CRDs and the Kubernetes kinds we read, and how a directory of manifests becomes them.
//!
//! Everything is read piece by piece, so that one bad field costs its own part and nothing else, and so that
//! what could not be read is known to whoever lowers it. Knows nothing of rules, verdicts or clusters: control
//! and the CLI load with it, `sluice-compile` lowers what it read.

mod bounds;
mod cilium;
mod cluster_l7;
mod cluster_network;
mod decode;
mod definitions;
mod fields;
mod kinds;
mod l7;
pub mod limits;
mod load;
mod object;
mod policy;
mod problem;
mod read;
mod read_rule;
mod read_tiers;
mod same;
mod schema;
mod slim;
mod status;
mod tiered;
mod yaml;

pub use cilium::{
    CILIUM_GROUP, CiliumAuthentication, CiliumCidrGroupObject, CiliumCidrRule, CiliumDefaultDeny,
    CiliumEnvoyConfigRef, CiliumFqdn, CiliumHeaderMatch, CiliumHttpRule, CiliumIcmpField, CiliumIcmpRule,
    CiliumKind, CiliumL7Rules, CiliumListener, CiliumPeers, CiliumPolicyObject, CiliumPort, CiliumPortRule,
    CiliumRule, CiliumSecret, CiliumService, CiliumServiceName, CiliumServiceSelector, CiliumSpec,
    CiliumTlsContext,
};
pub use cluster_l7::{Action, ClusterL7NetworkPolicySpec, ClusterL7Rule, NamespacedPods, Subject, Tier};
pub use cluster_network::{ClusterPeer, ClusterProtocol, DestinationPort, DestinationRange, TransportMatch};
pub use definitions::custom_resource_definitions;
pub use fields::nearest;
pub use l7::{
    DenyAction, DenyDetail, Entity, GrpcProtocol, GrpcRule, HeaderMatch, HeaderMatchType, HostMatch,
    HostMatchType, HttpRule, IpBlock, IsolationScope, L7NetworkPolicySpec, L7Rule, L7Rules, Mode, Peer, Port,
    ServiceAccountRef, StringMatch, StringMatchType, TlsRules,
};
pub use load::{
    Loaded, MAX_FILE_BYTES, load_dir, load_files, load_str, load_texts, load_texts_in, load_value, manifests,
    read_manifest,
};
pub use object::{Objects, Source, Sourced};
pub use policy::{Part, PolicyKind, PolicyObject, RuleObject, RuleSection, Rules};
pub use problem::{Category, Place, Plain, Problem, Problems, Severity};
pub use same::Placed;
pub use slim::slim;
pub use status::{EffectiveMode, NodeCounts, PolicyStatus};
pub use tiered::{ClusterL7Object, ClusterNetworkObject, ClusterRuleObject, TieredObject, TieredRule};

/// The group of our own kinds.
pub const GROUP: &str = "policy.sluice.dev";
/// The version of our own kinds.
pub const VERSION: &str = "v1alpha1";
