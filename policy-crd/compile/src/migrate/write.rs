//! Units and their places into manifests.
//!
//! Knows nothing of Cilium, nor of how a manifest is printed.

use super::groups::Place;
use super::labels::written;
use super::names::Names;
use super::peers::Whom;
use super::units::{Said, Side, Unit};
use super::{Manifest, Written};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sluice_crd::limits::{MAX_MATCHES, MAX_PEERS, MAX_PORTS, MAX_RULES, MAX_SERVER_NAMES};
use sluice_crd::{IsolationScope, L7NetworkPolicySpec, L7Rule, L7Rules, Peer, Port, TlsRules};
use sluice_policy::Direction;

/// The kinds of results.
pub(super) const NETWORK_POLICY: &str = "NetworkPolicy";
pub(super) const L7_NETWORK_POLICY: &str = "L7NetworkPolicy";

/// The manifests of one unit.
pub(super) fn unit(unit: &Unit, places: [Place; 2], names: &mut Names) -> Vec<Manifest> {
    let chosen = |wanted: &dyn Fn(&Place) -> bool| -> Vec<Direction> {
        Direction::ALL.into_iter().filter(|direction| wanted(&places[*direction as usize])).collect()
    };
    let (in_k, in_l) = (chosen(&|place| place.k), chosen(&|place| place.l));
    let denies = unit.sides.iter().any(|side| !side.deny.is_empty());
    let mut out = Vec::new();
    // What stays in K is there already.
    if !in_k.is_empty() && unit.policy.is_some() {
        out.push(network_policy(unit, &in_k, &in_l, names));
    }
    if !in_l.is_empty() || denies {
        out.extend(l7(unit, &in_l, names));
    }
    out
}

fn types(directions: &[Direction]) -> Vec<String> {
    let word = |direction: &Direction| match direction {
        Direction::Ingress => "Ingress".to_owned(),
        Direction::Egress => "Egress".to_owned(),
    };
    directions.iter().map(word).collect()
}

fn origin(unit: &Unit) -> String {
    let place = if unit.path == "spec" { String::new() } else { format!(" {}", unit.path) };
    let beside = unit
        .beside
        .as_ref()
        .map(|from| format!(", which closes nothing itself, for the pods that {from} closes"));
    format!("{}{place}{}", unit.from, beside.unwrap_or_default())
}

/// Who may connect: exactly where `NetworkPolicy` can say it, else everybody, for layer L narrows it.
fn network_policy(
    unit: &Unit,
    directions: &[Direction],
    narrowed: &[Direction],
    names: &mut Names,
) -> Manifest {
    let reach = |direction: Direction| {
        directions.contains(&direction).then(|| reach(unit.side(direction))).filter(|rules| !rules.is_empty())
    };
    let ingress = reach(Direction::Ingress).map(|rules| {
        let rule = |(from, ports)| NetworkPolicyIngressRule { from, ports };
        rules.into_iter().map(rule).collect()
    });
    let egress = reach(Direction::Egress).map(|rules| {
        let rule = |(to, ports)| NetworkPolicyEgressRule { to, ports };
        rules.into_iter().map(rule).collect()
    });
    let spec = NetworkPolicySpec {
        pod_selector: Some(written(&unit.pods)),
        policy_types: Some(types(directions)),
        ingress,
        egress,
    };
    let name = names.unique(NETWORK_POLICY, &unit.namespace, &unit.name);
    let mut notes = vec![format!("Who may connect. From {}.", origin(unit))];
    if directions.iter().any(|direction| !unit.side(*direction).is_plain()) {
        notes.push("Where NetworkPolicy cannot say whom it means it lets everybody in.".to_owned());
    }
    if directions.iter().any(|direction| narrowed.contains(direction)) {
        notes.push("The L7NetworkPolicy below must agree.".to_owned());
    }
    let metadata =
        ObjectMeta { name: Some(name), namespace: Some(unit.namespace.to_string()), ..ObjectMeta::default() };
    Manifest { notes, object: Written::NetworkPolicy(Box::new(NetworkPolicy { metadata, spec: Some(spec) })) }
}

type Reach = (Option<Vec<NetworkPolicyPeer>>, Option<Vec<NetworkPolicyPort>>);

/// The connections that a side allows, conditions left out.
fn reach(side: &Side) -> Vec<Reach> {
    let mut out: Vec<Reach> = Vec::new();
    for Said { whom, ports, .. } in &side.allow {
        let peers = match whom {
            Whom::Any(peers) if whom.is_plain() => Some(peers.iter().map(plain_peer).collect::<Vec<_>>()),
            Whom::Any(_) | Whom::Everybody => None,
        };
        let ports: Option<Vec<NetworkPolicyPort>> =
            ports.as_ref().map(|ports| ports.iter().map(plain_port).collect());
        match (out.iter_mut().find(|(before, _)| *before == peers), ports) {
            (Some((_, Some(before))), Some(ports)) => {
                for port in ports {
                    if !before.contains(&port) {
                        before.push(port);
                    }
                }
            }
            (Some((_, before)), _) => *before = None,
            (None, ports) => out.push((peers, ports)),
        }
    }
    out
}

