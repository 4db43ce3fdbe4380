//! `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy` into rules, with Cilium's own meaning and a problem for what cannot be said.
//!
//! As everywhere in lowering: an allow with anything doubtful in it is not granted, a deny loses the doubtful limit,
//! a policy whose selector is doubtful closes what it could select. Knows nothing of pods or addresses.

pub(crate) mod groups;
mod http;
mod icmp;
mod peers;
mod ports;
pub(crate) mod selector;
mod services;
mod tls;

use crate::index::Index;
use crate::lower::{IsolationIr, PolicyIr, RuleIr, SideIr};
use crate::peers::{Peers, Ports};
use crate::report::Report;
use crate::selector::Selector;
use groups::Groups;
use peers::Who;
use services::Services;
use sluice_crd::{
    Category, CiliumKind, CiliumPolicyObject, CiliumPortRule, CiliumRule, CiliumSpec, Objects, Part, Problem,
};
use sluice_policy::{Conditions, Direction, Kind, LayerKind, Mode, OnDeny, Origin};
use std::collections::BTreeSet;
use std::sync::Arc;

const NO_GRANT: &str = "the rule grants nothing";
const VOID: &str = "no rule of this direction grants anything";
const DENIES_MORE: &str = "the rule denies as if this did not limit it";
const CLOSES: &str = "the policy closes its whole namespace and grants nothing";
const CLOSES_ALL: &str = "the policy closes every pod of the cluster and grants nothing";

/// What policies may name beside pods and addresses.
pub(crate) struct Named<'a> {
    groups: Groups,
    services: Services<'a>,
}

impl<'a> Named<'a> {
    pub(crate) fn new(objects: &'a Objects, problems: &mut Vec<Problem>) -> Self {
        Self { groups: Groups::new(&objects.cidr_groups, problems), services: Services::new(objects) }
    }
}

/// What policies have named, to know by whether it has changed.
pub(crate) struct Seen {
    groups: Groups,
    /// `None`: no policy has named a Service.
    services: Option<services::Read>,
}

impl Named<'_> {
    pub(crate) fn has_changed(&self, before: &Seen) -> bool {
        before.groups != self.groups
            || before.services.as_ref().is_some_and(|services| services != self.services.read())
    }

    pub(crate) fn seen(self) -> Seen {
        Seen { groups: self.groups, services: self.services.into_read() }
    }
}

/// Whether a policy may name any of it.
pub(crate) fn names_others(object: &CiliumPolicyObject) -> bool {
    let sections = object.specs.iter().flat_map(|spec| {
        let CiliumSpec { ingress, egress, ingress_deny, egress_deny, .. } = spec;
        [ingress, egress, ingress_deny, egress_deny]
    });
    let mut rules = sections.filter_map(|section| section.value()).flatten();
    rules.any(|rule| !rule.peers.cidr_set.is_absent() || !rule.peers.services.is_absent())
}

/// A policy, and what it may name.
struct Around<'a> {
    object: &'a CiliumPolicyObject,
    groups: groups::View<'a>,
    services: services::View<'a>,
    /// By [`Direction`]'s number: some rule asks for what every rule would have to meet, so that none is granted.
    void: [bool; 2],
}

impl<'a> Around<'a> {
    fn new(object: &'a CiliumPolicyObject, named: &'a Named<'_>) -> Self {
        let requires = |section: fn(&CiliumSpec) -> &Part<Vec<CiliumRule>>| {
            let rules = object.specs.iter().filter_map(|spec| section(spec).value()).flatten();
            rules.into_iter().any(|rule| peers::required(&rule.peers.requires))
        };
        Self {
            object,
            groups: groups::View::new(&named.groups),
            services: services::View::new(&named.services),
            void: [requires(|spec| &spec.ingress), requires(|spec| &spec.egress)],
        }
    }
}

/// The namespace that a policy's selectors mean where they name none; `None`: every one.
fn home(object: &CiliumPolicyObject) -> Option<&str> {
    match object.kind {
        CiliumKind::Namespaced => Some(&object.namespace),
        CiliumKind::Clusterwide => None,
    }
}

