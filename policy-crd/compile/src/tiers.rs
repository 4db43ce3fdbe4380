//! The two tiered kinds into rules of a tier, with a problem for what cannot be said.
//!
//! What is in doubt costs the closed side, and in a tier that takes more care than elsewhere, for a rule that is
//! left out hands its traffic to the next one:
//! - an Accept in doubt is left out. Nothing lets more through than an Accept does, so that whatever comes next
//!   grants no more;
//! - a Deny in doubt loses the doubtful limit and denies more;
//! - a Pass in doubt denies, as upstream has it ("treat the rule as a 'Deny all' rule"): left out, it would hand
//!   its traffic to a later Accept, and kept, it would take it past a later Deny;
//! - what stands in doubt as a whole accepts and passes nothing. A subject that cannot be read is every pod, a tier
//!   that cannot be read is Admin, a priority that cannot be read is before every other.
//!
//! Knows nothing of pods or addresses.

use crate::cluster_peers;
use crate::conditions::{self, Lowered};
use crate::lower::{self, IsolationIr, PolicyIr, RuleIr, SideIr, warn_of_udp};
use crate::lowering::LoweredPolicy;
use crate::peers::{self, PeerItem, Peers, Ports, Whose};
use crate::ports;
use crate::report::Report;
use crate::rollout::Rollout;
use crate::selector::Selector;
use crate::subjects::Subjects;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use sluice_crd::limits::{MAX_PRIORITY, MAX_RULE_NAME};
use sluice_crd::{
    Action, ClusterL7Object, ClusterNetworkObject, ClusterRuleObject, Objects, Part, Problem, RuleObject,
    Subject, Tier, TieredObject, TieredRule,
};
use sluice_policy::{Kind, LayerKind, Mode, Origin, RuleName};
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

const OBJECT_CLOSED: &str = "the policy accepts and passes nothing, and denies to every pod";
const ACCEPT_CLOSED: &str = "the rule accepts nothing";
const DENY_CLOSED: &str = "the rule denies as if this did not limit it";
const PASS_CLOSED: &str = "the rule denies, as if this did not limit it, and passes nothing";

/// Where a policy of a tier stands, and what its rules do.
#[derive(Clone, Debug)]
pub(crate) struct Tiered {
    pub(crate) tier: Tier,
    /// The lower is asked first; `None` before all others.
    pub(crate) priority: Option<u16>,
    /// The namespaces of the pods it is for, by their labels.
    pub(crate) namespaces: Selector,
    /// Of those, the ones that this copy of the policy is for, by name: see [`by_mode`].
    pub(crate) members: BTreeSet<Arc<str>>,
    /// The action of each rule, by [`Direction`]'s number.
    pub(crate) actions: [Vec<Action>; 2],
}

/// One rule of a tier.
#[derive(Debug)]
struct TierRuleIr {
    action: Action,
    rule: RuleIr,
}

/// The order in which policies are asked. Of a tier the lower priority first; upstream leaves open which of two with
/// one priority comes first, here the name decides, then the kind.
pub(crate) fn order(a: &PolicyIr, b: &PolicyIr) -> Ordering {
    let place = |policy: &PolicyIr| policy.tiered.as_ref().map(|tiered| (tiered.tier, tiered.priority));
    let name = |policy: &PolicyIr| policy.tiered.as_ref().map(|_| policy.origin.name.clone());
    (place(a), name(a), &a.origin).cmp(&(place(b), name(b), &b.origin))
}

