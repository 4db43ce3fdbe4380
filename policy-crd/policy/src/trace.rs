//! What a walk saw: stage by stage, every rule with what it came to. `explain` shows it.
//!
//! Written by the walk itself while it judges, so that trace and verdict cannot disagree. Costs what it costs:
//! nobody asks for it on the way of a packet. Knows nothing of texts or of who reads it.

use crate::asked::Effect;
use crate::class::ClassId;
use crate::index::SideIndex;
use crate::miss::Miss;
use crate::observe::{Observe, StageKind, Step, Visit};
use crate::origin::{Policy, RuleName};
use crate::port::Protocol;
use crate::profile::{Direction, Rule, Side};
use crate::snapshot::{Snapshot, Source};
use crate::verdict::{Connection, Facts, SideVerdict, Verdict};
use std::net::IpAddr;
use std::sync::Arc;

/// Most rules listed of one stage, of those that take part and of audited ones each: what people can still read.
/// Those that came nearest stay, and always the one that decides.
pub const MAX_LISTED: usize = 64;

/// How one side came to its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Who the other end was taken for.
    pub peer: ClassId,
    /// The stages in the order in which they were asked. The Admin tier comes more than once where a Pass waits for
    /// a request: both ways are walked.
    pub stages: Vec<Stage>,
    /// The stages that have rules and were not asked: the verdict was certain before.
    pub not_asked: Vec<StageKind>,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Which.
    pub kind: StageKind,
    /// Of an allow layer: the policy that isolates. `None`: the layer is silent, whatever its rules match.
    pub isolated_by: Option<Arc<Policy>>,
    /// Of a silent layer: the audited policy that would isolate.
    pub would_isolate: Option<Arc<Policy>>,
    /// Its rules.
    pub rules: Listed,
    /// The rules of audited policies, which take no part in the verdict.
    pub audited: Listed,
    /// What it came to.
    pub end: StageEnd,
}

/// Rules in their order, not all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// At most [`MAX_LISTED`].
    pub rules: Vec<TracedRule>,
    /// How many more there are; none of them came nearer than those listed.
    pub more: usize,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracedRule {
    /// Its policy.
    pub policy: Arc<Policy>,
    /// Its name.
    pub name: RuleName,
    /// What it does with what it matches.
    pub effect: Effect,
    /// Whether it matches, and if not, what it failed on.
    pub result: RuleResult,
    /// It has conditions on what is said, and nothing has been said yet.
    pub awaits_request: bool,
}

/// What a rule came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleResult {
    /// It matches.
    Matched,
    /// It does not.
    Missed(Miss),
}

/// What a stage came to. Places are those in [`Stage::rules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageEnd {
    /// This rule decides: it is the first that matches.
    Decided(usize),
    /// This Pass holds or not, as the request will say. What follows is the way if it holds.
    Supposed(usize),
    /// The layer isolates and no rule of it allows. The one that came nearest, if it has any.
    Refused(Option<usize>),
    /// It has no say.
    Next,
}

impl Stage {
    /// Whether it is an allow layer in which nothing isolates.
    #[must_use]
    pub const fn is_silent(&self) -> bool {
        matches!(self.kind, StageKind::Layer(_)) && self.isolated_by.is_none()
    }

    fn new(kind: StageKind) -> Self {
        let (rules, audited) = (Listed::default(), Listed::default());
        Self { kind, isolated_by: None, would_isolate: None, rules, audited, end: StageEnd::Next }
    }

    /// The rule that decides the stage.
    #[must_use]
    pub fn deciding(&self) -> Option<&TracedRule> {
        match self.end {
            StageEnd::Decided(place) | StageEnd::Supposed(place) => self.rules.rules.get(place),
            StageEnd::Refused(_) | StageEnd::Next => None,
        }
    }

    /// The rule that came nearest to allowing.
    #[must_use]
    pub fn nearest(&self) -> Option<&TracedRule> {
        match self.end {
            StageEnd::Refused(Some(place)) => self.rules.rules.get(place),
            _ => None,
        }
    }
}

impl TracedRule {
    /// Higher is worth more to whoever reads.
    fn rank(&self) -> u8 {
        match &self.result {
            RuleResult::Matched => u8::MAX,
            RuleResult::Missed(miss) => miss.depth(),
        }
    }
}

/// Writes the trace. `rules` stands beside [`Stage::rules`] of the last stage, rule by rule.
#[derive(Default)]
struct Recorder {
    stages: Vec<Stage>,
    rules: Vec<*const Rule>,
}

