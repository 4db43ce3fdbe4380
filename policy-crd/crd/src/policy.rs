//! A policy object read piece by piece: every part says whether it was there, and whether it could be read.
//!
//! `NetworkPolicy` and `L7NetworkPolicy` share this form, for they share their words. Knows nothing of what a
//! part means; whoever lowers it decides what a bad part costs, always on the closed side.

use crate::l7::{DenyAction, DenyDetail, GrpcRule, HttpRule, IsolationScope, Mode, Peer, Port, TlsRules};
use crate::object::Source;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::sync::Arc;

/// A part of an object.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Part<T> {
    /// Not written.
    #[default]
    Absent,
    /// Written, and it cannot be read. The problem is reported.
    Bad,
    /// Read, with something in it that nobody knows. The problem is reported.
    Flawed(T),
    /// Read whole.
    Whole(T),
}

impl<T> Part<T> {
    /// What was read, flawed or not.
    #[must_use]
    pub const fn value(&self) -> Option<&T> {
        match self {
            Self::Flawed(value) | Self::Whole(value) => Some(value),
            Self::Absent | Self::Bad => None,
        }
    }

    /// Whether nothing of it is in doubt.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        matches!(self, Self::Absent | Self::Whole(_))
    }

    /// Whether it was not written.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// The same part of another type.
    #[must_use]
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Part<U> {
        match self {
            Self::Absent => Part::Absent,
            Self::Bad => Part::Bad,
            Self::Flawed(value) => Part::Flawed(f(value)),
            Self::Whole(value) => Part::Whole(f(value)),
        }
    }
}

/// Which kind a [`PolicyObject`] was given as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyKind {
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
    /// `policy.sluice.dev/v1alpha1`.
    L7NetworkPolicy,
}

impl PolicyKind {
    /// The kind as Kubernetes writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::L7NetworkPolicy => "L7NetworkPolicy",
        }
    }
}

/// One policy.
#[derive(Clone, Debug)]
pub struct PolicyObject {
    /// Its kind.
    pub kind: PolicyKind,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Its place.
    pub source: Source,
    /// False: something about the whole object is in doubt, so that none of its allows may be granted.
    pub sound: bool,
    /// False: reading it found an error somewhere, if only in one rule.
    pub clean: bool,
    /// `spec.podSelector`.
    pub pod_selector: Part<LabelSelector>,
    /// `spec.policyTypes`.
    pub policy_types: Part<Vec<String>>,
    /// `spec.mode`; enforcing where it cannot be read.
    pub mode: Mode,
    /// `spec.denyAction`.
    pub deny_action: DenyAction,
    /// `spec.denyDetail`; nothing is told where it cannot be read.
    pub deny_detail: DenyDetail,
    /// `spec.isolation`.
    pub isolation: Part<IsolationScope>,
    /// `spec.ingress`.
    pub ingress: RuleSection,
    /// `spec.egress`.
    pub egress: RuleSection,
    /// `spec.ingressDeny`.
    pub ingress_deny: RuleSection,
    /// `spec.egressDeny`.
    pub egress_deny: RuleSection,
}

impl PolicyObject {
    /// Takes everything that was not read on the closed side: the text broke off, and what would have followed
    /// nobody knows.
    pub(crate) fn close(&mut self) {
        self.sound = false;
        if self.pod_selector.is_absent() {
            self.pod_selector = Part::Bad;
        }
        if self.policy_types.is_absent() {
            self.policy_types = Part::Bad;
        }
        if self.kind == PolicyKind::L7NetworkPolicy {
            if self.isolation.is_absent() {
                self.isolation = Part::Bad;
            }
            (self.ingress_deny, self.egress_deny) = (Part::Bad, Part::Bad);
        }
    }
}

/// A list of rules.
pub type RuleSection = Part<Vec<RuleObject>>;

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleObject {
    /// Its place, as `spec.ingress[0]`.
    pub path: String,
    /// False: something in it belongs to no known part.
    pub sound: bool,
    /// `name`.
    pub name: Option<Arc<str>>,
    /// `from` or `to`.
    pub peers: Part<Vec<Part<Peer>>>,
    /// `ports`.
    pub ports: Part<Vec<Part<Port>>>,
    /// `rules`.
    pub rules: Part<Rules>,
}

/// `rules` of a rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// `http`.
    pub http: Part<Vec<Part<HttpRule>>>,
    /// `grpc`.
    pub grpc: Part<Vec<Part<GrpcRule>>>,
    /// `tls`.
    pub tls: Part<TlsRules>,
}