fn plain_peer(peer: &Peer) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        pod_selector: peer.pod_selector.clone(),
        namespace_selector: peer.namespace_selector.clone(),
        ip_block: peer
            .ip_block
            .as_ref()
            .map(|block| IPBlock { cidr: block.cidr.clone(), except: block.except.clone() }),
    }
}

fn plain_port(port: &Port) -> NetworkPolicyPort {
    NetworkPolicyPort { port: port.port.clone(), protocol: port.protocol.clone(), end_port: port.end_port }
}

/// What they may say, in as many objects as the bound on rules makes of it.
fn l7(unit: &Unit, directions: &[Direction], names: &mut Names) -> Vec<Manifest> {
    let allow = |direction: Direction| match directions.contains(&direction) {
        true => rules(&unit.side(direction).allow, direction),
        false => Vec::new(),
    };
    let deny = |direction: Direction| rules(&unit.side(direction).deny, direction);
    // Denies alone close nothing.
    let isolation = directions.is_empty().then_some(IsolationScope::None);
    let [ingress, egress] = Direction::ALL.map(allow);
    let [ingress_deny, egress_deny] = Direction::ALL.map(deny);
    let most = [&ingress, &egress, &ingress_deny, &egress_deny].into_iter().map(Vec::len).max().unwrap_or(0);
    let part = |rules: &[L7Rule], at: usize| {
        let rules: Vec<L7Rule> = rules.iter().skip(at * MAX_RULES).take(MAX_RULES).cloned().collect();
        (!rules.is_empty()).then_some(rules)
    };
    let one = |at: usize| {
        let spec = L7NetworkPolicySpec {
            pod_selector: Some(written(&unit.pods)),
            policy_types: (!directions.is_empty()).then(|| types(directions)),
            isolation,
            ingress: part(&ingress, at),
            egress: part(&egress, at),
            ingress_deny: part(&ingress_deny, at),
            egress_deny: part(&egress_deny, at),
            ..L7NetworkPolicySpec::default()
        };
        let name = names.unique(L7_NETWORK_POLICY, &unit.namespace, &unit.name);
        let namespace = unit.namespace.to_string();
        Manifest {
            notes: notes(unit, directions),
            object: Written::L7NetworkPolicy { namespace, name, spec: Box::new(spec) },
        }
    };
    (0..most.div_ceil(MAX_RULES).max(1)).map(one).collect()
}

fn notes(unit: &Unit, directions: &[Direction]) -> Vec<String> {
    if unit.policy.is_none() {
        return vec![format!(
            "Repeats {}, which stays: another L7NetworkPolicy is about the same pods, and both kinds must agree. Change both.",
            unit.from
        )];
    }
    let conditions = directions.iter().any(|direction| unit.side(*direction).has_conditions());
    let what = match (directions.is_empty(), conditions) {
        (true, _) => "Who may not connect",
        (false, true) => "What they may say",
        (false, false) => "Who may connect",
    };
    vec![format!("{what}. From {}.", origin(unit))]
}

/// Rules as our kind writes them, split where a list would be too long.
fn rules(all: &[Said], direction: Direction) -> Vec<L7Rule> {
    let mut out = Vec::new();
    for Said { whom, ports, rules } in all {
        let peers = match whom {
            Whom::Everybody => vec![None],
            Whom::Any(peers) => peers.chunks(MAX_PEERS).map(|some| Some(some.to_vec())).collect(),
        };
        let ports = match ports {
            None => vec![None],
            Some(ports) => ports.chunks(MAX_PORTS).map(|some| Some(some.to_vec())).collect(),
        };
        for rules in conditions(rules.as_ref()) {
            for peers in &peers {
                for ports in &ports {
                    let (from, to) = match direction {
                        Direction::Ingress => (peers.clone(), None),
                        Direction::Egress => (None, peers.clone()),
                    };
                    out.push(L7Rule { name: None, from, to, ports: ports.clone(), rules: rules.clone() });
                }
            }
        }
    }
    out
}

fn conditions(rules: Option<&L7Rules>) -> Vec<Option<L7Rules>> {
    let Some(rules) = rules else { return vec![None] };
    let http = rules.http.as_deref().unwrap_or_default();
    let names = rules.tls.as_ref().map_or(&[][..], |tls| &tls.server_names);
    if http.len() <= MAX_MATCHES && names.len() <= MAX_SERVER_NAMES {
        return vec![Some(rules.clone())];
    }
    let http =
        http.chunks(MAX_MATCHES).map(|some| L7Rules { http: Some(some.to_vec()), ..L7Rules::default() });
    let tls = names.chunks(MAX_SERVER_NAMES).map(|some| {
        let tls = Some(TlsRules { server_names: some.to_vec() });
        L7Rules { tls, ..L7Rules::default() }
    });
    http.chain(tls).map(Some).collect()
}