impl Recorder {
    fn place(&self, rule: &Rule) -> Option<usize> {
        self.rules.iter().position(|listed| std::ptr::eq(*listed, rule))
    }
}

/// Where a rule goes in a full list: in the place of the last of those that are worth least, if it is worth more.
fn make_room(listed: &mut Listed, next: &TracedRule) -> Option<usize> {
    listed.more += 1;
    let lowest = listed.rules.iter().map(TracedRule::rank).min()?;
    let last = listed.rules.iter().rposition(|rule| rule.rank() == lowest)?;
    (lowest < next.rank()).then_some(last)
}

impl Observe for Recorder {
    const EVERY_RULE: bool = true;

    fn stage(&mut self, kind: StageKind) {
        self.rules.clear();
        self.stages.push(Stage::new(kind));
    }

    fn isolation(&mut self, by: Option<&Arc<Policy>>, audited: Option<&Arc<Policy>>) {
        if let Some(stage) = self.stages.last_mut() {
            (stage.isolated_by, stage.would_isolate) = (by.cloned(), audited.cloned());
        }
    }

    fn rule(&mut self, visit: &Visit<'_>) {
        let Some(stage) = self.stages.last_mut() else { return };
        let Visit { rule, effect, taken, matched, asked } = *visit;
        let traced = TracedRule {
            policy: rule.policy.clone(),
            name: rule.name.clone(),
            effect,
            result: match rule.miss(effect, asked) {
                _ if matched => RuleResult::Matched,
                miss => RuleResult::Missed(miss.unwrap_or(Miss::NoCondition)),
            },
            awaits_request: rule.conditions.is_some() && matches!(asked.facts, Facts::Connection),
        };
        let listed = if taken { &mut stage.rules } else { &mut stage.audited };
        if listed.rules.len() == MAX_LISTED {
            let Some(place) = make_room(listed, &traced) else { return };
            listed.rules.remove(place);
            if taken {
                self.rules.remove(place);
            }
        }
        listed.rules.push(traced);
        if taken {
            self.rules.push(rule);
        }
    }

    fn step(&mut self, step: Step<'_>) {
        let end = match step {
            Step::By(rule) => self.place(rule).map_or(StageEnd::Next, StageEnd::Decided),
            Step::Supposing(rule) => self.place(rule).map_or(StageEnd::Next, StageEnd::Supposed),
            Step::Refused(nearest) => StageEnd::Refused(nearest.and_then(|rule| self.place(rule))),
            Step::Next => StageEnd::Next,
        };
        if let Some(stage) = self.stages.last_mut() {
            stage.end = end;
        }
    }
}

impl Side {
    /// Judges as [`judge`](Self::judge) does, in the same walk, and tells what it saw.
    #[must_use]
    pub fn trace(&self, connection: &Connection, facts: Facts<'_>) -> (SideVerdict, Trace) {
        self.trace_by(None, connection, facts)
    }

    /// The same; what is not shown, of audited policies, is found through the side's index.
    pub(crate) fn trace_by(
        &self,
        index: Option<&SideIndex>,
        connection: &Connection,
        facts: Facts<'_>,
    ) -> (SideVerdict, Trace) {
        let mut recorder = Recorder::default();
        let verdict = self.judge_watched(index, connection, facts, &mut recorder);
        let stages = recorder.stages;
        let asked = |kind: &StageKind| stages.iter().any(|stage| stage.kind == *kind);
        let not_asked = self.stages_with_rules().into_iter().filter(|kind| !asked(kind)).collect();
        (verdict, Trace { peer: connection.peer, stages, not_asked })
    }
}

/// Both sides of a verdict, with what the walk saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// The verdict.
    pub verdict: Verdict,
    /// The source's egress side; `None` where nothing is judged.
    pub egress: Option<Trace>,
    /// The destination's ingress side; `None` where nothing is judged.
    pub ingress: Option<Trace>,
}

impl Snapshot {
    /// Judges as [`judge`](Self::judge) does, in the same walk, and tells what it saw.
    #[must_use]
    pub fn trace(
        &self,
        source: impl Into<Source>,
        destination: IpAddr,
        protocol: Protocol,
        port: u16,
        facts: Facts<'_>,
    ) -> Traced {
        let (mut egress, mut ingress) = (None, None);
        let verdict =
            self.both(source.into(), destination, (protocol, port), |direction, side, connection| {
                let (verdict, trace) = side.trace(connection, facts);
                match direction {
                    Direction::Egress => egress = Some(trace),
                    Direction::Ingress => ingress = Some(trace),
                }
                verdict
            });
        Traced { verdict, egress, ingress }
    }
}
