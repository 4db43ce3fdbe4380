//! The kernel's rows against the engine, on random clusters through the compiler: no row lets through what the engine
//! would refuse, for any class of peers.
//!
//! An Allow row lets every request pass without anybody reading it, so the engine must allow each; a Deny row lets
//! none through, so it must deny each; a row to the proxy for audit alone must be one where everything enforcing
//! allows. `PROPTEST_CASES` raises the number of cases.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;
mod generate;
#[path = "common/judge.rs"]
mod judge;
#[path = "common/kernel.rs"]
mod kernel;
mod reference;

use generate::{cilium, l7, network, requests, tiers, world};
use judge::with_facts;
use kernel::{Keys, kernel, kernel_of_host, keys};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestCaseError};
use reference::verdict::Said;
use serde_json::Value;
use sluice_compile::{NodeScope, Options, Rollout, compile};
use sluice_policy::{
    ClassId, Decision, Direction, Endpoint, Facts, ProfileId, Protocol, RowAction, Snapshot, Source, Verdict,
};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// Cases where `PROPTEST_CASES` says nothing: some seconds.
const CASES: u32 = 60;
/// Where the cases come from when nobody asks for more.
const SEED: u64 = 1;
/// Things said over each connection.
const SAID: usize = 8;
/// The ports of the generators, those beside them and the ends.
const PORTS: [u16; 9] = [0, 1, 79, 80, 81, 90, 8080, 8081, 65535];

fn config() -> ProptestConfig {
    let said = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let rng_seed = if said.is_some() { RngSeed::Random } else { RngSeed::Fixed(SEED) };
    ProptestConfig {
        cases: said.unwrap_or(CASES),
        failure_persistence: None,
        rng_seed,
        ..ProptestConfig::default()
    }
}

/// An address of every class that has one.
fn peers(snapshot: &Snapshot) -> HashMap<ClassId, IpAddr> {
    let mut out = HashMap::new();
    for (prefix, _) in snapshot.addresses.iter() {
        let first = prefix.mapped_bits();
        let last = first | u128::MAX.checked_shr(u32::from(prefix.mapped_len())).unwrap_or(0);
        for bits in [first, last] {
            let address = Ipv6Addr::from(bits).to_canonical();
            out.entry(snapshot.class_of(address)).or_insert(address);
        }
    }
    out
}

fn scene() -> impl Strategy<Value = Vec<Value>> {
    let policies = (
        network::policy("np".into()),
        (l7::policy("l7-1".into()), l7::policy("l7-2".into())),
        cilium::policy("cilium".into()),
        (tiers::policy("tier-1".into(), 5), tiers::policy("tier-2".into(), 6)),
    );
    (world::world(), policies, 1..64_u32).prop_map(|(mut objects, (np, l7, cilium, tiers), mask)| {
        let all = [np, l7.0, l7.1, cilium, tiers.0, tiers.1];
        let taken = all.into_iter().enumerate().filter(|(at, _)| mask & (1 << at) != 0);
        objects.extend(taken.map(|(_, policy)| policy));
        objects
    })
}

/// What a process of the node opens to one endpoint, from an address of this class.
fn check_host(
    snapshot: &Snapshot,
    keys: &Keys,
    endpoint: &Endpoint,
    peer: (ClassId, IpAddr),
    said: &[Said],
) -> Result<(), TestCaseError> {
    for protocol in Protocol::ALL {
        for port in PORTS.into_iter().filter(|port| protocol.has_ports() || *port == 0) {
            let row = kernel_of_host(keys, (endpoint.profile, peer.0, protocol), port);
            let expected = match (row.action, row.fail_open) {
                (RowAction::Allow, _) | (RowAction::ToProxy, true) => Decision::Allow,
                (RowAction::Deny, _) => Decision::Deny,
                (RowAction::ToProxy, false) => continue,
            };
            let readable = said
                .iter()
                .filter(|said| protocol == Protocol::Tcp || !matches!(said, Said::Http(_) | Said::Tls(_)));
            for said in readable {
                let to = endpoint.addresses[0];
                let source = Source::Host(peer.1);
                let verdict =
                    with_facts(said, |facts| snapshot.judge(source, to, protocol, port, facts).ingress);
                let place = format!("host at {peer:?} to {to}, {protocol} {port}, {said:?}");
                prop_assert_eq!(verdict.decision, expected, "{} {:?} {:?}", place, row, verdict);
            }
        }
    }
    Ok(())
}

