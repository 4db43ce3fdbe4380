//! The engine against a second opinion: random clusters, policies of every kind and requests, judged by compiler and
//! engine and by the interpreter in `reference/`, which was written from the specifications alone. They must agree on
//! what happens on each side, why, what audited policies would do, and what the kernel does before anything is said.
//!
//! `PROPTEST_CASES` raises the number of cases.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;
mod generate;
#[path = "common/judge.rs"]
mod judge;
#[path = "common/kernel.rs"]
mod kernel;
mod reference;

use common::load;
use generate::{cilium, l7, network, requests, services, tiers, world};
use judge::judge as ask;
use kernel::{Keys, kernel, kernel_of_host, keys};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestCaseError};
use reference::cluster::{Cluster as Reference, Who};
use reference::kernel::{Row, row};
use reference::services::{backends, vip_row};
use reference::verdict::{Asked, Direction as Toward, Said as Spoken, Side, View, judge as opinion};
use serde_json::Value;
use sluice_compile::query::{Cluster, Port, Query, Said};
use sluice_compile::{NodeScope, Options, Rollout, compile};
use sluice_policy::{Decision, Direction, Protocol, RowAction, SideVerdict, Snapshot};

/// Questions asked of one cluster: making it costs more than asking.
const QUESTIONS: usize = 40;
/// Cases of one property where `PROPTEST_CASES` says nothing: with all of them the tests take some tens of seconds.
const CASES: u32 = 250;

/// Where the cases come from when nobody asks for more.
const SEED: u64 = 1;

fn config() -> ProptestConfig {
    let said = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    // The same cases every time, so that a change is judged by what it changes; a longer search draws anew.
    let rng_seed = if said.is_some() { RngSeed::Random } else { RngSeed::Fixed(SEED) };
    ProptestConfig {
        cases: said.unwrap_or(CASES),
        failure_persistence: None,
        rng_seed,
        ..ProptestConfig::default()
    }
}

/// The question as users ask it. `None`: it cannot be asked so.
fn query(asked: &Asked) -> Option<Query> {
    let said = match &asked.said {
        Spoken::Nothing => Said::Nothing,
        Spoken::Http(request) if request.version == 2 => {
            let (service, method) = request.path().strip_prefix('/')?.split_once('/')?;
            let headers = request.headers.iter().skip(1).cloned().collect();
            Said::Grpc { service: service.into(), method: method.into(), headers }
        }
        Spoken::Http(request) => Said::Http {
            method: request.method.clone(),
            target: request.target.clone(),
            host: request.host.clone(),
            headers: request.headers.clone(),
        },
        Spoken::Tls(server_name) => Said::Tls { server_name: server_name.clone() },
        Spoken::Bytes => return None,
    };
    let protocol = Protocol::parse(asked.protocol)?;
    let (from, to) = (asked.from.to_string(), asked.to.to_string());
    Some(Query { from, to, protocol, port: Port::Number(asked.port), said })
}

fn names(verdict: &SideVerdict) -> Vec<String> {
    let named = |finding: &sluice_policy::AuditFinding| finding.policy.as_ref().map(|p| p.origin.to_string());
    let mut names: Vec<String> = verdict.audit.would_deny.iter().filter_map(named).collect();
    names.sort();
    names
}

/// One side as the engine has it, in the words of the reference. Reasons of allows are left out: which of several
/// allows is named is nobody's specification.
fn told(verdict: &SideVerdict) -> Side {
    Side {
        allowed: verdict.decision == Decision::Allow,
        reason: if verdict.decision == Decision::Allow { "" } else { verdict.reason.as_str() },
        would_deny: names(verdict),
        together_deny: verdict.audit.together_deny.is_some(),
        would_allow: verdict.audit.would_allow,
    }
}

fn expected(side: Side) -> Side {
    if side.allowed { Side { reason: "", ..side } } else { side }
}

/// Both opinions on every question.
fn compare(objects: &[Value], questions: &[Asked]) -> Result<(), TestCaseError> {
    let (cluster, problems) = load(objects);
    let errors = problems.iter().filter(|problem| problem.severity == sluice_crd::Severity::Error);
    let errors: Vec<String> = errors.map(ToString::to_string).collect();
    prop_assert!(
        errors.is_empty(),
        "what the generators make is well-formed, and nothing of it is left out: {errors:#?}\n{}",
        shown(objects)
    );
    let reference = Reference::read(objects);
    let nodes = ["n1", "n2"].map(|name| Node::new(objects, name));
    for asked in questions {
        agree(&cluster, &reference, asked, objects)?;
        for direction in [Toward::Ingress, Toward::Egress] {
            same_row(&nodes, &reference, asked, direction)
                .map_err(|error| TestCaseError::fail(format!("{error}\n{}", shown(objects))))?;
        }
    }
    Ok(())
}

