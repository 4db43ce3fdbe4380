//! What must hold for every policy: the kernel's rows and the walk agree, and audit keeps its promise.

mod common;

use common::shares::{CLASSES, share};
use common::{connection, get};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use sluice_policy::{
    Class, ClassId, Connection, Decision, Direction, Facts, Identity, Mode, PortPrefix, Profile, Protocol,
    Row, RowAction, RowEntry, Side, Snapshot,
};

fn snapshot(side: Side) -> Snapshot {
    let class = |_| Class { identity: Identity::World, cidrs: vec![] };
    Snapshot {
        classes: (0..CLASSES).map(class).collect(),
        profiles: vec![Profile { ingress: side, egress: Side::default() }].into(),
        ..Snapshot::default()
    }
}

fn kernel(rows: &[RowEntry], peer: ClassId, protocol: Protocol, port: u16) -> Row {
    let matches = |p: &PortPrefix| p.len == 0 || (port ^ p.port) >> (16 - u16::from(p.len)) == 0;
    rows.iter()
        .filter(|e| e.direction == Direction::Ingress && e.class == peer && e.protocol == protocol)
        .filter(|e| matches(&e.ports))
        .max_by_key(|e| e.ports.len)
        .map(|e| e.row)
        .expect("every key has a row of length 0")
}

/// The classes that rows of the node have.
fn classes_of_host(named: bool) -> &'static [ClassId] {
    if named { &[ClassId(0), ClassId(2), ClassId(3)] } else { &[ClassId(0)] }
}

