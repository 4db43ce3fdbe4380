//! A policy object into rules that can be resolved against a cluster, with a problem for what cannot be said.
//!
//! One rule holds everywhere here: what is in doubt costs the closed side. An allow with anything doubtful in it
//! is not granted; a deny loses the doubtful limit and denies more; a policy whose selector is doubtful selects
//! its whole namespace. Knows nothing of pods or addresses.

use crate::conditions;
use crate::peers::{self, PeerItem, Peers, PortItem, Ports, Whose};
use crate::ports;
use crate::report::Report;
use crate::selector::Selector;
use crate::tiers::Tiered;
use sluice_crd::limits::MAX_RULE_NAME;
use sluice_crd::{
    Category, DenyAction, DenyDetail, Entity, IsolationScope, Part, PolicyKind, PolicyObject, Problem,
    RuleObject, RuleSection,
};
use sluice_policy::{Conditions, Direction, Kind, LayerKind, Mode, OnDeny, Origin, RuleName};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// A policy, lowered.
#[derive(Clone, Debug)]
pub(crate) struct PolicyIr {
    pub(crate) origin: Origin,
    pub(crate) layer: LayerKind,
    /// Of a policy of a tier: its place there. Its rules stand in order in `deny`, whatever they do.
    pub(crate) tiered: Option<Tiered>,
    /// Of a policy of every namespace and of no tier: the namespaces whose pods this copy of it is for, by name: see
    /// [`crate::tiers::by_mode`].
    pub(crate) wide: Option<BTreeSet<Arc<str>>>,
    /// `spec.mode`.
    pub(crate) mode: Mode,
    /// `spec.denyAction` and `spec.denyDetail`.
    pub(crate) on_deny: OnDeny,
    pub(crate) selector: Selector,
    pub(crate) ingress: SideIr,
    pub(crate) egress: SideIr,
    /// Nothing in it was wrong.
    pub(crate) accepted: bool,
}

impl PolicyIr {
    /// The label keys of pods that its selectors read.
    pub(crate) fn label_keys(&self) -> Vec<Arc<str>> {
        let rules =
            [&self.ingress, &self.egress].into_iter().flat_map(|side| side.allow.iter().chain(&side.deny));
        let items = rules.flat_map(|rule| match &rule.peers {
            Peers::All => &[][..],
            Peers::Any(items) => items,
        });
        let pods = items.flat_map(PeerItem::parts).filter_map(|item| match item {
            PeerItem::Own(pods) | PeerItem::Elsewhere { pods, .. } => Some(pods),
            _ => None,
        });
        std::iter::once(&self.selector).chain(pods).flat_map(Selector::keys).cloned().collect()
    }

    /// The namespaces whose pods it is for; `None`: its own.
    pub(crate) fn members(&self) -> Option<&BTreeSet<Arc<str>>> {
        self.tiered.as_ref().map(|tiered| &tiered.members).or(self.wide.as_ref())
    }

