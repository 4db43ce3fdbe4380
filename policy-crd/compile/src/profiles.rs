//! Profiles: the rules of every policy that selects a pod, resolved to classes and numbers.
//!
//! Pods that the same policies select, and whose named ports have the same numbers, share one. Knows nothing of
//! addresses.

use crate::classes::{Classes, Home, set};
use crate::index::{Index, PodEntry};
use crate::lower::{IsolationIr, PolicyIr, RuleIr, SideIr};
use crate::peers::{PeerItem, Peers, PortItem, Ports};
use sluice_crd::{Action, Entity, Tier};
use sluice_policy::{
    ClassId, Direction, IsolatedPorts, Isolation, LayerKind, Policy, PortRange, PortSet, Profile, ProfileId,
    Protocol, Rule, Scope, Side, TierAction, TierRule,
};
use std::collections::HashMap;
use std::sync::Arc;

/// A named port and the numbers it stands for on one pod.
type Resolved = Vec<(Arc<str>, Protocol, Vec<u16>)>;

/// The classes that peers mean, sorted; `None` for every class.
type Resolution = Option<Arc<[ClassId]>>;

/// The scopes of each rule of one direction of a policy.
type Scopes = Arc<[Vec<Scope>]>;

/// What profiles are built from.
pub(crate) struct Builder<'a> {
    pub(crate) index: &'a Index,
    pub(crate) classes: &'a Classes,
    pub(crate) policies: &'a [PolicyIr],
    /// By policy: what its rules carry. `None`: no pod here is selected, or it is off.
    pub(crate) handles: &'a [Option<Arc<Policy>>],
    /// By policy: whether its peers depend on the node of the pod that it selects.
    local: Vec<bool>,
    /// By the policy's namespace and the pod's node.
    memo: HashMap<(Arc<str>, Arc<str>, Peers), Resolution>,
    egress: HashMap<(usize, Arc<str>), Scopes>,
    shared: HashMap<(Vec<usize>, Arc<str>, Resolved), ProfileId>,
    distinct: HashMap<Profile, ProfileId>,
    profiles: Vec<Profile>,
}

impl<'a> Builder<'a> {
    pub(crate) fn new(
        index: &'a Index,
        classes: &'a Classes,
        policies: &'a [PolicyIr],
        handles: &'a [Option<Arc<Policy>>],
    ) -> Self {
        Self {
            index,
            classes,
            policies,
            handles,
            local: policies.iter().map(is_local).collect(),
            memo: HashMap::new(),
            egress: HashMap::new(),
            shared: HashMap::new(),
            distinct: HashMap::new(),
            profiles: Vec::new(),
        }
    }

    /// The profile of a pod that these policies select, in the order of their numbers.
    pub(crate) fn profile(&mut self, pod: &PodEntry, selecting: Vec<usize>) -> ProfileId {
        let resolved = self.named_ports(pod, &selecting);
        let local = selecting.iter().any(|policy| self.local[*policy]);
        let node = if local { pod.workload.node.clone() } else { "".into() };
        let key = (selecting, node, resolved);
        if let Some(id) = self.shared.get(&key) {
            return *id;
        }
        let profile = self.build(pod, &key.0, &key.1);
        let next = ProfileId(u32::try_from(self.profiles.len()).unwrap_or(u32::MAX));
        let id = *self.distinct.entry(profile).or_insert_with_key(|profile| {
            self.profiles.push(profile.clone());
            next
        });
        self.shared.insert(key, id);
        id
    }

    /// The distinct profiles, by number.
    pub(crate) fn finish(self) -> Vec<Profile> {
        self.profiles
    }

    /// What the named ports of these policies' ingress rules are on this pod.
    fn named_ports(&self, pod: &PodEntry, selecting: &[usize]) -> Resolved {
        let ports = selecting.iter().flat_map(|policy| {
            let side = &self.policies[*policy].ingress;
            let listed = match &side.isolation {
                IsolationIr::Listed(listed) => &listed[..],
                IsolationIr::Nothing | IsolationIr::Everything => &[],
            };
            let rules = side.allow.iter().chain(&side.deny).map(|rule| &rule.ports);
            rules.chain(listed.iter().map(|(_, ports)| ports))
        });
        let mut out: Resolved = Vec::new();
        for ports in ports {
            let Ports::Some(items) = ports else { continue };
            for item in items {
                if let PortItem::Named { name, protocol } = item {
                    out.push((name.clone(), *protocol, pod.resolve(name, *protocol).collect()));
                }
            }
        }
        out.sort_unstable();
        out.dedup();
        out
    }

