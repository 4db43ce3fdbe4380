//! What the status of a policy should be: from what a reading of the objects says of it, and what the nodes say of
//! what they have in force.
//!
//! Pure: time comes in as an argument. What is not known is not said to be in force: a policy is programmed when every
//! node with a pod of it has acknowledged a snapshot of it, with every such pod attached, and was heard of within
//! `sluice_wire::STALE_AFTER`. Called by the report.

use crate::nodes::{InForce, Nodes};
use crate::write::facts::{Facts, Since};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use sluice_crd::{EffectiveMode, NodeCounts, PolicyStatus};
use sluice_wire::STALE_AFTER;
use std::time::Instant;

/// The two conditions of ours; others' are theirs.
pub const ACCEPTED: &str = "Accepted";
/// See [`ACCEPTED`].
pub const PROGRAMMED: &str = "Programmed";

/// Nodes that a message names; the others are counted.
const NAMED: usize = 5;
/// Of one reason so much is said, in bytes: it comes from nodes.
const REASON_BYTES: usize = 300;
/// Of a problem likewise: it quotes the policy. A status is read at a glance; the whole is in control's status file.
const PROBLEM_BYTES: usize = 700;

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody knows.
    Unknown,
}

impl Holds {
    const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// A condition, before anybody has asked since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Whether it holds.
    pub holds: Holds,
    /// Why, in one word.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
}

impl Said {
    fn new(holds: Holds, reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds, reason, message: message.into() }
    }
}

/// What is known of a policy on the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Whether its author's words could be taken.
    pub accepted: Said,
    /// Whether it is in force.
    pub programmed: Said,
    /// On how many of how many nodes.
    pub nodes: NodeCounts,
    /// Some node has never been heard of by this control: whatever was said of it before may still hold.
    pub unheard: bool,
}

