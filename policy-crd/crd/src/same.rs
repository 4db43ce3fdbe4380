//! Whether two objects say the same, wherever they stood.
//!
//! For whoever keeps what was made of an object: lowering reads everything of it but its place, which only problems
//! name. Knows nothing of what is kept.

use crate::cilium::{CiliumCidrGroupObject, CiliumPolicyObject};
use crate::object::Source;
use crate::policy::PolicyObject;
use crate::tiered::TieredObject;
use std::sync::Arc;

/// An object that was read from somewhere.
pub trait Placed {
    /// Its namespace, empty if it has none, and its name.
    fn key(&self) -> (Arc<str>, Arc<str>);

    /// Its place.
    fn source(&self) -> &Source;

    /// Whether the other one is the same but for its place.
    fn says_the_same(&self, other: &Self) -> bool;
}

// The patterns below name every field: a new one has to be thought of here.

impl Placed for PolicyObject {
    fn key(&self) -> (Arc<str>, Arc<str>) {
        (self.namespace.clone(), self.name.clone())
    }

    fn source(&self) -> &Source {
        &self.source
    }

    fn says_the_same(&self, other: &Self) -> bool {
        let Self {
            kind,
            namespace,
            name,
            source: _,
            sound,
            clean,
            pod_selector,
            policy_types,
            mode,
            deny_action,
            deny_detail,
            isolation,
            ingress,
            egress,
            ingress_deny,
            egress_deny,
        } = self;
        (kind, namespace, name, sound, clean)
            == (&other.kind, &other.namespace, &other.name, &other.sound, &other.clean)
            && (pod_selector, policy_types, mode) == (&other.pod_selector, &other.policy_types, &other.mode)
            && (deny_action, deny_detail, isolation)
                == (&other.deny_action, &other.deny_detail, &other.isolation)
            && (ingress, egress) == (&other.ingress, &other.egress)
            && (ingress_deny, egress_deny) == (&other.ingress_deny, &other.egress_deny)
    }
}

impl Placed for CiliumPolicyObject {
    fn key(&self) -> (Arc<str>, Arc<str>) {
        (self.namespace.clone(), self.name.clone())
    }

    fn source(&self) -> &Source {
        &self.source
    }

    fn says_the_same(&self, other: &Self) -> bool {
        let Self { kind, namespace, name, source: _, sound, clean, specs } = self;
        (kind, namespace, name, sound, clean, specs)
            == (&other.kind, &other.namespace, &other.name, &other.sound, &other.clean, &other.specs)
    }
}

impl Placed for CiliumCidrGroupObject {
    fn key(&self) -> (Arc<str>, Arc<str>) {
        ("".into(), self.name.clone())
    }

    fn source(&self) -> &Source {
        &self.source
    }

    fn says_the_same(&self, other: &Self) -> bool {
        let Self { name, labels, source: _, sound, external_cidrs } = self;
        (name, labels, sound, external_cidrs)
            == (&other.name, &other.labels, &other.sound, &other.external_cidrs)
    }
}

impl<R: PartialEq> Placed for TieredObject<R> {
    fn key(&self) -> (Arc<str>, Arc<str>) {
        ("".into(), self.name.clone())
    }

    fn source(&self) -> &Source {
        &self.source
    }

    fn says_the_same(&self, other: &Self) -> bool {
        let Self {
            name,
            source: _,
            sound,
            clean,
            tier,
            priority,
            subject,
            mode,
            deny_action,
            deny_detail,
            ingress,
            egress,
        } = self;
        (name, sound, clean, mode) == (&other.name, &other.sound, &other.clean, &other.mode)
            && (deny_action, deny_detail) == (&other.deny_action, &other.deny_detail)
            && (tier, priority, subject) == (&other.tier, &other.priority, &other.subject)
            && (ingress, egress) == (&other.ingress, &other.egress)
    }
}