/// The objects, one a line.
fn shown(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("{object}\n")).collect()
}

fn agree(
    cluster: &Cluster,
    reference: &Reference,
    asked: &Asked,
    objects: &[Value],
) -> Result<(), TestCaseError> {
    let got = ask(cluster.snapshot(), asked);
    // Whoever asks by name asks the same. Of a node that has an own pod asked it is the node itself that asks.
    let by_node = matches!(reference.who(asked.from), Who::Node(_));
    if let Some(query) = query(asked).filter(|_| asked.from != asked.to && (asked.socket || !by_node)) {
        let by_name = cluster.ask(&query).unwrap();
        prop_assert_eq!(&by_name, &got, "{:?}", asked);
    }
    let Some((egress, ingress)) = opinion(reference, asked) else {
        prop_assert_eq!(
            got.decision(),
            Decision::Allow,
            "a pod reaching itself is never judged: {:?}",
            asked
        );
        return Ok(());
    };
    // A deny may consider more readings of a path than it must; all of them take long to find.
    let far = |ingress: bool| {
        let mut far = asked.clone();
        if let Spoken::Http(request) = &mut far.said {
            request.far = true;
        }
        opinion(reference, &far).map(|sides| expected(if ingress { sides.1 } else { sides.0 }))
    };
    let sides = [("egress", &got.egress, egress, false), ("ingress", &got.ingress, ingress, true)];
    for (name, engine, reference, is_ingress) in sides {
        let (engine, reference) = (told(engine), expected(reference));
        prop_assert!(
            engine == reference || Some(&engine) == far(is_ingress).as_ref(),
            "{name} of {asked:?}\nengine:    {engine:?}\nreference: {reference:?}\n{}",
            shown(objects)
        );
    }
    Ok(())
}

/// What the kernel of a node has.
struct Node {
    snapshot: Snapshot,
    rows: Keys,
    host_rows: Keys,
}

impl Node {
    fn new(objects: &[Value], name: &str) -> Self {
        let node = NodeScope::Named(name.into());
        let options = Options { node, rollout: Rollout::AsIfEnforced, generation: 1 };
        let snapshot = compile(&sluice_crd::load_value(objects).objects, &options).snapshot;
        let (rows, host_rows) = (keys(snapshot.rows()), keys(snapshot.host_rows()));
        Self { snapshot, rows, host_rows }
    }
}

/// Both opinions on what the kernel does at one end.
fn same_row(nodes: &[Node], reference: &Reference, asked: &Asked, toward: Toward) -> Result<(), String> {
    let (direction, own, peer) = match toward {
        Toward::Ingress => (Direction::Ingress, asked.to, asked.from),
        Toward::Egress => (Direction::Egress, asked.from, asked.to),
    };
    let found = nodes.iter().find_map(|node| Some((node, node.snapshot.endpoint_at(own)?)));
    let view = View::of(reference, asked, toward);
    let (Some(view), Some((node, endpoint))) = (&view, found) else {
        return if view.is_none() && found.is_none() { Ok(()) } else { Err(format!("who is {own}?")) };
    };
    // A pod reaching itself is never judged.
    if endpoint.addresses.contains(&peer) {
        return Ok(());
    }
    let protocol = Protocol::parse(asked.protocol).unwrap();
    let class = node.snapshot.class_of(peer);
    let found = told_row(match view.from_host {
        true => kernel_of_host(&node.host_rows, (endpoint.profile, class, protocol), asked.port),
        false => kernel(&node.rows, (endpoint.profile, direction, class, protocol), asked.port),
    });
    let expected = row(view);
    if found == expected {
        return Ok(());
    }
    Err(format!("{direction:?} of {asked:?}: the row is {found:?} and should be {expected:?}"))
}

/// A row as the engine has it, in the words of the reference.
fn told_row(row: sluice_policy::Row) -> Row {
    match row.action {
        RowAction::Allow => Row::Allow { audit: row.audit },
        RowAction::Deny => Row::Deny,
        RowAction::ToProxy => Row::ToProxy { fail_open: row.fail_open },
    }
}

