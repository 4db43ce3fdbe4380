//! What decided, by its place on a side: how a row names its rule without holding it.
//!
//! And whether what is refused there is answered. Knows nothing of why; the [walk](crate::walk) does.

use crate::asked::Asked;
use crate::origin::{DenyAction, Policy, RuleName};
use crate::profile::{LayerKind, Rule, Side};
use std::sync::Arc;

/// What decided a connection, by its place in the list of its stage. Of one side, like the place itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Decider {
    /// A rule of the Admin tier.
    Admin(u32),
    /// A deny.
    Deny(u32),
    /// A rule of an allow layer.
    Allow(LayerKind, u32),
    /// That a policy isolates the endpoint, where nothing in the layer grants.
    Isolation(LayerKind, u32),
    /// A rule of the Baseline tier.
    Baseline(u32),
}

impl Side {
    /// The policy that decided, and its rule if it was one. `None` of what this side does not have.
    #[must_use]
    pub fn decided(&self, by: Decider) -> Option<(&Arc<Policy>, Option<&RuleName>)> {
        let layer = |kind| &self.layers[kind as usize];
        let rule: &Rule = match by {
            Decider::Admin(at) => &self.admin.get(at as usize)?.rule,
            Decider::Deny(at) => self.deny.get(at as usize)?,
            Decider::Allow(kind, at) => layer(kind).allow.get(at as usize)?,
            Decider::Isolation(kind, at) => {
                return layer(kind).isolation.get(at as usize).map(|isolation| (&isolation.policy, None));
            }
            Decider::Baseline(at) => &self.baseline.get(at as usize)?.rule,
        };
        Some((&rule.policy, Some(&rule.name)))
    }

    /// Whether a refusal is answered: as the policy of the rule that refuses says. Where none does, nothing grants,
    /// and one of all the policies that isolate the endpoint here, in either layer, is enough: whoever of them comes
    /// first has no more to say than the others.
    pub(crate) fn rejects(&self, by: Option<Decider>, asked: Asked<'_>) -> bool {
        let says = |policy: &Policy| policy.on_deny.action == DenyAction::Reject;
        match by {
            None => false,
            Some(Decider::Isolation(..)) => {
                asked.probe.is_none_or(|probe| probe.index().rejects)
                    && LayerKind::ALL.into_iter().any(|kind| self.isolation(kind, asked, says).is_some())
            }
            Some(rule) => self.decided(rule).is_some_and(|(policy, _)| says(policy)),
        }
    }
}

/// A place as a decider has it: no list has more.
pub(crate) fn place(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
