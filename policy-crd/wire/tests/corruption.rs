//! What is not a snapshot is refused whole, with the field's name; nothing that is read can panic a node.

mod common;

use proptest::prelude::*;
use prost::Message as _;
use sluice_policy::{Class, ClassId, Identity, Prefix, PrefixTable, Snapshot};
use sluice_wire::{FileError, WIRE_VERSION, decode, encode, from_bytes, limits, pb, to_bytes};

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_byte_of_a_file_is_noticed(
        snapshot in common::snapshot(), at in any::<prop::sample::Index>(), flip in 1..=u8::MAX
    ) {
        let mut bytes = to_bytes(&snapshot);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(from_bytes(&bytes).is_err(), "byte {at} ^ {flip:#x} was taken");
    }

    #[test]
    fn a_file_that_ends_early_is_noticed(snapshot in common::snapshot(), at in any::<prop::sample::Index>()) {
        let bytes = to_bytes(&snapshot);
        prop_assert!(from_bytes(&bytes[..at.index(bytes.len())]).is_err());
    }

    /// Without the sum a changed message may be a message again. Then it is one that breaks no rule.
    #[test]
    fn a_changed_message_is_valid_or_refused(
        snapshot in common::snapshot(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
    ) {
        let mut bytes = encode(&snapshot).encode_to_vec();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(back) = pb::Snapshot::decode(&*bytes).map_err(|_| ()).and_then(|m| decode(m).map_err(|_| ())) {
            assert_in_range(&back);
        }
    }

    #[test]
    fn noise_is_no_file(noise in prop::collection::vec(any::<u8>(), 0..256)) {
        prop_assert!(from_bytes(&noise).is_err());
    }
}

/// Walks everything that a reader indexes by.
fn assert_in_range(snapshot: &Snapshot) {
    assert_eq!(snapshot.classes[0].identity, Identity::Missing);
    assert!(snapshot.addresses.iter().all(|(_, class)| (class.0 as usize) < snapshot.classes.len()));
    assert!(snapshot.endpoints.iter().all(|e| snapshot.profile(e.profile).is_some()));
    for profile in &snapshot.profiles {
        for side in [&profile.ingress, &profile.egress] {
            let allows = side.layers.iter().flat_map(|layer| &layer.allow);
            for rule in side.deny.iter().chain(allows) {
                assert_eq!(snapshot.policies[rule.policy.id.0 as usize], rule.policy);
                for scope in &rule.scopes {
                    let all = scope.peers == sluice_policy::ClassSet::All;
                    assert!(all || !scope.peers.contains(ClassId::MISSING));
                    assert!(scope.ports.ranges().iter().all(|r| r.first <= r.last));
                }
            }
        }
    }
}

/// A condition of every kind.
fn conditions() -> pb::Conditions {
    let header = pb::HeaderMatch {
        name: "x-tenant".into(),
        test: Some(pb::header_match::Test::Regex("[a-z]+".into())),
    };
    let path = pb::PathMatch { test: Some(pb::path_match::Test::Prefix("/api".into())) };
    let host = pb::HostMatch { test: Some(pb::host_match::Test::Name(server_name("cart.shop"))) };
    let query = pb::QueryMatch { name: "v".into(), test: Some(pb::query_match::Test::Exact("2".into())) };
    let method = pb::MethodMatch { test: Some(pb::method_match::Test::Exact("GET".into())) };
    let http = pb::HttpMatch {
        methods: vec![method],
        path: Some(path),
        headers: vec![header],
        hosts: vec![host],
        query: vec![query],
        upgrades: vec!["websocket".into()],
    };
    let grpc = pb::GrpcMatch {
        service: "shop.v1.Cart".into(),
        methods: vec!["GetCart".into()],
        protocols: vec![pb::GrpcProtocol::Grpc.into()],
    };
    pb::Conditions { http: vec![http], grpc: vec![grpc], tls: vec![server_name("api.example.com")] }
}