    fn build(&mut self, pod: &PodEntry, selecting: &[usize], node: &Arc<str>) -> Profile {
        let mut profile = Profile::default();
        for &number in selecting {
            let policies = self.policies;
            let (ir, Some(policy)) = (&policies[number], self.handles[number].clone()) else { continue };
            let layer = LayerKind::ALL.iter().position(|kind| *kind == ir.layer).unwrap_or_default();
            for direction in Direction::ALL {
                let side_ir = ir.side(direction);
                let scopes = match direction {
                    Direction::Ingress => self.ingress_scopes(ir, pod, node),
                    Direction::Egress => self.egress_scopes(number, node).to_vec(),
                };
                let rule = |(rule, scopes): (&RuleIr, Vec<Scope>)| Rule {
                    policy: policy.clone(),
                    name: rule.name.clone(),
                    scopes,
                    conditions: rule.conditions.clone(),
                };
                let ports = self.isolated(side_ir, ir, direction, pod, node);
                let mut rules = side_ir.allow.iter().chain(&side_ir.deny).zip(scopes).map(rule);
                let side: &mut Side = match direction {
                    Direction::Ingress => &mut profile.ingress,
                    Direction::Egress => &mut profile.egress,
                };
                if let Some(tiered) = &ir.tiered {
                    let tier = match tiered.tier {
                        Tier::Admin => &mut side.admin,
                        Tier::Baseline => &mut side.baseline,
                    };
                    let actions = tiered.actions[direction as usize].iter().map(|action| match action {
                        Action::Accept => TierAction::Accept,
                        Action::Deny => TierAction::Deny,
                        Action::Pass => TierAction::Pass,
                    });
                    tier.extend(actions.zip(rules).map(|(action, rule)| TierRule { action, rule }));
                    continue;
                }
                side.layers[layer].allow.extend(rules.by_ref().take(side_ir.allow.len()));
                side.deny.extend(rules);
                if let Some(ports) = ports {
                    side.layers[layer].isolation.push(Isolation { policy: policy.clone(), ports });
                }
            }
        }
        profile
    }

    /// The ports that one direction of a policy isolates on this pod.
    fn isolated(
        &mut self,
        side: &SideIr,
        ir: &PolicyIr,
        direction: Direction,
        pod: &PodEntry,
        node: &Arc<str>,
    ) -> Option<IsolatedPorts> {
        let listed = match &side.isolation {
            IsolationIr::Nothing => return None,
            IsolationIr::Everything => return Some(IsolatedPorts::All),
            IsolationIr::Listed(listed) => listed,
        };
        let mut out = Vec::new();
        for (peers, ports) in listed {
            let Ports::Some(items) = ports else { return Some(IsolatedPorts::All) };
            for item in items {
                match (item, direction) {
                    (PortItem::Named { name, protocol }, Direction::Egress) => {
                        let peers = self.resolve(&ir.origin.namespace, node, peers);
                        let numbers = self.classes.by_port_number(peers.as_deref(), name, *protocol);
                        out.extend(numbers.into_keys().map(|number| (number, number)));
                    }
                    _ => out.extend(on_pod(item, pod).into_iter().map(|range| (range.first, range.last))),
                }
            }
        }
        out.sort_unstable();
        out.dedup();
        (!out.is_empty()).then_some(IsolatedPorts::Listed(out))
    }

    fn ingress_scopes(&mut self, ir: &PolicyIr, pod: &PodEntry, node: &Arc<str>) -> Vec<Vec<Scope>> {
        let rules = ir.ingress.allow.iter().chain(&ir.ingress.deny);
        rules
            .map(|rule| {
                let peers = self.resolve(&ir.origin.namespace, node, &rule.peers);
                let ports = match &rule.ports {
                    Ports::All => PortSet::All,
                    Ports::Some(items) => {
                        PortSet::Ranges(items.iter().flat_map(|item| on_pod(item, pod)).collect())
                    }
                };
                vec![Scope { peers: set(peers.as_deref()), ports }]
            })
            .collect()
    }