/// A row names the rule of the verdict on the connection, and where none decides, a policy that isolates.
fn names_what_the_verdict_names(
    side: &Side,
    peer: ClassId,
    protocol: Protocol,
    port: u16,
    row: Row,
) -> Result<(), TestCaseError> {
    let verdict = side.judge(&Connection::new(peer, protocol, port), Facts::Connection);
    let named = row.by.and_then(|by| side.decided(by));
    if row.action == RowAction::ToProxy {
        prop_assert!(named.is_none());
        return Ok(());
    }
    prop_assert_eq!(named.and_then(|(_, rule)| rule), verdict.rule.as_ref());
    prop_assert_eq!(named.is_some(), verdict.policy.is_some());
    if verdict.rule.is_some() {
        prop_assert_eq!(named.map(|(policy, _)| policy), verdict.policy.as_ref());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn rows_are_what_the_walk_says(
        a in share(0), b in share(1), c in share(2),
        audited in any::<[bool; 3]>(),
        ports in prop::collection::vec(any::<u16>(), 8),
    ) {
        let mut side = Side::default();
        let mode = |i: usize| if audited[i] { Mode::Audit } else { Mode::Enforce };
        a.add(&mut side, mode(0));
        b.add(&mut side, mode(1));
        c.add(&mut side, mode(2));
        let edges: Vec<u16> = side.rules()
            .flat_map(|r| r.ranges().flat_map(|r| [r.first, r.last, r.first.wrapping_sub(1), r.last.wrapping_add(1)]))
            .collect();
        let rows: Vec<RowEntry> = snapshot(side.clone()).rows().collect();
        let unnamed: Vec<RowEntry> = snapshot(side.clone()).rows_unnamed().collect();
        prop_assert!(unnamed.len() <= rows.len());
        for peer in (0..CLASSES).map(ClassId) {
            for protocol in Protocol::ALL {
                for port in ports.iter().chain(&edges).copied() {
                    let port = if protocol.has_ports() { port } else { 0 };
                    let walk = side.row(&Connection::new(peer, protocol, port));
                    prop_assert_eq!(kernel(&rows, peer, protocol, port), walk, "{:?} {} {}", peer, protocol, port);
                    let unnamed = kernel(&unnamed, peer, protocol, port);
                    prop_assert_eq!(unnamed, Row { by: None, ..walk }, "{:?} {} {}", peer, protocol, port);
                    names_what_the_verdict_names(&side, peer, protocol, port, walk)?;
                }
            }
        }
    }

    #[test]
    fn rows_of_the_node_are_what_the_walk_says(
        a in share(0), b in share(1), audited in any::<[bool; 2]>(),
        ports in prop::collection::vec(any::<u16>(), 8), named in any::<bool>(),
    ) {
        let mut side = Side::default();
        let mode = |i: usize| if audited[i] { Mode::Audit } else { Mode::Enforce };
        a.add(&mut side, mode(0));
        b.add(&mut side, mode(1));
        let edges: Vec<u16> = side.rules()
            .flat_map(|r| r.ranges().flat_map(|r| [r.first, r.last, r.first.wrapping_sub(1), r.last.wrapping_add(1)]))
            .collect();
        let mut snapshot = snapshot(side.clone());
        // The class of an address of the node, and that of every other.
        if named {
            let node = |cidrs| Class { identity: Identity::Node("n".into()), cidrs };
            snapshot.classes[2] = node(vec!["192.0.2.1/32".into()]);
            snapshot.classes[3] = node(Vec::new());
        }
        let rows: Vec<RowEntry> = snapshot.host_rows().collect();
        let classes = if named { vec![(2, 2), (3, 3), (0, 3)] } else { vec![(0, 0)] };
        for (class, peer) in classes {
            for protocol in Protocol::ALL {
                for port in ports.iter().chain(&edges).copied() {
                    let port = if protocol.has_ports() { port } else { 0 };
                    let asked = Connection { from_host: true, ..Connection::new(ClassId(peer), protocol, port) };
                    let passes = Row { action: RowAction::Allow, fail_open: false, audit: false, reject: false, by: None };
                    let row = if rows.is_empty() { passes } else { kernel(&rows, ClassId(class), protocol, port) };
                    prop_assert_eq!(row, side.row(&asked), "{} {:?} {}", class, protocol, port);
                }
            }
        }
        prop_assert!(rows.iter().all(|row| classes_of_host(named).contains(&row.class)));
    }

    #[test]
    fn promoting_does_what_audit_said(
        a in share(0), b in share(1), c in share(2),
        port in prop_oneof![Just(80u16), Just(443), any::<u16>()],
        peer in 0..CLASSES,
        path in prop_oneof![Just("/a"), Just("/b"), Just("/c")],
    ) {
        let build = |modes: [Mode; 3]| {
            let mut side = Side::default();
            a.add(&mut side, modes[0]);
            b.add(&mut side, modes[1]);
            c.add(&mut side, modes[2]);
            side
        };
        use Mode::{Audit, Enforce};
        let request = get(path);
        let connection = connection(ClassId(peer), port);
        let decide = |modes| build(modes).judge(&connection, Facts::Request(&request));
        let said = decide([Enforce, Audit, Audit]);
        let says = |id: u32| said.audit.would_deny.iter().any(|f| f.policy.as_ref().is_some_and(|p| p.id.0 == id));
        let denied = |modes| decide(modes).decision == Decision::Deny;
        let mut alone = Side::default();
        a.add(&mut alone, Enforce);
        prop_assert_eq!(said.decision, alone.judge(&connection, Facts::Request(&request)).decision,
            "audit never decides");
        if said.decision == Decision::Allow {
            let one = [denied([Enforce, Enforce, Audit]), denied([Enforce, Audit, Enforce])];
            prop_assert_eq!(said.audit.would_deny.len(), usize::from(one[0]) + usize::from(one[1]));
            prop_assert!(says(1) <= one[0] && says(2) <= one[1]);
            prop_assert_eq!(said.audit.together_deny.is_some(), denied([Enforce; 3]));
        } else {
            prop_assert_eq!(said.audit.would_allow, !denied([Enforce; 3]));
        }
    }

    #[test]
    fn a_row_that_denies_never_meets_an_allow(
        a in share(0), b in share(1),
        port in any::<u16>(), peer in 0..CLASSES,
        path in prop_oneof![Just("/a"), Just("/b"), Just("/c")],
    ) {
        let mut side = Side::default();
        a.add(&mut side, Mode::Enforce);
        b.add(&mut side, Mode::Enforce);
        let connection = connection(ClassId(peer), port);
        let request = get(path);
        let row = side.row(&connection).action;
        let facts = [Facts::Request(&request), Facts::Unknown].map(|facts| side.judge(&connection, facts).decision);
        match row {
            RowAction::Deny => prop_assert_eq!(facts, [Decision::Deny; 2]),
            RowAction::Allow => prop_assert_eq!(facts, [Decision::Allow; 2]),
            RowAction::ToProxy => {}
        }
    }
}
