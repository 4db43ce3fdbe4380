//! Cilium's policies as people write them: `CiliumNetworkPolicy`, `CiliumClusterwideNetworkPolicy` and the
//! `CiliumCIDRGroup`s they name, every known field of `cilium.io/v2`.
//!
//! Fields that nobody here honours are read too, so that they are told apart from fields that do not exist and are
//! reported where they stand. Knows nothing of what a field means; whoever lowers a policy decides what a bad part
//! costs, always on the closed side.

pub(crate) mod fields;
mod read;
mod rule;

pub use rule::{
    CiliumAuthentication, CiliumCidrRule, CiliumDefaultDeny, CiliumEnvoyConfigRef, CiliumFqdn,
    CiliumHeaderMatch, CiliumHttpRule, CiliumIcmpField, CiliumIcmpRule, CiliumL7Rules, CiliumListener,
    CiliumPeers, CiliumPort, CiliumPortRule, CiliumRule, CiliumSecret, CiliumService, CiliumServiceName,
    CiliumServiceSelector, CiliumTlsContext,
};

use crate::object::Source;
use crate::policy::Part;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The group of Cilium's kinds.
pub const CILIUM_GROUP: &str = "cilium.io";

/// Which kind a [`CiliumPolicyObject`] was given as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CiliumKind {
    /// `CiliumNetworkPolicy`: of one namespace.
    Namespaced,
    /// `CiliumClusterwideNetworkPolicy`: of the cluster.
    Clusterwide,
}

impl CiliumKind {
    /// The kind as Kubernetes writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespaced => "CiliumNetworkPolicy",
            Self::Clusterwide => "CiliumClusterwideNetworkPolicy",
        }
    }
}

/// One `CiliumNetworkPolicy` or `CiliumClusterwideNetworkPolicy`.
#[derive(Clone, Debug)]
pub struct CiliumPolicyObject {
    /// Its kind.
    pub kind: CiliumKind,
    /// `metadata.namespace`; empty for the clusterwide kind.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Its place.
    pub source: Source,
    /// False: something about the whole object is in doubt, so that none of its allows may be granted.
    pub sound: bool,
    /// False: reading it found an error somewhere, if only in one rule.
    pub clean: bool,
    /// `spec`, if written, and then `specs`. Never empty: without either there is one that nobody could read.
    pub specs: Vec<CiliumSpec>,
}

impl CiliumPolicyObject {
    /// Takes everything that was not read on the closed side: the text broke off, and what would have followed
    /// nobody knows.
    pub(crate) fn close(&mut self) {
        self.sound = false;
        for spec in &mut self.specs {
            spec.sound = false;
            if spec.endpoint_selector.is_absent() && spec.node_selector.is_absent() {
                spec.endpoint_selector = Part::Bad;
            }
            for section in
                [&mut spec.ingress, &mut spec.egress, &mut spec.ingress_deny, &mut spec.egress_deny]
            {
                if section.is_absent() {
                    *section = Part::Bad;
                }
            }
        }
    }
}

/// `spec`, or one of `specs`: what Cilium calls a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct CiliumSpec {
    /// Its place: `spec` or `specs[0]`.
    pub path: String,
    /// False: something in it belongs to no known part.
    pub sound: bool,
    /// `endpointSelector`.
    pub endpoint_selector: Part<LabelSelector>,
    /// `nodeSelector`.
    pub node_selector: Part<LabelSelector>,
    /// `enableDefaultDeny`.
    pub enable_default_deny: Part<CiliumDefaultDeny>,
    /// `ingress`.
    pub ingress: Part<Vec<CiliumRule>>,
    /// `egress`.
    pub egress: Part<Vec<CiliumRule>>,
    /// `ingressDeny`.
    pub ingress_deny: Part<Vec<CiliumRule>>,
    /// `egressDeny`.
    pub egress_deny: Part<Vec<CiliumRule>>,
}

/// One `CiliumCIDRGroup`.
#[derive(Clone, Debug)]
pub struct CiliumCidrGroupObject {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.labels`; `None`: they cannot be read, so that any selector may mean the group.
    pub labels: Option<BTreeMap<String, String>>,
    /// Its place.
    pub source: Source,
    /// False: something about the whole object is in doubt, so that there may be more in it than what was read.
    pub sound: bool,
    /// `spec.externalCIDRs`.
    pub external_cidrs: Part<Vec<Part<String>>>,
}
