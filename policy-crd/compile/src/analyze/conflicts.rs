//! What the comparison of rules came to, as findings on the objects.
//!
//! Knows nothing of how rules are compared.

use super::codes::{self, Code};
use super::finding::{Findings, Related};
use super::overlap::{Cause, Idle, Overlaps, Why};
use super::views::{PolicyView, Rulebook};
use sluice_crd::Tier;
use sluice_policy::{Origin, Snapshot};
use std::collections::{BTreeSet, HashMap};

/// Most places of what decides in a rule's place that one finding shows.
const MAX_SHOWN: usize = 3;

/// Runs the checks of this file on an inhabited cluster. Says what could not be compared.
pub(super) fn check(
    snapshot: &Snapshot,
    policies: &[PolicyView<'_>],
    findings: &mut Findings,
) -> Option<String> {
    let book = Rulebook::new(policies);
    let mut overlaps = Overlaps::new(snapshot);
    for idle in overlaps.idle() {
        tell(&idle, &book, findings);
    }
    for (origin, rule) in overlaps.needless_passes() {
        let Some(source) = book.source(&origin) else { continue };
        let reason = "no later rule of the tier says anything about what this one passes";
        let remedy = "remove it, or put it before the rules that it shall leave out";
        findings.add(&codes::PASS_IDLE, source, &book.path(&origin, &rule), reason, remedy);
    }
    let places: HashMap<&Origin, (Tier, i32)> =
        policies.iter().filter_map(|policy| Some((&policy.origin, policy.tier?))).collect();
    for ((origin, rule), (other, theirs)) in overlaps.ties(|origin| places.get(origin).copied()) {
        let (Some(first), Some(second)) = (book.source(&origin), book.source(&other)) else { continue };
        let reason = format!(
            "{origin} has this priority, too: where their rules meet, the names decide which is asked first"
        );
        let related = vec![
            Related::new(second, &book.path(&other, &theirs), "this rule"),
            Related::new(first, &book.path(&origin, &rule), "meets this one, which does something else"),
        ];
        let remedy = "give one of them another priority";
        findings.add_with(&codes::TIE, second, "spec.priority", reason, remedy, related);
    }
    (!overlaps.is_complete()).then(|| "there are too many rules: not all are compared with each other".into())
}

fn tell(idle: &Idle, book: &Rulebook<'_>, findings: &mut Findings) {
    let (origin, rule) = &idle.rule;
    let Some(source) = book.source(origin) else { return };
    let base = book.path(origin, rule);
    let path = match &idle.alternative {
        Some(alternative) => format!("{base}.{alternative}"),
        None => base,
    };
    let whys: BTreeSet<Why> = idle.causes.iter().map(|(why, _)| *why).collect();
    let (code, reason, remedy) = said(idle.deny, &whys);
    // With isolation: ListedPorts an allow closes its ports, too, whatever it adds to others.
    if *code == codes::REDUNDANT && source.has("spec.isolation") {
        return;
    }
    let related = idle.causes.iter().take(MAX_SHOWN).filter_map(|(why, cause)| related(*why, cause, book));
    findings.add_with(code, source, &path, reason, remedy, related.collect());
}

/// The code, the reason and the remedy.
fn said(deny: bool, whys: &BTreeSet<Why>) -> (&'static Code, &'static str, &'static str) {
    let only = if whys.len() == 1 { whys.first() } else { None };
    match (only, deny) {
        (Some(Why::Denied), _) => (
            &codes::SHADOWED,
            "a deny takes everything that this allows: it allows nothing",
            "narrow the deny, or remove the allow",
        ),
        (Some(Why::Cancelled), _) => (
            &codes::L7_CANCELLED,
            "an allow without conditions lets everything through that this one limits",
            "narrow or remove the other rule: within a layer allows are a union",
        ),
        (Some(Why::Tier), true) => (
            &codes::TIER_DECIDES,
            "the Admin tier decides of everything that this denies: it denies nothing",
            "let the Admin rule Pass what namespaces shall decide, or remove the deny",
        ),
        (Some(Why::Tier), false) => (
            &codes::TIER_DECIDES,
            "the Admin tier decides of everything that this allows: it changes nothing",
            "let the Admin rule Pass what namespaces shall decide, or remove the allow",
        ),
        (Some(Why::Closed), _) => (
            &codes::CLOSED,
            "another layer lets nothing of this through: the rule opens nothing",
            "allow it there, too: NetworkPolicy and L7NetworkPolicy must both allow",
        ),
        (Some(Why::Covered), true) => (
            &codes::REDUNDANT,
            "what this denies is denied by another rule already",
            "remove it, unless it shall hold when the other goes",
        ),
        (Some(Why::Covered), false) => (
            &codes::REDUNDANT,
            "what this allows is allowed by another rule already",
            "remove it, unless it shall hold when the other goes",
        ),
        (Some(Why::Earlier) | None, _) => (
            &codes::UNREACHABLE,
            "other rules decide of everything that this matches",
            "put it before them, narrow them, or remove it",
        ),
    }
}

fn related(why: Why, (origin, rule): &Cause, book: &Rulebook<'_>) -> Option<Related> {
    let source = book.source(origin)?;
    let message = match why {
        Why::Tier => "this rule of the Admin tier decides",
        Why::Earlier => "this earlier rule takes it",
        Why::Denied => "this deny takes it",
        Why::Closed => "this isolates the pods, and allows none of it",
        Why::Cancelled => "this allows it, whatever is said",
        Why::Covered => "this says the same, or more",
    };
    let path = rule.as_ref().map_or_else(|| "spec".to_owned(), |rule| book.path(origin, rule));
    Some(Related::new(source, &path, message))
}
