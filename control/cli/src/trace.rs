//! `explain --trace`: what the walk saw, for people and for programs.
//!
//! Both forms are made of one view, so that they say the same. Knows nothing of how a verdict is reached.

use crate::places::Places;
use serde::Serialize;
use sluice_compile::query::{Cluster, Note, Standing};
use sluice_crd::Plain;
use sluice_policy::trace::{Listed, RuleResult, Stage, StageEnd, Trace, TracedRule};
use sluice_policy::{
    ClassId, Effect, Identity, LayerKind, Miss, Reason, SideVerdict, Snapshot, StageKind, TierAction,
};
use std::fmt::Write as _;

/// Width of the text: what every terminal has.
const WIDTH: usize = 80;

/// What stands before a rule's name, and before the lines that belong to it.
const RULE_INDENT: usize = 4;
const DETAIL_INDENT: usize = RULE_INDENT + 9;

/// One stage.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StageView {
    #[serde(skip)]
    kind: StageKind,
    stage: &'static str,
    result: StageResult,
    #[serde(skip_serializing_if = "Option::is_none")]
    isolated_by: Option<String>,
    /// The audited policy that would isolate a silent layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    would_isolate: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rules: Vec<RuleView>,
    /// Rules that are not listed; none of them came nearer than those that are.
    #[serde(skip_serializing_if = "is_zero")]
    more: usize,
}

/// What a stage came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum StageResult {
    /// A rule allows, or accepts.
    Allow,
    /// A rule denies, or the layer isolates and no rule of it allows.
    Deny,
    /// A rule passes the tier.
    Pass,
    /// No rule matches.
    Next,
    /// Nothing isolates.
    Silent,
    /// The verdict was certain before.
    NotAsked,
}

/// One rule.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RuleView {
    policy: String,
    rule: String,
    #[serde(skip)]
    effect: Effect,
    action: &'static str,
    result: RuleWord,
    #[serde(skip_serializing_if = "Option::is_none")]
    miss: Option<String>,
    /// It has conditions on what is said, and the question says nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    awaits_request: bool,
    /// Its policy is audited: it takes no part.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    audited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
}

/// What a rule came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum RuleWord {
    /// It is the first that matches.
    Decides,
    /// It matches, and has no say.
    Matches,
    /// Of those that do not match the one that came nearest, where one was needed.
    Nearest,
    /// Each request decides whether it matches.
    Waits,
    /// It does not match.
    Misses,
}

impl RuleWord {
    /// Of a rule that plays no part of its own.
    fn plain(result: &RuleResult) -> Self {
        match result {
            RuleResult::Matched => Self::Matches,
            RuleResult::Missed(Miss::NoRequest) => Self::Waits,
            RuleResult::Missed(_) => Self::Misses,
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// The view of one side.
#[derive(Debug)]
pub(crate) struct SideView {
    /// Who the other end was taken for.
    pub(crate) peer: String,
    pub(crate) stages: Vec<StageView>,
}

/// What must be known of a policy that selects the endpoint, beside its rules.
#[derive(Debug, Serialize)]
pub(crate) struct NoteView {
    policy: String,
    standing: &'static str,
    #[serde(skip)]
    words: &'static str,
}

/// The notes of one end of the question.
pub(crate) fn notes(who: &str, shown: &Shown<'_>) -> Vec<NoteView> {
    let view = |note: &Note<'_>| {
        let (standing, words) = match note.standing {
            Standing::NotAccepted => {
                ("not_accepted", "has errors; what is wrong in it is judged on the closed side")
            }
            Standing::NotEnforced => ("not_enforced", "selects this pod and is not in force for it"),
            Standing::Off => ("off", "is switched off by the rollout"),
        };
        NoteView { policy: note.origin.to_string(), standing, words }
    };
    shown.cluster.notes(who).iter().map(view).collect()
}

/// The view of one side.
pub(crate) fn view(trace: &Trace, shown: &Shown<'_>) -> SideView {
    let asked = trace.stages.iter().map(|stage| StageView::new(stage, shown.places));
    let not_asked = trace.not_asked.iter().map(|kind| StageView {
        kind: *kind,
        stage: name(*kind),
        result: StageResult::NotAsked,
        isolated_by: None,
        would_isolate: None,
        rules: Vec::new(),
        more: 0,
    });
    SideView { peer: peer(trace.peer, shown.cluster.snapshot()), stages: asked.chain(not_asked).collect() }
}

/// What a trace is shown with.
#[derive(Clone, Copy)]
pub(crate) struct Shown<'c> {
    pub(crate) cluster: &'c Cluster,
    pub(crate) places: &'c Places,
}

/// A class as people read it: `shop/default{app=cart} in 10.0.0.0/8`.
fn peer(ClassId(id): ClassId, snapshot: &Snapshot) -> String {
    let class = snapshot.classes.get(id as usize);
    let who = match class.map(|class| &class.identity) {
        None | Some(Identity::Missing | Identity::Vacant) => "nobody knows".to_owned(),
        Some(Identity::Workload(canonical)) => canonical.to_string(),
        Some(Identity::Node(name)) if name.is_empty() => "a node".to_owned(),
        Some(Identity::Node(name)) => format!("node {name}"),
        Some(Identity::World) => "outside the cluster".to_owned(),
    };
    let cidrs = class.map(|class| class.cidrs.join(", ")).filter(|cidrs| !cidrs.is_empty());
    cidrs.map_or(who.clone(), |cidrs| format!("{who} in {cidrs}"))
}

const fn name(kind: StageKind) -> &'static str {
    match kind {
        StageKind::Admin => "Admin",
        StageKind::Host => "Host",
        StageKind::Deny => "Deny",
        StageKind::Layer(LayerKind::K) => "K",
        StageKind::Layer(LayerKind::L) => "L",
        StageKind::Baseline => "Baseline",
    }
}

