//! Who watches a walk: nobody, on the hot path, or the one who explains it afterwards.
//!
//! Told of each stage, of each rule and of what came of them. Decides nothing: a walk comes to the same whoever
//! watches. The walk calls it; [`trace`](crate::trace) listens.

use crate::asked::{Asked, Effect};
use crate::origin::Policy;
use crate::profile::{LayerKind, Rule};
use std::sync::Arc;

/// A stage of the walk over one side, in the order in which they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StageKind {
    /// The Admin tier.
    Admin,
    /// The endpoint's own node asks: it passes, and nothing else is asked.
    Host,
    /// The deny rules of namespaced policies.
    Deny,
    /// An allow layer.
    Layer(LayerKind),
    /// The Baseline tier, in place of a silent layer K.
    Baseline,
}

/// What a stage came to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step<'a> {
    /// This rule decided: an allow, a deny, an Accept or a Pass.
    By(&'a Rule),
    /// This rule passes the tier if its condition holds, which only a request can say: both ways are walked.
    Supposing(&'a Rule),
    /// The layer isolates, and none of its rules grants. The rule that came nearest, if there is any.
    Refused(Option<&'a Rule>),
    /// Nothing here has a say: on to the next.
    Next,
}

/// One rule, asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visit<'a> {
    /// The rule.
    pub(crate) rule: &'a Rule,
    /// What it does with what it matches.
    pub(crate) effect: Effect,
    /// Whether its policy takes part in this walk.
    pub(crate) taken: bool,
    /// Whether it matches: what the walk itself goes by. Of a rule that is not taken, only if every rule is wanted.
    pub(crate) matched: bool,
    /// What it was asked.
    pub(crate) asked: Asked<'a>,
}

/// Watches a walk.
pub(crate) trait Observe {
    /// Whether stages show every rule. Otherwise they may leave out those that cannot match, and all after the one
    /// that decides.
    const EVERY_RULE: bool;

    /// A stage begins.
    fn stage(&mut self, _kind: StageKind) {}

    /// The layer that has begun: isolated by this policy, or silent. Then the audited policy that would isolate it.
    fn isolation(&mut self, _by: Option<&Arc<Policy>>, _audited: Option<&Arc<Policy>>) {}

    /// A rule of the stage, in order.
    fn rule(&mut self, _visit: &Visit<'_>) {}

    /// The stage is over.
    fn step(&mut self, _step: Step<'_>) {}
}

/// Nobody watches. Costs nothing.
pub(crate) struct Nobody;

impl Observe for Nobody {
    const EVERY_RULE: bool = false;
}
