//! What a policy says about the pods of one namespace, taken from its lowered form and put into our kinds' words.
//!
//! A clusterwide policy becomes one unit for each namespace. Knows nothing of other policies.

use super::labels::{self, Chosen};
use super::loss::LossKind::{Dropped, Frozen, Narrowed};
use super::loss::Told;
use super::peers::{At, Namespaces, Whom, ports, whom};
use super::said;
use crate::lower::{IsolationIr, PolicyIr, RuleIr, SideIr};
use crate::selector::Requirement;
use sluice_crd::{CiliumKind, CiliumPolicyObject, CiliumRule, CiliumSpec, L7Rules, Part, Port};
use sluice_policy::Direction;
use std::sync::Arc;

/// One rule, in our words.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Said {
    pub(super) whom: Whom,
    /// `None`: every port of every protocol.
    pub(super) ports: Option<Vec<Port>>,
    pub(super) rules: Option<L7Rules>,
}

/// One direction.
#[derive(Clone, Debug, Default)]
pub(super) struct Side {
    pub(super) isolates: bool,
    pub(super) allow: Vec<Said>,
    pub(super) deny: Vec<Said>,
}

impl Side {
    /// Whether `NetworkPolicy` can say who may connect, exactly.
    pub(super) fn is_plain(&self) -> bool {
        self.allow.iter().all(|rule| rule.whom.is_plain())
    }

    /// Whether something is allowed under conditions.
    pub(super) fn has_conditions(&self) -> bool {
        self.allow.iter().any(|rule| rule.rules.is_some())
    }
}

/// What one `spec` says about the pods of one namespace.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    /// The policy, by its place among those migrated. `None`: a `NetworkPolicy` that stays.
    pub(super) policy: Option<usize>,
    /// The object that it comes from, as `Kind/namespace/name`.
    pub(super) from: Arc<str>,
    /// Its path in the original: `spec` or `specs[0]`.
    pub(super) path: String,
    pub(super) namespace: Arc<str>,
    /// What its result is called, unless that is taken.
    pub(super) name: String,
    pub(super) pods: Vec<Requirement>,
    pub(super) sides: [Side; 2],
    /// The policy that closes these pods, where this one allows without closing any.
    pub(super) beside: Option<Arc<str>>,
}

impl Unit {
    pub(super) fn side(&self, direction: Direction) -> &Side {
        &self.sides[direction as usize]
    }
}

/// The units of one `spec`: one, or one for each namespace that it is about.
pub(super) fn of_spec(
    object: &CiliumPolicyObject,
    number: usize,
    spec: &CiliumSpec,
    ir: &PolicyIr,
    namespaces: &Namespaces,
    told: &mut Told<'_>,
) -> Vec<Unit> {
    let path = format!("{}.endpointSelector", spec.path);
    let Some(subject) = Chosen::new(&ir.selector) else { return Vec::new() };
    if !subject.accounts.is_empty() {
        let reason = "podSelector does not know service accounts: the policy is left out, and its pods are not closed by it";
        told.tell(Dropped, &path, reason, "label the pods, and select by the label");
        return Vec::new();
    }
    if !labels::fits(&subject.pods) {
        let reason = "the selector is longer than our kinds take: the policy is left out, and its pods are not closed by it";
        told.tell(Dropped, &path, reason, "select by fewer labels");
        return Vec::new();
    }
    frozen(spec, told);
    let homes = homes(object, &subject, namespaces, &path, told);
    let index = object.specs.iter().position(|other| other.path == spec.path).unwrap_or_default();
    let name = match object.specs.len() {
        1 => object.name.to_string(),
        _ => format!("{}-{}", object.name, index + 1),
    };
    let from: Arc<str> = object.source.object().cloned().unwrap_or_else(|| object.name.clone());
    let one = |namespace: Arc<str>| Unit {
        policy: Some(number),
        from: from.clone(),
        path: spec.path.clone(),
        name: name.clone(),
        pods: subject.pods.clone(),
        sides: Direction::ALL.map(|direction| side(ir.side(direction), &namespace, namespaces, told)),
        namespace,
        beside: None,
    };
    homes.into_iter().map(one).collect()
}

