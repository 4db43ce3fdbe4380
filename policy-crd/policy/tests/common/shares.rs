//! Random sides, policy by policy.

use super::{allow, conditions, isolate, policy};
use proptest::prelude::*;
use sluice_policy::{
    ClassId, ClassSet, IsolatedPorts, Kind, Mode, PathMatch, PortRange, PortSet, Protocol, Rule, Scope, Side,
    TierAction, TierRule,
};
use std::sync::Arc;

/// Classes 0 (nobody knows) to 3.
pub const CLASSES: u32 = 4;

fn range() -> impl Strategy<Value = PortRange> {
    let port = prop_oneof![
        Just(0u16),
        Just(1),
        Just(79),
        Just(80),
        Just(443),
        Just(65534),
        Just(65535),
        any::<u16>()
    ];
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    (protocol, port.clone(), port).prop_map(|(protocol, a, b)| PortRange {
        protocol,
        first: a.min(b),
        last: a.max(b),
    })
}

fn rule(id: u32, mode: Mode) -> impl Strategy<Value = Rule> {
    let ports = prop_oneof![
        1 => Just(PortSet::All),
        3 => prop::collection::vec(range(), 0..3).prop_map(PortSet::Ranges)
    ];
    let peers = prop_oneof![
        1 => Just(ClassSet::All),
        2 => prop::collection::vec((1..CLASSES).prop_map(ClassId), 0..3).prop_map(ClassSet::of)
    ];
    (peers, ports, prop::option::of(prop_oneof![Just("/a"), Just("/b")])).prop_map(
        move |(peers, ports, path)| {
            let conditions = path.map(|path| conditions("GET", PathMatch::prefix(path)));
            let policy = policy(id, Kind::L7NetworkPolicy, mode);
            let mut rule = allow(&policy, [], &[], conditions);
            rule.scopes[0] = Scope { peers, ports };
            rule
        },
    )
}

/// One policy's share of a side: denies, isolation and allows in either layer.
pub fn share(id: u32) -> impl Strategy<Value = Share> {
    let listed = prop::collection::vec((any::<u16>(), any::<u16>()), 1..2)
        .prop_map(|v| IsolatedPorts::Listed(v.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect()));
    let ports = prop_oneof![2 => Just(IsolatedPorts::All), 1 => listed];
    let rules = |n| prop::collection::vec(rule(id, Mode::Enforce), 0..n);
    let tier = || {
        let action = prop::sample::select(vec![TierAction::Accept, TierAction::Deny, TierAction::Pass]);
        prop::collection::vec(
            (action, rule(id, Mode::Enforce)).prop_map(|(action, rule)| TierRule { action, rule }),
            0..3,
        )
    };
    (rules(2), rules(3), prop::option::of(ports), 0..2usize, [tier(), tier()]).prop_map(
        move |(denies, allows, ports, layer, tiers)| {
            Share(Arc::new((id, denies, allows, ports, layer, tiers)))
        },
    )
}

type Parts = (u32, Vec<Rule>, Vec<Rule>, Option<IsolatedPorts>, usize, [Vec<TierRule>; 2]);

#[derive(Clone, Debug)]
pub struct Share(Arc<Parts>);

impl Share {
    /// Adds the policy's rules, each with a name of its own.
    pub fn add(&self, side: &mut Side, mode: Mode) {
        let (id, denies, allows, ports, layer, tiers) = &*self.0;
        let policy = policy(*id, Kind::L7NetworkPolicy, mode);
        let owned = |field: &str, at: usize, rule: &Rule| {
            let name = format!("{field}[{at}]").into();
            Rule { policy: policy.clone(), name, ..rule.clone() }
        };
        let all = |field: &'static str, rules: &[Rule]| -> Vec<Rule> {
            rules.iter().enumerate().map(|(at, rule)| owned(field, at, rule)).collect()
        };
        let tier = |field: &'static str, rules: &[TierRule]| -> Vec<TierRule> {
            let tiered = |(at, tiered): (usize, &TierRule)| TierRule {
                action: tiered.action,
                rule: owned(field, at, &tiered.rule),
            };
            rules.iter().enumerate().map(tiered).collect()
        };
        side.admin.extend(tier("admin", &tiers[0]));
        side.baseline.extend(tier("baseline", &tiers[1]));
        side.deny.extend(all("deny", denies));
        side.layers[*layer].allow.extend(all("allow", allows));
        if let Some(ports) = ports {
            let mut isolation = isolate(&policy);
            isolation.ports = ports.clone();
            side.layers[*layer].isolation.push(isolation);
        }
    }
}