/// A small valid message with one of everything.
fn sample() -> pb::Snapshot {
    let class = |identity| Class { identity, cidrs: vec!["10.0.0.0/8".into()] };
    let mut addresses = PrefixTable::new();
    addresses.insert(Prefix::EVERYTHING, ClassId(1));
    let mut message = encode(&Snapshot {
        generation: 3,
        classes: vec![class(Identity::Missing), class(Identity::World)],
        addresses,
        ..Snapshot::default()
    });
    let rule = pb::Rule {
        policy: 0,
        name: "rule".into(),
        scopes: vec![pb::Scope {
            all_classes: false,
            classes: vec![0b10],
            all_ports: false,
            ports: vec![pb::PortRange { protocol: pb::Protocol::Tcp.into(), first: 80, last: 81 }],
        }],
        conditions: Some(0),
    };
    let isolation = pb::Isolation { policy: 0, all: false, listed: vec![pb::PortSpan { first: 1, last: 2 }] };
    let layer = pb::Layer { isolation: vec![isolation], allow: vec![rule.clone()] };
    let tiered = pb::TierRule { action: pb::TierAction::Pass.into(), rule: Some(rule.clone()) };
    let side = pb::Side {
        deny: vec![rule],
        layer_k: Some(layer.clone()),
        layer_l: Some(layer),
        admin: vec![tiered.clone()],
        baseline: vec![tiered],
    };
    message.profiles = vec![pb::Profile { ingress: Some(side.clone()), egress: Some(side) }];
    message.policies = vec![pb::Policy {
        kind: pb::Kind::L7NetworkPolicy.into(),
        namespace: "shop".into(),
        name: "cart".into(),
        mode: pb::Mode::Enforce.into(),
        deny_action: pb::DenyAction::Drop.into(),
        deny_detail: pb::DenyDetail::None.into(),
    }];
    message.conditions = vec![conditions()];
    let address = vec![10, 0, 0, 1];
    message.workloads = vec![pb::Workload {
        namespace: "shop".into(),
        pod: "cart".into(),
        addresses: vec![address.clone()],
        ..pb::Workload::default()
    }];
    message.endpoints = vec![pb::Endpoint { workload: 0, addresses: vec![address], profile: 0 }];
    message
}

fn server_name(name: &str) -> pb::NameMatch {
    pb::NameMatch { test: Some(pb::name_match::Test::Exact(name.into())) }
}

type Damage = fn(&mut pb::Snapshot);

fn ingress(message: &mut pb::Snapshot) -> &mut pb::Side {
    message.profiles[0].ingress.as_mut().expect("a side")
}

fn scope(message: &mut pb::Snapshot) -> &mut pb::Scope {
    &mut ingress(message).deny[0].scopes[0]
}

fn http(message: &mut pb::Snapshot) -> &mut pb::HttpMatch {
    &mut message.conditions[0].http[0]
}

fn path(message: &mut pb::Snapshot, test: pb::path_match::Test) {
    http(message).path = Some(pb::PathMatch { test: Some(test) });
}