/// One endpoint, one peer, every protocol and port.
fn check(
    snapshot: &Snapshot,
    keys: &Keys,
    endpoint: &Endpoint,
    peer: (ClassId, IpAddr),
    said: &[Said],
) -> Result<usize, TestCaseError> {
    let own = endpoint.addresses[0];
    let mut rows = 0;
    for direction in Direction::ALL {
        for protocol in Protocol::ALL {
            for port in PORTS.into_iter().filter(|port| protocol.has_ports() || *port == 0) {
                let row = kernel(keys, (endpoint.profile, direction, peer.0, protocol), port);
                let side = |facts: Facts<'_>| {
                    let (from, to) =
                        if direction == Direction::Ingress { (peer.1, own) } else { (own, peer.1) };
                    let Verdict { egress, ingress } = snapshot.judge(from, to, protocol, port, facts);
                    if direction == Direction::Ingress { ingress } else { egress }
                };
                // Bytes of other protocols than TCP are nobody's to read.
                let readable = said.iter().filter(|said| {
                    protocol == Protocol::Tcp || !matches!(said, Said::Http(_) | Said::Tls(_))
                });
                for said in readable {
                    let verdict = with_facts(said, side);
                    let expected = match (row.action, row.fail_open) {
                        (RowAction::Allow, _) | (RowAction::ToProxy, true) => Decision::Allow,
                        (RowAction::Deny, _) => Decision::Deny,
                        (RowAction::ToProxy, false) => continue,
                    };
                    let place = format!("{direction:?} of {own}, {peer:?}, {protocol} {port}, {said:?}");
                    prop_assert_eq!(verdict.decision, expected, "{} {:?} {:?}", place, row, verdict);
                }
                rows += 1;
            }
        }
    }
    Ok(rows)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_row_is_more_permissive_than_the_engine(
        objects in scene(),
        asked in prop::collection::vec(requests::asked(), SAID),
    ) {
        let loaded = sluice_crd::load_value(&objects);
        let said: Vec<Said> = asked.into_iter().map(|asked| asked.said).chain([Said::Nothing, Said::Bytes, Said::Tls(None)]).collect();
        let mut rows = 0;
        for node in ["n1", "n2"] {
            let options = Options { node: NodeScope::Named(node.into()), rollout: Rollout::AsIfEnforced, generation: 1 };
            let snapshot = compile(&loaded.objects, &options).snapshot;
            let (rows_of, peers) = (keys(snapshot.rows()), peers(&snapshot));
            let host = keys(snapshot.host_rows());
            for endpoint in snapshot.endpoints.iter().filter(|endpoint| endpoint.profile != ProfileId::REFUSED) {
                for peer in peers.iter().filter(|(_, address)| !endpoint.addresses.contains(address)) {
                    rows += check(&snapshot, &rows_of, endpoint, (*peer.0, *peer.1), &said)?;
                    // A node may send from an address that is nobody's, or the world's: its bridge's.
                    check_host(&snapshot, &host, endpoint, (*peer.0, *peer.1), &said)?;
                }
            }
        }
        let pods = snapshot_pods(&objects);
        prop_assert!(rows > 0 || pods == 0, "{} endpoints and no row was compared", pods);
    }
}

/// The pods that can be endpoints.
fn snapshot_pods(objects: &[Value]) -> usize {
    let runs = |pod: &&Value| pod["spec"]["hostNetwork"] != true && pod["status"]["phase"] == "Running";
    objects.iter().filter(|object| object["kind"] == "Pod").filter(runs).count()
}
