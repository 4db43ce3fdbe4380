//! The two tiered kinds read piece by piece: every part says whether it was there, and whether it could be read.
//!
//! `ClusterNetworkPolicy` and `ClusterL7NetworkPolicy` share this form and differ in what a rule names. Knows
//! nothing of what a part means; whoever lowers it decides what a bad part costs, always on the closed side.

use crate::cluster_l7::{Action, Subject, Tier};
use crate::cluster_network::{ClusterPeer, ClusterProtocol};
use crate::l7::{DenyAction, DenyDetail, Mode};
use crate::object::Source;
use crate::policy::{Part, RuleObject};
use std::sync::Arc;

/// A `ClusterL7NetworkPolicy`.
pub type ClusterL7Object = TieredObject<RuleObject>;
/// A `ClusterNetworkPolicy`.
pub type ClusterNetworkObject = TieredObject<ClusterRuleObject>;

/// One policy of a tier.
#[derive(Clone, Debug)]
pub struct TieredObject<R> {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Its place.
    pub source: Source,
    /// False: something about the whole object is in doubt, so that nothing may be accepted or passed by it.
    pub sound: bool,
    /// False: reading it found an error somewhere, if only in one rule.
    pub clean: bool,
    /// `spec.tier`.
    pub tier: Part<Tier>,
    /// `spec.priority`.
    pub priority: Part<i32>,
    /// `spec.subject`.
    pub subject: Part<Subject>,
    /// `spec.mode`; enforcing where it cannot be read, and for a kind that has none.
    pub mode: Mode,
    /// `spec.denyAction`.
    pub deny_action: DenyAction,
    /// `spec.denyDetail`; nothing is told where it cannot be read.
    pub deny_detail: DenyDetail,
    /// `spec.ingress`.
    pub ingress: Part<Vec<TieredRule<R>>>,
    /// `spec.egress`.
    pub egress: Part<Vec<TieredRule<R>>>,
}

/// One rule and what it does.
#[derive(Clone, Debug, PartialEq)]
pub struct TieredRule<R> {
    /// `action`; never absent: a rule without one is bad.
    pub action: Part<Action>,
    /// Whom and what it names.
    pub rule: R,
}

/// What a rule of a `ClusterNetworkPolicy` names.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterRuleObject {
    /// Its place, as `spec.ingress[0]`.
    pub path: String,
    /// False: something in it belongs to no known part.
    pub sound: bool,
    /// `name`.
    pub name: Option<Arc<str>>,
    /// `from` or `to`.
    pub peers: Part<Vec<Part<ClusterPeer>>>,
    /// `protocols`.
    pub protocols: Part<Vec<Part<ClusterProtocol>>>,
}

impl<R> TieredObject<R> {
    /// Takes everything that was not read on the closed side: the text broke off, and what would have followed
    /// nobody knows.
    pub(crate) fn close(&mut self) {
        self.sound = false;
        if self.tier.is_absent() {
            self.tier = Part::Bad;
        }
        if self.priority.is_absent() {
            self.priority = Part::Bad;
        }
        if self.subject.is_absent() {
            self.subject = Part::Bad;
        }
        (self.ingress, self.egress) = (Part::Bad, Part::Bad);
    }
}