/// Every rule of the decoder, broken once: the damage and the field that must be named.
const DAMAGES: &[(&str, Damage)] = &[
    ("wire_version", |m| m.wire_version = WIRE_VERSION + 1),
    ("wire_version", |m| m.wire_version = 0),
    ("policies[0].kind", |m| m.policies[0].kind = 0),
    ("policies[0].kind", |m| m.policies[0].kind = 99),
    ("policies[0].mode", |m| m.policies[0].mode = 99),
    ("policies[0].deny_action", |m| m.policies[0].deny_action = 0),
    ("policies[0].deny_action", |m| m.policies[0].deny_action = 99),
    ("policies[0].deny_detail", |m| m.policies[0].deny_detail = 0),
    ("policies[0].deny_detail", |m| m.policies[0].deny_detail = 99),
    ("policies[0].name", |m| m.policies[0].name.clear()),
    ("policies[0].name", |m| m.policies[0].name = "n".repeat(limits::NAME_BYTES + 1)),
    ("policies", |m| m.policies = vec![m.policies[0].clone(); limits::POLICIES + 1]),
    ("classes", |m| m.classes.clear()),
    ("classes[0].identity", |m| m.classes.swap(0, 1)),
    ("classes[1].identity", |m| m.classes[1] = m.classes[0].clone()),
    ("classes[1].identity", |m| m.classes[1].identity = None),
    ("addresses[0].prefix", |m| m.addresses[0].prefix.truncate(4)),
    ("addresses[0].prefix", |m| m.addresses[0].prefix[15] = 1),
    ("addresses[0].length", |m| m.addresses[0].length = 129),
    ("addresses[0].class", |m| m.addresses[0].class = 2),
    ("addresses[1].prefix", |m| m.addresses.push(m.addresses[0].clone())),
    ("workloads[0].pod", |m| m.workloads[0].pod.clear()),
    ("workloads[0].addresses[0]", |m| m.workloads[0].addresses[0].push(1)),
    ("workloads[1].addresses", |m| m.workloads.push(m.workloads[0].clone())),
    ("endpoints[0].workload", |m| m.endpoints[0].workload = 1),
    ("endpoints[0].profile", |m| m.endpoints[0].profile = 1),
    ("endpoints[1].addresses", |m| m.endpoints.push(m.endpoints[0].clone())),
    ("endpoints[0].addresses", |m| m.endpoints[0].addresses = vec![vec![0; 4]; limits::POD_ADDRESSES + 1]),
    ("profiles[0].egress", |m| m.profiles[0].egress = None),
    ("profiles[0].ingress.layer_l", |m| ingress(m).layer_l = None),
    ("profiles[0].ingress.deny[0].policy", |m| ingress(m).deny[0].policy = 1),
    ("profiles[0].ingress.deny[0].conditions", |m| ingress(m).deny[0].conditions = Some(1)),
    ("profiles[0].ingress.deny[0].scopes[0].classes", |m| scope(m).classes = vec![0b100]),
    ("profiles[0].ingress.deny[0].scopes[0].classes", |m| scope(m).classes = vec![0b1]),
    ("profiles[0].ingress.deny[0].scopes[0].classes", |m| scope(m).classes = vec![0, 0]),
    ("profiles[0].ingress.deny[0].scopes[0].classes", |m| scope(m).all_classes = true),
    ("profiles[0].ingress.deny[0].scopes[0].ports", |m| scope(m).all_ports = true),
    ("profiles[0].ingress.deny[0].scopes[0].ports[0].protocol", |m| scope(m).ports[0].protocol = 0),
    ("profiles[0].ingress.deny[0].scopes[0].ports[0].last", |m| scope(m).ports[0].last = 79),
    ("profiles[0].ingress.deny[0].scopes[0].ports[0].last", |m| scope(m).ports[0].last = 1 << 16),
    ("profiles[0].ingress.layer_k.isolation[0].policy", |m| {
        ingress(m).layer_k.as_mut().expect("a layer").isolation[0].policy = 7;
    }),
    ("profiles[0].ingress.layer_k.isolation[0].listed", |m| {
        ingress(m).layer_k.as_mut().expect("a layer").isolation[0].all = true;
    }),
    ("profiles[0].ingress.layer_k.isolation[0].listed[0].last", |m| {
        ingress(m).layer_k.as_mut().expect("a layer").isolation[0].listed[0].last = 0;
    }),
    ("conditions[0].http[0].path.test", |m| http(m).path = Some(pb::PathMatch { test: None })),
    ("conditions[0].http[0].path.prefix", |m| path(m, pb::path_match::Test::Prefix("api".into()))),
    ("conditions[0].http[0].path.exact", |m| path(m, pb::path_match::Test::Exact(String::new()))),
    ("conditions[0].http[0].path.regex", |m| path(m, pb::path_match::Test::Regex("(".into()))),
    ("conditions[0].http[0].path.regex", |m| path(m, pb::path_match::Test::Regex("(a{999}){999}".into()))),
    ("conditions[0].http[0].methods[0].test", |m| http(m).methods[0].test = None),
    ("conditions[0].http[0].methods[0].exact", |m| {
        http(m).methods[0].test = Some(pb::method_match::Test::Exact(String::new()));
    }),
    ("conditions[0].http[0].hosts[0].test", |m| http(m).hosts[0].test = None),
    ("conditions[0].http[0].hosts[0].exact", |m| {
        http(m).hosts[0].test = Some(pb::host_match::Test::Name(server_name("Cart")));
    }),
    ("conditions[0].http[0].query[0].name", |m| http(m).query[0].name.clear()),
    ("conditions[0].http[0].query[0].test", |m| http(m).query[0].test = None),
    ("conditions[0].http[0].upgrades[0]", |m| http(m).upgrades[0] = "WebSocket".into()),
    ("conditions[0].tls[0].exact", |m| m.conditions[0].tls[0] = server_name("")),
    ("conditions[0].grpc[0].protocols", |m| m.conditions[0].grpc[0].protocols.clear()),
    ("conditions[0].grpc[0].protocols", |m| m.conditions[0].grpc[0].protocols = vec![9]),
    ("conditions[0].http[0].headers[0].name", |m| http(m).headers[0].name = "X-Tenant".into()),
    ("conditions[0].http[0].headers[0].test", |m| http(m).headers[0].test = None),
    ("conditions[0].grpc[0].service", |m| m.conditions[0].grpc[0].service.clear()),
];