/// What a selector in doubt costs.
fn closes(object: &CiliumPolicyObject) -> &'static str {
    if home(object).is_some() { CLOSES } else { CLOSES_ALL }
}

/// Lowers a policy: one for `spec` and each of `specs`, for each selects other pods. Never fails.
pub(crate) fn policy(
    object: &CiliumPolicyObject,
    named: &Named<'_>,
    problems: &mut Vec<Problem>,
) -> Vec<PolicyIr> {
    let around = Around::new(object, named);
    let mut report = Report::new(&object.source, closes(object));
    let mut out: Vec<PolicyIr> =
        object.specs.iter().map(|spec| lower_spec(&around, spec, &mut report)).collect();
    let clean = report.finish(problems);
    for ir in &mut out {
        ir.accepted = object.clean && clean;
    }
    out
}

/// Gives every pod the labels that Cilium derives, as far as some policy reads them.
pub(crate) fn derive_labels<'a>(index: &mut Index, policies: impl Iterator<Item = &'a PolicyIr>) {
    let keys = policies.flat_map(PolicyIr::label_keys);
    let read: BTreeSet<Arc<str>> = keys.filter(|key| key.starts_with(selector::PREFIX)).collect();
    for pod in &mut index.pods {
        // A pod has no label of such a name of its own.
        pod.labels.retain(|key, _| !key.starts_with(selector::PREFIX));
        let namespace = index.namespaces.get(&pod.workload.namespace);
        let value = |key: &Arc<str>| Some((key.to_string(), selector::value(pod, namespace, key)?));
        let derived: Vec<(String, String)> = read.iter().filter_map(value).collect();
        pod.labels.extend(derived);
    }
}

fn lower_spec(around: &Around<'_>, spec: &CiliumSpec, report: &mut Report<'_>) -> PolicyIr {
    let object = around.object;
    report.effect = closes(object);
    let mut sound = object.sound && spec.sound;
    let selector = subject(object, spec, &mut sound, report);
    let isolates = isolates(spec, sound, report);
    let mut side =
        |direction: Direction, allow: &Part<Vec<CiliumRule>>, deny: &Part<Vec<CiliumRule>>| SideIr {
            isolation: isolates[direction as usize].into(),
            allow: allows(around, direction, allow, sound, report),
            deny: denies(around, &spec.path, direction, deny, report),
        };
    let ingress = side(Direction::Ingress, &spec.ingress, &spec.ingress_deny);
    let egress = side(Direction::Egress, &spec.egress, &spec.egress_deny);
    for (direction, side) in [(Direction::Ingress, &ingress), (Direction::Egress, &egress)] {
        if matches!(side.isolation, IsolationIr::Nothing)
            && side.allow.iter().any(|rule| rule.conditions.is_some())
        {
            let path = format!("{}.enableDefaultDeny.{}", spec.path, direction.as_str());
            let reason = "where nothing is default-deny, no rule limits what may be said";
            report.warn(&path, reason, "remove it, or the rules");
        }
    }
    let (kind, wide) = match object.kind {
        CiliumKind::Namespaced => (Kind::CiliumNetworkPolicy, None),
        CiliumKind::Clusterwide => (Kind::CiliumClusterwideNetworkPolicy, Some(BTreeSet::new())),
    };
    PolicyIr {
        origin: Origin { kind, namespace: object.namespace.clone(), name: object.name.clone() },
        layer: LayerKind::K,
        tiered: None,
        wide,
        mode: Mode::Enforce,
        on_deny: OnDeny::default(),
        selector,
        ingress,
        egress,
        accepted: true,
    }
}