/// What is known of a policy. Without `since`, no reading of it was published.
#[must_use]
pub fn known(facts: &Facts, since: Option<Since>, nodes: &Nodes, now: Instant) -> Known {
    let tally = Tally::of(facts, since, nodes, now);
    let counts = NodeCounts { desired: count(tally.desired), programmed: count(tally.programmed) };
    let programmed = unjudged(facts).unwrap_or_else(|| tally.said(facts));
    Known { accepted: accepted(facts), programmed, nodes: counts, unheard: tally.unheard }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn accepted(facts: &Facts) -> Said {
    let mut message: Vec<String> = facts.problems.iter().map(|problem| cut(problem, PROBLEM_BYTES)).collect();
    if facts.more > 0 {
        message.push(format!("and {} more", facts.more));
    }
    let said = message.join("; ");
    match (facts.read, facts.accepted) {
        (false, _) if said.is_empty() => Said::new(Holds::False, "NotRead", "it could not be read"),
        (false, _) => Said::new(Holds::False, "NotRead", format!("not in force: {said}")),
        // Judged as written: what cannot be read grants nothing, and denies no less.
        (true, false) => Said::new(Holds::False, "Invalid", format!("in force, fail closed: {said}")),
        (true, true) if said.is_empty() => Said::new(Holds::True, "Accepted", ""),
        (true, true) => Said::new(Holds::True, "Accepted", format!("warning: {said}")),
    }
}

/// What is said of a policy that no node has anything to do for.
fn unjudged(facts: &Facts) -> Option<Said> {
    let Facts { selected, host, outside, off, .. } = *facts;
    if !facts.read {
        return Some(Said::new(Holds::False, "NotRead", "not in force: it could not be read"));
    }
    if selected == 0 && host > 0 {
        let message =
            format!("it is in force nowhere: {host} pods with its labels are on their node's network");
        return Some(Said::new(Holds::False, "NotEnforced", message));
    }
    if selected == 0 {
        return Some(Said::new(Holds::True, "NoPods", "no pod is selected: there is nothing to do"));
    }
    if !facts.judged.is_empty() {
        return None;
    }
    match (off, outside) {
        (0, 0) => Some(Said::new(Holds::True, "NoPods", "no selected pod is on a node yet")),
        (_, 0) => Some(Said::new(Holds::False, "Off", left_out(facts))),
        _ => Some(Said::new(Holds::False, "NotEnforced", left_out(facts))),
    }
}

/// Which of the selected pods are not judged, and why.
fn left_out(Facts { selected, outside, off, .. }: &Facts) -> String {
    let mut parts = Vec::new();
    if *outside > 0 {
        parts.push(format!(
            "{outside} of {selected} selected pods are not in the dataplane (their namespaces lack the label \
             sluice.dev/dataplane=enabled)"
        ));
    }
    if *off > 0 {
        parts.push(format!(
            "{off} of {selected} selected pods are in namespaces that are off (sluice.dev/enforcement, or the \
             cluster's cap)"
        ));
    }
    parts.join("; ")
}

/// What the nodes say of a policy.
#[derive(Default)]
struct Tally {
    desired: usize,
    programmed: usize,
    /// The newest generation among those on which it is in force.
    generation: u64,
    not: Vec<String>,
    silent: Vec<String>,
    waiting: Vec<String>,
    unheard: bool,
}

impl Tally {
    fn of(facts: &Facts, since: Option<Since>, nodes: &Nodes, now: Instant) -> Self {
        let mut tally = Self { desired: facts.judged.len(), ..Self::default() };
        for (name, pods) in &facts.judged {
            let name = name.to_string();
            let Some(since) = since else {
                tally.waiting.push(name);
                continue;
            };
            match nodes.get(&name).map(|node| node.has_in_force(since.reading, pods, now)) {
                Some(InForce::Since(generation)) => {
                    tally.programmed += 1;
                    tally.generation = tally.generation.max(generation);
                }
                Some(InForce::NotYet) => {
                    tally.unheard |= nodes.get(&name).is_some_and(|node| !node.has_spoken());
                    tally.waiting.push(name);
                }
                Some(InForce::Not(reason)) => {
                    tally.not.push(format!("{name}: {}", cut(&reason, REASON_BYTES)));
                }
                Some(InForce::Silent) => tally.silent.push(name),
                None => {
                    tally.unheard = true;
                    tally.silent.push(name);
                }
            }
        }
        tally
    }

    fn said(&self, facts: &Facts) -> Said {
        let Self { desired, programmed, generation, .. } = self;
        let mut message = format!("{programmed}/{desired} nodes");
        if *programmed > 0 {
            message += &format!(" at generation {generation}");
        }
        let silent = format!("not heard of for {} s: ", STALE_AFTER.as_secs());
        for (what, nodes) in [("", &self.not), (&silent, &self.silent), ("waiting for ", &self.waiting)] {
            if !nodes.is_empty() {
                message += &format!("; {what}{}", some(nodes));
            }
        }
        let left_out = left_out(facts);
        if !left_out.is_empty() {
            message += &format!("; {left_out}");
        }
        let (holds, reason) = if !self.not.is_empty() {
            (Holds::False, if *programmed > 0 { "PartiallyProgrammed" } else { "NotProgrammed" })
        } else if !self.silent.is_empty() {
            (Holds::Unknown, "NotHeardOf")
        } else if !self.waiting.is_empty() {
            (Holds::False, "Pending")
        } else if !left_out.is_empty() {
            (Holds::False, "PartiallyProgrammed")
        } else {
            (Holds::True, "Programmed")
        };
        Said { holds, reason, message }
    }
}

fn some(nodes: &[String]) -> String {
    let named = nodes.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match nodes.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// No more than so many bytes of a text.
fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    format!("{}…", &text[..end])
}

/// The status to be written over what is there. `young`: this control began so lately that nodes which it has not
/// heard of may be about to speak; what another said of them within that time is not taken back.
#[must_use]
pub fn status(
    facts: &Facts,
    known: &Known,
    since: Option<Since>,
    there: &PolicyStatus,
    young: bool,
    now: Timestamp,
) -> PolicyStatus {
    let observed = Some(facts.policy.generation);
    let mut status = PolicyStatus {
        observed_generation: observed,
        selected_pods: Some(count(facts.selected)),
        nodes: Some(known.nodes),
        effective_mode: Some(facts.mode),
        conditions: None,
    };
    let before = |kind: &str| there.conditions.iter().flatten().find(|condition| condition.type_ == kind);
    let condition = |kind: &str, said: &Said| Condition {
        type_: kind.to_owned(),
        status: said.holds.as_str().to_owned(),
        observed_generation: observed,
        reason: said.reason.to_owned(),
        message: said.message.clone(),
        last_transition_time: match before(kind) {
            Some(before) if before.status == said.holds.as_str() => before.last_transition_time.clone(),
            _ => Time(seconds(now)),
        },
    };
    let accepted = condition(ACCEPTED, &known.accepted);
    let mut programmed = condition(PROGRAMMED, &known.programmed);
    if let Some(before) = before(PROGRAMMED).filter(|before| before.observed_generation == observed) {
        let claim = there.nodes.is_some_and(|nodes| nodes.desired == known.nodes.desired);
        let same = there.effective_mode == status.effective_mode
            && there.selected_pods == status.selected_pods
            && before.status == Holds::True.as_str();
        let wait = young && known.unheard && ["Pending", "NotHeardOf"].contains(&known.programmed.reason);
        if wait && same && claim {
            programmed = before.clone();
            status.nodes = there.nodes;
        } else if same && known.programmed.holds == Holds::True && is_as_good(before, &programmed, since) {
            programmed.message.clone_from(&before.message);
        }
    }
    status.conditions = Some(vec![accepted, programmed]);
    status
}

/// Whether what is there says the same but for the generation, and of none that is too old: nodes get new ones many
/// times a second, and each would be a write for every policy.
fn is_as_good(before: &Condition, now: &Condition, since: Option<Since>) -> bool {
    let parts = |text: &str| {
        let (counts, generation) = text.split_once(" at generation ")?;
        Some((counts.to_owned(), generation.parse::<u64>().ok()?))
    };
    let (Some((counts, generation)), Some((counts_now, _))) = (parts(&before.message), parts(&now.message))
    else {
        return false;
    };
    before.reason == now.reason
        && counts == counts_now
        && since.is_some_and(|since| generation > since.generation)
}

fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// What of a status is ours, to be compared.
#[must_use]
pub fn ours(status: &PolicyStatus) -> PolicyStatus {
    let mut status = status.clone();
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| [ACCEPTED, PROGRAMMED].contains(&&*condition.type_));
        conditions.sort_by(|one, other| one.type_.cmp(&other.type_));
    }
    status
}

/// The mode as people write it.
#[must_use]
pub const fn mode_name(mode: EffectiveMode) -> &'static str {
    match mode {
        EffectiveMode::Enforce => "Enforce",
        EffectiveMode::Audit => "Audit",
        EffectiveMode::Off => "Off",
    }
}