#[test]
fn each_broken_rule_refuses_the_whole_and_names_its_field() {
    assert_in_range(&decode(sample()).expect("the sample is valid"));
    for (field, damage) in DAMAGES {
        let mut message = sample();
        damage(&mut message);
        let error = decode(message).expect_err(field);
        assert_eq!(error.field(), *field, "{error}");
        assert!(error.to_string().starts_with(&format!("snapshot refused: {field}: ")), "{error}");
    }
}

#[test]
fn too_many_expressions_are_refused_before_they_are_compiled() {
    let mut message = sample();
    let http = |at: usize| pb::HttpMatch {
        path: Some(pb::PathMatch { test: Some(pb::path_match::Test::Regex(format!("a{at}"))) }),
        ..pb::HttpMatch::default()
    };
    let conditions = |chunk: usize| pb::Conditions {
        http: (0..limits::MATCHES).map(|at| http(chunk * limits::MATCHES + at)).collect(),
        ..pb::Conditions::default()
    };
    message.conditions = (0..=limits::REGEXES / limits::MATCHES).map(conditions).collect();
    let error = decode(message).expect_err("too many");
    assert_eq!(
        error.field(),
        format!("conditions[{}].http[0].path.regex", limits::REGEXES / limits::MATCHES)
    );
}

#[test]
fn a_file_of_another_version_says_so() {
    let mut bytes = to_bytes(&decode(sample()).expect("valid"));
    bytes[11] = 9;
    assert!(matches!(from_bytes(&bytes), Err(FileError::OtherVersion { found: 9 })));
    assert!(matches!(from_bytes(b"#!/bin/sh"), Err(FileError::NotASnapshot)));
}

#[test]
fn no_address_leads_to_a_class_that_is_vacant() {
    let vacant = || Some(pb::class::Identity::Vacant(true));
    let mut message = sample();
    message.classes.push(pb::Class { identity: vacant(), cidrs: Vec::new() });
    assert!(decode(message.clone()).is_ok(), "a number may be free");
    message.classes[1].identity = vacant();
    let refused = decode(message).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("an address leads to a class that is vacant"), "{refused}");
}