    /// Egress rules mean the same for every pod of a node, so they are resolved once per policy.
    fn egress_scopes(&mut self, number: usize, node: &Arc<str>) -> Scopes {
        let ir = &self.policies[number];
        let key = (number, if self.local[number] { node.clone() } else { "".into() });
        if let Some(scopes) = self.egress.get(&key) {
            return scopes.clone();
        }
        let namespace = &ir.origin.namespace;
        let mut scopes: Vec<Vec<Scope>> =
            ir.egress.allow.iter().map(|rule| self.egress_rule(namespace, &key.1, rule)).collect();
        for rule in &ir.egress.deny {
            let mut deny = self.egress_rule(namespace, &key.1, rule);
            deny.extend(unknown_ports(&rule.ports));
            scopes.push(deny);
        }
        let scopes: Scopes = scopes.into();
        self.egress.insert(key, scopes.clone());
        scopes
    }

    fn egress_rule(&mut self, namespace: &Arc<str>, node: &Arc<str>, rule: &RuleIr) -> Vec<Scope> {
        let peers = self.resolve(namespace, node, &rule.peers);
        let Ports::Some(items) = &rule.ports else {
            return vec![Scope { peers: set(peers.as_deref()), ports: PortSet::All }];
        };
        let mut ranges = Vec::new();
        let mut scopes = Vec::new();
        for item in items {
            match item {
                PortItem::Range(range) => ranges.push(*range),
                PortItem::Named { name, protocol } => {
                    let numbers = self.classes.by_port_number(peers.as_deref(), name, *protocol);
                    scopes.extend(numbers.into_iter().map(|(number, classes)| Scope {
                        peers: set(Some(&classes)),
                        ports: PortSet::Ranges(vec![single(*protocol, number)]),
                    }));
                }
            }
        }
        if !ranges.is_empty() {
            scopes.insert(0, Scope { peers: set(peers.as_deref()), ports: PortSet::Ranges(ranges) });
        }
        scopes
    }

    fn resolve(&mut self, namespace: &Arc<str>, node: &Arc<str>, peers: &Peers) -> Resolution {
        let node = if reads_node(peers) { node.clone() } else { "".into() };
        let home = Home { namespace, node: &node };
        let key = (namespace.clone(), node.clone(), peers.clone());
        if let Some(known) = self.memo.get(&key) {
            return known.clone();
        }
        let classes: Resolution = self.classes.resolve(peers, home, self.index).map(Into::into);
        self.memo.insert(key, classes.clone());
        classes
    }
}

/// Whether the peers of a policy's rules depend on the node of the pod that it selects.
fn is_local(policy: &PolicyIr) -> bool {
    let side = |side: &SideIr| {
        let listed = match &side.isolation {
            IsolationIr::Listed(listed) => listed.iter().any(|(peers, _)| reads_node(peers)),
            IsolationIr::Nothing | IsolationIr::Everything => false,
        };
        listed || side.allow.iter().chain(&side.deny).any(|rule| reads_node(&rule.peers))
    };
    side(&policy.ingress) || side(&policy.egress)
}

fn reads_node(peers: &Peers) -> bool {
    let Peers::Any(items) = peers else { return false };
    items.iter().flat_map(PeerItem::parts).any(|item| match item {
        PeerItem::Entities(entities) => {
            entities.contains(&Entity::Host) || entities.contains(&Entity::RemoteNode)
        }
        _ => false,
    })
}

/// The ports that a deny has at a peer nobody knows: what its named ports are there cannot be known, so they are any
/// of their protocol. No class is in the scope; the unknown peer is in every deny.
fn unknown_ports(ports: &Ports) -> Option<Scope> {
    let Ports::Some(items) = ports else { return None };
    let named = items.iter().filter_map(|item| match item {
        PortItem::Named { protocol, .. } => Some(PortRange::all(*protocol)),
        PortItem::Range(_) => None,
    });
    let mut ranges: Vec<PortRange> = named.collect();
    ranges.sort_unstable();
    ranges.dedup();
    (!ranges.is_empty()).then(|| Scope { peers: set(Some(&[])), ports: PortSet::Ranges(ranges) })
}

const fn single(protocol: Protocol, number: u16) -> PortRange {
    PortRange { protocol, first: number, last: number }
}

/// The ranges of a port item on the pod that is reached.
fn on_pod(item: &PortItem, pod: &PodEntry) -> Vec<PortRange> {
    match item {
        PortItem::Range(range) => vec![*range],
        PortItem::Named { name, protocol } => {
            pod.resolve(name, *protocol).map(|number| single(*protocol, number)).collect()
        }
    }
}