/// Finds the namespaces of every policy of several, and its mode. The label of a namespace has a say over all but the
/// Admin tier, so that such a policy has one copy for each mode that it has somewhere.
pub(crate) fn by_mode(
    policies: Vec<LoweredPolicy>,
    subjects: &Subjects<'_>,
    rollout: Rollout,
) -> Vec<(LoweredPolicy, Option<Mode>)> {
    let mut out = Vec::with_capacity(policies.len());
    for policy in policies {
        let LoweredPolicy { id, ir } = &policy;
        if ir.members().is_none() {
            let mode = rollout.mode(subjects.namespace(&ir.origin.namespace), ir.mode);
            out.push((policy, mode));
            continue;
        }
        let asked = ir.tiered.as_ref().is_none_or(|tiered| tiered.tier == Tier::Baseline);
        let mut modes: Vec<(Option<Mode>, BTreeSet<Arc<str>>)> = Vec::new();
        for (name, entry) in subjects.namespaces(ir) {
            let mode = rollout.mode(asked.then_some(entry), ir.mode);
            match modes.iter_mut().find(|(known, _)| *known == mode) {
                Some((_, members)) => {
                    members.insert(name.clone());
                }
                None => modes.push((mode, BTreeSet::from([name.clone()]))),
            }
        }
        if modes.is_empty() {
            modes.push((rollout.mode(None, ir.mode), BTreeSet::new()));
        }
        for (mode, found) in modes {
            let mut copy = PolicyIr::clone(ir);
            match &mut copy.tiered {
                Some(tiered) => tiered.members = found,
                None => copy.wide = Some(found),
            }
            out.push((LoweredPolicy { id: *id, ir: Arc::new(copy) }, mode));
        }
    }
    out
}

/// What a rule names, lowered; `None` where something in it is in doubt.
pub(crate) struct Named {
    peers: Option<Peers>,
    ports: Option<Ports>,
    conditions: Lowered,
}

/// A rule of one of the two kinds.
trait Rule {
    const KIND: Kind;
    /// Whether two rules of a policy may not have one name.
    const NAMES_ARE_UNIQUE: bool;
    fn path(&self) -> &str;
    fn name(&self) -> Option<&Arc<str>>;
    fn is_sound(&self) -> bool;
    fn lower(&self, action: Option<Action>, report: &mut Report<'_>) -> Named;
}

impl Rule for ClusterRuleObject {
    const KIND: Kind = Kind::ClusterNetworkPolicy;
    const NAMES_ARE_UNIQUE: bool = false;

    fn path(&self) -> &str {
        &self.path
    }

    fn name(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    fn is_sound(&self) -> bool {
        self.sound
    }

    fn lower(&self, _: Option<Action>, report: &mut Report<'_>) -> Named {
        Named {
            peers: cluster_peers::peers(self, report),
            ports: cluster_peers::protocols(self, report),
            conditions: Lowered::None,
        }
    }
}

impl Rule for RuleObject {
    const KIND: Kind = Kind::ClusterL7NetworkPolicy;
    const NAMES_ARE_UNIQUE: bool = true;

    fn path(&self) -> &str {
        &self.path
    }