const fn action(effect: Effect) -> &'static str {
    match effect {
        Effect::Allow => "Allow",
        Effect::Deny => "Deny",
        Effect::Tier(action) => action.as_str(),
    }
}

impl StageView {
    fn new(stage: &Stage, places: &Places) -> Self {
        let result = match (stage.end, stage.deciding().map(|rule| rule.effect)) {
            (_, Some(Effect::Deny | Effect::Tier(TierAction::Deny))) | (StageEnd::Refused(_), _) => {
                StageResult::Deny
            }
            (_, Some(Effect::Allow | Effect::Tier(TierAction::Accept))) => StageResult::Allow,
            (_, Some(Effect::Tier(TierAction::Pass))) => StageResult::Pass,
            (_, None) if stage.kind == StageKind::Host => StageResult::Allow,
            (_, None) if stage.is_silent() => StageResult::Silent,
            (_, None) => StageResult::Next,
        };
        let (decides, nearest) = match stage.end {
            StageEnd::Decided(place) | StageEnd::Supposed(place) => (Some(place), None),
            StageEnd::Refused(nearest) => (None, nearest),
            StageEnd::Next => (None, None),
        };
        let word = |place: usize, rule: &TracedRule| match rule.result {
            _ if decides == Some(place) => RuleWord::Decides,
            _ if nearest == Some(place) => RuleWord::Nearest,
            _ => RuleWord::plain(&rule.result),
        };
        let taking = |listed: &Listed| -> Vec<RuleView> {
            let rules = listed.rules.iter().enumerate();
            rules.map(|(place, rule)| RuleView::new(rule, word(place, rule), false, places)).collect()
        };
        let audited = stage
            .audited
            .rules
            .iter()
            .map(|rule| RuleView::new(rule, RuleWord::plain(&rule.result), true, places));
        let mut rules = taking(&stage.rules);
        rules.extend(audited);
        Self {
            kind: stage.kind,
            stage: name(stage.kind),
            result,
            isolated_by: stage.isolated_by.as_ref().map(|policy| policy.origin.to_string()),
            would_isolate: stage.would_isolate.as_ref().map(|policy| policy.origin.to_string()),
            rules,
            more: stage.rules.more + stage.audited.more,
        }
    }