/// The pods that the spec is about, of its namespace or of all; all of these where that is in doubt.
fn subject(
    object: &CiliumPolicyObject,
    spec: &CiliumSpec,
    sound: &mut bool,
    report: &mut Report<'_>,
) -> Selector {
    let path = format!("{}.endpointSelector", spec.path);
    match (&spec.endpoint_selector, spec.node_selector.is_absent()) {
        (Part::Whole(given), true) => {
            if let Some(selector) = selector::subject(given, home(object), &path, report) {
                return selector;
            }
        }
        (Part::Absent, false) => {
            let path = format!("{}.nodeSelector", spec.path);
            report.effect = "it applies to no pod";
            let remedy = "select pods by endpointSelector; nodes themselves are not judged here";
            report.error_of(Category::Unsupported, &path, "the policy is about nodes", remedy);
            return selector::nobody();
        }
        (Part::Absent, true) => {
            report.error(&path, "the policy selects nobody", "write endpointSelector; {} is every pod");
        }
        (_, false) => {
            let path = format!("{}.nodeSelector", spec.path);
            report.error(&path, "a policy is about pods or about nodes", "remove one of the selectors");
        }
        (Part::Bad | Part::Flawed(_), true) => {}
    }
    *sound = false;
    Selector::default()
}

/// Which directions become default-deny: those with a rule, unless `enableDefaultDeny` says otherwise. To Cilium an
/// empty list is none; nobody knows what a doubtful part would have said.
fn isolates(spec: &CiliumSpec, sound: bool, report: &mut Report<'_>) -> [bool; 2] {
    if !sound {
        return [true, true];
    }
    let has_rules = |section: &Part<Vec<CiliumRule>>| match section {
        Part::Absent => false,
        Part::Bad => true,
        Part::Flawed(rules) | Part::Whole(rules) => !rules.is_empty(),
    };
    let ingress = has_rules(&spec.ingress) || has_rules(&spec.ingress_deny);
    let egress = has_rules(&spec.egress) || has_rules(&spec.egress_deny);
    if !ingress && !egress {
        report.warn(&spec.path, "the policy has no rule and does nothing", "write ingress: [{}] to deny all");
    }
    match &spec.enable_default_deny {
        Part::Bad | Part::Flawed(_) => [true, true],
        Part::Absent => [ingress, egress],
        Part::Whole(given) => [given.ingress.unwrap_or(ingress), given.egress.unwrap_or(egress)],
    }
}

fn allows(
    around: &Around<'_>,
    direction: Direction,
    section: &Part<Vec<CiliumRule>>,
    granted: bool,
    report: &mut Report<'_>,
) -> Vec<RuleIr> {
    let void = around.void[direction as usize];
    report.effect = if void { VOID } else { NO_GRANT };
    let mut out = Vec::new();
    for rule in section.value().into_iter().flatten() {
        let errors = report.errors;
        if !rule.authentication.is_absent() {
            let disabled = rule.authentication.value().is_some_and(|a| a.mode.as_deref() == Some("disabled"));
            if !disabled {
                let remedy = "remove it: no peer is asked to authenticate here";
                report.error_of(
                    Category::Unsupported,
                    &format!("{}.authentication", rule.path),
                    "authentication is not honoured",
                    remedy,
                );
            }
        }
        let who = peers::lower(around, rule, false, report);
        let what = port_rules(rule, false, report);
        let sound = granted && !void && rule.sound && report.errors == errors;
        // In doubt anywhere in a rule, none of it is granted.
        let (true, Some(who), Some(what)) = (sound, who, what) else { continue };
        out.extend(combine(rule, &who, what));
    }
    out
}

