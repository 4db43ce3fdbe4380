//! A compiler that remembers gives what one gives that knows nothing, and does no more than a change asks for.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

#[path = "../benches/common/mod.rs"]
mod cluster;
mod common;
mod generate;
mod reference;

use cluster::{Size, manifests};
use common::renumbered::same;
use generate::{cilium, l7, network, tiers, world};
use proptest::prelude::*;
use serde_json::{Value, json};
use sluice_compile::{Compiled, Compiler, Enforcement, NodeScope, Options, Rollout, compile};
use sluice_policy::{Endpoint, IndexedProfile, Snapshot};
use std::collections::HashSet;
use std::sync::Arc;

const ROLLOUT: Rollout =
    Rollout::AsLabelled { default_dataplane: true, max_enforcement: Enforcement::Enforce };

/// A thousand policies for 500 pods.
const SIZE: Size = Size { namespaces: 50, nodes: 10, replicas: 2, policies: 20, wide: 0 };

fn options(node: NodeScope) -> Options {
    Options { node, rollout: ROLLOUT, generation: 1 }
}

fn take(compiler: &mut Compiler, objects: &[Value], node: NodeScope) -> Compiled {
    let loaded = sluice_crd::load_value(objects);
    assert!(loaded.problems.is_empty(), "{}", loaded.problems[0]);
    compiler.compile(&loaded.objects, &options(node))
}

/// The manifest with this kind, namespace and name.
fn find<'a>(objects: &'a mut [Value], kind: &str, namespace: &str, name: &str) -> &'a mut Value {
    let is = |object: &Value| {
        object["kind"] == kind
            && object["metadata"]["namespace"] == namespace
            && object["metadata"]["name"].as_str().is_some_and(|own| own.starts_with(name))
    };
    objects.iter_mut().find(|object| is(object)).unwrap()
}

fn profile<'a>(snapshot: &'a Snapshot, endpoint: &Endpoint) -> &'a Arc<IndexedProfile> {
    &snapshot.profiles[endpoint.profile.0 as usize]
}

/// The pods whose profile is not the very same as before, as `namespace/name`.
fn touched(before: &Snapshot, after: &Snapshot) -> HashSet<String> {
    let pairs = before.endpoints.iter().zip(&after.endpoints[..]);
    let touched = pairs.filter(|(old, new)| !Arc::ptr_eq(profile(before, old), profile(after, new)));
    touched.map(|(_, new)| format!("{}/{}", new.workload.namespace, new.workload.pod)).collect()
}

#[test]
fn a_change_of_one_policy_lowers_one_and_builds_the_profiles_of_its_pods() {
    let mut objects = manifests(&SIZE);
    let mut compiler = Compiler::new();
    let first = take(&mut compiler, &objects, NodeScope::All);
    let stats = compiler.stats();
    assert_eq!((stats.lowered, stats.reused), (1000, 0));
    assert_eq!((stats.profiles_built, stats.profiles_reused), (first.snapshot.profiles.len(), 0));

    let policy = find(&mut objects, "L7NetworkPolicy", "ns-007", "13-");
    policy["spec"]["ingress"][0]["rules"]["http"][0]["methods"] = json!(["OPTIONS"]);
    let name = policy["metadata"]["name"].as_str().unwrap().to_owned();
    let second = take(&mut compiler, &objects, NodeScope::All);
    let stats = compiler.stats();
    assert_eq!((stats.lowered, stats.reused, stats.resolved), (1, 999, 1));
    assert_eq!((stats.classes_added, stats.classes_removed), (0, 0));
    let state = second
        .policies
        .iter()
        .find(|state| *state.origin.name == *name && &*state.origin.namespace == "ns-007");
    let selected: HashSet<String> =
        state.unwrap().selected.iter().map(|pod| format!("{}/{}", pod.namespace, pod.pod)).collect();
    assert_eq!(selected.len(), SIZE.replicas);
    assert_eq!(touched(&first.snapshot, &second.snapshot), selected);
    // They differ in the number of a named port, so that each pod has its own.
    assert_eq!(stats.profiles_built, SIZE.replicas);
    assert_eq!(stats.profiles_built + stats.profiles_reused, second.snapshot.profiles.len());

    take(&mut compiler, &objects, NodeScope::All);
    let stats = compiler.stats();
    assert_eq!((stats.lowered, stats.resolved, stats.profiles_built), (0, 0, 0), "nothing has changed");
}