    /// The line over its rules.
    fn heading(&self) -> String {
        let stage = match self.kind {
            StageKind::Admin => "Admin tier",
            StageKind::Host => "own node",
            StageKind::Deny => "deny rules",
            StageKind::Layer(LayerKind::K) => "layer K (who may connect)",
            StageKind::Layer(LayerKind::L) => "layer L (what they may say)",
            StageKind::Baseline => "Baseline tier",
        };
        let result = match (self.result, &self.isolated_by) {
            (StageResult::Allow, Some(policy)) => format!("allows; {policy} isolates"),
            (StageResult::Deny, Some(policy)) => format!("refuses; {policy} isolates"),
            (StageResult::Allow, None) if self.kind == StageKind::Host => {
                "allows; the node reaches the pods that run on it".to_owned()
            }
            (StageResult::Allow, None) => "accepts".to_owned(),
            (StageResult::Deny, None) => "denies".to_owned(),
            (StageResult::Pass, _) if self.rules.iter().any(RuleView::is_supposed) => {
                "passes if the request matches; after that".to_owned()
            }
            (StageResult::Pass, _) => "passes".to_owned(),
            (StageResult::Next, _) => "no rule matches".to_owned(),
            (StageResult::Silent, _) => match &self.would_isolate {
                Some(policy) => format!("silent; {policy} would isolate, and is audited"),
                None => "silent; no policy isolates".to_owned(),
            },
            (StageResult::NotAsked, _) => "not asked".to_owned(),
        };
        format!("{stage}: {result}")
    }
}

impl RuleView {
    fn new(rule: &TracedRule, result: RuleWord, audited: bool, places: &Places) -> Self {
        Self {
            policy: rule.policy.origin.to_string(),
            rule: rule.name.to_string(),
            effect: rule.effect,
            action: action(rule.effect),
            result,
            miss: match &rule.result {
                RuleResult::Matched => None,
                RuleResult::Missed(miss) => Some(miss.to_string()),
            },
            awaits_request: rule.awaits_request,
            audited,
            at: places.rule(&rule.policy, &rule.name),
        }
    }

    /// A Pass of which only a request can say whether it holds.
    fn is_supposed(&self) -> bool {
        let passes = self.effect == Effect::Tier(TierAction::Pass);
        passes && self.result == RuleWord::Decides && self.awaits_request
    }

    fn write(&self, out: &mut String) {
        let word = match self.result {
            RuleWord::Decides => "decides",
            RuleWord::Matches => "matches",
            RuleWord::Nearest => "nearest",
            RuleWord::Waits => "waits",
            RuleWord::Misses => "misses",
        };
        let action = match self.effect {
            Effect::Tier(action) => format!(" ({})", action.as_str()),
            Effect::Allow | Effect::Deny => String::new(),
        };
        let head = format!("{word:<7}  {} rule {}{action}", self.policy, self.rule);
        wrap(out, RULE_INDENT, DETAIL_INDENT, &head);
        let audited = self.audited.then_some("audited: takes no part");
        let awaits =
            (self.awaits_request && self.miss.is_none()).then_some("has conditions, asked of each request");
        for line in self.miss.as_deref().into_iter().chain(awaits).chain(audited).chain(self.at.as_deref()) {
            wrap(out, DETAIL_INDENT, DETAIL_INDENT + 2, &Plain(line).to_string());
        }
    }
}

/// One side for people. `who` is its endpoint.
pub(crate) fn text(
    direction: &str,
    who: &str,
    side: &SideVerdict,
    trace: Option<&SideView>,
    notes: &[NoteView],
) -> String {
    let mut out = String::new();
    wrap(
        &mut out,
        0,
        2,
        &format!("{direction} of {who}: {}, {}", side.outcome().as_str(), side.reason.as_str()),
    );
    for note in notes {
        wrap(&mut out, 2, 4, &format!("note: {} {}", note.policy, note.words));
    }
    let Some(SideView { peer, stages }) = trace else {
        let why = match side.reason {
            Reason::IdentityMissing => "several pods claim the address, so that nobody is known by it",
            _ => "not judged: it is no pod of the dataplane, or its own peer",
        };
        wrap(&mut out, 2, 4, why);
        return out;
    };
    wrap(&mut out, 2, 4, &format!("peer: {}", Plain(peer)));
    for stage in stages {
        wrap(&mut out, 2, 4, &stage.heading());
        for rule in &stage.rules {
            rule.write(&mut out);
        }
        if stage.more > 0 {
            let _ = writeln!(out, "{:RULE_INDENT$}and {} more that came no nearer", "", stage.more);
        }
    }
    out
}

/// Writes words into lines of [`WIDTH`], as far as a single word lets them.
fn wrap(out: &mut String, first: usize, rest: usize, text: &str) {
    let mut line = " ".repeat(first);
    let mut empty = true;
    for word in text.split(' ') {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            out.push_str(line.trim_end());
            out.push('\n');
            line = " ".repeat(rest);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    out.push_str(line.trim_end());
    out.push('\n');
}