/// The namespaces whose pods are selected.
fn homes(
    object: &CiliumPolicyObject,
    subject: &Chosen,
    namespaces: &Namespaces,
    path: &str,
    told: &mut Told<'_>,
) -> Vec<Arc<str>> {
    if subject.asks_names_alone() && subject.named().is_some() {
        let named = subject.named().into_iter().flatten();
        let label = |name: &Arc<str>| [(crate::index::NAME_LABEL.to_owned(), name.to_string())].into();
        let mut homes: Vec<Arc<str>> =
            named.filter(|name| subject.takes_namespace(&label(name))).cloned().collect();
        if object.kind == CiliumKind::Namespaced {
            homes.retain(|name| **name == *object.namespace);
        }
        return homes;
    }
    let of = |name: &Arc<str>| object.kind == CiliumKind::Clusterwide || **name == *object.namespace;
    if object.kind == CiliumKind::Clusterwide || !subject.namespaces.is_empty() {
        let reason = match object.kind {
            CiliumKind::Clusterwide => {
                "a policy of a namespace is about its pods: there is one for each namespace of the input that is selected"
            }
            CiliumKind::Namespaced => {
                "podSelector does not know the labels of namespaces: those of today decided"
            }
        };
        told.tell(Frozen, path, reason, "migrate again for namespaces that are made later");
    }
    let taken = namespaces.iter().filter(|(name, entry)| of(name) && subject.takes_namespace(&entry.labels));
    taken.map(|(name, _)| name.clone()).collect()
}

/// What is found out once, and stands in the result as it is today.
fn frozen(spec: &CiliumSpec, told: &mut Told<'_>) {
    let sections = [&spec.ingress, &spec.egress, &spec.ingress_deny, &spec.egress_deny];
    let rules = sections.into_iter().flat_map(|section| section.value().into_iter().flatten());
    for CiliumRule { path, peers, .. } in rules {
        let sets = peers.cidr_set.value().into_iter().flatten().filter_map(Part::value);
        if sets.into_iter().any(|set| set.cidr_group_ref.is_some() || set.cidr_group_selector.is_some()) {
            let reason = "the CIDRs of groups are written out as they are today";
            told.tell(Frozen, path, reason, "migrate again when the groups change");
        }
        if !peers.services.is_absent() {
            let reason = "services are written out as what they select today";
            told.tell(Frozen, path, reason, "select the pods by their labels");
        }
    }
}

/// One direction of a lowered policy, in the words of a result of this namespace.
pub(super) fn side(ir: &SideIr, namespace: &str, namespaces: &Namespaces, told: &mut Told<'_>) -> Side {
    let mut each = |rules: &[RuleIr], deny: bool| {
        let mut out: Vec<Said> = Vec::new();
        for ir in rules {
            let path = match ir.name.starts_with("specs[") {
                true => ir.name.to_string(),
                false => format!("spec.{}", ir.name),
            };
            let at = At { path: &path, namespace, namespaces, deny };
            let Some(said) = rule(ir, at, told) else { continue };
            match out.iter_mut().find(|before| before.whom == said.whom && before.rules == said.rules) {
                Some(before) => join(&mut before.ports, said.ports),
                None => out.push(said),
            }
        }
        out
    };
    Side { isolates: isolates(ir), allow: each(&ir.allow, false), deny: each(&ir.deny, true) }
}

/// Whether some port becomes default-deny.
pub(super) fn isolates(ir: &SideIr) -> bool {
    !matches!(ir.isolation, IsolationIr::Nothing)
}

/// One rule. `None`: it names nobody, or nothing of it can be said.
fn rule(ir: &RuleIr, at: At<'_>, told: &mut Told<'_>) -> Option<Said> {
    let whom = whom(&ir.peers, at, told);
    let ports = ports(&ir.ports, at, told);
    let rules = match (&ir.conditions, at.deny) {
        (None, _) => None,
        (Some(conditions), false) => Some(said::rules(conditions, at.path, told)?),
        // Cilium's denies have none.
        (Some(_), true) => {
            told.tell(
                Narrowed,
                at.path,
                "the deny loses its conditions",
                "write them under ingressDeny or egressDeny",
            );
            None
        }
    };
    let nobody = matches!(&whom, Whom::Any(peers) if peers.is_empty());
    if nobody && at.deny {
        let reason = "the deny names nobody: it is left out, and addresses of the pods' ranges that no pod has are not denied by it";
        told.tell(Dropped, at.path, reason, "nothing, unless it was to name somebody");
    }
    let nowhere = ports.as_ref().is_some_and(Vec::is_empty);
    (!nobody && !nowhere).then_some(Said { whom, ports, rules })
}

/// Ports of two rules that say the same otherwise.
fn join(before: &mut Option<Vec<Port>>, more: Option<Vec<Port>>) {
    match (before.as_mut(), more) {
        (Some(before), Some(more)) => {
            for port in more {
                if !before.contains(&port) {
                    before.push(port);
                }
            }
        }
        _ => *before = None,
    }
}
