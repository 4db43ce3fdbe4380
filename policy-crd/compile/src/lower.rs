//! A policy object into rules that can be resolved against a cluster, with a problem for what cannot be said.
//!
//! One rule holds everywhere here: what is in doubt costs the closed side. An allow with anything doubtful in it
//! is not granted; a deny loses the doubtful limit and denies more; a policy whose selector is doubtful selects
//! its whole namespace. Knows nothing of pods or addresses.

use crate::conditions;
use crate::peers::{self, PeerItem, Peers, PortItem, Ports};
use crate::report::Report;
use crate::selector::Selector;
use crate::tiers::Tiered;
use sluice_crd::limits::MAX_RULE_NAME;
use sluice_crd::{
    Category, DenyAction, DenyDetail, Part, PolicyKind, PolicyObject, Problem, RuleObject, RuleSection,
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
#[allow(dead_code, reason = "the kinds that say all of it are lowered next")]
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
    let mut names = HashSet::new();
    let mut side = |direction: Direction, allow: &RuleSection, deny: &RuleSection| {
        let isolates = isolates[direction as usize];
        let field = direction.as_str();
        let given = allow.value().map_or(0, Vec::len);
        if !isolates && given > 0 {
            let reason = format!("policyTypes leaves {field} out: these {given} rules do nothing");
            let kind = if direction == Direction::Ingress { "Ingress" } else { "Egress" };
            report.warn(
                &format!("spec.{field}"),
                reason,
                format!("add {kind} to policyTypes, or remove the rules"),
            );
        }
        if isolates && given == 0 && deny.value().is_some_and(|rules| !rules.is_empty()) {
            let reason =
                format!("beside its denies the policy isolates {field}, and it allows nothing there");
            let remedy = format!("write {field}: [{{}}] if it shall only deny");
            report.warn(&format!("spec.{field}Deny"), reason, remedy);
        }
        SideIr {
            isolation: isolates.into(),
            allow: allows(allow, sound && isolates, &mut names, &mut report),
            deny: denies(deny, field, &mut names, &mut report),
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

fn allows(
    section: &RuleSection,
    granted: bool,
    names: &mut HashSet<Arc<str>>,
    report: &mut Report<'_>,
) -> Vec<RuleIr> {
    report.effect = "the rule grants nothing";
    let mut out = Vec::new();
    for rule in section.value().into_iter().flatten() {
        let errors = report.errors;
        let (name, _) = rule_name(rule, names, report);
        let peers = peers::peers(rule, report);
        let ports = peers::ports(rule, report);
        let conditions = conditions::lower(rule, true, report);
        warn_of_udp(rule, &ports, report);
        let sound = rule.sound && report.errors == errors;
        if let (true, true, Some(peers), Some(ports), Some(conditions)) =
            (granted, sound, peers, ports, conditions.whole())
        {
            out.push(RuleIr { name, peers, ports, conditions });
        }
    }
    out
}

fn denies(
    section: &RuleSection,
    direction: &str,
    names: &mut HashSet<Arc<str>>,
    report: &mut Report<'_>,
) -> Vec<RuleIr> {
    report.effect = "the rule denies as if this did not limit it";
    let rules = match section {
        Part::Absent => return Vec::new(),
        Part::Bad => {
            // Nobody knows what was to be denied.
            let name = format!("{direction}Deny").into();
            return vec![RuleIr { name, peers: Peers::All, ports: Ports::All, conditions: None }];
        }
        Part::Flawed(rules) | Part::Whole(rules) => rules,
    };
    let lower = |rule: &RuleObject| {
        let (name, _) = rule_name(rule, names, report);
        let conditions = conditions::lower(rule, false, report).widened();
        RuleIr {
            name,
            peers: peers::peers(rule, report).unwrap_or(Peers::All),
            ports: peers::ports(rule, report).unwrap_or(Ports::All),
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