    pub(crate) fn side(&self, direction: Direction) -> &SideIr {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// One direction of a policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct SideIr {
    pub(crate) isolation: IsolationIr,
    pub(crate) allow: Vec<RuleIr>,
    pub(crate) deny: Vec<RuleIr>,
}

/// What a policy makes default-deny.
#[derive(Clone, Debug, Default)]
pub(crate) enum IsolationIr {
    /// Nothing.
    #[default]
    Nothing,
    /// Every port.
    Everything,
    /// The ports that its allow rules name, granted or not. On egress a name stands for its numbers on these peers.
    Listed(Vec<(Peers, Ports)>),
}

impl From<bool> for IsolationIr {
    fn from(everything: bool) -> Self {
        if everything { Self::Everything } else { Self::Nothing }
    }
}

/// One rule.
#[derive(Clone, Debug)]
pub(crate) struct RuleIr {
    pub(crate) name: RuleName,
    pub(crate) peers: Peers,
    pub(crate) ports: Ports,
    pub(crate) conditions: Option<Arc<Conditions>>,
}

/// Lowers a policy. Never fails: what could not be said is in `problems`.
pub(crate) fn policy(object: &PolicyObject, problems: &mut Vec<Problem>) -> PolicyIr {
    let mut report = Report::new(&object.source, "the policy selects its whole namespace and grants nothing");
    let mut sound = object.sound;
    let selector = match &object.pod_selector {
        Part::Absent => Selector::default(),
        Part::Bad | Part::Flawed(_) => {
            sound = false;
            Selector::default()
        }
        Part::Whole(given) => Selector::new(given).unwrap_or_else(|bad| {
            report.error(&format!("spec.podSelector.{}", bad.path), bad.reason, bad.remedy);
            sound = false;
            Selector::default()
        }),
    };
    let isolates = isolates(object, &mut report);
    let scope = isolation(object, sound);
    let whose =
        Whose { namespace: Some(&object.namespace), ours: object.kind == PolicyKind::L7NetworkPolicy };
    let mut names = HashSet::new();
    let mut side = |direction: Direction, allow: &RuleSection, deny: &RuleSection| {
        let scope = if isolates[direction as usize] { scope } else { IsolationScope::None };
        warn_of_idle(object, direction, isolates[direction as usize], scope, &mut report);
        let granted = sound && scope != IsolationScope::None;
        let (allow, listed) = allows(allow, whose, granted, &mut names, &mut report);
        SideIr {
            isolation: match (scope, listed) {
                (IsolationScope::None, _) => IsolationIr::Nothing,
                (IsolationScope::ListedPorts, Some(listed)) => IsolationIr::Listed(listed),
                (IsolationScope::ListedPorts, None) | (IsolationScope::Direction, _) => {
                    IsolationIr::Everything
                }
            },
            allow,
            deny: denies(deny, whose, direction, &mut names, &mut report),
        }
    };
    let ingress = side(Direction::Ingress, &object.ingress, &object.ingress_deny);
    let egress = side(Direction::Egress, &object.egress, &object.egress_deny);
    let accepted = report.finish(problems) && sound && object.clean;
    let (kind, layer) = match object.kind {
        PolicyKind::NetworkPolicy => (Kind::NetworkPolicy, LayerKind::K),
        PolicyKind::L7NetworkPolicy => (Kind::L7NetworkPolicy, LayerKind::L),
    };
    PolicyIr {
        origin: Origin { kind, namespace: object.namespace.clone(), name: object.name.clone() },
        layer,
        tiered: None,
        wide: None,
        mode: mode(object.mode),
        on_deny: on_deny(object.deny_action, object.deny_detail),
        selector,
        ingress,
        egress,
        accepted,
    }
}

/// Tells of rules of one direction that do not do what they seem to. `scope`: what the policy isolates in it.
fn warn_of_idle(
    object: &PolicyObject,
    direction: Direction,
    isolates: bool,
    scope: IsolationScope,
    report: &mut Report<'_>,
) {
    let field = direction.as_str();
    let (allow, deny) = match direction {
        Direction::Ingress => (&object.ingress, &object.ingress_deny),
        Direction::Egress => (&object.egress, &object.egress_deny),
    };
    let given = allow.value().map_or(0, Vec::len);
    if !isolates && given > 0 {
        let reason = format!("policyTypes leaves {field} out: these {given} rules do nothing");
        let kind = if direction == Direction::Ingress { "Ingress" } else { "Egress" };
        let remedy = format!("add {kind} to policyTypes, or remove the rules");
        report.warn(&format!("spec.{field}"), reason, remedy);
    }
    if isolates && scope == IsolationScope::None && given > 0 {
        let reason = format!("isolation is None: these {given} rules limit nothing and grant nothing");
        let remedy = "write isolation: ListedPorts or Direction, or remove the rules";
        report.warn(&format!("spec.{field}"), reason, remedy);
    }
    let denies = deny.value().is_some_and(|rules| !rules.is_empty());
    if scope == IsolationScope::Direction && given == 0 && denies {
        let reason = format!("beside its denies the policy isolates {field}, and it allows nothing there");
        let remedy = format!("write {field}: [{{}}], or isolation: None, if it shall only deny");
        report.warn(&format!("spec.{field}Deny"), reason, remedy);
    }
    let host = |rule: &RuleObject| {
        let peers = rule.peers.value().into_iter().flatten().filter_map(Part::value);
        peers.flat_map(|peer| peer.entities.iter().flatten()).any(|entity| *entity == Entity::Host)
    };
    let of_host = deny.value().into_iter().flatten().find(|rule| host(rule));
    if let (Direction::Ingress, Some(rule)) = (direction, of_host) {
        let reason = "a pod's own node reaches it whatever a policy of its namespace says";
        let remedy = "deny it in a ClusterL7NetworkPolicy of tier Admin";
        report.warn(&format!("{}.from", rule.path), reason, remedy);
    }
}

/// `spec.mode`.
pub(crate) const fn mode(given: sluice_crd::Mode) -> Mode {
    match given {
        sluice_crd::Mode::Enforce => Mode::Enforce,
        sluice_crd::Mode::Audit => Mode::Audit,
    }
}

/// `spec.denyAction` and `spec.denyDetail`.
pub(crate) const fn on_deny(action: DenyAction, detail: DenyDetail) -> OnDeny {
    OnDeny {
        action: match action {
            DenyAction::Drop => sluice_policy::DenyAction::Drop,
            DenyAction::Reject => sluice_policy::DenyAction::Reject,
        },
        detail: match detail {
            DenyDetail::None => sluice_policy::DenyDetail::None,
            DenyDetail::Rule => sluice_policy::DenyDetail::Rule,
            DenyDetail::NearestMiss => sluice_policy::DenyDetail::NearestMiss,
        },
    }
}

/// Which directions the policy isolates, by [`Direction`]'s number; defaulted as for `NetworkPolicy`.
fn isolates(object: &PolicyObject, report: &mut Report<'_>) -> [bool; 2] {
    match &object.policy_types {
        Part::Whole(types) if !types.is_empty() => {
            let mut out = [false, false];
            for (index, given) in types.iter().enumerate() {
                match given.as_str() {
                    "Ingress" => out[0] = true,
                    "Egress" => out[1] = true,
                    other => {
                        report.effect = "the policy isolates both directions";
                        let reason = format!("\"{other}\" is no policy type");
                        report.error(
                            &format!("spec.policyTypes[{index}]"),
                            reason,
                            "write Ingress or Egress",
                        );
                        out = [true, true];
                    }
                }
            }
            out
        }
        // Nobody knows what an unknown field would have isolated.
        Part::Absent | Part::Whole(_) if !object.sound => [true, true],
        Part::Absent | Part::Whole(_) => {
            let egress = match &object.egress {
                Part::Absent => false,
                Part::Bad => true,
                Part::Flawed(rules) | Part::Whole(rules) => !rules.is_empty(),
            };
            [true, egress]
        }
        Part::Bad | Part::Flawed(_) => [true, true],
    }
}

/// Which ports become default-deny; the strictest where anything about the policy is in doubt.
fn isolation(object: &PolicyObject, sound: bool) -> IsolationScope {
    match &object.isolation {
        Part::Absent => IsolationScope::default(),
        Part::Whole(scope) if sound => *scope,
        Part::Whole(_) | Part::Bad | Part::Flawed(_) => IsolationScope::Direction,
    }
}

/// `spec.ingress[0]` is known as `ingress[0]` where it has no name of its own.
fn rule_name(rule: &RuleObject, names: &mut HashSet<Arc<str>>, report: &mut Report<'_>) -> (RuleName, bool) {
    let place: RuleName = rule.path.strip_prefix("spec.").unwrap_or(&rule.path).into();
    let Some(name) = &rule.name else { return (place, true) };
    let path = format!("{}.name", rule.path);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_RULE_NAME || !name.chars().all(plain) {
        let remedy = format!("write 1 to {MAX_RULE_NAME} letters, digits, `-`, `_` or `.`");
        report.error(&path, format!("\"{}\" is no rule name", name.escape_debug()), remedy);
        return (place, false);
    }
    if !names.insert(name.clone()) {
        let reason = format!("the rule name \"{name}\" is taken by an earlier rule of this policy");
        report.error(&path, reason, "give every rule its own name");
        return (place, false);
    }
    (name.clone(), true)
}

/// The rules that are granted, and the ports that all of them name, granted or not; no list where nobody knows which
/// ports those are.
fn allows(
    section: &RuleSection,
    whose: Whose<'_>,
    granted: bool,
    names: &mut HashSet<Arc<str>>,
    report: &mut Report<'_>,
) -> (Vec<RuleIr>, Option<Vec<(Peers, Ports)>>) {
    report.effect = "the rule grants nothing";
    let (mut out, mut listed) = (Vec::new(), Vec::new());
    let rules = match section {
        Part::Absent => return (out, Some(listed)),
        Part::Bad => return (out, None),
        Part::Flawed(rules) | Part::Whole(rules) => rules,
    };
    for rule in rules {
        let errors = report.errors;
        let (name, _) = rule_name(rule, names, report);
        let peers = peers::peers(rule, whose, report);
        let ports = ports::ports(rule, report);
        let conditions = conditions::lower(rule, true, report);
        warn_of_udp(rule, &ports, report);
        let sound = rule.sound && report.errors == errors;
        let named = ports.clone().filter(|_| rule.sound).unwrap_or(Ports::All);
        match (granted, sound, peers, ports, conditions.whole()) {
            (true, true, Some(peers), Some(ports), Some(conditions)) => {
                listed.push((peers.clone(), named));
                out.push(RuleIr { name, peers, ports, conditions });
            }
            // Its peers are read by no rule: a port's name stands for its numbers on every pod.
            _ => listed.push((Peers::All, named)),
        }
    }
    let whole = matches!(section, Part::Whole(_));
    (out, whole.then_some(listed))
}

fn denies(
    section: &RuleSection,
    whose: Whose<'_>,
    direction: Direction,
    names: &mut HashSet<Arc<str>>,
    report: &mut Report<'_>,
) -> Vec<RuleIr> {
    report.effect = "the rule denies as if this did not limit it";
    let rules = match section {
        Part::Absent => return Vec::new(),
        Part::Bad => {
            // Nobody knows what was to be denied.
            let name = format!("{}Deny", direction.as_str()).into();
            return vec![RuleIr { name, peers: Peers::All, ports: Ports::All, conditions: None }];
        }
        Part::Flawed(rules) | Part::Whole(rules) => rules,
    };
    let lower = |rule: &RuleObject| {
        let (name, _) = rule_name(rule, names, report);
        let conditions = conditions::lower(rule, false, report).widened();
        RuleIr {
            name,
            peers: peers::peers(rule, whose, report).unwrap_or(Peers::All),
            ports: ports::ports(rule, report).unwrap_or(Ports::All),
            conditions,
        }
    };
    rules.iter().map(lower).collect()
}

/// An allow with conditions holds for TCP alone: nothing else can carry what it asks for.
pub(crate) fn warn_of_udp(rule: &RuleObject, ports: &Option<Ports>, report: &mut Report<'_>) {
    let Some(Ports::Some(items)) = ports else { return };
    let other = items.iter().position(|item| {
        let protocol = match item {
            PortItem::Range(range) => range.protocol,
            PortItem::Named { protocol, .. } => *protocol,
        };
        protocol != sluice_policy::Protocol::Tcp
    });
    if let (Some(index), false) = (other, rule.rules.is_absent()) {
        let path = format!("{}.ports[{index}].protocol", rule.path);
        let reason = "a rule with `rules` allows TCP alone: this port does nothing";
        report.warn_of(Category::NotTcp, &path, reason, "name it in a rule without `rules`");
    }
}
