//! What is kept of a cluster's objects is everything that is compiled: the same snapshot comes of them, and the same
//! problems.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;
mod generate;
mod reference;

use generate::{cilium, l7, network, tiers, world};
use proptest::prelude::*;
use serde_json::{Value, json};
use sluice_compile::{Compiled, Enforcement, NodeScope, Options, Rollout, compile};

fn compiled(objects: &[Value], node: NodeScope) -> (Compiled, Vec<sluice_crd::Problem>) {
    let rollout = Rollout::AsLabelled { default_dataplane: true, max_enforcement: Enforcement::Enforce };
    let loaded = sluice_crd::load_value(objects);
    let compiled = compile(&loaded.objects, &Options { node, rollout, generation: 1 });
    (compiled, loaded.problems)
}

fn same(objects: &[Value]) {
    for node in [NodeScope::All, NodeScope::Named("node".into()), NodeScope::Named("elsewhere".into())] {
        same_for(objects, &node);
    }
}

fn same_for(objects: &[Value], node: &NodeScope) {
    let slim: Vec<Value> = objects.iter().cloned().map(sluice_crd::slim).collect();
    let ((whole, form), (kept, kept_form)) = (compiled(objects, node.clone()), compiled(&slim, node.clone()));
    common::renumbered::same(&kept.snapshot, &whole.snapshot).unwrap();
    assert_eq!(whole.snapshot.services[..], kept.snapshot.services[..]);
    assert_eq!(whole.problems, kept.problems);
    assert_eq!(whole.policies, kept.policies);
    // What is wrong with the form of what nobody reads is not told; of the rest all is.
    assert!(kept_form.iter().all(|problem| form.contains(problem)), "{kept_form:?}");
    let errors = |problems: &[sluice_crd::Problem]| {
        problems.iter().filter(|problem| problem.severity == sluice_crd::Severity::Error).count()
    };
    assert_eq!(errors(&form), errors(&kept_form), "{form:?}");
}

/// Every field of a Service, of its endpoints and of a pod that anything depends on.
#[test]
fn services_and_ports_come_out_the_same() {
    let service = |fields: Value| {
        let mut spec = json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "selector": {"app": "a"},
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]});
        for (name, value) in fields.as_object().unwrap() {
            spec[name] = value.clone();
        }
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "n", "name": "s"}, "spec": spec,
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}, "conditions": []}})
    };
    let pod = |name: &str, address: &str| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "n", "name": name, "labels": {"app": "a"}, "annotations": {"x": "y"}, "uid": name},
            "spec": {"nodeName": "node", "serviceAccountName": "s", "volumes": [{"name": "v"}],
                "containers": [{"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 8080}]}],
                "initContainers": [
                    {"name": "d", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 9000}]},
                    {"name": "e", "ports": [{"name": "once", "containerPort": 9001}]}]},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}, {"ip": format!("fd00::{name}")}]}})
    };
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "n", "name": "s-1", "labels": {"kubernetes.io/service-name": "s"}},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "nodeName": "node", "targetRef": {"kind": "Pod"}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}}]});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node", "labels": {"zone": "z"}},
        "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"], "taints": []},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}], "capacity": {"cpu": "1"}}});
    let policy = json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
        "metadata": {"namespace": "n", "name": "p"},
        "spec": {"podSelector": {}, "ingress": [{"name": "r", "ports": [{"port": "http"}, {"port": "side"}, {"port": "once"}]}]}});
    for fields in [
        json!({}),
        json!({"externalIPs": ["198.51.100.7"]}),
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "externalIPs": ["198.51.100.8"]}),
        json!({"internalTrafficPolicy": "Local"}),
        json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 90}}}),
        json!({"type": "ExternalName", "externalName": "example.com"}),
    ] {
        let objects = [
            service(fields),
            pod("a", "10.0.0.1"),
            pod("b", "10.0.0.2"),
            slice.clone(),
            node.clone(),
            policy.clone(),
        ];
        same(&objects);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_cluster_is(
        world in world::world(),
        network in network::policy("a".into()),
        l7 in l7::policy("b".into()),
        cilium in cilium::policy("c".into()),
        tiers in tiers::policy("d".into(), 1),
    ) {
        let mut objects = world;
        objects.extend([network, l7, cilium, tiers]);
        same(&objects);
    }
}