/// Both opinions on what the kernel does with what each pod sends to each Service.
fn same_services(objects: &[Value]) -> Result<(), TestCaseError> {
    let reference = Reference::read(objects);
    for name in ["n1", "n2"] {
        let Node { snapshot, .. } = Node::new(objects, name);
        let rows = snapshot.service_rows();
        for (endpoint, service, protocol) in snapshot.endpoints.iter().flat_map(|endpoint| {
            let services = objects.iter().filter(|object| object["kind"] == "Service");
            services.flat_map(move |service| [(endpoint, service, "TCP"), (endpoint, service, "UDP")])
        }) {
            let Some(vip) = service["spec"]["clusterIP"].as_str().filter(|vip| *vip != "None") else {
                continue;
            };
            let to: std::net::IpAddr = vip.parse().unwrap();
            let Some(from) = endpoint.addresses.iter().find(|address| address.is_ipv4()).copied() else {
                continue;
            };
            let asked = Asked { from, to, protocol, port: 80, socket: false, said: Spoken::Nothing };
            let behind = backends(objects, service, &asked, name);
            let asks = Protocol::parse(protocol).unwrap();
            let mut had: Vec<_> = snapshot
                .services
                .at(to, asks, 80)
                .unwrap()
                .1
                .of_family(to)
                .map(|b| (b.address, b.port))
                .collect();
            let mut expected = behind.clone();
            expected.sort();
            expected.dedup();
            had.sort();
            prop_assert_eq!(had, expected, "{:?} on {}\n{}", asked, name, shown(objects));
            let Some(expected) = vip_row(&reference, &behind, &asked) else { continue };
            let class =
                rows.ports.iter().find(|port| (port.address, port.protocol, port.port) == (to, asks, 80));
            let class = class.unwrap().class;
            let row = rows
                .rows
                .iter()
                .find(|row| (row.profile, row.class, row.protocol) == (endpoint.profile, class, asks));
            let found = row.map_or(Row::Deny, |row| told_row(row.row));
            prop_assert_eq!(found, expected, "{:?} on {}\n{}", asked, name, shown(objects));
        }
    }
    Ok(())
}

/// Policies of these kinds, each with its name.
fn policies(kinds: &'static [fn(String) -> generate::Made]) -> impl Strategy<Value = Vec<Value>> {
    (1..5_usize).prop_flat_map(move |many| {
        let policy = |at: usize| {
            let of_kind = kinds.iter().map(move |kind| kind(format!("p{at}")));
            proptest::strategy::Union::new(of_kind)
        };
        (0..many).map(policy).collect::<Vec<_>>()
    })
}

/// Policies of tiers, of priorities that differ.
fn tiered() -> impl Strategy<Value = Vec<Value>> {
    (1..4_usize).prop_flat_map(|many| {
        (0..many).map(|at| tiers::policy(format!("t{at}"), at * 10)).collect::<Vec<_>>()
    })
}

fn questions() -> impl Strategy<Value = Vec<Asked>> {
    prop::collection::vec(requests::asked(), QUESTIONS)
}

fn check(world: &[Value], policies: &[Value], questions: &[Asked]) -> Result<(), TestCaseError> {
    let objects: Vec<Value> = world.iter().chain(policies).cloned().collect();
    compare(&objects, questions)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn network_policies(world in world::world(), policies in policies(&[network::policy]), asked in questions()) {
        check(&world, &policies, &asked)?;
    }

    #[test]
    fn l7_network_policies(world in world::world(), policies in policies(&[l7::policy]), asked in questions()) {
        check(&world, &policies, &asked)?;
    }

    #[test]
    fn cilium_network_policies(world in world::world(), policies in policies(&[cilium::policy]), asked in questions()) {
        check(&world, &policies, &asked)?;
    }

    #[test]
    fn kinds_together(
        world in world::world(),
        policies in policies(&[network::policy, l7::policy, l7::policy, cilium::policy]),
        asked in questions(),
    ) {
        check(&world, &policies, &asked)?;
    }

    #[test]
    fn what_is_sent_to_services(
        world in world::world(),
        services in services::services(),
        policies in policies(&[network::policy, l7::policy, cilium::policy]),
        tiered in tiered(),
    ) {
        let parts = [world, services, policies, tiered];
        same_services(&parts.concat())?;
    }

    #[test]
    fn tiers(
        world in world::world(),
        policies in policies(&[network::policy, l7::policy]),
        tiered in tiered(),
        asked in questions(),
    ) {
        let policies: Vec<Value> = policies.into_iter().chain(tiered).collect();
        check(&world, &policies, &asked)?;
    }
}