#[test]
fn what_comes_and_goes_moves_no_number_of_what_stays() {
    let mut objects = manifests(&SIZE);
    let mut compiler = Compiler::new();
    let node = NodeScope::Named("node-3".into());
    let first = take(&mut compiler, &objects, node.clone());

    // One more policy, which comes first in order, for the pods of one app.
    objects.push(json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "ns-004", "name": "000"},
        "spec": {"podSelector": {"matchLabels": {"app": "api"}}, "ingress": [{"ports": [{"port": 1}]}]}}));
    let second = take(&mut compiler, &objects, node.clone());
    let of_app = |pod: &String| pod.starts_with("ns-004/api-");
    assert!(touched(&first.snapshot, &second.snapshot).iter().all(of_app));
    assert_eq!(compiler.stats().lowered, 1);

    // And it goes again: what it was before is what it is.
    objects.pop();
    let third = take(&mut compiler, &objects, node.clone());
    assert!(touched(&second.snapshot, &third.snapshot).iter().all(of_app));
    same(&third.snapshot, &first.snapshot).unwrap();

    // One that was there from the first goes: the others keep their numbers, those with greater ones too.
    let place = objects.iter().position(|object| {
        object["metadata"]["namespace"] == "ns-004"
            && object["metadata"]["name"].as_str().unwrap().starts_with("15-api")
    });
    let gone = objects.remove(place.unwrap());
    let without = take(&mut compiler, &objects, node.clone());
    assert!(touched(&third.snapshot, &without.snapshot).iter().all(of_app));
    objects.push(gone);
    let third = take(&mut compiler, &objects, node.clone());
    same(&third.snapshot, &first.snapshot).unwrap();

    // A pod of which there was no like: its class goes, another one comes.
    let pod = find(&mut objects, "Pod", "ns-004", "db-");
    pod["metadata"]["labels"]["app"] = "unheard-of".into();
    let fourth = take(&mut compiler, &objects, node);
    let stats = compiler.stats();
    assert_eq!((stats.lowered, stats.classes_added, stats.classes_removed), (0, 1, 1));
    assert!(stats.profiles_built > 0 && stats.profiles_reused > 0, "{stats:?}");
    let pairs = third.snapshot.endpoints.iter().zip(&fourth.snapshot.endpoints[..]);
    let touched = touched(&third.snapshot, &fourth.snapshot);
    for (old, new) in pairs {
        let name = format!("{}/{}", new.workload.namespace, new.workload.pod);
        let differs = profile(&third.snapshot, old) != profile(&fourth.snapshot, new);
        assert_eq!(
            touched.contains(&name),
            differs,
            "{name} is built anew where it says something else, and only there"
        );
    }
}

#[test]
fn a_policy_is_known_by_what_it_says_and_a_problem_by_its_place() {
    let text = |before: &str, port: &str| {
        format!(
            "{before}apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: a}}\n\
             spec: {{podSelector: {{}}, ingress: [{{ports: [{{port: {port}}}]}}]}}\n"
        )
    };
    let mut compiler = Compiler::new();
    let mut lowered = |text: &str| {
        let loaded = sluice_crd::load_str("p.yaml", text);
        let compiled = compiler.compile(&loaded.objects, &options(NodeScope::All));
        let line = compiled.problems.iter().find(|p| p.path.contains("port")).map(|problem| problem.line);
        (compiler.stats().lowered, line)
    };
    assert_eq!(lowered(&text("", "80")), (1, None));
    assert_eq!(lowered(&text("# moved\n", "80")), (0, None), "its place is nobody's business");
    assert_eq!(lowered(&text("", "0")), (1, Some(4)));
    assert_eq!(lowered(&text("# moved\n", "0")), (1, Some(5)), "a problem stands where it stands now");
    assert_eq!(lowered(&text("# moved\n", "0")), (0, Some(5)));
}

