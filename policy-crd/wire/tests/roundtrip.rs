//! What is encoded is what is decoded, and the same snapshot gives the same bytes.

mod common;

use proptest::prelude::*;
use prost::Message as _;
use sluice_policy::Snapshot;
use sluice_wire::{decode, encode, from_bytes, to_bytes};

fn assert_same(left: &Snapshot, right: &Snapshot) {
    assert_eq!(left.generation, right.generation);
    assert_eq!(left.policies, right.policies);
    assert_eq!(left.classes, right.classes);
    assert_eq!(left.addresses, right.addresses);
    assert_eq!(left.endpoints[..], right.endpoints[..]);
    assert_eq!(left.profiles, right.profiles);
    assert_eq!(left.workloads, right.workloads);
    assert_eq!(*left.services, *right.services);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn message_and_file_give_back_the_snapshot(snapshot in common::snapshot()) {
        let message = encode(&snapshot);
        let back = decode(message.clone()).expect("a valid snapshot");
        assert_same(&snapshot, &back);
        prop_assert_eq!(message.encode_to_vec(), encode(&back).encode_to_vec());
        assert_same(&snapshot, &from_bytes(&to_bytes(&snapshot)).expect("a valid file"));
    }
}

#[test]
fn conditions_that_are_equal_travel_once_and_are_shared_again() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut snapshot = common::snapshot().new_tree(&mut runner).expect("a snapshot").current();
    let rule = |name: &str| sluice_policy::Rule {
        policy: snapshot.policies[0].clone(),
        name: name.into(),
        scopes: Vec::new(),
        conditions: Some(std::sync::Arc::new(sluice_policy::Conditions::default())),
    };
    let deny = vec![rule("one"), rule("two")];
    let side = sluice_policy::Side { deny, ..Default::default() };
    snapshot.profiles = vec![sluice_policy::Profile { ingress: side, ..Default::default() }].into();
    snapshot.endpoints = Vec::new().into();
    let message = encode(&snapshot);
    assert_eq!(message.conditions.len(), 1);
    let back = decode(message).expect("valid");
    let shared = |at: usize| back.profiles[0].ingress.deny[at].conditions.as_ref().expect("conditions");
    assert!(std::sync::Arc::ptr_eq(shared(0), shared(1)));
}