    fn name(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    fn is_sound(&self) -> bool {
        self.sound
    }

    fn lower(&self, action: Option<Action>, report: &mut Report<'_>) -> Named {
        let whose = Whose { namespace: None, ours: true };
        let peers = peers::peers(self, whose, report).map(|peers| everywhere(peers, self, action, report));
        let ports = ports::ports(self, report);
        warn_of_udp(self, &ports, report);
        let grants = action == Some(Action::Accept);
        Named { peers, ports, conditions: conditions::lower(self, grants, report) }
    }
}

/// A policy of no namespace has no pods of its own: a `podSelector` alone means every namespace, as upstream's.
fn everywhere(peers: Peers, rule: &RuleObject, action: Option<Action>, report: &mut Report<'_>) -> Peers {
    let Peers::Any(items) = peers else { return peers };
    let granting = matches!(action, Some(Action::Accept | Action::Pass));
    let field = if rule.path.starts_with("spec.ingress") { "from" } else { "to" };
    let widen = |(index, item): (usize, PeerItem)| {
        let has = |test: fn(&PeerItem) -> bool| item.parts().into_iter().any(test);
        // A service account of a namespace is not for everybody to take.
        let open = has(|part| matches!(part, PeerItem::Own(_)))
            && !has(|part| matches!(part, PeerItem::ServiceAccounts(_)));
        if granting && open {
            let path = format!("{}.{field}[{index}].podSelector", rule.path);
            let reason = "whoever may make pods in any namespace can make one that this selects";
            report.warn(&path, reason, "write the namespaces beside it; namespaceSelector: {} if all");
        }
        of_any_namespace(item)
    };
    Peers::Any(items.into_iter().enumerate().map(widen).collect())
}

fn of_any_namespace(item: PeerItem) -> PeerItem {
    match item {
        PeerItem::Own(pods) => PeerItem::Elsewhere { namespaces: Selector::default(), pods },
        PeerItem::Both(parts) => PeerItem::Both(parts.into_iter().map(of_any_namespace).collect()),
        other => other,
    }
}

/// Lowers every policy of a tier.
pub(crate) fn lower(objects: &Objects, problems: &mut Vec<Problem>) -> Vec<PolicyIr> {
    let mut out: Vec<PolicyIr> =
        objects.cluster_network_policies.iter().map(|object| cluster_network(object, problems)).collect();
    out.extend(objects.cluster_l7_policies.iter().map(|object| cluster_l7(object, problems)));
    out
}

/// Lowers a `ClusterNetworkPolicy`. Never fails: what could not be said is in `problems`.
pub(crate) fn cluster_network(object: &ClusterNetworkObject, problems: &mut Vec<Problem>) -> PolicyIr {
    policy(object, problems)
}

/// Lowers a `ClusterL7NetworkPolicy`. Never fails: what could not be said is in `problems`.
pub(crate) fn cluster_l7(object: &ClusterL7Object, problems: &mut Vec<Problem>) -> PolicyIr {
    policy(object, problems)
}

fn policy<R: Rule>(object: &TieredObject<R>, problems: &mut Vec<Problem>) -> PolicyIr {
    let mut report = Report::new(&object.source, OBJECT_CLOSED);
    let subject = subject(&object.subject, &mut report);
    let priority = priority(&object.priority, &mut report);
    let tier = match &object.tier {
        Part::Whole(tier) => Some(*tier),
        Part::Absent | Part::Bad | Part::Flawed(_) => None,
    };
    let sound = object.sound && subject.is_some() && priority.is_some() && tier.is_some();
    let mut names = HashSet::new();
    let mut side = |rules: &Part<Vec<TieredRule<R>>>, direction: &str| {
        section(rules, direction, sound, &mut names, &mut report)
    };
    let sides = [side(&object.ingress, "ingress"), side(&object.egress, "egress")];
    let accepted = report.finish(problems) && sound && object.clean;
    let (namespaces, pods) = subject.unwrap_or_default();
    let actions = sides.each_ref().map(|rules| rules.iter().map(|rule| rule.action).collect());
    let [ingress, egress] = sides.map(|rules| SideIr {
        isolation: IsolationIr::Nothing,
        allow: Vec::new(),
        deny: rules.into_iter().map(|rule| rule.rule).collect(),
    });
    let tier = tier.unwrap_or(Tier::Admin);
    PolicyIr {
        origin: Origin { kind: R::KIND, namespace: "".into(), name: object.name.clone() },
        // Of a tier, and of no layer.
        layer: LayerKind::K,
        tiered: Some(Tiered { tier, priority, namespaces, members: BTreeSet::new(), actions }),
        wide: None,
        mode: lower::mode(object.mode),
        on_deny: lower::on_deny(object.deny_action, object.deny_detail),
        selector: pods,
        ingress,
        egress,
        accepted,
    }
}

/// The namespaces and the pods in them; `None` where nobody knows whom it means.
fn subject(given: &Part<Subject>, report: &mut Report<'_>) -> Option<(Selector, Selector)> {
    report.effect = OBJECT_CLOSED;
    let Part::Whole(given) = given else { return None };
    let mut selector = |given: &LabelSelector, path: &str| match Selector::new(given) {
        Ok(selector) => Some(selector),
        Err(bad) => {
            report.error(&format!("spec.subject.{path}.{}", bad.path), bad.reason, bad.remedy);
            None
        }
    };
    match (&given.namespaces, &given.pods) {
        (Some(namespaces), None) => Some((selector(namespaces, "namespaces")?, Selector::default())),
        (None, Some(given)) => {
            let namespaces = match &given.namespace_selector {
                None => Some(Selector::default()),
                Some(given) => selector(given, "pods.namespaceSelector"),
            };
            let pods = selector(&given.pod_selector, "pods.podSelector");
            Some((namespaces?, pods?))
        }
        (None, None) => {
            report.error("spec.subject", "the subject names nobody", "write namespaces or pods; {} is all");
            None
        }
        (Some(_), Some(_)) => {
            let reason = "the subject is either namespaces or pods";
            report.error("spec.subject", reason, "write the namespaces as pods.namespaceSelector");
            None
        }
    }
}

fn priority(given: &Part<i32>, report: &mut Report<'_>) -> Option<u16> {
    let Part::Whole(given) = given else { return None };
    let fits = u16::try_from(*given).ok().filter(|_| *given <= MAX_PRIORITY);
    if fits.is_none() {
        report.effect = "the policy denies before all others of its tier, and accepts and passes nothing";
        let reason = format!("{given} is no priority");
        report.error("spec.priority", reason, format!("write a number from 0 to {MAX_PRIORITY}"));
    }
    fits
}

/// The rules of one direction, in order.
fn section<R: Rule>(
    rules: &Part<Vec<TieredRule<R>>>,
    direction: &str,
    sound: bool,
    names: &mut HashSet<Arc<str>>,
    report: &mut Report<'_>,
) -> Vec<TierRuleIr> {
    match rules {
        Part::Absent => Vec::new(),
        Part::Bad => {
            // Nobody knows what was to be denied.
            let rule =
                RuleIr { name: direction.into(), peers: Peers::All, ports: Ports::All, conditions: None };
            vec![TierRuleIr { action: Action::Deny, rule }]
        }
        Part::Flawed(rules) | Part::Whole(rules) => {
            rules.iter().filter_map(|given| rule(given, sound, names, report)).collect()
        }
    }
}

/// One rule; `None` for an Accept in doubt.
fn rule<R: Rule>(
    given: &TieredRule<R>,
    sound: bool,
    names: &mut HashSet<Arc<str>>,
    report: &mut Report<'_>,
) -> Option<TierRuleIr> {
    let action = match &given.action {
        Part::Whole(action) => Some(*action),
        Part::Absent | Part::Bad | Part::Flawed(_) => None,
    };
    let name = name(&given.rule, names, report);
    report.effect = match action {
        Some(Action::Accept) => ACCEPT_CLOSED,
        Some(Action::Deny) => DENY_CLOSED,
        Some(Action::Pass) | None => PASS_CLOSED,
    };
    let errors = report.errors;
    let Named { peers, ports, conditions } = given.rule.lower(action, report);
    let whole = matches!(conditions, Lowered::None | Lowered::Whole(_));
    let clear = sound
        && given.rule.is_sound()
        && report.errors == errors
        && whole
        && peers.is_some()
        && ports.is_some();
    let action = match action {
        Some(Action::Accept) if !clear => return None,
        Some(Action::Accept) => Action::Accept,
        Some(Action::Pass) if clear => Action::Pass,
        Some(Action::Pass | Action::Deny) | None => Action::Deny,
    };
    let rule = RuleIr {
        name,
        peers: peers.unwrap_or(Peers::All),
        ports: ports.unwrap_or(Ports::All),
        conditions: conditions.widened(),
    };
    Some(TierRuleIr { action, rule })
}

/// The rule's name, or its place where the name cannot stand in a verdict. What the rule does is not in doubt.
fn name<R: Rule>(rule: &R, names: &mut HashSet<Arc<str>>, report: &mut Report<'_>) -> RuleName {
    let place: RuleName = rule.path().strip_prefix("spec.").unwrap_or(rule.path()).into();
    let Some(name) = rule.name() else { return place };
    let path = format!("{}.name", rule.path());
    report.effect = "verdicts name the rule by its place";
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_RULE_NAME || !name.chars().all(plain) {
        let reason = format!("verdicts cannot have the name \"{}\"", name.escape_debug());
        let remedy = format!("write 1 to {MAX_RULE_NAME} letters, digits, `-`, `_` or `.`");
        match R::NAMES_ARE_UNIQUE {
            true => report.error(&path, reason, remedy),
            false => report.warn(&path, format!("{reason}; {}", report.effect), remedy),
        }
        return place;
    }
    if !names.insert(name.clone()) {
        let reason = format!("the rule name \"{name}\" is taken by an earlier rule of this policy");
        match R::NAMES_ARE_UNIQUE {
            true => report.error(&path, reason, "give every rule its own name"),
            false => {
                report.warn(&path, format!("{reason}; {}", report.effect), "give every rule its own name");
            }
        }
        return place;
    }
    name.clone()
}

#[cfg(test)]
mod tests;