#[test]
fn what_a_policy_names_makes_it_another() {
    let mut compiler = Compiler::new();
    let policy = |name: &str, rule: Value| {
        json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"namespace": "a", "name": name},
            "spec": {"endpointSelector": {}, "egress": [rule]}})
    };
    let group = |cidr: &str| {
        json!({"apiVersion": "cilium.io/v2alpha1", "kind": "CiliumCIDRGroup", "metadata": {"name": "g"},
            "spec": {"externalCIDRs": [cidr]}})
    };
    let with = |cidr: &str| {
        vec![
            policy("names", json!({"toCIDRSet": [{"cidrGroupRef": "g"}]})),
            policy("does-not", json!({"toCIDR": ["192.0.2.1/32"]})),
            group(cidr),
        ]
    };
    take(&mut compiler, &with("203.0.113.0/24"), NodeScope::All);
    take(&mut compiler, &with("203.0.113.0/24"), NodeScope::All);
    assert_eq!(compiler.stats().lowered, 0);
    take(&mut compiler, &with("198.51.100.0/24"), NodeScope::All);
    assert_eq!((compiler.stats().lowered, compiler.stats().reused), (1, 1));
}

/// Two readings of each of a world's objects and of some policies, and steps from one to another or to nothing.
fn edits() -> impl Strategy<Value = (Vec<[Value; 2]>, Vec<(usize, usize)>)> {
    let policy = |number: usize| {
        let name = format!("p{number}");
        prop_oneof![
            network::policy(name.clone()),
            l7::policy(name.clone()),
            cilium::policy(name.clone()),
            tiers::policy(name, number),
        ]
    };
    let policies: Vec<_> = (0..6).map(|number| (policy(number), policy(number))).collect();
    let worlds = (world::world(), world::world());
    let steps = prop::collection::vec((any::<prop::sample::Index>(), 0..3_usize), 1..8);
    (worlds, policies, steps).prop_map(|((one, other), policies, steps)| {
        let mut slots: Vec<[Value; 2]> = one.into_iter().zip(other).map(|(a, b)| [a, b]).collect();
        slots.extend(policies.into_iter().map(|(a, b)| [a, b]));
        let count = slots.len();
        (slots, steps.into_iter().map(|(slot, choice)| (slot.index(count), choice)).collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// However it came to the objects that there are, it compiles what one compiles that sees them for the first time.
    #[test]
    fn nothing_remembered_decides_anything((slots, steps) in edits()) {
        let mut compiler = Compiler::new();
        let mut chosen = vec![0; slots.len()];
        let nodes = [NodeScope::All, NodeScope::Named("n1".into()), NodeScope::Named("n2".into())];
        for (step, (slot, choice)) in steps.into_iter().enumerate() {
            chosen[slot] = choice;
            let objects: Vec<Value> =
                slots.iter().zip(&chosen).filter_map(|(slot, choice)| slot.get(*choice).cloned()).collect();
            let loaded = sluice_crd::load_value(&objects);
            let update = compiler.update(&loaded.objects, ROLLOUT);
            // A node may not ask for a while.
            for node in nodes.iter().skip(step % 3) {
                let got = compiler.snapshot(node, 1).unwrap();
                let expected = compile(&loaded.objects, &options(node.clone()));
                prop_assert_eq!(&update.problems, &expected.problems);
                prop_assert_eq!(&update.policies, &expected.policies);
                let difference = same(&got, &expected.snapshot);
                prop_assert!(difference.is_ok(), "{:?}: {}", node, difference.unwrap_err());
            }
        }
    }
}