fn denies(
    around: &Around<'_>,
    spec: &str,
    direction: Direction,
    section: &Part<Vec<CiliumRule>>,
    report: &mut Report<'_>,
) -> Vec<RuleIr> {
    report.effect = DENIES_MORE;
    let everything =
        |name: String| RuleIr { name: name.into(), peers: Peers::All, ports: Ports::All, conditions: None };
    let rules = match section {
        Part::Absent => return Vec::new(),
        Part::Bad => return vec![everything(shown(&format!("{spec}.{}Deny", direction.as_str())))],
        Part::Flawed(rules) | Part::Whole(rules) => rules,
    };
    let mut out = Vec::new();
    for rule in rules {
        let errors = report.errors;
        let who = peers::lower(around, rule, true, report);
        let what = port_rules(rule, true, report);
        let sound = rule.sound && report.errors == errors && who.is_some() && what.is_some();
        let mut who = who.unwrap_or(Who::Named(Peers::All));
        let what = what.unwrap_or_else(|| Some(vec![(rule.path.clone(), Ports::All, None)]));
        if !sound && matches!(who, Who::Unlimited) && what.is_none() {
            // What it was limited to nobody knows, so that it is no empty rule.
            who = Who::Named(Peers::All);
        }
        let denied = combine(rule, &who, what);
        if denied.is_empty() {
            report.warn(&rule.path, "the rule names nobody and denies nothing", "name peers or ports");
        }
        out.extend(denied);
    }
    out
}

/// Ports and what must be said there, with the place that names them.
type PortIr = (String, Ports, Option<Arc<Conditions>>);

/// `toPorts` and `icmps`. `None`: in doubt. `Some(None)`: none are written.
#[allow(clippy::option_option, reason = "a rule without ports is not a rule in doubt")]
fn port_rules(rule: &CiliumRule, deny: bool, report: &mut Report<'_>) -> Option<Option<Vec<PortIr>>> {
    let given = match &rule.to_ports {
        Part::Bad | Part::Flawed(_) => None,
        Part::Absent => Some(&[][..]),
        Part::Whole(given) => Some(given.as_slice()),
    };
    let types = match &rule.icmps {
        Part::Bad | Part::Flawed(_) => None,
        Part::Absent => Some(&[][..]),
        Part::Whole(types) => Some(types.as_slice()),
    };
    let path = format!("{}.icmps", rule.path);
    let alone = given.is_some_and(<[_]>::is_empty) || types.is_some_and(<[_]>::is_empty);
    if !alone {
        report.error(&path, "a rule has toPorts or icmps", "write a rule for each of them");
    }
    let mut out = Some(Vec::new());
    for item in given? {
        match (port_rule(item, deny, report), &mut out) {
            (Some(lowered), Some(out)) => out.push(lowered),
            // One doubtful item makes the rule doubtful; the others are still looked through for problems.
            _ => out = None,
        }
    }
    let icmps = icmp::lower(types?, &path, report)?;
    let mut out = out.filter(|_| alone)?;
    out.extend(icmps.into_iter().map(|(path, ports)| (path, ports, None)));
    Some((!out.is_empty()).then_some(out))
}

fn port_rule(item: &CiliumPortRule, deny: bool, report: &mut Report<'_>) -> Option<PortIr> {
    let http = http::lower(item, report);
    let tls = tls::lower(item, report);
    let ports = ports::lower(item, deny, report)?;
    let (http, tls) = (http?, tls?);
    let conditional = !http.is_empty() || !tls.is_empty();
    let conditions = conditional.then(|| Arc::new(Conditions { http, grpc: Vec::new(), tls }));
    (item.sound || deny).then(|| (item.path.clone(), ports, conditions))
}

/// Peers and ports as Cilium puts them together: a rule with neither allows and denies nothing.
fn combine(rule: &CiliumRule, who: &Who, what: Option<Vec<PortIr>>) -> Vec<RuleIr> {
    let peers = match (who, &what) {
        (Who::Unlimited, None) => return Vec::new(),
        (Who::Unlimited, Some(_)) => Peers::All,
        (Who::Named(peers), _) => peers.clone(),
    };
    let whole = || vec![(rule.path.clone(), Ports::All, None)];
    let each = |(path, ports, conditions): PortIr| RuleIr {
        name: shown(&path).into(),
        peers: peers.clone(),
        ports,
        conditions,
    };
    what.unwrap_or_else(whole).into_iter().map(each).collect()
}

/// `spec.ingress[0]` is known as `ingress[0]`.
fn shown(path: &str) -> String {
    path.strip_prefix("spec.").unwrap_or(path).to_owned()
}
